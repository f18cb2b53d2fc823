"""The course of a training from its metrics."""

import math

import pytest

from focal_det.report import training_curves as progress

METRICS = [
    {"iteration": 19, "lr": 0.1, "time": 0.5, "total_loss": 2.0},
    {"iteration": 39, "lr": 0.1, "time": 0.25, "total_loss": float("nan"), "bbox/AP": 30.0},
    {"iteration": 40, "bbox/AP": 20.0},
]


def test_iterations_are_those_done_and_the_last_evaluation_belongs_to_the_last_of_them():
    assert progress.iterations_done(METRICS) == 40
    assert progress.course(METRICS, "bbox/AP") == [(40, 30.0), (40, 20.0)]
    assert progress.course(METRICS, "total_loss") == [(20, 2.0)]  # nan is no point


def test_training_time_is_the_sum_of_steps():
    assert progress.training_seconds(METRICS) == pytest.approx(20 * 0.5 + 20 * 0.25)
    assert progress.training_seconds([{"iteration": 5, "bbox/AP": 1.0}]) is None


def test_the_best_score():
    assert progress.best_score(METRICS, "bbox/") == (30.0, 40)
    assert progress.best_score(METRICS, "other/bbox/") is None


def test_losses_have_the_totals_first():
    record = dict.fromkeys(["loss_cls", "val/loss_cls", "total_loss", "val/total_loss", "lr", "bbox/AP"], 1.0)
    names = list(progress.losses([{"iteration": 0, **record}]))
    assert names == ["total_loss", "val/total_loss", "loss_cls", "val/loss_cls"]


def test_the_ema_stands_beside_the_plain_weights():
    record = {"iteration": 9, "lr": 0.1, "bbox/AP": 30.0, "ema/bbox/AP": 31.0, "bbox/AP50": 50.0, "other/bbox/AP": 1.0}
    record |= {"total_loss": 1.0, "val/total_loss": 2.0, "ema/val/total_loss": 1.5, "ema/val/loss_cls": 1.0}
    assert progress.scores([record], "bbox/") == {"AP": [(10, 30)], "AP of the EMA": [(10, 31)], "AP50": [(10, 50)]}
    names = ["total_loss", "val/total_loss", "ema/val/total_loss", "ema/val/loss_cls"]
    assert list(progress.losses([record])) == names


def test_nothing_logged():
    assert progress.iterations_done([]) == 0
    assert progress.training_seconds([]) is None
    assert progress.epochs([]) is None
    assert progress.losses([]) == {}


def test_many_points_are_thinned_to_means():
    points = [(i, float(i % 2)) for i in range(1, 1001)]
    thin = progress.thinned(points, most=250)
    assert len(thin) == 250
    assert thin[0] == (4, 0.5)
    assert thin[-1][0] == 1000
    assert progress.thinned(points[:250], most=250) == points[:250]


@pytest.mark.parametrize(
    ("values", "is_loss", "expected"),
    [
        ([10.0, 12.0, 11.0, 12.0], False, (12.0, 1, 2)),  # as good is not better
        ([3.0, 2.0, 2.5], True, (2.0, 1, 1)),
        ([math.nan, 0.0, 0.0], False, None),  # nothing is found yet
        ([math.nan, 0.0, 4.0, math.nan, 0.0], False, (4.0, 2, 2)),  # and now no more
        ([0.0, 1.0], True, (0.0, 0, 1)),
        ([], False, None),
    ],
)
def test_evaluations_are_counted_from_the_best(values, is_loss, expected):
    assert progress.standing(list(enumerate(values)), is_loss=is_loss) == expected


def early(patience, *aps, trained=40):
    """Why a run ended that was evaluated every 10 iterations, with these APs, and trained so many."""
    metrics = [{"iteration": n, "lr": 0.1} for n in range(trained)]
    metrics += [{"iteration": 10 * n + 9, "bbox/AP": ap} for n, ap in enumerate(aps)]
    return progress.early_stop(metrics, "bbox/AP", patience)


def test_what_ended_a_run_early_is_said():
    reason = "by early stopping: bbox/AP was best after 30 iterations, 12.5, and not better in 1 evaluation since"
    assert early(1, 10.0, 11.0, 12.5, 12.5) == f"{reason} (MODEL.FOCAL_DET.PATIENCE)"
    assert "after 20 iterations, 11, and not better in 2 evaluations since" in early(2, 10.0, 11.0, 9.0, 8.0)
    assert early(2, 10.0, 11.0, 12.5, 12.5) == ""  # not yet
    assert early(0, 10.0, 9.0, 9.0, 9.0) == ""
    assert early(1, 10.0, 9.0, 9.0, trained=37) == ""  # it was trained on, and then stopped by something else
    assert early(1, 10.0, 12.0, 12.5, 12.6, 9.0, trained=40) == ""  # the last is that of the end
