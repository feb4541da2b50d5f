"""Calls hear signals whatever they are busy with: parsing, lowering, planning, packing, copying, one long sum, sums
computed again, or many small contractions.

A signal that comes every few milliseconds has a handler that only notes the time. Python runs it while the engine looks
out for signals, so the longest pause between two notes is what a Ctrl-C may have to wait. It is compared with the time
of the whole call, which is made long enough first; other programs may take the processor away, so there are some
attempts.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

import detconv
from bits import Array, made
from detconv.testing import instruction_set

pytestmark = [
    pytest.mark.machine,
    pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs the signals of a POSIX system"),
]

# Seconds that a call takes at least; the engine looks for signals ten times a second.
LONG = 1.2
ATTEMPTS = 4
LARGEST_SHARE = 0.35  # of a call's time: the longest pause between two looks


def one_sum(terms: int, dtype: type = np.float32) -> tuple[Array, Array]:
    """Input and weight of one output, whose terms are numbers like any others."""
    return made((1, terms, 1, 1), dtype, 1), made((1, terms, 1, 1), dtype, 2)


def convolution(terms: int, summation: str, dtype: type = np.float32, **options: Any) -> Callable[[], object]:
    arrays = one_sum(terms, dtype)
    return lambda: detconv.conv2d(*arrays, **options, summation=summation)


def cancelling(terms: int) -> Callable[[], object]:
    """A sum of rounded products that is 0, so that `exact` has to compute it again."""
    (image, weight), half = one_sum(terms), terms // 2
    image[:, half : 2 * half], weight[:, half : 2 * half] = image[:, :half], -weight[:, :half]
    return lambda: detconv.conv2d(image, weight, summation="exact")


def wide_kernel(terms: int) -> Callable[[], object]:
    """One plane, in whose one row the window moves with a large step: as many runs of the copy as the step is long."""
    step = max(terms // 8, 1)
    image, weight = made((1, 1, 1, terms + 2 * step), np.float32, 1), made((1, 1, 1, terms), np.float32, 2)
    return lambda: detconv.conv2d(image, weight, stride=(1, step), summation="naive")


def phases(pixels: int) -> Callable[[], object]:
    """Each pixel of the output is a contraction of its own, of one term for each of four inputs."""
    stride = int(pixels**0.5) + 1
    image, weight = made((1, 1, 2, 2), np.float32, 1), made((1, 1, stride, stride), np.float32, 2)
    return lambda: detconv.conv_transpose2d(image, weight, stride=stride)


def pixels_of_a_weight(pixels: int) -> Callable[[], object]:
    image, gradient = made((1, 1, 1, pixels), np.float64, 1), made((1, 1, 1, pixels), np.float64, 2)
    return lambda: detconv.conv2d_weight(image, (1, 1, 1, 1), gradient, summation="kahan")


def pixels_of_a_bias(pixels: int) -> Callable[[], object]:
    gradient = made((2, 1, 1, pixels), np.float64, 1)
    return lambda: detconv.conv2d_bias(gradient, summation="kahan samples=sequence")


# Calls of so many terms or pixels.
CALLS: dict[str, Callable[[int], Callable[[], object]]] = {
    "one naive sum": lambda n: convolution(n, "naive"),
    "one sum of blocks": lambda n: convolution(n, "pairwise"),
    "one sum of many small blocks": lambda n: convolution(n, "pairwise block=1"),
    "one Kahan sum": lambda n: convolution(n, "kahan", np.float64),
    "one sum in double": lambda n: convolution(n, "fp64 order=kh,kw,c"),
    "one exact sum of float64": lambda n: convolution(n, "exact", np.float64),
    "an exact sum computed again": cancelling,
    "a wide kernel": wide_kernel,
    "an explicit order of repeats": lambda n: convolution(n, f'naive order="{n}x(+1){{[f0]}}"'),
    "a long text": lambda n: lambda: detconv.Summation("naive", " ".join(f"f{k}" for k in range(n))),
    "many phases": phases,
    "a weight's gradient": pixels_of_a_weight,
    "a bias's gradient": pixels_of_a_bias,
}


@pytest.fixture(autouse=True)
def _slowest_instruction_set() -> Iterator[None]:
    with instruction_set("baseline"):
        yield


def seconds(call: Callable[[], object]) -> float:
    start = time.monotonic()
    call()
    return time.monotonic() - start


def longest_pause(call: Callable[[], object]) -> tuple[float, float]:
    """Seconds between two looks at the signals, at most, and seconds that the call took."""
    times = [time.monotonic()]
    before = signal.signal(signal.SIGALRM, lambda *_: times.append(time.monotonic()))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
        call()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    times.append(time.monotonic())
    return max(after - earlier for earlier, after in pairwise(times)), times[-1] - times[0]


def made_long(of: Callable[[int], Callable[[], object]]) -> Callable[[], object]:
    size = 1 << 14
    while seconds(call := of(size)) < LONG:
        size *= 2
    return call


@pytest.mark.parametrize("name", CALLS)
def test_a_call_looks_for_signals_all_the_time(name: str) -> None:
    detconv.set_num_threads(1)
    call = made_long(CALLS[name])
    found = []
    for _ in range(ATTEMPTS):
        pause, took = longest_pause(call)
        if pause < LARGEST_SHARE * took:
            return
        found.append(f"{pause:.2f} of {took:.2f} s")
    pytest.fail(f"longest pauses between two looks at the signals: {', '.join(found)}")


@pytest.mark.parametrize("name", ["one Kahan sum", "an explicit order of repeats", "many phases", "a long text"])
def test_an_exception_of_a_handler_ends_the_call(name: str) -> None:
    """And the next call is right."""

    class TimeIsUp(Exception):
        pass

    def up(*_: object) -> None:
        raise TimeIsUp

    call = made_long(CALLS[name])
    before = signal.signal(signal.SIGALRM, up)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(TimeIsUp):
            call()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert detconv.conv2d(np.ones((1, 3, 4, 4)), np.ones((1, 3, 2, 2))).tolist() == [[[[12.0] * 3] * 3]]


def test_phases_without_terms_cost_no_contraction_each() -> None:
    """As many of them as the output has pixels; compared with a convolution that computes as many outputs."""
    stride = 700
    image, weight = made((1, 1, 2, 2), np.float32, 1), made((1, 1, 3, 3), np.float32, 2)
    large = made((1, 1, stride + 3, stride + 3), np.float32, 3)
    calls = {
        "phases": lambda: detconv.conv_transpose2d(image, weight, stride=stride),
        "pixels": lambda: detconv.conv2d(large, weight, padding=1),
    }
    assert calls["phases"]().shape == calls["pixels"]().shape
    least = {name: min(seconds(call) for _ in range(7)) for name, call in calls.items()}
    assert least["phases"] < 20 * least["pixels"], least
