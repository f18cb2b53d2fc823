"""How the parts grow: the loss with its logits, assignment with anchors and objects, post-processing with K.

    python benchmarks/growth.py [--repeats 5] [--device cpu]

Prints one JSON object of [size, seconds] pairs, the least of the repeats; `report.py` draws them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

import torch
from measure import in_turns
from torch import Tensor

from focal_det.assigners.iou import assign_by_iou
from focal_det.losses import focal_loss
from focal_det.modeling.decode import decode_detections

DECODING = {"score_thresh": 0.05, "topk_per_level": 1000, "nms_thresh": 0.5, "max_detections": 100}


def boxes(count: int, device: torch.device) -> Tensor:
    corners = torch.rand(count, 2, device=device) * 1000
    return torch.cat([corners, corners + torch.rand(count, 2, device=device) * 300 + 16], dim=1)


def loss(elements: int, device: torch.device) -> Callable[[], None]:
    logits = (torch.randn(elements // 80, 80, device=device) - 4.6).requires_grad_()
    labels = torch.full((elements // 80,), 80, device=device)
    labels[::1000] = 0

    def run() -> None:
        logits.grad = None
        focal_loss(logits, labels).backward()

    return run


def assignment(anchors: int, objects: int, device: torch.device) -> Callable[[], None]:
    places, gt_boxes = boxes(anchors, device), boxes(objects, device)[None]
    classes = torch.zeros(1, objects, dtype=torch.int64, device=device)

    def run() -> None:
        assign_by_iou([places], gt_boxes, classes, num_classes=80)

    return run


def decoding(num_classes: int, device: torch.device) -> Callable[[], None]:
    """Return a call that decodes 50,000 anchors, 2,000 of which score for one class."""
    anchors = boxes(50_000, device)
    logits = torch.full((1, 50_000, num_classes), -5.0, device=device)
    logits[0, torch.arange(0, 50_000, 25), torch.randint(num_classes, (2000,))] = torch.randn(2000, device=device)
    deltas = torch.zeros(1, 50_000, 4, device=device)

    def run() -> None:
        decode_detections([logits], [deltas], [anchors], [(1300, 1300)], box_weights=(1, 1, 1, 1), **DECODING)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    device = torch.device(args.device)
    torch.manual_seed(0)
    series = {
        "class loss, by logits": {n: loss(n, device) for n in (10**6, 3 * 10**6, 10**7, 3 * 10**7)},
        "assignment, by anchors (20 objects)": {n * 1000: assignment(n * 1000, 20, device) for n in (25, 50, 100, 200)},
        "assignment, by objects (100,000 anchors)": {n: assignment(100_000, n, device) for n in (5, 20, 80, 320)},
        "post-processing, by classes": {n: decoding(n, device) for n in (3, 20, 80, 264)},
    }
    found = {}
    for name, runs in series.items():
        times = in_turns({str(n): run for n, run in runs.items()}, device, args.repeats)
        found[name] = [[n, times[str(n)]["min"]] for n in runs]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
