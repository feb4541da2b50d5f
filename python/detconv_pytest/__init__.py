"""The pytest plugin of detconv: ``--detconv-html DIR`` writes the verdict of each failed assertion as a page, and
``--detconv-allow-unlikely``, or the setting ``detconv_allow_unlikely``, lets assertions pass what is no proven mistake.

pytest loads this in every environment that has detconv, before tests and coverage start. So it is a package of its own,
which imports nothing: not detconv, not NumPy.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

# Whether assertions pass outputs that are unlikely where they are not told: detconv.testing looks here.
allow_unlikely = False


def pytest_addoption(parser: pytest.Parser) -> None:
    says = "let detconv.testing.assert_conv2d and its like pass outputs that are unlikely, which is no proof"
    parser.getgroup("detconv").addoption("--detconv-allow-unlikely", action="store_true", help=says)
    parser.addini("detconv_allow_unlikely", says, type="bool", default=False)
    parser.getgroup("detconv").addoption(
        "--detconv-html",
        metavar="DIR",
        help="write the verdict of each failed detconv.testing.assert_conv2d as a page of HTML into this directory",
    )


def pytest_configure(config: pytest.Config) -> None:
    global allow_unlikely
    allow_unlikely = config.getoption("--detconv-allow-unlikely") or config.getini("detconv_allow_unlikely")
    directory = _directory(config)
    if directory is not None and directory.exists() and not directory.is_dir():
        raise pytest.UsageError(f"--detconv-html must be a directory; got {directory}")


def pytest_unconfigure() -> None:
    global allow_unlikely
    allow_unlikely = False


@pytest.hookimpl(hookwrapper=True)  # the newer kind of wrapper would break runs of pytest 7
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, None]:
    report = (yield).get_result()
    directory = _directory(item.config)
    if directory is not None and report.failed and call.excinfo is not None:
        verdict = _verdict(call.excinfo.value)
        if verdict is not None:
            report.sections.append(("detconv", _write(verdict, directory, f"{item.nodeid}-{call.when}")))


def _directory(config: pytest.Config) -> Path | None:
    given = config.getoption("--detconv-html")
    return None if given is None else config.invocation_params.dir / given


def _verdict(error: BaseException | None) -> Any:
    """The verdict that an exception, or one behind it, stands for."""
    judging = sys.modules.get("detconv.verdict.judge")
    seen: set[int] = set()
    while judging is not None and error is not None and id(error) not in seen:
        if isinstance(error, judging.ConvolutionMistake):
            return getattr(error, "verdict", None)
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None


def _write(verdict: Any, directory: Path, name: str) -> str:
    """Write the page of a test, whose name may be no file's; say where it is."""
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    path = directory / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', name)[:120]}-{digest}.html"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        verdict.to_html(path)
    except Exception as error:  # a failed test is reported, whatever becomes of its page
        return f"The verdict could not be written as a page: {error!r}"
    return f"The verdict as a page: {path}"
