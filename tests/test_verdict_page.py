"""The page of a verdict: complete, self-contained and readable, and what a browser shows of it is the verdict."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import detconv
from bits import PATIENCE, Array, made
from detconv import _core
from detconv.verdict import page
from detconv.verdict.judge import STATUSES, Verdict

X, W, B = made((2, 32, 9, 9), np.float32, 1), made((6, 16, 3, 3), np.float32, 2), made((6,), np.float32, 3)
GEOMETRY = {"stride": (2, 1), "padding": (1, 2), "groups": 2}


def convolved(summation: str, weight: Array = W) -> Array:
    return detconv.conv2d(X, weight, B, **GEOMETRY, summation=summation)


def judged(candidate: Array) -> Verdict:
    return detconv.judge(candidate, X, W, B, **GEOMETRY)


@pytest.fixture(scope="module")
def verdicts() -> dict[str, Verdict]:
    """One of each status that an output can have as a whole, and one without elements."""
    unlikely = convolved("exact")
    at = np.unravel_index(int(np.argmax(judged(unlikely).magnitude)), unlikely.shape)
    verdict = judged(unlikely)
    unlikely[at] += np.float32(0.9 * verdict.bound[at] + 0.1 * verdict.probable_bound[at])
    made_of = {
        "identical": judged(convolved("exact")),
        "rounding": judged(convolved("naive")),
        "unlikely": judged(unlikely),
        "mistake": judged(convolved("naive", np.ascontiguousarray(W[:, :, ::-1, ::-1]))),
    }
    assert [v.status for v in made_of.values()] == list(STATUSES)
    return made_of | {"empty": detconv.judge(convolved("naive")[:0], X[:0], W, B, **GEOMETRY)}


@pytest.fixture(scope="module")
def pages(verdicts: dict[str, Verdict], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The page of each of them."""
    made_of = {name: tmp_path_factory.mktemp("pages") / f"{name}.html" for name in verdicts}
    for name, path in made_of.items():
        verdicts[name].to_html(path)
    return made_of


class Page(HTMLParser):
    """The elements of a page, which must nest, and the text in each kind of them."""

    VOID = ("meta", "img", "br", "source")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.text.setdefault(tag, []).append("")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in set(self.open):
            self.text[tag][-1] += data

    def attributes(self, tag: str) -> Iterator[dict[str, str | None]]:
        return (attributes for name, attributes in self.tags if name == tag)


def explained(shown: Page, tag: str = "h1") -> str:
    """The explanation as a reader meets it: its first word is the heading, which is not said again."""
    heading = shown.text[tag][0 if tag == "h1" else 1].partition("\n")[0]
    first, *others = shown.text["p"]
    assert not first.startswith(heading)
    return f"{heading}: " + "\n\n".join([first[0].lower() + first[1:], *others])


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [*STATUSES, "empty"])
def test_a_page_says_everything(name: str, verdicts: dict[str, Verdict], pages: dict[str, Path]) -> None:
    verdict = verdicts[name]
    shown = Page(text_of(pages[name]))
    assert shown.text["h1"] == [verdict.status.capitalize()]
    assert shown.text["title"][0].startswith(verdict.status.capitalize())
    assert explained(shown).startswith(verdict.explain())
    words = " ".join(shown.text["main"])
    for said in (str(verdict.problem.input.shape), "(6, 16, 3, 3)", "(6,)", "(2, 1)", "(1, 2)"):
        assert said in words
    assert "0.999999" in words
    assert "Higham" in words
    assert _core.__version__ in shown.text["footer"][0]
    counts = dict(re.findall(r"(identical|rounding|unlikely|mistake)(\d+)", " ".join(shown.text["tr"])))
    assert counts == {status: str(count) for status, count in verdict.counts.items()}


@pytest.mark.parametrize("name", [*STATUSES, "empty"])
def test_a_page_needs_nothing_else_and_is_accessible(name: str, pages: dict[str, Path]) -> None:
    pytest.importorskip("matplotlib")
    text = text_of(pages[name])
    shown = Page(text)
    assert not {"script", "link", "iframe", "object", "form"} & {tag for tag, _ in shown.tags}
    assert not re.search(r"""(https?:)?//[a-z]|url\(|@import|javascript:""", re.sub(r"base64,[^\"]*", "", text))
    assert next(shown.attributes("html"))["lang"] == "en"
    assert [int(tag[1]) for tag, _ in shown.tags if re.fullmatch(r"h\d", tag)] == [1, 2, 2, 2, 2]
    images = list(shown.attributes("img"))
    assert len(images) == (0 if name == "empty" else 4)
    for image in images:
        assert str(image["src"]).startswith("data:image/png;base64,iVBORw0KGgo")
        assert len(str(image["alt"])) > 40
    assert {str(th.get("scope")) for th in shown.attributes("th")} == {"row", "col"}
    tables = len(list(shown.attributes("table")))
    assert len(shown.text["caption"]) == tables >= 2
    assert sum("prefers-color-scheme: dark" in style for style in shown.text["style"]) == 1


def test_the_worst_elements_in_their_sequence(verdicts: dict[str, Verdict], pages: dict[str, Path]) -> None:
    verdict = verdicts["mistake"]
    rows = [row for row in Page(text_of(pages["mistake"])).text["tr"] if row.endswith("mistake")]
    places = [tuple(map(int, row.split(", ")[:3])) for row in rows]
    shares = np.sort(verdict.share, axis=None)[::-1]
    assert len(rows) == 10
    assert places[0] == verdict.worst_element[:3]  # type: ignore[index]
    for row, share in zip(rows, shares, strict=False):
        assert row.endswith(f"{share:.3g}mistake")


def test_what_is_no_html_is_escaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verdict = judged(convolved("naive"))
    monkeypatch.setattr(Verdict, "explain", lambda _: '<script>a && b</script>\n\n"quoted" <b>')
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    verdict.to_html(tmp_path / "page.html")
    for text in (text_of(tmp_path / "page.html"), verdict._repr_html_()):
        assert "<p>&lt;script&gt;a &amp;&amp; b&lt;/script&gt;</p>" in text
        assert "<script" not in text
        assert "<b>" not in text


def test_the_part_for_notebooks(verdicts: dict[str, Verdict]) -> None:
    for verdict in verdicts.values():
        text = verdict._repr_html_()
        assert text == page.fragment(verdict)
        shown = Page(text)
        assert not {"html", "head", "body", "script", "img", "h1"} & {tag for tag, _ in shown.tags}
        assert explained(shown, "div").startswith(verdict.explain())
        # Its style reaches nothing else in the notebook.
        rules = re.sub(r"\{[^}]*\}", "{", shown.text["style"][0]).split("{")
        assert all(part.strip().startswith(".detconv") for rule in rules[:-1] for part in rule.split(","))


def test_without_matplotlib(verdicts: dict[str, Verdict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    verdicts["mistake"].to_html(tmp_path / "page.html")
    shown = Page(text_of(tmp_path / "page.html"))
    assert not list(shown.attributes("img"))
    assert "pip install matplotlib" in " ".join(shown.text["p"])
    with pytest.raises(ImportError, match="matplotlib"):
        verdicts["mistake"].plot()


def test_a_directory_that_does_not_exist(verdicts: dict[str, Verdict], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        verdicts["rounding"].to_html(tmp_path / "no" / "page.html")


# ---- In a browser ----


@pytest.fixture(scope="module")
def chromium() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome", "chrome"):
        if found := shutil.which(name):
            return found
    if "CI" in os.environ:
        pytest.fail("no Chromium: .ci/run installs it")
    pytest.skip("no Chromium here (Debian: apt install chromium)")


def opened(browser: str, path: Path, profile: Path, *what: str) -> str:
    """What the browser prints."""
    quiet = ["--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
    plain = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", *quiet, f"--user-data-dir={profile}"]
    command = [browser, *plain, *what, path.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE).stdout


@pytest.mark.parametrize("name", ["rounding", "mistake"])
def test_a_browser_shows_the_verdict(
    name: str, verdicts: dict[str, Verdict], pages: dict[str, Path], chromium: str, tmp_path: Path
) -> None:
    # The browser's own serialisation of what it understood.
    shown = Page(opened(chromium, pages[name], tmp_path / "profile", "--dump-dom"))
    assert shown.text["h1"] == [name.capitalize()]
    assert explained(shown).startswith(verdicts[name].explain())
    assert [attributes["class"] for attributes in shown.attributes("h1")] == [f"verdict {name}"]


def test_a_browser_draws_the_verdict_in_its_colour(pages: dict[str, Path], chromium: str, tmp_path: Path) -> None:
    image = pytest.importorskip("matplotlib.image")
    picture = tmp_path / "shot.png"
    opened(chromium, pages["mistake"], tmp_path / "profile", "--window-size=900,700", f"--screenshot={picture}")
    pixels = (image.imread(picture)[:160, :, :3] * 255).round().astype(int)
    vermilion = (pixels == (0xD5, 0x5E, 0x00)).all(-1)
    assert vermilion.sum() > 500  # the bar beside it, and the letters
