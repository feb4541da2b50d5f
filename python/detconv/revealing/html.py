"""What a notebook shows of revealed orders."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import TYPE_CHECKING

from detconv.quoting import shortened

if TYPE_CHECKING:
    from detconv.revealing.revealed import Reveal

_ROWS = 20
_STYLE = """
.detconv-reveal { font: 15px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; max-width: 60em; }
.detconv-reveal h3 { margin: 0 0 .4em; }
.detconv-reveal table { border-collapse: collapse; margin: .5em 0 1em; }
.detconv-reveal th, .detconv-reveal td { padding: .25em .8em; border-bottom: 1px solid #8886; text-align: left;
  vertical-align: top; }
.detconv-reveal td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
"""


def fragment(found: Reveal) -> str:
    """The status, the orders as a table and what is known of them, for a page that has its own head."""
    return "\n".join(_lines(found))


def _lines(found: Reveal) -> Iterator[str]:
    yield f"<style>{_STYLE}</style>"
    yield '<div class="detconv-reveal">'
    yield f"<h3>{escape(found.headline)}</h3>"
    yield f"<p>{escape(found.meaning)}</p>"
    if found.orders:
        yield "<table>"
        columns = ("outputs", "where", "order", "in words")
        yield "<tr>" + "".join(f'<th scope="col">{name}</th>' for name in columns) + "</tr>"
        for order in found.orders[:_ROWS]:
            where, name, words = (escape(text) for text in (order.where, shortened(order.name), order.words))
            yield f'<tr><td class="number">{order.outputs}</td><td>{where or "everywhere"}</td>'
            yield f"<td><code>{name}</code></td><td>{words}</td></tr>"
        yield "</table>"
        if len(found.orders) > _ROWS:
            yield f"<p>And {len(found.orders) - _ROWS} orders more.</p>"
    for line in found.evidence():
        yield f"<p>{escape(line)}</p>"
    yield "</div>"
