"""What ``detconv.reveal`` found: the orders, where each holds, how sure that is, and for what."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from detconv.quoting import first_line, shortened
from detconv.revealing import records, words
from detconv.revealing.passes import ARGUMENTS, Array, Geometry, Part, parts
from detconv.revealing.replay import Classes, replay
from detconv.summation import Summation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STATUSES = {
    "exact": "every output of the real shape has the bits of its order, in enough trials to rule out luck",
    "partial": "the orders of some outputs were found, not of all, or time ran out before luck was ruled out",
    "transform": "an output depends on pixels that its window misses: Winograd's algorithm, an FFT or the like",
    "nondeterministic": "the same call gave different bits",
    "mistake": "the outputs are those of another convolution than the one that was asked for",
    "not_a_tree": "no tree of additions gives these bits: compensated, exact or low-precision sums, say",
}
_CALLS = {"forward": "conv2d", "input_gradient": "conv2d_input", "weight_gradient": "conv2d_weight"}
_LARGEST_FILE = 2**28  # bytes
_MOST_ORDERS = 100  # in a text
_LONGEST_ORDER = 2000  # characters, likewise


@dataclass(frozen=True)
class RevealedOrder:
    """The order of one class of outputs. summation: what gives their bits; outputs: how many they are; where: in words;
    loops, extents: what the numbers of the terms count."""

    summation: Summation
    outputs: int
    where: str
    loops: tuple[str, str, str]
    extents: tuple[int, int, int]

    @property
    def text(self) -> str:
        """The order in the order language."""
        return self.summation.order

    @property
    def name(self) -> str:
        """The shortest text of the summation: a nest of loops by its name, else the order spelt out."""
        if not self.summation.explicit_order:
            return str(self.summation)
        return words.loops_as_order(self.text, self.loops, self.extents) or self.text

    @property
    def words(self) -> str:
        """The order in words."""
        if not self.summation.explicit_order:
            return f'the summation "{self.summation}"'
        return words.in_words(self.text, self.loops, self.extents)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, eq=False)
class Reveal:
    """The order, or the orders, of a function that convolves; pass it as ``summation`` to have its bits.

    Fields:
        status: one of ``STATUSES``. ``"exact"`` is said of the shapes in the key, after replaying them.
        reason: why the status is what it is, where it is not ``"exact"``.
        match: the fraction of all outputs that an order gives bit for bit, in all trials.
        trials: how many random inputs all outputs were compared for.
        key: what this holds for: library, version, processor, threads, layout, dtype, shapes and geometry.
        found_in: where the catalogue knows the order from, if ``identify`` found it there.
        calls, seconds: what it took.
    """

    status: str
    reason: str
    match: float
    trials: int
    key: dict[str, Any]
    classes: tuple[Classes, ...]
    found_in: str = ""
    calls: int = 0
    seconds: float = 0.0

    @cached_property
    def geometry(self) -> Geometry:
        given: dict[str, Any] = {name: self.key[name] for name in ARGUMENTS if name in self.key}
        return Geometry.of(**given)

    @cached_property
    def orders(self) -> tuple[RevealedOrder, ...]:
        """The classes of outputs, those with the most outputs first in each part of the pass."""
        found = []
        for part, classes in zip(parts(self.geometry), self.classes, strict=False):
            ranked = sorted(zip(classes.counts(), range(len(classes.summations)), strict=True), key=lambda c: -c[0])
            for count, number in ranked:
                where = _where(part, classes, number)
                found.append(RevealedOrder(classes.summations[number], count, where, part.loops, part.extents))
        return tuple(found)

    # ---- Replay ----

    def replay(self, name: str, arrays: Sequence[Array | None], arguments: dict[str, Any]) -> Array:
        """What ``detconv.NAME(..., summation=self)`` returns. arrays: image, panel and bias, of NumPy.

        Raises:
            ValueError: another call than the one whose orders these are, or an output whose order is not known.
        """
        geometry, image, panel, bias = self.geometry, arrays[0], arrays[1], arrays[2]
        assert image is not None
        assert panel is not None
        known = "conv_transpose2d" if geometry.transposed else _CALLS[geometry.pass_]
        if name != known:
            raise ValueError(f"summation: these orders are of {known}, and not of {name}")
        fixed: dict[str, Any] = {"pass_": geometry.pass_, "transposed": geometry.transposed}
        other = Geometry.of(bias=bias is not None, dtype=image.dtype.name, **fixed, **arguments)
        if other != geometry:
            differ = [n for n, value in geometry.arguments().items() if other.arguments()[n] != value]
            if differ == ["padding"] and other.borders == geometry.borders:
                differ = []
            if differ:
                known = ", ".join(f"{n} {geometry.arguments()[n]}" for n in differ)
                given = ", ".join(f"{n} {other.arguments()[n]}" for n in differ)
                raise ValueError(f"summation: these orders hold for {known}; got {given}")
        if panel.dtype != image.dtype or (bias is not None and bias.dtype != image.dtype):
            raise TypeError("the arrays must have one dtype")
        if not self.classes or not all(classes.complete for classes in self.classes):
            raise ValueError(
                f"summation: the order of {100 * (1 - self.match):.3f}% of the outputs is not known ({self.status}: "
                f"{self.reason})"
            )
        return replay(geometry, self.classes, image, panel, bias)

    # ---- Texts ----

    def __str__(self) -> str:
        orders = self.orders
        first = f": {shortened(orders[0].name)}" if orders else ""
        more = f" and {len(orders) - 1} more" if len(orders) > 1 else ""
        return f"{self.status}, {100 * self.match:.3f}% of the bits{first}{more}"

    def __repr__(self) -> str:
        return f"<Reveal {self}>"

    def explain(self) -> str:
        """A paragraph: the orders in words, how they were verified, and what is not known.

        At most 100 orders, and 2000 characters of each; ``orders`` and ``to_dict`` have all.
        """
        size = math.prod(self.geometry.result_shape)
        lines = [self.headline, self.meaning]
        for order in self.orders[:_MOST_ORDERS]:
            lines.append(f"{order.outputs} of {size} outputs{order.where and f' ({order.where})'}: {order.words}.")
            lines.append(f"    {shortened(order.name, _LONGEST_ORDER)}")
        if len(self.orders) > _MOST_ORDERS:
            lines.append(f"And {len(self.orders) - _MOST_ORDERS} orders more.")
        return "\n".join([*lines, *self.evidence()])

    @property
    def headline(self) -> str:
        """The function and the status, in one line."""
        function, library, version = (shortened(self.key[name]) for name in ("function", "library", "version"))
        return f"{function} ({library} {version}): {self.status}."

    @property
    def meaning(self) -> str:
        """What the status means, and why it is said."""
        reason = f" {_sentence(f'Here: {shortened(self.reason, 1000)}')}" if self.reason else ""
        return _sentence(STATUSES[self.status]) + reason

    def evidence(self) -> Iterator[str]:
        """How the orders were verified, and what is not known, sentence by sentence."""
        if self.orders and self.match < 1:
            unknown = math.prod(self.geometry.result_shape) * (1 - self.match)
            yield f"Of {round(unknown)} outputs the order is not known, so there is nothing to replay all of them with."
        if self.found_in:
            yield f"The catalogue knows the order from: {shortened(self.found_in, 1000)}."
        if self.orders:
            yield (
                f"Verified: {100 * self.match:.3f}% of all outputs have the bits of their order in each of "
                f"{self.trials} trials, half of them on random normal values, half on values that cancel."
            )
        if self.status != "mistake":
            yield (
                "Not known: whether this holds for other shapes, layouts, numbers of threads, processors or versions; "
                "what is done with infinities and NaN; the sign of a zero, which detconv makes +0; the place of "
                "products with the padding's zeros, which change no sum of finite numbers."
            )

    def _repr_html_(self) -> str:
        """What a notebook shows: the same as ``explain``, orders as a table."""
        from detconv.revealing.html import fragment

        return fragment(self)

    def plot(self, order: int = 0) -> Figure:
        """A drawing of the tree of one of the orders. Needs matplotlib."""
        from detconv.revealing.drawing import draw

        orders = self.orders
        if not 0 <= order < len(orders):
            raise ValueError(f"order must be from 0 to {len(orders) - 1}; got {order}")
        return draw(orders[order], self)

    # ---- Files ----

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON takes it; ``"version"`` is that of this format."""
        return records.to_record(self)

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Reveal:
        """The reverse of ``to_dict``, and of that of earlier releases.

        Raises:
            ValueError: not what ``to_dict`` gives, or orders that do not fit the convolution of the key.
        """
        return Reveal(**records.from_record(data, STATUSES))

    def save(self, path: str | PathLike[str]) -> None:
        """Write a JSON file with the orders and their key."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")

    @staticmethod
    def load(path: str | PathLike[str]) -> Reveal:
        """Read a file that ``save`` wrote. Every part of it is checked against its key.

        Raises:
            ValueError: the file holds something else.
            OSError: there is no such file, or it cannot be opened.
        """
        name = shortened(str(path))
        with open(path, "rb") as file:
            text = file.read(_LARGEST_FILE + 1)
        if len(text) > _LARGEST_FILE:
            raise ValueError(f"{name}: no file of more than {_LARGEST_FILE} bytes is read")
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:  # the latter for a text of a thousand brackets
            raise ValueError(f"{name}: no JSON: {first_line(error)}") from error
        try:
            return Reveal.from_dict(data)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _where(part: Part, classes: Classes, number: int) -> str:
    """Which outputs a class holds, in words: those of some rows, some samples, some pixels."""
    mask = classes.core == number
    said = [part.name] if part.name else []
    names = ("samples", "channels", "rows", "columns")
    if part.loops[0] == "n":
        names = ("input channels", "output channels", "kh", "kw")
    for axis, kinds in enumerate(classes.axes):
        used = mask.any(tuple(a for a in range(4) if a != axis))
        where = np.flatnonzero(used[kinds])
        if 0 < len(where) < len(kinds):
            said.append(f"{names[axis]} {_ranges(where)}")
    if len(classes.summations) > 1 and not said:
        said.append("scattered")
    return ", ".join(said)


def _ranges(numbers: Array) -> str:
    """Such as "0-3, 5"; of many stretches the first three and the last."""
    breaks = np.flatnonzero(np.diff(numbers) > 1) + 1
    firsts, lasts = np.r_[0, breaks], np.r_[breaks, len(numbers)] - 1
    some = range(len(firsts)) if len(firsts) <= 4 else [0, 1, 2, -1]
    stretches = [(int(numbers[firsts[i]]), int(numbers[lasts[i]])) for i in some]
    texts = [f"{first}" if first == last else f"{first}-{last}" for first, last in stretches]
    return ", ".join(texts) if len(firsts) <= 4 else f"{', '.join(texts[:3])}, ... {texts[-1]}"
