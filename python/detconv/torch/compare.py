"""Two models on the same inputs: which convolution is the first whose difference is more than rounding."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from detconv import nn
from detconv.console import progress, wrapped
from detconv.torch.convert import examine, modules
from detconv.torch.tensors import ELEMENT_TYPES
from detconv.verdict.bounds import CONFIDENCE, FORMATS, half_ulp
from detconv.verdict.judge import STATUSES, Verdict, judge_problem
from detconv.verdict.problem import Problem, numbers
from detconv.verdict.record import number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The factor by which a difference grows between two convolutions that is worth a word: activations and normalisations
# of rounded inputs stay far below.
_JUMP = 1e3

# Code that computes a convolution and nothing else.
_PLAIN = {
    getattr(kind, name)
    for kind in (torch.nn.Conv2d, torch.nn.ConvTranspose2d, nn.Conv2d, nn.ConvTranspose2d)
    for name in ("forward", "_conv_forward")
    if hasattr(kind, name)
}


@dataclass(frozen=True)
class Judged:
    """The verdict on one output; the whole of it, with its arrays, only where it is more than rounding."""

    status: str
    counts: dict[str, int]
    worst: float  # the largest error as a multiple of its bound
    explanation: str
    verdict: Verdict | None

    @staticmethod
    def of(verdict: Verdict) -> Judged:
        kept = verdict if verdict.status in ("unlikely", "mistake") else None
        return Judged(verdict.status, dict(verdict.counts), verdict.worst, verdict.explain(), kept)


@dataclass(frozen=True)
class Layer:
    """One call of a convolution in both models.

    Attributes:
        name_a, name_b: of the module in each model; with the number of the call where it is called again.
        kind: ``"Conv2d"`` or ``"ConvTranspose2d"``.
        shape: of the output.
        a, b: is each output right, for the input and the parameters it was computed from?
        b_as_a: is model b's output right for model b's input and model a's parameters? That is ``b`` where the
            parameters are the same, to the bit, and None where it cannot be judged.
        same_parameters: whether weight, bias and geometry are the same.
        input_difference, output_difference: of b from a, relative: the norm of the difference over the norm of a.
        ulps: the median distance of b's outputs from a's, in units in the last place of a's.
    """

    name_a: str
    name_b: str
    kind: str
    shape: tuple[int, ...]
    a: Judged
    b: Judged
    b_as_a: Judged | None
    same_parameters: bool
    input_difference: float
    output_difference: float
    ulps: float

    @property
    def status(self) -> str:
        """The worst of ``a``, ``b`` and ``b_as_a``."""
        judged = [side.status for side in (self.a, self.b, self.b_as_a) if side is not None]
        return max(judged, key=STATUSES.index)

    @property
    def amplification(self) -> float:
        """The difference of the outputs over that of the inputs; infinite where only the outputs differ."""
        if self.input_difference == 0:
            return 1.0 if self.output_difference == 0 else float("inf")
        return self.output_difference / self.input_difference

    @property
    def name(self) -> str:
        return self.name_a if self.name_a == self.name_b else f"{self.name_a} / {self.name_b}"

    def explain(self) -> str:
        """What is wrong with the layer, or that nothing is."""
        for model, name, judged in (("a", self.name_a, self.a), ("b", self.name_b, self.b)):
            if judged.status == "mistake":
                return f"Model {model} computes {name} wrong.\n\n{judged.explanation}"
        if self.b_as_a is not None and self.b_as_a.status == "mistake":
            return (
                f"Each model computes {self.name} right, but not the same convolution: the parameters differ. Model "
                f"b's output, judged by model a's parameters:\n\n{self.b_as_a.explanation}"
            )
        return f"{self.name}: the models differ by no more than rounding and what came in."


class Unmatched(NamedTuple):
    """A convolution that was not compared."""

    model: str  # "a" or "b"
    name: str
    reason: str


@dataclass(frozen=True)
class Comparison:
    """Two models, layer by layer; ``print(comparison)`` shows it as a table.

    Attributes:
        layers: the convolutions that both models called, in the sequence of the calls.
        skipped: those that were not compared, with the reasons.
        output_difference: relative, of what the models returned; None where that has not the same form.
    """

    layers: tuple[Layer, ...]
    skipped: tuple[Unmatched, ...]
    output_difference: float | None

    @property
    def first_mistake(self) -> Layer | None:
        """The first convolution whose difference is more than rounding."""
        return next((layer for layer in self.layers if layer.status == "mistake"), None)

    def __str__(self) -> str:
        return "\n".join(_report(self))

    def plot(self) -> Figure:
        """How the difference grows from layer to layer.

        Raises:
            ImportError: matplotlib is not installed.
        """
        return _plot(self)

    def to_json(self) -> str:
        """The report as JSON: an object with ``first_mistake`` (a number from 0, or null), ``layers``, ``skipped``."""
        layers = [_layer_record(layer) for layer in self.layers]
        first = self.first_mistake
        return json.dumps(
            {
                "first_mistake": None if first is None else self.layers.index(first),
                "layers": layers,
                "skipped": [line._asdict() for line in self.skipped],
                "output_difference": None if self.output_difference is None else number(self.output_difference),
            },
            allow_nan=False,
        )


def compare_models(
    model_a: torch.nn.Module,
    model_b: torch.nn.Module,
    inputs: Any,
    *,
    dtype: str | None = None,
    confidence: float = CONFIDENCE,
) -> Comparison:
    """Run two models on the same inputs, and judge every convolution of both.

    Each output of a Conv2d or ConvTranspose2d is judged by the input that the layer got in its own model: so a layer is
    not blamed for what came before it. Model b's outputs are judged by model a's parameters too, where they differ. The
    differences between the models show how rounding, or a mistake, grows from layer to layer.

    The layers are matched by the sequence of their calls and their shapes, whatever their names. The models run without
    gradients, from the same state of torch's random numbers, and in the mode they are in: call ``eval()`` before where
    dropout and batch statistics should be off. They are left as they were, buffers included. The inputs and outputs of
    all convolutions are kept until the end.

    Args:
        model_a: the model to trust.
        model_b: the model in question.
        inputs: what the models are called with: one argument, a tuple of them or a dict of named ones. Each model gets
            a copy of its tensors, on the device of its first parameter.
        dtype: the format in which both claim to add; as for ``detconv.judge``.
        confidence: for each layer; as for ``detconv.judge``.

    Raises:
        TypeError: a model is no module.
        ValueError: no convolution is called by both; an unknown dtype, a confidence out of range.
    """
    for name, model in (("model_a", model_a), ("model_b", model_b)):
        if not isinstance(model, torch.nn.Module):
            raise TypeError(f"{name} must be a torch.nn.Module; got {type(model).__name__}")
    if dtype is not None and dtype not in FORMATS:
        raise ValueError(f"dtype must be one of {', '.join(FORMATS)}; got {dtype!r}")
    run_a, run_b = _run("a", model_a, inputs), _run("b", model_b, inputs)
    pairs, alone = _matched(run_a.calls, run_b.calls)
    if not pairs:
        raise ValueError(
            "model_a and model_b must call a Conv2d or ConvTranspose2d of the same shapes; got "
            f"{len(run_a.calls)} and {len(run_b.calls)} calls that detconv can judge, none of which match"
        )

    def judged(output: Tensor, problem: Problem) -> Judged:
        return Judged.of(judge_problem(output, problem, dtype, confidence))

    layers = []
    with progress() as say:
        for a, b in pairs:
            say(f"judging {a.name}")
            layers.append(_compared(a, b, judged))
    return Comparison(tuple(layers), (*run_a.skipped, *run_b.skipped, *alone), _output_difference(run_a, run_b))


# ---- Running ----


@dataclass(frozen=True)
class _Call:
    """One call of a convolution, on the CPU."""

    name: str
    kind: str
    input: Tensor
    weight: Tensor
    bias: Tensor | None
    output: Tensor
    geometry: dict[str, Any]

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
        if bias is None:
            return Problem.of("conv2d_input", tuple(self.output.shape), weight, x, stride, padding, dilation, groups)
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
class _Run:
    calls: list[_Call]
    skipped: list[Unmatched]
    output: Any


def _run(which: str, model: torch.nn.Module, inputs: Any) -> _Run:
    """Call a model and record its convolutions; hooks, buffers and random numbers are afterwards as before."""
    run = _Run([], [], None)
    hooks = []
    place = next(model.parameters(), torch.empty(0)).device
    args, kwargs = _arguments(_copied(inputs, place))
    with _buffers_kept(model), torch.random.fork_rng(devices=[]), torch.no_grad(), parametrize.cached():
        try:
            for module, names in modules(model):
                reason = _reason_against(module)
                name = names[0] or "(the model)"
                if reason:
                    run.skipped.append(Unmatched(which, name, reason))
                elif isinstance(module, (torch.nn.Conv2d, torch.nn.ConvTranspose2d)):
                    hook = _recorder(which, name, run)
                    # First of all hooks: others may change what the layer gave.
                    hooks.append(module.register_forward_hook(hook, prepend=True, with_kwargs=True))
            output = model(*args, **kwargs)
        finally:
            for handle in hooks:
                handle.remove()
    return _Run(run.calls, run.skipped, output)


def _recorder(which: str, name: str, run: _Run) -> Callable[..., None]:
    calls = 0

    def record(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        nonlocal calls
        calls += 1
        called = name if calls == 1 else f"{name} (call {calls})"
        input = args[0] if args else kwargs["input"]
        tensors = (input, output, module.weight)
        strange = next((x for x in tensors if not isinstance(x, Tensor) or x.dtype not in ELEMENT_TYPES), None)
        if strange is not None:
            kind = strange.dtype if isinstance(strange, Tensor) else type(strange).__name__
            run.skipped.append(Unmatched(which, called, f"it has arrays of {kind}"))
            return
        geometry = {n: getattr(module, n) for n in ("stride", "padding", "dilation", "groups")}
        padded = module.padding_mode != "zeros"
        geometry["pad"] = (module.padding_mode, module._reversed_padding_repeated_twice) if padded else None
        kind = "Conv2d" if isinstance(module, torch.nn.Conv2d) else "ConvTranspose2d"
        # Copies: later layers may write into them, a ReLU(inplace=True) say.
        bias = None if module.bias is None else _on_cpu(module.bias)
        run.calls.append(_Call(called, kind, _on_cpu(input), _on_cpu(module.weight), bias, _on_cpu(output), geometry))

    return record


def _on_cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)


def _reason_against(module: torch.nn.Module) -> str | None:
    """Why a convolution cannot be compared; None for one that can be, and for what is none."""
    if isinstance(module, (torch.nn.Conv2d, torch.nn.ConvTranspose2d)) and isinstance(module, _ConvNd):
        codes = {name: getattr(module, name) for name in ("forward", "_conv_forward") if hasattr(module, name)}
        own = [name for name, code in codes.items() if getattr(code, "__func__", code) not in _PLAIN]
        return f"it has its own {own[0]}" if own else None
    reason = examine(module)[1]
    return None if reason is None else reason.partition(":")[0]


@contextmanager
def _buffers_kept(model: torch.nn.Module) -> Iterator[None]:
    """Running statistics, say, which a model in training mode changes."""
    kept = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, before in kept:
                buffer.copy_(before)


def _copied(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to(device, copy=True)
    if isinstance(value, Mapping):
        return {key: _copied(inner, device) for key, inner in value.items()}
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return type(value)(_copied(inner, device) for inner in value)
    return value


def _arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, tuple):
        return inputs, {}
    return ((), dict(inputs)) if isinstance(inputs, Mapping) else ((inputs,), {})


# ---- Comparing ----


def _matched(a: Sequence[_Call], b: Sequence[_Call]) -> tuple[list[tuple[_Call, _Call]], list[Unmatched]]:
    """The calls of both models in pairs, and those that have no partner."""
    blocks = SequenceMatcher(None, [c.shapes for c in a], [c.shapes for c in b], autojunk=False).get_matching_blocks()
    places = [(block.a + k, block.b + k) for block in blocks for k in range(block.size)]
    alone = []
    for which, calls, paired in (("a", a, {i for i, _ in places}), ("b", b, {j for _, j in places})):
        other = "b" if which == "a" else "a"
        alone += [
            Unmatched(which, call.name, f"model {other} calls no layer of its shapes there")
            for i, call in enumerate(calls)
            if i not in paired
        ]
    return [(a[i], b[j]) for i, j in places], alone


def _compared(a: _Call, b: _Call, judged: Callable[[Tensor, Problem], Judged]) -> Layer:
    same = _same_parameters(a, b)
    of_b = judged(b.output, b.problem(b.input))
    try:
        crossed: Judged | None = of_b if same else judged(b.output, a.problem(b.input))
    except (TypeError, ValueError):  # the layers do not fit each other's inputs
        crossed = None
    return Layer(
        name_a=a.name,
        name_b=b.name,
        kind=a.kind,
        shape=tuple(a.output.shape),
        a=judged(a.output, a.problem(a.input)),
        b=of_b,
        b_as_a=crossed,
        same_parameters=same,
        input_difference=_difference(a.input, b.input),
        output_difference=_difference(a.output, b.output),
        ulps=_ulps(a.output, b.output),
    )


def _same_parameters(a: _Call, b: _Call) -> bool:
    if a.geometry != b.geometry or (a.bias is None) != (b.bias is None):
        return False
    pairs = [(a.weight, b.weight)] + ([] if a.bias is None or b.bias is None else [(a.bias, b.bias)])
    return all(x.dtype == y.dtype and _bytes(x) == _bytes(y) for x, y in pairs)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def _difference(a: Tensor, b: Tensor) -> float:
    """norm(b - a) / norm(a); infinite where a difference is, or where a is zero and b is not."""
    x, y = (np.ravel(numbers("tensor", t)[0]).astype(np.float64) for t in (a, b))
    if x.shape != y.shape:
        return float("inf")
    unequal = (x != y) & ~(np.isnan(x) & np.isnan(y))
    if not unequal.any():
        return 0.0
    with np.errstate(invalid="ignore"):
        gap = float(np.linalg.norm((y - x)[unequal]))
    size = float(np.linalg.norm(x[np.isfinite(x)]))
    return gap / size if size > 0 and np.isfinite(gap) else float("inf")


def _ulps(a: Tensor, b: Tensor) -> float:
    (x, stored), (y, _) = numbers("tensor", a), numbers("tensor", b)
    if not x.size:
        return 0.0
    wide = x.astype(np.float64)
    with np.errstate(invalid="ignore"):
        distance = np.abs(y - wide) / (2 * half_ulp(wide, FORMATS[stored]))
    return float(np.median(np.where(np.isnan(distance), np.inf, distance)))


def _output_difference(a: _Run, b: _Run) -> float | None:
    left, right = (list(_tensors(run.output)) for run in (a, b))
    if not left or [t.shape for t in left] != [t.shape for t in right]:
        return None
    return _difference(*(torch.cat([t.detach().cpu().double().reshape(-1) for t in all_]) for all_ in (left, right)))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _tensors(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _tensors(inner)


# ---- The report ----


def _report(comparison: Comparison) -> Iterator[str]:
    first = comparison.first_mistake
    counts = {status: sum(layer.status == status for layer in comparison.layers) for status in STATUSES}
    counted = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    yield f"{len(comparison.layers)} convolutions compared: {counted}"
    yield ""
    heads = ("layer", "output", "a", "b", "b by a's parameters", "inputs differ", "outputs differ", "factor", "ulps")
    rows = [
        (
            layer.name,
            "x".join(map(str, layer.shape)),
            layer.a.status,
            layer.b.status,
            "the same" if layer.same_parameters else layer.b_as_a.status if layer.b_as_a else "cannot be judged",
            f"{layer.input_difference:.1e}",
            f"{layer.output_difference:.1e}",
            f"{layer.amplification:.3g}",
            f"{layer.ulps:.3g}",
        )
        for layer in comparison.layers
    ]
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    for row in (heads, *rows):
        yield "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
    yield ""
    if comparison.output_difference is not None:
        yield f"What the models return differs by {comparison.output_difference:.1e}, relative to model a's."
    if first is None:
        yield "No convolution differs by more than rounding."
    else:
        yield f"The first convolution whose difference is more than rounding: {first.name}.\n"
        yield wrapped(first.explain())
    yield from _elsewhere(comparison)
    if comparison.skipped:
        yield ""
        yield "Not compared:"
        yield from (f"  model {line.model}: {line.name}: {line.reason}" for line in comparison.skipped)


def _elsewhere(comparison: Comparison) -> Iterator[str]:
    """Where the models drift apart between convolutions, before the first mistake, as no rounding of theirs does."""
    before, largest = "the inputs", 2.0**-24
    for layer in comparison.layers:
        if layer.input_difference > _JUMP * largest:
            yield wrapped(
                f"Between {before} and {layer.name} the difference grows to {layer.input_difference:.1e}, "
                f"{layer.input_difference / largest:.2g} times what it was: look at what lies between them."
            )
        if layer.status == "mistake":
            return
        before, largest = layer.name, max(largest, layer.input_difference, layer.output_difference)
    if comparison.output_difference is not None and comparison.output_difference > _JUMP * largest:
        yield f"Behind {before} the difference grows: look at what lies between it and the end."


def _layer_record(layer: Layer) -> dict[str, Any]:
    def side(judged: Judged | None) -> dict[str, Any] | None:
        if judged is None:
            return None
        return {
            "status": judged.status,
            "counts": judged.counts,
            "worst": number(judged.worst),
            "explanation": judged.explanation,
        }

    return {
        "name_a": layer.name_a,
        "name_b": layer.name_b,
        "kind": layer.kind,
        "shape": list(layer.shape),
        "status": layer.status,
        "a": side(layer.a),
        "b": side(layer.b),
        "b_as_a": side(layer.b_as_a),
        "same_parameters": layer.same_parameters,
        "input_difference": number(layer.input_difference),
        "output_difference": number(layer.output_difference),
        "amplification": number(layer.amplification),
        "ulps": number(layer.ulps),
    }


def _plot(comparison: Comparison) -> Figure:
    from matplotlib.figure import Figure

    from detconv.drawing import BLUE, GREEN, GREY, INK, VERMILION, plain

    layers, first = comparison.layers, comparison.first_mistake
    figure = Figure(figsize=(max(7.0, min(2 + 0.3 * len(layers), 24)), 5.2), dpi=120, layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(layers))
    finite = [d for layer in layers for d in (layer.input_difference, layer.output_difference) if 0 < d < np.inf]
    high = 4 * max(finite, default=1.0)  # where what is infinite goes
    outputs, inputs = (
        np.minimum([getattr(layer, name) for layer in layers], high)
        for name in ("output_difference", "input_difference")
    )
    axes.plot(places, inputs, "o", markersize=4, markerfacecolor="white", color=GREY, label="inputs")
    axes.plot(places, outputs, "-", color=BLUE, linewidth=0.9, zorder=1)
    wrong = np.array([layer.status == "mistake" for layer in layers])
    for chosen, color, label in ((~wrong, GREEN, "outputs, rounding"), (wrong, VERMILION, "outputs, a mistake")):
        if chosen.any():
            axes.plot(places[chosen], outputs[chosen], "o", markersize=6, color=color, label=label)
    axes.set_yscale("symlog", linthresh=min(finite, default=1e-8) / 2, linscale=0.5)  # 0 has its place
    axes.set_ylim(0, high * 1.5)
    step = -(-len(layers) // 60)
    axes.set_xticks(places[::step], [layer.name for layer in layers][::step], rotation=90, fontsize=8)
    axes.set_ylabel("relative difference of the models", fontsize=11, color=INK)
    title = "No convolution differs by more than rounding" if first is None else f"The first mistake: {first.name}"
    axes.set_title(title, loc="left", fontsize=13, color=INK, pad=10)
    axes.legend(frameon=False, fontsize=10, labelcolor=INK)
    plain(axes)
    return figure
