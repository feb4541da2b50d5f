"""Pictures of a result: time of each method, error against time, scaling. Needs matplotlib."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.results import Result, by_layer
from bench.routes import CHANNELS_LAST, METHODS, REPLAY
from bench.targets import MAIN_SUITE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

INK, GREY, LIGHT = "#222222", "#666666", "#DDDDDD"
# Okabe and Ito's colours, told apart by all forms of colour vision; markers tell them apart without colour.
STYLES = {
    "naive": ("#009E73", "o", "-"),
    "rounded": ("#56B4E9", "v", "-"),
    "pairwise": ("#0072B2", "s", "-"),
    "kahan": ("#CC79A7", "P", "-"),
    "fp64": ("#E69F00", "^", "-"),
    "exact": ("#D55E00", "D", "-"),
    REPLAY: ("#222222", "X", "-"),
    CHANNELS_LAST: ("#009E73", "o", ":"),
    "torch oneDNN": ("#666666", "1", "--"),
    "torch native": ("#666666", "2", ":"),
    "torch channels_last": ("#666666", "3", "-."),
    "ONNX Runtime": ("#999999", "+", "-"),
}
OTHER = ("#999999", ".", "-")
OURS = (*METHODS, REPLAY)

ERROR_LAYERS = ("forum", "3x3 64", "3x3 512", "1x1 256-128")
SERIES = {
    "channels": "channels, 3x3, 28x28",
    "batch": "batch, 3x3, 64 channels, 28x28",
    "image": "pixels a side, 3x3, 3 to 4 channels",
}


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


def _figure(
    columns: int, width: float, height: float, title: str, about: str, shared: bool = False
) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1))
    axes = list(figure.subplots(1, columns, squeeze=False, sharex=shared, sharey=shared)[0])
    figure.suptitle(f"{title}\n", x=0.01, ha="left", fontsize=16, color=INK)
    figure.text(0.01, 1 - 0.62 / height, about, fontsize=10.5, color=GREY, va="center")
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.spines[["left", "bottom"]].set_color(GREY)
        ax.tick_params(which="both", color=GREY, labelcolor=INK)
    return figure, axes


def _legend(figure: Figure, axes: Sequence[Axes], columns: int = 11) -> None:
    """One legend for all panels, below them."""
    handles = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    columns = min(len(handles), columns)
    figure.legend([*handles.values()], [*handles], loc="outside lower center", ncols=columns, frameon=False)


def _strips(ax: Axes, layers: Sequence[str], values: Mapping[str, Mapping[str, float]]) -> None:
    """Each layer a strip, each route (values: route -> layer -> value) a mark in it, on a height of its own."""
    for i, (route, points) in enumerate(values.items()):
        color, marker, _ = STYLES.get(route, OTHER)
        heights = [-layers.index(layer) + 0.3 - 0.6 * i / max(1, len(values) - 1) for layer in points]
        ax.scatter([*points.values()], heights, marker=marker, color=color, s=34, label=route, zorder=3)
    for i in range(0, len(layers), 2):
        ax.axhspan(-i - 0.5, -i + 0.5, color="#F3F3F3", zorder=0)
    ax.set_yticks([-i for i in range(len(layers))], layers)
    ax.set_ylim(0.5 - len(layers), 0.5)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x", color=LIGHT, linewidth=0.7)
    ax.set_axisbelow(True)


# Ticks of a logarithmic axis in each decade, from the fewest on.
_DECADES = ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 5.0, 7.0))


def ticks(low: float, high: float) -> list[float]:
    """The fewest round numbers that make three ticks on a logarithmic axis, or steps of one size on a short one."""
    from matplotlib.ticker import MaxNLocator

    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in _DECADES:
        found = [step * 10.0**decade for decade in decades for step in steps if low <= step * 10.0**decade <= high]
        if len(found) >= 3:
            return found[:: -(-len(found) // 8)]
    return [float(tick) for tick in MaxNLocator(4).tick_values(low, high) if low <= tick <= high]


def _plain(axis: Axis) -> None:
    """Round numbers as ticks, few enough that none collides with the next."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

    axis.set_major_locator(FixedLocator(ticks(*axis.get_view_interval())))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _ratios(result: Result) -> Figure | None:
    """Time divided by torch's, one panel a process."""
    rows = [row for row in result.select(suite=MAIN_SUITE, which="forward", dtype="float32") if row.ratio]
    processes, layers = list(dict.fromkeys(row.process for row in rows)), list(by_layer(rows))
    if not rows:
        return None
    about = "Left of the line: faster than the best of torch's routes on the CPU, measured in turns with it."
    width, height = 1.6 + 3.3 * len(processes), 2.2 + 0.42 * len(layers)
    figure, axes = _figure(len(processes), width, height, "Time divided by torch's", about, shared=True)
    for ax, process in zip(axes, processes, strict=True):
        here = [row for row in rows if row.process == process]
        _strips(ax, layers, {r: {row.layer: row.ratio or 0 for row in here if row.route == r} for r in OURS})
        ax.axvline(1, color=INK, linewidth=1)
        ax.set_xscale("log")
        _plain(ax.xaxis)
        ax.set_title(str(process).replace(", ", ",\n", 1), loc="left", fontsize=10.5, color=INK)
    _legend(figure, axes)
    return figure


def _errors(result: Result) -> Figure | None:
    """Median error against time, one panel a layer."""
    rows = result.select(suite=MAIN_SUITE, which="forward", dtype="float32")
    rows = [row for row in rows if row.process == rows[0].process]
    layers = {name: found for name, found in by_layer(rows).items() if name in ERROR_LAYERS}
    if not layers:
        return None
    about = f"Down and left is better. Half of the outputs are off by less than shown. {rows[0].process}, float32."
    figure, axes = _figure(len(layers), 1.2 + 3.4 * len(layers), 4.8, "Error against time", about)
    for ax, (layer, found) in zip(axes, layers.items(), strict=True):
        for route, row in found.items():
            if row.seconds and row.median_ulp is not None and route in STYLES:
                color, marker, _ = STYLES[route]
                time = 1e3 * row.seconds.median
                ax.scatter(time, row.median_ulp, marker=marker, color=color, s=60, label=route, zorder=3)
        ax.set(xscale="log", yscale="log", xlabel="ms", title=layer)
        _plain(ax.xaxis)
        _plain(ax.yaxis)
        ax.grid(which="both", color=LIGHT, linewidth=0.6)
        ax.set_axisbelow(True)
    axes[0].set_ylabel("median error, ulp")
    _legend(figure, axes)
    return figure


def _scaling(result: Result) -> Figure | None:
    """GFLOP/s against the quantity that grows, one panel a series, on the most threads."""
    rows = [
        row for suite in ("scaling", "huge") for row in result.select(suite=suite, which="forward", dtype="float32")
    ]
    if not rows:
        return None
    process = max((row.process for row in rows), key=lambda p: p.threads)
    rows = [row for row in rows if row.process == process]
    figure, axes = _figure(len(SERIES), 14, 5.2, "Speed as a layer grows", f"Up is better. {process}, float32.")
    for ax, (series, about) in zip(axes, SERIES.items(), strict=True):
        points: dict[str, list[tuple[int, float]]] = {}
        for row in rows:
            name, size = row.layer.split()
            if name == series and row.gflops and row.route in STYLES:
                points.setdefault(row.route, []).append((int(size), row.gflops))
        for route, found in points.items():
            color, marker, style = STYLES[route]
            sizes, speeds = zip(*sorted(found), strict=True)
            ax.plot(sizes, speeds, linestyle=style, marker=marker, color=color, label=route, linewidth=1.3)
        ax.set(xscale="log", yscale="log", xlabel=about)
        ticks = sorted({size for found in points.values() for size, _ in found})
        ax.set_xticks(ticks, [str(tick) for tick in ticks])
        ax.set_xticks([], minor=True)
        _plain(ax.yaxis)
        ax.grid(color=LIGHT, linewidth=0.6)
    axes[0].set_ylabel("GFLOP/s")
    _legend(figure, axes, columns=8)
    return figure


def _threads(result: Result) -> Figure | None:
    """How many times faster each route is on the most threads than on the fewest."""
    rows = result.select(suite=MAIN_SUITE, which="forward", dtype="float32", malloc="tuned")
    rows = [row for row in rows if row.isa == rows[0].isa]
    counts = sorted({row.threads for row in rows})
    if len(counts) < 2:
        return None
    few, many = counts[0], counts[-1]
    medians = {(row.threads, row.route, row.layer): row.seconds.median for row in rows if row.seconds}
    gains: dict[str, dict[str, float]] = {}
    for (threads, route, layer), median in medians.items():
        if threads == few and (many, route, layer) in medians:
            gains.setdefault(route, {})[layer] = median / medians[many, route, layer]
    if not gains:
        return None
    layers = list(by_layer(rows))
    about = f"Time on {few} divided by time on {many} threads; the line is {many / few:g}. {rows[0].isa}, tuned malloc."
    figure, axes = _figure(1, 10.5, 2.4 + 0.42 * len(layers), f"What {many} threads bring", about)
    _strips(axes[0], layers, {route: gains[route] for route in STYLES if route in gains})
    axes[0].axvline(many / few, color=INK, linewidth=1)
    axes[0].set_xlim(left=0)
    _legend(figure, axes, columns=6)
    return figure
