"""The log of a process; a full disk under it or under TensorBoard's file is said once, and without a trace."""

import errno
import logging
import threading
from pathlib import Path

import pytest

from focal_det.tracking.log import end_log, start_log, watch_threads

pytestmark = pytest.mark.detectron2


@pytest.fixture
def loggers():
    found = [logging.getLogger(name) for name in ("fvcore", "detectron2", "focal_det")]
    before = [(one.level, one.propagate) for one in found]
    for one in found:
        one.propagate = True  # else pytest's own handler, which raises, is theirs
    yield found
    end_log()
    for one, (level, propagates) in zip(found, before, strict=True):
        one.level, one.propagate = level, propagates


@pytest.mark.parametrize("rank", [0, 1])
def test_traces_are_in_the_file_alone_and_rank_0_alone_is_on_the_console(loggers, tmp_path, capsys, rank):
    start_log(tmp_path / "log", rank)
    for one in loggers:
        one.info("a step")
    try:
        raise ValueError("wrong")
    except ValueError:
        loggers[2].debug("Its trace:", exc_info=True)
    out = capsys.readouterr().out
    assert out.count("a step") == (0 if rank else 3)
    assert "wrong" not in out
    text = (tmp_path / "log").read_text()
    assert [line.split("] ")[1] for line in text.splitlines()[:3]] == [
        *("fvcore INFO: a step", "detectron2 INFO: a step", "focal_det INFO: a step"),
    ]
    assert text.endswith("ValueError: wrong\n")


def test_a_second_run_in_one_process_has_each_line_once_and_the_first_runs_file_ends(loggers, tmp_path, capsys):
    for name in ("first", "second", "second"):
        start_log(tmp_path / name, 0)
        loggers[2].info(f"a step of the {name}")
    assert capsys.readouterr().out.count("a step of the second") == 2
    assert (tmp_path / "first").read_text().count("a step") == 1
    assert (tmp_path / "second").read_text().count("a step of the second") == 2
    end_log()
    loggers[2].info("a step of none")
    assert "none" not in capsys.readouterr().out + (tmp_path / "second").read_text()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has this file, which is a full disk")
def test_a_full_disk_under_the_log_is_said_once_and_without_a_trace(loggers, capfd):
    start_log(Path("/dev/full"), rank=1)
    for number in range(3):
        for one in loggers:
            one.info(f"line {number}")
    assert capfd.readouterr().err == (
        "warning: /dev/full cannot be written (No space left on device), so it is incomplete\n"
    )
    loggers[2].info("%d", "no number")
    assert "--- Logging error ---" in capfd.readouterr().err


def test_a_thread_that_a_full_disk_ends_is_said_once(monkeypatch, capfd):
    others = []
    monkeypatch.setattr(threading, "excepthook", others.append)
    watch_threads()
    watch_threads()  # in a process that trains again

    def end(error):
        def write():
            raise error

        thread = threading.Thread(target=write)
        thread.start()
        thread.join()
        return capfd.readouterr().err

    full = OSError(errno.ENOSPC, "No space left on device", "events.out")
    assert end(full) == "warning: events.out cannot be written (No space left on device), so it is incomplete\n"
    assert end(full) == ""
    assert end(ValueError("another")) == ""
    assert [str(ended.exc_value) for ended in others] == ["another"]
