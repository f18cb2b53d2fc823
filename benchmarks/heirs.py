"""Do the losses that came after the focal loss, and ATSS, gain on real images? AP of each beside it, at equal budget.

    python benchmarks/heirs.py --data bccd --out output/heirs/bccd [--seeds 1 2 3] [--json FILE]
    python benchmarks/heirs.py --shapes --out output/heirs/shapes ...

Data and training are those of `normaliser.py`, whose `global` is the focal loss here; the ways are the rows of
`focal-det reproduce heirs`, with the miniature's anchors where they have one for each place. The federated loss, which
leaves classes out, needs two or more. Runs that have ended are not made again.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from few_images import add_source, run, source_words
from figures import write_figures
from normaliser import scores, spread

from focal_det.paper.tables import find_table

ROWS = find_table("heirs").rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_source(parser)
    parser.add_argument("--out", type=Path, default=Path("output/heirs"))
    parser.add_argument("--ways", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    data, words = source_words(args)
    args.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in args.ways}
    for seed in args.seeds:  # all ways of a seed beside each other, should the time end
        for way in args.ways:
            overrides = [*ROWS[way].arguments("mini"), "MODEL.FOCAL_DET.DRAW_IMAGES", 0]
            lines = run(args.out / f"{way}_{seed}", [*words, *overrides], seed, args.iterations, args.iterations // 2)
            found[way].append({"seed": seed, **scores(lines)})
            print(data, way, {name: found[way][-1][name] for name in ("seed", "AP", "AP50")}, flush=True)
            if args.json:
                write_figures(args.json, data=data, iterations=args.iterations, runs=found)
    print(f"{'way':15} AP  AP50")
    for way, rows in found.items():
        print(f"{way:15} {spread([row['AP'] for row in rows])}  {statistics.mean(row['AP50'] for row in rows):.1f}")


if __name__ == "__main__":
    main()
