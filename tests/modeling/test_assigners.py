"""The registered assigners: they read their keys, and one of one's own takes their place."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model

from focal_det.assigners.assignment import Assignment, pad_objects
from focal_det.assigners.atss import assign_by_atss
from focal_det.assigners.iou import assign_by_iou
from focal_det.defaults import add_focal_det_config
from focal_det.modeling.assigners import ATSSAssigner, IoUAssigner, check_assigner
from focal_det.registries import ASSIGNER_REGISTRY

pytestmark = pytest.mark.detectron2

NAME = "MODEL.FOCAL_DET.ASSIGNER.NAME"
LEVELS = [torch.tensor([[0.0, 0, 10, 10], [5.0, 0, 15, 10], [0.0, 0, 10, 4]]), torch.tensor([[0.0, 0, 30, 30]])]
OBJECTS = pad_objects([torch.tensor([[0.0, 0, 10, 10]])], [torch.tensor([1])])


@pytest.mark.parametrize(
    ("kind", "words", "function", "options"),
    [
        (
            IoUAssigner,
            ["MODEL.RETINANET.IOU_THRESHOLDS", "[0.3, 0.35]", "MODEL.FOCAL_DET.MATCH_BEST_ANCHOR", "False"],
            assign_by_iou,
            {"iou_thresholds": (0.3, 0.35), "match_best_anchor": False},
        ),
        (ATSSAssigner, ["MODEL.FOCAL_DET.ASSIGNER.TOPK", "1"], assign_by_atss, {"topk": 1}),
    ],
)
def test_an_assigner_has_the_constants_of_its_keys(tiny_cfg, kind, words, function, options):
    cfg = tiny_cfg(NAME, kind.__name__, *words)
    assigner = build_model(cfg).criterion.assigner
    assert type(assigner) is kind
    found, expected = (
        one(LEVELS, *OBJECTS, num_classes=3, **given) for one, given in ((assigner, {}), (function, options))
    )
    assert found.labels.equal(expected.labels)
    assert not found.labels.equal(function(LEVELS, *OBJECTS, num_classes=3).labels)


@pytest.mark.parametrize("kind", [IoUAssigner, ATSSAssigner])
def test_a_configuration_without_our_keys_has_their_defaults(kind):
    full = get_cfg()
    add_focal_det_config(full)
    assert vars(kind(get_cfg())) == vars(kind(full))


def test_one_of_ones_own_is_called_with_the_levels_of_every_image(tiny_cfg, batch_of, monkeypatch):
    seen = []

    class EveryAnchor:
        def __init__(self, cfg):
            self.number = cfg.MODEL.FOCAL_DET.ASSIGNER.TOPK

        def __call__(self, levels, gt_boxes, gt_classes, *, num_classes):
            seen.append([len(level) for level in levels])
            labels = gt_classes.new_full((len(gt_boxes), sum(seen[-1])), num_classes)
            labels[:, : self.number] = gt_classes[:, :1]
            return Assignment(labels, torch.zeros_like(labels))

    monkeypatch.setitem(ASSIGNER_REGISTRY._obj_map, "EveryAnchor", EveryAnchor)
    model = build_model(tiny_cfg(NAME, "EveryAnchor", "MODEL.FOCAL_DET.ASSIGNER.TOPK", "7"))
    losses = model(batch_of((2, 1)))
    assert model.criterion.num_assigned.tolist() == [7, 7]
    assert len(seen) == 2
    assert len(seen[0]) == len(model.in_features)
    assert losses["loss_box_reg"].isfinite()


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (IoUAssigner, {"iou_thresholds": [0.6, 0.5], "match_best_anchor": True}, "must be .background, object"),
        (ATSSAssigner, {"topk": 0}, "topk=0 must be"),
    ],
)
def test_a_constant_out_of_its_range_is_refused_before_the_first_batch(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(**options)


@pytest.mark.parametrize(
    ("outcome", "message"),
    [
        (None, "returned None; it must be Assignment"),
        (Assignment(torch.zeros(1, 3).long(), torch.zeros(1, 3).long()), r"\(1, 4\) int64 each"),
        (Assignment(torch.zeros(1, 4), torch.zeros(1, 4)), r"\(1, 4\) int64 each"),
        (Assignment(torch.full((1, 4), 6), torch.zeros(1, 4).long()), r"labels outside \[-1, 3\]"),
        (
            Assignment(torch.zeros(1, 4).long(), torch.full((1, 4), 9)),
            "matched object 9 of image 0 of the batch, which has 1",
        ),
    ],
)
def test_an_outcome_that_is_no_assignment_is_refused(outcome, message):
    with pytest.raises(ValueError, match=message):
        check_assigner(lambda *_, **__: outcome, LEVELS, 3)
    of_background = Assignment(torch.tensor([[-1, 3, 3, 0]]), torch.tensor([[9, 9, 9, 0]]))
    check_assigner(lambda *_, **__: of_background, LEVELS, 3)
