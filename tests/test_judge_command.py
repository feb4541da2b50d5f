"""``detconv judge`` as a stranger uses it: files in, a verdict and an exit status out, and a clear word otherwise."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import detconv
from bits import Array, assert_same_bits, made
from detconv import cli
from detconv.verdict import files
from detconv.verdict.bounds import FORMATS, rounded

X, W, B = made((2, 32, 8, 10), np.float32, 1), made((6, 16, 3, 3), np.float32, 2), made((6,), np.float32, 3)
G = made((2, 6, 4, 10), np.float32, 4)
GEOMETRY: dict[str, Any] = {"stride": (2, 1), "padding": 1, "groups": 2}
OPTIONS = ("--stride", "2,1", "--padding", "1", "--groups", "2")
Y = detconv.conv2d(X, W, B, **GEOMETRY, summation="naive")
WRONG = detconv.conv2d(X, np.ascontiguousarray(W[:, :, ::-1, ::-1]), B, **GEOMETRY)
# The smallest of the wrong ones: beyond a probable bound, within the bound.
UNLIKELY = detconv.conv2d(X, W, B, **GEOMETRY, summation="exact")
_VERDICT = detconv.judge(UNLIKELY, X, W, B, **GEOMETRY)
UNLIKELY[0, 0, 1, 1] += np.float32((_VERDICT.bound[0, 0, 1, 1] + _VERDICT.probable_bound[0, 0, 1, 1]) / 2)

Saved = Callable[..., str]


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Saved:
    """Saves an array as a .npy file in the directory where the command runs."""
    monkeypatch.chdir(tmp_path)

    def save(name: str, array: Array) -> str:
        np.save(tmp_path / name, array)
        return name

    for name, array in (("x.npy", X), ("w.npy", W), ("b.npy", B), ("y.npy", Y), ("wrong.npy", WRONG), ("g.npy", G)):
        save(name, array)
    return save


FORWARD = ("judge", "--input", "x.npy", "--weight", "w.npy", "--bias", "b.npy", *OPTIONS, "--output")


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What the command says on its standard error, with 2 and nothing on its standard output."""
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("detconv judge: error: ")
    assert err.count("\n") == 1
    return err.removeprefix("detconv judge: error: ").strip()


# ---- Verdicts ----


def test_rounding_is_0_and_a_mistake_1(saved: Saved, capsys: pytest.CaptureFixture[str]) -> None:
    saved("exact.npy", detconv.conv2d(X, W, B, **GEOMETRY, summation="exact"))
    saved("unlikely.npy", UNLIKELY)
    for name, status, said in [
        ("exact.npy", 0, "Identical: all 480 elements"),
        ("y.npy", 0, "Rounding: no element"),
        ("unlikely.npy", 1, "Unlikely: 1 of 480 elements"),
        ("wrong.npy", 1, "Mistake: 480 of 480"),
    ]:
        assert cli.main([*FORWARD, name]) == status
        out, err = capsys.readouterr()
        assert out.startswith(said)
        assert err == ""
        assert max(map(len, out.splitlines())) <= 98
    verdict = detconv.judge(WRONG, X, W, B, **GEOMETRY)
    assert out.split() == verdict.explain().split()
    assert cli.main([*FORWARD, "unlikely.npy", "--allow-unlikely"]) == 0
    assert cli.main([*FORWARD, "wrong.npy", "--allow-unlikely"]) == 1


def test_as_a_program(saved: Saved) -> None:
    command = [sys.executable, "-m", "detconv", *FORWARD]
    done = subprocess.run([*command, "wrong.npy"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith("Mistake: ")
    code = f"import sys; from detconv.cli import main; main({[*FORWARD, 'y.npy']!r}); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=True)


def test_gradients(saved: Saved, capsys: pytest.CaptureFixture[str]) -> None:
    saved("gx.npy", detconv.conv2d_input(X.shape, W, G, **GEOMETRY))
    saved("gw.npy", detconv.conv2d_weight(X, W.shape, G, **GEOMETRY))
    by_input = ("judge", "--pass", "input", "--weight", "w.npy", "--grad-output", "g.npy", *OPTIONS, "--output")
    by_weight = ("judge", "--pass", "weight", "--input", "x.npy", "--grad-output", "g.npy", *OPTIONS, "--output")
    assert cli.main([*by_input, "gx.npy"]) == 0
    assert "float32 input gradient of shape (2, 32, 8, 10)" in " ".join(capsys.readouterr().out.split())
    assert cli.main([*by_weight, "gw.npy"]) == 0
    assert "float32 weight gradient of shape (6, 16, 3, 3)" in " ".join(capsys.readouterr().out.split())
    assert cli.main([*by_input, "x.npy"]) == 1
    assert cli.main([*by_weight, "w.npy"]) == 1


def test_what_is_claimed(saved: Saved, capsys: pytest.CaptureFixture[str]) -> None:
    """An output that was added in half precision, as what it is and as float32."""
    half = detconv.conv2d(X, W, B, **GEOMETRY).astype(np.float16)
    for n in range(W.shape[1]):  # more than one rounding to a half number
        half = (half + np.float16(n + 100)) - np.float16(n + 100)
    saved("half.npy", half)
    assert cli.main([*FORWARD, "half.npy"]) == 1
    assert cli.main([*FORWARD, "half.npy", "--dtype", "float16"]) == 0
    capsys.readouterr()
    assert cli.main([*FORWARD, "half.npy", "--dtype", "float16", "--confidence", "0.5", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["dtype"], record["stored"], record["confidence"]) == ("float16", "float16", 0.5)


@pytest.mark.parametrize(("text", "padding"), [("2", 2), ("2,0", (2, 0)), ("same", "same"), ("valid", "valid")])
def test_padding_and_dilation(text: str, padding: Any, saved: Saved, capsys: pytest.CaptureFixture[str]) -> None:
    geometry = {"padding": padding, "dilation": (1, 2), "groups": 2}
    saved("padded.npy", detconv.conv2d(X, W, **geometry))
    command = ["judge", "--input", "x.npy", "--weight", "w.npy", "--output", "padded.npy"]
    assert cli.main([*command, "--padding", text, "--dilation", "1,2", "--groups", "2", "--json"]) == 0
    arguments = json.loads(capsys.readouterr().out)["arguments"]
    assert arguments["padding"] == (list(padding) if isinstance(padding, tuple) else padding)
    assert arguments["dilation"] == [1, 2]


# ---- JSON and page ----


def test_json_is_one_object_with_the_numbers(saved: Saved, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*FORWARD, "wrong.npy", "--json"]) == 1
    record = json.loads(capsys.readouterr().out)
    verdict = detconv.judge(WRONG, X, W, B, **GEOMETRY)
    assert record["status"] == "mistake"
    assert record["counts"] == verdict.counts
    assert record["shape"] == list(WRONG.shape)
    assert record["arguments"] == {
        "input": [2, 32, 8, 10],
        "weight": [6, 16, 3, 3],
        "bias": [6],
        "stride": [2, 1],
        "padding": 1,
        "dilation": 1,
        "groups": 2,
    }
    assert record["explanation"] == verdict.explain()
    assert record["diagnosis"] == str(verdict.diagnosis)
    assert record["bound"] == [verdict.bound.min(), verdict.bound.max()]
    worst, at = record["worst"], verdict.worst_element
    assert worst["element"] == list(at)  # type: ignore[arg-type]
    assert (worst["value"], worst["exact"], worst["bound"]) == (
        verdict.candidate[at],
        verdict.exact[at],
        verdict.bound[at],
    )
    assert worst["status"] == "mistake"


def test_json_has_neither_nan_nor_infinities(saved: Saved, capsys: pytest.CaptureFixture[str]) -> None:
    broken = Y.copy()
    broken[0, 1, 2, 3] = np.nan
    saved("broken.npy", broken)
    assert cli.main([*FORWARD, "broken.npy", "--json"]) == 1

    def refuse(name: str) -> None:
        raise AssertionError(name)

    worst = json.loads(capsys.readouterr().out, parse_constant=refuse)["worst"]
    assert (worst["element"], worst["value"], worst["share"]) == ([0, 1, 2, 3], "nan", "inf")


def test_json_without_elements(saved: Saved, capsys: pytest.CaptureFixture[str]) -> None:
    saved("no.npy", X[:0])
    saved("none.npy", Y[:0])
    command = ["judge", "--input", "no.npy", "--weight", "w.npy", *OPTIONS, "--output", "none.npy", "--json"]
    assert cli.main(command) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["status"], record["worst"], record["bound"]) == ("identical", None, None)


def test_a_page(saved: Saved, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # quicker
    assert cli.main([*FORWARD, "wrong.npy", "--html", "page.html"]) == 1
    assert capsys.readouterr().out.endswith("\nPage: page.html\n")
    assert ">Mistake</h1>" in Path("page.html").read_text(encoding="utf-8")
    for path in ("no/page.html", "."):
        with pytest.raises(SystemExit) as ended:
            cli.main([*FORWARD, "y.npy", "--html", path])
        assert ended.value.code == 2
        assert repr(path) in capsys.readouterr().err


# ---- Files ----


def test_files_of_all_kinds(saved: Saved, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch = pytest.importorskip("torch")
    save_file = pytest.importorskip("safetensors.numpy").save_file
    np.savez(tmp_path / "one.npz", Y)
    np.savez(tmp_path / "layer.npz", weight=W, bias=B)
    torch.save(torch.from_numpy(X), tmp_path / "x.pt")
    layer = torch.nn.Conv2d(32, 6, 3, groups=2)
    layer.weight.data, layer.bias.data = torch.from_numpy(W), torch.from_numpy(B)
    torch.save({"epoch": 3, "model": torch.nn.Sequential(layer).state_dict()}, tmp_path / "model.pth")
    torch.save([layer.weight, layer.bias], tmp_path / "list.pt")
    save_file({"w": W, "b": B}, tmp_path / "layer.safetensors")
    for weight, bias in [
        ("layer.npz:weight", "layer.npz:bias"),
        ("model.pth:model.0.weight", "model.pth:model.0.bias"),
        ("list.pt:0", "list.pt:1"),
        ("layer.safetensors:w", "layer.safetensors:b"),
    ]:
        command = ["judge", "--input", "x.pt", "--weight", weight, "--bias", bias, *OPTIONS]
        assert cli.main([*command, "--output", "one.npz"]) == 0, weight
        assert cli.main([*command, "--output", "wrong.npy"]) == 1, weight
    assert capsys.readouterr().err == ""


def test_half_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    torch = pytest.importorskip("torch")
    save_file = pytest.importorskip("safetensors.torch").save_file
    monkeypatch.chdir(tmp_path)
    for dtype in (torch.bfloat16, torch.float16):
        x, w = torch.from_numpy(X).to(dtype), torch.from_numpy(W).to(dtype)
        y = detconv.conv2d(x, w, groups=2)
        save_file({"x": x, "w": w, "y": y}, tmp_path / "half.safetensors")
        torch.save({"x": x, "w": w, "y": y}, tmp_path / "half.pt")
        for file in ("half.safetensors", "half.pt"):
            command = ["judge", "--input", f"{file}:x", "--weight", f"{file}:w", "--output", f"{file}:y"]
            assert cli.main([*command, "--groups", "2", "--json"]) == 0
            assert json.loads(capsys.readouterr().out)["stored"] == str(dtype).removeprefix("torch.")
    # Where NumPy has no bfloat16, torch reads them.
    monkeypatch.setattr(files, "find_spec", lambda _: None)
    save_file({"x": x.to(torch.bfloat16)}, tmp_path / "half.safetensors")
    read = files.read("half.safetensors")
    assert read.dtype == torch.bfloat16
    assert torch.equal(read, x.to(torch.bfloat16))


def test_a_colon_may_be_part_of_a_name(saved: Saved, tmp_path: Path) -> None:
    saved("a:b.npy", B)
    np.savez(tmp_path / "c:d.npz", **{"e:f": W, "g": B})
    assert_same_bits(files.read("a:b.npy"), B)
    assert_same_bits(files.read("c:d.npz:e:f"), W)
    assert_same_bits(files.read("c:d.npz:g"), B)


# ---- Bad use ----


def test_files_that_are_not_there_or_not_what_they_say(
    saved: Saved, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("safetensors")
    (tmp_path / "folder.npy").mkdir()
    np.savez(tmp_path / "two.npz", weight=W, bias=B)
    np.savez(tmp_path / "empty.npz")
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    for kind in ("npy", "npz", "pt", "safetensors", "txt"):
        (tmp_path / f"damaged.{kind}").write_bytes(b"this is no array")
    for file, said in [
        ("missing.npy", "missing.npy: no such file"),
        ("missing.npz:weight", "missing.npz: no such file"),
        ("folder.npy", "folder.npy: is a directory"),
        ("damaged.txt", "damaged.txt: the name of a file must end in .npy, .npz, .pt, .pth, .safetensors"),
        ("two.npz", "two.npz has 2 arrays: name one as in two.npz:NAME; it has weight, bias"),
        ("two.npz:weihgt", "two.npz has no array 'weihgt'; it has weight, bias"),
        ("empty.npz", "empty.npz has 0 arrays: name one as in empty.npz:NAME; it has none"),
        ("y.npy:weight", "y.npy has one array, without a name; got the name 'weight'"),
    ]:
        assert refused(capsys, *FORWARD, file) == said
    for file in ("damaged.npy", "damaged.npz", "damaged.pt", "damaged.safetensors", "objects.npy"):
        assert refused(capsys, *FORWARD, file).startswith(f"{file}: cannot be read: ")


def test_pickles_are_not_run(saved: Saved, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch = pytest.importorskip("torch")

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "run",)

    torch.save({"y": Bomb()}, tmp_path / "bomb.pt")
    np.save(tmp_path / "bomb.npy", np.array([Bomb()], object), allow_pickle=True)
    for file in ("bomb.pt", "bomb.npy"):
        assert "cannot be read" in refused(capsys, *FORWARD, file)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("package", "file"), [("torch", "a.pt"), ("safetensors", "a.safetensors")])
def test_packages_that_are_not_installed(
    package: str, file: str, saved: Saved, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    Path(file).write_bytes(b"")
    said = refused(capsys, *FORWARD, file)
    assert said == f"{file} is read by {package}, which is not installed (pip install {package})"


def test_arrays_that_do_not_fit(saved: Saved, capsys: pytest.CaptureFixture[str]) -> None:
    saved("int.npy", np.zeros(Y.shape, np.int32))
    saved("double.npy", W.astype(np.float64))
    assert refused(capsys, *FORWARD, "int.npy").startswith("--output must have dtype float32, float64")
    said = refused(capsys, *FORWARD, "y.npy", "--weight", "double.npy")
    assert said == "--weight must have the element type of input, float32; got float64"
    assert refused(capsys, *FORWARD, "y.npy", "--groups", "5").startswith("--groups must ")
    assert refused(capsys, *FORWARD, "y.npy", "--stride", "0").startswith("--stride must ")
    assert refused(capsys, *FORWARD, "y.npy", "--confidence", "1").startswith("confidence must ")


def test_files_that_a_pass_needs_or_has_no_use_for(saved: Saved, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, "judge", "--output", "y.npy") == "--input is needed for --pass forward"
    said = refused(capsys, *FORWARD, "y.npy", "--grad-output", "g.npy")
    assert said == "--grad-output plays no part for --pass forward, which has --output, --input, --weight, --bias"
    said = refused(capsys, *FORWARD, "y.npy", "--pass", "weight")
    assert said.startswith("--weight plays no part for --pass weight_gradient")
    said = refused(capsys, *FORWARD, "y.npy", "--input-shape", "2,32,8,10")
    assert said == "--input-shape plays no part for --pass forward"


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--stride", "a"),
        ("--stride", "1,2,3"),
        ("--padding", "reflect"),
        ("--dilation", "1.5"),
        ("--groups", "two"),
        ("--pass", "sideways"),
        ("--dtype", "int8"),
        ("--confidence", "much"),
    ],
)
def test_options_that_make_no_sense(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([*FORWARD, "y.npy", option, value])
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert f"argument {option}" in err
    assert repr(value) in err


# ---- Shapes ----


@pytest.mark.parametrize("command", ["judge", "diagnose"])
def test_an_output_of_another_shape_is_diagnosed(
    command: str, saved: Saved, capsys: pytest.CaptureFixture[str]
) -> None:
    """The stride was ignored, and the shape tells it."""
    stride = {**GEOMETRY, "stride": 1}
    saved("wide.npy", detconv.conv2d(X, W, B, **stride))
    assert cli.main([command, *FORWARD[1:], "wide.npy"]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "stride is ignored" in said
    if command == "judge":
        assert said.startswith("Mistake: the output has shape (2, 6, 8, 10); it should have (2, 6, 4, 10).")
    assert cli.main([command, *FORWARD[1:], "wide.npy", "--json"]) == 1
    record = json.loads(capsys.readouterr().out)
    assert record["version"] == 1
    assert "stride is ignored" in json.dumps(record)


def test_the_shape_of_a_gradient_can_be_told(saved: Saved, capsys: pytest.CaptureFixture[str]) -> None:
    saved("gw.npy", detconv.conv2d_weight(X, W.shape, G, **GEOMETRY))
    given = ("judge", "--pass", "weight_gradient", "--input", "x.npy", "--grad-output", "g.npy", *OPTIONS)
    assert cli.main([*given, "--output", "gw.npy", "--weight-shape", "6,16,3,3"]) == 0
    capsys.readouterr()
    said = refused(capsys, *given, "--output", "gw.npy", "--weight-shape", "6,16,3,2")
    assert "shape" in said


# ---- diagnose ----


def test_diagnose(saved: Saved, capsys: pytest.CaptureFixture[str]) -> None:
    saved("flipped.npy", detconv.conv2d(X, np.ascontiguousarray(W[:, :, ::-1, ::-1]), B, **GEOMETRY))
    assert cli.main(["diagnose", *FORWARD[1:], "flipped.npy"]) == 1
    assert "kernel is flipped in both axes" in " ".join(capsys.readouterr().out.split())
    assert cli.main(["diagnose", *FORWARD[1:], "y.npy"]) == 0
    assert "nothing to diagnose" in capsys.readouterr().out
    assert cli.main(["diagnose", *FORWARD[1:], "no.npy"]) == 2
    assert capsys.readouterr().err.startswith("detconv diagnose: error: ")


def test_one_vocabulary_for_judge_and_reveal(capsys: pytest.CaptureFixture[str]) -> None:
    """The options that both have mean the same and have the same help."""
    helps = []
    for command in ("judge", "diagnose", "reveal"):
        with pytest.raises(SystemExit):
            cli.main([command, "--help"])
        text = " ".join(capsys.readouterr().out.split())
        for option in (
            "--pass",
            "--stride",
            "--dilation",
            "--padding",
            "--transposed",
            "--output-padding",
            "--input-shape",
        ):
            assert option in text
        assert "forward, input_gradient, weight_gradient" in text
        helps.append(text)
    assert "--shape N" not in helps[2]


# ---- Transposed convolutions, gradients of the bias ----


def test_a_transposed_convolution(saved: Saved, capsys: pytest.CaptureFixture[str]) -> None:
    weight = made((32, 3, 3, 2), np.float32, 5)
    options: dict[str, Any] = {"stride": (2, 3), "padding": (1, 0), "groups": 2}
    right = detconv.conv_transpose2d(X, weight, made((6,), np.float32, 3), output_padding=(1, 2), **options)
    arrays = ("--input", "x.npy", "--weight", saved("t.npy", weight), "--bias", "b.npy")
    shape = ("--transposed", "--stride", "2,3", "--padding", "1,0", "--groups", "2", "--output-padding", "1,2")
    for name, output, status in (("right.npy", right, 0), ("off.npy", -right, 1)):
        assert cli.main(["judge", *arrays, *shape, "--output", saved(name, output)]) == status
        verdict = detconv.judge(output, X, weight, B, **options, transposed=True, output_padding=(1, 2))
        assert capsys.readouterr().out.split() == verdict.explain().split()
    other = [*shape[:-1], "1"]
    assert cli.main(["judge", *arrays, *other, "--output", "right.npy"]) == 1  # of another shape
    capsys.readouterr()
    assert "--output-padding must be 0 unless" in refused(capsys, *FORWARD, "y.npy", "--output-padding", "1")


@pytest.mark.parametrize("of", ["bias", "bias_gradient"])
def test_a_gradient_of_the_bias(of: str, saved: Saved, capsys: pytest.CaptureFixture[str]) -> None:
    right = detconv.conv2d_bias(G)
    for name, output, status in (("right.npy", right, 0), ("off.npy", right + 1, 1)):
        command = ["judge", "--pass", of, "--grad-output", "g.npy", "--output", saved(name, output)]
        assert cli.main(command) == status
        verdict = detconv.judge_bias_gradient(output, G)
        assert capsys.readouterr().out.split() == verdict.explain().split()
    assert "play no part" in refused(capsys, *command, "--stride", "2")
    assert "plays no part" in refused(capsys, *command, "--input", "x.npy")


def test_outputs_of_coarse_operands_exit_with_1_unless_allowed(
    saved: Saved, capsys: pytest.CaptureFixture[str]
) -> None:
    x, w = made((1, 6000, 1, 8), np.float32, 6), made((8, 6000, 1, 1), np.float32, 7)
    y = detconv.conv2d(*(rounded(operand, FORMATS["tf32"]) for operand in (x, w)))
    for array, name in ((x, "long.npy"), (w, "many.npy"), (y, "coarse.npy")):
        saved(name, array)
    command = ["judge", "--input", "long.npy", "--weight", "many.npy", "--output", "coarse.npy"]
    for extra, status in (((), 1), (("--allow-unlikely",), 0), (("--dtype", "tf32"), 0)):
        assert cli.main([*command, *extra]) == status
        assert capsys.readouterr().out.startswith("Unlikely: " if extra != ("--dtype", "tf32") else "Rounding: ")
