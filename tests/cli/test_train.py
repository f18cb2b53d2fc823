"""train_net.py from its command line: bad input exits 2 before anything is written; good input does what it says."""

import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from focal_det import launch
from focal_det.cli.train import main
from focal_det.errors import TrainingError
from focal_det.files import FolderLock
from focal_det.preflight import plan as plan_module
from focal_det.preflight.plan import check

pytestmark = pytest.mark.detectron2

ROOT = Path(__file__).parents[2]
QUICK = ["--config-file", "configs/quickstart.yaml", "DATALOADER.NUM_WORKERS", "0"]


# What makes a model of Detectron2's defaults, for configuration files that say nothing of one.
BUILDABLE = [
    *("MODEL.META_ARCHITECTURE", "RetinaNet", "MODEL.WEIGHTS", "", "MODEL.RESNETS.DEPTH", "18"),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", "64", "MODEL.RESNETS.OUT_FEATURES", "['res3', 'res4', 'res5']"),
    *(
        "MODEL.BACKBONE.NAME",
        "build_retinanet_resnet_fpn_backbone",
        "MODEL.FPN.IN_FEATURES",
        "['res3', 'res4', 'res5']",
    ),
]


def link_to_nothing(path):
    path.symlink_to(path.with_name("gone"))


@pytest.fixture
def own_data(tmp_path):
    """A COCO file of two images and two classes as a user might have it, without info, area and iscrowd."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        cv2.imwrite(str(folder / name), np.full((64, 96, 3), 128, np.uint8))
    coco = {
        "images": [{"id": i, "file_name": n, "width": 96, "height": 64} for i, n in ((1, "a.png"), (2, "b.png"))],
        "annotations": [
            {"image_id": 1, "category_id": 3, "bbox": [10, 10, 30, 30]},
            {"image_id": 1, "category_id": 4, "bbox": [50, 5, 0, 30]},
            {"image_id": 2, "category_id": 4, "bbox": [20, 20, 40, 40]},
        ],
        "categories": [{"id": 3, "name": "cell"}, {"id": 4, "name": "plate"}],
    }

    class Data:
        content = coco
        json_file = folder / "instances.json"

        def write(self):
            self.json_file.write_text(json.dumps(coco))
            words = [
                *("--train-json", self.json_file, "--train-images", folder),
                *("--val-json", self.json_file, "--val-images", folder),
            ]
            return [str(word) for word in words]

    return Data()


def errors_of(capsys, *words):
    """Exit code 2, nothing on standard output, one line per problem."""
    assert main([str(word) for word in words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = [line for line in captured.err.splitlines() if not line.startswith("warning: ")]
    assert lines
    assert all(line.startswith("error: ") for line in lines)
    return [line.removeprefix("error: ") for line in lines]


WEIGHTED = ["DATALOADER.SAMPLER_TRAIN", "WeightedTrainingSampler", "DATASETS.TRAIN_REPEAT_FACTOR"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["MODEL.RETINANET.NUM_CLASES", "3"], "did you mean MODEL.RETINANET.NUM_CLASSES?"),
        (
            ["MODEL.RETINANET.NUM_CLASSES", "80"],
            "shapes_train_4000_128px has 3 classes (disk, box, triangle), MODEL.RETINANET.NUM_CLASSES is 80",
        ),
        (["--config-file", "no.yaml"], "config file no.yaml: no such file"),
        (["--config-file", "setup.py"], "config file setup.py: a LazyConfig of Detectron2's, which is a program"),
        (["SOLVER.BASE_LR=1"], "; write 'SOLVER.BASE_LR 1'"),
        (["--plugin", "no.py"], "--plugin no.py: no such file"),
        (["--num-gpus", "100000"], "--num-gpus is 100000"),
        (["--num-gpus", "0"], "--num-gpus is 0"),
        (["--num-machines", "2"], "needs --dist-url"),
        (["--dist-url", "tcp://x"], "--dist-url is 'tcp://x'; give tcp://HOST:PORT"),
        (["--dist-url", "file:///tmp/x"], "--dist-url is 'file:///tmp/x'; give"),
        (["--dist-url", "tcp://localhost:99999"], "--dist-url is 'tcp://localhost:99999'; give"),
        (["--machine-rank", "1"], "--machine-rank 1 of --num-machines 1"),
        (["--eval-only"], "MODEL.WEIGHTS, which is empty"),
        (["OUTPUT_DIR", "\udcff"], "OUTPUT_DIR is '\\udcff'; its name must be UTF-8"),
        (["--eval-only", "--resume"], "--resume: no last_checkpoint in"),
        (["--eval-only", "--resume", "--allow-changes"], "--allow-changes is for a training that is resumed"),
        (["--resume"], "no last_checkpoint in"),
        (["--train-json", "x.json"], "--train-json is given without --train-images"),
        (["--val-images", "x"], "--val-images is given without --val-json"),
        (["--val-json", "x.json", "--val-images", "."], "x.json: no such annotation file"),
        (["DATASETS.TRAIN", "coco_2017_tarin"], 'did you mean "coco_2017_train"?'),
        (["DATASETS.TRAIN", "shapes_train_many_128px"], "are named shapes_<train|val>_<images>_<side>px"),
        (["DATASETS.TEST", "coco_2017_val"], "instances_val2017.json is missing; it comes from http:"),
        (["--eval-only", "DATASETS.TEST", "()"], "DATASETS.TEST is (); it must be at least one data set"),
        (["MODEL.FPN.OUT_CHANNELS", "48"], "num_channels (48) must be divisible by num_groups (32)"),
        (["MODEL.RETINANET.IN_FEATURES", "['p3', 'p9']"], "the configuration does not make a model: "),
        (["MODEL.ANCHOR_GENERATOR.SIZES", "[32, 64, 128, 256, 512]"], "MODEL.ANCHOR_GENERATOR.SIZES is [32, 64"),
        (["MODEL.ANCHOR_GENERATOR.SIZES", "[[32, 40], [64], [128], [256], [512]]"], "one base size per level"),
        (["MODEL.RETINANET.BBOX_REG_LOSS_TYPE", "iou"], "is 'iou'; allowed are 'ciou', 'diou', 'giou', 'smooth_l1'"),
        (["SOLVER.REFERENCE_WORLD_SIZE", "8", "--scale-lr"], "SOLVER.REFERENCE_WORLD_SIZE is 8, which scales lr and"),
        (["SOLVER.REFERENCE_WORLD_SIZE", "5"], "SOLVER.REFERENCE_WORLD_SIZE is 5; it must divide SOLVER.IMS_PER_BATCH"),
        (["TEST.EXPECTED_RESULTS", "[['bbox', 'mAP', 1.0, 1.0]]"], "TEST.EXPECTED_RESULTS has the metric 'mAP'"),
        (
            [*WEIGHTED, "[['mine', 2.0]]"],
            "TRAIN_REPEAT_FACTOR names 'mine', but the sets to train on are shapes_train_4000_128px",
        ),
        (["MODEL.RETINANET.IOU_LABELS", "[1, -1, 0]"], "FocalRetinaNet labels the bands"),
        (["SOLVER.IMS_PER_BATCH", "0", "--scale-lr"], "SOLVER.IMS_PER_BATCH is 0"),
        (["--batch", "4", "SOLVER.IMS_PER_BATCH", "8"], "--batch 4 and SOLVER.IMS_PER_BATCH 8 both set"),
        (["SOLVER.IMS_PER_BATCH", "12800", "--scale-lr"], "SOLVER.STEPS is (1, 1)"),
        (["MODEL.WEIGHTS", "setup.py"], "setup.py cannot be read as a checkpoint"),
    ],
)
def test_bad_input_exits_2_before_anything_is_written(capsys, tmp_path, monkeypatch, words, message):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    if words[0] != "--config-file":
        words = [*QUICK, *words]
    if "OUTPUT_DIR" not in words:
        words = [*words, "OUTPUT_DIR", tmp_path / "output"]
    found = errors_of(capsys, *words)
    assert any(message in line for line in found)
    assert list(tmp_path.iterdir()) == []


def test_a_batch_of_another_kind_is_refused_with_what_there_is(capsys):
    with pytest.raises(SystemExit):
        main([*QUICK, "--batch", "aut"])
    assert "argument --batch: invalid N|auto value: 'aut'" in capsys.readouterr().err


def test_the_lines_of_the_examples_are_as_they_are_to_be_copied(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    examples = capsys.readouterr().out.partition("examples:")[2]
    (auto,) = (line for line in examples.splitlines() if "--batch auto" in line)
    assert auto.endswith("--batch auto \\")  # and the rest on the next line
    assert max(map(len, examples.splitlines())) <= 120


def test_the_sets_to_evaluate_on_that_were_forgotten_are_asked_for(capsys, own_data, tmp_path):
    words = [*QUICK, *own_data.write()[:4], "DATASETS.TEST", "coco_2017_val", "OUTPUT_DIR", tmp_path / "output"]
    assert any("add --val PATH" in line for line in errors_of(capsys, *words))


def test_all_problems_come_at_once(capsys, tmp_path):
    words = ["--num-gpus", "100000", "SOLVER.BASE_LR", "-1.0", "DATASETS.TEST", "nowhere", "OUTPUT_DIR", tmp_path]
    assert len(errors_of(capsys, *QUICK, *words)) >= 3


def test_a_category_that_is_not_listed_is_named(capsys, own_data, tmp_path):
    own_data.content["annotations"][0]["category_id"] = 9
    found = errors_of(capsys, *QUICK, *own_data.write(), "OUTPUT_DIR", tmp_path / "output")
    assert len(found) == 1  # the one file serves for both sets, and its fault is told once
    assert f"{own_data.json_file}: category_id=9 (annotations[0]) is not in categories [3, 4]" in found[0]


def test_classes_of_the_two_sets_must_agree(capsys, own_data, tmp_path):
    flags = own_data.write()
    flags = [*flags[:4]]
    found = errors_of(capsys, *QUICK, *flags, "OUTPUT_DIR", tmp_path / "output")
    assert found[-1].startswith("data sets train_json and shapes_val_200_128px differ in their classes: [cell, plate] ")


def test_a_run_is_never_written_over(capsys, tmp_path):
    (tmp_path / "last_checkpoint").write_text("model_0000099.pth")
    (found,) = errors_of(capsys, *QUICK, "OUTPUT_DIR", tmp_path)
    assert "already holds a run (model_0000099.pth): add --resume" in found
    (found,) = errors_of(capsys, *QUICK, "--resume", "OUTPUT_DIR", tmp_path)
    assert "names 'model_0000099.pth', which is not a checkpoint in that folder" in found


@pytest.mark.parametrize("name", [b"", b"\xff\xfe\x00", b"x" * 5000, b"/etc/passwd", b"../other/model_final.pth"])
def test_a_pointer_that_names_no_checkpoint_of_the_run_is_refused(capsys, tmp_path, name):
    (tmp_path / "last_checkpoint").write_bytes(name)
    (found,) = errors_of(capsys, *QUICK, "--resume", "OUTPUT_DIR", tmp_path)
    assert "which is not a checkpoint in that folder" in found


def test_a_run_that_ended_before_its_first_checkpoint_is_kept(capsys, tmp_path):
    (tmp_path / "metrics.json").write_text("{}\n")
    (found,) = errors_of(capsys, *QUICK, "OUTPUT_DIR", tmp_path)
    assert "ended before its first checkpoint" in found
    assert main([*QUICK, "--resume", "auto", "--preflight-only", "OUTPUT_DIR", str(tmp_path)]) == 0


def test_two_trainings_into_one_folder_are_refused(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    with FolderLock(str(tmp_path / "output")):
        assert main([*QUICK, "OUTPUT_DIR", str(tmp_path / "output")]) == 2
    assert "is in use by another training" in capsys.readouterr().err
    assert not (tmp_path / "datasets").exists()
    with FolderLock(str(tmp_path / "output")):
        pass  # given back


def test_a_folder_that_another_training_wrote_to_in_the_meantime_is_left_alone(capsys, tmp_path, monkeypatch):
    output = tmp_path / "output"
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))

    def overtaken(options, **given):
        plan = check(options, **given)
        output.mkdir()
        (output / "model_0000009.pth").write_text("of the other")
        return plan

    monkeypatch.setattr(launch, "check", overtaken)
    assert main([*QUICK, "OUTPUT_DIR", str(output)]) == 2
    assert "another training has written here since this one looked" in capsys.readouterr().err
    assert sorted(path.name for path in output.iterdir()) == [".lock", "model_0000009.pth"]
    assert not (tmp_path / "datasets").exists()


def test_a_fault_that_says_what_to_do_ends_with_1_and_no_stack_trace(capsys, tmp_path, monkeypatch):
    def full(*_):
        raise TrainingError("model_0000009.pth could not be written")

    monkeypatch.setattr(plan_module, "prepare_shapes", lambda names: None)
    monkeypatch.setattr(launch, "_launch", full)
    assert main([*QUICK, "OUTPUT_DIR", str(tmp_path)]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "error: model_0000009.pth could not be written"


@pytest.mark.parametrize("name", [".lock", "log.txt", "metrics.json", "detections.png"])
@pytest.mark.parametrize(
    ("make", "what"),
    [(Path.mkdir, "a folder"), (os.mkfifo, "a link to nothing"), (link_to_nothing, "a link to nothing")],
)
def test_what_is_no_file_where_a_file_is_to_be_is_named(capsys, tmp_path, name, make, what):
    make(tmp_path / name)
    (found,) = errors_of(capsys, *QUICK, "OUTPUT_DIR", tmp_path)
    assert f"whose {name} is {what}" in found


def test_a_file_that_no_check_foresaw_ends_without_a_trace(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(plan_module, "prepare_shapes", lambda names: (tmp_path / "datasets").read_text())
    assert main([*QUICK, "OUTPUT_DIR", str(tmp_path)]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: [Errno 2] No such file or directory")


def test_a_name_that_no_terminal_can_show_is_no_fault(tmp_path, monkeypatch, capfdbinary):
    with open(1, "w", encoding="ascii", closefd=False) as terminal:
        monkeypatch.setattr("sys.stdout", terminal)
        words = [*QUICK, "--preflight-only", "OUTPUT_DIR", str(tmp_path / "\U0001f4c1 é")]
        assert main(words) == 0
    assert b"ready: nothing was written" in capfdbinary.readouterr().out


@pytest.mark.parametrize("blocked", ["inference", "detections", "annotations"])
def test_a_file_where_a_folder_is_to_be_is_named(capsys, tmp_path, blocked):
    (tmp_path / blocked).write_text("mine")
    (found,) = errors_of(capsys, *QUICK, "OUTPUT_DIR", tmp_path)
    assert f"whose {blocked} is a file" in found


def test_preflight_says_what_the_data_are_and_writes_nothing(capsys, own_data, tmp_path):
    words = [*QUICK, *own_data.write(), "--preflight-only", "OUTPUT_DIR", str(tmp_path / "output")]
    assert main(words) == 0
    captured = capsys.readouterr()
    assert "train on train_json: 2 images, 2 with objects, 0 without; 2 objects; 1 boxes left out" in captured.out
    assert "0 = cell (id 3)            1         1" in captured.out
    assert "a.png annotations[1] [50, 5, 0, 30]" in captured.out
    if not torch.cuda.is_available():
        assert "NO GPU HERE" in captured.err
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["SOLVER.IMS_PER_BATCH", "8"], "--scale-lr fits them"),
        (["SOLVER.IMS_PER_BATCH", "8", "SOLVER.BASE_LR", "0.1"], None),
        (["SOLVER.IMS_PER_BATCH", "8", "--scale-lr"], "--scale-lr: batch 16 -> 8: BASE_LR 0.05 -> 0.025"),
    ],
)
def test_a_batch_that_the_schedule_was_not_written_for(capsys, own_data, tmp_path, words, expected):
    base = tmp_path / "c.yaml"
    base.write_text("SOLVER: {IMS_PER_BATCH: 16, BASE_LR: 0.05, MAX_ITER: 100, STEPS: [60], WARMUP_ITERS: 10}\n")
    command = ["--config-file", str(base), *own_data.write(), "--preflight-only", *words]
    assert main([*command, *BUILDABLE]) == 0
    warning = capsys.readouterr().err
    assert (expected in warning) if expected else ("fits them" not in warning)


def test_own_images_train_and_evaluate_from_flags(own_data, tmp_path, train_net):
    output = tmp_path / "output"
    flags = [*own_data.write(), "OUTPUT_DIR", output, "SOLVER.MAX_ITER", 2, "SOLVER.IMS_PER_BATCH", 2]
    done = train_net(*QUICK, *flags, "MODEL.FPN.OUT_CHANNELS", 64)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "left out 1 boxes without area" in done.stdout
    assert (output / "detections.png").is_file()
    assert "NUM_CLASSES: 2" in (output / "config.yaml").read_text()
    cleaned = json.loads((output / "annotations" / "val_json.json").read_text())
    assert len(cleaned["annotations"]) == 2
    metrics = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    assert "bbox/AP50" in metrics[-1]
    shutil.rmtree(output)


def test_a_file_may_set_a_constant_of_the_loss_that_the_command_line_names(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(f"_BASE_: {ROOT}/configs/quickstart.yaml\nMODEL: {{FOCAL_DET: {{LOSS: {{MARGIN: 0.4}}}}}}\n")
    words = ["--config-file", str(path), "--preflight-only", "OUTPUT_DIR", str(tmp_path / "run")]
    assert main([*words, "MODEL.FOCAL_DET.LOSS.NAME", "HingeLoss"]) == 0
    assert main(words) == 2
    assert not (tmp_path / "run").exists()
