"""Statistics over seeds against numbers that can be computed by hand or by scipy."""

import dataclasses
import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from fairlm_utils import files
from fairlm_utils.analysis import comparisons
from fairlm_utils.analysis.results import TABLES, Results


def classes(low_slope=2.0, high_slope=0.5, noise=0.1, seeds=3) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        [
            {
                "model": "m", "weight_decay": w, "seed": s, "split": "training", "frequency_class": c,
                "loss": 1 + slope * w + noise * rng.normal() * (w > 0),
            }
            for s in range(seeds) for w in (0.0, 0.5, 1.0, 2.0)
            for c, slope in (("low", low_slope), ("high", high_slope))
        ]
    )  # fmt: skip


def test_paired_differences_are_those_of_scipy():
    frame = classes()
    found = comparisons.paired(frame, "loss").set_index(["frequency_class", "weight_decay"]).loc[("low", 1.0)]
    low = frame[frame["frequency_class"] == "low"].pivot(index="seed", columns="weight_decay", values="loss")
    expected = stats.ttest_rel(low[1.0], low[0.0])
    interval = expected.confidence_interval(0.95)
    assert found["p_value"] == pytest.approx(expected.pvalue)
    assert (found["low"], found["high"]) == pytest.approx((interval.low, interval.high))


def test_slopes_without_noise_are_exact_and_their_test_turns_with_the_claim():
    exact = comparisons.slope_test(classes(noise=1e-6)).iloc[0]
    assert (exact["low"], exact["high"]) == pytest.approx((2.0, 0.5), abs=1e-4) and exact["p_value"] < 1e-6
    assert exact["n_weight_decays"] == 3  # λ = 2 is beyond the range of the test
    turned = comparisons.slope_test(classes(low_slope=0.5, high_slope=2.0)).iloc[0]
    assert turned["p_value"] > 0.95 and turned["difference_high"] < 0
    one = comparisons.slope_test(classes(seeds=1)).iloc[0]
    assert np.isnan(one["p_value"]) and one["n_seeds"] == 1
    with pytest.raises(ValueError, match="two values"):
        comparisons.slope_test(classes(), largest=0.1)


def bins() -> pd.DataFrame:
    rows = []
    for s in (0, 1, 2):
        for w, rare, frequent in ((0.0, 5.0, 3.0), (0.1, 4.0 + 0.1 * s, 3.0), (1.0, 6.0, 3.5)):
            for b, low, n, loss in (("1–2", 1, 30, rare), ("3–8", 3, 70, frequent)):
                key = {"model": "m", "weight_decay": w, "seed": s, "bin": b, "bin_low": low, "n_types": n}
                rows += [
                    {**key, "split": split, "loss": loss + (split == "held-out")} for split in ("training", "held-out")
                ]
    return pd.DataFrame(rows)


def test_the_rarest_bins_hold_a_share_of_the_types():
    assert comparisons.rarest_bins(bins()) == ["1–2"] and comparisons.rarest_bins(bins(), 0.5) == ["1–2", "3–8"]
    both = comparisons.rare_loss(bins()).query("weight_decay == 0 and seed == 0 and split == 'training'")
    assert both["loss"].item() == 5.0


def remedies(**changes: tuple[float, float]) -> pd.DataFrame:
    """Held-out average 5 and low-frequency loss 7 under plain decay; per variant the change of each, ∓ 0.01 over three seeds."""
    changes = {"plain decay": (0.0, 0.0), "no decay": (1.0, 2.0), **changes}
    return pd.DataFrame(
        [
            {
                "variant": name, "seed": seed, "heldout_average": 5 + 0.5 * seed + average + e * (name != "plain decay"),
                "heldout_low_frequency": 7 - 0.5 * seed + low + e * (name != "plain decay"), "heldout_ece": 0.1,
                "training_average": 3 - low + 0.001 * e,
            }
            for name, (average, low) in changes.items() for seed, e in enumerate((-0.01, 0.0, 0.01))
        ]
    )  # fmt: skip


def test_the_remedy_recommended_is_the_best_for_rare_types_of_those_no_worse_on_average():
    judged = comparisons.judge_remedies(
        remedies(better=(0.0, -0.6), costly=(0.2, -0.9), slight=(-0.1, -0.02), same=(0.0, 0.0))
    )
    assert judged["variant"].tolist() == ["costly", "better", "slight", "plain decay", "same", "no decay"]
    table = judged.set_index("variant")
    assert table["recommended"][table["recommended"]].index.tolist() == ["better"]
    assert table["not_worse"].to_dict() == {
        "costly": False, "better": True, "slight": True, "plain decay": True, "same": True, "no decay": False,
    }  # fmt: skip
    # by hand: sd 0.01 over 3 seeds, so t = 0.6 / (0.01 / √3) with 2 degrees of freedom; third smallest of 5 p-values
    p_value = 2 * stats.t.sf(0.6 / (0.01 / np.sqrt(3)), 2)
    assert table.loc["better", "p_holm"] == pytest.approx(3 * p_value) and np.isnan(table.loc["plain decay", "p_holm"])
    half = stats.t.ppf(0.975, 2) * 0.01 / np.sqrt(3)
    assert table.loc["better", "heldout_low_frequency_high"] == pytest.approx(-0.6 + half)
    said = comparisons.say_remedies(judged)
    assert said.startswith("recommended: better, which changes the held-out loss of low-frequency types by -0.600 nats")
    assert "over 5 variants" in said and "3 seeds; it raises the training average loss (+0.600" in said
    said = comparisons.say_best(judged)
    assert "slight has the lowest held-out average loss (-0.100" in said
    assert "of the 4 whose average is not worse, better has the lowest" in said and "(-0.600" in said


def test_no_remedy_is_recommended_where_none_is_needed_helps_or_can():
    slight = comparisons.judge_remedies(remedies(slight=(0.0, -0.02), costly=(0.2, -0.9)))
    said = comparisons.say_remedies(slight)
    assert not slight["recommended"].any() and said.startswith("no remedy is needed here: plain decay lowers")
    assert "-2.000 nats" in said and "of the 1 of 3 variants" in said and "nearest, slight: -0.020 nats" in said
    # uncorrected, the slight gain would have counted
    assert slight.set_index("variant").loc["slight", "heldout_low_frequency_high"] > 0 or slight["p_holm"].min() < 0.05
    harmful = comparisons.say_remedies(comparisons.judge_remedies(remedies(**{"no decay": (1.0, -2.0)})))
    assert harmful.startswith("no remedy helps here: plain decay raises") and "+2.000 nats" in harmful
    moot = comparisons.judge_remedies(remedies(**{"no decay": (0.0, 2.0)}, better=(0.0, -0.6)))
    assert not moot["recommended"].any() and "nothing to remedy" in comparisons.say_remedies(moot)
    one_seed = comparisons.judge_remedies(remedies(better=(0.0, -0.6)).query("seed == 0"))
    assert not one_seed["recommended"].any()
    with pytest.raises(ValueError, match="no decay"):
        comparisons.judge_remedies(remedies().query("variant != 'no decay'"))


def test_holms_correction_is_what_keeps_a_small_gain_from_being_recommended():
    """t = 0.03 / (0.01 / √3) = 5.2 with 2 degrees of freedom: p = 0.035, which two variants double."""
    judged = comparisons.judge_remedies(remedies(gain=(0.0, -0.03))).set_index("variant")
    assert judged.loc["gain", "heldout_low_frequency_high"] < 0 and judged.loc["gain", "p_holm"] == pytest.approx(
        0.035, abs=1e-3
    )
    more = comparisons.judge_remedies(remedies(gain=(0.0, -0.03), other=(0.0, -0.01))).set_index("variant")
    assert judged.loc["gain", "recommended"] and more.loc["gain", "p_holm"] == pytest.approx(0.07, abs=2e-3)
    assert not more["recommended"].any()


def test_what_remedies_are_judged_on_comes_from_the_tables():
    names = ("no decay", "decay on all")  # as the first experiments call plain decay
    totals = pd.DataFrame(
        [
            {"variant": v, "seed": 0, "split": s, "average_loss": a, "token_balanced_loss": a + 1}
            for v in names for s, a in (("training", 1.0), ("held-out", 2.0))
        ]
    )  # fmt: skip
    b = pd.concat([bins().query("weight_decay == 0").assign(variant=v) for v in names]).query("seed == 0")
    c = pd.concat(
        [classes().query("weight_decay == 0 and seed == 0").assign(variant=v, split="held-out") for v in names]
    )
    # over both classes: confidence 0.5 · 3/4 + 0.7 · 1/4 = 0.55 in one bin, accuracy 0.25; the other bin is calibrated
    r = pd.DataFrame(
        [("low", 0.5, 3, 0.5, 0.0), ("high", 0.5, 1, 0.7, 1.0), ("high", 0.9, 4, 0.95, 0.95)],
        columns=["frequency_class", "confidence_bin", "n_tokens", "confidence", "accuracy"],
    )
    r = pd.concat([r.assign(variant=v, seed=0, split="held-out") for v in names])
    results = Results(totals, b, c, pd.DataFrame(), r, pd.DataFrame(), pd.DataFrame(), {}, {})
    assert comparisons.has_remedies(results)
    numbers = comparisons.remedy_numbers(results).set_index("variant")
    row = numbers.loc["plain decay"]
    assert (row["training_balanced"], row["heldout_average"], row["heldout_balanced"]) == (2.0, 2.0, 3.0)
    assert (row["training_rarest"], row["heldout_rarest"], row["heldout_low_frequency"]) == (5.0, 6.0, 1.0)
    assert row["heldout_ece"] == pytest.approx(0.3 * 4 / 8)


def test_kinds_of_remedies_are_what_differs_from_plain_decay():
    variants = {
        "decay on all": {"steps": 9, "learning_rate": 0.1, "embedding_decay": "uniform"},
        "no decay": {"steps": 9, "learning_rate": 0.1, "embedding_decay": "uniform"},
        "early stopping": {"steps": 3, "learning_rate": 0.1, "embedding_decay": "uniform"},
        "half the rate": {"steps": 9, "learning_rate": 0.05, "embedding_decay": "uniform"},
        "lazy": {"steps": 9, "learning_rate": 0.1, "embedding_decay": "lazy", "loss_weight_exponent": 0.25},
    }
    assert comparisons.kinds_of_remedies(variants).to_dict() == {
        "plain decay": "reference", "no decay": "reference", "early stopping": "other regulariser", "half the rate": "optimiser",
        "lazy": "loss and decay by row",
    }  # fmt: skip


def test_findings_say_harm_help_and_doubt():
    frame = pd.concat(
        [classes().assign(regime="r"), classes().assign(regime="r", split="held-out", loss=1.0)], ignore_index=True
    )
    frame.loc[frame["split"] == "held-out", "loss"] -= 0.1 * frame["weight_decay"] * (1 + 0.1 * frame["seed"])
    changes = comparisons.paired(frame, "loss")
    harm, gain = comparisons.findings(changes, comparisons.slope_test(frame), 1.0)
    assert "low-frequency types lose" in harm and "rise faster" in harm and "gain" in gain and "do not rise" in gain


def test_changes_of_groups_are_counted_beyond_seeds_and_the_largest_named():
    intervals = {
        "kind": ["word", "number", "other"],
        "mean": [0.2, -0.5, 0.1],
        "low": [0.1, -0.6, -0.1],
        "high": [0.3, -0.4, 0.3],
    }
    changes = pd.DataFrame(intervals).assign(split="held-out")
    assert comparisons.say_changes(changes, "kind") == [
        "On held-out text the loss is beyond seed-to-seed variation lower in 1 of 3 kinds (most in number, -0.500 nats) and "
        "higher in 1 of 3 kinds (most in word, +0.200 nats)"
    ]
    unmoved = changes.assign(low=-1.0, high=1.0).rename(columns={"kind": "frequency_class"})
    assert comparisons.say_changes(unmoved, "frequency_class", "accuracy", "") == [
        "On held-out text the accuracy is beyond seed-to-seed variation lower in 0 of 3 classes and higher in 0 of 3 classes"
    ]


def test_changes_at_a_weight_decay_stay_with_their_text():
    """Numbers of training and held-out text are never exchanged, whatever the order of rows."""
    rows = [
        {"model": "m", "weight_decay": w, "seed": s, "split": split, "average_loss": 1 + w * a, "token_balanced_loss": 1 + w * b}
        for s in range(3) for w in (0.0, 0.5) for split, a, b in (("training", 2, 4), ("held-out", -2, -4))
    ]  # fmt: skip
    both = [
        classes(low, high, noise=0.0).assign(split=split)
        for split, low, high in (("training", 6.0, 8.0), ("held-out", -6.0, -8.0))
    ]
    results = Results(pd.DataFrame(rows), *[pd.DataFrame()] * 6, {}, {})
    results = dataclasses.replace(results, classes=pd.concat(both))
    table = comparisons.at_weight_decay(results, 0.7).set_index("split")
    for split, sign in (("training", "+"), ("held-out", "-")):
        assert [cell.split(" ")[0] for cell in table.loc[split].iloc[-4:]] == [f"{sign}{x}.000" for x in (1, 2, 3, 4)]
    with pytest.raises(ValueError, match="no λ above 0"):
        comparisons.at_weight_decay(results, 0.3)


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
    table = comparisons.tokenizers(of_tokenizers())
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
    answer, rare_words, levels, *each, every_bin = comparisons.say_tokenizers(table)
    assert answer == "rare words pay for the λ that held-out words choose under theirs; they gain by it under own"
    assert "own: -0.990 [-1.015, -0.965] at λ = 0.5" in rare_words and "theirs: +0.510" in rare_words
    assert levels.index("own 3.610 [") < levels.index("theirs 3.760 [") and "own tokens about 20.00" in levels
    assert len(each) == 2 and "own: λ = 0.5 changes all words by" in each[0] and "forgo 0.510" in each[0]
    assert "of 4 bins" in every_bin and "4 change: count 1–2 -0.990 (own)" in every_bin
    whole = of_tokenizers()
    some = whole.words[(whole.words["seed"] < 2) | (whole.words["weight_decay"] < 1.0)]
    with pytest.raises(ValueError, match="train what is missing"):
        comparisons.tokenizers(dataclasses.replace(whole, words=some))
    with pytest.raises(ValueError, match="by_word: true"):
        comparisons.tokenizers(dataclasses.replace(whole, words=None))


def test_no_decay_chosen_is_said_and_the_smallest_is_what_is_compared():
    """One tokenizer, whose words all lose with λ, by amounts that seeds do not tell from none."""
    whole = of_tokenizers()
    noise = whole.words["seed"].map({0: -1.0, 1: 1.0, 2: 0.0}) * (whole.words["weight_decay"] > 0)
    losses = {c: 10.0 + whole.words["weight_decay"] + noise for c in ("loss", "loss_occurrences")}
    words = whole.words.assign(**losses)[whole.words["variant"] == "own"]
    bins = whole.bins[whole.bins["variant"] == "own"]
    table = comparisons.tokenizers(dataclasses.replace(whole, words=words, bins=bins))
    row = table.query("unit == 'word' and split == 'held-out' and bin == 'all'").iloc[0]
    assert (row["weight_decay"], row["compared"], row["loss"], row["forgone"]) == (0.0, 0.5, 10.0, 0.0)
    assert row["change"] == pytest.approx(0.5) and row["low"] < 0
    said = comparisons.say_tokenizers(table)
    assert (
        said[0].startswith("under no tokenizer do rare words reliably pay") and "own: no λ above 0 is chosen" in said[1]
    )
    assert "decay buys nothing at this rate; λ = 0.5, the smallest tried" in said[3] and "of 0 bins" in said[-1]
    none = dataclasses.replace(whole, words=words[words["weight_decay"] == 0], bins=bins[bins["weight_decay"] == 0])
    with pytest.raises(ValueError, match="0 and another"):
        comparisons.tokenizers(none)


def test_each_setting_is_kept_at_the_rate_that_is_best_without_decay():
    rows = [
        ("a, lr 0.1", 0.0, 2.0),
        ("a, lr 0.2", 0.0, 1.0),
        ("a, lr 0.2", 1.0, 5.0),
        ("a, lr 0.1", 1.0, 0.5),
        ("b, lr 0.1", 0.0, 3.0),
    ]
    totals = pd.DataFrame(rows, columns=["variant", "weight_decay", "average_loss"]).assign(split="held-out", seed=0)
    tables = dict.fromkeys(TABLES, totals)
    results = Results(**tables, provenance={"n_runs": 5}, params={"variants": {v: {"x": v} for v in totals["variant"]}})
    kept = comparisons.at_best_rate(results)
    assert kept.totals[["variant", "average_loss"]].values.tolist() == [["a", 1.0], ["a", 5.0], ["b", 3.0]]
    assert kept.params["variants"] == {"a": {"x": "a, lr 0.2"}, "b": {"x": "b, lr 0.1"}}
    assert kept.provenance["n_runs"] == 5 and kept.provenance["rates"]["kept"] == [False, True, True]
    first, second = comparisons.say_rates(pd.DataFrame(kept.provenance["rates"]))
    assert first.startswith("a: learning rate 0.2, the largest of 2 tried, 1.000 ±")
    assert first.endswith("rate and λ chosen together would be 0.1 and 1, 0.500 against 1.000")
    assert second.startswith("b: learning rate 0.1, 3.000 ±") and "together" not in second
    with pytest.raises(files.RunError, match="do not end in 'lr RATE'"):
        comparisons.split_rate(pd.Series(["a"]))
