"""Two models on the same inputs: which convolution is the first whose difference is more than rounding."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from detconv import pages
from detconv.console import progress, wrapped
from detconv.torch.calls import Call, Run, Unmatched, run
from detconv.torch.tensors import elements
from detconv.verdict.bounds import CONFIDENCE, FORMATS, Claim, half_ulp
from detconv.verdict.judge import STATUSES, Verdict, judge_problem
from detconv.verdict.problem import Problem, numbers
from detconv.verdict.record import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

# The factor by which a difference grows between two convolutions that is worth a word: activations and normalisations
# of rounded inputs stay far below.
_JUMP = 1e3


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
        different: the names of the parameters that differ: ``"weight"``, ``"bias"``, ``"stride"``, ``"padding"``,
            ``"dilation"``, ``"groups"``, ``"padding_mode"``.
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
    different: tuple[str, ...]
    input_difference: float
    output_difference: float
    ulps: float

    @property
    def same_parameters(self) -> bool:
        """Whether weight, bias and geometry are the same, to the bit."""
        return not self.different

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
        for status, wrong in (("mistake", "computes {} wrong"), ("unlikely", "probably computes {} wrong")):
            for model, name, judged in (("a", self.name_a, self.a), ("b", self.name_b, self.b)):
                if judged.status == status:
                    return f"Model {model} {wrong.format(name)}.\n\n{judged.explanation}"
            if self.b_as_a is not None and self.b_as_a.status == status:
                differ = f"{_listed(self.different)} {'differs' if len(self.different) == 1 else 'differ'}"
                return (
                    f"Each model computes {self.name} right, but not the same convolution: the {differ}. Model "
                    f"b's output, judged by model a's parameters:\n\n{self.b_as_a.explanation}"
                )
        return f"{self.name}: the models differ by no more than rounding and what came in."


@dataclass(frozen=True)
class Comparison:
    """Two models, layer by layer; ``print(comparison)`` shows it as a table.

    Attributes:
        layers: the convolutions that both models called, in the sequence of the calls.
        skipped: the calls that were not compared, with the reasons.
        output_difference: relative, of what the models returned; None where that has not the same form.
    """

    layers: tuple[Layer, ...]
    skipped: tuple[Unmatched, ...]
    output_difference: float | None

    @property
    def first_mistake(self) -> Layer | None:
        """The first convolution whose difference is more than rounding."""
        return next((layer for layer in self.layers if layer.status == "mistake"), None)

    @property
    def unlikely(self) -> tuple[Layer, ...]:
        """The convolutions whose difference is improbable for rounding, but no proven mistake."""
        return tuple(layer for layer in self.layers if layer.status == "unlikely")

    def __str__(self) -> str:
        return "\n".join(_report(self))

    def _repr_html_(self) -> str:
        return pages.fragment(_page(self))

    def plot(self) -> Figure:
        """How the difference grows from layer to layer.

        Raises:
            ImportError: matplotlib is not installed.
        """
        return _plot(self)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data: ``version``, ``first_mistake`` (the place of a layer from 0, or None),
        ``unlikely`` (places of layers), ``layers``, ``skipped``, ``output_difference``."""
        first = self.first_mistake
        return {
            "version": 1,
            "first_mistake": None if first is None else self.layers.index(first),
            "unlikely": [self.layers.index(layer) for layer in self.unlikely],
            "layers": [_layer_record(layer) for layer in self.layers],
            "skipped": [line._asdict() for line in self.skipped],
            "output_difference": None if self.output_difference is None else number(self.output_difference),
        }

    def to_json(self) -> str:
        """``to_dict`` as JSON."""
        return json.dumps(self.to_dict(), allow_nan=False)


def compare_models(
    model_a: Callable[..., Any],
    model_b: Callable[..., Any],
    inputs: Any,
    *,
    dtype: str | None = None,
    confidence: float = CONFIDENCE,
) -> Comparison:
    """Run two models on the same inputs, and judge every convolution of both.

    Each output of a convolution of two dimensions, transposed or not, is judged by the input that the call got in its
    own model: so a layer is not blamed for what came before it. Model b's outputs are judged by model a's parameters
    too, where they differ. The differences between the models show how rounding, or a mistake, grows from layer to
    layer.

    Calls are watched, whoever makes them: layers, functions, forwards of the user's own, TorchScript. A function that
    ``torch.compile`` made runs uncompiled while it is watched. What torch's dispatcher does not see, a convolution
    written in C++ or Triton say, is not met; every other convolution that cannot be judged is listed with the reason.

    The calls are matched by their sequence and their shapes, whatever their names. The models run without gradients,
    from the same state of torch's random numbers, and in the mode they are in: call ``eval()`` before where dropout and
    batch statistics should be off. They are left as they were, buffers and attributes included, and so are the inputs.
    The inputs and outputs of all convolutions are kept until the end.

    Args:
        model_a: the model to trust: a module, or a function.
        model_b: the model in question.
        inputs: what the models are called with: one argument, a tuple of them or a dict of named ones. Each model gets
            a copy, its tensors on the device of the model's first parameter.
        dtype: the format in which both claim to add; as for ``detconv.judge``.
        confidence: for each layer; as for ``detconv.judge``.

    Raises:
        TypeError: a model cannot be called.
        ValueError: no convolution is called by both; an unknown dtype, a confidence out of range.
    """
    for name, model in (("model_a", model_a), ("model_b", model_b)):
        if not callable(model):
            raise TypeError(f"{name} must be a torch.nn.Module or a function; got {type(model).__name__}")
    if dtype is not None:
        Claim.parse(dtype)
    run_a, run_b = run("a", model_a, inputs), run("b", model_b, inputs)
    pairs, alone = _matched(run_a.calls, run_b.calls)
    if not pairs:
        raise ValueError(
            "model_a and model_b must call a convolution of two dimensions with the same shapes; got "
            f"{len(run_a.calls)} and {len(run_b.calls)} calls that detconv can judge, none of which match"
            + _reasons((*run_a.skipped, *run_b.skipped))
        )

    def judged(output: Tensor, problem: Problem) -> Judged:
        return Judged.of(judge_problem(output, problem, dtype, confidence))

    layers = []
    with progress() as say:
        for a, b in pairs:
            say(f"judging {a.name}")
            layers.append(_compared(a, b, judged))
    return Comparison(tuple(layers), (*run_a.skipped, *run_b.skipped, *alone), _output_difference(run_a, run_b))


# ---- Comparing ----


def _matched(a: Sequence[Call], b: Sequence[Call]) -> tuple[list[tuple[Call, Call]], list[Unmatched]]:
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


def _compared(a: Call, b: Call, judged: Callable[[Tensor, Problem], Judged]) -> Layer:
    different = _different(a, b)
    of_b = judged(b.output, b.problem(b.input))
    try:
        crossed: Judged | None = judged(b.output, a.problem(b.input)) if different else of_b
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
        different=different,
        input_difference=_difference(a.input, b.input),
        output_difference=_difference(a.output, b.output),
        ulps=_ulps(a.output, b.output),
    )


def _different(a: Call, b: Call) -> tuple[str, ...]:
    """The names of the parameters that are not the same, to the bit."""
    names = [name for name in ("weight", "bias") if not _are_same(getattr(a, name), getattr(b, name))]
    steps = {"pad": "padding_mode"}
    names += [steps.get(name, name) for name in a.geometry if a.geometry[name] != b.geometry[name]]
    return tuple(names)


def _are_same(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return a.dtype == b.dtype and _bytes(a) == _bytes(b)


def _bytes(tensor: Tensor) -> bytes:
    return elements("tensor", tensor.detach().contiguous().view(torch.uint8)).tobytes()


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


def _output_difference(a: Run, b: Run) -> float | None:
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


_HEADS = ("layer", "output", "a", "b", "b by a's parameters", "inputs differ", "outputs differ", "factor", "ulps")


def _counted(comparison: Comparison) -> str:
    counts = {status: sum(layer.status == status for layer in comparison.layers) for status in STATUSES}
    counted = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    number = len(comparison.layers)
    return f"{number} convolution{'s' * (number != 1)} compared: {counted}"


def _rows(comparison: Comparison) -> list[tuple[str, ...]]:
    return [
        (
            layer.name,
            "x".join(map(str, layer.shape)),
            layer.a.status,
            layer.b.status,
            _by_as(layer),
            f"{layer.input_difference:.1e}",
            f"{layer.output_difference:.1e}",
            f"{layer.amplification:.3g}",
            f"{layer.ulps:.3g}",
        )
        for layer in comparison.layers
    ]


def _report(comparison: Comparison) -> Iterator[str]:
    yield _counted(comparison)
    yield ""
    rows = [_HEADS, *_rows(comparison)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
    yield ""
    yield "\n\n".join(map(wrapped, _words(comparison)))
    if comparison.skipped:
        yield ""
        yield "Not compared:"
        yield from (f"  model {line.model}: {line.name}: {line.reason}" for line in comparison.skipped)


def _page(comparison: Comparison) -> Iterator[str]:
    """The same as pieces of a page."""
    yield from pages.paragraphs("\n\n".join(_words(comparison)))
    yield from pages.table(_counted(comparison), _HEADS, _rows(comparison))
    if comparison.skipped:
        heads = ("model", "layer", "why")
        yield from pages.table("Not compared", heads, comparison.skipped)


def _words(comparison: Comparison) -> Iterator[str]:
    """What there is to say, in paragraphs: the answer, what is wrong, where the models drift apart."""
    first = comparison.first_mistake
    if comparison.output_difference is not None:
        yield f"What the models return differs by {comparison.output_difference:.1e}, relative to model a's."
    if first is None:
        yield "No convolution differs by more than rounding."
    else:
        yield f"The first convolution whose difference is more than rounding: {first.name}."
        yield from first.explain().split("\n\n")
    if comparison.unlikely:
        yield f"Improbable for rounding, though no proven mistake: {_listed([u.name for u in comparison.unlikely])}."
        if first is None:
            yield from comparison.unlikely[0].explain().split("\n\n")
    yield from _elsewhere(comparison)


def _by_as(layer: Layer) -> str:
    """What model b's output is by model a's parameters, and which of these differ."""
    if layer.same_parameters:
        return "the same"
    status = layer.b_as_a.status if layer.b_as_a else "cannot be judged"
    return f"{status} ({', '.join(layer.different)})"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _reasons(skipped: Sequence[Unmatched]) -> str:
    return "".join(f"\n  model {line.model}: {line.name}: {line.reason}" for line in skipped[:8])


def _elsewhere(comparison: Comparison) -> Iterator[str]:
    """Where the models drift apart between convolutions, before the first mistake, as no rounding of theirs does."""
    before, largest = "the inputs", 2.0**-24
    for layer in comparison.layers:
        if layer.input_difference > _JUMP * largest:
            yield (
                f"Between {before} and {layer.name} the difference grows to {layer.input_difference:.1e}, "
                f"{layer.input_difference / largest:.2g} times what it was: look at what lies between them."
            )
        if layer.status in ("mistake", "unlikely"):
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
        "different": list(layer.different),
        "input_difference": number(layer.input_difference),
        "output_difference": number(layer.output_difference),
        "amplification": number(layer.amplification),
        "ulps": number(layer.ulps),
    }


def _plot(comparison: Comparison) -> Figure:
    from detconv.drawing import BLUE, GREEN, GREY, INK, ORANGE, VERMILION, figure, plain

    layers, first = comparison.layers, comparison.first_mistake
    picture = figure(max(7.0, min(2 + 0.3 * len(layers), 24)), 5.2, layout="constrained")
    axes = picture.subplots()
    places = np.arange(len(layers))
    inputs, outputs = (
        np.array([getattr(layer, name) for layer in layers]) for name in ("input_difference", "output_difference")
    )
    both = np.concatenate([inputs, outputs])
    low, high = _drawn_between(both)
    is_equal = bool((both == 0).any())
    # What is zero or infinite has a place of its own, below and above all that is between.
    inputs, outputs = (np.clip(np.where(values == 0, low, values), low, high) for values in (inputs, outputs))
    axes.plot(places, outputs, "-", color=BLUE, linewidth=0.9, zorder=1)
    axes.plot(places, inputs, "o", markersize=4, markerfacecolor="none", color=GREY, label="inputs")
    colors = {"identical": GREEN, "rounding": GREEN, "unlikely": ORANGE, "mistake": VERMILION}
    names = {GREEN: "outputs, rounding", ORANGE: "outputs, unlikely", VERMILION: "outputs, a mistake"}
    for color, name in names.items():
        own = np.array([colors[layer.status] == color for layer in layers])
        if own.any():
            axes.plot(places[own], outputs[own], "o", markersize=6, color=color, label=name)
    axes.set_yscale("log")
    axes.set_ylim(low / 2, high * 2)
    _name_ends(axes, zero=low if is_equal else None)
    step = -(-len(layers) // 60)
    axes.set_xticks(places[::step], [layer.name for layer in layers][::step], rotation=90, fontsize=8)
    axes.set_xlabel("convolution, in the sequence of the calls", fontsize=11, color=INK)
    axes.set_ylabel("relative difference of the models", fontsize=11, color=INK)
    title = "No convolution differs by more than rounding" if first is None else f"The first mistake: {first.name}"
    axes.set_title(title, loc="left", fontsize=13, color=INK, pad=10)
    picture.legend(loc="outside lower right", frameon=False, fontsize=10, labelcolor=INK, ncols=4)
    plain(axes)
    return picture


def _drawn_between(values: NDArray[np.float64]) -> tuple[float, float]:
    """The ends of the axis: a little below the smallest difference and a little above the largest."""
    finite = values[(values > 0) & np.isfinite(values)]
    if not finite.size:
        return 1e-9, 1.0
    low, high = float(finite.min()), float(finite.max())
    return (low / 4 if (values == 0).any() else low), (high * 4 if np.isinf(values).any() else high)


def _name_ends(axes: Axes, zero: float | None) -> None:
    """Powers of ten as ticks, and a line where differences of zero are drawn."""
    from matplotlib.ticker import LogLocator, NullFormatter

    from detconv.drawing import GREY

    axes.yaxis.set_major_locator(LogLocator(numticks=8))
    axes.yaxis.set_minor_formatter(NullFormatter())
    if zero is not None:
        axes.axhline(zero, color=GREY, linewidth=0.6, linestyle=(0, (1, 3)), zorder=0)
        place: Any = {"xytext": (-2, -11), "textcoords": "offset points", "ha": "right"}
        axes.annotate("no difference", (1, zero), xycoords=("axes fraction", "data"), fontsize=8, color=GREY, **place)
