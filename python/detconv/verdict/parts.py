"""Sums taken apart: the terms of some elements, and how often each part of them is in a candidate.

Parts are taps, their rows and columns, channels, samples, single terms, and blocks of the sequence of all terms. How
often each is in the candidate is solved for by least squares; where there are too few elements, few parts are sought
that are missing or that are all there is; a block is found by its sum. Whatever is found is a factor for each term.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from detconv.verdict.case import Case, Guess, kernel_of, pads_of, pair
from detconv.verdict.problem import Array, Problem
from detconv.verdict.regions import listed

# A fit with more unknowns would take seconds, one with more terms too much memory (16 MB).
_MOST_UNKNOWNS = 512
_MOST_TERMS = 1 << 21
# Parts are at fault if they are off by this share of what the worst one is; the others are as far off as roundings are.
_NOTICED = 0.02
# The largest number of single terms that a fault may have if there are too few elements to solve for all.
_MOST_CHOSEN = 6
# The subsets of so many parts are all tried where one or a few elements are all there is.
_MOST_ENUMERATED = 10
# So many elements tell a block of the terms from all others.
_BLOCK_ELEMENTS = 24
# A part that is missing or doubled was in the sums so many times, or as near as roundings allow.
_WHOLE = 0.02
# Bits of evidence that one number takes that was fitted to the output: as ``diagnose`` counts them.
_BITS = 20.0


def terms(problem: Problem, elements: tuple[Array, ...]) -> Array:
    """All terms of the elements with these indices, without the bias, in float64: (elements, *axes of the terms).

    The axes are (c, kh, kw) for conv2d and conv_transpose2d, (o, kh, kw) for conv2d_input and (n, oh, ow) for
    conv2d_weight.
    """
    ((top, bottom), (left, right)), groups = pads_of(problem), int(problem.groups)
    (sh, sw), (dh, dw), (kh, kw) = pair(problem.stride), pair(problem.dilation), kernel_of(problem)
    first, second, third, fourth = (index[:, None, None, None] for index in elements)
    if problem.name in ("conv2d_input", "conv_transpose2d"):
        weight = problem.weight
        grad = problem.grad_output if problem.name == "conv2d_input" else problem.input
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

    name: str  # of one part, with a place for each axis of the terms
    axes: tuple[int, ...]
    many: str = ""  # with a place for several indices, where there is one axis


_KERNEL_LINES = (
    _Split("kernel row {1}", (1,), "kernel rows {}"),
    _Split("kernel column {2}", (2,), "kernel columns {}"),
)
_SPLITS = {
    "conv2d": (
        *_KERNEL_LINES,
        _Split("tap ({1}, {2})", (1, 2)),
        _Split("input channel {0}", (0,), "input channels {}"),
        _Split("tap ({1}, {2}) of input channel {0}", (0, 1, 2)),
    ),
    "conv2d_input": (
        *_KERNEL_LINES,
        _Split("tap ({1}, {2})", (1, 2)),
        _Split("output channel {0}", (0,), "output channels {}"),
        _Split("tap ({1}, {2}) of output channel {0}", (0, 1, 2)),
    ),
    "conv_transpose2d": (
        *_KERNEL_LINES,
        _Split("tap ({1}, {2})", (1, 2)),
        _Split("input channel {0}", (0,), "input channels {}"),
        _Split("tap ({1}, {2}) of input channel {0}", (0, 1, 2)),
    ),
    "conv2d_weight": (
        _Split("sample {0}", (0,), "samples {}"),
        _Split("row {1} of the output", (1,), "rows {} of the output"),
        _Split("column {2} of the output", (2,), "columns {} of the output"),
        _Split("position ({1}, {2}) of the output", (1, 2)),
    ),
}
# The orders in which kernels go through the terms: their axes, the slowest first.
_SEQUENCES = {
    "conv2d": {"c, kh, kw": (0, 1, 2), "kh, kw, c": (1, 2, 0)},
    "conv2d_input": {"o, kh, kw": (0, 1, 2), "kh, kw, o": (1, 2, 0)},
    "conv_transpose2d": {"c, kh, kw": (0, 1, 2), "kh, kw, c": (1, 2, 0)},
    "conv2d_weight": {"n, oh, ow": (0, 1, 2), "oh, ow, n": (1, 2, 0)},
}


class _Share(NamedTuple):
    """Parts that are in the sums otherwise than once.

    factor: how often each term is, (*axes of the terms).
    more: how much more often, for each part that is named.
    named, rest: those parts, and where more of them are missing than are not, those that are there, in words.
    gone, whole: how many are missing, of how many.
    bits: what it takes to say which they are.
    """

    factor: Array
    more: Array
    named: str
    rest: str
    gone: int
    whole: int
    bits: float

    @property
    def mostly_missing(self) -> bool:
        return self.gone > max(1, self.whole // 3)


def _shares(case: Case) -> list[_Share]:
    """What is in the sums otherwise than once, what takes the fewest bits to say first."""
    if case.expected is None or not case.unfit.any():
        return []
    shape = term_shape(case.problem)
    if 0 in shape:
        return []
    elements = elements_of(case, max(16, min(4000, _MOST_TERMS // int(np.prod(shape)))))
    all_terms, residual = terms(case.problem, elements), case.residual[elements]
    if not np.isfinite(all_terms).all() or not residual.any():
        return []
    near = 2 * case.expected.bound[elements]
    found = []
    for split in _SPLITS[case.problem.name]:
        others = tuple(1 + axis for axis in range(3) if axis not in split.axes)
        columns = all_terms.sum(axis=others, keepdims=True)
        parts, columns = columns.shape[1:], columns.reshape(len(columns), -1)
        more = _more(columns, residual, near)
        if more is not None:
            found.append(_share(split, shape, more.reshape(parts)))
    found += _blocks(case, all_terms[:_BLOCK_ELEMENTS], residual[:_BLOCK_ELEMENTS], near[:_BLOCK_ELEMENTS])
    return sorted(found, key=lambda share: share.bits)


def _more(columns: Array, residual: Array, near: Array) -> Array | None:
    """How much more often than once each part is in the sums; None if neither few are off nor some are all there is."""
    parts = columns.shape[1]
    solution = _solved(columns, residual)
    size = np.abs(solution)
    chosen = np.flatnonzero(size > _NOTICED * size.max())
    if 0 < len(chosen) <= max(1, parts // 3):
        extra = np.linalg.lstsq(columns[:, chosen], residual, rcond=None)[0]
        whole = np.round(extra)
        more = np.zeros(parts)
        more[chosen] = np.where((whole != 0) & (np.abs(extra - whole) < _WHOLE), whole, extra)
        return more
    missing = np.abs(solution + 1) < _WHOLE
    if 0 < np.count_nonzero(missing) < parts and (missing | (size < _WHOLE)).all():
        return np.where(missing, -1.0, 0.0)
    kept = _kept(columns, residual + columns.sum(axis=1), near)
    return None if kept is None or kept.all() else kept - 1.0


def _kept(columns: Array, sought: Array, near: Array) -> Array | None:
    """Which parts, fewer than half of them or out of few, add up to what is sought; as zeros and ones."""
    count = columns.shape[1]
    if 2 <= count <= _MOST_ENUMERATED:
        choices = (np.arange(1, 2**count - 1)[:, None] >> np.arange(count)) & 1
        choices = choices[np.argsort(choices.sum(axis=1), kind="stable")]
        for element in range(len(columns)):
            choices = choices[np.abs(choices @ columns[element] - sought[element]) <= near[element]]
        return np.asarray(choices[0], np.float64) if len(choices) else None
    if len(columns) > 1.2 * count + 4 and count <= _MOST_UNKNOWNS:
        return None  # the least squares have said all
    solution = _pursued(columns, sought)
    kept = np.abs(solution - 1) < _WHOLE
    return kept.astype(np.float64) if kept.any() and (kept | (solution == 0)).all() else None


def _share(split: _Split, shape: tuple[int, ...], more: Array) -> _Share:
    """more: for the parts, (*axes of the terms), with length 1 where the split does not look."""
    off = np.argwhere(more != 0)
    whole = more.size
    missing = int(np.count_nonzero(more == -1))
    factor = np.broadcast_to(1 + more, shape).copy()
    rest = np.argwhere(more == 0)
    return _Share(factor, more[more != 0], _named(split, off), _named(split, rest), missing, whole, _bits(more == 0))


def _bits(there: Array) -> float:
    """What it takes to say which parts are there and which are not: the ends of a stretch, or each of the fewer."""
    changes = int(np.count_nonzero(np.diff(there.ravel())))
    few = min(int(np.count_nonzero(there)), int(np.count_nonzero(~there)))
    return float(min(changes, few) * np.log2(max(there.size, 2)))


def _blocks(case: Case, all_terms: Array, residual: Array, near: Array) -> list[_Share]:
    """A stretch of the sequence of the terms that is missing, or that is all there is."""
    shape = all_terms.shape[1:]
    count = int(np.prod(shape))
    found = []
    for order, axes in _SEQUENCES[case.problem.name].items():
        sequence = all_terms.transpose(0, *(1 + axis for axis in axes)).reshape(len(all_terms), -1)
        sums = np.concatenate([np.zeros((len(sequence), 1)), np.cumsum(sequence, axis=1)], axis=1)
        for sought, there in ((-residual, False), (residual + sums[:, -1], True)):
            stretch = _stretch(sums, sought, near)
            if stretch is None:
                continue
            first, last = stretch
            inside = np.zeros(count, np.bool_)
            inside[first:last] = True
            missing = ~inside if there else inside
            factor = np.where(missing, 0.0, 1.0).reshape([shape[axis] for axis in axes]).transpose(np.argsort(axes))
            block, others = (f(first, last, count, order) for f in (_block, _but))
            named, rest = (others, block) if there else (block, others)
            gone = int(missing.sum())
            more = np.full(gone, -1.0)
            found.append(_Share(np.ascontiguousarray(factor), more, named, rest, gone, count, _bits(inside)))
    return found


def _block(first: int, last: int, count: int, order: str) -> str:
    size = last - first
    many = "term" if size == 1 else f"{size} terms"
    if first == 0 or last == count:
        return f"the {'first' if first == 0 else 'last'} {many} of {count} in the order {order}"
    return f"terms {first} to {last - 1} of {count} in the order {order}"


def _but(first: int, last: int, count: int, order: str) -> str:
    """The others in words."""
    if first == 0 or last == count:
        return _block(last, count, count, order) if first == 0 else _block(0, first, count, order)
    return f"all but {_block(first, last, count, order)}"


def _stretch(sums: Array, sought: Array, near: Array) -> tuple[int, int] | None:
    """The first and the last (exclusive) of consecutive terms that add up to what is sought, in all elements."""
    count = sums.shape[1] - 1
    near = near + 2.0**-40 * np.abs(sums).max(axis=1)
    ends = np.flatnonzero((np.abs(sums - sought[:, None]) <= near[:, None]).all(axis=0))
    starts = np.flatnonzero((np.abs(sums[:, -1:] - sums - sought[:, None]) <= near[:, None]).all(axis=0))
    for first, last in ((0, int(ends[0]) if len(ends) else 0), (int(starts[-1]) if len(starts) else count, count)):
        if 0 < last - first < count:
            return first, last
    if len(sums) < 3:
        return None  # by chance, one element has some stretch of many that fits
    # Where the first element's sums are what they are at some start, and more by what is sought: the few such ends.
    order = np.argsort(sums[0], kind="stable")
    ranked = sums[0][order]
    low = np.searchsorted(ranked, sums[0] + sought[0] - near[0])
    high = np.searchsorted(ranked, sums[0] + sought[0] + near[0], side="right")
    if int(np.sum(high - low)) > 64 * (count + 1):
        return None
    first = np.repeat(np.arange(count + 1), high - low)
    offsets = np.arange(len(first)) - np.repeat(np.cumsum(high - low) - (high - low), high - low)
    last = order[np.repeat(low, high - low) + offsets]
    fits = (last > first) & (last - first < count)
    for row in range(len(sums)):
        first, last = first[fits], last[fits]
        fits = np.abs(sums[row][last] - sums[row][first] - sought[row]) <= near[row]
    first, last = first[fits], last[fits]
    return (int(first[0]), int(last[0])) if len(first) else None


def term_shape(problem: Problem) -> tuple[int, ...]:
    """The axes of the terms of one element: see ``terms``."""
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
        # By the normal equations of scaled columns: 20 times faster than by the columns, and 6 digits are enough.
        scaled = columns[:, usable] / norms[usable]
        x[usable] = np.linalg.lstsq(scaled.T @ scaled, scaled.T @ residual, rcond=1e-12)[0] / norms[usable]
        return x
    return _pursued(columns, residual)


def _pursued(columns: Array, sought: Array) -> Array:
    """x with few that are not 0 and columns @ x = sought.

    Orthogonal matching pursuit: take the column that explains most of what is left, solve for all that were taken.
    """
    rows, unknowns = columns.shape
    norms = np.sqrt(np.sum(columns * columns, axis=0))
    norms[norms == 0] = np.inf
    chosen: list[int] = []
    left, solution = sought, np.zeros(0)
    while len(chosen) < min(_MOST_CHOSEN, rows // 2) and np.linalg.norm(left) > 1e-4 * np.linalg.norm(sought):
        chosen.append(int(np.argmax(np.abs(left @ columns) / norms)))
        solution = np.linalg.lstsq(columns[:, chosen], sought, rcond=None)[0]
        left = sought - columns[:, chosen] @ solution
    x = np.zeros(unknowns)
    x[chosen] = solution
    return x


def _guess(case: Case, share: _Share, says: str, parameters: float) -> Guess:
    """That each term is in the sums as often as its factor says."""
    problem, factor = case.problem, share.factor
    if problem.name == "conv2d_weight":
        operand, times = "grad_output", factor[:, None]
    elif problem.name in ("conv2d_input", "conv_transpose2d"):
        operand, times = "weight", np.tile(factor, (int(problem.groups), 1, 1))[:, None]
    else:
        operand, times = "weight", factor[None]
    array = getattr(problem, operand)
    changed = np.where(times == 0, 0, array * times).astype(array.dtype)
    return Guess(says, problem.having(**{operand: changed}), parameters=parameters)


def _named(split: _Split, parts: Array) -> str:
    """parts: indices on the axes of the terms, one part a row."""
    if len(parts) > 1 and split.many:
        indices = parts[:, split.axes[0]]
        return split.many.format(listed(indices, int(indices[-1]) + 1))
    names = [split.name.format(*part) for part in parts]
    shown = names if len(names) <= 6 else [*names[:4], f"... ({len(names)} in all)"]
    return " and ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else "".join(shown)


def dropped(case: Case) -> Iterator[Guess]:
    yield from _alike(case, -1, "missing from the sums")


def doubled(case: Case) -> Iterator[Guess]:
    yield from _alike(case, 1, "in the sums twice")


def negated(case: Case) -> Iterator[Guess]:
    yield from _alike(case, -2, "subtracted instead of added")


def _alike(case: Case, more: int, says: str) -> Iterator[Guess]:
    for share in case.once("shares", _shares):
        if (share.more == more).all() and not share.mostly_missing:
            be = "is" if len(share.more) == 1 else "are"
            yield _guess(case, share, f"{share.named} {be} {says}", max(0.5, share.bits / _BITS))


def some_only(case: Case) -> Iterator[Guess]:
    """More than a third of the terms are missing, so that those which are there are better named."""
    for share in case.once("shares", _shares):
        if share.mostly_missing:
            there = share.whole - share.gone
            says = f"only some of the terms are summed ({there} of {share.whole}): {share.rest}"
            yield _guess(case, share, says, share.bits / _BITS)


def weighed(case: Case) -> Iterator[Guess]:
    """Parts that count otherwise than once, or an unknown change of a few weights."""
    for share in case.once("shares", _shares):
        if len(set(share.more.tolist())) > 1 or share.more[0] not in (-1, 1, -2):
            times = np.unique(np.round(1 + share.more, 4))
            how = f"{times[0]:.6g} times" if len(times) == 1 else f"with factors of {listed_numbers(times)}"
            be = "is" if len(share.more) == 1 else "are"
            yield _guess(case, share, f"{share.named} {be} in the sums {how}", len(share.more))


def listed_numbers(values: Array) -> str:
    return ", ".join(f"{v:.4g}" for v in values[:6]) + (", ..." if len(values) > 6 else "")
