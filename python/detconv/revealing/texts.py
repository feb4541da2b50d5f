"""The order language in Python: texts read into nodes, and the texts of loop nests."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_TOKEN = re.compile(
    r"(?P<term>[fm])(?P<number>\d+)|(?P<bias>bias)|(?P<open>d?\[)|"
    r"(?P<copies>\d+)x\((?P<step>[+-]\d+)\)\{|[\]}]"
)


@dataclass(frozen=True)
class Node:
    """An item of the order language: kind is "f", "m", "bias", "[", "d[", or "x" for copies."""

    kind: str
    number: int = 0  # of the term, or of copies
    step: int = 0
    inner: tuple[Node, ...] = ()

    def terms(self) -> Iterator[Node]:
        """The terms inside, each once for all its copies."""
        if self.kind in "fm":
            yield self
        for node in self.inner:
            yield from node.terms()

    @property
    def count(self) -> int:
        """How many terms there are inside, copies counted."""
        own = self.number if self.kind == "x" else 1
        return 1 if self.kind in "fm" else own * sum(node.count for node in self.inner)


def parsed(order: str) -> tuple[Node, ...]:
    """The items of a text that ``Summation`` takes."""
    stack: list[tuple[str, int, int, list[Node]]] = [("[", 0, 0, [])]
    for token in _TOKEN.finditer(order):
        match token.lastgroup:
            case "number":
                stack[-1][3].append(Node(token["term"], int(token["number"])))
            case "bias":
                stack[-1][3].append(Node("bias"))
            case "open":
                stack.append((token["open"], 0, 0, []))
            case "step":
                stack.append(("x", int(token["copies"]), int(token["step"]), []))
            case _:
                kind, number, step, inner = stack.pop()
                stack[-1][3].append(Node(kind, number, step, tuple(inner)))
    return tuple(stack[0][3])


def reach(order: str) -> tuple[int, int, int, int]:
    """How many terms and how often the bias an order has, and the smallest and the largest number of a term.

    It takes the time of reading the text, however many copies that asks for. 0, biases, 0, 0 where there is no term.
    """
    # Terms, biases, the smallest and the largest number so far; then the copies and the step of the bracket.
    stack: list[tuple[int, int, int, int, int, int]] = []
    terms = biases = first = last = 0
    for token in _TOKEN.finditer(order):
        match token.lastgroup:
            case "number":
                number = int(token["number"])
                first, last = (min(first, number), max(last, number)) if terms else (number, number)
                terms += 1
            case "bias":
                biases += 1
            case "open" | "step":
                copies, step = (int(token["copies"]), int(token["step"])) if token["copies"] else (1, 0)
                stack.append((terms, biases, first, last, copies, step))
                terms = biases = first = last = 0
            case _:
                before, its, lowest, highest, copies, step = stack.pop()
                reached = (copies - 1) * step
                first, last = first + min(reached, 0), last + max(reached, 0)
                if before:
                    first, last = (min(first, lowest), max(last, highest)) if terms else (lowest, highest)
                terms, biases = before + copies * terms, its + copies * biases
    return terms, biases, first, last


def nest_text(extents: tuple[int, int, int], sequence: tuple[int, ...], letter: str = "f") -> str:
    """Loops over the terms' axes, outermost first, as canonical text: loops that continue each other are one."""
    strides = (extents[1] * extents[2], extents[2], 1)
    nest: list[list[int]] = []  # copies and stride, outermost first
    for axis in sequence:
        if extents[axis] == 1:
            continue
        if nest and nest[-1][1] == extents[axis] * strides[axis]:
            nest[-1] = [nest[-1][0] * extents[axis], strides[axis]]
        else:
            nest.append([extents[axis], strides[axis]])
    text = f"{letter}0"
    for copies, stride in reversed(nest):
        pair = copies == 2 and text == f"{letter}0"  # two terms in a row read better as they are
        text = f"{letter}0 {letter}{stride}" if pair else f"{copies}x({stride:+d}){{{text}}}"
    return text
