"""How much AP may fall before a file in 8 bits is refused."""

import cv2
import numpy as np
import pytest

from focal_det.errors import InputError
from focal_det.export.ap_check import compare_scores
from focal_det.export.images_of_run import AnnotatedImages
from focal_det.inference.detections import Detections

pytestmark = pytest.mark.detectron2


class Finding:
    """Finds the object, or a box beside it."""

    class_names, category_ids = ("a",), (1,)

    def __init__(self, *boxes):
        self.boxes = np.array(boxes, np.float32).reshape(-1, 4)

    def __call__(self, images):
        number = len(self.boxes)
        scores = np.linspace(0.9, 0.5, number, dtype=np.float32)
        return [Detections(self.boxes, scores, np.zeros(number, np.int64)) for _ in images]


@pytest.fixture
def images(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((50, 50, 3), np.uint8))
    entry = {"id": 1, "file_name": "a.png", "width": 50, "height": 50}
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20], "area": 400, "iscrowd": 0}
    coco = {"images": [entry], "annotations": [box], "categories": [{"id": 1, "name": "a"}]}
    return AnnotatedImages("mine", coco, tmp_path)


EXACT, LOOSE = (10, 10, 30, 30), (10, 10, 30, 34.5)  # IoU 1, and 20 / 24.5 = .816: 7 of the 10 thresholds


def test_a_fall_within_the_limit_is_accepted_and_told(images):
    change = compare_scores(Finding(EXACT), Finding(LOOSE), images, most=30)
    assert change.problem == ""
    assert str(change).startswith("AP 70.00 (was 100.00), AP50 100.00 (was 100.00)")


def test_a_larger_fall_is_a_problem(images):
    change = compare_scores(Finding(EXACT), Finding(LOOSE), images, most=29.9)
    assert change.problem.startswith("AP falls by 30.00 points, from 100.00 to 70.00, more than --max-ap-drop 29.9;")
    assert compare_scores(Finding(LOOSE), Finding(EXACT), images, most=0).problem == ""  # it may rise


def test_where_nothing_is_found_before_nothing_can_be_compared(images):
    with pytest.raises(InputError, match=r"AP on mine is nan in float32"):
        compare_scores(Finding(), Finding(EXACT), images, most=1)
