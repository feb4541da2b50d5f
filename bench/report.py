"""A result as Markdown."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from bench import targets
from bench.results import Process, Result, Row, by_layer
from bench.routes import TORCH, is_detconv
from bench.suites import SUITES


def markdown(result: Result, pictures: Iterable[Path] = ()) -> str:
    return "\n".join(_lines(result, pictures)) + "\n"


def _lines(result: Result, pictures: Iterable[Path]) -> Iterator[str]:
    yield f"# detconv beside torch, {result.date}"
    yield ""
    if not result.complete:
        yield "**Not complete: the run was interrupted.**"
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
        yield f"{SUITES[suite].about.capitalize()}."
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
    yield "## Targets"
    yield ""
    yield from targets.table(result)


def _machine(result: Result) -> Iterator[str]:
    yield "| | |"
    yield "|---|---|"
    for name, value in {**result.machine, **result.versions}.items():
        yield f"| {name.replace('_', ' ')} | {value} |"
    info = result.processes[0]["build_info"] if result.processes else {}
    for name in ("compiler", "flags", "instruction_sets_usable"):
        yield f"| {name.replace('_', ' ')} | {info.get(name, '')} |"
    yield ""
    yield "| process | peak, GFLOP/s float32 | float64 | torch runs | environment |"
    yield "|---|---:|---:|---|---|"
    for about in result.processes:
        process = Process(about["isa"], about["malloc"], about["threads"])
        peaks = [f"{about['peak_gflops'][t]:.0f}" if about["peak_gflops"] else about["no_peak"] for t in _TYPES]
        settings = " ".join(f"{k}={v}" for k, v in about["environment"].items())
        capability = about["torch"].get("capability", about["torch"].get("missing"))
        yield f"| {process} | {' | '.join(peaks)} | {capability} | `{settings}` |"
    yield ""


_TYPES = ("float32", "float64")


def _ratios(rows: list[Row]) -> Iterator[str]:
    """Layers by routes: time divided by that of torch's best."""
    layers = by_layer(rows)
    routes = _present(rows)
    others = [route for route in routes if route not in TORCH]
    yield "Time divided by torch's best; in brackets the % of the peak. Spread: the largest interquartile range of the row."
    yield ""
    yield f"| layer | torch's best, ms | which | {' | '.join(others)} | spread |"
    yield f"|---|---:|---|{'---:|' * len(others)}---:|"
    ratios: dict[str, list[float]] = {route: [] for route in others}
    for layer, found in layers.items():
        timed = [row for row in found.values() if row.seconds]
        if not timed:
            continue
        best = min((row for row in timed if row.route in TORCH), key=_median, default=None)
        cells = []
        for route in others:
            row = found.get(route)
            cells.append(_cell(row))
            if row and row.ratio is not None:
                ratios[route].append(row.ratio)
        spread = max(row.seconds.spread for row in timed if row.seconds)
        theirs = f"{_median(best) * 1e3:.3f}{_share(best)} | {best.route.removeprefix('torch ')}" if best else " | "
        yield f"| {layer} | {theirs} | {' | '.join(cells)} | {100 * spread:.0f}% |"
    if len(layers) > 1:
        means = [_mean(ratios[route], len(layers)) for route in others]
        yield f"| **geometric mean** | | | {' | '.join(means)} | |"
    yield ""


def _mean(ratios: list[float], layers: int) -> str:
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
    yield "Error in ulp of the exact sum, mean / largest:"
    yield ""
    yield f"| layer | {' | '.join(routes)} |"
    yield f"|---|{'---:|' * len(routes)}"
    for layer, found in by_layer(rows).items():
        cells = []
        for route in routes:
            row = found.get(route)
            known = row is not None and row.mean_ulp is not None and row.max_ulp is not None
            cells.append(f"{row.mean_ulp:.2g} / {row.max_ulp:.2g}" if known else "")  # type: ignore[union-attr]
        yield f"| {layer} | {' | '.join(cells)} |"
    yield ""


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
    yield f"| layer | setting | ms | error, mean / largest ulp | verdict | {' | '.join(ours)} |"
    yield f"|---|---|---:|---:|---|{'---:|' * len(ours)}"
    for row in found:
        shares = " | ".join(f"{100 * row.equal_bits[name]:.1f}%" for name in ours)
        setting = row.route.removeprefix("torch CUDA, ")
        error = f"{row.mean_ulp:.2g} / {row.max_ulp:.2g}"
        yield f"| {row.layer} | {setting} | {_median(row) * 1e3:.3f} | {error} | {row.verdict} | {shares} |"
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


def ours(row: Row) -> bool:
    return is_detconv(row.route)
