"""What a notebook shows of revealed orders."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import TYPE_CHECKING

from detconv import pages
from detconv.quoting import shortened

if TYPE_CHECKING:
    from detconv.revealing.revealed import Reveal

_ROWS = 20


def fragment(found: Reveal) -> str:
    """The status, the orders as a table and what is known of them, for a page that has its own head."""
    return pages.fragment(_parts(found))


def _parts(found: Reveal) -> Iterator[str]:
    yield f'<div class="verdict {_COLORS.get(found.status, "unlikely")}">{escape(found.status.capitalize())}</div>'
    yield from pages.paragraphs(f"{found.headline}\n\n{found.meaning}")
    if found.orders:
        shown = found.orders[:_ROWS]
        rows = [(shortened(o.name), o.words, o.where or "everywhere", str(o.outputs)) for o in shown]
        more = f" (the first {_ROWS} of {len(found.orders)})" if len(found.orders) > _ROWS else ""
        yield from pages.table(f"Orders{more}", ("order", "in words", "where", "outputs"), rows)
    yield from (f"<p>{escape(line)}</p>" for line in found.evidence())


_COLORS = {"exact": "identical", "mistake": "mistake"}
