"""The closed form against an optimiser, its derivative against differences, and its threshold."""

import numpy as np
import pandas as pd
import pytest

from fairlm_utils.analysis import theory

COUNTS = np.array([100, 50, 20, 10, 4, 1])


@pytest.mark.parametrize("weight_decay", [1e-4, 1e-3, 3e-3])
def test_closed_form_agrees_with_an_optimiser_to_5_decimals(weight_decay):
    found = theory.minimise_objective(COUNTS, weight_decay, dim=8)
    np.testing.assert_allclose(theory.class_loss(COUNTS, weight_decay), found, atol=5e-6)


def test_optimiser_finds_the_collapse_of_the_rarest_class():
    decay = 1.2 / COUNTS.sum() * np.sqrt(5 / 6)  # the class of one sample collapses above 1/N sqrt((K−1)/K)
    assert 1 < theory.collapse_count(decay, 6, COUNTS.sum()) < 4
    found = theory.minimise_objective(COUNTS, decay, dim=8)
    np.testing.assert_allclose(found, theory.class_loss(COUNTS, decay), atol=1e-4)
    assert found[-1] == pytest.approx(np.log(6), abs=1e-4)


def test_a_class_collapses_exactly_at_its_threshold():
    decay, n, k = 3e-4, 10_000, 50
    threshold = theory.collapse_count(decay, k, n)
    losses = theory.class_loss(threshold * np.array([0.999, 1.001]), decay, k, n)
    assert losses[0] == pytest.approx(np.log(k)) and losses[1] < np.log(k)
    assert losses[1] == pytest.approx(np.log(k), rel=0.02)  # the loss is continuous


@pytest.mark.parametrize("weight_decay", [1e-4, 1e-3, 3e-3])
def test_derivative_agrees_with_differences_and_falls_with_the_count(weight_decay):
    step = weight_decay * 1e-6
    difference = (theory.class_loss(COUNTS, weight_decay + step) - theory.class_loss(COUNTS, weight_decay - step)) / (
        2 * step
    )
    derivative = theory.class_loss_derivative(COUNTS, weight_decay)
    np.testing.assert_allclose(derivative, difference, rtol=1e-5)
    assert (np.diff(derivative) > 0).all()  # COUNTS fall, so the derivative rises


def test_order_of_the_classes_is_without_effect():
    order = np.array([3, 0, 5, 1, 4, 2])
    np.testing.assert_allclose(theory.class_loss(COUNTS[order], 1e-3), theory.class_loss(COUNTS, 1e-3)[order])


def test_fit_recovers_the_weight_decay_of_its_own_curve():
    counts = np.array([1.5, 5, 15, 45, 140, 450])
    losses = theory.class_loss(counts, 3e-5, 2000, 30_000)
    fit = theory.fit_weight_decay(counts, losses, 2000, 30_000)
    assert fit.weight_decay == pytest.approx(3e-5, rel=1e-3) and fit.r_squared > 0.9999
    assert theory.log_log_slope(counts[2:], theory.class_loss(counts[2:], 1e-8, 2000, 30_000)) == pytest.approx(
        -0.5, abs=1e-3
    )
    upside_down = theory.fit_weight_decay(counts, losses[::-1], 2000, 30_000)
    assert upside_down.r_squared < 0.2


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: theory.class_loss(COUNTS, 0.0), "λ > 0"),
        (lambda: theory.class_loss(np.array([0, 1]), 0.1), "at least one sample"),
        (lambda: theory.minimise_objective(COUNTS, 1e-3, dim=5), "d ≥ K"),
        (lambda: theory.fit_weight_decay([1, 2], [1, 2], 5, 10), "3 frequency bins"),
    ],
)
def test_impossible_problems_are_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def measured(shape, decays=(0.0, 0.1, 0.3)) -> pd.DataFrame:
    """Bins of two seeds whose loss lies `shape(n_k, effective λ)` above a floor of 0.2, effective λ being 1e-3 of AdamW's."""
    n_types, n_k = np.array([60, 30, 9, 1]), np.array([1.5, 5.0, 15.0, 45.0])
    rows = [
        pd.DataFrame(
            {
                "model": "m", "weight_decay": w, "seed": s, "split": split, "bin_low": [1, 3, 9, 27], "n_types": n_types,
                "n_tokens": n_types * n_k, "floor": 0.2, "loss": 0.2 + shape(n_k, max(w, 1e-3) / 1000, 100, 420.0) + 0.01 * (s - 0.5),
            }
        )
        for w in decays for s in (0, 1) for split in ("training", "held-out")
    ]  # fmt: skip
    return pd.concat(rows, ignore_index=True)


def test_losses_of_the_theory_above_a_floor_are_fitted_exactly():
    assert theory.problem_of(measured(theory.class_loss)) == (100, 420)
    fits, fitted = theory.fit_bins(measured(theory.class_loss))
    assert fits["effective"].tolist() == pytest.approx([1e-6, 1e-4, 3e-4], rel=1e-3)
    assert fits["r_squared"].tolist() == pytest.approx([1, 1, 1]) and fits["slope"].tolist() == pytest.approx(
        [-0.5] * 3, abs=0.04
    )
    assert len(fitted) == 12 and fitted["residual"].abs().max() < 1e-4
    said = theory.say_fits(fits, fitted)
    assert said[0].startswith("The theory's curve has R² ≥ 0.9 at 2 of 2 values of λ > 0 (1.00 at 0.1, 1.00 at 0.3)")
    assert said[0].endswith("), and 1.00 at λ = 0, where the theory has no loss")
    two = theory.say_fits(pd.concat([fits, fits.assign(model="n", r_squared=0.5)]), fitted)[0]
    assert (
        "at 2 of 4 pairs of a model and a λ > 0 (1.00 at m, 0.1, " in two
        and "0.50 at n, 0.3), and 1.00 (m) and 0.50 (n) at λ" in two
    )
    assert (
        "-0.50; the theory's is -0.50" in said[1]
        and said[2].startswith("The effective λ rises with")
        and "+0.000 at n_v ≥ 27" in said[3]
    )


def test_losses_of_another_shape_are_not_said_to_fit_and_bins_below_the_floor_are_left_out():
    rising = measured(lambda n_k, w, k, n: np.where(n_k < 40, 0.05 + n_k / 1000, -0.1))
    fits, fitted = theory.fit_bins(rising)
    assert "R² ≥ 0.9 at 0 of 2" in theory.say_fits(fits, fitted)[0] and fitted["bin_low"].max() == 9
    assert "does not always rise" in theory.say_fits(fits.assign(effective=[1, 3, 2]), fitted)[2]
    elsewhere = theory.say_elsewhere(
        {"well": fits.assign(r_squared=[0.5, 0.95, 0.9]), "ill": fits.assign(r_squared=0.2)[1:]}
    )
    assert "at 2 of 2 (well, 0.50 at λ = 0), 0 of 2 (ill);" in elsewhere
