"""A result as Markdown."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from bench import targets
from bench.results import Process, Result, Row, by_layer
from bench.routes import TORCH
from bench.suites import SUITES


def markdown(result: Result, pictures: Iterable[Path] = ()) -> str:
    return "\n".join(_lines(result, pictures)) + "\n"


def _lines(result: Result, pictures: Iterable[Path]) -> Iterator[str]:
    yield f"# detconv beside torch, {result.date}"
    yield ""
    if result.ended:
        yield f"**Not complete: {result.ended}.**"
        yield ""
    failed = [row for row in result.rows if row.failed]
    checked = sum(bool(row.check) for row in result.rows)
    yield f"{len(result.rows)} rows; {checked} checked, {len(failed)} of them failed."
    yield ""
    for row in failed:
        yield f"* FAILED: {row.key}: {row.check}"
    yield from _machine(result)
    for picture in pictures:
        yield f"![]({picture.name})"
        yield ""
    for (suite, which, dtype, process), rows in result.tables():
        yield f"## {suite}: {which}, {dtype}, {process}"
        yield ""
        about = SUITES[suite].about
        yield f"{about[0].upper()}{about[1:]}."
        yield ""
        if suite == "tiny":
            yield from _calls(rows)
        elif suite == "step":
            yield from _steps(rows)
        else:
            yield from _ratios(rows)
            yield from _errors(rows)
            yield from _memory(rows)
            yield from _cuda(rows)
        yield from _skipped(rows)
    measured = [line for line in targets.lines(result) if line.measured is not None]
    if measured:
        yield "## Targets"
        yield ""
        yield from targets.table(measured)


def _machine(result: Result) -> Iterator[str]:
    yield "| | |"
    yield "|---|---|"
    for name, value in {**result.machine, **result.versions}.items():
        yield f"| {name.replace('_', ' ')} | {value} |"
    info = result.processes[0]["build_info"] if result.processes else {}
    for name in ("compiler", "flags", "instruction_sets_usable"):
        yield f"| {name.replace('_', ' ')} | {info.get(name, '')} |"
    yield ""
    yield "| process | peak, GFLOP/s float32 | float64 | of the processors | torch runs | environment |"
    yield "|---|---:|---:|---:|---|---|"
    for about in result.processes:
        process = Process(about["isa"], about["malloc"], about["threads"])
        peaks = [f"{about['peak_gflops'][t]:.0f}" if about["peak_gflops"] else about["no_peak"] for t in _TYPES]
        settings = " ".join(f"{k}={v}" for k, v in about["environment"].items())
        capability = about["torch"].get("capability", about["torch"].get("missing"))
        got = f"{100 * about['processor_share']:.0f}%" if about["processor_share"] else ""
        yield f"| {process} | {' | '.join(peaks)} | {got} | {capability} | `{settings}` |"
    yield ""
    shares = [about["processor_share"] for about in result.processes if about["processor_share"]]
    if min(shares, default=1) < QUIET:
        yield "**The machine was busy.** Other processes took a part of the processors: times on more than one thread"
        yield "say little here, and those on one thread are less certain than their spread."
        yield ""


# With the loop of the peak on every thread, this share of the processors or more goes to it on an idle machine.
QUIET = 0.95
_TYPES = ("float32", "float64")


def _ratios(rows: list[Row]) -> Iterator[str]:
    """Layers by routes: time divided by that of torch's best."""
    layers = by_layer(rows)
    routes = _present(rows)
    yield "Time divided by that of torch's best route; in brackets the % of the peak. Spread: the largest interquartile"
    yield "range of the line."
    yield ""
    yield f"| layer | torch's best, ms | {' | '.join(routes)} | spread |"
    yield f"|---|---:|{'---:|' * len(routes)}---:|"
    for layer, found in layers.items():
        timed = [row for row in found.values() if row.seconds]
        best = min((_median(row) for row in timed if row.route in TORCH), default=None)
        spread = max((row.seconds.spread for row in timed if row.seconds), default=0)
        cells = " | ".join(_cell(found.get(route)) for route in routes)
        yield f"| {layer} | {f'{best * 1e3:.3f}' if best else ''} | {cells} | {100 * spread:.0f}% |"
    if len(layers) > 1:
        means = [_mean([f[route].ratio for f in layers.values() if route in f], len(layers)) for route in routes]
        yield f"| **geometric mean** | | {' | '.join(means)} | |"
    yield ""


def _mean(given: list[float | None], layers: int) -> str:
    ratios = [ratio for ratio in given if ratio is not None]
    if not ratios:
        return ""
    return f"**{statistics.geometric_mean(ratios):.2f}**" + (f" of {len(ratios)}" if len(ratios) < layers else "")


def _cell(row: Row | None) -> str:
    if row is None or row.seconds is None:
        return ""
    if row.ratio is None:
        return f"{_median(row) * 1e3:.3f} ms"
    return f"{row.ratio:.2f}{_share(row)}"


def _share(row: Row) -> str:
    return f" ({100 * row.of_peak:.0f})" if row.of_peak is not None else ""


def _median(row: Row) -> float:
    assert row.seconds is not None
    return row.seconds.median


def _present(rows: list[Row]) -> list[str]:
    """Routes with a time, without those on another device."""
    return list(dict.fromkeys(row.route for row in rows if row.seconds and "CUDA" not in row.route))


def _errors(rows: list[Row]) -> Iterator[str]:
    routes = [route for route in _present(rows) if any(row.verdict for row in rows if row.route == route)]
    if not routes:
        return
    yield "Error in ulp of the exact sum, median / mean / largest:"
    yield ""
    yield f"| layer | {' | '.join(routes)} |"
    yield f"|---|{'---:|' * len(routes)}"
    for layer, found in by_layer(rows).items():
        cells = []
        for route in routes:
            row = found.get(route)
            cells.append(_error(row) if row else "")
        yield f"| {layer} | {' | '.join(cells)} |"
    yield ""


def _error(row: Row) -> str:
    errors = (row.median_ulp, row.mean_ulp, row.max_ulp)
    return " / ".join(f"{error:.2g}" for error in errors if error is not None)


def _memory(rows: list[Row]) -> Iterator[str]:
    routes = [route for route in _present(rows) if any(r.extra_bytes is not None for r in rows if r.route == route)]
    if not routes:
        return
    yield "Peak memory beyond arguments and output, MiB:"
    yield ""
    yield f"| layer | {' | '.join(routes)} |"
    yield f"|---|{'---:|' * len(routes)}"
    for layer, found in by_layer(rows).items():
        sizes = [found[route].extra_bytes if route in found else None for route in routes]
        yield f"| {layer} | {' | '.join('' if size is None else f'{size / 2**20:.1f}' for size in sizes)} |"
    yield ""


def _cuda(rows: list[Row]) -> Iterator[str]:
    found = [row for row in rows if "CUDA" in row.route and row.seconds]
    if not found:
        return
    ours = list(found[0].equal_bits)
    yield "torch on CUDA, and the share of its outputs that have the bits of detconv's on the CPU:"
    yield ""
    yield f"| layer | setting | ms | error, median / mean / largest ulp | verdict | {' | '.join(ours)} |"
    yield f"|---|---|---:|---:|---|{'---:|' * len(ours)}"
    for row in found:
        shares = " | ".join(f"{100 * row.equal_bits[name]:.1f}%" for name in ours)
        setting = row.route.removeprefix("torch CUDA, ")
        yield f"| {row.layer} | {setting} | {_median(row) * 1e3:.3f} | {_error(row)} | {row.verdict} | {shares} |"
    yield ""


def _calls(rows: list[Row]) -> Iterator[str]:
    yield "| call of a 1x1x1x1 layer | us | spread |"
    yield "|---|---:|---:|"
    for row in rows:
        if row.seconds:
            yield f"| {row.route} | {1e6 * row.seconds.median:.1f} | {100 * row.seconds.spread:.0f}% |"
    yield ""


def _steps(rows: list[Row]) -> Iterator[str]:
    yield "| convolutions | ms a step | of torch's | spread | check |"
    yield "|---|---:|---:|---:|---|"
    for row in rows:
        if row.seconds and row.ratio:
            spread = f"{100 * row.seconds.spread:.0f}%"
            yield f"| {row.route} | {_median(row) * 1e3:.0f} | {row.ratio:.2f} | {spread} | {row.check} |"
    yield ""


def _skipped(rows: list[Row]) -> Iterator[str]:
    reasons = Counter((row.route, row.skipped) for row in rows if row.skipped)
    for (route, reason), count in reasons.items():
        yield f"* {route}: {reason}" + (f" ({count} layers)" if count > 1 else "")
    if reasons:
        yield ""
