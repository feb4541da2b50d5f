"""Convolutions of other libraries, as functions that ``reveal`` takes: torch, NumPy, SciPy, ONNX Runtime, JAX.

Each has the geometry of one layer built in and loads its library when it is made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from detconv import routes
from detconv.quoting import quoted
from detconv.revealing.passes import Array, Geometry


@dataclass(frozen=True)
class BlackBox:
    """fn(input, weight, bias), the kind of arrays it takes, and the library that it is of."""

    fn: Callable[..., Any]
    arrays: str
    library: str


def make(route: str, arguments: Mapping[str, Any], onednn: bool = True) -> BlackBox:
    """The route, one of ``ROUTES``, for the arguments of ``reveal``.

    Raises:
        ValueError: no such route, or one that has no such convolution.
        ImportError: its library is not installed.
    """
    if route not in ROUTES:
        raise ValueError(f"function must be one of {', '.join(ROUTES)}, or MODULE:FUNCTION; got {quoted(route)}")
    geometry = Geometry.of(**arguments)
    if geometry.transposed and route != "torch":
        raise ValueError(f"transposed: of torch or of MODULE:FUNCTION only; got {route}")
    fn = _torch(geometry, onednn) if route == "torch" else ROUTES[route](geometry)
    fn.__qualname__ = route if onednn else f"{route} without oneDNN"
    return BlackBox(fn, "torch" if route == "torch" else "numpy", route.split("-")[0])


# ---- torch ----


def _torch(g: Geometry, onednn: bool = True) -> Callable[..., Any]:
    torch = import_module("torch")

    def conv_transpose2d(input: Any, weight: Any, bias: Any) -> Any:
        rest = (g.stride, g.padding, g.output_padding, g.groups, g.dilation)
        with routes.onednn(torch, onednn):
            return torch.nn.functional.conv_transpose2d(input, weight, bias, *rest)

    if g.transposed:
        return conv_transpose2d
    padding = g.padding if isinstance(g.padding, str) else list(g.padding)
    rest = (list(g.stride), padding, list(g.dilation), g.groups)

    def conv2d(input: Any, weight: Any, bias: Any) -> Any:
        with routes.onednn(torch, onednn):
            return torch.nn.functional.conv2d(input, weight, bias, *rest)

    return conv2d


# ---- NumPy ----


def _windows(g: Geometry, input: Array) -> Array:
    """(N, C, OH, OW, KH, KW): what each output looks at, without copying."""
    padded = np.pad(input, ((0, 0), (0, 0), *g.borders))
    reach = [(k - 1) * d + 1 for k, d in zip(g.weight_shape[2:], g.dilation, strict=True)]
    windows = sliding_window_view(padded, reach, axis=(2, 3))
    return windows[:, :, :: g.stride[0], :: g.stride[1], :: g.dilation[0], :: g.dilation[1]]


def _by_group(one: Callable[[Array, Array], Array]) -> Callable[[Geometry], Callable[..., Array]]:
    """A route from a function of windows and weights of one group: (N, C, OH, OW, KH, KW), (O, C, KH, KW)."""

    def made(g: Geometry) -> Callable[..., Array]:
        def conv2d(input: Array, weight: Array, bias: Array | None) -> Array:
            windows, channels = _windows(g, input), g.weight_shape[1]
            outputs = g.weight_shape[0] // g.groups
            found = [
                one(windows[:, i * channels : (i + 1) * channels], weight[i * outputs : (i + 1) * outputs])
                for i in range(g.groups)
            ]
            output = np.concatenate(found, axis=1) if g.groups > 1 else found[0]
            return output if bias is None else output + bias[:, None, None]

        return conv2d

    return made


def _tensordot(windows: Array, weight: Array) -> Array:
    return np.tensordot(windows, weight, axes=((1, 4, 5), (1, 2, 3))).transpose(0, 3, 1, 2)


def _einsum(windows: Array, weight: Array) -> Array:
    output: Array = np.einsum("nchwij,ocij->nohw", windows, weight)
    return output


def _einsum_optimized(windows: Array, weight: Array) -> Array:
    output: Array = np.einsum("nchwij,ocij->nohw", windows, weight, optimize=True)
    return output


def _matmul(windows: Array, weight: Array) -> Array:
    samples, _, height, width = windows.shape[:4]
    columns = windows.transpose(1, 4, 5, 0, 2, 3).reshape(weight[0].size, -1)
    output = weight.reshape(len(weight), -1) @ columns
    return output.reshape(len(weight), samples, height, width).transpose(1, 0, 2, 3)


# ---- SciPy ----


def _per_channel(correlate: Callable[[Any, Array, Array], Array]) -> Callable[[Geometry], Callable[..., Array]]:
    """A route that adds up correlations of one channel; correlate(scipy, image, kernel) is "valid", of stride 1."""

    def made(g: Geometry) -> Callable[..., Array]:
        if g.dilation != (1, 1):
            raise ValueError("SciPy's correlations have no dilation")
        scipy = import_module("scipy.ndimage"), import_module("scipy.signal")

        def conv2d(input: Array, weight: Array, bias: Array | None) -> Array:
            padded = np.pad(input, ((0, 0), (0, 0), *g.borders))
            samples, height, width = len(input), *_output_size(g, input)
            channels, outputs = g.weight_shape[1], g.weight_shape[0] // g.groups
            output = np.zeros((samples, g.weight_shape[0], height, width), input.dtype)
            for n, o in np.ndindex(output.shape[:2]):
                for c in range(channels):
                    image = padded[n, o // outputs * channels + c]
                    output[n, o] += correlate(scipy, image, weight[o, c])[:: g.stride[0], :: g.stride[1]]
            return output if bias is None else output + bias[:, None, None]

        return conv2d

    return made


def _output_size(g: Geometry, input: Array) -> tuple[int, int]:
    sizes = [
        (size + sum(border) - d * (k - 1) - 1) // s + 1
        for size, border, d, k, s in zip(
            input.shape[2:], g.borders, g.dilation, g.weight_shape[2:], g.stride, strict=True
        )
    ]
    return sizes[0], sizes[1]


def _ndimage(scipy: Any, image: Array, kernel: Array) -> Array:
    (height, width), (rows, columns) = image.shape, kernel.shape
    whole: Array = scipy[0].correlate(image, kernel, mode="constant")
    top, left = rows // 2, columns // 2
    return whole[top : top + height - rows + 1, left : left + width - columns + 1]


def _correlate2d(scipy: Any, image: Array, kernel: Array) -> Array:
    result: Array = scipy[1].correlate2d(image, kernel, mode="valid")
    return result


def _correlate(scipy: Any, image: Array, kernel: Array) -> Array:
    result: Array = scipy[1].correlate(image, kernel, mode="valid", method="direct")
    return result


def _correlate_fft(scipy: Any, image: Array, kernel: Array) -> Array:
    result: Array = scipy[1].correlate(image, kernel, mode="valid", method="fft")
    return result


# ---- ONNX Runtime and JAX ----


def _onnxruntime(g: Geometry) -> Callable[..., Array]:
    onnx, runtime = import_module("onnx"), import_module("onnxruntime")
    element = {"float32": onnx.TensorProto.FLOAT, "float64": onnx.TensorProto.DOUBLE}[g.dtype]
    (top, bottom), (left, right) = g.borders

    def value(name: str, shape: list[Any]) -> Any:
        return onnx.helper.make_tensor_value_info(name, element, shape)

    inputs = [value("x", [None, g.input_shape[1], None, None]), value("w", list(g.weight_shape))]
    inputs += [value("b", [g.weight_shape[0]])] * g.bias
    node = onnx.helper.make_node(
        "Conv",
        [info.name for info in inputs],
        ["y"],
        kernel_shape=list(g.weight_shape[2:]),
        strides=list(g.stride),
        dilations=list(g.dilation),
        pads=[top, left, bottom, right],
        group=g.groups,
    )
    graph = onnx.helper.make_graph([node], "convolution", inputs, [value("y", [None, g.weight_shape[0], None, None])])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def conv2d(input: Array, weight: Array, bias: Array | None) -> Array:
        given = {"x": input, "w": weight} | ({} if bias is None else {"b": bias})
        result: Array = session.run(None, given)[0]
        return result

    return conv2d


def _jax(g: Geometry) -> Callable[..., Any]:
    jax = import_module("jax")

    def convolve(input: Any, weight: Any) -> Any:
        return jax.lax.conv_general_dilated(
            input,
            weight,
            g.stride,
            g.borders,
            rhs_dilation=g.dilation,
            dimension_numbers=("NCHW", "OIHW", "NCHW"),
            feature_group_count=g.groups,
        )

    compiled = jax.jit(convolve)

    def conv2d(input: Array, weight: Array, bias: Array | None) -> Any:
        output = compiled(input, weight)
        return output if bias is None else output + bias[:, None, None]

    return conv2d


ROUTES: dict[str, Callable[[Geometry], Callable[..., Any]]] = {
    "torch": _torch,
    "numpy-tensordot": _by_group(_tensordot),
    "numpy-einsum": _by_group(_einsum),
    "numpy-einsum-optimize": _by_group(_einsum_optimized),
    "numpy-matmul": _by_group(_matmul),
    "scipy-ndimage": _per_channel(_ndimage),
    "scipy-correlate2d": _per_channel(_correlate2d),
    "scipy-correlate": _per_channel(_correlate),
    "scipy-correlate-fft": _per_channel(_correlate_fft),
    "onnxruntime": _onnxruntime,
    "jax": _jax,
}
