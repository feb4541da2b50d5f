"""What is fused behind a convolution, or in front of it: an addend, a normalisation by channel, an activation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from detconv.verdict.activations import ACTIVATIONS
from detconv.verdict.case import Case, Expected, Guess
from detconv.verdict.problem import Array

# A line is fitted to a channel that has so many elements at least.
_LEAST_ELEMENTS = 5
# So many rows of an output of more elements tell whether something is added to all of it.
_ROWS, _FEW = 8, 1 << 16
# The functions that are met right behind a sum or in front of a convolution.
_USUAL = (
    "ReLU",
    "ReLU6",
    "a leaky ReLU (0.01)",
    "a leaky ReLU (0.1)",
    "SiLU",
    "GELU",
    "GELU (tanh)",
    "tanh",
    "a sigmoid",
)


def residual(case: Case) -> Iterator[Guess]:
    """The layer's input added, as by a residual network's block, before or after an activation."""
    problem = case.problem
    if problem.name != "conv2d" or case.expected is None or problem.input.shape != case.candidate.shape:
        return
    added = problem.input.astype(np.float64)
    for name in _USUAL:
        function = ACTIVATIONS[name]

        def before(e: Expected, function: Callable[[Array], Array] = function) -> Expected:
            values = function(e.values + added)
            return Expected(values, 1.2 * e.bound + (np.abs(values) + np.abs(added)) * 2.0**-22)

        def after(e: Expected, function: Callable[[Array], Array] = function) -> Expected:
            values = function(e.values.astype(np.float64)) + added
            return Expected(values, 1.2 * e.bound + (np.abs(values) + np.abs(added)) * 2.0**-22)

        yield Guess(f"the input is added to the output, then {name} is applied", problem, before)
        yield Guess(f"{name} is applied to the output, then the input is added", problem, after)


def activated_input(case: Case) -> Iterator[Guess]:
    """An activation of the input: that of the layer before, or one of a block that activates first."""
    problem = case.problem
    if problem.name == "conv2d_input" or not problem.finite:
        return
    for name in _USUAL:
        values = ACTIVATIONS[name](problem.input.astype(np.float64)).astype(problem.input.dtype)
        if (values != problem.input).any():
            guess = case.guess(f"{name} is applied to the input", input=values)
            # Where it sets most of few pixels to 0, the sums of any few terms are as good an explanation.
            yield guess._replace(parameters=0.25)


def addend(case: Case) -> Iterator[Guess]:
    """Unknown numbers that are added: the same for all samples, or for all channels."""
    if case.expected is None or case.problem.name != "conv2d":
        return
    rows = _rows(case)
    for axis, what in ((0, "samples"), (1, "output channels")):
        count = case.candidate.shape[axis]
        if count < 3:
            continue  # as many numbers to choose as there are to explain, or nearly
        off = case.residual[:, :, rows]  # enough to see that it is not so
        near = np.abs(off - np.median(off, axis=axis, keepdims=True)) <= 2 * case.expected.bound[:, :, rows]
        if near.mean() < 0.98:
            continue
        added = np.median(case.residual, axis=axis, keepdims=True)
        if np.ptp(added) > 1e-3 * np.abs(added).max():
            says = f"something is added to the output that is the same for all {what}, as a bias of each position"
            yield Guess(says, case.problem, _line(np.array(1.0), added), parameters=case.residual.size / count)


def normalised(case: Case) -> Iterator[Guess]:
    """A scale and a shift: of all outputs, or by channel as a BatchNorm has them; ReLU behind it or not."""
    if case.expected is None or case.problem.name != "conv2d":
        return
    arrays, rows = (case.expected.values, case.candidate, case.expected.bound), _rows(case)
    for relu in (False, True):
        for axes, whose in (((0, 1, 2, 3), "the output is"), ((0, 2, 3), "each output channel is")):
            if _line_of([array[:, :, rows] for array in arrays], relu, axes) is None:
                continue  # some rows are enough to see that it is not so
            line = _line_of(arrays, relu, axes)
            if line is None:
                continue
            scale, shift = line
            numbers = f"by {scale.ravel()[0]:.6g} and {shift.ravel()[0]:.6g}"
            folded = f"as by a BatchNorm that is folded in or left out (the first {numbers})"
            by = numbers if scale.size == 1 else folded
            then = _line(scale, shift, ACTIVATIONS["ReLU"] if relu else None)
            says = f"{whose} scaled and shifted, {by}{', then ReLU is applied' * relu}"
            yield Guess(says, case.problem, then, parameters=2 * scale.size)


def _rows(case: Case) -> Array:
    """Some rows of an output that has many elements, else all."""
    rows = case.candidate.shape[2]
    return np.arange(rows) if case.candidate.size < _FEW else np.unique(np.linspace(0, rows - 1, _ROWS).astype(int))


def _line_of(arrays: Sequence[Array], relu: bool, axes: tuple[int, ...]) -> tuple[Array, Array] | None:
    """scale and shift, if what is found, where it is positive if a ReLU is behind, is scale * ideal + shift.

    arrays: ideal values, those found, and their bounds.
    """
    ideal, found, bound = (array.astype(np.float64) for array in arrays)
    used = np.isfinite(ideal) & np.isfinite(found) & ((found > 0) | (not relu))
    line = _fitted(ideal, found, used, axes)
    if line is None:
        return None
    scale, shift = line
    near = np.abs(scale * ideal + shift - found) <= 4 * np.abs(scale) * bound + 1e-6 * np.abs(found)
    if near[used].mean() < 0.9 or np.abs(scale - 1).max() < 1e-4 or not shift.any():
        return None
    return line


def _fitted(ideal: Array, found: Array, used: Array, axes: tuple[int, ...]) -> tuple[Array, Array] | None:
    """scale and shift with found = scale * ideal + shift, by least squares; None for too few numbers."""
    count = used.sum(axis=axes, keepdims=True)
    if count.min() < _LEAST_ELEMENTS:
        return None
    x, y = (np.where(used, values, 0.0) for values in (ideal, found))
    x_mean, y_mean = (values.sum(axis=axes, keepdims=True) / count for values in (x, y))
    x_off, y_off = (np.where(used, values - mean, 0.0) for values, mean in ((x, x_mean), (y, y_mean)))
    square = np.sum(x_off * x_off, axis=axes, keepdims=True)
    if not (square > 0).all():
        return None
    scale = np.sum(x_off * y_off, axis=axes, keepdims=True) / square
    return scale, y_mean - scale * x_mean


def _line(
    scale: Array, shift: Array, function: Callable[[Array], Array] | None = None
) -> Callable[[Expected], Expected]:
    def then(e: Expected) -> Expected:
        before = scale * e.values + shift
        values = before if function is None else function(before)
        return Expected(values, 1.5 * np.abs(scale) * e.bound + (np.abs(before) + np.abs(shift)) * 2.0**-22)

    return then
