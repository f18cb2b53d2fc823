"""Whether the pictures that an annotation file names are there, whole, and of the size that it says."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from PIL import Image
from tqdm import tqdm

from ..errors import some
from .exif import MIRRORED, TURNED, orientation
from .folders import IrregularFileError, open_regular
from .picture_files import open_picture

_THREADS = 8  # they wait for the disk, and decoders run beside one another
_SHOW_PROGRESS_FROM = 2000  # pictures; a bar comes for fewer too once they take longer than this:
_SHOW_PROGRESS_AFTER = 2.0  # seconds
_START_OF_SCAN, _END_OF_JPEG = b"\xff\xda", b"\xff\xd9"
_END = {"JPEG": _END_OF_JPEG, "MPO": _END_OF_JPEG, "PNG": b"IEND\xaeB`\x82"}  # of a whole file
_TAIL = 64  # bytes; so many zeros in the place of the end are no picture's data


class PictureFault(NamedTuple):
    """What is wrong with one picture.

    place: of the picture among those that were looked at.
    kind: the rest of the sentence "3 of 9 pictures ...", the same for all pictures of the kind.
    detail: the name of the picture, and what it is.
    """

    place: int
    kind: str
    detail: str


class PictureReport(NamedTuple):
    """faults: at most one of each picture, in their order; notes: what may be right, in words."""

    faults: list[PictureFault]
    notes: list[str]


def look_at_pictures(images: Sequence[Mapping[str, Any]], folder: Path, *, decode: bool = False) -> PictureReport:
    """Open every picture, and decode those whose file does not end as it should.

    Args:
        images: with "file_name", "width", "height".
        folder: that the names are relative to.
        decode: every picture, which also finds damage in the middle of a file and takes some 10 ms a megapixel.
    """
    few = len(images) < _SHOW_PROGRESS_FROM
    with ThreadPoolExecutor(_THREADS) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, on pictures that it reads; it still refuses those beyond its bound
        looks = pool.map(partial(_look, folder, decode), images)
        words = "decoding pictures" if decode else "opening pictures"
        bar = tqdm(looks, words, len(images), delay=_SHOW_PROGRESS_AFTER if few else 0, leave=False, disable=None)
        found = list(bar)
    faults = [PictureFault(place, *look) for place, look in enumerate(found) if isinstance(look, tuple)]
    mirrored = [repr(images[place]["file_name"]) for place, look in enumerate(found) if look == "mirrored"]
    notes = [
        f"{len(mirrored)} of {len(images)} pictures are turned by 180 degrees or mirrored by their EXIF tag "
        f"({some('', mirrored)}), which Detectron2 obeys: their boxes must be those of the turned picture, as viewers "
        "show it"
    ]
    return PictureReport(faults, notes if mirrored else [])


def fault_lines(faults: Sequence[PictureFault], number: int, folder: Path, *, can_skip: bool = True) -> list[str]:
    """One line for each kind of fault, of so many pictures.

    Args:
        can_skip: whether --skip-bad-images reaches the set.
    """
    or_skip = ", or leave them out with --skip-bad-images" if can_skip else ""
    kinds: dict[str, list[str]] = {}
    for fault in faults:
        kinds.setdefault(fault.kind, []).append(fault.detail)
    return [
        f"{len(details)} of {number} pictures {kind.format(folder=folder, or_skip=or_skip)}: {some('', details)}"
        for kind, details in kinds.items()
    ]


def _look(folder: Path, decode: bool, image: Mapping[str, Any]) -> tuple[str, str] | str | None:
    """Kind and detail of the picture's fault; "mirrored"; or None."""
    name, path = image["file_name"], folder / image["file_name"]
    try:
        with open_regular(path) as file, open_picture(file) as picture:
            turn, size = orientation(picture), picture.size
            tail, end = _tail(file), _END.get(str(picture.format))
            if decode or end is None or end not in tail:
                picture.load()
        if end == _END_OF_JPEG and not tail.strip(b"\0") and _has_no_end(path):
            return _DAMAGED, f"{name!r} (zeros where its end should be)"
    except FileNotFoundError:
        return "are not in {folder}; give their folder{or_skip}", repr(name)
    except IrregularFileError:
        return "are no regular files but folders, pipes or devices; replace them{or_skip}", repr(name)
    except Image.DecompressionBombError:
        return (
            f"are larger than the {2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6} million pixels that Pillow, and so "
            "Detectron2, reads; make them smaller or cut them up",
            repr(name),
        )
    except Exception as error:  # whatever a decoder may raise on somebody's file
        return _DAMAGED, f"{name!r} ({_reason(error)})"
    return _size_fault(name, (image["width"], image["height"]), size, turn) or (
        "mirrored" if turn in MIRRORED else None
    )


_DAMAGED = "cannot be opened or are damaged; replace them{or_skip}"


def _size_fault(name: str, said: tuple[int, int], size: tuple[int, int], turn: int) -> tuple[str, str] | None:
    turned = size[::-1] if turn in TURNED else size
    if said == turned:
        return None
    if turn in TURNED and said == size:
        return (
            "are annotated with their size before their EXIF rotation; Detectron2 and every viewer turn them: rotate "
            "the pixels and drop the tag, or annotate anew",
            f"{name!r} annotated as {_by(said)}, turned to {_by(turned)}",
        )
    if said == size[::-1]:
        return (
            "are annotated with width and height swapped, as if turned by an EXIF rotation that they do not carry: "
            "turn the pixels back, or correct width, height and boxes",
            f"{name!r} annotated as {_by(said)}, but {_by(size)}",
        )
    return (
        "have another size than annotated; correct width and height, and the boxes if the pictures were resized",
        f"{name!r} {_by(turned)}, not {_by(said)}",
    )


def _tail(file: BinaryIO) -> bytes:
    """The file's last bytes, with the position in it left as it was."""
    position = file.tell()
    file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
    tail = file.read()
    file.seek(position)
    return tail


def _has_no_end(path: Path) -> bool:
    """Of a JPEG file that ends in zeros, as after a crash: decoders take them for a grey part of the picture."""
    data = path.read_bytes()
    return data.rfind(_END_OF_JPEG) < data.rfind(_START_OF_SCAN)


def _reason(error: Exception) -> str:
    return "truncated" if "truncated" in str(error) else type(error).__name__


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
