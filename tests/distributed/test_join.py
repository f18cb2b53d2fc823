"""What ends one rank of several while they start ends all; the other ranks are simulated."""

import ctypes
import multiprocessing
import os
import signal
import socket
import time
import traceback
from contextlib import ExitStack

import pytest
import torch.distributed as dist
from free_ports import free_port

from focal_det.distributed import join
from focal_det.distributed.cluster import ClusterEnvironment
from focal_det.distributed.join import (
    StartDeadline,
    check_shared_folder,
    joint_start,
    leave_errors_to_the_watch,
    reach_all,
)
from focal_det.errors import InputError, TrainingError

pytestmark = pytest.mark.detectron2


@pytest.fixture(autouse=True)
def _signals_come_through():
    yield
    signal.pthread_sigmask(signal.SIG_UNBLOCK, join.STOP_SIGNALS)


@pytest.fixture
def others(monkeypatch):
    """The outcomes of the other ranks in each gathering; this one is the first."""
    outcomes = []
    monkeypatch.setattr(join.comm, "all_gather", lambda own: [own, *outcomes])
    return outcomes


def failing(error):
    def work():
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (InputError("no such file"), 2, "no such file"),
        (TrainingError("it did not come"), 1, "it did not come"),
        (OSError(5, "Input/output error"), 1, "rank 0: OSError: [Errno 5] Input/output error"),
        (MemoryError(), 1, "rank 0: MemoryError"),
        (SystemExit(75), 75, ""),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_each_way_to_fail_has_its_code_and_no_trace(others, capsys, error, code, message):
    with joint_start() as ranks, pytest.raises(SystemExit) as left:
        ranks.do(failing(error))
    printed = capsys.readouterr().err
    assert left.value.code == code
    assert message in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize(
    ("of_others", "code"), [([(0, [])], None), ([(75, [])], 75), ([(75, []), (1, [])], 1), ([(1, []), (2, ["x"])], 2)]
)
def test_all_leave_with_one_code(others, of_others, code):
    others.extend(of_others)
    with joint_start() as ranks:
        if code is None:
            assert ranks.do(lambda: "result") == "result"
        else:
            with pytest.raises(SystemExit) as left:
                ranks.do(lambda: "result")
            assert left.value.code == code


def test_a_signal_in_a_wait_ends_the_next_work(monkeypatch):
    def gather(own):
        os.kill(os.getpid(), signal.SIGUSR1)
        return [own]

    def leave(*_):
        raise SystemExit(75)

    before = signal.signal(signal.SIGUSR1, leave)
    try:
        with joint_start() as ranks:
            with monkeypatch.context() as patch:
                patch.setattr(join.comm, "all_gather", gather)
                ranks.do(lambda: None)
            with pytest.raises(SystemExit) as left:
                ranks.do(lambda: pytest.fail("the signal was ignored"))
            assert left.value.code == 75
            ranks.pending = 0
        assert signal.getsignal(signal.SIGUSR1) is leave
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_folder_that_is_not_shared_is_named_and_left_as_it_was(tmp_path, monkeypatch, capsys):
    class Ranks:
        def do(self, work):
            return work()

    check_shared_folder(Ranks(), tmp_path)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(join, "_SEEN_WITHIN", 0)
    monkeypatch.setattr(join.comm, "is_main_process", lambda: False)
    with pytest.raises(InputError, match=f"OUTPUT_DIR {tmp_path} of rank 0 is not that of rank 0: name one"):
        check_shared_folder(Ranks(), tmp_path)
    assert not list(tmp_path.iterdir())


# --- reaching one another ---------------------------------------------------------------------------------------------


@pytest.fixture
def pretended_two(tmp_path, monkeypatch):
    """One rank that takes itself for one of two."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    monkeypatch.setattr(dist, "get_world_size", lambda *_: 2)
    monkeypatch.setattr(dist, "monitored_barrier", lambda *_, **__: None)
    yield
    dist.destroy_process_group()


def refused(*_, **__):
    raise RuntimeError("Ranks 1 failed to pass monitoredBarrier in 100 ms\nException raised from C++")


def test_alone_there_is_nobody_to_reach(tmp_path, monkeypatch):
    monkeypatch.setattr(dist, "monitored_barrier", lambda *_, **__: 1 / 0)
    reach_all(1)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        reach_all(1)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("monitored_barrier", r"within 0.1 s \(Ranks 1 failed.*GLOO_SOCKET_IFNAME"),
        ("all_reduce", r"cannot add up a number \(Ranks 1 failed.*NCCL_DEBUG=INFO"),
    ],
)
def test_ranks_that_do_not_answer_are_named(pretended_two, monkeypatch, name, message):
    monkeypatch.setattr(dist, name, refused)
    with pytest.raises(TrainingError, match=message) as caught:
        reach_all(0.1)
    assert "C++" not in str(caught.value)


def test_a_first_sum_that_never_ends_is_left(pretended_two, monkeypatch):
    # NCCL finds no interface: the call itself blocks, and is in C++, which no signal interrupts
    ended = []
    monkeypatch.setattr(dist, "all_reduce", lambda _: ended.append(ctypes.CDLL(None).usleep(60_000_000)))
    with pytest.raises(TrainingError, match=r"did not add up a number within 0.1 s: .*NCCL_SOCKET_IFNAME"):
        reach_all(0.1)
    assert ended == []


def ends_well(do):
    """Do something in a forked process, which leaves no group, and no thread that is stuck in one, to later tests."""

    def work():
        try:
            do()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(60)
    process.kill()
    process.join()
    return process.exitcode == 0


def test_rank_0_serves_the_store_as_long_as_the_group_lives():
    def do():
        cluster = ClusterEnvironment(0, 1, 0, 1, "127.0.0.1", free_port(), "SLURM")
        join.join_process_group(cluster, 20, gpu="", gpus=0, device="cpu")
        socket.create_connection(("127.0.0.1", cluster.port), 1).close()  # as the watch of each rank connects

    assert ends_well(do)


def test_a_group_that_does_not_come_together_is_not_waited_for_for_half_an_hour():
    # gloo connects to all ranks as it is made; from one that listens elsewhere, no answer comes
    def do():
        join.Rendezvous.call_roll = lambda self, store: (store.set("go", "gloo"), store)[1]
        cluster = ClusterEnvironment(0, 2, 0, 2, "127.0.0.1", free_port(), "SLURM")
        with pytest.raises(TrainingError, match=r"rank 0 did not reach the others \(.*GLOO_SOCKET_IFNAME"):
            join.join_process_group(cluster, 0.5, gpu="", gpus=0, device="cpu")

    assert ends_well(do)


@pytest.mark.parametrize("value", [None, "3"])
def test_errors_of_nccl_are_left_to_the_watch_unless_the_user_says_otherwise(monkeypatch, value):
    name = "TORCH_NCCL_ASYNC_ERROR_HANDLING"
    monkeypatch.setenv(name, "")  # so that it is put back
    monkeypatch.delenv(name) if value is None else monkeypatch.setenv(name, value)
    leave_errors_to_the_watch()
    assert os.environ[name] == (value or "0")


# --- in the launcher; the ranks are forked here, not launched ---------------------------------------------------------


def hang():
    time.sleep(60)


def hanging():
    process = multiprocessing.get_context("fork").Process(target=hang)
    process.start()
    return process


def test_ranks_that_do_not_reach_the_others_are_named_and_killed():
    rank = hanging()
    with StartDeadline(2, 6, 0.5) as watch:
        watch.reached[0].set()
        rank.join(60)
    assert rank.exitcode == -signal.SIGKILL
    assert watch.message.startswith("rank 7 did not reach the others within 0.5 s")


def test_ranks_that_reached_the_others_or_ended_are_left_alone():
    rank = hanging()
    watches = [StartDeadline(1, 0, seconds) for seconds in (0.1, 1.0)]
    watches[0].reached[0].set()
    with ExitStack() as open_watches:
        for watch in watches:
            open_watches.enter_context(watch)
        watches[1].__exit__()  # before its time is up
        rank.join(1.5)
    assert rank.is_alive()
    assert [watch.message for watch in watches] == ["", ""]
    rank.kill()
    rank.join()
