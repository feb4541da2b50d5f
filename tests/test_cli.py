"""The command line, the names that the package exports, and what it says about itself."""

import json
import os
import subprocess
import sys
from importlib import metadata

import pytest

import detconv
from detconv import _core, cli, config
from detconv.testing import instruction_set


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "detconv", *arguments], capture_output=True, text=True, check=False)


def table(text: str) -> dict[str, str]:
    """The entries of lines of a name and a value."""
    return dict(line.split(maxsplit=1) for line in text.splitlines())


def test_info_says_what_runs_and_beside_what(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info"]) == 0
    entries = table(capsys.readouterr().out)
    assert entries.keys() >= detconv.build_info().keys()
    assert entries["version"] == detconv.__version__
    assert entries["instruction_set"] == detconv.build_info()["instruction_set"]
    assert entries["num_threads"] == str(detconv.get_num_threads())
    assert entries["numpy"] == metadata.version("numpy")
    assert entries["torch"] in {"not installed", *(d.version for d in metadata.distributions(name="torch"))}


def test_info_as_a_module_and_without_importing_torch() -> None:
    done = run("info")
    assert done.returncode == 0
    assert done.stderr == ""
    assert table(done.stdout)["version"] == detconv.__version__
    code = "import sys; from detconv.cli import main; main(['info']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=True)


def test_a_build_without_openmp_is_said_to_be_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without = {**detconv.build_info(), "openmp": False}
    monkeypatch.setattr(config, "build_info", lambda: without)
    assert cli.main(["info"]) == 0
    assert table(capsys.readouterr().out)["openmp"] == (
        "no: compiled without OpenMP, so that every call computes on one thread (same bits)"
    )


def test_version() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"detconv {detconv.__version__}\n")
    assert detconv.__version__ == metadata.version("detconv")


@pytest.mark.parametrize("arguments", [[], ["inform"], ["info", "more"], ["info", "--loud"], ["--loud"]])
def test_bad_use_exits_with_2_and_says_how_to_use_it(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("usage: detconv")


def test_show_config_aligns_build_info(capsys: pytest.CaptureFixture[str]) -> None:
    detconv.show_config()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(detconv.build_info())
    width = max(map(len, detconv.build_info()))
    assert all(line[width : width + 2] == "  " and line[width + 2] != " " for line in lines)


def test_all_is_what_there_is() -> None:
    assert all(getattr(detconv, name) is not None for name in detconv.__all__)
    assert set(detconv.__all__) <= set(dir(detconv))
    assert detconv.reference.conv2d is not detconv.conv2d
    with pytest.raises(AttributeError, match="no attribute 'conv3d'"):
        detconv.conv3d  # type: ignore[attr-defined]  # noqa: B018


def test_a_missing_openmp_runtime_is_explained() -> None:
    code = """
import sys

class NoRuntime:
    def find_spec(self, name, *_):
        if name == "detconv._core":
            raise ImportError("libgomp.so.1: cannot open shared object file: No such file or directory")

sys.meta_path.insert(0, NoRuntime())
import detconv
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "ImportError: detconv needs the OpenMP runtime libgomp.so.1" in done.stderr


@pytest.mark.parametrize("wrong", [0, -1])
def test_thread_counts_below_one_are_refused(wrong: int) -> None:
    before = detconv.get_num_threads()
    with pytest.raises(ValueError, match=str(wrong)):
        detconv.set_num_threads(wrong)
    assert detconv.get_num_threads() == before


@pytest.mark.parametrize("wrong", [True, 2.0, "2", None])
def test_thread_counts_are_ints(wrong: object) -> None:
    with pytest.raises(TypeError, match=f"^n must be an int; got {type(wrong).__name__}"):
        detconv.set_num_threads(wrong)  # type: ignore[arg-type]


def test_thread_count_is_kept() -> None:
    detconv.set_num_threads(3)
    assert detconv.get_num_threads() == 3


def forced() -> str | None:
    """What is forced at this moment."""
    name = _core.force_instruction_set(None)
    _core.force_instruction_set(name)
    return name


def test_instruction_set_is_forced_and_given_back() -> None:
    before = forced()
    for name in detconv.build_info()["instruction_sets_usable"]:  # type: ignore[attr-defined]
        with instruction_set(name):
            assert detconv.build_info()["instruction_set"] == name
            with instruction_set("baseline"):
                assert detconv.build_info()["instruction_set"] == "baseline"
                with instruction_set(None):
                    assert forced() is None
                assert forced() == "baseline"
            assert detconv.build_info()["instruction_set"] == name
        assert forced() == before


def test_instruction_set_can_be_entered_again_and_decorates() -> None:
    before = forced()
    baseline = instruction_set("baseline")
    with baseline, instruction_set(None), baseline:
        assert forced() == "baseline"
    assert forced() == before
    assert instruction_set("baseline")(forced)() == "baseline"
    assert forced() == before


def test_instruction_set_is_given_back_after_an_error() -> None:
    before = forced()
    with pytest.raises(ZeroDivisionError), instruction_set("baseline"):
        raise ZeroDivisionError
    assert forced() == before


def test_unknown_instruction_set_is_refused() -> None:
    before = forced()
    with pytest.raises(ValueError, match="mmx"), instruction_set("mmx"):
        pass
    assert forced() == before


# ---- Words of the command line ----


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "detconv", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def test_info_as_json() -> None:
    told = json.loads(command("info", "--json").stdout)
    assert told["version"] == detconv.__version__
    assert told["format"] == 1
    assert told["instruction_sets_usable"] == list(detconv.build_info()["instruction_sets_usable"])  # type: ignore[call-overload]


@pytest.mark.parametrize(
    "arguments", [["info"], ["demo", "--no-plot"], ["reveal", "numpy"], ["judge", "--output", "x.npy"]]
)
def test_an_instruction_set_that_there_is_not_is_one_plain_sentence(arguments: list[str]) -> None:
    done = command(*arguments, DETCONV_ISA="foo")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("detconv: error: DETCONV_ISA must be one of ")
    assert done.stdout == ""


@pytest.mark.parametrize("shell", cli.SHELLS)
def test_completion(shell: str) -> None:
    pytest.importorskip("shtab")
    done = command("--print-completion", shell)
    assert (done.returncode, done.stderr) == (0, "")
    for word in ("info", "demo", "judge", "reveal", "--print-completion"):
        assert word in done.stdout


def test_completion_without_shtab(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    with pytest.raises(SystemExit) as exit_:
        cli.main(["--print-completion", "bash"])
    assert exit_.value.code == 2
    assert "pip install 'detconv[completion]'" in capsys.readouterr().err
