"""Reading, resizing and batching images; that all this equals Detectron2's is in plugin/test_predictor.py."""

import os

import numpy as np
import pytest
from PIL import Image

from focal_det.inference.images import (
    ImageError,
    alike_in_size,
    read_image,
    resize_shortest_edge,
    resized_shape,
    to_batch,
)


def test_reads_bgr_and_upright(tmp_path):
    # Two pixels, red left of blue, marked "turn by 90 degrees clockwise to see it": red is then above blue.
    image = Image.fromarray(np.array([[[255, 0, 0], [0, 0, 255]]], np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    assert read_image(tmp_path / "turned.png").tolist() == [[[0, 0, 255]], [[255, 0, 0]]]


def test_bad_files_are_named_with_the_reason(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "half.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "none.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "phone.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    Image.fromarray(np.full((4, 4), 300, np.uint16)).save(tmp_path / "deep.png")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    reasons = {
        "half.jpg": "image file is truncated",
        "none.jpg": "the file is empty",
        "text.jpg": "not an image of a known format",
        "folder.jpg": "a folder, not an image",
        "loop.jpg": os.strerror(40),
        "missing.jpg": "no such file",
        "phone.HEIC": "HEIC; convert it to JPEG",
        "deep.png": "images of mode I;16 have more than 8 bits a pixel",
    }
    for name, reason in reasons.items():
        with pytest.raises(ImageError) as caught:
            read_image(tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path / name}: {reason}")


@pytest.mark.parametrize(
    ("shape", "limits", "expected"),
    [
        ((480, 640), (800, 1333), (800, 1067)),  # 640 * 800 / 480 = 1066.67
        ((640, 480), (800, 1333), (1067, 800)),
        ((300, 900), (800, 1333), (444, 1333)),  # 2400 wide is too much: 800 * 1333 / 2400 = 444.33
        ((300, 900), (0, 1333), (300, 900)),
        ((1, 5000), (800, 1333), (1, 1333)),  # .27 pixels would be none
    ],
)
def test_the_shorter_side_is_given_unless_the_longer_grows_too_long(shape, limits, expected):
    assert resized_shape(*shape, *limits) == expected
    assert resize_shortest_edge(np.zeros((*shape, 3), np.uint8), *limits).shape == (*expected, 3)


def test_a_batch_is_padded_right_and_below():
    small, large = np.full((2, 3, 3), 7, np.uint8), np.full((5, 4, 3), 9, np.uint8)
    images, sizes = to_batch([small, large], 4)
    assert images.shape == (2, 3, 8, 4)
    assert sizes.tolist() == [[2, 3], [5, 4]]
    assert images[0].sum() == 7 * small.size  # the image and zeros
    assert (images[0, :, :2, :3] == 7).all()
    assert to_batch([small], 0)[0].shape == (1, 3, 2, 3)


def test_batches_are_of_one_size_and_lose_nobody():
    shapes = [(2, 3), (3, 2), (2, 3), (2, 3)]
    assert alike_in_size([np.zeros((*shape, 3)) for shape in shapes], 2) == [[0, 2], [3], [1]]
