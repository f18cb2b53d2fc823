"""The EXIF tag of a picture's orientation, and what passes for upright."""

import pytest
from PIL import Image

from focal_det.data.exif import MIRRORED, TURNED, orientation


@pytest.mark.parametrize("value", [None, *range(1, 9)])
def test_the_tag_is_read(tmp_path, value):
    exif = Image.Exif()
    if value is not None:
        exif[0x0112] = value
    Image.new("RGB", (4, 2)).save(tmp_path / "x.jpg", exif=exif)
    with Image.open(tmp_path / "x.jpg") as picture:
        assert orientation(picture) == (value or 1)


def test_every_value_is_upright_turned_or_mirrored():
    assert sorted((1, *TURNED, *MIRRORED)) == list(range(1, 9))


def test_a_tag_that_cannot_be_read_is_upright(monkeypatch):
    picture = Image.new("RGB", (4, 2))
    monkeypatch.setattr(picture, "getexif", lambda: {0x0112: "up"})
    assert orientation(picture) == 1
    monkeypatch.setattr(picture, "getexif", lambda: 1 / 0)
    assert orientation(picture) == 1
