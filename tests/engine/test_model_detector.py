"""A model detects in tiles, evaluated as in a prediction; what one tile covers is as without tiles, bit for bit."""

import json

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model

from focal_det import Predictor
from focal_det.config.validate import check_config
from focal_det.data.tile_records import tiles_of
from focal_det.data.tiling import Tiles
from focal_det.engine.draw_detections import draw_detections
from focal_det.engine.model_detector import ModelDetector, TiledModel, evaluated_in_tiles
from focal_det.engine.trainer import Trainer
from focal_det.inference.images import read_image
from focal_det.output_layout import COCO_RESULTS

pytestmark = pytest.mark.detectron2

TILES = "MODEL.FOCAL_DET.TILES."
FINDING_MUCH = ("MODEL.RETINANET.PRIOR_PROB", "0.4", "INPUT.MIN_SIZE_TEST", "48", "DATALOADER.NUM_WORKERS", "0")


def finding_much(cfg):
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    with torch.no_grad():
        model.head.cls_score.weight.normal_(std=0.5)
    return model


def evaluated(tiny_cfg, folder, name, *words):
    """Evaluate on a set; return the detections by image, with the configuration and the model."""
    cfg = tiny_cfg(*FINDING_MUCH, *words, "OUTPUT_DIR", str(folder))
    cfg.DATASETS.TEST = (name,)
    cfg.freeze()
    model = finding_much(cfg)
    Trainer.test(cfg, model)
    found = {}
    for row in json.loads((folder / "inference" / name / COCO_RESULTS).read_text()):
        found.setdefault(row["image_id"], []).append((*row["bbox"], row["score"], row["category_id"]))
    return found, cfg, model


def rows_of(detections):
    """As an evaluation writes them; the categories of shapes begin with 1."""
    x0, y0, x1, y1 = detections.boxes.T  # float32, as Detectron2 subtracts
    sides = np.stack([x0, y0, x1 - x0, y1 - y0], axis=1).tolist()
    rows = zip(sides, detections.scores.tolist(), detections.classes.tolist(), strict=True)
    return [(*box, score, label + 1) for box, score, label in rows]


def test_an_evaluation_in_one_tile_is_the_one_without(tiny_cfg, tmp_path, val_shapes):
    without, _, model = evaluated(tiny_cfg, tmp_path / "without", val_shapes)
    with_one, *_ = evaluated(tiny_cfg, tmp_path / "with", val_shapes, TILES + "SIZE", "64")  # the images' side
    assert without == with_one
    assert min(map(len, without.values())) > 20
    assert not model.training


@pytest.mark.parametrize("order", ["BGR", "RGB"])
def test_an_evaluation_finds_in_tiles_what_the_predictor_does(tiny_cfg, tmp_path, val_shapes, order):
    words = ("INPUT.FORMAT", order, TILES + "SIZE", "40", TILES + "OVERLAP", "0.25")
    found, cfg, model = evaluated(tiny_cfg, tmp_path / "run", val_shapes, *words)
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    predictor = Predictor(cfg, tmp_path / "model.pth", batch_size=4)
    whole = Predictor(cfg, tmp_path / "model.pth", tile=0)
    asked = Predictor(whole.cfg, tmp_path / "model.pth", batch_size=4, tile=40, overlap=0.25)
    for record in DatasetCatalog.get(val_shapes):
        there = rows_of(predictor(record["file_name"]))
        assert found[record["image_id"]] == there == rows_of(asked(record["file_name"]))
        assert there != rows_of(whole(record["file_name"]))
        assert max(row[0] + row[2] for row in there) > 60  # of the image's 64, not of a tile's 40


def test_what_an_evaluation_in_tiles_leaves_cached_can_be_trained_on(tiny_cfg, tmp_path, val_shapes):
    _, _, model = evaluated(tiny_cfg, tmp_path, val_shapes, TILES + "SIZE", "40")
    cached = list(model.anchor_generator._cache.values())
    assert cached
    assert not any(level.is_inference() for levels in cached for level in levels)


def test_tiles_are_resized_as_images_and_detected_in_by_batches(tiny_cfg):
    cfg = tiny_cfg(*FINDING_MUCH, TILES + "SIZE", "32", TILES + "OVERLAP", "0")
    shapes = []

    class Seen(torch.nn.Module):
        def forward(self, batched_inputs):
            shapes.append([tuple(x["image"].shape[1:]) for x in batched_inputs])
            return model(batched_inputs)

    model = finding_much(cfg)
    with torch.no_grad():
        ModelDetector(cfg, Seen(), 4)([np.zeros((64, 96, 3), np.uint8)])
    assert shapes == [[(48, 72)], [(48, 48)] * 4, [(48, 48)] * 2]


def test_drawings_are_of_the_tiles_too(tiny_cfg, tmp_path, val_shapes, monkeypatch):
    calls = []
    forward = TiledModel.forward
    monkeypatch.setattr(TiledModel, "forward", lambda self, images: calls.append(images) or forward(self, images))
    cfg = tiny_cfg(*FINDING_MUCH, TILES + "SIZE", "32", "MODEL.FOCAL_DET.DRAW_IMAGES", "2", "OUTPUT_DIR", str(tmp_path))
    cfg.DATASETS.TEST = (val_shapes,)
    model = finding_much(cfg).train()
    assert draw_detections(cfg, model) is not None
    images = [image for (image,) in calls]
    assert [tuple(image["image"].shape) for image in images] == [(3, 64, 64)] * 2  # as read
    assert (images[0]["image"].permute(1, 2, 0).numpy() == read_image(images[0]["file_name"])).all()
    assert model.training


def test_a_model_without_tiles_is_left_as_it_is(tiny_cfg):
    cfg = tiny_cfg()
    model = torch.nn.Identity()
    assert evaluated_in_tiles(cfg, model) is model
    assert tiles_of(cfg) == Tiles()
    assert tiles_of(tiny_cfg(TILES + "SIZE", "64", TILES + "OVERLAP", "0.5")) == Tiles(64, 0.5)


@pytest.mark.parametrize(
    ("architecture", "key"),
    [
        ("FocalRetinaNet", "TEST.AUG.ENABLED"),
        ("GeneralizedRCNN", "MODEL.MASK_ON"),
        ("GeneralizedRCNN", "MODEL.KEYPOINT_ON"),
        ("GeneralizedRCNN", "MODEL.LOAD_PROPOSALS"),
    ],
)
def test_tiles_and_what_takes_or_gives_more_than_boxes_exclude_each_other(tiny_cfg, architecture, key):
    words = ("MODEL.META_ARCHITECTURE", architecture, key, "True", "MODEL.WEIGHTS", "detectron2://x.pkl")
    for size, expected in (("0", []), ("640", [f"MODEL.FOCAL_DET.TILES.SIZE is 640 and {key} is True, which is of"])):
        cfg = tiny_cfg(*words, TILES + "SIZE", size)
        cfg.DATASETS.TEST = ("a",)
        problems = check_config(cfg, num_processes=1, training=False).errors
        assert [problem[: len(line)] for problem, line in zip(problems, expected, strict=True)] == expected


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("MODEL.META_ARCHITECTURE", "GeneralizedRCNN"), "GeneralizedRCNN is not known to ignore boxes of class -1"),
        (
            ("DATALOADER.SAMPLER_TRAIN", "WeightedTrainingSampler"),
            "WeightedTrainingSampler weighs images as a whole, and",
        ),
        (("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"), None),
    ],
)
def test_a_training_in_tiles_needs_what_knows_them(tiny_cfg, words, problem):
    cfg = tiny_cfg(*words, TILES + "SIZE", "640")
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("a",)
    problems = check_config(cfg, num_processes=1, training=True).errors
    assert [problem in line for line in problems] == [True] * (problem is not None)
    cfg.MODEL.WEIGHTS = "detectron2://x.pkl"
    assert check_config(cfg, num_processes=1, training=False).errors == []
