"""Groups that meet others' channels, and other layouts of a depth multiplier, in every pass.

Output channel o belongs to group o // (outputs per group). Here it may meet another group's channels: of the input, or
in an input gradient those of the output's gradient.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from detconv.verdict import parts
from detconv.verdict.case import Case, Guess
from detconv.verdict.problem import Array, Problem
from detconv.verdict.regions import listed

# What is met is read off the candidate unless that takes more products than this: a tenth of a second.
_MOST_PRODUCTS = 1 << 26
# An input that is repeated for each output channel has no more numbers than this: 128 MB of float32.
_MOST_REPEATED = 1 << 25
# So many elements of each output channel tell which group it meets.
_ELEMENTS = 4


def mixed(case: Case) -> Iterator[Guess]:
    """Outputs that meet other groups' channels than their own, one by one."""
    problem, groups = case.problem, int(case.problem.groups)
    if groups < 2 or problem.name == "conv_transpose2d":
        return
    outputs, own = _outputs(problem), _own(problem)
    for met in (np.arange(outputs) % groups, np.arange(outputs)[::-1] % groups, _read_off(case)):
        if met is not None and (met != own).any():
            yield from _meeting(problem, met)


def relaid(case: Case) -> Iterator[Guess]:
    """Kernels in the order (multiplier, group) where (group, multiplier) is meant, or the other way round."""
    problem, groups = case.problem, int(case.problem.groups)
    if groups < 2 or problem.name not in ("conv2d", "conv2d_input") or _outputs(problem) == groups:
        return
    each = len(problem.weight) // groups
    place = np.arange(len(problem.weight))
    layouts = {
        "(multiplier, group)": place.reshape(each, groups).T.ravel(),
        "(group, multiplier)": place.reshape(groups, each).T.ravel(),
    }
    for name, order in layouts.items():
        says = f"the weight's output channels are read as if they lay as {name}"
        weight = np.ascontiguousarray(problem.weight[order])
        yield case.guess(says, weight=weight)
        if problem.name == "conv2d" and problem.bias is not None:
            yield case.guess(f"{says}, and so are the biases", weight=weight, bias=problem.bias[order])


def _outputs(problem: Problem) -> int:
    return int(problem.weight_size[0]) if problem.name == "conv2d_weight" else len(problem.weight)


def _own(problem: Problem) -> Array:
    """The group of each output channel."""
    groups = int(problem.groups)
    return np.repeat(np.arange(groups), _outputs(problem) // groups)


def _meeting(problem: Problem, met: Array) -> Iterator[Guess]:
    """That output channel o met the channels of group met[o]."""
    groups, outputs = int(problem.groups), _outputs(problem)
    if problem.name == "conv2d_input":
        order = np.argsort(met, kind="stable")
        if (np.bincount(met, minlength=groups) == outputs // groups).all():
            says = f"output channel o's gradient goes to {_of(problem, met)}"
            weight, grad = problem.weight[order], np.ascontiguousarray(problem.grad_output[:, order])
            yield Guess(says, problem.having(weight=weight, grad_output=grad))
        return
    own = met.reshape(groups, -1)
    if (own == own[:, :1]).all():
        return  # whole groups, which are among the mixed-up input channels
    channels = problem.input.shape[1] // groups
    taken = (met[:, None] * channels + np.arange(channels)).ravel()
    if taken.size * problem.input[:, 0].size <= _MOST_REPEATED:
        repeated = np.ascontiguousarray(problem.input[:, taken])
        yield Guess(f"output channel o reads {_of(problem, met)}", problem.having(input=repeated, groups=outputs))


def _of(problem: Problem, met: Array) -> str:
    """Which channels output channel o meets, in words."""
    groups, place = int(problem.groups), np.arange(len(met))
    depthwise = len(met) and _channels(problem) == groups
    what = "input channel" if depthwise else "the input channels of group"
    if (met == place % groups).all():
        return f"{what} o % {groups}"
    moved = np.flatnonzero(met != _own(problem))
    shown = ", ".join(map(str, met[moved][:8])) + (", ..." if len(moved) > 8 else "")
    return f"another group's input channels: o = {listed(moved, len(met))} those of {shown}"


def _channels(problem: Problem) -> int:
    if problem.name == "conv2d_input":
        return int(problem.input_size[-3])
    return int(problem.input.shape[1])


def _read_off(case: Case) -> Array | None:
    """The group that each output channel of conv2d or conv2d_weight meets, as some of its elements tell."""
    problem, groups = case.problem, int(case.problem.groups)
    if problem.name == "conv2d_input" or case.expected is None:
        return None
    outputs, axis = _outputs(problem), 1 if problem.name == "conv2d" else 0
    others = [size for a, size in enumerate(case.candidate.shape) if a != axis]
    terms = int(np.prod(parts.term_shape(problem)))
    if groups * (outputs * _ELEMENTS * terms + problem.input.size) + case.candidate.size > _MOST_PRODUCTS:
        return None
    some = _wrong(np.moveaxis(case.unfit, axis, 0).reshape(outputs, -1))
    elements = [np.unravel_index(some, others)[a].ravel() for a in range(3)]
    elements.insert(axis, np.repeat(np.arange(outputs), _ELEMENTS))
    chosen = tuple(elements)
    bias = problem.bias[chosen[1]].astype(np.float64) if axis == 1 and problem.bias is not None else 0.0
    sought, near = case.candidate[chosen] - bias, 2 * case.expected.bound[chosen]
    own, fits = _own(problem), np.zeros((groups, outputs), np.int64)
    each = problem.input.shape[1] // groups
    for shift in range(groups):
        rolled = problem.having(input=np.roll(problem.input, -shift * each, axis=1))
        off = np.abs(parts.terms(rolled, chosen).sum(axis=(1, 2, 3)) - sought)
        fits[(own + shift) % groups, np.arange(outputs)] = (off <= near).reshape(outputs, -1).sum(axis=1)
    best = np.argmax(fits, axis=0)
    # Where its own group does as well, or nothing does, an output channel meets its own.
    stays = (fits[own, np.arange(outputs)] == fits.max(axis=0)) | (fits.max(axis=0) < _ELEMENTS - 1)
    return np.where(stays, own, best)


def _wrong(unfit: Array) -> Array:
    """Indices of some elements of each row, of those that do not fit where there are any."""
    count = unfit.shape[1]
    if count <= _ELEMENTS:
        return np.resize(np.arange(count), (len(unfit), _ELEMENTS))
    first = unfit + np.random.default_rng(0).uniform(0, 0.5, unfit.shape)
    return np.argpartition(-first, _ELEMENTS, axis=1)[:, :_ELEMENTS]
