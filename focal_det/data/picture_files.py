"""Opening pictures, and nothing but pictures."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from PIL import Image

# Pillow knows some 40 formats more, among them EPS: a program, for which it starts Ghostscript.
_FORMATS = (
    *("AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM", "SGI", "TGA", "TIFF", "WEBP"),
)


def open_picture(file: str | Path | BinaryIO) -> Image.Image:
    """`PIL.Image.open` of the formats that pictures come in, whatever the file's name says.

    Raises:
        PIL.UnidentifiedImageError: it is in none of them.
        Exception: whatever else Pillow may raise on somebody's file.
    """
    Image.init()
    return Image.open(file, formats=[name for name in _FORMATS if name in Image.OPEN])  # AVIF is not in every build
