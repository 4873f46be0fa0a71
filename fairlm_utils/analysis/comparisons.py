"""Comparisons over seeds: paired differences, slopes in λ with their test, the best learning rate of each setting.

Everything is paired by seed: the same seed at two values of λ (or under two remedies) starts from the same weights and sees
the same batches, so that differences vary less than the values. Intervals and p-values are Student's t over seeds; with few
seeds they are wide, and an interval that holds 0 is reported as such.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from fairlm_utils import files
from fairlm_utils.analysis import metrics, scale
from fairlm_utils.analysis.results import SOME_TABLES, TABLES, Results

#: Where provenance has the `rates` that were tried before, while runs at others are joined.
_EARLIER = "earlier_rates"


def split_rate(variant: pd.Series) -> pd.DataFrame:
    """Columns name and learning_rate of variants "NAME, lr RATE", as experiment files call a setting at each rate tried."""
    found = variant.str.extract(r"^(?:(?P<name>.*), )?lr (?P<learning_rate>[0-9.e-]+)$")
    if found["learning_rate"].isna().any():
        raise files.RunError(
            f"variants {list(variant.unique())} do not end in 'lr RATE', so that no rate can be chosen"
        )
    return found.fillna({"name": ""}).astype({"learning_rate": float})


def best_setting(losses: pd.DataFrame) -> Any:
    """The row of lowest mean loss in a table [setting, seed], as of learning rates, NaN where a seed was not run (nats).

    Settings of as many seeds are compared by their means, one of fewer with the best of those over the seeds that both have: a
    mean of three seeds is not compared with one seed. Raises RunError where two have no seed in common.

    >>> float(best_setting(pd.DataFrame([[4.0, 4.2], [3.9, 4.4], [4.05, np.nan]], index=[0.001, 0.002, 0.004])))
    0.001
    """
    by_seeds = pd.DataFrame({"n": losses.notna().sum(axis=1), "mean": losses.mean(axis=1)})
    best, *others = by_seeds.sort_values(["n", "mean"], ascending=[False, True], kind="stable").index
    for setting in others:
        both = losses.loc[[best, setting]].dropna(axis=1)
        if both.empty:
            raise files.RunError(f"{best} and {setting}: no seed was run at both, so that neither is better; run one")
        best = both.mean(axis=1).idxmin()  # the first where they are equal
    return best


def rates(results: Results) -> pd.DataFrame:
    """The learning rates tried of each setting: one row per variant "NAME, lr RATE", held-out average losses (nats), means over seeds.

    Columns: variant, name, learning_rate, loss and sd (at λ = 0), kept (the `best_setting` of its name at λ = 0),
    best_weight_decay and best_loss (the lowest over λ at that rate). Raises RunError for variants of other names, and for
    rates of a name without a seed in common.
    """
    held = results.totals[results.totals["split"] == "held-out"]
    losses = held.groupby(["variant", "weight_decay"], sort=False)["average_loss"]
    means = losses.agg(best_loss="mean", sd="std").reset_index().rename(columns={"weight_decay": "best_weight_decay"})
    table = means[means["best_weight_decay"] == 0].rename(columns={"best_loss": "loss"})[["variant", "loss", "sd"]]
    best = means.loc[means.groupby("variant", sort=False)["best_loss"].idxmin()].drop(columns="sd")
    table = table.merge(best, on="variant")
    table = table.join(split_rate(table["variant"]))
    plain = held[held["weight_decay"] == 0].pivot(index="variant", columns="seed", values="average_loss")
    kept = [best_setting(plain.loc[own["variant"]]) for _, own in table.groupby("name")]
    return table.assign(kept=table["variant"].isin(kept))


def at_zero(row: pd.Series) -> str:
    """The held-out loss at λ = 0 of a row of `rates`, with its standard deviation over seeds if there are several."""
    return f"{row['loss']:.3f}" + (f" ± {row['sd']:.3f}" if pd.notna(row["sd"]) else " (one seed)")


def say_rates(table: pd.DataFrame) -> list[str]:
    """A sentence per setting from a table of `rates`: which rate was kept, whether it ends the grid, and what another choice takes."""
    lines = []
    for name, own in table.groupby("name", sort=False):
        kept, tried = own[own["kept"]].iloc[0], own["learning_rate"]
        like = own[own["sd"].notna() | pd.isna(kept["sd"])]  # a mean of seeds is not compared with one seed
        best = like.loc[like["best_loss"].idxmin()]
        ends = {tried.min(): "the smallest", tried.max(): "the largest"} if len(own) > 1 else {}
        edge = f", {ends[rate]} of {len(own)} tried" if (rate := kept["learning_rate"]) in ends else ""
        said = f"{name}: learning rate {rate:g}{edge}, {at_zero(kept)} nats on held-out text at λ = 0"
        if best["learning_rate"] != rate:
            said += (
                f"; rate and λ chosen together would be {best['learning_rate']:g} and {best['best_weight_decay']:g}, "
                f"{best['best_loss']:.3f} against {kept['best_loss']:.3f}"
            )
        lines.append(said)
    return lines


def at_best_rate(results: Results) -> Results:
    """The runs of each setting at the learning rate whose held-out average is lowest at λ = 0, mean over seeds.

    Of variants "NAME, lr RATE" those of that rate are kept, and called NAME. Then λ alone moves, and at a rate that is
    not to blame for what it changes. The table of `rates` goes with the provenance, by column, and with it that of rates whose
    runs are gone, see `at_every_rate`. Raises RunError for variants of other names, and if a rate that is gone is the best.
    """
    tried, earlier = rates(results), pd.DataFrame(results.provenance.get(_EARLIER, {"variant": []}))
    if len(gone := earlier[~earlier["variant"].isin(tried["variant"])]):
        best = gone["name"].map(tried[tried["kept"]].set_index("name")["loss"])
        if absent := list(gone.loc[~(gone["loss"] > best), "variant"]):
            raise files.RunError(f"{', '.join(absent)}: the best rate at λ = 0, and its runs are gone; run it again")
        tried = pd.concat([gone.assign(kept=False), tried]).sort_values(["name", "learning_rate"], ignore_index=True)
    kept_rates = tried[tried["kept"]]
    name = dict(zip(kept_rates["variant"], kept_rates["name"], strict=True))
    provenance = {k: v for k, v in results.provenance.items() if k != _EARLIER}
    provenance["rates"] = tried.astype(object).where(tried.notna(), None).to_dict("list")
    return replace(_variants(results, name), provenance=provenance)


def at_every_rate(kept: Results) -> Results:
    """What `at_best_rate` kept, called "NAME, lr RATE" again: runs at other rates can be joined to it, and the best chosen anew.

    Of the rates that were not kept, the table of `rates` alone is left.
    """
    table = pd.DataFrame(kept.provenance["rates"])
    variant = table[table["kept"]].set_index("name")["variant"].to_dict()
    provenance = {_EARLIER if k == "rates" else k: v for k, v in kept.provenance.items()}
    return replace(_variants(kept, variant), provenance=provenance)


def _variants(results: Results, names: Mapping[str, str]) -> Results:
    """The results of the variants that `names` has, by the names that it gives them."""

    def renamed(table: pd.DataFrame | None) -> pd.DataFrame | None:
        if table is None or "variant" not in table:
            return table
        return table[table["variant"].isin(names)].replace({"variant": dict(names)}).reset_index(drop=True)

    own = {names[v]: of for v, of in results.params["variants"].items() if v in names}
    tables = {t: renamed(getattr(results, t)) for t in (*TABLES, *SOME_TABLES, "tokens")}
    return replace(results, **tables, params={**results.params, "variants": own})  # type: ignore[arg-type]


def paired(frame: pd.DataFrame, value: str, confidence: float = 0.95) -> pd.DataFrame:
    """Change of `value` from λ = 0, paired by seed: the key columns and those of `mean_interval`."""
    return mean_interval(metrics.changes(frame, value), "difference", confidence)


def mean_interval(frame: pd.DataFrame, value: str, confidence: float = 0.95) -> pd.DataFrame:
    """`metrics.over_seeds` with `p_value`, of the two-sided t test that the mean over seeds is 0 (NaN for one seed)."""
    table = metrics.over_seeds(frame, value, confidence)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = table["mean"] / (table["sd"] / np.sqrt(table["n_seeds"]))
    return table.assign(p_value=2 * stats.t.sf(np.abs(t), np.maximum(table["n_seeds"] - 1, 1)))


def say_changes(changes: pd.DataFrame, group: str, value: str = "loss", unit: str = " nats") -> list[str]:
    """One sentence per text: how many groups of `paired` changes fall or rise beyond seed-to-seed variation, and the largest of each."""
    groups = {"frequency_class": "classes"}.get(group, f"{group}s")
    lines = []
    for split, own in changes.groupby("split", sort=False):
        said = []
        for word, beyond, order in (("lower", own["high"] < 0, True), ("higher", own["low"] > 0, False)):
            most = own[beyond].sort_values("mean", ascending=order).head(1)
            said.append(
                f"{word} in {beyond.sum()} of {len(own)} {groups}"
                + "".join(f" (most in {g}, {m:+.3f}{unit})" for g, m in zip(most[group], most["mean"], strict=True))
            )
        lines.append(f"On {split} text the {value} is beyond seed-to-seed variation {' and '.join(said)}")
    return lines


def slope_test(classes: pd.DataFrame, largest: float = 1.0, confidence: float = 0.95) -> pd.DataFrame:
    """Whether low-frequency types rise faster with λ than high-frequency ones: one row per model, split and regime.

    The slope is that of the least-squares line of the loss against λ in [0, `largest`], one per seed and class (nats per
    unit of λ). Columns: low, high (mean slopes), difference with its interval (difference_low, difference_high), p_value
    of the one-sided paired t test that the difference is not above 0, n_seeds (those that have every λ), n_weight_decays.
    Raises ValueError with fewer than two values of λ, or if no seed has all.
    """
    within = classes[classes["weight_decay"] <= largest]
    keys = [k for k in metrics.KEYS if k in classes and k not in ("weight_decay", "seed", "frequency_class")]
    rows = []
    for key, group in within.groupby(keys, sort=False):
        table = group.pivot_table(index="weight_decay", columns=["frequency_class", "seed"], values="loss")
        if len(table) < 2:
            raise ValueError(f"a slope in λ needs two values of λ up to {largest:g}; the experiment has {len(table)}")
        if (table := table.dropna(axis="columns")).empty:
            raise ValueError("a slope in λ needs a seed that was run at all of them; finish the runs of one")
        slopes = pd.Series(np.polyfit(table.index, table.to_numpy(), 1)[0], index=table.columns)
        low, high = slopes["low"], slopes["high"]
        found = scale.mean_and_interval(low - high, confidence)
        p_value = stats.ttest_1samp(low - high, 0.0, alternative="greater").pvalue if len(low) > 1 else np.nan
        rows.append((*key, low.mean(), high.mean(), *found, p_value, len(low), len(table)))
    of_difference = ["difference", "difference_low", "difference_high", "p_value"]
    return pd.DataFrame(rows, columns=[*keys, "low", "high", *of_difference, "n_seeds", "n_weight_decays"])


def holm(p_values: pd.Series) -> pd.Series:
    """p-values corrected for their number by Holm's step-down rule (1979); those that are NaN do not count.

    >>> holm(pd.Series([0.01, 0.04, 0.03])).tolist()
    [0.03, 0.06, 0.06]
    """
    ordered = p_values.dropna().sort_values()
    return (ordered * np.arange(len(ordered), 0, -1)).cummax().clip(upper=1).reindex(p_values.index)


def with_intervals(tables: Mapping[str, pd.DataFrame]) -> dict[str, pd.Series]:
    """Means over seeds of several quantities as columns, each with its interval: NAME, NAME_low, NAME_high."""
    ends = {"": "mean", "_low": "low", "_high": "high"}
    return {name + end: table[of] for name, table in tables.items() for end, of in ends.items()}


def stacked(regimes: Mapping[str, Results], table: str) -> pd.DataFrame:
    """A table ("totals", "bins", "classes", ...) of several experiments under one another, with the column `regime`."""
    tables = [getattr(results, table).assign(regime=name) for name, results in regimes.items()]
    return pd.concat(tables, ignore_index=True)


def at_weight_decay(results: Results, weight_decay: float) -> pd.DataFrame:
    """Change from λ = 0 to `weight_decay`, or the largest λ below it that was run, as `mean ± half interval` (nats).

    One row per variant and split, of several models also per model: average and token-balanced loss, low- and high-frequency
    types. Runs without a partner of the same seed at the other λ are left out. Raises ValueError if the experiment has no λ
    between 0 and `weight_decay`.
    """
    run = results.totals["weight_decay"]
    below = run[(run > 0) & (run <= weight_decay)]  # inf takes the largest
    if below.empty:
        raise ValueError(f"the experiment has no λ above 0 and up to {weight_decay:g}; raise the λ compared")
    names = {"average_loss": "average", "token_balanced_loss": "token-balanced"}
    keys = [k for k in metrics.KEYS if k in results.totals]
    totals = results.totals.rename(columns=names).melt(keys, list(names.values()), "measure", "loss")
    classes = results.classes.assign(measure=results.classes["frequency_class"] + "-frequency")
    losses = pd.concat([totals, classes[totals.columns]])
    two = losses[losses["weight_decay"].isin([0.0, below.max()])]
    both = two.groupby([k for k in (*keys, "measure") if k != "weight_decay"])["weight_decay"].transform("nunique") == 2
    changes = paired(two[both], "loss")
    halves = (changes["high"] - changes["mean"]).map(lambda half: "" if np.isnan(half) else f" ± {half:.2g}")
    changes["change"] = changes["mean"].map("{:+.3f}".format) + halves
    order = ["average", "token-balanced", "low-frequency", "high-frequency"]
    several = ["model"] * (changes["model"].nunique() > 1)
    kept = [k for k in (*several, "variant", "split", "weight_decay", "n_seeds") if k in changes]
    table = changes.set_index([*kept, "measure"])["change"].unstack("measure")[order]
    return table.loc[list(dict.fromkeys(map(tuple, changes[kept].to_numpy())))].reset_index().rename_axis(columns=None)


def findings(changes: pd.DataFrame, slopes: pd.DataFrame, weight_decay: float, confidence: float = 0.95) -> list[str]:
    """Sentences that the tables of `paired` and `slope_test` support, one per regime and text, harm and help alike.

    Of each regime the changes are those at `weight_decay`, or at the largest λ below it that was run, or else the smallest.
    The p-values of the slopes are Holm-corrected over the rows of `slopes`.
    """
    lines, level = [], 1 - confidence
    for row in slopes.assign(p_holm=holm(slopes["p_value"])).itertuples():
        here = changes[(changes["regime"] == row.regime) & (changes["split"] == row.split)]
        at = metrics.largest_up_to(here["weight_decay"], weight_decay)
        low, high = (
            here[(here["frequency_class"] == c) & (here["weight_decay"] == at)].iloc[0] for c in ("low", "high")
        )
        said = [f"{name} types {_direction(c)}" for name, c in (("low-frequency", low), ("high-frequency", high))]
        faster = "rise faster with λ than" if row.p_holm < level else "do not rise reliably faster with λ than"
        first = here[(here["frequency_class"] == "low") & (here["p_value"] < level)]["weight_decay"].min()
        lines.append(
            f"{row.regime}, {row.split} text, λ 0 → {at:g}: {' and '.join(said)}; low-frequency types {faster} high-frequency "
            f"ones (slopes {row.low:+.3f} and {row.high:+.3f}, p = {row.p_value:.2g}, Holm-corrected "
            f"{row.p_holm:.2g}, {row.n_seeds} seeds); smallest λ with a change beyond seed-to-seed variation: "
            f"{'none' if np.isnan(first) else f'{first:g}'}"
        )
    return lines


def _direction(change: pd.Series) -> str:
    verb = "lose" if change["mean"] > 0 else "gain"
    sure = "" if change["low"] * change["high"] > 0 else ", within seed-to-seed variation"
    return f"{verb} {abs(change['mean']):.3f} nats ({change['low']:+.3f} to {change['high']:+.3f}{sure})"
