"""detconv.override below Python: every convolution of torch's registry, whoever calls it, and nothing left behind."""

from __future__ import annotations

import os
import random
import re
import threading
import timeit
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import detconv
from bits import made

torch = pytest.importorskip("torch")

from torch.nn import functional  # noqa: E402

from detconv.torch import convolutions  # noqa: E402
from detconv.torch.override import KERNELS, NotOverridden  # noqa: E402

aten = torch.ops.aten

SUMMATION = "naive order=kw,c,kh products=rounded"

CONVOLUTIONS = sorted(
    name.removeprefix("aten::")
    for name in torch._C._dispatch_get_all_op_names()
    if name.startswith("aten::") and re.search("conv(?!ert)", name)
)
TABLES = {
    "computed": convolutions.COMPUTED,
    "split": convolutions.SPLIT,
    "reported": convolutions.REPORTED,
    "elsewhere": convolutions.ELSEWHERE,
    "no convolution": convolutions.NO_CONVOLUTION,
}


def table_of(name: str) -> str:
    (found,) = (table for table, functions in TABLES.items() if name.partition(".")[0] in functions)
    return found


def schema_of(name: str) -> Any:
    function, _, overload = name.partition(".")
    return torch._C._get_schema(f"aten::{function}", overload)


# ---- The table ----


def test_every_convolution_of_the_registry_is_in_one_table() -> None:
    known = [function for functions in TABLES.values() for function in functions]
    assert len(known) == len(set(known))
    assert set(known) == {name.partition(".")[0] for name in CONVOLUTIONS}
    assert len(CONVOLUTIONS) >= 70


def test_what_torch_splits_comes_by() -> None:
    """torch makes it of others at its dispatcher, of which the kernels meet the one that the table names."""
    met = convolutions.keys_of_overloads()
    for function, into in convolutions.SPLIT.items():
        for overload in getattr(aten, function).overloads():
            name = f"aten::{function}" + ("" if overload == "default" else f".{overload}")
            assert torch._C._dispatch_has_kernel_for_dispatch_key(name, "CompositeImplicitAutograd"), name
        assert into in met


class Problem:
    """A drawn convolution and what an overload calls each of its parts."""

    def __init__(self, seed: int, names: set[str], *, transposed: bool = False, same: bool = False) -> None:
        draw = random.Random(seed)

        def pair(name: str, low: int, high: int, default: int) -> tuple[int, int]:
            return (draw.randint(low, high), draw.randint(low, high)) if name in names else (default, default)

        self.transposed = transposed
        self.groups = draw.randint(1, 2) if "groups" in names else 1
        self.stride = (1, 1) if same else pair("stride", 1, 2, 1)
        self.padding: Any = "same" if same else pair("padding", 0, 1, 0)
        self.dilation = pair("dilation", 1, 2, 1)
        self.output_padding = tuple(draw.randint(0, s - 1) for s in self.stride) if transposed else (0, 0)
        inputs, outputs = 2 * draw.randint(1, 3), 2 * draw.randint(1, 3)
        kernel = draw.randint(1, 3), draw.randint(1, 3)
        a, b = (inputs, outputs) if transposed else (outputs, inputs)
        self.input = self.tensor((draw.randint(1, 3), inputs, 6, 7), seed)
        self.weight = self.tensor((a, b // self.groups, *kernel), seed + 1)
        self.bias = self.tensor((outputs,), seed + 2) if draw.random() < 0.7 else None
        self.output = self.forward(self.input, self.weight, self.bias)
        self.grad_output = self.tensor(tuple(self.output.shape), seed + 3)
        self.mask = [draw.random() < 0.7 for _ in range(3)] if "output_mask" in names else [True] * 3
        self.of = [self.tensor(tuple(x.shape), seed + 4) for x in (self.input, self.weight, self.output[0, :, 0, 0])]

    @staticmethod
    def tensor(shape: tuple[int, ...], seed: int) -> Any:
        return torch.from_numpy(made(shape, np.float32, seed))

    def forward(self, x: Any, w: Any, b: Any = None) -> Any:
        if self.transposed:
            geometry = self.stride, self.padding, self.output_padding, self.groups, self.dilation
            return detconv.conv_transpose2d(x, w, b, *geometry, summation=SUMMATION)
        geometry = self.stride, self.padding, self.dilation, self.groups
        return detconv.conv2d(x, w, b, *geometry, summation=SUMMATION)

    def backward(self, x: Any, w: Any) -> list[Any]:
        """The gradients by the input, weight and bias, where autograd finds them."""
        x, w = x.clone().requires_grad_(), w.clone().requires_grad_()
        b = torch.zeros(self.output.shape[1]).requires_grad_()
        return list(torch.autograd.grad(self.forward(x, w, b), (x, w, b), self.grad_output))

    def arguments(self, schema: Any) -> tuple[list[Any], dict[str, Any]]:
        flags = dict.fromkeys(("benchmark", "deterministic", "cudnn_enabled", "allow_tf32"), False)
        parts = flags | {
            "input": self.input,
            "self": self.input,
            "weight": self.weight,
            "bias": self.bias,
            "bias_sizes": [self.output.shape[1]],
            "kernel_size": list(self.weight.shape[2:]),
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "transposed": self.transposed,
            "output_padding": self.output_padding,
            "groups": self.groups,
            "grad_output": self.grad_output,
            "gO": self.grad_output,
            "ggI": self.of[0],
            "ggW": self.of[1],
            "ggb": self.of[2],
            "output_mask": self.mask,
            "z": self.output,
            "alpha": None,
            "pad": 0,
            "input_size": None,
        }
        args = [parts[argument.name] for argument in schema.arguments if not argument.kwarg_only]
        # A place of the right shape, and one that torch makes larger.
        places = [argument.name for argument in schema.arguments if argument.is_out]
        return args, {name: torch.empty(0) for name in places}

    def expected(self, function: str) -> list[Any]:
        """What an overload of this function returns, None where it returns no tensor."""
        if function == "_convolution_double_backward":
            of_input, of_weight, of_bias = self.of
            found = [
                self.forward(of_input, self.weight) + self.forward(self.input, of_weight) + of_bias.reshape(-1, 1, 1),
                self.backward(self.input, of_weight)[0],
                self.backward(of_input, self.weight)[1],
            ]
        elif "backward" in function:
            found = self.backward(self.input, self.weight)
        else:
            return [self.output]
        return [x if wanted else None for x, wanted in zip(found, self.mask, strict=True)]


def problems(name: str, count: int = 20) -> list[Problem]:
    names = {argument.name for argument in schema_of(name).arguments}
    function = name.partition(".")[0]
    found = []
    for seed in range(count):
        transposed = "transpose" in function or ("transposed" in names and seed % 2 == 1)
        by_word = function == "_convolution_mode" or name.endswith(".padding")
        found.append(Problem(100 * seed, names, transposed=transposed, same=by_word))
    return found


def call(name: str, problem: Problem) -> Any:
    function, _, overload = name.partition(".")
    args, kwargs = problem.arguments(schema_of(name))
    return getattr(getattr(aten, function), overload or "default")(*args, **kwargs)


TWO_DIMENSIONAL = [
    name
    for name in CONVOLUTIONS
    if table_of(name) == "computed" or name.startswith(("_convolution_mode", "thnn_conv2d"))
]


@pytest.mark.parametrize("name", TWO_DIMENSIONAL)
def test_every_overload_is_computed(name: str) -> None:
    drawn = problems(name)
    with detconv.override(SUMMATION, strict=True):
        outputs = [call(name, problem) for problem in drawn]
    for problem, output in zip(drawn, outputs, strict=True):
        expected = problem.expected(name.partition(".")[0])
        found = list(output) if isinstance(output, tuple | list) else [output]
        for result, value in zip(found, expected, strict=True):
            if value is not None:
                assert torch.equal(result, value)
            else:
                assert result is None or result.numel() == 0


@pytest.mark.parametrize("name", [name for name in CONVOLUTIONS if table_of(name) in ("reported", "elsewhere")])
def test_every_other_overload_is_an_error_where_strict(name: str) -> None:
    for problem in problems(name, 3):
        with detconv.override(SUMMATION, strict=True), pytest.raises((RuntimeError, ValueError, TypeError)):
            call(name, problem)


ONE_AND_THREE: dict[str, Callable[[], Any]] = {
    "conv1d": lambda: aten.conv1d.default(torch.ones(1, 2, 5), torch.ones(2, 2, 3)),
    "conv1d.padding": lambda: aten.conv1d.padding(torch.ones(1, 2, 5), torch.ones(2, 2, 3), padding="same"),
    "conv3d": lambda: aten.conv3d.default(torch.ones(1, 2, 5, 5, 5), torch.ones(2, 2, 3, 3, 3)),
    "conv3d.padding": lambda: aten.conv3d.padding(torch.ones(1, 2, 5, 5, 5), torch.ones(2, 2, 3, 3, 3)),
    "conv_transpose1d": lambda: aten.conv_transpose1d(torch.ones(1, 2, 5), torch.ones(2, 2, 3)),
    "conv_transpose3d": lambda: aten.conv_transpose3d(torch.ones(1, 2, 5, 5, 5), torch.ones(2, 2, 3, 3, 3)),
    "conv_tbc": lambda: aten.conv_tbc(torch.ones(5, 1, 2), torch.ones(3, 2, 2), torch.ones(2)),
    "conv_tbc_backward": lambda: aten.conv_tbc_backward(
        torch.ones(3, 1, 2), torch.ones(5, 1, 2), torch.ones(3, 2, 2), torch.ones(2), 0
    )[0],
    "slow_conv3d": lambda: torch._C._nn.slow_conv3d(torch.ones(1, 2, 5, 5, 5), torch.ones(2, 2, 3, 3, 3), 3),
    "slow_conv_dilated3d": lambda: torch._C._nn.slow_conv_dilated3d(
        torch.ones(1, 2, 5, 5, 5), torch.ones(2, 2, 3, 3, 3), 3
    ),
    "slow_conv_transpose3d": lambda: torch._C._nn.slow_conv_transpose3d(
        torch.ones(1, 2, 5, 5, 5), torch.ones(2, 2, 3, 3, 3), 3
    ),
    "convolution_backward": lambda: aten.convolution_backward(
        torch.ones(1, 2, 3), torch.ones(1, 2, 5), torch.ones(2, 2, 3), [2], [1], [0], [1], False, [0], 1, [True] * 3
    )[0],
    "conv1d_weight": lambda: torch.nn.grad.conv1d_weight(torch.ones(1, 2, 5), (2, 2, 3), torch.ones(1, 2, 3)),
    "conv3d_input": lambda: torch.nn.grad.conv3d_input(
        (1, 2, 5, 5, 5), torch.ones(2, 2, 3, 3, 3), torch.ones(1, 2, 3, 3, 3)
    ),
}


def from_python(function: Callable[[], Any]) -> Any:
    return function()


def from_a_hook(function: Callable[[], Any]) -> Any:
    outputs: list[Any] = []
    x = torch.ones(1, requires_grad=True)
    x.register_hook(lambda gradient: outputs.append(function()))
    x.sum().backward()
    return outputs[0]


@pytest.mark.parametrize("caller", [from_python, from_a_hook])
@pytest.mark.parametrize("name", ONE_AND_THREE)
def test_one_and_three_dimensions_are_reported_once(name: str, caller: Callable[..., Any]) -> None:
    function = ONE_AND_THREE[name]
    expected = function()
    with detconv.override(SUMMATION), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        output = caller(function)
    assert [w.category for w in caught] == [NotOverridden]
    assert "two dimensions only" in str(caught[0].message)
    assert caught[0].filename == __file__
    assert torch.equal(output, expected)
    with detconv.override(SUMMATION, strict=True), pytest.raises(RuntimeError, match="two dimensions only"):
        caller(function)


# ---- Whoever calls ----


def operands(seed: int = 7) -> tuple[Any, Any, Any]:
    problem = Problem(seed, set())
    return problem.input, problem.weight, problem.tensor((problem.weight.shape[0],), seed + 9)


def in_a_backward(x: Any, w: Any, b: Any) -> Any:
    class Calls(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, y: Any) -> Any:
            return y.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Any) -> Any:
            outputs.append(functional.conv2d(x, w, b))
            return gradient

    outputs: list[Any] = []
    Calls.apply(x.clone().requires_grad_()).sum().backward()
    return outputs[0]


def in_a_node_s_hook(x: Any, w: Any, b: Any) -> Any:
    outputs: list[Any] = []
    y = x.clone().requires_grad_() * 2
    y.grad_fn.register_prehook(lambda gradients: outputs.append(functional.conv2d(x, w, b)))
    torch.autograd.grad(y.sum(), y)  # of the sum only
    y.sum().backward()
    return outputs[0]


def in_a_branch(x: Any, w: Any, b: Any) -> Any:
    def branch(x: Any) -> Any:
        return functional.conv2d(x, w, b)

    return torch.cond(torch.tensor(True), branch, lambda x: 2 * branch(x), (x,))


def by_torchscript(x: Any, w: Any, b: Any) -> Any:
    layer = torch.nn.Conv2d(w.shape[1], w.shape[0], tuple(w.shape[2:]))
    layer.weight.data, layer.bias.data = w, b
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(layer)
    return scripted(x).detach()


class Handles(torch.Tensor):
    """A tensor that handles a function which is no convolution itself."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.softplus:
            return functional.conv2d(*(x.as_subclass(torch.Tensor) for x in args[0].operands))
        return super().__torch_function__(func, types, args, kwargs or {})


def in_a_handler(x: Any, w: Any, b: Any) -> Any:
    handles = torch.ones(1).as_subclass(Handles)
    handles.operands = x, w, b
    return functional.softplus(handles)


def without_gradients(x: Any, w: Any, b: Any) -> Any:
    with torch.inference_mode():
        return functional.conv2d(x, w, b).clone()


def below_function_modes(x: Any, w: Any, b: Any) -> Any:
    with torch._C.DisableTorchFunction():
        return functional.conv2d(x, w, b)


def decomposed(x: Any, w: Any, b: Any) -> Any:
    layer = torch.nn.Conv2d(w.shape[1], w.shape[0], tuple(w.shape[2:]))
    layer.weight.data, layer.bias.data = w, b
    return torch.export.export(layer, (x,)).run_decompositions().module()(x).detach()


def of_unbatched(x: Any, w: Any, b: Any) -> Any:
    return torch.stack([functional.conv2d(sample, w, b) for sample in x])


CALLERS = [
    in_a_backward,
    in_a_node_s_hook,
    in_a_branch,
    by_torchscript,
    in_a_handler,
    without_gradients,
    below_function_modes,
    decomposed,
    of_unbatched,
]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("caller", CALLERS)
def test_callers(caller: Callable[..., Any]) -> None:
    x, w, b = operands()
    with detconv.override(SUMMATION, strict=True):
        output = caller(x, w, b)
    assert torch.equal(output, detconv.conv2d(x, w, b, summation=SUMMATION))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_program_exported_and_decomposed_outside() -> None:
    layer = torch.nn.Conv2d(4, 6, 3, padding="same", groups=2)
    x = Problem.tensor((2, 4, 7, 6), 3)
    program = torch.export.export(layer, (x,)).run_decompositions()
    assert any(node.target is aten.convolution.default for node in program.graph.nodes)
    expected = detconv.conv2d(x, layer.weight, layer.bias, 1, "same", 1, 2, summation=SUMMATION)
    with detconv.override(SUMMATION, strict=True):
        assert torch.equal(program.module()(x), expected)


def test_gradients_of_what_was_computed_outside() -> None:
    for problem in problems("convolution", 10):
        x, w = problem.input.clone().requires_grad_(), problem.weight.clone().requires_grad_()
        geometry = problem.stride, problem.padding, problem.dilation, problem.transposed
        y = torch.convolution(x, w, None, *geometry, problem.output_padding, problem.groups)
        expected = problem.backward(problem.input, problem.weight)[:2]
        with detconv.override(SUMMATION, strict=True):
            assert all(map(torch.equal, torch.autograd.grad(y, (x, w), problem.grad_output), expected))


def test_an_explicit_order_has_naive_gradients() -> None:
    x, w, _ = operands()
    terms = w[0].numel()
    order = f"order={terms}x(+1){{f0}}"  # of the forward sums
    grad_output = detconv.conv2d(x, w)
    with detconv.override(order, strict=True):
        found = torch.nn.grad.conv2d_weight(x, w.shape, grad_output)
    assert torch.equal(found, detconv.conv2d_weight(x, w.shape, grad_output, summation="naive"))


def test_a_place_for_the_result_has_no_gradient() -> None:
    """torch's own kernels for autograd still stand above ours."""
    x, w, b = operands()
    w.requires_grad_()
    arguments = [1, 1], [0, 0], [1, 1], False, [0, 0], 1
    place = torch.empty(0)
    with detconv.override(SUMMATION, strict=True):
        assert aten.convolution.out(x, w, b, *arguments, out=place) is place
        with pytest.raises(RuntimeError, match="derivative for aten::convolution is not implemented"):
            place.sum().backward()
        with pytest.raises(RuntimeError, match="don't support automatic differentiation"):
            aten._slow_conv2d_forward.output(x, w, w.shape[2:], b, [1, 1], [0, 0], output=torch.empty(0))
    assert torch.equal(place, detconv.conv2d(x, w, b, summation=SUMMATION))


def test_autocast_has_its_say_where_torch_lets_it() -> None:
    """conv2d is kept in float32, as detconv's own is; torch does not cast the operands of convolution."""
    x, w, b = operands()
    halves = [t.bfloat16() for t in (x, w, b)]
    geometry = [1, 1], [0, 0], [1, 1], False, [0, 0], 1
    with torch.autocast("cpu"), torch._C.DisableTorchFunction(), detconv.override(SUMMATION, strict=True):
        outputs = functional.conv2d(x, w, b), functional.conv2d(*halves), torch.convolution(*halves, *geometry)
    expected = [
        detconv.conv2d(*tensors, summation=SUMMATION) for tensors in ((x, w, b), [t.float() for t in halves], halves)
    ]
    assert all(map(torch.equal, outputs, expected))
    assert [y.dtype for y in outputs] == [torch.float32, torch.float32, torch.bfloat16]


class Own(torch.Tensor):
    """A tensor that handles convolutions itself."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.conv2d:
            return "handled"
        return super().__torch_function__(func, types, args, kwargs or {})


def test_a_class_that_handles_convolutions_is_respected() -> None:
    x, w, b = operands()
    with detconv.override(SUMMATION, strict=True):
        assert functional.conv2d(x.as_subclass(Own), w, b) == "handled"
        assert functional.conv2d(x, w.as_subclass(Own), b) == "handled"
        with pytest.raises(RuntimeError, match="class Own"):
            torch.convolution(x.as_subclass(Own), w, b, [1, 1], [0, 0], [1, 1], False, [0, 0], 1)


def test_other_devices_are_reported_from_inside_of_backward() -> None:
    x, w, b = (t.to("meta") for t in operands())
    with detconv.override(SUMMATION), pytest.warns(NotOverridden, match="on meta"):
        assert from_a_hook(lambda: functional.conv2d(x, w, b)).is_meta
    with detconv.override(SUMMATION, strict=True), pytest.raises(RuntimeError, match="on meta"):
        from_a_hook(lambda: functional.conv2d(x, w, b))


def test_tensors_that_are_not_dense_are_reported_from_inside_of_backward() -> None:
    x, w, b = operands()
    packed = x.to_mkldnn()
    for caller in (from_python, from_a_hook):
        with detconv.override(SUMMATION), pytest.warns(NotOverridden, match="not dense"):
            assert caller(lambda: functional.conv2d(packed, w, b)).layout is torch._mkldnn


@pytest.mark.parametrize("dims", [(0, None), (None, 0), (0, 0)])
def test_under_vmap(dims: tuple[Any, Any]) -> None:
    """Each call's output and gradients, where every call has its own."""
    for problem in problems("conv2d", 20):
        geometry = problem.stride, problem.padding, problem.dilation, problem.groups
        x = torch.stack([problem.input, -2 * problem.input, problem.input.flip(0)])
        w = torch.stack([problem.weight, problem.weight.flip(0), 3 * problem.weight])
        batches = [t if dim == 0 else t[0] for t, dim in zip((x, w), dims, strict=True)]
        calls = [[t[i] if dim == 0 else t[0] for t, dim in zip((x, w), dims, strict=True)] for i in range(3)]

        def convolve(x: Any, w: Any, geometry: Any = geometry) -> Any:
            return functional.conv2d(x, w, None, *geometry)

        def loss(x: Any, w: Any, call: Any = convolve) -> Any:
            return call(x, w).square().sum()

        with detconv.override(SUMMATION, strict=True):
            outputs = torch.vmap(convolve, dims)(*batches)
            gradients = torch.vmap(torch.func.grad(loss, (0, 1)), dims)(*batches)
            one_by_one = [torch.func.grad(loss, (0, 1))(*tensors) for tensors in calls]
        expected = [detconv.conv2d(*tensors, None, *geometry, summation=SUMMATION) for tensors in calls]
        assert torch.equal(outputs, torch.stack(expected))
        for found, each in zip(gradients, zip(*one_by_one, strict=True), strict=True):
            assert torch.equal(found, torch.stack(each))


# ---- Nothing is left behind ----


def registered() -> str:
    return "\n".join(torch._C._dispatch_dump(f"aten::{name}") for name in CONVOLUTIONS)


def checkpointing() -> list[Any]:
    kept = torch.utils.checkpoint
    return [dict(vars(kept._CheckpointFrame)), dict(vars(kept.CheckpointFunction._backward_cls))]


def test_nothing_is_left_registered() -> None:
    x, w, b = operands()
    before, kept, plain, known = registered(), checkpointing(), functional.conv2d(x, w, b), set(torch.library._impls)
    duration = min(timeit.repeat(lambda: functional.conv2d(x, w, b), number=100, repeat=20))
    assert "kernels.py" not in before
    with detconv.override(SUMMATION):
        with detconv.override("exact"):
            assert "kernels.py" in registered()
        assert "kernels.py" in registered()
    with pytest.raises(KeyError), detconv.override(SUMMATION):
        raise KeyError
    assert registered() == before
    assert checkpointing() == kept
    assert set(torch.library._impls) == known
    assert torch.equal(functional.conv2d(x, w, b), plain)
    assert min(timeit.repeat(lambda: functional.conv2d(x, w, b), number=100, repeat=20)) < 10 * duration


def test_a_thread_outside_has_torch_s_own() -> None:
    """Results, gradients, element types and errors, while a block is open in another thread."""
    x, w, b = operands()
    half = [t.bfloat16() for t in (x, w, b)]

    def results() -> list[Any]:
        found = [
            functional.conv2d(x, w, b),
            functional.conv2d(*half),
            torch.nn.grad.conv2d_weight(x, w.shape, torch.conv2d(x, w)),
        ]
        found += [torch.conv1d(x[..., 0], w[..., 0]), torch._C._nn.slow_conv_dilated2d(x, w, w.shape[2:], b)]
        with torch.autocast("cpu"):
            found.append(functional.conv2d(x, w, b))
        leaf = w.clone().requires_grad_()
        output = functional.conv2d(x, leaf, b)
        assert output.grad_fn.name() == "ConvolutionBackward0"
        found += torch.autograd.grad(output.square().sum(), leaf)
        with pytest.raises(RuntimeError, match="expected input"):
            functional.conv2d(x[:, :1], w, b)
        return found

    expected, found = results(), []
    with detconv.override(SUMMATION, strict=True):
        thread = threading.Thread(target=lambda: found.extend(results()))
        thread.start()
        thread.join()
    assert len(found) == len(expected) == 7
    assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_many_threads_each_in_its_own_block() -> None:
    x, w, b = operands()
    summations = [SUMMATION, "exact", "kahan", "pairwise block=2"]
    wrong: list[str] = []

    def work(summation: str) -> None:
        expected = detconv.conv2d(x, w, b, summation=summation)
        for _ in range(30):
            with detconv.override(summation, strict=True):
                if not torch.equal(from_a_hook(lambda: functional.conv2d(x, w, b)), expected):
                    wrong.append(summation)

    with detconv.override("naive"):  # the kernels stay: torch changes its table without a lock
        threads = [threading.Thread(target=work, args=(summation,)) for summation in summations]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert "kernels.py" in registered()
    assert wrong == []
    assert "kernels.py" not in registered()


def test_a_python_kernel_of_somebody_else_is_not_run_over() -> None:
    library = torch.library.Library("aten", "IMPL")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            library.impl("convolution", lambda *args: torch.zeros(1), "CPU")
        before = registered()
        with pytest.raises(RuntimeError, match="already a kernel registered from python overriding convolution"):
            detconv.override().__enter__()
        assert registered() == before
        assert KERNELS.innermost() is None
    finally:
        library._destroy()
    x, w, b = operands()
    with detconv.override(SUMMATION, strict=True):
        assert torch.equal(functional.conv2d(x, w, b), detconv.conv2d(x, w, b, summation=SUMMATION))


# ---- Blocks ----


def test_blocks_that_are_left_out_of_order_raise() -> None:
    outer, inner = detconv.override("naive"), detconv.override("exact")
    outer.__enter__()
    inner.__enter__()
    x, w, b = operands()
    with pytest.raises(RuntimeError, match="override: blocks must be left in the reverse order"):
        outer.__exit__(None, None, None)
    assert torch.equal(functional.conv2d(x, w, b), detconv.conv2d(x, w, b, summation="exact"))
    inner.__exit__(None, None, None)
    assert torch.equal(functional.conv2d(x, w, b), detconv.conv2d(x, w, b, summation="naive"))
    outer.__exit__(None, None, None)
    with pytest.raises(RuntimeError, match="override: blocks must be left in the reverse order"):
        outer.__exit__(None, None, None)
    assert "kernels.py" not in registered()


def test_a_block_that_is_left_in_another_thread_raises() -> None:
    block, errors = detconv.override(SUMMATION), []

    def leave() -> None:
        with pytest.raises(RuntimeError, match="in the thread that opened them") as error:
            block.__exit__(None, None, None)
        errors.append(error)

    with block:
        thread = threading.Thread(target=leave)
        thread.start()
        thread.join()
    assert len(errors) == 1


def test_a_mode_of_torch_that_is_still_active_raises() -> None:
    class Mode(torch.overrides.TorchFunctionMode):  # type: ignore[misc]
        pass

    block, mode = detconv.override(SUMMATION), Mode()
    block.__enter__()
    mode.__enter__()
    with pytest.raises(RuntimeError, match="function mode of torch that was entered inside"):
        block.__exit__(None, None, None)
    mode.__exit__(None, None, None)
    block.__exit__(None, None, None)
    assert "kernels.py" not in registered()


@pytest.mark.parametrize("caller", [from_python, from_a_hook])
def test_strict_is_the_innermost_block_s(caller: Callable[..., Any]) -> None:
    function = ONE_AND_THREE["conv1d"]
    with detconv.override(strict=True), detconv.override(), pytest.warns(NotOverridden) as caught:
        caller(function)
    assert len(caught) == 1
    with detconv.override(), detconv.override(strict=True), pytest.raises(RuntimeError, match="left to torch"):
        caller(function)
    block = detconv.override()
    with block, detconv.override(strict=True), block, pytest.warns(NotOverridden) as caught:
        caller(function)
    assert len(caught) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_stays_in_the_block() -> None:
    x, w, b = operands()
    expected, exact = (detconv.conv2d(x, w, b, summation=summation) for summation in (SUMMATION, "exact"))
    (wait, go), (answer, say) = os.pipe(), os.pipe()
    with detconv.override(SUMMATION):
        child = os.fork()
        if child == 0:  # whatever happens, no test runs on in the child
            try:
                os.read(wait, 1)  # until the parent has left its block
                torch.set_num_threads(1)
                inside = torch.equal(below_function_modes(x, w, b), expected)
                with detconv.override("exact"):
                    inside &= torch.equal(below_function_modes(x, w, b), exact)
                inside &= torch.equal(functional.conv2d(x, w, b), expected)
                os.write(say, b"inside" if inside else b"outside")
            finally:
                os._exit(0)
    os.close(say)
    os.write(go, b"1")
    assert os.read(answer, 10) == b"inside"
    os.waitpid(child, 0)
    for end in (wait, go, answer):
        os.close(end)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("strict", [True, False])
def test_what_is_exported_inside_keeps_the_summation(strict: bool) -> None:
    layer, x = torch.nn.Conv2d(4, 6, 3, padding=1), Problem.tensor((2, 4, 7, 6), 3)
    with detconv.override(SUMMATION, strict=True):
        program = torch.export.export(layer, (x,), strict=strict)
    expected = detconv.conv2d(x, layer.weight, layer.bias, 1, 1, summation=SUMMATION)
    assert torch.equal(program.module()(x), expected)
    assert torch.equal(program.run_decompositions().module()(x), expected)


def convolution(x: Any, w: Any) -> Any:
    return torch.convolution(x, w, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("function", [functional.conv2d, convolution])
def test_compiled_functions_go_in_and_out_of_blocks(function: Callable[..., Any], backend: str) -> None:
    x, w, _ = operands()
    plain, ours = function(x, w), detconv.conv2d(x, w, summation=SUMMATION)
    try:
        compiled = torch.compile(function, backend=backend, fullgraph=True)
        for inside in (False, True, False, True):
            if inside:
                with detconv.override(SUMMATION, strict=True):
                    assert torch.equal(compiled(x, w), ours)
            else:
                assert torch.equal(compiled(x, w), plain)
    finally:
        torch.compiler.reset()


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_what_is_traced_inside_keeps_the_summation() -> None:
    x, w, b = operands()
    expected = detconv.conv2d(x, w, b, summation=SUMMATION)
    with detconv.override(SUMMATION, strict=True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(functional.conv2d, (x, w, b))
        graph = torch.fx.experimental.proxy_tensor.make_fx(functional.conv2d)(x, w, b)
    assert torch.equal(traced(x, w, b), expected)
    assert torch.equal(graph(x, w, b), expected)
