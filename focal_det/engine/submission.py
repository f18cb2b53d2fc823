"""What stands beside the detections: where their set is, and a file for COCO's server if it is not public."""

from __future__ import annotations

import json
import logging
import re
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.utils import comm

from ..report.run_files import DATASET, DETECTIONS


class SubmissionEvaluator(COCOEvaluator):
    """COCO's evaluation, which also writes where the set is, and a submission where it has no annotations.

    The server wants a zip with one file, detections_<set>_<algorithm>_results.json, named like the zip.

    Args:
        dataset_name: registered.
        output_dir: of the detections and the submission.
        algorithm: the name to submit under; what the server would not take is replaced.
    """

    def __init__(self, dataset_name: str, *, output_dir: str, algorithm: str) -> None:
        super().__init__(dataset_name, output_dir=output_dir, allow_cached_coco=False)
        self._folder = Path(output_dir)
        self._dataset = dataset_name
        self._submission = submission_name(MetadataCatalog.get(dataset_name).json_file, algorithm)

    def evaluate(self, img_ids: Any = None) -> Any:
        """As Detectron2's; of the main process alone."""
        results = super().evaluate(img_ids)
        detections = self._folder / DETECTIONS
        if comm.is_main_process() and detections.is_file():
            write_place(self._dataset, self._folder / DATASET)
            if not results:  # nothing to score against
                archive = write_submission(detections, self._submission)
                logging.getLogger(__name__).info(f"For the evaluation server: {archive}")
        return results


def write_place(dataset_name: str, path: Path) -> None:
    """Write a registered set's name and the absolute paths of its annotation file and pictures, whole or not at all.

    A set whose pictures are named by absolute paths may have no folder of them: "images" is null then.
    """
    metadata = MetadataCatalog.get(dataset_name)
    image_root = metadata.get("image_root")
    record = {
        "name": dataset_name,
        "annotations": str(Path(metadata.json_file).absolute()),
        "images": str(Path(image_root).absolute()) if image_root else None,
    }
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as partial:
        json.dump(record, partial)
    Path(partial.name).replace(path)


def submission_name(json_file: str, algorithm: str) -> str:
    """The server's name for the detections on a set, without its ending.

    Args:
        json_file: of the set, such as image_info_test-dev2017.json.
    """
    dataset = re.sub(r"^(image_info|instances)_", "", Path(json_file).stem)
    return f"detections_{dataset}_{re.sub(r'[^A-Za-z0-9-]+', '-', algorithm).strip('-') or 'focal-det'}_results"


def write_submission(detections: Path, name: str) -> Path:
    """Zip detections under the server's name, beside them; return the archive."""
    archive, partial = detections.with_name(f"{name}.zip"), detections.with_name(f".{name}.part")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as submission:
        submission.write(detections, f"{name}.json")
    return partial.replace(archive)
