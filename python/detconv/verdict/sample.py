"""A sample of an output's sums, drawn with a fixed seed, as products of small matrices: cheap to sum in any order."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np

from detconv.functional import conv2d
from detconv.summation import Summation
from detconv.verdict.bounds import FORMATS, Format, rounded
from detconv.verdict.problem import Array, Problem, kernel_of, pads_of, pair

# Sums are drawn until our own orders of them cost about as much as two convolutions, but not fewer or more than these.
_SHARE = 1 / 20
_FEWEST, _MOST = 64, 4096


@dataclass(frozen=True, eq=False)
class Sample:
    """Some outputs: for each group the sums of some rows, times columns.

    places: their indices in the flat output, (groups, rows, columns).
    rows, columns: (groups, rows, terms) and (groups, terms, columns); a term that is padding is 0.
    bias: (groups, rows), or None.
    """

    places: Array
    rows: Array
    columns: Array
    bias: Array | None
    _made: dict[Format, list[Array]] = field(init=False, default_factory=dict)

    @staticmethod
    def of(problem: Problem, most: int = _MOST) -> Sample:
        """Drawn from the outputs of a problem, at most so many; all of them where there are no more than 64."""
        return _DRAWN[problem.name](problem, most)

    def mapped(self, function: Callable[[Array], Array]) -> Sample:
        """The same outputs of operands that a function has changed; the bias is as it was."""
        return replace(self, rows=function(self.rows), columns=function(self.columns))

    def moved(self, function: Callable[[Array], Array]) -> Iterator[Array]:
        """By how much the sums move if a function changes the rows, the columns or both; in the operands' type."""
        rows, columns = function(self.rows) - self.rows, function(self.columns) - self.columns
        some_rows, some_columns = bool(rows.any()), bool(columns.any())
        first = replace(self, rows=rows, bias=None)._sums("pairwise", rows.dtype)
        second = replace(self, columns=columns, bias=None)._sums("pairwise", rows.dtype)
        if some_rows and some_columns:
            yield first + second + replace(self, rows=rows, columns=columns, bias=None)._sums("pairwise", rows.dtype)
        if some_rows:
            yield first
        if some_columns:
            yield second

    @cached_property
    def exact(self) -> Array:
        """The sums in float64, to a few units in its last place of S."""
        return self._sums("pairwise", np.float64)

    def errors(self, accumulator: Format) -> list[Array]:
        """The errors of each of our own orders in an accumulator of a format.

        Sums are made in float32 and float64. In narrower formats the errors are larger in proportion; there some orders
        are computed number by number, too, as long as sums of so many terms mean anything.
        """
        if accumulator not in self._made:
            self._made[accumulator] = list(self._errors(accumulator))
        return self._made[accumulator]

    def _errors(self, accumulator: Format) -> Iterator[Array]:
        wide = accumulator.digits > FORMATS["float32"].digits
        dtype = np.float64 if wide else np.float32
        given = self.mapped(lambda values: values.astype(dtype))
        larger = accumulator.unit / FORMATS[np.dtype(dtype).name].unit
        for order in own_orders(self.terms, self.bias is not None):
            yield (given._sums(order, dtype) - given.exact) * larger
        if larger > 1 and self.terms * accumulator.unit < 1:
            yield from (sums - self.exact for sums in self._narrow_sums(accumulator))

    def _narrow_sums(self, accumulator: Format) -> Array:
        """Forwards and backwards, fused and rounded, every partial sum rounded to a format."""
        rows, columns = self.rows.astype(np.float64), self.columns.astype(np.float64)
        sums = np.zeros((4, len(rows), rows.shape[1], columns.shape[2]))
        for first in range(self.terms):
            last = self.terms - 1 - first
            ahead, back = (rows[:, :, k, None] * columns[:, None, k] for k in (first, last))
            products = np.stack([ahead, rounded(ahead, accumulator), back, rounded(back, accumulator)])
            sums = rounded(sums + products, accumulator)
        if self.bias is not None:
            sums = rounded(sums + self.bias[:, :, None], accumulator)
        return np.asarray(sums.reshape(4, -1))

    @property
    def terms(self) -> int:
        return int(self.rows.shape[-1])

    def _sums(self, summation: Summation | str, dtype: Any) -> Array:
        groups, rows, terms = self.rows.shape
        columns = self.columns.shape[-1]
        if not terms:  # only the biases are left
            bias = np.zeros((groups, rows)) if self.bias is None else self.bias
            return np.repeat(bias.astype(np.float64)[..., None], columns, axis=2).ravel()
        made: Array = conv2d(
            np.ascontiguousarray(self.columns.reshape(1, groups * terms, 1, columns), dtype),
            np.ascontiguousarray(self.rows.reshape(groups * rows, terms, 1, 1), dtype),
            None if self.bias is None else np.ascontiguousarray(self.bias.ravel(), dtype),
            groups=groups,
            summation=summation,
        )
        return made.reshape(-1).astype(np.float64)


def own_orders(terms: int, biased: bool) -> Iterator[Summation | str]:
    """Sound orders of a sum that differ as much as orders do: forwards and backwards, in blocks, lanes and halves."""
    yield "naive"
    yield "naive products=rounded"
    yield "pairwise"
    if terms < 2:
        return
    yield "pairwise block=1"
    end = " bias" if biased else ""
    for way in "fm":
        yield Summation(order=f"{terms}x(-1){{{way}{terms - 1}}}{end}")
        for lanes in (2, 16):
            if terms >= lanes:
                yield Summation(order=_in_lanes(terms, lanes, way) + end)
    half = terms // 2
    yield Summation(order=f"{half}x(+1){{f0}} [{terms - half}x(+1){{f{half}}}]{end}")


def _in_lanes(terms: int, lanes: int, way: str) -> str:
    """Every so-manieth term in an accumulator of its own, joined one after the other; then the terms that are left."""
    each, left = divmod(terms, lanes)
    first, *others = (f"{each}x(+{lanes}){{{way}{lane}}}" for lane in range(lanes))
    rest = f" {left}x(+1){{{way}{each * lanes}}}" if left else ""
    return first + "".join(f" [{chain}]" for chain in others) + rest


# ---- Drawing ----


def _counts(most: int, *available: int) -> list[int]:
    """How many groups, rows and columns to draw: about equally many, and all if there are few."""
    wanted = min(max(int(math.prod(available) * _SHARE), _FEWEST), most)
    counts = list(available)
    while math.prod(counts) > wanted:
        largest = int(np.argmax(counts))
        others = math.prod(counts) // counts[largest]
        enough = wanted // others if wanted > _FEWEST else -(-wanted // others)
        halved = -(-counts[largest] // 2)
        if enough >= counts[largest]:
            break
        counts[largest] = max(halved, enough, 1)
        if enough >= halved:
            break
    return counts


def _draw(most: int, *available: int) -> list[Array]:
    """Numbers of groups, rows of a group and columns, in ascending order."""
    draw = np.random.default_rng(0)
    pairs = zip(available, _counts(most, *available), strict=True)
    return [np.sort(draw.choice(size, count, replace=False, shuffle=False)) for size, count in pairs]


def _of_output(problem: Problem, most: int) -> Sample:
    """Of conv2d: a pixel sees the window of the input that the kernel covers there."""
    image, weight = _batched(problem.input), problem.weight
    (kh, kw), (sh, sw), (dh, dw) = kernel_of(problem), pair(problem.stride), pair(problem.dilation)
    (top, _), (left, _) = pads_of(problem)
    panel = _by_group(weight, int(problem.groups))

    def windows(y: Array, x: Array) -> _Windows:
        return (
            y[:, None] * sh - top + np.arange(kh) * dh,
            x[:, None] * sw - left + np.arange(kw) * dw,
        )

    return _of_images(image, panel, problem.bias, (len(image), *problem.shape[-2:]), windows, most)


def _of_transpose(problem: Problem, most: int) -> Sample:
    """Of conv_transpose2d and of the input gradient: a pixel sees those that its place in the kernel brings to it."""
    forward = problem.name == "conv_transpose2d"
    image, weight = _batched(problem.input if forward else problem.grad_output), problem.weight
    (kh, kw), (sh, sw), (dh, dw) = kernel_of(problem), pair(problem.stride), pair(problem.dilation)
    (top, _), (left, _) = pads_of(problem)
    panel = _by_group(weight, int(problem.groups)).swapaxes(1, 2)

    def windows(y: Array, x: Array) -> _Windows:
        return (
            _divided(y[:, None] + top - np.arange(kh) * dh, sh),
            _divided(x[:, None] + left - np.arange(kw) * dw, sw),
        )

    return _of_images(image, panel, problem.bias if forward else None, (len(image), *problem.shape[-2:]), windows, most)


def _divided(places: Array, stride: int) -> Array:
    """Where a stride takes places from; -1 for places that it passes over."""
    return np.where(places % stride == 0, places // stride, -1)


# Rows (columns, KH) and columns (columns, KW) of the image that the taps of some outputs see; outside: padding.
_Windows: TypeAlias = tuple[Array, Array]


def _of_images(
    image: Array,
    panel: Array,
    bias: Array | None,
    shape: tuple[int, ...],
    windows: Callable[[Array, Array], _Windows],
    most: int,
) -> Sample:
    """Of outputs whose pixels see windows of an image: image (N, G * C, H, W), panel (G, R, C, KH, KW), and the sizes
    of the samples, rows and columns of the output."""
    groups, rows, depth, *kernel = panel.shape
    g, r, pixels = _draw(most, groups, rows, math.prod(shape))
    samples, y, x = np.unravel_index(pixels, shape)
    iy, ix = windows(y, x)
    terms = depth * math.prod(kernel)
    columns = _seen(image.reshape(len(image), groups, depth, *image.shape[-2:]), samples, g, iy, ix)
    channel = (g[:, None] * rows + r)[:, :, None]
    places = ((samples * groups * rows + channel) * shape[1] + y) * shape[2] + x
    return Sample(
        places.ravel(),
        panel[g[:, None], r].reshape(len(g), len(r), terms),
        columns.transpose(3, 4, 1, 2, 0).reshape(len(g), terms, len(pixels)),
        None if bias is None else bias[channel[:, :, 0]],
    )


def _seen(image: Array, samples: Array, groups: Array, iy: Array, ix: Array) -> Array:
    """Windows of an image (N, G, C, H, W): (windows, KH, KW, groups, C), zeros where they lie outside."""
    height, width = image.shape[-2:]
    inside = ((iy >= 0) & (iy < height))[:, :, None] & ((ix >= 0) & (ix < width))[:, None, :]
    if not height * width:
        return np.zeros((*inside.shape, len(groups), image.shape[2]), image.dtype)
    y, x = np.clip(iy, 0, height - 1), np.clip(ix, 0, width - 1)
    seen = image[samples[:, None, None, None], groups, :, y[:, :, None, None], x[:, None, :, None]]
    return np.where(inside[..., None, None], seen, np.zeros((), image.dtype))


def _of_weight(problem: Problem, most: int) -> Sample:
    """Of the weight gradient: the sums over all samples and pixels of the output."""
    image, outputs = _batched(problem.input), _batched(problem.grad_output)
    groups, (kh, kw) = int(problem.groups), kernel_of(problem)
    (sh, sw), (dh, dw) = pair(problem.stride), pair(problem.dilation)
    (top, bottom), (left, right) = pads_of(problem)
    n, channels, height, width = outputs.shape
    depth, rows, terms = image.shape[1] // groups, channels // groups, n * height * width
    g, r, taps = _draw(most, groups, rows, depth * kh * kw)
    channel = g[:, None] * rows + r
    columns = np.empty((len(g), len(taps), n, height, width), image.dtype)
    c, i, j = np.unravel_index(taps, (depth, kh, kw))
    for tap in {*zip(i.tolist(), j.tolist(), strict=True)}:
        own = np.flatnonzero((i == tap[0]) & (j == tap[1]))
        seen = image[:, g[:, None] * depth + c[own]]  # (n, groups, own, H, W)
        padded = np.pad(seen, ((0, 0), (0, 0), (0, 0), (top, bottom), (left, right)))
        y, x = tap[0] * dh, tap[1] * dw
        part = padded[..., y : y + sh * (height - 1) + 1 : sh, x : x + sw * (width - 1) + 1 : sw]
        columns[:, own] = part.transpose(1, 2, 0, 3, 4)
    return Sample(
        (channel[:, :, None] * depth * kh * kw + taps).ravel(),
        outputs[:, channel].transpose(1, 2, 0, 3, 4).reshape(len(g), len(r), terms),
        columns.reshape(len(g), len(taps), terms).swapaxes(1, 2),
        None,
    )


def _of_bias(problem: Problem, most: int) -> Sample:
    """Of the bias gradient: the sums over all samples and pixels, whose other factor is 1."""
    outputs = _batched(problem.grad_output)
    _, r, _ = _draw(most, 1, outputs.shape[1], 1)
    rows = outputs[:, r].swapaxes(0, 1).reshape(1, len(r), outputs.size // max(outputs.shape[1], 1))
    return Sample(r, rows, np.ones((1, rows.shape[2], 1), rows.dtype), None)


def _by_group(weight: Array, groups: int) -> Array:
    return weight.reshape(groups, len(weight) // groups, *weight.shape[1:])


def _batched(array: Array) -> Array:
    return array if array.ndim == 4 else array[None]


_DRAWN: dict[str, Callable[[Problem, int], Sample]] = {
    "conv2d": _of_output,
    "conv2d_input": _of_transpose,
    "conv2d_weight": _of_weight,
    "conv2d_bias": _of_bias,
    "conv_transpose2d": _of_transpose,
}
