"""The losses of a batch and their normaliser, against the sums done by hand."""

import pytest
import torch

from focal_det.assigners.assignment import Assignment, pad_objects
from focal_det.assigners.iou import assign_by_iou
from focal_det.losses import focal_loss, smooth_l1_loss
from focal_det.losses.focal import focal_formula
from focal_det.losses.fused import batch_loss
from focal_det.modeling import normalizer
from focal_det.modeling.box_coding import encode_boxes
from focal_det.modeling.criterion import BOX_LOSSES, DenseCriterion
from focal_det.modeling.normalizer import LossNormalizer

ANCHORS = torch.tensor([[0.0, 0, 10, 10], [20.0, 0, 30, 10], [40.0, 0, 50, 10], [60.0, 0, 70, 10], [0.0, 0, 10, 6]])
LEVELS = [ANCHORS[:3], ANCHORS[3:]]
NO_OBJECTS = pad_objects([torch.zeros(0, 4)] * 2, [torch.zeros(0, dtype=torch.int64)] * 2)


class PlainLoss(torch.nn.Module):
    """A class loss that knows of one image only, and perhaps selects."""

    def __init__(self, select=None):
        super().__init__()
        if select is not None:
            self.select = select

    def forward(self, logits, labels):
        return focal_loss(logits, labels)


class BatchLoss(PlainLoss):
    """The same for a whole batch."""

    def forward(self, logits, labels):
        return focal_loss(logits, labels)

    def batch_loss(self, levels, labels, divisors):
        return batch_loss(levels, labels, divisors, focal_formula(0.25, 2.0))


def criterion(normalizer="global", class_loss=None, box_loss="smooth_l1", **options):
    return DenseCriterion(
        num_classes=2,
        class_loss=class_loss or PlainLoss(),
        normalizer=LossNormalizer(normalizer),
        smooth_l1_beta=0.11,
        box_weights=(1, 1, 1, 1),
        box_loss=box_loss,
        **options,
    )


def predictions(n):
    return torch.randn(n, 5, 2, requires_grad=True), torch.randn(n, 5, 4, requires_grad=True)


def one_level(n):
    logits, deltas = predictions(n)
    return [logits], deltas


# Image 0: anchor 0 and 4 (IoU .6) on an object of class 1. Image 1: three objects, one anchor each.
OBJECTS = pad_objects([ANCHORS[:1], ANCHORS[1:4]], [torch.tensor([1]), torch.tensor([0, 1, 0])])
LABELS = [torch.tensor([1, 2, 2, 2, 1]), torch.tensor([2, 0, 1, 0, 2])]


@pytest.mark.parametrize("class_loss", [PlainLoss(), BatchLoss()])
@pytest.mark.parametrize(("mode", "divisors"), [("global", [5, 5]), ("image", [2 * 2, 3 * 2]), ("ema", [90.5, 90.5])])
def test_sums_over_anchors_divided_as_the_mode_says(mode, divisors, class_loss):
    # 2 + 3 assigned anchors; "image" also takes the mean of 2 images; "ema" is .9 * 100 + .1 * 5 = 90.5
    logits, deltas = predictions(2)
    losses = criterion(mode, class_loss)([logits], deltas, LEVELS, *OBJECTS)
    expected_cls = sum(focal_loss(logits[i], LABELS[i]) / divisors[i] for i in range(2))
    box_sums = [
        smooth_l1_loss(
            deltas[0, [0, 4]], encode_boxes(ANCHORS[[0, 0]], ANCHORS[[0, 4]], weights=(1, 1, 1, 1)), beta=0.11
        ),
        smooth_l1_loss(deltas[1, 1:4], torch.zeros(3, 4), beta=0.11),  # objects equal to their anchors
    ]
    torch.testing.assert_close(losses["loss_cls"], expected_cls)
    torch.testing.assert_close(losses["loss_box_reg"], sum(box_sums[i] / divisors[i] for i in range(2)))


@pytest.mark.parametrize("mode", ["global", "image", "ema"])
def test_a_batch_without_objects(mode):
    logits, deltas = predictions(2)
    losses = criterion(mode)([logits], deltas, LEVELS, *NO_OBJECTS)
    assert losses["loss_cls"] > 0
    assert losses["loss_box_reg"] == 0
    sum(losses.values()).backward()
    assert logits.grad.isfinite().all()
    assert deltas.grad.eq(0).all()  # there, and zero: every parameter takes part under DDP


def test_the_number_of_assigned_anchors_is_kept_for_logging():
    module = criterion()
    module(*one_level(2), LEVELS, *OBJECTS)
    assert module.num_assigned.tolist() == [2, 3]


def test_anchors_that_are_not_selected_have_no_loss_of_either_kind_but_count_in_the_divisor():
    # Of image 0 anchor 0 of the assigned 0 and 4 is kept, with negative 2; of image 1 nothing is.
    kept = [torch.tensor([1, -1, 2, -1, -1]), torch.full((5,), -1)]
    seen = []

    def select(logits, labels, anchors):
        seen.append((logits, labels.tolist(), anchors))
        return kept[len(seen) - 1]

    logits, deltas = predictions(2)
    losses = criterion(class_loss=PlainLoss(select))([logits], deltas, LEVELS, *OBJECTS)
    assert [labels for _, labels, _ in seen] == [labels.tolist() for labels in LABELS]
    assert all(torch.equal(seen[i][0], logits[i]) and torch.equal(seen[i][2], ANCHORS) for i in range(2))
    torch.testing.assert_close(losses["loss_cls"], focal_loss(logits[0], kept[0]) / 5)
    torch.testing.assert_close(losses["loss_box_reg"], smooth_l1_loss(deltas[0, :1], torch.zeros(1, 4), beta=0.11) / 5)
    sum(losses.values()).backward()
    assert logits.grad[1].eq(0).all()
    assert deltas.grad[1].eq(0).all()


@pytest.mark.parametrize("way", ["hook", "instance"])
def test_a_loss_with_hooks_or_another_forward_is_called(way):
    loss, called = BatchLoss(), []
    if way == "hook":
        loss.register_forward_hook(lambda *_: called.append(1))
    else:
        loss.forward = lambda logits, labels: called.append(1) or focal_loss(logits, labels)
    logits, deltas = predictions(2)
    criterion(class_loss=loss)([logits], deltas, LEVELS, *OBJECTS)
    assert called == [1, 1]


def test_a_loss_that_selects_is_given_images_though_it_knows_batches():
    loss = BatchLoss(select=lambda logits, labels, anchors: torch.full_like(labels, -1))
    logits, deltas = predictions(2)
    assert criterion(class_loss=loss)([logits], deltas, LEVELS, *OBJECTS)["loss_cls"] == 0


def test_a_subclass_with_a_forward_of_its_own_is_called():
    class Doubled(BatchLoss):
        def forward(self, logits, labels):
            return 2 * super().forward(logits, labels)

    logits, deltas = predictions(2)
    once, twice = (
        criterion(class_loss=loss)([logits], deltas, LEVELS, *OBJECTS)["loss_cls"] for loss in (BatchLoss(), Doubled())
    )
    torch.testing.assert_close(twice, 2 * once)


@pytest.mark.parametrize("objects", [OBJECTS, NO_OBJECTS])
@pytest.mark.parametrize("box_loss", BOX_LOSSES)
def test_the_masked_box_loss_of_a_gpu_is_the_same(objects, box_loss):
    module, (logits, deltas) = criterion("image", box_loss=box_loss), predictions(2)
    with torch.no_grad():
        deltas[0, 1] = torch.nan  # of an anchor without a target
    loss = module([logits], deltas, LEVELS, *objects)["loss_box_reg"]
    labels, matched = module.assign(LEVELS, *objects)
    divisors = module.normalizer(module.num_assigned)
    masked = (module._masked_box_sums(deltas, ANCHORS, labels < 2, objects[0], matched) / divisors).sum()
    torch.testing.assert_close(masked, loss)
    grads = [torch.autograd.grad(value, deltas)[0] for value in (loss, masked)]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize(("box_loss", "expected"), [("giou", 1 + 1 / 3), ("diou", 1 + 2**2 / (3**2 + 1))])
def test_losses_of_boxes_that_are_apart(box_loss, expected):
    # The anchor is the unit square at 2, its object that at 0: no overlap; the hull of 3 x 1 has a third of it between
    # them, giou = -1/3; centres are 2 apart, and its diagonal is sqrt(10).
    module = criterion(box_loss=box_loss)
    loss = module._losses_of_boxes(torch.zeros(4), torch.tensor([0.0, 0, 1, 1]), torch.tensor([2.0, 0, 3, 1]))
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("box_loss", BOX_LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_degenerate_boxes_have_a_finite_loss_and_gradient(box_loss, dtype):
    # Deltas that make sides of 0 in float32, or 62 times the anchor's; an object thinner than a pixel.
    deltas = torch.tensor([[0.0, 0, -200, 0], [9.0, 9, -50, -50], [0, 0, 90, 90], [-30, 30, 0, -20]], dtype=dtype)
    deltas.requires_grad_()
    boxes = torch.tensor([[900.0, 900, 910, 910], [0, 0, 1e-4, 700], [5, 5, 6, 6], [0, 0, 10, 10]])
    loss = criterion(box_loss=box_loss)._losses_of_boxes(deltas, boxes, torch.tensor([[900.0, 900, 932, 932]] * 4))
    loss.sum().backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite().all()
    assert deltas.grad.isfinite().all()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("box_loss", "iou", 'box_loss="iou" is not one of smooth_l1, giou, diou, ciou'),
        ("box_weighting", "giou", 'box_weighting="giou" is not one of none, iou, score'),
        ("box_factor", -1.0, r"box_factor=-1.0 is outside \[0, 1e6\]"),
        ("box_factor", float("nan"), r"box_factor=nan is outside \[0, 1e6\]"),
    ],
)
def test_what_the_box_loss_cannot_be_is_named(option, value, message):
    with pytest.raises(ValueError, match=message):
        criterion(**{option: value})


class SeenQuality(torch.nn.Module):
    """A class loss that keeps what it is told of the boxes."""

    takes_quality = True

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, logits, labels, quality):
        self.seen.append(quality)
        return logits.sum()


@pytest.mark.parametrize("device", ["cpu", "as on a GPU"])
def test_the_quality_is_the_iou_of_the_predicted_box(device):
    loss, (logits, deltas) = SeenQuality(), predictions(2)
    with torch.no_grad():
        deltas.zero_()
        deltas[1, 2] = torch.tensor([0.5, 0, 0, 0])  # half of its anchor to the right: IoU 5 / 15
        deltas[1, 0] = torch.nan  # of an anchor without an object
    module = criterion(class_loss=loss)
    if device == "cpu":
        module([logits], deltas, LEVELS, *OBJECTS)
        quality = torch.stack(loss.seen)
    else:
        labels, matched = (part.as_subclass(OnGPU) for part in module.assign(LEVELS, *OBJECTS))
        quality = module._quality(deltas, ANCHORS, labels, OBJECTS[0], matched).as_subclass(torch.Tensor)
    assert not quality.requires_grad
    # Image 0: its object is anchor 0, of which anchor 4 is .6.
    torch.testing.assert_close(quality, torch.tensor([[1, 0, 0, 0, 0.6], [0, 1, 1 / 3, 1, 0]]))


class OnGPU(torch.Tensor):
    """A tensor that says that it is on a GPU."""

    @property
    def device(self):
        return torch.device("cuda")


def test_losses_that_do_not_ask_for_the_quality_cost_nothing(monkeypatch):
    monkeypatch.setattr(DenseCriterion, "_quality", None)
    assert criterion(class_loss=BatchLoss())(*one_level(2), LEVELS, *OBJECTS)["loss_box_reg"] > 0


@pytest.mark.parametrize("weighting", ["iou", "score"])
def test_weights_share_the_box_loss_of_an_image_among_its_anchors(weighting):
    logits, deltas = predictions(2)
    options = {"box_loss": "giou", "box_weighting": weighting, "box_factor": 2.0}
    loss = SeenQuality()
    module = criterion(class_loss=loss, **options)
    found = module([logits], deltas, LEVELS, *OBJECTS)["loss_box_reg"]
    expected = 0
    for i, (anchors, boxes) in enumerate((([0, 4], ANCHORS[[0, 0]]), ([1, 2, 3], ANCHORS[1:4]))):
        losses = module._losses_of_boxes(deltas[i, anchors], boxes, ANCHORS[anchors])
        weights = loss.seen[i][anchors].clamp(min=1e-6) if weighting == "iou" else logits[i, anchors].sigmoid().amax(1)
        expected += (weights.detach() * losses).sum() / weights.detach().mean() / 5
    torch.testing.assert_close(found, 2 * expected)
    (grad,) = torch.autograd.grad(found, logits, allow_unused=True)
    assert grad is None  # the weights are constants
    labels, matched = module.assign(LEVELS, *OBJECTS)
    weights = module._box_loss_weights([logits], labels, torch.stack(loss.seen))
    masked = module._masked_box_sums(deltas, ANCHORS, labels < 2, OBJECTS[0], matched, weights)
    torch.testing.assert_close(2 * masked.sum() / 5, found)


@pytest.mark.parametrize("weighting", ["iou", "score"])
def test_boxes_that_all_miss_and_images_without_objects_have_finite_weights(weighting):
    logits, deltas = predictions(2)
    with torch.no_grad():
        deltas[..., 0] = 100.0  # a thousand pixels to the right
    module = criterion(box_loss="giou", box_weighting=weighting)
    plain = criterion(box_loss="giou")
    for objects in (OBJECTS, NO_OBJECTS):
        found = module([logits], deltas, LEVELS, *objects)["loss_box_reg"]
        (grad,) = torch.autograd.grad(found, deltas)
        assert grad.isfinite().all()
        if weighting == "iou":  # as if there were none
            torch.testing.assert_close(found, plain([logits], deltas, LEVELS, *objects)["loss_box_reg"])


def test_moving_average_is_a_saved_buffer_and_continues_after_loading():
    first = criterion("ema")
    first(*one_level(2), LEVELS, *OBJECTS)
    assert first.state_dict()["normalizer.ema"].item() == pytest.approx(90.5)
    second = criterion("ema")
    second.load_state_dict(first.state_dict())
    second(*one_level(1), LEVELS, *(part[:1] for part in NO_OBJECTS))
    assert second.normalizer.ema.item() == pytest.approx(0.9 * 90.5 + 0.1 * 1)  # no anchor counts as one


def test_the_divisor_of_one_step_is_not_changed_by_the_next():
    normalizer = LossNormalizer("ema")
    first = normalizer(torch.tensor([5]))
    normalizer(torch.tensor([50]))
    assert first.tolist() == [pytest.approx(90.5)]


@pytest.mark.parametrize("mode", ["global", "image"])
def test_stateless_modes_save_nothing(mode):
    assert criterion(mode).state_dict() == {}


def test_unknown_mode_is_named():
    with pytest.raises(ValueError, match='"batch" is not one of global, image, ema'):
        LossNormalizer("batch")


class OtherRank:
    """Stands for torch.distributed with a second rank that has the same counts; keeps what happens in `seen`."""

    def __init__(self, seen):
        self.seen = seen

    def is_available(self):
        return True

    def is_initialized(self):
        return True

    def get_world_size(self):
        return 2

    def all_reduce(self, tensor, async_op):
        assert async_op
        self.seen.append("sent")
        self.tensor = tensor
        return self

    def wait(self):
        self.tensor.mul_(2)
        self.seen.append("there")


@pytest.mark.parametrize("class_loss", [PlainLoss(), BatchLoss()])
@pytest.mark.parametrize("mode", ["global", "ema"])
def test_the_sum_over_ranks_is_awaited_as_late_as_possible(monkeypatch, mode, class_loss):
    alone, (levels, deltas) = criterion(mode, class_loss), one_level(2)
    expected = alone(levels, deltas, LEVELS, *OBJECTS)
    seen, module = [], criterion(mode, class_loss)
    monkeypatch.setattr(normalizer, "dist", OtherRank(seen))
    box_sums = module._box_sums
    monkeypatch.setattr(module, "_box_sums", lambda *args: seen.append("boxes") or box_sums(*args))
    losses = module(levels, deltas, LEVELS, *OBJECTS)
    assert seen == ["sent", "boxes", "there"]
    for name, loss in expected.items():
        torch.testing.assert_close(losses[name], loss)
    divisors = LossNormalizer("global")(torch.tensor([2, 3]))  # the form without `start`
    assert divisors.tolist() == [5.0, 5.0]


def test_another_normalizer_is_called_as_it_is():
    class Own(torch.nn.Module):
        def forward(self, num_assigned):
            return num_assigned.float() * 10

    class Derived(LossNormalizer):
        def forward(self, num_assigned):
            return num_assigned.float() * 10

    hooked = LossNormalizer("image")
    hooked.register_forward_hook(lambda module, args, divisors: divisors * 5)  # 2 images: 10
    levels, deltas = one_level(2)
    values = []
    for own in (Own(), Derived(), hooked):
        module = criterion()
        module.normalizer = own
        values.append(module(levels, deltas, LEVELS, *OBJECTS)["loss_cls"].item())
    own, derived, with_hook = values
    assert own == derived == pytest.approx(with_hook)


@pytest.mark.parametrize("num_threads", [1, 2])
def test_images_are_assigned_one_by_one_as_they_are_together(num_threads):
    before = torch.get_num_threads()
    corners = torch.rand(300, 2) * 80
    anchors = torch.cat((corners, corners + 5 + torch.rand(300, 2) * 20), dim=1)
    gt_boxes, gt_classes = anchors[:12].reshape(3, 4, 4) + 1, torch.randint(7, (3, 4))
    criterion = DenseCriterion(num_classes=7, class_loss=None)
    try:
        torch.set_num_threads(num_threads)
        found = criterion.assign([anchors], gt_boxes, gt_classes)
    finally:
        torch.set_num_threads(before)
    expected = assign_by_iou([anchors], gt_boxes, gt_classes, num_classes=7)
    assert (expected.labels < 7).any()
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("labels", "matched", "message"),
    [
        (5, 0, r"wrong returned labels outside \[-1, 2\]"),
        (0, -1, "wrong matched object -1 of image 0 of the batch, which has 1$"),
        (0, 1, "wrong matched object 1 of image 0 of the batch, which has 1$"),  # but another image has
    ],
)
def test_an_assigner_that_goes_wrong_in_a_training_is_named(labels, matched, message):
    def wrong(levels, gt_boxes, gt_classes, *, num_classes):
        shape = len(gt_boxes), sum(map(len, levels))
        return Assignment(torch.full(shape, labels), torch.full(shape, matched))

    objects = OBJECTS[0][:, :1], OBJECTS[1][:, :1]
    with pytest.raises(ValueError, match=message):
        criterion(assigner=wrong)(*one_level(2), LEVELS, *objects)
