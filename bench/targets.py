"""What detconv's speed is held to, and what a result says about it."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from operator import attrgetter
from typing import NamedTuple

from bench.results import Result, Row, by_layer
from bench.suites import NOTES
from bench.tiny import NUMPY, TENSOR

MAIN_SUITE = "notes"


class Line(NamedTuple):
    """One target: what, the most it may be, what was measured (None: nothing), and the unit."""

    what: str
    most: float
    measured: float | None
    unit: str = "of torch's time"
    least: bool = False  # the target is the least it may be

    @property
    def said(self) -> str:
        if self.measured is None:
            return "not measured"
        reached = self.measured >= self.most if self.least else round(self.measured, 2) <= self.most
        return "PASS" if reached else "short"


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
                complete = list(ratios) == list(NOTES)
                value = fold(ratios.values()) if complete else None  # type: ignore[operator]
                yield Line(f"{route}, {len(NOTES)} forward layers, {name}, {isa}, {_threads(n)}", most, value)
    for n in threads:
        for which, route, most in GRADIENTS:
            for layer in ("3x3 64 b16", "3x3 128 b16"):
                ratios = _ratios(result, "gradients", which, "avx512", n, route)
                yield Line(f"{route}, {which} gradient, {layer}, avx512, {_threads(n)}", most, ratios.get(layer))
    yield from _others(result, threads)


def _others(result: Result, threads: list[int]) -> Iterator[Line]:
    for n in threads:
        for layer in ("vgg 3x3 64", "3x3 64 b16", "3x3 512 b16"):
            row = _row(result, MAIN_SUITE, layer, "avx512", n, "naive")
            share = row.of_peak * 100 if row and row.of_peak else None
            yield Line(f"naive, {layer}, avx512, {_threads(n)}", 90, share, "% of the peak", least=True)
    for route, most in [(NUMPY, 3.0), (TENSOR, 6.0)]:
        found = [row.seconds.median * 1e6 for row in result.rows if row.route == route and row.seconds]
        yield Line(f"{route}: a call with nothing to compute", most, min(found, default=None), "us")
    for n in threads:
        for route in ("naive", "pairwise"):
            row = next((r for r in result.rows if (r.suite, r.route, r.threads) == ("step", route, n)), None)
            yield Line(f"{route}: training step of a ResNet-18, {_threads(n)}", 1.05, row.ratio if row else None)
    memory = [(extra_share(row), row) for row in result.rows if row.summation and row.extra_bytes is not None]
    worst = max((share for share, _ in memory), default=None)
    yield Line("extra memory beyond 4 MiB a thread, worst of all layers", 10, worst, "% of inputs and output")


def extra_share(row: Row) -> float:
    """Extra memory beyond 4 MiB a thread, in per cent of inputs and output."""
    shape = row.shape
    out = (shape["size"] + 2 * shape["padding"] - shape["dilation"] * (shape["kernel"] - 1) - 1) // shape["stride"] + 1
    numbers = shape["batch"] * (shape["channels"] * shape["size"] ** 2 + shape["outputs"] * out**2)
    numbers += shape["outputs"] * shape["channels"] // shape["groups"] * shape["kernel"] ** 2
    size = numbers * {"float64": 8, "float32": 4}.get(row.dtype, 2)
    return 100 * max(0, (row.extra_bytes or 0) - row.threads * 2**22) / size


def _ratios(result: Result, suite: str, which: str, isa: str, threads: int, route: str) -> dict[str, float]:
    """layer -> ratio."""
    wanted = (suite, which, isa, threads, "tuned", "float32")
    rows = [r for r in result.rows if (r.suite, r.which, r.isa, r.threads, r.malloc, r.dtype) == wanted]
    found = {layer: routes[route].ratio for layer, routes in by_layer(rows).items() if route in routes}
    return {layer: ratio for layer, ratio in found.items() if ratio is not None}


def _row(result: Result, suite: str, layer: str, isa: str, threads: int, route: str) -> Row | None:
    wanted = (suite, layer, isa, threads, route, "tuned", "forward", "float32")
    fields = attrgetter("suite", "layer", "isa", "threads", "route", "malloc", "which", "dtype")
    return next((row for row in result.rows if fields(row) == wanted), None)


def _threads(n: int) -> str:
    return f"{n} thread{'s' * (n > 1)}"


def table(result: Result) -> Iterator[str]:
    """As Markdown."""
    yield "| target | at most | measured | |"
    yield "|---|---:|---:|---|"
    for line in lines(result):
        measured = "" if line.measured is None else f"{line.measured:.2f}"
        bound = f"{line.most:g}{' or more' if line.least else ''} {line.unit}"
        yield f"| {line.what} | {bound} | {measured} | {line.said} |"
