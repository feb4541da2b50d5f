"""The convolutions that a model calls, each with its arguments and its output, whoever calls them.

Calls are watched, not classes: a layer of torch's or detconv's own is recorded as a whole, from what it is given; every
other convolution is recorded at torch's dispatcher, where functions, TorchScript and layers with a forward of their own
arrive too.
"""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, MutableSequence, Set
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode

from detconv import nn
from detconv.torch.convert import modules
from detconv.torch.tensors import ELEMENT_TYPES
from detconv.verdict.problem import Problem

# Code that computes a convolution and nothing else.
_PLAIN = {
    getattr(kind, name)
    for kind in (torch.nn.Conv2d, torch.nn.ConvTranspose2d, nn.Conv2d, nn.ConvTranspose2d)
    for name in ("forward", "_conv_forward")
    if hasattr(kind, name)
}


class Unmatched(NamedTuple):
    """A convolution that was not compared."""

    model: str  # "a" or "b"
    name: str
    reason: str


@dataclass(frozen=True)
class Call:
    """One call of a convolution, on the CPU."""

    name: str
    kind: str  # "Conv2d" or "ConvTranspose2d"
    input: Tensor
    weight: Tensor
    bias: Tensor | None
    output: Tensor
    geometry: dict[str, Any]  # stride, padding, dilation, groups; pad: the mode and sides of padding that is not zeros

    def problem(self, input: Tensor) -> Problem:
        """What the layer has to compute for an input, in the wider of the element types."""
        wide = torch.promote_types(input.dtype, self.weight.dtype)
        x, weight, bias = (None if t is None else t.to(wide) for t in (input, self.weight, self.bias))
        stride, padding, dilation, groups = (self.geometry[n] for n in ("stride", "padding", "dilation", "groups"))
        if self.kind == "Conv2d":
            if self.geometry["pad"] is not None:
                mode, sides = self.geometry["pad"]
                x, padding = functional.pad(input.to(wide), sides, mode=mode), 0
            return Problem.of("conv2d", x, weight, bias, stride, padding, dilation, groups)
        extra = self._output_padding(input)
        return Problem.of("conv_transpose2d", x, weight, bias, stride, padding, extra, groups, dilation)

    def _output_padding(self, input: Tensor) -> tuple[int, int]:
        """What the size of the output says of it."""
        g, sizes = self.geometry, zip(input.shape[-2:], self.output.shape[-2:], self.weight.shape[-2:], strict=True)
        least = [
            (n - 1) * s - 2 * p + d * (k - 1) + 1
            for (n, _, k), s, p, d in zip(sizes, g["stride"], g["padding"], g["dilation"], strict=True)
        ]
        height, width = (size - low for size, low in zip(self.output.shape[-2:], least, strict=True))
        return height, width

    @property
    def shapes(self) -> tuple[Any, ...]:
        """By which calls of two models are matched."""
        return self.kind, tuple(self.weight.shape), tuple(self.output.shape)


@dataclass(frozen=True)
class Run:
    """What a model called, in the sequence of its calls, and what it returned."""

    calls: list[Call]
    skipped: list[Unmatched]
    output: Any


def run(which: str, model: Callable[..., Any], inputs: Any) -> Run:
    """Call a model and record its convolutions. The model, its buffers and attributes, and torch's random numbers are
    afterwards as they were before."""
    root = model if isinstance(model, torch.nn.Module) else torch.nn.Module()
    place = next(root.parameters(), torch.empty(0)).device
    args, kwargs = _arguments(copied(inputs, place))
    watch = _Watch(which, root)
    with ExitStack() as stack:
        stack.enter_context(_left_as_it_was(root))
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(torch.no_grad())
        stack.enter_context(parametrize.cached())
        stack.enter_context(watch)
        output = model(*args, **kwargs)
    return Run(watch.calls, watch.skipped, output)


# ---- Watching ----


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the convolutions of a model while it is entered: by hooks of its layers, and at torch's dispatcher."""

    def __init__(self, which: str, root: torch.nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Call] = []
        self.skipped: list[Unmatched] = []
        self._which, self._root = which, root
        self._times: Counter[str] = Counter()
        self._modules = ["(the model)"]  # those that are running, the innermost last
        self._whole = 0  # how many layers are running that are recorded as a whole
        self._hooks: list[Any] = []
        self._owners = {
            id(parameter): name.removesuffix(".weight") if name != "weight" else "(the model)"
            for name, parameter in root.named_parameters(remove_duplicate=False)
        }

    def __enter__(self) -> _Watch:
        for module, names in modules(self._root):
            name = _readable(names[0]) or "(the model)"
            if not isinstance(module, torch.jit.ScriptModule):
                self._hook(module, _WholeLayer(self, name) if _is_plain(module) else _Frame(self, name))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def _hook(self, module: torch.nn.Module, frame: _Frame) -> None:
        # First of all forward hooks, which may change what the layer gave; last of all hooks before, which may change
        # what it is given.
        self._hooks.append(module.register_forward_pre_hook(frame.enter))
        self._hooks.append(module.register_forward_hook(frame.leave, prepend=True, with_kwargs=True, always_call=True))

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for handle in self._hooks:
            handle.remove()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if not self._whole:
            self._at_dispatcher(func, args, kwargs, output)
        return output

    def _at_dispatcher(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        name: str = func._schema.name
        if "conv" not in name.partition("::")[2] or "backward" in name or name in _NO_CALLS:
            return
        given = {argument.name: value for argument, value in zip(func._schema.arguments, args, strict=False)} | kwargs
        owner = self._owners.get(id(given.get("weight")), self._modules[-1])
        reader = _READERS.get(name)
        if reader is None:
            self.skip(owner, f"it calls {name}, which detconv does not know")
            return
        kind, geometry = reader(given)
        self.record(owner, kind, given["input"], given["weight"], given["bias"], output, geometry)

    def skip(self, name: str, reason: str) -> None:
        self.skipped.append(Unmatched(self._which, self._called(name), reason))

    def record(
        self, name: str, kind: str, input: Any, weight: Any, bias: Any, output: Any, geometry: dict[str, Any]
    ) -> None:
        reason = next(filter(None, map(_reason_against, (input, output, weight))), None)
        if reason is None and weight.dim() != 4:
            reason = "detconv has convolutions of two dimensions only"
        if reason is not None:
            self.skip(name, reason)
            return
        # Copies: later layers may write into them, a ReLU(inplace=True) say.
        tensors = _on_cpu(input), _on_cpu(weight), None if bias is None else _on_cpu(bias), _on_cpu(output)
        self.calls.append(Call(self._called(name), kind, *tensors, geometry))

    def _called(self, name: str) -> str:
        self._times[name] += 1
        return name if self._times[name] == 1 else f"{name} (call {self._times[name]})"


class _Frame:
    """A module of the model while it runs."""

    def __init__(self, watch: _Watch, name: str) -> None:
        self.watch, self.name = watch, name
        self._seen = 0

    def enter(self, module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        self.watch._modules.append(self.name)
        self._seen = len(self.watch.calls) + len(self.watch.skipped)

    def leave(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        self.watch._modules.pop()
        seen = len(self.watch.calls) + len(self.watch.skipped)
        if isinstance(module, _ConvNd) and seen == self._seen and not self.watch._whole:
            self.watch.skip(self.name, "its own forward calls no convolution of torch's")


class _WholeLayer(_Frame):
    """A layer that computes a convolution and nothing else: judged by what it is given, its padding mode included."""

    def enter(self, module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        self.watch._whole += 1

    def leave(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        self.watch._whole -= 1
        if self.watch._whole or output is None:  # None: the layer raised
            return
        geometry = {n: getattr(module, n) for n in ("stride", "padding", "dilation", "groups")}
        padded = module.padding_mode != "zeros"
        geometry["pad"] = (module.padding_mode, module._reversed_padding_repeated_twice) if padded else None
        kind = "Conv2d" if isinstance(module, torch.nn.Conv2d) else "ConvTranspose2d"
        input = args[0] if args else kwargs["input"]
        self.watch.record(self.name, kind, input, module.weight, module.bias, output, geometry)


def _is_plain(module: torch.nn.Module) -> bool:
    """Whether a module is a layer of two dimensions whose code is torch's or detconv's own."""
    if not isinstance(module, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
        return False
    codes = [getattr(module, name) for name in ("forward", "_conv_forward") if hasattr(module, name)]
    return all(getattr(code, "__func__", code) in _PLAIN for code in codes)


def _readable(name: str) -> str:
    """A module's name without what torch.compile puts in front."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def _reason_against(value: Any) -> str | None:
    if not isinstance(value, Tensor):
        return f"it has arrays of {type(value).__name__}"
    if value.dtype not in ELEMENT_TYPES:
        return f"it has arrays of {value.dtype}"
    return None if value.layout is torch.strided else f"it has arrays of {value.layout}"


def _on_cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)


# ---- Calls at the dispatcher ----


def _geometry(given: Mapping[str, Any]) -> dict[str, Any]:
    pairs = {name: tuple(given[name]) for name in ("stride", "padding", "dilation")}
    pairs = {name: value * 2 if len(value) == 1 else value for name, value in pairs.items()}
    return {**pairs, "groups": given["groups"], "pad": None}


def _aten_convolution(given: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    return "ConvTranspose2d" if given["transposed"] else "Conv2d", _geometry(given)


# What each operator computes, by its arguments; torch brings its other functions to these before its dispatcher.
_READERS: dict[str, Callable[[Mapping[str, Any]], tuple[str, dict[str, Any]]]] = {
    "aten::convolution": _aten_convolution,
    "aten::_convolution": _aten_convolution,
    "aten::convolution_overrideable": _aten_convolution,
    "detconv::conv2d": lambda given: ("Conv2d", _geometry(given)),
    "detconv::conv_transpose2d": lambda given: ("ConvTranspose2d", _geometry(given)),
}
# Gradients, which a model may compute too, are no layers.
_NO_CALLS = {"detconv::conv2d_input", "detconv::conv2d_weight", "detconv::conv2d_bias"}


# ---- Leaving things as they were ----


@contextmanager
def _left_as_it_was(model: torch.nn.Module) -> Iterator[None]:
    """Running statistics, say, which a model in training mode changes, or counters, which it may replace."""
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    attributes = []
    for module in model.modules():
        if isinstance(module, LazyModuleMixin | torch.jit.ScriptModule):
            continue  # a lazy module's first call makes its parameters; the attributes of a script are not Python's
        inner = {name: dict(vars(module)[name]) for name in ("_buffers", "_parameters", "_modules")}
        attributes.append((module, dict(vars(module)), inner))
    try:
        yield
    finally:
        for module, own, inner in attributes:
            vars(module).clear()
            vars(module).update(own)
            for name, entries in inner.items():
                vars(module)[name].clear()
                vars(module)[name].update(entries)
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


# What has no tensors inside, or what all may share.
_SHARED = (str, bytes, int, float, complex, type(None), type, FunctionType, BuiltinFunctionType, ModuleType)


def copied(value: Any, device: torch.device, known: dict[int, Any] | None = None) -> Any:
    """The same value with copies of all tensors, on a device, and of all that holds them: containers of every kind."""
    known = {} if known is None else known
    if isinstance(value, (*_SHARED, torch.nn.Module)):
        return value
    if id(value) in known:
        return known[id(value)][0]

    def inner(part: Any) -> Any:
        return copied(part, device, known)

    made: Any
    if isinstance(value, Tensor):
        made = value.detach().to(device, copy=True)
    elif isinstance(value, tuple):
        made = value._make(map(inner, value)) if hasattr(value, "_make") else type(value)(map(inner, value))
    elif isinstance(value, frozenset):
        made = type(value)(map(inner, value))
    else:
        try:
            made = copy.copy(value)
        except Exception:  # what cannot be copied, a lock say, holds no tensors that a model changes
            made = value
    # The value is kept beside its copy: a number of an object is only its own as long as the object lives.
    known[id(value)] = made, value
    if made is not value and not isinstance(value, Tensor | tuple | frozenset):
        _fill(made, inner)
    return made


def _fill(made: Any, inner: Callable[[Any], Any]) -> None:
    """Copy what a shallow copy holds: items of a list, entries of a mapping, attributes."""
    if isinstance(made, MutableSequence):
        for i, part in enumerate(made):
            made[i] = inner(part)
    elif isinstance(made, dict):
        dict.update(made, {key: inner(part) for key, part in made.items()})
    elif isinstance(made, Set) and hasattr(made, "add"):
        parts = list(map(inner, made))
        made.clear()  # type: ignore[attr-defined]
        for part in parts:
            made.add(part)
    own = getattr(made, "__dict__", {})
    for name in own:
        own[name] = inner(own[name])
    for field in dataclasses.fields(made) if dataclasses.is_dataclass(made) else ():
        if field.name not in own:  # its attributes lie in slots
            object.__setattr__(made, field.name, inner(getattr(made, field.name)))


def _arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, tuple):
        return inputs, {}
    return ((), dict(inputs)) if isinstance(inputs, Mapping) else ((inputs,), {})
