"""Bits are permanent: the hashes of golden/*.txt, from every instruction set and from the specification.

The self-test in tests/cpp checks the same files without Python, on emulated processors too.
"""

from __future__ import annotations

import re
from itertools import product
from typing import Any

import pytest

import detconv
from bits import KINDS, LOOP_ORDERS, METHODS
from detconv import Summation, reference
from detconv.testing import instruction_set
from golden.make import Case, cases

CASES, GRADIENTS = cases("forward.txt"), cases("gradients.txt")
INSTRUCTION_SETS: Any = detconv.build_info()["instruction_sets_usable"]


def engine_hashes(case: Case) -> dict[str, str]:
    hashes = {}
    for name in INSTRUCTION_SETS:
        with instruction_set(name):
            hashes[name] = case.hash_of(detconv)
    return hashes


@pytest.mark.parametrize("case", CASES + GRADIENTS, ids=lambda case: case.hash[:12])
def test_hash(case: Case) -> None:
    assert len(INSTRUCTION_SETS) >= 2, "one instruction set alone shows nothing"
    assert engine_hashes(case) == dict.fromkeys(INSTRUCTION_SETS, case.hash), case.line
    assert case.hash_of(reference) == case.hash, case.line


def test_cases_are_different() -> None:
    """No line twice, and no two results alike: a hash that many calls share would tell little."""
    for found in (CASES, GRADIENTS):
        assert len({case.line.split(maxsplit=1)[1] for case in found}) == len(found)
        assert len({case.hash for case in found}) == len(found)
        assert all(re.fullmatch("[0-9a-f]{64}", case.hash) for case in found), "run tests/golden/make.py"


def test_gradients_cover_the_methods() -> None:
    """Every method meets both types and both ways to join samples, and all samples of a batch."""
    rules = [(Summation.parse(case.summation), case) for case in GRADIENTS]
    found = {(rule.method, case.columns[1], rule.samples) for rule, case in rules}
    assert found == set(product(METHODS, ["float32", "float64"], ["tree", "sequence"]))
    assert {case.columns[9] for case in GRADIENTS} == {k.replace(" ", "-") for k in KINDS}


def test_cases_cover_the_contract() -> None:
    """Every method meets both types, every kind of data, every position of the bias; every field has been used."""
    rules = [(Summation.parse(case.summation), case) for case in CASES]
    methods = [(rule.method, case) for rule, case in rules if not rule.explicit_order]
    assert {(m, case.columns[1]) for m, case in methods} == set(product(METHODS, ["float32", "float64"]))
    assert {(m, case.columns[9]) for m, case in methods} == set(product(METHODS, [k.replace(" ", "-") for k in KINDS]))
    assert {rule.order for rule, _ in rules if not rule.explicit_order} == set(LOOP_ORDERS)
    assert {(rule.products, rule.bias) for rule, _ in rules} == set(product(["fused", "rounded"], ["last", "first"]))
    explicit = [(rule.order, case.columns[1]) for rule, case in rules if rule.explicit_order]
    for item, dtype in product(["f", "m", "bias", "[", "d[", "x(+", "x(-"], ["float32", "float64"]):
        assert any(item in order and dtype == t for order, t in explicit), (item, dtype)
