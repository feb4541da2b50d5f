"""How far roundings can carry a sum: the rigorous bound of any order, and the bound that holds with a probability.

Both are relative to S, the sum of abs(w*x) of an output and of its abs(bias). n is the most roundings that a term can
meet: its own and those of the additions, as many as there are terms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from detconv.quoting import quoted

Array = NDArray[np.float64]

# The probability with which rounding errors, if they are random, stay within a probable bound.
CONFIDENCE = 0.999999

# Makes up for the roundings, to nearest, of the few operations that compute a bound.
_UP = 1 + 2.0**-48

_SMALLEST = math.ldexp(1, -1074)  # the smallest float


class Format(NamedTuple):
    """A binary floating-point format."""

    digits: int  # of precision
    smallest: int  # exponent of the smallest normal number
    overflow: int  # exponent of the first power of two that is too large

    @property
    def unit(self) -> float:
        """u, the unit roundoff: the largest relative error of one rounding to nearest."""
        return math.ldexp(1, -self.digits)

    @property
    def tiny(self) -> float:
        """The largest absolute error of a rounding among subnormal numbers, or a little more."""
        return max(math.ldexp(1, self.smallest - self.digits), _SMALLEST)


FORMATS = {
    "float64": Format(53, -1022, 1024),
    "float32": Format(24, -126, 128),
    "tf32": Format(11, -126, 128),
    "float16": Format(11, -14, 16),
    "bfloat16": Format(8, -126, 128),
    "float8_e4m3fn": Format(4, -6, 9),
    "float8_e5m2": Format(3, -14, 16),
}

# The largest number of a format that ends before its power of two does: the OCP's 8-bit formats, revision 1.0, 2023.
_LARGEST = {FORMATS["float8_e4m3fn"]: 448.0}


def largest(format: Format) -> float:
    """The largest finite number of a format."""
    return _LARGEST.get(format) or math.ldexp(2 - 2.0 ** (1 - format.digits), format.overflow - 1)


@dataclass(frozen=True)
class Claim:
    """The arithmetic that a candidate claims.

    Attributes:
        accumulator: the format in which the terms are added.
        products: the format to which both operands are rounded before they are multiplied, to nearest or truncated;
            None where they are multiplied as they are.
    """

    accumulator: str
    products: str | None = None

    @staticmethod
    def parse(text: str) -> Claim:
        """The claim of a text, ``ACCUMULATOR`` or ``PRODUCTS/ACCUMULATOR``; ``tf32`` is short for ``tf32/float32``.

        Raises:
            ValueError: no such text.
        """
        first, slash, second = str(text).partition("/")
        if first not in FORMATS or (slash and second not in FORMATS):
            raise ValueError(
                f"dtype must be ACCUMULATOR or PRODUCTS/ACCUMULATOR, each one of {', '.join(FORMATS)}; got "
                f"{quoted(text)}"
            )
        if slash:
            return Claim(second, first)
        return Claim("float32", "tf32") if first == "tf32" else Claim(first)

    @property
    def format(self) -> Format:
        """The accumulator's."""
        return FORMATS[self.accumulator]

    def __str__(self) -> str:
        return self.accumulator if self.products is None else f"{self.products}/{self.accumulator}"


def rounded(values: Array, format: Format, *, truncated: bool = False) -> Array:
    """Numbers rounded to a format, to nearest with ties to even or towards zero, in the type in which they come.

    What is too large for the format becomes its largest number; infinities and NaN stay what they are.
    """
    most = largest(format)
    if values.dtype == np.float32 and format.smallest == FORMATS["float32"].smallest:
        near = _without_last_bits(values, FORMATS["float32"].digits - format.digits, truncated)
        near = np.clip(near, -most, most)
    else:
        finite = np.where(np.isfinite(values), values, 0).astype(np.float64)
        step = _last_place(finite, format)
        near = np.clip((np.trunc if truncated else np.rint)(finite / step) * step, -most, most)
    return np.where(np.isfinite(values), near, values).astype(values.dtype, copy=False)


def _without_last_bits(values: Array, dropped: int, truncated: bool) -> Array:
    """Numbers of float32 without so many of their last bits; ten times as fast as the general way."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    if dropped and not truncated:
        bits = bits + (np.uint32((1 << (dropped - 1)) - 1) + ((bits >> np.uint32(dropped)) & np.uint32(1)))
    short: Array = (bits & np.uint32(0xFFFFFFFF ^ ((1 << dropped) - 1))).view(np.float32)
    return short


def shortening(values: Array, format: Format) -> Array:
    """How far rounding to a format may move each number, to nearest or truncated; infinite where it is too large."""
    off = np.abs(values - rounded(values, format, truncated=True))
    return np.where(np.abs(values) > largest(format), np.inf, off).astype(values.dtype)


def _last_place(values: Array, format: Format) -> Array:
    """A unit in the last place of a format's numbers of these sizes."""
    exponents = np.maximum(np.frexp(values)[1] - 1, format.smallest) + 1 - format.digits
    return np.asarray(np.ldexp(1.0, np.maximum(exponents, -1074)))


def gamma(n: Array | float, unit: float) -> Array:
    """gamma_n = n*u / (1 - n*u): a computed sum is within gamma_n * S of the exact one, in whatever order and tree.

    Infinite where n*u is 1 or more. N. J. Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition, SIAM
    2002, sections 3.1 and 4.2.
    """
    n_u = np.asarray(n * unit)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(n_u < 1, n_u / (1 - n_u), np.inf) * _UP)


def deviation(n: float, sums: int, confidence: float) -> float:
    """lambda: so many times the typical deviation is exceeded by no rounded sum of all, with this confidence."""
    return math.sqrt(2 * math.log(2 * max(n, 1) * max(sums, 1) / (1 - confidence)))


def probable(n: Array, unit: float, deviations: float) -> Array:
    """As gamma, with a probability: exp(lambda * sqrt(n) * u + n * u^2 / (1 - u)) - 1.

    Holds for one sum with probability 1 - 2n * exp(-lambda^2 / 2), if its rounding errors are random, independent of
    each other and zero on average. N. J. Higham and T. Mary, "A new approach to probabilistic rounding error analysis",
    SIAM Journal on Scientific Computing 41(5), 2019, theorem 2.4 and section 3.
    """
    exponent: Array = deviations * np.sqrt(n) * unit + n * (unit * unit / (1 - unit))
    return np.asarray(np.expm1(exponent) * _UP)


def half_ulp(values: Array, stored: Format) -> Array:
    """How far the numbers of a format may be from what was rounded to them."""
    magnitude = np.where(np.isfinite(values), np.abs(values), 0.0)
    exponents = np.maximum(np.frexp(magnitude)[1] - 1, stored.smallest)
    return np.asarray(np.maximum(np.ldexp(1.0, exponents - stored.digits), _SMALLEST))
