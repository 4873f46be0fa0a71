"""Two real processes on one run, one tokenizer cache, one experiment; corpora that vanish, disks and clocks that misbehave."""

import errno
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from filelock import FileLock

from fairlm_utils import files, identity
from fairlm_utils.__main__ import main
from fairlm_utils.analysis.results import load_results, write_results
from fairlm_utils.experiment import report, runs
from fairlm_utils.lm import tokenization, training
from fairlm_utils.lm.corpora import CorpusError

ROOT = Path(__file__).parents[1]


def start(*command: str) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-m", *command], cwd=ROOT, env=environment, **pipes)


def both(first: list[str], second: list[str]) -> list[str]:
    """Run two commands at the same time; their outputs. Both must succeed."""
    processes = [start(*first), start(*second)]
    outputs = []
    for process in processes:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err[-2000:]
        outputs.append(out)
    return outputs


def experiment(path: Path, p, **values) -> list[str]:
    known = {k: v for k, v in {**p.model_dump(), **values}.items() if k != "variant"}
    path.write_text(yaml.safe_dump(known))
    return [str(path)]


def test_two_processes_on_one_run_make_it_once_and_as_one_would(miniature, tmp_path):
    p = miniature(runs_dir=str(tmp_path / "two"), experiment="shared", steps=40)
    command = ["fairlm_utils", "run", *experiment(tmp_path / "x.yaml", p)]
    outputs = both(command, command)
    assert sum("no tokenized" in out for out in outputs) == 1
    assert all(str(identity.run_dir(p)) in out for out in outputs)
    alone = runs.evaluate(p.model_copy(update={"runs_dir": str(tmp_path / "one")}))
    assert files.digests(identity.run_dir(p), files.RESULT_FILES) == files.digests(alone, files.RESULT_FILES)
    assert len(list((tmp_path / "two" / "shared").iterdir())) == 1 and not list(tmp_path.rglob("*.tmp"))


def test_two_processes_share_one_tokenizer_cache(miniature, tmp_path):
    """Runs of two seeds, which both need the corpus and find no cache of it."""
    p = miniature(runs_dir=str(tmp_path / "two"), experiment="shared", steps=4, window_steps=2)
    file = experiment(tmp_path / "x.yaml", p)
    outputs = both(*(["fairlm_utils", "run", *file, "-p", "seed", seed] for seed in "01"))
    assert sum("no tokenized" in out for out in outputs) == 1
    (cache,) = (tmp_path / "two" / "tokenized").iterdir()
    alone = p.model_copy(update={"runs_dir": str(tmp_path / "one")})
    tokenization.tokenize_corpus(alone)
    patterns = ["*.npy", "tokenizer/*"]
    assert files.digests(cache, patterns) == files.digests(tokenization.cache_dir(alone), patterns)
    assert len(load_results(tmp_path / "two" / "shared").totals) == 4


def test_two_sweeps_of_one_experiment_share_its_runs(miniature, tmp_path):
    """Each run is made once, by either; the other sweep waits for it and says so."""
    p = miniature(runs_dir=str(tmp_path / "two"), experiment="swept", steps=4, window_steps=2)
    command = ["fairlm_utils", "sweep", *experiment(tmp_path / "x.yaml", p, seed=[0, 1]), "--workers", "1"]
    outputs = both(command, command)
    counts = {status: sum(int(out.split(f" {status}")[0].split()[-1]) for out in outputs if f" {status}" in out)
              for status in ("finished", "reused", "failed")}  # fmt: skip
    assert counts == {"finished": 2, "reused": 2, "failed": 0}
    assert any("waiting for another process" in out for out in outputs)
    for seed in (0, 1):
        run = p.model_copy(update={"seed": seed})
        alone = runs.evaluate(run.model_copy(update={"runs_dir": str(tmp_path / "one")}))
        assert files.digests(identity.run_dir(run), files.RESULT_FILES) == files.digests(alone, files.RESULT_FILES)
    assert len(load_results(tmp_path / "two" / "swept").totals) == 4


# What vanishes, cannot be written, or is dated in the future


def test_a_corpus_that_vanishes_before_training_is_named(miniature, corpus_file, tmp_path):
    corpus = tmp_path / "mine.jsonl"
    shutil.copy(corpus_file, corpus)
    p = miniature(corpus=str(corpus), runs_dir=str(tmp_path / "runs"), steps=2, window_steps=2)
    tokenization.tokenize_corpus(p)
    corpus.unlink()
    with pytest.raises(CorpusError, match=r"mine\.jsonl' does not exist; put it back"):
        runs.train(p)
    shutil.copy2(corpus_file, corpus)
    runs.evaluate(p)  # and the run goes on once it is there
    corpus.unlink()
    runs.evaluate(p)  # which a finished one does not ask for
    assert len(load_results(identity.run_dir(p).parent).totals) == 2


def test_a_command_names_what_vanished_in_one_line(miniature, tmp_path, capsys):
    p = miniature(corpus=str(tmp_path / "gone.jsonl"), runs_dir=str(tmp_path / "runs"))
    assert main(["run", *experiment(tmp_path / "x.yaml", p)]) == 2
    assert capsys.readouterr().err.startswith("error: corpus: ")


@pytest.fixture
def read_only(monkeypatch):
    """Every attempt to write anew fails as on a read-only disk; root may write wherever permissions say otherwise."""

    def refuse(*arguments, **_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(arguments[0]))

    def switch_on():
        monkeypatch.setattr(FileLock, "_acquire", refuse)
        monkeypatch.setattr(os, "replace", refuse)
        monkeypatch.setattr(Path, "mkdir", refuse)

    return switch_on


def test_a_read_only_disk_is_named_before_anything_is_computed(miniature, tmp_path, read_only, monkeypatch):
    p = miniature(runs_dir=str(tmp_path / "runs"))
    monkeypatch.setattr(runs, "_train", lambda *_: pytest.fail("it trained"))
    read_only()
    for make in (runs.train, runs.evaluate, tokenization.tokenize_corpus):
        with pytest.raises(files.RunError, match=r"Read-only file system.*choose another runs_dir"):
            make(p)


def test_finished_runs_are_read_from_a_read_only_disk_and_results_need_another_folder(miniature, tmp_path, read_only):
    p = miniature(runs_dir=str(tmp_path / "runs"), steps=2, window_steps=2)
    directory = runs.evaluate(p)
    read_only()
    assert runs.evaluate(p) == directory
    results = load_results(directory.parent)
    with pytest.raises(files.RunError, match=r"results/totals\.csv: cannot be written.*Read-only.*choose a place"):
        write_results(results, tmp_path / "results", "make results")


def test_a_clock_set_back_between_checkpoints_keeps_the_latest_steps(miniature, tmp_path, monkeypatch, capsys):
    """Earlier checkpoints are dated a day ahead, as if the clock had been set back after them."""
    p = miniature(runs_dir=str(tmp_path), steps=12, checkpoint_steps=3, window_steps=12)
    save = training.RecordTokenLoss.on_save

    def save_ahead(self, args, state, control, **kwargs):
        save(self, args, state, control, **kwargs)
        ahead = time.time() + 86_400 - 3600 * state.global_step
        for path in (Path(args.output_dir) / f"checkpoint-{state.global_step}").rglob("*"):
            os.utime(path, (ahead, ahead))
        os.utime(Path(args.output_dir) / f"checkpoint-{state.global_step}", (ahead, ahead))

    def stop(self, now):
        raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr(training.RecordTokenLoss, "on_save", save_ahead)
        m.setattr(training.RecordTokenLoss, "_close_window", stop)
        with pytest.raises(KeyboardInterrupt):
            runs.train(p)
    kept = training.checkpoints(identity.run_dir(p) / "checkpoints")
    assert [c.name for c in kept] == ["checkpoint-9", "checkpoint-6"]
    continued = files.digests(runs.train(p), files.RESULT_FILES)
    assert "continuing from step 9" in capsys.readouterr().out
    alone = runs.train(p.model_copy(update={"runs_dir": str(tmp_path / "alone")}))
    assert continued == files.digests(alone, files.RESULT_FILES)


@pytest.mark.parametrize("days", [-10_000, 400])
def test_files_dated_in_the_past_or_future_change_no_result(miniature, corpus_file, tmp_path, days):
    corpus = tmp_path / "mine.jsonl"
    shutil.copy(corpus_file, corpus)
    os.utime(corpus, (time.time() + 86_400 * days,) * 2)
    p = miniature(corpus=str(corpus), runs_dir=str(tmp_path / "runs"), steps=2, window_steps=2)
    found = files.digests(runs.evaluate(p), files.RESULT_FILES)
    usual = miniature(runs_dir=str(tmp_path / "usual"), steps=2, window_steps=2)
    expected = files.digests(runs.evaluate(usual), files.RESULT_FILES)
    assert found == expected


def test_a_page_made_before_the_clock_was_set_back_is_made_again(tmp_path):
    import nbformat

    path, page = tmp_path / "n.ipynb", tmp_path / "r" / "n.html"
    for text, days in (("first", 400), ("second", 0)):
        nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text)]), path)
        os.utime(path, (time.time() + 86_400 * days,) * 2)
        report.write_report(tmp_path / "r", "t", [], {}, {"n": path})
        assert text in page.read_text()
