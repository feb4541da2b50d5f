"""What came from a caller or a file, as messages show it: never long, and printable everywhere."""

from __future__ import annotations

from typing import Any

MOST = 200  # characters of what came


def shortened(text: str, most: int = MOST) -> str:
    """The text itself if it has at most so many characters, else its beginning and "...": together as many.

    Lone surrogates, which no encoding has, are spelt out as ``\\udc80``.
    """
    short = text if len(text) <= most else text[: most - 3] + "..."
    spelt = short.encode("utf-8", "backslashreplace").decode("utf-8")
    return spelt if spelt == short else shortened(spelt, most)


def quoted(value: Any, most: int = MOST) -> str:
    """``repr(value)``, shortened; of a long text only the beginning is looked at."""
    if isinstance(value, str):
        value = value[: most + 1]
    try:
        return shortened(repr(value), most)
    except Exception:  # a repr of the caller's own may fail, and that of a number of 5000 digits does
        return f"<{type(value).__name__}>"


def first_line(error: BaseException) -> str:
    """What an exception of another library says, in one line; its kind, where it says nothing."""
    lines = str(error).split("\n")
    said = next((line.strip() for line in lines if line.strip()), "")
    return shortened(said or type(error).__name__)
