"""Train the quickstart in two processes of torchrun, once undisturbed and once with workers killed; compare the ends.

    python benchmarks/elastic.py --iterations 60 --kills 2

Every kill is a SIGKILL to one worker, of rank 0 and 1 in turn, at a random moment of the training; torchrun starts all
workers anew, and `--resume auto` continues from the newest checkpoint. Exits with 1 if any weight differs in any bit.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]


def command(folder: Path, iterations: int, restarts: int) -> list[str]:
    """Return torchrun's command line."""
    small = {
        **{"DATASETS.TRAIN": "shapes_train_64_64px", "DATASETS.TEST": "shapes_val_8_64px"},
        **{"INPUT.MIN_SIZE_TRAIN": "(48, 64)", "INPUT.MIN_SIZE_TEST": 64, "SOLVER.IMS_PER_BATCH": 4},
        **{"SOLVER.MAX_ITER": iterations, "SOLVER.STEPS": f"({iterations // 2},)", "SOLVER.WARMUP_ITERS": 5},
        **{"SOLVER.BASE_LR": 0.01, "SOLVER.CHECKPOINT_PERIOD": 5, "DATALOADER.NUM_WORKERS": 1},
        **{"MODEL.FOCAL_DET.DRAW_IMAGES": 0, "SEED": 1, "OUTPUT_DIR": folder},
    }
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    job = ["train_net.py", "--config-file", "configs/quickstart.yaml", "--resume", "auto"]
    keys = [str(word) for pair in small.items() for word in pair]
    return [*launcher, "--max-restarts", str(restarts), *job, *keys]


def workers(launcher: int) -> list[int]:
    """Return the process ids of torchrun's workers, in the order of their ranks."""
    found = {}
    for pid in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        try:
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:  # it has just ended
            continue
        found.update({int(v[5:]): int(pid) for v in variables if v.startswith(b"RANK=")})
    return [found[rank] for rank in sorted(found)]


def saved(folder: Path) -> str:
    pointer = folder / "last_checkpoint"
    return pointer.read_text() if pointer.is_file() else ""


def train(folder: Path, log: Path, iterations: int, kills: int, seed: int) -> float:
    """Train to the end and return the seconds that it took."""
    start, chance = time.monotonic(), random.Random(seed)
    with log.open("w") as out:
        process = subprocess.Popen(command(folder, iterations, kills), cwd=ROOT, stdout=out, stderr=out)
        for number in range(kills):
            before = saved(folder)
            while process.poll() is None and saved(folder) == before:
                time.sleep(0.01)
            time.sleep(chance.uniform(0, 0.5))
            victims = workers(process.pid) if process.poll() is None else []
            if len(victims) == 2:
                at = saved(folder)
                os.kill(victims[number % 2], signal.SIGKILL)
                print(f"  rank {number % 2} killed {time.monotonic() - start:.0f} s after the start, with {at} there")
        if process.wait() != 0:
            sys.exit(f"torchrun ended with {process.returncode}; see {log}")
    return time.monotonic() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=60)
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ.setdefault("DETECTRON2_DATASETS", str(folder / "datasets"))
        ends = {}
        for kills in (0, args.kills):
            seconds = train(folder / f"kills{kills}", folder / f"{kills}.log", args.iterations, kills, args.seed)
            state = torch.load(folder / f"kills{kills}" / "model_final.pth", weights_only=True)
            ends[kills] = state["model"]
            starts = (folder / f"kills{kills}" / "log.txt").read_text().count("Starting training from iteration")
            print(f"{kills} kills: {args.iterations} iterations, {starts} starts, {seconds:.0f} s")
        differ = [key for key, value in ends[0].items() if not torch.equal(value, ends[args.kills][key])]
        print(f"{len(ends[0])} tensors, {len(differ)} of them differ")
        sys.exit(1 if differ else 0)


if __name__ == "__main__":
    main()
