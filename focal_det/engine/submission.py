"""What stands beside the detections: what they are of, and a file for COCO's server if it is not public."""

from __future__ import annotations

import filecmp
import json
import logging
import os
import re
import zipfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage, has_event_storage

from ..files import write_text_whole, written_whole
from ..report.run_files import DATASET, DETECTIONS
from .progress import scoring


class SubmissionEvaluator(COCOEvaluator):
    """COCO's evaluation, which also writes what the detections are of, and a submission where a set has no annotations.

    The server wants a zip with one file, detections_<set>_<algorithm>_results.json, named like the zip.

    Args:
        cfg: whose OUTPUT_DIR gets all in inference/<set>/, see `place_of`; its last two folders are the name
            to submit under.
        dataset_name: registered.
    """

    def __init__(self, cfg: CfgNode, dataset_name: str) -> None:
        self._place = place_of(Path(cfg.OUTPUT_DIR), dataset_name)
        super().__init__(dataset_name, output_dir=str(self._place.folder), allow_cached_coco=False)
        self._dataset = dataset_name
        self._cfg = cfg
        algorithm = "-".join(Path(cfg.OUTPUT_DIR).absolute().parts[-2:])
        self._submission = submission_name(MetadataCatalog.get(dataset_name).json_file, algorithm)

    def evaluate(self, img_ids: Any = None) -> Any:
        """As Detectron2's; of the main process alone."""
        comm.synchronize()  # from here on none waits for another's pictures
        with scoring() if comm.is_main_process() else nullcontext():
            results = super().evaluate(img_ids)
        detections = self._place.folder / DETECTIONS
        if comm.is_main_process() and detections.is_file():
            write_place(self._dataset, self._place, Path(self._cfg.OUTPUT_DIR), **self._evaluated())
            if not results:  # nothing to score against
                archive = write_submission(detections, self._submission)
                logging.getLogger(__name__).info(f"For the evaluation server: {archive}")
        return results

    def _evaluated(self) -> dict[str, Any]:
        """The model: in a training, which has a storage, by its iterations, else by its file."""
        if has_event_storage():
            return {"iterations": min(get_event_storage().iter + 1, self._cfg.SOLVER.MAX_ITER)}
        return {"weights": self._cfg.MODEL.WEIGHTS}


class Place(NamedTuple):
    """Where detections go, and the annotations that they are scored against."""

    folder: Path
    json_file: str


def place_of(run_folder: Path, dataset_name: str) -> Place:
    """inference/<set>, or inference/<set>-eval-only where the training has another set of that name.

    Flags name their sets by place, so that an evaluation on another file has the name of the training's. Their checked
    annotations differ then. Else those of the training are named, which no later evaluation overwrites.

    Args:
        run_folder: OUTPUT_DIR.
        dataset_name: registered.
    """
    metadata = MetadataCatalog.get(dataset_name)
    folder = run_folder / "inference" / dataset_name
    of_training = run_folder / "annotations" / f"{dataset_name}.json"
    if metadata.get("given_as") is None or not of_training.is_file():
        return Place(folder, metadata.json_file)
    if filecmp.cmp(metadata.json_file, of_training, shallow=False):
        return Place(folder, str(of_training))
    return Place(folder.with_name(f"{dataset_name}-eval-only"), metadata.json_file)


def write_place(
    dataset_name: str, place: Place, run_folder: Path, *, iterations: int | None = None, weights: str | None = None
) -> None:
    """Write dataset.json: the set's name in the run, annotation file, pictures, and which model the detections are of.

    Paths below OUTPUT_DIR are relative to the folder, so that the run can be moved; others are absolute. "images" is
    null for pictures that are named by absolute paths, "given_as" for a set that is not the user's own.

    Args:
        dataset_name: registered.
        place: of the detections.
        run_folder: OUTPUT_DIR.
        iterations: that were done, of a model in training.
        weights: file or address of another.
    """

    def named(path: str | None) -> str | None:
        if not path:
            return None
        full = Path(os.path.abspath(path))
        is_inside = full.is_relative_to(os.path.abspath(run_folder))
        return os.path.relpath(full, place.folder) if is_inside else str(full)

    metadata = MetadataCatalog.get(dataset_name)
    record = {
        "name": place.folder.name,
        "annotations": named(place.json_file),
        "images": named(metadata.get("image_root")),
        "given_as": named(metadata.get("given_as")),
        "iterations": iterations,
        "weights": named(weights) if weights and os.path.isfile(weights) else weights,
    }
    write_text_whole(place.folder / DATASET, json.dumps(record, indent=1) + "\n")


def submission_name(json_file: str, algorithm: str) -> str:
    """The server's name for the detections on a set, without its ending.

    Args:
        json_file: of the set, such as image_info_test-dev2017.json.
    """
    dataset = re.sub(r"^(image_info|instances)_", "", Path(json_file).stem)
    return f"detections_{dataset}_{re.sub(r'[^A-Za-z0-9-]+', '-', algorithm).strip('-') or 'focal-det'}_results"


def write_submission(detections: Path, name: str) -> Path:
    """Zip detections under the server's name, beside them; return the archive."""
    archive = detections.with_name(f"{name}.zip")
    with written_whole(archive) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as submission:
        submission.write(detections, f"{name}.json")
    return archive
