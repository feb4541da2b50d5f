"""Borders of other modes and sizes, alone and with a flipped kernel: what the filters of other libraries do."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from detconv.verdict.case import Case, Guess, kernel_of, pads_of, pair
from detconv.verdict.problem import Array

Pads = tuple[tuple[int, int], tuple[int, int]]

# NumPy's names of the ways to pad, and ours.
_MODES = {
    "constant": "zero",
    "symmetric": "symmetric",
    "reflect": "reflected, without its outermost pixels",
    "edge": "replicated",
    "wrap": "circular",
}
# Who does it by default, where rows and columns are as many as the image's: by flip and mode.
_DEFAULTS = {
    (True, "symmetric"): "scipy.ndimage.convolve",
    (False, "symmetric"): "scipy.ndimage.correlate",
    (False, "reflect"): "OpenCV's filter2D",
}
# So many elements whose windows lie within the image tell whether a kernel and a padding need be tried.
_INNER = 64


def resized(case: Case) -> Iterator[Guess]:
    """Another mode, and as much padding as the size asks for or as is usual."""
    for pads in _sizes(case):
        if pads != pads_of(case.problem):
            yield from _bordered(case, False, pads)


def flipped(case: Case) -> Iterator[Guess]:
    """The same, own padding too, with a flipped kernel."""
    if max(kernel_of(case.problem)) < 2:
        return
    for pads in _sizes(case):
        yield from _bordered(case, True, pads)


def _sizes(case: Case) -> list[Pads]:
    """The paddings that give the candidate's rows and columns: the problem's, those that are centred, the full one."""
    problem = case.problem
    if problem.name not in ("conv2d", "conv2d_weight"):
        return []
    own, reach = pads_of(problem), _reach(case)
    sizes, strides = problem.input.shape[-2:], pair(problem.stride)
    rows = problem.grad_output.shape[-2:] if problem.name == "conv2d_weight" else case.candidate.shape[-2:]
    found = [own]
    totals = [(n - 1) * s + r - size for n, s, r, size in zip(rows, strides, reach, sizes, strict=True)]
    if min(totals) >= 0:
        more, less = [(t + 1) // 2 for t in totals], [t // 2 for t in totals]
        found += [
            ((more[0], less[0]), (more[1], less[1])),
            ((less[0], more[0]), (less[1], more[1])),
        ]
    # For an odd kernel these are the same; for others, SciPy and OpenCV put the larger half above and to the left of a
    # correlation, SciPy below and to the right of a convolution.
    halves = [(r // 2, (r - 1) // 2) for r in reach]
    found += [(halves[0], halves[1]), (halves[0][::-1], halves[1][::-1])]
    found.append(((reach[0] - 1, reach[0] - 1), (reach[1] - 1, reach[1] - 1)))  # a full convolution
    return [
        pads
        for pads in dict.fromkeys(found)
        if min(map(min, pads)) >= 0 and any(map(any, pads)) and _rows(case, pads) == rows
    ]


def _reach(case: Case) -> list[int]:
    """How many rows and columns a window spans."""
    return [d * (k - 1) + 1 for d, k in zip(pair(case.problem.dilation), kernel_of(case.problem), strict=True)]


def _rows(case: Case, pads: Pads) -> tuple[int, ...]:
    sizes, strides = case.problem.input.shape[-2:], pair(case.problem.stride)
    axes = zip(sizes, pads, _reach(case), strides, strict=True)
    return tuple((size + sum(p) - r) // s + 1 for size, p, r, s in axes)


def _bordered(case: Case, flip: bool, pads: Pads) -> Iterator[Guess]:
    problem = case.problem
    kernel = np.ascontiguousarray(problem.weight[..., ::-1, ::-1]) if flip and problem.name == "conv2d" else None
    if problem.name == "conv2d" and not _inner_fits(case, problem.weight if kernel is None else kernel, pads):
        return
    sizes = problem.input.shape[-2:]
    for mode, name in _MODES.items():
        own = pads == pads_of(problem)
        if (own or not flip) and mode == "constant":
            continue  # the flip or the size alone
        if mode != "constant" and any(max(p) >= size for p, size in zip(pads, sizes, strict=True)):
            continue
        padded = np.pad(problem.input, ((0, 0), (0, 0), *pads), mode=mode)  # type: ignore[call-overload]
        changed = problem.having(input=padded, padding=0)
        says = _words(case, flip, mode, name, pads)
        if flip and problem.name == "conv2d_weight":
            yield Guess(says, changed, lambda e: e.mapped(lambda v: v[..., ::-1, ::-1]))
        else:
            yield Guess(says, changed if kernel is None else changed.having(weight=kernel))


def _words(case: Case, flip: bool, mode: str, name: str, pads: Pads) -> str:
    of_image = _rows(case, pads) == case.problem.input.shape[-2:]
    size = ""
    if pads != pads_of(case.problem):
        (top, bottom), (left, right) = pads
        size = f", of {top} and {bottom} rows and {left} and {right} columns"
    says = f"the kernel is flipped, and the border is {name}{size}" if flip else f"the border is {name}{size}"
    full = all(p == (r - 1, r - 1) for p, r in zip(pads, _reach(case), strict=True))
    if mode == "constant" and flip and full:
        return f"{says}: what scipy.signal.convolve2d does by default"
    by = _DEFAULTS.get((flip, mode)) if of_image and pair(case.problem.stride) == (1, 1) else None
    return f"{says}: what {by} does by default" if by else says


def _inner_fits(case: Case, kernel: Array, pads: Pads) -> bool:
    """Whether elements whose windows meet no border, if there are any, are what this kernel and padding give."""
    problem, shape = case.problem, case.candidate.shape
    (sh, sw), (dh, dw), (kh, kw) = pair(problem.stride), pair(problem.dilation), kernel_of(problem)
    lines = []
    for size, s, r, p, n in zip(problem.input.shape[-2:], (sh, sw), _reach(case), pads, shape[-2:], strict=True):
        start = np.arange(n) * s - p[0]
        lines.append(np.flatnonzero((start >= 0) & (start + r <= size)))
    if not all(len(line) for line in lines):
        return True
    rng = np.random.default_rng(0)
    n, o = (rng.choice(index.ravel(), _INNER)[:, None, None, None] for index in case.box[:2])
    y, x = (rng.choice(line, _INNER)[:, None, None, None] for line in lines)
    c, i, j = np.ogrid[: kernel.shape[1], :kh, :kw]
    first = o // (len(kernel) // int(problem.groups)) * kernel.shape[1]
    seen = problem.input[n, first + c, y * sh - pads[0][0] + i * dh, x * sw - pads[1][0] + j * dw]
    terms = kernel[o, c, i, j].astype(np.float64) * seen
    bias = 0.0 if problem.bias is None else problem.bias[o.ravel()].astype(np.float64)
    off = np.abs(terms.sum(axis=(1, 2, 3)) + bias - case.candidate[n.ravel(), o.ravel(), y.ravel(), x.ravel()])
    return bool(np.mean(off <= 2.0**-8 * np.abs(terms).sum(axis=(1, 2, 3))) > 0.5)
