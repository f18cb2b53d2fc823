"""Repeat a step that was not finite: which image, loss and module did it, and in which precision."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from ..checkpoint.safe_load import nonfinite_weights
from ..data.train_loader import STEP, set_random_numbers
from ..distributed.accumulation import losses_and_gradients
from ..errors import cut, some
from .dump import Divergence

ALL_TOGETHER = "all parameters together"


class StepOutcome(NamedTuple):
    """Result of a forward and backward pass: the losses, and the first module and gradient that are not finite.

    gradient: `ALL_TOGETHER` if each is finite and their norm is not. error: why a pass did not finish.
    """

    losses: dict[str, float]
    module: str | None
    gradient: str | None
    error: str | None

    @property
    def is_finite(self) -> bool:
        return not self.error and self.gradient is None and all(map(math.isfinite, self.losses.values()))


ByPrecision = Mapping[str, StepOutcome]  # "float32" first, then the run's own


def replay(divergence: Divergence, show: Callable[[str, Iterator[tuple[str, StepOutcome]]], None]) -> str:
    """Repeat the step with each rank's batch, with each image alone, and with noise in their place.

    `show` is called for each of them, with a title and the outcome by precision, which is computed as it is iterated:
    what kills the process is then known. Returns the verdict: what did it, in a sentence or a line for each image.

    A rank's batch draws the random numbers that it drew in the training, such as for the classes of
    `FederatedFocalLoss`, since they follow from SEED, iteration and rank; an image alone, those of a batch's first.
    """
    record, amp = divergence.record, divergence.cfg.SOLVER.AMP
    dtypes: dict[str, torch.dtype | None] = {"float32": None}
    if amp.ENABLED:
        dtypes[amp.DTYPE] = torch.bfloat16 if amp.DTYPE == "bfloat16" else torch.float16

    def run_and_show(title: str, batch: Sequence[Mapping[str, Any]], rank: int = record["rank"]) -> ByPrecision:
        outcomes: dict[str, StepOutcome] = {}

        def compute() -> Iterator[tuple[str, StepOutcome]]:
            for name, dtype in dtypes.items():
                outcomes[name] = run(divergence, batch, dtype, rank=rank)
                yield name, outcomes[name]

        show(title, compute())
        return outcomes

    whole: dict[str, StepOutcome] = {}  # of several ranks, the first that is not finite
    images = iter(record["batch"])
    has_all_ranks = len(record["shares"]) > 1
    for rank, count in enumerate(record["shares"]):
        title = f"all {count} images" + (f" of rank {rank}" if has_all_ranks else "")
        outcomes = run_and_show(title, list(islice(images, count)), rank if has_all_ranks else record["rank"])
        for name, outcome in outcomes.items():
            if name not in whole or whole[name].is_finite:
                whole[name] = outcome
    noise = _noise_like(record["batch"][0])
    alone = [run_and_show(f"image {n}: {_description(p)}", [p]) for n, p in enumerate(record["batch"], 1)]
    return _verdict(divergence, whole, alone, run_and_show(f"for comparison: {_description(noise)}", [noise]))


def run(
    divergence: Divergence, batch: Sequence[Mapping[str, Any]], dtype: torch.dtype | None = None, *, rank: int = 0
) -> StepOutcome:
    """Do the forward and backward pass of some of its images in a precision, from the weights before the step.

    Random numbers are those that a rank's step begins with; of a run without a SEED they are not known.
    """
    record, model, nonfinite_modules = divergence.record, divergence.model, []
    model.load_state_dict(record["model"])  # a forward pass may move a running mean
    if record["seed"] >= 0:
        set_random_numbers(STEP, record["seed"], record["iteration"], rank)
    model.zero_grad()

    def check(name: str, module: nn.Module, _: Any, output: Any) -> None:
        if not all(values.isfinite().all() for values in _floats(output)):
            nonfinite_modules.append(name)

    hooks = [module.register_forward_hook(partial(check, name)) for name, module in model.named_modules() if name]
    losses: dict[str, Tensor] = {}
    parts = divergence.cfg.MODEL.FOCAL_DET.ACCUMULATION
    precision = partial(torch.autocast, next(model.parameters()).device.type, dtype=dtype, enabled=dtype is not None)
    try:
        images = [_as_in_training(image) for image in batch]
        losses = losses_and_gradients(model, images, 1 if len(images) % parts else parts, precision)
        error = None
    except Exception as raised:  # also what a check of the model's own says is an answer
        error = cut(" ".join(f"{type(raised).__name__}: {raised}".split()), 300)
    finally:
        for hook in hooks:
            hook.remove()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    gradient = next((name for name, grad in grads.items() if not grad.isfinite().all()), None)
    if gradient is None and not torch.nn.utils.get_total_norm(list(grads.values())).isfinite():
        gradient = ALL_TOGETHER
    module = next(iter(nonfinite_modules), None)
    return StepOutcome({name: loss.item() for name, loss in losses.items()}, module, gradient, error)


def _floats(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor) and output.is_floating_point():
        yield output
    elif isinstance(output, Mapping | list | tuple):
        for value in output.values() if isinstance(output, Mapping) else output:
            yield from _floats(value)


def _as_in_training(image: Mapping[str, Any]) -> dict[str, Any]:
    instances = Instances(tuple(image["image"].shape[1:]))
    instances.gt_boxes, instances.gt_classes = Boxes(image["boxes"]), image["classes"]
    return {**{key: image[key] for key in ("image", "height", "width", "file_name")}, "instances": instances}


def _noise_like(image: Mapping[str, Any]) -> dict[str, Any]:
    """Make an image of the same size that nothing is wrong with: noise, with one box in the middle, of class 0."""
    channels, height, width = image["image"].shape
    generator = torch.Generator().manual_seed(0)
    return {
        "image": torch.randint(256, (channels, height, width), generator=generator, dtype=torch.uint8),
        "boxes": torch.tensor([[width / 4, height / 4, width * 3 / 4, height * 3 / 4]]),
        "classes": torch.zeros(1, dtype=torch.int64),
        "height": height,
        "width": width,
        "file_name": "generated noise",
    }


def _description(image: Mapping[str, Any]) -> str:
    height, width = image["image"].shape[1:]
    return f"{image['file_name']}, {width}x{height}, {len(image['boxes'])} boxes"


def _box_problems(image: Mapping[str, Any]) -> str:
    """Return what is wrong with an image's boxes, counted from 0; "" if nothing is."""
    height, width = image["image"].shape[1:]
    problems = []
    for place, (x0, y0, x1, y1) in enumerate(image["boxes"].tolist()):
        if not all(map(math.isfinite, (x0, y0, x1, y1))):
            problems.append(f"box {place} is not finite")
        elif x1 <= x0 or y1 <= y0:
            problems.append(f"box {place} has width {x1 - x0:g} and height {y1 - y0:g}")
        elif x0 < -1 or y0 < -1 or x1 > width + 1 or y1 > height + 1:
            problems.append(f"box {place} lies outside the image")
    return some("", problems)


def _verdict(divergence: Divergence, whole: ByPrecision, alone: Sequence[ByPrecision], noise: ByPrecision) -> str:
    """Say what did it, from the outcomes of the batch, of each image, and of noise, with which nothing is wrong."""
    record = divergence.record
    if bad_weights := nonfinite_weights(record["model"]):
        return (
            f"the weights were not finite before this step: {len(bad_weights)} of {len(record['model'])}, first "
            f"{bad_weights[0]}. An earlier step did it"
            + ("" if record["is_first"] else ", one of those since the last look: --resume looks at each of them")
        )
    names = [f"image {n} of {len(record['batch'])}, {p['file_name']}" for n, p in enumerate(record["batch"], 1)]
    bad_boxes = [_box_problems(image) for image in record["batch"]]
    for precision, outcome in whole.items():
        if outcome.is_finite:
            continue
        only = "" if precision == "float32" else f"not finite in {precision} only: "
        if not noise[precision].is_finite:
            besides = [f"also, {name}: {boxes}" for name, boxes in zip(names, bad_boxes, strict=True) if boxes]
            return only + "\n".join([_weights_did_it(divergence, noise, precision), *besides])
        found = [
            "; ".join(filter(None, [f"{name}: {_what(outcomes[precision])}", boxes]))
            for name, boxes, outcomes in zip(names, bad_boxes, alone, strict=True)
            if not outcomes[precision].is_finite
        ]
        return only + ("\n".join(found) or f"the batch, and none of its images alone: {_what(outcome)}")
    losses = ", ".join(f"{name} {value:g}" for name, value in record["losses"].items())
    return (
        f"finite here; in the training it was {losses}. It came from the other device or number of ranks, or from "
        "gradients of other ranks"
    )


def _weights_did_it(divergence: Divergence, noise: ByPrecision, precision: str) -> str:
    same = f"no image, since noise in their place gives the same: {_what(noise[precision])}"
    if noise[precision].error:  # such as too little memory
        return same
    trained = {name: p.detach().abs().max().item() for name, p in divergence.model.named_parameters() if p.numel()}
    largest = max(trained, key=lambda name: trained[name])
    fix = f"SOLVER.BASE_LR is {divergence.cfg.SOLVER.BASE_LR:g}: lower it, or warm up longer"
    if precision != "float32":
        fix = "SOLVER.AMP.ENABLED False computes in float32"
    weights = f"the weights before this step, the largest of which is {trained[largest]:.3g}, in {largest}"
    return f"{same}. It is {weights}; {fix}"


def _what(outcome: StepOutcome) -> str:
    if outcome.error:
        return outcome.error
    bad = [f"{name} is {value:g}" for name, value in outcome.losses.items() if not math.isfinite(value)]
    where = [f"first in the output of {outcome.module}"] if outcome.module else []
    return ", ".join([*(bad or [f"the gradient of {outcome.gradient} is not finite"]), *where])
