"""The ideal memoriser's loss, against loops over every prefix."""

from collections import Counter

import numpy as np
import pytest

from fairlm_utils import floor
from fairlm_utils.floor import memoriser_sums
from fairlm_utils.tokenization import blocks


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
    assert floor.main([str(file)]) == 0
    said = capsys.readouterr().out
    assert "own: an ideal memoriser of 50 training blocks has" in said and "(350 targets of " in said
    assert floor.main([str(file), "-p", "contxt", "9"]) == 2
    assert "did you mean context" in capsys.readouterr().err
