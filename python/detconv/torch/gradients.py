"""The derivatives of the operators.

All operators but conv2d_bias are linear in each of two tensors: the derivative by one of them is another of the
operators, applied to the other tensor and the gradient of the result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import torch
from torch import Tensor

from detconv.summation import Summation


@dataclass
class Call:
    """A call to differentiate."""

    arguments: list[Any]  # a tensor is None where no gradient that is asked for needs it
    shapes: dict[int, Sequence[int]]  # of the tensors, by position
    needs: Sequence[bool]  # the gradients asked for, by position


Gradients: TypeAlias = dict[int, Tensor]  # by position


def conv2d(call: Call, grad: Tensor) -> Gradients:
    input, weight, _, *geometry, summation = call.arguments
    summation = _of_gradients(summation)
    gradients, ops = {}, torch.ops.detconv
    if call.needs[0]:
        gradients[0] = ops.conv2d_input.default(call.shapes[0], weight, grad, *geometry, summation)
    if call.needs[1]:
        gradients[1] = ops.conv2d_weight.default(input, call.shapes[1], grad, *geometry, summation)
    if call.needs[2]:
        gradients[2] = ops.conv2d_bias.default(grad, summation)
    return gradients


def conv2d_input(call: Call, grad: Tensor) -> Gradients:
    _, weight, grad_output, *geometry, summation = call.arguments
    summation = _of_gradients(summation)
    gradients, ops = {}, torch.ops.detconv
    if call.needs[1]:
        gradients[1] = ops.conv2d_weight.default(grad, call.shapes[1], grad_output, *geometry, summation)
    if call.needs[2]:
        gradients[2] = ops.conv2d.default(grad, weight, None, *geometry, summation)
    return gradients


def conv2d_weight(call: Call, grad: Tensor) -> Gradients:
    input, _, grad_output, *geometry, summation = call.arguments
    summation = _of_gradients(summation)
    gradients, ops = {}, torch.ops.detconv
    if call.needs[0]:
        gradients[0] = ops.conv2d_input.default(call.shapes[0], grad, grad_output, *geometry, summation)
    if call.needs[2]:
        gradients[2] = ops.conv2d.default(input, grad, None, *geometry, summation)
    return gradients


def conv2d_bias(call: Call, grad: Tensor) -> Gradients:
    return {0: grad.reshape(-1, 1, 1).expand(call.shapes[0])}


def conv_transpose2d(call: Call, grad: Tensor) -> Gradients:
    input, weight, _, stride, padding, output_padding, groups, dilation, summation = call.arguments
    geometry = stride, padding, dilation, groups
    summation = _of_gradients(summation)
    # Output padding of a stride or more makes room for outputs that the convolution back has and the input had not.
    more = [extra // step for extra, step in zip(output_padding, stride, strict=True)]
    gradients, ops = {}, torch.ops.detconv
    if call.needs[0]:
        gradient = ops.conv2d.default(grad, weight, None, *geometry, summation)
        height, width = call.shapes[0][-2:]
        gradients[0] = gradient[..., :height, :width] if any(more) else gradient
    if call.needs[1]:
        extended = torch.nn.functional.pad(input, (0, more[1], 0, more[0])) if any(more) else input
        gradients[1] = ops.conv2d_weight.default(grad, call.shapes[1], extended, *geometry, summation)
    if call.needs[2]:
        gradients[2] = ops.conv2d_bias.default(grad, summation)
    return gradients


def tangent(
    operator: Callable[..., Tensor],
    factors: Sequence[int],
    primals: Sequence[Any],
    tangents: Mapping[int, Tensor],
    shape: Sequence[int],
) -> Tensor:
    """The derivative of a result of this shape along the tangents of some arguments, by position.

    Every summand is a call of the same operator, so it has the sums of the call itself, explicit orders included. They
    are added from left to right in the order of the arguments; a bias's tangent enters as it is.
    """
    found: Tensor | None = None
    for position, along in sorted(tangents.items()):
        if position in factors:
            arguments = [None if isinstance(x, Tensor) and i not in factors else x for i, x in enumerate(primals)]
            arguments[position] = along
            summand = operator(*arguments)
        else:
            summand = along.reshape(-1, 1, 1).expand(shape)
        found = summand if found is None else found + summand
    assert found is not None
    return found


@lru_cache(maxsize=64)
def _of_gradients(summation: str) -> str:
    """An explicit order numbers the terms of the forward sums; a gradient's sums have others, and are naive instead."""
    given = Summation.of(summation)
    return str(Summation("naive", samples=given.samples)) if given.explicit_order else summation
