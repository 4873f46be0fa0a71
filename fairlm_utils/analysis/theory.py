"""The unconstrained-features model of weight decay under class imbalance: closed form, numerical minimum, fit.

Classes k = 1…K (token types), n_k samples of class k, N = Σ n_k. The last layer's features h_{k,i} ∈ R^d are free,
non-negative parameters beside the classifier W ∈ R^{K×d} (no bias), and d ≥ K:

    min_{W, H ≥ 0}  (1/N) Σ_k Σ_i CE(W h_{k,i}, k)  +  (λ_W/2) ‖W‖²  +  (λ_H/2) ‖H‖²

Sources: the paper, Section 5 (arXiv 2410.11985), after Dang et al., *Neural Collapse for Cross-entropy Class-Imbalanced
Learning with Unconstrained ReLU Feature Model* (arXiv 2401.02058). Losses are in nats. `weight_decay` is λ_W and λ_H: an
L2 penalty of a mean loss, not AdamW's decoupled weight decay. `n_classes` and `n_samples` are K and N; left out, they
are those of the counts given.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import optimize
from scipy.special import log_softmax


def wrong_class_probability(
    counts: ArrayLike, weight_decay: ArrayLike, n_classes: int | None = None, n_samples: float | None = None
) -> np.ndarray:
    """Probability a class gives to the wrong classes at the global minimum: min(c_k, (K−1)/K).

    c_k = N sqrt(λ_W λ_H (K−1) / (K n_k)): the minimum splits into one problem per class,
    min_z (n_k/N) CE(z, k) + sqrt(λ_W λ_H n_k) ‖z‖, whose logits z are equal over the wrong classes (paper, Section 5;
    Dang et al.). Raises ValueError for counts below 1 or λ not above 0.
    """
    n_k, k, n = _problem(counts, n_classes, n_samples)
    return np.minimum(n * np.sqrt(_squared(weight_decay) * (k - 1) / (k * n_k)), (k - 1) / k)


def collapse_count(weight_decay: ArrayLike, n_classes: int, n_samples: float) -> np.ndarray:
    """Largest n_k at which class k collapses (h_k = 0, loss log K): N² λ_W λ_H K/(K−1), where c_k = (K−1)/K (Section 5).

    >>> round(float(collapse_count(0.01, 6, 185)), 3)
    4.107
    """
    return n_samples**2 * _squared(weight_decay) * n_classes / (n_classes - 1)


def class_loss(
    counts: ArrayLike, weight_decay: ArrayLike, n_classes: int | None = None, n_samples: float | None = None
) -> np.ndarray:
    """Loss of class k at the global minimum, in nats: −log(1 − c_k), and log K once the class has collapsed (Section 5).

    For small c_k it is N sqrt(λ_W λ_H / n_k): slope −1/2 in log n_k.

    >>> class_loss([100, 50, 20, 10, 4, 1], 1e-3).round(5).tolist()
    [0.01703, 0.02417, 0.03849, 0.05488, 0.08822, 0.18498]
    """
    n_k, k, n = _problem(counts, n_classes, n_samples)
    c_k = wrong_class_probability(n_k, weight_decay, k, n)
    return np.where(n_k <= collapse_count(weight_decay, k, n), np.log(k), -np.log1p(-c_k))


def class_loss_derivative(
    counts: ArrayLike, weight_decay: ArrayLike, n_classes: int | None = None, n_samples: float | None = None
) -> np.ndarray:
    """dℓ_k/dλ at λ_W = λ_H = λ, in nats per unit of λ: (c_k/λ) / (1 − c_k), and 0 once the class has collapsed (Section 5).

    It falls as n_k grows. At the threshold itself it is the derivative from the right, 0.

    >>> class_loss_derivative([100, 84, 1], 1e-3).round(1).tolist()
    [15.3, 16.8, 177.9]
    """
    n_k, k, n = _problem(counts, n_classes, n_samples)
    c_k = wrong_class_probability(n_k, weight_decay, k, n)
    return np.where(n_k <= collapse_count(weight_decay, k, n), 0.0, c_k / np.asarray(weight_decay) / (1 - c_k))


def minimise_objective(counts: ArrayLike, weight_decay: float, dim: int) -> np.ndarray:
    """Loss of each class [K], in nats, at the best numerical minimum of the objective: L-BFGS-B in double precision.

    One feature vector a class is enough: given W, each h_{k,i} minimises (1/N) CE(W h, k) + (λ_H/2) ‖h‖² over h ≥ 0,
    a strictly convex problem that is the same for every i, so its unique solution is too. The class's terms then
    count n_k times.

    The problem is not convex in (W, H) jointly: from a random start a rare class often collapses that need not. So
    there is one start with every class on an axis of its own, from which a class collapses only where its share of the
    problem says so, and 8 random ones, which assume nothing and may find a lower value.

    Raises ValueError if d < K, λ is not positive, a count is below 1, or there are fewer than two classes.
    """
    n_k, k, _ = _problem(counts, None, None)
    if dim < k:
        raise ValueError(f"dim = {dim} is below the number of classes ({k}); the theory needs d ≥ K: raise dim")
    _squared(weight_decay)
    rng, shape = np.random.default_rng(0), (k, dim)
    starts = [np.stack([np.eye(*shape)] * 2)]  # every class on an axis of its own
    starts += [np.stack([rng.normal(size=shape), rng.exponential(size=shape)]) for _ in range(8)]
    bounds = [(None, None)] * (k * dim) + [(0, None)] * (k * dim)
    options = {"maxiter": 20_000, "maxfun": 40_000, "maxcor": 30, "ftol": 1e-16, "gtol": 1e-10}
    settings = {"jac": True, "method": "L-BFGS-B", "bounds": bounds, "options": options}
    found = [optimize.minimize(_objective, start.ravel(), (n_k, weight_decay), **settings) for start in starts]
    classifier, scaled = min(found, key=lambda result: result.fun).x.reshape(2, *shape)
    return -np.diag(log_softmax(scaled @ classifier.T / np.sqrt(n_k)[:, None], axis=1))


def _objective(x: np.ndarray, n_k: np.ndarray, weight_decay: float) -> tuple[float, np.ndarray]:
    """Objective and gradient at x = (W, G) with g_k = sqrt(n_k) h_k, a scale on which all classes are penalised alike."""
    classifier, scaled = x.reshape(2, len(n_k), -1)
    root, share = np.sqrt(n_k)[:, None], n_k / n_k.sum()
    log_p = log_softmax(scaled @ classifier.T / root, axis=1)
    value = -share @ np.diag(log_p) + (weight_decay * np.sum(classifier**2) + weight_decay * np.sum(scaled**2)) / 2
    slope = share[:, None] * (np.exp(log_p) - np.eye(len(n_k))) / root
    gradient = np.stack([slope.T @ scaled + weight_decay * classifier, slope @ classifier + weight_decay * scaled])
    return float(value), gradient.ravel()


@dataclass(frozen=True)
class WeightDecayFit:
    """The theory's curve at the effective λ nearest to measured losses; R² is below 0 if a constant would fit better."""

    weight_decay: float
    r_squared: float
    #: The theory's loss of every bin, and measured − fitted, in nats.
    fitted: np.ndarray
    residuals: np.ndarray


def implied_weight_decay(counts: ArrayLike, losses: ArrayLike, n_classes: int, n_samples: float) -> np.ndarray:
    """λ at which the theory gives class k exactly this loss: (1 − e^{−ℓ}) sqrt(K n_k / (K−1)) / N, Section 5 solved for λ.

    Where the theory's shape holds it is the same in every class. A loss of log K or more gives the λ of the collapse.
    """
    n_k, k, n = _problem(counts, n_classes, n_samples)
    losses = np.asarray(losses, dtype=np.float64)
    if not np.all(losses > 0):
        raise ValueError("losses must be positive, in nats; leave out bins without a measured loss")
    return -np.expm1(-np.minimum(losses, np.log(k))) * np.sqrt(k * n_k / (k - 1)) / n


def fit_weight_decay(counts: ArrayLike, losses: ArrayLike, n_classes: int, n_samples: float) -> WeightDecayFit:
    """Least-squares fit, in nats, of the theory's loss to measured losses of frequency bins; one parameter, λ_W = λ_H.

    `counts` [bins] mean n_k of a bin's types, `losses` [bins]. Every bin's theoretical loss rises with λ, so the best λ
    lies between the smallest and the largest that single bins imply. Raises ValueError for fewer than 3 bins.
    """
    n_k, losses = (np.atleast_1d(np.asarray(a, dtype=np.float64)) for a in (counts, losses))
    if n_k.shape != losses.shape or len(n_k) < 3:
        raise ValueError(
            f"a fit needs at least 3 frequency bins with a count and a loss each, not {len(n_k)} and {len(losses)}"
        )
    implied = np.log(implied_weight_decay(n_k, losses, n_classes, n_samples))

    def squares(log_decay: float) -> float:
        return float(np.sum((losses - class_loss(n_k, np.exp(log_decay), n_classes, n_samples)) ** 2))

    # past a collapse a bin stops to change, so that the sum may have several minima: a grid, then its best cell
    grid = np.linspace(implied.min(), implied.max(), 257)
    values = [squares(x) for x in grid]
    near = int(np.argmin(values))
    cell = grid[max(near - 1, 0)], grid[min(near + 1, len(grid) - 1)]
    refined = optimize.minimize_scalar(squares, bounds=cell, method="bounded", options={"xatol": 1e-12})
    decay = float(np.exp(refined.x if refined.fun < values[near] else grid[near]))
    fitted = class_loss(n_k, decay, n_classes, n_samples)
    spread = np.sum((losses - losses.mean()) ** 2)
    r_squared = float(1 - np.sum((losses - fitted) ** 2) / spread) if spread > 0 else float("nan")
    return WeightDecayFit(decay, r_squared, fitted, losses - fitted)


def problem_of(bins: pd.DataFrame) -> tuple[int, int]:
    """K and N of an experiment's training blocks, by a table of bins: types that occur and their occurrences, alike in all its runs."""
    first = next(iter(bins[bins["split"] == "training"].groupby(["model", "weight_decay", "seed"])))[1]
    return int(first["n_types"].sum()), int(first["n_tokens"].sum())


def fit_bins(bins: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The theory's curve fitted to the training loss above the floor, mean over seeds, of every model and λ.

    Returns the fits (model, weight_decay, effective: the theory's λ, r_squared, slope: of log excess in log count) and the bins behind
    them (n_k, measured, fitted, residual in nats). Bins at or below the floor are left out: a model may know one better than
    the memoriser, at the cost of another.
    """
    training = bins[bins["split"] == "training"]
    means = training.groupby(["model", "weight_decay", "bin_low"], as_index=False)[
        ["n_types", "n_tokens", "loss", "floor"]
    ].mean()
    means = means.assign(n_k=means["n_tokens"] / means["n_types"], measured=means["loss"] - means["floor"])
    n_classes, n_samples = problem_of(bins)
    rows, fitted = [], []
    for (model, decay), own in means[means["measured"] > 0].groupby(["model", "weight_decay"]):
        fit = fit_weight_decay(own["n_k"], own["measured"], n_classes, n_samples)
        rows.append((model, decay, fit.weight_decay, fit.r_squared, log_log_slope(own["n_k"], own["measured"])))
        fitted.append(own.assign(fitted=fit.fitted, residual=fit.residuals))
    names = ["model", "weight_decay", "effective", "r_squared", "slope"]
    return pd.DataFrame(rows, columns=names), pd.concat(fitted, ignore_index=True)


def say_fits(fits: pd.DataFrame, fitted: pd.DataFrame) -> list[str]:
    """What `fit_bins` found: how many λ > 0 fit well (R² ≥ 0.9), the slopes, the effective λ, and where the misfit lies."""
    own, without = fits[fits["weight_decay"] > 0], fits[fits["weight_decay"] == 0]
    several = fits["model"].nunique() > 1
    values = "pairs of a model and a λ > 0" if several else "values of λ > 0"
    named = [f"{r.r_squared:.2f} at {f'{r.model}, ' * several}{r.weight_decay:g}" for r in own.itertuples()]
    at_zero = " and ".join(f"{r.r_squared:.2f}{f' ({r.model})' * several}" for r in without.itertuples())
    idle = f", and {at_zero} at λ = 0, where the theory has no loss" * bool(len(without))
    rises = all(g.sort_values("weight_decay")["effective"].is_monotonic_increasing for _, g in own.groupby("model"))
    left = fitted[fitted["weight_decay"] > 0].groupby("bin_low")["residual"].mean()
    return [
        f"The theory's curve has R² ≥ 0.9 at {(own['r_squared'] >= 0.9).sum()} of {len(own)} {values} ({', '.join(named)}){idle}",
        f"Slope of log excess against log count: {fits['slope'].min():.2f} to {fits['slope'].max():.2f}; the theory's is -0.50",
        f"The effective λ {'rises' if rises else 'does not always rise'} with the λ of AdamW ({own['weight_decay'].nunique()} values)",
        "Measured minus fitted, mean over λ > 0 (nats): "
        + ", ".join(f"{v:+.3f} at n_v ≥ {low:,}" for low, v in left.items()),
    ]


def say_elsewhere(fits: Mapping[str, pd.DataFrame]) -> str:
    """At how many λ > 0 the curve fits other experiments, by name the fits of `fit_bins`, and what it reaches without decay."""
    parts = []
    for name, own in fits.items():
        decayed = own.loc[own["weight_decay"] > 0, "r_squared"]
        idle = "".join(f", {r:.2f} at λ = 0" for r in own.loc[own["weight_decay"] == 0, "r_squared"])
        parts.append(f"{(decayed >= 0.9).sum()} of {len(decayed)} ({name}{idle})")
    return f"Elsewhere R² ≥ 0.9 at {', '.join(parts)}; where λ = 0 fits as well, a fit is no evidence of what λ does"


def log_log_slope(counts: ArrayLike, losses: ArrayLike) -> float:
    """Slope of log loss in log n_k by least squares; the theory's is −1/2 where c_k is small (Section 5).

    >>> round(log_log_slope([1, 4, 100], [0.2, 0.1, 0.02]), 6)
    -0.5
    """
    return float(np.polyfit(np.log(counts), np.log(losses), 1)[0])


def _problem(counts: ArrayLike, n_classes: int | None, n_samples: float | None) -> tuple[np.ndarray, int, float]:
    """n_k as float64, K and N; raises ValueError where the theory has no such problem."""
    n_k = np.asarray(counts, dtype=np.float64)
    if not np.all(n_k >= 1):
        raise ValueError("every class needs at least one sample; leave out classes with a count below 1")
    k, n = n_k.size if n_classes is None else n_classes, n_k.sum() if n_samples is None else n_samples
    if k < 2:
        raise ValueError(f"{k} class; the theory needs at least 2")
    return n_k, k, n


def _squared(weight_decay: ArrayLike) -> np.ndarray:
    """λ_W λ_H; raises ValueError unless λ is positive."""
    if not np.all(np.asarray(weight_decay) > 0):
        raise ValueError("the theory needs λ > 0: without weight decay the objective has no minimum")
    return np.square(np.asarray(weight_decay, dtype=np.float64))
