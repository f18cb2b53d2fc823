"""What of a checkpoint went into the model, in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from ..errors import visible

# State of the training, not of the detector.
_NOT_COUNTED = "criterion.normalizer.ema"

Shape = tuple[int, ...]


def weights_summary(
    given: Mapping[str, Shape], ours: Mapping[str, Shape], report: Any, *, num_classes: int | None
) -> tuple[str, bool]:
    """Sum up the loading of weights.

    Args:
        given: shapes by name of what the file holds.
        ours: shapes by name of the model's weights and buffers.
        report: fvcore's: `missing_keys`, `unexpected_keys`, `incorrect_shapes` of (name, theirs, ours).
        num_classes: K of the model; None if it does not say.

    Returns:
        The words; and whether everything that the file holds for this model fitted.
    """
    wrong = {name: theirs for name, theirs, _ in report.incorrect_shapes}
    missing = [name for name in report.missing_keys if name in ours and name not in wrong and name != _NOT_COUNTED]
    for name in missing:  # where names are matched by their ends, a misfit is only said to be missing
        theirs = _of_same_name(name, given)
        if theirs is not None and theirs != ours[name]:
            wrong[name] = theirs
    missing = [name for name in missing if name not in wrong]
    total = len(set(ours) - {_NOT_COUNTED})
    matched = total - len(missing) - len(wrong)
    if matched == 0:
        return (
            f"Weights: none of the file's {len(given)} fits one of the model's {total}; the model stays as it was "
            "initialised. Is MODEL.WEIGHTS of this architecture?"
        ), False
    parts = [f"Weights: {matched} of the model's {total} loaded"]
    if wrong:
        parts.append(f"initialised anew, since of another shape in the file: {_misfits(wrong, ours, num_classes)}")
    if missing:
        parts.append(f"initialised anew, since not in the file: {_grouped(missing)}")
    unused = [name for name in report.unexpected_keys if not any(_ends_with(misfit, name) for misfit in wrong)]
    if unused:
        parts.append(f"in the file and not used: {_grouped(unused)}")
    return visible("; ".join(parts)), not wrong


def _misfits(wrong: Mapping[str, Shape], ours: Mapping[str, Shape], num_classes: int | None) -> str:
    words = []
    for name, theirs in wrong.items():
        anchors = ours[name][0] // num_classes if num_classes and ours[name] else 0
        is_score = ".cls_score." in f".{name}" and anchors > 0 and theirs[1:] == ours[name][1:]
        if is_score and theirs[0] % anchors == 0:
            words.append(f"{name} (for {theirs[0] // anchors} classes, the model has {num_classes})")
        else:
            words.append(f"{name} ({theirs} for {ours[name]})")
    more = f" and {len(words) - 4} more" if len(words) > 4 else ""
    return ", ".join(words[:4]) + more


def _grouped(names: Collection[str]) -> str:
    """ "12, such as head.x: 8 of head, 4 of backbone"."""
    counts = Counter(name.split(".")[0] for name in names)
    of_each = ", ".join(f"{count} of {group}" for group, count in counts.most_common(3))
    return f"{len(names)}, such as {min(names)} ({of_each}{', ...' if len(counts) > 3 else ''})"


def _of_same_name(name: str, given: Mapping[str, Shape]) -> Shape | None:
    ends = [other for other in given if _ends_with(name, other)]
    return given[max(ends, key=len)] if ends else None


def _ends_with(name: str, end: str) -> bool:
    return name == end or name.endswith("." + end)
