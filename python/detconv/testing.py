"""For tests and experiments."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ContextDecorator
from typing import TYPE_CHECKING

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
) -> Verdict:
    """Raise an AssertionError unless roundings explain every element of an output of conv2d.

    There is no tolerance to choose: each element has its own, the bound that no order of its additions exceeds.

    Args:
        actual: the output in question.
        input, weight, ...: as for ``detconv.judge``.

    Returns:
        The verdict. Its status may still be ``"unlikely"``, which is no proof; a strict test asks for more.

    Raises:
        ConvolutionMistake: an AssertionError whose text is the explanation.
        ValueError, TypeError: as ``detconv.judge``.
    """
    __tracebackhide__ = True  # pytest shows the line that called
    from detconv.verdict.judge import judge

    options = stride, padding, dilation, groups
    verdict = judge(actual, input, weight, bias, *options, dtype=dtype, confidence=confidence)
    verdict.raise_if_mistake()
    return verdict


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
) -> Verdict:
    """``assert_conv2d`` for the gradient by the input; arguments as for ``detconv.judge_input_gradient``."""
    __tracebackhide__ = True
    from detconv.verdict.judge import judge_input_gradient

    options = stride, padding, dilation, groups
    verdict = judge_input_gradient(
        actual, input_size, weight, grad_output, *options, dtype=dtype, confidence=confidence
    )
    verdict.raise_if_mistake()
    return verdict


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
) -> Verdict:
    """``assert_conv2d`` for the gradient by the weight; arguments as for ``detconv.judge_weight_gradient``."""
    __tracebackhide__ = True
    from detconv.verdict.judge import judge_weight_gradient

    options = stride, padding, dilation, groups
    verdict = judge_weight_gradient(
        actual, input, weight_size, grad_output, *options, dtype=dtype, confidence=confidence
    )
    verdict.raise_if_mistake()
    return verdict
