"""The caller's arrays as NumPy arrays and results as the caller's arrays, without copying.

Three kinds of arrays come in: NumPy's own, CPU torch tensors and whatever else speaks DLPack on the CPU. Nothing is
converted silently: what would lose a mask, a unit, a gradient or a device is refused. Element types and geometry are
the engine's to check. torch is looked up among the modules that the caller has imported, and never imported.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

NumPyArray: TypeAlias = NDArray[Any]

_VALID = "a NumPy array, a CPU torch.Tensor or another array on the CPU that speaks DLPack"

# The types of devices, from DLPack's header dlpack.h: those that a user is likely to meet.
_DLPACK_CPU = 1
_DLPACK_DEVICES = {2: "CUDA", 3: "CUDA host memory", 8: "Metal", 10: "ROCm", 13: "CUDA managed", 14: "oneAPI"}


class Array(Protocol):
    """What an array of any library can do; only for type checkers, and true of ``torch.Tensor`` too."""

    def __dlpack_device__(self) -> tuple[int, int]: ...


class Library(Protocol):
    """One kind of arrays. Equal libraries take each other's arrays."""

    @property
    def name(self) -> str: ...

    def check(self, argument: str, value: Any) -> None:
        """Raise TypeError or ValueError, naming the argument, for an array that cannot be used as it is."""

    def to_numpy(self, argument: str, value: Any) -> NumPyArray:
        """A view of the caller's array."""

    def from_numpy(self, array: NumPyArray) -> Any:
        """The result as the caller's kind of array, on the same memory where the library allows that."""

    def wants_channels_last(self, input: Any, weight: Any) -> bool:
        """Whether a convolution of these lies channels_last in this library."""


def library_of(input: object, weight: object, bias: object) -> Library:
    """The one library that all arguments belong to (bias may be None), which has checked them.

    Raises:
        TypeError: an argument is no array, not on the CPU, of another library than input, or more than its elements.
        ValueError: a tensor takes part in differentiation.
    """
    library = _library("input", input)
    library.check("input", input)
    for argument, value in (("weight", weight), ("bias", bias)):
        if value is None and argument == "bias":
            continue
        other = _library(argument, value)
        if other != library:
            raise TypeError(f"{argument} must be a {library.name} as input is; got a {other.name}")
        library.check(argument, value)
    return library


def _library(argument: str, value: object) -> Library:
    if isinstance(value, np.ndarray):
        return NumPy()
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, getattr(torch, "Tensor", ())):
        return Torch(torch)
    kind = type(value)
    if not (hasattr(kind, "__dlpack__") and hasattr(kind, "__dlpack_device__")):
        hint = " (numpy.asarray makes an array of it)" if isinstance(value, list | tuple | int | float) else ""
        raise TypeError(f"{argument} must be {_VALID}; got {_name(kind)}{hint}")
    device = int(value.__dlpack_device__()[0])  # type: ignore[attr-defined]
    if device != _DLPACK_CPU:
        place = _DLPACK_DEVICES.get(device, f"a device of DLPack's type {device}")
        raise TypeError(f"{argument} must be on the CPU; got {_name(kind)} on {place}")
    if not hasattr(kind, "__array_namespace__"):
        raise TypeError(
            f"{argument} must be of a library that can take the result back, by __array_namespace__; "
            f"got {_name(kind)} (numpy.from_dlpack makes a NumPy array of it)"
        )
    return DLPack(value.__array_namespace__())  # type: ignore[attr-defined]


@dataclass(frozen=True)
class NumPy:
    """``numpy.ndarray`` and ``numpy.memmap``: other subclasses mean something: a mask, a unit, a matrix."""

    name = "numpy.ndarray"

    def check(self, argument: str, value: Any) -> None:
        if isinstance(value, np.ma.MaskedArray):
            raise TypeError(f"{argument} must be a plain numpy.ndarray; got a masked array (x.filled(0) fills it)")
        if type(value) not in (np.ndarray, np.memmap):
            raise TypeError(
                f"{argument} must be a plain numpy.ndarray; got {_name(type(value))} "
                "(numpy.asarray(x) drops what the subclass adds)"
            )

    def to_numpy(self, argument: str, value: NumPyArray) -> NumPyArray:
        return value

    def from_numpy(self, array: NumPyArray) -> NumPyArray:
        return array

    def wants_channels_last(self, input: NumPyArray, weight: NumPyArray) -> bool:
        return False


@dataclass(frozen=True)
class Torch:
    """Dense CPU tensors of float32 or float64, without a gradient."""

    torch: Any

    name = "torch.Tensor"

    def check(self, argument: str, value: Any) -> None:
        torch = self.torch
        if value.is_nested or value.layout is not torch.strided:
            layout = "a nested tensor" if value.is_nested else value.layout
            raise TypeError(f"{argument} must be dense (torch.strided); got {layout}")
        if value.is_quantized:
            raise TypeError(f"{argument} must not be quantized; got {value.dtype} (x.dequantize() gives torch.float32)")
        if value.device.type != "cpu":
            raise TypeError(f"{argument} must be on the CPU; got a tensor on {value.device}")
        if value.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"{argument} must be torch.float32 or torch.float64; got {value.dtype}")
        if type(value) not in (torch.Tensor, torch.nn.Parameter):
            raise TypeError(
                f"{argument} must be a plain torch.Tensor; got {_name(type(value))} "
                "(x.as_subclass(torch.Tensor) drops what the subclass adds)"
            )
        if value.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                f"{argument} must not require a gradient: there are no gradients yet; "
                "got a tensor with requires_grad=True (pass x.detach(), or call under torch.no_grad())"
            )
        if torch.autograd.forward_ad.unpack_dual(value).tangent is not None:
            raise ValueError(
                f"{argument} must not carry a tangent of forward-mode differentiation: there are no gradients yet; "
                "got a dual tensor (pass torch.autograd.forward_ad.unpack_dual(x).primal)"
            )

    def to_numpy(self, argument: str, value: Any) -> NumPyArray:
        try:
            if value.requires_grad:
                value = value.detach()
            if value.is_neg():  # the imaginary part of a conjugate, say: its negation is still to be done
                value = value.resolve_neg()
            array: NumPyArray = value.numpy()
        except (RuntimeError, TypeError) as error:  # inside torch.vmap and its like, no tensor has a NumPy view
            raise TypeError(f"{argument} must be a tensor that torch makes a NumPy view of; got: {error}") from error
        return array

    def from_numpy(self, array: NumPyArray) -> Any:
        return self.torch.from_numpy(array)

    def wants_channels_last(self, input: Any, weight: Any) -> bool:
        """As torch's own conv2d decides on the CPU: if either argument lies so."""
        return any(_suggests_channels_last(tuple(x.shape), x.stride()) for x in (input, weight))


@dataclass(frozen=True)
class DLPack:
    """Arrays of a library with an array API namespace (``__array_namespace__``), on the CPU."""

    namespace: Any

    @property
    def name(self) -> str:
        return f"{getattr(self.namespace, '__name__', self.namespace)} array"

    def check(self, argument: str, value: Any) -> None:
        pass  # the device is checked before the library is known, and the rest is between it and NumPy

    def to_numpy(self, argument: str, value: Any) -> NumPyArray:
        try:
            return np.from_dlpack(value)
        except (BufferError, RuntimeError, TypeError, ValueError) as error:
            raise TypeError(f"{argument} must be an array that NumPy can read through DLPack; got: {error}") from error

    def from_numpy(self, array: NumPyArray) -> Any:
        return self.namespace.from_dlpack(array)

    def wants_channels_last(self, input: Any, weight: Any) -> bool:
        return False


def _suggests_channels_last(sizes: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """torch's ``suggest_memory_format``: the strides rise in the order C, W, H, N, whatever gaps they leave.

    Source: ``is_channels_last_strides_2d_s4`` in c10/core/MemoryFormat.h of PyTorch.
    """
    if len(sizes) == 3:  # as conv2d's own unsqueeze(0) makes it
        sizes, strides = (1, *sizes), (sizes[0] * strides[0], *strides)
    if len(sizes) != 4 or strides[1] == 0 or 0 in sizes:
        return False
    smallest = 0
    for dimension in (1, 3, 2, 0):
        if strides[dimension] < smallest:
            return False
        # N x 1 x 1 x 1 reads either way: contiguous, says torch.
        if dimension == 0 and smallest == strides[1]:
            return False
        smallest = strides[dimension] * sizes[dimension]
    return True


def _name(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
