"""Processes made from one that has computed on several threads: forked, spawned, workers of a DataLoader."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import detconv
from bits import DTYPES, METHODS, PATIENCE, Array, Layer, assert_same_bits, made, sha256

pytestmark = pytest.mark.machine

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")


def layer(dtype: type) -> Layer:
    """Work for several threads."""
    arrays = made((2, 12, 17, 19), dtype, 1), made((10, 12, 3, 3), dtype, 2), made((10,), dtype, 3)
    return Layer(*arrays, {"padding": 1})


def hashes() -> list[str]:
    """Of every method's output, for both element types."""
    return [
        sha256(detconv.conv2d(*layer(dtype).arrays, **layer(dtype).options, summation=method))
        for method in METHODS
        for dtype in DTYPES
    ]


def computed_on_threads(threads: int = 3) -> list[str]:
    detconv.set_num_threads(threads)
    expected = hashes()
    assert len(set(expected)) > 2
    return expected


@contextmanager
def fork_while_threads_live() -> Iterator[None]:
    """Python 3.12 and later warn of just what is tested here: a fork of a process that has threads."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", r"This process \(pid=\d+\) is multi-threaded, use of fork\(\) may lead to", DeprecationWarning
        )
        yield


def in_a_forked_child(work: Callable[[], object]) -> Any:
    """What work returns there, by pickle. A child that fails or hangs fails the test."""
    reading, writing = os.pipe()
    with fork_while_threads_live():
        child = os.fork()
    if child == 0:  # nothing of pytest's may run here: whatever happens, the child ends by _exit
        try:
            os.close(reading)
            answer = pickle.dumps(work())
            with os.fdopen(writing, "wb") as pipe:
                pipe.write(answer)
            os._exit(0)
        except BaseException as error:
            os.write(2, f"in the child: {error!r}\n".encode())
        finally:
            os._exit(1)
    os.close(writing)
    until = time.monotonic() + PATIENCE
    with os.fdopen(reading, "rb") as pipe:
        os.set_blocking(reading, False)
        answer = b""
        while True:
            ended, status = os.waitpid(child, os.WNOHANG)
            answer += pipe.read() or b""
            if ended:
                break
            if time.monotonic() > until:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                pytest.fail(f"the child did not end within {PATIENCE} seconds")
            time.sleep(0.002)
    assert os.waitstatus_to_exitcode(status) == 0
    return pickle.loads(answer)


# ---- fork ----


@needs_fork
def test_a_forked_child_computes_the_same_on_one_thread() -> None:
    expected = computed_on_threads()
    threads, found = in_a_forked_child(lambda: (detconv.get_num_threads(), hashes()))
    assert threads == 1
    assert found == expected
    # The parent still has its threads.
    assert detconv.get_num_threads() == 3
    assert hashes() == expected


@needs_fork
def test_a_forked_child_stays_on_one_thread_whatever_it_sets() -> None:
    expected = computed_on_threads()

    def child() -> tuple[list[int], list[str]]:
        threads = []
        for wanted in (1, 2, 7):
            detconv.set_num_threads(wanted)
            threads.append(detconv.get_num_threads())
        return threads, hashes()

    threads, found = in_a_forked_child(child)
    assert threads == [1, 1, 1]
    assert found == expected


@needs_fork
def test_a_grandchild() -> None:
    expected = computed_on_threads()
    found = in_a_forked_child(lambda: in_a_forked_child(hashes))
    assert found == expected


@needs_fork
def test_a_child_forked_before_the_first_call_of_its_own() -> None:
    """An interpreter that has computed nothing yet forks, and then both compute."""
    expected = computed_on_threads()
    run = in_a_new_interpreter(
        """
        from test_processes import hashes, in_a_forked_child
        print(in_a_forked_child(hashes) == hashes())
        print(*hashes())
        """
    )
    assert run.split() == ["True", *expected]


@needs_fork
def test_a_child_forked_during_a_call_on_another_thread() -> None:
    expected = computed_on_threads()
    stop = threading.Event()

    def calling() -> list[list[str]]:
        found = [hashes()]
        while not stop.is_set():
            found.append(hashes())
        return found

    with ThreadPoolExecutor(1) as executor:
        calls = executor.submit(calling)
        try:
            children = [in_a_forked_child(hashes) for _ in range(5)]
        finally:
            stop.set()
    assert children == [expected] * 5
    assert all(found == expected for found in calls.result())


def in_a_new_interpreter(code: str) -> str:
    """What the code prints; it can import the test files."""
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (run.returncode, run.stderr) == (0, "")
    return run.stdout


# ---- Summations sent elsewhere ----


def summed(summation: detconv.Summation) -> tuple[str, Array]:
    arrays = made((2, 3, 9, 8), np.float32, 1), made((4, 3, 3, 3), np.float32, 2), made((4,), np.float32, 3)
    return str(summation), detconv.conv2d(*arrays, summation=summation)


SUMMATIONS = (
    detconv.Summation("exact"),
    detconv.Summation("pairwise", order="kh,kw,c", block=5, bias="first"),
    detconv.Summation("naive", order="18x(+1){f0} [9x(+1){m18}] bias"),
)


def test_summations_sent_to_a_spawned_process() -> None:
    computed_on_threads()
    expected = [summed(summation) for summation in SUMMATIONS]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.map_async(summed, SUMMATIONS).get(PATIENCE)
    assert_all_same(found, expected)


@needs_fork
def test_summations_sent_to_a_forked_child() -> None:
    computed_on_threads()
    expected = [summed(summation) for summation in SUMMATIONS]
    pickled = pickle.dumps(SUMMATIONS)

    def child() -> tuple[bool, list[tuple[str, Array]]]:
        received = pickle.loads(pickled)
        return received == SUMMATIONS, [summed(summation) for summation in received]

    equal, found = in_a_forked_child(child)
    assert equal
    assert_all_same(found, expected)


def assert_all_same(found: list[tuple[str, Array]], expected: list[tuple[str, Array]]) -> None:
    for (text, output), (right_text, right) in zip(found, expected, strict=True):
        assert text == right_text
        assert_same_bits(output, right, text)


# ---- DataLoader ----


class Convolved:
    """A map-style dataset whose items are convolved by the worker that fetches them."""

    def __init__(self, torch: Any, dtype: type) -> None:
        self.torch, self.layer = torch, layer(dtype)

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Any:
        weight = self.torch.from_numpy(self.layer.weight)
        image = self.torch.from_numpy(made((12, 17, 19), self.layer.input.dtype.type, index))
        return detconv.conv2d(image, weight, padding=1, summation=METHODS[index % len(METHODS)])


@needs_fork
@pytest.mark.parametrize("dtype", DTYPES)
def test_workers_of_a_dataloader(dtype: type) -> None:
    torch = pytest.importorskip("torch")
    detconv.set_num_threads(3)
    dataset = Convolved(torch, dtype)
    # Both have run in parallel before the workers are forked.
    expected = [dataset[index].numpy() for index in range(len(dataset))]
    square = torch.ones(700, 700)
    assert torch.equal(square @ square, torch.full_like(square, 700))

    with fork_while_threads_live():
        # torch warns of more workers than processors, and one processor is enough to test with.
        warnings.filterwarnings("ignore", "This DataLoader will create 2 worker processes", UserWarning)
        loader = torch.utils.data.DataLoader(
            dataset, batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=PATIENCE
        )
        found = [output.numpy() for output in loader]
    assert len(found) == len(expected) > 1
    for output, right in zip(found, expected, strict=True):
        assert_same_bits(output, right)
