"""The site as `make site` builds it: whole, without a dead link, read from a folder without a network."""

import importlib.util
import json
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pytest
from bs4 import BeautifulSoup

import fairlm_utils
from tests.chromium import browser, needs_browser  # noqa: F401 (a fixture)

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
VEGA = "application/vnd.vegalite.v5+json"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Built with warnings as errors."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", "docs", "-d", folder / "trees", "."]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, folder / "site"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and not done.stderr, done.stderr[-3000:]
    return folder / "site"


@pytest.fixture(scope="module")
def pages(site):
    """Every page, by its path in the site, without the bytes of pictures within it."""
    texts = {p.relative_to(site).as_posix(): p.read_text(encoding="utf-8") for p in sorted(site.rglob("*.html"))}
    return {name: BeautifulSoup(re.sub(r"base64,[^\"']*", "", text), "html.parser") for name, text in texts.items()}


def charts_of(path: Path) -> list[dict]:
    outputs = [o for cell in nbformat.read(path, as_version=4).cells for o in cell.get("outputs", [])]
    return [o["data"][VEGA] for o in outputs if VEGA in o.get("data", {})]


def test_every_notebook_result_and_module_has_its_page(site, pages):
    documents = [*(ROOT / "results").glob("*/README.md"), *NOTEBOOKS]
    documents += [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    documents += [ROOT / room / "README.md" for room in ("params", "results", "tests")]
    assert len(NOTEBOOKS) == 9
    assert {p.relative_to(ROOT).with_suffix(".html").as_posix() for p in documents} <= set(pages)
    assert (site / "index.html").read_text() == (site / "README.html").read_text()
    listed = {e["id"] for name, page in pages.items() if name.startswith("docs/") for e in page.find_all(id=True)}
    modules = {m.name for m in pkgutil.walk_packages(fairlm_utils.__path__, "fairlm_utils.")}
    assert {f"module-{name}" for name in modules - {"fairlm_utils.__main__"}} <= listed
    first = [e["id"] for e in pages["docs/practitioners.html"].select("dt.sig[id]")]
    assert [name for name in first if name.count(".") == 1] == [f"fairlm_utils.{n}" for n in (
        "TokenFrequencyCallback", "frequency_aware_adamw", "loss_weights", "Objective")]  # fmt: skip
    assert set(fairlm_utils.__all__) == {name.split(".")[1] for name in first}


def test_every_page_is_reached_from_the_front_page(pages):
    linked, found = {"index.html"}, ["index.html"]
    while found:
        name = found.pop()
        for link in pages[name].find_all("a", href=True):
            path = os.path.normpath(os.path.join(os.path.dirname(name), link["href"].partition("#")[0]))
            if path in pages and path not in linked:
                linked.add(path)
                found.append(path)
    assert linked >= set(pages) - {"README.html", "search.html"}  # the one has another name, the other a form


def test_no_page_loads_anything_from_elsewhere_and_no_link_is_dead(site, pages):
    anchors = {name: {e["id"] for e in page.find_all(id=True)} for name, page in pages.items()}
    for name, page in pages.items():
        for element in page.find_all(lambda e: e.has_attr("href") or e.has_attr("src")):
            target = element.get("href") or element["src"]
            if (element.name == "a" and target.startswith("https://")) or target.startswith("data:"):
                continue
            assert not re.match(r"[\w+.-]+:|//", target), (name, target)
            path, _, anchor = unquote(target).partition("#")
            path = os.path.normpath(os.path.join(os.path.dirname(name), path.partition("?")[0])) if path else name
            assert (site / path).is_file(), (name, target)
            assert not anchor or path not in anchors or anchor in anchors[path], (name, target)
    for style in site.rglob("*.css"):
        assert not re.search(r"@import|url\(['\"]?(https?:|//)", style.read_text(encoding="utf-8")), style.name


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_charts_are_kept_whole_with_a_picture_and_parameters_are_folded(path, pages):
    page = pages[f"notebooks/{path.stem}.html"]
    figures = page.select("figure.chart")
    assert [json.loads(f.script.string) for f in figures] == charts_of(path) != []
    assert all(f.img["src"].startswith("data:image/png;") and f.img["alt"] for f in figures)
    folded = page.select_one("div.cell.tag_parameters details")
    assert folded and not folded.has_attr("open") and folded.select("div.highlight")


def test_equations_are_mathml_and_verdicts_have_their_colours(pages):
    assert len(pages["notebooks/05_theory.html"].find_all("math")) > 10
    verdicts = [e.get_text() for e in pages["index.html"].select("td.verdict.reproduced")]
    assert set(verdicts) == {"reproduced"}


def test_a_token_that_is_mark_up_stays_within_its_chart():
    spec = importlib.util.spec_from_file_location("pages", ROOT / "docs" / "pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    chart = {
        "description": '"><script>alert(1)</script>',
        "data": {"values": [{"token": "</script><img src=x onerror=y>"}]},
    }
    shown = {"alt": chart["description"], "width": 1, "height": 1}
    output = nbformat.v4.new_output("display_data", {VEGA: chart, "image/png": "aGk="}, metadata={"image/png": shown})
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("chart", outputs=[output])])
    html = module.read_notebook(nbformat.writes(notebook)).cells[0].outputs[0].data["text/html"]
    page = BeautifulSoup(html, "html.parser")
    assert len(page.find_all("script")) == len(page.find_all("img")) == 1
    assert json.loads(page.script.string) == chart and page.img["alt"] == chart["description"]


@needs_browser
def test_charts_live_and_search_finds_in_a_folder_without_a_network(site, browser):
    problems = []
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.on("request", lambda r: problems.append(r.url) if r.url.startswith("http") else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    for path in NOTEBOOKS:
        page.goto((site / "notebooks" / f"{path.stem}.html").as_uri())
        page.wait_for_function(f"document.querySelectorAll('.chart svg.marks').length == {len(charts_of(path))}")
        for box in ("html", ".content"):  # what is wider scrolls within a box of its own
            assert page.evaluate(f"document.querySelector('{box}').scrollWidth") <= 390, (path.stem, box)
        assert page.locator(".chart img").count() == 0
    page.goto((site / "search.html").as_uri() + "?q=memoriser")
    page.wait_for_selector("#search-results li a")
    assert not problems
    page.close()
