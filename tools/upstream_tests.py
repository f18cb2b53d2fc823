"""Run Detectron2's and fvcore's own tests against this project's classes.

    python tools/upstream_tests.py --detectron2 CHECKOUT --fvcore CHECKOUT

Their test files are imported from the checkouts as they are; then, in each file's own names, their class is replaced by
an adapter around ours. So their expectations judge our code. Neither package is changed: what is not a name of the test
file stays theirs. The exit code is 1 if a test fails.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import types
import unittest
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from detectron2 import model_zoo
from detectron2.config import configurable, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import ANCHOR_GENERATOR_REGISTRY, build_model
from detectron2.structures import Boxes
from detectron2.utils.testing import get_model_no_weights
from tabulate import tabulate
from torch import Tensor, nn

import focal_det.plugin  # noqa: F401
from focal_det.assigners import iou
from focal_det.losses import focal_loss, focal_loss_reference, focal_loss_star
from focal_det.modeling.anchor_generator import OctaveAnchorGenerator
from focal_det.modeling.box_coding import decode_boxes, encode_boxes


class SizesAsOctaves(nn.Module):
    """Anchors of any sizes, as Detectron2's tests set them: an `OctaveAnchorGenerator` of one scale for each size."""

    box_dim = OctaveAnchorGenerator.box_dim

    @configurable
    def __init__(self, *, sizes: Any, aspect_ratios: Any, strides: Any, offset: float = 0.5) -> None:
        super().__init__()
        sizes, ratios = map(_of_one_level, (sizes, aspect_ratios))
        options = {"strides": strides, "scales_per_octave": 1, "aspect_ratios": ratios, "offset": offset}
        self.parts = nn.ModuleList(OctaveAnchorGenerator(base_sizes=[size] * len(strides), **options) for size in sizes)

    @classmethod
    def from_config(cls, cfg: Any, input_shape: list[ShapeSpec]) -> dict[str, Any]:
        keys = cfg.MODEL.ANCHOR_GENERATOR
        strides = [level.stride for level in input_shape]
        return {"sizes": keys.SIZES, "aspect_ratios": keys.ASPECT_RATIOS, "strides": strides, "offset": keys.OFFSET}

    @property
    def num_anchors(self) -> list[int]:
        return [sum(counts) for counts in zip(*(part.num_anchors for part in self.parts), strict=True)]

    def forward(self, features: list[Tensor]) -> list[Boxes]:
        """Join the parts' anchors location by location, sizes outermost."""
        levels = zip(*(part(features) for part in self.parts), strict=True)
        num_ratios = self.parts[0].num_anchors[0]
        together = [torch.cat([boxes.tensor.unflatten(0, (-1, num_ratios)) for boxes in level], 1) for level in levels]
        return [Boxes(boxes.flatten(0, 1)) for boxes in together]


def _of_one_level(values: Any) -> Any:
    return values[0] if isinstance(values[0], (list, tuple)) else values


def our_get_cfg() -> Any:
    """Detectron2's configuration with our anchors."""
    if "SizesAsOctaves" not in ANCHOR_GENERATOR_REGISTRY:
        ANCHOR_GENERATOR_REGISTRY.register(SizesAsOctaves)
    cfg = get_cfg()
    cfg.MODEL.ANCHOR_GENERATOR.NAME = "SizesAsOctaves"
    return cfg


class OurMatcher:
    """`assign_by_iou` behind Detectron2's interface, which takes overlaps instead of boxes."""

    def __init__(self, thresholds: list[float], labels: list[int], allow_low_quality_matches: bool = False) -> None:
        assert labels == [0, -1, 1]
        self.thresholds, self.allow_low_quality_matches = thresholds, allow_low_quality_matches

    def __call__(self, overlaps: Tensor) -> tuple[Tensor, Tensor]:
        boxes, anchors = (torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(count, 4) for count in overlaps.shape)
        with mock.patch.object(iou, "pairwise_iou", return_value=overlaps[None]):
            labels, matched = iou.assign_by_iou(
                [anchors],
                boxes[None],
                torch.zeros(1, len(boxes), dtype=torch.int64),
                num_classes=1,
                iou_thresholds=self.thresholds,
                match_best_anchor=self.allow_low_quality_matches,
            )
        return matched[0], torch.tensor([1, 0, -1], dtype=torch.int8)[labels[0]]  # object, background, ignored


class OurBoxTransform:
    """`encode_boxes` and `decode_boxes` behind Detectron2's interface, with several deltas for each box."""

    def __init__(self, weights: tuple[float, ...]) -> None:
        self.weights = torch.tensor(weights)

    def get_deltas(self, boxes: Tensor, targets: Tensor) -> Tensor:
        return encode_boxes(targets, boxes, weights=self.weights.tolist())

    def apply_deltas(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        return decode_boxes(deltas.unflatten(1, (-1, 4)), boxes[:, None], weights=self.weights.to(boxes)).flatten(1)


def our_model(path: str) -> nn.Module:
    """Build the RetinaNet of the model zoo as FocalRetinaNet with our anchors; other models are Detectron2's."""
    if "retinanet" not in path:
        return get_model_no_weights(path)
    cfg = model_zoo.get_config(path)
    cfg.MODEL.META_ARCHITECTURE = "FocalRetinaNet"
    cfg.MODEL.ANCHOR_GENERATOR.NAME = "OctaveAnchorGenerator"
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32], [64], [128], [256], [512]]
    cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    model = build_model(cfg)

    def forward_inference(images: Any, features: Any, predictions: Any) -> list[Any]:
        with mock.patch.object(model, "network", return_value=predictions):
            size = images.image_sizes[0]
            return [found["instances"] for found in model([{"image": torch.zeros(3, *size)}])]

    model.forward_inference = forward_inference
    return model


exact: list[Tensor] = []  # the last focal loss in float64, by the paper's formula


def our_focal_loss(
    inputs: Tensor, targets: Tensor, alpha: float = -1, gamma: float = 2, reduction: str = "none"
) -> Tensor:
    """Return `focal_loss` of one class an anchor; fvcore takes alpha < 0 for no weights."""
    logits, labels = inputs.unsqueeze(-1), 1 - targets.long()
    options = {"alpha": None if alpha < 0 else alpha, "gamma": gamma, "reduction": reduction}
    exact[:] = [focal_loss_reference(logits.double(), labels, **options)]
    return focal_loss(logits, labels, **options).reshape(inputs.shape if reduction == "none" else ())


def our_focal_loss_star(
    inputs: Tensor, targets: Tensor, alpha: float = -1, gamma: float = 1, reduction: str = "none"
) -> Tensor:
    """Return `focal_loss_star` with the alpha that fvcore adds to the paper's."""
    losses = focal_loss_star(inputs.unsqueeze(-1), 1 - targets.long(), gamma=gamma, beta=0.0, reduction="none").squeeze(
        -1
    )
    exact[:] = []
    if alpha >= 0:
        losses = losses * torch.where(targets > 0, alpha, 1 - alpha)
    return {"none": losses, "sum": losses.sum(), "mean": losses.mean()}[reduction]


# torch.jit.script is deprecated and not offered; what a test does before and after it still counts.
UNSCRIPTED = types.SimpleNamespace(**vars(torch))
UNSCRIPTED.jit = types.SimpleNamespace(script=lambda part: part, trace=torch.jit.trace)
TORCHSCRIPT = "TorchScript, which is not offered"
THEIRS = "holds none of our classes"


class Suite(NamedTuple):
    """A test file, what is put in the place of which of its names, and which of its tests are left out, and why."""

    path: str
    names: dict[str, Any]
    left_out: dict[str, str] = {}  # noqa: RUF012 - never written


DETECTRON2 = (
    Suite(
        "tests/modeling/test_anchor_generator.py",
        {"DefaultAnchorGenerator": SizesAsOctaves, "torch": UNSCRIPTED},
        {"test_rrpn_anchor_generator": "rotated anchors, which the detector refuses"},
    ),
    Suite("tests/modeling/test_matcher.py", {"Matcher": OurMatcher, "torch": UNSCRIPTED}),
    Suite(
        "tests/modeling/test_box2box_transform.py",
        {"Box2BoxTransform": OurBoxTransform},
        {
            "Rotated": "rotated boxes, which the detector refuses",
            "Linear": "FCOS's coding, not RetinaNet's",
        },
    ),
    Suite(
        "tests/modeling/test_model_e2e.py",
        {"get_model_no_weights": our_model},
        {
            "RetinaNetE2ETest.test_autocast": "asks for scores in half precision; ours are float32",
            **dict.fromkeys(("MaskRCNN", "FCOSE2E", "SemSeg"), THEIRS),
        },
    ),
    Suite(
        "tests/modeling/test_rpn.py",
        {"get_cfg": our_get_cfg},
        {
            "test_rpn_scriptability": TORCHSCRIPT,
            "test_rrpn": "rotated anchors, which the detector refuses",
            **dict.fromkeys(("find_rpn_proposals", "append_gt"), THEIRS),
        },
    ),
    Suite(
        "tests/test_model_analysis.py",
        {"get_model_no_weights": our_model},
        dict.fromkeys(("FasterRCNN", "MaskRCNN", "UnusedParam"), THEIRS),
    ),
)
FVCORE = (
    Suite(
        "tests/test_focal_loss.py",
        {
            **dict.fromkeys(("sigmoid_focal_loss", "sigmoid_focal_loss_jit"), our_focal_loss),
            **dict.fromkeys(("sigmoid_focal_loss_star", "sigmoid_focal_loss_star_jit"), our_focal_loss_star),
        },
    ),
)
NOT_RUN = {
    "detectron2 tests/test_export_torchscript.py": TORCHSCRIPT,
    "detectron2 tests/test_export_onnx.py": "TorchScript; `focal-det export` uses torch.export",
    "detectron2 tests/layers/test_losses.py": "Detectron2's IoU losses, " + THEIRS,
}


class Outcome(NamedTuple):
    """A test of theirs: "passed", "FAILED" or "left out", and why."""

    test: str
    result: str
    why: str = ""


def run(checkout: Path, suite: Suite) -> Iterator[Outcome]:
    """Run a file's tests and yield what came of each."""
    name = f"upstream_{Path(suite.path).stem}"
    spec = importlib.util.spec_from_file_location(name, checkout / suite.path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    missing = sorted(set(suite.names) - set(vars(module)))
    if missing:
        yield Outcome(suite.path, "FAILED", f"has no {', '.join(missing)} to replace: another version of it?")
        return
    vars(module).update(suite.names)
    for case in _cases(unittest.defaultTestLoader.loadTestsFromModule(module)):
        label = case.id().removeprefix(f"{name}.")
        why = next((why for part, why in suite.left_out.items() if part in label), None)
        if why is not None:
            yield Outcome(f"{suite.path}::{label}", "left out", why)
            continue
        notes: list[str] = []
        case.assertEqual = _to_the_last_bit(case.assertEqual, notes)
        result = unittest.TestResult()
        case.run(result)
        trouble = [*result.failures, *result.errors]
        if trouble:
            yield Outcome(f"{suite.path}::{label}", "FAILED", trouble[0][1].strip().splitlines()[-1])
        elif result.skipped:
            yield Outcome(f"{suite.path}::{label}", "left out", f"skips itself: {result.skipped[0][1]}")
        else:
            yield Outcome(f"{suite.path}::{label}", "passed", "; ".join(notes))


def _cases(suite: Any) -> Iterator[Any]:
    for part in suite:
        yield from _cases(part) if isinstance(part, unittest.TestSuite) else [part]


def _to_the_last_bit(assert_equal: Callable[..., None], notes: list[str]) -> Callable[..., None]:
    """Return assertEqual that takes a loss of ours too that is within float32's last bit of the loss in float64."""

    def compare(first: Any, second: Any, *message: Any) -> None:
        if exact and isinstance(first, Tensor) and not torch.equal(first, second):
            theirs, ours = first.detach(), second.detach()
            off, theirs_off = ((loss.double() - exact[0]).abs().item() for loss in (ours, theirs))
            last_bit = (torch.nextafter(ours, torch.tensor(torch.inf)) - ours).item()
            if off <= last_bit:
                notes.append(
                    f"{off:.1e} off the loss in float64, theirs {theirs_off:.1e}; the last bit is {last_bit:.1e}"
                )
                return
        assert_equal(first, second, *message)

    return compare


def main(argv: list[str] | None = None) -> int:
    """Print a table of all tests and how many passed; return 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detectron2", type=Path, metavar="CHECKOUT", help="Detectron2's repository, with its tests/")
    parser.add_argument("--fvcore", type=Path, metavar="CHECKOUT", help="fvcore's")
    args = parser.parse_args(argv)
    given = [(c, suites) for c, suites in ((args.detectron2, DETECTRON2), (args.fvcore, FVCORE)) if c is not None]
    absent = [str(c / s.path) for c, suites in given for s in suites if not (c / s.path).is_file()]
    if not given or absent:
        parser.error(f"no such file: {', '.join(absent)}" if absent else "name a checkout by --detectron2 or --fvcore")
    outcomes = [outcome for checkout, suites in given for suite in suites for outcome in run(checkout, suite)]
    if args.detectron2 is not None:
        outcomes += [Outcome(name, "left out", why) for name, why in NOT_RUN.items()]
    print(tabulate(outcomes, headers=["test", "result", ""]))
    results = [outcome.result for outcome in outcomes]
    print(", ".join(f"{results.count(kind)} {kind}" for kind in ("passed", "FAILED", "left out")))
    return int(any(outcome.result == "FAILED" for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
