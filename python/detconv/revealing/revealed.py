"""What ``detconv.reveal`` found: the orders, where each holds, how sure that is, and for what."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from detconv.revealing import words
from detconv.revealing.passes import Array, Geometry, Part, parts
from detconv.revealing.replay import Classes, replay
from detconv.summation import Summation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMAT = 1
STATUSES = {
    "exact": "every output of the real shape has the bits of its order, in enough trials to rule out luck",
    "partial": "the orders of some outputs were found, not of all, or time ran out before luck was ruled out",
    "transform": "an output depends on pixels that its window misses: Winograd's algorithm, an FFT or the like",
    "nondeterministic": "the same call gave different bits",
    "not_a_tree": "no tree of additions gives these bits: compensated, exact or low-precision sums, say",
}
_CALLS = {"forward": "conv2d", "input_gradient": "conv2d_input", "weight_gradient": "conv2d_weight"}


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
        names = ("input_shape", "weight_shape", "bias", "stride", "padding", "dilation", "groups", "dtype", "pass_")
        return Geometry.of(**{name: _tuple(self.key[name]) for name in names})

    @property
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
        if name != _CALLS[geometry.pass_]:
            raise ValueError(f"summation: these orders are of {_CALLS[geometry.pass_]}, and not of {name}")
        other = Geometry.of(bias=bias is not None, dtype=image.dtype.name, pass_=geometry.pass_, **arguments)
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
        if not all(classes.complete for classes in self.classes):
            raise ValueError(
                f"summation: the order of {100 * (1 - self.match):.3f}% of the outputs is not known ({self.status}: "
                f"{self.reason})"
            )
        return replay(geometry, self.classes, image, panel, bias)

    # ---- Texts ----

    def __str__(self) -> str:
        orders = self.orders
        first = f": {orders[0]}" if orders else ""
        more = f" and {len(orders) - 1} more" if len(orders) > 1 else ""
        return f"{self.status}, {100 * self.match:.3f}% of the bits{first}{more}"

    def __repr__(self) -> str:
        return f"<Reveal {self}>"

    def explain(self) -> str:
        """A paragraph: the orders in words, how they were verified, and what is not known."""
        geometry, key = self.geometry, self.key
        size = int(np.prod(geometry.result_shape))
        lines = [f"{key['function']} ({key['library']} {key['version']}): {self.status}."]
        lines.append(_sentence(STATUSES[self.status]))
        if self.reason:
            lines.append(_sentence(f"Here: {self.reason}"))
        for order in self.orders:
            lines.append(f"{order.outputs} of {size} outputs{order.where and f' ({order.where})'}: {order.words}.")
            lines.append(f"    {order.name}")
        if self.orders and self.match < 1:
            unknown = size - round(self.match * size)
            lines.append(
                f"Of {unknown} outputs the order is not known, so there is nothing to replay all of them with."
            )
        if self.found_in:
            lines.append(f"The catalogue knows the order from: {self.found_in}.")
        if self.orders:
            lines.append(
                f"Verified: {100 * self.match:.3f}% of all outputs have the bits of their order in each of "
                f"{self.trials} trials, half of them on random normal values, half on values that cancel."
            )
        lines.append(
            "Not known: whether this holds for other shapes, layouts, numbers of threads, processors or versions; what "
            "is done with infinities and NaN; the sign of a zero, which detconv makes +0; the place of products with "
            "the padding's zeros, which change no sum of finite numbers."
        )
        return "\n".join(lines)

    def plot(self, order: int = 0) -> Figure:
        """A drawing of the tree of one of the orders. Needs matplotlib."""
        from detconv.revealing.drawing import draw

        orders = self.orders
        if not 0 <= order < len(orders):
            raise ValueError(f"order must be from 0 to {len(orders) - 1}; got {order}")
        return draw(orders[order], self)

    # ---- Files ----

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON takes it."""
        return {
            "format": FORMAT,
            "status": self.status,
            "reason": self.reason,
            "match": self.match,
            "trials": self.trials,
            "found_in": self.found_in,
            "calls": self.calls,
            "seconds": round(self.seconds, 3),
            "key": self.key,
            "parts": [
                {
                    "summations": [str(summation) for summation in classes.summations],
                    "outputs": classes.counts(),
                    "axes": [_runs(kinds) for kinds in classes.axes],
                    "core_shape": list(classes.core.shape),
                    "core": _runs(classes.core.ravel()),
                }
                for classes in self.classes
            ],
        }

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Reveal:
        """The reverse of ``to_dict``.

        Raises:
            ValueError: not what ``to_dict`` gives.
        """
        try:
            if data["format"] != FORMAT:
                raise ValueError(f"format {data['format']}; this release reads {FORMAT}")
            if data["status"] not in STATUSES:
                raise ValueError(f"status {data['status']!r}; valid: {', '.join(STATUSES)}")
            classes = tuple(
                Classes(
                    tuple(Summation.parse(text) for text in part["summations"]),
                    tuple(_unrolled(runs).astype(np.int32) for runs in part["axes"]),
                    _unrolled(part["core"]).astype(np.int16).reshape(part["core_shape"]),
                )
                for part in data["parts"]
            )
            key = {name: _tuple(value) for name, value in data["key"].items()}
            fields = ("status", "reason", "match", "trials", "found_in", "calls", "seconds")
            found = Reveal(key=key, classes=classes, **{name: data[name] for name in fields})
            if len(classes) not in (0, len(parts(found.geometry))):
                raise ValueError(f"not a revealed order: {len(classes)} parts")
            return found
        except (KeyError, TypeError, IndexError) as error:
            raise ValueError(f"not a revealed order: {type(error).__name__} {error}") from error

    def save(self, path: str | PathLike[str]) -> None:
        """Write a JSON file with the orders and their key."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")

    @staticmethod
    def load(path: str | PathLike[str]) -> Reveal:
        """Read a file that ``save`` wrote.

        Raises:
            ValueError: the file holds something else.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}: no JSON: {error}") from error
        if not isinstance(data, dict):
            raise ValueError(f"{path}: not a revealed order")
        return Reveal.from_dict(data)


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _runs(values: Array) -> list[list[int]]:
    """[value, how many in a row], ...: labels have long runs."""
    starts = np.flatnonzero(np.r_[True, values[1:] != values[:-1]])
    lengths = np.diff(np.r_[starts, len(values)])
    return [[int(values[start]), int(length)] for start, length in zip(starts, lengths, strict=True)]


def _unrolled(runs: list[list[int]]) -> Array:
    pairs = np.array(runs, np.int64).reshape(-1, 2)
    return np.repeat(pairs[:, 0], pairs[:, 1])


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
    breaks = np.flatnonzero(np.diff(numbers) > 1) + 1
    groups = np.split(numbers, breaks)
    texts = [f"{group[0]}" if len(group) == 1 else f"{group[0]}-{group[-1]}" for group in groups]
    return ", ".join(texts) if len(texts) <= 4 else f"{', '.join(texts[:3])}, ... {texts[-1]}"
