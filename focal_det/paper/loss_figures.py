"""Figures 1, 5 and 6: the losses over p_t and x_t, drawn from the functions that train."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ..losses import cross_entropy_loss, focal_loss, focal_loss_star
from .figures import new_axes

# Of logits (M, 1) and labels (M,), elementwise.
Loss = Callable[..., Tensor]

POSITIVE, BACKGROUND = 0, 1  # labels of an anchor with one class
_POINTS = 801


def loss_figures(
    *,
    gammas: Sequence[float],
    compared_gammas: Sequence[float],
    stars: Sequence[tuple[float, float]],
    alpha: float | None,
) -> dict[str, Figure]:
    """The three figures by their names.

    Args:
        gammas: of the focal losses of figure 1; 0 is cross-entropy.
        compared_gammas: of the focal losses of figures 5 and 6.
        stars: (gamma, beta) of the FL* of figures 5 and 6.
        alpha: in (0, 1) weights cross-entropy and focal losses, and then positives are drawn as lines and
            negatives as dashes; None draws one line for both.

    Raises:
        ValueError: a constant that its loss refuses.
    """
    focal = {_name("FL", gamma=g) if g else "CE": functools.partial(focal_loss, gamma=g, alpha=alpha) for g in gammas}
    compared: dict[str, Loss] = {"CE": functools.partial(cross_entropy_loss, alpha=alpha)}
    compared |= {_name("FL", gamma=g): functools.partial(focal_loss, gamma=g, alpha=alpha) for g in compared_gammas}
    compared |= {_name("FL*", gamma=g, beta=b): functools.partial(focal_loss_star, gamma=g, beta=b) for g, b in stars}
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
    """A loss and its derivative by x_t, (M,) each, of one anchor with one class at every x_t (M,)."""
    sign = 1 if label == POSITIVE else -1
    logits = (sign * x_t).unsqueeze(-1).requires_grad_()
    values = loss(logits, torch.full(x_t.shape, label), reduction="none")
    (grad,) = torch.autograd.grad(values.sum(), logits)
    return values.detach().squeeze(-1), sign * grad.squeeze(-1)


def _name(loss: str, **constants: float) -> str:
    return f"{loss} " + ", ".join(rf"$\{symbol}$ = {value:.12g}" for symbol, value in constants.items())


def _draw_curves(
    axes: Axes, losses: Mapping[str, Loss], x_t: Tensor, places: Tensor, alpha: float | None, *, of_slope: bool
) -> None:
    for i, (name, loss) in enumerate(losses.items()):
        color = f"C{i}"
        drawn = loss_and_slope(loss, x_t, POSITIVE)[of_slope]
        axes.plot(places.numpy(), drawn.numpy(), color=color, label=name)
        if alpha is not None:
            negative = loss_and_slope(loss, x_t, BACKGROUND)[of_slope]
            axes.plot(places.numpy(), negative.numpy(), color=color, linestyle="--", label=None)
    title = None if alpha is None else rf"$\alpha$ = {alpha:g} (dashed: negatives)"
    axes.legend(frameon=False, title=title)
