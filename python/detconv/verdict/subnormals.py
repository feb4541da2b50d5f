"""Subnormal numbers that are flushed to zero: operands, results, or what is on the way from the one to the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from detconv.verdict.bounds import FORMATS
from detconv.verdict.case import Case, Expected, Guess
from detconv.verdict.precision import kept
from detconv.verdict.problem import Array, Problem


def flushed(case: Case) -> Iterator[Guess]:
    """In the format of the operands, of the additions or of the output."""
    if case.expected is None:
        return
    operands = case.problem.given
    for name in dict.fromkeys((operands, case.claim.accumulator, kept(case))):
        least = 2.0 ** FORMATS[name].smallest
        of = "subnormal" if name == operands else f"{name}'s subnormal"
        without = _without(case.problem, least)
        results = _some(case.expected.values, least)
        if results:
            yield Guess(f"{of} results are flushed to zero", case.problem, _results(least))
        if without is not None:
            yield Guess(f"{of} operands are flushed to zero", without)
            yield Guess(f"{of} operands and results are flushed to zero", without, _results(least))
        if results and _all_gone(case, least):
            yield Guess(
                f"{of} results are flushed to zero, those of single additions too", case.problem, _ways(case, least)
            )


def _some(values: Array, least: float) -> bool:
    return bool(((values != 0) & (np.abs(values) < least)).any())


def _without(problem: Problem, least: float) -> Problem | None:
    """The problem without its subnormal operands; None if there are none."""
    if not any(_some(array, least) for _, array in problem.operands()):
        return None
    return problem.mapped(lambda array: np.where(np.abs(array) < least, 0, array).astype(array.dtype))


def _results(least: float) -> Callable[[Expected], Expected]:
    def then(e: Expected) -> Expected:
        size = np.abs(e.values)
        # Which side of the smallest normal number a sum is on may be a matter of rounding.
        bound = np.where(np.abs(size - least) <= e.bound, least + e.bound, e.bound)
        return Expected(np.where(size < least, 0, e.values), bound)

    return then


def _all_gone(case: Case, least: float) -> bool:
    """Whether the candidate has zeros for sums that are none, and no subnormal number."""
    assert case.expected is not None
    zeros = np.count_nonzero((case.candidate == 0) & case.unfit)
    return bool(zeros >= 4 and case.candidate.any() and not _some(case.candidate, least))


def _ways(case: Case, least: float) -> Callable[[Expected], Expected]:
    """Each term may have been lost with what was summed before it, as long as that was subnormal."""

    def then(e: Expected) -> Expected:
        return Expected(e.values, e.bound + case.problem.terms() * least)

    return then
