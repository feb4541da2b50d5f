"""The verdict as a page: one file of HTML that needs nothing else, and the part of it that a notebook shows."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from detconv import _core, pages
from detconv.verdict.explain import WHAT, axes

if TYPE_CHECKING:
    from detconv.verdict.judge import Verdict

_WORST = 10

_MEANING = {
    "identical": "the true sum of the products and the bias, rounded once",
    "rounding": "within the probable bound: roundings do that",
    "unlikely": "beyond the probable bound, within the bound",
    "mistake": "beyond the bound: no order of the additions does that",
}

_PAGE_STYLE = """
:root { color-scheme: light dark; }
body { max-width: 75rem; margin: 2rem auto; padding: 0 1rem; background: #fff; color: #222; }
h2 { margin-top: 2em; font-size: 1.3em; }
figure { margin: 0; } figcaption { font-size: .9em; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); gap: 1.5rem; }
img { width: 100%; height: auto; border-radius: 4px; }
footer { margin-top: 3em; font-size: .9em; }
@media (prefers-color-scheme: dark) {
  body { background: #16181b; color: #e6e6e6; }
}
"""


def write(verdict: Verdict, path: Path) -> None:
    """Write the page of a verdict: everything is in it, the pictures too where matplotlib is installed.

    Raises:
        OSError: the file cannot be written.
    """
    path.write_text("\n".join(_page(verdict)) + "\n", encoding="utf-8")


def fragment(verdict: Verdict) -> str:
    """The answer, its reasons and the worst elements, for a page that has its own head: a notebook, say."""
    return pages.fragment((*_answer(verdict, "div"), *_worst(verdict)))


def _page(verdict: Verdict) -> Iterator[str]:
    title = f"{verdict.status.capitalize()}: detconv's verdict on the {WHAT[verdict.problem.name]} of a convolution"
    yield "<!doctype html>"
    yield '<html lang="en">'
    yield "<head>"
    yield '<meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    # Nothing is fetched and nothing runs: what is seen is what the file says.
    yield (
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">"
    )
    yield f"<title>{escape(title)}</title>"
    yield f"<style>{pages.STYLE}{_PAGE_STYLE}</style>"
    yield "</head>"
    yield '<body class="detconv">'
    yield "<main>"
    yield from _answer(verdict, "h1")
    yield "<h2>Pictures</h2>"
    yield from _pictures(verdict)
    yield "<h2>Elements</h2>"
    yield from _worst(verdict)
    yield "<h2>The problem</h2>"
    yield from _problem(verdict)
    yield "<h2>How the bound is made</h2>"
    yield from _bound(verdict)
    yield "</main>"
    yield f"<footer>Made by detconv {escape(_core.__version__)}.</footer>"
    yield "</body>"
    yield "</html>"


def _answer(v: Verdict, tag: str) -> Iterator[str]:
    # The answer's first word is the heading; its sentence goes on below.
    heading, colon, sentences = v.explain().partition(": ")
    if not colon or "\n" in heading:
        heading, sentences = v.status.capitalize(), v.explain()
    yield f'<{tag} class="verdict {v.status}">{escape(heading)}</{tag}>'
    yield from pages.paragraphs(sentences[:1].upper() + sentences[1:])
    rows = [(status, v.counts[status], _MEANING[status]) for status in v.counts]
    yield from pages.table("Elements by status", ("status", "elements", "which means"), rows)


# ---- Tables ----


def _worst(v: Verdict) -> Iterator[str]:
    """The elements with the largest errors for their bounds."""
    off = np.flatnonzero(v.codes)
    if not off.size:
        yield "<p>No element is off.</p>"
        return
    # Of the largest few, in any order, the largest first; those that are equal in their own sequence.
    least = np.partition(v.share.flat[off], -min(_WORST, off.size))[-min(_WORST, off.size)]
    chosen = off[v.share.flat[off] >= least]
    chosen = chosen[np.argsort(-v.share.flat[chosen], kind="stable")][:_WORST]
    rows = []
    for i in chosen:
        at = tuple(int(k) for k in np.unravel_index(i, v.exact.shape))
        rows.append(
            (
                ", ".join(map(str, at)),
                f"{v.candidate[at]:.9g}",
                f"{v.exact[at]:.9g}",
                *(f"{float(a[at]):.3g}" for a in (v.error, v.ulps, v.magnitude, v.bound, v.probable_bound, v.share)),
                str(v.elements[at]),
            )
        )
    numbers = ("value", "true sum", "error", "in ulp", "S", "bound", "probable bound", "error / bound")
    yield from pages.table(
        f"The {len(rows)} of {off.size} elements that are off with the largest error for their bound",
        (", ".join(axes(v)), *numbers, "status"),
        rows,
    )


def _problem(v: Verdict) -> Iterator[str]:
    terms = v.problem.terms()
    low, high = (int(terms.min()), int(terms.max())) if terms.size else (0, 0)
    rows: list[tuple[object, ...]] = [
        ("function", f"detconv.{v.problem.name}"),
        *((name, _as_text(value)) for name, value in v.problem.named()),
        (f"{WHAT[v.problem.name]} in question", f"{v.exact.shape}, {v.stored}"),
        ("its sums are claimed to be added in", v.dtype),
        ("terms of a sum, n", f"{low}" if low == high else f"{low} to {high}, where padding leaves fewer"),
        ("confidence of the probable bound", f"{v.confidence:.10g}"),
    ]
    yield from pages.table("What was judged", ("", ""), rows)


def _as_text(value: object) -> str:
    if isinstance(value, np.ndarray):
        return str(value.shape)
    return "none" if value is None else str(value)


def _bound(v: Verdict) -> Iterator[str]:
    digits = v.claim.format.digits
    yield (
        f"<p>An element is the sum of n terms, its products and the bias. u = 2<sup>-{digits}</sup> is the largest "
        f"relative error of one rounding in {escape(v.claim.accumulator)}. In whatever order and tree the terms are "
        "added, and whether products are rounded or fused, no term meets more than n roundings; so the computed "
        "sum is within</p>"
    )
    yield "<p><i>bound</i> = &gamma;<sub>n</sub> S, &gamma;<sub>n</sub> = n u / (1 - n u), S = &sum; |w x| + |bias|</p>"
    yield (
        "<p>of the true sum (N. J. Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition, SIAM 2002, "
        "sections 3.1 and 4.2). To this are added the half unit in the last place by which the true sum was rounded, "
        "that of the value itself where it is stored in fewer digits than it was added in, and what roundings among "
        "subnormal numbers may do. S is computed, with a factor that makes up for its own roundings. An error beyond "
        "the bound is a proof of a mistake.</p>"
    )
    yield (
        "<p><i>probable bound</i> = (exp(&lambda; &radic;n u + n u<sup>2</sup> / (1 - u)) - 1) S, about &lambda; "
        "&radic;n u S, if the roundings are random, independent and zero on average (N. J. Higham and T. Mary, SIAM "
        "Journal on Scientific Computing 41(5), 2019, theorem 2.4). &lambda; is chosen so that, with the confidence "
        "above, no element of all exceeds it. An error between the two is no proof.</p>"
    )
    yield "<p>True sums are computed by detconv's method exact: the sum as a real number, rounded once.</p>"


# ---- Pictures ----


def _pictures(v: Verdict) -> Iterator[str]:
    if not v.exact.size:
        yield "<p>There are no elements to draw.</p>"
        return
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        yield "<p>Left out: the pictures. They need matplotlib, which is not installed (pip install matplotlib).</p>"
        return
    from detconv.verdict.plots import PANELS, plot_panel

    yield '<div class="pictures">'
    for panel in PANELS:
        yield pages.picture(partial(plot_panel, v, panel), panel.words(v))
    yield "</div>"
