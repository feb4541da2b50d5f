"""Bias and scale, and what was done to the output's values: functions that yield guesses; see ``hypotheses``."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from detconv.verdict import bounds
from detconv.verdict.activations import ACTIVATIONS
from detconv.verdict.bounds import FORMATS
from detconv.verdict.case import Case, Expected, Guess, bias_of, kernel_of
from detconv.verdict.problem import Array
from detconv.verdict.wires import permutation

# ---- Bias ----


def _offset(case: Case) -> Array | None:
    """What was added to each output channel, beside what should be; None if that is not one number for each."""
    if case.expected is None or case.problem.name not in ("conv2d", "conv_transpose2d"):
        return None
    unfit = case.unfit.any(axis=(0, 2, 3))
    residual = case.residual[case.thinned]
    offset = np.where(unfit, np.median(residual, axis=(0, 2, 3)), 0.0)
    near = np.abs(residual - offset[:, None, None]) <= 2 * case.expected.bound[case.thinned]
    return offset if near[:, unfit].mean() > 0.9 else None


def _bias_is(case: Case, says: str, bias: Array | None) -> Guess:
    return case.guess(says, bias=bias)


def bias_alone(case: Case) -> Iterator[Guess]:
    """Nothing but the bias, everywhere: no term was added to it."""
    bias = bias_of(case.problem)
    if bias is None or case.expected is None or not bias.any():
        return
    values = np.broadcast_to(bias.astype(np.float64)[:, None, None], case.candidate.shape)
    rounded = np.broadcast_to(bounds.half_ulp(bias, FORMATS[case.stored])[:, None, None], case.candidate.shape)
    alone = Expected(values, rounded)
    if alone.fits(case.candidate).all():
        yield Guess("the output is only the bias: no products are added to it", case.problem, lambda e: alone)


def bias_missing(case: Case) -> Iterator[Guess]:
    if _biased(case):
        yield _bias_is(case, "the bias is missing", None)


def bias_doubled(case: Case) -> Iterator[Guess]:
    if _biased(case):
        yield _bias_is(case, "the bias is added twice", 2 * case.problem.bias)


def bias_subtracted(case: Case) -> Iterator[Guess]:
    if _biased(case):
        yield _bias_is(case, "the bias is subtracted", -case.problem.bias)


def bias_of_others(case: Case) -> Iterator[Guess]:
    """Each channel that is off has the bias of another one."""
    offset = case.once("offset", _offset) if _biased(case) else None
    if offset is None:
        return
    bias = case.problem.bias.astype(np.float64)
    off = offset != 0
    wanted = np.where(off, bias + offset, bias)
    order = np.where(off, np.argmin(np.abs(wanted[:, None] - bias), axis=1), np.arange(len(bias)))
    if (order[off] != np.flatnonzero(off)).all():
        yield _bias_is(case, f"the biases are {permutation(order)}", case.problem.bias[order])


def bias_elsewhere(case: Case) -> Iterator[Guess]:
    """The bias goes with another axis than that of the channels."""
    if not _biased(case) or case.expected is None:
        return
    right = case.problem.bias[:, None, None]
    for axis, what in ((0, "sample"), (2, "row"), (3, "column")):
        if case.candidate.shape[axis] == right.size or (right.size == 1 and axis != 0):
            wrong = np.expand_dims(right.ravel(), tuple(a for a in range(4) if a != axis))
            yield Guess(
                f"the bias is added by {what} instead of by output channel", case.problem, _plus(wrong, minus=right)
            )


def constant_added(case: Case) -> Iterator[Guess]:
    offset = case.once("offset", _offset)
    if offset is None:
        return
    off = np.flatnonzero(offset)
    added = offset[off]
    if len(off) == 0:
        return
    p = case.problem
    bias = (np.zeros(len(offset)) if p.bias is None else p.bias.astype(np.float64)) + offset
    same = np.ptp(added) <= 1e-4 * np.abs(added).max()
    number = f"{np.median(added):.6g}" if same else f"a number for each channel ({added[0]:.4g}, ...)"
    yield _bias_is(case, f"{number} is added", bias.astype(p.weight.dtype))._replace(parameters=1 if same else len(off))


def _biased(case: Case) -> bool:
    bias = bias_of(case.problem)
    return bias is not None and bool(bias.any())


def _plus(added: Array, minus: Array | float = 0.0) -> Callable[[Expected], Expected]:
    """Numbers added to the output, and others not."""

    def then(e: Expected) -> Expected:
        size = np.abs(e.values) + np.abs(added) + np.abs(minus)
        return Expected(e.values.astype(np.float64) - minus + added, e.bound + size * 2.0**-23)

    return then


# ---- Scale ----


def negated(case: Case) -> Iterator[Guess]:
    negative = Guess("the sign is wrong: everything is negated", case.problem, lambda e: Expected(-e.values, e.bound))
    yield negative._replace(planes=True)


def samples_averaged(case: Case) -> Iterator[Guess]:
    """A gradient over the number of samples, or of samples and pixels, as of a loss that is a mean."""
    p = case.problem
    if p.name not in ("conv2d_input", "conv2d_weight"):
        return
    samples, pixels = len(p.grad_output), int(np.prod(p.grad_output.shape[2:]))
    words = "not added up but averaged" if p.name == "conv2d_weight" else "divided by their number"
    counts = {samples: f"the samples are {words}: the gradient is 1/{samples} of what it should be"}
    says = f"the samples and the pixels of the output are {words}"
    counts.setdefault(samples * pixels, f"{says}: the gradient is 1/{samples * pixels} of what it should be")
    for count, says in counts.items():
        if count > 1:
            yield Guess(says, p, _times(np.array(1 / count)), planes=True)


def scaled(case: Case) -> Iterator[Guess]:
    """By one number, or one for each output channel; the bias as well or not."""
    if case.expected is None:
        return
    whole, found = (array.astype(np.float64) for array in (case.expected.values, case.candidate))
    for factors, names in _factors(case, whole, found):
        for factor, parameters in _snapped(factors, case):
            yield Guess(
                f"the output is multiplied by {names(factor)}",
                case.problem,
                _times(factor),
                parameters=parameters,
                planes=factor.ndim == 0,
            )
    if not _biased(case):
        return
    bias = case.problem.bias[:, None, None].astype(np.float64)
    for factors, names in _factors(case, whole - bias, found - bias):
        for factor, parameters in _snapped(factors, case):
            says = f"the sum of products is multiplied by {names(factor)}; the bias is not"
            yield Guess(says, case.problem, _times(factor, bias), parameters=parameters)


def _times(factor: Array, but: Array | float = 0.0) -> Callable[[Expected], Expected]:
    """Multiplied, all but a part."""

    def then(e: Expected) -> Expected:
        values = (e.values - but) * factor + but
        return Expected(values, e.bound * np.abs(factor) + (np.abs(values) + np.abs(but)) * 2.0**-22)

    return then


def _finite(values: Array) -> Array:
    return np.where(np.isfinite(values), values, 0.0)


def _factors(case: Case, ideal: Array, found: Array) -> Iterator[tuple[Array, Callable[[Array], str]]]:
    few, wrong = (_finite(array[case.sample]) for array in (ideal, found))
    square = np.sum(few**2)
    if square > 0:
        yield np.array(np.sum(few * wrong) / square), lambda f: _number(float(f), case)
    ideal, found = (_finite(array[case.thinned]) for array in (ideal, found))
    by_channel = np.sum(ideal**2, axis=(0, 2, 3), keepdims=True)
    if found.shape[1] > 1 and found[:, 0].size > 4:
        each = np.sum(ideal * found, axis=(0, 2, 3), keepdims=True) / np.where(by_channel > 0, by_channel, 1)
        off = case.unfit.any(axis=(0, 2, 3), keepdims=True)
        yield (
            np.where(off, each, 1.0),
            lambda f: f"one number for each output channel ({_number(float(f[off][0]), case)}, ...)",
        )


def _snapped(factors: Array, case: Case) -> Iterator[tuple[Array, float]]:
    """The factors as numbers that somebody may have meant, if they are near to some; else as they are."""
    if factors.ndim == 0:
        for meant in _meant(case):
            if meant != 1 and abs(float(factors) - meant) <= 2e-3 * abs(meant):
                yield np.array(meant), 0.5
    if np.abs(factors - 1).max() > 1e-4:
        yield factors, float(np.count_nonzero(factors != 1))


def _meant(case: Case) -> dict[float, str]:
    p = case.problem
    taps = int(np.prod(kernel_of(p)))
    meant = {1 / 255: "1/255", 255.0: "255", 1 / 256: "1/256"}
    counts = {"the number of taps": taps, "the number of samples": len(case.candidate)}
    if p.name == "conv2d":
        counts = {
            "the number of terms": taps * p.weight.shape[1],
            **counts,
            "the number of input channels": p.weight.shape[1],
        }
        counts["the number of groups"] = int(p.groups)
    elif p.name == "conv2d_weight":
        counts = {"the number of samples": len(p.grad_output), "the number of terms": p.grad_output[:, 0].size}
    for words, count in [(words, count) for words, count in counts.items() if count > 0]:
        meant.setdefault(1 / count, f"1/{count}, one over {words}")
        meant.setdefault(float(np.sqrt(1 / count)), f"the square root of 1/{count}, one over {words}")
    meant.setdefault(2.0, "2, as if it were computed or added twice")
    for power in (-4, -3, -2, -1, 2, 3, 4, -8, 8):
        meant.setdefault(2.0**power, f"{2.0**power:g}")
    return meant


def _number(factor: float, case: Case) -> str:
    return _meant(case).get(factor) or f"{factor:.6g}"


# ---- Afterwards ----


def activated(case: Case) -> Iterator[Guess]:
    for name, function in ACTIVATIONS.items():

        def then(e: Expected, function: Callable[[Array], Array] = function) -> Expected:
            values = function(e.values.astype(np.float64))
            return Expected(values, 1.2 * e.bound + np.abs(values) * 2.0**-22)

        if _shows(case, function):
            yield Guess(f"{name} is applied to the output", case.problem, then, planes=True)


# So many elements on each side of a kink, or at each end of a curve, show that it is there.
_ON_EACH_SIDE = 3


def _shows(case: Case, function: Callable[[Array], Array]) -> bool:
    """Whether elements that are as the function makes them lie on both sides of its kink, several on each: where it has
    two slopes, or else several values. A few alone fit many functions."""
    if case.expected is None:
        return False
    some = case.evenly
    right, found = case.expected.values[some].astype(np.float64), case.candidate[some]
    made, bound = function(right), 1.2 * case.expected.bound[some] + np.abs(right) * 2.0**-20
    fits = np.abs(found - made) <= bound
    if not fits.all():  # it may hold in a part alone
        fits &= case.evenly_in_box
    step = 1e-3 * (1 + np.abs(right[fits]))
    slopes = (function(right[fits] + step) - function(right[fits] - step)) / (2 * step)
    return _spread(slopes, 0.01) or (not slopes.any() and _spread(made[fits], 0.0))


def _spread(values: Array, least: float) -> bool:
    """Whether several of the numbers are smaller than several others by more than this."""
    if values.size < 2 * _ON_EACH_SIDE:
        return False
    ordered = np.sort(values)
    return bool(ordered[-_ON_EACH_SIDE] - ordered[_ON_EACH_SIDE - 1] > least)


def input_added(case: Case) -> Iterator[Guess]:
    p = case.problem
    if p.name == "conv2d" and case.expected is not None and p.input.shape == case.candidate.shape:
        yield Guess("the input is added to the output", p, _plus(p.input))
