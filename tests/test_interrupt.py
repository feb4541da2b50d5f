"""A call that takes long can be ended by Ctrl-C, and lets signal handlers and other Python threads run meanwhile.

What is long depends on the machine and on what else runs there. So each test makes its call long enough first, takes
the time of the whole call, and compares an interrupted one with that. Other programs may take the processor away at any
moment: a comparison has a few attempts, all of which a call that does not listen fails.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest

import detconv
from bits import PATIENCE, Array, assert_same_bits, made
from detconv.testing import instruction_set

pytestmark = [
    pytest.mark.machine,
    pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs the signals of a POSIX system"),
]

# Seconds that the whole call takes at least. The engine looks for signals ten times a second.
LONG = 1.5
ATTEMPTS = 4


def cancelling(channels: int, outputs: int, size: int) -> tuple[Array, Array]:
    """Sums of rounded parts that are zero: the certificate of `exact` holds for none, and all are computed again."""
    image, weight = (
        made((1, channels // 2, size, size), np.float32, 1),
        made((outputs, channels // 2, 3, 3), np.float32, 2),
    )
    return np.concatenate([image, image], axis=1), np.concatenate([weight, -weight], axis=1)


# Layers of so many times as much work: input, weight and summation.
LAYERS: dict[str, Callable[[int], tuple[Array, Array, str]]] = {
    "many pixels": lambda times: (np.ones((1, 16, 60 * times, 100)), np.ones((32, 16, 3, 3)), "kahan"),
    "many channels": lambda times: (np.ones((1, 256, 18, 18)), np.ones((32 * times, 256, 3, 3)), "kahan"),
    "1x1": lambda times: (np.ones((1, 1024, 20, 20)), np.ones((32 * times, 1024, 1, 1)), "kahan"),
    "every output twice": lambda times: (*cancelling(128, 16 * times, 18), "exact"),
}


def seconds(call: Callable[[], object]) -> float:
    start = time.monotonic()
    call()
    return time.monotonic() - start


def made_long(layer: str) -> tuple[Callable[[], Array], float]:
    """A call of the layer that takes long on this machine, and how many seconds it took."""
    times = 1
    while True:
        input, weight, summation = LAYERS[layer](times)
        call = partial(detconv.conv2d, input, weight, summation=summation)
        took = seconds(call)
        if took >= LONG:
            return call, took
        times = math.ceil(times * min(max(1.5 * LONG / took, 1.5), 20.0))


def ends_soon(call: Callable[[], object], took: float, exception: type[BaseException], sign: signal.Signals) -> None:
    """The call, of which a whole one took so many seconds, ends by the exception in less than half the time that it
    would have gone on after the signal."""
    waits = []
    for _ in range(ATTEMPTS):
        waits.append(seconds_after_a_signal(call, took / 10, exception, sign))
        if waits[-1] < 0.45 * took:
            return
        took = seconds(call)
    pytest.fail(f"a call of {took} s ended {waits} s after its signal")


def seconds_after_a_signal(
    call: Callable[[], object], when: float, exception: type[BaseException], sign: signal.Signals
) -> float:
    """How long a call goes on after a signal sent so many seconds after its start; infinity if it ended before."""
    sent, ended = 0.0, False

    def press() -> None:
        nonlocal sent
        sent = time.monotonic()
        os.kill(os.getpid(), sign)

    def calling() -> None:
        nonlocal ended
        call()
        ended = sent == 0
        timer.join()
        time.sleep(PATIENCE)  # for the signal

    timer = threading.Timer(when, press)
    timer.start()
    try:
        with pytest.raises(exception):
            calling()
        return math.inf if ended else time.monotonic() - sent
    finally:
        timer.join()


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
@pytest.mark.parametrize("layer", LAYERS)
def test_ctrl_c(layer: str, threads: int) -> None:
    detconv.set_num_threads(threads)
    expected = small()
    call, took = made_long(layer)
    ends_soon(call, took, KeyboardInterrupt, signal.SIGINT)
    for output, right in zip(small(), expected, strict=True):
        assert_same_bits(output, right)


def test_an_exception_of_the_callers_handler() -> None:
    class TimeIsUp(Exception):
        pass

    def up(*_: object) -> None:
        raise TimeIsUp

    call, took = made_long("many channels")
    before = signal.signal(signal.SIGALRM, up)
    try:
        ends_soon(call, took, TimeIsUp, signal.SIGALRM)
    finally:
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_handler_that_returns_lets_the_call_go_on(threads: int) -> None:
    detconv.set_num_threads(threads)
    call, took = made_long("many pixels")
    expected = call()
    handled: list[float] = []
    before = signal.signal(signal.SIGALRM, lambda *_: handled.append(time.monotonic()))
    try:
        for _ in range(ATTEMPTS):
            handled.clear()
            interval = took / 20
            signal.setitimer(signal.ITIMER_REAL, interval, interval)
            start = time.monotonic()
            output = call()
            end = time.monotonic()
            signal.setitimer(signal.ITIMER_REAL, 0)
            assert_same_bits(output, expected)
            # Python runs the handler of a signal that came during C code right after it, too: that one does not count.
            if sum(start < when < end - interval for when in handled) >= 2:
                return
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    pytest.fail(f"of the signals sent every {interval} s, these were handled: {handled}; the call ended at {end}")


def test_other_python_threads_go_on() -> None:
    detconv.set_num_threads(1)
    call, took = made_long("many pixels")
    for _ in range(ATTEMPTS):
        with ThreadPoolExecutor(1) as executor:
            running = executor.submit(call)
            turns = 0
            while not running.done():
                time.sleep(took / 1000)
                turns += 1
        if turns > 20:  # of a thousand; a call that does not let them go on leaves the first
            return
    pytest.fail(f"the other thread had {turns} turns")


@pytest.mark.skipif(sys.platform != "linux", reason="needs the priorities of Linux's threads")
def test_ctrl_c_while_only_another_thread_still_computes() -> None:
    """The calling thread has done its share and waits; the other one, seldom run until then, has most of its own before
    it."""
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(ONE_THREAD_STARVES)],
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "DETCONV_ISA": "baseline"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (run.returncode, run.stderr) == (0, "")
    figures = [tuple(map(float, line.split())) for line in run.stdout.splitlines()]
    assert any(waited < 0.2 * took for took, waited in figures), figures


# Each line printed: what the whole call took, and how long an interrupted one went on after its signal.
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
    call(5)
    processor = {min(os.sched_getaffinity(0))}
    os.sched_setaffinity(0, processor)
    for task in set(os.listdir("/proc/self/task")) - alone:
        os.sched_setaffinity(int(task), processor)
        os.setpriority(os.PRIO_PROCESS, int(task), 10)

    # On one processor a call takes twice what either thread has to do, and the calling thread is done after half of it.
    size = 8
    while (took := call(size)) < 3:
        size = 2 + int((size - 1) * min(max(4 / took, 1.5), 20) ** 0.5)

    def press():
        global sent
        sent = time.monotonic()
        os.kill(os.getpid(), signal.SIGINT)

    for attempt in range(4):
        timer = threading.Timer(0.65 * took, press)
        timer.start()
        try:
            call(size)
            timer.join()
            time.sleep(1000)
        except KeyboardInterrupt:
            waited = time.monotonic() - sent
        print(took, waited)
        if waited < 0.2 * took:
            break
        took = call(size)
"""
