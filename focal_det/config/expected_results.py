"""Scores that a configuration names, checked before the start: those of TEST.EXPECTED_RESULTS and PATIENCE_METRIC.

The former, which a run must reach, are compared once they are measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from detectron2.config import CfgNode

from ..errors import Findings, cut
from ..output_layout import EMA, TTA, score_prefix

_KEY = "TEST.EXPECTED_RESULTS"
_PATIENCE_METRIC = "MODEL.FOCAL_DET.PATIENCE_METRIC"
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
            tasks[score_prefix(name, sets, suffix).rstrip("/")] = name
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


def check_patience(cfg: CfgNode, scores: Mapping[str, SetScores]) -> Findings:
    """Find an early stopping that no evaluation, or none that measures its metric, would ever tell to stop.

    `scores` are those of `check_expected_results`.
    """
    own, sets = cfg.MODEL.FOCAL_DET, cfg.DATASETS.TEST
    patience, metric, found = f"MODEL.FOCAL_DET.PATIENCE is {own.PATIENCE}", own.PATIENCE_METRIC, Findings()
    if own.PATIENCE <= 0:
        return found
    if cfg.TEST.EVAL_PERIOD <= 0:
        message = f"{patience}, in evaluations, and TEST.EVAL_PERIOD {cfg.TEST.EVAL_PERIOD} has none before the end"
        found.errors.append(f"{message}: set that to so many iterations, or PATIENCE to 0")
    tasks = {score_prefix(name, sets): scores.get(name) for name in sets}
    if not metric:
        if sets and all(of_set is not None and not of_set.names for of_set in tasks.values()):
            fix = f"set {_PATIENCE_METRIC}, such as val/total_loss, or PATIENCE to 0"
            found.errors.append(f"{patience}, and no test set has annotated objects, of which there is an AP: {fix}")
        return found
    plain = metric.removeprefix(f"{EMA}/")
    has_average, has_losses = own.EMA.DECAY != 0, own.VAL_LOSS and cfg.MODEL.META_ARCHITECTURE == "FocalRetinaNet"
    task = next((task for task in tasks if plain.startswith(task)), "")
    of_set = tasks.get(task)
    is_scored = bool(task) and (of_set is None or of_set.has(plain.removeprefix(task)))
    if (plain == metric or has_average) and (is_scored or (has_losses and plain.startswith("val/"))):
        return found
    known = [*(f"{task}{name}" for task, s in tasks.items() for name in (s.names if s else ["AP"]))]
    known += ["val/total_loss", "val/loss_cls", "val/loss_box_reg"] if has_losses else []
    ema = f", and each with {EMA}/ before it" if has_average else f"; {EMA}/... needs MODEL.FOCAL_DET.EMA.DECAY"
    found.errors.append(f"{_PATIENCE_METRIC} is {cut(metric)!r}; evaluations measure {', '.join(known) or 'none'}{ema}")
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
