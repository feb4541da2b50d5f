"""Functions of torch, met at its dispatcher while a block is open.

A function mode of torch sees what Python code calls, and no more: torch takes it off while ``Tensor.backward`` or a
function that handles ``__torch_function__`` runs, so a recomputation by checkpointing, a custom ``backward``, a hook or
a branch of ``torch.cond`` goes unseen. Kernels see them all: they are registered for functions of the namespace
``aten`` while a block is open in any thread, and every call, from Python or from C++, comes to them. They are removed
when the last block ends.

A kernel asks the innermost block of its own thread what to do. In a thread without a block it calls the kernel that
torch would have called, which costs a few microseconds a call. Opening the first block registers all kernels, which
takes a few milliseconds; opening another one only counts.

torch changes its table of kernels without a lock, so a call in one thread must not coincide with the registration by
another: open the first block, and close the last, while no other thread is starting a call of these functions.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, Protocol

import torch

from detconv.torch.recomputation import Recomputations


class Block(Protocol):
    """What is open in a thread, and decides on the calls that are met."""

    def meet(self, name: str, key: str, own: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of a call.

        Args:
            name: of the function's overload, such as ``"convolution.out"``.
            key: the dispatch key at which the call is met.
            own: torch's own kernel, which takes args and kwargs. What it calls in turn is met as well, unless it runs
                ``within(())``.
            args, kwargs: as the dispatcher hands them over: arguments that have their default may be missing.
        """


class _Thread(threading.local):
    blocks: tuple[Block, ...] = ()
    opened = 0  # how many of the blocks that are counted as open are this thread's


class Kernels:
    """A table of functions, the kernels that meet them, and the blocks that are open, thread by thread.

    Blocks of different kinds can share a table; of two tables, one can be in use at a time.

    Args:
        table: the dispatch keys at which an overload is met, by its name without the namespace. ``AutogradCPU`` meets
            calls from outside, ``CPU`` those of code that runs below autograd, inference mode included.
    """

    def __init__(self, table: Mapping[str, Sequence[str]]) -> None:
        self._table = table
        self._thread = _Thread()
        self._lock = threading.Lock()
        self._opened = 0
        self._library: Any = None
        self._recomputations = Recomputations(lambda: self._thread.blocks, self.within)
        # The last kernels that were registered: a thread that waits for the interpreter inside of one still needs it
        # when the last block of all threads ends.
        self._retired: deque[list[Any]] = deque(maxlen=4)
        if hasattr(os, "register_at_fork"):  # Windows has no fork
            os.register_at_fork(after_in_child=self._after_fork)

    def innermost(self) -> Block | None:
        """The block that holds in this thread."""
        blocks = self._thread.blocks
        return blocks[-1] if blocks else None

    def enter(self, block: Block) -> None:
        """Open a block in this thread.

        Raises:
            RuntimeError: somebody else has registered a Python kernel for one of the functions, or this torch has no
                ``torch.library.get_kernel``.
        """
        self._open()
        self._thread.blocks += (block,)

    def leave(self, block: Block) -> None:
        """Close the innermost block of this thread.

        Raises:
            RuntimeError: the innermost block is another one, or belongs to another thread; nothing has changed then.
        """
        if self.innermost() is not block:
            name = type(block).__name__
            raise RuntimeError(
                f"{name}: blocks must be left in the reverse order of their opening, and in the thread that opened "
                "them; this one is not the innermost of this thread"
            )
        self._thread.blocks = self._thread.blocks[:-1]
        self._close()

    @contextmanager
    def within(self, blocks: tuple[Block, ...]) -> Iterator[None]:
        """As if these were the blocks of this thread, and no others; with none, every call is torch's own."""
        if blocks:
            self._open()
        before, self._thread.blocks = self._thread.blocks, blocks
        try:
            yield
        finally:
            self._thread.blocks = before
            if blocks:
                self._close()

    def _open(self) -> None:
        with self._lock:
            if self._library is None:
                self._register()
            self._opened += 1
            self._thread.opened += 1

    def _close(self) -> None:
        with self._lock:
            self._opened -= 1
            self._thread.opened -= 1
            if self._opened == 0:
                self._remove()

    def _register(self) -> None:
        if not hasattr(torch.library, "get_kernel"):
            raise RuntimeError(f"this needs a torch that has torch.library.get_kernel; got torch {torch.__version__}")
        library: Any = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
        ours = []
        try:
            with nullcontext() if self._retired else _without_a_warning():
                for name, key in [(name, key) for name, keys in self._table.items() for key in keys]:
                    own = torch.library.get_kernel(f"aten::{name}", key)
                    # torch knows one Python kernel only of a function and key: a second one would call itself.
                    library.impl(name, self._kernel(name, key, own), key, with_keyset=True, allow_override=False)
                    ours.append(torch.library.get_kernel(f"aten::{name}", key))
            self._recomputations.install()
        except BaseException:
            library._destroy()
            raise
        self._library = library
        self._retired.append(ours)

    def _remove(self) -> None:
        self._recomputations.remove()
        self._library._destroy()
        self._library = None

    def _kernel(self, name: str, key: str, own: Any) -> Callable[..., Any]:
        thread, call = self._thread, own.call_boxed

        def kernel(keyset: Any, *args: Any, **kwargs: Any) -> Any:
            if not thread.blocks:
                return call(keyset, *args, **kwargs)
            return thread.blocks[-1].meet(name, key, partial(call, keyset), args, kwargs)

        return kernel

    def _after_fork(self) -> None:
        """In a forked child, whose only thread is a copy of the one that forked, with its blocks."""
        self._lock = threading.Lock()
        self._opened = self._thread.opened


@contextmanager
def _without_a_warning() -> Iterator[None]:
    """torch says, once in a process, that a kernel stands in the place of one of its own."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Warning only once for all operators")
        yield
