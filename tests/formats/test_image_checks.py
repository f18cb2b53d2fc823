"""Images as people have them: missing, cut off, filled with zeros, turned by EXIF, too large."""

import io

import numpy as np
import pytest
from PIL import Image

from focal_det.formats.image_checks import fault_lines, look_at_images

ORIENTATION = 0x0112
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3)).astype(np.uint8))


def encoded(kind, *, turn=None, image=NOISE):
    exif = Image.Exif()
    if turn:
        exif[ORIENTATION] = turn
    file = io.BytesIO()
    image.save(file, kind, exif=exif)
    return file.getvalue()


@pytest.fixture
def look(tmp_path):
    """Writes one image and looks at it; the lines of what is wrong, or of what is noted."""

    def look(data, *, size=(80, 60), decode=False):
        if data is not None:
            (tmp_path / "p").write_bytes(data)
        images = [{"file_name": "p", "width": size[0], "height": size[1]}]
        faults, notes = look_at_images(images, tmp_path, decode=decode)
        return "\n".join([*fault_lines(faults, 1, tmp_path), *notes])

    return look


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP", "TIFF"])
@pytest.mark.parametrize("decode", [False, True])
def test_whole_images_are_well(look, kind, decode):
    assert look(encoded(kind), decode=decode) == ""


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_what_stands_behind_the_end_is_no_matter(look, kind):
    assert look(encoded(kind) + b"thumbnail" * 50) == ""
    assert look(encoded(kind) + bytes(500)) == ""


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP", "TIFF"])
def test_an_image_that_is_cut_off_is_named_at_every_start(look, kind):
    data = encoded(kind)
    found = look(data[: len(data) // 2])
    assert "1 of 1 images cannot be opened or are damaged" in found
    assert "'p' (" in found


def test_a_jpeg_whose_end_is_zeros_is_named_although_decoders_take_it(look):
    data = encoded("JPEG")
    half = data[: len(data) // 2] + bytes(len(data) // 2)
    Image.open(io.BytesIO(half)).load()  # grey from the middle on
    assert "'p' (zeros where its end should be)" in look(half)


def test_damage_in_the_middle_is_found_by_decoding_everything(look):
    data = encoded("JPEG")
    middle = len(data) // 2
    data = data[:middle] + b"\xff" * 100 + data[middle + 100 :]
    assert look(data) == ""
    assert "are damaged" in look(data, decode=True)


def test_an_empty_file_and_none_at_all(look):
    assert "are not in" in look(None)
    assert "'p' (UnidentifiedImageError)" in look(b"")


@pytest.mark.parametrize("turn", [5, 6, 7, 8])
def test_a_quarter_turn_by_exif_is_compared_both_ways(look, turn):
    data = encoded("JPEG", turn=turn)
    assert look(data, size=(60, 80)) == ""
    found = look(data, size=(80, 60))
    assert "are annotated with their size before their EXIF rotation" in found
    assert "'p' annotated as 80x60, turned to 60x80" in found


@pytest.mark.parametrize("turn", [None, 1, 9])  # 9 is no orientation, and Detectron2 passes over it
def test_an_annotation_of_a_turned_copy_is_said_to_be_one(look, turn):
    found = look(encoded("JPEG", turn=turn), size=(60, 80))
    assert "width and height swapped, as if turned by an EXIF rotation that they do not carry" in found
    assert "'p' annotated as 60x80, but 80x60" in found


@pytest.mark.parametrize("turn", [2, 3, 4])
def test_a_half_turn_cannot_be_told_from_sizes_and_is_noted(look, turn):
    assert "turned by 180 degrees or mirrored by their EXIF tag ('p')" in look(encoded("JPEG", turn=turn))


def test_another_size(look):
    assert "another size than annotated" in look(encoded("PNG"), size=(81, 60))


def test_pillows_bound_on_pixels_stays_and_is_named(look, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 80 * 60 // 2 - 1)
    assert "1 of 1 images are larger than the 0 million pixels that Pillow" in look(encoded("PNG"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 80 * 60 // 2)  # it warns from one, and refuses beyond two times it
    assert look(encoded("PNG")) == ""
