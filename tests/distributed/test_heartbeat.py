"""What counts as progress while a rank computes for long."""

import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest

from focal_det.distributed.heartbeat import PHASES, Progress, compiling, cpu_seconds

pytestmark = pytest.mark.detectron2


@contextmanager
def started(*command):
    with subprocess.Popen(command) as process:
        try:
            yield
        finally:
            process.kill()


def moves_within(progress, seconds):
    progress.count_computing()  # from here on, since processor time is told in hundredths of a second
    before = progress.heartbeat["moves"]
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and progress.heartbeat["moves"] == before:
        time.sleep(0.5)
        progress.count_computing()
    return progress.heartbeat["moves"] - before


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what other processes compute")
def test_a_compiler_that_computes_is_progress_and_one_that_waits_is_not():
    progress = Progress()
    progress.begin()
    progress.move(PHASES.index("step"))
    try:
        with compiling():
            assert PHASES[progress.heartbeat["phase"]] == "compiling"
            with started(sys.executable, "-c", "while True: pass"):
                assert moves_within(progress, 60)
            with started("sleep", "60"):
                assert not moves_within(progress, 1)
        assert PHASES[progress.heartbeat["phase"]] == "step"
        assert not moves_within(progress, 0.5)
    finally:
        progress.end()


def test_threads_that_end_meanwhile_do_not_end_the_watch():
    deadline = time.monotonic() + 2

    def come_and_go():
        while time.monotonic() < deadline:
            one = threading.Thread(target=int)
            one.start()
            one.join()

    for _ in range(4):
        threading.Thread(target=come_and_go).start()
    while time.monotonic() < deadline:
        assert cpu_seconds() > 0
