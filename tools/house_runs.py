"""Run a checkout's train_net.py and see which files of the package each run enters; house.py defines the figures."""

from __future__ import annotations

import json
import mmap
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

PROBE = Path(__file__).with_name("house_probe.py")
SETTINGS = {
    "DATASETS.TRAIN": "shapes_train_20_64px",
    "DATASETS.TEST": "shapes_val_8_64px",
    "INPUT.MIN_SIZE_TRAIN": "(48, 56, 64)",
    "INPUT.MIN_SIZE_TEST": 64,
    "MODEL.FPN.OUT_CHANNELS": 64,
    "MODEL.RETINANET.NUM_CONVS": 1,
    "DATALOADER.NUM_WORKERS": 1,
    "SOLVER.AMP.ENABLED": False,  # which not every processor has
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.BASE_LR": 0.01,
    "SOLVER.MAX_ITER": 200,
    "SOLVER.STEPS": "(150,)",
    "SOLVER.CHECKPOINT_PERIOD": 100,
    "TEST.EVAL_PERIOD": 0,
    "SEED": 7,
}
# The first steps differ from the rest, and the 20th writes metrics. The signal comes right after these.
STEADY = range(4, 10)
STOPPED = 75  # the exit code of a training that a signal stopped
# Variables of the environment that would turn it into another kind of run.
_NOT_PASSED_ON = ("PYTHON", "COVERAGE", "SLURM_", "TORCHELASTIC", "RANK", "LOCAL_RANK", "WORLD_SIZE", "HOUSE_")
_SECONDS = 400  # until a run has reached a step, and until it has ended


class Run:
    """A program that runs with the probe in all its processes; leaving the context kills whatever is still running.

    Args:
        folder: for the record and the output; is created.
        package: the folder of the package's code.
        words: the program and its arguments.
        env: more environment variables.
    """

    def __init__(self, folder: Path, package: Path, words: Sequence[object], **env: str) -> None:
        self.folder = folder
        (folder / "site").mkdir(parents=True)
        shutil.copyfile(PROBE, folder / "site" / "sitecustomize.py")
        (folder / "phase").write_bytes(b"\0\0")
        with (folder / "phase").open("r+b") as file:
            self._phase = mmap.mmap(file.fileno(), 2)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_PASSED_ON)}
        package = package.resolve()
        paths = {
            "PYTHONPATH": os.pathsep.join([str(folder / "site"), str(package.parent)]),
            "PYTHONDONTWRITEBYTECODE": "1",  # nothing is written into the checkout
            "GIT_OPTIONAL_LOCKS": "0",  # likewise
            "HOUSE_FOLDER": str(folder),
            "HOUSE_PACKAGE": str(package),
        }
        with (folder / "output").open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, *map(str, words)],
                env={**kept, **paths, **env},
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: Any) -> None:
        """Kill what is left of the run."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def wait_for_step(self, number: int) -> None:
        """Wait until a step has begun, counted from 1.

        Raises:
            RuntimeError: the run ended before.
            TimeoutError: it took too long.
        """
        deadline = time.monotonic() + _SECONDS
        while self._phase[0] < number:
            if self.process.poll() is not None:
                raise RuntimeError(f"the run ended before step {number}: {self.last_lines()}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"no step {number} within {_SECONDS} s: {self.last_lines()}")
            time.sleep(0.002)

    def stop(self) -> int:
        """Send the command one SIGTERM, wait until it has ended, and return its exit code."""
        self._phase[1] = 1
        os.kill(self.process.pid, signal.SIGTERM)
        return self.process.wait(_SECONDS)

    def last_lines(self) -> str:
        """Return the exit code and the last lines of the output."""
        lines = (self.folder / "output").read_text(errors="replace").splitlines()[-15:]
        return "\n".join([f"exit code {self.process.poll()}", *lines])

    def records(self, kind: str) -> list[dict[str, Any]]:
        """Return the records of one kind."""
        lines = map(json.loads, (self.folder / "record").read_text().splitlines())
        return [line for line in lines if line["kind"] == kind]

    def entered(self, steps: Iterable[int] | None, *, after_signal: bool = False) -> set[str]:
        """Return the files of the package that were entered in any process.

        Args:
            steps: in which steps; 0 is the time before the first, None stands for all.
            after_signal: whether after `stop`, or before.
        """
        wanted = range(256) if steps is None else steps
        return {
            record["file"]
            for record in self.records("entered")
            if record["phase"][0] in wanted and record["phase"][1] == after_signal
        }


def measure_runs(checkout: Path, package: str) -> dict[str, Any]:
    """Train and stop, resume, and stop a training with two ranks; return the figures and the files behind them.

    Raises:
        RuntimeError: a run failed.
    """
    seconds = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="house-") as name:
        folder = Path(name)

        def run(name: str, *flags: object, output: str) -> Run:
            config = checkout / "configs" / "quickstart.yaml"
            keys = [word for pair in SETTINGS.items() for word in pair]
            words = [checkout / "train_net.py", "--config-file", config, *keys, "OUTPUT_DIR", folder / output, *flags]
            return Run(
                folder / name,
                checkout / package,
                words,
                DETECTRON2_DATASETS=str(folder / "datasets"),
                CUDA_VISIBLE_DEVICES="",
            )

        with run("drawing", output="first") as drawing:
            drawing.wait_for_step(1)
        with run("one", output="a") as one:
            _stop_after_steady_steps(one)
        with run("resumed", "--resume", output="a") as resumed:
            resumed.wait_for_step(1)
        with run("two", "--num-gpus", 2, output="b") as two:
            _stop_after_steady_steps(two)
        pointer = folder / "a" / "last_checkpoint"
        files = {
            "step": one.entered(STEADY),
            "start": one.entered([0]),
            "start_drawing": drawing.entered([0]),
            "signal": one.entered(None, after_signal=True),
            "resume": resumed.entered([0]),
            "step_2_ranks": two.entered(STEADY),
            "start_2_ranks": two.entered([0]),
            "signal_2_ranks": two.entered(None, after_signal=True),
        }
        files["signal_only_2_ranks"] = files["signal_2_ranks"] - files["signal"]
        files["signal_beyond_step"] = files["signal"] - files["step"]
        if not all(files[name] for name in ("step", "start", "signal", "resume")):
            raise RuntimeError(f"nothing of {checkout / package} was entered: {one.last_lines()}")
        return {
            "counts": {name: len(found) for name, found in files.items()},
            "checkpoint": readings(resumed, (pointer.parent / pointer.read_text().strip()).resolve()),
            "models": models(resumed),
            "files": {name: sorted(found) for name, found in files.items()},
            "seconds": round(time.monotonic() - seconds),
        }


def _stop_after_steady_steps(run: Run) -> None:
    run.wait_for_step(STEADY.stop)
    if (code := run.stop()) != STOPPED:
        raise RuntimeError(f"a SIGTERM is to end a training with exit code {STOPPED}: {run.last_lines()} ({code})")


def readings(run: Run, path: Path) -> dict[str, Any]:
    """Count how often a checkpoint is read and opened before the first step, and by which functions."""
    by = {
        kind: Counter(
            " < ".join(record["by"][:2])
            for record in run.records(kind)
            if record["phase"][0] == 0 and record["path"] == str(path)
        )
        for kind in ("opened", "loaded", "unzipped")
    }
    return {
        "readings": by["loaded"].total() + by["unzipped"].total(),
        **{kind: found.total() for kind, found in by.items()},
        "by": {kind: dict(found) for kind, found in by.items()},
    }


def models(run: Run) -> dict[str, Any]:
    """Count the models that are built before the first step, without the last, which is trained."""
    built = [" < ".join(record["by"]) for record in run.records("model") if record["phase"][0] == 0]
    if not built:
        raise RuntimeError("no model of META_ARCH_REGISTRY was built before the first step")
    return {"before_the_trainers": len(built) - 1, "by": built}
