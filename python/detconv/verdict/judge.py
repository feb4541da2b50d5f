"""Rounding or mistake? Every element of an output against the true sum of its products, with proof."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from detconv import _core
from detconv.arrays import Array as AnyArray
from detconv.quoting import quoted
from detconv.verdict import bounds
from detconv.verdict.bounds import CONFIDENCE, FORMATS, Claim, rounded
from detconv.verdict.problem import Array, Problem, numbers, on_cpu
from detconv.verdict.together import STATUSES as STATUSES
from detconv.verdict.together import Power, Together, power_of, spare_likely

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from detconv.verdict.diagnose import Diagnosis


class ConvolutionMistake(AssertionError):
    """An output that roundings do not explain: no order of the additions does, or none that is likely.

    Its text is the explanation. It begins with "Mistake:" where that is proven and with "Unlikely:" where it is not.

    Attributes:
        verdict: the verdict that says so.
    """

    verdict: Verdict


class WrongShape(ValueError):
    """A candidate has another shape than the output should have: ``diagnose`` may say why."""


@dataclass(frozen=True, eq=False)
class Verdict:
    """What an output is, element by element and as a whole. Arrays have the output's shape.

    Attributes:
        status: the worst status of all elements, or that of all of them together where that is worse.
            ``"identical"``: the true sum of the products and the bias, rounded once.
            ``"rounding"``: within what roundings probably cause.
            ``"unlikely"``: within what they can cause, but beyond what they cause with the stated confidence, and far
            beyond what they cause in sums of the same numbers in other orders.
            ``"mistake"``: proven: no order of the additions, in the arithmetic that is claimed, gives this value.
        counts: how many elements have each status, each judged alone.
        exact: the true sums, rounded once to the format in which the candidate is stored.
        magnitude: S, the sums of abs(w*x) and abs(bias); infinities and NaN among the operands count as 0.
        confidence: the probability with which rounding errors, if they are random, carry no element of all beyond its
            ``probable_bound``.
        container: the element type of the candidate.
        stored: the format that its values have: ``container``, or that of the operands where all values are numbers of
            that format, though they lie in a wider container.
        claim: the arithmetic that is claimed; ``dtype`` is its text.
        together: all elements judged together.
    """

    problem: Problem
    candidate: Array
    exact: Array
    magnitude: Array
    container: str
    stored: str
    claim: Claim
    confidence: float
    codes: Array  # of the elements' statuses, their places in STATUSES
    counts: dict[str, int]
    worst: float  # the largest difference as a multiple of its bound
    worst_element: tuple[int, ...] | None
    together: Together
    _limits: Limits

    @property
    def dtype(self) -> str:
        """The arithmetic that is claimed, ``ACCUMULATOR`` or ``PRODUCTS/ACCUMULATOR``."""
        return str(self.claim)

    @property
    def status(self) -> str:
        worst = max((status for status in STATUSES if self.counts[status]), key=STATUSES.index, default="identical")
        return worst if worst == "mistake" else max(worst, self.together.status, key=STATUSES.index)

    @cached_property
    @np.errstate(all="ignore")
    def power(self) -> Power:
        """What the verdict could have seen."""
        return power_of(self)

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
        the roundings of the operands, if they are claimed, and of exact and candidate to the format in which they are
        stored; 0 where S is so small that no order rounds at all."""
        return np.where(self.is_exact, 0.0, self._limits.bound(self.magnitude) + self._representation())

    @cached_property
    def probable_bound(self) -> Array:
        """The same with the stated confidence: lambda * sqrt(n) * u * S, where that is less."""
        return np.where(self.is_exact, 0.0, self._limits.probable(self.magnitude) + self._representation())

    @cached_property
    def is_exact(self) -> Array:
        """The elements that every order computes without any rounding: see ``Problem.grain``."""
        return np.asarray(self.magnitude < self._limits.exact_below)

    def _representation(self) -> Array:
        stored = FORMATS[self.stored]
        rounded = bounds.half_ulp(self.exact, stored)
        if stored.digits < self.claim.format.digits:
            rounded = rounded + bounds.half_ulp(self.candidate, stored)
        return rounded

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
    @np.errstate(all="ignore")
    def arithmetic(self) -> tuple[str, str] | None:
        """What the values are like: the widest format in which sums may have been added that probably have such
        errors, and the narrowest that holds all values; None where no format of float64 and float32 does.

        Where the values are stored in fewer digits than the claimed accumulator has, wider sums look no different.
        """
        exact = self.exact if self.stored == "float64" else self.problem.in_double().run("pairwise")
        stored = next((name for name in ("bfloat16", "float16") if self._all_are(name)), self.stored)
        wide = FORMATS[stored].digits >= self.claim.format.digits
        names = ("float64", "float32") if wide else (self.claim.accumulator, "float32")
        for name in dict.fromkeys(names):
            claim = Claim(name, self.claim.products)
            limits = Limits.of(self.problem, claim, self.confidence, exact, self.magnitude)
            bound = 2 * limits.probable(self.magnitude) + bounds.half_ulp(self.candidate, FORMATS[stored])
            off = np.abs(self.candidate - exact)
            if (off <= bound + bounds.half_ulp(exact, FORMATS["float64"]))[np.isfinite(off)].all():
                return name, stored
        return None

    def _all_are(self, name: str) -> bool:
        """Whether all values, enough to be no chance, are numbers of a format that is narrower than they need be."""
        values, format = self.candidate, FORMATS[name]
        if format.digits >= FORMATS[self.stored].digits or np.count_nonzero(values) < 8:
            return False
        return np.array_equal(rounded(values, format), values, equal_nan=True)

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
            raise ValueError(f"status must be one of {', '.join(STATUSES)}; got {quoted(status)}")
        return np.nonzero(self.codes == STATUSES.index(status))

    def explain(self) -> str:
        """The verdict in words a newcomer understands, with its numbers."""
        from detconv.verdict.explain import explain

        return explain(self)

    def to_dict(self) -> dict[str, Any]:
        """The verdict as plain data, as ``detconv judge --json`` prints it; its ``version`` is that of its keys."""
        from detconv.verdict.record import record

        return record(self)

    def raise_if_mistake(self, *, allow_unlikely: bool = False) -> None:
        """Raise ConvolutionMistake, an AssertionError, with the explanation where the status is ``"mistake"`` or
        ``"unlikely"``; with allow_unlikely only where it is a mistake, which is proven."""
        __tracebackhide__ = True  # pytest shows the line that called
        if self.status == "mistake" or (self.status == "unlikely" and not allow_unlikely):
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
    transposed: bool = False,
    output_padding: int | tuple[int, int] = 0,
    dtype: str | None = None,
    confidence: float = CONFIDENCE,
) -> Verdict:
    """Say whether an output of conv2d differs from the true convolution by rounding or by a mistake, and prove it.

    Each element is compared with its true sum, rounded once. It is a mistake if it is further away than gamma_n * S:
    no order and no tree of additions can do that, fused or rounded, on any machine. n is the number of its products and
    the bias, S the sum of their magnitudes. Then all elements are judged together, by the errors that detconv's own
    orders make on a sample of them: see ``Together``.

    Args:
        candidate: the output in question, (N, O, OH, OW) or (O, OH, OW); float32, float64, float16 or bfloat16. An
            array on a GPU is copied.
        input, weight, bias, stride, padding, dilation, groups: as for ``conv2d``, or for ``conv_transpose2d`` if
            transposed. Arrays of NumPy, torch or another library; the candidate may be of another one than the others,
            and of a narrower or wider type.
        transposed: judge an output of ``conv_transpose2d``.
        output_padding: as for ``conv_transpose2d``; only where transposed.
        dtype: the arithmetic that the candidate claims: ``ACCUMULATOR`` or ``PRODUCTS/ACCUMULATOR``, each one of
            float64, float32, tf32, float16, bfloat16, float8_e4m3fn and float8_e5m2. ACCUMULATOR is the format in which
            the terms are added, PRODUCTS the one to which both operands are rounded before they are multiplied, to
            nearest or truncated; ``"tf32"`` is short for ``"tf32/float32"``. By default float64 for operands of float64
            and float32 for others, whatever the candidate is stored in.
        confidence: of ``probable_bound``, for all elements together; less than 1.

    Raises:
        ValueError: shapes that cannot belong together, an unknown dtype, a confidence out of range, an output_padding
            without transposed.
        TypeError: an array of the wrong type or element type, or an operand on another device.
    """
    problem = forward_problem(input, weight, bias, stride, padding, dilation, groups, transposed, output_padding)
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


def judge_bias_gradient(
    candidate: AnyArray,
    grad_output: AnyArray,
    *,
    operator: str = "conv2d",
    dtype: str | None = None,
    confidence: float = CONFIDENCE,
) -> Verdict:
    """``judge`` for the gradient by the bias: the sum of grad_output over samples and pixels, as of ``conv2d_bias``.

    Args:
        candidate: the gradient in question, (O,).
        grad_output: the gradient of the output, (N, O, OH, OW) or (O, OH, OW).
        operator: what the bias belongs to; so far ``"conv2d"``, whose bias gradient conv_transpose2d shares.
        dtype, confidence: as for ``judge``.

    Raises:
        ValueError, TypeError: as ``judge``; also an unknown operator.
    """
    if operator not in _BIAS_PASSES:
        raise ValueError(f"operator must be one of {', '.join(_BIAS_PASSES)}; got {quoted(operator)}")
    problem = Problem.of(_BIAS_PASSES[operator], grad_output)
    return judge_problem(candidate, problem, dtype, confidence)


# The pass that gives the bias gradient of an operator.
_BIAS_PASSES = {"conv2d": "conv2d_bias"}


def forward_problem(
    input: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    transposed: bool = False,
    output_padding: Any = 0,
) -> Problem:
    """The problem of an output, of conv2d or of its transpose.

    Raises:
        ValueError: an output_padding without transposed, a padding that a transposed convolution has not.
        TypeError: as ``Problem.of``.
    """
    if transposed:
        if isinstance(padding, str):
            raise ValueError(f"padding must be one or two whole numbers where transposed; got {quoted(padding)}")
        geometry = stride, padding, output_padding, groups, dilation
        return Problem.of("conv_transpose2d", input, weight, bias, *geometry)
    if output_padding not in (0, (0, 0), [0, 0]):
        raise ValueError(f"output_padding must be 0 unless transposed=True; got {quoted(output_padding)}")
    return Problem.of("conv2d", input, weight, bias, stride, padding, dilation, groups)


@np.errstate(all="ignore")  # infinities and NaN are numbers like others here
def judge_problem(
    candidate: Any, problem: Problem, dtype: str | None = None, confidence: float = CONFIDENCE
) -> Verdict:
    """The verdict on the output of a problem; arguments as for ``judge``."""
    values, container = numbers("candidate", on_cpu(candidate))
    claim = claimed(problem, container, dtype)
    if not 0 <= confidence < 1:
        raise ValueError(f"confidence must be at least 0 and less than 1; got {quoted(confidence)}")

    stored = kept(values, container, problem)
    problem = problem.in_double() if stored == "float64" else problem
    exact = problem.exact(stored)
    if values.shape != exact.shape:
        raise WrongShape(f"candidate must have the shape of the output, {exact.shape}; got {values.shape}")
    magnitude = problem.magnitude()
    limits = Limits.of(problem, claim, confidence, exact, magnitude)
    common = np.result_type(values, exact, magnitude)
    codes, counts, worst, worst_at, squares = _core.assess(
        np.ascontiguousarray(values, common),
        np.ascontiguousarray(exact, common),
        np.ascontiguousarray(magnitude, common),
        None if limits.shift is None else np.ascontiguousarray(limits.shift, common),
        limits.hard,
        limits.likely,
        limits.tiny,
        np.sqrt(np.maximum(problem.terms(), 1)),
        limits.exact_below,
        scale := whole_scale(common, magnitude),
        claim.format,
        FORMATS[stored],
    )
    element = None if worst_at < 0 else tuple(int(i) for i in np.unravel_index(worst_at, exact.shape))
    elements, *sums = squares
    error, size, usual, spread = (math.sqrt(total / max(elements, 1)) / scale for total in sums)
    together = Together(elements, error, size, spread, usual, problem, claim, stored, values, exact, magnitude)
    spared = spare_likely(together, values - exact, magnitude, codes) if counts[2] else 0
    counts = [counts[0], counts[1] + spared, counts[2] - spared, counts[3]]
    return Verdict(
        problem=problem,
        candidate=values,
        exact=exact,
        magnitude=magnitude,
        container=container,
        stored=stored,
        claim=claim,
        confidence=confidence,
        codes=codes,
        counts=dict(zip(STATUSES, counts, strict=True)),
        worst=worst,
        worst_element=element,
        together=together,
        _limits=limits,
    )


def whole_scale(common: Any, magnitude: Array) -> float:
    """A power of two times which the squares of the sums are numbers: 1 where those of float32 are."""
    largest = 1.0 if common == np.float32 else float(magnitude.max(initial=0.0, where=np.isfinite(magnitude)))
    # What is below 2^-1000 needs no more to be a number when it is squared, and 2^1024 is none itself.
    return math.ldexp(1.0, min(-math.frexp(largest)[1], 1000)) if largest > 0 else 1.0


def claimed(problem: Problem, container: str, dtype: str | None) -> Claim:
    """The arithmetic that a candidate of an element type claims.

    Raises:
        ValueError: an unknown dtype.
        TypeError: a half candidate of float64 operands.
    """
    operands = problem.element_type
    if operands == "float64" and container not in ("float64", "float32"):
        raise TypeError(f"candidate must be float64 or float32 where the other arrays are float64; got {container}")
    return Claim(operands) if dtype is None else Claim.parse(dtype)


def kept(values: Array, container: str, problem: Problem) -> str:
    """The format that the values of a candidate have: that of the caller's operands, where all of them are numbers of
    it though their container is wider. A container is no claim: sums of float32 are often written to arrays of double,
    which is what ``np.zeros(shape)`` makes.
    """
    narrower = problem.given
    if FORMATS[narrower].digits >= FORMATS[container].digits:
        return container
    return narrower if np.array_equal(rounded(values, FORMATS[narrower]), values, equal_nan=True) else container


class Limits(NamedTuple):
    """How far roundings carry sums. hard, likely and tiny go by position, shift by element."""

    hard: Array
    likely: Array
    tiny: Array
    shift: Array | None  # by how much the rounding of the operands moves the sums; None where that is not claimed
    exact_below: float  # sums with a smaller S are never rounded

    @staticmethod
    def of(problem: Problem, claim: Claim, confidence: float, exact: Array, magnitude: Array) -> Limits:
        """Of the sums of a problem, which are rounded to the type of exact."""
        n, own = problem.terms(), FORMATS[problem.element_type]
        deviations = bounds.deviation(float(n.max(initial=1)), exact.size, confidence)
        # S and the shifts are computed in the operands' format, and may be too small by their own roundings.
        too_small = 1 + bounds.gamma(n, own.unit)
        # Sums of float64 that are stored in less were rounded twice, first to float64.
        twice = 2.0**-52 if problem.element_type == "float64" != exact.dtype.name else 0
        hard = bounds.gamma(n, claim.format.unit) * too_small + twice
        likely = np.minimum(hard, bounds.probable(n, claim.format.unit, deviations) * too_small + twice)
        tiny = 2 * n * (claim.format.tiny + hard * own.tiny)
        shift = None if claim.products is None else problem.shifts(FORMATS[claim.products])
        if shift is not None:
            shift = shift * too_small + 2 * n * own.tiny if shift.any() else None
        below = 0.0 if shift is not None else problem.exact_below(claim.format, magnitude)
        return Limits(hard, likely, tiny, shift, below)

    def bound(self, magnitude: Array) -> Array:
        """The largest error of any order."""
        return self._of(self.hard, magnitude)

    def probable(self, magnitude: Array) -> Array:
        """The largest error of all, with the stated confidence."""
        return self._of(self.likely, magnitude)

    def _of(self, factor: Array, magnitude: Array) -> Array:
        if self.shift is None:
            return np.asarray(factor * magnitude + self.tiny)
        return np.asarray(factor * (magnitude + self.shift) + self.shift + self.tiny)
