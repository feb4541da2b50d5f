"""``detconv judge``: the verdict on an output that lies in a file."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from detconv.console import wrapped
from detconv.quoting import quoted
from detconv.verdict import files
from detconv.verdict.bounds import CONFIDENCE, FORMATS, Claim
from detconv.verdict.judge import Verdict, judge, judge_bias_gradient, judge_input_gradient, judge_weight_gradient
from detconv.verdict.record import record

HELP = "Is an output of a convolution off by rounding or by a mistake?"

DESCRIPTION = (
    "Judge an output of conv2d, or a gradient, against the true sums. Files are .npy, .npz, .pt or .safetensors; "
    "FILE:KEY names one array of several. Exit status: 0 for roundings, 1 for a mistake or an output that is unlikely, "
    "2 for bad use."
)

# The files that each pass is judged from; those in brackets may be missing.
_FILES = {
    "output": ("input", "weight", "[bias]"),
    "input": ("weight", "grad_output"),
    "weight": ("input", "grad_output"),
    "bias": ("grad_output",),
}
_ROLES = {
    "output": "the output in question; with --pass, the gradient in question",
    "input": "the input, (N, C, H, W) or (C, H, W)",
    "weight": "the weight, (O, C / groups, KH, KW)",
    "bias": "the bias, (O,)",
    "grad_output": "with --pass: the gradient of the output",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``detconv judge`` to a parser."""
    for name, role in _ROLES.items():
        parser.add_argument(_option(name), metavar="FILE", required=name == "output", help=role)
    parser.add_argument("--stride", type=_pair, default=1, metavar="N[,N]", help="default: %(default)s")
    parser.add_argument("--padding", type=_padding, default=0, metavar="N[,N]|same|valid", help="default: %(default)s")
    parser.add_argument("--dilation", type=_pair, default=1, metavar="N[,N]", help="default: %(default)s")
    parser.add_argument("--groups", type=int, default=1, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--pass",
        dest="of",
        choices=_FILES,
        default="output",
        help="judge the output (the default), or the gradient by the input, by the weight or by the bias",
    )
    parser.add_argument("--transposed", action="store_true", help="the output is one of a transposed convolution")
    parser.add_argument(
        "--output-padding", type=_pair, default=0, metavar="N[,N]", help="with --transposed (default: %(default)s)"
    )
    parser.add_argument("--allow-unlikely", action="store_true", help="exit with 0 for an unlikely output, too")
    parser.add_argument(
        "--dtype",
        type=_claim,
        metavar="[PRODUCTS/]ACCUMULATOR",
        help="the arithmetic that is claimed: in which format the terms are added, and, where operands are rounded "
        f"first, to which; {', '.join(FORMATS)} (default: float64 for operands of float64, else float32)",
    )
    parser.add_argument(
        "--confidence", type=float, default=CONFIDENCE, metavar="P", help="of the probable bound (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of the text")
    parser.add_argument("--html", type=_page_path, metavar="PAGE", help="write the verdict as a page, too")


def run(namespace: argparse.Namespace) -> int:
    """Print the verdict and return the exit status."""
    try:
        verdict = _judge(namespace)
        if namespace.html is not None:
            verdict.to_html(namespace.html)
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"detconv judge: error: {_in_options(str(error))}", file=sys.stderr)
        return 2
    if namespace.json:
        print(json.dumps(record(verdict), allow_nan=False))
    else:
        print(wrapped(verdict.explain()))
        if namespace.html is not None:
            print(f"\nPage: {namespace.html}")
    return int(verdict.status == "mistake" or (verdict.status == "unlikely" and not namespace.allow_unlikely))


def _judge(namespace: argparse.Namespace) -> Verdict:
    given = _read(namespace)
    geometry = namespace.stride, namespace.padding, namespace.dilation, namespace.groups
    options: dict[str, Any] = {"dtype": namespace.dtype, "confidence": namespace.confidence}
    candidate = given["output"]
    if namespace.of != "output" and (namespace.transposed or namespace.output_padding != 0):
        raise ValueError(f"--transposed and --output-padding play no part for --pass {namespace.of}")
    match namespace.of:
        case "bias":
            if geometry != (1, 0, 1, 1):
                raise ValueError("--stride, --padding, --dilation and --groups play no part for --pass bias")
            return judge_bias_gradient(candidate, given["grad_output"], **options)
        case "input":  # a gradient has the shape of what it is the gradient by
            arrays = given["weight"], given["grad_output"]
            return judge_input_gradient(candidate, tuple(candidate.shape), *arrays, *geometry, **options)
        case "weight":
            size = tuple(candidate.shape)
            return judge_weight_gradient(candidate, given["input"], size, given["grad_output"], *geometry, **options)
    options |= {"transposed": namespace.transposed, "output_padding": namespace.output_padding}
    return judge(candidate, given["input"], given["weight"], given.get("bias"), *geometry, **options)


def _read(namespace: argparse.Namespace) -> dict[str, Any]:
    """The arrays that the pass needs, by name.

    Raises:
        ValueError: one is missing, or given though the pass has none.
        OSError, ImportError: a file cannot be read.
    """
    needed = [name for name in _FILES[namespace.of] if not name.startswith("[")]
    valid = ["output", *(name.strip("[]") for name in _FILES[namespace.of])]
    for name in _ROLES:
        given = getattr(namespace, name) is not None
        if name in needed and not given:
            raise ValueError(f"{_option(name)} is needed for --pass {namespace.of}")
        if given and name not in valid:
            raise ValueError(
                f"{_option(name)} plays no part for --pass {namespace.of}, which has {', '.join(map(_option, valid))}"
            )
    return {name: files.read(getattr(namespace, name)) for name in valid if getattr(namespace, name) is not None}


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _in_options(message: str) -> str:
    """A message about an argument of the function as one about the option it comes from."""
    name, space, rest = message.partition(" ")
    name = "output" if name == "candidate" else name
    return (
        _option(name) + space + rest
        if name in {*_ROLES, "stride", "padding", "dilation", "groups", "output_padding"}
        else message
    )


def _pair(text: str) -> int | tuple[int, int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) == 1:
        return numbers[0]
    if len(numbers) == 2:
        return numbers[0], numbers[1]
    raise argparse.ArgumentTypeError(f"must be one whole number, or two with a comma between them; got {quoted(text)}")


def _claim(text: str) -> str:
    try:
        return str(Claim.parse(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("dtype ")) from None


def _padding(text: str) -> int | tuple[int, int] | str:
    return text if text in ("same", "valid") else _pair(text)


def _page_path(text: str) -> Path:
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"must be a file in a directory that exists; got {quoted(text)}")
    return path
