"""All elements judged together: right arrays are never accused, and what has no power says so."""

from __future__ import annotations

import tracemalloc
import warnings
from typing import Any

import numpy as np
import pytest

import detconv
from bits import Array
from detconv import testing
from detconv.verdict.bounds import FORMATS, Claim, rounded
from right_arrays import right_arrays
from wrong_arrays import wrong_assertions


def drawn(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def columns_and_rows(seed: int, terms: int, rows: int = 4, columns: int = 4) -> tuple[Array, Array]:
    """An input and a weight whose output is the product of two matrices."""
    return drawn(seed, 1, terms, 1, columns), drawn(seed + 1000, rows, terms, 1, 1)


# ---- Right arrays ----


def test_no_right_array_is_accused() -> None:
    seen = list(right_arrays(300, seed=3))
    assert len({right.route for right in seen}) >= 15
    assert len({right.kind for right in seen}) >= 10
    assert any(right.verdict.exact.size == 1 for right in seen)
    assert any(right.verdict.status == "rounding" for right in seen)
    assert [right for right in seen if right.verdict.status in ("unlikely", "mistake")] == []


# ---- Zeros, negated sums and noise ----


def wrong_arrays(right: Array, seed: int) -> dict[str, Array]:
    noise = drawn(seed, *right.shape) * np.sqrt(np.mean(right.astype(np.float64) ** 2))
    return {"zeros": np.zeros_like(right), "negated": -right, "noise": noise.astype(right.dtype)}


@pytest.mark.parametrize("terms", [100, 1000, 10_000])
def test_zeros_negated_sums_and_noise_are_refused_where_there_is_power(terms: int) -> None:
    for seed in range(3):
        x, w = columns_and_rows(seed, terms)
        right = detconv.conv2d(x, w)
        assert detconv.judge(right, x, w).power.decides
        for wrong in wrong_arrays(right, seed).values():
            assert detconv.judge(wrong, x, w).status in ("unlikely", "mistake")


def test_where_sums_cancel_the_assertion_warns() -> None:
    """The second half of the terms takes the first half away again, but for what is far below roundings."""
    for seed in range(10):
        x, w = columns_and_rows(seed, 2000)
        x[:, 1000:], w[:, 1000:] = x[:, :1000], -w[:, :1000]
        x[:, 1000:] += np.float32(1e-7) * drawn(seed, 1, 1000, 1, 4)
        right = detconv.conv2d(x, w, summation="exact")
        for wrong in (np.zeros_like(right), -right):
            verdict = detconv.judge(wrong, x, w)
            assert verdict.status == "rounding"
            assert not verdict.power.decides
            assert verdict.power.zeros == right.size
            assert "zeros in place of all outputs might pass" in verdict.explain()
            with pytest.warns(testing.NoPower, match="small integers"):
                testing.assert_conv2d(wrong, x, w)


def test_very_many_channels() -> None:
    """An assertion that fails must not ask for memory as the square of the channels."""
    x, w = drawn(1, 1, 12_000, 1, 3), drawn(2, 3, 12_000, 1, 1)
    tracemalloc.start()
    try:
        with pytest.raises(detconv.ConvolutionMistake):
            testing.assert_conv2d(-detconv.conv2d(x, w), x, w)
        assert tracemalloc.get_traced_memory()[1] < 500 * x.nbytes
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("seed", range(3))
def test_wrong_arrays_are_refused_or_warned_of(seed: int) -> None:
    found = list(wrong_assertions(10, seed, most_terms=2000))
    assert {wrong.outcome for wrong in found if wrong.power} == {"refused"}
    assert {wrong.outcome for wrong in found if not wrong.power} <= {"refused", "warned"}
    assert any(wrong.outcome == "warned" for wrong in found)
    assert {wrong.wrong for wrong in found} == {"zeros", "negated", "noise"}


def test_a_long_weight_gradient() -> None:
    x, g = drawn(1, 24, 1, 112, 112), drawn(2, 24, 1, 112, 112)
    right = detconv.conv2d_weight(x, (1, 1, 3, 3), g, padding=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        testing.assert_conv2d_weight(right, x, right.shape, g, padding=1)
    for wrong in wrong_arrays(right, 3).values():
        with pytest.raises(detconv.ConvolutionMistake, match="Unlikely: ") as raised:
            testing.assert_conv2d_weight(wrong, x, right.shape, g, padding=1)
        assert raised.value.verdict.counts["mistake"] == 0
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            testing.assert_conv2d_weight(wrong, x, right.shape, g, padding=1, allow_unlikely=True)
        raised.value.verdict.raise_if_mistake(allow_unlikely=True)


# ---- Coarse operands ----


@pytest.mark.parametrize("name", ["tf32", "float16", "bfloat16"])
@pytest.mark.parametrize("truncated", [False, True])
@pytest.mark.parametrize("which", ["both", "input", "weight"])
def test_coarse_operands_of_long_sums_are_unlikely(name: str, truncated: bool, which: str) -> None:
    for terms in (6000,):
        x, w = columns_and_rows(terms, terms, 8, 8)
        coarse_x, coarse_w = (rounded(a, FORMATS[name], truncated=truncated) for a in (x, w))
        given = (coarse_x if which != "weight" else x, coarse_w if which != "input" else w)
        verdict = detconv.judge(detconv.conv2d(*given), x, w)
        assert verdict.status == "unlikely"
        assert verdict.together.coarse is not None
        alike = ("tf32", "float16") if name != "bfloat16" else (name,)  # but for the smallest numbers
        assert set(verdict.together.coarse.formats) & set(alike)
        assert abs(verdict.together.coarse.projection - 1) < 0.05
        claimed = detconv.judge(detconv.conv2d(*given), x, w, dtype=f"{name}/float32")
        assert claimed.status == "rounding"
        assert claimed.dtype == f"{name}/float32"
    plain = detconv.judge(detconv.conv2d(x, w, summation="naive"), x, w)
    assert (plain.status, plain.together.coarse) == ("rounding", None)


def test_long_positive_sums_cannot_tell() -> None:
    x, w = (np.abs(a) for a in columns_and_rows(5, 100_000, 8, 4))
    verdict = detconv.judge(detconv.conv2d(x, w, summation="naive"), x, w)
    assert verdict.status == "rounding"
    assert "tf32" in verdict.together.blind_to
    assert "Whether operands were rounded to tf32" in verdict.explain()


# ---- Claims ----


def test_claims_are_read_and_printed() -> None:
    assert str(Claim.parse("tf32")) == "tf32/float32"
    for name in FORMATS:
        assert str(Claim.parse(f"{name}/float16")) == f"{name}/float16"
    for text in ("", "int8", "float32/", "/float32", "tf32/float32/float32", "TF32"):
        with pytest.raises(ValueError, match="dtype must be ACCUMULATOR or PRODUCTS/ACCUMULATOR"):
            Claim.parse(text)


@pytest.mark.parametrize("name", FORMATS)
def test_rounded_operands_are_within_what_is_claimed(name: str) -> None:
    """Also those that a format makes zero or its largest number of; what is too large is unbounded."""
    x, w = drawn(1, 2, 8, 6, 6) * np.float32(4), drawn(2, 4, 8, 3, 3)
    for truncated in (False, True):
        given = (rounded(a, FORMATS[name], truncated=truncated) for a in (x, w))
        assert detconv.judge(detconv.conv2d(*given), x, w, dtype=f"{name}/float32").counts["mistake"] == 0
    if FORMATS[name].digits < 24:
        given = (rounded(a, FORMATS[name]) for a in (x, w))
        assert detconv.judge(detconv.conv2d(*given), x, w).status == "mistake"


# ---- Integers and storage ----


@pytest.mark.parametrize("scale", [1.0, 2.0**-20, 2.0**40])
def test_integers_prove(scale: float) -> None:
    draw = np.random.default_rng(4)
    for _ in range(20):
        x = (draw.integers(-4, 5, (1, 64, 6, 6)) * scale).astype(np.float32)
        w = draw.integers(-4, 5, (4, 64, 3, 3)).astype(np.float32)
        y = detconv.conv2d(x, w, summation="naive")
        verdict = detconv.judge(y, x, w)
        assert verdict.status == "identical"
        assert "every order sums them without rounding" in verdict.explain()
        place = tuple(draw.integers(size) for size in y.shape)
        y[place] = np.nextafter(y[place], np.float32(np.inf))
        verdict = detconv.judge(y, x, w)
        assert verdict.counts["mistake"] == 1
        assert (verdict.bound == 0).all()
        assert "inf%" not in verdict.explain()


def test_a_container_is_no_arithmetic() -> None:
    x, w = drawn(1, 1, 16, 12, 12), drawn(2, 4, 16, 3, 3)
    single = detconv.conv2d(x, w, summation="naive products=rounded")
    double = detconv.conv2d(x.astype(np.float64), w.astype(np.float64))
    for output, said in (
        (single.astype(np.float64), "Rounding of float32 sums, stored in float64: "),
        (double, "Rounding of float64 sums: "),
        (single, "Rounding: "),
    ):
        verdict = detconv.judge(output, x, w)
        assert verdict.status == "rounding"
        assert verdict.explain().startswith(said)
    short = detconv.judge(rounded(single, FORMATS["bfloat16"]), x, w)
    assert "roundings of float32 sums, rounded to bfloat16 and stored in float32" in short.explain()


# ---- Other passes and sizes ----


def test_transposed_convolutions_and_bias_gradients() -> None:
    x, w, b = drawn(1, 2, 6, 5, 7), drawn(2, 6, 3, 3, 2), drawn(3, 6)
    geometry: dict[str, Any] = {"stride": (2, 1), "padding": (1, 0), "dilation": 1, "groups": 2}
    y = detconv.conv_transpose2d(x, w, b, output_padding=(1, 0), **geometry, summation="naive")
    arguments = (x, w, b)
    verdict = detconv.judge(y, *arguments, **geometry, transposed=True, output_padding=(1, 0))
    assert verdict.status == "rounding"
    assert testing.assert_conv_transpose2d(y, *arguments, output_padding=(1, 0), **geometry).counts == verdict.counts
    with pytest.raises(detconv.ConvolutionMistake):
        testing.assert_conv_transpose2d(-y, *arguments, output_padding=(1, 0), **geometry)
    with pytest.raises(ValueError, match="output_padding must be 0 unless transposed"):
        detconv.judge(y, *arguments, **geometry, output_padding=(1, 0))
    gradient = detconv.conv2d_bias(y)
    assert testing.assert_conv2d_bias(gradient, y).status in ("identical", "rounding")
    verdict = detconv.judge_bias_gradient(gradient + 1, y)
    assert verdict.status == "mistake"
    assert "bias gradient of shape (6,)" in verdict.explain()
    assert "output channel " in verdict.explain()
    with pytest.raises(ValueError, match="operator must be one of conv2d; got 'linear'"):
        detconv.judge_bias_gradient(gradient, y, operator="linear")


def test_no_terms_give_zeros() -> None:
    empty, g = np.zeros((0, 2, 5, 5), np.float32), np.zeros((0, 3, 3, 3), np.float32)
    for value, status in ((0, "identical"), (1, "mistake")):
        for verdict in (
            detconv.judge_weight_gradient(np.full((3, 2, 3, 3), value, np.float32), empty, (3, 2, 3, 3), g),
            detconv.judge_bias_gradient(np.full(3, value, np.float32), g),
        ):
            assert verdict.status == status
            assert verdict.explain()
            assert verdict.to_dict()["version"] == 1
            assert "<" in verdict._repr_html_()


def test_verdicts_repeat_on_any_number_of_threads() -> None:
    x, w = drawn(1, 2, 32, 40, 40), drawn(2, 32, 32, 3, 3)
    y = detconv.conv2d(x, w, summation="naive")
    found = set()
    for threads in (1, 2, 3):
        detconv.set_num_threads(threads)
        together = detconv.judge(y, x, w).together
        found.add((together.error, together.size, together.spread, together.yardstick))
    assert len(found) == 1


def test_an_array_on_another_device_is_copied() -> None:
    class Elsewhere:
        """An array as a library with its own memory has it."""

        def __init__(self, array: Array) -> None:
            self.array = array

        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, 0  # CUDA, in DLPack's numbers

        def get(self) -> Array:
            return self.array.copy()

    x, w = drawn(1, 1, 4, 6, 6), drawn(2, 2, 4, 3, 3)
    assert detconv.judge(Elsewhere(detconv.conv2d(x, w)), x, w).status in ("identical", "rounding")
