"""The trainings of a table: none run twice, none lost, whatever stops them or has been there before."""

import json
import os
import signal
import subprocess
import time

import pytest
import torch
from reproduce_fixtures import TINY, all_cells, cells, starts
from training_fixtures import NARROW

from focal_det.cli import reproduce as cli_reproduce
from focal_det.cli.main import main
from focal_det.distributed.signals import handlers
from focal_det.errors import InputError
from focal_det.files import FolderLock, written_whole
from focal_det.paper import reproduce as paper_reproduce
from focal_det.paper.pretraining import BACKBONE_STEPS, trained_with
from focal_det.paper.reproduce import check_plans, describe, run_plans
from focal_det.paper.results import Record, Status, read_metrics, read_record, write_record
from focal_det.paper.sweep import run_all

pytestmark = pytest.mark.detectron2


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
    changed = "was begun with another configuration (SOLVER.BASE_LR 0.0075 -> 0.01); name another --out"
    assert changed in str(caught.value)


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


def test_a_damaged_record_is_named(plan_of):
    plan = plan_of()
    run_plans([plan], "command")
    record = plan.runs[0].folder / "reproduce.json"
    sound = json.loads(record.read_text())
    damages = [
        "{",
        "[]",
        "[" * 200_000,
        json.dumps(sound | {"seconds": 10**400}),
        json.dumps(sound | {"status": "weird"}),
        json.dumps(sound | {"seconds": "x"}),
    ]
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


def write_backbone(file, cfg):
    """Write what one is known by, and no weights, which the stand-in does not read."""
    torch.save({"model": {}, "trained_with": trained_with(cfg, BACKBONE_STEPS)}, file)


def test_the_backbone_is_trained_first_and_once(plan_of, tmp_path, monkeypatch):
    trained = []

    def train(cfg, file):
        trained.append((cfg.MODEL.RESNETS.DEPTH, file))
        write_backbone(file, cfg)
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
    file.write_bytes(b"of no use any more")  # since every row is done
    assert check_plans([plan]).errors == []
    file.unlink()
    run_plans([plan], "command")
    assert trained == [(18, file)]


def test_a_backbone_that_another_process_trains_is_waited_for(plan_of, tmp_path, monkeypatch, capsys):
    plan = plan_of(rows=("ce",), overrides=[word for word in TINY if word not in ("MODEL.WEIGHTS", "none.pth")])
    file = tmp_path / "out" / "backbones" / "R_18_FPN_64.pth"
    monkeypatch.setattr(paper_reproduce, "train_backbone", None)
    other = FolderLock(str(file.parent), ".reproduce.lock")

    (cfg,) = plan.configs.values()

    def wait(_):
        write_backbone(file, cfg)
        other.__exit__()

    monkeypatch.setattr(paper_reproduce.time, "sleep", wait)
    with other:
        run_plans([plan], "command")
    assert f"{file}: another process trains it; waiting" in capsys.readouterr().out
    assert starts(plan.runs[0]) == 1


def test_a_backbone_of_other_keys_that_another_process_trained_meanwhile_is_named(plan_of, tmp_path, monkeypatch):
    plan = plan_of(rows=("ce",), overrides=[word for word in TINY if word not in ("MODEL.WEIGHTS", "none.pth")])
    (cfg,) = plan.configs.values()
    cfg = cfg.clone()
    cfg.MODEL.RESNETS.NORM = "BN"
    monkeypatch.setattr(paper_reproduce, "train_backbone", lambda _, file: write_backbone(file, cfg) or 0.9)
    with pytest.raises(InputError, match=r"was trained with another configuration \(MODEL.RESNETS.NORM BN -> GN\)"):
        run_plans([plan], "command")
    assert not (tmp_path / "out" / "runs").exists()


def test_a_folder_in_place_of_a_backbone_is_named(plan_of, tmp_path):
    plan = plan_of(overrides=[word for word in TINY if word not in ("MODEL.WEIGHTS", "none.pth")])
    (tmp_path / "out" / "backbones" / "R_18_FPN_64.pth").mkdir(parents=True)
    (problem,) = check_plans([plan]).errors
    assert "R_18_FPN_64.pth cannot be written there; name another" in problem


def test_weights_by_hand_are_what_a_row_starts_from(plan_of):
    words = [word for word in TINY if word not in ("MODEL.WEIGHTS", "none.pth")]
    for weights in ("", "none.pth"):
        plan = plan_of(rows=("ce",), overrides=[*words, "MODEL.WEIGHTS", weights])
        assert plan.runs[0].arguments.count("MODEL.WEIGHTS") == 1
        assert plan.backbones == {}


def test_a_damaged_backbone_is_named_before_a_row_starts(plan_of, stand_in, capsys, tmp_path):
    words = [word for word in TINY if word not in ("MODEL.WEIGHTS", "none.pth")]
    file = tmp_path / "out" / "backbones" / "R_18_FPN_64.pth"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"half of it")
    command = ["reproduce", "table3", "--rows", "ce", "--scale", "mini", "--out", str(tmp_path / "out"), *words]
    assert main(command) == 2
    assert str(file) in capsys.readouterr().err
    assert not (tmp_path / "out" / "runs").exists()


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
            write_backbone(partial, cfg)
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
