"""Places in an output, in words: which samples, channels, rows and columns."""

from __future__ import annotations

import numpy as np

from detconv.verdict.problem import Array

# What the axes of each pass's output are called, one and many.
_OUTPUT = (("sample", "samples"), ("output channel", "output channels"), ("row", "rows"), ("column", "columns"))
AXES = {
    "conv2d": _OUTPUT,
    "conv_transpose2d": _OUTPUT,
    "conv2d_input": (
        ("sample", "samples"),
        ("input channel", "input channels"),
        ("row", "rows"),
        ("column", "columns"),
    ),
    "conv2d_weight": (
        ("output channel", "output channels"),
        ("input channel", "input channels"),
        ("kernel row", "kernel rows"),
        ("kernel column", "kernel columns"),
    ),
}


def spans(mask: Array) -> tuple[Array, ...]:
    """For each axis, the indices at which anything is marked."""
    axes = range(mask.ndim)
    return tuple(np.flatnonzero(mask.any(axis=tuple(b for b in axes if b != a))) for a in axes)


def place(mask: Array, name: str) -> str:
    """Where the marked elements of an output are: "output channel 3, rows 0 to 4"; "everywhere" if on all indices."""
    parts = []
    for indices, size, (one, many) in zip(spans(mask), mask.shape, AXES[name], strict=True):
        if len(indices) < size:
            parts.append(f"{one} {indices[0]}" if len(indices) == 1 else f"{many} {listed(indices, size)}")
    return ", ".join(parts) or "everywhere"


def listed(indices: Array, size: int) -> str:
    """Several of the indices below size, in words: a range, a list, or the first few and how many."""
    if len(indices) == 1:
        return str(indices[0])
    steps = set(np.diff(indices).tolist())
    if steps == {1}:
        return f"{indices[0]} to {indices[-1]}"
    if len(steps) == 1 and len(indices) > 2:
        return f"{indices[0]}, {indices[1]}, ... {indices[-1]}"
    if len(indices) <= 8:
        return ", ".join(map(str, indices[:-1])) + f" and {indices[-1]}"
    return f"{', '.join(map(str, indices[:4]))}, ... ({len(indices)} of {size})"
