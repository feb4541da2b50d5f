"""A picture of a summation tree. Needs matplotlib."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from detconv.drawing import BLUE, GREEN, GREY, INK, VERMILION, figure, plain
from detconv.quoting import shortened
from detconv.revealing.trees import Tree, tree_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from detconv.revealing.revealed import Reveal, RevealedOrder


MOST_LEAVES = 20_000  # two thousand to an inch: more make no other picture, and take minutes


def draw(order: RevealedOrder, revealed: Reveal) -> Figure:
    """Leaves in the sequence in which the chains meet them, from left to right; the height of an addition is the
    number of leaves below it, so chains are lines and brackets are branches.

    Raises:
        ValueError: an order that is known by its name alone, or of more than 20,000 products.
    """
    from matplotlib.collections import LineCollection
    from matplotlib.lines import Line2D

    terms = math.prod(order.extents)
    if not order.summation.explicit_order:
        raise ValueError(
            f"no tree is known for {order.name}, which was found by its name; reveal it without hypotheses"
        )
    if terms > MOST_LEAVES:
        raise ValueError(f"an order of at most {MOST_LEAVES} products can be drawn; this one has {terms}")
    tree = tree_of(order.text, terms)
    places, heights = _places(tree)
    picture = figure(11, 6)
    axes = picture.add_axes((0.08, 0.12, 0.89, 0.72))
    lines, colors = [], []
    for node, children in tree.children.items():
        for child in children:
            lines.append(
                [(places[child], heights[child]), (places[child], heights[node]), (places[node], heights[node])]
            )
            colors.append(_color(tree, child))
    width = min(1.6, max(0.25, 400 / len(places)))
    axes.add_collection(LineCollection(lines, colors=colors, linewidths=width))
    axes.autoscale()
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"the {terms} products and the bias, in the sequence in which they are added", color=INK)
    axes.set_ylabel("products in the partial sum", color=INK)
    plain(axes)
    picture.text(0.02, 0.94, shortened(order.name, 90), fontsize=13, color=INK)
    key = revealed.key
    said = f"{key['library']} {key['version']}, input {key['input_shape']}, weight {key['weight_shape']}: {order.words}"
    picture.text(0.02, 0.895, shortened(said, 150), fontsize=9, color=GREY)
    names = {VERMILION: "fused product", BLUE: "rounded product", GREEN: "bias", INK: "partial sum"}
    used = [color for color in names if color in colors]
    handles = [Line2D([], [], color=color, linewidth=1.5, label=names[color]) for color in used]
    axes.legend(handles=handles, loc="upper left", frameon=False, fontsize=9, labelcolor=INK)
    return picture


def _places(tree: Tree) -> tuple[dict[int, float], dict[int, float]]:
    """Where every node stands: leaves side by side as the chains meet them, a sum above its larger part."""
    sizes: dict[int, int] = {}
    for node, (a, b) in tree.children.items():
        sizes[node] = sizes.get(a, 1) + sizes.get(b, 1)
    places: dict[int, float] = {}
    heights = {node: float(size) for node, size in sizes.items()}
    todo = [tree.root]
    while todo:  # the larger part first: it is the accumulator that the other is added to
        node = todo.pop()
        if tree.is_leaf(node):
            places[node], heights[node] = float(len(places)), 0.0
            continue
        a, b = tree.children[node]
        todo += [b, a] if sizes.get(a, 1) >= sizes.get(b, 1) else [a, b]
    for node, (a, b) in tree.children.items():
        places[node] = max(places[a], places[b])
    return places, heights


def _color(tree: Tree, node: int) -> str:
    if not tree.is_leaf(node):
        return INK
    if node == tree.terms:
        return GREEN
    return VERMILION if node in tree.fused else BLUE
