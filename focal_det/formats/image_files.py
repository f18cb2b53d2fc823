"""Image files: which formats are opened, whether their names leave the folder, and how EXIF turns them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from ..errors import cut, some

# Pillow reads some 40 more formats, among them EPS, a program, for which it starts Ghostscript.
_FORMATS = ["AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "MPO"]
_FORMATS += ["PCX", "PNG", "PPM", "SGI", "TGA", "TIFF", "WEBP"]
_ORIENTATION = 0x0112  # the tag
TURNED = (5, 6, 7, 8)  # its values that swap width and height
MIRRORED = (2, 3, 4)  # those that turn by 180 degrees or mirror, which the size does not show
FLAG = "--allow-outside-images"
# Absolute, or up by "..", on any system, since a file may be read on another one.
_OUTSIDE = re.compile(r"[/\\]|[A-Za-z]:[/\\]|(.*[/\\])?\.\.([/\\]|$)", re.DOTALL)


def open_image(file: str | Path | BinaryIO) -> Image.Image:
    """Open an image by `PIL.Image.open`, in the formats above alone, whatever the file's suffix.

    Raises:
        PIL.UnidentifiedImageError: it is in none of them.
        Exception: whatever else Pillow may raise on somebody's file.
    """
    Image.init()
    return Image.open(file, formats=[name for name in _FORMATS if name in Image.OPEN])  # AVIF is not in every build


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation; 1, upright, where it is missing or cannot be read, as the image may still be sound.

    Raises:
        Exception: whatever Pillow raises on a PNG that cannot be decoded.
    """
    if image.format == "PNG":
        image.load()  # as getexif does: its error would be lost below, and the rest of the image stay black
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # whatever Pillow may raise on somebody's file
        return 1


def leads_outside(name: str) -> bool:
    """Tell whether a name by itself may lead to a file outside its folder."""
    # A symbolic link in the folder is followed wherever it leads: whoever put it there could read the folder anyway.
    return _OUTSIDE.match(name) is not None


def name_problems(images: Sequence[Mapping[str, Any]], *, allow_outside: bool) -> list[str]:
    """Return names that no file can have, and names that lead outside, with the images' ids."""
    problems = []
    impossible = _named(image for image in images if "\0" in image["file_name"])
    if impossible:
        problems.append(
            f"{len(impossible)} file_names hold a NUL, which no file's name can; correct them: {some('', impossible)}"
        )
    outside = [] if allow_outside else _named(image for image in images if leads_outside(image["file_name"]))
    if outside:
        problems.append(
            f"{len(outside)} of {len(images)} file_names lead out of the folder of images: {some('', outside)}; make "
            f"them relative to that folder, or, where you trust the file and know what it names, add {FLAG}"
        )
    return problems


def _named(images: Any) -> list[str]:
    return [f"{cut(repr(image['file_name']))} (image id={image['id']})" for image in images]
