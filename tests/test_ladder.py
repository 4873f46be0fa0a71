"""What rungs say of the paper's panels: effects, eras and predictions of experiments whose law is known."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fairlm_utils import params
from fairlm_utils.analysis import ladder, layout, scale
from fairlm_utils.files import PROJECT
from tests.test_scale import NARROW, experiment

RUNGS = scale.rungs({name: experiment(slope=a) for name, a in (("a", 0.3), ("b", 0.4), ("c", 0.35))})


def changed(average: float, low: float, high: float, of_seed: float = 0.0):
    """Two seeds whose training losses λ = 1 changes by these numbers ± `of_seed`."""
    results = experiment()
    totals, classes = results.totals.copy(), results.classes.copy()
    for frame, column, change in ((totals, "average_loss", average), (classes, "loss", {"low": low, "high": high})):
        at = (frame["weight_decay"] == 1) & (frame["split"] == "training")
        by = change if isinstance(change, float) else frame.loc[at, "frequency_class"].map(change)
        base = frame[(frame["weight_decay"] == 0) & (frame["split"] == "training")][column].to_numpy()
        frame.loc[at, column] = base + by + np.where(frame.loc[at, "seed"] == 0, of_seed, -of_seed)
    return replace(results, totals=totals, classes=classes)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ((0.1, 0.2, 0.05), "added loss by count"),
        ((0.1, 0.1, 0.1), "added loss in all types alike"),
        ((0.05, 0.2, -0.1), "re-allocation"),
        ((0.0, 0.2, 0.01), "re-allocation"),
        ((-0.1, -0.05, -0.2), "lower loss"),
        ((0.1, 0.2, 0.05, 0.1), "undecided"),  # over two seeds intervals hold 0
    ],
)
def test_an_effect_is_named_by_what_rises_and_falls(change, expected):
    row = ladder.effects({"x": changed(*change)}, 1.0).iloc[0]
    assert row["effect"] == expected and row[["average", "low", "high"]].tolist() == pytest.approx(change[:3])
    assert row["shift"] == pytest.approx(change[1] - change[2]) and row["excess_average"] == pytest.approx(0.004)
    assert ladder.effects({"x": changed(*change)}, 0.3).empty


def test_the_control_tells_help_to_the_optimiser_apart():
    results = replace(
        experiment(),
        params={"variants": {n: {"steps": 9, "learning_rate": r} for n, r in (("fast", 0.2), ("slow", 0.1))}},
    )
    worse, better = changed(0.1, 0.2, 0.05), changed(-0.1, -0.05, -0.2)
    said = ladder.say_effects(ladder.effects({"slow": worse, "fast": better}, 1.0), results, 1.0)
    assert "-0.100 in fast and by +0.100 in slow; it helps the optimiser at the higher rate alone" in said
    assert "is established in none" in said
    said = ladder.say_effects(ladder.effects({"slow": better, "fast": better}, 1.0), results, 1.0)
    assert "is not seen to help the optimiser at the higher rate alone" in said
    assert "control" not in ladder.say_effects(ladder.effects({"slow": worse}, 1.0), results, 1.0)


def test_table_1_lies_on_the_memorised_side_where_both_were_measured():
    table = ladder.effects({"near": changed(0.1, 0.2, 0.05), "far": changed(0.05, 0.2, -0.1)}, 1.0)
    far = table.assign(excess_average=np.where(table["rung"] == "far", 2.0, 0.004))
    said = ladder.say_effects(far, experiment(), 1.0)
    assert "Re-allocation is seen from 2 nats above the floor (far)" in said and "not because capacity moves" in said
    swapped = table.assign(excess_average=np.where(table["rung"] == "near", 2.0, 0.004))
    assert "does not explain its Table 1" in ladder.say_effects(swapped, experiment(), 1.0)
    assert "is not measured yet" in ladder.say_effects(table, experiment(), 1.0)


def test_what_was_not_run_is_named(monkeypatch, tmp_path):
    shorter = experiment(weight_decays=(0.0, 0.5))
    tables = {
        name: pd.concat(
            [getattr(shorter, name).assign(variant=v) for v in ("10 epochs", "20 epochs")], ignore_index=True
        )
        for name in ("totals", "bins", "classes", "counts")
    }
    of = {"memorised": experiment(), str(tmp_path): replace(shorter, **tables)}
    monkeypatch.setattr(ladder, "load_results", of.get)
    table, said = ladder.effects_of(str(tmp_path), "memorised", 1.0)
    assert table["rung"].tolist() == ["memorised"] and said.endswith("Not run at this λ yet: 10 epochs, 20 epochs.")
    assert ladder.effects_of("results/none", "", 1.0)[1].startswith("Not run yet: make results")


def test_points_of_a_power_law_lie_on_its_line():
    table = ladder.ratios(RUNGS)
    assert table["nearest"].all()
    points = ladder.by_count({"a": RUNGS["a"]}, table[table["rung"] == "a"])
    assert points["n_train"].tolist() == pytest.approx(NARROW["n_train"].tolist())
    expected = 0.2 * NARROW["n_train"] ** -0.35  # seeds at 0.3 and 0.4
    assert points["mean"].tolist() == pytest.approx(expected.tolist()) == points["fitted"].tolist()


def test_an_era_keeps_a_share_of_the_added_loss():
    tenth = experiment(rise=0.02)
    table = ladder.eras(tenth, experiment())
    assert table[["weight_decay", "left", "left_low", "left_high"]].to_numpy().tolist() == [
        pytest.approx([1, *[0.1] * 3])
    ]
    assert "leaves 10% [10%, 10%] at λ = 1" in ladder.say_eras(table)
    assert ladder.eras_of("results/none", "")[1] == "Not run yet: make results PARAMS=params/none.yaml."


@pytest.fixture(scope="module")
def found():
    counts = layout.read_tables(PROJECT / "results" / "paper-layout")["counts"]
    return ladder.predictions(scale.rung_slopes(RUNGS), counts, ladder.panel_files()), counts


def test_a_panel_is_predicted_by_its_own_counts(found):
    table, counts = found
    assert table["panel"].tolist()[0] == "openelm-270m-imdb"
    assert set(table["panel"]) == {params.read(f)["experiment"] for f in ladder.panel_files()}
    table = table.set_index("panel")
    first = counts.query("corpus == 'imdb' and layout == 'first'")
    slope = table["slope"].iloc[0]
    assert slope == pytest.approx(0.4) and table["n_rungs"].eq(3).all()  # 0.35, 0.45 and 0.4
    expected = scale.count_ratio(first["n_train"], slope, first["n_types"])
    assert table.loc["openelm-270m-imdb", "ratio"] == pytest.approx(expected) == table.loc["qwen2-0.5b-imdb", "ratio"]
    assert table.loc["openelm-270m-imdb-packed", "ratio"] != pytest.approx(expected)


def test_an_interval_holds_both_tokenizers_of_a_panel(found):
    table, counts = found
    row = table.set_index("panel").loc["openelm-3b-imdb-xl"]
    ends = [
        scale.count_ratio(c["n_train"], [row["slope_low"], row["slope"], row["slope_high"]], c["n_types"])
        for _, c in counts.query("corpus == 'imdb-xl' and layout == 'first'").groupby("tokenizer_reviews")
    ]
    low, middle, high = np.transpose(ends)
    assert (row["low"], row["high"]) == pytest.approx((min(low), max(high))) and len(low) == 2
    assert row["ratio"] == pytest.approx(np.sqrt(np.prod(middle)))


def test_a_rung_that_was_not_memorised_is_left_out_and_said(found):
    _, counts = found
    slopes = scale.rung_slopes({**RUNGS, **scale.rungs({"d": experiment(slope=0.9, above=0.02)})})
    table = ladder.predictions(slopes, counts, ladder.panel_files()[:1])
    assert table["slope"].item() == pytest.approx(0.4)
    assert "(left out, not memorised: d)" in ladder.say_predictions(table, slopes)


#: Slopes that do not fall with size.
SAME = pd.DataFrame({"n_targets": [1000, 2000, 4000], "below": [0.3, 0.5, 0.4], "beyond": 0.5, "memorised": True})


def test_a_slope_that_falls_as_texts_grow_weakens_the_verdict(found):
    table, counts = found
    first = counts.query("corpus == 'imdb' and layout == 'first'")
    sizes = ladder.by_size(RUNGS, scale.rung_slopes(RUNGS))
    assert sizes["below"].tolist() == sizes["beyond"].tolist() and set(sizes["rung"]) == set(RUNGS)
    assert sizes["n_targets"].unique().tolist() == [int(NARROW.eval("n_train * n_types").sum())]
    falls = SAME.assign(below=[0.5, 0.3, 0.0], memorised=[True, True, False])
    said = ladder.say_by_size(falls, first)
    assert (
        "from 0.50 at 1,000 targets to 0.00 at 4,000, not memorised (rank correlation" in said
        and "-1.00 over 3" in said
    )
    assert f"a ratio of {scale.bent_ratio(first['n_train'], 0.0, 0.5, first['n_types']):.1f}" in said
    assert said.startswith("The law tends to weaken with size.") and said.endswith("would need more than counts.")
    steep = ladder.say_by_size(SAME.assign(beyond=1.0), first)
    assert steep.startswith("The law is not seen to weaken with size.") and steep.endswith("need no more than counts.")
    assert "tends to fall as texts grow" in ladder.verdict(table, falls) and "tends to fall" not in ladder.verdict(
        table, SAME
    )


def test_a_slope_is_said_to_move_with_what_a_variant_changed(monkeypatch, tmp_path):
    def stored(folder):
        return {"base": experiment(slope=0.4), "steeper": experiment(slope=0.5), "unfinished": experiment(above=0.02)}[
            folder.name
        ]

    monkeypatch.setattr(ladder, "load_results", lambda folder: stored(Path(folder)))
    (tmp_path / "steeper").mkdir()
    table, said = ladder.moved_of(str(tmp_path / "steeper"), "base")
    assert table[["n_seeds", "slope", "moved", "moved_low", "moved_high"]].to_numpy().tolist() == [
        pytest.approx([2, 0.55, 0.1, 0.1, 0.1])  # seeds at + 0 and + 0.1 of either
    ]
    assert "whose slope is 0.45" in said and "+0.10 [+0.10, +0.10]" in said
    (tmp_path / "unfinished").mkdir()
    assert "(0.020)" in ladder.moved_of(str(tmp_path / "unfinished"), "base")[1]
    assert ladder.moved_of("results/none", "")[1] == "Not run yet: make results PARAMS=params/none.yaml."


def test_rungs_are_tested_against_each_other():
    table = ladder.left_out(scale.rung_slopes(RUNGS))
    assert table["slope"].tolist() == pytest.approx([0.35, 0.45, 0.4]) and table["within"].all()
    far = scale.rungs(
        {name: experiment(slope=a, slopes_of_seeds=(0.0, 0.0)) for name, a in zip("abc", (0.4, 0.41, 0.8), strict=True)}
    )
    assert ladder.left_out(scale.rung_slopes(far))["within"].tolist() == [True, True, False]


def test_sentences_follow_the_numbers(found):
    table, _ = found
    first = table.iloc[:1]
    assert "may need no other explanation" in ladder.verdict(
        first.assign(low=5.0, high=6.0, bent_low=4.0, bent_high=6.0), SAME
    )
    assert "says little" in ladder.verdict(first.assign(low=2.0, high=9.0, bent_low=4.0, bent_high=6.0), SAME)
    assert "does not account for it" in ladder.verdict(
        first.assign(low=5.0, high=6.0, bent_low=7.0, bent_high=9.0), SAME
    )
    assert "does not account for it" in ladder.verdict(first.assign(low=2.0, high=3.0), SAME)
    assert "openelm-270m-imdb below 2.00 or above 3.00" in ladder.say_refuted(first.assign(low=2.0, high=3.0))
    slopes = scale.rung_slopes(RUNGS)
    wide = first.assign(low=2.0, high=9.0, bent_low=4.0, bent_high=9.0)
    assert "do not pin" in ladder.say_predictions(wide, slopes)
    assert "do not pin" not in ladder.say_predictions(first.assign(low=5.0, high=6.0), slopes)
    ratios = ladder.ratios(RUNGS)
    assert "in 3 pairs of rung and λ" in ladder.say_ratios(ratios).lower() and "a 0.35 at λ = 1" in ladder.say_ratios(
        ratios
    )
    said = ladder.say_by_count(RUNGS, ratios)
    assert "a 0.35 [" in said and "(0.35 below a count of 27)" in said and "in 0 of 3." in said


def test_published_predictions_are_told_from_others(found, tmp_path):
    table, _ = found
    file = tmp_path / "predictions.csv"
    assert "Not published yet" in ladder.say_published(table, file)
    table.assign(made="2026-11-26").to_csv(file, index=False)
    assert ladder.say_published(table, file) == "Published on 2026-11-26, results/scale/predictions.csv: these numbers."
    assert "other numbers" in ladder.say_published(table.assign(high=table["high"] * 1.1), file)


def test_every_panel_has_a_published_prediction():
    known = pd.read_csv(PROJECT / "results" / "scale" / "predictions.csv")
    assert set(known["panel"]) == {params.read(f)["experiment"] for f in ladder.panel_files()}
    assert (known["low"] < known["ratio"]).all() and (known["ratio"] < known["high"]).all()
    assert known["made"].str.fullmatch(r"\d{4}-\d\d-\d\d").all() and (known["n_rungs"] >= 2).all()
