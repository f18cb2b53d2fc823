"""TEST.EXPECTED_RESULTS: scores that a run must reach, checked before it starts and compared once they are measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from detectron2.config import CfgNode

from ..errors import Findings, cut
from ..output_layout import TTA

_KEY = "TEST.EXPECTED_RESULTS"
_FORM = "[task, metric, value, tolerance], such as ['bbox', 'AP', 37.4, 0.5]"
_MOST = 1e9
_OF_VOC = ("AP", "AP50", "AP75")
_OF_COCO = (*_OF_VOC, "APs", "APm", "APl")
_OF_LVIS = (*_OF_COCO, "APr", "APc", "APf")


class SetScores(NamedTuple):
    """What an evaluation measures on a set.

    evaluator: its evaluator_type, or "" where there is nothing to score against.
    class_names: None if the set does not say.
    """

    evaluator: str
    class_names: Sequence[str] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The scores but for those of single classes."""
        return {"": (), "pascal_voc": _OF_VOC, "lvis": _OF_LVIS}.get(self.evaluator, _OF_COCO)

    @property
    def has_classes(self) -> bool:
        """Whether each class has an AP of its own: in Detectron2 by COCO's rules, where there are several."""
        is_coco = self.names == _OF_COCO
        return is_coco and (self.class_names is None or len(self.class_names) > 1)

    def has(self, metric: str) -> bool:
        """Tell whether a score is measured."""
        name = metric.removeprefix("AP-")
        of_class = name != metric and self.has_classes and name in (self.class_names or (name,))
        return metric in self.names or of_class


def check_expected_results(cfg: CfgNode, scores: Mapping[str, SetScores]) -> Findings:
    """Find entries that are not of Detectron2's form, and tasks and metrics that nothing will measure.

    Args:
        scores: by test set; one that is left out may have any.
    """
    found, sets = Findings(), cfg.DATASETS.TEST
    tasks: dict[str, str] = {}  # each with its set
    for name in sets:
        for suffix in ("", TTA) if cfg.TEST.AUG.ENABLED else ("",):
            tasks[f"{name}{suffix}/bbox" if len(sets) > 1 else f"bbox{suffix}"] = name
    for entry in cfg.TEST.EXPECTED_RESULTS:
        if not _has_form(entry):
            found.errors.append(f"{_KEY} has {cut(entry)}; it must be {_FORM}: numbers, the last >= 0")
        elif entry[0] not in tasks:
            found.errors.append(f"{_KEY} has the task {entry[0]!r}; this run measures {', '.join(tasks)}")
        elif (of_set := scores.get(tasks[entry[0]])) and not of_set.has(entry[1]):
            known = ", ".join((*of_set.names, *(["AP-<class>"] if of_set.has_classes else [])))
            message = f"{_KEY} has the metric {entry[1]!r}; measured on {tasks[entry[0]]} are {known}"
            if not known:
                message = f"{_KEY} expects {entry[1]!r} on {tasks[entry[0]]}, which has no annotated objects to score"
            found.errors.append(message)
    return found


def _has_form(entry: object) -> bool:
    if not isinstance(entry, (list, tuple)) or len(entry) != 4 or not all(isinstance(name, str) for name in entry[:2]):
        return False
    numbers = entry[2:]
    are_numbers = all(isinstance(x, (int, float)) and not isinstance(x, bool) and abs(x) < _MOST for x in numbers)
    return bool(are_numbers and numbers[1] >= 0)


def unmet_expectations(cfg: CfgNode, measured: Mapping[str, float]) -> list[str]:
    """Return a sentence for each expected result that was not measured, or is too far off.

    Args:
        measured: by name as in the metrics, such as "bbox/AP", in points.
    """
    problems = []
    for task, metric, expected, tolerance in cfg.TEST.EXPECTED_RESULTS:
        value = measured.get(f"{task}/{metric}")
        if value is None:
            problems.append(f"{task}/{metric} was not measured; {expected} was expected")
        elif not abs(value - expected) <= tolerance:  # nan is no result
            problems.append(f"{task}/{metric} is {value:.4f}; {expected} was expected, within {tolerance}")
    return problems
