"""Grids and the whole pipeline in miniature, through papermill."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml

from fairlm_utils import params, reproduce, runs, sweep
from fairlm_utils.sweep import Outcome


@pytest.fixture(scope="module")
def experiment(miniature, session_runs, tmp_path_factory):
    """An experiment file of four runs of a second each."""
    values = miniature(experiment="pipeline", steps=6, window_steps=2).model_dump()
    values |= {"weight_decay": [0.0, 1.0], "seed": [0, 1]}
    path = tmp_path_factory.mktemp("params") / "pipeline.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def report(experiment):
    return reproduce.reproduce(experiment)


def test_the_pipeline_ends_with_a_report_that_needs_no_network(report, experiment):
    page = report.read_text(encoding="utf-8")
    assert "Table 1" in page and "reproduced" in page
    pages = list(report.parent.glob("*.html"))
    assert len(pages) == 1 + 3 + 4  # index; notebooks 01, 04, 05; 02 and 03 of the least and the most decayed run
    for path in pages:
        text = path.read_text(encoding="utf-8")
        assert "<script" not in text and 'src="http' not in text and "@import" not in text, path.name
    figures = next(p for p in pages if "04" in p.name).read_text(encoding="utf-8")
    assert figures.count("data:image/png;base64") >= 5 and "<math" in figures and 'alt="Line chart' in figures


def test_all_runs_are_finished_once_with_their_executed_notebooks(report, experiment):
    points = params.expand(params.read(experiment))
    folder = runs.run_dir(points[0]).parent
    assert {d.name for d in runs.finished_runs(folder)} == {p.run_id() for p in points}
    for p in points:
        notebook = nbformat.read(runs.run_dir(p) / "03_evaluation.ipynb", as_version=4)
        injected = next(c.source for c in notebook.cells if "injected-parameters" in c.metadata.get("tags", []))
        assert f"weight_decay = {p.weight_decay}" in injected and f"seed = {p.seed}" in injected


def test_running_again_reuses_everything(report, experiment, capsys, monkeypatch):
    monkeypatch.setattr(sweep, "run_notebook", lambda *_: pytest.fail("ran again"))
    monkeypatch.setattr(reproduce, "run_notebook", lambda *_: pytest.fail("ran again"))
    assert reproduce.reproduce(experiment) == report
    out = capsys.readouterr().out
    assert "4 reused" in out and out.count("done before") == 3


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_a_terminal_that_is_not_utf_8_shows_the_report_to_its_end(report, experiment, encoding):
    command = [sys.executable, "-m", "fairlm_utils.reproduce", str(experiment)]
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "COLUMNS": "90"}
    done = subprocess.run(command, capture_output=True, env=environment, cwd=runs.PROJECT, check=False)
    out = done.stdout.decode(encoding)
    assert done.returncode == 0 and f"report: {report.resolve()}" in out, done.stderr.decode(encoding)[-2000:]
    assert "little change of the balanced training loss up to lambda = 0.1" in out


def test_claims_are_printed_a_paragraph_each_within_the_terminal(report, experiment, monkeypatch):
    table = reproduce._tables(runs.load_results(report.parents[1]))["Claims"]
    for columns in (60, 100):
        monkeypatch.setenv("COLUMNS", str(columns))
        lines = reproduce._for_terminal("Claims", table).splitlines()
        assert max(map(len, lines)) <= columns
        assert sum("paper: " in line for line in lines) == sum("here: " in line for line in lines) == len(table)


def test_a_corpus_that_changes_between_two_calls_is_named_before_anything_runs(
    report, experiment, tmp_path, monkeypatch
):
    monkeypatch.setattr(reproduce, "run_notebook", lambda *_: pytest.fail("something ran"))
    known = params.read(experiment)
    shutil.copytree(report.parents[2], tmp_path / "runs")
    lines = Path(known["corpus"]).read_text(encoding="utf-8").splitlines()
    (tmp_path / "corpus.jsonl").write_text("\n".join(lines[5:]), encoding="utf-8")
    overrides = [("runs_dir", str(tmp_path / "runs")), ("corpus_path", str(tmp_path / "corpus.jsonl"))]
    with pytest.raises(runs.RunError, match="was made from another text"):
        reproduce.reproduce(experiment, overrides=overrides)


def _one_cell(folder, source, monkeypatch):
    """A notebook of one cell as notebook 01 of a project of its own."""
    (folder / "notebooks").mkdir()
    cells = [nbformat.v4.new_code_cell(source)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / "notebooks" / "01_tokenization.ipynb")
    monkeypatch.setattr(runs, "PROJECT", folder)


@pytest.mark.parametrize("failing", [False, True], ids=["slow", "failing"])
def test_a_kernel_that_ends_reports_no_interrupt_and_still_its_own_errors(tmp_path, monkeypatch, capfd, failing):
    """The last request of a notebook, answered late: the interrupt sent with the end of a kernel came in between."""
    source = (
        "import asyncio\n"
        "kernel = get_ipython().kernel\n"
        "answer = kernel.shell_handlers['kernel_info_request']\n"
        "async def late(*arguments, **options):\n"
        "    await answer(*arguments, **options)\n"
        f"    {'raise OSError' if failing else 'await asyncio.sleep(0.5)'}\n"
        "kernel.shell_handlers['kernel_info_request'] = late"
    )
    _one_cell(tmp_path, source, monkeypatch)
    sweep.run_notebook("01_tokenization", tmp_path / "out.ipynb", {})
    shown = capfd.readouterr().err
    assert "KeyboardInterrupt" not in shown and ("Exception in message handler" in shown) == failing


def test_results_are_written_for_committing(report, experiment, tmp_path):
    reproduce.reproduce(experiment, save_results=str(tmp_path / "r"))
    provenance = json.loads((tmp_path / "r" / "experiment.json").read_text())["provenance"]
    assert provenance["n_runs"] == 4 and "make results" in provenance["command"]
    assert len(runs.load_results(tmp_path / "r").totals) == 8


def test_a_failed_run_is_reported_with_its_notebook_and_the_others_finish(miniature, monkeypatch, capsys):
    good, bad = (
        miniature(experiment="fails", steps=2, window_steps=2),
        miniature(experiment="fails", steps=2, window_steps=2, seed=1),
    )
    directory = runs.claim(bad)
    known = runs.read_json(directory / "params.json")
    runs.write_json(directory / "params.json", {**known, "adam_beta1": 0.5})  # as if another run had been there
    outcomes = {o.run_id: o for o in sweep.sweep([good, bad], retries=0)}
    assert outcomes[good.run_id()].status == "finished"
    failed = outcomes[bad.run_id()]
    assert failed.status == "failed" and "adam_beta1" in failed.error and Path(failed.notebook).exists()
    sweep.report_outcomes(list(outcomes.values()))
    assert failed.notebook in capsys.readouterr().err


def test_bad_files_end_in_one_clear_error_before_anything_runs(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(reproduce, "run_notebook", lambda *_: pytest.fail("something ran"))
    path = tmp_path / "bad.yaml"
    for text, said in (
        ("wieght_decay: 0.1", "did you mean weight_decay"),
        ("model: qwen9-tiny", "neither a known name"),
        ("weight_decay: 1e-1", "write 0.1"),
        ("context: 100000", "longer than"),
    ):
        path.write_text(text)
        assert reproduce.main([str(path)]) == 2
        assert said in capsys.readouterr().err
    assert sweep.main([str(tmp_path / "nowhere.yaml")]) == 2


def test_outcomes_are_counted(capsys):
    sweep.report_outcomes([Outcome("a", "finished"), Outcome("b", "finished"), Outcome("c", "reused")])
    assert "2 finished, 1 reused" in capsys.readouterr().out


def test_an_experiment_on_remedies_ends_with_their_table_and_picture(miniature, tmp_path, capsys):
    values = miniature(experiment="remedies", steps=4, window_steps=2, weight_decay=1.0).model_dump()
    del values["variant"]
    values |= {
        "seed": [0, 1],
        "variants": {
            "no decay": {"weight_decay": 0.0},
            "decay on all": {},
            "when seen": {"embedding_decay": "when-seen"},
        },
    }
    path = tmp_path / "remedies.yaml"
    path.write_text(yaml.safe_dump(values))
    page = reproduce.reproduce(path, save_results=str(tmp_path / "r"))
    assert "taken_back" in capsys.readouterr().out and "when seen" in page.read_text(encoding="utf-8")
    assert any("07-remedies" in p.name for p in page.parent.glob("*.html"))
    assert (tmp_path / "r" / "remedies.png").stat().st_size > 10_000
    assert "Four numbers" in (tmp_path / "r" / "README.md").read_text(encoding="utf-8")
