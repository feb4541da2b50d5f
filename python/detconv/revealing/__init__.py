"""Reveal: which order a function that convolves adds in, found by numeric probes and proven by replaying its bits.

    r = detconv.reveal(fn, input_shape, weight_shape, padding=2)
    detconv.conv2d(x, w, b, padding=2, summation=r)    # fn's bits

How it goes: the function must repeat itself, must be no other convolution, and an output must depend on its window
only; then probes find the tree of additions of one output, the tree is replayed on random values against all outputs of
the real shape, and where bits differ, the next order is looked for, until every output has one. See ``docs/orders.md``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from detconv.console import progress
from detconv.quoting import quoted
from detconv.revealing.box import Box, OutOfTime
from detconv.revealing.judging import mistaken
from detconv.revealing.keys import key_of
from detconv.revealing.locality import REPEATS, leaks, no_terms_are_none, repeats
from detconv.revealing.passes import Geometry, parts
from detconv.revealing.revealed import STATUSES, Reveal, RevealedOrder
from detconv.revealing.search import Search
from detconv.revealing.trials import Data, Trials

__all__ = ["STATUSES", "Reveal", "RevealedOrder", "identify", "reveal"]


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
    transposed: bool = False,
    output_padding: int | tuple[int, int] = 0,
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
        weight_shape: (O, C / groups, KH, KW); of a transposed convolution (C, O / groups, KH, KW).
        bias: whether there is one; only the forward pass has.
        stride, padding, dilation, groups: those that fn uses, as for ``conv2d``.
        transposed: fn is a transposed convolution, as ``conv_transpose2d``; ``conv_transpose2d`` then takes the result
            as its summation. Its gradients are passes of convolutions, to be revealed as such.
        output_padding: of a transposed convolution, as for ``conv_transpose2d``.
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
        ValueError: arguments that do not fit together; fn changes its arguments or returns another shape (the message
            says which mistake gives it, if one that is known does).
        TypeError: fn returns something else than such an array.
        RuntimeError: fn raised; its exception is the cause.
    """
    start = time.monotonic()
    convolution = input_shape, weight_shape, bias, stride, padding, dilation, groups
    geometry = Geometry.of(*convolution, dtype, pass_, transposed, output_padding)
    if not budget_s > 0:
        raise ValueError(f"budget_s must be positive; got {quoted(budget_s)}")
    box = Box(fn, arrays, layout, differentiate, start + budget_s)
    with progress() as say:
        found = _search(box, geometry, hypotheses, seed, lambda text: say(f"reveal {box.name}: {text}"))
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
        if not repeats(trials):
            return _without_orders("nondeterministic", f"{REPEATS} equal calls gave different bits")
        say("verdict")
        other, beyond = mistaken(trials)
        if other:
            return _without_orders("mistake", other)
        say("locality")
        if found := leaks(trials):
            return _without_orders("transform", f"{found} outputs changed with a pixel that their windows miss")
        zeros = no_terms_are_none(geometry, trials)
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
    if others and not zeros:
        reason, others = reason or "an output without products is neither 0 nor the bias", 0
    matched += others
    status = "partial"
    if matched == total and not reason:
        status = "exact"
    elif any(search.not_a_tree for search in searches) and matched == others:
        status = "not_a_tree"
    if beyond and status != "exact":
        reason = f"{reason}; {beyond}"
    taken = min((search.taken for search in searches), default=0)
    classes = tuple(search.classes for search in searches)
    return Reveal(status, reason, matched / total, taken, {}, classes)


def _without_orders(status: str, reason: str) -> Reveal:
    return Reveal(status, reason, 0.0, 0, {}, ())
