"""Arguments that are wrong are named, with what came and what is valid; and none of them, however large, crashes.

What is no array of the right kind is refused in test_arrays.py, what is no summation in test_summation.py.
"""

from __future__ import annotations

import itertools
import math
import multiprocessing
import re
import sys
from collections import Counter
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import detconv
from bits import METHODS, PATIENCE, Array, assert_same_bits, made

TOO_LARGE = (2**63, 2**64, 10**40, -(2**63) - 1)


class Strange:
    """Not an int, though it looks like one to int()."""

    def __int__(self) -> int:
        return 1

    def __repr__(self) -> str:
        return "Strange()"


def arguments() -> dict[str, Any]:
    return {
        "input": made((2, 4, 7, 8), np.float32, 1),
        "weight": made((6, 2, 3, 3), np.float32, 2),
        "bias": made((6,), np.float32, 3),
        "groups": 2,
    }


def assert_refused(error: type[Exception], parts: list[str], **changes: Any) -> None:
    """The error's message starts with the first part and has the others in it, in this order."""
    with pytest.raises(error) as raised:
        detconv.conv2d(**{**arguments(), **changes})
    pattern = "^" + ".*".join(map(re.escape, parts))
    assert type(raised.value) is error
    assert re.search(pattern, str(raised.value)), f"{raised.value}\ndoes not read {pattern}"


# ---- Shapes ----


@pytest.mark.parametrize("shape", [(), (4,), (4, 7), (1, 1, 4, 7, 8)])
def test_rank_of_input(shape: tuple[int, ...]) -> None:
    assert_refused(
        ValueError, ["input must have 4 dimensions", "or 3", f"got shape {shape}"], input=np.ones(shape, np.float32)
    )


@pytest.mark.parametrize("shape", [(), (3,), (3, 3), (4, 3, 3), (6, 2, 3, 3, 1)])
def test_rank_of_weight(shape: tuple[int, ...]) -> None:
    assert_refused(
        ValueError,
        ["weight must have 4 dimensions (O, C / groups, KH, KW)", f"got shape {shape}"],
        weight=np.ones(shape, np.float32),
    )


@pytest.mark.parametrize("shape", [(), (0,), (1,), (5,), (7,), (6, 1), (1, 6), (1, 6, 1, 1)])
def test_shape_of_bias(shape: tuple[int, ...]) -> None:
    bias = np.ones(shape, np.float32)
    assert_refused(ValueError, ["bias must have shape (6,)", f"got shape {shape}"], bias=bias)


@pytest.mark.parametrize("shape", [(2, 3, 7, 8), (3, 7, 8), (2, 8, 7, 8), (2, 0, 7, 8), (0, 3, 7, 8)])
def test_channels(shape: tuple[int, ...]) -> None:
    assert_refused(
        ValueError,
        ["input must have", "4 channels", f"got input of shape {shape}", "weight of shape (6, 2, 3, 3) and groups 2"],
        input=np.ones(shape, np.float32),
    )


def test_groups() -> None:
    ones = np.ones((5, 2, 3, 3), np.float32)
    assert_refused(
        ValueError, ["groups must divide", "got groups 2", "(5, 2, 3, 3)"], weight=ones, bias=ones[:, 0, 0, 0]
    )
    assert_refused(ValueError, ["groups must divide", "got groups 4", "(6, 2, 3, 3)"], groups=4)
    assert_refused(ValueError, ["input must have weight.shape[1] * groups = 6 channels", "(2, 4, 7, 8)"], groups=3)
    for groups in (0, -1, -(2**63)):
        assert_refused(ValueError, ["groups must be at least 1", f"got {groups}"], groups=groups)


@pytest.mark.parametrize(
    ("changes", "kernel", "padded"),
    [
        ({"input": (2, 4, 2, 8)}, (3, 3), (2, 8)),
        ({"input": (4, 7, 2)}, (3, 3), (7, 2)),
        ({"input": (2, 4, 2, 2), "padding": (1, 0)}, (3, 3), (4, 2)),
        ({"dilation": 4}, (9, 9), (7, 8)),
        ({"dilation": (1, 4), "padding": (5, 0)}, (3, 9), (17, 8)),
        ({"dilation": 2**61}, (2**62 + 1, 2**62 + 1), (7, 8)),
        ({"weight": (6, 2, 8, 1), "stride": 2**62}, (8, 1), (7, 8)),
        ({"input": (2, 4, 0, 8)}, (3, 3), (0, 8)),
        ({"input": (0, 4, 2, 8)}, (3, 3), (2, 8)),
    ],
)
def test_a_kernel_larger_than_the_padded_input(
    changes: dict[str, Any], kernel: tuple[int, int], padded: tuple[int, int]
) -> None:
    for name in ("input", "weight"):
        if name in changes:
            changes = {**changes, name: np.ones(changes[name], np.float32)}
    parts = ["weight must not reach beyond the padded input", f"kernel is {kernel}", f"padded input {padded}"]
    assert_refused(ValueError, parts, **changes)


@pytest.mark.parametrize("shape", [(2, 4, 0, 8), (2, 4, 7, 0), (4, 0, 0)])
def test_an_input_of_padding_only(shape: tuple[int, ...]) -> None:
    zeros = np.ones(shape, np.float32)
    assert_refused(
        ValueError, ["input must have height and width of at least 1", f"got shape {shape}"], input=zeros, padding=4
    )


@pytest.mark.parametrize("shape", [(6, 2, 0, 3), (6, 2, 3, 0), (6, 2, 0, 0)])
def test_an_empty_kernel(shape: tuple[int, ...]) -> None:
    for padding in (0, 2, "same"):
        parts = ["weight must have a kernel of at least 1x1", f"got shape {shape}"]
        assert_refused(ValueError, parts, weight=np.ones(shape, np.float32), padding=padding)


def test_no_output_channels() -> None:
    nothing = np.ones((0, 2, 3, 3), np.float32)
    for bias in (None, nothing[:, 0, 0, 0]):
        parts = ["weight must have at least one output channel", "got shape (0, 2, 3, 3)"]
        assert_refused(ValueError, parts, weight=nothing, bias=bias)


# ---- Numbers ----


@pytest.mark.parametrize("name", ["stride", "dilation"])
@pytest.mark.parametrize("value", [0, -1, -(2**63), (1, 0), (0, 1), (2, -1), [0]])
def test_less_than_one(name: str, value: Any) -> None:
    both = value if isinstance(value, tuple) else (value, value) if isinstance(value, int) else (value[0], value[0])
    assert_refused(ValueError, [f"{name} must be at least 1", f"got {both}"], **{name: value})


@pytest.mark.parametrize("value", [-1, -(2**63), (-1, 0), (0, -1), (3, -2)])
def test_negative_padding(value: Any) -> None:
    both = value if isinstance(value, tuple) else (value, value)
    assert_refused(ValueError, ["padding must not be negative", f"got {both}"], padding=value)


@pytest.mark.parametrize("name", ["stride", "dilation", "padding"])
@pytest.mark.parametrize(
    "value",
    [1.0, 1.5, math.nan, True, None, 1j, b"1", {1: 1}, range(2), Strange(), np.float32(1), np.bool_(True)],
    ids=repr,
)
def test_no_ints(name: str, value: object) -> None:
    valid = "must be an int or a pair of ints (height, width)"
    for wrong in (value, (value, 1), (1, value), [1, value]):
        assert_refused(TypeError, [f"{name} {valid}", f"got {value!r}"], **{name: wrong})


@pytest.mark.parametrize("value", [1.0, True, None, "2", (2,), [2], Strange(), np.float64(2)], ids=repr)
def test_groups_of_no_int(value: object) -> None:
    assert_refused(TypeError, ["groups must be an int", f"got {value!r}"], groups=value)


@pytest.mark.parametrize("name", ["stride", "dilation", "padding"])
@pytest.mark.parametrize("value", [(), [], (1, 1, 1), [1, 1, 1, 1]], ids=repr)
def test_no_pairs(name: str, value: object) -> None:
    assert_refused(ValueError, [f"{name} must be an int or a pair of ints", f"got {value!r}"], **{name: value})


@pytest.mark.parametrize("name", ["stride", "dilation", "padding", "groups"])
def test_arrays_where_ints_belong(name: str) -> None:
    assert_refused(TypeError, [f"{name} must be an int"], **{name: np.array([1, 1])})


@pytest.mark.parametrize("name", ["stride", "dilation", "padding", "groups"])
@pytest.mark.parametrize("value", TOO_LARGE)
def test_numbers_beyond_64_bits(name: str, value: int) -> None:
    for wrong in (value,) if name == "groups" else (value, (1, value)):
        assert_refused(ValueError, [f"{name} ", "64 bits", f"got {value}"], **{name: wrong})


@pytest.mark.parametrize("value", ["SAME", "", "full", "1", "same "])
def test_no_padding_of_that_name(value: str) -> None:
    assert_refused(ValueError, ["padding must be", '"same" or "valid"', f"got {value!r}"], padding=value)


def test_same_padding_with_a_stride() -> None:
    for stride in (2, (1, 2), (2, 1)):
        parts = ['padding="same" needs stride 1', f"stride {(2, 2) if stride == 2 else stride}"]
        assert_refused(ValueError, parts, padding="same", stride=stride)


def test_numbers_of_numpy_and_short_sequences_are_ints_and_pairs() -> None:
    two = detconv.conv2d(**arguments(), stride=2, padding=2, dilation=2)
    twos: list[Any] = [np.int8(2), np.uint64(2), (2, 2), [2, 2], (2,), [2], (np.int16(2), 2)]
    for same in twos:
        assert_same_bits(detconv.conv2d(**arguments(), stride=same, padding=same, dilation=same), two)


# ---- Sizes beyond all bounds ----


@pytest.mark.parametrize(
    ("name", "value", "others"),
    [
        ("padding", 2**62, {}),
        ("padding", (0, 2**63 - 1), {}),
        ("padding", 2**31, {}),
        ("padding", (0, 2**61), {"stride": (1, 2**60)}),
        ("dilation", 2**62, {}),
        ("dilation", (1, 2**63 - 1), {}),
        ("dilation", 2**62, {"padding": "same"}),
    ],
)
def test_sizes_that_overflow(name: str, value: Any, others: dict[str, Any]) -> None:
    came = value if isinstance(value, tuple) else (value, value)
    with pytest.raises(ValueError, match=rf"\b{name}\b.*64 bits.*{re.escape(str(came))}"):
        detconv.conv2d(**{**arguments(), name: value, **others})


def ones(*shape: int) -> Array:
    """Ones that share one element's memory, however many they are."""
    return np.broadcast_to(np.float32(1), shape)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "options",
    [
        {"stride": 2**62},
        {"stride": (2**63 - 1, 2)},
        {"stride": (1, 2**40)},
        {"stride": 2**27, "padding": 1},
        {"padding": 2**27, "stride": 2**26},
        {"padding": (0, 2**40), "stride": (1, 2**39)},
        {"dilation": 2**27, "padding": 2**27},
        {"dilation": 2**27, "padding": 2**27, "stride": 2**26},
        {"dilation": (2**35, 1), "padding": (2**35, 1), "stride": (2, 1)},
        {"dilation": 10**6, "padding": "same"},
    ],
    ids=str,
)
def test_small_outputs_of_huge_numbers(options: dict[str, Any], method: str) -> None:
    """Legal, and no more work than usual: memory and time go by what is computed."""
    input, weight = (
        made((2, 3, 4, 5), np.float32, 1, "small integers"),
        made((4, 3, 3, 3), np.float32, 2, "small integers"),
    )
    output = detconv.conv2d(input, weight, **options, summation=method)
    assert_same_bits(output, by_index(input, weight, **options))


def by_index(
    input: Array, weight: Array, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Array:
    """The convolution of small integers, for which every order is exact, with Python's ints for all sizes."""
    (n, _, *size), (outputs, channels, *kernel) = input.shape, weight.shape
    strides, dilations = pair(stride), pair(dilation)
    before, after = pads(padding, kernel, dilations)
    shape = [(size[a] + before[a] + after[a] - dilations[a] * (kernel[a] - 1) - 1) // strides[a] + 1 for a in (0, 1)]
    output = np.zeros((n, outputs, *shape), input.dtype)
    for tap in itertools.product(*map(range, kernel)):
        for place in itertools.product(*map(range, shape)):
            h, w = (place[a] * strides[a] + tap[a] * dilations[a] - before[a] for a in (0, 1))
            if 0 <= h < size[0] and 0 <= w < size[1]:
                pixels = input[:, :, h, w].reshape(n, groups, channels)
                weights = weight[:, :, tap[0], tap[1]].reshape(groups, -1, channels)
                output[:, :, place[0], place[1]] += np.einsum("ngc,goc->ngo", pixels, weights).reshape(n, outputs)
    return output


def pair(value: Any) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)


def pads(padding: Any, kernel: Sequence[int], dilation: tuple[int, int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if padding == "valid":
        padding = 0
    if padding == "same":
        whole = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        return tuple(p // 2 for p in whole), tuple(p - p // 2 for p in whole)
    return (pair(padding),) * 2


# ---- Nothing at all ----


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("input", "weight", "options", "output"),
    [
        ((0, 4, 7, 8), (6, 4, 3, 3), {}, (0, 6, 5, 6)),
        ((0, 4, 2, 8), (6, 4, 3, 3), {"padding": 2}, (0, 6, 4, 10)),
        ((2, 0, 7, 8), (6, 0, 3, 3), {}, (2, 0, 5, 6)),
        ((2, 0, 7, 8), (6, 0, 3, 3), {"groups": 2, "stride": 2}, (2, 0, 3, 3)),
        ((0, 7, 8), (6, 0, 3, 3), {"padding": "same"}, (0, 7, 8)),
        ((0, 0, 7, 8), (6, 0, 3, 3), {"padding": 2}, (0, 0, 9, 10)),
    ],
)
def test_no_samples_and_no_channels(
    input: tuple[int, ...],
    weight: tuple[int, ...],
    options: dict[str, Any],
    output: tuple[int, ...],
    dtype: type,
    method: str,
) -> None:
    biases: list[Array | None] = [None, np.ones(6, dtype)]
    for bias in biases:
        result = detconv.conv2d(np.ones(input, dtype), np.ones(weight, dtype), bias, **options, summation=method)
        assert result.shape == output
        assert result.dtype == dtype


def test_no_samples_and_no_channels_as_torch() -> None:
    torch = pytest.importorskip("torch")
    for input, weight in [
        ((0, 4, 7, 8), (6, 4, 3, 3)),
        ((2, 0, 7, 8), (6, 0, 3, 3)),
        ((0, 7, 8), (6, 0, 3, 3)),
        ((0, 0, 7, 8), (6, 0, 3, 3)),
    ]:
        for padding, bias in itertools.product((0, 2), (None, torch.ones(6))):
            arrays = torch.ones(input), torch.ones(weight), bias
            theirs = torch.nn.functional.conv2d(*arrays, padding=padding)
            ours = detconv.conv2d(*arrays, padding=padding)
            assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)


# ---- Anything ----

# Nothing here takes long or much memory: what is not small is so large that it cannot be computed at all.
FAR = [2**e + d for e in (28, 31, 32, 40, 53, 61, 62) for d in (-1, 0, 1)] + [2**63 - 1, 2**63, 2**64]
LONG = [2**46, 2**48 + 1, 2**50]


@st.composite
def calls(draw: st.DrawFn) -> dict[str, Any]:
    """The arguments of a call, with shapes in place of arrays: a legal call of usual size, or a changed one."""
    groups, channels, outputs, *kernel = (draw(st.integers(1, 3)) for _ in range(5))
    input = [*draw(st.sampled_from([(), (1,), (2,)])), channels * groups, *(draw(st.integers(5, 8)) for _ in range(2))]
    weight = [outputs * groups, channels, *kernel]
    call: dict[str, Any] = {"groups": groups, "summation": draw(st.sampled_from(METHODS))}
    for name, least in (("stride", 1), ("padding", 0), ("dilation", 1)):
        call[name] = draw(st.integers(least, 2))

    # Numbers that are far apart fit together only where they are of one size.
    far = draw(st.sampled_from(FAR))
    number = st.one_of(st.sampled_from([far, far - 1, far + 1, 2 * far, far // 2]), st.integers(-1, 5))
    for name in draw(st.sets(st.sampled_from(["stride", "padding", "dilation"]))):
        call[name] = draw(st.one_of(number, st.tuples(number, number)))
    match draw(st.integers(0, 11)):
        case 0:
            input[draw(st.integers(0, len(input) - 1))] = draw(st.integers(0, 4))
        case 1:
            weight[draw(st.integers(0, 3))] = draw(st.integers(0, 4))
        case 2:
            input[draw(st.integers(0, len(input) - 1))] = draw(st.sampled_from(LONG))
        case 3:
            weight[draw(st.integers(0, 3))] = draw(st.sampled_from(LONG))
        case 4:
            weight[1] = draw(st.sampled_from(LONG))
            input[-3] = groups * weight[1]
        case 5:
            call["groups"] = draw(number)
        case 6:
            call["padding"] = draw(st.sampled_from(["same", "valid"]))
    call["bias"] = draw(st.sampled_from([None, weight[:1], weight[:1], weight[:1], weight[1:2]]))
    return {"input": tuple(input), "weight": tuple(weight), **call}


def legal_output(call: dict[str, Any]) -> tuple[int, ...] | None:
    """The shape that the call's output has by the rules, or None where it breaks one; in Python's ints."""
    (samples, channels, *size), (outputs, per_group, *kernel) = (1, 1, *call["input"])[-4:], call["weight"]
    strides, dilations, groups = pair(call["stride"]), pair(call["dilation"]), call["groups"]
    plain = pair(0 if isinstance(call["padding"], str) else call["padding"])
    if max(*strides, *dilations, *plain, groups) >= 2**63:
        return None
    if min(*strides, *dilations, groups, outputs, *kernel, *size) < 1 or min(plain) < 0:
        return None
    if call["padding"] == "same" and strides != (1, 1):
        return None
    if outputs % groups or channels != per_group * groups or call["bias"] not in (None, [outputs]):
        return None
    before, after = pads(call["padding"], kernel, dilations)
    spare = [size[a] + before[a] + after[a] - dilations[a] * (kernel[a] - 1) - 1 for a in (0, 1)]
    if min(spare) < 0:
        return None
    shape = (samples, outputs if channels else 0, *(spare[a] // strides[a] + 1 for a in (0, 1)))
    return shape[4 - len(call["input"]) :]


def serve(calls: Connection) -> None:
    """In a process of its own: answers each call with its output, or with its error's type and message."""
    import resource

    detconv.set_num_threads(1)
    with open("/proc/self/statm") as sizes:
        taken = int(sizes.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + 2**28,) * 2)
    while (call := calls.recv()) is not None:
        for name in ("input", "weight", "bias"):
            if call[name] is not None:
                call[name] = filled(call[name])
        try:
            output = detconv.conv2d(**call)
            calls.send(("computed", output if output.size <= 2**16 else output.shape))
        except Exception as error:
            calls.send((type(error).__name__, str(error)))


def filled(shape: Sequence[int]) -> Array:
    return made(shape, np.float32, 1, "small integers") if math.prod(shape) <= 2**16 else ones(*shape)


class Server:
    """A process that makes calls. A call that ends it, or that it does not answer, fails the test; the next one goes to
    a new process."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.calls, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.join()
        self.calls.close()

    def peak(self) -> int:
        """The most bytes of memory that the process has had."""
        with open(f"/proc/{self.process.pid}/status") as lines:
            return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))

    def __call__(self, call: dict[str, Any]) -> tuple[str, Any]:
        self.calls.send(call)
        try:
            if self.calls.poll(PATIENCE):
                kind, answer = self.calls.recv()
                return kind, answer
            how = f"did not answer within {PATIENCE} seconds"
        except EOFError:
            self.process.join()
            how = f"ended with exit code {self.process.exitcode}"
        self.__exit__()
        self.__init__()  # type: ignore[misc]
        pytest.fail(f"the process {how} on {call}")


needs_a_limit = pytest.mark.skipif(sys.platform != "linux", reason="needs a limit to the memory of a process")


@needs_a_limit
def test_what_no_memory_holds() -> None:
    layers: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
        ((2**52, 1, 1, 1), (1, 1, 1, 1), {}),
        ((2**59, 1, 1, 1), (1, 1, 1, 1), {}),
        ((1, 1, 2**26, 2**26), (1, 1, 1, 1), {}),
        ((1, 1, 1, 1), (2**52, 1, 1, 1), {}),
        ((1, 1, 1, 1), (1, 1, 1, 1), {"padding": 2**26}),
        ((1, 2**52, 1, 1), (2**52, 1, 1, 1), {"groups": 2**52}),
        ((1, 2**52, 1, 1), (1, 2**52, 1, 1), {}),
        ((1, 1, 2**52, 1), (1, 1, 2**52, 1), {}),
        ((1, 1, 1, 2**52), (1, 1, 1, 2**52), {}),
        ((1, 1, 2**26, 2**26), (1, 1, 2**26, 2**26), {}),
    ]
    with Server() as other:
        other(arguments_of((1, 1, 4, 4), (1, 1, 3, 3), "exact"))
        before = other.peak()
        for (input, weight, options), method in itertools.product(layers, ("naive", "exact")):
            kind, answer = other({**arguments_of(input, weight, method), **options})
            assert kind in ("MemoryError", "ValueError"), (input, weight, options, method, kind, answer)
            # Refused at once, not when half of it has been taken.
            assert other.peak() - before < 2**24, (input, weight, options, method)


def arguments_of(input: tuple[int, ...], weight: tuple[int, ...], summation: str) -> dict[str, Any]:
    return {"input": input, "weight": weight, "bias": None, "summation": summation}


@needs_a_limit
def test_no_arguments_crash() -> None:
    """What breaks a rule is refused, what is small is computed, and what no memory holds is refused, too."""
    kinds: Counter[str] = Counter()

    @settings(max_examples=400, derandomize=True)  # all three kinds are among these
    @given(call=calls())
    def ask(call: dict[str, Any]) -> None:
        kind, answer = other(call)
        kinds[kind] += 1
        expected = legal_output(call)
        if expected is None:
            assert kind == "ValueError", (kind, answer)
            assert re.search(r"\b(input|weight|bias|stride|padding|dilation|groups)\b", answer), answer
            return
        if is_small(call, expected):
            assert kind == "computed", (kind, answer)
            assert_same_bits(answer, expected_output(call).reshape(expected))
        else:
            assert kind in ("computed", "ValueError", "MemoryError"), (kind, answer)

    with Server() as other:
        ask()
    assert min(kinds[kind] for kind in ("computed", "ValueError", "MemoryError")) >= 10, kinds


def is_small(call: dict[str, Any], output: tuple[int, ...]) -> bool:
    """Whether the engine has to compute it: 64 bits count the bytes of the padded input. And Python can, soon."""
    before, after = pads(call["padding"], call["weight"][2:], pair(call["dilation"]))
    padded = [size + b + a for size, b, a in zip(call["input"][-2:], before, after, strict=True)]

    def size(shape: Sequence[int]) -> int:
        return math.prod(max(1, length) for length in shape)

    quick = max(map(size, (output, call["input"], call["weight"]))) <= 2000
    return quick and 8 * size((*call["input"][:-2], *padded)) < 2**62


def expected_output(call: dict[str, Any]) -> Array:
    input = filled(call["input"])
    output = by_index(
        input.reshape((1, 1, *input.shape)[-4:]),
        filled(call["weight"]),
        *(call[name] for name in ("stride", "padding", "dilation", "groups")),
    )
    return output if call["bias"] is None else output + filled(call["bias"]).reshape(-1, 1, 1)
