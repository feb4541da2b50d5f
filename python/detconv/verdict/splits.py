"""Operands split into numbers of fewer digits, some of whose products are dropped: BF16x3, TF32x3 and alike.

A float32 x is x1 + x2, or x1 + x2 + x3, each rounded to the short format, and x*w the sum of the products x1*w1, x1*w2,
x2*w1 and so on without the smallest. Such a convolution is one of the short numbers with so many times the terms, and
is computed as that. G. Henry, P. T. P. Tang and A. Heinecke, "Leveraging the bfloat16 artificial intelligence datatype
for higher-precision computations", ARITH 2019.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from detconv.verdict.problem import Array, Problem

Rounding = Callable[[Array], Array]


class _Split(NamedTuple):
    """Into how many numbers of which format, and which of them are multiplied: (of the first operand, the second)."""

    format: str
    numbers: int
    products: tuple[tuple[int, int], ...]
    dropped: str


_OF_TWO = ((0, 0), (0, 1), (1, 0))
_OF_THREE = ((0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (2, 0))
_SPLITS = {
    "BF16x3": _Split("bfloat16", 2, _OF_TWO, "the product of the small ones is dropped"),
    "BF16x4": _Split("bfloat16", 2, (*_OF_TWO, (1, 1)), "all four products are kept"),
    "BF16x6": _Split("bfloat16", 3, _OF_THREE, "the three smallest products are dropped"),
    "TF32x3": _Split("TF32", 2, _OF_TWO, "the product of the small ones is dropped"),
    "float16x3": _Split("float16", 2, _OF_TWO, "the product of the small ones is dropped"),
}


def split(problem: Problem, roundings: Mapping[str, Rounding]) -> Iterator[tuple[str, str, Problem]]:
    """Name, words and the problem that is computed instead, for each split and each way to round."""
    first, second = _operands(problem)
    for name, made in _SPLITS.items():
        for words in ("", " (truncated)"):
            rounding = roundings.get(made.format + words)
            if rounding is not None:
                number = {2: "two", 3: "three"}[made.numbers]
                says = f"split into {number} numbers of {made.format}{words}, and {made.dropped}"
                ones, others = (
                    _parts(getattr(problem, operand), rounding, made.numbers) for operand in (first, second)
                )
                pairs = [(ones[i], others[j]) for i, j in made.products]
                yield name + words, says, _summed(problem, pairs)


def _operands(problem: Problem) -> tuple[str, str]:
    first, second = (name for name, _ in problem.operands() if name != "bias")
    return first, second


def _parts(values: Array, rounding: Rounding, count: int) -> list[Array]:
    found, left = [], values
    for _ in range(count):
        found.append(rounding(left))
        left = left - found[-1]
    return found


def _summed(problem: Problem, pairs: list[tuple[Array, Array]]) -> Problem:
    """The problem whose sums are those of all pairs of operands, one after another."""
    names, groups = _operands(problem), int(problem.groups)
    first, second = ([pair[side] for pair in pairs] for side in (0, 1))
    if problem.name == "conv2d":
        arrays = _beside(first, 1, groups), np.concatenate(second, axis=1)
    elif problem.name == "conv2d_input":
        arrays = _beside(first, 0, groups), _beside(second, 1, groups)
    elif problem.name == "conv_transpose2d":
        arrays = _beside(first, 1, groups), _beside(second, 0, groups)
    else:
        arrays = np.concatenate(first), np.concatenate(second)
    return problem.having(**dict(zip(names, arrays, strict=True)))


def _beside(arrays: list[Array], axis: int, groups: int) -> Array:
    """Joined on an axis of channels, group by group."""
    blocks = [np.split(array, groups, axis) for array in arrays]
    return np.concatenate([array for group in zip(*blocks, strict=True) for array in group], axis)
