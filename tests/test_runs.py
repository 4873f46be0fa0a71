"""Run directories: whole files or none, no mixtures, clear errors."""

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fairlm_utils import files, identity
from fairlm_utils.__main__ import main
from fairlm_utils.analysis.results import (
    TABLES,
    load_results,
    read_token_table,
    token_changes,
    without_variants,
    write_results,
)
from fairlm_utils.experiment import runs, sweep
from fairlm_utils.lm import tokenization, training
from fairlm_utils.params import TrainingParams


def test_a_write_that_fails_leaves_the_old_file_and_no_rest(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"x": 1})
    with pytest.raises(TypeError):
        files.write_json(path, {"x": object()})
    assert files.read_json(path) == {"x": 1} and [p.name for p in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("text", [None, "{", "[]", "[" * 100_000, '{"corpus": 1}'])
def test_an_unreadable_file_is_named(tmp_path, text):
    path = tmp_path / "a.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(files.RunError, match=r"a\.json"):
        files.read_json(path, corpus=dict)


def _hold(path, seconds):
    with files.locked(path):
        (path / "held").touch()
        time.sleep(seconds)
        (path / "released").touch()


def test_a_second_process_waits_and_says_so(tmp_path, capsys):
    holder = multiprocessing.get_context("spawn").Process(target=_hold, args=(tmp_path, 0.5))
    holder.start()
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    with files.locked(tmp_path):
        assert (tmp_path / "released").exists()
    holder.join()
    assert "waiting for another process" in capsys.readouterr().out


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(files.RunError, match="runs_dir"), files.locked(tmp_path / "file" / "x"):
        pass


def test_results_round_trip_through_committed_tables(miniature, tmp_path):
    for seed in (0, 1):
        runs.evaluate(miniature(experiment="collect", seed=seed, steps=4, window_steps=2))
    folder = identity.run_dir(miniature()).parents[0].parent / "collect"
    results = load_results(folder)
    assert sorted(results.totals["seed"].unique()) == [0, 1] and results.params["steps"] == 4
    write_results(results, tmp_path / "r", "make results")
    again = load_results(tmp_path / "r")
    for name in TABLES:
        pd.testing.assert_frame_equal(getattr(again, name), getattr(results, name), rtol=1e-6)
    assert again.provenance["command"] == "make results" and again.provenance["n_runs"] == 2
    assert "2 seeds each" in again.scale


def test_runs_of_other_settings_are_not_mixed(miniature):
    for steps in (2, 3):
        runs.evaluate(miniature(experiment="mixed", steps=steps, window_steps=2))
    folder = identity.run_dir(miniature(experiment="mixed")).parent
    with pytest.raises(files.RunError, match=r"differs from .* in steps"):
        load_results(folder)
    with pytest.raises(files.RunError, match="differ from this experiment in steps"):
        identity.check_experiment([miniature(experiment="mixed", steps=4)])


@pytest.mark.parametrize("other", [{"dropout": 0.3}, {"weight_decay_form": "cautious"}, {"by_word": True}])
def test_runs_of_settings_that_are_another_default_are_not_mixed_either(miniature, other):
    points = [{}, other]
    for first, second in (points, points[::-1]):
        name = f"mixed-{len(first)}-{next(iter(other))}"
        runs.evaluate(miniature(experiment=name, steps=2, window_steps=2, weight_decay=0.3, **first))
        identity.check_experiment([miniature(experiment=name, steps=2, window_steps=2, **first)])
        with pytest.raises(files.RunError, match=f"differ from this experiment in {next(iter(other))};"):
            identity.check_experiment([miniature(experiment=name, steps=2, window_steps=2, weight_decay=0.7, **second)])


def test_a_folder_without_results_says_what_to_do(tmp_path):
    with pytest.raises(files.RunError, match="make reproduce"):
        load_results(tmp_path)


def test_provenance_names_a_commit_or_says_unknown():
    assert identity.git_commit() == "unknown" or len(identity.git_commit().removesuffix("+changes")) == 12


def _git(folder, *words):
    author = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "init.defaultBranch=main"]
    done = subprocess.run(["git", *author, *words], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def unpacked(tmp_path, monkeypatch):
    """The project's files as an archive leaves them, in a folder of another repository that has a commit."""
    outer, project = tmp_path / "outer", tmp_path / "outer" / "fairlm"
    (project / "fairlm_utils").mkdir(parents=True)
    (project / "fairlm_utils" / "runs.py").write_text("x = 1\n")
    (outer / "notes.txt").write_text("mine\n")
    _git(outer, "init")
    _git(outer, "add", "notes.txt")
    _git(outer, "commit", "-m", "mine")
    monkeypatch.setattr(files, "PROJECT", project.resolve())
    return project


def test_the_commit_of_a_repository_around_the_project_is_not_its_own(unpacked, monkeypatch):
    assert identity.git_commit() == "unknown"
    _git(unpacked.parent, "add", ".")  # even if that one keeps a copy of it
    _git(unpacked.parent, "commit", "-m", "copied")
    assert identity.git_commit() == "unknown"
    monkeypatch.setattr(files, "PROJECT", unpacked.parent)  # nor is a checkout that has no fairlm_utils
    assert identity.git_commit() == "unknown"


def test_a_checkout_and_a_worktree_of_it_know_their_commit_whatever_git_variables_say(unpacked, monkeypatch):
    outer = unpacked.parent
    _git(unpacked, "init")
    assert identity.git_commit() == "unknown"  # nothing is committed yet
    _git(unpacked, "add", ".")
    _git(unpacked, "commit", "-m", "first")
    commit = _git(unpacked, "rev-parse", "--short=12", "HEAD")
    with monkeypatch.context() as m:
        m.setenv("GIT_DIR", str(outer / ".git"))
        m.setenv("GIT_WORK_TREE", str(outer))
        assert identity.git_commit() == commit
    (unpacked / "fairlm_utils" / "runs.py").write_text("x = 2\n")
    assert identity.git_commit() == f"{commit}+changes"
    _git(unpacked, "worktree", "add", str(outer / "other"))
    monkeypatch.setattr(files, "PROJECT", outer / "other")
    assert (outer / "other" / ".git").is_file() and identity.git_commit() == commit


def test_a_checkout_that_git_refuses_has_no_known_commit(unpacked, monkeypatch):
    _git(unpacked, "init")
    (unpacked / ".git" / "config").write_text("[core\n")
    assert identity.git_commit() == "unknown"
    monkeypatch.setenv("PATH", "")
    assert identity.git_commit() == "unknown"


def test_a_run_is_shown_and_repeated_to_the_same_bits_and_a_difference_is_found(miniature, capsys):
    p = miniature(experiment="repeat", steps=4, window_steps=2)
    run = runs.evaluate(p)
    capsys.readouterr()
    assert main(["show", str(run)]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (
        shown["parameters"]["steps"] == 4 and "torch" in shown["provenance"]["packages"] and len(shown["sha256"]) >= 8
    )
    assert main(["repeat", str(run)]) == 0
    assert "DIFFERS" not in capsys.readouterr().out
    table = run / "tables" / "bins.csv"
    table.write_text(table.read_text().replace("0", "1", 1))
    assert main(["repeat", str(run)]) == 1
    assert "DIFFERS        tables/bins.csv" in capsys.readouterr().out
    for command in ("repeat", "show"):
        assert main([command, str(run.parent)]) == 2
        assert "no finished run; name a folder RUNS_DIR/EXPERIMENT/RUN_ID" in capsys.readouterr().err


def _write(path, word):
    lines = [f"The {i}th {word} stands near the {word} of the {i + 1}th village. " * 3 for i in range(80)]
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))


@pytest.fixture
def own(miniature, tmp_path):
    """Parameters of a run on a corpus file of its own, which may be replaced; keyword arguments override them."""
    _write(tmp_path / "mine.jsonl", "house")

    def make(**values):
        defaults = {"corpus": str(tmp_path / "mine.jsonl"), "runs_dir": str(tmp_path / "runs"), "steps": 4}
        return miniature(**{**defaults, "experiment": "own", "window_steps": 2, "checkpoint_steps": 2, **values})

    return make


def test_a_finished_run_is_not_shown_beside_another_text_and_is_again_beside_its_own(own, tmp_path):
    p = own()
    directory = runs.evaluate(p)
    _write(tmp_path / "mine.jsonl", "zzqx 0192837465")
    for make in (runs.train, runs.evaluate):
        with pytest.raises(
            files.RunError, match=rf"{directory.name}: was made from another text: .*mine.jsonl' has changed"
        ):
            make(p)
    with pytest.raises(files.RunError, match="remove the folder"):
        sweep.sweep([p])
    with pytest.raises(files.RunError, match="another text"):
        runs.repeat(directory)
    assert len(load_results(directory.parent).totals) == 2  # results alone ask for no corpus
    _write(tmp_path / "mine.jsonl", "house")  # the same text at another time
    assert runs.evaluate(p) == directory
    (tmp_path / "mine.jsonl").unlink()
    assert runs.evaluate(p) == directory


def test_a_run_of_another_text_does_not_join_an_experiment(own, tmp_path):
    first = runs.evaluate(own(weight_decay=0.0))
    _write(tmp_path / "mine.jsonl", "zzqx 0192837465")
    second = own(weight_decay=1.0)
    for make in (runs.train, runs.evaluate, lambda p: sweep.sweep([p])):
        with pytest.raises(files.RunError, match=rf"{first.name}: was made from another text"):
            make(second)
    assert not (identity.run_dir(second) / "checkpoints").exists()
    runs.evaluate(own(weight_decay=1.0, experiment="elsewhere"))
    shutil.copytree(
        identity.run_dir(own(weight_decay=1.0, experiment="elsewhere")),
        second_dir := identity.run_dir(second),
        dirs_exist_ok=True,
    )
    with pytest.raises(files.RunError, match="was made from another text"):
        load_results(first.parent)
    (
        second_dir / identity.TEXT
    ).unlink()  # runs of earlier versions recorded the fingerprint alone, once they had finished
    with pytest.raises(files.RunError, match="was made from another text"):
        load_results(first.parent)


def test_an_interrupted_run_does_not_go_on_with_another_text(own, tmp_path, monkeypatch):
    p = own(steps=6)
    with monkeypatch.context() as m:
        m.setattr(training.RecordTokenLoss, "_close_window", _stop_after(4, training.RecordTokenLoss._close_window))
        with pytest.raises(KeyboardInterrupt):
            runs.train(p)
    assert list((identity.run_dir(p) / "checkpoints").glob("checkpoint-*"))
    _write(tmp_path / "mine.jsonl", "zzqx 0192837465")
    for make in (runs.train, runs.evaluate, lambda p: sweep.sweep([p])):
        with pytest.raises(files.RunError, match="was made from another text"):
            make(p)
    _write(tmp_path / "mine.jsonl", "house")
    runs.train(p)


def _stop_after(step, original):
    def close(self, now):
        original(self, now)
        if now >= step:
            raise KeyboardInterrupt

    return close


def test_a_tokenizer_folder_that_was_replaced_is_noticed_and_an_old_run_without_its_digest_passes(
    own, tmp_path, documents
):
    p, folder = own(tokenizer=str(tmp_path / "tokenizer")), tmp_path / "tokenizer"
    tokenization.train_bpe(documents, 300).save_pretrained(folder)
    directory = runs.evaluate(p)
    shutil.rmtree(folder)
    tokenization.train_bpe(documents[:20], 280).save_pretrained(folder)
    for make in (runs.train, runs.evaluate, lambda p: sweep.sweep([p])):
        with pytest.raises(files.RunError, match=f"was made from another tokenizer: '{folder}' has changed"):
            make(p)
    known = files.read_json(directory / "provenance.json")
    del known["corpus"]["ids"]
    files.write_json(directory / "provenance.json", known)
    (directory / identity.TEXT).unlink()
    assert runs.evaluate(p) == directory


def test_a_config_file_that_was_changed_is_noticed_and_another_spelling_of_it_is_not(own, tmp_path):
    values = {"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 64}
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(values))
    p, other = (own(model=str(file), weight_decay=w) for w in (0.0, 1.0))
    directory = runs.evaluate(p)
    file.write_text(json.dumps({**values, "n_layer": 2}))
    for make in (runs.train, runs.evaluate, lambda p: sweep.sweep([p])):
        for point in (p, other):
            with pytest.raises(files.RunError, match=f"was made from another model: '{file}' has changed"):
                make(point)
    file.write_text(json.dumps(values, indent=4, sort_keys=True))
    assert runs.evaluate(p) == directory
    runs.evaluate(other)
    assert len(load_results(directory.parent).totals) == 4


def test_variants_of_several_vocabularies_share_their_text(own):
    for size in (290, 300):
        runs.evaluate(own(variant=str(size), vocab_size=size))
    assert len(load_results(identity.run_dir(own()).parent).totals) == 4


def test_a_finished_run_of_a_folder_that_cannot_be_written_is_used(miniature, monkeypatch):
    p = miniature(steps=2, window_steps=2)
    directory = runs.evaluate(p)
    monkeypatch.setattr(files, "locked", lambda folder: pytest.fail(f"{folder} cannot be written"))
    assert runs.train(p) == runs.evaluate(p) == directory


def test_types_are_compared_over_the_seeds_that_have_both(miniature):
    """Of a sweep that was interrupted, before the last seed of the largest λ."""
    runs_of = {}
    for seed, decay in ((0, 0.0), (0, 1.0), (1, 0.0)):
        p = miniature(experiment="begun", steps=2, window_steps=2, seed=seed, weight_decay=decay)
        runs_of[seed, decay] = runs.evaluate(p)
    results = load_results(runs_of[0, 0.0].parent)
    losses = [read_token_table(runs_of[0, decay], "training", ["loss", "n_train"]) for decay in (0.0, 1.0)]
    change = (losses[1]["loss"] - losses[0]["loss"])[losses[0]["n_train"] > 0]
    assert np.allclose(results.tokens["change_training"], change, atol=1e-4, equal_nan=True)
    assert token_changes([runs_of[0, 1.0], runs_of[1, 0.0]]) is None


def test_variants_may_differ_and_the_results_say_in_what(miniature):
    for variant, dropout in (("plain", 0.0), ("dropped", 0.2)):
        runs.evaluate(miniature(experiment="variants", steps=2, window_steps=2, variant=variant, dropout=dropout))
    folder = identity.run_dir(miniature(experiment="variants")).parent
    results = load_results(folder)
    assert results.params["variants"]["dropped"] == {"dropout": 0.2} and "dropout" not in results.params
    assert set(results.bins["variant"]) == {"plain", "dropped"} and "2 variants, 1 seed each" in results.scale
    with pytest.raises(files.RunError, match=r"has variants \(dropped, plain, …\)"):
        without_variants(results)
    with pytest.raises(files.RunError, match="variant"):
        identity.check_experiment([miniature(experiment="variants", variant="plain", steps=2)])


OURS = "λ ≤ 1 × 2 – ± 3 → − ’ … Ġ ▁ 中 \udce4"


@pytest.mark.parametrize(
    "settings, wanted",
    [
        ({"PYTHONIOENCODING": "ascii"}, "lambda <= 1 x 2 - +- 3 -> - ' ... \\u0120 \\u2581 \\u4e2d \\udce4"),
        ({"PYTHONIOENCODING": "latin-1"}, "lambda <= 1 × 2 - ± 3 -> - ' ... \\u0120 \\u2581 \\u4e2d \\udce4"),
        ({"PYTHONIOENCODING": "cp1252"}, "lambda <= 1 × 2 – ± 3 -> - ’ … \\u0120 \\u2581 \\u4e2d \\udce4"),
        ({"PYTHONIOENCODING": "utf-8"}, "λ ≤ 1 × 2 – ± 3 → − ’ … Ġ ▁ 中 \\udce4"),
        (
            {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
            "lambda <= 1 x 2 - +- 3 -> - ' ... \\u0120 \\u2581 \\u4e2d \\udce4",
        ),
    ],
    ids=lambda v: str(v)[:24],
)
def test_any_terminal_takes_what_is_printed(settings, wanted):
    code = (
        "import sys; from fairlm_utils import files; files.enter_project()\n"
        f"for stream in (sys.stdout, sys.stderr): print({OURS!a}, file=stream)"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "PYTHONIOENC"))}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env={**environment, **settings}, check=True
    )
    encoding = settings.get("PYTHONIOENCODING", "ascii")
    assert done.stdout.decode(encoding).strip() == done.stderr.decode(encoding).strip() == wanted


def test_the_help_of_every_command_is_ascii():
    code = (
        "from fairlm_utils.__main__ import cli, main\n"
        "for name in cli.commands: assert main([name, '-h']) == 0\n"
        "print(len(cli.commands))"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert 0 < done.stdout.count("Usage: fairlm ") == int(done.stdout.split()[-1])


def for_training(p):
    """The parameters of notebook 02 for the run of `p`, which knows none of the evaluation."""
    return TrainingParams.check({k: v for k, v in p.model_dump().items() if k in TrainingParams.model_fields})


def test_a_run_is_evaluated_again_where_its_evaluation_was_another(miniature, capsys):
    """Trained by 02, which knows no parameters of the evaluation, then evaluated in three ways."""
    p = miniature(experiment="again", max_evaluated_train_blocks=1)
    directory = runs.train(for_training(p))
    runs.evaluate(p)
    n_one = pd.read_csv(directory / "tables" / "totals.csv").query("split == 'training'")["n_tokens"].item()
    whole = p.model_copy(update={"max_evaluated_train_blocks": 0, "by_word": True})
    assert not identity.is_finished(whole)
    runs.evaluate(whole)
    assert "evaluating it again" in capsys.readouterr().out and identity.is_finished(whole)
    totals = pd.read_csv(directory / "tables" / "totals.csv").query("split == 'training'")
    assert totals["n_tokens"].item() > n_one and (directory / "tables" / "words.csv").exists()
    assert all(runs.repeat(directory).values())
    runs.evaluate(whole.model_copy(update={"eval_batch_size": 3}))
    assert "evaluating it again" not in capsys.readouterr().out
    runs.evaluate(whole.model_copy(update={"by_word": False}))
    assert not (directory / "tables" / "words.csv").exists()


def test_runs_of_one_evaluation_are_read_together_however_they_began(miniature):
    first = miniature(experiment="both", weight_decay=0.0)
    second = miniature(experiment="both", weight_decay=1.0, eval_batch_size=3)
    runs.evaluate(first)
    runs.train(for_training(second))
    runs.evaluate(second)
    results = load_results(Path(first.runs_dir) / "both")
    assert sorted(results.totals["weight_decay"].unique()) == [0.0, 1.0]
