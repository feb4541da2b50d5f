"""How detconv was built and on how many threads it runs. None of it changes a bit of any result."""

from __future__ import annotations

from collections.abc import Mapping

from detconv import _core


def build_info() -> dict[str, object]:
    """Version, compiler, flags, instruction sets (built, usable, in use), OpenMP and threads, by name."""
    return _core.build_info()


def show_config() -> None:
    """Print ``build_info()``, one line for each entry."""
    print(as_lines(build_info()))


def set_num_threads(n: int) -> None:
    """Compute on n threads from now on.

    Raises:
        ValueError: n is less than 1, or more than any machine has.
        TypeError: n is not an int.
    """
    if isinstance(n, bool) or not isinstance(n, int):
        raise TypeError(f"n must be an int; got {type(n).__name__}")
    _core.set_num_threads(n)


def get_num_threads() -> int:
    """Number of threads that a call may use: ``OMP_NUM_THREADS`` or the processors at hand, until it is set."""
    return _core.get_num_threads()


def as_lines(entries: Mapping[str, object]) -> str:
    """Names and values in two aligned columns."""
    width = max(map(len, entries))
    return "\n".join(f"{name:<{width}}  {_as_text(name, value)}" for name, value in entries.items())


def _as_text(name: str, value: object) -> str:
    if name == "openmp" and value is False:
        return "no: compiled without OpenMP, so that every call computes on one thread (same bits)"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)
