"""A bounded number of examples of each fuzzer, and that their runner repeats and reports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from detconv.verdict import files
from fuzz import TARGETS, tensors

EXAMPLES = {"passes": 60, "orders": 200, "reveals": 150, "tensors": 150}


@pytest.mark.parametrize("name", TARGETS)
def test_some_examples(name: str) -> None:
    target = TARGETS[name]

    @settings(max_examples=EXAMPLES[name], suppress_health_check=list(HealthCheck))
    @given(target.EXAMPLES)
    def run(example: object) -> None:
        target.check(example)

    run()


@pytest.mark.parametrize("kind", tensors.KINDS)
def test_the_files_that_are_changed_can_be_read_unchanged(kind: str, tmp_path: Path) -> None:
    (tmp_path / f"file.{kind}").write_bytes(tensors._originals(kind))
    key = "" if kind == "npy" else ":a"
    assert files.read(f"{tmp_path}/file.{kind}{key}").shape == (2, 3)


def test_the_runner_repeats_what_a_seed_gave(tmp_path: Path) -> None:
    """With a target in which most examples are wrong."""
    script = (
        "import sys, fuzz, fuzz.__main__ as runner, types\n"
        "from hypothesis import strategies as st\n"
        "target = types.ModuleType('target')\n"
        "target.EXAMPLES = st.integers(0, 10**6)\n"
        "def check(n):\n"
        "    assert n < 1000, f'found {n}'\n"
        "target.check = check\n"
        "fuzz.TARGETS['target'] = target\n"
        "sys.argv = ['fuzz', 'target', '--seed', '5', '--seconds', '0']\n"
        "sys.exit(runner.main())\n"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, cwd=Path(__file__).parent, check=False
        )
        for _ in range(2)
    ]
    for run in runs:
        assert run.returncode == 1, run.stderr
        assert "fuzz target: seed 5" in run.stdout
        assert "Again: cd tests && python -m fuzz target --seed 5" in run.stdout
        assert "found 1000\n" in run.stderr  # the smallest
    assert runs[0].stdout == runs[1].stdout
