"""Coarser numbers than claimed: inputs, outputs or accumulators of fewer digits, and what is noise of another kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from detconv.verdict.bounds import FORMATS, Claim
from detconv.verdict.case import Case, Expected, Guess, cropped
from detconv.verdict.problem import Array, Problem
from detconv.verdict.splits import split

# Operands are rounded if that brings the mean square distance down by this factor at least, and by so many bits of
# evidence, n/2 * log2 of the factor. Rounding inputs that were not rounded raises it, in outputs of any order.
_LEAST_GAIN = 2.0
_LEAST_EVIDENCE = 24.0
# The errors of an accumulator of few digits are this share of the output's own spread at most.
_LARGEST_NOISE = 0.25
# Rounded operands move a sum by less than this share of S: those of bfloat16, truncated, by 2^-6. What is further off
# is off by something else, and no rounding need be tried.
_FARTHEST = 2.0**-6
# Split operands move a sum by more than this share of S, over the square root of the number of terms.
_NEAREST_SPLIT = 2.0**-27
# Two roundings whose mean square distances are nearer than this cannot be told apart.
_TIE = 1.05


def shortened(values: Array, dropped: int, truncated: bool = False) -> Array:
    """Numbers as float32 without so many of their last bits: to nearest, ties to even, or towards zero."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    one = np.uint32(1)
    if not truncated:
        bits = bits + (np.uint32((1 << (dropped - 1)) - 1) + ((bits >> np.uint32(dropped)) & one))
    short = (bits & ~np.uint32((1 << dropped) - 1)).view(np.float32)
    return np.where(np.isfinite(values), short, values).astype(values.dtype)


def _float16(values: Array) -> Array:
    return values.astype(np.float16).astype(values.dtype)


_ROUNDINGS: dict[str, Callable[[Array], Array]] = {
    "float32": lambda v: v.astype(np.float32).astype(v.dtype),
    "TF32": lambda v: shortened(v, 13),
    "TF32 (truncated)": lambda v: shortened(v, 13, truncated=True),
    "float16": _float16,
    "bfloat16": lambda v: shortened(v, 16),
    "bfloat16 (truncated)": lambda v: shortened(v, 16, truncated=True),
}


def kept(case: Case) -> str:
    """The format that holds the whole candidate: the one it is stored in, or a narrower one."""
    some = case.candidate[case.evenly]  # mostly enough to see that it is not so
    narrower = {"float64": ("float32",), "float32": ("bfloat16", "float16")}.get(case.stored, ())
    for name in narrower:
        if np.array_equal(_ROUNDINGS[name](some), some, equal_nan=True):
            values = case.candidate[np.isfinite(case.candidate)]
            if np.count_nonzero(values) >= 8 and (_ROUNDINGS[name](values) == values).all():
                return name
    return case.stored


def rounded_inputs(*names: str) -> Callable[[Case], Iterator[Guess]]:
    """That both operands, one of them, or the bias too, were rounded to a format, or to one of two that nobody can tell
    apart: TF32 and float16 have as many digits."""

    def guesses(case: Case) -> Iterator[Guess]:
        best = case.once("rounded inputs", _best_roundings)
        if best and {found.name.split(" (")[0] for found in best} == set(names):
            yield _stored_so(case, best, f"rounded to {_or(best)} before multiplication")

    return guesses


def split_inputs(case: Case) -> Iterator[Guess]:
    """That both operands were split into numbers of a short format whose smallest products are left out."""
    best = case.once("rounded inputs", _best_roundings)
    if best and best[0].split:
        yield _stored_so(case, best, f"{best[0].split} ({_or(best)})")


def _stored_so(case: Case, best: list[_Rounded], how: str) -> Guess:
    stored = kept(case)
    also = "" if stored == case.stored else f", and the output is stored in {stored}"
    return Guess(f"{best[0].operands} {how}{also}", best[0].problem, stored=stored)


def _or(best: list[_Rounded]) -> str:
    return " or ".join(found.name for found in best)


class _Rounded(NamedTuple):
    """Operands of fewer digits: by which rounding, which of them are, in words how they were split if so."""

    distance: float
    name: str
    operands: str
    split: str
    problem: Problem


def _best_roundings(case: Case) -> list[_Rounded]:
    """The roundings of the operands that bring the sums nearest to the candidate."""
    if case.expected is None or not case.problem.finite:
        return []
    stored, crop = kept(case), _crop(case)
    plain = _off(case, case.problem, stored, crop)
    finite = np.isfinite(plain)
    size = float(np.sqrt(np.mean(_magnitude(case, crop).astype(np.float64) ** 2)))
    typical = np.sqrt(np.mean(plain[finite] ** 2)) if finite.any() else 0.0
    if typical > _FARTHEST * size:
        return []
    smallest = _NEAREST_SPLIT * size / np.sqrt(case.problem.terms().max(initial=1.0))
    found = []
    for name, operands, words, problem in _coarser(case, typical > smallest):
        left = _off(case, problem, stored, crop)
        if (np.isfinite(left) == finite).all() and _nearer(plain[finite], left[finite]):
            found.append(_Rounded(float(np.sum(left[finite] ** 2)), name, operands, words, problem))
    least = min((rounded.distance for rounded in found), default=0.0)
    ties = [rounded for rounded in found if rounded.distance <= _TIE * least]
    return [rounded for rounded in ties if (rounded.operands, rounded.split) == (ties[0].operands, ties[0].split)]


def _nearer(plain: Array, left: Array) -> bool:
    """Whether what is left of the distances with rounded operands is so much less that chance cannot make it so."""
    squares, left_squares = float(np.sum(plain * plain)), float(np.sum(left * left))
    gain = squares / max(left_squares, 1e-30 * squares, 1e-300)
    return bool(gain > _LEAST_GAIN and plain.size / 2 * np.log2(gain) > _LEAST_EVIDENCE)


def _coarser(case: Case, splits: bool) -> Iterator[tuple[str, str, str, Problem]]:
    """The name of a rounding, which operands are, how they are split, and what is computed instead."""
    for name, rounding in _ROUNDINGS.items():
        if name == "float32" and case.problem.element_type == "float32":
            continue
        for operands, problem in _roundings(case.problem, rounding):
            yield name, operands, "", problem
    if splits:
        first, second = (name for name, _ in case.problem.operands() if name != "bias")
        for name, words, problem in split(case.problem, _ROUNDINGS):
            yield name, f"{_WORDS[first]} and {_WORDS[second]} are", words, problem


def _magnitude(case: Case, crop: tuple[Array, Array] | None) -> Array:
    if crop is None:
        return case.problem.magnitude()
    return np.concatenate([part.magnitude() for part in cropped(case.problem, *crop)], axis=1)


_WORDS = {"grad_output": "the output's gradient", "input": "the input", "weight": "the weight", "bias": "the bias"}


def _roundings(problem: Problem, rounding: Callable[[Array], Array]) -> Iterator[tuple[str, Problem]]:
    arrays = dict(problem.operands())
    operands = [name for name in arrays if name != "bias"]
    both = f"{_WORDS[operands[0]]} and {_WORDS[operands[1]]} are"
    choices = {both: operands, **{f"{_WORDS[name]} is": [name] for name in operands}}
    if "bias" in arrays:
        choices["input, weight and bias are"] = [*operands, "bias"]
    for says, chosen in choices.items():
        changed = {name: rounding(arrays[name]) for name in chosen}
        if any((changed[name] != arrays[name]).any() for name in chosen):
            yield says, problem.having(**changed)


def _crop(case: Case) -> tuple[Array, Array] | None:
    """Samples and output channels that are enough to tell, some 10,000 elements; None for all."""
    if case.problem.name != "conv2d" or case.candidate.size <= 20000:
        return None
    n, o, *plane = case.candidate.shape
    pixels = int(np.prod(plane))
    samples = np.arange(min(n, max(1, 20000 // (pixels * min(o, 16)))))
    outputs = np.unique(np.linspace(0, o - 1, min(o, max(2, 20000 // (pixels * len(samples))))).astype(int))
    return samples, outputs


def _off(case: Case, problem: Problem, stored: str, crop: tuple[Array, Array] | None) -> Array:
    """The distances of the candidate, or of a crop of it, from a problem's true sums; infinite or NaN as they are."""
    candidate = case.candidate
    if crop is None:
        values = problem.exact(stored)
    else:
        candidate = candidate[np.ix_(*crop)]
        values = np.concatenate([part.exact(stored) for part in cropped(problem, *crop)], axis=1)
    return np.asarray(candidate.astype(np.float64) - values)


def rounded_output(case: Case) -> Iterator[Guess]:
    stored = kept(case)
    if stored != case.stored:
        yield Guess(f"the output is rounded to {stored} and stored in {case.stored}", case.problem, stored=stored)


def narrow_sums(case: Case) -> Iterator[Guess]:
    """An accumulator of fewer digits: all its values have no more, so neither has the output without its bias."""
    if case.expected is None:
        return
    if case.claim.accumulator == "float64":
        yield Guess("the sums are added in float32, not in float64", case.problem, claim=Claim("float32"))
    values = case.candidate.astype(np.float64)
    if np.std(case.residual) > _LARGEST_NOISE * np.std(values) or values.size < 8:
        return
    bias = case.problem.bias if case.problem.name == "conv2d" else None
    before = values if bias is None else values - bias[:, None, None]
    for name in ("bfloat16", "float16"):
        last = 2.0**-23 * float(np.abs(values).max())
        narrower = FORMATS[name].digits < case.claim.format.digits
        if narrower and (_has_digits(values, name, 0.0) or _has_digits(before, name, last)):
            yield Guess(
                f"the sums are added in {name}, not in {case.claim.accumulator}", case.problem, claim=Claim(name)
            )


def _has_digits(values: Array, name: str, tolerance: float) -> bool:
    """Whether all have a number of a format that is as near."""
    short = _ROUNDINGS[name](values.astype(np.float32))
    return bool(np.isfinite(values).all() and (np.abs(short - values) <= tolerance).all())


def transform(case: Case) -> Iterator[Guess]:
    """Noise as of a transform: errors go with the largest sums around, not with each element's own."""
    if case.expected is None or not np.isfinite(case.candidate).all():
        return
    residual, values = case.residual, case.expected.values.astype(np.float64)
    size = np.sqrt(np.mean(values**2))
    count = residual.size / residual.shape[1]
    spread = residual.std(axis=(0, 2, 3)) / np.sqrt(max(count, 1))
    leans = np.abs(residual.mean(axis=(0, 2, 3))) > 6 * spread
    if count < 8 or np.sqrt(np.mean(residual**2)) > 2.0**-12 * size or leans.any():
        return

    def then(e: Expected) -> Expected:
        return Expected(e.values, np.broadcast_to(4 * e.bound.max(), e.bound.shape))

    yield Guess(
        "the right sums with errors like noise, larger than those of roundings on the way: as of a transform "
        "(Winograd, FFT), or of numbers with slightly fewer digits",
        case.problem,
        then,
    )
