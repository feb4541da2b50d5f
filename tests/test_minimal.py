"""If you run one test file, run this: every method on every type, instruction set and number of threads has one result,
and it is the reference's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import detconv
from bits import DTYPES, Array, assert_consistent, assert_same_bits, made, on_every_instruction_set
from detconv import _core

# Input, weight, options. The first is large enough that three threads do run.
SHAPES: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "3x3": ((2, 8, 9, 10), (16, 8, 3, 3), {"padding": 1}),
    "1x1": ((1, 20, 5, 6), (9, 20, 1, 1), {}),
    "grouped": ((1, 6, 9, 11), (4, 3, 3, 2), {"groups": 2, "stride": (2, 1), "dilation": (1, 2), "padding": (1, 0)}),
    "depthwise": ((5, 8, 7), (5, 1, 3, 3), {"groups": 5, "padding": "same"}),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", _core.methods())
def test_one_result_everywhere_and_it_is_the_reference(method: str, shape: str, dtype: type) -> None:
    input_shape, weight_shape, options = SHAPES[shape]
    image, weight, bias = made(input_shape, dtype, 1), made(weight_shape, dtype, 2), made(weight_shape[:1], dtype, 3)

    def call() -> Array:
        return detconv.conv2d(image, weight, bias, **options, summation=method)

    actual = assert_consistent(on_every_instruction_set(call, threads=(1, 2, 3)))
    assert_same_bits(actual, detconv.reference.conv2d(image, weight, bias, **options, summation=method))


def test_a_comparison_needs_two_variants_with_finite_values() -> None:
    array = made((4, 4), np.float32, 1)
    same, half, nan = array.copy(), array.copy(), np.full_like(array, np.nan)
    half[:2] = np.inf
    assert assert_consistent({"one": array, "two": same}) is array
    for too_few in ({}, {"one": array}):
        with pytest.raises(AssertionError, match="needs two variants"):
            assert_consistent(too_few)
    for not_finite in (half, nan):
        with pytest.raises(AssertionError, match="most values are not finite"):
            assert_consistent({"one": not_finite, "two": not_finite.copy()})


def test_a_comparison_sees_the_last_bit() -> None:
    array = made((4, 4), np.float32, 1)
    other = array.copy()
    other[3, 3] = np.nextafter(other[3, 3], np.float32(9))
    for variants in ({"one": array, "two": other}, {"one": array, "two": array.copy(), "three": other}):
        with pytest.raises(AssertionError, match="1 of 16 elements differ"):
            assert_consistent(variants)
