"""How a picture is to be turned before it is looked at, as its EXIF tag says, which Detectron2 obeys as viewers do."""

from __future__ import annotations

from PIL import Image

_ORIENTATION = 0x0112  # the tag
TURNED = (5, 6, 7, 8)  # its values that swap width and height
MIRRORED = (2, 3, 4)  # those that turn by 180 degrees or mirror, which the size does not show


def orientation(picture: Image.Image) -> int:
    """The tag's value; 1, upright, where it is missing or cannot be read: the picture itself may be sound.

    Raises:
        Exception: whatever Pillow raises on a PNG that cannot be decoded.
    """
    if picture.format == "PNG":
        picture.load()  # as getexif does: its error would be lost below, and the rest of the picture stay black
    try:
        return int(picture.getexif().get(_ORIENTATION, 1))
    except Exception:  # whatever Pillow may raise on somebody's file
        return 1
