"""Reveal: which order a function that convolves adds in, found by numeric probes and proven by replaying its bits.

    r = detconv.reveal(fn, input_shape, weight_shape, padding=2)
    detconv.conv2d(x, w, b, padding=2, summation=r)    # fn's bits

How it goes: the function must repeat itself, an output must depend on its window only; then probes find the tree of
additions of one output, the tree is replayed on random values against all outputs of the real shape, and where bits
differ, the next order is looked for, until every output has one. See ``docs/orders.md``.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from detconv.revealing.box import Box, OutOfTime, aligned
from detconv.revealing.keys import key_of
from detconv.revealing.passes import Array, Geometry, parts
from detconv.revealing.replay import same_bits
from detconv.revealing.revealed import STATUSES, Reveal, RevealedOrder
from detconv.revealing.search import Data, Search, Trials

__all__ = ["STATUSES", "Reveal", "RevealedOrder", "identify", "reveal"]

_REPEATS = 3


def reveal(
    fn: Callable[..., Any],
    input_shape: Sequence[int],
    weight_shape: Sequence[int],
    bias: bool = True,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    *,
    dtype: Any = "float32",
    pass_: str = "forward",
    arrays: str | None = None,
    layout: str = "contiguous",
    differentiate: bool = False,
    budget_s: float = 30.0,
    seed: int = 0,
    hypotheses: Sequence[str] = (),
    library: str | None = None,
) -> Reveal:
    """Find the order in which a function adds the products of a convolution, and prove it by its bits.

    Args:
        fn: what convolves. ``fn(input, weight, bias)`` for the forward pass, with bias None where there is none;
            ``fn(weight, grad_output)`` for the gradient by the input and ``fn(input, grad_output)`` for that by the
            weight, or, with ``differentiate``, a forward function that torch differentiates. It must have stride,
            padding, dilation and groups built in, leave its arguments alone, and return a new array of their dtype on
            the CPU: NumPy's, torch's, JAX's or anything else that ``numpy.asarray`` takes. It is called with other
            image sizes and batches too, if it takes them, to save time.
        input_shape: (N, C, H, W).
        weight_shape: (O, C / groups, KH, KW).
        bias: whether there is one; only the forward pass has.
        stride, padding, dilation, groups: those that fn uses, as for ``conv2d``.
        dtype: ``"float32"`` or ``"float64"``.
        pass_: ``"forward"``, ``"input_gradient"`` or ``"weight_gradient"``.
        arrays: what fn takes: ``"numpy"`` or ``"torch"``. None: torch, if fn is defined in torch or is differentiated,
            else NumPy.
        layout: of the tensors that fn gets: ``"contiguous"`` or ``"channels_last"`` (torch only).
        differentiate: fn is a forward function; the pass is its derivative by ``torch.autograd``.
        budget_s: seconds after which the search ends with what it has.
        seed: of the random values.
        hypotheses: texts of summations to try before probing, the likeliest first.
        library: the name for the key where fn does not tell it.

    Returns:
        A ``Reveal``; see its fields and ``STATUSES``.

    Raises:
        ValueError: arguments that do not fit together; fn changes its arguments or returns another shape.
        TypeError: fn returns something else than such an array.
        RuntimeError: fn raised; its exception is the cause.
    """
    start = time.monotonic()
    geometry = Geometry.of(input_shape, weight_shape, bias, stride, padding, dilation, groups, dtype, pass_)
    if not budget_s > 0:
        raise ValueError(f"budget_s must be positive; got {budget_s!r}")
    if layout != "contiguous" and arrays == "numpy":
        raise ValueError('layout: only with arrays="torch"')
    box = Box(fn, arrays, layout, differentiate, start + budget_s)
    say = _Progress(box.name)
    try:
        found = _search(box, geometry, hypotheses, seed, say)
    finally:
        say.end()
    return replace(found, key=key_of(box, geometry, library), calls=box.calls, seconds=time.monotonic() - start)


def identify(
    fn: Callable[..., Any],
    input_shape: Sequence[int],
    weight_shape: Sequence[int],
    *arguments: Any,
    **options: Any,
) -> Reveal:
    """As ``reveal``, and with the same arguments; but the orders of the catalogue are tried first, by their bits.

    That takes a few calls of fn where the catalogue knows the order, and ``found_in`` then says from where.
    """
    from detconv.catalogue import hypotheses_for

    geometry = Geometry.of(
        input_shape,
        weight_shape,
        *arguments,
        **{name: options[name] for name in options if name in Geometry.__dataclass_fields__},
    )
    known = hypotheses_for(geometry)
    own = list(options.pop("hypotheses", ()))
    found = reveal(fn, input_shape, weight_shape, *arguments, hypotheses=[*own, *known], **options)
    sources = [known[str(s)] for classes in found.classes for s in classes.summations if str(s) in known]
    return replace(found, found_in="; ".join(dict.fromkeys(sources)))


def _search(box: Box, geometry: Geometry, hypotheses: Sequence[str], seed: int, say: Callable[[str], None]) -> Reveal:
    trials = Trials(box, Data(geometry, seed))
    try:
        say("repeatability")
        if not _repeats(trials):
            return _without_orders("nondeterministic", f"{_REPEATS} equal calls gave different bits")
        say("locality")
        if leaks := _leaks(trials):
            return _without_orders("transform", f"{leaks} outputs changed with a pixel that their windows miss")
    except OutOfTime:
        return _without_orders("partial", "the budget ended before the first probe")
    made = parts(geometry)
    searches = [Search(box, geometry, number, trials, hypotheses, seed, say) for number in range(len(made))]
    for search in searches:
        search.run()
    total = math.prod(geometry.result_shape)
    matched = sum(search.matched for search in searches)
    others = total - sum(math.prod(part.shape) for part in made)  # sums of no terms
    reason = "; ".join(dict.fromkeys(search.reason for search in searches if search.reason))
    if others and not _no_terms_are_zero(geometry, trials):
        reason, others = reason or "an output without products is not 0", 0
    matched += others
    status = "partial"
    if matched == total and not reason:
        status = "exact"
    elif any(search.not_a_tree for search in searches) and matched == others:
        status = "not_a_tree"
    taken = min((search.taken for search in searches), default=0)
    classes = tuple(search.classes for search in searches)
    return Reveal(status, reason, matched / total, taken, {}, classes)


def _without_orders(status: str, reason: str) -> Reveal:
    return Reveal(status, reason, 0.0, 0, {}, ())


def _repeats(trials: Trials) -> bool:
    """The same values, elsewhere in memory each time."""
    first = trials.result(0)
    for _ in range(_REPEATS - 1):
        if not same_bits(trials.box(trials.data.geometry, *trials.operands(0)), first).all():
            return False
    return True


def _leaks(trials: Trials) -> int:
    """How many outputs change with a pixel that they do not depend on: 2^60 in the middle, or in a corner."""
    geometry = trials.data.geometry
    image, panel, bias = trials.operands(0)
    before = trials.result(0)
    height, width = image.shape[2:]
    for pixel in {(height // 2, width // 2), (0, 0)}:
        changed = aligned(image.shape, geometry.dtype)
        changed[...] = image
        changed[0, :, pixel[0], pixel[1]] = 2.0**60
        after = trials.box(geometry, changed, panel, bias)
        mark = np.zeros((1, *image.shape[1:]), geometry.dtype)
        mark[0, :, pixel[0], pixel[1]] = 1
        leaks = ~same_bits(after, before) & ~_touched(geometry, mark)
        if leaks.any():
            return int(np.count_nonzero(leaks))
    return 0


def _touched(geometry: Geometry, mark: Array) -> Array:
    """Which outputs read a pixel of the first sample that is marked."""
    result = np.zeros(geometry.result_shape, bool)
    for part in parts(geometry):
        full = np.broadcast_to(np.float32(0), geometry.image_shape)
        rows, columns = part.valid_taps(part.image(full).shape[2:])
        marked = part.image(np.concatenate([mark, np.zeros_like(full[1:])]))
        hit = np.zeros(part.shape, bool)
        planes = part.extents[0]
        for n in range(part.shape[0]):
            for group in range(part.groups):
                own = marked[n, group * planes : (group + 1) * planes].any(axis=0)
                if not own.any():
                    continue
                for at in np.argwhere(own):
                    row = _reads(part.shape[2], part, 0, int(at[0]), rows)
                    column = _reads(part.shape[3], part, 1, int(at[1]), columns)
                    size = part.rows // part.groups
                    hit[n, group * size : (group + 1) * size] |= row[:, None] & column
        part.select(result)[...] = hit
    return result


def _reads(outputs: int, part: Any, axis: int, pixel: int, valid: Array) -> Array:
    taps = np.arange(part.extents[1 + axis])
    at = np.arange(outputs)[:, None] * part.stride[axis] + taps * part.dilation[axis] - part.borders[axis][0]
    return np.asarray(((at == pixel) & valid).any(axis=1))


def _no_terms_are_zero(geometry: Geometry, trials: Trials) -> bool:
    covered = np.zeros(geometry.result_shape, bool)
    for part in parts(geometry):
        part.select(covered)[...] = True
    return bool((trials.result(0)[~covered] == 0).all())


class _Progress:
    """A line on a terminal that says what is being done, and goes away."""

    def __init__(self, name: str) -> None:
        self.name, self.shown = name, sys.stderr.isatty()

    def __call__(self, text: str) -> None:
        if self.shown:
            print(f"\r{f'reveal {self.name}: {text}'[:78]:78}", end="\r", file=sys.stderr, flush=True)

    def end(self) -> None:
        if self.shown:
            print(f"\r{'':78}", end="\r", file=sys.stderr, flush=True)
