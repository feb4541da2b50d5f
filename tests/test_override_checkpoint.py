"""detconv.override and torch's checkpointing: what is computed again has the bits of the first time."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import pytest

import detconv
from bits import made
from detconv import reference

torch = pytest.importorskip("torch")

from torch.utils.checkpoint import checkpoint, checkpoint_sequential  # noqa: E402

from detconv.torch.override import NotOverridden  # noqa: E402

SUMMATIONS = ("naive order=kw,c,kh products=rounded", "pairwise block=4", "kahan", "exact")
KINDS = (True, False)  # of checkpointing: use_reentrant


class Drawn:
    """A network of two or three convolutions with ReLUs between, its input and the gradients by the reference."""

    def __init__(self, seed: int, dtype: Any = np.float32) -> None:
        draw = random.Random(seed)
        self.summation = draw.choice(SUMMATIONS)
        channels = [2 * draw.randint(1, 3) for _ in range(draw.choice((3, 4)))]
        self.geometry = [
            {
                "stride": draw.choice(((1, 1), (1, 2))),
                "padding": (draw.randint(0, 2), draw.randint(1, 2)),
                "dilation": draw.choice(((1, 1), (2, 1))),
                "groups": draw.choice((1, 2)),
            }
            for _ in channels[1:]
        ]
        layers: list[Any] = []
        for i, geometry in enumerate(self.geometry):
            layer = torch.nn.Conv2d(
                channels[i], channels[i + 1], (draw.randint(1, 2), 3), bias=draw.random() < 0.7, **geometry
            )
            for j, parameter in enumerate(layer.parameters()):
                drawn = made(tuple(parameter.shape), dtype, 100 * seed + 10 * i + j)
                parameter.data = torch.from_numpy(drawn)
            layers += [torch.nn.ReLU(inplace=draw.random() < 0.5), layer]
        self.network = torch.nn.Sequential(*layers[1:])
        self.image = torch.from_numpy(made((draw.randint(1, 5), channels[0], 6, 9), dtype, seed))

    def gradients(self, call: Callable[[Any], Any], backward: Callable[[Any], None] | None = None) -> list[Any]:
        """Those of the input and of all parameters, of the sum of the squares of the outputs."""
        self.network.zero_grad(set_to_none=True)
        image = self.image.clone().requires_grad_()
        loss = (lambda y: (y * y).sum())(call(image))
        (backward or (lambda loss: loss.backward()))(loss)
        return [image.grad, *(p.grad for p in self.network.parameters())]

    def by_reference(self) -> list[Any]:
        """The same, by the plain loops of the specification and NumPy."""
        convolutions = self.network[::2]
        x, inputs = self.image.numpy(), []
        for i, (layer, geometry) in enumerate(zip(convolutions, self.geometry, strict=True)):
            x = np.maximum(x, 0) if i else x
            inputs.append(x)
            bias = None if layer.bias is None else layer.bias.detach().numpy()
            x = reference.conv2d(x, layer.weight.detach().numpy(), bias, **geometry, summation=self.summation)
        gradient, found = x + x, []
        for layer, geometry, x in reversed(list(zip(convolutions, self.geometry, inputs, strict=True))):
            weight = layer.weight.detach().numpy()
            if layer.bias is not None:
                found.append(reference.conv2d_bias(gradient, summation=self.summation))
            found.append(reference.conv2d_weight(x, weight.shape, gradient, **geometry, summation=self.summation))
            gradient = reference.conv2d_input(x.shape, weight, gradient, **geometry, summation=self.summation)
            gradient = np.where(x > 0, gradient, 0) if x is not inputs[0] else gradient
        return [torch.from_numpy(g) for g in [gradient, *reversed(found)]]


def assert_equal(gradients: list[Any], expected: list[Any]) -> None:
    assert len(gradients) == len(expected)
    assert all(torch.isfinite(g).all() for g in expected)
    assert all(map(torch.equal, gradients, expected)), [
        torch.equal(a, b) for a, b in zip(gradients, expected, strict=True)
    ]


@pytest.mark.parametrize("seed", range(24))
def test_drawn_networks(seed: int) -> None:
    drawn = Drawn(seed, np.float64 if seed % 4 == 3 else np.float32)
    with detconv.override(drawn.summation, strict=True):
        plain = drawn.gradients(drawn.network)
        assert_equal(plain, drawn.by_reference())
        for reentrant in KINDS:
            assert_equal(drawn.gradients(lambda x, r=reentrant: checkpoint(drawn.network, x, use_reentrant=r)), plain)
            parts = drawn.gradients(lambda x, r=reentrant: checkpoint_sequential(drawn.network, 2, x, use_reentrant=r))
            assert_equal(parts, plain)


def test_torch_s_own_bits_are_others() -> None:
    """What the tests of this file would not notice if the blocks changed nothing."""
    for seed in range(24):
        drawn = Drawn(seed)
        if not all(map(torch.equal, drawn.gradients(drawn.network), drawn.by_reference())):
            return
    raise AssertionError("torch has the bits of every summation")


def blocks_around(name: str, summation: str) -> tuple[Any, Any]:
    """The blocks around the forward pass and around the backward pass."""
    block = detconv.override(summation, strict=True)
    return {
        "backward outside": (block, nullcontext()),
        "backward in another": (block, detconv.override("pairwise block=2")),
        "forward outside": (nullcontext(), block),
    }[name]


@pytest.mark.parametrize("reentrant", KINDS)
@pytest.mark.parametrize("where", ["backward outside", "backward in another", "forward outside"])
@pytest.mark.parametrize("seed", range(30, 38))
def test_the_passes_in_different_blocks(seed: int, where: str, reentrant: bool) -> None:
    drawn = Drawn(seed)

    def gradients(call: Callable[[Any], Any]) -> list[Any]:
        forward, backward = blocks_around(where, drawn.summation)

        def inside(x: Any) -> Any:
            with forward:
                return call(x)

        def back(loss: Any) -> None:
            with backward:
                loss.backward()

        return drawn.gradients(inside, back)

    assert_equal(gradients(lambda x: checkpoint(drawn.network, x, use_reentrant=reentrant)), gradients(drawn.network))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # torch's, of the inner checkpoint
@pytest.mark.parametrize("reentrant", KINDS)
@pytest.mark.parametrize("seed", range(40, 44))
def test_nested_and_called_in_other_ways(seed: int, reentrant: bool) -> None:
    drawn = Drawn(seed)
    first, rest = drawn.network[:1], drawn.network[1:]

    def nested(x: Any) -> Any:
        return checkpoint(lambda t: checkpoint(rest, first(t), use_reentrant=reentrant), x, use_reentrant=reentrant)

    with detconv.override(drawn.summation, strict=True):
        plain = drawn.gradients(drawn.network)
        assert_equal(drawn.gradients(nested), plain)
        assert_equal(drawn.gradients(nested, torch.autograd.backward), plain)
        batched = drawn.gradients(
            lambda x: torch.stack([checkpoint(drawn.network, t, use_reentrant=reentrant) for t in x])
        )
        assert_equal(batched, drawn.gradients(lambda x: torch.stack([drawn.network(t) for t in x])))
        with torch.autocast("cpu"):
            cast = drawn.gradients(lambda x: checkpoint(drawn.network, x, use_reentrant=reentrant))
            assert_equal(cast, drawn.gradients(drawn.network))


@pytest.mark.parametrize("reentrant", KINDS)
def test_a_part_in_a_block_of_its_own(reentrant: bool) -> None:
    drawn = Drawn(50)

    def network(x: Any) -> Any:
        with detconv.override("exact", strict=True):
            x = drawn.network[:2](x)
        return drawn.network[2:](x)

    with detconv.override("naive", strict=True):
        plain = drawn.gradients(network)
        assert_equal(drawn.gradients(lambda x: checkpoint(network, x, use_reentrant=reentrant)), plain)
    outside = drawn.gradients(network)
    assert not all(map(torch.equal, outside, plain))
    assert_equal(drawn.gradients(lambda x: checkpoint(network, x, use_reentrant=reentrant)), outside)


@pytest.mark.parametrize("reentrant", KINDS)
def test_in_another_thread(reentrant: bool) -> None:
    drawn = Drawn(51)

    def gradients(call: Callable[[Any], Any]) -> list[Any]:
        with detconv.override(drawn.summation, strict=True):
            image = drawn.image.clone().requires_grad_()
            loss = call(image).square().sum()
        drawn.network.zero_grad(set_to_none=True)
        thread = threading.Thread(target=loss.backward)
        thread.start()
        thread.join()
        return [image.grad, *(p.grad for p in drawn.network.parameters())]

    again = gradients(lambda x: checkpoint(drawn.network, x, use_reentrant=reentrant))
    assert_equal(again, gradients(drawn.network))


@pytest.mark.parametrize("reentrant", KINDS)
def test_what_stays_torch_s_raises_or_says_so_again(reentrant: bool) -> None:
    layer, x = torch.nn.Conv1d(2, 2, 3), torch.ones(2, 2, 8, requires_grad=True)
    with detconv.override("naive", strict=True), pytest.raises(RuntimeError, match="left to torch"):
        checkpoint(layer, x, use_reentrant=reentrant)
    with detconv.override("naive"):
        with pytest.warns(NotOverridden):
            output = checkpoint(layer, x, use_reentrant=reentrant)
        with pytest.warns(NotOverridden):
            output.sum().backward()


@contextmanager
def unknown_checkpointing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.delattr("torch.utils.checkpoint._CheckpointFrame")
        yield


def test_a_torch_whose_checkpointing_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    with unknown_checkpointing(monkeypatch), pytest.raises(RuntimeError, match="checkpointing is not known"):
        detconv.override().__enter__()
    x, w = torch.ones(1, 1, 3, 3), torch.ones(1, 1, 2, 2)
    assert not torch._C._dispatch_has_kernel_for_dispatch_key("aten::convolution", "AutogradCPU")
    with detconv.override(strict=True):
        assert torch.equal(torch.conv2d(x, w), torch.full((1, 1, 2, 2), 4.0))
