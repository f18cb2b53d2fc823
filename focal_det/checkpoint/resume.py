"""Which checkpoint --resume uses, whether the run may resume from it, and how a training takes over its folder."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

from detectron2.config import CfgNode

from ..errors import Findings, InputError, cut
from ..files import FolderLock, put_aside
from ..output_layout import BEST_CHECKPOINT, FINAL_CHECKPOINT, LAST_CHECKPOINT, METRICS, PERIODIC_CHECKPOINT
from .integrity import DamagedError, contents
from .run_record import RunRecord, compare

# What `focal_det.files.written_whole` was writing when it was killed.
_PARTIAL = re.compile(r"\.\d+(-[0-9a-f]{8})?\.part(\.pth)?")
_MOST_ITERATIONS = 2**62
_LENGTH = "SOLVER.MAX_ITER"
# Name, size and time of change of what a training writes last.
FolderState = frozenset[tuple[str, int, int]]


class Checkpoint(NamedTuple):
    """A checkpoint that a training can resume from."""

    path: Path
    done: int  # iterations
    record: RunRecord | None  # None if it was written before checkpoints had one
    # all that it holds, mapped from the file: as long as they are kept, so is the disk space of the file
    contents: Mapping[str, Any]


class Resumption(NamedTuple):
    """The checkpoint to begin from, if any, and the state of its folder."""

    checkpoint: Checkpoint | None  # None to start afresh
    findings: Findings  # why it may not begin; a warning where the checkpoint is not the one that last_checkpoint names
    seen: FolderState  # the folder as it was looked at

    def without_contents(self) -> Resumption:
        """Return it without the contents of its checkpoint, whose file need not stay mapped."""
        checkpoint = self.checkpoint and self.checkpoint._replace(contents={})
        return self._replace(checkpoint=checkpoint)


def find_checkpoint(folder: Path, requested: Literal["required", "auto"] | None, *, trains: bool = True) -> Resumption:
    """Find what last_checkpoint names if that is intact, else the newest intact checkpoint of the run.

    model_best.pth is taken where no other is intact. No run is ever written over. The folder, OUTPUT_DIR, need not
    exist; `requested` is the value of --resume; what is found is trained on, or evaluated alone.
    """
    seen = _state_of(folder)
    named = _named(folder)
    names = [name for name, *_ in seen]
    saved = [folder / name for name in names if name == FINAL_CHECKPOINT or PERIODIC_CHECKPOINT.fullmatch(name)]
    best = [folder / BEST_CHECKPOINT] if BEST_CHECKPOINT in names else []
    if named is None and not saved and not best:
        return Resumption(None, _check_without_checkpoint(folder, requested, trains), seen)
    if requested is None:
        what = "checkpoints" if named is None else f"a run ({named})"
        message = f"OUTPUT_DIR is {folder}, which already holds {what}: add --resume to continue, or name another "
        return Resumption(None, Findings([f"{message}OUTPUT_DIR"]), seen)
    reasons: dict[str, str] = {}
    wrong = _problem_of_pointer(folder, named)
    if not wrong:
        if found := _newest_intact([folder / str(named)], reasons):
            return Resumption(found, Findings(), seen)
        wrong = f"{named} is damaged ({reasons[str(named)]})"
    for paths, which in ((saved, "newest"), (best, "only")):
        if found := _newest_intact([path for path in paths if path.name not in reasons], reasons):
            instead = f"resuming from the {which} intact one" if trains else f"evaluating the {which} intact one"
            message = f"--resume: {wrong}; {instead}, {found.path.name}, after {found.done} iterations"
            return Resumption(found, Findings(warnings=[message]), seen)
    listed = "".join(f"\n  {name}: {reason}" for name, reason in sorted(reasons.items()))
    fix = "name another OUTPUT_DIR" if trains else "name weights by MODEL.WEIGHTS, without --resume"
    message = f"--resume: {wrong}; {folder} has no other checkpoint to resume from, so {fix}"
    return Resumption(None, Findings([f"{message}{':' if listed else ''}{listed}"]), seen)


def check_changes(checkpoint: Checkpoint, now: RunRecord, *, allowed: bool) -> Findings:
    """Check that a run may resume from a checkpoint, by the rules of `focal_det.checkpoint.run_record`.

    `now` is the run as it would continue; --allow-changes makes it `allowed`, whatever the rules say.
    """
    name = checkpoint.path.name
    if checkpoint.done > now.config[_LENGTH]:  # where Detectron2's schedules have no learning rate
        message = f"--resume: {name} is after {checkpoint.done} iterations, and {_LENGTH} is {now.config[_LENGTH]}"
        return Findings([f"{message}: set that to {checkpoint.done} or more, or add --eval-only to evaluate it"])
    if checkpoint.record is None:
        message = f"--resume: {name} does not say what it was trained with, so nothing can be compared"
        return Findings(warnings=[f"{message}; make sure that settings and data are as they were"])
    refused, notes = compare(checkpoint.record, now)
    found = Findings(warnings=[f"--resume: {line}" for line in notes])
    if allowed:
        found.warnings += [f"--allow-changes: from iteration {checkpoint.done} on {line}" for line in refused]
    elif refused:
        listed = "".join(f"\n  {line}" for line in refused)
        found.errors.append(
            f"--resume: this would not be the training that {name} belongs to; restore what it was before, or add "
            f"--allow-changes to continue with what it is now:{listed}"
        )
    return found


def choose_seed(cfg: CfgNode, checkpoint: Checkpoint | None) -> tuple[int, Findings]:
    """Return SEED, or where that is negative the seed of the resumed run, or a random one; a warning says which."""
    if cfg.SEED >= 0:
        return cfg.SEED, Findings()
    before = checkpoint.record.config.get("SEED", -1) if checkpoint and checkpoint.record else -1
    if isinstance(before, int) and before >= 0:
        return before, Findings(warnings=[f"SEED is {cfg.SEED}: resuming with the run's, {before}"])
    drawn = secrets.randbelow(2**31)
    return drawn, Findings(warnings=[f"SEED is {cfg.SEED}: drew {drawn}, which config.yaml will hold"])


@contextmanager
def folder_taken(output_dir: str, resumption: Resumption) -> Iterator[None]:
    """Hold the folder for this training alone.

    What a killed one was still writing is removed. The metrics of one that ended before its first checkpoint are put
    aside. Raises InputError if another training holds it, or it is not as it was when the decision was made; nothing
    was changed.
    """
    folder = Path(output_dir)
    with FolderLock(output_dir):
        if _state_of(folder) != resumption.seen:
            raise InputError(
                f"OUTPUT_DIR {folder}: another training has written here since this one looked; start again"
            )
        for path in folder.iterdir():
            if _PARTIAL.fullmatch(path.name) and path.is_file():
                path.unlink()
        if resumption.checkpoint is None and _has_metrics(folder):
            metrics = folder / METRICS
            print(f"{metrics} of a run that ended before its first checkpoint is now {put_aside(metrics)}", flush=True)
        yield


def _state_of(folder: Path) -> FolderState:
    if not os.path.isdir(folder):
        return frozenset()
    return frozenset(
        (entry.name, *_size_and_time(entry))
        for entry in os.scandir(folder)
        if (entry.name in (LAST_CHECKPOINT, METRICS) or entry.name.endswith(".pth")) and not entry.name.startswith(".")
    )


def _size_and_time(entry: os.DirEntry[str]) -> tuple[int, int]:
    try:
        state = entry.stat()
    except OSError:  # a link to nothing
        return 0, 0
    return state.st_size, state.st_mtime_ns


def _has_metrics(folder: Path) -> bool:
    return os.path.isfile(folder / METRICS) and (folder / METRICS).stat().st_size > 0


def _check_without_checkpoint(folder: Path, requested: str | None, trains: bool) -> Findings:
    if requested == "required":
        instead = "start fresh" if trains else "evaluate MODEL.WEIGHTS then"
        return Findings([f"--resume: no {LAST_CHECKPOINT} in {folder}; use --resume auto to {instead}"])
    if requested is None and _has_metrics(folder):
        message = f"OUTPUT_DIR is {folder}, which holds a run that ended before its first checkpoint"
        return Findings([f"{message}: name another, or add --resume auto to start again in it"])
    return Findings()


def _named(folder: Path) -> str | None:
    """Return what last_checkpoint says, or None if there is none."""
    pointer = folder / LAST_CHECKPOINT
    return pointer.read_bytes()[:256].decode(errors="replace").strip() if os.path.isfile(pointer) else None


def _problem_of_pointer(folder: Path, name: str | None) -> str:
    """Return why what last_checkpoint says is not the name of a file in the folder, or ""."""
    if name is None:
        return f"no {LAST_CHECKPOINT} in {folder}"
    if not name or Path(name).name != name or len(name) > 255 or not os.path.isfile(folder / name):
        return f"{folder / LAST_CHECKPOINT} names {name!r}, which is not a checkpoint in that folder"
    return ""


def _newest_intact(paths: Sequence[Path], reasons: dict[str, str]) -> Checkpoint | None:
    """Return that of most iterations; `reasons` gets, by name, why others that were looked at cannot be used."""

    def read(path: Path, *, checksums: bool) -> Checkpoint | None:
        try:
            return _read(path, checksums=checksums)
        except DamagedError as error:
            reasons[path.name] = str(error)
            return None

    if len(paths) > 1:  # order them by what they say, before the checksums of one after the other are compared
        done = {path: checkpoint.done for path in paths if (checkpoint := read(path, checksums=False))}
        paths = sorted(done, key=lambda path: (done[path], path.name), reverse=True)
    return next((checkpoint for path in paths if (checkpoint := read(path, checksums=True))), None)


def _read(path: Path, *, checksums: bool) -> Checkpoint:
    held = contents(path, checksums=checksums)
    try:
        iteration, optimizer = held["trainer"]["iteration"], held["trainer"]["_trainer"]["optimizer"]
        held["model"]
    except (LookupError, TypeError):
        raise DamagedError("it holds weights alone, no optimiser and iteration to resume from") from None
    if type(iteration) is not int or not 0 <= iteration < _MOST_ITERATIONS:
        raise DamagedError(f"its iteration is {cut(repr(iteration), 40)}")
    if not isinstance(optimizer, dict) or not {"state", "param_groups"} <= optimizer.keys():
        raise DamagedError("its optimiser is not as PyTorch writes it")
    return Checkpoint(path, iteration + 1, RunRecord.read(held.get("run")), held)
