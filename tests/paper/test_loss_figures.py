"""The loss figures: their curves are the paper's, and the same settings make the same files."""

import functools
import math

import pytest
import torch
from matplotlib.axes import Axes

from focal_det.losses import cross_entropy_loss, focal_loss, focal_loss_star
from focal_det.paper.figures import save_figures
from focal_det.paper.loss_figures import BACKGROUND, POSITIVE, draw_star_grid, loss_and_slope, loss_figures

NAMES = [
    f"{name}.{suffix}"
    for name in ("figure1_focal_loss", "figure5_fl_star", "figure6_derivatives")
    for suffix in ("png", "svg")
]


PAPERS = {
    "gammas": [0.0, 0.5, 1.0, 2.0, 5.0],
    "compared_gammas": [2.0],
    "stars": [(2.0, 1.0), (4.0, 0.0)],
    "alpha": None,
}


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


def test_the_papers_curves(curves):
    figures = loss_figures(**PAPERS)
    assert [label for label, _, _ in curves] == [
        *("CE", *(rf"FL $\gamma$ = {g}" for g in ("0.5", "1", "2", "5"))),
        *["CE", r"FL $\gamma$ = 2", r"FL* $\gamma$ = 2, $\beta$ = 1", r"FL* $\gamma$ = 4, $\beta$ = 0"] * 2,
    ]
    for (_, p_t, loss), gamma in zip(curves[:5], (0, 0.5, 1, 2, 5), strict=True):
        half = abs(p_t - 0.5).argmin()
        assert loss[half] == pytest.approx(-((1 - p_t[half]) ** gamma) * math.log(p_t[half]))
        assert loss[-1] == 0  # p_t = 1
    for (_, x_t, loss), (_, _, slope) in zip(curves[5:9], curves[9:], strict=True):
        assert (x_t[0], x_t[-1]) == (-5, 5)
        # Downhill all the way, from about 5 for what is wrong by 5, to nothing; and that with the slope drawn beside it
        assert 4.4 < loss[0] < 5.1
        assert loss[-1] < 0.01
        assert (loss[1:] - loss[:-1]) / (x_t[1] - x_t[0]) == pytest.approx((slope[1:] + slope[:-1]) / 2, abs=1e-3)
    limits = {name: (figure.axes[0].get_xlim(), figure.axes[0].get_ylim()) for name, figure in figures.items()}
    assert limits["figure1_focal_loss"] == ((0, 1), (0, 5))
    assert limits["figure5_fl_star"] == ((-5, 5), (0, 5))
    assert limits["figure6_derivatives"][0] == (-5, 5)


def test_alpha_draws_negatives_apart(curves):
    loss_figures(gammas=[2.0], compared_gammas=[], stars=[], alpha=0.25)
    (positive, negative), rest = curves[:2], curves[2:]
    assert negative[2][:-1] == pytest.approx(3 * positive[2][:-1])  # .75 / .25
    assert len(rest) == 4  # CE of both signs in figures 5 and 6


def test_the_same_settings_make_the_same_files_and_others_replace_them(tmp_path):
    contents = []
    for gammas in ([2.0], [2.0], [5.0]):
        written = save_figures(loss_figures(**PAPERS | {"gammas": gammas}), tmp_path)
        assert written == [tmp_path / name for name in NAMES]
        assert sorted(path.name for path in tmp_path.iterdir()) == NAMES
        contents.append([(tmp_path / name).read_bytes() for name in NAMES])
    assert contents[0] == contents[1]
    assert [a != b for a, b in zip(contents[1], contents[2], strict=True)] == [True, True, False, False, False, False]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gammas": [2.0, -1.0]}, r"gamma=-1\.0"),
        ({"compared_gammas": [float("nan")]}, "gamma=nan"),
        ({"stars": [(0.0, 1.0)]}, r"gamma=0\.0 is outside"),
        ({"alpha": 1.5}, r"alpha=1\.5 is outside"),
    ],
)
def test_constants_that_a_loss_refuses_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        loss_figures(**PAPERS | options)


def test_what_cannot_be_written_leaves_no_half_a_figure(tmp_path):
    (tmp_path / NAMES[2]).mkdir()  # in the way of figure 5
    with pytest.raises(OSError, match="figure5"):
        save_figures(loss_figures(**PAPERS), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == NAMES[:3]


def test_every_finished_setting_has_a_curve_and_its_ap():
    figure = draw_star_grid({(2.0, 1.0): 33.8, (4.0, 0.0): 23.9, (0.5, 0.0): 10.0}, "title")
    curves, grid, colours = figure.axes
    assert colours.get_title() == "AP"
    assert len(curves.lines) == 3
    assert sorted(text.get_text() for text in grid.texts) == ["10.0", "23.9", "33.8"]
    assert [label.get_text() for label in grid.get_yticklabels()] == ["0.5", "2", "4"]
    colors = {line.get_color() for line in curves.lines}
    assert len(colors) == 3


def test_a_grid_without_any_setting_is_empty():
    assert [len(axes.lines) for axes in draw_star_grid({}, "title").axes] == [0, 0]
