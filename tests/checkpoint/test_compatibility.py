"""What a loading of weights did, in one message."""

from types import SimpleNamespace

import pytest
from detectron2.data import MetadataCatalog

from focal_det.checkpoint.compatibility import build_parts, weights_summary
from focal_det.registries import ASSIGNER_REGISTRY

pytestmark = pytest.mark.detectron2

OURS = {"backbone.conv.weight": (8, 3), "head.cls_score.weight": (45, 8), "criterion.normalizer.ema": ()}


def summary(given, *, missing=(), unexpected=(), wrong=()):
    report = SimpleNamespace(missing_keys=list(missing), unexpected_keys=list(unexpected), incorrect_shapes=list(wrong))
    return weights_summary(given, OURS, report, num_classes=5)


def test_all_of_them_fit():
    assert summary(OURS) == ("Weights: 2 of the model's 2 loaded", True)
    assert summary(OURS, missing=["criterion.normalizer.ema"])[0] == "Weights: 2 of the model's 2 loaded"


def test_a_head_of_other_classes_is_said_in_words():
    # 45 outputs of 5 classes are 9 anchors; 720 outputs of 9 anchors are 80 classes
    name = "head.cls_score.weight"
    message, is_fine = summary({name: (720, 8)}, missing=[name], wrong=[(name, (720, 8), (45, 8))])
    assert message == (
        "Weights: 1 of the model's 2 loaded; initialised anew, since the file has another shape: "
        "head.cls_score.weight (for 80 classes, the model has 5)"
    )
    assert not is_fine


def test_a_misfit_that_is_only_called_missing_is_found_by_the_end_of_its_name():
    message, _ = summary(
        {"cls_score.weight": (720, 8)}, missing=["head.cls_score.weight"], unexpected=["cls_score.weight"]
    )
    assert "head.cls_score.weight (for 80 classes, the model has 5)" in message
    assert "not used" not in message


def test_another_shape_elsewhere_is_given_in_numbers():
    name = "backbone.conv.weight"
    message, _ = summary({name: (16, 3)}, missing=[name], wrong=[(name, (16, 3), (8, 3))])
    assert message.endswith("backbone.conv.weight ((16, 3) for (8, 3))")


def test_what_is_missing_and_what_is_not_used_are_counted():
    message, is_fine = summary({}, missing=["head.cls_score.weight"], unexpected=["fc.weight", "fc.bias"])
    assert message == (
        "Weights: 1 of the model's 2 loaded; "
        "initialised anew, since the file does not have them: 1, such as head.cls_score.weight (1 of head); "
        "in the file and not used: 2, such as fc.bias (2 of fc)"
    )
    assert is_fine  # a backbone's weights have no head


def test_nothing_that_fits_is_a_warning():
    message, is_fine = summary({"x": (1,)}, missing=list(OURS), unexpected=["x"])
    assert message.startswith("Weights: none of the file's 1 fits one of the model's 2;")
    assert not is_fine


@pytest.mark.parametrize("architecture", ["FocalRetinaNet", "RetinaNet"])
def test_rotated_anchors_are_refused_when_the_parts_are_built(tiny_cfg, architecture):
    keys = ("MODEL.META_ARCHITECTURE", architecture, "MODEL.ANCHOR_GENERATOR.NAME", "RotatedAnchorGenerator")
    _, found = build_parts(tiny_cfg(*keys))
    assert "RotatedAnchorGenerator makes anchors of 5 numbers" in found.errors[0]


def test_keypoints_of_a_set_whose_metadata_does_not_name_them_are_refused(tiny_cfg):
    MetadataCatalog.get("without_keypoints").set(thing_classes=["a"])
    try:
        cfg = tiny_cfg().clone()
        cfg.defrost()
        cfg.MODEL.KEYPOINT_ON, cfg.DATASETS.TRAIN = True, ("without_keypoints",)
        _, found = build_parts(cfg)
    finally:
        MetadataCatalog.remove("without_keypoints")
    (line,) = found.errors
    assert "MODEL.KEYPOINT_ON True needs keypoint_names and keypoint_flip_map" in line
    assert 'MetadataCatalog.get("without_keypoints").set(keypoint_names=[...], keypoint_flip_map=[...])' in line


def test_an_assigner_that_fails_is_named_when_the_parts_are_built(tiny_cfg, monkeypatch):
    class Broken:
        def __init__(self, cfg):
            pass

    monkeypatch.setitem(ASSIGNER_REGISTRY._obj_map, "Broken", Broken)
    _, found = build_parts(tiny_cfg("MODEL.FOCAL_DET.ASSIGNER.NAME", "Broken"))
    assert found.errors == [
        "the configuration does not make an assignment by Broken: TypeError: 'Broken' object is not callable"
    ]
    assert build_parts(tiny_cfg("MODEL.FOCAL_DET.ASSIGNER.NAME", "Broken"), training=False)[1].errors == []
