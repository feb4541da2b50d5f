"""The gradients and the transposed convolution, called as users call them: arrays of every library in every layout,
and the identities that tie them to conv2d.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import array_api_strict
import numpy as np
import pytest

import detconv
from bits import DTYPES, LAYOUTS, Array, assert_same_bits, made, relaid

GEOMETRY: dict[str, Any] = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2), "groups": 2}
INPUT, WEIGHT, OUTPUT = (3, 4, 7, 6), (6, 2, 3, 2), (3, 6, 4, 8)

# Each function with its arrays, by argument, and its other arguments.
CALLS: dict[str, tuple[Callable[..., Any], dict[str, tuple[int, ...]], dict[str, Any]]] = {
    "conv2d_input": (
        detconv.conv2d_input,
        {"weight": WEIGHT, "grad_output": OUTPUT},
        {"input_size": INPUT, **GEOMETRY},
    ),
    "conv2d_weight": (
        detconv.conv2d_weight,
        {"input": INPUT, "grad_output": OUTPUT},
        {"weight_size": WEIGHT, **GEOMETRY},
    ),
    "conv2d_bias": (detconv.conv2d_bias, {"grad_output": OUTPUT}, {}),
    "conv_transpose2d": (
        detconv.conv_transpose2d,
        {"input": OUTPUT, "weight": WEIGHT, "bias": (4,)},
        {**GEOMETRY, "output_padding": (1, 0)},
    ),
}


def arguments(name: str, dtype: type = np.float32) -> dict[str, Array]:
    return {a: made(shape, dtype, seed) for seed, (a, shape) in enumerate(CALLS[name][1].items())}


def called(name: str, arrays: dict[str, Any], summation: str = "pairwise", **changed: Any) -> Any:
    function, _, options = CALLS[name]
    return function(**arrays, **{**options, **changed}, summation=summation)


# Arrays ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CALLS)
def test_numpy(name: str, layout: str, dtype: type) -> None:
    given = arguments(name, dtype)
    relaid_arrays = {a: relaid(x, layout) if x.ndim == 4 else x for a, x in given.items()}
    result = called(name, relaid_arrays)
    assert type(result) is np.ndarray
    assert result.flags.c_contiguous
    assert_same_bits(result, called(name, given))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CALLS)
def test_torch_and_dlpack(name: str, dtype: type) -> None:
    torch = pytest.importorskip("torch")
    given = arguments(name, dtype)
    expected = called(name, given)
    by_torch = called(name, {a: torch.from_numpy(x) for a, x in given.items()})
    assert type(by_torch) is torch.Tensor
    assert_same_bits(by_torch.numpy(), expected)
    by_dlpack = called(name, {a: array_api_strict.asarray(x) for a, x in given.items()})
    assert type(by_dlpack).__module__.startswith("array_api_strict")
    assert_same_bits(np.asarray(by_dlpack), expected)


@pytest.mark.parametrize("name", ["conv2d_input", "conv2d_weight", "conv_transpose2d"])
def test_channels_last_tensors_give_channels_last(name: str) -> None:
    torch = pytest.importorskip("torch")
    tensors = {a: torch.from_numpy(x) for a, x in arguments(name).items()}
    first = next(iter(tensors))
    last = tensors | {first: tensors[first].to(memory_format=torch.channels_last)}
    result = called(name, last)
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert not result.is_contiguous()
    assert torch.equal(result, called(name, tensors))


@pytest.mark.parametrize("name", CALLS)
def test_without_samples(name: str) -> None:
    given = arguments(name)
    one = {a: x[0] if a in ("input", "grad_output") else x for a, x in given.items()}
    batch = {a: x[:1] if a in ("input", "grad_output") else x for a, x in given.items()}
    if name == "conv2d_input":
        result, expected = called(name, one, input_size=INPUT[1:]), called(name, batch, input_size=(1, *INPUT[1:]))[0]
    else:
        result, expected = called(name, one), called(name, batch)
        expected = expected[0] if name == "conv_transpose2d" else expected
    assert_same_bits(result, expected)


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CALLS)
def test_arrays_are_refused_by_name(name: str) -> None:
    given = arguments(name)
    for argument in given:
        for value, match in [
            (given[argument].tolist(), "numpy.asarray"),
            (given[argument].astype(np.int64), "float32"),
        ]:
            with pytest.raises(TypeError, match=rf"^{argument}\b.*{match}"):
                called(name, {**given, argument: value})


@pytest.mark.parametrize(
    ("name", "changed", "match"),
    [
        ("conv2d_input", {"input_size": (3, 4, 9, 6)}, "^grad_output"),
        ("conv2d_input", {"input_size": 3}, "^input_size"),
        ("conv2d_input", {"input_size": (4, 7)}, "^input_size"),
        ("conv2d_weight", {"weight_size": (6, 2, 3)}, "^weight_size"),
        ("conv2d_weight", {"weight_size": (6, 2, 3, 2.0)}, "^weight_size"),
        ("conv2d_weight", {"stride": 0}, "^stride"),
        ("conv2d_weight", {"padding": "some"}, "^padding"),
        ("conv_transpose2d", {"padding": "same"}, "^padding"),
        ("conv_transpose2d", {"output_padding": 2}, "^output_padding"),
        ("conv_transpose2d", {"groups": True}, "^groups"),
    ],
)
def test_sizes_are_refused_by_name_with_and_without_a_gradient(name: str, changed: dict[str, Any], match: str) -> None:
    given = arguments(name)
    with pytest.raises((TypeError, ValueError), match=match):
        called(name, given, **changed)
    torch = pytest.importorskip("torch")
    tensors = {a: torch.from_numpy(x).requires_grad_() for a, x in given.items()}
    with pytest.raises((TypeError, ValueError), match=match):
        called(name, tensors, **changed)


@pytest.mark.parametrize("name", CALLS)
def test_a_wrong_summation_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="summation"):
        called(name, arguments(name), summation="sloppy")


# Identities, by the exact method: both sides are the correctly rounded value of the same sum --------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["uniform", "wide"])
def test_the_input_gradient_is_a_convolution_with_the_kernel_turned_around(kind: str, dtype: type) -> None:
    weight, grad_output = made((5, 3, 3, 2), dtype, 1, kind), made((2, 5, 4, 6), dtype, 2, kind)
    turned = np.ascontiguousarray(weight.swapaxes(0, 1)[..., ::-1, ::-1])
    bordered = np.pad(grad_output, ((0, 0), (0, 0), (2, 2), (1, 1)))
    expected = detconv.conv2d(bordered, turned, summation="exact")
    assert_same_bits(detconv.conv2d_input((2, 3, 6, 7), weight, grad_output, summation="exact"), expected)
    assert_same_bits(detconv.conv_transpose2d(grad_output, weight, summation="exact"), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["uniform", "wide"])
def test_the_weight_gradient_is_a_convolution_with_the_gradient_as_kernel(kind: str, dtype: type) -> None:
    image, grad_output = made((3, 2, 6, 7), dtype, 1, kind), made((3, 4, 4, 6), dtype, 2, kind)
    by_channel = detconv.conv2d(image.swapaxes(0, 1), grad_output.swapaxes(0, 1), summation="exact")
    gradient = detconv.conv2d_weight(image, (4, 2, 3, 2), grad_output, summation="exact samples=sequence")
    assert_same_bits(gradient, np.ascontiguousarray(by_channel.swapaxes(0, 1)))
    ones = np.ones((3, 1, 4, 6), dtype)
    of_ones = detconv.conv2d_weight(ones, (4, 1, 1, 1), grad_output, summation="exact samples=sequence")
    assert_same_bits(detconv.conv2d_bias(grad_output, summation="exact samples=sequence"), of_ones[:, 0, 0, 0])


@pytest.mark.parametrize("summation", ["naive", "pairwise", "kahan", "fp64", "exact"])
def test_halves_of_a_batch_add_up_to_the_batch(summation: str) -> None:
    image, grad_output = made((8, 2, 5, 5), np.float32, 1), made((8, 3, 3, 3), np.float32, 2)

    def gradients(samples: slice) -> tuple[Array, Array]:
        weight = detconv.conv2d_weight(image[samples], (3, 2, 3, 3), grad_output[samples], summation=summation)
        return weight, detconv.conv2d_bias(grad_output[samples], summation=summation)

    for first, second, whole in zip(gradients(slice(4)), gradients(slice(4, 8)), gradients(slice(8)), strict=True):
        assert_same_bits(first + second, whole)
