"""Reproducing a table: none run twice, none lost, and what the table says of each."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from training_fixtures import NARROW

from focal_det.cli import reproduce as cli_reproduce
from focal_det.cli.main import main
from focal_det.distributed.signals import handlers
from focal_det.errors import InputError
from focal_det.files import FolderLock, written_whole
from focal_det.paper import claims, comparison, figures, sweep
from focal_det.paper import reproduce as paper_reproduce
from focal_det.paper.claims import Claim, RowComparison
from focal_det.paper.reproduce import check_plans, describe, plan_tables, run_plans, trainings, write_files
from focal_det.paper.results import Record, Status, read_metrics, read_record, write_record
from focal_det.paper.runs import SweepOptions, SweepRun, plan_table
from focal_det.paper.sweep import run_all
from focal_det.paper.tables import load_tables

pytestmark = pytest.mark.detectron2

ROOT = Path(__file__).parents[2]
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


def test_the_files_of_a_table(plan_of, monkeypatch, tmp_path):
    monkeypatch.setattr(comparison, "save_figures", figures.save_figures)
    plan = plan_of()
    run_all(plan.runs, num_gpus=1, after_each=lambda _: None)
    names = ["table3.csv", "table3.md", "table3.png", "table3.svg"]
    assert sorted(path.name for path in write_files([plan], "command")) == names
    assert sorted(path.name for path in (tmp_path / "out").glob("table3.*") if path.stat().st_size) == names


def test_the_table_has_published_measured_difference_and_spread(plan_of):
    plan = plan_of(seeds=(1, 2))
    files, stopped = run_plans([plan], "the command")
    assert not stopped
    text = files[0].read_text()
    assert "Last command: `the command`" in text
    assert f"Overrides by hand: `{' '.join(TINY)}`" in text
    ce, fl = cells(files[0])
    # seeds 1 and 2 reach 32 and 34: mean 33, sample deviation sqrt(2); published 31.1
    assert (ce["row"], ce["AP measured"], ce["each seed"]) == ("ce", "33.0 ± 1.4", "32.0, 34.0")
    assert (ce["sets"], ce["trained"]) == ("NAME BalancedCrossEntropyLoss, ALPHA 0.75", "R-18, 64 px, 3 it")
    # a miniature is not held against COCO's AP; its rows against the first, as the paper's: 34.0 - 31.1
    assert fl["against ce: published, measured"] == "+2.9, +0.0"
    assert (fl["AP50"], fl["s per iteration"], fl["state"]) == ("50.0", "0.500", "done")
    lines = [line for line in csv.DictReader(files[1].open()) if line["seed"]]
    assert [(line["row"], line["seed"], line["AP"], line["published_AP"]) for line in lines] == [
        *(("ce", "1", "32.0", "31.1"), ("ce", "2", "34.0", "31.1")),
        *(("fl", "1", "32.0", "34.0"), ("fl", "2", "34.0", "34.0")),
    ]
    assert all(line["commit"] and line["hardware"] for line in lines)
    # no object is that large, and the stand-in leaves no weights to time
    assert (fl["APs"], fl["APm"], fl["APl"], fl["ms per image"]) == ("11.0", "22.0", "—", "—")
    assert re.fullmatch(r"\d+\.\d\d", fl["hours"])
    assert (lines[0]["APs"], lines[0]["APl"], lines[0]["ms"], lines[0]["published_APs"]) == ("11.0", "", "", "")
    assert float(lines[0]["hours"]) >= 0  # rounded


def test_a_trained_model_is_timed_and_its_time_is_in_the_table(plan_of, monkeypatch):
    timed = []
    monkeypatch.setattr(sweep, "trained_config", lambda run: timed.append(run.name) or "its configuration")
    monkeypatch.setattr(sweep, "milliseconds", lambda cfg, repeats: (cfg == "its configuration") * 1.25 * repeats)
    plan = plan_of("table1e", ("depth_50_scale_400",))
    files, _ = run_plans([plan], "command")
    assert timed == [run.name for run in plan.runs]
    (row,) = cells(files[0])
    assert row["ms per image"] == "12.5"
    assert row["published AP / AP50 / AP75 / APs / APm / APl / ms"].endswith(" / 11.2 / 33.8 / 46.1 / 64 ms")
    line = next(csv.DictReader(files[1].open()))
    assert (line["ms"], line["published_ms"], line["published_APl"]) == ("12.5", "64", "46.1")
    monkeypatch.setenv("BEHAVIOUR", "diverges")
    run_plans([plan_of("table1e", ("depth_50_scale_500",))], "command")
    assert len(timed) == 1


def test_table_2_has_the_papers_competitors(plan_of, monkeypatch):
    drawn = []
    monkeypatch.setattr(comparison, "save_figures", lambda named, _: drawn.append(named["table2"]))
    files, _ = run_plans([plan_of("table2", ("R_101",))], "command")
    text = files[0].read_text()
    assert "| Faster R-CNN with FPN | 2 | ResNet-101-FPN | 36.2 | 59.1 | 39.0 | 18.2 | 39.0 | 48.2 |" in text
    assert "| DSSD513 | 1 | ResNet-101-DSSD | 33.2 | 53.3 | 35.2 | 13.0 | 35.4 | 51.1 |" in text
    assert "| RetinaNet | 1 | R_101, published | 39.1 | 59.1 | 42.3 | 21.8 | 42.7 | 50.2 |" in text
    assert "| RetinaNet | 1 | R_101, measured (R-34, 64 px, 3 it) | 32.0 | 50.0 | 30.0 | 11.0 | 22.0 | — |" in text
    assert "X_101_32x8d, measured" not in text
    rings, dots = drawn[-1].axes[0].lines[:2]
    assert list(rings.get_xdata()) == [39.1, 40.8, 34.9, 36.2, 34.7, 36.8, 21.6, 31.2, 33.2]
    assert list(dots.get_xdata()) == [32.0]


def test_the_table_keeps_what_was_run_before(plan_of):
    run_plans([plan_of(seeds=(1, 2))], "first")
    files, _ = run_plans([plan_of(rows=("fl_star_2_1",), seeds=(3,))], "second")
    rows = {row["row"]: (row["each seed"], row["state"]) for row in all_cells(files[0])}
    assert rows == {
        "ce": ("32.0, 34.0", "done"),
        "fl": ("32.0, 34.0", "done"),
        "fl_star_2_1": ("36.0", "done"),
        "fl_star_4_0": ("—", "not run"),
    }


def test_a_row_whose_own_key_is_changed_by_hand_is_not_compared_with_the_papers(plan_of, tmp_path):
    def difference(*overrides):
        plan = plan_of(rows=("ce",), overrides=overrides, scale="full")
        (row,) = cells(run_plans([plan], "command")[0][0])
        return row["AP measured"], row["difference"]

    words = ["MODEL.WEIGHTS", "none.pth", "SOLVER.MAX_ITER", "3"]
    assert difference(*words) == ("32.0", "+0.9")
    shutil.rmtree(tmp_path / "out")
    assert difference(*words, "MODEL.FOCAL_DET.LOSS.ALPHA", "0.6") == ("32.0", "—")


def test_an_override_that_fits_only_the_rows_asked_for_is_no_error(plan_of):
    plan = plan_of("table1d", ("ohem_128_.5",), overrides=[*TINY, "MODEL.FOCAL_DET.LOSS.BATCH_SIZE", "64"])
    files, _ = run_plans([plan], "command")
    assert [row["row"] for row in cells(files[0])] == ["ohem_128_.5"]
    with pytest.raises(InputError, match=r"table1d/fl: command line: .*BATCH_SIZE is 64, but the loss is Focal"):
        plan_of("table1d", ("fl",), overrides=[*TINY, "MODEL.FOCAL_DET.LOSS.BATCH_SIZE", "64"])


@pytest.fixture
def plans_of(tmp_path):
    def make(tables):
        options = SweepOptions("mini", (1, 2), tmp_path / "out", overrides=tuple(TINY))
        return plan_tables(list(tables.values()), (), options)

    return make


def test_of_several_tables_what_the_claims_need_is_trained_first_and_each_once(plans_of, monkeypatch):
    monkeypatch.setattr(paper_reproduce, "load_claims", lambda: claims.load_claims()[:2])
    names = ("table1a", "table1b", "table1c", "table3", "section5_1")
    plans = plans_of({name: load_tables()[name] for name in names})
    runs = trainings(plans)
    assert [run.name for run in runs[:6]] == [
        *("table1b/gamma_2 seed 1", "table1b/gamma_2 seed 2", "table1a/alpha_.75 seed 1", "table1a/alpha_.75 seed 2"),
        *("section5_1/ce seed 1", "section5_1/ce seed 2"),
    ]
    assert len(runs) == len({run.folder for run in runs})
    assert {run.folder for run in runs} == {run.folder for plan in plans for run in plan.runs}
    assert runs[-1].name == f"{[*load_tables()['section5_1'].rows.values()][-1].path} seed 2"
    lines = describe(plans).splitlines()
    # 4 rows, of which 1b shares gamma_2 with 1c, and 1a alpha .75 with 1b: counted where they come first
    counts = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith("table")}
    assert {name: counts[name] for name in ("table1a", "table1b", "table1c", "table3")} == {
        **{"table1a": "14", "table1b": "12", "table1c": "12", "table3": "4"}
    }
    assert lines[-1].startswith(f"Estimate: {len(runs)} trainings, ")


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


def test_the_claims_and_the_tables_with_a_training_are_written_after_it(plans_of, stand_in, one_claim, monkeypatch):
    written = []
    monkeypatch.setattr(paper_reproduce, "write_report", lambda plan, _: written.append(plan.table.name))
    plans = plans_of(one_claim)
    files, stopped = run_plans(plans, "the command")
    assert not stopped
    assert [path.name for path in files[:2]] == ["claims.md", "table3.md"]
    text = files[0].read_text()
    assert "# The paper's claims about trainings, in the scale mini" in text
    assert "Last command: `the command`" in text
    assert "- Seeds: 1, 2. " in text
    # both reach 32 and 34 with seeds 1 and 2: squared errors of 1 each, two degrees of freedom, 4.303 sqrt(2)
    assert "| FL* beats the hinge | text | fl_star_2_1 - hinge | — | +0.0 ± 6.1 | cannot be told |" in text
    # both rows with both seeds first, then table 3's other three and the section's others, seed by seed; then all
    first, others = ["table3", "table3", "section5_1", "section5_1"], len(one_claim["section5_1"].rows) - 1
    assert written == first + ["table3"] * 6 + ["section5_1"] * 2 * others + ["table3", "section5_1"]


def test_a_report_trains_nothing(plan_of, one_claim, monkeypatch, capsys, tmp_path):
    run_plans([plan_of(rows=("fl_star_2_1",))], "first")
    capsys.readouterr()
    monkeypatch.setattr(paper_reproduce, "run_all", None)
    words = ["--scale", "mini", "--seeds", "1,2", "--out", str(tmp_path / "out"), "--report", *TINY]
    assert main(["reproduce", "all", *words]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[:2] == [str(tmp_path / "out" / name) for name in ("claims.md", "table3.md")]
    assert "| table3/fl_star_2_1 | 33.8 | 32.0 | 1 |" in (tmp_path / "out" / "claims.md").read_text()
    assert [row["AP measured"] for row in cells(tmp_path / "out" / "table3.md")] == ["32.0"]
    assert "Measured: nothing yet" in (tmp_path / "out" / "section5_1.md").read_text()
    assert main(["reproduce", "all", "--rows", "fl", *words]) == 2
    assert "--rows are those of one table" in capsys.readouterr().err


def test_finished_rows_are_not_run_again_in_whatever_table(plan_of):
    run_plans([plan_of()], "first")
    again = plan_of("table1b", ("gamma_0", "gamma_1", "gamma_2"))
    run_plans([again], "second")
    assert [starts(run) for run in again.runs] == [1, 1, 1]


@pytest.mark.parametrize(
    ("behaviour", "status", "error"),
    [
        ("diverges", Status.DIVERGED, "the loss was not finite after 0 iterations"),
        ("bad input", Status.FAILED, "exit code 2, SEED is wrong: use another"),
        ("killed", Status.FAILED, "ended by signal 9"),
        ("full", Status.FAILED, "exit code 1, OSError: [Errno 28] No space left on device"),
    ],
)
def test_it_keeps_going_after_a_row_that_failed(plan_of, monkeypatch, behaviour, status, error):
    plan = plan_of()
    monkeypatch.setenv("BEHAVIOUR", behaviour)
    files, stopped = run_plans([plan], "command")
    assert not stopped
    assert [run.status for run in plan.runs] == [status, status]
    assert all(error in row["state"] for row in cells(files[0]))
    monkeypatch.delenv("BEHAVIOUR")
    run_plans([plan], "again")
    # one that diverged has its result, 0 AP; the others are tried again
    assert [starts(run) for run in plan.runs] == ([1, 1] if status is Status.DIVERGED else [2, 2])


def test_a_row_that_another_process_trains_is_left_to_it(plan_of):
    plan = plan_of()
    with FolderLock(str(plan.runs[0].folder), ".reproduce.lock"):
        files, _ = run_plans([plan], "command")
    assert [starts(run) for run in plan.runs] == [0, 1]
    assert [row["state"] for row in all_cells(files[0])[:2]] == ["seed 1: not run", "done"]


def test_a_row_begun_with_another_configuration_is_not_taken_for_this_one(plan_of):
    run_plans([plan_of()], "command")
    other = plan_of(overrides=[*TINY, "SOLVER.BASE_LR", "0.01"])
    assert describe([other]).count("begun with another configuration") == 2
    assert "Estimate: 2 trainings" in describe([other])
    with pytest.raises(InputError) as caught:
        check_plans([other]).raise_if_errors()
    assert "was begun with another configuration (SOLVER.BASE_LR 0.03 -> 0.01); name another --out" in str(caught.value)


def test_other_data_are_not_taken_for_the_same_row(plan_of, tmp_path):
    run_plans([plan_of()], "command")
    with pytest.raises(
        InputError, match=r"begun with another configuration \(--train-json and the like  -> .*mine\.json"
    ):
        check_plans([plan_of(data_flags=("--train-json", str(tmp_path / "mine.json")))]).raise_if_errors()


def test_a_start_that_trained_nothing_binds_to_nothing(plan_of, monkeypatch):
    monkeypatch.setenv("BEHAVIOUR", "bad input")
    run_plans([plan_of()], "command")
    check_plans([plan_of(overrides=[*TINY, "SOLVER.BASE_LR", "0.01"])]).raise_if_errors()


def test_missing_data_sets_are_named_once_and_nothing_is_written(tmp_path, monkeypatch, capsys):
    assert main(["reproduce", "table1a", "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert err.count("instances_minival2014.json is missing; it comes from https://") == 1
    assert err.count("train2014 is missing; it comes from http://") == 1
    assert "coco_2017_train and coco_2017_val hold the same images" in err
    assert all(line.startswith("error: ") for line in err.splitlines())
    assert not (tmp_path / "out").exists()


def test_a_damaged_record_is_named(plan_of):
    plan = plan_of()
    run_plans([plan], "command")
    record = plan.runs[0].folder / "reproduce.json"
    sound = json.loads(record.read_text())
    damages = ["{", "[]", json.dumps(sound | {"status": "weird"}), json.dumps(sound | {"seconds": "x"})]
    for damage in [*damages, json.dumps(sound | {"config": None}), json.dumps(sound | {"hardware": []})]:
        record.write_text(damage)
        with pytest.raises(InputError, match=r"reproduce\.json is damaged"):
            check_plans([plan]).raise_if_errors()
    record.unlink()
    with pytest.raises(InputError, match="there is no record of it"):
        check_plans([plan]).raise_if_errors()


def test_a_record_of_done_without_metrics_is_not_done(plan_of):
    plan = plan_of()
    run_plans([plan], "command")
    (plan.runs[0].folder / "metrics.json").unlink()
    assert [run.status for run in plan.runs] == [Status.UNFINISHED, Status.DONE]


def test_a_checkpoint_that_was_never_whole_is_set_aside(plan_of):
    plan = plan_of(rows=("ce",))
    folder = plan.runs[0].folder
    folder.mkdir(parents=True)
    (folder / "model_0000001.pth").write_bytes(b"half")
    record = {"command": "", "commit": "", "hardware": "", "versions": "", "config": {}, "status": "unfinished"}
    (folder / "reproduce.json").write_text(json.dumps(record))
    run_plans([plan], "command")
    assert (folder / "model_0000001.torn").read_bytes() == b"half"
    assert not list(folder.glob("*.pth"))
    assert plan.runs[0].status is Status.DONE


@pytest.mark.parametrize("ignored", [signal.SIGHUP, signal.SIGINT])
def test_what_nohup_ignores_stays_ignored(plan_of, ignored):
    before = signal.signal(ignored, signal.SIG_IGN)
    try:
        seen = []
        plan = plan_of(rows=("ce",))
        run_all(plan.runs, num_gpus=1, after_each=lambda _: seen.append(signal.getsignal(ignored)))
    finally:
        signal.signal(ignored, before)
    assert seen == [signal.SIG_IGN]


def test_two_at_once_share_the_rows(tmp_path, prepared, stand_in):
    env = os.environ | {"DETECTRON2_DATASETS": str(tmp_path / "datasets")}
    program = f"""
import sys
from focal_det.paper import comparison, sweep
from focal_det.paper.runs import SweepRun
comparison.save_figures, sweep._POLL_SECONDS = (lambda *_: []), 0.02
SweepRun.command = property(lambda run: [sys.executable, {str(tmp_path / "training.py")!r}, *run.arguments])
from focal_det.paper.reproduce import run_plans
from focal_det.paper.runs import SweepOptions, plan_table
from focal_det.paper.tables import load_tables
from pathlib import Path
table = load_tables()["table3"]
options = SweepOptions("mini", (1, 2), Path({str(tmp_path / "out")!r}), overrides=tuple({TINY!r}))
run_plans([plan_table(table, list(table.rows.values()), options)], "command")
"""
    (tmp_path / "both.py").write_text(program)
    both = [prepared.popen(program=tmp_path / "both.py", env=env) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    started = sorted((tmp_path / "out" / "runs").rglob("started"))
    assert [len(path.read_text()) for path in started] == [1] * 8
    assert all(read_record(path.parent).status is Status.DONE for path in started)


def test_what_the_plan_sets_itself_is_refused(plan_of):
    with pytest.raises(InputError, match="SEED is set for each run; use --seeds"):
        plan_of(overrides=["SEED", "3"])
    with pytest.raises(InputError, match="OUTPUT_DIR is set for each run; use --out"):
        plan_of(overrides=["OUTPUT_DIR", "x"])


def test_a_dry_run_prints_the_commands_and_the_cost(capsys, tmp_path):
    full = ["reproduce", "table1b", "--dry-run", "--rows", "gamma_2", "--num-gpus", "8", "--out", str(tmp_path / "out")]
    assert main(full) == 0
    out, err = capsys.readouterr()
    assert "-m focal_det train --config-file focal_det://paper/table1b.yaml " in out
    assert "--num-gpus 8 MODEL.RETINANET.FOCAL_LOSS_GAMMA 2.0 MODEL.RETINANET.FOCAL_LOSS_ALPHA 0.25 SEED 1" in out
    assert "1 trainings, 28 GPU-hours on V100, 3.5 hours on 8," in out
    assert "put COCO's files there" in err
    assert not (tmp_path / "out").exists()


def test_what_is_left_is_estimated_by_what_is_finished(plan_of):
    plan = plan_of()
    run_plans([plan], "command")
    assert "nothing left to run" in describe([plan])
    more = plan_of(seeds=(1, 2, 3))
    assert re.search(r"Estimate: 4 trainings, 0\.0 hours here", describe([more]))


def test_the_backbone_is_trained_first_and_once(plan_of, tmp_path, monkeypatch):
    trained = []

    def train(cfg, file):
        trained.append((cfg.MODEL.RESNETS.DEPTH, file))
        file.touch()
        return 0.9

    monkeypatch.setattr(paper_reproduce, "train_backbone", train)
    plan = plan_of(overrides=[word for word in TINY if word not in ("MODEL.WEIGHTS", "none.pth")])
    file = tmp_path / "out" / "backbones" / "R_18_FPN_64.pth"
    assert f"MODEL.WEIGHTS {file}" in " ".join(plan.runs[0].arguments)
    assert plan.runs[0].config["MODEL.WEIGHTS"] == "R_18_FPN_64.pth"  # so one of another start is not taken for it
    assert f"{file}: a ResNet with its pyramid" in describe([plan])
    run_plans([plan], "command")
    run_plans([plan], "command")
    assert trained == [(18, file)]
    assert starts(plan.runs[0]) == 1


def test_a_backbone_that_another_process_trains_is_waited_for(plan_of, tmp_path, monkeypatch, capsys):
    plan = plan_of(rows=("ce",), overrides=[word for word in TINY if word not in ("MODEL.WEIGHTS", "none.pth")])
    file = tmp_path / "out" / "backbones" / "R_18_FPN_64.pth"
    monkeypatch.setattr(paper_reproduce, "train_backbone", None)
    other = FolderLock(str(file.parent), ".reproduce.lock")

    def wait(_):
        file.touch()
        other.__exit__()

    monkeypatch.setattr(paper_reproduce.time, "sleep", wait)
    with other:
        run_plans([plan], "command")
    assert f"{file}: another process trains it; waiting" in capsys.readouterr().out
    assert starts(plan.runs[0]) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_while_the_backbone_is_trained_is_a_stop_that_leaves_nothing_half_written(
    stand_in, monkeypatch, capsys, tmp_path, number
):
    words = [word for word in TINY if word not in ("MODEL.WEIGHTS", "none.pth")]
    command = ["reproduce", "table3", "--rows", "ce", "--scale", "mini", "--out", str(tmp_path / "out"), *words]
    monkeypatch.setattr(cli_reproduce, "_check_first", lambda _: None)

    def unhandled(*_):  # which would end this process
        raise AssertionError

    def train(cfg, file):
        with written_whole(file) as partial:
            partial.touch()
            if signals:
                os.kill(os.getpid(), signals.pop())
        return 0.9

    signals = [number]
    monkeypatch.setattr(paper_reproduce, "train_backbone", train)
    with handlers({number: unhandled}):
        assert main(command) == 75
    assert capsys.readouterr().err.endswith("stopped; the same command continues\n")
    assert [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()] == [".reproduce.lock"]
    assert main(command) == 0
    assert "R_18_FPN_64.pth: gives 90.0% of the places on drawn objects their class" in capsys.readouterr().out


def test_a_report_where_nothing_can_be_written_is_bad_input(capsys, tmp_path):
    (tmp_path / "out").touch()
    assert main(["reproduce", "table3", "--scale", "mini", "--report", "--out", str(tmp_path / "out")]) == 2
    assert f"--out {tmp_path / 'out'}: {tmp_path / 'out'} cannot be written there" in capsys.readouterr().err


def test_a_report_without_a_training_names_what_there_is_and_writes_nothing(plan_of, one_claim, capsys, tmp_path):
    run_plans([plan_of(rows=("fl_star_2_1",))], "first")
    (tmp_path / "empty").mkdir()
    capsys.readouterr()
    there = f"or name a folder that focal-det reproduce has trained into, such as {tmp_path / 'out'}"

    def message(*words):
        before = sorted(tmp_path.rglob("*"))
        assert main([*words, "--scale", "mini"]) == 2
        assert sorted(tmp_path.rglob("*")) == before
        return capsys.readouterr().err

    missing, empty, out = (str(tmp_path / name) for name in ("typo", "empty", "out"))
    error = f"error: --out {missing}: no such folder; train, {there}\n"
    assert message("reproduce", "all", "--report", "--out", missing) == error
    err = message("reproduce", "table3", "--report", "--out", empty)
    assert f"--out {empty}: it holds no training; train, {there}" in err
    # trained with keys by hand, which this report lacks
    error = f"--out {out}: its trainings, table3/fl_star_2_1/seed1, are of other tables, another scale than mini, or"
    assert error in message("reproduce", "table3", "--report", "--out", out)
    figure = message("plot", "speed-accuracy", "--runs", missing, "--out", str(tmp_path / "plots"))
    assert figure == f"error: --runs {missing}: no such folder; train, {there}\n"


@pytest.fixture
def reproduce(prepared, tmp_path):
    """Starts focal-det reproduce; its trainings are true processes of train_net.py."""

    def start(*words):
        env = os.environ | {"DETECTRON2_DATASETS": str(tmp_path / "datasets")}
        words = ["table3", "--rows", "ce,fl", "--scale", "mini", "--out", tmp_path / "out", *words]
        return prepared.popen("reproduce", *words, program="focal-det", env=env, stderr=subprocess.STDOUT)

    return start


def test_a_training_that_died_in_its_final_evaluation_is_evaluated_and_done(tmp_path, train_net, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    words = ["--config-file", "configs/paper/table3.yaml", "--config-file", "configs/paper/miniature.yaml"]
    words += ["--resume", "auto", "OUTPUT_DIR", tmp_path / "run", *TINY, "MODEL.WEIGHTS", ""]
    assert train_net(*words).returncode == 0
    metrics = tmp_path / "run" / "metrics.json"
    ap = read_metrics(tmp_path / "run", iterations=3, test_sets=["shapes_val_4_64px"])
    lines = [line for line in metrics.read_text().splitlines() if "bbox/AP" not in line]
    metrics.write_text("".join(line + "\n" for line in lines))
    assert read_metrics(tmp_path / "run", iterations=3, test_sets=["shapes_val_4_64px"]) == {}
    assert train_net(*words).returncode == 0
    again = read_metrics(tmp_path / "run", iterations=3, test_sets=["shapes_val_4_64px"])
    assert again["AP"] == pytest.approx(ap["AP"])
    assert again.keys() >= ap.keys() - {"s_per_iteration"}


def test_a_row_stopped_in_the_middle_continues_there(tmp_path, reproduce, wait_for):
    keys = dict(zip(TINY[::2], TINY[1::2], strict=True))
    keys |= {"MODEL.WEIGHTS": str(tmp_path / "w.pth"), "SOLVER.MAX_ITER": "40", "SOLVER.IMS_PER_BATCH": "1"}
    words = [word for pair in (keys | {"MODEL.BACKBONE.FREEZE_AT": "0"}).items() for word in pair] + NARROW
    torch.save({"model": {}}, tmp_path / "w.pth")
    first = tmp_path / "out" / "runs" / "table1a" / "alpha_.75" / "seed1"
    second = tmp_path / "out" / "runs" / "table1b" / "gamma_2" / "seed1"
    first.mkdir(parents=True)  # as if it had been trained
    (first / "metrics.json").write_text(json.dumps({"iteration": 39, "bbox/AP": 20.0}))
    write_record(first, Record(command="", commit="", hardware="", versions="", config={}, status=Status.DONE))
    process = reproduce(*words)
    wait_for(second / "metrics.json", process)
    while not (second / "metrics.json").read_text() and process.poll() is None:  # 20 of its 40 steps are left then
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    out = process.communicate()[0]
    assert process.returncode == 75, out
    assert "stopped; the same command continues" in out
    record = json.loads((second / "reproduce.json").read_text())
    assert record["status"] == "unfinished"
    assert (second / "last_checkpoint").is_file()
    finished = (first / "metrics.json").stat().st_mtime_ns

    process = reproduce(*words)
    out = process.communicate()[0]
    assert process.returncode == 0, out
    assert "1 of 2 trainings are finished already" in out
    assert (first / "metrics.json").stat().st_mtime_ns == finished
    assert "Starting training from iteration 0" not in (second / "log.txt").read_text().split("SIGTERM")[-1]
    assert {row["state"] for row in cells(tmp_path / "out" / "table3.md")} == {"done"}


def test_a_full_disk_is_named_and_the_table_of_before_stays(plan_of, monkeypatch, capsys, tmp_path):
    plan = plan_of()
    files, _ = run_plans([plan], "command")
    before = files[0].read_text()

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        run_plans([plan], "another command")
    assert files[0].read_text() == before
    assert [path.name for path in (tmp_path / "out").iterdir() if path.name.startswith(".")] == []
