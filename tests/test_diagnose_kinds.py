"""Mistakes that people have reported of convolution libraries: as reported, and drawn."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import detconv
from bits import Array
from detconv.verdict.activations import ACTIVATIONS
from diagnose_cases import (
    MOST_PRODUCTS,
    SPLITS,
    Layer,
    by_output,
    drawn,
    equivalent,
    every_kind,
    flushed,
    layer,
    split_sums,
)

DRAWN = 20
f = np.float32


def normal(rng: np.random.Generator, *shape: int) -> Array:
    return rng.standard_normal(shape).astype(f)


def first(verdict: detconv.Verdict | detconv.Diagnosis) -> Any:
    diagnosis = verdict.diagnosis if isinstance(verdict, detconv.Verdict) else verdict
    assert diagnosis.first is not None, str(diagnosis)
    return diagnosis.first


# ---- Kinds ----

REPORTED = (
    "output channel o reads group o % groups",
    "depth multiplier laid out the other way",
    "a view as input, read as packed",
    "flipped kernel, symmetric border",
    "conv2d_weight: groups meet each other's input channels",
    "subnormal results flushed",
    "subnormals flushed on the way",
    "one term only",
    "some input channels only",
    "first terms only",
    "BatchNorm folded in",
    "input read with a wrong batch stride",
)


@pytest.mark.parametrize("name", REPORTED)
def test_a_reported_kind_is_named_first(name: str) -> None:
    ((where, of),) = [(where, of) for where, of in every_kind() if of.name == name]
    found = [one.diagnosis() for one in drawn(where, of, DRAWN, seed=2, most=MOST_PRODUCTS)]
    missed = [str(diagnosis) for diagnosis in found if not diagnosis or not equivalent(diagnosis, of)]
    assert len(found) == DRAWN
    assert len(missed) <= 1, missed


# ---- As they were reported ----


def test_a_depth_multiplier_laid_out_the_other_way() -> None:
    rng = np.random.default_rng(0)
    x, w = normal(rng, 1, 8, 12, 12), normal(rng, 64, 1, 3, 3)
    wrong = np.concatenate([detconv.conv2d(x, w[i : i + 8], groups=8) for i in range(0, 64, 8)], 1)
    assert first(detconv.judge(wrong, x, w, groups=8)).says == "output channel o reads input channel o % 8"


def test_a_view_read_as_if_it_were_packed() -> None:
    rng = np.random.default_rng(0)
    base, w = normal(rng, 1, 16, 16, 8), normal(rng, 4, 4, 3, 3)
    view = base.transpose(0, 3, 1, 2)[:, :4]
    read = base.ravel()[:1024].reshape(1, 16, 16, 4).transpose(0, 3, 1, 2)
    wrong = detconv.conv2d(read, w)
    says = "input's memory is read as if its strides were those of a packed array, (1024, 1, 64, 4) instead of"
    assert first(detconv.judge(wrong, view, w)).says.startswith(says)
    assert first(detconv.diagnose(wrong.astype(np.float64), view, w, dtype="float32")).says.startswith(says)
    half = view.astype(np.float16)
    assert not detconv.diagnose(detconv.conv2d(half.astype(f), w), half.astype(f), w)


@pytest.mark.parametrize("half", ["float32", "float16", "bfloat16"])
def test_a_view_of_torch_read_as_if_it_were_packed(half: str) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(1)
    base = torch.randn(2, 6, 10, 12).to(getattr(torch, half))
    view, weight = base[:, 1:5, :, ::2], torch.randn(3, 4, 3, 3).to(getattr(torch, half))
    read = torch.as_strided(view, view.shape, (240, 60, 6, 1)).contiguous().float().numpy()
    wrong = detconv.conv2d(read, weight.float().numpy())
    made = first(detconv.judge(wrong, view, weight))
    assert made.name == "view read as packed", made.says
    assert "(240, 60, 6, 1) instead of (720, 120, 12, 2)" in made.says


def test_the_right_output_of_a_view_is_right() -> None:
    rng = np.random.default_rng(4)
    for _ in range(DRAWN):
        a = layer(rng)
        wide = normal(rng, *(2 * size for size in a.input.shape))
        b = replace(a, input=wide[tuple(slice(size) for size in a.input.shape)])
        assert not detconv.diagnose(b.run("pairwise"), *b.arguments)


BORDERS = {
    (
        True,
        "symmetric",
    ): "what scipy.ndimage.convolve does by default",
    (True, "constant"): "what scipy.signal.convolve2d does by default",
    (False, "reflect"): "what OpenCV's filter2D does by default",
    (False, "symmetric"): "what scipy.ndimage.correlate does by default",
}


@pytest.mark.parametrize(("flip", "mode"), BORDERS)
@pytest.mark.parametrize("size", [3, 4, 5])
def test_the_defaults_of_other_filters(flip: bool, mode: str, size: int) -> None:
    rng = np.random.default_rng(size)
    x, k = normal(rng, 20, 24), normal(rng, size, size)
    more, less = size // 2, (size - 1) // 2
    pads = (size - 1, size - 1) if mode == "constant" else (less, more) if flip else (more, less)
    seen = np.pad(x, (pads, pads), mode=mode)  # type: ignore[call-overload]
    wrong = detconv.conv2d(seen[None, None], np.ascontiguousarray(k[::-1, ::-1] if flip else k)[None, None])
    made = detconv.diagnose(wrong, x[None, None], k[None, None])  # without padding, so of another shape
    assert BORDERS[flip, mode] in str(made)
    if size % 2 and (flip or mode == "reflect") and mode != "constant":
        made = detconv.diagnose(wrong, x[None, None], k[None, None], padding=size // 2)
        says = "the kernel is flipped, and the border is symmetric: what scipy.ndimage.convolve does by default"
        if flip:
            assert first(made).says == says
        else:
            assert first(made).name == "padding of another mode"


def test_a_weight_gradient_that_meets_other_groups() -> None:
    rng = np.random.default_rng(0)
    x, g = normal(rng, 2, 8, 9, 9), normal(rng, 2, 8, 7, 7)
    shuffled = np.ascontiguousarray(x.reshape(2, 4, 2, 9, 9).swapaxes(1, 2).reshape(x.shape))
    wrong = detconv.conv2d_weight(shuffled, (8, 2, 3, 3), g, groups=4)
    made = first(detconv.judge_weight_gradient(wrong, x, (8, 2, 3, 3), g, groups=4))
    assert "groups meet each other's input channels" in made.says


def test_one_term_of_four_in_one_element() -> None:
    ones = np.ones((1, 1, 2, 2), f)
    diagnosis = detconv.diagnose(np.ones((1, 1, 1, 1), f), ones, ones)
    assert any("only some of the terms are summed (1 of 4)" in made.says for made in diagnosis.hypotheses)


def test_one_term_of_few_where_all_values_are_equal() -> None:
    """Other arguments give such an output too, so this is one of the answers; one element is no evidence of tanh."""
    rng = np.random.default_rng(9)
    for draw in range(DRAWN):
        terms = (1, 2, 2) if draw == 0 else tuple(rng.integers([1, 1, 1], [5, 4, 4]))
        if np.prod(terms) < 3:
            terms = (4, 1, 1)
        x, w = (np.full((1, *terms), 1 if draw == 0 else normal(rng, 1)[0], f) for _ in range(2))
        one = (x * w).ravel()[:1].reshape(1, 1, 1, 1)
        told = detconv.judge(one, x, w).diagnosis
        says = [made.says for made in told.one_of]
        assert any(f"only some of the terms are summed (1 of {w.size})" in made for made in says), str(told)
        assert "activation" not in [made.name for made in told.one_of]


@pytest.mark.parametrize("terms", [(1, 2, 2), (4, 1, 1), (2, 1, 3)])
def test_some_terms_of_one_element_are_found_by_their_sum(terms: tuple[int, ...]) -> None:
    rng = np.random.default_rng(terms)
    for _ in range(DRAWN):
        x, w = normal(rng, 1, *terms), normal(rng, 1, *terms)
        kept = rng.permutation(w.size)[:1]
        factor = np.zeros(w.size, f)
        factor[kept] = 1
        one = detconv.conv2d(x, w * factor.reshape(w.shape))
        made = first(detconv.judge(one, x, w))
        assert made.name == "some of the terms only", made.says
        assert f"(1 of {w.size})" in made.says


# ---- What must not be taken for each other ----


def plain_layer(seed: int = 1) -> Layer:
    rng = np.random.default_rng(seed)
    return Layer(normal(rng, 2, 6, 12, 12), normal(rng, 4, 6, 3, 3), normal(rng, 4), (1, 1), (1, 1), (1, 1), 1)


def test_a_block_of_terms_is_named_with_its_order() -> None:
    a = plain_layer()
    factor = np.ones(54, f)
    factor[20:31] = 0
    by_taps = factor.reshape(3, 3, 6).transpose(2, 0, 1)
    made = first(detconv.judge(a.run(weight=a.weight * by_taps), *a.arguments))
    assert made.name == "terms missing"
    assert made.says.startswith("terms 20 to 30 of 54 in the order kh, kw, c are missing")
    made = first(detconv.judge(a.run(weight=a.weight * (1 - by_taps)), *a.arguments))
    assert made.name == "some of the terms only"
    assert made.says == "only some of the terms are summed (11 of 54): terms 20 to 30 of 54 in the order kh, kw, c"


def test_whole_lines_and_channels_are_named_as_such() -> None:
    a = plain_layer()
    for part, words in ((np.s_[:, :3], "input channels 0 to 2"), (np.s_[:, :, 1], "kernel row 1")):
        weight = np.zeros_like(a.weight)
        weight[part] = a.weight[part]
        says = first(detconv.judge(a.run(weight=weight), *a.arguments)).says
        assert says.startswith("only some of the terms are summed (")
        assert says.endswith(words)


def test_zeros_of_normal_size_are_not_flushed_subnormals() -> None:
    a = plain_layer()
    wrong = a.run()
    wrong[:, 2] = 0
    diagnosis = detconv.diagnose(wrong, *a.arguments)
    assert first(diagnosis).name == "not computed"
    assert "subnormals flushed" not in [made.name for made in diagnosis.hypotheses]


def test_right_subnormals_are_right() -> None:
    rng = np.random.default_rng(6)
    for _ in range(DRAWN):
        a = layer(rng)
        b = replace(a, input=a.input * f(2.0**-128), bias=None)
        assert not detconv.diagnose(b.run("naive products=rounded"), *b.arguments)


def test_the_kinds_of_flushing_are_told_apart() -> None:
    rng = np.random.default_rng(3)
    x, w = normal(rng, 1, 4, 8, 8) * f(2.0**-126), normal(rng, 3, 4, 3, 3) * f(0.3)
    assert first(detconv.judge(flushed(detconv.conv2d(x, w)), x, w)).says == "subnormal results are flushed to zero"
    wrong = detconv.conv2d(flushed(x), w)
    assert first(detconv.judge(wrong, x, w)).says == "subnormal operands are flushed to zero"
    says = first(detconv.judge(flushed(wrong), x, w)).says
    assert says == "subnormal operands and results are flushed to zero"


def test_a_group_that_is_met_by_some_outputs_alone() -> None:
    rng = np.random.default_rng(8)
    a = Layer(normal(rng, 1, 8, 9, 9), normal(rng, 16, 2, 3, 3), None, (1, 1), (0, 0), (1, 1), 4)
    met = np.repeat(np.arange(4), 4)
    met[[1, 6]] = [3, 3]
    made = first(detconv.judge(by_output(a, met).run(), *a.arguments))
    assert made.name == "groups mixed up"
    assert "o = 1 and 6 those of 3, 3" in made.says


@pytest.mark.parametrize("name", ["ReLU", "GELU", "SiLU", "hardswish", "softplus", "Mish", "ELU"])
def test_activations_and_what_is_added_before_them(name: str) -> None:
    a = replace(plain_layer(), weight=plain_layer().weight[:, :4], input=plain_layer().input[:, :4])
    function = ACTIVATIONS[name]
    made = first(detconv.judge(function(a.run().astype(np.float64)).astype(f), *a.arguments))
    assert made.says == f"{name} is applied to the output"
    if name in ("ReLU", "GELU", "SiLU"):
        made = first(detconv.judge(function(a.run().astype(np.float64) + a.input).astype(f), *a.arguments))
        assert made.says == f"the input is added to the output, then {name} is applied"


def test_gelu_is_told_from_its_approximation() -> None:
    v = np.linspace(-4, 4, 1001)
    exact = np.array([0.5 * x * (1 + math.erf(x / math.sqrt(2))) for x in v])
    assert np.abs(ACTIVATIONS["GELU"](v) - exact).max() < 1e-6 < np.abs(ACTIVATIONS["GELU (tanh)"](v) - exact).max()


# ---- Split operands ----


@pytest.mark.parametrize("name", SPLITS)
@pytest.mark.parametrize("channels", [3, 32, 128])
def test_split_operands_are_named(name: str, channels: int) -> None:
    rng = np.random.default_rng(channels)
    for _ in range(4):
        x, w = normal(rng, 1, channels, 9, 9), normal(rng, 8, channels, 3, 3)
        diagnosis = detconv.judge(split_sums(x, w, SPLITS[name]), x, w).diagnosis
        made = first(diagnosis)
        assert made.name == "split operands", str(diagnosis)
        assert name in made.says
        assert "the product of the small ones is dropped" in made.says


@pytest.mark.parametrize("summation", ["naive order=kh,kw,c", "pairwise", "kahan", "fp64", "exact"])
def test_right_sums_are_not_taken_for_split_ones(summation: str) -> None:
    rng = np.random.default_rng(12)
    for channels in (1, 3, 16, 64):
        for positive in (False, True):
            x, w = normal(rng, 1, channels, 9, 9), normal(rng, 8, channels, 3, 3)
            if positive:
                x, w = np.abs(x), np.abs(w)
            assert not detconv.diagnose(detconv.conv2d(x, w, summation=summation), x, w)


@pytest.mark.parametrize("gradient", ["input", "weight"])
def test_split_operands_of_gradients_are_named(gradient: str) -> None:
    rng = np.random.default_rng(5)
    x, w, g = normal(rng, 2, 4, 10, 10), normal(rng, 6, 2, 3, 3), normal(rng, 2, 6, 8, 8)
    rounding, total = SPLITS["BF16x3"], np.zeros(())
    (x1, x2), (w1, w2), (g1, g2) = ((rounding(v), rounding(v - rounding(v))) for v in (x, w, g))
    if gradient == "input":
        pairs = [(w1, g1), (w1, g2), (w2, g1)]
        total = sum(detconv.conv2d_input(x.shape, *(v.astype(float) for v in pair), groups=2) for pair in pairs)
        verdict = detconv.judge_input_gradient(total.astype(f), x.shape, w, g, groups=2)
    else:
        pairs = [(x1, g1), (x1, g2), (x2, g1)]
        total = sum(detconv.conv2d_weight(p.astype(float), w.shape, q.astype(float), groups=2) for p, q in pairs)
        verdict = detconv.judge_weight_gradient(total.astype(f), x, w.shape, g, groups=2)
    assert first(verdict).name == "split operands"
    assert "BF16x3" in first(verdict).says
