"""The loss figures: their curves are the paper's, and the same settings make the same files."""

import functools
import math

import pytest
import torch
from matplotlib.axes import Axes

from focal_det.losses import cross_entropy_loss, focal_loss, focal_loss_star
from focal_det.paper.loss_figures import BACKGROUND, POSITIVE, draw_loss_figures, loss_and_slope

NAMES = [
    f"{name}.{suffix}"
    for name in ("figure1_focal_loss", "figure5_fl_star", "figure6_derivatives")
    for suffix in ("png", "svg")
]


@pytest.fixture
def curves(monkeypatch):
    """Label, x and y of whatever is drawn."""
    drawn = []
    plot = Axes.plot

    def record(self, x, y, **options):
        drawn.append((options.get("label"), x, y))
        return plot(self, x, y, **options)

    monkeypatch.setattr(Axes, "plot", record)
    return drawn


@pytest.mark.parametrize("label", [POSITIVE, BACKGROUND])
def test_value_and_slope_by_x_t(label):
    # Over x_t both signs have the same curve; at 0: CE log 2, FL .25 log 2, FL* (4, 0) log 2 / 4
    at_zero = torch.zeros(1, dtype=torch.float64)
    log2 = math.log(2)
    for loss, value, slope in (
        (cross_entropy_loss, log2, -0.5),
        (functools.partial(focal_loss, alpha=None), 0.25 * log2, -0.25 * (log2 + 0.5)),
        (functools.partial(focal_loss_star, gamma=4.0, beta=0.0), log2 / 4, -0.5),
    ):
        found = loss_and_slope(loss, at_zero, label)
        assert [x.item() for x in found] == [pytest.approx(value), pytest.approx(slope)]


def test_the_papers_curves(curves, tmp_path):
    assert draw_loss_figures(tmp_path) == [tmp_path / name for name in NAMES]
    assert [label for label, _, _ in curves] == [
        *("CE", *(rf"FL $\gamma$ = {g}" for g in ("0.5", "1", "2", "5"))),
        *["CE", r"FL $\gamma$ = 2", r"FL* $\gamma$ = 2, $\beta$ = 1", r"FL* $\gamma$ = 4, $\beta$ = 0"] * 2,
    ]
    for (_, p_t, loss), gamma in zip(curves[:5], (0, 0.5, 1, 2, 5), strict=True):
        half = abs(p_t - 0.5).argmin()
        assert loss[half] == pytest.approx(-((1 - p_t[half]) ** gamma) * math.log(p_t[half]))
        assert loss[-1] == 0  # p_t = 1
    for _, x_t, slope in curves[9:]:
        assert slope[abs(x_t).argmin()] < -0.2  # downhill, and flat for what is classified well
        assert -0.01 < slope[-1] < 0


def test_alpha_draws_negatives_apart(curves, tmp_path):
    draw_loss_figures(tmp_path, gammas=[2.0], compared_gammas=[], stars=[], alpha=0.25)
    (positive, negative), rest = curves[:2], curves[2:]
    assert negative[2][:-1] == pytest.approx(3 * positive[2][:-1])  # .75 / .25
    assert len(rest) == 4  # CE of both signs in figures 5 and 6


def test_the_same_settings_make_the_same_files_and_others_replace_them(tmp_path):
    contents = []
    for gammas in ([2.0], [2.0], [5.0]):
        draw_loss_figures(tmp_path, gammas=gammas)
        assert sorted(path.name for path in tmp_path.iterdir()) == NAMES
        contents.append([(tmp_path / name).read_bytes() for name in NAMES])
    assert contents[0] == contents[1]
    assert [a != b for a, b in zip(contents[1], contents[2], strict=True)] == [True, True, False, False, False, False]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gammas": [2.0, -1.0]}, r"gamma=-1\.0"),
        ({"compared_gammas": [float("nan")]}, "gamma=nan"),
        ({"stars": [(0.0, 1.0)]}, r"gamma=0\.0 must be finite and > 0"),
        ({"alpha": 1.0}, r"alpha=1\.0 is outside"),
    ],
)
def test_constants_that_a_loss_refuses_write_nothing(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        draw_loss_figures(tmp_path / "plots", **options)
    assert not (tmp_path / "plots").exists()
