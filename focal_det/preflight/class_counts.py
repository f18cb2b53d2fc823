"""Counts of the boxes and images of each class to train on, for the losses that weight by them.

They are settled before the start, as the number of classes is, and saved in config.yaml: a resumed run compares them
with those it began with, and neither an evaluation nor an export needs the data.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from detectron2.config import CfgNode

from ..config.layers import get_value
from ..config.validate import constants_problems
from ..errors import Findings
from ..registries import DENSE_LOSS_REGISTRY
from .datasets import DataSets, DescribedSet

BOXES, IMAGES = "MODEL.FOCAL_DET.LOSS.CLASS_BOXES", "MODEL.FOCAL_DET.LOSS.CLASS_IMAGES"


def count_classes(cfg: CfgNode, data: DataSets) -> tuple[CfgNode, Findings]:
    """Return the configuration with the counts that its loss reads and nobody has set, over all sets to train on.

    Those that are set stay; a warning says where the data have others.
    """
    name, cfg, found = cfg.MODEL.FOCAL_DET.LOSS.NAME, cfg.clone(), Findings()
    is_ours = cfg.MODEL.META_ARCHITECTURE == "FocalRetinaNet" and name in DENSE_LOSS_REGISTRY
    reads = getattr(DENSE_LOSS_REGISTRY.get(name), "reads", ()) if is_ours else ()
    for key in (key for key in (BOXES, IMAGES) if key in reads):
        given, num_classes = list(get_value(cfg, key)), cfg.MODEL.RETINANET.NUM_CLASSES
        if given and len(given) != num_classes:
            found.errors.append(f"{key} has {len(given)} numbers, and there are {num_classes} classes")
            continue
        uncounted = [one for one in data.trained_on if one.content is None]
        if uncounted and not given:
            found.errors += [_uncounted(key, one) for one in uncounted if one.is_sound]
            continue
        counts = [] if uncounted else _counts(key, data.trained_on)
        names = data.trained_on[0].class_names or []
        if given and counts and given != counts:
            found.warnings.append(f"{key} is {_shown(given)}, but the sets to train on have {_shown(counts)}")
        elif not given and 0 in counts:
            missing = names[counts.index(0)]
            found.errors.append(
                f"the sets to train on have no box of class {missing!r}, for which {key} has no weight: leave the "
                f"class out with --classes, or set {key}, with 1 for it"
            )
        elif not given and counts:
            cfg.merge_from_list([key, counts])
            found.errors += constants_problems(cfg)  # those that only the number of classes tells
            few, many = int(np.argmin(counts)), int(np.argmax(counts))
            what = f"fewest {counts[few]:,} ({names[few]}), most {counts[many]:,} ({names[many]})"
            found.notes.append(f"{key} counted in the sets to train on: {what}")
    return cfg, found


def _counts(key: str, sets: Sequence[DescribedSet]) -> list[int]:
    """Return the sum over the sets by class; [] where they differ in their classes, which is an error elsewhere."""
    contents = [one.content for one in sets if one.content is not None]
    rows = [list(content.instances if key == BOXES else content.class_images) for content in contents]
    if len({len(row) for row in rows}) != 1:
        return []
    return [int(count) for count in np.sum(rows, axis=0)]


def _uncounted(key: str, one: DescribedSet) -> str:
    return (
        f"data set {one.name}: {one.remark}, so {key} cannot be counted: set it, a number >= 1 for each class, or draw "
        "generated shapes first, by `focal-det data inspect`"
    )


def _shown(counts: Sequence[int]) -> str:
    return f"[{', '.join(map(str, counts[:5]))}{', ...' if counts[5:] else ''}]"
