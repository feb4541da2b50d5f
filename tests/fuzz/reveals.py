"""Files of revealed orders with something changed: refused by a ValueError, or as good as any."""

from __future__ import annotations

import copy
import json
import tempfile
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

import detconv
from bits import Array, made
from fuzz.refusals import tried

_VALUES: list[Any] = [None, True, -1, 0, 1, 2, 3, 7, 2**31, 2**40, 10**30, 0.5, 1e300, float("nan"), float("inf")]
_VALUES += ["", "exact", "partial", "float64", "input_gradient", "weight_gradient", "same", "\ud800", "f" * 1000]
_VALUES += ["naive", 'naive order="f0 bias"', 'naive order="36x(+1){[m0]} bias"', 'naive order="bias 36x(-1){f35}"']
_VALUES += [
    'naive order="281474976710656x(+281474976710656){f0} bias"',
    [],
    {},
    [1, 1],
    [2, 6, 7, 8],
    [[0, 1]],
    [[-1, 5]],
]


@cache
def _originals() -> list[str]:
    """One order, several, none, and the phases of a transposed convolution."""

    def patched(x: Array, w: Array, b: Array | None) -> Array:
        y = detconv.conv2d(x, w, b, summation="naive")
        y[:, 1:, 2:] = detconv.conv2d(x, w, b, summation="naive order=kh,kw,c")[:, 1:, 2:]
        return y

    def transposed(x: Array, w: Array, b: Array | None) -> Array:
        return detconv.conv_transpose2d(x, w, b, stride=2, summation="naive")

    shapes = (2, 4, 5, 4), (3, 4, 3, 3)
    found = [
        detconv.reveal(patched, *shapes),
        detconv.reveal(lambda x, w, b: detconv.conv2d(x, w, summation="kahan"), *shapes, bias=False),
        detconv.reveal(transposed, (1, 4, 3, 3), (4, 3, 3, 3), stride=2, transposed=True),
    ]
    return [json.dumps(one.to_dict()) for one in found]


@st.composite
def _texts(draw: st.DrawFn) -> bytes:
    text = draw(st.sampled_from(range(3)).map(lambda number: _originals()[number]))
    data = json.loads(text)
    for _ in range(draw(st.integers(0, 3))):
        _change(draw, data)
    changed = json.dumps(data).encode("utf-8", "surrogatepass")
    if draw(st.integers(0, 3)) == 0:
        at, end = sorted(draw(st.tuples(*[st.integers(0, len(changed))] * 2)))
        changed = changed[:at] + draw(st.binary(max_size=4)) + changed[draw(st.sampled_from([at, end])) :]
    return changed


def _change(draw: st.DrawFn, data: Any) -> None:
    """Replace, drop or double something, at any depth."""
    at = data
    while True:
        places = list(at) if isinstance(at, dict) else range(len(at))
        if not places:
            return
        place = draw(st.sampled_from(list(places)))
        if isinstance(at[place], dict | list) and draw(st.integers(0, 3)):
            at = at[place]
            continue
        match draw(st.sampled_from(["replace", "drop", "double"])):
            case "drop":
                del at[place]
            case "double" if isinstance(at, list):
                at.insert(place, at[place])
            case _:
                at[place] = copy.deepcopy(draw(st.sampled_from(_VALUES)))
        return


EXAMPLES = _texts() | st.binary(max_size=60)


def check(text: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "orders.json"
        path.write_bytes(text)
        found, _ = tried(lambda: detconv.Reveal.load(path), 800)
        if found is None:
            return
        found.save(path)
        assert detconv.Reveal.load(path).to_dict() == found.to_dict()
    for shown in (repr(found), found.explain(), found._repr_html_()):
        assert len(shown) < 50_000
        shown.encode("utf-8")
    _replay(found)


def _replay(found: detconv.Reveal) -> None:
    """In the orders of the file, or refused: an order may name a term twice and another not at all."""
    g = found.geometry
    if max(np.prod(shape) for shape in (g.image_shape, g.panel_shape, g.result_shape)) > 10**5:
        return
    dtype = np.dtype(g.dtype).type
    image, panel = made(g.image_shape, dtype, 1), made(g.panel_shape, dtype, 2)
    bias = made((g.outputs,), dtype, 3) if g.bias else None
    given: dict[str, Any] = {name: getattr(g, name) for name in ("stride", "padding", "dilation", "groups")}
    calls: dict[str, Any] = {
        "forward": partial(detconv.conv2d, image, panel, bias),
        "input_gradient": partial(detconv.conv2d_input, g.input_shape, panel, image),
        "weight_gradient": partial(detconv.conv2d_weight, image, g.weight_shape, panel),
    }
    call = calls[g.pass_]
    if g.transposed:
        call = partial(detconv.conv_transpose2d, image, panel, bias, output_padding=g.output_padding)
    result, _ = tried(lambda: call(**given, summation=found), 1500)
    assert result is None or (result.shape == g.result_shape and np.isfinite(result).all())
