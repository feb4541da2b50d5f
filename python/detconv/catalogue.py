"""Summation orders known to be in use. ``catalogue.json`` holds them as data, each with the key of where it was found.

An entry's ``order`` is the text of a summation or, for convolutions of any size, a template of the order language:
``<16*T>`` stands for a number, with C the channels of a group, KH and KW the kernel's size, T = KH*KW its taps and K =
C*T the number of terms. A template does not apply where a number is no whole one or a count is less than 1; ``where``
narrows it further. Each was found by ``detconv.reveal``, or in the code that it names, by comparing all bits.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from importlib import resources
from itertools import permutations, product
from typing import Any, NamedTuple

from detconv.revealing.passes import Geometry, parts
from detconv.revealing.texts import nest_text
from detconv.revealing.trees import canonical
from detconv.summation import Summation

_HOLE = re.compile(r"<([^<>]*)>")
_OPERATION = re.compile(r"\d+|[A-Z]+|[-+*/%()]")


class KnownOrder(NamedTuple):
    """The text of a summation, for one size of kernel, and where such an order is in use."""

    summation: str
    found_in: str


@lru_cache(maxsize=1)
def entries() -> tuple[dict[str, Any], ...]:
    """The catalogue as it is in the file."""
    text = resources.files("detconv").joinpath("catalogue.json").read_text(encoding="utf-8")
    return tuple(json.loads(text))


def known_orders(channels: int, kernel_height: int, kernel_width: int, bias: bool = True) -> tuple[KnownOrder, ...]:
    """All known orders of sums over so many channels (of a group) and taps, the catalogue's own first.

    The last 24 are the nests of the three loops, with products fused or rounded and the bias first or last.
    """
    sizes = {"C": channels, "KH": kernel_height, "KW": kernel_width, "T": kernel_height * kernel_width}
    sizes["K"] = channels * sizes["T"]
    found = []
    for entry in entries():
        text = filled(entry["order"], sizes)
        if text is not None and _holds(entry.get("where", ""), sizes):
            if "{" in text:
                text = f'naive order="{canonical(text, sizes["K"], bias)}"'
            found.append(KnownOrder(text, entry["found_in"]))
    loops = [
        KnownOrder(f"naive order={','.join(loops)} products={products} bias={bias}", "a nest of loops")
        for loops, products, bias in product(permutations(("c", "kh", "kw")), ("fused", "rounded"), ("last", "first"))
    ]
    return (*found, *loops)


def hypotheses_for(geometry: Geometry) -> dict[str, str]:
    """The known orders of a convolution's sums, as texts of summations, and where each is in use.

    Chains are spelt out, and so are the same for all passes. Other methods are the forward pass's.
    """
    found: dict[str, str] = {}
    for part in parts(geometry):
        for order in known_orders(*part.extents, geometry.bias):
            summation = Summation.parse(order.summation)
            if summation.method == "naive" and not summation.explicit_order:
                axes = tuple(["c", "kh", "kw"].index(loop) for loop in summation.order.split(","))
                nest = nest_text(part.extents, axes, "f" if summation.products == "fused" else "m")
                text = f"bias {nest}" if summation.bias == "first" else f"{nest} bias"
                summation = Summation(order=canonical(text, part.terms, geometry.bias))
            elif summation.method != "naive" and (geometry.pass_ != "forward" or geometry.transposed):
                continue
            found.setdefault(str(summation), order.found_in)
    return found


def filled(template: str, sizes: Mapping[str, int]) -> str | None:
    """The template with its numbers filled in; None where one is no whole number, or no count."""
    try:
        text = _HOLE.sub(lambda hole: str(_value(hole[1], sizes)), template)
    except ValueError:
        return None
    counts = [int(count) for count in re.findall(r"(-?\d+)x\(", text)]
    return text if all(count >= 1 for count in counts) and "-" not in text.replace("(-", "(") else None


def _holds(condition: str, sizes: Mapping[str, int]) -> bool:
    """Such as "KW=5"; an empty condition holds."""
    if not condition:
        return True
    name, _, value = condition.partition("=")
    return sizes[name] == int(value)


def _value(expression: str, sizes: Mapping[str, int]) -> int:
    """The whole number that an expression of names, numbers, + - * / % and brackets is.

    Raises:
        ValueError: a division that leaves a rest, or no such expression.
    """
    tokens = _OPERATION.findall(expression)
    if "".join(tokens) != expression:
        raise ValueError(f"no expression: {expression!r}")
    value, rest = _sum(tokens, sizes)
    if rest:
        raise ValueError(f"no expression: {expression!r}")
    return value


def _sum(tokens: list[str], sizes: Mapping[str, int]) -> tuple[int, list[str]]:
    value, tokens = _term(tokens, sizes)
    while tokens and tokens[0] in "+-":
        other, rest = _term(tokens[1:], sizes)
        value, tokens = (value + other if tokens[0] == "+" else value - other), rest
    return value, tokens


def _term(tokens: list[str], sizes: Mapping[str, int]) -> tuple[int, list[str]]:
    value, tokens = _factor(tokens, sizes)
    while tokens and tokens[0] in "*/%":
        other, rest = _factor(tokens[1:], sizes)
        if tokens[0] == "*":
            value *= other
        elif tokens[0] == "%":
            value %= other
        elif value % other:
            raise ValueError("a division that leaves a rest")
        else:
            value //= other
        tokens = rest
    return value, tokens


def _factor(tokens: list[str], sizes: Mapping[str, int]) -> tuple[int, list[str]]:
    if not tokens:
        raise ValueError("the expression ends too early")
    if tokens[0] == "(":
        value, rest = _sum(tokens[1:], sizes)
        if rest[:1] != [")"]:
            raise ValueError("a bracket is not closed")
        return value, rest[1:]
    return (int(tokens[0]) if tokens[0].isdigit() else sizes[tokens[0]]), tokens[1:]


# For the layer of ``detconv demo``: 16 input channels and a kernel of 5 x 5; detconv's other methods are no one else's.
KNOWN_ORDERS: tuple[KnownOrder, ...] = tuple(o for o in known_orders(16, 5, 5) if o.summation.startswith("naive"))
