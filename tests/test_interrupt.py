"""A call that takes long can be ended by Ctrl-C, and lets signal handlers and other Python threads run meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import detconv
from bits import Array, assert_same_bits, made
from detconv.testing import instruction_set

pytestmark = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs the signals of a POSIX system")

# Seconds from the signal to the exception: the engine asks ten times a second, and the machine may be busy.
SOON = 1.0


def cancelling(channels: int, outputs: int, size: int) -> tuple[Array, Array]:
    """Sums of rounded parts that are zero: the certificate of `exact` holds for none, and all are computed again."""
    image, weight = (
        made((1, channels // 2, size, size), np.float32, 1),
        made((outputs, channels // 2, 3, 3), np.float32, 2),
    )
    return np.concatenate([image, image], axis=1), np.concatenate([weight, -weight], axis=1)


# What takes more than ten seconds on the slowest instruction set: input, weight and summation.
LONG: dict[str, Callable[[], tuple[Array, Array, str]]] = {
    "many pixels": lambda: (np.ones((1, 64, 400, 400)), np.ones((64, 64, 3, 3)), "kahan"),
    "many channels": lambda: (np.ones((1, 512, 50, 50)), np.ones((512, 512, 3, 3)), "kahan"),
    "1x1": lambda: (np.ones((1, 2048, 40, 40)), np.ones((2048, 2048, 1, 1)), "kahan"),
    "every output twice": lambda: (*cancelling(512, 512, 50), "exact"),
}


def small() -> list[Array]:
    """What the engine gives after an interruption must be what it gave before."""
    image, weight = made((2, 12, 17, 19), np.float32, 1), made((10, 12, 3, 3), np.float32, 2)
    return [detconv.conv2d(image, weight, padding=1, summation=method) for method in ("kahan", "exact")]


@pytest.fixture(autouse=True)
def _slowest_instruction_set() -> Iterator[None]:
    with instruction_set("baseline"):
        yield


@pytest.fixture(autouse=True)
def _ctrl_c_is_heard() -> Iterator[None]:
    """A process that a shell starts in the background ignores Ctrl-C, and so would its Python."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("layer", LONG)
def test_ctrl_c(layer: str, threads: int) -> None:
    detconv.set_num_threads(threads)
    expected = small()
    input, weight, summation = LONG[layer]()
    sent = 0.0

    def press() -> None:
        nonlocal sent
        sent = time.monotonic()
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(0.25, press)
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            detconv.conv2d(input, weight, summation=summation)
        waited = time.monotonic() - sent
    finally:
        timer.cancel()
        timer.join()
    assert waited < SOON
    for output, right in zip(small(), expected, strict=True):
        assert_same_bits(output, right)


def test_an_exception_of_the_callers_handler() -> None:
    class TimeIsUp(Exception):
        pass

    def up(*_: object) -> None:
        raise TimeIsUp

    input, weight, summation = LONG["many channels"]()
    before = signal.signal(signal.SIGALRM, up)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        start = time.monotonic()
        with pytest.raises(TimeIsUp):
            detconv.conv2d(input, weight, summation=summation)
        assert time.monotonic() - start < 0.2 + SOON
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def a_second_of_work() -> tuple[Array, Array]:
    return made((1, 64, 100, 100), np.float64, 1), made((64, 64, 3, 3), np.float64, 2)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_handler_that_returns_lets_the_call_go_on(threads: int) -> None:
    detconv.set_num_threads(threads)
    input, weight = a_second_of_work()
    with instruction_set(None):
        expected = detconv.conv2d(input, weight, summation="kahan")
    times: list[float] = []
    before = signal.signal(signal.SIGALRM, lambda *_: times.append(time.monotonic()))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
        start = time.monotonic()
        output = detconv.conv2d(input, weight, summation="kahan")
        end = time.monotonic()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    # Python runs the handler of a signal that came during C code right after it, too: that one does not count.
    assert sum(start < when < end - 0.05 for when in times) >= 2
    assert_same_bits(output, expected)


def test_other_python_threads_go_on() -> None:
    detconv.set_num_threads(1)
    input, weight = a_second_of_work()
    with ThreadPoolExecutor(1) as executor:
        call = executor.submit(detconv.conv2d, input, weight, summation="kahan")
        turns = 0
        while not call.done():
            time.sleep(0.001)
            turns += 1
    assert turns > 50


@pytest.mark.skipif(sys.platform != "linux", reason="needs the priorities of Linux's threads")
def test_ctrl_c_while_only_another_thread_still_computes() -> None:
    """The calling thread has done its share and waits; the other one, hardly ever run until then, has most of its own
    before it."""
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(ONE_THREAD_STARVES)],
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "DETCONV_ISA": "baseline"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert float(run.stdout) < SOON


ONE_THREAD_STARVES = """
    import os, signal, threading, time
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background processes ignore it
    import numpy, detconv

    def call(size):  # its weights are two panels that two threads cannot cut further; the channels share their memory
        image = numpy.broadcast_to(numpy.ones((1, 1, size, size)), (1, 16384, size, size))
        start = time.monotonic()
        detconv.conv2d(image, weight, summation="kahan")
        return time.monotonic() - start

    detconv.set_num_threads(2)
    weight = numpy.ones((4, 16384, 3, 3))
    alone = set(os.listdir("/proc/self/task"))
    call(10)
    processor = {min(os.sched_getaffinity(0))}
    os.sched_setaffinity(0, processor)
    for task in set(os.listdir("/proc/self/task")) - alone:
        os.sched_setaffinity(int(task), processor)
        os.setpriority(os.PRIO_PROCESS, int(task), 19)

    # On one processor a call takes twice what either thread has to do: three seconds.
    share = call(30) / 2
    size = 2 + int(28 * (3 / share) ** 0.5)

    def press():
        global sent
        sent = time.monotonic()
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(3.4, press)
    timer.start()
    try:
        call(size)
        timer.join()
        time.sleep(1)
    except KeyboardInterrupt:
        print(time.monotonic() - sent)
"""
