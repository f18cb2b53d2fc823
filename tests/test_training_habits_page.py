"""The commands of docs/training-habits.md, run as they stand, but small and short."""

import json
import re
import shlex
from pathlib import Path

import pytest
from exported_formats import labelme

pytestmark = pytest.mark.detectron2

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "training-habits.md").read_text()
BOXES = [("cat", 4, 6, 20, 12), ("dog", 30, 10, 24, 30)]
SMALL = [
    *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64", "DATALOADER.NUM_WORKERS", "0"),
    *("MODEL.FPN.OUT_CHANNELS", "64", "MODEL.RETINANET.NUM_CONVS", "1", "MODEL.FOCAL_DET.DRAW_IMAGES", "0"),
]
ON_EXPORT = [
    *("SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "(1,)", "SOLVER.WARMUP_ITERS", "1"),
    *("MODEL.RETINANET.IN_FEATURES", "['p3', 'p4']", "MODEL.ANCHOR_GENERATOR.SIZES", "[[16], [32]]"),
]
ON_SHAPES = [
    *("DATASETS.TRAIN", "shapes_train_20_64px", "DATASETS.TEST", "shapes_val_2_64px", "SOLVER.IMS_PER_BATCH", "2"),
    *("SOLVER.MAX_ITER", "4", "SOLVER.STEPS", "(3,)", "SOLVER.CHECKPOINT_PERIOD", "1", "TEST.EVAL_PERIOD", "1"),
]
# An AP that does not rise, so that PATIENCE has something to end; small as all else.
FLAT = ["SOLVER.BASE_LR", "1e-30", "MODEL.FOCAL_DET.PATIENCE_METRIC", "val/total_loss"]


def commands(*titles):
    """The commands of the sections whose titles begin so, each a list of words, without python before a file."""
    sections = PAGE.split("\n## ")[1:]
    chosen = [part for title in titles for part in sections if part.startswith(title)]
    blocks = [block for part in chosen for block in re.findall(r"```sh\n(.*?)```", part, re.DOTALL)]
    words = [shlex.split(line) for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line[1:] if line[0] == "python" else line for line in words]


def run(prepared, folder, program, *words):
    program = ROOT / program if program == "train_net.py" else program
    done = prepared.run(*words, program=program, cwd=folder)
    assert done.returncode == 0, (program, words, done.stdout[-2000:], done.stderr[-2000:])
    return done.stdout


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    return tmp_path


def test_an_average_is_trained_taken_out_and_evaluated(prepared, folder):
    for program, *words in commands("An average of the weights"):
        if program == "-c":
            (folder / "take_out.py").write_text(words[0].replace("0000249", "0000002"))
            run(prepared, folder, folder / "take_out.py")
        elif program == "train_net.py":  # the benchmark takes minutes
            run(prepared, folder, program, *(w.replace("0000249", "0000002") for w in words), *SMALL, *ON_SHAPES)
    assert (folder / "output/quickstart/model_final_ema.pth").is_file()
    assert (folder / "output/quickstart/ema_0000002.pth").is_file()


def test_a_training_stops_early_and_is_trained_on(prepared, folder):
    first, second = commands("Early stopping")
    of_four_iterations = ["2" if word == "5" else word for word in first]
    run(prepared, folder, *of_four_iterations, *SMALL, *ON_SHAPES, *FLAT)
    assert "stopped early, after 3 iterations" in (folder / "output/early/log.txt").read_text()
    run(prepared, folder, *second, *SMALL, *ON_SHAPES, *FLAT[:2])  # PATIENCE 0 reads no metric
    lines = [json.loads(line) for line in (folder / "output/early/metrics.json").read_text().splitlines()]
    assert max(line["iteration"] for line in lines if "lr" in line) == 3


def test_parts_a_chosen_batch_and_a_range_test(prepared, folder):
    labelme(folder / "my_export", {f"n{i}": BOXES for i in range(8)})
    told = []
    for program, *words in commands("Gradient accumulation", "Batch size and memory", "Learning rate"):
        steps = ["--iterations", "20"] if "lr-find" in words or program == "focal-det" else []
        told.append(run(prepared, folder, program, *words, *SMALL, *ON_EXPORT, *steps))
    in_parts, chosen, found = told
    assert "at once, of" in in_parts
    assert "--batch auto: 4 images a step" in chosen  # of the 6 to train on
    assert (folder / "output/lr/lr_range.png").is_file()
    assert "SOLVER.BASE_LR" in found.splitlines()[-1]
