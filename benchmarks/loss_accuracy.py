"""Largest relative errors of the losses and of their gradients against arithmetic with 50 digits.

    python benchmarks/loss_accuracy.py [--json FILE] [--markdown FILE]

One anchor with one class, at every logit from -100 to 100 in steps of .5, at powers of two near 0, and at 400 random
ones each within 3, 30 and 100 (on round ones alone, gamma * x would be exact), rounded to the dtype, as a positive, as
background and ignored. The exact loss and gradient of that rounded logit come from mpmath.
An error is relative to the exact number, or to the dtype's smallest normal number where that is larger: below it
no floating-point number is relatively precise. For comparison, on the same logits: fvcore's and torchvision's focal
loss, and the formula of mmdetection's, written here from its definition. They take and return the dtype itself, while
the losses here return float32 of half-precision logits; gradients are in the dtype of the logits for all.
"""

from __future__ import annotations

import argparse
import math
import random
import warnings
from collections.abc import Callable
from pathlib import Path

import mpmath
import torch
import torch.nn.functional as F
from figures import write_figures
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss as torchvision_focal_loss

from focal_det.losses import cross_entropy_loss, focal_loss, focal_loss_star, hinge_loss

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of torch.jit, which fvcore uses
    from fvcore.nn import sigmoid_focal_loss as fvcore_focal_loss

mpmath.mp.dps = 50
GAMMAS = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_RANDOM = random.Random(0)
LOGITS = [
    *(k / 2 for k in range(-200, 201)),
    *(sign * 2.0**-k for k in range(2, 15) for sign in (1, -1)),
    *(_RANDOM.uniform(-reach, reach) for reach in (3, 30, 100) for _ in range(400)),
]

Exact = Callable[[mpmath.mpf], tuple[mpmath.mpf, mpmath.mpf]]  # of x_t: the loss and its derivative by it
Loss = Callable[[Tensor, Tensor], Tensor]  # logits (M, 1) and labels (M,) to losses (M, 1)


def exact_focal(gamma: float, alpha: float | None) -> Callable[[int], Exact]:
    """Return equation 5 and its derivative, for a positive (sign 1) or a negative."""

    def of_sign(sign: int) -> Exact:
        weight = 1 if alpha is None else mpmath.mpf(alpha) if sign > 0 else 1 - mpmath.mpf(alpha)

        def exact(z: mpmath.mpf) -> tuple[mpmath.mpf, mpmath.mpf]:
            p, q = 1 / (1 + mpmath.exp(-z)), 1 / (1 + mpmath.exp(z))
            log_p = -mpmath.log1p(mpmath.exp(-z))
            return -weight * q**gamma * log_p, weight * q**gamma * (gamma * p * log_p - q)

        return exact

    return of_sign


def exact_star(gamma: float, beta: float) -> Callable[[int], Exact]:
    """Return FL* of appendix A and its derivative."""

    def exact(z: mpmath.mpf) -> tuple[mpmath.mpf, mpmath.mpf]:
        u = gamma * z + beta
        return mpmath.log1p(mpmath.exp(-u)) / gamma, -1 / (1 + mpmath.exp(u))

    return lambda sign: exact


def exact_hinge(margin: float) -> Callable[[int], Exact]:
    """Return max(0, margin - p_t) and its derivative."""

    def exact(z: mpmath.mpf) -> tuple[mpmath.mpf, mpmath.mpf]:
        p, q = 1 / (1 + mpmath.exp(-z)), 1 / (1 + mpmath.exp(z))
        gap = q - (1 - mpmath.mpf(margin))
        return (gap, -p * q) if gap > 0 else (mpmath.mpf(0), mpmath.mpf(0))

    return lambda sign: exact


def ours(loss: Callable[..., Tensor], **options: float | None) -> Loss:
    return lambda logits, labels: loss(logits, labels, reduction="none", **options)


def on_targets(loss: Callable[[Tensor, Tensor], Tensor]) -> Loss:
    """Wrap a loss of another project, which takes one-hot targets of the anchors that are not ignored."""

    def of_kept(logits: Tensor, labels: Tensor) -> Tensor:
        kept = labels >= 0
        targets = (labels[kept] == 0).to(logits.dtype).unsqueeze(-1)
        found = loss(logits[kept], targets)
        return logits.new_zeros(logits.shape, dtype=found.dtype).index_put((kept,), found)

    return of_kept


def mmdetection_focal_loss(logits: Tensor, targets: Tensor, alpha: float, gamma: float) -> Tensor:
    p = logits.sigmoid()
    one_minus_pt = (1 - p) * targets + p * (1 - targets)
    weight = (alpha * targets + (1 - alpha) * (1 - targets)) * one_minus_pt.pow(gamma)
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none") * weight


def competitors() -> dict[str, dict[str, tuple[Loss, Callable[[int], Exact]]]]:
    """Return by group and setting each loss and its exact form."""
    groups: dict[str, dict[str, tuple[Loss, Callable[[int], Exact]]]] = {
        "cross_entropy_loss": {
            "": (ours(cross_entropy_loss), exact_focal(0.0, None)),
            "alpha .75": (ours(cross_entropy_loss, alpha=0.75), exact_focal(0.0, 0.75)),
        },
        "focal_loss": {},
        "focal_loss_star": {
            f"gamma {g:g}, beta {b:g}": (ours(focal_loss_star, gamma=g, beta=b), exact_star(g, b))
            for g, b in ((2.0, 1.0), (4.0, 0.0), (0.5, -1.5))
        },
        "hinge_loss": {f"margin {m:g}": (ours(hinge_loss, margin=m), exact_hinge(m)) for m in (0.5, 0.8, 1.0)},
        "fvcore": {},
        "torchvision": {},
        "mmdetection's formula": {},
    }
    for gamma in GAMMAS:
        exact, options = exact_focal(gamma, 0.25), {"alpha": 0.25, "gamma": gamma}
        for alpha in (0.25, None):
            setting = f"gamma {gamma:g}, " + (f"alpha {alpha:g}" if alpha else "no alpha")
            groups["focal_loss"][setting] = (ours(focal_loss, alpha=alpha, gamma=gamma), exact_focal(gamma, alpha))
        for name, loss in (
            ("fvcore", fvcore_focal_loss),
            ("torchvision", torchvision_focal_loss),
            ("mmdetection's formula", mmdetection_focal_loss),
        ):
            bound = on_targets(lambda logits, targets, loss=loss, options=options: loss(logits, targets, **options))
            groups[name][f"gamma {gamma:g}, alpha .25"] = (bound, exact)
    return groups


def worst_errors(loss: Loss, exact: Callable[[int], Exact], dtype: torch.dtype) -> dict[str, float | int]:
    """Return the largest relative error of value and gradient over all logits and labels, and how many are NaN."""
    found: dict[str, float | int] = {"value": 0.0, "gradient": 0.0, "not finite": 0}
    x = torch.tensor(LOGITS, dtype=torch.float64).to(dtype)
    for label, sign in ((0, 1), (1, -1), (-1, 0)):
        logits = x.unsqueeze(-1).clone().requires_grad_()
        values = loss(logits, torch.full((len(x),), label))
        (gradients,) = torch.autograd.grad(values.sum(), logits)
        found["not finite"] += int((~(values.isfinite() & gradients.isfinite())).sum())
        for logit, value, gradient in zip(x.tolist(), values.tolist(), gradients.tolist(), strict=True):
            true_value, slope = exact(sign)(sign * mpmath.mpf(logit)) if sign else (mpmath.mpf(0), mpmath.mpf(0))
            for name, number, truth, its_dtype in (
                ("value", value[0], true_value, values.dtype),
                ("gradient", gradient[0], sign * slope, dtype),
            ):
                if math.isfinite(number):
                    scale = max(abs(truth), mpmath.mpf(torch.finfo(its_dtype).tiny))
                    found[name] = max(found[name], float(abs(mpmath.mpf(number) - truth) / scale))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the figures there")
    parser.add_argument("--markdown", type=Path, help="also write the table there")
    args = parser.parse_args()

    rows = []
    table = ["| loss | setting | dtype | value | gradient | not finite |", "|---|---|---|---|---|---|"]
    print("\n".join(table))
    for group, settings in competitors().items():
        for setting, (loss, exact) in settings.items():
            for dtype in DTYPES:
                name = str(dtype).removeprefix("torch.")
                errors = worst_errors(loss, exact, dtype)
                rows.append({"loss": group, "setting": setting, "dtype": name, **errors})
                figures = f"{errors['value']:.1e} | {errors['gradient']:.1e} | {errors['not finite']}"
                table.append(f"| {group} | {setting} | {name} | {figures} |")
                print(table[-1], flush=True)
    if args.markdown:
        args.markdown.write_text("\n".join(table) + "\n")
    if args.json:
        write_figures(args.json, points={"logits": len(LOGITS), "labels": 3}, rows=rows)


if __name__ == "__main__":
    main()
