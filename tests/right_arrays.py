"""Right arrays, by routes and of data of many kinds: none of them may be accused.

    python tests/right_arrays.py 10000

draws so many of them, judges each and prints what was accused. ``test_together.py`` takes some hundreds. A route sums
the products of matrices (rows, terms) and (terms, columns) in an order that does not depend on their values.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

import detconv
from bits import Array
from detconv import Summation
from detconv.verdict.judge import Verdict
from detconv.verdict.sample import own_orders

Draw = np.random.Generator

KINDS: dict[str, Callable[[Draw, int, int, int], tuple[Array, Array]]] = {
    "normal": lambda d, r, n, c: (d.standard_normal((r, n)), d.standard_normal((n, c))),
    "positive": lambda d, r, n, c: (d.random((r, n)), d.random((n, c))),
    "constant": lambda d, r, n, c: (np.full((r, n), d.uniform(0.05, 3)), np.full((n, c), d.uniform(0.05, 3))),
    "constants": lambda d, r, n, c: (
        np.repeat(d.uniform(0.05, 3, (r, 1)), n, 1),
        np.repeat(d.uniform(0.05, 3, (1, c)), n, 0),
    ),
    "constant and normal": lambda d, r, n, c: (d.standard_normal((r, n)), np.full((n, c), d.uniform(0.05, 3))),
    "rectified": lambda d, r, n, c: (d.standard_normal((r, n)), np.maximum(d.standard_normal((n, c)), 0)),
    "alternating": lambda d, r, n, c: (
        np.where(np.arange(n) % 2, -1, 1) * d.uniform(0.5, 2) + 1e-5 * d.standard_normal((r, n)),
        np.full((n, c), d.uniform(0.05, 3)) * (1 + np.arange(c) / 7),
    ),
    "alternating and near 1": lambda d, r, n, c: (
        np.where(np.arange(n) % 2, -1, 1) * d.uniform(0.9, 1.1) + 1e-4 * d.standard_normal((r, n)),
        1 + 0.01 * d.standard_normal((n, c)),
    ),
    "periodic": lambda d, r, n, c: (
        np.cos(2 * np.pi * (np.arange(n) % 16) / 16) + 1e-3 * d.standard_normal((r, n)),
        np.abs(d.standard_normal((n, c))),
    ),
    "far from 0": lambda d, r, n, c: (100 + d.standard_normal((r, n)), 100 + d.standard_normal((n, c))),
    "of all sizes": lambda d, r, n, c: (d.standard_normal((r, n)), np.exp(3 * d.standard_normal((n, c)))),
    "sorted": lambda d, r, n, c: (np.sort(d.standard_normal((r, n)), axis=1), d.random((n, c))),
    "sparse": lambda d, r, n, c: (d.standard_normal((r, n)) * (d.random((r, n)) < 0.01), d.standard_normal((n, c))),
    "integers": lambda d, r, n, c: (d.integers(-4, 5, (r, n)), d.integers(-4, 5, (n, c))),
    "large integers": lambda d, r, n, c: (d.integers(-4000, 4001, (r, n)), d.integers(0, 4001, (n, c))),
}

TERMS = (1, 2, 3, 7, 16, 64, 300, 1000, 4608, 20000)
SIZES = ((1, 1), (1, 1), (1, 2), (2, 4), (6, 6), (16, 9))


class Right(NamedTuple):
    kind: str
    terms: int
    route: str
    verdict: Verdict


def summed(rows: Array, columns: Array, summation: Summation | str) -> Array:
    """By detconv, as a convolution of so many channels."""
    (r, n), c = rows.shape, columns.shape[1]
    return detconv.conv2d(columns.reshape(1, n, 1, c), rows.reshape(r, n, 1, 1), summation=summation)


def _chunks(terms: int, parts: int) -> Summation:
    """In so many parts of consecutive terms."""
    step = -(-terms // parts)
    first, *others = (f"{min(step, terms - at)}x(+1){{f{at}}}" for at in range(0, terms, step))
    return Summation(order=first + "".join(f" [{chain}]" for chain in others))


def _lanes(terms: int, lanes: int, way: str) -> Summation:
    each, left = divmod(terms, lanes)
    chains = [f"[{each}x(+{lanes}){{{way}{lane}}}]" for lane in range(lanes)]
    return Summation(order=" ".join(chains) + (f" {left}x(+1){{{way}{each * lanes}}}" if left else ""))


def _permuted(rows: Array, columns: Array, draw: Draw) -> Array:
    order = draw.permutation(len(columns))
    return summed(np.ascontiguousarray(rows[:, order]), np.ascontiguousarray(columns[order]), "naive")


def routes(rows: Array, columns: Array, draw: Draw) -> Iterator[tuple[str, Array]]:
    """The sums of the products, by each route: our own orders, others of ours, and other programs' own."""
    terms = len(columns)
    for place, order in enumerate(own_orders(terms, False)):
        yield f"own {place}", summed(rows, columns, order)
    yield "kahan", summed(rows, columns, "kahan")
    yield "fp64", summed(rows, columns, "fp64")
    yield "pairwise block=1000", summed(rows, columns, "pairwise block=1000")
    yield "permuted", _permuted(rows, columns, draw)
    yield "in reverse, in blocks", summed(rows[:, ::-1].copy(), columns[::-1].copy(), "pairwise block=16")
    for parts in (3, 5, 7):
        if terms > parts:
            yield f"{parts} parts", summed(rows, columns, _chunks(terms, parts))
    for lanes, way in ((3, "f"), (4, "m"), (8, "f"), (32, "m")):
        if terms >= lanes:
            yield f"{lanes} lanes {way}", summed(rows, columns, _lanes(terms, lanes, way))
    yield "numpy @", rows @ columns
    yield "einsum", np.einsum("rn,nc->rc", rows, columns)
    if rows.size * columns.shape[1] <= 4_000_000:
        yield "numpy sum", (rows[:, None, :] * columns.T).sum(-1)
    torch = sys.modules.get("torch")
    if torch is not None:
        yield "torch @", (torch.from_numpy(rows) @ torch.from_numpy(columns)).numpy()


def right_arrays(count: int, seed: int) -> Iterator[Right]:
    """So many verdicts on right arrays, drawn."""
    draw = np.random.default_rng(seed)
    names = list(KINDS)
    made = 0
    while True:
        kind, terms = names[draw.integers(len(names))], int(draw.choice(TERMS))
        (r, c), dtype = SIZES[draw.integers(len(SIZES))], draw.choice([np.float32, np.float32, np.float32, np.float64])
        rows, columns = (np.ascontiguousarray(a, dtype) for a in KINDS[kind](draw, r, terms, c))
        x, w = columns.reshape(1, terms, 1, c), rows.reshape(r, terms, 1, 1)
        for route, output in routes(rows, columns, draw):
            yield Right(kind, terms, route, detconv.judge(output.reshape(1, r, 1, c), x, w))
            made += 1
            if made == count:
                return


def main() -> int:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    accused, seen, kinds = [], Counter[str](), Counter[str]()
    for right in right_arrays(count, seed):
        seen[right.route] += 1
        kinds[right.kind] += 1
        if right.verdict.status in ("unlikely", "mistake"):
            t = right.verdict.together
            accused.append(right)
            print(right.kind, right.terms, right.route, right.verdict, t.error, t.yardstick, t.spread, t.coarse)
    print(f"{len(accused)} of {count} accused; {len(seen)} routes: {dict(seen)}; data: {dict(kinds)}")
    return int(bool(accused))


if __name__ == "__main__":
    raise SystemExit(main())
