"""What fixes the bits of an output, written down: a method, an order, the products and the bias position."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from functools import lru_cache
from operator import index
from typing import final

from detconv import _core
from detconv.quoting import quoted

_LARGEST_BLOCK = 2**31 - 1

# One item of a summation's text: a method, or name=value with the value in double quotes where it has spaces.
_ITEM = re.compile(r'(?:(?P<name>\w+)=)?(?:"(?P<quoted>[^"]*)"|(?P<plain>[^\s"=]+))(?=\s|\Z)')

# The engine's messages start with the field at fault. Those about the syntax of an explicit order start with "order:",
# and give the column in it.
_ENGINE_FIELD = re.compile(r"\w+")
_ENGINE_COLUMN = re.compile(r"order: .*? at column (\d+) of ")


class _Compiled:
    """Holds what the engine runs, outside the dataclass's fields: no part of equality, hash, repr or pickles."""

    __slots__ = ("_compiled",)

    _compiled: _core.Summation


@final
@dataclass(frozen=True, slots=True)
class Summation(_Compiled):
    """Everything that fixes the bits of a convolution: equal summations give equal bits, everywhere and always.

    Fields:
        method: how the terms are added: ``"naive"``, ``"pairwise"``, ``"kahan"``, ``"fp64"`` or ``"exact"``.
        order: the loops over the terms, outermost first (``"c,kh,kw"`` or any permutation of it), or an explicit
            order in the order language, such as ``"25x(+1){16x(+25){f0}} bias"``. An explicit order fixes sequence,
            tree, products and bias position by itself: method then reads ``"naive"``, and products, bias and block
            stay at their defaults.
        products: ``"fused"`` (each product enters by one fused multiply-add) or ``"rounded"`` (it is rounded first).
        bias: ``"last"`` (added to the total) or ``"first"`` (the first accumulator starts from it).
        block: terms per block of ``"pairwise"``, 1 to 2147483647.
        samples: how a gradient joins its samples: ``"tree"`` or ``"sequence"``.

    The text of a summation, ``str(summation)``, is one line: the method, then the fields that differ from their
    defaults, as in ``naive order=kh,kw,c products=rounded``. ``Summation.parse`` reads it back.

    Raises:
        ValueError: an unknown name, an explicit order with a syntax error (with its column), a block out of range or
            fields that contradict each other.
        TypeError: a field of the wrong type.
    """

    method: str = "pairwise"
    order: str = "c,kh,kw"
    products: str = "fused"
    bias: str = "last"
    block: int = 64
    samples: str = "tree"

    def __post_init__(self) -> None:
        for name in ("method", "order", "products", "bias", "samples"):
            value = getattr(self, name)
            if not isinstance(value, str):
                raise TypeError(f"{name} must be a str; got {type(value).__name__}")
            if not _is_unicode(value):
                raise ValueError(f"{name} must be text without lone surrogates; got {quoted(value)}")
        block = _checked_block(self.block)
        compiled = _core.Summation(self.method, self.order, self.products, self.bias, block, self.samples)
        object.__setattr__(self, "_compiled", compiled)
        for field in fields(self):  # the engine's spelling, so that summations that mean the same compare equal
            object.__setattr__(self, field.name, getattr(compiled, field.name))

    @property
    def explicit_order(self) -> bool:
        """True if ``order`` is a text in the order language, False if it is a sequence of the loops."""
        return self._compiled.explicit_order

    def __str__(self) -> str:
        items = [self.method]
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "method" and value != field.default:
                text = str(value)
                items.append(f'{field.name}="{text}"' if " " in text else f"{field.name}={text}")
        return " ".join(items)

    def __repr__(self) -> str:
        """As Python code; an order of more than 200 characters is shortened."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return f"Summation({', '.join(f'{name}={quoted(value)}' for name, value in values.items())})"

    def __reduce__(self) -> tuple[type[Summation], tuple[str | int, ...]]:
        return Summation, tuple(getattr(self, field.name) for field in fields(self))

    @staticmethod
    def parse(text: str) -> Summation:
        """Read the text of a summation; the inverse of ``str``.

        The text is a method and ``name=value`` items, in any order and separated by white space; what is left out has
        its default. A value with spaces stands in double quotes.

        Raises:
            ValueError: with the column (from 1) of what is wrong.
            TypeError: text is not a str.
        """
        if not isinstance(text, str):
            raise TypeError(f"text must be a str; got {type(text).__name__}")
        values, columns = _read_items(text)
        try:
            return Summation(**values)  # type: ignore[arg-type]  # _read_items gives block alone as an int
        except ValueError as error:
            raise _located(error, columns) from None

    @staticmethod
    def of(summation: Summation | str) -> Summation:
        """Return a Summation as it is and a text parsed; what every function with a summation argument calls.

        Raises:
            ValueError: the text is wrong (with the column).
            TypeError: neither a Summation nor a str.
        """
        if isinstance(summation, Summation):
            return summation
        if isinstance(summation, str):
            return _parse_once(summation)
        raise TypeError(f"summation must be a detconv.Summation or its text; got {type(summation).__name__}")


# A call with a text costs a dictionary look-up from the second time on. Explicit orders can be long: keep few.
_parse_once = lru_cache(maxsize=64)(Summation.parse)


def _is_unicode(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)


def _checked_block(block: object) -> int:
    if isinstance(block, bool) or not hasattr(block, "__index__"):
        raise TypeError(f"block must be an int; got {type(block).__name__}")
    value = index(block)
    if not 1 <= value <= _LARGEST_BLOCK:
        raise ValueError(f"block must be from 1 to {_LARGEST_BLOCK}; got {quoted(value)}")
    return value


def _read_items(text: str) -> tuple[dict[str, str | int], dict[str, int]]:
    """Split a summation's text into the values of its fields and the columns where these values start."""
    names = [field.name for field in fields(Summation)]
    values: dict[str, str | int] = {}
    columns: dict[str, int] = {}
    position = _skip_space(text, 0)
    while position < len(text):
        item = _ITEM.match(text, position)
        if item is None:
            raise _error_at(position + 1, "expected a method or name=value (a value with spaces in double quotes)")
        name = item["name"] or "method"
        if name not in names:
            raise _error_at(position + 1, f"unknown field {quoted(name)}; valid: {', '.join(names)}")
        if name in values:
            hint = "" if item["name"] else "; a value with spaces stands in double quotes"
            raise _error_at(position + 1, f"{name} is given twice{hint}")
        group = "plain" if item["quoted"] is None else "quoted"
        columns[name] = item.start(group) + 1
        values[name] = _block_from(item[group], columns[name]) if name == "block" else item[group]
        position = _skip_space(text, item.end())
    if not values:
        raise _error_at(1, "the text is empty; expected a method")
    return values, columns


def _skip_space(text: str, position: int) -> int:
    while position < len(text) and text[position].isspace():
        position += 1
    return position


def _block_from(digits: str, column: int) -> int:
    if not (digits.isascii() and digits.isdigit() and len(digits) <= len(str(_LARGEST_BLOCK))):
        raise _error_at(column, f"block must be from 1 to {_LARGEST_BLOCK}; got {quoted(digits)}")
    return int(digits)


def _located(error: ValueError, columns: dict[str, int]) -> ValueError:
    """The engine's error, with the column in the whole text of what is at fault."""
    message = str(error)
    field = _ENGINE_FIELD.match(message)
    if field is None or field[0] not in columns:  # fields that contradict each other: no one place is wrong
        return ValueError(f"summation: {message}")
    inside = _ENGINE_COLUMN.match(message)
    return _error_at(columns[field[0]] + (int(inside[1]) - 1 if inside else 0), message)


def _error_at(column: int, message: str) -> ValueError:
    return ValueError(f"summation, column {column}: {message}")
