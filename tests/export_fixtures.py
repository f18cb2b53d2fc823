"""Fixtures of the tests of exports: an untrained detector that finds something, as a run that was evaluated."""

import json
import shutil

import cv2
import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model

from focal_det.cli.main import main
from focal_det.config.unused_keys import without_unread_keys
from focal_det.engine.predictor import Predictor
from focal_det.export import program

# So that an untrained model finds something in every image: a prior far above the threshold, not too many of a level.
FINDING = [
    *("MODEL.RETINANET.PRIOR_PROB", "0.3", "MODEL.RETINANET.SCORE_THRESH_TEST", "0.25"),
    *("MODEL.RETINANET.TOPK_CANDIDATES_TEST", "200", "INPUT.MIN_SIZE_TEST", "64", "INPUT.MAX_SIZE_TEST", "160"),
]
CLASSES = [{"id": 2, "name": "a"}, {"id": 5, "name": "b"}, {"id": 9, "name": "c"}]


def finding_model(cfg):
    torch.manual_seed(3)
    model = build_model(cfg).eval()
    images = 60 * torch.randn(1, 3, 128, 128)
    with torch.no_grad():  # logits and deltas of a trained model's spread, whatever the features' is
        for outputs, layer, spread in zip(
            model.network(images), (model.head.cls_score, model.head.bbox_pred), (1.0, 0.3), strict=True
        ):
            layer.weight *= spread / torch.cat([level.flatten() for level in outputs]).std()
    return model


def images(sizes, seed=0):
    rng = np.random.default_rng(seed)
    coarse = [rng.integers(0, 256, (max(1, h // 8), max(1, w // 8), 3)).astype(np.uint8) for h, w in sizes]
    return [cv2.resize(c, (w, h), interpolation=cv2.INTER_NEAREST) for c, (h, w) in zip(coarse, sizes, strict=True)]


@pytest.fixture(scope="session")
def finding_run(tmp_path_factory, tiny_cfg):
    """A run as a training leaves it: configuration, weights, classes."""
    folder = tmp_path_factory.mktemp("run")
    cfg = tiny_cfg(*FINDING)
    DetectionCheckpointer(finding_model(cfg), str(folder)).save("model_final")
    (folder / "config.yaml").write_text(without_unread_keys(cfg).dump())
    (folder / "classes.json").write_text(json.dumps(CLASSES))
    return folder


@pytest.fixture(scope="session")
def evaluated_run(finding_run, tmp_path_factory, tiny_cfg):
    """The same with an evaluation, on images whose annotations are what the model finds, and training images."""
    folder = tmp_path_factory.mktemp("evaluated")
    for path in finding_run.iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "config.yaml").unlink()
    cfg = tiny_cfg(*FINDING, "DATASETS.TRAIN", "('mine',)", "DATASETS.TEST", "('val',)")
    (folder / "config.yaml").write_text(without_unread_keys(cfg).dump())
    pixels = images([(96, 96)] * 6, seed=4)
    (folder / "images").mkdir()
    for index, image in enumerate(pixels):
        cv2.imwrite(str(folder / "images" / f"{index}.png"), image)
    predictor, objects = Predictor.from_run(finding_run), []
    for index, found in enumerate(predictor(pixels[:3])):
        objects += found.to_coco(index, [each["id"] for each in CLASSES])
    for i, each in enumerate(objects):
        each.update(id=i, iscrowd=0, area=float(np.prod(each["bbox"][2:])))
    entries = [{"id": i, "file_name": f"{i}.png", "width": 96, "height": 96} for i in range(6)]
    (folder / "annotations").mkdir()
    tested = {"images": entries[:3], "annotations": objects, "categories": CLASSES}
    (folder / "annotations" / "val.json").write_text(json.dumps(tested))
    trained = {"images": entries[2:], "annotations": [], "categories": CLASSES}  # one of them is tested on, too
    (folder / "annotations" / "mine.json").write_text(json.dumps(trained))
    place = folder / "inference" / "val"
    place.mkdir(parents=True)
    (place / "coco_instances_results.json").write_text("[]")
    record = {"name": "val", "annotations": "../../annotations/val.json", "images": "../../images"}
    (place / "dataset.json").write_text(json.dumps(record))
    return folder


@pytest.fixture(scope="session")
def exported_run(finding_run, made_once):
    """Return a function: the run exported by the command under a file name, with these words, once in the session."""

    def export(name, *words):
        def make(folder):
            assert main(["export", "--run", str(finding_run), *words, "--out", str(folder / name)]) == 0

        return made_once(name, make) / name

    return export


@pytest.fixture(scope="session")
def plain_onnx(exported_run):
    """The run exported in float32."""
    return exported_run("m.onnx", "--license", "CC-BY-4.0")


@pytest.fixture(scope="session")
def export_in_8_bits(evaluated_run, plain_onnx):
    """Return a function that exports the run in 8 bits to a path, if AP does not fall by more than so much.

    It takes the file above for the same model in float32, since tracing takes a quarter of a minute.
    """

    def export(path, most):
        words = ["--run", evaluated_run, "--out", path, "--activations-format", "int8", "--max-ap-drop", most]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(program, "export_onnx", lambda model, metadata, path, *, int8: shutil.copy(plain_onnx, path))
            return main(["export", *map(str, words)])

    return export


@pytest.fixture(scope="session")
def calibrated_onnx(export_in_8_bits, made_once):
    """The run exported in 8 bits, with whatever AP, to the name that its float32 file beside it could have."""

    def make(folder):
        assert export_in_8_bits(folder / "float32.onnx", 100) == 0

    return made_once("calibrated", make) / "float32.onnx"
