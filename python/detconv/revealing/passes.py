"""The three passes as one: every pass is one or more forward convolutions of rearranged arrays.

What a probe sees, what a replay computes and where an order holds are then said once, for a forward convolution:

    out[n, row, p, q] = sum over (a, i, j) of  panel[row, a, i, j] * image[n, group(row), a, p*sh + i*dh, q*sw + j*dw]

    pass             image         panel         row             terms        parts
    forward          input         weight        output channel  c, kh, kw    1
    input gradient   grad_output   weight        input channel   o, kh, kw    one for each phase of the stride
    weight gradient  input         grad_output   output channel  n, oh, ow    1

A transposed convolution is the input gradient of a convolution whose grad_output is called its input.

The panel is the operand whose rows differ, so it carries the probes: one call gives as many of them as it has rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from detconv import _core
from detconv.quoting import quoted
from detconv.summation import Summation

Array = NDArray[Any]
Pair = tuple[int, int]
PASSES = ("forward", "input_gradient", "weight_gradient")
DTYPES = ("float32", "float64")
# The arguments of ``reveal`` that say what is convolved, in its order.
ARGUMENTS = (
    *("input_shape", "weight_shape", "bias", "stride", "padding", "dilation", "groups"),
    *("dtype", "pass_", "transposed", "output_padding"),
)
_MOST_PARTS = 4096


@dataclass(frozen=True)
class Geometry:
    """The arguments of one convolution, all but the values, and the pass that is looked at.

    Of a transposed convolution, weight_shape is (C, O / groups, KH, KW), and only the forward pass is looked at: its
    gradients are passes of convolutions.
    """

    input_shape: tuple[int, ...]
    weight_shape: tuple[int, ...]
    bias: bool
    stride: Pair
    padding: Pair | str
    dilation: Pair
    groups: int
    dtype: str
    pass_: str
    output_shape: tuple[int, ...]
    transposed: bool = False
    output_padding: Pair = (0, 0)

    @staticmethod
    def of(
        input_shape: Any,
        weight_shape: Any,
        bias: bool = True,
        stride: int | Pair = 1,
        padding: int | Pair | str = 0,
        dilation: int | Pair = 1,
        groups: int = 1,
        dtype: Any = "float32",
        pass_: str = "forward",
        transposed: bool = False,
        output_padding: int | Pair = 0,
    ) -> Geometry:
        """Check the arguments as ``conv2d`` does, or ``conv_transpose2d``.

        Raises:
            ValueError, TypeError: as ``conv2d``; a shape without an output; a pass or dtype that is none.
        """
        if pass_ not in PASSES:
            raise ValueError(f"pass_ must be one of {', '.join(PASSES)}; got {quoted(pass_)}")
        name = _dtype_name(dtype)
        shapes = _shape("input_shape", input_shape), _shape("weight_shape", weight_shape)
        if not isinstance(bias, bool):
            raise TypeError(f"bias must be True or False: whether there is one; got {type(bias).__name__}")
        if not isinstance(transposed, bool):
            raise TypeError(f"transposed must be True or False; got {type(transposed).__name__}")
        if transposed and pass_ != "forward":
            raise ValueError(
                "pass_ must be forward with transposed=True; a gradient of a transposed convolution is a convolution "
                f"of grad_output, or the weight gradient of one: reveal it as such; got {quoted(pass_)}"
            )
        if not transposed and output_padding not in (0, (0,), (0, 0), [0], [0, 0]):
            raise ValueError(f"output_padding must be 0 without transposed=True; got {quoted(output_padding)}")
        # The engine checks and computes the sizes: of no samples at all, and of weights that take no memory.
        none_of = (0, *shapes[0][1:])
        empty, one = np.empty(none_of, name), np.broadcast_to(np.zeros((), name), shapes[1])
        compiled = Summation()._compiled
        call: Any = _core.conv_transpose2d if transposed else _core.conv2d
        rest = (output_padding, groups, dilation) if transposed else (dilation, groups)
        try:
            none = call(empty, one, None, stride, padding, *rest, compiled)
        except ValueError as error:
            raise ValueError(str(error).replace(str(none_of), str(shapes[0]))) from None
        output_shape = (shapes[0][0], *none.shape[1:])
        if math.prod(output_shape) * math.prod(shapes[1]) == 0:
            raise ValueError(f"input_shape {shapes[0]} and weight_shape {shapes[1]} must give at least one product")
        padding = padding if isinstance(padding, str) else _pair(padding)
        if padding == "valid":
            padding = 0, 0
        found = Geometry(
            *shapes,
            bias and pass_ == "forward",
            _pair(stride),
            padding,
            _pair(dilation),
            int(groups),
            name,
            pass_,
            output_shape,
            transposed,
            _pair(output_padding),
        )
        if found.phases > _MOST_PARTS:
            raise ValueError(
                f"stride must leave at most {_MOST_PARTS} kinds of outputs, of which each has an order of its own; got "
                f"{_pair(stride)}, for {found.phases} kinds"
            )
        return found

    def with_image(self, samples: int, height: int, width: int) -> Geometry:
        """The same convolution of another number of samples, and of images of another size."""
        return Geometry.of(**self.arguments() | {"input_shape": (samples, self.input_shape[1], height, width)})

    @property
    def phases(self) -> int:
        """How many kinds of outputs there are, by the taps that the stride lets them meet."""
        if self.transposed or self.pass_ == "input_gradient":
            size = self.result_shape[2:]
            return min(self.stride[0], size[0]) * min(self.stride[1], size[1])
        return 1

    @property
    def outputs(self) -> int:
        """O, the number of output channels and of the bias's elements."""
        return self.output_shape[1]

    @property
    def borders(self) -> tuple[Pair, Pair]:
        """How many zeros are added: (top, bottom), (left, right)."""
        if isinstance(self.padding, str):
            added = [d * (k - 1) for d, k in zip(self.dilation, self.weight_shape[2:], strict=True)]
            return ((added[0] // 2, added[0] - added[0] // 2), (added[1] // 2, added[1] - added[1] // 2))
        return ((self.padding[0],) * 2, (self.padding[1],) * 2)

    @property
    def image_shape(self) -> tuple[int, ...]:
        return self.output_shape if self.pass_ == "input_gradient" else self.input_shape

    @property
    def panel_shape(self) -> tuple[int, ...]:
        return self.output_shape if self.pass_ == "weight_gradient" else self.weight_shape

    @property
    def result_shape(self) -> tuple[int, ...]:
        return {"forward": self.output_shape, "input_gradient": self.input_shape}.get(self.pass_, self.weight_shape)

    def arguments(self) -> dict[str, Any]:
        """The arguments by name, for keys and messages; ``Geometry.of`` takes them back."""
        return {name: getattr(self, name) for name in ARGUMENTS}

    @property
    def differentiated(self) -> Geometry:
        """The input gradient that a transposed convolution is: its input in the place of grad_output."""
        return replace(
            self,
            input_shape=self.output_shape,
            output_shape=self.input_shape,
            pass_="input_gradient",
            transposed=False,
            output_padding=(0, 0),
        )


def _dtype_name(dtype: Any) -> str:
    name = str(dtype).removeprefix("torch.") if not isinstance(dtype, type) else np.dtype(dtype).name
    if name not in DTYPES:
        raise ValueError(f"dtype must be {' or '.join(DTYPES)}; got {quoted(dtype)}")
    return name


def _shape(name: str, value: Any) -> tuple[int, ...]:
    try:
        shape = tuple(int(size) for size in value)
        valid = len(shape) == 4 and shape == tuple(value) and min(shape) >= 0
    except (TypeError, ValueError):
        valid = False
    if not valid:
        raise ValueError(f"{name} must be 4 sizes, as (N, C, H, W) or (O, C / groups, KH, KW); got {quoted(value)}")
    return shape


def _pair(value: int | Pair) -> Pair:
    """As the engine takes one, which has checked it: a list of one is for both axes."""
    return (int(value[0]), int(value[-1])) if isinstance(value, tuple | list) else (int(value), int(value))


class Axis(NamedTuple):
    """One axis of an image that a part reads: a stretch of it, perhaps backwards, between zeros."""

    part: slice
    before: int
    after: int
    backwards: bool

    @staticmethod
    def of(length: int, first: int, needed: int, backwards: bool = False) -> Axis:
        """Positions first ... first + needed - 1 of an axis (after it is turned), what lies outside being zero."""
        last = first + needed
        start, stop = max(first, 0), min(last, length)
        if start >= stop:  # nothing but zeros
            return Axis(slice(0, 0), needed, 0, backwards)
        return Axis(slice(start, stop), start - first, last - stop, backwards)


@dataclass(frozen=True)
class Part:
    """One forward convolution that gives some of a pass's outputs, as arrays are rearranged for it."""

    name: str  # which outputs, where the pass has several parts
    loops: tuple[str, str, str]  # what the terms' three axes are
    extents: tuple[int, int, int]
    shape: tuple[int, int, int, int]  # of its output: (N, rows, P, Q)
    groups: int
    stride: Pair
    dilation: Pair
    borders: tuple[Pair, Pair]
    image: Callable[[Array], Array]  # the pass's image operand as (N, groups * planes, height, width), without borders
    panel: Callable[[Array], Array]  # the pass's panel operand as (rows, planes, i, j)
    spread: Callable[[Array], Array]  # the reverse of panel, with zeros elsewhere
    select: Callable[[Array], Array]  # this part's outputs of the pass's result: a view

    @property
    def terms(self) -> int:
        """K, the number of terms of one sum."""
        return math.prod(self.extents)

    @property
    def rows(self) -> int:
        return self.shape[1]

    def valid_taps(self, image_size: Pair) -> tuple[Array, Array]:
        """Which taps of each output row (P, I) and column (Q, J) read the image, and not its border."""
        found = []
        for axis in (0, 1):
            outputs, taps = np.arange(self.shape[2 + axis]), np.arange(self.extents[1 + axis])
            at = outputs[:, None] * self.stride[axis] + taps * self.dilation[axis] - self.borders[axis][0]
            found.append((at >= 0) & (at < image_size[axis]))
        return found[0], found[1]


def parts(geometry: Geometry) -> list[Part]:
    """The forward convolutions that make up the pass; outputs of none are sums of no terms, +0."""
    if geometry.transposed:
        geometry = geometry.differentiated
    make = {"forward": _forward, "input_gradient": _input_gradient, "weight_gradient": _weight_gradient}
    return make[geometry.pass_](geometry)


def _forward(g: Geometry) -> list[Part]:
    extents = (g.weight_shape[1], g.weight_shape[2], g.weight_shape[3])
    shape = (g.output_shape[0], g.output_shape[1], g.output_shape[2], g.output_shape[3])
    loops, same = ("c", "kh", "kw"), _same
    return [Part("", loops, extents, shape, g.groups, g.stride, g.dilation, g.borders, same, same, same, same)]


def _same(array: Array) -> Array:
    return array


def _input_gradient(g: Geometry) -> list[Part]:
    """Pixels that agree modulo the stride meet the same taps. Turned around, they and grad_output are a convolution."""
    (samples, _, height, width), (outputs, channels, *kernel) = g.input_shape, g.weight_shape
    group_outputs, found = outputs // g.groups, []
    for phase in np.ndindex(min(g.stride[0], height), min(g.stride[1], width)):
        taps, axes, sizes, steps = [], [], [], []
        for a, size in enumerate((height, width)):
            stride, dilation, before = g.stride[a], g.dilation[a], g.borders[a][0]
            common = math.gcd(stride, dilation)
            met = _met(phase[a] + before, kernel[a], stride // common, dilation // common, common)
            if not met:
                break
            pixels, length = (size - phase[a] - 1) // stride + 1, g.output_shape[2 + a]
            first_read = (phase[a] + before - met[0] * dilation) // stride
            step = dilation // common
            taps.append(slice(met.start, None, met.step))
            steps.append(step)
            sizes.append((pixels, len(met)))
            needed = pixels + (len(met) - 1) * step
            axes.append(Axis.of(length, length - pixels - first_read, needed, backwards=True))
        if len(axes) < 2:
            continue
        (p, i), (q, j) = sizes
        name = "" if g.stride == (1, 1) else f"rows {phase[0]}::{g.stride[0]}, columns {phase[1]}::{g.stride[1]}"
        found.append(
            Part(
                name,
                ("o", "kh", "kw"),
                (group_outputs, i, j),
                (samples, g.groups * channels, p, q),
                g.groups,
                (1, 1),
                (steps[0], steps[1]),
                ((axes[0].before, axes[0].after), (axes[1].before, axes[1].after)),
                _Image((axes[0], axes[1])),
                _Panel(g.groups, group_outputs, channels, (taps[0], taps[1]), (i, j)),
                _Spread(g.groups, group_outputs, channels, (taps[0], taps[1]), g.weight_shape),
                _Phase(phase, g.stride),
            )
        )
    return found


def _met(place: int, taps: int, stride: int, dilation: int, common: int) -> range:
    """The taps i that meet the output's grid at a place: i * dilation is the place, modulo the stride; both are divided
    by their common divisor."""
    if place % common:
        return range(0)
    return range(place // common * pow(dilation, -1, stride) % stride, taps, stride)


def _weight_gradient(g: Geometry) -> list[Part]:
    """Strides and dilations change places: grad_output is the kernel, and slides over the input."""
    (samples, _, *size), (outputs, channels, *kernel) = g.input_shape, g.weight_shape
    axes = []
    for a in (0, 1):
        needed = g.stride[a] * (g.output_shape[2 + a] - 1) + 1 + g.dilation[a] * (kernel[a] - 1)
        axes.append(Axis.of(size[a], -g.borders[a][0], needed))
    return [
        Part(
            "",
            ("n", "oh", "ow"),
            (samples, g.output_shape[2], g.output_shape[3]),
            (channels, outputs, kernel[0], kernel[1]),
            g.groups,
            g.dilation,
            g.stride,
            ((axes[0].before, axes[0].after), (axes[1].before, axes[1].after)),
            _Samples((axes[0], axes[1]), g.groups),
            _swapped,
            _swapped,
            _swapped,
        )
    ]


def _swapped(array: Array) -> Array:
    return array.transpose(1, 0, 2, 3)


@dataclass(frozen=True)
class _Image:
    axes: tuple[Axis, Axis]

    def __call__(self, image: Array) -> Array:
        turned = image[..., ::-1, ::-1] if self.axes[0].backwards else image
        return turned[..., self.axes[0].part, self.axes[1].part]


@dataclass(frozen=True)
class _Samples:
    axes: tuple[Axis, Axis]
    groups: int

    def __call__(self, image: Array) -> Array:
        """(N, G * C, H, W) as (C, G * N, H, W): samples are the planes."""
        read = image[..., self.axes[0].part, self.axes[1].part]
        n, c, h, w = read.shape
        grouped = read.reshape(n, self.groups, c // self.groups, h, w).transpose(2, 1, 0, 3, 4)
        return grouped.reshape(c // self.groups, self.groups * n, h, w)


@dataclass(frozen=True)
class _Panel:
    groups: int
    outputs: int
    channels: int
    taps: tuple[slice, slice]
    extents: Pair

    def __call__(self, weight: Array) -> Array:
        met = weight[:, :, self.taps[0], self.taps[1]]
        grouped = met.reshape(self.groups, self.outputs, self.channels, *self.extents)
        return grouped.transpose(0, 2, 1, 3, 4).reshape(-1, self.outputs, *self.extents)


@dataclass(frozen=True)
class _Spread:
    groups: int
    outputs: int
    channels: int
    taps: tuple[slice, slice]
    weight_shape: tuple[int, ...]

    def __call__(self, panel: Array) -> Array:
        weight = np.zeros(self.weight_shape, panel.dtype)
        extents = panel.shape[2:]
        grouped = panel.reshape(self.groups, self.channels, self.outputs, *extents).transpose(0, 2, 1, 3, 4)
        weight[:, :, self.taps[0], self.taps[1]] = grouped.reshape(-1, self.channels, *extents)
        return weight


@dataclass(frozen=True)
class _Phase:
    phase: tuple[int, ...]
    stride: Pair

    def __call__(self, gradient: Array) -> Array:
        pixels = gradient[:, :, self.phase[0] :: self.stride[0], self.phase[1] :: self.stride[1]]
        return pixels[..., ::-1, ::-1]
