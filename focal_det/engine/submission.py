"""The file that COCO's server takes, for test sets whose annotations are not public."""

from __future__ import annotations

import logging
import re
import zipfile
from pathlib import Path
from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.utils import comm

_RESULTS = "coco_instances_results.json"  # Detectron2's name for it


class SubmissionEvaluator(COCOEvaluator):
    """COCO's evaluation, which also writes a submission where a set has no annotations to score against.

    The server wants a zip with one file, detections_<set>_<algorithm>_results.json, named like the zip.

    Args:
        dataset_name: registered.
        output_dir: of the detections and the submission.
        algorithm: the name to submit under; what the server would not take is replaced.
    """

    def __init__(self, dataset_name: str, *, output_dir: str, algorithm: str) -> None:
        super().__init__(dataset_name, output_dir=output_dir, allow_cached_coco=False)
        self._folder = Path(output_dir)
        self._submission = submission_name(MetadataCatalog.get(dataset_name).json_file, algorithm)

    def evaluate(self, img_ids: Any = None) -> Any:
        """As Detectron2's; of the main process alone."""
        results = super().evaluate(img_ids)
        detections = self._folder / _RESULTS
        if comm.is_main_process() and not results and detections.is_file():  # nothing to score against
            archive = write_submission(detections, self._submission)
            logging.getLogger(__name__).info(f"For the evaluation server: {archive}")
        return results


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
