"""torch's own samples of conv2d and conv_transpose2d: outputs and gradients within the error bound of the exact values.

The exact values are sums of integers: every element is an integer times 2^-SCALE, whose products Python adds exactly.
The bound is that of any order of n additions with one rounding each: gamma(n) * S, gamma(n) = n * u / (1 - n * u), with
S the sum of the absolute values of the terms (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1).
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import pytest

import detconv

torch = pytest.importorskip("torch")

from torch.testing._internal.common_methods_invocations import op_db  # noqa: E402

SAMPLED = {op.name: op for op in op_db if op.name in ("nn.functional.conv2d", "nn.functional.conv_transpose2d")}
DTYPES = (torch.float32, torch.float64)
SCALE = 120


class Geometry(NamedTuple):
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int


class Exact(NamedTuple):
    """Sums of products as integers times 2^(-2 * SCALE), and S likewise; terms: how many each sum has at most."""

    total: Any
    absolute: Any
    terms: int


def integers(tensor: Any) -> Any:
    """The elements times 2^SCALE: Python ints in an array of objects."""
    values = tensor.detach().double().numpy()
    scaled = [Fraction(float(v)) * 2**SCALE for v in values.ravel()]
    assert all(s.denominator == 1 for s in scaled)
    array = np.empty(values.shape, object)
    array.ravel()[:] = [s.numerator for s in scaled]
    return array


def both(contract: Any, first: Any, second: Any, *rest: Any, terms: int) -> Exact:
    return Exact(contract(first, second, *rest), contract(abs(first), abs(second), *rest), terms)


def taps(image: Any, kernel: tuple[int, int], output: tuple[int, int], g: Geometry) -> Any:
    """For every tap of the kernel, the part of the padded image (a view) that the outputs read there."""
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            rows = slice(i * g.dilation[0], i * g.dilation[0] + (output[0] - 1) * g.stride[0] + 1, g.stride[0])
            columns = slice(j * g.dilation[1], j * g.dilation[1] + (output[1] - 1) * g.stride[1] + 1, g.stride[1])
            yield i, j, image[:, :, rows, columns]


def surrounded(image: Any, before: tuple[int, int], after: tuple[int, int]) -> Any:
    """Rows and columns of zeros around the image; Python's, where numpy.pad would put its own, which overflow."""
    (top, left), (height, width) = before, image.shape[2:]
    array = np.zeros((*image.shape[:2], top + height + after[0], left + width + after[1]), object)
    array[:, :, top : top + height, left : left + width] = image
    return array


def groups_of(x: Any, axis: int, g: Geometry) -> list[Any]:
    return np.split(x, g.groups, axis)


def forward(image: Any, weight: Any, output: tuple[int, int], g: Geometry) -> Any:
    parts = []
    for x, w in zip(groups_of(surrounded(image, g.padding, g.padding), 1, g), groups_of(weight, 0, g), strict=True):
        y = np.zeros((len(x), len(w), *output), object)
        for i, j, seen in taps(x, w.shape[2:], output, g):
            y += np.tensordot(seen, w[:, :, i, j], (1, 1)).transpose(0, 3, 1, 2)
        parts.append(y)
    return np.concatenate(parts, 1)


def by_input(grad: Any, weight: Any, image: tuple[int, int], g: Geometry) -> Any:
    parts = []
    for y, w in zip(groups_of(grad, 1, g), groups_of(weight, 0, g), strict=True):
        # Room for every tap of every output; what lies outside the image is cut off.
        room = [
            (n - 1) * s + d * (k - 1) + 1
            for n, s, d, k in zip(y.shape[2:], g.stride, g.dilation, w.shape[2:], strict=True)
        ]
        room = [max(r, n + 2 * p) for r, n, p in zip(room, image, g.padding, strict=True)]
        x = np.zeros((len(y), w.shape[1], *room), object)
        for i, j, seen in taps(x, w.shape[2:], y.shape[2:], g):
            seen += np.tensordot(y, w[:, :, i, j], (1, 0)).transpose(0, 3, 1, 2)
        (top, left), (height, width) = g.padding, image
        parts.append(x[:, :, top : top + height, left : left + width])
    return np.concatenate(parts, 1)


def by_weight(image: Any, grad: Any, kernel: tuple[int, int], g: Geometry) -> Any:
    parts = []
    for x, y in zip(groups_of(surrounded(image, g.padding, g.padding), 1, g), groups_of(grad, 1, g), strict=True):
        w = np.zeros((y.shape[1], x.shape[1], *kernel), object)
        for i, j, seen in taps(x, kernel, y.shape[2:], g):
            w[:, :, i, j] = np.tensordot(y, seen, ((0, 2, 3), (0, 2, 3)))
        parts.append(w)
    return np.concatenate(parts, 0)


def assert_within_bound(actual: Any, exact: Exact, what: str) -> None:
    u = Fraction(1, 2**24 if actual.dtype == torch.float32 else 2**53)
    n = exact.terms + 1  # and the bias
    gamma = n * u / (1 - n * u)
    values = actual.detach().double().numpy().reshape(exact.total.shape)
    for value, total, absolute in zip(values.ravel(), exact.total.ravel(), exact.absolute.ravel(), strict=True):
        error = abs(Fraction(float(value)) * 4**SCALE - total)
        assert error <= gamma * absolute, f"{what}: error {float(error / 4**SCALE)}"


def with_bias(exact: Exact, bias: Any) -> Exact:
    if bias is None:
        return exact
    column = integers(bias)[:, None, None] * 2**SCALE
    return Exact(exact.total + column, exact.absolute + abs(column), exact.terms)


def pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def resolved(sample: Any) -> tuple[Geometry, tuple[int, int]]:
    """The sample's geometry in numbers, and how many rows and columns of zeros stand after the image for "same"."""
    options = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, **sample.kwargs}
    stride, dilation, extra = pair(options["stride"]), pair(options["dilation"]), (0, 0)
    padding = options["padding"]
    if padding == "valid":
        padding = (0, 0)
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, sample.args[0].shape[2:], strict=True)]
        padding, extra = tuple(t // 2 for t in total), tuple(t % 2 for t in total)
    return Geometry(stride, pair(padding), dilation, options["groups"]), extra


def four(x: Any) -> Any:
    return x if x.ndim == 4 else x[None]


def check_conv2d(sample: Any, summation: str) -> None:
    image, weight, bias = sample.input, *sample.args
    g, extra = resolved(sample)
    output = detconv.conv2d(image, weight, bias, **sample.kwargs, summation=summation)
    grad = torch.linspace(-3, 5, output.numel(), dtype=output.dtype).reshape(output.shape)
    wanted = [x for x in (image, weight, bias) if x is not None]
    found = torch.autograd.grad(output, wanted, grad)

    x, w, y = four(integers(image)), integers(weight), four(integers(grad))
    extended = surrounded(x, (0, 0), extra)
    pixels = y[:, 0].size
    forwards = both(forward, extended, w, y.shape[2:], g, terms=w[0].size)
    assert_within_bound(output, with_bias(forwards, bias), "output")
    inputs = both(by_input, y, w, extended.shape[2:], g, terms=w[:, 0].size // g.groups)
    height, width = x.shape[2:]
    cut = Exact(inputs.total[..., :height, :width], inputs.absolute[..., :height, :width], inputs.terms)
    assert_within_bound(found[0], cut, "gradient by input")
    assert_within_bound(found[1], both(by_weight, extended, y, w.shape[2:], g, terms=pixels), "gradient by weight")
    if bias is not None:
        assert_within_bound(found[2], bias_gradient(y), "gradient by bias")


def bias_gradient(y: Any) -> Exact:
    unit = 2**SCALE
    return Exact(y.sum((0, 2, 3)) * unit, abs(y).sum((0, 2, 3)) * unit, y[:, 0].size)


def check_conv_transpose2d(sample: Any, summation: str) -> None:
    image, weight, bias = sample.input, *sample.args
    g, _ = resolved(sample)
    output = detconv.conv_transpose2d(image, weight, bias, **sample.kwargs, summation=summation)
    grad = torch.linspace(-3, 5, output.numel(), dtype=output.dtype).reshape(output.shape)
    wanted = [x for x in (image, weight, bias) if x is not None]
    found = torch.autograd.grad(output, wanted, grad)

    x, w, y = four(integers(image)), integers(weight), four(integers(grad))
    forwards = both(by_input, x, w, y.shape[2:], g, terms=w[:, 0].size // g.groups)
    assert_within_bound(output, with_bias(forwards, bias), "output")
    inputs = both(forward, y, w, x.shape[2:], g, terms=w[0].size)
    assert_within_bound(found[0], inputs, "gradient by input")
    pixels = x[:, 0].size
    assert_within_bound(found[1], both(by_weight, y, x, w.shape[2:], g, terms=pixels), "gradient by weight")
    if bias is not None:
        assert_within_bound(found[2], bias_gradient(y), "gradient by bias")


CHECKS = {"nn.functional.conv2d": check_conv2d, "nn.functional.conv_transpose2d": check_conv_transpose2d}


@pytest.mark.parametrize("summation", ["pairwise", "naive products=rounded", "exact"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SAMPLED)
def test_samples(name: str, dtype: Any, summation: str) -> None:
    torch.manual_seed(0)
    samples = list(SAMPLED[name].sample_inputs("cpu", dtype, requires_grad=True))
    assert len(samples) >= 12
    for sample in samples:
        CHECKS[name](sample, summation)


def test_error_samples_raise() -> None:
    samples = list(SAMPLED["nn.functional.conv2d"].error_inputs("cpu"))
    assert len(samples) >= 10
    for sample in samples:
        image, (weight, bias), options = sample.sample_input.input, sample.sample_input.args, sample.sample_input.kwargs
        with pytest.raises((TypeError, ValueError)):
            detconv.conv2d(image, weight, bias, **options)
        if weight.is_floating_point():
            with pytest.raises((TypeError, ValueError)):
                detconv.conv2d(image, weight.clone().requires_grad_(), bias, **options)
