"""A training that starts from a detector of other classes keeps the rows of those that it shares, by name."""

import pickle

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from training_fixtures import TINY

from focal_det.checkpoint.checkpointer import RunCheckpointer
from focal_det.checkpoint.class_rows import ClassRows
from focal_det.checkpoint.run_record import RunRecord, UsedSet
from focal_det.config.load import load_config
from focal_det.config.validate import check_config

pytestmark = pytest.mark.detectron2

OLD, NEW = ("person", "traffic light", "dog", "cat"), ("cat", "raccoon", "Traffic_Light")
LAYER = ("head.cls_score.weight", "head.cls_score.bias")


def rows(weights, name, classes):
    """The rows of the class layer by anchor and class: (9, K, ...)."""
    return torch.as_tensor(weights[name]).reshape(9, classes, *weights[name].shape[1:])


def detector(tiny_cfg, classes):
    """A tiny detector and its weights, all of which are random, biases too."""
    model = build_model(tiny_cfg("MODEL.RETINANET.NUM_CLASSES", str(classes)))
    model.load_state_dict({name: torch.randn_like(v.float()).to(v.dtype) for name, v in model.state_dict().items()})
    return {name: value.numpy().copy() for name, value in model.state_dict().items()}


@pytest.fixture
def old(tiny_cfg):
    return detector(tiny_cfg, len(OLD))


@pytest.fixture
def load(tiny_cfg, tmp_path):
    """Load what a .pkl of the zoo's form or a .pth holds into a new model; return its weights before and after."""

    def load(content, class_rows, suffix=".pkl", **kept):
        path = tmp_path / f"old{suffix}"
        if suffix == ".pkl":
            path.write_bytes(pickle.dumps({"model": content, "__author__": "somebody"}))
        else:
            torch.save({"model": {k: torch.as_tensor(v) for k, v in content.items()}, **kept}, path)
        model = build_model(tiny_cfg())
        before = {name: value.clone() for name, value in model.state_dict().items()}
        RunCheckpointer(model, class_rows=class_rows).load(str(path), checkpointables=[])
        return before, model.state_dict()

    return load


def test_rows_of_shared_names_are_kept_and_the_others_have_the_prior(old, load, caplog):
    with caplog.at_level("INFO"):
        before, after = load(old, ClassRows(NEW, OLD))
    for name in LAYER:
        theirs, fresh, found = rows(old, name, 4), rows(before, name, 3), rows(after, name, 3)
        assert torch.equal(found[:, 0], theirs[:, 3])
        assert torch.equal(found[:, 1], fresh[:, 1])
        assert torch.equal(found[:, 2], theirs[:, 1])
    assert rows(after, LAYER[1], 3)[:, 1].sigmoid() == pytest.approx(0.01)  # the paper's prior
    assert all(torch.equal(after[name], torch.as_tensor(old[name])) for name in after if name not in LAYER)
    assert (
        "Class layer, of 4 classes in the file: kept for cat, Traffic_Light; initialised anew, with "
        "MODEL.RETINANET.PRIOR_PROB, for raccoon"
    ) in caplog.text
    total = len(after)
    assert f"Weights: {total} of the model's {total} loaded" in caplog.text


def test_the_names_of_a_checkpoint_count_more_than_those_of_the_key(tiny_cfg, load):
    three = detector(tiny_cfg, 3)
    used = UsedSet("a", 1, None)
    run = RunRecord({"SOLVER.MAX_ITER": 1}, (used,), used, ("raccoon", "cat", "dog"), 1, "", "").plain()
    before, after = load(three, ClassRows(NEW, OLD), ".pth", run=run)
    for name in LAYER:
        theirs, fresh, found = rows(three, name, 3), rows(before, name, 3), rows(after, name, 3)
        assert torch.equal(found, torch.stack([theirs[:, 1], theirs[:, 0], fresh[:, 2]], dim=1))


def test_without_names_or_with_the_same_ones_all_rows_are_as_in_the_file(tiny_cfg, load):
    three = detector(tiny_cfg, 3)
    for class_rows in (None, ClassRows(NEW, None), ClassRows(NEW, NEW)):
        _, after = load(three, class_rows)
        assert all(torch.equal(after[name], torch.as_tensor(three[name])) for name in LAYER)


def test_of_names_that_are_spelt_alike_the_same_one_is_taken(old, load):
    _, after = load(old, ClassRows(("Cat", "dog", "CAT"), ("Cat", "dog", "Dog", "cat")))
    for name in LAYER:
        assert torch.equal(rows(after, name, 3)[:, :2], rows(old, name, 4)[:, :2])


def test_a_layer_of_other_anchors_is_initialised_anew(old, load, caplog):
    fewer = {**old, **{name: old[name][:24] for name in LAYER}}  # six anchors of four classes
    used = UsedSet("a", 1, None)
    run = RunRecord({"SOLVER.MAX_ITER": 1}, (used,), used, OLD, 1, "", "").plain()
    before, after = load(fewer, ClassRows(NEW, None), ".pth", run=run)
    assert all(torch.equal(after[name], before[name]) for name in LAYER)
    assert "initialised anew, since the file has another shape: head.cls_score.weight" in caplog.text


@pytest.mark.parametrize("names", [(*OLD, "cow"), OLD[:2]])  # of two classes, 36 rows might be of 18 anchors
def test_names_that_are_not_those_of_the_file_are_refused(old, load, names):
    message = f"cls_score.weight has 36 rows, not those of 9 anchors and {len(names)} classes: MODEL.FOCAL"
    with pytest.raises(ValueError, match=message):
        load(old, ClassRows(NEW, names))


def test_the_configuration_that_starts_from_coco_is_sound():
    cfg = load_config("configs/retinanet_coco_finetune.yaml")
    assert check_config(cfg, num_processes=1, training=True).errors == []
    names = ClassRows.of(cfg, NEW).files
    assert (len(names), names[0], names[15]) == (80, "person", "cat")


def test_a_training_says_which_classes_start_from_which_and_a_resumed_one_has_its_own(
    tiny_cfg, train_net, write_voc, tmp_path
):
    voc = write_voc({"a": [("cat", 11, 11, 40, 40), ("raccoon", 50, 11, 90, 60)]}, train=["a"], val=["a"])
    coco = detector(tiny_cfg, len(MetadataCatalog.get("coco_2017_train").thing_classes))
    (tmp_path / "coco.pkl").write_bytes(pickle.dumps({"model": coco, "__author__": "somebody"}))
    words = [
        *("--config-file", "focal_det://Base-RetinaNet-FPN.yaml", "--train-voc", voc, "--val-voc", voc, *TINY[2:-2]),
        *("MODEL.WEIGHTS", tmp_path / "coco.pkl", "OUTPUT_DIR", tmp_path / "run", "SOLVER.IMS_PER_BATCH", "1"),
        *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64", "DATALOADER.NUM_WORKERS", "0", "SEED", "1"),
        *("SOLVER.BASE_LR", "1e-9", "SOLVER.STEPS", "()", "SOLVER.WARMUP_ITERS", "0"),
        *("MODEL.FOCAL_DET.DRAW_IMAGES", "0"),
    ]
    first = train_net(*map(str, words), "SOLVER.MAX_ITER", "1", "MODEL.FOCAL_DET.WEIGHTS_CLASSES", "coco_2017_train")
    assert first.returncode == 0, first.stderr[-3000:]
    said = (
        "Class layer, of 80 classes in the file: kept for cat; initialised anew, with MODEL.RETINANET.PRIOR_PROB, for"
    )
    assert first.stdout.count(f"{said} raccoon") == 2  # of the check, and of the training
    saved = torch.load(tmp_path / "run" / "model_final.pth", weights_only=True)["model"]
    cat = rows(coco, LAYER[1], 80)[:, 15]
    np.testing.assert_allclose(rows(saved, LAYER[1], 2)[:, 0], cat, rtol=1e-4)
    again = train_net(
        *map(str, words), "SOLVER.MAX_ITER", "2", "MODEL.FOCAL_DET.WEIGHTS_CLASSES", "coco_2017_train", "--resume"
    )
    assert again.returncode == 0, again.stderr[-3000:]
    assert "Class layer" not in again.stdout
