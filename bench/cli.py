"""The command line of the benchmark."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from datetime import datetime, timezone
from pathlib import Path
from types import FrameType

from bench import machine, plan, plots, report, runner, targets
from bench.environment import CAPS, MALLOCS, ROOT
from bench.problem import DTYPES
from bench.results import Result
from bench.routes import ROUTES
from bench.suites import PASSES, SUITES
from bench.worker import usable


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0, 1 if a check or a process failed, 130 if it was interrupted. Bad arguments exit with 2."""
    parser = _parser()
    given = parser.parse_args(arguments)
    if given.list:
        print("\n".join(_list()))
        return 0
    if given.targets is not None:
        return _print_targets(given.targets, parser)
    options = plan.Options(**{f.name: getattr(given, f.name) for f in fields(plan.Options)})
    _check(options, parser)
    jobs = plan.jobs(options, _processors())
    if not jobs:
        parser.error("nothing to measure: no suite that was asked for has such a layer")
    stem = given.output or _stem(options)
    stem.parent.mkdir(parents=True, exist_ok=True)
    for name in {"SIGTERM", "SIGHUP"} & {*dir(signal)}:
        signal.signal(getattr(signal, name), _interrupt)
    json_path = stem.with_name(stem.name + ".json")
    result = runner.run(jobs, options, json_path)
    pictures = plots.draw(result, stem)
    text = report.markdown(result, pictures)
    stem.with_name(stem.name + ".md").write_text(text)
    print(text)
    print(f"Written: {json_path}, .md" + (f" and {len(pictures)} pictures" if pictures else ""), file=sys.stderr)
    if result.ended == runner.INTERRUPTED:
        return 130
    return 1 if result.ended or any(row.failed for row in result.rows) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m bench",
        description="Speed, error and bits of detconv beside torch, NumPy and ONNX Runtime, measured in turns.",
        epilog="Lists have commas. Without options: the suites that the targets are about, in about ten minutes.",
    )
    lists: dict[str, tuple[str, Sequence[str]]] = {
        "suites": ("suites", list(SUITES)),
        "passes": ("passes", PASSES),
        "dtypes": ("element types", DTYPES),
        "routes": ("who computes", list(ROUTES)),
        "isas": ("instruction sets, torch capped to the same", list(CAPS)),
        "mallocs": ("memory allocation: freed memory is kept, or as the C library comes", MALLOCS),
    }
    for name, (about, valid) in lists.items():
        parser.add_argument(f"--{name}", type=_list_of(valid), metavar="LIST", help=f"{about}: {', '.join(valid)}")
    parser.add_argument(
        "--layers", type=lambda text: text.split(","), metavar="LIST", help="names of layers; see --list"
    )
    parser.add_argument("--threads", type=_threads, metavar="LIST", help="numbers of threads, such as 1,2")
    parser.add_argument("--seconds", type=_seconds, help="for the timing of each layer (default: 1)")
    parser.add_argument("--output", type=_stem_of, metavar="STEM", help="where the result goes, without .json")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument(
        "--full", action="store_true", help="every suite, more element types and instruction sets; an hour or more"
    )
    mode.add_argument("--smoke", action="store_true", help="a few seconds, to see that it runs")
    mode.add_argument("--list", action="store_true", help="list suites, layers and routes, and measure nothing")
    mode.add_argument(
        "--targets", type=Path, metavar="JSON", help="print a result against the targets, measure nothing"
    )
    return parser


def _list_of(valid: Sequence[str]) -> Callable[[str], list[str]]:
    def convert(text: str) -> list[str]:
        if text == "all":
            return list(valid)
        values = text.split(",")
        for value in values:
            if value not in valid:
                raise argparse.ArgumentTypeError(f'{value!r} is none of {", ".join(valid)} (or "all")')
        return list(dict.fromkeys(values))

    return convert


def _threads(text: str) -> list[int]:
    try:
        values = [int(value) for value in text.split(",")]
    except ValueError:
        values = [0]
    if min(values) < 1 or max(values) > 1024:
        raise argparse.ArgumentTypeError(f"must be numbers from 1 to 1024, with commas; got {text!r}")
    return list(dict.fromkeys(values))


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0
    if not 0 < value < 3600:
        raise argparse.ArgumentTypeError(f"must be more than 0 and less than 3600; got {text!r}")
    return value


def _stem_of(text: str) -> Path:
    path = Path(text)
    if not path.parent.is_dir() or path.is_dir():
        raise argparse.ArgumentTypeError(f"must be a name in a directory that exists; got {text!r}")
    return path


def _check(options: plan.Options, parser: argparse.ArgumentParser) -> None:
    for isa in options.isas or ():
        if isa not in usable():
            parser.error(f"argument --isas: {isa} cannot run here; usable: {', '.join(usable())}")
    suites = options.suites or plan.default_suites(options)
    known = {layer for suite in suites for layer in SUITES[suite].layers}
    for layer in options.layers or ():
        if layer not in known:
            parser.error(f"argument --layers: {layer!r} is in none of the suites {', '.join(suites)}; see --list")


def _stem(options: plan.Options) -> Path:
    """Beside this file; a smoke run, which measures nothing worth keeping, goes to the build folder."""
    today = datetime.now(timezone.utc).strftime("%Y-%m-%d")
    if options.smoke:
        return ROOT / "build" / "bench" / "smoke"
    return ROOT / "bench" / "results" / f"{today}-{machine.slug(machine.cpu_model())}"


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _print_targets(path: Path, parser: argparse.ArgumentParser) -> int:
    try:
        result = Result.load(path)
    except (OSError, ValueError) as error:
        parser.error(f"argument --targets: {error}")
    print("\n".join(targets.table(targets.lines(result))))
    return 0


def _list() -> list[str]:
    lines = []
    for name, suite in SUITES.items():
        lines += [f"{name}: {suite.about}"] + [
            f"    {layer}  {dict(shape._asdict())}" for layer, shape in suite.layers.items()
        ]
    return lines + ["", "routes:"] + [f"    {name}: {kind.about}" for name, kind in ROUTES.items()]
