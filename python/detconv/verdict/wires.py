"""Which input channels meet which kernels: read off a candidate by least squares, and named."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from detconv.verdict.case import Case, Guess, kernel_of, pads_of, pair
from detconv.verdict.problem import Array
from detconv.verdict.regions import listed

# A fit with more unknowns would take seconds, one with more numbers too much memory (32 MB).
_MOST_UNKNOWNS = 512
_MOST_NUMBERS = 1 << 22


def rewired(case: Case) -> Iterator[Guess]:
    """Other input channels than the right ones meet the kernels: solve for the kernels of all channels, and compare."""
    problem, groups = case.problem, int(case.problem.groups)
    operand, what = ("grad_output", "output") if problem.name == "conv2d_input" else ("input", "input")
    array = getattr(problem, operand)
    channels = array.shape[1]
    if channels < 2:
        return
    for order in (_wires(case) if problem.name == "conv2d" else None, *_usual(channels, groups)):
        if order is not None and (order != np.arange(channels)).any():
            says = f"the {what} channels are {permutation(order)}"
            if _crosses_groups(order, groups):
                says = f"the groups meet each other's {what} channels: {permutation(order)}"
            yield Guess(says, problem.having(**{operand: np.ascontiguousarray(array[:, order])}))


def _usual(channels: int, groups: int) -> Iterator[Array]:
    order = np.arange(channels)
    yield order[::-1]
    yield np.roll(order, 1)
    yield np.roll(order, -1)
    if groups > 1:
        by_group = order.reshape(groups, -1)
        yield by_group.T.ravel()  # a channel shuffle, and back
        yield order.reshape(-1, groups).T.ravel()
        yield by_group[::-1].ravel()
        yield np.roll(by_group, 1, axis=0).ravel()
        yield np.roll(by_group, -1, axis=0).ravel()
        yield np.tile(by_group[0], groups)
        yield by_group[:, ::-1].ravel()


def _wires(case: Case) -> Array | None:
    """For each channel of the sums, group by group, the input channel that it seems to come from."""
    p = case.problem
    if case.expected is None or not np.isfinite(case.candidate).all() or not p.finite:
        return None
    if p.weight.shape[1] * p.input.shape[1] > _MOST_NUMBERS:  # every channel is compared with every other of its group
        return None
    patches, outputs = _patches(case)
    weight = p.weight.reshape(*p.weight.shape[:2], -1).astype(np.float64)
    groups = int(p.groups)
    pairs, seen = patches.shape[1] * weight.shape[1], weight[0, 0].size * len(weight) // groups
    # The numbers that a group's kernels have for a channel must be enough to tell the channels from each other.
    by_shares = pairs <= _MOST_UNKNOWNS and seen >= weight.shape[1]
    kernels, solved = (None, False) if by_shares else _kernels(patches, outputs)
    order = []
    for group in np.split(np.arange(len(weight)), groups):
        if kernels is None:
            match = _shares(patches, outputs[:, group], weight[group])
        else:
            match = 2 * np.einsum("kto,oct->kc", kernels[..., group], weight[group], optimize=True)
            if solved:  # their distance, squared, without what is the same for all channels; else that is noise
                match -= np.sum(kernels[..., group] ** 2, axis=(1, 2))[:, None]
        order.append(np.argmax(match, axis=0))
    return np.concatenate(order)


def _patches(case: Case) -> tuple[Array, Array]:
    """What the kernels see at some positions, (positions, channels, taps), and what came out, (positions, outputs);
    without their means, so without the bias."""
    p, candidate = case.problem, case.candidate
    (kh, kw), (sh, sw), (dh, dw) = kernel_of(p), pair(p.stride), pair(p.dilation)
    image = np.pad(p.input, ((0, 0), (0, 0), *pads_of(p)))
    channels, (samples, _, rows, columns) = image.shape[1], candidate.shape
    most = max(16, min(3000, _MOST_NUMBERS // (channels * kh * kw)))
    flat = np.random.default_rng(0).permutation(samples * rows * columns)[:most]
    n, y, x = np.unravel_index(flat, (samples, rows, columns))
    seen = np.empty((len(flat), channels, kh * kw))
    for tap in range(kh * kw):
        seen[:, :, tap] = image[n, :, y * sh + tap // kw * dh, x * sw + tap % kw * dw]
    came = candidate[n, :, y, x].astype(np.float64)
    return seen - seen.mean(axis=0), came - came.mean(axis=0)


def _shares(patches: Array, outputs: Array, weight: Array) -> Array:
    """How much of each input channel's meeting with each channel of a group's kernels is in the outputs."""
    channels = patches.shape[1]
    pairs = channels * weight.shape[1]
    most = max(4, _MOST_NUMBERS // (pairs * len(weight)))
    meetings = np.einsum("pkt,oct->pokc", patches[:most], weight, optimize=True).reshape(-1, pairs)
    shares = np.linalg.lstsq(meetings, outputs[:most].ravel(), rcond=1e-9)[0]
    return np.asarray(shares.reshape(channels, -1))


def _kernels(patches: Array, outputs: Array) -> tuple[Array, bool]:
    """The kernels that make the outputs of the patches, (channels, taps, outputs), if all channels met all kernels:
    solved for, by least squares, or where there are too many, guessed, by correlation."""
    shape = patches.shape[1:]
    flat = patches.reshape(len(patches), -1)
    solved = len(flat) > 1.2 * flat.shape[1] + 4 and flat.shape[1] <= _MOST_UNKNOWNS
    if solved:
        found = np.linalg.lstsq(flat, outputs, rcond=1e-9)[0]
    else:
        found = flat.T @ outputs / np.maximum(np.sum(flat * flat, axis=0), 1e-300)[:, None]
    return np.asarray(found.reshape(*shape, -1)), solved


def _crosses_groups(order: Array, groups: int) -> bool:
    """Whether a channel is taken from another group."""
    each = len(order) // groups
    return bool((order // each != np.arange(len(order)) // each).any())


def permutation(order: Array) -> str:
    """What a selection of channels or others is: reversed, rolled, exchanged, all the same."""
    size, place = len(order), np.arange(len(order))
    moved = np.flatnonzero(order != place)
    if (order == place[::-1]).all():
        return "reversed" + (" (RGB read as BGR)" if size == 3 else "")
    if len(moved) == 2 and order[moved[0]] == moved[1] and order[moved[1]] == moved[0]:
        return f"exchanged: {moved[0]} and {moved[1]}"
    if len(set(order.tolist())) == 1:
        return f"all number {order[0]}"
    shift = int(order[0])
    if (order == (place + shift) % size).all():
        by = shift if shift <= size // 2 else shift - size
        return f"rolled by {-by}"
    where = f"{listed(moved, size)} {'is' if len(moved) == 1 else 'are'} taken from "
    taken = where + ", ".join(map(str, order[moved][:8])) + (", ..." if len(moved) > 8 else "")
    return ("permuted: " if len(set(order.tolist())) == size else "mixed up: ") + taken
