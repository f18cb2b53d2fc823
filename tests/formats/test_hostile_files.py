"""Files made to harm: named, bounded in time and memory, and nothing of them is run."""

import io
import json
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from focal_det.cli.main import main
from focal_det.errors import InputError
from focal_det.formats.coco import read_coco
from focal_det.formats.image_checks import look_at_images
from focal_det.formats.voc import read_voc
from focal_det.inference.exported import DIGEST_KEY, METADATA_KEY, NO_DIGEST, ExportedDetector, digest_of
from focal_det.inference.images import ImageError, read_image
from focal_det.inference.inputs import InputFile
from focal_det.inference.outputs import drawing_files
from focal_det.plain_data import parse_json, parse_yaml

MODEL = Path(__file__).parents[2] / "models" / "quickstart_int8.onnx"


@pytest.fixture(autouse=True)
def _bounded():
    start = time.process_time()
    yield
    assert time.process_time() - start < 20


def part(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width, height, *extra):
    header = part(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + part(b"IDAT", b"") + part(b"IEND", b"")


def saved(kind, mode="RGB", size=(40, 30), **options):
    file = io.BytesIO()
    Image.new(mode, size).save(file, kind, **options)
    return file.getvalue()


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(made) (w) file closefile\nshowpage\n%%EOF\n"
BAD_IMAGES = {
    "a gigantic PNG": (png(30_000, 30_000), "exceeds limit"),
    "an impossible PNG": (png(2**31 - 1, 2**31 - 1), "exceeds limit"),
    "a gigantic GIF": (
        b"GIF89a" + b"\xff" * 4 + b"\0\0\0," + b"\0" * 4 + b"\xff" * 4 + b"\0\2\1\0\0;",
        "exceeds limit",
    ),
    "a gigantic TIFF": (saved("TIFF").replace(struct.pack("<I", 40), struct.pack("<I", 2**20), 1), ""),
    "texts without end": (png(4, 4, part(b"zTXt", b"a\0\0" + zlib.compress(b"x" * 10**7))), "too large"),
    "EPS, which is a program": (EPS, "not an image of a known format"),
    "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg"><script>1</script></svg>', "not an image of a known format"),
    "HTML": (b"<html><script>1</script></html>", "not an image of a known format"),
    "nothing": (b"", "the file is empty"),
    "half a JPEG": (saved("JPEG", size=(400, 300))[:900], ""),
}


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_bad_images_are_named(tmp_path, kind):
    content, reason = BAD_IMAGES[kind]
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageError) as caught:
        read_image(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert reason in caught.value.reason
    (fault,) = look_at_images([{"file_name": "a.jpg", "width": 40, "height": 30}], tmp_path, decode=True)[0]
    assert "'a.jpg'" in fault.detail


def damaged_png(path):
    """A sound end, and damage in the middle."""
    Image.fromarray(60 * np.random.randint(0, 4, (48, 64, 3), np.uint8)).save(path)
    data = bytearray(path.read_bytes())
    data[1000:1100] = b"\xff" * 100
    path.write_bytes(data)


def test_damage_in_the_middle_of_a_png_is_found_at_every_start(tmp_path):
    """Pillow decodes a PNG to look for its EXIF tag; the error was lost there, and the image half black."""
    damaged_png(tmp_path / "a.png")
    with pytest.raises(ImageError, match="data stream"):
        read_image(tmp_path / "a.png")
    (fault,) = look_at_images([{"file_name": "a.png", "width": 64, "height": 48}], tmp_path)[0]
    assert "'a.png' (OSError)" in fault.detail


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"])
def test_images_of_other_modes_are_read(tmp_path, mode):
    (tmp_path / "a.tif").write_bytes(saved("TIFF", mode))
    assert read_image(tmp_path / "a.tif").shape == (30, 40, 3)


def test_an_absurd_exif_tag_does_not_hide_an_image(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 60_000
    (tmp_path / "a.jpg").write_bytes(saved("JPEG", exif=exif.tobytes() + b"\xff" * 60_000))
    assert read_image(tmp_path / "a.jpg").shape == (30, 40, 3)


def test_of_animations_the_first_image_counts(tmp_path):
    first, second = Image.new("L", (8, 6), 250), Image.new("L", (8, 6), 0)
    first.save(tmp_path / "a.gif", save_all=True, append_images=[second] * 50)
    assert read_image(tmp_path / "a.gif").min() == 250


ENTITIES = b'<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa">' + b"".join(
    b'<!ENTITY %c "%b">' % (98 + i, b"&%c;" % (97 + i) * 10) for i in range(12)
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (ENTITIES + b"]><annotation><filename>&m;</filename></annotation>", "has a <!DOCTYPE>"),
        (b'<!DOCTYPE a [<!ENTITY a SYSTEM "file:///etc/passwd">]><annotation>&a;</annotation>', "has a <!DOCTYPE>"),
        (b'<!DOCTYPE a SYSTEM "http://127.0.0.1:9/a.dtd"><annotation/>', "has a <!DOCTYPE>"),
        (b"<annotation>&a;</annotation>", "undefined entity"),
        (b"<annotation>" + b" " * 2**22, "more than the 4.2 MB"),
        (b"<annotation>" + b"<a>" * 50_000 + b"</a>" * 50_000 + b"</annotation>", "no image of that name"),
    ],
)
def test_xml_that_grows_or_reads_other_files(tmp_path, content, message):
    (tmp_path / "a.xml").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_voc(tmp_path, None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 10**6, "nested too deeply"),
        (b'{"images": ' + b"9" * 10**7 + b"}", "4300 digits"),
        (b'{"images": [], "images": [1]}', 'has "images" twice, with two values'),
        (b"\xff\xfe{}", "not a text file in UTF-8"),
        (b"", "not JSON"),
    ],
)
def test_json_that_is_none(tmp_path, content, message):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_coco(tmp_path / "a.json", tmp_path)


def test_what_is_not_needed_is_dropped_wherever_it_is():
    def drop(row):
        row.pop("segmentation", None)

    text = b'{"a": [{"segmentation": [[1, 2]], "b": {"segmentation": 3}}, {"c": 4}]}'
    assert parse_json(text, change=drop) == {"a": [{"b": {}}, {"c": 4}]}
    assert parse_json(text)["a"][0]["segmentation"] == [[1, 2]]
    with pytest.raises(ValueError, match='has "segmentation" twice'):
        parse_json(b'{"segmentation": 1, "segmentation": 2}', change=drop)
    assert parse_json(b'{"a": [1], "b": 2, "a": [1]}') == {"a": [1], "b": 2}


def test_a_file_beyond_any_data_set_is_not_read(tmp_path):
    with open(tmp_path / "a.json", "wb") as file:
        file.truncate(2**33 + 1)  # takes no room on the disk
    with pytest.raises(InputError, match=r"a\.json has 8590 MB, more than"):
        read_coco(tmp_path / "a.json", tmp_path)


def laughs(first, more):
    return f"a: &a {first}\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} {more % ','.join([f'*{chr(97 + i)}'] * 10)}\n" for i in range(12)
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (laughs("[x, x]", "[%s]"), "stands for more than 100000 values"),
        (laughs("{x: 1}", "{<<: [%s]}"), "stands for more than 100000 values"),
        ("a: &a [*a]", "contains itself"),
        ("a: " + "9" * 90_000, "90000 characters that is not text"),
        ("a: 1:" + "59:" * 30_000 + "1", "that is not text"),
        ("a: " + "x" * 2**17, "longer than"),
        ("[" * 2_000, "recursion"),
    ],
)
def test_yaml_that_grows(text, message):
    with pytest.raises((yaml.YAMLError, RecursionError), match=message):
        parse_yaml(text)


@pytest.mark.parametrize("text", ["a: 1\nb: {x: 1, y: 2, x: 3}\n", "x: 1\na: 2\n'x': 1\n"])
def test_yaml_that_says_a_name_twice(text):
    with pytest.raises(yaml.YAMLError, match="'x' occurs twice, with two values"):
        parse_yaml(text)


def test_honest_aliases_are_read():
    assert parse_yaml("a: &a {x: [1, 2]}\nb: *a\nc: {<<: *a, y: 3}\nd: {<<: *a, x: 4}\n") == {
        "a": {"x": [1, 2]},
        "b": {"x": [1, 2]},
        "c": {"x": [1, 2], "y": 3},
        "d": {"x": 4},
    }


def onnx_file(*, elsewhere=None):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [64]) for name in "xy"]
    weights = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [64], np.linspace(1, 2, 64))
    if elsewhere:
        weights.ClearField("float_data")
        weights.data_location = onnx.TensorProto.EXTERNAL
        entry = weights.external_data.add()
        entry.key, entry.value = "location", str(elsewhere)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Add", ["x", "w"], ["y"])], "g", values[:1], values[1:], [weights]
    )
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=9)
    onnx.helper.set_model_props(proto, {METADATA_KEY: "{}", DIGEST_KEY: NO_DIGEST})
    data = proto.SerializeToString()
    return data.replace(NO_DIGEST.encode(), digest_of(data, NO_DIGEST).encode())


@pytest.mark.parametrize("place", ["../secret", "/etc/passwd", "beside.bin"])
@pytest.mark.parametrize("length", [b"\x08", b"\x88\x80\x00"])  # protobuf reads the second as 8 too
def test_an_onnx_file_reads_no_other_file(tmp_path, place, length):
    data = onnx_file(elsewhere=place)
    assert b"\n\x08location" in data
    (tmp_path / "m.onnx").write_bytes(data.replace(b"\n\x08location", b"\n" + length + b"location"))
    with pytest.raises(InputError, match="its weights are in other files"):
        ExportedDetector(tmp_path / "m.onnx")


def test_a_hole_in_an_onnx_file_is_found(tmp_path):
    path, data = tmp_path / "m.onnx", onnx_file()
    path.write_bytes(data)
    with pytest.raises(InputError, match="another version"):
        ExportedDetector(path)  # sound, but not ours
    place = data.index(np.float32(1).tobytes())
    path.write_bytes(data[:place] + b"\0" * 200 + data[place + 200 :])
    with pytest.raises(InputError, match=r"m\.onnx: damaged: its SHA-256"):
        ExportedDetector(path)


def test_names_cannot_leave_the_folder_of_drawings(tmp_path):
    base, out = tmp_path / "in", tmp_path / "out"
    inputs = [InputFile(base / name, name) for name in ("a.jpg", "<script>.png", "a\nb.png", "c.mp4", "d/e.gif")]
    for path in drawing_files(inputs, out).values():
        assert path.resolve().is_relative_to(out)


def test_evaluating_leaves_out_bad_images_up_to_the_bound(tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    (tmp_path / "a.png").write_bytes(saved("PNG", size=(64, 48)))
    damaged_png(tmp_path / "b.png")
    images = [{"id": i, "file_name": n, "width": 64, "height": 48} for i, n in ((1, "a.png"), (2, "b.png"))]
    boxes = [{"id": i, "image_id": i, "category_id": 1, "bbox": [1, 2, 30, 20]} for i in (1, 2)]
    categories = [{"id": i, "name": name} for i, name in enumerate(("disk", "box", "triangle"), start=1)]
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"images": images, "annotations": boxes, "categories": categories}))
    words = ["evaluate", "--model", MODEL, "--json", path, "--images", tmp_path, "--draw", 0, "--out", tmp_path / "out"]
    assert main([str(word) for word in words]) == 2
    assert "b.png" in capsys.readouterr().err
    assert main([str(word) for word in [*words, "--skip-bad-images", 1, "--overwrite"]]) == 0
    assert "left out 1 images" in capsys.readouterr().out
