"""The caller's arrays as NumPy arrays and results as the caller's arrays, without copying.

Three kinds of arrays come in: NumPy's own, CPU torch tensors and whatever else speaks DLPack on the CPU. Nothing is
converted silently: what would lose a mask, a unit, a gradient or a device is refused. Element types and geometry are
the engine's to check. torch is looked up among the modules that the caller has imported, and never imported.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

NumPyArray: TypeAlias = NDArray[Any]

_VALID = "a NumPy array, a CPU torch.Tensor or another array on the CPU that speaks DLPack"

# The types of devices, from DLPack's header dlpack.h: those that a user is likely to meet.
DLPACK_CPU = 1
_DLPACK_DEVICES = {2: "CUDA", 3: "CUDA host memory", 8: "Metal", 10: "ROCm", 13: "CUDA managed", 14: "oneAPI"}


class Array(Protocol):
    """What an array of any library can do; only for type checkers, and true of ``torch.Tensor`` too."""

    def __dlpack_device__(self) -> tuple[int, int]: ...


# A view of the array, half numbers as float32; "float16" or "bfloat16" where the array is of that type; whether a
# convolution of it lies channels_last in its library. One call for all of it: three cost an operator 1.4 us.
Adopted: TypeAlias = tuple[NumPyArray, str | None, bool]


class Library(Protocol):
    """One kind of arrays. Equal libraries take each other's arrays."""

    @property
    def name(self) -> str: ...

    def check(self, argument: str, value: Any) -> None:
        """Raise TypeError or ValueError, naming the argument, for an array that cannot be used as it is."""

    def adopt(self, argument: str, value: Any) -> Adopted:
        """What the engine is given of the caller's array."""

    @property
    def empty(self) -> Callable[[tuple[int, ...], tuple[int, ...], str], NumPyArray] | None:
        """Makes the array for a result, of a shape, strides in elements and a dtype's name; None: the engine does."""

    def from_numpy(self, array: NumPyArray) -> Any:
        """The result as the caller's kind of array, on the same memory where the library allows that."""

    def from_half(self, bits: NumPyArray, half: str) -> Any:
        """from_numpy for a half type, whose bits these uint16 are."""

    def operator(self, name: str, arrays: Collection[Any]) -> Callable[..., Any] | None:
        """What to call in place of the engine where the library must see the call: to differentiate or trace it."""

    def check_unobserved(self, arrays: Mapping[str, Any]) -> None:
        """Raise ValueError, for a summation that has no operator, where the library must see the call."""


def library_of(arrays: Mapping[str, object]) -> Library:
    """The one library that all arguments, by name, belong to, which has checked them.

    Raises:
        TypeError: an argument is no array, not on the CPU, of another library than the first, or not only elements.
    """
    library: Library | None = None
    for argument, value in arrays.items():
        own = KNOWN.get(type(value)) or _library(argument, value)
        if library is None:
            library = own
        elif own != library:
            raise TypeError(f"{argument} must be a {library.name} as {next(iter(arrays))} is; got a {own.name}")
        library.check(argument, value)
    assert library is not None
    return library


def _library(argument: str, value: object) -> Library:
    if isinstance(value, np.ndarray):
        return NumPy()
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, getattr(torch, "Tensor", ())):
        from detconv.torch.tensors import TENSORS

        return TENSORS
    kind = type(value)
    if not (hasattr(kind, "__dlpack__") and hasattr(kind, "__dlpack_device__")):
        hint = " (numpy.asarray makes an array of it)" if isinstance(value, list | tuple | int | float) else ""
        raise TypeError(f"{argument} must be {_VALID}; got {name_of(kind)}{hint}")
    device = int(value.__dlpack_device__()[0])  # type: ignore[attr-defined]
    if device != DLPACK_CPU:
        place = _DLPACK_DEVICES.get(device, f"a device of DLPack's type {device}")
        raise TypeError(f"{argument} must be on the CPU; got {name_of(kind)} on {place}")
    if not hasattr(kind, "__array_namespace__"):
        raise TypeError(
            f"{argument} must be of a library that can take the result back, by __array_namespace__; "
            f"got {name_of(kind)} (numpy.from_dlpack makes a NumPy array of it)"
        )
    return DLPack(value.__array_namespace__())  # type: ignore[attr-defined]


@dataclass(frozen=True)
class NumPy:
    """``numpy.ndarray`` and ``numpy.memmap``: other subclasses mean something: a mask, a unit, a matrix."""

    name = "numpy.ndarray"
    empty = None

    def check(self, argument: str, value: Any) -> None:
        if type(value) in (np.ndarray, np.memmap):
            return
        if isinstance(value, np.ma.MaskedArray):  # np.ma is imported when it is first named: 60 ms
            raise TypeError(f"{argument} must be a plain numpy.ndarray; got a masked array (x.filled(0) fills it)")
        raise TypeError(
            f"{argument} must be a plain numpy.ndarray; got {name_of(type(value))} "
            "(numpy.asarray(x) drops what the subclass adds)"
        )

    def adopt(self, argument: str, value: NumPyArray) -> Adopted:
        return *_as_float32(value), False

    def from_numpy(self, array: NumPyArray) -> NumPyArray:
        return array

    def from_half(self, bits: NumPyArray, half: str) -> NumPyArray:
        return bits.view(np.float16 if half == "float16" else sys.modules["ml_dtypes"].bfloat16)

    def operator(self, name: str, arrays: Collection[Any]) -> None:
        return None

    def check_unobserved(self, arrays: Mapping[str, Any]) -> None:
        pass


def _as_float32(array: NumPyArray) -> tuple[NumPyArray, str | None]:
    """A half type's numbers as float32, each of which is one, and the type's name; other arrays as they are, and None.

    bfloat16 is that of the package ml_dtypes, which is there if such an array is.
    """
    dtype = array.dtype
    if dtype.itemsize != 2 or not dtype.isnative:
        return array, None
    if dtype.type is np.float16 or (dtype.name == "bfloat16" and dtype.type.__module__ == "ml_dtypes"):
        return array.astype(np.float32), dtype.name
    return array, None


@dataclass(frozen=True)
class DLPack:
    """Arrays of a library with an array API namespace (``__array_namespace__``), on the CPU."""

    namespace: Any
    empty = None

    @property
    def name(self) -> str:
        return f"{getattr(self.namespace, '__name__', self.namespace)} array"

    def check(self, argument: str, value: Any) -> None:
        pass  # the device is checked before the library is known, and the rest is between it and NumPy

    def adopt(self, argument: str, value: Any) -> Adopted:
        try:
            return *_as_float32(np.from_dlpack(value)), False
        except (BufferError, RuntimeError, TypeError, ValueError) as error:
            raise TypeError(f"{argument} must be an array that NumPy can read through DLPack; got: {error}") from error

    def from_numpy(self, array: NumPyArray) -> Any:
        return self.namespace.from_dlpack(array)

    def from_half(self, bits: NumPyArray, half: str) -> Any:
        return self.namespace.from_dlpack(bits.view(half))  # float16: NumPy reads no bfloat16 through DLPack

    def operator(self, name: str, arrays: Collection[Any]) -> None:
        return None

    def check_unobserved(self, arrays: Mapping[str, Any]) -> None:
        pass


# Types whose library needs no search; torch's are added when its part of detconv is imported.
KNOWN: dict[type, Library] = {np.ndarray: NumPy()}


# A way around all checks for arrays that need nothing but a view, as those of most calls: of input, weight, bias,
# stride, padding, dilation, groups and summation the result, or None where one of them needs more. By the type of the
# input; torch adds its own, likewise.
QUICK: dict[type, Callable[..., Any]] = {}


def name_of(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
