"""The orders in which libraries add: reveals each configuration, and writes docs/orders.md.

    python bench/orders.py --suite torch --results build/orders    # resumable: what has a result is not run again
    python bench/orders.py --table docs/orders.md                  # the page, from the results

Suites: ``torch`` (the convolutions of the forum's question, ResNet-18, ResNet-50, MobileNetV2 and VGG-16 on every
combination of oneDNN on and off, two layouts, three batches and two numbers of threads), ``libraries`` (NumPy, SciPy,
ONNX Runtime and JAX on six layers), ``gradients`` (torch's, on six layers) and ``caps`` (torch below AVX-512, a process
for each cap). ``--smoke`` runs a few small configurations of each.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")

import detconv
from detconv.revealing import black_boxes

SUITES = ("torch", "libraries", "gradients", "caps")
CAPS = {
    "AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "SSE4.1": {"ONEDNN_MAX_CPU_ISA": "SSE41", "ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
}


@dataclass(frozen=True)
class Layer:
    """One convolution: channels, image, outputs, kernel, stride, padding, groups; whether its network has a bias."""

    channels: int
    size: int
    outputs: int
    kernel: int
    stride: int
    padding: int
    groups: int = 1
    bias: bool = False

    @property
    def name(self) -> str:
        rest = f" s{self.stride}" if self.stride > 1 else ""
        rest += f" p{self.padding}" if self.padding else ""
        rest += " depthwise" if self.groups > 1 else ""
        return f"{self.channels}x{self.size}x{self.size} to {self.outputs}, {self.kernel}x{self.kernel}{rest}"

    def arguments(self, batch: int) -> dict[str, Any]:
        return {
            "input_shape": (batch, self.channels, self.size, self.size),
            "weight_shape": (self.outputs, self.channels // self.groups, self.kernel, self.kernel),
            "bias": self.bias,
            "stride": self.stride,
            "padding": self.padding,
            "groups": self.groups,
        }


def _plain(*rows: tuple[int, ...]) -> list[Layer]:
    return [Layer(*row) for row in rows]


def _depthwise(*rows: tuple[int, int, int]) -> list[Layer]:
    return [Layer(channels, size, channels, 3, stride, 1, channels) for channels, size, stride in rows]


FORUM = Layer(16, 28, 8, 5, 1, 2, bias=True)
NETWORKS: dict[str, list[Layer]] = {
    "the forum's layer": [FORUM],
    "ResNet-18": _plain(
        (3, 224, 64, 7, 2, 3), (64, 56, 64, 3, 1, 1), (64, 56, 128, 3, 2, 1), (64, 56, 128, 1, 2, 0),
        (128, 28, 128, 3, 1, 1), (128, 28, 256, 3, 2, 1), (128, 28, 256, 1, 2, 0), (256, 14, 256, 3, 1, 1),
        (256, 14, 512, 3, 2, 1), (256, 14, 512, 1, 2, 0), (512, 7, 512, 3, 1, 1),
    ),
    "ResNet-50": _plain(
        (64, 56, 64, 1, 1, 0), (64, 56, 256, 1, 1, 0), (256, 56, 64, 1, 1, 0), (256, 56, 128, 1, 1, 0),
        (128, 56, 128, 3, 2, 1), (128, 28, 512, 1, 1, 0), (256, 56, 512, 1, 2, 0), (512, 28, 128, 1, 1, 0),
        (512, 28, 256, 1, 1, 0), (256, 28, 256, 3, 2, 1), (256, 14, 1024, 1, 1, 0), (512, 28, 1024, 1, 2, 0),
        (1024, 14, 256, 1, 1, 0), (1024, 14, 512, 1, 1, 0), (512, 14, 512, 3, 2, 1), (512, 7, 2048, 1, 1, 0),
        (1024, 14, 2048, 1, 2, 0), (2048, 7, 512, 1, 1, 0),
    ),
    "MobileNetV2": _plain(
        (3, 224, 32, 3, 2, 1), (32, 112, 16, 1, 1, 0), (16, 112, 96, 1, 1, 0), (96, 56, 24, 1, 1, 0),
        (24, 56, 144, 1, 1, 0), (144, 56, 24, 1, 1, 0), (144, 28, 32, 1, 1, 0), (32, 28, 192, 1, 1, 0),
        (192, 28, 32, 1, 1, 0), (192, 14, 64, 1, 1, 0), (64, 14, 384, 1, 1, 0), (384, 14, 64, 1, 1, 0),
        (384, 14, 96, 1, 1, 0), (96, 14, 576, 1, 1, 0), (576, 14, 96, 1, 1, 0), (576, 7, 160, 1, 1, 0),
        (160, 7, 960, 1, 1, 0), (960, 7, 160, 1, 1, 0), (960, 7, 320, 1, 1, 0), (320, 7, 1280, 1, 1, 0),
    )
    + _depthwise(
        (32, 112, 1), (96, 112, 2), (144, 56, 1), (144, 56, 2), (192, 28, 1), (192, 28, 2), (384, 14, 1),
        (576, 14, 1), (576, 14, 2), (960, 7, 1),
    ),
    "VGG-16": [
        Layer(channels, size, outputs, 3, 1, 1, bias=True)
        for channels, size, outputs in (
            (3, 224, 64), (64, 224, 64), (64, 112, 128), (128, 112, 128), (128, 56, 256), (256, 56, 256),
            (256, 28, 512), (512, 28, 512), (512, 14, 512),
        )
    ],
}  # fmt: skip
SIX = [
    FORUM,
    Layer(64, 28, 64, 3, 1, 1, bias=True),
    Layer(64, 28, 128, 3, 2, 1, bias=True),
    Layer(256, 14, 64, 1, 1, 0, bias=True),
    Layer(3, 56, 64, 7, 2, 3, bias=True),
    Layer(64, 28, 64, 3, 1, 1, 64, bias=True),
]


@dataclass(frozen=True)
class Configuration:
    """One black box: a suite, a library with its settings, a layer."""

    suite: str
    library: str
    layer: Layer
    batch: int = 1
    settings: tuple[tuple[str, Any], ...] = ()
    pass_: str = "forward"

    @property
    def name(self) -> str:
        said = [self.suite, self.library, self.pass_, self.layer.name, "bias" if self.layer.bias else "no bias"]
        return ", ".join([*said, f"batch {self.batch}", *(f"{key} {value}" for key, value in self.settings)])

    def path(self, results: Path) -> Path:
        return results / ("".join(c if c.isalnum() else "-" for c in self.name) + ".json")


def configurations(suite: str, smoke: bool, threads: list[int]) -> Iterator[Configuration]:
    """All of a suite, the cheap ones first."""
    match suite:
        case "torch":
            layers = list(dict.fromkeys(layer for network in NETWORKS.values() for layer in network))
            if smoke:
                layers = [FORUM, Layer(64, 14, 32, 3, 1, 1), Layer(32, 14, 32, 3, 1, 1, 32)]
            for batch in (1, 8) if smoke else (1, 8, 16):
                for layer in layers:
                    for count in threads:
                        for onednn in (True, False):
                            for layout in ("contiguous", "channels_last"):
                                settings = (("threads", count), ("onednn", onednn), ("layout", layout))
                                yield Configuration(suite, "torch", layer, batch, settings)
        case "libraries":
            for layer in SIX[:2] if smoke else SIX:
                for name in black_boxes.ROUTES:
                    if name != "torch":
                        yield Configuration(suite, name, layer)
        case "gradients":
            for layer in SIX[:1] if smoke else SIX:
                for pass_ in ("input_gradient", "weight_gradient"):
                    for batch in (1,) if smoke else (1, 8):
                        for count in threads:
                            for onednn in (True, False):
                                settings = (("threads", count), ("onednn", onednn), ("layout", "contiguous"))
                                yield Configuration(suite, "torch", layer, batch, settings, pass_)
        case "caps":
            for cap in CAPS:
                for layer in SIX[:1] if smoke else SIX:
                    for onednn in (True, False):
                        settings = (("threads", 1), ("onednn", onednn), ("layout", "contiguous"), ("cap", cap))
                        yield Configuration(suite, "torch", layer, 1, settings)


def run(configuration: Configuration, budget_s: float, hypotheses: list[str]) -> dict[str, Any]:
    """Reveal one configuration in this process."""
    settings, layer = dict(configuration.settings), configuration.layer
    arguments = layer.arguments(configuration.batch)
    options: dict[str, Any] = {"budget_s": budget_s, "hypotheses": hypotheses, "pass_": configuration.pass_}
    box = black_boxes.make(configuration.library, arguments, onednn=settings.get("onednn", True))
    if configuration.library == "torch":
        import torch

        torch.set_num_threads(settings["threads"])
        detconv.set_num_threads(settings["threads"])
        options |= {"layout": settings["layout"], "differentiate": configuration.pass_ != "forward"}
    found = detconv.reveal(box.fn, **arguments, arrays=box.arrays, library=box.library, **options)
    key = found.key
    if "torch" in key and "onednn" in settings:
        key["torch"]["onednn"] = settings["onednn"]
    return {"configuration": configuration.name, **found.to_dict(), "orders": [describe(o) for o in found.orders]}


def describe(order: detconv.revealing.RevealedOrder) -> dict[str, Any]:
    return {"name": order.name, "outputs": order.outputs, "where": order.where, "words": order.words}


def run_all(arguments: argparse.Namespace) -> int:
    """Run what has no result yet; 1 if something is neither exact nor a transform."""
    results: Path = arguments.results
    results.mkdir(parents=True, exist_ok=True)
    failed = 0
    for suite in arguments.suite or SUITES:
        known: dict[Layer, list[str]] = {}
        todo = list(configurations(suite, arguments.smoke, arguments.threads))
        for at, configuration in enumerate(todo):
            path = configuration.path(results)
            if path.exists() and not arguments.again(path):
                _learn(known, configuration, json.loads(path.read_text(encoding="utf-8")))
                continue
            start = time.perf_counter()
            if "cap" in dict(configuration.settings) and not arguments.inside:
                result = _in_process(configuration, arguments)
            else:
                hypotheses = known.setdefault(configuration.layer, [])
                result = run(configuration, arguments.budget, hypotheses[:12])
                _learn(known, configuration, result)
            path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
            good = result["status"] in ("exact", "transform")
            failed += not good
            orders = "; ".join(order["name"] for order in result["orders"][:2])[:90]
            print(
                f"[{at + 1}/{len(todo)}] {configuration.name}: {result['status']} {100 * result['match']:.3f}% "
                f"{time.perf_counter() - start:.1f} s {'' if good else result['reason']} {orders}",
                flush=True,
            )
    return 1 if failed else 0


def _learn(known: dict[Layer, list[str]], configuration: Configuration, result: dict[str, Any]) -> None:
    """Orders found for a layer are tried first in its other configurations."""
    hypotheses = known.setdefault(configuration.layer, [])
    for part in result["parts"]:
        hypotheses += [text for text in part["summations"] if text not in hypotheses]


def _in_process(configuration: Configuration, arguments: argparse.Namespace) -> dict[str, Any]:
    """One configuration under a cap, which a library reads when it is loaded."""
    environment = os.environ | CAPS[dict(configuration.settings)["cap"]]
    command = [sys.executable, __file__, "--one", configuration.name, "--budget", str(arguments.budget)]
    command += ["--smoke"] * arguments.smoke
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", action="append", choices=SUITES, help="default: all; may be repeated")
    parser.add_argument("--smoke", action="store_true", help="a few small configurations of each suite")
    parser.add_argument("--results", type=Path, default=Path("build/orders"), help="default: %(default)s")
    parser.add_argument("--budget", type=float, default=600, help="seconds for one configuration (%(default)s)")
    parser.add_argument("--threads", type=int, action="append", help="of torch; default: 1 and 2")
    parser.add_argument("--retry", action="store_true", help="run again what is neither exact nor a transform")
    parser.add_argument("--table", type=Path, help="write the page from the results, and run nothing")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.threads = arguments.threads or [1, 2]
    arguments.inside = arguments.one is not None
    arguments.again = lambda path: arguments.retry and _status(path) not in ("exact", "transform")
    if arguments.one:
        return _one(arguments)
    if arguments.table:
        arguments.table.write_text(page(arguments.results), encoding="utf-8")
        return 0
    return run_all(arguments)


def _one(arguments: argparse.Namespace) -> int:
    for configuration in configurations("caps", arguments.smoke, arguments.threads):
        if configuration.name == arguments.one:
            print(json.dumps(run(configuration, arguments.budget, [])))
            return 0
    raise SystemExit(f"no configuration {arguments.one!r}")


def _status(path: Path) -> str:
    return str(json.loads(path.read_text(encoding="utf-8"))["status"])


# ---- The page ----


def page(results: Path) -> str:
    raise NotImplementedError


if __name__ == "__main__":
    sys.exit(main())
