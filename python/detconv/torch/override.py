"""Every convolution inside a block, computed by detconv, whatever code calls it."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from detconv.summation import Summation
from detconv.torch import convolutions
from detconv.torch.kernels import Kernels
from detconv.torch.ops import text_of
from detconv.torch.tensors import ELEMENT_TYPES, is_dense, is_dispatched, is_plain

KERNELS = Kernels(convolutions.keys_of_overloads())

_AUTOCAST_KEYS = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)


class NotOverridden(UserWarning):
    """A convolution inside ``detconv.override`` was computed by torch."""


def _python_functions() -> dict[Any, str]:
    """The functions that Python code calls, and their names."""
    found: dict[Any, str] = {}
    tables = convolutions.COMPUTED, convolutions.SPLIT, convolutions.REPORTED
    for name, packet in convolutions.packets(name for table in tables for name in table).items():
        spaces = (torch, torch.nn.functional, torch._C._nn)
        theirs = [getattr(space, name) for space in spaces if hasattr(space, name)]
        found |= dict.fromkeys([*theirs, packet, *(getattr(packet, overload) for overload in packet.overloads())], name)
    return found


_FUNCTIONS = _python_functions()
_FROM_PYTHON = ("conv2d", "conv_transpose2d")

_innermost_mode: Callable[[], TorchFunctionMode | None] = torch.overrides._get_current_function_mode
_USUAL_HANDLER = torch.Tensor.__torch_function__.__func__  # type: ignore[attr-defined]
_NO_HANDLER = torch._C._disabled_torch_function_impl


class override(TorchFunctionMode):
    """Context manager: inside it, in this thread, torch's convolutions of two dimensions are detconv's.

    ``with detconv.override(summation="exact"): ...`` reaches ``torch.nn.functional.conv2d``, ``torch.nn.Conv2d``, their
    transposed counterparts and whatever calls them, without touching a model: the functions of torch's dispatcher
    below them, and gradients of convolutions, too; also inside ``backward``, TorchScript, ``torch.cond`` and functions
    that handle ``__torch_function__``. Gradients follow: what was computed inside is differentiated by detconv wherever
    ``backward`` is called, and what ``torch.utils.checkpoint`` computes again is computed in the blocks of the first
    time.

    Blocks can be nested, the innermost holds; they end with an exception, too. A forked process is a copy that stays
    inside.

    What detconv does not compute stays torch's, and says so: convolutions of one or three dimensions, tensors on other
    devices, of other element types or of classes of one's own. Not reached is what does not pass torch's dispatcher as
    a convolution: C++ extensions with their own kernels, quantized and fused ones.

    Args:
        summation: a ``Summation`` or its text.
        strict: raise where a convolution stays torch's, in place of the warning ``NotOverridden``.

    Raises:
        ValueError, TypeError: a summation that is none.
        RuntimeError: when blocks are left out of order or in another thread; when somebody else has registered a Python
            kernel for a convolution; (inside, if strict) at a convolution that detconv does not compute.
    """

    def __init__(self, summation: Summation | str = "pairwise", *, strict: bool = False) -> None:
        super().__init__()
        self.summation = text_of(summation)
        self.strict = strict

    def __enter__(self) -> override:
        if not torch.compiler.is_dynamo_compiling():  # a compiled block is traced, which the function mode alone meets
            KERNELS.enter(self)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not torch.compiler.is_dynamo_compiling():
            if KERNELS.innermost() is self and _innermost_mode() is not self:
                raise RuntimeError(
                    "override: a function mode of torch that was entered inside the block must be left before it"
                )
            KERNELS.leave(self)
        super().__exit__(kind, error, traceback)  # type: ignore[no-untyped-call]

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """What Python code calls.

        The kernels compute. Here is reported what does not come to them, on another device or not dense; and computed
        what torch.compile, torch.export and torch.jit.trace record: they look into function modes, not into kernels.
        """
        kwargs = kwargs or {}
        name = _FUNCTIONS.get(func)
        if name is None:
            return func(*args, **kwargs)
        if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
            return self._trace(name, func, args, kwargs)
        if KERNELS.innermost() is not self or any(map(_handles_functions, types)):
            return func(*args, **kwargs)
        reason = _reason_against(name, args, kwargs)
        if reason is None:
            return func(*args, **kwargs)
        self._report(name, reason, _levels_to_user())
        return _as_torch_does(func, *args, **kwargs)

    def meet(self, name: str, key: str, own: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What any code calls, at torch's dispatcher: see ``detconv.torch.kernels.Block``."""
        function = name.partition(".")[0]
        reason = _reason_against(function, args, kwargs)
        if reason is not None:
            self._report(function, reason, _levels_to_user())
            return _as_torch_does(own, *args, **kwargs)
        places = [kwargs.pop(place) for place in convolutions.results(name)]
        compute = convolutions.COMPUTED[function]
        if key == "AutocastCPU":
            return compute(self.summation, *args, **kwargs)
        with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST_KEYS):  # which has had its say on the way here
            output = compute(self.summation, *args, **kwargs)
        return _stored(output, places) if places else output

    def _trace(self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        reason = _reason_against(name, args, kwargs)
        if reason is not None:
            self._report(name, reason, 4)
        elif name in _FROM_PYTHON:
            return convolutions.COMPUTED[name](self.summation, *args, **kwargs)
        return func(*args, **kwargs)

    def _report(self, name: str, reason: str, levels: int) -> None:
        message = f"{name} inside detconv.override is left to torch: {reason}"
        if self.strict:
            raise RuntimeError(message)
        warnings.warn(message, NotOverridden, stacklevel=levels)


def _as_torch_does(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with KERNELS.within(()):
        return function(*args, **kwargs)


def _stored(output: Any, places: list[torch.Tensor]) -> Any:
    """What an overload with ``out=`` returns: the tensors that it was given, filled with the results."""
    for place, result in zip(places, output if len(places) > 1 else [output], strict=True):
        if result is not None:
            if place.shape != result.shape:
                place.resize_(result.shape)
            place.copy_(result)
    return tuple(places) if len(places) > 1 else places[0]


def _handles_functions(kind: type) -> bool:
    """Whether a class has a ``__torch_function__`` of its own."""
    method = getattr(kind, "__torch_function__", None)
    return method is not _NO_HANDLER and getattr(method, "__func__", method) is not _USUAL_HANDLER


def _reason_against(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    if name in convolutions.REPORTED:
        return convolutions.REPORTED[name]
    tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor)]
    ranks = [x.dim() for x in tensors]
    if 4 not in ranks or 5 in ranks:  # the weight's is the largest
        return convolutions.TWO_DIMENSIONS
    for x in tensors:
        if x.device.type != "cpu":
            return f"a tensor is on {x.device}"
        if x.dtype not in ELEMENT_TYPES:
            return f"a tensor is of {x.dtype}"
        if not is_dense(x):
            return "a tensor is not dense"
        if not (is_plain(x) or is_dispatched(x)):
            return f"a tensor is of class {type(x).__name__}"
    return None


def _levels_to_user() -> int:
    """The ``stacklevel`` for ``_report``, called beside it, at which the code of neither torch nor detconv stands."""
    frame, levels = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in ("torch", "detconv"):
        frame, levels = frame.f_back, levels + 1
    return levels
