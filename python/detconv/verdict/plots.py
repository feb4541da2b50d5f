"""The verdict in pictures: where an output is off, and by how much of its bound. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from detconv.drawing import BLUE, GREEN, GREY, INK, ORANGE, VERMILION, figure, plain
from detconv.verdict.explain import WHAT, axes, origin
from detconv.verdict.problem import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, Normalize
    from matplotlib.figure import Figure

    from detconv.verdict.judge import Verdict

COLORS = {"identical": BLUE, "rounding": GREEN, "unlikely": ORANGE, "mistake": VERMILION}

# A map shows errors from a part in 10^4 of the bound to 10^4 times it; the bound is in the middle.
_FACTOR = 1e4
_DOTS = 20_000


class Panel(NamedTuple):
    """One picture of a verdict: its title, what draws it, and the same in words."""

    title: Callable[[Verdict], str]
    draw: Callable[[Axes, Verdict], None]
    words: Callable[[Verdict], str]


def plot(verdict: Verdict) -> Figure:
    """All panels in one figure, with the verdict as its title.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    picture = figure(13, 9, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
    picture.suptitle(headline(verdict), x=0.015, ha="left", fontsize=19, color=INK)
    if verdict.exact.size:
        for place, panel in zip(picture.subplots(2, 2).flat, PANELS, strict=True):
            _draw(place, panel, verdict)
    return picture


def plot_panel(verdict: Verdict, panel: Panel) -> Figure:
    """One panel alone."""
    picture = figure(6.4, 4.2, layout="constrained")
    _draw(picture.subplots(), panel, verdict)
    return picture


def headline(verdict: Verdict) -> str:
    """The verdict in half a line."""
    size, count, what = verdict.exact.size, verdict.counts[verdict.status], WHAT[verdict.problem.name]
    elements = "element" if size == 1 else "elements"
    match verdict.status:
        case "identical":
            return f"Identical: {f'all {size}' if size > 1 else size or 'no'} {elements} of the {what}"
        case "rounding":
            of, most = origin(verdict), f"at most {100 * verdict.worst:.2g}% of the bound in "
            within = most if np.isfinite(verdict.worst) else ""
            return f"Rounding{f' of {of}' if of else ''}: {within}{size} {elements} of the {what}"
        case "unlikely" if not count:
            return f"Unlikely: all {size} {elements} of the {what} together"
    return f"{verdict.status.capitalize()}: {count} of {size} {elements} of the {what}"


def _draw(place: Axes, panel: Panel, verdict: Verdict) -> None:
    place.set_title(panel.title(verdict), loc="left", fontsize=13, color=INK, pad=10)
    panel.draw(place, verdict)
    plain(place)


# ---- Maps ----


def _by_position(v: Verdict) -> Array:
    """The largest share at each place of the last two axes; of a bias gradient at its only one."""
    places = v.share.shape[-2:] if v.share.ndim > 1 else (1, 1)
    return np.asarray(v.share.reshape(-1, *places).max(0))


def _by_channel(v: Verdict) -> Array:
    return np.asarray(np.atleast_2d(v.share.max((-2, -1)) if v.share.ndim > 1 else v.share))


def _draw_positions(place: Axes, v: Verdict) -> None:
    _draw_map(place, _by_position(v), _position_axes(v))


def _draw_channels(place: Axes, v: Verdict) -> None:
    names = _channel_axes(v)
    _draw_map(place, _by_channel(v), names if len(names) == 2 else ("", *names))


def _position_axes(v: Verdict) -> tuple[str, ...]:
    return axes(v)[-2:] if v.exact.ndim > 1 else ("", "the only position")


def _channel_axes(v: Verdict) -> tuple[str, ...]:
    return axes(v)[:-2] if v.exact.ndim > 1 else axes(v)


def _draw_map(place: Axes, shares: Array, names: tuple[str, ...]) -> None:
    from matplotlib.ticker import MaxNLocator

    colors, norm = _scale()
    height, width = shares.shape
    aspect: Literal["equal", "auto"] = "equal" if 1 / 3 < height / width < 3 else "auto"
    shown = place.imshow(
        np.clip(shares, 0.5 / _FACTOR, 2 * _FACTOR), cmap=colors, norm=norm, aspect=aspect, interpolation="nearest"
    )
    place.set_ylabel(names[0], fontsize=11, color=INK)
    place.set_xlabel(names[1], fontsize=11, color=INK)
    for axis, size in ((place.yaxis, height), (place.xaxis, width)):
        axis.set_major_locator(MaxNLocator(min(size, 8), integer=True, min_n_ticks=1))
    if not names[0]:
        place.set_yticks([])
    bar = place.figure.colorbar(shown, ax=place, extend="both", shrink=0.9, pad=0.02)
    bar.set_label("largest error / bound", fontsize=10, color=INK)
    bar.outline.set_visible(False)
    bar.ax.axhline(1, color=INK, linewidth=1.2)
    bar.ax.tick_params(which="both", color=GREY, labelcolor=INK)


def _scale() -> tuple[Colormap, Normalize]:
    """Light to full green up to the bound, orange to dark red beyond it; a light blue for no error."""
    from matplotlib.colors import LinearSegmentedColormap, LogNorm

    stops = [(0, "#F1F7F4"), (0.4999, GREEN), (0.5, ORANGE), (0.75, VERMILION), (1, "#5A1A00")]
    colors = LinearSegmentedColormap.from_list("share of the bound", stops, 510)
    return colors.with_extremes(under="#DDE8F2", over="#2B0900"), LogNorm(1 / _FACTOR, _FACTOR)


def _words_for_map(shares: Array, names: str) -> str:
    beyond = int((shares > 1).sum())
    text = f"A map of {shares.shape[0]} by {shares.shape[1]} {names}. Each shows its largest error divided by its bound"
    largest = float(shares.max())
    return f"{text}: {beyond} are beyond the bound; the largest is " + (
        "infinite." if np.isinf(largest) else f"{largest:.2g} times the bound."
    )


# ---- Histogram ----


def _draw_histogram(place: Axes, v: Verdict) -> None:
    """How many elements have which part of their bound as error, on logarithmic axes."""
    off = v.share[(v.codes > 0) & (v.share > 0)]
    edges = 10 ** np.arange(-5, max(2.0, 0.5 + np.log10(max(v.worst, 1) if np.isfinite(v.worst) else 1e3)) + 0.05, 0.1)
    edges[np.argmin(np.abs(edges - 1))] = 1
    counts = np.histogram(np.clip(off, edges[0], edges[-1]), edges)[0]
    for low, color in ((0, GREEN), (1, VERMILION)):
        own = np.where((edges[:-1] >= 1) == bool(low), counts, 0)
        place.stairs(own, edges, fill=True, color=color, baseline=0.6)
    place.set(xscale="log", yscale="log", xlim=edges[[0, -1]], ylim=(0.6, 5 * max(counts.max(initial=1), 2)))
    place.axvline(1, color=INK, linewidth=1.4)
    place.annotate(
        "bound", (1, 0.985), (4, 0), ("data", "axes fraction"), "offset points", va="top", fontsize=10, color=INK
    )
    likely = _probable_shares(v)
    if likely.size:
        place.axvspan(float(likely.min()), float(likely.max()), color=ORANGE, alpha=0.35, linewidth=0)
        place.axvline(float(np.median(likely)), color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
        place.annotate(
            "probable bound",
            (float(likely.min()), 0.985),
            (-4, 0),
            ("data", "axes fraction"),
            "offset points",
            ha="right",
            va="top",
            fontsize=10,
            color=INK,
        )
    if not off.size:
        place.text(0.02, 0.5, "no element is off", transform=place.transAxes, fontsize=11, color=GREY)
    place.set_xlabel(f"error / bound; {v.counts['identical']} identical elements are not shown", fontsize=11, color=INK)
    place.set_ylabel("elements", fontsize=11, color=INK)


def _probable_shares(v: Verdict) -> Array:
    """The probable bound as a part of the bound, where there are both."""
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = v.probable_bound / v.bound
    return np.asarray(shares[np.isfinite(shares)])


def _words_for_histogram(v: Verdict) -> str:
    beyond, likely = int((v.share > 1).sum()), _probable_shares(v)
    text = (
        f"A histogram of error divided by bound: {v.counts['identical']} elements are identical to the true sum, "
        f"rounded once, {v.exact.size - v.counts['identical'] - beyond} more are within their bound, and {beyond} are "
        "beyond it"
    )
    return text + (f". The probable bound is {np.median(likely):.2g} times the bound." if likely.size else ".")


# ---- Error against S ----


def _draw_magnitudes(place: Axes, v: Verdict) -> None:
    """Every element's error against the S of its sum, with the bounds, on logarithmic axes."""
    bound, probable, shown = v.bound, v.probable_bound, _shown(v)
    magnitude, error = v.magnitude.astype(np.float64), np.abs(v.error)
    fit = np.isfinite(bound) & (magnitude > 0) & (bound > 0)
    if fit.any():
        ends = np.array([magnitude[fit].min() / 1.3, magnitude[fit].max() * 1.3])
        lines = ((bound, GREY, "-", "bound"), (probable, ORANGE, "--", "probable\nbound"))
        for limit, color, style, name in lines:
            slopes = limit[fit] / magnitude[fit]
            place.fill_between(ends, slopes.min() * ends, slopes.max() * ends, color=color, alpha=0.25, linewidth=0)
            place.plot(ends, slopes.max() * ends, color=INK, linewidth=1.2, linestyle=style)
            # Beside the panel, where no element is.
            at = ends[1], slopes.max() * ends[1]
            place.annotate(name, at, (4, 0), textcoords="offset points", va="center", fontsize=10, color=INK)
        place.set_xlim(*ends)
    for code, (status, color) in enumerate(COLORS.items()):
        own = np.flatnonzero(shown & (v.codes.ravel() == code))
        if status != "identical" and own.size:
            place.scatter(
                magnitude.flat[own], error.flat[own], s=6, color=color, alpha=0.6, linewidths=0, rasterized=True
            )
    place.set(xscale="log", yscale="log")
    text = "S, the sum of |w*x| and |bias|"
    missing = np.count_nonzero(v.codes) - np.count_nonzero(shown)
    place.set_xlabel(text + (f"; {missing} elements are not shown" if missing else ""), fontsize=11, color=INK)
    place.set_ylabel("error", fontsize=11, color=INK)


def _shown(v: Verdict) -> Array:
    """Of the elements in a row, those that are shown: they are off by a finite number, and they are not too many."""
    fit = np.isfinite(v.error) & np.isfinite(v.magnitude) & (v.error != 0) & (v.magnitude > 0)
    chosen = np.flatnonzero(fit)
    if chosen.size > _DOTS:
        worst = chosen[np.argsort(-v.share.flat[chosen], kind="stable")]
        chosen = np.concatenate([worst[: _DOTS // 4], worst[_DOTS // 4 :: -(-chosen.size // (_DOTS // 4 * 3))]])
    shown = np.zeros(v.exact.size, bool)
    shown[chosen] = True
    return shown


def _words_for_magnitudes(v: Verdict) -> str:
    finite = v.magnitude[np.isfinite(v.magnitude)]
    if not finite.size:
        return "Errors against S: no S is finite."
    return (
        f"The error of each element that is off against its S, which is from {finite.min():.2g} to {finite.max():.2g}, "
        "with the bound and the probable bound, which grow with S."
    )


PANELS = (
    Panel(
        lambda v: "By " + " and ".join(filter(None, _position_axes(v))),
        _draw_positions,
        lambda v: _words_for_map(_by_position(v), "positions"),
    ),
    Panel(
        lambda v: "By " + " and ".join(_channel_axes(v)),
        _draw_channels,
        lambda v: _words_for_map(_by_channel(v), " and ".join(f"{name}s" for name in _channel_axes(v))),
    ),
    Panel(lambda v: "How much of the bound", _draw_histogram, _words_for_histogram),
    Panel(lambda v: "Error against S", _draw_magnitudes, _words_for_magnitudes),
)
