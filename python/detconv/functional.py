"""The convolution that users call: their arrays in, their kind of array out, the engine in between."""

from __future__ import annotations

from typing import Any, TypeVar, cast

from numpy import ndarray

from detconv import _core, arrays
from detconv.summation import Summation

AnyArray = TypeVar("AnyArray", bound=arrays.Array)


def conv2d(
    input: AnyArray,
    weight: AnyArray,
    bias: AnyArray | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    *,
    summation: Summation | str = "pairwise",
) -> AnyArray:
    """Two-dimensional convolution (cross-correlation, as in torch) whose bits are fixed by its summation.

    Every output is the sum of its K = (C / groups) * KH * KW products in the order and arithmetic that ``summation``
    says, so the bits depend on nothing else: not on threads, instruction set, batch, memory layout or machine.

    Args:
        input: (N, C, H, W) or, unbatched, (C, H, W); float32 or float64. A NumPy array, a CPU torch tensor or an
            array of another library that speaks DLPack on the CPU and has ``__array_namespace__``. Any strides,
            read-only or not; never copied to be read by another library, never written to.
        weight: (O, C / groups, KH, KW), of the same element type and library as input.
        bias: (O,), likewise, or None.
        stride: step of the window, at least 1; one int or (vertical, horizontal).
        padding: zeros added on every side, at least 0; one int or (vertical, horizontal). Or ``"valid"``: none, or
            ``"same"`` (stride 1 only): as many as give the output the size of the input, the odd one at the end.
        dilation: distance of the kernel's taps, at least 1; one int or (vertical, horizontal).
        groups: number of groups that channels and outputs fall into.
        summation: a ``Summation`` or its text, such as ``"exact"`` or ``"naive order=kh,kw,c products=rounded"``.

    Returns:
        A new array of the caller's library and element type, (N, O, OH, OW) or (O, OH, OW), with
        OH = (H + 2 * padding - dilation * (KH - 1) - 1) // stride + 1 and OW alike. It is C-contiguous; torch tensors
        come back channels_last where torch's own conv2d would give that.

    Raises:
        ValueError: sizes that do not fit, a summation that is none, a tensor that requires a gradient.
        TypeError: an argument of the wrong type or element type, on another device, or of another library.
    """
    program = Summation.of(summation)._compiled
    given: tuple[Any, Any, Any] = input, weight, bias
    if type(input) is ndarray and type(weight) is ndarray and (bias is None or type(bias) is ndarray):
        return cast("AnyArray", _core.conv2d(*given, stride, padding, dilation, groups, program))
    library = arrays.library_of(*given)
    output = _core.conv2d(
        library.to_numpy("input", input),
        library.to_numpy("weight", weight),
        None if bias is None else library.to_numpy("bias", bias),
        stride,
        padding,
        dilation,
        groups,
        program,
        library.wants_channels_last(input, weight),
    )
    return cast("AnyArray", library.from_numpy(output))
