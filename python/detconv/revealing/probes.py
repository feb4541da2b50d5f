"""Numeric probes of a sum: which tree, which products are fused, which partial sums are kept in double.

The tree is found as FPRev finds that of a sum or a matrix product (Xie, Gao, Jia, USENIX ATC 2025): with M at one leaf,
-M at another and 1 at all others, M absorbs what is added before the two meet, so the result counts the leaves outside
their lowest common ancestor. Here the leaves are the products of one output and its bias; the probes lie in the panel,
the image is all ones, and each row carries a probe of its own.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from detconv.revealing.box import Box, aligned
from detconv.revealing.passes import Array, Geometry, Part
from detconv.revealing.trees import Tree

BIG = 2.0**100  # absorbs any count of ones, in double too
PRECISION = {"float32": 24, "float64": 53}
Position = tuple[int, int, int]  # (n, p, q) of a part's output


class NotATree(Exception):
    """No tree of additions answers the probes so."""


class Prober:
    """Probes one output position of one part; slots: the rows that are known to add in one order."""

    def __init__(
        self, box: Box, geometry: Geometry, part: Part, position: Position, slots: Array, say: Callable[[str], None]
    ) -> None:
        self.box, self.geometry, self.part, self.position, self.slots = box, geometry, part, position, slots
        self.say = say
        taps = part.valid_taps(part.image(np.broadcast_to(np.float32(0), geometry.image_shape)).shape[2:])
        valid = np.zeros(part.extents, bool)
        valid[:] = taps[0][position[1]][:, None] & taps[1][position[2]]
        leaves = np.flatnonzero(valid.ravel())
        self.leaves = np.append(leaves, part.terms) if geometry.bias else leaves
        self.width = part.terms + geometry.bias
        self.images: dict[float, Array] = {}

    def image(self, value: float) -> Array:
        if value not in self.images:
            self.images[value] = aligned(self.geometry.image_shape, self.geometry.dtype)
            self.images[value][...] = value
        return self.images[value]

    def run(self, number: int, fill: Callable[[Array, slice], None], value: float = 1.0) -> Array:
        """The outputs for so many probes, each (width,): the panel's values and the bias's; the image is all `value`.

        fill(probes, which): writes the probes of a slice into zeros. All of them at once would be a matrix of terms
        by terms.
        """
        found, size = [], len(self.slots)
        for start in range(0, number, size):
            which = slice(start, min(start + size, number))
            slots = self.slots[: which.stop - start]
            some = np.zeros((len(slots), self.width), self.geometry.dtype)
            fill(some, which)
            rows = np.zeros((self.part.rows, self.width), self.geometry.dtype)
            rows[slots] = some
            found.append(self.outputs(rows, self.image(value))[slots])
        return np.concatenate(found).astype(np.float64)

    def outputs(self, rows: Array, image: Array) -> Array:
        """What every row gives at the position; rows (rows, width)."""
        panel = aligned(self.geometry.panel_shape, self.geometry.dtype)
        panel[...] = self.part.spread(rows[:, : self.part.terms].reshape(-1, *self.part.extents))
        bias = None
        if self.geometry.bias:
            bias = aligned((self.part.rows,), self.geometry.dtype)
            bias[...] = rows[:, self.part.terms]
        n, p, q = self.position
        result: Array = self.part.select(self.box(self.geometry, image, panel, bias))[n, :, p, q]
        return result

    # ---- The tree ----

    def sizes(self, pairs: Array) -> Array:
        """How many leaves lie under the lowest common ancestor of each pair; pairs (number, 2)."""

        def fill(probes: Array, which: slice) -> None:
            probes[:, self.leaves] = 1
            at = np.arange(len(probes))
            probes[at, pairs[which, 0]], probes[at, pairs[which, 1]] = BIG, -BIG

        left = self.run(len(pairs), fill)
        counts = (left >= 0) & (left <= len(self.leaves) - 2) & (left == np.round(left))
        if not counts.all():
            raise NotATree(f"a probe that counts terms gave {left[~counts][0]:g}")
        return len(self.leaves) - left.astype(np.int64)

    def tree(self, random: np.random.Generator) -> Tree:
        """The tree of the position's leaves, products and widths not yet known.

        Breadth first: a pivot of each set against all others of it; those of equal size meet the pivot at one node.
        """
        sets = [self.leaves]
        found: list[tuple[int, list[int]]] = [(0, [])]
        draw, todo = [False], [0]
        while todo:
            pairs, spans = [], []
            for s in todo:
                members = sets[s]
                pivot = int(random.choice(members)) if draw[s] else int(members[0])
                others = members[members != pivot]
                found[s] = (pivot, [])
                if len(others):
                    spans.append((s, others))
                    pairs.append(np.stack([np.full_like(others, pivot), others], axis=1))
            if not pairs:
                break
            self.say(f"tree: {sum(map(len, pairs))} probes")
            sizes, at, todo = self.sizes(np.concatenate(pairs)), 0, []
            for s, others in spans:
                own, at = sizes[at : at + len(others)], at + len(others)
                order = np.argsort(own, kind="stable")
                levels = np.flatnonzero(np.diff(own[order])) + 1
                below = 1
                for group in np.split(order, levels):
                    below += len(group)
                    if own[group[0]] != below:
                        raise NotATree(f"{below} terms meet where a probe counts {own[group[0]]}")
                    sets.append(np.sort(others[group]))
                    found.append((0, []))
                    # The first term is the best pivot of a chain; where it separates little, the next is drawn.
                    draw.append(2 * len(group) > len(others))
                    found[s][1].append(len(sets) - 1)
                    todo.append(len(sets) - 1)
        return self._assembled(found)

    def _assembled(self, found: list[tuple[int, list[int]]]) -> Tree:
        children: dict[int, tuple[int, int]] = {}
        roots: dict[int, int] = {}
        for s in range(len(found) - 1, -1, -1):
            root, smaller = found[s]
            for child in smaller:
                node = self.part.terms + 1 + len(children)
                children[node] = (root, roots[child])
                root = node
            roots[s] = root
        return Tree(self.part.terms, children, roots[0])

    # ---- Products and widths ----

    def find_products(self, tree: Tree) -> None:
        """Which leaves enter by one fused multiply-add.

        3 * (2^(p-1) + 1) has p + 2 bits, its last a 1: against -3 * 2^(p-1) it leaves 3 if unrounded, and 4 if rounded.
        """
        below, half = tree.one_leaf_of_each(), 2.0 ** (PRECISION[self.geometry.dtype] - 1)
        against = {}
        for a, b in tree.children.values():
            for leaf, other in ((a, b), (b, a)):
                if leaf < tree.terms:
                    against[leaf] = below.get(other, other)
        if not against:
            return
        leaves = np.array(list(against.items()))

        def fill(probes: Array, which: slice) -> None:
            at, (leaf, other) = np.arange(len(probes)), leaves[which].T
            probes[at, leaf] = half + 1
            probes[at, other] = np.where(other < tree.terms, -half, -3 * half)

        self.say(f"products: {len(leaves)} probes")
        results = self.run(len(leaves), fill, 3.0)
        odd = ~np.isin(results, (3.0, 4.0))
        if odd.any():
            raise NotATree(f"a probe for fused products gave {results[odd][0]:g}, and not 3 or 4")
        tree.fused = {leaf for leaf, result in zip(against, results, strict=True) if result == 3}

    def find_widths(self, tree: Tree) -> None:
        """Which partial sums are handed on in double: 2^p + 1 has p + 1 bits, and loses the 1 where it is rounded."""
        below, largest = tree.one_leaf_of_each(), 2.0 ** PRECISION[self.geometry.dtype]
        probed = []
        for a, b in tree.children.values():
            for node, other in ((a, b), (b, a)):
                if not tree.is_leaf(node):
                    c, d = tree.children[node]
                    probed.append((node, below.get(c, c), below.get(d, d), below.get(other, other)))
        if not probed:
            return
        leaves = np.array(probed)

        def fill(probes: Array, which: slice) -> None:
            at, (_, one, two, outside) = np.arange(len(probes)), leaves[which].T
            probes[at, one], probes[at, two], probes[at, outside] = largest, 1, -largest

        self.say(f"widths: {len(leaves)} probes")
        results = self.run(len(leaves), fill)
        odd = ~np.isin(results, (0.0, 1.0))
        if odd.any():
            raise NotATree(f"a probe for sums in double gave {results[odd][0]:g}, and not 0 or 1")
        tree.wide = {node for (node, *_), result in zip(probed, results, strict=True) if result == 1}
        if tree.wide and self.geometry.dtype == "float64":
            raise NotATree("a partial sum has more than the 53 bits of a double")


def like_rows(prober: Prober, row: int, rows: Array, random: np.random.Generator, pairs: int, values: int) -> Array:
    """Those of the rows that add as `row` does, as far as this many random probes and random values can tell."""
    if len(rows) == 1:
        return rows
    part, geometry = prober.part, prober.geometry
    samples, planes, *size = geometry.image_shape
    noise = aligned(geometry.image_shape, geometry.dtype)
    noise[...] = np.tile(
        random.standard_normal((samples, planes // part.groups, *size), np.float32), (1, part.groups, 1, 1)
    )
    alike = np.ones(part.rows, bool)
    for trial in range(pairs + values):
        probe = np.zeros(prober.width, geometry.dtype)
        if trial < pairs:
            probe[prober.leaves] = 1
            if len(prober.leaves) > 1:
                probe[random.choice(prober.leaves, 2, replace=False)] = BIG, -BIG
        else:
            probe[...] = random.standard_normal(prober.width)
        results = prober.outputs(
            np.broadcast_to(probe, (part.rows, prober.width)), prober.image(1.0) if trial < pairs else noise
        )
        alike &= results == results[row]
    return rows[alike[rows]]
