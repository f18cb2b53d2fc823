"""Is the learning rate that `focal-det lr-find` suggests a good one? The test itself, and AP at it and beside it.

    python benchmarks/learning_rate.py --data bccd --out output/learning_rate/bccd [--iterations N] [--json FILE]
    python benchmarks/learning_rate.py --shapes --out output/learning_rate/shapes ...

--data has instances_train.json, instances_test.json and images/: `configs/bccd.yaml` at 160 px, 4 images a step.
--shapes: `configs/quickstart.yaml`. From scratch, in bfloat16 where the processor has it. Trained at a third, once and
three times what is suggested, and at the configuration's own. Runs that have ended are not made again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from few_images import ROOT, add_source, run, source_words
from figures import write_figures

from focal_det.config.load import load_config

BFLOAT16 = ["SOLVER.AMP.ENABLED", True, "SOLVER.AMP.DTYPE", "bfloat16", "DATALOADER.NUM_WORKERS", 1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_source(parser)
    parser.add_argument("--out", type=Path, default=Path("output/learning_rate"))
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    data, words = source_words(args)
    suggested = suggestion(args.out / "range", words)
    own = load_config(str(words[1])).SOLVER.BASE_LR
    print(f"suggested: {suggested:.3g}; the configuration's: {own:g}", flush=True)
    found = []
    for seed in args.seeds:
        for lr in sorted({own, *(round(suggested * times, 4) for times in (1 / 3, 1, 3))}):
            overrides = ["SOLVER.BASE_LR", lr, "MODEL.FOCAL_DET.DRAW_IMAGES", 0]
            out = args.out / f"{lr:g}_{seed}"
            last: dict[str, Any] = {}
            for line in run(out, [*words, *overrides], seed, args.iterations, args.iterations // 2):
                last |= line
            row = {"lr": lr, "seed": seed, "AP": round(last["bbox/AP"], 2), "loss": round(last["total_loss"], 4)}
            found.append(row)
            print(row, flush=True)
            if args.json:
                write_figures(args.json, data=data, iterations=args.iterations, suggested=suggested, runs=found)


def suggestion(out: Path, words: list[Any]) -> float:
    """Run the range test, unless it was, and return what it suggests."""
    result = out / "lr_range.json"
    if not result.is_file():
        module = [sys.executable, "-m", "focal_det", "lr-find", "--out", out]
        subprocess.run(list(map(str, [*module, *words, *BFLOAT16, "SEED", 1])), check=True, cwd=ROOT)
    return json.loads(result.read_text())["lr"]


if __name__ == "__main__":
    main()
