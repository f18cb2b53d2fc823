"""A rank that fails, dies, hangs or diverges: all end, in bounded time, and say which one and why."""

import ctypes
import importlib
import multiprocessing
import os
import pkgutil
import re
import signal
import socket
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from detectron2.evaluation import COCOEvaluator
from detectron2.utils import comm
from torch.utils.data import dataloader

from focal_det import distributed as story
from focal_det.distributed import watchdog as watch
from focal_det.distributed.signals import end_workers, workers_ignored
from focal_det.distributed.watchdog import RankWatchdog
from focal_det.engine import hooks
from focal_det.engine.trainer import Trainer
from focal_det.modeling.retinanet import FocalRetinaNet

pytestmark = pytest.mark.detectron2

PAGE = Path(__file__).parents[2] / "docs" / "resume.md"

BUSY = 40  # seconds more that a machine may need which has other things to do


def promised(fault):
    """Return after how many seconds at most a fault has ended all, by the page's table."""
    row = next(line for line in PAGE.read_text().splitlines() if line.startswith("|") and fault in line)
    return int(row.rstrip(" |").rpartition(" ")[2])


def test_the_times_add_up_to_what_the_page_promises():
    # a heartbeat is up to a period old, a look at it too, and a verdict is read a period later
    end = 3 * watch.POLL_SECONDS + watch.LEAVE_AFTER
    assert promised("an exception") >= end
    assert promised("a rank is killed") >= watch.DEAD_AFTER_LOST + end
    assert promised("falls silent") >= watch.DEAD_AFTER + end
    assert promised("reads annotations") >= end  # beside --hang-timeout
    assert promised("--hang-timeout") >= end


@pytest.fixture
def start(start, monkeypatch):
    """Start ranks that look at one another more often than in use, and leave sooner: the tests would wait for that."""
    monkeypatch.setattr(watch, "POLL_SECONDS", 0.25)
    monkeypatch.setattr(watch, "LEAVE_AFTER", 1.0)
    return start


def errors_of(run):
    """The lines that say what the ranks ended with."""
    lines = [line for rank in run.ranks for line in rank.text.splitlines()]
    return [line for line in lines if line.startswith("error: ")]


def test_the_story_of_the_package_names_what_there_is():
    modules = [importlib.import_module(f"focal_det.distributed.{m.name}") for m in pkgutil.iter_modules(story.__path__)]
    names = set().union(*(vars(module) for module in (*modules, hooks)))
    named = re.findall(r"\b(?:[A-Z]+_[A-Z_]+|[A-Z][a-z]+[A-Z]\w+)\b", story.__doc__)
    assert {"DEAD_AFTER_LOST", "SignalForwarder"} <= set(named)
    assert [name for name in named if name not in names] == []


def at_step(iteration, do, rank):
    """Let one rank do something in place of a step."""

    def prepare(this, ranks):
        if this == rank:
            step = Trainer.run_step
            Trainer.run_step = lambda self: do() if self.iter == iteration else step(self)

    return prepare


def fail():
    raise ValueError("a broken\nhook")


def seconds_to_the_end(run, text="first class loss", do=None):
    run.wait_for(text)
    time.sleep(0.2)
    began = time.monotonic()
    if do:
        do()
    return run.codes(), time.monotonic() - began


@pytest.mark.parametrize("rank", [0, 1])
def test_an_exception_on_one_rank_ends_all_with_its_message(start, rank):
    run = start(prepare=at_step(2, fail, rank))
    codes, seconds = seconds_to_the_end(run)
    assert codes == [1, 1]
    assert seconds < promised("an exception") + BUSY
    assert "Traceback" not in "".join(one.text for one in run.ranks)
    (line,) = errors_of(run)  # of the machine
    assert line.startswith(f"error: rank {rank} of 2 on ")
    assert ", at iteration 2, failed: ValueError: a broken hook" in line
    assert run.ranks[rank].text.endswith(f"{line}\n")  # which knows what helps
    log = run.folder / "run" / ("log.txt.rank1" if rank else "log.txt")
    assert "Traceback" in log.read_text()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_ends_all(start, rank):
    run = start()
    codes, seconds = seconds_to_the_end(run, do=lambda: run.ranks[rank].kill(signal.SIGKILL))
    assert sorted(codes) == [-signal.SIGKILL, 1]
    assert seconds < promised("a rank is killed") + BUSY
    assert f"rank {rank}" in run.ranks[1 - rank].text.splitlines()[-1]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stopped_rank_ends_the_others(start, rank, monkeypatch):
    monkeypatch.setattr(watch, "DEAD_AFTER", 3.0)  # the ranks are forked from this process
    run = start()

    def stop():
        time.sleep(2.5 * watch.POLL_SECONDS)  # until each has seen that the other is beyond its first step
        run.ranks[rank].kill(signal.SIGSTOP)
        began = time.monotonic()
        while not run.ranks[1 - rank].ended() and time.monotonic() < began + promised("falls silent"):
            time.sleep(0.01)
        run.ranks[rank].kill(signal.SIGKILL)

    codes, seconds = seconds_to_the_end(run, do=stop)
    assert sorted(codes) == [-signal.SIGKILL, 1]
    assert seconds < promised("falls silent") + BUSY
    assert f"rank {rank}" in run.ranks[1 - rank].text.splitlines()[-1]


def test_a_rank_that_hangs_is_named(start):
    run = start(hang_timeout=5, prepare=at_step(2, lambda: time.sleep(60), 1))
    codes, seconds = seconds_to_the_end(run)
    assert codes == [1, 1]
    assert seconds < 5 + promised("--hang-timeout") + BUSY
    (line,) = errors_of(run)
    assert "no rank made progress for 5 s (--hang-timeout); the others wait for rank 1 of 2 on " in line


def scoring(do):
    """Let rank 0 do something in place of scoring, which it alone does."""

    def prepare(rank, ranks):
        def evaluate(self, img_ids=None):
            comm.synchronize()
            if rank == 0:
                do()
            return {}

        COCOEvaluator.evaluate = evaluate

    return prepare


def compute():
    end = time.monotonic() + 5
    while time.monotonic() < end:
        pass


def test_a_rank_that_scores_for_long_does_not_hang(start, monkeypatch):
    monkeypatch.setattr(watch, "LEAVE_AFTER", 0.1)  # else it has done when it is ended
    run = start(hang_timeout=3.5, steps=2, prepare=scoring(compute))
    assert run.codes() == [0, 0], run.ranks[0].text[-3000:]


def test_a_rank_that_hangs_where_it_should_score_is_named(start):
    run = start(hang_timeout=3, steps=2, prepare=scoring(lambda: time.sleep(60)))
    codes, seconds = seconds_to_the_end(run, text="Start inference")
    assert codes == [1, 1]
    assert seconds < 3 + promised("--hang-timeout") + BUSY
    (line,) = errors_of(run)
    assert "no rank made progress for 3 s (--hang-timeout); the others wait for rank 0 of 2 on " in line
    assert ", scoring" in line


def silent_at_the_start(rank, ranks):
    """Let rank 1 read a large annotation file: the parser keeps Python's other threads waiting."""
    if rank == 1:
        build = Trainer.build_train_loader
        Trainer.build_train_loader = lambda self, cfg: (ctypes.PyDLL(None).usleep(6_000_000), build(cfg))[1]


@pytest.mark.parametrize(("hang_timeout", "codes"), [(0, [0, 0]), (2, [1, 1])])
def test_a_rank_that_reads_for_long_is_not_taken_for_dead_before_the_hang_timeout(
    start, monkeypatch, hang_timeout, codes
):
    monkeypatch.setattr(watch, "DEAD_AFTER", 3.0)
    monkeypatch.setattr(watch, "LEAVE_AFTER", 0.1)
    run = start(hang_timeout=hang_timeout, steps=2, prepare=silent_at_the_start)
    assert run.codes() == codes, run.ranks[0].text[-3000:]


def count_destroyed(rank, ranks):
    destroy = dist.destroy_process_group
    dist.destroy_process_group = lambda: (print("groups_gone", flush=True), destroy())


@pytest.mark.parametrize(("fails", "times"), [(False, 1), (True, 0)])
def test_groups_are_destroyed_once_and_never_after_a_fault(start, fails, times):
    def prepare(rank, ranks):
        count_destroyed(rank, ranks)
        if fails:
            at_step(1, fail, 1)(rank, ranks)

    run = start(steps=3, prepare=prepare)
    assert run.codes() == [int(fails)] * 2
    assert [rank.text.count("groups_gone") for rank in run.ranks] == [times] * 2


def test_a_rank_waits_for_another_for_longer_than_the_groups_were_made_to(start, monkeypatch):
    begin = dist.init_process_group
    short = timedelta(seconds=5)  # in which they have to meet
    monkeypatch.setattr(dist, "init_process_group", lambda *args, **options: begin(*args, **options, timeout=short))

    def prepare(rank, ranks):
        step = Trainer.run_step
        Trainer.run_step = lambda self: (time.sleep(7 if rank == self.iter == 1 else 0), step(self))

    run = start(hang_timeout=0, steps=2, prepare=prepare)
    assert run.codes() == [0, 0], run.ranks[0].text[-3000:]


def kill_a_worker(of_rank):
    """As the system does it to the process with the most memory."""

    def prepare(rank, ranks):
        if rank == of_rank:
            step = Trainer.run_step

            def run_step(self):
                if self.iter == 2:
                    multiprocessing.active_children()[0].kill()
                step(self)

            Trainer.run_step = run_step

    return prepare


@pytest.mark.parametrize(("of_rank", "ranks"), [(0, 2), (1, 2), (0, 1)])
def test_a_loaders_worker_that_was_killed_is_named_with_what_helps(start, of_rank, ranks):
    run = start("DATALOADER.NUM_WORKERS", "1", ranks=ranks, prepare=kill_a_worker(of_rank))
    codes, seconds = seconds_to_the_end(run)
    assert codes == [1] * ranks
    assert seconds < promised("an exception") + BUSY
    (line,) = errors_of(run)
    assert line.startswith("error: " if ranks == 1 else f"error: rank {of_rank} of 2 on ")
    assert "a worker of its loader was killed (" in line
    assert "(see dmesg). What helps: fewer DATALOADER.NUM_WORKERS" in line
    assert "lost its connection" not in run.ranks[of_rank].text


def test_while_a_fault_is_reported_a_workers_end_raises_nothing():
    def raise_it(*_):
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")

    before = signal.signal(signal.SIGCHLD, raise_it)  # as PyTorch
    try:
        with workers_ignored():
            os.kill(os.getpid(), signal.SIGCHLD)
        with pytest.raises(RuntimeError, match="DataLoader"):
            os.kill(os.getpid(), signal.SIGCHLD)
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_after_a_fault_no_worker_is_left_for_pythons_end_to_meet():
    batches = iter(dataloader.DataLoader(list(range(8)), num_workers=2))
    next(batches)
    assert len(multiprocessing.active_children()) == 2
    with workers_ignored():
        end_workers()
    assert not multiprocessing.active_children()


def diverging(at, failed_ranks, what):
    """Make the box loss of some ranks, or its slope alone, non-finite in one step."""

    def prepare(rank, ranks):
        if rank in failed_ranks:
            forward, count = FocalRetinaNet.forward, iter(range(1000))

            def broken(self, batch):
                losses = forward(self, batch)
                if next(count) == at:
                    box = losses["loss_box_reg"]
                    # the root at zero: its value is finite, its slope times zero is not
                    losses["loss_box_reg"] = box / 0 if what == "loss" else box + (box * 0).sqrt()
                return losses

            FocalRetinaNet.forward = broken

    return prepare


@pytest.mark.parametrize(
    ("what", "failed_ranks", "keepers"),
    [("loss", [0], [0]), ("loss", [1], [1]), ("loss", [0, 1], [0, 1]), ("slope", [1], [0])],
)
def test_a_non_finite_loss_on_one_rank_ends_all_before_the_weights_change(start, what, failed_ranks, keepers):
    run = start(prepare=diverging(3, failed_ranks, what))
    codes, seconds = seconds_to_the_end(run)
    assert codes == [1, 1]
    assert seconds < promised("an exception") + BUSY
    folder = run.folder / "run" / "diverged"
    files = sorted(folder.iterdir())
    assert [path.name for path in files] == [f"iteration_0000003_rank{rank}.pth" for rank in keepers]
    for rank, path in zip(keepers, files, strict=True):
        kept = torch.load(path, weights_only=True)
        assert (kept["iteration"], kept["rank"], kept["ranks"], kept["seed"]) == (3, rank, 2, 3)
        assert kept["shares"] == ([1] if what == "loss" else [1, 1])
        assert all(value.isfinite().all() for value in kept["model"].values())
    assert run.checkpoints() == []
    host = socket.gethostname()
    where = "; ".join(f"loss_box_reg on rank {rank} of 2 on {host}" for rank in failed_ranks)
    message = (
        f"Loss became infinite or NaN at iteration=3, {where}; " if what == "loss" else "Gradients became infinite or"
    )
    (line,) = errors_of(run)
    assert line.startswith(f"error: FloatingPointError: {message}")
    assert f"focal-det replay {', or '.join(map(str, files))}" in line


@pytest.mark.parametrize("of_torchrun", [True, False])
def test_without_its_launcher_which_holds_the_folder_a_rank_ends(monkeypatch, capsys, of_torchrun):
    if of_torchrun:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    else:
        monkeypatch.setattr(multiprocessing, "parent_process", lambda: "the launcher")
    monkeypatch.setattr(watch.os, "_exit", sys.exit)
    monkeypatch.setattr(watch, "POLL_SECONDS", 0.01)
    orphan = RankWatchdog(hang_timeout=0)
    orphan._is_speaker = True
    monkeypatch.setattr(watch.os, "getppid", lambda: 1)  # whose child an orphan becomes
    with pytest.raises(SystemExit, match="1"):
        orphan._watch_store()
    assert "the process that started this rank is gone" in capsys.readouterr().err


def test_a_rank_that_was_started_by_hand_outlives_its_shell(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    rank = RankWatchdog(hang_timeout=0)
    monkeypatch.setattr(watch.os, "getppid", lambda: 1)
    looks = iter([False, True])
    monkeypatch.setattr(rank._closed, "wait", lambda _: next(looks))
    rank._watch_store()  # returns, as at the end
