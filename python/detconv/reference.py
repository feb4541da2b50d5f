"""The specification: conv2d with every rounding written down, in plain NumPy.

Slow on purpose; the compiled engine gives the same bits. Three things fix a result, and each stands alone here:

* the index map says which products w*x an output sums (`forward_terms`);
* the order says in which sequence and in which tree they are summed (`sequence`, `join`, `explicit`);
* the arithmetic says what one accumulator does with one term (`naive`, `kahan`, `fma`, `exact`).

`contract` puts them together. Every output element is a lane of its own: a term is a pair of arrays (w, x) that
broadcast to the shape of the lanes, an accumulator s is an array with one number a lane, and nothing mixes two lanes.

T is the element type, float32 or float64. The dtype of an accumulator is its format: T, or float64 where it is kept in
double. NumPy's +, -, * and astype are the operations of IEEE 754, each with one rounding, to the type of its result, to
nearest, ties to even, with subnormals: the environment that Python starts in.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import NDArray

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
) -> Array:
    """Two-dimensional cross-correlation, as `torch.nn.functional.conv2d`, summed as `summation` says.

    input: (N, C, H, W) or (C, H, W); weight: (O, C/groups, KH, KW); bias: (O,) or None; all float32 or all float64.
    padding: zeros on both sides; or "valid", none; or "same", with stride 1: the output is as large as the input, and
    of an odd number of zeros the odd one is at the bottom and right. Returns (N, O, OH, OW) or (O, OH, OW); without
    input channels O is 0, as in torch. Raises TypeError for the dtype, ValueError for any other argument.
    """
    _check(input, weight, bias, groups)
    stride, dilation = _pair("stride", stride, 1), _pair("dilation", dilation, 1)
    if weight.shape[1] == 0:
        weight, bias = weight[:0], None
    out_channels, *extents = weight.shape
    top_bottom, left_right = _borders(padding, (extents[1], extents[2]), stride, dilation)
    image = np.pad(input if input.ndim == 4 else input[None], ((0, 0), (0, 0), top_bottom, left_right))

    terms, lanes = forward_terms(image, weight, stride, dilation, groups)
    if bias is not None:
        bias = bias.reshape(1, groups, -1, 1, 1)
    output = contract(terms, extents, bias, np.zeros(lanes, input.dtype), Summation.of(summation))
    output = output.reshape(lanes[0], out_channels, *lanes[3:])
    return output if input.ndim == 4 else output[0]


# ---- The index map ----


def forward_terms(
    image: Array, weight: Array, stride: Pair, dilation: Pair, groups: int
) -> tuple[Terms, tuple[int, ...]]:
    """The terms of the forward pass, numbered c,kh,kw, and the shape (N, G, O/G, OH, OW) of its lanes.

    image: the padded input. A padded tap is a term like any other, with x = +0. Term (c*KH + i)*KW + j of the output
    (n, g, o, p, q) is weight[g, o, c, i, j] * image[n, g, c, p*sh + i*dh, q*sw + j*dw].
    """
    (n, _, height, width), (out_channels, channels, kh, kw) = image.shape, weight.shape
    (sh, sw), (dh, dw) = stride, dilation
    oh, ow = (height - dh * (kh - 1) - 1) // sh + 1, (width - dw * (kw - 1) - 1) // sw + 1
    if oh < 1 or ow < 1:
        raise ValueError(f"weight: kernel {kh} x {kw}, dilated, is larger than the padded input {height} x {width}")
    w = weight.reshape(1, groups, out_channels // groups, channels, kh, kw, 1, 1)
    x = image.reshape(n, groups, 1, channels, height, width)
    terms = [
        (w[:, :, :, c, i, j], x[:, :, :, c, i * dh :: sh, j * dw :: sw][..., :oh, :ow])
        for c, i, j in np.ndindex(channels, kh, kw)
    ]
    return terms, (n, groups, out_channels // groups, oh, ow)


# ---- The contraction ----


@np.errstate(all="ignore")
def contract(terms: Terms, extents: Sequence[int], bias: Array | None, zero: Array, rule: Summation) -> Array:
    """The sum of the terms and the bias in every lane, as `rule` says: one branch a method.

    terms: in the loops c,kh,kw, whose lengths are `extents`; bias: broadcasts to the lanes; zero: +0 of type T in every
    lane. A NaN result is the canonical quiet NaN, and a zero result is +0.
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
                total = naive(all_terms, zero.astype(np.float64), fused=True).astype(zero.dtype)
            case "exact":
                total = exact(all_terms, zero)
            case _:
                raise ValueError(f"summation: method {rule.method!r} is not specified")
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
            raise ValueError(f"summation: {name} appears twice or is not one of {len(terms)} terms in order {text!r}")
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
        raise ValueError(f"summation: {min(missing)} does not appear in order {text!r}")
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


def exact(terms: Terms, s: Array) -> Array:
    """s and all terms summed exactly, then rounded once to T, the type of all of them.

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
    rounded = np.frompyfunc(lambda n: round_to(info, n, 2 * unit), 1, 1)(total).astype(s.dtype)
    return np.where(special == 0, rounded, special)


def _integers(a: Array, unit: int) -> Array:
    """The finite elements of a as integers, in multiples of 2**unit; 0 for the others."""

    def multiple(value: float) -> int:
        numerator, denominator = value.as_integer_ratio()
        return numerator * ((1 << -unit) // denominator)

    return np.asarray(np.frompyfunc(multiple, 1, 1)(np.where(np.isfinite(a), a, 0.0).astype(object)))


def round_to(info: np.finfo[Any], n: int, unit: int) -> float:
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


def _check(input: Array, weight: Array, bias: Array | None, groups: int) -> None:
    for name, array in {"input": input, "weight": weight, "bias": bias}.items():
        if array is not None and (array.dtype != input.dtype or array.dtype not in (np.float32, np.float64)):
            raise TypeError(f"{name}: dtype {array.dtype}; all must be float32 or all float64")
    if input.ndim not in (3, 4):
        raise ValueError(f"input: shape {input.shape}, must be (N, C, H, W) or (C, H, W)")
    if weight.ndim != 4 or 0 in (weight.shape[0], *weight.shape[2:]):
        raise ValueError(f"weight: shape {weight.shape}, must be (O, C/groups, KH, KW) with O, KH and KW at least 1")
    if groups < 1 or weight.shape[0] % groups or input.shape[-3] != weight.shape[1] * groups:
        raise ValueError(f"groups: {groups} does not fit input {input.shape} and weight {weight.shape}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias: shape {bias.shape}, must be {weight.shape[:1]}")


def _pair(name: str, value: int | Pair, least: int) -> Pair:
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
