"""``detconv demo``: the forum's question, answered with bits.

"PyTorch Conv2d vs NumPy reference; different outcomes. Rounding error or mistake?" (discuss.pytorch.org, topic 8921.)
The demo computes that layer by the question's own loops, by NumPy, by torch and by detconv, measures every output
against the exact sum, and finds the order in which each of them adds.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np

from detconv import _core
from detconv.catalogue import KNOWN_ORDERS, KnownOrder
from detconv.functional import conv2d
from detconv.routes import NUMPY, Array, Layer, Route, loops, torch_routes

WIDTH = 98
RTOL = 1e-4  # the tolerance with which the question compares
LOOPS, TORCH, TORCHS_ORDER = "the forum's loops", "torch", "detconv in torch's order"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the demo to a parser."""
    picture = parser.add_mutually_exclusive_group()
    picture.add_argument(
        "--output",
        type=_picture,
        default=Path("detconv-demo.png"),
        metavar="PATH",
        help="where the picture goes: .png, .svg or .pdf (default: %(default)s)",
    )
    picture.add_argument("--no-plot", action="store_true", help="draw no picture")


def run(namespace: argparse.Namespace) -> int:
    """Print the tables and the answer, draw the picture, and return 0."""
    torch, missing = _torch_routes()
    print("\n".join(_heading()))
    with _progress() as say:
        real = measured("Real values, standard normal", real_layer(), torch, say)
        integer = measured("Integers from -10 to 10, whose sums are exact in float32", integer_layer(), torch, say)
    for comparison in (real, integer):
        print("\n" + "\n".join(table(comparison)))
    print("\n" + "\n".join(answer(real, integer)))
    if missing:
        print("\n" + _wrapped(f"Left out: the rows and columns of torch ({missing}). pip install torch brings them."))
    if not namespace.no_plot:
        print("\n" + _draw(real, namespace.output))
    return 0


def _torch_routes() -> tuple[dict[str, Route], str]:
    """The routes through torch, and why there are none."""
    try:
        return torch_routes(), ""
    except ImportError as error:
        return {}, str(error)


def _heading() -> Iterator[str]:
    info = _core.build_info()
    beside = [f"{package} {_version(package)}" for package in ("numpy", "torch")]
    yield f"detconv {_core.__version__} ({info['instruction_set']}, threads: {info['num_threads']}); {', '.join(beside)}"
    yield ""
    yield '"PyTorch Conv2d vs NumPy reference; different outcomes. Rounding error or mistake?"'
    yield ""
    yield "The layer of the question: input 1 x 16 x 28 x 28, weight 8 x 16 x 5 x 5, padding 2, float32."
    yield "6272 outputs, each the sum of 400 products and a bias."


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


# ---- What is computed ----


def real_layer() -> Layer:
    draw = np.random.default_rng(99).standard_normal
    image, weight, bias = (draw(shape, np.float32) for shape in ((1, 16, 28, 28), (8, 16, 5, 5), (8,)))
    return Layer(image, weight, bias, padding=2)


def integer_layer() -> Layer:
    draw = np.random.default_rng(99).integers
    image, weight, bias = (
        draw(-10, 11, shape).astype(np.float32) for shape in ((1, 16, 28, 28), (8, 16, 5, 5), (8,))
    )
    return Layer(image, weight, bias, padding=2)


@dataclass(frozen=True)
class Result:
    """What one route gave."""

    name: str
    output: Array
    seconds: float


@dataclass(frozen=True)
class Comparison:
    """One layer, by every route, and what is known of its exact sums. All arrays are of the output's shape."""

    title: str
    layer: Layer
    results: list[Result]
    exact: Array  # float64: the exact sums, each off by at most 2^-53 of itself
    nearest: Array  # float32: the exact sums rounded once, by method "exact"
    magnitude: Array  # float64: S, the sum of abs(w*x) and abs(bias)

    @property
    def gamma(self) -> float:
        """gamma_n = n*u / (1 - n*u): n roundings to float32 change a product by at most this, relatively.

        In a sum of K products and a bias, in any order and tree, a product meets at most n = K + 1 roundings: its own
        and K additions. So every such sum is within gamma_n * S of the exact one. N. J. Higham, Accuracy and Stability
        of Numerical Algorithms, 2nd edition, SIAM 2002, sections 3.1 and 4.2.
        """
        n_u = (self.layer.terms + 1) * 2.0**-24
        return n_u / (1 - n_u)

    def error(self, output: Array) -> Array:
        return np.abs(output - self.exact)

    def ulps(self, output: Array) -> Array:
        """The error in units in the last place of the nearest float32."""
        return self.error(output) / np.spacing(np.abs(self.nearest))

    def share_of_bound(self, output: Array) -> Array:
        """The error as a fraction of the largest that roundings can cause; beyond 1 it is a mistake."""
        return self.error(output) / (self.gamma * self.magnitude)

    def beyond_rtol(self, output: Array, expected: Array) -> Array:
        return np.abs(output - expected) > RTOL * np.abs(expected)

    def by_name(self, name: str) -> Array | None:
        return next((result.output for result in self.results if result.name == name), None)


def measured(title: str, layer: Layer, torch: dict[str, Route], say: Callable[[str], None]) -> Comparison:
    """Run every route on the layer; `say` is told which."""
    outside = {LOOPS: loops, **NUMPY, **torch}
    summations = {f"detconv {method}": method for method in _core.methods()}
    summations["detconv naive products=rounded"] = "naive products=rounded"

    results = []
    for name, route in outside.items():
        say(f"{title}: {name}")
        results.append(_timed(name, route, layer))
    if torch:
        order, equal = closest_order(layer, next(r.output for r in results if r.name == TORCH))
        if equal == results[0].output.size:
            summations[TORCHS_ORDER] = order.summation
    for name, summation in summations.items():
        results.append(_timed(name, _detconv(summation), layer))

    wide = Layer(*(array.astype(np.float64) for array in layer[:3]), padding=layer.padding)
    exact = _detconv("exact")
    magnitude = exact(Layer(*map(np.abs, wide[:3]), padding=layer.padding))
    return Comparison(title, layer, results, exact(wide), exact(layer), magnitude)


def _detconv(summation: str) -> Route:
    return lambda layer: conv2d(layer.input, layer.weight, layer.bias, padding=layer.padding, summation=summation)


def _timed(name: str, route: Route, layer: Layer) -> Result:
    """The output, and the shortest time of up to 20 runs in a tenth of a second."""
    times: list[float] = []
    while len(times) < 20 and sum(times) < 0.1:
        start = time.perf_counter()
        output = route(layer)
        times.append(time.perf_counter() - start)
    return Result(name, output, min(times))


def closest_order(layer: Layer, output: Array) -> tuple[KnownOrder, int]:
    """The order of the catalogue that gives the most elements of an output in all bits, and how many."""
    counts = [_equal(_detconv(order.summation)(layer), output) for order in KNOWN_ORDERS]
    best = int(np.argmax(counts))
    return KNOWN_ORDERS[best], counts[best]


def _equal(a: Array, b: Array) -> int:
    """How many elements of two float32 arrays have the same bits."""
    return int(np.count_nonzero(a.view(np.uint32) == b.view(np.uint32)))


# ---- What is printed ----


def table(comparison: Comparison) -> Iterator[str]:
    """One line a route: distance from torch, elements with the same bits, error against the exact sum, time."""
    torch, forum = comparison.by_name(TORCH), comparison.by_name(LOOPS)
    name_width = max(len(result.name) for result in comparison.results)
    yield comparison.title
    yield ""
    yield f"{'':{name_width}}  beyond rtol    same bits as             error in ulp"
    yield f"{'':{name_width}}  {RTOL:.0e} of torch    torch  loops  exact     largest   mean        time"
    for result in comparison.results:
        output, ulps = result.output, comparison.ulps(result.output)
        beyond = "-" if torch is None else int(comparison.beyond_rtol(output, torch).sum())
        same = ["-" if other is None else _equal(output, other) for other in (torch, forum, comparison.nearest)]
        columns = "".join(f"{count:>7}" for count in same)
        yield (
            f"{result.name:{name_width}}  {beyond:>11}  {columns}  {ulps.max():>10.2f} {ulps.mean():>6.2f}  "
            f"{_duration(result.seconds):>10}"
        )


def answer(real: Comparison, integer: Comparison) -> Iterator[str]:
    """Paragraphs: rounding error or mistake, why a relative tolerance fails, and which order each route adds in."""
    size, terms = real.exact.size, real.layer.terms
    mistaken = [result for result in real.results if real.share_of_bound(result.output).max() > 1]
    unequal = [result for result in integer.results if _equal(result.output, integer.nearest) < size]
    if mistaken or unequal:
        names = dict.fromkeys(result.name for result in mistaken + unequal)
        yield f"Answer: a mistake, in {', '.join(names)}."
    else:
        yield "Answer: rounding error, and no mistake."
    yield ""

    if unequal:
        worst = ", ".join(f"{result.name} ({size - _equal(result.output, integer.nearest)})" for result in unequal)
        yield _point(f"The sums of integers are exact, and still some elements differ: {worst}.")
    else:
        yield _point(f"On integers all routes give the same {size} outputs, bit for bit: they add the same products.")

    shares = {result.name: real.share_of_bound(result.output).max() for result in real.results}
    most = max(shares, key=shares.__getitem__)
    yield _point(
        f"A sum of {terms} products and a bias that is rounded at every step, in whatever order, is within gamma * S of "
        f"the exact sum: S is the sum of |w*x| and |bias|, and gamma = {terms + 1}u / (1 - {terms + 1}u) = {real.gamma:.2e} "
        "with u = 2^-24 (Higham 2002, sections 3.1 and 4.2). On the real values here that allows an error of "
        f"{real.gamma * real.magnitude.min():.1e} to {real.gamma * real.magnitude.max():.1e}. "
        f"The most that any element of any route has of its allowance is {100 * shares[most]:.2g}% ({most})."
    )
    for result in mistaken:
        outside = int((real.share_of_bound(result.output) > 1).sum())
        yield _point(f"{result.name}: {outside} elements are further off than that. No order of the additions does this.")

    expected = real.by_name(TORCH)
    if expected is not None:
        beyond = np.any([real.beyond_rtol(result.output, expected) for result in real.results], axis=0)
        if beyond.any():
            ratio = (real.magnitude / np.abs(real.exact))[beyond].min()
            yield _point(
                f"The elements beyond rtol {RTOL:.0e} of torch ({beyond.sum()} of {size}, over all routes) are sums that "
                f"nearly cancel: S is at least {ratio:.0f} times |y|. Rounding errors go with S, a relative tolerance "
                f"with |y|. What to compare with is atol = {real.gamma:.1e} * S."
            )

    yield ""
    yield "How should the additions be ordered? No order is the right one; what counts is that it is written down."
    yield f"These summations give all {size} outputs bit for bit:"
    yield ""
    yield from _orders(real)
    yield ""
    yield _wrapped(
        "detconv.conv2d(..., summation=TEXT) gives the bits of such a text on every machine, with any number of threads. "
        'The least error is that of summation="exact": each output is the float32 nearest to the exact sum.'
    )


def _orders(real: Comparison) -> Iterator[str]:
    """The summation of each route that is not detconv's, or the closest one that is known."""
    others = [result for result in real.results if not result.name.startswith("detconv")]
    width = max(len(result.name) for result in others)
    for result in others:
        order, equal = closest_order(real.layer, result.output)
        if equal == result.output.size:
            yield f"  {result.name:{width}}  {order.summation}"
        else:
            yield f"  {result.name:{width}}  none of the {len(KNOWN_ORDERS)} known; {equal} outputs are those of"
            yield f"  {'':{width}}  {order.summation}"


def _point(text: str) -> str:
    return textwrap.fill(text, WIDTH, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False)


def _wrapped(text: str) -> str:
    return textwrap.fill(text, WIDTH, break_on_hyphens=False)


def _duration(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.2f} ms"


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """A line on a terminal that says what is being computed, and goes away."""
    show = sys.stderr.isatty()

    def say(text: str) -> None:
        if show:
            print(f"\r{text[:WIDTH]:{WIDTH}}", end="\r", file=sys.stderr, flush=True)

    try:
        yield say
    finally:
        say("")


# ---- The picture ----


def _picture(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise argparse.ArgumentTypeError(f"must end in .png, .svg or .pdf; got {text!r}")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"must be in a directory that exists; got {text!r}")
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
    """Every element's error, by route, and why a relative tolerance fails. Needs matplotlib."""
