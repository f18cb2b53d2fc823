"""Expected results are of Detectron2's form, and of what is measured; what is off is said in a sentence each."""

import math

import pytest

from focal_det.config.expected_results import SetScores, check_expected_results, check_patience, unmet_expectations

pytestmark = pytest.mark.detectron2

KEY = "TEST.EXPECTED_RESULTS"
SCORES = {"a": SetScores("coco", ["cat", "dog"]), "b": SetScores("coco")}


def errors_of(tiny_cfg, entries, *words, sets="('a',)", scores=None):
    cfg = tiny_cfg(KEY, repr(entries), "DATASETS.TEST", sets, *words)
    return check_expected_results(cfg, SCORES if scores is None else scores).errors


@pytest.mark.parametrize(
    ("entry", "words", "sets"),
    [
        (["bbox", "AP", 40, 0.5], (), "('a',)"),
        (("bbox", "AP-dog", 40.0, 0), (), "('a',)"),
        (["bbox_TTA", "APs", 40.0, 1.0], ("TEST.AUG.ENABLED", "True"), "('a',)"),
        (["b/bbox", "AP-anything", 40.0, 1.0], (), "('a', 'b')"),
        (["a_TTA/bbox", "AP50", 40.0, 1.0], ("TEST.AUG.ENABLED", "True"), "('a', 'b')"),
    ],
)
def test_what_is_measured_may_be_expected(tiny_cfg, entry, words, sets):
    assert errors_of(tiny_cfg, [entry], *words, sets=sets) == []


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("bbox", "has bbox; it must be [task, metric, value, tolerance], such as ['bbox', 'AP', 37.4, 0.5]"),
        (["bbox", "AP", 40.0], "has ['bbox', 'AP', 40.0]; it must be [task, "),
        (["bbox", "AP", "40", 1.0], "it must be [task, "),
        (["bbox", "AP", 40.0, -1.0], "the last >= 0"),
        (["bbox", "AP", 10**400, 1.0], "it must be [task, "),
        (["segm", "AP", 40.0, 1.0], "has the task 'segm'; this run measures bbox"),
        (["bbox_TTA", "AP", 40.0, 1.0], "has the task 'bbox_TTA'; this run measures bbox"),
        (
            ["bbox", "mAP", 40.0, 1.0],
            "has the metric 'mAP'; measured on a are AP, AP50, AP75, APs, APm, APl, AP-<class>",
        ),
        (["bbox", "AP-cow", 40.0, 1.0], "has the metric 'AP-cow'; measured on a are AP,"),
    ],
)
def test_what_cannot_be_measured_is_named(tiny_cfg, entry, message):
    (problem,) = errors_of(tiny_cfg, [entry])
    assert problem.startswith(f"{KEY} has ")
    assert message in problem
    assert len(problem) < 300


@pytest.mark.parametrize(
    ("scores", "metric", "message"),
    [
        (SetScores("lvis", ["cat", "dog"]), "APr", None),
        (SetScores("coco", ["cat"]), "AP-cat", "measured on a are AP, AP50, AP75, APs, APm, APl"),
        (SetScores("coco", ["cat", "dog"]), "APr", "APl, AP-<class>"),
        (SetScores("lvis", ["cat", "dog"]), "AP-cat", "measured on a are AP, AP50, AP75, APs, APm, APl, APr, APc, APf"),
        (SetScores("pascal_voc", ["cat", "dog"]), "AP75", None),
        (SetScores("pascal_voc", ["cat", "dog"]), "APs", "measured on a are AP, AP50, AP75"),
        (SetScores("", ["cat", "dog"]), "AP", "expects 'AP' on a, which has no annotated objects to score"),
    ],
)
def test_each_kind_of_set_has_scores_of_its_own(tiny_cfg, scores, metric, message):
    problems = errors_of(tiny_cfg, [["bbox", metric, 40.0, 1.0]], scores={"a": scores})
    assert len(problems) == bool(message)
    assert message is None or problems[0].endswith(message)


def test_each_figure_that_is_off_has_a_sentence(tiny_cfg):
    entries = [["bbox", name, 40.0, 0.5] for name in ("AP", "AP50", "AP75", "APs")]
    cfg = tiny_cfg(KEY, repr(entries))
    measured = {"bbox/AP": 40.5, "bbox/AP50": 39.4, "bbox/APs": math.nan}
    assert unmet_expectations(cfg, measured) == [
        "bbox/AP50 is 39.4000; 40.0 was expected, within 0.5",
        "bbox/AP75 was not measured; 40.0 was expected",
        "bbox/APs is nan; 40.0 was expected, within 0.5",
    ]


def patience_errors(tiny_cfg, *words, scores=None, sets="('a',)"):
    cfg = tiny_cfg(*("MODEL.FOCAL_DET.PATIENCE", "3", "TEST.EVAL_PERIOD", "10", "DATASETS.TEST", sets), *words)
    return check_patience(cfg, SCORES if scores is None else scores).errors


METRIC = "MODEL.FOCAL_DET.PATIENCE_METRIC"
AVERAGED = ("MODEL.FOCAL_DET.EMA.DECAY", "0.9")


@pytest.mark.parametrize(
    ("words", "sets"),
    [
        ((), "('a',)"),
        ((METRIC, "bbox/AP-dog"), "('a',)"),
        ((METRIC, "val/total_loss"), "('a',)"),
        ((METRIC, "ema/bbox/AP", *AVERAGED), "('a',)"),
        ((METRIC, "ema/val/loss_cls", *AVERAGED), "('a',)"),
        ((METRIC, "b/bbox/AP50"), "('a', 'b')"),
        ((METRIC, "of_no_known_set/bbox/APr"), "('of_no_known_set', 'a')"),
    ],
)
def test_early_stopping_goes_by_what_evaluations_measure(tiny_cfg, words, sets):
    assert patience_errors(tiny_cfg, *words, sets=sets) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("TEST.EVAL_PERIOD", "0"),
            "PATIENCE is 3, in evaluations, and TEST.EVAL_PERIOD 0 has none before the end: set",
        ),
        ((METRIC, "bbox/APx"), "PATIENCE_METRIC is 'bbox/APx'; evaluations measure bbox/AP, bbox/AP50, "),
        ((METRIC, "ema/bbox/AP"), "val/loss_box_reg; ema/... needs MODEL.FOCAL_DET.EMA.DECAY"),
        ((METRIC, "val/total_loss", "MODEL.FOCAL_DET.VAL_LOSS", "False"), "is 'val/total_loss'; evaluations measure"),
        ((METRIC, "AP", *AVERAGED), "and each with ema/ before it"),
    ],
)
def test_an_early_stopping_that_would_never_come_is_refused(tiny_cfg, words, message):
    (error,) = patience_errors(tiny_cfg, *words)
    assert message in error


def test_early_stopping_by_ap_needs_a_set_that_is_scored(tiny_cfg):
    (error,) = patience_errors(tiny_cfg, scores={"a": SetScores("")})
    assert error.endswith("set MODEL.FOCAL_DET.PATIENCE_METRIC, such as val/total_loss, or PATIENCE to 0")
    assert patience_errors(tiny_cfg, "MODEL.FOCAL_DET.PATIENCE", "0", "TEST.EVAL_PERIOD", "0") == []
