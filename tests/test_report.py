"""The report: what is in it and that corpora cannot put markup into it."""

import nbformat
import pandas as pd
import pytest
from bs4 import BeautifulSoup

from fairlm_utils import files
from fairlm_utils.experiment import report
from fairlm_utils.experiment.report import notebook_html, render_math, write_report


@pytest.mark.parametrize(
    "markdown, expected",
    [
        (r"a $x_1$ b", "<math"),
        (r"$$\sum_k n_k$$", 'display="block"'),
        ("`$x$`", "`$x$`"),
        ("costs $1 and $2", "costs $1 and $2"),
    ],
)
def test_equations_become_mathml_and_code_and_prices_do_not(markdown, expected):
    assert expected in render_math(markdown)


def test_markup_in_titles_lines_and_tables_is_text(tmp_path):
    script = "<script>alert(1)</script>"
    index = write_report(tmp_path, script, [script], {script: pd.DataFrame({script: [script]})}, {})
    page = index.read_text()
    assert "<script" not in page and page.count("&lt;script&gt;") >= 5


def test_markup_in_printed_outputs_is_text(tmp_path):
    notebook = nbformat.v4.new_notebook()
    cell = nbformat.v4.new_code_cell("print(token)")
    cell.outputs = [nbformat.v4.new_output("stream", text="<script>alert('token')</script>")]
    notebook.cells = [cell]
    nbformat.write(notebook, tmp_path / "n.ipynb")
    assert "<script>alert('token')" not in notebook_html(tmp_path / "n.ipynb")


def test_a_page_is_made_once_and_again_when_its_notebook_changes(tmp_path):
    path = tmp_path / "n.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("first")]), path)
    write_report(tmp_path / "r", "t", [], {}, {"01 n": path})
    page = tmp_path / "r" / "01-n.html"
    stamp = page.stat().st_mtime_ns
    write_report(tmp_path / "r", "t", [], {}, {"01 n": path})
    assert page.stat().st_mtime_ns == stamp and "first" in page.read_text()
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("second")]), path)
    import os

    os.utime(path, (page.stat().st_mtime + 5,) * 2)
    write_report(tmp_path / "r", "t", [], {}, {"01 n": path})
    assert "second" in page.read_text()


def test_the_site_has_no_dead_link_and_needs_no_network(tmp_path):
    front = report.write_site(tmp_path)
    pages = sorted(tmp_path.glob("*.html"))
    notebooks = sorted((files.PROJECT / "notebooks").glob("*.ipynb"))
    assert {f"{p.stem.replace('_', '-')}.html" for p in notebooks} <= {p.name for p in pages}
    linked = set()
    for page in pages:
        soup = BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")
        anchors = {e["id"] for e in soup.find_all(id=True)}
        for tag, attribute in (("a", "href"), ("img", "src"), ("link", "href"), ("script", "src")):
            for element in soup.find_all(tag, attrs={attribute: True}):
                target = element[attribute]
                if target.startswith("data:") or (tag == "a" and target.startswith("https://")):
                    continue
                assert "://" not in target, (page.name, target)
                name, _, anchor = target.partition("#")
                assert not name or (tmp_path / name).exists(), (page.name, target)
                assert not anchor or name or anchor in anchors, (page.name, target)
                linked |= {name} if page == front else set()
    assert {p.name for p in pages if p.name[:2].isdigit() and not p.name.startswith("02")} <= linked | {
        "02-training.html"
    }


def test_a_model_named_by_a_long_path_has_its_page(tmp_path):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("text")])
    nbformat.write(notebook, tmp_path / "a.ipynb")
    titles = ["03 " + "/folder" * 60 + end for end in ("/a.json", "/b.json")]
    report.write_report(tmp_path / "r", "title", [], {}, {title: tmp_path / "a.ipynb" for title in titles})
    assert len(list((tmp_path / "r").glob("03*.html"))) == 2


def test_links_between_notebooks_lead_to_their_pages_or_are_text(tmp_path):
    cell = nbformat.v4.new_markdown_cell("[one](one.ipynb) and [two](two.ipynb)")
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "n.ipynb")
    page = notebook_html(tmp_path / "n.ipynb", pages={"one.ipynb": "one.html"})
    assert 'href="one.html"' in page and "two.ipynb" not in page and "and two" in page
