"""What all pictures share: their colours and their plain axes. matplotlib is the caller's to have."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, GREY = "#222222", "#666666"
# Okabe and Ito's colours, told apart by all forms of colour vision.
BLUE, GREEN, ORANGE, VERMILION = "#0072B2", "#009E73", "#E69F00", "#D55E00"


def plain(axes: Axes) -> None:
    """Axes without a frame, in quiet colours."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(which="both", color=GREY, labelcolor=INK)


def figure(width: float, height: float, **options: Any) -> Figure:
    """A figure of this size, in inches, that a notebook shows: it belongs to no window and pyplot keeps nothing of it.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    class Picture(Figure):
        def _repr_png_(self) -> bytes:
            file = io.BytesIO()
            self.savefig(file, format="png")
            return file.getvalue()

    return Picture(figsize=(width, height), dpi=120, **options)


# What ink and paper are on a dark page.
_DARK = {INK: "#E6E6E6", GREY: "#A8A8A8"}
_DARK_PAPER = "#16181B"


def darken(figure: Figure) -> None:
    """Make a figure one for a dark page: dark paper; letters, lines and axes in light ink; colours as they are."""
    from matplotlib.colors import to_hex
    from matplotlib.lines import Line2D
    from matplotlib.spines import Spine
    from matplotlib.text import Text

    def lighter(color: Any) -> str:
        text = to_hex(color)
        return _DARK.get(text.upper(), _DARK.get(text, _DARK[INK] if text == "#000000" else text))

    figure.set_facecolor(_DARK_PAPER)
    for axes in figure.axes:
        axes.set_facecolor(_DARK_PAPER)
    for text in figure.findobj(Text):
        text.set_color(lighter(text.get_color()))
    for line in figure.findobj(Line2D):
        line.set_color(lighter(line.get_color()))
    for spine in figure.findobj(Spine):
        spine.set_edgecolor(lighter(spine.get_edgecolor()))
