"""Definitions: pure functions of a per-token table (one row per token type) and of tables over runs.

A *token type* is an entry of the vocabulary, a *token* one occurrence of it. Losses are cross-entropies in nats.
Per-token tables have the columns `token_id`, `token`, `n_train` (occurrences as a target in the training blocks),
`kind` (see `tokenization.token_kinds`), `n_eval` (occurrences as a target in the evaluated blocks), `loss`, `accuracy`
and `top5_accuracy` (means over those occurrences, NaN where `n_eval` is 0), `learning_speed` and `unigram` (see
`unigram_loss`), and of training blocks `floor` and `floor_accuracy` (see `floor.baselines`). Those of an audit, whose
`n_train` counts a reference text, also have norms of embedding rows. A table may lack columns of values: then it has none
of their means either. A calibration array [vocabulary, confidence bins, 3] holds tokens, summed confidence and correct
predictions of every type and tenth of the confidence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from fairlm_utils import frequency

#: Columns that name what a row of a tidy table is about; every other column is a measured value.
KEYS = (
    "regime",
    "model",
    "variant",
    "weight_decay",
    "seed",
    "split",
    "language",
    "bin",
    "bin_low",
    "frequency_class",
    "kind",
    "measure",
    "step",
    "confidence_bin",
)
#: Columns of a per-token table by the means taken of them: over types and tokens of a group, over types alone, in totals.
_BOTH_MEANS = ("loss", "unigram", "floor")
_TYPE_MEANS = ("accuracy", "top5_accuracy", "learning_speed", "floor_accuracy")
_TOTALS = ("loss", "accuracy", "unigram", "floor", "floor_accuracy")


def average_loss(table: pd.DataFrame) -> float:
    """Mean loss over tokens, in nats: Σ n_v ℓ_v / Σ n_v, what training minimises (paper, Section 3).

    >>> round(average_loss(pd.DataFrame({"n_eval": [3, 1, 0], "loss": [1.0, 5.0, float("nan")]})), 6)
    2.0
    """
    return _mean_over_tokens(table, "loss")


def _mean_over_tokens(table: pd.DataFrame, column: str) -> float:
    seen = table[table["n_eval"] > 0]
    return float((seen["n_eval"] * seen[column]).sum() / seen["n_eval"].sum()) if len(seen) else float("nan")


def _mean_over_types(table: pd.DataFrame, column: str) -> float:
    """Token-balanced mean: over token types that occur, n_v ≥ 1 (paper, Section 3)."""
    return float(table.loc[table["n_eval"] > 0, column].mean())


def totals(table: pd.DataFrame) -> dict[str, float]:
    """Average (over tokens) and token-balanced (over types) loss, accuracy and perplexity (exp of the loss), and chance.

    Chance is log V of the table's V types, the loss of a uniform guess in nats. With columns `unigram`, `floor` and
    `floor_accuracy` also their two means, by the same weights as those of the loss.
    """
    values: dict[str, float] = {
        "n_types": int((table["n_eval"] > 0).sum()),
        "n_tokens": int(table["n_eval"].sum()),
        "n_train_tokens": int(table["n_train"].sum()),
        "chance": float(np.log(len(table))),
    }
    for name in (c for c in _TOTALS if c in table):
        values[f"average_{name}"] = _mean_over_tokens(table, name)
        values[f"token_balanced_{name}"] = _mean_over_types(table, name)
    for kind in ("average", "token_balanced") if "loss" in table else ():
        values[f"{kind}_perplexity"] = float(np.exp(values[f"{kind}_loss"]))
    return values


def grouped(table: pd.DataFrame, percentile: float, calibration: np.ndarray | None = None) -> dict[str, pd.DataFrame]:
    """The means of a per-token table, by name: `totals` of one row, `bins`, `classes` and `kinds`."""
    return {
        "bins": by_bin(table, calibration),
        "classes": by_class(table, percentile, calibration),
        "kinds": by_kind(table, calibration),
        "totals": pd.DataFrame([totals(table)]),
    }


def by_bin(table: pd.DataFrame, calibration: np.ndarray | None = None) -> pd.DataFrame:
    """Per-token loss, accuracy and learning speed by powers-of-3 bin of the training count n_v (paper, Figures 4 and 5).

    `loss`, `accuracy`, `top5_accuracy` and `learning_speed` are means over the bin's token types with n_eval ≥ 1;
    `loss_occurrences` is the mean over their tokens. With a `calibration` array also `confidence` (mean) and `ece`, the
    expected calibration error, both over the tokens whose *target* lies in the bin. A table with `unigram` or `floor` also
    has their means over types and over tokens, and the `gain` over the unigram, unigram − loss, both ways (nats).
    """
    seen = table[table["n_eval"] > 0]
    groups = seen.groupby(frequency.bin_index(seen["n_train"]))
    return pd.DataFrame([{**_bin(i), **_means(group, calibration)} for i, group in groups])


def _bin(index: int) -> dict[str, Any]:
    return {"bin": frequency.bin_label(index), "bin_low": frequency.bin_low(index)}


def by_kind(table: pd.DataFrame, calibration: np.ndarray | None = None) -> pd.DataFrame:
    """The same means as `by_bin` by kind of token: word starts, word pieces, numbers, punctuation and so on."""
    seen = table[table["n_eval"] > 0]
    return pd.DataFrame([{"kind": kind, **_means(group, calibration)} for kind, group in seen.groupby("kind")])


def gain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Gain over the unigram, unigram − loss (nats), over types and over tokens, of one group or of a table's columns."""
    return {f"gain{o}": values[f"unigram{o}"] - values[f"loss{o}"] for o in ("", "_occurrences")}


def _means(group: pd.DataFrame, calibration: np.ndarray | None) -> dict[str, float]:
    values: dict[str, float] = {"n_types": len(group), "n_tokens": int(group["n_eval"].sum())}
    for name in (c for c in _BOTH_MEANS if c in group):
        values |= {name: group[name].mean(), f"{name}_occurrences": _mean_over_tokens(group, name)}
    values |= {name: group[name].mean() for name in _TYPE_MEANS if name in group}
    if {"loss", "unigram"} <= set(group):
        values |= gain(values)
    if calibration is not None:
        sums = calibration[group["token_id"]].sum(axis=0)
        confidence = float(sums[:, 1].sum() / max(sums[:, 0].sum(), 1))
        values |= {"confidence": confidence, "ece": expected_calibration_error(sums)}
    return values


def expected_calibration_error(sums: np.ndarray) -> float:
    """Mean distance of confidence and accuracy over confidence bins, weighted by tokens (Guo et al. 2017), in [0, 1].

    `sums` [bins, 3]: tokens, summed confidence, correct predictions. NaN without tokens.

    >>> expected_calibration_error(np.array([[2, 1.8, 1.0], [2, 0.4, 1.0]]))
    0.35
    """
    n = sums[:, 0].sum()
    return float(np.abs(sums[:, 1] - sums[:, 2]).sum() / n) if n else float("nan")


def reliability(table: pd.DataFrame, calibration: np.ndarray, percentile: float) -> pd.DataFrame:
    """Reliability curves: columns frequency_class, confidence_bin (its lower edge), n_tokens, confidence, accuracy.

    Means over the tokens whose target is of the class and whose confidence lies in the bin; empty bins are left out.
    """
    rows = []
    n_bins = calibration.shape[1]
    for name, members in _classes(table, percentile):
        for k, (n, confidence, correct) in enumerate(calibration[members["token_id"]].sum(axis=0)):
            if n:
                row = {"n_tokens": int(n), "confidence": confidence / n, "accuracy": correct / n}
                rows.append({"frequency_class": name, "confidence_bin": k / n_bins, **row})
    return pd.DataFrame(rows)


def confidence_gap(curves: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Confidence less accuracy of `reliability` curves, summed over tokens by `keys`: columns `gap` (tokens) and `n_tokens`."""
    gaps = curves.assign(gap=curves["n_tokens"] * (curves["confidence"] - curves["accuracy"]))
    return gaps.groupby(list(keys), sort=False)[["gap", "n_tokens"]].sum()


def by_class(table: pd.DataFrame, percentile: float, calibration: np.ndarray | None = None) -> pd.DataFrame:
    """The same means as `by_bin` for low- and high-frequency types (paper, Figure 1)."""
    classes = [(name, members[members["n_eval"] > 0]) for name, members in _classes(table, percentile)]
    return pd.DataFrame([{"frequency_class": name, **_means(seen, calibration)} for name, seen in classes])


def _classes(table: pd.DataFrame, percentile: float) -> list[tuple[str, pd.DataFrame]]:
    low = frequency.low_frequency(table["n_train"], percentile)
    return [("low", table[low]), ("high", table[~low])]


def learning_speed(steps: np.ndarray, counts: np.ndarray, loss_sums: np.ndarray, vocab_size: int) -> np.ndarray:
    """Learning speed of every token type, in [0, 1]; larger means learnt sooner. NaN for a type never seen.

    `steps` [windows] are the last steps of the windows, `counts` and `loss_sums` [windows, vocabulary] the sums over
    each. With ℓ_v(t) the mean training loss of v in the window around step t, on its scale from 0 to the loss log V of
    a uniform prediction,

        speed_v = 1 − (1/T) ∫_0^T min(ℓ_v(t), log V) / log V dt,

    the integral by the trapezoid rule over window mid-points, from ℓ_v(0) = log V on; windows in which v does not occur
    are bridged linearly and the last value is held to T. The paper gives no formula for its normalised area
    (Figures 4b and 5b): this one is ours.
    """
    if vocab_size < 2:
        raise ValueError("learning speed needs a vocabulary of at least 2 types")
    ends = np.asarray(steps, dtype=np.float64)
    mid = (np.concatenate([[0], ends[:-1]]) + ends) / 2
    seen = counts > 0
    loss = np.minimum(np.divide(loss_sums, counts, out=np.zeros(counts.shape), where=seen) / np.log(vocab_size), 1.0)
    area, last_time, last_loss = np.zeros(counts.shape[1]), np.zeros(counts.shape[1]), np.ones(counts.shape[1])
    for t, here, value in zip(mid, seen, loss, strict=True):  # over windows: memory stays one row of the vocabulary
        area += np.where(here, (t - last_time) * (value + last_loss) / 2, 0.0)
        last_time, last_loss = np.where(here, t, last_time), np.where(here, value, last_loss)
    area += (ends[-1] - last_time) * last_loss
    return np.where(seen.any(axis=0), 1.0 - area / ends[-1], np.nan)


def learning_curves(steps: np.ndarray, counts: np.ndarray, loss_sums: np.ndarray, n_train: np.ndarray) -> pd.DataFrame:
    """Mean training loss by frequency bin and window: columns bin, bin_low, step, loss (mean over types seen in it)."""
    index = frequency.bin_index(n_train)
    frames = []
    for k in np.unique(index[index >= 0]):
        members = index == k
        n, total = counts[:, members], loss_sums[:, members]
        mean = np.divide(total, n, out=np.full(n.shape, np.nan), where=n > 0)
        seen = (n > 0).any(axis=1)
        frames.append(pd.DataFrame({**_bin(k), "step": steps[seen], "loss": np.nanmean(mean[seen], axis=1)}))
    return pd.concat(frames, ignore_index=True)


def baselines(bins: pd.DataFrame, totals: pd.DataFrame) -> pd.DataFrame:
    """What losses by bin are compared with: columns baseline, mean (nats over types) and the keys of `bins` but λ and seed.

    Of training rows the floor, which no model can pass; of held-out rows the unigram and of a uniform guess, log V,
    below which a model of use there lies.
    """
    keys = [k for k in KEYS if k in bins and k not in ("weight_decay", "seed")]
    both = bins.merge(totals[[*(k for k in KEYS if k in totals and k in bins), "chance"]])
    names = {"floor": "floor", "unigram": "unigram", "chance": "uniform guess"}
    long = both.rename(columns=names).melt(keys, list(names.values()), "baseline", "mean")
    kept = (long["split"] == "training") == (long["baseline"] == "floor")
    return long[kept].drop_duplicates([*keys, "baseline"], ignore_index=True)


def difference_over_blocks(
    sums: np.ndarray, n: np.ndarray, other_sums: np.ndarray, n_other: np.ndarray, confidence: float = 0.95
) -> tuple[float, float, float]:
    """Difference of two means over tokens, Σ sums / Σ n − Σ other / Σ n_other, with its interval over blocks (nats).

    All arrays are [blocks]: sums of a quantity and numbers of tokens of each block, which may be 0. Tokens of a block are
    not independent, so blocks are the sample: a Student-t interval of the linearised ratios (Cochran 1977, Section 6.4),
    which keeps both sums of a block together. NaN where a mean has no tokens, or the interval fewer than two blocks.

    >>> ones = np.ones(3)
    >>> [round(x, 3) for x in difference_over_blocks(np.array([2.0, 3.0, 4.0]), ones, ones, ones)]
    [2.0, -0.484, 4.484]
    """
    if not (n.sum() and n_other.sum()):
        return (float("nan"),) * 3
    mean, other = sums.sum() / n.sum(), other_sums.sum() / n_other.sum()
    residuals = (sums - mean * n) / n.sum() - (other_sums - other * n_other) / n_other.sum()
    size = len(n)
    half = np.nan
    if size > 1:
        half = stats.t.ppf((1 + confidence) / 2, size - 1) * np.sqrt(size / (size - 1) * (residuals**2).sum())
    return float(mean - other), float(mean - other - half), float(mean - other + half)


def norms_by_bin(table: pd.DataFrame, column: str = "embedding_norm") -> pd.DataFrame:
    """Median, 10th and 90th percentile of norms of embedding rows by frequency bin of n_v, over all types of the table."""
    groups = table.groupby(frequency.bin_index(table["n_train"]))[column]
    quantiles = groups.quantile([0.1, 0.5, 0.9]).unstack().set_axis(["p10", "median", "p90"], axis=1)
    bins = pd.DataFrame([_bin(i) for i in quantiles.index], index=quantiles.index)
    return bins.assign(n_types=groups.size()).join(quantiles).reset_index(drop=True)


def undertrained(table: pd.DataFrame, norm_columns: Sequence[str]) -> pd.DataFrame:
    """Types that look hardly trained: embedding norm and gain over the unigram both far below those of their bin.

    After Land & Bartolo (2024), who find such types by their embeddings. Far below is Tukey's fence, the bin's first
    quartile − 1.5 interquartile ranges, of log norms (in any of `norm_columns`) and of gains over the types evaluated. Types
    that were not evaluated are judged by the norm alone (`judged_by` says which); types with n_v = 0, whose bin says nothing
    of how often a model saw them, by the fence of all types with n_v ≥ 1. `norm_ratio` is the smallest norm over its bin's
    median. Rows that were judged by both first, then by `norm_ratio`.
    """
    bins = frequency.bin_index(table["n_train"])
    logs = {c: np.log(table[c].clip(lower=1e-30)) for c in norm_columns}
    gain = table["unigram"] - table["loss"]
    small = np.any([v < _quantiles(v, bins)["fence"] for v in logs.values()], axis=0)
    little = (gain < _quantiles(gain, bins)["fence"]).to_numpy()
    seen = (table["n_eval"] > 0).to_numpy()
    ratio = np.exp(np.min([v - _quantiles(v, bins)["median"] for v in logs.values()], axis=0))
    columns = ["token_id", "token", "kind", "n_train", "n_eval", "loss", "unigram", *norm_columns]
    found = table[columns].assign(gain=gain, norm_ratio=ratio, judged_by=np.where(seen, "norm and gain", "norm alone"))
    found = found[small & (little | ~seen)]
    return found.sort_values(["judged_by", "norm_ratio"], ascending=[False, True], ignore_index=True)


def _quantiles(values: pd.Series, bins: np.ndarray) -> pd.DataFrame:
    """Each one's bin's `median` and `fence` (first quartile − 1.5 interquartile ranges); bin −1 takes those of all others."""
    table = values.groupby(bins).quantile([0.25, 0.5, 0.75]).unstack()
    table.loc[-1] = values[bins >= 0].quantile([0.25, 0.5, 0.75])
    own = table.loc[bins].set_axis(values.index)
    return pd.DataFrame({"median": own[0.5], "fence": own[0.25] - 1.5 * (own[0.75] - own[0.25])})


def over_seeds(frame: pd.DataFrame, value: str, confidence: float = 0.95) -> pd.DataFrame:
    """Mean of `value` over seeds with its sample standard deviation and Student-t interval.

    Keeps the key columns of `frame` but `seed`; adds `mean`, `sd`, `low`, `high`, `n_seeds`. With one seed the
    spread is unknown: `sd`, `low` and `high` are NaN.
    """
    keys = [key for key in KEYS if key in frame.columns and key != "seed"]
    by = frame.groupby(keys, sort=False, dropna=False)[value]
    grouped = by.agg(mean="mean", sd="std", n_seeds="count").reset_index()
    half = t_half_width(grouped["sd"], grouped["n_seeds"], confidence)
    return grouped.assign(low=grouped["mean"] - half, high=grouped["mean"] + half)


def t_half_width(sd: Any, n: Any, confidence: float) -> Any:
    """Half width of the Student-t interval of a mean of `n` values with standard deviation `sd`, NaN (as `sd`) for n = 1."""
    return stats.t.ppf((1 + confidence) / 2, np.maximum(n - 1, 1)) * sd / np.sqrt(n)


def largest_up_to(values: pd.Series, bound: float) -> float:
    """The largest of some values up to `bound`, or else the smallest of all.

    >>> run = pd.Series([0.5, 1.0, 2.0])
    >>> largest_up_to(run, 1.5), largest_up_to(run, 0.1)
    (1.0, 0.5)
    """
    return float(values[values <= max(bound, values.min())].max())


def changes(frame: pd.DataFrame, value: str) -> pd.DataFrame:
    """Change of `value` from λ = 0, paired by seed: adds `difference` and `ratio` to the other rows.

    A row without a partner of the same seed at λ = 0 is left out. Raises ValueError if that leaves none.
    """
    keys = [key for key in KEYS if key in frame.columns and key != "weight_decay"]
    decayed, plain = frame[frame["weight_decay"] != 0], frame.loc[frame["weight_decay"] == 0, [*keys, value]]
    paired = decayed.merge(plain, on=keys, suffixes=("", "_base"))
    if paired.empty and len(decayed):
        raise ValueError("no run has a partner of the same seed at weight decay 0; train it too")
    return paired.assign(
        difference=paired[value] - paired[f"{value}_base"], ratio=paired[value] / paired[f"{value}_base"]
    )


def change(frame: pd.DataFrame, value: str, weight_decay: float) -> pd.Series:
    """Change of `value` from λ = 0 to `weight_decay`, by seed; empty where no run is at this λ."""
    two = frame[frame["weight_decay"].isin([0.0, weight_decay])]
    return changes(two, value).set_index("seed")["difference"]


def class_change(classes: pd.DataFrame, split: str, frequency_class: str, weight_decay: float) -> pd.Series:
    """`change` of the loss of low- or high-frequency types on a text."""
    chosen = (classes["split"] == split) & (classes["frequency_class"] == frequency_class)
    return change(classes[chosen], "loss", weight_decay)


def table_1(frame: pd.DataFrame, measures: Sequence[str]) -> pd.DataFrame:
    """Table 1 of the paper: one row per model, split and λ, `mean ± sd` over seeds of each measure of a totals table."""
    keys = [key for key in ("model", "variant", "split", "weight_decay") if key in frame.columns]
    grouped = frame.groupby(keys, sort=False)[list(measures)]
    mean, sd = grouped.mean(), grouped.std()
    cells = {
        m: [f"{a:.4f}" + (f" ± {b:.4f}" if b == b else "") for a, b in zip(mean[m], sd[m], strict=True)]
        for m in measures
    }
    table = pd.DataFrame(cells, index=mean.index).assign(n_seeds=grouped.size()).reset_index()
    # training text first, as in the paper, and not between the rows of held-out text
    return table.sort_values(keys, ascending=[key != "split" for key in keys], ignore_index=True)
