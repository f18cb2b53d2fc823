"""How much memory a training step takes: counted from the tensors that autograd keeps, or measured on a GPU."""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef

from ..config.plugins import load_plugins
from ..errors import first_line, is_out_of_memory
from ..modeling.retinanet import FocalRetinaNet
from ..tracking.writers import peak_bytes

# Copies of the logits, in float32, that the class loss makes on a GPU without Triton's kernels. Measured in an earlier
# form on an H200, 16 images of 800x1216 px, 80 classes: a step took 17.0 GB in float32, 12.1 in bfloat16, 6.6 with it.
_COPIES_IN_LOSS = 6
_OBJECTS = 8  # in each image of a measured step


class StepMemory(NamedTuple):
    """Bytes of a step: of weights, their EMA, gradients and momentum, and of each image that passes at once."""

    fixed: int
    per_image: int

    def of(self, images: int) -> int:
        """Return the bytes for so many images."""
        return self.fixed + images * self.per_image


def count_step(cfg: CfgNode, model: FocalRetinaNet, size: Sequence[int]) -> StepMemory:
    """Count what a step needs by the sizes of tensors, of which none is computed or allocated.

    Args:
        model: of the configuration, on a processor; it stays as it is.
        size: height and width of the largest batch, in pixels.
    """
    one, two = (_kept_by_network(cfg, model, (images, 3, *size)) for images in (1, 2))
    copies = 2 if cfg.MODEL.FOCAL_DET.EMA.DECAY else 1
    weights = copies * sum(p.nbytes for p in model.parameters())
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)  # their gradients, and the momentum
    return StepMemory(weights + 2 * trained + max(0, 2 * one - two), two - one)


def _kept_by_network(cfg: CfgNode, model: FocalRetinaNet, shape: Sequence[int]) -> int:
    """Return the bytes alive at the end of a forward pass: what autograd keeps, and the logits with their gradient."""
    kept: dict[StorageWeakRef, int] = {}
    fake = FakeTensorMode()
    network = _Network(model)
    tensors: dict[str, Tensor] = {
        name: fake.from_tensor(x) for name, x in [*network.named_parameters(), *network.named_buffers()]
    }
    own = {StorageWeakRef(x.untyped_storage()) for x in tensors.values()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if (key := StorageWeakRef(storage)) not in own:
            kept[key] = storage.nbytes()
        return tensor

    amp = cfg.SOLVER.AMP
    dtype = torch.bfloat16 if amp.DTYPE == "bfloat16" else torch.float16
    precision = torch.autocast("cpu", dtype) if amp.ENABLED else nullcontext()
    was_training = model.training
    try:
        model.train()
        with fake, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), precision:
            images = model.padding.pad(torch.empty(shape).contiguous(memory_format=model.memory_format))
            logits, deltas = torch.func.functional_call(network, tensors, (images,))
    finally:
        model.train(was_training)
    outputs = sum(2 * x.nbytes for x in (*logits, *deltas))
    if cfg.MODEL.DEVICE.startswith("cuda") and not cfg.MODEL.FOCAL_DET.SPEED.TRITON:
        outputs += sum(_COPIES_IN_LOSS * 4 * x.numel() for x in logits)
    return sum(kept.values()) + outputs


class _Network(nn.Module):
    """A detector's network as a module."""

    def __init__(self, model: FocalRetinaNet) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Any:
        return self.model.network(images)


class Measured(NamedTuple):
    """The memory of a step, in bytes.

    peak: infinite if there was not enough memory, or the step failed.
    free: what was free before it; None if the process that was to say it was killed.
    failure: the first line of an error that is none of memory; "" if there was none.
    """

    peak: float
    free: float | None
    failure: str = ""


def measure_step(cfg: CfgNode, plugins: Sequence[str], images: int, size: Sequence[int]) -> Measured:
    """Do two steps with generated images in a process of their own, which leaves the device as it was.

    `images` pass at once, of a batch in as many parts as MODEL.FOCAL_DET.ACCUMULATION says. On a GPU the peak is that
    of PyTorch's tensors, `torch.cuda.max_memory_allocated`; on a processor that of the whole process.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        try:
            return process.submit(_measure, cfg, tuple(plugins), images, (size[0], size[1])).result()
        except BrokenProcessPool:  # by the system, for the memory of the machine
            return Measured(math.inf, None)


def _measure(cfg: CfgNode, plugins: Sequence[str], images: int, size: tuple[int, int]) -> Measured:
    from .train_step import step_class
    from .trainer import Trainer
    from .weight_average import WeightAverage

    load_plugins(plugins)
    on_gpu = cfg.MODEL.DEVICE.startswith("cuda")
    free = float(torch.cuda.mem_get_info(cfg.MODEL.DEVICE)[0]) if on_gpu else math.inf
    try:
        model, decay = Trainer.build_model(cfg), cfg.MODEL.FOCAL_DET.EMA.DECAY
        average = WeightAverage(model, decay) if decay else None  # whose memory a training holds beside its own
        parts = cfg.MODEL.FOCAL_DET.ACCUMULATION
        batch = [_generated_image(size, seed) for seed in range(images * parts)]
        optimizer = Trainer.build_optimizer(cfg, model)
        for group in optimizer.param_groups:
            group["lr"] = 0.0  # else weights that are not the run's may diverge
        step = step_class(cfg)(model, [batch] * 2, optimizer, is_due=lambda _: False, parts=parts)
        with EventStorage():
            for step.iter in range(2):  # the first has no momentum yet
                step.run_step()
                if average:
                    average.update(model)
    except Exception as error:  # of a backbone or loss of one's own, too
        return Measured(math.inf, free, "" if is_out_of_memory(error) else first_line(error))
    return Measured(float(peak_bytes(torch.device(cfg.MODEL.DEVICE))), free)


def _generated_image(size: tuple[int, int], seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    height, width = size
    corners = torch.rand(_OBJECTS, 2, generator=generator) * torch.tensor([width, height]) / 2
    instances = Instances(size)
    instances.gt_boxes = Boxes(torch.cat([corners, corners + torch.tensor([width, height]) / 4], dim=1))
    instances.gt_classes = torch.zeros(_OBJECTS, dtype=torch.int64)
    image = torch.randint(256, (3, *size), generator=generator, dtype=torch.uint8)
    return {"image": image, "instances": instances, "height": height, "width": width, "file_name": "generated"}


def largest_batch(fits: Callable[[int], bool], most: int) -> int:
    """Return the largest power of two, up to `most`, of which and below which all fit; 0 if not even 1 does."""
    images = 0
    while (following := max(1, 2 * images)) <= most and fits(following):
        images = following
    return images
