"""For tests and experiments."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from contextlib import ContextDecorator
from typing import TYPE_CHECKING, Any

from detconv import _core
from detconv.arrays import Array
from detconv.verdict.bounds import CONFIDENCE

if TYPE_CHECKING:
    from detconv.verdict.judge import Verdict


class instruction_set(ContextDecorator):
    """Context manager that forces one instruction set for the whole process: ``with instruction_set("avx2"): ...``.

    On leaving, what was forced before is forced again (or the choice is free again). It can be nested, used again and
    used as a decorator.

    Args:
        name: ``"baseline"``, ``"avx2"``, ``"avx512"`` or ``"neon"``; ``build_info()["instruction_sets_usable"]`` lists
            those that this build has and this processor runs. None leaves the choice to detconv.

    Raises:
        ValueError: (on entering) no such instruction set, or not usable here.
    """

    def __init__(self, name: str | None) -> None:
        self._name = name
        self._before: list[str | None] = []

    def __enter__(self) -> None:
        self._before.append(_core.force_instruction_set(self._name))

    def __exit__(self, *_: object) -> None:
        _core.force_instruction_set(self._before.pop())


class NoPower(UserWarning):
    """An assertion passed that zeros in place of the output might have passed, too: see ``Verdict.power``."""


def assert_conv2d(
    actual: Array,
    input: Array,
    weight: Array,
    bias: Array | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    *,
    dtype: str | None = None,
    confidence: float = CONFIDENCE,
    allow_unlikely: bool | None = None,
) -> Verdict:
    """Raise an AssertionError unless roundings explain an output of conv2d.

    There is no tolerance to choose: each element has its own, the bound that no order of its additions exceeds; and
    all together have what detconv's own orders of the same numbers reach: see ``detconv.judge``.

    Args:
        actual: the output in question.
        input, weight, ...: as for ``detconv.judge``.
        allow_unlikely: pass an output whose status is ``"unlikely"``: that is no proof. By default it fails, unless
            pytest's option ``--detconv-allow-unlikely`` or its setting ``detconv_allow_unlikely`` says otherwise.

    Returns:
        The verdict.

    Raises:
        ConvolutionMistake: an AssertionError whose text is the explanation.
        ValueError, TypeError: as ``detconv.judge``.

    Warns:
        NoPower: the output passes, but zeros in its place might, too.
    """
    __tracebackhide__ = True  # pytest shows the line that called
    from detconv.verdict.judge import judge

    options = stride, padding, dilation, groups
    return _passed(judge(actual, input, weight, bias, *options, dtype=dtype, confidence=confidence), allow_unlikely)


def assert_conv_transpose2d(
    actual: Array,
    input: Array,
    weight: Array,
    bias: Array | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    output_padding: int | tuple[int, int] = 0,
    groups: int = 1,
    dilation: int | tuple[int, int] = 1,
    *,
    dtype: str | None = None,
    confidence: float = CONFIDENCE,
    allow_unlikely: bool | None = None,
) -> Verdict:
    """``assert_conv2d`` for a transposed convolution; arguments in the sequence of ``detconv.conv_transpose2d``."""
    __tracebackhide__ = True
    from detconv.verdict.judge import judge

    options = stride, padding, dilation, groups
    transposed: dict[str, Any] = {"transposed": True, "output_padding": output_padding}
    verdict = judge(actual, input, weight, bias, *options, **transposed, dtype=dtype, confidence=confidence)
    return _passed(verdict, allow_unlikely)


def assert_conv2d_input(
    actual: Array,
    input_size: Sequence[int],
    weight: Array,
    grad_output: Array,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    *,
    dtype: str | None = None,
    confidence: float = CONFIDENCE,
    allow_unlikely: bool | None = None,
) -> Verdict:
    """``assert_conv2d`` for the gradient by the input; arguments as for ``detconv.judge_input_gradient``."""
    __tracebackhide__ = True
    from detconv.verdict.judge import judge_input_gradient

    arguments = input_size, weight, grad_output, stride, padding, dilation, groups
    return _passed(judge_input_gradient(actual, *arguments, dtype=dtype, confidence=confidence), allow_unlikely)


def assert_conv2d_weight(
    actual: Array,
    input: Array,
    weight_size: Sequence[int],
    grad_output: Array,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    *,
    dtype: str | None = None,
    confidence: float = CONFIDENCE,
    allow_unlikely: bool | None = None,
) -> Verdict:
    """``assert_conv2d`` for the gradient by the weight; arguments as for ``detconv.judge_weight_gradient``."""
    __tracebackhide__ = True
    from detconv.verdict.judge import judge_weight_gradient

    arguments = input, weight_size, grad_output, stride, padding, dilation, groups
    return _passed(judge_weight_gradient(actual, *arguments, dtype=dtype, confidence=confidence), allow_unlikely)


def assert_conv2d_bias(
    actual: Array,
    grad_output: Array,
    *,
    dtype: str | None = None,
    confidence: float = CONFIDENCE,
    allow_unlikely: bool | None = None,
) -> Verdict:
    """``assert_conv2d`` for the gradient by the bias; arguments as for ``detconv.judge_bias_gradient``."""
    __tracebackhide__ = True
    from detconv.verdict.judge import judge_bias_gradient

    return _passed(judge_bias_gradient(actual, grad_output, dtype=dtype, confidence=confidence), allow_unlikely)


def _passed(verdict: Verdict, allow_unlikely: bool | None) -> Verdict:
    """The verdict, if it passes; with a warning where it could not have failed."""
    __tracebackhide__ = True
    if allow_unlikely is None:  # then a pytest that has loaded the plugin says it
        allow_unlikely = getattr(sys.modules.get("detconv_pytest"), "allow_unlikely", False)
    verdict.raise_if_mistake(allow_unlikely=allow_unlikely)
    if verdict.status != "identical" and not verdict.power.decides:
        from detconv.verdict.explain import no_power

        warnings.warn(no_power(verdict), NoPower, stacklevel=3)
    return verdict
