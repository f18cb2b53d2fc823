"""What detectors take: one image or several, of every kind, and a few of many at a time."""

import cv2
import numpy as np
import pytest
from PIL import Image

from focal_det.inference.detections import Detections
from focal_det.inference.detector import ImageDetector
from focal_det.inference.images import ImageError


class Finder(ImageDetector):
    """Finds one box, whose width is the image's."""

    class_names, category_ids, batch_size = ["a", "b"], [4, 5], 2

    def __init__(self):
        self.together = []

    def _detect(self, images):
        self.together.append(len(images))
        return [Detections(np.float32([[0, 0, i.shape[1], 1]]), np.float32([0.5]), np.array([1])) for i in images]


def widths(found):
    return [one[0].box[2] for one in found]


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / f"{width}.png" for width in range(8, 28)]
    for width, path in enumerate(paths, 8):
        cv2.imwrite(str(path), np.zeros((4, width, 3), np.uint8))
    return paths


def test_one_image_gives_detections_and_several_a_list(files):
    finder = Finder()
    for one in (files[0], str(files[0]), Image.open(files[0]), cv2.imread(str(files[0]))):
        assert widths([finder(one)]) == [8]
        assert widths(finder([one])) == widths(finder(iter((one,)))) == [8]
    assert finder([]) == finder(iter(())) == []


def test_they_know_their_classes_and_the_file(files):
    found = Finder()([files[0], str(files[1]), np.zeros((4, 5, 3), np.uint8)])
    assert [one.path for one in found] == [files[0], files[1], None]
    assert found[0][0].class_name == "b"
    assert found[0].to_coco(1)[0]["category_id"] == 5


@pytest.mark.parametrize("kind", [list, tuple, iter])
def test_of_many_a_few_batches_are_read_at_a_time(files, kind):
    finder = Finder()
    assert widths(finder(kind(files))) == list(range(8, 28))
    assert finder.together == [8, 8, 4]


def test_what_is_no_image_is_named(files):
    with pytest.raises(ImageError, match="a folder, not an image; name the images in it"):
        Finder()(files[0].parent)
    for other in ({"a": 1}, {files[0]}, b"a.png", None, np.zeros((2, 4, 4, 3), np.uint8)):
        with pytest.raises(ValueError, match="an image is"):
            Finder()(other)
