"""``python tests/mutants.py [FILE ...] [--count N] [--seed S]``: small mistakes in the code; do the tests notice?

A mutant is one file with one small change: another operator, a comparison that is off by one, a condition dropped, a
constant changed. The tests that are likeliest to notice run on it, in a copy of the tree under build/. A mutant that
survives shows a test that is missing, unless the change makes no difference that anybody could see.

mutmut and cosmic-ray know Python alone and Mull needs what only Clang compiles, so that one short script for both
languages, with one table of tests, is less than two tools.

The same seed draws the same mutants from the same files. Results are kept in build/mutants/results.jsonl: what ran
before, with the same mutant and the same tests, is not run again.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "build" / "mutants"
RESULTS = KEPT / "results.jsonl"

_BITS = ["test_reference_bits", "test_special_values", "test_exact", "test_reference_gradients", "test_golden"]

# The files that are mutated, and the tests of each that are likeliest to notice, the cheapest first.
FILES: dict[str, list[str]] = {
    "python/detconv/verdict/judge.py": ["test_mutants_seen", "test_judge", "test_together", "test_assert_conv2d"],
    "python/detconv/verdict/files.py": ["test_mutants_seen", "test_hostile", "test_judge_command"],
    "python/detconv/torch/ops.py": ["test_mutants_seen", "test_torch_ops", "test_tensor_call"],
    "csrc/detconv/exact.cpp": ["test_exact", *_BITS],
    "csrc/detconv/plan.cpp": ["test_walks", "test_zero_sizes", "test_kernels", *_BITS, "test_memory"],
    "csrc/detconv/worker.cpp": ["test_walks", "test_interrupt_everywhere", "test_invariance", *_BITS],
    "csrc/detconv/arithmetic.hpp": ["test_half", *_BITS],
}


@dataclass(frozen=True)
class Mutant:
    """A file with ``before``, which is at ``start``, replaced by ``after``."""

    path: str
    start: int
    line: int
    before: str
    after: str

    def applied(self, text: str) -> str:
        end = self.start + len(self.before)
        assert text[self.start : end] == self.before
        return text[: self.start] + self.after + text[end:]

    def __str__(self) -> str:
        before, after = (" ".join(part.split()) for part in (self.before, self.after))
        return f"{self.path}:{self.line}: {before} -> {after or '(nothing)'}"


# What is swapped with what, in both languages, and in each of them.
_SWAPS = {
    "<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "==",
    "+": "-", "-": "+", "*": "+", "/": "*", "%": "*", "&": "|", "|": "&", "<<": ">>", ">>": "<<",
}  # fmt: skip
_PYTHON_SWAPS = _SWAPS | {
    "//": "*", "**": "*", "@": "+", "and": "or", "or": "and",
    "is": "is not", "is not": "is", "in": "not in", "not in": "in",
}  # fmt: skip
_CPP_SWAPS = _SWAPS | {
    "&&": "||", "||": "&&", "+=": "-=", "-=": "+=", "*=": "+=", "|=": "&=", "&=": "|=",
}  # fmt: skip
_CPP_WORDS = {"true": "false", "false": "true", "std::min": "std::max", "std::max": "std::min"}


def mutants(path: str, text: str) -> list[Mutant]:
    """All mutants of a file, in the order of their places."""
    found = _python(text) if path.endswith(".py") else _cpp(text)
    return [Mutant(path, start, text.count("\n", 0, start) + 1, *change) for start, *change in sorted(found)]


def drawn(texts: dict[str, str], seed: int) -> Iterator[Mutant]:
    """The mutants of all files in an order that the seed gives, the files in turn."""
    orders = []
    for path, text in texts.items():
        order = mutants(path, text)
        random.Random(f"{seed} {path}").shuffle(order)
        orders.append(order)
    in_turn = itertools.chain.from_iterable(itertools.zip_longest(*orders))
    return (mutant for mutant in in_turn if mutant is not None)


# ---- Python: by the syntax tree, whose positions leave all else as it was written ----

_Change = tuple[int, str, str]  # start, before, after


def _python(text: str) -> Iterator[_Change]:
    starts = [0, *itertools.accumulate(len(line) for line in text.splitlines(keepends=True))]
    lines = text.splitlines()

    def at(line: int, column: int) -> int:  # the tree counts bytes
        return starts[line - 1] + len(lines[line - 1].encode()[:column].decode())

    def span(node: Any) -> tuple[int, int]:
        return at(node.lineno, node.col_offset), at(node.end_lineno, node.end_col_offset)

    def source(node: ast.expr) -> str:
        return text[slice(*span(node))]

    def replaced(node: ast.expr, by: str) -> _Change:
        return span(node)[0], source(node), by

    def between(left: ast.expr, right: ast.expr) -> Iterator[_Change]:
        """The operator between two operands; around it are blanks and parentheses, never another operator."""
        start, end = span(left)[1], span(right)[0]
        operator = re.search(r"[^\s()#]+(?: not| in)?", text[start:end])
        if operator and operator[0] in _PYTHON_SWAPS:
            yield start + operator.start(), operator[0], _PYTHON_SWAPS[operator[0]]

    for node in _computing(ast.parse(text)):
        match node:
            case ast.Compare():
                for left, right in itertools.pairwise([node.left, *node.comparators]):
                    yield from between(left, right)
            case ast.BinOp():
                yield from between(node.left, node.right)
            case ast.BoolOp():
                for left, right in itertools.pairwise(node.values):
                    yield from between(left, right)
                for kept in node.values if len(node.values) == 2 else []:
                    yield replaced(node, f"({source(kept)})")
            case ast.UnaryOp(op=ast.Not()):
                yield replaced(node, f"({source(node.operand)})")
            case ast.If() | ast.IfExp():
                for value in ("True", "False"):
                    yield replaced(node.test, value)
            case ast.Constant(value=bool() as value):
                yield replaced(node, repr(not value))
            case ast.Constant(value=int() | float() as value):
                yield replaced(node, repr(value + 1))


def _computing(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a tree that compute: no annotations, aliases of types, decorators or imports for type checkers.

    Nor what is inside an f-string: it is a message mostly, and before Python 3.12 it has no positions.
    """
    for name, value in ast.iter_fields(tree):
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or isinstance(child, ast.JoinedStr) or _is_for_types(child):
                continue
            if name not in ("annotation", "returns", "decorator_list"):
                yield child
                yield from _computing(child)


def _is_for_types(node: ast.AST) -> bool:
    return (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING") or (
        isinstance(node, ast.AnnAssign) and ast.unparse(node.annotation) == "TypeAlias"
    )


# ---- C++: by regular expressions, for which clang-format is a help: it has blanks around what has two operands ----

_NO_CODE = re.compile(
    r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])\'|^\s*#[^\n]*', re.DOTALL | re.MULTILINE
)


def _cpp(text: str) -> Iterator[_Change]:
    code = _NO_CODE.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), text)
    for found in re.finditer(r"(?<= )[<>=!+\-*/%&|]+(?=\s)", code):
        if found[0] in _CPP_SWAPS:
            yield found.start(), found[0], _CPP_SWAPS[found[0]]
    for found in re.finditer(r"(?<![\w:.])(?:true|false|std::min|std::max)\b(?![:(]?:)", code):
        yield found.start(), found[0], _CPP_WORDS[found[0]]
    for found in re.finditer(r"(?<![\w.+\-])\d+(?![\w.'])", code):
        yield found.start(), found[0], str(int(found[0]) + 1)
    for found in re.finditer(r"!(?=[\w(])", code):
        yield found.start(), "!", ""
    for found in re.finditer(r"\bif \(", code):
        end = _closing(code, found.end())
        for value in ("true", "false"):
            yield found.end(), text[found.end() : end], value


def _closing(code: str, start: int) -> int:
    """Where the parenthesis that was opened before start is closed."""
    depth = 1
    for at in range(start, len(code)):
        depth += {"(": 1, ")": -1}.get(code[at], 0)
        if depth == 0:
            return at
    raise ValueError("a parenthesis is not closed")


# ---- Running them ----


class Tree:
    """A copy of the tree, in which one file at a time is mutated."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._library = ""  # the source with which the extension was last built; "": it is the installed one

    def fill(self) -> None:
        """Copy what git knows or would add. What is the same keeps its time, so that only what changed is compiled."""
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        )
        names = {name for name in listed.stdout.split("\0") if (ROOT / name).is_file()}
        for copy in [*self.folder.glob("csrc/**/*.*"), *self.folder.glob("tests/**/*.py")]:
            if copy.relative_to(self.folder).as_posix() not in names:  # it would be compiled, or run
                copy.unlink()
        for name in names:
            source, copy = ROOT / name, self.folder / name
            if not (copy.is_file() and copy.read_bytes() == source.read_bytes()):
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, copy)

    def install(self) -> None:
        """The extension as it is installed: enough where only Python is mutated."""
        import detconv._core as core

        assert core.__file__ is not None
        shutil.copy(core.__file__, self.folder / "python" / "detconv")

    def build(self) -> str:
        """Compile the extension; what the compiler says if it cannot."""
        import pybind11

        build = self.folder / "build" / "extension"
        configure = [
            *("cmake", "-G", "Ninja", "-S", str(self.folder), "-B", str(build), "-DCMAKE_BUILD_TYPE=Release"),
            *(f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"),
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={self.folder / 'python' / 'detconv'}",
        ]
        for command in ([] if (build / "build.ninja").exists() else [configure]) + [["cmake", "--build", str(build)]]:
            ran = subprocess.run(command, capture_output=True, text=True, check=False)
            if ran.returncode != 0:
                return ran.stdout + ran.stderr
        return ""

    def test(self, tests: list[str], seconds: float | None) -> tuple[bool, str]:
        """Whether the tests pass, and which of them does not."""
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *map(_file_of, tests)]
        # The same random examples for all mutants, and this copy's package before an installed one.
        environment = {**os.environ, "CI": "1", "PYTHONPATH": str(self.folder / "python")}
        try:
            ran = subprocess.run(
                command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False, timeout=seconds
            )
        except subprocess.TimeoutExpired:
            return False, "hangs"
        if ran.returncode < 0:
            return False, f"crashes: {signal.strsignal(-ran.returncode)}"
        failed = re.search(r"^(?:FAILED|ERROR) (\S+)", ran.stdout, re.MULTILINE)
        return ran.returncode == 0, failed[1] if failed else (ran.stdout + ran.stderr).strip()[-300:]


def _file_of(test: str) -> str:
    return f"tests/{test}.py"


class Results:
    """What ran before, by a hash of the mutated file and of its tests."""

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self._known: dict[str, dict[str, Any]] = {entry["key"]: entry for entry in map(json.loads, lines)}

    @staticmethod
    def key(text: str, tests: list[str]) -> str:
        parts = [text, *((ROOT / _file_of(test)).read_text() for test in tests)]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def get(self, key: str, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        if key not in self._known:
            self._known[key] = {"key": key, **run()}
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a") as file:
                file.write(json.dumps(self._known[key]) + "\n")
        return self._known[key]


class Run:
    def __init__(self, tree: Tree, results: Results) -> None:
        self._tree, self._results = tree, results
        self._texts = {path: (ROOT / path).read_text() for path in FILES}

    def outcome(self, mutant: Mutant) -> dict[str, Any]:
        """``killed`` by a test, ``survived``, or ``not compiled``."""
        text, tests = self._texts[mutant.path], FILES[mutant.path]
        unmutated = self._results.get(Results.key(text, tests), lambda: self._unmutated(tests))
        mutated = mutant.applied(text)
        return self._results.get(
            Results.key(mutated, tests), lambda: asdict(mutant) | self._mutated(mutant, mutated, unmutated["seconds"])
        )

    def _unmutated(self, tests: list[str]) -> dict[str, Any]:
        """That the tests pass where nothing is wrong, and in what time."""
        start = time.monotonic()
        passed, failed = self._tree.test(tests, None)
        if not passed:
            sys.exit(f"without any mutant a test fails: {failed}")
        return {"seconds": time.monotonic() - start}

    def _mutated(self, mutant: Mutant, mutated: str, seconds: float) -> dict[str, Any]:
        file = self._tree.folder / mutant.path
        file.write_text(mutated)
        try:
            if not mutant.path.endswith(".py") and self._tree.build():
                return {"outcome": "not compiled", "by": ""}
            passed, failed = self._tree.test(FILES[mutant.path], 60 + 5 * seconds)
            return {"outcome": "survived" if passed else "killed", "by": "" if passed else failed}
        finally:
            file.write_text(self._texts[mutant.path])


def main() -> int:
    parser = argparse.ArgumentParser("mutants.py", description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("file", nargs="*", help="ends of the names of the files to mutate (default: all of the table)")
    parser.add_argument("--count", type=int, default=20, help="how many mutants, in all (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of their choice (default: %(default)s)")
    parser.add_argument("--list", action="store_true", help="print them, run nothing")
    options = parser.parse_args()
    texts = {
        path: (ROOT / path).read_text() for path in FILES if not options.file or path.endswith(tuple(options.file))
    }
    chosen = list(itertools.islice(drawn(texts, options.seed), options.count))
    if options.list:
        print("\n".join(map(str, chosen)))
        return 0
    tree = Tree(KEPT / "tree")
    tree.fill()
    tree.install()
    if not all(mutant.path.endswith(".py") for mutant in chosen) and (message := tree.build()):
        sys.exit(message)
    run = Run(tree, Results(RESULTS))
    outcomes = []
    for mutant in chosen:
        found = run.outcome(mutant)
        outcomes.append(found["outcome"])
        print(f"{found['outcome']:12} {mutant}" + (f" [{found['by']}]" if found["by"] else ""), flush=True)
    print(", ".join(f"{outcomes.count(outcome)} {outcome}" for outcome in ("killed", "survived", "not compiled")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
