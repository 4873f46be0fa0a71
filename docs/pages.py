"""A Sphinx extension: notebooks, equations, docstrings and the sidebar as the site shows them.

Equations become MathML, and one copy of Vega draws every chart, so that no page needs a network.
"""

import json
import re
import shutil
from pathlib import Path

import nbformat
import vl_convert
from bs4 import BeautifulSoup
from docutils import nodes
from latex2mathml.converter import convert as mathml
from sphinx.application import Sphinx

from fairlm_utils.experiment.report import dressed, is_folded

#: What the sidebar holds, put behind pages that GitHub shows too.
CONTENTS = {
    "README": """
```{toctree}
:hidden:
:glob:
:titlesonly:
:caption: Notebooks

notebooks/*
```
```{toctree}
:hidden:
:caption: Experiments

results/README
params/README
tests/README
```
```{toctree}
:hidden:
:caption: Package

docs/practitioners
docs/experiment
docs/lm
docs/analysis
docs/ground
```
```{toctree}
:hidden:
:caption: Project

CONTRIBUTING
CHANGELOG
LICENCES
```
""",
    "results/README": """
```{toctree}
:hidden:
:glob:

*/README
```
""",
}


HEADINGS = {"LICENCES": "# Licences of all dependencies\n\n"}  # of a page that is a table alone


def read_notebook(text: str) -> nbformat.NotebookNode:
    """A notebook as the site shows it: charts live, cells that JupyterLab hides folded."""
    notebook = nbformat.reads(text, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code" and is_folded(cell):
            cell.metadata["tags"] = sorted({*cell.metadata.get("tags", []), "hide-input"})
        for output in cell.get("outputs", []):
            if spec := output.get("data", {}).get("application/vnd.vegalite.v5+json"):
                output["data"] = {"text/html": _chart(spec, output["data"]["image/png"], output.metadata["image/png"])}
    return notebook


def _chart(spec: dict, picture: str, shown: dict) -> str:
    """A chart as its picture and the specification by which charts.js draws it in the picture's place."""
    soup = BeautifulSoup("<figure class='chart'></figure>", "html.parser")
    image = {name: str(value) for name, value in shown.items()} | {"src": f"data:image/png;base64,{picture.strip()}"}
    soup.figure.append(soup.new_tag("img", attrs=image))
    script = json.dumps(spec).replace("<", "\\u003c")  # a token of the text may be called </script>
    return str(soup).replace("</figure>", f'<script type="application/json">{script}</script></figure>')


def _add_contents(app: Sphinx, page: str, source: list[str]) -> None:
    source[0] = HEADINGS.get(page, "") + source[0] + CONTENTS.get(page, "")


def _drop_remote_pictures(app: Sphinx, document: nodes.document) -> None:
    """Badges become their text: a page is to need no network."""
    for image in list(document.findall(nodes.image)):
        if "://" in image["uri"]:
            image.replace_self(nodes.Text(image.get("alt", "")))


def _docstring_in_rst(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Docstrings are Markdown as far as autodoc meets it: `code`, indented code, lists right below a sentence, a lone *."""
    text = "\n".join(lines)
    text = re.sub(r"\n\n(?= {4})(?<!::\n\n)", "\n\n::\n\n", text)
    text = re.sub(r"^((?!- ).+)\n(?=- )", r"\1\n\n", text, flags=re.MULTILINE)
    parts = re.split(r"`([^`]+)`", text)
    parts[::2] = [re.sub(r"(?<![\w*])\*(?![\w*])", r"\*", part) for part in parts[::2]]
    lines[:] = "".join(f"``{part}``" if i % 2 else part for i, part in enumerate(parts)).split("\n")


def _dress(app: Sphinx, page: str, template: str, context: dict, document: nodes.document | None) -> None:
    context["body"] = dressed(context.get("body", ""))
    if page.startswith("notebooks/"):
        app.add_js_file("charts.js", loading_method="defer")


def _prepare(app: Sphinx) -> None:
    app.env.mystnb_config = app.env.mystnb_config.copy(output_folder=str(app.doctreedir))  # not beside the site
    static = Path(app.outdir) / "_static"
    static.mkdir(parents=True, exist_ok=True)
    script = vl_convert.javascript_bundle((Path(__file__).parent / "charts.js").read_text(encoding="utf-8"))
    (static / "charts.js").write_text(f"(() => {{{script}}})();", encoding="utf-8")  # its names are not the page's


def _write_index(app: Sphinx, failed: Exception | None) -> None:
    """The front page under the name by which a folder is opened."""
    if not failed:
        shutil.copy(Path(app.outdir) / "README.html", Path(app.outdir) / "index.html")


def _inline_math(writer: object, node: nodes.Element) -> None:
    writer.body.append(mathml(node.astext()))
    raise nodes.SkipNode


def _display_math(writer: object, node: nodes.Element) -> None:
    writer.body.append(f'<div class="math">{mathml(node.astext().strip(), display="block")}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Connect the above."""
    app.add_html_math_renderer("mathml", (_inline_math, None), (_display_math, None))
    app.connect("builder-inited", _prepare)
    app.connect("source-read", _add_contents)
    app.connect("doctree-read", _drop_remote_pictures)
    app.connect("autodoc-process-docstring", _docstring_in_rst)
    app.connect("html-page-context", _dress)
    app.connect("build-finished", _write_index)
