"""The specification's gradients and transposed convolution against other means: MPFR, rational sums, torch."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import oracle
from bits import (
    CASES,
    DTYPES,
    LOOP_ORDERS,
    METHODS,
    Array,
    Layer,
    Pass,
    assert_same_bits,
    constructed,
    explicit_orders,
    gradient_summations,
    gradients,
    layers,
    made,
    sha256,
    transposed,
    unsigned,
)
from detconv import reference
from detconv.summation import Summation
from test_reference import Pairs, assert_differs, by_hand, canonical, tree

passes = gradients() | transposed()

# ---- The contract once more, for one element, in MPFR ----


def sum_by_hand(pairs: Pairs, bias: float | None, extents: Sequence[int], rule: Summation, dtype: type) -> float:
    return by_hand(pairs, bias, extents, rule, dtype) if pairs else canonical(bias or 0.0)


def samples_by_hand(samples: Sequence[Pairs], rule: Summation, dtype: type) -> float:
    if rule.samples == "sequence":
        samples = [[pair for pairs in samples for pair in pairs]]
    totals = [sum_by_hand(pairs, None, (len(pairs), 1, 1), rule, dtype) for pairs in samples]
    return canonical(tree(totals, oracle.IEEE(dtype).add))


def products_by_hand(call: Pass, shape: Sequence[int]) -> dict[tuple[int, ...], Any]:
    """The products of every element of a result of this shape, as the oracle has them for its pass."""

    def batched(given: Any) -> Any:
        if isinstance(given, np.ndarray):
            return given[None] if given.ndim == 3 else given
        return (1, *given) if len(given) == 3 else given

    geometry = [call.options[name] for name in ("stride", "padding", "dilation", "groups") if name in call.options]
    first, *rest = call.arguments
    match call.name:
        case "conv2d_input":
            return oracle.input_products(batched(first), rest[0], batched(rest[1]), *geometry)
        case "conv_transpose2d":
            return oracle.input_products(batched(shape), rest[0], batched(first), *geometry)
        case "conv2d_weight":
            return oracle.weight_products(batched(first), rest[0], batched(rest[1]), *geometry)
        case _:
            return oracle.bias_products(batched(first))


def pass_by_hand(call: Pass, summation: str, shape: Sequence[int]) -> Array:
    """Every element of a result of this shape, by hand; call.options holds pairs, as `bits` draws them."""
    rule, dtype = Summation.parse(summation), next(a.dtype.type for a in call.arguments if isinstance(a, np.ndarray))
    bias = call.arguments[2] if call.name == "conv_transpose2d" else None
    values = []
    for at, products in products_by_hand(call, shape).items():
        if isinstance(products, list):
            values.append(samples_by_hand(products, rule, dtype))
        else:
            pairs = [products[number] for number in sorted(products)]
            extents = [len({number[axis] for number in products}) for axis in range(3)]
            values.append(sum_by_hand(pairs, None if bias is None else float(bias[at[1]]), extents, rule, dtype))
    return np.array(values, np.float64).astype(dtype).reshape(shape)


# ---- Whole passes ----


@settings(max_examples=200)  # of four passes
@given(passes, gradient_summations())
def test_every_pass_equals_the_contract_in_mpfr(call: Pass, summation: str) -> None:
    actual = call.run(reference, summation)
    assert_same_bits(actual, pass_by_hand(call, summation, actual.shape), (call, summation))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", ["naive", "pairwise block=5", "kahan", "fp64", "exact"])
def test_every_method_equals_the_contract_in_mpfr(method: str, dtype: type) -> None:
    geometry = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2), "groups": 1}
    image, weight, grad_output = (made(s, dtype, 3) for s in [(4, 2, 6, 5), (4, 2, 3, 2), (4, 4, 3, 7)])
    for call in (
        Pass("conv2d_input", (image.shape, weight, grad_output), geometry),
        Pass("conv_transpose2d", (grad_output, weight, made((2,), dtype, 4)), {**geometry, "output_padding": (1, 0)}),
        Pass("conv2d_weight", (image, weight.shape, grad_output), geometry),
        Pass("conv2d_bias", (grad_output,), {}),
    ):
        for fields in ("order=kh,c,kw", "products=rounded bias=first", "products=rounded samples=sequence"):
            actual = call.run(reference, f"{method} {fields}")
            assert_same_bits(actual, pass_by_hand(call, f"{method} {fields}", actual.shape), (call, fields))
            assert_differs(actual, call.run(reference, "pairwise block=2"))


@given(st.data())
def test_every_explicit_order_equals_the_contract_in_mpfr(data: st.DataObject) -> None:
    def without_stride(layer: Layer) -> Layer:
        return replace(layer, options={**layer.options, "stride": (1, 1)})

    call = data.draw(gradients(layers(largest=2).map(without_stride)))
    samples = data.draw(st.sampled_from(["tree", "sequence"]))
    products = next(iter(products_by_hand(call, ()).values()))
    counts = [len(products)] if isinstance(products, dict) else [len(pairs) for pairs in products]
    order = data.draw(explicit_orders(sum(counts) if samples == "sequence" else counts[0], bias=False))
    actual = call.run(reference, Summation(order=order, samples=samples))
    assert_same_bits(actual, pass_by_hand(call, f'naive order="{order}" samples={samples}', actual.shape), order)


@given(passes)
def test_exact_equals_the_rational_sum(call: Pass) -> None:
    actual = call.run(reference, "exact samples=sequence")
    dtype, biases = actual.dtype.type, call.arguments[2] if call.name == "conv_transpose2d" else None
    sums = []
    for at, products in products_by_hand(call, actual.shape).items():
        pairs = list(products.values()) if isinstance(products, dict) else [p for pairs in products for p in pairs]
        sums.append(oracle.exact([*pairs, *([] if biases is None else [(float(biases[at[1]]), 1.0)])], dtype))
    assert_same_bits(actual, np.array(sums, np.float64).astype(dtype).reshape(actual.shape), call)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_exact_equals_the_rational_sum_of_constructed_terms(case: str, dtype: type) -> None:
    layer = constructed(case, dtype, 1)
    expected = oracle.conv2d(*layer.arrays)
    weight, image = layer.weight.swapaxes(0, 1), layer.input
    (count, rows), columns = weight.shape[:2], image[0, 0].size
    results = [
        reference.conv2d_input(expected.shape, weight, image, summation="exact"),
        reference.conv_transpose2d(image, weight, summation="exact"),
    ]
    for samples, grid in ((1, (1, count)), (1, (count, 1)), (count, (1, 1))):  # the terms as columns, rows and samples
        w = weight.reshape(samples, *grid, rows).transpose(0, 3, 1, 2)
        x = image.reshape(samples, *grid, columns).transpose(0, 3, 1, 2)
        size = rows, columns, 1, 1
        gradient = reference.conv2d_weight(x, size, w, summation="exact samples=sequence")
        results.append(gradient.reshape(expected.shape))
    for result in results:
        assert_same_bits(result, expected)
    assert_differs(reference.conv2d_input(expected.shape, weight, image, summation="naive"), expected)


# ---- The index maps ----

plain: dict[str, Any] = {"dtypes": [np.float64], "kinds": ["uniform"]}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@given(gradients(layers(**plain), kinds=["uniform"]) | transposed(**plain))
def test_exact_lies_within_the_rounding_errors_of_torch(call: Pass) -> None:
    torch = pytest.importorskip("torch")
    functional, tensors = torch.nn.functional, call.mapped(torch.from_numpy).arguments
    if call.name == "conv_transpose2d":
        theirs = functional.conv_transpose2d(*tensors, **call.options)
    elif call.name == "conv2d_bias":
        theirs = tensors[0].sum([axis for axis in range(tensors[0].ndim) if axis != tensors[0].ndim - 3])
    else:
        input, weight, grad_output = (
            given if isinstance(given, torch.Tensor) else torch.zeros(given, dtype=torch.float64) for given in tensors
        )
        asked = input if call.name == "conv2d_input" else weight
        asked.requires_grad_()
        output = functional.conv2d(input, weight, **call.options)
        (theirs,) = torch.autograd.grad(output, asked, grad_output)
    ours = call.run(reference, "exact samples=sequence")
    assert ours.shape == theirs.shape
    # Any order of K terms gives an error of at most gamma_K * S (N. Higham, 2002, section 3.1), the bias being a term.
    terms = call.mapped(np.ones_like).run(reference, "naive samples=sequence")
    scale = call.mapped(np.abs).run(reference, "exact samples=sequence")
    error = (terms + 2) * 2.0**-53
    assert np.all(np.abs(ours - theirs.numpy()) <= error / (1 - error) * scale), call


@given(transposed())
def test_transposed_convolution_is_the_gradient_by_the_input(call: Pass) -> None:
    image, weight, _ = call.arguments
    options = {name: value for name, value in call.options.items() if name != "output_padding"}
    output = reference.conv_transpose2d(image, weight, None, **call.options, summation="pairwise block=3")
    # An output padding beyond the stride: conv2d's output would be larger than the image, which zeros make up for.
    axes = zip(
        output.shape[-2:], options["padding"], options["dilation"], weight.shape[2:], options["stride"], strict=True
    )
    grid = [(size + 2 * p - d * (k - 1) - 1) // s + 1 for size, p, d, k, s in axes]
    missing = [(0, more - size) for more, size in zip(grid, image.shape[-2:], strict=True)]
    grad_output = np.pad(image, [(0, 0)] * (image.ndim - 2) + missing)
    gradient = reference.conv2d_input(output.shape, weight, grad_output, **options, summation="pairwise block=3")
    assert_same_bits(output, gradient, call)


def test_phases_have_kernels_of_their_own() -> None:
    """Stride 3, dilation 2, a kernel of 4: the remainders 0, 1 and 2 meet the taps 0 and 3, 2, and 1."""
    layer = reference.Layer((3, 1), (2, 1), ((0, 0), (0, 0)), 1, (1, 2, 3, 1))
    weight, grad_output = np.arange(8.0).reshape(2, 1, 4, 1), np.ones((1, 2, 3, 1))
    phases = list(reference.input_phases(grad_output, weight, (13, 1), layer))
    assert [extents for _, _, extents in phases] == [(2, 2, 1), (2, 1, 1), (2, 1, 1)]
    assert [[w.item() for w, _ in terms] for _, terms, _ in phases] == [[0, 3, 4, 7], [2, 6], [1, 5]]


# ---- The samples ----


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", [*METHODS, "pairwise block=3 products=rounded"])
def test_a_batch_is_the_tree_of_its_aligned_parts(method: str, dtype: type) -> None:
    samples = 13
    image, grad_output = made((samples, 2, 4, 5), dtype, 1), made((samples, 3, 2, 3), dtype, 2)

    @functools.cache
    def by_weight(first: int, last: int) -> Array:
        x, g = image[first:last], grad_output[first:last]
        return reference.conv2d_weight(x, (3, 2, 3, 2), g, dilation=(1, 2), summation=method)

    @functools.cache
    def by_bias(first: int, last: int) -> Array:
        return reference.conv2d_bias(grad_output[first:last], summation=method)

    for gradient in (by_weight, by_bias):
        for count in range(1, samples + 1):
            for length in (1, 2, 4, 8, 16):
                parts = [gradient(n, min(n + length, count)) for n in range(0, count, length)]
                assert_same_bits(reference.join(parts), gradient(0, count), f"{count} samples by {length}")
        in_turn = functools.reduce(operator.add, [gradient(n, n + 1) for n in range(samples)])
        assert_differs(in_turn, gradient(0, samples))


def test_samples_in_sequence_are_one_sum() -> None:
    image, grad_output = made((5, 2, 3, 4), np.float32, 1), made((5, 3, 3, 4), np.float32, 2)
    in_rows = image.transpose(1, 0, 2, 3).reshape(2, 15, 4), grad_output.transpose(1, 0, 2, 3).reshape(3, 15, 4)
    for method in ("naive products=rounded", "pairwise block=7", "kahan", "fp64", "exact"):
        rule = f"{method} samples=sequence"
        sequence = reference.conv2d_weight(image, (3, 2, 1, 1), grad_output, summation=rule)
        assert_same_bits(sequence, reference.conv2d_weight(in_rows[0], (3, 2, 1, 1), in_rows[1], summation=method))
        assert_differs(sequence, reference.conv2d_weight(image, (3, 2, 1, 1), grad_output, summation=method))
        sequence = reference.conv2d_bias(grad_output, summation=rule)
        assert_same_bits(sequence, reference.conv2d_bias(in_rows[1], summation=method))


def test_infinities_of_both_signs_meet_in_the_tree() -> None:
    grad_output: Array = np.array([math.inf, 1, -math.inf, 2], np.float32).reshape(2, 1, 1, 2)
    for method in METHODS:
        assert unsigned(reference.conv2d_bias(grad_output, summation=method)).tolist() == [0x7FC00000]
        signs = [reference.conv2d_bias(part, summation=method).tolist() for part in grad_output]
        assert signs == [[math.inf], [-math.inf]]


def test_every_sample_has_its_own_fallback_and_its_own_rounding() -> None:
    big = float(np.finfo(np.float32).max)
    grad_output: Array = np.array([[big, big, -big], [1, 2**-24, 2**-24]], np.float32).reshape(2, 1, 1, 3)
    assert reference.conv2d_bias(grad_output, summation="kahan").tolist() == [math.inf]
    for method in ("fp64", "exact"):
        quarters = np.array([1, 2**-24, 0, 2**-24], np.float32).reshape(2, 1, 1, 2)
        assert reference.conv2d_bias(quarters, summation=method).tolist() == [1]
        assert reference.conv2d_bias(quarters, summation=f"{method} samples=sequence").tolist() == [1 + 2**-23]


# ---- The order ----


def test_the_loops_order_only_the_gradient_by_the_input() -> None:
    image, weight, grad_output = (made(s, np.float32, 5) for s in [(2, 3, 7, 6), (4, 3, 3, 2), (2, 4, 5, 5)])
    seen: dict[str, set[str]] = {}
    for order in LOOP_ORDERS:
        for name, gradient in {
            "input": reference.conv2d_input(image.shape, weight, grad_output, summation=f"naive order={order}"),
            "weight": reference.conv2d_weight(image, weight.shape, grad_output, summation=f"naive order={order}"),
            "bias": reference.conv2d_bias(grad_output, summation=f"naive order={order}"),
        }.items():
            seen.setdefault(name, set()).add(sha256(gradient))
    assert {name: len(hashes) for name, hashes in seen.items()} == {"input": 6, "weight": 1, "bias": 1}


@pytest.mark.parametrize("dtype", DTYPES)
def test_named_orders_spelt_out(dtype: type) -> None:
    image, weight, grad_output = (made(s, dtype, 5) for s in [(2, 3, 4, 3), (2, 3, 2, 2), (2, 2, 3, 2)])

    def both(order: str, samples: str = "tree") -> Summation:
        return Summation(order=order, samples=samples)

    for named, order in {  # eight terms (o, i, j)
        "naive order=kh,kw,c": "4x(+1){2x(+4){f0}}",
        "pairwise block=3 products=rounded": "m0 m1 m2 [m3 m4 m5] [m6 m7]",
        "fp64": "d[8x(+1){f0}]",
    }.items():
        spelt = reference.conv2d_input(image.shape, weight, grad_output, summation=both(order))
        assert_same_bits(spelt, reference.conv2d_input(image.shape, weight, grad_output, summation=named))
    for named, order in {  # six terms (p, q) a sample
        "naive": "6x(+1){f0}",
        "pairwise block=4": "f0 f1 f2 f3 [f4 f5]",
        "pairwise block=4 samples=sequence": "f0 f1 f2 f3 [f4 f5 f6 f7] [f8 f9 f10 f11]",
        "fp64 samples=sequence": "d[12x(+1){f0}]",
    }.items():
        rule = both(order, "sequence" if "sequence" in named else "tree")
        spelt = reference.conv2d_weight(image, weight.shape, grad_output, summation=rule)
        assert_same_bits(spelt, reference.conv2d_weight(image, weight.shape, grad_output, summation=named))
        spelt = reference.conv2d_bias(grad_output, summation=rule)
        assert_same_bits(spelt, reference.conv2d_bias(grad_output, summation=named))


def test_an_explicit_order_must_fit_every_phase() -> None:
    weight = made((3, 2, 3, 2), np.float32, 1)
    even, uneven = weight[:, :, :2], weight
    for stride, kernel, order in ((1, uneven, "18x(+1){f0}"), (2, even, "3x(+1){f0}")):
        fitting = Summation(order=order)
        grad_output = reference.conv2d(np.ones((2, 6, 6), np.float32), kernel, stride=stride)
        gradient = reference.conv2d_input((2, 6, 6), kernel, grad_output, stride, summation=fitting)
        assert_same_bits(gradient, reference.conv2d_input((2, 6, 6), kernel, grad_output, stride, summation="naive"))
    grad_output = reference.conv2d(np.ones((2, 6, 6), np.float32), uneven, stride=2)
    for order, message in (("6x(+1){f0}", "not one of 3 terms"), ("3x(+1){f0}", "term 3 does not appear")):
        with pytest.raises(ValueError, match=message):
            reference.conv2d_input((2, 6, 6), uneven, grad_output, 2, summation=Summation(order=order))


def test_an_explicit_order_fits_the_samples_one_by_one_or_all() -> None:
    grad_output = np.ones((2, 1, 2, 2), np.float32)
    one, all_ = Summation(order="4x(+1){f0}"), Summation(order="8x(+1){f0}")
    for rule, message in ((replace(one, samples="sequence"), "does not appear"), (all_, "is not one of 4 terms")):
        with pytest.raises(ValueError, match=message):
            reference.conv2d_bias(grad_output, summation=rule)
        with pytest.raises(ValueError, match=message):
            reference.conv2d_weight(grad_output, (1, 1, 1, 1), grad_output, summation=rule)


# ---- Nothing to sum ----


@pytest.mark.parametrize("method", METHODS)
def test_phases_without_terms_are_zero_or_the_bias(method: str) -> None:
    weight, image = np.ones((1, 1, 1, 1), np.float32), np.full((1, 2, 2), -3, np.float32)
    gradient = reference.conv2d_input((1, 3, 4), weight, image, stride=2, summation=method)
    assert_same_bits(gradient[0, ::2, ::2], image[0])
    assert not unsigned(gradient)[:, 1::2].any()
    assert not unsigned(gradient)[:, :, 1::2].any()
    for value in (0.5, -0.0, math.inf):
        bias: Array = np.array([value], np.float32)
        output = reference.conv_transpose2d(image, weight, bias, stride=(1, 2), summation=f"{method} bias=first")
        assert_same_bits(output[0, :, 1::2], np.full((2, 1), value, np.float32) + 0)


@pytest.mark.parametrize("samples", ["tree", "sequence"])
def test_without_samples_the_sum_is_zero(samples: str) -> None:
    image, grad_output = np.ones((0, 2, 5, 5), np.float32), np.ones((0, 4, 3, 3), np.float32)
    for method in METHODS:
        rule = Summation(method, samples=samples)
        gradient = reference.conv2d_weight(image, (4, 2, 3, 3), grad_output, summation=rule)
        assert_same_bits(gradient, np.zeros((4, 2, 3, 3), np.float32))
        assert_same_bits(reference.conv2d_bias(grad_output, summation=rule), np.zeros(4, np.float32))
    weight = np.ones((4, 2, 3, 3), np.float32)
    assert reference.conv2d_input(image.shape, weight, grad_output).shape == image.shape
    assert reference.conv_transpose2d(grad_output, weight).shape == image.shape


def test_without_channels_the_gradients_are_empty() -> None:
    image, weight, grad_output = (np.zeros(s, np.float32) for s in [(2, 0, 5, 5), (4, 0, 3, 3), (2, 0, 3, 3)])
    assert reference.conv2d_input(image.shape, weight, grad_output).shape == image.shape
    assert reference.conv2d_weight(image, weight.shape, grad_output).shape == weight.shape
    assert reference.conv2d_bias(grad_output).shape == (0,)
    assert reference.conv_transpose2d(np.zeros((2, 4, 3, 3), np.float32), weight).shape == (2, 0, 5, 5)


# ---- The arguments ----

arguments: dict[str, dict[str, Any]] = {
    "conv2d_input": {
        "input_size": (1, 2, 5, 5),
        "weight": np.ones((4, 2, 3, 3), np.float32),
        "grad_output": np.ones((1, 4, 3, 3), np.float32),
    },
    "conv2d_weight": {
        "input": np.ones((1, 2, 5, 5), np.float32),
        "weight_size": (4, 2, 3, 3),
        "grad_output": np.ones((1, 4, 3, 3), np.float32),
    },
    "conv2d_bias": {"grad_output": np.ones((1, 4, 3, 3), np.float32)},
    "conv_transpose2d": {"input": np.ones((1, 4, 3, 3), np.float32), "weight": np.ones((4, 2, 3, 3), np.float32)},
}


@pytest.mark.parametrize(
    ("name", "error", "message", "change"),
    [
        ("conv2d_input", TypeError, "weight: dtype float16", {"weight": np.ones((4, 2, 3, 3), np.float16)}),
        ("conv2d_input", TypeError, "grad_output: dtype float64", {"grad_output": np.ones((1, 4, 3, 3))}),
        ("conv2d_input", ValueError, "input_size: shape", {"input_size": (5, 5)}),
        ("conv2d_input", ValueError, "input_size: shape", {"input_size": (-1, 2, 5, 5)}),
        ("conv2d_input", ValueError, "input_size: shape", {"input_size": (1, 2, 0, 5)}),
        ("conv2d_input", ValueError, "weight: kernel 3 x 3", {"input_size": (1, 2, 2, 5)}),
        ("conv2d_input", ValueError, "groups: 2 does not fit input_size", {"groups": 2}),
        (
            "conv2d_input",
            ValueError,
            r"grad_output: .*\(1, 4, 3, 3\), must be \(2, 4, 3, 3\)",
            {"input_size": (2, 2, 5, 5)},
        ),
        ("conv2d_input", ValueError, r"grad_output: .*, must be \(4, 3, 3\)", {"input_size": (2, 5, 5)}),
        ("conv2d_input", ValueError, "stride: 0", {"stride": 0}),
        ("conv2d_weight", TypeError, "grad_output: dtype float64", {"grad_output": np.ones((1, 4, 3, 3))}),
        ("conv2d_weight", ValueError, "input: shape", {"input": np.ones((5, 5), np.float32)}),
        ("conv2d_weight", ValueError, "weight_size: shape", {"weight_size": (4, 2, 3)}),
        ("conv2d_weight", ValueError, "weight_size: shape", {"weight_size": (0, 2, 3, 3)}),
        ("conv2d_weight", ValueError, "weight_size: kernel 6 x 3", {"weight_size": (4, 2, 6, 3)}),
        ("conv2d_weight", ValueError, "groups: 4 does not fit .* weight_size", {"groups": 4}),
        ("conv2d_weight", ValueError, r"grad_output: .*\(1, 4, 3, 3\), must be \(1, 4, 2, 2\)", {"stride": (2, 2)}),
        ("conv2d_weight", ValueError, "padding: 'full'", {"padding": "full"}),
        ("conv2d_bias", TypeError, "grad_output: dtype int64", {"grad_output": np.ones((1, 4, 3, 3), np.int64)}),
        ("conv2d_bias", ValueError, r"grad_output: shape \(3, 3\)", {"grad_output": np.ones((3, 3))}),
        ("conv_transpose2d", TypeError, "weight: dtype float64", {"weight": np.ones((4, 2, 3, 3))}),
        ("conv_transpose2d", ValueError, "input: shape", {"input": np.ones((4, 3), np.float32)}),
        ("conv_transpose2d", ValueError, "weight: shape", {"weight": np.ones((0, 2, 3, 3), np.float32)}),
        ("conv_transpose2d", ValueError, "groups: 3", {"groups": 3}),
        ("conv_transpose2d", ValueError, "groups: 0", {"groups": 0}),
        ("conv_transpose2d", ValueError, "groups: 1 .* input", {"input": np.ones((1, 2, 3, 3), np.float32)}),
        ("conv_transpose2d", ValueError, r"bias: .*, must be \(4,\)", {"bias": np.ones(2, np.float32), "groups": 2}),
        ("conv_transpose2d", ValueError, "padding: 'same'", {"padding": "same"}),
        ("conv_transpose2d", ValueError, "padding: .* -1 x 1, must be", {"padding": (3, 2)}),
        ("conv_transpose2d", ValueError, "output_padding: 1", {"output_padding": 1}),
        ("conv_transpose2d", ValueError, "output_padding: ", {"output_padding": (1, 2), "dilation": 2}),
        ("conv_transpose2d", ValueError, "output_padding: -1", {"output_padding": -1}),
    ],
)
def test_bad_arguments_are_named(name: str, error: type[Exception], message: str, change: dict[str, Any]) -> None:
    with pytest.raises(error, match=message):
        getattr(reference, name)(**{**arguments[name], **change})
