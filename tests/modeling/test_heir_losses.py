"""The registered heirs: each is its function over the levels of a batch, reads its keys, and says what it lacks."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from focal_det.config.load import load_config
from focal_det.heirs import (
    asymmetric_loss,
    class_balanced_focal_loss,
    federated_focal_loss,
    quality_focal_loss,
    varifocal_loss,
)
from focal_det.losses import focal_loss, fused
from focal_det.modeling import dense_losses
from focal_det.modeling.heir_losses import (
    AsymmetricLoss,
    ClassBalancedFocalLoss,
    FederatedFocalLoss,
    QualityFocalLoss,
    VarifocalLoss,
)
from focal_det.registries import ASSIGNER_REGISTRY, DENSE_LOSS_REGISTRY

pytestmark = pytest.mark.detectron2

LOSS = "MODEL.FOCAL_DET.LOSS."
COUNTS = [5000, 20, 1]
LABELS = torch.tensor([[3, 3, 1, -1], [3, 3, 3, -1], [0, 1, 2, 2], [3, 0, 0, 3]])
DIVISORS = torch.tensor([1.0, 2.0, 3.0, 4.0])


def balanced(**options):
    return ClassBalancedFocalLoss(**{"class_boxes": COUNTS, "beta": 0.99, "gamma": 2.0} | options)


def federated(**options):
    return FederatedFocalLoss(**{"class_images": COUNTS, "num_classes": 2, "power": 0.5} | options)


def assert_same(found, expected, tensors):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    grads = (torch.autograd.grad(value, tensors, retain_graph=True) for value in (found, expected))
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", ["asymmetric", "balanced", "federated"])
def test_a_batch_and_its_images_are_the_function_of_each_image_by_its_divisor(name):
    levels = [(torch.randn(4, n, 3) * 3).requires_grad_() for n in (1, 3)]
    counted = torch.tensor([[1, 1, 0], [0, 1, 1], [1, 1, 1], [1, 0, 1]]).bool()
    sampled = federated(alpha=0.5, gamma=1.0)
    sampled.sample = lambda labels, images: counted if len(labels) == 4 else counted[:1]
    module, function = {
        "asymmetric": (
            AsymmetricLoss(gamma_pos=1.0, gamma_neg=3.0, prob_shift=0.1),
            lambda x, t, _: asymmetric_loss(x, t, gamma_pos=1.0, gamma_neg=3.0, prob_shift=0.1),
        ),
        "balanced": (balanced(), lambda x, t, _: class_balanced_focal_loss(x, t, class_boxes=COUNTS, beta=0.99)),
        "federated": (sampled, lambda x, t, c: federated_focal_loss(x, t, c, alpha=0.5, gamma=1.0)),
    }[name]
    logits = torch.cat(levels, dim=1)
    losses = [function(*(part.unsqueeze(0) for part in image)) for image in zip(logits, LABELS, counted, strict=True)]
    assert_same(module.batch_loss(levels, LABELS, DIVISORS), (torch.stack(losses) / DIVISORS).sum(), levels)
    assert_same(module(logits[0], LABELS[0]), losses[0], levels)


@pytest.mark.parametrize("make", [balanced, federated])
def test_half_precision_gradients_are_rounded_once(make):
    logits, module = torch.randn(4, 4, 3), make()
    for dtype, rounding in ((torch.bfloat16, 2.0**-8), (torch.float16, 2.0**-11 * 1.01)):
        half = logits.to(dtype).requires_grad_()
        exact, grads = half.detach().double().requires_grad_(), []
        for x in (half, exact):
            torch.manual_seed(1)
            loss = module.batch_loss([x], LABELS, DIVISORS)
            grads.append(torch.autograd.grad(loss, x)[0])
        assert grads[0].dtype == dtype
        torch.testing.assert_close(grads[0].double(), grads[1], rtol=rounding, atol=2.0**-25)


@pytest.mark.parametrize(
    ("loss", "function"), [(QualityFocalLoss(beta=2.0), quality_focal_loss), (VarifocalLoss(), varifocal_loss)]
)
def test_a_batch_and_its_images_are_the_function_of_the_dense_targets(monkeypatch, loss, function):
    monkeypatch.setattr(fused, "_BLOCK_ELEMENTS", 21)  # 7 rows: several blocks
    levels = [torch.randn(2, 12, 3, requires_grad=True), torch.randn(2, 8, 3, requires_grad=True)]
    logits, divisors = torch.cat(levels, dim=1), torch.tensor([2.0, 5.0])
    labels, quality = torch.randint(-1, 4, (2, 20)), torch.rand(2, 20)
    labels[0, :2], quality[0, :2] = 1, 0.0  # boxes that miss their object count as background
    labels[1] = 3  # an image without objects
    targets = F.one_hot(labels.clamp(min=0), 4)[..., :3] * quality.unsqueeze(-1)
    targets = targets.masked_fill((labels < 0).unsqueeze(-1), -1)
    dense = sum(function(*image) / n for *image, n in zip(logits, targets, divisors, strict=True))
    of_images = sum(loss(*image) / n for *image, n in zip(logits, labels, quality, divisors, strict=True))
    assert dense > 0
    assert_same(loss.batch_loss(levels, labels, divisors, quality), dense, levels)
    assert_same(of_images, dense, levels)


def test_as_on_a_gpu_the_batch_is_the_same(monkeypatch):
    levels = [torch.randn(2, 12, 3, requires_grad=True), torch.randn(2, 8, 3, requires_grad=True)]
    labels, quality, divisors = torch.randint(-1, 4, (2, 20)), torch.rand(2, 20), torch.tensor([2.0, 5.0])
    loss = QualityFocalLoss()
    expected = loss.batch_loss(levels, labels, divisors, quality)
    monkeypatch.setattr(fused, "_cached_blocks", fused._large_blocks)
    assert_same(loss.batch_loss(levels, labels, divisors, quality), expected, levels)


@pytest.mark.parametrize("name", ["quality_focal", "varifocal"])
def test_the_recipes_have_atss_one_anchor_a_location_and_giou(name):
    cfg = load_config(Path(__file__).parents[2] / "configs" / "heirs" / f"{name}.yaml")
    ours, anchors = cfg.MODEL.FOCAL_DET, cfg.MODEL.ANCHOR_GENERATOR
    assert ASSIGNER_REGISTRY.get(ours.ASSIGNER.NAME)(cfg).topk == 9
    assert DENSE_LOSS_REGISTRY.get(ours.LOSS.NAME)(cfg).formula.kind == name
    assert [side / stride for (side,), stride in zip(anchors.SIZES, (8, 16, 32, 64, 128), strict=True)] == [8] * 5
    assert (ours.SCALES_PER_OCTAVE, anchors.ASPECT_RATIOS) == (1, [[1.0]])
    assert cfg.MODEL.RETINANET.BBOX_REG_LOSS_TYPE == "giou"
    assert {"quality_focal": "score", "varifocal": "iou"}[name] == ours.BOX_LOSS.WEIGHTING


def test_a_formula_without_a_kernel_is_computed_without_and_the_log_says_so(caplog):
    logits, labels = torch.randn(30, 3), torch.randint(-1, 4, (30,))
    loss = AsymmetricLoss(gamma_pos=1.0, gamma_neg=3.0, prob_shift=0.1)
    by_kernels = dense_losses.ElementwiseLoss(loss.formula, triton=True)
    dense_losses._say_once.cache_clear()
    with caplog.at_level("WARNING", logger=dense_losses.__name__):
        of_batch = by_kernels.batch_loss([logits.unsqueeze(0)], labels.unsqueeze(0), torch.ones(1))
    assert of_batch == loss(logits, labels)
    assert "SPEED.TRITON is on, but no kernel computes this ElementwiseLoss" in caplog.text


@pytest.mark.parametrize(("make", "name"), [(balanced, "class_boxes"), (federated, "class_images")])
def test_without_counts_a_loss_is_built_and_not_trained_and_with_them_no_checkpoint_has_them(make, name):
    (buffer,) = make().to("meta").buffers()
    assert buffer.device.type == "meta"
    assert make().state_dict() == {}
    key = rf"MODEL\.FOCAL_DET\.LOSS\.{name.upper()}"
    for counts, message in (
        ([], "0 numbers, and there are 3 classes: a training by"),
        ([5] * 4, "4 numbers, and there are 3 classes$"),
    ):
        with pytest.raises(ValueError, match=f"^{key} has {message}"):
            make(**{name: counts}).batch_loss([torch.zeros(4, 4, 3)], LABELS, torch.ones(4))


def test_a_federated_evaluation_has_all_classes_and_draws_nothing():
    logits, module = torch.randn(4, 4, 3), federated().eval()
    before = torch.get_rng_state()
    found = module.batch_loss([logits], LABELS, torch.ones(4))
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(found, focal_loss(logits, LABELS))
    assert module.train()(logits[0], LABELS[0]) < focal_loss(logits[0], LABELS[0])


@pytest.mark.parametrize(
    ("key", "value", "shares"),
    [
        ("FED_NUM_CLASSES", "1", [0.75, 0.25, 0.01]),
        ("FED_NUM_CLASSES", "2", [1.0, 0.97, 0.03]),
        ("FED_FREQ_POWER", "0.0", [0.33, 0.33, 0.33]),
        ("CLASS_IMAGES", "[10000, 10000, 1000000000]", [0.0, 0.0, 1.0]),
    ],
)
def test_each_key_changes_which_classes_count(tiny_cfg, key, value, shares):
    own = {"FED_NUM_CLASSES": "1", "CLASS_IMAGES": "[90000, 10000, 10]", key: value}
    words = [word for name, text in own.items() for word in (LOSS + name, text)]
    loss = DENSE_LOSS_REGISTRY.get("FederatedFocalLoss")(tiny_cfg(LOSS + "NAME", "FederatedFocalLoss", *words))
    counted = loss.weights_of(torch.full((20_000, 1), 3), 3).mean(dim=(0, 1))
    assert counted.tolist() == pytest.approx(shares, abs=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 3}, r"num_classes=3 is outside \[1, 2\]: with all classes this is FocalLoss"),
        ({"num_classes": 0}, r"num_classes=0 is outside \[1, 100000\]$"),
        ({"class_images": [3, 2, 0]}, r"class_images\[2\]=0 must be a whole number >= 1"),
    ],
)
def test_constants_of_the_federated_loss_out_of_range_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        federated(**options)
