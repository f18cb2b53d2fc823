"""The commands of docs/own-data.md that lead from a folder to a file, run as they stand, but small and short."""

import re
import shlex
from pathlib import Path

import pytest
from exported_formats import labelme

pytestmark = pytest.mark.detectron2

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "own-data.md").read_text()
BOXES = [("cat", 4, 6, 20, 12), ("dog", 30, 10, 24, 30)]
SMALL = [
    *("SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "(1,)", "SOLVER.WARMUP_ITERS", "1", "SOLVER.IMS_PER_BATCH", "2"),
    *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64", "DATALOADER.NUM_WORKERS", "0"),
    *("MODEL.FPN.OUT_CHANNELS", "64", "MODEL.RETINANET.NUM_CONVS", "1", "TEST.DETECTIONS_PER_IMAGE", "5"),
    # Most of the time is the exporter's, which counts operations: two levels of five are a quarter less.
    *("MODEL.RETINANET.IN_FEATURES", "['p3', 'p4']", "MODEL.ANCHOR_GENERATOR.SIZES", "[[16], [32]]"),
    *("MODEL.RETINANET.SCORE_THRESH_TEST", "0.0"),  # an untrained detector's scores are low
]


def commands():
    """The commands of the section, each a list of words."""
    section = PAGE.split("## The whole way, with 60 images")[1].split("\n## ")[0]
    block = re.search(r"```sh\n(.*?)```", section, re.DOTALL)[1]
    return [shlex.split(line) for line in block.replace("\\\n", " ").splitlines()]


def test_the_whole_way_from_labelme_s_files(tmp_path, prepared):
    labelme(tmp_path / "my_export", {f"n{i}": BOXES for i in range(8)})
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for command in commands():
        if "--train" in command:
            place = command.index("my_export") + 1
            command[place:place] = ["--split-val", "0.2"]  # as the page says for a folder without a set to test on
        program, words = command[0], command[1:]
        if program == "python":
            program, words = ROOT / words[0], [*words[1:], *SMALL]
        done = prepared.run(*words, program=program, cwd=tmp_path)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
    found = sorted(path.name for path in (tmp_path / "output").iterdir())
    assert found == ["evaluation", "found", "found_onnx", "inspect", "mine", "mine.onnx", "mine.onnx.card.json"]
