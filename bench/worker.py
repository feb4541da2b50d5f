"""One process of the benchmark: reads what to measure from standard input, writes lines of JSON to standard output.

Started by the runner, in an environment made for it: ``python -m bench.worker``.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

import detconv
from bench import device, machine, peak, step, tiny
from bench.problem import Array, Problem, judged
from bench.results import Process, Row
from bench.routes import CHANNELS_LAST, METHODS, REPLAY, ROUTES, TORCH, Route, Unavailable, is_detconv
from bench.suites import SUITES
from bench.timing import Seconds, interleaved, summary
from detconv.testing import instruction_set


class Task(NamedTuple):
    """Rows that are measured in turns: all routes on one layer."""

    suite: str
    layer: str
    which: str
    dtype: str


class Job(NamedTuple):
    """All that one process measures."""

    process: Process
    tasks: list[Task]
    routes: list[str]
    seconds: float  # for the timing of each task
    least: int  # rounds, if they take longer

    @staticmethod
    def read(text: str) -> Job:
        process, tasks, *others = json.loads(text)
        return Job(Process(*process), [Task(*task) for task in tasks], *others)


Peaks = dict[str, float]


def rows_of(job: Job, task: Task, peaks: Peaks) -> list[Row]:
    """Measure one task."""
    base = Row(*task, *job.process, route="")
    if task.suite == "tiny":
        return tiny.rows(base, job.routes, job.seconds, job.least)
    if task.suite == "step":
        return step.rows(base, job.routes, job.seconds)
    layer = SUITES[task.suite].layers[task.layer]
    problem = Problem(layer, task.which, task.dtype)
    base = replace(base, shape=layer._asdict(), macs=layer.macs)
    rows, routes = _checked(problem, job, base)
    _time(rows, routes, job, peaks.get(task.dtype))
    if task.suite in ("scaling", "huge"):
        _measure_memory(rows, routes)
    beside = device.find()
    ours = [row.route for row in rows if row.route in METHODS and row.route in routes and beside]
    return rows + device.rows(beside, problem, base, {name: routes[name].output() for name in ours})


# A call that takes longer, in seconds, is not made again: torch's weight gradients of float16 can be oneDNN's plain
# loops, 6 to 35 seconds for a layer; the five more calls of each that are timed otherwise add half an hour to --full.
LONG = 5.0

# Routes whose outputs are those of another, if both are measured.
EQUALS = {REPLAY: TORCH[0], CHANNELS_LAST: "naive"}


def _checked(problem: Problem, job: Job, base: Row) -> tuple[list[Row], dict[str, Route]]:
    """A row for each route, with a time where its call is a long one, and the routes that there are."""
    rows, routes = [], {}
    _, clock = clock_of(job.process.threads)
    outputs: dict[str, Array] = {}
    for name in job.routes:
        row = replace(base, route=name, equal_bits={}, flags={})
        rows.append(row)
        try:
            route = ROUTES[name].make(problem)
            start = clock()
            output = route.output()
            took = clock() - start
        except Unavailable as error:
            row.skipped = str(error)
            continue
        routes[name] = route
        row.seconds = summary([took], 1) if took > LONG else None
        if name in EQUALS.values():
            outputs[name] = output
        row.summation = route.summation
        row.sha256 = sha256(output)
        row.max_ulp, row.mean_ulp, row.median_ulp, row.judged, row.verdict = judged(problem, output)
        row.check, row.failed = _check(row, route, output, outputs)
    return rows, routes


def _check(row: Row, route: Route, output: Array, outputs: dict[str, Array]) -> tuple[str, bool]:
    """What is asserted of an output before it is timed, and whether it fails."""
    if not is_detconv(row.route):
        return f"verdict: {row.verdict}", False
    if row.verdict == "mistake":
        return "off by more than the bound", True
    if row.route == "exact" and row.which != "weight" and row.verdict != "identical":
        return "exact must be the exact sum, rounded once", True
    here = detconv.build_info()["instruction_set"]
    other = next((isa for isa in reversed(usable()) if isa != here), None)
    if other is None:
        said, failed = "one instruction set only", False
    else:
        with instruction_set(other):
            failed = sha256(route.output()) != row.sha256
        said = f"bits on {here} and {other}: {'DIFFER' if failed else 'equal'}"
    other_route = EQUALS.get(row.route, "")
    if other_route in outputs:
        equal = np.array_equal(output, outputs[other_route])
        said, failed = f"{said}; {'as' if equal else 'NOT as'} {other_route}", failed or not equal
    return said, failed


def usable() -> list[str]:
    found = detconv.build_info()["instruction_sets_usable"]
    assert isinstance(found, list)
    return found


def sha256(output: Array) -> str:
    """Of the elements in C order, little-endian; half types as the float32 numbers that they are."""
    return hashlib.sha256(output.astype(output.dtype.newbyteorder("<"), order="C").tobytes()).hexdigest()


def clock_of(threads: int) -> tuple[str, Callable[[], float]]:
    """One thread is timed by its processor time, which leaves out what others on the machine take; more by the wall."""
    return ("thread", time.thread_time) if threads == 1 else ("wall", time.perf_counter)


def _time(rows: list[Row], routes: dict[str, Route], job: Job, peak_gflops: float | None) -> None:
    """Fill in the other times, and what follows from all."""
    clock_name, clock = clock_of(job.process.threads)
    known = {row.route: row.seconds for row in rows if row.seconds}
    timed = {name: route.timed for name, route in routes.items() if name not in known}
    seconds = known | (interleaved(timed, job.seconds, clock, job.least) if timed else {})
    best = best_of_torch(seconds)
    for row in rows:
        if row.route in seconds:
            row.seconds, row.clock = seconds[row.route], clock_name
            row.ratio = row.seconds.median / best if best else None
            row.gflops = 2 * row.macs / row.seconds.median / 1e9
            row.of_peak = row.gflops / peak_gflops if peak_gflops else None


def best_of_torch(seconds: dict[str, Seconds]) -> float | None:
    """The least median of torch's routes: what ratios are of."""
    return min((seconds[name].median for name in TORCH if name in seconds), default=None)


def _measure_memory(rows: list[Row], routes: dict[str, Route]) -> None:
    def once(route: Route) -> int:
        with route.around():
            result = route.call()
        array = result[0] if isinstance(result, (list, tuple)) else result
        return int(np.prod(array.shape)) * int(array.itemsize)

    for row in rows:
        if row.route in routes:
            row.extra_bytes = machine.extra_memory(partial(once, routes[row.route]))


def run(job: Job) -> Iterator[dict[str, Any]]:
    """The process, then each task and its rows, as entries of JSON."""
    detconv.set_num_threads(job.process.threads)
    peaks: Peaks = {}
    share, reason = None, ""
    try:
        peaks, share = peak.measure(job.process.isa, job.process.threads)
    except peak.NoPeak as error:
        reason = str(error)
    about = {
        "peak_gflops": peaks,
        "no_peak": reason,
        "processor_share": share,
        "build_info": detconv.build_info(),
        "torch": _torch(job.process),
    }
    yield {"process": job.process._asdict() | about}
    for task in job.tasks:
        yield {"task": list(task)}
        try:
            rows = rows_of(job, task, peaks)
        except MemoryError:
            rows = [Row(*task, *job.process, route="all", skipped="not enough memory")]
        yield {"rows": [asdict(row) for row in rows]}


def _torch(process: Process) -> dict[str, Any]:
    """How torch is built and set."""
    try:
        import torch
    except ImportError as error:
        return {"missing": str(error)}
    torch.set_num_threads(process.threads)
    backends: Any = torch.backends
    return {
        "version": torch.__version__,
        "threads": torch.get_num_threads(),
        "capability": backends.cpu.get_cpu_capability(),
        "onednn": backends.mkldnn.is_available(),
        "mkl": backends.mkl.is_available(),
        "cuda": device.describe(device.find()),
    }


def main() -> int:
    for entry in run(Job.read(sys.stdin.read())):
        print(json.dumps(entry, allow_nan=False), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
