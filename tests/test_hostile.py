"""What came from somebody else and means no good: texts and files. Short, plain errors; bounded time and memory."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import detconv
from bits import made
from detconv import Summation, cli
from detconv.quoting import MOST, first_line, quoted, shortened
from detconv.verdict import files

X, W = made((1, 2, 4, 4), np.float32, 1), made((1, 2, 2, 2), np.float32, 2)
LONGEST_MESSAGE = 500  # of our own words around what is quoted


# ---- Quoting ----


@given(st.text(st.characters(), max_size=400), st.integers(10, 300))
def test_what_is_quoted_is_short_and_has_an_encoding(text: str, most: int) -> None:
    for short in (shortened(text, most), quoted(text, most), quoted([text], most)):
        assert len(short) <= most
        short.encode("utf-8")
    if len(repr(text)) <= most:
        assert quoted(text, most) == repr(text)
    if len(text) <= most and "\\u" not in ascii(text):
        assert shortened(text, most) == text


def test_what_has_no_repr_is_quoted_by_its_kind() -> None:
    class Mute:
        def __repr__(self) -> str:
            raise RuntimeError

    assert quoted(Mute()) == "<Mute>"
    assert len(quoted(10**5000)) <= MOST
    assert first_line(ValueError("\n  two\nlines")) == "two"
    assert first_line(ValueError()) == "ValueError"


# Where a caller's text comes in, and ends up in a message.
TEXTS: dict[str, Callable[[str], object]] = {
    "method": lambda text: Summation(text),
    "order": lambda text: Summation(order=text),
    "order after a term": lambda text: Summation(order="f0 " + text),
    "products": lambda text: Summation(products=text),
    "parse": lambda text: Summation.parse(text),
    "field": lambda text: Summation.parse(f"naive {text}=3"),
    "value": lambda text: Summation.parse(f"naive bias={text}"),
    "block": lambda text: Summation.parse(f"pairwise block={text}"),
    "number": lambda text: Summation(order="f" + text),
    "conv2d": lambda text: detconv.conv2d(X, W, summation=text),
    "padding": lambda text: detconv.conv2d(X, W, padding=text),
    "stride": lambda text: detconv.conv2d(X, W, stride=text),  # type: ignore[arg-type]
    "pass_": lambda text: detconv.reveal(print, X.shape, W.shape, pass_=text),
    "dtype": lambda text: detconv.reveal(print, X.shape, W.shape, dtype=text),
    "layout": lambda text: detconv.reveal(print, X.shape, W.shape, layout=text),
    "arrays": lambda text: detconv.reveal(print, X.shape, W.shape, arrays=text),
    "judge": lambda text: detconv.judge(X, X, W, dtype=text),
    "judged products": lambda text: detconv.judge(X, X, W, dtype=f"float32/{text}"),
    "transposed padding": lambda text: detconv.judge(X, X, W, padding=text, transposed=True),
    "file": lambda text: files.read(text + ".npy"),
}


@pytest.mark.parametrize("place", TEXTS)
@pytest.mark.parametrize("text", ["q" * 10**6, "9" * 10**6, "é" * 10**5, "\ud800", "f\udcff", "\x00", "'\"" * 10**5])
def test_messages_are_short(place: str, text: str) -> None:
    with pytest.raises((ValueError, TypeError, FileNotFoundError)) as raised:
        TEXTS[place](text)
    message = str(raised.value)
    assert len(message) <= LONGEST_MESSAGE
    message.encode("utf-8")
    assert "pybind11" not in message
    assert "incompatible" not in message


@pytest.mark.parametrize("place", [place for place in TEXTS if place not in ("stride", "file")])
def test_a_lone_surrogate_is_a_value_error(place: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        TEXTS[place]("f0 \ud800")


def test_the_column_is_that_of_the_engine_and_not_one_that_the_text_claims() -> None:
    with pytest.raises(ValueError, match=r"^summation, column 14: method"):
        Summation.parse('bias=last   "z at column 99 of x" products=rounded')


def test_a_long_order_has_a_short_repr() -> None:
    long = Summation(order=" ".join(f"f{k}" for k in range(10**4)) + " bias")
    assert len(repr(long)) < 400
    assert Summation.parse(str(long)) == long


# ---- Files of arrays ----


def saved(tmp_path: Path, name: str, data: bytes) -> str:
    (tmp_path / name).write_bytes(data)
    return str(tmp_path / name)


def refused(capsys: pytest.CaptureFixture[str], file: str) -> str:
    """What ``detconv judge`` says of the file; it must be one sentence, and the exit status 2."""
    assert cli.main(["judge", "--output", file, "--input", file, "--weight", file]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    assert len(err) <= LONGEST_MESSAGE + MOST
    return err


def npz(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


@pytest.mark.parametrize("content", [b"just text", b"", b"\x93NUMPY", bytes(1000)])
def test_a_member_that_is_no_array(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = saved(tmp_path, "notes.npz", npz(notes=content))
    said = refused(capsys, file)
    assert ("'notes' is no array" in said) or ("cannot be read" in said)
    assert "is no array" in said or content.startswith(b"\x93NUMPY")


def array_bytes(kind: str) -> bytes:
    file = io.BytesIO()
    match kind:
        case "npy":
            np.save(file, X)
        case "npz":
            np.savez(file, a=X, b=W)
        case "pt":
            torch = pytest.importorskip("torch")
            torch.save(torch.from_numpy(X), file)
        case "safetensors":
            return bytes(pytest.importorskip("safetensors.numpy").save({"a": X}))
    return file.getvalue()


@pytest.mark.parametrize("kind", ["npy", "npz", "pt", "safetensors"])
def test_truncated_files(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = array_bytes(kind)
    for size in {0, 1, 8, 60, len(whole) // 2, len(whole) - 1}:
        assert "cannot be read" in refused(capsys, saved(tmp_path, f"cut.{kind}", whole[:size]))


def test_a_pickled_module_is_refused_in_plain_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch = pytest.importorskip("torch")
    torch.save(torch.nn.Conv2d(1, 1, 1), tmp_path / "module.pt")
    said = refused(capsys, str(tmp_path / "module.pt"))
    assert "a whole module" in said
    assert "state_dict()" in said
    (tmp_path / "plain.pt").write_bytes(pickle.dumps({"a": 1}))
    refused(capsys, str(tmp_path / "plain.pt"))


def shared_lists(depth: int, leaf: Any) -> Any:
    """Ten to the power of `depth` names for one leaf, in depth containers."""
    value = [leaf]
    for _ in range(depth):
        value = [value] * 10
    return value


def test_shared_containers_are_walked_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch = pytest.importorskip("torch")
    leaf, file = torch.from_numpy(X), tmp_path / "shared.pt"
    torch.save({"deep": shared_lists(40, leaf), "flat": leaf}, file)
    assert torch.equal(files.read(f"{file}:flat"), leaf)
    assert torch.equal(files.read(f"{file}:deep{'.0' * 41}"), leaf)
    said = refused(capsys, str(file))
    assert "has 2 arrays" in said
    # A container that is in itself, by the way of a list or of a dictionary.
    loop: Any = [leaf]
    loop.append({"again": loop})
    torch.save(loop, file)
    assert torch.equal(files.read(str(file)), leaf)
    # The same tensor under two names of one dictionary is there by both.
    torch.save({"a": leaf, "b": leaf}, file)
    assert torch.equal(files.read(f"{file}:b"), leaf)


def test_names_are_capped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch = pytest.importorskip("torch")
    leaf, file, nested = torch.from_numpy(X), tmp_path / "long.pt", torch.from_numpy(X)
    for _ in range(300):
        nested = {"k" * 100: nested, "ende": leaf}
    torch.save({"nested": nested, **{f"{i}" + "n" * 500: leaf for i in range(50)}}, file)
    said = refused(capsys, str(file))
    assert "more" in said


def test_a_directory_or_a_name_that_no_file_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is a directory" in refused(capsys, str(tmp_path))
    assert "no such file" in refused(capsys, "x" * 10**5 + ".npy")
    assert "no such file" in refused(capsys, "nul\x00.npy")
