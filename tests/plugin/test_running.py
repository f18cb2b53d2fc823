"""What is seen of a training while it runs: the log line, the validation loss, the gradients' norm, the changes."""

import gc
import json
import logging
import weakref
from types import SimpleNamespace

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage

from focal_det.data.catalog import prepare_shapes, register_datasets
from focal_det.engine import validation
from focal_det.engine.config_changes import config_changes
from focal_det.engine.config_file import load_config, read_config
from focal_det.engine.keep_best import ap_name
from focal_det.engine.log_line import LogLine, levers_line
from focal_det.engine.trainer import Trainer
from focal_det.engine.validation import ValidationLoss, validation_losses


@pytest.fixture
def lines():
    """What the package logs, whoever has set up its loggers."""
    kept = []
    handler = logging.Handler()
    handler.emit = lambda record: kept.append(record.getMessage())
    logger = logging.getLogger("focal_det")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield kept
    logger.removeHandler(handler)
    logger.setLevel(level)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    names = ("shapes_train_8_64px", "shapes_val_5_64px")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(tmp_path_factory.mktemp("datasets")))
        prepare_shapes(names)
        register_datasets(names, [])
    yield names
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


# --- the log line ----------------------------------------------------------------------------------------------------


def written(lines, iteration, times, *, best=None, iterations_per_epoch=250, max_iter=1000):
    """The line after an iteration, and what it has put into the metrics."""
    writer = LogLine(max_iter, iterations_per_epoch=iterations_per_epoch, best=lambda: best, device=torch.device("cpu"))
    with EventStorage(iteration - len(times) + 1) as storage:
        for seconds in times:
            storage.put_scalars(time=seconds, data_time=0.25, total_loss=3.0, loss_cls=2.0, loss_box_reg=1.0)
            storage.put_scalar("lr", 0.012, smoothing_hint=False)
            storage.put_scalar("val/loss_cls", 9.0)
            storage.iter = storage.iter + 1
        storage.iter = iteration
        writer.write()
        writer.write()  # at the end of training writers are called once more
        return lines, {name: value for name, (value, _) in storage.latest().items()}


def test_the_line_says_how_far_how_fast_and_how_well(lines):
    # 40 of 1000 iterations, 250 to the epoch; the 960 that are left take .5 s each: 480 s
    (line,), metrics = written(lines, 39, [0.5] * 20, best=(43.21, 20))
    memory = line.split("memory ")[1].split(" GB")[0]
    assert line == (
        "iteration 40/1000 (epoch 0.16)  eta 0:08:00  2 it/s  data 0.250 s  "
        f"memory {memory} GB  lr 0.012  total_loss 3  loss_cls 2  loss_box_reg 1  best AP 43.2 (after 20)"
    )
    assert 0.05 < float(memory) < 100
    assert (metrics["epoch"], metrics["eta_seconds"]) == (0.16, 480)


def test_speed_is_the_mean_since_on_a_gpu_one_step_waits_for_all(lines):
    # 19 steps of .1 s and one of 2.1 s are 4 s for 20
    (line,), _ = written(lines, 39, [0.1] * 19 + [2.1])
    assert "  5 it/s  " in line


def test_slow_steps_are_given_in_seconds_and_what_is_unknown_is_left_open(lines):
    (line,), metrics = written(lines, 39, [2.0] * 20, iterations_per_epoch=None)
    assert "  0.5 it/s  " in line
    assert line.startswith("iteration 40/1000  eta 0:32:00")
    assert line.endswith("best AP -")
    assert "epoch" not in metrics


def test_the_first_steps_are_not_timed_and_nothing_is_written_after_the_last(lines):
    written(lines, 1, [])
    assert "eta -" in lines[0]
    assert written(lines[:0], 1000, [0.5] * 20)[0] == []


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], "none"),  # GroupNorm on the processor: neither is of use
        (["MODEL.RESNETS.NORM", "FrozenBN"], "CHANNELS_LAST, FOLD_NORMS"),
        (["MODEL.FOCAL_DET.SPEED.FUSED_SGD", "True"], "FUSED_SGD"),
        (["MODEL.FOCAL_DET.SPEED.BFLOAT16_INFERENCE", "True"], "BFLOAT16_INFERENCE"),
        (["SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "bfloat16"], "AMP bfloat16"),
    ],
)
def test_the_levers_are_those_in_use(tiny_cfg, overrides, expected):
    cfg = tiny_cfg(*overrides)
    line, *reasons = levers_line(cfg, build_model(cfg)).split("; ")
    assert line == f"Speed levers in use: {expected}"
    why = ["not CHANNELS_LAST, with which GroupNorm is slow on a processor", "not FOLD_NORMS, as no norm is frozen"]
    assert reasons == ([] if "FOLD_NORMS" in expected else why)


def test_compiling_is_said_to_take_minutes(tiny_cfg):
    cfg = tiny_cfg("MODEL.FOCAL_DET.SPEED.COMPILE", "True")
    assert "Compiling takes minutes" in levers_line(cfg, build_model(cfg))


# --- the validation loss ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["global", "image", "ema"])
def test_validation_losses_are_those_of_all_pictures_at_once(tiny_cfg, batch_of, mode):
    batch = batch_of((4, 0, 9))
    torch.manual_seed(0)
    model = build_model(tiny_cfg("MODEL.FOCAL_DET.NORMALIZER", mode))
    found = validation_losses(model, [[picture] for picture in batch])
    torch.manual_seed(0)
    # a batch's losses, of "global" over its number of assigned anchors; the moving average has no part in it
    whole = build_model(tiny_cfg("MODEL.FOCAL_DET.NORMALIZER", "image" if mode == "image" else "global"))
    expected = {f"val/{name}": loss.item() for name, loss in whole(batch).items()}
    assert found == pytest.approx({**expected, "val/total_loss": sum(expected.values())}, rel=1e-5)


def test_validation_leaves_the_training_as_it_was(tiny_cfg, batch_of, shapes):
    cfg = tiny_cfg("MODEL.FOCAL_DET.NORMALIZER", "ema", "DATALOADER.NUM_WORKERS", "0")
    cfg.DATASETS.TEST = shapes[1:]
    model = build_model(cfg)
    sum(model(batch_of((4, 3))).values()).backward()
    model.head.cls_subnet.eval()  # a part that somebody holds fixed stays so
    criterion = model.criterion
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    num_assigned = criterion.num_assigned.clone()
    losses = ValidationLoss(cfg, 0).measure(model)
    assert set(losses) == {"val/loss_cls", "val/loss_box_reg", "val/total_loss"}
    assert model.criterion is criterion
    assert criterion.normalizer.ema != 100  # it has moved in training, and not since
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert all(p.grad.equal(gradients[name]) for name, p in model.named_parameters())
    assert criterion.num_assigned.equal(num_assigned)
    assert model.training


def trained(tiny_cfg, shapes, folder, *overrides):
    words = [
        *("SOLVER.MAX_ITER", "5", "TEST.EVAL_PERIOD", "2", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.BASE_LR", "0.001"),
        *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64", "DATALOADER.NUM_WORKERS", "0", "SEED", "3"),
        *("MODEL.FOCAL_DET.DRAW_IMAGES", "0", "MODEL.FOCAL_DET.NORMALIZER", "ema", "OUTPUT_DIR", str(folder)),
    ]
    cfg = tiny_cfg(*words, *overrides)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = shapes[:1], shapes[1:]
    cfg.freeze()
    folder.mkdir()
    seed_all_rng(3)
    trainer = Trainer(cfg)
    trainer.train()
    return trainer, [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


def test_a_trainer_that_is_let_go_takes_its_model_with_it(tiny_cfg, shapes, tmp_path):
    """Else models would pile up in a process until Python looks for cycles, which counts objects and not gigabytes."""
    gc.disable()
    try:
        trainer, _ = trained(tiny_cfg, shapes, tmp_path / "run")
        model = weakref.ref(trainer.model)
        del trainer
        assert model() is None
    finally:
        gc.enable()


def test_a_training_is_the_same_to_the_bit_with_validation_and_without(tiny_cfg, shapes, tmp_path, lines):
    trainer, metrics = trained(tiny_cfg, shapes, tmp_path / "with")
    said = [line for line in lines if line.startswith("val/loss_cls ")]
    without, plain = trained(tiny_cfg, shapes, tmp_path / "without", "MODEL.FOCAL_DET.VAL_LOSS", "False")
    # after 2 and 4 of 5 iterations, and at the end; a writer's iterations count from 0, the end's is the number of all
    assert [line["iteration"] for line in metrics if "val/total_loss" in line] == [1, 3, 5]
    assert len(said) == 3
    assert said[0].endswith(" over 5 pictures of shapes_val_5_64px")
    assert not any("val/total_loss" in line for line in plain)
    states = trainer.model.state_dict(), without.model.state_dict()
    assert all(value.equal(states[1][name]) for name, value in states[0].items())
    last = [line for line in metrics if "lr" in line][-1]
    assert last["epoch"] == 5 * 2 / 8
    assert last["grad_norm"] > 0
    assert len([line for line in lines if line.startswith("iteration ")]) == 2  # one of each training
    assert any((tmp_path / "with").glob("events.out.tfevents.*"))


def test_pictures_are_evenly_spread_and_bounded(monkeypatch, tiny_cfg, shapes):
    monkeypatch.setattr(validation, "PICTURES", 2)
    cfg = tiny_cfg("DATALOADER.NUM_WORKERS", "0")
    cfg.DATASETS.TEST = shapes[1:]
    hook = ValidationLoss(cfg, 0)
    hook.measure(build_model(cfg))
    assert [record["image_id"] for record in hook._records] == [1, 3]  # ids from 1: of five the first and the third


@pytest.mark.parametrize(
    ("words", "annotations", "reason"),
    [
        ((), [], "data set unscored has no annotated objects"),
        (("MODEL.META_ARCHITECTURE", "RetinaNet"), [{}], "it is FocalRetinaNet's, and MODEL.META_ARCHITECTURE is"),
    ],
)
def test_what_has_no_validation_loss_is_passed_over_with_one_line(tiny_cfg, lines, words, annotations, reason):
    cfg = tiny_cfg(*words)
    cfg.DATASETS.TEST = ("unscored",)
    DatasetCatalog.register("unscored", lambda: [{"file_name": "a.png", "annotations": annotations}])
    try:
        hook = ValidationLoss(cfg, 0)
        model = build_model(cfg)
        assert hook.measure(model) == hook.measure(model) == {}
    finally:
        DatasetCatalog.remove("unscored")
    assert len(lines) == 1
    assert lines[0].startswith(f"No validation loss: {reason}")


@pytest.mark.parametrize(("period", "times"), [(0, [9]), (4, [3, 7, 9]), (5, [4, 9])])
def test_validation_goes_with_the_evaluations(monkeypatch, period, times):
    hook, at = ValidationLoss(None, period), []
    monkeypatch.setattr(hook, "_record", lambda: at.append(hook.trainer.iter))
    for iteration in range(10):
        hook.trainer = SimpleNamespace(iter=iteration, max_iter=10)
        hook.after_step()
    hook.after_train()
    assert at == times


# --- the configuration's changes -------------------------------------------------------------------------------------


def test_every_change_names_the_place_that_set_it_last(tmp_path):
    (tmp_path / "base.yaml").write_text("SOLVER: {BASE_LR: 0.5, MAX_ITER: 7, MOMENTUM: 0.9}\nSEED: 3\n")
    top = tmp_path / "top.yaml"
    top.write_text("_BASE_: base.yaml\nSOLVER: {MAX_ITER: 8}\n")
    cfg, _, places = read_config(top, ["SEED", "4", "MODEL.FOCAL_DET.DRAW_IMAGES", "3"])
    loaded = cfg.clone()
    cfg.MODEL.RETINANET.NUM_CLASSES = 2
    cfg.SOLVER.BASE_LR = 0.25  # as --scale-lr does
    assert config_changes(cfg, loaded, places) == (
        ("MODEL.FOCAL_DET.DRAW_IMAGES", 16, 3, "command line"),
        ("MODEL.RETINANET.NUM_CLASSES", 80, 2, "inferred"),
        ("SEED", -1, 4, "command line"),
        ("SOLVER.BASE_LR", 0.001, 0.25, "inferred"),
        ("SOLVER.MAX_ITER", 40000, 8, str(top)),
    )  # the momentum is set to its default, and so is no change


@pytest.mark.parametrize(("sets", "name"), [(("a",), "bbox/AP"), (("a", "b"), "a/bbox/AP")])
def test_the_ap_of_several_sets_is_that_of_the_first(sets, name):
    cfg = load_config("")
    cfg.DATASETS.TEST = sets
    assert ap_name(cfg) == name
