"""The verdict in words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from detconv.verdict.problem import Array

if TYPE_CHECKING:
    from detconv.verdict.judge import Verdict

# The axes of an output, an unbatched one without the first.
_AXES = {
    "conv2d": ("sample", "output channel", "row", "column"),
    "conv2d_input": ("sample", "input channel", "row", "column"),
    "conv2d_weight": ("output channel", "input channel", "kernel row", "kernel column"),
    "conv2d_bias": ("output channel",),
    "conv_transpose2d": ("sample", "output channel", "row", "column"),
}
WHAT = {
    "conv2d": "output",
    "conv2d_input": "input gradient",
    "conv2d_weight": "weight gradient",
    "conv2d_bias": "bias gradient",
    "conv_transpose2d": "output",
}


# The hypotheses are about conv2d and its gradients.
_DIAGNOSED = ("conv2d", "conv2d_input", "conv2d_weight")


def explain(verdict: Verdict) -> str:
    """A paragraph for each thing there is to say: the answer, the worst element, how far the proof reaches."""
    paragraphs = [_answer(verdict), *_worst(verdict), *_special(verdict), *_reach(verdict)]
    if is_diagnosed(verdict):
        paragraphs.append(str(verdict.diagnosis))
    return "\n\n".join(paragraphs)


def is_diagnosed(verdict: Verdict) -> bool:
    """Whether there is something to diagnose: what cannot be rounding, or what is, but of coarser operands."""
    if verdict.status == "identical" or verdict.problem.name not in _DIAGNOSED:
        return False
    return verdict.status != "rounding" or bool(verdict.diagnosis)


def no_power(verdict: Verdict) -> str:
    """What a check that could not have failed says."""
    t = verdict.together
    return (
        f"this check shows nothing: the {WHAT[verdict.problem.name]} passes, but zeros in its place might pass, too. "
        f"The true sums are {t.size:.2g} on average (root mean square), and sums of {_terms(verdict)} may be off by "
        f"{max(t.yardstick, t.spread):.2g}. Data that would decide: small integers, which every order sums without "
        "rounding; positive values, whose sums do not cancel; or fewer terms."
    )


def axes(verdict: Verdict) -> tuple[str, ...]:
    """What each axis of the output is."""
    return _AXES[verdict.problem.name][-verdict.exact.ndim :]


def _answer(v: Verdict) -> str:
    size, counts = v.exact.size, v.counts
    what = f"{v.stored} {WHAT[v.problem.name]} of shape {v.exact.shape}"
    if size == 0:
        return f"Identical: the {what} has no elements."
    nearest = f"{counts['identical']} of {size} elements are the true sum, rounded once"
    match v.status:
        case "identical":
            return f"Identical: all {size} elements of the {what} are the true sum of their products, rounded once."
        case "rounding":
            return (
                f"Rounding: no element of the {what} is further from its true sum than the roundings of its "
                f"{_terms(v)} may carry it, whatever the order of the additions. {nearest}; the largest distance is "
                f"{_share(v)} of its bound."
            )
        case "unlikely":
            return (
                f"Unlikely: {counts['unlikely']} of {size} elements of the {what} are further from their true sums "
                f"than roundings would carry any element once in {_odds(v.confidence)} such outputs, if they were "
                f"random; but there may be an order of the additions that does it, so it is no proof. {nearest}."
            )
    return (
        f"Mistake: {counts['mistake']} of {size} elements of the {what} are further from their true sums than "
        f"roundings in {v.dtype} can carry them, whatever the order of the additions: this is not rounding. {nearest}."
    )


def _worst(v: Verdict) -> Iterator[str]:
    at = v.worst_element
    if at is None:
        return
    value, exact = v.candidate[at], v.exact[at]
    text = (
        f"The element that is furthest, for its bound: {_place(v, at)}. It is {value:.9g}; its true sum is {exact:.9g}"
    )
    if np.isfinite(value) and np.isfinite(exact):
        magnitude, cancels = float(v.magnitude[at]), float(v.condition[at])
        text += f", {v.ulps[at]:.3g} units in the last place away. Its terms add up to S = {magnitude:.3g} in magnitude"
        if cancels > 10:
            text += f", and cancel to {'nothing' if np.isinf(cancels) else f'one part in {cancels:.3g}'}"
        text += (
            f". Roundings may move it by {float(v.bound[at]):.2g} at most (gamma_n * S) and by "
            f"{float(v.probable_bound[at]):.2g} in all likelihood; it is off by {abs(float(v.error[at])):.2g}"
        )
    yield text + "."


def _special(v: Verdict) -> Iterator[str]:
    """Infinities and NaN, where candidate and true sum do not agree about them."""
    apart = np.isfinite(v.candidate) != np.isfinite(v.exact)
    if not apart.any():
        return
    ours, theirs = ~np.isfinite(v.exact) & apart, ~np.isfinite(v.candidate) & apart
    if ours.any():
        text = f"{np.count_nonzero(ours)} elements are finite where the true sum is infinite or NaN"
        if _skips_padding(v, ours):
            text += (
                ": at the border, where an infinite or NaN weight meets the padding. A padded tap is a term of zero, "
                "and infinity times zero is NaN (IEEE 754); the candidate skips the padding, as some libraries do"
            )
        yield text + "."
    if theirs.any():
        text = f"{np.count_nonzero(theirs)} elements are infinite or NaN where the true sum is finite"
        overflows = v.problem.finite and bool((v.magnitude[theirs] >= np.finfo(v.magnitude.dtype).max / 4).any())
        yield text + (": a partial sum may have overflowed." if overflows else ".")


def _skips_padding(v: Verdict, apart: Array) -> bool:
    """Whether all these elements have padded taps and all numbers that lie inside the image are finite."""
    if v.problem.name != "conv2d" or not np.isfinite(v.problem.input).all() or np.isfinite(v.problem.weight).all():
        return False
    padded = v.problem.terms() < v.problem.terms().max(initial=0)
    return bool(np.broadcast_to(padded, apart.shape)[apart].all())


def _reach(v: Verdict) -> Iterator[str]:
    """What the proof cannot see."""
    if v.exact.size == 0 or v.status == "mistake" or not np.isfinite(v.bound).all():
        return
    typical = float(np.median(v.bound / np.maximum(v.magnitude / max(float(v.problem.terms().max()), 1), 1e-300)))
    yield (
        f"How far this reaches: a fault is proven where it moves an output by more than its bound, here by "
        f"{float(v.bound.min()):.2g} to {float(v.bound.max()):.2g}, or {typical:.2g} of an average term; where it "
        "moves all outputs by less, it is too small to be told from rounding."
    )


def _terms(v: Verdict) -> str:
    terms = v.problem.terms()
    low, high = int(terms.min()), int(terms.max())
    return f"{high} terms" if low == high else f"{low} to {high} terms"


def _share(v: Verdict) -> str:
    return f"{100 * v.worst:.2g}%"


def _odds(confidence: float) -> str:
    return f"{1 / (1 - confidence):,.0f}"


def _place(v: Verdict, at: tuple[int, ...]) -> str:
    return ", ".join(f"{axis} {i}" for axis, i in zip(axes(v), at, strict=True))
