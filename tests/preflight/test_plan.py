"""Preflight: whatever is planted is named, all in one run; what is clean raises no alarm; nothing is written."""

import copy
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler
from preflight_fixtures import QUICK, ROOT, errors_in, first_of, flags_of, random_coco, warnings_in

from focal_det import environment
from focal_det.checkpoint import compatibility
from focal_det.checkpoint.checkpointer import RunCheckpointer
from focal_det.cli.train import main, parse_arguments
from focal_det.data import statistics
from focal_det.data.catalog import register_datasets
from focal_det.data.shapes import make_shapes
from focal_det.data.shared_records import read_train_records
from focal_det.engine.run import Job
from focal_det.errors import InputError
from focal_det.preflight import datasets, summary
from focal_det.preflight.plan import check, write

pytestmark = pytest.mark.detectron2

BCCD = ROOT.parent / "shared" / "data" / "bccd"


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
