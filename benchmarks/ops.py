"""The parts beside the convolutions, from the head's outputs on: losses, assignment, post-processing.

    python benchmarks/ops.py [--images 2] [--size 800 1216] [--classes 80] [--dtype bfloat16] [--busy] [--trained FILE]

Every competitor gets the same values in the layout that its own head returns, and takes turns with the others in one
process. Beside each time stands the memory beyond the inputs' and how far the result is from a reference: the plain
formula in float64 for losses, Detectron2's labels and detections for the rest. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.structures import Boxes, ImageList
from detectron2.utils.events import EventStorage
from measure import extra_megabytes, in_turns
from peers import detectron2_model, focal_det_model, random_images, torchvision_model
from torch import Tensor

from focal_det.assigners.assignment import pad_objects
from focal_det.losses import focal_loss_reference
from focal_det.losses.focal import focal_formula
from focal_det.losses.fused import batch_loss
from focal_det.losses.triton_loss import triton_missing
from focal_det.modeling.decode import decode_detections

STRIDES = (8, 16, 32, 64, 128)
ANCHORS = 9  # per location


class Scene:
    """Images' objects, the head's outputs for them in every layout, and the detectors whose parts are timed."""

    def __init__(self, images: int, size: tuple[int, int], num_classes: int, device: torch.device) -> None:
        torch.manual_seed(0)
        self.device, self.num_classes, self.image_sizes = device, num_classes, [size] * images
        self.ours = focal_det_model(device, num_classes)
        self.detectron2 = detectron2_model(device, num_classes)
        self.torchvision = torchvision_model(device, num_classes)
        instances = [x["instances"] for x in random_images(images, size, num_classes)]
        self.instances = [x.to(device) for x in instances]
        self.objects = pad_objects([x.gt_boxes.tensor for x in self.instances], [x.gt_classes for x in self.instances])
        self.features = [torch.zeros(images, 1, -(-size[0] // s), -(-size[1] // s), device=device) for s in STRIDES]
        self.anchors = self.detectron2.anchor_generator(self.features)
        self.labels, self.matched = self.ours.criterion.assign([Boxes.cat(self.anchors).tensor], *self.objects)
        # Around the prior, as early in training.
        self.logits = [self._outputs(f, num_classes) - 4.6 for f in self.features]
        self.deltas = [self._outputs(f, 4) * 0.1 for f in self.features]

    def _outputs(self, feature: Tensor, channels: int) -> Tensor:
        """Return (N, A*c, H, W) of one level."""
        return torch.randn(len(feature), ANCHORS * channels, *feature.shape[-2:], device=self.device)

    def nchw(self, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
        """Return them as Detectron2's head does; leaves that take a gradient."""
        logits, deltas = ([x.to(dtype, copy=True).requires_grad_() for x in y] for y in (self.logits, self.deltas))
        return logits, deltas

    def channels_last(self, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
        """Return them as our head does."""
        layout = {"dtype": dtype, "memory_format": torch.channels_last, "copy": True}
        logits, deltas = ([x.to(**layout).requires_grad_() for x in y] for y in (self.logits, self.deltas))
        return logits, deltas

    def rows(self, levels: list[Tensor], channels: int) -> list[Tensor]:
        """Return (N, H, W, A, c) views of channels_last outputs."""
        return [level.unflatten(1, (-1, channels)).permute(0, 3, 4, 1, 2) for level in levels]


def losses(scene: Scene, repeats: int, dtype: torch.dtype) -> dict[str, Any]:
    """Time class and box loss with the labels given, forward and backward."""
    runs, normalizers, nchw, last = _loss_runs(scene, dtype)
    with EventStorage():
        result = in_turns({name: _from_zero(run, nchw, last) for name, run in runs.items()}, scene.device, repeats)
        exact = _exact_gradient(scene, scene.labels)
        box_gradients: Tensor | None = None
        for name, run in runs.items():
            _clear(nchw, last)
            result[name]["extra_mb"] = extra_megabytes(run, scene.device)
            logits, deltas = nchw if name in ("Detectron2", "torchvision") else last
            divisors = normalizers[name]().view(-1, 1, 1)
            # compared as sums, without each detector's own normaliser
            class_error = _largest_error(_gradients(logits, scene.num_classes) * divisors, exact)
            box_gradient = _gradients(deltas, 4) * divisors
            box_gradients = box_gradient if box_gradients is None else box_gradients
            result[name]["error"] = max(class_error, _largest_error(box_gradient, box_gradients))
    gate = 2.0**-7 if dtype == torch.bfloat16 else 2e-6
    check({name: one["error"] for name, one in result.items()}, gate, "losses")
    return {"unit": "largest error of a gradient, in the largest gradient", "competitors": result}


Runs = dict[str, Callable[[], None]]
Leaves = tuple[list[Tensor], list[Tensor]]


def _loss_runs(scene: Scene, dtype: torch.dtype) -> tuple[Runs, dict[str, Callable[[], Tensor]], Leaves, Leaves]:
    """Return each competitor, the divisors (N,) of its normaliser, and the two layouts of the head's outputs."""
    labels, matched, anchors = scene.labels, scene.matched, Boxes.cat(scene.anchors).tensor
    their_labels, their_boxes = scene.detectron2.label_anchors(scene.anchors, scene.instances)
    their_matches = [_torchvision_matches(x, y, scene.num_classes) for x, y in zip(labels, matched, strict=True)]
    targets = [{"boxes": x.gt_boxes.tensor, "labels": x.gt_classes} for x in scene.instances]
    nchw, last = scene.nchw(dtype), scene.channels_last(dtype)
    is_object = (labels >= 0) & (labels < scene.num_classes)
    divisors = is_object.sum().clamp(min=1).float().expand(len(labels))
    compiled = torch.compile(dense_focal_loss)

    def box_loss() -> Tensor:
        deltas = torch.cat([level.flatten(1, -2) for level in scene.rows(last[1], 4)], dim=1)
        sums = scene.ours.criterion._box_sums(deltas, anchors, labels, scene.objects[0], matched)
        return (sums / divisors).sum()

    def ours(use_triton: bool = False) -> None:
        levels = scene.rows(last[0], scene.num_classes)
        class_loss = batch_loss(levels, labels, divisors, focal_formula(0.25, 2.0), use_triton=use_triton)
        (class_loss + box_loss()).backward()

    def dense_compiled() -> None:
        (compiled(scene.rows(last[0], scene.num_classes), labels) / divisors[0] + box_loss()).backward()

    def detectron2() -> None:
        logits, deltas = scene.detectron2._transpose_dense_predictions(list(nchw), [scene.num_classes, 4])
        found = scene.detectron2.losses(scene.anchors, logits, their_labels, deltas, their_boxes)
        sum(found.values()).backward()

    def torchvision() -> None:
        outputs = {
            "cls_logits": torch.cat(_transposed(nchw[0], scene.num_classes), dim=1),
            "bbox_regression": torch.cat(_transposed(nchw[1], 4), dim=1),
        }
        found = scene.torchvision.head.compute_loss(targets, outputs, [anchors] * len(labels), their_matches)
        sum(found.values()).backward()

    runs: Runs = {"focal_det": ours, "Detectron2": detectron2, "torchvision": torchvision}
    runs["dense masks, torch.compile"] = dense_compiled
    normalizers = {
        **dict.fromkeys(("focal_det", "dense masks, torch.compile", "focal_det, Triton"), lambda: divisors),
        "Detectron2": lambda: divisors / divisors * scene.detectron2.loss_normalizer,
        "torchvision": lambda: is_object.sum(dim=1).clamp(min=1) * len(labels),
    }
    if triton_missing(scene.device) is None:
        runs["focal_det, Triton"] = lambda: ours(use_triton=True)
    return runs, normalizers, nchw, last


def check(errors: dict[str, float], allowed: float, what: str) -> None:
    """Stop the benchmark where a competitor computes something else."""
    wrong = {name: error for name, error in errors.items() if not error <= allowed}
    if wrong:
        raise SystemExit(f"{what}: {wrong}, but at most {allowed} is allowed: these times compare different things")


def _from_zero(run: Callable[[], None], *leaves: tuple[list[Tensor], list[Tensor]]) -> Callable[[], None]:
    """Wrap a call so that it starts without the gradients of the one before."""

    def fresh() -> None:
        _clear(*leaves)
        run()

    return fresh


def _clear(*leaves: tuple[list[Tensor], list[Tensor]]) -> None:
    for pair in leaves:
        for level in (*pair[0], *pair[1]):
            level.grad = None


def dense_focal_loss(levels: list[Tensor], labels: Tensor) -> Tensor:
    """The loss as written for torch.compile to fuse: masks instead of gathers, autograd's gradient."""
    total = torch.zeros((), device=labels.device)
    for level, of_level in zip(levels, labels.split([x[0, ..., 0].numel() for x in levels], dim=1), strict=True):
        own = of_level.view(level.shape[:-1]).unsqueeze(-1)  # (N, H, W, A, 1)
        is_own = own == torch.arange(level.shape[-1], device=level.device)
        z = torch.where(is_own, level.float(), -level.float())
        loss = torch.where(is_own, 0.25, 0.75) * torch.sigmoid(-z) ** 2 * -F.logsigmoid(z)
        total = total + torch.where(own >= 0, loss, 0.0).sum()
    return total


def _exact_gradient(scene: Scene, labels: Tensor) -> Tensor:
    """Return the gradient (N, R, K) of the summed class loss in float64."""
    logits = torch.cat(_transposed(scene.logits, scene.num_classes), dim=1)
    grads = []
    for image_logits, image_labels in zip(logits, labels, strict=True):
        leaf = image_logits.double().requires_grad_()
        grads.append(torch.autograd.grad(focal_loss_reference(leaf, image_labels), leaf)[0])
    return torch.stack(grads)


def _gradients(leaves: list[Tensor], channels: int) -> Tensor:
    """Return (N, R, c) in float64."""
    return torch.cat(_transposed([level.grad for level in leaves], channels), dim=1).double()


def _largest_error(found: Tensor, exact: Tensor) -> float:
    return ((found - exact).abs().max() / exact.abs().max()).item()


def _transposed(levels: list[Tensor], channels: int) -> list[Tensor]:
    return [
        level.unflatten(1, (-1, channels)).permute(0, 3, 4, 1, 2).reshape(len(level), -1, channels) for level in levels
    ]


def _torchvision_matches(labels: Tensor, matched: Tensor, num_classes: int) -> Tensor:
    """Return the index of the object, -1 for background, -2 for ignored."""
    is_object = (labels >= 0) & (labels < num_classes)
    return torch.where(is_object, matched, torch.where(labels < 0, -2, -1))


def assignment(scene: Scene, repeats: int) -> dict[str, Any]:
    """Time the labels of every anchor."""
    anchors = Boxes.cat(scene.anchors).tensor
    boxes, classes = [x.gt_boxes.tensor for x in scene.instances], [x.gt_classes for x in scene.instances]
    found: dict[str, Any] = {}

    def ours() -> None:
        gt_boxes, gt_classes = pad_objects(boxes, classes)
        labels, matched = scene.ours.criterion.assign([anchors], gt_boxes, gt_classes)
        gt_boxes.gather(1, matched.unsqueeze(-1).expand(-1, -1, 4))  # the others give every anchor its box
        found["focal_det"] = list(labels)

    def detectron2() -> None:
        found["Detectron2"] = scene.detectron2.label_anchors(scene.anchors, scene.instances)[0]

    def torchvision() -> None:
        from torchvision.ops import box_iou

        matches = [scene.torchvision.proposal_matcher(box_iou(gt, anchors)) for gt in boxes]
        for m, gt in zip(matches, boxes, strict=True):
            gt[m.clamp(min=0)]
        found["torchvision"] = [
            torch.where(m >= 0, x.gt_classes[m.clamp(min=0)], torch.where(m == -2, -1, scene.num_classes))
            for m, x in zip(matches, scene.instances, strict=True)
        ]

    runs = {"focal_det": ours, "Detectron2": detectron2, "torchvision": torchvision}
    result = in_turns(runs, scene.device, repeats)
    for name, run in runs.items():
        result[name]["extra_mb"] = extra_megabytes(run, scene.device)
        result[name]["error"] = sum(int((x != y).sum()) for x, y in zip(found[name], found["Detectron2"], strict=True))
    check({name: one["error"] for name, one in result.items()}, 0, "labels")
    return {"unit": "labels that differ from Detectron2's", "competitors": result}


def post_processing(scene: Scene, trained: Path, repeats: int) -> dict[str, Any]:
    """Time the way from head outputs to detections, on logits and deltas of a trained model for real images."""
    outputs = torch.load(trained, map_location=scene.device)
    logits = [level[: len(scene.image_sizes)] for level in outputs["logits"]]
    deltas = [level[: len(scene.image_sizes)] for level in outputs["deltas"]]
    last = [[x.contiguous(memory_format=torch.channels_last) for x in levels] for levels in (logits, deltas)]
    anchors = scene.detectron2.anchor_generator(logits)
    images = ImageList(torch.zeros(len(scene.image_sizes), 3, 1, 1, device=scene.device), scene.image_sizes)
    all_anchors = Boxes.cat(anchors).tensor
    found: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {}

    def ours() -> None:
        views = [[x.flatten(1, -2) for x in scene.rows(last[0], scene.num_classes)]]
        views.append([x.flatten(1, -2) for x in scene.rows(last[1], 4)])
        levels = [x.tensor for x in anchors]
        found["focal_det"] = decode_detections(*views, levels, scene.image_sizes, **scene.ours.decoding)  # type: ignore

    def detectron2() -> None:
        results = scene.detectron2.forward_inference(images, logits, [logits, deltas])
        for x in results:  # the others clip, too
            x.pred_boxes.clip(x.image_size)
        found["Detectron2"] = [(x.pred_boxes.tensor, x.scores, x.pred_classes) for x in results]

    def torchvision() -> None:
        outputs = {
            "cls_logits": _transposed(logits, scene.num_classes),
            "bbox_regression": _transposed(deltas, 4),
        }
        split = [[x.tensor for x in anchors] for _ in images.image_sizes]
        results = scene.torchvision.postprocess_detections(outputs, split, images.image_sizes)
        found["torchvision"] = [(x["boxes"], x["scores"], x["labels"]) for x in results]

    runs = {"focal_det": ours, "Detectron2": detectron2, "torchvision": torchvision}
    with torch.no_grad():
        result = in_turns(runs, scene.device, repeats)
        for name, run in runs.items():
            result[name]["extra_mb"] = extra_megabytes(run, scene.device)
            result[name]["error"] = unmatched(found[name], found["Detectron2"])
    # torchvision clips before it suppresses, so that at the border it may keep others
    check({"focal_det": result["focal_det"]["error"]}, 2 * len(images), "detections")
    survivors = sum(int((level > -2.944).sum()) for level in logits) / len(images)
    return {
        "unit": "detections without a partner in Detectron2's within 0.1 px and 1e-4 of the score",
        "survivors_per_image": survivors,
        "anchors": len(all_anchors),
        "competitors": result,
    }


def unmatched(found: list[Any], expected: list[Any]) -> int:
    """Count the detections of either side without a partner on the other."""
    count = 0
    for (boxes, scores, classes), (other_boxes, other_scores, other_classes) in zip(found, expected, strict=True):
        near = (boxes[:, None] - other_boxes).abs().amax(dim=2) < 0.1
        near &= (scores[:, None] - other_scores).abs() < 1e-4
        near &= classes[:, None] == other_classes
        count += int((~near.any(dim=1)).sum()) + int((~near.any(dim=0)).sum())
    return count


@contextmanager
def busy_cores() -> Iterator[None]:
    """Keep a process running on each core that this one may use."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in os.sched_getaffinity(0)]
    try:
        for process, core in zip(busy, os.sched_getaffinity(0), strict=True):
            os.sched_setaffinity(process.pid, {core})
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--size", type=int, nargs=2, default=[800, 1216])
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the head's outputs")
    parser.add_argument("--busy", action="store_true", help="beside a process on each core that never waits")
    parser.add_argument("--trained", type=Path, help="outputs written by trained_outputs.py, for post-processing")
    args = parser.parse_args()

    scene = Scene(args.images, tuple(args.size), args.classes, torch.device(args.device))
    dtype = getattr(torch, args.dtype)
    with busy_cores() if args.busy else nullcontext():
        result = {"class and box loss": losses(scene, args.repeats, dtype)}
        result["assignment"] = assignment(scene, args.repeats)
        if args.trained:
            result["post-processing"] = post_processing(scene, args.trained, args.repeats)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
