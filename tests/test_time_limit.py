"""A test that hangs fails within its time, with the stacks of its process and of all that it has started."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HANGS = """
import multiprocessing, subprocess, sys, threading, time

def forked_waits_here():
    time.sleep(100)

def test_before(): pass

def test_waits_for_a_fork():
    process = multiprocessing.get_context("fork").Process(target=forked_waits_here)
    process.start()
    process.join()

def test_waits_for_another_process():
    code = "import time\\ndef started_waits_here(): time.sleep(100)\\nstarted_waits_here()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

def test_waits_for_itself():
    threading.Event().wait()

def test_after(): pass
"""


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """What pytest prints of tests that hang."""
    folder = tmp_path_factory.mktemp("hanging")
    (folder / "conftest.py").write_text("import time_limit\ntime_limit.SECONDS, time_limit.GRACE = 1, 1\n")
    (folder / "test_hanging.py").write_text(HANGS)
    options = ["-p", "time_limit", "-p", "no:cacheprovider", "--rootdir", str(folder)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent), "PYTEST_ADDOPTS": ""}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options], capture_output=True, text=True, env=environment, cwd=folder
    )
    assert "3 failed, 2 passed" in done.stdout, done.stdout + done.stderr
    return done.stdout


def of_test(printed, name):
    return printed.partition(f"_ {name} _")[2].partition("\n___")[0]


def test_what_waits_for_a_fork_shows_where_both_stand(printed):
    text = of_test(printed, "test_waits_for_a_fork")
    own, _, forked = text.partition("--- process ")
    assert "in test_waits_for_a_fork" in own.partition("stacks after 1 s")[2]
    assert "in forked_waits_here" in forked


def test_what_waits_for_another_process_fails_with_what_that_wrote(printed):
    text = of_test(printed, "test_waits_for_another_process")
    assert "in started_waits_here" in text.partition("stacks after 1 s")[0]  # the message of the test's own assertion


def test_what_waits_for_nobody_is_ended_where_it_stands(printed):
    text = of_test(printed, "test_waits_for_itself")
    assert "it still waited 1 s after all that it had started was ended" in text
