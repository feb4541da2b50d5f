"""The demo: that what it says is true, that it would say so if it were not, and that it runs with what is there."""

import argparse
import doctest
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

import detconv
from bits import Array, assert_same_bits, made
from detconv import catalogue, cli, demo, routes

ROOT = Path(__file__).parent.parent
U = Fraction(1, 2**24)


@pytest.fixture(autouse=True)
def _no_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the probes find in time would depend on the machine."""
    monkeypatch.setattr(demo, "BUDGET", 1000.0)


def silent(_: str) -> None:
    pass


@pytest.fixture(scope="module")
def real() -> demo.Comparison:
    return demo.measured("real", demo.real_layer(), {}, silent)


@pytest.fixture(scope="module")
def integer() -> demo.Comparison:
    return demo.measured("integer", demo.integer_layer(), {}, silent)


def said(
    real: demo.Comparison, integer: demo.Comparison, revealed: Mapping[str, detconv.revealing.Reveal] | None = None
) -> str:
    return "\n".join(demo.answer(real, integer, revealed or {}))


def output(comparison: demo.Comparison, name: str) -> Array:
    found = comparison.output(name)
    assert found is not None
    return found


# ---- What it says is true ----


def test_the_forums_loops_are_naive_with_rounded_products(real: demo.Comparison) -> None:
    loops = output(real, demo.LOOPS)
    assert loops.shape == (1, 8, 28, 28)
    assert_same_bits(loops, detconv.conv2d(*real.layer[:3], padding=2, summation="naive products=rounded"))


def test_every_route_adds_the_same_integers(integer: demo.Comparison) -> None:
    names = [result.name for result in integer.results]
    assert {demo.LOOPS, *routes.NUMPY} < set(names)
    assert [name for name in names if name.startswith("detconv")][:-1] == [
        f"detconv {m}" for m in detconv._core.methods()
    ]
    for result in integer.results:
        assert_same_bits(np.ascontiguousarray(result.output), integer.nearest, result.name)


def test_exact_sums_magnitudes_and_bound_against_fractions(real: demo.Comparison) -> None:
    image = np.pad(real.layer.input, ((0, 0), (0, 0), (2, 2), (2, 2)))
    for o, y, x in [(0, 0, 0), (1, 13, 7), (5, 27, 27), (7, 2, 26)]:
        window = image[0, :, y : y + 5, x : x + 5]
        products = [
            Fraction(float(a)) * Fraction(float(b)) for a, b in zip(real.layer.weight[o].flat, window.flat, strict=True)
        ]
        terms = [*products, Fraction(float(real.layer.bias[o]))]
        total, magnitude = sum(terms, Fraction()), sum(map(abs, terms), Fraction())
        element = (0, o, y, x)
        # Rounded once to float64, and once to float32.
        assert abs(Fraction(float(real.exact[element])) - total) <= abs(total) / 2**53
        assert abs(Fraction(float(real.magnitude[element])) - magnitude) <= magnitude / 2**53
        assert abs(Fraction(float(real.nearest[element])) - total) <= abs(total) * U
        for result in real.results:
            error = abs(Fraction(float(result.output[element])) - total)
            assert error <= 401 * U / (1 - 401 * U) * magnitude, result.name
    assert abs(Fraction(real.gamma) - 401 * U / (1 - 401 * U)) < Fraction(1, 2**60)


def test_the_errors_are_in_units_in_the_last_place(real: demo.Comparison) -> None:
    assert 0.4 < real.ulps(real.nearest).max() <= 0.5
    above = np.nextafter(real.nearest, np.float32(np.inf))
    assert 0.5 <= real.ulps(above).min() < real.ulps(above).max() <= 1.5


def test_a_table_counts_what_it_says(real: demo.Comparison) -> None:
    stand_in = replace(real, results=[*real.results, demo.Result(demo.TORCH, output(real, "detconv naive"), 2.5)])
    lines = list(demo.table(stand_in))[4:]
    assert len(lines) == len(stand_in.results)
    for line, result in zip(lines, stand_in.results, strict=True):
        assert line.startswith(f"{result.name} ")
        beyond, torch, loops, exact, largest, mean, *_ = line.removeprefix(result.name).split()
        assert int(beyond) == np.count_nonzero(
            ~np.isclose(result.output, output(stand_in, demo.TORCH), rtol=1e-4, atol=0)
        )
        assert int(torch) == np.count_nonzero(result.output == output(stand_in, demo.TORCH))
        assert int(loops) == np.count_nonzero(result.output == output(stand_in, demo.LOOPS))
        assert int(exact) == np.count_nonzero(result.output == real.nearest)
        assert largest == demo._figure(real.ulps(result.output).max())
        assert mean == demo._figure(real.ulps(result.output).mean())
    assert lines[-1].endswith(" 2.50 s")


# ---- Mistakes ----


def flipped(layer: routes.Layer) -> Array:
    """A true convolution, which turns the kernel around."""
    return routes.tensordot(layer._replace(weight=layer.weight[:, :, ::-1, ::-1]))


def no_bias(layer: routes.Layer) -> Array:
    return routes.tensordot(layer._replace(bias=np.zeros_like(layer.bias)))


def with_route(comparison: demo.Comparison, route: Callable[[routes.Layer], Array]) -> demo.Comparison:
    return replace(comparison, results=[*comparison.results, demo.Result("a new route", route(comparison.layer), 0.0)])


def test_rounding_is_told_from_mistakes(real: demo.Comparison, integer: demo.Comparison) -> None:
    assert said(real, integer).startswith("Answer: rounding error, and no mistake.\n")
    for wrong in (flipped, no_bias):
        text = said(with_route(real, wrong), with_route(integer, wrong))
        assert text.startswith("Answer: a mistake in a new route.\n")


def test_one_element_beyond_the_bound_is_a_mistake(real: demo.Comparison, integer: demo.Comparison) -> None:
    def off_by(share: float) -> Callable[[routes.Layer], Array]:
        def route(_: routes.Layer) -> Array:
            changed = real.nearest.copy()
            changed[0, 3, 4, 5] += np.float32(share * real.gamma * real.magnitude[0, 3, 4, 5])
            return changed

        return route

    unchanged = with_route(integer, routes.tensordot)
    assert said(with_route(real, off_by(0.9)), unchanged).startswith("Answer: rounding error")
    text = said(with_route(real, off_by(1.1)), unchanged)
    assert text.startswith("Answer: a mistake in a new route.\n")
    assert "0 sums of integers are wrong, and 1 sums of real values" in " ".join(text.split())


# ---- Orders ----


def test_every_known_order_is_recognised(real: demo.Comparison) -> None:
    outputs = {}
    for order in catalogue.KNOWN_ORDERS:
        got = demo.summed_as(order.summation)(real.layer)
        found, equal = demo.closest_order(real.known, got)
        assert equal == got.size
        outputs[got.tobytes()] = {detconv.Summation.parse(text) for text in (order.summation, found.summation)}
    assert all(len(summations) == 1 for summations in outputs.values())


def test_no_order_is_claimed_where_none_gives_all_bits(real: demo.Comparison, integer: demo.Comparison) -> None:
    def almost(layer: routes.Layer) -> Array:
        changed = demo.summed_as("naive order=kw,c,kh")(layer)
        changed[0, 0, 0, 0] = np.nextafter(changed[0, 0, 0, 0], np.float32(9))
        return changed

    text = said(with_route(real, almost), with_route(integer, routes.tensordot))
    assert column(text, "a new route").endswith(
        "known orders: 6271 outputs, but not all, by naive order=kw,c,kh products=fused bias=last"
    )
    kahan = said(with_route(real, demo.summed_as("kahan")), with_route(integer, routes.tensordot))
    assert re.search(r"^  a new route +none of the \d+ known orders$", kahan, re.MULTILINE)


def summed(text: str) -> routes.Route:
    """detconv with a summation, as a route like any other."""
    return demo.summed_as(text)


# Orders of NumPy's matrix products on processors that the catalogue has not seen, and some that nobody has.
UNKNOWN = {
    "Haswell": 'naive order="2x(+200){[2x(+1){[100x(+2){f0}]}]} bias"',
    "Prescott": 'naive order="2x(+128){[128x(+1){m0}]} 2x(+72){[72x(+1){m256}]} bias"',
    "drawn": 'naive order="7x(+57){[19x(+3){[3x(+1){f0}]}]} f399 bias"',
    "backwards": 'naive order="400x(-1){f399} bias"',
    "blocks": 'naive order="25x(+1){[4x(+100){[4x(+25){f0}]}]} bias"',
}


def column(text: str, name: str) -> str:
    """What stands in the last column of the table of orders beside a name, as one line."""
    lines = text.splitlines()
    start = next(number for number, line in enumerate(lines) if re.match(rf"  {re.escape(name)}  ", line))
    found = [lines[start].removeprefix(f"  {name}")]
    for line in lines[start + 1 :]:
        if not line.startswith(10 * " "):
            break
        found.append(line)
    return " ".join(" ".join(found).split())


@pytest.mark.parametrize("order", UNKNOWN)
def test_an_order_that_the_catalogue_does_not_know_is_revealed(
    order: str, real: demo.Comparison, integer: demo.Comparison
) -> None:
    route = summed(UNKNOWN[order])
    assert demo.closest_order(real.known, route(real.layer))[1] < 6272
    ours, theirs = with_route(real, route), with_route(integer, route)
    found = demo.revealed_order("a new route", route, real.layer)
    text = said(ours, theirs, {"a new route": found})
    assert column(text, "a new route") == UNKNOWN[order]
    assert max(map(len, text.splitlines())) <= 100


def test_a_route_with_several_orders_names_the_outputs_of_each(real: demo.Comparison, integer: demo.Comparison) -> None:
    def by_channels(layer: routes.Layer) -> Array:
        first, last = summed(UNKNOWN["Prescott"])(layer), summed(UNKNOWN["Haswell"])(layer)
        return np.concatenate([first[:, :5], last[:, 5:]], axis=1)

    found = demo.revealed_order("a new route", by_channels, real.layer)
    text = said(with_route(real, by_channels), with_route(integer, by_channels), {"a new route": found})
    assert column(text, "a new route") == (
        f"3920 outputs, channels 0-4: {UNKNOWN['Prescott']} 2352 outputs, channels 5-7: {UNKNOWN['Haswell']}"
    )


def test_of_many_orders_the_first_are_shown_and_the_others_counted() -> None:
    def eight(layer: routes.Layer) -> Array:
        orders = [f'naive order="{k}x(+1){{f0}} {9 - k}x(-1){{f8}} bias"' for k in range(1, 9)]
        return np.concatenate([summed(order)(layer)[:, o : o + 1] for o, order in enumerate(orders)], axis=1)

    small = routes.Layer(made((1, 1, 5, 5), np.float32, 1), made((8, 1, 3, 3), np.float32, 2), np.ones(8, "f4"), 1)
    found = demo.revealed_order("a new route", eight, small)
    assert demo.gives_all_bits(found, small, eight(small))
    shown = list(demo._revealed(found))
    assert len(shown) == 2 * demo.MOST_ORDERS + 1
    counts = [int(text.split()[0]) for text in shown[0:-1:2]]
    more, rest = map(int, re.findall(r"\d+", shown[-1]))
    assert shown[-1] == f"and {more} more, of {rest} outputs"
    assert more == len(found.orders) - demo.MOST_ORDERS
    assert sum(counts) + rest == 200
    assert demo._in_words(found).endswith(f"; {more} more ({rest} outputs)")


def test_an_order_that_is_long_is_cut(real: demo.Comparison, integer: demo.Comparison) -> None:
    shuffled = np.random.default_rng(5).permutation(400)
    route = summed(f'naive order="{" ".join(f"f{term}" for term in shuffled)} bias"')
    found = demo.revealed_order("a new route", route, real.layer)
    assert found.status == "exact"
    text = said(with_route(real, route), with_route(integer, route), {"a new route": found})
    assert re.search(r"\.\.\. \(\d{4} characters\)$", column(text, "a new route"))
    assert column(text, "a new route").startswith(f'naive order="f{shuffled[0]} f{shuffled[1]} ')
    assert max(map(len, text.splitlines())) <= 100
    told = "\n".join(demo.of_torch(with_route(real, route), found))
    assert max(map(len, told.splitlines())) <= 100


def test_where_probes_find_no_order_the_reason_is_said(real: demo.Comparison, integer: demo.Comparison) -> None:
    route = summed("kahan")
    found = demo.revealed_order("a new route", route, real.layer)
    text = column(said(with_route(real, route), with_route(integer, route), {"a new route": found}), "a new route")
    assert re.match(r"none of the \d+ known orders not found by probes either: no tree of additions gives these", text)
    # The probes and their replays see one order, and the layer's own values another.
    found = demo.revealed_order("a new route", summed(UNKNOWN["drawn"]), real.layer)
    text = column(said(with_route(real, route), with_route(integer, route), {"a new route": found}), "a new route")
    assert text.endswith("what the probes found gives other bits: this route does not always add in one order")


@pytest.mark.machine
def test_every_route_of_this_machine_has_its_order_or_the_reason(
    real: demo.Comparison, integer: demo.Comparison
) -> None:
    theirs = torch_routes()
    results = [demo.Result(name, route(real.layer), 1.0) for name, route in theirs.items()]
    real = replace(real, results=[*real.results, *results])
    revealed = demo.reveal_unknown(real, theirs)
    text = said(real, integer, revealed)
    assert max(map(len, text.splitlines())) <= 100
    names = demo.others(theirs)
    assert len(names) >= 5
    for name in names:
        told = column(text, name)
        if "none of the" in told:
            assert "probes" in told, told
        elif "outputs" not in told:
            assert_same_bits(summed(told)(real.layer), output(real, name), name)


def torch_routes() -> Mapping[str, routes.Route]:
    try:
        return routes.torch_routes()
    except ImportError:
        return {}


@pytest.mark.machine
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="oneDNN's names of x86's instruction sets")
@pytest.mark.parametrize("most", ["AVX512_CORE", "AVX2", "SSE41"])
def test_torchs_order_is_known_or_revealed(most: str) -> None:
    """Where oneDNN and MKL may use no more than some instruction sets, on whatever processor."""
    pytest.importorskip("torch")
    code = """
from detconv import demo, routes
layer = demo.real_layer()
known = demo.by_known_orders(layer)
for name, route in routes.torch_routes().items():
    output = route(layer)
    order, equal = demo.closest_order(known, output)
    found = None if equal == output.size else demo.revealed_order(name, route, layer)
    print(equal == output.size or demo.gives_all_bits(found, layer, output), found and found.reason, sep=";")
"""
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": most}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) >= 1
    for line in done.stdout.splitlines():
        known, reason = line.split(";")
        assert known == "True" or reason not in ("", "None"), line


# ---- Running it ----


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bits as the forum's loops, as a test above shows, in less time."""
    monkeypatch.setattr(demo, "loops", demo.summed_as("naive products=rounded"))


def without(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)


@pytest.mark.machine
def test_the_whole_demo(tmp_path: Path, matplotlib_is_ready: None) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("matplotlib")
    command = [sys.executable, "-m", "detconv", "demo", "--output", "errors.png"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 100
    assert done.stdout.isascii()
    assert lines[-1] == "Picture: errors.png"
    assert (tmp_path / "errors.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert "Answer: rounding error, and no mistake." in lines
    for name in demo.others(routes.torch_routes()):
        assert column(done.stdout.partition("These summations")[2], name)
    # torch's order is found on the processors that we know; of another one, the reason why it is not is said.
    rows = [line for line in lines if line.startswith(demo.IN_TORCHS_ORDER)]
    assert bool(rows) is ("? Exact: " in " ".join(lines))
    if rows:
        assert [row.removeprefix(demo.IN_TORCHS_ORDER).split()[:2] for row in rows] == [["0", "6272"], ["0", "6272"]]
        assert lines[-3] == "Replayed by detconv, 6272 of 6272 outputs have the bits of torch."


def test_an_order_that_is_not_found_is_not_claimed(real: demo.Comparison, integer: demo.Comparison) -> None:
    torch = replace(real, results=[*real.results, demo.Result(demo.TORCH, output(real, "detconv kahan"), 1.0)])
    r = detconv.reveal(lambda x, w, b: detconv.conv2d(x, w, b, summation="kahan"), (1, 2, 5, 5), (3, 2, 3, 3))
    assert r.status == "not_a_tree"
    same = demo.in_torchs_order(torch, integer, r)
    assert same[0] is torch
    assert same[1] is integer
    text = " ".join(" ".join(demo.of_torch(torch, r)).split())
    assert "Not a tree: " in text
    assert "Replayed" not in text


def test_without_torch_and_matplotlib(
    quick: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    without("torch", monkeypatch)
    without("matplotlib", monkeypatch)
    assert cli.main(["demo", "--output", str(tmp_path / "errors.png")]) == 0
    text = capsys.readouterr().out
    row = next(line for line in text.splitlines() if line.startswith(demo.LOOPS))
    assert row.removeprefix(demo.LOOPS).split()[:3] == ["-", "-", "6272"]
    assert "pip install torch" in " ".join(text.split())
    assert "pip install matplotlib" in text
    assert "Answer: rounding error" in text
    assert list(tmp_path.iterdir()) == []


def test_no_plot_and_a_line_of_progress(
    quick: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    without("torch", monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert cli.main(["demo", "--no-plot"]) == 0
    out, err = capsys.readouterr()
    assert "icture" not in out
    assert "NumPy einsum" in err
    assert "\n" not in err
    assert err.split("\r")[-2].strip() == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["picture.gif", "picture", "no such directory/picture.png"])
def test_a_picture_that_cannot_be_is_refused_at_once(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(["--output", path])
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert "--output" in message
    assert repr(path) in message


def test_thread_counts_are_given_back(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    without("torch", monkeypatch)
    detconv.set_num_threads(3)
    demo.measured("real", demo.real_layer(), {}, silent)
    assert detconv.get_num_threads() == 3


# ---- The texts beside it ----

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_in_the_texts_give_what_they_show(page: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    examples = "\n".join(block for block in blocks if ">>>" in block)
    test = doctest.DocTestParser().get_doctest(examples, {}, page.name, str(page), 0)
    result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test)
    assert result.failed == 0
    assert result.attempted > 0 or page.name not in ("README.md", "contract.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", text):
        assert (page.parent / target).exists(), target
