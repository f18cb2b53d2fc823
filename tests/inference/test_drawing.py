"""Drawings whose labels can be read, and contact sheets that fit a screen."""

import numpy as np
import pytest

from focal_det.inference import drawing
from focal_det.inference.drawing import beside, class_colour, draw_boxes, sheet, titled

GREY = np.full((400, 500, 3), 90, np.uint8)


def coloured(image, label, num_classes):
    """Where the class's colour is, of a BGR image."""
    return (image == class_colour(label, num_classes)[::-1]).all(axis=2)


def test_a_box_is_where_it_should_be_and_in_its_colour():
    drawn = draw_boxes(GREY, np.array([[100, 50, 300, 200]]), [1], [""], num_classes=3)
    rows, columns = np.nonzero(coloured(drawn, 1, 3))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (50, 200, 100, 300)
    assert (drawn[60:190, 110:290] == 90).all()
    assert not coloured(drawn, 0, 3).any()


def test_small_images_are_enlarged_with_their_boxes():
    drawn = draw_boxes(np.zeros((64, 128, 3), np.uint8), np.array([[32, 16, 64, 48]]), [0], [""], num_classes=1)
    assert drawn.shape == (320, 640, 3)  # five times
    rows, columns = np.nonzero(coloured(drawn, 0, 1))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (80, 240, 160, 320)
    assert draw_boxes(np.zeros((2, 1000, 3), np.uint8), np.zeros((0, 4)), [], [], num_classes=1).shape == (3, 1600, 3)


def test_max_side_reduces_before_the_labels_are_drawn():
    drawn = draw_boxes(np.zeros((2000, 4000, 3), np.uint8), np.zeros((0, 4)), [], [], num_classes=1, max_side=400)
    assert drawn.shape == (200, 400, 3)


def labels_of(boxes, texts, monkeypatch, shape=(400, 500)):
    """The rectangles of the labels as they are placed, (D, 4) XYXY."""
    placed, place = [], drawing._place
    monkeypatch.setattr(drawing, "_place", lambda *args: placed.append(place(*args)) or placed[0])
    draw_boxes(np.zeros((*shape, 3), np.uint8), np.array(boxes), [0] * len(boxes), texts, num_classes=1)
    return placed[0]


def test_labels_stay_in_the_image_and_off_one_another(monkeypatch):
    boxes = [[0, 0, 499, 399], [0, 0, 60, 40], [440, 360, 499, 399], [200, 200, 280, 260], [203, 202, 283, 262]]
    labels = np.array(labels_of(boxes, ["triangle 99%"] * 5, monkeypatch))
    assert (labels[:, :2] >= 0).all()
    assert (labels[:, 2:] <= (500, 400)).all()
    for i in range(5):
        assert not any(drawing._overlap(labels[i], labels[j]) for j in range(i))


def test_a_label_goes_above_its_box_and_below_where_there_is_no_room(monkeypatch):
    above, below = labels_of([[100, 200, 200, 300], [300, 2, 400, 100]], ["cell", "cell"], monkeypatch)
    assert (above[0], above[3]) == (100, 200)
    assert (below[0], below[1]) == (300, 101)


def test_a_text_longer_than_the_image_is_shortened(monkeypatch):
    ((x0, _, x1, _),) = labels_of([[10, 100, 50, 150]], ["a very long name " * 9], monkeypatch)
    assert 0 <= x0 < x1 <= 500


@pytest.mark.parametrize("box", [[-50, -50, 900, 900], [float("nan"), 0, 5, 5], [50, 60, 40, 30], [600, 10, 700, 20]])
def test_odd_boxes_are_drawn_as_far_as_they_can(box):
    assert draw_boxes(GREY, np.array([box]), [0], ["odd\nname"], num_classes=1).shape == GREY.shape


@pytest.mark.parametrize("count", [2, 12, 80])
def test_every_class_has_a_colour_of_its_own(count):
    assert len({class_colour(label, count) for label in range(count)}) == count


def test_sheets_are_bounded_and_small_ones_are_left_alone():
    # Two columns of 300 and a gap of 8; three images are two rows.
    small = [np.full((100, 300, 3), i, np.uint8) for i in (1, 2, 3)]
    assert sheet(small).shape == (208, 608, 3)
    assert (sheet(small)[108:, :300] == 3).all()
    large = [np.zeros((1000, 3000, 3), np.uint8)] * 4
    assert 1590 < sheet(large).shape[1] <= 1600
    assert sheet(small[:1]).shape == (100, 300, 3)
    assert sheet([]).shape[2] == 3


def test_images_beside_one_another_and_titled():
    tall, wide = np.zeros((90, 40, 3), np.uint8), np.zeros((50, 100, 3), np.uint8)
    both = beside(tall, wide)
    assert both.shape == (90, 148, 3)
    assert (both[50:, 48:] == 255).all()
    assert titled(wide, "ground truth").shape == (74, 100, 3)
    assert (titled(wide, "ground truth")[:24] < 128).any()  # something is written


def test_a_label_has_words_a_space_apart_and_margins():
    label = drawing._label("ill 111%", 12, 500)
    inked = np.flatnonzero((label > 60).any(axis=0))
    gaps = np.diff(inked)
    assert (inked[0] >= 3, inked[-1] < label.shape[1] - 3) == (True, True)
    assert (gaps > 3).sum() >= 1  # a space of 12 pixels' size is 4 wide, letters are less apart
    whole = drawing._rendered("ill 111%", 12)
    assert abs(label.shape[1] - whole.shape[1]) <= 2
    assert abs(int(label.sum()) - int(whole.sum())) < 0.1 * whole.sum()


@pytest.mark.parametrize(("label", "ink"), [(0, 255), (1, 0)])  # white on red, black on cyan
def test_text_is_light_on_dark_and_dark_on_light(label, ink):
    drawn = draw_boxes(GREY, np.array([[100, 200, 400, 390]]), [label], ["ill"], num_classes=2)
    inside = drawn[186:199, 103:112]  # of the label, above the box
    assert coloured(inside, label, 2).any()
    assert (abs(inside.astype(int) - ink) < 60).all(axis=2).any()


def test_names_are_rendered_once_whatever_their_scores(monkeypatch):
    drawing._rendered.cache_clear()
    texts = [f"white blood cell {score}%" for score in (10, 20, 10, 20)]
    draw_boxes(GREY, np.array([[10, 100, 50, 150]] * 4), [0] * 4, texts, num_classes=1)
    assert drawing._rendered.cache_info().misses == 4  # the name, two scores, a space


def test_of_a_very_long_name_no_more_is_rendered_than_fits():
    drawing._rendered.cache_clear()
    assert drawing._label("w" * 3_000, 12, 200).shape[1] <= 200
    assert drawing._rendered("w" * 200, 12).shape[1] > 200
    assert drawing._rendered.cache_info().hits == 1  # it is what had been rendered
