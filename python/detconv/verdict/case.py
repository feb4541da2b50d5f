"""What a diagnosis works on: an output, what it should have been, and what a mistake would have made of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from detconv.verdict import bounds, regions
from detconv.verdict.bounds import FORMATS, Claim
from detconv.verdict.judge import Limits
from detconv.verdict.problem import Array, Problem
from detconv.verdict.problem import kernel_of as kernel_of
from detconv.verdict.problem import pads_of as pads_of
from detconv.verdict.problem import pair as pair


class Expected(NamedTuple):
    """What an output would be, and how far roundings probably carry it; both of its shape."""

    values: Array
    bound: Array

    @staticmethod
    def of(problem: Problem, stored: str, claim: Claim, confidence: float, rough: bool = False) -> Expected:
        """The true sums of a problem; rough: sums in plain order, with twice the bound."""
        values = problem.run("naive") if rough else problem.exact(stored)
        magnitude = problem.magnitude()
        limits = Limits.of(problem, claim, confidence, values, magnitude)
        format = FORMATS[stored]
        bound = limits.probable(magnitude) + (limits.hard * magnitude if rough else 0)
        rounded = bounds.half_ulp(values, format)
        if format.digits < claim.format.digits:
            rounded = rounded + bounds.half_ulp(np.abs(values) + bound, format)
        return Expected(values, bound + rounded)

    def fits(self, candidate: Array) -> Array:
        """At which elements a candidate is what is expected, up to rounding."""
        near: Array = np.abs(candidate.astype(np.float64) - self.values) <= self.bound
        fits: Array = near | (candidate == self.values) | (np.isnan(candidate) & np.isnan(self.values))
        return fits

    def mapped(self, function: Callable[[Array], Array]) -> Expected:
        """The same with a function that moves or chooses elements."""
        return Expected(function(self.values), function(self.bound))


class Guess(NamedTuple):
    """A mistake that may have been made: what was computed instead.

    says: one sentence, without its full stop.
    problem: whose sums were computed.
    then: what was done to them; where problem is another than the case's, to each plane alone.
    planes: then works on each plane alone where problem is the case's, too: a few planes show whether it fits.
    parameters: how many numbers were fitted to the candidate, or what it takes to say as much: 20 bits each.
    stored, claim: another format of the output and another arithmetic than the case's.
    leaves: the elements that do not fit are left unexplained; the guess says no more than where they are.
    """

    says: str
    problem: Problem
    then: Callable[[Expected], Expected] | None = None
    parameters: float = 0
    stored: str | None = None
    claim: Claim | None = None
    leaves: bool = False
    planes: bool = False

    def is_as(self, other: Guess) -> bool:
        """Whether another guess computes the same: the same arguments and numbers, however it is called."""
        if self.then or other.then or self.problem.name != other.problem.name:
            return False
        if (self.stored, self.claim) != (other.stored, other.claim):
            return False
        return all(
            _equal(name, mine, others)
            for (name, mine), (_, others) in zip(self.problem.named(), other.problem.named(), strict=True)
        )


def _equal(name: str, one: Any, other: Any) -> bool:
    """Whether two values of an argument mean the same."""
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return one is other or (one is not None and other is not None and np.array_equal(one, other, equal_nan=True))
    for_both_axes = name in ("stride", "padding", "output_padding", "dilation")
    if for_both_axes and not isinstance(one, str) and not isinstance(other, str):
        return pair(one) == pair(other)
    return bool(one == other)


@dataclass(frozen=True)
class Case:
    """An output in question. Its arrays have an axis for the samples, of length 1 where the caller's have none."""

    problem: Problem
    candidate: Array
    stored: str
    claim: Claim
    confidence: float
    _found: dict[str, Any] = field(default_factory=dict)

    def expects(self, problem: Problem, stored: str | None = None, claim: Claim | None = None) -> Expected:
        """What a problem gives, in the case's format and arithmetic or others."""
        return Expected.of(problem, stored or self.stored, claim or self.claim, self.confidence)

    @cached_property
    def expected(self) -> Expected | None:
        """What should have come out; None if the candidate has another shape."""
        return self.expects(self.problem) if shape_of(self.problem) == self.candidate.shape else None

    @cached_property
    def unfit(self) -> Array:
        """The elements that are not what they should be; all of them if the shape is not."""
        if self.expected is None:
            return np.ones(self.candidate.shape, np.bool_)
        return ~self.expected.fits(self.candidate)

    @cached_property
    def box(self) -> tuple[Array, ...]:
        """Indices of the smallest product of samples, channels, rows and columns that holds all unfit elements."""
        return np.ix_(*regions.spans(self.unfit))

    @cached_property
    def residual(self) -> Array:
        """candidate - expected in float64; 0 where one of them is not finite."""
        assert self.expected is not None
        residual = self.candidate.astype(np.float64) - self.expected.values
        return np.where(np.isfinite(residual), residual, 0.0)

    @cached_property
    def sample(self) -> tuple[Array, ...]:
        """Indices of some elements: of those that do not fit, if there are any."""
        flat = np.flatnonzero(self.unfit) if self.unfit.any() else np.arange(self.unfit.size)
        if len(flat) > 4096:
            flat = flat[np.random.default_rng(0).integers(0, len(flat), 4096)]
        return np.unravel_index(flat, self.unfit.shape)

    @cached_property
    def evenly(self) -> tuple[Array, ...]:
        """Indices of elements from the whole output, right and wrong ones."""
        size = self.unfit.size
        flat = np.arange(size) if size <= 4096 else np.random.default_rng(1).integers(0, size, 4096)
        return np.unravel_index(flat, self.unfit.shape)

    @cached_property
    def evenly_in_box(self) -> Array:
        """Which of the elements ``evenly`` are in the box."""
        spans = (index.ravel() for index in self.box)
        inside = [np.isin(at, span) for at, span in zip(self.evenly, spans, strict=True)]
        return np.asarray(np.all(inside, axis=0))

    @cached_property
    def thinned(self) -> tuple[slice, ...]:
        """Index of some rows and columns of each plane, all if there are few: about a million elements at most."""
        step = max(1, int(np.ceil(np.sqrt(self.candidate.size / (1 << 20)))))
        return (slice(None), slice(None), slice(None, None, step), slice(None, None, step))

    @cached_property
    def expected_crop(self) -> Expected:
        """What should have come out in the planes of ``crop``."""
        assert self.expected is not None
        chosen = np.ix_(*self.crop)
        return self.expected.mapped(lambda array: array[chosen])

    @cached_property
    def crop(self) -> tuple[Array, Array]:
        """Samples and output channels, those with the most unfit elements, that stand for all: some 50,000 elements."""
        planes = max(2, 50_000 // max(1, int(np.prod(self.candidate.shape[2:]))))
        samples = _largest(self.unfit.sum(axis=(1, 2, 3)), 2 if planes >= 16 else 1)
        return samples, _largest(self.unfit.sum(axis=(0, 2, 3)), min(8, planes))

    def once(self, name: str, function: Callable[[Case], Any]) -> Any:
        """What a function finds in the case: computed once, kept under a name."""
        if name not in self._found:
            self._found[name] = function(self)
        return self._found[name]

    def guess(self, says: str, **changes: object) -> Guess:
        """That some arguments were others."""
        return Guess(says, self.problem.having(**changes))


def _largest(counts: Array, most: int) -> Array:
    """Indices of the largest numbers, in ascending order."""
    return np.sort(np.argsort(-counts, kind="stable")[:most])


def shape_of(problem: Problem) -> tuple[int, ...]:
    """The shape of a problem's output; sizes below 1 where the kernel is larger than the image."""
    return problem.shape


def bias_of(problem: Problem) -> Array | None:
    """The bias of an output; None where there is none, and for gradients."""
    return problem.bias if problem.name in ("conv2d", "conv_transpose2d") else None


def cropped(problem: Problem, samples: Array, outputs: Array) -> list[Problem]:
    """Problems, one for each group that is met, that together give these samples and channels of an output.

    Of conv2d, conv_transpose2d or an input gradient.
    """
    forward, groups = problem.name == "conv2d", int(problem.groups)
    source = "grad_output" if problem.name == "conv2d_input" else "input"
    taken = getattr(problem, source).shape[1] // groups
    per_group = len(problem.weight) // groups if forward else problem.weight.shape[1]
    found = []
    for group in np.unique(outputs // per_group):
        chosen, of_group = outputs[outputs // per_group == group], slice(group * taken, (group + 1) * taken)
        weight = problem.weight[chosen] if forward else problem.weight[of_group][:, chosen - group * per_group]
        changes: dict[str, Any] = {
            source: np.ascontiguousarray(getattr(problem, source)[samples, of_group]),
            "weight": np.ascontiguousarray(weight),
            "groups": 1,
        }
        if problem.name == "conv2d_input":
            changes["input_size"] = (len(samples), len(chosen), *problem.input_size[2:])
        elif problem.bias is not None:
            changes["bias"] = np.ascontiguousarray(problem.bias[chosen])
        found.append(problem.having(**changes))
    return found
