"""No test waits for ever: one that takes too long fails, with the stacks of all processes that it has started.

After `SECONDS` those processes are ended, each of which writes its stack first, and the test has `GRACE` more to notice
it. Where even that does not help, since the main thread waits in C, the tests' process ends a minute after, with its
own stacks (faulthandler_timeout in pyproject.toml), and pytest-xdist takes another.
"""

import contextlib
import faulthandler
import multiprocessing
import os
import signal
import tempfile
import time
from pathlib import Path

import pytest

SECONDS = 300  # the slowest test takes 45 on two cores; a busy machine needs several times as long
GRACE = 20
STACK_SECONDS = 5  # seconds that a process has to write its stack

# Where forked processes write their stacks when they are aborted; they share its position.
STACKS = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - open as long as this process


def _in_a_fork():
    faulthandler.enable(STACKS.fileno())
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # the limit is the test's


os.register_at_fork(after_in_child=_in_a_fork)
os.environ["PYTHONFAULTHANDLER"] = "1"  # of other processes, which write to stderr


def _started_by(pid):
    """Yield the processes that one has started, those first that these have started."""
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # a thread that has just ended
            for child in map(int, path.read_text().split()):
                yield from _started_by(child)
                yield child


def is_running(pid):
    """Whether a process has not ended; one that is a zombie has, and waits for its parent alone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except OSError:
        return False


def end_with_stacks(*pids):
    """End processes and all that they have started; return the stacks of those that were forked from this one.

    All are stopped first: one whose peer has ended would go on, and no longer stand where it waited.
    """
    pids = dict.fromkeys(pid for root in pids for pid in (*_started_by(root), root))
    start = STACKS.seek(0, os.SEEK_END)
    for pid in pids:
        _send(pid, signal.SIGSTOP)
    for pid in pids:
        os.write(STACKS.fileno(), f"\n--- process {pid} ---\n".encode())
        _send(pid, signal.SIGABRT)
        _send(pid, signal.SIGCONT)
        deadline = time.monotonic() + STACK_SECONDS
        while is_running(pid) and time.monotonic() < deadline:
            time.sleep(0.01)
    return os.pread(STACKS.fileno(), 100_000, start).decode(errors="replace")


def _send(pid, number):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


_expired = []  # the stacks, once the time of the test that runs is up


def _expire(*_):
    if _expired:
        pytest.fail(f"it still waited {GRACE} s after all that it had started was ended")
    start = STACKS.seek(0, os.SEEK_END)
    faulthandler.dump_traceback(STACKS)
    own = os.pread(STACKS.fileno(), 100_000, start).decode(errors="replace")
    _expired.append(own + end_with_stacks(*_started_by("self")))
    signal.setitimer(signal.ITIMER_REAL, GRACE)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    before = signal.signal(signal.SIGALRM, _expire)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if _expired:
        report.outcome = "failed"
        report.longrepr = report.longrepr or "it ended only since all that it had started was ended"
        report.sections.append((f"stacks after {SECONDS} s", _expired.pop()))
    return report


def pytest_enter_pdb():
    signal.setitimer(signal.ITIMER_REAL, 0)


def pytest_sessionfinish():
    """End what a test has left, for which Python would wait at its own end."""
    for process in multiprocessing.active_children():
        process.kill()
