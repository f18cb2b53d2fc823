"""Figure 7: which gamma and beta of FL* work."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from matplotlib import colormaps
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from ..losses import focal_loss_star
from .loss_figures import POSITIVE, loss_and_slope

_COLORS = colormaps["coolwarm_r"]  # blue: works, as in the paper


def draw_star_grid(ap: Mapping[tuple[float, float], float], title: str) -> Figure:
    """The loss over x_t of every setting in the colour of its AP, and the grid of the AP.

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
        grid.annotate(f"{value:.1f}", at, ha="center", va="center", fontsize="small")
    grid.set_xticks(range(len(betas)), [f"{beta:g}" for beta in betas])
    grid.set_yticks(range(len(gammas)), [f"{gamma:g}" for gamma in gammas])
    grid.set(xlabel=r"$\beta$", ylabel=r"$\gamma$", xlim=(-0.6, len(betas) - 0.4), ylim=(-0.6, len(gammas) - 0.4))
    grid.set_title("AP", fontsize="small")
    return figure
