"""The rows that are measured on a GPU beside those of the processor, within minutes: the part "gpu" of `speed.py`.

Each row is a process of its own (`network.py`, `ops.py`). They come in the order of what they tell, so that what the
time does not suffice for is the least; it is named in the figures.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any, NamedTuple

SHAPES = 6
TRAINED = ("bf16", "bf16 TRITON", "bf16 TRITON GRAPHS", "fp32", "bf16 GRAPHS", "bf16 TRITON COMPILE")
TRAINED += ("bf16 COMPILE", "bf16 TRITON COMPILE GRAPHS")
DETECTING = ("bf16", "bf16 GRAPHS", "fp32", "bf16 COMPILE", "bf16 COMPILE GRAPHS")
PEERS = ("Detectron2", "Detectron2 tuned, bfloat16", "torchvision")
TITLES = {"train": "step", "infer": "inference"}
RESERVE = 5.0  # seconds for the table and the chart


class Row(NamedTuple):
    """A detector, "train" or "infer", so many images, and so many shapes of them in turns."""

    detector: str
    mode: str
    images: int
    shapes: int = 1


def rows(images: tuple[int, ...]) -> list[Row]:
    """Return all rows, the most telling first; `images` of a step or a call, the most telling first."""
    found = []
    for slow in (False, True):  # compiling takes half a minute a row
        for count in images:
            for mode, ours in (("train", TRAINED), ("infer", DETECTING)):
                names = (*PEERS, *(f"focal_det {name}" for name in ours))
                found += [Row(name, mode, count) for name in names if ("COMPILE" in name) is slow]
        names = (PEERS[1], *(f"focal_det {name}" for name in TRAINED))
        found += [Row(name, "train", 2, SHAPES) for name in names if ("COMPILE" in name) is slow]
    return found


def measure(
    run: Callable[..., dict[str, Any]], scale: list[object], images: tuple[int, ...], budget: float
) -> dict[str, Any]:
    """Measure as many rows as the seconds suffice for.

    Args:
        run: `speed.run`, which takes a script, its options and a limit of seconds, and raises TimeoutError beyond it,
            SystemExit where the script fails.
        scale: options for `network.py`: size, device, repeats.
        images: of a step or a call.
        budget: seconds for all.

    Returns:
        "rows", each with its time, memory, launches, waits and gate; "left_out", each with the reason.
    """
    end = time.monotonic() + budget - RESERVE
    found: list[dict[str, Any]] = []
    left_out = []
    for row in rows(images):
        seconds = end - time.monotonic()
        try:
            if seconds <= 0:
                raise TimeoutError
            options = ("--detector", row.detector, "--mode", row.mode, "--images", row.images, "--shapes", row.shapes)
            one = run("network.py", *options, *scale, limit=seconds)
        except TimeoutError:
            left_out.append([*row, "no time was left"])
            continue
        except SystemExit as failure:  # as for want of memory: the other rows still tell
            left_out.append([*row, str(failure).strip().rpartition("\n")[2]])
            print(failure)
            continue
        found.append(row._asdict() | one)
        print(f"  {row.mode:6} N={row.images:<3} {row.shapes} shape(s) {row.detector:40} {ms(one):8.2f} ms", flush=True)
    return {"rows": found, "left_out": left_out}


def cells(figures: dict[str, Any]) -> Iterator[tuple[str, dict[str, dict[str, Any]]]]:
    """Yield what is compared with each other: a title, and the rows by the detector's name."""
    of = {(one["mode"], one["images"], one["shapes"]) for one in figures["rows"]}
    for mode, images, shapes in sorted(of, reverse=True):
        some = [one for one in figures["rows"] if (one["mode"], one["images"], one["shapes"]) == (mode, images, shapes)]
        title = f"{TITLES[mode]}, N={images}, {shapes} shape{'s' if shapes > 1 else ''}"
        yield title, {one["detector"]: one for one in some}


def lines(figures: dict[str, Any], gate: Callable[..., str]) -> Iterator[str]:
    """Yield the tables, in Markdown; `gate` compares a row with Detectron2's."""
    for title, some in cells(figures):
        theirs, tuned = some.get(PEERS[0]), some.get(PEERS[1])
        yield f"**{title}**"
        yield ""
        yield "| | ms | images/s | to Detectron2 tuned | peak GB | launches | waits | gate | first s |"
        yield "|---|--:|--:|--:|--:|--:|--:|--:|--:|"
        for one in some.values():
            ratio = f"{ms(tuned) / ms(one):.2f}" if tuned else ""
            same = gate(TITLES[one["mode"]], one, theirs) if theirs else ""
            counts = " | ".join("" if one.get(key) is None else str(one[key]) for key in ("launches", "waits"))
            speed = f"{ms(one):.2f} | {1e3 * one['images'] / ms(one):.0f} | {ratio}"
            rest = f"{one['peak_gb']:.2f} | {counts} | {same} | {one['first_s']:.1f}"
            yield f"| {one['detector']} | {speed} | {rest} |"
        yield ""
    for *row, why in figures["left_out"]:
        yield f"- left out: {', '.join(map(str, row))}: {why}"


def ms(one: dict[str, Any]) -> float:
    """Return the milliseconds of a step or a call."""
    return 1e3 * median(one["s"])
