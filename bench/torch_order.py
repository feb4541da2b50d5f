"""The order in which torch's oneDNN adds on this machine, looked for among the families that it is known to use."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations

import numpy as np

from bench.problem import Array, Problem


def order_of(problem: Problem, output: Array) -> str | None:
    """The text of a summation that gives every bit of torch's output, or None.

    A candidate is first tried on a few channels: two different orders agree by luck in a tenth of the outputs, so a few
    hundred outputs tell all of them apart.
    """
    layer = problem.layer
    if problem.which == "weight" or (problem.which == "input" and layer.stride > 1):
        return None  # orders number the terms of stride 1, and sums over pixels have one sequence only
    x, w, g = problem.arrays
    if layer.groups > 1:
        few, part = (x[:1], w, g[:1]), output[:1]
    elif problem.which == "forward":
        few, part = (x[:1], w[:8], g), output[:1, :8]
    else:
        few, part = (x, w[:, :8], g[:1]), output[:1, :8]
    channels = (layer.channels if problem.which == "forward" else layer.outputs) // layer.groups
    for text in candidates(channels, layer.kernel**2):
        if same_numbers(problem.sums(text, few), part) and same_numbers(problem.sums(text, problem.arrays), output):
            return text
    return None


def candidates(channels: int, taps: int) -> Iterator[str]:
    """Nests of the three loops; channels in blocks, one chain or each block a sum of its own, and blocks of blocks.

    Term c * taps + t is the product of channel c and tap t.
    """
    yield "naive order=kh,kw,c"
    yield "naive"
    blocks = [b for b in range(1, channels) if channels % b == 0 and (b % 4 == 0 or b < 4)]

    def chain(first: int, count: int, block: int) -> str:
        """`count` blocks of channels, from term `first` on; within one, tap after tap, channel after channel."""
        return f"{count}x(+{block * taps}){{{taps}x(+1){{{block}x(+{taps}){{f{first}}}}}}}"

    def split(block: int, inner: int) -> str:
        """Each block of channels its own sum, then added to the first."""
        first = chain(0, block // inner, inner)
        return f"{first} {channels // block - 1}x(+{block * taps}){{[{chain(block * taps, block // inner, inner)}]}}"

    for block in blocks:
        yield f'naive order="{chain(0, channels // block, block)}"'
        yield f'naive order="{split(block, block)}"'
    for block in blocks:
        for inner in blocks:
            if inner < block and block % inner == 0:
                yield f'naive order="{split(block, inner)}"'
    for loops in permutations(("c", "kh", "kw")):
        for products in ("fused", "rounded"):
            yield f"naive order={','.join(loops)} products={products}"
    for block in blocks:
        yield f'naive order="{chain(0, channels // block, block)}"'.replace("{f", "{m")


def same_numbers(a: Array, b: Array) -> bool:
    return a.shape == b.shape and bool(np.array_equal(a, b))
