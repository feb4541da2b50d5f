"""A model's convolutions, made detconv's in place."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from types import CodeType
from typing import Any, NamedTuple, TypeVar

import torch
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

from detconv import nn
from detconv.summation import Summation
from detconv.torch.ops import text_of
from detconv.torch.tensors import ELEMENT_TYPES

Model = TypeVar("Model", bound=torch.nn.Module)

_OURS: dict[type[_ConvNd], type[nn.Conv2d | nn.ConvTranspose2d]] = {
    torch.nn.Conv2d: nn.Conv2d,
    torch.nn.ConvTranspose2d: nn.ConvTranspose2d,
}
_FILTERED = "filter_fn left it out"
_FUNCTIONS = {"conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "convolution"}


class Line(NamedTuple):
    """One layer of a report."""

    names: tuple[str, ...]  # all under which the model has it; "" is the model itself
    layer: str  # its class
    note: str  # what it was swapped for, or why it was not


@dataclass(frozen=True)
class Report:
    """What ``convert`` swapped and what it did not, with the reasons; ``print(report)`` shows it as a table."""

    swapped: tuple[Line, ...]
    skipped: tuple[Line, ...]

    def __str__(self) -> str:
        rows = [("swapped", *_as_text(line)) for line in self.swapped]
        rows += [("skipped", *_as_text(line)) for line in self.skipped]
        widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
        lines = ["  ".join([*(f"{text:<{w}}" for text, w in zip(row, widths, strict=False)), row[3]]) for row in rows]
        return "\n".join([f"{len(self.swapped)} swapped, {len(self.skipped)} skipped", *lines])


def convert(
    model: Model,
    summation: Summation | str = "pairwise",
    filter_fn: Callable[[torch.nn.Module, str], bool] | None = None,
    *,
    strict: bool = False,
) -> tuple[Model, Report]:
    """Make every Conv2d and ConvTranspose2d of a model detconv's, in place, and report on every convolution in it.

    A layer stays the object it is and only changes its class, as torch's own parametrizations do. So whatever refers to
    it or hangs on it survives: the root module, modules and weights used twice, hooks, parametrizations, pruning,
    buffers, the optimizer's parameters. ``copy.deepcopy(model)`` first keeps the original.

    Args:
        model: any module; a convolution itself, too. What is detconv's already gets the summation.
        summation: a ``Summation`` or its text.
        filter_fn: called with every convolution and its name; those for which it returns False are left as they are.
        strict: raise where a convolution is not swapped, except by filter_fn; the model is then left as it was.

    Returns:
        The model, and the report.

    Skipped are convolutions of one or three dimensions, quantized, lazy and TorchScript ones, subclasses with a forward
    of their own, layers on other devices or of element types that detconv does not take, and modules whose forward
    calls ``conv2d`` or the like itself (recognised by that name in its code): ``detconv.override`` reaches those.

    Raises:
        ValueError: a summation that is none; if strict, layers that cannot be swapped.
        TypeError: model is no module.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model must be a torch.nn.Module; got {type(model).__name__}")
    text = text_of(summation)
    swaps: list[tuple[torch.nn.Module, type]] = []
    swapped, skipped = [], []
    for module, names in modules(model):
        new_class, reason = examine(module)
        if new_class is None and reason is None:
            continue
        if filter_fn is not None and not filter_fn(module, names[0]):
            new_class, reason = None, _FILTERED
        line = Line(names, _layer(module), reason or f"{_layer(module, new_class)}, {text}")
        if new_class is None:
            skipped.append(line)
        else:
            swapped.append(line)
            swaps.append((module, new_class))
    report = Report(tuple(swapped), tuple(skipped))
    failed = [line for line in skipped if line.note != _FILTERED]
    if strict and failed:
        raise ValueError(f"model must have only convolutions that can be swapped; got\n{Report((), tuple(failed))}")
    for module, new_class in swaps:
        module.__class__ = new_class
        module.summation = text  # type: ignore[assignment]
    return model, report


def modules(model: torch.nn.Module) -> Iterator[tuple[torch.nn.Module, tuple[str, ...]]]:
    """Every module once, with all its names."""
    names: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(id(module), []).append(name)
    for module in model.modules():
        yield module, tuple(names[id(module)])


def examine(module: torch.nn.Module) -> tuple[type | None, str | None]:
    """The class to swap the module's for, or the reason why it stays; neither for what is no convolution."""
    kind = type(module)
    if isinstance(module, torch.jit.ScriptModule):
        is_convolution = "Conv" in getattr(module, "original_name", "")
        return None, "it is TorchScript, which does not run Python" if is_convolution else None
    if kind.__module__.startswith("torch.ao.nn") and "Conv" in kind.__name__:
        return None, "it is quantized, or prepared to be"
    if not isinstance(module, _ConvNd):
        return None, _reason_by_code(module)
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        return kind, None
    base = kind.__bases__[0] if parametrize.is_parametrized(module) else kind
    for theirs in _OURS:
        if issubclass(base, theirs):
            reason = _reason_against(module, base, theirs)
            return (None, reason) if reason else (_swapped_class(kind, base, theirs), None)
    return None, "detconv has convolutions of two dimensions only"


def _reason_against(module: torch.nn.Module, base: type, theirs: type[_ConvNd]) -> str | None:
    if isinstance(module, LazyModuleMixin):
        return "it is lazy: call the model once before"
    own = [name for name in ("__call__", "forward", "_conv_forward") if _differs(base, theirs, name)]
    own += [name for name in ("forward", "_conv_forward") if name in vars(module)]
    if own:
        return f"it has its own {own[0]}: detconv.override reaches what that calls"
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.device.type not in ("cpu", "meta"):
            return f"it is on {tensor.device}"
        if tensor.is_floating_point() and tensor.dtype not in ELEMENT_TYPES:
            return f"it is of {tensor.dtype}"
        if tensor.is_complex():
            return f"it is of {tensor.dtype}"
    return None


def _differs(base: type, theirs: type, name: str) -> bool:
    return getattr(base, name, None) is not getattr(theirs, name, None)


def _reason_by_code(module: torch.nn.Module) -> str | None:
    if type(module).__module__.startswith(("torch.nn.", "detconv.")):
        return None
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    names = set() if code is None else _names_in(code)
    # An attribute of that name is a submodule, say, which is looked at by itself.
    called = sorted(name for name in names & _FUNCTIONS if not hasattr(module, name))
    if not called or "detconv" in names:
        return None
    return f"its forward calls {called[0]}: detconv.override reaches that"


def _names_in(code: CodeType) -> set[str]:
    nested = [_names_in(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    return set(code.co_names).union(*nested)


def _swapped_class(kind: type, base: type, theirs: type[_ConvNd]) -> type:
    ours: type = _OURS[theirs]
    if base is not theirs:
        ours = _subclass(base, ours)
    if kind is base:
        return ours
    # A parametrized layer has a class of its own, in which its parametrizations are properties.
    own = {name: value for name, value in vars(kind).items() if name not in ("__dict__", "__weakref__")}
    return type(kind.__name__, (ours,), own)


@cache
def _subclass(base: type, ours: type) -> type:
    """The user's subclass of a torch layer, computed by detconv: one class each, so that pickles can name it."""

    def __reduce_ex__(self: torch.nn.Module, protocol: object) -> tuple[Any, ...]:
        return _new, (base, ours), self.__dict__.copy()

    return type(base.__name__, (ours, base), {"__reduce_ex__": __reduce_ex__, "__module__": base.__module__})


def _new(base: type, ours: type) -> Any:
    return object.__new__(_subclass(base, ours))


def _layer(module: torch.nn.Module, kind: type | None = None) -> str:
    if kind is None and isinstance(module, torch.jit.ScriptModule):
        return str(module.original_name)
    kind = kind or type(module)
    return f"detconv.nn.{kind.__name__}" if issubclass(kind, (nn.Conv2d, nn.ConvTranspose2d)) else kind.__name__


def _as_text(line: Line) -> tuple[str, str, str]:
    first, *others = (name or "(the model)" for name in line.names)
    return first + (f" (also {', '.join(others)})" if others else ""), line.layer, line.note
