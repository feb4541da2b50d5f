"""CPU torch tensors as NumPy arrays and back: the ``arrays.Library`` of torch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.autograd import forward_ad

from detconv import _core
from detconv.arrays import KNOWN, QUICK, Adopted, NumPyArray, name_of
from detconv.summation import Summation

HALF_TYPES = {torch.float16: "float16", torch.bfloat16: "bfloat16"}
_DTYPES = {"float32": torch.float32, "float64": torch.float64}
ELEMENT_TYPES = (torch.float32, torch.float64, *HALF_TYPES)
VALID_TYPES = "torch.float32, torch.float64, torch.float16 or torch.bfloat16"

_Key = torch._C.DispatchKey

# Keys of the thread's state that are there when nobody watches.
_USUAL_KEYS = sum(torch._C.DispatchKeySet(key).raw_repr() for key in (_Key.BackendSelect, _Key.ADInplaceOrView))
_UNUSUAL_KEYS, _watchers = ~_USUAL_KEYS, torch._C._dispatch_tls_local_include_set


class Tensors:
    """Dense CPU tensors of float32, float64 or a half type."""

    name = "torch.Tensor"

    def check(self, argument: str, value: Any) -> None:
        if torch.compiler.is_compiling():  # what is traced is checked by the operators
            return
        if not (is_plain(value) and value.is_cpu and value.dtype in ELEMENT_TYPES and is_dense(value)):
            self._check_slowly(argument, value)

    def _check_slowly(self, argument: str, value: Any) -> None:
        if not is_dense(value):
            layout = "a nested tensor" if value.is_nested else value.layout
            raise TypeError(f"{argument} must be dense (torch.strided); got {layout}")
        if value.is_quantized:
            raise TypeError(f"{argument} must not be quantized; got {value.dtype} (x.dequantize() gives torch.float32)")
        if value.device.type != "cpu" and not is_dispatched(value):
            raise TypeError(f"{argument} must be on the CPU; got a tensor on {value.device}")
        if value.dtype not in ELEMENT_TYPES:
            raise TypeError(f"{argument} must be {VALID_TYPES}; got {value.dtype}")
        if not is_plain(value) and not is_dispatched(value):
            raise TypeError(
                f"{argument} must be a plain torch.Tensor; got {name_of(type(value))} "
                "(x.as_subclass(torch.Tensor) drops what the subclass adds)"
            )

    def adopt(self, argument: str, value: torch.Tensor) -> Adopted:
        half = HALF_TYPES.get(value.dtype)
        if half is not None:
            value = value.detach().float()  # every half number is a float32
        return elements(argument, value), half, suggests_channels_last(value)

    def empty(self, shape: tuple[int, ...], strides: tuple[int, ...], dtype: str) -> NumPyArray:
        return elements("output", torch.empty_strided(shape, strides, dtype=_DTYPES[dtype], device="cpu"))

    def from_numpy(self, array: NumPyArray) -> torch.Tensor:
        if isinstance(array.base, torch.Tensor):  # an array that `empty` made
            return array.base
        return torch.from_numpy(array).clone()

    def from_half(self, bits: NumPyArray, half: str) -> torch.Tensor:
        return torch.from_numpy(bits.view("int16")).clone().view(getattr(torch, half))

    def wants_channels_last(self, arrays: Collection[torch.Tensor]) -> bool:
        """As torch's own conv2d decides on the CPU: if any argument lies so."""
        return any(map(suggests_channels_last, arrays))

    def operator(self, name: str, arrays: Collection[torch.Tensor]) -> Callable[..., torch.Tensor] | None:
        """The operator: where a gradient is asked for, or where torch traces, batches or casts this call.

        Without any of these the engine is called at once, which takes half the time of an operator.
        """
        observed = _is_transformed() or forward_ad._current_level >= 0
        differentiates = torch.is_grad_enabled()
        for x in arrays:
            autocast = x.dtype in HALF_TYPES and torch.is_autocast_enabled("cpu")
            if (x.requires_grad and differentiates) or not is_plain(x) or autocast:
                observed = True
        if not observed:
            return None
        from detconv.torch import ops

        return getattr(ops, name)  # type: ignore[no-any-return]

    def check_unobserved(self, arrays: Mapping[str, torch.Tensor]) -> None:
        where = "where summation is a revealed order"
        for argument, x in arrays.items():
            if x.requires_grad:
                raise ValueError(f"{argument} must not require a gradient {where}")
            if _is_transformed() or is_dispatched(x):
                raise ValueError(
                    "summation must not be a revealed order where torch traces, batches or transforms the call "
                    "(make_fx, torch.jit.trace, torch.compile, vmap, torch.func, a dispatch mode): it is computed at "
                    "once, so torch would see a constant; got a Reveal (the text of one order is a summation, too)"
                )
            if forward_ad._current_level >= 0 and forward_ad.unpack_dual(x).tangent is not None:  # type: ignore[no-untyped-call]
                raise ValueError(f"{argument} must not carry a tangent {where}")


_read = _core.tensor_reader(torch.Tensor)  # None: this torch has no DLPack in C


def elements(argument: str, tensor: torch.Tensor) -> NumPyArray:
    """A NumPy array on the memory of a dense CPU tensor, or on a copy where its negation is still to be done.

    All reading goes through here. After ``tensor.numpy()``, which ``numpy.asarray`` calls too, nobody can resize the
    tensor's storage any more: ``torch.cat(..., out=tensor)`` and fully_shard then fail. DLPack leaves no trace.

    Raises:
        TypeError: the tensor has no elements in memory, naming the argument.
    """
    array = None if _read is None else _read(tensor)
    return _elements_slowly(argument, tensor) if array is None else array


def _elements_slowly(argument: str, tensor: torch.Tensor) -> NumPyArray:
    tensor = tensor.detach()
    if tensor.is_neg():  # the imaginary part of a conjugate, say
        return elements(argument, tensor.resolve_neg())
    try:
        if tensor.numel() == 0:
            return tensor.clone().numpy()
        if tensor.data_ptr() != 0:
            return np.from_dlpack(tensor)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise TypeError(f"{argument} must be a tensor that NumPy can read; got: {error}") from error
    raise TypeError(f"{argument} must be a tensor with memory of its own; its storage was freed or is functional")


def _is_transformed() -> bool:
    """Whether torch traces, batches or differentiates by a transform what this thread calls, or a mode watches it."""
    return torch.compiler.is_compiling() or _watchers().raw_repr() & _UNUSUAL_KEYS != 0


TENSORS = Tensors()
KNOWN.update({torch.Tensor: TENSORS, torch.nn.Parameter: TENSORS})


def _quick_conv2d(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    summation: Summation | str,
) -> torch.Tensor | None:
    """The engine's conv2d of plain tensors without gradient, when nobody watches; None where there is more to do."""
    if _conv2d is None or forward_ad._current_level >= 0 or _is_transformed():
        return None
    program = Summation.of(summation)._compiled
    output: torch.Tensor | None = _conv2d(
        input, weight, bias, stride, padding, dilation, groups, program, torch.is_grad_enabled()
    )
    return output


_PLAIN = (torch.Tensor, torch.nn.Parameter)
_conv2d = _core.tensor_conv2d(_PLAIN)  # None: this torch has no DLPack in C
QUICK.update(dict.fromkeys(_PLAIN, _quick_conv2d))


def suggests_channels_last(tensor: torch.Tensor) -> bool:
    """Whether a convolution of this tensor lies channels_last, as torch decides."""
    return lie_channels_last(tensor.shape, tensor.stride())


def lie_channels_last(sizes: Sequence[int], strides: Sequence[int]) -> bool:
    """torch's ``suggest_memory_format``: the strides rise in the order C, W, H, N, whatever gaps they leave.

    Source: ``is_channels_last_strides_2d_s4`` in c10/core/MemoryFormat.h of PyTorch.
    """
    if len(sizes) == 3:  # as conv2d's own unsqueeze(0) makes it
        sizes, strides = (1, *sizes), (sizes[0] * strides[0], *strides)
    if len(sizes) != 4:
        return False
    (n, c, h, w), (by_n, by_c, by_h, by_w) = sizes, strides
    if by_w < c * by_c or by_h < w * by_w or by_n < h * by_h:
        return False
    # N x 1 x 1 x 1 reads either way: contiguous, says torch.
    return by_c != 0 and by_c != h * by_h and n * c * h * w != 0


def laid(tensor: torch.Tensor, channels_last: bool) -> torch.Tensor:
    """The tensor (N, C, H, W) or (C, H, W), copied where it does not lie in memory as it should."""
    c, h, w = tensor.shape[-3:]
    wanted = (c * h * w, 1, w * c, c) if channels_last else (c * h * w, h * w, w, 1)
    if tensor.stride() == wanted[-tensor.dim() :] or tensor.numel() == 0:
        return tensor
    if not channels_last:
        return tensor.clone(memory_format=torch.contiguous_format)
    return tensor.movedim(-3, -1).clone(memory_format=torch.contiguous_format).movedim(-1, -3)


def is_plain(x: torch.Tensor) -> bool:
    return type(x) in _PLAIN


def is_dense(x: torch.Tensor) -> bool:
    return x.layout is torch.strided and not x.is_nested


def is_dispatched(x: torch.Tensor) -> bool:
    """Whether x is of a class that handles operators itself, such as a fake tensor."""
    return type(x).__torch_dispatch__ is not torch._C._disabled_torch_dispatch_impl
