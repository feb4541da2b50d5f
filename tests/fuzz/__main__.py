"""``python -m fuzz [TARGET ...] [--seconds S] [--seed N]``: the seconds are split evenly among the targets."""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import time
import traceback

from hypothesis import HealthCheck, given, seed, settings

from fuzz import TARGETS

EXAMPLES_OF_A_SEED = 100


def main() -> int:
    parser = argparse.ArgumentParser("fuzz", description=__doc__)
    parser.add_argument("target", nargs="*", choices=[*TARGETS, []], default=[], help="default: all of them")
    parser.add_argument("--seconds", type=float, default=120.0, help="for all targets together (default: %(default)g)")
    parser.add_argument("--seed", type=int, help="of the first examples (default: another each time)")
    options = parser.parse_args()
    first = random.SystemRandom().randrange(10**9) if options.seed is None else options.seed
    targets = options.target or list(TARGETS)
    wrong = [name for name in targets if not fuzz(name, first, options.seconds / len(targets))]
    return 1 if wrong else 0


def fuzz(name: str, first: int, seconds: float) -> bool:
    """Run a target for so long, at least once; True if nothing was found."""
    print(f"fuzz {name}: seed {first}", flush=True)
    start = time.monotonic()
    for number in itertools.count(first):
        try:
            _run(name, number)
        except Exception:
            traceback.print_exc()
            print(f"fuzz {name}: FAILED. Again: cd tests && python -m fuzz {name} --seed {number} --seconds 1")
            return False
        if time.monotonic() - start >= seconds:
            examples = (number - first + 1) * EXAMPLES_OF_A_SEED
            print(
                f"fuzz {name}: nothing found in some {examples} examples, {time.monotonic() - start:.0f} s", flush=True
            )
            return True
    raise AssertionError


def _run(name: str, number: int) -> None:
    quiet = settings(
        max_examples=EXAMPLES_OF_A_SEED, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )

    @seed(number)
    @quiet
    @given(TARGETS[name].EXAMPLES)
    def run(example: object) -> None:
        TARGETS[name].check(example)

    run()


if __name__ == "__main__":
    sys.exit(main())
