"""Mistakes of geometry: which pixels meet which taps. Each function yields guesses; see ``hypotheses``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from detconv.verdict.case import Case, Guess, kernel_of, pads_of, pair, shape_of
from detconv.verdict.problem import Array, Problem

Pads = tuple[tuple[int, int], tuple[int, int]]

_SIDES = (("above", "below"), ("left", "right"))
_LINES = ("row", "column")
_AXES = ("height", "width")
# What it takes to say which value an argument had instead, or how far windows lie too far, as a share of a number that
# is fitted: outputs of few elements or equal values have many such explanations.
_CHOICE = 0.25


# ---- The kernel ----


def flipped(case: Case) -> Iterator[Guess]:
    yield _kernel(
        case, "the kernel is flipped in both axes: a convolution as in mathematics", lambda w: w[..., ::-1, ::-1]
    )


def flipped_in_one(case: Case) -> Iterator[Guess]:
    yield _kernel(case, "the kernel is flipped in its height: upside down", lambda w: w[..., ::-1, :])
    yield _kernel(case, "the kernel is flipped in its width: left for right", lambda w: w[..., ::-1])


def transposed(case: Case) -> Iterator[Guess]:
    height, width = kernel_of(case.problem)
    if height != width:
        return
    yield _kernel(case, "the kernel is transposed: its rows are read as its columns", lambda w: w.swapaxes(-1, -2))
    yield _kernel(case, "the kernel is turned by a quarter, to the left", lambda w: np.rot90(w, 1, (-2, -1)))
    yield _kernel(case, "the kernel is turned by a quarter, to the right", lambda w: np.rot90(w, -1, (-2, -1)))
    yield _kernel(
        case, "the kernel is mirrored at its other diagonal", lambda w: np.rot90(w, 2, (-2, -1)).swapaxes(-1, -2)
    )


def _kernel(case: Case, says: str, change: Any) -> Guess:
    """That a function of the kernels was used; what is sought may be the kernel's gradient."""
    if case.problem.name == "conv2d_weight":
        return Guess(says, case.problem, lambda e: e.mapped(change))
    return case.guess(says, weight=np.ascontiguousarray(change(case.problem.weight)))


# ---- Height and width ----


def axes_swapped(case: Case) -> Iterator[Guess]:
    problem = case.problem
    more = ("output_padding",) if problem.name == "conv_transpose2d" else ()
    pairs = {name: pair(getattr(problem, name)) for name in ("stride", "dilation", *more)}
    pads = pads_of(problem)
    names = [name for name, (h, w) in {**pairs, "padding": pads}.items() if h != w]
    kernel = problem.name != "conv2d_weight"
    for choice in product((False, True), repeat=len(names) + kernel):
        swapped = [name for name, chosen in zip(names, choice, strict=False) if chosen]
        if not any(choice):
            continue
        changes: dict[str, Any] = {name: pairs[name][::-1] for name in swapped if name != "padding"}
        if "padding" in swapped:
            changes["pads"] = (pads[1], pads[0])
        if kernel and choice[-1]:
            if not swapped and kernel_of(problem)[0] == kernel_of(problem)[1]:
                continue  # a transposed kernel, and nothing else
            changes["weight"] = np.ascontiguousarray(problem.weight.swapaxes(-1, -2))
            swapped.append("kernel")
        told = _and(swapped).replace("_", " ")
        yield from laid(case, f"height and width are swapped in the {told}", **changes)
    if problem.name != "conv2d_input":
        swapped_input = np.ascontiguousarray(problem.input.swapaxes(-1, -2))
        yield from laid(case, "height and width are swapped in the input", input=swapped_input)
    yield Guess("height and width are swapped in the output", problem, lambda e: e.mapped(lambda v: v.swapaxes(-1, -2)))


# ---- Padding ----


def padding_missing(case: Case) -> Iterator[Guess]:
    vertical, horizontal = pads_of(case.problem)
    yield from laid(case, "there is no padding", pads=((0, 0), (0, 0)))
    if sum(vertical) and sum(horizontal):
        yield from laid(case, "there is no padding above and below", pads=((0, 0), horizontal))
        yield from laid(case, "there is no padding left and right", pads=(vertical, (0, 0)))


def window_off(case: Case) -> Iterator[Guess]:
    """As many padded lines, but some of one side at the other."""
    pads, strides, dilations = pads_of(case.problem), pair(case.problem.stride), pair(case.problem.dilation)
    reach = [
        max(1, *(size - 1 for size in sizes), abs(p[0] - p[1]))
        for *sizes, p in zip(strides, dilations, pads, strict=True)
    ]
    moves = sorted(product(*(range(-r, r + 1) for r in reach)), key=lambda m: (abs(m[0]) + abs(m[1]), m))
    for move in moves[1:]:
        moved = tuple((p[0] + m, p[1] - m) for p, m in zip(pads, move, strict=True))
        told = [
            f"{abs(m)} {_LINES[axis]}{'s' * (abs(m) > 1)} {'up' if axis == 0 else 'left'}"
            if m > 0
            else f"{abs(m)} {_LINES[axis]}{'s' * (abs(m) > 1)} {'down' if axis == 0 else 'right'}"
            for axis, m in enumerate(move)
            if m
        ]
        more = [f"{_SIDES[axis][m < 0]} instead of {_SIDES[axis][m > 0]}" for axis, m in enumerate(move) if m]
        if case.problem.name == "conv_transpose2d":
            says = f"the output lies {_and(told)} too far: it is cut {_and(more)}, as by auto_pad at the other end"
        else:
            says = f"all windows lie {_and(told)} too far; the padding is {_and(more)}"
        for guess in laid(case, says, pads=moved):
            yield _chosen_guess(guess)


def padding_off(case: Case) -> Iterator[Guess]:
    base, (kh, kw) = pads_of(case.problem), kernel_of(case.problem)
    dilation = pair(case.problem.dilation)
    sides = [(axis, side) for axis in (0, 1) for side in (0, 1)]
    for by in (-1, 1):
        word = "more" if by > 0 else "less"
        for chosen in _chosen(sides):
            pads = tuple(tuple(base[a][s] + by * ((a, s) in chosen) for s in (0, 1)) for a in (0, 1))
            where = "on every side" if len(chosen) == 4 else _and([_SIDES[a][s] for a, s in chosen])
            yield from map(_chosen_guess, laid(case, f"the padding is one {word} {where}", pads=pads))
    amounts = {
        "(kernel - 1) / 2, as if there were no dilation": [(k - 1) // 2 for k in (kh, kw)],
        "dilation * (kernel - 1) / 2": [d * (k - 1) // 2 for d, k in zip(dilation, (kh, kw), strict=True)],
        "dilation * (kernel - 1), that of a full convolution": [
            d * (k - 1) for d, k in zip(dilation, (kh, kw), strict=True)
        ],
        "half the kernel": [kh // 2, kw // 2],
        "twice what it should be": [2 * base[0][0], 2 * base[1][0]],
    }
    for words, (h, w) in amounts.items():
        yield from map(_chosen_guess, laid(case, f"the padding is {words}: {h} and {w}", pads=((h, h), (w, w))))


def padding_mode(case: Case) -> Iterator[Guess]:
    if case.problem.name not in ("conv2d", "conv2d_weight") or 0 in case.problem.input.shape:
        return
    modes = {
        "reflect": "the image, mirrored at its border pixels (reflect)",
        "symmetric": "the image, mirrored with its border pixels (symmetric)",
        "edge": "its border pixels, repeated (replicate)",
        "wrap": "the image, repeated (circular)",
    }
    pads = pads_of(case.problem)
    if any(p < 0 for side in pads for p in side) or not any(map(any, pads)):
        return
    if min(case.problem.input.shape[-2:]) <= max(map(max, pads)):
        del modes["reflect"], modes["symmetric"], modes["wrap"]
    for mode, words in modes.items():
        padded = np.pad(case.problem.input, ((0, 0), (0, 0), *pads), mode=mode)  # type: ignore[call-overload]
        yield case.guess(f"the padding is not zero but {words}", input=padded, padding=0)


def padding_value(case: Case) -> Iterator[Guess]:
    """The output then is off by that value times the weights that meet the padding."""
    problem = case.problem
    pads = pads_of(problem)
    if problem.name != "conv2d" or case.expected is None or not any(map(any, pads)):
        return

    def padded(inside: Array, value: float) -> Problem:
        return problem.having(input=np.pad(inside, ((0, 0), (0, 0), *pads), constant_values=value), padding=0)

    one = padded(np.zeros_like(problem.input[:1]), 1).having(bias=None)
    slope = one.mapped(lambda array: array.astype(np.float64)).run("naive")
    scale = np.sum(slope * slope) * len(problem.input)
    if scale > 0:
        value = float(np.sum(slope * case.residual) / scale)
        for short in {float(f"{value:.5g}"): 0.5, float(np.float32(value)): 1.0}:
            if short:
                yield Guess(f"the padding is not zero but {short:.6g}", padded(problem.input, short), parameters=1)


# ---- Stride and dilation ----


def stride_ignored(case: Case) -> Iterator[Guess]:
    yield from _steps(case, "stride", ignored=True)


def stride_off(case: Case) -> Iterator[Guess]:
    yield from _steps(case, "stride", ignored=False)


def dilation_ignored(case: Case) -> Iterator[Guess]:
    yield from _steps(case, "dilation", ignored=True)


def dilation_off(case: Case) -> Iterator[Guess]:
    yield from _steps(case, "dilation", ignored=False)


def _steps(case: Case, name: str, ignored: bool) -> Iterator[Guess]:
    h, w = pair(getattr(case.problem, name))
    ones = {(1, 1), (1, w), (h, 1)} - {(h, w)}
    if ignored:
        for made in sorted(ones):
            where = "" if made == (1, 1) else f" in the {_AXES[0 if made[0] != h else 1]}"
            yield from laid(case, f"the {name} is ignored{where}: {made} instead of {(h, w)}", **{name: made})
        return
    near = {(h + a, w + b) for a in (-1, 0, 1) for b in (-1, 0, 1)} | {(h, h), (w, w)}
    for made in sorted(near - ones - {(h, w)}):
        if min(made) > 0:
            yield from laid(case, f"the {name} is {made} instead of {(h, w)}", **{name: made})


# ---- Several arguments at once ----

# So many settings of the arguments are tried where the shape is another than it should be, and where it is right.
_MOST_SETTINGS = (120, 24)


class _Setting(NamedTuple):
    """Values of the arguments that determine a size, each for both axes."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    output_padding: tuple[int, int]

    def differing(self, other: _Setting) -> list[str]:
        return [name for name in self._fields if getattr(self, name) != getattr(other, name)]


def arguments_off(case: Case) -> Iterator[Guess]:
    """Arguments with which the output has the candidate's shape: several at once, or one that is far off."""
    other_shape = case.expected is None
    own, settings = _settings(case.problem, case.candidate.shape)
    for setting in settings[: _MOST_SETTINGS[not other_shape]]:
        names = setting.differing(own)
        if len(names) > 1 or other_shape:
            says = f"{_told(setting, own)}{': so the shape tells' * other_shape}"
            guess = case.guess(says, **_changed(setting, names))
            yield guess._replace(parameters=_CHOICE * len(names))


def shape_given_by(problem: Problem, shape: tuple[int, ...]) -> str | None:
    """The simplest change of the arguments that gives a shape, in words; None if none of those that are tried does."""
    own, settings = _settings(problem, shape)
    return _told(settings[0], own) if settings else None


def _changed(setting: _Setting, names: list[str]) -> dict[str, tuple[int, int]]:
    return {name: getattr(setting, name) for name in names}


def _told(setting: _Setting, own: _Setting) -> str:
    def one(values: tuple[int, int]) -> str:
        return str(values[0]) if values[0] == values[1] else str(values)

    names = setting.differing(own)
    return _and(
        [f"the {n.replace('_', ' ')} is {one(getattr(setting, n))} instead of {one(getattr(own, n))}" for n in names]
    )


def _settings(problem: Problem, shape: tuple[int, ...]) -> tuple[_Setting, list[_Setting]]:
    """The arguments as they are; and others that give this shape, those first that change the fewest arguments, and
    those to the same value for both axes."""
    none = _Setting((1, 1), (0, 0), (1, 1), (0, 0))
    if problem.name not in ("conv2d", "conv_transpose2d") or shape_of(problem)[:2] != shape[:2]:
        return none, []
    transposed = problem.name == "conv_transpose2d"
    pads = pads_of(problem)
    if any(before != after for before, after in pads):  # "same" with an even kernel, which no number says
        return none, []
    more = pair(problem.output_padding) if transposed else (0, 0)
    own = _Setting(pair(problem.stride), (pads[0][0], pads[1][0]), pair(problem.dilation), more)
    by_axis = []
    for axis in (0, 1):
        size, kernel, wanted = problem.input.shape[-2 + axis], kernel_of(problem)[axis], shape[-2 + axis]
        of_axis = [values[axis] for values in own]
        by_axis.append(
            [v for v in _values(of_axis, kernel, transposed) if _size(v, size, kernel, transposed) == wanted]
        )
    found = [_Setting(*zip(h, w, strict=True)) for h, w in product(*by_axis)]
    found = [setting for setting in found if setting.differing(own)]

    def simplicity(setting: _Setting) -> tuple[int, ...]:
        changed = [getattr(setting, name) for name in setting.differing(own)]
        distance = sum(abs(a - b) for mine, others in zip(setting, own, strict=True) for a, b in zip(mine, others))  # noqa: B905
        return len(changed), sum(h != w for h, w in changed), distance

    return own, sorted(found, key=simplicity)


def _values(own: list[int], kernel: int, transposed: bool) -> Iterator[tuple[int, int, int, int]]:
    """Strides, paddings, dilations and output paddings that somebody may have taken, on one axis."""
    stride, padding, dilation, more = own
    strides = {1, 2, 3, 4, stride - 1, stride, stride + 1}
    dilations = {1, 2, 3, dilation - 1, dilation, dilation + 1} if kernel > 1 else {dilation}
    paddings = {*range(max(4, kernel)), padding - 1, padding, padding + 1, 2 * padding}
    paddings |= {d * (kernel - 1) for d in dilations} | {d * (kernel - 1) // 2 for d in dilations}
    mores = {0, 1, more} if transposed else {0}
    for s, p, d, m in product(strides, paddings, dilations, mores):
        if s > 0 and p >= 0 and d > 0 and m < max(s, d):
            yield s, p, d, m


def _size(values: tuple[int, int, int, int], size: int, kernel: int, transposed: bool) -> int:
    stride, padding, dilation, more = values
    reach = dilation * (kernel - 1) + 1
    if transposed:
        return (size - 1) * stride - 2 * padding + reach + more
    return (size + 2 * padding - reach) // stride + 1


# ---- Both directions mixed up ----


def transposed_convolution(case: Case) -> Iterator[Guess]:
    """``conv_transpose2d`` with the same arguments, whose weight has the input's channels first; or the reverse."""
    p = case.problem
    if p.name == "conv_transpose2d":
        channels = p.weight.shape[1] * int(p.groups)
        if p.input.shape[1] == channels and (p.bias is None or len(p.bias) == len(p.weight)):
            straight = (p.input, p.weight, p.bias, p.stride, p.padding, p.dilation, p.groups)
            says = "it is the convolution (conv2d), whose weight has the output's channels first"
            yield Guess(says, replace(p, name="conv2d", arguments=straight))
        return
    if p.name != "conv2d" or len(p.weight) != p.input.shape[1]:
        return
    pads = pads_of(p)
    if any(before != after for before, after in pads) or (
        p.bias is not None and len(p.bias) != p.weight.shape[1] * int(p.groups)
    ):
        return
    padding = (pads[0][0], pads[1][0])
    back = (p.input, p.weight, p.bias, p.stride, padding, 0, p.groups, p.dilation)
    says = "it is the transposed convolution (conv_transpose2d), whose weight has the input's channels first"
    yield Guess(says, replace(p, name="conv_transpose2d", arguments=back))


# ---- Arguments, whatever they are ----


def laid(case: Case, says: str, pads: Any = None, **changes: Any) -> Iterator[Guess]:
    """The guess that some arguments were others; pads of four sides, negative ones cut the image.

    Where that gives another size than the candidate has, the guess is that the loops over the output had their right
    lengths all the same: windows that leave the image at its end see zeros, which takes more to say.
    """
    problem = case.problem.having(**changes)
    pads = pads_of(problem) if pads is None else pads
    leaves = False
    if problem.name == "conv2d":
        natural = shape_of(_padded(problem, pads))[-2:]
        wanted = case.candidate.shape[-2:]
        if min(natural) > 0 and natural != wanted:
            axes = zip(
                wanted,
                pair(problem.stride),
                pair(problem.dilation),
                kernel_of(problem),
                problem.input.shape[-2:],
                pads,
                strict=True,
            )
            given, pads = (
                pads,
                tuple((p[0], (n - 1) * s + d * (k - 1) + 1 - size - p[0]) for n, s, d, k, size, p in axes),
            )
            leaves = any(p[1] > own[1] for p, own in zip(pads, given, strict=True))
            if case.expected is None or any(p[1] > 4 * (size + 8) for p, size in zip(pads, wanted, strict=True)):
                return
        yield Guess(says, _padded(problem, pads), parameters=0.5 * leaves)
    elif problem.name == "conv2d_weight":
        yield Guess(says, _padded(problem, pads))
    elif problem.name == "conv_transpose2d":
        yield from _cut(case, says, problem, pads)
    elif pads == pads_of(problem):
        yield Guess(says, problem)
    else:
        (top, bottom), (left, right) = pads
        *outer, height, width = problem.input_size
        if min(top, bottom, left, right) >= 0:
            larger = problem.having(input_size=(*outer, height + top + bottom, width + left + right), padding=0)
            inner = np.s_[..., top : top + height, left : left + width]
            yield Guess(says, larger, lambda e: e.mapped(lambda v: v[inner]))


def _cut(case: Case, says: str, problem: Problem, pads: Pads) -> Iterator[Guess]:
    """A transposed convolution whose whole output is cut by so many lines on each side.

    Where that gives another size than the candidate has, it is cut, or goes on without terms, to the right one.
    """
    size, wanted = shape_of(problem)[-2:], case.candidate.shape[-2:]
    if pads == pads_of(problem) and size == wanted:
        yield Guess(says, problem)
        return
    own = pads_of(problem)
    size = tuple(n + sum(mine) - sum(other) for n, mine, other in zip(size, own, pads, strict=True))
    if min(size) < 1 or (size != wanted and case.expected is None):
        return
    # Lines of zeros around the input give lines without terms around the output.
    zeros = [1 + max(0, *(-p for p in side)) // s for side, s in zip(pads, pair(problem.stride), strict=True)]
    extra = [max(0, n - m) // s for n, m, s in zip(wanted, size, pair(problem.stride), strict=True)]
    around = [(z, z + e + 1) for z, e in zip(zeros, extra, strict=True)]
    whole = problem.having(
        input=np.pad(problem.input, ((0, 0), (0, 0), *around)), padding=(0, 0), output_padding=(0, 0)
    )
    first = [z * s + p[0] for z, s, p in zip(zeros, pair(problem.stride), pads, strict=True)]
    rows, columns = (slice(f, f + n) for f, n in zip(first, wanted, strict=True))
    forced = 0.5 * (size != wanted)
    yield Guess(says, whole, lambda e: e.mapped(lambda v: v[..., rows, columns]), parameters=forced)


def _chosen_guess(guess: Guess) -> Guess:
    """A guess that is one of many alike, and takes as much more to say."""
    return guess._replace(parameters=guess.parameters + _CHOICE)


def _padded(problem: Problem, pads: Any) -> Problem:
    (top, bottom), (left, right) = pads
    if top == bottom >= 0 and left == right >= 0:
        return problem.having(padding=(top, left))
    image = problem.input[..., max(-top, 0) :, max(-left, 0) :]
    image = image[..., : image.shape[-2] - max(-bottom, 0), : image.shape[-1] - max(-right, 0)]
    widths = ((0, 0), (0, 0), (max(top, 0), max(bottom, 0)), (max(left, 0), max(right, 0)))
    return problem.having(input=np.pad(image, widths), padding=0)


def _chosen(sides: list[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """All sides, those of an axis, one each; then two that share a corner."""
    return [
        sides, sides[:2], sides[2:], *([side] for side in sides),
        *([a, b] for a in sides[:2] for b in sides[2:]),
    ]  # fmt: skip


def _and(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
