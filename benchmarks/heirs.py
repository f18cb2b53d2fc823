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
from typing import Any

from few_images import add_lr, add_source, add_ways, lr_words, run, source_words, train_ways
from normaliser import scores, spread

from focal_det.paper.tables import find_table

ROWS = find_table("heirs").rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_source(parser)
    add_ways(parser, ROWS, "output/heirs", iterations=300, num_seeds=3)
    add_lr(parser)
    args = parser.parse_args()
    data, words = source_words(args)
    args.out.mkdir(parents=True, exist_ok=True)

    def train(way: str, seed: int) -> dict[str, Any]:
        overrides = [*ROWS[way].arguments("mini"), "MODEL.FOCAL_DET.DRAW_IMAGES", 0, *lr_words(args)]
        out = args.out / f"{way}_{seed}"
        return scores(run(out, [*words, *overrides], seed, args.iterations, args.iterations // 2))

    found = train_ways(args, args.ways, train, data=data, lr=args.lr)
    print(f"{'way':15} AP  AP50")
    for way, rows in found.items():
        print(f"{way:15} {spread([row['AP'] for row in rows])}  {statistics.mean(row['AP50'] for row in rows):.1f}")


if __name__ == "__main__":
    main()
