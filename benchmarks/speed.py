"""focal_det beside Detectron2, torchvision and torch.compile: parts, training step, inference, growth.

    python benchmarks/speed.py [--quick] [--device cpu] [--json FILE] [--tiers ops step inference ablation growth gpu]

Each detector's step is a process of its own, one after the other in two rounds, all on this machine in this run.
`--quick` takes small images and one repeat, to see that everything works; its ratios are not those of the full size.
The post-processing is timed on what a trained detector gives, that of output/quickstart (`make demo`); without it the
part is left out, and this is said. `--device cuda` takes at most 8 minutes: the parts, and the rows of `gpu.py`, which
are those of a training step and of inference with each speed option, with launches and waits; `--tiers` names others.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import gpu
import torch
from figures import write_figures
from report import write_report

from focal_det.environment import processor

HERE = Path(__file__).parent
ROOT = HERE.parent
TIERS = ("ops", "step", "inference", "ablation", "growth", "gpu")
OPS_SHARE = 0.25  # of the seconds on a GPU, at most
GPU_TIERS = ("ops", "gpu")  # which has the rows of step, inference and ablation, and more
COMPARED = (
    "Detectron2",
    "Detectron2 tuned, float32",
    "Detectron2 tuned, bfloat16",
    "torchvision",
    "focal_det, float32",
    "focal_det, bfloat16",
)
SPEED_OPTIONS = (
    "none",
    "channels last",
    "folded norms",
    "both (the default)",
    "both, fused SGD",
    "both, torch.compile",
    "both, bfloat16",
)


def run(script: str, *options: object, limit: float | None = None) -> list[dict[str, Any]]:
    """Run a benchmark of this folder, at most for `limit` seconds; return each JSON object that it has printed by then.

    It is ended with all that it has started.
    """
    command = [sys.executable, str(HERE / script), *map(str, options)]
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT, start_new_session=True
        ) as process,
    ):
        is_late = False
        try:
            out, _ = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            is_late = True
            os.killpg(process.pid, signal.SIGKILL)
            out, _ = process.communicate()
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        if process.returncode and not is_late:
            errors.seek(0)
            sys.exit(f"{' '.join(command)}\nexit code {process.returncode}\n{errors.read()[-3000:]}")
    return [json.loads(line) for line in out.splitlines(keepends=True) if line[0] == "{" and line.endswith("}\n")]


def network(mode: str, detectors: tuple[str, ...], scale: list[object], rounds: int = 1) -> dict[str, Any]:
    """Time each detector in rounds: a shared machine is faster in one minute than in another."""
    found: dict[str, Any] = {}
    for _ in range(rounds):
        for name in detectors:
            (one,) = run("network.py", "--detector", name, "--mode", mode, *scale)
            if "failed" in one:
                sys.exit(f"{name}, {mode}: {one['failed']}")
            if name in found:
                one["s"] += found[name]["s"]
            found[name] = one
            print(f"  {mode:9} {name:28} {min(one['s']):8.3f} s", flush=True)
    return found


def ops(
    scale: list[object], counts: tuple[int, ...], trained: list[object], limit: float | None
) -> tuple[dict[str, Any], list[str]]:
    """Time the parts for so many images each, all within `limit` seconds; return also what is left out."""
    end = time.monotonic() + (limit or math.inf)
    found: dict[str, Any] = {}
    left_out = []
    for count in counts:
        seconds = None if limit is None else max(0.1, end - time.monotonic())
        why = "no time was left"
        try:
            done = run("ops.py", "--images", count, *scale, *trained, limit=seconds)
        except SystemExit as failure:
            if "OutOfMemoryError" not in str(failure):  # as a wrong result
                raise
            done, why = [], str(failure).strip().rpartition("\n")[2]
        if not done:
            left_out.append(f"the parts for {count} images: {why}")
            continue
        suffix = f", N={count}" if len(counts) > 1 else ""
        found |= {part + suffix: figures for part, figures in done[0].items()}
    return found, left_out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--images", type=int, help="of a training step; default 2, with --quick 1")
    parser.add_argument("--trained", type=Path, default=ROOT / "output" / "quickstart")
    parser.add_argument("--tiers", nargs="+", choices=TIERS, help="default: on a GPU ops and gpu, else all but gpu")
    parser.add_argument("--seconds", type=float, default=480, help="for all; rows of gpu beyond are left out (480)")
    parser.add_argument("--json", type=Path, help="the figures; a table and a chart are written beside it")
    args = parser.parse_args()
    began = time.monotonic()
    args.tiers = args.tiers or (GPU_TIERS if args.device == "cuda" else [tier for tier in TIERS if tier != "gpu"])
    check(parser, args)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as an exception, which ends what was started, too

    images = args.images or (1 if args.quick else 2)
    size = (256, 320) if args.quick else (800, 1216)
    scale: list[object] = ["--size", *size, "--device", args.device, "--repeats", 1 if args.quick else 3]
    where = (
        f"{processor()}, {torch.get_num_threads()} threads" if args.device == "cpu" else torch.cuda.get_device_name()
    )
    rounds = 1 if args.quick else 2
    figures: dict[str, Any] = {"size": size, "images": images, "where": where + ", --quick" * args.quick}
    if "ops" in args.tiers:
        with tempfile.TemporaryDirectory() as scratch:
            is_gpu = args.device == "cuda"
            counts = (images, 16) if is_gpu and not args.quick else (images,)
            limit = args.seconds * OPS_SHARE if is_gpu else None
            trained = trained_outputs(args.trained, scratch, max(counts), size, limit)
            precision = ["--dtype", "bfloat16"] if is_gpu else []
            limit = None if limit is None else began + limit - time.monotonic()
            figures["ops"], figures["left_out"] = ops([*scale, *precision], counts, trained, limit)
    if "step" in args.tiers:
        figures["step"] = network("train", COMPARED, ["--images", images, *scale], rounds)
    if "inference" in args.tiers:
        figures["inference"] = network("infer", COMPARED, ["--images", 1, *scale], rounds)
    if "ablation" in args.tiers and not args.quick:
        speed_options = (*SPEED_OPTIONS, "both, Triton") if args.device == "cuda" else SPEED_OPTIONS
        of_inference = tuple(name for name in speed_options if not name.endswith(("SGD", "Triton")))
        figures["ablation"] = {
            "train": network("train", speed_options, ["--images", images, *scale]),
            "infer": network("infer", of_inference, ["--images", 1, *scale]),
        }
    if "growth" in args.tiers and not args.quick:
        (figures["growth"],) = run("growth.py", "--device", args.device)
    if "gpu" in args.tiers:
        counts = (1, 2) if args.quick else (2, 16, 1)
        figures["gpu"] = gpu.measure(run, scale, counts, began + args.seconds - time.monotonic())
    if args.json:
        write_figures(args.json, **figures)
    write_report(figures, args.json.with_suffix("") if args.json else None)


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Exit with a message on what is wrong, before the minutes of measuring."""
    if args.images is not None and args.images < 1:
        parser.error(f"--images is {args.images}; at least 1 is needed")
    if args.device not in ("cpu", "cuda") or (args.device == "cuda" and not torch.cuda.is_available()):
        parser.error(f"--device is {args.device}; this machine has cpu{' and cuda' * torch.cuda.is_available()}")
    if not args.seconds > 0:  # nor nan
        parser.error(f"--seconds is {args.seconds}; more than 0 are needed")
    left_out = [tier for tier in args.tiers if args.quick and tier in ("ablation", "growth")]
    if left_out:
        print(f"--quick leaves out {' and '.join(left_out)}")
    if args.json:
        if args.json.suffix != ".json":
            parser.error(f"--json is {args.json}; a name that ends in .json is needed")
        try:
            args.json.parent.mkdir(parents=True, exist_ok=True)
            args.json.with_suffix(".md").touch()
        except OSError as error:
            parser.error(f"--json is {args.json}: {error}")


def trained_outputs(
    folder: Path, scratch: str, images: int, size: tuple[int, int], limit: float | None
) -> list[object]:
    """Return the option of `ops.py` for the outputs of a trained detector, which a processor computes."""
    if not (folder / "model_final.pth").is_file():
        print(f"post-processing is left out: {folder} has no model_final.pth; `make demo` trains one")
        return []
    out = Path(scratch) / "outputs.pth"
    command = ["--run", folder, "--out", out, "--images", images, "--size", *size]
    command = [sys.executable, str(HERE / "trained_outputs.py"), *map(str, command)]
    try:
        subprocess.run(command, cwd=ROOT, check=True, timeout=limit)
    except subprocess.TimeoutExpired:
        print(f"post-processing is left out: the trained detector took more than {limit:.0f} s for {images} images")
        return []
    return ["--trained", out]


if __name__ == "__main__":
    main()
