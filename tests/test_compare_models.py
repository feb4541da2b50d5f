"""``detconv.compare_models``: it blames the layer that is wrong and no other, and leaves the models as they were."""

import copy
import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import detconv
from bits import made

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402

from detconv.torch.compare import Comparison, Layer  # noqa: E402


class Net(nn.Module):
    """Convolutions of all kinds, with activations that write into what they are given."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect")
        self.norm = nn.BatchNorm2d(8)
        self.twice = nn.Conv2d(8, 8, 3, padding="same", groups=2)
        self.down = nn.Conv2d(8, 12, (3, 2), stride=(2, 1), dilation=(1, 2), bias=False)
        self.up = nn.ConvTranspose2d(12, 8, 3, stride=2, padding=1, output_padding=1, groups=2)
        self.plain = nn.ConvTranspose2d(8, 4, 2, dilation=2, bias=False)
        self.line = nn.Conv1d(4, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu_(self.norm(self.first(x)))
        x = self.twice(torch.relu_(self.twice(x)))
        x = self.plain(self.up(self.down(x).relu_()))
        return self.line(x.flatten(2))


NAMES = ["first", "twice", "twice (call 2)", "down", "up", "plain"]


def seeded(model: Any, seed: int = 1) -> Any:
    """The model with weights that are the same on every platform."""
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            parameter.copy_(torch.from_numpy(made(tuple(parameter.shape), np.float32, seed + i)) / 4)
    return model


@pytest.fixture
def net() -> Any:
    return seeded(Net()).eval()


@pytest.fixture
def x() -> Tensor:
    return torch.from_numpy(made((2, 3, 12, 13), np.float32, 99))


def changed(model: Any, change: Callable[[Any], None]) -> Any:
    other = copy.deepcopy(model)
    with torch.no_grad():
        change(other)
    return other


def wrong(comparison: Comparison) -> list[str]:
    return [layer.name for layer in comparison.layers if layer.status == "mistake"]


# ---- What it finds ----


def test_a_converted_model_differs_by_rounding(net: Any, x: Tensor) -> None:
    other, report = detconv.convert(copy.deepcopy(net), "naive products=rounded")
    assert len(report.swapped) == 5
    comparison = detconv.compare_models(net, other, x)
    assert [layer.name for layer in comparison.layers] == NAMES
    assert comparison.first_mistake is None
    assert {layer.status for layer in comparison.layers} <= {"rounding", "identical"}
    assert all(layer.same_parameters and layer.b_as_a is layer.b for layer in comparison.layers)
    first, *others = comparison.layers
    assert (first.input_difference, first.amplification) == (0, float("inf"))
    assert first.output_difference > 0
    assert all(0 < layer.output_difference < 1e-5 for layer in others)
    assert all(layer.amplification == layer.output_difference / layer.input_difference for layer in others)
    assert 0 < comparison.output_difference < 1e-5  # type: ignore[operator]
    assert {(line.model, line.name) for line in comparison.skipped} == {("a", "line"), ("b", "line")}


def test_a_model_and_itself(net: Any, x: Tensor) -> None:
    for other in (net, copy.deepcopy(net)):
        comparison = detconv.compare_models(net, other, x)
        assert len(comparison.layers) == 6
        assert comparison.output_difference == 0
        assert {(layer.output_difference, layer.amplification, layer.ulps) for layer in comparison.layers} == {
            (0, 1, 0)
        }


def flipped(model: Any, name: str) -> None:
    weight = model.get_submodule(name).weight
    weight.copy_(weight.flip(2, 3))


@pytest.mark.parametrize("name", ["first", "down", "up", "plain"])
def test_a_kernel_that_is_flipped_is_named(name: str, net: Any, x: Tensor) -> None:
    comparison = detconv.compare_models(net, changed(net, lambda model: flipped(model, name)), x)
    first = comparison.first_mistake
    assert first is not None
    assert first.name == name
    assert wrong(comparison) == [name]  # what comes later is right, for what it was given
    assert (first.a.status, first.b.status, first.b_as_a.status) == ("rounding", "rounding", "mistake")  # type: ignore[union-attr]
    assert (first.same_parameters, first.different) == (False, ("weight",))
    assert first.b_as_a.verdict.status == "mistake"  # type: ignore[union-attr]
    assert f"more than rounding: {name}." in str(comparison)
    assert "not the same convolution: the weight differs" in " ".join(str(comparison).split())


def test_a_layer_that_computes_wrongly_is_named(net: Any, x: Tensor) -> None:
    """One layer of one model rounds its arguments to bfloat16 first, as TF32 does to its own digits."""

    class Rounding(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.conv2d and args[1].shape[0] == 12:
                args = (*(t.bfloat16().float() for t in args[:2]), *args[2:])
            return func(*args, **(kwargs or {}))

    class Wrapped(nn.Module):
        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            with Rounding():
                return self.inner(x)

    comparison = detconv.compare_models(net, Wrapped(net), x)
    first = comparison.first_mistake
    assert first is not None
    assert (first.name_a, first.name_b, first.name) == ("down", "inner.down", "down / inner.down")
    assert (first.a.status, first.b.status) == ("rounding", "mistake")
    assert first.same_parameters
    assert wrong(comparison) == ["down / inner.down"]
    assert first.explain().startswith("Model b computes inner.down wrong.\n\nMistake: ")
    back = detconv.compare_models(Wrapped(net), net, x).first_mistake
    assert back is not None
    assert (back.a.status, back.b.status) == ("mistake", "rounding")
    assert back.explain().startswith("Model a computes inner.down wrong.")


@pytest.mark.parametrize("change", ["bias", "stride", "padding mode"])
def test_other_parameters(change: str, net: Any, x: Tensor) -> None:
    def do(model: Any) -> None:
        if change == "bias":
            model.twice.bias[3] += 1
        elif change == "stride":
            model.down.stride, model.down.padding = (1, 1), (0, 0)
        else:
            model.first.padding_mode = "circular"

    comparison = detconv.compare_models(net, changed(net, do), x)
    if change == "stride":  # of another shape, which has no partner
        assert [layer.name for layer in comparison.layers] == NAMES[:3]
        assert comparison.first_mistake is None
        assert comparison.output_difference is None
        alone = [(line.model, line.name) for line in comparison.skipped if "calls no layer" in line.reason]
        assert alone == [(model, name) for model in "ab" for name in NAMES[3:]]
    else:
        assert wrong(comparison) == {"bias": ["twice", "twice (call 2)"], "padding mode": ["first"]}[change]


def test_a_difference_between_the_convolutions_is_pointed_at(net: Any, x: Tensor) -> None:
    def between(model: Any) -> None:
        model.norm.eps = 0.1

    comparison = detconv.compare_models(net, changed(net, between), x)
    assert comparison.first_mistake is None
    text = " ".join(str(comparison).split())
    assert re.search(r"Between first and twice the difference grows to \S+, \S+ times what it was", text)
    assert text.count("difference grows") == 1
    converted, _ = detconv.convert(copy.deepcopy(net))
    assert "difference grows" not in str(detconv.compare_models(net, converted, x))
    end = detconv.compare_models(net, changed(net, lambda model: model.line.bias.add_(1)), x)
    assert "Behind plain the difference grows" in str(end)


def test_layers_are_matched_by_calls_and_shapes(x: Tensor) -> None:
    """Other names, a layer more, layers in another container."""
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 5, 3)]
    plain = seeded(nn.Sequential(*layers))
    other = nn.ModuleDict({"a": plain[0], "c": plain[2], "d": plain[3]})
    extra = nn.Conv2d(4, 4, 1)
    nn.init.dirac_(extra.weight)
    nn.init.zeros_(extra.bias)

    class Renamed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers, self.extra = copy.deepcopy(other), extra

        def forward(self, image: Tensor) -> Tensor:
            y = torch.relu(self.layers["a"](input=image))
            return self.layers["d"](self.extra(self.layers["c"](y)))

    comparison = detconv.compare_models(plain, Renamed(), (x,))
    assert [layer.name for layer in comparison.layers] == ["0 / layers.a", "2 / layers.c", "3 / layers.d"]
    assert comparison.first_mistake is None
    assert comparison.skipped == (("b", "extra", "model a calls no layer of its shapes there"),)
    named = detconv.compare_models(Renamed(), Renamed(), {"image": x})
    assert len(named.layers) == 4


def test_what_cannot_be_compared_is_listed(x: Tensor) -> None:
    class Own(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            return torch.relu(super().forward(input))

    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1, 4, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.conv2d(x, self.weight)

    model = seeded(nn.Sequential(nn.Conv2d(3, 4, 3), Own(4, 4, 1), nn.Conv2d(4, 4, 1), Functional()))
    model[2]._conv_forward = lambda input, weight, bias: input
    comparison = detconv.compare_models(model, model, x)
    assert [layer.name for layer in comparison.layers] == ["0", "1", "3"]  # calls are watched, not classes
    assert [tuple(line) for line in comparison.skipped if line.model == "a"] == [
        ("a", "2", "its own forward calls no convolution of torch's"),
    ]
    assert "model b: 2: its own forward calls no convolution of torch's" in str(comparison)


def test_half_and_double_models(net: Any, x: Tensor) -> None:
    class As(nn.Module):
        def __init__(self, dtype: Any) -> None:
            super().__init__()
            self.model, self.dtype = copy.deepcopy(net.twice).to(dtype), dtype

        def forward(self, x: Tensor) -> Tensor:
            return self.model(x.to(self.dtype))

    wide = torch.cat([x, x, x], 1)[:, :8]
    double = detconv.compare_models(As(torch.float32), As(torch.float64), wide)
    assert [layer.status for layer in double.layers] == ["rounding"]
    half = detconv.compare_models(As(torch.float32), As(torch.bfloat16), wide).layers[0]
    assert half.a.status == "rounding"
    assert half.b.status in ("identical", "rounding")  # right, for its own rounded weights and inputs
    assert half.b_as_a.status == "mistake"  # type: ignore[union-attr]
    assert 1e-4 < half.output_difference < 1e-1


# ---- What it leaves ----


def test_models_and_random_numbers_are_as_before(net: Any, x: Tensor) -> None:
    model = nn.Sequential(net, nn.Dropout(0.5)).train()
    model[0].norm.running_mean.fill_(0.25)
    model[0].down.weight.grad = torch.ones_like(model[0].down.weight)
    before, state = detconv.weights_sha256(model), torch.get_rng_state()
    kept, seen = x.clone().requires_grad_(), []
    model[0].down.register_forward_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    hooks = [len(module._forward_hooks) for module in model.modules()]
    comparison = detconv.compare_models(model, copy.deepcopy(model), kept)
    assert comparison.output_difference == 0  # the same elements were dropped
    assert detconv.weights_sha256(model) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(kept, x)
    assert kept.grad is None
    assert torch.equal(model[0].down.weight.grad, torch.ones_like(model[0].down.weight))
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    assert all(module.training for module in model.modules())
    assert torch.is_grad_enabled()
    assert not any(seen)


def test_hooks_are_removed_when_a_model_fails(net: Any, x: Tensor) -> None:
    failing = nn.Sequential(net, nn.Linear(7, 7))
    before = detconv.weights_sha256(net)
    with pytest.raises(RuntimeError, match="shapes"):
        detconv.compare_models(net, failing, x)
    assert not any(module._forward_hooks for module in failing.modules())
    assert detconv.weights_sha256(net) == before


def test_inputs_that_a_model_writes_into(net: Any, x: Tensor) -> None:
    model = nn.Sequential(nn.ReLU(inplace=True), net)
    kept = x.clone()
    assert detconv.compare_models(model, model, kept).output_difference == 0
    assert torch.equal(kept, x)


def test_what_other_hooks_change_is_no_mistake_of_the_layer(net: Any, x: Tensor) -> None:
    net.twice.register_forward_hook(lambda module, args, output: output * 2)
    net.down.register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    assert detconv.compare_models(net, net, x).first_mistake is None


def test_parametrized_weights(net: Any, x: Tensor) -> None:
    torch.nn.utils.parametrizations.spectral_norm(net.down)
    net.train()
    before = detconv.weights_sha256(net)
    comparison = detconv.compare_models(net, net, x)
    assert comparison.first_mistake is None
    assert "down" in [layer.name for layer in comparison.layers]
    assert detconv.weights_sha256(net) == before


# ---- The report ----


def test_the_report_as_text_json_and_picture(net: Any, x: Tensor) -> None:
    pytest.importorskip("matplotlib")
    comparison = detconv.compare_models(net, changed(net, lambda model: flipped(model, "down")), x)
    lines = str(comparison).splitlines()
    assert lines[0] == "6 convolutions compared: 5 rounding, 1 mistake"
    table = [line.split()[0] for line in lines[3:9]]
    assert table == ["first", "twice", "twice", "down", "up", "plain"]
    record = json.loads(comparison.to_json())
    assert record["first_mistake"] == 3
    assert [layer["name_a"] for layer in record["layers"]] == NAMES
    assert [layer["status"] for layer in record["layers"]] == [layer.status for layer in comparison.layers]
    assert record["layers"][3]["amplification"] == "inf"
    assert record["layers"][3]["b_as_a"]["explanation"] == comparison.first_mistake.b_as_a.explanation  # type: ignore[union-attr]
    figure = comparison.plot()
    figure.canvas.draw()
    (axes,) = figure.axes
    assert axes.get_title(loc="left") == "The first mistake: down"
    assert [text.get_text() for text in axes.get_xticklabels()] == NAMES
    figure = detconv.compare_models(net, net, x).plot()
    figure.canvas.draw()
    assert figure.axes[0].get_title(loc="left") == "No convolution differs by more than rounding"


def test_verdicts_are_kept_where_they_are_wanted(net: Any, x: Tensor) -> None:
    comparison = detconv.compare_models(net, changed(net, lambda model: flipped(model, "down")), x)

    def kept(layer: Layer) -> list[bool]:
        return [side.verdict is not None for side in (layer.a, layer.b, layer.b_as_a) if side is not None]

    assert [kept(layer) for layer in comparison.layers] == [[False, False, name == "down"] for name in NAMES]


# ---- Bad use ----


def test_bad_use(net: Any, x: Tensor) -> None:
    for models, name in (((net, "net"), "model_b"), ((net.state_dict(), net), "model_a")):
        with pytest.raises(TypeError, match=f"{name} must be a torch.nn.Module or a function; got"):
            detconv.compare_models(*models, x)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="dtype must be ACCUMULATOR or PRODUCTS/ACCUMULATOR"):
        detconv.compare_models(net, net, x, dtype="int8")
    with pytest.raises(ValueError, match="confidence must be"):
        detconv.compare_models(net, net, x, confidence=1)
    with pytest.raises(ValueError, match="must call a convolution of two dimensions with the same shapes; got 0 and 0"):
        detconv.compare_models(nn.ReLU(), nn.ReLU(), x)
