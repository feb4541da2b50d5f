"""For tests and experiments."""

from __future__ import annotations

from contextlib import ContextDecorator

from detconv import _core


class instruction_set(ContextDecorator):
    """Context manager that forces one instruction set for the whole process: ``with instruction_set("avx2"): ...``.

    On leaving, what was forced before is forced again (or the choice is free again). It can be nested, used again and
    used as a decorator.

    Args:
        name: ``"baseline"``, ``"avx2"``, ``"avx512"`` or ``"neon"``; ``build_info()["instruction_sets_usable"]`` lists
            those that this build has and this processor runs. None leaves the choice to detconv.

    Raises:
        ValueError: (on entering) no such instruction set, or not usable here.
    """

    def __init__(self, name: str | None) -> None:
        self._name = name
        self._before: list[str | None] = []

    def __enter__(self) -> None:
        self._before.append(_core.force_instruction_set(self._name))

    def __exit__(self, *_: object) -> None:
        _core.force_instruction_set(self._before.pop())
