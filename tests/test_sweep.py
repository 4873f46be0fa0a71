"""Grids in processes that make one run after another, and the whole pipeline in miniature, through papermill."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import psutil
import pytest
import yaml

from fairlm_utils import files, identity, params
from fairlm_utils.__main__ import main
from fairlm_utils.analysis.results import load_results
from fairlm_utils.experiment import reproduce, summary, sweep
from fairlm_utils.experiment.sweep import Outcome


@pytest.fixture(scope="module")
def experiment(miniature, shared_runs, tmp_path_factory):
    """An experiment file of four runs of a second each."""
    values = miniature(experiment="pipeline", steps=6, window_steps=2).model_dump()
    values |= {"weight_decay": [0.0, 1.0], "seed": [0, 1]}
    path = tmp_path_factory.mktemp("params") / "pipeline.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def report(experiment):
    return reproduce.reproduce(experiment)


@pytest.fixture
def checked_here(monkeypatch):
    """An experiment is checked in this process: the pipeline has shown that another does it, and imports take seconds."""
    monkeypatch.setattr(reproduce, "own_process", lambda: ThreadPoolExecutor(1))


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


def test_all_runs_are_finished_once_and_those_shown_have_their_executed_notebooks(report, experiment):
    points = params.expand(params.read(experiment))
    folder = identity.run_dir(points[0]).parent
    assert {d.name for d in identity.finished_runs(folder)} == {p.run_id() for p in points}
    for p in points:
        assert "training it now" in (identity.run_dir(p) / sweep.LOG).read_text(encoding="utf-8")
        executed = sorted(path.stem for path in identity.run_dir(p).glob("*.ipynb"))
        assert executed == ([*reproduce.RUN_NOTEBOOKS] if p.seed == 0 else [])
        for name in executed:
            notebook = nbformat.read(identity.run_dir(p) / f"{name}.ipynb", as_version=4)
            injected = next(c.source for c in notebook.cells if "injected-parameters" in c.metadata.get("tags", []))
            assert f"weight_decay = {p.weight_decay}" in injected and f"seed = {p.seed}" in injected
            assert f"run {p.run_id()}" in "".join(
                o.get("text", "") for c in notebook.cells for o in c.get("outputs", [])
            )


def test_running_again_reuses_everything(report, experiment, capsys, monkeypatch, checked_here):
    monkeypatch.setattr(sweep._Workers, "make", lambda *_: pytest.fail("ran again"))
    monkeypatch.setattr(reproduce, "run_notebook", lambda *_: pytest.fail("ran again"))
    assert reproduce.reproduce(experiment) == report
    out = capsys.readouterr().out
    assert "4 reused" in out and out.count("done before") == 7


def test_a_notebook_is_executed_again_for_other_parameters_or_inputs_alone(tmp_path, monkeypatch):
    executed = []
    monkeypatch.setattr(reproduce, "run_notebook", lambda name, output, values: executed.append(output.touch()))
    for values, inputs in (({"seed": 0}, "a"), ({"seed": 0}, "a"), ({"seed": 0}, "b"), ({"seed": 1}, "b")):
        reproduce._notebook("title", reproduce._Wanted("02_training", tmp_path, values, inputs))
    assert len(executed) == 3


def test_a_terminal_that_is_not_utf_8_shows_the_report_to_its_end(report, experiment, monkeypatch, checked_here):
    """ASCII in a process of its own; how others print each character is tested with the commands that take seconds."""
    monkeypatch.setenv("COLUMNS", "90")
    command = [sys.executable, "-m", "fairlm_utils", "reproduce", str(experiment)]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, env=environment, cwd=files.PROJECT, check=False)
    assert done.returncode == 0, done.stderr.decode("ascii")[-2000:]
    shown = {"ascii": done.stdout}
    for encoding in ("latin-1", "cp1252"):
        terminal = io.TextIOWrapper(io.BytesIO(), encoding)
        with monkeypatch.context() as m:
            m.setattr(sys, "stdout", terminal)
            assert main(["reproduce", str(experiment)]) == 0
        terminal.flush()
        shown[encoding] = terminal.buffer.getvalue()
    for encoding, out in shown.items():
        assert f"report: {report.resolve()}" in out.decode(encoding)
        assert "little change of the balanced training loss up to lambda = 0.1" in out.decode(encoding)


def test_claims_are_printed_a_paragraph_each_within_the_terminal(report, experiment, monkeypatch):
    table = summary._tables(load_results(report.parents[1]))["Claims"]
    for columns in (60, 100):
        monkeypatch.setenv("COLUMNS", str(columns))
        lines = summary._for_terminal("Claims", table).splitlines()
        assert max(map(len, lines)) <= columns
        assert sum("paper: " in line for line in lines) == sum("here: " in line for line in lines) == len(table)


def test_a_corpus_that_changes_between_two_calls_is_named_before_anything_runs(
    report, experiment, tmp_path, monkeypatch, checked_here
):
    monkeypatch.setattr(reproduce, "run_notebook", lambda *_: pytest.fail("something ran"))
    known = params.read(experiment)
    shutil.copytree(report.parents[2], tmp_path / "runs")
    lines = Path(known["corpus"]).read_text(encoding="utf-8").splitlines()
    (tmp_path / "corpus.jsonl").write_text("\n".join(lines[5:]), encoding="utf-8")
    overrides = [("runs_dir", str(tmp_path / "runs")), ("corpus_path", str(tmp_path / "corpus.jsonl"))]
    with pytest.raises(files.RunError, match="was made from another text"):
        reproduce.reproduce(experiment, overrides=overrides)


@pytest.mark.parametrize(
    "values, said",
    [
        ({"weight_decay": [0.3, 1.0]}, "weight_decay has no 0.0"),
        (
            {"learning_rate": [0.001, 0.002]},
            "learning_rate: a report compares models, λ and seeds; name settings of others",
        ),
        (
            {"weight_decay": [0.0, 1.0], "variants": {"no decay": {}, "plain decay": {"dropout": 0.1}}},
            "remedies with several runs of a seed",
        ),
    ],
)
def test_a_grid_that_no_report_can_compare_is_refused_before_anything_runs(experiment, tmp_path, values, said):
    path = tmp_path / "e.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(experiment.read_text()), "experiment": "no", **values}))
    with pytest.raises(params.ParameterError, match=said):
        reproduce.reproduce(path)


def _one_cell(folder, source, monkeypatch):
    """A notebook of one cell as notebook 01 of a project of its own."""
    (folder / "notebooks").mkdir()
    cells = [nbformat.v4.new_code_cell(source)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / "notebooks" / "01_tokenization.ipynb")
    monkeypatch.setattr(files, "PROJECT", folder)


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
    reproduce.run_notebook("01_tokenization", tmp_path / "out.ipynb", {})
    shown = capfd.readouterr().err
    assert "KeyboardInterrupt" not in shown and ("Exception in message handler" in shown) == failing


def test_results_are_written_for_committing(report, experiment, tmp_path, checked_here):
    reproduce.reproduce(experiment, save_results=str(tmp_path / "r"))
    provenance = json.loads((tmp_path / "r" / "experiment.json").read_text())["provenance"]
    assert provenance["n_runs"] == 4 and "make results" in provenance["command"]
    assert len(load_results(tmp_path / "r").totals) == 8


def test_a_failed_run_is_reported_with_its_log_and_the_others_finish(miniature, monkeypatch, capsys):
    good, bad = (
        miniature(experiment="fails", steps=2, window_steps=2),
        miniature(experiment="fails", steps=2, window_steps=2, seed=1),
    )
    directory = identity.open_run(bad)
    known = files.read_json(directory / "params.json")
    files.write_json(directory / "params.json", {**known, "adam_beta1": 0.5})  # as if another run had been there
    outcomes = {o.run_id: o for o in sweep.sweep([good, bad], retries=0)}
    assert outcomes[good.run_id()].status == "finished"
    failed = outcomes[bad.run_id()]
    assert failed.status == "failed" and "adam_beta1" in failed.error
    log = Path(failed.log).read_text(encoding="utf-8")
    assert "Traceback (most recent call last)" in log and "RunError: " in log
    sweep.report_outcomes(list(outcomes.values()))
    assert failed.log in capsys.readouterr().err


def test_a_run_has_the_same_bits_whatever_its_process_made_before(miniature, tmp_path):
    """Each of two runs of different models is once the first of a new process, and once the second of the other's."""
    first = miniature(experiment="order", weight_decay=0.1)
    second = miniature(experiment="order", weight_decay=0.5, seed=1, model="openelm-tiny", dropout=0.1)
    for folder, points in (("forth", [first, second]), ("back", [second, first])):
        points = [p.model_copy(update={"runs_dir": str(tmp_path / folder)}) for p in points]
        assert [o.status for o in sweep.sweep(points, n_workers=1)] == ["finished"] * 2
    for p in (first, second):
        forth, back = (
            files.digests(tmp_path / folder / p.experiment / p.run_id(), files.RESULT_FILES)
            for folder in ("forth", "back")
        )
        assert forth == back and len(forth) >= 10


def test_the_memory_of_a_process_does_not_grow_with_its_runs(miniature, tmp_path):
    points = [miniature(experiment="memory", runs_dir=str(tmp_path), steps=4, window_steps=2, seed=i) for i in range(6)]
    sweep.sweep(points, n_workers=1)
    peaks = [files.read_json(identity.run_dir(p) / "provenance.json")["peak_memory_mb"] for p in points]
    assert peaks == sorted(peaks) and peaks[-1] - peaks[1] < 15, peaks


def _at_work(p, parent, seconds=300) -> psutil.Process:
    """The process that trains the run of `p` for the sweep of the process `parent`, once it has a checkpoint."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if list((identity.run_dir(p) / "checkpoints").glob("*/complete.json")):
            (worker,) = [
                c for c in psutil.Process(parent).children() if "fairlm_utils.experiment.sweep" in " ".join(c.cmdline())
            ]
            return worker
        time.sleep(0.02)
    pytest.fail("no run was trained")


@pytest.mark.parametrize("retries", [0, 1])
def test_a_killed_process_fails_its_run_alone(miniature, tmp_path, retries):
    killed, other = (
        miniature(
            experiment="killed", runs_dir=str(tmp_path), steps=steps, window_steps=50, checkpoint_steps=25, seed=seed
        )
        for seed, steps in ((0, 100), (1, 4))
    )
    outcomes = {}
    points = [killed, other]
    driver = threading.Thread(target=lambda: outcomes.update({o.run_id: o for o in sweep.sweep(points, 1, retries)}))
    driver.start()
    _at_work(killed, os.getpid()).kill()
    driver.join(timeout=300)
    assert outcomes[other.run_id()].status == "finished"
    outcome = outcomes[killed.run_id()]
    if retries:
        assert outcome.status == "finished"
        assert "continuing from step" in Path(outcome.log).read_text(encoding="utf-8")
    else:
        assert outcome.status == "failed" and "SIGKILL" in outcome.error and "lower batch_size" in outcome.error


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_sweep_that_ends_early_leaves_no_process_behind(miniature, tmp_path, how):
    known = miniature(experiment="ended", runs_dir=str(tmp_path / "runs"), steps=10**5, window_steps=10**4)
    path = tmp_path / "ended.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in known.model_dump().items() if k != "variant"}))
    # as in a terminal: what a shell's `&` starts ignores the signal
    as_in_a_terminal = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{as_in_a_terminal}; import sys; from fairlm_utils.__main__ import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "sweep", str(path), "--workers", "1"]
    started = subprocess.Popen(command, cwd=files.PROJECT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    worker = _at_work(known, started.pid)
    os.killpg(started.pid, how)  # as a terminal does for Ctrl-C
    said = started.communicate(timeout=20)[1]
    psutil.wait_procs([worker], timeout=20)
    assert not worker.is_running()
    if how == signal.SIGINT:
        assert started.returncode == 130 and "interrupted" in said and "Traceback" not in said
    assert list((identity.run_dir(known) / "checkpoints").glob("*/complete.json"))


def test_bad_files_end_in_one_clear_error_before_anything_runs(tmp_path, capsys, monkeypatch, checked_here):
    monkeypatch.setattr(reproduce, "run_notebook", lambda *_: pytest.fail("something ran"))
    path = tmp_path / "bad.yaml"
    for text, said in (
        ("wieght_decay: 0.1", "did you mean weight_decay"),
        ("model: qwen9-tiny", "neither a known name"),
        ("weight_decay: 1e-1", "write 0.1"),
        ("context: 100000", "longer than"),
    ):
        path.write_text(text)
        assert main(["reproduce", str(path)]) == 2
        assert said in capsys.readouterr().err
    assert main(["sweep", str(tmp_path / "nowhere.yaml")]) == 2


def test_each_model_is_shown_at_a_seed_that_it_has():
    variants = {"a": {"model": "qwen2-tiny", "seed": 0}, "b": {"model": "openelm-tiny", "seed": 1}}
    shown = reproduce._shown(params.expand({"weight_decay": [0.0, 0.1, 1.0], "variants": variants}))
    assert [(p.variant, p.weight_decay) for p in shown] == [("a", 0.0), ("a", 1.0), ("b", 0.0), ("b", 1.0)]


def test_each_text_and_tokenizer_of_an_experiment_has_its_notebook():
    def texts(**variants):
        points = params.expand({"weight_decay": [0.0, 1.0], "variants": variants})
        return reproduce._tokenizations(points, {"experiment": "e"}, Path("runs/e"), "{}")

    one = texts(a={"dropout": 0.1}, b={})
    assert list(one) == ["01 tokenization"] and one["01 tokenization"].folder == Path("runs/e")
    two = texts(a={"vocab_size": 300}, b={"vocab_size": 400}, c={"vocab_size": 300, "dropout": 0.1})
    assert {title: made.values["vocab_size"] for title, made in two.items()} == {
        "01 tokenization a": 300,
        "01 tokenization b": 400,
    }
    assert len({made.folder for made in two.values()}) == 2


def test_outcomes_are_counted(capsys):
    sweep.report_outcomes([Outcome("a", "finished"), Outcome("b", "finished"), Outcome("c", "reused")])
    assert "2 finished, 1 reused" in capsys.readouterr().out


def test_an_experiment_on_remedies_ends_with_their_table_and_picture(
    miniature, tmp_path, capsys, monkeypatch, checked_here
):
    monkeypatch.setattr(reproduce, "RUN_NOTEBOOKS", ())  # those of single runs are the pipeline's to show
    values = miniature(experiment="remedies", steps=4, window_steps=2, weight_decay=1.0).model_dump()
    del values["variant"]
    values |= {
        "seed": [0, 1],
        "variants": {
            "no decay": {"weight_decay": 0.0},
            "plain decay": {},
            "when seen": {"embedding_decay": "when-seen"},
        },
    }
    path = tmp_path / "remedies.yaml"
    path.write_text(yaml.safe_dump(values))
    page = reproduce.reproduce(path, save_results=str(tmp_path / "r"))
    assert "p_holm" in capsys.readouterr().out and "when seen" in page.read_text(encoding="utf-8")
    assert any("07-remedies" in p.name for p in page.parent.glob("*.html"))
    assert (tmp_path / "r" / "remedies.png").stat().st_size > 10_000
    assert "not_worse" in (tmp_path / "r" / "README.md").read_text(encoding="utf-8")
