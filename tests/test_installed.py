"""The ways in which the package is installed for those who work on it."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# What an editable install by scikit-build-core puts beside the package: a finder, which a .pth file imports when Python
# starts, in a distribution that has a plugin of pytest's.
EDITABLE = {
    "_editable_skbc_detconv.py": "",
    "its_plugin.py": "",
    "its-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: its\nVersion: 1.0\n",
    "its-1.0.dist-info/entry_points.txt": "[pytest11]\nits = its_plugin\n",
    "its-1.0.dist-info/RECORD": "_editable_skbc_detconv.py,,\nits_plugin.py,,\nits-1.0.dist-info/METADATA,,\n",
}


def test_the_suite_starts_in_an_editable_install(tmp_path: Path) -> None:
    for name, text in EDITABLE.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    code = """
        import sys, _editable_skbc_detconv, pytest
        assert "its_plugin" not in sys.modules
        status = pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", "tests/test_installed.py"])
        assert "its_plugin" in sys.modules
        sys.exit(status)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (pytest.ExitCode.OK, ""), done.stdout + done.stderr
    assert "test_the_suite_starts_in_an_editable_install" in done.stdout
