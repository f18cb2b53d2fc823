"""Every fault planted in a data set is named before the start, all in one run; bad images may be left out."""

import re
import shutil

import cv2
import numpy as np
import pytest
from PIL import Image
from preflight_fixtures import QUICK, cut_off, errors_in, first_of, flags_of

from focal_det.cli.train import main, parse_arguments
from focal_det.errors import InputError
from focal_det.preflight.plan import check

pytestmark = pytest.mark.detectron2


def turned_by_exif(folder, name):
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(folder / name) as image:
        copy = image.copy()
    copy.save(folder / name, exif=exif)


# Each plants a fault into (contents, folder), and says what must be read of it. All of them can stand in one set.
FAULTS = {
    "unknown category": (
        lambda coco, folder: first_of(coco, 0, category_id=7),
        "category_id=7 (annotation 1) is not in categories [1, 4]",
    ),
    "unknown image": (
        lambda coco, folder: first_of(coco, 1, image_id=999),
        "image_id=999 (annotation 2) not in images",
    ),
    "no box": (lambda coco, folder: first_of(coco, 2, bbox=[1, 2, 3]), "bbox=[1, 2, 3] (annotation 3): a box is four"),
    "repeated class": (
        lambda coco, folder: coco["categories"].append({"id": 4, "name": "cell"}),
        "categories: repeated name cell",
    ),
    "repeated id": (lambda coco, folder: None, "categories: repeated id 4"),  # planted by the one before
    "missing image": (lambda coco, folder: (folder / "0.png").unlink(), "1 of 30 images are not in "),
    "cut off": (lambda coco, folder: cut_off(folder, "1.jpg"), "'1.jpg' (truncated)"),
    "empty file": (lambda coco, folder: (folder / "2.png").write_bytes(b""), "'2.png' (UnidentifiedImageError)"),
    "EXIF": (lambda coco, folder: turned_by_exif(folder, "3.jpg"), "size before their EXIF rotation"),
    "size": (lambda coco, folder: coco["images"][4].update(width=7), "1 of 30 images have another size"),
}
# Words of the command line, and what must be read of them. All of them can stand in one line.
WRONG_WORDS = [
    (["MODEL.RETINANET.NUM_CLASES", "2"], "unknown key MODEL.RETINANET.NUM_CLASES; did you mean"),
    (["MODEL.ROI_HEADS.NUM_CLASSES", "2"], "set MODEL.RETINANET.NUM_CLASSES, or leave it to the data"),
    (["MODEL.RETINANET.NUM_CLASSES", "80"], "has 2 classes (cell, plate), MODEL.RETINANET.NUM_CLASSES is 80"),
    (["MODEL.WEIGHTS", "nowhere.pth"], "MODEL.WEIGHTS is nowhere.pth: no such file"),
    (["SOLVER.BASE_LR", "-1.0"], "SOLVER.BASE_LR is -1.0"),
    (["--num-gpus", "1000"], "--num-gpus is 1000, but"),
    (["--resume"], "--resume: no last_checkpoint in"),
    (["--skip-bad-images", "-1"], "--skip-bad-images is -1"),
]


def test_every_planted_fault_is_named_in_one_run(capsys, clean, tmp_path):
    for plant, _ in FAULTS.values():
        plant(*clean[0])
    words = [word for given, _ in WRONG_WORDS for word in given]
    assert main([*QUICK, *flags_of(*clean), *words, "OUTPUT_DIR", str(tmp_path / "output")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert all(line.startswith("error: ") for line in errors_in(captured))
    expected = [said for _, said in FAULTS.values()] + [said for _, said in WRONG_WORDS]
    assert [said for said in expected if said not in captured.err] == []
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize("fault", [name for name in FAULTS if name != "repeated id"])
def test_each_planted_fault_is_named_alone(capsys, clean, tmp_path, fault):
    plant, said = FAULTS[fault]
    plant(*clean[0])
    assert main([*QUICK, *flags_of(*clean), "--preflight-only", "OUTPUT_DIR", str(tmp_path / "output")]) == 2
    errors = errors_in(capsys.readouterr())
    assert any(said in line for line in errors)
    assert len(errors) <= 2  # the repeated class has two sides


def test_corners_are_an_error_and_a_few_of_them_a_warning(capsys, clean, tmp_path):
    coco, _ = clean[0]
    words = ["--preflight-only", "OUTPUT_DIR", str(tmp_path / "output")]
    right = [annotation["bbox"] for annotation in coco["annotations"]]

    def plant(share):
        for annotation, (x, y, w, h) in zip(coco["annotations"], right, strict=True):
            annotation["bbox"] = [x, y, x + w, y + h] if annotation["id"] % 10 < 10 * share else [x, y, w, h]

    plant(1)
    assert main([*QUICK, *flags_of(*clean), *words]) == 2
    assert "the boxes are two corners [x1, y1, x2, y2] (XYXY stored as XYWH)" in capsys.readouterr().err
    plant(0.4)
    assert main([*QUICK, *flags_of(*clean), *words]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "a part of the boxes are two corners" in line]
    share = int(re.search(r"\((\d+)%\) reach far out", line)[1])
    assert 15 < share < 40  # of the 40 % that are corners, those whose centre is in the upper left look as before
    plant(0)
    for place in range(4):  # fewer than prove anything
        coco["annotations"][place]["bbox"] = [30, 30, 58, 58]  # in images of 60 px or more, ends at 88
        coco["images"][coco["annotations"][place]["image_id"]].update(width=60, height=60)
    cv2.imwrite(str(clean[0][1] / "0.png"), np.zeros((60, 60, 3), np.uint8))
    assert main([*QUICK, *flags_of(*clean), *words]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "extend beyond their image" in line]
    assert line.endswith("not two corners, as 3% of them look to be")  # 4 of 120


def test_a_file_that_cannot_be_read_leaves_the_data_to_be_checked(capsys, clean):
    FAULTS["unknown category"][0](*clean[0])
    assert main(["--config-file", "no.yaml", "--preflight-only", *flags_of(*clean)]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first == "error: config file no.yaml: no such file"
    assert "category_id=7" in second


def test_boxes_without_area_are_listed_five_at_a_time(capsys, clean, tmp_path):
    for place in range(8):
        first_of(clean[0][0], place, bbox=[1, 1, 0, 9])
    assert main([*QUICK, *flags_of(*clean), "--preflight-only", "OUTPUT_DIR", str(tmp_path / "o")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("left out 8 boxes without area in their image:")
    assert lines[6] == "  and 3 more"
    assert lines[7] == (
        "train on train_json: 30 images, 28 with objects, 2 without, which are filtered "
        "(DATALOADER.FILTER_EMPTY_ANNOTATIONS); 112 objects; 8 boxes left out"
    )


def test_bad_images_are_left_out_up_to_the_bound(capsys, clean, tmp_path):
    for (_, folder), names in zip(clean, (["0.png", "1.jpg"], ["2.png"]), strict=True):
        for name in names:
            cut_off(folder, name)
    words = [*QUICK, *flags_of(*clean), "--preflight-only", "OUTPUT_DIR", str(tmp_path / "output")]
    assert main([*words, "--skip-bad-images", "1"]) == 2
    assert "2 images are bad, more than --skip-bad-images 1" in capsys.readouterr().err
    assert main([*words, "--skip-bad-images", "2"]) == 2  # two and one: the bound is for all sets together
    assert "3 images of all sets are bad, more than --skip-bad-images 2" in capsys.readouterr().err
    assert main([*words, "--skip-bad-images", "3"]) == 0
    out = capsys.readouterr().out
    assert "left out 2 images and their 8 annotations, as --skip-bad-images allows:" in out
    assert "'0.png' (truncated), '1.jpg' (truncated)" in out
    assert "train on train_json: 28 images, 28 with objects, 0 without; 112 objects" in out


def test_a_set_without_a_good_image_is_refused(clean, tmp_path):
    shutil.rmtree(clean[1][1])
    clean[1][1].mkdir()
    words = [*QUICK, *flags_of(*clean), "--skip-bad-images", "30", "OUTPUT_DIR", str(tmp_path / "output")]
    with pytest.raises(InputError, match="--skip-bad-images 30 leaves no image of 30"):
        check(parse_arguments(words))
