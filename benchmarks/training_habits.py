"""What do an EMA of the weights, early stopping and accumulation do to AP, and what do they cost?

    python benchmarks/training_habits.py --data bccd --out output/habits [--seeds 1 2 3] [--iterations N] [--json FILE]
    python benchmarks/training_habits.py --shapes --out output/habits_shapes ...
    python benchmarks/training_habits.py --cost

--data has instances_train.json, instances_test.json and images/: `configs/bccd.yaml` at 160 px, 4 images a step.
--shapes: `configs/quickstart.yaml`. From scratch, in bfloat16 where the processor has it, evaluated ten times. One run
measures the plain weights and their EMA, which does not change them. Runs that have ended are not made again. --cost
times the steps of that detector with and without the average, in turns in one process, and counts its bytes.
"""

from __future__ import annotations

import argparse
import statistics
import time
from types import SimpleNamespace
from typing import Any

import torch
from detectron2.modeling import build_model
from detectron2.solver import build_optimizer
from detectron2.structures import Boxes, Instances
from few_images import ROOT, add_source, add_ways, run, source_words, train_ways

from focal_det.checkpoint.checkpointer import RunCheckpointer
from focal_det.config.load import load_config
from focal_det.engine.weight_average import AverageWeights, WeightAverage

OURS = "MODEL.FOCAL_DET."
WAYS = {
    "ema": [f"{OURS}EMA.DECAY", 0.9998],
    "patience": [f"{OURS}PATIENCE", 3],
    "accumulation": [f"{OURS}ACCUMULATION", 2],  # the step of the same batch, in two parts
}
EVALUATIONS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_source(parser).add_argument("--cost", action="store_true")
    add_ways(parser, WAYS, "output/habits", iterations=500, num_seeds=3)
    args = parser.parse_args()
    if args.cost:
        print(cost())
        return
    args.out.mkdir(parents=True, exist_ok=True)
    data, words = source_words(args)

    def train(way: str, seed: int) -> dict[str, Any]:
        out, overrides = args.out / f"{way}_{seed}", [*WAYS[way], f"{OURS}DRAW_IMAGES", 0]
        return scores(run(out, [*words, *overrides], seed, args.iterations, args.iterations // EVALUATIONS))

    found = train_ways(args, args.ways, train, data=data)
    for way, rows in found.items():
        for name in ("AP", "EMA AP", "best AP", "best EMA AP", "iterations"):
            values = [row[name] for row in rows if name in row]
            if values:
                spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
                print(f"{way:12} {name:12} {statistics.mean(values):.1f}{spread}")


def cost(steps: int = 20) -> dict[str, float]:
    """Return the median seconds of a step on random images of 160 px, and of the average's update after it."""
    cfg = load_config(str(ROOT / "configs/bccd.yaml"), ["MODEL.DEVICE", "cpu", "MODEL.RETINANET.NUM_CLASSES", "3"])
    model = build_model(cfg).train()
    average, optimizer = WeightAverage(model, 0.9998), build_optimizer(cfg, model)
    hook = AverageWeights(average, model, RunCheckpointer(model), lambda iteration: True)
    hook.trainer = SimpleNamespace(iter=0)
    box = Instances((160, 208), gt_boxes=Boxes(torch.tensor([[20.0, 20.0, 80.0, 90.0]])), gt_classes=torch.tensor([1]))
    batch = [{"image": torch.randint(0, 256, (3, 160, 208), dtype=torch.uint8), "instances": box}] * 4
    times: dict[str, list[float]] = {"step": [], "update": []}
    for _ in range(steps):
        begun = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            losses = model(batch)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        stepped = time.perf_counter()
        hook.after_step()
        times["step"].append(stepped - begun)
        times["update"].append(time.perf_counter() - stepped)
    step, update = (statistics.median(values) for values in times.values())
    megabytes = sum(tensor.nbytes for tensor in average.model.state_dict().values()) / 1e6
    return {"step": step, "update": update, "ratio": (step + update) / step, "MB": megabytes}


def scores(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the last and the best AP of the weights and of their EMA, and the iterations and times of the run."""
    found: dict[str, Any] = {"iterations": max(line["iteration"] for line in lines if "lr" in line) + 1}
    for short, name in (("AP", "bbox/AP"), ("EMA AP", "ema/bbox/AP")):
        done = found["iterations"]  # the evaluation at the end counts one more
        curve = [(line[name], min(line["iteration"] + 1, done)) for line in lines if name in line]
        if curve:
            best, at = max(curve)
            found |= {short: round(curve[-1][0], 2), f"best {short}": round(best, 2), f"best {short} after": at}
            found[f"{short} by iterations"] = {at: round(ap, 2) for ap, at in curve}
    times = [line["time"] for line in lines if "time" in line]
    return {**found, "seconds a step": round(statistics.median(times), 3)}


if __name__ == "__main__":
    main()
