"""The forum's layer at full size: 16 -> 8 channels, 28x28, 5x5, padding 2; 6272 outputs of 400 terms each.

Its author asked why torch and nested loops in NumPy disagree. Both are orders that detconv can run, bit for bit.
"""

from __future__ import annotations

import os

import numpy as np
import pytest

import detconv
from bits import Array, assert_consistent, assert_same_bits, made, on_every_instruction_set

KINDS = ("uniform", "small integers")


def layer(kind: str) -> tuple[Array, Array, Array]:
    shapes = [(1, 16, 28, 28), (8, 16, 5, 5), (8,)]
    x, w, b = (made(shape, np.float32, seed, kind) for seed, shape in enumerate(shapes))
    return x, w, b


def forum_loops(x: Array, w: Array, b: Array) -> Array:
    """As it was asked: stride 1, padding 2, every product and every sum rounded to float32."""
    (batch, _, height, width), (filters, channels, kernel, _) = x.shape, w.shape
    padded = np.pad(x, ((0, 0), (0, 0), (2, 2), (2, 2)))
    out = np.zeros((batch, filters, height, width), np.float32)
    for n in range(batch):
        for o in range(filters):
            for i in range(height):
                for j in range(width):
                    acc = np.float32(0)
                    for c in range(channels):
                        for kh in range(kernel):
                            for kw in range(kernel):
                                acc += padded[n, c, i + kh, j + kw] * w[o, c, kh, kw]
                    out[n, o, i, j] = acc + b[o]
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_the_forums_loops_are_naive_with_rounded_products(kind: str) -> None:
    x, w, b = layer(kind)
    variants = on_every_instruction_set(
        lambda: detconv.conv2d(x, w, b, padding=2, summation="naive products=rounded"), threads=(1, 2)
    )
    expected = forum_loops(x, w, b)
    assert expected.shape == (1, 8, 28, 28)
    assert expected.dtype == np.float32
    assert_same_bits(assert_consistent(variants), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_torch_is_naive_with_the_channels_innermost(kind: str) -> None:
    torch = pytest.importorskip("torch")
    # Another release or another processor may add in another order: this is what these two do.
    if not torch.__version__.startswith("2.13."):
        pytest.skip(f"the order is that of torch 2.13, this is {torch.__version__}")
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or detconv.build_info()["instruction_set"] != "avx512":
        pytest.skip("the order is that of torch on AVX-512")
    if capped := {"ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"} & os.environ.keys():
        pytest.skip(f"the order is that of oneDNN as it comes, and here is {', '.join(capped)}")
    x, w, b = layer(kind)
    by_torch = torch.nn.functional.conv2d(*map(torch.from_numpy, (x, w, b)), padding=2).numpy()
    ours = detconv.conv2d(x, w, b, padding=2, summation="naive order=kh,kw,c")
    spelt_out = detconv.conv2d(x, w, b, padding=2, summation='naive order="25x(+1){16x(+25){f0}} bias"')
    assert_same_bits(ours, by_torch)
    assert_same_bits(spelt_out, by_torch)


def test_the_forums_question_is_about_the_order_alone() -> None:
    """Real values: loops, torch's order and the exact sum all differ. Integers: nothing is rounded, and none does."""
    for kind in KINDS:
        x, w, b = layer(kind)
        results = {
            detconv.conv2d(x, w, b, padding=2, summation=summation).tobytes()
            for summation in ("naive products=rounded", "naive order=kh,kw,c", "exact")
        }
        assert len(results) == (3 if kind == "uniform" else 1)
