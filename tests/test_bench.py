"""The benchmark: that what it measures, asserts and writes is what it says. No time is asserted here."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import detconv
from bench import compare, device, environment, machine, peak, plan, plots, report, runner, targets, worker
from bench.problem import DTYPES, Problem, judged
from bench.results import Process, Result, Row
from bench.routes import METHODS, ROUTES, Route, Unavailable
from bench.suites import NOTES, PASSES, SUITES, Layer, same
from bench.timing import Seconds, Timed, interleaved, summary
from bench.torch_order import candidates, order_of
from bits import PATIENCE, assert_same_bits

ROOT = Path(__file__).parent.parent
SMALL = Layer(2, 8, 9, 6, 3, 1, 1)


# ---- Times ----


class FakeClock:
    """Stands still but for what a call is said to take."""

    def __init__(self) -> None:
        self.now, self.calls = 0.0, ""

    def __call__(self) -> float:
        return self.now

    def call(self, name: str, *durations: float) -> Callable[[], None]:
        """A call that takes these times in turns."""

        def call() -> None:
            self.now += durations[self.calls.count(name) % len(durations)]
            self.calls += name

        return call


def test_calls_take_turns_and_medians_are_theirs() -> None:
    clock = FakeClock()
    calls = {"a": Timed(clock.call("a", 5.0, 1.0, 3.0)), "b": Timed(clock.call("b", 2.0))}
    found = interleaved(calls, 25, clock, least=5, wall=clock)
    assert clock.calls == "aabb" + "ab" * 5
    # Two calls came before: the five rounds of a took 3, 5, 1, 3, 5.
    assert found == {"a": Seconds(3.0, 3.0, 5.0, 5, 1), "b": Seconds(2.0, 2.0, 2.0, 5, 1)}
    assert found["a"].spread == 2 / 3


def test_rounds_go_on_until_the_time_is_up() -> None:
    clock = FakeClock()
    found = interleaved({"a": Timed(clock.call("a", 0.25))}, 5.0, clock, least=5, wall=clock)
    assert found["a"].rounds == 20


@pytest.mark.parametrize(("seconds", "rounds"), [(8.0, 8), (1.0, 5), (0.5, 5), (0.25, 3), (0.125, 3)])
def test_slow_calls_get_five_rounds_or_three(seconds: float, rounds: int) -> None:
    clock = FakeClock()
    found = interleaved({"a": Timed(clock.call("a", 1.0))}, seconds, clock, least=5, wall=clock)
    assert found["a"].rounds == rounds


def test_short_calls_are_repeated_between_readings() -> None:
    clock = FakeClock()
    found = interleaved({"a": Timed(clock.call("a", 2.0**-17))}, 1e-9, clock, least=3, wall=clock)
    assert found["a"].repeats == 131
    assert found["a"].median == 2.0**-17
    assert len(clock.calls) == 2 + 3 * 131


def test_what_is_set_around_a_call_is_not_timed() -> None:
    clock = FakeClock()

    @contextmanager
    def around() -> Iterator[None]:
        clock.now += 100
        yield
        clock.now += 100

    found = interleaved({"a": Timed(clock.call("a", 2.0), around)}, 1, clock, least=3, wall=clock)
    assert found["a"].median == 2.0


# ---- Layers and plans ----


def test_suites_have_the_layers_that_their_names_promise() -> None:
    assert {"forum", "resnet50", "vgg16", "mobilenetv2", "unet", "dilated", "training", "tiny", "scaling"} < set(SUITES)
    assert len(SUITES["resnet50"].layers) == 23
    assert len(SUITES["vgg16"].layers) == 9
    assert len(NOTES) == 13
    assert SUITES["huge"].layers["image 4096"].size == 4096
    assert SUITES["resnet50"].layers["1x1 2048-512 7"] == Layer(1, 2048, 7, 512, 1)
    assert SUITES["mobilenetv2"].layers["3x3/2 depthwise 96 112"] == Layer(1, 96, 112, 96, 3, 2, 1, groups=96)
    for suite in SUITES.values():
        for layer in suite.layers.values():
            assert layer.output_size > 0
            assert layer.channels % layer.groups == layer.outputs % layer.groups == 0
    # ResNet-50 without its fully connected layer has 4.09e9 multiplications; layers that occur once or more often.
    assert 1.5e9 < sum(layer.macs for layer in SUITES["resnet50"].layers.values()) < 4.1e9


def test_shapes_are_those_of_the_call() -> None:
    for layer in (SMALL, same(1, 6, 11, 4, 5, 2), Layer(1, 4, 12, 8, 3, 2, 3, 2, 4)):
        output = detconv.conv2d(
            np.ones(layer.input_shape, np.float32),
            np.ones(layer.weight_shape, np.float32),
            None,
            layer.stride,
            layer.padding,
            layer.dilation,
            layer.groups,
        )
        assert output.shape == layer.output_shape
        assert layer.macs == output.size * layer.terms("forward")
        assert output.max() == layer.terms("forward")  # some window is free of padding


def test_default_plan_measures_what_the_targets_need() -> None:
    jobs = plan.jobs(plan.Options(), processors=2)
    by_process = {job.process: job for job in jobs}
    assert len(by_process) == len(jobs)
    fastest = worker.usable()[-1]
    for threads in (1, 2):
        job = by_process[Process(fastest, "tuned", threads)]
        assert {task.suite for task in job.tasks} >= {"notes", "gradients", "step"}
        assert set(job.routes) >= {*targets.FORWARD, "torch oneDNN", "torch native", "torch channels_last"}
    assert any(job.process.malloc == "default" for job in jobs)
    assert all("ONNX Runtime" not in job.routes for job in jobs if job.process.isa != fastest)
    everything = plan.jobs(plan.Options(full=True), processors=2)
    assert {task.suite for job in everything for task in job.tasks} == set(SUITES)
    assert {task.dtype for job in everything for task in job.tasks} == set(DTYPES)
    assert {task.which for job in everything for task in job.tasks} >= set(PASSES)


def test_what_is_asked_for_is_planned_and_nothing_else() -> None:
    options = plan.Options(
        suites=["forum"],
        layers=["forum b16"],
        passes=["weight"],
        dtypes=["float64", "bfloat16"],
        routes=["naive"],
        isas=["baseline"],
        mallocs=["default"],
        threads=[3],
        seconds=0.5,
    )
    tasks = [worker.Task("forum", "forum b16", "weight", dtype) for dtype in ("float64", "bfloat16")]
    assert plan.jobs(options, 8) == [worker.Job(Process("baseline", "default", 3), tasks, ["naive"], 0.5, 5)]


# ---- Errors and verdicts ----


def output_of(problem: Problem, summation: str) -> Any:
    return problem.sums(summation, problem.arrays)


@pytest.mark.parametrize("which", PASSES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_verdicts(which: str, dtype: str) -> None:
    problem = Problem(SMALL, which, dtype)
    exact = judged(problem, output_of(problem, "exact samples=sequence"))
    assert exact.verdict == "identical"
    assert 0 <= exact.mean_ulp <= exact.max_ulp <= 0.5
    naive = judged(problem, output_of(problem, "naive"))
    assert naive.verdict == "rounding"
    assert naive.max_ulp > 0.5
    wrong = output_of(problem, "naive")
    wrong[0, 0] *= 1 + 1e-2
    assert judged(problem, wrong).verdict == "mistake"
    wrong[0, 0] = np.nan
    assert judged(problem, wrong).verdict == "mistake"


@pytest.mark.parametrize("layer", [SMALL, Layer(2, 8, 13, 6, 3, 2, 2, 2), Layer(2, 8, 9, 8, 3, 1, 1, groups=8)])
@pytest.mark.parametrize("which", PASSES)
@pytest.mark.parametrize("most", [1, 2000, 10**9])
def test_the_part_that_is_judged_is_a_part_of_the_whole(
    layer: Layer, which: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.problem.JUDGED_MACS", most)
    problem = Problem(layer, which, "float64")
    whole = output_of(problem, "exact samples=sequence")
    where, _ = problem.part
    assert problem.exact.size > 0
    assert_same_bits(problem.exact, np.ascontiguousarray(whole[where]))
    assert judged(problem, whole).judged == problem.exact.size


@pytest.mark.parametrize(("dtype", "torch_type"), [("float16", torch.float16), ("bfloat16", torch.bfloat16)])
def test_ulps_of_half_types(dtype: str, torch_type: torch.dtype) -> None:
    problem = Problem(SMALL, "forward", dtype)
    exact = detconv.conv2d(*problem.tensors[:2], None, *problem.options, summation="exact")
    assert exact.dtype == torch_type
    found = judged(problem, exact.float().numpy())
    assert found.verdict == "identical"
    assert 0.4 < found.max_ulp <= 0.5


def test_values_are_of_their_kind() -> None:
    integers, few_digits = (
        Problem(SMALL._replace(values=values), "input", "float32").arrays for values in ("integers", "bfloat16")
    )
    for array in integers:
        assert set(np.unique(array)) <= set(range(-8, 9))
    for array in few_digits:
        assert_same_bits(torch.from_numpy(array).bfloat16().float().numpy(), array)


# ---- Orders ----


@pytest.mark.parametrize(("channels", "taps"), [(1, 9), (8, 9), (48, 1), (64, 9), (3, 49)])
def test_every_candidate_adds_every_product_once(channels: int, taps: int) -> None:
    kernel = round(taps**0.5)
    layer = Layer(1, channels, kernel, 2, kernel, values="integers")
    problem = Problem(layer, "forward", "float32")
    exact = output_of(problem, "exact")
    texts = list(candidates(channels, taps))
    assert len(texts) >= 14
    for text in texts:
        assert_same_bits(output_of(problem, text), exact, text)


def test_an_order_is_found_by_its_bits() -> None:
    problem = Problem(same(1, 32, 6, 4), "forward", "float32")
    text = 'naive order="1x(+144){9x(+1){16x(+9){f0}}} 1x(+144){[1x(+144){9x(+1){16x(+9){f144}}}]}"'
    assert order_of(problem, output_of(problem, text)) == text
    assert order_of(problem, output_of(problem, "kahan")) is None


# ---- Checks ----


def test_bits_that_depend_on_the_instruction_set_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    if len(worker.usable()) < 2:
        pytest.skip("one instruction set only")

    def output() -> np.ndarray[Any, Any]:
        return np.full((1, 1), worker.usable().index(str(detconv.build_info()["instruction_set"])), np.float32)

    row = replace(a_row("naive"), sha256=worker.sha256(output()))
    assert worker._check(row, Route(output, output), output(), {})[1] is True
    constant = np.zeros((1, 1), np.float32)
    row = replace(row, sha256=worker.sha256(constant))
    said, failed = worker._check(row, Route(output, lambda: constant), constant, {})
    assert (failed, "equal" in said) == (False, True)


def test_a_route_that_must_equal_another_fails_where_it_does_not() -> None:
    constant = np.zeros((1, 1), np.float32)
    for name, other in worker.EQUALS.items():
        row = a_row(name, sha256=worker.sha256(constant))
        for there, failed in [(constant, False), (constant + 1, True)]:
            assert worker._check(row, Route(lambda: constant, lambda: constant), constant, {other: there})[1] is failed


def test_bits_that_depend_on_the_process_fail() -> None:
    one, two = a_row("naive", sha256="a"), replace(a_row("naive", sha256="b"), threads=2)
    other_sum = replace(a_row("kahan", sha256="c"), threads=2)
    runner.agree([one, other_sum, two])
    assert (one.failed, other_sum.failed, two.failed) == (False, False, True)
    assert "DIFFER" in two.check


@pytest.mark.parametrize("name", [name for name, kind in ROUTES.items() if name not in METHODS])
def test_other_routes_compute_the_same_sums(name: str) -> None:
    problem = Problem(SMALL._replace(values="integers"), "forward", "float32")
    try:
        output = ROUTES[name].make(problem).output()
    except Unavailable as error:
        pytest.skip(str(error))
    assert np.array_equal(output, output_of(problem, "exact"))


def test_torchs_gradients_are_those_of_detconv() -> None:
    for which in ("input", "weight"):
        problem = Problem(SMALL._replace(values="integers"), which, "float32")
        for name in ("torch oneDNN", "torch native", "torch channels_last"):
            assert np.array_equal(ROUTES[name].make(problem).output(), output_of(problem, "exact")), (which, name)


# ---- CUDA, with a stand-in for the device ----


class OnTheCpu:
    """A device that computes on the CPU; one of few digits rounds what it is given, as TF32 does."""

    name = "stand-in"

    def __init__(self, few_digits: bool = False) -> None:
        self.few_digits, self.finished = few_digits, 0

    def describe(self) -> dict[str, Any]:
        return {"device": self.name}

    def put(self, tensor: Any) -> Any:
        return tensor.bfloat16().to(tensor.dtype) if self.few_digits else tensor

    def finish(self) -> None:
        self.finished += 1


@pytest.mark.parametrize("which", PASSES)
def test_cuda_rows_compare_bits_for_every_setting(which: str) -> None:
    problem, stand_in = Problem(SMALL, which, "float32"), OnTheCpu()
    ours = {name: output_of(problem, METHODS[name]) for name in ("naive", "exact")}
    rows = device.rows(stand_in, problem, a_row("", which=which), ours, seconds=0.001)
    assert [row.flags["cudnn"] for row in rows].count(True) == 8
    assert len({row.route for row in rows}) == len(device.SETTINGS) == len(rows)
    for row in rows:
        assert not row.skipped
        assert row.flags["precision"] == ("high" if row.flags["tf32"] else "highest")
        assert row.verdict in ("identical", "rounding")
        assert row.seconds is not None
        assert stand_in.finished >= row.seconds.rounds
        theirs = ROUTES["torch oneDNN"].make(problem).output()
        assert row.equal_bits == {name: float(np.mean(theirs == output)) for name, output in ours.items()}
        assert 0 < row.equal_bits["naive"] <= 1
    assert "CUDA" in "\n".join(report._cuda(rows))


def test_few_digits_on_a_device_are_seen() -> None:
    problem = Problem(SMALL, "forward", "float32")
    exact = output_of(problem, "exact")
    row = device.rows(OnTheCpu(few_digits=True), problem, a_row(""), {"exact": exact}, seconds=0.001)[0]
    assert row.verdict == "mistake"
    assert row.equal_bits["exact"] < 0.1
    assert not row.failed  # torch's, not ours


def test_flags_are_pinned_and_come_back() -> None:
    def now() -> tuple[Any, ...]:
        backend = torch.backends.cudnn
        flags = backend.enabled, backend.allow_tf32, backend.benchmark, backend.deterministic
        return *flags, torch.backends.cuda.matmul.allow_tf32, torch.get_float32_matmul_precision()

    before = now()
    for flags in device.SETTINGS:
        with device.pinned(flags):
            assert now() == (*flags, flags.tf32, flags.precision)
        assert now() == before


def test_without_cuda_the_rows_say_so() -> None:
    rows = device.rows(None, Problem(SMALL, "forward", "float32"), a_row(""), {})
    assert [row.skipped for row in rows] == ["no CUDA device"]
    if not torch.cuda.is_available():
        assert device.find() is None
        assert device.describe(None) == {"missing": "no CUDA device"}


# ---- Peak and memory ----


def test_peak_is_measured_or_says_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        found = peak.measure(worker.usable()[-1], 1, 0.02)
    except peak.NoPeak as error:
        pytest.skip(str(error))
    assert found.gflops["float32"] > found.gflops["float64"] > 0.1
    assert 0 < found.processor_share <= 1
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(peak.NoPeak, match="no-such-compiler"):
        peak.measure(worker.usable()[-1], 1, 0.02)


def test_extra_memory_is_what_the_call_takes_and_does_not_return() -> None:
    kept = []

    def call() -> int:
        scratch = np.ones(2**23)  # 64 MiB
        kept.append(scratch[::2].copy())  # 32 MiB
        return int(kept[0].nbytes)

    extra = machine.extra_memory(call)
    if extra is None:
        pytest.skip("Linux only")
    assert 60 < extra / 2**20 < 70


# ---- Results ----


def a_row(route: str, **more: Any) -> Row:
    row = Row("notes", "forum", "forward", "float32", "avx512", "tuned", 1, route, shape=NOTES["forum"]._asdict())
    return replace(row, summation=METHODS.get(route), macs=NOTES["forum"].macs, **more)


def a_result(scale: float = 1.0) -> Result:
    """Made rows for all of notes: torch takes 1 ms, naive 0.7 ms, exact 1.5 ms, times the scale."""
    result = Result("2026-01-31", "", {"processor": "Model"}, {"torch": "2.13.0"}, {})
    build = {"compiler": "GNU", "flags": "-O3", "instruction_sets_usable": ["avx2", "avx512"]}
    for isa in ("avx512", "avx2"):
        for threads in (1, 2):
            about = {"isa": isa, "malloc": "tuned", "threads": threads, "peak_gflops": {"float32": 100, "float64": 50}}
            more = {
                "no_peak": "",
                "processor_share": 1.0,
                "build_info": build,
                "torch": {"capability": isa},
                "environment": {"A": "1"},
            }
            result.processes.append(about | more)
            for layer, shape in NOTES.items():
                for route, ms in [("torch oneDNN", 1.0), ("naive", 0.7 * scale), ("exact", 1.5 * scale)]:
                    row = a_row(route, sha256=f"{route} {layer}", check="bits equal", verdict="rounding")
                    row = replace(row, isa=isa, threads=threads, layer=layer, shape=shape._asdict(), macs=shape.macs)
                    seconds = summary([ms * 1e-3, ms * 1.01e-3, ms * 0.99e-3], 1)
                    errors = {"max_ulp": 3.0, "mean_ulp": 1.0, "median_ulp": 0.5, "judged": 10}
                    row = replace(row, seconds=seconds, clock="wall", ratio=ms, gflops=50.0, of_peak=0.5, **errors)
                    result.rows.append(row)
    return result


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    result = a_result()
    result.save(tmp_path / "a.json")
    assert Result.load(tmp_path / "a.json") == result
    assert sorted(tmp_path.iterdir()) == [tmp_path / "a.json"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must be a result"),
        ("[]", "must be a result"),
        ("{}", "must be a result"),
        ('{"schema": 1, "rows": []}', "must be a result"),
        ('{"schema": 0}', "schema 1"),
    ],
)
def test_other_files_are_no_results(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        Result.load(path)
    for command in ([sys.executable, "bench/compare.py", path, path], [*BENCH, "--targets", path]):
        run = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE)
        assert run.returncode == 2
        assert message in run.stderr
        assert "Traceback" not in run.stderr


def test_targets() -> None:
    lines = {line.what: line for line in targets.lines(a_result())}
    naive = lines["naive, 13 forward layers, geometric mean, avx512, 1 thread"]
    assert (naive.most, round(naive.measured or 0, 9), naive.said) == (0.72, 0.7, "PASS")
    exact = lines["exact, 13 forward layers, geometric mean, avx2, 2 threads"]
    assert (exact.most, exact.said) == (2.3, "PASS")
    assert lines["naive, vgg 3x3 64, avx512, 1 thread"].said == "short"  # 50% of the peak
    assert lines["kahan, 13 forward layers, worst layer, avx512, 1 thread"].said == "not measured"
    slow = {line.what: line for line in targets.lines(a_result(1.1))}
    assert slow["naive, 13 forward layers, geometric mean, avx512, 1 thread"].said == "short"
    part = a_result()
    part.rows = [row for row in part.rows if row.layer != "depthwise"]
    lines = {line.what: line for line in targets.lines(part)}
    assert lines["naive, 13 forward layers, geometric mean, avx512, 1 thread"].said == "without depthwise"


def test_extra_memory_is_a_share_of_inputs_and_output() -> None:
    layer = NOTES["1x1 64-256"]
    size = 4 * (64 * 56**2 + 64 * 256 + 256 * 56**2)
    row = replace(a_row("naive"), shape=layer._asdict(), extra_bytes=2**22 + size // 4)
    assert targets.extra_share(row) == 25
    assert targets.extra_share(replace(row, extra_bytes=2**22)) == 0


def test_report_says_what_the_result_says() -> None:
    result = a_result()
    text = report.markdown(result, [Path("somewhere/a-ratios.png")])
    assert "![](a-ratios.png)" in text
    assert "| forum | 1.000 | 1.00 (50) | 0.70 (50) | 1.50 (50) | 1% |" in text
    assert "| **geometric mean** | | **1.00** | **0.70** | **1.50** | |" in text
    assert "156 rows; 156 checked, 0 of them failed." in text
    assert "Not complete" not in text
    assert "busy" not in text
    result.processes[0]["processor_share"] = 0.6
    result.ended = "interrupted"
    result.rows[3].failed, result.rows[3].check = True, "bits DIFFER"
    result.rows[4].seconds, result.rows[4].skipped = None, "too dear"
    text = report.markdown(result)
    assert "**Not complete" in text
    assert "**The machine was busy.**" in text
    assert "FAILED: notes, 7x7/2, forward, float32, avx512, 1 thread, tuned malloc: torch oneDNN: bits DIFFER" in text
    assert "* naive: too dear" in text


def test_pictures_are_drawn_for_what_there_is(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pictures = plots.draw(a_result(), tmp_path / "a")
    assert [path.name for path in pictures] == ["a-ratios.png", "a-error.png", "a-threads.png"]
    for path in pictures:
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.stat().st_size > 10_000
    assert plots.draw(Result("2026-01-31", "", {}, {}, {}), tmp_path / "b") == []


@pytest.mark.parametrize("low", [0.013, 0.4, 1.0, 2.3, 77.0])
@pytest.mark.parametrize("factor", [1.02, 1.5, 2.7, 9.0, 40.0, 1e3, 1e7])
def test_ticks_are_round_few_and_apart(low: float, factor: float) -> None:
    pytest.importorskip("matplotlib")
    found = plots.ticks(low, low * factor)
    assert 2 <= len(found) <= 9
    assert found == sorted(found)
    assert low <= found[0] <= found[-1] <= low * factor
    places = np.log(np.array(found) / low) / np.log(factor)  # 0 to 1 along the axis
    assert np.diff(places).min() > 0.04
    assert all(len(f"{tick:g}") <= 8 for tick in found)


def test_compare_sees_bits_times_and_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = a_result(), a_result(1.2)
    gone = after.rows.pop(1)
    after.rows.append(replace(after.rows[0], route="new route", sha256=""))
    after.rows[0].sha256 = "torch has other bits now"
    after.versions["torch"] = "2.14.0"
    before.save(tmp_path / "a.json")
    after.save(tmp_path / "b.json")
    assert compare.main([str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 0
    said = capsys.readouterr().out
    assert "torch: 2.13.0 -> 2.14.0" in said
    assert "Bits of detconv: 103 of 103 rows have the same." in said
    assert f"Missing: 1 rows\n  {gone.key}" in said
    assert "New: 1 rows" in said
    assert " 1.20  notes, forward, float32, avx2, 2 threads, tuned malloc: naive (13 layers)" in said
    assert "5%: 103 rows" in said
    assert "other bits, not of the same sum: notes, forum, forward" in said

    after.rows[1].sha256 = "broken"
    after.save(tmp_path / "b.json")
    assert compare.main([str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 1
    assert "102 of 103 rows have the same." in capsys.readouterr().out


# ---- The command ----

BENCH = [sys.executable, "-m", "bench"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def test_smoke_run_writes_a_consistent_result(tmp_path: Path) -> None:
    command = [*BENCH, "--smoke", "--routes", "torch oneDNN,naive,exact,replay", "--output", tmp_path / "smoke"]
    run = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE)
    assert run.returncode == 0, (run.stdout[-2000:], run.stderr)
    result = Result.load(tmp_path / "smoke.json")
    assert not result.ended
    assert (tmp_path / "smoke.md").read_text() == run.stdout.removesuffix("\n")
    assert not any(row.failed for row in result.rows)
    assert {(row.suite, row.which) for row in result.rows} == {*(("forum", w) for w in PASSES), ("tiny", "call")}
    assert len({row.key for row in result.rows}) == len(result.rows)

    (about,) = result.processes
    fastest = worker.usable()[-1]
    assert about["build_info"]["instruction_set"] == about["isa"] == fastest
    assert about["environment"]["OMP_NUM_THREADS"] == "1"
    assert about["build_info"]["num_threads"] == about["torch"]["threads"] == 1
    for row in result.rows:
        assert row.process == (fastest, "tuned", 1)
        if row.skipped:
            assert row.seconds is None
            continue
        assert row.check
        assert row.seconds is not None
        assert 0 < row.seconds.q1 <= row.seconds.median <= row.seconds.q3
        assert row.seconds.rounds >= 3
        if row.suite != "tiny":
            problem = Problem(SUITES[row.suite].layers[row.layer], row.which, row.dtype)
            if row.summation:
                assert row.sha256 == worker.sha256(output_of(problem, row.summation))
                assert row.ratio == row.seconds.median / torchs(result, row)
            assert row.gflops == 2 * row.macs / row.seconds.median / 1e9


def torchs(result: Result, row: Row) -> float:
    (theirs,) = result.select(suite=row.suite, layer=row.layer, which=row.which, route="torch oneDNN")
    assert theirs.seconds is not None
    return theirs.seconds.median


def test_an_interrupt_keeps_what_there_is(tmp_path: Path) -> None:
    command = [*BENCH, "--suites", "forum", "--passes", "all", "--routes", "naive", "--threads", "1", "--seconds", "5"]
    process = subprocess.Popen(
        [*command, "--output", tmp_path / "a"],
        cwd=ROOT,
        env=ENVIRONMENT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # which a shell's background jobs ignore
    )
    deadline = time.monotonic() + PATIENCE
    while not (tmp_path / "a.json").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, stderr
    assert "Not complete: interrupted." in stderr
    assert "Traceback" not in stderr
    result = Result.load(tmp_path / "a.json")
    assert result.ended == "interrupted"
    assert 0 < len(result.select(route="naive")) < 6
    assert "**Not complete" in (tmp_path / "a.md").read_text()


def test_a_process_that_fails_ends_the_run_and_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", ENVIRONMENT["PYTHONPATH"])
    process = Process(worker.usable()[-1], "default", 1)
    fine = worker.Job(process, [worker.Task("forum", "forum", "forward", "float32")], ["naive"], 0.01, 3)
    wrong = fine._replace(tasks=[fine.tasks[0]._replace(layer="no such layer")])
    result = runner.run([fine, wrong, fine], plan.Options(), tmp_path / "a.json")
    assert result.ended == f"the process of {process} ended with status 1"
    assert len(result.select(route="naive")) == 1
    assert Result.load(tmp_path / "a.json") == result


@pytest.mark.parametrize("isa", ["avx2", "avx512"])
def test_torch_is_capped_to_the_instruction_set(isa: str) -> None:
    if isa not in worker.usable():
        pytest.skip(f"{isa} cannot run here")
    job = worker.Job(Process(isa, "default", 2), [], [], 0.01, 3)
    (entry,) = runner.lines_of(job)
    about = entry["process"]
    assert about["build_info"]["instruction_set"] == isa
    assert about["torch"]["capability"] == isa.upper()
    assert about["torch"]["threads"] == 2
    assert environment.settings(job.process)["DETCONV_ISA"] == isa


@pytest.mark.parametrize("long", [True, False])
def test_a_long_call_is_timed_once(long: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "LONG", 0.0 if long else 1e9)
    task = worker.Task("forum", "forum", "forward", "float32")
    job = worker.Job(Process(worker.usable()[-1], "default", 1), [task], ["torch oneDNN", "naive"], 0.01, 3)
    theirs, ours, *_ = worker.rows_of(job, task, {"float32": 10.0})
    assert theirs.seconds is not None
    assert ours.seconds is not None
    assert ours.check
    for row in (theirs, ours):
        assert row.seconds is not None
        assert (row.seconds.rounds == 1) is long
        assert row.clock == "thread"
    assert theirs.ratio == 1
    assert ours.ratio == ours.seconds.median / theirs.seconds.median
    assert ours.of_peak == 2 * ours.macs / ours.seconds.median / 1e9 / 10.0


def test_settings_that_a_process_inherits_are_part_of_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    before = environment.settings(Process("avx2", "default", 2))
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1")
    monkeypatch.setenv("DETCONV_PRETRAINED", "of no matter")
    settings = environment.settings(Process("avx2", "default", 2))
    assert settings == before | {"OMP_WAIT_POLICY": "PASSIVE"}
    assert settings["OMP_NUM_THREADS"] == "2"
    assert settings.items() <= environment.environment(Process("avx2", "default", 2)).items()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--suites", "forum,nonsense"], "argument --suites: 'nonsense' is none of forum, notes,"),
        (["--routes", "pytorch"], "argument --routes: 'pytorch' is none of torch oneDNN,"),
        (["--threads", "0"], "argument --threads: must be numbers from 1 to 1024, with commas; got '0'"),
        (["--threads", "two"], "got 'two'"),
        (["--seconds", "-1"], "argument --seconds: must be more than 0 and less than 3600; got '-1'"),
        (["--isas", "sse9"], "argument --isas: 'sse9' is none of"),
        (["--suites", "forum", "--layers", "7x7"], "argument --layers: '7x7' is in none of the suites forum; see"),
        (["--smoke", "--full"], "not allowed with"),
        (["--targets", "nowhere.json"], "argument --targets: "),
        (["--output", "nowhere/at/all"], "argument --output: must be a name in a directory that exists; got 'nowhere"),
    ],
)
def test_bad_arguments_say_what_is_wrong(arguments: list[str], said: str) -> None:
    run = subprocess.run(
        [*BENCH, *arguments], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE
    )
    assert run.returncode == 2
    assert said in run.stderr
    assert "Traceback" not in run.stderr


def test_nothing_written_names_the_machine() -> None:
    described = json.dumps([machine.describe(), machine.versions(), machine.slug(machine.cpu_model())])
    assert os.uname().nodename not in described or len(os.uname().nodename) < 4
    assert re.fullmatch(r"[a-z0-9-]+", machine.slug("Intel(R) Xeon(R) Platinum 8488C CPU @ 2.40GHz"))
    assert machine.slug("AMD EPYC 9B14") == "amd-epyc-9b14"
