"""What ends one rank of several while they start ends all; the others' part is played here."""

import os
import signal

import pytest

from focal_det.cli import together
from focal_det.cli.together import Together, see_folder
from focal_det.errors import InputError, TrainingError


@pytest.fixture(autouse=True)
def _signals_come_through():
    yield
    signal.pthread_sigmask(signal.SIG_UNBLOCK, together.STOP_SIGNALS)


@pytest.fixture
def others(monkeypatch):
    """What the other ranks say in each gathering; this one is the first."""
    said = []
    monkeypatch.setattr(together.comm, "all_gather", lambda mine: [mine, *said])
    return said


def failing(error):
    def work():
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (InputError("no such file"), 2, "no such file"),
        (TrainingError("it did not come"), 1, "it did not come"),
        (OSError(5, "Input/output error"), 1, "rank 0: OSError: [Errno 5] Input/output error"),
        (MemoryError(), 1, "rank 0: MemoryError"),
        (SystemExit(75), 75, ""),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_each_way_to_fail_has_its_code_and_no_trace(others, capsys, error, code, words):
    with Together() as ranks, pytest.raises(SystemExit) as left:
        ranks.do(failing(error))
    said = capsys.readouterr().err
    assert left.value.code == code
    assert words in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("of_others", "code"), [([(0, [])], None), ([(75, [])], 75), ([(75, []), (1, [])], 1), ([(1, []), (2, ["x"])], 2)]
)
def test_all_leave_with_one_code(others, of_others, code):
    others.extend(of_others)
    with Together() as ranks:
        if code is None:
            assert ranks.do(lambda: "mine") == "mine"
        else:
            with pytest.raises(SystemExit) as left:
                ranks.do(lambda: "mine")
            assert left.value.code == code


def test_a_signal_in_a_wait_is_heeded_in_the_next_work(monkeypatch):
    def gather(mine):
        os.kill(os.getpid(), signal.SIGUSR1)
        return [mine]

    def leave(*_):
        raise SystemExit(75)

    before = signal.signal(signal.SIGUSR1, leave)
    try:
        with Together() as ranks:
            with monkeypatch.context() as patch:
                patch.setattr(together.comm, "all_gather", gather)
                ranks.do(lambda: None)
            with pytest.raises(SystemExit) as left:
                ranks.do(lambda: pytest.fail("it was not heeded"))
            assert left.value.code == 75
            ranks._noted = 0
        assert signal.getsignal(signal.SIGUSR1) is leave
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_rank_that_is_gone_is_said(monkeypatch):
    def gather(_):
        raise RuntimeError("Connection closed by peer\nC++")

    monkeypatch.setattr(together.comm, "all_gather", gather)
    with pytest.raises(TrainingError, match=r"a rank ended .*\(Connection closed by peer\)"), Together() as ranks:
        ranks.do(lambda: None)


def test_a_folder_that_is_not_shared_is_named_and_left_as_it_was(tmp_path, monkeypatch, capsys):
    class Ranks:
        def do(self, work):
            return work()

    see_folder(Ranks(), tmp_path)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(together, "_SEEN_WITHIN", 0)
    monkeypatch.setattr(together.comm, "is_main_process", lambda: False)
    with pytest.raises(InputError, match=f"OUTPUT_DIR {tmp_path} of rank 0 is not that of rank 0: name one"):
        see_folder(Ranks(), tmp_path)
    assert not list(tmp_path.iterdir())
