"""What changed between two results of the benchmark.

    python bench/compare.py BEFORE.json AFTER.json

Exit status: 0, or 1 if a summation of detconv gave other bits, or 2 if a file is no result.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

if not __package__:  # run by its path: the folder above has the package
    sys.path[0] = str(Path(__file__).parent.parent)

from bench.results import Key, Process, Result, Row
from bench.routes import TORCH

NOTICEABLE = 0.05  # smaller changes are not listed, whatever the spread


class Change(NamedTuple):
    """One row in both results."""

    before: Row
    after: Row
    noise: float  # what the spreads explain, of these rows and of torch's that they are divided by; as a fraction

    @property
    def ratio(self) -> float | None:
        """The ratio to torch's time, after divided by before: below 1 is faster. None: a time is missing."""
        if not self.before.ratio or not self.after.ratio:
            return None
        return self.after.ratio / self.before.ratio

    @property
    def is_noticeable(self) -> bool:
        return self.ratio is not None and abs(self.ratio - 1) > max(NOTICEABLE, self.noise)

    @property
    def same_sum(self) -> bool:
        """The same summation of detconv: its bits may never differ."""
        return self.before.summation is not None and self.before.summation == self.after.summation

    @property
    def other_bits(self) -> bool:
        return bool(self.before.sha256 and self.after.sha256) and self.before.sha256 != self.after.sha256


class Comparison:
    """Two results, row by row."""

    def __init__(self, before: Result, after: Result) -> None:
        self.before, self.after = before, after
        old, new = ({row.key: row for row in result.rows} for result in (before, after))
        noise_before, noise_after = Noise(before), Noise(after)
        self.changes = [
            Change(row, new[key], noise_before.of(row) + noise_after.of(new[key]))
            for key, row in old.items()
            if key in new
        ]
        self.missing = [key for key in old if key not in new]
        self.new = [key for key in new if key not in old]

    @property
    def broken(self) -> list[Change]:
        """Rows of detconv whose bits differ: a mistake in one of the two."""
        return [change for change in self.changes if change.same_sum and change.other_bits]

    def lines(self) -> Iterator[str]:
        yield from self._circumstances()
        both = [change for change in self.changes if change.before.sha256 and change.after.sha256]
        ours = sum(change.same_sum for change in both)
        yield f"Bits of detconv: {ours - len(self.broken)} of {ours} rows have the same."
        for change in self.broken:
            hashes = f"{change.before.sha256[:12]} -> {change.after.sha256[:12]}"
            yield f"  DIFFER: {change.after.key}: {hashes}"
        others = [change.after for change in both if change.other_bits and not change.same_sum]
        for row in others:
            why = f"now {row.summation}" if row.summation else "another version, machine or setting"
            yield f"  other bits, not of the same sum: {row.key}: {why}"
        yield from self._times()
        for title, keys in [("Missing", self.missing), ("New", self.new)]:
            yield f"{title}: {len(keys)} rows"
            yield from (f"  {key}" for key in keys)

    def _circumstances(self) -> Iterator[str]:
        for result, name in [(self.before, "before"), (self.after, "after")]:
            yield f"{name}: {result.date}, {len(result.rows)} rows" + (
                f", NOT COMPLETE: {result.ended}" if result.ended else ""
            )
        for field in ("machine", "versions"):
            old, new = getattr(self.before, field), getattr(self.after, field)
            for name in sorted({*old, *new}):
                if old.get(name) != new.get(name) and not name.startswith("load"):
                    yield f"  {name}: {old.get(name)} -> {new.get(name)}"

    def _times(self) -> Iterator[str]:
        groups: dict[tuple[str, str, str, Process, str], list[float]] = {}
        for change in self.changes:
            if change.ratio is not None and change.after.summation:
                groups.setdefault((*change.after.group, change.after.route), []).append(change.ratio)
        if groups:
            yield "Ratio to torch's time, after / before, geometric mean (below 1: faster):"
        for (suite, which, dtype, process, route), ratios in groups.items():
            mean = statistics.geometric_mean(ratios)
            yield f"  {mean:5.2f}  {suite}, {which}, {dtype}, {process}: {route} ({len(ratios)} layers)"
        noticeable = sorted(
            (c for c in self.changes if c.is_noticeable and c.after.summation), key=lambda c: c.ratio or 0
        )
        yield f"Changed by more than their spread and {100 * NOTICEABLE:.0f}%: {len(noticeable)} rows"
        for change in noticeable:
            yield f"  {change.ratio:5.2f}  {change.after.key} ({change.before.ratio:.2f} -> {change.after.ratio:.2f})"


class Noise:
    """How far the ratios of a result are uncertain."""

    def __init__(self, result: Result) -> None:
        self._torch: dict[Key, float] = {}  # the largest spread of torch's routes on a layer
        for row in result.rows:
            if row.route in TORCH and row.seconds:
                place = row.key._replace(route="")
                self._torch[place] = max(row.seconds.spread, self._torch.get(place, 0))

    def of(self, row: Row) -> float:
        """Half the interquartile ranges of the ratio's numerator and denominator, as a fraction."""
        own = row.seconds.spread if row.seconds else 0
        return (own + self._torch.get(row.key._replace(route=""), 0)) / 2


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "bench/compare.py", description="What changed between two results of the benchmark."
    )
    parser.add_argument("before", type=Path, help="a result, .json")
    parser.add_argument("after", type=Path, help="another")
    given = parser.parse_args(arguments)
    try:
        comparison = Comparison(Result.load(given.before), Result.load(given.after))
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print("\n".join(comparison.lines()))
    return 1 if comparison.broken else 0


if __name__ == "__main__":
    sys.exit(main())
