"""Which ways over their columns plans choose.

No walk may change a bit, so no comparison of bits tells whether one is ever taken: here each of them is, on every
instruction set, and the bits of the layers that take it are those of the others.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import detconv
from bits import Array, assert_same_bits, instruction_sets, made
from detconv import Summation, _core
from detconv.testing import instruction_set

WALKS = ("in place", "in place, wrapped", "copied", "copied, wrapped", "gathered", "abreast")

Shape = tuple[int, int, int, int]

# Input and weight. Which kernel, and so which walk, is the cheapest for a layer depends on the instruction set.
LAYERS: list[tuple[Shape, Shape, dict[str, Any]]] = [
    ((1, 8, 40, 64), (16, 8, 3, 3), {}),
    ((1, 8, 12, 14), (16, 8, 3, 3), {}),
    ((1, 8, 12, 14), (16, 8, 3, 3), {"padding": 1}),
    ((1, 8, 9, 11), (40, 8, 3, 3), {}),
    ((1, 8, 10, 7), (33, 8, 2, 2), {}),
    ((1, 3, 60, 9), (2, 3, 3, 3), {"padding": 1}),
    ((16, 64, 3, 3), (64, 64, 2, 2), {}),
    ((16, 64, 4, 4), (64, 64, 3, 3), {}),
    ((16, 64, 6, 6), (64, 64, 3, 3), {}),
    ((32, 64, 7, 7), (64, 64, 1, 1), {"stride": 2}),
    ((32, 128, 2, 2), (128, 128, 3, 3), {"padding": 1}),
    ((32, 128, 3, 3), (64, 128, 3, 3), {"padding": 1}),
    ((16, 64, 4, 4), (64, 64, 3, 3), {"padding": 1}),
]

SUMMATIONS = ("naive", "kahan", "exact")


def walks(
    of: str, input: Shape, weight: Shape, options: dict[str, Any], summation: str, channels_last: bool
) -> set[str]:
    geometry = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1} | options
    found = _core.walks(
        of, input, weight, **geometry, summation=Summation.of(summation)._compiled, channels_last=channels_last
    )
    return set(found)


@pytest.mark.parametrize("isa", instruction_sets())
def test_every_walk_is_taken(isa: str) -> None:
    detconv.set_num_threads(1)
    with instruction_set(isa):
        taken = {
            walk
            for input, weight, options in LAYERS
            for summation in SUMMATIONS
            for channels_last in (False, True)
            for walk in walks("forward", input, weight, options, summation, channels_last)
        }
    assert taken >= {"in place", "copied", "gathered", "abreast"}
    if isa in ("avx2", "avx512"):  # vectors of others are too short for rows to end within one
        assert taken == set(WALKS)


@pytest.mark.parametrize("index", range(len(LAYERS)))
def test_no_walk_changes_a_bit(index: int) -> None:
    """Of a batch, whose walk may be another, against its samples."""
    detconv.set_num_threads(1)
    input, weight, options = LAYERS[index]
    image, kernel = made((max(input[0], 4), *input[1:]), np.float32, 1), made(weight, np.float32, 2)

    def summed(part: Array, summation: str) -> Array:
        return detconv.conv2d(part, kernel, **options, summation=summation)

    for isa in instruction_sets():
        with instruction_set(isa):
            for summation in SUMMATIONS:
                together = summed(image, summation)
                for n in (0, len(image) - 1):
                    assert_same_bits(together[n], summed(image[n], summation), f"{isa} {summation}")


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match='pass must be "forward", "input gradient" or "weight gradient"; got "back"'):
        walks("back", (1, 1, 3, 3), (1, 1, 2, 2), {}, "naive", False)
    with pytest.raises(ValueError, match="weight must not reach beyond"):
        walks("forward", (1, 1, 1, 1), (1, 1, 2, 2), {}, "naive", False)
