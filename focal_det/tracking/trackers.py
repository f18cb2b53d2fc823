"""Experiment trackers beside a training, which none of them can end, hold up or slow.

metrics.json is what a tracker is fed from. A thread of its own sends it the lines that it does not have yet, so a step
never waits for a server, nothing has to be kept in memory while one does not answer, and a resumed run sends what an
earlier start could not. Which run of the tracker that is, and what it has, is kept in a file in OUTPUT_DIR.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from detectron2.config import CfgNode
from detectron2.utils.events import EventWriter

from ..checkpoint.integrity import best_weights
from ..distributed.graceful_stop import TrainingStopped
from ..errors import Findings, first_line
from ..extras import missing_message
from ..files import write_text_whole
from ..output_layout import METRICS, REPORT, TRACKER
from ..registries import EVENT_WRITER_REGISTRY
from ..report.metrics import metrics_lines

logger = logging.getLogger(__name__)
KEY = "MODEL.FOCAL_DET.TRACKERS"
_PAUSES = (5.0, 60.0)  # seconds after the first failure, which then double, and at most
_LAST_SECONDS = 20.0  # that the end of a run waits for all its trackers


@dataclass(frozen=True)
class RunEnd:
    """How a run ended, and what it left.

    status: "finished"; "stopped" by a signal, to be resumed; or "failed".
    best: the better of model_best.pth and model_best_ema.pth; None if there is neither.
    report: report.html; None if it was not written.
    """

    status: Literal["finished", "stopped", "failed"]
    best: Path | None
    report: Path | None


class Tracker(EventWriter):
    """A tracker with its thread. A subclass, called as ``tracker(cfg)``, has the methods `open`, `log` and `finish`.

    They are called in that thread, may take as long as they like, and raise what they like: the first failure is a
    warning, and what failed is tried again, after pauses that grow to a minute. `sent` is the last iteration, from 0,
    that the tracker has; `open` may correct it. `package` is what it imports late, and `problem` says what is missing.
    """

    package = ""

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg, self.folder, self.name = cfg, Path(cfg.OUTPUT_DIR), type(self).__name__
        self.sent = -1
        self._is_open, self._failures, self._read = False, 0, 0  # bytes of metrics.json
        self._wake, self._ended = threading.Event(), threading.Event()
        self._end: RunEnd | None = None
        self._thread = threading.Thread(target=self._follow, name=f"tracker {self.name}", daemon=True)

    @classmethod
    def problem(cls) -> str | None:
        """Return what has to be done before it can be used; asked before the start of a training."""
        if not cls.package or importlib.util.find_spec(cls.package):
            return None
        return missing_message(ModuleNotFoundError(f"No module named {cls.package!r}", name=cls.package))

    def open(self, run_id: str | None) -> str:
        """Begin a run, or continue the one of this id, which an earlier start was given; return its id."""
        raise NotImplementedError

    def log(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """Take a line of metrics.json, each once and in order; the iteration is counted from 0, NaN is a value."""
        raise NotImplementedError

    def finish(self, end: RunEnd) -> None:
        """Take how the run ended, after all metrics; a stopped or failed one may be opened again by a resume."""

    def start(self, *, resumes: bool) -> None:
        """Start the thread; a training that does not resume is another run for the tracker."""
        if self.package:  # here, since a loader's worker that is forked in the midst of an import may wait for its end
            importlib.import_module(self.package)
        self._state = self.folder / TRACKER.format(self.name)
        if not resumes:
            self._state.unlink(missing_ok=True)
        self._thread.start()

    def write(self) -> None:
        """Let the thread look for new lines."""
        self._wake.set()

    def end(self, end: RunEnd) -> None:
        """Let the thread send the rest, and end."""
        self._end = end
        self._ended.set()
        self._wake.set()

    def join(self, seconds: float) -> bool:
        """Wait at most so long; return whether the tracker has everything."""
        if self._thread.ident is not None:
            self._thread.join(seconds)
        return not self._thread.is_alive() and not self._failures

    def _follow(self) -> None:
        while True:
            is_last = self._ended.is_set()  # asked first: what was written before it was set is read below
            try:
                self._catch_up()
                if is_last and self._end:
                    self.finish(self._end)
                if self._failures:
                    logger.info(f"{self.name} answers again, and has all metrics")
                self._failures = 0
            except BaseException as error:  # a client may raise a KeyboardInterrupt or SystemExit of its own
                self._failures += 1
                if self._failures == 1:
                    where = f"all are in {self.folder / METRICS}, and sent once this works"
                    logger.warning(
                        f"{self.name} takes no metrics ({type(error).__name__}: {first_line(error)}); the training "
                        f"continues, and {where}"
                    )
                logger.debug(f"{self.name}:", exc_info=True)
            if is_last:
                return
            if self._failures:
                self._ended.wait(min(_PAUSES[0] * 2 ** min(self._failures - 1, 9), _PAUSES[1]))
            else:
                self._wake.wait()
            self._wake.clear()

    def _catch_up(self) -> None:
        """Send the whole lines that the tracker does not have."""
        if not self._is_open:
            run_id, self.sent = self._saved()
            self._run_id = self.open(run_id)
            self._is_open = True
            self._save()
        path, before = self.folder / METRICS, self.sent
        try:
            for line in metrics_lines(path, start=self._read) if path.is_file() else ():
                if not line.text.endswith("\n"):
                    break
                if line.iteration is not None and line.iteration > self.sent:
                    self.log(line.iteration, {k: v for k, v in line.values.items() if k != "iteration"})
                    self.sent = line.iteration
                self._read += len(line.text.encode())
        finally:
            if self.sent != before:
                self._save()

    def _saved(self) -> tuple[str | None, int]:
        """Return the run of an earlier start and the last iteration that it has; (None, -1) if there is none."""
        with suppress(OSError, ValueError, LookupError, TypeError):
            held = json.loads(self._state.read_text(encoding="utf-8"))
            return str(held["run"]), int(held["iteration"])
        return None, -1

    def _save(self) -> None:
        write_text_whole(self._state, json.dumps({"run": self._run_id, "iteration": self.sent}) + "\n")


class Trackers(EventWriter):
    """The writers that MODEL.FOCAL_DET.TRACKERS names, on the main process: no other has `names`.

    While open as a context, a run is theirs; at its end they learn how it ended, and are waited for, for some seconds.
    """

    def __init__(self, cfg: CfgNode, names: tuple[str, ...]) -> None:
        self._folder = Path(cfg.OUTPUT_DIR)
        self._writers: dict[str, EventWriter] = {}  # those that work
        for name in names:
            self._guarded(name, lambda name=name: self._writers.update({name: EVENT_WRITER_REGISTRY.get(name)(cfg)}))

    def __enter__(self) -> Trackers:
        return self

    def start(self, *, resumes: bool) -> None:
        """Let the trackers begin, once metrics.json is as the run continues it."""
        for name, tracker in [*self._trackers().items()]:
            self._guarded(name, lambda tracker=tracker: tracker.start(resumes=resumes))

    def write(self) -> None:
        """Let each writer write; called after metrics.json has been written."""
        for name, writer in [*self._writers.items()]:
            self._guarded(name, writer.write)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if not self._writers:
            return
        status: Any = "finished" if kind is None else "stopped" if issubclass(kind, TrainingStopped) else "failed"
        report = self._folder / REPORT
        is_new = status == "finished" and report.is_file()
        end = RunEnd(status, best_weights(self._folder)[0], report if is_new else None)
        trackers, until = self._trackers(), time.monotonic() + _LAST_SECONDS
        for tracker in trackers.values():
            tracker.end(end)
        for name, tracker in trackers.items():
            if not tracker.join(max(0.0, until - time.monotonic())):
                logger.warning(f"{name} does not have all metrics; {METRICS} has, and --resume sends what is missing")
        for name in [*self._writers]:
            self._guarded(name, self._writers[name].close)

    def _trackers(self) -> dict[str, Tracker]:
        return {name: writer for name, writer in self._writers.items() if isinstance(writer, Tracker)}

    def _guarded(self, name: str, act: Any) -> None:
        """Turn off a writer that fails in the main thread, since it may take long to fail again."""
        try:
            act()
        except Exception as error:
            self._writers.pop(name, None)
            logger.debug(f"{name}:", exc_info=True)
            why = f"{type(error).__name__}: {first_line(error)}"
            logger.warning(f"{name} of {KEY} failed ({why}), and is off; the training continues")


def check_trackers(cfg: CfgNode) -> Findings:
    """Find what keeps the chosen trackers from working that can be fixed before the start."""
    chosen = [EVENT_WRITER_REGISTRY.get(name) for name in cfg.MODEL.FOCAL_DET.TRACKERS if name in EVENT_WRITER_REGISTRY]
    problems = [tracker.problem() for tracker in chosen if isinstance(tracker, type) and issubclass(tracker, Tracker)]
    return Findings([f"{KEY}: {problem}" for problem in problems if problem])
