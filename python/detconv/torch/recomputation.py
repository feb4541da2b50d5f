"""torch's checkpointing, made to recompute in the blocks in which it computed.

``torch.utils.checkpoint`` keeps the function that it was given and calls it again in the backward pass. The blocks that
are open then may be others than those of the forward pass, or none; the values that the function computes the second
time must be those of the first, bit for bit, or the gradients are others than without checkpointing. So the function is
kept together with its blocks.

Both kinds of checkpointing keep the function as an attribute of an object: ``use_reentrant=False`` of its frame,
``use_reentrant=True`` of the node in the graph. While a block is open, a descriptor stands in the place of each.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from torch.utils import checkpoint

Blocks = tuple[Any, ...]
Within = Callable[[Blocks], AbstractContextManager[None]]


class Recomputations:
    """The descriptors.

    Args:
        blocks: gives those that are open in this thread.
        within: makes some blocks those of this thread, for a while.
    """

    def __init__(self, blocks: Callable[[], Blocks], within: Within) -> None:
        self._blocks = blocks
        self._within = within

    def install(self) -> None:
        """
        Raises:
            RuntimeError: this torch has no such places, or others' descriptors stand there.
        """
        for owner, attribute in _places():
            if attribute in vars(owner):
                raise RuntimeError(f"{owner.__name__}.{attribute} is somebody else's: one table of kernels at a time")
        for owner, attribute in _places():
            setattr(owner, attribute, _Kept(attribute, self._blocks, self._within))

    def remove(self) -> None:
        """Functions that were kept keep their blocks."""
        for owner, attribute in _places():
            delattr(owner, attribute)


def _places() -> list[tuple[type, str]]:
    try:
        reentrant = checkpoint.CheckpointFunction._backward_cls
        return [(checkpoint._CheckpointFrame, "recompute_fn"), (reentrant, "run_function")]
    except AttributeError as error:
        raise RuntimeError(
            "this torch's checkpointing is not known, so what it computes again could not be met"
        ) from error


class _Kept:
    """An attribute that keeps a function with the blocks of the thread that sets it."""

    def __init__(self, attribute: str, blocks: Callable[[], Blocks], within: Within) -> None:
        self._attribute = attribute
        self._blocks = blocks
        self._within = within

    def __set__(self, instance: Any, function: Callable[..., Any]) -> None:
        vars(instance)[self._attribute] = _Recomputation(function, self._blocks(), self._within)

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self
        function = vars(instance)[self._attribute]
        if isinstance(function, _Recomputation):
            return function
        return _Recomputation(function, (), self._within)  # it was set while no block was open in any thread


class _Recomputation:
    """A function that is called in the blocks with which it was kept."""

    def __init__(self, function: Callable[..., Any], blocks: Blocks, within: Within) -> None:
        self._function = function
        self._blocks = blocks
        self._within = within

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self._within(self._blocks):
            return self._function(*args, **kwargs)
