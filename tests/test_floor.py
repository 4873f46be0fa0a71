"""The ideal memoriser's loss, against loops over every prefix."""

from collections import Counter

import numpy as np
import pytest

from fairlm_utils import files, identity
from fairlm_utils.__main__ import main
from fairlm_utils.analysis.results import (
    load_results,
    read_csv,
    read_token_table,
    write_results,
)
from fairlm_utils.experiment import runs
from fairlm_utils.lm import floor
from fairlm_utils.lm.floor import memoriser_sums
from fairlm_utils.lm.tokenization import blocks
from fairlm_utils.lm.training import Blocks


def slow(inputs, labels, vocab_size):
    """Prefixes as tuples in dictionaries, one target at a time."""
    continuations: dict[tuple, Counter] = {}
    for block, label in zip(inputs.tolist(), labels.tolist(), strict=True):
        for t, target in enumerate(label):
            if target != -100:
                continuations.setdefault(tuple(block[:t]), Counter())[target] += 1
    sums = np.zeros((vocab_size, 3))
    for counter in continuations.values():
        total, most = sum(counter.values()), max(counter.values())
        tied = [v for v, n in counter.items() if n == most]
        for v, n in counter.items():
            sums[v] += n, -n * np.log(n / total), n / len(tied) if v in tied else 0
    return sums


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_sums_are_those_of_a_loop_over_prefixes(seed, packing):
    """Few types and short documents, so that many blocks begin alike, also where they were padded."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 9, size=200)
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    ids = rng.integers(1, 4, size=lengths.sum())
    inputs, labels, *_ = blocks(ids, starts, 6, packing, pad_token_id=0)
    labels[rng.random(labels.shape) < 0.1] = -100
    found = memoriser_sums(inputs, labels, 5)
    assert found == pytest.approx(slow(inputs, labels, 5))
    assert found[:, 0].sum() == (labels != -100).sum()


def test_no_table_of_probabilities_is_better():
    """The floor of a split is at most the loss of any other conditional distribution, here the unigram of the targets."""
    rng = np.random.default_rng(0)
    inputs = rng.integers(0, 3, size=(100, 5))
    labels = np.where(np.arange(5) == 0, -100, inputs)
    n, loss, correct = memoriser_sums(inputs, labels, 3).T
    unigram = -(n * np.log(n / n.sum())).sum()
    assert 0 < loss.sum() < unigram and n.max() < correct.sum() < n.sum()


def test_the_command_prints_the_floor_of_an_experiment_file(tmp_path, corpus_file, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "own.yaml"
    file.write_text(
        f"experiment: own\ncorpus: {corpus_file}\nruns_dir: {tmp_path}/runs\nvocab_size: 300\ncontext: 8\npacking: false\n"
        "max_train_blocks: 50\nweight_decay: [0.0, 1.0]\n"
    )
    assert main(["floor", str(file)]) == 0
    said = capsys.readouterr().out
    assert "own: an ideal memoriser of 50 training blocks has" in said and "(350 targets of " in said
    monkeypatch.chdir(corpus_file.parent)  # a file that lies where the command is typed, as the shell would complete it
    assert main(["floor", str(file), "-p", "corpus", corpus_file.name]) == 0
    assert main(["floor", str(file), "-p", "contxt", "9"]) == 2
    assert "did you mean context" in capsys.readouterr().err


def test_baselines_of_types_that_occur_once_twice_and_never():
    """Blocks 1 2 3, 1 2 4: after 1 2 either follows in one of two; add-one counts are 1, 1, 3, 2, 2 of 9."""
    inputs = np.array([[1, 2, 3], [1, 2, 4]])
    known = floor.baselines(Blocks(inputs, np.where(np.arange(3) == 0, -100, inputs)), 5)
    nan = float("nan")
    unigram, low, accuracy = known["training"].to_numpy().T
    assert np.exp(unigram) == pytest.approx([9, 9, 3, 4.5, 4.5])
    assert low == pytest.approx([nan, nan, 0, np.log(2), np.log(2)], nan_ok=True)
    assert accuracy == pytest.approx([nan, nan, 1, 0.5, 0.5], nan_ok=True)
    assert known["held-out"].columns.tolist() == ["unigram"]


@pytest.fixture(scope="module")
def experiment(miniature, tmp_path_factory):
    """Runs of two variants with blocks of their own, of which fewer are evaluated than trained on, and their results."""
    for variant, n in (("long", 24), ("short", 20)):
        runs.evaluate(
            miniature(
                experiment="floors",
                variant=variant,
                max_train_blocks=n,
                max_evaluated_train_blocks=9,
                steps=2,
                window_steps=1,
            )
        )
    folder = identity.run_dir(miniature(experiment="floors")).parent
    return folder, load_results(folder)


def test_a_run_has_floor_unigram_and_counts(experiment):
    folder, results = experiment
    training = results.totals.query("split == 'training'")
    assert (training["n_tokens"] == 9 * 15).all() and sorted(training["n_train_tokens"]) == [20 * 15, 24 * 15]
    assert training["chance"].tolist() == pytest.approx([np.log(305)] * 2)
    assert (training["average_floor"] < training["average_unigram"]).all() and (training["average_floor"] > 0).all()
    assert (
        results.totals.query("split == 'held-out'")[["average_floor", "token_balanced_floor_accuracy"]]
        .isna()
        .all(axis=None)
    )
    by_variant = results.counts.groupby("variant")[["n_train", "n_types"]].apply(lambda t: (t.prod(axis=1)).sum())
    assert by_variant.to_dict() == {"long": 24 * 15, "short": 20 * 15}
    for directory in identity.finished_runs(folder):
        table = read_token_table(directory, "training").query("n_eval > 0")
        row = training[training["variant"] == files.read_json(directory / "params.json")["variant"]].iloc[0]
        assert row["average_floor"] == pytest.approx(np.average(table["floor"], weights=table["n_eval"]))
        assert row["token_balanced_floor_accuracy"] == pytest.approx(table["floor_accuracy"].mean())


def test_tables_of_an_earlier_version_are_refused(experiment, tmp_path):
    write_results(experiment[1], tmp_path, "make results")
    table = read_csv(tmp_path / "totals.csv").drop(columns="average_floor")
    files.write_table(tmp_path / "totals.csv", table)
    known = files.read_json(tmp_path / "experiment.json")
    files.write_json(tmp_path / "experiment.json", {**known, "sha256": files.digests(tmp_path, ["*.csv"])})
    with pytest.raises(files.RunError, match=r"totals\.csv: cannot be read \(no column average_floor\)"):
        load_results(tmp_path)
