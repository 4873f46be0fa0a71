"""kill -9, full disks and damaged files: nothing finished is lost, nothing half-written is read as whole."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from fairlm_utils import files, identity
from fairlm_utils.analysis.results import (
    TABLES,
    joined,
    load_experiments,
    load_results,
    read_token_table,
    renewed,
    write_results,
)
from fairlm_utils.experiment import runs
from fairlm_utils.lm import tokenization, training

ROOT = Path(__file__).parents[1]


def test_a_kill_at_any_crash_point_ends_in_the_same_bits(corpus_file, tmp_path):
    command = [sys.executable, "-m", "tests.kill", "each", str(tmp_path), str(corpus_file)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["different"] == []
    assert set(found["stages"]) == {"tokenizing", "starting to train", "training", "evaluating", "finished"}
    known = {Path(name).name for name in found["points"]}
    assert {"model", "provenance.json", "complete.json", "sha256.json", *(f"{name}.csv" for name in TABLES)} <= known
    assert sum("on_save" in name for name in found["points"]) == 2 * 3
    # a tokenizer counts once meta.json, which is written after it, is there
    unguarded = [name for name in found["elsewhere"] if Path(name).name != ".lock" and "/tokenizer/" not in name]
    assert unguarded == [], "files that no os.replace has put in their place"


@pytest.fixture
def run(miniature):
    p = miniature(experiment="damaged", steps=4, window_steps=2)
    shutil.rmtree(identity.run_dir(p), ignore_errors=True)
    return runs.evaluate(p)


def flip(path: Path, at: float = 0.5) -> None:
    """Change one bit of a file."""
    data = bytearray(path.read_bytes())
    data[int(at * (len(data) - 1))] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["tables/bins.csv", "tables/totals.csv"])
def test_a_damaged_table_is_named(run, name):
    flip(run / name)
    with pytest.raises(files.RunError, match=f"{Path(name).name}.*SHA-256"):
        load_results(run.parent)


@pytest.mark.parametrize("text", ["[]", "{}", '{"weight_decay": "much"}'])
@pytest.mark.parametrize("name", ["params.json", "provenance.json"])
def test_a_record_of_another_shape_is_named(run, name, text):
    (run / "text.json").unlink()
    (run / name).write_text(text)
    for read in (load_results, lambda folder: runs.repeat(run), lambda folder: identity.check_texts(folder, {})):
        with pytest.raises(files.RunError, match=name):
            read(run.parent)


def test_a_damaged_or_cut_token_table_is_named(run):
    for damage in (flip, lambda path: os.truncate(path, path.stat().st_size // 2)):
        damage(run / "tokens_training.parquet")
        with pytest.raises(files.RunError, match=r"tokens_training\.parquet"):
            read_token_table(run, "training")


def test_a_damaged_committed_table_is_named(run, tmp_path):
    write_results(load_results(run.parent), tmp_path, "make results")
    flip(tmp_path / "classes.csv")
    with pytest.raises(files.RunError, match=r"classes\.csv.*make it again"):
        load_results(tmp_path)


def test_two_folders_of_one_experiment_are_not_taken_for_each_other():
    folder = ROOT / "results" / "quick"
    assert list(load_experiments([folder])) == ["quick"]
    with pytest.raises(files.RunError, match="second folder of experiment 'quick'"):
        load_experiments([folder, folder])


def test_runs_join_the_committed_tables_of_their_experiment(miniature, tmp_path):
    def made(name, **values):
        shutil.rmtree(tmp_path / name, ignore_errors=True)
        p = miniature(
            runs_dir=str(tmp_path / name), experiment="joined", variant="v", steps=4, window_steps=2, **values
        )
        return load_results(runs.evaluate(p).parent)

    first, second = made("a", seed=0), made("b", seed=1)
    both = joined(first, second)
    assert both.totals["seed"].tolist() == [0, 0, 1, 1] and both.provenance["n_runs"] == 2
    pd.testing.assert_frame_equal(both.bins[both.bins["seed"] == 1].reset_index(drop=True), second.bins)
    pd.testing.assert_frame_equal(both.counts, first.counts)
    again = joined(both, second)
    pd.testing.assert_frame_equal(again.classes, both.classes)
    with pytest.raises(files.RunError, match="joined: tables that differ in learning_rate are not joined"):
        joined(first, made("c", seed=2, learning_rate=0.1))


def test_renewed_rows_keep_their_place():
    table = pd.DataFrame({"variant": ["a", "b"], "seed": 0, "loss": [1.0, 2.0]})
    newer = pd.DataFrame({"variant": ["c", "a"], "seed": 0, "loss": [3.0, 4.0]})
    found = renewed(table, newer, ["variant", "seed"])
    assert found["variant"].tolist() == ["a", "b", "c"] and found["loss"].tolist() == [4.0, 2.0, 3.0]


def test_committed_results_have_their_digests():
    folders = [p.parent for p in (ROOT / "results").glob("*/experiment.json")]
    assert folders
    for folder in folders:
        recorded = json.loads((folder / "experiment.json").read_text(encoding="utf-8"))["sha256"]
        assert set(recorded) == {path.name for path in folder.glob("*.csv")} >= {f"{name}.csv" for name in TABLES}
        files.verify(folder, recorded, "")


def test_damaged_token_ids_are_named_before_they_are_used(miniature, tmp_path):
    p = miniature(runs_dir=str(tmp_path))
    tokenization.tokenize_corpus(p)
    flip(tokenization.cache_dir(p) / "train.npy", 0.9)
    with pytest.raises(files.RunError, match=r"train\.npy.*tokenize again"):
        runs.train(p)


def test_a_damaged_checkpoint_gives_way_to_the_one_before(miniature, tmp_path, capsys, monkeypatch):
    p = miniature(runs_dir=str(tmp_path), steps=12, checkpoint_steps=5)
    whole = runs.train(p)
    expected = files.digests(whole, files.RESULT_FILES)
    shutil.rmtree(whole)
    with monkeypatch.context() as m:  # stopped before the last step
        m.setattr(training.RecordTokenLoss, "_close_window", _stop_at(12, training.RecordTokenLoss._close_window))
        with pytest.raises(KeyboardInterrupt):
            runs.train(p)
    checkpoints = sorted((whole / "checkpoints").glob("checkpoint-*"))
    assert [c.name for c in checkpoints] == ["checkpoint-10", "checkpoint-5"]
    flip(checkpoints[0] / "model.safetensors", 0.9)
    runs.train(p)
    out = capsys.readouterr().out
    assert "model.safetensors: is missing or damaged" in out and "continuing from step 5" in out
    assert files.digests(whole, files.RESULT_FILES) == expected


def _stop_at(step, original):
    def close(self, now):
        if now == step:
            raise KeyboardInterrupt
        original(self, now)

    return close


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_a_disk_that_takes_nothing_more_leaves_what_is_finished(miniature, tmp_path, monkeypatch, code):
    """One error says so, earlier results stay, and the next start continues."""
    p = miniature(runs_dir=str(tmp_path), steps=4, window_steps=2)
    runs.train(p)
    before = files.digests(identity.run_dir(p), files.RESULT_FILES)
    written = files.write_table

    def full(path, table):
        if Path(path).name == "classes.csv":
            raise OSError(code, os.strerror(code), str(path))
        written(path, table)

    with monkeypatch.context() as m:
        m.setattr(files, "write_table", full)
        with pytest.raises(files.RunError, match=r"cannot be written .*classes\.csv.*make room"):
            runs.evaluate(p)
    assert not (identity.run_dir(p) / "tables" / "totals.csv").exists() and not list(tmp_path.rglob("*.tmp"))
    runs.evaluate(p)
    after = files.digests(identity.run_dir(p), files.RESULT_FILES)
    assert {k: after[k] for k in before} == before and "tables/classes.csv" in after


def test_what_libraries_make_of_a_full_disk_is_one_error(tmp_path):
    def write(text):
        with files.locked(tmp_path):
            raise RuntimeError(text)

    for said in (
        "Error while serializing: I/O error: No space left on device (os error 28)",  # safetensors, tokenizers
        "466259 requested and 387008 written",  # NumPy
        "[enforce fail at inline_container.cc:672] . unexpected pos 6272 vs 6164",  # PyTorch
    ):
        with pytest.raises(files.RunError, match=r"cannot be written .*choose a place that can be"):
            write(said)
    with pytest.raises(RuntimeError, match="another"):
        write("another error")


def test_a_run_that_the_disk_cannot_hold_is_refused_before_its_first_step(miniature, tmp_path, monkeypatch):
    p = miniature(runs_dir=str(tmp_path), steps=4, window_steps=2, checkpoint_steps=1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100_000))
    monkeypatch.setattr(training, "make_trainer", lambda *_: pytest.fail("it is trained"))
    with pytest.raises(files.RunError, match=r"a run of this model takes .* MB, and the disk has 0\.1 MB free"):
        runs.train(p)
