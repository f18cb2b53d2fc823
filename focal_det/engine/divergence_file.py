"""A file of OUTPUT_DIR/diverged, which may come from a stranger: read as data, looked at, and its model built."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor, nn

from ..errors import InputError, cut, visible
from ..plain_data import parse_yaml
from .bfloat16 import keep_top_in_float32
from .checkpoint_file import contents, damage
from .config_file import load_config
from .detector_checks import detector_problems
from .devices import choose_device
from .divergence import FORMAT

_KINDS = {
    **dict.fromkeys(("iteration", "rank", "ranks", "seed"), int),
    **dict.fromkeys(("losses", "model"), dict),
    **dict.fromkeys(("batch", "bad_gradients", "shares"), list),
    **{"is_first": bool, "config": str},
}
_LARGEST = 2**63  # integers beyond it are none of a training


class Divergence(NamedTuple):
    """What `write_divergence` wrote, and the model that it was of, on the device that is here.

    record: the file's content, whose names can be shown. cfg: its configuration. notes: what is not as it was there.
    """

    record: dict[str, Any]
    cfg: CfgNode
    model: nn.Module
    notes: list[str]


def read_divergence(path: Path) -> Divergence:
    """Read a file of `OUTPUT_DIR/diverged`, as data alone, and build its model.

    Nothing else is read that the file may name, and no tensor takes more memory than the file has bytes.

    Raises:
        InputError: no such file, or one that is damaged or holds something else.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; a diverged training writes OUTPUT_DIR/diverged/*.pth")
    try:
        reason = damage(path)
        if reason:
            raise InputError(f"cannot be read: {reason}")
        record = contents(path)
        problem = _problem_of(record, path.stat().st_size)
        if problem:
            raise InputError(f"no file of a diverged training: {problem}")
        cfg, notes = _config_of(record["config"])
        num_classes = cfg.MODEL.RETINANET.NUM_CLASSES
        if any(not 0 <= label < num_classes for picture in record["batch"] for label in picture["classes"].tolist()):
            raise InputError(f"a class is outside of 0 to {num_classes - 1}, as MODEL.RETINANET.NUM_CLASSES says")
        model = _model_of(cfg, record["model"])
    except InputError as error:  # in which the file's own words may stand
        raise InputError([f"{path}: {visible(problem)}" for problem in error.problems]) from error
    for picture in record["batch"]:
        picture["file_name"] = cut(visible(picture["file_name"]), 250) or "unnamed"
    record["losses"] = {cut(visible(name)): value for name, value in record["losses"].items()}
    return Divergence(record, cfg, model, notes)


def _problem_of(record: Any, size: int) -> str | None:
    """What is wrong with its kinds of values; types are exact, since a subclass of a stranger's may be anything.

    Args:
        size: of the file, in bytes.
    """
    if type(record) is not dict or type(record.get("format")) is not int or record["format"] != FORMAT:
        return f"format {FORMAT} is what this version reads"
    wrong = [key for key, kind in _KINDS.items() if type(record.get(key)) is not kind]
    wrong += [key for key, kind in _KINDS.items() if kind is int and key not in wrong and abs(record[key]) >= _LARGEST]
    if wrong:
        return f"{wrong[0]} is missing or of another kind"
    if not all(type(name) is str and type(value) is float for name, value in record["losses"].items()):
        return "its losses are not numbers by name"
    if not all(type(name) is str for name in record["bad_gradients"]):
        return "its bad_gradients are not names"
    if not all(type(name) is str and _is_plain(value) for name, value in record["model"].items()):
        return "its weights are not tensors by name"
    batch, shares = record["batch"], record["shares"]
    if not batch or not all(map(_is_picture, batch)):
        return "its batch is not one of pictures, uint8 of 3 channels, with boxes and classes"
    if sum(picture[key].nbytes for picture in batch for key in ("image", "boxes", "classes")) > size:
        return "its pictures are larger than the file"
    if not all(type(share) is int and share > 0 for share in shares) or sum(shares) != len(batch):
        return "its batch is not divided as it says"
    return None


def _is_picture(picture: Any) -> bool:
    if type(picture) is not dict or type(picture.get("file_name")) is not str:
        return False
    if not all(type(picture.get(key)) is int and 0 < picture[key] < _LARGEST for key in ("height", "width")):
        return False
    tensors: list[Any] = [picture.get(key) for key in ("image", "boxes", "classes")]
    image, boxes, classes = tensors
    if not (_is_plain(image, torch.uint8) and _is_plain(boxes, torch.float32) and _is_plain(classes, torch.int64)):
        return False
    if image.ndim != 3 or len(image) != 3 or not image.numel():
        return False
    return classes.ndim == 1 and boxes.shape == (len(classes), 4)


def _is_plain(value: Any, dtype: torch.dtype | None = None) -> bool:
    """Whether it is a tensor with its numbers in memory, and nothing that follows it."""
    if type(value) is not Tensor or value.is_nested or value.layout != torch.strided or value.device.type != "cpu":
        return False
    return not value.requires_grad and dtype in (None, value.dtype)


def _config_of(text: str) -> tuple[CfgNode, list[str]]:
    """The configuration, for the device that is here and without names of files, and what of it had to be changed."""
    try:
        data, keys = text.encode(), parse_yaml(text)
    except (RecursionError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"its configuration is no YAML: {cut(' '.join(str(error).split()), 200)}") from error
    if isinstance(keys, dict) and "_BASE_" in keys:
        raise InputError("its configuration has a _BASE_, another file to read, as no training writes it")
    with tempfile.NamedTemporaryFile(suffix=".yaml") as file:
        file.write(data)
        file.flush()
        try:
            cfg = load_config(file.name)
            problems = [f"its configuration: {problem}" for problem in detector_problems(cfg)]
        except InputError as error:
            named = [problem.replace(f"config file {file.name}", file.name) for problem in error.problems]
            problems = [problem.replace(file.name, "its configuration") for problem in named]
    if problems:
        raise InputError(problems)
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.FOCAL_DET.SPEED.COMPILE = False
    if cfg.MODEL.DEVICE.startswith("cuda"):
        cfg.MODEL.DEVICE = "cuda"  # its number there may be none here
    notes, _ = choose_device(cfg, 1)
    cfg.freeze()
    return cfg, notes


def _model_of(cfg: CfgNode, weights: Mapping[str, Tensor]) -> nn.Module:
    try:
        model = build_model(cfg)
    except Exception as error:  # whatever a stranger's values lead to
        words = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"its configuration makes no model ({cut(words, 200)})") from error
    theirs, ours = _shapes(weights), _shapes(model.state_dict())
    wrong = [name for name in {**ours, **theirs} if theirs.get(name) != ours.get(name)]
    if wrong:
        raise InputError(f"its weights do not fit its configuration: {len(wrong)} of them, first {cut(wrong[0])}")
    model.load_state_dict(weights)
    keep_top_in_float32(model)
    return model.train()


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, tuple[Sequence[int], torch.dtype]]:
    return {name: (tuple(value.shape), value.dtype) for name, value in weights.items()}
