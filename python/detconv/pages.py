"""Pieces of pages: what a notebook shows of a result, and what a page of its own is made of."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Colours that stand out enough from a white and from a black page, in large letters: 3:1 and more (WCAG 2.1, 1.4.3).
STYLE = """
.detconv { font: 16px/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
.detconv .verdict { font-size: 2.2em; line-height: 1.2; margin: 0 0 .5em; padding-left: .4em;
  border-left: .25em solid currentColor; }
.detconv .identical { color: #0072B2 } .detconv .rounding { color: #008F68 }
.detconv .unlikely { color: #B07800 } .detconv .mistake { color: #D55E00 }
.detconv p { white-space: pre-wrap; max-width: 46em; }
.detconv .wide { overflow-x: auto; }
.detconv table { border-collapse: collapse; margin: .5em 0 1.5em; font-size: .94em; }
.detconv caption { text-align: left; font-weight: 600; padding: .3em 0; }
.detconv th, .detconv td { padding: .25em .8em; border-bottom: 1px solid #8886; text-align: left;
  vertical-align: top; }
.detconv th[scope=row] { white-space: nowrap; }
.detconv td.number, .detconv th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
"""


def fragment(parts: Iterable[str]) -> str:
    """Parts of a page with their style, for a page that has its own head: a notebook, say."""
    return "\n".join([f"<style>{STYLE}</style>", '<div class="detconv">', *parts, "</div>"])


def paragraphs(text: str) -> Iterator[str]:
    """The paragraphs of a text, which an empty line parts."""
    return (f"<p>{escape(paragraph)}</p>" for paragraph in text.split("\n\n") if paragraph)


def table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    """A table whose first column names its rows; columns of numbers are aligned to the right."""
    yield f'<div class="wide"><table><caption>{escape(caption)}</caption>'
    rows = list(rows)
    numeric = [_is_number(rows[0][column]) if rows else False for column in range(len(heads))]
    if any(heads):
        cells = (
            f'<th scope="col"{_class(number)}>{escape(head)}</th>' for head, number in zip(heads, numeric, strict=True)
        )
        yield f"<thead><tr>{''.join(cells)}</tr></thead>"
    yield "<tbody>"
    for first, *others in rows:
        cells = (
            f"<td{_class(number)}>{escape(str(cell))}</td>" for cell, number in zip(others, numeric[1:], strict=True)
        )
        yield f'<tr><th scope="row">{escape(str(first))}</th>{"".join(cells)}</tr>'
    yield "</tbody></table></div>"


def _is_number(cell: object) -> bool:
    try:
        float(str(cell))
    except ValueError:
        return False
    return True


def _class(number: bool) -> str:
    return ' class="number"' if number else ""


def picture(draw: Callable[[], Figure], words: str) -> str:
    """A figure as part of a page, and the same in words: drawn for white pages, and again for dark ones."""
    from detconv.drawing import darken

    bright, dark = draw(), draw()
    darken(dark)
    return (
        f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{_data(dark)}">'
        f'<img alt="{escape(words)}" src="{_data(bright)}"></picture><figcaption>{escape(words)}</figcaption></figure>'
    )


def _data(figure: Figure) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
