"""A panel in miniature: packed, taken where the documents are not, stopped, killed and gone on with, to the same bits."""

import math
import os
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pandas as pd
import pytest
import yaml

from fairlm_utils import files, identity
from fairlm_utils.__main__ import GO_ON, main
from fairlm_utils.experiment import panel, runs
from tests import bench
from tests.binder import copy_repository

VALUES = dict(corpus="imdb", vocab_size=300, context=16, packing=False, max_train_blocks=24, max_heldout_blocks=8, steps=40,
              batch_size=8, window_steps=7, checkpoint_steps=5, weight_decay=[0.0, 0.5, 1.0], seed=[0, 1])  # fmt: skip


@pytest.fixture(scope="module")
def imdb(tmp_path_factory, documents):
    """A folder laid out as the data set, of made-up documents."""
    folder = tmp_path_factory.mktemp("imdb")
    for split, texts in (("train", documents[:200]), ("test", documents[200:])):
        pd.DataFrame({"text": texts, "label": 0}).to_parquet(folder / f"{split}-0.parquet")
    return folder


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("params") / "tiny.yaml"
    path.write_text(yaml.safe_dump({**VALUES, "experiment": "tiny"}))
    return path


@pytest.fixture(scope="module")
def make(file, imdb, tmp_path_factory):
    """The panel's runs in a runs_dir of their own, with overrides."""

    def points(**overrides):
        given = {"corpus_path": imdb, "runs_dir": tmp_path_factory.mktemp("runs"), **overrides}
        return panel.panel_runs(file, [(name, str(value)) for name, value in given.items()])

    return points


def results(points):
    return [files.digests(identity.run_dir(p), files.RESULT_FILES) for p in points]


def test_a_panel_is_two_decays_and_one_seed_unless_others_are_asked_for(make):
    assert [(p.weight_decay, p.seed) for p in make()] == [(0.0, 0), (1.0, 0)]
    assert [(p.weight_decay, p.seed) for p in make(weight_decay="[0.5]", seed="[3]")] == [(0.5, 3)]


def test_stopped_after_every_step_a_panel_ends_in_the_same_bits(make):
    whole, pieces = (make(steps=7, checkpoint_steps=5, window_steps=4) for _ in range(2))
    assert panel.run(whole, deadline=math.inf)
    n = 1
    while not panel.run(pieces, deadline=-math.inf):
        n += 1
        assert n < 30, "no progress"
    assert n == 2 * (7 + 1)  # seven steps and an evaluation of each run
    assert results(pieces) == results(whole) and all(len(of_run) > 5 for of_run in results(whole))


def test_time_up_between_two_stages_stops_there(make, monkeypatch):
    points = make(steps=2)
    clock = SimpleNamespace(monotonic=lambda: 0.0)
    monkeypatch.setattr(panel, "time", clock)
    train = runs.train

    def slow(*arguments):
        directory = train(*arguments)
        clock.monotonic = lambda: 100.0
        return directory

    monkeypatch.setattr(runs, "train", slow)
    assert not panel.run(points, deadline=50.0)
    first = identity.run_dir(points[0])
    assert (first / "provenance.json").exists() and not (first / "tables").exists()
    assert not identity.run_dir(points[1]).exists()


def test_a_folder_of_runs_of_other_settings_is_refused_before_training(make):
    points = make(steps=2, weight_decay="[0.0]")
    assert panel.run(points, deadline=math.inf)
    given = {"corpus_path": points[0].corpus_path, "runs_dir": points[0].runs_dir, "weight_decay": "[1.0]", "steps": 3}
    with pytest.raises(files.RunError, match="differ from this experiment in steps"):
        panel.run(make(**given), deadline=math.inf)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A clone of this project with everything committed."""
    folder = copy_repository(tmp_path / "checkout")
    as_someone = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false"]
    for words in (["init", "--quiet"], ["add", "--all"], [*as_someone, "commit", "--quiet", "--message", "all"]):
        subprocess.run(["git", *words], cwd=folder, check=True)
    monkeypatch.setattr(files, "PROJECT", folder)
    return folder


def test_a_packed_panel_is_killed_and_gone_on_with_where_there_are_no_documents(make, file, imdb, documents, checkout):
    whole = make()
    assert panel.run(whole, deadline=math.inf)
    copy, folder = imdb.parent / "copy", checkout.parent / "travels"
    shutil.copytree(imdb, copy)
    assert panel.pack(make(corpus_path=copy), folder) < panel.MAX_FOLDER_BYTES
    shutil.rmtree(copy)
    held = [path.read_bytes() for path in (folder / "runs").rglob("*") if path.is_file()]
    assert held and not [1 for content in held if documents[0].encode() in content]

    shutil.copy(file, folder / "params")
    command = [sys.executable, "-m", "fairlm_utils", "panel", "params/tiny.yaml", "--minutes"]
    options = dict(cwd=folder, env={**os.environ, "PYTHONPATH": str(folder), "PYTHONUNBUFFERED": "1"}, text=True)
    there = [p.model_copy(update={"runs_dir": str(folder / "runs")}) for p in whole]
    checkpoints = identity.run_dir(there[0]) / "checkpoints"
    process = subprocess.Popen([*command, "60"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options)
    while process.poll() is None and not (checkpoints / "checkpoint-10" / "complete.json").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not (checkpoints.parent / "provenance.json").exists()

    done = subprocess.run([*command, "60"], capture_output=True, check=False, **options)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "continuing from step" in done.stdout and "tokens/s" in done.stdout and "ratio" in done.stdout
    assert results(there) == results(whole)
    commit = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"], cwd=checkout, capture_output=True, text=True, check=True
    )
    assert files.read_json(identity.run_dir(there[0]) / "provenance.json")["git_commit"] == commit.stdout.strip()


def test_what_cannot_travel_is_refused(make, corpus_file, checkout, tmp_path, monkeypatch):
    p = make()[0]
    with pytest.raises(files.RunError, match=r"corpus: .*only a corpus of the Hub travels"):
        panel.pack([p.model_copy(update={"corpus": str(corpus_file)})], tmp_path / "a")
    monkeypatch.setattr(panel, "MAX_FOLDER_BYTES", 2**20)
    with pytest.raises(files.RunError, match=r"MiB, more than 1; lower max_documents"):
        panel.pack([p], tmp_path / "b")
    with pytest.raises(files.RunError, match="name a folder that does not exist"):
        panel.pack([p], tmp_path / "b")
    (checkout / "params" / "quick.yaml").write_text("steps: 1\n")
    with pytest.raises(files.RunError, match=r"\+changes: .*commit what changed"):
        panel.pack([p], tmp_path / "c")


def test_pace_and_utilisation_of_a_window(make, monkeypatch, capsys):
    piece = panel.Piece(make()[0], deadline=115.0)
    piece.step, piece.since, piece.flops_per_token, piece.peak = 0, 100.0, 4e9, 10e12
    control = SimpleNamespace(should_save=False, should_training_stop=False)
    monkeypatch.setattr(panel.time, "monotonic", lambda: 110.0)
    piece.on_step_end(None, SimpleNamespace(global_step=7, max_steps=14), control)
    # 7 steps of 8 blocks of 16 tokens in 10 s; × 4 GFLOP = 0.358 TFLOP/s of 10; as many steps are left: 10 s
    assert capsys.readouterr().out == "λ = 0: step 7 of 14, 90 tokens/s, MFU 0.036 of 10 TFLOP/s, 0.2 minutes left\n"
    assert not control.should_save
    piece.peak = None
    monkeypatch.setattr(panel.time, "monotonic", lambda: 120.0)
    piece.on_step_end(None, SimpleNamespace(global_step=14, max_steps=14), control)
    assert "MFU" not in capsys.readouterr().out and not control.should_training_stop  # it ends by itself
    piece.on_step_end(None, SimpleNamespace(global_step=13, max_steps=14), control)
    assert control.should_save and control.should_training_stop


def totals(average, balanced):
    losses = dict(weight_decay=[0.0, 1.0], seed=0, average_loss=average, token_balanced_loss=balanced)
    training_text = pd.DataFrame({**losses, "split": "training"})
    return pd.concat([training_text, training_text.assign(split="held-out", average_loss=9.0)])


@pytest.mark.parametrize("balanced, where", [(0.163, "within"), (0.100, "below"), (0.300, "above")])
def test_the_ratio_is_placed_beside_its_prediction(tmp_path, balanced, where):
    (tmp_path / "p.csv").write_text(
        "panel,ratio,low,high,bent,bent_low,bent_high\nother,1,1,1,1,1,1\ntiny,5.0,4.0,6.5,7.0,6.9,7.1\n"
    )
    said = panel.compared(totals((0.051, 0.068), (0.066, balanced)), "tiny", tmp_path / "p.csv")
    assert f"ratio {(balanced - 0.066) / 0.017:.2f}" in said
    bent = "above" if where == "above" else "below"
    assert f"predicted 5.00 [4.00, 6.50] by one slope: {where} the interval; " in said
    assert said.endswith(f"7.00 [6.90, 7.10] by two slopes: {bent} the interval")


def test_without_a_prediction_or_a_rise_it_says_so(tmp_path):
    (tmp_path / "p.csv").write_text("panel,ratio,low,high\nother,1,1,1\n")
    for file in ("none.csv", "p.csv"):
        said = panel.compared(totals((0.051, 0.068), (0.066, 0.163)), "tiny", tmp_path / file)
        assert "ratio 5.71" in said and "no prediction for tiny" in said
    assert "no ratio" in panel.compared(totals((0.07, 0.06), (0.1, 0.2)), "tiny", tmp_path / "p.csv")


def test_the_command_says_when_it_is_to_be_run_again_and_when_it_is_done(make, file, imdb, monkeypatch, capsys):
    p = make(steps=2, weight_decay="[0.0]")[0]
    monkeypatch.chdir(file.parent)
    given = dict(corpus_path=imdb, runs_dir=p.runs_dir, steps=2, weight_decay="[0.0]")
    command = ["panel", str(file), "--minutes", "0", *(w for k, v in given.items() for w in ("-p", k, str(v)))]
    said = []
    for status in (GO_ON, GO_ON, 0):
        assert main(command) == status
        said.append(capsys.readouterr().out)
    assert "run the same command again" in said[0] and "continuing from step 1" in said[1]
    assert "token_balanced_loss" in said[2] and "no ratio" in said[2]
    assert (identity.run_dir(p) / "tables" / "totals.csv").exists()


def test_the_command_refuses_what_is_not_an_experiment(tmp_path, capsys):
    assert main(["panel", str(tmp_path / "none.yaml")]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_the_speed_of_a_panel_is_that_of_whole_batches(make, imdb, tmp_path, monkeypatch):
    file = tmp_path / "twenty.yaml"
    given = {"corpus_path": str(imdb), "runs_dir": make()[0].runs_dir, "max_train_blocks": 20}
    file.write_text(yaml.safe_dump({**VALUES, **given}))
    n_blocks = []
    monkeypatch.setattr(bench, "train_with_trainer", lambda s, _: n_blocks.append(len(s.data)) or 2.0)
    table = bench.bench_panel(str(file), steps=3, modes=["none"]).set_index("Trainer")
    assert n_blocks == [16] and table.index.tolist() == ["ours", "stock"]
    assert table.loc["ours", "tokens/s"] == 2 * 8 * 16 / 2.0  # the first step is not timed
    assert (table["tokens/s"] > 0).all() and table["MFU"].isna().all()  # the peak of a CPU is not known
