"""A step that gave what is no number, done again: which picture, which loss, which module, in which precision."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from ..errors import cut, some
from .divergence_file import Divergence

ALL_TOGETHER = "all parameters together"


class Outcome(NamedTuple):
    """Of a step's forward and backward pass: the losses, and the first module and gradient that are not finite.

    gradient: `ALL_TOGETHER` if each is finite and their norm is not. error: of a pass that did not come to its end.
    """

    losses: dict[str, float]
    module: str | None
    gradient: str | None
    error: str | None

    @property
    def is_finite(self) -> bool:
        return not self.error and self.gradient is None and all(map(math.isfinite, self.losses.values()))


def run(divergence: Divergence, batch: Sequence[Mapping[str, Any]], dtype: torch.dtype | None = None) -> Outcome:
    """Forward and backward of some of its pictures, from the weights before the step.

    Args:
        dtype: of autocast; None for float32.
    """
    model, seen = divergence.model, []
    model.load_state_dict(divergence.record["model"])  # a forward pass may move a running mean
    model.zero_grad()

    def look(name: str) -> Any:
        def note(module: nn.Module, _: Any, output: Any) -> None:
            if not all(values.isfinite().all() for values in _floats(output)):
                seen.append(name)

        return note

    hooks = [module.register_forward_hook(look(name)) for name, module in model.named_modules() if name]
    losses: dict[str, Tensor] = {}
    try:
        device = next(model.parameters()).device.type
        with torch.autocast(device, dtype=dtype, enabled=dtype is not None):
            losses = model([_as_in_training(picture) for picture in batch])
        sum(losses.values(), torch.zeros(())).backward()
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
    return Outcome({n: loss.item() for n, loss in losses.items()}, seen[0] if seen else None, gradient, error)


def _floats(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _floats(value)
    elif isinstance(output, list | tuple):
        for value in output:
            yield from _floats(value)


def _as_in_training(picture: Mapping[str, Any]) -> dict[str, Any]:
    instances = Instances(tuple(picture["image"].shape[1:]))
    instances.gt_boxes, instances.gt_classes = Boxes(picture["boxes"]), picture["classes"]
    return {**{key: picture[key] for key in ("image", "height", "width", "file_name")}, "instances": instances}


def box_problems(picture: Mapping[str, Any]) -> list[str]:
    """What is wrong with a picture's boxes; they count from 0."""
    height, width = picture["image"].shape[1:]
    problems = []
    for place, (x0, y0, x1, y1) in enumerate(picture["boxes"].tolist()):
        if not all(map(math.isfinite, (x0, y0, x1, y1))):
            problems.append(f"box {place} is not finite")
        elif x1 <= x0 or y1 <= y0:
            problems.append(f"box {place} has width {x1 - x0:g} and height {y1 - y0:g}")
        elif x0 < -1 or y0 < -1 or x1 > width + 1 or y1 > height + 1:
            problems.append(f"box {place} lies outside of the picture")
    return problems


def made_up(picture: Mapping[str, Any]) -> dict[str, Any]:
    """A picture of the same size that nothing is wrong with: noise, with one box in the middle, of class 0."""
    channels, height, width = picture["image"].shape
    noise = torch.Generator().manual_seed(0)
    return {
        "image": torch.randint(256, (channels, height, width), generator=noise, dtype=torch.uint8),
        "boxes": torch.tensor([[width / 4, height / 4, width * 3 / 4, height * 3 / 4]]),
        "classes": torch.zeros(1, dtype=torch.int64),
        "height": height,
        "width": width,
        "file_name": "noise, made up to compare",
    }


def verdict(
    divergence: Divergence,
    whole: Mapping[str, Outcome],
    alone: Sequence[Mapping[str, Outcome]],
    noise: Mapping[str, Outcome],
) -> str:
    """What did it, in words.

    Args:
        whole: of the batch, by precision, "float32" first; of several ranks' the first that was not finite.
        alone: likewise, of each picture.
        noise: likewise, of one that is `made_up`: where it is not finite either, no picture did it.
    """
    record = divergence.record
    spoilt = [name for name, value in record["model"].items() if not value.isfinite().all()]
    if spoilt:
        return (
            f"the weights were no numbers before this step: {len(spoilt)} of {len(record['model'])}, first "
            f"{spoilt[0]}. An earlier step did it"
            + ("" if record["is_first"] else ", of those since the last look: --resume looks at each of them")
        )
    for precision, outcome in whole.items():
        if outcome.is_finite:
            continue
        only = "" if precision == "float32" else f"not finite in {precision} only: "
        if not noise[precision].is_finite:
            besides = [
                f"besides, {_named(record, place)}: {words}"
                for place in range(len(record["batch"]))
                for words in _bad_boxes(record, place)
            ]
            return only + "\n".join([_weights_did_it(divergence, noise, precision), *besides])
        found = [
            "; ".join([f"{_named(record, place)}: {_what(outcomes[precision])}", *_bad_boxes(record, place)])
            for place, outcomes in enumerate(alone)
            if not outcomes[precision].is_finite
        ]
        return only + ("\n".join(found) or f"the batch, and none of its pictures alone: {_what(outcome)}")
    said = ", ".join(f"{name} {value:g}" for name, value in record["losses"].items())
    return (
        f"finite here: there it was {said}. It came from the other device or number of ranks, or from gradients of "
        "other ranks"
    )


def _weights_did_it(divergence: Divergence, noise: Mapping[str, Outcome], precision: str) -> str:
    same = f"no picture, since noise in their place gives the same: {_what(noise[precision])}"
    if noise[precision].error:  # such as too little memory
        return same
    trained = {name: p.detach().abs().max().item() for name, p in divergence.model.named_parameters() if p.numel()}
    largest = max(trained, key=lambda name: trained[name])
    fix = f"SOLVER.BASE_LR is {divergence.cfg.SOLVER.BASE_LR:g}: lower it, or warm up longer"
    return (
        f"{same}. It is the weights before this step, the largest of which is {trained[largest]:.3g}, in {largest}; "
        + (fix if precision == "float32" else "SOLVER.AMP.ENABLED False computes in float32")
    )


def _bad_boxes(record: Mapping[str, Any], place: int) -> list[str]:
    problems = box_problems(record["batch"][place])
    return [some("", problems)] if problems else []


def _named(record: Mapping[str, Any], place: int) -> str:
    return f"picture {place + 1} of {len(record['batch'])}, {record['batch'][place]['file_name']}"


def _what(outcome: Outcome) -> str:
    if outcome.error:
        return outcome.error
    bad = [f"{name} is {value:g}" for name, value in outcome.losses.items() if not math.isfinite(value)]
    where = [f"first in the output of {outcome.module}"] if outcome.module else []
    return ", ".join([*(bad or [f"the gradient of {outcome.gradient} is no number"]), *where])
