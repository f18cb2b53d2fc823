"""Write the step at which a training diverged, and read such a file as data, since it may come from a stranger."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Instances
from detectron2.utils import comm
from torch import Tensor, nn

from ..checkpoint.integrity import DamagedError, contents, save_plain
from ..config.load import load_config
from ..config.unused_keys import without_unread_keys
from ..config.validate import detector_problems
from ..distributed.cluster import unwrapped
from ..environment import choose_device
from ..errors import Findings, InputError, cut, visible
from ..files import written_whole
from ..modeling.convolutions import keep_top_in_float32
from ..plain_data import parse_yaml
from .diverged_folder import new_file

logger = logging.getLogger(__name__)
FORMAT = 2  # of the files
_KINDS = {
    **dict.fromkeys(("iteration", "rank", "ranks", "seed"), int),  # only the seed may be negative: it is not known
    **dict.fromkeys(("losses", "model"), dict),
    **dict.fromkeys(("batch", "bad_gradients", "shares"), list),
    **{"is_first": bool, "config": str},
}
_LARGEST = 2**63  # no integer of a training is beyond it


def write_divergence(
    cfg: CfgNode,
    model: nn.Module,
    shares: Sequence[Sequence[Mapping[str, Any]]],
    losses: Mapping[str, Tensor],
    bad_gradients: Sequence[str],
    *,
    iteration: int,
    is_first: bool,
) -> Path | None:
    """Write diverged/iteration_<iteration>_rank<rank>.pth: batch, weights before the step, losses, configuration.

    `focal-det replay` reads it, and so does `torch.load(..., weights_only=True)`. No earlier file is replaced.

    Args:
        shares: the batch of this rank, or those of all ranks, images as the loader or `plain_image` gives them.
        bad_gradients: names of the parameters whose gradients are not finite.
        is_first: whether the step before was looked at too, and was finite.

    Returns:
        The file; None if it could not be written, which is logged.
    """
    path = new_file(cfg.OUTPUT_DIR, iteration)
    content = {
        "format": FORMAT,
        "iteration": iteration,
        "is_first": is_first,
        "rank": comm.get_rank(),
        "ranks": comm.get_world_size(),
        "seed": cfg.SEED,
        "config": without_unread_keys(cfg).dump(),
        "losses": {name: float(loss.sum()) for name, loss in losses.items()},
        "bad_gradients": list(bad_gradients[:20]),
        "batch": [plain_image(image) for share in shares for image in share],
        "shares": [len(share) for share in shares],  # images of each rank in the batch
        "model": {name: value.detach().cpu() for name, value in unwrapped(model).state_dict().items()},
    }
    try:
        with written_whole(path) as partial:
            save_plain(content, partial)
    except (OSError, RuntimeError) as error:
        logger.error(f"{path} could not be written ({error})")
        return None
    return path


def plain_image(image: Mapping[str, Any]) -> dict[str, Any]:
    """Return an image as data: image (C, H, W) uint8, boxes (B, 4) XYXY, classes (B,), size and name."""
    if "boxes" in image:  # already plain
        return dict(image)
    instances: Instances | None = image.get("instances")
    return {
        "image": image["image"].detach().cpu().clone(),
        "boxes": None if instances is None else instances.gt_boxes.tensor.detach().cpu().clone(),
        "classes": None if instances is None else instances.gt_classes.detach().cpu().clone(),
        "height": int(image.get("height", image["image"].shape[1])),
        "width": int(image.get("width", image["image"].shape[2])),
        "file_name": str(image.get("file_name", "")),
    }


class Divergence(NamedTuple):
    """A step as `write_divergence` wrote it, and its model on this machine's device.

    record: the file's content, with names that are safe to print. cfg: its configuration. notes: what differs here.
    """

    record: dict[str, Any]
    cfg: CfgNode
    model: nn.Module
    notes: list[str]


def read_divergence(path: Path) -> Divergence:
    """Read a file of `OUTPUT_DIR/diverged`, as data alone, and build its model.

    No other file that it may name is read, and no tensor takes more memory than the file has bytes. Raises InputError
    if there is no such file, or if it is damaged or holds something else.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; a diverged training writes OUTPUT_DIR/diverged/*.pth")
    try:
        try:
            record = contents(path, checksums=True)
        except DamagedError as error:
            raise InputError(f"cannot be read: {error}") from error
        if problem := _problem_of(record, path.stat().st_size):
            raise InputError(f"not a file of a diverged training: {problem}")
        cfg, notes = _config_of(record["config"])
        num_classes = cfg.MODEL.RETINANET.NUM_CLASSES
        if any(not -1 <= label < num_classes for image in record["batch"] for label in image["classes"].tolist()):
            raise InputError(f"a class is outside of -1 to {num_classes - 1}, as MODEL.RETINANET.NUM_CLASSES says")
        model = _model_of(cfg, record["model"])
        if record["seed"] < 0:
            notes.append(f"SEED is {record['seed']}: what the step drew at random, such as classes, is drawn anew")
    except InputError as error:  # which may quote the file
        raise InputError([f"{path}: {visible(problem)}" for problem in error.problems]) from error
    for image in record["batch"]:
        image["file_name"] = cut(visible(image["file_name"]), 250) or "unnamed"
    record["losses"] = {cut(visible(name)): value for name, value in record["losses"].items()}
    return Divergence(record, cfg, model, notes)


def _problem_of(record: Any, size: int) -> str | None:
    """Return what is wrong with a file of `size` bytes; types are exact, as a stranger's subclass may be anything."""
    if type(record) is not dict or type(record.get("format")) is not int or record["format"] != FORMAT:
        return f"format {FORMAT} is what this version reads"
    for key, kind in _KINDS.items():
        least = -_LARGEST if key == "seed" else 0
        if type(record.get(key)) is not kind or (kind is int and not least <= record[key] < _LARGEST):
            return f"{key} is missing or of the wrong type"
    if not all(type(name) is str and type(value) is float for name, value in record["losses"].items()):
        return "its losses are not numbers by name"
    if not all(type(name) is str for name in record["bad_gradients"]):
        return "its bad_gradients are not names"
    if not all(type(name) is str and _is_plain(value) for name, value in record["model"].items()):
        return "its weights are not tensors by name"
    batch, shares = record["batch"], record["shares"]
    if not batch or not all(map(_is_image, batch)):
        return "its batch is not made of uint8 images of 3 channels with boxes and classes"
    if sum(image[key].nbytes for image in batch for key in ("image", "boxes", "classes")) > size:
        return "its images are larger than the file"
    if not all(type(share) is int and share > 0 for share in shares) or sum(shares) != len(batch):
        return "its shares do not add up to its batch"
    return None


def _is_image(record: Any) -> bool:
    if type(record) is not dict or type(record.get("file_name")) is not str:
        return False
    if not all(type(record.get(key)) is int and 0 < record[key] < _LARGEST for key in ("height", "width")):
        return False
    tensors: list[Any] = [record.get(key) for key in ("image", "boxes", "classes")]
    image, boxes, classes = tensors
    if not (_is_plain(image, torch.uint8) and _is_plain(boxes, torch.float32) and _is_plain(classes, torch.int64)):
        return False
    fits = classes.ndim == 1 and boxes.shape == (len(classes), 4)
    return fits and image.ndim == 3 and len(image) == 3 and image.numel() > 0


def _is_plain(value: Any, dtype: torch.dtype | None = None) -> bool:
    """Return whether it is a dense tensor on the CPU that needs no gradient."""
    if type(value) is not Tensor or value.is_nested or value.layout != torch.strided or value.device.type != "cpu":
        return False
    return not value.requires_grad and dtype in (None, value.dtype)


def _config_of(text: str) -> tuple[CfgNode, list[str]]:
    """Return the configuration, fitted to this machine and without names of files, and notes on what was changed."""
    try:
        data, keys = text.encode(), parse_yaml(text)
    except (RecursionError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"its configuration is not YAML: {cut(' '.join(str(error).split()), 200)}") from error
    if isinstance(keys, dict) and "_BASE_" in keys:
        raise InputError("its configuration has a _BASE_, which names another file and which no training writes")
    with tempfile.NamedTemporaryFile(suffix=".yaml") as file:
        file.write(data)
        file.flush()
        try:
            cfg = load_config(file.name)
            problems = [f"its configuration: {problem}" for problem in detector_problems(cfg)]
        except InputError as error:
            named = [problem.replace(f"config file {file.name}", file.name) for problem in error.problems]
            problems = [problem.replace(file.name, "its configuration") for problem in named]
    Findings(problems).raise_if_errors()
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.FOCAL_DET.SPEED.COMPILE = cfg.MODEL.FOCAL_DET.SPEED.CUDA_GRAPHS = False
    if cfg.MODEL.DEVICE.startswith("cuda"):
        cfg.MODEL.DEVICE = "cuda"  # this machine may have fewer
    cfg, found = choose_device(cfg, 1)
    cfg.freeze()
    return cfg, found.warnings


def _model_of(cfg: CfgNode, weights: Mapping[str, Tensor]) -> nn.Module:
    try:
        model = build_model(cfg)
    except Exception as error:  # whatever a stranger's values lead to
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"no model can be built from its configuration ({cut(reason, 200)})") from error
    kinds = ({key: (v.shape, v.dtype) for key, v in state.items()} for state in (weights, model.state_dict()))
    given, expected = kinds
    wrong = [name for name in {**expected, **given} if given.get(name) != expected.get(name)]
    if wrong:
        raise InputError(f"its weights do not fit its configuration: {len(wrong)} of them, first {cut(wrong[0])}")
    model.load_state_dict(weights)
    keep_top_in_float32(model)
    return model.train()
