"""Every pass on every geometry, layout, summation and kind of data, against the reference, bit for bit."""

from __future__ import annotations

from typing import NamedTuple

from hypothesis import strategies as st

import detconv
from bits import (
    LAYOUTS,
    Layer,
    Pass,
    assert_same_bits,
    explicit_orders,
    gradient_summations,
    gradients,
    instruction_sets,
    layers,
    summations,
    transposed,
)
from detconv import reference
from detconv.testing import instruction_set


class Example(NamedTuple):
    call: Pass
    summation: str
    layout: str
    instruction_set: str
    threads: int


def _forward(layer: Layer) -> Pass:
    return Pass("conv2d", layer.arrays, layer.options)


@st.composite
def _examples(draw: st.DrawFn) -> Example:
    largest = draw(st.sampled_from([2, 4, 6]))
    kind = draw(st.sampled_from(["forward", "explicit", "gradient", "transposed"]))
    summation = draw(gradient_summations() if kind == "gradient" else summations())
    match kind:
        case "gradient":
            call = draw(gradients(layers(largest=largest)))
        case "transposed":
            call = draw(transposed(largest=largest))
        case _:
            layer = draw(layers(largest=largest))
            call = _forward(layer)
            if kind == "explicit":
                summation = f'naive order="{draw(explicit_orders(layer.terms, True))}"'
    where = draw(st.sampled_from(instruction_sets())), draw(st.integers(1, 3))
    return Example(call, summation, draw(st.sampled_from(LAYOUTS)), *where)


EXAMPLES = _examples()


def check(example: Example) -> None:
    expected = example.call.run(reference, example.summation)
    threads = detconv.get_num_threads()
    detconv.set_num_threads(example.threads)
    try:
        with instruction_set(example.instruction_set):
            actual = example.call.relaid(example.layout).run(detconv, example.summation)
    finally:
        detconv.set_num_threads(threads)
    assert_same_bits(actual, expected, str(example))
