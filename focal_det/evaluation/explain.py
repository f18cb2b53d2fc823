"""Why a score is nan, in words."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import some

SIZES = ("small", "medium", "large")
SIZE_WORDS = ("area up to 32^2 px", "area of 32^2 to 96^2 px", "area from 96^2 px on")


def explain_nans(objects_by_size: Sequence[int], absent: Sequence[str], *, found_anything: bool) -> list[str]:
    """A line for each kind of figure that COCO's evaluation leaves nan.

    Args:
        objects_by_size: annotated objects without crowds: small, medium, large.
        absent: names of the classes without objects.
        found_anything: whether there are detections.
    """
    objects = sum(objects_by_size)
    if objects == 0:
        return ["Every figure is nan: the set has no annotated objects, so there is nothing to find."]
    if not found_anything:
        return [
            f"Every figure is nan: there are no detections at all, of {objects:,} object{'' if objects == 1 else 's'}. "
            "Nothing scored above MODEL.RETINANET.SCORE_THRESH_TEST: the training is too short, or has not learnt, or "
            "the weights are another model's."
        ]
    lines = [
        f"AP{size[0]} is nan: the set has no {size} objects ({words})."
        for size, words, count in zip(SIZES, SIZE_WORDS, objects_by_size, strict=True)
        if count == 0
    ]
    if absent:
        many = len(absent) > 1
        lines.append(
            f"{'The figures' if many else 'Each figure'} of {some('', absent)} {'are' if many else 'is'} nan: the "
            f"set has no objects of {'these classes' if many else 'this class'}; means leave "
            f"{'them' if many else 'it'} out."
        )
    return lines
