"""From a file to the network's input: reads and resizes as Detectron2 does, but without it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..formats.image_files import mode_problem, open_image, orientation, unread_kind

_UPRIGHT = {  # what turns an image of each orientation upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


ImageInput = str | Path | np.ndarray | Image.Image


class ImageError(ValueError):
    """A file that cannot be read as an image, and the reason."""

    def __init__(self, path: str | Path, reason: str) -> None:
        self.path, self.reason = path, reason
        super().__init__(f"{path}: {reason}")


def read_image(path: str | Path) -> np.ndarray:
    """Read an image, turned upright by its EXIF orientation; only the first of several frames.

    Returns:
        (H, W, 3) uint8 BGR, the same as Detectron2's `read_image` gives.

    Raises:
        ImageError: the file is missing, not an image, truncated, or cannot be decoded for another reason.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise ImageError(path, "a folder, not an image; name the images in it")
        if path.stat().st_size == 0:
            raise ImageError(path, "the file is empty")
        with open_image(path) as image:
            return to_bgr(image, path)
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(path, "no such file") from None
    except UnidentifiedImageError:
        kind = unread_kind(path)
        raise ImageError(path, f"{kind}; convert it to JPEG" if kind else "not an image of a known format") from None
    except OSError as error:
        raise ImageError(path, error.strerror or str(error)) from error
    except Exception as error:  # whatever a decoder may raise on somebody's file
        raise ImageError(path, f"{type(error).__name__}: {error}") from error


def to_bgr(image: Image.Image, path: str | Path = "image") -> np.ndarray:
    """Convert a PIL image, turned upright, to (H, W, 3) uint8 BGR.

    Raises:
        ImageError: it has more than 8 bits a channel, or a mode without conversion to RGB.
    """
    if problem := mode_problem(image):
        raise ImageError(path, f"images of mode {image.mode} {problem}")
    turn = _UPRIGHT.get(orientation(image))
    upright = image if turn is None else image.transpose(turn)
    colours = upright if upright.mode == "RGB" else upright.convert("RGB")  # a copy, which may take 500 MB
    return np.ascontiguousarray(np.asarray(colours)[:, :, ::-1])


def as_array(image: object) -> np.ndarray:
    """Return an `ImageInput` as (H, W, 3) uint8 BGR.

    Raises:
        ImageError: a file that is not an image.
        ValueError: an array of another kind, or none of these.
    """
    if isinstance(image, (str, Path)):
        return read_image(image)
    if isinstance(image, Image.Image):
        return to_bgr(image)
    if not isinstance(image, np.ndarray):
        kind = type(image).__name__
        raise ValueError(f"an image is a file name, a PIL image or an array (H, W, 3) uint8 BGR, not {kind}")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(f"an image is (H, W, 3) uint8 BGR, not {image.shape} {image.dtype}")
    return image


def resized_shape(height: int, width: int, min_size: int, max_size: int) -> tuple[int, int]:
    """Return height and width with the shorter side `min_size`, or less where the longer would exceed `max_size`.

    A `min_size` of 0 leaves the image as it is.
    """
    if min_size == 0:
        return height, width
    scale = min_size / min(height, width)
    sides = [float(min_size), scale * width] if height < width else [scale * height, float(min_size)]
    if max(sides) > max_size:  # in these steps, so that halves are rounded as Detectron2 does
        scale = max_size / max(sides)
        sides = [side * scale for side in sides]
    return max(1, int(sides[0] + 0.5)), max(1, int(sides[1] + 0.5))


def resize_shortest_edge(image: np.ndarray, min_size: int, max_size: int) -> np.ndarray:
    """Resize (H, W, 3) uint8 by PIL's bilinear filter to `resized_shape`, as Detectron2's ResizeShortestEdge."""
    height, width = resized_shape(image.shape[0], image.shape[1], min_size, max_size)
    if (height, width) == image.shape[:2]:
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def to_batch(images: Sequence[np.ndarray], divisor: int) -> tuple[np.ndarray, np.ndarray]:
    """Put images into one array, padded with zeros on the right and below.

    Args:
        images: (H, W, 3) uint8 each, in the model's order of channels.
        divisor: the batch's height and width are the least multiples of it that hold all images; 0 or 1 for none.

    Returns:
        images: (N, 3, H', W') uint8.
        sizes: (N, 2) int64, height and width of each image.
    """
    sizes = np.array([image.shape[:2] for image in images], dtype=np.int64)
    step = max(divisor, 1)
    height, width = -(-sizes.max(axis=0) // step) * step
    batch = np.zeros((len(images), 3, height, width), dtype=np.uint8)
    for slot, image in zip(batch, images, strict=True):
        slot[:, : image.shape[0], : image.shape[1]] = image.transpose(2, 0, 1)
    return batch, sizes


def alike_in_size(images: Sequence[np.ndarray], batch_size: int) -> list[list[int]]:
    """Return the images' indices in batches of at most `batch_size` of equal height and width.

    Convolutions see padding at an image's border, so padded to another's size an image would get slightly different
    detections than alone.
    """
    by_size: dict[tuple[int, ...], list[int]] = {}
    for index, image in enumerate(images):
        by_size.setdefault(image.shape[:2], []).append(index)
    return [same[i : i + batch_size] for same in by_size.values() for i in range(0, len(same), batch_size)]
