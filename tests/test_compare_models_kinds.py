"""detconv.compare_models watches calls: models of every kind are compared, and left as they were."""

from __future__ import annotations

import collections
import copy
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

import detconv
from bits import made

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402
from torch.nn import functional  # noqa: E402

import detconv.nn  # noqa: E402
from detconv.torch.compare import Comparison  # noqa: E402
from detconv.verdict.bounds import FORMATS, rounded  # noqa: E402


def seeded(model: Any, seed: int = 1) -> Any:
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            parameter.copy_(torch.from_numpy(made(tuple(parameter.shape), np.float32, seed + i)) / 4)
    return model.eval()


@pytest.fixture
def x() -> Tensor:
    return torch.from_numpy(made((2, 3, 12, 13), np.float32, 99))


def plain() -> Any:
    layers = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 5, 3, stride=2), nn.ConvTranspose2d(5, 2, 3)
    return seeded(nn.Sequential(*layers))


# ---- Whoever calls ----


class Functional(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.weights = nn.ParameterList(model.parameters())

    def forward(self, x: Tensor) -> Tensor:
        a, b, c, d, e, f = self.weights
        x = torch.relu(functional.conv2d(x, a, b, padding=1))
        return functional.conv_transpose2d(torch.conv2d(x, c, d, 2), e, f)


class OwnForward(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return functional.conv2d(input, self.weight, self.bias, self.stride, self.padding)


class ByForward(nn.Module):
    """Its layers are called past their hooks."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.inner = model

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.inner:
            x = layer.forward(x)
        return x


def own_forwards(model: Any) -> Any:
    model = copy.deepcopy(model)
    model[0].__class__ = model[2].__class__ = OwnForward
    return model


KINDS: dict[str, Callable[[Any], Any]] = {
    "functional": Functional,
    "own forward": own_forwards,
    "called by forward": ByForward,
    "function": lambda model: lambda x: model(x),
    "functional_call": lambda model: functools.partial(
        torch.func.functional_call, model, dict(model.named_parameters())
    ),
    "script": torch.jit.script,
    "traced": lambda model: torch.jit.trace(model, torch.ones(2, 3, 12, 13)),
    "vmapped": lambda model: lambda x: torch.vmap(model)(x),
    "converted": lambda model: detconv.convert(copy.deepcopy(model), "naive products=rounded")[0],
    "converted, called by forward": lambda model: ByForward(detconv.convert(copy.deepcopy(model), "exact")[0]),
    "override": lambda model: lambda x: _overridden(model, x),
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "compiled, converted": lambda model: torch.compile(detconv.convert(copy.deepcopy(model))[0], backend="aot_eager"),
}


def _overridden(model: Any, x: Tensor) -> Tensor:
    with detconv.override(summation="exact"):
        y: Tensor = model(x)
    return y


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", KINDS)
def test_every_call_is_compared(name: str, x: Tensor) -> None:
    model = plain()
    try:
        comparison = detconv.compare_models(model, KINDS[name](model), x)
        assert [layer.kind for layer in comparison.layers] == ["Conv2d", "Conv2d", "ConvTranspose2d"]
        assert comparison.first_mistake is None
        assert comparison.skipped == ()
        assert all(layer.different == () or layer.b_as_a is not None for layer in comparison.layers)
        wrong = plain()
        with torch.no_grad():
            wrong[2].weight.copy_(wrong[2].weight.flip(2, 3))
        first = detconv.compare_models(model, KINDS[name](wrong), x).first_mistake
    finally:
        torch.compiler.reset()
    assert first is not None
    assert first.name_a == "2"
    assert "weight" in first.different


def test_a_wrong_call_is_a_mistake_whoever_makes_it(x: Tensor) -> None:
    """The convolution is right at the dispatcher, but is not what the layer's arguments ask for."""
    model, other = plain(), plain()
    other[3].stride, other[3].dilation = (1, 1), (1, 1)
    weight = other[3].weight
    other[3].forward = lambda input: functional.conv_transpose2d(input, weight.flip(2), other[3].bias)
    first = detconv.compare_models(model, other, x).first_mistake
    assert first is not None
    assert (first.kind, first.different) == ("ConvTranspose2d", ("weight",))


@pytest.mark.parametrize("change", ["stride", "dilation", "padding", "groups", "bias", "weight", "padding_mode"])
def test_what_differs_is_named(change: str) -> None:
    x = torch.from_numpy(made((2, 4, 9, 9), np.float32, 3))
    options: dict[str, Any] = {"padding": 1}
    a = seeded(nn.Conv2d(4, 4, 3, **options))
    b = copy.deepcopy(a)
    with torch.no_grad():
        if change == "bias":
            b.bias[1] += 1
        elif change == "weight":
            b.weight[1] *= 2
        elif change == "groups":
            b.groups, b.weight = 2, nn.Parameter(b.weight[:, :2].clone())
            a.weight = nn.Parameter(b.weight.clone())
            a = nn.Sequential(seeded(nn.Conv2d(2, 4, 3, **options)))
            b = nn.Sequential(seeded(nn.Conv2d(2, 4, 3, **options)))
            b[0].groups, x = 1, x[:, :2]
        elif change == "padding_mode":
            b.padding_mode = "circular"
        elif change == "padding":
            a.padding, b.padding = (1, 1), (2, 1)
            x = x[..., :1, :]
            b.stride = a.stride = (3, 1)
        elif change == "dilation":
            a.padding, b.padding, b.dilation = (1, 1), (2, 2), (2, 2)
        else:
            a.stride = b.stride = (9, 9)
            b.stride = (8, 9)
            a.padding = b.padding = (0, 0)
    comparison = detconv.compare_models(a, b, x)
    assert len(comparison.layers) == 1
    layer = comparison.layers[0]
    if change == "groups":
        assert layer.different == ()
    else:
        assert change in layer.different
        assert f"({', '.join(layer.different)})" in str(comparison)


class Others(nn.Module):
    """Convolutions that detconv cannot judge, and one that it can."""

    def __init__(self) -> None:
        super().__init__()
        self.good = nn.Conv2d(3, 4, 3)
        self.one = nn.Conv1d(3, 4, 3)
        self.three = nn.ConvTranspose3d(3, 4, 3)
        self.complex = nn.Conv2d(3, 4, 3, dtype=torch.complex64)

    def forward(self, x: Tensor) -> Tensor:
        self.one.forward(x[:, :, 0])
        self.one(x[:, :, 0])
        self.three(x[:, :, None])
        self.complex(x.to(torch.complex64))
        torch.conv_tbc(x[0], torch.ones(2, 13, 4), torch.zeros(4))
        y: Tensor = self.good(x)
        return y


def test_every_call_that_cannot_be_judged_is_listed_with_the_reason(x: Tensor) -> None:
    comparison = detconv.compare_models(Others(), Others(), x)
    assert [layer.name for layer in comparison.layers] == ["good"]
    listed = [(line.name, line.reason) for line in comparison.skipped if line.model == "a"]
    assert listed == [
        ("one", "detconv has convolutions of two dimensions only"),
        ("one (call 2)", "detconv has convolutions of two dimensions only"),
        ("three", "detconv has convolutions of two dimensions only"),
        ("complex", "it has arrays of torch.complex64"),
        ("(the model)", "it calls aten::conv_tbc, which detconv does not know"),
    ]
    with pytest.raises(
        ValueError, match=r"got 0 and 0 calls .*\n  model a: \(the model\): detconv has convolutions of"
    ):
        detconv.compare_models(nn.Conv1d(3, 4, 3), nn.Conv1d(3, 4, 3), x[:, :, 0])


# ---- What it leaves ----


class Counting(nn.Module):
    """Changes a buffer in place, replaces another, and counts in an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.calls = 0
        self.seen: list[int] = []
        self.register_buffer("n", torch.zeros(()))
        self.register_buffer("total", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        self.n = self.n + 1
        self.total += 1
        self.calls += 1
        self.mean = x.mean()
        y: Tensor = self.conv(x) * self.n
        return y


def test_buffers_and_attributes_that_a_model_replaces(x: Tensor) -> None:
    model = seeded(nn.Sequential(Counting()))
    n, total, keys = model[0].n, model[0].total, list(vars(model[0]))
    detconv.compare_models(model, copy.deepcopy(model), x)
    assert model[0].n is n
    assert model[0].total is total
    assert (float(n), total.tolist(), model[0].calls) == (0, [0] * 4, 0)
    assert list(vars(model[0])) == keys


class Pair(NamedTuple):
    image: Any
    scale: Any


@dataclasses.dataclass
class Record:
    image: Any
    others: list[Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    image: Any


class Plain:
    def __init__(self, image: Any) -> None:
        self.image = image
        self.me = self  # a circle


HOLDERS: dict[str, Callable[[Any], Any]] = {
    "list": lambda t: [t],
    "nested tuple": lambda t: [(t, (t,))],
    "dict": lambda t: [{"image": t}],
    "namedtuple": lambda t: [Pair(t, 2)],
    "dataclass": lambda t: [Record(t, [t])],
    "frozen dataclass": lambda t: [Frozen(t)],
    "UserDict": lambda t: [collections.UserDict(image=t)],
    "UserList": lambda t: collections.UserList([t]),
    "OrderedDict": lambda t: [collections.OrderedDict(image=t)],
    "defaultdict": lambda t: [collections.defaultdict(list, image=t)],
    "object": lambda t: [Plain(t)],
    "deque": lambda t: [Record(t, [collections.deque([t])])],
}


def tensors_in(value: Any, seen: set[int]) -> list[Any]:
    if isinstance(value, Tensor):
        return [value]
    if id(value) in seen or isinstance(value, str):
        return []
    seen.add(id(value))
    parts: list[Any] = []
    if isinstance(value, dict | collections.UserDict):
        parts = list(value.values())
    elif isinstance(value, list | tuple | collections.UserList | collections.deque):
        parts = list(value)
    elif dataclasses.is_dataclass(value):
        parts = [getattr(value, field.name) for field in dataclasses.fields(value)]
    elif hasattr(value, "__dict__"):
        parts = list(vars(value).values())
    return [tensor for part in parts for tensor in tensors_in(part, seen)]


class Vandal(nn.Module):
    """Writes into every tensor that it is given, wherever that is."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, holder: Any) -> Tensor:
        found = tensors_in(holder, set())
        image = found[0].clone()
        for tensor in found:
            tensor.fill_(-1)
        y: Tensor = self.conv(image)
        return y


@pytest.mark.parametrize("name", HOLDERS)
def test_the_callers_tensors_are_left_alone(name: str, x: Tensor) -> None:
    model = seeded(Vandal())
    tensor = x.clone()
    holder = HOLDERS[name](tensor)
    comparison = detconv.compare_models(model, model, (holder,))
    assert comparison.output_difference == 0
    assert torch.equal(tensor, x)
    assert tensors_in(holder, set())[0] is tensor


def test_the_report_as_plain_data(x: Tensor) -> None:
    other = plain()
    with torch.no_grad():
        other[0].bias += 1
    comparison: Comparison = detconv.compare_models(plain(), other, x)
    record = comparison.to_dict()
    assert (record["version"], record["first_mistake"], record["unlikely"]) == (1, 0, [])
    assert record["layers"][0]["different"] == ["bias"]
    assert "the bias differs" in " ".join(str(comparison).split())
    html = comparison._repr_html_()
    assert html.count("<table>") == 1
    assert "the bias differs" in html
    with_others = detconv.compare_models(Others(), Others(), x)._repr_html_()
    assert "aten::conv_tbc, which detconv does not know" in with_others


def test_the_report_of_convert_as_plain_data_and_as_a_page() -> None:
    _, report = detconv.convert(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv1d(3, 4, 3)), "exact")
    assert report.to_dict() == {
        "version": 1,
        "swapped": [{"names": ["0"], "layer": "Conv2d", "note": "detconv.nn.Conv2d, exact"}],
        "skipped": [{"names": ["1"], "layer": "Conv1d", "note": "detconv has convolutions of two dimensions only"}],
    }
    html = report._repr_html_()
    assert "1 swapped, 1 skipped" in html
    assert "detconv.nn.Conv2d, exact" in html


# ---- Unlikely layers ----


@pytest.mark.parametrize("which", [0, 1])
def test_rounded_operands_are_unlikely_and_no_mistake(which: int) -> None:
    """A layer of long sums whose operands one model rounds to TF32, beside another that is computed as it should be."""

    class Rounding(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.conv2d and args[1].shape[1] == 6000:
                coarse = (rounded(t.detach().numpy(), FORMATS["tf32"]) for t in args[:2])
                args = (*map(torch.from_numpy, coarse), *args[2:])
            return func(*args, **(kwargs or {}))

    net = seeded(nn.Sequential(nn.Conv2d(4, 6000, 1, bias=False), nn.Conv2d(6000, 8, 1, bias=False)))

    class Coarse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = net

        def forward(self, x: Tensor) -> Any:
            with Rounding():
                return self.inner(x)

    models: list[Any] = [net, net]
    models[which] = Coarse()
    x = torch.from_numpy(made((1, 4, 4, 4), np.float32, 5))
    comparison = detconv.compare_models(*models, x)
    assert comparison.first_mistake is None
    assert [layer.shape for layer in comparison.unlikely] == [(1, 8, 4, 4)]
    layer = comparison.unlikely[0]
    side, other = (layer.a, layer.b) if which == 0 else (layer.b, layer.a)
    assert (side.status, other.status) == ("unlikely", "rounding")
    assert side.counts["mistake"] == 0
    assert side.verdict is not None
    assert side.verdict.together.coarse is not None
    assert "Improbable for rounding, though no proven mistake: " in str(comparison)
    assert (comparison.to_dict()["first_mistake"], comparison.to_dict()["unlikely"]) == (None, [1])
