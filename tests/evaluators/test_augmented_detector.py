"""Test-time augmentation: copies of an image are detected, mapped back and merged; a run evaluates with it besides."""

import json
import os

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from torch import nn
from training_fixtures import TINY

from focal_det.evaluators.augmented_detector import AugmentedDetector

pytestmark = pytest.mark.detectron2

SIZE, OUTPUT = (64, 96), {"height": 128, "width": 192}
ON = ("TEST.AUG.ENABLED", "True", "TEST.AUG.MAX_SIZE", "192")


@pytest.fixture
def detect(tiny_cfg):
    """Returns a function that detects on an image, with TEST.AUG if there are words, by a model that finds much."""
    model = build_model(tiny_cfg()).eval()
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.normal_(std=0.05)
        model.head.cls_score.bias.fill_(-1.0)

    def run(image, *words):
        detector = AugmentedDetector(tiny_cfg(*ON, *words), model) if words else model
        with torch.no_grad():
            return detector([{"image": image, **OUTPUT}])[0]["instances"]

    return run


def test_one_size_without_a_mirror_image_is_the_plain_detection(detect):
    image = torch.randint(0, 256, (3, *SIZE), dtype=torch.uint8)
    plain, augmented = detect(image), detect(image, "TEST.AUG.MIN_SIZES", "(64,)", "TEST.AUG.FLIP", "False")
    assert len(plain) == len(augmented) > 50
    assert augmented.image_size == plain.image_size == (128, 192)
    torch.testing.assert_close(augmented.pred_boxes.tensor, plain.pred_boxes.tensor, rtol=0, atol=1e-3)
    torch.testing.assert_close(augmented.scores, plain.scores)
    assert augmented.pred_classes.equal(plain.pred_classes)


def test_detections_of_a_mirrored_image_are_mirrored(detect):
    image = torch.randint(0, 256, (3, *SIZE), dtype=torch.uint8)
    words = ("TEST.AUG.MIN_SIZES", "(48, 64)")
    found, mirrored = detect(image, *words), detect(image.flip(2), *words)
    boxes = found.pred_boxes.tensor.clone()
    boxes[:, [0, 2]] = 192 - boxes[:, [2, 0]]
    torch.testing.assert_close(mirrored.scores, found.scores)
    torch.testing.assert_close(mirrored.pred_boxes.tensor, boxes, rtol=0, atol=1e-3)
    assert not torch.allclose(found.scores, detect(image, *words, "TEST.AUG.FLIP", "False").scores)


class Corner(nn.Module):
    """Finds in each copy the same quarter of it, at its left, with a score of its own."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def forward(self, images):
        height, width = images[0]["image"].shape[1:]
        self.sizes.append((height, width))
        box = torch.tensor([[0.0, 0.0, width / 4, height]]).repeat(2, 1)
        scores = torch.tensor([0.1, 0.25]) * len(self.sizes)
        found = Instances((height, width), pred_boxes=Boxes(box), scores=scores, pred_classes=torch.tensor([0, 1]))
        return [{"instances": found[: 2 * (height > 20)]}]


def test_boxes_come_back_to_the_image_and_hide_one_another_within_their_class(tiny_cfg):
    model = Corner()
    image = {"image": torch.zeros(3, *SIZE, dtype=torch.uint8), **OUTPUT}
    cfg = tiny_cfg(*ON, "TEST.AUG.MIN_SIZES", "(32, 16)", "TEST.DETECTIONS_PER_IMAGE", "3")
    found = AugmentedDetector(cfg, model)([image])[0]["instances"]
    assert model.sizes == [(32, 48), (32, 48), (16, 24), (16, 24)]
    # of the copy .1 and .25, of its mirror image .2 and .5, of which the lowest is the fourth
    assert found.scores.tolist() == pytest.approx([0.5, 0.25, 0.2])
    assert found.pred_boxes.tensor.tolist() == [[144, 0, 192, 128], [0, 0, 48, 128], [144, 0, 192, 128]]
    assert found.pred_classes.tolist() == [1, 1, 0]
    nothing = AugmentedDetector(tiny_cfg(*ON, "TEST.AUG.MIN_SIZES", "(16,)"), model)([image])[0]["instances"]
    assert len(nothing) == 0


def test_a_run_evaluates_with_it_besides_and_is_held_against_what_is_expected(train_net, tmp_path):
    settings = [
        *("DATASETS.TRAIN", "shapes_train_4_64px", "DATASETS.TEST", "shapes_val_3_64px", "SOLVER.MAX_ITER", "1"),
        *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.STEPS", "()", "SOLVER.WARMUP_ITERS", "0", "SOLVER.BASE_LR", "1e-6"),
        *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64", "DATALOADER.NUM_WORKERS", "0", "SEED", "1"),
        *("MODEL.FOCAL_DET.DRAW_IMAGES", "0", "MODEL.RETINANET.SCORE_THRESH_TEST", "0.0", "OUTPUT_DIR", "run"),
        *("MODEL.RETINANET.BBOX_REG_LOSS_TYPE", "giou", "TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "(64,)"),
        *("--config-file", "configs/Base-RetinaNet-FPN.yaml", *TINY[:-2]),
    ]
    settings[settings.index("run")] = str(tmp_path / "run")
    environment = {**os.environ, "DETECTRON2_DATASETS": str(tmp_path)}
    expected = "[['bbox', 'AP', 90.0, 1.0], ['bbox_TTA', 'AP50', 0.0, 100.0], ['bbox_TTA', 'AP-disk', 80.0, 0.5]]"
    done = train_net(*settings, "TEST.EXPECTED_RESULTS", expected, env=environment)
    assert done.returncode == 1, done.stderr[-2000:]
    scores = json.loads((tmp_path / "run" / "metrics.json").read_text().splitlines()[-1])
    last = done.stderr.splitlines()[-3:]
    assert last[0].startswith("error: TEST.EXPECTED_RESULTS is not met; all is done and saved in ")
    assert last[1:] == [
        f"bbox/AP is {scores['bbox/AP']:.4f}; 90.0 was expected, within 1.0",
        f"bbox_TTA/AP-disk is {scores['bbox_TTA/AP-disk']:.4f}; 80.0 was expected, within 0.5",
    ]
    of_set = f"on shapes_val_3_64px; AP {scores['bbox_TTA/AP']:.1f}, AP50 {scores['bbox_TTA/AP50']:.1f}"
    assert f"Done: 1 iterations, AP {scores['bbox/AP']:.1f}, " in done.stdout
    assert of_set in done.stdout
    for folder in ("inference", "inference_TTA"):
        detections = json.loads(
            (tmp_path / "run" / folder / "shapes_val_3_64px" / "coco_instances_results.json").read_text()
        )
        assert {detection["image_id"] for detection in detections} == {1, 2, 3}
    weights = ("MODEL.WEIGHTS", str(tmp_path / "run" / "model_final.pth"))
    same = f"[['bbox', 'AP', {scores['bbox/AP']}, 0.01], ['bbox_TTA', 'AP', {scores['bbox_TTA/AP']}, 0.01]]"
    done = train_net("--eval-only", *settings, *weights, "TEST.EXPECTED_RESULTS", same, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert of_set in done.stdout
