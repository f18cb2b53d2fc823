"""The commands of docs/training-habits.md, run as they stand, but small and short."""

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
    *("SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "(1,)", "SOLVER.WARMUP_ITERS", "1", "INPUT.MIN_SIZE_TRAIN", "(64,)"),
    *("INPUT.MIN_SIZE_TEST", "64", "DATALOADER.NUM_WORKERS", "0", "MODEL.FPN.OUT_CHANNELS", "64"),
    *("MODEL.RETINANET.NUM_CONVS", "1", "MODEL.RETINANET.IN_FEATURES", "['p3', 'p4']"),
    *("MODEL.ANCHOR_GENERATOR.SIZES", "[[16], [32]]", "MODEL.FOCAL_DET.DRAW_IMAGES", "0"),
]


def commands(*titles):
    """The commands of some sections, each a list of words."""
    sections = {part.split("\n")[0]: part for part in PAGE.split("\n## ")[1:]}
    blocks = [block for title in titles for block in re.findall(r"```sh\n(.*?)```", sections[title], re.DOTALL)]
    return [shlex.split(line) for block in blocks for line in block.replace("\\\n", " ").splitlines()]


def test_parts_a_chosen_batch_and_a_range_test(tmp_path, prepared):
    labelme(tmp_path / "my_export", {f"n{i}": BOXES for i in range(8)})
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    told = []
    for program, *words in commands("Gradient accumulation", "Batch size and memory", "Learning rate"):
        if program == "python":
            program, words = ROOT / words[0], words[1:]
        small = [*SMALL, "--iterations", "20"] if "lr-find" in words else SMALL
        done = prepared.run(*words, *small, program=program, cwd=tmp_path)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        told.append(done.stdout)
    in_parts, chosen, found = told
    assert "at once, of" in in_parts
    assert "--batch auto: 4 images a step" in chosen  # of the 6 to train on
    assert (tmp_path / "output/lr/lr_range.png").is_file()
    assert "SOLVER.BASE_LR" in found.splitlines()[-1]
