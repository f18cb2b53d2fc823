"""Tables whose trainings are a stand-in of a few lines, and what their files say."""

import sys

import pytest

from focal_det.cli import reproduce as cli_reproduce
from focal_det.paper import claims, comparison, sweep
from focal_det.paper import reproduce as paper_reproduce
from focal_det.paper.claims import Claim, RowComparison
from focal_det.paper.runs import SweepOptions, SweepRun, plan_table
from focal_det.paper.tables import load_tables

# A miniature small enough for a test: no first training, two images a step, two steps.
TINY = [
    *("MODEL.WEIGHTS", "none.pth", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "3", "SOLVER.STEPS", "()"),
    *("DATASETS.TRAIN", "shapes_train_4_64px", "DATASETS.TEST", "shapes_val_4_64px", "DATALOADER.NUM_WORKERS", "0"),
    *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64", "MODEL.RETINANET.NUM_CONVS", "1"),
]

# Stands in for train_net.py: one line of metrics for each iteration, then the AP that the seed says.
TRAINING = """
import json, os, sys, time
words = sys.argv[1:]
folder = words[words.index("OUTPUT_DIR") + 1]
seed = int(words[words.index("SEED") + 1])
with open(os.path.join(folder, "started"), "a") as f: f.write("x")
behaviour = os.environ.get("BEHAVIOUR", "")
if behaviour == "diverges": print("FloatingPointError: Loss became infinite or NaN"); sys.exit(1)
if behaviour == "bad input": print("error: SEED is wrong: use another", file=sys.stderr); sys.exit(2)
if behaviour == "killed": os.kill(os.getpid(), 9)
if behaviour == "full" : print("OSError: [Errno 28] No space left on device"); sys.exit(1)
with open(os.path.join(folder, "metrics.json"), "a") as f:
    f.write(json.dumps({"iteration": 1, "time": 0.5}) + "\\n")
    scores = {"AP": 30.0 + 2 * seed, "AP50": 50.0, "AP75": 30.0, "APs": 11.0, "APm": 22.0, "APl": float("nan")}
    f.write(json.dumps({"iteration": 2} | {f"bbox/{name}": value for name, value in scores.items()}) + "\\n")
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Every training is the stand-in, whose end is not waited for longer than it takes; nothing is drawn."""
    monkeypatch.setattr(sweep, "_POLL_SECONDS", 0.02)
    monkeypatch.setattr(comparison, "save_figures", lambda *_: [])
    script = tmp_path / "training.py"
    script.write_text(TRAINING)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    monkeypatch.setattr(SweepRun, "command", property(lambda run: [sys.executable, str(script), *run.arguments]))


@pytest.fixture
def plan_of(tmp_path, monkeypatch, stand_in):
    """Plans rows of a table whose trainings are the stand-in."""

    def make(table="table3", rows=("ce", "fl"), seeds=(1,), overrides=TINY, data_flags=(), scale="mini"):
        chosen = load_tables()[table]
        out = tmp_path / "out"
        options = SweepOptions(scale=scale, seeds=seeds, out=out, overrides=tuple(overrides), data_flags=data_flags)
        return plan_table(chosen, [chosen.rows[row] for row in rows], options)

    return make


def starts(run):
    path = run.folder / "started"
    return len(path.read_text()) if path.is_file() else 0


def cells(path):
    """The table's rows that were asked for; the others have not been run."""
    return [row for row in all_cells(path) if row["state"] != "not run"]


def all_cells(path):
    lines = [line for line in path.read_text().splitlines() if line.startswith("| ")]
    names = [cell.strip() for cell in lines[0].strip("|").split("|")]
    return [dict(zip(names, (cell.strip() for cell in line.strip("|").split("|")), strict=True)) for line in lines[1:]]


@pytest.fixture
def one_claim(monkeypatch):
    """The only claim, about rows of two tables, which are all that there are for the command line."""
    above = RowComparison("above", "table3/fl_star_2_1", "section5_1/hinge")
    claims_made = (Claim("FL* beats the hinge", "text", (above,)),)
    for module in (claims, paper_reproduce):
        monkeypatch.setattr(module, "load_claims", lambda: claims_made)
    tables = {name: load_tables()[name] for name in ("table3", "section5_1")}
    monkeypatch.setattr(cli_reproduce, "load_tables", lambda: tables)
    return tables
