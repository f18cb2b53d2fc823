"""The counts of classes that losses weigh by are settled before the start: counted, kept where set, or refused."""

import json
from pathlib import Path

import numpy as np
import pytest

from focal_det.data.statistics import Objects, SetStatistics, statistics
from focal_det.preflight.class_counts import BOXES, IMAGES, count_classes
from focal_det.preflight.datasets import DataSets, DescribedSet
from focal_det.preflight.options import TrainOptions
from focal_det.preflight.plan import check

pytestmark = pytest.mark.detectron2

LOSS = "MODEL.FOCAL_DET.LOSS."
BALANCED = (LOSS + "NAME", "ClassBalancedFocalLoss")


def described(classes, class_images, name="mine"):
    objects = Objects(
        np.zeros((len(classes), 4)), np.zeros((len(classes), 2)), np.array(classes), np.zeros(len(classes))
    )
    content = SetStatistics(9, 9, 0, ["a", "b", "c"], [1, 2, 3], objects, class_images=class_images)
    return DescribedSet(name, True, ["a", "b", "c"], content, is_trained_on=True)


def data_of(*sets):
    return DataSets(("mine",), ("val",), [*sets, DescribedSet("val", True, ["a", "b", "c"])], {})


TWO = data_of(described([0, 0, 0, 1, 2], [2, 1, 1]), described([0, 1], [1, 1, 0], "more"))


@pytest.mark.parametrize(
    ("name", "key", "counts"), [("ClassBalancedFocalLoss", BOXES, [4, 2, 1]), ("FederatedFocalLoss", IMAGES, [3, 2, 1])]
)
def test_what_the_loss_reads_is_counted_over_all_sets_to_train_on(tiny_cfg, name, key, counts):
    few = (LOSS + "FED_NUM_CLASSES", "2") if name == "FederatedFocalLoss" else ()
    before = tiny_cfg(LOSS + "NAME", name, *few)
    cfg, found = count_classes(before, TWO)
    values = {BOXES: list(cfg.MODEL.FOCAL_DET.LOSS.CLASS_BOXES), IMAGES: list(cfg.MODEL.FOCAL_DET.LOSS.CLASS_IMAGES)}
    assert values == {BOXES: [], IMAGES: [], key: counts}
    assert found.notes == [f"{key} counted in the sets to train on: fewest 1 (c), most {counts[0]} (a)"]
    assert (found.errors, found.warnings) == ([], [])
    assert list(before.MODEL.FOCAL_DET.LOSS.CLASS_BOXES) == []
    again, found = count_classes(cfg, TWO)  # as a resumed run, whose configuration has them
    assert (again, found.errors, found.warnings, found.notes) == (cfg, [], [], [])


def test_other_losses_and_architectures_are_left_alone(tiny_cfg):
    for words in ((), ("MODEL.META_ARCHITECTURE", "RetinaNet"), (LOSS + "NAME", "NoSuchLoss")):
        cfg, found = count_classes(tiny_cfg(*words), TWO)
        assert (cfg, found.notes) == (tiny_cfg(*words), [])


def test_counts_that_are_set_stay_and_a_warning_says_where_the_data_differ(tiny_cfg):
    cfg, found = count_classes(tiny_cfg(*BALANCED, BOXES, "[9, 9, 9]"), TWO)
    assert list(cfg.MODEL.FOCAL_DET.LOSS.CLASS_BOXES) == [9, 9, 9]
    assert found.warnings == [f"{BOXES} is [9, 9, 9], but the sets to train on have [4, 2, 1]"]
    _, found = count_classes(tiny_cfg(*BALANCED, BOXES, "[9, 9]"), TWO)
    assert found.errors == [f"{BOXES} has 2 numbers, and there are 3 classes"]


def test_what_cannot_be_counted_is_refused_with_the_fix(tiny_cfg):
    _, found = count_classes(tiny_cfg(*BALANCED), data_of(described([0, 0, 2], [1, 0, 1])))
    assert found.errors == [
        f"the sets to train on have no box of class 'b', for which {BOXES} has no weight: leave the class out with "
        f"--classes, or set {BOXES}, with 1 for it"
    ]
    stream = DescribedSet("stream", True, ["a", "b", "c"], remark="a stream, so not described", is_trained_on=True)
    _, found = count_classes(tiny_cfg(*BALANCED), data_of(stream))
    assert found.errors == [
        f"data set stream: a stream, so not described, so {BOXES} cannot be counted: set it, a number >= 1 for each "
        "class, or draw generated shapes first, by `focal-det data inspect`"
    ]
    cfg, found = count_classes(tiny_cfg(*BALANCED, BOXES, "[1, 2, 3]"), data_of(stream))
    assert found.errors == found.warnings == []
    assert list(cfg.MODEL.FOCAL_DET.LOSS.CLASS_BOXES) == [1, 2, 3]


def test_as_many_federated_classes_as_there_are_is_refused_by_the_keys_name(tiny_cfg):
    _, found = count_classes(tiny_cfg(LOSS + "NAME", "FederatedFocalLoss"), TWO)
    (error,) = found.errors
    assert f"{LOSS}FED_NUM_CLASSES 50" in error
    assert "num_classes=50 is outside [1, 2]: with all classes this is FocalLoss" in error


def coco_of(rows):
    annotations = [
        {"id": n, "image_id": image, "category_id": category, "bbox": box, "area": 9.0, "iscrowd": crowd}
        for n, (image, category, box, crowd) in enumerate(rows, 1)
    ]
    images = [{"id": i, "file_name": f"{i}.png", "width": 40, "height": 30} for i in (7, 3)]
    return {
        "images": images,
        "categories": [{"id": 4, "name": "x"}, {"id": 9, "name": "y"}],
        "annotations": annotations,
    }


def test_images_are_counted_once_for_each_class_and_crowds_and_empty_boxes_not_at_all():
    some, none = [1, 2, 9, 9], [50, 2, 9, 9]
    found = statistics(coco_of([(7, 9, some, 0), (7, 9, some, 0), (3, 9, some, 0), (7, 4, some, 1), (3, 4, none, 0)]))
    assert (found.instances.tolist(), found.class_images) == ([0, 3], [0, 2])


def test_a_start_settles_them_and_says_so(tmp_path):
    from PIL import Image

    for i in (7, 3):
        Image.new("RGB", (40, 30)).save(tmp_path / f"{i}.png")
    rows = [(7, 4, [1, 2, 20, 20], 0), (7, 9, [5, 5, 20, 20], 0), (3, 9, [8, 8, 20, 20], 0)]
    (tmp_path / "a.json").write_text(json.dumps(coco_of(rows)))
    quick = (str(Path(__file__).parents[2] / "configs" / "quickstart.yaml"),)
    words = ("OUTPUT_DIR", str(tmp_path / "run"), "DATALOADER.NUM_WORKERS", "0", *BALANCED)
    sets = {"train_json": (str(tmp_path / "a.json"),), "train_images": (str(tmp_path),)}
    sets |= {f"val_{kind}": value for kind, value in (("json", sets["train_json"]), ("images", sets["train_images"]))}
    plan = check(TrainOptions(quick, words, **sets))
    assert list(plan.job.cfg.MODEL.FOCAL_DET.LOSS.CLASS_BOXES) == [1, 2]
    assert any(change.key == BOXES and change.place == "inferred" for change in plan.job.changes)
    assert f"{BOXES} counted in the sets to train on: fewest 1 (x), most 2 (y)" in plan.summary
