"""A summation tree as probes find it, and its one text in the order language.

The tree is unordered: additions commute. Its text is canonical, so that equal trees have equal texts:

* a chain runs along the larger child of each node (the one with the smaller term, if they are as large), so brackets
  nest no deeper than log2 of the number of terms;
* of two products that start a chain, the one that continues a progression comes first, else the smaller;
* copies are folded into loops, short periods first, from left to right.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from detconv.quoting import quoted
from detconv.revealing.texts import Node, parsed, reach

LONGEST_PERIOD = 512  # of items that repeat; a vector of 16 lanes with 32 accumulators


class NotExpressible(ValueError):
    """A tree that the order language has no text for."""


@dataclass
class Tree:
    """A binary tree of additions. Leaves are 0 ... terms - 1, and `terms` for the bias; inner nodes have larger
    numbers, children before parents."""

    terms: int
    children: dict[int, tuple[int, int]]
    root: int
    fused: set[int] = field(default_factory=set)  # leaves whose product enters unrounded
    wide: set[int] = field(default_factory=set)  # inner nodes that are handed on in double

    def is_leaf(self, node: int) -> bool:
        return node <= self.terms

    def one_leaf_of_each(self) -> dict[int, int]:
        """For each node, a leaf below it."""
        found: dict[int, int] = {}
        for node, (a, _) in self.children.items():
            found[node] = a if self.is_leaf(a) else found[a]
        return found

    def text(self) -> str:
        """The tree's canonical text, with a chain of the terms that it lacks at the end.

        Raises:
            NotExpressible: a sum in double has a part that is rounded on the way.
        """
        return _Writer(self).text()


def tree_of(order: str, terms: int, bias: bool = True) -> Tree:
    """The tree that a text in the order language describes, for float32; without bias, its item is passed over.

    Raises:
        ValueError: the text has more items than so many terms and a bias.
    """
    counted, biases, *_ = reach(order)
    if counted > terms or biases > 1:
        raise ValueError(f"order: {quoted(counted)} terms and {quoted(biases)} biases are more than {terms} and 1")
    children: dict[int, tuple[int, int]] = {}
    fused: set[int] = set()
    wide: set[int] = set()

    def chain(items: tuple[Node, ...], shift: int, doubles: bool, current: int | None) -> int | None:
        for item in items:
            match item.kind:
                case "x":
                    for copy in range(item.number):
                        current = chain(item.inner, shift + copy * item.step, doubles, current)
                    continue
                case "[" | "d[":
                    inner_doubles = doubles or item.kind == "d["
                    inner = chain(item.inner, shift, inner_doubles, None)
                    if inner is None:  # of a bias that is not there
                        continue
                    added = inner
                    if inner_doubles and not doubles:  # rounded at its end
                        wide.discard(added)
                        if added < terms:
                            fused.discard(added)
                case "bias":
                    if not bias:
                        continue
                    added = terms
                case _:
                    added = item.number + shift
                    if item.kind == "f" and (current is not None or doubles):
                        fused.add(added)
            if current is None:
                current = added
                continue
            node = terms + 1 + len(children)
            children[node] = (current, added)
            if doubles:
                wide.add(node)
            current = node
        return current

    root = chain(parsed(order), 0, False, None)
    assert root is not None
    return Tree(terms, children, root, fused, wide)


def canonical(order: str, terms: int, bias: bool = True) -> str:
    """The text that all orders of the same tree share: the one that ``reveal`` gives."""
    return tree_of(order, terms, bias).text()


Item = tuple[int, int]  # a shape, and the number of its first term

_BIAS = 0


class _Shapes:
    """Items without their first term's number, each known by a number: equal shapes have equal numbers."""

    def __init__(self) -> None:
        self.known: dict[Any, int] = {("bias",): _BIAS}
        self.keys: list[Any] = [("bias",)]
        self.raw: dict[int, tuple[Item, ...]] = {}  # of brackets: the items before loops were folded
        self.with_bias: set[int] = {_BIAS}

    def number(self, key: Any, inner: tuple[Item, ...] = ()) -> int:
        found = self.known.get(key)
        if found is None:
            found = self.known[key] = len(self.keys)
            self.keys.append(key)
            if any(shape in self.with_bias for shape, _ in inner):
                self.with_bias.add(found)
        return found

    def relative(self, items: list[Item]) -> tuple[tuple[Item, ...], int]:
        first = next((base for shape, base in items if shape != _BIAS), 0)
        return tuple((shape, 0 if shape == _BIAS else base - first) for shape, base in items), first

    def bracket(self, items: list[Item], wide: bool) -> Item:
        raw, first = self.relative(items)
        inner, _ = self.relative(self.folded(items))
        shape = self.number(("d[" if wide else "[", inner), inner)
        self.raw[shape] = raw
        return shape, first

    # ---- Loops ----

    def folded(self, items: list[Item]) -> list[Item]:
        """The items with copies folded into loops, until no loop is left to find."""
        period = 1
        while 2 * period <= len(items) and period <= LONGEST_PERIOD:
            shorter = self._fold(items, period)
            if len(shorter) < len(items):
                items, period = shorter, 1
            else:
                period += 1
        return items

    def _fold(self, items: list[Item], period: int) -> list[Item]:
        shapes, bases = np.array(items, np.int64).T
        same = shapes[period:] == shapes[:-period]
        if not same.any():
            return items
        for shape in self.with_bias:
            same &= shapes[period:] != shape
        step = bases[period:] - bases[:-period]
        breaks = np.flatnonzero((same[1:] != same[:-1]) | (step[1:] != step[:-1])) + 1
        starts, stops = np.r_[0, breaks], np.r_[breaks, len(same)]
        out: list[Item] = []
        done = 0
        for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
            start = max(start, done)
            copies = (stop - start) // period + 1 if stop > start else 1
            if copies < 2 or not same[start]:
                continue
            if copies == 2 and period == 1 and self.keys[items[start][0]] in (("f",), ("m",)):
                continue  # two terms in a row read better as they are
            out += items[done:start]
            body, first = self.relative(items[start : start + period])
            out.append((self.number(("x", copies, int(step[start]), body), body), first))
            done = start + copies * period
        return out + items[done:]

    # ---- Text ----

    def write(self, items: list[Item]) -> str:
        return " ".join(self._write(shape, base) for shape, base in items)

    def _write(self, shape: int, base: int) -> str:
        match self.keys[shape]:
            case ("bias",):
                return "bias"
            case ("f" | "m" as letter,):
                return f"{letter!s}{base}"
            case ("x", copies, step, inner):
                return f"{copies}x({step:+d})" + "{" + self.write([(s, base + b) for s, b in inner]) + "}"
            case (bracket, inner):
                return str(bracket) + self.write([(s, base + b) for s, b in inner]) + "]"
        raise AssertionError(shape)


class _Writer:
    def __init__(self, tree: Tree) -> None:
        self.tree, self.shapes = tree, _Shapes()
        self.fused, self.rounded = self.shapes.number(("f",)), self.shapes.number(("m",))

    def leaf(self, leaf: int) -> Item:
        if leaf == self.tree.terms:
            return _BIAS, 0
        return (self.fused if leaf in self.tree.fused else self.rounded), leaf

    def text(self) -> str:
        tree = self.tree
        wide = self._doubles()
        sizes: dict[int, tuple[int, int]] = {}  # leaves below, and minus the smallest of them
        chains: dict[int, list[Item]] = {}
        for node, (a, b) in tree.children.items():
            for child in (a, b):
                if tree.is_leaf(child):
                    sizes[child] = 1, -child
                elif node in wide and child not in tree.wide:
                    raise NotExpressible("a sum in double has a part that is rounded on the way")
            sizes[node] = sizes[a][0] + sizes[b][0], max(sizes[a][1], sizes[b][1])
            if sizes[a] < sizes[b]:
                a, b = b, a
            if tree.is_leaf(a):
                chains[node] = [self.leaf(a), self.leaf(b)]
                continue
            chain = chains.pop(a)
            if a in wide and node not in wide:
                chain = [self.shapes.bracket(self.headed(chain, True), True)]
            if tree.is_leaf(b):
                chain.append(self.leaf(b))
            else:
                chain.append(self.shapes.bracket(self.headed(chains.pop(b), b in wide), b in wide and node not in wide))
            chains[node] = chain
        if tree.is_leaf(tree.root):
            items = [self.leaf(tree.root)]
        else:
            items = self.headed(chains[tree.root], tree.root in wide)
            if tree.root in wide:
                items = [self.shapes.bracket(items, True)]
        missing = sorted(set(range(tree.terms)) - set(sizes) - {tree.root})
        if missing:
            items.append(self.shapes.bracket([(self.fused, k) for k in missing], False))
        return self.shapes.write(self.shapes.folded(items))

    def _doubles(self) -> set[int]:
        """The nodes whose addition is one of doubles."""
        tree, found = self.tree, set()
        for node, (a, b) in tree.children.items():
            both_exact = a in tree.fused and b in tree.fused
            if node in tree.wide or a in tree.wide or b in tree.wide or both_exact:
                found.add(node)
        return found

    def headed(self, chain: list[Item], wide: bool) -> list[Item]:
        """A whole chain with its first items in their canonical form."""
        first, second = chain[0], chain[1]
        if second[0] == _BIAS and self._is_leaf(first):
            chain[:2] = [second, first]  # nothing else can come of it than the product, added to the bias
        elif self._is_leaf(first) and self._is_leaf(second):
            either = wide or second[0] == first[0]  # else the product that is rounded starts the chain
            if self._reversed(chain) if either else first[0] == self.fused:
                chain[:2] = [second, first]
        if self._is_leaf(chain[0]) and not wide:
            # The first product is rounded in any case: let it read as those that follow.
            letter = next((s for s, _ in chain[1:] if s in (self.fused, self.rounded)), self.rounded)
            chain[0] = letter, chain[0][1]
        return self._head_bracketed(chain, wide)

    def _is_leaf(self, item: Item) -> bool:
        return item[0] in (self.fused, self.rounded)

    def _reversed(self, chain: list[Item]) -> bool:
        first, second = chain[0][1], chain[1][1]
        third = chain[2][1] if len(chain) > 2 and self._is_leaf(chain[2]) else None
        if third is not None and third - second == second - first:
            return False
        if third is not None and third - first == first - second:
            return True
        return second < first

    def _head_bracketed(self, chain: list[Item], wide: bool) -> list[Item]:
        """[E] [E'] in place of E [E'], where E' is a copy of E: a loop can then hold both."""
        at = 0
        while at < len(chain):
            raw = self.shapes.raw.get(chain[at][0])
            if raw is not None and len(raw) == at and self.shapes.keys[chain[at][0]][0] == "[":
                head, _ = self.shapes.relative(chain[:at])
                if head == raw and not any(shape in self.shapes.with_bias for shape, _ in head):
                    chain = [self.shapes.bracket(chain[:at], False), *chain[at:]]
                    at = 0
            at += 1
        return chain
