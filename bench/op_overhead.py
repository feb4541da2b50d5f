"""What a call costs where there is nothing to compute: microseconds for a 1x1x1x1 input and a 1x1x1x1 weight.

    python bench/op_overhead.py
    python bench/op_overhead.py --smoke              # a second, for CI: runs, prints

The last rows give the same kernel to torch by the other routes that torch offers, to compare with detconv's own.
"""

from __future__ import annotations

import argparse
import time
import timeit
from collections.abc import Callable
from typing import Any

import torch

import detconv
import detconv.torch

SCHEMA = (
    "(Tensor input, Tensor weight, Tensor? bias, SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, "
    "SymInt groups, str summation) -> Tensor"
)


def run(*arguments: Any) -> torch.Tensor:
    """detconv's own kernel, without its operator."""
    from detconv.functional import run_engine
    from detconv.torch.tensors import TENSORS

    return run_engine(TENSORS, "conv2d", *arguments)


def keep(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    ctx.save_for_backward(inputs[0], inputs[1])


def no_gradients(ctx: Any, grad: torch.Tensor) -> tuple[None, ...]:
    return (None,) * 8


def other_routes() -> dict[str, Any]:
    library = torch.library.Library("detconv_bench", "DEF")
    library.define(f"library{SCHEMA}")
    library.impl("library", run, "CPU")
    torch.library.register_autograd("detconv_bench::library", no_gradients, setup_context=keep, lib=library)
    custom = torch.library.custom_op("detconv_bench::custom", run, mutates_args=(), schema=SCHEMA)
    custom.register_autograd(no_gradients, setup_context=keep)
    other_routes.library = library  # type: ignore[attr-defined]  # alive as long as its operators
    operators = torch.ops.detconv_bench
    return {"Library, register_autograd": operators.library.default, "custom_op": operators.custom.default}


def microseconds(call: Callable[[], object], repeats: int) -> float:
    """The least of many runs, on the thread's own clock, which leaves out what others on the machine take."""
    return min(timeit.repeat(call, number=100, repeat=repeats, timer=time.thread_time)) * 1e4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="few repetitions")
    repeats = 5 if parser.parse_args().smoke else 300

    torch.set_num_threads(1)
    detconv.set_num_threads(1)
    image, weight = torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
    parameter = torch.nn.Parameter(weight)
    arrays = image.numpy(), weight.numpy()
    options = (None, [1, 1], [0, 0], [1, 1], 1, "pairwise")
    operator = torch.ops.detconv.conv2d.default
    aten = torch.nn.functional.conv2d

    rows: dict[str, tuple[Callable[[], object], Callable[[], object] | None]] = {
        "torch's conv2d": (lambda: aten(image, weight), lambda: aten(image, parameter)),
        "detconv.conv2d, NumPy": (lambda: detconv.conv2d(*arrays), None),
        "detconv.conv2d, torch": (lambda: detconv.conv2d(image, weight), lambda: detconv.conv2d(image, parameter)),
        "torch.ops.detconv.conv2d": (
            lambda: operator(image, weight, *options),
            lambda: operator(image, parameter, *options),
        ),
    }
    for name, other in other_routes().items():
        rows[name] = (
            lambda other=other: other(image, weight, *options),
            lambda other=other: other(image, parameter, *options),
        )
    print(f"torch {torch.__version__}\n{'microseconds a call':30}{'no gradient':>14}{'gradient':>11}")
    for name, (plain, recorded) in rows.items():
        text = f"{microseconds(recorded, repeats):11.1f}" if recorded else f"{'':>11}"
        print(f"{name:30}{microseconds(plain, repeats):14.1f}{text}", flush=True)


if __name__ == "__main__":
    main()
