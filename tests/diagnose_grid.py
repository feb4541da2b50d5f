"""How well mistakes are recognised, at length: `PYTHONPATH=python python tests/diagnose_grid.py [layers] [kind]`.

Prints, for every kind of seeded mistakes, how many of so many layers (20) are proven mistakes and rightly named; then,
unless a part of a kind's name is given: inputs of few digits, right outputs of the libraries that are installed, and
taps that are zeroed at a small scale.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

import detconv
from bits import Array
from diagnose_cases import SPLITS, Layer, drawn, equivalent, every_kind, layer, shortened, split_sums

SEED = 1  # not the one of the tests


def mistakes(count: int, only: str) -> None:
    total = right = equal = kinds = 0
    slowest = 0.0
    for where, of in every_kind():
        if only not in of.name:
            continue
        found, same, proven, others = 0, 0, 0, set()
        for seeded in drawn(where, of, count, SEED):
            proven += seeded.is_mistake()
            start = time.perf_counter()
            diagnosis = seeded.diagnosis()
            slowest = max(slowest, time.perf_counter() - start)
            name = diagnosis.first.name if diagnosis.first else "none"
            same += equivalent(diagnosis, of)
            found += name in of.answers
            if name not in of.answers:
                others.add(name)
            if only:
                print(f"{'' if name in of.answers else 'MISSED '}{seeded.of} {seeded.wrong.shape}: {diagnosis}\n")
        kinds, total, right, equal = kinds + 1, total + count, right + found, equal + same
        told = ", ".join(sorted(others))
        print(
            f"{of.name:50} mistake {proven}/{count}  named {found}/{count}  or equal {same}/{count}  {told}", flush=True
        )
    print(
        f"{kinds} kinds: {right} of {total} named ({100 * right / total:.2f}%), with hypotheses that give the same "
        f"output {equal} ({100 * equal / total:.2f}%); slowest diagnosis {slowest:.2f} s"
    )


# ---- Inputs of few digits ----


def coarse_inputs() -> None:
    """K from 9 to 6400, normal numbers and positive ones."""
    roundings: dict[str, Callable[[Array], Array]] = {
        "TF32 inputs": lambda v: shortened(v, 13),
        "float16 inputs": lambda v: v.astype(np.float16).astype(np.float32),
        "bfloat16 inputs": lambda v: shortened(v, 16),
        "TF32 inputs, truncated": lambda v: shortened(v, 13, truncated=True),
        "bfloat16 inputs, truncated": lambda v: shortened(v, 16, truncated=True),
    }
    shapes = [(512, 3), (256, 3), (128, 3), (64, 3), (64, 1), (16, 5), (3, 7), (512, 1), (1, 3), (256, 5)]
    rng = np.random.default_rng(SEED)
    for name, rounding in roundings.items():
        named, statuses = 0, Counter[str]()
        for positive in (False, True):
            for channels, kernel in shapes:
                x, w = (rng.standard_normal((n, channels, k, k), np.float32) for n, k in ((1, 10), (8, kernel)))
                if positive:
                    x, w = np.abs(x), np.abs(w)
                verdict = detconv.judge(detconv.conv2d(rounding(x), rounding(w), summation="naive"), x, w)
                statuses[verdict.status] += 1
                first, format = verdict.diagnosis.first, name.split(" ")[0]
                truncated = "truncated" in name
                named += bool(first and format in first.name and truncated == ("truncated" in first.says))
        print(f"{name:30} named {named}/{2 * len(shapes)}, judged {dict(statuses)}", flush=True)


def split_operands() -> None:
    """K from 9 to 4608; added as finely as can be, so that what is dropped is not drowned by roundings."""
    rng = np.random.default_rng(SEED)
    for name, rounding in SPLITS.items():
        named, statuses = 0, Counter[str]()
        for channels in (1, 3, 16, 64, 256, 512) * 3:
            x, w = (rng.standard_normal((n, channels, k, k), np.float32) for n, k in ((1, 10), (8, 3)))
            verdict = detconv.judge(split_sums(x, w, rounding), x, w)
            statuses[verdict.status] += 1
            first = verdict.diagnosis.first
            named += bool(first and f"({name})" in first.says)
        print(f"{name:30} named {named}/18, judged {dict(statuses)}", flush=True)


# ---- Right outputs ----

Route = Callable[[Layer], "tuple[tuple[Any, ...], Any] | None"]  # the arguments to judge with, and the output


def windows(a: Layer) -> Array:
    """(N, C, OH, OW, KH, KW)"""
    x = np.pad(a.input, ((0, 0), (0, 0), *((p, p) for p in a.padding)))
    reach = [d * (k - 1) + 1 for d, k in zip(a.dilation, a.weight.shape[2:], strict=True)]
    view = np.lib.stride_tricks.sliding_window_view(x, reach, (2, 3))
    return view[:, :, :: a.stride[0], :: a.stride[1], :: a.dilation[0], :: a.dilation[1]]


def by_groups(contract: Callable[[Array, Array], Array]) -> Route:
    """A contraction of windows (N, C, OH, OW, KH, KW) with a weight, for each group, then the bias."""

    def run(a: Layer) -> tuple[tuple[Any, ...], Array]:
        images, weights = np.split(windows(a), a.groups, 1), np.split(a.weight, a.groups)
        y = np.concatenate([contract(x, w) for x, w in zip(images, weights, strict=True)], 1)
        return a.arguments, y if a.bias is None else y + a.bias[:, None, None]

    return run


def routes(rng: np.random.Generator) -> Iterator[tuple[str, Route]]:
    def summation(a: Layer) -> tuple[tuple[Any, ...], Array]:
        order, method = ",".join(rng.permutation(["c", "kh", "kw"])), rng.choice(["naive", "pairwise", "kahan"])
        products, bias = rng.choice(["fused", "rounded"]), rng.choice(["first", "last"])
        return a.arguments, a.run(f"{method} order={order} products={products} bias={bias}")

    def shuffled(x: Array, w: Array) -> Array:
        order = rng.permutation(w[0].size)
        terms = np.moveaxis(x, 1, 3).reshape(*np.moveaxis(x, 1, 3).shape[:3], -1)[..., order]
        return np.stack([np.cumsum(terms * one.ravel()[order], axis=-1)[..., -1] for one in w], 1)

    yield "detconv, any order", summation
    yield "detconv, fp64", lambda a: (a.arguments, a.run("fp64"))
    yield "numpy.tensordot", by_groups(lambda x, w: np.moveaxis(np.tensordot(x, w, ((1, 4, 5), (1, 2, 3))), 3, 1))
    yield "numpy.einsum", by_groups(lambda x, w: np.einsum("nchwij,ocij->nohw", x, w))
    yield "numpy.sum", by_groups(lambda x, w: np.stack([(x * o[:, None, None]).sum(axis=(1, 4, 5)) for o in w], 1))
    yield "terms in random order", by_groups(shuffled)
    if (scipy := installed("scipy.signal")) is not None:

        def correlate(a: Layer) -> tuple[tuple[Any, ...], Array] | None:
            if (a.stride, a.dilation, a.groups) != ((1, 1), (1, 1), 1):
                return None
            x = np.pad(a.input, ((0, 0), (0, 0), *((p, p) for p in a.padding)))
            planes = [
                [sum(scipy.correlate2d(c, k, "valid") for c, k in zip(n, o, strict=True)) for o in a.weight] for n in x
            ]
            return a.arguments, np.array(planes) + (0 if a.bias is None else a.bias[:, None, None])

        yield "scipy.signal.correlate2d", correlate
    if (torch := installed("torch")) is not None:
        yield from torch_routes(torch)
    if installed("onnx") is not None and (onnxruntime := installed("onnxruntime")) is not None:
        yield "onnxruntime", lambda a: (a.arguments, by_onnxruntime(onnxruntime, a))


def installed(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def torch_routes(torch: Any) -> Iterator[tuple[str, Route]]:
    torch.set_num_threads(1)

    def tensors(a: Layer, dtype: Any) -> tuple[Any, ...]:
        arrays = [None if array is None else torch.from_numpy(array).to(dtype) for array in a.arguments[:3]]
        return (*arrays, *a.arguments[3:])

    def of(dtype: Any) -> Route:
        return lambda a: (tensors(a, dtype), torch.nn.functional.conv2d(*tensors(a, dtype)))

    def channels_last(a: Layer) -> tuple[tuple[Any, ...], Any]:
        x, *others = tensors(a, torch.float32)
        return a.arguments, torch.nn.functional.conv2d(x.to(memory_format=torch.channels_last), *others)

    def without_onednn(a: Layer) -> tuple[tuple[Any, ...], Any]:
        torch._C._set_mkldnn_enabled(False)
        try:
            return of(torch.float32)(a)  # type: ignore[return-value]
        finally:
            torch._C._set_mkldnn_enabled(True)

    yield "torch", of(torch.float32)
    yield "torch, channels_last", channels_last
    yield "torch without oneDNN", without_onednn
    yield "torch, float64", of(torch.float64)
    yield "torch, float64 for float32", lambda a: (a.arguments, of(torch.float64)(a)[1])  # type: ignore[index]
    yield "torch, bfloat16", of(torch.bfloat16)
    yield "torch, float16", of(torch.float16)


def by_onnxruntime(onnxruntime: Any, a: Layer) -> Array:
    helper = importlib.import_module("onnx.helper")
    arrays = {"x": a.input, "w": a.weight} | ({} if a.bias is None else {"b": a.bias})
    given = [helper.make_tensor_value_info(name, 1, array.shape) for name, array in arrays.items()]
    made = [helper.make_tensor_value_info("y", 1, None)]
    pads = [*a.padding, *a.padding]
    node = helper.make_node("Conv", [*arrays], ["y"], strides=a.stride, pads=pads, dilations=a.dilation, group=a.groups)
    graph = helper.make_graph([node], "conv", given, made)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, arrays)[0])


def right_outputs(least: int) -> None:
    rng = np.random.default_rng(SEED)
    judged: Counter[tuple[str, str]] = Counter()
    diagnosed = []
    while judged.total() < least:
        a = layer(rng)
        if rng.random() < 0.2:  # long sums
            x, w = (rng.standard_normal((n, 512, k, k), np.float32) for n, k in ((1, 9), (8, 3)))
            a = Layer(x, w, None, (1, 1), (1, 1), (1, 1), 1)
        if rng.random() < 0.2:  # that do not cancel
            a = replace(a, input=np.abs(a.input), weight=np.abs(a.weight))
        for name, route in routes(rng):
            made = route(a)
            if made is not None:
                arguments, output = made
                verdict = detconv.judge(output, *arguments)
                judged[name, verdict.status] += 1
                if verdict.diagnosis:
                    diagnosed.append((name, a, str(verdict.diagnosis)))
    for name in dict.fromkeys(name for name, _ in judged):
        print(f"{name:30} { ({status: n for (of, status), n in sorted(judged.items()) if of == name}) }")
    worst = {status: sum(n for (_, of), n in judged.items() if of == status) for status in ("unlikely", "mistake")}
    print(f"{judged.total()} right outputs: {worst}, diagnosed {len(diagnosed)} {diagnosed[:3]}")


# ---- Small faults ----


def small_taps(count: int) -> None:
    """At input scale 1e-3, where the fault exceeds twice its bound somewhere."""
    rng = np.random.default_rng(SEED)
    proven = named = made = 0
    while made < count:
        a = layer(rng)
        if a.weight[0].size < 3:
            continue
        a = replace(a, input=a.input * np.float32(1e-3))
        weight = a.weight.copy()
        weight[tuple(int(rng.integers(size)) for size in weight.shape)] = 0
        verdict = detconv.judge(a.run(weight=weight), *a.arguments)
        if (np.abs(a.run("exact", weight=weight) - verdict.exact.astype(np.float64)) > 2 * verdict.bound).any():
            made += 1
            proven += verdict.status == "mistake"
            named += bool(verdict.diagnosis.first and verdict.diagnosis.first.name == "terms missing")
    print(f"one weight zeroed at input scale 1e-3: proven {proven}/{count}, named {named}/{count}")


def main(count: int = 20, only: str = "") -> None:
    mistakes(count, only)
    if not only:
        coarse_inputs()
        split_operands()
        small_taps(50)
        right_outputs(2000)


if __name__ == "__main__":
    main(*(convert(value) for convert, value in zip((int, str), sys.argv[1:], strict=False)))  # type: ignore[arg-type]
