"""Text for a terminal."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager

WIDTH = 98


def wrapped(text: str) -> str:
    """The text in lines of at most WIDTH; its own lines and their indentation stay."""
    return "\n".join(_wrapped_line(line) for line in text.splitlines())


def _wrapped_line(line: str) -> str:
    indent = line[: len(line) - len(line.lstrip())]
    return textwrap.fill(line, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


@contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """A line on a terminal that says what is being computed, and goes away."""
    show = sys.stderr.isatty()

    def say(text: str) -> None:
        if show:
            print(f"\r{text[:WIDTH]:{WIDTH}}", end="\r", file=sys.stderr, flush=True)

    try:
        yield say
    finally:
        say("")
