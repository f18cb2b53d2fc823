"""Score a test set by the rules of its kind, COCO's, Pascal VOC's or LVIS's, with Detectron2's own evaluators.

Whatever the kind, the detections are also written in COCO's form, beside dataset.json, for the report.
"""

from __future__ import annotations

import itertools
import logging
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, LVISEvaluator, PascalVOCDetectionEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.evaluation.pascal_voc_evaluation import parse_rec
from detectron2.utils import comm

from ..data.catalog import evaluator_type, scoring_metadata
from ..distributed.heartbeat import scored_by_rank_0
from ..files import written_whole
from ..output_layout import COCO_RESULTS, INFERENCE, LVIS_RESULTS
from .coco_evaluator import SubmissionEvaluator, evaluation_files, nan_lines, write_dataset_record, write_results

logger = logging.getLogger(__name__)


def make_evaluator(cfg: CfgNode, dataset_name: str, inference: str = INFERENCE) -> DatasetEvaluator:
    """Make the evaluator of a registered set, which writes below that folder of OUTPUT_DIR."""
    kinds = {"pascal_voc": VocEvaluator, "lvis": FederatedEvaluator}
    kind: Any = kinds.get(evaluator_type(dataset_name), SubmissionEvaluator)
    evaluator: DatasetEvaluator = kind(cfg, dataset_name, inference)
    return evaluator


def explain_nan_scores(sets: Sequence[str], results: Mapping[str, Any]) -> None:
    """Explain in the log, on the main process, every AP that is nan in Detectron2's results of these sets."""
    if not comm.is_main_process():
        return
    by_set = results if len(sets) > 1 else {sets[0]: results}
    # preflight has warned of the classes that make Pascal VOC's scores nan
    json_files = {n: scoring_metadata(n).get("json_file") for n in sets if evaluator_type(n) != "pascal_voc"}
    for line in nan_lines(by_set, {name: path for name, path in json_files.items() if path is not None}):
        logger.info(line)


class VocEvaluator(PascalVOCDetectionEvaluator):
    """Pascal VOC's evaluation, which also writes the detections in COCO's form, and dataset.json."""

    def __init__(self, cfg: CfgNode, dataset_name: str, inference: str = INFERENCE) -> None:
        super().__init__(dataset_name)
        self._cfg, self._dataset = cfg, dataset_name
        self._files = evaluation_files(Path(cfg.OUTPUT_DIR), dataset_name, inference)
        self._rows: list[dict[str, Any]] = []

    def reset(self) -> None:
        super().reset()
        self._rows = []

    def process(self, inputs: Any, outputs: Any) -> None:
        super().process(inputs, outputs)  # as lines of text that are rounded, so not to be read back
        for image, output in zip(inputs, outputs, strict=True):
            self._rows += instances_to_coco_json(output["instances"].to("cpu"), image["image_id"])

    def evaluate(self) -> Any:
        """Evaluate as Detectron2 does, on the main process alone."""
        rows = list(itertools.chain(*comm.gather(self._rows, dst=0)))
        parse_rec.cache_clear()  # annotations that were corrected since the last evaluation in this process
        # a class without objects has 0 of 0 recall, for which NumPy would print a warning
        with np.errstate(invalid="ignore", divide="ignore"), scored_by_rank_0():
            results = super().evaluate()
        if comm.is_main_process():
            write_results(self._files[0], rows, scoring_metadata(self._dataset).as_dict())
            rule = f"Pascal VOC {MetadataCatalog.get(self._dataset).year}"
            write_dataset_record(self._cfg, self._dataset, self._files, _own_scores(rule, results))
        return results


class FederatedEvaluator(LVISEvaluator):
    """LVIS's evaluation, which also leaves the detections under COCO's name, and dataset.json.

    A score that has nothing to be computed from is nan, as COCO's is, instead of LVIS's -1.
    """

    def __init__(self, cfg: CfgNode, dataset_name: str, inference: str = INFERENCE) -> None:
        self._files = evaluation_files(Path(cfg.OUTPUT_DIR), dataset_name, inference)
        self._folder, _ = self._files
        super().__init__(scoring_metadata(dataset_name).name, output_dir=str(self._folder))
        self._cfg, self._dataset = cfg, dataset_name

    def evaluate(self) -> Any:
        """Evaluate as Detectron2 does, on the main process alone."""
        with _numpy_of_lvis(), scored_by_rank_0():
            results = super().evaluate()
        if not comm.is_main_process() or not (self._folder / LVIS_RESULTS).is_file():
            return results
        for scores in results.values():
            scores.update({name: math.nan for name, value in scores.items() if value < 0})
        with written_whole(self._folder / COCO_RESULTS) as partial:
            shutil.copyfile(self._folder / LVIS_RESULTS, partial)
        write_dataset_record(self._cfg, self._dataset, self._files, _own_scores("LVIS", results))
        return results


@contextmanager
def _numpy_of_lvis() -> Iterator[None]:
    """Give NumPy the old name of float that LVIS's package 0.5.3, its newest, still uses; NumPy dropped it in 1.24."""
    if hasattr(np, "float"):
        yield
        return
    np.float = float  # type: ignore[attr-defined]
    try:
        yield
    finally:
        del np.float  # type: ignore[attr-defined]


def _own_scores(rule: str, results: Mapping[str, Any]) -> dict[str, Any]:
    scores = {name: None if math.isnan(value) else float(value) for name, value in results.get("bbox", {}).items()}
    return {"rule": rule, "scores": scores}
