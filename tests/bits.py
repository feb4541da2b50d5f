"""Bits, compared and made: what every test file shares.

Inputs come from a counter-based integer generator, so that they are the same on every platform and NumPy version, and
can be made again in C++ in five lines; hypothesis draws shapes, seeds and orders, never floating-point values.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

import detconv
from detconv.testing import instruction_set

Array = NDArray[Any]
DTYPES = (np.float32, np.float64)
PATIENCE = 600.0  # seconds until what does not end counts as hanging: on a busy machine a test may take minutes

# ---- Comparing ----


def unsigned(array: Array) -> Array:
    """The bit patterns of a float32 or float64 array, of any strides, as unsigned integers."""
    return np.array(array, order="C").view(np.uint32 if array.dtype == np.float32 else np.uint64)


def assert_same_bits(actual: Array, expected: Array, context: object = "") -> None:
    """Both are arrays of one dtype and shape, and every element has the same bits. `context` is shown on failure."""
    assert (type(actual), type(expected)) == (np.ndarray, np.ndarray), context
    assert actual.dtype == expected.dtype, f"{actual.dtype}, expected {expected.dtype} {context}"
    assert actual.shape == expected.shape, f"{actual.shape}, expected {expected.shape} {context}"
    got, want = unsigned(actual), unsigned(expected)
    wrong = np.flatnonzero(got != want)
    if wrong.size:
        where = tuple(int(i) for i in np.unravel_index(wrong[0], actual.shape))
        raise AssertionError(
            f"{wrong.size} of {actual.size} elements differ; first at {where}: "
            f"{actual[where]!r} ({got[where]:#x}), expected {expected[where]!r} ({want[where]:#x}) {context}"
        )


def sha256(array: Array) -> str:
    """The SHA-256 of the elements in C order, little-endian, whatever the strides and the byte order of the machine."""
    return hashlib.sha256(array.astype(array.dtype.newbyteorder("<"), order="C").tobytes()).hexdigest()


# ---- Making ----


def words(seed: int, size: int) -> NDArray[np.uint64]:
    """The first `size` outputs of SplitMix64 started at `seed` (Steele, Lea and Flood, OOPSLA 2014)."""
    z = np.uint64(seed % 2**64) + np.arange(1, size + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _uniform(word: NDArray[np.uint64], dtype: type) -> Array:
    """[-1, 1) in steps of 2^-23 (float32) or 2^-52 (float64): the top bits of the word, with no rounding."""
    digits = np.finfo(dtype).nmant
    top = (word >> np.uint64(63 - digits)).astype(np.int64) - (1 << digits)
    return (top.astype(np.float64) * 2.0**-digits).astype(dtype)


def _small_integers(word: NDArray[np.uint64], dtype: type) -> Array:
    """-8 ... 8: sums of a few thousand products are exact in float32."""
    return ((word % np.uint64(17)).astype(np.int64) - 8).astype(dtype)


def _bfloat16(word: NDArray[np.uint64], dtype: type) -> Array:
    """Eight significant bits, over a few exponents."""
    exponent = ((word >> np.uint64(32)) % np.uint64(9)).astype(np.int64) - 4
    return np.ldexp(((word % np.uint64(511)).astype(np.int64) - 255) / 256.0, exponent).astype(dtype)


def _raw(word: NDArray[np.uint64], dtype: type) -> Array:
    """Any bit pattern: NaN with payloads, infinities and subnormals too."""
    return (word >> np.uint64(32)).astype(np.uint32).view(dtype) if dtype is np.float32 else word.view(dtype)


def _wide(word: NDArray[np.uint64], dtype: type) -> Array:
    """Finite, of every exponent from subnormal to overflow."""
    raw = _raw(word, dtype)
    return np.where(np.isfinite(raw), raw, _uniform(word, dtype))


def _special(word: NDArray[np.uint64], dtype: type) -> Array:
    """Half of them ordinary, half of them the values that IEEE 754 treats apart."""
    info = np.finfo(dtype)
    zeros = [0.0, -0.0]
    edges = [info.smallest_subnormal, info.tiny, -info.tiny, info.max, info.min, 1 + info.eps]
    table: Array = np.array([*zeros, *zeros, *edges, math.inf, -math.inf, math.nan, 1.0], dtype)
    chosen = table[((word >> np.uint64(8)) % np.uint64(len(table))).astype(np.int64)]
    return np.where(word % np.uint64(2) == 0, chosen, _uniform(word, dtype))


KINDS: dict[str, Callable[[NDArray[np.uint64], type], Array]] = {
    "uniform": _uniform,
    "small integers": _small_integers,
    "bfloat16": _bfloat16,
    "wide": _wide,
    "special": _special,
    "raw": _raw,
}


def made(shape: Sequence[int], dtype: type, seed: int, kind: str = "uniform") -> Array:
    """A C-contiguous array whose elements, in C order, come from the words of `seed`; `kind` is one of KINDS."""
    return np.ascontiguousarray(KINDS[kind](words(seed, math.prod(shape)), dtype).reshape(shape))


def relaid(array: Array, layout: str) -> Array:
    """The same values in the same shape, lying otherwise in memory; layout is one of LAYOUTS."""
    match layout:
        case "channels last":
            return np.moveaxis(np.ascontiguousarray(np.moveaxis(array, -3, -1)), -1, -3)
        case "reversed":
            return np.ascontiguousarray(array[..., ::-1, ::-1])[..., ::-1, ::-1]
        case "sliced":
            wide = np.full([2 * size + 1 for size in array.shape], np.nan, array.dtype)
            view = wide[tuple(slice(1, None, 2) for _ in array.shape)]
            view[...] = array
            return view
        case "read-only":
            array = array.copy()
            array.flags.writeable = False
            return array
        case _:
            return np.ascontiguousarray(array)


LAYOUTS = ("contiguous", "channels last", "reversed", "sliced", "read-only")

# ---- Layers ----


@dataclass(frozen=True)
class Layer:
    """One call of conv2d, all but the summation: conv2d(*layer.arrays, **layer.options, summation=...)."""

    input: Array
    weight: Array
    bias: Array | None
    options: dict[str, Any]

    @property
    def arrays(self) -> tuple[Array, Array, Array | None]:
        return self.input, self.weight, self.bias

    @property
    def terms(self) -> int:
        """K, the number of terms of one output."""
        return math.prod(self.weight.shape[1:])

    def __repr__(self) -> str:
        bias = "no bias" if self.bias is None else "bias"
        return f"Layer({self.input.shape}, {self.weight.shape}, {bias}, {self.input.dtype}, {self.options})"


def constructed(case: str, dtype: type, seed: int) -> Layer:
    """A 1x1 layer, 8 x 36 outputs, in which nearly every output is the case; `case` is one of CASES.

    "cancellation": all but one term cancel, and that one is far below their last place. "halfway": the exact sum is
    halfway between two numbers, or beside it by far less than an ulp. "subnormal": a few multiples of half the smallest
    subnormal. "overflow": the largest number plus half its ulp, or a hair less, or well within. "end to end": exponents
    from the smallest subnormal to the largest number.
    """
    info, rows, columns = np.finfo(dtype), 8, 36
    digits, hair = info.nmant + 1, 2.0 ** (-3 * info.nmant)

    def chosen(values: Sequence[float], shape: tuple[int, int], salt: int) -> Array:
        pick = words(seed + salt, math.prod(shape)) % np.uint64(len(values))
        return np.array(values, np.float64)[pick.astype(np.int64)].reshape(shape)

    noise_w, noise_x = made((rows, 6), dtype, seed), made((6, columns), dtype, seed + 1)
    noise = np.hstack([noise_w, -noise_w]), np.vstack([noise_x, noise_x])
    one = np.ones((1, columns))
    match case:
        case "cancellation":
            w, x = made((rows, 1), dtype, seed + 2) * hair, made((1, columns), dtype, seed + 3)
        case "halfway":
            whole = np.floor(2.0 ** (digits - 1) * (1 + np.abs(made((rows, 1), np.float64, seed + 2))))
            half, beside = chosen([0.5, -0.5], (rows, 1), 4), chosen([0, 0, hair, -hair], (rows, 1), 5)
            w = np.hstack([whole * chosen([1, -1], (rows, 1), 3), half, beside])
            scale = chosen([0.25, 1, 2, 8], (1, columns), 6)
            x = np.vstack([scale, scale, one])
        case "subnormal":
            exponent = int(info.minexp) - int(info.nmant) - 1
            w = np.ldexp(made((rows, 3), np.float64, seed + 2, "small integers"), exponent // 2)
            x = np.ldexp(made((3, columns), np.float64, seed + 3, "small integers"), exponent - exponent // 2)
            noise = np.empty((rows, 0)), np.empty((0, columns))
        case "overflow":
            largest_and_half_its_ulp = [float(info.max), 2.0 ** float(info.maxexp - digits - 1), 1.0]
            w = chosen([1, -1], (rows, 1), 3) * np.array(largest_and_half_its_ulp)
            x = np.vstack([one, chosen([1, 1, 1, -1], (1, columns), 4), chosen([0, 0, hair, -hair], (1, columns), 5)])
        case "end to end":
            w, x = made((rows, 6), dtype, seed + 2, "wide"), made((6, columns), dtype, seed + 3, "wide")
        case _:
            raise ValueError(case)
    mixed = np.argsort(words(seed + 7, noise[0].shape[1] + w.shape[1]))
    weight: Array = np.hstack([noise[0], w])[:, mixed].astype(dtype)
    image: Array = np.vstack([noise[1], x])[mixed].astype(dtype)
    return Layer(image.reshape(1, -1, 6, 6), weight.reshape(rows, -1, 1, 1), None, {})


CASES = ("cancellation", "halfway", "subnormal", "overflow", "end to end")

# ---- Drawing ----


@st.composite
def layers(
    draw: st.DrawFn, dtypes: Sequence[type] = DTYPES, kinds: Sequence[str] = tuple(KINDS), largest: int = 4
) -> Layer:
    """Small layers of every geometry: groups, stride, dilation, padding of all sorts, batch or none, bias or none."""
    small, size = st.integers(1, 3), st.integers(1, largest)
    groups, channels, per_group = draw(small), draw(size), draw(small)
    kernel, dilation = draw(st.tuples(small, size)), draw(st.tuples(small, small))
    padding: Any = draw(st.one_of(st.sampled_from(["same", "valid"]), st.tuples(*[st.integers(0, 3)] * 2)))
    stride = (1, 1) if padding == "same" else draw(st.tuples(small, small))
    # The kernel fits whatever the padding, and rows and columns may be left over.
    image = [d * (k - 1) + 1 + draw(st.integers(0, largest)) for k, d in zip(kernel, dilation, strict=True)]
    batch = draw(st.sampled_from([(), (1,), (2,), (3,)]))

    dtype, kind, seed = draw(st.sampled_from(dtypes)), draw(st.sampled_from(kinds)), draw(st.integers(0, 2**32))
    return Layer(
        made((*batch, groups * channels, *image), dtype, seed, kind),
        made((groups * per_group, channels, *kernel), dtype, seed + 1, kind),
        made((groups * per_group,), dtype, seed + 2, kind) if draw(st.booleans()) else None,
        {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups},
    )


LOOP_ORDERS = ("c,kh,kw", "c,kw,kh", "kh,c,kw", "kh,kw,c", "kw,c,kh", "kw,kh,c")
METHODS = ("naive", "pairwise", "kahan", "fp64", "exact")


@st.composite
def summations(draw: st.DrawFn, methods: Sequence[str] = METHODS) -> str:
    """The text of a summation whose order names the loops: every method, sequence, products, bias and block size."""
    method = draw(st.sampled_from(methods))
    fields = {
        "order": draw(st.sampled_from(LOOP_ORDERS)),
        "products": draw(st.sampled_from(["fused", "rounded"])),
        "bias": draw(st.sampled_from(["last", "first"])),
    }
    if method == "pairwise":
        fields["block"] = str(draw(st.sampled_from([1, 2, 3, 4, 7, 8, 64])))
    return " ".join([method, *(f"{name}={value}" for name, value in fields.items())])


@st.composite
def explicit_orders(draw: st.DrawFn, terms: int, bias: bool) -> str:
    """A text in the order language in which every one of the terms, and the bias if there is one, appears once."""

    def items(start: int, step: int, count: int, depth: int) -> list[str]:
        """Items for the terms start, start + step, ...: `count` of them, at least one."""
        if count == 1:
            return [f"{draw(st.sampled_from('fm'))}{start}"]
        ways = ["split", "reverse", "list"] + ["nest", "double"] * (depth < 4)
        factors = [n for n in range(2, count) if count % n == 0]
        ways += ["blocks", "interleave"] * bool(factors)
        match draw(st.sampled_from(ways)):
            case "list":
                letter = draw(st.sampled_from("fm"))
                return [f"{letter}{k}" for k in draw(st.permutations(range(start, start + step * count, step)))]
            case "reverse":
                return repeated(count, -step, [f"{draw(st.sampled_from('fm'))}{start + (count - 1) * step}"])
            case "nest":
                return ["[" + " ".join(items(start, step, count, depth + 1)) + "]"]
            case "double":
                return ["d[" + " ".join(items(start, step, count, depth + 1)) + "]"]
            case "blocks":
                n = draw(st.sampled_from(factors))
                return repeated(n, step * (count // n), items(start, step, count // n, depth + 1))
            case "interleave":
                n = draw(st.sampled_from(factors))
                return repeated(n, step, items(start, step * n, count // n, depth + 1))
            case _:
                n = draw(st.integers(1, count - 1))
                return items(start, step, n, depth) + items(start + n * step, step, count - n, depth)

    def repeated(count: int, stride: int, body: list[str]) -> list[str]:
        return [f"{count}x({stride:+d})" + "{" + " ".join(body) + "}"]

    whole = items(0, 1, terms, 0)
    if bias:
        whole.insert(draw(st.sampled_from([0, len(whole)])), "bias")
    return " ".join(whole)


# ---- Running ----


def instruction_sets() -> tuple[str, ...]:
    """Those that this build has and this processor runs."""
    usable = detconv.build_info()["instruction_sets_usable"]
    assert isinstance(usable, list)
    return tuple(usable)


def on_every_instruction_set(call: Callable[[], Array], threads: Sequence[int] = (2,)) -> dict[str, Array]:
    """What `call` returns on every usable instruction set, on each number of threads: the variants, by name."""
    variants = {}
    for name in instruction_sets():
        for count in threads:
            detconv.set_num_threads(count)
            with instruction_set(name):
                variants[f"{name}, threads={count}"] = call()
    return variants


def assert_consistent(variants: Mapping[str, Array]) -> Array:
    """All variants have the same bits; returns one of them.

    Fails too where that would mean nothing: where fewer than two ran, or where most values are infinite or NaN.
    """
    assert len(variants) >= 2, f"a comparison needs two variants; ran: {', '.join(variants) or 'none'}"
    (first, array), *others = variants.items()
    for name, other in others:
        assert_same_bits(other, array, f"{name} against {first}")
    assert len({sha256(variant) for variant in variants.values()}) == 1
    assert np.isfinite(array).mean() > 0.5, "most values are not finite"
    return array


# ---- Passes ----


@dataclass(frozen=True)
class Pass:
    """One call of a pass, all but the summation: `run(detconv, summation)` or `run(reference, summation)`."""

    name: str
    arguments: tuple[Any, ...]
    options: dict[str, Any]

    def run(self, module: Any, summation: Any) -> Array:
        result: Array = getattr(module, self.name)(*self.arguments, **self.options, summation=summation)
        return result

    def mapped(self, change: Callable[[Array], Array]) -> Pass:
        """The same call with its arrays changed."""
        changed = (change(argument) if isinstance(argument, np.ndarray) else argument for argument in self.arguments)
        return replace(self, arguments=tuple(changed))

    def relaid(self, layout: str) -> Pass:
        """The same call with its arrays, all but the bias, in one of LAYOUTS."""
        return self.mapped(lambda array: relaid(array, layout) if array.ndim > 1 else array)

    def __repr__(self) -> str:
        shown = (f"{a.dtype}{a.shape}" if isinstance(a, np.ndarray) else repr(a) for a in self.arguments)
        return f"{self.name}({', '.join(shown)}, {self.options})"


def output_shape(layer: Layer) -> tuple[int, ...]:
    """The shape of what conv2d returns; layer.options holds pairs, as `layers` draws them."""
    (*batch, _, height, width), (outputs, _, *kernel), options = layer.input.shape, layer.weight.shape, layer.options
    if options["padding"] == "same":
        return (*batch, outputs, height, width)
    padding = (0, 0) if options["padding"] == "valid" else options["padding"]
    axes = zip((height, width), padding, options["dilation"], kernel, options["stride"], strict=True)
    return (*batch, outputs, *((size + 2 * p - d * (k - 1) - 1) // s + 1 for size, p, d, k, s in axes))


GRADIENTS = ("conv2d_input", "conv2d_weight", "conv2d_bias")


@st.composite
def gradients(
    draw: st.DrawFn,
    drawn: st.SearchStrategy[Layer] | None = None,
    names: Sequence[str] = GRADIENTS,
    kinds: Sequence[str] = tuple(KINDS),
) -> Pass:
    """A gradient of one of the drawn layers, of `layers` by default; kinds: of the gradient of its output."""
    layer, name = draw(layers(kinds=kinds) if drawn is None else drawn), draw(st.sampled_from(names))
    seed, kind = draw(st.integers(0, 2**32)), draw(st.sampled_from(kinds))
    grad_output = made(output_shape(layer), layer.input.dtype.type, seed, kind)
    match name:
        case "conv2d_input":
            return Pass(name, (layer.input.shape, layer.weight, grad_output), layer.options)
        case "conv2d_weight":
            return Pass(name, (layer.input, layer.weight.shape, grad_output), layer.options)
        case _:
            return Pass(name, (grad_output,), {})


@st.composite
def transposed(
    draw: st.DrawFn, dtypes: Sequence[type] = DTYPES, kinds: Sequence[str] = tuple(KINDS), largest: int = 4
) -> Pass:
    """Small transposed convolutions of every geometry, output padding too, batch or none, bias or none."""
    small, size = st.integers(1, 3), st.integers(1, largest)
    groups, channels, per_group = draw(small), draw(size), draw(small)
    kernel, image, pairs = draw(st.tuples(small, size)), draw(st.tuples(size, size)), st.tuples(small, small)
    stride, dilation = draw(pairs), draw(pairs)
    extra, padding = [], []
    for length, k, s, d in zip(image, kernel, stride, dilation, strict=True):
        extra.append(draw(st.integers(0, max(s, d) - 1)))
        rest = (length - 1) * s + d * (k - 1) + extra[-1]  # the padding leaves at least one pixel
        padding.append(draw(st.integers(0, min(3, rest // 2))))
    batch = draw(st.sampled_from([(), (1,), (2,), (3,)]))
    dtype, kind, seed = draw(st.sampled_from(dtypes)), draw(st.sampled_from(kinds)), draw(st.integers(0, 2**32))
    arrays = (
        made((*batch, groups * channels, *image), dtype, seed, kind),
        made((groups * channels, per_group, *kernel), dtype, seed + 1, kind),
        made((groups * per_group,), dtype, seed + 2, kind) if draw(st.booleans()) else None,
    )
    options = {"stride": stride, "padding": tuple(padding), "output_padding": tuple(extra)}
    return Pass("conv_transpose2d", arrays, {**options, "groups": groups, "dilation": dilation})


def gradient_summations(methods: Sequence[str] = METHODS) -> st.SearchStrategy[str]:
    """As `summations`, and the samples in a tree or in sequence."""
    return st.builds(str.__add__, summations(methods), st.sampled_from(["", " samples=sequence"]))
