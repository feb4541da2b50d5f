"""What an output is judged against: one pass of a convolution and its arguments, as plain NumPy arrays."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from detconv import _core, arrays
from detconv.summation import Summation
from detconv.verdict.bounds import FORMATS, Format, gamma, shortening

Array: TypeAlias = NDArray[Any]

# The arguments of each pass: what it sums, then the geometry.
_NAMES = {
    "conv2d": ("input", "weight", "bias"),
    "conv2d_input": ("input_size", "weight", "grad_output"),
    "conv2d_weight": ("input", "weight_size", "grad_output"),
    "conv2d_bias": ("grad_output",),
    "conv_transpose2d": ("input", "weight", "bias"),
}
_GEOMETRY: dict[str, tuple[str, ...]] = dict.fromkeys(_NAMES, ("stride", "padding", "dilation", "groups")) | {
    "conv2d_bias": (),
    "conv_transpose2d": ("stride", "padding", "output_padding", "groups", "dilation"),
}


def numbers(argument: str, value: Any) -> tuple[Array, str]:
    """The caller's array as NumPy sees it, and its element type; half numbers as the float32 that they are.

    Raises:
        TypeError: no array, not on the CPU, or of another element type.
    """
    library = arrays.library_of({argument: value})
    array, half, _ = library.adopt(argument, value)
    if array.dtype not in (np.float32, np.float64):
        raise TypeError(f"{argument} must have dtype float32, float64, float16 or bfloat16; got {array.dtype}")
    return array, half or array.dtype.name


def on_cpu(value: Any) -> Any:
    """An array that lies on another device, copied to the CPU; any other object as it is."""
    if isinstance(value, np.ndarray) or not hasattr(value, "__dlpack_device__"):
        return value
    if hasattr(value, "detach"):  # a tensor; one of torch's "meta" has no numbers to copy
        return value if value.device.type in ("cpu", "meta") else value.detach().cpu()
    if int(value.__dlpack_device__()[0]) == arrays.DLPACK_CPU:
        return value
    copied = value.get() if hasattr(value, "get") else np.asarray(value)  # CuPy's own way, and everybody else's
    return copied if isinstance(copied, np.ndarray) else value


def view(value: Any, adopted: Array) -> Array | None:
    """The caller's array as it lies in memory, if its elements are not packed in the order of its axes.

    value: what the caller gave; adopted: the same as numbers, perhaps in memory of its own. bfloat16 of torch comes as
    its bits, in uint16.
    """
    lies = value if isinstance(value, np.ndarray) else adopted
    half = str(getattr(value, "dtype", ""))
    if half in ("torch.float16", "torch.bfloat16"):
        bits: Array = np.from_dlpack(value.detach().view(sys.modules["torch"].int16))
        lies = bits.view(np.float16 if half == "torch.float16" else np.uint16)
    return None if lies.flags.c_contiguous else lies


@dataclass(frozen=True)
class Problem:
    """One call of a pass, all but its summation: ``conv2d``, its gradients or ``conv_transpose2d``.

    arguments: as the function takes them, from its first array or size on; arrays are float32 or float64.
    given: the element type of the caller's arrays; half numbers are computed with as the float32 that they are.
    views: the caller's arrays that are not packed, as they lie in memory: what a program may have read otherwise.
    """

    name: str
    arguments: tuple[Any, ...]
    given: str
    views: Mapping[str, Array] = field(default_factory=dict, compare=False, repr=False)

    @staticmethod
    def of(name: str, *arguments: Any) -> Problem:
        """The problem of the caller's arrays, which may be of any library and, among them, of several.

        Raises:
            TypeError: an argument is no array that detconv takes, or of another element type than the others.
        """
        made, types, views = list(arguments), {}, {}
        for i, argument in enumerate(_NAMES[name]):
            if argument.endswith("_size") or arguments[i] is None:
                continue
            made[i], types[argument] = numbers(argument, arguments[i])
            if (lies := view(arguments[i], made[i])) is not None:
                views[argument] = lies
        (first, expected), *others = types.items()
        for argument, found in others:
            if found != expected:
                raise TypeError(f"{argument} must have the element type of {first}, {expected}; got {found}")
        return Problem(name, tuple(made), expected, views)

    def __getattr__(self, name: str) -> Any:
        """An argument by its name."""
        if name in ("name", "arguments", "given", "views"):  # asked for while a copy is still being made
            raise AttributeError(name)
        names = self._argument_names()
        if name not in names:
            raise AttributeError(f"{self.name} has no argument {name!r}; it has {', '.join(names)}")
        return self.arguments[names.index(name)]

    def having(self, **changes: Any) -> Problem:
        """The same problem with some arguments changed."""
        names = self._argument_names()
        made = list(self.arguments)
        for name, value in changes.items():
            made[names.index(name)] = value
        return replace(self, arguments=tuple(made))

    def named(self) -> list[tuple[str, Any]]:
        """The arguments with their names."""
        return list(zip(self._argument_names(), self.arguments, strict=True))

    @property
    def element_type(self) -> str:
        return str(next(array.dtype.name for _, array in self.operands()))

    def run(self, summation: Summation | str) -> Array:
        """The output by a summation."""
        compiled = Summation.of(summation)._compiled
        return cast("Array", getattr(_core, self.name)(*self.arguments, compiled))

    def exact(self, stored: str) -> Array:
        """The sums rounded to a format, half numbers as float32: once, or to float64 before where the arrays are."""
        exact = Summation.of("exact samples=sequence")._compiled  # one rounding, not one for each sample
        call = getattr(_core, self.name)
        if stored in ("float16", "bfloat16"):
            return widened(_core.narrow(call(*self.arguments, exact, to_odd=True), stored), stored)
        return cast("Array", call(*self.arguments, exact).astype(stored, copy=False))

    def magnitude(self) -> Array:
        """S, the sums of abs(w*x) and abs(bias), within gamma_n of themselves; infinities and NaN count as 0."""
        if self.finite:
            return self.mapped(np.abs).run("naive")
        return self.mapped(lambda array: np.where(np.isfinite(array), np.abs(array), 0)).run("naive")

    def shifts(self, products: Format) -> Array:
        """How far rounding the operands to a format before they are multiplied may move each sum, to nearest or
        truncated; within gamma_n of itself."""
        names = [name for name, _ in self.operands() if name != "bias"]
        sizes = {name: np.where(np.isfinite(getattr(self, name)), np.abs(getattr(self, name)), 0) for name in names}
        off = {name: shortening(size, products) for name, size in sizes.items()}
        unbiased = self.having(**({"bias": None} if "bias" in _NAMES[self.name] else {}))
        if len(names) == 1:  # the other operand is 1
            return unbiased.having(**off).run("naive")
        first, second = names
        # |w'x' - wx| <= |w' - w| (|x| + |x' - x|) + |w| |x' - x|
        both = unbiased.having(**{first: off[first], second: sizes[second] + off[second]}).run("naive")
        both += unbiased.having(**{first: sizes[first], second: off[second]}).run("naive")
        return np.where(np.isnan(both), np.inf, both).astype(both.dtype)  # infinite times zero: too large a number

    def exact_below(self, accumulator: Format, magnitude: Array) -> float:
        """Sums with a smaller S are exact in an accumulator of this format, in whatever order: no addition rounds.

        Where all terms are multiples of one power of two, q, not below the smallest subnormal, so are all partial sums;
        and those below 2^digits * q are numbers of the format. Integers and quantised data are of this kind. 0 where no
        S is that small.
        """
        least = float(magnitude.min(initial=np.inf))
        if least == 0:  # a search with a condition takes five times as long
            least = float(magnitude.min(initial=np.inf, where=magnitude > 0))
        if not self.finite or np.isinf(least):
            return 0.0
        own, smallest = FORMATS[self.element_type], accumulator.smallest + 1 - accumulator.digits
        sure = 1.0 if own.digits >= accumulator.digits else 1 + float(gamma(self.terms().max(), own.unit))

        def below(numbers: dict[str, Array]) -> float:
            grains = {name: grain(array) for name, array in numbers.items()}
            bias = grains.pop("bias", np.inf)
            q = min(sum(grains.values()), bias)
            top = min(q + accumulator.digits, accumulator.overflow)
            return 0.0 if q < smallest else math.ldexp(1.0, int(min(top, 1023))) / sure

        few = {name: array.ravel()[:: max(1, array.size // 64)] for name, array in self.operands()}
        if below(few) <= least:  # a few numbers show most often that it is not so, and cost nothing
            return 0.0
        limit = below(dict(self.operands()))
        return limit if limit > least else 0.0

    def terms(self) -> Array:
        """How many terms an output has that are no padding, at each position of the last two axes; float64.

        The bias is a term. Padding adds zeros, which no rounding touches. A gradient of the bias has no such axes, but
        one number of terms.
        """
        if self.name == "conv2d_bias":
            outputs = self.grad_output
            return np.array([outputs.size // max(outputs.shape[-3], 1)], np.float64)
        one = {name: np.ones((1, 1, *array.shape[-2:])) for name, array in self.operands() if name != "bias"}
        sizes = {name: (1, 1, *getattr(self, name)[-2:]) for name in _NAMES[self.name] if name.endswith("_size")}
        without = {"bias": None} if "bias" in _NAMES[self.name] else {}
        plane = self.having(**one, **sizes, groups=1, **without)
        counts = plane.run("naive")[0, 0] * self._sums_beside()
        return np.asarray(counts + (bool(without) and self.bias is not None))

    def _sums_beside(self) -> int:
        """How often the terms of one plane occur in a sum."""
        if self.name == "conv2d":
            return int(self.weight.shape[1])
        if self.name in ("conv2d_input", "conv_transpose2d"):
            return int(self.weight.shape[0]) // int(self.groups)
        return len(self.input) if self.input.ndim == 4 else 1

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the output; sizes below 1 where the kernel is larger than the image."""
        match self.name:
            case "conv2d_input":
                return tuple(map(int, self.input_size))
            case "conv2d_weight":
                return tuple(map(int, self.weight_size))
            case "conv2d_bias":
                return (self.grad_output.shape[-3],)
        kernel, stride, dilation = kernel_of(self), pair(self.stride), pair(self.dilation)
        pads = [sum(both) for both in pads_of(self)]
        axes = zip(self.input.shape[-2:], pads, dilation, kernel, stride, strict=True)
        channels = len(self.weight)
        if self.name == "conv2d":
            sizes = [(size + pad - d * (k - 1) - 1) // s + 1 for size, pad, d, k, s in axes]
        else:
            more, channels = pair(self.output_padding), self.weight.shape[1] * int(self.groups)
            sizes = [
                (size - 1) * s - pad + d * (k - 1) + extra + 1
                for (size, pad, d, k, s), extra in zip(axes, more, strict=True)
            ]
        return (*self.input.shape[:-3], channels, *sizes)

    @cached_property
    def finite(self) -> bool:
        """Whether all numbers that go in are finite."""
        return all(bool(np.isfinite(array).all()) for _, array in self.operands())

    def mapped(self, function: Callable[[Array], Array]) -> Problem:
        """The problem with a function applied to each of its arrays."""
        return self.having(**{name: function(array) for name, array in self.operands()})

    def in_double(self) -> Problem:
        """The same problem in float64."""
        return self.mapped(lambda array: array.astype(np.float64, copy=False))

    def _argument_names(self) -> tuple[str, ...]:
        return *_NAMES[self.name], *_GEOMETRY[self.name]

    def operands(self) -> Sequence[tuple[str, Array]]:
        """The arrays that go in, by the names of their arguments."""
        pairs = zip(_NAMES[self.name], self.arguments, strict=False)
        return [(name, value) for name, value in pairs if isinstance(value, np.ndarray)]


def grain(values: Array) -> float:
    """The exponent of the largest power of two of which all numbers are multiples; infinite where all are 0."""
    numbers = values[values != 0].astype(np.float64)
    if not numbers.size:
        return math.inf
    fractions, exponents = np.frexp(numbers)
    whole = np.ldexp(fractions, 53).astype(np.int64)
    return float((np.frexp((whole & -whole).astype(np.float64))[1] - 1 + exponents - 53).min())


# ---- Geometry ----


def pair(value: Any) -> tuple[int, int]:
    """An argument of geometry, for both axes."""
    if isinstance(value, int | np.integer):
        return int(value), int(value)
    return int(value[0]), int(value[1])


def kernel_of(problem: Problem) -> tuple[int, int]:
    shape = problem.weight_size if problem.name == "conv2d_weight" else problem.weight.shape
    return int(shape[-2]), int(shape[-1])


def pads_of(problem: Problem) -> tuple[tuple[int, int], tuple[int, int]]:
    """Rows above and below, columns left and right."""
    if problem.padding == "same":
        total = [d * (k - 1) for d, k in zip(pair(problem.dilation), kernel_of(problem), strict=True)]
        return (total[0] // 2, total[0] - total[0] // 2), (total[1] // 2, total[1] - total[1] // 2)
    vertical, horizontal = (0, 0) if problem.padding == "valid" else pair(problem.padding)
    return (vertical, vertical), (horizontal, horizontal)


def widened(bits: Array, half: str) -> Array:
    """The uint16 bits of half numbers as the float32 that they are."""
    if half == "float16":
        return bits.view(np.float16).astype(np.float32)
    return (bits.astype(np.uint32) << 16).view(np.float32)
