"""Every convolution of torch's registry, and what ``detconv.override`` makes of it.

The registry has a dozen functions that are a convolution of two dimensions, or its gradients, each with the arguments
in an order of its own. They are written here by detconv's functions; all others are in one of the tables below, which
say why they are not. A function is named without the namespace ``aten``, and stands for all of its overloads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

import detconv.functional as ours
from detconv.torch import gradients

Sizes = Sequence[int]
Mask = Sequence[bool]
Three = tuple[Tensor | None, Tensor | None, Tensor | None]


# ---- Those that detconv computes; the summation comes before torch's own arguments ----


def conv2d(summation: str, *args: Any, **kwargs: Any) -> Any:
    return ours.conv2d(*args, **kwargs, summation=summation)


def conv_transpose2d(summation: str, *args: Any, **kwargs: Any) -> Any:
    return ours.conv_transpose2d(*args, **kwargs, summation=summation)


def convolution(
    summation: str,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
    transposed: bool,
    output_padding: Sizes,
    groups: int,
    *backend: bool,
) -> Tensor:
    """``convolution`` and ``_convolution``, which says more of how a backend may compute."""
    if transposed:
        geometry = stride, padding, output_padding, groups, dilation
        return ours.conv_transpose2d(input, weight, bias, *geometry, summation=summation)  # type: ignore[arg-type]
    return _forward(summation, input, weight, bias, stride, padding, dilation, groups)


def mkldnn_convolution(
    summation: str,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding: Sizes,
    stride: Sizes,
    dilation: Sizes,
    groups: int,
) -> Tensor:
    return _forward(summation, input, weight, bias, stride, padding, dilation, groups)


def slow_conv2d(
    summation: str,
    input: Tensor,
    weight: Tensor,
    kernel_size: Sizes,
    bias: Tensor | None = None,
    stride: Sizes = (1, 1),
    padding: Sizes = (0, 0),
    dilation: Sizes = (1, 1),
) -> Tensor:
    """``_slow_conv2d_forward`` and ``slow_conv_dilated2d``; the size of the kernel is the weight's once more."""
    return _forward(summation, input, weight, bias, stride, padding, dilation, 1)


def slow_conv_transpose2d(
    summation: str,
    input: Tensor,
    weight: Tensor,
    kernel_size: Sizes,
    bias: Tensor | None = None,
    stride: Sizes = (1, 1),
    padding: Sizes = (0, 0),
    output_padding: Sizes = (0, 0),
    dilation: Sizes = (1, 1),
) -> Tensor:
    geometry = stride, padding, output_padding, 1, dilation
    return ours.conv_transpose2d(input, weight, bias, *geometry, summation=summation)  # type: ignore[arg-type]


def nnpack_convolution(
    summation: str, input: Tensor, weight: Tensor, bias: Tensor | None, padding: Sizes, stride: Sizes = (1, 1)
) -> Tensor:
    return _forward(summation, input, weight, bias, stride, padding, (1, 1), 1)


def convolution_backward(
    summation: str,
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    bias_sizes: Sizes | None,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
    transposed: bool,
    output_padding: Sizes,
    groups: int,
    output_mask: Mask,
) -> Three:
    pairs = [_pair(values) for values in (stride, padding, dilation)]
    arguments = [input, weight, None, *pairs, groups, summation]
    derive = gradients.conv2d
    if transposed:
        arguments = [input, weight, None, *pairs[:2], _pair(output_padding), groups, pairs[2], summation]
        derive = gradients.conv_transpose2d
    found = derive(gradients.Call(arguments, {0: input.shape, 1: weight.shape}, output_mask), grad_output)
    return found.get(0), found.get(1), found.get(2)


def slow_conv2d_backward(
    summation: str,
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    kernel_size: Sizes,
    stride: Sizes,
    padding: Sizes,
    output_mask: Mask = (True, True, True),
) -> Three:
    geometry = None, stride, padding, (1, 1), False, (0, 0), 1
    return convolution_backward(summation, grad_output, input, weight, *geometry, output_mask)


def convolution_double_backward(
    summation: str,
    of_input: Tensor | None,
    of_weight: Tensor | None,
    of_bias: Tensor | None,
    grad_output: Tensor,
    weight: Tensor,
    input: Tensor,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
    transposed: bool,
    output_padding: Sizes,
    groups: int,
    output_mask: Mask,
) -> Three:
    """The gradients of ``convolution_backward`` by grad_output, input and weight, given those of its three results.

    A convolution is linear in its input and in its weight: by grad_output it is the sum of two convolutions and the
    bias's part, by the input the gradient with ``of_weight`` in the weight's place, by the weight with ``of_input`` in
    the input's.
    """
    geometry = stride, padding, dilation, transposed, output_padding, groups
    rest = None, *geometry
    by_output = by_input = by_weight = None
    if output_mask[0]:
        pairs = (of_input, weight), (input, of_weight)
        parts = [convolution(summation, a, b, None, *geometry) for a, b in pairs if a is not None and b is not None]
        if of_bias is not None:
            parts.append(of_bias.reshape(-1, 1, 1).expand_as(grad_output))
        by_output = _total(parts)
    if output_mask[1] and of_weight is not None:
        by_input = convolution_backward(summation, grad_output, input, of_weight, *rest, (True, False, False))[0]
    if output_mask[2] and of_input is not None:
        by_weight = convolution_backward(summation, grad_output, of_input, weight, *rest, (False, True, False))[1]
    return by_output, by_input, by_weight


def _forward(
    summation: str,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
    groups: int,
) -> Tensor:
    geometry: Any = stride, padding, dilation, groups
    return ours.conv2d(input, weight, bias, *geometry, summation=summation)


def _pair(values: Sizes) -> list[int]:
    return [*values] * 2 if len(values) == 1 else [*values]


def _total(parts: list[Tensor]) -> Tensor | None:
    total = None
    for part in parts:
        total = part if total is None else total + part
    return total


# ---- The table ----

COMPUTED: dict[str, Callable[..., Any]] = {
    "conv2d": conv2d,
    "conv_transpose2d": conv_transpose2d,
    "convolution": convolution,
    "_convolution": convolution,
    "mkldnn_convolution": mkldnn_convolution,
    "_slow_conv2d_forward": slow_conv2d,
    "slow_conv_dilated2d": slow_conv2d,
    "slow_conv_transpose2d": slow_conv_transpose2d,
    "_nnpack_spatial_convolution": nnpack_convolution,
    "convolution_backward": convolution_backward,
    "_slow_conv2d_backward": slow_conv2d_backward,
    "_convolution_double_backward": convolution_double_backward,
}

# Those that torch itself makes of others of these tables, which are met.
SPLIT = {
    "conv1d": "convolution",
    "conv3d": "convolution",
    "conv_transpose1d": "convolution",
    "conv_transpose3d": "convolution",
    "_convolution_mode": "convolution",
    "thnn_conv2d": "_slow_conv2d_forward",
    "slow_conv3d": "slow_conv3d_forward",
}

TWO_DIMENSIONS = "detconv computes convolutions of two dimensions only"

# Those that stay torch's, and say so.
REPORTED = dict.fromkeys(
    ("conv_tbc", "conv_tbc_backward", "slow_conv3d_forward", "slow_conv_dilated3d", "slow_conv_transpose3d"),
    TWO_DIMENSIONS,
)

# Those that torch computes on other devices, or not at all: with tensors on the CPU they raise.
ELSEWHERE = {
    "_conv_depthwise2d",
    "conv_depthwise3d",
    "convolution_overrideable",
    "convolution_backward_overrideable",
    "cudnn_convolution",
    "cudnn_convolution_add_relu",
    "cudnn_convolution_relu",
    "cudnn_convolution_transpose",
    "miopen_convolution",
    "miopen_convolution_add_relu",
    "miopen_convolution_relu",
    "miopen_convolution_transpose",
    "miopen_depthwise_convolution",
    "_mps_convolution",
    "_mps_convolution_transpose",
    "mps_convolution_backward",
    "mps_convolution_transpose_backward",
}

# Those that only prepare a weight.
NO_CONVOLUTION = {"mkldnn_reorder_conv2d_weight", "mkldnn_reorder_conv3d_weight"}

# Where tensors come by that are on other devices, or not dense (``Tensor.to_mkldnn``), to be reported.
_OTHER_TENSORS = ("AutogradCUDA", "AutogradXPU", "AutogradMPS", "AutogradMeta", "AutogradOther")


def keys_of_overloads() -> dict[str, tuple[str, ...]]:
    """The dispatch keys at which each overload is met."""
    return {name: keys for function in packets((*COMPUTED, *REPORTED)) for name, keys in _keys(function)}


def packets(functions: Iterable[str]) -> dict[str, Any]:
    """torch's objects for the functions, of those that this version of torch has."""
    return {name: getattr(torch.ops.aten, name) for name in functions if hasattr(torch.ops.aten, name)}


def _keys(function: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    for overload in getattr(torch.ops.aten, function).overloads():
        name = function if overload == "default" else f"{function}.{overload}"
        keys: tuple[str, ...]
        if results(name):  # torch's own kernel for autograd refuses to write into them where a gradient is asked for
            keys = ("CPU",)
        elif function in ("conv2d", "conv_transpose2d"):  # split below autocast, which would round the operands before
            keys = ()
        else:
            keys = ("AutogradCPU", "CPU")
        if torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{name}", "AutocastCPU"):
            keys += ("AutocastCPU",)
        if name in ("convolution", "convolution_backward"):
            keys += _OTHER_TENSORS
        yield name, keys


@cache
def results(name: str) -> tuple[str, ...]:
    """The arguments into which an overload writes its results."""
    function, _, overload = name.partition(".")
    schema = torch._C._get_schema(f"aten::{function}", overload)
    return tuple(argument.name for argument in schema.arguments if argument.is_out)
