"""Warnings that say nothing here are silenced, in processes that are started too, and no others."""

import os
import subprocess
import sys
import warnings

import pytest

from focal_det.errors import silence_known_warnings

KNOWN = [
    ("`torch.jit.script` is deprecated. Please switch to `torch.compile` or `torch.export`.", "FutureWarning"),
    ("Grad strides do not match bucket view strides. This may indicate grad was not created", "UserWarning"),
]
OTHERS = [("`torch.jit.script` is slow", "UserWarning"), ("`torch.cuda.amp.autocast(args...)` is", "FutureWarning")]


@pytest.fixture
def silenced(monkeypatch):
    monkeypatch.setenv("PYTHONWARNINGS", "default::FutureWarning:mine")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        silence_known_warnings()
        silence_known_warnings()  # as a process that was started does again
        yield


def test_they_are_silenced_here(silenced):
    for message, category in KNOWN:
        warnings.warn(message, __builtins__[category], stacklevel=1)
    for message, category in OTHERS:
        with pytest.raises(__builtins__[category]):
            warnings.warn(message, __builtins__[category], stacklevel=1)


def test_they_are_silenced_in_a_process_that_is_started(silenced):
    assert os.environ["PYTHONWARNINGS"].endswith(",default::FutureWarning:mine")
    assert os.environ["PYTHONWARNINGS"].count("torch.jit") == 1
    lines = "; ".join(f"warnings.warn({message!r}, {category})" for message, category in (*KNOWN, *OTHERS))
    ended = subprocess.run([sys.executable, "-c", f"import warnings; {lines}"], capture_output=True, text=True)
    assert ended.returncode == 0
    assert [message in ended.stderr for message, _ in (*KNOWN, *OTHERS)] == [False, False, True, True]
