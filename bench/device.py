"""torch on CUDA: its outputs beside detconv's bits from the CPU, for every setting of the flags that change them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from itertools import product
from typing import Any, NamedTuple, Protocol

import numpy as np

from bench.problem import HALF_TYPES, Array, Problem, judged
from bench.results import Row
from bench.timing import Timed, interleaved

NO_DEVICE = "no CUDA device"


class Flags(NamedTuple):
    """Everything in torch that chooses a convolution's algorithm or precision on CUDA, pinned together.

    TF32 must be said for cuDNN and for matrix products both, the precision of float32 products goes with it, and a
    context manager that sets one of cuDNN's flags sets them all.
    """

    cudnn: bool
    tf32: bool
    benchmark: bool
    deterministic: bool

    @property
    def precision(self) -> str:
        return "high" if self.tf32 else "highest"

    def __str__(self) -> str:
        on = [name for name in ("tf32", "benchmark", "deterministic") if getattr(self, name)]
        return ", ".join(["cuDNN" if self.cudnn else "without cuDNN", *on])


SETTINGS = [Flags(True, *flags) for flags in product((False, True), repeat=3)] + [Flags(False, False, False, True)]


class Device(Protocol):
    """What is asked of a device: only this is replaced where a test has none."""

    name: str

    def describe(self) -> dict[str, Any]:
        """Model, versions, memory: part of the result."""
        ...

    def put(self, tensor: Any) -> Any:
        """The tensor on the device."""
        ...

    def finish(self) -> None:
        """Wait until all that was asked for is done."""
        ...


class Cuda:
    """The first CUDA device of torch."""

    name = "cuda"

    def describe(self) -> dict[str, Any]:
        import torch

        properties = torch.cuda.get_device_properties(0)
        return {
            "device": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        }

    def put(self, tensor: Any) -> Any:
        return tensor.cuda()

    def finish(self) -> None:
        import torch

        torch.cuda.synchronize()


@cache
def find() -> Device | None:
    """The device, or None."""
    try:
        import torch
    except ImportError:
        return None
    return Cuda() if torch.cuda.is_available() else None


def describe(device: Device | None) -> dict[str, Any]:
    return {"missing": NO_DEVICE} if device is None else device.describe()


@contextmanager
def pinned(flags: Flags) -> Iterator[None]:
    """torch with exactly these flags; what was set before comes back."""
    import torch

    precision, products = torch.get_float32_matmul_precision(), torch.backends.cuda.matmul
    before = products.allow_tf32
    with torch.backends.cudnn.flags(
        enabled=flags.cudnn,
        benchmark=flags.benchmark,
        benchmark_limit=10,
        deterministic=flags.deterministic,
        allow_tf32=flags.tf32,
    ):
        try:
            torch.set_float32_matmul_precision(flags.precision)
            products.allow_tf32 = flags.tf32
            yield
        finally:
            products.allow_tf32 = before
            torch.set_float32_matmul_precision(precision)


def call_on(device: Device, problem: Problem) -> Callable[[], Any]:
    """The pass on the device's own tensors, finished when it returns."""
    import torch

    x, w, g = map(device.put, problem.tensors)

    def call() -> Any:
        if problem.which == "forward":
            result = torch.nn.functional.conv2d(x, w, None, *problem.options)
        else:
            pairs = [[value, value] for value in problem.options[:3]]
            mask = [problem.which == "input", problem.which == "weight", False]
            both = torch.ops.aten.convolution_backward(g, x, w, None, *pairs, False, [0, 0], problem.layer.groups, mask)
            result = both[mask.index(True)]
        device.finish()
        return result

    return call


def rows(
    device: Device | None,
    problem: Problem,
    base: Row,
    outputs: Mapping[str, Array],
    seconds: float = 0.1,
) -> list[Row]:
    """A row for each setting of the flags; outputs: detconv's, by summation, computed on the CPU."""
    if device is None:
        return [replace(base, route="torch CUDA", skipped=NO_DEVICE)]
    import torch

    found = []
    for flags in SETTINGS:
        row = replace(base, route=f"torch CUDA, {flags}", flags=flags._asdict() | {"precision": flags.precision})
        found.append(row)
        try:
            with pinned(flags), torch.inference_mode():
                call = call_on(device, problem)
                result = call().cpu()
                timed = interleaved({"": Timed(call)}, seconds, time.perf_counter)[""]
        except RuntimeError as error:
            row.skipped = f"torch: {str(error).splitlines()[0]}"
            continue
        output = (result.float() if problem.dtype in HALF_TYPES else result).contiguous().numpy()
        row.seconds, row.clock, row.gflops = timed, "wall", 2 * row.macs / timed.median / 1e9
        row.max_ulp, row.mean_ulp, row.median_ulp, row.judged, row.verdict = judged(problem, output)
        row.check = f"verdict: {row.verdict}"  # beyond the bound is a finding here, no failure: TF32 is just that
        row.equal_bits = {name: float(np.mean(output == ours)) for name, ours in outputs.items()}
    return found
