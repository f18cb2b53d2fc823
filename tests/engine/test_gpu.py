"""A training on a GPU: the host waits for nothing, the results are those of the processor, and a resume is exact.

What is parametrized by the device runs on the processor as well, over gloo instead of NCCL, to show the tests right.
"""

import copy
import os
import signal
import warnings

import pytest
import torch
import torch.distributed as dist
from detectron2.modeling import build_model
from torch.nn.parallel import DistributedDataParallel
from training_fixtures import NARROW

from focal_det.distributed.graceful_stop import GracefulStop, TrainingStopped
from focal_det.engine import train_step
from focal_det.engine.trainer import Trainer

pytestmark = [pytest.mark.detectron2, pytest.mark.usefixtures("few_layers")]

NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
DEVICES = [pytest.param("cpu"), pytest.param("cuda", marks=NEEDS_GPU)]

FROZEN = ["MODEL.RESNETS.NORM", "FrozenBN", "MODEL.PIXEL_STD", "[500., 500., 500.]"]
TRITON = ["MODEL.FOCAL_DET.SPEED.TRITON"]
_LOSS, _OF_BOXES = "MODEL.FOCAL_DET.LOSS.", ["MODEL.RETINANET.BBOX_REG_LOSS_TYPE", "giou"]
_ATSS = ["MODEL.FOCAL_DET.ASSIGNER.NAME", "ATSSAssigner", *_OF_BOXES, "MODEL.FOCAL_DET.BOX_LOSS.WEIGHTING"]
LOSSES = {
    "by kernels": [*TRITON, "True"],
    "focal loss": [],
    "asymmetric": [_LOSS + "NAME", "AsymmetricLoss"],
    "class-balanced": [_LOSS + "NAME", "ClassBalancedFocalLoss", _LOSS + "CLASS_BOXES", "[9, 2, 1]"],
    "federated": [
        *(_LOSS + "NAME", "FederatedFocalLoss", _LOSS + "CLASS_IMAGES", "[9, 2, 1]", _LOSS + "FED_NUM_CLASSES", "2")
    ],
    "quality focal": [_LOSS + "NAME", "QualityFocalLoss", *_ATSS, "score"],
    "varifocal": [_LOSS + "NAME", "VarifocalLoss", *_ATSS, "iou"],
}


def pinned(batch):
    return [{**x, "image": x["image"].pin_memory()} for x in batch]


def model_on(device, cfg):
    """The same weights on every device."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    torch.manual_seed(0)
    model = build_model(cfg).to(device)
    return model


@NEEDS_GPU
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("autocast", [True, False])
def test_the_host_does_not_wait_in_a_training_step(tiny_cfg, batch_of, loss, autocast):
    model = model_on("cuda", tiny_cfg(*FROZEN, *LOSSES[loss]))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, fused=True)
    batches = [pinned(batch_of(counts)) for counts in ((3, 5), (0, 4), (0, 0))]

    def step(batch):
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=autocast):
            losses = model(batch)
        sum(losses.values()).backward()
        optimizer.step()
        optimizer.zero_grad()

    step(batches[0])  # anchors, constants and kernels are made once
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in batches:
            step(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@NEEDS_GPU
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("counts", [(3, 5), (0, 4), (0, 0)])
def test_losses_and_gradients_are_those_of_the_processor(monkeypatch, tiny_cfg, batch_of, counts, loss):
    # TF32, in which PyTorch convolves by default, has a mantissa of 10 bits: too few to see a small mistake by.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    cfg = tiny_cfg(*FROZEN, *LOSSES[loss])
    batch = batch_of(counts)
    models, outcomes = [model_on(one, cfg) for one in ("cpu", "cuda")], []
    for model in models:
        torch.manual_seed(1)  # of the classes that the federated loss draws
        outcomes.append(model(copy.deepcopy(batch)))
        sum(outcomes[-1].values()).backward()
    expected, found = outcomes
    for name, value in expected.items():
        torch.testing.assert_close(found[name].cpu(), value, rtol=1e-3, atol=1e-6)
    for (name, own), other in zip(models[1].named_parameters(), models[0].parameters(), strict=True):
        scale = other.grad.abs().max().item()
        torch.testing.assert_close(own.grad.cpu(), other.grad, rtol=0, atol=1e-2 * scale + 1e-9, msg=name)


@NEEDS_GPU
def test_detections_are_those_of_the_processor(tiny_cfg, batch_of):
    cfg, batch = tiny_cfg(*FROZEN), batch_of((0, 0, 0))
    results = []
    for device in ("cpu", "cuda"):
        model = model_on(device, cfg).eval()
        with torch.no_grad():
            model.head.cls_score.bias.fill_(-2.0)
            results.append([x["instances"].to("cpu") for x in model(copy.deepcopy(batch))])
    for expected, found in zip(*results, strict=True):
        assert abs(len(found) - len(expected)) <= max(2, len(expected) // 20)
        torch.testing.assert_close(found.scores[:5], expected.scores[:5], rtol=1e-2, atol=1e-3)


@NEEDS_GPU
def test_the_host_waits_once_for_the_detections_of_a_batch(tiny_cfg, batch_of):
    model, batch = model_on("cuda", tiny_cfg(*FROZEN)).eval(), batch_of((0, 0, 0))
    with torch.no_grad(), warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        model(batch)
        seen.clear()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            model(batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert len([x for x in seen if "synchroniz" in str(x.message)]) == 1


# --- the trainer ------------------------------------------------------------------------------------------------------

STEPS = 8


@pytest.fixture
def on(tiny_cfg, shapes, tmp_path):
    """Return a function that gives the configuration of a training on a device, in a folder of its name."""

    def make(device, folder, *overrides):
        settings = [
            *("SOLVER.MAX_ITER", str(STEPS), "SOLVER.IMS_PER_BATCH", "2", "SOLVER.BASE_LR", "0.01", "SEED", "3"),
            *("SOLVER.STEPS", "(6,)", "SOLVER.WARMUP_ITERS", "2", "SOLVER.CHECKPOINT_PERIOD", "1"),
            *("MODEL.FOCAL_DET.CHECKPOINTS_KEPT", "99"),
            *("SOLVER.AMP.ENABLED", "False", "DATALOADER.NUM_WORKERS", "0", "MODEL.FOCAL_DET.DRAW_IMAGES", "0"),
            *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64", "OUTPUT_DIR", str(tmp_path / folder)),
            *NARROW,
        ]
        cfg = tiny_cfg(*settings, *overrides)
        cfg.defrost()
        cfg.MODEL.DEVICE, cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = device, shapes[:1], shapes[1:]
        cfg.freeze()
        return cfg

    return make


def train(cfg, stop_in=None, *, resume=False):
    """Train, or resume; a signal comes in one step. Return the trainer, and whether the signal stopped it."""
    torch.manual_seed(cfg.SEED)
    stopping = GracefulStop()
    with stopping:
        trainer = Trainer(cfg, stopping=stopping)
        trainer.resume_or_load(resume=resume)
        step = trainer.run_step

        def run_step():
            if trainer.iter == stop_in:
                os.kill(os.getpid(), signal.SIGUSR1)
            step()

        trainer.run_step = run_step
        try:
            trainer.train()
        except TrainingStopped:
            return trainer, True
    return trainer, False


def weights_of(cfg, name="model_final"):
    return torch.load(f"{cfg.OUTPUT_DIR}/{name}.pth", weights_only=True, map_location="cpu")["model"]


def difference(one, other):
    return sum((one[name].double() - other[name].double()).square().sum().item() for name in one) ** 0.5


def assert_trained_alike(device, one, other, record_property):
    """To the last bit on a processor; a GPU's kernels add in no fixed order, so that there the difference is stated."""
    if device == "cpu":
        torch.testing.assert_close(weights_of(one), weights_of(other), rtol=0, atol=0)
        return
    way = difference(weights_of(other), weights_of(other, "model_0000000"))
    part = difference(weights_of(one), weights_of(other)) / way
    record_property("difference", part)
    if part:
        warnings.warn(f"the weights ended {part:.1e} of the way that they went from the others", stacklevel=2)
    assert part < 1e-2


@pytest.fixture
def wrapped(monkeypatch, tmp_path):
    """Return a function that opens a process group of one, over NCCL on a GPU, and lets trainers wrap their models."""
    seen = []

    def wrap(model, **options):
        seen.append(DistributedDataParallel(model, **options))
        return seen[-1]

    def begin(device):
        # the device is told, else NCCL warns that it guesses
        of_gpu = {"device_id": torch.device("cuda", 0)} if device == "cuda" else {}
        backend = "nccl" if device == "cuda" else "gloo"
        dist.init_process_group(backend, init_method=f"file://{tmp_path}/group", rank=0, world_size=1, **of_gpu)
        monkeypatch.setattr(train_step, "create_ddp_model", wrap)  # Detectron2's leaves a single process without
        return seen

    yield begin
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.mark.parametrize("device", DEVICES)
def test_a_training_under_ddp_is_the_one_without(on, wrapped, record_property, device):
    alone, under = on(device, "alone"), on(device, "under")
    train(alone)
    models = wrapped(device)
    trainer, _ = train(under)
    assert trainer.model is models[0]
    assert next(trainer.model.parameters()).device.type == device
    assert_trained_alike(device, under, alone, record_property)


@pytest.mark.parametrize("device", DEVICES)
def test_the_host_does_not_wait_in_a_step_under_ddp(on, wrapped, batch_of, device):
    """The batch comes to the model as the loader gave it, for the model to move it without a wait."""
    seen = []
    wrapped(device)
    trainer = Trainer(on(device, "run", *FROZEN))
    trainer.model.module.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    batches = [batch_of(counts, size=(64, 64)) for counts in ((3, 5), (0, 4), (0, 0))]
    if device == "cuda":
        batches = [pinned(batch) for batch in batches]

    def step(batch):
        losses = trainer.model(batch)
        sum(losses.values()).backward()
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()

    step(batches[0])  # anchors, constants, kernels and DDP's buckets are made once
    step(batches[0])  # and the buckets again, in the order in which the gradients came
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in batches:
            step(batch)
            assert all(one["image"] is other["image"] for one, other in zip(seen[-1], batch, strict=True))
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    ("device", "dtype"),
    [
        ("cpu", "bfloat16"),
        pytest.param("cuda", "bfloat16", marks=NEEDS_GPU),
        pytest.param("cuda", "float16", marks=NEEDS_GPU),  # Detectron2's AMPTrainer has no form on a processor
    ],
)
def test_a_resumed_training_in_half_precision_ends_as_the_uninterrupted_one(on, record_property, device, dtype):
    amp = ("SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", dtype)
    whole, parts = on(device, "whole", *amp), on(device, "parts", *amp)
    assert not train(whole)[1]
    assert train(parts, stop_in=3)[1]  # a rank alone stops at the end of the same step
    state = torch.load(f"{parts.OUTPUT_DIR}/model_0000003.pth", weights_only=True)
    assert ("grad_scaler" in state["trainer"]["_trainer"]) == (dtype == "float16")
    trainer, stopped = train(parts, resume=True)
    assert (trainer.start_iter, stopped) == (4, False)
    assert_trained_alike(device, parts, whole, record_property)
