"""What all pictures share: their colours and their plain axes. matplotlib is the caller's to have."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, GREY = "#222222", "#666666"
# Okabe and Ito's colours, told apart by all forms of colour vision.
BLUE, GREEN, ORANGE, VERMILION = "#0072B2", "#009E73", "#E69F00", "#D55E00"


def plain(axes: Axes) -> None:
    """Axes without a frame, in quiet colours."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(which="both", color=GREY, labelcolor=INK)
