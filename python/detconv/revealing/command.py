"""``detconv reveal``: the order of a library's convolution, or of a function of your own."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from detconv import options
from detconv.quoting import first_line, quoted, shortened
from detconv.revealing import Reveal, black_boxes, identify, reveal
from detconv.revealing.box import KINDS, LAYOUTS
from detconv.revealing.passes import DTYPES, PASSES

DESCRIPTION = (
    "Find the order in which a convolution adds its products, replay it, and compare all bits. Exit status: 0 if the "
    "order is exact for all outputs, 1 if not, 2 for bad use."
)
_LONGEST_MESSAGE = 800  # characters
ALIASES = {"numpy": "numpy-tensordot", "scipy": "scipy-correlate"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``detconv reveal`` to a parser; the defaults are the forum's layer."""
    routes = ", ".join([*ALIASES, *black_boxes.ROUTES])
    parser.add_argument(
        "function",
        help=f"a library's convolution: {routes}; or MODULE:FUNCTION, which takes (input, weight, bias) and has "
        "stride, padding, dilation and groups built in",
    )
    options.add_shape(parser, "input", "N,C,H,W", "--shape", default=(1, 16, 28, 28), help="default: 1,16,28,28")
    options.add_shape(parser, "weight", "O,C/G,KH,KW", "--weight", default=(8, 16, 5, 5), help="default: 8,16,5,5")
    parser.add_argument("--no-bias", action="store_true", help="without a bias")
    options.add_geometry(parser)
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help="default: %(default)s")
    options.add_pass(parser, PASSES)
    parser.add_argument("--arrays", choices=KINDS, help="what MODULE:FUNCTION takes (default: numpy)")
    parser.add_argument("--layout", choices=LAYOUTS, default=LAYOUTS[0], help="default: %(default)s")
    parser.add_argument("--no-onednn", action="store_true", help="torch without oneDNN")
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--budget", type=float, default=30.0, metavar="SECONDS", help="default: %(default)g")
    parser.add_argument("--probe", action="store_true", help="do not try the orders of the catalogue first")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument(
        "--save", type=options.new_file, metavar="PATH", help="write the orders as JSON, for detconv.Reveal.load"
    )
    parser.add_argument(
        "--plot", type=options.picture, metavar="PATH", help="draw the tree of the first order: .png, .svg or .pdf"
    )


def run(namespace: argparse.Namespace) -> int:
    """Reveal, print, and return the exit status. What was found is printed before anything is written."""
    try:
        if namespace.plot:
            import_module("matplotlib")  # before the search, which may take long
        found = _found(namespace)
    except ImportError as error:
        return _refused(f"{error} (pip install {error.name})" if error.name == "matplotlib" else error)
    except (ValueError, TypeError, RuntimeError, OSError, MemoryError) as error:
        return _refused(error)
    print(json.dumps(found.to_dict(), indent=1) if namespace.json else found.explain())
    try:
        if namespace.save:
            found.save(namespace.save)
        if namespace.plot:
            _draw(found, namespace.plot)
    except OSError as error:
        return _refused(error)
    return 0 if found.status == "exact" else 1


def _draw(found: Reveal, path: Path) -> None:
    """The picture of the first order, or a line that says why there is none: what was found is worth more."""
    try:
        if not found.orders:
            raise ValueError("there is no order to draw")
        found.plot().savefig(path)
    except ValueError as error:
        print(f"detconv reveal: no picture: {error}", file=sys.stderr)


def _refused(error: object) -> int:
    """Say in one line what is wrong; the exit status of bad use."""
    said = shortened(" ".join(str(error).split()) or type(error).__name__, _LONGEST_MESSAGE)
    print(f"detconv reveal: {said}", file=sys.stderr)
    return 2


def _found(namespace: argparse.Namespace) -> Reveal:
    arguments: dict[str, Any] = {
        "input_shape": namespace.input_shape,
        "weight_shape": namespace.weight_shape,
        "bias": not namespace.no_bias,
        "stride": namespace.stride,
        "padding": namespace.padding,
        "dilation": namespace.dilation,
        "groups": namespace.groups,
        "transposed": namespace.transposed,
        "output_padding": namespace.output_padding,
        "dtype": namespace.dtype,
    }
    more: dict[str, Any] = {"pass_": namespace.pass_, "layout": namespace.layout, "budget_s": namespace.budget}
    if ":" in namespace.function:
        fn, more["arrays"] = _imported(namespace.function), namespace.arrays
    else:
        route = ALIASES.get(namespace.function, namespace.function)
        box = black_boxes.make(route, arguments, onednn=not namespace.no_onednn)
        fn, more["arrays"], more["library"] = box.fn, box.arrays, box.library
        if namespace.pass_ != "forward":
            if route != "torch":
                raise ValueError(f"--pass {namespace.pass_}: of torch or of MODULE:FUNCTION only")
            more["differentiate"] = True
        if route == "torch" and namespace.threads:
            import_module("torch").set_num_threads(namespace.threads)
    return (reveal if namespace.probe else identify)(fn, **arguments, **more)


def _imported(text: str) -> Callable[..., Any]:
    """What MODULE:FUNCTION names; modules are looked for in the current directory too, as ``python -m`` does."""
    module, _, names = text.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found: Any = import_module(module)
    except Exception as error:  # whatever the caller's own code raises
        kind = type(error).__name__
        raise ValueError(f"function: {quoted(module)} cannot be imported: {kind}: {first_line(error)}") from error
    for name in names.split("."):
        if not hasattr(found, name):
            raise ValueError(f"function: {shortened(module)} has no {quoted(names)}")
        found = getattr(found, name)
    return found  # type: ignore[no-any-return]
