"""What --resume goes on from, whether it may, and how a training takes over its folder."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from detectron2.config import CfgNode

from ..engine.checkpoint_file import DamagedError, contents, damage
from ..engine.checkpoints import BEST, POINTER
from ..engine.lock import FolderLock
from ..engine.run_record import RunRecord, compare
from ..errors import InputError, cut
from ..files import put_aside

_OF_A_RUN = re.compile(r"model_(\d{7}|final)\.pth")
# What `focal_det.files.written_whole` was writing when it was killed.
_PARTIAL = re.compile(r"\.\d+(-[0-9a-f]{8})?\.part(\.pth)?")
_SEEDS = 2**31
_MOST_ITERATIONS = 2**62

# Name, size and time of change of what a training writes last.
FolderState = frozenset[tuple[str, int, int]]


class Checkpoint(NamedTuple):
    """One that a training can go on from.

    done: iterations.
    record: None if it was written before checkpoints had one.
    """

    path: Path
    done: int
    record: RunRecord | None


class Resumption(NamedTuple):
    """What a training begins with.

    checkpoint: None to start anew.
    warnings: where that is not what last_checkpoint names.
    problems: what speaks against it.
    seen: the folder as it was looked at.
    """

    checkpoint: Checkpoint | None
    warnings: list[str]
    problems: list[str]
    seen: FolderState


def find_checkpoint(folder: Path, wish: str | None) -> Resumption:
    """What last_checkpoint names if that is whole, else the newest whole checkpoint of the run.

    model_best.pth is taken where no other is whole. No run is ever written over.

    Args:
        folder: OUTPUT_DIR; may not be there.
        wish: of --resume, "required", "auto" or None.
    """
    seen = _state_of(folder)
    named = _named(folder)
    of_run = [folder / name for name, *_ in seen if _OF_A_RUN.fullmatch(name)]
    best = [folder / name for name, *_ in seen if name == f"{BEST}.pth"]
    if named is None and not of_run and not best:
        return Resumption(None, [], _problems_of_none(folder, wish), seen)
    if wish is None:
        what = "checkpoints" if named is None else f"a run ({named})"
        problem = f"OUTPUT_DIR is {folder}, which already holds {what}: add --resume to go on with it, or name another "
        return Resumption(None, [], [problem + "OUTPUT_DIR"], seen)
    reasons: dict[str, str] = {}
    pointed, wrong = _pointed(folder, named)
    found = _newest_whole(pointed, reasons)
    if found:
        return Resumption(found, [], [], seen)
    wrong = wrong or f"{named} is damaged ({reasons[str(named)]})"
    found = _newest_whole([path for path in of_run if path.name not in reasons], reasons)
    which = "newest whole one"
    if not found:
        found, which = _newest_whole([path for path in best if path.name not in reasons], reasons), "only whole one"
    if found:
        told = f"{wrong}; going on from the {which}, {found.path.name}, after {found.done} iterations"
        return Resumption(found, [f"--resume: {told}"], [], seen)
    listed = "".join(f"\n  {name}: {reason}" for name, reason in sorted(reasons.items()))
    problem = f"--resume: {wrong}; {folder} has no other checkpoint to go on from, so name another OUTPUT_DIR"
    return Resumption(None, [], [f"{problem}{':' if listed else ''}{listed}"], seen)


def change_lines(checkpoint: Checkpoint, now: RunRecord, *, allowed: bool) -> tuple[list[str], list[str]]:
    """Warnings and problems of a run that goes on with a checkpoint of another one; see `engine.run_record`.

    Args:
        allowed: by --allow-changes.
    """
    name = checkpoint.path.name
    if checkpoint.record is None:
        return [
            f"--resume: {name} does not say what it was trained with, so that nothing can be compared; see to it that "
            "settings and data are those of before"
        ], []
    refused, notes = compare(checkpoint.record, now)
    warnings = [f"--resume: {line}" for line in notes]
    if not refused:
        return warnings, []
    if allowed:
        return [*warnings, *(f"--allow-changes: from iteration {checkpoint.done} on {line}" for line in refused)], []
    listed = "".join(f"\n  {line}" for line in refused)
    return warnings, [
        f"--resume: this would not be the training that {name} is of; restore what it was before, or add "
        f"--allow-changes to go on with what it is now:{listed}"
    ]


def settle_seed(cfg: CfgNode, checkpoint: Checkpoint | None) -> str | None:
    """Set a negative SEED to that of the run that goes on, or to a random one; what there is to say of it."""
    if cfg.SEED >= 0:
        return None
    before = checkpoint.record.config.get("SEED", -1) if checkpoint and checkpoint.record else -1
    told = f"SEED is {cfg.SEED}: "
    if isinstance(before, int) and before >= 0:
        cfg.SEED = before
        return f"{told}going on with the run's, {before}"
    cfg.SEED = secrets.randbelow(_SEEDS)
    return f"{told}drew {cfg.SEED}, which config.yaml will hold"


@contextmanager
def folder_taken(output_dir: str, resumption: Resumption) -> Iterator[None]:
    """Have the folder for this training alone.

    What a killed one was still writing goes. The metrics of one that ended before its first checkpoint are put aside.

    Raises:
        InputError: another training is in it, or it is not as it was when the decision fell; nothing was changed.
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
        metrics = folder / "metrics.json"
        if resumption.checkpoint is None and metrics.is_file() and metrics.stat().st_size:
            print(f"{metrics} of a run that ended before its first checkpoint is now {put_aside(metrics)}", flush=True)
        yield


def _state_of(folder: Path) -> FolderState:
    names = (POINTER, "metrics.json")
    if not os.path.isdir(folder):
        return frozenset()
    return frozenset(
        (entry.name, *_size_and_time(entry))
        for entry in os.scandir(folder)
        if (entry.name in names or entry.name.endswith(".pth")) and not entry.name.startswith(".")
    )


def _size_and_time(entry: os.DirEntry[str]) -> tuple[int, int]:
    try:
        state = entry.stat()
    except OSError:  # a link to nothing
        return 0, 0
    return state.st_size, state.st_mtime_ns


def _problems_of_none(folder: Path, wish: str | None) -> list[str]:
    """Of a folder without checkpoints."""
    metrics = folder / "metrics.json"
    if wish == "required":
        return [f"--resume: no last_checkpoint in {folder}; use --resume auto to start fresh"]
    if wish is None and os.path.isfile(metrics) and metrics.stat().st_size:
        return [
            f"OUTPUT_DIR is {folder}, which holds a run that ended before its first checkpoint: name another, or add "
            "--resume auto to start again in it"
        ]
    return []


def _named(folder: Path) -> str | None:
    """What last_checkpoint says; None if there is none."""
    pointer = folder / POINTER
    return pointer.read_bytes()[:256].decode(errors="replace").strip() if os.path.isfile(pointer) else None


def _pointed(folder: Path, name: str | None) -> tuple[list[Path], str]:
    """The file that last_checkpoint names, or what is wrong with that."""
    if name is None:
        return [], f"no last_checkpoint in {folder}"
    if not name or Path(name).name != name or len(name) > 255 or not os.path.isfile(folder / name):
        return [], f"{folder / POINTER} names {name!r}, which is no checkpoint in that folder"
    return [folder / name], ""


def _newest_whole(paths: Iterable[Path], reasons: dict[str, str]) -> Checkpoint | None:
    """That of most iterations; `reasons` gets why others that were looked at are none."""
    known = []
    for path in paths:
        try:
            known.append(_described(path))
        except DamagedError as error:
            reasons[path.name] = str(error)
    for checkpoint in sorted(known, key=lambda each: (each.done, each.path.name), reverse=True):
        reason = damage(checkpoint.path)
        if reason is None:
            return checkpoint
        reasons[checkpoint.path.name] = reason
    return None


def _described(path: Path) -> Checkpoint:
    held = contents(path)
    try:
        iteration, optimizer = held["trainer"]["iteration"], held["trainer"]["_trainer"]["optimizer"]
        held["model"]
    except (LookupError, TypeError):
        raise DamagedError("it holds weights alone, no optimiser and iteration to go on from") from None
    if type(iteration) is not int or not 0 <= iteration < _MOST_ITERATIONS:
        raise DamagedError(f"its iteration is {cut(repr(iteration), 40)}")
    if not isinstance(optimizer, dict) or not {"state", "param_groups"} <= optimizer.keys():
        raise DamagedError("its optimiser is not as PyTorch's are")
    return Checkpoint(path, iteration + 1, RunRecord.read(held.get("run")))
