"""Detectors' training step, inference or network alone: a process each, so that its peak memory is its own.

    python benchmarks/network.py --detector NAME ... --mode train|infer|network|floor [--images 2] [--size 800 1216] ...

The processes are forked, since to import what they need takes longer than to measure. Prints a JSON object for each:
seconds of each step, the peak memory, and what the correctness gate compares; or why it failed. "floor" is what the
arithmetic of one image takes at least. `speed.py` puts them side by side.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from detectron2.utils.events import EventStorage
from measure import launches_and_waits, peak_gigabytes, seconds
from peers import (
    SPEED_OPTIONS_OFF,
    detectron2_model,
    focal_det_model,
    for_torchvision,
    random_images,
    shapes_near,
    torchvision_model,
)
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

Batch = list[dict[str, Any]]
SPEED = "MODEL.FOCAL_DET.SPEED."
BFLOAT16 = (SPEED + "BFLOAT16_INFERENCE", "True")
# Name to what is built, and whether training is under bfloat16 autocast; our own inference has a key for it.
DETECTORS: dict[str, tuple[Callable[[torch.device, int], nn.Module], bool]] = {
    "Detectron2": (detectron2_model, False),
    "Detectron2 tuned, float32": (lambda d, k: detectron2_model(d, k).to(memory_format=torch.channels_last), False),
    "Detectron2 tuned, bfloat16": (lambda d, k: detectron2_model(d, k).to(memory_format=torch.channels_last), True),
    "torchvision": (torchvision_model, False),
    "torchvision, bfloat16": (lambda d, k: torchvision_model(d, k).to(memory_format=torch.channels_last), True),
    "focal_det, float32": (focal_det_model, False),
    "focal_det, bfloat16": (lambda d, k: focal_det_model(d, k, *BFLOAT16), True),
    # the speed options
    "none": (lambda d, k: focal_det_model(d, k, *SPEED_OPTIONS_OFF), False),
    "channels last": (lambda d, k: focal_det_model(d, k, SPEED + "FOLD_NORMS", "False"), False),
    "folded norms": (lambda d, k: focal_det_model(d, k, SPEED + "CHANNELS_LAST", "False"), False),
    "both (the default)": (focal_det_model, False),
    "both, fused SGD": (focal_det_model, False),
    "both, torch.compile": (lambda d, k: focal_det_model(d, k, SPEED + "COMPILE", "True"), False),
    "both, bfloat16": (lambda d, k: focal_det_model(d, k, *BFLOAT16), True),
    "both, Triton": (lambda d, k: focal_det_model(d, k, SPEED + "TRITON", "True"), False),
}
# "focal_det bf16 TRITON COMPILE GRAPHS" and parts of it: on a GPU each alone and together.
_KEYS = {"TRITON": "TRITON", "COMPILE": "COMPILE", "GRAPHS": "CUDA_GRAPHS"}


def with_keys(*words: str) -> tuple[Callable[[torch.device, int], nn.Module], bool]:
    """Return what builds the detector of these words, all other speed options off, and whether it is bfloat16."""
    keys = [x for word, key in _KEYS.items() for x in (SPEED + key, str(word in words))]
    is_bfloat16 = "bf16" in words
    return lambda d, k: focal_det_model(d, k, *keys, *(BFLOAT16 if is_bfloat16 else ())), is_bfloat16


DETECTORS |= {
    " ".join(("focal_det", *words)): with_keys(*words)
    for number in (["fp32"], ["bf16"])
    for some in itertools.product(*(("", word) for word in _KEYS))
    for words in [[*number, *filter(None, some)]]
}


def train(model: nn.Module, name: str, batches: list[Batch], device: torch.device, repeats: int) -> dict:
    """Time forward, backward and update; return also the losses of all shapes, with the first weights.

    They are computed after the steps, when graphs are captured and code is compiled.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-4, momentum=0.9, fused=True if name == "both, fused SGD" else None)
    inputs = [for_torchvision(model, b, device) if name.startswith("torchvision") else (b,) for b in batches]
    turns = itertools.cycle(inputs)
    first = {key: value.to("cpu", copy=True) for key, value in model.state_dict().items()}  # not of the GPU's memory

    def step() -> None:
        optimizer.zero_grad()
        with _autocast(name, device):
            losses = model(*next(turns))
        sum(losses.values()).backward()
        optimizer.step()

    gate = {}
    with EventStorage():
        times = in_a_row(step, device, repeats, len(batches))
        model.load_state_dict(first)
        if hasattr(model, "loss_normalizer"):
            model.loss_normalizer = 100  # Detectron2's moving average, as it begins
        for place, one in enumerate(inputs):
            with _autocast(name, device):
                gate |= {f"{key} {place}": value.item() for key, value in model(*one).items()}
    return times | {"gate": gate}


@torch.no_grad()
def infer(model: nn.Module, name: str, batches: list[Batch], device: torch.device, repeats: int) -> dict:
    """Time detection; return also the detections of the last call."""
    model.eval()
    _spread_scores(model)
    (batch,) = batches
    inputs = for_torchvision(model, batch, device)[:1] if name.startswith("torchvision") else (batch,)
    results: list[Any] = []

    def call() -> None:
        with contextlib.nullcontext() if name.startswith("focal_det") else _autocast(name, device):
            results[:] = model(*inputs)

    times = in_a_row(call, device, repeats, len(batches))
    if name.startswith("torchvision"):
        return times | {"gate": None}
    found = [result["instances"] for result in results]
    gate = [
        {"boxes": x.pred_boxes.tensor.tolist(), "scores": x.scores.tolist(), "classes": x.pred_classes.tolist()}
        for x in found
    ]
    return times | {"gate": gate}


@torch.no_grad()
def network(model: nn.Module, name: str, batches: list[Batch], device: torch.device, repeats: int) -> dict:
    """Time the network of our detector alone, without what comes before and after."""
    (batch,) = batches
    images = model.eval()._preprocess(batch).tensor

    def call() -> None:
        with _autocast(name, device):
            model.runner(images)

    return in_a_row(call, device, repeats, 1) | {"gate": None}


def floor(model: nn.Module, name: str, batches: list[Batch], device: torch.device, repeats: int) -> dict:
    """Return the floating-point operations for one image and how many a second a large product reaches, in 10^12."""
    images = torch.empty(1, 3, *batches[0][0]["image"].shape[-2:], device="meta")
    model.to("meta")
    with FlopCounterMode(display=False) as forward:
        levels = [level for part in model.network(images) for level in part]
    with FlopCounterMode(display=False) as backward:
        sum(level.sum() for level in levels).backward()
    factor = torch.randn(*[8192 if device.type == "cuda" else 512] * 2, device=device, dtype=torch.bfloat16)
    best = min(seconds(lambda: factor @ factor, device) for _ in range(10))
    counts = [count.get_total_flops() / 1e12 for count in (forward, backward)]
    return {"infer": counts[0], "train": sum(counts), "per_s": 2 * len(factor) ** 3 / best / 1e12}


MODES = {"train": train, "infer": infer, "network": network, "floor": floor}


def in_a_row(step: Callable[[], None], device: torch.device, repeats: int, shapes: int) -> dict[str, Any]:
    """Time steps as a training does them, on a GPU back to back, after each shape has come three times.

    Returns "first_s" and "s", seconds of the first step and of a later one; on a GPU "launches" and "waits" of a step.
    """
    first = seconds(step, device)
    is_gpu = device.type == "cuda"
    steps = 12 * shapes if is_gpu else shapes
    for _ in range(3 * shapes if is_gpu else shapes - 1):
        step()
    times = [seconds(lambda: [step() for _ in range(steps)], device) / steps for _ in range(repeats)]
    return {"first_s": first, "s": times, **(launches_and_waits(step) if is_gpu else {})}


def _spread_scores(model: nn.Module) -> None:
    """Spread the untrained scores, all near .01, so far that some thousand pass the threshold of .05."""
    head = model.head
    scores = head.cls_score if hasattr(head, "cls_score") else head.classification_head.cls_logits
    scores.weight.mul_(3.6)


def _autocast(name: str, device: torch.device) -> contextlib.AbstractContextManager:
    _, is_bfloat16 = DETECTORS[name]
    return torch.autocast(device.type, dtype=torch.bfloat16) if is_bfloat16 else contextlib.nullcontext()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detector", required=True, nargs="+", choices=DETECTORS)
    parser.add_argument("--mode", required=True, choices=MODES)
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--size", type=int, nargs=2, default=[800, 1216])
    parser.add_argument("--shapes", type=int, default=1, help="of training images, in turns")
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()

    for name in args.detector:
        child = os.fork()  # this process has used neither the GPU nor PyTorch's threads
        if child == 0:
            in_child(args, name)
        _, status = os.waitpid(child, 0)
        if code := os.waitstatus_to_exitcode(status):  # negative: a signal's number
            print(json.dumps({"detector": name, "failed": f"ended with exit code {code}"}), flush=True)


def in_child(args: argparse.Namespace, name: str) -> NoReturn:
    """Measure one detector, print it, and end this process."""
    try:
        device = torch.device(args.device)
        build, _ = DETECTORS[name]
        sizes = itertools.islice(shapes_near(tuple(args.size)), args.shapes)
        batches = [random_images(args.images, size, args.classes) for size in sizes]
        found = MODES[args.mode](build(device, args.classes), name, batches, device, args.repeats)
        found["peak_gb"] = peak_gigabytes(device)
    except Exception as error:  # as for want of memory: the others still tell
        traceback.print_exc()
        found = {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    print(json.dumps({"detector": name} | found), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
