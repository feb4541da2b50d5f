"""Plain tensors go around NumPy, and get what they would have got through it; all others go the usual way."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import detconv
from bits import DTYPES, METHODS, assert_same_bits, made, unsigned
from detconv import _core, arrays
from detconv.testing import instruction_set

torch = pytest.importorskip("torch")

import detconv.nn  # noqa: E402
from detconv.torch import tensors  # noqa: E402

if tensors._conv2d is None:
    pytest.skip("this torch has no DLPack interface in C", allow_module_level=True)

ARGUMENTS = ("input", "weight", "bias")
SHAPES: dict[str, tuple[int, ...]] = {"input": (2, 4, 6, 5), "weight": (6, 4, 3, 2), "bias": (6,)}

Taken = list[bool]


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Taken:
    """Whether each call so far went the quick way; no entry where it was not even tried."""
    found: Taken = []
    conv2d = tensors._conv2d

    def spy(*arguments: Any) -> Any:
        output = conv2d(*arguments)
        found.append(output is not None)
        return output

    monkeypatch.setattr(tensors, "_conv2d", spy)
    return found


def arguments(dtype: type = np.float32) -> dict[str, Any]:
    return {name: torch.from_numpy(made(shape, dtype, seed)) for seed, (name, shape) in enumerate(SHAPES.items())}


def usual(*given: Any, **options: Any) -> Any:
    """conv2d without the quick way."""
    quick = arrays.QUICK.copy()
    arrays.QUICK.clear()
    try:
        return detconv.conv2d(*given, **options)
    finally:
        arrays.QUICK.update(quick)


def assert_same_tensor(actual: Any, expected: Any) -> None:
    """In all that a caller can see of them."""
    assert type(actual) is type(expected) is torch.Tensor
    for name in ("dtype", "shape", "device", "requires_grad", "grad_fn", "is_leaf", "layout"):
        assert getattr(actual, name) == getattr(expected, name), name
    for name in ("stride", "storage_offset", "is_inference", "is_neg", "is_pinned", "is_contiguous", "_is_view"):
        assert getattr(actual, name)() == getattr(expected, name)(), name
    assert actual.untyped_storage().nbytes() == expected.untyped_storage().nbytes()
    assert actual.untyped_storage().resizable()
    assert expected.untyped_storage().resizable()
    assert torch._C._dispatch_keys(actual) == torch._C._dispatch_keys(expected)
    if not actual.is_inference():
        assert actual._version == expected._version
    # Of copies: numpy() ends that a storage can be resized.
    assert_same_bits(actual.detach().clone().numpy(), expected.detach().clone().numpy())


def outcome(call: Callable[..., Any], given: dict[str, Any], **options: Any) -> object:
    try:
        output = call(**given, **options)
    except Exception as error:
        return type(error), str(error)
    if isinstance(output, np.ndarray):
        return "array", output.dtype, output.shape, unsigned(output).tobytes()
    bits = output.detach().resolve_neg().double().numpy()  # exact for every type; special values are tested elsewhere
    return output.dtype, output.shape, output.stride(), output.requires_grad, bits.tobytes()


# What is taken --------------------------------------------------------------------------------------------------------


def offset(t: Any) -> Any:
    """Not at the start of its storage, and with gaps."""
    return torch.stack([t.flip(0), t], dim=-1)[..., 1]


LAYOUTS: dict[str, Callable[[Any], Any]] = {
    "contiguous": lambda t: t,
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t,
    "transposed": lambda t: t.mT.contiguous().mT if t.dim() == 4 else t,
    "gaps": offset,
    "expanded": lambda t: t[:1].expand(t.shape),
    "parameter": lambda t: torch.nn.Parameter(t, requires_grad=False),
    "detached": lambda t: t.clone().requires_grad_().detach(),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("argument", [*ARGUMENTS, "all"])
def test_plain_tensors(dtype: type, layout: str, argument: str, taken: Taken) -> None:
    given = {name: LAYOUTS[layout](t) if argument in (name, "all") else t for name, t in arguments(dtype).items()}
    output = detconv.conv2d(**given, padding=1)
    assert taken == [True]
    assert_same_tensor(output, usual(**given, padding=1))
    assert output.data_ptr() % 64 == 0
    output.zero_()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "shape", [(4, 6, 5), (1, 6, 5), (4, 1, 1), (4, 1, 6), (1, 4, 6, 5), (3, 4, 1, 1), (1, 1, 1, 1)]
)
def test_images(layout: str, shape: tuple[int, ...], taken: Taken) -> None:
    image = LAYOUTS[layout](torch.from_numpy(made(shape, np.float32, 1)))
    weight = torch.from_numpy(made((2, shape[-3], 1, 1), np.float32, 2))
    assert_same_tensor(detconv.conv2d(image, weight), usual(image, weight))
    assert taken == [True]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2, "padding": (1, 2), "dilation": [2, 1]},
        {"padding": "same", "groups": 1},
        {"padding": "valid", "stride": (1, 2)},
        {"groups": 2},
        *({"summation": method} for method in METHODS),
        {"summation": detconv.Summation("naive", order="kh,kw,c")},
    ],
    ids=str,
)
def test_options(options: dict[str, Any], taken: Taken) -> None:
    given = arguments()
    if "groups" in options:
        given["weight"] = given["weight"][:, : 4 // options["groups"]]
    for with_bias in (True, False):
        if not with_bias:
            given["bias"] = None
        assert_same_tensor(detconv.conv2d(**given, **options), usual(**given, **options))
    assert taken == [True, True]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_parameters_where_no_gradient_is_asked_for(mode: Any, taken: Taken) -> None:
    layer = torch.nn.Conv2d(4, 6, (3, 2))
    image = arguments()["input"]
    with mode():
        output = detconv.conv2d(image, layer.weight, layer.bias)
        assert_same_tensor(output, usual(image, layer.weight, layer.bias))
        grown = image * layer.weight.sum()
        assert_same_tensor(detconv.conv2d(grown, layer.weight), usual(grown, layer.weight))
    assert taken == [True, True]
    assert not output.requires_grad


# What is not ----------------------------------------------------------------------------------------------------------


def misaligned(t: Any) -> Any:
    memory = np.zeros(t.numel() * t.element_size() + 1, np.uint8)
    array = memory[1:].view(t.numpy().dtype).reshape(t.shape)
    array[...] = t.numpy()
    return torch.from_numpy(array)


def negated(t: Any) -> Any:
    lazily = torch.complex(t, -t).conj().imag
    assert lazily.is_neg()
    return lazily


def without_storage(t: Any) -> Any:
    t = t.clone()
    t.untyped_storage().resize_(0)
    return t


class Labelled(torch.Tensor):  # type: ignore[misc]
    """A tensor with a meaning."""


OTHERS: dict[str, Callable[[Any], Any]] = {
    "float16": lambda t: t.half(),
    "bfloat16": lambda t: t.bfloat16(),
    "float64": lambda t: t.double(),
    "int32": lambda t: t.int(),
    "bool": lambda t: t.bool(),
    "complex64": lambda t: t.to(torch.complex64),
    "sparse": lambda t: t.to_sparse(),
    "mkldnn": lambda t: t.to_mkldnn(),
    "nested": lambda t: torch.nested.nested_tensor(list(t)) if t.dim() > 1 else torch.nested.nested_tensor([t]),
    "jagged": lambda t: torch.nested.nested_tensor([t, t], layout=torch.jagged),
    "quantized": lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
    "meta": lambda t: t.to("meta"),
    "negated": negated,
    "no samples": lambda t: t[:0],
    "no elements": lambda t: t[..., :0],
    "misaligned": misaligned,
    "subclass": lambda t: t.as_subclass(Labelled),
    "gradient": lambda t: t.clone().requires_grad_(),
    "parameter": lambda t: torch.nn.Parameter(t),
    "NumPy": lambda t: t.numpy(),
    "list": lambda t: t.tolist(),
}
SHAPED: dict[str, Callable[[Any], Any]] = {
    "one axis less": lambda t: t[0],
    "one axis more": lambda t: t[None],
    "no axis": lambda t: t.sum(),
    "too few": lambda t: t[:1],
}


@pytest.mark.filterwarnings("ignore:.*(quantize|nested tensors):UserWarning")
@pytest.mark.parametrize("argument", ARGUMENTS)
@pytest.mark.parametrize("other", OTHERS)
def test_other_tensors_have_the_usual_outcome(argument: str, other: str, taken: Taken) -> None:
    given = arguments()
    given[argument] = OTHERS[other](given[argument])
    assert outcome(detconv.conv2d, given, padding=1) == outcome(usual, given, padding=1)
    assert not any(taken)


@pytest.mark.parametrize("argument", ARGUMENTS)
@pytest.mark.parametrize("shaped", SHAPED)
def test_other_shapes_have_the_usual_outcome(argument: str, shaped: str) -> None:
    given = arguments()
    given[argument] = SHAPED[shaped](given[argument])
    assert outcome(detconv.conv2d, given, padding=1) == outcome(usual, given, padding=1)


def test_zero_tensors_are_not_read(taken: Taken) -> None:
    for argument in ARGUMENTS:
        given = arguments()
        given[argument] = torch._efficientzerotensor(given[argument].shape)
        assert outcome(detconv.conv2d, given) == outcome(usual, given)
    assert not any(taken)


@pytest.mark.parametrize("convert", [without_storage, torch._to_functional_tensor])
@pytest.mark.parametrize("argument", ARGUMENTS)
def test_tensors_without_memory_are_not_read(argument: str, convert: Callable[[Any], Any]) -> None:
    given = arguments()
    given[argument] = convert(given[argument])
    program = detconv.Summation.of("naive")._compiled
    assert tensors._conv2d(*given.values(), 1, 0, 1, 1, program, True) is None
    with pytest.raises(TypeError, match=f"{argument} must be a tensor with memory of its own"):
        detconv.conv2d(**given)


@pytest.mark.parametrize(
    "options",
    [
        {"stride": 0},
        {"stride": (1, 2, 3)},
        {"stride": 1.5},
        {"padding": -1},
        {"padding": "some"},
        {"padding": "same", "stride": 2},
        {"padding": None},
        {"dilation": 0},
        {"dilation": 9},
        {"dilation": True},
        {"groups": 3},
        {"groups": 2**70},
        {"summation": "none"},
        {"summation": 1},
    ],
    ids=str,
)
def test_errors_are_the_usual_ones(options: dict[str, Any]) -> None:
    expected = outcome(usual, arguments(), **options)
    assert outcome(detconv.conv2d, arguments(), **options) == expected
    assert issubclass(expected[0], (TypeError, ValueError))  # type: ignore[index]


def test_gradients_are_kept(taken: Taken) -> None:
    for argument in ARGUMENTS:
        given = arguments()
        given[argument].requires_grad_()
        output = detconv.conv2d(**given)
        assert output.requires_grad
        output.sum().backward()
        assert given[argument].grad is not None
    assert not any(taken)


def test_watchers_see_the_call(taken: Taken) -> None:
    given = arguments()
    expected = usual(**given)

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):  # type: ignore[misc]
        def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(operator))
            return operator(*args, **(kwargs or {}))

    seen: list[str] = []
    with Watch():
        output = detconv.conv2d(**given)
    assert any("detconv" in name for name in seen)
    assert_same_tensor(output, expected)
    outputs = torch.vmap(lambda image: detconv.conv2d(image, given["weight"], given["bias"]))(given["input"])
    assert_same_bits(outputs.clone().numpy(), expected.clone().numpy())
    graph = torch.fx.experimental.proxy_tensor.make_fx(lambda image: detconv.conv2d(image, given["weight"]))
    assert "detconv" in graph(given["input"]).code
    derivative = torch.func.grad(lambda image: detconv.conv2d(image, given["weight"]).sum())(given["input"])
    assert derivative.shape == given["input"].shape
    with torch.autograd.forward_ad.dual_level():
        assert_same_tensor(detconv.conv2d(**given), expected)
    assert taken == []


def test_function_modes_do_no_harm() -> None:
    given = arguments()
    expected = usual(**given)

    class Through(torch.overrides.TorchFunctionMode):  # type: ignore[misc]
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return function(*args, **(kwargs or {}))

    for mode in (Through(), torch.device("meta")):
        with mode:
            output = detconv.conv2d(**given)
        assert_same_tensor(output, expected)


def test_errors_of_function_modes_reach_the_caller() -> None:
    class Refuses(torch.overrides.TorchFunctionMode):  # type: ignore[misc]
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            raise LookupError("not today")

    with Refuses(), pytest.raises(LookupError, match="not today"):
        detconv.conv2d(**arguments())


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs the signals of a POSIX system")
def test_signal_handlers_end_a_call(taken: Taken) -> None:
    def up(*_: object) -> None:
        raise TimeoutError("time is up")

    image, weight = torch.ones(1, 512, 50, 50), torch.ones(512, 512, 3, 3)
    before = signal.signal(signal.SIGALRM, up)
    try:
        with instruction_set("baseline"):
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            with pytest.raises(TimeoutError, match="time is up"):
                detconv.conv2d(image, weight, summation="kahan")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert taken == []  # it was, and did not come back
    assert_same_tensor(detconv.conv2d(**arguments()), usual(**arguments()))


# Memory ---------------------------------------------------------------------------------------------------------------


def resident() -> int:
    with open("/proc/self/statm") as numbers:
        return int(numbers.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs Linux's measure of memory")
def test_outputs_are_released() -> None:
    image, weight = torch.ones(1, 1, 1024, 1024), torch.ones(2, 1, 1, 1)
    detconv.conv2d(image, weight)
    before = resident()
    for _ in range(200):  # of 8 MiB
        detconv.conv2d(image, weight)
    assert resident() - before < 256 << 20


def test_outputs_live_as_long_as_their_views() -> None:
    given = arguments()
    expected = usual(**given).numpy()[1:, ::2]
    view = detconv.conv2d(**given).numpy()[1:, ::2]
    others = [torch.full((2, 6, 4, 4), float("nan")) for _ in range(100)]  # take what is free
    assert_same_bits(view, expected)
    del others


@pytest.mark.parametrize(
    "change", [lambda t: t, lambda t: t.double(), lambda t: t[:, :3]], ids=["taken", "not taken", "an error"]
)
def test_inputs_are_only_read(change: Callable[[Any], Any]) -> None:
    given = [t.clone() for t in arguments().values()]
    given[1] = change(given[1])
    copies = [t.clone() for t in given]
    program = detconv.Summation.of("naive")._compiled
    before = [sys.getrefcount(x) for x in (*given, program)]
    for _ in range(100):
        with contextlib.suppress(ValueError):
            tensors._conv2d(*given, 1, 0, 1, 1, program, True)
    assert [sys.getrefcount(x) for x in (*given, program)] == before
    for t, copy in zip(given, copies, strict=True):
        assert torch.equal(t, copy)
        assert t._version == 0
        t.resize_(t.numel() + 1)  # not held by a view


def resizable(tensor: Any) -> bool:
    return bool(tensor.untyped_storage().resizable())


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's own, from forward_ad
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_storages_stay_resizable(dtype: Any) -> None:
    """As torch's own are: those of arguments, outputs and gradients, after every call."""
    g = torch.from_numpy(made((2, 6, 4, 4), np.float32, 5)).to(dtype)
    x, w, b = (t.to(dtype).clone() for t in arguments().values())
    g = g.clone()
    empty = x[:0].clone()
    reads: list[Callable[[], Any]] = [
        lambda: detconv.conv2d(x, w, b),
        lambda: detconv.conv2d(x.flip(0), w, summation="exact"),
        lambda: detconv.conv2d(x[0], w, b, padding="same"),
        lambda: detconv.conv2d(x.contiguous(memory_format=torch.channels_last), w, b),
        lambda: detconv.conv2d(empty, w, b),
        lambda: detconv.conv2d_input(x.shape, w, g),
        lambda: detconv.conv2d_weight(x, w.shape, g),
        lambda: detconv.conv2d_bias(g),
        lambda: detconv.conv_transpose2d(g, w, stride=2),
        lambda: torch.ops.detconv.conv2d(x, w, b, [1, 1], [0, 0], [1, 1], 1, "pairwise"),
        lambda: torch.autograd.grad(detconv.conv2d(*(t.requires_grad_() for t in (x, w, b))).sum(), (x, w, b)),
        lambda: torch.func.jvp(lambda t: detconv.conv2d(t, w, b), (x,), (x,)),
        lambda: torch.vmap(lambda t: detconv.conv2d(t, w, b))(x),
    ]
    for read in reads:
        found = read()
        for output in found if isinstance(found, tuple) else (found,):
            assert resizable(output)
        for given in (x, w, b, g, empty):
            assert resizable(given)
            given.requires_grad_(False)


def test_what_only_reads_tensors_leaves_them_resizable() -> None:
    x, w = (t.clone() for t in (arguments()["input"], arguments()["weight"]))
    y = detconv.conv2d(x, w)
    buffer = torch.empty(0)

    def into_a_buffer(image: Any, weight: Any, bias: Any = None) -> Any:
        out = torch.nn.functional.conv2d(image, weight)
        return torch.cat([out], out=buffer) if buffer.shape == out.shape else torch.cat([out], out=buffer.resize_(0))

    model = torch.nn.Sequential(torch.nn.Conv2d(4, 6, (3, 2)))
    other = torch.nn.Sequential(torch.nn.Conv2d(4, 6, (3, 2)))
    layer_weights = [*model.parameters(), *other.parameters()]
    reads: dict[str, Callable[[], Any]] = {
        "judge": lambda: detconv.judge(y, x, w),
        "diagnose": lambda: detconv.diagnose(y + 1, x, w),
        "judge_weight_gradient": lambda: detconv.judge_weight_gradient(w, x, w.shape, y),
        "weights_sha256": lambda: detconv.weights_sha256(model),
        "compare_models": lambda: detconv.compare_models(model, other, x),
        "reveal": lambda: detconv.reveal(
            into_a_buffer, input_shape=(1, 2, 3, 3), weight_shape=(2, 2, 2, 2), arrays="torch", bias=False
        ),
    }
    for name, read in reads.items():
        read()
        for tensor in (x, w, y, buffer, *layer_weights):
            assert resizable(tensor), name
    torch.cat([x, x], out=y.resize_(0))
    assert y.shape[0] == 4


def test_a_weight_that_is_freed_between_passes() -> None:
    """As fully_shard does: it frees the storage of gathered parameters and fills it again before the backward pass."""
    layer = detconv.nn.Conv2d(4, 6, (3, 2))
    image = arguments()["input"]
    expected = torch.autograd.grad(layer(image).square().sum(), layer.weight)[0]
    output, kept, storage = layer(image), layer.weight.detach().clone(), layer.weight.untyped_storage()
    size = storage.nbytes()
    storage.resize_(0)
    with pytest.raises(TypeError, match=r"^weight must be a tensor with memory of its own"):
        layer(image)
    storage.resize_(size)
    layer.weight.data.copy_(kept)  # unseen by autograd, as there
    assert torch.equal(torch.autograd.grad(output.square().sum(), layer.weight)[0], expected)


# Which torch ----------------------------------------------------------------------------------------------------------


class Header(ctypes.Structure):
    _fields_ = (("major", ctypes.c_uint32), ("minor", ctypes.c_uint32), ("older", ctypes.c_void_p))


def offering(interface: Any, name: bytes = b"dlpack_exchange_api") -> type:
    """A class with this interface."""
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    return type("Offering", (), {"__dlpack_c_exchange_api__": new(ctypes.addressof(interface), name, None)})


def test_interfaces() -> None:
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    own = get(torch.Tensor.__dlpack_c_exchange_api__, b"dlpack_exchange_api")
    assert _core.tensor_conv2d((int,)) is None
    assert _core.tensor_conv2d((type("Wrong", (), {"__dlpack_c_exchange_api__": 1}),)) is None
    name = ctypes.create_string_buffer(b"another")
    assert _core.tensor_conv2d((offering(Header(1, 3, None), name.value),)) is None
    newer, newest = Header(2, 0, None), Header(2, 0, own)
    assert _core.tensor_conv2d((offering(newer),)) is None
    conv2d = _core.tensor_conv2d((offering(newest), torch.Tensor))
    assert conv2d is not None
    program = detconv.Summation.of("pairwise")._compiled
    assert_same_tensor(conv2d(*arguments().values(), 1, 0, 1, 1, program, True), usual(**arguments()))


@pytest.mark.parametrize("argument", ARGUMENTS)
@pytest.mark.parametrize("other", ["negated", "meta", "float64", "gradient", "no samples", "subclass"])
def test_torch_without_the_interface(argument: str, other: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors, "_conv2d", None)
    monkeypatch.setattr(tensors, "_read", None)
    given = arguments()
    assert_same_tensor(detconv.conv2d(**given), usual(**given))
    given[argument] = OTHERS[other](given[argument])
    assert outcome(detconv.conv2d, given) == outcome(usual, given)
