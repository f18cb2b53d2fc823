"""Data sets by flags and by place in DATASETS: several at once, Pascal VOC, and what becomes of them in a run."""

import argparse
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from preflight_fixtures import QUICK, checked, problems

from focal_det.checkpoint.compatibility import build_cpu_model
from focal_det.cli import analyze
from focal_det.cli.main import main as focal_det
from focal_det.cli.train import main, parse_arguments
from focal_det.config.load import load_config
from focal_det.errors import InputError
from focal_det.paper.runs import SweepOptions, plan_table
from focal_det.paper.tables import find_rows, find_table
from focal_det.preflight.own_datasets import read_own_sets

pytestmark = [pytest.mark.detectron2, pytest.mark.usefixtures("beside_no_run")]


@pytest.fixture
def json_sets(tmp_path):
    """Flags of a COCO file with some images, of two classes."""

    def make(name, use, images=1, classes=("cat", "dog")):
        folder = tmp_path / name
        folder.mkdir()
        records = [{"id": i, "file_name": f"{name}{i}.png", "width": 96, "height": 64} for i in range(images)]
        for image in records:
            cv2.imwrite(str(folder / image["file_name"]), np.full((64, 96, 3), 128, np.uint8))
        annotations = [{"image_id": i["id"], "category_id": 1, "bbox": [9, 9, 30, 30]} for i in records]
        categories = [{"id": n + 1, "name": c} for n, c in enumerate(classes)]
        content = {"images": records, "annotations": annotations, "categories": categories}
        (folder / "coco.json").write_text(json.dumps(content))
        return [f"--{use}-json", str(folder / "coco.json"), f"--{use}-images", str(folder)]

    return make


@pytest.fixture
def voc(write_voc):
    """A folder whose splits each lack a class."""
    objects = {"a": [("dog", 11, 11, 40, 40)], "b": [("cat", 11, 11, 40, 40)], "c": []}
    return write_voc(objects, train=["a", "c"], val=["b"])


def test_several_sets_become_sets_of_their_own(json_sets, tmp_path):
    flags = [*json_sets("a", "train"), *json_sets("b", "train"), *json_sets("c", "val"), *json_sets("d", "val")]
    plan = checked(*flags, "OUTPUT_DIR", tmp_path / "run")
    assert plan.job.cfg.DATASETS.TRAIN == ("train_json", "train_json_2")
    assert plan.job.cfg.DATASETS.TEST == ("val_json", "val_json_2")
    copies = {d.name: (Path(d.json_file).parent.name, Path(d.checked_copy).name) for d in plan.job.json_datasets}
    assert copies == {
        "train_json": ("a", "train_json.json"),
        "train_json_2": ("b", "train_json_2.json"),
        "val_json": ("c", "val_json.json"),
        "val_json_2": ("d", "val_json_2.json"),
    }


def test_flags_that_do_not_pair_up(json_sets):
    found = problems(*json_sets("a", "train"), *json_sets("b", "train")[:2], "--val-images", "x")
    assert any("--train-json is given 2 times and --train-images 1 times; each file needs" in line for line in found)
    assert any("--val-images is given without --val-json" in line for line in found)


def test_classes_of_several_sets_must_agree(json_sets):
    flags = [*json_sets("a", "train"), *json_sets("b", "train", classes=("dog", "cat")), *json_sets("c", "val")]
    assert any("data sets train_json and train_json_2 differ in their classes" in line for line in problems(*flags))


def copy_of(plan, name):
    return next(file for dataset, file in plan.json_files.items() if dataset.name == name)


@pytest.mark.parametrize("classes", [("dog",), ("dog", "cat")])
def test_a_test_set_with_fewer_classes_or_in_another_order_is_matched_by_name(json_sets, tmp_path, classes):
    flags = [*json_sets("a", "train"), *json_sets("b", "val", classes=classes)]
    plan = checked(*flags, "OUTPUT_DIR", tmp_path / "run")
    assert plan.job.cfg.MODEL.RETINANET.NUM_CLASSES == 2
    file = copy_of(plan, "val_json")
    assert file.coco["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    assert [a["category_id"] for a in file.coco["annotations"]] == [2]  # its id 1 is the dog
    of = f"its {len(classes)} classes are among the 2 of {tmp_path}/a/coco.json, and were numbered as there"
    assert file.notes[-1] == f"{tmp_path}/b/coco.json: {of}; without an object here: cat"


def test_a_test_set_with_a_class_that_is_not_trained_is_one_error(json_sets):
    flags = [*json_sets("a", "train"), *json_sets("b", "val", classes=("ant",))]
    found = problems(*flags)
    assert [line.split(":")[0] for line in found] == ["data sets train_json and val_json differ in their classes"]


def test_images_that_are_in_both_sets_are_a_warning(json_sets, capsys):
    flags = [*json_sets("a", "train", images=2), *json_sets("b", "val")]
    assert main([*QUICK, *flags, "--preflight-only"]) == 0
    said = capsys.readouterr()
    assert (
        "1 of the 1 images of val_json are in train_json too, by content ('a0.png' = 'b0.png')" in said.out + said.err
    )


def test_voc_sets_share_the_classes_of_all(voc, tmp_path):
    plan = checked("--train-voc", voc, "--val-voc", voc, "OUTPUT_DIR", tmp_path / "run")
    assert plan.job.cfg.MODEL.RETINANET.NUM_CLASSES == 2  # each split has one of them
    assert [d.json_file for d in plan.job.json_datasets] == [f"{voc}:train", f"{voc}:val"]
    assert [file.class_names for file in plan.json_files.values()] == [["cat", "dog"]] * 2
    assert [len(file.coco["images"]) for file in plan.json_files.values()] == [2, 1]


def test_places_in_datasets_do_what_flags_do(voc, json_sets, tmp_path):
    _, json_file, _, folder = json_sets("a", "train")
    by_flags = checked("--train-json", json_file, "--train-images", folder, "--train-voc", voc, "--val-voc", voc)
    places = f"('coco:{json_file}:{folder}', 'voc:{voc}:train')"
    by_name = checked("DATASETS.TRAIN", places, "DATASETS.TEST", f"voc:{voc}")
    assert by_name.job.cfg.DATASETS.TRAIN == ("train_json", "train_voc")
    assert by_name.json_files == by_flags.json_files
    config = tmp_path / "c.yaml"
    config.write_text(f"DATASETS: {{TRAIN: ['voc:{voc}:train', 'voc:{voc}:val'], TEST: ['voc:{voc}:val']}}\n")
    of_file = checked("--config-file", config)
    assert of_file.job.cfg.DATASETS.TRAIN == ("train_voc", "train_voc_2")
    assert of_file.job.cfg.DATASETS.TEST == ("val_voc",)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "mine",
            "is not registered. If a module of yours registers it, add --plugin FILE.py. For images in files",
        ),
        ("mine", "use --train PATH --val PATH, or in DATASETS 'data:PATH', 'coco:FILE.json:IMAGES' or 'voc:DIR:SPLIT'"),
        ("coco:a.json", "the folder of its images is missing; write 'coco:FILE.json:IMAGES'"),
        ("coco:no.json:.", "no.json: no such annotation file"),
        ("voc:nowhere:train", "nowhere: no such folder"),
        ("val_voc_2", "to a set of your own; name its files again, by --val-voc or in DATASETS as 'data:"),
    ],
)
def test_names_that_are_none(name, message):
    assert any(message in line for line in problems("DATASETS.TEST", name))


def test_every_fault_of_every_set_comes_at_once(voc, json_sets, tmp_path):
    (voc / "Annotations" / "a.xml").write_text("<")
    flags = json_sets("j", "val")
    Path(flags[1]).write_text("{")
    (tmp_path / "empty").mkdir()
    found = problems("--train-voc", voc, *flags, "--val-voc", tmp_path / "empty")
    for part in ("cannot be read as XML", "not JSON", "has no folder Annotations"):
        assert any(part in line for line in found), part


def test_only_if_no_set_has_an_object_there_is_nothing_to_train_on(write_voc):
    crowd = ("cat", 1, 1, 9, 9, "<difficult>1</difficult>")
    folder = write_voc({"a": [crowd], "b": [("cat", 1, 1, 9, 9)]}, train="a", val="b")
    found = problems("--train-voc", folder, "--val-voc", folder)
    assert any(f"{folder}:train: no box to train on" in line for line in found)
    checked("--train-voc", folder, "--train-voc", f"{folder}:val", "--val-voc", folder)


def test_a_malformed_entry_is_the_one_problem(tmp_path):
    found = problems("DATASETS.TRAIN", "('coco:a.json',)", "DATASETS.TEST", "()", "OUTPUT_DIR", tmp_path / "out")
    assert [line for line in found if "no box to train on" in line] == []
    assert len([line for line in found if "the folder of its images is missing" in line]) == 1


def test_one_file_for_both_uses_has_its_faults_once(json_sets, tmp_path):
    _, path, _, folder = json_sets("one", "train")
    Path(path).write_text("{")
    flags = [f"--{use}-{kind}" for use in ("train", "val") for kind in ("json", "images")]
    words = [word for flag, value in zip(flags, (path, folder) * 2, strict=True) for word in (flag, value)]
    assert len([line for line in problems(*words) if "not JSON" in line]) == 1


def test_places_too_long_are_named(json_sets):
    flags = [*json_sets("one", "train"), *json_sets("two", "val")]
    long = "x/" * 2500
    assert "File name too long" in problems("--train-json", long, "--train-images", long)[0]
    assert "no such folder" in problems("--train-voc", long)[0]
    found = problems(*flags, "OUTPUT_DIR", long, "MODEL.WEIGHTS", long)
    assert [line[:20] for line in found] == ["MODEL.WEIGHTS is x/x", "OUTPUT_DIR is x/x/x/"]
    assert max(map(len, found)) < 400


def test_an_evaluation_numbers_classes_as_the_training_did(voc, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    assert main([*QUICK, "--preflight-only", "--train-voc", str(voc), "--val-voc", str(voc)]) == 0
    words = ["--eval-only", "--val-voc", voc, "MODEL.WEIGHTS", run / "m.pth", "OUTPUT_DIR", run]
    (run / "m.pth").write_bytes(b"")

    def labels(*more):
        options = parse_arguments([*QUICK, *map(str, words), *map(str, more)])
        sets, found = read_own_sets(options, load_config(options.config_file, options.settings))
        return found.errors or [file.class_names for file in sets.files.values()]

    assert labels() == [["cat"]]  # nothing else is known
    assert labels("--train-voc", voc) == [["cat", "dog"]]
    (run / "classes.json").write_text(json.dumps([{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]))
    assert labels() == [["dog", "cat"]]
    (run / "classes.json").write_text(json.dumps([{"id": 1, "name": "dog"}]))
    assert labels() == [f"{voc}:val: class cat is not among dog; correct these objects, or leave them out by --classes"]


@pytest.mark.parametrize(
    ("in_data", "said"),
    [
        (("cat", "dog"), None),
        (("bird", "cat"), "'cat' is 0 in the model (classes.json), 1 in {}: the data must have the classes of {}"),
        (("cat", "bird"), "'dog' is 1 in the model (classes.json), not in {}: the data"),
        (("cat", "dog", "bird"), "'bird' is not in the model (classes.json), 2 in {}: the data"),
    ],
)
@pytest.mark.parametrize("way", ["--eval-only", "--resume"])
def test_labels_must_mean_what_they_meant_in_training(json_sets, tmp_path, capsys, way, in_data, said):
    run = tmp_path / "run"
    run.mkdir()
    for name, text in (("m.pth", ""), ("last_checkpoint", "m.pth")):
        (run / name).write_text(text)
    flags = [*json_sets("a", "train", classes=in_data), *json_sets("b", "val", classes=in_data)]
    words = [*flags, way, "OUTPUT_DIR", run] + ["MODEL.WEIGHTS", run / "m.pth"] * (way == "--eval-only")
    places = [flags[5]] if way == "--eval-only" else [flags[1], flags[5]]

    def of_labels():
        return [line for line in problems(*words) if "classes.json" in line]  # that m.pth is none is said as well

    def trained_with(*names):
        entries = [{"id": label + 1, "name": name} for label, name in enumerate(names)]
        (run / "classes.json").write_text(json.dumps(entries))

    assert of_labels() == []  # without the file nothing is known
    trained_with("class 0", "class 1")  # made up, for data that do not say
    assert of_labels() == []
    trained_with("cat", "dog")
    expected = [said.format(place, run / "classes.json") for place in places] if said else []
    for line, start in zip(of_labels(), expected, strict=True):
        assert line.startswith(start)


@pytest.mark.parametrize("text", ["{", "[" * 100_000])
def test_a_broken_list_of_labels_is_one_problem(json_sets, tmp_path, text):
    (tmp_path / "classes.json").write_text(text)
    for name, text in (("m.pth", ""), ("last_checkpoint", "m.pth")):
        (tmp_path / name).write_text(text)
    flags = [*json_sets("a", "train"), *json_sets("b", "val"), "--resume", "OUTPUT_DIR", tmp_path]
    assert len([line for line in problems(*flags) if "fix or remove it" in line]) == 1


def test_classes_of_a_registered_set_are_those_of_its_file(json_sets, tmp_path):
    _, json_file, _, folder = json_sets("a", "train")
    content = json.loads(Path(json_file).read_text())
    content["annotations"] = [{**a, "id": 1, "area": 900, "iscrowd": 0} for a in content["annotations"]]
    Path(json_file).write_text(json.dumps({**content, "info": {}}))
    register_coco_instances("flags_named", {}, json_file, folder)
    try:
        plan = checked("DATASETS.TRAIN", "flags_named", "DATASETS.TEST", "flags_named", "OUTPUT_DIR", tmp_path / "run")
    finally:
        DatasetCatalog.remove("flags_named")
        MetadataCatalog.remove("flags_named")
    assert plan.classes == (["cat", "dog"], [1, 2])


def test_voc_and_several_coco_files_train_together_and_are_evaluated_each(voc, json_sets, tmp_path, train_net):
    output = tmp_path / "output"
    stale = output / "annotations" / "train_json.json"
    stale.parent.mkdir(parents=True)
    stale.write_text("of an earlier run")
    flags = [*json_sets("a", "train"), *json_sets("b", "train"), "--train-voc", voc, *json_sets("c", "val")]
    keys = ["OUTPUT_DIR", output, "SOLVER.MAX_ITER", 2, "SOLVER.IMS_PER_BATCH", 2, "MODEL.FPN.OUT_CHANNELS", 64]
    done = train_net(*QUICK, *flags, "--val-voc", voc, *keys)
    assert done.returncode == 0, done.stderr[-3000:]
    metrics = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    assert {"val_json/bbox/AP50", "val_voc/bbox/AP50"} <= metrics[-1].keys()
    copies = {path.name for path in (output / "annotations").iterdir()}
    assert copies == {f"{name}.json" for name in ("train_json", "train_json_2", "train_voc", "val_json", "val_voc")}
    assert json.loads(stale.read_text())["images"][0]["file_name"] == "a0.png"
    boxes = [a["bbox"] for a in json.loads((output / "annotations" / "train_voc.json").read_text())["annotations"]]
    assert boxes == [[10, 10, 30, 30]]
    assert "NUM_CLASSES: 2" in (output / "config.yaml").read_text()
    shutil.rmtree(output)


@pytest.mark.parametrize("flag", ["--val-voc", "--val"])
def test_analyses_take_the_same_flags(voc, tmp_path, flag):
    parser = argparse.ArgumentParser()
    analyze.add_command(parser.add_subparsers(), "")
    model, out = str(tmp_path / "m.pth"), str(tmp_path / "out")
    sets = [flag, str(voc)]
    args = parser.parse_args(["analyze", "loss-cdf", model, *QUICK[:2], *sets, "--out", out])
    (tmp_path / "m.pth").write_bytes(b"")
    with pytest.raises(InputError) as caught:
        analyze._evaluation_plan(args)
    assert caught.value.problems[0].startswith(args.model)  # the sets are sound, and come before the checkpoint
    args = parser.parse_args(["analyze", "loss-cdf", model, *QUICK[:2], *sets, flag, str(tmp_path / "nowhere")])
    with pytest.raises(InputError, match=r"nowhere: no .*folder"):
        analyze._evaluation_plan(args)


def test_rows_of_the_paper_take_the_same_flags(voc, json_sets, tmp_path):
    table = find_table("table3")
    rows = find_rows(table, ("fl",))

    def run(*flags, overrides=()):
        options = SweepOptions(scale="mini", seeds=(1,), out=tmp_path, data_flags=flags, overrides=overrides)
        return plan_table(table, rows, options).runs[0]

    several = run("--train-voc", str(voc), "--val-json", "a.json", "--val-images", "a", "--val-voc", str(voc))
    assert several.test_set == "val_json"
    assert run("--val-voc", str(voc)).test_set == "val_voc"
    assert run().test_set.startswith("shapes_val")
    assert run(overrides=("DATASETS.TEST", f"('voc:{voc}', 'voc:{voc}:train')")).test_set == "val_voc"
    # which set is for what is part of a run's record
    assert run("--val-voc", str(voc)).config != run("--train-voc", str(voc)).config


def test_shapes_are_not_drawn_before_the_arguments_are_checked(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "drawn"))
    words = ["--out", str(tmp_path / "out"), "DATASETS.TRAIN", "('shapes_train_4_64px',)", "DATASETS.TEST", "()"]
    assert focal_det(["data", "inspect", "--only-class", "cicle", *words]) == 2
    assert "--only-class 'cicle' is not a class of these sets" in capsys.readouterr().err
    assert not (tmp_path / "drawn").exists()
    assert not (tmp_path / "out").exists()


def test_inspects_the_sets_of_a_configuration(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    names = ["DATASETS.TRAIN", "shapes_train_4_64px", "DATASETS.TEST", "('shapes_val_3_64px', 'shapes_val_3_64px')"]
    assert focal_det(["data", "inspect", "--out", str(tmp_path / "out"), *names]) == 0
    assert "shapes_val_3_64px" in json.loads((tmp_path / "out" / "statistics.json").read_text())
    assert len(list((tmp_path / "out" / "shapes_train_4_64px").iterdir())) == 4
    assert focal_det(["data", "inspect", "DATASETS.TRAIN", "shapes_trian_4_64px"]) == 2
    assert "are named shapes_<train|val>" in capsys.readouterr().err


def test_an_evaluation_too_tells_who_set_which_key(json_sets, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    cfg = load_config(QUICK[1], ["MODEL.RETINANET.NUM_CLASSES", "2", "MODEL.DEVICE", "cpu"])
    torch.save({"model": build_cpu_model(cfg).state_dict()}, run / "m.pth")
    words = ["--eval-only", *json_sets("one", "val"), "MODEL.WEIGHTS", run / "m.pth", "OUTPUT_DIR", run]
    places = {change.key: change.place for change in checked(*words).job.changes}
    assert places["MODEL.WEIGHTS"] == "command line"
    assert places["MODEL.FPN.OUT_CHANNELS"] == QUICK[1]
    assert places["MODEL.RETINANET.NUM_CLASSES"] == "inferred"


def test_what_a_plug_in_registers_is_inspected(write_voc, tmp_path, capsys):
    voc = write_voc({"p03": [("cat", 11, 11, 40, 40)]}, train=["p03"])
    (tmp_path / "sets_of_a_plugin.py").write_text(
        "from detectron2.data import DatasetCatalog, MetadataCatalog\n"
        "from detectron2.structures import BoxMode\n"
        f"IMAGE = {str(voc / 'JPEGImages' / 'p03.jpg')!r}\n"
        "def load():\n"
        "    objects = [dict(bbox=[10, 10, 40, 40], bbox_mode=BoxMode.XYXY_ABS, category_id=0)]\n"
        "    return [dict(file_name=IMAGE, image_id=7, height=80, width=100, annotations=objects)]\n"
        "DatasetCatalog.register('of_a_plugin', load)\n"
        "MetadataCatalog.get('of_a_plugin').set(thing_classes=['cat'])\n"
    )
    plug_in = str(tmp_path / "sets_of_a_plugin.py")
    words = ("--plugin", plug_in, "--out", tmp_path / "out", "DATASETS.TRAIN", "of_a_plugin", "DATASETS.TEST", "()")
    try:
        assert focal_det(["data", "inspect", *map(str, words)]) == 0
    finally:
        DatasetCatalog.remove("of_a_plugin")
        MetadataCatalog.remove("of_a_plugin")
    assert "of_a_plugin: a registered function\n1 images" in capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "statistics.json").read_text())["of_a_plugin"]
    assert (found["images"], found["boxes"], found["classes"][0]["name"]) == (1, 1, "cat")
    assert (tmp_path / "out" / "of_a_plugin" / "000_p03.png").is_file()


def test_inspects_a_test_set_with_some_of_the_classes_as_a_training_does(json_sets, tmp_path, capsys):
    words = [*json_sets("a", "train", classes=("dog", "cat")), *json_sets("b", "val", classes=("cat",))]
    assert focal_det(["data", "inspect", *words, "--out", str(tmp_path / "out")]) == 0
    captured = capsys.readouterr()
    assert "its 1 classes are among the 2 of" in captured.out
    assert captured.err == ""
    found = json.loads((tmp_path / "out" / "statistics.json").read_text())["val_json"]["classes"]
    assert [(c["name"], c["boxes"]) for c in found] == [("dog", 0), ("cat", 1)]
