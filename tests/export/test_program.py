"""The same file in another runtime, and weights that come back as they were."""

import json

import numpy as np
import pytest
import torch
from export_fixtures import images

from focal_det.cli.main import main
from focal_det.engine.predictor import Predictor
from focal_det.inference.exported import METADATA_KEY, ExportedDetector

pytestmark = pytest.mark.detectron2


def test_openvino_finds_what_onnxruntime_finds(plain_onnx):
    openvino = pytest.importorskip("openvino")
    core = openvino.Core()
    core.set_property("CPU", {"INFERENCE_PRECISION_HINT": "f32"})  # else bfloat16, where the processor has it
    model = core.compile_model(core.read_model(plain_onnx), "CPU")
    detector = ExportedDetector(plain_onnx)
    for size in ((64, 96), (40, 31), (130, 257)):
        (image,) = images([size], seed=5)
        feed = image.transpose(2, 0, 1)[None], np.array([size])
        boxes, scores, classes, counts = (model(feed)[index] for index in range(4))
        expected = detector._run(*feed)
        count = int(counts[0])
        assert count == expected[3][0] > 10
        np.testing.assert_allclose(boxes[0, :count], expected[0][0, :count], atol=0.02)
        np.testing.assert_allclose(scores[0, :count], expected[1][0, :count], atol=1e-5)
        assert classes[0, :count].tolist() == expected[2][0, :count].tolist()


def test_weights_as_safetensors_come_back_in_every_bit(finding_run, tmp_path):
    safetensors = pytest.importorskip("safetensors")
    path = tmp_path / "w.safetensors"
    assert main(["export", "--run", str(finding_run), "--out", str(path)]) == 0
    ours = Predictor.from_run(finding_run)
    theirs = Predictor(finding_run / "config.yaml", path)  # with the classes beside the configuration
    before, after = ours.model.state_dict(), theirs.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert theirs.class_names == ["a", "b", "c"]
    with safetensors.safe_open(path, "pt") as file:
        assert json.loads(file.metadata()[METADATA_KEY])["category_ids"] == [2, 5, 9]
