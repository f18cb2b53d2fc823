"""The losses of the family as a Triton kernel, for `triton_loss` alone to import: where Triton is missing, this fails.

Terms
    x, z    a logit, and x_t = y * x of `elementwise`
    e       exp(-|z|), in (0, 1]: from it p = sigmoid(z), q = 1 - p and log2(1 + e) come without cancellation
    group   neighbouring classes of one anchor, a power of 2 that divides K: what is asked about an anchor (its label,
            where it lies) is asked once for all of them
    tile    the groups that a program computes at a time: (groups, classes), or (classes, groups) where neighbouring
            groups are neighbours in memory
    (high, low) a number as the unevaluated sum of two in float32, where one would not do

A GPU computes in float64 at a fraction of its speed, so that everything is float32 here, and where a rounding would be
magnified (the exponent of e, gamma * z + beta, p near the hinge's margin) its error is carried along. That works only
if no multiplication and addition are fused but those that say so (`tl.fma`); `triton_loss` asks for that. Logits and
gradients in bfloat16 have 8 bits, for which e and log2(1 + e) need no such care: `is_exact` is false for them, and the
loss right to 1e-5.

The one special function is exp2, a single instruction on a GPU: 1 / (1 + e) is 2^-log2(1 + e), whose exponent is in
[-1, 0] and so magnifies nothing, and log2(1 + e) is a polynomial. The instruction for log2 would not do: it is given
1 + e, which has lost a small e, and with it an easy example's gradient.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950216293335)  # in float32; the next is what is left of it
LOG2_E_LOW = tl.constexpr(1.925963033500011e-08)
LN_2 = tl.constexpr(0.6931471805599453)
FAR = tl.constexpr(-104.0)  # exp of less is 0 in float32
IGNORED = tl.constexpr(-1)


@triton.jit(do_not_specialize=["num_tiles", "num_anchors"])
def loss_kernel(
    logits, grads, partials, layout, num_tiles, labels, divisors, grad_output, written_for, num_anchors,
    weights, scale, shift,
    num_classes: tl.constexpr, group: tl.constexpr, run: tl.constexpr, is_dense: tl.constexpr,
    tile_size: tl.constexpr, kind: tl.constexpr,
):  # fmt: skip
    """Write the sum of losses of num_tiles tiles over the divisor of their image, or the gradients, or both.

    grads or partials is None if it is not asked for; grad_output is None if it is not known yet and taken for 1. Where
    it is `written_for`, the gradients are there already, and nothing is done.
    """
    program, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    factor = 1.0 / tl.load(divisors + image)
    if grad_output is not None:
        incoming = tl.load(grad_output)
        if incoming == written_for:
            return
        factor *= incoming

    axis: tl.constexpr = 1 if run == 1 else 0  # of the classes in a tile
    groups: tl.constexpr = tile_size // group
    classes = tl.expand_dims(tl.arange(0, group), 1 - axis)
    total = tl.zeros([groups, group] if axis == 1 else [group, groups], tl.float32)
    count, image_start, class_stride = _level(layout, program, image, num_classes, is_dense)
    logits = _pick(logits, layout, program) + image_start
    is_exact: tl.constexpr = logits.dtype.element_ty != tl.bfloat16
    begin = (program - _unpack(_pick(layout[0], layout, program))) * (groups * num_tiles)
    end = tl.minimum(begin + groups * num_tiles, tl.cdiv(count, run) * (run * (num_classes // group)))
    for first in range(begin, end, groups):
        offset, class_, anchor, is_inside = _locate(
            layout, program, first + tl.arange(0, groups), count, class_stride, num_classes, group, run, is_dense
        )
        label = tl.load(labels + image * num_anchors + anchor, mask=is_inside, other=IGNORED)
        own = label - class_  # in the group, if it is there
        own = tl.expand_dims(tl.where((own >= 0) & (own < group), own, -1).to(tl.int32), axis)
        offset = tl.expand_dims(offset, axis) + classes * class_stride
        # Where there is nothing, or nothing to learn, an impossible class rightly predicted: no loss and no gradient.
        is_read = tl.expand_dims(label != IGNORED, axis)
        x = tl.load(logits + offset, mask=is_read, other=float("-inf")).to(tl.float32)
        if tl.max(tl.max(own, axis=axis), axis=0) < 0:  # nothing but background, as most tiles are
            loss, slope = _loss_and_slope(-x, scale, shift, kind, is_exact)
            total = tl.fma(loss, weights[1], total)
            slope *= -weights[1] * factor
        else:
            is_own = own == classes
            loss, slope = _loss_and_slope(tl.where(is_own, x, -x), scale, shift, kind, is_exact)
            total = tl.fma(loss, tl.where(is_own, weights[0], weights[1]), total)
            slope *= tl.where(is_own, weights[0] * factor, -weights[1] * factor)
        if grads is not None:
            grad = _pick(grads, layout, program) + image_start + offset
            tl.store(grad, slope.to(grad.dtype.element_ty), mask=tl.expand_dims(is_inside, axis))
    if partials is not None:
        tl.store(partials + image * tl.num_programs(0) + program, tl.sum(total) * factor)


@triton.jit
def _level(layout, program, image, num_classes: tl.constexpr, is_dense: tl.constexpr):
    """Return the number of anchors of a program's level, where the image begins in it, and the stride of a class."""
    _, counts, _, image_strides, class_strides, _ = layout
    count = _unpack(_pick(counts, layout, program))
    if is_dense:  # told apart so that the compiler sees neighbours and loads them at once
        return count, image * (count * num_classes), 1
    image_start = image * _unpack(_pick(image_strides, layout, program))
    return count, image_start, _unpack(_pick(class_strides, layout, program))


@triton.jit
def _locate(
    layout, program, number, count, class_stride,
    num_classes: tl.constexpr, group: tl.constexpr, run: tl.constexpr, is_dense: tl.constexpr,
):  # fmt: skip
    """Return for groups by number their offset in the image, first class, anchor in the image, and whether they exist.

    run anchors are walked over for one group of classes before the next group; then the next run anchors.
    """
    row = number // run
    class_ = row % (num_classes // group) * group
    place = row // (num_classes // group) * run + number % run  # of the anchor, in the order of memory
    _, _, first_anchors, _, _, dims = layout
    first_anchor = _unpack(_pick(first_anchors, layout, program))
    if is_dense:
        return number * group, class_, first_anchor + place, place < count

    offset = class_ * class_stride
    anchor = tl.zeros_like(place) + first_anchor
    rest = place
    for d in tl.static_range(len(dims)):
        size = _unpack(_pick(dims[d][0], layout, program))
        offset += rest % size * _unpack(_pick(dims[d][1], layout, program))
        anchor += rest % size * _unpack(_pick(dims[d][2], layout, program))
        rest = rest // size
    return offset, class_, anchor, place < count


@triton.jit
def _pick(values, layout, program):
    """The value of the level that a program works in, of those of all levels."""
    starts = layout[0]
    value = values[0]
    for level in tl.static_range(1, len(values)):
        value = tl.where(program >= _unpack(starts[level]), values[level], value)
    return value


@triton.jit
def _unpack(number):
    """The inverse of `triton_loss._packed`."""
    return (number - 3) >> 1


@triton.jit
def _loss_and_slope(z, scale, shift, kind: tl.constexpr, is_exact: tl.constexpr):
    """A loss of the family and its derivative by z. What is not used of them, the compiler leaves out."""
    if kind == "focal_star":
        u, u_low = _scaled(z, scale)
        u, error = _two_sum(u, shift[0])
        is_finite = tl.abs(u) < float("inf")  # else its errors are inf - inf
        u, u_low = _two_sum(u, tl.where(is_finite, error + (u_low + shift[1]), 0.0))
        u_low = tl.where(is_finite, u_low, 0.0)
        e = _exp(-tl.abs(u), tl.where(u > 0, -u_low, u_low), True)
        log2 = _log2_of_1_plus(e, is_exact)
        minus_log_p = tl.maximum(-u, 0.0) + tl.fma(log2, LN_2, tl.where(u < 0, -u_low, 0.0))
        return minus_log_p * (1 / scale[0]), -tl.where(u > 0, e, 1.0) * tl.exp2(-log2)

    e = _exp(-tl.abs(z), 0.0, is_exact)
    log2 = _log2_of_1_plus(e, is_exact)
    larger = tl.exp2(-log2)  # of p and q
    smaller = e * larger
    p = tl.where(z > 0, larger, smaller)
    q = tl.where(z > 0, smaller, larger)
    if kind == "hinge":
        # margin - p = margin * q * (1 - exp(z - logit of the margin)), in which nothing cancels
        distance = (z - shift[0]) - shift[1]
        loss = tl.where(distance >= 0, 0.0, -scale[0] * q * _expm1(distance))  # NaN stays NaN
        return loss, tl.where(distance >= 0, 0.0, -p * q)

    minus_log_p = tl.fma(log2, LN_2, tl.maximum(-z, 0.0))
    if kind == "cross_entropy":
        return minus_log_p, -q
    if kind == "focal_squared":
        modulating = q * q
        gamma = 2.0
    else:  # "focal": q^gamma of q = exp(-max(z, 0)) / (1 + e)
        gamma = scale[0]
        if is_exact:
            exponent, exponent_low = _scaled(tl.minimum(-z, 0.0), scale)
            modulating = _exp(exponent, exponent_low, True) * tl.exp2(-gamma * log2)
        else:
            modulating = tl.exp2(-gamma * tl.fma(tl.maximum(z, 0.0), LOG2_E, log2))
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
def _exp(high, low, is_exact: tl.constexpr):
    """exp(high + low) for high <= 0 and low far smaller. Alone, a rounding of high would count |high| times."""
    power = high * LOG2_E
    if not is_exact:
        return tl.exp2(power)
    rest = tl.fma(high, LOG2_E, -power) + tl.fma(high, LOG2_E_LOW, low * LOG2_E)
    return tl.where(high < FAR, 0.0, tl.exp2(power) * tl.fma(rest, LN_2, 1.0))


@triton.jit
def _log2_of_1_plus(e, is_exact: tl.constexpr):
    """log2(1 + e) for 0 <= e <= 1: e times a polynomial, fitted to a relative 3e-8, or 8e-6 for bfloat16."""
    if is_exact:
        series = tl.fma(e, 0.007549182046204805, -0.04256706312298775)
        series = tl.fma(series, e, 0.1128561943769455)
        series = tl.fma(series, e, -0.19711896777153015)
        series = tl.fma(series, e, 0.27564141154289246)
        series = tl.fma(series, e, -0.35840848088264465)
        series = tl.fma(series, e, 0.48069295287132263)
        series = tl.fma(series, e, -0.7213401794433594)
        return e * tl.fma(series, e, 1.4426950216293335)
    series = tl.fma(e, -0.034435905516147614, 0.1460328847169876)
    series = tl.fma(series, e, -0.3030362129211426)
    series = tl.fma(series, e, 0.4691740572452545)
    series = tl.fma(series, e, -0.7204261422157288)
    return e * tl.fma(series, e, 1.4426828622817993)


@triton.jit
def _expm1(d):
    """exp(d) - 1 for d <= 0: d (1 + d/2 (1 + d/3 (1 + ...))) where the difference would cancel."""
    series = d * 0.0 + 1
    for k in tl.static_range(8):
        series = tl.fma(series, d * (1 / (9 - k)), 1.0)
    return tl.where(d > -0.5, d * series, _exp(d, 0.0, True) - 1)
