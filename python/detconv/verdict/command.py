"""``detconv judge`` and ``detconv diagnose``: the verdict on an output that lies in a file."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from typing import Any

from detconv import options
from detconv.console import wrapped
from detconv.verdict import files
from detconv.verdict.bounds import CONFIDENCE, FORMATS, Claim
from detconv.verdict.diagnose import Diagnosis, diagnose
from detconv.verdict.judge import (
    Verdict,
    WrongShape,
    forward_problem,
    judge,
    judge_bias_gradient,
    judge_input_gradient,
    judge_weight_gradient,
)
from detconv.verdict.record import record

HELP = "Is an output of a convolution off by rounding or by a mistake?"
HELP_DIAGNOSE = "Which mistake does an output of a convolution have in it?"

_FILES_TEXT = "Files are .npy, .npz, .pt or .safetensors; FILE:KEY names one array of several. "
DESCRIPTION = (
    f"Judge an output of conv2d, or a gradient, against the true sums. {_FILES_TEXT}"
    "Exit status: 0 for roundings, 1 for a mistake or an output that is unlikely, 2 for bad use."
)
DESCRIPTION_DIAGNOSE = (
    f"Say which mistake an output of conv2d, or a gradient, has in it; it may have another shape than it should. "
    f"{_FILES_TEXT}Exit status: 0 if there is nothing to diagnose, 1 if there is, 2 for bad use."
)

# The files that each pass is judged from; those in brackets may be missing.
_FILES = {
    "forward": ("input", "weight", "[bias]"),
    "input_gradient": ("weight", "grad_output"),
    "weight_gradient": ("input", "grad_output"),
    "bias_gradient": ("grad_output",),
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
    _add_problem(parser)
    parser.add_argument("--allow-unlikely", action="store_true", help="exit with 0 for an unlikely output, too")
    parser.add_argument(
        "--confidence", type=float, default=CONFIDENCE, metavar="P", help="of the probable bound (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of the text")
    parser.add_argument("--html", type=options.new_file, metavar="PAGE", help="write the verdict as a page, too")


def add_arguments_of_diagnose(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``detconv diagnose`` to a parser."""
    _add_problem(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of the text")


def _add_problem(parser: argparse.ArgumentParser) -> None:
    """What was to be computed, and from what."""
    for name, role in _ROLES.items():
        parser.add_argument(_option(name), metavar="FILE", required=name == "output", help=role)
    options.add_pass(parser, options.PASSES)
    options.add_geometry(parser)
    of_gradient = "with --pass {}: the shape that the gradient should have (default: the one that it has)"
    options.add_shape(parser, "input", "N,C,H,W", help=of_gradient.format("input_gradient"))
    options.add_shape(parser, "weight", "O,C/G,KH,KW", help=of_gradient.format("weight_gradient"))
    parser.add_argument(
        "--dtype",
        type=_claim,
        metavar="[PRODUCTS/]ACCUMULATOR",
        help="the arithmetic that is claimed: in which format the terms are added, and, where operands are rounded "
        f"first, to which; {', '.join(FORMATS)} (default: float64 for operands of float64, else float32)",
    )


def run(namespace: argparse.Namespace) -> int:
    """Print the verdict and return the exit status."""
    try:
        found = _judged(namespace, confidence=namespace.confidence)
        if isinstance(found, Verdict) and namespace.html is not None:
            found.to_html(namespace.html)
    except (ValueError, TypeError, OSError, ImportError) as error:
        return _refused("judge", error)
    if isinstance(found, Misshapen):
        print(json.dumps(found.to_dict()) if namespace.json else wrapped(str(found)))
        return 1
    if namespace.json:
        print(json.dumps(record(found), allow_nan=False))
    else:
        print(wrapped(found.explain()))
        if namespace.html is not None:
            print(f"\nPage: {namespace.html}")
    return int(found.status == "mistake" or (found.status == "unlikely" and not namespace.allow_unlikely))


def run_diagnose(namespace: argparse.Namespace) -> int:
    """Print the diagnosis and return the exit status."""
    try:
        found = _judged(namespace)
        diagnosis = found.diagnosis
    except (ValueError, TypeError, OSError, ImportError) as error:
        return _refused("diagnose", error)
    print(json.dumps(diagnosis.to_dict()) if namespace.json else wrapped(str(diagnosis)))
    return int(isinstance(found, Misshapen) or bool(diagnosis) or found.status in ("unlikely", "mistake"))


def _refused(command: str, error: Exception) -> int:
    print(f"detconv {command}: error: {_in_options(str(error))}", file=sys.stderr)
    return 2


@dataclass(frozen=True)
class Misshapen:
    """An output that cannot be judged element by element: it has another shape than it should."""

    what: str
    shape: tuple[int, ...]
    expected: tuple[int, ...]
    diagnosis: Diagnosis

    def __str__(self) -> str:
        return f"Mistake: the {self.what} has shape {self.shape}; it should have {self.expected}.\n\n{self.diagnosis}"

    def to_dict(self) -> dict[str, Any]:
        return {
            "version": 1,
            "status": "mistake",
            "shape": list(self.shape),
            "expected_shape": list(self.expected),
            "diagnosis": str(self.diagnosis),
            "explanation": str(self),
        }


def _judged(namespace: argparse.Namespace, **more: Any) -> Verdict | Misshapen:
    given = _read(namespace)
    geometry: tuple[Any, ...] = namespace.stride, namespace.padding, namespace.dilation, namespace.groups
    more["dtype"] = namespace.dtype
    candidate = given["output"]
    transposed: dict[str, Any] = {"transposed": namespace.transposed, "output_padding": namespace.output_padding}
    _check_parts(namespace, geometry)
    shape = tuple(candidate.shape)  # a gradient has the shape of what it is the gradient by
    match namespace.pass_:
        case "bias_gradient":
            return judge_bias_gradient(candidate, given["grad_output"], **more)
        case "input_gradient":
            size = _alike(namespace.input_shape, shape)
            return judge_input_gradient(candidate, size, given["weight"], given["grad_output"], *geometry, **more)
        case "weight_gradient":
            size = namespace.weight_shape or shape
            return judge_weight_gradient(candidate, given["input"], size, given["grad_output"], *geometry, **more)
    arrays: tuple[Any, ...] = given["input"], given["weight"], given.get("bias")
    try:
        return judge(candidate, *arrays, *geometry, **(more | transposed))
    except WrongShape:
        expected = forward_problem(*arrays, *geometry, **transposed).shape
        if len(shape) != len(expected):
            raise
        diagnosis = diagnose(candidate, *arrays, *geometry, dtype=namespace.dtype, **transposed)
        return Misshapen("output", shape, expected, diagnosis)


def _alike(size: tuple[int, ...] | None, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that was asked for, without its samples where the gradient has none."""
    return shape if size is None else size[-len(shape) :] if len(shape) == 3 and size[0] == 1 else size


def _check_parts(namespace: argparse.Namespace, geometry: tuple[Any, ...]) -> None:
    """Options that the pass does not have must not be given: they would be ignored."""
    of = namespace.pass_
    if of != "forward" and (namespace.transposed or namespace.output_padding != 0):
        raise ValueError(f"--transposed and --output-padding play no part for --pass {of}")
    if of == "bias_gradient" and geometry != (1, 0, 1, 1):
        raise ValueError(f"--stride, --padding, --dilation and --groups play no part for --pass {of}")
    for name in ("input", "weight"):
        if getattr(namespace, f"{name}_shape") is not None and of != f"{name}_gradient":
            raise ValueError(f"--{name}-shape plays no part for --pass {of}")


def _read(namespace: argparse.Namespace) -> dict[str, Any]:
    """The arrays that the pass needs, by name.

    Raises:
        ValueError: one is missing, or given though the pass has none.
        OSError, ImportError: a file cannot be read.
    """
    needed = [name for name in _FILES[namespace.pass_] if not name.startswith("[")]
    valid = ["output", *(name.strip("[]") for name in _FILES[namespace.pass_])]
    for name in _ROLES:
        given = getattr(namespace, name) is not None
        if name in needed and not given:
            raise ValueError(f"{_option(name)} is needed for --pass {namespace.pass_}")
        if given and name not in valid:
            raise ValueError(
                f"{_option(name)} plays no part for --pass {namespace.pass_}, "
                f"which has {', '.join(map(_option, valid))}"
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


def _claim(text: str) -> str:
    try:
        return str(Claim.parse(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("dtype ")) from None
