"""A full disk under what a training writes beside its checkpoints is said once, and without a trace."""

import atexit
import errno
import logging
import threading
from pathlib import Path

import pytest

from focal_det.tracking import full_disk

pytestmark = pytest.mark.detectron2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has this file, which is a full disk")
def test_a_full_disk_under_the_log_is_said_once_and_without_a_trace(monkeypatch, capfd):
    ends, loggers = [], [logging.Logger("one"), logging.Logger("two")]
    monkeypatch.setattr(atexit, "register", lambda function, *args: ends.append(lambda: function(*args)))
    stream = open("/dev/full", "a")  # noqa: SIM115 - the loggers share it to the end, as Detectron2's do
    for one in loggers:
        one.addHandler(logging.StreamHandler(stream))
        full_disk.watch_log(one)
    for number in range(3):
        for one in loggers:
            one.info(f"line {number}")
    for end in ends:
        end()
    assert stream.closed
    assert capfd.readouterr().err == (
        "warning: /dev/full cannot be written (No space left on device), so it is incomplete\n"
    )
    loggers[0].info("%d", "no number")
    assert "--- Logging error ---" in capfd.readouterr().err


def test_a_thread_that_a_full_disk_ends_is_said_once(monkeypatch, capfd):
    others = []
    monkeypatch.setattr(threading, "excepthook", others.append)
    full_disk.watch_threads()
    full_disk.watch_threads()  # in a process that trains again

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
