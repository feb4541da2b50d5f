"""Which mistake? Each one that is known is made, and the output judged against what it gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from detconv.arrays import Array as AnyArray
from detconv.verdict import regions
from detconv.verdict.bounds import CONFIDENCE, Claim
from detconv.verdict.case import Case, Expected, Guess, cropped, shape_of
from detconv.verdict.hypotheses import ROWS, Row
from detconv.verdict.judge import Verdict, claimed, judge_problem
from detconv.verdict.problem import Array, Problem, numbers

# A guess must make the output this much more likely, in bits: for each number that it took from the output, and at all.
_BITS_PER_PARAMETER = 20.0
_LEAST_BITS = 10.0
# The largest share of a mistake's own part that may have other values: a border that nobody filled.
_LARGEST_EXCEPTION = 0.34


@dataclass(frozen=True)
class Hypothesis:
    """A mistake that explains the output.

    Attributes:
        name: which kind, one of a fixed list.
        says: what was computed instead, and where.
        explains: the fraction of all elements that are now as expected.
        status: ``"identical"`` if those are what the mistake gives, rounded once; else ``"rounding"``.
    """

    name: str
    says: str
    explains: float
    status: str

    def __str__(self) -> str:
        return self.says


@dataclass(frozen=True)
class Diagnosis:
    """What was probably computed. True if there is a hypothesis, and printed as a paragraph.

    Attributes:
        hypotheses: all that explain the output, the best first: by how much they explain, then the simpler first.
        otherwise: what is known without any.
    """

    hypotheses: tuple[Hypothesis, ...]
    otherwise: str

    @property
    def first(self) -> Hypothesis | None:
        return self.hypotheses[0] if self.hypotheses else None

    def __bool__(self) -> bool:
        return bool(self.hypotheses)

    def __str__(self) -> str:
        if not self.hypotheses:
            return self.otherwise
        first, *others = self.hypotheses
        text = f"Diagnosis: {first.name}. {first.says[0].upper()}{first.says[1:]}. {_explained(first)}"
        if others:
            text += " What would explain it too: " + "; ".join(f"{h.name} ({h.says})" for h in others[:4]) + "."
        return text


def _explained(found: Hypothesis) -> str:
    how = "to the last bit" if found.status == "identical" else "up to rounding"
    share = "all elements" if found.explains == 1 else f"{100 * found.explains:.3g}% of the elements"
    return f"That explains {share} {how}."


def diagnose(
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
) -> Diagnosis:
    """Say which mistake an output of conv2d has in it, or in what precision it was computed.

    Some fifty kinds of mistakes are tried, in all their variants: each is made, and reported only if the output fits
    what it gives up to rounding and does not fit the convolution that was asked for. An output whose operands were
    rounded to TF32 or a half type is told even where it lies within the bounds: by its distance from the sums of the
    rounded numbers, which must be less by far.

    Args:
        candidate: as for ``judge``; it may also have another shape than the output should have.
        input, weight, bias, stride, padding, dilation, groups, dtype: as for ``judge``.

    Raises:
        ValueError: arguments that cannot belong together, an unknown dtype.
        TypeError: an array of the wrong type or element type, or on another device.
    """
    problem = Problem.of("conv2d", input, weight, bias, stride, padding, dilation, groups)
    values, stored = numbers("candidate", candidate)
    claim = claimed(problem, stored, dtype)
    if values.shape == shape_of(problem):
        return diagnose_verdict(judge_problem(candidate, problem, dtype))
    if values.ndim != len(shape_of(problem)):
        raise ValueError(f"candidate must have {len(shape_of(problem))} axes, as the output; got shape {values.shape}")
    problem.run("naive")  # raises what is to be raised about the arguments
    return _diagnosed(_case(values, problem, stored, claim, CONFIDENCE))


# The passes that the hypotheses are about.
DIAGNOSED = ("conv2d", "conv2d_input", "conv2d_weight")


def diagnose_verdict(verdict: Verdict) -> Diagnosis:
    """The diagnosis of a judged output of any pass."""
    v = verdict
    if v.exact.size == 0:
        return Diagnosis((), "There is nothing to diagnose: there are no elements.")
    if v.problem.name not in DIAGNOSED:
        return Diagnosis((), f"No mistakes are known of {v.problem.name}: only of conv2d and its gradients.")
    if not v.problem.terms().any():
        return Diagnosis((), "There is nothing to diagnose: the sums have no terms, so each is 0, or the bias.")
    return _diagnosed(_case(v.candidate, v.problem, v.container, v.claim, v.confidence))


def _case(values: Array, problem: Problem, stored: str, claim: Claim, confidence: float) -> Case:
    """With an axis for the samples, and all in arrays of their own that are easy to index."""
    if stored == "float64" and problem.element_type != "float64":
        problem = problem.mapped(lambda array: array.astype(np.float64))
    changes: dict[str, Any] = {}
    for name, array in problem.operands():
        if name in ("input", "grad_output") and array.ndim == 3:
            changes[name] = array[None]
    if problem.name == "conv2d_input" and len(problem.input_size) == 3:
        changes["input_size"] = (1, *problem.input_size)
    if values.ndim == 3:
        values = values[None]
    return Case(problem.having(**changes), values, stored, claim, confidence)


@np.errstate(all="ignore")  # infinities and NaN are numbers like others here
def _diagnosed(case: Case) -> Diagnosis:
    wrong = bool(case.unfit.any())
    found = []
    for place, row in enumerate(ROWS):
        if not wrong and not row.always:
            continue
        best: Hypothesis | None = None
        for guess in row.guesses(case):
            if best is not None and best.explains == 1:
                break
            made = _tested(case, row, guess)
            if made is not None and (best is None or made.explains > best.explains):
                best = made
        if best is not None:
            found.append((-best.explains, place, best))
    hypotheses = tuple(made for *_, made in sorted(found, key=lambda entry: entry[:2]))
    return Diagnosis(hypotheses, "" if hypotheses else _otherwise(case))


def _tested(case: Case, row: Row, guess: Guess) -> Hypothesis | None:
    """The guess as a hypothesis, if the output is what it gives."""
    expected = _given(case, guess)
    if expected is None:
        return None
    some = case.sample
    if np.mean(expected.mapped(lambda array: array.ravel()[some]).fits(case.candidate.ravel()[some])) < 0.5:
        return None
    fits = expected.fits(case.candidate)
    status = "identical" if np.array_equal(case.candidate[fits], expected.values[fits], equal_nan=True) else "rounding"
    if row.proves and fits.all():
        return Hypothesis(row.name, guess.says, 1.0, status)
    where = regions.place(case.unfit, case.problem.name)
    if guess.leaves:
        explains = 1.0 - int(np.count_nonzero(case.unfit)) / case.unfit.size
        return Hypothesis(row.name, guess.says, explains, status)
    inside = fits[case.box]
    says, explains = guess.says, 1.0
    if not inside.all():
        rest = np.zeros(fits.shape, np.bool_)
        rest[case.box] = ~inside
        around = np.prod([index.size for index in regions.spans(rest)])
        if around > _LARGEST_EXCEPTION * inside.size:
            return None
        explains = 1.0 - int(np.count_nonzero(rest)) / fits.size
        says += f"; but not {regions.place(rest, case.problem.name)}"
    if case.expected is not None and _bits(case, expected, fits) < _LEAST_BITS + _BITS_PER_PARAMETER * guess.parameters:
        return None
    if not fits.all() and where != "everywhere":
        says += f" ({where})"
    return Hypothesis(row.name, says, explains, status)


def _given(case: Case, guess: Guess) -> Expected | None:
    """What the guess gives; None where it has another shape, or where a part of it shows that it does not fit."""
    changed = guess.problem is not case.problem
    if changed and guess.then is None and shape_of(guess.problem) != case.candidate.shape:
        return None
    try:
        if changed and not _plausible(case, guess):
            return None
        if changed or guess.stored or guess.claim or case.expected is None:
            expected = case.expects(guess.problem, guess.stored, guess.claim)
        else:
            expected = case.expected
    except ValueError:  # sizes that do not fit: nobody can have computed this
        return None
    if guess.then is not None:
        expected = guess.then(expected)
    return expected if expected.values.shape == case.candidate.shape else None


def _plausible(case: Case, guess: Guess) -> bool:
    """Whether most elements of a part of the output fit, roughly: most guesses need not be computed as a whole."""
    if guess.problem.name != "conv2d" or guess.stored or guess.claim:
        return True
    samples, outputs = case.crop
    if (len(guess.problem.input), len(guess.problem.weight)) != case.candidate.shape[:2]:
        return True
    chosen = np.ix_(samples, outputs)
    made = [
        Expected.of(part, case.stored, case.claim, case.confidence, rough=True)
        for part in cropped(guess.problem, samples, outputs)
    ]
    expected = Expected(*(np.concatenate(arrays, axis=1) for arrays in zip(*made, strict=True)))
    if guess.then is not None:
        expected = guess.then(expected)
    unfit = case.unfit[chosen]
    if expected.values.shape != unfit.shape:
        return False
    return bool(np.mean(expected.fits(case.candidate[chosen])[unfit]) > 0.5)


def _bits(case: Case, expected: Expected, fits: Array) -> float:
    """How much more likely the output is made: n/2 * log2 of the ratio of the mean square distances, over their bounds.

    Normal errors of unknown size are taken for granted, and no error counts for more than 10^4 bounds or less than a
    hundredth.
    """
    assert case.expected is not None
    before, after = case.expected, expected
    inside = fits[case.box]
    squares = []
    for one in (before, after):
        distance = np.abs(case.candidate.astype(np.float64) - one.values)[case.box][inside]
        ratio = distance / np.maximum(after.bound[case.box][inside], 1e-300)
        ratio = np.where(np.isnan(ratio), 1e4 if one is before else 0.0, ratio)
        squares.append(np.mean(np.clip(ratio, 1e-2, 1e4) ** 2) if ratio.size else 1.0)
    return float(inside.sum() / 2 * np.log2(squares[0] / squares[1]))


def _otherwise(case: Case) -> str:
    """What is known of an output that no hypothesis explains."""
    if not case.unfit.any():
        return "There is nothing to diagnose: the output is what it should be, up to rounding."
    tried = f"None of these: no mistake of {len(ROWS)} kinds that were tried gives this output."
    if case.expected is None:
        return f"{tried} Its shape is {case.candidate.shape}; it should be {shape_of(case.problem)}."
    count, size = np.count_nonzero(case.unfit), case.unfit.size
    where = regions.place(case.unfit, case.problem.name)
    within = int(np.prod([index.size for index in case.box]))
    dense = "all elements there" if count == within else f"{count} of the {within} elements there"
    text = f"{tried} {count} of {size} elements are wrong: {where}, {dense}."
    values = case.expected.values[case.unfit].astype(np.float64)
    typical = float(np.sqrt(np.mean(case.residual[case.unfit] ** 2)))
    values = values[np.isfinite(values)]
    scale = float(np.sqrt(np.mean(values**2))) if values.size else 0.0
    if scale > 0:
        text += (
            f" They are off by {typical:.3g} on average (root mean square), {100 * typical / scale:.3g}% of their size."
        )
    return text
