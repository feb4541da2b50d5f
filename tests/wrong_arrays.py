"""Zeros, negated sums and noise in place of an output: refused where the verdict claims power, warned of where not.

    python tests/wrong_arrays.py 300

draws so many assertions of either kind, of 10^2 to 10^6 terms, and prints what became of them. ``test_together.py``
takes some.
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

import detconv
from bits import Array
from detconv import testing
from right_arrays import KINDS, Draw


def _cancelling(draw: Draw, rows: int, terms: int, columns: int) -> tuple[Array, Array]:
    """The second half of the terms takes the first half away again, but for what is far below roundings."""
    half = terms // 2
    first, second = draw.standard_normal((rows, half)), draw.standard_normal((half, columns))
    left = 10.0 ** draw.uniform(-9, -6) * draw.standard_normal((half, columns))
    return np.concatenate([first, -first], axis=1), np.concatenate([second, second + left])


WITH_POWER = {"normal", "positive", "constant and normal", "rectified", "far from 0", "of all sizes", "sparse"}
WITHOUT = {"alternating", "alternating and near 1", "periodic", "cancelling"}
# The share of the longest sums: each takes seconds.
_LONG = 0.03
_KINDS = KINDS | {"cancelling": _cancelling}


class Wrong(NamedTuple):
    kind: str
    terms: int
    wrong: str  # "zeros", "negated" or "noise"
    power: bool  # as the verdict claims it
    outcome: str  # "refused", "warned" or "passed"


def wrong_assertions(count: int, seed: int, most_terms: float = 1e6) -> Iterator[Wrong]:
    """So many assertions about wrong arrays where the verdict claims power, and as many where it does not."""
    draw = np.random.default_rng(seed)
    left = {True: count, False: count}
    while any(left.values()):
        names = sorted(WITH_POWER if draw.random() < 0.5 else WITHOUT)
        kind = names[draw.integers(len(names))]
        rows, columns = draw.integers(2, 6), draw.integers(4, 7)
        most = most_terms if draw.random() < _LONG else min(most_terms, 5000)
        terms = int(10 ** draw.uniform(2, np.log10(most)))
        operands = [np.ascontiguousarray(a, np.float32) for a in _KINDS[kind](draw, rows, terms, columns)]
        right = detconv.conv2d(*_layer(*operands), summation="exact")
        noise = draw.standard_normal(right.shape) * np.sqrt(np.mean(right.astype(np.float64) ** 2))
        for wrong, array in (("zeros", 0 * right), ("negated", -right), ("noise", noise.astype(np.float32))):
            power, outcome = _asserted(array, *operands, as_gradient=bool(draw.integers(2)))
            if left[power]:
                left[power] -= 1
                yield Wrong(kind, terms, wrong, power, outcome)


def _layer(rows: Array, columns: Array) -> tuple[Array, Array]:
    """The input and the weight of a layer whose output is the product of two matrices."""
    return columns[None, :, None, :], rows[:, :, None, None]


def _asserted(output: Array, rows: Array, columns: Array, as_gradient: bool) -> tuple[bool, str]:
    """Whether the verdict claims power, and what the assertion did; of a layer's output or its weight's gradient."""
    if as_gradient:  # of a 1x1 layer: the sums over all pixels
        output = np.ascontiguousarray(output[0, :, 0, :, None, None])
        pixels, outputs = np.ascontiguousarray(columns.T)[None, :, :, None], rows[None, :, :, None]
        verdict = detconv.judge_weight_gradient(output, pixels, output.shape, outputs)
    else:
        verdict = detconv.judge(output, *_layer(rows, columns))
    if verdict.status in ("unlikely", "mistake"):  # the assertion would diagnose it, which takes longer
        return verdict.power.decides, "refused"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if as_gradient:
            testing.assert_conv2d_weight(output, pixels, output.shape, outputs)
        else:
            testing.assert_conv2d(output, *_layer(rows, columns))
    warned = any(issubclass(warning.category, testing.NoPower) for warning in caught)
    return verdict.power.decides, "warned" if warned else "passed"


def main() -> int:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 30
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    found = list(wrong_assertions(count, seed))
    for power in (True, False):
        outcomes = Counter(wrong.outcome for wrong in found if wrong.power == power)
        terms = sorted(wrong.terms for wrong in found if wrong.power == power)
        kinds = Counter(wrong.kind for wrong in found if wrong.power == power)
        print(f"power {power}: {dict(outcomes)}; {terms[0]} to {terms[-1]} terms; {dict(kinds)}")
    silent = [wrong for wrong in found if wrong.outcome != "refused" and (wrong.power or wrong.outcome == "passed")]
    print(f"{len(silent)} passed silently: {silent}")
    return int(bool(silent))


if __name__ == "__main__":
    raise SystemExit(main())
