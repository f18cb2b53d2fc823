"""A part set aside to evaluate on, classes kept and merged: by flag and by key, in a start, an inspection, a table."""

import json

import pytest
from exported_formats import ultralytics, write_images, write_labels
from preflight_fixtures import QUICK, ROOT, checked, problems

from focal_det.checkpoint.run_record import compare
from focal_det.cli.main import main as focal_det
from focal_det.cli.train import parse_arguments
from focal_det.config.load import load_config
from focal_det.errors import InputError
from focal_det.paper.runs import SweepOptions, plan_table
from focal_det.paper.tables import find_rows, find_table
from focal_det.preflight.own_datasets import read_own_sets

pytestmark = [pytest.mark.detectron2, pytest.mark.usefixtures("beside_no_run")]


@pytest.fixture
def yolo(tmp_path):
    return ultralytics(tmp_path / "mine", {f"n{i}": [("cat", 4, 6, 20, 12), ("dog", 9, 9, 9, 9)] for i in range(10)})


def test_a_folder_s_own_part_to_evaluate_on_is_said_where_it_is_not_used(yolo, tmp_path, capsys):
    write_images(yolo / "images" / "val", ["x"])
    write_labels(yolo / "labels" / "val", {"x": [("cat", 4, 6, 20, 12)]})
    (yolo / "data.yaml").write_text((yolo / "data.yaml").read_text() + "val: images/val\n")
    said = f"warning: --split-val: the part of {yolo} to evaluate on is not used, but one split off"
    words = ("--train", yolo, "OUTPUT_DIR", tmp_path / "run")
    assert said in checked(*words, "--split-val", "0.2").job.notes
    split = ["--train", str(yolo), "--split-val", "0.2", "--out", str(tmp_path / "out")]
    assert focal_det(["data", "inspect", *split]) == 0
    assert said in capsys.readouterr().err
    assert focal_det(["evaluate", "--model", str(ROOT / "models/quickstart_int8.onnx"), *split]) == 2  # other classes
    assert said in capsys.readouterr().err
    plan = checked(*words)
    assert said not in plan.job.notes
    assert [len(file.coco["images"]) for file in plan.json_files.values()] == [10, 1]


def test_without_a_set_to_evaluate_on_what_to_add_comes_first(yolo):
    with pytest.raises(InputError) as caught:
        checked("--train", yolo, "DATASETS.TEST", "coco_2017_val")
    first, *others = caught.value.problems
    assert first.endswith("add --val PATH, or --split-val 0.2 to set a part of these aside")
    assert any("instances_val2017.json is missing" in line for line in others)


def test_a_folder_alone_is_trained_on_and_split(yolo, tmp_path):
    words = ("--train", yolo, "--split-val", "0.2", "--merge-classes", "pet=cat,dog", "OUTPUT_DIR", tmp_path / "run")
    plan = checked(*words)
    cfg = plan.job.cfg
    assert (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST) == (("train_data",), ("val_data",))
    assert cfg.MODEL.RETINANET.NUM_CLASSES == 1
    assert [len(file.coco["images"]) for file in plan.json_files.values()] == [8, 2]
    notes = "\n".join(plan.job.notes)
    assert f"{yolo}: took YOLO's {yolo}/data.yaml (train)" in notes
    assert f"{yolo}/data.yaml:train: cat became pet (10 boxes)" in notes
    assert f"{yolo}/data.yaml:train: 2 of 10 images were set aside by --split-val 0.2:0" in notes
    refused = compare(plan.job.record, checked(*words[:4], *words[6:]).job.record).refused
    assert "DATASETS.MERGE_CLASSES: ['pet=cat,dog'] before, [] now" in refused
    refused = compare(plan.job.record, checked(*words, "--split-val", "0.2:1").job.record).refused
    assert "DATASETS.SPLIT_VAL: [0.2, 0] before, [0.2, 1] now" in refused
    keys = ("DATASETS.TRAIN", f"data:{yolo}", "DATASETS.SPLIT_VAL", "[0.2, 0]", "DATASETS.CLASSES", "['dog']")
    by_keys = checked(*keys, "OUTPUT_DIR", tmp_path / "run")
    assert [file.class_names for file in by_keys.json_files.values()] == [["dog"]] * 2
    assert [len(file.coco["annotations"]) for file in by_keys.json_files.values()] == [8, 2]


@pytest.mark.parametrize(
    ("flags", "sizes", "times"),
    [
        (["--train", "--split-val"], [7, 2], 1),
        (["--train", "--train", "--split-val"], [7, 7, 2, 2], 1),
        (["--train", "--val"], [9, 9], 2),  # two parts of data.yaml, whose folder is one
    ],
)
def test_a_bad_image_of_a_set_that_is_there_twice_counts_once(yolo, tmp_path, capsys, flags, sizes, times):
    (yolo / "images/train/n3.png").write_bytes(b"no image")
    (yolo / "data.yaml").write_text("train: images/train\nval: images/train\nnames: [cat, dog]\n")
    words = [word for flag in flags for word in (flag, "0.2" if flag == "--split-val" else str(yolo))]
    words += ["--skip-bad-images", "1"]
    plan = checked(*words, "OUTPUT_DIR", tmp_path / "run")
    assert [len(file.coco["images"]) for file in plan.json_files.values()] == sizes
    capsys.readouterr()
    assert focal_det(["data", "inspect", *words, "--out", str(tmp_path / "out")]) == 0
    for told in ("\n".join(plan.job.notes), capsys.readouterr().out):
        assert told.count("left out 1 images") == times


def test_the_part_to_evaluate_on_is_that_of_the_folder(yolo):
    write_images(yolo / "images/val", ["v"])
    write_labels(yolo / "labels/val", {"v": [("dog", 9, 9, 9, 9)]})
    (yolo / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [cat, dog]\n")
    plan = checked("--train", yolo)
    assert [len(file.coco["images"]) for file in plan.json_files.values()] == [10, 1]
    assert plan.job.cfg.DATASETS.TEST == ("val_data",)


def test_an_evaluation_reads_the_part_that_was_set_aside(yolo, tmp_path):
    words = ["--train", yolo, "--split-val", "0.2", "--eval-only", "MODEL.WEIGHTS", tmp_path / "m.pth"]
    options = parse_arguments([*QUICK, *map(str, words)])
    sets, found = read_own_sets(options, load_config(options.config_file, options.settings))
    assert found.errors == []
    of_training = checked(*words[:4]).json_files
    assert next(iter(sets.files.values())).coco == {d.name: f for d, f in of_training.items()}["val_data"].coco


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("--split-val", "0.2", "--val", "x"),
            "--split-val, is set, and sets to evaluate on are given; leave one of them",
        ),
        (("--split-val", "1.5"), "DATASETS.SPLIT_VAL is [1.5, 0]; it must be [SHARE, SEED]"),
        (("--merge-classes", "pet"), "DATASETS.MERGE_CLASSES has 'pet'; write NEW=OLD,OLD,..."),
        (
            ("--split-val", "0.2", "--classes", "cta"),
            "DATASETS.CLASSES has 'cta', which is not a class of these sets; did you",
        ),
    ],
)
def test_changes_that_are_none(yolo, words, said):
    assert any(said in line for line in problems("--train", yolo, *words))


def test_a_registered_set_is_not_split():
    assert any("is registered, and only sets given by --train" in line for line in problems("--split-val", "0.2"))
    assert any("no set of your own is given: only sets given by" in line for line in problems("--classes", "disk"))


def test_inspects_what_is_split_and_merged(yolo, tmp_path, capsys):
    words = ["--train", str(yolo), "--split-val", "0.3:2", "--merge-classes", "pet=cat", "--classes", "pet"]
    assert focal_det(["data", "inspect", *words, "--out", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "statistics.json").read_text())
    assert (found["train_data"]["boxes"], found["val_data"]["boxes"]) == (7, 3)
    assert "left out 10 boxes of classes that are not kept: dog" in capsys.readouterr().out


def test_inspects_with_the_anchors_of_a_configuration(yolo, tmp_path, capsys):
    words = [*QUICK[:2], "--train", str(yolo), "--split-val", "0.3", "INPUT.MIN_SIZE_TRAIN", "(96,)"]
    assert focal_det(["data", "inspect", *words, "--out", str(tmp_path / "a")]) == 0
    found = json.loads((tmp_path / "a" / "statistics.json").read_text())["train_data"]["anchors"]
    # the larger of two classes' boxes, 20 x 12 and 9 x 9 px of images of 48 px: the median side in images of 96 px is
    # between 2 * 240^.5 = 31.0 and 2 * 9
    assert (found["of"], found["size"]) == (f"the anchors of {QUICK[1]}", "96 px")
    assert found["rows"][0]["side"] == pytest.approx((2 * 240**0.5 + 18) / 2, abs=0.1)
    assert focal_det(["data", "inspect", *words, "MODEL.FPN.NORM", "XX", "--out", str(tmp_path / "b")]) == 0
    assert "does not make a model" in capsys.readouterr().err
    assert "anchors" not in json.loads((tmp_path / "b" / "statistics.json").read_text())["train_data"]


def test_the_rows_of_a_table_are_trained_on_what_is_split_and_merged(yolo, tmp_path, capsys):
    words = ["reproduce", "table3", "--scale", "mini", "--rows", "fl", "--out", str(tmp_path / "rows"), "--dry-run"]
    changes = ["--split-val", "0.2", "--merge-classes", "pet=cat,dog"]
    assert focal_det([*words, "--train", str(yolo), *changes]) == 0
    captured = capsys.readouterr()
    assert "DATASETS.MERGE_CLASSES '['\"'\"'pet=cat,dog'\"'\"']' DATASETS.SPLIT_VAL '[0.2, 0]'" in captured.out
    assert captured.err == ""
    flags, overrides = ("--train", str(yolo)), ("DATASETS.SPLIT_VAL", "[0.2, 0]")
    options = SweepOptions(scale="mini", seeds=(1,), out=tmp_path, data_flags=flags, overrides=overrides)
    (run,) = plan_table(find_table("table3"), find_rows(find_table("table3"), ["fl"]), options).runs
    assert run.test_set == "val_data"
    assert focal_det([*words, "--train", str(yolo)]) == 2
    assert "--train or the like without --val" in capsys.readouterr().err
    assert focal_det([*words, *changes[2:]]) == 2
    assert "no set of your own is given" in capsys.readouterr().err
