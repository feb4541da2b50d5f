"""What may change while the bits do not: threads, instruction set, company in the batch, groups, memory layout."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

import detconv
from bits import DTYPES, METHODS, Array, Layer, assert_same_bits, made
from detconv import _core
from detconv.testing import instruction_set

THREADS = (1, 2, 3, 7)
INSTRUCTION_SETS: list[str] = detconv.build_info()["instruction_sets_usable"]  # type: ignore[assignment]

# Every method, and settings that take other ways through the kernels: rounded products, a bias that comes first, a
# sequence that is not the panel's own, a tree of many accumulators.
SUMMATIONS = (
    *METHODS,
    "naive order=kh,kw,c products=rounded bias=first",
    "pairwise order=kw,c,kh block=3",
    "kahan order=kh,c,kw products=rounded bias=first",
)


def layer(
    channels: int, outputs: int, kernel: int, size: tuple[int, int], groups: int = 1, **options: Any
) -> Callable[[type], Layer]:
    def of(dtype: type) -> Layer:
        return Layer(
            made((2, channels, *size), dtype, seed=1),
            made((outputs, channels // groups, kernel, kernel), dtype, seed=2),
            made((outputs,), dtype, seed=3),
            {"groups": groups, **options},
        )

    return of


# At least one for each way through the driver; each is work enough for seven threads.
LAYERS = {
    "where it lies": layer(5, 40, 3, (17, 21)),
    "padded copies": layer(6, 24, 3, (13, 15), padding=1),
    "more padding than image": layer(12, 40, 3, (2, 3), padding=4),
    "stride and dilation": layer(16, 48, 3, (19, 23), groups=2, stride=(2, 3), dilation=(3, 2), padding=2),
    "chunks of rows": layer(20, 3, 3, (70, 66), padding=1),
    "chunks of a row": layer(90, 2, 2, (2, 530), padding=(0, 1)),
    "more weights than are packed at once": layer(820, 72, 3, (3, 3), padding=1),
    "1x1": layer(48, 28, 1, (14, 15)),
    "1x1 in chunks": layer(64, 5, 1, (64, 40)),
    "1x1, alone where it lies": layer(64, 5, 1, (100, 110)),  # two samples come from beyond the cache, and are copied
    "1x1 with stride": layer(64, 64, 1, (15, 15), stride=2),
    "depthwise": layer(25, 25, 5, (12, 31), groups=25, padding=2),
    "depthwise, few channels": layer(7, 7, 3, (66, 70), groups=7, padding=1),
    "depthwise, every other pixel": layer(75, 75, 3, (24, 61), groups=75, padding=1, stride=2),
    "groups of one output": layer(60, 20, 3, (20, 23), groups=20, padding=1),
    "depthwise, two outputs a channel": layer(7, 14, 3, (40, 50), groups=7),
    "one pixel": layer(100, 160, 4, (4, 4)),
    "one column": layer(20, 45, 3, (30, 1), padding=1),
}

every_way = pytest.mark.parametrize(
    ("way", "summation", "dtype"),
    [
        pytest.param(way, summation, dtype, id=f"{way} - {summation} - {dtype.__name__}")
        for way in LAYERS
        for summation in SUMMATIONS
        for dtype in DTYPES
    ],
)


def conv2d(layer: Layer, summation: str) -> Array:
    return detconv.conv2d(*layer.arrays, **layer.options, summation=summation)


def assert_consistent(results: Iterable[tuple[object, Array]]) -> Array:
    """At least two variants, all of the same bits, and most of their elements are numbers that could have differed."""
    (first_variant, first), *others = results
    assert others, f"nothing to compare with {first_variant}"
    assert np.count_nonzero(np.isfinite(first) & (first != 0)) > first.size / 2, first_variant
    for variant, result in others:
        assert_same_bits(result, first, f"{variant} against {first_variant}")
    return first


@pytest.mark.parametrize("way", LAYERS)
def test_every_layer_is_worth_all_threads(way: str) -> None:
    layer = LAYERS[way](np.float32)
    assert conv2d(layer, "naive").size * layer.terms >= max(THREADS) << 16


@pytest.fixture
def _one_thread() -> None:
    """For comparisons in which threads play no part: on a busy machine they mostly wait for each other."""
    detconv.set_num_threads(1)


# ---- Threads and instruction sets ----


@every_way
def test_threads_and_instruction_sets(way: str, summation: str, dtype: type) -> None:
    layer = LAYERS[way](dtype)

    def results() -> Iterator[tuple[object, Array]]:
        for isa in INSTRUCTION_SETS:
            for threads in THREADS:
                detconv.set_num_threads(threads)
                with instruction_set(isa):
                    yield (isa, threads), conv2d(layer, summation)

    assert_consistent(results())


# ---- Parts of the problem, alone or together ----


@every_way
def test_company_in_the_batch(way: str, summation: str, dtype: type) -> None:
    layer = LAYERS[way](dtype)
    sample, other = layer.input
    nothing = np.full_like(sample, np.nan)
    batches = {
        "alone": [sample],
        "first": [sample, other],
        "among NaN": [nothing, sample, nothing],
        "last": [other, nothing, other, other, sample],
        "twice": [sample, other, other, sample],
    }

    def results() -> Iterator[tuple[object, Array]]:
        yield "no batch", conv2d(replace(layer, input=sample), summation)
        for name, batch in batches.items():
            output = conv2d(replace(layer, input=np.stack(batch)), summation)
            for position, member in enumerate(batch):
                if member is sample:
                    yield (name, position), output[position]

    assert_consistent(results())


@every_way
@pytest.mark.usefixtures("_one_thread")
def test_outputs_and_groups_apart(way: str, summation: str, dtype: type) -> None:
    layer = LAYERS[way](dtype)
    groups, channels = layer.options["groups"], layer.weight.shape[1]
    outputs = len(layer.weight) // groups

    def group(number: int, first: int, last: int) -> Array:
        """The outputs first ... last - 1 of one group."""
        rows = slice(number * outputs + first, number * outputs + last)
        assert layer.bias is not None
        part = Layer(
            layer.input[:, number * channels : (number + 1) * channels],
            layer.weight[rows],
            layer.bias[rows],
            {**layer.options, "groups": 1},
        )
        return conv2d(part, summation)

    def joined(*bounds: int) -> Array:
        parts = [group(g, first, last) for g in range(groups) for first, last in pairwise(bounds)]
        return np.concatenate(parts, axis=1)

    def results() -> Iterator[tuple[object, Array]]:
        yield "together", conv2d(layer, summation)
        yield "groups apart", joined(0, outputs)
        if outputs > 1:
            yield "the first output apart", joined(0, 1, outputs)
            yield "in two halves", joined(0, outputs // 2, outputs)

    assert_consistent(results())


@every_way
@pytest.mark.usefixtures("_one_thread")
def test_a_window_alone_and_padding_by_hand(way: str, summation: str, dtype: type) -> None:
    layer = LAYERS[way](dtype)
    padding, stride = (
        (value, value) if isinstance(value, int) else value
        for value in (layer.options.get("padding", 0), layer.options.get("stride", 1))
    )
    padded = np.pad(layer.input, [(0, 0), (0, 0), *((p, p) for p in padding)])

    def without(rows: int, columns: int) -> Array:
        """The same, from the output's given row and column on."""
        part = replace(layer, options={**layer.options, "padding": 0})
        part = replace(part, input=padded[:, :, rows * stride[0] :, columns * stride[1] :])
        return conv2d(part, summation)

    whole = conv2d(layer, summation)
    assert_consistent([("padding", whole), ("by hand", without(0, 0))])
    rows, columns = whole.shape[2] // 2, whole.shape[3] // 3
    assert_consistent([("part", whole[:, :, rows:, columns:].copy()), ("alone", without(rows, columns))])


# ---- Memory ----


def channels_last(array: Array) -> Array:
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(array, -3, -1)), -1, -3) if array.ndim > 1 else array


def every_other(array: Array) -> Array:
    wide = np.full([2 * size + 1 for size in array.shape], np.nan, array.dtype)
    view = wide[tuple(slice(1, None, 2) for _ in array.shape)]
    view[...] = array
    return view


def read_only(array: Array) -> Array:
    array = array.copy()
    array.flags.writeable = False
    return array


def field_of_records(array: Array) -> Array:
    """Elements 1 byte apart from each other: neither aligned nor whole elements apart."""
    records = np.zeros(array.shape, [("before", np.uint8), ("value", array.dtype)])
    records["value"] = array
    values: Array = records["value"]
    return values


LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "Fortran": np.asfortranarray,
    "channels last": channels_last,
    "batch innermost": lambda array: np.moveaxis(np.ascontiguousarray(np.moveaxis(array, 0, -1)), -1, 0),
    "backwards": lambda array: np.flip(np.ascontiguousarray(np.flip(array))),
    "every other": every_other,
    "read-only": read_only,
    "unaligned": lambda array: np.frombuffer(b"?" + array.tobytes(), array.dtype, offset=1).reshape(array.shape),
    "field of records": field_of_records,
}


@every_way
@pytest.mark.usefixtures("_one_thread")
def test_layouts(way: str, summation: str, dtype: type) -> None:
    layer = LAYERS[way](dtype)

    def results() -> Iterator[tuple[object, Array]]:
        yield "contiguous", conv2d(layer, summation)
        for name, lay in LAYOUTS.items():
            assert layer.bias is not None
            input, weight, bias = lay(layer.input), lay(layer.weight), lay(layer.bias)
            yield (name, "input"), conv2d(replace(layer, input=input), summation)
            yield (name, "weight"), conv2d(replace(layer, weight=weight, bias=bias), summation)
            yield (name, "all"), conv2d(Layer(input, weight, bias, layer.options), summation)

    assert_consistent(results())


@pytest.mark.parametrize("lay", LAYOUTS.values(), ids=LAYOUTS)
def test_the_layouts_hold_the_same_values_otherwise(lay: Callable[[Array], Array]) -> None:
    array = made((2, 3, 4, 5), np.float32, seed=1)
    laid = lay(array)
    assert_same_bits(laid, array)
    same = ("strides", "flags.writeable", "flags.aligned")
    assert any(_read(laid, name) != _read(array, name) for name in same)


def _read(value: object, path: str) -> object:
    for name in path.split("."):
        value = getattr(value, name)
    return value


@every_way
@pytest.mark.usefixtures("_one_thread")
def test_elements_that_share_memory(way: str, summation: str, dtype: type) -> None:
    layer = LAYERS[way](dtype)
    for axis in range(4):
        first = tuple(slice(0, 1) if i == axis else slice(None) for i in range(4))
        shared = Layer(
            np.broadcast_to(layer.input[first], layer.input.shape),
            np.broadcast_to(layer.weight[first], layer.weight.shape),
            np.broadcast_to(made((1,), dtype, seed=3), layer.weight.shape[:1]),
            layer.options,
        )
        assert 0 in shared.input.strides
        assert shared.bias is not None
        copied = Layer(shared.input.copy(), shared.weight.copy(), shared.bias.copy(), layer.options)
        assert_consistent([("shared", conv2d(shared, summation)), ("copied", conv2d(copied, summation))])


@every_way
@pytest.mark.usefixtures("_one_thread")
def test_layout_of_the_output(way: str, summation: str, dtype: type) -> None:
    layer = LAYERS[way](dtype)
    options = {"stride": 1, "padding": 0, "dilation": 1, **layer.options}
    compiled = detconv.Summation.parse(summation)._compiled
    last = _core.conv2d(*layer.arrays, **options, summation=compiled, channels_last=True)
    _, o, h, w = last.shape
    assert last.strides == tuple(last.itemsize * count for count in (h * w * o, 1, w * o, o))
    assert_consistent([("channels last", last), ("contiguous", conv2d(layer, summation))])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("way", LAYERS)
@pytest.mark.usefixtures("_one_thread")
def test_the_arguments_are_left_alone(way: str, dtype: type) -> None:
    layer, untouched = LAYERS[way](dtype), LAYERS[way](dtype)
    for summation in SUMMATIONS:
        output = conv2d(layer, summation)
        for array, copy in zip(layer.arrays, untouched.arrays, strict=True):
            assert array is not None
            assert copy is not None
            assert_same_bits(array, copy, summation)
            assert not np.shares_memory(output, array), summation
