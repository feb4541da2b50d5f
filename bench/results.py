"""What a run of the benchmark leaves behind: rows, and all that they depend on, as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from bench.timing import Seconds

SCHEMA = 1  # rises when a field changes its meaning or goes


class Process(NamedTuple):
    """What is fixed when a process starts. Rows are measured in one process for each of these."""

    isa: str  # of detconv, and torch is capped to it
    malloc: str  # "tuned": freed memory is kept; "default": as the C library comes
    threads: int

    def __str__(self) -> str:
        return f"{self.isa}, {self.threads} thread{'s' * (self.threads > 1)}, {self.malloc} malloc"


class Key(NamedTuple):
    """Which row it is: equal keys in two results are compared."""

    suite: str
    layer: str
    which: str  # the pass
    dtype: str
    process: Process
    route: str

    def __str__(self) -> str:
        return f"{self.suite}, {self.layer}, {self.which}, {self.dtype}, {self.process}: {self.route}"


@dataclass
class Row:
    """One route on one layer."""

    suite: str
    layer: str
    which: str
    dtype: str
    isa: str
    malloc: str
    threads: int
    route: str
    summation: str | None = None  # of detconv's routes
    shape: dict[str, Any] = field(default_factory=dict)
    macs: int = 0
    check: str = ""  # what was asserted of the output before it was timed
    failed: bool = False  # it did not hold
    skipped: str = ""  # why there is nothing here
    seconds: Seconds | None = None
    clock: str = ""  # "thread": the processor time of the one thread; "wall"
    ratio: float | None = None  # of the median to that of torch's best route on the CPU, measured in turns with it
    gflops: float | None = None
    of_peak: float | None = None  # gflops as a fraction of the peak measured in the same process
    sha256: str = ""
    max_ulp: float | None = None  # errors against the exact sums, in units in the last place of the nearest number
    mean_ulp: float | None = None  # outputs that cancel weigh most: where a sum is near 0, an ulp is small
    median_ulp: float | None = None
    judged: int = 0  # outputs that these errors and the verdict are about
    verdict: str = ""
    extra_bytes: int | None = None  # peak memory beyond arguments and output
    equal_bits: dict[str, float] = field(
        default_factory=dict
    )  # share of the outputs that each of these has bit for bit
    flags: dict[str, Any] = field(default_factory=dict)  # settings of the library for this row

    @property
    def process(self) -> Process:
        return Process(self.isa, self.malloc, self.threads)

    @property
    def key(self) -> Key:
        return Key(self.suite, self.layer, self.which, self.dtype, self.process, self.route)

    @property
    def group(self) -> tuple[str, str, str, Process]:
        """Rows of one table."""
        return self.suite, self.which, self.dtype, self.process

    @staticmethod
    def read(entry: dict[str, Any]) -> Row:
        seconds = entry.get("seconds")
        return Row(**entry | {"seconds": Seconds(**seconds) if seconds else None})


@dataclass
class Result:
    """One run."""

    date: str
    ended: str  # why the run is not complete; empty if it is
    machine: dict[str, Any]
    versions: dict[str, str]
    options: dict[str, Any]
    processes: list[dict[str, Any]] = field(
        default_factory=list
    )  # of each: isa, malloc, threads, peak, build_info, ...
    rows: list[Row] = field(default_factory=list)
    schema: int = SCHEMA

    def save(self, path: Path) -> None:
        """Write all of it, or nothing: an interrupted write leaves what was there. A row's defaults are left out."""
        entries = asdict(self)
        usual = asdict(Row("", "", "", "", "", "", 0, ""))
        entries["rows"] = [
            {name: value for name, value in row.items() if value != usual[name]} for row in entries["rows"]
        ]
        scratch = path.with_suffix(".partial")
        scratch.write_text(json.dumps(entries, separators=(",", ":"), allow_nan=False) + "\n")
        scratch.replace(path)

    @staticmethod
    def load(path: Path) -> Result:
        """Read a result.

        Raises:
            ValueError: the file is none, or of another schema.
            OSError: it cannot be read.
        """
        try:
            entries = json.loads(path.read_text())
            if entries["schema"] == SCHEMA:
                return Result(**entries | {"rows": [Row.read(entry) for entry in entries["rows"]]})
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path} must be a result of the benchmark; got something else ({error!r})") from None
        raise ValueError(f"{path} must have schema {SCHEMA}; got {entries['schema']!r}")

    def select(self, **fields: Any) -> list[Row]:
        """The timed rows whose fields have these values."""
        return [row for row in self.rows if row.seconds and all(getattr(row, k) == v for k, v in fields.items())]

    def tables(self) -> Iterator[tuple[tuple[str, str, str, Process], list[Row]]]:
        """The rows in tables: those of one suite, pass, element type and process."""
        found: dict[tuple[str, str, str, Process], list[Row]] = {}
        for row in self.rows:
            found.setdefault(row.group, []).append(row)
        yield from found.items()


def by_layer(rows: Iterable[Row]) -> dict[str, dict[str, Row]]:
    """layer -> route -> row, in the order in which they were measured."""
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        found.setdefault(row.layer, {})[row.route] = row
    return found
