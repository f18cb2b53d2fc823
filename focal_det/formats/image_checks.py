"""Check that the images of an annotation file exist, are intact, and have the size that it states."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from ..errors import some
from ..files import IrregularFileError, open_regular
from .image_files import MIRRORED, TURNED, is_heic, mode_problem, open_image, orientation

_THREADS = 8  # they wait for the disk, and decoders release Python's lock
_SHOW_PROGRESS_FROM = 2000  # images; for fewer a bar appears only once they take longer than this:
_SHOW_PROGRESS_AFTER = 2.0  # seconds
_START_OF_SCAN, _END_OF_JPEG = b"\xff\xda", b"\xff\xd9"
_END = {"JPEG": _END_OF_JPEG, "MPO": _END_OF_JPEG, "PNG": b"IEND\xaeB`\x82"}  # of an intact file
_TAIL = 64  # bytes; so many zeros where the end should be are not an image's data
_NOTES = {
    "mirrored": (
        "are turned by 180 degrees or mirrored by their EXIF tag ({names}), which Detectron2 obeys: their boxes must "
        "be those of the turned image, as viewers show it"
    ),
    "turned square": (
        "are square and turned by 90 degrees by their EXIF tag ({names}), which Detectron2 obeys: their boxes must be "
        "those of the turned image, as viewers show it, which the size does not tell"
    ),
    "frames": "have several frames or pages ({names}), of which only the first is read",
}
MISSING = "are not in {folder}; give their folder{or_skip}"
_DAMAGED = "cannot be opened or are damaged; replace them{or_skip}"


class ImageFault(NamedTuple):
    """A fault of one image.

    position: of the image among those that were checked.
    kind: the rest of the sentence "3 of 9 images ...", the same for all images of the kind.
    detail: the name of the image, and what was found.
    """

    position: int
    kind: str
    detail: str


def look_at_images(
    images: Sequence[Mapping[str, Any]], folder: Path, *, decode: bool = False, marks: dict[int, int] | None = None
) -> tuple[list[ImageFault], list[str]]:
    """Open every image, and decode those whose file does not end as it should.

    Args:
        images: with "file_name", "width", "height".
        folder: that the names are relative to.
        decode: decode all, which also finds damage in the middle of a file and takes some 10 ms a megapixel.
        marks: receives a number for each image by its position, the same for files of the same content and, but for
            chance, for no others; without reading more of them.

    Returns:
        At most one fault for each image, in order, and notes on what may be right.
    """
    few = len(images) < _SHOW_PROGRESS_FROM
    with ThreadPoolExecutor(_THREADS) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, on images that it reads; beyond its limit it raises
        looks = pool.map(partial(_look, folder, decode, {} if marks is None else marks), range(len(images)), images)
        title = "decoding images" if decode else "opening images"
        bar = tqdm(looks, title, len(images), delay=_SHOW_PROGRESS_AFTER if few else 0, leave=False, disable=None)
        found = list(bar)
    faults = [ImageFault(i, *look) for i, look in enumerate(found) if isinstance(look, tuple)]
    notes = []
    for kind, note in _NOTES.items():
        names = [repr(image["file_name"]) for image, look in zip(images, found, strict=True) if look == kind]
        notes += [f"{len(names)} of {len(images)} images {note.format(names=some('', names))}"] if names else []
    return faults, notes


def fault_lines(faults: Sequence[ImageFault], number: int, folder: Path, *, can_skip: bool = True) -> list[str]:
    """Return a line for each kind of fault among `number` images; `can_skip` if --skip-bad-images applies to them."""
    or_skip = ", or leave them out with --skip-bad-images" if can_skip else ""
    kinds: dict[str, list[str]] = {}
    for fault in faults:
        kinds.setdefault(fault.kind, []).append(fault.detail)
    return [
        f"{len(details)} of {number} images {kind.format(folder=folder, or_skip=or_skip)}: {some('', details)}"
        for kind, details in kinds.items()
    ]


def _look(
    folder: Path, decode: bool, marks: dict[int, int], position: int, image: Mapping[str, Any]
) -> tuple[str, str] | str | None:
    """Return kind and detail of the image's fault; a kind of `_NOTES`; or None."""
    name, path = image["file_name"], folder / image["file_name"]
    try:
        with open_regular(path) as file, open_image(file) as opened:
            turn, size, wrong, mode = orientation(opened), opened.size, mode_problem(opened), opened.mode
            (tail, length), end = _tail(file), _END.get(str(opened.format))
            marks[position] = hash((tail, length))
            if decode or end is None or end not in tail:
                opened.load()
            has_frames = _has_frames(opened)
        if end == _END_OF_JPEG and not tail.strip(b"\0") and _has_no_end(path):
            return _DAMAGED, f"{name!r} (zeros where its end should be)"
    except FileNotFoundError:
        return MISSING, repr(name)
    except IrregularFileError:
        return "are not regular files but folders, pipes or devices; replace them{or_skip}", repr(name)
    except Image.DecompressionBombError:
        return (
            f"are larger than the {2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6} million pixels that Pillow reads, and "
            "so Detectron2; reduce or split them",
            repr(name),
        )
    except UnidentifiedImageError as error:
        if _is_heic(path):
            return "are HEIC, which is not read; convert them to JPEG{or_skip}", repr(name)
        return _DAMAGED, f"{name!r} ({type(error).__name__})"
    except Exception as error:  # whatever a decoder may raise on somebody's file
        return _DAMAGED, f"{name!r} ({'truncated' if 'truncated' in str(error) else type(error).__name__})"
    if wrong:
        return f"{wrong}{{or_skip}}", f"{name!r} (mode {mode})"
    if fault := _size_fault(name, (image["width"], image["height"]), size, turn):
        return fault
    if turn in MIRRORED:
        return "mirrored"
    return "turned square" if turn in TURNED and size[0] == size[1] else "frames" if has_frames else None


def _size_fault(name: str, stated: tuple[int, int], size: tuple[int, int], turn: int) -> tuple[str, str] | None:
    turned = size[::-1] if turn in TURNED else size
    if stated == turned:
        return None
    if turn in TURNED and stated == size:
        return (
            "are annotated with their size before their EXIF rotation; Detectron2 and every viewer turn them: rotate "
            "the pixels and drop the tag, or annotate anew",
            f"{name!r} annotated as {_by(stated)}, turned to {_by(turned)}",
        )
    if stated == size[::-1]:
        return (
            "are annotated with width and height swapped, as if turned by an EXIF rotation that they do not carry: "
            "turn the pixels back, or correct width, height and boxes",
            f"{name!r} annotated as {_by(stated)}, but {_by(size)}",
        )
    return (
        "have another size than annotated; correct width and height, and the boxes if the images were resized",
        f"{name!r} {_by(turned)}, not {_by(stated)}",
    )


def _has_frames(image: Image.Image) -> bool:
    """Tell whether an image has more than one frame; an MPO's further ones are a phone's depth map or previews."""
    try:
        return image.format != "MPO" and bool(getattr(image, "is_animated", False))
    except Exception:  # whatever Pillow may raise on a further frame, which is not read
        return False


def _is_heic(path: Path) -> bool:
    with open_regular(path) as file:
        return is_heic(file.read(12))


def _tail(file: BinaryIO) -> tuple[bytes, int]:
    """Return the file's last bytes and its length, without moving the position in it."""
    position, length = file.tell(), file.seek(0, os.SEEK_END)
    file.seek(max(0, length - _TAIL))
    tail = file.read()
    file.seek(position)
    return tail, length


def _has_no_end(path: Path) -> bool:
    """Tell whether a JPEG that ends in zeros was cut off, as by a crash: decoders make a grey area of the zeros."""
    data = path.read_bytes()
    return data.rfind(_END_OF_JPEG) < data.rfind(_START_OF_SCAN)


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
