"""The machine's own peak: a loop of fused multiply-adds, compiled here and now by the compiler that is there."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).with_name("peak.cpp")


class NoPeak(Exception):
    """The peak cannot be measured; the message says why."""


def compiled(folder: Path) -> ctypes.CDLL:
    """The loops of peak.cpp as a shared library in a folder.

    Raises:
        NoPeak: no compiler, or one that does not compile it.
    """
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    if compiler is None:
        raise NoPeak("no C++ compiler")
    library = folder / "peak.so"
    command = [*compiler.split(), "-std=c++17", "-O2", "-ffp-contract=off", "-shared", "-fPIC"]
    try:
        subprocess.run([*command, "-o", library, SOURCE], check=True, capture_output=True, text=True, timeout=120)
    except (OSError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", "") or str(error)
        raise NoPeak(f"{compiler}: {reason.strip().splitlines()[0]}") from None
    return ctypes.CDLL(str(library))


class Peak(NamedTuple):
    gflops: dict[str, float]  # by element type, two for a multiply-add
    processor_share: float  # what these threads got of the processors; less than 1 where others compute


def measure(isa: str, threads: int, seconds: float = 0.4) -> Peak:
    """The peak of so many threads at once.

    Each thread is timed by its own processor time, in slices of a few milliseconds of which the fastest counts: the
    peak of that many cores, whatever else runs on them.

    Raises:
        NoPeak: it cannot be measured here.
    """
    with tempfile.TemporaryDirectory() as folder:
        library = compiled(Path(folder))
        found = {dtype: _of(library, f"{isa}_{dtype}", threads, seconds / 2) for dtype in ("float32", "float64")}
    return Peak({dtype: gflops for dtype, (gflops, _) in found.items()}, min(share for _, share in found.values()))


def _of(library: ctypes.CDLL, name: str, threads: int, seconds: float) -> tuple[float, float]:
    """GFLOP/s, and the share of the processors."""
    try:
        loop, flops = getattr(library, name), getattr(library, f"{name}_flops")
    except AttributeError:
        raise NoPeak(f"peak.cpp has no loop {name}") from None
    loop.restype, loop.argtypes = ctypes.c_double, [ctypes.c_int64]
    flops.restype = ctypes.c_int64
    rounds, best, shares = 200_000, [0.0] * threads, [0.0] * threads

    def run(thread: int) -> None:
        begin, used = time.perf_counter(), time.thread_time()
        while time.perf_counter() < begin + seconds or not best[thread]:
            start = time.thread_time()
            loop(rounds)  # ctypes lets the other threads run meanwhile
            taken = time.thread_time() - start
            best[thread] = max(best[thread], rounds * flops() / taken / 1e9)
        shares[thread] = (time.thread_time() - used) / (time.perf_counter() - begin)

    others = [threading.Thread(target=run, args=(thread,)) for thread in range(1, threads)]
    for other in others:
        other.start()
    run(0)
    for other in others:
        other.join()
    return sum(best), min(1.0, sum(shares) / threads)
