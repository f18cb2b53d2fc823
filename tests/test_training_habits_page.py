"""The commands of docs/training-habits.md, run as they stand, but small and short."""

import json
import re
import shlex
from pathlib import Path

import pytest

pytestmark = pytest.mark.detectron2

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "training-habits.md").read_text()
SMALL = [
    *("DATASETS.TRAIN", "shapes_train_20_64px", "DATASETS.TEST", "shapes_val_2_64px", "INPUT.MIN_SIZE_TRAIN", "(64,)"),
    *(
        "INPUT.MIN_SIZE_TEST",
        "64",
        "DATALOADER.NUM_WORKERS",
        "0",
        "MODEL.FPN.OUT_CHANNELS",
        "64",
        "MODEL.DEVICE",
        "cpu",
    ),
    *("MODEL.RETINANET.NUM_CONVS", "1", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "4", "SOLVER.STEPS", "(3,)"),
    *("SOLVER.CHECKPOINT_PERIOD", "1", "TEST.EVAL_PERIOD", "1", "MODEL.FOCAL_DET.DRAW_IMAGES", "0"),
]
# An AP that does not rise, so that PATIENCE has something to end; small as all else.
FLAT = ["SOLVER.BASE_LR", "1e-30", "MODEL.FOCAL_DET.PATIENCE_METRIC", "val/total_loss"]


def run_section(title, prepared, folder, *words):
    """Run the commands of a section that begins so, with other words behind those of train_net.py."""
    section = PAGE.split(f"\n## {title}")[1].split("\n## ")[0]
    for block in re.findall(r"```sh\n(.*?)```", section, re.DOTALL):
        for command in map(shlex.split, block.replace("\\\n", " ").replace("0000249", "0000002").splitlines()):
            program, *rest = command[1:] if command[0] == "python" else command
            if program == "-c":
                program = folder / "script.py"
                program.write_text(rest.pop())
            elif program.startswith("benchmarks/"):  # minutes
                continue
            elif program == "train_net.py":
                program, rest = ROOT / program, [*rest, *SMALL, *words]
            rest = ["2" if word == "5" else word for word in rest]  # of four iterations
            if "0" in rest and "--resume" in rest:
                rest = [*rest[: -len(words)], *words[:2]]  # without the metric, which PATIENCE 0 does not read
            done = prepared.run(*map(str, rest), program=program, cwd=folder)
            assert done.returncode == 0, (command, done.stdout[-2000:], done.stderr[-2000:])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    return tmp_path


def test_an_average_is_trained_taken_out_and_evaluated(prepared, folder):
    run_section("An average of the weights", prepared, folder)
    found = {path.name for path in (folder / "output/quickstart").glob("model_*_ema.pth")}
    assert found >= {"model_final_ema.pth"}
    assert (folder / "output/quickstart/ema_0000002.pth").is_file()


def test_a_training_stops_early_and_is_trained_on(prepared, folder):
    run_section("Early stopping", prepared, folder, *FLAT)
    lines = [json.loads(line) for line in (folder / "output/early/metrics.json").read_text().splitlines()]
    assert max(line["iteration"] for line in lines if "lr" in line) == 3
    assert "stopped early, after 3 iterations" in (folder / "output/early/log.txt").read_text()
