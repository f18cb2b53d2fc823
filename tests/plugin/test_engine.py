"""The engine's small parts: drawing, schedule, devices, catalogue, and what belongs to the stop on a signal."""

from types import SimpleNamespace

import cv2
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from focal_det.config import add_focal_det_config
from focal_det.data.catalog import class_names, dataset_problems, prepare_shapes, register_datasets
from focal_det.engine import devices
from focal_det.engine.bfloat16 import BFloat16Trainer
from focal_det.engine.devices import choose_device
from focal_det.engine.draw import draw_detections
from focal_det.engine.hooks import DrawDetections, LogAssignment
from focal_det.engine.schedule import scale_schedule
from focal_det.engine.steps import step_of
from focal_det.errors import InputError

SHAPES = "shapes_val_5_64px"


@pytest.fixture
def shapes(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    prepare_shapes([SHAPES])
    register_datasets([SHAPES], [])
    yield SHAPES
    DatasetCatalog.remove(SHAPES)
    MetadataCatalog.remove(SHAPES)


class Scores(nn.Module):
    """Finds one box of score .3 and one of score .8 in every picture."""

    def forward(self, batch):
        found = Instances((64, 64))
        found.pred_boxes = Boxes(torch.tensor([[2.0, 2, 20, 20], [30, 30, 60, 60]]))
        found.scores = torch.tensor([0.3, 0.8])
        found.pred_classes = torch.tensor([0, 1])
        return [{"instances": found} for _ in batch]


def drawn(tiny_cfg, shapes, folder, count, threshold):
    cfg = tiny_cfg("MODEL.FOCAL_DET.DRAW_IMAGES", str(count), "MODEL.FOCAL_DET.DRAW_SCORE_THRESH", str(threshold))
    cfg.DATASETS.TEST = (shapes,)
    model = Scores().train()
    sheet = draw_detections(cfg, model, DatasetMapper(cfg, is_train=False), folder)
    assert model.training  # left in its mode
    return sheet, sorted(path.name for path in (folder / "detections").glob("*.png"))


def test_draw_images_says_how_many_and_stale_ones_go(tiny_cfg, shapes, tmp_path):
    _, names = drawn(tiny_cfg, shapes, tmp_path, 3, 0.5)
    assert names == ["00_000000.png", "01_000001.png", "02_000003.png"]  # evenly spread over five
    sheet, names = drawn(tiny_cfg, shapes, tmp_path, 2, 0.5)
    assert len(names) == 2
    assert cv2.imread(str(sheet)) is not None
    assert len(drawn(tiny_cfg, shapes, tmp_path, 99, 0.5)[1]) == 5
    assert drawn(tiny_cfg, shapes, tmp_path / "none", 0, 0.5)[0] is None


def test_the_sheet_of_large_pictures_fits_a_screen(tiny_cfg, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    name = "shapes_val_3_1200px"
    prepare_shapes([name])
    register_datasets([name], [])
    sheet, names = drawn(tiny_cfg, name, tmp_path, 3, 0.5)
    picture = cv2.imread(str(sheet))
    height, width, _ = picture.shape
    assert (picture[22, :390] == 255).all()  # the titles are not reduced, nor are the labels
    assert 1500 < width <= 1600  # two pairs of two, 390 pixels each
    assert 800 < height < 900  # two rows of 390 and a title
    assert cv2.imread(str(tmp_path / "detections" / names[0])).shape[1] > 2400  # the pair itself stays whole
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_draw_score_thresh_says_which_are_drawn(tiny_cfg, shapes, tmp_path):
    pictures = []
    for threshold in (0.2, 0.5, 0.9):
        sheet, _ = drawn(tiny_cfg, shapes, tmp_path / str(threshold), 1, threshold)
        pictures.append(cv2.imread(str(sheet)))
    width = pictures[0].shape[1]
    truth = [picture[:, : width // 2] for picture in pictures]
    found = [picture[:, width // 2 :] for picture in pictures]
    corner = (slice(24 + 5, 24 + 105), slice(5, 105))  # around the box of score .3, enlarged five times
    assert (truth[0] == truth[2]).all()
    assert (found[0][corner] != found[1][corner]).any()
    assert (found[1][corner] == found[2][corner]).all()
    assert (found[1] != found[2]).any()


def test_shapes_are_registered_with_their_classes(shapes):
    assert dataset_problems([shapes]) == []
    assert class_names(shapes) == ["disk", "box", "triangle"]
    assert len(DatasetCatalog.get(shapes)) == 5


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "file"))
    with pytest.raises(InputError, match="set DETECTRON2_DATASETS to a folder that can"):
        prepare_shapes(["shapes_val_1_32px"])


# --- the linear rule -------------------------------------------------------------------------------------------------


def schedule(batch):
    cfg = get_cfg()
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER = batch, 0.01, 90000
    cfg.SOLVER.STEPS, cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.CHECKPOINT_PERIOD = (60000, 80000), 1000, 5000
    cfg.TEST.EVAL_PERIOD = 500
    return cfg


def test_a_quarter_of_the_batch_has_a_quarter_of_the_lr_and_four_times_the_iterations():
    cfg = schedule(4)
    words = scale_schedule(cfg, 16, kept=())
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS) == (0.0025, 360000, (240000, 320000))
    assert (cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.CHECKPOINT_PERIOD, cfg.TEST.EVAL_PERIOD) == (4000, 20000, 2000)
    assert words == (
        "batch 16 -> 4: BASE_LR 0.01 -> 0.0025, STEPS (60000, 80000) -> (240000, 320000), MAX_ITER 90000 -> 360000, "
        "WARMUP_ITERS 1000 -> 4000, CHECKPOINT_PERIOD 5000 -> 20000, EVAL_PERIOD 500 -> 2000"
    )


def test_what_the_user_set_stays():
    cfg = schedule(4)
    scale_schedule(cfg, 16, kept={"SOLVER.MAX_ITER", "TEST.EVAL_PERIOD"})
    assert (cfg.SOLVER.MAX_ITER, cfg.TEST.EVAL_PERIOD, cfg.SOLVER.BASE_LR) == (90000, 500, 0.0025)


def test_the_same_batch_changes_nothing():
    cfg = schedule(16)
    assert scale_schedule(cfg, 16, kept=()) is None
    assert cfg == schedule(16)


# --- devices ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gpus", "device", "asked", "chosen", "warning", "problem"),
    [
        (0, "cuda", 1, "cpu", "NO GPU HERE", None),
        (0, "cuda", 2, "cpu", "in 2 processes", None),
        (0, "cpu", 1, "cpu", None, None),
        (0, "cpu", 5, "cpu", "5 processes share the 4 cores", None),
        (0, "cpu", 33, "cpu", None, "ask for at most 4"),
        (2, "cuda", 2, "cuda", None, None),
        (2, "cuda", 3, "cuda", None, "2 are visible"),
        (2, "cpu", 1, "cpu", None, None),
        (2, "cpu", 2, "cpu", None, "CUDA_VISIBLE_DEVICES="),
        (1, "cuda", 0, "cuda", None, "at least 1"),
    ],
)
def test_devices_are_chosen_loudly_or_refused(monkeypatch, gpus, device, asked, chosen, warning, problem):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(devices, "num_cores", lambda: 4)
    cfg = get_cfg()
    add_focal_det_config(cfg)
    cfg.MODEL.DEVICE = device
    warnings, problems = choose_device(cfg, asked)
    assert chosen == cfg.MODEL.DEVICE
    assert [warning in w for w in warnings] == ([True] if warning else [])
    assert [problem in p for p in problems] == ([True] if problem else [])


@pytest.mark.parametrize(("has", "enabled"), [(True, True), (False, False)])
def test_bfloat16_falls_back_to_float32_and_says_so(monkeypatch, has, enabled):
    monkeypatch.setattr(devices, "has_bfloat16", lambda device: has)
    cfg = get_cfg()
    add_focal_det_config(cfg)
    cfg.MODEL.DEVICE, cfg.SOLVER.AMP.ENABLED, cfg.SOLVER.AMP.DTYPE = "cpu", True, "bfloat16"
    warnings, problems = choose_device(cfg, 1)
    assert enabled == cfg.SOLVER.AMP.ENABLED
    assert ["float32" in warning for warning in warnings] == ([] if enabled else [True])
    assert problems == []


@pytest.mark.parametrize(
    ("enabled", "dtype", "expected"),
    [(False, "bfloat16", SimpleTrainer), (True, "bfloat16", BFloat16Trainer), (True, "float16", AMPTrainer)],
)
def test_amp_dtype_chooses_the_step(tiny_cfg, enabled, dtype, expected):
    assert step_of(tiny_cfg("SOLVER.AMP.ENABLED", str(enabled), "SOLVER.AMP.DTYPE", dtype)) is expected


def test_a_step_in_bfloat16_computes_in_it_and_updates(tiny_cfg, batch_of):
    seen = []
    model = build_model(tiny_cfg())
    model.head.cls_score.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    before = model.head.cls_score.weight.clone()
    trainer = BFloat16Trainer(model, [batch_of((2,))], torch.optim.SGD(model.parameters(), lr=0.01))
    trainer.iter = 0
    with EventStorage(0) as storage:
        trainer.run_step()
        assert set(storage.latest()) >= {"total_loss", "loss_cls", "loss_box_reg", "data_time"}
    assert set(seen) == {torch.bfloat16}
    assert not model.head.cls_score.weight.equal(before)


def test_gradients_of_p6_and_p7_are_right_in_bfloat16_on_a_map_of_one_pixel(tiny_cfg, batch_of):
    # at 64 px P6 and P7 are 1x1; memory is first filled with what an unwritten gradient would show
    grads = []
    for trainer_class in (SimpleTrainer, BFloat16Trainer):
        torch.manual_seed(0)
        model = build_model(tiny_cfg("MODEL.FPN.OUT_CHANNELS", "64"))
        junk = [torch.full((64, 64, 3, 3), 1e30, dtype=torch.bfloat16) for _ in range(50)]
        del junk
        trainer = trainer_class(model, [batch_of((3, 2), size=(64, 64))], torch.optim.SGD(model.parameters(), lr=0.0))
        trainer.iter = 0
        with EventStorage(0):
            trainer.run_step()
        grads.append([layer.weight.grad for layer in (model.backbone.top_block.p6, model.backbone.top_block.p7)])
    for exact, ours in zip(*grads, strict=True):
        assert (ours - exact).norm() < 0.1 * exact.norm()


# --- hooks -----------------------------------------------------------------------------------------------------------


def trainer_at(iteration, max_iter=100):
    return SimpleNamespace(iter=iteration, max_iter=max_iter)


def test_assigned_anchors_are_logged_every_period():
    criterion = SimpleNamespace(num_assigned=torch.tensor([4, 8]))
    hook = LogAssignment(criterion, period=20)
    with EventStorage(0) as storage:
        for iteration in (18, 19):
            hook.trainer = SimpleNamespace(iter=iteration, storage=storage)
            hook.after_step()
            assert ("num_pos_anchors" in storage.latest()) == (iteration == 19)
    assert storage.latest()["num_pos_anchors"][0] == 6.0


@pytest.mark.parametrize(("period", "times"), [(0, [9]), (4, [3, 7, 9]), (5, [4, 9])])
def test_drawing_every_period_and_once_at_the_end(period, times):
    drawn_at = []
    hook = DrawDetections(period)
    for iteration in range(10):
        hook.trainer = trainer_at(iteration, max_iter=10)
        hook.trainer.cfg = hook.trainer.model = None
        hook.trainer.draw = lambda cfg, model: drawn_at.append(hook.trainer.iter)
        hook.after_step()
    hook.after_train()
    assert drawn_at == times
