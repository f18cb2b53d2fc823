"""Preflight: whatever is planted is named, all in one run; what is clean raises no alarm; nothing is written."""

import copy
import json
import re
import shlex
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler
from PIL import Image

from focal_det.cli.arguments import parse_arguments
from focal_det.cli.prepare import check
from focal_det.cli.summary import _anchor_lines
from focal_det.cli.train import main
from focal_det.config import add_focal_det_config
from focal_det.data.coverage import resized
from focal_det.data.shapes import make_shapes
from focal_det.data.statistics import Objects
from focal_det.engine import advice
from focal_det.engine.anchor_report import anchor_warnings, report_anchors
from focal_det.engine.config_file import load_config
from focal_det.engine.job import Job
from focal_det.engine.loss_keys import without_unread_keys
from focal_det.engine.model_checks import build_cpu_model
from focal_det.errors import InputError

ROOT = Path(__file__).parents[2]
BCCD = ROOT.parent / "shared" / "data" / "bccd"
QUICK = ["--config-file", str(ROOT / "configs/quickstart.yaml"), "DATALOADER.NUM_WORKERS", "0"]
OF_THE_MACHINE = ("NO GPU HERE", "no bfloat16 instructions")  # warnings that are no matter of the data


def random_coco(folder, *, pictures=30, seed=0, classes=("cell", "plate")):
    """A clean set of noise, with boxes of all places and shapes inside their pictures."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    coco = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 3 * i + 1, "name": n} for i, n in enumerate(classes)],
    }
    for index in range(pictures):
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


# --- clean sets ------------------------------------------------------------------------------------------------------


def test_a_clean_set_raises_no_alarm(capsys, clean, tmp_path):
    words = [*QUICK, *flags_of(*clean), "--preflight-only", "OUTPUT_DIR", str(tmp_path / "output")]
    words += ["SOLVER.MAX_ITER", "900", "SOLVER.STEPS", "(600, 800)"]
    assert main(words) == 0
    captured = capsys.readouterr()
    assert warnings_in(captured) == []
    lines = captured.out.splitlines()
    assert lines[0] == "train on train_json: 30 pictures, 30 with objects, 0 without; 120 objects"
    assert lines[1] == "evaluate on val_json: 30 pictures, 30 with objects, 0 without; 120 objects"
    assert lines[2].split() == ["class", "train_json", "val_json"]
    counts = [[a["category_id"] for a in coco["annotations"]].count(4) for coco, _ in clean]
    assert lines[4].split() == ["1", "=", "plate", "(id", "4)", *map(str, counts)]
    assert lines[5].startswith(
        "schedule: 900 iterations of 16 pictures = 480.0 epochs of 30; lr 0.05, 0.0031 a picture"
    )
    assert lines[-1] == "ready: nothing was written"
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("quickstart.yaml", []),
        ("paper/miniature.yaml", []),
        ("bccd.yaml", []),
        ("retinanet_R_50_FPN_1x.yaml", []),
        ("retinanet_X_101_32x8d_FPN_1x.yaml", []),
        ("paper/table2.yaml", []),
        ("detectron2_parity.yaml", []),
    ],
)
def test_no_configuration_here_is_warned_of(config, words):
    cfg = load_config(ROOT / "configs" / config, words)
    assert advice.schedule_warnings(cfg) == []


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
    assert f"train on {train}: 60 pictures, 60 with objects, 0 without" in captured.out


@pytest.mark.skipif(not BCCD.is_dir(), reason="BCCD is not here")
def test_real_pictures_raise_no_alarm(capsys, tmp_path):
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
    with Image.open(folder / name) as picture:
        copy = picture.copy()
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
    "missing picture": (lambda coco, folder: (folder / "0.png").unlink(), "1 of 30 pictures are not in "),
    "cut off": (lambda coco, folder: cut_off(folder, "1.jpg"), "'1.jpg' (truncated)"),
    "empty file": (lambda coco, folder: (folder / "2.png").write_bytes(b""), "'2.png' (UnidentifiedImageError)"),
    "EXIF": (lambda coco, folder: turned_by_exif(folder, "3.jpg"), "size before their EXIF rotation"),
    "size": (lambda coco, folder: coco["images"][4].update(width=7), "1 of 30 pictures have another size"),
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
    assert all(line.startswith("error: ") for line in captured.err.splitlines())
    expected = [said for _, said in FAULTS.values()] + [said for _, said in WRONG_WORDS]
    assert [said for said in expected if said not in captured.err] == []
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize("fault", [name for name in FAULTS if name != "repeated id"])
def test_each_planted_fault_is_named_alone(capsys, clean, tmp_path, fault):
    plant, said = FAULTS[fault]
    plant(*clean[0])
    assert main([*QUICK, *flags_of(*clean), "--preflight-only", "OUTPUT_DIR", str(tmp_path / "output")]) == 2
    errors = capsys.readouterr().err.splitlines()
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
        coco["annotations"][place]["bbox"] = [30, 30, 58, 58]  # in pictures of 60 px or more, ends at 88
        coco["images"][coco["annotations"][place]["image_id"]].update(width=60, height=60)
    cv2.imwrite(str(clean[0][1] / "0.png"), np.zeros((60, 60, 3), np.uint8))
    assert main([*QUICK, *flags_of(*clean), *words]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "reach out of their picture" in line]
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
    assert lines[0].endswith("left out 8 boxes without area in their picture:")
    assert lines[6] == "  and 3 more"
    assert lines[7] == (
        "train on train_json: 30 pictures, 28 with objects, 2 without, which are filtered "
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
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "error: madeup://zoo/thing.pth cannot be read as a checkpoint (FileNotFoundError: madeup://zoo/thing.pth is "
        "nowhere)"
    )
    assert main([*words, "madeup://zoo/there.pth", "--preflight-only"]) == 0
    check(parse_arguments([*words, "madeup://zoo/thing.pth"]))  # left to the run


# --- leaving bad pictures out ----------------------------------------------------------------------------------------


def test_bad_pictures_are_left_out_up_to_the_bound(capsys, clean, tmp_path):
    for (_, folder), names in zip(clean, (["0.png", "1.jpg"], ["2.png"]), strict=True):
        for name in names:
            cut_off(folder, name)
    words = [*QUICK, *flags_of(*clean), "--preflight-only", "OUTPUT_DIR", str(tmp_path / "output")]
    assert main([*words, "--skip-bad-images", "1"]) == 2
    assert "2 pictures are bad, more than --skip-bad-images 1" in capsys.readouterr().err
    assert main([*words, "--skip-bad-images", "2"]) == 2  # two and one: the bound is for all sets together
    assert "3 pictures of all sets are bad, more than --skip-bad-images 2" in capsys.readouterr().err
    assert main([*words, "--skip-bad-images", "3"]) == 0
    out = capsys.readouterr().out
    assert "left out 2 pictures and their 8 annotations, as --skip-bad-images allows:" in out
    assert "'0.png' (truncated), '1.jpg' (truncated)" in out
    assert "train on train_json: 28 pictures, 28 with objects, 0 without; 112 objects" in out


def test_a_set_without_a_good_picture_is_refused(capsys, clean, tmp_path):
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
    assert "--skip-bad-images 30 leaves no picture of 30" in capsys.readouterr().err


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


def test_registered_sets_are_described_and_their_pictures_checked_on_request(capsys, clean, registered, tmp_path):
    words = [*QUICK, *registered, "--preflight-only", "OUTPUT_DIR", str(tmp_path / "output")]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "train on preflight_train: 30 pictures, 30 with objects" in out
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
    del clean[1][0]["info"]
    by_place = flags_of(*clean)
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f'val.json: {said}, "info" is missing, and a set by name is read as it is: give it by place as' in line
    assert main([*words, *by_place]) == 0


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
    (line,) = capsys.readouterr().err.splitlines()  # once, though the set is there for both uses
    assert f"train.json: 1 of 120 annotations are without {said}, and a set by name is read as it is" in line
    with pytest.raises((AssertionError, KeyError)):
        DatasetCatalog.get(registered[1])


def test_boxes_without_area_of_a_registered_set_are_not_said_to_be_left_out(capsys, clean, registered, tmp_path):
    first_of(clean[1][0], 0, bbox=[1, 1, 0, 9])
    flags_of(*clean)
    assert main([*QUICK, *registered, "--preflight-only", "OUTPUT_DIR", str(tmp_path / "output")]) == 0
    out = capsys.readouterr().out
    assert "1 boxes without area in their picture, which training leaves out and evaluation counts as missed" in out
    assert "evaluate on preflight_val: 30 pictures, 30 with objects, 0 without; 119 objects\n" in out


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


@pytest.mark.parametrize("architecture", ["FocalRetinaNet", "GeneralizedRCNN"])
def test_a_schedule_for_a_number_of_gpus_is_refused_for_every_model(architecture):
    problem = error_of("SOLVER.REFERENCE_WORLD_SIZE", "8", "MODEL.META_ARCHITECTURE", architecture)
    assert problem.startswith("command line: SOLVER.REFERENCE_WORLD_SIZE is 8, but is not read: SOLVER.IMS_PER_BATCH")
    assert problem.endswith("where you change the batch, add --scale-lr")


def test_another_architecture_may_read_them():
    cfg = load_config("", ["MODEL.META_ARCHITECTURE", "GeneralizedRCNN", "MODEL.ROI_HEADS.NUM_CLASSES", "5"])
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 5


# --- schedule, disk --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["SOLVER.STEPS", "(90, 100)"], 'the lr never drops at 100; set SOLVER.STEPS to fit, such as "(66, 88)"'),
        (["SOLVER.STEPS", "(10, 40)"], "the last drop of the lr comes before half of SOLVER.MAX_ITER 100"),
        (["SOLVER.WARMUP_ITERS", "100"], "the lr never reaches SOLVER.BASE_LR"),
        (["SOLVER.BASE_LR", "0.05"], "80 times the paper's lr for each picture"),  # .05 / 1 to .01 / 16
        (["SOLVER.BASE_LR", "0.05", "MODEL.RESNETS.NORM", "GN"], None),
        (["SOLVER.STEPS", "()"], None),
        (["TEST.EVAL_PERIOD", "1000"], None),
        ([], None),
    ],
)
def test_what_of_the_schedule_is_likely_not_meant(words, said):
    base = ["SOLVER.MAX_ITER", "100", "SOLVER.STEPS", "(60, 80)", "SOLVER.WARMUP_ITERS", "10"]
    base += ["SOLVER.IMS_PER_BATCH", "1", "SOLVER.BASE_LR", "0.0006"]
    found = advice.schedule_warnings(load_config("", [*base, *words]))
    assert len(found) == (said is not None)
    assert all(said in line for line in found)


def test_a_schedule_for_a_much_larger_set_is_named_with_one_that_fits(tiny_cfg):
    cfg = tiny_cfg("SOLVER.MAX_ITER", "90000", "SOLVER.IMS_PER_BATCH", "16")
    assert advice.epoch_warnings(cfg, 117_266) == []  # COCO
    assert advice.epoch_warnings(cfg, None) == []
    (line,) = advice.epoch_warnings(cfg, 292)
    # 90000 * 16 / 292 epochs; 50 * 292 / 16 iterations.
    assert "SOLVER.MAX_ITER is 90000: 4,932 epochs of 292 pictures" in line
    assert 'for 50 epochs add SOLVER.MAX_ITER 912 SOLVER.STEPS "(608, 810)" SOLVER.WARMUP_ITERS 91' in line


def test_a_checkpoint_is_as_large_as_was_said(tiny_cfg, tmp_path):
    cfg = tiny_cfg("SOLVER.MAX_ITER", "10", "SOLVER.CHECKPOINT_PERIOD", "4", "OUTPUT_DIR", str(tmp_path))
    model = build_cpu_model(cfg)
    said = advice.checkpoint_bytes(model)
    momentum = [torch.zeros_like(p) for p in model.parameters() if p.requires_grad]
    torch.save({"model": model.state_dict(), "optimizer": momentum}, tmp_path / "model_0000003.pth")
    written = (tmp_path / "model_0000003.pth").stat().st_size
    assert 0 <= written - said < 0.02 * said + 100_000  # names and places
    # At 4 and 8, the best, and the last at 10; the first is there.
    assert advice.checkpoints_to_come(cfg) == 3
    cfg.SOLVER.MAX_ITER, cfg.MODEL.FOCAL_DET.CHECKPOINTS_KEPT = 100, 3
    assert advice.checkpoints_to_come(cfg) == 3 + 2 - 1


@pytest.mark.parametrize(("free", "kind"), [(500, None), (499, "warning"), (399, "error")])
def test_checkpoints_that_the_disk_does_not_hold(tiny_cfg, tmp_path, monkeypatch, free, kind):
    monkeypatch.setattr(advice, "free_bytes", lambda folder: free * 10**6)
    cfg = tiny_cfg("SOLVER.MAX_ITER", "10", "SOLVER.CHECKPOINT_PERIOD", "4", "OUTPUT_DIR", str(tmp_path))
    warnings, problems = advice.disk_advice(cfg, 100 * 10**6)  # four of 100 MB
    assert (bool(warnings), bool(problems)) == (kind == "warning", kind == "error")
    told = "4 checkpoints of 100 MB need 400 MB, and 100 MB while one is written"
    assert all(told in line for line in warnings + problems)


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


# --- anchors ---------------------------------------------------------------------------------------------------------


def objects_of(side, *, number=200, ratio=1.0, picture=640):
    """So many objects of one size anywhere in square pictures; ratio: height / width."""
    sides = np.tile(side * np.array([ratio**-0.5, ratio**0.5]), (number, 1))
    corners = np.random.default_rng(0).uniform(0, 1, (number, 2)) * (picture - sides)
    sizes = np.full((number, 2), float(picture))
    return Objects(np.hstack([corners, corners + sides]), sizes, np.zeros(number, np.int64), sides.prod(axis=1))


@pytest.mark.parametrize(
    ("side", "ratio", "better"),
    [
        (64, 1.0, None),
        # Half the smallest anchor, 32 px: IoU at most (16 / 32)^2 = .25. One octave down covers it.
        (16, 1.0, 'MODEL.ANCHOR_GENERATOR.SIZES "[[16], [32], [64], [128], [256]]"'),
        # 1:4 against the anchors' 1:2, of the same area: shared 2/3 of each, IoU .55 at best, less off the grid.
        (64, 5.0, "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS"),
    ],
)
def test_objects_that_no_anchor_reaches_are_told_with_the_anchors_that_would(tiny_cfg, side, ratio, better):
    cfg = tiny_cfg("INPUT.MIN_SIZE_TRAIN", "(640,)", "OUTPUT_DIR", "x")
    report = report_anchors(cfg, build_cpu_model(cfg), objects_of(side, ratio=ratio), ["thing"])
    warnings = anchor_warnings(report)
    if better is None:
        assert report.whole.reached == 1
        assert warnings == []
        return
    assert report.whole.reached < 0.75
    assert report.whole.side == pytest.approx(side, rel=0.01)
    (warning,) = warnings
    assert f"of boxes have no anchor with IoU >= .5 at this size, 640 px; median side {side} px; " in warning
    assert better in warning
    # The overrides are such that they can be appended, and give what they promise.
    overrides, promised = next(pair for pair in report.better if better in pair[0])
    other = tiny_cfg("INPUT.MIN_SIZE_TRAIN", "(640,)", *shlex.split(overrides))
    again = report_anchors(other, build_cpu_model(other), objects_of(side, ratio=ratio), ["thing"])
    assert again.whole.reached == pytest.approx(promised)
    assert promised > report.whole.reached + 0.03


def test_a_larger_picture_is_proposed_too(tiny_cfg):
    cfg = tiny_cfg("INPUT.MIN_SIZE_TRAIN", "(640,)")
    report = report_anchors(cfg, build_cpu_model(cfg), objects_of(14), ["thing"])
    assert any(overrides.startswith('INPUT.MIN_SIZE_TRAIN "(1280,)"') for overrides, _ in report.better)


def test_thresholds_are_the_configurations(tiny_cfg):
    # Squares of 32 px, as large as the smallest anchor of a grid of 8 px: at worst 4 px off in both directions, an IoU
    # of 28^2 / (2 * 32^2 - 28^2) = .62. All are reached from .5, not from .7; with .62 none is background.
    words = ["INPUT.MIN_SIZE_TRAIN", "(640,)", "OUTPUT_DIR", "x", "MODEL.RETINANET.IOU_THRESHOLDS"]
    reports = []
    for thresholds in ("[0.4, 0.5]", "[0.6, 0.7]", "[0.75, 0.75]"):
        cfg = tiny_cfg(*words, thresholds)
        reports.append(report_anchors(cfg, build_cpu_model(cfg), objects_of(32), ["thing"]))
    assert [report.whole.reached == 1 for report in reports] == [True, False, False]
    assert [report.whole.missed == 0 for report in reports] == [True, True, False]
    assert reports[1].whole.near == pytest.approx(1 - reports[1].whole.reached)
    assert reports[1].better == [] or reports[1].better[0][1] > reports[1].whole.reached
    assert "have no anchor with IoU >= .75 at this size" in anchor_warnings(reports[2])[0]
    lines = list(_anchor_lines(reports[1], full=True))
    assert "have one with IoU >= .7 at 640 px" in lines[0]
    assert "one of .6 to .7" in lines[0]
    assert "none of .6;" in lines[0]
    assert lines[1].split()[:7] == ["objects", ">=", ".7", ".6", "to", ".7", "<"]


def test_rows_are_by_cocos_areas_and_by_shape(tiny_cfg):
    cfg = tiny_cfg("INPUT.MIN_SIZE_TRAIN", "(640,)")
    parts = zip(objects_of(20), objects_of(50, ratio=3.0, number=100), objects_of(200, ratio=0.3), strict=True)
    objects = Objects(*(np.concatenate(part) for part in parts))
    report = report_anchors(cfg, build_cpu_model(cfg), objects, ["thing"])
    assert [(row.name, row.number) for row in report.by_size] == [("small", 200), ("medium", 100), ("large", 200)]
    assert [(row.name, row.number) for row in report.by_shape] == [("tall", 100), ("middle", 200), ("wide", 200)]
    for row in (report.whole, *report.by_size, *report.by_shape):
        assert row.reached + row.near + row.missed == pytest.approx(1)


@pytest.mark.parametrize(("shorter", "longest"), [(800, 1333), (240, 1333), (600, 601)])
def test_sizes_are_those_of_detectron2s_resizing(shorter, longest):
    sizes = np.random.default_rng(0).integers(30, 3000, (200, 2))
    theirs = [ResizeShortestEdge.get_output_shape(h, w, shorter, longest)[::-1] for w, h in sizes.tolist()]
    found = resized(sizes.astype(float), shorter, longest)
    assert np.abs(found - theirs).max() <= 1  # where a side falls on a half, rounding may differ
    assert (found == theirs).mean() > 0.98
