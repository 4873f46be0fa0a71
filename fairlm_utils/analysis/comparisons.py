"""Comparisons over seeds: paired differences, slopes in λ with their test, the best λ by frequency, remedies side by side.

Everything is paired by seed: the same seed at two values of λ (or under two remedies) starts from the same weights and sees
the same batches, so that differences vary less than the values. Intervals and p-values are Student's t over seeds; with few
seeds they are wide, and an interval that holds 0 is reported as such.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from fairlm_utils import files
from fairlm_utils.analysis import metrics
from fairlm_utils.analysis.results import SOME_TABLES, TABLES, Results

#: Variants of an experiment on remedies that the others are measured from.
NO_DECAY, PLAIN_DECAY = "no decay", "plain decay"
_EARLIER_NAMES = {"decay on all": PLAIN_DECAY}
#: What remedies are judged on, the first first.
MEASURES = {
    "heldout_average": "held-out average loss",
    "heldout_balanced": "held-out token-balanced loss",
    "heldout_rarest": "held-out loss of the rarest types",
    "heldout_low_frequency": "held-out loss of low-frequency types",
    "heldout_word": "held-out loss per word",
    "heldout_ece": "held-out calibration error",
    "training_average": "training average loss",
    "training_balanced": "training token-balanced loss",
    "training_rarest": "training loss of the rarest types",
}


def split_rate(variant: pd.Series) -> pd.DataFrame:
    """Columns name and learning_rate of variants "NAME, lr RATE", as experiment files call a setting at each rate tried."""
    found = variant.str.extract(r"^(?:(?P<name>.*), )?lr (?P<learning_rate>[0-9.e-]+)$")
    if found["learning_rate"].isna().any():
        raise files.RunError(
            f"variants {list(variant.unique())} do not end in 'lr RATE', so that no rate can be chosen"
        )
    return found.fillna({"name": ""}).astype({"learning_rate": float})


def rates(results: Results) -> pd.DataFrame:
    """The learning rates tried of each setting: one row per variant "NAME, lr RATE", held-out average losses (nats), means over seeds.

    Columns: variant, name, learning_rate, loss and sd (at λ = 0), kept (the lowest `loss` of its name), best_weight_decay and
    best_loss (the lowest over λ at that rate). Raises RunError for variants of other names.
    """
    held = results.totals[results.totals["split"] == "held-out"]
    losses = held.groupby(["variant", "weight_decay"], sort=False)["average_loss"]
    means = losses.agg(best_loss="mean", sd="std").reset_index().rename(columns={"weight_decay": "best_weight_decay"})
    table = means[means["best_weight_decay"] == 0].rename(columns={"best_loss": "loss"})[["variant", "loss", "sd"]]
    best = means.loc[means.groupby("variant", sort=False)["best_loss"].idxmin()].drop(columns="sd")
    table = table.merge(best, on="variant")
    table = table.join(split_rate(table["variant"]))
    return table.assign(kept=table.index.isin(table.groupby("name")["loss"].idxmin()))


def say_rates(table: pd.DataFrame) -> list[str]:
    """A sentence per setting from a table of `rates`: which rate was kept, whether it ends the grid, and what another choice takes."""
    lines = []
    for name, own in table.groupby("name", sort=False):
        kept, best, tried = own[own["kept"]].iloc[0], own.loc[own["best_loss"].idxmin()], own["learning_rate"]
        ends = {tried.min(): "the smallest", tried.max(): "the largest"} if len(own) > 1 else {}
        edge = f", {ends[rate]} of {len(own)} tried" if (rate := kept["learning_rate"]) in ends else ""
        said = f"{name}: learning rate {rate:g}{edge}, {kept['loss']:.3f} ± {kept['sd']:.3f} nats on held-out text at λ = 0"
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
    not to blame for what it changes. The table of `rates` goes with the provenance, by column. Raises RunError for
    variants of other names.
    """
    tried = rates(results)
    kept_rates = tried[tried["kept"]]
    name = dict(zip(kept_rates["variant"], kept_rates["name"], strict=True))

    def kept(table: pd.DataFrame | None) -> pd.DataFrame | None:
        if table is None or "variant" not in table:
            return table
        return table[table["variant"].isin(name)].replace({"variant": name}).reset_index(drop=True)

    own = {name[v]: of for v, of in results.params["variants"].items() if v in name}
    tables = {t: kept(getattr(results, t)) for t in (*TABLES, *SOME_TABLES, "tokens")}
    provenance = {**results.provenance, "rates": tried.to_dict("list")}
    return replace(results, **tables, params={**results.params, "variants": own}, provenance=provenance)  # type: ignore[arg-type]


def paired(frame: pd.DataFrame, value: str, confidence: float = 0.95, base: float = 0.0) -> pd.DataFrame:
    """Change of `value` from weight decay `base`, paired by seed: the key columns and those of `mean_interval`."""
    return mean_interval(metrics.changes(frame, value, base), "difference", confidence)


def mean_interval(frame: pd.DataFrame, value: str, confidence: float = 0.95) -> pd.DataFrame:
    """`metrics.over_seeds` with `p_value`, of the two-sided t test that the mean over seeds is 0 (NaN for one seed)."""
    table = metrics.over_seeds(frame, value, confidence)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = table["mean"] / (table["sd"] / np.sqrt(table["n_seeds"]))
    return table.assign(p_value=2 * stats.t.sf(np.abs(t), np.maximum(table["n_seeds"] - 1, 1)))


def say_changes(changes: pd.DataFrame, group: str, value: str = "loss", unit: str = " nats") -> list[str]:
    """One sentence per text: how many groups of `paired` changes fall or rise beyond seeds, and the largest of each."""
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


def slope_test(
    classes: pd.DataFrame, value: str = "loss", largest: float = 1.0, confidence: float = 0.95
) -> pd.DataFrame:
    """Whether low-frequency types rise faster with λ than high-frequency ones: one row per model, split and regime.

    The slope is that of the least-squares line of `value` against λ in [0, `largest`], one per seed and class (nats per
    unit of λ). Columns: low, high (mean slopes), difference with its interval (difference_low, difference_high), p_value
    of the one-sided paired t test that the difference is not above 0, n_seeds, n_weight_decays. Raises ValueError with
    fewer than two values of λ.
    """
    within = classes[classes["weight_decay"] <= largest]
    keys = [k for k in metrics.KEYS if k in classes and k not in ("weight_decay", "seed", "frequency_class")]
    rows = []
    for key, group in within.groupby(keys, sort=False):
        table = group.pivot_table(index="weight_decay", columns=["frequency_class", "seed"], values=value)
        if len(table) < 2:
            raise ValueError(f"a slope in λ needs two values of λ up to {largest:g}; the experiment has {len(table)}")
        slopes = pd.Series(np.polyfit(table.index, table.to_numpy(), 1)[0], index=table.columns)
        low, high = slopes["low"], slopes["high"]
        mean, bounds, p_value = (low - high).mean(), (np.nan, np.nan), np.nan
        if len(low) > 1:
            bounds = stats.t.interval(confidence, len(low) - 1, mean, stats.sem(low - high))
            p_value = stats.ttest_1samp(low - high, 0.0, alternative="greater").pvalue
        rows.append((*key, low.mean(), high.mean(), mean, *bounds, p_value, len(low), len(table)))
    of_difference = ["difference", "difference_low", "difference_high", "p_value"]
    return pd.DataFrame(rows, columns=[*keys, "low", "high", *of_difference, "n_seeds", "n_weight_decays"])


def rarest_bins(bins: pd.DataFrame, share: float = 0.25) -> list[str]:
    """The lowest frequency bins (n_v ≥ 1) that together hold at least `share` of the types of the training split.

    So the rarest quarter of the vocabulary: a single lowest bin may hold a handful of odd types, such as bytes that occur
    once.
    """
    training = bins[(bins["split"] == "training") & (bins["bin_low"] > 0)]
    n = training.groupby(["bin_low", "bin"])["n_types"].mean()
    enough = int((n.cumsum() / n.sum() < share).sum()) + 1
    return n.index.get_level_values("bin")[:enough].tolist()


def rare_loss(bins: pd.DataFrame) -> pd.DataFrame:
    """Mean loss over the types of `rarest_bins` of every run and split: the keys and `loss`."""
    rare = bins[bins["bin"].isin(rarest_bins(bins))]
    keys = [k for k in metrics.KEYS if k in bins and k not in ("bin", "bin_low")]
    summed = rare.assign(loss=rare["loss"] * rare["n_types"]).groupby(keys, sort=False)[["loss", "n_types"]].sum()
    return (summed["loss"] / summed["n_types"]).rename("loss").reset_index()


def has_remedies(results: Results) -> bool:
    """Whether an experiment has the variants "no decay" and "plain decay", from which remedies are measured."""
    return "variant" in results.totals and {NO_DECAY, PLAIN_DECAY} <= set(_named(results.totals)["variant"])


def _named(table: pd.DataFrame) -> pd.DataFrame:
    return table.replace({"variant": _EARLIER_NAMES})


def remedy_numbers(results: Results) -> pd.DataFrame:
    """What every remedy is judged on, one row per variant and seed: the columns of `MEASURES`, in nats, and the error in [0, 1].

    The rarest types are those of `rarest_bins`; the expected calibration error is that over all targets of the held-out
    text. `heldout_word` is for the caller to add: under one tokenizer the loss per word is the average loss times the tokens per word.
    """
    index = ["variant", "seed"]
    wide = results.totals.pivot(index=index, columns="split", values=["average_loss", "token_balanced_loss"])
    rare = rare_loss(results.bins).pivot(index=index, columns="split", values="loss")
    low = results.classes.query("frequency_class == 'low' and split == 'held-out'").set_index(index)["loss"]
    numbers = {
        "heldout_average": wide["average_loss"]["held-out"],
        "heldout_balanced": wide["token_balanced_loss"]["held-out"],
        "heldout_rarest": rare["held-out"],
        "heldout_low_frequency": low,
        "heldout_ece": _calibration_error(results.reliability.query("split == 'held-out'"), index),
        "training_average": wide["average_loss"]["training"],
        "training_balanced": wide["token_balanced_loss"]["training"],
        "training_rarest": rare["training"],
    }
    return _named(pd.DataFrame(numbers).reset_index())


def _calibration_error(reliability: pd.DataFrame, keys: list[str]) -> pd.Series:
    """`metrics.expected_calibration_error` over both frequency classes together."""
    total = metrics.confidence_gap(reliability, [*keys, "confidence_bin"]).abs().groupby(keys).sum()
    return total["gap"] / total["n_tokens"]


def holm(p_values: pd.Series) -> pd.Series:
    """p-values corrected for their number by Holm's step-down rule (1979); those that are NaN do not count.

    >>> holm(pd.Series([0.01, 0.04, 0.03])).tolist()
    [0.03, 0.06, 0.06]
    """
    ordered = p_values.dropna().sort_values()
    return (ordered * np.arange(len(ordered), 0, -1)).cummax().clip(upper=1).reindex(p_values.index)


def judge_remedies(numbers: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """The change of every number from plain decay, paired by seed, and which remedy the rule recommends: a row per variant.

    Sorted by what low-frequency types gain on held-out text. Columns: variant, recommended, not_worse, p_holm, n_seeds and, for
    each measure of `numbers` (see `remedy_numbers`), its mean change with Student-t interval (_low, _high). The rule:

    1. there is something to remedy: plain decay lowers the held-out average of no decay, by an interval above 0;
    2. `not_worse`: no interval above 0 of the change of the held-out average, uncorrected, so that few variants pass;
    3. of these, the largest fall of the held-out loss of low-frequency types with `p_holm` below 1 − confidence: the
       two-sided paired t test, Holm-corrected over all variants but plain decay.

    Raises ValueError if the variants "no decay" and "plain decay" are not among them.
    """
    if not {NO_DECAY, PLAIN_DECAY} <= set(numbers["variant"]):
        raise ValueError(f"remedies are measured from the variants {NO_DECAY!r} and {PLAIN_DECAY!r}; add them")
    table = numbers.set_index(["variant", "seed"])
    changes = table.sub(table.loc[PLAIN_DECAY], level="seed").reset_index()
    of = {m: mean_interval(changes, m, confidence).set_index("variant") for m in MEASURES if m in table}
    low, average = of["heldout_low_frequency"], of["heldout_average"]
    not_worse, p_holm = ~(average["low"] > 0), holm(low["p_value"].drop(PLAIN_DECAY)).reindex(low.index)
    able = low["mean"][not_worse & (p_holm < 1 - confidence) & (low["mean"] < 0)]
    best = able.idxmin() if len(able) and average.loc[NO_DECAY, "low"] > 0 else None
    judged = {"recommended": low.index == best, "not_worse": not_worse, "p_holm": p_holm, "n_seeds": low["n_seeds"]}
    judged |= _with_intervals(of)
    return pd.DataFrame(judged, index=low.index).sort_values("heldout_low_frequency", kind="stable").reset_index()


def _with_intervals(tables: Mapping[str, pd.DataFrame]) -> dict[str, pd.Series]:
    """Means over seeds of several quantities as columns, each with its interval: NAME, NAME_low, NAME_high."""
    ends = {"": "mean", "_low": "low", "_high": "high"}
    return {name + end: table[of] for name, table in tables.items() for end, of in ends.items()}


def say_remedies(judged: pd.DataFrame) -> str:
    """The sentence that a table of `judge_remedies` supports: the remedy recommended, or why none is."""
    rows = {row["variant"]: row for row in judged.to_dict("records")}
    none, others = rows[NO_DECAY], [row for name, row in rows.items() if name != PLAIN_DECAY]
    without = f"against no decay ({_by(none, 'heldout_low_frequency', -1)})"
    if not none["heldout_average_low"] > 0:
        return (
            "there is nothing to remedy here: plain decay does not lower the held-out average loss beyond seed-to-seed variation "
            f"({_by(none, 'heldout_average', -1)} against no decay), so that no decay is as good or better"
        )
    if judged["recommended"].any():
        best = next(row for row in others if row["recommended"])
        costs = [f"{words} ({_by(best, m)})" for m, words in MEASURES.items() if best.get(f"{m}_low", 0) > 0]
        costly = f"it raises the {', the '.join(costs)}" if costs else "no other measure rises"
        return (
            f"recommended: {best['variant']}, which changes the held-out loss of low-frequency types by "
            f"{_by(best, 'heldout_low_frequency')}, Holm-corrected p = {best['p_holm']:.2g} over {len(others)} variants, and "
            f"the held-out average by {_by(best, 'heldout_average')} from plain decay, {best['n_seeds']} seeds; {costly}"
        )
    able = [row for row in others if row["not_worse"]]
    nearest = f" (the nearest, {able[0]['variant']}: {_by(able[0], 'heldout_low_frequency')})" if able else ""
    rest = (
        f"and of the {len(able)} of {len(others)} variants whose held-out average is not worse, none lowers it further by more "
        f"than seed-to-seed variation, Holm-corrected{nearest}"
    )
    if none["heldout_low_frequency_high"] < 0:
        return f"no remedy helps here: plain decay raises the held-out loss of low-frequency types {without}, {rest}"
    verb = "lowers" if none["heldout_low_frequency_low"] > 0 else "does not raise"
    return f"no remedy is needed here: plain decay {verb} the held-out loss of low-frequency types {without}, {rest}"


def say_best(judged: pd.DataFrame) -> str:
    """Which variant of `judge_remedies` lowers the held-out average most, and which the loss of rare types at no worse average."""
    average, low = "heldout_average", "heldout_low_frequency"
    able = judged[judged["not_worse"]]
    first, second = (row.to_dict() for row in (judged.loc[judged[average].idxmin()], able.loc[able[low].idxmin()]))
    return (
        f"Of {len(judged) - 1} variants beside plain decay {first['variant']} has the lowest {MEASURES[average]} "
        f"({_by(first, average)}; {MEASURES[low]} {_by(first, low)}); of the {len(able)} whose average is not worse, "
        f"{second['variant']} has the lowest {MEASURES[low]} ({_by(second, low)}, Holm-corrected p = {second['p_holm']:.2g}; average "
        f"{_by(second, average)})"
    )


def _by(row: Mapping[str, Any], measure: str, sign: int = 1) -> str:
    """A change with its interval; with sign −1 that from this variant to plain decay."""
    low, high = sorted((sign * row[f"{measure}_low"], sign * row[f"{measure}_high"]))
    return f"{sign * row[measure]:+.3f}{'' if measure == 'heldout_ece' else ' nats'}, {low:+.3f} to {high:+.3f}"


def kind_of_remedy(own: Mapping[str, Any], plain: Mapping[str, Any]) -> str:
    """What a variant acts on, from its parameters `own` and those of plain decay: for colours and for order."""
    changed = {k for k, v in own.items() if v != plain.get(k)}
    if not changed - {"weight_decay"}:
        return "reference"
    loss, row = changed & {"loss_weight_exponent", "logit_adjustment"}, "embedding_decay" in changed
    if loss and "decayed_parameters" in changed:
        return "loss and which decay"
    if loss:
        return "loss and decay by row" if row else "loss"
    if row:
        return "decay by row"
    if changed & {"dropout", "label_smoothing", "steps"}:
        return "other regulariser"
    if changed & {"optimizer", "learning_rate"} or own.get("weight_decay_form") == "cautious":
        return "optimiser"
    return "which parameters decay" if "decayed_parameters" in changed else "other regulariser"


def kinds_of_remedies(variants: Mapping[str, Mapping[str, Any]]) -> pd.Series:
    """`kind_of_remedy` of each of an experiment's variants, by name; no decay is a reference at its own rate too."""
    named = {_EARLIER_NAMES.get(name, name): own for name, own in variants.items()}
    kinds = {name: kind_of_remedy(own, named[PLAIN_DECAY]) for name, own in named.items()}
    return pd.Series({**kinds, NO_DECAY: "reference"} if NO_DECAY in kinds else kinds, dtype="object")


def pareto_front(x: pd.Series, y: pd.Series) -> pd.Series:
    """Whether no other point is at least as low on both and lower on one.

    >>> pareto_front(pd.Series([1.0, 2.0, 3.0]), pd.Series([3.0, 1.0, 2.0])).tolist()
    [True, True, False]
    """
    pairs = list(zip(x, y, strict=True))
    beaten = [any(a <= p and b <= q and (a, b) != (p, q) for a, b in pairs) for p, q in pairs]
    return ~pd.Series(beaten, index=x.index)


def remedy_points(
    numbers: pd.DataFrame, variants: Mapping[str, Mapping[str, Any]], confidence: float = 0.95
) -> pd.DataFrame:
    """Points of `charts.pareto`: held-out average and low-frequency loss with intervals over seeds, and what the rule says."""
    names = ("heldout_average", "heldout_low_frequency")
    tables = {name: metrics.over_seeds(numbers, name, confidence).set_index("variant") for name in names}
    frame = pd.DataFrame(_with_intervals(tables)).reset_index()
    recommended = judge_remedies(numbers, confidence).set_index("variant")["recommended"]
    return frame.assign(
        kind_of_remedy=frame["variant"].map(kinds_of_remedies(variants)),
        front=pareto_front(frame["heldout_average"], frame["heldout_low_frequency"]),
        recommended=frame["variant"].map(recommended),
    )


def mean_sd(frame: pd.DataFrame, by: str, values: Sequence[str]) -> pd.DataFrame:
    """A table to read: `mean ± sd` over seeds of each of `values`, one row per value of `by`, in the order they come."""
    grouped = frame.groupby(by, sort=False)[list(values)]
    mean, sd = grouped.mean(), grouped.std()
    cells = {v: [f"{a:.3f} ± {b:.3f}" for a, b in zip(mean[v], sd[v], strict=True)] for v in values}
    return pd.DataFrame(cells, index=mean.index).reset_index()


def stacked(regimes: Mapping[str, Results], table: str) -> pd.DataFrame:
    """A table ("totals", "bins", "classes", ...) of several experiments under one another, with the column `regime`."""
    tables = [getattr(results, table).assign(regime=name) for name, results in regimes.items()]
    return pd.concat(tables, ignore_index=True)


def at_weight_decay(results: Results, weight_decay: float, confidence: float = 0.95) -> pd.DataFrame:
    """Change from λ = 0 to `weight_decay`, or the largest λ below it that was run, as `mean ± half interval` (nats).

    One row per variant and split: average and token-balanced loss, low- and high-frequency types. Raises ValueError if the
    experiment has no λ between 0 and `weight_decay`.
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
    changes = paired(losses[losses["weight_decay"].isin([0.0, below.max()])], "loss", confidence)
    changes["change"] = [f"{m:+.3f} ± {h - m:.2g}" for m, h in zip(changes["mean"], changes["high"], strict=True)]
    order = ["average", "token-balanced", "low-frequency", "high-frequency"]
    kept = [k for k in ("variant", "split", "weight_decay", "n_seeds") if k in changes]
    table = changes.set_index([*kept, "measure"])["change"].unstack("measure")[order]
    return table.loc[list(dict.fromkeys(map(tuple, changes[kept].to_numpy())))].reset_index().rename_axis(columns=None)


def findings(changes: pd.DataFrame, slopes: pd.DataFrame, weight_decay: float) -> list[str]:
    """Sentences that the tables of `paired` and `slope_test` support, one per regime and text, harm and help alike."""
    lines = []
    for row in slopes.itertuples():
        here = changes[(changes["regime"] == row.regime) & (changes["split"] == row.split)]
        low, high = (
            here[(here["frequency_class"] == c) & (here["weight_decay"] == weight_decay)].iloc[0]
            for c in ("low", "high")
        )
        said = [f"{name} types {_direction(c)}" for name, c in (("low-frequency", low), ("high-frequency", high))]
        faster = "rise faster with λ than" if row.p_value < 0.05 else "do not rise reliably faster with λ than"
        first = here[(here["frequency_class"] == "low") & (here["p_value"] < 0.05)]["weight_decay"].min()
        lines.append(
            f"{row.regime}, {row.split} text, λ 0 → {weight_decay:g}: {' and '.join(said)}; low-frequency types {faster} high-frequency "
            f"ones (slopes {row.low:+.3f} and {row.high:+.3f}, p = {row.p_value:.2g}, {row.n_seeds} seeds); smallest λ with a change "
            f"beyond seeds: {'none' if np.isnan(first) else f'{first:g}'}"
        )
    return lines


def _direction(change: pd.Series) -> str:
    verb = "lose" if change["mean"] > 0 else "gain"
    sure = "" if change["low"] * change["high"] > 0 else ", within what seeds differ by"
    return f"{verb} {abs(change['mean']):.3f} nats ({change['low']:+.3f} to {change['high']:+.3f}{sure})"


def tokenizers(results: Results, confidence: float = 0.95) -> pd.DataFrame:
    """What the λ that held-out words choose changes, by frequency of words and of token types: variants are tokenizers.

    The λ of a variant is that of the lowest mean held-out loss per word (over occurrences, mean over seeds). A row per variant,
    `unit` (word, token), split and frequency bin, and `bin` "all" over occurrences. Columns, nats: weight_decay (the λ chosen),
    at_edge (it is the largest run), n (distinct words, or types), unigram (tokens alone; in a bin over its types), loss_none
    (mean over seeds at λ = 0; in a bin over its words or types), loss at the λ chosen (loss_low, loss_high), change from λ = 0
    (low, high, p_value; paired by seed) at `compared`, the λ chosen, or the smallest above 0 where that is 0,
    best_weight_decay (of the row's lowest mean loss) and forgone, loss at the λ chosen above that at the row's best
    (forgone_low, forgone_high): best of the same seeds, so never below 0. Only words are comparable between variants, and the
    text must be the same. Raises ValueError without losses by word, and if a seed lacks a λ or all lack λ = 0 or another.
    """
    if results.words is None or "variant" not in results.words:
        raise ValueError("tokenizers are compared by word; evaluate variants with by_word: true")
    words = results.words.assign(unigram=np.nan, unigram_occurrences=np.nan)
    both = {
        "word": words.rename(columns={"n_words": "n", "n_occurrences": "weight"}),
        "token": results.bins.rename(columns={"n_types": "n", "n_tokens": "weight"}),
    }
    keys = ["variant", "split", "weight_decay", "seed"]
    parts = []
    for unit, frame in both.items():
        weighted = {of: frame[f"{of}_occurrences"] * frame["weight"] for of in ("loss", "unigram")}
        sums = frame.assign(**weighted).groupby(keys, as_index=False)
        every = sums[["loss", "unigram", "weight", "n"]].sum(min_count=1)
        means = {of: every[of] / every["weight"] for of in weighted}
        columns = [*keys, "bin", "bin_low", "n", "loss", "unigram"]
        both_rows = [every.assign(**means, bin="all", bin_low=-1)[columns], frame[columns]]
        parts.append(pd.concat(both_rows).assign(measure=unit))
    losses = pd.concat(parts, ignore_index=True)
    overall = losses[(losses["measure"] == "word") & (losses["bin"] == "all") & (losses["split"] == "held-out")]
    chosen = overall.groupby(["variant", "weight_decay"])["loss"].mean().unstack().idxmin(axis=1)
    rows: list[dict[str, Any]] = []
    by_seed: list[pd.DataFrame] = []
    for key, group in losses.groupby(["variant", "measure", "split", "bin_low", "bin"], sort=False):
        wide = group.pivot(index="seed", columns="weight_decay", values="loss")
        if 0.0 not in wide or wide.shape[1] < 2 or wide.isna().any(axis=None):
            raise ValueError("seeds are paired over λ, 0 and another among them; train what is missing")
        own, best = chosen[key[0]], wide.mean().idxmin()
        compared = own or wide.columns[wide.columns > 0].min()
        row = {**dict(zip(("variant", "unit", "split", "bin_low", "bin"), key, strict=True)), "weight_decay": own}
        row |= {"at_edge": own == wide.columns.max(), "compared": compared, "n": group["n"].mean()}
        row |= {"unigram": group["unigram"].mean(), "loss_none": wide[0.0].mean()}
        rows.append({**row, "best_weight_decay": best, "n_seeds": len(wide)})
        of_seeds = {"loss": wide[own], "forgone": wide[own] - wide[best], "change": wide[compared] - wide[0.0]}
        by_seed.append(pd.DataFrame(of_seeds).assign(variant=len(by_seed)))
    # over seeds of all rows at once: one call per row takes ten times as long
    every, names = pd.concat(by_seed), ("loss", "forgone", "change")
    found = {name: mean_interval(every, name, confidence).set_index("variant") for name in names}
    table = pd.DataFrame(rows).join(pd.DataFrame(_with_intervals(found))).assign(p_value=found["change"]["p_value"])
    table = table.rename(columns={"change_low": "low", "change_high": "high"})
    return table.sort_values(["unit", "split", "bin_low"], kind="stable", ignore_index=True)


def say_tokenizers(table: pd.DataFrame, confidence: float = 0.95) -> list[str]:
    """Sentences from a table of `tokenizers`: do rare words pay for the λ chosen, and does it depend on the tokenizer.

    The answer first; then levels, every tokenizer, and all bins of words that change. Rare words are those of the lowest bin of
    counts ≥ 1. A change counts if its p-value, Holm-corrected over tokenizers and, in the last sentence, bins, is below
    1 − `confidence`.
    """
    held = table[table["split"] == "held-out"]
    words, every = held[held["unit"] == "word"], held[held["bin"] == "all"].set_index(["unit", "variant"])
    best = every.loc["word"].sort_values("loss")
    rare = (
        words[words["bin_low"] == words.loc[words["bin_low"] > 0, "bin_low"].min()].set_index("variant").loc[best.index]
    )
    unseen = words[words["bin_low"] == 0].set_index("variant")
    used = best["weight_decay"] > 0
    sure = used & (holm(rare["p_value"].where(used)) < 1 - confidence)
    label, n_seeds = rare["bin"].iloc[0], int(rare["n_seeds"].min())
    said = [
        f"{v}: {'no λ above 0 is chosen' if not used[v] else f'{r.change:+.3f} [{r.low:+.3f}, {r.high:+.3f}] at λ = {r.compared:g}'}"
        for v, r in zip(rare.index, rare.itertuples(), strict=True)
    ]
    pay, gain = list(rare.index[sure & (rare["change"] > 0)]), list(rare.index[sure & (rare["change"] < 0)])
    head = "under no tokenizer do rare words reliably pay for the λ that held-out words choose"
    if pay:
        head = f"rare words pay for the λ that held-out words choose under {' and '.join(pay)}"
    gains = (
        f"they gain by it under {' and '.join(gain)}"
        if gain
        else "nor do they reliably gain by it"
        if not pay
        else "they reliably gain by it under none"
    )
    lines = [
        f"{head}; {gains}",
        f"words with a count of {label}, change of the held-out loss from λ = 0, nats per word: {'; '.join(said)}",
    ]
    levels = []
    for v, row in best.iterrows():
        token = every.loc[("token", v)]
        by_unigram = token["unigram"] * row["loss"] / token["loss"]
        levels.append(
            f"{v} {row['loss']:.3f} [{row['loss_low']:.3f}, {row['loss_high']:.3f}] at λ = {row['weight_decay']:g}"
            f"{', the largest tried' if row['at_edge'] else ''} (the unigram of its own tokens about {by_unigram:.2f})"
        )
    lines.append(f"held-out loss at the λ chosen, nats per word: {'; '.join(levels)}")
    for v, row in best.iterrows():
        does, r = f"λ = {row['compared']:g}", rare.loc[v]
        does = does if used[v] else f"decay buys nothing at this rate; {does}, the smallest tried,"
        own = [("all words", row), *([("unseen ones", unseen.loc[v])] if v in unseen.index else [])]
        parts = [f"{what} by {c['change']:+.3f} [{c['low']:+.3f}, {c['high']:+.3f}]" for what, c in own]
        lines.append(
            f"{v}: {does} changes {' and '.join(parts)}; at the λ chosen those of {label} forgo {r['forgone']:.3f} "
            f"[{r['forgone_low']:.3f}, {r['forgone_high']:.3f}] against λ = {r['best_weight_decay']:g}, their best"
        )
    bins = words[(words["bin"] != "all") & words["variant"].map(used)]
    beyond = bins[holm(bins["p_value"]) < 1 - confidence]
    found = [f"count {r.bin} {r.change:+.3f} ({r.variant})" for r in beyond.itertuples()]
    lines.append(
        f"of {len(bins)} bins of held-out words at a λ above 0 that is chosen, Holm-corrected over all, {len(found)} change: "
        f"{'; '.join(found) or 'none'}; {n_seeds} seeds each"
    )
    return lines
