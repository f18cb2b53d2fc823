"""Train the quickstart's detector with each loss of the family, and put their AP side by side.

    python benchmarks/loss_family.py [--seeds 1 2 3] [--iterations 500] [--rows NAME ...] [--json FILE]

Every row is configs/quickstart.yaml with another loss, the same seeds and the same schedule; the learning rate is not
tuned for any. Each run is a process of its own under output/loss_family; what is finished there is not run again, so
the command continues where it was stopped. A run that fails, by a loss that is not finite, counts as diverged.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from figures import write_figures

ROOT = Path(__file__).parents[1]
LOSS = "MODEL.FOCAL_DET.LOSS."

ROWS: dict[str, list[str]] = {
    "CE, no prior": [LOSS + "NAME", "CrossEntropyLoss", "MODEL.RETINANET.PRIOR_PROB", "0.5"],
    "CE": [LOSS + "NAME", "CrossEntropyLoss"],
    "balanced CE, alpha .75": [LOSS + "NAME", "BalancedCrossEntropyLoss"],
    "FL, gamma 2, alpha .25": [],
    "FL*, gamma 2, beta 1": [LOSS + "NAME", "FocalLossStar"],
    "OHEM 128, nms .5": [LOSS + "NAME", "OHEMLoss"],
    "OHEM 1:3 128, nms .5": [LOSS + "NAME", "OHEMOneToThreeLoss"],
    "hinge, margin .5": [LOSS + "NAME", "HingeLoss"],
}


def folder_of(row: str, seed: int, iterations: int) -> Path:
    name = "".join(c if c.isalnum() else "_" for c in row)
    return ROOT / "output" / "loss_family" / f"{name}-{iterations}-seed{seed}"


def command_of(row: str, seed: int, iterations: int) -> list[str]:
    """Return the run's command line: lr drops at 75 % and 93 % of the iterations, as in the quickstart."""
    steps = (iterations * 3 // 4, iterations * 93 // 100)
    options = {"SOLVER.MAX_ITER": iterations, "SOLVER.STEPS": steps, "SOLVER.CHECKPOINT_PERIOD": iterations}
    options |= {"SEED": seed, "MODEL.FOCAL_DET.DRAW_IMAGES": 0, "OUTPUT_DIR": folder_of(row, seed, iterations)}
    command = [sys.executable, "train_net.py", "--config-file", "configs/quickstart.yaml", "--resume", "auto"]
    return [*command, *ROWS[row], *(str(word) for pair in options.items() for word in pair)]


def result_of(folder: Path) -> dict[str, Any] | None:
    """Read what a finished or failed run left; None if there is none."""
    failed = folder / "failed.txt"
    metrics = folder / "metrics.json"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.is_file() else []
    merged: dict[str, Any] = {}
    for line in lines:
        merged |= line
    start = {key: merged.get(key) for key in ("start_cls", "start_cls_of_prior")}
    if failed.is_file():
        return {"AP": 0.0, "AP50": 0.0, "diverged": True, **start}
    if "bbox/AP" not in merged:
        return None
    ap = {name: 0.0 if math.isnan(merged[f"bbox/{name}"]) else merged[f"bbox/{name}"] for name in ("AP", "AP50")}
    return {**ap, "diverged": False, "loss_cls": merged["loss_cls"], **start}


def run(row: str, seed: int, iterations: int) -> dict[str, Any]:
    folder = folder_of(row, seed, iterations)
    found = result_of(folder)
    if found is None:
        done = subprocess.run(command_of(row, seed, iterations), cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode not in (0, 1):
            sys.exit(f"{row}, seed {seed}: exit code {done.returncode}\n{done.stderr[-2000:]}")
        if done.returncode == 1 and "FloatingPointError" not in done.stderr:
            sys.exit(f"{row}, seed {seed} failed:\n{done.stderr[-2000:]}")
        if done.returncode == 1:
            (folder / "failed.txt").write_text(done.stderr[-2000:])
        found = result_of(folder)
        assert found is not None, folder
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--iterations", type=int, default=500)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--json", type=Path, help="also write the figures there")
    args = parser.parse_args()

    results: dict[str, list[dict[str, Any]]] = {row: [] for row in args.rows}
    for seed in args.seeds:
        for row in args.rows:
            results[row].append(run(row, seed, args.iterations))
            last = results[row][-1]
            print(f"{row}, seed {seed}: AP {last['AP']:.1f}, first class loss {last['start_cls']:.3g}", flush=True)

    print(f"\n| loss | AP | of each seed {args.seeds} | AP50 | first class loss |\n|---|---|---|---|---|")
    for row, runs in results.items():
        mean, spread = (f(r["AP"] for r in runs) for f in (statistics.mean, lambda v: _spread(list(v))))
        each = ", ".join("diverged" if r["diverged"] else f"{r['AP']:.1f}" for r in runs)
        ap50, start = (statistics.mean(r[key] for r in runs) for key in ("AP50", "start_cls"))
        print(f"| {row} | {mean:.1f} ± {spread:.1f} | {each} | {ap50:.1f} | {start:.3g} |")
    if args.json:
        rows = {row: {"overrides": ROWS[row], "runs": runs} for row, runs in results.items()}
        write_figures(args.json, seeds=args.seeds, iterations=args.iterations, rows=rows)


def _spread(values: list[float]) -> float:
    """Return the sample standard deviation."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


if __name__ == "__main__":
    main()
