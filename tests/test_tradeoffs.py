"""What remedies are judged on, and which the rule recommends, against numbers computed by hand."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from fairlm_utils import files
from fairlm_utils.analysis import tradeoffs
from fairlm_utils.analysis.results import Results, load_results
from tests.test_comparisons import classes


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
    assert tradeoffs.rarest_bins(bins()) == ["1–2"] and tradeoffs.rarest_bins(bins(), 0.5) == ["1–2", "3–8"]
    both = tradeoffs.rare_loss(bins()).query("weight_decay == 0 and seed == 0 and split == 'training'")
    assert both["loss"].item() == 5.0


def remedies(**changes: tuple[float, float]) -> pd.DataFrame:
    """Held-out average 5 and low-frequency loss 7 under plain decay; per variant the change of each, ∓ 0.01 over three seeds."""
    changes = {"plain decay": (0.0, 0.0), "no decay": (1.0, 2.0), **changes}
    return pd.DataFrame(
        [
            {
                "variant": name, "seed": seed, "heldout_average": 5 + 0.5 * seed + average + e * (name != "plain decay"),
                "heldout_low_frequency": 7 - 0.5 * seed + low + e * (name != "plain decay"), "heldout_ece": 0.1,
                "heldout_high_frequency": 4 - 0.2 * low + 0.001 * e,
                "train_average": 3 - low + 0.001 * e,
            }
            for name, (average, low) in changes.items() for seed, e in enumerate((-0.01, 0.0, 0.01))
        ]
    )  # fmt: skip


def test_the_remedy_recommended_is_the_best_for_rare_types_of_those_no_worse_on_average():
    judged = tradeoffs.judge_remedies(
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
    said = tradeoffs.say_remedies(judged)
    assert said.startswith("recommended: better, which changes the held-out loss of low-frequency types by -0.600 nats")
    assert "over 5 variants" in said and "the training average loss (+0.600" in said
    assert "3 seeds; it raises the held-out loss of high-frequency types (+0.120" in said
    first, said, both = tradeoffs.say_best(judged)
    assert "slight has the lowest held-out average loss (-0.100" in first
    # plain decay is no worse than itself and is not counted; the averages' smallest of 5 p-values, by hand as above
    assert (
        "Of 5 variants" in first
        and "Of the 3 of 5 variants whose held-out average is not reliably worse than plain decay's, better has the lowest"
        in said
    )
    assert f"Holm-corrected p = {3 * 2 * stats.t.sf(0.1 / (0.01 / np.sqrt(3)), 2):.2g})" in first and "(-0.600" in said
    assert "changes that of high-frequency types by +0.120" in said
    assert both == "Holm-corrected, 0 of 5 lower both the held-out average and the loss of rare types"
    *_, both = tradeoffs.say_best(tradeoffs.judge_remedies(remedies(better=(-0.5, -0.6), half=(0.0, -0.6))))
    assert "1 of 3 lower both the held-out average and the loss of rare types: better (-0.500" in both
    four = tradeoffs.judge_remedies(remedies(**{name: (-2.0, -4.0 + k) for k, name in enumerate("abcd")}))
    assert (
        "4 of 5 lower both" in (said := tradeoffs.say_best(four)[2])
        and "types, most: a (" in said
        and "; d" not in said
    )


def test_a_remedy_stays_where_average_and_rare_types_both_fall():
    def rows(cell, variant, average, low):
        own = {
            "cell": cell,
            "learning_rate": 0.004,
            "weight_decay": 0.3,
            "variant": variant,
            "split": "held-out",
            "high": 4.0,
        }
        return [{**own, "seed": k, "average": average + e, "low": low} for k, e in enumerate((-0.01, 0.0, 0.01))]

    table = pd.DataFrame([
        *rows("a", "plain decay", 5.0, 7.0), *rows("a", "x", 4.9, 6.8), *rows("b", "plain decay", 5.0, 7.0), *rows("b", "x", 4.9, 7.1),
    ])  # fmt: skip
    assert list(table[tradeoffs.ELSEWHERE]) == tradeoffs.ELSEWHERE
    verdict, first, second = tradeoffs.say_elsewhere(table)
    assert verdict == "Both fall beyond seed-to-seed variation in 1 of 2 cells"
    assert first.startswith(
        "a, rate 0.004, λ = 0.3: x changes the held-out average by -0.100 nats [-0.100, -0.100], the"
    )
    assert (
        "by -0.200 nats [-0.200, -0.200] and that of high-frequency ones by +0.000" in first
        and "by +0.100 nats" in second
    )


def test_variants_that_change_rare_types_are_counted():
    judged = tradeoffs.judge_remedies(remedies(better=(0.0, -0.6), costly=(0.2, -0.9), slight=(-0.1, -0.02)))
    assert tradeoffs.say_counts(judged).startswith("after Holm's correction 2 of 4 variants lower")
    assert tradeoffs.say_counts(judged).endswith("1 of them at no worse average, and 1 raise it")


def test_no_remedy_is_recommended_where_none_is_needed_helps_or_can():
    slight = tradeoffs.judge_remedies(remedies(slight=(0.0, -0.02), costly=(0.2, -0.9)))
    said = tradeoffs.say_remedies(slight)
    assert not slight["recommended"].any() and said.startswith("no remedy is needed here: plain decay lowers")
    assert "-2.000 nats" in said and "of the 1 of 3 variants" in said and "nearest, slight: -0.020 nats" in said
    harmful = tradeoffs.say_remedies(tradeoffs.judge_remedies(remedies(**{"no decay": (1.0, -2.0)})))
    assert harmful.startswith("no remedy helps here: plain decay raises") and "+2.000 nats" in harmful
    moot = tradeoffs.judge_remedies(remedies(**{"no decay": (0.0, 2.0)}, better=(0.0, -0.6)))
    assert not moot["recommended"].any() and tradeoffs.say_remedies(moot).startswith(
        "no remedy is recommended: plain decay does not lower"
    )
    one_seed = tradeoffs.judge_remedies(remedies(better=(0.0, -0.6)).query("seed == 0"))
    assert not one_seed["recommended"].any() and tradeoffs.say_best(one_seed) == []
    assert tradeoffs.say_remedies(one_seed).startswith("no verdict on remedies: one seed")
    with pytest.raises(ValueError, match="no decay"):
        tradeoffs.judge_remedies(remedies().query("variant != 'no decay'"))


def test_where_no_variant_keeps_up_with_plain_decay_that_is_said():
    first, second, third = tradeoffs.say_best(tradeoffs.judge_remedies(remedies()))
    assert first.startswith("Of 1 variant beside plain decay no decay has the lowest")
    assert second == "The held-out average of every other variant is worse than plain decay's" and "0 of 1" in third


def test_holms_correction_is_what_keeps_a_small_gain_from_being_recommended():
    """t = 0.03 / (0.01 / √3) = 5.2 with 2 degrees of freedom: p = 0.035, which two variants double."""
    judged = tradeoffs.judge_remedies(remedies(gain=(0.0, -0.03))).set_index("variant")
    assert judged.loc["gain", "heldout_low_frequency_high"] < 0 and judged.loc["gain", "p_holm"] == pytest.approx(
        0.035, abs=1e-3
    )
    more = tradeoffs.judge_remedies(remedies(gain=(0.0, -0.03), other=(0.0, -0.01))).set_index("variant")
    assert judged.loc["gain", "recommended"] and more.loc["gain", "p_holm"] == pytest.approx(0.07, abs=2e-3)
    assert not more["recommended"].any()


def test_what_remedies_are_judged_on_comes_from_the_tables():
    names = ("no decay", "plain decay")
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
    c = c.assign(loss=c["loss"] + (c["frequency_class"] == "high"))
    # over both classes: confidence 0.5 · 3/4 + 0.7 · 1/4 = 0.55 in one bin, accuracy 0.25; the other bin is calibrated
    r = pd.DataFrame(
        [("low", 0.5, 3, 0.5, 0.0), ("high", 0.5, 1, 0.7, 1.0), ("high", 0.9, 4, 0.95, 0.95)],
        columns=["frequency_class", "confidence_bin", "n_tokens", "confidence", "accuracy"],
    )
    r = pd.concat([r.assign(variant=v, seed=0, split="held-out") for v in names])
    results = Results(totals, b, c, pd.DataFrame(), r, pd.DataFrame(), pd.DataFrame(), {}, {})
    assert tradeoffs.has_remedies(results)
    numbers = tradeoffs.remedy_numbers(results).set_index("variant")
    row = numbers.loc["plain decay"]
    assert (row["train_balanced"], row["heldout_average"], row["heldout_balanced"]) == (2.0, 2.0, 3.0)
    assert (row["train_rarest"], row["heldout_rarest"], row["heldout_low_frequency"]) == (5.0, 6.0, 1.0)
    assert row["heldout_high_frequency"] == 2.0 and row["heldout_ece"] == pytest.approx(0.3 * 4 / 8)
    twice = dataclasses.replace(results, totals=pd.concat([totals, totals]), params={"experiment": "e"})
    with pytest.raises(files.RunError, match="several runs of a seed"):
        tradeoffs.remedy_numbers(twice)


def test_what_plain_decay_changes_at_another_rate_is_measured_from_no_decay():
    regime = load_results(files.PROJECT / "results" / "remedies-regime")
    (said,) = tradeoffs.say_other_rates(regime, tradeoffs.remedy_numbers(regime))
    low = regime.classes.query("frequency_class == 'low' and split == 'held-out'").pivot(
        index="seed", columns="variant", values="loss"
    )
    change = (low["twice the rate"] - low["no decay"]).mean()
    assert (
        said.startswith("At other rates than 0.004")
        and f"low-frequency types {change:+.3f} nats" in said.split("at 0.008")[1]
    )
    assert said.count("low-frequency") == 2  # the two that change λ with the rate are other variants
    onepass = load_results(files.PROJECT / "results" / "remedies-onepass")
    assert tradeoffs.say_other_rates(onepass, tradeoffs.remedy_numbers(onepass)) == []


def test_kinds_of_remedies_are_what_differs_from_plain_decay():
    variants = {
        "plain decay": {"steps": 9, "learning_rate": 0.1, "embedding_decay": "uniform"},
        "no decay": {"steps": 9, "learning_rate": 0.2, "embedding_decay": "uniform"},
        "early stopping": {"steps": 3, "learning_rate": 0.2, "embedding_decay": "uniform"},
        "dropout": {"steps": 9, "learning_rate": 0.2, "embedding_decay": "uniform", "dropout": 0.1},
        "half the rate": {"steps": 9, "learning_rate": 0.05, "embedding_decay": "uniform"},
        "lazy": {"steps": 9, "learning_rate": 0.1, "embedding_decay": "lazy", "loss_weight_exponent": 0.25},
    }
    assert tradeoffs.kinds_of_remedies(variants).to_dict() == {
        "plain decay": "reference", "no decay": "reference", "early stopping": "other regulariser", "half the rate": "optimiser",
        "lazy": "loss and decay by row", "dropout": "other regulariser",
    }  # fmt: skip
