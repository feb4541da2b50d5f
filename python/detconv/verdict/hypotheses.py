"""The mistakes that a diagnosis tries, one row each: from the simplest to the most general.

A row's function is given the case and yields guesses, each a problem that may have been computed instead and what was
done with its sums. To add a mistake, write such a function and its row; testing and ranking are ``diagnose``'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from detconv.verdict import (
    borders,
    fused,
    geometry,
    groups,
    parts,
    places,
    precision,
    strides,
    subnormals,
    values,
    wires,
)
from detconv.verdict.case import Case, Guess


class Row(NamedTuple):
    """A kind of mistake.

    proves: its function has weighed the evidence that the candidate has for a guess; what remains is that it fits.
    always: tried even where the candidate is within roundings of the right sums.
    passes: those whose outputs may have it; all unless given.
    settles: where it explains everything by itself, without a number that was fitted, no later kind is tried: an output
        that is constant, or only the bias, would be explained by many.
    """

    name: str
    guesses: Callable[[Case], Iterator[Guess]]
    proves: bool = False
    always: bool = False
    settles: bool = False
    passes: tuple[str, ...] = ()


# Kinds that say nothing of a transposed convolution yet.
_STRAIGHT = ("conv2d", "conv2d_input", "conv2d_weight")

ROWS = (
    Row("subnormals flushed", subnormals.flushed, proves=True),
    Row("only the bias", values.bias_alone, settles=True),
    Row("not computed", places.not_written, settles=True),
    Row("some of the terms only", parts.some_only),
    Row("activation", values.activated),
    Row("kernel flipped", geometry.flipped),
    Row("kernel flipped in one axis", geometry.flipped_in_one),
    Row("kernel transposed", geometry.transposed),
    Row("height and width swapped", geometry.axes_swapped),
    Row("padding missing", geometry.padding_missing),
    Row("stride ignored", geometry.stride_ignored),
    Row("dilation ignored", geometry.dilation_ignored),
    Row("wrong stride", geometry.stride_off),
    Row("wrong dilation", geometry.dilation_off),
    Row("output shifted", places.shifted),
    Row("padding on the wrong side", geometry.window_off),
    Row("wrong padding", geometry.padding_off),
    Row("other arguments", geometry.arguments_off),
    Row("padding of another mode", geometry.padding_mode),
    Row("padding of another mode and size", borders.resized, passes=_STRAIGHT),
    Row("kernel flipped, other padding", borders.flipped, passes=_STRAIGHT),
    Row("padding of a value", geometry.padding_value),
    Row("transposed convolution", geometry.transposed_convolution),
    Row("bias missing", values.bias_missing),
    Row("bias doubled", values.bias_doubled),
    Row("bias subtracted", values.bias_subtracted),
    Row("bias of other channels", values.bias_of_others),
    Row("bias along another axis", values.bias_elsewhere),
    Row("sign", values.negated),
    Row("output turned", places.turned),
    Row("view read as packed", strides.packed),
    Row("wrong batch stride", strides.batch_stride, passes=_STRAIGHT),
    Row("weight read in another layout", places.weight_layout),
    Row("input read in another layout", places.input_layout),
    Row("output in another layout", places.output_layout),
    Row("input channels mixed up", wires.rewired),
    Row("groups mixed up", groups.mixed, passes=_STRAIGHT),
    Row("depth multiplier laid out otherwise", groups.relaid, passes=_STRAIGHT),
    Row("output channels mixed up", places.moved(1)),
    Row("samples mixed up", places.moved(0)),
    Row("rows mixed up", places.moved(2)),
    Row("columns mixed up", places.moved(3)),
    Row("input added", values.input_added),
    Row("input added and activation", fused.residual),
    Row("activation of the input", fused.activated_input, passes=_STRAIGHT),
    Row("terms missing", parts.dropped),
    Row("terms twice", parts.doubled),
    Row("terms subtracted", parts.negated),
    Row("TF32 inputs", precision.rounded_inputs("TF32"), proves=True, always=True),
    Row("float16 inputs", precision.rounded_inputs("float16"), proves=True, always=True),
    Row("TF32 or float16 inputs", precision.rounded_inputs("TF32", "float16"), proves=True, always=True),
    Row("bfloat16 inputs", precision.rounded_inputs("bfloat16"), proves=True, always=True),
    Row("float32 inputs", precision.rounded_inputs("float32"), proves=True, always=True),
    Row("split operands", precision.split_inputs, proves=True, always=True),
    Row("samples averaged", values.samples_averaged),
    Row("scaled", values.scaled),
    Row("output rounded", precision.rounded_output, proves=True),
    Row("narrow sums", precision.narrow_sums, proves=True),
    Row("constant added", values.constant_added),
    Row("scaled and shifted", fused.normalised),
    Row("addend", fused.addend),
    Row("terms weighed otherwise", parts.weighed),
    Row("transform", precision.transform, proves=True),
    Row("left over", places.left_over),
)
