"""The verdict: it never accuses a rounded sum, whatever its order, and proves what it calls a mistake.

The oracle is rational arithmetic: a mistake must be further from the exact sum than gamma_n * S, both as fractions.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

import detconv
import oracle
from bits import DTYPES, Array, Layer, assert_same_bits, gradients, layers, made, output_shape, summations
from detconv.verdict import bounds
from detconv.verdict.bounds import FORMATS
from detconv.verdict.judge import STATUSES, Verdict

JUDGES = {"conv2d_input": detconv.judge_input_gradient, "conv2d_weight": detconv.judge_weight_gradient}


def judged(candidate: Array, layer: Layer, **options: Any) -> Verdict:
    return detconv.judge(candidate, *layer.arrays, **layer.options, **options)


def sums(layer: Layer) -> tuple[list[Fraction], list[Fraction], list[int]]:
    """The exact sum, S and the number of terms that are no padding, of every output."""
    image = layer.input if layer.input.ndim == 4 else layer.input[None]
    inside = oracle.products(np.ones_like(image), layer.weight, **layer.options)[1]
    totals, magnitudes, counts = [], [], []
    outputs = oracle.products(image, layer.weight, **layer.options)[1]
    for ((_, o, _, _), products), (_, ones) in zip(outputs, inside, strict=True):
        terms = [Fraction(w) * Fraction(x) for w, x in products]
        bias = [] if layer.bias is None else [Fraction(float(layer.bias[o]))]
        totals.append(sum(terms + bias, Fraction()))
        magnitudes.append(sum(map(abs, terms + bias), Fraction()))
        counts.append(sum(x != 0 for _, x in ones) + len(bias))
    return totals, magnitudes, counts


def grain(layer: Layer) -> Fraction:
    """The largest power of two of which all terms are multiples; 0 where there are none, or it is no number of T."""

    def of(array: Array) -> Fraction:
        numbers = [Fraction(float(value)) for value in array.ravel() if value != 0]
        return min((Fraction(n.numerator & -n.numerator, n.denominator) for n in numbers), default=Fraction(0))

    parts = [of(layer.input) * of(layer.weight)] + ([] if layer.bias is None else [of(layer.bias)])
    least = min((part for part in parts if part), default=Fraction(0))
    return least if least >= Fraction(float(np.finfo(layer.input.dtype).smallest_subnormal)) else Fraction(0)


# ---- A mistake is proven, and a rounding is never accused ----


@settings(max_examples=60)
@given(layers(kinds=["uniform", "wide", "small integers"], largest=3), st.floats(0.5, 2.0), st.integers(-1, 1))
def test_the_bound_is_that_of_rational_arithmetic(layer: Layer, share: float, sign: int) -> None:
    """Elements are moved to about their bound; what is within gamma_n * S must not be called a mistake, what is called
    one must be beyond, and what is well beyond must be called one."""
    dtype = layer.input.dtype
    info, unit = np.finfo(dtype), Fraction(FORMATS[dtype.name].unit)
    exact = detconv.conv2d(*layer.arrays, **layer.options, summation="exact")
    totals, magnitudes, counts = sums(layer)
    whole = grain(layer)
    limits = [
        n * unit / (1 - n * unit) * s if s * unit >= whole else Fraction(0)
        for n, s in zip(counts, magnitudes, strict=True)
    ]
    largest = Fraction(float(info.max))
    moved = [t + sign * Fraction(share) * b for t, b in zip(totals, limits, strict=True)]
    clipped = [float(min(max(m, -largest), largest)) for m in moved]
    candidate = np.array(clipped).astype(dtype).reshape(exact.shape)
    codes = judged(candidate, layer).codes.ravel()
    tiny = Fraction(math.ldexp(1, int(info.minexp - info.nmant)))
    for value, total, limit, magnitude, n, code in zip(
        candidate.ravel().tolist(), totals, limits, magnitudes, counts, codes, strict=True
    ):
        if magnitude > largest / 8:  # partial sums may overflow
            continue
        off = abs(Fraction(value) - total)
        if limit == 0:  # no order rounds: what is off is a mistake
            assert (STATUSES[code] == "mistake") == (off > 0)
        elif STATUSES[code] == "mistake":
            assert off > limit
        elif off > limit:  # not called a mistake: then it is no further than what the rounding of the sum allows
            assert off <= limit * (1 + 4 * n * unit) + 2 * unit * (abs(total) + off) + 8 * (n + 1) * tiny


@settings(max_examples=150)
@given(layers(), summations())
def test_no_summation_is_a_mistake(layer: Layer, summation: str) -> None:
    """Any values, subnormal, huge, infinite and NaN ones too."""
    output = detconv.conv2d(*layer.arrays, **layer.options, summation=summation)
    verdict = judged(output, layer)
    assert verdict.status in ("identical", "rounding"), verdict.explain()
    assert sum(verdict.counts.values()) == output.size
    assert (verdict.elements == np.array(STATUSES)[verdict.codes]).all()


@settings(max_examples=80)
@given(gradients(names=["conv2d_input", "conv2d_weight"]), summations(), st.booleans())
def test_no_gradient_is_a_mistake(case: Any, summation: str, sequence: bool) -> None:
    output = case.run(detconv, summation + " samples=sequence" * sequence)
    verdict = JUDGES[case.name](output, *case.arguments, **case.options)
    assert verdict.status in ("identical", "rounding"), verdict
    assert_same_bits(verdict.exact, case.run(detconv, "exact samples=sequence"))


@settings(max_examples=40)
@given(layers(kinds=["uniform"]), st.sampled_from(["float16", "bfloat16"]), st.data())
def test_sums_stored_in_half_precision(layer: Layer, half: str, data: st.DataObject) -> None:
    """Sums of float32 operands, rounded once to a half type: no mistake. Moved by four places: one."""
    torch = pytest.importorskip("torch")
    if layer.input.dtype == np.float64:
        layer = Layer(*(a if a is None else a.astype(np.float32) for a in layer.arrays), layer.options)
    summation = data.draw(summations())
    total = torch.from_numpy(detconv.conv2d(*layer.arrays, **layer.options, summation=summation))
    stored = total.to(getattr(torch, half))
    verdict = judged(stored, layer)
    assert verdict.stored == half
    assert verdict.dtype == "float32"
    assert verdict.status in ("identical", "rounding")
    off = stored.float() * (1 + 8 * FORMATS[half].unit)
    moved = judged(off.to(getattr(torch, half)), layer)
    large = np.abs(verdict.exact) > 1e-2 * verdict.magnitude
    assert (moved.codes[large] == STATUSES.index("mistake")).all()


def test_half_operands_give_the_correctly_rounded_half() -> None:
    torch = pytest.importorskip("torch")
    for half in (torch.float16, torch.bfloat16):
        x, w = (torch.from_numpy(made(s, np.float32, 1)).to(half) for s in [(2, 8, 9, 9), (4, 8, 3, 3)])
        exact = detconv.conv2d(x, w, padding=1, summation="exact")
        assert detconv.judge(exact, x, w, padding=1).status == "identical"
        assert detconv.judge(torch.nn.functional.conv2d(x, w, padding=1), x, w, padding=1).status != "mistake"


# ---- The numbers ----


def test_errors_are_against_the_correctly_rounded_sum() -> None:
    x, w, b = (made(s, np.float32, i) for i, s in enumerate([(1, 16, 28, 28), (8, 16, 5, 5), (8,)]))
    output = detconv.conv2d(x, w, b, padding=2, summation="naive products=rounded")
    verdict = detconv.judge(output, x, w, b, padding=2)
    exact = detconv.conv2d(x, w, b, padding=2, summation="exact")
    assert_same_bits(verdict.exact, exact)
    assert_same_bits(verdict.error, output.astype(np.float64) - exact)
    assert_same_bits(verdict.ulps, np.abs(verdict.error) / np.spacing(np.abs(exact)).astype(np.float64))
    assert (verdict.ulps == np.round(verdict.ulps)).all()
    # The interior: 400 products and the bias.
    n_u = 401 * 2.0**-24
    inside = np.s_[..., 2:-2, 2:-2]
    share = verdict.bound[inside] / (n_u / (1 - n_u) * verdict.magnitude[inside])
    assert (share > 1).all()
    assert (share < 1.004).all()  # and half a unit in the last place of the exact sum, and S's own roundings
    assert (verdict.probable_bound <= verdict.bound).all()
    assert (verdict.magnitude >= 0.999 * np.abs(exact)).all()
    worst = (np.abs(verdict.error) / verdict.bound).max()
    assert verdict.worst_element is not None
    assert abs(verdict.worst - worst) < 1e-9
    assert np.abs(verdict.error)[verdict.worst_element] / verdict.bound[verdict.worst_element] == worst
    assert verdict.condition.min() >= 1 - 1e-3
    assert [len(verdict.where(status)[0]) for status in STATUSES] == list(verdict.counts.values())


def test_the_probable_bound_is_higham_and_marys() -> None:
    n, u = np.array([1.0, 100.0, 4096.0]), 2.0**-24
    deviations = bounds.deviation(4096, 10**6, 0.999999)
    assert math.isclose(2 * 4096 * math.exp(-(deviations**2) / 2) * 10**6, 1e-6, rel_tol=1e-9)
    expected = np.expm1(deviations * np.sqrt(n) * u + n * u * u / (1 - u))
    assert np.abs(bounds.probable(n, u, deviations) / expected - 1).max() < 1e-12
    assert (bounds.gamma(n, u) >= n * u / (1 - n * u)).all()
    assert np.isinf(bounds.gamma(np.array([2.0**24]), u)).all()
    assert bounds.deviation(100, 1, 0.5) < bounds.deviation(100, 1, 0.9) < bounds.deviation(100, 1000, 0.9)


def test_a_long_sum_moved_by_half_its_bound_is_unlikely() -> None:
    x, w = made((1, 512, 8, 8), np.float32, 1), made((2, 512, 3, 3), np.float32, 2)
    exact = detconv.conv2d(x, w, summation="exact")
    sure = detconv.judge(exact, x, w)
    assert sure.status == "identical"
    moved = (exact + 0.5 * sure.bound).astype(np.float32)
    verdict = detconv.judge(moved, x, w)
    assert verdict.status == "unlikely"
    assert verdict.counts["unlikely"] == exact.size
    assert "no proof" in verdict.explain()
    # The same is nothing unusual where one is ready to be wrong.
    assert (detconv.judge(moved, x, w, confidence=0.0).probable_bound < verdict.probable_bound).all()


def test_a_fault_below_the_bound_is_said_to_be_too_small() -> None:
    x, w = made((1, 64, 12, 12), np.float32, 1), made((4, 64, 3, 3), np.float32, 2)
    w[:, 3, 1, 1] *= 1e-6
    without = w.copy()
    without[:, 3, 1, 1] = 0
    verdict = detconv.judge(detconv.conv2d(x, without), x, w)
    assert verdict.status == "rounding"
    assert "too small to be told from rounding" in verdict.explain()


def test_the_statuses_do_not_depend_on_threads() -> None:
    x, w = made((4, 32, 40, 40), np.float32, 1), made((32, 32, 3, 3), np.float32, 2)
    output = detconv.conv2d(x, w, summation="naive")
    output[1, 2, 3, 4] += 1
    output[3, 2, 3, 4] += 1
    verdicts = []
    for threads in (1, 2, 3):
        detconv.set_num_threads(threads)
        verdicts.append(detconv.judge(output, x, w))
    assert len({v.codes.tobytes() for v in verdicts}) == 1
    assert len({(v.worst, v.worst_element) for v in verdicts}) == 1
    assert verdicts[0].counts["mistake"] == 2
    assert [tuple(int(i) for i in at) for at in zip(*verdicts[0].where("mistake"), strict=True)] == [
        (1, 2, 3, 4),
        (3, 2, 3, 4),
    ]


# ---- Infinities, NaN, zeros ----


def test_overflow_is_rounding_where_an_order_overflows() -> None:
    """2^127 + 2^127 - 2^127: in one order infinity, in another 2^127."""
    x = np.full((1, 3, 1, 1), 2.0**127, np.float32)
    w = np.array([1, 1, -1], np.float32).reshape(1, 3, 1, 1)
    for value in (2.0**127, np.inf, np.nan):
        assert detconv.judge(np.full((1, 1, 1, 1), value, np.float32), x, w).status in ("identical", "rounding")


@pytest.mark.parametrize(
    ("value", "status"),
    [(np.inf, "identical"), (-np.inf, "mistake"), (np.nan, "mistake"), (1.0, "mistake"), (3e38, "mistake")],
)
def test_an_infinite_term_decides(value: float, status: str) -> None:
    x, w = np.array([np.inf, 1], np.float32).reshape(1, 2, 1, 1), np.ones((1, 2, 1, 1), np.float32)
    assert detconv.judge(np.full((1, 1, 1, 1), value, np.float32), x, w).status == status


def test_finite_sums_beside_special_ones_are_judged_as_ever() -> None:
    x, w = made((1, 4, 9, 9), np.float32, 1), made((2, 4, 3, 3), np.float32, 2)
    x[0, 0, 0, 0] = np.nan
    output = detconv.conv2d(x, w, summation="naive")
    assert detconv.judge(output, x, w).status == "rounding"
    output[0, 1, 6, 6] = np.nan
    verdict = detconv.judge(output, x, w)
    assert verdict.counts["mistake"] == 1
    assert "infinite or NaN where the true sum is finite" in verdict.explain()


def test_a_skipped_padding_is_named() -> None:
    x, w = made((1, 2, 6, 6), np.float32, 1), made((1, 2, 3, 3), np.float32, 2)
    w[0, 0, 0, 0] = np.inf
    output = detconv.conv2d(x, w, padding=1)
    assert np.isnan(output).any()
    skipped = output.copy()
    skipped[np.isnan(skipped)] = 1.0
    verdict = detconv.judge(skipped, x, w, padding=1)
    assert verdict.status == "mistake"
    assert "skips the padding" in verdict.explain()


def test_zeros_of_either_sign_are_equal() -> None:
    x, w = np.zeros((1, 2, 4, 4), np.float32), made((1, 2, 3, 3), np.float32, 2)
    output = np.full((1, 1, 2, 2), -0.0, np.float32)
    assert detconv.judge(output, x, w).status == "identical"
    output[0, 0, 1, 1] = 1e-45
    assert detconv.judge(output, x, w).counts["mistake"] == 0  # products might have been rounded up from nothing
    output[0, 0, 1, 1] = 1e-30
    assert detconv.judge(output, x, w).status == "mistake"


# ---- Types, libraries, bad input ----


def test_a_float64_result_of_float32_operands() -> None:
    x, w = made((1, 8, 9, 9), np.float32, 1), made((4, 8, 3, 3), np.float32, 2)
    wide = detconv.conv2d(x.astype(np.float64), w.astype(np.float64))
    verdict = detconv.judge(wide, x, w)
    assert verdict.status in ("identical", "rounding")
    assert (verdict.dtype, verdict.container, verdict.stored) == ("float32", "float64", "float64")
    assert detconv.judge(wide, x, w, dtype="float64").status in ("identical", "rounding")
    single = detconv.conv2d(x, w, summation="naive").astype(np.float64)
    verdict = detconv.judge(single, x, w)
    assert verdict.status == "rounding"  # a container claims nothing
    assert (verdict.dtype, verdict.container, verdict.stored) == ("float32", "float64", "float32")
    assert detconv.judge(single, x, w, dtype="float64").status == "mistake"


def test_a_float32_result_of_float64_operands() -> None:
    x, w = made((1, 8, 9, 9), np.float64, 1), made((4, 8, 3, 3), np.float64, 2)
    assert detconv.judge(detconv.conv2d(x, w).astype(np.float32), x, w).status in ("identical", "rounding")
    narrow = detconv.conv2d(x.astype(np.float32), w.astype(np.float32))
    assert detconv.judge(narrow, x, w).status == "mistake"  # its operands were rounded
    assert detconv.judge(narrow, x.astype(np.float32), w.astype(np.float32)).status == "rounding"


def test_arrays_of_several_libraries() -> None:
    torch = pytest.importorskip("torch")
    x, w = made((2, 8, 9, 9), np.float32, 1), made((4, 8, 3, 3), np.float32, 2)
    tensors = [torch.from_numpy(a).requires_grad_() for a in (x, w)]
    output = torch.nn.functional.conv2d(*tensors, padding=1)
    for candidate in (output, output.detach().numpy(), output.to(memory_format=torch.channels_last)):
        for operands in ((x, w), tensors, (x, tensors[1])):
            assert detconv.judge(candidate, *operands, padding=1).status == "rounding"


def test_empty_and_unbatched() -> None:
    w = made((4, 8, 3, 3), np.float32, 2)
    empty = np.empty((0, 4, 7, 7), np.float32)
    verdict = detconv.judge(empty, np.empty((0, 8, 9, 9), np.float32), w)
    assert verdict.status == "identical"
    assert "no elements" in verdict.explain()
    x = made((8, 9, 9), np.float32, 1)
    assert detconv.judge(detconv.conv2d(x, w), x, w).candidate.shape == (4, 7, 7)


def test_bad_input() -> None:
    x, w = made((1, 8, 9, 9), np.float32, 1), made((4, 8, 3, 3), np.float32, 2)
    y = detconv.conv2d(x, w)
    with pytest.raises(ValueError, match=r"candidate must have the shape of the output, \(1, 4, 7, 7\); got \(1, 4"):
        detconv.judge(y[..., 1:], x, w)
    with pytest.raises(ValueError, match="input must have weight"):
        detconv.judge(y, x[:, 1:], w)
    with pytest.raises(TypeError, match=r"candidate must have dtype .*; got int32"):
        detconv.judge(y.astype(np.int32), x, w)
    with pytest.raises(TypeError, match="weight must have the element type of input, float32; got float64"):
        detconv.judge(y, x, w.astype(np.float64))
    with pytest.raises(TypeError, match="candidate must be a NumPy array"):
        detconv.judge([1.0], x, w)  # type: ignore[type-var]
    with pytest.raises(
        ValueError, match=r"dtype must be ACCUMULATOR or PRODUCTS/ACCUMULATOR, each one of float64, .*; got 'int8'"
    ):
        detconv.judge(y, x, w, dtype="int8")
    for confidence in (1.0, -0.1, 2.0, math.nan):
        with pytest.raises(ValueError, match="confidence must be at least 0 and less than 1"):
            detconv.judge(y, x, w, confidence=confidence)
    with pytest.raises(TypeError, match="candidate must be float64 or float32 where"):
        detconv.judge(y.astype(np.float16), x.astype(np.float64), w.astype(np.float64))
    with pytest.raises(ValueError, match="status must be one of"):
        detconv.judge(y, x, w).where("wrong")


def test_a_mistake_raises() -> None:
    x, w = made((1, 8, 9, 9), np.float32, 1), made((4, 8, 3, 3), np.float32, 2)
    y = detconv.conv2d(x, w)
    detconv.judge(y, x, w).raise_if_mistake()
    y[0, 1, 2, 3] += 0.01
    with pytest.raises(detconv.ConvolutionMistake, match="Mistake: 1 of 196 elements"):
        detconv.judge(y, x, w).raise_if_mistake()
    assert "output channel 1, row 2, column 3" in detconv.judge(y, x, w).explain()
    assert output_shape(Layer(x, w, None, {"padding": "valid", "stride": (1, 1), "dilation": (1, 1)})) == y.shape


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_element_is_counted_once(dtype: type) -> None:
    x, w = made((2, 3, 9, 9), dtype, 1), made((4, 3, 3, 3), dtype, 2)
    verdict = detconv.judge(detconv.conv2d(x, w, summation="naive"), x, w)
    assert sum(verdict.counts.values()) == verdict.exact.size
    assert repr(verdict).startswith("<Verdict rounding: ")
