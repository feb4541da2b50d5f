"""Bias and scale, and what was done to the output's values: functions that yield guesses; see ``hypotheses``."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from detconv.verdict.activations import ACTIVATIONS
from detconv.verdict.case import Case, Expected, Guess, kernel_of
from detconv.verdict.problem import Array
from detconv.verdict.wires import permutation

# ---- Bias ----


def _offset(case: Case) -> Array | None:
    """What was added to each output channel, beside what should be; None if that is not one number for each."""
    if case.expected is None or case.problem.name != "conv2d":
        return None
    unfit = case.unfit.any(axis=(0, 2, 3))
    offset = np.where(unfit, np.median(case.residual, axis=(0, 2, 3)), 0.0)
    near = np.abs(case.residual - offset[:, None, None]) <= 2 * case.expected.bound
    return offset if near[:, unfit].mean() > 0.9 else None


def _bias_is(case: Case, says: str, bias: Array | None) -> Guess:
    return case.guess(says, bias=bias)


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
    return case.problem.name == "conv2d" and case.problem.bias is not None and bool(case.problem.bias.any())


def _plus(added: Array, minus: Array | float = 0.0) -> Callable[[Expected], Expected]:
    """Numbers added to the output, and others not."""

    def then(e: Expected) -> Expected:
        size = np.abs(e.values) + np.abs(added) + np.abs(minus)
        return Expected(e.values.astype(np.float64) - minus + added, e.bound + size * 2.0**-23)

    return then


# ---- Scale ----


def negated(case: Case) -> Iterator[Guess]:
    yield Guess("the sign is wrong: everything is negated", case.problem, lambda e: Expected(-e.values, e.bound))


def scaled(case: Case) -> Iterator[Guess]:
    """By one number, or one for each output channel; the bias as well or not."""
    if case.expected is None:
        return
    whole = case.expected.values.astype(np.float64)
    for factors, names in _factors(case, whole, case.candidate.astype(np.float64)):
        for factor, parameters in _snapped(factors, case):
            yield Guess(
                f"the output is multiplied by {names(factor)}", case.problem, _times(factor), parameters=parameters
            )
    if not _biased(case):
        return
    bias, weight = case.problem.bias[:, None, None].astype(np.float64), case.problem.weight
    for factors, names in _factors(case, whole - bias, case.candidate - bias):
        for factor, parameters in _snapped(factors, case):
            made = weight * factor.astype(weight.dtype).reshape(-1, 1, 1, 1)
            says = f"the sum of products is multiplied by {names(factor)}; the bias is not"
            yield case.guess(says, weight=made)._replace(parameters=parameters)


def _times(factor: Array) -> Callable[[Expected], Expected]:
    def then(e: Expected) -> Expected:
        values = e.values * factor
        return Expected(values, e.bound * np.abs(factor) + np.abs(values) * 2.0**-22)

    return then


def _finite(values: Array) -> Array:
    return np.where(np.isfinite(values), values, 0.0)


def _factors(case: Case, ideal: Array, found: Array) -> Iterator[tuple[Array, Callable[[Array], str]]]:
    ideal, found = _finite(ideal), _finite(found)
    box = case.box
    square = np.sum(ideal[box] ** 2)
    if square > 0:
        yield np.array(np.sum(ideal[box] * found[box]) / square), lambda f: _number(float(f), case)
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
    for words, count in counts.items():
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

        yield Guess(f"{name} is applied to the output", case.problem, then)


def input_added(case: Case) -> Iterator[Guess]:
    p = case.problem
    if p.name == "conv2d" and case.expected is not None and p.input.shape == case.candidate.shape:
        yield Guess("the input is added to the output", p, _plus(p.input))
