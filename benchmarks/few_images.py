"""Does augmentation help with few images? A small detector trained on some of a data set's, with and without it.

    python benchmarks/few_images.py --data bccd --out output/few_images/bccd [--images 40] [--seeds 1 2 3] [--json FILE]

--data has instances_train.json, instances_test.json and images/. The same images, drawn with seed 0, are taken in each
run; `configs/bccd.yaml` at 160 px, from scratch, in bfloat16 where the processor has it. Runs that have ended are not
made again.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from figures import write_figures

ROOT = Path(__file__).parents[1]
AUGMENT = "MODEL.FOCAL_DET.AUGMENT."
JITTER = [f"{AUGMENT}SCALE_JITTER", "[0.6, 1.6]"]
COLOURS = [word for name in ("BRIGHTNESS", "CONTRAST", "SATURATION") for word in (AUGMENT + name, "0.2")]
SMALL = ["INPUT.MIN_SIZE_TRAIN", [160], "INPUT.MIN_SIZE_TEST", 160, "SOLVER.IMS_PER_BATCH", 4]
WAYS = {"without": [], "with": [*JITTER, *COLOURS]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--iterations", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    subset = write_subset(args.data / "instances_train.json", args.out / "train.json", args.images)
    found = train_ways(
        args,
        WAYS,
        lambda way, seed: train(args, subset, args.out / f"{way}_{seed}", WAYS[way], seed),
        data=args.data.name,
        images=args.images,
    )
    for way, rows in found.items():
        scores = [row["AP"] for row in rows]
        spread = f" ± {statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
        print(f"{way:8} AP {statistics.mean(scores):.1f}{spread}")


def write_subset(source: Path, target: Path, number: int) -> Path:
    """Write COCO's file of some of the images, the same for the same number."""
    coco = json.loads(source.read_text())
    images = random.Random(0).sample(sorted(coco["images"], key=lambda image: image["file_name"]), number)
    ids = {image["id"] for image in images}
    rows = [row for row in coco["annotations"] if row["image_id"] in ids]
    target.write_text(json.dumps(coco | {"images": images, "annotations": rows}))
    return target


def train(args: argparse.Namespace, subset: Path, out: Path, overrides: list[str], seed: int) -> dict[str, Any]:
    """Train, and return the scores of the last weights beside the last losses of both sets."""
    words = ["--config-file", ROOT / "configs/bccd.yaml", *sets(args.data, subset), *overrides, *SMALL]
    last: dict[str, Any] = {}
    for line in run(out, words, seed, args.iterations, args.iterations // 2):
        last |= line
    names = {"bbox/AP": "AP", "bbox/AP50": "AP50", "total_loss": "loss", "val/total_loss": "test loss"}
    return {short: round(last[name], 3) for name, short in names.items()}


def sets(data: Path, train_json: Path) -> list[Any]:
    """Return the flags of a data set with instances_test.json and images/, trained on by this file."""
    images = data / "images"
    test = ["--val-json", data / "instances_test.json", "--val-images", images]
    return ["--train-json", train_json, "--train-images", images, *test]


def add_source(parser: argparse.ArgumentParser) -> argparse._MutuallyExclusiveGroup:
    """Add --data and --shapes, of which one is needed."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", type=Path)
    source.add_argument("--shapes", action="store_true")
    return source


def source_words(args: argparse.Namespace) -> tuple[str, list[Any]]:
    """Return the name of the data that `add_source` chose, and the flags of a small training on them."""
    if args.data is None:
        return "shapes", ["--config-file", ROOT / "configs/quickstart.yaml"]
    train_json = args.data / "instances_train.json"
    return args.data.name, ["--config-file", ROOT / "configs/bccd.yaml", *sets(args.data, train_json), *SMALL]


def add_ways(parser: argparse.ArgumentParser, ways: Iterable[str], out: str, iterations: int, num_seeds: int) -> None:
    """Add where to train which ways, for how long and with which seeds, and where to write the figures."""
    parser.add_argument("--out", type=Path, default=Path(out))
    parser.add_argument("--ways", nargs="+", choices=list(ways), default=list(ways))
    parser.add_argument("--iterations", type=int, default=iterations)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(1, num_seeds + 1)))
    parser.add_argument("--json", type=Path)


def add_lr(parser: argparse.ArgumentParser) -> None:
    """Add --lr, which `lr_words` makes keys of."""
    parser.add_argument("--lr", type=float, help="of every way, in an --out of its own (default: the configuration's)")


def lr_words(args: argparse.Namespace) -> list[Any]:
    """Return the keys of --lr; none where it is not given."""
    return [] if args.lr is None else ["SOLVER.BASE_LR", args.lr]


def train_ways(
    args: argparse.Namespace, ways: Iterable[str], train: Callable[[str, int], dict[str, Any]], **heading: Any
) -> dict[str, list[dict[str, Any]]]:
    """Train each way with each of --seeds; print what `train` returns, and write all of it to --json, after each.

    Returns:
        By way, the outcomes with their seeds.
    """
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    for seed in args.seeds:  # all ways of a seed beside each other, should the time end
        for way, rows in found.items():
            rows.append({"seed": seed, **train(way, seed)})
            print(way, {name: value for name, value in rows[-1].items() if not isinstance(value, dict)}, flush=True)
            if args.json:
                write_figures(args.json, **heading, iterations=args.iterations, runs=found)
    return found


def run(
    out: Path,
    words: list[Any],
    seed: int,
    iterations: int,
    period: int,
    script: Sequence[Any] = (ROOT / "train_net.py",),
) -> list[dict[str, Any]]:
    """Train in bfloat16, evaluated and saved every `period` iterations; return the lines of metrics.json."""
    keys: dict[str, Any] = {
        "OUTPUT_DIR": out,
        "SEED": seed,
        "SOLVER.MAX_ITER": iterations,
        "SOLVER.STEPS": [iterations * 3 // 4, iterations * 93 // 100],
        "SOLVER.CHECKPOINT_PERIOD": period,
        "SOLVER.AMP.ENABLED": True,
        "SOLVER.AMP.DTYPE": "bfloat16",
        "TEST.EVAL_PERIOD": period,
        "DATALOADER.NUM_WORKERS": 1,
    }
    command = [sys.executable, *script, "--resume", "auto", *words]
    command += [word for pair in keys.items() for word in pair]
    if not (out / "report.html").is_file():  # which comes last
        file = out.with_name(f"{out.name}.log")
        with file.open("w") as log:
            done = subprocess.run(list(map(str, command)), stdout=log, stderr=subprocess.STDOUT, cwd=ROOT)
        if done.returncode:
            sys.exit("\n".join([*file.read_text().splitlines()[-5:], f"the training of {file} ended with an error"]))
    return [json.loads(line) for line in (out / "metrics.json").read_text().splitlines()]


if __name__ == "__main__":
    main()
