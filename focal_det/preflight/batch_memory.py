"""How much memory a training step will take, of what is free, and the largest batch that fits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from detectron2.config import CfgNode

from ..config.plugins import absolute
from ..config.sampling import images_of_epoch
from ..engine.memory_estimate import count_step, largest_batch, measure_step
from ..environment import free_bytes_of_gpus, free_bytes_of_machine, own_bytes
from ..errors import Findings, counted, first_line
from ..modeling.retinanet import FocalRetinaNet
from .anchor_fit import resized
from .datasets import DataSets
from .options import TrainOptions
from .summary import trained_images

_SHARE = 0.8  # of the free memory: an estimate is not exact, and an evaluation has needs of its own
_MOST_TIMES = 8  # the configuration's batch: how far lr and schedule are trusted to follow
_FEWEST = 1000  # iterations that a larger batch must leave: a step of many images teaches little more than one of few
_USUAL_RATIO = 3 / 2  # of the sides of images whose sizes are not known
Size = tuple[int, int]


class _Need:
    """What a step of a process needs at its peak, by the images that pass at once, and what is free for it; bytes."""

    def __init__(
        self, options: TrainOptions, cfg: CfgNode, data: DataSets, model: torch.nn.Module, *, measured: bool
    ) -> None:
        self.size = largest_size(cfg, data, getattr(getattr(model, "backbone", None), "size_divisibility", 0))
        self.how, self.problem = "", ""  # the latter also once a step could not be measured
        on_gpu, ranks = cfg.MODEL.DEVICE.startswith("cuda"), options.num_gpus
        free = free_bytes_of_gpus(ranks) if on_gpu else free_bytes_of_machine()
        self.free = math.inf if free is None else free if on_gpu else free / ranks
        if on_gpu and measured:
            self.how = "measured"
            self.of: Callable[[int], float] = lambda images: self._measured(options, cfg, images)
        elif isinstance(model, FocalRetinaNet):
            self.how = "counted"
            try:
                step = count_step(cfg, model, self.size)
            except Exception as error:  # a backbone of one's own may do what cannot be counted
                self.problem = f"its step cannot be counted ({first_line(error)})"
                return
            # what a process loads is in the memory that is free only where it has yet to be started
            besides = own_bytes() if ranks > 1 and not on_gpu else 0
            self.of = lambda images: step.of(images) + besides
        else:
            self.problem = f"a step of {cfg.MODEL.META_ARCHITECTURE} is measured on a GPU alone"

    def _measured(self, options: TrainOptions, cfg: CfgNode, images: int) -> float:
        found = measure_step(cfg, absolute(options.plugin), images, self.size)
        self.free = self.free if found.free is None else found.free
        self.problem = f"a step of {counted(images, 'image')} fails ({found.failure})" if found.failure else ""
        return found.peak


def check_memory(options: TrainOptions, cfg: CfgNode, data: DataSets, model: torch.nn.Module) -> Findings:
    """Say how much memory a training step takes; warn where that is more than what is free, and of norms in parts."""
    if options.eval_only:
        return Findings()
    found, parts = Findings(warnings=_part_warnings(cfg, model)), cfg.MODEL.FOCAL_DET.ACCUMULATION
    need = _Need(options, cfg, data, model, measured=options.preflight_only)
    images = max(1, cfg.SOLVER.IMS_PER_BATCH // options.world_size // parts)
    bytes_needed = math.nan if need.problem else need.of(images)
    if need.problem:
        found.notes.append(f"memory: not known, since {need.problem}")
        return found
    where = "a GPU" if cfg.MODEL.DEVICE.startswith("cuda") else "this machine"
    of_each = "" if options.num_gpus == 1 else " for each process"
    at_once = f"{images} images of at most {need.size[1]}x{need.size[0]} px at once{of_each}"
    free = "" if math.isinf(need.free) else f", of {_gigabytes(need.free)} free on {where}{of_each}"
    line = f"{_amount(bytes_needed)} ({need.how}) for {at_once}{free}"
    found.notes.append(f"memory: {line}")
    if bytes_needed > need.free:
        fix = f"raise MODEL.FOCAL_DET.ACCUMULATION, which is {parts}" if images > 1 else "lower INPUT.MIN_SIZE_TRAIN"
        found.warnings.append(f"a training step may not fit into memory: {line}; {fix}, or try --batch auto")
    return found


def choose_batch(
    options: TrainOptions, cfg: CfgNode, data: DataSets, model: torch.nn.Module, recorded: int | None, written_for: int
) -> tuple[int, str]:
    """Choose SOLVER.IMS_PER_BATCH for --batch auto; return it with the reason.

    Args:
        recorded: the batch of the run that is resumed, which stays.
        written_for: the batch for which lr and schedule were written.
    """
    if recorded is not None:
        return recorded, f"--batch auto: {recorded} images a step, as the run that is resumed"
    parts = cfg.MODEL.FOCAL_DET.ACCUMULATION
    step = options.world_size * parts  # the batch of one image at once
    need = _Need(options, cfg, data, model, measured=True)
    if need.problem:
        return max(step, written_for // step * step), f"--batch auto: the configuration's batch, since {need.problem}"
    limit, why = _MOST_TIMES * written_for, f"{_MOST_TIMES} times the configuration's {written_for}"
    longest = max(written_for, cfg.SOLVER.MAX_ITER * written_for // _FEWEST)  # the schedule is not scaled yet
    if longest < limit:
        limit, why = longest, f"the configuration's {written_for}, or would leave fewer than {_FEWEST} iterations"
    images = trained_images(cfg, data.trained_on)
    if images and images_of_epoch(cfg, images) < limit:
        limit, why = images_of_epoch(cfg, images), "the images to train on"
    needed: dict[int, float] = {}

    def fits(count: int) -> bool:
        needed[count] = need.of(count)
        return math.isfinite(needed[count]) and needed[count] <= _SHARE * need.free

    count = largest_batch(fits, max(1, limit // step))
    batch = max(1, count) * step
    if count == 0 and need.problem:
        return max(step, written_for // step * step), f"--batch auto: the configuration's batch, since {need.problem}"
    each = "" if options.world_size == 1 else " for each process"
    free = ", and it is not known how much is free" if math.isinf(need.free) else f" of {_gigabytes(need.free)} free"
    takes = f"{batch} images a step take" if batch > 1 else "1 image a step takes"
    takes += f" {_amount(needed[max(1, count)])}{free}{each}"
    if count == 0:
        fix = f"not even {counted(step, 'image')} fit into {_SHARE:.0%} of that: lower INPUT.MIN_SIZE_TRAIN"
        return batch, f"--batch auto: {takes}; {fix}"
    if 2 * count in needed:
        why = f"{_SHARE:.0%} of that"
    return batch, f"--batch auto: {takes}; " + (need.problem or f"twice as many would be more than {why}")


def largest_size(cfg: CfgNode, data: DataSets, divisor: int) -> Size:
    """Return height and width, in pixels, of the largest batch that training images may make."""
    shorter, longest = max(cfg.INPUT.MIN_SIZE_TRAIN, default=0), cfg.INPUT.MAX_SIZE_TRAIN
    known = [s.content.objects.sizes for s in data.trained_on if s.content is not None]
    sizes = np.unique(np.concatenate([np.zeros((0, 2)), *known]), axis=0)
    if not len(sizes):
        shorter = shorter or 800
        sizes = np.array([(min(longest or np.inf, _USUAL_RATIO * shorter), shorter)])
    elif shorter:
        sizes = resized(sizes, shorter, longest)
    is_wide = sizes[:, 0] > sizes[:, 1]
    groups: Sequence[np.ndarray] = [sizes]
    if cfg.DATALOADER.ASPECT_RATIO_GROUPING:
        groups = [sizes[chosen] for chosen in (is_wide, ~is_wide) if chosen.any()]
    largest = max((group.max(axis=0) for group in groups), key=lambda size: float(size.prod()))
    step = max(1, divisor)
    width, height = (math.ceil(side / step) * step for side in largest.tolist())
    return height, width


def _part_warnings(cfg: CfgNode, model: torch.nn.Module) -> list[str]:
    """Warn where a batch in parts is not quite the batch in one pass."""
    parts = cfg.MODEL.FOCAL_DET.ACCUMULATION
    if parts == 1:
        return []
    found = []
    if any(isinstance(m, (torch.nn.BatchNorm2d, torch.nn.SyncBatchNorm)) for m in model.modules()):
        found.append(
            f"MODEL.FOCAL_DET.ACCUMULATION is {parts}, and the model has batch normalisation that is trained: it sees "
            "the images of a part, not of the batch; FrozenBN and GN make no difference between them"
        )
    if not isinstance(model, FocalRetinaNet):
        found.append(
            f"MODEL.FOCAL_DET.ACCUMULATION is {parts}, and MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE}: its "
            "loss is the mean of the parts' losses, each normalised by itself, which FocalRetinaNet's is not"
        )
    return found


def _amount(number: float) -> str:
    return "more than there is" if math.isinf(number) else f"about {_gigabytes(number)}"


def _gigabytes(number: float) -> str:
    return f"{number / 1e9:.1f} GB"
