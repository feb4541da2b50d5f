"""Arrays of every library go in and come out as what they are, uncopied, or are refused by name."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import array_api_strict
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import detconv
from bits import DTYPES, LAYOUTS, Array, assert_same_bits, made, relaid
from detconv import _core, arrays

ARGUMENTS = ("input", "weight", "bias")
SHAPES: dict[str, tuple[int, ...]] = {"input": (2, 3, 6, 5), "weight": (4, 3, 3, 2), "bias": (4,)}


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch")


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Array]:
    """The input, weight and bias that the engine was called with, and what it returned."""
    arrays: list[Array] = []
    conv2d = _core.conv2d

    def spy(input: Array, weight: Array, bias: Array, *options: Any) -> Array:
        output = conv2d(input, weight, bias, *options)
        arrays[:] = input, weight, bias, output
        return output

    monkeypatch.setattr(_core, "conv2d", spy)
    return arrays


def arguments(dtype: type = np.float32) -> dict[str, Any]:
    return {name: made(shape, dtype, seed) for seed, (name, shape) in enumerate(SHAPES.items())}


def expected(dtype: type = np.float32) -> Array:
    return detconv.reference.conv2d(**arguments(dtype), padding=1)


def refused(argument: str, value: object, others: dict[str, Any], match: str, error: Any = TypeError) -> None:
    """conv2d with this value for this argument raises an error that starts with the argument's name."""
    with pytest.raises(error, match=rf"^{argument}\b.*{match}"):
        detconv.conv2d(**{**others, argument: value})


def address(array: Array) -> int:
    return int(array.__array_interface__["data"][0])


# NumPy ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_numpy(dtype: type, layout: str) -> None:
    given = {name: relaid(array, layout) if array.ndim == 4 else array for name, array in arguments(dtype).items()}
    output = detconv.conv2d(**given, padding=1)
    assert type(output) is np.ndarray
    assert output.flags.c_contiguous
    assert output.flags.writeable
    assert_same_bits(output, expected(dtype))


def test_numpy_memmap(tmp_path: Path, seen: list[Array]) -> None:
    given = arguments()
    np.save(tmp_path / "input.npy", given["input"])
    given["input"] = np.load(tmp_path / "input.npy", mmap_mode="r")
    output = detconv.conv2d(**given, padding=1)
    assert type(output) is np.ndarray
    assert seen[0] is given["input"]
    assert_same_bits(output, expected())


class Quantity(np.ndarray[Any, Any]):
    """An array with a unit."""


@pytest.mark.parametrize("argument", ARGUMENTS)
@pytest.mark.parametrize(
    ("convert", "what"),
    [
        (np.ma.masked_invalid, "masked array"),
        (lambda array: array.view(Quantity), "Quantity"),
        (lambda array: np.ndarray.__new__(np.matrix, (1, 1)), "matrix"),
        (lambda array: array.tolist(), "list.*numpy.asarray"),
        (lambda array: tuple(array), "tuple.*numpy.asarray"),
        (lambda array: memoryview(array), "memoryview"),
        (lambda array: 1.0, "float.*numpy.asarray"),
        (lambda array: array.dtype.type(1), "float32"),
        (lambda array: "array", "str"),
        (lambda array: type(array), "type"),
    ],
)
def test_what_is_no_plain_array_is_refused(argument: str, convert: Callable[[Array], object], what: str) -> None:
    given = arguments()
    refused(argument, convert(given[argument]), given, what)


@pytest.mark.parametrize("argument", ["input", "weight"])
def test_none_is_refused(argument: str) -> None:
    refused(argument, None, arguments(), "NoneType")


@pytest.mark.parametrize("argument", ARGUMENTS)
@pytest.mark.parametrize("dtype", ["int16", "longdouble", "int64", "bool", "complex64", "object", "S4", "f4,f4"])
def test_other_element_types_are_refused(argument: str, dtype: str) -> None:
    given = {name: np.zeros(SHAPES[name], dtype) for name in ARGUMENTS}
    refused("input", given["input"], given, "float32")
    refused(argument, given[argument], arguments(), "float32")


@pytest.mark.parametrize("argument", ARGUMENTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_foreign_byte_order_is_refused(argument: str, dtype: type) -> None:
    given, foreign = arguments(dtype), np.dtype(dtype).newbyteorder()
    refused(argument, given[argument].astype(foreign), given, foreign.str)


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
@pytest.mark.parametrize("summation", ["pairwise", "kahan", "exact", "naive products=rounded"])
def test_numpy_half_types(half: str, summation: str) -> None:
    """As tensors are: summed as float32, the total rounded once, out comes the same kind of array; in every pass."""
    dtype = np.dtype(np.float16) if half == "float16" else np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    x, w, b = (array.astype(dtype) for array in arguments().values())
    g = made((2, 4, 6, 6), np.float32, 7).astype(dtype)
    x_last = x.transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2)[:, :, :, ::-1][:, :, :, ::-1]
    calls: dict[str, list[tuple[Any, ...]]] = {
        "conv2d": [(x, w, b), (x_last, w, None)],
        "conv2d_input": [(x.shape, w, g)],
        "conv2d_weight": [(x, w.shape, g)],
        "conv2d_bias": [(g,)],
        "conv_transpose2d": [(g, w, made((3,), np.float32, 8).astype(dtype))],
    }
    compared = 0
    for name, several in calls.items():
        options: dict[str, Any] = {} if name == "conv2d_bias" else {"padding": 1}
        for call in several:
            output = getattr(detconv, name)(*call, **options, summation=summation)
            wide = [a.astype(np.float32) if isinstance(a, np.ndarray) else a for a in call]
            wanted = getattr(detconv.reference, name)(*wide, **options, summation=summation, half=half)
            assert type(output) is np.ndarray
            assert output.dtype == dtype
            assert_same_bits(output.astype(np.float32), wanted)
            compared += int(np.isfinite(wanted).sum())
    assert compared > 500


def test_half_types_of_another_library() -> None:
    class Space:
        """A namespace of arrays that knows float16."""

        @staticmethod
        def from_dlpack(array: Any) -> Any:
            return Other(np.from_dlpack(array))

    class Other:
        def __init__(self, array: Array) -> None:
            self.array = array

        def __dlpack__(self, **options: Any) -> Any:
            return self.array.__dlpack__(**options)

        def __dlpack_device__(self) -> Any:
            return self.array.__dlpack_device__()

        def __array_namespace__(self) -> type:
            return Space

    given = {name: array.astype(np.float16) for name, array in arguments().items()}
    output: Any = detconv.conv2d(**{name: Other(array) for name, array in given.items()}, padding=1)
    assert output.array.dtype == np.float16
    assert output.array.tobytes() == detconv.conv2d(**given, padding=1).tobytes()


@pytest.mark.parametrize("argument", ARGUMENTS)
def test_half_types_are_not_mixed_and_native(argument: str) -> None:
    given = {name: array.astype(np.float16) for name, array in arguments().items()}
    odd = "weight" if argument == "input" else argument
    refused(odd, given[odd], arguments(), "float16")
    refused(argument, given[argument].astype(">f2" if sys.byteorder == "little" else "<f2"), given, "f2|float16")
    bfloat16 = np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    refused("weight", given["weight"].astype(bfloat16), given, "bfloat16")


def test_ml_dtypes_is_not_imported_for_the_user() -> None:
    code = (
        "import sys, numpy as np, detconv\n"
        "x = np.ones((1, 1, 2, 2), np.float16)\n"
        "assert detconv.conv2d(x, x).tolist() == [[[[4.0]]]]\n"
        "assert 'ml_dtypes' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("argument", ["weight", "bias"])
def test_mixed_element_types_are_refused(argument: str) -> None:
    given = arguments()
    refused(argument, given[argument].astype(np.float64), given, "float64")


def test_numpy_unaligned() -> None:
    given = arguments()
    for name, array in given.items():
        record = np.zeros(array.shape, np.dtype([("tag", "u1"), ("value", array.dtype)]))
        record["value"] = array
        assert not record["value"].flags.aligned
        assert_same_bits(detconv.conv2d(**{**given, name: record["value"]}, padding=1), expected())


# torch ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_torch(torch: Any, dtype: type, seen: list[Array], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "QUICK", {})  # which comes by without arrays: test_tensor_call.py
    given = {name: torch.from_numpy(array) for name, array in arguments(dtype).items()}
    output = detconv.conv2d(**given, padding=1)
    assert type(output) is torch.Tensor
    assert_same_bits(output.numpy(), expected(dtype))
    assert [address(array) for array in seen] == [t.data_ptr() for t in (*given.values(), output)]


def test_torch_without_bias(torch: Any) -> None:
    given = arguments()
    output = detconv.conv2d(torch.from_numpy(given["input"]), torch.from_numpy(given["weight"]))
    assert_same_bits(output.numpy(), detconv.conv2d(given["input"], given["weight"]))


@given(data=st.data())
def test_torch_memory_format_is_that_of_torch(data: st.DataObject) -> None:
    torch = pytest.importorskip("torch")
    size = st.integers(1, 3)

    def tensor(shape: list[int]) -> Any:
        """A tensor of this shape, its dimensions in memory in any order, with or without gaps."""
        where = data.draw(st.permutations(range(len(shape))))
        steps = [data.draw(st.sampled_from([1, 1, 1, 2])) for _ in shape]
        full = torch.ones([shape[d] * steps[d] for d in where]).permute([where.index(d) for d in range(len(shape))])
        return full[tuple(slice(None, None, step) for step in steps)]

    batch, channels, outputs = data.draw(st.sampled_from([[], [1], [2]])), data.draw(size), data.draw(size)
    kernel = [data.draw(size), data.draw(size)]
    image = [k + data.draw(st.integers(0, 2)) for k in kernel]
    input, weight = tensor([*batch, channels, *image]), tensor([outputs, channels, *kernel])
    theirs = torch.nn.functional.conv2d(input, weight)
    ours = detconv.conv2d(input, weight)
    assert ours.stride() == theirs.stride(), (input.shape, input.stride(), weight.shape, weight.stride(), theirs.shape)
    assert torch.equal(ours, theirs)  # small integers: exact in any order


def test_torch_parameters(torch: Any) -> None:
    layer = torch.nn.Conv2d(3, 4, (3, 2), padding=1)
    given = {name: torch.from_numpy(array) for name, array in arguments().items()}
    with torch.no_grad():
        layer.weight.copy_(given["weight"])
        layer.bias.copy_(given["bias"])
    output = detconv.conv2d(given["input"], layer.weight, layer.bias, padding=1)
    assert output.requires_grad
    assert_same_bits(output.detach().numpy(), expected())
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            output = detconv.conv2d(given["input"], layer.weight, layer.bias, padding=1)
        assert type(output) is torch.Tensor
        assert not output.requires_grad
        assert_same_bits(output.numpy(), expected())
    frozen = torch.nn.Parameter(given["weight"], requires_grad=False)
    assert_same_bits(detconv.conv2d(given["input"], frozen, given["bias"], padding=1).numpy(), expected())


def test_torch_lazy_negation_is_done(torch: Any) -> None:
    given = {name: torch.from_numpy(array) for name, array in arguments().items()}
    negated = torch.complex(given["weight"], -given["weight"]).conj().imag
    assert negated.is_neg()
    output = detconv.conv2d(given["input"], negated, given["bias"], padding=1)
    assert_same_bits(output.numpy(), expected())


def test_torch_expanded(torch: Any) -> None:
    image = torch.from_numpy(made((1, 3, 6, 5), np.float32, 0))
    weight = torch.from_numpy(arguments()["weight"])
    output = detconv.conv2d(image.expand(2, 3, 6, 5), weight)
    assert_same_bits(output.numpy(), detconv.conv2d(image.numpy(), weight.numpy()).repeat(2, axis=0))


@pytest.mark.filterwarnings("ignore:.*quantize:UserWarning")
@pytest.mark.parametrize("argument", ARGUMENTS)
@pytest.mark.parametrize(
    ("convert", "what"),
    [
        (lambda torch, t: t.int(), "torch.int32"),
        (lambda torch, t: t.long(), "torch.int64"),
        (lambda torch, t: t.bool(), "torch.bool"),
        (lambda torch, t: t.to(torch.complex64), "torch.complex64"),
        (lambda torch, t: t.to_sparse(), "torch.sparse_coo"),
        (lambda torch, t: t.to_mkldnn(), "torch._mkldnn"),
        (lambda torch, t: torch.nested.nested_tensor([t, t], layout=torch.jagged), "nested"),
        (lambda torch, t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), "torch.qint8.*dequantize"),
        (lambda torch, t: t.to("meta"), "CPU.*meta"),
        (lambda torch, t: t.numpy().tolist(), "list"),
        (lambda torch, t: t.as_subclass(type("Labelled", (torch.Tensor,), {})), "Labelled.*as_subclass"),
    ],
)
def test_other_tensors_are_refused(torch: Any, argument: str, convert: Callable[[Any, Any], object], what: str) -> None:
    given = {name: torch.from_numpy(array) for name, array in arguments().items()}
    refused(argument, convert(torch, given[argument]), given, what)


@pytest.mark.parametrize("argument", ARGUMENTS)
def test_torch_on_cuda_is_refused(torch: Any, argument: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    given = {name: torch.from_numpy(array) for name, array in arguments().items()}
    refused(argument, given[argument].cuda(), given, "CPU.*cuda:0")


# DLPack ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_dlpack(dtype: type, seen: list[Array]) -> None:
    given = {name: array_api_strict.asarray(array) for name, array in arguments(dtype).items()}
    output = detconv.conv2d(**given, padding=1)
    assert type(output) is type(given["input"])
    back = np.asarray(output)
    assert_same_bits(back, expected(dtype))
    addresses = [address(array) for array in seen]
    assert addresses == [*(address(np.from_dlpack(array)) for array in given.values()), address(back)]


class Producer:
    """An array of a library that may lack a way back, on any device."""

    def __init__(self, array: Array, device: int = 1) -> None:
        self.array, self.device = array, device

    def __dlpack__(self, **options: Any) -> object:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device, 0


class BrokenProducer(Producer):
    def __dlpack__(self, **options: Any) -> object:
        raise BufferError("no DLPack today")

    def __array_namespace__(self) -> ModuleType:
        return np


@pytest.mark.parametrize("argument", ARGUMENTS)
def test_dlpack_producers_that_do_not_serve_are_refused(argument: str) -> None:
    given: dict[str, Any] = {name: BrokenProducer(array) for name, array in arguments().items()}
    array = arguments()[argument]
    refused(argument, Producer(array), given, "__array_namespace__.*numpy.from_dlpack")
    refused(argument, Producer(array, device=2), given, "CPU.*CUDA")
    refused(argument, Producer(array, device=77), given, "CPU.*77")
    refused("input", given["input"], given, "no DLPack today")


def test_dlpack_element_types_are_checked() -> None:
    given = {name: array_api_strict.zeros(shape, dtype=array_api_strict.int32) for name, shape in SHAPES.items()}
    refused("input", given["input"], given, "int32")


# One library ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("argument", ["weight", "bias"])
def test_mixed_libraries_are_refused(torch: Any, argument: str) -> None:
    array = arguments()[argument]
    strict = array_api_strict.asarray
    forms = {"numpy.ndarray": np.asarray, "torch.Tensor": torch.from_numpy, "array_api_strict": strict}
    for kind, convert in forms.items():
        for other_kind, other in forms.items():
            if kind != other_kind:
                given = {name: convert(value) for name, value in arguments().items()}
                refused(argument, other(array), given, f"{kind}.*{other_kind}")


def test_torch_is_imported_by_nobody_but_the_caller() -> None:
    code = """
import sys
import array_api_strict, numpy, detconv
x = numpy.ones((1, 1, 3, 3), numpy.float32)
detconv.conv2d(x, x)
detconv.conv2d(array_api_strict.asarray(x), array_api_strict.asarray(x))
try:
    detconv.conv2d([x], x)
except TypeError:
    pass
detconv.reference.conv2d(x, x)
detconv.show_config()
print(*{"torch", "matplotlib", "scipy"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ""
