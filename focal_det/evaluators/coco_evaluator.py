"""Score detections as COCO does, and write beside them what they belong to and, if need be, a file to submit."""

from __future__ import annotations

import filecmp
import json
import logging
import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage, has_event_storage

from ..data.catalog import category_ids, has_checked_copy, scoring_metadata
from ..distributed.heartbeat import scored_by_rank_0
from ..evaluation.coco_arrays import accumulate
from ..evaluation.coco_scores import SIZES, explain_nans, size_of
from ..files import write_text_whole, written_whole
from ..formats.coco_index import area_of
from ..output_layout import ANNOTATIONS, COCO_RESULTS, DATASET, INFERENCE

logger = logging.getLogger(__name__)
_LIMITS = (1, 10, 100)  # detections of an image and class that count, as everybody reports them


class SubmissionEvaluator(COCOEvaluator):
    """COCO's evaluation, which also writes dataset.json and, where a set has no annotations, a submission.

    OUTPUT_DIR gets all in inference/<set>/, see `evaluation_files`. The server wants a zip with one file,
    detections_<set>_<algorithm>_results.json, named like the zip; the algorithm is OUTPUT_DIR's last two folders.
    """

    def __init__(self, cfg: CfgNode, dataset_name: str, inference: str = INFERENCE) -> None:
        self._files = evaluation_files(Path(cfg.OUTPUT_DIR), dataset_name, inference)
        self._folder, _ = self._files
        # never from a cached conversion, which may be of another file: a set without a JSON file has a checked copy
        super().__init__(scoring_metadata(dataset_name).name, output_dir=str(self._folder), allow_cached_coco=False)
        self._cfg, self._dataset = cfg, dataset_name

    def evaluate(self, img_ids: Any = None) -> Any:
        """Evaluate as Detectron2 does, on the main process alone."""
        with scored_by_rank_0():
            results = super().evaluate(img_ids)
        detections = self._folder / COCO_RESULTS
        if comm.is_main_process() and detections.is_file():
            write_dataset_record(self._cfg, self._dataset, self._files)
            if not results:  # nothing to score against
                algorithm = "-".join(Path(self._cfg.OUTPUT_DIR).absolute().parts[-2:])
                name = submission_name(scoring_metadata(self._dataset).json_file, algorithm)
                archive = detections.with_name(f"{name}.zip")
                with written_whole(archive) as partial, ZipFile(partial, "w", ZIP_DEFLATED) as submission:
                    submission.write(detections, f"{name}.json")
                logger.info(f"For the evaluation server: {archive}")
        return results

    def _eval_predictions(self, predictions: Any, img_ids: Any = None) -> None:
        """Score boxes, which is all that this detector gives, with hotcoco instead of Detectron2's `COCOeval_opt`."""
        found = [row for part in predictions for row in part["instances"]]
        rows = write_results(self._folder, found, self._metadata.as_dict())
        if not self._do_evaluation:
            logger.info("Annotations are not available for evaluation.")
            return
        truth, scored = self._coco_api.dataset, None
        if img_ids is not None:
            among = set(img_ids)
            truth = {**truth, "images": [image for image in truth["images"] if image["id"] in among]}
            of_images = ([r for r in part if r["image_id"] in among] for part in (truth["annotations"], rows))
            truth["annotations"], rows = of_images
        if rows:
            scored = accumulate(truth, rows, _LIMITS)
            scored.summarize()  # prints COCO's twelve lines
        self._results["bbox"] = self._derive_coco_results(scored, "bbox", self._metadata.get("thing_classes"))


def write_dataset_record(
    cfg: CfgNode, dataset_name: str, files: tuple[Path, str], own_scores: Mapping[str, Any] | None = None
) -> None:
    """Write dataset.json: the set's name in the run, annotation file, images, and which model detected.

    Paths below OUTPUT_DIR are relative to the folder, so that the run can be moved; others are absolute. "images" is
    null for images that are named by absolute paths, "given_as" for a set that is not the user's own. A model in
    training has "iterations", another one "weights": its file or address.

    Args:
        files: of `evaluation_files`.
        own_scores: "rule" and "scores" of a set that is not scored as COCO does.
    """
    run_folder = os.path.abspath(cfg.OUTPUT_DIR)
    folder, annotations = files

    def portable(path: str | None) -> str | None:
        if not path:
            return None
        full = Path(os.path.abspath(path))
        return os.path.relpath(full, folder) if full.is_relative_to(run_folder) else str(full)

    iterations, weights = None, cfg.MODEL.WEIGHTS
    if has_event_storage():  # as a training has; behind its last step it counts one more
        iterations, weights = min(get_event_storage().iter + 1, cfg.SOLVER.MAX_ITER), None
    elif os.path.isfile(weights):
        weights = portable(weights)
    record = {
        "name": folder.name,
        "annotations": portable(annotations),
        "images": portable(scoring_metadata(dataset_name).get("image_root")),
        "given_as": portable(MetadataCatalog.get(dataset_name).get("given_as")),
        "iterations": iterations,
        "weights": weights,
        **(own_scores or {}),
    }
    write_text_whole(folder / DATASET, json.dumps(record, indent=1) + "\n")


def evaluation_files(run_folder: Path, dataset_name: str, inference: str = INFERENCE) -> tuple[Path, str]:
    """Return the folder for the detections on a set, and the annotation file that they are scored against.

    The folder is inference/<set>, or inference/<set>-eval-only where the training has another set of that name: flags
    name the user's own sets alike in every run, so an evaluation on another file has the name of the training's set,
    and what a registered function returns may have changed. Their checked annotations differ then; if they are equal,
    the training's are named, which no evaluation overwrites. An evaluation of another kind has another folder than
    inference/.
    """
    annotations: str = scoring_metadata(dataset_name).json_file
    folder = run_folder / inference / dataset_name
    of_training = run_folder / ANNOTATIONS / f"{dataset_name}.json"
    if not has_checked_copy(dataset_name) or not of_training.is_file():
        return folder, annotations
    if filecmp.cmp(annotations, of_training, shallow=False):
        return folder, str(of_training)
    return folder.with_name(f"{dataset_name}-eval-only"), annotations


def submission_name(json_file: str, algorithm: str) -> str:
    """Return the server's name, without its suffix, for detections on a set such as image_info_test-dev2017.json."""
    dataset = re.sub(r"^(image_info|instances)_", "", Path(json_file).stem)
    return f"detections_{dataset}_{re.sub(r'[^A-Za-z0-9-]+', '-', algorithm).strip('-') or 'focal-det'}_results"


def nan_lines(results: Mapping[str, Mapping[str, Any]], json_files: Mapping[str, str]) -> list[str]:
    """Explain each score that is nan or missing; say nothing of a set whose annotation file cannot be read here.

    `results` are Detectron2's, and the annotation files, by the set's name.
    """
    lines = []
    for name, json_file in json_files.items():
        scores = results.get(name, {}).get("bbox", {})
        if scores and not any(math.isnan(value) for value in scores.values()):
            continue  # no need to read the file
        try:
            explanations = _explain(scores, json.loads(Path(json_file).read_text(encoding="utf-8-sig")))
            lines += [f"{name}: {line}" for line in explanations]
        except (AttributeError, KeyError, OSError, TypeError, ValueError):
            pass  # a file that Detectron2 reads by other means, or that is gone: no reason to end a training
    return lines


def write_results(folder: Path, rows: Iterable[Mapping[str, Any]], metadata: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Write detections in COCO's form, with the set's own category ids in the place of labels; return them."""
    ids = category_ids(metadata)
    renamed = [{**row, "category_id": ids[row["category_id"]]} for row in rows]
    write_text_whole(folder / COCO_RESULTS, json.dumps(renamed))
    return renamed


def _explain(scores: Mapping[str, float], coco: Mapping[str, Any]) -> list[str]:
    if "annotations" not in coco:
        return ["nothing is scored, since the set has no annotations"]
    objects = [a for a in coco["annotations"] if not a.get("iscrowd")]
    sizes = size_of(np.array([area_of(a) for a in objects]))
    classes = {a["category_id"] for a in objects}
    absent = [c["name"] for c in coco["categories"] if c["id"] not in classes]
    by_size = np.bincount(sizes, minlength=len(SIZES)).tolist()
    lines = explain_nans(by_size, absent, found_anything=not math.isnan(scores.get("AP", math.nan)))
    if math.isnan(scores.get("AP", math.nan)):
        return lines
    groups = {c["id"]: c.get("frequency") for c in coco["categories"]}
    there = {groups[category] for category in classes}
    return lines + [
        f"AP{letter} is nan: the set has no objects of {word} classes."
        for letter, word in {"r": "rare", "c": "common", "f": "frequent"}.items()
        if f"AP{letter}" in scores and letter not in there
    ]
