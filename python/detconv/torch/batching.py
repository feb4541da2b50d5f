"""The operators under vmap: a batch of calls is one call.

Where the weight is the same for all calls, their samples become one batch of samples; otherwise each call becomes a
group of its own. An output does not know of the others, so no bit changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

# Dimension of the batch, by argument; None where all calls have the same one.
Dims: TypeAlias = Sequence[Any]


def conv2d(info: Any, dims: Dims, *arguments: Any) -> tuple[Tensor, int]:
    input, weight, bias, stride, padding, dilation, groups, summation = arguments
    op, size, geometry = torch.ops.detconv.conv2d.default, info.batch_size, (stride, padding, dilation)
    if dims[1] is None and dims[2] is None:
        batch = input.movedim(dims[0], 0)
        return _parted(op(_joined(batch), weight, bias, *geometry, groups, summation), batch), 0
    input, weight = _as_groups(input, dims[0], size, -3), _as_groups(weight, dims[1], size, 0)
    bias = None if bias is None else _as_groups(bias, dims[2], size, 0)
    return _by_group(op(input, weight, bias, *geometry, groups * size, summation), size)


def conv2d_input(info: Any, dims: Dims, *arguments: Any) -> tuple[Tensor, int]:
    input_size, weight, grad_output, stride, padding, dilation, groups, summation = arguments
    op, size, geometry = torch.ops.detconv.conv2d_input.default, info.batch_size, (stride, padding, dilation)
    if dims[1] is None:
        batch = grad_output.movedim(dims[2], 0)
        joined = _joined(batch)
        input_size = [joined.shape[0], *input_size[-3:]]
        return _parted(op(input_size, weight, joined, *geometry, groups, summation), batch), 0
    weight, grad_output = _as_groups(weight, dims[1], size, 0), _as_groups(grad_output, dims[2], size, -3)
    *samples, channels, height, width = input_size
    input_size = [*samples, channels * size, height, width]
    return _by_group(op(input_size, weight, grad_output, *geometry, groups * size, summation), size)


def conv2d_weight(info: Any, dims: Dims, *arguments: Any) -> tuple[Tensor, int]:
    input, (outputs, *kernel), grad_output, stride, padding, dilation, groups, summation = arguments
    op, size, geometry = torch.ops.detconv.conv2d_weight.default, info.batch_size, (stride, padding, dilation)
    input, grad_output = _as_groups(input, dims[0], size, -3), _as_groups(grad_output, dims[2], size, -3)
    gradient = op(input, [outputs * size, *kernel], grad_output, *geometry, groups * size, summation)
    return gradient.unflatten(0, (size, -1)), 0


def conv2d_bias(info: Any, dims: Dims, *arguments: Any) -> tuple[Tensor, int]:
    grad_output, summation = arguments
    joined = _as_groups(grad_output, dims[0], info.batch_size, -3)
    return torch.ops.detconv.conv2d_bias.default(joined, summation).unflatten(0, (info.batch_size, -1)), 0


def conv_transpose2d(info: Any, dims: Dims, *arguments: Any) -> tuple[Tensor, int]:
    input, weight, bias, stride, padding, output_padding, groups, dilation, summation = arguments
    op, size, geometry = torch.ops.detconv.conv_transpose2d.default, info.batch_size, (stride, padding, output_padding)
    if dims[1] is None and dims[2] is None:
        batch = input.movedim(dims[0], 0)
        return _parted(op(_joined(batch), weight, bias, *geometry, groups, dilation, summation), batch), 0
    input, weight = _as_groups(input, dims[0], size, -3), _as_groups(weight, dims[1], size, 0)
    bias = None if bias is None else _as_groups(bias, dims[2], size, 0)
    return _by_group(op(input, weight, bias, *geometry, groups * size, dilation, summation), size)


def _joined(batch: Tensor) -> Tensor:
    """(B, N, C, H, W) as (B * N, C, H, W); (B, C, H, W), calls without samples, is as it should be."""
    return batch.flatten(0, 1) if batch.dim() == 5 else batch


def _parted(joined: Tensor, batch: Tensor) -> Tensor:
    return joined.reshape(*batch.shape[:-3], *joined.shape[1:])


def _as_groups(x: Tensor, batch_dim: int | None, batch_size: int, channels: int) -> Tensor:
    """The batch as the outer part of the channels, whose dimension in one call's tensor is given."""
    x = x.expand(batch_size, *x.shape) if batch_dim is None else x.movedim(batch_dim, 0)
    channels %= x.dim() - 1
    return x.movedim(0, channels).flatten(channels, channels + 1)


def _by_group(output: Tensor, batch_size: int) -> tuple[Tensor, int]:
    """(N, B * C, H, W) or (B * C, H, W), parted, and where its batch stands."""
    parted: Tensor = output.unflatten(-3, (batch_size, -1))  # type: ignore[no-untyped-call]
    return parted, parted.dim() - 4
