"""What a verdict costs beside the convolution that it judges: ``python -m bench.judge``.

A verdict on a right output computes the exact sums and S, looks at every element, and asks whether all together are the
sums of coarse operands: it is meant to take no longer than five convolutions of torch's and 10 ms.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

import detconv
from bench.suites import NOTES
from bench.timing import Timed, interleaved


def main() -> int:
    parser = argparse.ArgumentParser("python -m bench.judge", description=__doc__)
    parser.add_argument("--threads", type=int, default=1, help="of both (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each layer (default: %(default)s)")
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(arguments.threads)
    detconv.set_num_threads(arguments.threads)
    clock = time.thread_time if arguments.threads == 1 else time.perf_counter
    print(f"{'layer':12} {'torch':>9} {'judge':>9}  (judge - 10 ms) / torch")
    for name, layer in NOTES.items():
        draw = np.random.default_rng(0)
        x, w = (draw.standard_normal(shape, np.float32) for shape in (layer.input_shape, layer.weight_shape))
        options = layer.stride, layer.padding, layer.dilation, layer.groups
        tensors = torch.from_numpy(x), torch.from_numpy(w)
        output = torch.nn.functional.conv2d(*tensors, None, *options)
        verdict = detconv.judge(output, x, w, None, *options)
        assert verdict.status == "rounding", verdict
        calls = {
            "torch": Timed(lambda: torch.nn.functional.conv2d(*tensors, None, *options)),  # noqa: B023
            "judge": Timed(lambda: detconv.judge(output, x, w, None, *options).status),  # noqa: B023
        }
        seconds = interleaved(calls, arguments.seconds, clock)
        ours, theirs = (1e3 * seconds[route].median for route in ("judge", "torch"))
        print(f"{name:12} {theirs:6.2f} ms {ours:6.2f} ms  {max(ours - 10, 0) / theirs:.2f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
