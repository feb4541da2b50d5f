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

    @property
    def products(self) -> int:
        """How many products one sample takes."""
        side = (self.size + 2 * self.padding - self.kernel) // self.stride + 1
        return side * side * self.outputs * self.channels // self.groups * self.kernel**2

    def arguments(self, batch: int) -> dict[str, Any]:
        return {
            "input_shape": (batch, self.channels, self.size, self.size),
            "weight_shape": (self.outputs, self.channels // self.groups, self.kernel, self.kernel),
            "bias": self.bias,
            "stride": self.stride,
            "padding": self.padding,
            "groups": self.groups,
        }


def _plain(*rows: tuple[int, int, int, int, int, int]) -> list[Layer]:
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
            pairs = [(layer, batch) for batch in ((1, 8) if smoke else (1, 8, 16)) for layer in layers]
            for layer, batch in sorted(pairs, key=lambda pair: pair[0].products * pair[1]):
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
                        plain = (("threads", 1), ("onednn", onednn), ("layout", "contiguous"))
                        yield Configuration(suite, "torch", layer, 1, (*plain, ("cap", cap)))


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
        todo = [configuration for configuration in todo if arguments.only in configuration.name]
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
    parser.add_argument("--only", default="", metavar="TEXT", help="configurations whose name has this in it")
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

BEFORE = """# Orders in use

In which order the convolutions of torch, NumPy, SciPy, ONNX Runtime and JAX add their products, as `detconv.reveal`
found it: each order below was replayed by detconv on random values, and **every output had the same bits**, in enough
trials to rule out luck. The page is made by [`bench/orders.py`](../bench/orders.py); an order holds for its key,
which is the library and its version, the instruction set, the number of threads, the memory layout and the shape. The
tables below were made on the processor that they name: yours may well have other orders, since NumPy's BLAS and oneDNN
choose their code by the processor. `make demo` reveals those of torch and NumPy on your machine for one layer, and
`detconv reveal` for any.

## How an order is found

1. **Does it repeat?** The same call, three times. If bits differ: `nondeterministic`.
2. **Is it this convolution?** Its outputs are judged: a kernel that is transposed, a bias or a stride that is left
   out, another border are `mistake`, with what the function computes instead. Its arithmetic plays no part here.
3. **Does an output depend on its window alone?** 2^60 at one pixel, then another. If an output that does not look
   there changes: `transform` (Winograd's algorithm, an FFT).
4. **Probes.** The image is all ones; the weights of each output channel are a probe: M = 2^100, -M and ones. M
   absorbs what is added before the two meet, so the result counts the terms outside their lowest common ancestor.
   Breadth first, one pivot against all others, that gives the tree (FPRev, USENIX ATC 2025, for sums and matrix
   products). More probes tell whether a product is fused, and whether a partial sum is kept in double. If no tree
   answers so: `not_a_tree`.
5. **Replay.** The tree, as a text in the order language, runs in detconv's engine on random values against all
   outputs of the real shape. Where bits differ, the next order is looked for: the last rows of a blocked loop, say.
   Half of the trials are standard normal; in the others each row has a pair of huge numbers that cancel, which tells
   orders apart that nearly always agree. There are so many trials that an order which agrees as often as others in
   common use do by luck would pass with a probability below 10^-6 over all outputs.
6. `exact` is said when all outputs have passed all trials, `partial` when some have, or when time ran out.

What this does not say: infinities, NaN and the sign of zeros may be treated otherwise (detconv's zero is +0); terms
of the padding are left out by some and added by others, which changes no sum of finite numbers.

    detconv reveal torch --input-shape 1,16,28,28 --weight-shape 8,16,5,5 --padding 2
    detconv reveal MODULE:FUNCTION --input-shape 8,64,56,56 --weight-shape 64,64,3,3 --padding 1 --save order.json

```python
>>> import detconv, numpy as np
>>> def mine(x, w, b):
...     windows = np.lib.stride_tricks.sliding_window_view(x, w.shape[2:], axis=(2, 3))
...     return np.einsum("nchwij,ocij->nohw", windows, w) + b[:, None, None]
>>> r = detconv.reveal(mine, (1, 4, 9, 9), (3, 4, 3, 3))
>>> r.status, r.match
('exact', 1.0)
>>> rng = np.random.default_rng(1)
>>> x, w, b = (rng.random(shape, np.float32) for shape in [(1, 4, 9, 9), (3, 4, 3, 3), (3,)])
>>> detconv.conv2d(x, w, b, summation=r).tobytes() == mine(x, w, b).tobytes()
True

```

Texts are explained in [the contract](contract.md): `25x(+1){16x(+25){f0}} bias` is 25 times 16 fused products, whose
numbers rise by 25 and then by 1, and the bias last; `[...]` is a partial sum of its own, `m` a rounded product,
`d[...]` a sum in double. A nest of loops is given by its name. A text that ends in ... is longer than a table's line
has room for; `detconv reveal` prints all of it. Where a layer has several orders, the one with the most outputs comes
first.
"""


def page(results: Path) -> str:
    """The page, from all results that there are."""
    found = {}
    for path in sorted(results.glob("*.json")):
        data = json.loads(path.read_text(encoding="utf-8"))
        found[data["configuration"]] = data
    lines = [BEFORE, "## In numbers", ""]
    versions = sorted({f"{data['key']['library']} {data['key']['version']}" for data in found.values()})
    machines = sorted({f"{data['key']['cpu']} ({data['key']['machine']})" for data in found.values()})
    lines += [f"Of {', '.join(versions)}; on {', '.join(machines)}.", ""]
    lines += ["| suite | configurations | exact | transform | other | outputs compared, all bits equal |"]
    lines += ["|---|---|---|---|---|---|"]
    bodies: list[str] = []
    for suite in SUITES:
        own = [(c, found[c.name]) for c in configurations(suite, False, [1, 2]) if c.name in found]
        if not own:
            continue
        total = len(list(configurations(suite, False, [1, 2])))
        exact = [data for _, data in own if data["status"] == "exact"]
        transforms = sum(data["status"] == "transform" for _, data in own)
        outputs = sum(sum(map(sum, (part["outputs"] for part in data["parts"]))) for data in exact)
        count = f"{len(own)}" if len(own) == total else f"{len(own)} of {total}"
        lines.append(
            f"| {suite} | {count} | {len(exact)} | {transforms} | {len(own) - len(exact) - transforms} | {outputs:,} |"
        )
        bodies += ["", *_section(suite, own)]
    return "\n".join([*lines, *bodies]) + "\n"


Result = tuple[Configuration, dict[str, Any]]


def _section(suite: str, results: list[Result]) -> Iterator[str]:
    titles = {
        "torch": "torch, forward",
        "libraries": "Other libraries",
        "gradients": "torch, gradients",
        "caps": "torch below AVX-512",
    }
    yield f"## {titles[suite]}"
    groups: dict[str, list[Result]] = {}
    if suite == "torch":
        for network, layers in NETWORKS.items():
            groups[network] = [result for result in results if result[0].layer in layers]
    elif suite == "gradients":
        for pass_ in ("input_gradient", "weight_gradient"):
            groups[pass_.replace("_", " ")] = [result for result in results if result[0].pass_ == pass_]
    elif suite == "caps":
        for cap in CAPS:
            groups[cap] = [result for result in results if dict(result[0].settings)["cap"] == cap]
    else:
        groups[""] = results
    for name, own in groups.items():
        if not own:
            continue
        yield ""
        if name:
            yield f"### {name[0].upper()}{name[1:]}"
            yield ""
        yield "| layer | where | order |"
        yield "|---|---|---|"
        by_layer: dict[Layer, list[Result]] = {}
        for configuration, data in own:
            by_layer.setdefault(configuration.layer, []).append((configuration, data))
        for layer, same in by_layer.items():
            yield from _rows(layer, same)


def _rows(layer: Layer, results: list[Result]) -> Iterator[str]:
    """One line for each order of a layer, with the settings in which it is the order."""
    orders: dict[str, list[Configuration]] = {}
    for configuration, data in results:
        orders.setdefault(_order(data), []).append(configuration)
    every = [dict(_settings(configuration)) for configuration, _ in results]
    axes = {axis: sorted({settings[axis] for settings in every}, key=str) for axis in every[0]}
    for order, own in sorted(orders.items(), key=lambda item: -len(item[1])):
        where = "; ".join(_products([dict(_settings(configuration)) for configuration in own], axes)) or "everywhere"
        yield f"| {layer.name}{', bias' if layer.bias else ''} | {where} | {order} |"


def _order(data: dict[str, Any]) -> str:
    found = detconv.Reveal.from_dict(data)
    names = []
    for order in found.orders:
        name = order.name if len(order.name) <= 110 else order.name[:107] + "..."
        if f"`{name}`" not in names:
            names.append(f"`{name}`")
    return ", ".join(names) if found.status == "exact" else " ".join([found.status, *names])


def _settings(configuration: Configuration) -> Iterator[tuple[str, Any]]:
    settings = dict(configuration.settings)
    if configuration.library != "torch":
        yield "library", configuration.library
        return
    yield "onednn", "oneDNN" if settings["onednn"] else "no oneDNN"
    yield "layout", settings["layout"]
    yield "batch", f"batch {configuration.batch}"
    yield "threads", f"{settings['threads']} thread{'s' if settings['threads'] > 1 else ''}"


def _products(chosen: list[dict[str, Any]], axes: dict[str, list[Any]]) -> list[str]:
    """The chosen settings as few products of values of the axes; an axis with all its values is not named."""
    used = {axis: [value for value in axes[axis] if any(c[axis] == value for c in chosen)] for axis in axes}
    size = 1
    for values in used.values():
        size *= len(values)
    if size == len(chosen):
        said = [" or ".join(map(str, used[axis])) for axis in axes if len(used[axis]) < len(axes[axis])]
        return [", ".join(said)] if said else []
    ways = []
    for axis in axes:
        if len(used[axis]) > 1:
            rest = {a: v for a, v in axes.items() if a != axis}
            parts = {value: _products([c for c in chosen if c[axis] == value], rest) for value in used[axis]}
            ways.append(
                [f"{value}, {text}" if text else str(value) for value, own in parts.items() for text in own or [""]]
            )
    return min(ways, key=lambda way: len(", ".join(way)))


if __name__ == "__main__":
    sys.exit(main())
