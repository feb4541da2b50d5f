"""The verdict in words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from detconv.verdict.problem import Array
from detconv.verdict.together import STATUSES, YARDSTICKS

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


def explain(verdict: Verdict) -> str:
    """A paragraph for each thing there is to say: the answer, the worst element, how far the proof reaches."""
    v = verdict
    paragraphs = [_answer(v), *_arithmetic(v), *_together(v), *_worst(v), *_special(v), *_reach(v)]
    if is_diagnosed(v):
        paragraphs.append(str(v.diagnosis))
    return "\n\n".join(paragraphs)


def is_diagnosed(verdict: Verdict) -> bool:
    """Whether there is something to diagnose: what is more than rounding."""
    return verdict.status in ("unlikely", "mistake")


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
    what = f"{v.container} {WHAT[v.problem.name]} of shape {v.exact.shape}"
    if size == 0:
        return f"Identical: the {what} has no elements."
    nearest = f"{_of_elements(counts['identical'], size)} {_is(counts['identical'], size)} the true sum, rounded once"
    match v.status:
        case "identical":
            each = "the only element" if size == 1 else f"all {size} elements"
            theirs = "is the true sum of its" if size == 1 else "are the true sum of their"
            return f"Identical: {each} of the {what} {theirs} products, rounded once."
        case "rounding":
            of = f" of {origin(v)}" if origin(v) else ""
            share = f"; the largest distance is {_share(v)} of its bound" if np.isfinite(v.worst) else ""
            return (
                f"Rounding{of}: no element of the {what} is further from its true sum than the roundings of its "
                f"{_terms(v)} may carry it, whatever the order of the additions. {nearest}{share}."
            )
        case "unlikely" if not counts["unlikely"]:
            return (
                f"Unlikely: no element of the {what} is by itself further from its true sum than roundings may carry "
                "it, but all together are. There may be an order of the additions that does it, so it is no proof. "
                f"{nearest}."
            )
        case "unlikely":
            few = counts["unlikely"]
            return (
                f"Unlikely: {_of_elements(few, size)} of the {what} {_is(few, size)} further from {_its(few)} true "
                f"{'sum' if few == 1 else 'sums'} than roundings would carry any element once in "
                f"{_odds(v.confidence)} such outputs, if they were random; but there may be an order of the additions "
                f"that does it, so it is no proof. {nearest}."
            )
    wrong = counts["mistake"]
    unrounded = int(np.count_nonzero(v.is_exact & (v.codes == STATUSES.index("mistake"))))
    if unrounded == wrong:
        return (
            f"Mistake: {_of_elements(wrong, size)} of the {what} {_is(wrong, size)} not the true sum, though every "
            f"order of the additions in {v.claim.accumulator} gives it without any rounding: the terms are multiples "
            f"of one power of two, and few and small enough. {nearest}."
        )
    return (
        f"Mistake: {_of_elements(wrong, size)} of the {what} {_is(wrong, size)} further from {_its(wrong)} true "
        f"{'sum' if wrong == 1 else 'sums'} than roundings in {v.dtype} can carry {'it' if wrong == 1 else 'them'}, "
        f"whatever the order of the additions: this is not rounding. {nearest}."
    )


def origin(v: Verdict) -> str:
    """What the values are like, where that is not what their container or the claim says: "float32 sums, stored in
    float64"; else nothing."""
    if not v.exact.size or v.status not in ("rounding", "mistake"):
        return ""
    found = None if v.claim.products is not None else v.arithmetic
    if found is None or found == (v.claim.accumulator, v.container):
        return ""
    accumulator, stored = found
    if stored not in (accumulator, v.container):
        return f"{accumulator} sums, rounded to {stored} and stored in {v.container}"
    return f"{accumulator} sums" + (f", stored in {v.container}" if v.container != accumulator else "")


def _arithmetic(v: Verdict) -> Iterator[str]:
    like = origin(v) if v.status == "mistake" else ""
    if like:
        yield f"What the values are like: roundings of {like}."


def _together(v: Verdict) -> Iterator[str]:
    """What the elements say together, where that is more than each of them."""
    t = v.together
    if v.status == "mistake" or not v.exact.size:
        return
    if t.is_far:
        yield (
            f"Together: the errors are {t.error:.2g} on average (root mean square), {t.error / t.yardstick:.2g} times "
            f"as large as the largest that detconv's own orders make of such sums ({t.yardstick:.2g}). Sound orders "
            f"stay within {YARDSTICKS:.0f} times."
        )
    if t.coarse is not None:
        formats = " or ".join(t.coarse.formats)
        if t.coarse.tells:
            yield (
                f"Together: the errors are those of operands rounded to {formats}: they are {t.coarse.projection:.2f} "
                f"times what that rounding does, give or take {t.coarse.standard_error:.1g}; of operands as they are, "
                "it would be 0."
            )
        else:
            yield (
                f"Whether operands were rounded to {formats} cannot be told: the errors are like it, but those of "
                "sound orders of these sums may be, too."
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
        text = (
            f"{_count(int(ours.sum()), 'element')} {_is(int(ours.sum()))} finite where the true sum is infinite or NaN"
        )
        if _skips_padding(v, ours):
            text += (
                ": at the border, where an infinite or NaN weight meets the padding. A padded tap is a term of zero, "
                "and infinity times zero is NaN (IEEE 754); the candidate skips the padding, as some libraries do"
            )
        yield text + "."
    if theirs.any():
        count = int(theirs.sum())
        text = f"{_count(count, 'element')} {_is(count)} infinite or NaN where the true sum is finite"
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
    if v.exact.size == 0 or v.status == "mistake":
        return
    if v.is_exact.all():
        yield (
            "How far this reaches: everything. The terms are multiples of one power of two, and so few and small that "
            "every order sums them without rounding: any other value would be a proven mistake."
        )
        return
    if not np.isfinite(v.bound).all():
        return
    with np.errstate(all="ignore"):
        typical = float(np.nanmedian(v.bound / (v.magnitude / max(float(v.problem.terms().max()), 1))))
    text = (
        f"How far this reaches: a fault is proven where it moves an output by more than its bound, here by "
        f"{float(v.bound.min()):.2g} to {float(v.bound.max()):.2g}"
    )
    if np.isfinite(typical):
        text += f", or {typical:.2g} of an average term"
    text += "; where it moves all outputs by less, it is too small to be told from rounding, one by one."
    power = v.power
    if not power.decides:
        text += " Here that is no test: zeros in place of all outputs might pass, too."
    elif np.isfinite(power.unlikely):
        text += (
            f" All together would be unlikely with errors of {power.unlikely:.2g} of the outputs' size (root mean "
            f"square)."
        )
        if v.together.blind_to:
            formats = " or ".join(v.together.blind_to)
            text += f" Whether operands were rounded to {formats} before they were multiplied cannot be told here."
        if power.zeros:
            text += f" Up to {_count(power.zeros, 'element')} could be zero without being noticed."
    yield text


def _terms(v: Verdict) -> str:
    terms = v.problem.terms()
    low, high = (int(terms.min()), int(terms.max())) if terms.size else (0, 0)
    return _count(high, "term") if low == high else f"{low} to {_count(high, 'term')}"


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def _of_elements(number: int, size: int) -> str:
    """How many elements of all."""
    return f"{number} of {_count(size, 'element')}"


def _is(count: int, size: int = 0) -> str:
    """The verb behind "count elements", or "count of size elements", in their number."""
    return "is" if 1 in (count, size) else "are"


def _its(number: int) -> str:
    return "its" if number == 1 else "their"


def _share(v: Verdict) -> str:
    return f"{100 * v.worst:.2g}%"


def _odds(confidence: float) -> str:
    return f"{1 / (1 - confidence):,.0f}"


def _place(v: Verdict, at: tuple[int, ...]) -> str:
    return ", ".join(f"{axis} {i}" for axis, i in zip(axes(v), at, strict=True))
