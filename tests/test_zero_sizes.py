"""Every pass with sizes of zero: a sum of no terms is +0 or the bias, a result without elements is empty, and what is
no convolution is a ValueError. The engine answers as the reference does, and as torch where torch has an answer."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import detconv
from bits import DTYPES, METHODS, Array, assert_same_bits, made
from detconv import reference

SUMMATIONS = (
    *METHODS,
    "naive products=rounded",
    "pairwise block=1 bias=first",
    "kahan order=kw,kh,c",
    "fp64 bias=first",
)


def answer(call: Callable[[], Array]) -> Array | None:
    """What the call returns, or None if it refuses its arguments."""
    try:
        return call()
    except ValueError:
        return None


def assert_as_the_reference(name: str, *arguments: Any, summation: str, **options: Any) -> Array | None:
    """The engine and the reference both refuse, or both give the same bits; returns the answer."""
    context = f"{name} {[getattr(a, 'shape', a) for a in arguments]} {options} {summation}"
    found, expected = (
        answer(lambda module=module: getattr(module, name)(*arguments, **options, summation=summation))  # type: ignore[misc]
        for module in (detconv, reference)
    )
    assert (found is None) == (expected is None), context
    if found is not None and expected is not None:
        assert_same_bits(found, expected, context)
    return found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("summation", SUMMATIONS)
@pytest.mark.parametrize("samples", ["tree", "sequence"])
def test_bias_gradients(samples: str, summation: str, dtype: type) -> None:
    for shape in (*itertools.product((0, 1, 3), repeat=4), *itertools.product((0, 3), repeat=3)):
        found = assert_as_the_reference(
            "conv2d_bias", made(shape, dtype, 1), summation=f"{summation} samples={samples}"
        )
        assert found is not None
        assert found.shape == (shape[-3],)
        if 0 in shape:
            assert_same_bits(found, np.zeros(shape[-3], dtype))


def drawn(seed: int) -> dict[str, Any]:
    """The sizes of a layer, one to three of them zero, and its geometry."""
    draw = random.Random(seed)
    sizes = {name: draw.randint(1, 3) for name in ("n", "c", "o", "kh", "kw")} | {"h": draw.randint(1, 6), "w": 5}
    for name in draw.sample([*sizes], draw.randint(1, 3)):
        sizes[name] = 0
    return sizes | {
        "groups": draw.choice([1, 1, 2]),
        "options": {
            "stride": (draw.randint(1, 4), draw.randint(1, 4)),
            "padding": (draw.randint(0, 2), draw.randint(0, 2)),
            "dilation": (draw.randint(1, 2), draw.randint(1, 2)),
        },
    }


def calls(seed: int, dtype: type) -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """A drawn layer in every pass: the name, the arguments, the options."""
    n, c, o, kh, kw, h, w, groups, options = drawn(seed).values()
    options = options | {"groups": groups}
    image, weight = made((n, groups * c, h, w), dtype, seed), made((groups * o, c, kh, kw), dtype, seed + 1)
    (sh, sw), (ph, pw), (dh, dw) = (options[name] for name in ("stride", "padding", "dilation"))
    out_h, out_w = (h + 2 * ph - dh * (kh - 1) - 1) // sh + 1, (w + 2 * pw - dw * (kw - 1) - 1) // sw + 1
    shape = (n, groups * o if c else 0, max(out_h, 0), max(out_w, 0))
    grad_output = made(shape, dtype, seed + 2)
    turned = made((groups * c, o, kh, kw), dtype, seed + 1)
    bias = made((groups * o,), dtype, seed + 3)
    return [
        ("conv2d", (image, weight, bias), options),
        ("conv2d_input", (image.shape, weight, grad_output), options),
        ("conv2d_weight", (image, weight.shape, grad_output), options),
        ("conv_transpose2d", (image, turned, bias), options),
    ]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("summation", SUMMATIONS)
def test_every_pass(summation: str, dtype: type) -> None:
    answered, refused = set(), set()
    for seed in range(60):
        for name, arguments, options in calls(seed, dtype):
            for samples in ("tree", "sequence"):
                text = f"{summation} samples={samples}"
                found = assert_as_the_reference(name, *arguments, **options, summation=text)
                (refused if found is None else answered).add(name)
    assert len(answered) == len(refused) == 4


@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_has_the_same_answer(dtype: type) -> None:
    """Where there are pixels and taps. Without them torch refuses, or has shapes of its own."""
    torch = pytest.importorskip("torch")
    theirs = {
        "conv2d": torch.nn.functional.conv2d,
        "conv2d_input": torch.nn.grad.conv2d_input,
        "conv2d_weight": torch.nn.grad.conv2d_weight,
        "conv_transpose2d": torch.nn.functional.conv_transpose2d,
    }
    compared = 0
    for seed in range(300):
        for name, arguments, options in calls(seed, dtype):
            ours = answer(lambda: getattr(detconv, name)(*arguments, **options, summation="exact"))  # noqa: B023
            tensors = [torch.from_numpy(a) if isinstance(a, np.ndarray) else a for a in arguments]
            try:
                expected = theirs[name](*tensors, **options).numpy()
            except (RuntimeError, ValueError, IndexError):  # an output without channels, for one
                continue
            if ours is None:
                image, weight = (getattr(a, "shape", a) for a in arguments[:2])
                assert 0 in (*image[2:], *weight[2:], weight[0]), (name, image, weight, options)
                continue
            assert ours.shape == expected.shape, (name, seed)
            assert np.array_equal(ours == 0, expected == 0), (name, seed)
            compared += 1
    assert compared > 40


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
@pytest.mark.parametrize("summation", SUMMATIONS)
def test_half_types(summation: str, half: str) -> None:
    torch = pytest.importorskip("torch")
    for shape in itertools.product((0, 2), repeat=4):
        gradient = detconv.conv2d_bias(torch.ones(shape, dtype=getattr(torch, half)), summation=summation)
        assert (gradient.dtype, gradient.shape) == (getattr(torch, half), (shape[1],))
        assert gradient.tolist() == [float(shape[0] * shape[2] * shape[3])] * shape[1]
