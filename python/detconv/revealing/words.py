"""An order in words: which loops, in which sequence, fused or rounded, where the bias enters."""

from __future__ import annotations

import math
from itertools import permutations

from detconv.quoting import shortened
from detconv.revealing.texts import Node, nest_text, parsed
from detconv.revealing.trees import canonical
from detconv.summation import Summation

_LONGEST_WORDS = 400
_LONGEST_READ = 2**16  # characters of an order that is put into words


def loops_as_order(order: str, loops: tuple[str, str, str], extents: tuple[int, int, int]) -> str | None:
    """The name of the loop nest that a canonical order is, such as ``naive order=kh,kw,c bias=first``; or None."""
    if loops != ("c", "kh", "kw") or "[" in order or len(order) > 200:  # three loops and a bias are shorter
        return None
    letter = "f" if "f" in order else "m"
    bias = "first" if order.startswith("bias") else "last"
    for sequence in permutations(range(3)):
        nest = nest_text(extents, sequence, letter)
        text = f"bias {nest}" if bias == "first" else f"{nest} bias"
        if math.prod(extents) <= 2:  # two items that commute have one text, whichever was first
            text = canonical(text, math.prod(extents), "bias" in order)
        if text in (order, f"{order} bias"):
            names = ",".join(loops[axis] for axis in sequence)
            return str(Summation("naive", order=names, products="fused" if letter == "f" else "rounded", bias=bias))
    return None


_NAMES = {"c": "channels", "o": "output channels", "n": "samples", "oh": "rows of pixels", "ow": "pixels of a row"}


def in_words(order: str, loops: tuple[str, str, str], extents: tuple[int, int, int]) -> str:
    """Such as "kh, kw, channels in sequence, fused, bias last"; at most 400 characters."""
    if len(order) > _LONGEST_READ:
        return f"{math.prod(extents)} products, in an order whose text has {len(order)} characters"
    return shortened(_in_words(order, loops, extents), _LONGEST_WORDS)


def _in_words(order: str, loops: tuple[str, str, str], extents: tuple[int, int, int]) -> str:
    items = parsed(order)
    chain = list(items)
    doubles = len(chain) == 1 and chain[0].kind == "d["
    if doubles:
        chain = list(chain[0].inner)
    said = []
    places = [i for i, node in enumerate(chain) if node.kind == "bias"]
    body = [node for node in chain if node.kind != "bias"]
    said.append("; then ".join(_run(node, loops, extents) for node in _grouped(body)))
    letters = {term.kind for node in items for term in node.terms()}
    said.append({"f": "fused", "m": "products rounded"}.get("".join(letters), "some products fused, some rounded"))
    if doubles:
        said.append("in double")
    elif any(_has(node, "d[") for node in items):
        said.append("some partial sums in double")
    if places:
        last = places[0] == len(chain) - 1
        said.append("bias last" if last else "bias first" if places[0] == 0 else f"bias after part {places[0]}")
    elif any(_has(node, "bias") for node in items):
        said.append("bias inside")
    return ", ".join(said)


def _grouped(body: list[Node]) -> list[Node]:
    """Runs of single items as one, so that a long list stays short in words."""
    if len(body) <= 6:
        return body
    return [Node("[", inner=tuple(body))]


def _has(node: Node, kind: str) -> bool:
    return node.kind == kind or any(_has(inner, kind) for inner in node.inner)


def _run(node: Node, loops: tuple[str, str, str], extents: tuple[int, int, int]) -> str:
    names = []
    at = node
    while at.kind == "x" and len(at.inner) == 1:
        names.append(_loop(at, loops, extents))
        at = at.inner[0]
    if at.kind in ("f", "m"):
        return ", ".join(names) + " in sequence" if names else f"product {at.number}"
    before = f"for {', '.join(names)}: " if names else ""
    if at.kind in ("[", "d[") and all(inner.kind in ("f", "m", "x") for inner in at.inner):
        inside = [_run(inner, loops, extents) for inner in at.inner]
        if len(inside) == 1 and inside[0].startswith(f"{at.count} products"):
            return f"{before}a partial sum of {inside[0]}"
        if len(inside) <= 3:
            return f"{before}a partial sum of {at.count} products ({'; '.join(inside)})"
        return f"{before}a partial sum of {at.count} products"
    return f"{before}a tree of {at.count} products"


def _loop(node: Node, loops: tuple[str, str, str], extents: tuple[int, int, int]) -> str:
    """Which axes a loop runs over, by its step: all of them, or some elements of one."""
    strides, step = (extents[1] * extents[2], extents[2], 1), abs(node.step)
    backwards = " backwards" if node.step < 0 else ""
    for first in range(3):
        for last in range(first, 3):
            if step == strides[last] and node.number * step == strides[first] * extents[first]:
                axes = [axis for axis in range(first, last + 1) if extents[axis] > 1]
                return ", ".join(_NAMES.get(loops[axis], loops[axis]) for axis in axes) + backwards
    for axis in range(3):
        if extents[axis] > 1 and step % strides[axis] == 0 and node.number * step <= strides[axis] * extents[axis]:
            each = step // strides[axis]
            name = _NAMES.get(loops[axis], loops[axis])
            return (f"{node.number} {name}" if each == 1 else f"{node.number} blocks of {each} {name}") + backwards
    if step == 1 and node.number < strides[0] and loops[0] != "n":
        return f"{node.number} taps{backwards}"
    return f"{node.number} products" + (f" in steps of {node.step}" if node.step != 1 else "")
