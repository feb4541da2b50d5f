"""NaN, infinities, signed zeros, subnormals and overflow: IEEE 754 has its way, and a result has one representation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings

import detconv
from bits import (
    DTYPES,
    METHODS,
    Array,
    Layer,
    assert_same_bits,
    instruction_sets,
    layers,
    made,
    on_every_instruction_set,
    summations,
    unsigned,
)
from detconv import reference
from detconv.testing import instruction_set

INF, NAN = math.inf, math.nan

# Every method, and the settings in which special values take another path through it.
SUMMATIONS = (
    *METHODS,
    "naive products=rounded",
    "pairwise block=1 bias=first",
    "kahan bias=first",
    "kahan products=rounded",
    "fp64 bias=first",
)

Terms = Sequence[tuple[float, float]]


def assert_sum(terms: Terms, expected: float, dtype: type, summation: str, bias: float | None = None) -> None:
    """The products w*x and the bias sum to `expected`, on every instruction set, whatever the neighbours sum to.

    The terms stand in the channels of every other pixel and output channel, so that each tile is special in part.
    """
    factors: Array = np.array(terms, dtype)
    image, weight = made((len(terms), 3, 19), dtype, 1), made((10, len(terms), 1, 1), dtype, 2)
    weight[::2, :, 0, 0], image[:, 1, 1::2] = factors[:, 0], factors[:, 1:]
    biases: Array | None = None if bias is None else np.where(np.arange(10) % 2 == 0, bias, 1).astype(dtype)
    everything = reference.conv2d(image, weight, biases, summation=summation)
    variants = on_every_instruction_set(lambda: detconv.conv2d(image, weight, biases, summation=summation))
    for name, actual in variants.items():
        special = actual[::2, 1, 1::2]
        assert_same_bits(special, np.full((5, 9), expected, dtype), f"{name}, {summation}")
        assert_same_bits(actual, everything, f"{name}, {summation}")


def largest(dtype: type) -> float:
    return float(np.finfo(dtype).max)


def smallest(dtype: type) -> float:
    return float(np.finfo(dtype).smallest_subnormal)


# ---- Sums that every method agrees on ----


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("summation", SUMMATIONS)
@pytest.mark.parametrize(
    ("terms", "bias", "expected"),
    [
        ([(NAN, 1), (1, 1)], None, NAN),
        ([(1, 1), (1, NAN)], None, NAN),
        ([(-NAN, 0), (1, 1)], None, NAN),
        ([(1, 1), (1, 1)], NAN, NAN),
        ([(INF, NAN), (1, 1)], None, NAN),
        ([(INF, 0), (1, 1)], None, NAN),
        ([(1, 1), (-0.0, -INF)], None, NAN),
        ([(INF, 1), (1, -INF)], None, NAN),
        ([(INF, 1), (1, 1)], -INF, NAN),
        ([(INF, 1), (1, 1)], None, INF),
        ([(1, 1), (INF, 1)], None, INF),
        ([(1, -INF), (1, 1)], None, -INF),
        ([(INF, -1), (-INF, 1)], -1, -INF),
        ([(-INF, INF), (1, 1)], None, -INF),
        ([(1, 1), (1, 1)], INF, INF),
        ([(1, 1), (1, 1)], -INF, -INF),
    ],
)
def test_infinities_and_nan(terms: Terms, bias: float | None, expected: float, summation: str, dtype: type) -> None:
    assert_sum(terms, expected, dtype, summation, bias)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("summation", SUMMATIONS)
@pytest.mark.parametrize(
    ("terms", "bias"),
    [
        ([(-0.0, 1)], None),
        ([(0.0, -1), (-1, 0.0)], None),
        ([(-0.0, 1), (0.0, -1)], -0.0),
        ([(1, 1), (1, -1)], None),
        ([(-1, 1), (1, 1)], -0.0),
        ([(1, 1), (1, 1)], -2),
    ],
)
def test_a_zero_result_is_positive(terms: Terms, bias: float | None, summation: str, dtype: type) -> None:
    assert_sum(terms, 0.0, dtype, summation, bias)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("summation", SUMMATIONS)
def test_subnormals_are_kept(summation: str, dtype: type) -> None:
    tiny, least = float(np.finfo(dtype).tiny), smallest(dtype)
    assert_sum([(least, 1)], least, dtype, summation)
    assert_sum([(1, -least), (1, -least)], -2 * least, dtype, summation)
    assert_sum([(tiny, 0.5), (least, 1)], tiny / 2 + least, dtype, summation)
    assert_sum([(tiny, 1), (-1, least)], tiny - least, dtype, summation)
    assert_sum([(tiny, tiny / least), (0, 1)], tiny * (tiny / least), dtype, summation)
    assert_sum([(least, 1), (least, 1)], 0.0, dtype, summation, bias=-2 * least)
    # Half the least number is a tie, and 0 is even; a little more is not.
    assert_sum([(least, -0.5)], 0.0, dtype, summation)
    assert_sum([(-least, 0.75)], -least, dtype, summation)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("summation", SUMMATIONS)
def test_overflow_is_infinite(summation: str, dtype: type) -> None:
    most, info = largest(dtype), np.finfo(dtype)
    half_an_ulp = 2.0 ** float(info.maxexp - info.nmant - 2)
    assert_sum([(most, 1), (1, 1)], most, dtype, summation)
    assert_sum([(most, 2)], INF, dtype, summation)
    assert_sum([(-most, most), (1, 1)], -INF, dtype, summation)
    assert_sum([(most, 1), (1, 1)], INF, dtype, summation, bias=most)
    assert_sum([(most, -1), (half_an_ulp, -1)], -INF, dtype, summation)  # a tie, and 2^maxexp would be even


# ---- Sums in which methods differ ----

# In multiples of the largest number. fp64 of float64 is naive.
ON_THE_WAY = [
    ([(1, 1), (1, 1), (1, -1)], {"naive": INF, "pairwise block=2": INF, "kahan": INF, "fp64": 1, "exact": 1}),
    ([(1, 1), (1, 1), (1, -2)], {"naive": INF, "kahan": INF, "fp64": 0, "exact": 0}),
    ([(1, 2), (1, -1)], {"naive": INF, "kahan": INF, "fp64": 1, "exact": 1}),
    ([(1, 2), (1, -2)], {"naive": INF, "naive products=rounded": NAN, "kahan": INF, "fp64": 0, "exact": 0}),
    ([(1, -2), (1, 2)], {"naive": -INF, "pairwise block=1": NAN, "fp64": 0, "exact": 0}),
    # The product of an fma does not overflow. In Kahan's step it is added to c alone and does: the naive total stands.
    ([(1, -1), (1, 2)], {"naive": 1, "pairwise block=1": INF, "kahan": 1, "fp64": 1, "exact": 1}),
    ([(1, -1), (1, 2)], {"naive products=rounded": INF, "kahan products=rounded": INF, "naive": 1}),
    ([(-1, 1), (1, 2), (1, -1)], {"naive": 0, "kahan": 0, "fp64": 0, "exact": 0}),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("factors", "expected"), ON_THE_WAY)
def test_sums_that_overflow_on_the_way(factors: Terms, expected: dict[str, float], dtype: type) -> None:
    terms = [(largest(dtype) * w, x) for w, x in factors]
    if dtype is np.float64:
        expected = expected | {"fp64": expected["naive"]}
    for summation, multiple in expected.items():
        assert_sum(terms, largest(dtype) * multiple if multiple else 0.0, dtype, summation)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("summation", ["kahan", "kahan products=rounded", "kahan order=kw,kh,c bias=first"])
def test_kahans_totals_are_naive_where_they_are_not_finite(summation: str, dtype: type) -> None:
    """In a layer whose partial sums leave the range in some outputs, in others not."""
    scale = largest(dtype) / 2
    image, weight, bias = (made(s, dtype, seed) for seed, s in enumerate([(1, 7, 6, 7), (18, 7, 2, 2), (18,)]))
    image, bias = (image * scale).astype(dtype), (bias * scale).astype(dtype)
    naive = reference.conv2d(image, weight, bias, padding=1, summation=summation.replace("kahan", "naive"))
    expected = reference.conv2d(image, weight, bias, padding=1, summation=summation)
    assert_same_bits(expected[~np.isfinite(expected)], naive[~np.isfinite(expected)])
    assert 0.01 < np.isfinite(expected).mean() < 0.99
    variants = on_every_instruction_set(lambda: detconv.conv2d(image, weight, bias, padding=1, summation=summation))
    for name, actual in variants.items():
        assert_same_bits(actual, expected, name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("products", ["fused", "rounded"])
def test_an_infinite_bias_after_a_sum_that_overflows_in_naive_only(products: str, dtype: type) -> None:
    """Kahan's sum of the terms is finite and raises no flag, the total is infinite by the bias; so the naive total of
    the same terms stands, which is an overflow of the other sign plus the bias."""
    ulp = 2.0 ** float(np.finfo(dtype).maxexp - np.finfo(dtype).nmant - 1)  # of the largest number
    # 1/4 ulp is what Kahan has lost before the last term, which is half an ulp: a tie that naive rounds to infinity.
    terms = [(largest(dtype) - ulp, 1), (0.75 * ulp, 1), (0.5 * ulp, 1)]
    assert_sum(terms, largest(dtype), dtype, f"kahan products={products}")
    assert_sum(terms, INF, dtype, f"naive products={products}")
    assert_sum(terms, NAN, dtype, f"kahan products={products}", bias=-INF)
    assert_sum(terms, INF, dtype, f"kahan products={products}", bias=INF)


# ---- Special values in a layer ----


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("summation", SUMMATIONS)
def test_an_infinite_weight_at_a_padded_border_gives_nan(summation: str, dtype: type) -> None:
    image, weight = np.abs(made((1, 4, 20, 21), dtype, 1)) + 1, made((24, 4, 3, 3), dtype, 2)
    ordinary = detconv.conv2d(image, weight, padding=1, summation=summation)
    weight[3, 2, 0, 0], weight[17, 1, 2, 1], weight[20, 0, 1, 1], weight[23, 3, 0, 2] = INF, -INF, INF, NAN
    expected = ordinary.copy()
    expected[0, 3], expected[0, 17], expected[0, 20], expected[0, 23] = INF, -INF, INF, NAN
    # Infinity times the zeros of the padding: above and on the left, below, nowhere.
    expected[0, 3, 0, :] = expected[0, 3, :, 0] = expected[0, 17, -1, :] = NAN
    variants = on_every_instruction_set(lambda: detconv.conv2d(image, weight, padding=1, summation=summation))
    for name, actual in variants.items():
        assert_same_bits(actual, expected.astype(dtype), name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("summation", SUMMATIONS)
def test_a_special_pixel_reaches_only_its_windows(summation: str, dtype: type) -> None:
    image, weight, bias = (made(s, dtype, seed) for seed, s in enumerate([(2, 5, 14, 45), (20, 5, 3, 3), (20,)]))
    expected = detconv.conv2d(image, weight, bias, summation=summation)
    expected[0, :, 6:9, 8:11] = NAN
    expected[1, :, 3:6, 40:43] = np.copysign(INF, weight[:, 4, ::-1, ::-1])
    image[0, 2, 8, 10], image[1, 4, 5, 42] = NAN, INF
    variants = on_every_instruction_set(lambda: detconv.conv2d(image, weight, bias, summation=summation))
    for name, actual in variants.items():
        assert_same_bits(actual, expected, name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("summation", SUMMATIONS)
def test_layers_of_subnormals(summation: str, dtype: type) -> None:
    """Products of every size from far below the least number to a few ulps of the normal ones."""
    info = np.finfo(dtype)
    image, weight, bias = (made(s, dtype, seed) for seed, s in enumerate([(3, 8, 9), (18, 3, 3, 3), (18,)]))
    image = np.ldexp(image, int(info.minexp) // 2 - np.arange(9)).astype(dtype)
    weight = np.ldexp(weight, int(info.minexp) - int(info.minexp) // 2 - 4).astype(dtype)
    bias = np.ldexp(bias, int(info.minexp) - 2).astype(dtype)
    expected = reference.conv2d(image, weight, bias, padding=1, summation=summation)
    assert ((expected != 0) & (np.abs(expected) < info.tiny)).mean() > 0.9
    variants = on_every_instruction_set(lambda: detconv.conv2d(image, weight, bias, padding=1, summation=summation))
    for name, actual in variants.items():
        assert_same_bits(actual, expected, name)


# ---- One representation ----


def assert_canonical(output: Array) -> None:
    """No NaN but the canonical one, no zero but +0."""
    bits = unsigned(output)
    nan = 0x7FC00000 if output.dtype == np.float32 else 0x7FF8000000000000
    assert set(bits[np.isnan(output)].tolist()) <= {nan}
    assert set(bits[output == 0].tolist()) <= {0}


@settings(max_examples=300)
@given(layers(kinds=("special", "raw", "small integers")), summations())
def test_results_are_canonical(layer: Layer, summation: str) -> None:
    for name in instruction_sets():
        with instruction_set(name):
            assert_canonical(detconv.conv2d(*layer.arrays, **layer.options, summation=summation))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("summation", SUMMATIONS)
def test_every_nan_comes_out_canonical(summation: str, dtype: type) -> None:
    """Quiet and signalling, of either sign and with any payload, as input, weight or bias."""
    bits: dict[type, Array] = {
        np.float32: np.array([0x7FC00000, 0xFFC00000, 0x7F800001, 0xFFFFFFFF, 0x7FEDCBA9], np.uint32),
        np.float64: np.array(
            [0x7FF8 << 48, 0xFFF8 << 48, (0x7FF0 << 48) + 1, 2**64 - 1, 0x7FFEDCBA98765432], np.uint64
        ),
    }
    nan: Array = bits[dtype].view(dtype)
    one: Array = np.ones(5, dtype)
    for image, weight, bias in ((nan, one, one), (one, nan, one), (one, one, nan), (nan, nan, nan)):
        arrays = image.reshape(1, 1, 5), weight.reshape(5, 1, 1, 1), bias
        for name in instruction_sets():
            with instruction_set(name):
                output = detconv.conv2d(*arrays, summation=summation)
            assert np.isnan(output).all()
            assert_canonical(output)
