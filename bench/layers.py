"""Speed beside torch: time of each method divided by torch's, measured interleaved in one process.

    python bench/layers.py                                       # forward, the 3x3 layers of ResNet-50, one thread
    python bench/layers.py --passes all --layers "3x3 64 b16"    # the gradients too
    python bench/layers.py --layers all --threads 2
    python bench/layers.py --smoke                               # a few seconds, for CI: runs, compares bits, prints

Every row first asserts its bits: a method gives the same output on the two fastest usable instruction sets. With one
thread the thread's own clock is used, which leaves out what others on the machine take.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

import detconv
from detconv import _core
from detconv.testing import instruction_set


class Layer(NamedTuple):
    batch: int
    channels: int
    size: int
    outputs: int
    kernel: int
    stride: int = 1
    padding: int = 0
    groups: int = 1

    @property
    def macs(self) -> int:
        out = (self.size + 2 * self.padding - self.kernel) // self.stride + 1
        return self.batch * self.outputs * out * out * self.channels // self.groups * self.kernel**2


LAYERS = {
    "forum": Layer(1, 16, 28, 8, 5),
    "7x7/2": Layer(1, 3, 224, 64, 7, 2, 3),
    "3x3 64": Layer(1, 64, 56, 64, 3, 1, 1),
    "1x1 64-256": Layer(1, 64, 56, 256, 1),
    "3x3 128": Layer(1, 128, 28, 128, 3, 1, 1),
    "3x3 256": Layer(1, 256, 14, 256, 3, 1, 1),
    "3x3 512": Layer(1, 512, 7, 512, 3, 1, 1),
    "1x1 256-128": Layer(1, 256, 56, 128, 1),
    "vgg 3x3 64": Layer(1, 64, 224, 64, 3, 1, 1),
    "depthwise": Layer(1, 144, 56, 144, 3, 1, 1, 144),
    "forum b16": Layer(16, 16, 28, 8, 5),
    "3x3 64 b16": Layer(16, 64, 56, 64, 3, 1, 1),
    "3x3 512 b16": Layer(16, 512, 7, 512, 3, 1, 1),
}
RESNET50_3X3 = ["3x3 64", "3x3 128", "3x3 256", "3x3 512"]
SUMMATIONS = {method: method for method in _core.methods()} | {"rounded": "naive products=rounded"}
PASSES = ("forward", "input", "weight")

Call = Callable[[], Any]


def calls_of(which: str, layer: Layer, methods: list[str]) -> dict[str, Call]:
    """A call of torch's and one for each method, on the same arrays."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((layer.batch, layer.channels, layer.size, layer.size), dtype=np.float32)
    shape = (layer.outputs, layer.channels // layer.groups, layer.kernel, layer.kernel)
    w = rng.standard_normal(shape, dtype=np.float32)
    xt, wt = torch.from_numpy(x), torch.from_numpy(w)
    stride, padding, groups = layer.stride, layer.padding, layer.groups
    yt = torch.nn.functional.conv2d(xt, wt, None, stride, padding, 1, groups)
    gt = torch.from_numpy(rng.standard_normal(yt.shape, dtype=np.float32))
    g = gt.numpy()

    def by_torch() -> Any:
        if which == "forward":
            return torch.nn.functional.conv2d(xt, wt, None, stride, padding, 1, groups)
        mask = [which == "input", which == "weight", False]
        s, p, d = [stride] * 2, [padding] * 2, [1, 1]
        return torch.ops.aten.convolution_backward(gt, xt, wt, None, s, p, d, False, [0, 0], groups, mask)

    def by_detconv(summation: str) -> Call:
        if which == "forward":
            return lambda: detconv.conv2d(x, w, None, stride, padding, 1, groups, summation=summation)
        if which == "input":
            return lambda: detconv.conv2d_input(x.shape, w, g, stride, padding, 1, groups, summation=summation)
        return lambda: detconv.conv2d_weight(x, w.shape, g, stride, padding, 1, groups, summation=summation)

    return {"torch": by_torch} | {method: by_detconv(SUMMATIONS[method]) for method in methods}


def assert_bits(call: Call) -> str:
    """The SHA-256 of the output, the same on every usable instruction set (at least two, mostly finite values)."""
    hashes = set()
    usable = detconv.build_info()["instruction_sets_usable"]
    assert len(usable) >= 2, f"only {usable} can run here"
    for name in usable[-2:]:  # the fastest two: the baseline takes seconds on the larger layers
        with instruction_set(name):
            output = call()
        assert np.isfinite(output).mean() > 0.5
        hashes.add(hashlib.sha256(np.ascontiguousarray(output)).hexdigest())
    assert len(hashes) == 1, f"instruction sets disagree: {hashes}"
    return hashes.pop()


def measure(calls: dict[str, Call], seconds: float, clock: Callable[[], float]) -> dict[str, float]:
    """Median seconds of each call, the calls taking turns until the time is up (at least five rounds)."""
    once = {}
    for name, call in calls.items():
        call()
        start = clock()
        call()
        once[name] = clock() - start
    times: dict[str, list[float]] = {name: [] for name in calls}
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline or len(times["torch"]) < 5:
        for name, call in calls.items():
            repeats = max(1, int(1e-3 / max(once[name], 1e-6)))
            start = clock()
            for _ in range(repeats):
                call()
            times[name].append((clock() - start) / repeats)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", default="resnet50", help='"resnet50" (its 3x3 layers), "all", or names with commas')
    parser.add_argument("--passes", default="forward", help='"all", or some of forward,input,weight')
    parser.add_argument("--methods", default=",".join(SUMMATIONS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each row")
    parser.add_argument("--smoke", action="store_true", help="a few seconds in all")
    options = parser.parse_args()
    names = {"resnet50": RESNET50_3X3, "all": list(LAYERS)}.get(options.layers, options.layers.split(","))
    passes = PASSES if options.passes == "all" else options.passes.split(",")
    if options.smoke:
        names, passes, options.seconds = ["forum", "3x3 512"], PASSES, 0.3
    methods = options.methods.split(",")

    torch.set_num_threads(options.threads)
    detconv.set_num_threads(options.threads)
    clock = time.thread_time if options.threads == 1 else time.perf_counter
    info = detconv.build_info()
    print(f"detconv {info['version']} {info['instruction_set']}, torch {torch.__version__}, threads: {options.threads}")
    print("time divided by torch's; torch in ms and GFLOP/s")
    for which in passes:
        print(f"\n{which:14}{'torch ms':>10}{'GFLOP/s':>9}" + "".join(f"{m:>10}" for m in methods))
        ratios: dict[str, list[float]] = {m: [] for m in methods}
        for name in names:
            layer = LAYERS[name]
            calls = calls_of(which, layer, methods)
            for method in methods:
                assert_bits(calls[method])
            with torch.inference_mode():
                medians = measure(calls, options.seconds, clock)
            for method in methods:
                ratios[method].append(medians[method] / medians["torch"])
            speed = 2 * layer.macs / medians["torch"] / 1e9
            row = "".join(f"{ratios[method][-1]:10.2f}" for method in methods)
            print(f"{name:14}{medians['torch'] * 1e3:10.3f}{speed:9.1f}{row}", flush=True)
        print(f"{'geo. mean':33}" + "".join(f"{statistics.geometric_mean(ratios[m]):10.2f}" for m in methods))


if __name__ == "__main__":
    main()
