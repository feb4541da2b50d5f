"""Seeded mistakes: outputs of conv2d with one mistake in each, made from random layers.

A kind is a function of a random generator and a layer that returns the wrong output, or None where the layer cannot
have the mistake.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

import detconv
from bits import Array

Pair = tuple[int, int]


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


Mistake = Callable[[np.random.Generator, Layer], "Array | None"]


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


@backward_kind("conv2d_weight", "mean of the samples", "scaled")
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


def drawn(where: str, of: Kind, count: int, seed: int = 0) -> Iterator[Seeded]:
    """Layers on which the mistake of a kind matters, and their wrong outputs."""
    rng = np.random.default_rng([seed, *of.name.encode()])
    made = 0
    for _ in range(200_000):
        if made == count:
            return
        try:
            a = layer(rng) if where == "conv2d" else backward(rng, where)
            wrong = of.make(rng, a)  # type: ignore[arg-type]
        except ValueError:  # a geometry that this layer cannot have
            continue
        if wrong is not None and wrong.size > 1 and matters(a.run(), wrong):
            made += 1
            yield Seeded(a, wrong)
    raise AssertionError(f"too few layers can have the mistake {of.name!r}")


def matters(right: Array, wrong: Array) -> bool:
    if right.shape != wrong.shape:
        return True
    with np.errstate(invalid="ignore"):
        return not bool((np.abs(right - wrong) <= 1e-3 * np.sqrt(np.mean(right**2))).all())


def equivalent(diagnosis: detconv.Diagnosis, of: Kind) -> bool:
    """Whether a right hypothesis is the first, or explains as much as the first: both give this output."""
    return any(h.name in of.answers and h.explains == diagnosis.hypotheses[0].explains for h in diagnosis.hypotheses)
