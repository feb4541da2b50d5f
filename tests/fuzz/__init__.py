"""Fuzzers: random input for hours, where the tests draw a few hundred cases.

Each target is a module with EXAMPLES, a hypothesis strategy, and check(example), which raises where something is wrong.
``make fuzz SECONDS=600`` runs them all for so long together; ``cd tests && python -m fuzz orders --seed 7`` runs one,
the same examples each time. A failure is shrunk and printed with the seed that gives it again. ``test_fuzz.py`` runs a
bounded number of examples of each in the suite.
"""

from __future__ import annotations

from types import ModuleType

from fuzz import orders, passes, reveals, tensors

TARGETS: dict[str, ModuleType] = {"passes": passes, "orders": orders, "reveals": reveals, "tensors": tensors}
