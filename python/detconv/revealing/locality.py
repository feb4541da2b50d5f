"""Before any probe: does the box repeat itself, and does an output depend on its window alone?"""

from __future__ import annotations

import numpy as np

from detconv.revealing.box import aligned
from detconv.revealing.passes import Array, Geometry, Part, parts
from detconv.revealing.replay import of_no_terms, same_bits
from detconv.revealing.trials import Trials

REPEATS = 3


def repeats(trials: Trials) -> bool:
    """The same values, elsewhere in memory each time."""
    first = trials.result(0)
    for _ in range(REPEATS - 1):
        if not same_bits(trials.box(trials.data.geometry, *trials.operands(0)), first).all():
            return False
    return True


def leaks(trials: Trials) -> int:
    """How many outputs change with a pixel that they do not depend on: 2^60 in the middle, or in a corner."""
    geometry = trials.data.geometry
    image, panel, bias = trials.operands(0)
    before = trials.result(0)
    height, width = image.shape[2:]
    for pixel in {(height // 2, width // 2), (0, 0)}:
        changed = aligned(image.shape, geometry.dtype)
        changed[...] = image
        changed[0, :, pixel[0], pixel[1]] = 2.0**60
        after = trials.box(geometry, changed, panel, bias)
        mark = np.zeros((1, *image.shape[1:]), geometry.dtype)
        mark[0, :, pixel[0], pixel[1]] = 1
        leaks = ~same_bits(after, before) & ~_touched(geometry, mark)
        if leaks.any():
            return int(np.count_nonzero(leaks))
    return 0


def _touched(geometry: Geometry, mark: Array) -> Array:
    """Which outputs read a pixel of the first sample that is marked."""
    result = np.zeros(geometry.result_shape, bool)
    for part in parts(geometry):
        full = np.broadcast_to(np.float32(0), geometry.image_shape)
        rows, columns = part.valid_taps(part.image(full).shape[2:])
        marked = part.image(np.concatenate([mark, np.zeros_like(full[1:])]))
        hit = np.zeros(part.shape, bool)
        planes = part.extents[0]
        for n in range(part.shape[0]):
            for group in range(part.groups):
                own = marked[n, group * planes : (group + 1) * planes].any(axis=0)
                if not own.any():
                    continue
                for at in np.argwhere(own):
                    row = _reads(part.shape[2], part, 0, int(at[0]), rows)
                    column = _reads(part.shape[3], part, 1, int(at[1]), columns)
                    size = part.rows // part.groups
                    hit[n, group * size : (group + 1) * size] |= row[:, None] & column
        part.select(result)[...] = hit
    return result


def _reads(outputs: int, part: Part, axis: int, pixel: int, valid: Array) -> Array:
    taps = np.arange(part.extents[1 + axis])
    at = np.arange(outputs)[:, None] * part.stride[axis] + taps * part.dilation[axis] - part.borders[axis][0]
    return np.asarray(((at == pixel) & valid).any(axis=1))


def no_terms_are_none(geometry: Geometry, trials: Trials) -> bool:
    """Whether the outputs that have no products are 0, or the bias."""
    covered = np.zeros(geometry.result_shape, bool)
    for part in parts(geometry):
        part.select(covered)[...] = True
    expected = of_no_terms(geometry, trials.operands(0)[2])
    return bool((trials.result(0)[~covered] == expected[~covered]).all())
