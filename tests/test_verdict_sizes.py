"""Verdicts on outputs of any size, zero among them: words, data and pages of each pass, and pictures of some."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator

import numpy as np
import pytest

import detconv
from bits import Array, made
from detconv.verdict.judge import Verdict

# Samples, channels, outputs, rows and columns of the kernel.
SIZES = list(itertools.product((0, 2), (0, 3), (0, 2), (0, 3), (0, 2)))


def drawn(seed: int, *shape: int) -> Array:
    return made(shape, np.float32, seed)


def verdicts(n: int, c: int, o: int, size: int, k: int, off: float) -> Iterator[tuple[str, Verdict]]:
    """On the outputs of all passes, each off by so much; of those passes that there are for the sizes."""
    x, w, b = drawn(1, n, c, size, 4), drawn(2, o, c, k, k), drawn(3, o)
    turned, g = drawn(4, c, o, k, k), drawn(5, n, o, size, 4)
    gradient = detconv.conv2d_bias(g)
    yield "bias", detconv.judge_bias_gradient(gradient + np.float32(off), g)
    if not (size and k):  # a kernel and an image have pixels
        return
    if c:  # the weight of a layer has a kernel
        transposed = detconv.conv_transpose2d(x, turned, b)
        yield "transposed", detconv.judge(transposed + np.float32(off), x, turned, b, transposed=True)
    if o:
        y = detconv.conv2d(x, w, b)
        yield "output", detconv.judge(y + np.float32(off), x, w, b)
        g = drawn(6, *y.shape)
        back = detconv.conv2d_input(x.shape, w, g)
        yield "input", detconv.judge_input_gradient(back + np.float32(off), x.shape, w, g)
        of_weight = detconv.conv2d_weight(x, w.shape, g)
        yield "weight", detconv.judge_weight_gradient(of_weight + np.float32(off), x, w.shape, g)


@pytest.mark.parametrize("off", [0.0, 100.0])
@pytest.mark.parametrize(("n", "c", "o", "size", "k"), SIZES)
def test_words_data_and_pages(
    n: int, c: int, o: int, size: int, k: int, off: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # quicker: the pictures are drawn below
    for name, verdict in verdicts(n, c, o, size, k, off):
        wrong = bool(off and verdict.exact.size)
        assert (verdict.status == "mistake") == wrong, name
        assert verdict.explain().startswith("Mistake: ") == wrong
        assert json.loads(json.dumps(verdict.to_dict(), allow_nan=False))["status"] == verdict.status
        assert sum(verdict.counts.values()) == verdict.exact.size
        assert "<" in verdict._repr_html_()
        assert verdict.power.zeros <= verdict.exact.size


@pytest.mark.parametrize("sizes", [(2, 3, 2, 3, 2), (0, 3, 2, 3, 2), (2, 0, 2, 3, 2), (2, 3, 0, 3, 2)])
def test_pictures(sizes: tuple[int, int, int, int, int]) -> None:
    plt = pytest.importorskip("matplotlib.pyplot")
    for name, verdict in verdicts(*sizes, off=100.0):
        figure = verdict.plot()
        assert figure.axes or not verdict.exact.size, name
        figure.canvas.draw()
        plt.close(figure)
