"""Time of the class loss, forward and backward: ours, the plain formula, and fvcore's on one-hot targets.

    python benchmarks/class_loss.py [--anchors 364806] [--classes 80] [--repeats 5] [--json FILE]

The competitors take turns in one process, on the same logits; beside each time stands the largest error of its
gradient against the plain formula in float64. Ratios are to ours. Random logits around the prior, one anchor in a
thousand assigned, as early in training.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from figures import write_figures
from fvcore.nn import sigmoid_focal_loss
from torch import Tensor

from focal_det.losses import focal_loss, focal_loss_reference

Loss = Callable[[Tensor, Tensor], Tensor]


def detectron2_style(logits: Tensor, labels: Tensor) -> Tensor:
    """One-hot targets of the anchors that are not ignored, as Detectron2 makes them, then fvcore's loss."""
    kept = labels >= 0
    targets = F.one_hot(labels[kept], logits.shape[-1] + 1)[:, :-1]
    return sigmoid_focal_loss(logits[kept], targets.to(logits.dtype), alpha=0.25, gamma=2.0, reduction="sum")


COMPETITORS: dict[str, Loss] = {
    "focal_det": focal_loss,
    "plain formula": focal_loss_reference,
    "Detectron2 (fvcore, one-hot)": detectron2_style,
}


def gradient(loss: Loss, logits: Tensor, labels: Tensor) -> tuple[Tensor, float]:
    """The gradient by the logits, and the seconds that forward and backward took."""
    leaf = logits.detach().requires_grad_()
    start = time.perf_counter()
    (grad,) = torch.autograd.grad(loss(leaf, labels), leaf)
    return grad, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--anchors", type=int, default=2 * 182_403, help="two images of 800x1216 px")
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the figures there")
    args = parser.parse_args()

    torch.manual_seed(0)
    logits = torch.randn(args.anchors, args.classes) - 4.6
    labels = torch.full((args.anchors,), args.classes)
    labels[:: args.anchors // max(1, args.anchors // 1000)] = 0
    exact, _ = gradient(focal_loss_reference, logits.double(), labels)

    seconds: dict[str, list[float]] = {name: [] for name in COMPETITORS}
    errors = {}
    for turn in range(args.repeats + 1):  # the first turn warms up
        for name, loss in COMPETITORS.items():
            grad, elapsed = gradient(loss, logits, labels)
            if turn == 0:
                errors[name] = (grad - exact).abs().max().item()
            else:
                seconds[name].append(elapsed)

    medians = {name: statistics.median(times) for name, times in seconds.items()}
    ours = medians["focal_det"]
    print(f"{args.anchors} anchors x {args.classes} classes, float32, {torch.get_num_threads()} threads")
    print(f"{'':30} {'median s':>9} {'min':>7} {'max':>7} {'ratio':>7} {'gradient error':>15}")
    for name, times in seconds.items():
        row = f"{name:30} {medians[name]:9.3f} {min(times):7.3f} {max(times):7.3f} {medians[name] / ours:7.2f}"
        print(f"{row} {errors[name]:15.1e}")
    if args.json:
        write_figures(args.json, seconds=seconds, gradient_error=errors)


if __name__ == "__main__":
    main()
