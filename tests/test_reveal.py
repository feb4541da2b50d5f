"""Reveal: on boxes whose order is known, detconv's own; and on boxes that have none."""

import json
import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import detconv
from bits import Array, assert_same_bits, explicit_orders, made
from detconv.revealing import STATUSES, passes, replay, texts, trees, words

SHAPES = (1, 6, 7, 8), (5, 6, 3, 2)  # 36 terms


def box(summation: Any, **geometry: Any) -> Callable[..., Array]:
    return lambda x, w, b: detconv.conv2d(x, w, b, **geometry, summation=summation)


def arrays_for(r: detconv.Reveal, seed: int = 5) -> tuple[Array, Array, Array | None]:
    """Operands of the real shape, other than those of any trial: input, weight, bias."""
    g = r.geometry
    dtype = np.dtype(g.dtype).type
    bias = made((g.weight_shape[0],), dtype, seed + 2) if g.bias else None
    return made(g.input_shape, dtype, seed), made(g.weight_shape, dtype, seed + 1), bias


# ---- Trees and texts ----


@given(st.data(), st.integers(1, 40), st.booleans())
def test_equal_trees_have_equal_texts(data: st.DataObject, terms: int, bias: bool) -> None:
    order = data.draw(explicit_orders(terms, bias))
    text = trees.canonical(order, terms)
    assert trees.canonical(text, terms) == text
    detconv.Summation(order=text)  # it is in the language
    doubles = "d[" in order and not bias  # a lone d[f0 m1] has a second rounding that no probe can see
    if not doubles:
        x, w = made((1, terms, 3, 3), np.float32, 1), made((4, terms, 1, 1), np.float32, 2)
        b = made((4,), np.float32, 3) if bias else None
        expected = detconv.conv2d(x, w, b, summation=detconv.Summation(order=order))
        assert_same_bits(detconv.conv2d(x, w, b, summation=detconv.Summation(order=text)), expected, (order, text))


@pytest.mark.parametrize(
    "text",
    [
        "25x(+1){16x(+25){f0}} bias",
        "bias 2x(+200){25x(+1){8x(+25){f0}}}",
        "80x(+5){[m0 m4 m1 [m2 m3]]} bias",
        "200x(+1){f0} bias [200x(+1){f200}]",
        "16x(+25){d[25x(+1){f0}]} bias",
        "d[400x(+1){f0} bias]",
        "400x(-1){f399} bias",
    ],
)
def test_texts_of_known_orders_are_canonical(text: str) -> None:
    assert trees.canonical(text, 400) == text


@given(st.data(), st.integers(1, 40), st.booleans())
def test_what_an_order_reaches_is_what_it_spells_out(data: st.DataObject, terms: int, bias: bool) -> None:
    shift = data.draw(st.integers(0, 3))
    order = data.draw(explicit_orders(terms, bias))
    spelt: list[int] = []

    def spell(items: tuple[texts.Node, ...], by: int) -> None:
        for item in items:
            if item.kind in ("f", "m"):
                spelt.append(item.number + by)
            for copy in range(item.number if item.kind == "x" else 1):
                spell(item.inner, by + copy * item.step)

    spell(texts.parsed(order), shift)
    assert texts.reach(f"1x(+0){{{order}}}") == (terms, int(bias), 0, terms - 1)
    moved = f"2x(+{shift}){{{order}}} 3x(-1){{2x(+7){{f9}}}}"
    assert texts.reach(moved)[2:] == (0, max(terms - 1 + shift, 16))
    assert sorted(spelt) == list(range(shift, terms + shift))


def test_deep_trees_stay_shallow_in_text() -> None:
    chain = "f0"
    for k in range(1, 60):
        chain = f"[{chain}] f{k}" if k % 2 else f"f{k} [{chain}]"
    text = trees.canonical(chain, 60)
    assert text.count("[") == 0
    assert detconv.Summation(order=text).explicit_order


# ---- detconv's own orders ----


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_drawn_orders_are_revealed_exactly(data: st.DataObject) -> None:
    bias = data.draw(st.booleans())
    order = data.draw(explicit_orders(36, bias))
    try:
        expected = trees.canonical(order, 36)
    except trees.NotExpressible:  # pragma: no cover
        raise AssertionError(order) from None
    r = detconv.reveal(box(detconv.Summation(order=order)), *SHAPES, bias, seed=data.draw(st.integers(0, 9)))
    assert (r.status, r.match) == ("exact", 1.0), (order, r.reason)
    assert [o.text for o in r.orders] == [expected]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("order", ["c,kh,kw", "kh,kw,c", "kw,c,kh"])
@pytest.mark.parametrize("products", ["fused", "rounded"])
@pytest.mark.parametrize("bias", ["first", "last"])
def test_loops_are_named(dtype: str, order: str, products: str, bias: str) -> None:
    summation = detconv.Summation("naive", order=order, products=products, bias=bias)
    r = detconv.reveal(box(summation, padding=(1, 2)), *SHAPES, padding=(1, 2), dtype=dtype)
    assert r.status == "exact", r.reason
    assert [o.name for o in r.orders] == [str(summation)]
    assert r.orders[0].outputs == math.prod(r.geometry.output_shape)
    x, w, b = arrays_for(r)
    expected = detconv.conv2d(x, w, b, padding=(1, 2), summation=summation)
    assert_same_bits(detconv.conv2d(x, w, b, padding=(1, 2), summation=r), expected)


GEOMETRIES: list[dict[str, Any]] = [
    {"stride": 2, "padding": 1},
    {"dilation": (2, 1), "padding": "same"},
    {"stride": (1, 3), "groups": 3, "padding": (0, 2)},
    {"stride": (2, 1), "dilation": 2, "padding": 3, "groups": 2},
    {"padding": (4, 5)},  # whole outputs lie in the padding
    {"stride": 3, "dilation": 2, "padding": (0, 1)},
]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("summation", ["pairwise block=4", "naive order=kh,c,kw", "fp64"])
def test_every_geometry(geometry: dict[str, Any], summation: str) -> None:
    groups = geometry.get("groups", 1)
    shapes = (2, 6, 9, 8), (6, 6 // groups, 3, 3)
    r = detconv.reveal(box(summation, **geometry), *shapes, **geometry)
    assert (r.status, r.match) == ("exact", 1.0), r.reason
    x, w, b = arrays_for(r)
    assert_same_bits(
        detconv.conv2d(x, w, b, **geometry, summation=r), detconv.conv2d(x, w, b, **geometry, summation=summation)
    )


@pytest.mark.parametrize("geometry", [{}, *GEOMETRIES[:1], *GEOMETRIES[2:]], ids=str)
@pytest.mark.parametrize("summation", ["naive order=kw,c,kh", "pairwise block=3 products=rounded"])
def test_input_gradients(geometry: dict[str, Any], summation: str) -> None:
    groups = geometry.get("groups", 1)
    shapes = (2, 6, 9, 8), (6, 6 // groups, 3, 3)

    def fn(weight: Array, grad_output: Array) -> Array:
        return detconv.conv2d_input(shapes[0], weight, grad_output, **geometry, summation=summation)

    def run(weight: Array, grad_output: Array, given: Any) -> Array:
        return detconv.conv2d_input(shapes[0], weight, grad_output, **geometry, summation=given)

    r = detconv.reveal(fn, *shapes, **geometry, pass_="input_gradient", seed=3)
    # fn only takes images of one size, so no smaller one was tried.
    assert (r.status, r.match) == ("exact", 1.0), r.reason
    weight, grad = made(shapes[1], np.float32, 1), made(r.geometry.output_shape, np.float32, 2)
    assert_same_bits(run(weight, grad, r), run(weight, grad, summation))


@pytest.mark.parametrize("geometry", [{}, *GEOMETRIES[:1], *GEOMETRIES[2:]], ids=str)
@pytest.mark.parametrize("summation", ["naive", "naive samples=sequence", "pairwise block=8"])
def test_weight_gradients(geometry: dict[str, Any], summation: str) -> None:
    groups = geometry.get("groups", 1)
    shapes = (3, 6, 9, 8), (6, 6 // groups, 3, 3)

    def run(x: Array, grad_output: Array, given: Any = summation) -> Array:
        return detconv.conv2d_weight(x, shapes[1], grad_output, **geometry, summation=given)

    r = detconv.reveal(run, *shapes, **geometry, pass_="weight_gradient")
    assert (r.status, r.match) == ("exact", 1.0), r.reason
    x, grad = made(shapes[0], np.float32, 1), made(r.geometry.output_shape, np.float32, 2)
    assert_same_bits(run(x, grad, r), run(x, grad))


def test_a_pixel_without_products_is_no_obstacle() -> None:
    """A 1x1 kernel of stride 2 leaves three of four pixels of the input's gradient without a product."""

    def run(weight: Array, grad_output: Array, given: Any = "naive") -> Array:
        return detconv.conv2d_input((1, 4, 6, 6), weight, grad_output, stride=2, summation=given)

    r = detconv.reveal(run, (1, 4, 6, 6), (5, 4, 1, 1), stride=2, pass_="input_gradient")
    assert (r.status, r.match) == ("exact", 1.0), r.reason
    weight, grad = made((5, 4, 1, 1), np.float32, 1), made((1, 5, 3, 3), np.float32, 2)
    assert_same_bits(run(weight, grad, r), run(weight, grad))


TRANSPOSED: list[dict[str, Any]] = [
    {},
    {"stride": 2, "padding": 1, "output_padding": 1},
    {"stride": (3, 2), "dilation": 2, "groups": 2},
    {"stride": (4, 1), "padding": (0, 1)},  # rows that no product reaches: they are the bias
    {"stride": 2, "dilation": 3, "output_padding": (2, 1)},
]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("geometry", TRANSPOSED, ids=str)
def test_transposed_convolutions(geometry: dict[str, Any], dtype: str, bias: bool) -> None:
    shapes = (2, 6, 5, 4), (6, 4 // geometry.get("groups", 1), 3, 2)

    def fn(x: Array, w: Array, b: Array | None, given: Any = "naive products=rounded bias=first") -> Array:
        return detconv.conv_transpose2d(x, w, b, **geometry, summation=given)

    r = detconv.reveal(fn, *shapes, bias, dtype=dtype, transposed=True, **geometry)
    assert (r.status, r.match) == ("exact", 1.0), r.reason
    x, w = (made(shape, np.dtype(dtype).type, seed) for seed, shape in enumerate(shapes))
    b = made((4,), np.dtype(dtype).type, 5) if bias else None
    assert_same_bits(fn(x, w, b, r), fn(x, w, b))
    again = detconv.Reveal.from_dict(json.loads(json.dumps(r.to_dict())))
    assert_same_bits(fn(x, w, b, again), fn(x, w, b))
    if bias:
        b = np.array([-0.0, np.nan, np.inf, 1], dtype)
        assert_same_bits(fn(x, w, b, r), fn(x, w, b))
    with pytest.raises(ValueError, match="these orders are of conv_transpose2d, and not of conv2d"):
        detconv.conv2d(x, w, b, summation=r)


def test_transposed_convolutions_of_torch() -> None:
    torch = pytest.importorskip("torch")
    geometry: dict[str, Any] = {"stride": 2, "padding": 1, "output_padding": 1}

    def fn(x: Any, w: Any, b: Any) -> Any:
        return torch.nn.functional.conv_transpose2d(x, w, b, **geometry)

    r = detconv.reveal(fn, (1, 8, 6, 6), (8, 5, 3, 3), transposed=True, arrays="torch", **geometry)
    assert (r.status, r.match) == ("exact", 1.0), r.reason
    x, w, b = (torch.from_numpy(made(shape, np.float32, 3)) for shape in [(1, 8, 6, 6), (8, 5, 3, 3), (5,)])
    assert torch.equal(detconv.conv_transpose2d(x, w, b, **geometry, summation=r), fn(x, w, b))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"output_padding": 1}, "output_padding must be 0 without transposed"),
        ({"transposed": True, "pass_": "weight_gradient"}, "pass_ must be forward with transposed=True"),
        ({"transposed": True, "output_padding": 3, "stride": 2}, "output_padding"),
        ({"transposed": True, "padding": "same"}, "padding must be"),
        ({"transposed": 1}, "transposed must be True or False; got int"),
        ({"transposed": True, "stride": 200, "weight_shape": (6, 4, 200, 200)}, "stride must leave at most 4096 kinds"),
    ],
)
def test_arguments_of_transposed_convolutions_are_checked(change: dict[str, Any], match: str) -> None:
    arguments: dict[str, Any] = {"input_shape": (1, 6, 5, 5), "weight_shape": (6, 4, 3, 3)} | change
    with pytest.raises((ValueError, TypeError), match=match):
        detconv.reveal(box("naive"), **arguments)


@given(st.integers(-50, 50), st.integers(1, 12), st.integers(1, 9), st.integers(1, 9))
def test_the_taps_that_meet_a_place(place: int, taps: int, stride: int, dilation: int) -> None:
    common = math.gcd(stride, dilation)
    met = passes._met(place, taps, stride // common, dilation // common, common)
    assert list(met) == [i for i in range(taps) if (place - i * dilation) % stride == 0]


# ---- Another convolution ----

SQUARE = (2, 6, 9, 9), (5, 6, 3, 3)


def turned(w: Array) -> Array:
    return np.ascontiguousarray(w[:, :, ::-1, ::-1])


OTHERS: dict[str, tuple[Callable[..., Array], dict[str, Any], str]] = {
    "transposed kernel": (lambda x, w, b: detconv.conv2d(x, w.swapaxes(2, 3).copy(), b), {}, "kernel is transposed"),
    "flipped kernel": (lambda x, w, b: detconv.conv2d(x, turned(w), b), {}, "kernel is flipped"),
    "no bias": (lambda x, w, b: detconv.conv2d(x, w), {}, "bias is missing"),
    "no padding, then shifted": (
        lambda x, w, b: detconv.conv2d(np.pad(x, ((0, 0), (0, 0), (2, 0), (2, 0))), w, b),
        {"padding": 1},
        "padding",
    ),
    "reflected border": (
        lambda x, w, b: detconv.conv2d(np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), "reflect"), w, b),
        {"padding": 1},
        "reflect",
    ),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", OTHERS)
def test_another_convolution_is_named_and_not_searched(name: str, seed: int) -> None:
    fn, geometry, said = OTHERS[name]
    r = detconv.reveal(fn, *SQUARE, **geometry, seed=seed)
    assert r.status == "mistake"
    assert said in r.reason
    assert said in r.explain()
    assert (r.match, r.orders) == (0, ())
    assert r.calls <= 5
    assert detconv.Reveal.from_dict(json.loads(json.dumps(r.to_dict()))).reason == r.reason
    x, w, b = arrays_for(r)
    with pytest.raises(ValueError, match="not known"):
        detconv.conv2d(x, w, b, **geometry, summation=r)


def test_another_convolution_is_named_where_no_single_output_proves_it() -> None:
    """The bound of a sum of 8,000 terms is larger than most biases; that of all outputs together is not."""
    shapes = (1, 8_000, 2, 2), (3, 8_000, 1, 1)
    r = detconv.reveal(lambda x, w, b: detconv.conv2d(x, w), *shapes)
    assert r.status == "mistake"
    assert "bias is missing" in r.reason


OTHERS_TRANSPOSED: dict[str, tuple[Callable[..., Array], str]] = {
    "flipped kernel": (lambda x, w, b, g: detconv.conv_transpose2d(x, turned(w), b, **g), "kernel is flipped"),
    "transposed kernel": (
        lambda x, w, b, g: detconv.conv_transpose2d(x, w.swapaxes(2, 3).copy(), b, **g),
        "kernel is transposed",
    ),
    "no bias": (lambda x, w, b, g: detconv.conv_transpose2d(x, w, **g), "bias is missing"),
    "cut at the other end": (
        lambda x, w, b, g: detconv.conv_transpose2d(x, w, b, stride=g["stride"])[:, :, :-1, :-1].copy(),
        "as by auto_pad at the other end",
    ),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", OTHERS_TRANSPOSED)
def test_another_transposed_convolution_is_named_and_not_searched(name: str, seed: int) -> None:
    fn, said = OTHERS_TRANSPOSED[name]
    geometry = {"stride": 2, "padding": 1, "output_padding": 1}
    shapes = (2, 6, 5, 5), (6, 4, 3, 3)
    r = detconv.reveal(lambda x, w, b: fn(x, w, b, geometry), *shapes, transposed=True, **geometry, seed=seed)
    assert r.status == "mistake"
    assert said in r.reason
    assert (r.match, r.orders) == (0, ())


def test_a_transposed_result_of_another_shape_is_explained() -> None:
    shapes = (2, 6, 5, 5), (6, 4, 3, 3)
    with pytest.raises(ValueError, match=r"must return shape .*there is no padding"):
        detconv.reveal(
            lambda x, w, b: detconv.conv_transpose2d(x, w, b, stride=2), *shapes, transposed=True, stride=2, padding=1
        )


def test_another_gradient_is_named() -> None:
    shape, kernel = SQUARE
    r = detconv.reveal(lambda w, g: detconv.conv2d_input(shape, turned(w), g), shape, kernel, pass_="input_gradient")
    assert (r.status, "flipped" in r.reason) == ("mistake", True)
    r = detconv.reveal(lambda x, g: turned(detconv.conv2d_weight(x, kernel, g)), shape, kernel, pass_="weight_gradient")
    assert (r.status, "flipped" in r.reason) == ("mistake", True)


def test_a_result_of_another_shape_is_explained() -> None:
    with pytest.raises(ValueError, match=r"must return shape .*the stride is ignored"):
        detconv.reveal(lambda x, w, b: detconv.conv2d(x, w, b), *SQUARE, stride=2)


def test_what_no_known_mistake_explains_is_counted() -> None:
    r = detconv.reveal(lambda x, w, b: np.sin(detconv.conv2d(x, w, b)), *SHAPES)
    assert r.status == "not_a_tree"
    assert "outputs are further from the true sums than any order" in r.reason


# ---- More than one order ----


def patchwork(x: Array, w: Array, b: Array | None) -> Array:
    """The last rows of pixels, and the last output channel, in orders of their own."""
    y = detconv.conv2d(x, w, b, padding=1, summation="naive")
    y[:, :, -2:] = detconv.conv2d(x, w, b, padding=1, summation="naive order=kh,kw,c")[:, :, -2:]
    y[:, -1:] = detconv.conv2d(x, w, b, padding=1, summation="naive bias=first products=rounded")[:, -1:]
    return y


def test_classes_of_outputs_are_told_apart() -> None:
    r = detconv.reveal(patchwork, (2, 6, 7, 8), (5, 6, 3, 3), padding=1)
    assert (r.status, r.match) == ("exact", 1.0), r.reason
    found = {o.name: o for o in r.orders}
    assert set(found) == {"naive", "naive order=kh,kw,c", "naive products=rounded bias=first"}
    assert "rows 5-6" in found["naive order=kh,kw,c"].where
    assert found["naive products=rounded bias=first"].where == "channels 4"
    assert sum(o.outputs for o in r.orders) == 2 * 5 * 7 * 8
    x, w, b = arrays_for(r)
    assert_same_bits(detconv.conv2d(x, w, b, padding=1, summation=r), patchwork(x, w, b))


def test_replay_computes_a_class_where_it_is() -> None:
    mask = np.zeros((2, 6, 5, 7), bool)
    mask[1, 4:, 3:, :] = True
    assert list(replay.boxes(mask)) == [((1, 2), (4, 6), (3, 5), (0, 7))]
    labels = np.zeros(mask.shape, np.int16)
    labels[mask] = 1
    classes = replay.Classes.of([detconv.Summation("naive"), detconv.Summation("exact")], labels)
    assert classes.core.size == 8
    assert np.array_equal(classes.labels, labels)
    assert classes.counts() == [labels.size - mask.sum(), mask.sum()]


# ---- What is no order ----


def transform_box(x: Array, w: Array, b: Array | None) -> Array:
    size = x.shape[2] + w.shape[2] - 1, x.shape[3] + w.shape[3] - 1
    spectrum = np.fft.rfft2(x[:, None], size) * np.conj(np.fft.rfft2(w[None], size))
    y = np.fft.irfft2(spectrum.sum(axis=2), size)[:, :, : x.shape[2] - w.shape[2] + 1, : x.shape[3] - w.shape[3] + 1]
    assert b is not None
    return (y + b[:, None, None]).astype(np.float32)


def bfloat16_box(x: Array, w: Array, b: Array | None) -> Array:
    def short(a: Array) -> Array:
        return (a.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)

    return detconv.conv2d(short(x), short(w), b, summation="naive")


def four_at_a_time(x: Array, w: Array, b: Array | None) -> Array:
    """Four exact products and the accumulator are added without rounding between, as tensor cores do."""
    windows = np.lib.stride_tricks.sliding_window_view(x.astype(np.float64), w.shape[2:], (2, 3))
    columns = windows.transpose(0, 2, 3, 1, 4, 5).reshape(*windows.shape[:1], *windows.shape[2:4], -1)
    rows, total = w.reshape(len(w), -1).astype(np.float64), np.float32(0)
    for k in range(0, rows.shape[1], 4):
        total = (total + columns[..., k : k + 4] @ rows[:, k : k + 4].T).astype(np.float32)
    assert b is not None
    return np.moveaxis(np.asarray(total), -1, 1) + b[:, None, None]


@pytest.mark.parametrize("fn", [box("kahan"), box("exact"), bfloat16_box, four_at_a_time])
def test_sums_that_are_no_trees_are_not_guessed(fn: Callable[..., Array]) -> None:
    r = detconv.reveal(fn, *SHAPES)
    assert r.status == "not_a_tree"
    assert r.match == 0
    assert r.orders == ()
    assert r.reason
    assert r.reason in r.explain()
    x, w, b = arrays_for(r)
    with pytest.raises(ValueError, match="not known"):
        detconv.conv2d(x, w, b, summation=r)


def test_a_transform_is_flagged() -> None:
    r = detconv.reveal(transform_box, *SHAPES)
    assert (r.status, r.match) == ("transform", 0)
    assert "windows miss" in r.reason


def test_what_does_not_repeat_has_no_order() -> None:
    random = np.random.default_rng(1)

    def fn(x: Array, w: Array, b: Array | None) -> Array:
        order = ",".join(random.permutation(["c", "kh", "kw"]))
        return detconv.conv2d(x, w, b, summation=f"naive order={order}")

    assert detconv.reveal(fn, *SHAPES).status == "nondeterministic"


def test_one_output_in_another_order_is_seen() -> None:
    def fn(x: Array, w: Array, b: Array | None) -> Array:
        y = detconv.conv2d(x, w, b, summation="naive")
        y[0, 3, 2, 4] = detconv.conv2d(x, w, b, summation="exact")[0, 3, 2, 4]
        return y

    r = detconv.reveal(fn, *SHAPES)
    assert r.status == "partial"
    size = math.prod(r.geometry.output_shape)
    assert r.match == (size - 1) / size


def test_the_budget_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that only the function's own calls move on, so that the speed of the machine is of no matter."""
    now = 0.0

    def slow(x: Array, w: Array, b: Array | None) -> Array:
        nonlocal now
        now += 0.0625
        return detconv.conv2d(x, w, b, summation="naive")

    clock = SimpleNamespace(monotonic=lambda: now, perf_counter=lambda: now)
    monkeypatch.setattr("detconv.revealing.time", clock)
    monkeypatch.setattr("detconv.revealing.box.time", clock)
    r = detconv.reveal(slow, *SHAPES, budget_s=0.5)
    assert r.status == "partial"
    assert "budget" in r.reason
    assert r.calls == 9  # the last of them starts just in time
    assert r.seconds == 9 * 0.0625


# ---- Results ----


def test_saved_and_loaded(tmp_path: Path) -> None:
    r = detconv.reveal(patchwork, (2, 6, 7, 8), (5, 6, 3, 3), padding=1)
    r.save(tmp_path / "order.json")
    again = detconv.Reveal.load(tmp_path / "order.json")
    assert again.to_dict() == r.to_dict()
    assert str(again) == str(r)
    x, w, b = arrays_for(r)
    assert_same_bits(detconv.conv2d(x, w, b, padding=1, summation=again), patchwork(x, w, b))
    data = json.loads((tmp_path / "order.json").read_text())
    assert data["key"]["input_shape"] == [2, 6, 7, 8]
    assert data["version"] == 2
    old = {("format" if name == "version" else name): value for name, value in data.items()} | {"format": 1}
    del old["key"]["transposed"], old["key"]["output_padding"]  # as version 1 was
    assert str(detconv.Reveal.from_dict(old)) == str(r)
    (tmp_path / "no.json").write_text("{")
    with pytest.raises(ValueError, match=r"no\.json"):
        detconv.Reveal.load(tmp_path / "no.json")


# What may be wrong with a file, and a word of what is said of it.
WRONG: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no version": (lambda d: d.pop("version"), "format"),
    "another version": (lambda d: d.update(version=3), "version is 3"),
    "a version of another kind": (lambda d: d.update(version=[]), "version must be"),
    "two versions": (lambda d: d.update(format=2), "a version and a format"),
    "an unknown status": (lambda d: d.update(status="fine"), "status is 'fine'"),
    "no key": (lambda d: d.update(key={}), "function"),
    "a key of a list": (lambda d: d.update(key=[]), "key must be a dict"),
    "no shape": (lambda d: d["key"].pop("input_shape"), "no input_shape"),
    "a shape that is none": (lambda d: d["key"].update(input_shape=[2, 6, "7", 8]), "input_shape"),
    "another shape": (lambda d: d["key"].update(input_shape=[2, 6, 7, 9]), "places"),
    "a gigantic shape": (lambda d: d["key"].update(input_shape=[2**40, 6, 2**20, 8]), "at most|places|64 bits"),
    "a gigantic kernel": (lambda d: d["key"].update(weight_shape=[5, 6, 2**40, 3]), "kernel|64 bits|places"),
    "a stride of floats": (lambda d: d["key"].update(stride=[1.5, 1]), "stride"),
    "groups beyond 64 bits": (lambda d: d["key"].update(groups=10**30), "groups"),
    "a bias that is no bool": (lambda d: d["key"].update(bias="yes"), "bias"),
    "a dtype that is none": (lambda d: d["key"].update(dtype="int8"), "dtype"),
    "a match above 1": (lambda d: d.update(match=1.5), "match must be from 0 to 1"),
    "a match below 0": (lambda d: d.update(match=-0.5), "match must be"),
    "a match that is no number": (lambda d: d.update(match=float("nan")), "match must be"),
    "a match that is another": (lambda d: d.update(match=0.25, status="partial"), "outputs have an order"),
    "trials of a float": (lambda d: d.update(trials=2.5), "trials"),
    "negative seconds": (lambda d: d.update(seconds=-1), "seconds"),
    "a reason that is no text": (lambda d: d.update(reason=3), "reason"),
    "a lone surrogate": (lambda d: d["key"].update(function="\ud800"), "surrogate"),
    "parts of another kind": (lambda d: d.update(parts=[1]), "part must be a dictionary"),
    "too many parts": (lambda d: d["parts"].append(d["parts"][0]), "1 parts; got 2"),
    "exact, without parts": (lambda d: d.update(parts=[], match=0), "exact"),
    "no axes": (lambda d: d["parts"][0].pop("axes"), "axes"),
    "three axes": (lambda d: d["parts"][0]["axes"].pop(), "4 axes"),
    "a long axis": (lambda d: d["parts"][0]["axes"].__setitem__(0, [[0, 2**40]]), "places"),
    "an axis of another kind": (lambda d: d["parts"][0]["axes"].__setitem__(0, [[-1, 2]]), "runs"),
    "an axis of kinds that are not there": (lambda d: d["parts"][0]["axes"].__setitem__(0, [[7, 2]]), "runs"),
    "a large core": (lambda d: d["parts"][0].update(core_shape=[2**20, 2**20, 1, 1]), "labels"),
    "another core": (lambda d: d["parts"][0].update(core_shape=[2, 2, 2, 1]), "runs|core_shape"),
    "a class that is not there": (lambda d: d["parts"][0]["core"][0].__setitem__(0, 3), "core must have runs"),
    "a class below none": (lambda d: d["parts"][0]["core"][0].__setitem__(0, -2), "core must have runs"),
    "runs that are none": (lambda d: d["parts"][0].update(core=[[0]]), "core must have runs"),
    "an empty run": (lambda d: d["parts"][0]["core"].insert(0, [0, 0]), "core must have runs"),
    "other counts": (lambda d: d["parts"][0].update(outputs=[1, 2, 3]), "outputs are not"),
    "a summation that is none": (lambda d: d["parts"][0]["summations"].__setitem__(0, "nave"), "method"),
    "a summation of another type": (lambda d: d["parts"][0]["summations"].__setitem__(0, 3), "must be a text"),
    "an order of fewer terms": (lambda d: d["parts"][0]["summations"].__setitem__(0, 'naive order="f0 bias"'), "fit"),
    "an order of many terms": (
        lambda d: d["parts"][0]["summations"].__setitem__(0, 'naive order="281474976710656x(+1){f0} bias"'),
        "fit",
    ),
    "an order without its bias": (
        lambda d: d["parts"][0]["summations"].__setitem__(0, 'naive order="54x(+1){f0}"'),
        "fit",
    ),
    "many copies of the bias": (
        lambda d: d["parts"][0]["summations"].__setitem__(
            0, 'naive order="' + "281474976710656x(+0){" * 60 + "bias" + "}" * 60 + ' 54x(+1){f0}"'
        ),
        "fit",
    ),
    "many summations": (lambda d: d["parts"][0].update(summations=["naive"] * 10**5), "at most 48"),
}


@pytest.fixture(scope="module")
def patched() -> dict[str, Any]:
    return detconv.reveal(patchwork, (2, 6, 7, 8), (5, 6, 3, 3), padding=1).to_dict()


@pytest.mark.parametrize("name", WRONG)
def test_files_that_do_not_fit_their_key(name: str, patched: dict[str, Any], tmp_path: Path) -> None:
    change, said = WRONG[name]
    data = json.loads(json.dumps(patched))
    assert detconv.Reveal.from_dict(data).status == "exact"
    change(data)
    with pytest.raises(ValueError, match=said) as raised:
        detconv.Reveal.from_dict(data)
    assert len(str(raised.value)) < 600
    (tmp_path / "wrong.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"wrong\.json: "):
        detconv.Reveal.load(tmp_path / "wrong.json")


@pytest.mark.parametrize(
    "text",
    [b"", b"\xff\xfe", b"{", b"[" * 10**6, b"[]", b"3", b"null", b'"\\ud800"', b"NaN", b"1" * 10**4, b'{"version":2}'],
)
def test_files_that_are_none(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "no.json").write_bytes(text)
    with pytest.raises(ValueError, match=r"no\.json: (no JSON|not a revealed order)"):
        detconv.Reveal.load(tmp_path / "no.json")


def long_reveal(terms: int, order: str) -> detconv.Reveal:
    """A reveal of a 1x1 convolution of so many channels, as a file may claim one."""
    r = detconv.reveal(box("naive"), (1, 4, 2, 2), (1, 4, 1, 1), bias=False)
    data = json.loads(json.dumps(r.to_dict()))
    data["key"] |= {"input_shape": [1, terms, 2, 2], "weight_shape": [1, terms, 1, 1], "function": "f" * 10**5}
    data["parts"][0]["summations"] = [f'naive order="{order}"']
    return detconv.Reveal.from_dict(data)


def halves(depth: int) -> str:
    """Nested pairs: the text of 2^depth terms, of as many items."""
    text = [f"f{k}" for k in range(2**depth)]
    while len(text) > 1:
        text = [f"{one} [{other}]" for one, other in zip(text[::2], text[1::2], strict=True)]
    return text[0]


@pytest.mark.parametrize(
    ("terms", "order"),
    [
        (2**30, f"{2**30}x(+1){{[f0]}}"),
        (2**30, f"2x(+{2**29}){{{2**29}x(+1){{m0}}}}"),
        (2**17, halves(17)),
        (2**12, " ".join(f"f{k}" for k in range(2**12 - 1, -1, -1))),
        (3**19, "".join(f"3x(+{3**k}){{[" for k in range(19)) + "f0" + "]}" * 19),
    ],
)
def test_words_and_pictures_of_long_orders_are_bounded(terms: int, order: str) -> None:
    r = long_reveal(terms, order)
    assert len(repr(r)) < 500
    assert len(str(r)) < 500
    assert len(r.explain()) < 5000
    assert len(r._repr_html_()) < 8000
    assert len(r.orders[0].words) <= 400
    assert len(repr(r.orders[0].summation)) < 500
    with pytest.raises(ValueError, match="can be drawn") if terms > 2**14 else nullcontext():
        pytest.importorskip("matplotlib")
        r.plot()


@given(st.tuples(*[st.integers(1, 6)] * 3), st.permutations([0, 1, 2]), st.sampled_from("fm"), st.booleans())
def test_texts_of_nests_are_canonical(
    extents: tuple[int, int, int], sequence: list[int], letter: str, first: bool
) -> None:
    terms, nest = math.prod(extents), texts.nest_text(extents, tuple(sequence), letter)
    text = f"bias {nest}" if first else f"{nest} bias"
    if terms > 2:
        assert trees.canonical(text, terms) == text
    found = words.loops_as_order(trees.canonical(text, terms), ("c", "kh", "kw"), extents)
    assert found is not None
    x, w, b = (
        made((1, extents[0], *extents[1:]), np.float32, 1),
        made((1, *extents), np.float32, 2),
        made((1,), np.float32, 3),
    )
    assert_same_bits(
        detconv.conv2d(x, w, b, summation=found), detconv.conv2d(x, w, b, summation=detconv.Summation(order=text))
    )


def test_a_notebook_shows_the_orders() -> None:
    r = detconv.reveal(patchwork, (2, 6, 7, 8), (5, 6, 3, 3), padding=1)
    shown = r._repr_html_()
    for order in r.orders:
        assert f'<th scope="row">{order.name}</th>' in shown
        assert order.where in shown
        assert order.words in shown
    assert "patchwork (" in shown
    assert "&lt;lambda&gt;" in detconv.reveal(box("naive"), *SHAPES)._repr_html_()


def test_a_notebook_shows_the_tree() -> None:
    pytest.importorskip("matplotlib")
    figure = detconv.reveal(box("naive"), *SHAPES).plot()
    assert figure._repr_png_().startswith(b"\x89PNG")  # type: ignore[attr-defined]


def test_the_key_says_what_it_holds_for() -> None:
    key = detconv.reveal(box("naive"), *SHAPES).key
    assert key["dtype"] == "float32"
    assert key["function"].endswith("<lambda>")
    assert {"library", "version", "machine", "cpu", "layout", "environment", "stride", "pass_"} <= key.keys()


def test_words() -> None:
    r = detconv.reveal(box("naive order=kh,kw,c"), *SHAPES)
    assert r.orders[0].words == "kh, kw, channels in sequence, fused, bias last"
    text = r.explain()
    assert "kh, kw, channels in sequence, fused, bias last" in text
    assert "Not known" in text
    assert repr(r) == "<Reveal exact, 100.000% of the bits: naive order=kh,kw,c>"
    assert set(STATUSES) == {"exact", "partial", "transform", "nondeterministic", "not_a_tree", "mistake"}


def test_another_call_than_the_revealed_one_is_refused() -> None:
    r = detconv.reveal(box("naive", padding=1), *SHAPES, padding=1)
    x, w, b = arrays_for(r)
    with pytest.raises(ValueError, match=r"hold for padding \(1, 1\); got padding \(0, 0\)"):
        detconv.conv2d(x, w, b, summation=r)
    with pytest.raises(ValueError, match=r"hold for input_shape \(1, 6, 7, 8\); got input_shape \(1, 6, 6, 8\)"):
        detconv.conv2d(np.ascontiguousarray(x[:, :, :6]), w, b, padding=1, summation=r)
    with pytest.raises(ValueError, match="hold for bias True; got bias False"):
        detconv.conv2d(x, w, None, padding=1, summation=r)
    with pytest.raises(ValueError, match="dtype float32; got dtype float64"):
        detconv.conv2d(x.astype(float), w.astype(float), np.zeros(5), padding=1, summation=r)
    with pytest.raises(ValueError, match="of conv2d, and not of conv2d_weight"):
        detconv.conv2d_weight(x, w.shape, np.zeros(r.geometry.output_shape, np.float32), padding=1, summation=r)
    with pytest.raises(ValueError, match="takes no revealed orders"):
        detconv.conv2d_bias(x, summation=r)  # type: ignore[arg-type]


def test_results_of_any_library_are_taken() -> None:
    class OnlyDLPack:
        def __init__(self, array: Array) -> None:
            self.array = array

        def __dlpack__(self, **options: Any) -> Any:
            return self.array.__dlpack__(**options)

        def __dlpack_device__(self) -> tuple[int, int]:
            return self.array.__dlpack_device__()

    r = detconv.reveal(lambda x, w, b: OnlyDLPack(detconv.conv2d(x, w, b, summation="naive")), *SHAPES)
    assert r.status == "exact", r.reason
    r = detconv.reveal(lambda x, w, b: np.asfortranarray(detconv.conv2d(x, w, b, summation="naive")), *SHAPES)
    assert r.status == "exact", r.reason


# ---- Bad input ----


def test_functions_that_do_not_behave() -> None:
    def changes(x: Array, w: Array, b: Array | None) -> Array:
        y = detconv.conv2d(x, w, b)
        x *= 2
        return y

    def raises(x: Array, w: Array, b: Array | None) -> Array:
        raise KeyError("no such layer")

    with pytest.raises(ValueError, match=r"changes\) changed its argument input"):
        detconv.reveal(changes, *SHAPES)
    with pytest.raises(RuntimeError, match=r"raises\) raised KeyError") as raised:
        detconv.reveal(raises, *SHAPES)
    assert isinstance(raised.value.__cause__, KeyError)
    with pytest.raises(ValueError, match=r"must return shape \(1, 5, 5, 7\) .*; got \(1, 5, 7, 7\)"):
        detconv.reveal(box("naive", padding=(1, 0)), (1, 6, 5, 8), (5, 6, 1, 2))
    with pytest.raises(TypeError, match="must return float32, the type of its inputs; got float64"):
        detconv.reveal(lambda x, w, b: detconv.conv2d(x, w, b).astype(float), *SHAPES)
    with pytest.raises(TypeError, match="fn must be callable; got str"):
        detconv.reveal("conv2d", *SHAPES)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="finite"):
        detconv.reveal(lambda x, w, b: detconv.conv2d(x, w, b) * np.float32(np.nan), *SHAPES)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"input_shape": (6, 7, 8)}, "input_shape must be 4 sizes"),
        ({"weight_shape": (5, 4, 3, 2)}, "channels"),
        ({"pass_": "backward"}, "pass_ must be one of forward, input_gradient, weight_gradient; got 'backward'"),
        ({"dtype": "float16"}, "dtype must be float32 or float64; got 'float16'"),
        ({"arrays": "jax"}, "arrays must be one of numpy, torch, or None; got 'jax'"),
        ({"layout": "nhwc"}, "layout must be one of contiguous, channels_last; got 'nhwc'"),
        ({"budget_s": 0}, "budget_s must be positive; got 0"),
        ({"stride": 0}, "stride"),
    ],
)
def test_arguments_are_checked(change: dict[str, Any], match: str) -> None:
    arguments = {"input_shape": SHAPES[0], "weight_shape": SHAPES[1]} | change
    with pytest.raises(ValueError, match=match):
        detconv.reveal(box("naive"), **arguments)


def test_a_list_of_one_is_for_both_axes() -> None:
    """As the engine takes it; a file may have it too."""
    one: Any = {"stride": (2,), "padding": [1], "dilation": [1]}
    r = detconv.reveal(box("naive", stride=2, padding=1), *SHAPES, **one)
    assert r.geometry == passes.Geometry.of(*SHAPES, stride=2, padding=1)
    x, w, b = arrays_for(r)
    assert_same_bits(detconv.conv2d(x, w, b, **one, summation=r), box("naive", stride=2, padding=1)(x, w, b))


def test_a_keyboard_interrupt_ends_it() -> None:
    calls = 0

    def fn(x: Array, w: Array, b: Array | None) -> Array:
        nonlocal calls
        calls += 1
        if calls == 12:
            raise KeyboardInterrupt
        return detconv.conv2d(x, w, b, summation="naive")

    with pytest.raises(KeyboardInterrupt):
        detconv.reveal(fn, *SHAPES)


def test_progress_is_shown_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import sys

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    detconv.reveal(box("naive"), *SHAPES)
    out, err = capsys.readouterr()
    assert out == ""
    assert "tree: " in err
    assert "\n" not in err
    assert err.split("\r")[-2].strip() == ""


# ---- Passes as forward convolutions ----


@pytest.mark.parametrize("geometry", [{}, *GEOMETRIES], ids=str)
@pytest.mark.parametrize("pass_", passes.PASSES)
def test_parts_of_a_pass_are_the_pass(geometry: dict[str, Any], pass_: str) -> None:
    g = passes.Geometry.of((2, 6, 9, 8), (6, 6 // geometry.get("groups", 1), 3, 3), pass_=pass_, **geometry)
    image, panel = (
        made(g.image_shape, np.float32, 1, "small integers"),
        made(g.panel_shape, np.float32, 2, "small integers"),
    )
    given: tuple[Any, ...] = (image, panel, None)
    if pass_ == "input_gradient":
        given = (g.input_shape, panel, image)
    elif pass_ == "weight_gradient":
        given = (image, g.weight_shape, panel)
    name = {"forward": "conv2d", "input_gradient": "conv2d_input", "weight_gradient": "conv2d_weight"}[pass_]
    expected = getattr(detconv, name)(*given, **geometry)
    result = np.zeros(g.result_shape, np.float32)
    for part in passes.parts(g):
        got, _ = replay.compute(part, part.image(image), part.panel(panel), None, detconv.Summation())
        part.select(result)[...] = got
        assert np.array_equal(part.panel(part.spread(part.panel(panel))), part.panel(panel))
    assert_same_bits(result, expected)
