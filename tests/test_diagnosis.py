"""Diagnoses of kinds of outputs that were once explained wrongly, with drawn inputs: constant and tiny outputs, several
arguments wrong at once, transposed convolutions, gradients, problems without elements; and what a Diagnosis is."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import detconv
from bits import Array
from diagnose_cases import Layer, layer

DRAWS = 20
FEW = 5  # of what is the same for every draw, or slow


def normal(rng: np.random.Generator, *shape: int) -> Array:
    return rng.standard_normal(shape).astype(np.float32)


def layers(
    seed: int, fits: Callable[[Layer], bool] = lambda a: True, count: int = DRAWS
) -> Iterator[tuple[np.random.Generator, Layer]]:
    """So many drawn layers of which something is true, each with a generator for more."""
    rng, found = np.random.default_rng(seed), 0
    while found < count:
        a = layer(rng)
        if a.run().size > 1 and fits(a):
            found += 1
            yield rng, a


def names(found: detconv.Diagnosis) -> list[str]:
    """Of the hypotheses of which one is right."""
    return [hypothesis.name for hypothesis in found.one_of]


# ---- Constant outputs ----


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_zeros_are_not_computed(scale: float) -> None:
    """Also where the right values are so small that a rounding to integers or a clip would give zeros."""
    for _, a in layers(1):
        small = replace(a, weight=a.weight * np.float32(scale), bias=None)
        first = detconv.diagnose(np.zeros_like(small.run()), *small.arguments).first
        assert first is not None
        assert (first.name, first.says) == ("not computed", "the output is not computed: every element is 0")


def test_nothing_but_the_bias() -> None:
    for _, a in layers(2, lambda a: a.bias is not None):
        wrong = np.broadcast_to(a.bias[:, None, None], a.run().shape).copy()
        found = detconv.diagnose(wrong, *a.arguments)
        assert found.first is not None
        assert found.first.name == "only the bias", str(found)


def test_nothing_but_the_bias_in_one_element() -> None:
    for seed in range(DRAWS):
        rng = np.random.default_rng(seed)
        x, w, b = normal(rng, 1, 1, 5, 5), normal(rng, 1, 1, 3, 3), normal(rng, 1)
        first = detconv.diagnose(b.reshape(1, 1, 1, 1), x, w, b, dilation=2).first
        assert first is not None
        assert first.name == "only the bias"


# ---- Few elements ----


def test_one_element_is_no_evidence_of_an_activation() -> None:
    for seed in range(DRAWS):
        rng = np.random.default_rng(seed)
        x, w = normal(rng, 1, 1, 2, 2), normal(rng, 1, 1, 2, 2)
        right = detconv.conv2d(x, w)
        for wrong in (np.tanh(right), np.maximum(-np.abs(right), 0), np.clip(right, 0, 1), np.rint(right)):
            found = detconv.diagnose(wrong, x, w)
            assert "activation" not in [hypothesis.name for hypothesis in found], str(found)


def test_activations_have_evidence_on_both_sides() -> None:
    """Values below zero alone that are zeros are not computed; with values above that are right, it is a ReLU."""
    rng = np.random.default_rng(3)
    x = np.abs(normal(rng, 2, 3, 8, 8))
    w = -np.abs(normal(rng, 4, 3, 3, 3))
    below = np.maximum(detconv.conv2d(x, w), 0)
    found = detconv.diagnose(below, x, w)
    assert names(found) == ["not computed"]
    for _, a in layers(4, lambda a: min((a.run() > 0).sum(), (a.run() < 0).sum()) > 20, FEW):
        found = detconv.diagnose(np.maximum(a.run(), 0), *a.arguments)
        assert names(found)[0] == "activation", str(found)


def test_a_stride_that_is_ignored_by_two_outputs() -> None:
    """All of it, though a part may be explained by an activation: values that are zeros."""
    for seed in range(DRAWS):
        rng = np.random.default_rng(seed)
        x, w = normal(rng, 1, 1, 1, 3), normal(rng, 1, 1, 1, 1)
        if seed % 2:
            x[..., 1] = 0
        found = detconv.diagnose(x[..., :2] * w, x, w, stride=2)
        assert found.first is not None
        assert found.first.name == "stride ignored", str(found)
        assert found.first.explains == 1


# ---- Several arguments at once ----


def test_stride_and_padding_are_told_by_the_shape() -> None:
    rng = np.random.default_rng(5)
    for _ in range(DRAWS):
        channels, size = int(rng.integers(1, 9)), int(rng.integers(8, 14))
        x, w = normal(rng, 1, channels, size, size), normal(rng, channels, 1, 3, 3)
        stride = int(rng.integers(2, 4))
        wrong = detconv.conv2d(x, w, groups=channels, padding=1)
        found = detconv.diagnose(wrong, x, w, groups=channels, stride=stride)
        assert names(found) == ["other arguments"], str(found)
        assert f"the stride is 1 instead of {stride} and the padding is 1 instead of 0" in found[0].says


def test_arguments_that_keep_the_shape() -> None:
    rng = np.random.default_rng(6)
    for _ in range(DRAWS):
        x, w = normal(rng, 2, 3, 11, 11), normal(rng, 4, 3, 3, 3)
        found = detconv.diagnose(detconv.conv2d(x, w, padding=1), x, w, padding=2, dilation=2)
        assert names(found) == ["other arguments"], str(found)
        assert "padding is 1 instead of 2 and the dilation is 1 instead of 2" in found[0].says


def test_a_shape_is_told_though_the_values_are_others() -> None:
    x, w = normal(np.random.default_rng(7), 1, 3, 12, 12), normal(np.random.default_rng(8), 4, 3, 3, 3)
    noise = normal(np.random.default_rng(9), 1, 4, 12, 12)
    found = detconv.diagnose(noise, x, w, stride=2)
    assert not found
    assert "That is the shape if the stride is 1 instead of 2 and the padding is 1 instead of 0" in str(found)


# ---- Transposed convolutions ----


def transposed(rng: np.random.Generator) -> tuple[tuple[Array, Array, Array], dict[str, Any]]:
    groups, stride = int(rng.integers(1, 3)), int(rng.integers(2, 4))
    kernel = int(rng.integers(3, 5))
    x, w = normal(rng, 2, 2 * groups, 5, 6), normal(rng, 2 * groups, 3, kernel, kernel)
    geometry = {"stride": stride, "padding": int(rng.integers(0, 2)), "output_padding": 1, "groups": groups}
    return (x, w, normal(rng, 3 * groups)), geometry


def whole(arrays: tuple[Array, Array, Array], geometry: dict[str, Any]) -> Array:
    return detconv.conv_transpose2d(*arrays, **geometry | {"padding": 0, "output_padding": 0})


TRANSPOSED: dict[str, tuple[str, Callable[[Any, Any], Array]]] = {
    "kernel flipped": (
        "kernel flipped",
        lambda a, g: detconv.conv_transpose2d(a[0], a[1][..., ::-1, ::-1].copy(), a[2], **g),
    ),
    "no bias": ("bias missing", lambda a, g: detconv.conv_transpose2d(a[0], a[1], **g)),
    "zeros": ("not computed", lambda a, g: 0 * detconv.conv_transpose2d(*a, **g)),
    "negative": ("sign", lambda a, g: -detconv.conv_transpose2d(*a, **g)),
    "a tap": ("terms missing", lambda a, g: detconv.conv_transpose2d(a[0], without_a_tap(a[1]), a[2], **g)),
}


def without_a_tap(weight: Array) -> Array:
    made = weight.copy()
    made[:, :, 0, 1] = 0
    return made


@pytest.mark.parametrize("kind", TRANSPOSED)
def test_mistakes_of_a_transposed_convolution(kind: str) -> None:
    name, make = TRANSPOSED[kind]
    rng = np.random.default_rng(list(kind.encode()))
    for _ in range(FEW):
        arrays, geometry = transposed(rng)
        wrong = make(arrays, geometry)
        found = detconv.diagnose(wrong, *arrays, transposed=True, **geometry)
        assert any(one.name == name and one.explains == 1 for one in found), str(found)
        by_verdict = detconv.judge(wrong, *arrays, transposed=True, **geometry).diagnosis
        assert by_verdict == found


def test_a_transposed_convolution_that_is_cut_at_the_wrong_end() -> None:
    """As auto_pad does that puts the odd line at the other end."""
    rng = np.random.default_rng(11)
    for _ in range(FEW):
        arrays, geometry = transposed(rng)
        geometry["padding"] = 1
        rows, columns = detconv.conv_transpose2d(*arrays, **geometry).shape[2:]
        wrong = whole(arrays, geometry)[..., :rows, :columns].copy()  # cut at the end alone, not at the start
        if wrong.shape[2:] != (rows, columns):
            continue
        found = detconv.diagnose(wrong, *arrays, transposed=True, **geometry)
        assert "padding on the wrong side" in names(found), str(found)
        assert "as by auto_pad at the other end" in str(found)


def test_a_transposed_convolution_of_another_shape() -> None:
    rng = np.random.default_rng(12)
    for _ in range(FEW):
        arrays, geometry = transposed(rng)
        geometry["padding"] = 1
        found = detconv.diagnose(whole(arrays, geometry), *arrays, transposed=True, **geometry)
        assert found.first is not None
        assert "padding" in found.first.says, str(found)


def test_a_right_transposed_convolution_is_not_diagnosed() -> None:
    rng = np.random.default_rng(13)
    for _ in range(FEW):
        arrays, geometry = transposed(rng)
        right = detconv.conv_transpose2d(*arrays, **geometry, summation="pairwise")
        assert not detconv.diagnose(right, *arrays, transposed=True, **geometry)


# ---- Gradients ----


@pytest.mark.parametrize("of", ["input", "weight", "bias"])
def test_samples_are_averaged(of: str) -> None:
    rng = np.random.default_rng(14)
    for _ in range(FEW):
        samples = int(rng.integers(2, 7))
        x, w, g = normal(rng, samples, 3, 8, 8), normal(rng, 4, 3, 3, 3), normal(rng, samples, 4, 6, 6)
        for count in (samples, samples * 36):
            if of == "input":
                wrong = detconv.conv2d_input(x.shape, w, g) / np.float32(count)
                found = detconv.judge_input_gradient(wrong, x.shape, w, g).diagnosis
            elif of == "weight":
                wrong = detconv.conv2d_weight(x, w.shape, g) / np.float32(count)
                found = detconv.judge_weight_gradient(wrong, x, w.shape, g).diagnosis
            else:
                wrong = detconv.conv2d_bias(g) / np.float32(count)
                found = detconv.judge_bias_gradient(wrong, g).diagnosis
            assert found.first is not None
            assert found.first.name == "samples averaged", str(found)
            assert f"1/{count} of" in found.first.says


@pytest.mark.parametrize("of", ["weight", "bias"])
def test_samples_are_dropped(of: str) -> None:
    rng = np.random.default_rng(15)
    for _ in range(FEW):
        samples = int(rng.integers(3, 7))
        x, g = normal(rng, samples, 3, 8, 8), normal(rng, samples, 12, 6, 6)
        fewer = g.copy()
        fewer[-1] = 0
        if of == "weight":
            wrong = detconv.conv2d_weight(x, (12, 3, 3, 3), fewer)
            found = detconv.judge_weight_gradient(wrong, x, (12, 3, 3, 3), g).diagnosis
        else:
            found = detconv.judge_bias_gradient(detconv.conv2d_bias(fewer), g).diagnosis
        assert found.first is not None
        assert f"sample {samples - 1}" in str(found).lower(), str(found)


def test_the_bias_gradient_of_other_channels() -> None:
    g = normal(np.random.default_rng(16), 3, 6, 5, 5)
    right = detconv.conv2d_bias(g)
    assert not detconv.judge_bias_gradient(right, g).diagnosis
    assert names(detconv.judge_bias_gradient(-right, g).diagnosis) == ["sign"]
    found = detconv.judge_bias_gradient(right[::-1].copy(), g).diagnosis
    assert found.first is not None
    assert "reversed" in found.first.says, str(found)


# ---- Nothing to sum, nothing to say ----

SIZES = [(0, 2, 4, 4), (2, 0, 4, 4), (2, 2, 0, 4), (2, 2, 4, 0)]


@pytest.mark.parametrize("size", SIZES)
def test_problems_without_elements_or_terms(size: tuple[int, ...]) -> None:
    x = np.zeros(size, np.float32)
    for padding, outputs in ((1, 3), (3, 3), (1, 0)):
        w, b = np.ones((outputs, size[1], 3, 3), np.float32), np.ones(outputs, np.float32)
        try:
            right = detconv.conv2d(x, w, b, padding=padding)
        except ValueError:
            continue
        for candidate in (right, right + 1):
            assert isinstance(str(detconv.judge(candidate, x, w, b, padding=padding).diagnosis), str)
        grad = np.ones_like(right)
        for wrong in (0, 1):
            weight_like, x_like = np.full(w.shape, wrong, np.float32), np.full(x.shape, wrong, np.float32)
            for verdict in (
                detconv.judge_weight_gradient(weight_like, x, w.shape, grad, padding=padding),
                detconv.judge_input_gradient(x_like, x.shape, w, grad, padding=padding),
                detconv.judge_bias_gradient(np.full(grad.shape[1], wrong, np.float32), grad),
            ):
                assert isinstance(str(verdict.diagnosis), str)
        for other in ((2, 2, 2, 2), (0, 3, 1, 1), (2, 3, 0, 0)):
            assert isinstance(str(detconv.diagnose(np.ones(other, np.float32), x, w, b, padding=padding)), str)


def test_junk_for_an_empty_batch() -> None:
    x, g = np.zeros((0, 1, 2, 2), np.float32), np.zeros((0, 1, 2, 2), np.float32)
    verdict = detconv.judge_weight_gradient(np.ones((1, 1, 1, 1), np.float32), x, (1, 1, 1, 1), g)
    assert verdict.status == "mistake"
    assert isinstance(str(verdict.diagnosis), str)


# ---- What a diagnosis is ----


def symmetric() -> tuple[Array, Array, Array]:
    """A layer of one kernel of 1x3, and an output that is its mirror image: of the kernel, in one axis or both."""
    rng = np.random.default_rng(17)
    x, w = normal(rng, 1, 2, 1, 9), normal(rng, 3, 2, 1, 3)
    return x, w, detconv.conv2d(x, w[..., ::-1].copy())


def test_a_diagnosis_is_a_sequence() -> None:
    x, w, wrong = symmetric()
    found = detconv.diagnose(wrong, x, w)
    assert len(found) == len(found.hypotheses) > 0
    assert list(found) == list(found.hypotheses)
    assert found[0] is found.first
    assert found[-1] is found.hypotheses[-1]
    assert found[:1] == found.hypotheses[:1]
    assert found
    assert found[0] in found
    none = detconv.diagnose(detconv.conv2d(x, w), x, w)
    assert len(none) == 0
    assert list(none) == []
    assert not none
    assert none.one_of == ()
    with pytest.raises(IndexError):
        _ = none[0]


def test_a_diagnosis_is_plain_data() -> None:
    x, w, wrong = symmetric()
    found = detconv.diagnose(wrong, x, w)
    made = json.loads(json.dumps(found.to_dict()))
    assert made["version"] == 1
    assert made["text"] == str(found)
    assert [one["name"] for one in made["hypotheses"]] == [one.name for one in found]
    assert set(made["hypotheses"][0]) == {"name", "says", "explains", "status"}
    assert detconv.diagnose(detconv.conv2d(x, w), x, w).to_dict()["hypotheses"] == []


def test_a_diagnosis_in_a_notebook() -> None:
    """The paragraph and the hypotheses as a table; one without hypotheses is its sentence alone."""
    for _, a in layers(21, lambda a: a.bias is not None, FEW):
        found = detconv.diagnose(a.run(bias=None), *a.arguments)
        shown = found._repr_html_()
        assert shown.count("<table>") == 1
        assert shown.count('<th scope="row">') == len(found)
        assert "bias missing" in shown
        shown = detconv.diagnose(a.run(), *a.arguments)._repr_html_()
        assert "There is nothing to diagnose" in shown
        assert "<table>" not in shown


def test_causes_that_the_output_cannot_tell_apart_are_one_of() -> None:
    """Where the image is alike when it is turned, a flipped kernel turns the output."""
    rng = np.random.default_rng(18)
    for _ in range(FEW):
        x, w = normal(rng, 2, 3, 9, 9), normal(rng, 4, 3, 3, 3)
        x = x + x[..., ::-1, ::-1]
        found = detconv.diagnose(detconv.conv2d(x, w)[..., ::-1, ::-1].copy(), x, w)
        assert names(found) == ["kernel flipped", "output turned"], str(found)
        assert found.equals == 2
        assert found.first is found.one_of[0]
        assert str(found).startswith("Diagnosis: one of 2 that give the same output up to rounding: kernel flipped (")


# ---- Time ----


def test_an_unexplained_output_takes_no_longer_than_a_few_verdicts() -> None:
    """At most 20 verdicts of the same problem; a generous 60 here, since machines are busy."""
    rng = np.random.default_rng(19)
    x, w = normal(rng, 4, 3, 224, 224), normal(rng, 64, 3, 7, 7)
    noise = normal(rng, 4, 64, 224, 224)
    start = time.perf_counter()
    verdict = detconv.judge(noise, x, w, padding=3)
    judged = time.perf_counter() - start
    assert not verdict.diagnosis
    assert time.perf_counter() - start < 61 * judged
