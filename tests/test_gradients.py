"""The engine's gradients and transposed convolution: the bits of the specification, whatever may change around them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import detconv
import oracle
from bits import (
    CASES,
    DTYPES,
    LAYOUTS,
    METHODS,
    Array,
    Pass,
    assert_consistent,
    assert_same_bits,
    constructed,
    gradient_summations,
    gradients,
    instruction_sets,
    made,
    on_every_instruction_set,
    output_shape,
    transposed,
)
from detconv import _core, reference
from test_reference_gradients import products_by_hand

passes = gradients() | transposed()


def test_methods_are_the_engines() -> None:
    assert _core.methods() == METHODS


# ---- The specification ----


@settings(max_examples=600)  # of four passes
@given(passes, gradient_summations(), st.sampled_from(LAYOUTS))
def test_every_pass_is_the_references(call: Pass, summation: str, layout: str) -> None:
    expected = call.run(reference, summation)
    ran = on_every_instruction_set(lambda: call.relaid(layout).run(detconv, summation))
    assert len(ran) >= 2
    for name, actual in ran.items():
        assert_same_bits(actual, expected, (call, summation, name))


def calls(dtype: type, batch: int = 5, kind: str = "uniform") -> dict[str, Pass]:
    """One call of each pass for several layers: 9, 25 and 1 taps, strides, groups, depthwise, many channels."""
    found = {}
    for number, (input_shape, weight_shape, geometry) in enumerate(
        [
            ((6, 9, 10), (33, 6, 3, 3), {"padding": (1, 1)}),
            ((3, 11, 12), (8, 3, 5, 5), {"padding": (2, 2), "stride": (2, 1)}),
            ((20, 6, 7), (40, 20, 1, 1), {}),
            ((20, 6, 7), (9, 20, 1, 1), {"stride": (2, 3), "padding": (0, 1)}),
            ((20, 6, 7), (9, 20, 1, 1), {"stride": (1, 2)}),
            ((8, 12, 9), (12, 4, 3, 2), {"groups": 2, "dilation": (2, 3), "padding": (1, 2), "stride": (3, 2)}),
            ((10, 8, 20), (10, 1, 3, 3), {"groups": 10, "padding": (1, 1)}),
            ((35, 9, 8), (35, 1, 3, 3), {"groups": 35, "padding": (1, 1)}),
            ((6, 9, 8), (6, 1, 3, 3), {"groups": 6, "padding": (1, 1)}),
            ((75, 5, 8), (75, 1, 3, 2), {"groups": 75, "padding": (1, 1), "stride": (1, 3)}),
            ((50, 5, 9), (18, 25, 1, 1), {"groups": 2}),  # upright, more inputs than outputs; 40 to 20 above: fewer
        ]
    ):
        options = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1, **geometry}
        image, weight = made((batch, *input_shape), dtype, number, kind), made(weight_shape, dtype, number + 100, kind)
        with np.errstate(all="ignore"):
            shape = detconv.conv2d(image, weight, **options).shape
        grad_output = made(shape, dtype, number + 200, kind)
        found[f"input {number}"] = Pass("conv2d_input", (image.shape, weight, grad_output), options)
        found[f"weight {number}"] = Pass("conv2d_weight", (image, weight.shape, grad_output), options)
        found[f"bias {number}"] = Pass("conv2d_bias", (grad_output,), {})
        bias = made((weight_shape[1] * options["groups"],), dtype, number + 300, kind)
        found[f"transpose {number}"] = Pass("conv_transpose2d", (grad_output, weight, bias), options)
    return found


@pytest.mark.parametrize("summation", [*METHODS, "naive products=rounded bias=first", "pairwise block=3"])
@pytest.mark.parametrize("name", calls(np.float32))
def test_no_instruction_set_and_no_number_of_threads_changes_a_bit(name: str, summation: str) -> None:
    for dtype in DTYPES:
        call = calls(dtype)[name]
        actual = assert_consistent(
            on_every_instruction_set(lambda c=call: c.run(detconv, summation), threads=(1, 2, 7))
        )
        if dtype == np.float32 or summation.endswith("rounded"):  # the specification takes its time over float64
            assert_same_bits(actual, call.run(reference, summation), name)


@pytest.mark.parametrize("summation", [*METHODS, "naive order=kh,kw,c products=rounded", "pairwise block=3"])
@pytest.mark.parametrize("name", [name.replace("bias", "forward") for name in calls(np.float32)])
def test_channels_last_in_and_out(name: str, summation: str) -> None:
    """Groups, batches and channels then lie between each other, and are read and written many at a time."""
    compiled = detconv.Summation.parse(summation)._compiled
    for dtype, batch in [(np.float32, 1), (np.float32, 5), (np.float64, 3)]:
        found = calls(dtype, batch)
        number = name.split()[1]
        image, weight = found[f"weight {number}"].arguments[0], found[f"input {number}"].arguments[1]
        found[f"forward {number}"] = Pass("conv2d", (image, weight, None), found[f"weight {number}"].options)
        call = found[name]
        last = call.relaid("channels last")
        more = {"output_padding": (0, 0), "channels_last": True} if "transpose" in name else {"channels_last": True}
        options = {**call.options, "summation": compiled, **more}

        def run(arguments: Any = last.arguments, options: Any = options, function: str = call.name) -> Array:
            result: Array = getattr(_core, function)(*arguments, **options)
            assert result.strides[1] == result.itemsize or result.shape[1] == 1
            return np.ascontiguousarray(result)

        variants = on_every_instruction_set(run, threads=(1, 3))
        assert_consistent({**variants, "contiguous": call.run(detconv, summation)})


@pytest.mark.parametrize("samples", ["tree", "sequence"])
@pytest.mark.parametrize("method", METHODS)
def test_special_values_go_the_way_of_the_contract(method: str, samples: str) -> None:
    summation = f"{method} samples={samples}"
    for kind in ("special", "wide", "raw"):
        for name, call in calls(np.float32, batch=3, kind=kind).items():
            assert_same_bits(call.run(detconv, summation), call.run(reference, summation), (name, kind))


# ---- The tree of samples ----


def join(totals: list[Array]) -> Array:
    """Of a power of two of them."""
    while len(totals) > 1:
        totals = [older + newer for older, newer in zip(totals[::2], totals[1::2], strict=True)]
    return totals[0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", METHODS)
def test_a_batch_is_the_join_of_its_aligned_blocks(method: str, dtype: type) -> None:
    compared = 0
    for batch in (1, 2, 4, 8, 16):
        image, grad_output = made((batch, 3, 7, 6), dtype, 1), made((batch, 5, 5, 4), dtype, 2)
        whole = detconv.conv2d_weight(image, (5, 3, 3, 3), grad_output, summation=method)
        whole_bias = detconv.conv2d_bias(grad_output, summation=method)
        for size in (2**k for k in range(batch.bit_length())):
            parts = [slice(n, n + size) for n in range(0, batch, size)]
            weights = [detconv.conv2d_weight(image[p], (5, 3, 3, 3), grad_output[p], summation=method) for p in parts]
            assert_same_bits(join(weights), whole, (batch, size))
            assert_same_bits(join([detconv.conv2d_bias(grad_output[p], summation=method) for p in parts]), whole_bias)
            compared += 1
    assert compared == 15


def test_an_input_gradient_has_no_company() -> None:
    image, weight, grad_output = (made(s, np.float32, 3) for s in [(4, 3, 9, 8), (5, 3, 3, 3), (4, 5, 7, 6)])
    together = detconv.conv2d_input(image.shape, weight, grad_output)
    for n in range(4):
        alone = detconv.conv2d_input(image.shape[1:], weight, grad_output[n])
        assert_same_bits(alone, together[n])


# ---- Exact ----


def exact_calls(dtype: type) -> Iterator[Pass]:
    yield from calls(dtype, batch=1).values()
    for case in CASES:
        for seed in range(6):
            layer = constructed(case, dtype, seed)
            options: dict[str, Any] = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}
            options |= layer.options
            grad_output = made(output_shape(type(layer)(layer.input, layer.weight, None, options)), dtype, seed, "wide")
            yield Pass("conv2d_input", (layer.input.shape, layer.weight, grad_output), options)
            yield Pass("conv2d_weight", (layer.input, layer.weight.shape, grad_output), options)


@pytest.mark.parametrize("dtype", DTYPES)
def test_exact_gradients_are_the_rational_sums_rounded_once(dtype: type) -> None:
    compared = 0
    for call in exact_calls(dtype):
        actual = call.run(detconv, "exact samples=sequence")
        biases = call.arguments[2] if call.name == "conv_transpose2d" else None
        expected = []
        for at, products in products_by_hand(call, actual.shape).items():
            pairs = (
                list(products.values()) if isinstance(products, dict) else [p for sample in products for p in sample]
            )
            if biases is not None:
                pairs = [*pairs, (float(biases[at[1]]), 1.0)]
            expected.append(oracle.exact(pairs, dtype))
        wanted = np.array(expected, np.float64).astype(dtype).reshape(actual.shape)
        for name in instruction_sets():
            with detconv.testing.instruction_set(name):
                assert_same_bits(call.run(detconv, "exact samples=sequence") + 0.0, wanted + 0.0, (call, name))
        compared += actual.size
    assert compared >= 10_000, compared


# ---- Bad input ----


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, w, g: detconv.conv2d_input((2, 5, 5), w, g), r"grad_output must have the shape of the output"),
        (lambda x, w, g: detconv.conv2d_input((1, 2, 5, 5), w, g[:, :1]), r"grad_output.*\(1, 3, 3, 3\); got.*\(1, 1"),
        (lambda x, w, g: detconv.conv2d_input((1, 2, 5, -5), w, g), r"input_size must not have negative"),
        (lambda x, w, g: detconv.conv2d_input((1, 2), w, g), r"input_size must be a sequence of 4 ints"),
        (lambda x, w, g: detconv.conv2d_weight(x, (3, 2, 3), g), r"weight_size must be a sequence of 4 ints"),
        (lambda x, w, g: detconv.conv2d_weight(x, (3, 2, 3, 3), g, stride=2), r"grad_output.*\(1, 3, 2, 2\)"),
        (lambda x, w, g: detconv.conv2d_weight(x, (3, 2, 3, 3), g, groups=2), r"groups must divide"),
        (lambda x, w, g: detconv.conv2d_bias(g[0, 0]), r"grad_output must have 4 dimensions"),
        (lambda x, w, g: detconv.conv_transpose2d(g, w, output_padding=1), r"output_padding must be smaller"),
        (lambda x, w, g: detconv.conv_transpose2d(g, w, padding=9), r"padding leaves no output"),
        (lambda x, w, g: detconv.conv_transpose2d(x, w), r"input must have weight.shape\[0\] = 3 channels"),
        (lambda x, w, g: detconv.conv_transpose2d(g, w, g[0, 0, 0]), r"bias must have shape \(2,\)"),
        (lambda x, w, g: detconv.conv_transpose2d(g, w, stride=2**62), r"64 bits"),
        (lambda x, w, g: detconv.conv2d_input(x.shape, w, g, summation='naive order="f0"'), r"term 1 of 0..26 is miss"),
    ],
)
def test_what_does_not_fit_is_refused(call: Any, message: str) -> None:
    image, weight, grad_output = (made(s, np.float32, 1) for s in [(1, 2, 5, 5), (3, 2, 3, 3), (1, 3, 3, 3)])
    with pytest.raises(ValueError, match=message):
        call(image, weight, grad_output)


def test_mixed_types_are_refused() -> None:
    image, weight, grad_output = (made(s, np.float32, 1) for s in [(1, 2, 5, 5), (3, 2, 3, 3), (1, 3, 3, 3)])
    for call in (
        lambda: detconv.conv2d_input(image.shape, weight.astype(np.float64), grad_output),
        lambda: detconv.conv2d_weight(image, weight.shape, grad_output.astype(np.float64)),
        lambda: detconv.conv_transpose2d(grad_output, weight, np.zeros(2)),
        lambda: detconv.conv2d_bias(grad_output.astype(np.int32)),
    ):
        with pytest.raises(TypeError, match="dtype"):
            call()
