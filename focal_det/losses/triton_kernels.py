"""The losses of the family as Triton kernels, for `triton_loss` alone to import: where Triton is missing, this fails.

Terms
    x, z   a logit, and x_t = y * x of `elementwise`
    e      exp(-|z|), in (0, 1]: from it p = sigmoid(z), q = 1 - p and log(1 + e) come without cancellation
    (high, low) a number as the unevaluated sum of two in float32, where one would not do

A GPU computes in float64 at a fraction of its speed, so that everything is float32 here, and where a rounding would be
magnified (the exponent of e, gamma * z + beta, p near the hinge's margin) its error is carried along. That works only
if no multiplication and addition are fused but those that say so (`tl.fma`); `triton_loss` asks for that.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950216293335)  # in float32; the next is what is left of it
LOG2_E_LOW = tl.constexpr(1.925963033500011e-08)
LN_2 = tl.constexpr(0.6931471805599453)
FAR = tl.constexpr(-104.0)  # exp of less is 0 in float32
IGNORED = tl.constexpr(-1)


@triton.jit(do_not_specialize=["num_anchors"])
def loss_kernel(
    logits, layout, labels, divisors, partials, num_anchors, weights, scale, shift,
    num_classes: tl.constexpr, kind: tl.constexpr, run: tl.constexpr, is_dense: tl.constexpr, block_size: tl.constexpr,
):  # fmt: skip
    """Write the block's sum of losses, over the divisor of its image."""
    block, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    offset, class_, anchor, is_inside = _locate(layout, block, image, num_classes, run, is_dense, block_size)
    label = tl.load(labels + image * num_anchors + anchor, mask=is_inside, other=IGNORED)
    x = tl.load(_pick(logits, layout, block) + offset, mask=is_inside, other=0.0).to(tl.float32)
    is_own = label == class_
    loss, _ = _loss_and_slope(tl.where(is_own, x, -x), scale, shift, kind)
    loss = tl.where(label == IGNORED, 0.0, loss * tl.where(is_own, weights[0], weights[1]))
    tl.store(partials + image * tl.num_programs(0) + block, tl.sum(loss) / tl.load(divisors + image))


@triton.jit(do_not_specialize=["num_anchors"])
def gradient_kernel(
    logits, grads, layout, labels, divisors, grad_output, num_anchors, weights, scale, shift,
    num_classes: tl.constexpr, kind: tl.constexpr, run: tl.constexpr, is_dense: tl.constexpr, block_size: tl.constexpr,
):  # fmt: skip
    """Write the block's gradients, rounded once, after the incoming gradient and the divisor."""
    block, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    offset, class_, anchor, is_inside = _locate(layout, block, image, num_classes, run, is_dense, block_size)
    label = tl.load(labels + image * num_anchors + anchor, mask=is_inside, other=IGNORED)
    x = tl.load(_pick(logits, layout, block) + offset, mask=is_inside, other=0.0).to(tl.float32)
    is_own = label == class_
    _, slope = _loss_and_slope(tl.where(is_own, x, -x), scale, shift, kind)
    factor = tl.load(grad_output) / tl.load(divisors + image)
    slope = tl.where(label == IGNORED, 0.0, slope * tl.where(is_own, weights[0] * factor, -weights[1] * factor))
    grad = _pick(grads, layout, block) + offset
    tl.store(grad, slope.to(grad.dtype.element_ty), mask=is_inside)


@triton.jit
def _locate(
    layout, block, image,
    num_classes: tl.constexpr, run: tl.constexpr, is_dense: tl.constexpr, block_size: tl.constexpr,
):  # fmt: skip
    """Return for each element of a block its offset in the level, class, anchor in the image, and whether there is one.

    run anchors are walked over for one class before the next class; then the next run anchors.
    """
    starts, counts, first_anchors, image_strides, class_strides, dims = layout
    count = _unpack(_pick(counts, layout, block))
    element = (block - _unpack(_pick(starts, layout, block))) * block_size + tl.arange(0, block_size)
    row = element // run
    class_ = row % num_classes
    place = row // num_classes * run + element % run  # of the anchor, in the order of memory
    first_anchor = _unpack(_pick(first_anchors, layout, block))
    if is_dense:  # told apart so that the compiler sees neighbours and loads them at once
        return image * (count * num_classes) + element, class_, first_anchor + place, element < count * num_classes

    offset = class_ * _unpack(_pick(class_strides, layout, block))
    anchor = tl.zeros_like(place) + first_anchor
    rest = place
    for d in tl.static_range(len(dims)):
        size = _unpack(_pick(dims[d][0], layout, block))
        offset += rest % size * _unpack(_pick(dims[d][1], layout, block))
        anchor += rest % size * _unpack(_pick(dims[d][2], layout, block))
        rest = rest // size
    return image * _unpack(_pick(image_strides, layout, block)) + offset, class_, anchor, place < count


@triton.jit
def _pick(values, layout, block):
    """The value of the level that a block lies in, of those of all levels."""
    starts = layout[0]
    value = values[0]
    for level in tl.static_range(1, len(values)):
        value = tl.where(block >= _unpack(starts[level]), values[level], value)
    return value


@triton.jit
def _unpack(number):
    """The inverse of `triton_loss._packed`."""
    return (number - 3) >> 1


@triton.jit
def _loss_and_slope(z, scale, shift, kind: tl.constexpr):
    """A loss of the family and its derivative by z. What is not used of them, the compiler leaves out."""
    if kind == "focal_star":
        u, u_low = _scaled(z, scale)
        u, error = _two_sum(u, shift[0])
        is_finite = tl.abs(u) < float("inf")  # else its errors are inf - inf
        u, u_low = _two_sum(u, tl.where(is_finite, error + (u_low + shift[1]), 0.0))
        u_low = tl.where(is_finite, u_low, 0.0)
        e = _exp(-tl.abs(u), tl.where(u > 0, -u_low, u_low))
        loss = (tl.where(u < 0, -u, 0.0) + (tl.where(u < 0, -u_low, 0.0) + _log1p(e))) / scale[0]
        return loss, -tl.where(u > 0, e, 1.0) / (1 + e)

    e = _exp(-tl.abs(z), 0.0)
    larger = 1 / (1 + e)  # of p and q
    p = tl.where(z > 0, larger, e * larger)
    q = tl.where(z > 0, e * larger, larger)
    if kind == "hinge":
        # margin - p = margin * q * (1 - exp(z - logit of the margin)), in which nothing cancels
        distance = (z - shift[0]) - shift[1]
        loss = tl.where(distance >= 0, 0.0, -scale[0] * q * _expm1(distance))  # NaN stays NaN
        return loss, tl.where(distance >= 0, 0.0, -p * q)

    log1p_e = _log1p(e)
    minus_log_p = tl.where(z < 0, -z, 0.0) + log1p_e
    if kind == "cross_entropy":
        return minus_log_p, -q
    if kind == "focal_squared":
        modulating = q * q
        gamma = 2.0
    else:  # "focal": q^gamma of q = exp(-max(z, 0) - log(1 + e))
        exponent, exponent_low = _scaled(tl.where(z > 0, -z, 0.0), scale)
        gamma = scale[0]
        modulating = _exp(exponent, exponent_low) * tl.exp2(-gamma * LOG2_E * log1p_e)
    return modulating * minus_log_p, -modulating * tl.fma(gamma * p, minus_log_p, q)


@triton.jit
def _scaled(z, scale):
    """z times a number (high, low), as one."""
    product = z * scale[0]
    return product, tl.fma(z, scale[0], -product) + z * scale[1]


@triton.jit
def _two_sum(a, b):
    """a + b and the error of its rounding, exactly (Knuth)."""
    total = a + b
    b_used = total - a
    return total, (a - (total - b_used)) + (b - b_used)


@triton.jit
def _exp(high, low):
    """exp(high + low) for high <= 0 and low far smaller. Alone, a rounding of high would count |high| times."""
    power = high * LOG2_E
    rest = tl.fma(high, LOG2_E, -power) + tl.fma(high, LOG2_E_LOW, low * LOG2_E)
    return tl.where(high < FAR, 0.0, tl.exp2(power) * tl.fma(rest, LN_2, 1.0))


@triton.jit
def _log1p(e):
    """log(1 + e) for 0 <= e <= 1: e times a polynomial, fitted to a relative 3e-8; without a division."""
    series = tl.fma(e, 0.0052326880395412445, -0.029505213722586632)
    series = tl.fma(series, e, 0.07822591066360474)
    series = tl.fma(series, e, -0.13663242757320404)
    series = tl.fma(series, e, 0.19106005132198334)
    series = tl.fma(series, e, -0.2484298199415207)
    series = tl.fma(series, e, 0.3331909775733948)
    series = tl.fma(series, e, -0.4999949336051941)
    return e * tl.fma(series, e, 0.9999999403953552)


@triton.jit
def _expm1(d):
    """exp(d) - 1 for d <= 0: d (1 + d/2 (1 + d/3 (1 + ...))) where the difference would cancel."""
    series = d * 0.0 + 1
    for k in tl.static_range(8):
        series = tl.fma(series, d * (1 / (9 - k)), 1.0)
    return tl.where(d > -0.5, d * series, _exp(d, 0.0) - 1)
