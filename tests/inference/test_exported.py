"""What an exported file is called with, and files that `focal-det export` did not write, or not so."""

import json
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest

from focal_det.data.shapes import draw_image
from focal_det.errors import InputError
from focal_det.inference.exported import METADATA_KEY, ExportedDetector, Metadata

QUICKSTART = Path(__file__).parents[2] / "models" / "quickstart_int8.onnx"
SOUND = {
    "version": 1,
    "class_names": ["a", "b"],
    "category_ids": [2, 5],
    "channels": "BGR",
    "min_size": 0,
    "max_size": 160,
    "score_thresh": 0.05,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_size": "missing"}, "max_size is missing"),
        ({"more": 1}, "'more' is unknown"),
        ({"min_size": "abc"}, "min_size is 'abc', not an integer >= 0"),
        ({"min_size": -5}, "min_size is -5, not"),
        ({"max_size": 0}, "max_size is 0, not"),
        ({"class_names": None}, "class_names is None, not a list of distinct texts"),
        ({"class_names": [1, 2]}, "class_names is [1, 2], not"),
        ({"class_names": ["a", "a"]}, "class_names is ['a', 'a'], not"),
        ({"class_names": ["a"]}, "1 class_names, but 2 category_ids"),
        ({"category_ids": [2, 2]}, "category_ids is [2, 2], not"),
        ({"channels": 7}, "channels is 7, not BGR or RGB"),
        ({"channels": ["BGR"]}, "channels is ['BGR'], not"),
        ({"score_thresh": None}, "score_thresh is None, not in [0, 1)"),
        ({"score_thresh": 1.0}, "score_thresh is 1.0, not"),
        ({"score_thresh": float("nan")}, "score_thresh is nan, not"),
        ({"tile": 16}, "tile is 16, not 0 or an integer >= 32"),
        ({"tile": 64, "overlap": None}, "overlap is None, not in [0, 0.9]"),
        ({"tile": 64, "overlap": 1.0}, "overlap is 1.0, not"),
    ],
)
def test_damaged_metadata_are_named(change, message):
    assert Metadata.from_json(json.dumps(SOUND), Path("m.onnx")).max_size == 160
    values = {key: value for key, value in {**SOUND, **change}.items() if value != "missing"}
    with pytest.raises(InputError) as caught:
        Metadata.from_json(json.dumps(values), Path("m.onnx"))
    (problem,) = caught.value.problems
    assert problem.startswith(f"m.onnx: damaged: {message}")
    assert problem.endswith("; export the model again")


def test_tiles_are_in_the_file_of_a_model_that_has_them_alone():
    sound = Metadata.from_json(json.dumps(SOUND), Path("m.onnx"))
    assert (sound.tile, sound.overlap) == (0, 0.2)
    assert json.loads(sound.to_json()) == SOUND  # as versions without tiles read it
    in_tiles = sound._replace(tile=640, overlap=0.3)
    assert Metadata.from_json(in_tiles.to_json(), Path("m.onnx")) == in_tiles


def test_another_onnx_graph_is_refused_when_opened(tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "other", values[:1], values[1:])
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=9)
    onnx.helper.set_model_props(proto, {METADATA_KEY: json.dumps(SOUND)})
    onnx.save(proto, tmp_path / "m.onnx")
    with pytest.raises(InputError, match=r"m\.onnx: takes \['x'\] and gives \['y'\], not"):
        ExportedDetector(tmp_path / "m.onnx")


def test_another_program_is_refused_when_opened(tmp_path):
    torch = pytest.importorskip("torch")
    program = torch.export.export(torch.nn.ReLU(), (torch.zeros(1),))
    torch.export.save(program, tmp_path / "m.pt2", extra_files={METADATA_KEY: json.dumps(SOUND)})
    with pytest.raises(InputError, match=r"m\.pt2: takes \['input'\] and gives 1, not"):
        ExportedDetector(tmp_path / "m.pt2", trusted=True)


@pytest.fixture(scope="module")
def quickstart():
    return ExportedDetector(QUICKSTART, batch_size=2, device="cpu")


def test_a_file_an_array_and_several_are_taken_as_by_the_predictor(quickstart, tmp_path):
    images = [draw_image("val", number, 128)[0] for number in range(5)]
    cv2.imwrite(str(tmp_path / "a.png"), images[0])
    alone = quickstart(tmp_path / "a.png")
    assert len(alone) > 0
    assert alone.path == tmp_path / "a.png"
    assert list(quickstart(images[0])) == list(alone)
    together = quickstart(iter(images))
    assert [len(one) for one in together] == [len(quickstart(image)) for image in images]
    assert {one.class_name for found in together for one in found} <= set(quickstart.class_names)


def test_no_more_images_run_together_than_asked(quickstart, monkeypatch):
    sizes, run = [], quickstart._run
    monkeypatch.setattr(quickstart, "_run", lambda images, of: sizes.append(len(images)) or run(images, of))
    quickstart([np.zeros((64, 64, 3), np.uint8)] * 5)
    assert sizes == [2, 2, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "tpu"}, "device is 'tpu'; it must be cuda, cuda:<number> or cpu"),
        ({"device": "cpu:1"}, "device is 'cpu:1'; it must be"),
        ({"device": "cuda:x"}, "device is 'cuda:x'; it must be"),
        ({"batch_size": 0}, "batch_size is 0; it must be a whole number, 1 to 4,096"),
        ({"batch_size": 10**20}, "batch_size is 100000000000000000000; it must be a whole number, 1 to 4,096"),
    ],
)
def test_an_option_that_cannot_be_is_named(options, message):
    with pytest.raises(InputError, match=message):
        ExportedDetector(QUICKSTART, **options)


def test_a_gpu_is_only_used_where_onnxruntime_has_it(monkeypatch, tmp_path):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(InputError, match="onnxruntime has no CUDAExecutionProvider here: install onnxruntime-gpu"):
        ExportedDetector(QUICKSTART, device="cuda:1")
    (tmp_path / "m.pt2").write_bytes(b"")
    with pytest.raises(InputError, match="runs on the processor"):
        ExportedDetector(tmp_path / "m.pt2", trusted=True, device="cuda")
