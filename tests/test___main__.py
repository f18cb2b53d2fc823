"""Ranks that `focal-det train` starts hold back signals from their first line on, however it was started."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# What pip writes as the command focal-det.
SCRIPT = """
import sys
from focal_det.__main__ import main
if __name__ == "__main__":
    sys.exit(main())
"""
# In place of a training: the launcher and a process that is started as ranks are print which signals they block.
TRAINING = """
import multiprocessing, signal

def show_blocked():
    print(sorted(signal.Signals(number).name for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())), flush=True)

def main(argv, prog, ends_process):
    print(argv, prog)
    show_blocked()
    process = multiprocessing.get_context("spawn").Process(target=show_blocked)
    process.start()
    process.join()
    return process.exitcode
"""


@pytest.mark.parametrize("program", [["script"], ["-m", "focal_det"]], ids=["command", "module"])
def test_a_rank_blocks_signals_until_it_listens(tmp_path, program):
    (tmp_path / "script").write_text(SCRIPT)
    (tmp_path / "training.py").write_text(TRAINING)
    change = "import training\nfrom focal_det.cli import train\ntrain.main = training.main\n"
    (tmp_path / "sitecustomize.py").write_text(change)  # Python runs it as it starts, in the rank too
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = [sys.executable, *program, "train", "--num-gpus", "2"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    said = ["['--num-gpus', '2'] focal-det train", "[]", str(sorted(("SIGINT", "SIGTERM", "SIGUSR1")))]
    assert done.stdout.splitlines() == said
