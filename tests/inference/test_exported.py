"""Files that `focal-det export` did not write, or not so."""

import json
from pathlib import Path

import pytest

from focal_det.errors import InputError
from focal_det.inference.exported import METADATA_KEY, ExportedDetector, Metadata

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
