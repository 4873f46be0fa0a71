"""Sentences under exhibits: they turn with the numbers, and say nothing that seeds leave open."""

import numpy as np
import pandas as pd
import pytest

from fairlm_utils.analysis import charts, sentences

NAMES = {"low": "rare types", "high": "frequent ones"}


def classes(low: float, high: float, spread: float = 0.01, seeds: int = 3, split: str = "training") -> pd.DataFrame:
    """Losses whose change from λ = 0 to 0.5 is `low` and `high`, give or take `spread`; λ = 2 is beyond what is compared."""
    key = {"model": "m", "split": split}
    return pd.DataFrame(
        {**key, "weight_decay": w, "seed": s, "frequency_class": c, "loss": 1 + w * 2 * (change + spread * (s - 1))}
        for s in range(seeds)
        for w in (0.0, 0.5, 2.0)
        for c, change in (("low", low), ("high", high))
    )


@pytest.mark.parametrize(
    "low, high, said",
    [
        (0.4, 0.1, "rare types rises more than frequent ones: +0.400 against +0.100"),
        (0.1, 0.4, "rare types rises less than frequent ones: +0.100 against +0.400"),
        (0.4, 0.4, "rare types rises not reliably more or less than frequent ones: +0.400 against +0.400"),
        (-0.4, -0.1, "rare types falls more than frequent ones: -0.400 against -0.100"),
        (0.4, -0.1, "rare types rises and frequent ones falls: +0.400 against -0.100"),
        (
            0.4,
            0.0,
            "rare types rises and frequent ones does not move beyond seed-to-seed variation: +0.400 against +0.000",
        ),
    ],
)
def test_a_contrast_says_which_of_two_groups_moves_more(low, high, said):
    found = sentences.contrast(classes(low, high), "frequency_class", NAMES)
    assert found == f"On training text {said} nats (λ 0 → 0.5, 3 seeds)"


def test_changes_that_differ_within_seeds_are_not_told_as_equal():
    rows = classes(0.5, 0.3)
    rows.loc[(rows["frequency_class"] == "low") & (rows["weight_decay"] == 0.5), "loss"] += [-0.09, 0.0, 0.09]
    said = sentences.contrast(rows, "frequency_class", NAMES)
    assert "rare types rises not reliably more or less than frequent ones: +0.500 against +0.300" in said


def test_what_seeds_leave_open_is_not_told_as_a_change():
    noisy = sentences.contrast(classes(0.4, 0.1, spread=1.0), "frequency_class", NAMES)
    assert "neither rare types nor frequent ones moves beyond seed-to-seed variation: +0.400" in noisy
    one = sentences.contrast(classes(0.4, 0.1, spread=1.0, seeds=1), "frequency_class", NAMES)
    assert "rises" not in noisy and "falls" in one, "one seed has no interval: its values are told"
    assert one.endswith("(λ 0 → 0.5, 1 seed)")


@pytest.mark.parametrize("run", [[0.0], [0.0, 2.0], [2.0]])
def test_nothing_is_told_of_a_weight_decay_that_was_not_run(run):
    table = classes(0.4, 0.1)
    said = sentences.contrast(table[table["weight_decay"].isin(run)], "frequency_class", NAMES)
    assert said == "No λ above 0 and up to 1 was run, to be compared with λ = 0"


def test_a_contrast_has_a_part_per_text_and_names_models_where_there_are_several():
    both = pd.concat([classes(0.4, 0.1), classes(-0.2, -0.3, split="held-out")])
    said = sentences.contrast(both, "frequency_class", NAMES)
    assert said.count("; ") == 1 and "; on held-out text rare types falls less than" in said
    assert charts.headline(said) == [
        "On training text rare types rises more than frequent ones",
        "On held-out text rare types falls less than frequent ones",
    ]
    begun = classes(0.4, 0.1).query("weight_decay == 0 or seed == 0")
    assert sentences.contrast(begun, "frequency_class", NAMES).endswith("1 seed)")
    two = sentences.contrast(pd.concat([both, both.assign(model="n")]), "frequency_class", NAMES)
    assert "; n on held-out text" in two and two.startswith("M on") and two.count("; ") == 3


def bins(split: str = "training") -> pd.DataFrame:
    frame = classes(0.4, 0.1, split=split).rename(columns={"frequency_class": "bin"})
    frame["bin_low"] = frame["bin"].map({"low": 3, "high": 27})
    return frame.replace({"bin": {"low": "3–8", "high": "27–80"}})


def test_ends_are_the_rarest_and_the_most_frequent_bin_of_every_text():
    unseen = bins("held-out").query("bin_low == 3").assign(bin="0", bin_low=0)
    once = bins("held-out").query("bin_low == 3").assign(bin="1–2", bin_low=1)
    table = pd.concat([unseen, once, bins("held-out"), bins()])
    said = sentences.ends(table, "loss", "the loss")
    assert "; on training text the loss at n_v 3–8 rises more than that at n_v 27–80: +0.400 against +0.100" in said
    at_zero = table[table["weight_decay"] == 0].assign(loss=lambda f: f["bin_low"] / 10)
    assert sentences.levels(at_zero, "loss", "the loss", " nats") == (
        "On held-out text the loss at n_v 3–8 is 0.30 nats, that at n_v 27–80 2.70; "
        "on training text the loss at n_v 3–8 is 0.30 nats, that at n_v 27–80 2.70"
    )


def test_half_learnt_is_the_first_step_below_half_of_chance():
    rows = [
        {"weight_decay": w, "seed": s, "bin": b, "bin_low": low, "step": step, "loss": loss}
        for s in (0, 1)
        for w, b, low, losses in (
            (0.0, "1–2", 1, (4.0, 3.0, 1.0)),
            (0.0, "3–8", 3, (1.0, 1.0, 1.0)),
            (1.0, "1–2", 1, (4.0, 3.0, 2.0)),
            (1.0, "3–8", 3, (2.0, 1.9, 1.0)),
        )
        for step, loss in zip((1000, 2000, 3000), losses, strict=True)
    ]
    beyond = pd.DataFrame(rows).query("weight_decay == 1").assign(weight_decay=2.0)
    assert "no step at λ = 2; types" in sentences.half_learnt(beyond, chance=4.0)
    assert sentences.half_learnt(pd.DataFrame(rows), chance=4.0) == (
        "Types of n_v 1–2 are half learnt by step 3,000 at λ = 0 and no step at λ = 1; "
        "types of n_v 3–8 are half learnt by step 1,000 at λ = 0 and step 2,000 at λ = 1"
    )
    of_two = pd.concat([pd.DataFrame(rows).assign(model="a"), pd.DataFrame(rows).assign(model="b", loss=4.0)])
    assert sentences.half_learnt(of_two, chance=4.0).startswith(
        "Of a types of n_v 1–2 are half learnt by step 3,000 at λ = 0"
    )
    assert "; of b types of n_v 1–2 are half learnt by no step at λ = 0" in sentences.half_learnt(of_two, chance=4.0)


def test_tokens_are_counted_and_the_most_hurt_is_named():
    table = pd.DataFrame(
        {
            "token": ["a", " b", "c"],
            "n_train": [1, 2000, 3],
            "weight_decay": 0.5,
            "change_training": [0.1, 2.0, float("nan")],
        }
    )
    said = sentences.tokens(table)
    assert (
        said == "The training loss of 2 of 2 types rises with λ = 0.5; most that of ' b' (seen 2,000 times, +2.00 nats)"
    )


def test_the_rare_and_the_frequent_targets_of_a_text_are_told_apart():
    table = pd.DataFrame(
        {"token": ["a", " b", " c"], "n_train": [9, 1, 2], "loss": [np.nan, 4.0, 1.0], "unigram": [1.0, 5.0, 3.0]}
    )
    said = sentences.in_context(table, 1)
    assert said == (
        "Targets of low-frequency types (1) cost 4.00 nats on average, 5.00 by the unigram; the others (1) cost 1.00 nats on "
        "average, 3.00 by the unigram; the dearest is 'b' (4.00 nats, seen 1 time)"
    )
    assert "nan" not in (all_rare := sentences.in_context(table, 9)) and "others" not in all_rare


def test_confidence_is_compared_with_accuracy_over_tokens_and_seeds():
    rows = [
        ("low", 0.0, 0, 30, 0.9, 0.5),
        ("low", 0.0, 0, 10, 0.1, 0.1),  # 30 of 40 tokens are 40 points too sure
        ("low", 0.0, 1, 40, 0.5, 0.4),  # another seed by 10
        ("low", 1.0, 0, 40, 0.5, 0.4),
        ("low", 1.0, 1, 40, 0.4, 0.3),
        ("high", 0.0, 0, 40, 0.3, 0.5),
        ("high", 0.0, 1, 40, 0.3, 0.5),
        ("high", 1.0, 0, 40, 0.5, 0.4),
        ("high", 1.0, 1, 40, 0.5, 0.4),
    ]
    names = ["frequency_class", "weight_decay", "seed", "n_tokens", "confidence", "accuracy"]
    assert sentences.calibration(pd.DataFrame(rows, columns=names).assign(split="held-out")) == (
        "On held-out text the confidence in low-frequency targets is above their accuracy (+20.0 points at λ = 0, +10.0 "
        "points at λ = 1); on held-out text the confidence in high-frequency targets is now above and now below their "
        "accuracy (-20.0 points at λ = 0, +10.0 points at λ = 1)"
    )


def test_shown_sentences_break_between_words(capsys):
    sentences.show("word " * 50, "short")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and lines[-1] == "short" and max(map(len, lines)) <= 100
    assert lines[1].startswith("  word") and all(line.split()[-1] in ("word", "short") for line in lines)


def test_the_papers_coverage_is_reproduced_by_a_vocabulary_of_which_a_handful_is_nearly_all_text():
    counts = np.ones(20_000, dtype=int)
    assert "2 of 20,000 types, cover 0.0% of the tokens, 95 % takes 95.0%: not reproduced" in sentences.coverage(counts)
    counts[:2] = 10**7
    assert "cover 99.9% of the tokens, 95 % takes 0.0%: reproduced" in sentences.coverage(counts)
    assert "1 of 4 types, cover 25.0%" in sentences.coverage(np.ones(4, dtype=int)), "at least one type"


@pytest.mark.parametrize(
    "shares, verdict",
    [
        ([0.2, 0.6, 0.84, 0.85], "reproduced"),
        ([0.2, 0.4, 0.5, 0.6], "in part"),
        ([0.2, 0.5, 0.6, 0.85], "in part"),
        ([0.85, 0.8, 0.84, 0.85], "not reproduced"),
    ],
)
def test_a_share_must_rise_and_level_off_where_the_papers_does(shares, verdict):
    table = pd.DataFrame({"vocab_size": [300, 900, 2700, 8100], "low_frequency": shares, "below_percentile": shares})
    whole, without_largest = sentences.shares_by_size(table)
    assert f": {verdict} (paper" in whole and f"{shares[-1]:.0%} of 8,100, at least {min(shares):.0%}" in whole
    assert f"{shares[-2]:.0%} of 2,700" in without_largest, "the largest vocabulary sets the percentile"
    assert sentences.shares_by_size(table.head(2)) == sentences.shares_by_size(pd.DataFrame()) == []
