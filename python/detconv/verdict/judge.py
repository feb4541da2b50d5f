"""Rounding or mistake? Every element of an output against the true sum of its products, with proof."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from detconv import _core
from detconv.arrays import Array as AnyArray
from detconv.verdict import bounds
from detconv.verdict.bounds import CONFIDENCE, FORMATS
from detconv.verdict.problem import Array, Problem, numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from detconv.verdict.diagnose import Diagnosis

# From the best to the worst; the engine's numbers of them.
STATUSES = ("identical", "rounding", "unlikely", "mistake")


class ConvolutionMistake(AssertionError):
    """An output that no order of additions explains; its text is the explanation.

    Attributes:
        verdict: the verdict that says so.
    """

    verdict: Verdict


@dataclass(frozen=True, eq=False)
class Verdict:
    """What an output is, element by element. Arrays have the output's shape.

    Attributes:
        status: the worst status of all elements.
            ``"identical"``: the true sum of the products and the bias, rounded once.
            ``"rounding"``: within what roundings probably cause.
            ``"unlikely"``: within what they can cause, but beyond what they cause with the stated confidence.
            ``"mistake"``: proven: no order of the additions, in the precision that is claimed, gives this value.
        counts: how many elements have each status.
        exact: the true sums, rounded once to the type of the candidate.
        magnitude: S, the sums of abs(w*x) and abs(bias); infinities and NaN among the operands count as 0.
        confidence: the probability with which rounding errors, if they are random, carry no element of all beyond its
            ``probable_bound``.
        stored, dtype: the formats of the candidate and of the arithmetic that is claimed.
    """

    problem: Problem
    candidate: Array
    exact: Array
    magnitude: Array
    stored: str
    dtype: str
    confidence: float
    codes: Array  # of the elements' statuses, their places in STATUSES
    counts: dict[str, int]
    worst: float  # the largest difference as a multiple of its bound
    worst_element: tuple[int, ...] | None
    _hard: Array  # bound = hard * S + tiny, by position of the last two axes, and the roundings to the format stored
    _likely: Array
    _tiny: Array

    @property
    def status(self) -> str:
        return max((status for status in STATUSES if self.counts[status]), key=STATUSES.index, default="identical")

    @cached_property
    def elements(self) -> Array:
        """The status of every element, as text."""
        return np.array(STATUSES)[self.codes]

    @cached_property
    def error(self) -> Array:
        """candidate - exact, in float64."""
        with np.errstate(invalid="ignore"):
            return self.candidate.astype(np.float64) - self.exact

    @cached_property
    def ulps(self) -> Array:
        """The distance from the correctly rounded value in units in its last place."""
        with np.errstate(invalid="ignore"):
            return np.abs(self.error) / (2 * bounds.half_ulp(self.exact, FORMATS[self.stored]))

    @cached_property
    def bound(self) -> Array:
        """The largest distance from ``exact`` that any order and tree of the additions can cause. gamma_n * S, with
        the roundings of exact and candidate to the format in which they are stored."""
        return self._hard * self.magnitude + self._fixed()

    @cached_property
    def probable_bound(self) -> Array:
        """The same with the stated confidence: lambda * sqrt(n) * u * S, where that is less."""
        return self._likely * self.magnitude + self._fixed()

    def _fixed(self) -> Array:
        stored = FORMATS[self.stored]
        rounded = bounds.half_ulp(self.exact, stored)
        if stored.digits < FORMATS[self.dtype].digits:
            rounded = rounded + bounds.half_ulp(self.candidate, stored)
        return rounded + self._tiny

    @cached_property
    def share(self) -> Array:
        """abs(error) / bound: more than 1 is a mistake, and infinite where an infinity or NaN is one."""
        with np.errstate(invalid="ignore", divide="ignore"):
            share = np.abs(self.error) / self.bound
        # Where that is no number, the status says on which side of the bound the element is.
        return np.where(np.isfinite(share), share, np.array([0, 0, 1, np.inf])[self.codes])

    @cached_property
    def condition(self) -> Array:
        """S / abs(exact): how far a sum cancels, and by how much that amplifies its relative error."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.magnitude / np.abs(self.exact.astype(np.float64))

    @cached_property
    def diagnosis(self) -> Diagnosis:
        """What mistake it is, or in what precision it was computed: see ``detconv.diagnose``."""
        from detconv.verdict.diagnose import diagnose_verdict

        return diagnose_verdict(self)

    def where(self, status: str) -> tuple[Array, ...]:
        """Indices of the elements with a status, as ``numpy.nonzero`` gives them.

        Raises:
            ValueError: no such status.
        """
        if status not in STATUSES:
            raise ValueError(f"status must be one of {', '.join(STATUSES)}; got {status!r}")
        return np.nonzero(self.codes == STATUSES.index(status))

    def explain(self) -> str:
        """The verdict in words a newcomer understands, with its numbers."""
        from detconv.verdict.explain import explain

        return explain(self)

    def raise_if_mistake(self) -> None:
        """Raise ConvolutionMistake, an AssertionError, with the explanation where an element is a mistake."""
        __tracebackhide__ = True  # pytest shows the line that called
        if self.status == "mistake":
            mistake = ConvolutionMistake(self.explain())
            mistake.verdict = self
            raise mistake

    def plot(self) -> Figure:
        """Maps of the error over the output's positions and channels, and histograms, against the bounds.

        Raises:
            ImportError: matplotlib is not installed.
        """
        from detconv.verdict.plots import plot

        return plot(self)

    def to_html(self, path: str | Path) -> None:
        """Write one page that holds everything, the pictures too where matplotlib is installed."""
        from detconv.verdict.page import write

        write(self, Path(path))

    def __repr__(self) -> str:
        counted = ", ".join(f"{count} {status}" for status, count in self.counts.items() if count)
        return f"<Verdict {self.status}: {counted or 'no elements'}>"

    def _repr_html_(self) -> str:
        from detconv.verdict.page import fragment

        return fragment(self)


def judge(
    candidate: AnyArray,
    input: AnyArray,
    weight: AnyArray,
    bias: AnyArray | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    *,
    dtype: str | None = None,
    confidence: float = CONFIDENCE,
) -> Verdict:
    """Say whether an output of conv2d differs from the true convolution by rounding or by a mistake, and prove it.

    Each element is compared with its true sum, rounded once. It is a mistake if it is further away than gamma_n * S:
    no order and no tree of additions can do that, fused or rounded, on any machine. n is the number of its products and
    the bias, S the sum of their magnitudes.

    Args:
        candidate: the output in question, (N, O, OH, OW) or (O, OH, OW); float32, float64, float16 or bfloat16.
        input, weight, bias, stride, padding, dilation, groups: as for ``conv2d``. Arrays of NumPy, torch or another
            library; the candidate may be of another one than the others, and of a narrower or wider type.
        dtype: the format in which the candidate claims to add: ``"float32"``, ``"float64"``, ``"float16"`` or
            ``"bfloat16"``. By default float32 for a candidate of float32 or a half type, and float64 for one of
            float64 or for operands of float64.
        confidence: of ``probable_bound``, for all elements together; less than 1.

    Raises:
        ValueError: shapes that cannot belong together, an unknown dtype, a confidence out of range.
        TypeError: an array of the wrong type or element type, or on another device.
    """
    problem = Problem.of("conv2d", input, weight, bias, stride, padding, dilation, groups)
    return judge_problem(candidate, problem, dtype, confidence)


def judge_input_gradient(
    candidate: AnyArray,
    input_size: Sequence[int],
    weight: AnyArray,
    grad_output: AnyArray,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    *,
    dtype: str | None = None,
    confidence: float = CONFIDENCE,
) -> Verdict:
    """``judge`` for the gradient of conv2d by its input; the arguments after candidate are those of ``conv2d_input``.

    Raises:
        ValueError, TypeError: as ``judge``.
    """
    problem = Problem.of("conv2d_input", input_size, weight, grad_output, stride, padding, dilation, groups)
    return judge_problem(candidate, problem, dtype, confidence)


def judge_weight_gradient(
    candidate: AnyArray,
    input: AnyArray,
    weight_size: Sequence[int],
    grad_output: AnyArray,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    *,
    dtype: str | None = None,
    confidence: float = CONFIDENCE,
) -> Verdict:
    """``judge`` for the gradient of conv2d by its weight; the arguments after candidate are those of ``conv2d_weight``.

    The terms of an element are those of all samples.

    Raises:
        ValueError, TypeError: as ``judge``.
    """
    problem = Problem.of("conv2d_weight", input, weight_size, grad_output, stride, padding, dilation, groups)
    return judge_problem(candidate, problem, dtype, confidence)


def judge_problem(
    candidate: Any, problem: Problem, dtype: str | None = None, confidence: float = CONFIDENCE
) -> Verdict:
    """The verdict on the output of a problem; arguments as for ``judge``."""
    values, stored = numbers("candidate", candidate)
    problem, dtype = claimed(problem, stored, dtype)
    if not 0 <= confidence < 1:
        raise ValueError(f"confidence must be at least 0 and less than 1; got {confidence!r}")

    exact = problem.exact(stored)
    if values.shape != exact.shape:
        raise ValueError(f"candidate must have the shape of the output, {exact.shape}; got {values.shape}")
    magnitude = problem.magnitude()
    hard, likely, tiny = limits(problem, dtype, confidence, exact)
    common = np.result_type(values, exact, magnitude)
    codes, counts, worst, worst_at = _core.assess(
        np.ascontiguousarray(values, common),
        np.ascontiguousarray(exact, common),
        np.ascontiguousarray(magnitude, common),
        hard,
        likely,
        tiny,
        FORMATS[dtype],
        FORMATS[stored],
    )
    element = None if worst_at < 0 else tuple(int(i) for i in np.unravel_index(worst_at, exact.shape))
    return Verdict(
        problem=problem,
        candidate=values,
        exact=exact,
        magnitude=magnitude,
        stored=stored,
        dtype=dtype,
        confidence=confidence,
        codes=codes,
        counts=dict(zip(STATUSES, counts, strict=True)),
        worst=worst,
        worst_element=element,
        _hard=hard,
        _likely=likely,
        _tiny=tiny,
    )


def claimed(problem: Problem, stored: str, dtype: str | None) -> tuple[Problem, str]:
    """The problem in the type in which a candidate of a format can be judged, and the format in which it claims to add.

    Raises:
        ValueError: an unknown dtype.
        TypeError: a half candidate of float64 operands.
    """
    operands = problem.element_type
    if operands == "float64" and stored not in ("float64", "float32"):
        raise TypeError(f"candidate must be float64 or float32 where the other arrays are float64; got {stored}")
    if dtype is None:
        dtype = "float64" if "float64" in (stored, operands) else "float32"
    if dtype not in FORMATS:
        raise ValueError(f"dtype must be one of {', '.join(FORMATS)}; got {dtype!r}")
    if stored == "float64" and operands != "float64":
        problem = problem.mapped(lambda array: array.astype(np.float64))
    return problem, dtype


def limits(problem: Problem, dtype: str, confidence: float, exact: Array) -> tuple[Array, Array, Array]:
    """hard, likely and tiny, by position: the bounds of an element are hard * S + tiny and likely * S + tiny."""
    n, claimed, own = problem.terms(), FORMATS[dtype], FORMATS[problem.element_type]
    deviations = bounds.deviation(float(n.max(initial=1)), exact.size, confidence)
    # S is computed in the operands' format, and may be too small by its own roundings.
    too_small = 1 + bounds.gamma(n, own.unit)
    # Sums of float64 that are stored in less were rounded twice, first to float64.
    twice = 2.0**-52 if problem.element_type == "float64" != exact.dtype.name else 0
    hard = bounds.gamma(n, claimed.unit) * too_small + twice
    likely = np.minimum(hard, bounds.probable(n, claimed.unit, deviations) * too_small + twice)
    return hard, likely, 2 * n * (claimed.tiny + hard * own.tiny)
