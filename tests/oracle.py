"""What the right answer is, by other means than the package's own: rational numbers and MPFR, one scalar at a time.

`exact` and `conv2d` round the exact rational sum once, in MPFR with the precision and exponent range of the type.
`products` and its like list the terms of every sum. `IEEE` is the arithmetic of a type, one operation after the other,
in MPFR. `loops` is what a NumPy user writes first.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Any

import gmpy2
import numpy as np
from gmpy2 import mpq
from numpy.typing import NDArray

Array = NDArray[Any]


class IEEE:
    """The operations of binary32 or binary64, subnormals and overflow included; values are Python floats."""

    def __init__(self, dtype: type) -> None:
        self.context = gmpy2.ieee(8 * np.dtype(dtype).itemsize)

    def round(self, exact: Any) -> float:
        """A rational number, or a float of another type, rounded to this type."""
        with self.context:
            return float(gmpy2.mpfr(exact))

    def fma(self, w: float, x: float, s: float) -> float:
        return float(self.context.fma(w, x, s))

    def add(self, a: float, b: float) -> float:
        return float(self.context.add(a, b))

    def sub(self, a: float, b: float) -> float:
        return float(self.context.sub(a, b))

    def mul(self, a: float, b: float) -> float:
        return float(self.context.mul(a, b))


def exact(products: Iterable[tuple[float, float]], dtype: type) -> float:
    """The sum of the products w*x, correctly rounded to dtype; infinities and NaN as IEEE addition has them."""
    total, infinite = mpq(0), set()
    for w, x in products:
        if math.isfinite(w) and math.isfinite(x):
            total += mpq(w) * mpq(x)
        elif math.isnan(w) or math.isnan(x) or w == 0 or x == 0:
            return math.nan
        else:
            infinite.add(math.copysign(1, w) * math.copysign(1, x))
    if infinite:
        return math.nan if len(infinite) == 2 else infinite.pop() * math.inf
    return IEEE(dtype).round(total) + 0.0


def exact_half(products: Iterable[tuple[float, float]], half: str) -> float:
    """The sum of finite products rounded once to "float16" or "bfloat16"; as `exact`."""
    precision, smallest, largest = {"float16": (11, -24, 16), "bfloat16": (8, -133, 128)}[half]
    total = sum((mpq(w) * mpq(x) for w, x in products), mpq(0))
    with gmpy2.context(precision=precision, emin=smallest + 1, emax=largest, subnormalize=True):
        return float(gmpy2.mpfr(total)) + 0.0


def borders(spread: tuple[int, int], padding: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    """The zeros added before and in all, in both axes; spread is by how much the kernel makes the output smaller."""
    if padding == "same":
        return (spread[0] // 2, spread[1] // 2), spread
    before = (0, 0) if padding == "valid" else padding
    return before, (2 * before[0], 2 * before[1])


def products(
    input: Array, weight: Array, stride: Any, padding: Any, dilation: Any, groups: int
) -> tuple[tuple[int, ...], Iterator[tuple[tuple[int, ...], list[tuple[float, float]]]]]:
    """The shape (N, O, OH, OW) of the output, and every output's index with its products (w, x) in the loops c,kh,kw.

    input: (N, C, H, W); stride and dilation are pairs; padding is a pair, "same" or "valid".
    """
    n_size, _, height, width = input.shape
    o_size, c_size, kh, kw = weight.shape
    spread = dilation[0] * (kh - 1), dilation[1] * (kw - 1)
    before, both = borders(spread, padding)
    oh = (height + both[0] - spread[0] - 1) // stride[0] + 1
    ow = (width + both[1] - spread[1] - 1) // stride[1] + 1
    shape = n_size, o_size, oh, ow
    values, weights = input.tolist(), weight.tolist()

    def outputs() -> Iterator[tuple[tuple[int, ...], list[tuple[float, float]]]]:
        for n, o, p, q in np.ndindex(*shape):
            taken = []
            for c, i, j in np.ndindex(c_size, kh, kw):
                row = p * stride[0] + i * dilation[0] - before[0]
                column = q * stride[1] + j * dilation[1] - before[1]
                channel = o // (o_size // groups) * c_size + c
                inside = 0 <= row < height and 0 <= column < width
                taken.append((weights[o][c][i][j], values[n][channel][row][column] if inside else 0.0))
            yield (n, o, p, q), taken

    return shape, outputs()


def input_products(
    input_size: tuple[int, ...],
    weight: Array,
    grad_output: Array,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
) -> dict[tuple[int, ...], dict[tuple[int, ...], tuple[float, float]]]:
    """For every pixel (n, c, row, column) of the input its products (w, g) by (o, i, j), o from 0 in its group.

    By the forward pass: an output, of a grid with zeros on all sides, sends its gradient to the pixels that it reads.
    """
    (n_size, _, height, width), (o_size, c_size, kh, kw) = input_size, weight.shape
    oh, ow = grad_output.shape[2:]
    spread = dilation[0] * (kh - 1), dilation[1] * (kw - 1)
    before, _ = borders(spread, padding)
    grid = list(itertools.product(range(-spread[0], height + before[0]), range(-spread[1], width + before[1])))
    gradients, weights = grad_output.tolist(), weight.tolist()
    pixels: dict[tuple[int, ...], dict[tuple[int, ...], tuple[float, float]]]
    pixels = {at: {} for at in np.ndindex(*input_size)}
    for o, i, j in np.ndindex(o_size, kh, kw):
        group, number = divmod(o, o_size // groups)
        for p, q in grid:
            row, column = p * stride[0] + i * dilation[0] - before[0], q * stride[1] + j * dilation[1] - before[1]
            if 0 <= row < height and 0 <= column < width:
                inside = 0 <= p < oh and 0 <= q < ow
                for n, c in np.ndindex(n_size, c_size):
                    product = weights[o][c][i][j], gradients[n][o][p][q] if inside else 0.0
                    pixels[n, group * c_size + c, row, column][number, i, j] = product
    return pixels


def weight_products(
    input: Array, weight_size: tuple[int, ...], grad_output: Array, *geometry: Any
) -> dict[tuple[int, ...], list[list[tuple[float, float]]]]:
    """For every element of the weight the products (g, x) of every sample, row by row; geometry as in `products`."""
    elements: dict[tuple[int, ...], list[list[tuple[float, float]]]]
    elements = {at: [[] for _ in input] for at in np.ndindex(*weight_size)}
    gradients = grad_output.tolist()
    _, outputs = products(input, np.zeros(weight_size), *geometry)
    for (n, o, p, q), taken in outputs:
        for at, (_, x) in zip(np.ndindex(*weight_size[1:]), taken, strict=True):
            elements[(o, *at)][n].append((gradients[n][o][p][q], x))
    return elements


def bias_products(grad_output: Array) -> dict[tuple[int, ...], list[list[tuple[float, float]]]]:
    """For every element of the bias the products (g, 1) of every sample, row by row."""
    channels = np.moveaxis(grad_output, 1, 0)
    return {(o,): [[(g, 1.0) for g in plane.ravel().tolist()] for plane in planes] for o, planes in enumerate(channels)}


def conv2d(
    input: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Any = (1, 1),
    padding: Any = (0, 0),
    dilation: Any = (1, 1),
    groups: int = 1,
) -> Array:
    """The correctly rounded convolution of an (N, C, H, W) or (C, H, W) input; arguments as in `products`."""
    dtype = input.dtype.type
    shape, outputs = products(input if input.ndim == 4 else input[None], weight, stride, padding, dilation, groups)
    biases = {o: [] if bias is None else [(float(bias[o]), 1.0)] for o in range(shape[1])}
    rounded = [exact(taken + biases[o], dtype) for (_, o, _, _), taken in outputs]
    output = np.array(rounded, np.float64).astype(dtype).reshape(shape)
    return output if input.ndim == 4 else output[0]


def loops(input: Array, weight: Array, bias: Array | None, padding: int) -> Array:
    """The textbook's loops over NumPy scalars, stride 1, one image (1, C, H, W): multiply, round, add, round."""
    image = np.pad(input[0], ((0, 0), (padding, padding), (padding, padding)))
    o_size, c_size, kh, kw = weight.shape
    output = np.zeros((1, o_size, image.shape[1] - kh + 1, image.shape[2] - kw + 1), input.dtype)
    for _, o, p, q in np.ndindex(*output.shape):
        total = input.dtype.type(0)
        for c in range(c_size):
            for i in range(kh):
                for j in range(kw):
                    total += weight[o, c, i, j] * image[c, p + i, q + j]
        output[0, o, p, q] = total if bias is None else total + bias[o]
    return output
