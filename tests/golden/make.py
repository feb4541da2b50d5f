"""Hashes of new golden cases, from the specification: `python tests/golden/make.py`.

A new case is a line of forward.txt with `new` in place of its hash; it is given the hash of what `detconv.reference`
computes. A line that has its hash is never touched: the bits of a release are permanent.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).parents[1]))

from bits import Layer, made, sha256
from detconv import reference

FILE = Path(__file__).with_name("forward.txt")


@dataclass(frozen=True)
class Case:
    """One line: a call of conv2d, and the SHA-256 of its output."""

    line: str

    def __post_init__(self) -> None:
        if len(self.line.split(maxsplit=11)) != 12:
            raise ValueError(f"{FILE.name}: not the twelve columns that its first lines name: {self.line!r}")

    @property
    def columns(self) -> list[str]:
        return self.line.split(maxsplit=11)

    @property
    def hash(self) -> str:
        return self.columns[0]

    @property
    def summation(self) -> str:
        return self.columns[-1]

    @property
    def layer(self) -> Layer:
        """The arrays and options of the call."""
        _, type_name, image, weight, stride, padding, dilation, groups, bias, kind, seed_text, _ = self.columns
        dtype = {"float32": np.float32, "float64": np.float64}[type_name]
        kind, seed, weight_shape = kind.replace("-", " "), int(seed_text), _numbers(weight)
        options: dict[str, Any] = {
            "stride": _numbers(stride),
            "padding": padding if padding == "same" else _numbers(padding),
            "dilation": _numbers(dilation),
            "groups": int(groups),
        }
        return Layer(
            made(_numbers(image), dtype, seed, kind),
            made(weight_shape, dtype, seed + 1, kind),
            made(weight_shape[:1], dtype, seed + 2, kind) if {"bias": True, "-": False}[bias] else None,
            options,
        )

    def specified_hash(self) -> str:
        """The hash of what the specification gives."""
        layer = self.layer
        return sha256(reference.conv2d(*layer.arrays, **layer.options, summation=self.summation))


def cases() -> list[Case]:
    return [Case(line) for line in FILE.read_text().splitlines() if not line.startswith("#")]


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


def main() -> None:
    lines = FILE.read_text().splitlines()
    fresh = [number for number, line in enumerate(lines) if line.startswith("new ")]
    for number in fresh:
        lines[number] = Case(lines[number]).specified_hash() + lines[number][len("new") :]
    FILE.write_text("".join(line + "\n" for line in lines))
    print(f"{len(fresh)} new cases")


if __name__ == "__main__":
    main()
