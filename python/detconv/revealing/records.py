"""Revealed orders as plain data, for JSON; and back, where nothing is believed that does not fit the rest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from detconv.quoting import quoted
from detconv.revealing.passes import ARGUMENTS, Array, Geometry, Part, parts
from detconv.revealing.replay import Classes
from detconv.revealing.search import MOST_CLASSES
from detconv.revealing.texts import reach
from detconv.summation import Summation

if TYPE_CHECKING:
    from detconv.revealing.revealed import Reveal

VERSION = 2  # files of version 1 name it "format", and know no transposed convolutions
MOST_LABELS = 2**27  # of all outputs, after their repetitions are taken out, and of all axes: 512 MB at most
_LONGEST_TEXT = 2**23  # characters of an order
_DEEPEST = 8  # of containers in a file


def to_record(found: Reveal) -> dict[str, Any]:
    """What ``from_record`` reads: everything, as JSON takes it."""
    return {
        "version": VERSION,
        "status": found.status,
        "reason": found.reason,
        "match": found.match,
        "trials": found.trials,
        "found_in": found.found_in,
        "calls": found.calls,
        "seconds": round(found.seconds, 3),
        "key": _lists(found.key),
        "parts": [
            {
                "summations": [str(summation) for summation in classes.summations],
                "outputs": classes.counts(),
                "axes": [_runs(kinds) for kinds in classes.axes],
                "core_shape": list(classes.core.shape),
                "core": _runs(classes.core.ravel()),
            }
            for classes in found.classes
        ],
    }


def from_record(data: Any, statuses: Mapping[str, str]) -> dict[str, Any]:
    """The fields of a ``Reveal``; what else data has is passed over, so that a file can have notes in it.

    Raises:
        ValueError: data is not what ``to_record`` gives, or its parts do not fit each other or its key.
    """
    _plain(data, _DEEPEST)
    _require(isinstance(data, dict), "it is no dictionary")
    named = "version" if "version" in data else "format"
    version = _field(data, named, int)
    _require(1 <= version <= VERSION, f"its version is {quoted(version)}; this release reads 1 to {VERSION}")
    _require(not {"version", "format"} <= set(data), "it has a version and a format, which is its older name")
    status = _field(data, "status", str)
    _require(status in statuses, f"its status is {quoted(status)}; valid: {', '.join(statuses)}")
    match = _number(data, "match")
    _require(match <= 1, f"match must be from 0 to 1; got {quoted(match)}")
    key = _field(data, "key", dict)
    geometry = _geometry(key)
    made = parts(geometry)
    given = _field(data, "parts", list)
    _require(len(given) in (0, len(made)), f"the convolution of its key has {len(made)} parts; got {len(given)}")
    _check_size(given, made)
    classes = tuple(_classes(data, part, geometry.bias) for data, part in zip(given, made, strict=False))
    _check_match(status, match, geometry, made, classes)
    return {
        "status": status,
        "reason": _field(data, "reason", str),
        "match": match,
        "trials": _count(data, "trials"),
        "found_in": _field(data, "found_in", str),
        "calls": _count(data, "calls"),
        "seconds": _number(data, "seconds"),
        "key": {name: tuple(value) if isinstance(value, list) else value for name, value in key.items()},
        "classes": classes,
    }


# ---- The parts of a record ----


def _geometry(key: dict[str, Any]) -> Geometry:
    for name in ("function", "library", "version"):
        _field(key, name, str)
    missing = [name for name in ARGUMENTS[:9] if name not in key]
    _require(not missing, f"its key has no {', '.join(missing)}")
    given = {name: key[name] for name in ARGUMENTS if name in key}
    for name in ("input_shape", "weight_shape"):
        _require(isinstance(given[name], list), f"{name} must be a list of sizes; got {quoted(given[name])}")
    for name in ("stride", "padding", "dilation", "output_padding"):
        if isinstance(given.get(name), list):
            given[name] = tuple(given[name])
    try:
        return Geometry.of(**given)
    except (TypeError, OverflowError, MemoryError) as error:
        raise ValueError(f"not a revealed order: its key: {error}") from error


def _check_size(given: list[Any], made: list[Part]) -> None:
    """A short text can ask for a lot of memory: how many labels there would be is known before there are any."""
    labels = 0
    for data, part in zip(given, made, strict=False):
        _require(isinstance(data, dict), f"a part must be a dictionary; got {quoted(data)}")
        labels += sum(part.shape) + math.prod(_sizes(data, "core_shape"))
    _require(labels <= MOST_LABELS, f"its outputs have {labels} labels; at most {MOST_LABELS} are read")


def _classes(data: dict[str, Any], part: Part, bias: bool) -> Classes:
    texts = _field(data, "summations", list)
    _require(len(texts) <= MOST_CLASSES, f"a part has at most {MOST_CLASSES} summations; got {len(texts)}")
    summations = tuple(_summation(text, part, bias) for text in texts)
    shape = _sizes(data, "core_shape")
    runs = _field(data, "axes", list)
    _require(len(runs) == 4, f"a part has 4 axes; got {len(runs)}")
    axes = tuple(
        _unrolled(runs[axis], part.shape[axis], f"axis {axis}", range(shape[axis]), np.int32) for axis in range(4)
    )
    kinds = [int(axis.max()) + 1 for axis in axes]
    _require(shape == kinds, f"core_shape must be {kinds}, as its axes say; got {quoted(shape)}")
    labels = _unrolled(data.get("core"), math.prod(shape), "core", range(-1, len(summations)), np.int16)
    classes = Classes(summations, axes, labels.reshape(shape))
    counts = _field(data, "outputs", list)
    _require(counts == classes.counts(), "outputs are not the numbers of outputs of its classes")
    return classes


def _summation(text: Any, part: Part, bias: bool) -> Summation:
    _require(isinstance(text, str), f"a summation must be a text; got {quoted(text)}")
    _require(len(text) <= _LONGEST_TEXT, f"an order has {len(text)} characters; at most {_LONGEST_TEXT} are read")
    summation = Summation.parse(text)
    if summation.explicit_order:
        terms, biases, first, last = reach(summation.order)
        _require(
            (terms, first, last) == (part.terms, 0, part.terms - 1) and (biases == 1 or (biases == 0 and not bias)),
            f"an order of {quoted(terms)} terms, {quoted(first)} to {quoted(last)}, and {quoted(biases)} biases "
            f"does not fit the sums of its key, of {part.terms} terms and {int(bias)} biases",
        )
    return summation


def _check_match(status: str, match: float, geometry: Geometry, made: list[Part], classes: tuple[Classes, ...]) -> None:
    """The share of matched outputs is that of the outputs with a class; those of no part may be counted or not."""
    total = math.prod(geometry.result_shape)
    labelled = sum(sum(part.counts()) for part in classes)
    apart = total - sum(math.prod(part.shape) for part in made)
    right = [labelled / total, (labelled + apart) / total]
    _require(
        any(math.isclose(match, share, rel_tol=1e-9, abs_tol=1e-12) for share in right),
        f"match is {quoted(match)}, but {labelled} of {total} outputs have an order",
    )
    complete = bool(classes) and all(part.complete for part in classes)
    _require(status != "exact" or (complete and match == 1), "its status is exact, but not all outputs have an order")


# ---- Values ----


def _require(holds: bool, problem: str) -> None:
    if not holds:
        _refuse(problem)


def _refuse(problem: str) -> NoReturn:
    raise ValueError(f"not a revealed order: {problem}")


def _plain(value: Any, depth: int) -> None:
    """Nothing but what JSON has, not deeply nested, and no text that has no encoding."""
    todo = [(value, depth)]
    while todo:
        one, left = todo.pop()
        _require(left > 0, "it is nested too deeply")
        if isinstance(one, dict):
            todo += [(inner, left - 1) for pair in one.items() for inner in pair]
        elif isinstance(one, list | tuple):
            todo += [(inner, left - 1) for inner in one]
        elif isinstance(one, str):
            try:
                one.encode("utf-8")
            except UnicodeEncodeError:
                _refuse(f"a text has a lone surrogate: {quoted(one)}")
        else:
            _require(one is None or isinstance(one, bool | int | float), f"it has a {type(one).__name__} in it")


def _field(data: dict[str, Any], name: str, kind: type) -> Any:
    _require(name in data, f"it has no {name}")
    value = data[name]
    if kind is list and isinstance(value, tuple):
        return list(value)
    _require(isinstance(value, kind), f"{name} must be a {kind.__name__}; got {quoted(value)}")
    return value


def _number(data: dict[str, Any], name: str) -> float:
    _require(name in data, f"it has no {name}")
    value = data[name]
    valid = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 2**63  # false of NaN
    _require(valid, f"{name} must be a number that is at least 0; got {quoted(value)}")
    return float(value)


def _count(data: dict[str, Any], name: str) -> int:
    value: Any = data.get(name)
    _require(type(value) is int and 0 <= value < 2**63, f"{name} must be a count; got {quoted(value)}")
    return int(value)


def _sizes(data: dict[str, Any], name: str) -> list[int]:
    sizes = _field(data, name, list)
    valid = len(sizes) == 4 and all(type(size) is int and 0 < size < 2**63 for size in sizes)
    _require(valid, f"{name} must be 4 sizes; got {quoted(sizes)}")
    return list(sizes)


def _lists(key: dict[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in key.items()}


def _runs(values: Array) -> list[list[int]]:
    """[value, how many in a row], ...: labels have long runs."""
    starts = np.flatnonzero(np.r_[True, values[1:] != values[:-1]])
    lengths = np.diff(np.r_[starts, len(values)])
    return [[int(values[start]), int(length)] for start, length in zip(starts, lengths, strict=True)]


def _unrolled(runs: Any, size: int, name: str, values: range, dtype: type) -> Array:
    """The reverse of ``_runs``: so many of the values."""
    _require(isinstance(runs, list | tuple), f"{name} must be a list of runs; got {quoted(runs)}")
    for run in runs:
        valid = isinstance(run, list | tuple) and len(run) == 2 and all(type(number) is int for number in run)
        valid = valid and run[0] in values and run[1] > 0
        _require(valid, f"{name} must have runs [value, length] of {values.start} to {values[-1]}; got {quoted(run)}")
    length = sum(run[1] for run in runs)
    _require(length == size, f"{name} must have {size} places; got {quoted(length)}")
    return np.repeat(np.array([run[0] for run in runs], dtype), [run[1] for run in runs])
