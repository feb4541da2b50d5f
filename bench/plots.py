"""Pictures of a result: time of each method, error against time, scaling. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.results import Result, Row, by_layer
from bench.routes import METHODS, REPLAY, TORCH
from bench.targets import MAIN_SUITE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, GREY, LIGHT = "#222222", "#666666", "#DDDDDD"
# Okabe and Ito's colours, told apart by all forms of colour vision; markers tell them apart without colour.
STYLES = {
    "naive": ("#009E73", "o"),
    "rounded": ("#56B4E9", "v"),
    "pairwise": ("#0072B2", "s"),
    "kahan": ("#CC79A7", "P"),
    "fp64": ("#E69F00", "^"),
    "exact": ("#D55E00", "D"),
    REPLAY: ("#222222", "X"),
    "torch oneDNN": ("#666666", "1"),
    "torch native": ("#666666", "2"),
    "torch channels_last": ("#666666", "3"),
    "ONNX Runtime": ("#999999", "+"),
}
OTHER = ("#999999", ".")
OURS = (*METHODS, REPLAY)


def draw(result: Result, stem: Path) -> list[Path]:
    """Draw what the result has rows for, beside it; nothing where matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return []
    pictures = [("ratios", _ratios), ("error", _errors), ("scaling", _scaling), ("threads", _threads)]
    found = []
    for name, picture in pictures:
        figure = picture(result)
        if figure is not None:
            found.append(stem.with_name(f"{stem.name}-{name}.png"))
            figure.savefig(found[-1], dpi=130)
    return found


def _figure(columns: int, height: float, width: float, title: str, about: str) -> tuple[Any, Sequence[Axes]]:
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1))
    axes = figure.subplots(1, columns, squeeze=False)[0]
    figure.suptitle(f"{title}\n", x=0.01, ha="left", fontsize=16, color=INK)
    figure.text(0.01, 1 - 0.62 / height, about, fontsize=10.5, color=GREY, va="center")
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.spines[["left", "bottom"]].set_color(GREY)
        ax.tick_params(which="both", color=GREY, labelcolor=INK)
    return figure, list(axes)


def _legend(figure: Any, axes: Sequence[Axes]) -> None:
    """One legend for all panels, below them."""
    handles = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=min(len(handles), 8), frameon=False
    )


def _ratios(result: Result) -> Any:
    """Each layer a line, each method a mark at its time divided by torch's, one panel a process."""
    tables = [
        (process, by_layer(rows))
        for (suite, which, dtype, process), rows in result.tables()
        if (suite, which, dtype) == (MAIN_SUITE, "forward", "float32") and any(row.ratio for row in rows)
    ]
    if not tables:
        return None
    names = list(dict.fromkeys(layer for _, layers in tables for layer in layers))
    about = "Marks left of the line are faster than the best of torch's routes on the CPU, measured in turns with it."
    height, width = 2.2 + 0.36 * len(names), 3.2 + 3.6 * len(tables)
    figure, axes = _figure(len(tables), height, width, "Time divided by torch's", about)
    for ax, (process, layers) in zip(axes, tables, strict=True):
        ax.axvline(1, color=INK, linewidth=1)
        for route in OURS:
            color, marker = STYLES.get(route, OTHER)
            marks = [(row[route].ratio, -names.index(name)) for name, row in layers.items() if route in row]
            marks = [(ratio, y) for ratio, y in marks if ratio is not None]
            if marks:
                across, ys = zip(*marks, strict=True)
                ax.scatter(across, ys, marker=marker, color=color, s=38, label=route, zorder=3, alpha=0.9)
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        ax.set_yticks([-i for i in range(len(names))], names if ax is axes[0] else [""] * len(names))
        ax.grid(axis="both", color=LIGHT, linewidth=0.7)
        ax.set_axisbelow(True)
        ax.set_title(str(process).replace(", ", ",\n", 1), loc="left", fontsize=10.5, color=INK)
    _legend(figure, axes)
    return figure


def _errors(result: Result) -> Any:
    """Median error against time, one panel a layer; down and left is better."""
    wanted = ("forum", "3x3 64", "3x3 512", "1x1 256-128")
    process = next((row.process for row in result.rows if row.suite == MAIN_SUITE and row.seconds), None)
    rows = [row for row in result.rows if row.suite == MAIN_SUITE and row.process == process and row.which == "forward"]
    layers = {name: found for name, found in by_layer(rows).items() if name in wanted}
    if not layers:
        return None
    about = f"Down and left is better. Half of the outputs are off by less than the error shown. {process}, float32."
    figure, axes = _figure(len(layers), 4.6, 1.2 + 3.4 * len(layers), "Error against time", about)
    for ax, (layer, found) in zip(axes, layers.items(), strict=True):
        for route, row in found.items():
            if row.seconds and row.median_ulp is not None and route in STYLES:
                color, marker = STYLES[route]
                time = 1e3 * row.seconds.median
                ax.scatter(time, row.median_ulp, marker=marker, color=color, s=60, label=route, zorder=3)
        ax.set(xscale="log", yscale="log", title=layer)
        ax.set_xlabel("ms")
        _plain_ticks(ax)
        ax.grid(which="both", color=LIGHT, linewidth=0.6)
        ax.set_axisbelow(True)
    axes[0].set_ylabel("median error, ulp")
    _legend(figure, axes)
    return figure


def _plain_ticks(ax: Axes) -> None:
    """1, 2, 5, 10 in place of powers of ten, which a narrow panel may have none of."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


SERIES = {
    "channels": "channels, 3x3, 28x28",
    "batch": "batch, 3x3, 64 channels, 28x28",
    "image": "pixels a side, 3x3, 3 to 4",
}


def _scaling(result: Result) -> Any:
    """GFLOP/s against the quantity that grows, one panel a series."""
    found = [row for row in result.rows if row.suite in ("scaling", "huge") and row.gflops and row.dtype == "float32"]
    if not found:
        return None
    process = max((row.process for row in found), key=lambda p: p.threads)
    found = [row for row in found if row.process == process and row.which == "forward"]
    figure, axes = _figure(3, 5, 14, "Speed as a layer grows", f"More is better. {process}, float32.")
    for ax, (series, about) in zip(axes, SERIES.items(), strict=True):
        for route, points in _series(found, series):
            color, marker = STYLES.get(route, OTHER)
            style = ":" if route in TORCH else "-"
            ax.plot(*zip(*points, strict=True), style, marker=marker, color=color, label=route, linewidth=1.3)
        ax.set(xscale="log", yscale="log")
        ax.set_xlabel(about)
        ticks = sorted({int(row.layer.split()[1]) for row in found if row.layer.split()[0] == series})
        ax.set_xticks(ticks, [str(tick) for tick in ticks])
        ax.xaxis.set_minor_locator(_none())
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        ax.grid(color=LIGHT, linewidth=0.6)
    axes[0].set_ylabel("GFLOP/s")
    _legend(figure, axes)
    return figure


def _none() -> Any:
    from matplotlib.ticker import NullLocator

    return NullLocator()


def _series(rows: list[Row], series: str) -> Iterator[tuple[str, list[tuple[int, float]]]]:
    points: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        name, size = row.layer.split()
        if name == series and row.gflops and "CUDA" not in row.route:
            points.setdefault(row.route, []).append((int(size), row.gflops))
    for route, found in points.items():
        yield route, sorted(found)


def _threads(result: Result) -> Any:
    """How much faster each route is on more threads, over the layers of the targets."""
    rows = [
        r for r in result.rows if r.suite == MAIN_SUITE and r.seconds and r.malloc == "tuned" and r.dtype == "float32"
    ]
    counts = sorted({row.threads for row in rows})
    if len(counts) < 2:
        return None
    isa = rows[0].isa
    layers = list(by_layer(rows))
    most = counts[-1]
    about = f"Time on one thread divided by time on {most}; the line is {most}. {isa}, malloc tuned, float32."
    figure, axes = _figure(1, 2.2 + 0.36 * len(layers), 10, f"What {most} threads bring", about)
    for route in (*OURS, *TORCH):
        color, marker = STYLES.get(route, OTHER)
        by_threads = [
            {
                row.layer: row.seconds.median
                for row in rows
                if (row.isa, row.threads, row.route) == (isa, n, route) and row.seconds
            }
            for n in (counts[0], most)
        ]
        marks = [
            (one / by_threads[1][name], -layers.index(name))
            for name, one in by_threads[0].items()
            if name in by_threads[1]
        ]
        if marks:
            across, ys = zip(*marks, strict=True)
            axes[0].scatter(across, ys, marker=marker, color=color, s=42, label=route, zorder=3, alpha=0.9)
    axes[0].axvline(most, color=INK, linewidth=1)
    axes[0].set_yticks([-i for i in range(len(layers))], layers)
    axes[0].set_xlim(left=0)
    axes[0].grid(color=LIGHT, linewidth=0.7)
    axes[0].set_axisbelow(True)
    _legend(figure, axes)
    return figure
