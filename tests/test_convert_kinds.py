"""detconv.convert and what people make of layers: subclasses, metaclasses, clones, pickles, forwards of all kinds."""

from __future__ import annotations

import abc
import copy
import functools
import io
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import detconv
from bits import made

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402
from torch.nn.functional import conv2d as renamed  # noqa: E402
from torch.nn.utils import parametrizations  # noqa: E402

import detconv.nn  # noqa: E402

SUMMATIONS = ("pairwise", "exact", "kahan", "naive order=kh,kw,c products=rounded", "25x(+1){f0} bias")


def image(channels: int = 3) -> Any:
    return torch.from_numpy(made((2, channels, 6, 6), np.float32, 1))


def saved_and_loaded(value: Any, **options: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, **options)


# A class that the user calls again -----------------------------------------------------------------------------------


class Clonable(nn.Conv2d):
    def clone(self) -> Any:
        other = type(self)(self.in_channels, self.out_channels, self.kernel_size)
        other.load_state_dict(self.state_dict())
        return other


class Short(nn.ConvTranspose2d):
    """Its constructor takes other arguments than torch's."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels + 1, 3)

    def clone(self) -> Any:
        other = type(self)(self.in_channels)
        other.load_state_dict(self.state_dict())
        return other


def plain_clone(layer: Any) -> Any:
    other = type(layer)(layer.in_channels, layer.out_channels, layer.kernel_size)
    other.load_state_dict(layer.state_dict())
    return other


CLONES: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "Conv2d": (lambda: nn.Conv2d(3, 4, 3), plain_clone),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(3, 4, 3), plain_clone),
    "subclass": (lambda: Clonable(3, 4, 3), Clonable.clone),
    "constructor": (lambda: Short(3), Short.clone),
}


@pytest.mark.parametrize("summation", SUMMATIONS[:4])
@pytest.mark.parametrize("name", CLONES)
def test_a_clone_has_the_same_bits(name: str, summation: str) -> None:
    make, clone = CLONES[name]
    layer = make()
    plain = type(layer)
    detconv.convert(layer, summation)
    other = clone(layer)
    assert other.summation == layer.summation == summation
    assert torch.equal(other(image()), layer(image()))
    again = clone(detconv.convert(other, "naive")[0])
    assert again.summation == "naive"
    assert torch.equal(again(image()), other(image()))
    for kind in (plain, detconv.nn.Conv2d, detconv.nn.ConvTranspose2d):  # nothing that other layers use has changed
        assert getattr(kind, "_made_of", None) is None


@pytest.mark.parametrize("summation", SUMMATIONS[:4])
@pytest.mark.parametrize("name", CLONES)
def test_pickles_and_copies_of_any_class(name: str, summation: str) -> None:
    layer = CLONES[name][0]()
    detconv.convert(layer, summation)
    others = [copy.copy(layer), copy.deepcopy(layer), saved_and_loaded(layer, weights_only=False)]
    others += [pickle.loads(pickle.dumps(layer, protocol)) for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1)]
    for other in others:
        assert type(other) is type(layer)
        assert other.summation == summation
        assert torch.equal(other(image()), layer(image()))


def test_a_layer_that_an_older_release_pickled() -> None:
    from detconv.torch.convert import _new

    layer, _ = detconv.convert(Clonable(3, 4, 3))
    old = _new(Clonable, detconv.nn.Conv2d)
    vars(old).update(vars(layer))
    assert isinstance(old, Clonable)
    assert torch.equal(old(image()), layer(image()))


class Secretive(nn.Conv2d):
    """Its state leaves something out, which it makes again."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.handle = lambda: "cannot be pickled"

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "handle"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.handle = lambda: "made again"


def test_the_state_that_a_subclass_pickles_is_its_own() -> None:
    layer, _ = detconv.convert(Secretive(3, 4, 3), "exact")
    for other in (pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer), saved_and_loaded(layer, weights_only=False)):
        assert other.handle() == "made again"
        assert torch.equal(other(image()), layer(image()))


def test_a_parametrized_layer_is_no_more_pickled_than_torchs() -> None:
    for kind in (nn.Conv2d, Clonable):
        layer = parametrizations.weight_norm(kind(3, 4, 3))
        detconv.convert(layer, "exact")
        with pytest.raises(RuntimeError, match="state_dict"):
            pickle.dumps(layer)
        other = copy.deepcopy(layer)
        assert torch.equal(other(image()), layer(image()))


# Classes that watch how they are made ---------------------------------------------------------------------------------

REGISTERED: list[str] = []


class Registering(nn.Conv2d):
    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        REGISTERED.append(cls.__name__)


class Registered(Registering):
    pass


class Demanding(nn.Conv2d):
    def __init_subclass__(cls, *, colour: str, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.colour = colour


class Blue(Demanding, colour="blue"):
    pass


class Abstract(nn.Conv2d, metaclass=abc.ABCMeta):
    pass


class Meta(type):
    pass


class OfMeta(nn.Conv2d, metaclass=Meta):
    pass


@pytest.mark.parametrize("kind", [Registered, Blue, Abstract, OfMeta])
def test_a_subclass_is_not_made_again(kind: Any) -> None:
    before = list(REGISTERED)
    model = nn.Sequential(nn.Conv2d(3, 3, 1), kind(3, 4, 3))
    detconv.convert(model, "exact", strict=True)
    assert before == REGISTERED
    assert isinstance(model[1], kind)
    assert isinstance(type(model[1]), type(kind))
    for other in (model[1], copy.deepcopy(model[1]), pickle.loads(pickle.dumps(model[1]))):
        assert torch.equal(other(image()), detconv.conv2d(image(), *model[1].parameters(), summation="exact"))


def test_what_a_user_derives_from_a_converted_class_is_the_users() -> None:
    layer, _ = detconv.convert(Registered(3, 4, 3), "exact")
    before = list(REGISTERED)

    class Derived(type(layer)):  # type: ignore[misc]
        pass

    assert [*before, "Derived"] == REGISTERED
    assert Derived(3, 4, 3).summation == "exact"


class Slotted(nn.Conv2d):
    """Instances have a place for an attribute of their own, so no other class fits them."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "__class__":
            raise TypeError("this layer keeps its class")
        super().__setattr__(name, value)


def test_a_model_is_converted_wholly_or_not_at_all() -> None:
    mine = detconv.nn.Conv2d(3, 3, 1, summation="kahan")
    model = nn.Sequential(nn.Conv2d(3, 3, 1), mine, Slotted(3, 3, 1), nn.Conv2d(3, 3, 1))
    kinds, state = [type(layer) for layer in model], [dict(vars(layer)) for layer in model]
    with pytest.raises(TypeError, match="keeps its class"):
        detconv.convert(model, "exact")
    assert [type(layer) for layer in model] == kinds
    assert [list(vars(layer).items()) for layer in model] == [list(attributes.items()) for attributes in state]
    assert mine.summation == "kahan"


# Forwards -------------------------------------------------------------------------------------------------------------


class ByPartialMethod(nn.Module):
    def run(self, weight: Any, x: Any) -> Any:
        return functional.conv2d(x, weight)

    forward = functools.partialmethod(run, torch.ones(1, 1, 1, 1))


class BesideAnAttribute(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv2d = nn.Conv2d(1, 1, 1)

    def forward(self, x: Any) -> Any:
        return functional.conv2d(self.conv2d(x), self.conv2d.weight)


class ByMethod(nn.Module):
    def forward(self, x: Any) -> Any:
        return self.helper(x)

    def helper(self, x: Any) -> Any:
        return torch.conv2d(x, x)


def helper(x: Any) -> Any:
    return functional.conv_transpose2d(x, x)


class ByFunction(nn.Module):
    def forward(self, x: Any) -> Any:
        return [helper(row) for row in x]


class ByAnotherName(nn.Module):
    def forward(self, x: Any) -> Any:
        return renamed(x, x)


class ByParent(ByMethod):
    def forward(self, x: Any) -> Any:
        return super().forward(x) * 2


class ByDecorated(nn.Module):
    @torch.no_grad()
    def forward(self, x: Any) -> Any:
        return functional.conv2d(x, x)


class ByNested(nn.Module):
    def forward(self, x: Any) -> Any:
        def one(row: Any) -> Any:
            return torch.ops.aten.conv2d(row, row)

        return list(map(one, x))


def by_instance() -> nn.Module:
    module = nn.Identity()
    module = type("Bare", (nn.Module,), {})()
    module.forward = lambda x: functional.conv2d(x, x)  # type: ignore[method-assign]
    return module


CALLING: dict[str, Callable[[], nn.Module]] = {
    "partial_method": ByPartialMethod,
    "attribute": BesideAnAttribute,
    "method": ByMethod,
    "function": ByFunction,
    "another_name": ByAnotherName,
    "parent": ByParent,
    "decorated": ByDecorated,
    "nested": ByNested,
    "instance": by_instance,
}


@pytest.mark.parametrize("name", CALLING)
def test_a_forward_that_calls_torchs_function_is_listed(name: str) -> None:
    model = nn.ModuleDict({name: CALLING[name]()})
    _, report = detconv.convert(model)
    notes = {line.names[0]: line.note for line in report.skipped}
    assert list(notes) == [name]
    assert "detconv.override reaches that" in notes[name]


class OfSubmodules(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv2d = nn.Identity()
        self.block = nn.ModuleDict({"conv1d": nn.Identity()})

    def forward(self, x: Any) -> Any:
        return self.block.conv1d(self.conv2d(x))


class OfOurs(nn.Module):
    def forward(self, x: Any) -> Any:
        return detconv.conv2d(x, x) + detconv.functional.conv_transpose2d(x, x)


class Unread(nn.Module):
    """A property is not run to see what it gives."""

    @property
    def conv(self) -> Any:
        raise AssertionError

    def forward(self, x: Any) -> Any:
        return self.conv(x)


@pytest.mark.parametrize("kind", [OfSubmodules, OfOurs, Unread])
def test_a_forward_that_calls_none_is_not_listed(kind: Any) -> None:
    _, report = detconv.convert(nn.Sequential(kind()), strict=True)
    assert report.skipped == ()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_fused_pair_is_swapped_and_not_skipped() -> None:
    for fused in (
        torch.ao.nn.intrinsic.ConvReLU2d(nn.Conv2d(3, 4, 3), nn.ReLU()),
        torch.ao.nn.intrinsic.ConvBn2d(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)),
    ):
        _, report = detconv.convert(nn.Sequential(fused), strict=True)
        assert [line.names for line in report.swapped] == [("0.0",)]
        assert report.skipped == ()


# Names ----------------------------------------------------------------------------------------------------------------


def test_filter_fn_is_asked_for_every_name() -> None:
    shared, asked = nn.Conv2d(3, 3, 1), []

    def answer(_: Any, name: str) -> bool:
        asked.append(name)
        return name != "c"

    model = nn.ModuleDict({"a": shared, "b": shared, "c": nn.Conv2d(3, 3, 1)})
    _, report = detconv.convert(model, filter_fn=answer)
    assert asked == ["a", "b", "c"]
    assert [line.names for line in report.swapped] == [("a", "b")]
    with pytest.raises(ValueError, match=r"^filter_fn must answer the same .* True for 'a', False for 'b'"):
        detconv.convert(model, "exact", filter_fn=lambda _, name: name == "a")
    assert shared.summation == "pairwise"


# The summation beside the weights -------------------------------------------------------------------------------------


@pytest.mark.parametrize("summation", SUMMATIONS[:4])
def test_the_summation_travels_with_the_weights_but_is_no_entry(summation: str) -> None:
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Sequential(Clonable(4, 4, 3)))
    keys, hashed = list(plain.state_dict()), detconv.weights_sha256(plain)
    model, _ = detconv.convert(copy.deepcopy(plain), summation)
    state = saved_and_loaded(model.state_dict(), weights_only=True)
    assert list(state) == keys
    assert detconv.weights_sha256(model) == detconv.weights_sha256(state) == hashed
    for name in ("0", "2.0"):
        assert state._metadata[name]["summation"] == summation
    other, _ = detconv.convert(copy.deepcopy(plain), "naive block=64")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain.load_state_dict(state)  # torch's own layers know of no summation
        model.load_state_dict(plain.state_dict())
        model.load_state_dict(state)
        model.load_state_dict(dict(state))  # as from a file format that keeps entries alone
    with pytest.warns(detconv.nn.SummationMismatch, match=r"were saved with summation '.*'naive'") as warned:
        other.load_state_dict(state)
    assert [str(warning.message).split()[3] for warning in warned] == ["0", "2.0"]
    assert detconv.weights_sha256(other) == hashed
