"""The function that is looked at: called with arrays of its own kind, its results checked and made NumPy arrays."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np

from detconv.quoting import quoted
from detconv.revealing.judging import other_shape
from detconv.revealing.passes import Array, Geometry

KINDS = ("numpy", "torch")
LAYOUTS = ("contiguous", "channels_last")
_ALIGNMENT = 64  # bytes: libraries may choose their code by the alignment of what they are given


class OutOfTime(Exception):
    """The budget has ended."""


def aligned(shape: tuple[int, ...], dtype: str) -> Array:
    """An uninitialised array that starts at a multiple of 64 bytes, as torch's tensors do."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def _readable(result: Any) -> Any:
    """The result, a tensor of torch as an array of NumPy: `numpy.asarray` would leave its storage without resizing."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(result, torch.Tensor):
        return result
    from detconv.torch.tensors import elements

    return elements("result", result.detach())


def is_torchs(fn: Any) -> bool:
    """Whether fn is recognisably torch's: defined in torch, or one of its modules."""
    torch = sys.modules.get("torch")
    if torch is None:
        return False
    module = getattr(fn, "__module__", None) or type(fn).__module__
    return module.split(".")[0] == "torch" or isinstance(fn, torch.nn.Module)


class Box:
    """A black box: ``fn`` for one kind of arrays and one pass. Every call is checked, counted and timed."""

    def __init__(
        self, fn: Callable[..., Any], arrays: str | None, layout: str, differentiate: bool, deadline: float
    ) -> None:
        if not callable(fn):
            raise TypeError(f"fn must be callable; got {type(fn).__name__}")
        if arrays is None:
            arrays = "torch" if differentiate or is_torchs(fn) else "numpy"
        if arrays not in KINDS:
            raise ValueError(f"arrays must be one of {', '.join(KINDS)}, or None; got {quoted(arrays)}")
        if layout not in LAYOUTS:
            raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}; got {quoted(layout)}")
        if layout != "contiguous" and arrays != "torch":
            raise ValueError('layout: only with arrays="torch"')
        if differentiate and arrays != "torch":
            raise ValueError('differentiate: only with arrays="torch"')
        self.fn, self.arrays, self.layout, self.differentiate = fn, arrays, layout, differentiate
        self.deadline = deadline
        self.name = getattr(fn, "__qualname__", None) or type(fn).__qualname__
        self.torch: Any = import_module("torch") if arrays == "torch" else None
        self.calls, self.seconds, self.looked_at = 0, 0.0, 0

    def __call__(self, geometry: Geometry, image: Array, panel: Array, bias: Array | None) -> Array:
        """fn's result as a NumPy array of geometry.result_shape.

        Raises:
            OutOfTime: the budget has ended.
            ValueError, TypeError: what fn returned is not such an array, or fn changed what it was given.
            RuntimeError: fn raised; the cause is attached.
        """
        if time.monotonic() > self.deadline:
            raise OutOfTime
        given = [self.given(array) for array in (image, panel)]
        given_bias = None if bias is None else self.given(bias)
        before = [array.copy() for array in (image, panel, bias) if array is not None] if self.looked_at < 2 else None
        start = time.perf_counter()
        try:
            result = self._call(geometry, given[0], given[1], given_bias)
        except Exception as error:
            raise RuntimeError(
                f"fn ({self.name}) raised {type(error).__name__} for {self._arguments(geometry)}: {error}"
            ) from error
        self.seconds += time.perf_counter() - start
        self.calls += 1
        if before is not None:
            self.looked_at += 1
            for name, array, old in zip((*self._names(geometry), "bias"), (image, panel, bias), before, strict=False):
                if array is not None and array.tobytes() != old.tobytes():
                    raise ValueError(f"fn ({self.name}) changed its argument {name}; it must leave its inputs alone")
        return self._array(geometry, result, (image, panel, bias))

    def _call(self, geometry: Geometry, image: Any, panel: Any, bias: Any) -> Any:
        if self.torch is None:
            return self.fn(*self._ordered(geometry, image, panel, bias))
        if not self.differentiate:
            with self.torch.no_grad():
                return self.fn(*self._ordered(geometry, image, panel, bias))
        if geometry.pass_ == "forward":
            with self.torch.no_grad():
                return self.fn(image, panel, bias)
        of = geometry.input_shape if geometry.pass_ == "input_gradient" else geometry.weight_shape
        dtype = getattr(self.torch, geometry.dtype)
        wanted = self._laid(self.torch.zeros(of, dtype=dtype)).requires_grad_()
        if geometry.pass_ == "input_gradient":
            output, grad_output = self.fn(wanted, panel, None), image
        else:
            output, grad_output = self.fn(image, wanted, None), panel
        return self.torch.autograd.grad(output, wanted, grad_output)[0]

    @staticmethod
    def _ordered(geometry: Geometry, image: Any, panel: Any, bias: Any) -> tuple[Any, ...]:
        match geometry.pass_:
            case "forward":
                return image, panel, bias
            case "input_gradient":
                return panel, image
        return image, panel

    @staticmethod
    def _names(geometry: Geometry) -> tuple[str, str]:
        names = {"forward": ("input", "weight"), "input_gradient": ("grad_output", "weight")}
        return names.get(geometry.pass_, ("input", "grad_output"))

    def _arguments(self, geometry: Geometry) -> str:
        names, shapes = self._names(geometry), (geometry.image_shape, geometry.panel_shape)
        given = [f"{name} {shape}" for name, shape in zip(names, shapes, strict=True)]
        return f"{' and '.join(given)} of {geometry.dtype}"

    def given(self, array: Array) -> Any:
        """The array as fn takes it; the memory is shared where the layout allows it."""
        if self.torch is None:
            return array
        return self._laid(self.torch.from_numpy(array))

    def _laid(self, tensor: Any) -> Any:
        if self.layout == "channels_last" and tensor.ndim == 4:
            return tensor.contiguous(memory_format=self.torch.channels_last)
        return tensor

    def _array(self, geometry: Geometry, result: Any, given: tuple[Array, Array, Array | None]) -> Array:
        try:
            result = _readable(result)
            only_dlpack = hasattr(result, "__dlpack__") and not hasattr(result, "__array__")
            array: Array = np.from_dlpack(result) if only_dlpack else np.asarray(result)
        except (BufferError, TypeError, ValueError, RuntimeError) as error:
            kind = type(result).__name__
            raise TypeError(f"fn ({self.name}) must return an array on the CPU; got {kind}: {error}") from error
        if array.shape != geometry.result_shape:
            found = other_shape(array, geometry, *given) if self.calls == 1 else ""
            raise ValueError(
                f"fn ({self.name}) must return shape {geometry.result_shape} for {self._arguments(geometry)}; "
                f"got {quoted(array.shape)}{(found and f' ({found})') or ''}"
            )
        if array.dtype.name != geometry.dtype:
            raise TypeError(f"fn ({self.name}) must return {geometry.dtype}, the type of its inputs; got {array.dtype}")
        return array
