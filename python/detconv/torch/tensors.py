"""CPU torch tensors as NumPy arrays and back: the ``arrays.Library`` of torch."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch.autograd import forward_ad

from detconv.arrays import NumPyArray, name_of

ELEMENT_TYPES = (torch.float32, torch.float64)
HALF_TYPES = (torch.float16, torch.bfloat16)
_PLAIN = (torch.Tensor, torch.nn.Parameter)

_Key = torch._C.DispatchKey

# Keys of the thread's state that are there when nobody watches.
_USUAL_KEYS = sum(torch._C.DispatchKeySet(key).raw_repr() for key in (_Key.BackendSelect, _Key.ADInplaceOrView))


class Tensors:
    """Dense CPU tensors of float32 or float64."""

    name = "torch.Tensor"

    def check(self, argument: str, value: Any) -> None:
        if torch.compiler.is_compiling():  # what is traced is checked by the operators
            return
        if not (type(value) in _PLAIN and value.is_cpu and value.dtype in ELEMENT_TYPES and _is_dense(value)):
            self._check_slowly(argument, value)
        if forward_ad._current_level >= 0 and forward_ad.unpack_dual(value).tangent is not None:
            raise ValueError(
                f"{argument} must not carry a tangent: there is no forward-mode differentiation; "
                "got a dual tensor (pass torch.autograd.forward_ad.unpack_dual(x).primal)"
            )

    def _check_slowly(self, argument: str, value: Any) -> None:
        if not _is_dense(value):
            layout = "a nested tensor" if value.is_nested else value.layout
            raise TypeError(f"{argument} must be dense (torch.strided); got {layout}")
        if value.is_quantized:
            raise TypeError(f"{argument} must not be quantized; got {value.dtype} (x.dequantize() gives torch.float32)")
        if value.device.type != "cpu" and not _is_dispatched(value):
            raise TypeError(f"{argument} must be on the CPU; got a tensor on {value.device}")
        autocast = value.dtype in HALF_TYPES and torch.is_autocast_enabled("cpu")
        if value.dtype not in ELEMENT_TYPES and not autocast:
            raise TypeError(f"{argument} must be torch.float32 or torch.float64; got {value.dtype}")
        if type(value) not in _PLAIN and not _is_dispatched(value):
            raise TypeError(
                f"{argument} must be a plain torch.Tensor; got {name_of(type(value))} "
                "(x.as_subclass(torch.Tensor) drops what the subclass adds)"
            )

    def to_numpy(self, argument: str, value: torch.Tensor) -> NumPyArray:
        try:
            if value.requires_grad:
                value = value.detach()
            if value.is_neg():  # the imaginary part of a conjugate, say: its negation is still to be done
                value = value.resolve_neg()
            array: NumPyArray = value.numpy()
        except (RuntimeError, TypeError) as error:
            raise TypeError(f"{argument} must be a tensor that torch makes a NumPy view of; got: {error}") from error
        return array

    def from_numpy(self, array: NumPyArray) -> torch.Tensor:
        return torch.from_numpy(array)

    def wants_channels_last(self, arrays: Collection[torch.Tensor]) -> bool:
        """As torch's own conv2d decides on the CPU: if any argument lies so."""
        return any(map(suggests_channels_last, arrays))

    def operator(self, name: str, arrays: Collection[torch.Tensor]) -> Callable[..., torch.Tensor] | None:
        """The operator: where a gradient is asked for, or where torch traces, batches or casts this call.

        Without any of these the engine is called at once, which takes half the time of an operator.
        """
        watched = torch.compiler.is_compiling() or torch._C._dispatch_tls_local_include_set().raw_repr() & ~_USUAL_KEYS
        if watched or any(_needs_operator(x) for x in arrays):
            from detconv.torch import ops

            return getattr(ops, name)  # type: ignore[no-any-return]
        return None


TENSORS = Tensors()


def suggests_channels_last(tensor: torch.Tensor) -> bool:
    """torch's ``suggest_memory_format``: the strides rise in the order C, W, H, N, whatever gaps they leave.

    Source: ``is_channels_last_strides_2d_s4`` in c10/core/MemoryFormat.h of PyTorch.
    """
    sizes, strides = tensor.shape, tensor.stride()
    if len(sizes) == 3:  # as conv2d's own unsqueeze(0) makes it
        sizes, strides = (1, *sizes), (sizes[0] * strides[0], *strides)  # type: ignore[assignment]
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


def _needs_operator(x: torch.Tensor) -> bool:
    return (x.requires_grad and torch.is_grad_enabled()) or type(x) not in _PLAIN or x.dtype not in ELEMENT_TYPES


def _is_dense(x: torch.Tensor) -> bool:
    return x.layout is torch.strided and not x.is_nested


def _is_dispatched(x: torch.Tensor) -> bool:
    """Whether x is of a class that handles operators itself, such as a fake tensor."""
    return type(x).__torch_dispatch__ is not torch._C._disabled_torch_dispatch_impl  # type: ignore[comparison-overlap]
