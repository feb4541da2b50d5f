"""``detconv demo``: the forum's question, answered with bits.

"PyTorch Conv2d vs Numpy reference; different outcomes. Rounding error or mistake?" (discuss.pytorch.org, topic 8921.)
The demo computes the layer of that question by its own loops, by NumPy, by torch and by detconv, measures every output
against the exact sum, and names the order in which each of them adds.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from detconv import _core
from detconv.catalogue import KNOWN_ORDERS, KnownOrder
from detconv.console import WIDTH, progress, wrapped
from detconv.drawing import BLUE, GREEN, GREY, INK, ORANGE, VERMILION, plain
from detconv.functional import conv2d
from detconv.quoting import quoted
from detconv.revealing import STATUSES, Reveal, RevealedOrder, reveal
from detconv.routes import NUMPY, Array, Layer, Route, loops, torch_routes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RTOL, RTOL_TEXT = 1e-4, "1e-4"  # a tolerance in common use
LOOPS, TORCH, IN_TORCHS_ORDER = "the forum's loops", "torch", "detconv in torch's order"
BUDGET = 30.0  # seconds of probing for the order of one route, of which 0.2 to 4 were needed on two cores of 2024
MOST_ORDERS, LONGEST = 4, 300  # of one route: how many orders are shown, and how many characters of each


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the demo to a parser."""
    picture = parser.add_mutually_exclusive_group()
    picture.add_argument(
        "--output",
        type=_picture_path,
        default=Path("detconv-demo.png"),
        metavar="PATH",
        help="where the picture goes: .png, .svg or .pdf (default: %(default)s)",
    )
    picture.add_argument("--no-plot", action="store_true", help="draw no picture")


def run(namespace: argparse.Namespace) -> int:
    """Print the tables and the answer, draw the picture, and return 0."""
    torch, missing = _torch()
    print("\n".join(_heading()))
    with progress() as say:
        real = measured("Real values, standard normal", real_layer(), torch, say)
        integer = measured("Integers from -10 to 10, whose sums are exact in float32", integer_layer(), torch, say)
        revealed = reveal_unknown(real, torch)
    order = revealed.get(TORCH)
    real, integer = in_torchs_order(real, integer, order)
    for comparison in (real, integer):
        print("\n" + "\n".join(table(comparison)))
    print("\n" + "\n".join(answer(real, integer, revealed)))
    if order is not None:
        print("\n" + "\n".join(of_torch(real, order)))
    if missing:
        print("\n" + wrapped(f"Left out: torch's rows and columns ({missing}). pip install torch brings them."))
    if not namespace.no_plot:
        print("\n" + _draw(real, namespace.output))
    return 0


def _torch() -> tuple[Mapping[str, Route], str]:
    """The routes through torch, or why there are none."""
    try:
        return torch_routes(), ""
    except ImportError as error:
        return {}, str(error)


def _heading() -> Iterator[str]:
    info = _core.build_info()
    beside = ", ".join(f"{package} {_version(package)}" for package in ("numpy", "torch"))
    yield f"detconv {_core.__version__} ({info['instruction_set']}, threads: {info['num_threads']}), {beside}"
    yield ""
    yield '"PyTorch Conv2d vs Numpy reference; different outcomes. Rounding error or mistake?"'
    yield ""
    yield "The layer of that question: input 1 x 16 x 28 x 28, weight 8 x 16 x 5 x 5, padding 2, float32;"
    yield "6272 outputs, each the sum of 400 products and a bias. Times: torch and detconv on one thread."


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


# ---- What is computed ----


def real_layer() -> Layer:
    """The layer of the question, with values from the standard normal distribution."""
    draw = np.random.default_rng(99)
    return _layer(lambda *shape: draw.standard_normal(shape, np.float32))


def integer_layer() -> Layer:
    """The same with integers, so small that no sum of them is ever rounded."""
    draw = np.random.default_rng(99)
    return _layer(lambda *shape: draw.integers(-10, 11, shape).astype(np.float32))


def _layer(values: Callable[..., Array]) -> Layer:
    return Layer(values(1, 16, 28, 28), values(8, 16, 5, 5), values(8), padding=2)


@dataclass(frozen=True)
class Result:
    """What one route gave."""

    name: str
    output: Array
    seconds: float


@dataclass(frozen=True)
class Comparison:
    """One layer by every route, and what is known of its exact sums. The arrays have the output's shape."""

    title: str
    layer: Layer
    results: list[Result]
    exact: Array  # float64: the exact sums, off by at most 2^-53 of themselves
    nearest: Array  # float32: the exact sums, rounded once
    magnitude: Array  # float64: S, the sum of abs(w*x) and abs(bias)

    @cached_property
    def known(self) -> list[Array]:
        return by_known_orders(self.layer)

    def output(self, name: str) -> Array | None:
        return next((result.output for result in self.results if result.name == name), None)

    @property
    def gamma(self) -> float:
        """n*u / (1 - n*u), n = K + 1: how far, relative to S, roundings can carry a sum, whatever its order and tree.

        A product meets at most n roundings: its own and those of K additions. N. J. Higham, Accuracy and Stability of
        Numerical Algorithms, 2nd edition, SIAM 2002, sections 3.1 and 4.2.
        """
        n_u = (self.layer.terms + 1) * 2.0**-24
        return n_u / (1 - n_u)

    def error(self, output: Array) -> Array:
        distance: Array = np.abs(output - self.exact)
        return distance

    def ulps(self, output: Array) -> Array:
        """The error in units in the last place of the nearest float32."""
        return self.error(output) / np.spacing(np.abs(self.nearest))

    def share_of_bound(self, output: Array) -> Array:
        """The error as a fraction of what roundings can cause; where it is more than 1, there is a mistake."""
        return self.error(output) / (self.gamma * self.magnitude)

    def beyond_rtol(self, output: Array, expected: Array) -> Array:
        far: Array = np.abs(output - expected) > RTOL * np.abs(expected)
        return far


def measured(title: str, layer: Layer, torch: Mapping[str, Route], say: Callable[[str], None]) -> Comparison:
    """Run every route on the layer; `say` is told which."""
    routes = dict(others(torch))
    routes |= {f"detconv {text}": summed_as(text) for text in (*_core.methods(), "naive products=rounded")}
    results = []
    for name, route in routes.items():
        say(f"{title}: {name}")
        results.append(_timed(name, route, layer))

    exact = summed_as("exact")
    wide = layer.map(lambda array: array.astype(np.float64))
    return Comparison(title, layer, results, exact(wide), exact(layer), exact(wide.map(np.abs)))


def others(torch: Mapping[str, Route]) -> Mapping[str, Route]:
    """The routes that are not detconv's, by their names."""
    return {LOOPS: loops, **NUMPY, **torch}


def reveal_unknown(real: Comparison, torch: Mapping[str, Route]) -> dict[str, Reveal]:
    """What probes find of the routes whose output no order of the catalogue gives, and always of torch.

    Which order a route adds in depends on the machine: NumPy's BLAS and torch choose their code by the processor.
    """
    found = {}
    for name, route in others(torch).items():
        output = real.output(name)
        if output is not None and (name == TORCH or closest_order(real.known, output)[1] < output.size):
            found[name] = revealed_order(name, route, real.layer)
    return found


def revealed_order(name: str, route: Route, layer: Layer) -> Reveal:
    """The order in which a route adds on this machine, found by probes; name: "torch" or "NumPy", and what follows."""

    def fn(input: Array, weight: Array, bias: Array) -> Array:
        return route(Layer(input, weight, bias, layer.padding))

    fn.__qualname__ = name
    shapes: dict[str, Any] = {"input_shape": layer.input.shape, "weight_shape": layer.weight.shape}
    library = "torch" if name.startswith(TORCH) else "numpy"
    return reveal(fn, **shapes, padding=layer.padding, arrays="numpy", library=library, budget_s=BUDGET)


def in_torchs_order(real: Comparison, integer: Comparison, order: Reveal | None) -> tuple[Comparison, Comparison]:
    """Both comparisons with one more route, detconv adding as torch does, if all of that order is known."""
    if order is None or order.status != "exact":
        return real, integer

    def added(comparison: Comparison) -> Comparison:
        result = _timed(IN_TORCHS_ORDER, summed_as(order), comparison.layer)
        return replace(comparison, results=[*comparison.results, result])

    return added(real), added(integer)


def summed_as(summation: str | Reveal) -> Route:
    """The route of detconv with a summation, or with what was revealed of another's."""
    return lambda layer: conv2d(layer.input, layer.weight, layer.bias, padding=layer.padding, summation=summation)


def by_known_orders(layer: Layer) -> list[Array]:
    """The layer's output by each of the known orders."""
    return [summed_as(order.summation)(layer) for order in KNOWN_ORDERS]


def closest_order(known: list[Array], output: Array) -> tuple[KnownOrder, int]:
    """The known order that gives the most elements of an output in all bits, and how many; known: by_known_orders."""
    counts = [equal_elements(other, output) for other in known]
    best = int(np.argmax(counts))
    return KNOWN_ORDERS[best], counts[best]


def equal_elements(a: Array, b: Array) -> int:
    """How many elements of two float32 arrays have the same bits."""
    return int(np.count_nonzero(a.view(np.uint32) == b.view(np.uint32)))


def _timed(name: str, route: Route, layer: Layer) -> Result:
    """The output, and the shortest time of at most 20 runs within a tenth of a second."""
    start = time.perf_counter()
    output = route(layer)
    times = [time.perf_counter() - start]
    with _one_thread():
        while len(times) < 20 and sum(times) < 0.1:
            start = time.perf_counter()
            route(layer)
            times.append(time.perf_counter() - start)
    return Result(name, output, min(times))


@contextmanager
def _one_thread() -> Iterator[None]:
    """torch and detconv on one thread: threads that wait for each other would measure how busy the machine is."""
    libraries: list[Any] = [library for library in (_core, sys.modules.get("torch")) if library is not None]
    before = [library.get_num_threads() for library in libraries]
    for library in libraries:
        library.set_num_threads(1)
    try:
        yield
    finally:
        for library, threads in zip(libraries, before, strict=True):
            library.set_num_threads(threads)


# ---- What is printed ----


def table(comparison: Comparison) -> Iterator[str]:
    """One line a route: distance from torch, elements with the same bits, error against the exact sum, time."""
    torch, forum = comparison.output(TORCH), comparison.output(LOOPS)
    width = max(len(result.name) for result in comparison.results)
    yield comparison.title
    yield ""
    yield f"{'':{width}}  beyond rtol        same bits as           error in ulp"
    yield f"{'':{width}}  {RTOL_TEXT} of torch    torch  loops  exact    largest    mean        time"
    for result in comparison.results:
        output, ulps = result.output, comparison.ulps(result.output)
        beyond = "-" if torch is None else int(comparison.beyond_rtol(output, torch).sum())
        same = ["-" if other is None else equal_elements(output, other) for other in (torch, forum, comparison.nearest)]
        yield (
            f"{result.name:{width}}  {beyond:>13}  "
            + "".join(f"{count:>7}" for count in same)
            + f"  {_figure(ulps.max()):>9} {_figure(ulps.mean()):>7}  {_duration(result.seconds):>10}"
        )


def answer(real: Comparison, integer: Comparison, revealed: Mapping[str, Reveal]) -> Iterator[str]:
    """Rounding error or mistake, why a relative tolerance fails, and the order in which each route adds.

    revealed: what probes found of the routes whose order the catalogue does not know.
    """
    size = real.exact.size
    # A sum of integers is exact in any order; one of real values is as far off as roundings can carry it, or wrong.
    unequal = {r.name: size - equal_elements(r.output, integer.nearest) for r in integer.results}
    outside = {r.name: int((real.share_of_bound(r.output) > 1).sum()) for r in real.results}
    mistaken = [name for name in unequal if unequal[name] or outside[name]]
    yield f"Answer: a mistake in {', '.join(mistaken)}." if mistaken else "Answer: rounding error, and no mistake."
    yield ""
    if not any(unequal.values()):
        yield _point(f"On integers all routes give the same {size} outputs, bit for bit: they add the same products.")
    yield _point(_bound(real))
    for name in mistaken:
        yield _point(
            f"{name}: {unequal[name]} sums of integers are wrong, and {outside[name]} sums of real values are off by "
            "more than the bound. No order of the same products does that."
        )
    torch = real.output(TORCH)
    if torch is not None and not mistaken:
        yield _point(_cancellation(real, torch))

    yield ""
    yield wrapped(
        "How should the additions be ordered? No order is the right one; what counts is that it is written down. "
        f"These summations give all {size} outputs bit for bit:"
    )
    yield ""
    yield from _orders(real, revealed)
    yield ""
    yield wrapped(
        "They are read so: order=kh,kw,c names the loops over the products, outermost first; without it they are "
        "c,kh,kw. A product enters its accumulator by one fused multiply-add, or is rounded first: products=rounded. "
        "The bias comes last. In an order that is spelt out, f7 is product 7 fused, m7 the same rounded first, [...] "
        "an accumulator of its own, then added, and 16x(+25){...} sixteen copies, the numbers rising by 25. "
        "Where a route has several orders, the outputs of each are named before it; detconv.reveal replays all."
    )
    yield ""
    yield wrapped(
        "detconv.conv2d(..., summation=TEXT) gives the bits of such a text on every machine, on any number of threads. "
        'summation="exact" has the least error: each output is the float32 nearest to the exact sum.'
    )


def of_torch(real: Comparison, order: Reveal) -> Iterator[str]:
    """What the probes found of torch, and how many of its outputs have the same bits in that order."""
    torch, replayed = real.output(TORCH), real.output(IN_TORCHS_ORDER)
    key = order.key
    yield wrapped(
        f"And {key['library']} {key['version']} on this machine, as probes find it ({order.calls} calls, "
        f"{order.seconds:.1f} s)? {order.status.capitalize().replace('_', ' ')}: "
        + (_in_words(order) or order.reason)
        + "."
    )
    if torch is None or replayed is None:
        return
    yield ""
    for part in order.orders[:MOST_ORDERS]:
        yield _entry("", 0, _summation(part))
    yield ""
    yield f"Replayed by detconv, {equal_elements(replayed, torch)} of {torch.size} outputs have the bits of torch."


def _bound(real: Comparison) -> str:
    n, allowance = real.layer.terms + 1, real.gamma * real.magnitude
    shares = {result.name: real.share_of_bound(result.output).max() for result in real.results}
    most = max(shares, key=shares.__getitem__)
    return (
        f"A sum of {n - 1} products and a bias that is rounded at every step, in whatever order, is within gamma * S "
        f"of the exact sum: S is the sum of |w*x| and |bias|, gamma = {n}u / (1 - {n}u) = {real.gamma:.2e}, u = 2^-24 "
        f"(Higham 2002, sections 3.1 and 4.2). For the real values that is {allowance.min():.1e} to "
        f"{allowance.max():.1e}. The largest part of it that any element of any route uses is "
        f"{100 * shares[most]:.2g}% ({most})."
    )


def _cancellation(real: Comparison, torch: Array) -> str:
    beyond = np.any([real.beyond_rtol(result.output, torch) for result in real.results], axis=0)
    if not beyond.any():
        return f"All elements of all routes are within rtol {RTOL_TEXT} of torch."
    ratio = (real.magnitude / np.abs(real.exact))[beyond].min()
    return (
        f"The {beyond.sum()} elements that are beyond rtol {RTOL_TEXT} of torch in some route are sums that nearly "
        f"cancel: S is at least {ratio:.0f} times |y|. Rounding errors go with S, a relative tolerance goes with |y|. "
        f"The tolerance for two routes is atol = 2 * gamma * S."
    )


def _orders(real: Comparison, revealed: Mapping[str, Reveal]) -> Iterator[str]:
    """The summation, or the summations, of each route that is not detconv's; or why none is known."""
    routes = [result for result in real.results if not result.name.startswith("detconv")]
    width = max(len(result.name) for result in routes)
    for result in routes:
        known, equal = closest_order(real.known, result.output)
        found = revealed.get(result.name)
        if equal == result.output.size:
            entries = [known.summation]
        elif found is not None and gives_all_bits(found, real.layer, result.output):
            entries = list(_revealed(found))
        else:
            entries = list(_not_known(result.output, known, equal, found))
        for number, entry in enumerate(entries):
            yield _entry("" if number else result.name, width, entry)


def gives_all_bits(found: Reveal, layer: Layer, output: Array) -> bool:
    """Whether detconv, replaying what was revealed, gives an output of the layer in all bits."""
    return found.status == "exact" and equal_elements(summed_as(found)(layer), output) == output.size


def _revealed(found: Reveal) -> Iterator[str]:
    """One text an order, with the outputs that it is of where there are several."""
    orders = found.orders
    for part in orders[:MOST_ORDERS]:
        if len(orders) > 1:
            yield f"{part.outputs} outputs{part.where and f', {part.where}'}:"
        yield _summation(part)
    if more := orders[MOST_ORDERS:]:
        yield f"and {len(more)} more, of {sum(part.outputs for part in more)} outputs"


def _not_known(output: Array, known: KnownOrder, equal: int, found: Reveal | None) -> Iterator[str]:
    """Why a route's order is not known; known, equal: the order of the catalogue that gives the most outputs."""
    yield f"none of the {len(KNOWN_ORDERS)} known orders" + (":" if 2 * equal > output.size else "")
    if 2 * equal > output.size:  # more than luck
        yield f"{equal} outputs, but not all, by {known.summation}"
    if found is not None and found.status == "exact":
        yield "what the probes found gives other bits: this route does not always add in one order"
    elif found is not None:
        yield f"not found by probes either: {STATUSES[found.status]}; here, {found.reason}"


def _summation(part: RevealedOrder) -> str:
    """The text of an order's summation, as short as it can be said, and cut where it is very long."""
    text = part.name if part.name != part.text else str(part.summation)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}... ({len(text)} characters)"


def _in_words(order: Reveal) -> str:
    said = [f"{part.words} ({part.outputs} outputs)" for part in order.orders[:MOST_ORDERS]]
    if more := order.orders[MOST_ORDERS:]:
        said.append(f"{len(more)} more ({sum(part.outputs for part in more)} outputs)")
    return "; ".join(said)


def _entry(name: str, width: int, text: str) -> str:
    """A name and what is said of it, in two columns."""
    margin = f"  {name:{width}}  " if width else "  "
    return textwrap.fill(
        text, WIDTH, initial_indent=margin, subsequent_indent=" " * len(margin), break_on_hyphens=False
    )


def _point(text: str) -> str:
    return textwrap.fill(text, WIDTH, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False)


def _figure(ulps: float) -> str:
    return f"{ulps:.2f}" if ulps < 100 else f"{ulps:.0f}"


def _duration(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.2f} ms"


# ---- The picture ----

COLORS = {LOOPS: VERMILION, "NumPy": ORANGE, TORCH: BLUE, "detconv": GREEN}


def _picture_path(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise argparse.ArgumentTypeError(f"must end in .png, .svg or .pdf; got {quoted(text)}")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"must be in a directory that exists; got {quoted(text)}")
    return path


def _draw(real: Comparison, path: Path) -> str:
    """Draw the picture, and say where it is or what is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return "Left out: the picture. pip install matplotlib brings it."
    draw(real, path)
    return f"Picture: {path}"


def draw(real: Comparison, path: Path) -> None:
    """Every element's error, by route and against the cancellation in its sum. Needs matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 7.6), dpi=150)
    most = max(real.share_of_bound(result.output).max() for result in real.results)
    verdict = "Rounding error" if most <= 1 else "A mistake"
    figure.text(0.02, 0.935, "Conv2d against a NumPy reference: rounding error or mistake?", fontsize=20, color=INK)
    figure.text(
        0.02,
        0.893,
        f"{verdict}. {real.layer.terms} products and a bias, rounded at every step, may be off by the bound; "
        f"no element uses more than {100 * most:.2g}% of it.",
        fontsize=12.5,
        color=GREY,
    )
    _draw_by_route(figure.add_axes((0.213, 0.095, 0.385, 0.71)), real)
    _draw_by_cancellation(figure.add_axes((0.68, 0.095, 0.3, 0.71)), real)
    figure.savefig(path)


def _draw_by_route(axes: Axes, real: Comparison) -> None:
    """One histogram a route of the errors of all elements, in ulp, on a logarithmic axis."""
    edges = 0.5 * 2 ** (np.arange(-34, 106) / 6)  # 0.5 is one of them: no error of "exact" is larger
    histograms = [np.histogram(real.ulps(result.output), edges)[0] for result in real.results]
    height = 1.6 / max(histogram.max() for histogram in histograms)
    for row, (result, histogram) in enumerate(zip(real.results, histograms, strict=True)):
        ulps, color = real.ulps(result.output), _color(result.name)
        top = height * histogram - row
        axes.stairs(top, edges, baseline=-row, fill=True, color=color, zorder=2 * row)
        axes.stairs(top, edges, baseline=None, color="white", linewidth=0.8, zorder=2 * row + 1)
        axes.plot(edges[[0, -1]], [-row, -row], color=color, linewidth=0.9, zorder=2 * row + 1)
        axes.plot(ulps.max(), -row + 0.09, "o", markersize=4, color=color, zorder=200)
    axes.axvline(0.5, ymax=0.955, color=INK, linewidth=0.9, linestyle=(0, (4, 3)), zorder=100)
    axes.text(0.5, 1.12, "½ ulp: the nearest float32", ha="center", fontsize=10, color=GREY)
    axes.text(edges[-1], 1.12, "dots: the largest error", ha="right", fontsize=10, color=GREY)
    axes.set(xscale="log", xlim=edges[[0, -1]], ylim=(-len(real.results) + 0.85, 1.5))
    axes.set_yticks(-np.arange(len(real.results)) + 0.16, [result.name for result in real.results], fontsize=11)
    axes.set_xlabel("distance from the exact sum, in units in the last place (ulp)", fontsize=11, color=INK)
    axes.set_title(f"All {real.exact.size} outputs, by route", loc="left", fontsize=13, color=INK, pad=12)
    plain(axes)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _draw_by_cancellation(axes: Axes, real: Comparison) -> None:
    """Relative error of each element against how far its sum cancels, with the bound and the usual tolerance."""
    low, high, bottom, top = 1e-6, 1.0, 3e-12, 1e2
    survives = np.abs(real.exact) / real.magnitude
    for name in (LOOPS, TORCH, "NumPy tensordot", "detconv exact"):
        output = real.output(name)
        if output is None or (name == "NumPy tensordot" and real.output(TORCH) is not None):
            continue
        relative = real.error(output) / np.abs(real.exact)
        axes.scatter(survives, relative, s=5, color=_color(name), alpha=0.4, linewidths=0, label=name, rasterized=True)
    ends = np.array([low, high])
    axes.plot(ends, real.gamma / ends, color=INK, linewidth=1.4)
    axes.text(8e-4, 1.3 * real.gamma / 8e-4, "the bound, for any order", fontsize=10.5, color=INK)
    axes.axhline(RTOL, color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
    axes.text(1.2 * low, 1.25 * RTOL, f"rtol {RTOL_TEXT}", fontsize=10.5, color=INK)
    legend = axes.legend(loc="lower left", frameon=False, fontsize=11, handletextpad=0.2, markerscale=3, labelcolor=INK)
    for handle in legend.legend_handles:
        if handle is not None:
            handle.set_alpha(1)
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(bottom, top))
    axes.set_xlabel("what is left of a sum when its products cancel: |y| / S", fontsize=11, color=INK)
    axes.set_ylabel("relative error", fontsize=11, color=INK)
    axes.set_title("Why a relative tolerance fails", loc="left", fontsize=13, color=INK, pad=12)
    plain(axes)


def _color(name: str) -> str:
    return next(color for family, color in COLORS.items() if name.startswith(family))
