"""Detections as one holds them: objects one by one, parts of them, other libraries, drawings."""

import builtins
import copy
import dataclasses
import pickle

import cv2
import numpy as np
import pandas
import pytest
import supervision

from focal_det.errors import InputError
from focal_det.inference.detections import Detection, Detections
from focal_det.inference.images import ImageError

BOXES = np.array([[10, 5, 30, 25], [40, 5, 60, 35], [1, 2, 3, 5]], np.float32)


def three(**known):
    known = {"class_names": ("disk", "box"), "category_ids": (3, 7), **known}
    return Detections(BOXES, np.float32([0.75, 0.5, 0.25]), np.array([1, 0, 1]), **known)


NOTHING = three()[:0]


@pytest.fixture
def file(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.full((400, 500, 3), 90, np.uint8))
    return tmp_path / "a.png"


def test_length_objects_and_their_fields():
    found = three()
    assert len(found) == 3
    assert found[0] == Detection((10, 5, 30, 25), 0.75, 1, "box")
    assert found[-1] == found[np.int64(2)] == list(found)[2] == ((1, 2, 3, 5), 0.25, 1, "box")
    assert [one.class_name for one in found] == ["box", "disk", "box"]
    assert not NOTHING
    assert list(NOTHING) == []
    with pytest.raises(IndexError):
        found[3]
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.scores = found.scores


@pytest.mark.parametrize(
    ("index", "left"),
    [
        (slice(1, None), [1, 2]),
        (np.array([True, False, True]), [0, 2]),
        ([True, False, True], [0, 2]),
        ([2, 0], [2, 0]),
        (np.array([], int), []),
        ([], []),
    ],
)
def test_parts_are_detections_that_know_their_classes(index, left):
    found = three(path="a.jpg")[index]
    assert found.boxes.tolist() == BOXES[left].tolist()
    assert [one.score for one in found] == [(0.75, 0.5, 0.25)[i] for i in left]
    assert (found.class_names, found.category_ids, found.path) == (("disk", "box"), (3, 7), "a.jpg")


@pytest.mark.parametrize("index", [True, "boxes", 1.0, (0, 1), None, np.float32([1]), np.array(True)])
def test_an_index_of_another_kind_is_refused(index):
    with pytest.raises(TypeError, match="an index is a position, a slice, a mask"):
        three()[index]


def test_a_mask_of_another_length_is_refused():
    with pytest.raises(IndexError):
        three()[np.array([True])]


def test_above_keeps_scores_of_at_least_the_threshold():
    assert [one.score for one in three().above(0.5)] == [0.75, 0.5]


def test_arrays_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match=r"they must be \(D, 4\), \(D,\) and \(D,\)"):
        Detections(BOXES, np.float32([1]), np.array([0, 1, 2]))


def test_copies_and_pickles_are_whole():
    for same in (copy.deepcopy(three()), pickle.loads(pickle.dumps(three()))):
        assert list(same) == list(three())


def test_the_text_is_short():
    assert repr(three(path="a.jpg")) == "<3 detections in a.jpg: box 0.75, disk 0.50, box 0.25>"
    assert repr(NOTHING) == "<0 detections>"
    many = three()[[0] * 1000]
    assert repr(many) == "<1000 detections: box 0.75, box 0.75, box 0.75, box 0.75, box 0.75 and 995 more>"


def test_coco_has_its_own_ids_or_those_that_are_given():
    first = {"image_id": 9, "category_id": 7, "bbox": [10, 5, 20, 20], "score": 0.75}
    assert three().to_coco(9)[0] == first
    assert three().to_coco(9, [1, 2])[0] == {**first, "category_id": 2}
    without = three(category_ids=())
    assert without[:0].to_coco(9) == []
    with pytest.raises(ValueError, match="know no category ids: give category_ids"):
        without.to_coco(9)


def test_classes_without_names_are_numbered():
    assert [one.class_name for one in three(class_names=())] == ["class 1", "class 0", "class 1"]


def test_a_data_frame_has_a_row_for_each_object():
    table = three().to_pandas()
    assert table.columns.tolist() == ["x1", "y1", "x2", "y2", "score", "class_id", "class_name"]
    assert table.iloc[1].tolist() == [40, 5, 60, 35, 0.5, 0, "disk"]
    assert table.groupby("class_name").score.max().to_dict() == {"box": 0.75, "disk": 0.5}
    empty = NOTHING.to_pandas()
    assert pandas.concat([table, empty]).dtypes.tolist() == table.dtypes.tolist() == empty.dtypes.tolist()


def test_supervision_filters_and_annotates_them():
    theirs = three().to_supervision()
    assert isinstance(theirs, supervision.Detections)
    assert theirs[theirs["class_name"] == "box"].confidence.tolist() == [0.75, 0.25]
    assert theirs.area.tolist() == [400, 600, 6]
    drawn = supervision.BoxAnnotator().annotate(np.zeros((60, 80, 3), np.uint8), theirs)
    assert drawn.any()
    assert len(NOTHING.to_supervision()) == 0


@pytest.mark.parametrize("name", ["pandas", "supervision"])
def test_a_package_that_is_missing_is_named_with_what_installs_it(monkeypatch, name):
    def missing(module, *args, **kwargs):
        if module == name:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return imported(module, *args, **kwargs)

    imported = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(InputError, match=f"No module named '{name}', which this needs; install it with: "):
        getattr(three(), f"to_{name}")()


def test_a_drawing_is_of_the_file_or_of_what_is_given(file):
    image = cv2.imread(str(file))
    drawn = three(path=file).draw()
    assert drawn.shape == image.shape
    assert (drawn != image).any()
    assert (three().draw(image) == drawn).all()
    assert (three(class_names=()).draw(file, max_side=250).shape) == (200, 250, 3)
    assert (image == 90).all()
    assert (NOTHING.draw(image) == image).all()
    assert (np.asarray(three(path=file).plot())[:, :, ::-1] == drawn).all()


def test_without_an_image_there_is_no_drawing(file):
    with pytest.raises(ValueError, match=r"images are not kept: give the image"):
        three().draw()
    file.unlink()
    with pytest.raises(ImageError, match="no such file"):
        three(path=file).draw()


def test_a_notebook_shows_a_small_drawing_of_a_file(file, tmp_path):
    assert three()._repr_png_() is None
    large = tmp_path / "large.png"
    cv2.imwrite(str(large), np.zeros((1200, 3000, 3), np.uint8))
    for path, shape in ((file, (400, 500, 3)), (large, (400, 1000, 3))):
        png = three(path=path)._repr_png_()
        assert cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR).shape == shape
