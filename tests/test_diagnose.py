"""Diagnosis: seeded mistakes are named, right outputs are not, and coarser numbers are told from finer ones.

`python tests/diagnose_grid.py` does the same at length and prints figures.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import detconv
from bits import Array
from detconv.verdict import parts, precision
from detconv.verdict.hypotheses import ROWS
from detconv.verdict.problem import Problem
from diagnose_cases import KINDS, MOST_PRODUCTS, Kind, Layer, backward, drawn, equivalent, every_kind, layer, shortened

LAYERS = 3


# ---- Seeded mistakes ----


@pytest.mark.parametrize(("where", "of"), [*every_kind()], ids=lambda value: getattr(value, "name", ""))
def test_a_seeded_mistake_is_proven_and_named(where: str, of: Kind) -> None:
    seeded = list(drawn(where, of, LAYERS, most=MOST_PRODUCTS))
    assert len(seeded) == LAYERS
    assert all(one.is_mistake() for one in seeded)
    found = [one.diagnosis() for one in seeded]
    right = sum(equivalent(diagnosis, of) for diagnosis in found)
    assert right >= LAYERS - 1, [str(diagnosis) for diagnosis in found]


def test_answers_are_rows_of_the_table() -> None:
    names = {row.name for row in ROWS}
    assert len(names) == len(ROWS)
    for _, of in every_kind():
        assert of.answers
        assert set(of.answers) <= names


def test_enough_kinds() -> None:
    assert len({of.name for of in KINDS}) >= 25


# ---- Where it is ----


def plain_layer(seed: int = 1, channels: int = 6, outputs: int = 5) -> Layer:
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> Array:
        return rng.standard_normal(shape).astype(np.float32)

    weight, bias = normal(outputs, channels, 3, 3), normal(outputs)
    return Layer(normal(2, channels, 12, 12), weight, bias, (1, 1), (1, 1), (1, 1), 1)


def test_a_tap_is_named_with_its_place() -> None:
    a = plain_layer()
    weight = a.weight.copy()
    weight[3, 4, 2, 0] = 0
    first = detconv.diagnose(a.run(weight=weight), *a.arguments).first
    assert first is not None
    assert first.name == "terms missing"
    assert "Tap (2, 0) of input channel 4" in str(detconv.diagnose(a.run(weight=weight), *a.arguments))
    assert "output channel 3" in first.says
    assert first.explains == 1


def test_a_mistake_in_one_channel_is_named_with_it() -> None:
    a = plain_layer()
    wrong = a.run()
    wrong[:, 2] = a.run(weight=np.ascontiguousarray(a.weight[..., ::-1, ::-1]))[:, 2]
    first = detconv.diagnose(wrong, *a.arguments).first
    assert first is not None
    assert first.name == "kernel flipped"
    assert "output channel 2" in first.says


def test_none_of_these_says_where() -> None:
    a = plain_layer()
    wrong = a.run()
    wrong[1, 2, 3:5, 4] += np.float32([0.3, -0.2])
    wrong[1, 2, 7, 8] += np.float32(0.7)
    diagnosis = detconv.diagnose(wrong, *a.arguments)
    assert not diagnosis
    assert diagnosis.first is None
    text = str(diagnosis)
    assert "None of these" in text
    assert "3 of 1440 elements" in text
    assert "sample 1, output channel 2, rows 3, 4 and 7" in text


def test_two_mistakes_at_once_are_not_taken_for_one() -> None:
    a = plain_layer()
    wrong = 3 * a.run(weight=np.ascontiguousarray(a.weight[..., ::-1]), bias=None) + a.input[:, :5]
    assert not detconv.diagnose(wrong, *a.arguments)


def test_noise_is_no_mistake_that_is_known() -> None:
    rng = np.random.default_rng(5)
    for _ in range(20):
        a = layer(rng)
        noise = rng.standard_normal(a.run().shape).astype(np.float32)
        assert noise.size < 8 or not detconv.diagnose(noise, *a.arguments)


# ---- Other shapes ----


def test_a_shape_that_no_mistake_gives() -> None:
    a = plain_layer()
    diagnosis = detconv.diagnose(np.ones((2, 5, 17, 3), np.float32), *a.arguments)
    assert not diagnosis
    assert "(2, 5, 17, 3); it should be (2, 5, 12, 12)" in str(diagnosis)


def test_a_shape_that_a_mistake_gives_is_not_enough() -> None:
    a = plain_layer()
    shape = a.run(padding=(0, 0)).shape
    noise = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    assert not detconv.diagnose(noise, *a.arguments)
    first = detconv.diagnose(a.run(padding=(0, 0)), *a.arguments).first
    assert first is not None
    assert first.name == "padding missing"


def test_one_sample_without_an_axis_for_it() -> None:
    a = plain_layer()
    one = a.input[0]
    wrong = detconv.conv2d(one, a.weight, None, padding=1)
    diagnosis = detconv.diagnose(wrong, one, a.weight, a.bias, padding=1)
    assert diagnosis.first is not None
    assert diagnosis.first.name == "bias missing"


def test_bad_arguments() -> None:
    a = plain_layer()
    right = a.run()
    with pytest.raises(ValueError, match="candidate must have 4 axes"):
        detconv.diagnose(right[0], *a.arguments)
    with pytest.raises(ValueError, match="dtype must be ACCUMULATOR or PRODUCTS/ACCUMULATOR"):
        detconv.diagnose(right, *a.arguments, dtype="float8")
    with pytest.raises(TypeError, match="candidate"):
        detconv.diagnose(right.astype(np.int32), *a.arguments)
    with pytest.raises(ValueError, match="groups"):
        detconv.diagnose(right[:, :3], *a.arguments[:6], 7)


def test_an_output_without_elements() -> None:
    a = plain_layer()
    empty = a.input[:0]
    assert not detconv.diagnose(detconv.conv2d(empty, a.weight), empty, a.weight)


def test_infinities_are_borne() -> None:
    a = plain_layer()
    image = a.input.copy()
    image[0, 0, 3, 3], image[1, 2, 5, 5] = np.inf, np.nan
    b = replace(a, input=image)
    assert not detconv.diagnose(b.run("naive"), *b.arguments)
    first = detconv.diagnose(b.run(bias=None), *b.arguments).first
    assert first is not None
    assert first.name == "bias missing"


# ---- Right outputs ----


def test_right_outputs_are_not_diagnosed() -> None:
    rng = np.random.default_rng(7)
    orders = ["c,kh,kw", "kh,kw,c", "kw,c,kh"]
    summations = [f"naive order={o} products=rounded" for o in orders] + ["kahan", "pairwise", "fp64", "exact"]
    for _ in range(12):
        a = layer(rng)
        for summation in summations:
            right = a.run(summation)
            assert detconv.judge(right, *a.arguments).status in ("identical", "rounding")
            diagnosis = detconv.diagnose(right, *a.arguments)
            assert not diagnosis, str(diagnosis)
            assert "nothing to diagnose" in str(diagnosis)


def test_a_tap_zeroed_at_a_small_scale_is_found_where_it_exceeds_the_bound() -> None:
    rng = np.random.default_rng(3)
    found = 0
    while found < 10:
        a = layer(rng)
        if a.weight[0].size < 3:
            continue
        a = replace(a, input=a.input * np.float32(1e-3))
        weight = a.weight.copy()
        weight[tuple(int(rng.integers(size)) for size in weight.shape)] = 0
        verdict = detconv.judge(a.run(weight=weight), *a.arguments)
        if (np.abs(a.run("exact", weight=weight) - verdict.exact.astype(np.float64)) <= 2 * verdict.bound).all():
            continue
        found += 1
        assert verdict.status == "mistake"
        assert verdict.diagnosis.first is not None
        assert verdict.diagnosis.first.name == "terms missing"


def test_a_fault_that_is_too_small_is_said_to_be() -> None:
    a = plain_layer()
    a = replace(a, input=a.input * np.float32(1e-9))
    weight = a.weight.copy()
    weight[0, 0, 0, 0] = 0
    verdict = detconv.judge(a.run(weight=weight), *a.arguments)
    assert verdict.status in ("identical", "rounding")
    assert "too small to be told from rounding" in verdict.explain()


# ---- Precision ----

ROUNDINGS = {
    "TF32 or float16 inputs": lambda v: shortened(v, 13),
    "bfloat16 inputs": lambda v: shortened(v, 16),
    "TF32 inputs": lambda v: shortened(v, 13, truncated=True),
}


@pytest.mark.parametrize("name", ROUNDINGS)
@pytest.mark.parametrize(("channels", "kernel"), [(1, 3), (16, 5), (256, 1), (512, 3)])
def test_rounded_inputs_are_named_however_long_the_sums(name: str, channels: int, kernel: int) -> None:
    rng = np.random.default_rng(channels)
    x = rng.standard_normal((1, channels, 9, 9)).astype(np.float32)
    w = rng.standard_normal((6, channels, kernel, kernel)).astype(np.float32)
    rounded = detconv.conv2d(ROUNDINGS[name](x), ROUNDINGS[name](w), summation="naive")
    diagnosis = detconv.judge(rounded, x, w).diagnosis
    assert diagnosis.first is not None
    assert diagnosis.first.name == name, str(diagnosis)
    assert "The input and the weight are rounded" in str(diagnosis)


def test_float16_is_told_from_tf32_by_its_smallest_numbers() -> None:
    a = plain_layer()
    small = (a.input * np.float32(2e-6)).astype(np.float32)
    wrong = detconv.conv2d(small.astype(np.float16).astype(np.float32), a.weight.astype(np.float16).astype(np.float32))
    first = detconv.diagnose(wrong, small, a.weight).first
    assert first is not None
    assert first.name == "float16 inputs"


@pytest.mark.parametrize(("dropped", "truncated"), [(13, False), (13, True), (16, False), (16, True)])
def test_shortened_numbers(dropped: int, truncated: bool) -> None:
    values = np.random.default_rng(0).standard_normal(5000).astype(np.float32)
    values[:4] = [0.0, np.float32(1 + 2.0**-11), np.float32(1 + 2.0**-8), 1.0]
    assert np.array_equal(precision.shortened(values, dropped, truncated), shortened(values, dropped, truncated))


def rounding_to(half: str) -> Any:
    return (lambda v: v.astype(np.float16).astype(np.float32)) if half == "float16" else (lambda v: shortened(v, 16))


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_an_accumulator_of_few_digits(half: str) -> None:
    a, to_half = plain_layer(), rounding_to(half)
    assert a.bias is not None
    image = np.pad(a.input, ((0, 0), (0, 0), (1, 1), (1, 1)))
    total = np.zeros_like(a.run())
    for c in range(6):
        for i, j in np.ndindex(3, 3):
            total = to_half(total + a.weight[:, c, i, j, None, None] * image[:, c, None, i : i + 12, j : j + 12])
    first = detconv.diagnose(total + a.bias[:, None, None], *a.arguments).first
    assert first is not None
    assert first.name == "narrow sums"
    assert f"in {half}" in first.says


def test_float32_where_float64_is_claimed() -> None:
    a = plain_layer()
    arrays = [array.astype(np.float64) for array in (a.input, a.weight, a.bias) if array is not None]
    diagnosis = detconv.diagnose(a.run().astype(np.float64), *arrays, *a.arguments[3:])
    assert "narrow sums" in [h.name for h in diagnosis.hypotheses]
    third = [array / 3 for array in arrays]
    coarse = detconv.conv2d(*(array.astype(np.float32).astype(np.float64) for array in third), *a.arguments[3:])
    first = detconv.diagnose(coarse, *third, *a.arguments[3:]).first
    assert first is not None
    assert first.name == "float32 inputs"


def test_the_noise_of_a_transform() -> None:
    rng = np.random.default_rng(2)
    x = (rng.standard_normal((2, 3, 18, 18)) * np.exp(2 * rng.standard_normal((2, 3, 18, 18)))).astype(np.float32)
    w = rng.standard_normal((8, 3, 3, 3)).astype(np.float32)
    spectrum = np.einsum("nchw,ochw->nohw", np.fft.rfft2(x, (20, 20)), np.fft.rfft2(w[..., ::-1, ::-1], (20, 20)))
    by_fft = np.fft.irfft2(spectrum.astype(np.complex64), (20, 20))[..., 2:18, 2:18].astype(np.float32)
    verdict = detconv.judge(np.ascontiguousarray(by_fft), x, w)
    assert verdict.status == "mistake"
    assert verdict.diagnosis.first is not None
    assert verdict.diagnosis.first.name == "transform", str(verdict.diagnosis)


# ---- Sums taken apart ----


@pytest.mark.parametrize("name", ["conv2d", "conv2d_input", "conv2d_weight"])
def test_terms_add_up(name: str) -> None:
    rng = np.random.default_rng(11)
    for _ in range(20):
        b = backward(rng, "conv2d_input")
        a, geometry = b.layer, b.layer.arguments[3:]
        arrays = {
            "conv2d": (a.input, a.weight, None),
            "conv2d_input": (a.input.shape, a.weight, b.grad_output),
            "conv2d_weight": (a.input, a.weight.shape, b.grad_output),
        }[name]
        problem = Problem.of(name, *arrays, *geometry).mapped(lambda array: array.astype(np.float64))
        total = problem.run("naive")
        elements = tuple(index.ravel() for index in np.indices(total.shape))
        chosen = rng.permutation(total.size)[:200]
        elements = tuple(index[chosen] for index in elements)
        added = parts.terms(problem, elements).sum(axis=(1, 2, 3))
        magnitude = problem.mapped(np.abs).run("naive")[elements]
        assert (np.abs(added - total[elements]) <= 1e-12 * magnitude).all()
