"""detconv.override: every conv2d inside a block is detconv's, and what is not says so."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import detconv
from bits import made

torch = pytest.importorskip("torch")

from torch.nn import functional  # noqa: E402

from detconv.torch.override import NotOverridden  # noqa: E402

# An order in which small numbers vanish beside a large one, and one in which they do not: their bits tell who computed.
SUMMATION = "naive order=kw,c,kh products=rounded"


def image() -> Any:
    return torch.from_numpy(made((2, 16, 6, 7), np.float32, 1))


def weight() -> Any:
    return torch.from_numpy(made((8, 16, 3, 3), np.float32, 2))


def ours(summation: str = SUMMATION) -> Any:
    return detconv.conv2d(image(), weight(), padding=1, summation=summation)


def call() -> Any:
    return functional.conv2d(image(), weight(), padding=1)


def test_the_bits_tell_summations_apart() -> None:
    assert len({detconv.weights_sha256({"y": y}) for y in (ours(), ours("exact"), ours("pairwise"), call())}) == 4


@pytest.mark.parametrize(
    "function",
    [
        lambda x, w: functional.conv2d(x, w, padding=1),
        lambda x, w: torch.conv2d(input=x, weight=w, bias=None, stride=1, padding=[1, 1]),
        lambda x, w: functional.conv2d(x, w, None, 1, "same"),
        lambda x, w: torch.ops.aten.conv2d(x, w, None, [1, 1], [1, 1]),
        lambda x, w: torch.ops.aten.conv2d.default(x, w, padding=[1, 1]),
        lambda x, w: torch.ops.aten.conv2d.padding(x, w, padding="same"),
    ],
)
def test_functions(function: Callable[..., Any]) -> None:
    with detconv.override(SUMMATION, strict=True):
        output = function(image(), weight())
    assert torch.equal(output, ours())


def test_transposed_and_modules() -> None:
    layers = [torch.nn.Conv2d(16, 8, 3, padding=1, padding_mode="reflect"), torch.nn.ConvTranspose2d(16, 8, 3, 2)]
    expected = [
        detconv.conv2d(functional.pad(image(), [1] * 4, "reflect"), *layers[0].parameters(), summation="kahan"),
        detconv.conv_transpose2d(image(), *layers[1].parameters(), 2, summation="kahan"),
    ]
    with detconv.override(detconv.Summation("kahan"), strict=True):
        outputs = [layer(image()) for layer in layers]
        by_aten = torch.ops.aten.conv_transpose2d(image(), *layers[1].parameters(), [2, 2])
    assert all(map(torch.equal, outputs, expected))
    assert torch.equal(by_aten, expected[1])
    assert not torch.equal(layers[0](image()), outputs[0])


def test_gradients_follow_out_of_the_block() -> None:
    gradients = []
    for inside in (True, False):
        w = weight().requires_grad_()
        if inside:
            with detconv.override(SUMMATION):
                output = functional.conv2d(image(), w, padding=1)
        else:
            output = detconv.conv2d(image(), w, padding=1, summation=SUMMATION)
        output.square().sum().backward()
        gradients.append(w.grad)
    assert torch.equal(*gradients)


def test_nested_blocks_and_the_same_one_again() -> None:
    outer, inner = detconv.override(SUMMATION), detconv.override("exact")
    with outer:
        with inner:
            assert torch.equal(call(), ours("exact"))
            with outer:
                assert torch.equal(call(), ours())
            assert torch.equal(call(), ours("exact"))
        assert torch.equal(call(), ours())
    assert not torch.equal(call(), ours())


def test_a_block_ends_with_an_exception() -> None:
    with pytest.raises(KeyError), detconv.override(SUMMATION):
        raise KeyError
    assert not torch.equal(call(), ours())


def test_other_threads_are_left_alone() -> None:
    outputs = {}

    def elsewhere() -> None:
        outputs["outside"] = call()
        with detconv.override("exact"):
            outputs["inside"] = call()

    plain = call()
    with detconv.override(SUMMATION):
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert torch.equal(call(), ours())
    assert torch.equal(outputs["outside"], plain)
    assert torch.equal(outputs["inside"], ours("exact"))


class Labelled(torch.Tensor):
    """A tensor of another class."""


LEFT: dict[str, tuple[Callable[[], Any], str]] = {
    "conv1d": (lambda: functional.conv1d(image()[0], weight()[..., 0, :].repeat(1, 1, 1)[:, :6]), "only"),
    "conv3d": (lambda: functional.conv3d(image()[:, None], weight()[:1, :1, None]), "only"),
    "conv_tbc": (
        lambda: torch.conv_tbc(image()[0], weight()[:7, :3, :, 0].movedim(0, 1), image().new_zeros(3)),
        "only",
    ),
    "conv2d": (lambda: functional.conv2d(image().to(torch.complex64), weight().to(torch.complex64)), "complex64"),
    "conv_transpose2d": (
        lambda: functional.conv_transpose2d(image().to(torch.complex64), weight().transpose(0, 1).to(torch.complex64)),
        "complex64",
    ),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_is_left_to_torch_says_so(name: str) -> None:
    function, reason = LEFT[name]
    expected = function()
    message = f"^{name} inside detconv.override is left to torch: .*{reason}"
    with detconv.override(SUMMATION), pytest.warns(NotOverridden, match=message):
        output = function()
    assert torch.equal(output, expected)
    with detconv.override(SUMMATION, strict=True), pytest.raises(RuntimeError, match=f"^{name} inside.*{reason}"):
        function()


def test_other_places_and_classes_are_left_to_torch() -> None:
    with detconv.override(SUMMATION):
        with pytest.warns(NotOverridden, match="on meta"):
            assert functional.conv2d(image().to("meta"), weight().to("meta")).is_meta
        with pytest.warns(NotOverridden, match="class Labelled"):
            assert type(functional.conv2d(image().as_subclass(Labelled), weight())) is Labelled


def test_autocast() -> None:
    with torch.autocast("cpu"), detconv.override(SUMMATION, strict=True):
        output = functional.conv2d(image().bfloat16(), weight(), padding=1)
    expected = detconv.conv2d(image().bfloat16().float(), weight(), padding=1, summation=SUMMATION)
    assert torch.equal(output, expected)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_transforms_and_compilers_inside() -> None:
    def function(x: Any, w: Any) -> Any:
        return functional.conv2d(x, w, padding=1)

    def with_block(x: Any, w: Any) -> Any:
        with detconv.override(SUMMATION):
            return function(x, w)

    try:
        with detconv.override(SUMMATION, strict=True):
            batched = torch.vmap(function, in_dims=(0, None))(image()[:, None], weight())
            compiled = torch.compile(function, fullgraph=True, backend="aot_eager")(image(), weight())
        assert torch.equal(batched[:, 0], ours())
        assert torch.equal(compiled, ours())
        assert torch.equal(torch.compile(with_block, fullgraph=True, backend="aot_eager")(image(), weight()), ours())
    finally:
        torch.compiler.reset()


def test_other_functions_are_untouched() -> None:
    with warnings.catch_warnings(), detconv.override(SUMMATION, strict=True):
        warnings.simplefilter("error")
        x = image()
        assert torch.equal(functional.linear(x, x[0, 0]), x @ x[0, 0].T)


@pytest.mark.parametrize(("wrong", "error"), [("sloppy", ValueError), (None, TypeError)])
def test_a_wrong_summation_is_refused(wrong: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="summation"):
        detconv.override(wrong)
