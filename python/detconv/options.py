"""Words that several commands share: passes, shapes and the geometry of a convolution. All mean the same everywhere."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from detconv.quoting import quoted

_PICTURES = (".png", ".svg", ".pdf")

# The passes by the names that the commands use, and the shorter ones that version 0.1.0 had for some.
PASSES = ("forward", "input_gradient", "weight_gradient", "bias_gradient")
_SHORTER = {"output": "forward", **{name.removesuffix("_gradient"): name for name in PASSES[1:]}}


def add_pass(parser: argparse.ArgumentParser, passes: tuple[str, ...]) -> None:
    """Add ``--pass``; the namespace has it as ``pass_``."""

    def named(text: str) -> str:
        name = _SHORTER.get(text, text)
        if name not in passes:
            raise argparse.ArgumentTypeError(f"must be one of {', '.join(passes)}; got {quoted(text)}")
        return name

    parser.add_argument(
        "--pass",
        dest="pass_",
        type=named,
        metavar="PASS",
        default=passes[0],
        help=f"what is computed: {', '.join(passes)} (default: %(default)s)",
    )


def add_geometry(parser: argparse.ArgumentParser) -> None:
    """Add the options of the geometry, transposed convolutions included."""
    steps: dict[str, Any] = {"type": pair, "metavar": "N[,N]"}
    parser.add_argument("--stride", default=1, **steps, help="one number, or vertical,horizontal (default: 1)")
    parser.add_argument(
        "--padding", type=padding, default=0, metavar="N[,N]|same|valid", help="likewise, or in words (default: 0)"
    )
    parser.add_argument("--dilation", default=1, **steps, help="likewise (default: 1)")
    parser.add_argument("--groups", type=int, default=1, metavar="N", help="default: 1")
    parser.add_argument(
        "--transposed", action="store_true", help="it is conv_transpose2d, whose weight is (C, O / groups, KH, KW)"
    )
    parser.add_argument("--output-padding", default=0, **steps, help="with --transposed (default: 0)")


def add_shape(parser: argparse.ArgumentParser, name: str, axes: str, *others: str, **options: Any) -> None:
    """Add ``--NAME-shape``, four sizes; others: more names for it, which help does not show."""
    parser.add_argument(f"--{name}-shape", type=sizes, metavar=axes, dest=f"{name}_shape", **options)
    for other in others:
        parser.add_argument(other, type=sizes, dest=f"{name}_shape", default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def sizes(text: str) -> tuple[int, ...]:
    try:
        found = tuple(int(size) for size in text.split(","))
    except ValueError:
        found = ()
    if len(found) != 4 or min(found) < 1:
        raise argparse.ArgumentTypeError(
            f"must be four sizes with commas between, such as 1,16,28,28; got {quoted(text)}"
        )
    return found


def pair(text: str) -> int | tuple[int, int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) == 1:
        return numbers[0]
    if len(numbers) == 2:
        return numbers[0], numbers[1]
    raise argparse.ArgumentTypeError(f"must be one whole number, or two with a comma between them; got {quoted(text)}")


def padding(text: str) -> int | tuple[int, int] | str:
    return text if text in ("same", "valid") else pair(text)


def new_file(text: str) -> Path:
    """A path that can be written, as far as that is known before the work is done."""
    path = Path(text)
    try:
        place = path if path.exists() else path.parent
        usable = path.parent.is_dir() and not path.is_dir() and os.access(place, os.W_OK)
    except (OSError, ValueError):  # a name that no file can have
        usable = False
    if not usable:
        raise argparse.ArgumentTypeError(f"must be a file that can be written; got {quoted(text)}")
    return path


def picture(text: str) -> Path:
    if Path(text).suffix.lower() not in _PICTURES:
        raise argparse.ArgumentTypeError(f"must end in {', '.join(_PICTURES)}; got {quoted(text)}")
    return new_file(text)
