"""Figures 1, 5, 6 and 7: the losses over p_t and x_t, drawn from the functions that train."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor

from ..losses import cross_entropy_loss, focal_loss, focal_loss_star
from .figures import new_axes

Loss = Callable[..., Tensor]  # of logits (M, 1) and labels (M,), by element
POSITIVE, BACKGROUND = 0, 1  # labels of an anchor with one class
_POINTS = 801
_COLORS = colormaps["coolwarm_r"]  # blue: works, as in the paper


def loss_figures(
    *,
    gammas: Sequence[float],
    compared_gammas: Sequence[float],
    stars: Sequence[tuple[float, float]],
    alpha: float | None,
) -> dict[str, Figure]:
    """Draw figures 1, 5 and 6.

    Args:
        gammas: of the focal losses of figure 1; 0 is cross-entropy.
        compared_gammas: of the focal losses of figures 5 and 6.
        stars: (gamma, beta) of the FL* of figures 5 and 6.
        alpha: in [0, 1] weights cross-entropy and focal losses, and then positives are drawn as lines and
            negatives as dashes; None draws one line for both.

    Returns:
        The figures by the names of their files.

    Raises:
        ValueError: a constant that its loss refuses.
    """
    focal = {_name("FL", gamma=g) if g else "CE": partial(focal_loss, gamma=g, alpha=alpha) for g in gammas}
    compared: dict[str, Loss] = {"CE": partial(cross_entropy_loss, alpha=alpha)}
    compared |= {_name("FL", gamma=g): partial(focal_loss, gamma=g, alpha=alpha) for g in compared_gammas}
    compared |= {_name("FL*", gamma=g, beta=b): partial(focal_loss_star, gamma=g, beta=b) for g, b in stars}
    p_t = torch.linspace(0, 1, _POINTS + 1, dtype=torch.float64)[1:]
    x_t = torch.linspace(-5, 5, _POINTS, dtype=torch.float64)

    figures = {}
    figures["figure1_focal_loss"], axes = new_axes("probability of ground truth class $p_t$", "loss")
    axes.set(xlim=(0, 1), ylim=(0, 5))
    axes.axvspan(0.6, 1, color="0.94", zorder=0)
    axes.text(0.8, 2.6, "well-classified\nexamples", ha="center", color="0.35")
    _draw_curves(axes, focal, torch.logit(p_t), p_t, alpha, of_slope=False)

    figures["figure5_fl_star"], axes = new_axes("$x_t = yx$", "loss")
    axes.set(xlim=(-5, 5), ylim=(0, 5))
    _draw_curves(axes, compared, x_t, x_t, alpha, of_slope=False)

    figures["figure6_derivatives"], axes = new_axes("$x_t = yx$", "derivative by $x_t$")
    axes.set(xlim=(-5, 5))
    _draw_curves(axes, compared, x_t, x_t, alpha, of_slope=True)
    return figures


def loss_and_slope(loss: Loss, x_t: Tensor, label: int) -> tuple[Tensor, Tensor]:
    """Return a loss and its derivative by x_t, (M,) each, of one anchor with one class at every x_t (M,)."""
    sign = 1 if label == POSITIVE else -1
    logits = (sign * x_t).unsqueeze(-1).requires_grad_()
    values = loss(logits, torch.full(x_t.shape, label), reduction="none")
    (grad,) = torch.autograd.grad(values.sum(), logits)
    return values.detach().squeeze(-1), sign * grad.squeeze(-1)


def draw_star_grid(ap: Mapping[tuple[float, float], float], title: str) -> Figure:
    """Draw figure 7: the FL* of every setting over x_t in the colour of its AP, and the grid of the AP.

    Args:
        ap: of each finished (gamma, beta); may be empty.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    curves, grid = figure.subplots(1, 2)
    curves.set(xlabel="$x_t = yx$", ylabel="FL*", xlim=(-5, 5), ylim=(0, 5))
    figure.suptitle(title, fontsize="medium")
    if not ap:
        return figure
    scale = Normalize(0, max(ap.values()) or 1)
    x_t = torch.linspace(-5, 5, 401, dtype=torch.float64)
    for (gamma, beta), value in sorted(ap.items(), key=lambda item: item[1]):
        loss, _ = loss_and_slope(partial(focal_loss_star, gamma=gamma, beta=beta), x_t, POSITIVE)
        curves.plot(x_t.numpy(), loss.numpy(), color=_COLORS(scale(value)))
    gammas, betas = (sorted({setting[i] for setting in ap}) for i in (0, 1))
    for (gamma, beta), value in ap.items():
        at = betas.index(beta), gammas.index(gamma)
        grid.scatter(*at, s=1500, marker="s", color=_COLORS(scale(value)))
        is_dark = abs(scale(value) - 0.5) > 0.35
        ink = "white" if is_dark else "black"
        grid.annotate(f"{value:.1f}", at, ha="center", va="center", fontsize="small", color=ink)
    grid.set_xticks(range(len(betas)), [f"{beta:g}" for beta in betas])
    grid.set_yticks(range(len(gammas)), [f"{gamma:g}" for gamma in gammas])
    grid.set(xlabel=r"$\beta$", ylabel=r"$\gamma$", xlim=(-0.6, len(betas) - 0.4), ylim=(-0.6, len(gammas) - 0.4))
    figure.colorbar(ScalarMappable(scale, _COLORS), ax=grid).ax.set_title("AP", fontsize="medium")
    return figure


def _name(loss: str, **constants: float) -> str:
    return f"{loss} " + ", ".join(rf"$\{symbol}$ = {value:.12g}" for symbol, value in constants.items())


def _draw_curves(
    axes: Axes, losses: Mapping[str, Loss], x_t: Tensor, positions: Tensor, alpha: float | None, *, of_slope: bool
) -> None:
    for i, (name, loss) in enumerate(losses.items()):
        color = f"C{i}"
        drawn = loss_and_slope(loss, x_t, POSITIVE)[of_slope]
        axes.plot(positions.numpy(), drawn.numpy(), color=color, label=name)
        if alpha is not None:
            negative = loss_and_slope(loss, x_t, BACKGROUND)[of_slope]
            axes.plot(positions.numpy(), negative.numpy(), color=color, linestyle="--", label=None)
    title = None if alpha is None else rf"$\alpha$ = {alpha:g} (dashed: negatives)"
    axes.legend(frameon=False, title=title)
