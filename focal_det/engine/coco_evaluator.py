"""Score detections as COCO does, and write beside them what they belong to and, if need be, a file to submit."""

from __future__ import annotations

import filecmp
import json
import logging
import math
import os
import re
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage, has_event_storage

from ..distributed.heartbeat import scoring
from ..evaluation.coco_scores import SIZES, area_of, explain_nans, size_of
from ..files import write_text_whole, written_whole
from ..output_layout import ANNOTATIONS, COCO_RESULTS, DATASET, INFERENCE

logger = logging.getLogger(__name__)


class SubmissionEvaluator(COCOEvaluator):
    """COCO's evaluation, which also writes dataset.json and, where a set has no annotations, a submission.

    OUTPUT_DIR gets all in inference/<set>/, see `evaluation_files`. The server wants a zip with one file,
    detections_<set>_<algorithm>_results.json, named like the zip; the algorithm is OUTPUT_DIR's last two folders.
    """

    def __init__(self, cfg: CfgNode, dataset_name: str) -> None:
        self._folder, self._annotations = evaluation_files(Path(cfg.OUTPUT_DIR), dataset_name)
        # never from a cached conversion, which may be of another file
        super().__init__(dataset_name, output_dir=str(self._folder), allow_cached_coco=False)
        self._cfg, self._dataset = cfg, dataset_name

    def evaluate(self, img_ids: Any = None) -> Any:
        """Evaluate as Detectron2 does, on the main process alone."""
        comm.synchronize()  # from here on none waits for another's images
        with scoring() if comm.is_main_process() else nullcontext():
            results = super().evaluate(img_ids)
        detections = self._folder / COCO_RESULTS
        if comm.is_main_process() and detections.is_file():
            self._write_dataset_record()
            if not results:  # nothing to score against
                algorithm = "-".join(Path(self._cfg.OUTPUT_DIR).absolute().parts[-2:])
                name = submission_name(MetadataCatalog.get(self._dataset).json_file, algorithm)
                archive = detections.with_name(f"{name}.zip")
                with written_whole(archive) as partial, ZipFile(partial, "w", ZIP_DEFLATED) as submission:
                    submission.write(detections, f"{name}.json")
                logger.info(f"For the evaluation server: {archive}")
        return results

    def _write_dataset_record(self) -> None:
        """Write dataset.json: the set's name in the run, annotation file, images, and which model detected.

        Paths below OUTPUT_DIR are relative to the folder, so that the run can be moved; others are absolute. "images"
        is null for images that are named by absolute paths, "given_as" for a set that is not the user's own. A model in
        training has "iterations", another one "weights": its file or address.
        """
        run_folder = os.path.abspath(self._cfg.OUTPUT_DIR)

        def portable(path: str | None) -> str | None:
            if not path:
                return None
            full = Path(os.path.abspath(path))
            return os.path.relpath(full, self._folder) if full.is_relative_to(run_folder) else str(full)

        metadata, iterations, weights = MetadataCatalog.get(self._dataset), None, self._cfg.MODEL.WEIGHTS
        if has_event_storage():  # as a training has; behind its last step it counts one more
            iterations, weights = min(get_event_storage().iter + 1, self._cfg.SOLVER.MAX_ITER), None
        elif os.path.isfile(weights):
            weights = portable(weights)
        record = {
            "name": self._folder.name,
            "annotations": portable(self._annotations),
            "images": portable(metadata.get("image_root")),
            "given_as": portable(metadata.get("given_as")),
            "iterations": iterations,
            "weights": weights,
        }
        write_text_whole(self._folder / DATASET, json.dumps(record, indent=1) + "\n")


def evaluation_files(run_folder: Path, dataset_name: str) -> tuple[Path, str]:
    """Return the folder for the detections on a set, and the annotation file that they are scored against.

    The folder is inference/<set>, or inference/<set>-eval-only where the training has another set of that name: flags
    name the user's own sets alike in every run, so an evaluation on another file has the name of the training's set.
    Their checked annotations differ then; if they are equal, the training's are named, which no evaluation overwrites.
    """
    metadata = MetadataCatalog.get(dataset_name)
    folder = run_folder / INFERENCE / dataset_name
    of_training = run_folder / ANNOTATIONS / f"{dataset_name}.json"
    if metadata.get("given_as") is None or not of_training.is_file():
        return folder, metadata.json_file
    if filecmp.cmp(metadata.json_file, of_training, shallow=False):
        return folder, str(of_training)
    return folder.with_name(f"{dataset_name}-eval-only"), metadata.json_file


def submission_name(json_file: str, algorithm: str) -> str:
    """Return the server's name, without its suffix, for detections on a set such as image_info_test-dev2017.json."""
    dataset = re.sub(r"^(image_info|instances)_", "", Path(json_file).stem)
    return f"detections_{dataset}_{re.sub(r'[^A-Za-z0-9-]+', '-', algorithm).strip('-') or 'focal-det'}_results"


def nan_lines(results: Mapping[str, Any], json_files: Mapping[str, str]) -> list[str]:
    """Explain each score that is nan or missing; say nothing of a set whose annotation file cannot be read here.

    `results` are Detectron2's: {"bbox": scores}, or with several sets that by name, as the annotation files are.
    """
    lines = []
    for name, json_file in json_files.items():
        of_set = results if len(json_files) == 1 else results.get(name, {})
        scores = of_set.get("bbox", {})
        if scores and not any(math.isnan(value) for value in scores.values()):
            continue  # no need to read the file
        try:
            explanations = _explain(scores, json.loads(Path(json_file).read_text(encoding="utf-8-sig")))
            lines += [f"{name}: {line}" for line in explanations]
        except (AttributeError, KeyError, OSError, TypeError, ValueError):
            pass  # a file that Detectron2 reads by other means, or that is gone: no reason to end a training
    return lines


def _explain(scores: Mapping[str, float], coco: Mapping[str, Any]) -> list[str]:
    if "annotations" not in coco:
        return ["nothing is scored, since the set has no annotations"]
    objects = [a for a in coco["annotations"] if not a.get("iscrowd")]
    sizes = size_of(np.array([area_of(a) for a in objects]))
    classes = {a["category_id"] for a in objects}
    absent = [c["name"] for c in coco["categories"] if c["id"] not in classes]
    by_size = np.bincount(sizes, minlength=len(SIZES)).tolist()
    return explain_nans(by_size, absent, found_anything=not math.isnan(scores.get("AP", math.nan)))
