"""Slopes, ratios and regimes of experiments whose power law is known, and what they predict."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from fairlm_utils import frequency, params
from fairlm_utils.analysis import scale
from fairlm_utils.analysis.claims import PAPER_TABLE_1
from fairlm_utils.analysis.results import Results
from fairlm_utils.experiment import cost
from fairlm_utils.params import TrainingParams

#: Training counts and how many types have each: one count per bin, so that the bins lose nothing.
NARROW = pd.DataFrame({"n_train": [1, 4, 16, 64], "n_types": [60, 30, 8, 2]})
#: Counts as wide as the paper's, R(0.42) = 5.7.
WIDE = pd.DataFrame({"n_train": [1, 9, 81, 729, 6561], "n_types": [178, 300, 300, 120, 10]})


def experiment(
    slope=0.5,
    counts=NARROW,
    rise=0.2,
    weight_decays=(0.0, 1.0),
    slopes_of_seeds=(0.0, 0.1),
    above=0.004,
    heldout=(3.0, 2.9),
) -> Results:
    """Tables of runs that lie `above` a floor of 0.05 nats at λ = 0, to which λ adds rise · λ · n_v^−(slope + that of the seed)."""
    n, m = counts["n_train"].to_numpy(), counts["n_types"].to_numpy()
    low = frequency.low_frequency(np.repeat(n, m), 95)[np.cumsum(m) - 1]
    rows: dict[str, list[dict]] = {"totals": [], "bins": [], "classes": []}
    for seed, of_seed in enumerate(slopes_of_seeds):
        for w in weight_decays:
            key = {"model": "qwen2-tiny", "weight_decay": w, "seed": seed, "split": "training"}
            loss = 0.05 + above + rise * w * n ** -(slope + of_seed)
            speed = 0.5 - w * rise * n**-0.5
            rows["totals"] += [
                {
                    **key,
                    "n_train_tokens": n @ m,
                    "chance": np.log(1029),
                    "average_loss": loss @ (n * m) / (n @ m),
                    "token_balanced_loss": loss @ m / m.sum(),
                    "average_floor": 0.05,
                    "token_balanced_floor": 0.05,
                    "token_balanced_accuracy": 0.98 - 0.001 * w,
                    "token_balanced_floor_accuracy": 0.985,
                    "token_balanced_perplexity": 1.1,
                },
                {
                    **key,
                    "split": "held-out",
                    "n_train_tokens": n @ m,
                    "chance": np.log(1029),
                    "average_loss": heldout[w > 0],
                    "token_balanced_loss": heldout[w > 0],
                    "average_unigram": 5.0,
                },
            ]
            for i in range(len(n)):
                b = frequency.bin_index([n[i]])[0]
                bin = {
                    "bin": frequency.bin_label(b),
                    "bin_low": frequency.bin_low(b),
                    "n_types": m[i],
                    "learning_speed": speed[i],
                }
                rows["bins"].append({**key, **bin, "loss": loss[i]})
            for name, of in (("low", low), ("high", ~low)):
                rows["classes"].append({**key, "frequency_class": name, "loss": np.average(loss[of], weights=m[of])})
                change = w * (0.3 if name == "low" else 0.1) + 0.01 * seed * w
                rows["classes"].append({**key, "split": "held-out", "frequency_class": name, "loss": 3 + change})
    frames = {name: pd.DataFrame(table) for name, table in rows.items()}
    empty = pd.DataFrame()
    settings = {
        "corpus": "python-docs",
        "steps": 100,
        "batch_size": max(1, round(50 * (n @ m) / 63 / 100)),  # some 50 epochs
        "context": 64,
        "learning_rate": 0.004,
        "lr_schedule": "constant",
        "warmup_steps": 0,
    }
    return Results(
        **frames, kinds=empty, reliability=empty, curves=empty, counts=counts, params=settings, provenance={}
    )


def test_the_ratio_follows_from_the_counts_alone():
    n = np.repeat(NARROW["n_train"], NARROW["n_types"]).to_numpy(dtype=float)
    for a in (0.0, 0.42, 1.0):
        added = n**-a  # balanced mean over types, average over occurrences
        expected = added.mean() / ((n * added).sum() / n.sum())
        assert scale.count_ratio(n, a) == pytest.approx(expected)
        assert scale.count_ratio(NARROW["n_train"], a, NARROW["n_types"]) == pytest.approx(expected)
    with pytest.raises(ValueError, match="n_v ≥ 1"):
        scale.count_ratio([0, 3], 0.5)
    with pytest.raises(ValueError, match="no slope gives a ratio of 9"):
        scale.implied_slope([1, 4], 9)


def test_a_slope_needs_three_bins_that_rose_and_weighs_bins_by_their_types():
    with pytest.raises(ValueError, match="at least 3 frequency bins whose loss λ raises, and 2 of 3"):
        scale.fit_slope([1, 4, 16], [0.4, 0.2, -0.1], [5, 5, 5])
    x, y = np.log([1, 4, 16, 64]), np.log([0.4, 0.3, 0.1, 0.09])
    fit = scale.fit_slope(np.exp(x), np.exp(y), [9, 4, 2, 1])
    assert fit["slope"] == pytest.approx(-np.polyfit(x, y, 1, w=np.sqrt([9, 4, 2, 1]))[0])
    assert 0.9 < fit["r_squared"] < 1


def test_slopes_of_seeds_are_found_with_student_intervals():
    row = scale.ratios(experiment(slope=0.4)).iloc[0]  # seeds at 0.4 and 0.5
    half = stats.t.ppf(0.975, 1) * np.std([0.4, 0.5], ddof=1) / np.sqrt(2)
    assert row["slope"] == pytest.approx(0.45) and row["slope_low"] == pytest.approx(0.45 - half)
    assert row["r_squared"] == pytest.approx(1) and row["n_bins"] == 4


def test_the_measured_ratio_is_what_the_counts_predict_where_the_power_law_holds():
    row = scale.ratios(experiment(slopes_of_seeds=(0.0, 0.0))).iloc[0]
    expected = scale.count_ratio(NARROW["n_train"], 0.5, NARROW["n_types"])
    assert row["ratio"] == pytest.approx(expected) and row["predicted"] == pytest.approx(expected)
    assert row["hidden"] == pytest.approx(1 - 1 / expected) and row["low"] == pytest.approx(row["high"])
    two = scale.ratios(experiment(slope=0.4)).iloc[0]
    logs = np.log(scale.count_ratio(NARROW["n_train"], [0.4, 0.5], NARROW["n_types"]))
    half = stats.t.ppf(0.975, 1) * logs.std(ddof=1) / np.sqrt(2)
    assert np.log([two["ratio"], two["low"], two["high"]]) == pytest.approx(
        [logs.mean(), logs.mean() - half, logs.mean() + half]
    )


def test_where_the_added_loss_does_not_rise_there_is_no_ratio_and_no_slope():
    row = scale.ratios(experiment(rise=-0.01)).iloc[0]
    assert row[["ratio", "low", "slope", "r_squared", "predicted"]].isna().all() and row["added_average"] < 0
    assert scale.ratios(experiment(weight_decays=(0.0,))).empty


def test_local_slopes_show_where_the_power_law_flattens():
    results = experiment(slopes_of_seeds=(0.0, 0.0, 0.0))
    assert scale.local_slopes(results)["mean"].tolist() == pytest.approx([0.5] * 3)
    bins = results.bins.copy()
    lowest, at_one = bins["bin_low"] == 1, bins["weight_decay"] == 1
    bins.loc[lowest & at_one, "loss"] = bins.loc[(bins["bin_low"] == 3) & at_one, "loss"].to_numpy()
    table = scale.local_slopes(replace(results, bins=bins)).set_index("bin")
    assert table["mean"].tolist() == pytest.approx([0, 0.5, 0.5])
    assert table["flat"].tolist() == [True, False, False]


def test_counts_are_those_of_the_variant():
    one, other = experiment(slopes_of_seeds=(0.0, 0.0)), experiment(slopes_of_seeds=(0.0, 0.0), counts=WIDE)

    def both(name: str) -> pd.DataFrame:
        return pd.concat([getattr(r, name).assign(variant=v) for r, v in ((one, "narrow"), (other, "wide"))])

    together = replace(one, totals=both("totals"), bins=both("bins"), counts=both("counts"))
    table = scale.ratios(together).set_index("variant")
    assert table.loc["wide", "predicted"] == pytest.approx(scale.count_ratio(WIDE["n_train"], 0.5, WIDE["n_types"]))
    assert table["slope"].tolist() == pytest.approx([0.5, 0.5])


def predict(*slopes: float, above: float = 0.004) -> dict[str, float]:
    table = scale.rung_slopes(scale.rungs({f"rung {a}": experiment(slope=a, above=above) for a in slopes}))
    return scale.predict_ratio(table, WIDE["n_train"], WIDE["n_types"])


def test_a_prediction_carries_what_rungs_and_seeds_differ_by():
    found = predict(0.35, 0.4, 0.3)  # seeds of each at + 0 and + 0.1
    sd = np.sqrt(0.05**2 * (1 + 1 / 3) + 0.1**2 / 2)
    half = stats.t.ppf(0.975, 2) * sd
    assert (found["slope"], found["slope_low"], found["n_rungs"]) == pytest.approx((0.4, 0.4 - half, 3))
    assert found["high"] == pytest.approx(scale.count_ratio(WIDE["n_train"], 0.4 + half, WIDE["n_types"]))
    assert found["low"] < found["ratio"] < found["high"]


def test_a_prediction_takes_memorised_rungs_alone_and_more_than_one():
    with pytest.raises(ValueError, match=r"not memorised: .*rung 0.3 \(0.020\)"):
        predict(0.3, 0.4, above=0.02)
    with pytest.raises(ValueError, match="at least two rungs, and there are 1"):
        predict(0.4)


def test_a_law_that_bends_is_fitted_and_predicts_by_its_two_slopes():
    n = np.array([1.0, 4, 12, 40, 120, 400])
    law = np.where(n < 27, (n / 27) ** -0.3, (n / 27) ** -0.7)
    assert scale.fit_bend(n, 0.2 * law, [9, 5, 3, 2, 1, 1]) == pytest.approx({"below": 0.3, "beyond": 0.7})
    assert scale.fit_bend(np.append(n, 900), [*law, -1.0], 1) == pytest.approx(
        {"below": 0.3, "beyond": 0.7}
    )  # left out
    added, m = law / law.sum(), np.array([9, 5, 3, 2, 1, 1])
    assert scale.bent_ratio(n, 0.3, 0.7, m) == pytest.approx((m @ added / m.sum()) / ((m * n) @ added / (m @ n)))
    for few in (n[:4], n[[0, 1, 2]]):
        with pytest.raises(ValueError, match="a bend needs 4 bins"):
            scale.fit_bend(few, few**-0.5, 1)


def test_where_one_slope_holds_or_no_bend_is_known_both_laws_predict_alike():
    found = predict(0.35, 0.4, 0.3)
    ratios = [np.log(scale.count_ratio(WIDE["n_train"], a, WIDE["n_types"])) for a in (0.35, 0.45, 0.4, 0.5, 0.3, 0.4)]
    assert found["bent"] == pytest.approx(np.exp(np.mean(ratios))) and found["bent"] == pytest.approx(
        found["ratio"], 0.02
    )
    assert found["bent_low"] < found["bent"] < found["bent_high"]


def curved(*rises: float) -> Results:
    """One seed whose balanced loss rises by `rises` at λ = 1, 2, …, with slope 0.2 at λ = 1 and 0.3 more at each λ beyond."""
    n, m = (NARROW[c].to_numpy() for c in ("n_train", "n_types"))
    plain = experiment(weight_decays=(0.0, *range(1, len(rises) + 1)), slopes_of_seeds=(0.0,))
    bins, totals = plain.bins.copy(), plain.totals.copy()
    for w, rise in enumerate(rises, 1):
        shape = n ** -(0.2 + 0.3 * (w - 1))
        bins.loc[bins["weight_decay"] == w, "loss"] = 0.054 + rise * shape / (shape @ m / m.sum())
        at = (totals["weight_decay"] == w) & (totals["split"] == "training")
        totals.loc[at, "token_balanced_loss"] = 0.054 + rise
    return replace(plain, bins=bins, totals=totals)


def test_slopes_of_rungs_are_compared_at_the_same_rise():
    """Half way in the logarithm between two λ that bracket it, else the nearest comparable λ, else none."""
    paper = PAPER_TABLE_1["token_balanced_loss"].diff().iloc[-1]
    assert pytest.approx(paper) == scale.PAPER_RISE
    rises = {"bracketed": (0.097 / 4, 0.097 * 4), "below": (0.01, 0.05), "none": (0.001, 0.01), "above": (0.2, 0.9)}
    table = scale.rung_slopes(scale.rungs({name: curved(*r) for name, r in rises.items()})).set_index("rung")
    assert table["slope"].tolist() == pytest.approx([0.35, 0.5, np.nan, 0.2], nan_ok=True)
    assert table["rise"].tolist() == pytest.approx([0.097, 0.05, np.nan, 0.2], nan_ok=True)
    assert table["memorised"].all()


def test_a_rung_is_a_model_and_variant_with_a_run_at_0():
    one, other = experiment(), experiment(counts=WIDE, weight_decays=(1.0,))
    assert list(scale.rungs({"a": one, "b": other})) == ["a"]

    def both(name: str) -> pd.DataFrame:
        tables = ((one, "narrow"), (experiment(counts=WIDE), "wide"))
        return pd.concat([getattr(r, name).assign(variant=v) for r, v in tables], ignore_index=True)

    together = replace(one, **{name: both(name) for name in ("totals", "bins", "classes", "counts")})
    found = scale.rungs({"c": together})
    assert list(found) == ["c narrow", "c wide"] and found["c wide"].counts.equals(found["c wide"].counts[WIDE.columns])
    assert scale.ratios(found["c wide"])["predicted"].item() == pytest.approx(
        scale.ratios(experiment(counts=WIDE))["predicted"].item()
    )


def test_the_sheet_says_what_sets_an_experiment_beside_others():
    table = cost.sheet(experiment(weight_decays=(0.0, 1.0, 2000.0), slopes_of_seeds=(0.0, 0.0))).set_index(
        "weight_decay"
    )
    n_targets = (NARROW["n_train"] * NARROW["n_types"]).sum()
    epochs = 100 / 3  # seven blocks, three to a step: the third step of an epoch has one
    row = table.loc[1.0]
    assert row["tokens_per_type"] == n_targets / 100 and row["epochs"] == pytest.approx(epochs)
    assert row["decay_sum"] == pytest.approx(0.004 * 100)  # a constant rate
    assert row["tau_epochs"] == pytest.approx(1 / 0.004 / 100 * epochs)
    assert (row["excess_average"], row["excess_balanced"]) == pytest.approx((0.004, 0.004))
    assert row["count_ratio"] == pytest.approx(scale.count_ratio(NARROW["n_train"], 0.5, NARROW["n_types"]))
    assert row["heldout_minus_chance"] == pytest.approx(2.9 - np.log(1029))
    assert row["heldout_minus_unigram"] == pytest.approx(-2.1)
    assert table["regime"].tolist() == ["memorised", "memorised", "forgetting"]
    assert row["parameters_per_target"] == pytest.approx(427_776 / n_targets)  # as 02 prints for this vocabulary


def test_the_time_scale_of_decay_is_in_epochs():
    p = TrainingParams(weight_decay=0.5, learning_rate=0.004, steps=1000)
    assert params.time_scale(p, 4.0) == pytest.approx(500 / 250)  # 500 steps, of which 250 are an epoch
    assert params.time_scale(p.model_copy(update={"weight_decay": 0.0}), 4.0) == float("inf")
    assert np.isnan(params.time_scale(p.model_copy(update={"weight_decay_form": "l2"}), 4.0))


def test_a_variant_without_a_run_at_0_is_measured_from_no_decay():
    r = experiment()
    plain = r.totals["weight_decay"] > 0
    variants = replace(r, totals=r.totals.assign(variant=np.where(plain, "plain decay", "no decay")))
    assert scale.regimes(variants)["excess_average"].tolist() == pytest.approx([0.004, 0.004])
    nothing = replace(r, totals=r.totals[plain])
    assert (
        scale.regimes(nothing)["excess_average"].isna().all()
        and scale.regimes(nothing)["regime"].item() == "several epochs"
    )
