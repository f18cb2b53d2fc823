"""Convolutions in 8 bits: which nodes, how close to float32, and when the file is refused."""

import json
from collections import Counter

import numpy as np
import onnx
import pytest

from focal_det.inference.exported import ExportedDetector

pytestmark = pytest.mark.detectron2


def test_all_convolutions_but_the_last_are_in_8_bits(calibrated_onnx, plain_onnx):
    graph = onnx.load(calibrated_onnx).graph
    made_by = {name: node for node in graph.node for name in node.output}
    floats = {node.input[1] for node in graph.node if node.op_type == "Conv" and node.input[1] not in made_by}
    assert floats == {"model.head.cls_score.weight", "model.head.bbox_pred.weight"}
    integers = [node for node in graph.node if node.op_type == "Conv" and node.input[1] in made_by]
    for node in integers:  # activations too: both are dequantized right before
        assert {made_by[name].op_type for name in node.input[:2]} == {"DequantizeLinear"}
    scales = {tuple(each.dims) for each in graph.initializer if each.name.endswith("conv1.weight_scale")}
    assert (64,) in scales  # one for each output channel
    count = Counter(node.op_type for node in onnx.load(plain_onnx).graph.node)
    assert len(integers) == count["Conv"] - 2 * 5  # of five levels
    assert calibrated_onnx.stat().st_size < 0.4 * plain_onnx.stat().st_size


def test_it_finds_nearly_what_float32_finds(calibrated_onnx, plain_onnx):
    in_8_bits, in_float = ExportedDetector(calibrated_onnx), ExportedDetector(plain_onnx)
    image = np.ascontiguousarray(np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8))
    ours, theirs = (
        detector._run(image.transpose(2, 0, 1)[None], np.array([[64, 96]])) for detector in (in_8_bits, in_float)
    )
    assert 0 < np.abs(ours[1] - theirs[1]).max() < 0.1  # scores of an untrained model, sorted


def test_ap_before_and_after_is_in_the_card(calibrated_onnx):
    card = json.loads(calibrated_onnx.with_name("float32.onnx.card.json").read_text())
    assert (card["weights"], card["activations"]) == ("int8", "int8")
    assert card["calibrated_on"] == {"images": 3, "from": "the run's training images"}
    before, after = card["scores_in_float32"], card["scores"]
    assert after["measured"] == "this file"
    # the annotations are the model's own detections
    assert before["AP"] == pytest.approx(100, abs=0.5)
    assert 20 < after["AP"] < before["AP"]
    assert (before["set"], before["images"]) == (after["set"], after["images"]) == ("val", 3)


def test_a_fall_of_ap_beyond_the_limit_leaves_no_file(export_in_8_bits, tmp_path, capsys):
    assert export_in_8_bits(tmp_path / "m.onnx", 0) == 1
    said = capsys.readouterr().err
    assert "more than --max-ap-drop 0; calibrate on more images" in said
    assert "m.onnx was not written" in said
    assert list(tmp_path.iterdir()) == []
