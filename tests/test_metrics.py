"""Definitions against tables that can be computed by hand."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fairlm_utils import frequency
from fairlm_utils.analysis import metrics


@pytest.fixture
def table() -> pd.DataFrame:
    """Four types: frequent, rare, once, never evaluated."""
    return pd.DataFrame(
        {
            "token_id": range(4),
            "token": list("abcd"),
            "n_train": [90, 3, 1, 0],
            "n_eval": [90, 9, 1, 0],
            "loss": [0.1, 1.0, 6.0, np.nan],
            "accuracy": [1.0, 0.5, 0.0, np.nan],
            "top5_accuracy": [1.0, 0.5, 0.0, np.nan],
            "learning_speed": [0.9, 0.5, 0.1, np.nan],
        }
    )


def test_totals_by_hand(table):
    t = metrics.totals(table)
    assert t["n_types"] == 3 and t["n_tokens"] == 100
    assert t["average_loss"] == pytest.approx((9 + 9 + 6) / 100)
    assert t["token_balanced_loss"] == pytest.approx(7.1 / 3)
    assert t["average_accuracy"] == pytest.approx((90 + 4.5) / 100)
    assert t["token_balanced_accuracy"] == pytest.approx(0.5)
    assert t["average_perplexity"] == pytest.approx(np.exp(0.24))
    assert t["token_balanced_perplexity"] == pytest.approx(np.exp(7.1 / 3))


def test_bins_by_hand(table):
    bins = metrics.by_bin(table).set_index("bin")
    assert list(bins.index) == ["1–2", "3–8", "81–242"]
    assert bins.loc["3–8", "loss"] == 1.0 and bins.loc["81–242", "n_tokens"] == 90
    assert bins["bin_low"].tolist() == [1, 3, 81]


@given(
    arrays(np.int64, 30, elements=st.integers(0, 10_000)),
    arrays(np.float64, 30, elements=st.floats(0, 20)),
    arrays(np.int64, 30, elements=st.integers(0, 50)),
)
def test_bins_and_classes_add_up_to_the_totals(n_train, loss, n_eval):
    if not n_eval.any() or not n_train.any():
        return
    frame = pd.DataFrame(
        {
            "n_train": n_train,
            "n_eval": n_eval,
            "loss": loss,
            "accuracy": 0.0,
            "top5_accuracy": 0.0,
            "learning_speed": 0.0,
        }
    )
    bins, total = metrics.by_bin(frame), metrics.totals(frame)
    assert bins["n_tokens"].sum() == total["n_tokens"] and bins["n_types"].sum() == total["n_types"]
    assert (bins["n_tokens"] * bins["loss_occurrences"]).sum() / total["n_tokens"] == pytest.approx(
        total["average_loss"]
    )
    assert (bins["n_types"] * bins["loss"]).sum() / total["n_types"] == pytest.approx(total["token_balanced_loss"])
    assert metrics.by_class(frame, 95)["n_types"].sum() == total["n_types"]


@given(st.integers(0, 3**30))
def test_every_count_lies_in_its_bin(count):
    k = int(frequency.bin_index(np.array([count]))[0])
    low = frequency.bin_low(k)
    assert low <= count < (3 ** (k + 1) if k >= 0 else 1)
    assert frequency.bin_label(k).split("–")[0].replace(",", "") == str(low)


def test_bins_refuse_negative_counts():
    with pytest.raises(ValueError, match="negative"):
        frequency.bin_index(np.array([-1]))


def test_low_frequency_is_at_or_below_the_percentile_of_occurring_types():
    counts = np.array([0, 1, 1, 2, 100])
    assert frequency.low_frequency(counts, 75).tolist() == [True, True, True, True, False]
    with pytest.raises(ValueError, match="no token type"):
        frequency.low_frequency(np.zeros(3), 95)


def speed(losses, counts=None, vocab_size=4, steps=None):
    losses = np.array(losses, dtype=float)[:, None]
    counts = np.ones_like(losses) if counts is None else np.array(counts, dtype=float)[:, None]
    steps = np.arange(1, len(losses) + 1) * 10 if steps is None else np.array(steps)
    return metrics.learning_speed(steps, counts, losses * counts, vocab_size)[0]


def test_learning_speed_by_hand():
    # from log V at 0 to 0 at step 5 (middle of the window): a triangle of area 5/2, then 0 until step 20
    assert speed([0.0, 0.0]) == pytest.approx(1 - 2.5 / 20)
    assert speed([np.log(4)] * 3) == pytest.approx(0.0)
    assert speed([50.0] * 3) == pytest.approx(0.0)  # losses above a uniform prediction count as one
    assert np.isnan(speed([0.0, 0.0], counts=[0, 0]))


def test_learning_speed_bridges_windows_without_the_type():
    assert speed([1.0, 0.7, 0.4], counts=[1, 0, 1]) == pytest.approx(speed([1.0, 0.7, 0.4]))


@given(arrays(np.float64, 6, elements=st.floats(0, 10)), st.integers(2, 1000))
def test_learning_speed_lies_between_0_and_1_and_falls_with_the_loss(losses, vocab_size):
    value = speed(losses, vocab_size=vocab_size)
    assert -1e-12 <= value <= 1 and speed(losses + 0.1, vocab_size=vocab_size) <= value + 1e-12


def test_learning_curves_average_over_types_seen_in_the_window():
    counts = np.array([[2, 0, 5], [1, 1, 5]])
    curves = metrics.learning_curves(
        np.array([10, 20]), counts, np.array([[4.0, 0, 5], [1.0, 3.0, 5]]), np.array([1, 2, 9])
    )
    rare = curves[curves["bin"] == "1–2"]
    assert rare["loss"].tolist() == [2.0, 2.0] and rare["step"].tolist() == [10, 20]


def runs_frame():
    return pd.DataFrame(
        {
            "model": "m",
            "weight_decay": [0.0, 0.0, 1.0, 1.0],
            "seed": [0, 1, 0, 1],
            "split": "training",
            "loss": [1.0, 3.0, 2.0, 9.0],
        }
    )


def test_over_seeds_gives_the_student_t_interval():
    row = metrics.over_seeds(runs_frame(), "loss").set_index("weight_decay").loc[0.0]
    assert row["mean"] == 2.0 and row["n_seeds"] == 2 and row["sd"] == pytest.approx(np.sqrt(2))
    assert row["high"] - row["mean"] == pytest.approx(12.7062, rel=1e-4)  # t with 1 degree of freedom, times sd/√2 = 1


def test_one_seed_has_no_interval():
    one = metrics.over_seeds(runs_frame().query("seed == 0"), "loss")
    assert one[["sd", "low", "high"]].isna().all(axis=None) and (one["n_seeds"] == 1).all()


def test_changes_are_paired_by_seed():
    changed = metrics.changes(runs_frame(), "loss").set_index("seed")
    assert changed["difference"].to_dict() == {0: 1.0, 1: 6.0} and changed["ratio"].to_dict() == {0: 2.0, 1: 3.0}
    one = metrics.changes(runs_frame().query("not (seed == 1 and weight_decay == 0)"), "loss")
    assert one["seed"].tolist() == [0]  # the other seed has no partner
    with pytest.raises(ValueError, match="no run has a partner"):
        metrics.changes(runs_frame().query("weight_decay != 0 or seed == 2"), "loss")


def test_table_1_is_mean_and_sd():
    table = metrics.table_1(runs_frame().rename(columns={"loss": "average_loss"}), ["average_loss"])
    assert table["average_loss"].tolist() == ["2.0000 ± 1.4142", "5.5000 ± 4.9497"] and table["n_seeds"].tolist() == [
        2,
        2,
    ]


def test_calibration_by_group_by_hand(table):
    """Two confidence bins: of the rare type half are said with 0.25 and right half the time, the rest 0.75 and never."""
    calibration = np.zeros((4, 2, 3))
    calibration[0] = [[0, 0, 0], [90, 81.0, 90]]
    calibration[1] = [[4, 1.0, 2], [4, 3.0, 0]]
    bins = metrics.by_bin(table, calibration).set_index("bin")
    assert bins.loc["81–242", "ece"] == pytest.approx(0.1) and bins.loc["81–242", "confidence"] == pytest.approx(0.9)
    assert bins.loc["3–8", "ece"] == pytest.approx((1 + 3) / 8) and np.isnan(bins.loc["1–2", "ece"])
    curve = metrics.reliability(table, calibration, 50).set_index(["frequency_class", "confidence_bin"])
    assert curve.loc[("low", 0.0), "accuracy"] == 0.5 and curve.loc[("low", 0.5), "confidence"] == 0.75
    assert curve.loc[("high", 0.5), "n_tokens"] == 90 and ("high", 0.0) not in curve.index
    assert np.isnan(metrics.expected_calibration_error(np.zeros((2, 3))))


def test_kinds_add_up_to_the_totals(table):
    kinds = metrics.by_kind(table.assign(kind=["number", "word piece", "word piece", "special"])).set_index("kind")
    assert list(kinds.index) == ["number", "word piece"] and kinds["n_tokens"].sum() == 100
    assert kinds.loc["word piece", "loss"] == 3.5


def test_baselines_are_the_floor_of_training_text_and_chance_lines_of_held_out_text():
    """Two λ and two seeds share them; the bin of types that are seen in held-out text alone has no floor."""
    rows = [("training", "1–2", 1, 0.3), ("held-out", "0", 0, np.nan), ("held-out", "1–2", 1, np.nan)]
    bins = pd.DataFrame(
        {
            "weight_decay": wd,
            "seed": seed,
            "split": s,
            "bin": b,
            "bin_low": n,
            "loss": 9.0,
            "floor": f,
            "unigram": 5.0 - n,
        }
        for wd in (0.0, 1.0)
        for seed in (0, 1)
        for s, b, n, f in rows
    )
    totals = bins[["weight_decay", "seed", "split"]].drop_duplicates().assign(chance=7.0)
    found = metrics.baselines(bins, totals)[["split", "bin", "baseline", "mean"]]
    assert sorted(found.itertuples(index=False, name=None)) == [
        ("held-out", "0", "uniform guess", 7.0),
        ("held-out", "0", "unigram", 5.0),
        ("held-out", "1–2", "uniform guess", 7.0),
        ("held-out", "1–2", "unigram", 4.0),
        ("training", "1–2", "floor", 0.3),
    ]


def test_totals_of_a_table_without_losses_are_those_of_what_it_has():
    table = pd.DataFrame({"n_train": [3, 1, 0], "n_eval": [3, 1, 0], "floor": [0.5, 0.1, np.nan]})
    found = metrics.totals(table)
    assert found["average_floor"] == pytest.approx(0.4) and found["token_balanced_floor"] == pytest.approx(0.3)
    assert found["chance"] == pytest.approx(np.log(3)) and not any("loss" in name for name in found)
