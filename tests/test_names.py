"""What the package calls its own: dir, help, star imports and type checkers know the same public names."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import detconv

OF_TORCH = {"compare_models", "convert", "nn", "override", "weights_sha256"}


def public_names() -> set[str]:
    """Those that are written down for type checkers."""
    tree = ast.parse(Path(detconv.__file__).read_text())
    (names,) = (
        ast.literal_eval(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets)
    )
    assert names == sorted(names)
    return set(names)


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_dir_and_the_docstring_name_everything_public() -> None:
    pytest.importorskip("torch")
    names = public_names()
    assert names <= set(dir(detconv))
    assert set(detconv.__all__) == names
    assert detconv.__doc__ is not None
    words = set(detconv.__doc__.replace(",", " ").split())
    assert names - {"__version__"} <= words
    for name in names:
        assert getattr(detconv, name) is not None
        assert getattr(getattr(detconv, name), "__doc__", None)


@pytest.mark.parametrize("torch", ["installed", "imported", "missing"])
def test_star_imports_and_help(torch: str) -> None:
    if torch != "missing":
        pytest.importorskip("torch")
    before = {"installed": "", "imported": "import torch", "missing": "sys.modules['torch'] = None"}[torch]
    code = f"""
import sys
{before}
names = {{}}
exec("from detconv import *", names)
assert ("torch" in sys.modules) == {torch != "installed"}
print(*sorted(set(names) - {{"__builtins__"}}))
import pydoc, detconv
text = pydoc.render_doc(detconv)
for name in {sorted(public_names() - {"__version__"})!r}:
    assert name in text, name
"""
    given = set(run(code).split())
    assert given == public_names() - (OF_TORCH if torch != "imported" else set())
