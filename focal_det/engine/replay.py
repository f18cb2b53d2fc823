"""A step that gave what is no number, done again: which picture, which loss, which module, in which precision."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from ..errors import InputError, cut
from .bfloat16 import keep_top_in_float32
from .checkpoint_file import contents, damage
from .config_file import load_config
from .devices import choose_device
from .divergence import FORMAT

_KINDS = {
    **dict.fromkeys(("iteration", "rank", "ranks", "seed"), int),
    **dict.fromkeys(("losses", "model"), dict),
    **dict.fromkeys(("batch", "bad_gradients", "shares"), list),
    **{"is_first": bool, "config": str},
}


class Divergence(NamedTuple):
    """What `write_divergence` wrote, and the model that it was of, on the device that is here.

    record: the file's content. cfg: its configuration.
    """

    record: dict[str, Any]
    cfg: CfgNode
    model: nn.Module


class Outcome(NamedTuple):
    """Of a step's forward and backward pass: the losses, and the first module and gradient that are not finite.

    error: of a pass that did not come to its end.
    """

    losses: dict[str, float]
    module: str | None
    gradient: str | None
    error: str | None

    @property
    def is_finite(self) -> bool:
        return not self.error and self.gradient is None and all(map(math.isfinite, self.losses.values()))


def read_divergence(path: Path) -> Divergence:
    """Read a file of `OUTPUT_DIR/diverged`, as data alone, and build its model.

    Raises:
        InputError: no such file, or one that is damaged or holds something else.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; a diverged training writes OUTPUT_DIR/diverged/*.pth")
    reason = damage(path)
    if reason:
        raise InputError(f"{path}: cannot be read: {reason}")
    record = contents(path)
    problem = _problem_of(record)
    if problem:
        raise InputError(f"{path}: no file of a diverged training: {problem}")
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
        file.write(record["config"])
        file.flush()
        try:
            cfg = load_config(file.name)
        except InputError as error:
            raise InputError([f"{path}: its configuration: {problem}" for problem in error.problems]) from error
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.FOCAL_DET.SPEED.COMPILE = False
    choose_device(cfg, 1)
    cfg.freeze()
    try:
        model = build_model(cfg)
        model.load_state_dict(record["model"])
    except Exception as error:  # a configuration that fits no model, or not these weights
        raise InputError(f"{path}: its weights do not fit its configuration ({cut(error, 200)})") from error
    keep_top_in_float32(model)
    return Divergence(record, cfg, model.train())


def _problem_of(record: Any) -> str | None:
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        return f"format {FORMAT} is what this version reads"
    wrong = [key for key, kind in _KINDS.items() if not isinstance(record.get(key), kind)]
    if wrong:
        return f"{wrong[0]} is missing or of another kind"
    if not record["batch"] or not all(map(_is_picture, record["batch"])):
        return "its batch is not one of pictures with boxes and classes"
    shares = record["shares"]
    if not all(isinstance(share, int) and share > 0 for share in shares) or sum(shares) != len(record["batch"]):
        return "its batch is not divided as it says"
    if not all(isinstance(value, Tensor) for value in record["model"].values()):
        return "its weights are not tensors"
    return None


def _is_picture(picture: Any) -> bool:
    if not isinstance(picture, dict) or not isinstance(picture.get("file_name"), str):
        return False
    image, boxes, classes = (picture.get(key) for key in ("image", "boxes", "classes"))
    if not (isinstance(image, Tensor) and image.ndim == 3 and image.numel()):
        return False
    if not all(isinstance(picture.get(key), int) for key in ("height", "width")):
        return False
    if not isinstance(boxes, Tensor) or not isinstance(classes, Tensor) or not boxes.is_floating_point():
        return False
    return boxes.shape == (len(classes), 4) and classes.ndim == 1


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
    grads = ((name, p.grad) for name, p in model.named_parameters() if p.grad is not None)
    gradient = next((name for name, grad in grads if not grad.isfinite().all()), None)
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


def verdict(record: Mapping[str, Any], whole: Mapping[str, Outcome], alone: Sequence[Mapping[str, Outcome]]) -> str:
    """What did it, in words.

    Args:
        record: the file's content.
        whole: of the batch, by precision, "float32" first; of several ranks' the first that was not finite.
        alone: likewise, of each picture.
    """
    spoilt = [name for name, value in record["model"].items() if not value.isfinite().all()]
    if spoilt:
        return (
            f"the weights were no numbers before this step: {len(spoilt)} of {len(record['model'])}, first "
            f"{spoilt[0]}. An earlier step did it"
            + ("" if record["is_first"] else ", of those since the last look: --resume looks at each of them")
        )
    pictures = record["batch"]
    for precision, outcome in whole.items():
        if outcome.is_finite:
            continue
        only = "" if precision == "float32" else f"not finite in {precision} only: "
        found = [
            f"picture {place + 1} of {len(pictures)}, {picture['file_name'] or 'unnamed'}: "
            + "; ".join([_what(alone[place][precision]), *box_problems(picture)])
            for place, picture in enumerate(pictures)
            if not alone[place][precision].is_finite
        ]
        return only + ("\n".join(found) or f"the batch, and none of its pictures alone: {_what(outcome)}")
    said = ", ".join(f"{name} {value:g}" for name, value in record["losses"].items())
    return (
        f"finite here: there it was {said}. It came from the other device or number of ranks, or from gradients of "
        "other ranks"
    )


def _what(outcome: Outcome) -> str:
    if outcome.error:
        return outcome.error
    bad = [f"{name} is {value:g}" for name, value in outcome.losses.items() if not math.isfinite(value)]
    where = [f"first in the output of {outcome.module}"] if outcome.module else []
    return ", ".join([*(bad or [f"the gradient of {outcome.gradient} is no number"]), *where])
