"""Summations: their text, their checks, and that they behave as values."""

import copy
import dataclasses
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import detconv
from bits import METHODS, assert_same_bits, explicit_orders, made, summations
from detconv import Summation, _core

BIAS_LAST = "25x(+1){16x(+25){f0}} bias"


def test_the_engine_has_exactly_these_methods() -> None:
    assert _core.methods() == METHODS


@pytest.mark.parametrize(
    ("summation", "text"),
    [
        (Summation(), "pairwise"),
        (Summation("exact"), "exact"),
        (Summation("pairwise", block=16), "pairwise block=16"),
        (Summation("naive", "kh,kw,c", "rounded"), "naive order=kh,kw,c products=rounded"),
        (Summation("kahan", bias="first", samples="sequence"), "kahan bias=first samples=sequence"),
        (Summation("naive", BIAS_LAST), f'naive order="{BIAS_LAST}"'),
        (Summation(order="f0"), "naive order=f0"),
    ],
)
def test_text(summation: Summation, text: str) -> None:
    assert str(summation) == text
    assert Summation.parse(text) == summation


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("order=kh,kw,c products=rounded naive", "naive order=kh,kw,c products=rounded"),
        ("  kahan\tbias=last\n", "kahan"),
        ("block=32", "pairwise block=32"),
        ('method="fp64" order="kw, kh, c"', "fp64 order=kw,kh,c"),
        ('naive order=" f1   m0 "', 'naive order="f1 m0"'),
        ('order="f1 [m0]"', 'naive order="f1 [m0]"'),
    ],
)
def test_text_is_read_freely_and_written_in_one_way(text: str, canonical: str) -> None:
    assert str(Summation.parse(text)) == canonical


@given(summations() | st.integers(1, 9).flatmap(lambda k: explicit_orders(k, True)).map('naive order="{}"'.format))
def test_text_round_trips(text: str) -> None:
    summation = Summation.parse(text)
    again = Summation.parse(str(summation))
    assert again == summation
    assert hash(again) == hash(summation)
    assert str(again) == str(summation)
    assert eval(repr(summation)) == summation


@pytest.mark.parametrize(
    ("text", "column", "what"),
    [
        ("", 1, "empty"),
        ("  \n", 1, "empty"),
        ("nave", 1, "method"),
        ("bias=last  nave", 12, "method"),
        ("naive kahan", 7, "method is given twice"),
        ("exact bias=first bias=last", 18, "bias is given twice"),
        ("naive order=f0 f1", 16, "double quotes"),
        ("naive blok=3", 7, "blok"),
        ("naive order=", 7, "name=value"),
        ("naive = kahan", 7, "name=value"),
        ('naive order="f0 f1', 7, "name=value"),
        ('naive order="f0"f1', 7, "name=value"),
        ("naive products=round", 16, "products"),
        ("naive bias=frist", 12, "bias"),
        ("exact samples=forest", 15, "samples"),
        ("naive order=kh,kw,n", 13, "order"),
        ('naive order="f0 q1"', 17, "order"),
        ("naive order=f0[", 16, "order"),
        ("block=0", 7, "block"),
        ("block=-1", 7, "block"),
        ("block=64.0", 7, "block"),
        ("block=2147483648", 7, "block"),
        ("naive block=16", 13, "block"),
    ],
)
def test_errors_in_a_text_say_where(text: str, column: int, what: str) -> None:
    with pytest.raises(ValueError, match=rf"^summation, column {column}: .*{what}"):
        Summation.parse(text)


@pytest.mark.parametrize(
    ("fields", "argument"),
    [
        ({"method": "sum"}, "method"),
        ({"order": "c,kh"}, "order"),
        ({"order": "c,kh,kh"}, "order"),
        ({"order": ""}, "order"),
        ({"order": "f0 f"}, "order"),
        ({"products": "exact"}, "products"),
        ({"bias": "none"}, "bias"),
        ({"samples": ""}, "samples"),
        ({"block": 0}, "block"),
        ({"block": 2**31}, "block"),
        ({"block": 10**400}, "block"),
        ({"method": "exact", "block": 16}, "block"),
        ({"method": "kahan", "order": "f0"}, "method"),
        ({"order": "f0", "products": "rounded"}, "products"),
        ({"order": "f0", "bias": "first"}, "bias"),
        ({"order": "f0", "block": 16}, "block"),
    ],
)
def test_wrong_values_are_refused(fields: dict[str, object], argument: str) -> None:
    with pytest.raises(ValueError, match=argument):
        Summation(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value"),
    [("method", None), ("order", ("c", "kh", "kw")), ("products", True), ("bias", 0), ("samples", b"tree")]
    + [("block", value) for value in (True, 64.0, "64", None)],
)
def test_wrong_types_are_refused(field: str, value: object) -> None:
    with pytest.raises(TypeError, match=rf"^{field} must be .*{type(value).__name__}"):
        Summation(**{field: value})  # type: ignore[arg-type]


def test_values() -> None:
    summation = Summation("naive", BIAS_LAST)
    for same in (
        copy.copy(summation),
        copy.deepcopy(summation),
        pickle.loads(pickle.dumps(summation)),
        dataclasses.replace(summation),
        Summation(**dataclasses.asdict(summation)),
        Summation(order=f"  {BIAS_LAST} "),
    ):
        assert same == summation
        assert hash(same) == hash(summation)
    assert dataclasses.replace(summation, order="c,kh,kw") == Summation("naive")
    assert Summation("naive") != Summation("kahan")
    assert Summation(block=np.int64(16)) == Summation(block=16)
    assert type(Summation(block=np.int64(16)).block) is int
    with pytest.raises(dataclasses.FrozenInstanceError):
        summation.method = "kahan"  # type: ignore[misc]


def test_explicit_order_fixes_the_method() -> None:
    assert Summation(order=BIAS_LAST).method == "naive"
    assert Summation(order=BIAS_LAST).explicit_order
    assert not Summation(order="kh,kw,c").explicit_order


def test_of() -> None:
    summation = Summation("exact")
    assert Summation.of(summation) is summation
    assert Summation.of("exact") == summation
    assert Summation.of("exact") is Summation.of("exact")  # parsed once
    for wrong in (None, 3, b"exact", Summation):
        with pytest.raises(TypeError, match=r"^summation must be"):
            Summation.of(wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^text must be a str"):
        Summation.parse(summation)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["naive order=kw,c,kh products=rounded", "exact", 'naive order="18x(-1){m17} bias"'])
def test_a_text_serves_as_a_summation(text: str) -> None:
    arrays = [made(shape, np.float32, seed) for seed, shape in enumerate([(1, 2, 5, 5), (3, 2, 3, 3), (3,)])]
    by_text = detconv.conv2d(*arrays, summation=text)
    assert_same_bits(by_text, detconv.conv2d(*arrays, summation=Summation.parse(text)))
    assert_same_bits(by_text, detconv.reference.conv2d(*arrays, summation=text))


@pytest.mark.parametrize("wrong", [None, 3, ("naive",)])
def test_conv2d_refuses_what_is_no_summation(wrong: object) -> None:
    array = np.ones((1, 1, 1, 1), np.float32)
    with pytest.raises(TypeError, match=r"^summation must be"):
        detconv.conv2d(array, array, summation=wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^summation, column 1: method"):
        detconv.conv2d(array, array, summation="nave")
