"""Hashes of new golden cases, from the specification: `python tests/golden/make.py`.

A new case is a line of forward.txt or gradients.txt with `new` in place of its hash; it is given the hash of what
`detconv.reference` computes. A line that has its hash is never touched: the bits of a release are permanent.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).parents[1]))

from bits import Array, Layer, made, output_shape, sha256
from detconv import reference

FILES = ("forward.txt", "gradients.txt")


@dataclass(frozen=True)
class Case:
    """One line: a call of conv2d, or of its three gradients, and the SHA-256 of what they give."""

    file: str
    line: str

    def __post_init__(self) -> None:
        if len(self.line.split(maxsplit=11)) != 12:
            raise ValueError(f"{self.file}: not the twelve columns that its first lines name: {self.line!r}")

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

    def hash_of(self, module: Any) -> str:
        """The hash of what detconv, or detconv.reference, gives."""
        layer = self.layer
        image, weight, *_ = layer.arrays
        if self.file == "forward.txt":
            return sha256(module.conv2d(*layer.arrays, **layer.options, summation=self.summation))
        kind, seed = self.columns[9].replace("-", " "), int(self.columns[10])
        grad_output = made(output_shape(layer), image.dtype.type, seed + 3, kind)
        options: dict[str, Any] = {**layer.options, "summation": self.summation}
        gradients: list[Array] = [
            module.conv2d_input(image.shape, weight, grad_output, **options),
            module.conv2d_weight(image, weight.shape, grad_output, **options),
            module.conv2d_bias(grad_output, summation=self.summation),
        ]
        return sha256(np.concatenate([gradient.ravel() for gradient in gradients]))


def cases(file: str) -> list[Case]:
    lines = Path(__file__).with_name(file).read_text().splitlines()
    return [Case(file, line) for line in lines if not line.startswith("#")]


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


def main() -> None:
    for file in FILES:
        path = Path(__file__).with_name(file)
        lines = path.read_text().splitlines()
        fresh = [number for number, line in enumerate(lines) if line.startswith("new ")]
        for number in fresh:
            lines[number] = Case(file, lines[number]).hash_of(reference) + lines[number][len("new") :]
        path.write_text("".join(line + "\n" for line in lines))
        print(f"{file}: {len(fresh)} new cases")


if __name__ == "__main__":
    main()
