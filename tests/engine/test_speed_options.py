"""The speed options leave the results as they are, do what they say, and give way where they cannot work."""

import copy
import functools
import logging
import os
from contextlib import contextmanager

import pytest
import torch
import torch._inductor.config as inductor
from detectron2.modeling import build_model
from torch import nn

from focal_det.distributed.heartbeat import compiling
from focal_det.engine.trainer import Trainer
from focal_det.losses.formula import Formula
from focal_det.modeling import dense_losses
from focal_det.modeling.captured import CapturedOrPlain
from focal_det.modeling.compiled import CompiledOrPlain, share_compilers
from focal_det.modeling.convolutions import FoldedConv2d, KeptConv2d, keep_top_in_float32

pytestmark = [pytest.mark.detectron2, pytest.mark.usefixtures("few_layers")]

SPEED = "MODEL.FOCAL_DET.SPEED."


PLAIN = [SPEED + "CHANNELS_LAST", "False", SPEED + "FOLD_NORMS", "False"]


FROZEN = ["MODEL.RESNETS.NORM", "FrozenBN", "MODEL.BACKBONE.FREEZE_AT", "2", "MODEL.PIXEL_STD", "[500., 500., 500.]"]


def seeded_model(cfg):
    """Every normalisation does something: with statistics and weights away from 0 and 1."""
    torch.manual_seed(0)
    model = build_model(cfg)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if ".norm." in name and buffer.is_floating_point():
                buffer.add_(torch.rand(buffer.shape, generator=generator) * 0.5)
        model.head.cls_score.bias.fill_(-2.0)
    return model


def outcome(model, batch):
    """Losses, gradients by name, and detections."""
    losses = model.train()(batch)
    sum(losses.values()).backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        return losses, grads, model.eval()(batch)


@pytest.mark.parametrize("option", ["CHANNELS_LAST", "FOLD_NORMS", "COMPILE"])
def test_a_speed_option_changes_nothing_but_rounding(tiny_cfg, batch_of, monkeypatch, option):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))  # saves the minutes
    batch = batch_of((3, 0))
    plain = seeded_model(tiny_cfg(*FROZEN, *PLAIN))
    faster = seeded_model(tiny_cfg(*FROZEN, *PLAIN, SPEED + option, "True"))
    assert list(plain.state_dict()) == list(faster.state_dict())
    (losses, grads, found), (faster_losses, faster_grads, faster_found) = (
        outcome(model, batch) for model in (plain, faster)
    )
    assert (getattr(faster.runner, "compiled", None) is not None) == (option == "COMPILE")
    for name, loss in losses.items():
        torch.testing.assert_close(faster_losses[name], loss, rtol=1e-5, atol=0)
    for name, grad in grads.items():
        scale = grad.abs().max().item()
        torch.testing.assert_close(faster_grads[name], grad, rtol=1e-3, atol=1e-4 * scale, msg=name)
    for one, other in zip(found, faster_found, strict=True):
        assert len(one["instances"]) == len(other["instances"]) > 5
        torch.testing.assert_close(one["instances"].scores, other["instances"].scores, rtol=1e-4, atol=1e-5)


def test_channels_last_reaches_the_head(tiny_cfg):
    groups = ("MODEL.RESNETS.NORM", "GN")  # slow channels_last on a processor
    for options, expected in ((FROZEN, True), ((*FROZEN, SPEED + "CHANNELS_LAST", "False"), False), (groups, False)):
        model = build_model(tiny_cfg(*options))
        seen = []
        model.head.register_forward_hook(lambda _, args, out, seen=seen: seen.extend([*args[0], *out[0], *out[1]]))
        with torch.no_grad():
            model.eval()([{"image": torch.zeros(3, 256, 256, dtype=torch.uint8)}])
        large = [maps for maps in seen if maps.shape[-1] > 1]  # of a 1x1 map both are the same
        assert len(large) >= 12
        assert all(maps.is_contiguous(memory_format=torch.channels_last) is expected for maps in large)


def test_frozen_norms_are_folded_and_no_others(tiny_cfg):
    def folded(*options):
        return [name for name, m in build_model(tiny_cfg(*options)).named_modules() if isinstance(m, FoldedConv2d)]

    assert len(folded(*FROZEN)) == 12  # the stem, two in the block of each stage, 3 shortcuts
    assert folded("MODEL.RESNETS.NORM", "GN") == []
    assert folded(*FROZEN, SPEED + "FOLD_NORMS", "False") == []
    half_frozen = folded("MODEL.RESNETS.NORM", "BN", "MODEL.BACKBONE.FREEZE_AT", "2")
    assert len(half_frozen) == 3
    assert all("stem" in name or "res2" in name for name in half_frozen)


@pytest.mark.parametrize("changed", ["weight", "norm.running_var", "norm.bias"])
def test_what_is_kept_for_evaluation_follows_every_change(tiny_cfg, changed):
    model = build_model(tiny_cfg(*FROZEN)).eval()
    conv = next(m for m in model.modules() if isinstance(m, FoldedConv2d))
    x = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        before = conv(x)
        assert conv(x).equal(before)
        state = {name: value + 0.5 if name == changed else value for name, value in conv.state_dict().items()}
        conv.load_state_dict(state)
        after = conv(x)
        plain = nn.functional.conv2d(x, conv.weight, None, conv.stride, conv.padding)
        torch.testing.assert_close(after, conv.norm(plain), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(after, before)


def test_what_is_kept_is_made_anew_by_eval_and_not_saved(tiny_cfg):
    conv = next(m for m in build_model(tiny_cfg(*FROZEN)).eval().modules() if isinstance(m, FoldedConv2d))
    x = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        conv(x)
        conv.weight.data.mul_(3)  # as some moving averages do; PyTorch does not count it
        after = conv.eval()(x)
        plain = nn.functional.conv2d(x, conv.weight, None, conv.stride, conv.padding)
        torch.testing.assert_close(after, conv.norm(plain), rtol=1e-4, atol=1e-5)
    assert conv._kept
    assert not copy.deepcopy(conv)._kept


@pytest.mark.parametrize("norm", ["FrozenBN", "GN"])
def test_weights_kept_in_bfloat16_change_no_bit_and_are_cast_once(tiny_cfg, batch_of, norm):
    cfg = tiny_cfg("MODEL.RESNETS.NORM", norm, SPEED + "BFLOAT16_INFERENCE", "True")
    model = seeded_model(cfg).eval()
    keep_top_in_float32(model)
    convs = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert all(isinstance(conv, KeptConv2d) for conv in convs)
    images = 60 * torch.randn(2, 3, 96, 128)

    def outputs():
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            return [level for levels in model.network(images) for level in levels]

    first = outputs()

    def kept_weights():
        return [weight for conv in convs for _, weight, _ in conv._kept.values()]

    kept = kept_weights()
    assert len(kept) == len(convs)
    is_low = [weight.dtype == torch.bfloat16 for weight in kept]
    assert sum(is_low) == len(convs) - 2  # P6 and P7 stay in float32 on a processor
    again = outputs()
    with torch.no_grad():
        model.network(images)  # in float32, which leaves what a graph may read where it is
    outputs()
    assert {*map(id, kept)} <= {*map(id, kept_weights())}
    for conv in convs:
        conv._kept = {}
        conv._weights = lambda device, conv=conv: conv._make()  # as without keeping: autocast casts in every call
    expected = outputs()
    for found in (first, again):
        assert all(one.equal(other) for one, other in zip(found, expected, strict=True))


def test_cast_weights_follow_a_change_the_mode_and_the_format(tiny_cfg):
    model = build_model(tiny_cfg(SPEED + "BFLOAT16_INFERENCE", "True")).eval()
    conv, x = model.head.cls_subnet[0], torch.rand(1, 16, 8, 8)

    def low():
        with torch.autocast("cpu", torch.bfloat16):
            return conv(x)

    with torch.no_grad():
        single, before = conv(x), low()
        assert (before.dtype, single.dtype) == (torch.bfloat16, torch.float32)
        conv.weight.mul_(2)
        conv.bias.fill_(1.0)
        torch.testing.assert_close(low(), 2 * before + 1, rtol=0.02, atol=0.02)
        conv.weight.data.mul_(0)  # which PyTorch does not count
        conv.eval()
        assert low().equal(torch.ones_like(before))
    model.train()
    low().sum().backward()
    assert conv.weight.grad.abs().sum() > 0


def test_another_norm_put_in_its_place_is_used(tiny_cfg):
    conv = next(m for m in build_model(tiny_cfg(*FROZEN)).modules() if isinstance(m, FoldedConv2d))
    conv.norm = nn.BatchNorm2d(64)
    conv.train()(torch.rand(1, 3, 16, 16))
    assert conv.norm.num_batches_tracked == 1


def test_a_model_loaded_in_inference_mode_detects(tiny_cfg, batch_of):
    with torch.inference_mode():
        model = build_model(tiny_cfg(*FROZEN)).eval()
        assert len(model(batch_of((0,)))) == 1


def test_where_nothing_compiles_it_warns_once_and_continues(monkeypatch, caplog):
    def fails(graph, inputs):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=fails))
    double = CompiledOrPlain(lambda x: x * 2)
    with caplog.at_level(logging.WARNING):
        assert [double(torch.tensor([x])).item() for x in (1.0, 2.0)] == [2.0, 4.0]
    (record,) = caplog.records
    assert "SPEED.COMPILE is on, but torch.compile fails here" in record.message
    assert "no compiler" in record.message


def test_a_mistake_in_the_function_is_not_taken_for_a_failure_to_compile(caplog):
    wrong = CompiledOrPlain(lambda x: x @ torch.zeros(7, 7))
    with caplog.at_level(logging.WARNING), pytest.raises(RuntimeError):
        wrong(torch.zeros(3))
    assert wrong.compiled is not None
    assert not [record for record in caplog.records if record.name.startswith("focal_det")]


def test_a_copy_of_a_compiled_model_uses_its_own_weights(tiny_cfg, batch_of, monkeypatch):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    model = seeded_model(tiny_cfg(*FROZEN, SPEED + "COMPILE", "True")).eval()
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.head.cls_score.bias.fill_(-9.0)
        assert len(model(batch_of((0,)))[0]["instances"]) > 5
        assert len(other(batch_of((0,)))[0]["instances"]) == 0


def test_detection_in_bfloat16_leaves_training_as_it_is(tiny_cfg, batch_of):
    model = seeded_model(tiny_cfg(*FROZEN, SPEED + "BFLOAT16_INFERENCE", "True"))
    plain = seeded_model(tiny_cfg(*FROZEN))
    seen = []
    model.head.register_forward_hook(lambda _, args, out: seen.append(out[0][0].dtype))
    losses, _, found = outcome(model, batch_of((3, 0)))
    expected_losses, _, expected = outcome(plain, batch_of((3, 0)))
    assert seen == [torch.float32, torch.bfloat16]
    assert losses == expected_losses
    for one, other in zip(found, expected, strict=True):
        assert one["instances"].scores.dtype == torch.float32
        torch.testing.assert_close(one["instances"].scores[:5], other["instances"].scores[:5], rtol=0.05, atol=0.01)


@pytest.mark.parametrize(
    "name", ["FocalLoss", "CrossEntropyLoss", "BalancedCrossEntropyLoss", "FocalLossStar", "HingeLoss"]
)
def test_the_kernels_are_used_where_they_can_be(tiny_cfg, batch_of, monkeypatch, name):
    seen = []

    def kernels(levels, labels, divisors, formula, *, use_triton, weights):
        seen.append((use_triton, formula))
        return sum(level.sum() for level in levels) * 0

    monkeypatch.setattr(dense_losses, "batch_loss", kernels)
    for missing, value, expected in ((None, "True", True), (None, "False", False), ("no GPU", "True", False)):
        monkeypatch.setattr(dense_losses, "triton_missing", lambda device, missing=missing: missing)
        build_model(tiny_cfg("MODEL.FOCAL_DET.LOSS.NAME", name, SPEED + "TRITON", value))(batch_of((1,)))
        assert seen[-1][0] is expected
        assert isinstance(seen[-1][1], Formula)


def doubling(monkeypatch, backend="eager"):
    """A function that is compiled, and is given the sizes that a detector's images have."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    return CompiledOrPlain(lambda images: (images * 2).relu())


@pytest.mark.parametrize(("sizes", "times"), [([(32, 40)], 1), ([(32, 40), (40, 32)], 2), ([(32, 40), (32, 48)], 3)])
def test_images_of_all_sizes_are_compiled_for_three_times_at_most_and_the_log_says_so(monkeypatch, lines, sizes, times):
    double, opened = doubling(monkeypatch, "aot_eager"), []

    @contextmanager
    def while_compiling():
        opened.append("begun")
        yield
        opened.append("ended")

    double.prepare_within(while_compiling)
    torch.compiler.reset()
    more = () if times == 1 else ((36, 36), (64, 32), (32, 64), (44, 52))
    for height, width in (*sizes, *more):
        images = torch.ones(2, 3, height, width, requires_grad=True)
        assert double(images).sum().item() == 2 * images.numel()
    assert double.compilations == times
    assert opened == ["begun", "ended"] * times
    begun, ended = lines[:2]
    assert begun == "torch.compile: compiling for a batch of 2x3x32x40 (1 so far) ..."
    assert ended.startswith("torch.compile: compiled in ")
    assert copy.deepcopy(double).compilations == 0


def test_for_shapes_that_batches_are_padded_to_it_compiles_each_by_itself(tiny_cfg, monkeypatch):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    model = build_model(tiny_cfg(*FROZEN, SPEED + "COMPILE", "True", SPEED + "PAD_TO", "[[64, 96]]"))
    assert copy.deepcopy(model).runner.static
    double = CompiledOrPlain(lambda images: images * 2, static=True)
    sizes = [(32 + 8 * step, 40) for step in range(10)]  # more than PyTorch's own limit
    for height, width in sizes + sizes:
        double(torch.ones(2, 3, height, width))
    assert double.compilations == 10


def test_compiling_is_said_again_after_pytorch_has_been_reset(monkeypatch, lines):
    double = doubling(monkeypatch)
    for _ in range(2):
        torch.compiler.reset()
        double(torch.ones(2, 3, 32, 32))
    assert len(lines) == 4


def test_a_compiled_model_counts_as_progress_while_it_compiles(tiny_cfg):
    model = Trainer.build_model(tiny_cfg(SPEED + "COMPILE", "True", SPEED + "CUDA_GRAPHS", "True"))
    captured, compiled = model.runner, model.runner.function
    assert isinstance(captured, CapturedOrPlain)
    assert isinstance(compiled, CompiledOrPlain)
    assert captured.while_preparing is compiled.while_preparing is compiling


@pytest.mark.parametrize(("given", "expected"), [(None, 4), ("7", 32)])
def test_compilers_share_the_cores_unless_the_user_says_how_many(monkeypatch, given, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(32)), raising=False)
    monkeypatch.delenv("TORCHINDUCTOR_COMPILE_THREADS", raising=False)
    if given:
        monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", given)
    with inductor.patch(compile_threads=32):  # the user's number PyTorch has read itself
        share_compilers(8)
        assert inductor.compile_threads == expected
