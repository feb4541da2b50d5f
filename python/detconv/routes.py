"""Other code for the same convolution, as people write it: what ``detconv demo`` compares.

Every route takes a ``Layer`` and returns its output (N, O, OH, OW). They add the same products; only the order of the
additions and their rounding differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from importlib import import_module
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]


class Layer(NamedTuple):
    """The arguments of one convolution with stride 1."""

    input: Array  # (N, C, H, W)
    weight: Array  # (O, C, KH, KW)
    bias: Array  # (O,)
    padding: int

    @property
    def terms(self) -> int:
        """K, the number of products of one output."""
        return math.prod(self.weight.shape[1:])

    def map(self, function: Callable[[Array], Array]) -> Layer:
        """The layer with a function applied to each of its arrays."""
        return Layer(function(self.input), function(self.weight), function(self.bias), self.padding)


Route: TypeAlias = Callable[[Layer], Array]

# ---- NumPy ----


def loops(layer: Layer) -> Array:
    """The textbook's loops, one scalar after the other, as in the forum's question."""
    image, weight, bias = _padded(layer), layer.weight, layer.bias
    (samples, channels, height, width), (outputs, _, kernel_height, kernel_width) = image.shape, weight.shape
    output = np.empty((samples, outputs, height - kernel_height + 1, width - kernel_width + 1), np.float32)
    for n, o, y, x in np.ndindex(output.shape):
        total = np.float32(0)
        for c in range(channels):
            for i in range(kernel_height):
                for j in range(kernel_width):
                    total += weight[o, c, i, j] * image[n, c, y + i, x + j]
        output[n, o, y, x] = total + bias[o]
    return output


def tensordot(layer: Layer) -> Array:
    output = np.tensordot(_windows(layer), layer.weight, axes=((1, 4, 5), (1, 2, 3)))
    return output.transpose(0, 3, 1, 2) + layer.bias[:, None, None]


def einsum(layer: Layer) -> Array:
    output: Array = np.einsum("nchwij,ocij->nohw", _windows(layer), layer.weight)
    return output + layer.bias[:, None, None]


def einsum_optimized(layer: Layer) -> Array:
    """By way of tensordot, where that is possible."""
    output: Array = np.einsum("nchwij,ocij->nohw", _windows(layer), layer.weight, optimize=True)
    return output + layer.bias[:, None, None]


def im2col(layer: Layer) -> Array:
    """All windows as the columns of one matrix, then one matrix product."""
    windows, outputs = _windows(layer), len(layer.weight)
    samples, _, height, width = windows.shape[:4]
    columns = windows.transpose(1, 4, 5, 0, 2, 3).reshape(layer.terms, -1)
    output = layer.weight.reshape(outputs, -1) @ columns
    return output.reshape(outputs, samples, height, width).transpose(1, 0, 2, 3) + layer.bias[:, None, None]


def _padded(layer: Layer) -> Array:
    p = layer.padding
    return np.pad(layer.input, ((0, 0), (0, 0), (p, p), (p, p)))


def _windows(layer: Layer) -> Array:
    """(N, C, OH, OW, KH, KW): what each output looks at, without copying."""
    return sliding_window_view(_padded(layer), layer.weight.shape[2:], axis=(2, 3))


NUMPY: Mapping[str, Route] = {
    "NumPy tensordot": tensordot,
    "NumPy einsum": einsum,
    "NumPy einsum, optimize=True": einsum_optimized,
    "NumPy im2col @": im2col,
}

# ---- torch ----


def torch_routes() -> Mapping[str, Route]:
    """torch's conv2d as it comes, and with oneDNN switched off where torch has it.

    Raises:
        ImportError: torch is not installed, or does not load.
    """
    try:
        torch = import_module("torch")
    except OSError as error:  # one of its shared libraries is missing
        raise ImportError(str(error)) from error

    def conv2d(layer: Layer) -> Array:
        arguments = map(torch.from_numpy, (layer.input, layer.weight, layer.bias))
        output: Array = torch.nn.functional.conv2d(*arguments, padding=layer.padding).numpy()
        return output

    def without_onednn(layer: Layer) -> Array:
        with onednn(torch, False):
            return conv2d(layer)

    routes = {"torch": conv2d}
    if torch.backends.mkldnn.is_available():
        routes["torch, oneDNN off"] = without_onednn
    return routes


def onednn(torch: Any, enabled: bool) -> AbstractContextManager[None]:
    """Context manager inside which torch computes with oneDNN, or without; its other settings stay.

    Setting ``enabled`` itself is forbidden once torch's own test utilities have been imported.
    """
    settings = torch.backends.mkldnn
    inside: AbstractContextManager[None] = settings.flags(
        enabled=enabled and settings.is_available(),
        deterministic=settings.deterministic,
        allow_tf32=settings.allow_tf32,
    )
    return inside
