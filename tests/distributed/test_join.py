"""What ends one rank of several while they start ends all; the other ranks are simulated."""

import multiprocessing
import os
import signal
import time
from contextlib import ExitStack

import pytest

from focal_det.distributed import join
from focal_det.distributed.join import StartDeadline, check_shared_folder, joint_start
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


def test_a_rank_that_is_gone_is_reported(monkeypatch):
    def gather(_):
        raise RuntimeError("Connection closed by peer\nC++")

    monkeypatch.setattr(join.comm, "all_gather", gather)
    with pytest.raises(TrainingError, match=r"a rank ended .*\(Connection closed by peer\)"), joint_start() as ranks:
        ranks.do(lambda: None)


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


# --- in the launcher; the ranks are forked here, not launched ---------------------------------------------------------


def hang():
    time.sleep(60)


def hanging():
    process = multiprocessing.get_context("fork").Process(target=hang)
    process.start()
    return process


@pytest.fixture(autouse=True)
def _no_minute_more(monkeypatch):
    monkeypatch.setattr(join, "REACH_SECONDS", 0)


def test_ranks_that_do_not_reach_the_others_are_named_and_killed():
    with StartDeadline(2, 3, 8, 0.5) as watch:
        watch.reached[0].set()
        rank = hanging()
        rank.join(10)
    assert rank.exitcode == -signal.SIGKILL
    assert watch.message.startswith("rank 7 did not reach the others within 0.5 s")


def test_ranks_that_reached_the_others_or_ended_are_left_alone():
    watches = [StartDeadline(1, 0, world_size, 0.1) for world_size in (2, 2, 1)]
    with ExitStack() as open_watches:
        for watch in watches:
            open_watches.enter_context(watch)
            if watch is watches[0]:
                watch.reached[0].set()
            if watch is watches[1]:
                watch.__exit__()
        rank = hanging()
        rank.join(1)
    assert rank.is_alive()
    assert [watch.message for watch in watches] == ["", "", ""]
    rank.kill()
    rank.join()
