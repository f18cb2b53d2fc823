"""What is said when a training is done."""

from types import SimpleNamespace

import pytest

from focal_det.engine.last_words import loss_warning, scores_line


def cfg(*sets):
    return SimpleNamespace(DATASETS=SimpleNamespace(TEST=sets))


def test_the_scores_of_one_set_and_of_several():
    latest = {"bbox/AP": 71.83, "bbox/AP50": 96.2, "bbox/AP75": 88.4, "lr": 0.1}
    assert scores_line(cfg("val"), latest) == "AP 71.8, AP50 96.2, AP75 88.4 on val"
    latest = {"a/bbox/AP": 1.0, "b/bbox/AP": float("nan")}
    assert scores_line(cfg("a", "b"), latest) == "AP 1.0 on a; AP nan on b"
    assert scores_line(cfg("test-dev"), {}) == "not scored"


@pytest.mark.parametrize(
    ("losses", "diverged"),
    [
        ([1.5] * 20 + [0.5] * 20, False),
        ([1.0] * 20 + [1.9] * 20, False),
        ([1.0] * 20 + [9.0] * 20, True),
        ([1.0] * 39 + [99.0], False),  # one bad step is no divergence
        ([1.0, 99.0], False),  # too few to tell
    ],
)
def test_a_loss_that_ends_far_above_its_start_is_said(losses, diverged):
    words = loss_warning(losses)
    assert (words is not None) is diverged
    if diverged:
        assert words.startswith("The loss ended at 9, where it began at 1: the training diverged.")
