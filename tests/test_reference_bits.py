"""The engine against the specification, bit for bit, on every usable instruction set.

Small layers of every geometry, layout, summation and kind of data are drawn and compared whole. Larger ones, made for
the paths that only they take, are compared whole on integers, whose sums no order changes, and in some outputs on
uniform data; there all outputs must also be the same on every instruction set and number of threads.
"""

from __future__ import annotations

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
    image, weight = relaid(layer.input, layouts[0]), relaid(layer.weight, layouts[1])
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


@settings(max_examples=400)
@given(layers(), summations(), layouts)
def test_small_layers(layer: Layer, summation: str, layouts: tuple[str, str]) -> None:
    assert_equals_reference(layer, summation, layouts)


@settings(max_examples=400)
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
        image, weight, bias = (
            made(s, dtype, 7, kind) for s in [(2, 3 * channels, 5, 6), (6, 3 * channels, 2, 2), (6,)]
        )
        layer = Layer(image, weight[:, : 3 * channels // groups], bias, {"padding": 1, "groups": groups})
        for fields in ("", "products=rounded", "bias=first order=kw,c,kh"):
            assert_equals_reference(layer, f"{method} {fields}")


# ---- Larger layers, made for a path ----

Shape = tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]  # input, weight, options

LARGE: dict[str, Shape] = {
    "wide": ((1, 5, 4, 261), (17, 5, 3, 3), {"padding": 1}),
    "tall": ((1, 5, 261, 4), (17, 5, 3, 3), {"padding": 1}),
    "7x7": ((2, 24, 7, 7), (40, 24, 3, 3), {"padding": 1}),
    "14x14": ((1, 12, 14, 14), (72, 12, 3, 3), {"padding": 1}),
    "28x28": ((1, 16, 28, 28), (8, 16, 5, 5), {"padding": 2}),
    "56x56": ((1, 6, 56, 56), (33, 6, 3, 3), {"padding": 1}),
    "a few pixels": ((1, 16, 7, 14), (96, 16, 1, 1), {}),
    "one short row": ((1, 8, 1, 15), (40, 8, 5, 5), {"padding": 2}),
    "one output channel": ((1, 3, 40, 50), (1, 3, 3, 3), {"padding": 1}),
    "many output channels": ((1, 20, 9, 9), (200, 20, 3, 3), {"padding": 1}),
    "no padding": ((1, 7, 30, 47), (24, 7, 3, 5), {}),
    "1x1": ((2, 40, 14, 14), (72, 40, 1, 1), {}),
    "1x1, large": ((1, 9, 64, 65), (16, 9, 1, 1), {}),
    "1x1, stride 2": ((1, 24, 15, 28), (40, 24, 1, 1), {"stride": 2}),
    "depthwise": ((2, 24, 28, 29), (24, 1, 3, 3), {"padding": 1, "groups": 24}),
    "depthwise, stride 2": ((1, 16, 57, 56), (16, 1, 5, 5), {"padding": 2, "stride": 2, "groups": 16}),
    "depthwise, narrow": ((1, 32, 5, 3), (32, 1, 5, 5), {"padding": 2, "groups": 32}),
    "depthwise, a few pixels": ((1, 96, 8, 7), (96, 1, 5, 5), {"padding": 2, "stride": 2, "groups": 96}),
    "depthwise, 1x1": ((1, 32, 56, 2), (32, 1, 1, 1), {"groups": 32}),
    "groups of 8, stride 2": ((1, 64, 5, 24), (64, 8, 5, 5), {"stride": 2, "groups": 8}),
    "groups": ((1, 48, 13, 17), (64, 12, 3, 3), {"padding": 1, "groups": 4}),
    "stride beyond the kernel": ((1, 8, 41, 63), (20, 8, 2, 3), {"stride": (5, 4)}),
    "dilation 8": ((1, 8, 26, 37), (24, 8, 3, 3), {"dilation": 8, "padding": 8}),
    "kernel over the whole image": ((3, 5, 11, 9), (40, 5, 11, 9), {}),
    "padding beyond the kernel": ((1, 8, 6, 5), (12, 8, 3, 3), {"padding": 7}),
    "a row longer than a chunk": ((1, 64, 3, 1100), (8, 64, 3, 3), {"padding": (0, 1)}),
    "weights of more than 2 MiB": ((1, 256, 4, 4), (512, 256, 3, 3), {"padding": 1}),
}


SUMMATIONS = (
    "naive order=kh,kw,c",
    "pairwise order=c,kw,kh products=rounded bias=first block=48",
    "kahan order=kw,kh,c",
    "kahan products=rounded bias=first",
    "fp64 order=kh,c,kw",
    "exact",
)


def large_layer(shape: Shape, dtype: type, kind: str) -> Layer:
    input_shape, weight_shape, options = shape
    everything = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1} | options
    pairs = {
        name: value if name == "groups" else tuple(np.broadcast_to(value, 2)) for name, value in everything.items()
    }
    image, weight, bias = (made(s, dtype, n, kind) for n, s in enumerate([input_shape, weight_shape, weight_shape[:1]]))
    return Layer(image, weight, bias, pairs)


def padded(layer: Layer) -> Array:
    vertical, horizontal = layer.options["padding"]
    return np.pad(layer.input, ((0, 0), (0, 0), (vertical,) * 2, (horizontal,) * 2))


def of_integers(layer: Layer, shape: tuple[int, ...]) -> Array:
    """The output, of that shape, of a layer of small integers: computed in double without any rounding."""
    image, weight, bias = padded(layer).astype(np.float64), layer.weight.astype(np.float64), layer.bias
    (sh, sw), (dh, dw), groups = layer.options["stride"], layer.options["dilation"], layer.options["groups"]
    (n, _, oh, ow), (_, channels, rows, columns) = shape, weight.shape
    total: Array = np.zeros((n, groups, shape[1] // groups, oh * ow))
    for i, j in np.ndindex(rows, columns):
        x = image[:, :, i * dh :: sh, j * dw :: sw][..., :oh, :ow]
        total += weight[:, :, i, j].reshape(groups, -1, channels) @ x.reshape(n, groups, channels, oh * ow)
    assert bias is not None
    assert np.abs(total).max() < 2**23
    return (total.reshape(shape) + bias.reshape(-1, 1, 1)).astype(bias.dtype)


def assert_some_outputs_equal_reference(actual: Array, layer: Layer, summation: str) -> None:
    """The first, the last and a few other output channels, each in the corners and in a few other pixels."""
    image, weight, bias = padded(layer), layer.weight, layer.bias
    assert bias is not None
    (sh, sw), dilation, groups = layer.options["stride"], layer.options["dilation"], layer.options["groups"]
    span = [d * (k - 1) + 1 for d, k in zip(dilation, weight.shape[2:], strict=True)]
    samples, outputs, oh, ow = actual.shape
    few = words(outputs * oh + ow, 12).astype(np.int64).reshape(4, 3)
    corners = [(n, p, q) for n in {0, samples - 1} for p in {0, oh - 1} for q in {0, ow - 1}]
    pixels = [*corners, *[(int(n % samples), int(p % oh), int(q % ow)) for n, p, q in few]]
    for o in sorted({0, outputs - 1, outputs // 2 + 1 if outputs > 2 else 0}):
        first = o // (outputs // groups) * weight.shape[1]
        windows = [
            image[n, first : first + weight.shape[1], p * sh : p * sh + span[0], q * sw : q * sw + span[1]]
            for n, p, q in pixels
        ]
        one = slice(o, o + 1)
        expected = reference.conv2d(np.stack(windows), weight[one], bias[one], dilation=dilation, summation=summation)
        assert_same_bits(np.array([actual[n, o, p, q] for n, p, q in pixels]), expected.ravel(), (summation, o, pixels))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("summation", SUMMATIONS)
@pytest.mark.parametrize("name", LARGE)
def test_large_layers(name: str, summation: str, dtype: type) -> None:
    layer = large_layer(LARGE[name], dtype, "small integers")
    variants = on_every_instruction_set(lambda: detconv.conv2d(*layer.arrays, **layer.options, summation=summation))
    for variant, actual in variants.items():
        assert_same_bits(actual, of_integers(layer, actual.shape), variant)

    layer = large_layer(LARGE[name], dtype, "uniform")
    variants = on_every_instruction_set(
        lambda: detconv.conv2d(*layer.arrays, **layer.options, summation=summation), threads=(1, 3)
    )
    assert_some_outputs_equal_reference(assert_consistent(variants), layer, summation)
