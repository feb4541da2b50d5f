"""Half tensors: summed as float32, rounded once; all passes, against the specification and the rational sums."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import detconv
import oracle
from bits import Array, Pass, assert_same_bits, instruction_sets, made
from detconv import _core, reference
from test_gradients import calls
from test_reference_gradients import products_by_hand

torch = pytest.importorskip("torch")

HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def as_half(array: Array, half: str) -> Array:
    """Numbers rounded to the half type, as float32."""
    return numbers(torch.from_numpy(np.ascontiguousarray(array, np.float32)).to(HALVES[half]))


def numbers(tensor: Any) -> Array:
    """As float32; torch's own conversion of NaN depends on the processor."""
    bits = tensor.contiguous().view(torch.int16).numpy()
    found: Array = bits.view(np.float16).astype(np.float32)
    if tensor.dtype == torch.bfloat16:
        found = (bits.astype(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return found


def half_calls(half: str, kind: str) -> dict[str, Pass]:
    """Half of test_gradients' calls, and as many of conv2d, on half numbers held as float32."""
    drawn = {name: call for name, call in calls(np.float32, 3, kind).items() if name[-1] in "024"}
    found = {name: call.mapped(lambda a: as_half(a, half)) for name, call in drawn.items()}
    for name, call in [*found.items()]:
        if name.startswith("transpose"):  # the arrays of a transposed convolution also make one the other way
            _, weight, _ = call.arguments
            image = found[name.replace("transpose", "weight")].arguments[0]
            bias = as_half(made(weight.shape[:1], np.float32, 9, kind), half)
            found[name.replace("transpose", "forward")] = Pass("conv2d", (image, weight, bias), call.options)
    return found


def run_tensors(call: Pass, half: str, summation: str) -> Array:
    def tensor(array: Array) -> Any:
        return torch.from_numpy(array).to(HALVES[half])

    arguments = [tensor(a) if isinstance(a, np.ndarray) else a for a in call.arguments]
    result = getattr(detconv, call.name)(*arguments, **call.options, summation=summation)
    assert result.dtype == HALVES[half]
    return numbers(result)


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("summation", [*_core.methods(), "naive products=rounded bias=first", "exact samples=sequence"])
def test_every_pass_is_the_references(summation: str, half: str) -> None:
    compared = 0
    for kind in ("uniform", "wide"):
        for name, call in half_calls(half, kind).items():
            expected = reference_of(call, half, summation)
            for instruction_set in instruction_sets():
                with detconv.testing.instruction_set(instruction_set):
                    assert_same_bits(run_tensors(call, half, summation), expected, (name, kind, instruction_set))
            compared += expected.size
    assert compared > 5_000


def reference_of(call: Pass, half: str, summation: str) -> Array:
    result: Array = getattr(reference, call.name)(*call.arguments, **call.options, summation=summation, half=half)
    return result


@pytest.mark.parametrize("half", HALVES)
def test_exact_is_the_rational_sum_rounded_once(half: str) -> None:
    """Against gmpy2, through float32: a rational sum that is rounded to odd there rounds on as it would at once."""
    compared = 0
    for kind in ("uniform", "small integers", "bfloat16"):
        for name, call in half_calls(half, kind).items():
            if not name.startswith(("input", "weight")):
                continue
            actual = run_tensors(call, half, "exact samples=sequence")
            sums = []
            for products in products_by_hand(call, actual.shape).values():
                pairs = list(products.values()) if isinstance(products, dict) else [p for s in products for p in s]
                sums.append(oracle.exact_half(pairs, half))
            wanted = np.array(sums, np.float64).astype(np.float32).reshape(actual.shape)
            assert_same_bits(actual + 0.0, wanted + 0.0, (name, kind))
            compared += actual.size
    assert compared > 5_000


@pytest.mark.parametrize(("half", "digits"), [("float16", 11), ("bfloat16", 8)])
@pytest.mark.parametrize("method", ["fp64", "exact"])
def test_the_total_is_rounded_once_not_twice(method: str, half: str, digits: int) -> None:
    """1 + half an ulp + a little: by way of float32 the little is lost, and the tie goes to 1."""
    image = np.array([1, 2.0**-digits, 2.0**-14], np.float32).reshape(3, 1, 1)
    for little, expected in ((2.0**-14, 1 + 2.0 ** (1 - digits)), (0.0, 1.0), (-(2.0**-14), 1.0)):
        weight = np.array([1, 1, little], np.float32).reshape(1, 3, 1, 1)
        found = run_tensors(Pass("conv2d", (image, weight), {}), half, method)
        assert_same_bits(found, np.full((1, 1, 1), expected, np.float32), (method, little))


@pytest.mark.parametrize("half", HALVES)
def test_narrowing_is_torchs(half: str) -> None:
    drawn = [made((200_000,), np.float32, 1, kind) for kind in ("raw", "wide", "uniform", "special")]
    edges = [65504, 65519.996, 65520, 3.3895314e38, 3.3961776e38, 2**-24, 2**-25, 1.5 * 2**-25, 1e-45, 9.2e-41]
    given = np.concatenate([*drawn, np.array(edges, np.float32), -np.array(edges, np.float32)])
    actual = _core.narrow(given, half)
    expected = torch.from_numpy(given).to(HALVES[half]).view(torch.int16).numpy().view(np.uint16)
    expected = np.where(expected == 0x8000, 0, expected)  # a zero is +0
    expected[np.isnan(given)] = 0x7E00 if half == "float16" else 0x7FC0
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("half", HALVES)
def test_a_half_model_trains(half: str) -> None:
    layer = detconv.nn.Conv2d(3, 4, 3, padding=1, summation="exact").to(HALVES[half])
    image = torch.from_numpy(made((2, 3, 6, 5), np.float32, 1)).to(HALVES[half]).requires_grad_()
    layer(image).square().sum().backward()
    for gradient in (layer.weight.grad, layer.bias.grad, image.grad):
        assert gradient is not None
        assert gradient.dtype == HALVES[half]
        assert gradient.isfinite().all()


def test_layouts_and_mixtures() -> None:
    image, weight = (torch.from_numpy(made(s, np.float32, 2)).bfloat16() for s in [(2, 3, 6, 5), (4, 3, 3, 3)])
    contiguous = detconv.conv2d(image, weight)
    last = detconv.conv2d(image.contiguous(memory_format=torch.channels_last), weight)
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(last, contiguous)
    for wrong in (weight.float(), weight.half()):
        with pytest.raises(TypeError, match="weight must have the element type"):
            detconv.conv2d(image, wrong)
