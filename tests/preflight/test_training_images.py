"""`focal-det data augment`: what it draws is what the loader's mapper gives, and wrong keys are refused before."""

import json

import cv2
import numpy as np
import pytest

from focal_det.cli.main import main
from focal_det.preflight import training_images as module

pytestmark = pytest.mark.detectron2

SMALL = ("INPUT.MIN_SIZE_TRAIN", "(80,)", "INPUT.RANDOM_FLIP", "none")


@pytest.fixture
def voc(write_voc):
    objects = {f"p{i:02d}": [("cat", 11, 11, 40, 40)] for i in range(6)}
    objects["p03"].append(("dog", 50, 11, 90, 60))
    return write_voc(objects, train=list(objects), val=["p03"])


def augment(voc, out, *words):
    return main(["data", "augment", "--train-voc", str(voc), "--out", str(out), *words])


def test_a_sheet_has_a_row_for_each_image_and_a_column_for_each_draw(voc, tmp_path, capsys):
    out = tmp_path / "out"
    assert augment(voc, out, "--pictures", "3", "--draws", "2", *SMALL) == 0
    names = sorted(str(path.relative_to(out)) for path in out.rglob("*.*"))
    drawn = [f"train_voc/00{i}_p0{2 * i}_{number}.png" for i in range(3) for number in (1, 2)]
    assert names == ["augmented.png", *drawn]
    assert str(out / "augmented.png") in capsys.readouterr().out
    one = cv2.imread(str(out / drawn[0]))
    sheet = cv2.imread(str(out / "augmented.png"))
    assert sheet.shape[1] >= 3 * one.shape[1]
    assert sheet.shape[0] >= 3 * one.shape[0]


@pytest.mark.parametrize("order", ["BGR", "RGB"])
def test_draws_are_those_of_the_keys_the_same_each_time(voc, tmp_path, order):
    blue = np.full((80, 100, 3), (200, 60, 20), np.uint8)
    cv2.imwrite(str(voc / "JPEGImages" / "p00.jpg"), blue)
    words = ("--pictures", "1", "--draws", "2", *SMALL, "INPUT.FORMAT", order)
    darker = ("MODEL.FOCAL_DET.AUGMENT.BRIGHTNESS", "0.9")
    drawings = []
    for name, extra in (("plain", ()), ("darker", darker), ("again", darker), ("other", (*darker, "SEED", "7"))):
        assert augment(voc, tmp_path / name, *words, *extra) == 0
        paths = sorted((tmp_path / name / "train_voc").iterdir())
        drawings.append([cv2.imread(str(path)) for path in paths])
    plain, first, again, other = drawings
    corner = (slice(-30, -10), slice(-30, -10))  # without boxes and titles
    assert np.abs(plain[0][corner].reshape(-1, 3).mean(axis=0) - (200, 60, 20)).max() < 5
    assert (plain[0] == plain[1]).all()
    assert (first[0] != first[1]).any()
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert (first[0] != other[0]).any()


def test_tiles_are_drawn_and_what_a_border_cuts_off_is_named(voc, tmp_path, monkeypatch):
    drawn = []
    draw = module.draw_boxes
    monkeypatch.setattr(module, "draw_boxes", lambda *args, **kwargs: drawn.append(args[1:4]) or draw(*args, **kwargs))
    # The cat of p03 is at 10 to 40 px, its dog at 49 to 90 by 10 to 60. Of the latter tiles of 64 px, at 0 and 36 px,
    # have 15 of 41 columns and all.
    words = ("--only-class", "dog", "--draws", "3", "MODEL.FOCAL_DET.TILES.SIZE", "64")
    assert augment(voc, tmp_path / "out", *words, *SMALL) == 0
    assert [texts for _, _, texts in drawn] == [["dog"], ["dog"], ["dog"]]
    drawn.clear()
    assert augment(voc, tmp_path / "all", "--pictures", "6", "--draws", "2", *words[4:], *SMALL) == 0
    # of the image as a whole and four tiles the first and, with a sixth of the cat, the third
    assert [sorted(texts) for _, _, texts in drawn if "dog" in texts] == [["cat", "dog"], ["dog", "ignored"]]


def test_a_bad_image_that_is_left_out_is_told(voc, tmp_path, capsys):
    (voc / "JPEGImages" / "p02.jpg").write_bytes(b"no image")
    assert augment(voc, tmp_path / "out", "--skip-bad-images", "1", *SMALL) == 0
    assert "left out 1 images and their 1 annotations, as --skip-bad-images allows" in capsys.readouterr().out


def test_an_image_may_have_any_id(voc, tmp_path):
    image = {"id": -1, "file_name": "p00.jpg", "width": 100, "height": 80}
    box = {"id": 1, "image_id": -1, "category_id": 1, "bbox": [10, 10, 30, 30]}
    coco = {"images": [image], "annotations": [box], "categories": [{"id": 1, "name": "cat"}]}
    (tmp_path / "a.json").write_text(json.dumps(coco))
    words = ("--train-json", str(tmp_path / "a.json"), "--train-images", str(voc / "JPEGImages"))
    assert main(["data", "augment", *words, "--out", str(tmp_path / "out"), *SMALL]) == 0


def test_one_class_is_drawn_alone_and_files_are_kept(voc, tmp_path, capsys):
    out = tmp_path / "out"
    assert augment(voc, out, "--only-class", "dog", "--draws", "1", *SMALL) == 0
    assert [path.name for path in (out / "train_voc").iterdir()] == ["000_p03_1.png"]
    assert augment(voc, out, *SMALL) == 2
    assert f"already has {out / 'augmented.png'}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("MODEL.FOCAL_DET.AUGMENT.ROTATION", "25"), "MODEL.FOCAL_DET.AUGMENT.ROTATION is 25.0; it must be in [0, 20]"),
        (("INPUT.MIN_SIZE_TRAIN", "()"), "INPUT.MIN_SIZE_TRAIN is ()"),
        (("--draws", "0"), "--draws"),
    ],
)
def test_wrong_input_is_refused_and_nothing_written(voc, tmp_path, capsys, words, problem):
    assert augment(voc, tmp_path / "out", *words) == 2
    assert problem in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_image_that_cannot_be_mapped_is_passed_over_and_named(voc, tmp_path, monkeypatch, capsys):
    def mapper(cfg):
        def fail(record):
            raise OSError("broken data stream")

        return fail

    monkeypatch.setattr(module, "training_mapper", mapper)
    assert augment(voc, tmp_path / "out", "--pictures", "1", *SMALL) == 0
    said = capsys.readouterr().err
    assert "p00.jpg': can no longer be read (OSError: broken data stream)" in said
    assert "skipped" in said


@pytest.mark.parametrize("key_and_value", [("INPUT.MIN_SIZE_TRAIN", "()"), ("MODEL.FOCAL_DET.TILES.SIZE", "5")])
def test_inspect_refuses_sizes_of_images_before_it_compares_anchors(voc, tmp_path, capsys, key_and_value):
    words = ["--train-voc", str(voc), "--val-voc", str(voc), "--out", str(tmp_path / "out")]
    assert main(["data", "inspect", *words, *key_and_value]) == 2
    assert f"error: {' is '.join(key_and_value)}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_inspect_says_where_the_set_to_evaluate_on_that_is_missing_comes_from(voc, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    words = ["--train-voc", str(voc), "--out", str(tmp_path / "out"), "DATASETS.TEST", "('coco_2017_val',)"]
    assert main(["data", "inspect", *words]) == 2
    first, *others = capsys.readouterr().err.splitlines()
    assert first.startswith("error: the sets to evaluate on are the configuration's")
    assert "instances_val2017.json is missing" in others[0]
