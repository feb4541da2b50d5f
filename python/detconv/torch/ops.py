"""The operators ``torch.ops.detconv.*``: what autograd, vmap, autocast, torch.compile and torch.export see of detconv.

Five operators, each differentiable by the others, so that gradients of any degree are sums written down too. They are
defined on ``torch.library.Library``, which costs half of what ``torch.library.custom_op`` does a call, and
differentiated by a function of their own, which costs half of ``torch.library.register_autograd``'s
(bench/tiny.py).

The functions of this module take what ``detconv.conv2d`` and the others take; the operators themselves take pairs of
ints and the text of a summation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad

from detconv import functional
from detconv.quoting import quoted
from detconv.summation import Summation
from detconv.torch import batching, gradients, shapes
from detconv.torch.tensors import HALF_TYPES, TENSORS, laid, lie_channels_last

Sizes: TypeAlias = Sequence[int]
Pair: TypeAlias = int | Sequence[int]

# ---- What detconv's functions call ----


def conv2d(input: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
    checked, extra = _checked(weight.shape, *options)
    output: Tensor = torch.ops.detconv.conv2d.default(_extended(input, extra), weight, bias, *checked)
    return output


def conv2d_input(input_size: Sizes, weight: Tensor, grad_output: Tensor, *options: Any) -> Tensor:
    checked, extra = _checked(weight.shape, *options)
    *outer, height, width = _sizes("input_size", input_size)
    size = [*outer, height + extra[0], width + extra[1]]
    gradient: Tensor = torch.ops.detconv.conv2d_input.default(size, weight, grad_output, *checked)
    return gradient[..., :height, :width] if any(extra) else gradient


def conv2d_weight(input: Tensor, weight_size: Sizes, grad_output: Tensor, *options: Any) -> Tensor:
    size = _sizes("weight_size", weight_size)
    checked, extra = _checked(size, *options)
    gradient: Tensor = torch.ops.detconv.conv2d_weight.default(_extended(input, extra), size, grad_output, *checked)
    return gradient


def conv2d_bias(grad_output: Tensor, summation: Summation | str) -> Tensor:
    gradient: Tensor = torch.ops.detconv.conv2d_bias.default(grad_output, text_of(summation))
    return gradient


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair,
    output_padding: Pair,
    groups: int,
    dilation: Pair,
    summation: Summation | str,
) -> Tensor:
    output: Tensor = torch.ops.detconv.conv_transpose2d.default(
        input,
        weight,
        bias,
        _pair("stride", stride),
        _pair("padding", padding),
        _pair("output_padding", output_padding),
        _int("groups", groups),
        _pair("dilation", dilation),
        text_of(summation),
    )
    return output


def text_of(summation: Summation | str) -> str:
    """The canonical text of a summation; inside torch.compile the text as it is, which the operator then checks."""
    if torch.compiler.is_compiling():  # it follows no cache and no engine
        return str(summation)
    return _text_once(summation if isinstance(summation, str) else Summation.of(summation))


@lru_cache(maxsize=64)
def _text_once(summation: Summation | str) -> str:
    return str(Summation.of(summation))


def _checked(
    weight_size: Sizes, stride: Pair, padding: Pair | str, dilation: Pair, groups: int, summation: Summation | str
) -> tuple[tuple[list[int], list[int], list[int], int, str], tuple[int, int]]:
    """The operators' stride, padding, dilation, groups and summation; by how many rows and columns to extend the input.

    ``"same"`` may need one row more of padding at the end than at the start. An input extended by it has the same
    terms in the same places, so the bits are those of the engine's own ``"same"``.
    """
    steps, spread, extra = _pair("stride", stride), _pair("dilation", dilation), (0, 0)
    if not isinstance(padding, str):
        border = _pair("padding", padding)
    elif padding == "valid":
        border = [0, 0]
    elif padding == "same":
        if steps != [1, 1]:
            raise ValueError(f'padding="same" needs stride 1; got stride {tuple(steps)}')
        if len(weight_size) != 4:
            raise ValueError(f"weight must have 4 dimensions; got shape {tuple(weight_size)}")
        total = [d * (kernel - 1) for d, kernel in zip(spread, weight_size[2:], strict=True)]
        border, extra = [t // 2 for t in total], (total[0] % 2, total[1] % 2)
    else:
        raise ValueError(f'padding must be an int, a pair of ints, "same" or "valid"; got {quoted(padding)}')
    return (steps, border, spread, _int("groups", groups), text_of(summation)), extra


def _extended(input: Tensor, extra: tuple[int, int]) -> Tensor:
    return torch.nn.functional.pad(input, (0, extra[1], 0, extra[0])) if any(extra) else input


def _pair(name: str, value: Pair) -> list[int]:
    if type(value) is int:
        return [value, value]
    values = list(value) if isinstance(value, tuple | list) else [value]
    if len(values) not in (1, 2):
        raise ValueError(f"{name} must be an int or a pair of ints (height, width); got {quoted(value)}")
    return [_int(name, v, "an int or a pair of ints (height, width)") for v in (values * 2)[:2]]


def _sizes(name: str, value: Sizes) -> list[int]:
    if not isinstance(value, tuple | list):
        raise TypeError(f"{name} must be a sequence of ints; got {quoted(value)}")
    if len(value) not in (3, 4):
        raise ValueError(f"{name} must have 4 dimensions, or 3 without samples; got {quoted(value)}")
    return [_int(name, v, "a sequence of ints") for v in value]


def _int(name: str, value: Any, valid: str = "an int") -> int:
    if type(value) is int:
        return value
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be {valid}; got {quoted(value)}")
    if isinstance(value, torch.SymInt):  # a size that torch.compile keeps open must stay so
        return value  # type: ignore[return-value]
    number: int = value.__index__()
    return number


# ---- The operators ----

# Which kernel comes after autograd: that of the CPU and no other, or one that watches.
_BELOW_AUTOGRAD = torch._C._after_ADInplaceOrView_keyset.raw_repr()
_CPU_ALONE = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU).raw_repr()
_any_requires_grad = torch._C._any_requires_grad
_AUTOCAST_KEYS = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)

_LIBRARY: Any = torch.library.Library("detconv", "DEF")  # type: ignore[no-untyped-call]


class _Operator:
    """One operator: what it runs, and what torch's transforms make of it.

    Args:
        name: of the engine's function that it runs.
        arguments: its schema's, all but the summation.
        factors: positions of the two tensors whose product it sums.
    """

    def __init__(self, name: str, arguments: str, factors: tuple[int, int]) -> None:
        self.factors = factors
        self.derive: Callable[[gradients.Call, Tensor], gradients.Gradients] = getattr(gradients, name)
        self._run: Callable[..., Tensor] = partial(functional.run_engine, TENSORS, name)
        _LIBRARY.define(f"{name}({arguments}, str summation) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
        self._overload = getattr(torch.ops.detconv, name).default
        _LIBRARY.impl(name, self._run, "CPU")
        _LIBRARY.impl(name, self._differentiate, "Autograd", with_keyset=True)
        _LIBRARY.impl(name, self._without_autocast, "AutocastCPU")
        torch.library.register_fake(f"detconv::{name}", getattr(shapes, name), lib=_LIBRARY)
        torch.library.register_vmap(f"detconv::{name}", getattr(batching, name), lib=_LIBRARY)

    def _differentiate(self, keyset: Any, *arguments: Any) -> Tensor:
        output = self._record(keyset, *arguments)
        return output if forward_ad._current_level < 0 else self._with_tangent(output, arguments)

    def _with_tangent(self, output: Tensor, arguments: Sequence[Any]) -> Tensor:
        """The output of these arguments, with a tangent where one of them has one."""
        tensors = {i: x for i, x in enumerate(arguments) if isinstance(x, Tensor)}
        duals = {i: forward_ad.unpack_dual(x) for i, x in tensors.items()}  # type: ignore[no-untyped-call]
        tangents = {i: dual.tangent for i, dual in duals.items() if dual.tangent is not None}
        if not tangents:
            return output
        primals = [duals[i].primal if i in duals else x for i, x in enumerate(arguments)]
        tangent = gradients.tangent(self._overload, self.factors, primals, tangents, output.shape)
        dual: Tensor = forward_ad.make_dual(output, tangent)  # type: ignore[no-untyped-call]
        return dual

    def _record(self, keyset: Any, *arguments: Any) -> Tensor:
        """The output without a tangent, in the graph of gradients where one of the arguments is."""
        if not (torch.is_grad_enabled() and _any_requires_grad(*arguments[:3])):
            return self.run_below_autograd(keyset, *arguments)
        if not torch._C._are_functorch_transforms_active():
            if forward_ad._current_level < 0:
                return _apply(self, keyset, *arguments)
            with forward_ad._set_fwd_grad_enabled(False):
                return _apply(self, keyset, *arguments)
        with enable_single_level_autograd_function(), forward_ad._set_fwd_grad_enabled(False):
            return _apply(self, keyset, *arguments)

    def run_below_autograd(self, keyset: Any, *arguments: Any) -> Tensor:
        if keyset.raw_repr() & _BELOW_AUTOGRAD == _CPU_ALONE:  # a second way through the dispatcher costs 6 us
            return self._run(*arguments)
        with torch._C._AutoDispatchBelowAutograd():
            output: Tensor = self._overload.redispatch(keyset & torch._C._after_autograd_keyset, *arguments)
            return output

    def _without_autocast(self, *arguments: Any) -> Tensor:
        """In float32, as torch's autocast treats what must not lose digits; float64 stays."""
        halves = [isinstance(x, Tensor) and x.dtype in HALF_TYPES for x in arguments]
        with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST_KEYS):
            output: Tensor = self._overload(*(x.float() if h else x for x, h in zip(arguments, halves, strict=True)))
            return output


class Convolution(torch.autograd.function._SingleLevelFunction):
    """A call of an operator in the graph of gradients.

    A single-level function, as torch's own operators are: functorch's levels are the dispatcher's business.
    """

    @staticmethod
    def forward(ctx: Any, operator: _Operator, keyset: Any, *arguments: Any) -> Tensor:
        one, other = operator.factors
        needs = ctx.needs_input_grad[2:]
        # The derivative by one factor needs the other; a bias's gradient needs no tensor at all.
        pairs = ((one, other), (other, one)) if one != other else ()
        ctx.save_for_backward(*(arguments[i] if needs[j] else None for i, j in pairs))
        ctx.set_materialize_grads(False)
        ctx.operator = operator
        ctx.shapes = {i: x.shape for i, x in enumerate(arguments) if isinstance(x, Tensor)}
        ctx.strides = [arguments[i].stride() for i in operator.factors]
        ctx.arguments = [None if isinstance(x, Tensor) else x for x in arguments]
        if not torch._C._are_functorch_transforms_active():
            return operator.run_below_autograd(keyset, *arguments)
        # Both are off for the sake of this node, not of the outer levels.
        with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
            return operator.run_below_autograd(keyset, *arguments)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * (2 + len(ctx.arguments))
        arguments = list(ctx.arguments)
        for position, tensor in zip(ctx.operator.factors, ctx.saved_tensors, strict=False):
            arguments[position] = tensor
        call = gradients.Call(arguments, ctx.shapes, ctx.needs_input_grad[2:])
        found = ctx.operator.derive(call, grad)
        if ctx.operator.factors == (0, 1):  # as torch's own convolutions: the gradients lie as the output does
            layouts = zip((ctx.shapes[0], ctx.shapes[1]), ctx.strides, strict=True)
            last = any(lie_channels_last(*layout) for layout in layouts)
            found |= {i: laid(found[i], last) for i in (0, 1) if i in found}
        return (None, None, *(found.get(i) for i in range(len(arguments))))


_apply: Callable[..., Tensor] = Convolution.apply  # type: ignore[attr-defined]

_GEOMETRY = "SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, SymInt groups"

_Operator("conv2d", f"Tensor input, Tensor weight, Tensor? bias, {_GEOMETRY}", (0, 1))
_Operator("conv2d_input", f"SymInt[] input_size, Tensor weight, Tensor grad_output, {_GEOMETRY}", (1, 2))
_Operator("conv2d_weight", f"Tensor input, SymInt[] weight_size, Tensor grad_output, {_GEOMETRY}", (0, 2))
_Operator("conv2d_bias", "Tensor grad_output", (0, 0))
_Operator(
    "conv_transpose2d",
    "Tensor input, Tensor weight, Tensor? bias, "
    "SymInt[2] stride, SymInt[2] padding, SymInt[2] output_padding, SymInt groups, SymInt[2] dilation",
    (0, 1),
)
