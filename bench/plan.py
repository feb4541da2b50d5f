"""Which tasks run in which processes."""

from __future__ import annotations

from dataclasses import dataclass

from bench.environment import MALLOCS
from bench.results import Process
from bench.routes import ROUTES
from bench.step import NAME as STEP
from bench.suites import PASSES, SUITES
from bench.worker import Job, Task, usable

DEFAULT_SUITES = ("forum", "notes", "gradients", "values", "tiny", "step", "scaling")


@dataclass(frozen=True)
class Options:
    """What is asked for; None where the plan chooses."""

    suites: list[str] | None = None
    layers: list[str] | None = None
    passes: list[str] | None = None
    dtypes: list[str] | None = None
    routes: list[str] | None = None
    isas: list[str] | None = None
    mallocs: list[str] | None = None
    threads: list[int] | None = None
    seconds: float | None = None
    full: bool = False
    smoke: bool = False

    @property
    def row_seconds(self) -> float:
        return self.seconds if self.seconds is not None else 0.02 if self.smoke else 1.0

    @property
    def least(self) -> int:
        """Rounds that are timed even where they take longer."""
        return 3 if self.smoke else 5


def jobs(options: Options, processors: int) -> list[Job]:
    """What each process does. A process is started once, with all tasks that are measured in it."""
    found: dict[Process, list[Task]] = {}
    for suite in options.suites or default_suites(options):
        tasks = tasks_of(suite, options)
        for process in processes(suite, options, processors):
            found.setdefault(process, []).extend(tasks)
    routes = options.routes or [name for name, kind in ROUTES.items() if kind.usual]
    return [
        Job(p, tasks, routes_in(p, routes), options.row_seconds, options.least) for p, tasks in found.items() if tasks
    ]


def default_suites(options: Options) -> list[str]:
    if options.smoke:
        return ["forum", "tiny"]
    return list(SUITES) if options.full else list(DEFAULT_SUITES)


def tasks_of(suite: str, options: Options) -> list[Task]:
    if suite == "tiny":
        return [Task(suite, "1x1x1x1", "call", "float32")]
    if suite == "step":
        return [Task(suite, STEP, "step", "float32")]
    layers = SUITES[suite].layers
    names = [name for name in layers if options.layers is None or name in options.layers]
    if options.smoke and options.layers is None:
        names = names[:1]
    passes = options.passes or (PASSES if options.smoke else SUITES[suite].passes)
    dtypes = options.dtypes or (
        ["float32", "float64", "bfloat16", "float16"] if _all_types(suite, options) else ["float32"]
    )
    return [Task(suite, name, which, dtype) for dtype in dtypes for which in passes for name in names]


def _all_types(suite: str, options: Options) -> bool:
    return options.full and suite in ("forum", "training")


def processes(suite: str, options: Options, processors: int) -> list[Process]:
    """The environments in which a suite is measured: all combinations of what is asked for.

    Where nothing is: the fastest instruction set on one and on all processors, malloc tuned. The suite of the targets
    adds torch capped to the next instruction set, and the default malloc; calls are timed on one thread.
    """
    sets = [isa for isa in reversed(usable()) if isa != "baseline"] or ["baseline"]
    if options.full and suite == "forum":
        sets = [*reversed(usable())]  # larger layers would take the baseline hours
    threads = options.threads or sorted({1, processors})
    if suite in ("tiny", "values"):
        threads = threads[:1]
    if options.smoke:
        sets, threads = sets[:1], threads[:1]
    many_sets = suite == "notes" or (options.full and suite in ("forum", "gradients"))
    isas = options.isas or (sets if many_sets else sets[:1])
    if options.mallocs or options.full:
        mallocs = options.mallocs or (MALLOCS if suite == "notes" else MALLOCS[:1])
        return [Process(isa, malloc, n) for isa in isas for malloc in mallocs for n in threads]
    found = [Process(isa, MALLOCS[0], n) for isa in isas for n in threads]
    if suite == "notes" and not options.smoke and not options.isas:
        found.append(Process(sets[0], MALLOCS[1], threads[-1]))
    return found


def routes_in(process: Process, routes: list[str]) -> list[str]:
    """Those of the routes that can be held to the process's instruction set."""
    fastest = usable()[-1]
    return [name for name in routes if process.isa == fastest or ROUTES[name].capped]
