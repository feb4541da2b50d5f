"""Who computes: detconv by each summation, torch in its configurations, NumPy, ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

import detconv.routes
from bench.problem import HALF_TYPES, Array, Problem
from bench.timing import Timed
from bench.torch_order import order_of
from detconv import _core


class Unavailable(Exception):
    """This route has nothing for this problem; the message says why."""


@dataclass(frozen=True)
class Route:
    """A call on one problem's arrays."""

    call: Callable[[], Any]
    output: Callable[[], Array]  # what the call gives, as NumPy numbers: (N, C, H, W)
    around: Callable[[], AbstractContextManager[Any]] = nullcontext
    summation: str | None = None

    @property
    def timed(self) -> Timed:
        return Timed(self.call, self.around)


class Kind(NamedTuple):
    """How a route is made, for a problem."""

    make: Callable[[Problem], Route]
    about: str
    capped: bool = True  # an environment variable holds it to an instruction set
    usual: bool = True  # measured unless routes are named


# ---- torch ----


def import_torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise Unavailable(f"torch: {error}") from None
    return torch


def channels_last(problem: Problem) -> tuple[Any, Any, Any]:
    form = import_torch().channels_last
    x, w, g = problem.tensors
    return x.contiguous(memory_format=form), w.contiguous(memory_format=form), g.contiguous(memory_format=form)


def torch_route(problem: Problem, configuration: str) -> Route:
    torch = import_torch()
    x, w, g = channels_last(problem) if configuration == "channels_last" else problem.tensors
    if configuration == "oneDNN" and not torch.backends.mkldnn.is_available():
        raise Unavailable("this torch has no oneDNN")

    @contextmanager
    def around() -> Iterator[None]:
        with detconv.routes.onednn(torch, configuration != "native"), torch.inference_mode():
            yield

    if problem.which == "forward":
        call = partial(torch.nn.functional.conv2d, x, w, None, *problem.options)
    else:
        pairs = [[value, value] for value in problem.options[:3]]
        mask = [problem.which == "input", problem.which == "weight", False]
        backward = partial(torch.ops.aten.convolution_backward, g, x, w, None, *pairs, False, [0, 0])
        call = partial(backward, problem.layer.groups, mask)

    def output() -> Array:
        try:
            with around():
                result = call()
        except RuntimeError as error:
            raise Unavailable(f"torch: {str(error).splitlines()[0]}") from None
        tensor = result if problem.which == "forward" else result[mask.index(True)]
        array: Array = (tensor.float() if problem.dtype in HALF_TYPES else tensor).contiguous().numpy()
        return array

    return Route(call, output, around)


# ---- detconv ----


def detconv_route(problem: Problem, summation: str, layout: str = "contiguous") -> Route:
    tensors = problem.dtype in HALF_TYPES or layout == "channels_last"
    values = channels_last(problem) if layout == "channels_last" else problem.tensors if tensors else problem.arrays
    call = partial(problem.sums, summation, values)

    def output() -> Array:
        result = call()
        if problem.dtype in HALF_TYPES:
            result = result.float()
        return result.contiguous().numpy() if tensors else result  # type: ignore[no-any-return]

    return Route(call, output, summation=summation)


def replay(problem: Problem) -> Route:
    """torch's own order, where it is found."""
    if problem.dtype in HALF_TYPES:
        raise Unavailable("orders are looked for in float32 and float64")
    if problem.which == "weight":
        raise Unavailable("orders are looked for in forward passes and input gradients")
    # An order is told by roundings, of which other values have few.
    normal = Problem(problem.layer._replace(values="normal"), problem.which, problem.dtype)
    summation = order_of(normal, torch_route(normal, "oneDNN").output())
    if summation is None:
        raise Unavailable("torch's order is none of the known ones")
    return detconv_route(problem, summation)


# ---- NumPy and ONNX Runtime ----


def numpy_route(problem: Problem, name: str) -> Route:
    layer, (x, w, _) = problem.layer, problem.arrays
    if problem.which != "forward" or problem.dtype in HALF_TYPES or problem.options[::2] != (1, 1) or layer.groups > 1:
        raise Unavailable("written for forward passes with stride 1, of float32 and float64")
    if "einsum" in name and "optimize" not in name and layer.macs > 2e7:
        raise Unavailable("takes seconds")
    if 8 * layer.macs // layer.outputs > 2**31:
        raise Unavailable("takes gigabytes")
    values = detconv.routes.Layer(x, w, np.zeros(layer.outputs, w.dtype), layer.padding)
    call = partial(detconv.routes.NUMPY[name], values)
    return Route(call, call)


def onnxruntime_route(problem: Problem) -> Route:
    if problem.which != "forward" or problem.dtype != "float32":
        raise Unavailable("forward passes of float32 only")
    try:
        import onnxruntime  # type: ignore[import-untyped,import-not-found,unused-ignore]
        from onnx import TensorProto, helper  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise Unavailable(f"ONNX Runtime: {error}") from None
    layer, (x, w, _) = problem.layer, problem.arrays
    shapes = {"x": layer.input_shape, "y": layer.output_shape}
    x_, y_ = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items())
    node = helper.make_node(
        "Conv",
        ["x", "w"],
        ["y"],
        kernel_shape=[layer.kernel] * 2,
        strides=[layer.stride] * 2,
        pads=[layer.padding] * 4,
        dilations=[layer.dilation] * 2,
        group=layer.groups,
    )
    weight = helper.make_tensor("w", TensorProto.FLOAT, layer.weight_shape, w.tobytes(), raw=True)
    graph = helper.make_graph([node], "conv", [x_], [y_], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = detconv.get_num_threads(), 1
    options.log_severity_level = 3
    # Its threads would go on spinning, and take the processors of whoever is timed next.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    call = partial(session.run, None, {"x": x})
    return Route(call, lambda: call()[0])


# ---- All of them ----

TORCH = ("torch oneDNN", "torch native", "torch channels_last")
METHODS: Mapping[str, str] = {method: method for method in _core.methods()} | {"rounded": "naive products=rounded"}
REPLAY, CHANNELS_LAST = "replay", "naive channels_last"

ROUTES: Mapping[str, Kind] = {
    "torch oneDNN": Kind(partial(torch_route, configuration="oneDNN"), "torch as it comes"),
    "torch native": Kind(partial(torch_route, configuration="native"), "torch without oneDNN"),
    "torch channels_last": Kind(partial(torch_route, configuration="channels_last"), "torch, oneDNN, NHWC tensors"),
    **{
        name: Kind(partial(detconv_route, summation=text), f'detconv, summation="{text}"')
        for name, text in METHODS.items()
    },
    CHANNELS_LAST: Kind(
        partial(detconv_route, summation="naive", layout="channels_last"),
        'detconv, summation="naive", NHWC tensors',
        usual=False,
    ),
    REPLAY: Kind(replay, "detconv in the order of torch's oneDNN"),
    "ONNX Runtime": Kind(onnxruntime_route, "its CPU provider", capped=False),
    **{
        name: Kind(partial(numpy_route, name=name), "as people write it", capped=False, usual=False)
        for name in detconv.routes.NUMPY
    },
}


def is_detconv(name: str) -> bool:
    return name in METHODS or name in (REPLAY, CHANNELS_LAST)
