"""Orders of other libraries, revealed and replayed bit for bit: a small part of the grid of ``bench/orders.py``."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import detconv
from bits import assert_same_bits, made
from detconv import catalogue, cli
from detconv.revealing import black_boxes, trees

ROOT = Path(__file__).parent.parent
LAYERS: dict[str, dict[str, Any]] = {
    "forum": {"input_shape": (1, 16, 28, 28), "weight_shape": (8, 16, 5, 5), "padding": 2},
    "3x3": {"input_shape": (1, 64, 14, 14), "weight_shape": (32, 64, 3, 3), "padding": 1},
    "3x3 of stride 2": {"input_shape": (2, 24, 15, 13), "weight_shape": (20, 24, 3, 3), "padding": 1, "stride": 2},
    "1x1": {"input_shape": (1, 96, 10, 10), "weight_shape": (24, 96, 1, 1), "bias": False},
    "depthwise": {"input_shape": (1, 32, 12, 12), "weight_shape": (32, 1, 3, 3), "padding": 1, "groups": 32},
    "dilated": {"input_shape": (1, 16, 20, 20), "weight_shape": (8, 16, 3, 3), "padding": 2, "dilation": 2},
}
SETTINGS = ("stride", "padding", "dilation", "groups")


def settings_of(layer: dict[str, Any]) -> dict[str, Any]:
    return {name: layer[name] for name in SETTINGS if name in layer}


def operands(r: detconv.Reveal) -> tuple[Any, Any, Any]:
    g = r.geometry
    bias = made((g.weight_shape[0],), np.float32, 9) if g.bias else None
    return made(g.input_shape, np.float32, 7), made(g.weight_shape, np.float32, 8), bias


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch")


@pytest.fixture
def threads(torch: Any) -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def assert_replayed(r: detconv.Reveal, fn: Any, layer: dict[str, Any], of_torch: bool = False) -> None:
    """Exact, or flagged as a transform; and where exact, the same bits for values that no trial had."""
    if r.status == "transform":
        return
    assert (r.status, r.match) == ("exact", 1.0), r.reason
    arrays = operands(r)
    if of_torch:
        import torch

        tensors = [None if a is None else torch.from_numpy(a) for a in arrays]
        expected = fn(*tensors).contiguous().numpy()
    else:
        expected = np.ascontiguousarray(fn(*arrays))
    got = detconv.conv2d(*arrays, **settings_of(layer), summation=r)
    assert_same_bits(got, expected + np.float32(0))


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("layer", LAYERS)
def test_torch(torch: Any, threads: None, layer: str, onednn: bool, count: int) -> None:
    torch.set_num_threads(count)
    box = black_boxes.make("torch", LAYERS[layer], onednn)
    r = detconv.reveal(box.fn, **LAYERS[layer], arrays="torch", library=box.library)
    assert_replayed(r, box.fn, LAYERS[layer], of_torch=True)
    assert r.key["library"] == "torch"
    assert r.key["torch"]["threads"] == count


@pytest.mark.parametrize("layer", ["forum", "depthwise"])
def test_torch_channels_last(torch: Any, layer: str) -> None:
    box = black_boxes.make("torch", LAYERS[layer])
    r = detconv.reveal(box.fn, **LAYERS[layer], arrays="torch", layout="channels_last")
    assert r.status == "exact", r.reason
    x, w, b = (torch.from_numpy(a) for a in operands(r))
    last = torch.channels_last
    expected = box.fn(x.contiguous(memory_format=last), w.contiguous(memory_format=last), b)
    got = detconv.conv2d(x, w, b, **settings_of(LAYERS[layer]), summation=r)
    assert torch.equal(got, expected)
    got = detconv.conv2d(x.contiguous(memory_format=last), w, b, **settings_of(LAYERS[layer]), summation=r)
    assert torch.equal(got, expected)
    assert got.is_contiguous(memory_format=last)


@pytest.mark.parametrize("pass_", ["input_gradient", "weight_gradient"])
@pytest.mark.parametrize("layer", ["forum", "3x3 of stride 2"])
def test_gradients_of_torch(torch: Any, layer: str, pass_: str) -> None:
    given, settings = LAYERS[layer], settings_of(LAYERS[layer])
    box = black_boxes.make("torch", given)
    r = detconv.reveal(box.fn, **given, arrays="torch", pass_=pass_, differentiate=True)
    assert (r.status, r.match) == ("exact", 1.0), r.reason
    g = r.geometry
    grad_output = torch.from_numpy(made(g.output_shape, np.float32, 3))
    x = torch.from_numpy(made(g.input_shape, np.float32, 4)).requires_grad_()
    w = torch.from_numpy(made(g.weight_shape, np.float32, 5)).requires_grad_()
    box.fn(x, w, None).backward(grad_output)
    x, w, of_x, of_w = x.detach(), w.detach(), x.grad, w.grad
    if pass_ == "input_gradient":
        assert torch.equal(detconv.conv2d_input(g.input_shape, w, grad_output, **settings, summation=r), of_x)
    else:
        assert torch.equal(detconv.conv2d_weight(x, g.weight_shape, grad_output, **settings, summation=r), of_w)


def test_a_gradient_is_not_replayed_silently(torch: Any) -> None:
    box = black_boxes.make("torch", LAYERS["1x1"])
    r = detconv.reveal(box.fn, **LAYERS["1x1"], arrays="torch")
    x, w, _ = operands(r)
    with pytest.raises(ValueError, match="weight must not require a gradient"):
        detconv.conv2d(torch.from_numpy(x), torch.from_numpy(w).requires_grad_(), summation=r)
    with pytest.raises(TypeError, match="float32 or float64 where"):
        detconv.conv2d(torch.from_numpy(x).half(), torch.from_numpy(w).half(), summation=r)


def test_double(torch: Any) -> None:
    box = black_boxes.make("torch", LAYERS["forum"])
    r = detconv.reveal(box.fn, **LAYERS["forum"], arrays="torch", dtype="float64")
    assert (r.status, r.match) == ("exact", 1.0), r.reason


@pytest.mark.parametrize("route", [route for route in black_boxes.ROUTES if route != "torch"])
def test_other_libraries(route: str) -> None:
    for package in {"onnxruntime": ("onnx", "onnxruntime"), "jax": ("jax",)}.get(route, (route.split("-")[0],)):
        pytest.importorskip(package, exc_type=ImportError)
    small: dict[str, Any] = {"input_shape": (1, 6, 9, 9), "weight_shape": (5, 6, 3, 3), "padding": 1}
    box = black_boxes.make(route, small)
    r = detconv.reveal(box.fn, **small, library=box.library)
    assert r.status == ("transform" if route.endswith("fft") else "exact"), r.reason
    assert_replayed(r, box.fn, small)
    assert r.key["library"] == box.library


# ---- The catalogue ----


def test_identify_finds_known_orders_without_probes() -> None:
    layer = LAYERS["forum"]
    for summation in ("naive order=kw,c,kh bias=first", "kahan", "exact", "fp64", "pairwise"):

        def fn(x: Any, w: Any, b: Any, summation: str = summation) -> Any:
            return detconv.conv2d(x, w, b, padding=2, summation=summation)

        r = detconv.identify(fn, **layer)
        assert (r.status, r.match) == ("exact", 1.0), r.reason
        assert [order.name for order in r.orders] == [summation]
        assert r.found_in
        assert r.calls < 60
        assert r.found_in in r.explain()


def test_identify_probes_what_the_catalogue_does_not_know() -> None:
    order = "bias 16x(+25){[25x(-1){f24}]}"
    r = detconv.identify(
        lambda x, w, b: detconv.conv2d(x, w, b, padding=2, summation=detconv.Summation(order=order)), **LAYERS["forum"]
    )
    assert (r.status, r.found_in) == ("exact", "")
    assert r.orders[0].text == trees.canonical(order, 400)


def test_every_entry_of_the_catalogue_has_a_key_and_a_layer() -> None:
    sizes = [(16, 5, 5), (64, 3, 3), (128, 3, 3), (6, 2, 3), (512, 1, 1)]
    used = {order.found_in for size in sizes for order in catalogue.known_orders(*size)}
    for entry in catalogue.entries():
        assert entry["key"]["library"]
        assert entry["found_in"] in used
    for size in sizes:
        x, w, b = (made(shape, np.float32, 1) for shape in [(1, size[0], 6, 6), (2, *size), (2,)])
        for order in catalogue.known_orders(*size):
            detconv.conv2d(x, w, b, summation=order.summation)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("<C/8>x(+<8*T>){f0}", "2x(+200){f0}"),
        ("<C/5>x(+1){f0}", None),
        ("<K-400>x(+1){f0}", None),
        ("<(K-K%192)/192-1>x(+192){[192x(+1){f192}]}", "1x(+192){[192x(+1){f192}]}"),
        ("<KW>x(-1){f<KW-1>}", "5x(-1){f4}"),
    ],
)
def test_templates(template: str, text: str | None) -> None:
    assert catalogue.filled(template, {"C": 16, "KH": 5, "KW": 5, "T": 25, "K": 400}) == text


# ---- The command line and the script ----


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    small = ["--shape", "1,6,9,9", "--weight", "5,6,3,3"]
    path, picture = tmp_path / "order.json", tmp_path / "tree.svg"
    assert cli.main(["reveal", "numpy-einsum", *small, "--save", str(path), "--plot", str(picture)]) == 0
    out = capsys.readouterr().out
    assert "numpy-einsum (numpy " in out
    assert "exact." in out
    assert picture.read_text(encoding="utf-8").startswith("<?xml")
    assert detconv.Reveal.load(path).status == "exact"

    (tmp_path / "my_module.py").write_text(
        "import detconv\n"
        "def good(x, w, b):\n    return detconv.conv2d(x, w, b, summation='naive order=kh,kw,c')\n"
        "def kahan(x, w, b):\n    return detconv.conv2d(x, w, b, summation='kahan')\n"
    )
    monkeypatch.chdir(tmp_path)
    assert cli.main(["reveal", "my_module:good", *small, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["status"], data["match"]) == ("exact", 1.0)
    assert cli.main(["reveal", "my_module:kahan", "--probe", *small]) == 1
    assert "not_a_tree" in capsys.readouterr().out
    for wrong in (["my_module:none"], ["no_such_module:f"], ["nothing"], ["numpy", "--pass", "weight_gradient"]):
        assert cli.main(["reveal", *wrong, *small]) == 2
        assert capsys.readouterr().err.startswith("detconv reveal: ")
    for option in (["--stride", "1,2,3"], ["--shape", "1,6,9"], ["--weight", "5x6x3x3"]):
        with pytest.raises(SystemExit) as ended:
            cli.main(["reveal", "numpy", *option])
        assert ended.value.code == 2


SMALL = ["--shape", "1,4,5,5", "--weight", "3,4,2,2"]


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What ``detconv reveal`` says; one line, and the exit status 2."""
    assert cli.main(["reveal", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("detconv reveal: ")
    assert err.count("\n") == 1
    assert len(err) < 900
    return err


def test_the_command_line_of_transposed_convolutions(torch: Any, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--shape", "1,4,5,5", "--weight", "4,3,2,2", "--transposed", "--stride", "2", "--output-padding", "1"]
    assert cli.main(["reveal", "torch", *given, "--json"]) == 0
    found = detconv.Reveal.from_dict(json.loads(capsys.readouterr().out))
    assert (found.status, found.geometry.output_padding) == ("exact", (1, 1))
    assert "transposed: of torch" in refused(capsys, "numpy", *given)
    assert "output_padding must be 0" in refused(capsys, "torch", *SMALL, "--output-padding", "1")


@pytest.mark.parametrize("option", ["--save", "--plot"])
@pytest.mark.parametrize("path", ["no/such/folder.svg", ".", "x" * 5000 + ".svg"])
def test_paths_are_checked_before_the_search(
    option: str, path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        cli.main(["reveal", "no_such_module:none", *SMALL, option, path])
    assert ended.value.code == 2
    assert f"argument {option}: must " in capsys.readouterr().err


def test_a_picture_of_another_kind_and_without_matplotlib(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit):
        cli.main(["reveal", "numpy", *SMALL, "--plot", str(tmp_path / "tree.xyz")])
    assert "must end in .png, .svg, .pdf" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    # Said before the search: the module with the function, which comes first there, is not looked for.
    said = refused(capsys, "no_such_module:none", *SMALL, "--plot", str(tmp_path / "tree.svg"))
    assert "matplotlib" in said
    assert "pip install matplotlib" in said


def test_what_was_found_is_printed_though_it_cannot_be_drawn_or_saved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "my_boxes.py").write_text(
        "import detconv\n"
        "def kahan(x, w, b):\n    return detconv.conv2d(x, w, b, summation='kahan')\n"
        "def none(x, w, b):\n    return detconv.conv2d(x, w, None)\n"
        "def slow(x, w, b):\n    return detconv.conv2d(x, w, b, summation='naive')\n"
    )
    monkeypatch.chdir(tmp_path)
    for name, status, said in (("kahan", 0, "its name"), ("none", 1, "no order to draw")):
        assert cli.main(["reveal", f"my_boxes:{name}", *SMALL, "--plot", "tree.svg"]) == status
        out, err = capsys.readouterr()
        assert f"{name} (my_boxes unknown): " in out
        assert err.startswith("detconv reveal: no picture: ")
        assert said in err
        assert not Path("tree.svg").exists()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(detconv.Reveal, "save", full)
    assert cli.main(["reveal", "my_boxes:slow", *SMALL, "--save", "order.json"]) == 2
    out, err = capsys.readouterr()
    assert "exact." in out
    assert "No space left" in err


def test_modules_that_do_not_import(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken_box.py").write_text("def f(:\n")
    Path("raising_box.py").write_text("raise KeyError('x' * 10**6)\n")
    Path("odd_box.py").write_text("def f(*_):\n    raise ValueError('two\\nlines' * 10**5)\n")
    assert "SyntaxError" in refused(capsys, "broken_box:f", *SMALL)
    assert "KeyError" in refused(capsys, "raising_box:f", *SMALL)
    assert "two lines" in refused(capsys, "odd_box:f", *SMALL)
    for function in (":f", "odd_box:", "odd_box:f.g", "q" * 10**5 + ":f", "q" * 10**5):
        assert "function" in refused(capsys, function, *SMALL)
    refused(capsys, "numpy", "--shape", "1,4,9000000000000000000,5", "--weight", "3,4,2,2")
    refused(capsys, "numpy", "--shape", f"{10**30},4,5,5", "--weight", "3,4,2,2")


def test_an_instruction_set_that_is_none_is_one_plain_sentence() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "detconv", "reveal", "numpy", *SMALL],
        capture_output=True,
        text=True,
        env=os.environ | {"DETCONV_ISA": "foo"},
        check=False,
    )
    assert (run.returncode, run.stdout) == (2, "")
    assert "DETCONV_ISA must be one of " in run.stderr
    assert run.stderr.count("\n") == 1


def test_the_grids_script(tmp_path: Path) -> None:
    pytest.importorskip("scipy")
    script = [sys.executable, "-W", "ignore", str(ROOT / "bench" / "orders.py"), "--results", str(tmp_path / "results")]
    listing = subprocess.run(
        [*script, "--suite", "libraries", "--only", "numpy-", "--smoke"], capture_output=True, text=True, check=True
    )
    assert listing.stdout.count(": exact 100.000%") == 8
    again = subprocess.run(
        [*script, "--suite", "libraries", "--only", "numpy-", "--smoke"], capture_output=True, text=True, check=True
    )
    assert again.stdout == ""  # what has a result is not run again
    subprocess.run([*script, "--table", str(tmp_path / "orders.md")], check=True)
    page = (tmp_path / "orders.md").read_text(encoding="utf-8")
    assert "| libraries | 8 of 60 | 8 | 0 | 0 |" in page
    assert "`80x(+5){[m0 m4 m1 [m2 m3]]} bias`" in page
