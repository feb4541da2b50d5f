"""The engine against the specification, bit for bit, on every usable instruction set.

Small layers of every geometry, layout, summation and kind of data are drawn and compared whole. Larger ones, made for
the paths that only they take, are compared whole on integers, whose sums no order changes, and in some outputs on
uniform data; there all outputs must also be the same on every instruction set and number of threads.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import detconv
from bits import (
    DTYPES,
    KINDS,
    LAYOUTS,
    METHODS,
    Array,
    Layer,
    assert_consistent,
    assert_same_bits,
    instruction_sets,
    layers,
    made,
    on_every_instruction_set,
    relaid,
    summations,
    words,
)
from detconv import reference
from detconv.testing import instruction_set

# ---- Drawn layers ----


def assert_equals_reference(layer: Layer, summation: str, layouts: tuple[str, str] = LAYOUTS[:2]) -> None:
    expected = reference.conv2d(*layer.arrays, **layer.options, summation=summation)
    image, weight = (relaid(a, layout) for a, layout in zip(layer.arrays, layouts, strict=False))
    bias = None if layer.bias is None else np.repeat(layer.bias[::-1], 2)[::-2]
    for name in instruction_sets():
        with instruction_set(name):
            actual = detconv.conv2d(image, weight, bias, **layer.options, summation=summation)
        assert_same_bits(actual, expected, f"{name}, {summation}, {layouts}, {layer}")


@st.composite
def larger_layers(draw: st.DrawFn) -> Layer:
    """Layers with one or a few long sides: up to 40 channels, 40 outputs, kernels of 5x5 and rows of 40.

    The specification's time sets the limit of terms x outputs; it takes some 6 us a fused term in float64.
    """
    dtype = draw(st.sampled_from(DTYPES))
    room = 60_000 if dtype is np.float32 else 4_000
    depthwise = draw(st.booleans())
    longest = {"groups": 40, "channels": 1} if depthwise else {"groups": 4, "channels": 40}
    longest |= {"outputs": 40 // longest["groups"], "kh": 5, "kw": 5, "oh": 20, "ow": 40, "batch": 3}
    size = {}
    for name in draw(st.permutations(sorted(longest))):
        size[name] = draw(st.integers(1, max(1, min(longest[name], room))))
        room //= size[name]

    kernel, pair = (size["kh"], size["kw"]), st.tuples(*[st.integers(1, 3)] * 2)
    dilation = draw(pair)
    span = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    padding: Any = draw(st.sampled_from(["same", "valid"]) | st.tuples(*[st.integers(0, 4)] * 2))
    stride = (1, 1) if padding == "same" else draw(pair)
    if padding == "same":
        image = size["oh"], size["ow"]
    else:
        border = (0, 0) if padding == "valid" else padding
        left_over = draw(st.integers(0, 2))
        image = tuple(  # at least one pixel: then there are more outputs than were drawn
            max(1, (out - 1) * s + reach - 2 * p + min(left_over, s - 1))
            for out, s, reach, p in zip((size["oh"], size["ow"]), stride, span, border, strict=True)
        )
    seed, kind = draw(st.integers(0, 2**32)), draw(st.sampled_from(["uniform", "uniform", "wide", "bfloat16"]))
    outputs = size["groups"] * size["outputs"]
    return Layer(
        made((size["batch"], size["groups"] * size["channels"], *image), dtype, seed, kind),
        made((outputs, size["channels"], *kernel), dtype, seed + 1, kind),
        made((outputs,), dtype, seed + 2, kind) if draw(st.booleans()) else None,
        {"stride": stride, "padding": padding, "dilation": dilation, "groups": size["groups"]},
    )


layouts = st.tuples(*[st.sampled_from(LAYOUTS)] * 2)


@settings(max_examples=200)
@given(layers(), summations(), layouts)
def test_small_layers(layer: Layer, summation: str, layouts: tuple[str, str]) -> None:
    assert_equals_reference(layer, summation, layouts)


@settings(max_examples=150)
@given(larger_layers(), summations(), layouts)
def test_larger_layers(layer: Layer, summation: str, layouts: tuple[str, str]) -> None:
    assert_equals_reference(layer, summation, layouts)


# ---- Terms ----

BLOCKS = (1, 2, 3, 7, 63, 64, 65, 10_000)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("terms", [1, 63, 64, 65, 128, 191, 7 * 64, 1000])
def test_blocks_of_every_size(terms: int, dtype: type) -> None:
    image, weight, bias = (made(shape, dtype, terms) for shape in [(terms, 1, 3), (2, terms, 1, 1), (2,)])
    layer = Layer(image, weight, bias, {})
    for block in BLOCKS:
        for fields in ("products=rounded", "products=rounded bias=first"):
            assert_equals_reference(layer, f"pairwise block={block} {fields}")
    for summation in ("pairwise", "pairwise block=7 bias=first", "exact"):
        assert_equals_reference(layer, summation)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_every_kind_of_data(method: str, kind: str, dtype: type) -> None:
    for groups, channels in ((1, 2), (3, 1)):
        image, weight, bias = (made(s, dtype, 7, kind) for s in [(2, 3 * channels, 5, 6), (6, 3 * channels, 2, 2), (6,)])
        layer = Layer(image, weight[:, : 3 * channels // groups], bias, {"padding": 1, "groups": groups})
        for fields in ("", "products=rounded", "bias=first order=kw,c,kh"):
            assert_equals_reference(layer, f"{method} {fields}")


# ---- Larger layers, made for a path ----

# Input, weight, options. What a row is for stands behind it.
LARGE: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "wide": ((1, 5, 4, 261), (17, 5, 3, 3), {"padding": 1}),
    "tall": ((1, 5, 261, 4), (17, 5, 3, 3), {"padding": 1}),
    "7x7": ((2, 24, 7, 7), (40, 24, 3, 3), {"padding": 1}),
    "14x14": ((1, 12, 14, 14), (72, 12, 3, 3), {"padding": 1}),
    "28x28": ((1, 16, 28, 28), (8, 16, 5, 5), {"padding": 2}),
    "56x56": ((1, 6, 56, 56), (33, 6, 3, 3), {"padding": 1}),
}
