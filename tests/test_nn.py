"""detconv.nn: torch's layers in everything but the sums."""

from __future__ import annotations

import copy
import inspect
import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import detconv
from bits import assert_same_bits, made

torch = pytest.importorskip("torch")

import detconv.nn  # noqa: E402

LAYERS = {
    "Conv2d": (detconv.nn.Conv2d, torch.nn.Conv2d),
    "ConvTranspose2d": (detconv.nn.ConvTranspose2d, torch.nn.ConvTranspose2d),
}
OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("Conv2d", {}),
    ("Conv2d", {"stride": 2, "padding": (1, 2), "dilation": (2, 1), "groups": 2, "bias": False}),
    ("Conv2d", {"padding": "same", "dilation": 2}),
    ("Conv2d", {"padding": "valid", "dtype": torch.float64}),
    *[("Conv2d", {"padding": (1, 2), "padding_mode": mode}) for mode in ("zeros", "reflect", "replicate", "circular")],
    *[("Conv2d", {"padding": "same", "padding_mode": mode}) for mode in ("reflect", "replicate", "circular")],
    ("ConvTranspose2d", {}),
    ("ConvTranspose2d", {"stride": (3, 2), "padding": 1, "output_padding": (2, 1), "groups": 2, "dilation": (1, 2)}),
    ("ConvTranspose2d", {"dtype": torch.float64, "bias": False}),
]


def image(shape: tuple[int, ...] = (2, 4, 7, 8), dtype: Any = torch.float32) -> Any:
    """Small integers, whose sums are exact in any order: here torch's layers are an oracle, to the bit."""
    return torch.from_numpy(made(shape, np.float64, 1, "small integers")).to(dtype)


def made_alike(name: str, options: dict[str, Any], summation: str = "pairwise") -> tuple[Any, Any]:
    ours_class, theirs_class = LAYERS[name]
    ours = ours_class(4, 6, (3, 2), summation=summation, **options)
    theirs = theirs_class(4, 6, (3, 2), **options)
    with torch.no_grad():
        for i, parameter in enumerate(theirs.parameters()):
            values = made(tuple(parameter.shape), np.float64, i + 5, "small integers")
            parameter.copy_(torch.from_numpy(values))
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_outputs_and_gradients_are_those_of_torch_where_sums_are_exact(
    name: str, options: dict[str, Any], batched: bool
) -> None:
    ours, theirs = made_alike(name, options)
    x = image(dtype=theirs.weight.dtype)
    x = x if batched else x[0]
    results = []
    for layer in (ours, theirs):
        given = x.clone().requires_grad_()
        output = layer(given)
        wanted = [given, *layer.parameters()]
        results.append([output.detach(), *torch.autograd.grad((output * 2).sum(), wanted)])
        with torch.no_grad():
            assert torch.equal(layer(given), output)
    for a, b in zip(*results, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", LAYERS)
def test_it_is_a_torch_layer(name: str) -> None:
    torch.manual_seed(3)
    ours = LAYERS[name][0](4, 6, (3, 2), stride=2, summation="naive order=kh,kw,c")
    torch.manual_seed(3)
    theirs = LAYERS[name][1](4, 6, (3, 2), stride=2)
    assert isinstance(ours, LAYERS[name][1])
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(map(torch.equal, ours.parameters(), theirs.parameters()))
    assert repr(ours) == repr(theirs)[:-1] + ", summation='naive order=kh,kw,c')"
    theirs_signature = list(inspect.signature(LAYERS[name][1].__init__).parameters)
    assert LAYERS[name][0](*[4, 6, 3, 1, 0, 0, 2][: len(theirs_signature) - 1], summation="exact").summation == "exact"


def test_output_size_of_a_transposed_layer() -> None:
    ours, theirs = made_alike("ConvTranspose2d", {"stride": 3})
    for size in ([22, 24], [23, 25]):
        assert torch.equal(ours(image(), output_size=size), theirs(image(), output_size=size))
    with pytest.raises(ValueError, match="requested an output size"):
        ours(image(), output_size=[1, 1])


@pytest.mark.parametrize("name", LAYERS)
def test_the_summation_fixes_the_bits_and_can_be_changed(name: str) -> None:
    layer = LAYERS[name][0](4, 6, 3, summation=detconv.Summation("exact"))
    x = torch.from_numpy(made((2, 4, 7, 8), np.float32, 1))
    function = {"Conv2d": detconv.conv2d, "ConvTranspose2d": detconv.conv_transpose2d}[name]
    for summation in ("exact", "naive products=rounded", "kahan"):
        layer.summation = summation
        assert layer.summation == summation
        expected = function(x, layer.weight.detach(), layer.bias.detach(), summation=summation)
        assert_same_bits(layer(x).detach().numpy(), expected.numpy())
        for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert other.summation == summation
            assert_same_bits(other(x).detach().numpy(), expected.numpy())
    layer.summation = " kahan  block=64 "
    assert layer.summation == "kahan"
    for wrong, error in [("sloppy", ValueError), (3, TypeError)]:
        with pytest.raises(error, match="summation"):
            layer.summation = wrong
        with pytest.raises(error, match="summation"):
            LAYERS[name][0](4, 6, 3, summation=wrong)
    assert layer.summation == "kahan"


def test_what_torch_refuses_is_refused() -> None:
    with pytest.raises(ValueError, match="padding_mode"):
        detconv.nn.Conv2d(1, 1, 1, padding_mode="mirror")
    with pytest.raises(ValueError, match='Only "zeros"'):
        detconv.nn.ConvTranspose2d(1, 1, 1, padding_mode="reflect")


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_a_training_step_has_the_same_bits_on_any_number_of_threads(mode: str) -> None:
    """torch's own part of it, the padding and its gradient, included."""

    def step(threads: int) -> dict[str, Any]:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        detconv.set_num_threads(threads)
        try:
            torch.manual_seed(0)
            net = torch.nn.Sequential(
                detconv.nn.Conv2d(3, 8, 3, padding=2, padding_mode=mode),
                torch.nn.ReLU(),
                detconv.nn.ConvTranspose2d(8, 4, 3, stride=2),
            )
            x = torch.from_numpy(made((4, 3, 24, 24), np.float32, 1))
            for memory_format in (torch.contiguous_format, torch.channels_last):
                net(x.to(memory_format=memory_format).requires_grad_()).square().mean().backward()
                torch.optim.SGD(net.parameters(), lr=0.5).step()
            return dict(net.state_dict())
        finally:
            torch.set_num_threads(before)

    assert len({detconv.weights_sha256(step(threads)) for threads in (1, 2, 3)}) == 1


def test_without_torch() -> None:
    code = """
import sys
sys.modules["torch"] = None
import numpy, detconv
x = numpy.ones((1, 1, 3, 3), numpy.float32)
detconv.conv_transpose2d(x, x)
for name in ("nn", "convert", "override", "weights_sha256"):
    assert name in detconv.__doc__ and name not in dir(detconv)
    try:
        getattr(detconv, name)
    except ImportError as error:
        assert "torch" in str(error) and "pip install" in str(error), error
    else:
        raise AssertionError(name)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_torch_is_imported_where_it_is_used_only() -> None:
    code = """
import sys, detconv
assert "torch" not in sys.modules
detconv.weights_sha256
assert "torch" in sys.modules and "detconv.nn" not in sys.modules
detconv.nn.Conv2d
"""
    subprocess.run([sys.executable, "-c", code], check=True)
