"""Seeded mistakes: outputs of conv2d with one mistake in each, made from random layers.

A kind is a function of a random generator and a layer that returns the wrong output, or None where the layer cannot
have the mistake. Where it takes other numbers, or views of them, it returns the layer that has these as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

import detconv
from bits import Array

Pair = tuple[int, int]

# Of the layers that the tests draw: a diagnosis of one takes some tenths of a second.
MOST_PRODUCTS = 30_000


@dataclass(frozen=True)
class Layer:
    input: Array
    weight: Array
    bias: Array | None
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int

    def run(self, summation: str = "naive order=kh,kw,c", **changes: Any) -> Array:
        """The output, with other arguments where they are given."""
        made = replace(self, **changes)
        return detconv.conv2d(*made.arguments, summation=summation)

    @property
    def arguments(self) -> tuple[Any, ...]:
        return (self.input, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)

    def __repr__(self) -> str:
        return (
            f"Layer({self.input.shape}, {self.weight.shape}, {'no ' * (self.bias is None)}bias, stride {self.stride}, "
            f"padding {self.padding}, dilation {self.dilation}, groups {self.groups}, {self.input.dtype})"
        )


def layer(rng: np.random.Generator, dtype: type = np.float32) -> Layer:
    """A layer of any geometry with values drawn from a normal distribution."""

    def pair(low: int, high: int) -> Pair:
        first = int(rng.integers(low, high + 1))
        return (first, first) if rng.random() < 0.5 else (first, int(rng.integers(low, high + 1)))

    kernel = (int(rng.integers(1, 8)),) * 2 if rng.random() < 0.6 else pair(1, 7)
    stride, dilation = (pair(1, 3) if rng.random() < 0.5 else (1, 1)), (pair(1, 2) if rng.random() < 0.4 else (1, 1))
    padding = pair(0, 3)
    groups = int(rng.choice([1, 1, 1, 2, 3, 4]))
    channels, outputs = groups * int(rng.integers(1, 9)), groups * int(rng.integers(1, 9))
    least = [max(1, d * (k - 1) + 1 - 2 * p) for k, d, p in zip(kernel, dilation, padding, strict=True)]
    size = [low + int(rng.integers(2, 18)) for low in least]
    if rng.random() < 0.4:
        size = [max(size)] * 2
    batch = int(rng.integers(1, 5))

    def normal(*shape: int) -> Array:
        return rng.standard_normal(shape).astype(dtype)

    bias = normal(outputs) if rng.random() < 0.7 else None
    weight = normal(outputs, channels // groups, *kernel)
    return Layer(normal(batch, channels, *size), weight, bias, stride, padding, dilation, groups)


Mistake = Callable[[np.random.Generator, Layer], "Array | tuple[Layer, Array] | None"]


class Kind(NamedTuple):
    name: str
    answers: tuple[str, ...]  # the hypotheses that are right
    make: Mistake


KINDS: list[Kind] = []


def kind(name: str, *answers: str) -> Callable[[Mistake], Mistake]:
    def added(make: Mistake) -> Mistake:
        KINDS.append(Kind(name, answers, make))
        return make

    return added


def contiguous(array: Array) -> Array:
    return np.ascontiguousarray(array)


def padded(a: Layer, pads: Any, mode: str = "constant", **more: Any) -> Array | None:
    """The output with this padding, negative where the image is cut."""
    (top, bottom), (left, right) = pads
    x = a.input[..., max(-top, 0) :, max(-left, 0) :]
    x = x[..., : x.shape[-2] - max(-bottom, 0), : x.shape[-1] - max(-right, 0)]
    widths = ((0, 0), (0, 0), (max(top, 0), max(bottom, 0)), (max(left, 0), max(right, 0)))
    return a.run(input=np.pad(x, widths, mode, **more), padding=(0, 0))  # type: ignore[call-overload]


def sides(a: Layer) -> list[list[int]]:
    return [[p, p] for p in a.padding]


# ---- Geometry ----


@kind("kernel flipped", "kernel flipped")
def _(rng: Any, a: Layer) -> Array | None:
    return a.run(weight=contiguous(a.weight[..., ::-1, ::-1])) if min(a.weight.shape[2:]) > 1 else None


@kind("kernel flipped in one axis", "kernel flipped in one axis")
def _(rng: Any, a: Layer) -> Array | None:
    if min(a.weight.shape[2:]) < 2:
        return None
    return a.run(weight=contiguous(a.weight[..., ::-1] if rng.random() < 0.5 else a.weight[..., ::-1, :]))


@kind("kernel transposed", "kernel transposed")
def _(rng: Any, a: Layer) -> Array | None:
    h, w = a.weight.shape[2:]
    return a.run(weight=contiguous(a.weight.swapaxes(2, 3))) if h == w > 1 else None


@kind("kernel's height and width swapped", "height and width swapped")
def _(rng: Any, a: Layer) -> Array | None:
    h, w = a.weight.shape[2:]
    return a.run(weight=contiguous(a.weight.swapaxes(2, 3))) if h != w and min(h, w) > 1 else None


def swapped(name: str) -> Mistake:
    def make(rng: Any, a: Layer) -> Array | None:
        h, w = getattr(a, name)
        # A dilation or stride of which nothing is left over is no dilation or stride.
        if h == w or (name == "dilation" and min(a.weight.shape[2:]) < 2):
            return None
        return a.run(**{name: (w, h)})

    return make


kind("stride's height and width swapped", "height and width swapped")(swapped("stride"))
kind("padding's height and width swapped", "height and width swapped")(swapped("padding"))
kind("dilation's height and width swapped", "height and width swapped")(swapped("dilation"))


@kind("input's height and width swapped", "height and width swapped")
def _(rng: Any, a: Layer) -> Array | None:
    return a.run(input=contiguous(a.input.swapaxes(2, 3)))


@kind("padding missing", "padding missing")
def _(rng: Any, a: Layer) -> Array | None:
    return a.run(padding=(0, 0)) if min(a.padding) > 0 else None


@kind("padding missing in one axis", "padding missing")
def _(rng: Any, a: Layer) -> Array | None:
    return a.run(padding=(0, a.padding[1])) if min(a.padding) > 0 else None


@kind("padding off by one", "wrong padding")
def _(rng: Any, a: Layer) -> Array | None:
    by = 1 if min(a.padding) < 2 or rng.random() < 0.5 else -1
    return a.run(padding=(a.padding[0] + by, a.padding[1] + by))


@kind("padding off by one on one side", "wrong padding", "padding on the wrong side")
def _(rng: Any, a: Layer) -> Array | None:
    pads = sides(a)
    pads[int(rng.integers(2))][int(rng.integers(2))] += int(rng.choice([-1, 1]))
    return padded(a, pads)


@kind("padding on the wrong side", "padding on the wrong side")
def _(rng: Any, a: Layer) -> Array | None:
    pads = sides(a)
    axis, by = int(rng.integers(2)), int(rng.choice([-1, 1]))
    pads[axis][0] += by
    pads[axis][1] -= by
    return padded(a, pads)


def mode(name: str, numpy_name: str) -> None:
    @kind(f"padding by {name}", "padding of another mode")
    def _(rng: Any, a: Layer) -> Array | None:
        if max(a.padding) >= min(a.input.shape[2:]) or max(a.padding) == 0:
            return None
        return padded(a, sides(a), numpy_name)


mode("reflect", "reflect")
mode("replicate", "edge")
mode("circular", "wrap")


@kind("padding of a value", "padding of a value")
def _(rng: Any, a: Layer) -> Array | None:
    value = float(rng.choice([1.0, -1.0, 0.5, 0.449, -3.7]))
    return padded(a, sides(a), constant_values=value) if max(a.padding) > 0 else None


@kind("stride ignored", "stride ignored")
def _(rng: Any, a: Layer) -> Array | None:
    return a.run(stride=(1, 1)) if min(a.stride) > 1 else None


@kind("stride ignored in the index alone", "stride ignored")
def _(rng: Any, a: Layer) -> Array | None:
    rows, columns = a.run().shape[2:]
    return contiguous(a.run(stride=(1, 1))[..., :rows, :columns]) if min(a.stride) > 1 else None


@kind("stride off by one", "wrong stride")
def _(rng: Any, a: Layer) -> Array | None:
    return a.run(stride=(a.stride[0] + 1, a.stride[1] + 1))


@kind("dilation ignored", "dilation ignored")
def _(rng: Any, a: Layer) -> Array | None:
    return a.run(dilation=(1, 1)) if min(a.dilation) > 1 and min(a.weight.shape[2:]) > 1 else None


@kind("dilation ignored in the index alone", "dilation ignored")
def _(rng: Any, a: Layer) -> Array | None:
    rows, columns = a.run().shape[2:]
    if min(a.dilation) < 2 or min(a.weight.shape[2:]) < 2:
        return None
    return contiguous(a.run(dilation=(1, 1))[..., :rows, :columns])


@kind("dilation off by one", "wrong dilation")
def _(rng: Any, a: Layer) -> Array | None:
    if min(a.weight.shape[2:]) < 2:
        return None
    made = (a.dilation[0] + 1, a.dilation[1] + 1)
    reach = [d * (k - 1) + 1 - 2 * p for d, k, p in zip(made, a.weight.shape[2:], a.padding, strict=True)]
    return a.run(dilation=made) if all(r <= s for r, s in zip(reach, a.input.shape[2:], strict=True)) else None


@kind("transposed convolution", "transposed convolution", "kernel flipped")
def _(rng: Any, a: Layer) -> Array | None:
    if len(a.weight) != a.input.shape[1] or (a.bias is not None and len(a.bias) != a.weight.shape[1] * a.groups):
        return None
    try:
        return detconv.conv_transpose2d(
            a.input, a.weight, a.bias, a.stride, a.padding, groups=a.groups, dilation=a.dilation
        )
    except ValueError:
        return None


# ---- Bias ----


@kind("bias missing", "bias missing")
def _(rng: Any, a: Layer) -> Array | None:
    return None if a.bias is None else a.run(bias=None)


@kind("bias doubled", "bias doubled")
def _(rng: Any, a: Layer) -> Array | None:
    return None if a.bias is None else a.run() + a.bias[:, None, None]


@kind("bias subtracted", "bias subtracted")
def _(rng: Any, a: Layer) -> Array | None:
    return None if a.bias is None else a.run(bias=-a.bias)


@kind("bias of the next channel", "bias of other channels")
def _(rng: Any, a: Layer) -> Array | None:
    return None if a.bias is None or len(a.bias) < 2 else a.run(bias=np.roll(a.bias, 1))


@kind("bias of the first channel", "bias of other channels")
def _(rng: Any, a: Layer) -> Array | None:
    return None if a.bias is None or len(a.bias) < 2 else a.run(bias=np.full_like(a.bias, a.bias[0]))


@kind("bias by column", "bias along another axis")
def _(rng: Any, a: Layer) -> Array | None:
    plain = a.run(bias=None)
    return plain + a.bias if a.bias is not None and plain.shape[-1] == len(a.bias) > 1 else None


@kind("a number added", "constant added")
def _(rng: Any, a: Layer) -> Array | None:
    return a.run() + np.float32(0.1)


# ---- Channels ----


@kind("input channels reversed", "input channels mixed up")
def _(rng: Any, a: Layer) -> Array | None:
    return a.run(input=contiguous(a.input[:, ::-1])) if a.input.shape[1] > 1 and a.groups == 1 else None


@kind("input channels permuted", "input channels mixed up")
def _(rng: Any, a: Layer) -> Array | None:
    return a.run(input=a.input[:, rng.permutation(a.input.shape[1])]) if a.groups == 1 < a.input.shape[1] else None


@kind("channel shuffle missing or added", "input channels mixed up", "output channels mixed up")
def _(rng: Any, a: Layer) -> Array | None:
    order = np.arange(a.input.shape[1]).reshape(a.groups, -1).T.ravel()
    return a.run(input=a.input[:, order]) if a.groups > 1 < a.weight.shape[1] else None


@kind("groups exchanged", "input channels mixed up", "output channels mixed up")
def _(rng: Any, a: Layer) -> Array | None:
    n, c, h, w = a.input.shape
    return a.run(input=contiguous(np.roll(a.input.reshape(n, a.groups, -1, h, w), 1, 1).reshape(n, c, h, w)))


@kind("output channels permuted", "output channels mixed up")
def _(rng: Any, a: Layer) -> Array | None:
    return a.run()[:, rng.permutation(len(a.weight))] if len(a.weight) > 2 else None


@kind("weight's output channels permuted", "output channels mixed up")
def _(rng: Any, a: Layer) -> Array | None:
    return a.run(weight=a.weight[rng.permutation(len(a.weight))]) if len(a.weight) > 2 and a.groups == 1 else None


@kind("two output channels exchanged", "output channels mixed up")
def _(rng: Any, a: Layer) -> Array | None:
    if len(a.weight) < 3:
        return None
    order = np.arange(len(a.weight))
    order[[0, 2]] = order[[2, 0]]
    return a.run()[:, order]


@kind("one output channel is another", "output channels mixed up")
def _(rng: Any, a: Layer) -> Array | None:
    if len(a.weight) < 3:
        return None
    made = a.run()
    made[:, 1] = made[:, 0]
    return made


@kind("weight transposed", "weight read in another layout")
def _(rng: Any, a: Layer) -> Array | None:
    o, c = a.weight.shape[:2]
    return a.run(weight=contiguous(a.weight.swapaxes(0, 1))) if o == c > 1 else None


@kind("weight read as HWIO", "weight read in another layout")
def _(rng: Any, a: Layer) -> Array | None:
    o, c, h, w = a.weight.shape
    return a.run(weight=contiguous(a.weight.reshape(h, w, c, o).transpose(3, 2, 0, 1))) if c > 1 < h else None


@kind("input read as NHWC", "input read in another layout")
def _(rng: Any, a: Layer) -> Array | None:
    n, c, h, w = a.input.shape
    return a.run(input=contiguous(a.input.reshape(n, h, w, c).transpose(0, 3, 1, 2))) if c > 1 else None


@kind("output is NHWC", "output in another layout")
def _(rng: Any, a: Layer) -> Array | None:
    return contiguous(a.run().transpose(0, 2, 3, 1))


@kind("output written as NHWC", "output in another layout")
def _(rng: Any, a: Layer) -> Array | None:
    made = a.run()
    return contiguous(made.transpose(0, 2, 3, 1)).reshape(made.shape)


# ---- Terms ----


def one_of(rng: Any, size: int) -> int:
    return int(rng.integers(size))


@kind("a tap dropped", "terms missing")
def _(rng: Any, a: Layer) -> Array | None:
    h, w = a.weight.shape[2:]
    weight = a.weight.copy()
    weight[:, :, one_of(rng, h), one_of(rng, w)] = 0
    return a.run(weight=weight) if h * w > 2 else None


@kind("a tap doubled", "terms twice")
def _(rng: Any, a: Layer) -> Array | None:
    h, w = a.weight.shape[2:]
    weight = a.weight.copy()
    weight[:, :, one_of(rng, h), one_of(rng, w)] *= 2
    return a.run(weight=weight) if h * w > 2 else None


@kind("a tap dropped in one output channel", "terms missing")
def _(rng: Any, a: Layer) -> Array | None:
    o, _, h, w = a.weight.shape
    weight = a.weight.copy()
    weight[one_of(rng, o), :, one_of(rng, h), one_of(rng, w)] = 0
    return a.run(weight=weight) if h * w > 2 else None


@kind("one weight zeroed", "terms missing")
def _(rng: Any, a: Layer) -> Array | None:
    weight = a.weight.copy()
    weight[tuple(one_of(rng, size) for size in weight.shape)] = 0
    return a.run(weight=weight) if weight[0].size > 2 else None


@kind("one weight doubled", "terms twice")
def _(rng: Any, a: Layer) -> Array | None:
    weight = a.weight.copy()
    weight[tuple(one_of(rng, size) for size in weight.shape)] *= 2
    return a.run(weight=weight) if weight[0].size > 2 else None


@kind("one weight's sign", "terms subtracted")
def _(rng: Any, a: Layer) -> Array | None:
    weight = a.weight.copy()
    weight[tuple(one_of(rng, size) for size in weight.shape)] *= -1
    return a.run(weight=weight) if weight[0].size > 2 else None


@kind("one weight is another number", "terms weighed otherwise")
def _(rng: Any, a: Layer) -> Array | None:
    weight = a.weight.copy()
    weight[tuple(one_of(rng, size) for size in weight.shape)] *= np.float32(1.3)
    return a.run(weight=weight) if weight[0].size > 2 else None


@kind("an input channel dropped", "terms missing")
def _(rng: Any, a: Layer) -> Array | None:
    x = a.input.copy()
    x[:, one_of(rng, x.shape[1])] = 0
    return a.run(input=x) if a.weight.shape[1] > 2 and a.groups == 1 else None


@kind("last input channel missed by the loop", "terms missing")
def _(rng: Any, a: Layer) -> Array | None:
    weight = a.weight.copy()
    weight[:, -1] = 0
    return a.run(weight=weight) if a.weight.shape[1] > 2 else None


# ---- Scale and sign ----


@kind("mean instead of sum", "scaled")
def _(rng: Any, a: Layer) -> Array | None:
    terms = a.weight[0].size
    bias = 0 if a.bias is None else a.bias[:, None, None]
    return a.run(bias=None) / np.float32(terms) + bias if terms > 1 else None


@kind("input divided by 255", "scaled")
def _(rng: Any, a: Layer) -> Array | None:
    return a.run(input=a.input / np.float32(255))


@kind("added twice", "scaled")
def _(rng: Any, a: Layer) -> Array | None:
    return a.run() * np.float32(2)


@kind("scaled by any number", "scaled")
def _(rng: Any, a: Layer) -> Array | None:
    return a.run() * np.float32(rng.uniform(0.3, 3))


@kind("scaled by channel", "scaled")
def _(rng: Any, a: Layer) -> Array | None:
    made = a.run()
    return made * rng.uniform(0.5, 2, (len(a.weight), 1, 1)).astype(np.float32) if made[:, 0].size > 4 else None


@kind("one output channel scaled", "scaled")
def _(rng: Any, a: Layer) -> Array | None:
    made = a.run()
    made[:, one_of(rng, len(a.weight))] *= np.float32(0.9)
    return made


@kind("sign", "sign")
def _(rng: Any, a: Layer) -> Array | None:
    return -a.run()


# ---- Some of the terms only ----


def with_factor(a: Layer, factor: Array) -> Array:
    """The output whose terms, (c, kh, kw), are in the sums so many times."""
    return a.run(weight=a.weight * factor.astype(a.weight.dtype))


def kept_some(rng: Any, size: int) -> Array:
    """Ones and zeros: fewer than half of the parts are there, at least one."""
    factor = np.zeros(size)
    factor[rng.permutation(size)[: int(rng.integers(1, (size + 1) // 2))]] = 1
    return factor


@kind("some taps only", "some of the terms only")
def _(rng: Any, a: Layer) -> Array | None:
    h, w = a.weight.shape[2:]
    return with_factor(a, kept_some(rng, h * w).reshape(h, w)) if h * w > 3 else None


@kind("one kernel row only", "some of the terms only")
def _(rng: Any, a: Layer) -> Array | None:
    h = a.weight.shape[2]
    return with_factor(a, (np.arange(h) == one_of(rng, h))[:, None]) if h > 2 else None


@kind("some input channels only", "some of the terms only")
def _(rng: Any, a: Layer) -> Array | None:
    channels = a.weight.shape[1]
    return with_factor(a, kept_some(rng, channels)[:, None, None]) if channels > 3 else None


@kind("one term only", "some of the terms only")
def _(rng: Any, a: Layer) -> Array | None:
    factor = np.zeros(a.weight[0].size)
    factor[one_of(rng, factor.size)] = 1
    return with_factor(a, factor.reshape(a.weight.shape[1:])) if factor.size > 3 else None


def block(rng: Any, a: Layer, inside: Callable[[int, Array], Array]) -> Array | None:
    """The output without a block of the terms, in the order c, kh, kw or kh, kw, c."""
    c, h, w = a.weight.shape[1:]
    if c * h * w < 12:
        return None
    there = inside(c * h * w, np.arange(c * h * w))
    return with_factor(a, there.reshape(c, h, w) if rng.random() < 0.5 else there.reshape(h, w, c).transpose(2, 0, 1))


@kind("first terms only", "some of the terms only", "terms missing")
def _(rng: Any, a: Layer) -> Array | None:
    return block(rng, a, lambda count, at: at < rng.integers(1, count - 1))


@kind("last terms only", "some of the terms only", "terms missing")
def _(rng: Any, a: Layer) -> Array | None:
    return block(rng, a, lambda count, at: at >= rng.integers(1, count - 1))


@kind("a block of terms missing", "some of the terms only", "terms missing")
def _(rng: Any, a: Layer) -> Array | None:
    def inside(count: int, at: Array) -> Array:
        first = rng.integers(1, count - 4)
        return (at < first) | (at >= first + rng.integers(2, count - first - 1))

    return block(rng, a, inside)


# ---- Memory read or written with other strides ----


def embedded(rng: Any, array: Array) -> Array:
    """The same numbers as a view: a part of a larger array, whose axes may lie in another order."""
    order = [int(axis) for axis in (rng.permutation(4) if rng.random() < 0.5 else (0, 2, 3, 1))]
    shape = [array.shape[axis] for axis in order]
    part = int(rng.integers(1, 4))
    larger = [size + int(rng.integers(1, 4)) * (place >= part) for place, size in enumerate(shape)]
    base = rng.standard_normal(larger).astype(array.dtype)
    view = base[tuple(slice(size) for size in shape)].transpose(np.argsort(order))
    view[...] = array
    return view


def read_packed(rng: Any, view: Array) -> Array:
    """Its memory as a program reads it that takes it for packed in the order of its axes, or in that of its strides."""
    order = np.argsort([-s for s in view.strides], kind="stable") if rng.random() < 0.5 else np.arange(view.ndim)
    flat = view.base.ravel() if view.base.ndim == 1 else view.base.reshape(-1)
    return contiguous(flat[: view.size].reshape([view.shape[axis] for axis in order]).transpose(np.argsort(order)))


@kind("a view as input, read as packed", "view read as packed")
def _(rng: Any, a: Layer) -> tuple[Layer, Array] | None:
    b = replace(a, input=embedded(rng, a.input))
    return b, a.run(input=read_packed(rng, b.input))


@kind("a view as weight, read as packed", "view read as packed")
def _(rng: Any, a: Layer) -> tuple[Layer, Array] | None:
    b = replace(a, weight=embedded(rng, a.weight))
    return b, a.run(weight=read_packed(rng, b.weight))


@kind("a channels_last view, read as packed", "view read as packed")
def _(rng: Any, a: Layer) -> tuple[Layer, Array] | None:
    b = replace(a, input=contiguous(a.input.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2))
    return (b, a.run(input=b.input.base.reshape(a.input.shape))) if a.input.shape[1] > 1 else None


@kind("input read with a wrong batch stride", "wrong batch stride")
def _(rng: Any, a: Layer) -> Array | None:
    n, size = len(a.input), a.input[0].size
    stride = int(rng.choice([a.input[0, 0].size, size // 2, size - 1, int(rng.integers(1, size))]))
    if n < 2 or not 0 < stride < size:
        return None
    flat = a.input.ravel()
    return a.run(input=np.stack([flat[i * stride : i * stride + size].reshape(a.input.shape[1:]) for i in range(n)]))


@kind("output written with a wrong batch stride", "wrong batch stride")
def _(rng: Any, a: Layer) -> Array | None:
    made = a.run()
    size, stride = made[0].size, int(made[0].size * rng.uniform(0.7, 0.95))
    if len(made) < 2 or stride < 20:
        return None
    memory = np.zeros(made.size, made.dtype)
    for i, one in enumerate(made):
        memory[i * stride : i * stride + size] = one.ravel()
    return memory.reshape(made.shape)


# ---- Borders and flips ----


def bordered(flip: bool, numpy_name: str, own: bool) -> Mistake:
    def make(rng: Any, a: Layer) -> Array | None:
        reach = [d * (k - 1) + 1 for d, k in zip(a.dilation, a.weight.shape[2:], strict=True)]
        pads = sides(a) if own else [[(r - 1) // 2, r // 2] for r in reach]
        sizes = a.input.shape[2:]
        if max(map(max, pads)) == 0 or any(max(p) >= size - 1 for p, size in zip(pads, sizes, strict=True)):
            return None
        if a.weight.shape[2:] == (1, 1) or (not own and pads == sides(a)):
            return None
        b = replace(a, weight=contiguous(a.weight[..., ::-1, ::-1])) if flip else a
        made = padded(b, pads, numpy_name)
        # Where no window meets the border, nobody can tell how it is.
        zero = padded(b, pads)
        assert made is not None
        assert zero is not None
        return made if np.mean(made != zero) > 0.02 else None

    return make


for numpy_name in ("symmetric", "reflect", "edge", "wrap"):
    kind(f"flipped kernel, {numpy_name} border", "kernel flipped, other padding")(bordered(True, numpy_name, own=True))
    kind(f"flipped kernel, {numpy_name} border of half the kernel", "kernel flipped, other padding")(
        bordered(True, numpy_name, own=False)
    )
    kind(f"{numpy_name} border of half the kernel", "padding of another mode and size", "padding of another mode")(
        bordered(False, numpy_name, own=False)
    )


@kind("flipped kernel, full border", "kernel flipped, other padding", "transposed convolution")
def _(rng: Any, a: Layer) -> Array | None:
    reach = [d * (k - 1) + 1 for d, k in zip(a.dilation, a.weight.shape[2:], strict=True)]
    if max(reach) == 1 or min(reach) == 1:
        return None
    return padded(replace(a, weight=contiguous(a.weight[..., ::-1, ::-1])), [[r - 1, r - 1] for r in reach])


# ---- Groups ----


def by_output(a: Layer, met: Array) -> Layer:
    """The layer whose output channels read the input channels of these groups."""
    each = a.input.shape[1] // a.groups
    taken = (met[:, None] * each + np.arange(each)).ravel()
    return replace(a, input=contiguous(a.input[:, taken]), groups=len(a.weight))


@kind("output channel o reads group o % groups", "groups mixed up")
def _(rng: Any, a: Layer) -> Array | None:
    outputs = len(a.weight)
    return by_output(a, np.arange(outputs) % a.groups).run() if 1 < a.groups < outputs else None


@kind("output channels read any group", "groups mixed up")
def _(rng: Any, a: Layer) -> Array | None:
    if a.groups < 3:
        return None
    met = rng.integers(0, a.groups, len(a.weight))
    whole = met.reshape(a.groups, -1)
    return None if (whole == whole[:, :1]).all() else by_output(a, met).run()


@kind("depth multiplier laid out the other way", "depth multiplier laid out otherwise", "output channels mixed up")
def _(rng: Any, a: Layer) -> Array | None:
    outputs = len(a.weight)
    if not 1 < a.groups < outputs:
        return None
    order = np.arange(outputs).reshape(a.groups, -1).T.ravel()
    if rng.random() < 0.5:
        order = np.argsort(order)
    moved = a.bias is not None and rng.random() < 0.5
    return a.run(weight=a.weight[order], bias=a.bias[order] if a.bias is not None and moved else a.bias)


# ---- What is fused ----


@kind("input added, then ReLU", "input added and activation")
def _(rng: Any, a: Layer) -> Array | None:
    made = a.run()
    return np.maximum(made + a.input, 0) if made.shape == a.input.shape and made.size > 4 else None


@kind("ReLU, then input added", "input added and activation")
def _(rng: Any, a: Layer) -> Array | None:
    made = a.run()
    return np.maximum(made, 0) + a.input if made.shape == a.input.shape and made.size > 4 else None


@kind("ReLU of the input", "activation of the input")
def _(rng: Any, a: Layer) -> Array | None:
    return a.run(input=np.maximum(a.input, 0))


def normalising(rng: Any, a: Layer) -> tuple[Array, Array]:
    many = (len(a.weight), 1, 1)
    return rng.uniform(0.3, 2, many).astype(np.float32), rng.uniform(-2, 2, many).astype(np.float32)


@kind("BatchNorm folded in", "scaled and shifted")
def _(rng: Any, a: Layer) -> Array | None:
    made, (scale, shift) = a.run(), normalising(rng, a)
    return made * scale + shift if made[:, 0].size > 8 else None


@kind("BatchNorm folded in, then ReLU", "scaled and shifted")
def _(rng: Any, a: Layer) -> Array | None:
    made, (scale, shift) = a.run(), normalising(rng, a)
    made = np.maximum(made * scale + shift, 0)
    return made if (made > 0).sum(axis=(0, 2, 3)).min() > 8 and (made == 0).sum() > 8 else None


@kind("scaled and shifted", "scaled and shifted")
def _(rng: Any, a: Layer) -> Array | None:
    made = a.run()
    return made * np.float32(0.226) + np.float32(0.449) if made.size > 8 else None


@kind("a bias of each position added", "addend")
def _(rng: Any, a: Layer) -> Array | None:
    made = a.run()
    if len(made) < 3 or made[0].size < 8:
        return None
    return made + rng.standard_normal(made.shape[1:]).astype(made.dtype)


# ---- Subnormals ----


def flushed(values: Array) -> Array:
    return np.where(np.abs(values) < 2.0**-126, 0, values).astype(np.float32)


def tiny(rng: Any, a: Layer) -> Layer | None:
    """The layer with an input so small that some, not all, outputs are subnormal."""
    b = replace(a, input=a.input * np.float32(2.0**-126), bias=None)
    b = replace(b, weight=(b.weight * rng.uniform(0.1, 2) / np.sqrt(a.weight[0].size)).astype(np.float32))
    small = np.abs(b.run()) < 2.0**-126
    return b if small.sum() > 3 and (~small).sum() > 3 else None


@kind("subnormal results flushed", "subnormals flushed")
def _(rng: Any, a: Layer) -> tuple[Layer, Array] | None:
    b = tiny(rng, a)
    return None if b is None else (b, flushed(b.run()))


@kind("subnormal operands flushed", "subnormals flushed")
def _(rng: Any, a: Layer) -> tuple[Layer, Array] | None:
    b = tiny(rng, a)
    return None if b is None else (b, b.run(input=flushed(b.input)))


@kind("subnormal operands and results flushed", "subnormals flushed")
def _(rng: Any, a: Layer) -> tuple[Layer, Array] | None:
    b = tiny(rng, a)
    return None if b is None else (b, flushed(b.run(input=flushed(b.input))))


@kind("subnormals flushed on the way", "subnormals flushed")
def _(rng: Any, a: Layer) -> tuple[Layer, Array] | None:
    b = tiny(rng, a)
    if b is None or b.groups > 1:
        return None
    view = np.lib.stride_tricks.sliding_window_view(
        np.pad(b.input, ((0, 0), (0, 0), *((p, p) for p in b.padding))),
        [d * (k - 1) + 1 for d, k in zip(b.dilation, b.weight.shape[2:], strict=True)],
        (2, 3),
    )[:, :, :: b.stride[0], :: b.stride[1], :: b.dilation[0], :: b.dilation[1]]
    total = np.zeros(b.run().shape, np.float32)
    for c, i, j in np.ndindex(*b.weight.shape[1:]):
        total = flushed(total + flushed(b.weight[:, c, i, j, None, None] * view[:, c, None, :, :, i, j]))
    return (b, total) if total.any() else None


# ---- The output ----


@kind("output shifted with zeros", "output shifted")
def _(rng: Any, a: Layer) -> Array | None:
    made = a.run()
    if min(made.shape[2:]) < 4:
        return None
    shifted = np.zeros_like(made)
    if rng.random() < 0.5:
        shifted[..., 1:, :] = made[..., :-1, :]
    else:
        shifted[..., :-1] = made[..., 1:]
    return shifted


@kind("output rolled", "output shifted")
def _(rng: Any, a: Layer) -> Array | None:
    made = a.run()
    return np.roll(made, (1, -1), (2, 3)) if min(made.shape[2:]) > 3 else None


@kind("samples permuted", "samples mixed up")
def _(rng: Any, a: Layer) -> Array | None:
    return a.run()[::-1].copy() if len(a.input) > 1 else None


@kind("samples all the first", "samples mixed up")
def _(rng: Any, a: Layer) -> Array | None:
    return np.repeat(a.run()[:1], len(a.input), 0) if len(a.input) > 1 else None


@kind("zeros", "not computed")
def _(rng: Any, a: Layer) -> Array | None:
    return np.zeros_like(a.run())


@kind("last rows not computed", "not computed")
def _(rng: Any, a: Layer) -> Array | None:
    made = a.run()
    made[..., made.shape[2] // 2 :, :] = 0
    return made if made.shape[2] > 1 else None


@kind("only the first tile", "not computed")
def _(rng: Any, a: Layer) -> Array | None:
    made, tile = a.run(), np.s_[..., :4, :4]
    kept = np.zeros_like(made)
    kept[tile] = made[tile]
    return kept if min(made.shape[2:]) > 4 else None


@kind("one output channel zeroed", "not computed")
def _(rng: Any, a: Layer) -> Array | None:
    made = a.run()
    made[:, one_of(rng, len(a.weight))] = 0
    return made


@kind("only the first sample", "not computed")
def _(rng: Any, a: Layer) -> Array | None:
    made = a.run()
    made[1:] = 0
    return made if len(made) > 1 else None


@kind("last elements in memory not computed", "not computed")
def _(rng: Any, a: Layer) -> Array | None:
    made = a.run()
    made.ravel()[made.size // 3 :] = np.nan
    return made if made.size > 8 else None


@kind("another call's rest", "left over")
def _(rng: Any, a: Layer) -> Array | None:
    made, other = a.run(), a.run(input=rng.standard_normal(a.input.shape).astype(a.input.dtype))
    made[:, len(a.weight) // 2 :] = other[:, len(a.weight) // 2 :]
    return made if len(a.weight) > 1 else None


@kind("one output channel is wrong", "left over")
def _(rng: Any, a: Layer) -> Array | None:
    if len(a.weight) < 3 or a.run()[:, 0].size > 2 * a.weight[0].size:  # else other weights would explain it
        return None
    made = a.run()
    made[:, 1] = rng.standard_normal(made[:, 1].shape)
    return made


@kind("ReLU", "activation")
def _(rng: Any, a: Layer) -> Array | None:
    return np.maximum(a.run(), 0)


@kind("input added", "input added")
def _(rng: Any, a: Layer) -> Array | None:
    made = a.run()
    return made + a.input if made.shape == a.input.shape else None


# ---- Precision ----


@kind("output rounded to bfloat16", "output rounded")
def _(rng: Any, a: Layer) -> Array | None:
    return shortened(a.run("pairwise"), 16) if a.run().size > 40 else None


@kind("output rounded to float16", "output rounded")
def _(rng: Any, a: Layer) -> Array | None:
    return a.run("pairwise").astype(np.float16).astype(np.float32) if a.run().size > 40 else None


def shortened(values: Array, dropped: int, truncated: bool = False) -> Array:
    """float32 without its last bits, written in another way than detconv's own: by adding and taking away."""
    scale = np.exp2(np.floor(np.log2(np.abs(np.where(values == 0, 1, values)))).astype(np.float64) - 23 + dropped)
    return ((np.trunc if truncated else np.rint)(values / scale) * scale).astype(np.float32)


def split_sums(x: Array, w: Array, rounding: Callable[[Array], Array]) -> Array:
    """The products of both operands' halves, without that of the small ones: three convolutions, added in float64."""
    (x1, x2), (w1, w2) = ((high, rounding(v - high)) for v, high in ((x, rounding(x)), (w, rounding(w))))
    pairs = ((x1, w1), (x1, w2), (x2, w1))
    return np.sum([detconv.conv2d(p.astype(float), q.astype(float)) for p, q in pairs], axis=0).astype(np.float32)


SPLITS: dict[str, Callable[[Array], Array]] = {
    "BF16x3": lambda v: shortened(v, 16),
    "BF16x3 (truncated)": lambda v: shortened(v, 16, truncated=True),
    "TF32x3": lambda v: shortened(v, 13),
}


# ---- Gradients ----


@dataclass(frozen=True)
class Backward:
    """A gradient of a layer, by its input or by its weight."""

    name: str
    layer: Layer
    grad_output: Array

    def run(self, summation: str = "naive order=kh,kw,c samples=sequence", **changes: Any) -> Array:
        """The gradient, with other arguments where they are given."""
        grad = changes.pop("grad_output", self.grad_output)
        a = replace(self.layer, **changes)
        if self.name == "conv2d_input":
            size = self.layer.input.shape
            return detconv.conv2d_input(size, a.weight, grad, *a.arguments[3:], summation=summation)
        return detconv.conv2d_weight(a.input, self.layer.weight.shape, grad, *a.arguments[3:], summation=summation)

    def __repr__(self) -> str:
        return f"{self.name} of {self.layer}"

    def judge(self, candidate: Array) -> detconv.Verdict:
        a = self.layer
        if self.name == "conv2d_input":
            return detconv.judge_input_gradient(candidate, a.input.shape, a.weight, self.grad_output, *a.arguments[3:])
        return detconv.judge_weight_gradient(candidate, a.input, a.weight.shape, self.grad_output, *a.arguments[3:])


def backward(rng: np.random.Generator, name: str) -> Backward:
    a = layer(rng)
    grad = rng.standard_normal(a.run().shape).astype(a.input.dtype)
    return Backward(name, a, grad)


BACKWARD_KINDS: list[tuple[str, Kind]] = []  # each with the pass that has it


def backward_kind(where: str, name: str, *answers: str) -> Callable[[Any], Any]:
    def added(make: Any) -> Any:
        for one in ("conv2d_input", "conv2d_weight") if where == "both" else (where,):
            BACKWARD_KINDS.append((one, Kind(f"{one}: {name}", answers, make)))
        return make

    return added


def channel(array: Array, at: int) -> Array:
    made = array.copy()
    made[:, at] = 0
    return made


@backward_kind("conv2d_input", "kernel flipped", "kernel flipped")
def _(rng: Any, b: Backward) -> Array | None:
    return b.run(weight=contiguous(b.layer.weight[..., ::-1, ::-1])) if min(b.layer.weight.shape[2:]) > 1 else None


@backward_kind("conv2d_weight", "kernel flipped", "kernel flipped")
def _(rng: Any, b: Backward) -> Array | None:
    return contiguous(b.run()[..., ::-1, ::-1]) if min(b.layer.weight.shape[2:]) > 1 else None


@backward_kind("conv2d_input", "kernel transposed", "kernel transposed")
def _(rng: Any, b: Backward) -> Array | None:
    h, w = b.layer.weight.shape[2:]
    return b.run(weight=contiguous(b.layer.weight.swapaxes(2, 3))) if h == w > 1 else None


@backward_kind("conv2d_weight", "kernel transposed", "kernel transposed")
def _(rng: Any, b: Backward) -> Array | None:
    h, w = b.layer.weight.shape[2:]
    return contiguous(b.run().swapaxes(2, 3)) if h == w > 1 else None


@backward_kind("conv2d_input", "a tap dropped", "terms missing")
def _(rng: Any, b: Backward) -> Array | None:
    h, w = b.layer.weight.shape[2:]
    weight = b.layer.weight.copy()
    weight[:, :, one_of(rng, h), one_of(rng, w)] = 0
    return b.run(weight=weight) if h * w > 2 else None


@backward_kind("conv2d_input", "an output channel dropped", "terms missing")
def _(rng: Any, b: Backward) -> Array | None:
    size = b.grad_output.shape[1]
    if b.layer.groups > 1 or size < 3:
        return None
    return b.run(grad_output=channel(b.grad_output, one_of(rng, size)))


@backward_kind("conv2d_weight", "a sample dropped", "terms missing")
def _(rng: Any, b: Backward) -> Array | None:
    grad = b.grad_output.copy()
    grad[-1] = 0
    return b.run(grad_output=grad) if len(grad) > 2 else None


@backward_kind("conv2d_weight", "last row dropped", "terms missing")
def _(rng: Any, b: Backward) -> Array | None:
    grad = b.grad_output.copy()
    grad[:, :, -1] = 0
    return b.run(grad_output=grad) if grad.shape[2] > 2 else None


@backward_kind("conv2d_weight", "mean of the samples", "samples averaged", "scaled")
def _(rng: Any, b: Backward) -> Array | None:
    return b.run() / np.float32(len(b.grad_output))


@backward_kind("both", "accumulated twice", "scaled")
def _(rng: Any, b: Backward) -> Array | None:
    return 2 * b.run()


@backward_kind("both", "sign", "sign")
def _(rng: Any, b: Backward) -> Array | None:
    return -b.run()


@backward_kind("both", "zeros", "not computed")
def _(rng: Any, b: Backward) -> Array | None:
    return np.zeros_like(b.run())


@backward_kind("both", "channels permuted", "output channels mixed up")
def _(rng: Any, b: Backward) -> Array | None:
    made = b.run()
    return made[:, rng.permutation(made.shape[1])] if made.shape[1] > 2 else None


@backward_kind("conv2d_input", "samples reversed", "samples mixed up")
def _(rng: Any, b: Backward) -> Array | None:
    return b.run()[::-1].copy()


@backward_kind("conv2d_input", "shifted", "output shifted", "padding on the wrong side")
def _(rng: Any, b: Backward) -> Array | None:
    made = b.run()
    return np.roll(made, 1, 2) if min(made.shape[2:]) > 3 else None


@backward_kind("conv2d_weight", "input's padding on the wrong side", "padding on the wrong side")
def _(rng: Any, b: Backward) -> Array | None:
    (p, q), x = b.layer.padding, b.layer.input
    return b.run(input=np.pad(x, ((0, 0), (0, 0), (p + 1, p - 1), (q, q))), padding=(0, 0)) if p > 0 else None


@backward_kind("both", "operands rounded to TF32", "TF32 inputs", "TF32 or float16 inputs")
def _(rng: Any, b: Backward) -> Array | None:
    a = b.layer
    return (
        b.run(input=shortened(a.input, 13), weight=shortened(a.weight, 13), grad_output=shortened(b.grad_output, 13))
        if b.run().size > 64
        else None
    )


@backward_kind("both", "operands rounded to bfloat16", "bfloat16 inputs")
def _(rng: Any, b: Backward) -> Array | None:
    a = b.layer
    return (
        b.run(input=shortened(a.input, 16), weight=shortened(a.weight, 16), grad_output=shortened(b.grad_output, 16))
        if b.run().size > 64
        else None
    )


def factored(b: Backward, factor: Array) -> Array:
    """The gradient whose terms, (o, kh, kw) of a group or (n, oh, ow), are in the sums so many times."""
    if b.name == "conv2d_input":
        times = np.tile(factor, (b.layer.groups, 1, 1))[:, None]
        return b.run(weight=(b.layer.weight * times).astype(b.layer.weight.dtype))
    return b.run(grad_output=(b.grad_output * factor[:, None]).astype(b.grad_output.dtype))


def term_shape(b: Backward) -> tuple[int, ...]:
    if b.name == "conv2d_input":
        return (len(b.layer.weight) // b.layer.groups, *b.layer.weight.shape[2:])
    return (len(b.grad_output), *b.grad_output.shape[2:])


@backward_kind("both", "some of the terms only", "some of the terms only")
def _(rng: Any, b: Backward) -> Array | None:
    shape = term_shape(b)
    axes = [axis for axis, size in enumerate(shape) if size > 3]
    if not axes:
        return None
    axis = int(rng.choice(axes))
    factor = kept_some(rng, shape[axis]).reshape([-1 if at == axis else 1 for at in range(3)])
    return factored(b, np.broadcast_to(factor, shape))


@backward_kind("both", "first terms only", "some of the terms only", "terms missing")
def _(rng: Any, b: Backward) -> Array | None:
    count = int(np.prod(term_shape(b)))
    if count < 12:
        return None
    return factored(b, (np.arange(count) < rng.integers(1, count - 1)).reshape(term_shape(b)))


@backward_kind("conv2d_input", "output channel o's gradient goes to group o % groups", "groups mixed up")
def _(rng: Any, b: Backward) -> Array | None:
    outputs, groups = len(b.layer.weight), b.layer.groups
    if not 1 < groups < outputs:
        return None
    order = np.arange(outputs).reshape(-1, groups).T.ravel()
    return b.run(weight=b.layer.weight[order], grad_output=contiguous(b.grad_output[:, order]))


@backward_kind("conv2d_input", "groups meet each other's output channels", "input channels mixed up")
def _(rng: Any, b: Backward) -> Array | None:
    outputs, groups = len(b.layer.weight), b.layer.groups
    order = np.roll(np.arange(outputs).reshape(groups, -1), 1, axis=0).ravel()
    return b.run(grad_output=contiguous(b.grad_output[:, order])) if groups > 1 else None


@backward_kind("conv2d_weight", "groups meet each other's input channels", "input channels mixed up")
def _(rng: Any, b: Backward) -> Array | None:
    n, c, h, w = b.layer.input.shape
    groups = b.layer.groups
    if groups < 2 or c == groups:
        return None
    return b.run(input=contiguous(b.layer.input.reshape(n, groups, -1, h, w).swapaxes(1, 2).reshape(n, c, h, w)))


@backward_kind("conv2d_weight", "output channel o reads group o % groups", "groups mixed up")
def _(rng: Any, b: Backward) -> Array | None:
    a = b.layer
    if not 1 < a.groups < len(a.weight):
        return None
    other = by_output(a, np.arange(len(a.weight)) % a.groups)
    return Backward(b.name, other, b.grad_output).run()


@backward_kind("conv2d_weight", "a view as input, read as packed", "view read as packed")
def _(rng: Any, b: Backward) -> tuple[Backward, Array] | None:
    view = embedded(rng, b.layer.input)
    other = Backward(b.name, replace(b.layer, input=view), b.grad_output)
    return other, b.run(input=read_packed(rng, view))


@backward_kind("conv2d_input", "a view as gradient, read as packed", "view read as packed")
def _(rng: Any, b: Backward) -> tuple[Backward, Array] | None:
    view = embedded(rng, b.grad_output)
    return Backward(b.name, b.layer, view), b.run(grad_output=read_packed(rng, view))


@backward_kind("conv2d_weight", "border replicated", "padding of another mode")
def _(rng: Any, b: Backward) -> Array | None:
    p, q = b.layer.padding
    if p + q == 0:
        return None
    return b.run(input=np.pad(b.layer.input, ((0, 0), (0, 0), (p, p), (q, q)), "edge"), padding=(0, 0))


# ---- The grid ----


class Seeded(NamedTuple):
    """A wrong output, and how to judge and diagnose it."""

    of: Layer | Backward
    wrong: Array

    def is_mistake(self) -> bool:
        """Whether it is proven one. An output of another shape is refused with an error, which is as good."""
        if isinstance(self.of, Backward):
            return self.of.judge(self.wrong).status == "mistake"
        if self.wrong.shape != self.of.run().shape:
            return True
        return detconv.judge(self.wrong, *self.of.arguments).status == "mistake"

    def diagnosis(self) -> detconv.Diagnosis:
        if isinstance(self.of, Backward):
            return self.of.judge(self.wrong).diagnosis
        return detconv.diagnose(self.wrong, *self.of.arguments)


def every_kind() -> Iterator[tuple[str, Kind]]:
    """All kinds, with the pass of each."""
    yield from (("conv2d", of) for of in KINDS)
    yield from BACKWARD_KINDS


def drawn(where: str, of: Kind, count: int, seed: int = 0, most: float = np.inf) -> Iterator[Seeded]:
    """Layers on which the mistake of a kind matters, and their wrong outputs.

    most: the largest number of products that a layer may have, so that many diagnoses take seconds.
    """
    rng = np.random.default_rng([seed, *of.name.encode()])
    made = 0
    for _ in range(200_000):
        if made == count:
            return
        try:
            a = layer(rng) if where == "conv2d" else backward(rng, where)
            if products(a) > most:
                continue
            wrong = of.make(rng, a)  # type: ignore[arg-type]
        except ValueError:  # a geometry that this layer cannot have
            continue
        if isinstance(wrong, tuple):
            a, wrong = wrong
        if wrong is not None and wrong.size > 1 and matters(a.run(), wrong):
            made += 1
            yield Seeded(a, wrong)
    raise AssertionError(f"too few layers can have the mistake {of.name!r}")


def products(a: Layer | Backward) -> int:
    """How many there are in an output and its gradients."""
    of = a.layer if isinstance(a, Backward) else a
    return of.run("naive").size * of.weight[0].size


def matters(right: Array, wrong: Array) -> bool:
    if right.shape != wrong.shape:
        return True
    with np.errstate(invalid="ignore"):
        return not bool((np.abs(right - wrong) <= 1e-3 * np.sqrt(np.mean(right**2))).all())


def equivalent(diagnosis: detconv.Diagnosis, of: Kind) -> bool:
    """Whether a right hypothesis is the first, or one of those that nothing tells apart."""
    return any(hypothesis.name in of.answers for hypothesis in diagnosis.one_of)
