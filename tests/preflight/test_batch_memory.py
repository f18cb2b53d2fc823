"""Memory before the start: what is said and warned of, and the batch that --batch auto chooses."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from detectron2.modeling import build_model
from torch import nn

from focal_det.cli.train import parse_arguments
from focal_det.engine.memory_estimate import Measured, StepMemory
from focal_det.errors import InputError
from focal_det.preflight import batch_memory
from focal_det.preflight.batch_memory import check_memory, choose_batch, largest_size
from focal_det.preflight.options import TrainOptions
from focal_det.preflight.plan import check

pytestmark = pytest.mark.detectron2

GB = 10**9


def data_of(*sizes, images=100):
    """Data sets of images of such widths and heights; none knows its images without any."""
    content = SimpleNamespace(
        objects=SimpleNamespace(sizes=np.array(sizes, float).reshape(-1, 2)),
        images=images,
        with_objects=images,
        tiles=0,
        tiles_with_objects=0,
    )
    return SimpleNamespace(trained_on=[SimpleNamespace(content=content if sizes else None)])


@pytest.mark.parametrize(
    ("sizes", "grouped", "expected"),
    [
        ([(640, 480), (480, 640)], True, (800, 1088)),  # 800x1067, up to a multiple of 32, one way or the other
        ([(640, 480), (480, 640)], False, (1088, 1088)),  # of both in one batch
        ([(640, 480), (4000, 400)], True, (800, 1344)),  # 133x1333 and 800x1067: a batch of both
        ([], True, (800, 1216)),  # not known: 3:2
    ],
)
def test_the_largest_batch_holds_any_images_that_meet(tiny_cfg, sizes, grouped, expected):
    cfg = tiny_cfg("INPUT.MIN_SIZE_TRAIN", "(640, 800)", "DATALOADER.ASPECT_RATIO_GROUPING", str(grouped))
    assert largest_size(cfg, data_of(*sizes), 32) == expected


@pytest.fixture
def machine(monkeypatch):
    """A machine with 10 GB free, on which a step takes 2 GB, and 1 GB an image."""
    given = SimpleNamespace(free=10 * GB, step=StepMemory(2 * GB, GB))
    monkeypatch.setattr(batch_memory, "free_bytes_of_machine", lambda: given.free)
    monkeypatch.setattr(batch_memory, "free_bytes_of_gpus", lambda count: given.free)
    monkeypatch.setattr(batch_memory, "count_step", lambda cfg, model, size: given.step)
    monkeypatch.setattr(batch_memory, "own_bytes", lambda: GB)
    return given


@pytest.mark.parametrize(
    ("options", "keys", "line"),
    [
        ({}, (), "about 6.0 GB (counted) for 4 images of at most 128x96 px at once, of 10.0 GB free on this machine"),
        ({}, ("MODEL.FOCAL_DET.ACCUMULATION", "2"), "about 4.0 GB (counted) for 2 images"),
        (
            {"num_gpus": 2},
            (),
            "about 5.0 GB (counted) for 2 images of at most 128x96 px at once for each process, of 5.0 ",
        ),
    ],
)
def test_memory_is_said_and_nothing_is_warned_of_where_it_fits(tiny_cfg, machine, options, keys, line):
    cfg = tiny_cfg("SOLVER.IMS_PER_BATCH", "4", "INPUT.MIN_SIZE_TRAIN", "(96,)", *keys)
    found = check_memory(TrainOptions(**options), cfg, data_of((128, 96)), build_model(cfg))
    assert found.notes[0].startswith(f"memory: {line}")
    assert found.warnings == []


def test_a_step_that_does_not_fit_is_a_warning_with_its_fix(tiny_cfg, machine):
    cfg = tiny_cfg("SOLVER.IMS_PER_BATCH", "16")
    (warning,) = check_memory(TrainOptions(), cfg, data_of((128, 96)), build_model(cfg)).warnings
    assert warning.startswith("a training step may not fit into memory: about 18.0 GB (counted) for 16 images")
    assert warning.endswith("raise MODEL.FOCAL_DET.ACCUMULATION, which is 1, or try --batch auto")
    assert check_memory(TrainOptions(eval_only=True), cfg, data_of(), build_model(cfg)).warnings == []


def test_on_a_gpu_it_is_measured_where_there_is_time(tiny_cfg, machine, monkeypatch):
    def measured(cfg, plugins, images, size):
        return Measured(math.inf if images > 4 else images * GB, 9 * GB)

    monkeypatch.setattr(batch_memory, "measure_step", measured)
    cfg = tiny_cfg("SOLVER.IMS_PER_BATCH", "4")
    model = build_model(cfg)
    cfg.MODEL.DEVICE = "cuda"
    both = [
        check_memory(TrainOptions(preflight_only=only), cfg, data_of((128, 96)), model).notes[0]
        for only in (False, True)
    ]
    assert "about 6.0 GB (counted)" in both[0]
    assert "about 4.0 GB (measured)" in both[1]
    assert both[1].endswith("of 9.0 GB free on a GPU")
    options = TrainOptions(batch="auto")
    batch, reason = choose_batch(options, cfg, data_of((128, 96)), model, None, 16)
    assert batch == 4
    assert reason == (
        "--batch auto: 4 images a step take about 4.0 GB of 9.0 GB free; twice as many would be more than 80% of that"
    )


@pytest.mark.parametrize(
    ("free", "images", "written_for", "options", "parts", "expected", "reason"),
    [
        (10, 100, 16, {}, 1, 4, "80% of that"),  # 2 + 4 GB of 8
        (10, 100, 16, {}, 4, 16, "80% of that"),  # in parts of 4
        (10, 3, 16, {}, 1, 2, "the images to train on"),
        (1000, 100, 2, {}, 1, 16, "8 times the configuration's 2"),
        (12, 100, 16, {"num_gpus": 2}, 1, 2, "80% of that"),  # each has 6 GB, 1 of them taken, and 4.8 are its room
        (1, 100, 16, {}, 1, 1, "not even 1 image fit into 80% of that: lower INPUT.MIN_SIZE_TRAIN"),
    ],
)
def test_the_batch_is_the_largest_power_of_two_that_fits(
    tiny_cfg, machine, free, images, written_for, options, parts, expected, reason
):
    machine.free = free * GB
    cfg = tiny_cfg("MODEL.FOCAL_DET.ACCUMULATION", str(parts))
    options = TrainOptions(batch="auto", **options)
    data = data_of((128, 96), images=images)
    batch, why = choose_batch(options, cfg, data, build_model(cfg), None, written_for)
    assert batch == expected
    assert why.endswith(reason)


@pytest.fixture
def gpu(tiny_cfg, machine, monkeypatch):
    """Choose a batch, by default in one part, on a GPU on which steps of so many images end so."""

    def choose(outcomes, parts=1):
        def measured(cfg, plugins, images, size):
            found = outcomes.get(images, GB)
            return found if isinstance(found, Measured) else Measured(found, 9 * GB)

        monkeypatch.setattr(batch_memory, "measure_step", measured)
        cfg = tiny_cfg("MODEL.FOCAL_DET.ACCUMULATION", str(parts))
        model = build_model(cfg)
        cfg.MODEL.DEVICE = "cuda"
        return choose_batch(TrainOptions(batch="auto"), cfg, data_of((128, 96)), model, None, 16)

    return choose


def test_a_gpu_that_is_too_small_for_one_image_is_said_without_a_number_that_there_is_not(gpu):
    batch, why = gpu({1: math.inf}, parts=2)
    assert batch == 2
    assert why == (
        "--batch auto: 2 images a step take more than there is of 9.0 GB free; not even 2 images fit into 80% of that: "
        "lower INPUT.MIN_SIZE_TRAIN"
    )


def test_a_process_that_was_killed_had_too_little_memory(gpu):
    batch, why = gpu({8: Measured(math.inf, None)})
    assert batch == 4
    assert why.endswith(
        "4 images a step take about 1.0 GB of 9.0 GB free; twice as many would be more than 80% of that"
    )


def test_a_step_that_fails_for_another_reason_is_named(gpu):
    fails = Measured(math.inf, 9 * GB, "integers are too small")
    batch, why = gpu({4: fails})
    assert batch == 2
    assert why.endswith("of 9.0 GB free; a step of 4 images fails (integers are too small)")
    why = "since a step of 1 image fails (integers are too small)"
    assert gpu({1: fails}) == (16, f"--batch auto: the configuration's batch, {why}")


def test_where_it_is_not_known_what_is_free_no_number_is_made_up(tiny_cfg, machine):
    machine.free = None
    cfg = tiny_cfg()
    batch, why = choose_batch(TrainOptions(batch="auto"), cfg, data_of((128, 96)), build_model(cfg), None, 2)
    assert batch == 16
    assert "16 images a step take about 18.0 GB, and it is not known how much is free; twice as many" in why


@pytest.mark.parametrize(("iterations", "expected"), [(400, 8), (1999, 8), (2000, 16), (90000, 64)])
def test_a_larger_batch_leaves_iterations_enough(tiny_cfg, machine, iterations, expected):
    machine.free = 1000 * GB
    cfg = tiny_cfg("SOLVER.MAX_ITER", str(iterations))
    options = TrainOptions(batch="auto")
    batch, why = choose_batch(options, cfg, data_of((128, 96)), build_model(cfg), None, 8)
    assert batch == expected
    assert why.endswith("8 times the configuration's 8" if expected == 64 else "would leave fewer than 1000 iterations")


def test_what_cannot_be_counted_is_said_and_keeps_the_batch(tiny_cfg, machine):
    cfg = tiny_cfg("MODEL.META_ARCHITECTURE", "RetinaNet", "MODEL.ANCHOR_GENERATOR.NAME", "DefaultAnchorGenerator")
    why = "since a step of RetinaNet is measured on a GPU alone"
    model = build_model(cfg)
    assert check_memory(TrainOptions(), cfg, data_of((128, 96)), model).notes == [f"memory: not known, {why}"]
    found = choose_batch(TrainOptions(batch="auto"), cfg, data_of((128, 96)), model, None, 16)
    assert found == (16, f"--batch auto: the configuration's batch, {why}")


def test_a_batch_in_parts_is_warned_of_where_it_is_not_quite_the_whole(tiny_cfg, machine):
    parts = ("MODEL.FOCAL_DET.ACCUMULATION", "2", "SOLVER.IMS_PER_BATCH", "4")
    for options, words in (((), None), (("MODEL.FPN.NORM", "BN"), "batch normalisation that is trained")):
        cfg = tiny_cfg(*parts, *options)
        found = check_memory(TrainOptions(), cfg, data_of((128, 96)), build_model(cfg)).warnings
        assert [words in warning for warning in found] == ([True] if words else [])
    cfg.MODEL.META_ARCHITECTURE = "Mine"
    (warning,) = check_memory(TrainOptions(), cfg, data_of((128, 96)), nn.Linear(1, 1)).warnings
    assert "MODEL.META_ARCHITECTURE Mine: its loss is the mean of the parts' losses" in warning


# --- the command line -------------------------------------------------------------------------------------------------

SETS = ("DATASETS.TRAIN", "('shapes_train_40_64px',)", "DATASETS.TEST", "('shapes_val_4_64px',)")
SMALL = ("MODEL.FPN.OUT_CHANNELS", "64", "MODEL.RETINANET.NUM_CONVS", "1", "DATALOADER.NUM_WORKERS", "0")


def arguments(folder, *words):
    keys = (
        *SETS,
        *SMALL,
        "OUTPUT_DIR",
        str(folder / "run"),
        "INPUT.MIN_SIZE_TRAIN",
        "(64,)",
        "INPUT.MIN_SIZE_TEST",
        "64",
    )
    return ["--config-file", "configs/quickstart.yaml", *words, *keys, "MODEL.FOCAL_DET.DRAW_IMAGES", "0"]


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))


@pytest.mark.usefixtures("datasets")
def test_the_batch_that_was_chosen_is_a_number_with_its_schedule_and_stays_on_a_resume(tmp_path, machine, train_net):
    machine.free = 13 * GB  # 8 images: 2 + 8 of 10.4 GB
    words = arguments(tmp_path, "--batch", "auto", "SOLVER.WARMUP_ITERS", "1")
    plan = check(parse_arguments(words))
    solver = plan.job.cfg.SOLVER
    assert (solver.IMS_PER_BATCH, solver.BASE_LR, solver.MAX_ITER) == (8, 0.025, 2000)  # of 16, .05 and 1000
    assert any(line.startswith("--batch auto: 8 images a step take about 10.0 GB") for line in plan.summary)
    set_by = {change.key: change.place for change in plan.job.changes}
    assert set_by["SOLVER.BASE_LR"] == "inferred"

    short = ("SOLVER.MAX_ITER", "1", "SOLVER.STEPS", "()", "SOLVER.WARMUP_ITERS", "1")
    done = train_net(*arguments(tmp_path, "--batch", "8", *short))  # the run that it would be
    assert done.returncode == 0, done.stderr[-3000:]
    machine.free = GB
    resumed = check(parse_arguments([*words, *short, "--resume"]))
    assert resumed.job.cfg.SOLVER.IMS_PER_BATCH == 8
    assert "--batch auto: 8 images a step, as the run that is resumed" in resumed.summary


@pytest.mark.usefixtures("datasets")
def test_a_batch_that_was_chosen_and_stays_is_no_warning(tmp_path, machine, capsys):
    machine.free = 100 * GB
    assert check(parse_arguments(arguments(tmp_path, "--batch", "auto"))).job.cfg.SOLVER.IMS_PER_BATCH == 16
    assert "--scale-lr" not in "".join(capsys.readouterr())


@pytest.mark.usefixtures("datasets")
def test_a_number_is_the_batch_with_its_schedule(tmp_path):
    solver = check(parse_arguments(arguments(tmp_path, "--batch", "4"))).job.cfg.SOLVER
    assert (solver.IMS_PER_BATCH, solver.BASE_LR, solver.MAX_ITER, solver.STEPS) == (4, 0.0125, 4000, (3000, 3720))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--eval-only", "MODEL.WEIGHTS", "x.pth"), "--batch auto is for a training"),
        (("SOLVER.IMS_PER_BATCH", "4"), "--batch auto and SOLVER.IMS_PER_BATCH both choose the batch"),
        (("--batch", "4", "SOLVER.IMS_PER_BATCH", "8"), "--batch 4 and SOLVER.IMS_PER_BATCH 8 both set SOLVER.IMS_P"),
        (("--tile", "64", "MODEL.FOCAL_DET.TILES.SIZE", "32"), "--tile 64 and MODEL.FOCAL_DET.TILES.SIZE 32 both set"),
        (("SOLVER.REFERENCE_WORLD_SIZE", "4"), "--scale-lr or --batch to the batch; leave one of them out"),
    ],
)
@pytest.mark.usefixtures("datasets")
def test_what_the_choice_contradicts_is_refused(tmp_path, words, message):
    with pytest.raises(InputError, match=message):
        check(parse_arguments(arguments(tmp_path, "--batch", "auto", *words)))
