"""A model's convolutions, made detconv's in place."""

from __future__ import annotations

import builtins
import copyreg
import dis
import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple, TypeVar

import torch
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

from detconv import nn, pages
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
        return "\n".join([self._counted(), *lines])

    def _counted(self) -> str:
        return f"{len(self.swapped)} swapped, {len(self.skipped)} skipped"

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data: ``version``, ``swapped`` and ``skipped``, whose lines have names, layer, note."""

        def plain(lines: tuple[Line, ...]) -> list[dict[str, Any]]:
            return [{"names": list(line.names), "layer": line.layer, "note": line.note} for line in lines]

        return {"version": 1, "swapped": plain(self.swapped), "skipped": plain(self.skipped)}

    def _repr_html_(self) -> str:
        rows = [(*_as_text(line)[:1], "swapped", *_as_text(line)[1:]) for line in self.swapped]
        rows += [(*_as_text(line)[:1], "skipped", *_as_text(line)[1:]) for line in self.skipped]
        heads = ("name", "", "layer", "computes now as, or why not")
        return pages.fragment(pages.table(self._counted(), heads, rows))


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
        filter_fn: called with every convolution and each of its names; those for which it returns False are left as
            they are.
        strict: raise where a convolution is not swapped, except by filter_fn; the model is then left as it was.

    Returns:
        The model, and the report.

    Skipped are convolutions of one or three dimensions, quantized, lazy and TorchScript ones, subclasses with a forward
    of their own, layers on other devices or of element types that detconv does not take, and modules whose forward
    calls ``conv2d`` or the like itself, or through methods and functions that it names: ``detconv.override`` reaches
    those.

    A class is swapped for one that has the summation as its default: a user's ``type(layer)(...)`` makes a layer with
    the same sums. Where an exception is raised, the model is as it was.

    Raises:
        ValueError: a summation that is none; a filter_fn whose answers for two names of one layer differ; if strict,
            layers that cannot be swapped.
        TypeError: model is no module.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model must be a torch.nn.Module; got {type(model).__name__}")
    text = text_of(summation)
    swaps: list[tuple[torch.nn.Module, type]] = []
    swapped, skipped = [], []
    for module, names in modules(model):
        new_class, reason = examine(module, text)
        if new_class is None and reason is None:
            continue
        if filter_fn is not None and not _is_wanted(filter_fn, module, names):
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
    _swap(swaps, text)
    return model, report


def _is_wanted(
    filter_fn: Callable[[torch.nn.Module, str], bool], module: torch.nn.Module, names: tuple[str, ...]
) -> bool:
    """What filter_fn says of a module: it is asked for each of its names, and must say the same each time."""
    answers = {name: bool(filter_fn(module, name)) for name in names}
    if len(set(answers.values())) == 2:
        told = ", ".join(f"{answer} for {name!r}" for name, answer in answers.items())
        raise ValueError(f"filter_fn must answer the same for all names of a layer that is used twice; got {told}")
    return answers[names[0]]


def _swap(swaps: list[tuple[torch.nn.Module, type]], text: str) -> None:
    """Change the classes of all modules, or of none where one of them cannot be changed."""
    before = [(module, type(module), dict(vars(module))) for module, _ in swaps]
    try:
        for module, new_class in swaps:
            module.__class__ = new_class
            module.summation = text  # type: ignore[assignment]
    except BaseException:
        for module, old_class, attributes in before:
            if type(module) is not old_class:
                module.__class__ = old_class
            vars(module).clear()
            vars(module).update(attributes)
        raise


def modules(model: torch.nn.Module) -> Iterator[tuple[torch.nn.Module, tuple[str, ...]]]:
    """Every module once, with all its names."""
    names: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(id(module), []).append(name)
    for module in model.modules():
        yield module, tuple(names[id(module)])


def examine(module: torch.nn.Module, summation: str = "pairwise") -> tuple[type | None, str | None]:
    """The class to swap the module's for, or the reason why it stays; neither for what is no convolution."""
    kind = type(module)
    if isinstance(module, torch.jit.ScriptModule):
        is_convolution = "Conv" in getattr(module, "original_name", "")
        return None, "it is TorchScript, which does not run Python" if is_convolution else None
    if isinstance(module, torch.nn.Sequential) and kind.__module__.startswith("torch."):
        return None, None  # its layers are looked at one by one, those of torch's fused ConvReLU2d too
    if kind.__module__.startswith("torch.ao.nn") and "Conv" in kind.__name__:
        return None, "it is quantized, or prepared to be"
    if not isinstance(module, _ConvNd):
        return None, _reason_by_code(module)
    base = kind.__bases__[0] if parametrize.is_parametrized(module) else kind
    for theirs, ours in _OURS.items():
        if issubclass(base, theirs):
            if not issubclass(base, ours):
                reason = _reason_against(module, base, theirs)
                if reason:
                    return None, reason
            return _swapped_class(kind, base, theirs, summation), None
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


# ---- What a forward calls ----


def _reason_by_code(module: torch.nn.Module) -> str | None:
    if type(module).__module__.startswith(("torch.nn.", "detconv.")):
        return None
    called = sorted(_called(_function_of(getattr(module, "forward", None)), module, set()))
    return f"its forward calls {called[0]}: detconv.override reaches that" if called else None


def _function_of(method: Any) -> FunctionType | None:
    """The user's function to which a call of a method, a partial method or a decorated function comes."""
    while True:
        if hasattr(method, "__wrapped__"):
            method = method.__wrapped__
        elif isinstance(method, MethodType):
            method = method.__func__
        elif isinstance(method, functools.partial | functools.partialmethod):
            method = method.func
        elif isinstance(method, FunctionType):
            return None if (method.__module__ or "").startswith(("torch.", "detconv.")) else method
        else:
            return None


def _called(function: FunctionType | None, module: torch.nn.Module, seen: set[FunctionType]) -> set[str]:
    """The names of torch's convolutions that a function names, or a method or a function of the user's that it names.

    A name that leads to a submodule counts for nothing: the submodule is looked at by itself. One whose object cannot
    be told without running the code, as an item of a list, is judged by its letters.
    """
    if function is None or function in seen:
        return set()
    seen.add(function)
    called: set[str] = set()
    for name, found in _named(function, module):
        if isinstance(found, torch.nn.Module):
            continue
        if found is super:
            for parent in type(module).__mro__:
                called |= _called(_function_of(vars(parent).get(function.__name__)), module, seen)
        users = _function_of(found)
        if users is not None:
            called |= _called(users, module, seen)
        elif found is _UNKNOWN and name in _FUNCTIONS:
            called.add(name)
        elif getattr(found, "__name__", None) in _FUNCTIONS and not _is_ours(found):
            called.add(found.__name__)
    return called


def _is_ours(function: Any) -> bool:
    return (getattr(function, "__module__", None) or "").startswith("detconv.")


_UNKNOWN = object()


def _named(function: FunctionType, module: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    """The names that a function looks up, with what each leads to as far as that is known before the code runs."""
    codes = [function.__code__]
    selves = {"self", *function.__code__.co_varnames[:1]}
    for code in codes:
        codes += (constant for constant in code.co_consts if isinstance(constant, CodeType))
        found: Any = _UNKNOWN
        for instruction in dis.get_instructions(code):
            operation, name = instruction.opname, instruction.argval
            if operation in ("CACHE", "EXTENDED_ARG", "PUSH_NULL"):
                continue
            if operation.startswith(("LOAD_FAST", "LOAD_DEREF")):
                last = name[-1] if isinstance(name, tuple) else name
                found = module if last in selves else _UNKNOWN
            elif operation.startswith(("LOAD_GLOBAL", "LOAD_NAME")):
                found = function.__globals__.get(name, vars(builtins).get(name, _UNKNOWN))
                yield name, found
            elif operation.startswith(("LOAD_ATTR", "LOAD_METHOD")):
                found = _attribute(found, name)
                yield name, found
            else:
                found = _UNKNOWN


def _attribute(owner: Any, name: str) -> Any:
    """An attribute of a module of Python's or torch's, without running a property."""
    if isinstance(owner, torch.nn.Module):
        own = {**vars(owner), **owner._modules}
        return own[name] if name in own else inspect.getattr_static(type(owner), name, _UNKNOWN)
    if isinstance(owner, ModuleType) or owner in (torch.ops, torch.ops.aten):
        return getattr(owner, name, _UNKNOWN)
    return _UNKNOWN


# ---- Classes ----


def _swapped_class(kind: type, base: type, theirs: type[_ConvNd], summation: str) -> type:
    made = _made_for(base, theirs, summation)
    if kind is base:
        return made
    # A parametrized layer has a class of its own, in which its parametrizations are properties.
    own = {name: value for name, value in vars(kind).items() if name not in ("__dict__", "__weakref__")}
    return type(made)(kind.__name__, (made,), own)


def _made_for(base: type, theirs: type[_ConvNd], summation: str) -> type:
    """The class of a layer of class ``base`` once it computes by a summation."""
    ours: type = _OURS[theirs]
    if issubclass(base, ours):
        if base is not ours and "_made_of" not in vars(base):
            return base  # the user's own subclass of detconv's layer, which says itself what it is made with
        origin: type = theirs if base is ours else vars(base)["_made_of"][0]
        base = origin
    if base is theirs and summation == _DEFAULT:
        return ours
    return _made(base, ours, summation)


class _Made(type):
    """The class of the classes that ``convert`` makes: pickles name what they were made of, as they have no name of
    their own."""


def _class_as_pickled(kind: type) -> Any:
    made_of = vars(kind).get("_made_of")
    return kind.__qualname__ if made_of is None else (_made, made_of)


copyreg.pickle(_Made, _class_as_pickled)

_DEFAULT = "pairwise"


@cache
def _made(base: type, ours: type, summation: str) -> type:
    """A torch layer's class, or the user's subclass of one, computed by detconv.

    The summation is that of every layer that is made by calling the class, so that a user's ``type(layer)(...)`` gives
    a layer with the same bits.
    """

    def __init__(self: Any, *arguments: Any, summation: Summation | str = summation, **options: Any) -> None:
        ours.__init__(self, *arguments, summation=summation, **options)  # type: ignore[misc]

    is_theirs = any(base is theirs for theirs in _OURS)
    bases = (ours,) if is_theirs else (ours, base)
    named = ours if is_theirs else base
    own = {
        "__doc__": named.__doc__,
        "__init__": __init__,
        "__module__": named.__module__,
        "__qualname__": named.__qualname__,
        "_made_of": (base, ours, summation),
    }
    made: type = _metaclass(type(base))(named.__name__, bases, own)
    return made


@cache
def _metaclass(theirs: type) -> type:
    if theirs is type:
        return _Made
    made = type(theirs.__name__, (_Made, theirs), {})
    copyreg.pickle(made, _class_as_pickled)
    return made


def _new(base: type, ours: type) -> Any:
    """A layer without its attributes: what pickles of version 0.1.0 call."""
    return object.__new__(_made(base, ours, _DEFAULT))


def _layer(module: torch.nn.Module, kind: type | None = None) -> str:
    if kind is None and isinstance(module, torch.jit.ScriptModule):
        return str(module.original_name)
    kind = kind or type(module)
    return f"detconv.nn.{kind.__name__}" if issubclass(kind, (nn.Conv2d, nn.ConvTranspose2d)) else kind.__name__


def _as_text(line: Line) -> tuple[str, str, str]:
    first, *others = (name or "(the model)" for name in line.names)
    return first + (f" (also {', '.join(others)})" if others else ""), line.layer, line.note
