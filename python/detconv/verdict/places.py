"""Right values in the wrong places, or in none: functions that yield guesses; see ``hypotheses``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import numpy as np

from detconv.verdict import regions
from detconv.verdict.case import Case, Expected, Guess, bias_of
from detconv.verdict.problem import Array
from detconv.verdict.wires import permutation

# ---- Moved ----


def shifted(case: Case) -> Iterator[Guess]:
    """By one, with zeros or the values of the other end where nothing comes from; those may also be anything."""
    words = {-1: ("up", "left"), 1: ("down", "right")}
    for move in sorted(product((-1, 0, 1), repeat=2), key=lambda move: abs(move[0]) + abs(move[1]))[1:]:
        says = f"the output is shifted by one {' and '.join(words[by][axis] for axis, by in enumerate(move) if by)}"
        for rolls in (False, True):

            def then(e: Expected, move: tuple[int, ...] = move, rolls: bool = rolls) -> Expected:
                values, bound = (np.roll(array, move, (-2, -1)) for array in e)
                if not rolls:
                    for axis, by in zip((-2, -1), move, strict=True):
                        if by:
                            np.moveaxis(values, axis, 0)[0 if by > 0 else -1] = 0
                return Expected(values, bound)

            yield Guess(says + (", and rolled around" if rolls else ""), case.problem, then, planes=True)


def turned(case: Case) -> Iterator[Guess]:
    flips = {
        "upside down": np.s_[..., ::-1, :],
        "left for right": np.s_[..., ::-1],
        "turned by 180 degrees": np.s_[..., ::-1, ::-1],
    }
    for words, index in flips.items():

        def then(e: Expected, index: Any = index) -> Expected:
            return e.mapped(lambda v: v[index])

        yield Guess(f"the output is {words}", case.problem, then, planes=True)


def moved(axis: int) -> Callable[[Case], Iterator[Guess]]:
    """Samples, channels, rows or columns that are each the right values of another one."""

    def guesses(case: Case) -> Iterator[Guess]:
        if case.expected is None:
            return
        p, many = case.problem, regions.AXES[case.problem.name][axis][1]
        staying: list[tuple[Array | float, str]] = [(0.0, "")]
        bias = bias_of(p)
        if axis == 1 and bias is not None:
            staying.append((bias[:, None, None].astype(np.float64), "; their biases are not"))
        for kept, words in staying:
            order = _sources(case, kept, axis)
            if order is not None:
                yield Guess(f"the {many} are {permutation(order)}{words}", p, _taken(order, axis, kept))

    return guesses


def _taken(order: Array, axis: int, kept: Array | float) -> Callable[[Expected], Expected]:
    """Values moved along an axis, but for a part of them that stays."""

    def then(e: Expected) -> Expected:
        values, bound = (e.values - kept).take(order, axis) + kept, e.bound.take(order, axis)
        return Expected(values, bound + e.bound if np.any(kept) else bound)

    return then


def _sources(case: Case, kept: Array | float, axis: int) -> Array | None:
    """For each index on the axis, the one whose expected values it has; its own if it fits or none does."""
    size = case.candidate.shape[axis]
    if not 1 < size <= 1024:
        return None
    assert case.expected is not None
    others = [n for a, n in enumerate(case.candidate.shape) if a != axis]
    count = int(np.prod(others))
    seen = np.unravel_index(
        np.random.default_rng(0).permutation(min(count, 1 << 20))[:24] * max(1, count >> 20), others
    )

    def some(array: Array) -> Array:
        first, second, third = seen
        return np.moveaxis(array, axis, 0)[:, first, second, third].astype(np.float64)

    kept_there = some(np.broadcast_to(kept, case.candidate.shape))
    got, values, bound = (
        some(case.candidate) - kept_there,
        some(case.expected.values) - kept_there,
        some(case.expected.bound),
    )
    off = np.flatnonzero(case.unfit.any(axis=tuple(a for a in range(4) if a != axis)))
    near = (np.abs(got[off][:, None] - values) <= 2 * bound).mean(axis=2)
    order, source = np.arange(size), np.argmax(near, axis=1)
    sure = near[np.arange(len(off)), source] > 0.6
    order[off[sure]] = source[sure]
    return order if np.count_nonzero(order != np.arange(size)) >= max(1, len(off) // 2) else None


# ---- Layout ----


def weight_layout(case: Case) -> Iterator[Guess]:
    """The weight's memory read in another order of its axes."""
    if case.problem.name == "conv2d_weight":
        return
    weight = case.problem.weight
    o, c, kh, kw = weight.shape
    # A transposed convolution's weight has its input channels first: what is O in the names below is I there.
    names = str.maketrans("OI", "IO") if case.problem.name == "conv_transpose2d" else {}
    if o == c:
        yield case.guess(
            f"the weight is transposed: output and input channels are exchanged ({'OIHW as IOHW'.translate(names)})",
            weight=np.ascontiguousarray(weight.swapaxes(0, 1)),
        )
    readings = {
        "IOHW": ((c, o, kh, kw), (1, 0, 2, 3)),
        "OHWI": ((o, kh, kw, c), (0, 3, 1, 2)),
        "HWIO": ((kh, kw, c, o), (3, 2, 0, 1)),
        "HWOI": ((kh, kw, o, c), (2, 3, 0, 1)),
        "OIWH": ((o, c, kw, kh), (0, 1, 3, 2)),
    }
    for name, (shape, axes) in readings.items():
        yield case.guess(
            f"the weight's memory is read as {name.translate(names)} instead of {'OIHW'.translate(names)}",
            weight=np.ascontiguousarray(weight.reshape(shape).transpose(axes)),
        )
    stored = {"OHWI": (0, 2, 3, 1), "HWIO": (2, 3, 1, 0)}
    for name, axes in stored.items():
        yield case.guess(
            f"the weight lies in memory as {name.translate(names)} and is read as {'OIHW'.translate(names)}",
            weight=np.ascontiguousarray(weight.transpose(axes)).reshape(weight.shape),
        )


def input_layout(case: Case) -> Iterator[Guess]:
    if case.problem.name == "conv2d_input":
        return
    image = case.problem.input
    n, c, h, w = image.shape
    readings = {
        "NHWC instead of NCHW": image.reshape(n, h, w, c).transpose(0, 3, 1, 2),
        "NCHW, but lies as NHWC": image.transpose(0, 2, 3, 1).reshape(image.shape),
        "NCWH instead of NCHW": image.reshape(n, c, w, h).swapaxes(2, 3),
        "CNHW instead of NCHW": image.reshape(c, n, h, w).swapaxes(0, 1),
    }
    for words, read in readings.items():
        if words[0] == "C" and n == 1:
            continue
        yield case.guess(f"the input's memory is read as {words}", input=np.ascontiguousarray(read))


def output_layout(case: Case) -> Iterator[Guess]:
    n, c, h, w = case.candidate.shape
    yield Guess("the output is NHWC", case.problem, lambda e: e.mapped(lambda v: v.transpose(0, 2, 3, 1)))
    if case.expected is None:
        return
    ways: dict[str, Callable[[Array], Array]] = {
        "the output's memory is written as NHWC and read as NCHW": lambda v: v.transpose(0, 2, 3, 1).reshape(v.shape),
        "the output's memory is read as NHWC": lambda v: v.reshape(n, h, w, c).transpose(0, 3, 1, 2),
        "height and width are exchanged in the output's memory": lambda v: v.swapaxes(2, 3).reshape(v.shape),
        "the output's memory is written as CNHW": lambda v: v.swapaxes(0, 1).reshape(v.shape),
    }
    for words, way in ways.items():
        yield Guess(words, case.problem, lambda e, way=way: e.mapped(way))  # type: ignore[misc]


# ---- Not written ----


def not_written(case: Case) -> Iterator[Guess]:
    """Elements that all have one value: zeros, NaN, or whatever the memory was filled with."""
    if case.expected is None:
        return
    value = case.candidate[case.unfit][0]
    blank = case.candidate == value if value == value else np.isnan(case.candidate)
    if not blank[case.unfit].all():
        return
    number = "0" if value == 0 else f"{value:.6g}"
    fitted = float(value == value != 0)  # zeros and NaN are what memory holds that nobody wrote to
    if blank.all():

        def alike(e: Expected) -> Expected:
            return Expected(np.full(e.values.shape, value), np.zeros(e.values.shape))

        yield Guess(f"the output is not computed: every element is {number}", case.problem, alike, fitted)
        return

    def then(e: Expected) -> Expected:
        return Expected(np.where(case.unfit, value, e.values), e.bound)

    where, dense = _region(case, blank)
    says = f"the output is not computed, but {number}: {where}"
    yield Guess(says, case.problem, then, fitted + (0.5 if dense else 2))


def left_over(case: Case) -> Iterator[Guess]:
    """A box of samples, channels, rows and columns, or an end of the memory, with values that nothing explains."""
    unfit = int(np.count_nonzero(case.unfit))
    if case.expected is None or not 1 < unfit < 0.98 * case.unfit.size:
        return
    first, last = np.flatnonzero(case.unfit)[[0, -1]]
    if unfit > 0.98 * min(case.unfit[case.box].size, last - first + 1):
        where, _ = _region(case, case.unfit)
        yield Guess(
            f"the output is right but for one part, which is another call's, or was never written: {where}",
            case.problem,
            lambda e: Expected(np.where(case.unfit, case.candidate, e.values), e.bound),
            leaves=True,
        )


def _region(case: Case, marked: Array) -> tuple[str, bool]:
    """Where the unfit elements are, as a box or as a stretch of memory; and whether most of that is marked."""
    first, last = np.flatnonzero(case.unfit)[[0, -1]]
    box = regions.place(case.unfit, case.problem.name)
    if marked[case.box].mean() > 0.98:
        return box, True
    if marked.ravel()[first : last + 1].mean() > 0.98:
        return f"elements {first} to {last} of {marked.size} in memory", True
    return f"{box}, here and there", False
