"""Statistics over seeds against numbers that can be computed by hand or by scipy."""

import dataclasses

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
    begun = classes(noise=1e-6).query("seed < 2 or weight_decay < 1")
    assert comparisons.slope_test(begun).iloc[0]["n_seeds"] == 2
    with pytest.raises(ValueError, match="run at all of them"):
        comparisons.slope_test(classes().query("seed == 0 and weight_decay < 1 or seed == 1 and weight_decay == 1"))


def test_findings_say_harm_help_and_doubt():
    frame = pd.concat(
        [classes().assign(regime="r"), classes().assign(regime="r", split="held-out", loss=1.0)], ignore_index=True
    )
    frame.loc[frame["split"] == "held-out", "loss"] -= 0.1 * frame["weight_decay"] * (1 + 0.1 * frame["seed"])
    changes = comparisons.paired(frame, "loss")
    harm, gain = comparisons.findings(changes, comparisons.slope_test(frame), 1.0)
    assert "low-frequency types lose" in harm and "rise faster" in harm and "gain" in gain and "do not rise" in gain
    for asked, used in ((0.7, 0.5), (0.1, 0.5), (5.0, 2.0)):  # of the λ that were run
        assert f"λ 0 → {used:g}: " in comparisons.findings(changes, comparisons.slope_test(frame), asked)[0]


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
    two = {name: getattr(results, name) for name in ("totals", "classes")}
    two = {name: pd.concat([t.assign(variant="a"), t.assign(variant="b", model="n")]) for name, t in two.items()}
    of_two = comparisons.at_weight_decay(dataclasses.replace(results, **two), 0.7)
    assert of_two[["model", "variant"]].drop_duplicates().to_numpy().tolist() == [["m", "a"], ["n", "b"]]
    one = {name: t[(t["variant"] == "a") | (t["weight_decay"] == 0)] for name, t in two.items()}
    assert set(comparisons.at_weight_decay(dataclasses.replace(results, **one), 0.7)["variant"]) == {"a"}


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
    assert first.startswith("a: learning rate 0.2, the largest of 2 tried, 1.000 (one seed) nats")
    assert first.endswith("rate and λ chosen together would be 0.1 and 1, 0.500 against 1.000")
    assert second.startswith("b: learning rate 0.1, 3.000 (one seed) nats") and "together" not in second
    assert comparisons.at_zero(pd.Series({"loss": 1.0, "sd": np.nan})) == "1.000 (one seed)"
    again = comparisons.at_every_rate(kept)
    assert again.totals["variant"].unique().tolist() == ["a, lr 0.2", "b, lr 0.1"] == list(again.params["variants"])
    smaller = totals[:2].assign(variant=["b, lr 0.05", "b, lr 0.2"], average_loss=[2.5, 4.0])
    tables = {t: pd.concat([getattr(again, t), smaller]) for t in TABLES}
    variants = {**again.params["variants"], **{v: {"x": v} for v in smaller["variant"]}}
    anew = comparisons.at_best_rate(dataclasses.replace(again, **tables, params={"variants": variants}))
    assert anew.totals[["variant", "average_loss"]].values.tolist() == [["a", 1.0], ["a", 5.0], ["b", 2.5]]
    tried = pd.DataFrame(anew.provenance.pop("rates"))
    assert tried["variant"].tolist() == ["a, lr 0.1", "a, lr 0.2", "b, lr 0.05", "b, lr 0.1", "b, lr 0.2"]
    assert tried["kept"].tolist() == [False, True, True, False, False] and anew.provenance == {"n_runs": 5}
    worse = tables["totals"].assign(average_loss=9.0)
    with pytest.raises(files.RunError, match=r"^a, lr 0\.1: the best rate at λ = 0, and its runs are gone"):
        comparisons.at_best_rate(dataclasses.replace(again, totals=worse, params={"variants": variants}))
    both = pd.concat([totals, totals.assign(seed=1, average_loss=totals["average_loss"] + 0.4)])
    bracket = totals[4:].assign(variant="b, lr 0.05", average_loss=3.1)  # one seed, better than the mean of two at 0.1
    several = comparisons.rates(dataclasses.replace(results, totals=pd.concat([both, bracket])))
    assert several.loc[several["kept"], "variant"].tolist() == ["a, lr 0.2", "b, lr 0.1"]
    assert "together" not in comparisons.say_rates(several)[1]
    with pytest.raises(files.RunError, match=r"^b, lr 0\.1 and b, lr 0\.05: no seed was run at both"):
        comparisons.rates(dataclasses.replace(results, totals=pd.concat([both, bracket.assign(seed=7)])))
    with pytest.raises(files.RunError, match="do not end in 'lr RATE'"):
        comparisons.split_rate(pd.Series(["a"]))
