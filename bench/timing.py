"""Medians of calls that take turns: what disturbs one of them, a busy neighbour or a lower clock, disturbs all."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

Clock = Callable[[], float]

# A clock is read in about 0.1 us (the thread's in 0.5 us): 1 ms between readings makes that less than one in 1000.
SHORTEST = 1e-3


@dataclass(frozen=True)
class Timed:
    """A call to be timed; `around` is entered outside the clock, for settings of a library."""

    call: Callable[[], Any]
    around: Callable[[], AbstractContextManager[Any]] = nullcontext


@dataclass(frozen=True)
class Seconds:
    """How long a call took: the median of its rounds, and the quartiles."""

    median: float
    q1: float
    q3: float
    rounds: int
    repeats: int  # calls between two readings of the clock

    @property
    def spread(self) -> float:
        """The interquartile range, as a fraction of the median."""
        return (self.q3 - self.q1) / self.median


def interleaved(
    calls: Mapping[str, Timed], seconds: float, clock: Clock, least: int = 5, wall: Clock = time.perf_counter
) -> dict[str, Seconds]:
    """Time the calls in turns, A, B, A, B, for so many seconds of the wall's clock and at least `least` rounds.

    Where these would take more than ten times as long, three rounds must do.

    Every call is made twice before: the first finds memory, caches and plans cold, the second says how often it must be
    repeated between two readings of the clock.
    """
    repeats = {}
    for name, timed in calls.items():
        with timed.around():
            timed.call()
            start = clock()
            timed.call()
            once = clock() - start
        repeats[name] = max(1, round(SHORTEST / max(once, 1e-7)))

    rounds: dict[str, list[float]] = {name: [] for name in calls}
    first, done = wall(), 0
    while not _enough(done, wall() - first, seconds, least):
        for name, timed in calls.items():
            call, times = timed.call, range(repeats[name])
            with timed.around():
                start = clock()
                for _ in times:
                    call()
                rounds[name].append((clock() - start) / repeats[name])
        done += 1
    return {name: summary(values, repeats[name]) for name, values in rounds.items()}


def _enough(done: int, passed: float, seconds: float, least: int) -> bool:
    fewest = least if passed < 10 * seconds else min(least, 3)
    return done >= fewest and passed >= seconds


def summary(values: list[float], repeats: int) -> Seconds:
    q1, median, q3 = np.quantile(values, [0.25, 0.5, 0.75])
    return Seconds(float(median), float(q1), float(q3), len(values), repeats)
