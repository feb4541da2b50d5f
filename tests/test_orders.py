"""Orders: explicit ones run as they are written, named ones are what their texts say, wrong ones are refused.

How a Summation reads and prints, whatever its order, is in test_summation.py.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import detconv
from bits import (
    DTYPES,
    LOOP_ORDERS,
    assert_consistent,
    assert_same_bits,
    explicit_orders,
    instruction_sets,
    layers,
    made,
    on_every_instruction_set,
)
from detconv import Summation, reference
from detconv.testing import instruction_set

# ---- Explicit orders ----


@st.composite
def orders_with_bias(draw: st.DrawFn, terms: int) -> str:
    """An explicit order in which the bias may stand anywhere, in any bracket: only a repeat would repeat it."""
    text = draw(explicit_orders(terms, bias=False))
    outside = [i for i in range(len(text) + 1) if text[:i].count("{") == text[:i].count("}")]
    starts = [i for i in outside if i < len(text) and text[i] != " " and (i == 0 or text[i - 1] in " [")]
    ends = [i for i in outside if i == len(text) or text[i] == "]"]
    at = draw(st.sampled_from(starts + ends))
    return text[:at] + (" bias" if at in ends else "bias ") + text[at:]


@settings(max_examples=400)
@given(st.data())
def test_explicit_orders_equal_the_reference(data: st.DataObject) -> None:
    layer = data.draw(layers())
    summation = Summation(order=data.draw(orders_with_bias(layer.terms)))
    expected = reference.conv2d(*layer.arrays, **layer.options, summation=summation)
    for name in instruction_sets():
        with instruction_set(name):
            actual = detconv.conv2d(*layer.arrays, **layer.options, summation=summation)
        assert_same_bits(actual, expected, (name, str(summation), layer))


@settings(max_examples=60)
@given(st.data(), st.sampled_from(DTYPES), st.sampled_from([100, 147, 288]))
def test_longer_explicit_orders_equal_the_reference(data: st.DataObject, dtype: type, terms: int) -> None:
    summation = Summation(order=data.draw(orders_with_bias(terms)))
    image, weight, bias = (made(shape, dtype, 1) for shape in [(terms, 2, 3), (3, terms, 1, 1), (3,)])
    actual = assert_consistent(
        on_every_instruction_set(lambda: detconv.conv2d(image, weight, bias, summation=summation), threads=(1, 2))
    )
    assert_same_bits(actual, reference.conv2d(image, weight, bias, summation=summation), str(summation))


def value(order: str, terms: list[tuple[float, float]], bias: float | None = None) -> float:
    """The sum of the products w*x in float32, which must be the same on every instruction set."""
    w, x = (np.array(factors, np.float32) for factors in zip(*terms, strict=True))
    results = set()
    for name in instruction_sets():
        with instruction_set(name):
            output = detconv.conv2d(
                x.reshape(-1, 1, 1),
                w.reshape(1, -1, 1, 1),
                None if bias is None else np.array([bias], np.float32),
                summation=Summation(order=order),
            )
        results.add(float(output.item()))
    assert len(results) == 1
    return results.pop()


@pytest.mark.parametrize(
    ("order", "lost"),
    [
        ("f0 f1 f2", True),
        ("f1 f2 f0", False),
        ("f0 [f1 f2]", False),
        ("f0 [f1] [f2]", True),
        ("[f0 f1] f2", True),
        ("[f1 f2] [f0]", False),
        ("d[f0 f1 f2]", False),
        ("d[f0 f1] f2", True),
        ("d[f0 [f1] [f2]]", False),
        ("3x(+1){f0}", True),
        ("3x(-1){f2}", False),
        ("f1 2x(-2){f2}", False),
    ],
)
def test_small_terms_are_lost_or_not_as_the_order_says(order: str, lost: bool) -> None:
    # 1 + 2^-24 is a tie and 1 is even. The bias takes the 1 off again, so that what is left is seen.
    terms = [(1.0, 1.0), (2.0**-24, 1.0), (1.0, 2.0**-24)]
    assert value(f"{order} bias", terms, bias=-1.0) == (0.0 if lost else 2.0**-23)


@pytest.mark.parametrize(
    ("order", "lost"),
    [
        ("f1 f0", False),
        ("m1 f0", False),
        ("f1 m0", True),
        ("f0 f1", True),
        ("d[f0 f1]", False),
        ("d[m0 f1]", True),
        ("d[f1 m0]", True),
        ("d[f1] f0", False),
        ("d[f0] f1", True),
    ],
)
def test_a_rounded_product_is_rounded_to_the_element_type(order: str, lost: bool) -> None:
    terms = [(1 + 2.0**-23, 1 + 2.0**-23), (1 + 2.0**-22, -1.0)]  # the first product is 1 + 2^-22 + 2^-46
    assert value(order, terms) == (0.0 if lost else 2.0**-46)


@pytest.mark.parametrize(
    ("order", "lost"),
    [
        ("f0 bias f1", True),
        ("f0 [bias f1]", False),
        ("[f0 bias] [f1]", True),
        ("f0 [f1] [bias]", True),
        ("[bias] f1 f0", False),
        ("d[f0 bias f1]", False),
        ("d[f0 bias] f1", True),
        ("d[f0] bias f1", True),
        ("d[f0] bias m1", True),
        ("d[f0] bias [f1]", True),
        ("d[f0] d[bias f1]", False),
    ],
)
def test_the_bias_enters_where_it_stands(order: str, lost: bool) -> None:
    # 1 + 2^-24 + 2^-24 again, the bias being one of them.
    assert value(order, [(1.0, 1.0), (2.0**-24, 1.0)], bias=2.0**-24) == (1.0 if lost else 1 + 2.0**-23)


@pytest.mark.parametrize(
    ("order", "overflows"),
    [("d[f0 f1 f2]", False), ("d[f0 f1] f2", False), ("d[f0] f1 f2", True), ("d[m0 f1 f2]", True), ("f0 f1 f2", True)],
)
def test_an_accumulator_in_double_reaches_beyond_float32(order: str, overflows: bool) -> None:
    terms = [(2.0**127, 2.0), (2.0**127, -1.5), (2.0**127, 0.25)]
    assert value(order, terms) == (np.inf if overflows else 0.75 * 2.0**127)


@given(st.data(), st.integers(1, 12))
def test_double_makes_no_difference_in_float64(data: st.DataObject, terms: int) -> None:
    order = data.draw(orders_with_bias(terms))
    image, weight, bias = (made(shape, np.float64, 1) for shape in [(terms, 2, 2), (2, terms, 1, 1), (2,)])
    by_order, by_plain_order = (
        detconv.conv2d(image, weight, bias, summation=Summation(order=text))
        for text in (order, order.replace("d[", "["))
    )
    assert_same_bits(by_order, by_plain_order, order)


@given(st.data(), st.integers(1, 9))
def test_the_bias_of_an_order_is_left_out_where_there_is_none(data: st.DataObject, terms: int) -> None:
    order = data.draw(orders_with_bias(terms))
    image, weight = (made(shape, np.float32, 1) for shape in [(terms, 2, 2), (2, terms, 1, 1)])
    without = order.replace("bias ", "").replace(" bias", "")
    assert_same_bits(
        detconv.conv2d(image, weight, summation=Summation(order=order)),
        detconv.conv2d(image, weight, summation=Summation(order=without)),
        order,
    )


@pytest.mark.parametrize("opening", ["[", "d[", "1x(+0){"])
def test_deep_nesting(opening: str) -> None:
    closing = "}" if opening.endswith("{") else "]"
    deep = opening * 64 + "f0" + closing * 64
    assert value(f"f1 {deep}", [(1.0, 2.0), (1.0, 3.0)]) == 5.0
    with pytest.raises(ValueError, match="nested deeper than 64"):
        Summation(order=opening + deep + closing)


def test_many_nodes() -> None:
    """Each of 4608 terms in an accumulator of its own, and all in a chain of 4608 different items."""
    image, weight, bias = (made(shape, np.float32, 1) for shape in [(512, 3, 3), (4, 512, 3, 3), (4,)])
    apart = "4608x(+1){[m0]} bias"
    chain = " ".join(f"m{k}" for k in range(4608)) + " bias"
    expected = detconv.conv2d(image, weight, bias, summation="naive products=rounded")
    for order in (apart, chain):
        assert_same_bits(detconv.conv2d(image, weight, bias, summation=Summation(order=order)), expected)


# ---- Named orders, spelt out ----


def chain(numbers: list[int], letter: str) -> str:
    return " ".join(f"{letter}{k}" for k in numbers)


def tree(parts: list[str]) -> str:
    """The items of a pairwise tree: the older part is the largest power of two that leaves a rest."""
    if len(parts) == 1:
        return parts[0]
    older = 2 ** ((len(parts) - 1).bit_length() - 1)
    return f"{tree(parts[:older])} [{tree(parts[older:])}]"


def spelt_out(summation: Summation, extents: tuple[int, int, int]) -> str:
    axes = [["c", "kh", "kw"].index(loop) for loop in summation.order.split(",")]
    numbers = np.arange(np.prod(extents)).reshape(extents).transpose(axes).ravel().tolist()
    letter = "f" if summation.products == "fused" or summation.method == "fp64" else "m"
    block = summation.block if summation.method == "pairwise" else len(numbers)
    items = tree([chain(numbers[k : k + block], letter) for k in range(0, len(numbers), block)])
    items = f"bias {items}" if summation.bias == "first" else f"{items} bias"
    return f"d[{items}]" if summation.method == "fp64" else items


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", ["naive", "fp64", *[f"pairwise block={b}" for b in (1, 2, 7, 8, 11, 13, 60, 64)]])
@pytest.mark.parametrize("order", LOOP_ORDERS)
def test_named_orders_equal_their_explicit_texts(order: str, method: str, dtype: type) -> None:
    extents = 5, 4, 3
    image, weight, bias = (made(shape, dtype, 3) for shape in [(2, 5, 6, 7), (4, *extents), (4,)])
    results = set()
    for fields in ("", "products=rounded", "bias=first", "products=rounded bias=first"):
        summation = Summation.parse(f"{method} order={order} {fields}")
        explicit = Summation(order=spelt_out(summation, extents))
        for some_bias in (bias, None):
            named, spelt = (detconv.conv2d(image, weight, some_bias, summation=rule) for rule in (summation, explicit))
            assert_same_bits(spelt, named, (str(summation), str(explicit)))
            results.add(named.tobytes())
    # Or else the data would not tell one summation from another.
    assert len(results) >= (2 if method == "fp64" else 3)


def test_repeats_say_the_same_in_fewer_words() -> None:
    image, weight, bias = (made(shape, np.float32, 3) for shape in [(16, 9, 9), (8, 16, 5, 5), (8,)])
    for named, text in {
        "naive order=kh,kw,c": "25x(+1){16x(+25){f0}} bias",
        "naive order=c,kw,kh products=rounded": "16x(+25){5x(+1){5x(+5){m0}}} bias",
        "naive order=kw,c,kh bias=first": "bias 5x(+1){16x(+25){5x(+5){f0}}}",
        "pairwise block=100": "100x(+1){f0} [100x(+1){f100}] [100x(+1){f200} [100x(+1){f300}]] bias",
        "fp64 order=kh,kw,c": "d[25x(+1){16x(+25){f0}} bias]",
    }.items():
        assert_same_bits(
            detconv.conv2d(image, weight, bias, summation=Summation(order=text)),
            detconv.conv2d(image, weight, bias, summation=named),
            named,
        )


# ---- Texts ----


@given(st.data(), st.integers(1, 30))
def test_texts_round_trip(data: st.DataObject, terms: int) -> None:
    text = data.draw(orders_with_bias(terms))
    summation = Summation(order=text)
    assert summation.order == text  # the strategy writes canonical texts
    assert Summation.parse(str(summation)) == summation
    free = " " + text.replace("[", "[ ").replace("]", "\t]").replace("{", " {\n").replace("x(", " x( ") + " "
    assert Summation(order=free) == summation


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ("f0 f1 f3 bias", "term 2 .*missing"),
        ("3x(+1){f0} bias", "term 3 .*missing"),
        ("f0 f1 f1 f2 f3 bias", "term 1 appears more than once"),
        ("4x(+1){f0} m2 bias", "term 2 appears more than once"),
        ("2x(+0){f0} f1 f2 f3 bias", "term 0 appears more than once"),
        ("f0 f1 f2 f3 f4 bias", "term 4 does not exist"),
        ("4x(-1){f2} bias", "term -1 does not exist"),
        ("5x(+1){f0} bias", "term 4 does not exist"),
        ("281474976710656x(+281474976710656){f0} bias", "281474976710656 copies"),
        ("2x(+281474976710656){2x(+281474976710656){f0}} bias", "term 281474976710656 does not exist"),
        ("4x(+1){f0}", 'no item "bias"'),
        ("bias 4x(+1){f0} bias", "bias appears more than once"),
        ("4x(+1){f0 bias}", "bias appears more than once"),
    ],
)
def test_an_order_that_does_not_fit_the_call_is_refused(order: str, message: str) -> None:
    image, weight, bias = (np.ones(shape, np.float32) for shape in [(1, 3, 3), (1, 1, 2, 2), (1,)])
    with pytest.raises(ValueError, match=f"order: .*{message}"):
        detconv.conv2d(image, weight, bias, summation=Summation(order=order))


@pytest.mark.parametrize(
    ("order", "column", "expected"),
    [
        ("f0 g1", 4, "expected an item"),
        ("f0 f", 5, "expected a number"),
        ("f-1", 2, "expected a number"),
        ("f0; f1", 3, "expected an item"),
        ("[f0 f1", 7, 'expected "]"'),
        ("f0 f1]", 6, "expected an item"),
        ("f0 [] f1", 5, "at least one item"),
        ("2x(+1){}", 8, "at least one item"),
        ("2x(+1){f0", 10, 'expected "}"'),
        ("2x(1){f0}", 4, 'expected "\\+" or "-"'),
        ("2x+1{f0}", 3, r'expected "\("'),
        ("2(+1){f0}", 2, 'expected "x"'),
        ("0x(+1){f0}", 2, "at least 1"),
        ("d{f0}", 1, "expected an item"),
        ("f0 bia 2x(+1){f1}", 4, "expected an item"),
        ("f99999999999999999999", 16, "too large"),
    ],
)
def test_syntax_errors_say_where(order: str, column: int, expected: str) -> None:
    with pytest.raises(ValueError, match=rf"^order: .*{expected}.* at column {column} of"):
        Summation(order=order)
