"""The operators torch.ops.detconv.*: right gradients of any degree, and the same bits however torch runs them."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import detconv
from bits import made

torch = pytest.importorskip("torch")

import detconv.nn  # noqa: E402
import detconv.torch  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's own

GEOMETRY = ([2, 1], [1, 2], [1, 2], 2)
EXPLICIT = 'naive order="12x(+1){f0} bias" samples=sequence'


def tensor(shape: tuple[int, ...], seed: int, dtype: type = np.float64, grad: bool = False) -> Any:
    return torch.from_numpy(made(shape, dtype, seed)).requires_grad_(grad)


def whole(x: Any) -> Any:
    """Integers from -8 to 8, whose sums are exact in any order."""
    return (x.detach() * 8).round()


def calls(dtype: type = np.float64, grad: bool = False, summation: str = "pairwise") -> dict[str, tuple[Any, ...]]:
    """Arguments for every operator."""

    def new(*shape: int) -> Any:
        return tensor(shape, sum(shape), dtype, grad)

    return {
        "conv2d": (new(2, 4, 5, 6), new(6, 2, 3, 2), new(6), *GEOMETRY, summation),
        "conv2d_input": ([2, 4, 5, 6], new(6, 2, 3, 2), new(2, 6, 3, 8), *GEOMETRY, summation),
        "conv2d_weight": (new(2, 4, 5, 6), [6, 2, 3, 2], new(2, 6, 3, 8), *GEOMETRY, summation),
        "conv2d_bias": (new(2, 6, 3, 8), summation),
        "conv_transpose2d": (new(2, 4, 3, 4), new(4, 3, 3, 2), new(6), [2, 1], [1, 2], [1, 1], 2, [1, 2], summation),
    }


def small_calls() -> dict[str, tuple[Any, ...]]:
    """The same with few elements and gradients, for what takes time for each of them."""

    def new(*shape: int) -> Any:
        return tensor(shape, sum(shape), grad=True)

    return {
        "conv2d": (new(1, 2, 3, 3), new(2, 1, 2, 2), new(2), *GEOMETRY, "pairwise"),
        "conv2d_input": ([1, 2, 3, 3], new(2, 1, 2, 2), new(1, 2, 2, 5), *GEOMETRY, "pairwise"),
        "conv2d_weight": (new(1, 2, 3, 3), [2, 1, 2, 2], new(1, 2, 2, 5), *GEOMETRY, "pairwise"),
        "conv2d_bias": (new(2, 2, 2, 2), "pairwise"),
        "conv_transpose2d": (new(1, 2, 2, 2), new(2, 1, 2, 2), new(2), [2, 1], [1, 1], [1, 1], 2, [1, 2], "pairwise"),
    }


OPERATORS = tuple(calls())


def operator(name: str) -> Any:
    return getattr(torch.ops.detconv, name).default


def of_tensors(name: str, arguments: tuple[Any, ...]) -> tuple[Callable[..., Any], list[Any]]:
    """The operator as a function of its tensors alone, and these."""
    tensors = [x for x in arguments if isinstance(x, torch.Tensor)]

    def function(*given: Any) -> Any:
        rest = iter(given)
        return operator(name)(*(next(rest) if isinstance(x, torch.Tensor) else x for x in arguments))

    return function, tensors


def assert_equal(actual: Any, expected: Any) -> None:
    """Same bits, shape, element type and strides."""
    assert (actual.shape, actual.dtype, actual.stride()) == (expected.shape, expected.dtype, expected.stride())
    assert torch.equal(actual.contiguous().view(torch.uint8), expected.contiguous().view(torch.uint8))


def gradients(output: Any, tensors: list[Any], **options: Any) -> list[Any]:
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).reshape(output.shape)
    return list(torch.autograd.grad((output * weights).sum(), tensors, **options))


# Layouts --------------------------------------------------------------------------------------------------------------

LAYOUTS: dict[str, Callable[[Any], Any]] = {
    "dense": lambda x: x.contiguous(),
    "permuted": lambda x: x.permute(*range(x.dim())[::-1]).contiguous().permute(*range(x.dim())[::-1]),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x,
    "non-contiguous": lambda x: x.repeat_interleave(2, -1)[..., ::2],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", OPERATORS)
def test_opcheck(name: str, layout: str) -> None:
    for grad in (False, True):
        laid = [
            LAYOUTS[layout](x.detach()).requires_grad_(grad) if isinstance(x, torch.Tensor) else x
            for x in calls(np.float32)[name]
        ]
        result = torch.library.opcheck(operator(name), tuple(laid))
        assert set(result.values()) == {"SUCCESS"}, result


@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_format_is_that_of_torch(layout: str) -> None:
    lay = LAYOUTS[layout]
    image, weight = lay(tensor((2, 4, 5, 6), 1)), lay(tensor((6, 4, 3, 3), 2))
    theirs = torch.nn.functional.conv2d(image, weight)
    ours = operator("conv2d")(image, weight, None, [1, 1], [0, 0], [1, 1], 1, "pairwise")
    assert ours.stride() == theirs.stride()
    again = [x.detach().requires_grad_() for x in (image, weight)]
    for a, b in zip(
        gradients(detconv.conv2d(*again), again),
        gradients(torch.nn.functional.conv2d(*again), again),
        strict=True,
    ):
        assert a.stride() == b.stride()


def drawn_layout(draw: Any, x: Any) -> Any:
    """The same numbers, somehow in memory."""
    axes = draw.permutation(x.dim())
    permuted = x.permute(*axes).contiguous().permute(*np.argsort(axes))
    last = x.movedim(-3, -1).contiguous().movedim(-1, -3)
    return (x, last, permuted, torch.stack([x, x], -1)[..., 0], x[..., :1].expand(x.shape))[draw.integers(5)]


def steps(x: Any) -> tuple[int, ...]:
    """The strides; 0 for an axis of one element, whose stride means nothing and is torch's choice of a kernel."""
    return tuple(step if size > 1 else 0 for size, step in zip(x.shape, x.stride(), strict=True))


@pytest.mark.parametrize("seed", range(4))
def test_drawn_layouts_are_those_of_torch(seed: int) -> None:
    """Outputs and gradients of drawn shapes and layouts, with samples and without, lie in memory as torch's do."""
    draw, compared = np.random.default_rng(seed), 0
    for _ in range(60):
        groups, kernel, image = int(draw.integers(1, 3)), draw.integers(1, 4, 2), draw.integers(3, 6, 2)
        samples = [[], [1], [3]][draw.integers(3)]
        inner, outer = (int(n) * groups for n in draw.integers(1, 4, 2))
        transposed = bool(draw.integers(2))
        weight_shape = (inner, outer // groups, *kernel) if transposed else (outer, inner // groups, *kernel)
        x, w = (drawn_layout(draw, torch.rand(*map(int, s))) for s in ((*samples, inner, *image), weight_shape))
        name = "conv_transpose2d" if transposed else "conv2d"
        found, grad = [], None
        for convolution in (getattr(torch.nn.functional, name), getattr(detconv, name)):
            inputs = [t.detach().requires_grad_() for t in (x, w)]
            output = convolution(*inputs, stride=2, padding=1 - transposed, groups=groups)
            grad = drawn_layout(draw, torch.rand(output.shape)) if grad is None else grad
            found.append([steps(t) for t in (output, *torch.autograd.grad(output, inputs, grad))])
        assert found[0] == found[1], (x.shape, x.stride(), w.shape, w.stride(), grad.stride())
        compared += 1
    assert compared == 60


# Gradients ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPERATORS)
def test_gradcheck_and_gradgradcheck(name: str) -> None:
    function, tensors = of_tensors(name, calls(grad=True)[name])
    assert torch.autograd.gradcheck(function, tensors)
    assert torch.autograd.gradgradcheck(function, tensors)


@pytest.mark.parametrize("name", ["conv2d_input", "conv2d_weight", "conv2d_bias"])
def test_gradients_are_the_written_down_sums(name: str) -> None:
    image, weight, bias = (tensor(s, i, np.float32, True) for i, s in enumerate([(5, 4, 5, 6), (6, 2, 3, 2), (6,)]))
    stride, padding, dilation, groups = GEOMETRY
    output = detconv.conv2d(image, weight, bias, stride, padding, dilation, groups, summation="kahan order=kw,c,kh")
    grad = tensor(tuple(output.shape), 3, np.float32)
    found = dict(zip(CONV2D_GRADIENTS, torch.autograd.grad(output, (image, weight, bias), grad), strict=True))
    arrays = [x.detach().numpy() for x in (image, weight)]
    direct = {
        "conv2d_input": lambda s: detconv.conv2d_input(image.shape, arrays[1], grad.numpy(), *GEOMETRY, summation=s),
        "conv2d_weight": lambda s: detconv.conv2d_weight(arrays[0], weight.shape, grad.numpy(), *GEOMETRY, summation=s),
        "conv2d_bias": lambda s: detconv.conv2d_bias(grad.numpy(), summation=s),
    }
    assert_equal(found[name], torch.from_numpy(direct[name]("kahan order=kw,c,kh")))


CONV2D_GRADIENTS = ("conv2d_input", "conv2d_weight", "conv2d_bias")


def test_an_explicit_order_has_naive_gradients() -> None:
    image, weight, bias, *_ = calls(np.float32, grad=True)["conv2d"]
    output = detconv.conv2d(image, weight, bias, *GEOMETRY, summation=EXPLICIT)
    assert_equal(
        output.detach(), detconv.conv2d(image.detach(), weight.detach(), bias.detach(), *GEOMETRY, summation=EXPLICIT)
    )
    naive = detconv.conv2d(image, weight, bias, *GEOMETRY, summation="naive samples=sequence")
    for a, b in zip(gradients(output, [image, weight, bias]), gradients(naive, [image, weight, bias]), strict=True):
        assert_equal(a, b)


def test_a_gradient_that_is_not_asked_for_is_not_computed() -> None:
    image, weight, bias, *_ = calls(grad=True)["conv2d"]
    frozen = detconv.conv2d(image, weight.detach(), bias, *GEOMETRY)
    assert frozen.grad_fn.saved_tensors[0] is None  # the input, which only the weight's gradient needs
    for given in ((image,), (bias,)):
        (gradient,) = gradients(detconv.conv2d(image, weight, bias, *GEOMETRY), list(given))
        assert_equal(gradient, gradients(frozen, list(given), retain_graph=True)[0])


@pytest.mark.parametrize("output_padding", [(0, 0), (1, 2), (3, 1), (2, 3)])
@pytest.mark.parametrize("padding", [0, 2])
def test_transposed_with_output_padding_beyond_the_stride(output_padding: tuple[int, int], padding: int) -> None:
    options = {"stride": (1, 2), "dilation": 4, "padding": padding, "output_padding": output_padding}
    inputs = [tensor((2, 3, 5, 4), 1, grad=True), tensor((3, 2, 2, 3), 2, grad=True), tensor((2,), 3, grad=True)]
    integers = [whole(x) for x in inputs]
    theirs = torch.nn.functional.conv_transpose2d(*integers, **options)
    assert torch.equal(detconv.conv_transpose2d(*integers, **options), theirs)
    assert torch.autograd.gradcheck(lambda *x: detconv.conv_transpose2d(*x, **options), inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda *x: detconv.conv_transpose2d(*x, **options), inputs, fast_mode=True)


@pytest.mark.parametrize("kernel", [(3, 3), (2, 3), (4, 2)])
def test_same_padding_has_the_bits_of_the_engine_and_gradients(kernel: tuple[int, int]) -> None:
    image, weight = tensor((2, 3, 6, 7), 1, np.float32), tensor((4, 3, *kernel), 2, np.float32)
    weight[0, 0, 0, 0] = torch.inf  # a padded tap is a term, too
    grad_output = tensor((2, 4, 6, 7), 3, np.float32)
    for dilation in (1, 2):
        options: dict[str, Any] = {"padding": "same", "dilation": dilation}
        inputs = [image.clone().requires_grad_(), weight.clone().requires_grad_()]
        output = detconv.conv2d(*inputs, **options)
        assert_equal(output.detach(), detconv.conv2d(image, weight, **options))
        by_input, by_weight = torch.autograd.grad(output, inputs, grad_output)
        assert_equal(by_input, detconv.conv2d_input(image.shape, weight, grad_output, **options))
        assert_equal(by_weight, detconv.conv2d_weight(image, weight.shape, grad_output, **options))
        by_input = detconv.conv2d_input(image.shape, inputs[1], grad_output, **options).detach()
        assert_equal(by_input.contiguous(), detconv.conv2d_input(image.shape, weight, grad_output, **options))
        by_weight = detconv.conv2d_weight(inputs[0], weight.shape, grad_output, **options).detach()
        assert_equal(by_weight, detconv.conv2d_weight(image, weight.shape, grad_output, **options))


@pytest.mark.parametrize("name", OPERATORS)
def test_the_gradient_of_each_tensor_alone_is_that_of_all(name: str) -> None:
    """What is kept for the gradients depends on which of them are asked for."""
    function, tensors = of_tensors(name, calls(np.float32, grad=True)[name])
    together = gradients(function(*tensors), tensors)
    for i, tensor in enumerate(tensors):
        alone = function(*(x if x is tensor else x.detach() for x in tensors))
        assert_equal(gradients(alone, [tensor])[0], together[i])


# Forward mode ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPERATORS)
def test_gradcheck_of_forward_mode(name: str) -> None:
    function, tensors = of_tensors(name, small_calls()[name])
    assert torch.autograd.gradcheck(
        function, tensors, check_forward_ad=True, check_batched_forward_grad=True, check_batched_grad=True
    )
    assert torch.autograd.gradgradcheck(function, tensors, check_fwd_over_rev=True, check_batched_grad=True)


def tangents_by_hand(name: str, arguments: tuple[Any, ...], tangents: dict[int, Any]) -> Any:
    """The sum from left to right of the calls with each tangent in its tensor's place, without a bias."""
    with_bias = name in ("conv2d", "conv_transpose2d")
    total = None
    for i, tangent in sorted(tangents.items()):
        replaced = [None if with_bias and j == 2 else x for j, x in enumerate(arguments)]
        replaced[i] = tangent
        shape = operator(name)(*arguments).shape
        summand = tangent[:, None, None].expand(shape) if with_bias and i == 2 else operator(name)(*replaced)
        total = summand if total is None else total + summand
    return total


def function_of_some(
    function: Callable[..., Any], tensors: list[Any], places: list[int]
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The function of the tensors at some places, the others being fixed, and these tensors."""

    def call(*given: Any) -> Any:
        rest = iter(given)
        return function(*(next(rest) if i in places else x for i, x in enumerate(tensors)))

    return call, tuple(tensors[i] for i in places)


SUMMATIONS = ("pairwise", "kahan order=kw,c,kh bias=first", "exact", "naive products=rounded")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPERATORS)
def test_tangents_are_the_written_down_sums(name: str, dtype: Any) -> None:
    compared = 0
    for summation in (*SUMMATIONS, *([EXPLICIT] if name == "conv2d" else [])):
        of_call = calls(summation=summation)[name]
        arguments = tuple(x.to(dtype) if isinstance(x, torch.Tensor) else x for x in of_call)
        function, tensors = of_tensors(name, arguments)
        places = [i for i, x in enumerate(arguments) if isinstance(x, torch.Tensor)]
        for chosen in range(1, 2 ** len(places)):
            subset = [k for k in range(len(places)) if chosen >> k & 1]
            along = {k: tensors[k].flip(0) * 0.75 + 0.125 for k in subset}
            expected = tangents_by_hand(name, arguments, {places[k]: t for k, t in along.items()})

            call, given = function_of_some(function, tensors, subset)
            output, tangent = torch.func.jvp(call, given, tuple(along.values()))
            assert torch.equal(output, function(*tensors))
            assert tangent.dtype == dtype
            assert torch.equal(tangent, expected)
            for no_grad in (False, True):
                with torch.autograd.forward_ad.dual_level(), torch.set_grad_enabled(not no_grad):
                    duals = [torch.autograd.forward_ad.make_dual(tensors[k], t) for k, t in along.items()]
                    found = torch.autograd.forward_ad.unpack_dual(call(*duals))
                    assert torch.equal(found.primal, output)
                    assert torch.equal(found.tangent, expected)
            assert bool(expected.isfinite().all())
            compared += expected.numel()
    assert compared > 20


def polynomial(convolution: Callable[..., Any], *tensors: Any, **options: Any) -> Any:
    return (convolution(*tensors, **options) ** 4).sum()


Transform = Callable[[Callable[..., Any], int], Callable[..., Any]]
TRANSFORMS: dict[str, Transform] = {
    "jacfwd": lambda f, i: torch.func.jacfwd(f, i),
    "hessian": lambda f, i: torch.func.hessian(f, i),
    "jacfwd of jacfwd": lambda f, i: torch.func.jacfwd(torch.func.jacfwd(f, i), i),
    "jacfwd of grad": lambda f, i: torch.func.jacfwd(torch.func.grad(f, i), i),
    "grad of jacfwd": lambda f, i: torch.func.jacrev(torch.func.jacfwd(f, i), i),
    "jacfwd of hessian": lambda f, i: torch.func.jacfwd(torch.func.hessian(f, i), i),
    "jacrev of hessian": lambda f, i: torch.func.jacrev(torch.func.hessian(f, i), i),
    "jacfwd of jacfwd of jacfwd": lambda f, i: torch.func.jacfwd(torch.func.jacfwd(torch.func.jacfwd(f, i), i), i),
    "vmap of hessian": lambda f, i: lambda *x: torch.vmap(torch.func.hessian(f, i))(*(torch.stack([t, -t]) for t in x)),
    "jacfwd of vmap of grad": lambda f, i: torch.func.jacfwd(
        lambda *x: torch.vmap(torch.func.grad(f, i))(*(torch.stack([t, -t]) for t in x)), i
    ),
}
CALLED: dict[str, tuple[Callable[..., Any], Callable[..., Any], tuple[tuple[int, ...], ...], dict[str, Any]]] = {
    "conv2d": (
        detconv.conv2d,
        torch.nn.functional.conv2d,
        ((2, 2, 4, 3), (2, 1, 2, 2), (2,)),
        {"stride": (2, 1), "padding": 1, "groups": 2},
    ),
    "conv2d, same": (
        detconv.conv2d,
        torch.nn.functional.conv2d,
        ((2, 3, 3), (2, 2, 2, 3), (2,)),
        {"padding": "same", "dilation": 2},
    ),
    "conv_transpose2d": (
        detconv.conv_transpose2d,
        torch.nn.functional.conv_transpose2d,
        ((1, 2, 3, 2), (2, 2, 2, 2), (2,)),
        {"stride": 2, "padding": 1, "output_padding": 1},
    ),
}


@pytest.mark.filterwarnings("ignore:Using padding='same'.*:UserWarning")
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("called", CALLED)
def test_derivatives_of_forward_mode_are_torchs(called: str, transform: str) -> None:
    """On integers, whose sums are exact in any order: equal to the bit, to the third order."""
    ours, theirs, shapes, options = CALLED[called]
    tensors = [whole(tensor(shape, i) / 2) for i, shape in enumerate(shapes)]
    for i in range(3):
        found, expected, overridden = (
            TRANSFORMS[transform](lambda *x, f=f: polynomial(f, *x, **options), i)(*tensors)
            for f in (ours, theirs, under_override(theirs))
        )
        assert torch.equal(found, expected)
        assert torch.equal(overridden, expected)
        assert bool((expected != 0).any())


def under_override(convolution: Callable[..., Any]) -> Callable[..., Any]:
    def call(*tensors: Any, **options: Any) -> Any:
        with detconv.override(strict=True):
            return convolution(*tensors, **options)

    return call


def test_a_tangent_that_requires_a_gradient_gets_one() -> None:
    image, weight = whole(tensor((1, 2, 4, 4), 1)), whole(tensor((2, 2, 3, 3), 2))
    found = []
    for convolution in (detconv.conv2d, torch.nn.functional.conv2d):
        inputs = [x.clone().requires_grad_() for x in (image, weight, weight.flip(0))]
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(inputs[1], inputs[2])
            output = torch.autograd.forward_ad.unpack_dual(convolution(inputs[0], dual) ** 2)
            found.append(torch.autograd.grad(output.tangent.sum() + 3 * output.primal.sum(), inputs))
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours, theirs)


def test_vmap_inside_a_dual_level() -> None:
    image, weight = tensor((3, 2, 4, 4), 1), tensor((2, 2, 3, 3), 2)
    expected = detconv.conv2d(image, weight)
    with torch.autograd.forward_ad.dual_level():
        assert torch.equal(torch.vmap(lambda x: detconv.conv2d(x, weight))(image), expected)
        dual = torch.autograd.forward_ad.make_dual(image, 2 * image)
        output = torch.autograd.forward_ad.unpack_dual(torch.vmap(lambda x: detconv.conv2d(x, weight))(dual))
        assert torch.equal(output.tangent, 2 * expected)


# Wherever torch runs an operator, its bits are the same ---------------------------------------------------------------


@pytest.fixture
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture(scope="module")
def _inductor_works_by_itself() -> None:
    """inductor calls a C++ compiler in a way of its own, which not every machine and not every path bears."""
    torch.compiler.reset()
    try:
        found = torch.compile(lambda x: x.sin() + x.cos(), backend="inductor")(torch.ones(100))
    except Exception as error:
        pytest.skip(f"inductor does not compile here, even without detconv: {type(error).__name__}: {str(error)[:300]}")
    assert found.shape == (100,)


NAIVE = detconv.Summation("naive")


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = detconv.nn.Conv2d(3, 4, 3, padding="same", padding_mode="reflect", summation="kahan")
        self.two = detconv.nn.ConvTranspose2d(4, 2, 3, stride=2, summation="exact")

    def forward(self, x: Any) -> Any:
        x = self.two(self.one(x).relu())
        return detconv.conv2d(x, self.one.weight[:, :2], padding="same", summation=NAIVE)


@pytest.mark.machine
@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize(("backend", "dynamic"), [("aot_eager", False), ("aot_eager", True), ("inductor", True)])
def test_compile(request: pytest.FixtureRequest, backend: str, dynamic: bool) -> None:
    if backend == "inductor":
        request.getfixturevalue("_inductor_works_by_itself")
    net = Net()
    compiled = torch.compile(net, fullgraph=True, backend=backend, dynamic=dynamic)
    for batch in (2, 5):
        image = tensor((batch, 3, 6, 5), batch, np.float32)
        with torch.no_grad():
            assert_equal(compiled(image), net(image))
        ours, theirs = compiled(image), net(image)
        assert_equal(ours.detach(), theirs.detach())
        for a, b in zip(
            gradients(ours, list(net.parameters())), gradients(theirs, list(net.parameters())), strict=True
        ):
            assert_equal(a, b)


@pytest.mark.usefixtures("_fresh_compiler")
def test_a_wrong_summation_is_refused_while_compiling() -> None:
    image, weight = tensor((1, 1, 3, 3), 1), tensor((1, 1, 2, 2), 2)
    compiled = torch.compile(lambda x: detconv.conv2d(x, weight, summation="sloppy"), backend="eager")
    with pytest.raises(Exception, match="sloppy"):
        compiled(image)


@pytest.mark.parametrize("strict", [False, True])
def test_export(strict: bool) -> None:
    net, image = Net(), tensor((2, 3, 6, 5), 1, np.float32)
    shapes = {"x": {0: torch.export.Dim("batch")}}
    program, file = torch.export.export(net, (image,), dynamic_shapes=shapes, strict=strict), io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file)
    found = [str(node.target) for node in loaded.graph.nodes if "detconv" in str(node.target)]
    assert found == ["detconv.conv2d.default", "detconv.conv_transpose2d.default", "detconv.conv2d.default"]
    for batch in (2, 7):
        image = tensor((batch, 3, 6, 5), batch, np.float32)
        assert_equal(loaded.module()(image), net(image))


@pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d"])
@pytest.mark.parametrize("samples", [True, False])
@pytest.mark.parametrize(
    "dims", [(0, None, None), (1, None, None), (0, 1, None), (None, 0, 0), (2, 0, 0), (None, None, 0)]
)
def test_vmap(dims: tuple[int | None, ...], samples: bool, name: str) -> None:
    arguments = calls(np.float32)[name]
    batches = []
    for i, (x, dim) in enumerate(zip(arguments[:3], dims, strict=True)):
        x = x if samples or i else x[0]
        batches.append(x if dim is None else torch.stack([x, x * 2, -x], dim))

    def function(*tensors: Any) -> Any:
        return operator(name)(*tensors, *arguments[3:])

    batched = torch.vmap(function, in_dims=dims)(*batches)
    one_by_one = [
        function(*(x if dim is None else x.select(dim, i) for x, dim in zip(batches, dims, strict=True)))
        for i in range(3)
    ]
    assert torch.equal(batched, torch.stack(one_by_one))


@pytest.mark.parametrize("name", OPERATORS)
def test_vmap_of_gradients(name: str) -> None:
    """Per-sample gradients: vmap over torch.func.grad, whose operators are the derivatives, all of them batched."""
    function, tensors = of_tensors(name, calls(np.float32)[name])
    every = tuple(range(len(tensors)))
    gradient = torch.func.grad(lambda *x: (function(*x) ** 2).sum(), argnums=every)
    for dims in ((0,) * len(tensors), (0, *[None] * (len(tensors) - 1)), (*[None] * (len(tensors) - 1), 0)):
        batches = [x if dim is None else torch.stack([x, x * 2, -x]) for x, dim in zip(tensors, dims, strict=True)]
        batched = torch.vmap(gradient, in_dims=dims)(*batches)
        for i in range(3):
            one = gradient(*(x if dim is None else x[i] for x, dim in zip(batches, dims, strict=True)))
            for a, b in zip(batched, one, strict=True):
                assert torch.equal(a[i], b)


def test_nested_transforms() -> None:
    image, weight = whole(tensor((1, 2, 4, 4), 1)), whole(tensor((2, 2, 3, 3), 2))

    def hessian(conv2d: Callable[..., Any]) -> Any:
        return torch.func.jacrev(torch.func.jacrev(lambda w: (conv2d(image, w) ** 3).sum()))(weight)

    assert torch.equal(hessian(detconv.conv2d), hessian(torch.nn.functional.conv2d))


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_autocast_keeps_float32(half: Any) -> None:
    image, weight, bias, *_ = calls(np.float32, grad=True)["conv2d"]
    low = image.detach().to(half)
    with torch.autocast("cpu", dtype=half):
        for inputs in (
            (low, weight, bias),
            (low, weight.detach(), bias.detach()),
            (low, weight.detach().to(half), None),
        ):
            output = detconv.conv2d(*inputs, *GEOMETRY)
            up = [x if x is None else x.detach().float() for x in inputs]
            assert_equal(output.detach(), detconv.conv2d(*up, *GEOMETRY))
        wide = [x.detach().double() for x in (image, weight)]
        assert_equal(detconv.conv2d(*wide, None, *GEOMETRY), detconv.conv2d(*wide, None, *GEOMETRY))
        layer = detconv.nn.ConvTranspose2d(4, 3, 2)
        assert layer(low).dtype == torch.float32
    (gradient,) = gradients(output := detconv.conv2d(low.float(), weight, bias, *GEOMETRY), [weight])
    assert gradient.dtype == output.dtype == torch.float32


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_traced_calls_stay_calls() -> None:
    """What records a program must find an operator in it, never the result as a constant."""
    image, weight = tensor((1, 2, 4, 4), 1, np.float32), tensor((2, 2, 3, 3), 2, np.float32)

    def function(x: Any) -> Any:
        return detconv.conv2d(x, weight, padding=1)

    from torch.fx.experimental.proxy_tensor import make_fx

    traces = [torch.jit.trace(function, image), make_fx(function)(image), make_fx(function, pre_dispatch=True)(image)]
    for trace in traces:
        assert_equal(trace(image + 1), function(image + 1))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_script_is_refused_in_words() -> None:
    """Before anything is compiled, for a layer as for whatever model it stands in; what is offered instead works."""
    plain = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.ConvTranspose2d(4, 2, 3))
    converted, _ = detconv.convert(plain, summation="exact")
    deep = torch.nn.ModuleDict({"inner": torch.nn.Sequential(torch.nn.ReLU(), converted)})
    for module in (*(m for m in converted if not isinstance(m, torch.nn.ReLU)), converted, deep, Net()):
        with pytest.raises(TypeError, match=r"^torch.jit.script cannot compile .*Conv.*torch.export"):
            torch.jit.script(module)
    image = tensor((2, 3, 6, 5), 1, np.float32)
    assert_equal(torch.jit.trace(converted, image)(image + 1), converted(image + 1))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_revealed_orders_are_never_a_constant() -> None:
    """Where torch must see the call, what was revealed is refused; the text of its order is an operator's summation."""
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.utils.flop_counter import FlopCounterMode

    image, weight = tensor((2, 2, 4, 4), 1, np.float32), tensor((2, 2, 3, 3), 2, np.float32)
    revealed = detconv.reveal(detconv.conv2d, input_shape=(2, 2, 4, 4), weight_shape=(2, 2, 3, 3), bias=False)
    text = str(detconv.Summation(order=" ".join(f"f{k}" for k in reversed(range(18)))))
    ways: dict[str, Callable[..., Any]] = {
        "make_fx": lambda f: make_fx(f)(image),
        "make_fx, before dispatch": lambda f: make_fx(f, pre_dispatch=True)(image),
        "jit.trace": lambda f: torch.jit.trace(f, image),
        "compile": lambda f: torch.compile(f, backend="eager", fullgraph=True),
        "vmap": lambda f: lambda x: torch.vmap(f)(x[:, None])[:, 0],
        "grad": lambda f: torch.func.grad(lambda x: f(x).sum()),
        "jvp": lambda f: lambda x: torch.func.jvp(f, (x,), (x,))[1],
    }
    assert torch.equal(detconv.conv2d(image, weight, summation=revealed), detconv.conv2d(image, weight))
    for name, way in ways.items():
        torch.compiler.reset()
        with pytest.raises(Exception, match="revealed order"):
            way(lambda x: detconv.conv2d(x, weight, summation=revealed))(image)

        def spelt(x: Any) -> Any:
            return detconv.conv2d(x, weight, summation=text)

        transformed = way(spelt)
        if name not in ("grad", "jvp"):
            assert_equal(transformed(image + 1), spelt(image + 1))
        assert not torch.equal(transformed(image + 1), transformed(image)) or name == "grad"
    torch.compiler.reset()
    for mode in (FlopCounterMode(display=False), FakeTensorMode(allow_non_fake_inputs=True)):
        with mode, pytest.raises(ValueError, match="revealed order"):
            detconv.conv2d(image, weight, summation=revealed)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(weight, weight)
        with pytest.raises(ValueError, match=r"^weight must not carry a tangent"):
            detconv.conv2d(image, dual, summation=revealed)
        assert torch.equal(detconv.conv2d(image, weight, summation=revealed), detconv.conv2d(image, weight))


def test_fake_tensors_have_the_shape_and_are_checked() -> None:
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode() as mode:
        arguments = [mode.from_tensor(x) if isinstance(x, torch.Tensor) else x for x in calls()["conv2d"]]
        image, weight, bias = arguments[:3]
        assert detconv.conv2d(*arguments[:7]).shape == operator("conv2d")(*calls()["conv2d"]).shape
        for wrong, match in [
            ((image.int(), weight.int(), None, *GEOMETRY), "^input must be torch.float32"),
            ((image, weight.float(), None, *GEOMETRY), "^weight must be"),
            ((image, weight, bias[None], *GEOMETRY), "^bias must have 1"),
            ((image[:, :3], weight, bias, *GEOMETRY), "^input must have"),
            ((image[..., :1, :1], weight, bias, 1, 0, 1, 2), "^weight must not reach"),
            ((image, weight[0], bias, *GEOMETRY), "^weight must have 4"),
        ]:
            with pytest.raises((TypeError, ValueError), match=match):
                detconv.conv2d(*wrong)
        with pytest.raises(ValueError, match=r"^input must have"):
            detconv.conv_transpose2d(image[:, :3], weight.transpose(0, 1))
