"""Memory that is read, or written, with other strides than its own: packed readings of views, wrong batch strides."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from detconv.verdict.case import Case, Expected, Guess, pads_of, pair
from detconv.verdict.problem import Array, widened

# All batch strides are tried at once unless that takes more products than this: a tenth of a second.
_MOST_PRODUCTS = 1 << 25
# So many elements of the second sample tell a batch stride.
_ELEMENTS = 4
# So many elements tell where in memory the second sample of an output begins.
_PROBE = 64
# A sample of fewer elements may be found anywhere by chance.
_LEAST_SIZE = 16
# So many places where it may begin are looked at.
_MOST_PLACES = 1000


# ---- Packed readings of views ----


class _Memory(NamedTuple):
    """The memory that a caller's view lies in, as far as it surely belongs to the view's array."""

    flat: Array
    start: int  # of the view's first element


def packed(case: Case) -> Iterator[Guess]:
    """A view's memory read as if the view were packed: from its first element, or from the beginning of its array."""
    for name, view in case.problem.views.items():
        memory, given = _memory(view), getattr(case.problem, name)
        if memory is None:
            continue
        own = tuple(s // view.itemsize for s in view.strides)
        orders = {tuple(range(view.ndim)), tuple(np.argsort([-s for s in own], kind="stable").tolist())}
        for order in sorted(orders):
            strides = _packed_strides(view.shape, order)
            says = f"{name}'s memory is read as if its strides were those of a packed array, {strides} instead of {own}"
            starts = {0: ", and from the beginning of the array that it is a part of"} | {memory.start: ""}
            for start, words in sorted(starts.items(), reverse=True):
                if start + view.size <= memory.flat.size and (strides, start) != (own, memory.start):
                    read = memory.flat[start : start + view.size].reshape([view.shape[axis] for axis in order])
                    values = read.transpose(np.argsort(order)).astype(given.dtype).reshape(given.shape)
                    yield case.guess(says + words, **{name: np.ascontiguousarray(values)})


def _packed_strides(shape: tuple[int, ...], order: tuple[int, ...]) -> tuple[int, ...]:
    """Strides, in elements, of a packed array whose axes lie in this order, the first the slowest."""
    strides, step = [0] * len(shape), 1
    for axis in reversed(order):
        strides[axis], step = step, step * shape[axis]
    return tuple(strides)


def _memory(view: Array) -> _Memory | None:
    """From the first element of the array that it is a view of, if NumPy knows it, else from its own, to its last."""
    base = view.base
    if isinstance(base, np.ndarray) and base.dtype == view.dtype and base.flags.c_contiguous:
        start = (view.ctypes.data - base.ctypes.data) // view.itemsize
        return _Memory(_floats(base.reshape(-1)), start) if 0 <= start < base.size else None
    if any(s < 0 or s % view.itemsize for s in view.strides) or view.size == 0:
        return None
    last = sum((n - 1) * s // view.itemsize for n, s in zip(view.shape, view.strides, strict=True))
    return _Memory(_floats(np.lib.stride_tricks.as_strided(view, (last + 1,), (view.itemsize,))), 0)


def _floats(flat: Array) -> Array:
    return widened(flat, "bfloat16") if flat.dtype == np.uint16 else flat


# ---- Batch strides ----


def batch_stride(case: Case) -> Iterator[Guess]:
    """Samples that are read, or written, nearer to the first one than they lie."""
    name = case.problem.name
    if name != "conv2d_weight" and (case.expected is None or len(case.candidate) < 2):
        return
    if name == "conv2d_weight" or _first_is_right(case):
        yield from _read(case)
    if name != "conv2d_weight":
        yield from _written(case)


def _read(case: Case) -> Iterator[Guess]:
    name = case.problem.name
    operands = {"conv2d_input": ("grad_output",), "conv2d_weight": ("input", "grad_output")}
    for operand in operands.get(name, ("input",)):
        array = np.ascontiguousarray(getattr(case.problem, operand))
        found = _read_off(case) if name == "conv2d" else None
        for stride in _usual(case, array) if found is None else found:
            strides = (stride * array.itemsize, *array.strides[1:])
            read = np.lib.stride_tricks.as_strided(array, array.shape, strides, writeable=False)
            says = f"{operand} is read with a batch stride of {_elements(stride, array)} instead of {array[0].size}"
            yield case.guess(says, **{operand: np.ascontiguousarray(read)})


def _first_is_right(case: Case) -> bool:
    """Whether what is wrong begins with the second sample."""
    return not case.unfit[0].any() and bool(case.unfit[1].any())


def _elements(stride: int, array: Array) -> str:
    plane = int(np.prod(array.shape[2:]))
    if stride and stride % plane == 0:
        channels = stride // plane
        return f"{stride} elements ({channels} {'channel' if channels == 1 else 'channels'})"
    return f"{stride} elements"


def _usual(case: Case, array: Array) -> list[int]:
    """Strides that somebody may have taken for the right one; all smaller, so that they stay in the array's memory."""
    (_, channels, height, width), output = array.shape, case.candidate.shape
    (top, bottom), (left, right) = pads_of(case.problem)
    strides = {
        height * width,
        channels * height,
        channels * width,
        channels * height * height,
        channels * width * width,
        channels * height * width // int(case.problem.groups),
        channels * height * width // 2,
        channels * (height - top - bottom) * (width - left - right),
        output[1] * height * width,
        output[1] * output[2] * output[3],
        channels * output[2] * output[3],
    }
    return sorted(stride for stride in strides if 0 < stride < array[:1].size)


def _read_off(case: Case) -> list[int] | None:
    """All batch strides of conv2d's input that give some elements of the second sample; None where that takes long."""
    problem, candidate = case.problem, case.candidate
    assert case.expected is not None
    height, width = problem.input.shape[-2:]
    (sh, sw), (dh, dw), ((top, _), (left, _)) = pair(problem.stride), pair(problem.dilation), pads_of(problem)
    size, terms = problem.input[0].size, problem.weight[0].size
    if size * terms * _ELEMENTS > _MOST_PRODUCTS:
        return None
    flat = np.ascontiguousarray(problem.input).ravel()[: 2 * size].astype(np.float64)
    possible = np.ones(size, np.bool_)
    wrong = np.argwhere(case.unfit[1])
    for o, y, x in wrong[np.random.default_rng(0).integers(0, len(wrong), _ELEMENTS)]:
        total = np.zeros(size) + (0 if problem.bias is None else float(problem.bias[o]))
        first = int(o) // (len(problem.weight) // int(problem.groups)) * problem.weight.shape[1]
        for c, i, j in np.ndindex(*problem.weight.shape[1:]):
            row, column = y * sh + i * dh - top, x * sw + j * dw - left
            if 0 <= row < height and 0 <= column < width:
                at = ((first + c) * height + row) * width + column
                total += float(problem.weight[o, c, i, j]) * flat[at : at + size]
        near = 2 * case.expected.bound[1, o, y, x] + 2.0**-20 * np.abs(total)
        possible &= np.abs(total - candidate[1, o, y, x]) <= near
    possible[0] = False  # then all samples are the first
    return [int(stride) for stride in np.flatnonzero(possible)[:4]]


def _begins(flat: Array, second: Expected, places: Array) -> Iterator[int]:
    """The first place, but for the right one, where the memory holds the second sample up to where the third begins."""
    size = second.values.size
    for place in places[:_MOST_PLACES].tolist():
        seen = np.linspace(0, min(place, size, flat.size - place) - 1, _PROBE).astype(int)
        if place != size and second.mapped(lambda array, seen=seen: array[seen]).fits(flat[place + seen]).all():  # type: ignore[misc]
            yield place
            return


def _written(case: Case) -> Iterator[Guess]:
    """The output's samples written one after another with another batch stride; a later one overwrites."""
    assert case.expected is not None
    (count, *_), size = case.candidate.shape, case.candidate[0].size
    if size < _LEAST_SIZE:
        return
    second = case.expected.mapped(lambda array: array[1].ravel())
    flat = case.candidate.ravel()[: 2 * size]
    near = np.abs(flat[1:] - second.values[0]) <= second.bound[0]  # where the second sample may begin, but at 0
    for stride in _begins(flat, second, 1 + np.flatnonzero(near)):
        place = np.arange(case.candidate.size)
        sample = np.minimum(place // stride, count - 1)
        within = place - sample * stride
        source = np.where(within < size, sample * size + within, -1)

        def then(e: Expected, source: Array = source) -> Expected:
            values, bound = (np.where(source < 0, 0, array.ravel()[source]) for array in e)
            return Expected(values.reshape(e.values.shape), bound.reshape(e.bound.shape))

        yield Guess(
            f"the output is written with a batch stride of {stride} elements instead of {size}", case.problem, then
        )
