"""``detconv.testing.assert_conv2d`` and the pytest plugin, in the tests of someone else's project."""

import pickle
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from typing import Any

import numpy as np
import pytest

import detconv
from bits import made
from detconv.testing import assert_conv2d, assert_conv2d_input, assert_conv2d_weight

pytest_plugins = "pytester"

X, W, B = made((2, 6, 8, 9), np.float32, 1), made((4, 3, 3, 2), np.float32, 2), made((4,), np.float32, 3)
GEOMETRY: dict[str, Any] = {"stride": (1, 2), "padding": 1, "dilation": 1, "groups": 2}
Y = detconv.conv2d(X, W, B, **GEOMETRY)
GX, GW = detconv.conv2d_input(X.shape, W, Y, **GEOMETRY), detconv.conv2d_weight(X, W.shape, Y, **GEOMETRY)

# Each assertion with a right array and the arguments after it.
ASSERTIONS: dict[str, tuple[Callable[..., Any], Any, tuple[Any, ...]]] = {
    "output": (assert_conv2d, Y, (X, W, B)),
    "input gradient": (assert_conv2d_input, GX, (X.shape, W, Y)),
    "weight gradient": (assert_conv2d_weight, GW, (X, W.shape, Y)),
}

# ---- The assertions ----


@pytest.mark.parametrize("name", ASSERTIONS)
def test_rounding_passes_and_a_mistake_raises_its_explanation(name: str) -> None:
    check, right, arguments = ASSERTIONS[name]
    verdict = check(right, *arguments, *GEOMETRY.values())
    assert verdict.status == "rounding"
    assert check(right, *arguments, **GEOMETRY).counts == verdict.counts
    wrong = right.copy()
    wrong[1, 2, 1, 1] += 1
    with pytest.raises(AssertionError) as raised:
        check(wrong, *arguments, **GEOMETRY)
    assert isinstance(raised.value, detconv.ConvolutionMistake)
    assert raised.value.verdict.status == "mistake"
    assert raised.value.verdict.worst_element == (1, 2, 1, 1)
    assert str(raised.value) == raised.value.verdict.explain()


def test_what_is_claimed_is_judged() -> None:
    half = Y.astype(np.float16)
    noisy = (half.astype(np.float32) * np.float32(1 + 2**-9)).astype(np.float16)
    assert assert_conv2d(half, X, W, B, **GEOMETRY).dtype == "float32"
    assert assert_conv2d(noisy, X, W, B, **GEOMETRY, dtype="float16", confidence=0.9).confidence == 0.9
    with pytest.raises(detconv.ConvolutionMistake):
        assert_conv2d(noisy, X, W, B, **GEOMETRY)


def test_bad_use_is_no_assertion() -> None:
    with pytest.raises(ValueError, match="candidate must have the shape"):
        assert_conv2d(Y[:1], X, W, B, **GEOMETRY)
    with pytest.raises(TypeError, match="weight must have the element type"):
        assert_conv2d(Y, X, W.astype(np.float64), B, **GEOMETRY)


def test_a_mistake_can_be_sent_to_another_process() -> None:
    with pytest.raises(detconv.ConvolutionMistake) as raised:
        assert_conv2d(Y + 1, X, W, B, **GEOMETRY)
    copy = pickle.loads(pickle.dumps(raised.value))
    assert type(copy) is detconv.ConvolutionMistake
    assert str(copy) == str(raised.value)
    assert copy.verdict.counts == raised.value.verdict.counts


# ---- The plugin ----

FAILING = """
import numpy as np
import pytest
import detconv
from detconv.testing import assert_conv2d

X, W = np.full((1, 2, 4, 4), 0.1, np.float32), np.full((3, 2, 3, 3), 0.7, np.float32)
Y = detconv.conv2d(X, W)

def test_right():
    assert_conv2d(Y, X, W)

@pytest.mark.parametrize("what", ["a/b <c>", "second"])
def test_wrong(what):
    assert_conv2d(Y + 1, X, W)

def test_wrong_behind_another_exception():
    try:
        assert_conv2d(Y + 1, X, W)
    except AssertionError as error:
        raise RuntimeError("layer 3") from error

def test_otherwise_wrong():
    assert Y.size == 0

@pytest.fixture
def broken():
    assert_conv2d(Y + 1, X, W)

def test_set_up(broken):
    pass

@pytest.mark.xfail(strict=True)
def test_known():
    assert_conv2d(Y + 1, X, W)
"""


def run(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    """Another pytest; the plugin by its name, which is that of its entry point where detconv is installed."""
    return pytester.runpytest_subprocess("-p", "detconv_pytest", "-p", "no:cacheprovider", *arguments)


def test_the_failure_is_the_explanation_at_the_line_that_called(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(FAILING)
    result = run(pytester, "-k", "second")
    result.assert_outcomes(failed=1, deselected=6)
    text = result.stdout.str()
    assert ">       assert_conv2d(Y + 1, X, W)" in text
    assert "Mistake: 12 of 12 elements of the float32 output" in text
    assert "testing.py" not in text  # hidden: the line that called is what matters
    assert "judge.py:" not in text
    assert "as a page" not in text


def test_pages_of_failed_assertions(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_layers=FAILING)
    pytester.makeconftest("import sys; sys.modules['matplotlib'] = None")  # quicker
    result = run(pytester, "--detconv-html", "reports/new", "-rN")
    result.assert_outcomes(passed=1, failed=4, errors=1, xfailed=1)
    pages = sorted((pytester.path / "reports" / "new").iterdir())
    named = [line.removeprefix("The verdict as a page: ") for line in result.outlines if "as a page" in line]
    assert sorted(named) == [str(path) for path in pages]
    starts = [path.name.rpartition("-")[0] for path in pages]
    assert starts == [
        "test_layers.py-test_set_up-setup",
        "test_layers.py-test_wrong-a-b-c--call",
        "test_layers.py-test_wrong-second--call",
        "test_layers.py-test_wrong_behind_another_exception-call",
    ]
    for path in pages:
        assert ">Mistake</h1>" in path.read_text(encoding="utf-8")


def test_a_page_that_cannot_be_written_hides_no_failure(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(FAILING)
    pytester.makeconftest("import detconv; detconv.Verdict.to_html = lambda *_: 1 / 0")
    result = run(pytester, "--detconv-html", "reports", "-k", "second")
    result.assert_outcomes(failed=1, deselected=6)
    result.stdout.fnmatch_lines(["*The verdict could not be written as a page: ZeroDivisionError*"])


def test_a_file_in_place_of_the_directory(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(FAILING)
    result = run(pytester, "--detconv-html", str(pytester.makefile(".txt", reports="")))
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--detconv-html must be a directory; got *reports.txt"])


def test_a_run_without_detconv_does_not_load_it(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    pytester.makepyfile(
        """
        import sys
        def test_failing_as_ever():
            assert not {"detconv", "numpy", "torch"} & set(sys.modules)
            assert False, "as ever"
        """
    )
    # Nothing else may load NumPy: not hypothesis, say.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    result = run(pytester, "--detconv-html", "reports")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*AssertionError: as ever*"])
    assert not (pytester.path / "reports").exists()


def test_the_plugin_imports_nothing_of_weight() -> None:
    code = "import sys, pytest; before = set(sys.modules); import detconv_pytest; print(*(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) <= {"detconv_pytest", "hashlib", "_hashlib", "_blake2"}


def test_where_detconv_is_installed_the_plugin_is_there() -> None:
    try:
        installed = metadata.distribution("detconv")
    except metadata.PackageNotFoundError:
        pytest.skip("detconv is not installed here, only on the path")
    plugins = installed.entry_points.select(group="pytest11")
    assert [(point.name, point.value) for point in plugins] == [("detconv_pytest", "detconv_pytest")]


# ---- Unlikely outputs ----

UNLIKELY = """
import numpy as np
import detconv, pytest
from detconv.testing import assert_conv2d
from detconv.verdict.bounds import FORMATS, rounded

X, W = (np.random.default_rng(s).standard_normal((1, 6000, 1, 8)).astype(np.float32) for s in (1, 2))
W = np.ascontiguousarray(W[0, :, 0].T)[:, :, None, None]
Y = detconv.conv2d(*(rounded(operand, FORMATS["tf32"]) for operand in (X, W)))

def test_coarse():
    assert_conv2d(Y, X, W)

def test_told():
    with pytest.raises(detconv.ConvolutionMistake, match="Unlikely: "):
        assert_conv2d(Y, X, W, allow_unlikely=False)

def test_mistake():
    with pytest.raises(detconv.ConvolutionMistake, match="Mistake: "):
        assert_conv2d(3e3 + Y, X, W, allow_unlikely=True)
"""


@pytest.mark.parametrize(
    ("arguments", "ini", "passes"),
    [
        ((), "", False),
        (("--detconv-allow-unlikely",), "", True),
        ((), "detconv_allow_unlikely = true", True),
        ((), "detconv_allow_unlikely = false", False),
        (("--detconv-allow-unlikely",), "detconv_allow_unlikely = false", True),
    ],
)
def test_a_project_allows_unlikely_outputs(
    pytester: pytest.Pytester, arguments: tuple[str, ...], ini: str, passes: bool
) -> None:
    """The option or the setting; what an assertion is told itself outranks both, and a mistake always fails."""
    pytester.makepyfile(UNLIKELY)
    pytester.makeini(f"[pytest]\n{ini}\n")
    result = run(pytester, *arguments)
    result.assert_outcomes(passed=2 + passes, failed=1 - passes)
    assert ("Unlikely: " in result.stdout.str()) != passes
