"""Preflight: whatever is planted is named, all in one run; what is clean raises no alarm; nothing is written."""

import copy
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler
from PIL import Image

from focal_det import environment
from focal_det.checkpoint import compatibility
from focal_det.checkpoint.checkpointer import RunCheckpointer
from focal_det.cli.train import main, parse_arguments
from focal_det.config import schedule as advice
from focal_det.config.load import load_config
from focal_det.config.unused_keys import without_unread_keys
from focal_det.data import statistics
from focal_det.data.catalog import register_datasets
from focal_det.data.shapes import make_shapes
from focal_det.data.shared_records import read_train_records
from focal_det.defaults import add_focal_det_config
from focal_det.engine.run import Job
from focal_det.errors import InputError
from focal_det.preflight import datasets, summary
from focal_det.preflight.plan import check, write

pytestmark = pytest.mark.detectron2

ROOT = Path(__file__).parents[2]
BCCD = ROOT.parent / "shared" / "data" / "bccd"
QUICK = ["--config-file", str(ROOT / "configs/quickstart.yaml"), "DATALOADER.NUM_WORKERS", "0"]
OF_THE_MACHINE = ("NO GPU HERE", "no bfloat16 instructions")  # warnings that are no matter of the data


def random_coco(folder, *, images=30, seed=0, classes=("cell", "plate")):
    """A clean set of noise, with boxes of all places and shapes inside their images."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    coco = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 3 * i + 1, "name": n} for i, n in enumerate(classes)],
    }
    for index in range(images):
        width, height = (int(side) for side in rng.integers(60, 120, 2))
        name = f"{index}.{('png', 'jpg')[index % 2]}"
        cv2.imwrite(str(folder / name), rng.integers(0, 256, (height, width, 3)).astype(np.uint8))
        coco["images"].append({"id": index, "file_name": name, "width": width, "height": height})
        for _ in range(4):
            w, h = (rng.uniform(0.2, 0.5, 2) * (width, height)).round(1).tolist()
            x, y = rng.uniform(0, width - w), rng.uniform(0, height - h)
            category = 3 * int(rng.integers(len(classes))) + 1
            annotation = {"image_id": index, "category_id": category, "bbox": [x, y, w, h]}
            coco["annotations"].append({"id": len(coco["annotations"]) + 1, **annotation})
    return coco


def flags_of(train, val):
    words = []
    for split, (coco, folder) in (("train", train), ("val", val)):
        path = folder.parent / f"{split}.json"
        path.write_text(json.dumps(coco))
        words += [f"--{split}-json", str(path), f"--{split}-images", str(folder)]
    return words


@pytest.fixture
def clean(tmp_path):
    """Two clean sets, (contents, folder) each."""
    return [(random_coco(tmp_path / name, seed=seed), tmp_path / name) for seed, name in enumerate(("train", "val"))]


def warnings_in(captured):
    return [line for line in captured.err.splitlines() if not any(known in line for known in OF_THE_MACHINE)]


def errors_in(captured):
    """The lines of a refused start, whose warnings come before."""
    lines = captured.err.splitlines()
    errors = [line for line in lines if not line.startswith("warning: ")]
    assert lines[len(lines) - len(errors) :] == errors
    return errors


# --- clean sets ------------------------------------------------------------------------------------------------------


def test_a_clean_set_raises_no_alarm(capsys, clean, tmp_path):
    words = [*QUICK, *flags_of(*clean), "--preflight-only", "OUTPUT_DIR", str(tmp_path / "output")]
    words += ["SOLVER.MAX_ITER", "900", "SOLVER.STEPS", "(600, 800)"]
    assert main(words) == 0
    captured = capsys.readouterr()
    assert warnings_in(captured) == []
    lines = captured.out.splitlines()
    assert lines[0] == "train on train_json: 30 images, 30 with objects, 0 without; 120 objects"
    assert lines[1] == "evaluate on val_json: 30 images, 30 with objects, 0 without; 120 objects"
    assert lines[2].split() == ["class", "train_json", "val_json"]
    counts = [[a["category_id"] for a in coco["annotations"]].count(4) for coco, _ in clean]
    assert lines[4].split() == ["1", "=", "plate", "(id", "4)", *map(str, counts)]
    assert lines[5].startswith("schedule: 900 iterations of 16 images = 480.0 epochs of 30; lr 0.05, 0.0031 an image")
    assert lines[-1] == "ready: nothing was written"
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize("only_with_objects", [True, False])
def test_tiles_are_counted_as_the_training_will_draw_them(clean, tmp_path, only_with_objects):
    clean[0][0]["annotations"] = clean[0][0]["annotations"][:60]  # half of the images have none
    words = [*QUICK, *flags_of(*clean), "--tile", "40", "OUTPUT_DIR", str(tmp_path / "output")]
    plan = check(parse_arguments([*words, "DATALOADER.FILTER_EMPTY_ANNOTATIONS", str(only_with_objects)]))
    write(plan)
    register_datasets((), plan.job.json_datasets)
    drawn = len(read_train_records(plan.job.cfg, dict))
    schedule = next(line for line in plan.summary if line.startswith("schedule: "))
    assert f" epochs of {drawn};" in schedule
    tiles, with_objects = map(int, re.search(r"; and (\d+) tiles of 40 px, (\d+) of them", plan.summary[0]).groups())
    assert drawn == (15 + with_objects if only_with_objects else 30 + tiles)
    assert 40 < with_objects < tiles / 2
    assert plan.summary[0].endswith("the others are filtered") is only_with_objects
    assert re.search(r"at 128 px in tiles of 40 px, .*; median side \d+ px", "\n".join(plan.summary))


def test_tiles_that_cover_every_image_are_said_to_be_none(clean, tmp_path):
    plan = check(parse_arguments([*QUICK, *flags_of(*clean), "--tile", "999", "OUTPUT_DIR", str(tmp_path / "output")]))
    assert plan.summary[0].endswith("; 120 objects; no tiles, as no image is larger than 999 px")


def test_an_image_of_too_many_tiles_is_named(clean, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "MOST_TILES", 8)
    words = ["--tile", "40", "OUTPUT_DIR", str(tmp_path / "output")]
    with pytest.raises(InputError, match=r"train_json: 0.png, 111x98 px, needs 12 tiles of 40 px, and an image may"):
        check(parse_arguments([*QUICK, *flags_of(*clean), *words]))


@pytest.mark.parametrize("words", [("--tile", "-5"), ("--tile", "40", "--overlap", "1")])
def test_tiles_that_cannot_be_are_not_counted(clean, tmp_path, monkeypatch, words):
    monkeypatch.setattr(statistics, "tile_corners", pytest.fail)  # of a large image there are too many
    with pytest.raises(InputError, match=rf"TILES\.\w+ is {words[-1]}.*: the "):
        check(parse_arguments([*QUICK, *flags_of(*clean), *words, "OUTPUT_DIR", str(tmp_path / "output")]))


@pytest.mark.parametrize("tiles", [(), ("--tile", "40")])
@pytest.mark.parametrize(("few", "said"), [(31, True), (30, False)])
def test_few_images_from_scratch_are_told_of_a_detector_to_start_from(
    capsys, clean, tmp_path, monkeypatch, few, said, tiles
):
    monkeypatch.setattr(summary, "_FEW", few)
    assert main([*QUICK, *flags_of(*clean), *tiles, "--preflight-only", "OUTPUT_DIR", str(tmp_path / "output")]) == 0
    line = "from scratch on 30 images: if you can, start from COCO's detector on a GPU, --config-file focal_det://"
    assert (line in capsys.readouterr().out) is said


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("quickstart.yaml", []),
        ("paper/miniature.yaml", []),
        ("bccd.yaml", []),
        ("retinanet_R_50_FPN_1x.yaml", []),
        ("retinanet_coco_finetune.yaml", []),
        ("retinanet_X_101_32x8d_FPN_1x.yaml", []),
        ("paper/table2.yaml", []),
        ("detectron2_parity.yaml", []),
    ],
)
def test_no_configuration_here_is_warned_of(config, words):
    cfg = load_config(ROOT / "configs" / config, words)
    assert advice.check_schedule(cfg).warnings == []


@pytest.mark.parametrize("rare", ["", "_rare"])
def test_generated_shapes_raise_no_alarm(capsys, tmp_path, monkeypatch, rare):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    train, val = (f"shapes_{split}_60_192px{rare}" for split in ("train", "val"))
    words = [*QUICK, "--preflight-only", "DATASETS.TRAIN", train, "DATASETS.TEST", val]
    words += ["INPUT.MIN_SIZE_TRAIN", "(192,)", "OUTPUT_DIR", str(tmp_path / "output")]
    assert main(words) == 0
    assert f"train on {train}: generated shapes, drawn first" in capsys.readouterr().out
    for name in (train, val):
        make_shapes(name, tmp_path)
    capsys.readouterr()
    assert main(words) == 0
    captured = capsys.readouterr()
    assert warnings_in(captured) == []
    assert f"train on {train}: 60 images, 60 with objects, 0 without" in captured.out


@pytest.mark.skipif(not BCCD.is_dir(), reason="BCCD is not here")
def test_real_images_raise_no_alarm(capsys, tmp_path):
    words = ["--config-file", str(ROOT / "configs/bccd.yaml"), "--preflight-only", "OUTPUT_DIR", str(tmp_path / "o")]
    for split, name in (("train", "train"), ("val", "test")):
        words += [f"--{split}-json", str(BCCD / f"instances_{name}.json"), f"--{split}-images", str(BCCD / "images")]
    assert main(words) == 0
    captured = capsys.readouterr()
    assert warnings_in(captured) == []
    assert "left out 2 boxes without area" in captured.out  # as its README says


# --- planted faults --------------------------------------------------------------------------------------------------


def first_of(coco, place, **values):
    coco["annotations"][place].update(values)


def cut_off(folder, name):
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: len(data) // 2])


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


def test_an_address_of_weights_is_fetched_by_preflight(capsys, clean, tmp_path, monkeypatch):
    class Zoo(PathHandler):
        def _get_supported_prefixes(self):
            return ["madeup://"]

        def _get_local_path(self, path, force=False, **_):
            if path != "madeup://zoo/there.pth":
                raise FileNotFoundError(f"{path} is nowhere\nat all")
            return str(tmp_path / "there.pth")

    torch.save({"model": {}}, tmp_path / "there.pth")
    monkeypatch.setattr(PathManager, "_path_handlers", copy.copy(PathManager._path_handlers))
    PathManager.register_handler(Zoo())
    words = [*QUICK, *flags_of(*clean), "OUTPUT_DIR", str(tmp_path / "output"), "MODEL.WEIGHTS"]
    assert main([*words, "madeup://zoo/thing.pth", "--preflight-only"]) == 2
    (line,) = errors_in(capsys.readouterr())
    assert line == (
        "error: madeup://zoo/thing.pth cannot be read as a checkpoint (FileNotFoundError: madeup://zoo/thing.pth is "
        "nowhere)"
    )
    assert main([*words, "madeup://zoo/there.pth", "--preflight-only"]) == 0
    check(parse_arguments([*words, "madeup://zoo/thing.pth"]))  # left to the run


# --- leaving bad images out ----------------------------------------------------------------------------------------


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


def test_a_set_without_a_good_image_is_refused(capsys, clean, tmp_path):
    shutil.rmtree(clean[1][1])
    clean[1][1].mkdir()
    assert (
        main(
            [
                *QUICK,
                *flags_of(*clean),
                "--skip-bad-images",
                "30",
                "--preflight-only",
                "OUTPUT_DIR",
                str(tmp_path / "o"),
            ]
        )
        == 2
    )
    assert "--skip-bad-images 30 leaves no image of 30" in capsys.readouterr().err


# --- sets by name ----------------------------------------------------------------------------------------------------


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


# --- keys that are not read ------------------------------------------------------------------------------------------


def error_of(*words):
    with pytest.raises(InputError) as caught:
        load_config("", ["MODEL.META_ARCHITECTURE", "FocalRetinaNet", *words])
    (problem,) = caught.value.problems
    return problem


@pytest.mark.parametrize(
    ("key", "value", "meant"),
    [
        ("MODEL.ROI_HEADS.NUM_CLASSES", "80", "set MODEL.RETINANET.NUM_CLASSES"),  # in the command line at the default
        ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.5", "set MODEL.RETINANET.SCORE_THRESH_TEST"),
        ("MODEL.ROI_HEADS.NMS_THRESH_TEST", "0.3", "set MODEL.RETINANET.NMS_THRESH_TEST"),
        ("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "128", "remove it, every anchor counts"),
        ("MODEL.RPN.POST_NMS_TOPK_TEST", "10", "set TEST.DETECTIONS_PER_IMAGE"),
        ("MODEL.MASK_ON", "True", "boxes alone are detected"),
        ("MODEL.SEM_SEG_HEAD.NUM_CLASSES", "3", "remove it"),
        ("DATASETS.PROPOSAL_FILES_TRAIN", "a.pkl", "remove it"),
    ],
)
def test_a_key_of_another_detector_is_refused_with_what_is_meant(key, value, meant):
    problem = error_of(key, value)
    assert problem.startswith(f"command line: {key} is ")
    assert "but MODEL.META_ARCHITECTURE FocalRetinaNet does not read it: " in problem
    assert problem.endswith(meant) or meant in problem


def test_a_file_may_hold_them_at_their_defaults(tmp_path):
    cfg = get_cfg()
    add_focal_det_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    (tmp_path / "c.yaml").write_text(without_unread_keys(cfg).dump())
    load_config(tmp_path / "c.yaml")
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 5
    (tmp_path / "c.yaml").write_text(without_unread_keys(cfg).dump())
    with pytest.raises(InputError) as caught:
        load_config(tmp_path / "c.yaml")
    (problem,) = caught.value.problems
    assert problem.startswith(f"{tmp_path / 'c.yaml'}: MODEL.ROI_HEADS.NUM_CLASSES is 5")


def test_a_schedule_for_a_number_of_processes_is_scaled_to_those_that_are_started(clean, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)  # where there is one GPU, two processes are refused
    words = [*QUICK, *flags_of(*clean), "OUTPUT_DIR", str(tmp_path / "output"), "SOLVER.REFERENCE_WORLD_SIZE", "4"]
    plan = check(parse_arguments([*words, "--num-gpus", "2"]))
    solver = plan.job.cfg.SOLVER
    assert (solver.IMS_PER_BATCH, solver.BASE_LR, solver.MAX_ITER, solver.REFERENCE_WORLD_SIZE) == (8, 0.025, 2000, 2)
    assert any(line.startswith("SOLVER.REFERENCE_WORLD_SIZE 4 -> 2 processes: IMS_PER") for line in plan.summary)
    inferred = {change.key for change in plan.job.changes if change.place == "inferred"}
    assert {"SOLVER.IMS_PER_BATCH", "SOLVER.REFERENCE_WORLD_SIZE", "SOLVER.STEPS"} <= inferred


def test_sets_to_train_on_are_weighted_by_the_name_of_their_file(clean, tmp_path):
    words = [*QUICK, *flags_of(*clean), "OUTPUT_DIR", str(tmp_path / "output")]
    sampler = ("DATALOADER.SAMPLER_TRAIN", "WeightedTrainingSampler", "DATASETS.TRAIN_REPEAT_FACTOR")
    given = parse_arguments(words).train_json[0]
    cfg = check(parse_arguments([*words, *sampler, f"[[{given!r}, 2.0]]"])).job.cfg
    assert cfg.DATASETS.TRAIN_REPEAT_FACTOR == [["train_json", 2.0]]


def test_another_architecture_may_read_them():
    cfg = load_config("", ["MODEL.META_ARCHITECTURE", "GeneralizedRCNN", "MODEL.ROI_HEADS.NUM_CLASSES", "5"])
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 5


# --- what is built and read -------------------------------------------------------------------------------------------


@pytest.fixture
def saved_run(clean, tmp_path):
    """Return the words of a run that has saved model_0000009.pth and model_0000019.pth, and its folder."""
    words = [*QUICK, *flags_of(*clean), "OUTPUT_DIR", str(tmp_path / "output"), "SEED", "3"]
    job = check(parse_arguments(words)).job
    (tmp_path / "output").mkdir()
    for iteration in (9, 19):
        state = {"iteration": iteration, "_trainer": {"optimizer": {"state": {}, "param_groups": []}}}
        trainer = SimpleNamespace(state_dict=lambda state=state: state)
        model = compatibility.build_cpu_model(job.cfg)
        saver = RunCheckpointer(model, job.cfg.OUTPUT_DIR, record=job.record, trainer=trainer)
        saver.save(f"model_{iteration:07d}", iteration=iteration)
    return words, tmp_path / "output"


def test_a_resume_is_checked_with_one_model_and_one_reading_of_its_checkpoint(saved_run, monkeypatch):
    words, folder = saved_run
    done = []

    def counted(what, call):
        def run(*args, **options):
            done.append(what)
            return call(*args, **options)

        return run

    monkeypatch.setattr(compatibility, "build_model", counted("built", compatibility.build_model))
    monkeypatch.setattr(torch, "load", counted("read", torch.load))
    plan = check(parse_arguments([*words, "--resume"]))
    assert sorted(done) == ["built", "read"]
    assert plan.job.checkpoint == folder / "model_0000019.pth"
    assert plan.resumption.checkpoint.contents == {}  # else the file would stay mapped during the run


def test_a_resume_does_not_need_the_weights_that_the_run_began_with(saved_run):
    words, folder = saved_run
    plan = check(parse_arguments([*words, "--resume", "MODEL.WEIGHTS", "moved/away.pth"]))
    assert plan.job.checkpoint == folder / "model_0000019.pth"


def test_a_resume_behind_the_end_is_refused_where_the_schedule_has_no_lr(saved_run):
    words, _ = saved_run
    assert check(parse_arguments([*words, "--resume", "SOLVER.MAX_ITER", "20"])).job.checkpoint
    for more in ([], ["--allow-changes"]):
        message = "model_0000019.pth is after 20 iterations, and SOLVER.MAX_ITER is 19: set that to 20 or more, or add"
        with pytest.raises(InputError, match=message):
            check(parse_arguments([*words, *more, "--resume", "SOLVER.MAX_ITER", "19"]))


def test_eval_only_and_resume_evaluate_the_checkpoint_that_a_resume_would_take(saved_run, capsys):
    words, folder = saved_run
    words += ["--eval-only", "--resume"]
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def evaluated(*more):
        capsys.readouterr()
        plan = check(parse_arguments([*words, *more]))
        assert (plan.resumption, plan.job.checkpoint, plan.job.eval_only) == (None, None, True)  # no training's folder
        (done,) = re.findall(rf"evaluate {plan.job.cfg.MODEL.WEIGHTS}, after (20|10) iterations", plan.summary[0])
        assert plan.job.cfg.MODEL.WEIGHTS.endswith(f"model_00000{int(done) - 1:02d}.pth")
        return Path(plan.job.cfg.MODEL.WEIGHTS).relative_to(folder).name

    assert evaluated() == "model_0000019.pth"
    assert warnings_in(capsys.readouterr()) == []
    assert evaluated("MODEL.WEIGHTS", "mine.pth") == "model_0000019.pth"
    assert warnings_in(capsys.readouterr()) == [
        f"warning: --resume: {folder}/model_0000019.pth is evaluated, not MODEL.WEIGHTS mine.pth; leave out "
        "--resume to evaluate that"
    ]
    (folder / "model_0000019.pth").write_bytes(before["model_0000019.pth"][:-30])
    assert evaluated() == "model_0000009.pth"
    (warning,) = warnings_in(capsys.readouterr())
    assert warning.endswith("evaluating the newest intact one, model_0000009.pth, after 10 iterations")
    (folder / "model_0000019.pth").write_bytes(before["model_0000019.pth"])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_eval_only_and_resume_auto_evaluate_the_weights_where_there_is_no_checkpoint(saved_run, tmp_path):
    words, folder = saved_run
    words += ["--eval-only", "OUTPUT_DIR", str(tmp_path / "none"), "MODEL.WEIGHTS", str(folder / "model_0000009.pth")]
    plan = check(parse_arguments([*words, "--resume", "auto"]))
    assert str(folder / "model_0000009.pth") == plan.job.cfg.MODEL.WEIGHTS
    assert plan.summary[0].endswith(
        f"MODEL.WEIGHTS {folder}/model_0000009.pth, since {tmp_path}/none has no checkpoint"
    )
    with pytest.raises(InputError, match=r"no last_checkpoint in .*; use --resume auto to evaluate MODEL\.WEIGHTS"):
        check(parse_arguments([*words, "--resume"]))


def test_a_refused_start_says_its_warnings_first(clean, tmp_path, capsys):
    words = [*QUICK, *flags_of(*clean), "OUTPUT_DIR", str(tmp_path / "output"), "SOLVER.STEPS", "(10, 40)"]
    assert main([*words, "SOLVER.BASE_LR", "-1.0"]) == 2
    first, *_, last = warnings_in(capsys.readouterr())
    assert first.startswith("warning: ")
    assert "the last drop of the lr" in first
    assert last.startswith("error: SOLVER.BASE_LR is -1.0")


# --- schedule --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["SOLVER.STEPS", "(90, 100)"], 'the lr never drops at 100; set SOLVER.STEPS to fit, such as "(66, 88)"'),
        (["SOLVER.STEPS", "(10, 40)"], "the last drop of the lr comes before half of SOLVER.MAX_ITER 100"),
        (["SOLVER.WARMUP_ITERS", "100"], "the lr never reaches SOLVER.BASE_LR"),
        (["SOLVER.BASE_LR", "0.05"], "80 times the paper's lr for each image"),  # .05 / 1 to .01 / 16
        (["SOLVER.BASE_LR", "0.05", "MODEL.RESNETS.NORM", "GN"], None),
        (["SOLVER.STEPS", "()"], None),
        (["TEST.EVAL_PERIOD", "1000"], None),
        ([], None),
    ],
)
def test_what_of_the_schedule_is_likely_not_meant(words, said):
    base = ["SOLVER.MAX_ITER", "100", "SOLVER.STEPS", "(60, 80)", "SOLVER.WARMUP_ITERS", "10"]
    base += ["SOLVER.IMS_PER_BATCH", "1", "SOLVER.BASE_LR", "0.0006"]
    found = advice.check_schedule(load_config("", [*base, *words])).warnings
    assert len(found) == (said is not None)
    assert all(said in line for line in found)


def test_a_schedule_for_a_much_larger_set_is_named_with_one_that_fits(tiny_cfg):
    cfg = tiny_cfg("SOLVER.MAX_ITER", "90000", "SOLVER.IMS_PER_BATCH", "16")
    assert advice.epoch_warnings(cfg, 117_266) == []  # COCO
    assert advice.epoch_warnings(cfg, None) == []
    (line,) = advice.epoch_warnings(cfg, 292)
    # 90000 * 16 / 292 epochs; 50 * 292 / 16 iterations.
    assert "SOLVER.MAX_ITER is 90000: 4,932 epochs of 292 images" in line
    assert 'for 50 epochs add SOLVER.MAX_ITER 912 SOLVER.STEPS "(608, 810)" SOLVER.WARMUP_ITERS 91' in line


def test_what_was_said_before_the_start_stands_in_the_log(capsys, clean, tmp_path, train_net):
    for place in range(2):
        first_of(clean[0][0], place, bbox=[1, 1, 0, 9])
    words = ["SOLVER.MAX_ITER", "1", "SOLVER.STEPS", "(5,)", "SOLVER.WARMUP_ITERS", "0", "SOLVER.IMS_PER_BATCH", "1"]
    words += ["MODEL.FPN.OUT_CHANNELS", "32", "MODEL.RETINANET.NUM_CONVS", "0", "MODEL.FOCAL_DET.DRAW_IMAGES", "0"]
    done = train_net(*QUICK, *flags_of(*clean), *words, "OUTPUT_DIR", tmp_path / "output")
    assert done.returncode == 0, done.stderr[-2000:]
    log = (tmp_path / "output" / "log.txt").read_text()
    assert "warning: SOLVER.STEPS is (5,), but SOLVER.MAX_ITER 1: the lr never drops at 5" in log
    assert "left out 2 boxes without area" in log


def test_a_job_needs_no_notes():
    assert Job(cfg=None, json_datasets=(), eval_only=False, processes_per_machine=1).notes == ()


def test_the_launcher_leaves_the_gpus_to_its_ranks(tmp_path, monkeypatch, capsys):
    def use(*_):
        raise AssertionError("CUDA is used before the ranks start")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    for name in ("_lazy_init", "get_device_properties"):
        monkeypatch.setattr(torch.cuda, name, use)
    monkeypatch.setattr(environment, "compute_capability", lambda: (9, 0))
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    speed = ("SOLVER.AMP.ENABLED", "True", "MODEL.FOCAL_DET.SPEED.BFLOAT16_INFERENCE", "True")
    plan = check(parse_arguments([*QUICK, "--num-gpus", "2", *speed, "OUTPUT_DIR", str(tmp_path / "run")]))
    assert plan.job.cfg.MODEL.DEVICE == "cuda"
    assert plan.job.cfg.SOLVER.AMP.ENABLED
    assert plan.job.cfg.MODEL.FOCAL_DET.SPEED.BFLOAT16_INFERENCE
    assert capsys.readouterr().err == ""


def test_what_was_written_is_not_kept_in_memory(tmp_path):
    coco = random_coco(tmp_path / "images")
    (tmp_path / "own.json").write_text(json.dumps(coco))
    own = [str(tmp_path / "own.json"), str(tmp_path / "images")]
    flags = ["--train-json", own[0], "--train-images", own[1], "--val-json", own[0], "--val-images", own[1]]
    plan = check(parse_arguments([*QUICK, *flags, "OUTPUT_DIR", str(tmp_path / "run")]))
    copies = [Path(dataset.checked_copy) for dataset in plan.json_files]
    write(plan)
    assert plan.json_files == {}
    assert [len(json.loads(copy.read_text())["images"]) for copy in copies] == [30, 30]
