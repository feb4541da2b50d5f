"""The specification: conv2d and its gradients with every rounding written down, in plain NumPy.

Slow on purpose; the compiled engine gives the same bits. Three things fix a result, and each stands alone here:

* the index map says which products w*x an output sums (`forward_terms`, `input_phases`, `weight_terms`);
* the order says in which sequence and in which tree they are summed (`sequence`, `join`, `explicit`);
* the arithmetic says what one accumulator does with one term (`naive`, `kahan`, `fma`, `exact`).

`contract` puts them together, and `join_samples` adds the samples of a batch. Every output element is a lane of its
own: a term is a pair of arrays (w, x) that broadcast to the shape of the lanes, an accumulator s is an array with one
number a lane, and nothing mixes two lanes.

T is the element type, float32 or float64. The dtype of an accumulator is its format: T, or float64 where it is kept in
double. NumPy's +, -, * and astype are the operations of IEEE 754, each with one rounding, to the type of its result, to
nearest, ties to even, with subnormals: the environment that Python starts in.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from detconv.quoting import quoted
from detconv.summation import Summation

Array = NDArray[Any]
Terms = list[tuple[Array, Array]]
Pair = tuple[int, int]


def conv2d(
    input: Array,
    weight: Array,
    bias: Array | None = None,
    stride: int | Pair = 1,
    padding: int | Pair | str = 0,
    dilation: int | Pair = 1,
    groups: int = 1,
    *,
    summation: Summation | str = "pairwise",
    half: str | None = None,
) -> Array:
    """Two-dimensional cross-correlation, as `torch.nn.functional.conv2d`, summed as `summation` says.

    input: (N, C, H, W) or (C, H, W); weight: (O, C/groups, KH, KW); bias: (O,) or None; all float32 or all float64.
    padding: zeros on both sides; or "valid", none; or "same", with stride 1: the output is as large as the input, and
    of an odd number of zeros the odd one is at the bottom and right. Returns (N, O, OH, OW) or (O, OH, OW); without
    input channels O is 0, as in torch. Raises TypeError for the dtype, ValueError for any other argument.

    half: "float16" or "bfloat16": the arrays, of dtype float32, hold numbers of that type, which are summed as float32;
    so does the result, to which the total is rounded once. The same for the other passes.
    """
    _check_dtypes(input=input, weight=weight, bias=bias)
    layer = _layer({"input": input.shape, "weight": weight.shape}, stride, padding, dilation, groups)
    bias = _bias_lanes(bias, weight.shape[0], groups)
    if weight.shape[1] == 0:
        weight, bias = weight[:0], None
    terms, lanes = forward_terms(_padded(input, layer), weight, layer)
    zero = np.zeros(lanes, input.dtype)
    return contract(terms, weight.shape[1:], bias, zero, Summation.of(summation), half).reshape(layer.output)


def conv2d_input(
    input_size: Sequence[int],
    weight: Array,
    grad_output: Array,
    stride: int | Pair = 1,
    padding: int | Pair | str = 0,
    dilation: int | Pair = 1,
    groups: int = 1,
    *,
    summation: Summation | str = "pairwise",
    half: str | None = None,
) -> Array:
    """The gradient of conv2d by its input, as `torch.nn.grad.conv2d_input`, summed as `summation` says.

    input_size: (N, C, H, W) or (C, H, W); weight: (O, C/groups, KH, KW); grad_output: of the shape that conv2d returns;
    both float32 or both float64; the others as for conv2d. Returns an array of shape input_size.

    The sum of each pixel (n, c, ih, iw) is over (o, i, j), numbered in this order; o is counted from 0 within the group
    of c, and takes the place of c in the order's name. Its terms are weight[o, c, i, j] * grad_output[n, o, p, q] with
    p = (ih + top - i*dh) / sh and q = (iw + left - j*dw) / sw, for those i and j for which both are integers. Where p
    or q lies outside grad_output the factor is +0: a padded tap is a term like any other. So the pixels fall into
    sh * sw phases, by the remainders of ih + top and iw + left, each with its own arithmetic progressions of i and j
    and its own number of terms. Without terms the sum is +0. An explicit order must cover the terms of every phase that
    has a pixel.

    Raises TypeError for the dtype, ValueError for any other argument.
    """
    _check_dtypes(weight=weight, grad_output=grad_output)
    layer = _layer({"input_size": input_size, "weight": weight.shape}, stride, padding, dilation, groups)
    _check_grad_output(grad_output, layer)
    weight = weight[: grad_output.shape[-3]]  # none, without input channels
    return _input_gradient(tuple(input_size), weight, grad_output, None, layer, Summation.of(summation), half)


def conv2d_weight(
    input: Array,
    weight_size: Sequence[int],
    grad_output: Array,
    stride: int | Pair = 1,
    padding: int | Pair | str = 0,
    dilation: int | Pair = 1,
    groups: int = 1,
    *,
    summation: Summation | str = "pairwise",
    half: str | None = None,
) -> Array:
    """The gradient of conv2d by its weight, as `torch.nn.grad.conv2d_weight`, summed as `summation` says.

    input: (N, C, H, W) or (C, H, W); weight_size: (O, C/groups, KH, KW); grad_output: of the shape that conv2d returns;
    both float32 or both float64; the others as for conv2d. Returns an array of shape weight_size.

    The terms of the element (o, c, i, j) are grad_output[n, o, p, q] * x[n, c, p*sh + i*dh, q*sw + j*dw], where x is
    the padded input, over (p, q) in every sample n; `join_samples` says how they are summed.

    Raises TypeError for the dtype, ValueError for any other argument.
    """
    _check_dtypes(input=input, grad_output=grad_output)
    layer = _layer({"input": input.shape, "weight_size": weight_size}, stride, padding, dilation, groups)
    _check_grad_output(grad_output, layer)
    terms, lanes = weight_terms(_padded(input, layer), _batched(grad_output), weight_size, layer)
    return join_samples(terms, np.zeros(lanes, input.dtype), Summation.of(summation), half).reshape(weight_size)


def conv2d_bias(grad_output: Array, *, summation: Summation | str = "pairwise", half: str | None = None) -> Array:
    """The gradient of conv2d by its bias, summed as `summation` says.

    grad_output: (N, O, OH, OW) or (O, OH, OW), float32 or float64. Returns (O,). The terms of the element o are
    grad_output[n, o, p, q] * 1 over (p, q) in every sample n; `join_samples` says how they are summed.

    Raises TypeError for the dtype, ValueError for any other argument.
    """
    _check_dtypes(grad_output=grad_output)
    if grad_output.ndim not in (3, 4):
        raise ValueError(f"grad_output: shape {grad_output.shape}, must be (N, O, OH, OW) or (O, OH, OW)")
    values = np.moveaxis(_batched(grad_output), 1, -1)
    samples, height, width, channels = values.shape
    one = np.ones((samples, channels), grad_output.dtype)
    terms = [(values[:, p, q], one) for p, q in np.ndindex(height, width)]
    return join_samples(terms, np.zeros_like(one), Summation.of(summation), half)


def conv_transpose2d(
    input: Array,
    weight: Array,
    bias: Array | None = None,
    stride: int | Pair = 1,
    padding: int | Pair = 0,
    output_padding: int | Pair = 0,
    groups: int = 1,
    dilation: int | Pair = 1,
    *,
    summation: Summation | str = "pairwise",
    half: str | None = None,
) -> Array:
    """Transposed convolution, as `torch.nn.functional.conv_transpose2d`, summed as `summation` says.

    input: (N, C, H, W) or (C, H, W); weight: (C, O/groups, KH, KW); bias: (O,) or None; all float32 or all float64.
    Returns (N, O, OH, OW) or (O, OH, OW) with OH = (H-1)*sh - 2*padding + dh*(KH-1) + output_padding + 1,
    and OW alike.

    Each output is the sum that conv2d_input has for this pixel with grad_output = input, its terms over (c, i, j), and
    the bias, which enters as in conv2d. In a phase without terms it is the bias alone.

    Raises TypeError for the dtype, ValueError for any other argument.
    """
    _check_dtypes(input=input, weight=weight, bias=bias)
    _check_image("input", input.shape)
    _check_weight("weight", weight.shape, "(C, O/groups, KH, KW)")
    channels, group_outputs, *kernel = weight.shape
    if groups < 1 or channels % groups or input.shape[-3] != channels:
        raise ValueError(f"groups: {groups} does not fit input {input.shape} and weight {weight.shape}")
    bias = _bias_lanes(bias, groups * group_outputs, groups)
    stride, dilation = _pair("stride", stride, 1), _pair("dilation", dilation, 1)
    padding, extra = _pair("padding", padding, 0), _pair("output_padding", output_padding, 0)
    if any(e >= max(s, d) for e, s, d in zip(extra, stride, dilation, strict=True)):
        limits = f"stride {stride} or dilation {dilation}"
        raise ValueError(f"output_padding: {output_padding}, must be smaller than {limits}")
    axes = zip(input.shape[-2:], stride, padding, dilation, kernel, extra, strict=True)
    height, width = ((size - 1) * s - 2 * p + d * (k - 1) + e + 1 for size, s, p, d, k, e in axes)
    if min(height, width) < 1:
        raise ValueError(f"padding: {padding} leaves an output of {height} x {width}, must be at least 1 x 1")
    output = (*input.shape[:-3], groups * group_outputs, height, width)
    layer = Layer(stride, dilation, ((padding[0],) * 2, (padding[1],) * 2), groups, input.shape)
    return _input_gradient(output, weight, input, bias, layer, Summation.of(summation), half)


def _input_gradient(
    size: tuple[int, ...],
    weight: Array,
    grad_output: Array,
    bias: Array | None,
    layer: Layer,
    rule: Summation,
    half: str | None,
) -> Array:
    """One contraction a phase; size: of the result; bias: as `contract` takes it."""
    *_, height, width = size
    lanes = len(_batched(grad_output)), layer.groups, weight.shape[1], height, width
    gradient: Array = np.zeros(lanes, weight.dtype)
    for pixels, terms, extents in input_phases(_batched(grad_output), weight, (height, width), layer):
        gradient[pixels] = contract(terms, extents, bias, gradient[pixels], rule, half)
    return gradient.reshape(size)


# ---- The index maps ----


class Layer(NamedTuple):
    """A convolution's geometry, checked."""

    stride: Pair
    dilation: Pair
    borders: tuple[Pair, Pair]  # how many zeros are added: (top, bottom), (left, right)
    groups: int
    output: tuple[int, ...]  # the shape of conv2d's output, (N, O, OH, OW) or (O, OH, OW)


def forward_terms(image: Array, weight: Array, layer: Layer) -> tuple[Terms, tuple[int, ...]]:
    """The terms of the forward pass, numbered c,kh,kw, and the shape (N, G, O/G, OH, OW) of its lanes.

    image: the padded input. A padded tap is a term like any other, with x = +0. Term (c*KH + i)*KW + j of the output
    (n, g, o, p, q) is weight[g, o, c, i, j] * image[n, g, c, p*sh + i*dh, q*sw + j*dw].
    """
    (n, _, height, width), (out_channels, channels, kh, kw) = image.shape, weight.shape
    (sh, sw), (dh, dw), _, groups, (*_, oh, ow) = layer
    w = weight.reshape(1, groups, out_channels // groups, channels, kh, kw, 1, 1)
    x = image.reshape(n, groups, 1, channels, height, width)
    terms = [
        (w[:, :, :, c, i, j], x[:, :, :, c, i * dh :: sh, j * dw :: sw][..., :oh, :ow])
        for c, i, j in np.ndindex(channels, kh, kw)
    ]
    return terms, (n, groups, out_channels // groups, oh, ow)


def input_phases(
    grad_output: Array, weight: Array, size: Pair, layer: Layer
) -> Iterator[tuple[Any, Terms, tuple[int, int, int]]]:
    """The phases of the input gradient: the index of their pixels in the result's lanes, their terms, their loops.

    size: (H, W) of the result, whose lanes are (N, G, C/G, H, W); terms are numbered o,i,j, and (o, i, j) counts in
    each phase only its own taps. See `conv2d_input`.
    """
    (n, _, *grid), (out_channels, channels, *kernel) = grad_output.shape, weight.shape
    (sh, sw), _, _, groups, _ = layer
    outputs = out_channels // groups
    w = weight.reshape(1, groups, outputs, channels, *kernel, 1, 1)
    beyond = np.pad(grad_output, ((0, 0), (0, 0), (0, 1), (0, 1)))  # one row and one column of zeros, for all outside
    x = beyond.reshape(n, groups, outputs, 1, grid[0] + 1, grid[1] + 1)

    def taps(axis: int, first: int) -> list[tuple[int, Array]]:
        """The taps i of the pixels first, first + stride, ..., with the positions p where they read grad_output."""
        stride, dilation, before = layer.stride[axis], layer.dilation[axis], layer.borders[axis][0]
        pixels = np.arange(first, size[axis], stride)
        met = [i for i in range(kernel[axis]) if (first + before - i * dilation) % stride == 0]
        positions = [(pixels + before - i * dilation) // stride for i in met]
        return [(i, np.where((p >= 0) & (p < grid[axis]), p, grid[axis])) for i, p in zip(met, positions, strict=True)]

    for row, column in np.ndindex(min(sh, size[0]), min(sw, size[1])):
        rows, columns = taps(0, row), taps(1, column)
        terms = [
            (w[:, :, o, :, i, j], x[:, :, o][..., p[:, None], q])
            for o in range(outputs)
            for i, p in rows
            for j, q in columns
        ]
        yield np.s_[..., row::sh, column::sw], terms, (outputs, len(rows), len(columns))


def weight_terms(
    image: Array, grad_output: Array, weight_size: Sequence[int], layer: Layer
) -> tuple[Terms, tuple[int, ...]]:
    """The terms of the weight gradient, over (p, q), and the shape (N, G, O/G, C/G, KH, KW) of its lanes.

    image: the padded input. See `conv2d_weight`.
    """
    (n, _, height, width), (_, out_channels, oh, ow) = image.shape, grad_output.shape
    (_, channels, kh, kw), ((sh, sw), (dh, dw), _, groups, _) = weight_size, layer
    w = grad_output.reshape(n, groups, out_channels // groups, 1, 1, 1, oh, ow)
    x = image.reshape(n, groups, 1, channels, height, width)
    terms = [(w[..., p, q], x[..., p * sh :: dh, q * sw :: dw][..., :kh, :kw]) for p, q in np.ndindex(oh, ow)]
    return terms, (n, groups, out_channels // groups, channels, kh, kw)


# ---- The contraction ----


@np.errstate(all="ignore")
def contract(
    terms: Terms,
    extents: Sequence[int],
    bias: Array | None,
    zero: Array,
    rule: Summation,
    half: str | None = None,
) -> Array:
    """The sum of the terms and the bias in every lane, as `rule` says: one branch a method.

    terms: in the loops c,kh,kw, whose lengths are `extents`; bias: broadcasts to the lanes; zero: +0 of type T in every
    lane; half: the type to which the total is rounded, if it is not T. A NaN result is the canonical quiet NaN, and a
    zero result is +0.
    """
    # The bias is the term b * 1: fma(b, 1, s) and s + b * 1 both are s + b.
    bias_terms = [] if bias is None else [(bias, np.ones_like(bias))]
    first, last = (bias_terms, []) if rule.bias == "first" else ([], bias_terms)
    fused = rule.products == "fused"
    if rule.explicit_order:
        total = explicit(rule.order, terms, bias_terms, zero)
    else:
        terms = [terms[k] for k in sequence(rule.order, extents)]
        all_terms = first + terms + last
        match rule.method:
            case "naive":
                total = naive(all_terms, zero, fused)
            case "pairwise":
                blocks = [terms[k : k + rule.block] for k in range(0, len(terms), rule.block)] or [[]]
                blocks[0] = first + blocks[0]
                total = naive(last, join([naive(block, zero, fused) for block in blocks]), fused)
            case "kahan":
                total = kahan(all_terms, zero, fused)
                total = np.where(np.isfinite(total), total, naive(all_terms, zero, fused))
            case "fp64":
                total = naive(all_terms, zero.astype(np.float64), fused=True)
            case "exact":
                total = exact(all_terms, zero, half)
            case _:
                raise ValueError(f"summation: method {rule.method!r} is not specified")
    return canonical(rounded(total, half).astype(zero.dtype))


@np.errstate(all="ignore")
def join_samples(terms: Terms, zero: Array, rule: Summation, half: str | None) -> Array:
    """The sum of the terms over the samples too, which are the first axis of the lanes, as `rule.samples` says.

    terms: over a sample's grid, row by row, whatever loops `rule.order` names: c, kh and kw do not occur. "tree": the
    terms of every sample are summed by the method and rounded to T (so Kahan's naive fallback and the one rounding of
    exact and fp64 are those of a sample), and these sums are added in T in the tree of `join`. "sequence": the terms of
    all samples, one sample after the other, are one sum. An explicit order numbers the terms of one sample, or of all.
    Without samples the sum is +0. NaN, zero and half are as in `contract`; the sums of the samples stay in T.
    """
    if rule.samples == "sequence":
        terms = [(w[n : n + 1], x[n : n + 1]) for n in range(len(zero)) for w, x in terms]
        zero = zero[:1]
    whole = half if rule.samples == "sequence" else None
    totals = contract(terms, (len(terms), 1, 1), None, zero, rule, whole)
    total = join([*totals] or [np.zeros(zero.shape[1:], zero.dtype)])
    return canonical(rounded(total, half).astype(zero.dtype))  # inf - inf is a NaN of some sign


def canonical(total: Array) -> Array:
    """A NaN is the canonical quiet NaN, and a zero is +0."""
    total = total + 0.0  # -0 + +0 is +0
    total[np.isnan(total)] = np.nan
    return total


# ---- The order ----


def sequence(order: str, extents: Sequence[int]) -> list[int]:
    """The numbers of the terms in the sequence of the loops that `order` names, the outermost first."""
    axes = [["c", "kh", "kw"].index(loop) for loop in order.split(",")]
    return [int(k) for k in np.arange(math.prod(extents)).reshape(extents).transpose(axes).ravel()]


def join(values: Sequence[Any]) -> Any:
    """The sum of at least one value in the tree in which a binary counter carries, always older + newer.

    Every aligned block of 2**m values is a node of the tree, whatever follows it.
    """
    stack: list[Any] = []
    for number, value in enumerate(values, start=1):
        stack.append(value)
        while number % 2 == 0:
            newer, older = stack.pop(), stack.pop()
            stack.append(older + newer)
            number //= 2
    total = stack.pop()
    while stack:
        total = stack.pop() + total
    return total


def explicit(text: str, terms: Terms, bias_terms: Terms, zero: Array) -> Array:
    """The sum in an order written in the order language, whose syntax `Summation` has checked.

        E    := item+             a chain: its items enter one accumulator, which starts from +0
        item := f<k> | m<k>       term k, fused | its product rounded to T, then added
              | bias              the bias is added (nothing, where there is none)
              | [E]               a new accumulator, of the same format; its total is added to this one
              | d[E]              so too, but kept in double; its total is rounded to the format of this one, then added
              | N x(+stride){E}   N copies of the items of E, their term numbers rising by stride

    Raises ValueError unless every term, and the bias if there is one, appears exactly once.
    """
    tokens = re.findall(r"[fm]\d+|bias|d?\[|\]|\d+\s*x\s*\(\s*[+-]\d+\s*\)\s*\{|\}", text)
    unseen = {f"term {k}" for k in range(len(terms))} | {"bias"}

    def see(name: str) -> None:
        if name not in unseen:
            raise ValueError(
                f"summation: {name} appears twice or is not one of {len(terms)} terms in order {quoted(text)}"
            )
        unseen.remove(name)

    def chain(at: int, offset: int, s: Array) -> tuple[int, Array]:
        """Runs the items from tokens[at] to the end of their chain into s; the position behind it, and s."""
        while at < len(tokens) and tokens[at] not in ("]", "}"):
            token, at = tokens[at], at + 1
            if token == "bias":
                see("bias")
                s = naive(bias_terms, s, fused=True)
            elif token[0] in "fm":
                k = int(token[1:]) + offset
                see(f"term {k}")
                s = naive([terms[k]], s, fused=token[0] == "f")
            elif token in ("[", "d["):
                at, new = chain(at, offset, zero.astype(s.dtype if token == "[" else np.float64))
                s = s + new.astype(s.dtype)
            else:
                copies, stride = (int(number) for number in re.findall(r"[+-]?\d+", token))
                body = at
                for copy in range(copies):
                    at, s = chain(body, offset + copy * stride, s)
        return at + 1, s

    _, total = chain(0, 0, zero)
    missing = unseen if bias_terms else unseen - {"bias"}
    if missing:
        raise ValueError(f"summation: {min(missing)} does not appear in order {quoted(text)}")
    return total


# ---- The arithmetic ----


def naive(terms: Terms, s: Array, fused: bool) -> Array:
    """One term after the other into the accumulator s; a rounded product is rounded to T, whatever the type of s."""
    for w, x in terms:
        s = fma(w, x, s) if fused else s + w * x
    return s


def kahan(terms: Terms, s: Array, fused: bool) -> Array:
    """Compensated: c is the error of the last addition. W. Kahan, Communications of the ACM 8(1), 1965."""
    c = np.zeros_like(s)
    for w, x in terms:
        y = fma(w, x, -c) if fused else w * x - c
        t = s + y
        c = (t - s) - y
        s = t
    return s


def fma(w: Array, x: Array, s: Array) -> Array:
    """w * x + s, rounded once to the type of s, which is T or double. By definition, `exact` with one term.

    In double, a product of float32 is exact, and a sum rounded to odd rounds on to float32 as the exact sum would:
    S. Boldo and G. Melquiond, IEEE Transactions on Computers 57(4), 2008.
    """
    if w.dtype == np.float64:
        return exact([(w, x)], s)
    product = w.astype(np.float64) * x
    total = product + s
    if s.dtype == np.float64:
        return total
    rest = total - product
    error = (product - (total - rest)) + (s - rest)  # Knuth's TwoSum: product + s == total + error
    even = total.view(np.int64) % 2 == 0
    to_odd = np.where(even & (np.abs(error) > 0), np.nextafter(total, np.copysign(np.inf, error)), total)
    return to_odd.astype(s.dtype)


def exact(terms: Terms, s: Array, half: str | None = None) -> Array:
    """s and all terms summed exactly, then rounded once to T, the type of all of them, or to the half type.

    Every finite number of T is a multiple of the smallest subnormal, 2**unit, so the sum is an integer times
    2**(2*unit). Terms with an infinity or a NaN are summed apart, by IEEE addition, and prevail.
    """
    info = np.finfo(s.dtype)
    unit = int(info.minexp - info.nmant)
    total = _integers(s, 2 * unit)
    special = np.where(np.isfinite(s), 0.0, s)
    for w, x in terms:
        total = total + _integers(w, unit) * _integers(x, unit)
        special = special + np.where(np.isfinite(w) & np.isfinite(x), 0.0, w * x)
    target = info if half is None else HALF[half]
    nearest = np.frompyfunc(lambda n: round_to(target, n, 2 * unit), 1, 1)(total).astype(s.dtype)
    return np.where(special == 0, nearest, special)


class Format(NamedTuple):
    """A binary floating-point format; the fields are those of np.finfo."""

    nmant: int
    minexp: int
    maxexp: int


HALF = {"float16": Format(10, -14, 16), "bfloat16": Format(7, -126, 128)}


def rounded(total: Array, half: str | None) -> Array:
    """The numbers rounded once to the half type, if there is one."""
    if half is None:
        return total
    info = np.finfo(total.dtype)
    unit = int(info.minexp - info.nmant)
    nearest = np.frompyfunc(lambda n: round_to(HALF[half], n, unit), 1, 1)(_integers(total, unit))
    return np.where(np.isfinite(total), nearest.astype(total.dtype), total)


def _integers(a: Array, unit: int) -> Array:
    """The finite elements of a as integers, in multiples of 2**unit; 0 for the others."""

    def multiple(value: float) -> int:
        numerator, denominator = value.as_integer_ratio()
        return numerator * ((1 << -unit) // denominator)

    return np.asarray(np.frompyfunc(multiple, 1, 1)(np.where(np.isfinite(a), a, 0.0).astype(object)))


def round_to(info: np.finfo[Any] | Format, n: int, unit: int) -> float:
    """n * 2**unit rounded to the type that info describes: nearest, ties to even, with subnormals and overflow."""
    # How many of the lowest bits of n go: those beyond the precision, and those below the smallest subnormal.
    drop = max(n.bit_length() - (info.nmant + 1), info.minexp - info.nmant - unit, 0)
    kept = n >> drop
    twice_rest, last_place = 2 * (n - (kept << drop)), 1 << drop
    if twice_rest > last_place or (twice_rest == last_place and kept % 2 == 1):
        kept += 1
    if kept.bit_length() + drop + unit > info.maxexp:
        return math.inf if n > 0 else -math.inf
    return math.ldexp(kept, drop + unit)


# ---- The arguments ----


def _check_dtypes(**arrays: Array | None) -> None:
    given = {name: array.dtype for name, array in arrays.items() if array is not None}
    for name, dtype in given.items():
        if dtype not in (np.float32, np.float64) or dtype != next(iter(given.values())):
            raise TypeError(f"{name}: dtype {dtype}; all must be float32 or all float64")


def _layer(
    sizes: dict[str, Sequence[int]], stride: int | Pair, padding: int | Pair | str, dilation: int | Pair, groups: int
) -> Layer:
    """sizes: the input's and the weight's, each by the name of the argument that gives it."""
    (name, input_size), (weight_name, weight_size) = sizes.items()
    _check_image(name, input_size)
    _check_weight(weight_name, weight_size, "(O, C/groups, KH, KW)")
    out_channels, channels, kh, kw = weight_size
    if groups < 1 or out_channels % groups or input_size[-3] != channels * groups:
        text = f"{name} {tuple(input_size)} and {weight_name} {tuple(weight_size)}"
        raise ValueError(f"groups: {groups} does not fit {text}")
    stride, dilation = _pair("stride", stride, 1), _pair("dilation", dilation, 1)
    borders = _borders(padding, (kh, kw), stride, dilation)
    height, width = (size + sum(border) for size, border in zip(input_size[-2:], borders, strict=True))
    axes = zip((height, width), dilation, (kh, kw), stride, strict=True)
    oh, ow = ((size - d * (k - 1) - 1) // s + 1 for size, d, k, s in axes)
    if oh < 1 or ow < 1:
        kernel = f"kernel {kh} x {kw}, dilated,"
        raise ValueError(f"{weight_name}: {kernel} is larger than the padded input {height} x {width}")
    return Layer(stride, dilation, borders, groups, (*input_size[:-3], out_channels if channels else 0, oh, ow))


def _check_image(name: str, size: Sequence[int]) -> None:
    if len(size) not in (3, 4) or min(size) < 0 or min(size[-2:]) < 1:
        raise ValueError(f"{name}: shape {tuple(size)}, must be (N, C, H, W) or (C, H, W) with H and W at least 1")


def _check_weight(name: str, size: Sequence[int], axes: str) -> None:
    if len(size) != 4 or min(size) < 0 or min(size[0], *size[2:]) < 1:
        raise ValueError(f"{name}: shape {tuple(size)}, must be {axes}, all but the second at least 1")


def _check_grad_output(grad_output: Array, layer: Layer) -> None:
    if grad_output.shape != layer.output:
        raise ValueError(f"grad_output: shape {grad_output.shape}, must be {layer.output}")


def _bias_lanes(bias: Array | None, channels: int, groups: int) -> Array | None:
    """The bias, checked, in the lanes of `contract`: (N, G, O/G, OH, OW)."""
    if bias is not None and bias.shape != (channels,):
        raise ValueError(f"bias: shape {bias.shape}, must be {(channels,)}")
    return None if bias is None else bias.reshape(1, groups, channels // groups, 1, 1)


def _batched(image: Array) -> Array:
    return image if image.ndim == 4 else image[None]


def _padded(image: Array, layer: Layer) -> Array:
    return np.pad(_batched(image), ((0, 0), (0, 0), *layer.borders))


def _pair(name: str, value: int | Pair, least: int) -> Pair:
    if isinstance(value, str):
        raise ValueError(f"{name}: {value!r}, must be an int or a pair of ints")
    first, second = (value, value) if isinstance(value, SupportsIndex) else value
    if min(first, second) < least:
        raise ValueError(f"{name}: {value}, must be at least {least}")
    return first, second


def _borders(padding: int | Pair | str, kernel: Pair, stride: Pair, dilation: Pair) -> tuple[Pair, Pair]:
    """How many zeros are added: (top, bottom), (left, right)."""
    if padding == "same" and stride == (1, 1):
        high, wide = dilation[0] * (kernel[0] - 1), dilation[1] * (kernel[1] - 1)
        return (high // 2, high - high // 2), (wide // 2, wide - wide // 2)
    if isinstance(padding, str) and padding != "valid":
        raise ValueError(f'padding: {padding!r}, must be "valid", an int, a pair of ints or, with stride 1, "same"')
    high, wide = _pair("padding", 0 if isinstance(padding, str) else padding, 0)
    return (high, high), (wide, wide)
