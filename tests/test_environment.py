"""What surrounds a call, and changes no bit of it: the floating-point environment, other threads, the settings.

Python has no names for the floating-point environment, so the C library is asked through ctypes.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import platform
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pytest

import detconv
from bits import DTYPES, METHODS, PATIENCE, Array, Layer, assert_same_bits, made
from detconv import _core
from detconv.testing import instruction_set

pytestmark = pytest.mark.machine

INSTRUCTION_SETS: list[str] = detconv.build_info()["instruction_sets_usable"]  # type: ignore[assignment]
Result = TypeVar("Result")


def ordinary(dtype: type) -> Layer:
    """A layer with work for several threads."""
    arrays = made((2, 12, 17, 19), dtype, 1), made((10, 12, 3, 3), dtype, 2), made((10,), dtype, 3)
    return Layer(*arrays, {"padding": 1})


def subnormal(dtype: type) -> Layer:
    """Subnormal numbers everywhere: in every other channel of input and of weight, the bias, products, results."""
    layer, lowest = ordinary(dtype), int(np.finfo(dtype).minexp)
    exponents = np.where(np.arange(12) % 2, lowest - 4, lowest // 2).reshape(12, 1, 1)
    assert layer.bias is not None
    return Layer(
        np.ldexp(layer.input, exponents),
        np.ldexp(layer.weight, lowest - 4 - exponents),
        np.ldexp(layer.bias, lowest - 3),
        layer.options,
    )


def conv2d(layer: Layer, summation: str) -> Array:
    return detconv.conv2d(*layer.arrays, **layer.options, summation=summation)


def every_variant(layer: Layer, summation: str) -> list[Array]:
    """On every instruction set, on one thread and on several."""
    outputs = []
    for isa, threads in itertools.product(INSTRUCTION_SETS, (1, 3)):
        detconv.set_num_threads(threads)
        with instruction_set(isa):
            outputs.append(conv2d(layer, summation))
    return outputs


def in_a_new_thread(work: Callable[[], Result]) -> Result:
    """What `work` does to the environment ends with the thread; threads that the engine starts for it inherit it."""
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(work).result()


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command, merged = [sys.executable, "-c", code], {**os.environ, **environment}
    return subprocess.run(command, env=merged, capture_output=True, text=True, timeout=PATIENCE)


# ---- The floating-point environment ----


@dataclass(frozen=True)
class Machine:
    """Constants of <fenv.h>, and where fenv_t (as 32-bit words) has the bits that flush subnormal numbers to zero."""

    rounding: dict[str, int]
    flags: dict[str, int]
    words: int
    flush_word: int
    flush_bits: int


MACHINES = {
    # 28 bytes of x87 state, then MXCSR: bit 6 takes subnormal operands as zero, bit 15 makes subnormal results zero.
    "x86_64": Machine(
        rounding={"upward": 0x800, "downward": 0x400, "toward zero": 0xC00},
        flags={"invalid": 1, "divide": 4, "overflow": 8, "underflow": 16, "inexact": 32},
        words=8,
        flush_word=7,
        flush_bits=0x8040,
    ),
    # FPCR, whose bit 24 does both, and FPSR.
    "aarch64": Machine(
        rounding={"upward": 0x400000, "downward": 0x800000, "toward zero": 0xC00000},
        flags={"invalid": 1, "divide": 2, "overflow": 4, "underflow": 8, "inexact": 16},
        words=2,
        flush_word=0,
        flush_bits=1 << 24,
    ),
}

needs_fenv = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in MACHINES,
    reason="the layout of fenv_t is known for the GNU C library on x86-64 and aarch64",
)


@pytest.fixture
def machine() -> Machine:
    return MACHINES[platform.machine()]


@pytest.fixture
def libm() -> ctypes.CDLL:
    return ctypes.CDLL("libm.so.6")


def flush_subnormals(libm: ctypes.CDLL, machine: Machine) -> None:
    """For this thread."""
    environment = (ctypes.c_uint32 * machine.words)()
    assert libm.fegetenv(environment) == 0
    environment[machine.flush_word] |= machine.flush_bits
    assert libm.fesetenv(environment) == 0


def subnormals_are_flushed() -> bool:
    smallest, one = 5e-324, 1.0
    return smallest * one == 0


@needs_fenv
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("summation", METHODS)
def test_a_caller_that_flushes_subnormals(libm: ctypes.CDLL, machine: Machine, summation: str, dtype: type) -> None:
    layer = subnormal(dtype)
    expected = conv2d(layer, summation)
    assert np.mean((expected != 0) & (np.abs(expected) < np.finfo(dtype).tiny)) > 0.5

    def flushing() -> tuple[bool, list[Array], bool]:
        flush_subnormals(libm, machine)
        return subnormals_are_flushed(), every_variant(layer, summation), subnormals_are_flushed()

    before, outputs, after = in_a_new_thread(flushing)
    assert (before, after) == (True, True)
    assert not subnormals_are_flushed()
    assert len(outputs) > 1
    for output in outputs:
        assert_same_bits(output, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("summation", METHODS)
def test_flush_denormal_of_torch(summation: str, dtype: type) -> None:
    torch = pytest.importorskip("torch")
    layer = subnormal(dtype)
    expected = conv2d(layer, summation)
    tensors = [torch.from_numpy(array) for array in layer.arrays]

    def flushes() -> bool:
        return bool((torch.tensor([2.0**-130], dtype=torch.float32) * 0.5 == 0).item())

    if not torch.set_flush_denormal(True):
        pytest.skip("torch cannot flush subnormal numbers here")
    try:
        before = flushes()
        output = detconv.conv2d(*tensors, **layer.options, summation=summation)
        after = flushes()
    finally:
        torch.set_flush_denormal(False)
    assert (before, after) == (True, True)
    assert_same_bits(output.numpy(), expected)


@needs_fenv
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("summation", METHODS)
@pytest.mark.parametrize("direction", ["upward", "downward", "toward zero"])
def test_a_caller_that_rounds_otherwise(
    libm: ctypes.CDLL, machine: Machine, direction: str, summation: str, dtype: type
) -> None:
    layer, mode = ordinary(dtype), machine.rounding[direction]
    expected = conv2d(layer, summation)

    def tenths(one: float, ten: float) -> tuple[float, float]:
        """Both are rounded away from zero to nearest, so that every other mode changes one of them."""
        return one / ten, -one / ten

    def rounding() -> tuple[tuple[float, float], list[Array], tuple[float, float]]:
        assert libm.fesetround(mode) == 0
        return tenths(1.0, 10.0), every_variant(layer, summation), tenths(1.0, 10.0)

    before, outputs, after = in_a_new_thread(rounding)
    assert before == after != (0.1, -0.1) == tenths(1.0, 10.0)
    assert len(outputs) > 1
    for output in outputs:
        assert_same_bits(output, expected)


@needs_fenv
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("summation", METHODS)
def test_the_callers_exception_flags(libm: ctypes.CDLL, machine: Machine, summation: str, dtype: type) -> None:
    info = np.finfo(dtype)
    # inf - inf, an overflow, an underflow and inexact sums.
    values: Array = np.array([[[np.inf, -np.inf, info.max, info.tiny, 1 / 3, 1]]], dtype)
    weight: Array = np.array([[[[1, 1]]], [[[info.max, info.tiny]]]], dtype)
    compiled = detconv.Summation.parse(summation)._compiled
    everything = sum(machine.flags.values())

    def flags_after(raised: int) -> int:
        libm.feclearexcept(everything)
        libm.feraiseexcept(raised)
        # Not through the package: Python's own arithmetic raises flags too.
        _core.conv2d(values, weight, None, 1, 0, 1, 1, compiled)
        return int(libm.fetestexcept(everything))

    flags_after(0)  # the first call of a process loads NumPy's C interface, which is Python's own arithmetic
    for raised in (0, machine.flags["divide"], machine.flags["invalid"], everything):
        assert flags_after(raised) == raised


@needs_fenv
def test_a_caller_that_traps() -> None:
    """Where the caller has turned invalid operations and overflows into signals, ours raise none."""
    run = python(
        f"""if True:
        import ctypes, numpy, detconv
        invalid, divide, overflow = {[MACHINES[platform.machine()].flags[f] for f in ("invalid", "divide", "overflow")]}
        libm = ctypes.CDLL("libm.so.6")
        values = numpy.array([[[numpy.inf, -numpy.inf, 3e38, 3e38]]], numpy.float32)
        weight = numpy.array([[[[1, 1]]], [[[3e38, 3e38]]]], numpy.float32)
        if libm.feenableexcept(invalid | divide | overflow) < 0:
            print("no traps")
        else:
            for method in {METHODS}:
                detconv.conv2d(values, weight, summation=method)
            print(libm.fegetexcept() == invalid | divide | overflow)
        """
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout in ("True\n", "no traps\n")


# ---- Many callers at once ----


def problems() -> list[tuple[Layer, str, Array]]:
    """Layers of several shapes, each with a summation and what comes out on one thread."""
    detconv.set_num_threads(1)
    found = []
    for i, (method, dtype) in enumerate(itertools.product(METHODS, DTYPES)):
        channels, outputs, size = 4 + i, 9 + 3 * i, 19 + 2 * i  # work for up to 30 threads
        layer = Layer(
            made((2, channels, size, size + 1), dtype, i),
            made((outputs, channels, 3, 3), dtype, i + 1),
            made((outputs,), dtype, i + 2),
            {"padding": i % 2, "stride": 1 + i % 3 // 2},
        )
        found.append((layer, method, conv2d(layer, method)))
    return found


@contextmanager
def meanwhile(change: Callable[[Any], object], values: Sequence[Any]) -> Iterator[None]:
    """A thread calls `change` with one value after the other, again and again."""
    done = threading.Event()

    def changing() -> None:
        for value in itertools.cycle(values):
            change(value)
            if done.wait(0.0005):
                return

    with ThreadPoolExecutor(1) as executor:
        future = executor.submit(changing)
        try:
            yield
        finally:
            done.set()
            future.result()


def called_by_many_threads(expected: list[tuple[Layer, str, Array]], threads: int = 8, rounds: int = 4) -> int:
    """The number of calls that were right; the first wrong one raises."""
    together = threading.Barrier(threads)

    def caller(number: int) -> int:
        together.wait(60)
        order = random.Random(number).choices(expected, k=rounds * len(expected))
        for layer, summation, output in order:
            assert_same_bits(conv2d(layer, summation), output, (number, layer, summation))
        return len(order)

    with ThreadPoolExecutor(threads) as executor:
        return sum(executor.map(caller, range(threads)))


def test_many_python_threads() -> None:
    expected = problems()
    for threads in (1, 2):
        detconv.set_num_threads(threads)
        assert called_by_many_threads(expected) == 8 * 4 * len(expected)


def test_many_python_threads_while_the_number_of_threads_changes() -> None:
    expected = problems()
    with meanwhile(detconv.set_num_threads, [1, 2, 3, 7]):
        assert called_by_many_threads(expected) == 8 * 4 * len(expected)


def test_many_python_threads_while_the_instruction_set_changes() -> None:
    expected = problems()
    before = _core.force_instruction_set(None)
    try:
        with meanwhile(_core.force_instruction_set, [*INSTRUCTION_SETS, None]):
            assert called_by_many_threads(expected) == 8 * 4 * len(expected)
    finally:
        _core.force_instruction_set(before)


def test_one_summation_and_one_layer_shared_by_many_threads() -> None:
    layer, summation = ordinary(np.float32), detconv.Summation("exact")
    expected = conv2d(layer, "exact")

    def caller(_: int) -> Array:
        return detconv.conv2d(*layer.arrays, **layer.options, summation=summation)

    with ThreadPoolExecutor(8) as executor:
        outputs = list(executor.map(caller, range(64)))
    for output in outputs:
        assert_same_bits(output, expected)


# ---- Settings ----


@pytest.mark.parametrize("name", INSTRUCTION_SETS)
def test_an_instruction_set_forced_from_outside(name: str) -> None:
    run = python("import detconv; print(detconv.build_info()['instruction_set'])", DETCONV_ISA=name)
    assert (run.stdout, run.stderr) == (f"{name}\n", "")


def test_an_unknown_instruction_set_from_outside() -> None:
    """Importing works, so that a program can say what is wrong; every use says it."""
    run = python(
        """if True:
        import numpy, detconv
        one = numpy.ones((1, 1, 1, 1))
        for use in (lambda: detconv.conv2d(one, one), detconv.build_info) * 2:
            try:
                use()
            except ValueError as error:
                print(error)
        with detconv.testing.instruction_set("baseline"):
            print(detconv.conv2d(one, one))
        """,
        DETCONV_ISA="sse9",
    )
    valid = ", ".join(f'"{name}"' for name in INSTRUCTION_SETS)
    message = f'DETCONV_ISA must be one of {valid} on this machine; got "sse9"\n'
    assert (run.stdout, run.stderr) == (4 * message + "[[[[1.]]]]\n", "")


def test_instruction_sets_nest() -> None:
    def current() -> object:
        return detconv.build_info()["instruction_set"]

    unforced, first, last = current(), INSTRUCTION_SETS[0], INSTRUCTION_SETS[-1]
    with instruction_set(first):
        assert current() == first
        with instruction_set(last):
            assert current() == last
            with instruction_set(None):
                assert current() == unforced
            assert current() == last
        assert current() == first
        with pytest.raises(ZeroDivisionError), instruction_set(last):
            raise ZeroDivisionError
        assert current() == first
    assert current() == unforced


def test_an_unknown_instruction_set() -> None:
    before = detconv.build_info()["instruction_set"]
    forcing = instruction_set("AVX")
    with pytest.raises(ValueError, match=r'^instruction set must be one of .*"baseline".* on this machine; got "AVX"$'):
        forcing.__enter__()
    with pytest.raises(ValueError, match=r"^instruction set must not be empty"):
        instruction_set("").__enter__()
    assert detconv.build_info()["instruction_set"] == before


@pytest.mark.parametrize("threads", [1, 3])
def test_the_number_of_threads_from_outside(threads: int) -> None:
    if not detconv.build_info()["openmp"]:
        pytest.skip("built without OpenMP")
    run = python("import detconv; print(detconv.get_num_threads())", OMP_NUM_THREADS=str(threads))
    assert (run.stdout, run.stderr) == (f"{threads}\n", "")


def test_the_number_of_threads() -> None:
    for threads in (1, 5, 4096, 2):
        detconv.set_num_threads(threads)
        assert detconv.get_num_threads() == threads
        assert detconv.build_info()["num_threads"] == threads
    for none_such in (0, -1, 4097, 2**31, -(2**31) - 1, 2**64, 10**30):
        reason = r"(must be between 1 and 4096 threads|does not fit in 64 bits)"
        with pytest.raises(ValueError, match=rf"^n {reason}; got {none_such}$"):
            detconv.set_num_threads(none_such)
    for no_int in (1.0, True, "2", None, [2], np.float64(2)):
        with pytest.raises(TypeError, match=r"^n must be an int; got "):
            detconv.set_num_threads(no_int)  # type: ignore[arg-type]
    assert detconv.get_num_threads() == 2
