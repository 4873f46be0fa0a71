"""Tokenizers compared by word, against losses known by hand."""

import dataclasses
import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from fairlm_utils.analysis import tokenizers
from fairlm_utils.analysis.results import Results


def of_tokenizers() -> Results:
    """Two tokenizers, words and types in two bins, three seeds: losses known by hand, held-out 1 above training."""
    words, bins = [], []
    for variant, rare in (("own", {0.0: 9.0, 0.5: 8.0, 1.0: 7.5}), ("theirs", {0.0: 9.0, 0.5: 9.5, 1.0: 12.0})):
        for seed, (w, loss), split in itertools.product(range(3), rare.items(), ("training", "held-out")):
            key = {"model": "m", "variant": variant, "weight_decay": w, "seed": seed, "split": split}
            extra = (split == "held-out") + 0.01 * seed * (w == 0.5)
            for name, low, n, n_all, own in (
                ("1–2", 1, 4, 10, loss),
                ("3–8", 3, 1, 90, {0.0: 3.0, 0.5: 2.0, 1.0: 2.5}[w]),
            ):
                row = {**key, "bin": name, "bin_low": low, "loss": own + extra, "loss_occurrences": own + extra}
                words.append({**row, "n_words": n, "n_occurrences": n_all})
                bins.append({**row, "n_types": n, "n_tokens": n_all, "unigram": 2 * own, "unigram_occurrences": 20.0})
    rest = dict.fromkeys(("totals", "classes", "kinds", "reliability", "curves", "counts"))
    return Results(**rest, bins=pd.DataFrame(bins), words=pd.DataFrame(words), params={}, provenance={})


def test_the_decay_that_held_out_words_choose_and_what_rare_words_forgo_by_it():
    table = tokenizers.compare(of_tokenizers())
    found = table.set_index(["variant", "unit", "split", "bin"])
    assert (table["weight_decay"] == 0.5).all()  # over occurrences: 2.6, 2.95 with it, 3.0 at 1, 3.6 at 0
    rare = found.loc[("own", "word", "held-out", "1–2")]
    assert (rare["loss_none"], rare["loss"], rare["change"]) == pytest.approx((10.0, 9.01, -0.99))
    assert (rare["best_weight_decay"], rare["forgone"], rare["n"]) == pytest.approx((1.0, 0.51, 4))
    half = stats.t.ppf(0.975, 2) * 0.01 / np.sqrt(3)
    assert (rare["low"], rare["high"]) == pytest.approx((-0.99 - half, -0.99 + half))
    other = found.loc[("theirs", "token", "training", "1–2")]
    assert (other["change"], other["best_weight_decay"], other["forgone"]) == pytest.approx((0.51, 0.0, 0.51))
    assert found.loc[("own", "word", "held-out", "all"), "loss"] == pytest.approx(0.1 * 9.01 + 0.9 * 3.01)
    assert found.loc[("own", "token", "held-out", "all"), "unigram"] == pytest.approx(20.0)
    assert not table["at_edge"].any() and (table["compared"] == 0.5).all()
    answer, rare_words, levels, *each, every_bin = tokenizers.verdict(table)
    assert (
        answer
        == "rare words, of a count of 1–2, pay for the λ that held-out words choose under theirs; they gain by it under own"
    )
    assert "own: -0.990 [-1.015, -0.965] at λ = 0.5" in rare_words and "theirs: +0.510" in rare_words
    assert levels.index("own 3.610 [") < levels.index("theirs 3.760 [") and "own tokens about 20.00" in levels
    assert len(each) == 2 and "own: λ = 0.5 changes all words by" in each[0] and "forgo 0.510" in each[0]
    assert "of 4 bins" in every_bin and "4 change: count 1–2 -0.990 (own)" in every_bin
    whole = of_tokenizers()
    some = whole.words[(whole.words["seed"] < 2) | (whole.words["weight_decay"] < 1.0)]
    with pytest.raises(ValueError, match="train what is missing"):
        tokenizers.compare(dataclasses.replace(whole, words=some))
    with pytest.raises(ValueError, match="by_word: true"):
        tokenizers.compare(dataclasses.replace(whole, words=None))


def test_no_decay_chosen_is_said_and_the_smallest_is_what_is_compared():
    """One tokenizer, whose words all lose with λ, by amounts that seeds do not tell from none."""
    whole = of_tokenizers()
    noise = whole.words["seed"].map({0: -1.0, 1: 1.0, 2: 0.0}) * (whole.words["weight_decay"] > 0)
    losses = {c: 10.0 + whole.words["weight_decay"] + noise for c in ("loss", "loss_occurrences")}
    words = whole.words.assign(**losses)[whole.words["variant"] == "own"]
    bins = whole.bins[whole.bins["variant"] == "own"]
    table = tokenizers.compare(dataclasses.replace(whole, words=words, bins=bins))
    row = table.query("unit == 'word' and split == 'held-out' and bin == 'all'").iloc[0]
    assert (row["weight_decay"], row["compared"], row["loss"], row["forgone"]) == (0.0, 0.5, 10.0, 0.0)
    assert row["change"] == pytest.approx(0.5) and row["low"] < 0
    said = tokenizers.verdict(table)
    assert (
        said[0].startswith("under no tokenizer do rare words, of a count of 1–2, reliably pay")
        and "own: no λ above 0 is chosen" in said[1]
    )
    assert "decay buys nothing at this rate; λ = 0.5, the smallest tried" in said[3] and "of 0 bins" in said[-1]
    none = dataclasses.replace(whole, words=words[words["weight_decay"] == 0], bins=bins[bins["weight_decay"] == 0])
    with pytest.raises(ValueError, match="0 and another"):
        tokenizers.compare(none)
