"""`exact` against rational numbers rounded once by MPFR: ordinary layers, and terms made to be hard to round.

Every layer runs on every usable instruction set. The last test counts what the others compared, and what was hard.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
from gmpy2 import mpq
from hypothesis import given, settings

import detconv
import oracle
from bits import (
    CASES,
    DTYPES,
    Array,
    Layer,
    assert_same_bits,
    constructed,
    layers,
    made,
    on_every_instruction_set,
    unsigned,
    words,
)

compared: Counter[str] = Counter()  # outputs
missed: Counter[str] = Counter()  # constructed outputs that another method has wrong, by method
met: Counter[str] = Counter()  # constructed outputs, by what is hard in them
finished: set[tuple[str, type]] = set()


def assert_exact(layer: Layer) -> Array:
    expected = oracle.conv2d(*layer.arrays, **layer.options)
    variants = on_every_instruction_set(lambda: detconv.conv2d(*layer.arrays, **layer.options, summation="exact"))
    for name, actual in variants.items():
        assert_same_bits(actual, expected, f"{name}, {layer}")
    return expected


# ---- Ordinary layers ----

ORDINARY = ("uniform", "small integers", "bfloat16", "wide", "no bias", "zero windows")


def ordinary(case: str, dtype: type) -> Layer:
    """3920 outputs of 27 terms."""
    kind = case if case in ("small integers", "bfloat16", "wide") else "uniform"
    image, weight, bias = (made(s, dtype, n, kind) for n, s in enumerate([(2, 3, 14, 14), (10, 3, 3, 3), (10,)]))
    options = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1}
    if case == "zero windows":
        image[:, :, :, 2:9] = image[0, :, 5:] = 0.0
    return Layer(image, weight, None if case == "no bias" else bias, options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", ORDINARY)
def test_ordinary_layers(case: str, dtype: type) -> None:
    compared["ordinary"] += assert_exact(ordinary(case, dtype)).size
    finished.add((case, dtype))


@settings(max_examples=200)
@given(layers())
def test_layers_of_every_geometry_and_data(layer: Layer) -> None:
    assert_exact(layer)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_large_layer(dtype: type) -> None:
    """Uniform numbers are integers times 2^-digits, so that their sums are integers too."""
    size, unit = (28, 23) if dtype is np.float32 else (12, 52)
    image, weight = made((1, 32, size, size), dtype, 1), made((32, 32, 3, 3), dtype, 2)
    windows = np.lib.stride_tricks.sliding_window_view(np.ldexp(image[0], unit), (3, 3), (1, 2))
    integers = np.int64 if dtype is np.float32 else object
    rows = np.vectorize(int, otypes=[integers])(np.ldexp(weight, unit).reshape(32, -1))
    columns = np.vectorize(int, otypes=[integers])(windows.transpose(0, 3, 4, 1, 2).reshape(288, -1))
    round_once = oracle.IEEE(dtype).round
    expected = [round_once(mpq(total, 4**unit)) for total in (rows @ columns).ravel().tolist()]
    variants = on_every_instruction_set(lambda: detconv.conv2d(image, weight, summation="exact"), threads=(1, 2))
    for name, actual in variants.items():
        assert_same_bits(actual, np.array(expected, dtype).reshape(1, 32, size - 2, size - 2), name)


# ---- Constructed terms ----


def chosen(values: Sequence[float], shape: tuple[int, int], seed: int) -> Array:
    pick = words(seed, math.prod(shape)) % np.uint64(len(values))
    return np.array(values, np.float64)[pick.astype(np.int64)].reshape(shape)


def of_terms(w: Array, x: Array, dtype: type, seed: int, bias: Array | None = None) -> Layer:
    """A layer of 3x3 windows that do not overlap: output (r, c) sums w[r, k] * x[k, c]; c is one of 36 columns.

    w: (R, 9*C), x: (9*C, 36), whose terms are mixed before.
    """
    mixed = np.argsort(words(seed, w.shape[1]))
    weight: Array = w[:, mixed].astype(dtype)
    image: Array = x[mixed].astype(dtype)
    assert np.array_equal(weight, w[:, mixed])
    assert np.array_equal(image, x[mixed])
    image = image.reshape(-1, 3, 3, 6, 6).transpose(0, 3, 1, 4, 2).reshape(1, -1, 18, 18)
    options = {"stride": (3, 3), "padding": (0, 0), "dilation": (1, 1), "groups": 1}
    return Layer(image, weight.reshape(len(w), -1, 3, 3), bias, options)


def cancelling(dtype: type, seed: int, terms: int, scale: Array | float = 1.0) -> tuple[Array, Array]:
    """Twice as many terms whose exact sum is 0, as (w, x)."""
    w, x = made((8, terms), dtype, seed), made((terms, 36), dtype, seed + 1) * scale
    return np.hstack([w, -w]), np.vstack([x, x])


def near_ties(dtype: type, seed: int, terms: int) -> Layer:
    """Halfway between two numbers, or beside by anything from an ulp to less than Twofold can see; and cancelling terms
    that make the certificate's bound up to 2^12 times larger than the sum.
    """
    digits = int(np.finfo(dtype).nmant) + 1
    w, x = cancelling(dtype, seed, (terms - 3) // 2, 2.0 ** (words(seed + 2, 36) % np.uint64(13)).astype(np.int64))
    whole = np.floor(2.0 ** (digits - 1) * (1 + np.abs(made((8, 1), np.float64, seed + 3))))
    half, beside = chosen([0.5, -0.5], (8, 1), seed + 5), chosen([1, -1, 1, -1, 0], (8, 1), seed + 6)
    near = 2.0 ** -(words(seed + 7, 8) % np.uint64(2 * digits)).astype(np.float64).reshape(8, 1)
    nearer = 2.0 ** -(words(seed + 8, 36) % np.uint64(2 * digits)).astype(np.float64)
    w = np.hstack([w, whole * chosen([1, -1], (8, 1), seed + 4), half, beside * near])
    return of_terms(w, np.vstack([x, np.ones((2, 36)), nearer]), dtype, seed)


def overflowing(dtype: type, seed: int) -> Layer:
    """Finite sums of a few terms, among products and partial sums far beyond the largest number."""
    info = np.finfo(dtype)
    w, x = cancelling(dtype, seed, 8)
    huge, most = 2.0 ** int(info.maxexp * 0.6), float(info.max)
    one = np.ones((8, 1))
    w = np.hstack([w, huge * one, -huge * one, *[most * one] * 3, *[-most * one] * 3, made((8, 3), dtype, seed + 2)])
    x = np.vstack([x, np.full((2, 36), huge), np.ones((6, 36)), made((3, 36), dtype, seed + 3)])
    return of_terms(w, x, dtype, seed)


def zero(dtype: type, seed: int) -> Layer:
    """Sums that cancel to nothing: by twos, by threes, and with the bias."""
    w, x = cancelling(dtype, seed, 11, 2.0 ** (words(seed + 2, 36) % np.uint64(40)).astype(np.int64))
    third = made((8, 1), np.float64, seed + 3, "small integers")
    w, x = np.hstack([w, third, third, -3 * third, third, third]), np.vstack([x, np.ones((5, 36))])
    return of_terms(w, x, dtype, seed, bias=-third.ravel().astype(dtype))


def decided_by_the_bias(dtype: type, seed: int) -> Layer:
    """Halves, which a bias far below their last place rounds up, or down, or leaves to the even neighbour."""
    layer = constructed("halfway", dtype, seed)
    hair = 2.0 ** (-3 * int(np.finfo(dtype).nmant))
    bias = chosen([hair, -hair, 0, 2 * hair], (1, 8), seed + 8).ravel()
    return Layer(layer.input, layer.weight, bias.astype(dtype), {})


CONSTRUCTED: dict[str, Callable[[type, int], Layer]] = {
    **{case: partial(constructed, case) for case in CASES},
    "near ties": partial(near_ties, terms=27),
    "near ties of many terms": partial(near_ties, terms=189),
    "overflow on the way": overflowing,
    "zero": zero,
    "decided by the bias": decided_by_the_bias,
}


def difficulties(layer: Layer, rounded: Array) -> Counter[str]:
    """How many outputs are ties (to either side), near ties, zeros, subnormal, infinite; `rounded` is the output."""
    found: Counter[str] = Counter()
    round_once, tiny = oracle.IEEE(rounded.dtype.type).round, float(np.finfo(rounded.dtype).tiny)
    options: dict[str, Any] = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1} | layer.options
    _, outputs = oracle.products(layer.input, layer.weight, **options)
    for index, pairs in outputs:
        result, bias = float(rounded[index]), 0.0 if layer.bias is None else float(layer.bias[index[1]])
        if math.isinf(result):
            found["infinite"] += 1
            continue
        exact = sum((mpq(w) * mpq(x) for w, x in pairs), mpq(bias))
        found["zero"] += exact == 0
        found["subnormal"] += 0 < abs(result) < tiny
        # The result's reflection at the exact sum is its neighbour where the sum is halfway between the two.
        reflection = 2 * exact - mpq(result)
        neighbour = round_once(reflection)
        if neighbour == result or math.isinf(neighbour):
            continue
        if neighbour == reflection:
            found["tie to the smaller" if abs(result) < abs(neighbour) else "tie to the larger"] += 1
        elif abs(neighbour - reflection) < abs(exact - mpq(result)) / 2**20:
            found["near tie"] += 1
    return found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CONSTRUCTED)
def test_constructed_terms(case: str, dtype: type) -> None:
    for seed in (0, 1000, 2000):
        layer = CONSTRUCTED[case](dtype, seed)
        expected = assert_exact(layer)
        compared["constructed"] += expected.size
        met.update(difficulties(layer, expected))
        for method in ("naive", "pairwise", "kahan", "fp64"):
            other = detconv.conv2d(*layer.arrays, **layer.options, summation=method)
            missed[method] += int(np.count_nonzero(unsigned(other) != unsigned(expected)))
    finished.add((case, dtype))


# ---- The certificate ----


def lost_terms(terms: int, units: int) -> tuple[Array, Array, int]:
    """Float32 factors of a sum that double gets as wrong as it can, and how many terms it loses.

    The sum begins with 1 + 2^-24 - units * 2^-53, which is exact in double and below the tie between two float32
    numbers. Each term that follows in the first block of 64, and each first term of the blocks 1, 2, 4, 8, ..., is a
    little less than 2^-53, half an ulp of the sum so far: it is lost, by itself or when its block is joined.
    """
    w, x = np.zeros(terms, np.float32), np.zeros(terms, np.float32)
    w[:3], x[:3] = (1, 2.0**-12, 2.0**-26), (1, 2.0**-12, -(2.0**-27) * units)
    lost = [*range(3, min(64, terms)), *(64 << k for k in range(40) if 64 << k < terms)]
    w[lost], x[lost] = 2.0**-26, 2.0**-27 * (1 - 2.0**-20)
    return w, x, len(lost)


@pytest.mark.parametrize(("terms", "units"), [(64, 40), (64, 52), (64, 60), (1 << 18, 70)])
def test_the_certificate_counts_every_rounding(terms: int, units: int) -> None:
    """The error of the sum in double is just within its bound: a bound of half the size, or without the roundings of
    the joins (64 and 2 units of 2^-53 for 1 << 18 terms), would take a wrong total for right."""
    w, x, lost = lost_terms(terms, units)
    assert units < lost < 64 + 20  # the exact sum is above the tie, what double has below
    image = np.ascontiguousarray(np.broadcast_to(x[:, None, None], (terms, 3, 5)))
    weight = np.ascontiguousarray(np.broadcast_to(w[None, :, None, None], (9, terms, 1, 1)))
    right = np.full((9, 3, 5), 1 + np.finfo(np.float32).eps, np.float32)
    assert detconv.conv2d(image, weight, summation="fp64 bias=first")[0, 0, 0] == 1
    for name, actual in on_every_instruction_set(lambda: detconv.conv2d(image, weight, summation="exact")).items():
        assert_same_bits(actual, right, name)


def test_enough_was_compared() -> None:
    if finished != {(case, dtype) for case in (*ORDINARY, *CONSTRUCTED) for dtype in DTYPES}:
        pytest.skip("not every test of this file ran and passed")
    assert compared["constructed"] >= 5_000
    assert compared.total() >= 20_000
    for hard in ("tie to the smaller", "tie to the larger", "near tie", "zero", "subnormal", "infinite"):
        assert met[hard] >= 300, hard
    for method, count in missed.items():
        assert count > compared["constructed"] / 4, f"{method} would nearly pass these tests"
