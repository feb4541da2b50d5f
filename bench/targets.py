"""What detconv's speed is held to, and what a result says about it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from bench.results import Result, Row
from bench.suites import NOTES, Layer
from bench.tiny import NUMPY, TENSOR

MAIN_SUITE = "notes"


class Line(NamedTuple):
    """One target: what, the most it may be, what was measured (None: nothing), and the unit."""

    what: str
    most: float
    measured: float | None
    unit: str = "of torch's time"
    least: bool = False  # the target is the least it may be
    missing: str = ""  # what was not measured, though it is part of it

    @property
    def said(self) -> str:
        if self.measured is None:
            return "not measured"
        reached = self.measured >= self.most if self.least else round(self.measured, 2) <= self.most
        return f"without {self.missing}" if self.missing else "PASS" if reached else "short"


# Of the forward layers: geometric mean and worst with AVX-512, geometric mean with both capped to AVX2.
FORWARD = {
    "naive": (0.72, 1.05, 0.95),
    "rounded": (0.72, 1.05, 0.95),
    "pairwise": (0.76, 1.10, 1.0),
    "kahan": (1.35, 2.0, 2.3),
    "fp64": (1.35, 2.0, 2.0),
    "exact": (1.55, 2.2, 2.3),
    "replay": (1.0, 1.3, 1.2),
}
GRADIENTS = [("input", "naive", 0.95), ("weight", "naive", 0.85), ("input", "exact", 2.0), ("weight", "exact", 2.0)]


def lines(result: Result) -> Iterator[Line]:
    """Every target, with the processes of the result to which it applies: AVX-512 or AVX2, malloc tuned."""
    threads = sorted({row.threads for row in result.rows if row.malloc == "tuned"}) or [1]
    for n in threads:
        for route, (mean, worst, capped) in FORWARD.items():
            for isa, most, fold, name in [
                ("avx512", mean, statistics.geometric_mean, "geometric mean"),
                ("avx512", worst, max, "worst layer"),
                ("avx2", capped, statistics.geometric_mean, "geometric mean"),
            ]:
                ratios = _ratios(result, MAIN_SUITE, "forward", isa, n, route)
                value = fold(ratios.values()) if ratios else None  # type: ignore[operator]
                missing = ", ".join(layer for layer in NOTES if layer not in ratios)
                what = f"{route}, {len(NOTES)} forward layers, {name}, {isa}, {_threads(n)}"
                yield Line(what, most, value, missing=missing)
    for n in threads:
        for which, route, most in GRADIENTS:
            for layer in ("3x3 64 b16", "3x3 128 b16"):
                ratios = _ratios(result, "gradients", which, "avx512", n, route)
                yield Line(f"{route}, {which} gradient, {layer}, avx512, {_threads(n)}", most, ratios.get(layer))
    yield from _others(result, threads)


def _others(result: Result, threads: list[int]) -> Iterator[Line]:
    for n in threads:
        for layer in ("vgg 3x3 64", "3x3 64 b16", "3x3 512 b16"):
            rows = _tuned(result, suite=MAIN_SUITE, layer=layer, isa="avx512", threads=n, route="naive")
            share = next((100 * row.of_peak for row in rows if row.of_peak), None)
            yield Line(f"naive, {layer}, avx512, {_threads(n)}", 90, share, "% of the peak", least=True)
    for route, most in [(NUMPY, 3.0), (TENSOR, 6.0)]:
        found = [row.seconds.median * 1e6 for row in _tuned(result, suite="tiny", route=route) if row.seconds]
        yield Line(f"{route}: a call with nothing to compute", most, min(found, default=None), "us")
    for n in threads:
        for route in ("naive", "pairwise"):
            ratios = [row.ratio for row in _tuned(result, suite="step", route=route, threads=n)]
            yield Line(f"{route}: training step of a ResNet-18, {_threads(n)}", 1.05, next(iter(ratios), None))
    yield Line("exact on integers and on bfloat16 values, of the time on normal ones", 1.0, _hard_values(result), "")
    extra = max(
        (extra_share(row) for row in result.rows if row.summation and row.extra_bytes is not None), default=None
    )
    yield Line("extra memory beyond 4 MiB a thread, worst layer", 10, extra, "% of inputs and output")


def _hard_values(result: Result) -> float | None:
    """The most that other values cost, both in the time of fp64, to which all values are the same."""
    times: dict[str, dict[str, float]] = {}
    for row in _tuned(result, suite="values"):
        if row.seconds is not None:
            times.setdefault(row.layer, {})[row.route] = row.seconds.median
    ratios = {layer: of["exact"] / of["fp64"] for layer, of in times.items() if {"exact", "fp64"} <= set(of)}
    shares = []
    for layer, ratio in ratios.items():
        normal = ratios.get(f"{layer.rsplit(' ', 1)[0]} normal")
        if normal is not None and not layer.endswith("normal"):
            shares.append(ratio / normal)
    return max(shares, default=None)


def extra_share(row: Row) -> float:
    """Extra memory beyond 4 MiB a thread, in per cent of inputs and output."""
    layer = Layer(**row.shape)
    numbers = sum(map(math.prod, (layer.input_shape, layer.weight_shape, layer.output_shape)))
    beyond = max(0, (row.extra_bytes or 0) - row.threads * 2**22)
    return 100 * beyond / (numbers * {"float64": 8, "float32": 4}.get(row.dtype, 2))


def _ratios(result: Result, suite: str, which: str, isa: str, threads: int, route: str) -> dict[str, float]:
    """layer -> ratio."""
    rows = _tuned(result, suite=suite, which=which, isa=isa, threads=threads, route=route)
    return {row.layer: row.ratio for row in rows if row.ratio is not None}


def _tuned(result: Result, **fields: Any) -> list[Row]:
    return result.select(malloc="tuned", dtype="float32", **fields)


def _threads(n: int) -> str:
    return f"{n} thread{'s' * (n > 1)}"


def table(found: Iterable[Line]) -> Iterator[str]:
    """As Markdown."""
    yield "| target | at most | measured | |"
    yield "|---|---:|---:|---|"
    for line in found:
        measured = "" if line.measured is None else f"{line.measured:.2f}"
        bound = f"{line.most:g}{' or more' if line.least else ''} {line.unit}"
        yield f"| {line.what} | {bound} | {measured} | {line.said} |"
