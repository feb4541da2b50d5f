"""The specification against other means: MPFR one scalar at a time, rational sums, math.fsum, plain loops."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import oracle
from bits import (
    CASES,
    DTYPES,
    KINDS,
    LOOP_ORDERS,
    Array,
    Layer,
    assert_same_bits,
    constructed,
    explicit_orders,
    layers,
    made,
    sha256,
    summations,
    unsigned,
    words,
)
from detconv import reference
from detconv.summation import Summation

Pairs = Sequence[tuple[float, float]]

# ---- The contract once more, for one output, in MPFR ----


def by_hand(pairs: Pairs, bias: float | None, extents: Sequence[int], rule: Summation, dtype: type) -> float:
    """One output: its products (w, x) in the loops c,kh,kw, summed by `rule` and rounded as the contract says."""
    narrow, double = oracle.IEEE(dtype), oracle.IEEE(np.float64)
    if rule.explicit_order:
        return canonical(walk(items_of(rule.order), pairs, bias, (narrow, double), wide=False))

    loops = [dict(zip(("c", "kh", "kw"), k, strict=True)) for k in itertools.product(*map(range, extents))]
    visited = sorted(range(len(pairs)), key=lambda k: [loops[k][name] for name in rule.order.split(",")])
    ordered = [pairs[k] for k in visited]
    start = bias if bias is not None and rule.bias == "first" else 0.0
    last = bias if rule.bias == "last" else None

    def step(ieee: oracle.IEEE, s: float, w: float, x: float, fused: bool) -> float:
        return ieee.fma(w, x, s) if fused else ieee.add(s, ieee.mul(w, x))

    def chain(ieee: oracle.IEEE, terms: Pairs, s: float, fused: bool) -> float:
        for w, x in terms:
            s = step(ieee, s, w, x, fused)
        return s

    def plus(ieee: oracle.IEEE, total: float) -> float:
        return total if last is None else ieee.add(total, last)

    fused = rule.products == "fused"
    match rule.method:
        case "pairwise":
            blocks = [ordered[k : k + rule.block] for k in range(0, len(ordered), rule.block)]
            sums = [chain(narrow, block, start if n == 0 else 0.0, fused) for n, block in enumerate(blocks)]
            total = plus(narrow, tree(sums, narrow.add))
        case "kahan":
            s, c = start, 0.0
            for w, x in ordered:
                y = narrow.fma(w, x, -c) if fused else narrow.sub(narrow.mul(w, x), c)
                t = narrow.add(s, y)
                c = narrow.sub(narrow.sub(t, s), y)
                s = t
            total = s if last is None else narrow.add(s, narrow.sub(last, c))
            if not math.isfinite(total):
                total = plus(narrow, chain(narrow, ordered, start, fused))
        case "fp64":
            total = narrow.round(plus(double, chain(double, ordered, start, True)))
        case "exact":
            total = oracle.exact([*ordered, *([] if bias is None else [(bias, 1.0)])], dtype)
        case _:
            total = plus(narrow, chain(narrow, ordered, start, fused))
    return canonical(total)


def canonical(total: float) -> float:
    return math.nan if math.isnan(total) else total + 0.0


def tree(values: Sequence[Any], add: Callable[[Any, Any], Any]) -> Any:
    """The counter's tree by its other description: the older part is the largest power of two that leaves a rest."""
    if len(values) == 1:
        return values[0]
    older = 2 ** ((len(values) - 1).bit_length() - 1)
    return add(tree(values[:older], add), tree(values[older:], add))


def items_of(text: str) -> list[Any]:
    """An explicit order, its repeats spelt out: ("f", k), ("m", k), ("bias", None), ("[", items), ("d[", items)."""

    def shifted(item: tuple[str, Any], by: int) -> tuple[str, Any]:
        kind, what = item
        if isinstance(what, list):
            return kind, [shifted(inner, by) for inner in what]
        return kind, what if what is None else what + by

    bodies: list[list[tuple[str, Any]]] = [[]]
    openers: list[str] = []
    for token in re.findall(r"[fm]\d+|bias|\d+x\(.\d+\){|d?\[|[]}]", text):
        if token[-1] in "[{":
            openers.append(token)
            bodies.append([])
        elif token == "]":
            body = bodies.pop()
            bodies[-1].append((openers.pop(), body))
        elif token == "}":
            copies, stride = map(int, re.findall(r"[+-]?\d+", openers.pop()))
            body = bodies.pop()
            bodies[-1] += [shifted(item, n * stride) for n in range(copies) for item in body]
        else:
            bodies[-1].append(("bias", None) if token == "bias" else (token[0], int(token[1:])))
    return bodies[0]


def walk(items: list[Any], pairs: Pairs, bias: float | None, types: Sequence[oracle.IEEE], wide: bool) -> float:
    """The total of a chain, kept in the element type types[0] or, if wide, in types[1], which is double."""
    narrow, ieee, s = types[0], types[wide], 0.0
    for kind, what in items:
        if kind == "f":
            w, x = pairs[what]
            s = ieee.fma(w, x, s)
        elif kind == "m":
            s = ieee.add(s, narrow.mul(*pairs[what]))
        elif kind == "bias":
            s = s if bias is None else ieee.add(s, bias)
        else:
            s = ieee.add(s, ieee.round(walk(what, pairs, bias, types, wide or kind == "d[")))
    return s


def assert_differs(one: Array, other: Array) -> None:
    """Or else the data would not tell the two summations apart, and a test on them would show nothing."""
    assert np.any(unsigned(one) != unsigned(other))


def layer_by_hand(layer: Layer, summation: str) -> Array:
    """Every output of a layer, by hand; layer.options holds pairs, as `layers` draws them."""
    batched = layer.input if layer.input.ndim == 4 else layer.input[None]
    options = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1, **layer.options}
    rule, dtype = Summation.parse(summation), layer.input.dtype.type
    shape, outputs = oracle.products(batched, layer.weight, **options)
    values = [
        by_hand(pairs, None if layer.bias is None else float(layer.bias[o]), layer.weight.shape[1:], rule, dtype)
        for (_, o, _, _), pairs in outputs
    ]
    output = np.array(values, np.float64).astype(dtype).reshape(shape)
    return output if layer.input.ndim == 4 else output[0]


# ---- Whole layers ----


@given(layers(), summations())
def test_every_loop_order_equals_the_contract_in_mpfr(layer: Layer, summation: str) -> None:
    actual = reference.conv2d(*layer.arrays, **layer.options, summation=summation)
    assert_same_bits(actual, layer_by_hand(layer, summation), summation)


@given(st.data())
def test_every_explicit_order_equals_the_contract_in_mpfr(data: st.DataObject) -> None:
    layer = data.draw(layers(largest=3))
    order = data.draw(explicit_orders(layer.terms, layer.bias is not None))
    actual = reference.conv2d(*layer.arrays, **layer.options, summation=Summation(order=order))
    assert_same_bits(actual, layer_by_hand(layer, f'naive order="{order}"'), order)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", ["naive", "pairwise block=7", "kahan", "fp64", "exact"])
def test_every_method_equals_the_contract_in_mpfr(method: str, dtype: type) -> None:
    image, weight, bias = (made(shape, dtype, 3) for shape in [(3, 5, 5), (4, 3, 3, 4), (4,)])
    layer = Layer(image, weight, bias, {"padding": (1, 1)})
    seen = set()
    for fields in ("order=kh,c,kw", "order=kw,c,kh products=rounded", "bias=first", "products=rounded bias=first"):
        actual = reference.conv2d(image, weight, bias, padding=1, summation=f"{method} {fields}")
        assert_same_bits(actual, layer_by_hand(layer, f"{method} {fields}"), fields)
        assert_differs(actual, reference.conv2d(image, weight, bias, padding=1, summation=f"pairwise block=2 {fields}"))
        seen.add(sha256(actual))
    assert len(seen) == {"exact": 1, "fp64": 1 if dtype is np.float32 else 3}.get(method, 4)


@given(layers())
def test_exact_equals_the_rational_sum(layer: Layer) -> None:
    actual = reference.conv2d(*layer.arrays, **layer.options, summation="exact")
    assert_same_bits(actual, oracle.conv2d(*layer.arrays, **layer.options))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_exact_equals_the_rational_sum_of_constructed_terms(case: str, dtype: type) -> None:
    for seed in range(4):
        layer = constructed(case, dtype, seed)
        actual = reference.conv2d(*layer.arrays, summation="exact")
        assert_same_bits(actual, oracle.conv2d(*layer.arrays))
        assert_differs(actual, reference.conv2d(*layer.arrays, summation="naive"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["uniform", "small integers"])
def test_naive_rounded_equals_the_nested_loops(kind: str, dtype: type) -> None:
    image, weight, bias = (made(shape, dtype, 5, kind) for shape in [(1, 4, 9, 8), (3, 4, 5, 4), (3,)])
    actual = reference.conv2d(image, weight, bias, padding=2, summation="naive products=rounded")
    assert_same_bits(actual, oracle.loops(image, weight, bias, padding=2))


def test_exact_equals_fsum() -> None:
    image = made((2, 6, 7, 7), np.float64, 1)
    weight = np.ldexp(1.0, made((4, 6, 3, 3), np.float64, 2, "small integers").astype(np.int64))  # products are exact
    _, outputs = oracle.products(image, weight, (1, 1), (1, 1), (1, 1), 1)
    expected = np.array([math.fsum(w * x for w, x in pairs) for _, pairs in outputs]).reshape(2, 4, 7, 7)
    assert_same_bits(reference.conv2d(image, weight, padding=1, summation="exact"), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", ["naive", "pairwise block=5", "kahan", "fp64", "exact"])
def test_every_method_is_exact_on_small_integers(method: str, dtype: type) -> None:
    image, weight, bias = (made(shape, dtype, 9, "small integers") for shape in [(2, 4, 6, 6), (6, 2, 3, 3), (6,)])
    actual = reference.conv2d(image, weight, bias, padding="same", groups=2, summation=method)
    assert_same_bits(actual, oracle.conv2d(image, weight, bias, padding="same", groups=2))


def test_without_input_channels_there_are_no_output_channels() -> None:
    image, weight, bias = (np.zeros(shape, np.float32) for shape in [(2, 0, 5, 5), (4, 0, 3, 3), (4,)])
    assert reference.conv2d(image, weight, bias).shape == (2, 0, 3, 3)
    assert reference.conv2d(image[:0], weight, bias).shape == (0, 0, 3, 3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", ["naive", "pairwise", "kahan", "fp64", "exact"])
def test_without_terms_the_sum_is_the_bias_or_zero(method: str, dtype: type) -> None:
    zero: Array = np.zeros((3, 1), dtype)
    bias: Array = np.array([[1.5], [-0.0], [np.inf]], dtype)
    for rule in (Summation(method), Summation(method, bias="first")):
        assert_same_bits(reference.contract([], (0, 1, 1), None, zero, rule), zero)
        assert_same_bits(reference.contract([], (0, 1, 1), bias, zero, rule), bias + 0)


def test_nan_and_zero_results_have_one_representation() -> None:
    image = np.array([0xFFC00001, 0x7F800001, 0x80000000], np.uint32).view(np.float32).reshape(1, 1, 3)
    for method in ("naive", "pairwise", "kahan", "fp64", "exact"):
        output = reference.conv2d(image, np.ones((1, 1, 1, 1), np.float32), summation=method)
        assert unsigned(output).tolist() == [[[0x7FC00000, 0x7FC00000, 0]]]


# ---- The order ----


def test_sequences_are_loops() -> None:
    assert reference.sequence("kh,kw,c", (2, 1, 3)) == [0, 3, 1, 4, 2, 5]
    assert reference.sequence("c,kw,kh", (1, 2, 3)) == [0, 3, 1, 4, 2, 5]
    for order in LOOP_ORDERS:
        assert sorted(reference.sequence(order, (2, 3, 4))) == list(range(24))


@pytest.mark.parametrize("count", range(1, 21))
def test_the_pairwise_tree(count: int) -> None:
    class Node(str):
        def __add__(self, other: str) -> Node:
            return Node(f"({self}{other})")

    leaves = [Node(f"<{n}>") for n in range(count)]
    assert reference.join(leaves) == tree(leaves, Node.__add__)


def test_the_pairwise_tree_written_out() -> None:
    assert [reference.join(["1 ", "2 ", "3 ", "4 ", "5 "][:n]) for n in (1, 3, 5)] == ["1 ", "1 2 3 ", "1 2 3 4 5 "]


# A sum of 2 x 3 x 3 terms in named orders, and the same in the order language.
SPELT_OUT = {
    "naive": "18x(+1){f0} bias",
    "naive products=rounded bias=first": "bias 18x(+1){m0}",
    "naive order=kh,kw,c": "9x(+1){2x(+9){f0}} bias",
    "naive order=c,kw,kh products=rounded": "2x(+9){3x(+1){3x(+3){m0}}} bias",
    "pairwise block=18": "18x(+1){f0} bias",
    "pairwise block=9": "9x(+1){f0} [9x(+1){f9}] bias",
    "pairwise block=4": "f0 f1 f2 f3 [f4 f5 f6 f7] [4x(+1){f8} [4x(+1){f12}]] [f16 f17] bias",
    "pairwise block=6 bias=first": "bias 6x(+1){f0} [6x(+1){f6}] [6x(+1){f12}]",
    "pairwise block=6 products=rounded": "6x(+1){m0} 2x(+6){[6x(+1){m6}]} bias",
    "fp64": "d[18x(+1){f0} bias]",
    "fp64 order=kw,c,kh bias=first": "d[d[bias 3x(+1){2x(+9){3x(+3){f0}}}]]",
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("named", SPELT_OUT)
def test_named_orders_spelt_out(named: str, dtype: type) -> None:
    image, weight, bias = (made(shape, dtype, 3) for shape in [(2, 2, 6, 6), (4, 2, 3, 3), (4,)])
    actual, expected, other = (
        reference.conv2d(image, weight, bias, padding=1, summation=summation)
        for summation in (Summation(order=SPELT_OUT[named]), named, "pairwise order=kw,kh,c block=3")
    )
    assert_same_bits(actual, expected)
    assert_differs(actual, other)


def test_double_within_double_is_not_rounded() -> None:
    layer = Layer(made((2, 2, 6, 6), np.float32, 3), made((4, 2, 3, 3), np.float32, 4), None, {})
    nested, twice, rounded = (
        reference.conv2d(*layer.arrays, summation=Summation(order=order))
        for order in ("d[9x(+1){f0} [9x(+1){f9}]]", "d[9x(+1){f0} d[9x(+1){f9}]]", "d[9x(+1){f0}] d[9x(+1){f9}]")
    )
    assert_same_bits(nested, layer_by_hand(layer, 'naive order="d[9x(+1){f0} [9x(+1){f9}]]"'))
    assert_same_bits(twice, nested)
    assert_differs(rounded, nested)


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ("f0 f1 f1 bias", "term 1 appears twice"),
        ("f0 f1 f2 f3 f4 bias", "term 4 .* is not one of 4 terms"),
        ("4x(-1){f2} bias", "term -1 .* is not one of 4 terms"),
        ("bias 4x(+1){f0} bias", "bias appears twice"),
        ("f0 f1 f3 bias", "term 2 does not appear"),
        ("4x(+1){f0}", "bias does not appear"),
    ],
)
def test_an_explicit_order_that_does_not_fit_is_refused(order: str, message: str) -> None:
    image, weight, bias = (np.ones(shape, np.float32) for shape in [(1, 3, 3), (1, 1, 2, 2), (1,)])
    with pytest.raises(ValueError, match=message):
        reference.conv2d(image, weight, bias, summation=Summation(order=order))


# ---- The arithmetic ----


def fused_steps(dtype: type, seed: int, count: int) -> list[Array]:
    """Arrays (w, x, s) with what is hard for an fma: ties and near ties, cancellation, both ends of the exponents."""
    info = np.finfo(dtype)
    digits, last_place = int(info.nmant) + 1, int(info.minexp) - int(info.nmant)

    def between(low: int, high: int, salt: int) -> Array:
        return low + (words(seed + salt, count) % np.uint64(high - low + 1)).astype(np.int64)

    def number(salt: int) -> Array:
        """Integers of one to all digits, and their negatives."""
        bits = words(seed + salt, count) >> (64 - between(1, digits, salt + 1)).astype(np.uint64)
        return bits.astype(np.float64) * (1.0 - 2.0 * between(0, 1, salt + 2))

    def scaled(w: Array, x: Array, exponent: Array, s: Array, s_exponent: Array) -> list[Array]:
        half = exponent // 2
        parts = np.ldexp(w, half), np.ldexp(x, exponent - half), np.ldexp(s, s_exponent)
        return [part.astype(dtype) for part in parts]

    with np.errstate(all="ignore"):
        # The product is about 1, a subnormal or about the largest number; s is up to twice its digits away.
        places = np.array([0, last_place + digits // 2, last_place, int(info.maxexp)])[between(0, 3, 10)]
        exponent = places - 2 * digits + between(-4, digits + 4, 11)
        anywhere = scaled(number(20), number(30), exponent, number(40), exponent + between(-digits, 2 * digits, 12))
        w, x, _ = anywhere
        toward: Array = np.array([-1, 0, 1], dtype)[between(0, 2, 13)]
        cancelling = [w, x, np.nextafter(-w * x, -w * x + toward)]
        # (2^k - 1)(2^k + 1) = 2^2k - 1: a hair less than half the last place of s; (2^k + 1)^2 a hair more.
        k = between(digits // 2 + 2, digits - 1, 14)
        factor = np.ldexp(1.0, k) + (2.0 * between(0, 1, 15) - 1)
        sign = 2.0 * between(0, 1, 16) - 1
        place = np.array([0, last_place])[between(0, 1, 17)]
        near_ties = scaled(factor * sign, np.ldexp(1.0, k) + 1, place - 2 * k - 1, number(50), place)
    anything = [made((count,), dtype, seed + salt, "raw") for salt in (60, 61, 62)]
    kind = between(0, 7, 18)
    choices = [anything, cancelling, near_ties, near_ties, *[anywhere] * 4]
    return [np.choose(kind, [choice[part] for choice in choices]) for part in range(3)]


def unmarked(array: Array) -> Array:
    """Without the sign of zero and the payload of NaN, which no result depends on."""
    return np.where(np.isnan(array), array.dtype.type(np.nan), array + 0)


def test_the_quick_float32_fma_equals_its_definition() -> None:
    for seed in range(4):
        w, x, s = fused_steps(np.float32, 1000 * seed, 50_000)
        with np.errstate(all="ignore"):
            expected = reference.exact([(w, x)], s)
            assert_same_bits(unmarked(reference.fma(w, x, s)), unmarked(expected))
            twice_rounded = (w.astype(np.float64) * x + s).astype(np.float32)
        finite = np.isfinite(expected)
        assert np.count_nonzero(twice_rounded[finite] != expected[finite]) > 100, "near ties are missing"
        assert 0.02 < np.mean(np.isinf(expected)) < 0.2
        assert 0.05 < np.mean((expected != 0) & (np.abs(expected) < np.finfo(np.float32).tiny)) < 0.5


@pytest.mark.parametrize("dtype", DTYPES)
def test_fma_equals_mpfr(dtype: type) -> None:
    w, x, s = fused_steps(dtype, 77, 20_000)
    ieee = oracle.IEEE(dtype)
    expected = np.array([canonical(ieee.fma(*step)) for step in zip(w.tolist(), x.tolist(), s.tolist(), strict=True)])
    with np.errstate(all="ignore"):
        assert_same_bits(unmarked(reference.fma(w, x, s)), expected.astype(dtype))


def test_a_fused_step_does_not_overflow_in_its_product() -> None:
    for dtype in DTYPES:
        big = np.array([np.finfo(dtype).max, np.finfo(dtype).max, np.finfo(dtype).max], dtype)
        two = np.array([2, 2, 2], dtype)
        with np.errstate(all="ignore"):
            actual = reference.fma(big, two, np.array([-big[0], -np.inf, np.inf], dtype))
        assert_same_bits(actual, np.array([big[0], -np.inf, np.inf], dtype))


@given(st.integers(-(2**300), 2**300), st.integers(-320, 0), st.sampled_from(DTYPES))
def test_round_to_equals_mpfr(n: int, shift: int, dtype: type) -> None:
    info = np.finfo(dtype)
    for unit in (shift, int(info.minexp) + shift, int(info.maxexp) + shift):
        scale = Fraction(2) ** unit
        assert reference.round_to(info, n, unit) == oracle.IEEE(dtype).round(n * scale)
        tie = 2 * (n >> 250) + 1  # up to 51 bits: half of them are no ties in float64, all the longer ones in float32
        assert reference.round_to(info, tie, unit) == oracle.IEEE(dtype).round(tie * scale)


@pytest.mark.parametrize("dtype", DTYPES)
def test_kahan_falls_back_to_naive_where_its_total_is_not_finite(dtype: type) -> None:
    big = float(np.finfo(dtype).max)
    image: Array = np.array([[big, 1.0], [big, 1.0], [-big, 1.0]], dtype).reshape(3, 1, 2)
    weight: Array = np.ones((1, 3, 1, 1), dtype)
    actual = reference.conv2d(image, weight, summation="kahan")
    assert_same_bits(actual, np.array([[[np.inf, 3.0]]], dtype))  # compensated, the first total would be a NaN


# ---- The arguments ----


@pytest.mark.parametrize(
    ("error", "message", "change"),
    [
        (TypeError, "input: dtype float16", {"input": np.ones((1, 2, 5, 5), np.float16)}),
        (TypeError, "weight: dtype float64", {"weight": np.ones((4, 2, 3, 3), np.float64)}),
        (TypeError, "bias: dtype int64", {"bias": np.ones(4, np.int64)}),
        (ValueError, "input: shape", {"input": np.ones((5, 5), np.float32)}),
        (ValueError, "weight: shape", {"weight": np.ones((4, 2, 3), np.float32)}),
        (ValueError, "weight: shape", {"weight": np.ones((4, 2, 0, 3), np.float32)}),
        (ValueError, "weight: kernel", {"weight": np.ones((4, 2, 6, 3), np.float32)}),
        (ValueError, "groups: 3", {"groups": 3}),
        (ValueError, "groups: 2", {"groups": 2}),
        (ValueError, "groups: 0", {"groups": 0}),
        (ValueError, "bias: shape", {"bias": np.ones(3, np.float32)}),
        (ValueError, "stride: 0", {"stride": 0}),
        (ValueError, "dilation: ", {"dilation": (1, 0)}),
        (ValueError, "padding: -1", {"padding": -1}),
        (ValueError, "padding: 'same'", {"padding": "same", "stride": 2}),
        (ValueError, "padding: 'full'", {"padding": "full"}),
    ],
)
def test_bad_arguments_are_named(error: type[Exception], message: str, change: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {
        "input": np.ones((1, 2, 5, 5), np.float32),
        "weight": np.ones((4, 2, 3, 3), np.float32),
        **change,
    }
    with pytest.raises(error, match=message):
        reference.conv2d(**arguments)


# ---- The makers of inputs ----


def test_the_generator_is_splitmix64() -> None:
    assert words(0, 3).tolist() == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_inputs_never_change() -> None:
    kinds = [(kind, dtype) for kind in KINDS for dtype in DTYPES]
    hashes = {(kind, np.dtype(dtype).name): sha256(made((16, 16, 16), dtype, 42, kind))[:16] for kind, dtype in kinds}
    assert hashes == {
        ("uniform", "float32"): "b73ee4d65e1a52d8",
        ("uniform", "float64"): "c60d23122528b7d9",
        ("small integers", "float32"): "5d883294e40cb006",
        ("small integers", "float64"): "00bca0344386a4bc",
        ("bfloat16", "float32"): "a64b250073f7517d",
        ("bfloat16", "float64"): "b432600e0a85c8dd",
        ("wide", "float32"): "8f5ae0949531a0ee",
        ("wide", "float64"): "de9dda5057e39a67",
        ("special", "float32"): "0a9ff5ebd8fd0798",
        ("special", "float64"): "d754e31e2eb8dff5",
        ("raw", "float32"): "247aad48a0f265f4",
        ("raw", "float64"): "525fb9221c7b17d0",
    }
