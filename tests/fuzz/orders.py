"""Texts of orders, right and wrong: refused in one short message, or the same text again and the reference's bits."""

from __future__ import annotations

import functools
import re

import numpy as np
from hypothesis import strategies as st

import detconv
from bits import assert_same_bits, explicit_orders, made
from detconv import Summation, reference
from detconv.revealing import texts, trees, words
from fuzz.refusals import tried

MOST_TERMS = 24
_TOKENS = ["f", "m", "f0", "m1", "f2", "f1 f0", "bias", "[", "d[", "]", "2x(+1){", "3x(-2){", "2x(+0){", "}", "x(", "("]
_TOKENS += [
    ")",
    "0",
    "+",
    "-",
    " ",
    "\t",
    "\n",
    ",",
    "c",
    "kh",
    "kw",
    "281474976710656",
    "9" * 30,
    "é",
    "\x00",
    "\ud800",
]
_NUMBER = re.compile(r"\d+")


@st.composite
def _changed(draw: st.DrawFn) -> str:
    """An order in which some characters are dropped, doubled or replaced."""
    text = draw(explicit_orders(draw(st.integers(1, MOST_TERMS)), draw(st.booleans())))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(text)))
        end = min(len(text), at + draw(st.integers(0, 6)))
        text = text[:at] + draw(st.sampled_from(["", text[at:end] * 2, *_TOKENS])) + text[end:]
    return text


EXAMPLES = _changed() | st.lists(st.sampled_from(_TOKENS), max_size=20).map("".join) | st.text(max_size=40)


def check(text: str) -> None:
    summation, message = tried(lambda: Summation(order=text), 500)
    if summation is None:
        column = re.match(r"order: .*? at column (\d+) of ", message, re.DOTALL)
        assert message.startswith("order")
        assert column is None or 1 <= int(column[1]) <= len(text) + 1
        return
    assert Summation(order=summation.order) == summation
    assert Summation.parse(str(summation)) == summation
    assert len(repr(summation)) < 500
    if summation.explicit_order:
        _check_sums(summation)


def _check_sums(summation: Summation) -> None:
    """Of as many terms as the order has, and of one more or less."""
    terms, biases, first, last = texts.reach(summation.order)
    numbers = [int(number) for number in _NUMBER.findall(summation.order)]
    for claimed in {max(terms, 1), last + 1, terms + 1}:
        assert len(words.in_words(summation.order, ("c", "kh", "kw"), (max(claimed, 1), 1, 1))) <= 400
        if not 1 <= claimed <= MOST_TERMS + 1 or terms > MOST_TERMS or biases > MOST_TERMS or max(numbers) > 64:
            continue
        x, w, b = (made(shape, np.float32, 1) for shape in [(claimed, 2, 2), (2, claimed, 1, 1), (2,)])
        actual, message = tried(functools.partial(detconv.conv2d, x, w, b, summation=summation), 500)
        fits = (terms, biases, first, last) == (claimed, 1, 0, claimed - 1)
        if actual is None:
            assert not fits or "more than once" in message
            continue
        assert fits
        assert_same_bits(actual, reference.conv2d(x, w, b, summation=summation), summation.order)
        canonical = trees.canonical(summation.order, claimed)
        assert trees.canonical(canonical, claimed) == canonical
