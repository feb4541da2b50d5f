"""What a call costs where there is nothing to compute: a 1x1x1x1 input and a 1x1x1x1 weight.

The last routes give the same kernel to torch by the other ways that torch offers, to compare with detconv's own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from bench.results import Row
from bench.timing import Timed, interleaved

SCHEMA = (
    "(Tensor input, Tensor weight, Tensor? bias, SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, "
    "SymInt groups, str summation) -> Tensor"
)
NUMPY, TENSOR = "detconv, NumPy", "detconv, torch tensor"


def rows(base: Row, routes: Iterable[str], seconds: float, least: int) -> list[Row]:
    """Time a call by every way there is; `routes` plays no part.

    By the thread's own clock, which leaves out what others on the machine take.
    """
    found, calls = [], {}
    for name, call in ways().items():
        row = replace(base, route=name, summation="pairwise" if name.startswith("detconv") else None, clock="thread")
        found.append(row)
        if isinstance(call, str):
            row.skipped = call
            continue
        output = call()
        values = output if isinstance(output, np.ndarray) else output.detach().numpy()
        row.failed = values.tolist() != [[[[6.0]]]]
        row.check = f"2 * 3 = {values.item():g}"
        calls[name] = Timed(call)
    seconds_of = interleaved(calls, seconds, time.thread_time, least)
    for row in found:
        row.seconds = seconds_of.get(row.route)
    return found


def ways() -> dict[str, Callable[[], Any] | str]:
    """Calls by name; in place of one that cannot be made, the reason."""
    image, weight = np.full((1, 1, 1, 1), 2, np.float32), np.full((1, 1, 1, 1), 3, np.float32)
    found: dict[str, Callable[[], Any] | str] = {NUMPY: lambda: detconv.conv2d(image, weight)}
    try:
        import torch

        import detconv.torch.ops  # defines the operators
    except ImportError as error:
        return found | {TENSOR: f"torch: {error}"}
    x, w = torch.from_numpy(image), torch.from_numpy(weight)
    parameter = torch.nn.Parameter(w)
    conv2d, ours = torch.nn.functional.conv2d, detconv.conv2d
    found |= {
        TENSOR: lambda: ours(x, w),
        f"{TENSOR}, gradient": lambda: ours(x, parameter),
        "torch": lambda: conv2d(x, w),
        "torch, gradient": lambda: conv2d(x, parameter),
    }
    others = {"detconv operator": torch.ops.detconv.conv2d.default} | other_operators()
    options = (None, [1, 1], [0, 0], [1, 1], 1, "pairwise")
    for name, operator in others.items():
        found[name] = partial(operator, x, w, *options)
        found[f"{name}, gradient"] = partial(operator, x, parameter, *options)
    return found


def other_operators() -> dict[str, Any]:
    import torch

    library: Any = torch.library.Library("detconv_bench", "DEF")  # type: ignore[no-untyped-call]
    library.define(f"library{SCHEMA}")
    library.impl("library", kernel, "CPU")
    torch.library.register_autograd("detconv_bench::library", no_gradients, setup_context=keep, lib=library)
    custom = torch.library.custom_op("detconv_bench::custom", kernel, mutates_args=(), schema=SCHEMA)
    custom.register_autograd(no_gradients, setup_context=keep)
    other_operators.library = library  # type: ignore[attr-defined]  # alive as long as its operators
    operators = torch.ops.detconv_bench
    return {
        "detconv by torch.library.Library": operators.library.default,
        "detconv by custom_op": operators.custom.default,
    }


def kernel(input: Any, weight: Any, *others: Any) -> Any:
    """detconv's own kernel, without its operator."""
    from detconv.functional import run_engine
    from detconv.torch.tensors import TENSORS

    return run_engine(TENSORS, "conv2d", input, weight, *others)


def keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(inputs[0], inputs[1])


def no_gradients(ctx: Any, grad: Any) -> tuple[None, ...]:
    return (None,) * 8
