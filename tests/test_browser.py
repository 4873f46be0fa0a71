"""JupyterLab as a reader uses it: open every notebook in Chromium and look at the charts; in two of them after Run All.

That each notebook runs to its end, and to which numbers, is for nbval. Screenshots of every notebook's charts go to runs/screenshots/.
"""

import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest
from PIL import Image

from tests.chromium import SCREENSHOTS, browser, is_blank, needs_browser  # noqa: F401 (a fixture)

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
#: Run All is chosen in one that trains, under a progress bar, and in one with the explorer's selections.
RUN_ALL = ("02_training", "04_figures")
#: So that training takes seconds, and begins whatever runs/ holds.
SHORTENED = {"steps": "20", "max_documents": "300"}
ERROR = '.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.error"]'
STDERR = '.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.stderr"]'
MINUTES = 6
#: "ended" as soon as a cell shows an error (those after it never get a number) or all `n` have theirs; "dropped" if no cell
#: runs or has run: a kernel whose connection is renewed while it starts forgets what it was given.
STATE = f"""n => {{
  if (document.querySelector('{ERROR}')) return 'ended';
  const p = [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map(e => e.textContent);
  const done = p.filter(t => /\\d/.test(t)).length, running = p.some(t => t.includes('*'));
  return !running && done >= n ? 'ended' : !running && done == 0 ? 'dropped' : 'running';
}}"""

pytestmark = needs_browser


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of a JupyterLab over a copy of the notebooks: it saves what it shows."""
    folder, settings = tmp_path_factory.mktemp("lab"), tmp_path_factory.mktemp("settings")
    for path in NOTEBOOKS:
        shutil.copy(path, folder)
    _shorten(folder / "02_training.ipynb", {**SHORTENED, "runs_dir": json.dumps(str(folder / "runs"))})
    tracker = settings / "@jupyterlab" / "notebook-extension" / "tracker.jupyterlab-settings"
    tracker.parent.mkdir(parents=True)
    tracker.write_text(json.dumps({"windowingMode": "none"}))  # every cell is in the page, also below the fold
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root", f"--port={port}",
               "--ServerApp.port_retries=0", "--IdentityProvider.token=", f"--ServerApp.root_dir={folder}",
               f"--LabApp.user_settings_dir={settings}", "--LabApp.news_url="]  # fmt: skip
    environment = {**os.environ, "TQDM_DISABLE": "0", "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment, cwd=folder
    )
    address = f"http://127.0.0.1:{port}"
    for _ in range(120):
        try:
            urllib.request.urlopen(f"{address}/api", timeout=2)
            break
        except OSError:
            time.sleep(0.5)
    yield address
    server.terminate()
    server.wait(20)


def _shorten(path: Path, values: dict[str, str]) -> None:
    """Replaces values in the parameters cell of a notebook."""
    notebook = nbformat.read(path, as_version=4)
    cell = next(c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
    for name, value in values.items():
        cell.source, n = re.subn(rf"^({name}: \w+ =) \S+", rf"\1 {value}", cell.source, flags=re.MULTILINE)
        assert n == 1, name
    nbformat.write(notebook, path)


def _shows_number(cell) -> bool:
    """Whether JupyterLab shows the number of a cell when it has run: folded inputs have no prompt."""
    folded = cell.metadata.get("jupyter", {}).get("source_hidden", False)
    return cell.cell_type == "code" and bool(cell.source) and not folded


def run_all(page, n_cells: int) -> None:
    """Choose Run All, again if it was dropped, and wait until the cells are done or one shows an error."""
    deadline, state = time.monotonic() + MINUTES * 60, "dropped"
    while state != "ended" and time.monotonic() < deadline:
        if state == "dropped":
            page.click('.lm-MenuBar-itemLabel:text-is("Run")')
            page.click('.lm-Menu-itemLabel:text-is("Run All Cells")')
            page.wait_for_timeout(3000)
        page.wait_for_timeout(500)
        state = page.evaluate(STATE, n_cells)
    assert state == "ended", f"still {state} after {MINUTES} minutes"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_in_jupyterlab_shows_charts_and_no_errors(path, lab, browser):
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.goto(f"{lab}/lab/tree/{path.name}?reset", wait_until="domcontentloaded")
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=120_000)
    page.wait_for_selector('.jp-Notebook-ExecutionIndicator[data-status="idle"]', timeout=120_000)
    page.keyboard.press("Escape")
    if path.stem in RUN_ALL:
        run_all(page, sum(map(_shows_number, nbformat.read(path, as_version=4).cells)))
    expected = sum(
        "application/vnd.vegalite.v5+json" in o.get("data", {})
        for c in nbformat.read(path, as_version=4).cells
        for o in c.get("outputs", [])
    )
    charts = page.locator(".vega-embed")
    errors = page.locator(ERROR)
    deadline = time.monotonic() + 60
    while charts.count() < expected and not errors.count() and time.monotonic() < deadline:
        page.wait_for_timeout(500)  # charts are drawn after their cells, late on a busy machine
    page.wait_for_timeout(1500)
    assert errors.count() == 0, errors.first.inner_text()[:2000]
    assert page.locator(STDERR).count() == 0
    assert charts.count() == expected > 0
    for i in range(charts.count()):
        charts.nth(i).scroll_into_view_if_needed()
        picture = charts.nth(i).screenshot(path=SCREENSHOTS / f"{path.stem}-{i}.png")
        assert not is_blank(picture), f"chart {i} is blank"
    page.close()


def test_a_blank_picture_is_found():
    file = io.BytesIO()
    Image.new("RGB", (200, 100), "white").save(file, "PNG")
    assert is_blank(file.getvalue())
