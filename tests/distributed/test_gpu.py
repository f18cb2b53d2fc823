"""Two ranks that share a device over gloo: one GPU where there is one, and the processor, to show the tests right.

NCCL takes no two ranks on one GPU; over gloo tensors of a GPU go by way of the processor, and all else is as with NCCL.
"""

import json
import multiprocessing
import os
import signal
import sys
import time
import warnings
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from detectron2.engine import create_ddp_model
from detectron2.modeling import build_model
from detectron2.utils import comm
from training_fixtures import NARROW

from focal_det.data.catalog import prepare_shapes
from focal_det.distributed.watchdog import RankWatchdog
from focal_det.engine import run as engine_run
from focal_det.engine.run import Job, run_job
from focal_det.engine.trainer import Trainer
from focal_det.modeling.retinanet import FocalRetinaNet

pytestmark = pytest.mark.detectron2

DEVICES = [
    pytest.param("cpu"),
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]
SETS = ("shapes_train_8_64px", "shapes_val_4_64px")
NORMALIZERS = ("global", "ema")
STEPS, STOPPED_IN, DIVERGES_AT = 8, 3, 2  # the last two count from 0
SETTINGS = [
    *("SOLVER.MAX_ITER", str(STEPS), "SOLVER.IMS_PER_BATCH", "4", "SOLVER.BASE_LR", "0.01", "SEED", "3"),
    *("SOLVER.STEPS", "(6,)", "SOLVER.WARMUP_ITERS", "2", "SOLVER.CHECKPOINT_PERIOD", "1"),  # so that each step is due
    *("MODEL.FOCAL_DET.CHECKPOINTS_KEPT", "99"),
    *("SOLVER.AMP.ENABLED", "False", "DATALOADER.NUM_WORKERS", "0", "MODEL.FOCAL_DET.DRAW_IMAGES", "0"),
    *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64", "MODEL.FOCAL_DET.NORMALIZER", "ema"),
    *NARROW,
]


class Stopped:
    """The launcher's event, in the process that it is set in."""

    is_set = False

    def set(self):
        self.is_set = True


def train(cfg, stop_in=None, *, resume=False):
    """Train as a rank does, with a signal to itself in step `stop_in`; return whether it was stopped."""
    step = Trainer.run_step

    def run_step(self):
        if self.iter == stop_in:
            os.kill(os.getpid(), signal.SIGUSR1)
        step(self)

    Trainer.run_step, stopped = run_step, Stopped()
    folder = cfg.OUTPUT_DIR
    checkpoint = f"{folder}/{open(f'{folder}/last_checkpoint').read()}" if resume else None  # noqa: SIM115
    try:
        with RankWatchdog(60) as watchdog:
            run_job(Job(cfg, (), False, comm.get_world_size(), checkpoint=checkpoint), stopped, watchdog)
    finally:
        Trainer.run_step = step
    return stopped.is_set


def diverge(self, batch):
    """Do as the model does; but on rank 1, in one step, a loss is not finite."""
    losses = forward(self, batch)
    if self.training and comm.get_rank() == 1:
        diverge.steps += 1
        if diverge.steps == DIVERGES_AT + 1:
            losses["loss_box_reg"] = losses["loss_box_reg"] * float("nan")
    return losses


forward, diverge.steps = FocalRetinaNet.forward, 0


def be_rank(rank, folder, cfgs, batch):
    """One of two ranks: a step with each normaliser, a training whole, one in two parts, and one that diverges."""
    import focal_det.plugin  # noqa: F401 - a spawned process starts with empty registries

    out = os.open(folder / f"{rank}.out", os.O_WRONLY | os.O_CREAT)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    comm.create_local_process_group(2)
    engine_run.write_last_page = lambda folder: None
    dist.destroy_process_group = lambda: None  # another training follows in this process
    found = {name: step(cfgs[name], batch[rank : rank + 1]) for name in NORMALIZERS}
    torch.save(found, folder / f"{rank}.pth")
    said = {"whole": train(cfgs["whole"])}
    said["stopped"] = train(cfgs["parts"], STOPPED_IN if rank == 1 else None)
    comm.synchronize()
    said["last"] = open(f"{cfgs['parts'].OUTPUT_DIR}/last_checkpoint").read()  # noqa: SIM115
    comm.synchronize()
    said["resumed"] = train(cfgs["parts"], resume=True)
    (folder / f"{rank}.json").write_text(json.dumps(said))
    FocalRetinaNet.forward = diverge
    train(cfgs["diverges"])  # which ends this process


def step(cfg, batch):
    """Return the losses, gradients and buffers of one step with the same weights on every rank, on the processor."""
    torch.manual_seed(0)
    model = build_model(cfg)
    wrapped = create_ddp_model(model, broadcast_buffers=False, device_ids=None)
    losses = wrapped(batch)
    sum(losses.values()).backward()
    losses = {name: loss.detach() for name, loss in losses.items()}
    for loss in losses.values():
        if comm.get_world_size() > 1:
            dist.all_reduce(loss)
    return {
        "losses": {name: loss.cpu() / comm.get_world_size() for name, loss in losses.items()},
        "gradients": {name: p.grad.cpu() for name, p in model.named_parameters()},
        "buffers": {name: value.cpu() for name, value in model.criterion.named_buffers()},
    }


@pytest.fixture(scope="module", params=DEVICES)
def ranks(request, tiny_cfg, batch_of, tmp_path_factory):
    """Run two ranks on a device; return its name, their configurations, batch, folder, exit codes and output."""
    folder, device = tmp_path_factory.mktemp(request.param), request.param

    def on_device(*settings):
        cfg = tiny_cfg(*SETTINGS, *settings)
        cfg.defrost()
        cfg.MODEL.DEVICE, cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = device, SETS[:1], SETS[1:]
        cfg.freeze()
        return cfg

    cfgs = {name: on_device("MODEL.FOCAL_DET.NORMALIZER", name) for name in NORMALIZERS}
    cfgs |= {name: on_device("OUTPUT_DIR", str(folder / name)) for name in ("whole", "parts", "diverges")}
    batch = batch_of((4, 3), size=(64, 64))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(folder / "datasets"))
        prepare_shapes(SETS)
        context = multiprocessing.get_context("spawn")
        both = [context.Process(target=be_rank, args=(rank, folder, cfgs, batch)) for rank in range(2)]
        for process in both:
            process.start()
        deadline = time.monotonic() + 240
        for process in both:
            process.join(max(0, deadline - time.monotonic()))
            process.kill()
            process.join()
    texts = [(folder / f"{rank}.out").read_text() for rank in range(2)]
    codes = [process.exitcode for process in both]
    return SimpleNamespace(device=device, folder=folder, cfgs=cfgs, batch=batch, codes=codes, texts=texts)


def test_two_ranks_on_one_device_make_the_step_of_one(ranks):
    # convolutions of a GPU may use TF32
    rtol, of_largest = (1e-5, 1e-5) if ranks.device == "cpu" else (1e-3, 1e-2)
    first, second = (torch.load(ranks.folder / f"{rank}.pth", weights_only=True) for rank in range(2))
    alone = step(ranks.cfgs["global"], ranks.batch)
    for rank in (first, second):
        for name, loss in alone["losses"].items():
            torch.testing.assert_close(rank["global"]["losses"][name], loss, rtol=rtol, atol=1e-8)
        for name, gradient in alone["gradients"].items():
            atol = of_largest * gradient.abs().max().item() + 1e-9
            torch.testing.assert_close(rank["global"]["gradients"][name], gradient, rtol=rtol, atol=atol, msg=name)
    average = [rank["ema"]["buffers"]["normalizer.ema"].item() for rank in (first, second)]
    assert average[0] == average[1] != 100


def test_a_signal_to_one_rank_stops_both_on_one_device_and_they_resume_where_they_were(ranks, record_property):
    for rank in range(2):
        said = json.loads((ranks.folder / f"{rank}.json").read_text())
        # All know of it one step later; or within that step if rank 0, which saves in each, comes to the end of the one
        # before so late that its watchdog has heard of it.
        assert said.pop("last") in {f"model_{STOPPED_IN + later:07d}.pth" for later in (0, 1)}
        assert said == {"whole": False, "stopped": True, "resumed": False}, ranks.texts[rank][-3000:]
    whole, parts = (
        torch.load(ranks.folder / name / "model_final.pth", weights_only=True) for name in ("whole", "parts")
    )
    first = torch.load(ranks.folder / "whole" / "model_0000000.pth", weights_only=True)["model"]
    assert parts["iteration"] == whole["iteration"] == STEPS - 1
    if ranks.device == "cpu":
        torch.testing.assert_close(parts["model"], whole["model"], rtol=0, atol=0)
        return
    part = difference(parts["model"], whole["model"]) / difference(whole["model"], first)
    record_property("apart", part)
    if part:
        warnings.warn(f"the resumed run ended {part:.1e} of the way from the uninterrupted one", stacklevel=1)
    assert part < 1e-2


def difference(one, other):
    return sum((one[name].double() - other[name].double()).square().sum().item() for name in one) ** 0.5


def test_a_non_finite_loss_on_one_rank_ends_both_on_one_device(ranks):
    assert ranks.codes == [1, 1], "\n".join(text[-3000:] for text in ranks.texts)
    (line,) = [line for text in ranks.texts for line in text.splitlines() if line.startswith("error: ")]
    where = f"iteration={DIVERGES_AT}, loss_box_reg on rank 1 of 2 on "
    assert line.startswith(f"error: FloatingPointError: Loss became infinite or NaN at {where}")
    (kept,) = (ranks.folder / "diverges" / "diverged").iterdir()
    assert kept.name == f"iteration_{DIVERGES_AT:07d}_rank1.pth"
    weights = torch.load(kept, weights_only=True)["model"]
    before = torch.load(ranks.folder / "diverges" / f"model_{DIVERGES_AT - 1:07d}.pth", weights_only=True)["model"]
    del weights["criterion.normalizer.ema"]  # which the step's forward pass has changed
    for name, value in weights.items():
        torch.testing.assert_close(value.cpu(), before[name].cpu(), rtol=0, atol=0, msg=name)
