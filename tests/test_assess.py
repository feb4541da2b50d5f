"""The engine's pass over all elements of a verdict: blocks of elements are judged as each of them alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bits import Array
from detconv import _core
from detconv.verdict.bounds import FORMATS


def drawn_elements(draw: np.random.Generator, dtype: Any, count: int, odd: float) -> dict[str, Array]:
    """Candidates, exact sums and S; a share of them as strange as numbers get."""
    exact = (draw.standard_normal(count) * np.exp2(draw.integers(-9, 9, count))).astype(dtype)
    factor = np.float64(np.finfo(dtype).eps) * draw.choice([0, 0, 1, 1, 30, 90, 2000], count)
    candidate = exact + (exact * factor * draw.standard_normal(count)).astype(dtype)
    magnitude = (10 * np.abs(exact)).astype(dtype)
    strange = np.array([0, -0.0, np.inf, -np.inf, np.nan, 1e-45, 1e38, 3e38, 2.0**-126], dtype)
    arrays = {"candidate": candidate, "exact": exact, "magnitude": magnitude}
    for name, array in arrays.items():
        places = draw.random(count) < odd
        values = draw.choice(strange, count)
        array[places] = (np.abs(values) if name == "magnitude" else values)[places]
    return arrays


def assessed(arrays: dict[str, Array], bounds: list[Array], shift: Array | None, *rest: Any) -> Any:
    return _core.assess(*arrays.values(), shift, *bounds, *rest)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("positions", [1, 7, 64, 100])
@pytest.mark.parametrize("odd", [0.0, 0.001, 0.2])
@pytest.mark.parametrize("shifted", [False, True])
@np.errstate(all="ignore")
def test_blocks_are_judged_as_each_element_alone(dtype: Any, positions: int, odd: float, shifted: bool) -> None:
    draw = np.random.default_rng([positions, int(1000 * odd), shifted])
    own, seen = np.dtype(dtype).name, set()
    count = positions * (700 // positions)
    for exact_below, accumulator, stored in ((0.0, own, own), (0.5, "float64", own)):
        arrays = drawn_elements(draw, dtype, count, odd)
        unit = FORMATS[own].unit
        bounds = [draw.uniform(low, low + 9, positions) * unit for low in (20, 1)]
        bounds += [np.full(positions, 1e-44), np.sqrt(draw.integers(1, 99, positions))]
        shift = (arrays["magnitude"] * dtype(2e-6) * (draw.random(count) < 0.5)).astype(dtype) if shifted else None
        rest = exact_below, 1.0, FORMATS[accumulator], FORMATS[stored]
        codes, counts, worst, worst_at, squares = assessed(arrays, bounds, shift, *rest)
        alone = [
            assessed(
                {name: array[i : i + 1] for name, array in arrays.items()},
                [bound[i % positions : i % positions + 1] for bound in bounds],
                None if shift is None else shift[i : i + 1],
                *rest,
            )
            for i in range(count)
        ]
        assert codes.tolist() == [int(one[0][0]) for one in alone]
        seen |= set(codes.tolist())
        assert counts == np.bincount(codes, minlength=4).tolist()
        ratios = [one[2] if one[3] == 0 else -1.0 for one in alone]
        assert (worst, worst_at) == (max(ratios), ratios.index(max(ratios)))
        sums = np.array([one[4] for one in alone])
        assert squares[0] == sums[:, 0].sum()
        few = 1 + 2 * count * np.finfo(np.float64).eps  # sums of squares, in two orders
        for total, expected in zip(squares[1:], sums[:, 1:].sum(axis=0), strict=True):
            assert expected / few <= total <= expected * few
    assert seen == {0, 1, 2, 3}
