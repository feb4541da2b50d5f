"""Sums taken apart: the terms of some elements, and how often each part of them is in a candidate, by least squares."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from detconv.verdict.case import Case, Guess, kernel_of, pads_of, pair
from detconv.verdict.problem import Array, Problem

# A fit with more unknowns would take seconds, one with more terms too much memory (16 MB).
_MOST_UNKNOWNS = 512
_MOST_TERMS = 1 << 21
# Parts are at fault if they are off by this share of what the worst one is; the others are as far off as roundings are.
_NOTICED = 0.02
# The largest number of single terms that a fault may have if there are too few elements to solve for all.
_MOST_CHOSEN = 6


def terms(problem: Problem, elements: tuple[Array, ...]) -> Array:
    """All terms of the elements with these indices, without the bias, in float64: (elements, *axes of the terms).

    The axes are (c, kh, kw) for conv2d, (o, kh, kw) for conv2d_input and (n, oh, ow) for conv2d_weight.
    """
    ((top, bottom), (left, right)), groups = pads_of(problem), int(problem.groups)
    (sh, sw), (dh, dw), (kh, kw) = pair(problem.stride), pair(problem.dilation), kernel_of(problem)
    first, second, third, fourth = (index[:, None, None, None] for index in elements)
    if problem.name == "conv2d_input":
        weight, grad = problem.weight, problem.grad_output
        outputs, channels = len(weight) // groups, weight.shape[1]
        o, i, j = np.ogrid[:outputs, :kh, :kw]
        o = second // channels * outputs + o
        down, across = third + top - i * dh, fourth + left - j * dw
        row, column = down // sh, across // sw
        inside = (down % sh == 0) & (across % sw == 0) & (row >= 0) & (column >= 0)
        inside &= (row < grad.shape[-2]) & (column < grad.shape[-1])
        taken = grad[first, o, np.where(inside, row, 0), np.where(inside, column, 0)]
        return np.asarray(weight[o, second % channels, i, j].astype(np.float64) * np.where(inside, taken, 0))
    image = np.pad(problem.input, ((0, 0), (0, 0), (top, bottom), (left, right)))
    if problem.name == "conv2d":
        weight = problem.weight
        c, i, j = np.ogrid[: weight.shape[1], :kh, :kw]
        group = second // (len(weight) // groups)
        x = image[first, group * weight.shape[1] + c, third * sh + i * dh, fourth * sw + j * dw]
        return np.asarray(weight[second, c, i, j].astype(np.float64) * x)
    grad = problem.grad_output
    n, p, q = np.ogrid[: len(grad), : grad.shape[-2], : grad.shape[-1]]
    group = first // (grad.shape[1] // groups)
    x = image[n, group * int(problem.weight_size[1]) + second, p * sh + third * dh, q * sw + fourth * dw]
    return np.asarray(grad[n, first, p, q].astype(np.float64) * x)


def elements_of(case: Case, most: int) -> tuple[Array, ...]:
    """Indices of at most so many elements, drawn from the box of those that do not fit."""
    sizes = [index.size for index in case.box]
    count = int(np.prod(sizes))
    flat = np.arange(count) if count <= most else np.unique(np.random.default_rng(0).integers(0, count, most))
    return tuple(index.ravel()[i] for index, i in zip(case.box, np.unravel_index(flat, sizes), strict=True))


class _Split(NamedTuple):
    """A way to take the terms apart: which of their axes tell parts from each other, and what the parts are called."""

    says: str
    axes: tuple[int, ...]


_SPLITS = {
    "conv2d": (
        _Split("tap ({}, {})", (1, 2)),
        _Split("input channel {}", (0,)),
        _Split("tap ({1}, {2}) of input channel {0}", (0, 1, 2)),
    ),
    "conv2d_input": (
        _Split("tap ({}, {})", (1, 2)),
        _Split("output channel {}", (0,)),
        _Split("tap ({1}, {2}) of output channel {0}", (0, 1, 2)),
    ),
    "conv2d_weight": (
        _Split("sample {}", (0,)),
        _Split("row {} of the output", (1,)),
        _Split("column {} of the output", (2,)),
    ),
}


class _Share(NamedTuple):
    """Parts that are in the sums otherwise than once: how much more often."""

    split: _Split
    parts: tuple[Array, ...]  # indices on the axes of the split
    more: Array


def _shares(case: Case) -> list[_Share]:
    if case.expected is None or not case.unfit.any():
        return []
    per_element = int(np.prod(_term_shape(case.problem)))
    elements = elements_of(case, max(16, min(4000, _MOST_TERMS // per_element)))
    all_terms, residual = terms(case.problem, elements), case.residual[elements]
    if not np.isfinite(all_terms).all():
        return []
    found = []
    for split in _SPLITS[case.problem.name]:
        others = tuple(1 + axis for axis in range(3) if axis not in split.axes)
        columns = all_terms.sum(axis=others) if others else all_terms
        shape, columns = columns.shape[1:], columns.reshape(len(columns), -1)
        size = np.abs(_solved(columns, residual))
        chosen = np.flatnonzero(size > _NOTICED * size.max())
        if 0 < len(chosen) <= max(1, columns.shape[1] // 3):
            extra = np.linalg.lstsq(columns[:, chosen], residual, rcond=None)[0]
            whole = np.round(extra)
            more = np.where(np.abs(extra - whole) < 0.02, whole, extra)
            found.append(_Share(split, np.unravel_index(chosen, shape), more))
    return found


def _term_shape(problem: Problem) -> tuple[int, ...]:
    if problem.name == "conv2d_weight":
        return (len(problem.grad_output), *problem.grad_output.shape[-2:])
    channels = problem.weight.shape[1] if problem.name == "conv2d" else len(problem.weight) // int(problem.groups)
    return (int(channels), *kernel_of(problem))


def _solved(columns: Array, residual: Array) -> Array:
    """x with columns @ x = residual: by least squares if there are equations enough, else with few that are not 0."""
    rows, unknowns = columns.shape
    norms = np.sqrt(np.sum(columns * columns, axis=0))
    usable = norms > 0
    x = np.zeros(unknowns)
    if not usable.any() or unknowns < 2:
        return x
    if rows > 1.2 * unknowns + 4 and unknowns <= _MOST_UNKNOWNS:
        x[usable] = np.linalg.lstsq(columns[:, usable], residual, rcond=1e-9)[0]
        return x
    # Orthogonal matching pursuit: take the column that explains most of what is left, solve for all that were taken.
    chosen: list[int] = []
    left, solution = residual, x[:0]
    while len(chosen) < min(_MOST_CHOSEN, rows // 2) and np.linalg.norm(left) > 1e-4 * np.linalg.norm(residual):
        chosen.append(int(np.argmax(np.abs(left @ columns) / np.where(usable, norms, np.inf))))
        solution = np.linalg.lstsq(columns[:, chosen], residual, rcond=None)[0]
        left = residual - columns[:, chosen] @ solution
    x[chosen] = solution
    return x


def _guess(case: Case, share: _Share, says: str, parameters: float) -> Guess:
    """That the parts are in the sums so many times more."""
    operand = "grad_output" if case.problem.name == "conv2d_weight" else "weight"
    array = getattr(case.problem, operand).copy()
    # The axes of the terms in the operand: (n, oh, ow) of (n, o, oh, ow), (c, kh, kw) or (o, kh, kw) of (o, c, kh, kw).
    axes = {"conv2d": (1, 2, 3), "conv2d_input": (0, 2, 3), "conv2d_weight": (0, 2, 3)}[case.problem.name]
    for *part, more in zip(*share.parts, share.more, strict=True):
        place: list[object] = [slice(None)] * 4
        for axis, index in zip(share.split.axes, part, strict=True):
            if case.problem.name == "conv2d_input" and axis == 0:
                place[0] = slice(index, None, len(array) // int(case.problem.groups))
            else:
                place[axes[axis]] = index
        array[tuple(place)] *= 1 + more
    return Guess(says, case.problem.having(**{operand: array}), parameters=parameters)


def _named(share: _Share) -> str:
    names = [share.split.says.format(*part) for part in zip(*share.parts, strict=True)]
    shown = names if len(names) <= 6 else [*names[:4], f"... ({len(names)} in all)"]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def dropped(case: Case) -> Iterator[Guess]:
    yield from _alike(case, -1, "missing from the sums")


def doubled(case: Case) -> Iterator[Guess]:
    yield from _alike(case, 1, "in the sums twice")


def negated(case: Case) -> Iterator[Guess]:
    yield from _alike(case, -2, "subtracted instead of added")


def _alike(case: Case, more: int, says: str) -> Iterator[Guess]:
    for share in case.once("shares", _shares):
        if (share.more == more).all():
            be = "is" if len(share.more) == 1 else "are"
            yield _guess(case, share, f"{_named(share)} {be} {says}", 0.5)


def weighed(case: Case) -> Iterator[Guess]:
    """Parts that count otherwise than once, or an unknown change of a few weights."""
    for share in case.once("shares", _shares):
        if len(set(share.more.tolist())) > 1 or share.more[0] not in (-1, 1, -2):
            times = np.unique(np.round(1 + share.more, 4))
            how = f"{times[0]:.6g} times" if len(times) == 1 else f"with factors of {listed_numbers(times)}"
            be = "is" if len(share.more) == 1 else "are"
            yield _guess(case, share, f"{_named(share)} {be} in the sums {how}", len(share.more))


def listed_numbers(values: Array) -> str:
    return ", ".join(f"{v:.4g}" for v in values[:6]) + (", ..." if len(values) > 6 else "")
