"""detconv.convert: every convolution of a model is swapped or reported, and nothing that hangs on it is lost."""

from __future__ import annotations

import copy
import io
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import detconv
from bits import made

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn.utils import parametrizations, parametrize, prune  # noqa: E402

import detconv.nn  # noqa: E402
from detconv.torch.convert import Report  # noqa: E402


def image(channels: int = 3) -> Any:
    return torch.from_numpy(made((2, channels, 6, 6), np.float32, 1))


def expected(layer: Any, x: Any, summation: str) -> Any:
    """What a plain layer gives with detconv's sums."""
    with detconv.override(summation=summation, strict=True):
        return copy.deepcopy(layer)(x)


def swapped_names(report: Report) -> list[str]:
    return [name for line in report.swapped for name in line.names]


def skipped_notes(report: Report) -> dict[str, str]:
    return {name: line.note for line in report.skipped for name in line.names}


# What is swapped ------------------------------------------------------------------------------------------------------


def test_a_model() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Sequential(nn.ConvTranspose2d(4, 2, 2)), nn.Flatten())
    before, weights = expected(model, image(), "exact"), dict(model.named_parameters())
    same, report = detconv.convert(model, "exact")
    assert same is model
    assert isinstance(model[0], detconv.nn.Conv2d)
    assert isinstance(model[2][0], detconv.nn.ConvTranspose2d)
    assert all(weights[name] is parameter for name, parameter in model.named_parameters())
    assert torch.equal(model(image()), before)
    assert (swapped_names(report), report.skipped) == (["0", "2.0"], ())
    assert str(report).splitlines() == [
        "2 swapped, 0 skipped",
        "swapped  0    Conv2d           detconv.nn.Conv2d, exact",
        "swapped  2.0  ConvTranspose2d  detconv.nn.ConvTranspose2d, exact",
    ]


def test_the_root_module() -> None:
    layer = nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular")
    before = expected(layer, image(), "pairwise")
    same, report = detconv.convert(layer)
    assert same is layer
    assert torch.equal(layer(image()), before)
    assert "(the model)" in str(report)


def test_shared_modules_and_tied_weights() -> None:
    model = nn.ModuleDict({"a": nn.Conv2d(3, 3, 3, padding=1), "b": nn.Conv2d(3, 3, 3, padding=1)})
    model["again"] = model["a"]
    model["b"].weight = model["a"].weight
    held = [model["a"]]
    _, report = detconv.convert(model)
    assert [line.names for line in report.swapped] == [("a", "again"), ("b",)]
    assert model["a"] is model["again"] is held[0]
    assert model["a"].weight is model["b"].weight
    assert "a (also again)" in str(report)


def test_hooks_and_optimizers_survive() -> None:
    layer, seen = nn.Conv2d(3, 4, 3), []
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    layer.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    layer.register_forward_hook(lambda module, args, kwargs, output: seen.append("forward"), with_kwargs=True)
    layer.register_full_backward_hook(lambda module, grad_input, grad_output: seen.append("backward"))
    layer.register_state_dict_post_hook(lambda module, state, prefix, metadata: seen.append("state_dict"))
    detconv.convert(layer)
    output = layer(image().requires_grad_())
    assert torch.equal(output, detconv.conv2d(image() * 2, layer.weight, layer.bias))
    before = layer.weight.detach().clone()
    output.sum().backward()
    optimizer.step()
    layer.state_dict()
    assert seen == ["forward", "backward", "state_dict"]
    assert not torch.equal(layer.weight, before)


class Doubled(nn.Module):
    def forward(self, weight: Any) -> Any:
        return weight * 2


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize(
    "change",
    [
        lambda layer: parametrize.register_parametrization(layer, "weight", Doubled()),
        lambda layer: parametrizations.weight_norm(layer),
        lambda layer: parametrizations.spectral_norm(layer).eval(),
        lambda layer: nn.utils.weight_norm(layer),
        lambda layer: prune.random_unstructured(layer, "weight", 0.5),
    ],
)
def test_what_makes_the_weight_survives(change: Callable[[Any], Any]) -> None:
    layer = nn.Conv2d(3, 4, 3)
    change(layer)
    with torch.no_grad():
        layer(image())  # weight_norm and pruning make the weight when the layer is called
    names, weight = list(layer.state_dict()), layer.weight.detach().clone()
    _, report = detconv.convert(layer, "kahan", strict=True)
    assert len(report.swapped) == 1
    assert isinstance(layer, detconv.nn.Conv2d)
    assert list(layer.state_dict()) == names
    output = layer(image())
    assert torch.equal(output, detconv.conv2d(image(), weight, layer.bias, summation="kahan"))
    output.sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())


def test_a_parametrization_can_be_removed_and_added_afterwards() -> None:
    layer = nn.Conv2d(3, 4, 3)
    parametrize.register_parametrization(layer, "weight", Doubled())
    detconv.convert(layer, "exact")
    output = layer(image())
    parametrize.remove_parametrizations(layer, "weight")
    assert repr(layer) == "Conv2d(3, 4, kernel_size=(3, 3), stride=(1, 1), summation='exact')"
    assert torch.equal(layer(image()), output)
    parametrize.register_parametrization(layer, "weight", Doubled())
    assert torch.equal(layer(image()), detconv.conv2d(image(), layer.weight, layer.bias, summation="exact"))


class Named(nn.Conv2d):
    def colour(self) -> str:
        return "blue"


def test_a_subclass_without_a_forward_stays_one() -> None:
    layer = Named(3, 4, 3)
    detconv.convert(layer, "exact")
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for same in (layer, copy.deepcopy(layer), torch.load(file, weights_only=False)):
        assert isinstance(same, Named)
        assert isinstance(same, detconv.nn.Conv2d)
        assert same.colour() == "blue"
        assert repr(same) == "Named(3, 4, kernel_size=(3, 3), stride=(1, 1), summation='exact')"
        assert torch.equal(same(image()), detconv.conv2d(image(), layer.weight, layer.bias, summation="exact"))


def test_a_converted_model_can_be_converted_again_copied_and_saved() -> None:
    model, _ = detconv.convert(nn.Sequential(nn.Conv2d(3, 4, 3)), "exact")
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        _, report = detconv.convert(other, "naive", strict=True)
        assert other[0].summation == "naive"
        assert report.swapped[0].note == "detconv.nn.Conv2d, naive"
    assert model[0].summation == "exact"


def test_a_compiled_model() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    compiled = torch.compile(model, backend="aot_eager")
    try:
        compiled(image())
        detconv.convert(compiled, "exact", strict=True)
        assert torch.equal(compiled(image()), detconv.conv2d(image(), *model[0].parameters(), summation="exact"))
    finally:
        torch.compiler.reset()


# What is not ----------------------------------------------------------------------------------------------------------


class Scaled(nn.Conv2d):
    def forward(self, x: Any) -> Any:
        return super().forward(x) * 2


class Calls(nn.Module):
    def forward(self, x: Any, weight: Any) -> Any:
        return [nn.functional.conv2d(row, weight) for row in x]


class Owns(nn.Module):
    """Its forward names a submodule, not a function; and detconv's own function is none to replace."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1d = nn.Identity()

    def forward(self, x: Any) -> Any:
        return detconv.conv2d(self.conv1d(x), x)


def replaced() -> Any:
    layer = nn.Conv2d(1, 1, 1)
    layer.forward = lambda x: x
    return layer


NOT_SWAPPED: dict[str, tuple[Callable[[], Any], str]] = {
    "one": (lambda: nn.Conv1d(1, 1, 1), "two dimensions"),
    "three": (lambda: nn.ConvTranspose3d(1, 1, 1), "two dimensions"),
    "lazy": (lambda: nn.LazyConv2d(1, 1), "lazy"),
    "lazy_three": (lambda: nn.LazyConv3d(1, 1), "two dimensions"),
    "complex": (lambda: nn.Conv2d(1, 1, 1, dtype=torch.complex64), "torch.complex64"),
    "scaled": (lambda: Scaled(1, 1, 1), "own forward.*override"),
    "replaced": (replaced, "own forward"),
    "calls": (Calls, "calls conv2d.*override"),
    "script": (lambda: torch.jit.script(nn.Conv2d(1, 1, 1)), "TorchScript"),
    "quantized": (lambda: torch.ao.nn.quantized.Conv2d(1, 1, 1), "quantized"),
    "qat": (lambda: torch.ao.nn.qat.Conv2d(1, 1, 1, qconfig=torch.ao.quantization.default_qat_qconfig), "quantized"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*quantize:UserWarning", "ignore:.*Lazy:UserWarning")
@pytest.mark.parametrize("name", NOT_SWAPPED)
def test_what_is_not_swapped_is_reported(name: str) -> None:
    make, reason = NOT_SWAPPED[name]
    model = nn.ModuleDict({"good": nn.Conv2d(1, 1, 1), name: make(), "other": nn.Linear(1, 1), "owns": Owns()})
    kind = type(model[name])
    with pytest.raises(ValueError, match=rf"(?s)^model must have only convolutions that.*{name}.*{reason}"):
        detconv.convert(model, strict=True)
    assert type(model["good"]) is nn.Conv2d  # strict changes all or nothing
    _, report = detconv.convert(model, strict=True, filter_fn=lambda module, fqn: fqn == "good")
    assert skipped_notes(report) == {name: "filter_fn left it out"}
    _, report = detconv.convert(model)
    assert swapped_names(report) == ["good"]
    assert list(skipped_notes(report)) == [name]
    assert re.search(reason, skipped_notes(report)[name])
    assert type(model[name]) is kind
    assert str(report).startswith("1 swapped, 1 skipped\n")


def test_filter_fn_sees_every_convolution_with_its_name() -> None:
    model, seen = (
        nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Sequential(nn.Conv2d(1, 1, 1), nn.Conv1d(1, 1, 1))),
        [],
    )

    def filter_fn(module: Any, name: str) -> bool:
        seen.append((module, name))
        return name == "2.0"

    _, report = detconv.convert(model, filter_fn=filter_fn)
    assert seen == [(model[0], "0"), (model[2][0], "2.0"), (model[2][1], "2.1")]
    assert swapped_names(report) == ["2.0"]
    assert skipped_notes(report) == dict.fromkeys(["0", "2.1"], "filter_fn left it out")
    assert type(model[0]) is nn.Conv2d


def test_a_model_without_convolutions() -> None:
    _, report = detconv.convert(nn.Linear(1, 1), strict=True)
    assert str(report) == "0 swapped, 0 skipped"


def test_bad_input() -> None:
    with pytest.raises(TypeError, match=r"^model must be a torch\.nn\.Module; got OrderedDict"):
        detconv.convert(nn.Conv2d(1, 1, 1).state_dict())
    layer = nn.Conv2d(1, 1, 1)
    for wrong, error in [("sloppy", ValueError), (None, TypeError)]:
        with pytest.raises(error, match="summation"):
            detconv.convert(layer, wrong)
    assert type(layer) is nn.Conv2d
