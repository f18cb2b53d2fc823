"""The table and the images of what `speed.py` measured.

python benchmarks/report.py FIGURES.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import gpu
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

OURS = "focal_det"


# What a whole detector may differ from Detectron2's: losses, relatively, and the share of detections with a partner.
LARGEST_LOSS_DIFFERENCE = {"float32": 1e-4, "bfloat16": 2e-2}
SMALLEST_SHARE = {"float32": 0.97, "bfloat16": 0.85}

EXPLANATION = """\
"Speed" is Detectron2's time over the row's; Detectron2 is as shipped, "tuned" is the same with channels_last and, for
bfloat16, autocast. The gate of a part is named behind its title; that of a step is the largest difference of a loss
from Detectron2's, that of inference how many detections of both have a partner of the same class within 3 px and .02
of the score. torchvision has weights of its own."""


def write_report(figures: dict[str, Any], base: Path | None) -> None:
    """Print the table; with a base path also write it as .md, the bars as .png and the growth as -growth.png.

    Raises:
        SystemExit: a detector computes something else than Detectron2's; after writing.
    """
    height, width = figures["size"]
    count = figures["images"]
    title = f"{count} image{'s' * (count > 1)} of {height}x{width} (inference: 1), K = 80, {figures['where']}"
    lines = [title, "", EXPLANATION, "", *_ops_lines(figures), *_network_lines(figures), *_ablation_lines(figures)]
    lines += [f"- left out: {what}" for what in figures.get("left_out", ())]
    lines += gpu.lines(figures["gpu"], gate) if "gpu" in figures else []
    print("\n".join(lines))
    if base is not None:
        base.parent.mkdir(parents=True, exist_ok=True)
        base.with_suffix(".md").write_text("\n".join(lines).rstrip() + "\n")
        _draw_bars(figures, base.with_suffix(".png"), title)
        if "growth" in figures:
            _draw_growth(figures["growth"], base.with_name(base.name + "-growth.png"))
    wrong = [
        f"{title}, {name}"
        for tier, title, found in _compared(figures)
        for name, one in found.items()
        if "Detectron2" in found and not _holds(tier, name, one, found["Detectron2"])
    ]
    if wrong:
        raise SystemExit(f"these compute something else than Detectron2: {'; '.join(wrong)}")


def _ops_lines(figures: dict[str, Any]) -> list[str]:
    lines = []
    for part, result in figures.get("ops", {}).items():
        theirs = result["competitors"]["Detectron2"]["s"]
        lines += [f"**{part}** (gate: {result['unit']})", ""]
        lines += ["| | ms, median (min-max) | speed | extra MB | gate |", "|---|--:|--:|--:|--:|"]
        for name, found in result["competitors"].items():
            spread = f"{found['s'] * 1e3:.1f} ({found['min'] * 1e3:.1f}-{found['max'] * 1e3:.1f})"
            extra = "" if found["extra_mb"] is None else f"{found['extra_mb']:.0f}"
            lines.append(f"| {name} | {spread} | {theirs / found['s']:.1f} | {extra} | {found['error']:.2g} |")
        lines.append("")
    return lines


def _network_lines(figures: dict[str, Any]) -> list[str]:
    lines = []
    for tier in ("step", "inference"):
        if tier not in figures:
            continue
        found = figures[tier]
        theirs = found["Detectron2"]
        lines += [f"**{tier}**", ""]
        lines += ["| | s, median (min-max) | speed | peak GB | of Detectron2's | gate |", "|---|--:|--:|--:|--:|--:|"]
        for name, one in found.items():
            seconds = median(one["s"])
            spread = f"{seconds:.2f} ({min(one['s']):.2f}-{max(one['s']):.2f})"
            memory = f"{one['peak_gb']:.2f} | {one['peak_gb'] / theirs['peak_gb']:.2f}"
            ratio = median(theirs["s"]) / seconds
            lines.append(f"| {name} | {spread} | {ratio:.2f} | {memory} | {gate(tier, one, theirs)} |")
        lines.append("")
    return lines


def _compared(figures: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, dict[str, Any]]]]:
    """Yield the kind, a title and the detectors by name of all that is compared with Detectron2."""
    yield from ((tier, tier, figures[tier]) for tier in ("step", "inference") if tier in figures)
    if "gpu" in figures:
        yield from ((title.partition(",")[0], title, some) for title, some in gpu.cells(figures["gpu"]))


def _holds(tier: str, name: str, one: dict[str, Any], theirs: dict[str, Any]) -> bool:
    """Tell whether rounding explains the gate's figure."""
    found = gate(tier, one, theirs)
    dtype = "bfloat16" if "bf" in name else "float32"
    if found == "other weights":
        return True
    if tier == "step":
        return float(found) <= LARGEST_LOSS_DIFFERENCE[dtype]
    near, total = map(int, found.split(" of "))
    return total > 0 and near >= SMALLEST_SHARE[dtype] * total


def gate(tier: str, one: dict[str, Any], theirs: dict[str, Any]) -> str:
    """Compare with Detectron2 at equal weights: the losses' relative difference, or detections near one of its own."""
    if one["gate"] is None or (tier == "step" and set(one["gate"]) != set(theirs["gate"])):
        return "other weights"
    if tier == "step":
        return f"{max(abs(one['gate'][key] / theirs['gate'][key] - 1) for key in theirs['gate']):.1e}"
    near = sum(_near(a, b) + _near(b, a) for a, b in zip(one["gate"], theirs["gate"], strict=True))
    total = sum(len(found["boxes"]) for found in (*one["gate"], *theirs["gate"]))
    return f"{near} of {total}"


def _near(found: dict[str, Any], others: dict[str, Any]) -> int:
    """Count detections with a partner of the same class on the other side, within 3 px and .02 of the score."""
    rows = [list(zip(x["boxes"], x["scores"], x["classes"], strict=True)) for x in (found, others)]
    return sum(
        any(
            label == other_label
            and abs(score - other_score) < 0.02
            and max(abs(a - b) for a, b in zip(box, other_box, strict=True)) < 3
            for other_box, other_score, other_label in rows[1]
        )
        for box, score, label in rows[0]
    )


def _ablation_lines(figures: dict[str, Any]) -> list[str]:
    if "ablation" not in figures:
        return []
    lines = ["**speed options** (speed: the time without any over the row's)", ""]
    lines += ["| | step s | speed | peak GB | inference s | speed |", "|---|--:|--:|--:|--:|--:|"]
    train, infer = figures["ablation"]["train"], figures["ablation"]["infer"]
    for name in train:
        cells = [f"{median(train[name]['s']):.2f}", f"{_ratio(train, name):.2f}", f"{train[name]['peak_gb']:.2f}"]
        cells += [f"{median(infer[name]['s']):.2f}", f"{_ratio(infer, name):.2f}"] if name in infer else ["", ""]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [*lines, ""]


def _ratio(tier: dict[str, Any], name: str) -> float:
    return median(tier["none"]["s"]) / median(tier[name]["s"])


def _draw_bars(figures: dict[str, Any], path: Path, title: str) -> None:
    """Draw the times of every part as bars."""
    groups = {
        part: {name: x["s"] for name, x in r["competitors"].items()} for part, r in figures.get("ops", {}).items()
    }
    for _, group, found in _compared(figures):
        groups[group] = {name: median(one["s"]) for name, one in found.items()}
    if not groups:
        return
    heights = [0.6 + 0.2 * len(times) for times in groups.values()]
    fig, axes = plt.subplots(len(groups), 1, figsize=(7, 1 + sum(heights)), squeeze=False, height_ratios=heights)
    for axis, (part, times) in zip(axes[:, 0], groups.items(), strict=True):
        names = list(times)[::-1]
        colors = ["tab:orange" if name.startswith(OURS) else "tab:blue" for name in names]
        axis.barh(names, [times[name] for name in names], color=colors)
        for i, name in enumerate(names):
            axis.text(times[name], i, f" {times[name]:.2g} s", va="center", fontsize=8)
        axis.set_title(part, fontsize=9, loc="left")
        axis.set_xlim(0, 1.15 * max(times.values()))
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    fig.suptitle(title, fontsize=9)
    fig.tight_layout()
    fig.savefig(path, dpi=110)


def _draw_growth(growth: dict[str, list[list[float]]], path: Path) -> None:
    fig, axes = plt.subplots(1, len(growth), figsize=(3.3 * len(growth), 3))
    for axis, (name, points) in zip(axes, growth.items(), strict=True):
        sizes, times = zip(*points, strict=True)
        axis.loglog(sizes, [t * 1e3 for t in times], "o-", color="tab:orange")
        linear = [times[-1] * 1e3 * n / sizes[-1] for n in sizes]
        axis.loglog(sizes, linear, ":", color="gray", label="linear")
        axis.set_ylim(min(times) * 1e3 / 2, max(times) * 1e3 * 2)
        axis.set_xticks(sizes, [f"{n:,}" for n in sizes], rotation=30)
        axis.set_yticks(ticks := _round_ticks(times), [f"{t:g}" for t in ticks])
        axis.minorticks_off()
        axis.set_title(name, fontsize=8)
        axis.set_ylabel("ms", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.legend(fontsize=7, frameon=False)
    fig.tight_layout()
    fig.savefig(path, dpi=110)


def _round_ticks(seconds: tuple[float, ...]) -> list[float]:
    """Return 1, 2 and 5 times powers of ten, in ms, as far as the times go and one beyond on either side."""
    ticks = [digit * 10.0**power for power in range(-2, 5) for digit in (1, 2, 5)]
    low, high = min(seconds) * 1e3, max(seconds) * 1e3
    return [tick for tick in ticks if low / 2.5 <= tick <= high * 2.5]


if __name__ == "__main__":
    write_report(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[1]).with_suffix(""))
