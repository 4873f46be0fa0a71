"""What small runs say about large ones: quantities that survive a change of scale.

A loss near 0 has a floor that its data set (`floor.memoriser_sums`), so effects are differences in nats from λ = 0, paired
by seed, never ratios of losses. If the loss that λ adds to a token type falls as a power of its training count,
Δℓ_v ∝ n_v^−a, then how much more the token-balanced loss rises than the average follows from the counts (`count_ratio`):
what is measured is the slope a, what is predicted for other counts is the ratio. Intervals are Student's t over seeds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import optimize, stats

from fairlm_utils import frequency, params
from fairlm_utils.analysis import metrics
from fairlm_utils.analysis.results import Results
from fairlm_utils.params import TrainingParams

#: Largest excess of the average training loss at λ = 0 over the floor, in nats, of a model that has memorised its text:
#: a tenth of what λ = 1 adds to the paper's balanced loss (0.097). The paper's own λ = 0 lies 0.006 above its floor.
MEMORISED = 0.01
#: Smallest number of frequency bins that a slope is fitted to: two always lie on a line.
MIN_BINS = 3
#: Count beyond which added loss falls faster (`local_slopes` of the ladder), an edge of frequency bins: where `fit_bend` bends.
BEND = 27
#: Rise of the balanced loss, in nats, at which slopes are compared between sizes: the paper's, λ 0 → 1 (`claims.PAPER_TABLE_1`).
PAPER_RISE = 0.097
#: What stands in for it where no two λ bracket it: within a factor of 3.
#: Below it seeds and unfinished optimisation weigh in, above it the loss of rare types nears its limit and the slope grows.
COMPARABLE_RISE = (0.03, 0.3)
GROUP = ("model", "variant", "weight_decay")
_RATIO = ("ratio", "low", "high")
_SLOPE = ("slope", "slope_low", "slope_high")
_PREDICTED = ("predicted", "predicted_low", "predicted_high")
#: Columns of a predicted ratio and its interval, by the law that gives it: `predict_ratio`.
LAWS = {"one slope": _RATIO, "two slopes": ("bent", "bent_low", "bent_high")}


def count_ratio(n_train: ArrayLike, a: ArrayLike, n_types: ArrayLike = 1.0) -> np.ndarray:
    """R(a) = Δ token-balanced / Δ average loss where Δℓ_v ∝ n_v^−a: mean_v(n_v^−a) · Σ n_v / Σ n_v^(1−a), shape of `a`.

    `n_train` [groups] are training counts n_v ≥ 1, `n_types` [groups] how many types have each. It is 1 at a = 0 or equal
    counts, and rises with a. Raises ValueError for a count below 1.

    >>> count_ratio([1, 4], [0.0, 0.5, 1.0]).round(4).tolist()
    [1.0, 1.25, 1.5625]
    """
    n, a = np.asarray(n_train, dtype=np.float64), np.asarray(a, dtype=np.float64)
    if n.size == 0 or not (n >= 1).all():
        raise ValueError("a ratio by counts needs types with n_v ≥ 1; leave out types that do not occur")
    return _ratio_of(n ** -a[..., None], n, n_types)


def bent_ratio(n_train: ArrayLike, below: float, beyond: float, n_types: ArrayLike = 1.0) -> float:
    """`count_ratio` where Δℓ_v falls with slope `below` up to a count of `BEND` and with slope `beyond` from there.

    >>> round(bent_ratio([1, 4, 30], 0.5, 0.5) - float(count_ratio([1, 4, 30], 0.5)), 9)
    0.0
    """
    n = np.asarray(n_train, dtype=np.float64)
    return float(_ratio_of(np.where(n < BEND, (n / BEND) ** -below, (n / BEND) ** -beyond), n, n_types))


def _ratio_of(added: np.ndarray, n: np.ndarray, n_types: ArrayLike) -> np.ndarray:
    """Mean over types of the added loss [..., groups] over its mean over tokens."""
    m = np.broadcast_to(np.asarray(n_types, dtype=np.float64), n.shape)
    return (m * added).sum(-1) / m.sum() * (m * n).sum() / (m * n * added).sum(-1)


def implied_slope(n_train: ArrayLike, ratio: float, n_types: ArrayLike = 1.0) -> float:
    """The slope a in [0, 4] at which `count_ratio` has this value. Raises ValueError if none does.

    >>> round(implied_slope([1, 4], 1.25), 6)
    0.5
    """
    low, high = count_ratio(n_train, [0.0, 4.0], n_types)
    if not low <= ratio <= high:
        raise ValueError(
            f"no slope gives a ratio of {ratio:g} on these counts, whose ratios go from {low:g} to {high:g}"
        )
    return float(optimize.brentq(lambda a: float(count_ratio(n_train, a, n_types)) - ratio, 0.0, 4.0))


def counts_of(results: Results, variant: str | None = None) -> pd.DataFrame:
    """Histogram of the training counts of an experiment, or of one variant where variants differ: n_train, n_types."""
    counts = results.counts
    return counts[counts["variant"] == variant] if "variant" in counts else counts


def added_loss(results: Results) -> pd.DataFrame:
    """What λ adds to the training loss of each frequency bin, paired by seed: keys, n_types, n_train, `added` (nats).

    `n_train` is the mean training count of the bin's types, `added` the change of their mean loss from λ = 0. Variants
    without λ = 0 are left out.
    """
    keys = [k for k in ("model", "variant") if k in results.bins]
    bins = results.bins[(results.bins["split"] == "training") & (results.bins["bin_low"] > 0)]
    bins = bins[bins.groupby(keys)["weight_decay"].transform("min") == 0]
    counts = results.counts.assign(
        bin_low=3 ** frequency.bin_index(results.counts["n_train"]), n=results.counts.eval("n_train * n_types")
    )
    by = [k for k in ("variant", "bin_low") if k in counts]
    sums = counts.groupby(by)[["n", "n_types"]].sum()
    mean = (sums["n"] / sums["n_types"]).rename("n_train").reset_index()
    changed = metrics.changes(bins.drop(columns="split"), "loss").rename(columns={"difference": "added"})
    changed = changed.merge(mean, on=by, how="left")
    return changed[[k for k in metrics.KEYS if k in changed] + ["n_types", "n_train", "added"]]


def fit_slope(n_train: ArrayLike, added: ArrayLike, n_types: ArrayLike) -> dict[str, float]:
    """Least squares of log Δℓ = log c − a log n over the bins that gained loss, weighted by types: slope, r_squared, n_bins.

    `n_train`, `added` (nats), `n_types` [bins]. R² is of the logarithms, by the same weights. Raises ValueError for fewer
    than `MIN_BINS` bins with added > 0.

    >>> {k: round(v, 6) for k, v in fit_slope([1, 4, 16, 64], [0.8, 0.4, 0.2, -0.1], [3, 2, 1, 1]).items()}
    {'slope': 0.5, 'r_squared': 1.0, 'n_bins': 3}
    """
    n, delta, w = (np.asarray(x, dtype=np.float64) for x in (n_train, added, n_types))
    used = delta > 0
    if used.sum() < MIN_BINS:
        raise ValueError(
            f"a slope by count needs at least {MIN_BINS} frequency bins whose loss λ raises, and {used.sum()} of {len(n)} are"
        )
    x, y, w = np.log(n[used]), np.log(delta[used]), w[used] / w[used].sum()
    dx, dy = x - w @ x, y - w @ y
    slope = -(w @ (dx * dy)) / (w @ dx**2)
    residual = w @ (dy + slope * dx) ** 2
    return {
        "slope": float(slope),
        "r_squared": float(1 - residual / (w @ dy**2)) if w @ dy**2 > 0 else float("nan"),
        "n_bins": int(used.sum()),
    }


def fit_bend(n_train: ArrayLike, added: ArrayLike, n_types: ArrayLike) -> dict[str, float]:
    """`fit_slope` with two slopes that meet at a count of `BEND`: below, beyond.

    Raises ValueError for fewer than `MIN_BINS` + 1 bins with added > 0, or fewer than two of them on either side.

    >>> n = np.array([1, 4, 9, 81, 243])
    >>> {k: round(v, 6) for k, v in fit_bend(n, np.where(n < 27, (n / 27) ** -0.3, (n / 27) ** -0.6), 1).items()}
    {'below': 0.3, 'beyond': 0.6}
    """
    n, delta, w = np.broadcast_arrays(*(np.asarray(x, dtype=np.float64) for x in (n_train, added, n_types)))
    used = delta > 0
    x = np.log(n[used] / BEND)
    if used.sum() <= MIN_BINS or min((x < 0).sum(), (x > 0).sum()) < 2:
        raise ValueError(
            f"a bend needs {MIN_BINS + 1} bins whose loss λ raises, two on either side of a count of {BEND}"
        )
    root = np.sqrt(w[used])
    columns = np.stack([np.ones_like(x), -np.minimum(x, 0), -np.maximum(x, 0)])
    (_, below, beyond), *_ = np.linalg.lstsq((columns * root).T, np.log(delta[used]) * root, rcond=None)
    return {"below": float(below), "beyond": float(beyond)}


def slopes(results: Results) -> pd.DataFrame:
    """`fit_slope` of every λ > 0 and seed: keys, slope, r_squared, n_bins, and the below and beyond of `fit_bend`.

    A fit that is refused has NaN for slope and R²; where only the bend is, both of its slopes are the one.
    """
    added = added_loss(results)
    keys = [k for k in (*GROUP, "seed") if k in added]
    rows: list[dict[str, Any]] = []
    for key, bins in added.groupby(keys, sort=False):
        try:
            fit = fit_slope(bins["n_train"], bins["added"], bins["n_types"])
        except ValueError:
            fit = {"slope": np.nan, "r_squared": np.nan, "n_bins": int((bins["added"] > 0).sum())}
        try:
            bend = fit_bend(bins["n_train"], bins["added"], bins["n_types"])
        except ValueError:
            bend = dict.fromkeys(("below", "beyond"), fit["slope"])
        rows.append({**dict(zip(keys, key, strict=True)), **fit, **bend})
    return pd.DataFrame(rows, columns=[*keys, "slope", "r_squared", "n_bins", "below", "beyond"])


def local_slopes(results: Results, confidence: float = 0.95) -> pd.DataFrame:
    """Slopes −Δ log Δℓ / Δ log n between neighbouring bins, mean over seeds with interval: where the power law holds.

    A row per pair of bins, named by the lower one; columns of `metrics.over_seeds`, and `flat`: the interval lies below the
    slope fitted to all bins. Pairs with a bin that gained no loss in some seed are left out.
    """
    added = added_loss(results).sort_values("bin_low", kind="stable")
    keys = [k for k in (*GROUP, "seed") if k in added]
    with np.errstate(invalid="ignore", divide="ignore"):
        logs = added.assign(x=np.log(added["n_train"]), y=np.log(added["added"].where(added["added"] > 0)))
    step = logs.groupby(keys)[["x", "y"]].diff(-1)
    pairs = logs.assign(slope=-step["y"] / step["x"])
    known = pairs.groupby([k for k in keys if k != "seed"] + ["bin_low"])["slope"].transform(lambda s: s.notna().all())
    table = metrics.over_seeds(pairs[known], "slope", confidence)
    group = [k for k in keys if k != "seed"]
    fitted = slopes(results).groupby(group)["slope"].mean().rename("fitted").reset_index()
    table = table.merge(fitted, on=group, how="left")
    return table.assign(flat=table["high"] < table.pop("fitted")).sort_values([*group, "bin_low"], ignore_index=True)


def ratios(results: Results, confidence: float = 0.95) -> pd.DataFrame:
    """How much more λ raises the token-balanced than the average training loss, measured and by the counts; one row per λ > 0.

    added_average and added_balanced are means over seeds (nats). `ratio` is the geometric mean over seeds of balanced /
    average, `low` and `high` its interval, Student's t on the logarithms of the seeds' ratios; empty where a seed's loss
    did not rise. `hidden` = 1 − 1 / ratio is the share of the balanced rise that the average does not show. `slope` is the
    mean of `slopes` with interval slope_low to slope_high, `predicted` with predicted_low and predicted_high is
    `count_ratio` there on the counts of the experiment.
    """
    training = results.totals[results.totals["split"] == "training"]
    own = [k for k in ("model", "variant") if k in training]
    training = training[training.groupby(own)["weight_decay"].transform("min") == 0]
    pair = metrics.changes(training, "average_loss").rename(columns={"difference": "added_average"})
    pair["added_balanced"] = metrics.changes(training, "token_balanced_loss")["difference"]
    rose = (pair["added_average"] > 0) & (pair["added_balanced"] > 0)
    pair["log"] = np.log((pair["added_balanced"] / pair["added_average"]).where(rose))
    fits, keys = slopes(results), [*own, "weight_decay"]
    rows: list[tuple[Any, ...]] = []
    for key, seeds in pair.groupby(keys, sort=False):
        named = dict(zip(keys, key, strict=True))
        fit = fits[(fits[keys] == list(key)).all(axis=1)]
        log = mean_and_interval(seeds["log"], confidence)
        slope, r_squared = mean_and_interval(fit["slope"], confidence), mean_and_interval(fit["r_squared"])[0]
        counts = counts_of(results, named.get("variant"))
        predicted = count_ratio(counts["n_train"], slope, counts["n_types"])
        rises = (seeds["added_average"].mean(), seeds["added_balanced"].mean())
        measured = (*np.exp(log), 1 - np.exp(-log[0]), *slope, r_squared, fit["n_bins"].min())
        rows.append((*key, len(seeds), *rises, *measured, *predicted))
    columns = ("n_seeds", "added_average", "added_balanced", *_RATIO, "hidden", *_SLOPE, "r_squared", "n_bins")
    return pd.DataFrame(rows, columns=[*keys, *columns, *_PREDICTED])


def mean_and_interval(values: pd.Series, confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean over seeds and its Student-t interval; all NaN if a value is missing, the interval with one seed."""
    if values.isna().any() or values.empty:
        return (np.nan,) * 3
    half = metrics.t_half_width(values.std(), len(values), confidence)
    return values.mean(), values.mean() - half, values.mean() + half


def interval_columns(name: str, values: pd.Series, confidence: float = 0.95) -> dict[str, float]:
    """`mean_and_interval` by column: NAME, NAME_low, NAME_high."""
    return dict(zip((name, f"{name}_low", f"{name}_high"), mean_and_interval(values, confidence), strict=True))


def excess(results: Results) -> pd.DataFrame:
    """Average and balanced training loss above the floor at λ = 0, mean over seeds (nats): model, (variant,) and the two."""
    zero = results.totals[(results.totals["split"] == "training") & (results.totals["weight_decay"] == 0)]
    keys = [k for k in ("model", "variant") if k in zero]
    above = zero.assign(
        excess_average=zero["average_loss"] - zero["average_floor"],
        excess_balanced=zero["token_balanced_loss"] - zero["token_balanced_floor"],
    )
    return above.groupby(keys, sort=False, as_index=False)[["excess_average", "excess_balanced"]].mean()


def rungs(experiments: Mapping[str, Results]) -> dict[str, Results]:
    """Every size tried: the tables of each model and variant that has a run at λ = 0, by the experiment's and their names."""
    found = {}
    for name, results in experiments.items():
        keys = [k for k in ("model", "variant") if k in results.totals]
        zero = results.totals[results.totals["weight_decay"] == 0]
        # a variant that has one model names it
        implied = "variant" in keys and (zero.groupby("variant")["model"].nunique() == 1).all()
        varied = [k for k in keys if k == "variant" or (results.totals[k].nunique() > 1 and not implied)]
        for _, key in zero[keys].drop_duplicates().iterrows():
            tables = {}
            for table in ("totals", "bins", "classes", "counts"):
                frame = getattr(results, table)
                of_rung = np.logical_and.reduce([frame[k] == key[k] for k in keys if k in frame] or [frame.index >= 0])
                tables[table] = frame[of_rung].drop(columns="variant", errors="ignore")
            found[" ".join([name, *key[varied]]).strip()] = replace(results, **tables)
    return found


def rung_slopes(rungs: Mapping[str, Results]) -> pd.DataFrame:
    """Slopes by count of every rung at the same effect, one row per seed: what `predict_ratio` takes.

    The slope grows with λ, so each seed's is taken where λ raises its balanced loss by `PAPER_RISE`: linear in the
    logarithm of the rise between the two λ that bracket it; else that of the λ nearest to it among those with a
    `COMPARABLE_RISE`, else empty. Columns: rung, seed, slope, the below and beyond of `fit_bend` taken likewise, `rise` of
    the slopes taken, excess_average of λ = 0 (mean over seeds) and whether that is `memorised`.
    """
    rows, fits, rise = [], ["slope", "below", "beyond"], PAPER_RISE
    for name, results in rungs.items():
        above = excess(results)["excess_average"].iloc[0]
        known = slopes(results).merge(balanced_rise(results), on=["weight_decay", "seed"])
        known = known[known["slope"].notna() & (known["rise"] > 0)].sort_values("rise", ignore_index=True)
        for seed in np.sort(results.totals["seed"].unique()):
            one = known[known["seed"] == seed]
            comparable = one[one["rise"].between(*COMPARABLE_RISE)]
            fitted, taken = [np.nan] * 3, np.nan
            if one["rise"].min() <= rise <= one["rise"].max():
                fitted, taken = [np.interp(np.log(rise), np.log(one["rise"]), one[c]) for c in fits], rise
            elif len(comparable):
                *fitted, taken = comparable.loc[np.log(comparable["rise"] / rise).abs().idxmin(), [*fits, "rise"]]
            rows.append((name, seed, *fitted, taken, above, above <= MEMORISED))
    return pd.DataFrame(rows, columns=["rung", "seed", *fits, "rise", "excess_average", "memorised"])


def balanced_rise(results: Results) -> pd.DataFrame:
    """By how much λ raises the token-balanced training loss of a rung (nats): weight_decay, seed, rise."""
    training = results.totals[results.totals["split"] == "training"]
    changed = metrics.changes(training, "token_balanced_loss").rename(columns={"difference": "rise"})
    return changed[["weight_decay", "seed", "rise"]]


def predict_ratio(
    slopes: pd.DataFrame, n_train: ArrayLike, n_types: ArrayLike, confidence: float = 0.95
) -> dict[str, float]:
    """What the slopes of rungs (`rung_slopes`) predict for one run on other counts: slope and ratio, with *prediction* intervals.

    The slope of a rung is the mean over its seeds; that of a new one is expected at their mean m, with variance
    s²(1 + 1/k) + w²: s² between the k rungs' slopes, w² between seeds of a rung, so that both count, and Student's t with
    k − 1 degrees of freedom. `count_ratio` rises with the slope, so the ratio's interval is that of the slope mapped through
    it. `bent` is the geometric mean over rungs of `bent_ratio` with the rung's own two slopes, bent_low and bent_high the
    same interval on its logarithm. Returns slope, slope_low, slope_high, ratio, low, high, bent, bent_low, bent_high, n_rungs.

    Raises ValueError for a rung that had not memorised its text at λ = 0 (excess_average > `MEMORISED`, or unknown): where
    capacity or training does not suffice λ moves loss between types, and no power law of the count is measured. And for
    fewer than two rungs, which say nothing of how a slope changes with size.
    """
    fitted = slopes[slopes["slope"].notna()]
    if len(other := fitted[~(fitted["excess_average"] <= MEMORISED)]):
        said = ", ".join(f"{r.rung} ({r.excess_average:.3f})" for r in other.drop_duplicates("rung").itertuples())
        raise ValueError(
            f"not memorised: λ = 0 ends more than {MEMORISED:g} nats above the floor in {said}; train longer or leave out"
        )
    k = fitted["rung"].nunique()
    if k < 2:
        raise ValueError(f"a prediction needs slopes of at least two rungs, and there are {k}")

    def of_a_new_rung(values: pd.Series) -> np.ndarray:
        by_rung = values.groupby(fitted["rung"])
        variance = by_rung.mean().var() * (1 + 1 / k) + np.nan_to_num(by_rung.var().mean())
        half = stats.t.ppf((1 + confidence) / 2, k - 1) * np.sqrt(variance)
        return by_rung.mean().mean() + half * np.array([0.0, -1.0, 1.0])

    slope = of_a_new_rung(fitted["slope"])
    bent = fitted.apply(lambda f: np.log(bent_ratio(n_train, f["below"], f["beyond"], n_types)), axis=1)
    return {
        **dict(zip(_SLOPE, slope, strict=True)),
        **dict(zip(LAWS["one slope"], count_ratio(n_train, slope, n_types), strict=True)),
        **dict(zip(LAWS["two slopes"], np.exp(of_a_new_rung(bent)), strict=True)),
        "n_rungs": k,
    }


def regime(excess_average: float, epochs: float, tau_epochs: float) -> str:
    """The regime of a run, by the first rule that holds.

    - "forgetting": τ = 1 / (lr λ), the time scale of AdamW's average over updates, is below one epoch: the weights have
      decayed by e before a text comes again or, in one pass, before it ends (Wang & Aitchison 2024, arXiv 2405.13698,
      who find τ between one epoch and all of them sensible);
    - "memorised": λ = 0 ends within `MEMORISED` nats of the floor;
    - "one pass": at most one epoch, so that training and held-out text are both new;
    - "several epochs": anything else. An unknown excess (no run at λ = 0) counts as not memorised.

    >>> regime(0.004, 50, 20.0), regime(5.0, 1, 1.7), regime(5.0, 1, 0.17), regime(0.3, 30, 10.0)
    ('memorised', 'one pass', 'forgetting', 'several epochs')
    """
    if tau_epochs < 1:
        return "forgetting"
    if excess_average <= MEMORISED:
        return "memorised"
    return "one pass" if epochs <= 1 else "several epochs"


def regimes(results: Results) -> pd.DataFrame:
    """In which regime each λ is trained: one row per model, variant and λ; see `regime`.

    Columns: regime, epochs, tau_epochs (see `time_scale`), and the training loss of λ = 0 above the floor, excess_average
    and excess_balanced (nats); for variants without λ = 0 of their own that of "no decay", empty if there is none.
    """
    keys = [k for k in GROUP if k in results.totals]
    zero = {tuple(row[: len(keys) - 1]): row[-2:] for row in excess(results).itertuples(index=False, name=None)}
    rows = []
    for key, group in results.totals.groupby(keys, sort=False):
        named = dict(zip(keys, key, strict=True))
        p = params_of(results, named)
        n_targets = int(group["n_train_tokens"].iloc[0])
        epochs = params.epochs(p, _n_blocks(results, p, n_targets))
        tau = params.time_scale(p, epochs)
        average, balanced = zero.get(key[:-1]) or zero.get((named["model"], "no decay"), (np.nan, np.nan))
        rows.append((*key, regime(average, epochs, tau), epochs, tau, average, balanced))
    columns = [*keys, "regime", "epochs", "tau_epochs", "excess_average", "excess_balanced"]
    return pd.DataFrame(rows, columns=columns)


def params_of(results: Results, named: Mapping[str, Any]) -> TrainingParams:
    """Parameters of the runs of a model, variant and λ."""
    own = results.params.get("variants", {}).get(named.get("variant"), {})
    known = {**results.params, **own, **named}
    return TrainingParams.check({k: v for k, v in known.items() if k in TrainingParams.model_fields}, "these results")


def _n_blocks(results: Results, p: TrainingParams, n_targets: int) -> float:
    """Training blocks of a run: by the text's size or, where runs differ in their text, by targets, as if none were a BOS."""
    if p.packing and not results.provenance.get("corpus"):
        return n_targets / (p.context - 1)
    train = results.provenance["corpus"]["train"]
    n = train["n_tokens"] // p.context if p.packing else train["n_documents"]
    return min(n, p.max_train_blocks or n)
