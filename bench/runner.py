"""Starts the processes one after the other and collects their rows."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from bench import machine
from bench.environment import environment, settings
from bench.plan import Options
from bench.results import Result, Row
from bench.worker import Job

WIDTH = 100
Say = Callable[[str], None]


INTERRUPTED = "interrupted"


class WorkerFailed(RuntimeError):
    """A process of the benchmark ended with an error; it has printed it."""


def run(jobs: list[Job], options: Options, path: Path) -> Result:
    """Run the jobs; the result is kept at the path from the first row on.

    An interrupt or a process that fails ends the run; the result then says so, and has what was measured before.
    """
    today = datetime.now(timezone.utc).strftime("%Y-%m-%d")
    chosen = {name: value for name, value in asdict(options).items() if value is not None}
    result = Result(today, "not yet", machine.describe(), machine.versions(), chosen)
    tasks = sum(len(job.tasks) for job in jobs)
    try:
        with progress(tasks) as say:
            for job in jobs:
                for entry in lines_of(job):
                    _take(entry, job, result, say)
                    if "rows" in entry:
                        result.save(path)
        result.ended = ""
    except KeyboardInterrupt:
        result.ended = INTERRUPTED
    except WorkerFailed as error:
        result.ended = str(error)
    if result.ended:
        print(f"\nNot complete: {result.ended}. What was measured before is kept.", file=sys.stderr)
    agree(result.rows)
    result.machine["load_after"] = machine.describe()["load_before"]
    result.save(path)
    return result


def _take(entry: dict[str, Any], job: Job, result: Result, say: Say) -> None:
    if "process" in entry:
        result.processes.append(entry["process"] | {"environment": settings(job.process)})
    elif "task" in entry:
        suite, layer, which, dtype = entry["task"]
        say(f"{job.process}: {suite}, {layer}, {which}, {dtype}")
    else:
        result.rows += map(Row.read, entry["rows"])
        say("")


def lines_of(job: Job) -> Iterator[dict[str, Any]]:
    """What the process of a job says, as it says it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(job.process),
        start_new_session=True,  # Ctrl-C reaches this process alone, which keeps what there is and ends the other
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps(job))
        process.stdin.close()
        for line in process.stdout:
            yield json.loads(line)
        if process.wait():
            raise WorkerFailed(f"the process of {job.process} ended with status {process.returncode}")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def agree(rows: list[Row]) -> None:
    """Fail rows of detconv's that differ in bits from the same summation in another process."""
    first: dict[tuple[str, ...], Row] = {}
    for row in rows:
        if row.summation is None or not row.sha256 or row.suite == "step":  # where sums of torch's are in the weights
            continue
        before = first.setdefault((row.suite, row.layer, row.which, row.dtype, row.summation), row)
        if before.sha256 != row.sha256:
            row.check, row.failed = f"bits DIFFER from those of {before.process}", True


@contextmanager
def progress(tasks: int) -> Iterator[Say]:
    """A bar if tqdm is installed, else a line, on a terminal; nothing otherwise. An empty text: one task is done."""
    if not sys.stderr.isatty():
        yield lambda text: None
        return
    try:
        from tqdm import tqdm  # type: ignore[import-untyped,unused-ignore]
    except ImportError:
        done, start = 0, time.monotonic()

        def say(text: str) -> None:
            nonlocal done
            done += not text
            line = f"{done}/{tasks}, {time.monotonic() - start:.0f} s  {text}"
            print(f"\r{line[:WIDTH]:{WIDTH}}", end="\r", file=sys.stderr, flush=True)

        yield say
        print(f"\r{'':{WIDTH}}\r", end="", file=sys.stderr)
        return
    with tqdm(
        total=tasks, leave=False, bar_format="{n_fmt}/{total_fmt} {elapsed}<{remaining} |{bar:20}| {desc}"
    ) as bar:
        yield lambda text: bar.set_description_str(text) if text else bar.update() and None
