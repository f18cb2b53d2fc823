"""From a file to the network's input, as Detectron2 reads and resizes, but without it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..data.exif import orientation
from ..data.picture_files import open_picture

_UPRIGHT = {  # how a picture of each orientation is turned upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class PictureError(ValueError):
    """A file that cannot be read as a picture.

    Attributes:
        path: the file.
        reason: what is wrong with it.
    """

    def __init__(self, path: str | Path, reason: str) -> None:
        self.path, self.reason = path, reason
        super().__init__(f"{path}: {reason}")


def read_picture(path: str | Path) -> np.ndarray:
    """Read a picture, upright by its EXIF orientation; of several frames the first.

    Returns:
        (H, W, 3) uint8 BGR, the same as Detectron2's `read_image` gives.

    Raises:
        PictureError: the file is missing, no picture, truncated, or otherwise not to be decoded.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise PictureError(path, "a folder, no picture")
        if path.stat().st_size == 0:
            raise PictureError(path, "the file is empty")
        with open_picture(path) as image:
            return to_bgr(image)
    except PictureError:
        raise
    except FileNotFoundError:
        raise PictureError(path, "no such file") from None
    except UnidentifiedImageError:
        raise PictureError(path, "no picture of a known format") from None
    except OSError as error:
        raise PictureError(path, error.strerror or str(error)) from error
    except Exception as error:  # whatever a decoder may raise on somebody's file
        raise PictureError(path, f"{type(error).__name__}: {error}") from error


def to_bgr(image: Image.Image) -> np.ndarray:
    """A PIL image of any mode, upright, as (H, W, 3) uint8 BGR."""
    turn = _UPRIGHT.get(orientation(image))
    upright = image if turn is None else image.transpose(turn)
    colours = upright if upright.mode == "RGB" else upright.convert("RGB")  # a copy, which may take 500 MB
    return np.ascontiguousarray(np.asarray(colours)[:, :, ::-1])


def resized_shape(height: int, width: int, min_size: int, max_size: int) -> tuple[int, int]:
    """Height and width with the shorter side `min_size`, or less where the longer would exceed `max_size`.

    Args:
        min_size: pixels; 0 leaves the picture as it is.
    """
    if min_size == 0:
        return height, width
    scale = min_size / min(height, width)
    sides = [float(min_size), scale * width] if height < width else [scale * height, float(min_size)]
    if max(sides) > max_size:  # in these steps, so that halves are rounded as Detectron2 does
        scale = max_size / max(sides)
        sides = [side * scale for side in sides]
    return max(1, int(sides[0] + 0.5)), max(1, int(sides[1] + 0.5))


def resize_shortest_edge(picture: np.ndarray, min_size: int, max_size: int) -> np.ndarray:
    """Resize (H, W, 3) uint8 by PIL's bilinear filter to `resized_shape`, as Detectron2's ResizeShortestEdge."""
    height, width = resized_shape(picture.shape[0], picture.shape[1], min_size, max_size)
    if (height, width) == picture.shape[:2]:
        return picture
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR))


def to_batch(pictures: Sequence[np.ndarray], divisor: int) -> tuple[np.ndarray, np.ndarray]:
    """Put pictures into one array, with zeros right of and below each.

    Args:
        pictures: (H, W, 3) uint8 each, in the model's order of channels.
        divisor: of the batch's height and width, the least that holds all pictures; 0 or 1 for none.

    Returns:
        images: (N, 3, H', W') uint8.
        sizes: (N, 2) int64, height and width of each picture.
    """
    sizes = np.array([picture.shape[:2] for picture in pictures], dtype=np.int64)
    step = max(divisor, 1)
    height, width = -(-sizes.max(axis=0) // step) * step
    images = np.zeros((len(pictures), 3, height, width), dtype=np.uint8)
    for image, picture in zip(images, pictures, strict=True):
        image[:, : picture.shape[0], : picture.shape[1]] = picture.transpose(2, 0, 1)
    return images, sizes


def alike_in_size(pictures: Sequence[np.ndarray], batch_size: int) -> list[list[int]]:
    """Indices of the pictures in batches of at most `batch_size` of equal height and width.

    Padding is seen by the convolutions at a picture's border, so a picture padded to another's size would get slightly
    other detections than by itself.
    """
    of_size: dict[tuple[int, ...], list[int]] = {}
    for index, picture in enumerate(pictures):
        of_size.setdefault(picture.shape[:2], []).append(index)
    return [same[i : i + batch_size] for same in of_size.values() for i in range(0, len(same), batch_size)]
