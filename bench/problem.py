"""One layer with its values, for one pass and element type, and what is known of its exact sums."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

import detconv
from bench.suites import Layer
from detconv.verdict import bounds

Array: TypeAlias = NDArray[Any]

DTYPES = ("float32", "float64", "float16", "bfloat16")
HALF_TYPES = ("float16", "bfloat16")

# The exact sums of float64 take 0.25 ns a product: a part of a large layer is judged, of at most so many products.
JUDGED_MACS = 2e8


@dataclass(frozen=True)
class Problem:
    """The arguments of one call, the same in every process.

    Half types are kept as the float32 numbers that they are; ``tensors`` has them as torch's.
    """

    layer: Layer
    which: str
    dtype: str

    @property
    def options(self) -> tuple[int, int, int, int]:
        """stride, padding, dilation, groups: as every function takes them."""
        return self.layer.stride, self.layer.padding, self.layer.dilation, self.layer.groups

    @cached_property
    def arrays(self) -> tuple[Array, Array, Array]:
        """input, weight, grad_output."""
        draw = np.random.default_rng(0)
        numpy_type = "float64" if self.dtype == "float64" else "float32"
        shapes: list[tuple[int, ...]] = [self.layer.input_shape, self.layer.weight_shape, self.layer.output_shape]
        if self.which == "forward":
            shapes[2] = (0, *shapes[2][1:])  # nobody reads it, and it may be large
        arrays: list[Array] = [self._drawn(draw, shape).astype(numpy_type) for shape in shapes]
        if self.dtype in HALF_TYPES:
            import torch

            half = getattr(torch, self.dtype)
            arrays = [torch.from_numpy(array).to(half).float().numpy() for array in arrays]
        return arrays[0], arrays[1], arrays[2]

    def _drawn(self, draw: np.random.Generator, shape: tuple[int, ...]) -> Array:
        match self.layer.values:
            case "integers":
                return draw.integers(-8, 9, shape)
            case "bfloat16":
                fraction, exponent = np.frexp(draw.standard_normal(shape))
                return np.ldexp(np.rint(fraction * 256) / 256, exponent)  # type: ignore[no-any-return]
        return draw.standard_normal(shape)

    @cached_property
    def tensors(self) -> tuple[Any, Any, Any]:
        """The same, as torch tensors of the element type; those of float32 and float64 share the memory."""
        import torch

        tensors = [torch.from_numpy(array).to(getattr(torch, self.dtype)) for array in self.arrays]
        return tensors[0], tensors[1], tensors[2]

    def sums(self, summation: str, values: tuple[Any, Any, Any]) -> Any:
        """The pass by detconv, on these values."""
        x, w, g = values
        if self.which == "forward":
            return detconv.conv2d(x, w, None, *self.options, summation=summation)
        if self.which == "input":
            shape = (g.shape[0], w.shape[1] * self.layer.groups, *self.layer.input_shape[2:])
            return detconv.conv2d_input(shape, w, g, *self.options, summation=summation)
        return detconv.conv2d_weight(x, (g.shape[1], *w.shape[1:]), g, *self.options, summation=summation)

    # ---- Errors ----

    @cached_property
    def part(self) -> tuple[tuple[slice, ...], tuple[Array, Array, Array]]:
        """What is judged: which elements of the output, and the arguments that these alone depend on.

        One sample, of a weight gradient all; then as many output channels (of an input gradient: input channels) as
        fit, and of a forward pass as many rows.
        """
        x, w, g = self.arrays
        layer, few = self.layer, max(1, int(JUDGED_MACS))
        if self.which == "weight":
            keep = layer.outputs if layer.groups > 1 else _share(layer.outputs, layer.macs, few)
            return (slice(0, keep),), (x, w, g[:, :keep])
        x, g, macs = x[:1], g[:1], layer.macs // layer.batch
        if self.which == "input":
            channels = layer.channels if layer.groups > 1 else _share(layer.channels, macs, few)
            return (slice(0, 1), slice(0, channels)), (x, w[:, :channels] if layer.groups == 1 else w, g)
        channels = layer.outputs if layer.groups > 1 else _share(layer.outputs, macs, few)
        size = layer.output_size
        rows = _share(size, macs * channels // layer.outputs, few)
        if rows < size:  # the last of these rows reads so far down, less the padding at the top
            reach = (rows - 1) * layer.stride + layer.dilation * (layer.kernel - 1) + 1 - layer.padding
            x = x[:, :, : max(reach, 1)]
        return (slice(0, 1), slice(0, channels), slice(0, rows)), (x, w[:channels], g)

    @cached_property
    def exact(self) -> Array:
        """The exact sums of the part, each rounded once to float64."""
        return self._wide(lambda array: array.astype(np.float64))

    @cached_property
    def magnitude(self) -> Array:
        """S, the sum of abs(w*x), of each output of the part."""
        return self._wide(lambda array: np.abs(array.astype(np.float64)))

    def _wide(self, function: Any) -> Array:
        where, values = self.part
        sums: Array = self.sums("exact samples=sequence", tuple(map(function, values)))
        return sums[:, :, where[2]] if len(where) == 3 else sums  # rows that only the padding below completes go


def _share(whole: int, cost: float, most: float) -> int:
    return max(1, min(whole, int(whole * most / max(cost, 1))))


class Judgement(NamedTuple):
    max_ulp: float
    mean_ulp: float
    median_ulp: float
    judged: int
    verdict: str  # "identical" to the exact sums, each rounded once; "rounding"; "mistake": beyond the bound


def judged(problem: Problem, output: Array) -> Judgement:
    """Compare an output with the exact sums.

    The bound is gamma(K) * S: roundings cannot carry a sum of K products further, in whatever order (N. J. Higham,
    Accuracy and Stability of Numerical Algorithms, 2nd edition, SIAM 2002, sections 3.1 and 4.2). An ulp is that of the
    element type at the exact sum.
    """
    where, _ = problem.part
    given = np.ascontiguousarray(output[where]).astype(np.float64)
    error, stored = np.abs(given - problem.exact), bounds.FORMATS[problem.dtype]
    ulps = error / (2 * bounds.half_ulp(problem.exact, stored))
    n = problem.layer.terms(problem.which) + 1
    bound = problem.magnitude * bounds.gamma(n, stored.unit)
    if not np.isfinite(given).all() or (error > bound).any():
        verdict = "mistake"
    else:
        verdict = "identical" if (ulps <= 0.5).all() else "rounding"
    return Judgement(float(ulps.max()), float(ulps.mean()), float(np.median(ulps)), given.size, verdict)
