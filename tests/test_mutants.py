"""The parts of mutants.py, without running any mutant's tests."""

from __future__ import annotations

import ast
import itertools
from pathlib import Path

import pytest

import mutants

TEXTS = {path: (mutants.ROOT / path).read_text() for path in mutants.FILES}

PYTHON = '''
"""Not 1 < 2."""
if TYPE_CHECKING:
    from a import b

Name: TypeAlias = int | str

@decorated(frozen=True)
def f(é: int | None, *more: int) -> int | None:
    """A text with 1 + 1."""
    text = "é", f"{é + 1}"
    if é is not None and (
        é < 2
        or é in more
    ):
        return -é  # as 1 - 2
    return not text
'''

CPP = """
#include <a/b>  // 1 + 2
template <class T, int n>
T f(const T& a, T* const b) {
    /* 1 - 2 */
    const char* text = "1 < 2 && '\\"' + 3";
    if (g(a) <= 0x1p-53 && !b) return -1.0;
    auto&& c = std::min(a, 'a' / 2);
    return true ? c : T(1);
}
"""


@pytest.mark.parametrize("path", mutants.FILES)
def test_a_mutant_is_one_change_of_code_that_still_parses(path: str) -> None:
    text = TEXTS[path]
    found = mutants.mutants(path, text)
    assert len(found) >= 30
    assert len(set(found)) == len(found)
    for mutant in found:
        mutated = mutant.applied(text)
        assert mutated != text
        before, after = text[: mutant.start], text[mutant.start + len(mutant.before) :]
        assert mutated == before + mutant.after + after
        assert mutant.line == before.count("\n") + 1
    if path.endswith(".py"):
        tree = ast.dump(ast.parse(text))
        for mutant in found[:: len(found) // 25]:
            assert ast.dump(ast.parse(mutant.applied(text))) != tree


def _changes(name: str, text: str) -> list[str]:
    return [str(mutant).removeprefix(f"{name}:") for mutant in mutants.mutants(name, text)]


def test_what_is_changed_in_python() -> None:
    assert _changes("a.py", PYTHON) == [
        "12: é is not None and ( é < 2 or é in more ) -> (é < 2 or é in more)",
        "12: é is not None and ( é < 2 or é in more ) -> (é is not None)",
        "12: é is not None and ( é < 2 or é in more ) -> False",
        "12: é is not None and ( é < 2 or é in more ) -> True",
        "12: is not -> is",
        "12: and -> or",
        "13: é < 2 or é in more -> (é < 2)",
        "13: é < 2 or é in more -> (é in more)",
        "13: < -> <=",
        "13: 2 -> 3",
        "14: or -> and",
        "14: in -> not in",
        "17: not text -> (text)",
    ]


def test_what_is_changed_in_cpp() -> None:
    assert _changes("a.cpp", CPP) == [
        "7: g(a) <= 0x1p-53 && !b -> false",
        "7: g(a) <= 0x1p-53 && !b -> true",
        "7: <= -> <",
        "7: && -> ||",
        "7: ! -> (nothing)",
        "8: std::min -> std::max",
        "8: / -> *",
        "8: 2 -> 3",
        "9: true -> false",
        "9: 1 -> 2",
    ]


def test_the_same_seed_draws_the_same_mutants() -> None:
    def first(seed: int, count: int) -> list[mutants.Mutant]:
        return list(itertools.islice(mutants.drawn(TEXTS, seed), count))

    assert first(1, 70) == first(1, 70)
    assert first(1, 70)[:30] == first(1, 30)
    assert len({tuple(first(seed, 30)) for seed in range(5)}) == 5
    counts = [sum(mutant.path == path for mutant in first(2, 70)) for path in TEXTS]
    assert counts == [10] * len(TEXTS)


def test_all_tests_of_the_table_are_there() -> None:
    for test in set(itertools.chain(*mutants.FILES.values())):
        assert (Path(__file__).parent / f"{test}.py").is_file(), test


def test_what_ran_is_not_run_again_until_a_test_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mutants, "ROOT", tmp_path)
    (tmp_path / "tests").mkdir()
    test = tmp_path / "tests" / "test_a.py"
    test.write_text("def test(): ...")
    runs: list[str] = []

    def ran() -> str:
        def run() -> dict[str, str]:
            runs.append(outcome)
            return {"outcome": outcome}

        outcome = "killed" if "assert" in test.read_text() else "survived"
        results = mutants.Results(tmp_path / "results.jsonl")
        found: str = results.get(results.key("a + b", ["test_a"]), run)["outcome"]
        return found

    assert [ran(), ran()] == ["survived", "survived"]
    test.write_text("def test(): assert False")
    assert [ran(), ran()] == ["killed", "killed"]
    assert runs == ["survived", "killed"]
