"""One training step: its precision, losses that are read later, the layout of momentum, and what two ranks share."""

import inspect
import math
import warnings

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.engine import SimpleTrainer
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from recorded_graphs import RecordedGraphs
from torch import nn

from focal_det.cli.main import main
from focal_det.engine import train_step
from focal_det.engine.train_step import (
    BFloat16Trainer,
    DeferredMetrics,
    Float16Trainer,
    in_parallel,
    lay_out_as_parameters,
    step_class,
)
from focal_det.engine.trainer import Trainer
from focal_det.modeling.captured import CapturedOrPlain

pytestmark = [pytest.mark.detectron2, pytest.mark.usefixtures("few_layers")]

ARGUMENTS = inspect.signature(nn.parallel.DistributedDataParallel.__init__).parameters


@pytest.mark.parametrize(
    ("enabled", "dtype", "expected"),
    [(False, "bfloat16", DeferredMetrics), (True, "bfloat16", BFloat16Trainer), (True, "float16", Float16Trainer)],
)
def test_amp_dtype_chooses_the_step(tiny_cfg, enabled, dtype, expected):
    cfg = tiny_cfg("SOLVER.AMP.ENABLED", str(enabled))
    cfg.SOLVER.AMP.DTYPE = dtype
    assert step_class(cfg) is expected


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


def test_a_pyramid_whose_last_level_is_pooled_trains_in_bfloat16(tiny_cfg, batch_of):
    # Detectron2's other pyramid: its top block has no parameters to tell the device by
    levels = ("MODEL.RETINANET.IN_FEATURES", "['p3', 'p4', 'p5']", "MODEL.ANCHOR_GENERATOR.SIZES", "[[12], [24], [48]]")
    model = build_model(tiny_cfg("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone", *levels))
    trainer = BFloat16Trainer(model, [batch_of((2,))], torch.optim.SGD(model.parameters(), lr=0.01))
    trainer.iter = 0
    with EventStorage(0):
        trainer.run_step()
    assert model.backbone.fpn_lateral3.weight.grad.any()


def test_loaded_momentum_is_laid_out_as_its_parameter():
    # PyTorch's fused kernel takes both in the order of memory
    updated = []
    for fused in (False, True):
        torch.manual_seed(0)
        conv = nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(conv.parameters(), lr=0.1, momentum=0.9, fused=fused)
        conv.weight.grad, conv.bias.grad = torch.randn_like(conv.weight), torch.randn(8)
        optimizer.step()
        saved = optimizer.state_dict()
        saved["state"][0]["momentum_buffer"] = saved["state"][0]["momentum_buffer"].contiguous()  # of another run
        optimizer.load_state_dict(saved)
        lay_out_as_parameters(optimizer)
        optimizer.step()
        updated.append(conv.weight.detach().clone())
    torch.testing.assert_close(*updated)


def deferred_step(losses, is_due, note=None):
    class Model(nn.Module):
        def forward(self, data):
            return {"loss": self.scale * next(values), "other": self.scale * 0}

    model, values = Model(), iter(losses)
    model.scale = nn.Parameter(torch.ones(()))
    return DeferredMetrics(model, [None] * 99, torch.optim.SGD(model.parameters(), lr=0), is_due=is_due, note=note)


def test_losses_read_later_are_written_one_by_one():
    step = deferred_step([1.0, 2.0, 3.0, 4.0], is_due=lambda iteration: iteration == 2)
    with EventStorage() as storage:
        for iteration in range(4):
            step.iter = iteration
            step.run_step()
            assert ("loss" in storage.histories()) == (iteration >= 2)
        assert [value for value, _ in storage.history("loss").values()] == [1.0, 2.0, 3.0]
        step.flush_metrics()
        assert storage.history("loss").latest() == 4.0
        step.flush_metrics()  # nothing is left
        assert len(storage.history("loss").values()) == 4


def test_losses_that_change_their_names_are_written_as_they_are():
    step = deferred_step([1.0], is_due=lambda iteration: False)
    with EventStorage() as storage:
        for step.iter, losses in enumerate(({"a": 1.0, "b": 2.0}, {"a": 3.0}, {"a": 4.0, "c": 5.0})):
            step._write_metrics({name: torch.full((1,), value) for name, value in losses.items()}, 0.0)
        step.flush_metrics()
        assert [value for value, _ in storage.history("total_loss").values()] == [3.0, 3.0, 9.0]
        assert storage.history("c").latest() == 5.0


def test_a_loss_that_is_not_finite_is_named_with_its_iteration():
    noted = []
    step = deferred_step([1.0, math.nan, 3.0], is_due=lambda iteration: iteration == 2, note=noted.append)
    with EventStorage():
        for step.iter in range(2):
            step.run_step()
        step.iter = 2
        with pytest.raises(FloatingPointError, match="iteration=1"):
            step.run_step()
    assert noted == [1]


class Sum(nn.Module):
    """Two weights whose loss is their product with the data, of which the first may be too large to be scaled."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 2.0]))

    def forward(self, data):
        return {"loss": (self.weight * data).sum()}


def float16_steps(tiny_cfg, data, *overrides):
    """The weights after each step, and the trainer."""
    cfg = tiny_cfg("SOLVER.BASE_LR", "0.5", "SOLVER.WEIGHT_DECAY", "0.0", *overrides)
    model = Sum()
    trainer = Float16Trainer(model, [torch.tensor(one) for one in data], Trainer.build_optimizer(cfg, model))
    after = []
    with EventStorage(), warnings.catch_warnings():
        warnings.simplefilter("error")  # as PyTorch's FutureWarning of torch.cuda.amp
        for trainer.iter in range(len(data)):
            trainer.run_step()
            after.append(model.weight.tolist())
    return after, trainer


FUSED = ("MODEL.FOCAL_DET.SPEED.FUSED_SGD", "True")


@pytest.mark.parametrize("fused", [(), FUSED])
def test_float16_clips_gradients_that_are_not_scaled(tiny_cfg, fused):
    clip = ("SOLVER.CLIP_GRADIENTS.ENABLED", "True", "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "0.25")
    after, trainer = float16_steps(tiny_cfg, [[8.0, 0.125]], *clip, *fused)
    assert trainer.grad_scaler.get_scale() > 1
    assert after[0] == [1.0 - 0.5 * 0.25, 2.0 - 0.5 * 0.125]  # lr 0.5; the first gradient is cut to 0.25


@pytest.mark.parametrize("fused", [(), FUSED])
def test_a_first_step_in_float16_that_overflows_leaves_no_momentum(tiny_cfg, fused):
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN, which otherwise holds anything
    try:
        after, _ = float16_steps(tiny_cfg, [[1e36, 1.0], [1.0, 1.0], [1.0, 1.0]], *fused)
    finally:
        torch.use_deterministic_algorithms(False)
    # momentum 0.9: the first step is left out, the next two go by 0.5 and by 0.5 * (1 + 0.9)
    torch.testing.assert_close(torch.tensor(after), torch.tensor([[1.0, 2.0], [0.5, 1.5], [-0.45, 0.55]]))


def test_a_fused_update_in_float16_reads_nothing_from_the_device(tiny_cfg, monkeypatch):
    _, trainer = float16_steps(tiny_cfg, [[1.0, 1.0]], *FUSED)
    trainer.backward((trainer.model.weight * 2).sum())
    monkeypatch.setattr(torch.Tensor, "item", lambda tensor: pytest.fail("the host would wait for the GPU"))
    trainer.update()


def test_the_scale_of_float16_is_saved_and_loaded(tiny_cfg):
    _, trainer = float16_steps(tiny_cfg, [[1e36, 1.0]])
    state = trainer.state_dict()
    assert state["grad_scaler"]["scale"] == 2.0**15  # halved once
    _, other = float16_steps(tiny_cfg, [])
    other.load_state_dict(state)
    assert other.grad_scaler.get_scale() == 2.0**15
    del state["grad_scaler"]  # of a run in float32
    other.load_state_dict(state)
    assert other.grad_scaler.get_scale() == 2.0**15


# --- with a captured network, here by a stand-in for graphs -----------------------------------------------------------

SHAPES_OF_STEPS = ((32, 64), (64, 32), (32, 64), (64, 32), (32, 64), (64, 64), (64, 32), (32, 64))


@pytest.fixture
def trainers(tiny_cfg, batch_of, monkeypatch, tmp_path):
    """Return a function that makes two trainers of the same weights and batches: a plain, and a captured network's."""
    steps = enumerate(SHAPES_OF_STEPS)
    batches = [batch_of((3, step % 3), size=size, seed=step) for step, size in steps]
    for place, image in enumerate(image for batch in batches for image in batch):
        image["file_name"] = f"{place}.jpg"
    monkeypatch.setattr(Trainer, "build_train_loader", classmethod(lambda cls, cfg: batches))

    def make(*overrides):
        found = []
        for name in ("plain", "captured"):
            settings = ("MODEL.RESNETS.NORM", "FrozenBN", "MODEL.PIXEL_STD", "[500., 500., 500.]")
            torch.manual_seed(0)
            trainer = Trainer(tiny_cfg(*settings, "OUTPUT_DIR", str(tmp_path / name), *overrides))
            if name == "captured":
                trainer.model._runner = CapturedOrPlain(trainer.model, trainer.model.network)
                trainer.model.runner.make_graphs = RecordedGraphs
            found.append(trainer)
        return found

    return make


def all_steps(trainer, scale=None):
    """Do a step for each batch; return what they leave: weights, momentum, metrics, scale."""
    step = trainer._trainer
    if scale is not None:
        step.grad_scaler = torch.amp.GradScaler("cpu", init_scale=scale, backoff_factor=2.0**-14, growth_interval=2)
    with EventStorage() as storage:
        for storage.iter, _ in enumerate(SHAPES_OF_STEPS):
            step.iter = storage.iter
            step.run_step()
        metrics = {name: history.values() for name, history in storage.histories().items() if "time" not in name}
    state = step.state_dict()
    return trainer.model.state_dict(), state["optimizer"]["state"], metrics, state.get("grad_scaler")


CLIP = ("SOLVER.CLIP_GRADIENTS.ENABLED", "True", "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "1e-3")
BY_NORM = (*CLIP, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "norm")
FLOAT16 = ("SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "float16")


@pytest.mark.parametrize(
    ("options", "scale"),
    [
        (CLIP, None),
        ((*BY_NORM, "SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "bfloat16"), None),
        (FLOAT16, 2.0**40),  # overflows at first, then shrinks to 2^26, to 2^12, and grows
        ((*FLOAT16, *BY_NORM, *FUSED), 2.0**40),
    ],
    ids=["clipped", "bfloat16, clipped", "float16", "float16, clipped, fused"],
)
def test_steps_with_a_captured_network_are_those_without(trainers, options, scale):
    plain, captured = trainers(*options, "SOLVER.BASE_LR", "0.01")
    start = {name: value.clone() for name, value in plain.model.state_dict().items()}
    expected, found = all_steps(plain, scale), all_steps(captured, scale)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert captured.model.runner.counts == {"captured": 2, "replayed": 5, "plain": 3, "failed": 0}
    assert not expected[0]["head.cls_score.weight"].equal(start["head.cls_score.weight"])
    if scale is None:
        assert len(found[2]["grad_norm"]) == len(SHAPES_OF_STEPS)
    else:
        assert found[3]["scale"] < scale  # some steps overflowed


def steps_until(trainer, iteration, change):
    """Do steps, of which one, a replay, is done with other weights; return the error that ends them there."""
    step = trainer._trainer
    with EventStorage():
        for step.iter in range(iteration):
            step.run_step()
        step.iter = iteration
        change(trainer.model.head)
        before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        with pytest.raises(FloatingPointError) as raised:
            step.run_step()
    torch.testing.assert_close(trainer.model.state_dict(), before, rtol=0, atol=0, equal_nan=True)
    return str(raised.value)


def test_a_gradient_that_is_not_finite_in_a_captured_network_is_named_kept_and_replayed(trainers, capsys):
    def change(head):  # deltas stay finite, gradients of what is before them do not
        head.bbox_subnet[0].weight.data.mul_(1e-30)
        head.bbox_pred.weight.data.fill_(3e38)

    messages = []
    for trainer in trainers("SOLVER.BASE_LR", "0.0"):
        message = steps_until(trainer, 4, change)
        assert main(["replay", message.rpartition("focal-det replay ")[2]]) == 0
        verdict = capsys.readouterr().out.partition("verdict: ")[2]
        messages.append((message.replace("/captured/", "/plain/"), verdict))
    assert trainer.model.runner.counts["replayed"] == 3
    assert messages[0] == messages[1]
    message, verdict = messages[0]
    first = "backbone.fpn_lateral3.weight"
    assert message.startswith(f"Gradients became infinite or NaN at iteration=4, the first of them of {first}; to see")
    assert f"the gradient of {first} is not finite" in verdict


def test_a_loss_that_is_not_finite_in_a_captured_network_ends_before_the_weights_change(trainers):
    for trainer in trainers("SOLVER.BASE_LR", "0.01"):
        message = steps_until(trainer, 4, lambda head: head.cls_score.bias.data[:1].fill_(math.nan))
        assert message.startswith("Loss became infinite or NaN at iteration=4, loss_cls; to see why: focal-det replay ")
    assert trainer.model.runner.counts["replayed"] == 3


class Scaled(nn.Module):
    """A weight and two layers, one of them 1x1, with a buffer that each rank begins otherwise."""

    def __init__(self, rank):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1).to(memory_format=torch.channels_last)
        self.register_buffer("mean", torch.tensor([float(rank), 7.0 + rank]))

    def forward(self, data):
        return {"loss_a": self.conv(data).mean(), "loss_b": data.mean().detach() + 0 * self.conv.bias.sum()}


class Older(nn.parallel.DistributedDataParallel):
    """The wrapper's arguments before PyTorch 2.13."""

    def __init__(self, module, device_ids=None, broadcast_buffers=True, gradient_as_bucket_view=False):
        self.given = {"device_ids": device_ids, "broadcast_buffers": broadcast_buffers}
        name = next(name for name in ("forward_sync_buffers", "broadcast_buffers") if name in ARGUMENTS)
        super().__init__(module, **{name: False}, init_sync=False, gradient_as_bucket_view=gradient_as_bucket_view)


def worker(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    comm.create_local_process_group(2)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        model = in_parallel(Scaled(rank))
        step = DeferredMetrics(
            model,
            [torch.full((1, 2, 4, 4), float(rank + 1)).contiguous(memory_format=torch.channels_last)] * 20,
            torch.optim.SGD(model.parameters(), lr=0.0),
            is_due=lambda iteration: iteration == 19,
        )
        gathered = []
        gather = comm.gather
        comm.gather = lambda data, *args: gathered.append(1) or gather(data, *args)
        with EventStorage() as storage:
            for step.iter in range(20):
                storage.iter = step.iter
                step.run_step()
            history = storage.history("loss_b").values() if rank == 0 else []
    state = {
        "device_ids": model.device_ids,
        "buffer": model.module.mean,
        "warnings": [str(one.message) for one in warned],
        "gathered": len(gathered),
        "losses": [(float(value), int(iteration)) for value, iteration in history],
        "names": sorted(storage.histories()),
        "grad": model.module.conv.weight.grad.clone(),
        "shares_a_bucket": model.module.conv.weight.grad.untyped_storage().nbytes() > 4 * 4,
    }
    train_step.DistributedDataParallel = nn.parallel.DistributedDataParallel = Older
    from detectron2.engine import defaults

    defaults.DistributedDataParallel = Older
    older = in_parallel(Scaled(rank))
    state |= {"older": older.given, "older_buffer": older.module.mean}
    torch.save(state, f"{folder}/{rank}.pth")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    mp.start_processes(worker, (folder,), nprocs=2, start_method="fork")
    return [torch.load(folder / f"{rank}.pth", weights_only=True) for rank in range(2)]


def test_the_wrapper_does_not_copy_the_inputs_itself(ranks):
    # with device_ids it would, on the stream that computes, and the host would wait for the step before
    assert [rank["device_ids"] for rank in ranks] == [None, None]
    assert ranks[0]["older"]["device_ids"] is None


def test_a_buffer_that_differs_between_ranks_is_rank_0_s_after_wrapping(ranks):
    for name in ("buffer", "older_buffer"):
        assert [rank[name].tolist() for rank in ranks] == [[0.0, 7.0]] * 2
    assert ranks[0]["older"]["broadcast_buffers"] is False  # and none is sent in each step


def test_wrapping_and_stepping_warn_of_nothing(ranks):
    assert [rank["warnings"] for rank in ranks] == [[], []]


def test_gradients_are_averaged_where_they_are_sent_from(ranks):
    assert ranks[0]["grad"].equal(ranks[1]["grad"])
    assert ranks[0]["grad"].flatten().tolist() == [0.75] * 4  # mean of data 1 and 2, over two output channels
    assert all(rank["shares_a_bucket"] for rank in ranks)


def test_figures_of_twenty_steps_are_gathered_at_once(ranks):
    assert [rank["gathered"] for rank in ranks] == [1, 1]
    assert ranks[0]["losses"] == [(1.5, iteration) for iteration in range(20)]
    assert ranks[0]["names"] == ["data_time", "loss_a", "loss_b", "rank_data_time", "total_loss"]
    assert ranks[1]["names"] == ["rank_data_time"]


def test_one_process_is_not_wrapped():
    model = Scaled(0)
    assert in_parallel(model) is model


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_host_does_not_wait_in_a_wrapped_step_on_a_gpu(tiny_cfg, batch_of, tmp_path, monkeypatch):
    cfg = tiny_cfg("MODEL.RESNETS.NORM", "FrozenBN", "MODEL.PIXEL_STD", "[500., 500., 500.]")
    plain = build_model(cfg).to("cuda")
    batches = [[{**x, "image": x["image"].pin_memory()} for x in batch_of((3, 5), seed=seed)] for seed in range(5)]
    dist.init_process_group("nccl", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(comm, "get_world_size", lambda: 2)  # else it is not wrapped
            model = in_parallel(plain)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, fused=True)
        step = DeferredMetrics(model, batches, optimizer, is_due=lambda iteration: False)
        with EventStorage():
            for step.iter in range(5):
                step.run_step()
                torch.cuda.set_sync_debug_mode("error")  # once anchors, buckets and kernels are there
        torch.cuda.set_sync_debug_mode("default")
        assert model.device_ids is None
    finally:
        torch.cuda.set_sync_debug_mode("default")
        dist.destroy_process_group()
