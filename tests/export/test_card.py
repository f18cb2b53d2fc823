"""The card says what is in the file, and stands beside no other."""

import hashlib
import json
from pathlib import Path

import onnx
import pytest

from focal_det.checkpoint import integrity
from focal_det.checkpoint.run_record import RunRecord, UsedSet
from focal_det.cli.main import main
from focal_det.export.card import card_of
from focal_det.inference.exported import ExportedDetector

pytestmark = pytest.mark.detectron2

TYPES = {onnx.TensorProto.UINT8: "uint8", onnx.TensorProto.INT64: "int64", onnx.TensorProto.FLOAT: "float32"}


@pytest.fixture
def card(plain_onnx):
    return json.loads(plain_onnx.with_name("m.onnx.card.json").read_text())


def test_its_graph_is_the_files(plain_onnx, card):
    proto = onnx.load(plain_onnx)
    for kind, values in (("inputs", proto.graph.input), ("outputs", proto.graph.output)):
        found = [
            {
                "name": value.name,
                "type": TYPES[value.type.tensor_type.elem_type],
                "shape": [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim],
            }
            for value in values
        ]
        assert card["graph"][kind] == found
    assert card["graph"]["opset"] == proto.opset_import[0].version


def test_it_names_classes_preprocessing_thresholds_and_where_the_file_comes_from(plain_onnx, card):
    content = plain_onnx.read_bytes()
    assert (card["file"], card["bytes"], card["sha256"]) == (
        "m.onnx",
        len(content),
        hashlib.sha256(content).hexdigest(),
    )
    assert [(each["label"], each["name"], each["category_id"]) for each in card["classes"]] == [
        *((0, "a", 2), (1, "b", 5), (2, "c", 9))
    ]
    expected = {"channels": "BGR", "shorter_side": 64, "longer_side_at_most": 160, "tile": 0, "tile_overlap": 0}
    assert card["preprocessing"] == expected
    assert card["normalisation"]["done_by"] == "the graph"
    assert card["thresholds"] == {"score": 0.25, "nms_iou": 0.5, "detections_per_image": 100}
    assert card["license"] == "CC-BY-4.0"
    # Detectron2's checkpoint does not say how it was trained, and nothing is invented.
    assert (card["checkpoint"], card["training"], "scores" in card) == ("model_final.pth", None, False)


def test_a_checkpoint_of_ours_says_how_it_was_trained_and_how_good_it_was(finding_run, tiny_cfg, tmp_path, monkeypatch):
    train, test = UsedSet("mine", 40, "f"), UsedSet("val", 72, "g")
    names = ["a", "b", "c"]
    record = RunRecord.of(tiny_cfg(), training_sets=[train], tested_on=test, class_names=names, world_size=1)
    held = {"run": record.plain(), "iteration": 499, "best": {"AP": 33.4, "iteration": 499}}
    monkeypatch.setattr(integrity, "contents", lambda path: held)
    path = tmp_path / "w.safetensors"
    words = ["export", "--run", str(finding_run), "--out", str(path), "--overwrite"]
    assert main(words) == 0
    card = json.loads(card_of(path).read_text())
    sets = [{"name": "mine", "images": 40}]
    expected = {"focal_det": record.focal_det, "torch": record.torch, "sets": sets, "iterations": 500}
    assert card["training"] == expected
    measured = "the model in float32, by the evaluation in its training"
    assert card["scores"] == {"measured": measured, "set": "val", "images": 72, "AP": 33.4}
    assert main([*words, "INPUT.MIN_SIZE_TEST", "96"]) == 0  # at which it was not evaluated
    assert "scores" not in json.loads(card_of(path).read_text())


def test_a_card_that_is_there_is_not_replaced_unasked(finding_run, tmp_path, capsys):
    (tmp_path / "w.safetensors.card.json").write_text("mine")
    words = ["export", "--run", str(finding_run), "--out", str(tmp_path / "w.safetensors")]
    assert main(words) == 2
    assert "w.safetensors.card.json: already exists; name another, or add --overwrite" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors.card.json"]
    assert main([*words, "--overwrite"]) == 0
    card = json.loads((tmp_path / "w.safetensors.card.json").read_text())
    assert card["sha256"] == hashlib.sha256((tmp_path / "w.safetensors").read_bytes()).hexdigest()
    assert (card["normalisation"]["done_by"], card["license"]) == ("the model", "unknown")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["w.safetensors", "w.safetensors.card.json"]


def test_the_models_of_the_repository_have_their_own_cards():
    folder = Path(__file__).parents[2] / "models"
    files = sorted(folder.glob("*.onnx"))
    assert len(files) > 0
    for path in files:
        card = json.loads(card_of(path).read_text())
        assert (card["file"], card["sha256"]) == (path.name, hashlib.sha256(path.read_bytes()).hexdigest())
        assert [each["name"] for each in card["classes"]] == ExportedDetector(path).class_names
