"""Sums in given orders: each class of outputs by its own summation, in the engine, where it is needed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detconv import _core
from detconv.revealing.passes import Array, Axis, Geometry, Part, parts
from detconv.summation import Summation

Labels = NDArray[np.int16]  # which class an output is of; -1: none
Span = tuple[int, int]
Region = tuple[Span, Span, Span, Span]  # of a part's output: n, rows, p, q
_AT_ONCE = 2**20  # labels that are counted at once: of a large output they take a lot of memory
_MOST_SPANS = 8  # of one axis; with more, one span from the first to the last


@dataclass(frozen=True)
class Classes:
    """The orders of one part's outputs. labels: those of the part's output shape, each axis without its repetitions:
    the class of output (n, row, p, q) is core[n_of[n], row_of[row], ...]."""

    summations: tuple[Summation, ...]
    axes: tuple[NDArray[np.int32], ...]
    core: Labels

    @staticmethod
    def of(summations: Sequence[Summation], labels: Labels) -> Classes:
        """Orders and labels, the labels made small; orders that no output has are left out."""
        used = [c for c in range(len(summations)) if (labels == c).any()]
        new = np.full(len(summations) + 1, -1, np.int16)
        for number, c in enumerate(used):
            new[c] = number
        core, axes = new[labels], []
        for axis in range(labels.ndim):
            kinds: dict[bytes, int] = {}
            kind_of = [kinds.setdefault(np.take(core, i, axis).tobytes(), len(kinds)) for i in range(core.shape[axis])]
            axes.append(np.array(kind_of, np.int32))
            core = np.take(core, [kind_of.index(kind) for kind in range(len(kinds))], axis)
        return Classes(tuple(summations[c] for c in used), tuple(axes), core)

    @property
    def labels(self) -> Labels:
        found: Labels = self.core[np.ix_(*self.axes)]
        return found

    def counts(self) -> list[int]:
        """How many outputs each order has."""
        repeated = [np.bincount(kinds, minlength=n) for kinds, n in zip(self.axes, self.core.shape, strict=True)]
        found, flat = np.zeros(1 + len(self.summations), np.int64), self.core.ravel()
        for start in range(0, flat.size, _AT_ONCE):
            labels = flat[start : start + _AT_ONCE].astype(np.intp)
            at = np.unravel_index(np.arange(start, start + len(labels)), self.core.shape)
            times = math.prod((counts[place] for counts, place in zip(repeated, at, strict=True)), start=np.int64(1))
            np.add.at(found, 1 + labels, times)
        return [int(count) for count in found[1:]]

    @property
    def complete(self) -> bool:
        return bool((self.core >= 0).all())


def spans(used: Array) -> list[Span]:
    """The stretches of True in a vector; one that holds all of them, where they are many."""
    edges = np.flatnonzero(np.diff(np.r_[False, used, False].astype(np.int8)))
    found = [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]
    return found if len(found) <= _MOST_SPANS else [(found[0][0], found[-1][1])]


def boxes(mask: Array) -> Iterator[Region]:
    """Boxes that hold all that is True in an array of four axes."""
    along = [spans(np.asarray(mask.any(tuple(a for a in range(4) if a != axis)))) for axis in range(4)]
    for n in along[0]:
        for rows in along[1]:
            for p in along[2]:
                for q in along[3]:
                    if mask[n[0] : n[1], rows[0] : rows[1], p[0] : p[1], q[0] : q[1]].any():
                        yield n, rows, p, q


def whole(part: Part) -> Region:
    return (0, part.shape[0]), (0, part.shape[1]), (0, part.shape[2]), (0, part.shape[3])


def compute(
    part: Part, image: Array, panel: Array, bias: Array | None, summation: Summation, box: Region | None = None
) -> tuple[Array, Region]:
    """The outputs of a box in one summation, and the box, which may have grown to whole groups.

    image, panel: as the part takes them (``part.image``, ``part.panel``).
    """
    (n0, n1), (r0, r1), (p0, p1), (q0, q1) = box or whole(part)
    rows, planes = part.rows // part.groups, part.extents[0]
    groups = 1
    if part.groups > 1:
        g0, g1 = r0 // rows, (r1 - 1) // rows + 1
        r0, r1, groups = g0 * rows, g1 * rows, g1 - g0
        image = image[:, g0 * planes : g1 * planes]
    image = image[n0:n1]
    reads, borders = [], []
    for axis, (first, last) in enumerate(((p0, p1), (q0, q1))):
        length, before = image.shape[2 + axis], part.borders[axis][0]
        start = first * part.stride[axis] - before
        stop = (last - 1) * part.stride[axis] + (part.extents[1 + axis] - 1) * part.dilation[axis] + 1 - before
        if (first, last) == (0, part.shape[2 + axis]) and part.borders[axis][0] == part.borders[axis][1] and length:
            reads.append(slice(None))
            borders.append(part.borders[axis])
            continue
        seen = Axis.of(length, start, stop - start)
        reads.append(seen.part)
        borders.append((seen.before, seen.after))
    image = image[:, :, reads[0], reads[1]]
    padding = borders[0][0], borders[1][0]
    if any(before != after for before, after in borders) or 0 in image.shape[2:]:
        image, padding = np.pad(image, ((0, 0), (0, 0), *borders)), (0, 0)
    result = _core.conv2d(
        image,
        panel[r0:r1],
        None if bias is None else bias[r0:r1],
        part.stride,
        padding,
        part.dilation,
        groups,
        summation._compiled,
    )
    return result, ((n0, n1), (r0, r1), (p0, p1), (q0, q1))


def replay_part(part: Part, classes: Classes, image: Array, panel: Array, bias: Array | None) -> Array:
    """All outputs of a part, each in the order of its class."""
    if len(classes.summations) == 1 and classes.complete:
        return compute(part, image, panel, bias, classes.summations[0])[0]
    labels = classes.labels
    result = np.empty(part.shape, image.dtype)
    for number, summation in enumerate(classes.summations):
        mask = labels == number
        for box in boxes(mask):
            got, grown = compute(part, image, panel, bias, summation, box)
            at = tuple(slice(*span) for span in grown)
            np.copyto(result[at], got, where=mask[at])
    return result


def replay(geometry: Geometry, classes: Sequence[Classes], image: Array, panel: Array, bias: Array | None) -> Array:
    """The result of a pass, by the classes of each of its parts; image, panel: the pass's own operands."""
    made = parts(geometry)
    if geometry.pass_ == "forward" and not geometry.transposed:
        return replay_part(made[0], classes[0], image, panel, bias)
    result = of_no_terms(geometry, bias)
    for part, own in zip(made, classes, strict=True):
        part.select(result)[...] = replay_part(part, own, part.image(image), part.panel(panel), bias)
    return result


def of_no_terms(geometry: Geometry, bias: Array | None) -> Array:
    """The result of sums of no products: +0, or the bias, with its zeros and NaN as the contract has them."""
    result: Array = np.zeros(geometry.result_shape, geometry.dtype)
    if bias is not None:
        result += bias[:, None, None]
        result[np.isnan(result)] = np.nan
    return result


def same_bits(a: Array, b: Array) -> Array:
    """Which elements have the same bits, where a zero is a zero of any sign, and a NaN a NaN."""
    kind: Any = np.uint32 if a.dtype == np.float32 else np.uint64
    equal: Array = np.ascontiguousarray(a).view(kind) == np.ascontiguousarray(b).view(kind)
    if not equal.all():
        at = np.nonzero(~equal)
        equal[at] = (a[at] == b[at]) | ((a[at] != a[at]) & (b[at] != b[at]))
    return equal
