"""The functions that networks apply to a convolution's output, element by element, by the names they go by."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from detconv.verdict.problem import Array


def _erf(v: Array) -> Array:
    """Within 2e-7: M. Abramowitz and I. A. Stegun, Handbook of Mathematical Functions, 7.1.26."""
    t = 1 / (1 + 0.3275911 * np.abs(v))
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    return np.asarray(np.sign(v) * (1 - series * np.exp(-v * v)))


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "ReLU": lambda v: np.maximum(v, 0),
    "ReLU6": lambda v: np.clip(v, 0, 6),
    "the absolute value": np.abs,
    "a leaky ReLU (0.01)": lambda v: np.where(v > 0, v, 0.01 * v),
    "a leaky ReLU (0.1)": lambda v: np.where(v > 0, v, 0.1 * v),
    "a leaky ReLU (0.2)": lambda v: np.where(v > 0, v, 0.2 * v),
    "tanh": np.tanh,
    "a sigmoid": lambda v: 1 / (1 + np.exp(-v)),
    "SiLU": lambda v: v / (1 + np.exp(-v)),
    "GELU (tanh)": lambda v: 0.5 * v * (1 + np.tanh(np.sqrt(2 / np.pi) * (v + 0.044715 * v**3))),
    "GELU": lambda v: 0.5 * v * (1 + _erf(v / np.sqrt(2))),
    "ELU": lambda v: np.where(v > 0, v, np.expm1(np.minimum(v, 0))),
    "hardswish": lambda v: v * np.clip(v + 3, 0, 6) / 6,
    "a hard sigmoid": lambda v: np.clip(v + 3, 0, 6) / 6,
    "softplus": lambda v: np.logaddexp(v, 0),
    "Mish": lambda v: v * np.tanh(np.logaddexp(v, 0)),
    "a clip to 0 ... 1": lambda v: np.clip(v, 0, 1),
    "a clip to 0 ... 255": lambda v: np.clip(v, 0, 255),
    "a clip to -1 ... 1": lambda v: np.clip(v, -1, 1),
    "a rounding to integers": np.rint,
}
