"""Files of arrays with bytes changed: an array, or one short ValueError."""

from __future__ import annotations

import io
import tempfile
import zipfile
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st

from bits import made
from detconv.verdict import files
from fuzz.refusals import tried


class Example(NamedTuple):
    kind: str
    data: bytes
    key: str


@cache
def _originals(kind: str) -> bytes:
    x, w, file = made((2, 3), np.float32, 1), made((4,), np.float64, 2), io.BytesIO()
    match kind:
        case "npy":
            np.save(file, x)
        case "npz":
            np.savez(file, a=x, b=w)
        case "pt":
            import torch

            torch.save({"a": torch.from_numpy(x), "b": [torch.from_numpy(w), {"c": torch.ones(2).bfloat16()}]}, file)
        case _:
            from safetensors.numpy import save

            return bytes(save({"a": x, "b": w}))
    return _zipped(_members(file.getvalue())) if kind in ("npz", "pt") else file.getvalue()


def _members(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _zipped(members: dict[str, bytes]) -> bytes:
    """The same bytes for the same members: all of them are of 1980."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return file.getvalue()


_PACKAGES = {"npy": "numpy", "npz": "numpy", "pt": "torch", "safetensors": "safetensors"}
KINDS = [kind for kind, package in _PACKAGES.items() if find_spec(package)]


@st.composite
def _examples(draw: st.DrawFn) -> Example:
    kind = draw(st.sampled_from(KINDS))
    data = _originals(kind)
    # A change to an archive itself is nearly always found by its checksums: most are made to what is inside.
    change = _rezipped if kind in ("npz", "pt") and draw(st.integers(0, 3)) else _edited
    data = change(draw, data)
    return Example(kind, data, draw(st.sampled_from(["", "a", "b", "b.0", "b.1.c", "c", "\ud800", "n" * 1000])))


def _rezipped(draw: st.DrawFn, data: bytes) -> bytes:
    members = _members(data)
    name = draw(st.sampled_from(list(members)))
    return _zipped(members | {name: _edited(draw, members[name])})


def _edited(draw: st.DrawFn, data: bytes) -> bytes:
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        end = min(len(data), at + draw(st.integers(0, 8)))
        match draw(st.sampled_from(["cut", "replace", "digit", "double", "swap"])):
            case "cut":
                data = data[:at]
            case "replace":
                data = data[:at] + draw(st.binary(max_size=8)) + data[end:]
            case "digit":
                data = data[:at] + draw(st.sampled_from([b"9", b"0", b"-1", b"\xff" * 8, b"99999999999"])) + data[end:]
            case "double":
                data = data[:end] + data[at:]
            case _:
                data = data[end:] + data[:end]
    return data


EXAMPLES = _examples()


def check(example: Example) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"file.{example.kind}"
        path.write_bytes(example.data)
        array, message = tried(lambda: files.read(f"{path}:{example.key}" if example.key else str(path)), 700)
        assert "\n" not in message
        kind = type(array).__name__
        assert message or kind in ("ndarray", "Tensor", "Parameter"), kind
