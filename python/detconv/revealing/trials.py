"""Random operands, and what the black box gives for them."""

from __future__ import annotations

import math

import numpy as np

from detconv.revealing.box import Box, aligned
from detconv.revealing.passes import Array, Geometry, parts

Operands = tuple[Array, Array, Array | None]  # image, panel, bias

_KEPT = 2**28  # bytes of results that are kept; the others are computed again


class Data:
    """Random operands of a geometry, the same for the same trial.

    Even trials are standard normal; their images are stretches of one noise. In odd trials the image is all ones and,
    in each row of the panel, some pairs of values are 2^e and -2^e: what is added while the two are apart loses its
    last bits, or all of them, in double too. So two orders hardly give the same bits, and sums in double, which nearly
    always agree on normal values, are told apart.
    """

    def __init__(self, geometry: Geometry, seed: int) -> None:
        self.geometry, self.seed = geometry, seed
        size = math.prod(geometry.image_shape)
        self.noise = np.random.default_rng((seed, 0)).standard_normal(size + 16 * 4096, np.float32)

    def __call__(self, trial: int) -> Operands:
        """image, panel and bias."""
        geometry, random = self.geometry, np.random.default_rng((self.seed, 1 + trial))
        image, panel, bias = (
            aligned(geometry.image_shape, geometry.dtype),
            aligned(geometry.panel_shape, geometry.dtype),
            None,
        )
        panel[...] = random.standard_normal(geometry.panel_shape, np.float32)
        if trial % 2:
            image[...] = 1
            panel[...] = sum(part.spread(self._torn(part.panel(panel), random)) for part in parts(geometry))
        else:
            start = int(random.integers(16 * 4096))
            image.ravel()[...] = self.noise[start : start + image.size]
            if geometry.dtype == "float64":
                image += 2.0**-26 * self.noise[: image.size].reshape(image.shape)
        if geometry.bias:
            bias = aligned((geometry.outputs,), geometry.dtype)
            bias[...] = random.standard_normal(bias.shape)
        return image, panel, bias

    @staticmethod
    def _torn(panel: Array, random: np.random.Generator) -> Array:
        """The panel of a part (rows, planes, i, j) with some values in each row replaced by pairs 2^e and -2^e, e from
        16 to 80. Both lie at one tap where there are planes enough, so that a border hides both or none."""
        torn = panel.copy()
        rows, planes, taps = np.arange(len(panel)), panel.shape[1], math.prod(panel.shape[2:])
        flat = torn.reshape(len(panel), planes, taps)
        if planes > 1:
            pairs = [(tap, tap) for tap in random.permutation(taps)[: min(16, (taps + 1) // 2)]]
        else:
            some = random.permutation(taps)[: 2 * min(4, taps // 2)]
            pairs = list(zip(some[::2], some[1::2], strict=True))
        for one, other in pairs:
            first = random.integers(planes, size=len(panel))
            second = (first + random.integers(1, max(planes, 2), size=len(panel))) % planes
            huge = np.ldexp(1.0, random.integers(16, 81, size=len(panel)))
            flat[rows, first, one], flat[rows, second, other] = huge, -huge
        return torn


class Trials:
    """What the box gives for random data, trial by trial; shared by the parts of a pass."""

    def __init__(self, box: Box, data: Data) -> None:
        self.box, self.data = box, data
        self.kept: dict[int, Array] = {}

    def operands(self, trial: int) -> Operands:
        return self.data(trial)

    def result(self, trial: int) -> Array:
        if trial in self.kept:
            return self.kept[trial]
        result = self.box(self.data.geometry, *self.data(trial)).copy()
        if trial % 2 == 0 and not np.isfinite(result).all():
            raise ValueError(
                f"fn ({self.box.name}) must give finite results for standard normal values; got NaN or inf"
            )
        if (len(self.kept) + 1) * result.nbytes <= _KEPT:
            self.kept[trial] = result
        return result
