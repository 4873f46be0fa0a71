"""The report: what is in it and that corpora cannot put markup into it."""

import nbformat
import pandas as pd
import pytest
from bs4 import BeautifulSoup

from fairlm_utils import files
from fairlm_utils.analysis import claims
from fairlm_utils.analysis.results import load_results
from fairlm_utils.experiment import report, summary
from fairlm_utils.experiment.report import notebook_html, render_math, write_report
from tests.chromium import browser, needs_browser  # noqa: F401 (a fixture)


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


def test_a_model_named_by_a_long_path_has_its_page(tmp_path):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("text")])
    nbformat.write(notebook, tmp_path / "a.ipynb")
    titles = ["03 " + "/folder" * 60 + end for end in ("/a.json", "/b.json")]
    report.write_report(tmp_path / "r", "title", [], {}, {title: tmp_path / "a.ipynb" for title in titles})
    titles += ["03 of 模型甲.json", "03 of 模型乙.json", "03 of m_1.json", "03 of m-1.json"]
    report.write_report(tmp_path / "r", "title", [], {}, {title: tmp_path / "a.ipynb" for title in titles})
    assert len(list((tmp_path / "r").glob("03*.html"))) == len(titles)


def test_links_between_notebooks_lead_to_their_pages_or_are_text(tmp_path):
    cell = nbformat.v4.new_markdown_cell("[one](one.ipynb) and [two](two.ipynb)")
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "n.ipynb")
    page = notebook_html(tmp_path / "n.ipynb", pages={"one.ipynb": "one.html"})
    assert 'href="one.html"' in page and "two.ipynb" not in page and "and two" in page


def test_the_code_of_parameters_and_of_hidden_cells_is_folded(tmp_path):
    cells = [nbformat.v4.new_code_cell(f"zebra{i} = 1") for i in range(3)]
    cells[0].metadata["tags"] = ["injected-parameters"]
    cells[1].metadata["jupyter"] = {"source_hidden": True}
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "n.ipynb")
    page = BeautifulSoup(notebook_html(tmp_path / "n.ipynb"), "html.parser")
    assert [d.find("pre").get_text().strip() for d in page.find_all("details")] == ["zebra0 = 1", "zebra1 = 1"]
    assert "zebra" not in notebook_html(tmp_path / "n.ipynb", with_code=False)


def concluded(name, folder):
    """The report of a committed experiment, without notebooks."""
    results = load_results(files.PROJECT / "results" / name)
    return summary.conclude(f"params/{name}.yaml", folder, results, {}), results


def test_a_report_opens_with_the_picture_and_the_verdicts(tmp_path):
    index, results = concluded("imdb-small", tmp_path)
    page = BeautifulSoup(index.read_text(encoding="utf-8"), "html.parser")
    opening = [e.name for e in page.article.find_all(["h1", "h2", "img", "table"])][:4]
    assert opening == ["h1", "img", "h2", "table"]
    assert page.img["alt"].startswith("Line chart of the loss") and page.h2.get_text() == "Claims"
    said = claims.claims(results)
    rows = [[cell.get_text("\n") for cell in row.find_all("td")] for row in page.table.find_all("tr")[1:]]
    assert len(rows) == len(said)
    for row, claim in zip(rows, said.itertuples(), strict=True):  # shortened by nothing
        assert row == [
            f"{claim.claim}\n{claim.exhibit}; rule: {claim.rule}",
            claim.paper,
            claim.ours,
            "\n".join(filter(None, (claim.verdict, claim.reason))),
        ]
    coloured = {cell.find(string=True) for cell in page.select("td.verdict")}
    assert coloured == {"reproduced", "in part"}


def test_an_interval_stands_beside_its_mean():
    table = pd.DataFrame({"variant": ["a"], "loss": [0.25], "loss_low": [-0.5], "loss_high": [1.0], "p_low": [3]})
    shown = summary._for_page({"t": table})["t"]
    assert shown.to_dict("list") == {"variant": ["a"], "loss": ["+0.250 [-0.500, +1.000]"], "p_low": [3]}


@needs_browser
@pytest.mark.parametrize("name", ["quick", "imdb-small", "languages", "remedies-regime"])
def test_tables_fit_the_page_of_a_desktop_and_scroll_within_that_of_a_phone(name, tmp_path, browser):
    page, index = browser.new_page(), concluded(name, tmp_path)[0]
    page.goto(index.as_uri())
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") == width
        if width == 1280:
            assert page.evaluate("[...document.querySelectorAll('.scroll')].every(e => e.scrollWidth <= e.clientWidth)")
    page.close()
