"""The operators on tensors without data: the shapes and strides that torch.compile and torch.export ask for.

What the engine refuses because of a rank, an element type or a number of channels is refused here, too. All other
checks are the engine's alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from detconv.summation import Summation
from detconv.torch.tensors import ELEMENT_TYPES, TENSORS, VALID_TYPES


def conv2d(*arguments: Any) -> Tensor:
    input, weight, bias, stride, padding, dilation, groups, summation = arguments
    _check(summation, input=input, weight=weight, bias=bias)
    if input.shape[-3] != weight.shape[1] * groups:
        raise ValueError(
            f"input must have weight.shape[1] * groups channels; got input of shape {tuple(input.shape)} for weight "
            f"of shape {tuple(weight.shape)} and groups {groups}"
        )
    axes = zip(input.shape[-2:], weight.shape[2:], stride, padding, dilation, strict=True)
    image = [(size + 2 * p - d * (kernel - 1) - 1) // s + 1 for size, kernel, s, p, d in axes]
    if any(size < 1 for size in image):
        raise ValueError(
            f"weight must not reach beyond the padded input; got weight of shape {tuple(weight.shape)}, dilation "
            f"{tuple(dilation)}, input of shape {tuple(input.shape)} and padding {tuple(padding)}"
        )
    outputs = 0 if input.shape[-3] == 0 else weight.shape[0]  # as torch does
    return _empty([*input.shape[:-3], outputs, *image], input, weight)


def conv2d_input(*arguments: Any) -> Tensor:
    input_size, weight, grad_output, *_, summation = arguments
    _check(summation, weight=weight, grad_output=grad_output)
    return _empty(input_size, weight, grad_output)


def conv2d_weight(*arguments: Any) -> Tensor:
    input, weight_size, grad_output, *_, summation = arguments
    _check(summation, input=input, grad_output=grad_output)
    return _empty(weight_size, input, grad_output)


def conv2d_bias(grad_output: Tensor, summation: str) -> Tensor:
    _check(summation, grad_output=grad_output)
    return grad_output.new_empty([grad_output.shape[-3]])


def conv_transpose2d(*arguments: Any) -> Tensor:
    input, weight, bias, stride, padding, output_padding, groups, dilation, summation = arguments
    _check(summation, input=input, weight=weight, bias=bias)
    if input.shape[-3] != weight.shape[0]:
        raise ValueError(
            f"input must have weight.shape[0] channels; got input of shape {tuple(input.shape)} for weight of shape "
            f"{tuple(weight.shape)}"
        )
    axes = zip(input.shape[-2:], weight.shape[2:], stride, padding, output_padding, dilation, strict=True)
    image = [(size - 1) * s - 2 * p + d * (kernel - 1) + extra + 1 for size, kernel, s, p, extra, d in axes]
    return _empty([*input.shape[:-3], weight.shape[1] * groups, *image], input, weight)


def _check(summation: str, **tensors: Tensor | None) -> None:
    Summation.of(summation)
    given = {name: x for name, x in tensors.items() if x is not None}
    first = next(iter(given.values()))
    for name, x in given.items():
        if x.dtype not in ELEMENT_TYPES or x.dtype != first.dtype:
            raise TypeError(f"{name} must be {VALID_TYPES}, as all others are; got {x.dtype}")
        ranks = {"weight": (4,), "bias": (1,)}.get(name, (3, 4))
        if x.dim() not in ranks:
            raise ValueError(f"{name} must have {' or '.join(map(str, ranks))} dimensions; got shape {tuple(x.shape)}")


def _empty(shape: Sequence[int], *given: Tensor) -> Tensor:
    """An empty tensor that lies in memory as the engine's result does."""
    last = TENSORS.wants_channels_last(given)
    four = shape if len(shape) == 4 else [1, *shape]
    memory_format = torch.channels_last if last else torch.contiguous_format
    empty = torch.empty(four, dtype=given[0].dtype, device=given[0].device, memory_format=memory_format)
    return empty if len(shape) == 4 else empty.squeeze(0)
