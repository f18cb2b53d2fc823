"""Sets registered by name are described and checked as files are, or refused for what reading would fail on."""

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from preflight_fixtures import QUICK, cut_off, errors_in, first_of, flags_of

from focal_det.cli.train import main

pytestmark = pytest.mark.detectron2


@pytest.fixture
def registered(clean):
    for coco, _ in clean:
        coco["info"] = {}
        for annotation in coco["annotations"]:
            annotation.update(area=annotation["bbox"][2] * annotation["bbox"][3], iscrowd=0)
    flags_of(*clean)  # writes them
    names = []
    for (_, folder), split in zip(clean, ("train", "val"), strict=True):
        names.append(f"preflight_{split}")
        register_coco_instances(names[-1], {}, str(folder.parent / f"{split}.json"), str(folder))
    yield ["DATASETS.TRAIN", names[0], "DATASETS.TEST", names[1]]
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_registered_sets_are_described_and_their_images_checked_on_request(capsys, clean, registered, tmp_path):
    words = [*QUICK, *registered, "--preflight-only", "OUTPUT_DIR", str(tmp_path / "output")]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "train on preflight_train: 30 images, 30 with objects" in out
    assert "1 = plate (id 4)" in out
    cut_off(clean[0][1], "1.jpg")
    (clean[0][1] / "0.png").unlink()
    assert main(words) == 2
    err = capsys.readouterr().err
    assert "'1.jpg' (truncated)" in err
    assert "'0.png'" in err
    assert "--skip-bad-images" not in err  # which does not reach a set by name


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda row: row.pop("area"), '1 of 120 annotations are without "area"'),
        (lambda row: row.update(area=None), '1 of 120 annotations are without "area"'),
        (lambda row: row.pop("iscrowd"), '1 of 120 annotations are without "iscrowd"'),
        (lambda row: row.update(id=0), "1 of 120 annotations are without an id above 0"),
    ],
)
def test_what_an_evaluation_by_name_would_fail_on_is_an_error_of_the_sets_to_evaluate_on(
    capsys, clean, registered, tmp_path, change, said
):
    words = [*QUICK, *registered, "--preflight-only", "OUTPUT_DIR", str(tmp_path / "output")]
    change(clean[0][0]["annotations"][5])
    flags_of(*clean)
    assert main(words) == 0  # training reads none of it
    capsys.readouterr()
    change(clean[1][0]["annotations"][5])
    del clean[1][0]["info"]  # which pycocotools does not ask for
    by_place = flags_of(*clean)
    assert main(words) == 2
    (line,) = errors_in(capsys.readouterr())
    assert f"val.json: {said}, and a registered set is read as it is: give its files as" in line
    assert main([*words, *by_place]) == 0


def test_a_registered_set_to_evaluate_on_may_be_without_info(clean, registered, tmp_path):
    del clean[1][0]["info"]
    flags_of(*clean)
    assert main([*QUICK, *registered, "--preflight-only", "OUTPUT_DIR", str(tmp_path / "output")]) == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda row: row.pop("id"), "an id of their own"),
        (lambda row: row.update(id=2), "an id of their own"),  # a second one
        (lambda row: row.update(ignore=1), '"ignore" 0'),
    ],
)
def test_what_reading_by_name_would_fail_on_is_an_error_of_every_set(capsys, clean, registered, tmp_path, change, said):
    change(clean[0][0]["annotations"][5])
    flags_of(*clean)
    words = [*QUICK, *registered, "OUTPUT_DIR", str(tmp_path / "output")]
    assert main([*words, "--preflight-only", "DATASETS.TEST", registered[1]]) == 2
    (line,) = errors_in(capsys.readouterr())  # once, though the set is there for both uses
    assert f"train.json: 1 of 120 annotations are without {said}, and a registered set is read as it is" in line
    with pytest.raises((AssertionError, KeyError)):
        DatasetCatalog.get(registered[1])


def test_boxes_without_area_of_a_registered_set_are_not_said_to_be_left_out(capsys, clean, registered, tmp_path):
    first_of(clean[1][0], 0, bbox=[1, 1, 0, 9])
    flags_of(*clean)
    assert main([*QUICK, *registered, "--preflight-only", "OUTPUT_DIR", str(tmp_path / "output")]) == 0
    out = capsys.readouterr().out
    assert "1 boxes without area in their image, which training leaves out and evaluation counts as missed" in out
    assert "evaluate on preflight_val: 30 images, 30 with objects, 0 without; 119 objects\n" in out
