"""Every committed notebook: executed in order, clean, tagged, and run by CI; a changed number makes CI red."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from tests.binder import repository_files

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def code_cells(path):
    return [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code" and c.source.strip()]


def test_every_notebook_is_run_by_ci():
    makefile = (ROOT / "Makefile").read_text()
    assert "make test" in (ROOT / ".ci" / "run").read_text()
    assert "$(wildcard notebooks/*.ipynb)" in makefile and re.search(r"--nbval-lax.*\$\(NOTEBOOKS\)", makefile)
    assert {p for p in repository_files() if p.suffix == ".ipynb"} == set(NOTEBOOKS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_is_executed_in_order_with_clean_outputs(path):
    cells = code_cells(path)
    assert [c.execution_count for c in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        for output in cell.outputs:
            assert output.output_type != "error" and output.get("name") != "stderr", cell.source
            assert "application/vnd.jupyter.widget-view+json" not in output.get("data", {}), cell.source
    assert not re.search(r"/(?:home|Users|root|tmp|work)/\w", path.read_text(encoding="utf-8")), "a path of a machine"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_keeps_to_its_form(path):
    notebook = nbformat.read(path, as_version=4)
    first = notebook.cells[0]
    assert first.cell_type == "markdown" and all(
        word in first.source for word in ("Question", "In the paper", "Scale", "2410.11985")
    )
    assert "parameters" in notebook.cells[1].metadata.tags
    assert notebook.cells[1].metadata.jupyter.source_hidden, "parameters hide the question"
    assert all(
        len(c.source.splitlines()) <= 15 for c in code_cells(path) if "parameters" not in c.metadata.get("tags", [])
    )
    charts = [o for c in code_cells(path) for o in c.outputs if "application/vnd.vegalite.v5+json" in o.get("data", {})]
    assert charts and all(o.data["image/png"] and o.metadata["image/png"]["alt"] for o in charts)
    assert any("nbval-check-output" in c.metadata.get("tags", []) for c in code_cells(path))
    assert path.stat().st_size < 1_000_000


def test_every_notebook_links_to_the_one_before_and_the_one_after():
    for i, path in enumerate(NOTEBOOKS):
        around = [("Before", p) for p in NOTEBOOKS[:i][-1:]] + [("After", p) for p in NOTEBOOKS[i + 1 : i + 2]]
        links = " ".join(f"{word}: [`{p.stem}`]({p.name})." for word, p in around)
        assert nbformat.read(path, as_version=4).cells[0].source.splitlines()[-1] == links


def test_a_changed_number_makes_ci_red(tmp_path):
    """One digit changed in a checked output of the theory notebook is found by the command that CI runs."""
    notebook = nbformat.read(ROOT / "notebooks" / "05_theory.ipynb", as_version=4)
    cells = [c for c in notebook.cells if "nbval-check-output" in c.metadata.get("tags", [])]
    tables = [(c, o) for c in cells for o in c.outputs if "0.18498" in o.get("data", {}).get("text/plain", "")]
    cell, table = tables[0]
    table.data["text/plain"] = table.data["text/plain"].replace("0.18498", "0.18499")
    notebook.cells = notebook.cells[: notebook.cells.index(cell) + 1]
    changed = tmp_path / "changed.ipynb"
    changed.write_text(nbformat.writes(notebook))
    shutil.copy(ROOT / "notebooks" / "conftest.py", tmp_path)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--nbval-lax",
        "--nbval-current-env",
        "-p",
        "no:cacheprovider",
        str(changed),
    ]
    found = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTEST_ADDOPTS": ""}, check=False
    )
    assert found.returncode == 1 and "0.18499" in found.stdout, found.stdout[-2000:]


def test_committed_results_say_where_they_come_from():
    folders = [p.parent for p in (ROOT / "results").glob("*/experiment.json")]
    assert folders
    for folder in folders:
        known = json.loads((folder / "experiment.json").read_text(encoding="utf-8"))
        assert (
            known["provenance"]["command"].startswith(("make results", "python results/"))
            and known["provenance"]["n_runs"] > 1
        )
        assert all(re.fullmatch(r"[0-9a-f]{12}", commit) for commit in known["provenance"]["git_commits"]), (
            "made from uncommitted code"
        )
        assert (ROOT / "params" / f"{known['params']['experiment']}.yaml").exists()
