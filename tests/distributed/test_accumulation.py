"""Gradient accumulation: the step of a batch in parts is that of the batch in one pass."""

import math

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from recorded_graphs import RecordedGraphs
from torch import nn

from focal_det.cli.main import main
from focal_det.distributed.accumulation import losses_and_gradients
from focal_det.distributed.heartbeat import PHASES, Progress
from focal_det.engine.train_step import in_parallel
from focal_det.engine.trainer import Trainer
from focal_det.modeling.captured import CapturedOrPlain

pytestmark = [pytest.mark.detectron2, pytest.mark.usefixtures("few_layers")]

BFLOAT16 = ("SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "bfloat16")
FLOAT16 = ("SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "float16")
CLIP = ("SOLVER.CLIP_GRADIENTS.ENABLED", "True", "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "norm")
OHEM = ("MODEL.FOCAL_DET.LOSS.NAME", "OHEMLoss", "MODEL.FOCAL_DET.LOSS.BATCH_SIZE", "16")


def mixed_batch(batch_of, seed):
    """Four images of different sizes, one of them without objects, so that no part has the shape of the whole."""
    sizes = ((64, 96), (96, 64), (64, 64), (32, 64))
    images = [
        batch_of((count,), size=size, seed=seed + n)[0]
        for n, (count, size) in enumerate(zip((5, 0, 1, 2), sizes, strict=True))
    ]
    return [{**image, "file_name": f"{n}.jpg"} for n, image in enumerate(images)]


@pytest.fixture
def steps(tiny_cfg, batch_of, monkeypatch, tmp_path):
    """Return a function that does three steps of four images, and returns what they leave, and the trainer."""
    batches = [mixed_batch(batch_of, 10 * seed) for seed in range(3)]
    monkeypatch.setattr(Trainer, "build_train_loader", classmethod(lambda cls, cfg: batches))

    def run(parts, *overrides, prepare=lambda trainer: None, count=3):
        torch.manual_seed(0)
        settings = ("MODEL.RESNETS.NORM", "FrozenBN", "MODEL.PIXEL_STD", "[500., 500., 500.]", "SOLVER.BASE_LR", "0.01")
        settings += ("SOLVER.IMS_PER_BATCH", "4", "MODEL.FOCAL_DET.ACCUMULATION", str(parts))
        trainer = Trainer(tiny_cfg(*settings, "OUTPUT_DIR", str(tmp_path / str(parts)), *overrides))
        step = trainer._trainer
        prepare(trainer)
        gradients = []
        with EventStorage() as storage:
            for storage.iter in range(count):
                step.iter = storage.iter
                step.run_step()
                gradients.append([None if p.grad is None else p.grad.clone() for p in trainer.model.parameters()])
            metrics = {name: history.values() for name, history in storage.histories().items() if "time" not in name}
        state = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        return (state, gradients, metrics), trainer

    return run


@pytest.mark.parametrize("normalizer", ["global", "image", "ema"])
@pytest.mark.parametrize("parts", [2, 4])
def test_steps_in_parts_are_those_of_the_whole_batch(steps, normalizer, parts):
    (whole, _), (in_parts, trainer) = (steps(n, "MODEL.FOCAL_DET.NORMALIZER", normalizer, *CLIP) for n in (1, parts))
    torch.testing.assert_close(in_parts, whole, rtol=2e-4, atol=2e-6)
    assert trainer.model.criterion.num_assigned.shape == (4,)  # those of the whole batch, for the log


def test_a_loss_that_chooses_anchors_is_the_same_in_parts(steps):
    (whole, _), (in_parts, _) = (steps(parts, *OHEM) for parts in (1, 4))
    torch.testing.assert_close(in_parts, whole, rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize("options", [BFLOAT16, FLOAT16], ids=["bfloat16", "float16"])
def test_low_precision_rounds_parts_no_worse_than_the_whole(steps, options):
    def scale(trainer):
        if hasattr(trainer._trainer, "grad_scaler"):
            trainer._trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)

    (_, exact, _), _ = steps(1, count=1)
    errors = []
    for parts in (1, 4):
        (_, gradients, _), _ = steps(parts, *options, prepare=scale, count=1)
        pairs = zip(gradients[0], exact[0], strict=True)
        errors.append([float((a - b).norm() / b.norm()) for a, b in pairs if b is not None])
    assert 0 < max(errors[1]) < 1.5 * max(errors[0])


def test_a_scale_too_large_for_float16_leaves_the_step_out_and_is_lowered(steps):
    def scale(trainer):
        trainer._trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60, backoff_factor=2.0**-48)

    (state, _, _), trainer = steps(4, *FLOAT16, "SOLVER.BASE_LR", "1e-6", prepare=scale, count=2)
    assert trainer._trainer.grad_scaler.get_scale() == 2.0**12
    assert all(value.isfinite().all() for value in state.values())


def test_parts_replay_graphs_of_one_shape(steps):
    def capture(trainer):
        trainer.model._runner = CapturedOrPlain(trainer.model, trainer.model.network)
        trainer.model.runner.make_graphs = RecordedGraphs

    (plain, _), (captured, trainer) = (steps(2, prepare=prepare) for prepare in (lambda trainer: None, capture))
    torch.testing.assert_close(captured, plain, rtol=0, atol=0)
    assert trainer.model.runner.counts == {"captured": 1, "replayed": 5, "plain": 1, "failed": 0}


class Mean(nn.Module):
    """A weight times the mean of the data: a loss alone, as some architectures return it."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, data):
        return self.weight * torch.tensor(data).max()


def test_the_gradient_is_that_of_the_sum_of_the_losses():
    class Two(Mean):
        def forward(self, data):
            return {"loss_cls": 2 * self.weight, "loss_box_reg": 3 * self.weight}

    model = Two()
    losses_and_gradients(model, [1.0], 1)
    assert model.weight.grad == 5


def test_of_another_architecture_the_parts_losses_are_averaged():
    model = Mean()
    losses = losses_and_gradients(model, [1.0, 3.0, 5.0, 6.0], 2)
    assert losses == {"total_loss": torch.tensor(4.5)}  # (3 + 6) / 2
    assert model.weight.grad == 4.5
    assert not losses["total_loss"].requires_grad


def test_a_rank_that_has_its_images_is_in_the_step_before_it_waits_for_others():
    class Split(Mean):
        def arguments_of_parts(self, parts):
            phases.append(PHASES[progress.heartbeat["phase"]])
            return [(images,) for images in parts]

    progress, phases = Progress(), []
    progress.begin()
    try:
        losses_and_gradients(Split(), [1.0, 3.0, 5.0, 6.0], 2)
    finally:
        progress.end()
    assert phases == ["step"]


def test_a_part_that_is_not_finite_ends_the_training_and_is_replayed_in_parts(steps, tmp_path, capsys):
    def break_bias(trainer):
        trainer.model.head.cls_score.bias.data[:1].fill_(math.nan)

    with pytest.raises(FloatingPointError, match="iteration=0, loss_cls; to see why: focal-det replay ") as raised:
        steps(2, prepare=break_bias)
    kept = torch.load(str(raised.value).rpartition("replay ")[2], weights_only=True)
    assert len(kept["batch"]) == 4
    assert main(["replay", str(raised.value).rpartition("replay ")[2]]) == 0
    told = capsys.readouterr().out
    assert "all 4 images" in told
    assert "ValueError" not in told  # as of images alone, which are in no parts


# --- several ranks ----------------------------------------------------------------------------------------------------


def rank_worker(rank, folder, cfgs, batch):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    comm.create_local_process_group(2)
    found = {}
    for name, cfg in cfgs.items():
        torch.manual_seed(0)
        model = in_parallel(build_model(cfg))
        reduced = []
        model.register_comm_hook(None, lambda state, bucket, to=reduced: to.append(1) or _average(bucket))
        for _ in range(2):  # the first pass lays the buckets out anew
            model.zero_grad()
            losses = losses_and_gradients(model, batch[rank * 2 : rank * 2 + 2], int(name[-1]))
        found[name] = losses, [p.grad.clone() for p in model.parameters() if p.grad is not None], len(reduced)
    torch.save(found, f"{folder}/{rank}.pth")
    dist.destroy_process_group()


def _average(bucket):
    work = dist.all_reduce(bucket.buffer().div_(2), async_op=True).get_future()
    return work.then(lambda future: future.value()[0])


def test_ranks_average_once_a_step_and_share_the_normaliser(tiny_cfg, batch_of, tmp_path):
    modes = ("global", "image", "ema")
    fixed = ("MODEL.RESNETS.NORM", "FrozenBN", "MODEL.PIXEL_STD", "[500., 500., 500.]")
    cfgs = {f"{m} {p}": tiny_cfg(*fixed, "MODEL.FOCAL_DET.NORMALIZER", m) for m in modes for p in (1, 2)}
    mp.start_processes(rank_worker, (tmp_path, cfgs, mixed_batch(batch_of, 0)), nprocs=2, start_method="fork")
    of_ranks = [torch.load(tmp_path / f"{rank}.pth", weights_only=True) for rank in range(2)]
    for mode in modes:
        for found in of_ranks:
            (losses, gradients, passes), (losses_in_parts, gradients_in_parts, passes_in_parts) = (
                found[f"{mode} {parts}"] for parts in (1, 2)
            )
            torch.testing.assert_close(losses_in_parts, losses, rtol=2e-4, atol=2e-6)
            torch.testing.assert_close(gradients_in_parts, gradients, rtol=2e-4, atol=2e-6)
            assert passes_in_parts == passes
        torch.testing.assert_close(of_ranks[0][f"{mode} 2"][1], of_ranks[1][f"{mode} 2"][1], rtol=0, atol=0)
