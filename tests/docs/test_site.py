"""The site is built strictly, fetches nothing from elsewhere, has the maps' colours; notebooks are their scripts'."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
import numpy as np
import pytest

from vitrail.plotting.overlay import AGAINST, FOR, colour

REPOSITORY = Path(__file__).resolve().parents[2]
DOCS = REPOSITORY / "docs"


def notebooks() -> ModuleType:
    pytest.importorskip("jupytext")
    pytest.importorskip("nbclient")
    spec = importlib.util.spec_from_file_location("execute", DOCS / "notebooks" / "execute.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCRIPTS = sorted(path.stem for path in (DOCS / "notebooks").glob("*.py") if path.stem != "execute")


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_notebook_is_its_script(name: str):
    stored = nbformat.read(DOCS / "notebooks" / f"{name}.ipynb", as_version=4)
    made = notebooks().from_script(DOCS / "notebooks" / f"{name}.py")
    assert [(cell.cell_type, cell.source) for cell in stored.cells] == [(c.cell_type, c.source) for c in made.cells]
    assert all(cell.execution_count for cell in stored.cells if cell.cell_type == "code"), "run `make notebooks`"
    assert not any(output.output_type == "error" for cell in stored.cells for output in cell.get("outputs", []))
    assert (DOCS / "notebooks" / f"{name}.ipynb").stat().st_size < 500_000


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_notebook_still_runs(name: str):
    """What is shown is what was stored, pictures and figures of time aside."""
    module = notebooks()
    stored = nbformat.read(DOCS / "notebooks" / f"{name}.ipynb", as_version=4)
    again = module.execute(module.from_script(DOCS / "notebooks" / f"{name}.py"))
    for before, after in zip(stored.cells, again.cells, strict=True):
        assert [shape(output) for output in before.get("outputs", [])] == [shape(o) for o in after.get("outputs", [])]


def shape(output: Any) -> tuple[str, str]:
    """The kind of an output, and its words; other machines may differ in the last digits, and in their versions."""
    text = output.get("text") or output.get("data", {}).get("text/plain", "")
    return ("picture" if "image/jpeg" in output.get("data", {}) else "text"), re.sub(r"[\d.+−-]+\w*", "#", text)


def test_the_style_has_the_colours_of_the_maps():
    style = (DOCS / "theme" / "vitrail.css").read_text()
    strengths = (-1, -0.75, -0.5, -0.25, 0.25, 0.5, 0.75, 1)
    bar = re.search(r"--vitrail-bar: linear-gradient\(90deg, (.*?)\);", style)
    assert bar is not None
    wanted = [hexadecimal(colour(np.array(float(value)))) for value in strengths]
    assert [one for one in bar[1].split(", ") if one != "#fff"] == wanted
    assert f"--vitrail-for: {hexadecimal(FOR)};" in style
    assert f"--vitrail-against: {hexadecimal(AGAINST)};" in style


def hexadecimal(rgb: Any) -> str:
    return "#" + "".join(f"{round(255 * float(value)):02x}" for value in rgb)


class Fetched(HTMLParser):
    """The addresses that a browser fetches by itself when it shows a page; links are for the reader to follow."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "link" and given.get("rel") in ("canonical", "next", "prev", "edit"):
            return
        names = ("src", "srcset", "poster", "data", "action") + (("href",) if tag == "link" else ())
        self.addresses += [str(given[name]) for name in names if given.get(name)]


def build_command() -> list[str]:
    """The command of `make docs`, as the Makefile has it."""
    line = next(line for line in (REPOSITORY / "Makefile").read_text().splitlines() if "mkdocs build" in line)
    return [sys.executable, "-m", "mkdocs", *line.split("mkdocs ")[1].split()]


@pytest.mark.slow
def test_a_broken_link_and_a_page_outside_the_navigation_stop_the_build(tmp_path: Path):
    for library in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(library)
    for name in ("mkdocs.yml", "README.md", "CHANGELOG.md"):
        shutil.copy(REPOSITORY / name, tmp_path)
    for name in ("docs", "src"):
        shutil.copytree(REPOSITORY / name, tmp_path / name)
    with (tmp_path / "docs" / "start.md").open("a") as page:
        page.write("\n[nowhere](nowhere.md), [no heading](compare.md#no-such-heading)\n")
    (tmp_path / "docs" / "stray.md").write_text("# Stray\n")
    done = subprocess.run(
        build_command(), cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    told = done.stdout + done.stderr
    assert done.returncode != 0, told
    assert "nowhere.md" in told
    assert "no-such-heading" in told
    assert "stray.md" in told
    assert "Aborted with 3 warnings in strict mode" in told  # and nothing else is wrong


@pytest.mark.slow
def test_the_site_is_built_strictly_and_fetches_nothing_from_elsewhere(tmp_path: Path):
    for library in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(library)
    build = [*build_command(), "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(build, cwd=REPOSITORY, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = sorted((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 60
    for page in pages:
        parser = Fetched()
        parser.feed(page.read_text(encoding="utf-8"))
        assert parser.addresses
        assert [one for one in parser.addresses if re.match(r"(?:\w+:)?//", one)] == [], page
    for style in (tmp_path / "site").rglob("*.css"):
        text = style.read_text(encoding="utf-8")
        assert re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", text) == [], style
    formulas = (tmp_path / "site" / "methods" / "gae.html").read_text(encoding="utf-8")
    assert formulas.count('<div class="formula"><svg role="img"') == 2
    assert "```" not in formulas
    _search_from_the_disk(tmp_path / "site" / "methods" / "gae.html")


def _search_from_the_disk(page: Path) -> None:
    """Whoever opens the built site without a server can search it."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    playwright = pytest.importorskip("playwright.sync_api")
    if chromium is None:
        pytest.skip("the site is whole; its search needs Chromium to be tried (Debian: apt-get install chromium)")
    with playwright.sync_playwright() as session:
        browser = session.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = browser.new_page()
        tab.set_default_timeout(240_000)  # on a busy machine
        asked: list[str] = []
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(page.as_uri())
        tab.locator("input.md-search__input").fill("pointing")
        tab.locator(".md-search-result__item").first.wait_for()
        browser.close()
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:", "about:"))] == []
