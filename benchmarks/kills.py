"""Kill a training hundreds of times, at random moments and at the worst ones, and see what is lost.

    python benchmarks/kills.py --kills 200 --json output/kills.json

Runs the quickstart, made short, again and again with `--resume auto`, each start killed (SIGKILL, to it and to its
loader's workers) until so many kills have been; each run is let go to its end after some kills and compared, to the
last bit, with a run that was never killed: weights, momentum, lr, metrics. After each kill the newest whole checkpoint
is looked for, and how many steps it is behind. All are forked from a process that has imported what they import.
"""

import argparse
import collections
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from focal_det.checkpoint.integrity import damage
from focal_det.environment import source_version, whole_machine

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from forked import Prepared  # noqa: E402

sys.path.insert(0, str(ROOT / "benchmarks"))
from kill_at import POINTS  # noqa: E402

PERIOD = 4  # steps between checkpoints
SETTINGS = {
    "DATASETS.TEST": "shapes_val_10_128px",
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.BASE_LR": 0.00625,
    "SOLVER.MAX_ITER": 24,
    "SOLVER.STEPS": "(14, 20)",
    "SOLVER.WARMUP_ITERS": 5,
    "SOLVER.CHECKPOINT_PERIOD": PERIOD,
    "TEST.EVAL_PERIOD": 8,
    "MODEL.FOCAL_DET.CHECKPOINTS_KEPT": 2,
    "MODEL.FOCAL_DET.DRAW_IMAGES": 1,
    "DATALOADER.NUM_WORKERS": 2,
}
BESIDE = {"model_best.pth", "model_best_ema.pth", "model_final_ema.pth"}  # which nothing resumes from
CLOCK = {"time", "data_time", "rank_data_time", "eta_seconds"}


def start(prepared, folder, kill_at=""):
    """Start the run in a process group of its own."""
    words = ["--config-file", "configs/quickstart.yaml", "--resume", "auto"]
    words += [str(word) for pair in SETTINGS.items() for word in pair]
    env = {**os.environ, "KILL_AT": kill_at, "STEPS_FILE": f"{folder}.steps"}
    return prepared.popen(
        *words,
        "OUTPUT_DIR",
        folder,
        program=ROOT / "benchmarks/kill_at.py",
        env=env,
        stderr=subprocess.STDOUT,
        new_session=True,
    )


def steps_done(folder):
    path = Path(f"{folder}.steps")
    return int(path.read_text() or 0) if path.is_file() else 0


def newest_intact(folder):
    """Return the steps of the newest intact checkpoint to resume from, or 0."""
    whole = [path for path in folder.glob("model_*.pth") if path.name not in BESIDE and not damage(path)]
    return max((torch.load(p, weights_only=True, mmap=True)["iteration"] + 1 for p in whole), default=0)


def outcome(folder):
    """Return what is compared, or None if the run left no final model."""
    if not (folder / "model_final.pth").is_file():
        return None
    state = torch.load(folder / "model_final.pth", weights_only=True)
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    metrics = [{k: v for k, v in line.items() if k not in CLOCK} for line in lines]
    weights = {"plain": state["model"], "ema": state.get("ema", {})}
    return weights, state["trainer"]["_trainer"]["optimizer"], [m for m in metrics if len(m) > 1]


def is_same(one, other):
    if other is None:
        return False
    try:
        torch.testing.assert_close(one[:2], other[:2], rtol=0, atol=0)
    except AssertionError:
        return False
    return json.dumps(one[2]) == json.dumps(other[2])  # as text: nan equals nan


def kill_group(run):
    """Kill the run and its workers, as a machine that goes down does."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(run.pid, signal.SIGKILL)
    run.wait(30)


def kill_once(prepared, folder, draw, seconds):
    """Start the run and kill it; return at what point, or None if it ended before."""
    if draw.random() < 0.5:
        point = f"{draw.choice(POINTS)} {draw.randint(1, 4)}"
        run = start(prepared, folder, point)
        try:
            if run.wait(10 * seconds) != -signal.SIGKILL:
                return None, run
        finally:
            kill_group(run)
        return point.split()[0], run
    run = start(prepared, folder)
    try:
        run.wait(draw.uniform(0.2, seconds / 2))  # half: starts are what they have most of
        return None, run
    except subprocess.TimeoutExpired:
        kill_group(run)
        return "a random moment", run


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("output/kills"), help="of the runs; emptied")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY VALUE", help="other settings of the run")
    args = parser.parse_args()
    SETTINGS.update(zip(args.set[::2], args.set[1::2], strict=True))
    shutil.rmtree(args.folder, ignore_errors=True)
    args.folder.mkdir(parents=True)
    draw, prepared = random.Random(args.seed), Prepared()
    prepared.run("--help")  # from here on it is prepared
    begun = time.perf_counter()
    reference = start(prepared, args.folder / "reference")
    text, _ = reference.communicate(600)
    if reference.returncode != 0:
        sys.exit(f"the run that is not killed ended with {reference.returncode}:\n{text[-3000:]}")
    seconds, expected = time.perf_counter() - begun, outcome(args.folder / "reference")
    kills, runs, equal, lost_checkpoints, worst = collections.Counter(), 0, 0, 0, 0
    problems = []
    while sum(kills.values()) < args.kills:
        folder = args.folder / f"run{runs}"
        before, planned, run = 0, draw.randint(4, 12), None
        for _ in range(planned):
            point, run = kill_once(prepared, folder, draw, seconds)
            if point is None:
                break
            kills[point] += 1
            now = newest_intact(folder)
            lost_checkpoints += now < before
            worst = max(worst, steps_done(folder) - now)
            before = now
        if point is not None:
            run = start(prepared, folder)
        text, _ = run.communicate(20 * seconds)
        runs += 1
        same = run.returncode == 0 and is_same(expected, outcome(folder))
        equal += same
        if not same:
            problems.append(f"{folder}: ended with {run.returncode}\n{text[-2000:]}")
            print(problems[-1], flush=True)
        else:
            shutil.rmtree(folder)
        print(f"{sum(kills.values())} kills, {runs} runs, {equal} equal, worst {worst} steps", flush=True)
    prepared.close()
    result = {
        "kills": dict(sorted(kills.items())),
        "all kills": sum(kills.values()),
        "runs": runs,
        "runs that ended with the weights, momentum, lr and metrics of the run that was not killed": equal,
        "checkpoints lost": lost_checkpoints,
        "most steps lost": worst,
        "checkpoint period": PERIOD,
        "seconds": round(time.perf_counter() - begun),
        "settings": SETTINGS,
        "seed": args.seed,
        "hardware": whole_machine(0),
        "focal_det": source_version(),
        "command": " ".join(["python", *sys.argv]),
        "problems": problems,
    }
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    return 0 if equal == runs and not lost_checkpoints else 1


if __name__ == "__main__":
    sys.exit(main())
