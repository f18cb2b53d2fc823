"""Whether a .pth file that a run wrote is intact, and which of its best ones is better.

PyTorch writes a zip archive with a checksum (CRC-32) of each record, but does not look at them when it reads.
"""

from __future__ import annotations

import math
import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import cut, first_line
from ..output_layout import BEST_CHECKPOINT, BEST_EMA_CHECKPOINT

_CHUNK = 1 << 20  # bytes that are read at a time
_END = struct.Struct("<4s4H2LH")  # of an archive: signature, disks, records here and in all, directory, comment
_SIGNATURE, _IN_ZIP64 = b"PK\5\6", 0xFFFF


class DamagedError(Exception):
    """A file is not an intact checkpoint; the message says why in a few words."""


def damage(path: Path) -> str | None:
    """Return why a file is not a checkpoint as it was written, in a few words, or None.

    Reads all of it, about a second for 300 MB from memory; nothing that it holds is run.
    """
    try:
        contents(path, checksums=True)
    except DamagedError as error:
        return str(error)
    return None


def contents(path: Path, *, checksums: bool = False) -> dict[str, Any]:
    """Return what a checkpoint holds, with tensors that are read from the file as they are used.

    With `checksums` that of each record is compared first, for which the whole file is read. Raises DamagedError: it
    cannot be read, is not as it was written, or holds anything but plain data and tensors.
    """
    with _opened(path) as archive:
        _check_directory(archive, path)
        for record in archive.infolist() if checksums else ():
            try:
                with archive.open(record) as stream:  # which compares the checksum at the end
                    while stream.read(_CHUNK):
                        pass
            except Exception as error:
                raise DamagedError(f"its record {record.filename!r} is not as it was written") from error
    try:
        held = load_plain(path, mmap=True)
    except Exception as error:  # whatever a reader of somebody's file may raise
        raise DamagedError(f"it cannot be read as plain data: {cut(first_line(error), 120)}") from error
    if not isinstance(held, dict):
        raise DamagedError(f"it holds a {type(held).__name__}, not a checkpoint")
    return held


def best_weights(output_dir: Path) -> tuple[Path | None, float]:
    """Return the better of model_best.pth and model_best_ema.pth, and the AP that it says it has, in points.

    The AP is nan where the file does not say it, the file None where there is neither.
    """
    files = [path for name in (BEST_CHECKPOINT, BEST_EMA_CHECKPOINT) if (path := output_dir / name).is_file()]
    both = [(path, _recorded_ap(path)) for path in files]
    return max(both, key=lambda each: -math.inf if math.isnan(each[1]) else each[1], default=(None, math.nan))


def _recorded_ap(path: Path) -> float:
    try:
        return float(contents(path)["best"]["AP"])
    except (DamagedError, LookupError, TypeError, ValueError):
        return math.nan


def load_plain(path: str | Path, *, mmap: bool = False) -> Any:
    """Return what `torch.save` wrote, of tensors, numbers and texts alone, on the CPU.

    With `mmap` tensors are read from the file as they are used; it must not be written over meanwhile. Raises
    pickle.UnpicklingError, which says what else is in it; nothing of that was run.
    """
    try:
        # Explicit, so that neither a default nor TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD can change it.
        return torch.load(path, map_location="cpu", mmap=mmap, weights_only=True)
    except pickle.UnpicklingError as error:  # which begins with how to run what is in it
        raise pickle.UnpicklingError(str(error.__context__ or error).split(". ")[0]) from None


def save_plain(content: Mapping[str, Any], file: Path) -> None:
    """`torch.save`; a full disk raises the system's OSError, not the RuntimeError that PyTorch's writer makes of it."""
    try:
        with file.open("wb") as stream:
            torch.save(content, stream)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from error
        raise


def _opened(path: Path) -> zipfile.ZipFile:
    if not path.is_file():
        raise DamagedError("it is a folder" if path.is_dir() else "no such file")
    if not path.stat().st_size:
        raise DamagedError("it is empty")
    try:
        return zipfile.ZipFile(path)
    except OSError as error:
        raise DamagedError(f"it cannot be read: {error.strerror}") from error
    except Exception as error:
        raise DamagedError("it is cut off, or never was a checkpoint") from error


def _check_directory(archive: zipfile.ZipFile, path: Path) -> None:
    """Make sure that each record is there once and as large as it says, so that every reader reads the same."""
    records = archive.infolist()
    with path.open("rb") as file:
        file.seek(-_END.size, 2)
        signature, *_, count, _, _, comment = _END.unpack(file.read(_END.size))
    if signature != _SIGNATURE or comment or count not in (len(records), _IN_ZIP64):
        raise DamagedError("its directory is not as PyTorch writes it")
    if any(r.compress_type != zipfile.ZIP_STORED or r.file_size != r.compress_size for r in records):
        raise DamagedError("it holds compressed records, which PyTorch does not write")
    if len({record.filename for record in records}) < len(records):
        raise DamagedError("it holds two records of one name")
    if sum(record.file_size for record in records) > path.stat().st_size:
        raise DamagedError("its records are larger than the file")
