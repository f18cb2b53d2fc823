"""Largest relative errors of the losses and of their gradients against arithmetic with 50 digits.

    python benchmarks/loss_accuracy.py [--json FILE] [--markdown FILE]

One anchor with one class, at every logit from -100 to 100 in steps of .5, at powers of two near 0, and at 400 random
ones each within 3, 30 and 100 (on round ones alone, gamma * x would be exact), rounded to the dtype, as a positive, as
background and ignored. The exact loss and gradient of that rounded logit come from mpmath. Soft targets are t for a
positive and 1 - t for background (0 for the varifocal loss), and their gradient's error is relative to the sum of what
draws to either side; that of the quality focal loss is relative to itself, which vanishes where p = t. The softmax is
of the logit, 0 and -1; the positive is the logit's class, the background that of 0. The class-balanced loss has two
classes, of which the second has the logit 0 and the negative's anchor. The federated loss is the focal loss of the
classes that count, and has no row of its own.
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

from focal_det.heirs import asymmetric_loss, class_balanced_focal_loss, quality_focal_loss, varifocal_loss
from focal_det.losses import (
    cross_entropy_loss,
    focal_loss,
    focal_loss_reference,
    focal_loss_star,
    hinge_loss,
    softmax_focal_loss,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of torch.jit, which fvcore uses
    from fvcore.nn import sigmoid_focal_loss as fvcore_focal_loss

mpmath.mp.dps = 50
GAMMAS = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
TARGETS = (0.5, 0.875, 1 - 2**-10)  # exact, in float32 too, as are their differences from 1
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_RANDOM = random.Random(0)
LOGITS = [
    *(k / 2 for k in range(-200, 201)),
    *(sign * 2.0**-k for k in range(2, 15) for sign in (1, -1)),
    *(_RANDOM.uniform(-reach, reach) for reach in (3, 30, 100) for _ in range(400)),
]

# of x_t: the loss, its derivative by it, and what the error of that is relative to, if not to itself
Exact = Callable[[mpmath.mpf], tuple[mpmath.mpf, ...]]
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


def exact_soft(gamma: float, alpha: float, target: float) -> Callable[[int], Exact]:
    """Return the loss of a target, or of 1 - target for a negative, as `focal_det.losses.focal` defines it."""

    def of_sign(sign: int) -> Exact:
        t = mpmath.mpf(target) if sign > 0 else 1 - mpmath.mpf(target)
        alpha_t = t * mpmath.mpf(alpha) + (1 - t) * (1 - mpmath.mpf(alpha))

        def exact(z: mpmath.mpf) -> tuple[mpmath.mpf, ...]:
            p, q = 1 / (1 + mpmath.exp(-sign * z)), 1 / (1 + mpmath.exp(sign * z))
            wrong = t * q + (1 - t) * p
            entropy = t * mpmath.log1p(mpmath.exp(-sign * z)) + (1 - t) * mpmath.log1p(mpmath.exp(sign * z))
            factor = alpha_t * wrong**gamma
            parts = [factor * x for x in ((1 - t) * p, -t * q, gamma * (1 - 2 * t) * entropy * p * q / wrong)]
            return factor * entropy, sign * sum(parts), sum(map(abs, parts))

        return exact

    return of_sign


def exact_quality(beta: float, target: float) -> Callable[[int], Exact]:
    """Return the quality focal loss of a target, or of 1 - target for a negative."""

    def of_sign(sign: int) -> Exact:
        t = mpmath.mpf(target) if sign > 0 else 1 - mpmath.mpf(target)

        def exact(z: mpmath.mpf) -> tuple[mpmath.mpf, ...]:
            p, q = 1 / (1 + mpmath.exp(-sign * z)), 1 / (1 + mpmath.exp(sign * z))
            gap = (1 - t) * p - t * q
            entropy = t * mpmath.log1p(mpmath.exp(-sign * z)) + (1 - t) * mpmath.log1p(mpmath.exp(sign * z))
            spread = beta * abs(gap) ** (beta - 1) * mpmath.sign(gap) * p * q * entropy if beta and gap else 0
            return abs(gap) ** beta * entropy, sign * (abs(gap) ** beta * gap + spread)

        return exact

    return of_sign


def exact_varifocal(alpha: float, gamma: float, target: float) -> Callable[[int], Exact]:
    """Return the varifocal loss of a target, or of 0 for a negative."""
    negative = exact_focal(gamma, 1 - alpha)(-1)

    def of_sign(sign: int) -> Exact:
        if sign < 0:
            return negative
        t = mpmath.mpf(target)

        def exact(z: mpmath.mpf) -> tuple[mpmath.mpf, ...]:
            p, q = 1 / (1 + mpmath.exp(-z)), 1 / (1 + mpmath.exp(z))
            entropy = t * mpmath.log1p(mpmath.exp(-z)) + (1 - t) * mpmath.log1p(mpmath.exp(z))
            return t * entropy, t * ((1 - t) * p - t * q), t * ((1 - t) * p + t * q)

        return exact

    return of_sign


def exact_softmax(gamma: float) -> Callable[[int], Exact]:
    """Return the loss of three classes with the logits x, 0 and -1, and its derivative by x or -x."""
    binary = exact_focal(gamma, None)(1)

    def of_sign(sign: int) -> Exact:
        def exact(z: mpmath.mpf) -> tuple[mpmath.mpf, mpmath.mpf]:
            if sign > 0:
                return binary(z - mpmath.log1p(mpmath.exp(-1)))
            loss, slope = binary(-mpmath.log(mpmath.exp(-z) + mpmath.exp(-1)))
            return loss, slope / (1 + mpmath.exp(z - 1))

        return exact

    return of_sign


def exact_asymmetric(gamma_pos: float, gamma_neg: float, prob_shift: float) -> Callable[[int], Exact]:
    """Return the asymmetric loss of its paper and its derivative."""
    positive, shift = exact_focal(gamma_pos, None)(1), mpmath.mpf(prob_shift)

    def negative(z: mpmath.mpf) -> tuple[mpmath.mpf, mpmath.mpf]:
        p, q = 1 / (1 + mpmath.exp(z)), 1 / (1 + mpmath.exp(-z))
        shifted = p - shift
        if shifted <= 0:
            return mpmath.mpf(0), mpmath.mpf(0)
        log_rest = mpmath.log1p(-shifted) if shifted < 0.5 else mpmath.log(q + shift)
        slope = p * q * shifted**gamma_neg * (1 / (q + shift) - gamma_neg * log_rest / shifted)
        return -(shifted**gamma_neg) * log_rest, -slope

    return lambda sign: positive if sign > 0 else negative


def exact_balanced(gamma: float, beta: float, counts: tuple[int, int]) -> Callable[[int], Exact]:
    """Return the class-balanced focal loss of the first class, for an anchor of the first or of the second."""
    numbers = [1 / (1 - mpmath.mpf(beta) ** n) for n in counts]

    def of_sign(sign: int) -> Exact:
        weight, binary = 2 * numbers[0 if sign > 0 else 1] / sum(numbers), exact_focal(gamma, None)(sign)
        return lambda z: tuple(weight * number for number in binary(z))

    return of_sign


def balanced(gamma: float, beta: float, counts: tuple[int, int]) -> Loss:
    def of_two(logits: Tensor, labels: Tensor) -> Tensor:
        both = torch.cat([logits, torch.zeros_like(logits)], 1)
        losses = class_balanced_focal_loss(both, labels, class_boxes=counts, beta=beta, gamma=gamma, reduction="none")
        return losses[:, :1]

    return of_two


def ours(loss: Callable[..., Tensor], **options: float | Tensor | None) -> Loss:
    return lambda logits, labels: loss(logits, labels, reduction="none", **options)


def soft(loss: Callable[..., Tensor], target: float, negative: float | None = None, **options: float) -> Loss:
    """Give a loss the target for label 0, 1 - target or another for label 1, -1 for those ignored."""
    negative = 1 - target if negative is None else negative

    def of_labels(logits: Tensor, labels: Tensor) -> Tensor:
        targets = torch.tensor([target, negative, -1.0], dtype=torch.float64)[labels].unsqueeze(-1)
        return loss(logits, targets, reduction="none", **options)

    return of_labels


def softmax(gamma: float) -> Loss:
    def of_three(logits: Tensor, labels: Tensor) -> Tensor:
        others = logits.new_tensor([0.0, -1.0]).expand(len(logits), 2)
        return softmax_focal_loss(torch.cat([logits, others], 1), labels, gamma=gamma, reduction="none").unsqueeze(-1)

    return of_three


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
        "focal_loss": {"gamma 2, alpha (.25,)": (ours(focal_loss, alpha=torch.tensor([0.25])), exact_focal(2.0, 0.25))},
        "focal_loss, soft targets": {
            f"gamma {g:g}, alpha 0.25, t {t:g}": (soft(focal_loss, t, gamma=g), exact_soft(g, 0.25, t))
            for g in (0.0, 0.5, 2.0)
            for t in TARGETS
        },
        "focal_loss_reference": {
            f"gamma {g:g}, alpha 0.25": (ours(focal_loss_reference, gamma=g), exact_focal(g, 0.25))
            for g in (0.0, 0.5, 2.0)
        },
        "softmax_focal_loss": {f"gamma {g:g}": (softmax(g), exact_softmax(g)) for g in (0.0, 0.5, 2.0)},
        "focal_loss_star": {
            f"gamma {g:g}, beta {b:g}": (ours(focal_loss_star, gamma=g, beta=b), exact_star(g, b))
            for g, b in ((2.0, 1.0), (4.0, 0.0), (0.5, -1.5))
        },
        "hinge_loss": {f"margin {m:g}": (ours(hinge_loss, margin=m), exact_hinge(m)) for m in (0.5, 0.8, 1.0)},
        "quality_focal_loss": {
            f"beta {b:g}, t {t:g}": (soft(quality_focal_loss, t, beta=b), exact_quality(b, t))
            for b in (1.0, 2.0)
            for t in (*TARGETS, 1.0)
        },
        "varifocal_loss": {
            f"alpha 0.75, gamma {g:g}, t {t:g}": (
                soft(varifocal_loss, t, negative=0.0, gamma=g),
                exact_varifocal(0.75, g, t),
            )
            for g in (0.5, 2.0)
            for t in (*TARGETS, 1.0)
        },
        "asymmetric_loss": {
            f"gamma {a:g} and {b:g}, shift {m:g}": (
                ours(asymmetric_loss, gamma_pos=a, gamma_neg=b, prob_shift=m),
                exact_asymmetric(a, b, m),
            )
            for a, b, m in ((0.0, 4.0, 0.05), (1.0, 2.0, 0.2), (0.0, 4.0, 0.0))
        },
        "class_balanced_focal_loss": {
            f"gamma {g:g}, beta {b:g}": (balanced(g, b, (1000, 10)), exact_balanced(g, b, (1000, 10)))
            for g, b in ((2.0, 0.9999), (0.5, 0.9))
        },
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
            true_value, slope, *size = exact(sign)(sign * mpmath.mpf(logit)) if sign else (mpmath.mpf(0),) * 2
            for name, number, truth, size_of_it, its_dtype in (
                ("value", value[0], true_value, abs(true_value), values.dtype),
                ("gradient", gradient[0], sign * slope, size[0] if size else abs(slope), dtype),
            ):
                if math.isfinite(number):
                    scale = max(size_of_it, mpmath.mpf(torch.finfo(its_dtype).tiny))
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
