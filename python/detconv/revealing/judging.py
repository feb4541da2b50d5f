"""Before the search: is it this convolution at all? Judged on random values, and diagnosed if it is not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from detconv.revealing.passes import Array, Geometry
from detconv.verdict.diagnose import Diagnosis, diagnose
from detconv.verdict.hypotheses import ROWS
from detconv.verdict.judge import judge_problem
from detconv.verdict.problem import Problem

if TYPE_CHECKING:
    from detconv.revealing.trials import Trials

# What a diagnosis says of the arithmetic, and not of what is convolved: the search tells such functions from others.
_OF_ARITHMETIC = frozenset(row.name for row in ROWS if row.proves)


def mistaken(trials: Trials) -> tuple[str, str]:
    """What the function computes in place of the convolution, in words, or "" where no known mistake gives it; and how
    many outputs no order of additions gives, or "" where there are none."""
    geometry = trials.data.geometry
    verdict = judge_problem(trials.result(0), _problem(geometry, *trials.operands(0)), geometry.dtype)
    if verdict.status not in ("unlikely", "mistake"):
        return "", ""
    count, beyond = verdict.counts["mistake"], ""
    if count:
        beyond = (
            f"{count} of {verdict.exact.size} outputs are further from the true sums than any order of additions in "
            f"{geometry.dtype} can carry them"
        )
    return _named(verdict.diagnosis), beyond


def other_shape(result: Array, geometry: Geometry, image: Array, panel: Array, bias: Array | None) -> str:
    """What gives a result of another shape than the convolution has, or ""; of the forward pass only."""
    if geometry.pass_ != "forward":
        return ""
    rest: tuple[Any, ...] = geometry.stride, geometry.padding, geometry.dilation, geometry.groups
    back: dict[str, Any] = {"transposed": geometry.transposed, "output_padding": geometry.output_padding}
    try:
        return _named(diagnose(result, image, panel, bias, *rest, **back, dtype=geometry.dtype))
    except (ValueError, TypeError):  # no shape or type that an output has
        return ""


def _named(diagnosis: Diagnosis) -> str:
    first = diagnosis.first
    if first is None or first.name in _OF_ARITHMETIC:
        return ""
    share = "" if first.explains == 1 else f", which explains {100 * first.explains:.3g}% of its outputs"
    return f"{first.name}: {first.says}{share}"


def _problem(g: Geometry, image: Array, panel: Array, bias: Array | None) -> Problem:
    given: dict[str, tuple[Any, ...]] = {
        "forward": ("conv2d", image, panel, bias),
        "input_gradient": ("conv2d_input", g.input_shape, panel, image),
        "weight_gradient": ("conv2d_weight", image, g.weight_shape, panel),
    }
    if g.transposed:
        rest = g.stride, g.padding, g.output_padding, g.groups, g.dilation
        return Problem.of("conv_transpose2d", image, panel, bias, *rest)
    return Problem.of(*given[g.pass_], g.stride, g.padding, g.dilation, g.groups)
