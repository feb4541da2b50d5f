"""The convolution that users call, and its gradients: their arrays in, their kind of array out, the engine between."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

from numpy import ascontiguousarray, moveaxis, ndarray

from detconv import _core, arrays
from detconv.summation import Summation

if TYPE_CHECKING:
    from detconv.revealing import Reveal

AnyArray = TypeVar("AnyArray", bound=arrays.Array)

_NAMED = (Summation, str)  # made once: a union of types costs 0.2 us at each call

# Where the arrays stand among the arguments of each of the engine's functions.
_ARRAYS = {
    "conv2d": {0: "input", 1: "weight", 2: "bias"},
    "conv2d_input": {1: "weight", 2: "grad_output"},
    "conv2d_weight": {0: "input", 2: "grad_output"},
    "conv2d_bias": {0: "grad_output"},
    "conv_transpose2d": {0: "input", 1: "weight", 2: "bias"},
}


def conv2d(
    input: AnyArray,
    weight: AnyArray,
    bias: AnyArray | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    *,
    summation: Summation | Reveal | str = "pairwise",
) -> AnyArray:
    """Two-dimensional convolution (cross-correlation, as in torch) whose bits are fixed by its summation.

    Every output is the sum of its K = (C / groups) * KH * KW products in the order and arithmetic that ``summation``
    says, so the bits depend on nothing else: not on threads, instruction set, batch, memory layout or machine.

    torch tensors that require a gradient get one, by ``conv2d_input``, ``conv2d_weight`` and ``conv2d_bias`` with the
    same summation; or with ``"naive"`` where it is an explicit order, which numbers the terms of the forward sums only.
    Those that carry a tangent pass it on, as a sum of calls like this one (docs/contract.md).

    Args:
        input: (N, C, H, W) or, unbatched, (C, H, W); float32, float64, float16 or bfloat16 (of NumPy: that of
            ml_dtypes), half numbers being summed as float32 and the total rounded once. A NumPy array, a CPU torch
            tensor or an array of another library that speaks DLPack on the CPU and has ``__array_namespace__``. Any
            strides, read-only or not; never copied to be read by another library, never written to.
        weight: (O, C / groups, KH, KW), of the same element type and library as input.
        bias: (O,), likewise, or None.
        stride: step of the window, at least 1; one int or (vertical, horizontal).
        padding: zeros added on every side, at least 0; one int or (vertical, horizontal). Or ``"valid"``: none, or
            ``"same"`` (stride 1 only): as many as give the output the size of the input, the odd one at the end.
        dilation: distance of the kernel's taps, at least 1; one int or (vertical, horizontal).
        groups: number of groups that channels and outputs fall into.
        summation: a ``Summation`` or its text, such as ``"exact"`` or ``"naive order=kh,kw,c products=rounded"``; or
            what ``reveal`` found for this very shape, to have the bits of that function.

    Returns:
        A new array of the caller's library and element type, (N, O, OH, OW) or (O, OH, OW), with
        OH = (H + 2 * padding - dilation * (KH - 1) - 1) // stride + 1 and OW alike. It is C-contiguous; torch tensors
        come back channels_last where torch's own conv2d would give that.

    Raises:
        ValueError: sizes that do not fit, a summation that is none, revealed orders where torch differentiates or
            traces the call.
        TypeError: an argument of the wrong type or element type, on another device, or of another library.
    """
    given: tuple[Any, Any, Any] = input, weight, bias
    plain = type(input) is ndarray and type(weight) is ndarray and (bias is None or type(bias) is ndarray)
    if plain and isinstance(summation, _NAMED) and given[0].itemsize > 2:  # half types need more than a view
        program = Summation.of(summation)._compiled
        return cast("AnyArray", _core.conv2d(*given, stride, padding, dilation, groups, program))
    quick = arrays.QUICK.get(type(input))
    if quick is not None and isinstance(summation, _NAMED):
        output = quick(input, weight, bias, stride, padding, dilation, groups, summation)
        if output is not None:
            return cast("AnyArray", output)
    arguments = input, weight, bias, stride, padding, dilation, groups, summation
    return cast("AnyArray", _call("conv2d", *arguments))


def conv2d_input(
    input_size: Sequence[int],
    weight: AnyArray,
    grad_output: AnyArray,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    *,
    summation: Summation | Reveal | str = "pairwise",
) -> AnyArray:
    """Gradient of ``conv2d`` by its input: the counterpart of ``torch.nn.grad.conv2d_input`` with fixed bits.

    Every element is one sum, over the output channels of its group and the kernel's taps that meet the output at it.

    Args:
        input_size: shape of the input, (N, C, H, W) or (C, H, W).
        weight: (O, C / groups, KH, KW).
        grad_output: gradient of the output, of its shape.
        stride, padding, dilation, groups: those of ``conv2d``.
        summation: as for ``conv2d``; the output channels take the place of ``c`` in its order.

    Returns:
        A new array of shape input_size, as ``conv2d`` returns one.

    Raises:
        ValueError, TypeError: as ``conv2d``.
    """
    arguments = input_size, weight, grad_output, stride, padding, dilation, groups, summation
    return cast("AnyArray", _call("conv2d_input", *arguments))


def conv2d_weight(
    input: AnyArray,
    weight_size: Sequence[int],
    grad_output: AnyArray,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    *,
    summation: Summation | Reveal | str = "pairwise",
) -> AnyArray:
    """Gradient of ``conv2d`` by its weight: the counterpart of ``torch.nn.grad.conv2d_weight`` with fixed bits.

    Every element is one sum per sample over the output's pixels, and the samples are joined by a binary tree over
    their index: the gradient of a batch is the sum of those of its halves, to the bit, where these have equal sizes
    that are powers of two. With ``samples=sequence`` it is one sum over all samples and pixels.

    Args:
        input: (N, C, H, W) or (C, H, W).
        weight_size: shape of the weight, (O, C / groups, KH, KW).
        grad_output: gradient of the output, of its shape.
        stride, padding, dilation, groups: those of ``conv2d``.
        summation: as for ``conv2d``. The pixels have one sequence only, so a permutation of ``c,kh,kw`` plays no part.

    Returns:
        A new array of shape weight_size, as ``conv2d`` returns one.

    Raises:
        ValueError, TypeError: as ``conv2d``.
    """
    arguments = input, weight_size, grad_output, stride, padding, dilation, groups, summation
    return cast("AnyArray", _call("conv2d_weight", *arguments))


def conv2d_bias(grad_output: AnyArray, *, summation: Summation | str = "pairwise") -> AnyArray:
    """Gradient of ``conv2d`` by its bias: the sum of grad_output over samples and pixels, as ``conv2d_weight`` sums.

    Args:
        grad_output: (N, O, OH, OW) or (O, OH, OW).
        summation: as for ``conv2d_weight``.

    Returns:
        A new array of shape (O,).

    Raises:
        ValueError, TypeError: as ``conv2d``.
    """
    return cast("AnyArray", _call("conv2d_bias", grad_output, summation))


def conv_transpose2d(
    input: AnyArray,
    weight: AnyArray,
    bias: AnyArray | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    output_padding: int | tuple[int, int] = 0,
    groups: int = 1,
    dilation: int | tuple[int, int] = 1,
    *,
    summation: Summation | Reveal | str = "pairwise",
) -> AnyArray:
    """Transposed convolution, as ``torch.nn.functional.conv_transpose2d``: ``conv2d_input`` with a bias.

    Args:
        input: (N, C, H, W) or (C, H, W).
        weight: (C, O / groups, KH, KW).
        bias: (O,) or None.
        stride: step of the outputs that one input reaches, at least 1; one int or (vertical, horizontal).
        padding: rows and columns left out on every side of the output, at least 0.
        output_padding: rows and columns added at the output's end; less than stride or dilation.
        groups: number of groups that channels and outputs fall into.
        dilation: distance of the kernel's taps, at least 1.
        summation: as for ``conv2d``; an output has the terms whose taps meet it, which may be fewer than C * KH * KW.

    Returns:
        A new array of the caller's library and element type, (N, O, OH, OW) or (O, OH, OW), with
        OH = (H - 1) * stride - 2 * padding + dilation * (KH - 1) + output_padding + 1 and OW alike.

    Raises:
        ValueError, TypeError: as ``conv2d``.
    """
    arguments = input, weight, bias, stride, padding, output_padding, groups, dilation, summation
    return cast("AnyArray", _call("conv_transpose2d", *arguments))


def _call(name: str, *arguments: Any) -> Any:
    """Call the engine's function of this name with the arguments in its order, whatever library its arrays are of."""
    named = {argument: arguments[i] for i, argument in _ARRAYS[name].items()}
    given = {argument: x for argument, x in named.items() if argument != "bias" or x is not None}
    library = arrays.library_of(given)
    if hasattr(arguments[-1], "replay"):
        return _replay(library, name, *arguments)
    call = library.operator(name, given.values()) or partial(run_engine, library, name)
    return call(*arguments)


def run_engine(library: arrays.Library, name: str, *arguments: Any) -> Any:
    """Call the engine's function of this name with the arguments in its order; the arrays are of this library."""
    views, half, last, first = list(arguments), None, False, True
    for i, argument in _ARRAYS[name].items():
        if views[i] is not None:
            views[i], own_half, lies_last = library.adopt(argument, views[i])
            last = last or lies_last
            if first:
                half, first = own_half, False
            elif own_half != half:
                raise TypeError(f"{argument} must have the element type of the others; got {arguments[i].dtype}")
    views[-1] = Summation.of(views[-1])._compiled
    if name != "conv2d_bias":  # whose result has one axis, and no layout to choose
        views.append(last)
    if half is None:
        return library.from_numpy(getattr(_core, name)(*views, library.empty))
    return library.from_half(_core.narrow(getattr(_core, name)(*views, to_odd=True), half), half)


# Where a pass's operands stand: those that reveal.passes calls image and panel, and the bias.
_REPLAYED = {
    "conv2d": ("input", "weight", "bias"),
    "conv2d_input": ("grad_output", "weight", "bias"),
    "conv2d_weight": ("input", "grad_output", "bias"),
    "conv_transpose2d": ("input", "weight", "bias"),
}
_GEOMETRY = dict.fromkeys(_REPLAYED, ("stride", "padding", "dilation", "groups")) | {
    "conv_transpose2d": ("stride", "padding", "output_padding", "groups", "dilation")
}


def _replay(library: arrays.Library, name: str, *arguments: Any) -> Any:
    """The call in revealed orders: `arguments` end with what `reveal` found."""
    revealed = arguments[-1]
    if name not in _REPLAYED:
        raise ValueError(f"summation: {name} takes no revealed orders; {', '.join(_REPLAYED)} do")
    given = {argument: arguments[i] for i, argument in _ARRAYS[name].items() if arguments[i] is not None}
    library.check_unobserved(given)
    adopted: dict[str, Any] = {"bias": None}
    last = False
    for argument, array in given.items():
        adopted[argument], half, lies_last = library.adopt(argument, array)
        last = last or lies_last
        if half is not None:
            raise TypeError(f"{argument} must be float32 or float64 where summation is a revealed order; got {half}")
    shapes = {
        "input_shape": arguments[0] if name == "conv2d_input" else adopted["input"].shape,
        "weight_shape": arguments[1] if name == "conv2d_weight" else adopted["weight"].shape,
    }
    geometry = dict(zip(_GEOMETRY[name], arguments[3:-1], strict=True))
    operands = [adopted[argument] for argument in _REPLAYED[name]]
    result = revealed.replay(name, operands, shapes | geometry)
    return library.from_numpy(moveaxis(ascontiguousarray(moveaxis(result, 1, -1)), -1, 1) if last else result)
