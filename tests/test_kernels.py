"""detconv.torch.kernels: functions of torch, met at its dispatcher; by the example of linear, which is split there."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest

import detconv

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

from detconv.torch.kernels import Kernels  # noqa: E402


class Counts:
    """A block that counts the calls and leaves them to torch."""

    def __init__(self, kernels: Kernels) -> None:
        self.kernels = kernels
        self.shapes: list[tuple[int, ...]] = []

    def meet(self, name: str, key: str, own: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        assert (name, kwargs) == ("linear", {})
        self.shapes.append(tuple(args[0].shape))
        with self.kernels.within(()):
            return own(*args, **kwargs)

    def __enter__(self) -> Counts:
        self.kernels.enter(self)
        return self

    def __exit__(self, *error: object) -> None:
        self.kernels.leave(self)


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    return Kernels({"linear": ("AutogradCPU", "CPU")})


IMAGE = torch.linspace(-1, 1, 4 * 5 * 8).reshape(4, 5, 8)
LAYER = nn.Linear(8, 8)
ATTENTION = nn.MultiheadAttention(8, 2, batch_first=True)


def scripted() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(LAYER)(IMAGE)


def again(reentrant: bool) -> Any:
    image = IMAGE.clone().requires_grad_()
    checkpoint(LAYER, image, use_reentrant=reentrant).sum().backward()
    return image.grad


def without_gradient() -> Any:
    with torch.no_grad():
        return LAYER(IMAGE)


CALLS: dict[str, tuple[Callable[[], Any], int]] = {
    "layer": (lambda: LAYER(IMAGE), 1),
    "no gradient": (without_gradient, 1),
    "attention": (lambda: ATTENTION(IMAGE, IMAGE, IMAGE, need_weights=False)[0], 2),
    "TorchScript": (scripted, 1),
    "checkpoint, use_reentrant": (lambda: again(True), 2),
    "checkpoint": (lambda: again(False), 2),
}


@pytest.mark.parametrize("name", CALLS)
def test_calls_are_met_before_torch_splits_them(kernels: Kernels, name: str) -> None:
    function, count = CALLS[name]
    expected = function()
    with Counts(kernels) as outer, Counts(kernels) as block:
        output = function()
    assert len(block.shapes) == count
    assert block.shapes[0] in ((4, 5, 8), (5, 4, 8))  # the samples are still apart
    assert outer.shapes == []
    assert torch.equal(output, expected)
    assert torch.equal(function(), expected)
    assert len(block.shapes) == count


def test_nothing_is_met_below_nothing(kernels: Kernels) -> None:
    with Counts(kernels) as block, kernels.within(()):
        assert kernels.innermost() is None
        LAYER(IMAGE)
    assert block.shapes == []
    with kernels.within((block,)):  # the kernels come back for it
        LAYER(IMAGE)
    assert len(block.shapes) == 1
    LAYER(IMAGE)
    assert len(block.shapes) == 1


def test_one_table_at_a_time(kernels: Kernels) -> None:
    with Counts(kernels) as block:
        with pytest.raises(RuntimeError, match="one table of kernels at a time"):
            detconv.override().__enter__()
        LAYER(IMAGE)
    assert len(block.shapes) == 1
    with detconv.override(strict=True):
        assert torch.conv2d(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2)).item() == 4


def test_a_function_that_torch_does_not_have() -> None:
    kernels = Kernels({"linear": ("AutogradCPU",), "no_such_function": ("CPU",)})
    before = torch._C._dispatch_dump("aten::linear")
    with pytest.raises(RuntimeError, match="no_such_function"):
        kernels.enter(Counts(kernels))
    assert torch._C._dispatch_dump("aten::linear") == before
    assert kernels.innermost() is None
