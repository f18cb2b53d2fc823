"""Whatever stands in a file that somebody gives, what reads it answers in words: no other exception, no crash.

See tests/fuzzed.py for FOCAL_DET_FUZZ_EXAMPLES and FOCAL_DET_FUZZ_SEED.
"""

# ruff: noqa: PT017 - an input may be answered by an error or by a result

import copy
import io
import json
import pickle

import cv2
import numpy as np
import pytest
from fuzzed import fuzz, mutated
from hypothesis import strategies as st
from PIL import Image

from focal_det.checkpoint.restricted_pickle import load_arrays
from focal_det.data.inspection import describe, inspect_set
from focal_det.errors import InputError
from focal_det.formats.coco import check_coco, read_coco
from focal_det.formats.image_checks import look_at_images
from focal_det.formats.voc import check_voc, read_voc
from focal_det.inference.classes import read_classes
from focal_det.inference.exported import METADATA_KEY, ExportedDetector
from focal_det.inference.images import ImageError, read_image
from focal_det.plain_data import parse_yaml
from focal_det.report.run_files import read_run

ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-3, 120),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(
        [2**63, -(2**63), 10**400, 1e308, "../../a.png", "/dev/zero", "a\0", "\ud800", "a.png", "b.png", [], {}]
    ),
)
JSON = st.recursive(
    ODD, lambda part: st.lists(part, max_size=4) | st.dictionaries(st.text(max_size=4), part, max_size=4), max_leaves=8
)
COCO = {
    "info": {},
    "images": [{"id": i, "file_name": f"{n}.png", "width": 40, "height": 30} for i, n in ((1, "a"), (2, "b"))],
    "annotations": [
        {
            "id": i,
            "image_id": 1 + i % 2,
            "category_id": 1 + i % 3,
            "bbox": [i, 2, 9, 8 + i],
            "area": 72,
            "iscrowd": i % 2,
        }
        for i in range(1, 8)
    ],
    "categories": [{"id": i, "name": f"class {i}"} for i in (1, 2, 3)],
}
# Which part of the file, by the numbers of keys or places on the way there; what is done to it; and what is put there.
CHANGES = st.lists(
    st.tuples(
        st.lists(st.integers(0, 9), min_size=1, max_size=4), st.sampled_from(["set", "take", "repeat"]), JSON | ODD
    ),
    max_size=6,
)


def changed(coco, changes):
    coco = copy.deepcopy(coco)
    for way, what, value in changes:
        node = coco
        for depth, step in enumerate(way):
            if not isinstance(node, (dict, list)) or not node:
                break
            place = list(node)[step % len(node)] if isinstance(node, dict) else step % len(node)
            if depth < len(way) - 1:
                node = node[place]
            elif what == "set":
                node[place] = value
            elif what == "take":
                del node[place]
            elif isinstance(node, list):
                node.append(copy.deepcopy(node[place]))
    return coco


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        cv2.imwrite(str(folder / name), np.full((30, 40, 3), 128, np.uint8))
    return folder


def accepted(file):
    """What is done with annotations that were found sound."""
    describe(inspect_set(file.coco), is_trained_on=True)
    json.dumps(file.coco)


@fuzz(JSON | st.builds(changed, st.just(COCO), CHANGES), quick=120)
def test_annotations_of_any_shape(tries, images):
    def attempt(raw):
        try:
            text = json.dumps(raw).encode()
        except UnicodeEncodeError:
            return
        try:
            accepted(check_coco(json.loads(text), "a.json", images, skip_bad_images=1))
        except InputError as error:
            assert all(error.problems)

    tries(attempt, "COCO structures")


@fuzz(mutated(json.dumps(COCO).encode()), quick=80)
def test_bytes_of_annotations(tries, images, tmp_path):
    path = tmp_path / "a.json"

    def attempt(data):
        path.write_bytes(data)
        try:
            accepted(read_coco(path, images))
        except InputError as error:
            assert str(path) in str(error)

    tries(attempt, "COCO bytes")


VOC = b"""<?xml version="1.0" encoding="UTF-8"?>
<annotation><filename>a.png</filename><size><width>40</width><height>30</height></size>
<object><name>cat</name><difficult>1</difficult><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax><ymax>8</ymax></bndbox>
</object><object><name>dog</name><bndbox><xmin>3</xmin><ymin>2.5</ymin><xmax>39</xmax><ymax>28</ymax></bndbox></object>
</annotation>"""


@fuzz(mutated(VOC), quick=120)
def test_bytes_of_voc_annotations(tries, images, tmp_path):
    def attempt(data):
        (images / "a.xml").write_bytes(data)
        try:
            voc = read_voc(images, None)
            accepted(check_voc(voc, sorted(voc.class_names)))
        except InputError as error:
            assert all(error.problems)

    tries(attempt, "VOC annotations")


@fuzz(mutated(b"a\nb\n") | st.binary(max_size=20), quick=60)
def test_bytes_of_voc_splits(tries, write_voc):
    folder = write_voc({"a": [("cat", 1, 2, 9, 8)], "b": []}, train=["a"])

    def attempt(data):
        (folder / "ImageSets" / "Main" / "train.txt").write_bytes(data)
        try:
            read_voc(folder, "train")
        except InputError as error:
            assert all(error.problems)

    tries(attempt, "VOC splits")


def encoded(kind, **options):
    file = io.BytesIO()
    image = Image.effect_noise((24, 16), 60).convert("RGB")
    if kind == "GIF":
        image = image.convert("P")
    image.save(file, kind, **options)
    return file.getvalue()


EXIF = Image.Exif()
EXIF[0x0112] = 6
FORMATS = [
    *(encoded(kind) for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "TGA", "PCX", "ICO", "JPEG2000")),
    encoded("JPEG", exif=EXIF, progressive=True),
    encoded("TIFF", compression="tiff_lzw"),
    encoded("TIFF", compression="tiff_deflate"),
    encoded("PNG", exif=EXIF),
]


@fuzz(mutated(*FORMATS), quick=150)
@pytest.mark.filterwarnings("ignore")
def test_bytes_of_images(tries, tmp_path):
    image = {"file_name": "a.jpg", "width": 24, "height": 16}

    def attempt(data):
        (tmp_path / "a.jpg").write_bytes(data)
        look_at_images([image], tmp_path, decode=True)
        try:
            pixels = read_image(tmp_path / "a.jpg")
        except ImageError as error:
            assert error.reason
        else:
            assert pixels.dtype == np.uint8
            assert pixels.ndim == 3

    tries(attempt, "pictures")


ARRAYS = {
    "model": {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.float64(2)},
    "__author__": "x",
    "n": [1, None],
}


@fuzz(mutated(*(pickle.dumps(ARRAYS, protocol) for protocol in range(6))) | st.binary(max_size=60), quick=300)
def test_bytes_of_pickled_weights(tries):
    def attempt(data):
        try:
            load_arrays(io.BytesIO(data))
        except Exception as error:  # which is put into words by whoever asks for weights
            assert not isinstance(error, MemoryError)

    tries(attempt, ".pkl weights")


YAML = b"""_BASE_: [a.yaml, "b.yaml"]
MODEL: &m {WEIGHTS: "", MASK_ON: false, N: 1e-4, L: [1, 2.5, .inf, ~]}
SOLVER:
  <<: *m
  STEPS: !!set {1, 2}
  T: 2001-12-14 21:59:43.10 -5
  B: !!binary aGk=
  LIST:
  - *m
  - 190:20:30
"""


@fuzz(mutated(YAML) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "replace")), quick=200)
def test_bytes_of_yaml(tries):
    import yaml

    def attempt(data):
        try:
            repr(parse_yaml(data.decode("utf-8", "replace")))
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            assert str(error)

    tries(attempt, "YAML")


@fuzz(
    mutated(b'[{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]') | JSON.map(lambda j: json.dumps(j).encode()), quick=60
)
def test_bytes_of_classes(tries, tmp_path):
    def attempt(data):
        (tmp_path / "classes.json").write_bytes(data)
        try:
            read_classes(tmp_path)
        except InputError as error:
            assert "classes.json" in str(error)

    tries(attempt, "classes.json")


RUN = {
    "metrics.json": b'{"iteration": 1, "total_loss": 2.5, "lr": 0.1}\n{"iteration": 2, "total_loss": NaN}\n',
    "config.yaml": b"DATASETS: {TEST: [a]}\nSOLVER: {MAX_ITER: 3}\n",
    "config_changes.json": b'[{"key": "A", "default": 1, "value": 2, "place": "x"}]',
    "environment.txt": b"Python  3.11\n",
    "inference/a/detections.json": b'[{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}]',
    "inference/a/dataset.json": b'{"name": "a", "annotations": "a.json", "images": "i", "iterations": 3}',
    "inference/a/a.json": json.dumps(COCO).encode(),
}


@fuzz(st.sampled_from(sorted(RUN)).flatmap(lambda n: st.tuples(st.just(n), mutated(RUN[n]))), quick=60)
def test_files_of_a_run(tries, tmp_path):
    (tmp_path / "inference/a").mkdir(parents=True)

    def attempt(named):
        for name, data in {**RUN, named[0]: named[1]}.items():
            (tmp_path / name).write_bytes(data)
        read_run(tmp_path)

    tries(attempt, "files of a run")


def tiny_onnx():
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2]) for name in "xy"]
    weights = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [2], [1.0, 2.0])
    node = onnx.helper.make_node("Add", ["x", "w"], ["y"])
    graph = onnx.helper.make_graph([node], "other", values[:1], values[1:], [weights])
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=9)
    onnx.helper.set_model_props(proto, {METADATA_KEY: json.dumps({"version": 1, "class_names": ["a"]})})
    return proto.SerializeToString()


@fuzz(st.deferred(lambda: mutated(tiny_onnx())), quick=60)
def test_bytes_of_onnx(tries, tmp_path):
    def attempt(data):
        (tmp_path / "m.onnx").write_bytes(data)
        with pytest.raises(InputError, match=r"m\.onnx"):  # sound or not, it is none of ours
            ExportedDetector(tmp_path / "m.onnx", threads=1)

    tries(attempt, "ONNX")
