"""One training step of a small network, its convolutions torch's own and detconv's."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import detconv
from bench.results import Row
from bench.timing import Timed, interleaved
from detconv.testing import instruction_set

if TYPE_CHECKING:
    from torch import nn

NAME, BATCH = "ResNet-18, 32x32, batch 32", 32
SUMMATIONS = ("naive", "pairwise")


def resnet18() -> nn.Module:
    """ResNet-18 for 32 x 32 pixels (K. He and others, CVPR 2016): a 3x3 layer and no pooling before the blocks."""
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self, channels: int, outputs: int, stride: int) -> None:
            super().__init__()
            self.path = nn.Sequential(
                nn.Conv2d(channels, outputs, 3, stride, 1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
                nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
                nn.BatchNorm2d(outputs),
            )
            self.beside: nn.Module = nn.Identity()
            if stride > 1 or channels != outputs:
                self.beside = nn.Sequential(
                    nn.Conv2d(channels, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
                )

        def forward(self, x: Any) -> Any:
            return torch.relu(self.path(x) + self.beside(x))

    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    channels = 64
    for outputs, stride in [(64, 1), (128, 2), (256, 2), (512, 2)]:
        layers += [Block(channels, outputs, stride), Block(outputs, outputs, 1)]
        channels = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


def stepper(model: nn.Module) -> Callable[[], None]:
    """A call that does one step of SGD on a batch that stays."""
    import torch

    draw = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, 3, 32, 32, generator=draw)
    labels = torch.randint(10, (BATCH,), generator=draw)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def call() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return call


def rows(base: Row, routes: Iterable[str], seconds: float) -> list[Row]:
    """Time the step with torch's convolutions and with detconv's, of those of SUMMATIONS that are among the routes."""
    base = replace(base, dtype="float32", clock="thread" if base.threads == 1 else "wall")
    try:
        import torch  # noqa: F401
    except ImportError as error:
        return [replace(base, route="torch", skipped=f"torch: {error}")]
    found, calls = [replace(base, route="torch", check="none: torch promises no bits")], {"torch": stepper(resnet18())}
    for summation in SUMMATIONS:
        if summation in routes:
            calls[summation] = stepper(detconv.convert(resnet18(), summation)[0])
            found.append(replace(base, route=summation, summation=summation))
            found[-1].sha256, found[-1].check, found[-1].failed = same_weights(summation)
    # A step is long enough for few rounds: it is hundreds of calls.
    clock = time.thread_time if base.threads == 1 else time.perf_counter
    timed = interleaved({name: Timed(call) for name, call in calls.items()}, seconds, clock, least=3)
    for row in found:
        row.seconds = timed[row.route]
        row.ratio = timed[row.route].median / timed["torch"].median
    return found


def same_weights(summation: str) -> tuple[str, str, bool]:
    """The hash of all weights after a step, what was asserted of it, and whether that failed."""
    usable: Any = detconv.build_info()["instruction_sets_usable"]
    hashes = {}
    for isa in usable[-2:]:  # the fastest two: the baseline takes a minute
        model, _ = detconv.convert(resnet18(), summation)
        with instruction_set(isa):
            stepper(model)()
        hashes[isa] = detconv.weights_sha256(model)
    failed = len(set(hashes.values())) > 1
    return hashes[usable[-1]], f"weights on {' and '.join(hashes)}: {'DIFFER' if failed else 'equal'}", failed
