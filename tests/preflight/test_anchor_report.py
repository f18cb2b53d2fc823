"""The objects that the anchors reach: exact, in rows, and with better anchors where there are any."""

import shlex
from types import SimpleNamespace

import numpy as np
import pytest

from focal_det.checkpoint.compatibility import build_cpu_model
from focal_det.data.statistics import Objects, sample, statistics
from focal_det.preflight.anchor_report import anchor_warnings, report_anchors
from focal_det.preflight.datasets import DataSets
from focal_det.preflight.summary import _anchor_lines, describe

pytestmark = pytest.mark.detectron2

ATSS = ("MODEL.FOCAL_DET.ASSIGNER.NAME", "ATSSAssigner")
TOPK, SCALES = "MODEL.FOCAL_DET.ASSIGNER.TOPK", "MODEL.FOCAL_DET.SCALES_PER_OCTAVE"
COCO = {
    "images": [{"id": 5, "width": 100, "height": 80}, {"id": 6, "width": 50, "height": 50}],
    "categories": [{"id": 9, "name": "b"}, {"id": 2, "name": "a"}],
    "annotations": [
        {"image_id": 5, "category_id": 9, "bbox": [90, 10, 20, 30], "area": 600},
        {"image_id": 5, "category_id": 2, "bbox": [0, 0, 10, 10], "area": 50, "iscrowd": 0},
        {"image_id": 6, "category_id": 2, "bbox": [0, 0, 10, 10], "area": 50, "iscrowd": 1},
    ],
}


def test_statistics_count_what_is_trained_on():
    found = statistics(COCO)
    assert (found.images, found.with_objects, found.crowds) == (2, 1, 1)
    assert found.class_names == ["a", "b"]  # by id, as the labels are
    assert found.instances.tolist() == [1, 1]
    assert found.objects.boxes.tolist() == [[90, 10, 100, 40], [0, 0, 10, 10]]  # clipped at 100
    assert found.objects.areas.tolist() == [600, 50]


def test_a_sample_goes_evenly_through_the_set():
    objects = statistics(COCO).objects
    assert len(sample(objects, 2).boxes) == 2
    assert sample(objects, 1).classes.tolist() == [1]


# --- reports on a model's anchors ------------------------------------------------------------------------------------


def objects_of(side, *, number=200, ratio=1.0, image=640):
    """So many objects of one size anywhere in square images; ratio: height / width."""
    sides = np.tile(side * np.array([ratio**-0.5, ratio**0.5]), (number, 1))
    corners = np.random.default_rng(0).uniform(0, 1, (number, 2)) * (image - sides)
    sizes = np.full((number, 2), float(image))
    return Objects(np.hstack([corners, corners + sides]), sizes, np.zeros(number, np.int64), sides.prod(axis=1))


@pytest.mark.parametrize(
    ("side", "ratio", "better"),
    [
        (64, 1.0, None),
        # Half the smallest anchor, 32 px: IoU at most (16 / 32)^2 = .25. One octave down covers it.
        (16, 1.0, 'MODEL.ANCHOR_GENERATOR.SIZES "[[16], [32], [64], [128], [256]]"'),
        # 1:4 against the anchors' 1:2, of the same area: shared 2/3 of each, IoU .55 at best, less off the grid.
        (64, 5.0, "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS"),
    ],
)
def test_objects_that_no_anchor_reaches_are_told_with_the_anchors_that_would(tiny_cfg, side, ratio, better):
    cfg = tiny_cfg("INPUT.MIN_SIZE_TRAIN", "(640,)", "OUTPUT_DIR", "x")
    report = report_anchors(cfg, build_cpu_model(cfg), objects_of(side, ratio=ratio), ["thing"])
    warnings = anchor_warnings(report)
    if better is None:
        assert report.rows.whole.reached == 1
        assert warnings == []
        return
    assert report.rows.whole.reached < 0.75
    assert report.rows.whole.side == pytest.approx(side, rel=0.01)
    (warning,) = warnings
    assert f"of boxes have no anchor with IoU >= .5 at this size, 640 px; median side {side} px; " in warning
    assert better in warning
    # The overrides are such that they can be appended, and give what they promise.
    overrides, promised = next(pair for pair in report.better if better in pair[0])
    other = tiny_cfg("INPUT.MIN_SIZE_TRAIN", "(640,)", *shlex.split(overrides))
    again = report_anchors(other, build_cpu_model(other), objects_of(side, ratio=ratio), ["thing"])
    assert again.rows.whole.reached == pytest.approx(promised)
    assert promised > report.rows.whole.reached + 0.03


def test_where_the_iou_does_not_decide_nothing_is_proposed(tiny_cfg):
    words = ["INPUT.MIN_SIZE_TRAIN", "(640,)", "OUTPUT_DIR", "x"]
    found = []
    for assigner in ("IoUAssigner", "ATSSAssigner"):
        cfg = tiny_cfg(*words, "MODEL.FOCAL_DET.ASSIGNER.NAME", assigner)
        found.append(report_anchors(cfg, build_cpu_model(cfg), objects_of(16), ["thing"]))
    by_iou, by_atss = found
    assert by_iou.better
    assert "have no anchor with IoU" in anchor_warnings(by_iou)[0]
    assert by_atss.rows == by_iou.rows
    assert not by_atss.better
    assert not any("have no anchor" in warning for warning in anchor_warnings(by_atss))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ATSS,
            "TOPK is 9, and 9 anchors share each location: an object's candidates on a level lie at 1 location, 9 in",
        ),
        (ATSS, "; set TOPK to 81, or have one anchor per location, as focal_det://heirs/Base-ATSS.yaml does"),
        ((*ATSS, TOPK, "10"), "lie at 2 locations, 9 in ATSS's paper"),
        ((*ATSS, TOPK, "24", SCALES, "1"), "lie at 8 locations, 9 in ATSS's paper; set TOPK to 27"),
        ((*ATSS, TOPK, "25", SCALES, "1"), None),
        ((*ATSS, TOPK, "81"), None),
        ((*ATSS, TOPK, "3", SCALES, "1", "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", "[[1.0]]"), None),
        ((), None),
    ],
)
def test_several_anchors_at_few_locations_are_no_candidates_as_in_atss(tiny_cfg, tmp_path, words, said):
    cfg = tiny_cfg("OUTPUT_DIR", str(tmp_path), *words)
    options = SimpleNamespace(preflight_only=False, eval_only=False, resume=False)
    found = describe(options, cfg, DataSets((), (), [], {}), build_cpu_model(cfg)).warnings
    assert [said in warning for warning in found if "ATSS" in warning] == ([True] if said else [])


def test_a_larger_image_is_proposed_too(tiny_cfg):
    cfg = tiny_cfg("INPUT.MIN_SIZE_TRAIN", "(640,)")
    report = report_anchors(cfg, build_cpu_model(cfg), objects_of(14), ["thing"])
    assert any(overrides.startswith('INPUT.MIN_SIZE_TRAIN "(1280,)"') for overrides, _ in report.better)


@pytest.mark.parametrize(
    ("side", "image", "words", "warning"),
    [
        # 20 px of 4000 are 4 px at 800. A tile of 1280 px makes them 12.5, which is not below 12; one of 1536 does not.
        (
            20,
            4000,
            (),
            "100% of 200 objects are below 12 px in the network's input, 800 px; --tile 1280 makes it 0%, in",
        ),
        (70, 4000, (), None),  # 14 px
        (7, 800, (), None),  # small, but nothing is lost: the image is not reduced
        (4, 4000, (), None),  # 8 px in the smallest tile that is tried, of 400 px
        (20, 4000, ("TEST.AUG.ENABLED", "True"), None),
        (20, 4000, ("MODEL.FOCAL_DET.TILES.SIZE", "1280"), None),
    ],
)
def test_tiles_are_proposed_where_objects_are_lost_and_only_if_they_help(tiny_cfg, side, image, words, warning):
    cfg = tiny_cfg("INPUT.MIN_SIZE_TRAIN", "(800,)", *words)
    report = report_anchors(cfg, build_cpu_model(cfg), objects_of(side, image=image), ["thing"])
    found = [line for line in anchor_warnings(report) if "--tile" in line]
    assert [line[: len(warning or "")] for line in found] == ([warning] if warning else [])


def test_tiles_are_proposed_for_most_objects_and_not_for_some(tiny_cfg):
    cfg = tiny_cfg("INPUT.MIN_SIZE_TRAIN", "(800,)")
    large = objects_of(300, number=90, image=4000)
    for number, share in ((100, "53%"), (80, None)):
        parts = zip(objects_of(20, number=number, image=4000), large, strict=True)
        objects = Objects(*(np.concatenate(part) for part in parts))
        found = report_anchors(cfg, build_cpu_model(cfg), objects, ["thing"]).tiles
        assert (found and f"{found.now:.0%}") == share
    few = objects_of(20, number=9, image=4000)
    assert anchor_warnings(report_anchors(cfg, build_cpu_model(cfg), few, ["thing"])) == []


def test_with_tiles_objects_are_as_in_their_tiles_and_large_ones_as_in_the_image(tiny_cfg):
    cfg = tiny_cfg("INPUT.MIN_SIZE_TRAIN", "(800,)", "MODEL.FOCAL_DET.TILES.SIZE", "1000")
    for side, expected in ((20, 16), (3000, 600)):  # of 1000 px, and of 4000 px, made 800
        report = report_anchors(cfg, build_cpu_model(cfg), objects_of(side, image=4000), ["thing"])
        assert report.rows.whole.side == pytest.approx(expected)
    assert report.fit.size == "800 px in tiles of 1000 px"


def test_thresholds_are_the_configurations(tiny_cfg):
    # Squares of 32 px, as large as the smallest anchor of a grid of 8 px: at worst 4 px off in both directions, an IoU
    # of 28^2 / (2 * 32^2 - 28^2) = .62. All are reached from .5, not from .7; with .62 none is background.
    words = ["INPUT.MIN_SIZE_TRAIN", "(640,)", "OUTPUT_DIR", "x", "MODEL.RETINANET.IOU_THRESHOLDS"]
    reports = []
    for thresholds in ("[0.4, 0.5]", "[0.6, 0.7]", "[0.75, 0.75]"):
        cfg = tiny_cfg(*words, thresholds)
        reports.append(report_anchors(cfg, build_cpu_model(cfg), objects_of(32), ["thing"]))
    assert [report.rows.whole.reached == 1 for report in reports] == [True, False, False]
    assert [report.rows.whole.missed == 0 for report in reports] == [True, True, False]
    assert reports[1].rows.whole.near == pytest.approx(1 - reports[1].rows.whole.reached)
    assert reports[1].better == [] or reports[1].better[0][1] > reports[1].rows.whole.reached
    assert "have no anchor with IoU >= .75 at this size" in anchor_warnings(reports[2])[0]
    lines = list(_anchor_lines(reports[1], full=True))
    assert "have one with IoU >= .7 at 640 px" in lines[0]
    assert "one of .6 to .7" in lines[0]
    assert "none of .6;" in lines[0]
    assert lines[1].split()[:7] == ["objects", ">=", ".7", ".6", "to", ".7", "<"]


def test_rows_are_by_cocos_areas_and_by_shape(tiny_cfg):
    cfg = tiny_cfg("INPUT.MIN_SIZE_TRAIN", "(640,)")
    parts = zip(objects_of(20), objects_of(50, ratio=3.0, number=100), objects_of(200, ratio=0.3), strict=True)
    objects = Objects(*(np.concatenate(part) for part in parts))
    report = report_anchors(cfg, build_cpu_model(cfg), objects, ["thing"])
    assert [(row.name, row.number) for row in report.rows.by_size] == [("small", 200), ("medium", 100), ("large", 200)]
    assert [(row.name, row.number) for row in report.rows.by_shape] == [("tall", 100), ("middle", 200), ("wide", 200)]
    for row in (report.rows.whole, *report.rows.by_size, *report.rows.by_shape):
        assert row.reached + row.near + row.missed == pytest.approx(1)
