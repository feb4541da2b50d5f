"""What a call returns, or the message with which it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def tried(call: Callable[[], Any], longest: int) -> tuple[Any, str]:
    """The result and ""; or None and the message of a ValueError, which must be short and printable. Others pass on."""
    try:
        return call(), ""
    except ValueError as error:
        message = str(error)
    assert message
    assert len(message) < longest, message[: 2 * longest]
    message.encode("utf-8")
    return None, message
