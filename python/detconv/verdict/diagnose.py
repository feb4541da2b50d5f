"""Which mistake? Each one that is known is made, and the output judged against what it gives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import takewhile
from typing import Any, NamedTuple, overload

import numpy as np

from detconv import pages
from detconv.arrays import Array as AnyArray
from detconv.verdict import regions
from detconv.verdict.bounds import CONFIDENCE, Claim
from detconv.verdict.case import Case, Expected, Guess, cropped, shape_of
from detconv.verdict.geometry import shape_given_by
from detconv.verdict.hypotheses import ROWS, Row
from detconv.verdict.judge import Verdict, claimed, forward_problem, judge_problem
from detconv.verdict.problem import Array, Problem, numbers, on_cpu

# Of the keys of ``Diagnosis.to_dict``: raised where one of them changes its meaning or goes.
VERSION = 1

# A guess must make the output this much more likely, in bits: for each number that it took from the output, and at all.
_BITS_PER_PARAMETER = 20.0
_LEAST_BITS = 10.0
# The largest share of a mistake's own part that may have other values: a border that nobody filled.
_LARGEST_EXCEPTION = 0.34
# What a guess costs in bits, beside its parameters, where others explain as much: each axis on which it holds at some
# indices only, and a kind whose evidence is one of size, not of places and signs.
_BITS_PER_LIMIT = 5.0
_BITS_OF_PROOF = 10.0
# Guesses whose costs are less than so many bits apart are as simple as each other.
_AS_SIMPLE = 10.0
# So many hypotheses that give the same output are named.
_MOST_EQUAL = 3


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
class Diagnosis(Sequence[Hypothesis]):
    """What was probably computed: a sequence of hypotheses, the best first. Printed as a paragraph.

    It has a length and can be indexed, sliced and iterated; it is true if there is a hypothesis. The best explains the
    most elements; among those that explain as many, it is the one that takes the least to say: fewer numbers that were
    fitted to the output, fewer limits on where it holds, then the simpler mistake.

    Attributes:
        hypotheses: all that explain the output, as a tuple.
        otherwise: what is known without any.
        equals: how many of the first give the same output up to rounding, so that no number tells which one it is: 0
            where there is none, 1 where the first is told from all others, and at most 3.
    """

    hypotheses: tuple[Hypothesis, ...]
    otherwise: str
    equals: int = 1

    @property
    def first(self) -> Hypothesis | None:
        """The best hypothesis; where several give the same output (see ``one_of``), the simplest of them."""
        return self.hypotheses[0] if self.hypotheses else None

    @property
    def one_of(self) -> tuple[Hypothesis, ...]:
        """The hypotheses of which one is right, and the output does not tell which: often one alone."""
        return self.hypotheses[: self.equals]

    @overload
    def __getitem__(self, index: int) -> Hypothesis: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Hypothesis, ...]: ...

    def __getitem__(self, index: int | slice) -> Hypothesis | tuple[Hypothesis, ...]:
        return self.hypotheses[index]

    def __len__(self) -> int:
        return len(self.hypotheses)

    def __bool__(self) -> bool:
        return bool(self.hypotheses)

    def __str__(self) -> str:
        if not self.hypotheses:
            return self.otherwise
        first, others = self.hypotheses[0], self.hypotheses[max(self.equals, 1) :]
        if self.equals > 1:
            told = "; or ".join(f"{h.name} ({h.says})" for h in self.one_of)
            text = f"Diagnosis: one of {self.equals} that give the same output up to rounding: {told}."
            text += " Each explains all elements."
        else:
            text = f"Diagnosis: {first.name}. {first.says[0].upper()}{first.says[1:]}. {_explained(first)}"
        if others:
            text += " What would explain it too: " + "; ".join(f"{h.name} ({h.says})" for h in others[:4]) + "."
        return text

    def _repr_html_(self) -> str:
        """What a notebook shows: the paragraph, and all hypotheses as a table."""
        return pages.fragment(_shown(self))

    def to_dict(self) -> dict[str, Any]:
        """The diagnosis as plain data for JSON: ``version`` (of these keys), ``text``, ``equals`` and ``hypotheses``,
        the best first, each with its ``name``, ``says``, ``explains`` and ``status``."""
        return {
            "version": VERSION,
            "text": str(self),
            "equals": len(self.one_of),
            "hypotheses": [asdict(hypothesis) for hypothesis in self.hypotheses],
        }


def _shown(diagnosis: Diagnosis) -> Iterator[str]:
    yield from pages.paragraphs(str(diagnosis))
    if diagnosis:
        rows = [(h.name, h.says, f"{100 * h.explains:.3g}", _HOW[h.status]) for h in diagnosis]
        heads = ("mistake", "what was computed instead", "elements explained, in %", "how well")
        yield from pages.table("Hypotheses, the best first", heads, rows)


_HOW = {"identical": "to the last bit", "rounding": "up to rounding"}


def _explained(found: Hypothesis) -> str:
    share = "all elements" if found.explains == 1 else f"{100 * found.explains:.3g}% of the elements"
    return f"That explains {share} {_HOW[found.status]}."


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
    transposed: bool = False,
    output_padding: int | tuple[int, int] = 0,
    dtype: str | None = None,
) -> Diagnosis:
    """Say which mistake an output of conv2d or conv_transpose2d has in it, or in what precision it was computed.

    Some sixty kinds of mistakes are tried, in all their variants: each is made, on a part of the output first, and
    reported only if the output fits what it gives up to rounding and does not fit the convolution that was asked for.
    An output whose operands were rounded to TF32 or a half type is told even where it lies within the bounds: by its
    distance from the sums of the rounded numbers, which must be less by far. Gradients are diagnosed from their
    verdicts: ``judge_input_gradient(...).diagnosis``, and so on.

    Args:
        candidate: as for ``judge``; it may also have another shape than the output should have.
        input, weight, bias, stride, padding, dilation, groups, dtype: as for ``judge``.
        transposed, output_padding: the output is one of ``conv_transpose2d``, with this output_padding.

    Raises:
        ValueError: arguments that cannot belong together, an unknown dtype, an output_padding without transposed.
        TypeError: an array of the wrong type or element type, or on another device.
    """
    problem = forward_problem(input, weight, bias, stride, padding, dilation, groups, transposed, output_padding)
    values, stored = numbers("candidate", on_cpu(candidate))
    claim = claimed(problem, stored, dtype)
    if values.shape == shape_of(problem):
        return diagnose_verdict(judge_problem(candidate, problem, dtype))
    if values.ndim != len(shape_of(problem)):
        raise ValueError(f"candidate must have {len(shape_of(problem))} axes, as the output; got shape {values.shape}")
    problem.run("naive")  # raises what is to be raised about the arguments
    if values.size == 0:
        return _nothing()
    return _diagnosed(_case(values, problem, stored, claim, CONFIDENCE))


def diagnose_verdict(verdict: Verdict) -> Diagnosis:
    """The diagnosis of a judged output of any pass."""
    v = verdict
    if v.exact.size == 0:
        return _nothing()
    if not v.problem.terms().any():
        return Diagnosis((), "There is nothing to diagnose: the sums have no terms, so each is 0, or the bias.", 0)
    return _diagnosed(_case(v.candidate, v.problem, v.container, v.claim, v.confidence))


def _nothing() -> Diagnosis:
    return Diagnosis((), "There is nothing to diagnose: there are no elements.", 0)


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
    problem = problem.having(**changes)
    if problem.name == "conv2d_bias":
        problem, values = _as_weight_gradient(problem), values[:, None, None, None]
    return Case(problem, values, stored, claim, confidence)


def _as_weight_gradient(problem: Problem) -> Problem:
    """The gradient of a bias as that of the weights of a 1x1 convolution of ones, which has the same terms."""
    grad = problem.grad_output
    ones = np.ones((len(grad), 1, *grad.shape[2:]), grad.dtype)
    arguments = (ones, (grad.shape[1], 1, 1, 1), grad, 1, 0, 1, 1)
    return replace(problem, name="conv2d_weight", arguments=arguments)


# ---- Ranking ----


class _Found(NamedTuple):
    """A guess that the output fits.

    cost: what it takes to say it beyond its name, in bits: numbers that were fitted, where it holds.
    variant: its place among the guesses of its row that are as good.
    """

    hypothesis: Hypothesis
    guess: Guess
    cost: float
    proves: bool
    variant: int = 0

    @property
    def merit(self) -> tuple[float, float]:
        """The less, the better."""
        return -self.hypothesis.explains, self.cost

    def equals(self, other: _Found) -> bool:
        """Whether both give the same output up to rounding, and neither is the simpler."""
        both_whole = self.hypothesis.explains == other.hypothesis.explains == 1
        return both_whole and abs(self.cost - other.cost) < _AS_SIMPLE and not self.proves and not other.proves


@np.errstate(all="ignore")  # infinities and NaN are numbers like others here
def _diagnosed(case: Case) -> Diagnosis:
    wrong = bool(case.unfit.any())
    found: list[_Found] = []
    for row in ROWS:
        if (wrong or row.always) and (not row.passes or case.problem.name in row.passes):
            found += _of_row(case, row)
            if row.settles and any(one.merit == (-1.0, 0.0) for one in found):
                break
    found.sort(key=lambda one: (*one.merit, one.variant))  # stable: then in the order of the table
    ranked: list[_Found] = []
    for one in found:
        if not any(one.guess.is_as(better.guess) for better in ranked):
            ranked.append(one)
    if not ranked:
        return Diagnosis((), _otherwise(case), 0)
    equals = sum(1 for _ in takewhile(ranked[0].equals, ranked[1:_MOST_EQUAL])) + 1
    return Diagnosis(tuple(one.hypothesis for one in ranked), "", equals)


def _of_row(case: Case, row: Row) -> list[_Found]:
    """The best of a row's guesses; several where each explains everything, as simply as the others."""
    found: list[_Found] = []
    for guess in row.guesses(case):
        whole = [one for one in found if one.hypothesis.explains == 1]
        if len(whole) == _MOST_EQUAL or any(row.proves or one.cost >= _AS_SIMPLE for one in whole):
            break
        made = _tested(case, row, guess)
        if made is not None and not any(made.guess.is_as(other.guess) for other in found):
            found.append(made)
    found.sort(key=lambda one: one.merit)
    alike = [one for one in found if one is found[0] or one.equals(found[0])]
    return [one._replace(variant=place) for place, one in enumerate(alike)]


def _tested(case: Case, row: Row, guess: Guess) -> _Found | None:
    """The guess as a hypothesis, if the output is what it gives."""
    expected = _given(case, guess)
    if expected is None:
        return None
    some = case.sample
    if np.mean(expected.mapped(lambda array: array[some]).fits(case.candidate[some])) < 0.5:
        return None
    fits = expected.fits(case.candidate)
    status = "identical" if np.array_equal(case.candidate[fits], expected.values[fits], equal_nan=True) else "rounding"
    cost = _BITS_PER_PARAMETER * guess.parameters + _BITS_OF_PROOF * row.proves
    if row.proves and fits.all():
        return _Found(Hypothesis(row.name, guess.says, 1.0, status), guess, cost, True)
    where = regions.place(case.unfit, case.problem.name)
    if guess.leaves:
        explains = 1.0 - int(np.count_nonzero(case.unfit)) / case.unfit.size
        return _Found(Hypothesis(row.name, guess.says, explains, status), guess, cost, row.proves)
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
        cost += _BITS_PER_LIMIT * sum(index.size < size for index, size in zip(case.box, fits.shape, strict=True))
    return _Found(Hypothesis(row.name, says, explains, status), guess, cost, row.proves)


def _given(case: Case, guess: Guess) -> Expected | None:
    """What the guess gives; None where it has another shape, or where a part of it shows that it does not fit."""
    changed = guess.problem is not case.problem
    if changed and guess.then is None and shape_of(guess.problem) != case.candidate.shape:
        return None
    try:
        if not _plausible(case, guess):
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
    expected = None if guess.stored or guess.claim else _part(case, guess)
    if expected is None:
        return True
    chosen = np.ix_(*case.crop)
    unfit = case.unfit[chosen]
    if expected.values.shape != unfit.shape:
        return False
    return bool(np.mean(expected.fits(case.candidate[chosen])[unfit]) > 0.5)


def _part(case: Case, guess: Guess) -> Expected | None:
    """What the guess gives, roughly, in the planes of the case's crop; None where that cannot be computed alone."""
    if guess.problem is case.problem:
        if not guess.planes or case.expected is None:
            return None
        expected = case.expected_crop
    elif (
        case.problem.name == "conv2d_weight"
        or guess.problem.name != case.problem.name
        or shape_of(guess.problem)[:2] != case.candidate.shape[:2]
    ):
        return None
    else:
        made = [
            Expected.of(part, case.stored, case.claim, case.confidence, rough=True)
            for part in cropped(guess.problem, *case.crop)
        ]
        expected = Expected(*(np.concatenate(arrays, axis=1) for arrays in zip(*made, strict=True)))
    return expected if guess.then is None else guess.then(expected)


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
        told = shape_given_by(case.problem, case.candidate.shape)
        would = f" That is the shape if {told}; but the values are others." if told else ""
        return f"{tried} Its shape is {case.candidate.shape}; it should be {shape_of(case.problem)}.{would}"
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
