"""COCO's arrays: hotcoco's are pycocotools' to the last bit, and what is asked of both."""

import logging
import os
import signal
import sys

import numpy as np
import pycocotools.cocoeval
import pytest
from hotcoco import COCOeval
from hypothesis import given, settings
from hypothesis import strategies as st

from focal_det.evaluation import coco_arrays
from focal_det.evaluation.coco_arrays import accumulate, hotcoco

CLASSES = 6


def draw(seed, *, images=12, objects=60, detections=400, grid=1.0, with_areas=True):
    """Annotations and detections near them; the last class has no objects, and every seventh image is empty."""
    rng = np.random.default_rng(seed)
    used = [image for image in range(images) if image % 7 != 6]

    def boxes(number):
        corners, sizes = rng.uniform(0, 300, (number, 2)), rng.gamma(1.2, 45, (number, 2)) + 1
        return np.ceil(np.hstack([corners, sizes]) / grid) * grid  # a coarse grid makes IoUs that are equal

    truth = {
        "images": [{"id": 10 * image} for image in reversed(range(images))],
        "categories": [{"id": 3 * label, "name": str(label)} for label in reversed(range(CLASSES))],
        "annotations": [
            {
                "id": i,
                "image_id": 10 * int(rng.choice(used)),
                "category_id": 3 * int(rng.integers(CLASSES - 1)),
                "bbox": box.tolist(),
                "iscrowd": int(rng.random() < 0.15),
                **({"area": float(box[2] * box[3] * rng.uniform(0.3, 1))} if with_areas else {}),
            }
            for i, box in enumerate(boxes(objects))
        ],
    }
    found = []
    for box in boxes(detections):
        image, category = 10 * int(rng.integers(images)), 3 * int(rng.integers(CLASSES))
        if truth["annotations"] and rng.random() < 0.8:
            near = truth["annotations"][rng.integers(objects)]
            moved = np.array(near["bbox"]) + np.round(rng.normal(0, 4, 4) / grid) * grid
            image, category, box = near["image_id"], near["category_id"], np.maximum(moved, grid)
        score = round(float(rng.random()), 1)  # so that many are equal
        found.append({"image_id": image, "category_id": category, "bbox": box.tolist(), "score": score})
    return truth, found


def both(truth, found, limits=(1, 10, 100)):
    """Return the evaluators of hotcoco and of pycocotools."""
    ours = accumulate(truth, found, limits)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coco_arrays, "hotcoco", lambda: None)
        theirs = accumulate(truth, found, limits)
    assert [type(one) for one in (ours, theirs)] == [COCOeval, pycocotools.cocoeval.COCOeval]
    return ours, theirs


def assert_equal_bits(ours, theirs):
    for name in ("precision", "recall", "scores"):
        one, other = ours.eval[name], theirs.eval[name]
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        assert one.tobytes() == other.tobytes(), name


@pytest.mark.parametrize(
    "case",
    [
        {},
        {"with_areas": False},
        {"grid": 25.0},  # IoUs that are equal, so that the order decides
        {"images": 1, "objects": 8, "detections": 900},  # more than the limits
        {"objects": 3, "detections": 40},  # classes without objects
        {"objects": 0, "detections": 20},
        {"detections": 1},
    ],
)
def test_every_bit_is_that_of_pycocotools(case, capsys):
    ours, theirs = both(*draw(0, **case))
    assert_equal_bits(ours, theirs)
    lines = []
    for one in (ours, theirs):
        one.summarize()
        lines.append(capsys.readouterr().out.split())  # pycocotools has a space more before (AP)
    assert ours.stats.tobytes() == theirs.stats.tobytes()
    assert len(ours.stats) == 12
    assert lines[0] == lines[1]


@settings(max_examples=25)
@given(
    st.integers(0, 2**32 - 1),
    st.fixed_dictionaries(
        {
            "images": st.integers(1, 5),
            "objects": st.integers(0, 40),
            "detections": st.integers(1, 120),
            "grid": st.sampled_from([1e-3, 1.0, 20.0]),
        }
    ),
    st.lists(st.integers(1, 30), min_size=1, max_size=3).map(sorted),
)
def test_every_bit_of_random_sets(seed, case, limits):
    assert_equal_bits(*both(*draw(seed, **case), limits))


def test_ids_beyond_what_a_float_holds_are_told_apart():
    near = 2**53  # as float64 this and the next integer are one
    truth = {
        "images": [{"id": near}, {"id": near + 1}],
        "categories": [{"id": near, "name": "a"}, {"id": near + 1, "name": "b"}],
        "annotations": [{"id": 0, "image_id": near + 1, "category_id": near + 1, "bbox": [0, 0, 40, 40]}],
    }
    found = [{"image_id": near + 1, "category_id": near + 1, "bbox": [0, 0, 40, 40], "score": 0.5}]
    recall = accumulate(truth, found, [100]).eval["recall"]
    assert recall[:, :, 0, 0].tolist() == [[-1, 1]] * 10


@pytest.mark.parametrize(("field", "section"), [("image_id", "images"), ("category_id", "categories")])
def test_detections_of_what_is_not_there_are_named(field, section):
    truth, found = draw(0, detections=1)
    with pytest.raises(ValueError, match=f"{field} 77, which the annotations don't have among their {section}"):
        accumulate(truth, [{**found[0], field: 77}], [100])


@pytest.mark.parametrize("damage", [{"score": np.nan}, {"bbox": [0, 0, np.inf, 5]}, {"bbox": [np.nan, 0, 5, 5]}])
def test_detections_that_are_not_finite_are_counted_and_their_images_named(damage):
    truth, found = draw(0, detections=30)
    found[7] |= damage
    with pytest.raises(ValueError, match=f"1 of 30 detections have a NaN .* image_id {found[7]['image_id']};"):
        accumulate(truth, found, [100])


def test_without_hotcoco_it_is_said_once_and_why(monkeypatch, caplog, tmp_path):
    (tmp_path / "hotcoco.py").write_text('raise ImportError("/lib/libc.so.6: version `GLIBC_2.39\' not found")')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "hotcoco")
    hotcoco.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert type(accumulate(*draw(0), [100])) is pycocotools.cocoeval.COCOeval
    (said,) = (record.message for record in caplog.records)
    assert "GLIBC_2.39' not found: pycocotools computes the same scores as hotcoco" in said
    hotcoco.cache_clear()


def test_a_process_forked_from_one_that_has_scored_does_not_wait_for_its_threads():
    assert type(accumulate(*draw(0), [100])) is COCOeval
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # where it waits, which no handler of Python's could end
        kinds = {type(accumulate(*draw(0), [100])) for _ in range(2)}
        os._exit(0 if kinds == {pycocotools.cocoeval.COCOeval} else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert type(accumulate(*draw(0), [100])) is COCOeval
