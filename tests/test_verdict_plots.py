"""The pictures of a verdict: they can be drawn of anything, and what they show is what the verdict says."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib")

import detconv
from bits import made
from detconv.verdict import plots
from detconv.verdict.judge import Verdict

X, W, B = made((2, 32, 8, 10), np.float32, 1), made((5, 32, 3, 3), np.float32, 2), made((5,), np.float32, 3)
G = made((2, 5, 8, 10), np.float32, 4)
Y = detconv.conv2d(X, W, B, padding=1, summation="naive")


def changed(**elements: Any) -> Verdict:
    """The verdict on an output with some elements changed: ``changed(to={place: value})``."""
    candidate = Y.copy()
    for place, value in elements["to"].items():
        candidate[place] = value
    return detconv.judge(candidate, X, W, B, padding=1)


def with_infinite_weight() -> Verdict:
    weight = W.copy()
    weight[0, 0, 0, 0] = np.inf
    return detconv.judge(Y, X, weight, B, padding=1)


def input_gradient() -> Verdict:
    return detconv.judge_input_gradient(detconv.conv2d_input(X.shape, W, G, padding=1), X.shape, W, G, padding=1)


def weight_gradient() -> Verdict:
    candidate = detconv.conv2d_weight(X, W.shape, G, padding=1, summation="naive")
    candidate[3, 4, 2, 0] += 1
    return detconv.judge_weight_gradient(candidate, X, W.shape, G, padding=1)


CASES: dict[str, Callable[[], Verdict]] = {
    "rounding": lambda: changed(to={}),
    "identical": lambda: detconv.judge(detconv.conv2d(X, W, B, padding=1, summation="exact"), X, W, B, padding=1),
    "mistake": lambda: changed(to={(0, 1, 2, 3): 1e3, (1, 2, 3, 4): Y[1, 2, 3, 4] + np.float32(1e-2)}),
    "not finite": lambda: changed(to={(0, 1, 2, 3): np.nan, (0, 1, 2, 4): np.inf}),
    "infinite weight": with_infinite_weight,
    "all zero": lambda: detconv.judge(Y * 0, X * 0, W, padding=1),
    "one output": lambda: detconv.judge(Y[0, :, 3:4, 3:4], X[0, :, 2:5, 2:5], W, B),
    "no samples": lambda: detconv.judge(Y[:0], X[:0], W, B, padding=1),
    "unbatched": lambda: detconv.judge(Y[1], X[1], W, B, padding=1),
    "one row": lambda: detconv.judge(detconv.conv2d(X[:, :, :1], W[:, :, :1]), X[:, :, :1], W[:, :, :1]),
    "input gradient": input_gradient,
    "weight gradient": weight_gradient,
    "half": lambda: detconv.judge(Y.astype(np.float16), X, W, B, padding=1),
}


@pytest.fixture(scope="module")
def verdicts() -> dict[str, Verdict]:
    return {name: case() for name, case in CASES.items()}


@pytest.mark.parametrize("name", CASES)
def test_anything_can_be_drawn(name: str, verdicts: dict[str, Verdict]) -> None:
    verdict = verdicts[name]
    figure = verdict.plot()
    file = io.BytesIO()
    figure.savefig(file, dpi=40)  # warnings are errors
    assert file.getvalue().startswith(b"\x89PNG")
    assert figure.get_suptitle() == plots.headline(verdict)
    assert figure.get_suptitle().startswith(verdict.status.capitalize())
    titles = [axes.get_title(loc="left") for axes in figure.axes if axes.get_title(loc="left")]
    assert titles == ([panel.title(verdict) for panel in plots.PANELS] if verdict.exact.size else [])
    if verdict.exact.size:
        assert all(panel.words(verdict).endswith(".") for panel in plots.PANELS)
    assert figure.canvas.manager is None  # no window, and nothing that pyplot keeps


def test_axes_have_the_names_of_the_pass(verdicts: dict[str, Verdict]) -> None:
    def labels(name: str) -> list[tuple[str, str]]:
        figure = verdicts[name].plot()
        return [(axes.get_ylabel(), axes.get_xlabel()) for axes in figure.axes[:2]]

    assert labels("rounding") == [("row", "column"), ("sample", "output channel")]
    assert labels("unbatched") == [("row", "column"), ("", "output channel")]
    assert labels("input gradient") == [("row", "column"), ("sample", "input channel")]
    assert labels("weight gradient") == [("kernel row", "kernel column"), ("output channel", "input channel")]


def test_a_map_shows_where_it_is(verdicts: dict[str, Verdict]) -> None:
    """One element that is off, and where the maps are beyond the bound."""

    def beyond(name: str) -> list[list[tuple[int, ...]]]:
        maps = [axes.images[0].get_array() for axes in verdicts[name].plot().axes[:2]]
        return [[tuple(map(int, at)) for at in np.argwhere(np.asarray(shown) > 1)] for shown in maps]

    assert beyond("rounding") == [[], []]
    assert beyond("mistake") == [[(2, 3), (3, 4)], [(0, 1), (1, 2)]]
    assert beyond("not finite") == [[(2, 3), (2, 4)], [(0, 1)]]
    assert beyond("weight gradient") == [[(2, 0)], [(3, 4)]]
    assert beyond("infinite weight")[1] == [(0, 0), (1, 0)]


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("no samples", "infinite weight")])
def test_a_histogram_has_every_element_that_is_off(name: str, verdicts: dict[str, Verdict]) -> None:
    verdict = verdicts[name]
    (histogram,) = (axes for axes in verdict.plot().axes if axes.get_ylabel() == "elements")
    within, beyond = (patch.get_data().values for patch in histogram.patches[:2])
    assert within.sum() + beyond.sum() == verdict.exact.size - verdict.counts["identical"]
    assert beyond.sum() == verdict.counts["mistake"]
    assert f"{verdict.counts['identical']} identical" in histogram.get_xlabel()


def test_the_share_of_the_bound(verdicts: dict[str, Verdict]) -> None:
    for verdict in verdicts.values():
        assert np.array_equal(verdict.share > 1, verdict.codes == 3)
        assert not verdict.share[verdict.codes == 0].any()
        if verdict.exact.size and np.isfinite(verdict.worst):
            assert verdict.share.max() == pytest.approx(verdict.worst, rel=1e-12)  # the engine's, in other code
        elif verdict.exact.size:
            assert verdict.share.max() == np.inf


def test_too_many_dots_are_thinned_out_but_for_the_worst() -> None:
    x, w = made((1, 2, 220, 220), np.float32, 5), made((2, 2, 3, 3), np.float32, 6)
    y = detconv.conv2d(x, w, summation="naive")
    y[0, 0, 7, 7] += 1
    verdict = detconv.judge(y, x, w)
    assert np.count_nonzero(verdict.codes) > plots._DOTS
    shown = plots._shown(verdict).reshape(y.shape)
    assert plots._DOTS // 3 < np.count_nonzero(shown) <= plots._DOTS
    assert shown[0, 0, 7, 7]
    assert "elements are not shown" in verdict.plot().axes[3].get_xlabel()
