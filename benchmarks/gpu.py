"""The rows that are measured on a GPU beside those of the processor, within minutes: the part "gpu" of `speed.py`.

What is compared with each other is measured by one start of `network.py`. The starts come in the order of what they
tell, so that what the time does not suffice for is the least; it is named in the figures.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any, NamedTuple

SHAPES = 6
TRAINED = ("bf16", "bf16 TRITON", "bf16 TRITON GRAPHS", "bf16 GRAPHS", "fp32", "fp32 TRITON", "bf16 TRITON COMPILE")
TRAINED += ("bf16 TRITON COMPILE GRAPHS", "bf16 COMPILE", "bf16 COMPILE GRAPHS")
DETECTING = ("bf16", "bf16 GRAPHS", "fp32", "bf16 COMPILE GRAPHS", "bf16 COMPILE")
PEERS = ("Detectron2", "Detectron2 tuned, bfloat16", "torchvision", "torchvision, bfloat16")
TITLES = {"train": "step", "infer": "inference", "network": "network alone"}
RESERVE = 5.0  # seconds for the table and the chart
Run = Callable[..., list[dict[str, Any]]]


class Row(NamedTuple):
    """A detector, what of it is timed, so many images, and so many shapes of them in turns."""

    detector: str
    mode: str
    images: int
    shapes: int = 1


def starts(images: tuple[int, ...]) -> list[list[Row]]:
    """Return all rows, by starts, the most telling first; `images` of a step or a call, the most telling first."""
    found = []
    ours = {"train": TRAINED, "infer": DETECTING, "network": DETECTING}
    for slow in (False, True):  # compiling takes half a minute a row
        kinds = [(mode, count, 1) for count in images for mode in ("train", "infer")]
        kinds.insert(2, ("train", images[0], SHAPES))
        kinds += [("network", count, 1) for count in sorted({min(images), max(images)})]
        for mode, count, shapes in kinds:
            peers = {"network": ()}.get(mode, PEERS[:2] if shapes > 1 else PEERS)
            names = (*peers, *(f"focal_det {name}" for name in ours[mode]))
            found.append([Row(name, mode, count, shapes) for name in names if ("COMPILE" in name) is slow])
    return found


def measure(run: Run, scale: list[object], images: tuple[int, ...], budget: float) -> dict[str, Any]:
    """Measure as many rows as the seconds suffice for.

    Args:
        run: `speed.run`, which takes a script, its options and a limit of seconds, and returns what was done by then.
        scale: options for `network.py`: size, device, repeats.
        images: of a step or a call.
        budget: seconds for all.

    Returns:
        "rows", each with its time, memory, launches, waits and gate; "floor", the operations of an image and what the
        device does of them; "left_out", rows with the reason.
    """
    end = time.monotonic() + budget - RESERVE

    def started(detectors: list[str], *options: object) -> dict[str, dict[str, Any]]:
        seconds = end - time.monotonic()
        found = run("network.py", "--detector", *detectors, *options, *scale, limit=seconds) if seconds > 0 else []
        return {one["detector"]: one for one in found}

    rows, left_out = [], []
    floor = started(["focal_det fp32"], "--mode", "floor").get("focal_det fp32", {"failed": "no time was left"})
    for start in starts(images):
        _, mode, count, shapes = start[0]
        found = started([row.detector for row in start], "--mode", mode, "--images", count, "--shapes", shapes)
        for row in start:
            one = found.get(row.detector, {"failed": "no time was left"})
            if "failed" in one:
                left_out.append([*row, one["failed"]])
                continue
            rows.append(row._asdict() | one)
            print(f"  {mode:7} N={count:<3} {shapes} shape(s) {row.detector:40} {ms(one):8.2f} ms", flush=True)
    return {"rows": rows, "floor": floor, "left_out": left_out}


def cells(figures: dict[str, Any]) -> Iterator[tuple[str, dict[str, dict[str, Any]]]]:
    """Yield what is compared with each other: a title, and the rows by the detector's name."""
    of = {(one["mode"], one["images"], one["shapes"]) for one in figures["rows"]}
    for mode, images, shapes in sorted(of, reverse=True):
        some = [one for one in figures["rows"] if (one["mode"], one["images"], one["shapes"]) == (mode, images, shapes)]
        title = f"{TITLES[mode]}, N={images}, {shapes} shape{'s' if shapes > 1 else ''}"
        yield title, {one["detector"]: one for one in some}


def lines(figures: dict[str, Any], gate: Callable[..., str]) -> Iterator[str]:
    """Yield the tables, in Markdown; `gate` compares a row with Detectron2's."""
    if "failed" in figures["floor"]:
        yield f"- the floor is left out: {figures['floor']['failed']}"
    for title, some in cells(figures):
        theirs, tuned = some.get(PEERS[0]), some.get(PEERS[1])
        yield f"**{title}**"
        yield ""
        yield "| | ms | floor ms | images/s | to Detectron2 tuned | peak GB | launches | waits | gate | first s |"
        yield "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
        for one in some.values():
            ratio = f"{ms(tuned) / ms(one):.2f}" if tuned else ""
            same = gate(TITLES[one["mode"]], one, theirs) if theirs else ""
            counts = " | ".join("" if one.get(key) is None else str(one[key]) for key in ("launches", "waits"))
            speed = f"{ms(one):.2f} | {_floor(one, figures['floor'])} | {1e3 * one['images'] / ms(one):.0f} | {ratio}"
            rest = f"{one['peak_gb']:.2f} | {counts} | {same} | {one['first_s']:.1f}"
            yield f"| {one['detector']} | {speed} | {rest} |"
        yield ""
    for *row, why in figures["left_out"]:
        yield f"- left out: {', '.join(map(str, row))}: {why}"


def _floor(one: dict[str, Any], floor: dict[str, Any]) -> str:
    """Return the milliseconds that the operations of the convolutions take at the speed of a large product."""
    if "failed" in floor:
        return ""
    of_image = floor["train" if one["mode"] == "train" else "infer"]
    return f"{1e3 * one['images'] * of_image / floor['per_s']:.2f}"


def ms(one: dict[str, Any]) -> float:
    """Return the milliseconds of a step or a call."""
    return 1e3 * median(one["s"])
