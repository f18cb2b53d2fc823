"""Which normaliser is best? AP and losses under each, and with two other defaults changed.

    python benchmarks/normaliser.py --data bccd --out output/normaliser/bccd [--seeds 1 2 3] [--json FILE] [--png FILE]
    python benchmarks/normaliser.py --shapes --out output/normaliser/shapes ...

--data has instances_train.json, instances_test.json and images/: `configs/bccd.yaml` at 160 px, 4 images a step.
--shapes: `configs/quickstart.yaml`. From scratch, in bfloat16 where the processor has it. Each way differs from
`global`, the defaults, in one thing. `ema_corrected` is not a key: Detectron2's average without the 100 that it starts
from, divided by the weights of the batches so far, as Adam's are. Runs that have ended are not made again. Those of
`global` also keep how many anchors each image of each step had assigned, from which follows what each way divides by.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import matplotlib
import matplotlib.pyplot as plt
import torch
from few_images import add_lr, add_source, add_ways, lr_words, run, source_words, train_ways
from torch import Tensor

import focal_det.modeling.retinanet
from focal_det.cli.train import main as train
from focal_det.modeling.normalizer import LossNormalizer

matplotlib.use("Agg")
OURS = "MODEL.FOCAL_DET."
WAYS: dict[str, list[Any]] = {
    "global": [],
    "image": [f"{OURS}NORMALIZER", "image"],
    "ema": [f"{OURS}NORMALIZER", "ema"],
    "ema_corrected": [f"{OURS}NORMALIZER", "ema"],
    "beta_0": ["MODEL.RETINANET.SMOOTH_L1_LOSS_BETA", 0.0],
    "no_best_anchor": [f"{OURS}MATCH_BEST_ANCHOR", False],
}
NAMES = {"ema_corrected": "ema, corrected", "beta_0": "global, beta 0", "no_best_anchor": "global, no best anchor"}
LOSSES = ("loss_cls", "loss_box_reg")


class RecordingNormalizer(LossNormalizer):
    """The chosen normaliser, which keeps the counts of assigned anchors that it was given."""

    counts: ClassVar[list[list[int]]] = []

    def start(self, num_assigned: Tensor) -> Callable[[], Tensor]:
        if torch.is_grad_enabled():
            self.counts.append(num_assigned.tolist())
        return super().start(num_assigned)


class CorrectedNormalizer(LossNormalizer):
    """The moving average of "ema" without the 100 that it starts from: after one batch it is that batch's count."""

    def __init__(self, mode: str = "ema") -> None:
        super().__init__(mode)
        self.steps: Tensor
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def start(self, num_assigned: Tensor) -> Callable[[], Tensor]:
        finish = super().start(num_assigned)

        @torch.no_grad()
        def corrected() -> Tensor:
            self.steps += 1
            forgotten = 0.9 ** self.steps.double()  # in float64: after one batch most of the average is the 100
            return ((finish().double() - 100 * forgotten) / (1 - forgotten)).float().clamp(min=1)

        return corrected


def main() -> int | None:
    if sys.argv[1:2] == ["--train"]:
        return train_way(Path(sys.argv[2]), sys.argv[3:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_source(parser)
    add_ways(parser, WAYS, "output/normaliser", iterations=300, num_seeds=5)
    add_lr(parser)
    parser.add_argument("--png", type=Path, help="of the losses' curves, means over the seeds")
    args = parser.parse_args()
    data, words = source_words(args)
    args.out.mkdir(parents=True, exist_ok=True)

    def train_one(way: str, seed: int) -> dict[str, Any]:
        out, overrides = args.out / f"{way}_{seed}", [*WAYS[way], f"{OURS}DRAW_IMAGES", 0, *lr_words(args)]
        script = [Path(__file__), "--train", out.with_name(f"{out.name}.counts.json")]
        row = scores(run(out, [*words, *overrides], seed, args.iterations, args.iterations // 2, script))
        counts = json.loads(script[-1].read_text()) if way == "global" else []
        # those of a training that was resumed lack the steps before
        return row | ({"counts": divisors(counts)} if len(counts) == args.iterations else {})

    found = train_ways(args, args.ways, train_one, data=data, lr=args.lr)
    if args.png:
        draw_curves(data, found, args.png)
    print(f"{'way':15} AP  beside {args.ways[0]}, seed by seed")
    base = [row["AP"] for row in found[args.ways[0]]]
    for way, rows in found.items():
        values = [row["AP"] for row in rows]
        print(f"{way:15} {spread(values)}  {spread([ap - other for ap, other in zip(values, base, strict=True)])}")
    return None


def train_way(counts_file: Path, words: list[str]) -> int:
    """Train with these words for train_net.py, in the way that the file is named after, and keep the counts in it."""
    corrected = counts_file.name.startswith("ema_corrected")
    focal_det.modeling.retinanet.LossNormalizer = CorrectedNormalizer if corrected else RecordingNormalizer
    code = train(words)
    counts_file.write_text(json.dumps(RecordingNormalizer.counts))
    return code


def divisors(counts: list[list[int]]) -> dict[str, Any]:
    """Return, for the counts of each step's images, their spread and the divisors of a step in each way, in the mean.

    "image" divides each image by its own; its divisor of a step is the one by which the sum over the images would have
    to be divided if all had the same loss.
    """
    steps = [max(1, sum(images)) for images in counts]
    average, averages = 100.0, []
    for step in steps:
        average = 0.9 * average + 0.1 * step
        averages.append(average)
    images = [count for step in counts for count in step]
    return {
        "steps": len(steps),
        "a step": [round(statistics.mean(steps), 1), round(statistics.stdev(steps), 1)],
        "an image": [round(statistics.mean(images), 1), round(statistics.stdev(images), 1), min(images), max(images)],
        "weight of an anchor's loss, beside one by the mean count": {
            "global": round(statistics.mean(steps) * statistics.mean(1 / step for step in steps), 3),
            "image": round(statistics.mean(images) * statistics.mean(1 / max(1, count) for count in images), 3),
            "ema": round(statistics.mean(steps) * statistics.mean(1 / average for average in averages), 3),
        },
        "ema / global over the first 20 steps": round(
            statistics.mean(average / step for average, step in zip(averages[:20], steps, strict=False)), 3
        ),
    }


def draw_curves(data: str, found: Mapping[str, Sequence[Mapping[str, Any]]], file: Path) -> None:
    """Draw the mean of each loss over the seeds, by iteration, a line for each way."""
    figure, plots = plt.subplots(1, len(LOSSES), figsize=(5 * len(LOSSES), 4), layout="constrained")
    for axes, name in zip(plots, LOSSES, strict=True):
        for rows in found.values():
            curves = [row[name] for row in rows]
            axes.plot(list(curves[0]), [statistics.mean(at) for at in zip(*(c.values() for c in curves), strict=True)])
        axes.set(xlabel="iteration", ylabel=name, title=f"{data}, {len(curves)} seeds", yscale="log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
    figure.legend(plots[-1].lines, [NAMES.get(way, way) for way in found], loc="outside right upper")
    figure.savefig(file, dpi=100)


def spread(values: list[float]) -> str:
    """Return mean, ± the standard deviation over the runs."""
    return f"{statistics.mean(values):.2f}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")


def scores(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the last AP and AP50 of a run, and its losses every 20 iterations."""
    last: dict[str, Any] = {}
    for line in lines:
        last |= line
    curves = {name: {line["iteration"] + 1: round(line[name], 4) for line in lines if name in line} for name in LOSSES}
    return {"AP": round(last["bbox/AP"], 2), "AP50": round(last["bbox/AP50"], 2), **curves}


if __name__ == "__main__":
    sys.exit(main())
