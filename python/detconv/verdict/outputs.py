"""Mistakes of bias, scale and layout, and those made after the sums. Each function yields guesses; see ``hypotheses``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

import numpy as np

from detconv.verdict import regions
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


# ---- Places ----


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

            yield Guess(says + (", and rolled around" if rolls else ""), case.problem, then)


def turned(case: Case) -> Iterator[Guess]:
    flips = {
        "upside down": np.s_[..., ::-1, :],
        "left for right": np.s_[..., ::-1],
        "turned by 180 degrees": np.s_[..., ::-1, ::-1],
    }
    for words, index in flips.items():
        yield Guess(f"the output is {words}", case.problem, lambda e, index=index: e.mapped(lambda v: v[index]))  # type: ignore[misc]


def moved(axis: int) -> Callable[[Case], Iterator[Guess]]:
    """Samples, channels, rows or columns that are each the right values of another one."""

    def guesses(case: Case) -> Iterator[Guess]:
        if case.expected is None:
            return
        many = regions.AXES[case.problem.name][axis][1]
        order = _sources(case.candidate, case.expected, case.unfit, axis)
        if order is not None:
            yield Guess(
                f"the {many} are {permutation(order)}", case.problem, lambda e: e.mapped(lambda v: v.take(order, axis))
            )
        bias = case.problem.bias if case.problem.name == "conv2d" else None
        if axis == 1 and bias is not None:
            plain = Expected(case.expected.values - bias[:, None, None].astype(np.float64), case.expected.bound * 1.5)
            order = _sources(case.candidate - bias[:, None, None].astype(np.float64), plain, case.unfit, axis)
            if order is not None:
                yield (
                    case.guess(
                        f"the weight's output channels are {permutation(order)}; the bias is not",
                        weight=np.ascontiguousarray(case.problem.weight[order]),
                    )
                    if int(case.problem.groups) == 1
                    else Guess(
                        f"the {many} are {permutation(order)}, before the bias is added",
                        case.problem,
                        lambda e: Expected(
                            (e.values - bias[:, None, None]).take(order, 1) + bias[:, None, None],
                            e.bound.take(order, 1) * 1.5,
                        ),
                    )
                )

    return guesses


def _sources(candidate: Array, expected: Expected, unfit: Array, axis: int) -> Array | None:
    """For each index on the axis, the one whose expected values it has; its own if it fits or none does."""
    size = candidate.shape[axis]
    if not 1 < size <= 1024:
        return None
    got, values, bound = (
        np.moveaxis(a, axis, 0).reshape(size, -1) for a in (candidate, expected.values, expected.bound)
    )
    off = np.flatnonzero(np.moveaxis(unfit, axis, 0).reshape(size, -1).any(axis=1))
    seen = np.random.default_rng(0).permutation(got.shape[1])[:24]
    with np.errstate(invalid="ignore"):
        near = (np.abs(got[off][:, None, seen] - values[None][:, :, seen]) <= bound[None][:, :, seen]).mean(axis=2)
    order = np.arange(size)
    source = np.argmax(near, axis=1)
    sure = near[np.arange(len(off)), source] > 0.6
    order[off[sure]] = source[sure]
    return order if (order != np.arange(size)).sum() >= max(1, len(off) // 2) else None


# ---- Layout ----


def weight_layout(case: Case) -> Iterator[Guess]:
    """The weight's memory read in another order of its axes."""
    if case.problem.name == "conv2d_weight":
        return
    weight = case.problem.weight
    o, c, kh, kw = weight.shape
    if o == c:
        yield case.guess(
            "the weight is transposed: its output channels are read as input channels (OIHW as IOHW)",
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
            f"the weight's memory is read as {name} instead of OIHW",
            weight=np.ascontiguousarray(weight.reshape(shape).transpose(axes)),
        )
    stored = {"OHWI": (0, 2, 3, 1), "HWIO": (2, 3, 1, 0)}
    for name, axes in stored.items():
        yield case.guess(
            f"the weight lies in memory as {name} and is read as OIHW",
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


# ---- Afterwards ----


def activated(case: Case) -> Iterator[Guess]:
    def gelu(v: Array) -> Array:
        return 0.5 * v * (1 + np.tanh(np.sqrt(2 / np.pi) * (v + 0.044715 * v**3)))

    functions: dict[str, Callable[[Array], Array]] = {
        "ReLU": lambda v: np.maximum(v, 0),
        "ReLU6": lambda v: np.clip(v, 0, 6),
        "the absolute value": np.abs,
        "a leaky ReLU (0.01)": lambda v: np.where(v > 0, v, 0.01 * v),
        "a leaky ReLU (0.1)": lambda v: np.where(v > 0, v, 0.1 * v),
        "a leaky ReLU (0.2)": lambda v: np.where(v > 0, v, 0.2 * v),
        "tanh": np.tanh,
        "a sigmoid": lambda v: 1 / (1 + np.exp(-v)),
        "SiLU": lambda v: v / (1 + np.exp(-v)),
        "GELU (tanh)": gelu,
        "a clip to 0 ... 1": lambda v: np.clip(v, 0, 1),
        "a clip to 0 ... 255": lambda v: np.clip(v, 0, 255),
        "a clip to -1 ... 1": lambda v: np.clip(v, -1, 1),
        "a rounding to integers": np.rint,
    }
    for name, function in functions.items():

        def then(e: Expected, function: Callable[[Array], Array] = function) -> Expected:
            with np.errstate(over="ignore"):
                values = function(e.values.astype(np.float64))
            return Expected(values, 1.2 * e.bound + np.abs(values) * 2.0**-22)

        yield Guess(f"{name} is applied to the output", case.problem, then)


def input_added(case: Case) -> Iterator[Guess]:
    p = case.problem
    if p.name == "conv2d" and case.expected is not None and p.input.shape == case.candidate.shape:
        yield Guess("the input is added to the output", p, _plus(p.input))


def not_written(case: Case) -> Iterator[Guess]:
    """Elements that all have one value: zeros, NaN, or whatever memory was filled with."""
    values = case.candidate[case.unfit]
    if values.size == 0:
        return
    first = values.ravel()[0]
    blank = case.candidate == first if first == first else np.isnan(case.candidate)
    if not blank[case.unfit].all():
        return
    number = "0" if first == 0 else f"{first:.6g}"
    region = case.unfit
    words = (
        "is not computed: everything"
        if region.all() or (case.expected is None)
        else "is computed in part only: the rest"
    )
    where = _shape_of_region(case, blank | ~_boxed(case))

    def then(e: Expected) -> Expected:
        return Expected(np.where(region, first, e.values), e.bound)

    yield Guess(f"the output {words} is {number}{where}", case.problem, then, 0.5)


def _boxed(case: Case) -> Array:
    inside = np.zeros(case.candidate.shape, np.bool_)
    inside[case.box] = True
    return inside


def _shape_of_region(case: Case, filled: Array) -> str:
    """How much of the smallest box of unfit elements is meant, or from where on in memory."""
    flat = np.flatnonzero(case.unfit.ravel())
    if filled.all():
        return ""
    span = flat[-1] - flat[0] + 1
    if len(flat) > 0.9 * span:
        return f", element {flat[0]} to {flat[-1]} in memory"
    return ", here and there"


def left_over(case: Case) -> Iterator[Guess]:
    """A box of samples, channels, rows and columns, or an end of the memory, with values that nothing explains."""
    if case.expected is None:
        return
    size, box = case.unfit.size, case.unfit[case.box]
    inside = int(np.count_nonzero(box))
    flat = np.flatnonzero(case.unfit.ravel())
    if len(flat) < 2 or len(flat) > 0.98 * size:
        return
    candidate = case.candidate

    def then(e: Expected) -> Expected:
        return Expected(np.where(case.unfit, candidate, e.values), e.bound)

    if inside > 0.98 * box.size:
        yield Guess(
            "the output is right but for one part, which has other values: another call's, or never written",
            case.problem,
            then,
            leaves=True,
        )
    elif flat[-1] == size - 1 and len(flat) > 0.98 * (size - flat[0]):
        yield Guess(
            f"the output is right up to element {flat[0]} in memory; the rest has other values: another call's, or never written",
            case.problem,
            then,
            leaves=True,
        )
