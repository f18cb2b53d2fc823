"""Detectron2's tutorial, word for word but for the meta-architecture; then our predictor and export."""

import json
import os
import random

import cv2
import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader
from detectron2.engine import DefaultPredictor, DefaultTrainer
from detectron2.evaluation import COCOEvaluator, inference_on_dataset
from detectron2.structures import BoxMode
from detectron2.utils.visualizer import ColorMode, Visualizer

import focal_det
import focal_det.plugin
from focal_det.data.shapes import CLASSES, make_shapes
from focal_det.export.graph import DetectorGraph
from focal_det.export.suppress import torch_suppression

pytestmark = pytest.mark.detectron2


def get_balloon_dicts(folder):
    """Read a set with code of one's own, as the tutorial does."""
    with open(os.path.join(folder, "annotations.json")) as file:
        coco = json.load(file)
    dataset_dicts = []
    for image in coco["images"]:
        record = {"file_name": os.path.join(folder, "images", image["file_name"]), "image_id": image["id"]}
        record["height"], record["width"] = image["height"], image["width"]
        record["annotations"] = [
            {"bbox": x["bbox"], "bbox_mode": BoxMode.XYWH_ABS, "category_id": x["category_id"] - 1}
            for x in coco["annotations"]
            if x["image_id"] == image["id"]
        ]
        dataset_dicts.append(record)
    return dataset_dicts


@pytest.fixture
def balloons(tmp_path):
    """Register balloon_train and balloon_val; return the folder of the second."""
    for d, count in (("train", 8), ("val", 5)):
        make_shapes(f"shapes_{d}_{count}_64px", tmp_path)
        folder = str(tmp_path / "shapes" / "v1" / f"shapes_{d}_{count}_64px")
        DatasetCatalog.register("balloon_" + d, lambda folder=folder: get_balloon_dicts(folder))
        MetadataCatalog.get("balloon_" + d).set(thing_classes=list(CLASSES))
    yield folder
    for d in ("train", "val"):
        DatasetCatalog.remove("balloon_" + d)
        MetadataCatalog.remove("balloon_" + d)


@pytest.fixture
def cfg(tmp_path):
    """Return the tutorial's configuration, made small; the second line is the one that is changed."""
    cfg = get_cfg()
    cfg.merge_from_file(model_zoo.get_config_file("COCO-Detection/retinanet_R_50_FPN_3x.yaml"))
    cfg.MODEL.META_ARCHITECTURE = "FocalRetinaNet"
    cfg.DATASETS.TRAIN = ("balloon_train",)
    cfg.DATASETS.TEST = ()
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.MODEL.WEIGHTS = ""
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.SOLVER.BASE_LR = 0.00025
    cfg.SOLVER.MAX_ITER = 3
    cfg.SOLVER.STEPS = []
    cfg.MODEL.RETINANET.NUM_CLASSES = len(CLASSES)
    cfg.OUTPUT_DIR = str(tmp_path / "output")
    small = ["MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64]
    small += ["MODEL.FPN.OUT_CHANNELS", 16, "MODEL.RETINANET.PRIOR_PROB", 0.1, "MODEL.RETINANET.NUM_CONVS", 1]
    cfg.merge_from_list([*small, "INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.MIN_SIZE_TEST", 64, "SEED", 1])
    return cfg


def test_the_tutorial_trains_detects_evaluates_and_draws_and_its_model_can_be_exported(balloons, cfg, tmp_path):
    os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
    trainer = DefaultTrainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()

    cfg.MODEL.WEIGHTS = os.path.join(cfg.OUTPUT_DIR, "model_final.pth")
    cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.05
    predictor = DefaultPredictor(cfg)
    for d in random.sample(get_balloon_dicts(balloons), 2):
        im = cv2.imread(d["file_name"])
        outputs = predictor(im)
        metadata = MetadataCatalog.get("balloon_train")
        v = Visualizer(im[:, :, ::-1], metadata=metadata, scale=0.5, instance_mode=ColorMode.IMAGE_BW)
        out = v.draw_instance_predictions(outputs["instances"].to("cpu"))
        assert out.get_image().shape == (32, 32, 3)
        assert len(outputs["instances"]) > 0
    evaluator = COCOEvaluator("balloon_val", output_dir=cfg.OUTPUT_DIR)
    val_loader = build_detection_test_loader(cfg, "balloon_val")
    results = inference_on_dataset(predictor.model, val_loader, evaluator)
    assert 0 <= results["bbox"]["AP"] <= 100

    # The configuration without keys of ours and the checkpoint are all that our commands need, such as export
    scores = outputs["instances"].scores.tolist()
    assert focal_det.Predictor(cfg)(im).scores.tolist() == pytest.approx(scores, abs=1e-6)
    (tmp_path / "config.yaml").write_text(cfg.dump())
    ours = focal_det.Predictor(tmp_path / "config.yaml", cfg.MODEL.WEIGHTS)
    graph = DetectorGraph(ours.model, torch_suppression(cfg.MODEL.RETINANET.NMS_THRESH_TEST))
    images, sizes = torch.tensor(im.transpose(2, 0, 1))[None], torch.tensor([[64, 64]])
    with torch.no_grad():
        (boxes,), (found,), *_ = graph(images, sizes)
    found = found[(boxes[:, :2] < boxes[:, 2:]).all(dim=1)]  # whoever reads a graph's output drops empty boxes
    assert found.tolist() == pytest.approx(scores, abs=1e-6)
