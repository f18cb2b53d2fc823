"""Time and memory of OHEM's selection at full size, and that its cuts leave the result as suppressing all would.

    python benchmarks/hard_examples.py [--uncut] [--json FILE]

Two images of 800 x 1344 px with the paper's anchors, 201,600 each, and 80 classes. "early": random logits around the
prior, where positives have the highest losses. "late": positives are learnt, and their losses lie anywhere among the
negatives'. "deep": they lie below all negatives, the worst case of OHEM 1:3. With --uncut torchvision's NMS goes over
all anchors of one image for comparison, which takes minutes. Memory is by how much the process
grew at most; Linux only.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from figures import write_figures
from torch import Tensor
from torchvision.ops import nms

from focal_det.losses import cross_entropy_loss, select_hard_examples
from focal_det.modeling.anchors import cell_anchors, grid_anchors

HEIGHT, WIDTH, CLASSES, POSITIVES, ROWS = 800, 1344, 80, 300, 8192


def paper_anchors() -> Tensor:
    """Return the anchors (201600, 4) of P3 to P7, three scales and three ratios."""
    levels = []
    for stride in (8, 16, 32, 64, 128):
        cells = cell_anchors(4.0 * stride, 3, (0.5, 1.0, 2.0))
        levels.append(grid_anchors(cells, -(-HEIGHT // stride), -(-WIDTH // stride), stride, 0.0))
    return torch.cat(levels)


def scores(logits: Tensor, labels: Tensor) -> Tensor:
    parts = zip(logits.split(ROWS), labels.split(ROWS), strict=True)
    return torch.cat([cross_entropy_loss(*rows, reduction="none").sum(dim=1) for rows in parts])


def losses_of(case: str, scored: Tensor, positives: Tensor) -> Tensor:
    losses = scored.clone()
    if case == "late":
        losses[positives] = scored[torch.randperm(len(scored))[: len(positives)]]
    elif case == "deep":
        losses[positives] = scored.min() - torch.rand(len(positives))
    return losses


def uncut(
    losses: Tensor, boxes: Tensor, labels: Tensor, *, batch_size: int, nms_threshold: float, positive_fraction: Any
) -> Tensor:
    """Suppress all, then take the minibatch."""
    rounded = torch.tensor(nms_threshold, dtype=torch.float32).item()  # as the IoUs that it is compared with
    survivors = nms(boxes, losses, rounded)
    if positive_fraction is None:
        return survivors[:batch_size]
    is_positive = labels[survivors] < CLASSES
    positives = survivors[is_positive][: int(batch_size * positive_fraction)]
    negatives = survivors[~is_positive][: 3 * len(positives)]
    return survivors[torch.isin(survivors, torch.cat([positives, negatives]))]


def memory_mib(name: str) -> float:
    """Read VmRSS, what the process holds, or VmHWM, the most it has held since the last reset, on Linux."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{name}:")[1].split()[0]) / 1024


def measured(work: Callable[[], list[Tensor]]) -> tuple[list[Tensor], float, float]:
    """Return what the work returns, its seconds, and by how many MiB the process grew at most."""
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before, start = memory_mib("VmRSS"), time.perf_counter()
    result = work()
    return result, time.perf_counter() - start, memory_mib("VmHWM") - before


def select_all(losses: list[Tensor], boxes: Tensor, images: list[Any], options: dict[str, Any]) -> list[Tensor]:
    return [
        select_hard_examples(of_image, boxes, labels, num_classes=CLASSES, **options)
        for of_image, (_, labels, _) in zip(losses, images, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--uncut", action="store_true", help="also suppress all anchors of one image, and compare")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    args = parser.parse_args()

    torch.manual_seed(0)
    boxes = paper_anchors()
    count = len(boxes)
    images = []
    for _ in range(2):
        labels = torch.full((count,), CLASSES)
        positives = torch.randperm(count)[:POSITIVES]
        labels[positives] = torch.randint(CLASSES, (POSITIVES,))
        images.append((torch.randn(count, CLASSES) - 4.6, labels, positives))
    scores(images[0][0][:ROWS], images[0][1][:ROWS])  # warms up

    scored, seconds, memory = measured(lambda: [scores(logits, labels) for logits, labels, _ in images])
    scoring = {"seconds": seconds, "mib": memory}
    print(f"{count} anchors x {CLASSES} classes, 2 images, {torch.get_num_threads()} threads")
    print(f"scoring by cross-entropy: {seconds:.3f} s, {memory:.0f} MiB\n")

    rows = []
    print("| case | miner | batch | nms | seconds, 2 images | MiB | kept | uncut, 1 image |\n|" + "---|" * 8)
    for case in ("early", "late", "deep"):
        losses = [losses_of(case, s, positives) for s, (_, _, positives) in zip(scored, images, strict=True)]
        for threshold in (0.5, 0.6, 0.7):
            for fraction, batch in ((None, 128), (None, 512), (0.25, 128), (0.25, 512)):
                options = {"batch_size": batch, "nms_threshold": threshold, "positive_fraction": fraction}
                kept, seconds, memory = measured(functools.partial(select_all, losses, boxes, images, options))
                comparison = "not run"
                if args.uncut and batch == 512 and case == "deep" and (threshold < 0.7 or fraction):
                    start = time.perf_counter()
                    expected = uncut(losses[0], boxes, images[0][1], **options)
                    same = "equal" if torch.equal(expected, kept[0]) else "DIFFERENT"
                    comparison = f"{same}, {time.perf_counter() - start:.1f} s"
                miner = "OHEM" if fraction is None else "OHEM 1:3"
                rows.append(
                    {
                        "case": case,
                        "miner": miner,
                        **options,
                        "seconds": seconds,
                        "mib": memory,
                        "kept": [len(k) for k in kept],
                        "uncut": comparison,
                    }
                )
                print(
                    f"| {case} | {miner} | {batch} | {threshold} | {seconds:.3f} | {memory:.0f} | "
                    f"{', '.join(str(len(k)) for k in kept)} | {comparison} |",
                    flush=True,
                )
    if args.json:
        write_figures(args.json, scoring=scoring, rows=rows)


if __name__ == "__main__":
    main()
