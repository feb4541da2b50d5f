"""What an output is judged against: one pass of a convolution and its arguments, as plain NumPy arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from detconv import _core, arrays
from detconv.summation import Summation

Array: TypeAlias = NDArray[Any]

# The arguments of each pass: what it sums, then the geometry.
_NAMES = {
    "conv2d": ("input", "weight", "bias"),
    "conv2d_input": ("input_size", "weight", "grad_output"),
    "conv2d_weight": ("input", "weight_size", "grad_output"),
    "conv_transpose2d": ("input", "weight", "bias"),
}
_GEOMETRY = dict.fromkeys(_NAMES, ("stride", "padding", "dilation", "groups")) | {
    "conv_transpose2d": ("stride", "padding", "output_padding", "groups", "dilation")
}


def numbers(argument: str, value: Any) -> tuple[Array, str]:
    """The caller's array as NumPy sees it, and its element type; half numbers as the float32 that they are.

    Raises:
        TypeError: no array, not on the CPU, or of another element type.
    """
    if isinstance(value, np.ndarray) and value.dtype.name in ("float16", "bfloat16"):
        return value.astype(np.float32), value.dtype.name
    library = arrays.library_of({argument: value})
    array, half, _ = library.adopt(argument, value)
    if array.dtype.name in ("float16", "bfloat16"):
        return array.astype(np.float32), array.dtype.name
    if array.dtype not in (np.float32, np.float64):
        raise TypeError(f"{argument} must have dtype float32, float64, float16 or bfloat16; got {array.dtype}")
    return array, half or array.dtype.name


@dataclass(frozen=True)
class Problem:
    """One call of a pass, all but its summation: ``conv2d``, its gradients or ``conv_transpose2d``.

    arguments: as the function takes them, from its first array or size on; arrays are float32 or float64.
    """

    name: str
    arguments: tuple[Any, ...]

    @staticmethod
    def of(name: str, *arguments: Any) -> Problem:
        """The problem of the caller's arrays, which may be of any library and, among them, of several.

        Raises:
            TypeError: an argument is no array that detconv takes, or of another element type than the others.
        """
        made, types = list(arguments), {}
        for i, argument in enumerate(_NAMES[name]):
            if argument.endswith("_size") or arguments[i] is None:
                continue
            made[i], types[argument] = numbers(argument, arguments[i])
        (first, expected), *others = types.items()
        for argument, found in others:
            if found != expected:
                raise TypeError(f"{argument} must have the element type of {first}, {expected}; got {found}")
        return Problem(name, tuple(made))

    def __getattr__(self, name: str) -> Any:
        """An argument by its name."""
        if name in ("name", "arguments"):  # asked for while a copy is still being made
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

    def terms(self) -> Array:
        """How many terms an output has that are no padding, at each position of the last two axes; float64.

        The bias is a term. Padding adds zeros, which no rounding touches.
        """
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

    @cached_property
    def finite(self) -> bool:
        """Whether all numbers that go in are finite."""
        return all(bool(np.isfinite(array).all()) for _, array in self.operands())

    def mapped(self, function: Callable[[Array], Array]) -> Problem:
        """The problem with a function applied to each of its arrays."""
        return self.having(**{name: function(array) for name, array in self.operands()})

    def _argument_names(self) -> tuple[str, ...]:
        return *_NAMES[self.name], *_GEOMETRY[self.name]

    def operands(self) -> Sequence[tuple[str, Array]]:
        """The arrays that go in, by the names of their arguments."""
        pairs = zip(_NAMES[self.name], self.arguments, strict=False)
        return [(name, value) for name, value in pairs if isinstance(value, np.ndarray)]


def widened(bits: Array, half: str) -> Array:
    """The uint16 bits of half numbers as the float32 that they are."""
    if half == "float16":
        return bits.view(np.float16).astype(np.float32)
    return (bits.astype(np.uint32) << 16).view(np.float32)
