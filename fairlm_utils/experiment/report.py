"""HTML pages of an experiment and its notebooks, in the look of the site and readable without a network."""

from __future__ import annotations

import base64
import hashlib
import html
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import nbformat
import pandas as pd
from bs4 import BeautifulSoup
from latex2mathml.converter import convert as mathml
from nbconvert import HTMLExporter
from pygments.formatters import HtmlFormatter

from fairlm_utils import files
from fairlm_utils.analysis import claims, theme

_MATH = re.compile(r"\$\$(?P<display>.+?)\$\$|(?<![\\$\w])\$(?P<inline>[^$\n]+?)\$(?![\w$])", re.DOTALL)
_LONGEST = 150
_CODE = re.compile(r"(```.*?```|`[^`\n]*`)", re.DOTALL)

_VERDICTS = (claims.REPRODUCED, claims.IN_PART, claims.NOT, claims.HOLDS, claims.DOES_NOT_HOLD)
_VERDICT = re.compile(rf"<td>(<p>)?({'|'.join(_VERDICTS)})(?=<)")
_STYLE = Path(__file__).with_name("page.css")  # the site's too

_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>
{style}
</style></head><body class="report"><article>
{body}
</article></body></html>
"""


def dressed(page: str) -> str:
    """The tables of a page as reports and the site show them: verdicts in colours, long headings broken at an underscore.

    >>> dressed("<th>n_seeds</th> <td>in part</td>")
    '<th>n_<wbr>seeds</th> <td class="verdict in-part">in part</td>'
    """
    page = re.sub(r"<th\b[^>]*>[^<]*(?:<p>[^<]*)?", lambda m: m[0].replace("_", "_<wbr>"), page)
    return _VERDICT.sub(lambda m: f'<td class="verdict {m[2].replace(" ", "-")}">{m[1] or ""}{m[2]}', page)


def is_folded(cell: nbformat.NotebookNode) -> bool:
    """Whether a page folds the code of a cell: parameters, and what JupyterLab hides."""
    hidden = cell.metadata.get("jupyter", {}).get("source_hidden", False)
    return hidden or not {"parameters", "injected-parameters"}.isdisjoint(cell.metadata.get("tags", []))


def notebook_html(
    path: str | Path, with_code: bool = True, title: str = "", pages: Mapping[str, str] = MappingProxyType({})
) -> str:
    """An executed notebook as one HTML page that needs no network: equations as MathML, pictures inside, code if wanted.

    A `title` of its own takes the place of the notebook's first cell, which is about the notebook as it is committed.
    Links to other notebooks lead to their `pages`, by file name; where there is none, they become plain text.
    """
    notebook = nbformat.read(path, as_version=4)
    if title:
        notebook.cells[0].source = "# Title"
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = render_math(cell.source)
    exporter = HTMLExporter(template_name="basic", exclude_anchor_links=True, exclude_input=not with_code)
    soup = BeautifulSoup(exporter.from_notebook_node(notebook)[0], "html.parser")
    if title:  # put in as text, for it may name a folder of a stranger's
        soup.h1.string = title
    for script in soup.find_all("script"):  # a static page needs none
        script.decompose()
    for link in soup.select('a[href$=".ipynb"]'):
        if link["href"] in pages:
            link["href"] = pages[link["href"]]
        else:
            link.unwrap()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell, box in zip(code, soup.select("div.code_cell"), strict=True):
        if with_code and is_folded(cell):
            summary = soup.new_tag("summary", string="Show the code")
            box.select_one(".input").wrap(soup.new_tag("details")).insert(0, summary)
    return _page(title or Path(path).stem, str(soup))


def render_math(markdown: str) -> str:
    r"""Markdown with its $inline$ and $$display$$ TeX replaced by MathML; code is left alone.

    >>> render_math("`$x$` costs $1")
    '`$x$` costs $1'
    """

    def replace(match: re.Match) -> str:
        display = match["display"] is not None
        return mathml((match["display"] or match["inline"]).strip(), display="block" if display else "inline")

    parts = _CODE.split(markdown)
    return "".join(part if i % 2 else _MATH.sub(replace, part) for i, part in enumerate(parts))


def write_report(
    folder: str | Path,
    title: str,
    lines: Sequence[str],
    tables: Mapping[str, pd.DataFrame],
    notebooks: Mapping[str, Path],
    chart: Any = None,
) -> Path:
    """Write index.html, with `chart`, `lines` and `tables` under their headings, and a page per notebook; returns the index.

    `notebooks` maps a page's title to an executed notebook. A page that is of its notebook, by the time of its last change,
    is kept. In a cell of a table what follows the first line is set small.
    """
    folder = Path(folder)
    pages = _pages(folder, notebooks).items()
    links = [f'<li><a href="{html.escape(page.name)}">{html.escape(name)}</a></li>' for name, page in pages]
    body = [f"<h1>{html.escape(title)}</h1>", _image(chart) if chart else ""]
    body += [f"<p>{html.escape(line)}</p>" for line in lines]
    body += [f"<h2>{html.escape(name)}</h2>\n{_table(table)}" for name, table in tables.items()]
    body += ["<h2>Notebooks</h2>", "<ul>", *links, "</ul>"]
    with files.atomic_path(folder / "index.html") as temporary:
        temporary.write_text(_page(title, "\n".join(body)), encoding="utf-8")
    return folder / "index.html"


def _page(title: str, body: str) -> str:
    light, dark = (
        HtmlFormatter(style=name, nobackground=True).get_style_defs(".highlight") for name in ("default", "github-dark")
    )
    style = f"{_STYLE.read_text(encoding='utf-8')}\n{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}"
    return _PAGE.format(title=html.escape(title), style=style, body=dressed(body))


def _image(chart: Any) -> str:
    picture, width, height = theme.png(chart)
    source = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    return f'<img src="{source}" width="{width}" height="{height}" alt="{html.escape(chart.description)}">'


def _table(table: pd.DataFrame) -> str:
    """A table in a box of its own, which scrolls where the page is narrower."""

    def cell(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        first, _, rest = html.escape(value).partition("\n")
        return f"{first}<small>{rest}</small>" if rest else first

    cells = table.map(cell)
    shown = cells.rename(columns=lambda name: html.escape(str(name)))
    return f'<div class="scroll">{shown.to_html(index=False, border=0, escape=False, na_rep="")}</div>'


def _pages(folder: Path, notebooks: Mapping[str, Path]) -> dict[str, Path]:
    """A page per notebook, made if it is missing or of another version of the notebook; its path by title."""
    pages = {name: folder / f"{_file_name(name)}.html" for name in notebooks}
    links = {Path(notebook).name: pages[name].name for name, notebook in notebooks.items()}
    for name, notebook in notebooks.items():
        page = pages[name]
        made = Path(notebook).stat().st_mtime_ns
        if not page.exists() or page.stat().st_mtime_ns != made:
            with files.atomic_path(page) as temporary:
                temporary.write_text(notebook_html(notebook, pages=links), encoding="utf-8")
                os.utime(temporary, ns=(made, made))  # whatever the clock says, see which notebook it is of
    return pages


def _file_name(title: str) -> str:
    name = re.sub(r"[^A-Za-z0-9.-]+", "-", title)
    if len(name) > _LONGEST or name != title.replace(" ", "-"):  # a model may be named by a path
        name = f"{name[:_LONGEST]}-{hashlib.sha256(title.encode()).hexdigest()[:8]}"
    return name
