"""Every convolution inside a block, computed by detconv, whatever code calls it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

import detconv.functional
from detconv.summation import Summation
from detconv.torch.ops import text_of
from detconv.torch.tensors import ELEMENT_TYPES, is_dense, is_dispatched, is_plain

_OVERRIDDEN: dict[Any, Callable[..., Any]] = {}
for _name in ("conv2d", "conv_transpose2d"):
    _packet = getattr(torch.ops.aten, _name)
    _theirs = [getattr(torch, _name), getattr(torch.nn.functional, _name), _packet]
    _theirs += [getattr(_packet, overload) for overload in _packet.overloads()]
    _OVERRIDDEN |= dict.fromkeys(_theirs, getattr(detconv.functional, _name))

_OTHERS = ("conv1d", "conv3d", "conv_tbc", "conv_transpose1d", "conv_transpose3d", "convolution", "_convolution")
_LEFT_TO_TORCH = {getattr(namespace, name) for namespace in (torch, torch.ops.aten) for name in _OTHERS}


class NotOverridden(UserWarning):
    """A convolution inside ``detconv.override`` was computed by torch."""


class override(TorchFunctionMode):
    """Context manager: inside it, in this thread, torch's conv2d and conv_transpose2d are detconv's.

    ``with detconv.override(summation="exact"): ...`` reaches ``torch.nn.functional.conv2d``, ``torch.nn.Conv2d``, their
    transposed counterparts and whatever calls them, without touching a model. Gradients follow: what was computed
    inside is differentiated by detconv wherever ``backward`` is called. Blocks can be nested, the innermost holds;
    they end with an exception, too.

    What detconv does not compute stays torch's, and says so: convolutions of one or three dimensions, tensors on
    other devices or of other element types. Not reached at all is what torch runs below Python: TorchScript, C++
    extensions, and the backward pass of what was computed outside.

    Args:
        summation: a ``Summation`` or its text.
        strict: raise where a convolution stays torch's, in place of the warning ``NotOverridden``.

    Raises:
        ValueError, TypeError: a summation that is none.
        RuntimeError: (inside, if strict) a convolution that detconv does not compute.
    """

    def __init__(self, summation: Summation | str = "pairwise", *, strict: bool = False) -> None:
        super().__init__()
        self.summation = text_of(summation)
        self.strict = strict

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        ours = _OVERRIDDEN.get(func)
        if ours is None:
            if func in _LEFT_TO_TORCH:
                self._report(func, "detconv computes conv2d and conv_transpose2d only")
            return func(*args, **kwargs)
        reason = _reason_against(args, kwargs)
        if reason is not None:
            self._report(func, reason)
            return func(*args, **kwargs)
        return ours(*args, **kwargs, summation=self.summation)

    def _report(self, func: Any, reason: str) -> None:
        message = f"{func.__name__} inside detconv.override is left to torch: {reason}"
        if self.strict:
            raise RuntimeError(message)
        warnings.warn(message, NotOverridden, stacklevel=3)


def _reason_against(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    for x in (*args, *kwargs.values()):
        if not isinstance(x, torch.Tensor):
            continue
        if x.device.type != "cpu":
            return f"a tensor is on {x.device}"
        if x.dtype not in ELEMENT_TYPES:
            return f"a tensor is of {x.dtype}"
        if not is_dense(x):
            return "a tensor is not dense"
        if not (is_plain(x) or is_dispatched(x)):
            return f"a tensor is of class {type(x).__name__}"
    return None
