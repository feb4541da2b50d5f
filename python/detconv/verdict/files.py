"""Arrays out of files: .npy, .npz, .pt and .safetensors; ``FILE:KEY`` names one of several in a file."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from detconv.quoting import first_line, quoted, shortened

# Nested containers give names that are joined by dots; what lies deeper than a name of so many characters has none.
_LONGEST_NAME = 1000

# What a reader returns: the names in the file, None for an array without a name, and what gives one of them.
_Contents: TypeAlias = tuple[list[str] | None, Callable[[str], Any]]


def read(text: str) -> Any:
    """The array that a text names: a NumPy array or a torch tensor.

    Args:
        text: the path of a file, and behind a colon the name of one array where the file has several. In a .pt file
            the names of nested dictionaries and lists are joined by dots: ``model.pt:state_dict.conv1.weight``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: of another kind or damaged, or a name that is missing or not in it.
        ImportError: it takes a package that is not installed.
    """
    path, key = _split(text)
    shown = shortened(str(path))
    if not _is(path, Path.is_file):
        raise FileNotFoundError(f"{shown}: {'is a directory' if _is(path, Path.is_dir) else 'no such file'}")
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"{shown}: the name of a file must end in {', '.join(_READERS)}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # libraries warn of what is odd about a file before they fail
            names, get = reader(path)
            return get(_chosen(shown, names, key))
    except (ImportError, _Choice):
        raise
    except Exception as error:  # every library has its own for a damaged file
        raise ValueError(f"{shown}: cannot be read: {first_line(error)}") from error


class _Choice(ValueError):
    """The wrong name, or none, for an array of a file."""


def _split(text: str) -> tuple[Path, str | None]:
    """The path and the name; both may have colons in them."""
    colons = [i for i, letter in enumerate(text) if letter == ":"]
    for end in [len(text), *reversed(colons)]:
        if _is(Path(text[:end]), Path.is_file):
            return Path(text[:end]), text[end + 1 :] or None
    # There is no such file: say so of what looks most like its name.
    for end in colons:
        if Path(text[:end]).suffix.lower() in _READERS:
            return Path(text[:end]), text[end + 1 :] or None
    return Path(text), None


def _is(path: Path, kind: Callable[[Path], bool]) -> bool:
    """``Path.is_file`` or ``Path.is_dir`` of a path; False for one that no file can have, for which they raise."""
    try:
        return kind(path)
    except (OSError, ValueError):
        return False


def _chosen(shown: str, names: list[str] | None, key: str | None) -> str:
    if names is None:
        if key is not None:
            raise _Choice(f"{shown} has one array, without a name; got the name {quoted(key)}")
        return ""
    if key is None and len(names) == 1:
        return names[0]
    if key not in names:
        listed = shortened(", ".join(names[:20])) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
        wanted = f"has no array {quoted(key)}" if key else f"has {len(names)} arrays: name one as in {shown}:NAME"
        raise _Choice(f"{shown} {wanted}; it has {listed or 'none'}")
    return key


def _read_npy(path: Path) -> _Contents:
    array = np.load(path, allow_pickle=False)
    return None, lambda _: array


def _read_npz(path: Path) -> _Contents:
    if not zipfile.is_zipfile(path):  # numpy.load would take it for a pickle
        raise ValueError("it is no .npz file, or a truncated one")
    with np.load(path, allow_pickle=False) as archive:
        names = list(archive.files)

    def get(name: str) -> Any:
        with np.load(path, allow_pickle=False) as archive:
            member = archive[name]
        if not isinstance(member, np.ndarray):  # NumPy gives the bytes of what it does not know
            raise _Choice(f"{shortened(str(path))}: its member {quoted(name)} is no array")
        return member

    return names, get


def _read_torch(path: Path) -> _Contents:
    torch = _package("torch", path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Weights only load failed" not in str(error):
            raise
        raise ValueError(
            "it is damaged, or has other objects in it than tensors in dictionaries and lists: a whole module, say, "
            "which could run code of its own (save its state_dict() in place of it)"
        ) from error
    if isinstance(loaded, torch.Tensor):
        return None, lambda _: loaded
    tensors = {name: value for name, value in _flattened(loaded) if isinstance(value, torch.Tensor)}
    return list(tensors), tensors.__getitem__


def _flattened(value: Any) -> Iterator[tuple[str, Any]]:
    """What is in nested dictionaries and lists, by joined names.

    A container that several others share is walked once, under the first of its names: else ten lists, each of ten
    times the next, would be 10^10 arrays. One that contains itself ends likewise.
    """
    seen = set()
    todo: list[tuple[str, Any]] = [("", value)]
    while todo:
        name, inner = todo.pop()
        if not isinstance(inner, (list, tuple, Mapping)):
            yield name, inner
        elif id(inner) not in seen:
            seen.add(id(inner))
            items = inner.items() if isinstance(inner, Mapping) else enumerate(inner)
            named = [(f"{name}.{key}" if name else str(key), child) for key, child in items if _names(key, name)]
            todo += reversed(named)


def _names(key: Any, before: str) -> bool:
    """Whether a key is of a kind that gives a name, and the name that it gives is not too long."""
    return isinstance(key, int) or (isinstance(key, str) and len(before) + len(key) < _LONGEST_NAME)


def _read_safetensors(path: Path) -> _Contents:
    open_file = _package("safetensors", path).safe_open
    with open_file(path, "numpy") as file:
        names = list(file.keys())

    def get(name: str) -> Any:
        framework = "numpy"
        with open_file(path, framework) as file:
            if file.get_slice(name).get_dtype() == "BF16":  # which ml_dtypes adds to NumPy, and torch has
                framework = "numpy" if find_spec("ml_dtypes") else "pt"
                _package("ml_dtypes" if framework == "numpy" else "torch", path)
        with open_file(path, framework) as file:
            return file.get_tensor(name)

    return names, get


def _package(name: str, path: Path) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(
            f"{shortened(str(path))} is read by {name}, which is not installed (pip install {name})"
        ) from error


_READERS: dict[str, Callable[[Path], _Contents]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".pt": _read_torch,
    ".pth": _read_torch,
    ".safetensors": _read_safetensors,
}
