"""The verdict as plain data, for JSON."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from detconv.verdict.explain import is_diagnosed

if TYPE_CHECKING:
    from detconv.verdict.judge import Verdict


# Of the keys below: raised where one of them changes its meaning or goes.
VERSION = 1


def record(verdict: Verdict) -> dict[str, Any]:
    """What the verdict says, in numbers, text and lists of them; infinities and NaN are text: JSON has none.

    ``bound`` and ``probable_bound`` are the smallest and the largest of all elements; ``worst`` is the element with the
    largest error for its bound, or None where all are identical.
    """
    v = verdict
    geometry = {name: value for name, value in v.problem.named() if not isinstance(value, np.ndarray)}
    return {
        "version": VERSION,
        "status": v.status,
        "counts": dict(v.counts),
        "shape": list(v.exact.shape),
        "pass": v.problem.name,
        "container": v.container,
        "stored": v.stored,
        "dtype": v.dtype,
        "confidence": v.confidence,
        "arguments": {
            **{name: list(value.shape) for name, value in v.problem.named() if isinstance(value, np.ndarray)},
            **{name: list(value) if isinstance(value, tuple) else value for name, value in geometry.items()},
        },
        "worst": _worst(v),
        "bound": _range(v.bound),
        "probable_bound": _range(v.probable_bound),
        "together": _together(v),
        "power": {
            name: number(value) if isinstance(value, float) else value for name, value in v.power._asdict().items()
        },
        "diagnosis": str(v.diagnosis) if is_diagnosed(v) else None,
        "explanation": v.explain(),
    }


def _together(v: Verdict) -> dict[str, Any]:
    t = v.together
    return {
        "status": t.status,
        "elements": t.elements,
        **{name: number(getattr(t, name)) for name in ("error", "size", "spread", "yardstick")},
        "coarse": None if t.coarse is None else t.coarse._asdict(),
    }


def number(value: Any) -> float | str:
    """A number that JSON has, or its name."""
    value = float(value)
    return value if math.isfinite(value) else str(value)


def _worst(v: Verdict) -> dict[str, Any] | None:
    at = v.worst_element
    if at is None:
        return None
    arrays = {
        "value": v.candidate,
        "exact": v.exact,
        "error": v.error,
        "ulps": v.ulps,
        "magnitude": v.magnitude,
        "bound": v.bound,
        "probable_bound": v.probable_bound,
        "share": v.share,
    }
    return {"element": list(at), "status": str(v.elements[at]), **{name: number(a[at]) for name, a in arrays.items()}}


def _range(values: Any) -> list[float | str] | None:
    return [number(values.min()), number(values.max())] if values.size else None
