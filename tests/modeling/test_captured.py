"""The captured network is the plain one to the last bit, here with a stand-in for CUDA graphs; and so on a GPU.

The stand-in repeats recorded operators into the same tensors: what would be wrong in a graph (a tensor made outside, a
buffer overwritten too early, Python that should have run) is wrong there as well.
"""

import copy

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.engine import create_ddp_model
from detectron2.modeling import build_model
from recorded_graphs import RecordedGraphs

from focal_det.engine.validation_loss import validation_losses
from focal_det.modeling import captured as captured_module
from focal_det.modeling.captured import CapturedOrPlain, CudaGraphs
from focal_det.modeling.convolutions import keep_top_in_float32

pytestmark = [pytest.mark.detectron2, pytest.mark.usefixtures("few_layers")]

SPEED = "MODEL.FOCAL_DET.SPEED."
CAPTURED = [SPEED + "CUDA_GRAPHS", "True"]
FROZEN = ["MODEL.RESNETS.NORM", "FrozenBN", "MODEL.PIXEL_STD", "[500., 500., 500.]"]
SIZES = ((64, 96), (96, 64), (64, 96), (96, 96), (64, 96), (96, 64), (96, 64), (64, 96))


def both_of(make_cfg, *options, **of_stand_in):
    """A plain and a captured model of the same weights, and the stand-in once it is made."""
    made = []

    def make_graphs(device):
        made.append(RecordedGraphs(device, **of_stand_in))
        return made[-1]

    models = []
    for captured in ((), CAPTURED):
        torch.manual_seed(0)
        models.append(build_model(make_cfg(*FROZEN, *options, *captured)))
    models[1].runner.make_graphs = make_graphs
    return *models, made


def gradients_of(model, *batches, dtype=None):
    """Losses and gradients of one step or several that add up."""
    model.zero_grad()
    found = []
    for batch in batches:
        with torch.autocast(model.device.type, dtype, enabled=dtype is not None):
            losses = model(batch)
        sum(losses.values()).backward()
        found.append({name: loss.detach() for name, loss in losses.items()})
    return found, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def detections(model, batch):
    with torch.no_grad():
        fields = [x["instances"].get_fields() for x in model.eval()(batch)]
    assert all(len(field["scores"]) > 5 for field in fields)
    return [{name: getattr(value, "tensor", value) for name, value in field.items()} for field in fields]


@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        ((), None),
        ((), torch.bfloat16),
        (("MODEL.BACKBONE.FREEZE_AT", "2"), None),
        (("MODEL.RESNETS.NORM", "BN"), None),  # whose statistics the trial runs before a capture must not change
    ],
    ids=["float32", "bfloat16", "frozen", "BN"],
)
def test_steps_on_several_shapes_are_those_of_the_plain_network(tiny_cfg, batch_of, options, dtype):
    plain, captured, _ = both_of(tiny_cfg, *options)
    for model in (plain, captured) if dtype else ():
        keep_top_in_float32(model)
    optimizers = [torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9) for model in (plain, captured)]
    for seed, size in enumerate(SIZES):
        batch = batch_of((3, seed % 2), size=size, seed=seed)
        assert_same(gradients_of(captured, batch, dtype=dtype), gradients_of(plain, batch, dtype=dtype))
        for optimizer in optimizers:
            optimizer.step()
    assert_same(captured.state_dict(), plain.state_dict())
    assert captured.runner.counts == {"captured": 2, "replayed": 5, "plain": 3, "failed": 0}


def test_a_gradient_is_added_to_what_is_there(tiny_cfg, batch_of):
    plain, captured, _ = both_of(tiny_cfg)
    batches = [batch_of((3,), size=SIZES[seed], seed=seed) for seed in (0, 2, 4, 7, 1, 5, 6, 0)]
    for _ in range(2):
        gradients_of(captured, batches[0])  # so that a replay gives the first gradient, which the second is added to
    assert_same(gradients_of(captured, *batches), gradients_of(plain, *batches))
    assert captured.runner.counts["replayed"] == 8
    gradients_of(captured, batches[3])  # all are now those of a replay, and the next batch is of a shape to be captured
    batches = [batches[0], batch_of((3,), size=(96, 96))]
    captured(batches[1])
    assert_same(gradients_of(captured, *batches), gradients_of(plain, *batches))
    assert captured.runner.counts["captured"] == 3


def test_a_call_before_the_last_ones_backward_pass_is_a_plain_one(tiny_cfg, batch_of):
    plain, captured, _ = both_of(tiny_cfg)
    batches = [batch_of((3,), seed=seed) for seed in range(3)]
    for model in (plain, captured):
        gradients_of(model, batches[0])
        model.zero_grad()
        losses = [sum(model(batch).values()) for batch in batches]
        for loss in losses:
            loss.backward()
    for (name, own), other in zip(captured.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad, rtol=0, atol=0, msg=name)
    assert (captured.runner.counts["replayed"], captured.runner.counts["plain"]) == (1, 3)
    captured(batches[0])  # a forward pass whose losses are dropped is no longer waited for
    captured(batches[0])
    assert captured.runner.counts["replayed"] == 3
    losses = captured(batches[0])
    losses["loss_cls"].backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="one backward pass"):
        losses["loss_box_reg"].backward()


@pytest.mark.parametrize("bfloat16", ["False", "True"])
def test_detections_follow_every_change_of_the_weights(tiny_cfg, batch_of, bfloat16):
    options = ("MODEL.RETINANET.SCORE_THRESH_TEST", "0.0", SPEED + "BFLOAT16_INFERENCE", bfloat16)
    plain, captured, made = both_of(tiny_cfg, *options)
    batch = batch_of((0, 0))

    def compare(times=3):
        for seed in range(times):
            batch = batch_of((0, 0), seed=seed)
            assert_same(detections(captured, batch), detections(plain, batch))

    for model in (plain, captured):
        model.eval()
        model.eval = lambda model=model: model  # which would be a change of its own
    compare()
    assert captured.runner.counts == {"captured": 1, "replayed": 2, "plain": 1, "failed": 0}
    state = {name: value * 0.99 for name, value in plain.state_dict().items()}
    for model in (plain, captured):
        model.load_state_dict(state)
    compare()
    assert captured.runner.counts == {"captured": 2, "replayed": 4, "plain": 2, "failed": 0}
    for model in (plain, captured):
        for parameter in model.parameters():
            parameter.data.mul_(0.9)  # uncounted, as by a fused optimizer
        model.train().train(False)
    compare()
    with torch.inference_mode():
        assert_same(detections(captured, batch), detections(plain, batch))
    assert len(made[0].launches) == 3


def test_validation_losses_follow_every_change_of_the_weights(tiny_cfg, batch_of):
    plain, captured, _ = both_of(tiny_cfg)
    sizes = ((64, 96), (96, 64)) * 3
    loader = [batch_of((3,), size=size, seed=seed) for seed, size in enumerate(sizes)]
    for replayed in (4, 8):  # each of two shapes: at first once plain; then captured anew, for the weights are new
        assert validation_losses(captured, loader) == validation_losses(plain, loader)
        assert captured.runner.counts["replayed"] == replayed
        for model in (plain, captured):
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(0.9)
    assert captured.runner.counts["captured"] == 4


def test_the_graph_used_longest_ago_makes_room_and_has_to_come_often_to_return(tiny_cfg, batch_of):
    plain, captured, made = both_of(tiny_cfg)
    batches = {size: batch_of((2,), size=size) for size in SIZES[:4]}
    order = [(64, 96)] * 2 + [(96, 64)] * 2 + [(64, 96)] + [(96, 96)] * 2 + [(96, 64)] * 19 + [(64, 96)]
    for place, size in enumerate(order):
        if place < 8:
            assert_same(gradients_of(captured, batches[size]), gradients_of(plain, batches[size]))
        else:
            captured(batches[size])
        if place == 3:  # the two that are there fit, and no third
            made[0].max_bytes = 1.3 * sum(x.bytes for x in captured.runner._recordings.values())
    assert captured.runner.counts == {"captured": 3, "replayed": 5, "plain": 22, "failed": 0}
    captured(batches[96, 64])
    assert captured.runner.counts["captured"] == 4


def test_a_shape_that_cannot_be_captured_runs_plainly_and_is_named_once(tiny_cfg, batch_of, caplog):
    plain, captured, made = both_of(tiny_cfg, fail=RuntimeError("operation not permitted\nwhen stream is capturing"))
    batch, other = batch_of((3,)), batch_of((3,), size=(64, 64))
    for _ in range(4):
        assert_same(gradients_of(captured, batch), gradients_of(plain, batch))
    (record,) = caplog.records
    assert (
        "a batch of 1x3x96x128 cannot be captured (operation not permitted when stream is capturing)" in record.message
    )
    made[0].fail = None
    for _ in range(3):
        assert_same(gradients_of(captured, other), gradients_of(plain, other))
    assert captured.runner.counts == {"captured": 1, "replayed": 2, "plain": 5, "failed": 3}
    assert captured.runner.summary() == [
        "CUDA graphs: 1 captured; of 7 calls of the network 2 were replays and 5 ran without a graph, 3 of them since "
        "their shape cannot be captured"
    ]


def test_without_a_gpu_it_is_said_that_nothing_can_be_captured(tiny_cfg, batch_of, caplog):
    model = build_model(tiny_cfg(*FROZEN, *CAPTURED))
    for _ in range(3):
        model(batch_of((1,)))
    (record,) = caplog.records
    assert "only what runs on a GPU can be captured, and this runs on the device cpu" in record.message


def test_a_copy_and_a_model_that_moved_capture_anew(tiny_cfg, batch_of):
    plain, captured, made = both_of(tiny_cfg)
    batch = batch_of((3,))
    gradients_of(captured, batch), gradients_of(captured, batch)
    other = copy.deepcopy(captured)
    assert not other.runner.counts
    other.runner.make_graphs = captured.runner.make_graphs
    captured.double().float()
    for model in (other, captured):
        with torch.no_grad():
            for mine, its in zip(model.parameters(), plain.parameters(), strict=True):
                mine.mul_(0.5)
                its.copy_(mine)
        for _ in range(3):
            assert_same(gradients_of(model, batch), gradients_of(plain, batch))
    assert len(made) == 3


def test_parts_with_a_mode_of_their_own_are_run_in_it(tiny_cfg, batch_of):
    plain, captured, _ = both_of(tiny_cfg, "MODEL.RESNETS.NORM", "BN")
    batch = batch_of((3, 2))
    for mode in (True, False, True, False):
        for model in (plain, captured):
            model.backbone.train(mode)
        for _ in range(2):  # in its second mode first plain, then captured
            assert_same(gradients_of(captured, batch), gradients_of(plain, batch))
    assert_same(captured.state_dict(), plain.state_dict())
    assert captured.runner.counts == {"captured": 2, "replayed": 6, "plain": 2, "failed": 0}


def test_weights_written_without_being_counted_are_seen_once_a_part_is_set_to_evaluate(tiny_cfg, batch_of):
    plain, captured, _ = both_of(tiny_cfg, "MODEL.RETINANET.SCORE_THRESH_TEST", "0.0")
    batch = batch_of((0, 0))
    detections(captured, batch)
    for model in (plain, captured):
        model.eval()
        model.eval = lambda model=model: model  # of the whole
    detections(captured, batch), detections(captured, batch)
    for model in (plain, captured):
        for parameter in model.backbone.parameters():
            parameter.data.mul_(0.9)
        model.backbone.eval()
    for _ in range(3):
        assert_same(detections(captured, batch), detections(plain, batch))
    assert captured.runner.counts["replayed"] >= 3


def another_bias(model):
    model.head.cls_score.bias = torch.nn.Parameter(torch.full_like(model.head.cls_score.bias, -2.0))


def another_place(model):
    for parameter in model.head.parameters():
        parameter.data = parameter.data * 0.5


def another_layer(model):
    layer = torch.nn.Conv2d(16, 27, 3, padding=1)
    torch.nn.init.constant_(layer.weight, 0.01)
    torch.nn.init.constant_(layer.bias, -2.0)
    model.head.cls_score = layer


def a_norm_where_none_was(model):
    conv = model.backbone.fpn_lateral3
    conv.norm = torch.nn.GroupNorm(1, conv.out_channels)


def another_statistic(model):
    norm = model.backbone.bottom_up.stem.conv1.norm
    norm.running_var = norm.running_var * 2


def less_to_train(model):
    model.head.cls_score.bias.requires_grad_(False)
    model.zero_grad()


CHANGES = [another_bias, another_place, another_layer, a_norm_where_none_was, another_statistic, less_to_train]


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_replaced_moved_or_frozen_after_a_capture_is_noticed(tiny_cfg, batch_of, change):
    plain, captured, _ = both_of(tiny_cfg)
    batch = batch_of((3, 2))
    for _ in range(3):
        gradients_of(captured, batch)
    for model in (plain, captured):
        change(model)
    for _ in range(3):
        assert_same(gradients_of(captured, batch), gradients_of(plain, batch))
    assert captured.runner.counts == {"captured": 2, "replayed": 4, "plain": 2, "failed": 0}


def test_a_backward_pass_is_outside_of_autocast():
    linear, found = torch.nn.Linear(64, 64), []

    def network(images):
        with torch.autocast("cpu", enabled=False):
            return [linear(images)], []

    captured = CapturedOrPlain(linear, network)
    captured.make_graphs = RecordedGraphs
    torch.manual_seed(0)
    images, weights = torch.randn(2, 8, 64)
    for _ in range(2):  # plain, and replayed
        linear.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            ((level,), _) = captured(images)
        (level * weights).sum().backward()
        found.append(linear.weight.grad.clone())
    assert captured.counts["replayed"] == 1
    assert_same(*found)


def test_norms_of_all_ranks_are_refused(tiny_cfg):
    with pytest.raises(ValueError, match="SyncBN's statistics together cannot"):
        build_model(tiny_cfg(*CAPTURED, "MODEL.RESNETS.NORM", "SyncBN"))
    with pytest.raises(ValueError, match="gathered by hooks, which a graph does not run"):
        build_model(tiny_cfg(*CAPTURED, "MODEL.RESNETS.NORM", "BN", "TEST.PRECISE_BN.ENABLED", "True"))


def test_a_capture_takes_its_time_and_is_logged(tiny_cfg, batch_of, caplog):
    _, captured, _ = both_of(tiny_cfg)
    opened = []

    class Open:
        def __enter__(self):
            opened.append(len(captured.runner.counts))

        def __exit__(self, *_):
            opened.append("closed")

    captured.runner.while_preparing = Open
    with caplog.at_level("INFO", captured_module.__name__):
        gradients_of(captured, batch_of((1, 1))), gradients_of(captured, batch_of((1, 1)))
    assert opened[1:] == ["closed"]
    assert caplog.messages[0].startswith("CUDA graphs: captured a batch of 2x3x96x128, forward and backward, in ")


def rank_of_two(rank, folder, cfgs, batches):
    """Steps of one rank, plain and captured, on shapes that the other rank has in other steps."""
    torch.set_num_threads(1)
    torch.cuda.is_available, torch.cuda.device_count = (lambda: False), (lambda: 0)  # a fork cannot use GPUs
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    found = []
    for cfg in cfgs:
        torch.manual_seed(0)
        model = build_model(cfg)
        if cfg.MODEL.FOCAL_DET.SPEED.CUDA_GRAPHS:
            model.runner.make_graphs = RecordedGraphs
            counts = model.runner.counts
        model = create_ddp_model(model, broadcast_buffers=False, device_ids=None, gradient_as_bucket_view=True)
        found.append([step_of(model, batch) for batch in batches[rank]])
    torch.save((found, dict(counts)), f"{folder}/{rank}.pth")
    dist.destroy_process_group()


def step_of(model, batch):
    losses = model(batch)
    model.zero_grad()
    sum(losses.values()).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_two_ranks_replay_different_shapes_in_one_step(tiny_cfg, batch_of, tmp_path):
    sizes = (SIZES[:2] * 3, [(64, 96)] * 6)
    cfgs = [tiny_cfg(*FROZEN, *options) for options in ((), CAPTURED)]
    batches = [[batch_of((2,), size=size, seed=step) for step, size in enumerate(of_rank)] for of_rank in sizes]
    mp.start_processes(rank_of_two, (tmp_path, cfgs, batches), nprocs=2, start_method="fork")
    (first, of_first), (second, of_second) = (torch.load(tmp_path / f"{r}.pth", weights_only=True) for r in (0, 1))
    for plain, captured in (first, second):
        assert_same(captured, plain)
    assert_same(first[1][2:], second[1][2:])  # all ranks have the mean
    assert (of_first["replayed"], of_second["replayed"]) == (4, 5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_graphs_of_a_gpu_make_the_steps_of_the_plain_network(tiny_cfg, batch_of, dtype):
    plain, captured, _ = both_of(tiny_cfg)
    plain, captured = plain.cuda(), captured.cuda()
    captured.runner.make_graphs = CudaGraphs
    optimizers = [torch.optim.SGD(model.parameters(), lr=1e-4) for model in (plain, captured)]
    for seed, size in enumerate(SIZES):
        batch = batch_of((3, seed % 2), size=size, seed=seed)
        (losses, grads), (own_losses, own_grads) = (gradients_of(m, batch, dtype=dtype) for m in (plain, captured))
        torch.testing.assert_close(own_losses, losses, rtol=1e-2, atol=1e-4)
        for name, grad in grads.items():  # sums of a GPU come in any order, and convolutions may use TF32
            scale = grad.abs().max().item()
            torch.testing.assert_close(own_grads[name], grad, rtol=0, atol=3e-2 * scale + 1e-9, msg=name)
        for optimizer in optimizers:
            optimizer.step()
    assert captured.runner.counts == {"captured": 2, "replayed": 5, "plain": 3, "failed": 0}
    batch = batch_of((0, 0))
    with torch.no_grad():
        found = [[x["instances"].scores for x in captured.eval()(batch)] for _ in range(3)]
        expected = [x["instances"].scores for x in plain.eval()(batch)]
    for scores in found:
        torch.testing.assert_close(scores, expected, rtol=1e-2, atol=1e-2)
    assert captured.runner.counts["failed"] == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_host_does_not_wait_in_a_replayed_step_on_a_gpu(tiny_cfg, batch_of):
    _, model, _ = both_of(tiny_cfg)
    model = model.cuda()
    model.runner.make_graphs = CudaGraphs
    batch = [{**x, "image": x["image"].pin_memory()} for x in batch_of((3, 5))]
    for _ in range(2):
        step_of(model, batch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step_of(model, batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert model.runner.counts["replayed"] == 2
