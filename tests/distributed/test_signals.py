"""Signals to a training: to one rank, to all processes, at the times when it is hardest to stop."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from types import SimpleNamespace

import pytest
from detectron2.structures import Instances
from time_limit import is_running
from torch import nn
from torch.utils.data import DataLoader, _utils

from focal_det.cli.train import main
from focal_det.distributed import graceful_stop, signals
from focal_det.distributed import watchdog as watch
from focal_det.distributed.heartbeat import Progress
from focal_det.distributed.signals import (
    STOP_SIGNALS,
    SignalForwarder,
    SignalListener,
    handlers,
    install,
    resend_requested,
    stopping_signal,
    workers_shielded,
)
from focal_det.divergence.diverged_folder import diverged_iterations
from focal_det.engine.hooks import StopOnSignal
from focal_det.engine.train_step import DeferredMetrics
from focal_det.engine.trainer import Trainer
from focal_det.modeling.retinanet import FocalRetinaNet

pytestmark = pytest.mark.detectron2


def signal_itself(at, number=signal.SIGTERM):
    """Let rank 1, or the only one, send itself a signal within a step."""

    def prepare(rank, ranks):
        if rank < ranks - 1:
            return
        step = Trainer.run_step

        def run_step(self):
            if self.iter == at:
                os.kill(os.getpid(), number)
            step(self)

        Trainer.run_step = run_step

    return prepare


def signal_itself_while_it_detects(rank, ranks):
    """Let rank 1 send itself a signal at its first image, where both wait until they know of it."""
    detect = FocalRetinaNet.forward

    def forward(self, batch):
        if not self.training:
            print("detecting", flush=True)
            if rank == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            until(lambda: graceful_stop._open.requested)
        return detect(self, batch)

    FocalRetinaNet.forward = forward


def until(is_so, seconds=60):
    """Wait until a condition holds."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("error", [None, SystemExit(75)])
def test_handlers_are_restored_whatever_happens(error):
    received = []
    with handlers({signal.SIGUSR1: signal.SIG_IGN}):
        with suppress(SystemExit), handlers({signal.SIGUSR1: lambda number, _: received.append(number)}) as before:
            assert before == {signal.SIGUSR1: signal.SIG_IGN}
            os.kill(os.getpid(), signal.SIGUSR1)
            if error:
                raise error
        os.kill(os.getpid(), signal.SIGUSR1)
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
    assert received == [signal.SIGUSR1]


def test_a_signal_to_one_rank_stops_all_after_the_same_step(start):
    run = start(prepare=signal_itself(3, signal.SIGUSR1))
    assert run.codes() == [75, 75]
    assert "SIGUSR1: stopped after iteration 4, all saved" in run.ranks[0].text  # known to all one step later
    assert run.checkpoints() == ["model_0000004.pth"]


@pytest.mark.parametrize(("is_alive", "received"), [(True, signal.SIGINT), (False, 0)])
def test_a_signal_that_only_says_that_the_launcher_is_gone_is_no_request(monkeypatch, is_alive, received):
    launcher = SimpleNamespace(is_alive=lambda: is_alive)
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: launcher)
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        with SignalListener() as listener:
            os.kill(os.getpid(), signal.SIGINT)
        assert listener.received == received  # by the thread, which has ended
    finally:
        install(before)


def test_once_closed_a_listener_leaves_signals_ignored(monkeypatch):
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        with SignalListener():
            pass
        assert {signal.getsignal(number) for number in STOP_SIGNALS} == {signal.SIG_IGN}
    finally:
        install(before)


def test_non_finite_weights_are_not_saved_at_a_signal(tmp_path):
    model = nn.Linear(2, 2)
    step = DeferredMetrics.__new__(DeferredMetrics)
    step._pending = []
    checkpointer = SimpleNamespace(save_dir=str(tmp_path), written=SimpleNamespace(names=["model_0000057.pth"]))
    hook = StopOnSignal(checkpointer, stopping=None)
    hook.trainer = SimpleNamespace(model=model, iter=57, _trainer=step)
    hook._save()
    model.weight.data[1, 1] = float("nan")
    with pytest.raises(FloatingPointError, match="Weights became infinite or NaN at iteration=57"):
        hook._save()
    assert 57 in diverged_iterations(str(tmp_path), 20)


def test_ctrl_c_reaches_workers_too_and_takes_none_from_the_training(start, monkeypatch):
    monkeypatch.setattr(signals, "SAME_REQUEST_SECONDS", 60)  # the rank is forked from this process
    run = start("DATALOADER.NUM_WORKERS", "2", ranks=1)
    run.wait_for("first class loss")
    os.killpg(run.ranks[0].pid, signal.SIGINT)
    os.killpg(run.ranks[0].pid, signal.SIGTERM)  # again at once: the same request
    assert run.codes() == [75]
    assert "all saved. Run again with --resume" in run.ranks[0].text
    assert "DataLoader worker" not in run.ranks[0].text
    until(lambda: not is_there(run.ranks[0].pid))


def is_there(group):
    """Whether a process of a group is left; one that has ended is until its parent has seen it."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_an_evaluation_is_left_in_its_midst_and_the_step_before_it_is_saved(start):
    run = start("TEST.EVAL_PERIOD", "2", prepare=signal_itself_while_it_detects)
    assert run.codes() == [75, 75]
    # of 6 images each, and 6 more for their loss
    assert [rank.text.count("detecting") for rank in run.ranks] == [1, 1]
    assert run.checkpoints() == ["model_0000001.pth"]
    assert "stopped after iteration 1, all saved" in run.ranks[0].text


def detect_without_end(rank, ranks):
    """On rank 1; the other one waits for it."""

    def forward(self, batch):
        print("detecting", flush=True)
        if rank == 1:
            time.sleep(60)
        return [{"instances": Instances(batch[0]["image"].shape[1:], pred_boxes=[], scores=[], pred_classes=[])}]

    FocalRetinaNet.forward = forward


@pytest.mark.parametrize(
    ("number", "to_ranks"), [(signal.SIGTERM, [0]), (signal.SIGTERM, [1]), (signal.SIGINT, [0, 1])]
)
def test_an_evaluation_of_two_ranks_is_left_by_all_with_the_signals_code(start, monkeypatch, number, to_ranks):
    monkeypatch.setattr(watch, "POLL_SECONDS", 0.25)  # the ranks are forked from this process
    run = start(eval_only=True, prepare=detect_without_end)
    run.wait_for("detecting")
    began = time.monotonic()
    for rank in to_ranks:
        run.ranks[rank].kill(number)
    assert run.codes() == [128 + number] * 2
    assert time.monotonic() - began < 40  # of the 60 s that rank 1 would detect for
    text = "".join(rank.text for rank in run.ranks)
    assert text.count(f"{number.name}: stopped outside of training: nothing to save") == 1
    assert "Traceback" not in text
    assert "error" not in text


@pytest.mark.parametrize("ranks", [1, 2])
def test_in_the_last_step_the_final_model_is_saved_and_the_evaluation_left_to_the_next_start(start, ranks):
    run = start(prepare=signal_itself(1), steps=2, ranks=ranks)
    assert run.codes() == [75] * ranks
    assert "stopped with all 2 iterations done and saved. Run again with --resume to evaluate" in run.ranks[0].text
    assert run.checkpoints() == ["model_final.pth"]
    assert "Start inference" not in run.ranks[0].text
    again = start(steps=2, ranks=ranks, resume=True)
    assert again.codes() == [0] * ranks
    assert "Evaluation results" in again.ranks[0].text


def test_before_the_first_step_there_is_nothing_to_save(start):
    def prepare(rank, ranks):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        if rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    run = start(prepare=prepare)
    assert run.codes() == [75, 75]
    assert "SIGTERM: nothing was trained yet: run the same command again to start" in run.ranks[0].text
    assert run.checkpoints() == []


def test_a_second_signal_ends_at_once_even_where_the_first_waits_for_another_rank(start):
    def prepare(rank, ranks):
        if rank == 1:
            step = Trainer.run_step
            Trainer.run_step = lambda self: time.sleep(60) if self.iter == 1 else step(self)

    run = start(prepare=prepare)
    run.wait_for("first class loss")
    run.ranks[0].kill(signal.SIGTERM)
    run.wait_for("send it again to end at once")
    time.sleep(1.2)
    assert not run.ranks[0].ended()
    run.ranks[0].kill(signal.SIGTERM)
    until(run.ranks[0].ended, 40)  # of the 60 s that the other one takes
    assert run.ranks[0].code == 128 + signal.SIGTERM


def test_a_signal_to_ranks_that_have_trained_and_are_about_to_end_changes_nothing(start):
    def prepare(rank, ranks):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # as train_net.py
        end = Progress.end  # when none listens any more

        def end_late(self):
            os.kill(os.getpid(), signal.SIGTERM)
            end(self)

        Progress.end = end_late

    run = start(prepare=prepare, steps=2)
    assert run.codes() == [0, 0]


# --- before the training ---------------------------------------------------------------------------------------------


def forked(do):
    """Do something in a forked process; return its pid."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            code = do()
        except SystemExit as left:
            code = left.code
        finally:
            os._exit(code)
    return pid


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_while_data_are_drawn_nothing_is_lost_and_nothing_left(tmp_path, monkeypatch, capfd, number):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    arguments = [
        *("--config-file", "configs/quickstart.yaml", "DATASETS.TRAIN", "shapes_train_20000_64px"),
        *("DATASETS.TEST", "shapes_val_4_64px", "OUTPUT_DIR", str(tmp_path / "run")),
        *("MODEL.DEVICE", "cpu"),  # a forked process cannot use a GPU that this one has looked for
    ]
    pid = forked(lambda: main(arguments))
    until(lambda: list((tmp_path / "datasets").rglob("*.png")))
    os.kill(pid, number)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 75
    assert f"{number.name}: nothing was trained yet: run the same command again to start" in capfd.readouterr().err
    assert not list((tmp_path / "datasets").rglob("*.png"))


@pytest.mark.parametrize(("times", "code"), [(1, 3), (2, 128 + signal.SIGTERM)])
def test_a_launcher_passes_a_signal_on_and_ends_all_at_a_second(tmp_path, times, code):
    def rank():
        def hear(*_):
            (tmp_path / "heard").touch()
            if times == 1:
                os._exit(3)

        signal.signal(signal.SIGTERM, hear)
        (tmp_path / "pid").write_text(str(os.getpid()))
        time.sleep(60)

    def launch():
        SignalForwarder()
        child = multiprocessing.get_context("fork").Process(target=rank)
        child.start()
        child.join()
        assert not stopping_signal(child.exitcode)
        return child.exitcode

    pid = forked(launch)
    until((tmp_path / "pid").exists)
    time.sleep(0.1)
    os.kill(pid, signal.SIGTERM)
    until((tmp_path / "heard").exists)
    if times == 2:
        time.sleep(1.1)
        os.kill(pid, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == code
    until(lambda: not is_running(int((tmp_path / "pid").read_text())))


def test_a_rank_that_starts_gets_the_signal_that_came_before():
    def rank(requested):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # as train_net.py
        resend_requested(requested)
        os._exit(3 if signal.sigpending() == {signal.SIGTERM} else 4)

    def launch():
        forwarder = SignalForwarder()
        os.kill(os.getpid(), signal.SIGTERM)
        child = multiprocessing.get_context("fork").Process(target=rank, args=(forwarder.requested,))
        child.start()
        child.join()
        return child.exitcode

    assert os.waitstatus_to_exitcode(os.waitpid(forked(launch), 0)[1]) == 3


# --- workers ---------------------------------------------------------------------------------------------------------


class Pids:
    def __len__(self):
        return 4

    def __getitem__(self, place):
        return os.getpid()


def test_workers_obey_their_parent_alone():
    with workers_shielded():
        loader = DataLoader(Pids(), num_workers=1, batch_size=None, persistent_workers=True)
        worker = next(iter(loader))
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            pid = os.fork()
            if pid == 0:
                os.kill(worker, number)
                os._exit(0)
            os.waitpid(pid, 0)
        time.sleep(0.2)
        assert list(loader) == [worker] * 4
        began = time.monotonic()
        os.kill(worker, signal.SIGTERM)
        with pytest.raises(RuntimeError, match="exited unexpectedly"):
            list(loader)
        assert time.monotonic() - began < 60


def test_workers_leave_by_themselves_when_a_loader_is_shut_down(monkeypatch):
    monkeypatch.setattr(_utils, "MP_STATUS_CHECK_INTERVAL", 60.0)  # after which PyTorch would terminate them
    with workers_shielded():
        loader = iter(DataLoader(Pids(), num_workers=2, batch_size=None))
        next(loader)
        workers = loader._workers
        del loader
    assert [worker.exitcode for worker in workers] == [0, 0]


COLLECTING = """
import gc, os
from focal_det.distributed.signals import workers_shielded

class Group:
    def __del__(self):
        print("destroyed by", os.getpid() - training, flush=True)

training, group = os.getpid(), Group()
group.itself = group
with workers_shielded():
    del group
    if (worker := os.fork()) == 0:
        gc.collect()
        os._exit(0)
    os.waitpid(worker, 0)
gc.collect()
"""


def test_workers_destroy_nothing_that_was_garbage_of_their_training():
    run = subprocess.run([sys.executable, "-c", COLLECTING], capture_output=True, text=True, check=True)
    assert run.stdout == "destroyed by 0\n"
