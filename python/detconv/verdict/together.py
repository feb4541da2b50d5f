"""All elements judged together: errors beyond what sound orders of the same sums cause, and what could be seen at all.

The bound of one long sum can exceed the sum itself, so that nothing is proven by it. But the errors of many sums
together are known far more sharply than each: other orders of the same numbers show how large they are. This is
evidence, no proof: it makes an output "unlikely", never a mistake.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from detconv.verdict.bounds import FORMATS, Claim, half_ulp, rounded
from detconv.verdict.problem import Array, Problem
from detconv.verdict.sample import Sample

if TYPE_CHECKING:
    from detconv.verdict.judge import Verdict

# From the best to the worst; the engine's numbers of them.
STATUSES = ("identical", "rounding", "unlikely", "mistake")

# So many yardsticks are no rounding. Of 136,350 right outputs, of orders that are among our own and of others, none has
# an error beyond both this and u * sqrt(n) * S.
YARDSTICKS = 8.0
# The yardsticks and u * sqrt(n) * S must be below this share of the sums for zeros, negated sums and noise to be seen.
_SHARE = 1 / 16
# A projection says something if it is nearer to 1 than to 0 by so many standard errors.
_STANDARD_ERRORS = 6.0
# And if those of our own orders are far from 1/2: as for errors, a right order may have eight times as much.
_LARGEST_OWN_SHARE = 0.5 / YARDSTICKS

# Coarse operands show in few sums.
_FEW = 256

# Formats to which programs round operands without being asked; the coarser ones for all, float32 for float64 alone.
_COARSE = ("float32", "tf32", "float16", "bfloat16")


class Coarse(NamedTuple):
    """Signs that operands were rounded before they were multiplied.

    Attributes:
        formats: to which they seem to have been rounded; more than one where the numbers do not tell them apart.
        projection: of the errors on those that the rounded operands cause: 1 where that is what they are, 0 where not.
        standard_error: of the projection.
        tells: whether our own orders, on the numbers as they are, have projections far below 1/2; else nobody can tell.
    """

    formats: tuple[str, ...]
    projection: float
    standard_error: float
    tells: bool


class Power(NamedTuple):
    """What a verdict could have seen. Errors are relative to the root mean square of the true sums.

    Attributes:
        proves: an error of this size in a typical element is a proven mistake.
        unlikely: errors of this root mean square in all elements together are unlikely.
        zeros: how many elements could be zeros, the smallest of them, without being noticed.
        decides: whether zeros, negated sums and noise in place of the whole output would be refused.
    """

    proves: float
    unlikely: float
    zeros: int
    decides: bool


@dataclass(frozen=True, eq=False)
class Together:
    """All finite elements of an output, judged together.

    The yardstick is the largest root mean square error of detconv's own orders on a sample of the outputs, drawn with
    a fixed seed, in the arithmetic that is claimed, and the root mean square of half a unit in the last place of the
    format in which the candidate is stored. An output is unlikely if its root mean square error is beyond eight
    yardsticks and beyond the root mean square of u * sqrt(n) * S, or if its error is that of coarse operands.

    Attributes:
        elements: how many elements are compared: those that are finite and cannot have overflowed.
        error: the root mean square of candidate - exact over them.
        size: that of the true sums.
        spread: that of u * sqrt(n) * S.
    """

    elements: int
    error: float
    size: float
    spread: float
    _usual: float  # S, root mean square
    _problem: Problem
    _claim: Claim
    _stored: str
    _candidate: Array
    _exact: Array
    _magnitude: Array

    @cached_property
    def status(self) -> str:
        """``"identical"``, ``"rounding"`` or ``"unlikely"``."""
        if self.error == 0:
            return "identical"
        return "unlikely" if self.is_far or self.is_coarse else "rounding"

    @property
    def is_far(self) -> bool:
        """Whether the errors are larger than roundings make them."""
        return self.error > self.spread and self.error > YARDSTICKS * self.yardstick

    @property
    def is_coarse(self) -> bool:
        """Whether the errors are those of coarse operands."""
        return self.coarse is not None and self.coarse.tells

    @cached_property
    @np.errstate(all="ignore")  # what overflows here is left out
    def yardstick(self) -> float:
        """The largest error of our own orders, root mean square; infinite where they overflow."""
        if not self.elements:
            return np.inf
        sample = self._sample
        fit = self._fit(sample)
        if not fit.any():
            return np.inf
        products, largest = self._claim.products, 0.0
        claims = [sample] if products is None else [sample.mapped(way) for way in _roundings(products)]
        for used in claims:
            moved = rms((used.exact - sample.exact)[fit])
            largest = max(largest, moved + max(rms(error[fit]) for error in used.errors(self._claim.format)))
        total = largest + rms(half_ulp(sample.exact[fit], FORMATS[self._stored]))
        # Where the sample has not met the largest sums, its errors are too small for them.
        here = rms(self._magnitude.ravel()[sample.places][fit])
        grows = max(1.0, self._usual / here) if here > 0 else 1.0
        return total * grows if np.isfinite(total) else np.inf

    def limits(self, magnitude: Array) -> Array:
        """Eight yardsticks for each of some elements; more for those whose S is larger than usual."""
        larger = magnitude / self._usual if self._usual > 0 else 1.0
        return np.asarray(YARDSTICKS * self.yardstick * np.maximum(1.0, larger))

    @cached_property
    @np.errstate(all="ignore")
    def coarse(self) -> Coarse | None:
        """Signs of coarse operands; None where there are none."""
        if not self.elements:
            return None
        few = Sample.of(self._problem, _FEW)
        fit = self._fit(few)
        error = self._candidate.ravel()[few.places][fit] - few.exact[fit]
        found: dict[bytes, tuple[_Projection, list[str]]] = {}
        for name in self._coarser():
            for way in _roundings(name):
                for moved in few.moved(way):
                    moved = moved[fit]
                    if moved.any() and np.isfinite(moved).all():
                        _, names = found.setdefault(moved.tobytes(), (_Projection.of(error, moved), []))
                        names.append(name)
        near = [entry for entry in found.values() if entry[0].share > 0.5]
        if not near:
            return None
        best, names = min(near, key=lambda entry: entry[0].left)
        # The errors of a right output are as large as our own.
        deviation = max(best.deviation, self.yardstick / (rms(best.moved) * np.sqrt(best.moved.size)))
        if best.share <= 0.5 + _STANDARD_ERRORS * deviation:
            return None
        tells = self._own_share(few, fit, best.moved) < _LARGEST_OWN_SHARE
        return Coarse(tuple(dict.fromkeys(names)), best.share, float(deviation), tells)

    @cached_property
    @np.errstate(all="ignore")
    def blind_to(self) -> tuple[str, ...]:
        """The formats to which operands could have been rounded unseen: our own orders have errors of that kind."""
        if not self.elements:
            return ()
        few = Sample.of(self._problem, _FEW)
        fit = self._fit(few)
        found = []
        for name in self._coarser() if fit.any() else ():
            moved = next(few.moved(next(_roundings(name))), np.zeros(fit.shape))[fit]
            if not moved.any() or not np.isfinite(moved).all():
                continue
            deviation = self.yardstick / (rms(moved) * np.sqrt(moved.size))
            if 0.5 + _STANDARD_ERRORS * deviation >= 1 or self._own_share(few, fit, moved) >= _LARGEST_OWN_SHARE:
                found.append(name)
        return tuple(found)

    def _own_share(self, sample: Sample, fit: Array, moved: Array) -> float:
        """The largest share of our own orders' errors."""
        own = (_Projection.of(error[fit], moved).share for error in sample.errors(self._claim.format))
        return max(map(abs, own))

    def _coarser(self) -> Iterator[str]:
        """The formats that are coarser than the operands and what is claimed of them."""
        digits = min(FORMATS[self._problem.given].digits, self._claim.format.digits)
        if self._claim.products is not None:
            digits = min(digits, FORMATS[self._claim.products].digits)
        return (name for name in _COARSE if FORMATS[name].digits < digits)

    @cached_property
    def _sample(self) -> Sample:
        """The outputs of which our own orders are run."""
        return Sample.of(self._problem)

    def _fit(self, sample: Sample) -> Array:
        """Those of a sample that are compared."""
        candidate, exact, magnitude = (
            values.ravel()[sample.places] for values in (self._candidate, self._exact, self._magnitude)
        )
        safe = magnitude < 2.0 ** (min(self._claim.format.overflow, 1023) - 1)
        return np.asarray(safe & np.isfinite(candidate) & np.isfinite(exact) & np.isfinite(sample.exact))


class _Projection(NamedTuple):
    """Errors as a share of those that something else causes, and what is left of them."""

    moved: Array
    share: float
    deviation: float  # of the share, if what is left is random
    left: float  # the sum of its squares

    @staticmethod
    def of(error: Array, moved: Array) -> _Projection:
        scaled = moved / np.abs(moved).max()  # so that no square overflows or vanishes
        size = np.abs(moved).max()
        square = float(scaled @ scaled)
        share = float(error / size @ scaled) / square
        left = error / size - share * scaled
        deviation = float(np.sqrt((scaled * scaled) @ (left * left))) / square
        return _Projection(moved, share, deviation, float(left @ left))


def _roundings(name: str) -> Iterator[Callable[[Array], Array]]:
    """The ways to round operands to a format: to nearest and truncated."""
    for truncated in (False, True):
        yield partial(rounded, format=FORMATS[name], truncated=truncated)


def spare_likely(together: Together, error: Array, magnitude: Array, codes: Array) -> int:
    """Elements beyond their probable bounds, but not beyond eight yardsticks, are roundings: so they are marked in
    codes. Returns how many there are."""
    rounding, unlikely = STATUSES.index("rounding"), STATUSES.index("unlikely")
    doubtful = np.flatnonzero(codes == unlikely)
    if not doubtful.size:
        return 0
    near = doubtful[np.abs(error.ravel()[doubtful]) <= together.limits(magnitude.ravel()[doubtful])]
    codes.ravel()[near] = rounding
    return len(near)


def power_of(verdict: Verdict) -> Power:
    """What a verdict could have seen."""
    v, t = verdict, verdict.together
    limit = max(YARDSTICKS * t.yardstick, t.spread)
    if t.size == 0 or not t.elements:
        return Power(np.inf, np.inf, v.exact.size, False)
    sums = np.abs(v.exact.astype(np.float64))
    noticed = sums > v.bound
    noticed |= (sums > v.probable_bound) & (sums > t.limits(v.magnitude))
    squares = np.cumsum(np.square(np.sort(sums[~noticed & np.isfinite(sums)]) / t.size))
    zeros = int(np.searchsorted(squares, t.elements * np.square(limit / t.size), side="right"))
    decides = max(t.yardstick, t.spread) < _SHARE * t.size
    return Power(rms(v.bound[np.isfinite(sums)]) / t.size, limit / t.size, zeros, bool(decides))


def rms(values: Array) -> float:
    """The root mean square; 0 of no values."""
    flat = np.ravel(values).astype(np.float64, copy=False)
    if not flat.size:
        return 0.0
    most = float(max(flat.max(), -flat.min()))
    if not 0 < most < np.inf:
        return most
    if 1e-140 < most < 1e140:
        return float(np.sqrt(flat @ flat / flat.size))
    flat = flat / most
    return most * float(np.sqrt(flat @ flat / flat.size))
