"""HTML pages: the report of an experiment, and the site of all committed notebooks, readable without a network.

python -m fairlm_utils.experiment.report site          # `make site`
"""

from __future__ import annotations

import hashlib
import html
import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import nbformat
import pandas as pd
from bs4 import BeautifulSoup
from latex2mathml.converter import convert as mathml
from markdown_it import MarkdownIt
from nbconvert import HTMLExporter

from fairlm_utils import files

_MATH = re.compile(r"\$\$(?P<display>.+?)\$\$|(?<![\\$\w])\$(?P<inline>[^$\n]+?)\$(?![\w$])", re.DOTALL)
_LONGEST = 150
_CODE = re.compile(r"(```.*?```|`[^`\n]*`)", re.DOTALL)

_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>
:root {{ color-scheme: light dark; }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }}
table {{ border-collapse: collapse; display: block; overflow-x: auto; font-size: 0.9rem; }}
th, td {{ text-align: left; vertical-align: top; padding: 0.3rem 0.7rem; border-bottom: 1px solid #8886; }}
.reproduced, .holds {{ color: #0a7d4f; }} .not, .does {{ color: #c2410c; }} img {{ max-width: 100%; background: white; }}
pre {{ overflow-x: auto; padding: 0.6rem; border: 1px solid #8886; border-radius: 4px; font-size: 0.85rem; }}
</style></head><body>
{body}
</body></html>
"""


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
    options = {"exclude_input": not with_code, "exclude_output_prompt": not with_code}
    exporter = HTMLExporter(template_name="lab", exclude_anchor_links=True, **options)
    exporter.log.setLevel(logging.ERROR)  # not its note on missing alternative text, which is set below
    page, _ = exporter.from_notebook_node(notebook, resources={"metadata": {"name": Path(path).stem}})
    soup = BeautifulSoup(page, "html.parser")
    if title:  # put in as text, for it may name a folder of a stranger's
        soup.title.string = soup.h1.string = title
    for script in soup.find_all("script"):  # of the template, all fetched from the network; a static page needs none
        script.decompose()
    for link in soup.select('a[href$=".ipynb"]'):
        if link["href"] in pages:
            link["href"] = pages[link["href"]]
        else:
            link.unwrap()
    style = soup.new_tag("style")
    style.string = (
        ".jp-OutputArea-output pre { word-break: normal; overflow-wrap: anywhere; }"  # sentences: not within words
    )
    soup.head.append(style)
    outputs = (output for cell in notebook.cells for output in cell.get("outputs", []))
    descriptions = [o.metadata.get("image/png", {}).get("alt", "") for o in outputs if "image/png" in o.get("data", {})]
    for image, description in zip(soup.select('img[src^="data:image/png"]'), descriptions, strict=True):
        image["alt"] = description
    return str(soup)


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
) -> Path:
    """Write index.html, with `lines` and `tables` under their headings, and one page per notebook; returns the index.

    `notebooks` maps a page's title to an executed notebook. A page that is of its notebook, by the time of its last change, is kept.
    """
    folder = Path(folder)
    links = [
        f'<li><a href="{html.escape(page.name)}">{html.escape(name)}</a></li>'
        for name, page in _pages(folder, notebooks).items()
    ]
    body = [f"<h1>{html.escape(title)}</h1>", *(f"<p>{html.escape(line)}</p>" for line in lines)]
    body += [f"<h2>{html.escape(name)}</h2>\n{table.to_html(index=False, border=0)}" for name, table in tables.items()]
    body += ["<h2>Notebooks</h2>", "<ul>", *links, "</ul>"]
    return _write(folder / "index.html", title, "\n".join(body))


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
    if len(name) > _LONGEST:  # a model may be named by a long path
        name = f"{name[:_LONGEST]}-{hashlib.sha256(title.encode()).hexdigest()[:8]}"
    return name


def _write(page: Path, title: str, body: str) -> Path:
    with files.atomic_path(page) as temporary:
        temporary.write_text(_PAGE.format(title=html.escape(title), body=body), encoding="utf-8")
    return page


def write_site(folder: str | Path) -> Path:
    """The site: README as the front page, a page for every committed notebook, folder of results and other README; returns the front.

    Links of README to notebooks and results become links to their pages, pictures are copied; other files of the
    repository have no page, and their links become plain text.
    """
    folder = Path(folder)
    pages = {f"notebooks/{p.name}": p for p in sorted((files.PROJECT / "notebooks").glob("*.ipynb"))}
    targets = {
        source: page.name
        for source, page in zip(pages, _pages(folder, {p.stem: p for p in pages.values()}).values(), strict=True)
    }
    documents = {"README.md": "index.html", "CONTRIBUTING.md": "contributing.html", "CHANGELOG.md": "changelog.html"}
    documents |= {f"{name}/README.md": f"{name}.html" for name in ("results", "params", "tests")}
    documents |= {
        f"results/{p.parent.name}/README.md": f"results-{p.parent.name}.html"
        for p in sorted((files.PROJECT / "results").glob("*/README.md"))
    }
    targets |= documents | {
        str(Path(name).parent): page for name, page in documents.items() if name.startswith("results/")
    }
    for source, page in documents.items():
        text = (files.PROJECT / source).read_text(encoding="utf-8")
        body = BeautifulSoup(markdown2html(text), "html.parser")
        for image in body.find_all("img"):
            if image["src"].startswith("https://"):  # a badge: the page is to need no network
                image.replace_with(image.get("alt", ""))
                continue
            picture = (files.PROJECT / source).parent / image["src"]
            name = f"{picture.parent.name}-{picture.name}"
            with files.atomic_path(folder / name) as temporary:
                temporary.write_bytes(picture.read_bytes())
            image["src"] = name
        for link in body.find_all("a", href=True):
            if link["href"].startswith(("https://", "#")):
                continue
            name, _, anchor = link["href"].partition("#")
            path = os.path.normpath(Path(source).parent / name)
            if path in targets:
                link["href"] = targets[path] + (f"#{anchor}" if anchor else "")
            else:
                link.unwrap()
        for cell in body.find_all("td"):  # verdicts in the colours of the report
            if (verdict := cell.get_text(strip=True)) in ("reproduced", "not reproduced", "holds", "does not hold"):
                cell["class"] = verdict.split()[0]
        title = body.find("h1").get_text()
        back = "" if page == "index.html" else '<p><a href="index.html">front page</a></p>'
        _write(folder / page, title, back + str(body))
    return folder / "index.html"


def markdown2html(text: str) -> str:
    """Markdown as HTML: tables, code, and headings with the anchors GitHub gives them; mark-up in it is text."""
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    soup = BeautifulSoup(parser.render(text), "html.parser")
    for heading in soup.find_all(["h2", "h3"]):
        heading["id"] = re.sub(r"[^\w\- ]", "", heading.get_text().lower()).replace(" ", "-")
    return str(soup)
