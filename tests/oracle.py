"""What the right answer is, by other means than the package's own: rational numbers and MPFR, one scalar at a time.

`exact` and `conv2d` round the exact rational sum once, in MPFR with the precision and exponent range of the type.
`IEEE` is the arithmetic of a type, one operation after the other, in MPFR. `loops` is what a NumPy user writes first.
"""

from __future__ import annotations

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


def products(
    input: Array, weight: Array, stride: Any, padding: Any, dilation: Any, groups: int
) -> tuple[tuple[int, ...], Iterator[tuple[tuple[int, ...], list[tuple[float, float]]]]]:
    """The shape (N, O, OH, OW) of the output, and every output's index with its products (w, x) in the loops c,kh,kw.

    input: (N, C, H, W); stride and dilation are pairs; padding is a pair, "same" or "valid".
    """
    n_size, _, height, width = input.shape
    o_size, c_size, kh, kw = weight.shape
    spread = dilation[0] * (kh - 1), dilation[1] * (kw - 1)
    if padding == "same":
        before, both = (spread[0] // 2, spread[1] // 2), spread
    else:
        before = (0, 0) if padding == "valid" else padding
        both = 2 * before[0], 2 * before[1]
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
