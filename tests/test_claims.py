"""Verdicts follow from the tables."""

import pandas as pd
import pytest

from fairlm_utils import claims
from fairlm_utils.runs import Results


def results(balanced_at_1=3.0, average_at_1=1.2, held_low_at_1=9.0, weight_decays=(0.0, 0.1, 0.3, 1.0)) -> Results:
    totals, bins, classes = [], [], []
    for seed in (0, 1):
        for w in weight_decays:
            key = {"model": "m", "weight_decay": w, "seed": seed}
            share = {0.0: 0.0, 0.1: 0.02, 0.3: 0.5, 1.0: 1.0}[w]

            def between(a, b, share=share, seed=seed):
                return (a + (b - a) * share) * (1 + 0.01 * seed)

            for split in ("training", "held-out"):
                totals.append(
                    {
                        **key,
                        "split": split,
                        "n_tokens": 10,
                        "average_loss": between(1.0, average_at_1),
                        "token_balanced_loss": between(1.0, balanced_at_1),
                        "token_balanced_accuracy": between(0.99, 0.985),
                    }
                )
                low = between(1.0, balanced_at_1) if split == "training" else between(8.0, held_low_at_1)
                classes += [
                    {**key, "split": split, "frequency_class": "low", "loss": low},
                    {**key, "split": split, "frequency_class": "high", "loss": between(1.0, 1.02)},
                ]
                bins += [
                    {**key, "split": split, "bin": "1–2", "bin_low": 1, "learning_speed": between(0.5, 0.3)},
                    {**key, "split": split, "bin": "9–26", "bin_low": 9, "learning_speed": between(0.9, 0.89)},
                ]
    frames = map(pd.DataFrame, (totals, bins, classes, [], [], [], []))
    return Results(*frames, params={}, provenance={})


def verdicts(r: Results) -> list[str]:
    return claims.claims(r)["verdict"].tolist()


def test_an_experiment_like_the_paper_reproduces_every_claim():
    assert verdicts(results()) == ["reproduced"] * 6 + ["holds"]


def test_verdicts_turn_when_the_numbers_do():
    assert verdicts(results(average_at_1=2.9))[:2] == ["not reproduced", "not reproduced"]
    assert verdicts(results(held_low_at_1=7.0))[-1] == "does not hold"
    assert verdicts(results(balanced_at_1=1.0))[2] == "in part"  # the frequent types still do not pay


def test_a_weight_decay_that_was_not_run_is_said_so():
    table = claims.claims(results(weight_decays=(0.0, 0.1, 0.3)))
    by_claim = table["verdict"].tolist()
    assert by_claim.count(claims.NOT_COVERED) == 6 and by_claim[4] == "reproduced"


def test_numbers_are_means_with_intervals():
    row = claims.claims(results()).iloc[1]
    assert row["ours"].startswith("×3.00 ±") and row["paper"] == "×2.47 against ×1.33"
    assert claims.PAPER_TABLE_1["token_balanced_loss"].pct_change().iloc[-1] == pytest.approx(1.47, abs=0.01)
