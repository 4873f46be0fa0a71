"""Comparisons over seeds: paired differences, slopes in λ with their test, the best λ by frequency, remedies side by side.

Everything is paired by seed: the same seed at two values of λ (or under two remedies) starts from the same weights and sees
the same batches, so that differences vary less than the values. Intervals and p-values are Student's t over seeds; with few
seeds they are wide, and an interval that holds 0 is reported as such.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from fairlm_utils import metrics
from fairlm_utils.params import TrainingParams
from fairlm_utils.runs import Results

#: Variants of an experiment on remedies that the others are measured between.
NO_DECAY, DECAY_ON_ALL = "no decay", "decay on all"
#: The goal of a remedy: share of the rarest types' cost taken back, share of the held-out gain given up.
GOAL_TAKEN_BACK, GOAL_GIVEN_UP = 0.9, 0.005


def paired(frame: pd.DataFrame, value: str, confidence: float = 0.95, base: float = 0.0) -> pd.DataFrame:
    """Change of `value` from weight decay `base`, paired by seed: the key columns and those of `mean_interval`."""
    return mean_interval(metrics.changes(frame, value, base), "difference", confidence)


def mean_interval(frame: pd.DataFrame, value: str, confidence: float = 0.95) -> pd.DataFrame:
    """`metrics.over_seeds` with `p_value`, of the two-sided t test that the mean over seeds is 0 (NaN for one seed)."""
    table = metrics.over_seeds(frame, value, confidence)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = table["mean"] / (table["sd"] / np.sqrt(table["n_seeds"]))
    return table.assign(p_value=2 * stats.t.sf(np.abs(t), np.maximum(table["n_seeds"] - 1, 1)))


def slope_test(
    classes: pd.DataFrame, value: str = "loss", largest: float = 1.0, confidence: float = 0.95
) -> pd.DataFrame:
    """Whether low-frequency types rise faster with λ than high-frequency ones: a row a model, split and regime.

    The slope is that of the least-squares line of `value` against λ in [0, `largest`], one a seed and class (nats per
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
        test = stats.ttest_1samp(low - high, 0.0, alternative="greater") if len(low) > 1 else None
        interval = (
            stats.t.interval(confidence, len(low) - 1, (low - high).mean(), stats.sem(low - high))
            if test
            else (np.nan,) * 2
        )
        rows.append(
            {
                **dict(zip(keys, key, strict=True)),
                "low": low.mean(),
                "high": high.mean(),
                "difference": (low - high).mean(),
                "difference_low": interval[0],
                "difference_high": interval[1],
                "p_value": test.pvalue if test else np.nan,
                "n_seeds": len(low),
                "n_weight_decays": len(table),
            }
        )
    return pd.DataFrame(rows)


def best_weight_decay(bins: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """The λ of the lowest mean loss in each frequency bin, and what it gains over λ = 0 (nats, paired, with interval).

    Columns: the keys, weight_decay (the best), loss at it, gain, gain_low, gain_high, types. A gain whose interval holds
    0 says that no λ is better than none by more than seeds differ; at λ = 0 itself the gain is 0.
    """
    keys = [k for k in metrics.KEYS if k in bins and k not in ("weight_decay", "seed")]
    losses, gains = metrics.over_seeds(bins, "loss", confidence), paired(bins, "loss", confidence)
    best = losses.loc[losses.groupby(keys, sort=False)["mean"].idxmin(), [*keys, "weight_decay", "mean"]]
    table = best.merge(
        gains[[*keys, "weight_decay", "mean", "low", "high"]],
        on=[*keys, "weight_decay"],
        how="left",
        suffixes=("", "_gain"),
    )
    zero = table["weight_decay"] == 0
    return pd.DataFrame(
        {
            **{k: table[k] for k in keys},
            "weight_decay": table["weight_decay"],
            "loss": table["mean"],
            "gain": (-table["mean_gain"]).where(~zero, 0.0),
            "gain_low": (-table["high"]).where(~zero, 0.0),
            "gain_high": (-table["low"]).where(~zero, 0.0),
        }
    )


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


def remedy_numbers(results: Results) -> pd.DataFrame:
    """The four numbers every remedy is judged on, one row a variant and seed, in nats.

    training_balanced, heldout_average, heldout_balanced and heldout_rarest (types of `rarest_bins`); beside them
    training_average and training_rarest.
    """
    wide = results.totals.pivot(
        index=["variant", "seed"], columns="split", values=["average_loss", "token_balanced_loss"]
    )
    rare = rare_loss(results.bins).pivot(index=["variant", "seed"], columns="split", values="loss")
    return pd.DataFrame(
        {
            "training_balanced": wide["token_balanced_loss"]["training"],
            "heldout_average": wide["average_loss"]["held-out"],
            "heldout_balanced": wide["token_balanced_loss"]["held-out"],
            "heldout_rarest": rare["held-out"],
            "training_average": wide["average_loss"]["training"],
            "training_rarest": rare["training"],
        }
    ).reset_index()


def judge_remedies(numbers: pd.DataFrame, cost_split: str, confidence: float = 0.95) -> pd.DataFrame:
    """What each variant takes back and gives up of plain decay, paired by seed: a row a variant.

    - `taken_back`: share of what decay on all costs the rarest types on `cost_split` text ("training" where the model
      memorises, "held-out" where it does not): (all − variant) / (all − no decay), seeds' means of numerator and
      denominator, so that a seed with a small cost does not blow the ratio up.
    - `given_up`: share of the held-out average loss that decay on all bought: (variant − all) / (no decay − all); where
      it bought nothing, `inf` if the variant is worse than decay on all and 0 if not.
    - `heldout_change`: variant − all of the held-out average (nats), with interval `change_low`, `change_high`.
    - `meets_goal`: taken_back ≥ 0.9 and given_up ≤ 0.005 on the means.

    Raises ValueError if the variants "no decay" and "decay on all" are not among them.
    """
    table = numbers.set_index(["variant", "seed"])
    if not {NO_DECAY, DECAY_ON_ALL} <= set(numbers["variant"]):
        raise ValueError(f"remedies are measured between the variants {NO_DECAY!r} and {DECAY_ON_ALL!r}; add them")
    none, plain = table.loc[NO_DECAY], table.loc[DECAY_ON_ALL]
    rarest = f"{cost_split.replace('-', '')}_rarest"
    cost = (plain[rarest] - none[rarest]).mean()
    bought = (none["heldout_average"] - plain["heldout_average"]).mean()
    rows = []
    for variant in dict.fromkeys(numbers["variant"]):
        own = table.loc[variant]
        change = own["heldout_average"] - plain["heldout_average"]
        interval = (np.nan, np.nan)
        if len(change) > 1:
            half = float(metrics.t_half_width(pd.Series([change.std()]), pd.Series([len(change)]), confidence).iloc[0])
            interval = change.mean() - half, change.mean() + half
        taken_back = (plain[rarest] - own[rarest]).mean() / cost
        given_up = change.mean() / bought if bought > 0 else (np.inf if change.mean() > 0 else 0.0)
        rows.append(
            {
                "variant": variant,
                "taken_back": taken_back,
                "given_up": given_up,
                "heldout_change": change.mean(),
                "change_low": interval[0],
                "change_high": interval[1],
                "meets_goal": bool(taken_back >= GOAL_TAKEN_BACK and given_up <= GOAL_GIVEN_UP),
                "n_seeds": len(change),
            }
        )
    return pd.DataFrame(rows)


def cost_split(numbers: pd.DataFrame) -> str:
    """The text on which decay costs the rarest types: "held-out" if it does there, else "training"."""
    means = numbers.groupby("variant").mean(numeric_only=True)
    heldout = means.loc[DECAY_ON_ALL, "heldout_rarest"] > means.loc[NO_DECAY, "heldout_rarest"]
    return "held-out" if heldout else "training"


def kind_of_remedy(own: Mapping[str, Any], name: str) -> str:
    """What a variant acts on, from the parameters `own` to it: for colours and for order."""
    if name in (NO_DECAY, DECAY_ON_ALL):
        return "reference"
    defaults = {k: field.default for k, field in TrainingParams.model_fields.items()}
    changed = {k for k, v in own.items() if v != defaults[k]}
    loss, row = changed & {"loss_weight_exponent", "logit_adjustment"}, "embedding_decay" in changed
    if loss and "decayed_parameters" in changed:
        return "loss and which decay"
    if loss:
        return "loss and decay by row" if row else "loss"
    if row:
        return "decay by row"
    return "which parameters decay" if "decayed_parameters" in changed else "other regulariser"


def pareto_front(x: pd.Series, y: pd.Series) -> pd.Series:
    """Whether no other point is at least as low on both and lower on one.

    >>> pareto_front(pd.Series([1.0, 2.0, 3.0]), pd.Series([3.0, 1.0, 2.0])).tolist()
    [True, True, False]
    """
    pairs = list(zip(x, y, strict=True))
    return pd.Series(
        [not any(a <= p and b <= q and (a, b) != (p, q) for a, b in pairs) for p, q in pairs], index=x.index
    )


def remedy_points(
    numbers: pd.DataFrame, variants: Mapping[str, Mapping[str, Any]], confidence: float = 0.95
) -> pd.DataFrame:
    """Points of `charts.pareto`: held-out average and rarest types' loss on the text of their cost, with intervals."""
    rarest = f"{cost_split(numbers).replace('-', '')}_rarest"
    points: dict[str, Any] = {}
    for name, value in (("heldout_average", "heldout_average"), ("rarest", rarest)):
        table = metrics.over_seeds(numbers, value, confidence)
        points |= {
            "variant": table["variant"],
            name: table["mean"],
            f"{name}_low": table["low"],
            f"{name}_high": table["high"],
        }
    frame = pd.DataFrame(points)
    front = pareto_front(frame["heldout_average"], frame["rarest"])
    kinds = [kind_of_remedy(variants.get(v, {}), v) for v in frame["variant"]]
    return frame.assign(kind_of_remedy=kinds, front=front)


def recommendation(judged: Mapping[str, pd.DataFrame]) -> list[str]:
    """What the tables of `judge_remedies`, one a regime, recommend: variants that meet the goal in all regimes, else the nearest.

    Nearest: of the variants that give up at most `GOAL_GIVEN_UP` in every regime, the one whose smallest share taken back
    is largest; and of all variants the same, with what it gives up.
    """
    table = pd.concat({r: t.set_index("variant") for r, t in judged.items()}, names=["regime"])
    names = [v for v in table.index.unique("variant") if v not in (NO_DECAY, DECAY_ON_ALL)]
    taken = table["taken_back"].unstack("regime").loc[names]
    given = table["given_up"].unstack("regime").loc[names]
    met = [
        v
        for v in names
        if table.xs(v, level="variant")["meets_goal"].all() and len(taken.loc[v].dropna()) == len(judged)
    ]
    goal = f"the goal (at least {GOAL_TAKEN_BACK:.0%} taken back, at most {GOAL_GIVEN_UP:.1%} given up, in {len(judged)} regime(s))"

    def shares(v: str) -> str:
        said = "; ".join(f"{r}: {taken.loc[v, r]:.0%} taken back, {given.loc[v, r]:.0%} given up" for r in judged)
        return f"{v!r} ({said})".replace("inf%", "more than decay bought, which was nothing,")

    if met:
        return [f"{goal} is met by {len(met)} of {len(names)} remedies", *map(shares, met)]
    lines = [f"no remedy meets {goal}"]
    cheap = [v for v in names if (given.loc[v] <= GOAL_GIVEN_UP).all()]
    for label, of in (
        ("of those that give up next to nothing, the nearest", cheap),
        ("of all, the nearest by what it takes back", names),
    ):
        if of:
            lines.append(f"{label} is {shares(taken.loc[of].min(axis=1).idxmax())}")
    return lines


def mean_sd(frame: pd.DataFrame, by: str, values: Sequence[str]) -> pd.DataFrame:
    """A table to read: `mean ± sd` over seeds of each of `values`, a row a value of `by`, in the order they come."""
    grouped = frame.groupby(by, sort=False)[list(values)]
    mean, sd = grouped.mean(), grouped.std()
    cells = {v: [f"{a:.3f} ± {b:.3f}" for a, b in zip(mean[v], sd[v], strict=True)] for v in values}
    return pd.DataFrame(cells, index=mean.index).reset_index()


def stacked(regimes: Mapping[str, Results], table: str) -> pd.DataFrame:
    """A table ("totals", "bins", "classes", ...) of several experiments under one another, with the column `regime`."""
    return pd.concat(
        [getattr(results, table).assign(regime=name) for name, results in regimes.items()], ignore_index=True
    )


def at_weight_decay(results: Results, weight_decay: float, confidence: float = 0.95) -> pd.DataFrame:
    """Change from λ = 0 to `weight_decay`, or the largest λ below it that was run, as `mean ± half interval` (nats).

    One row a variant and split: average and token-balanced loss, low- and high-frequency types. Raises ValueError if the
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
    """Sentences that the tables of `paired` and `slope_test` support, one a regime and text, harm and help alike."""
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

    The λ of a variant is that of the lowest mean held-out loss per word (over occurrences, mean over seeds). A row a variant,
    `unit` (word, token), split and frequency bin, and `bin` "all" over occurrences. Columns, nats: weight_decay (the λ chosen),
    n (distinct words, or types), loss_none (mean over seeds at λ = 0; in a bin over its words or types), loss at the λ chosen
    (loss_low, loss_high), its change (low, high; paired by seed), best_weight_decay (of the row's lowest mean loss) and
    forgone, loss at the λ chosen above that at the row's best (forgone_low, forgone_high): best of the same seeds, so never
    below 0. Only words are comparable between variants, and the text must be the same. Raises ValueError without losses by
    word, and if a seed lacks a λ or all lack λ = 0.
    """
    if results.words is None or "variant" not in results.words:
        raise ValueError("tokenizers are compared by word; evaluate variants with by_word: true")
    both = {
        "word": results.words.rename(columns={"n_words": "n", "n_occurrences": "weight"}),
        "token": results.bins.rename(columns={"n_types": "n", "n_tokens": "weight"}),
    }
    keys = ["variant", "split", "weight_decay", "seed"]
    parts = []
    for unit, frame in both.items():
        total = frame.assign(loss=frame["loss_occurrences"] * frame["weight"]).groupby(keys, as_index=False)
        every = total[["loss", "weight", "n"]].sum()
        every = every.assign(loss=every["loss"] / every["weight"], bin="all", bin_low=-1)
        columns = [*keys, "bin", "bin_low", "n", "loss"]
        parts.append(pd.concat([every[columns], frame[columns]]).assign(measure=unit))
    losses = pd.concat(parts, ignore_index=True)
    overall = losses[(losses["measure"] == "word") & (losses["bin"] == "all") & (losses["split"] == "held-out")]
    chosen = overall.groupby(["variant", "weight_decay"])["loss"].mean().unstack().idxmin(axis=1)
    rows = []
    for key, group in losses.groupby(["variant", "measure", "split", "bin_low", "bin"], sort=False):
        wide = group.pivot(index="seed", columns="weight_decay", values="loss")
        if 0.0 not in wide or wide.isna().any(axis=None):
            raise ValueError("seeds are paired over λ, 0 among them; train what is missing")
        own, best = chosen[key[0]], wide.mean().idxmin()
        row = {**dict(zip(("variant", "unit", "split", "bin_low", "bin"), key, strict=True)), "weight_decay": own}
        row |= {"n": group["n"].mean(), "loss_none": wide[0.0].mean()}
        for name, values in (
            ("loss", wide[own]),
            ("change", wide[own] - wide[0.0]),
            ("forgone", wide[own] - wide[best]),
        ):
            found = metrics.over_seeds(pd.DataFrame({"split": key[2], "value": values}), "value", confidence)
            ends = ("low", "high") if name == "change" else (f"{name}_low", f"{name}_high")
            row |= dict(zip((name, *ends), found[["mean", "low", "high"]].iloc[0], strict=True))
        rows.append({**row, "best_weight_decay": best, "n_seeds": len(wide)})
    return pd.DataFrame(rows).sort_values(["unit", "split", "bin_low"], kind="stable", ignore_index=True)


def say_tokenizers(table: pd.DataFrame) -> list[str]:
    """Sentences from a table of `tokenizers`: does what λ changes for rare words depend on the tokenizer; the verdict first.

    Rare words are those of the lowest bin of counts ≥ 1; a sign counts where its interval is beyond 0.
    """
    held = table[(table["split"] == "held-out") & (table["unit"] == "word")]
    lines, said = [], {}
    for variant, own in held.groupby("variant", sort=False):
        every, rare = own[own["bin"] == "all"].iloc[0], own[own["bin_low"] > 0].sort_values("bin_low").iloc[0]
        if every["weight_decay"] == 0:
            said[variant] = "no λ above 0 is chosen"
        elif not rare["low"] * rare["high"] > 0:  # nor with one seed, whose interval is not known
            said[variant] = "the λ chosen changes rare words by no more than seeds differ"
        else:
            said[variant] = f"rare words {'pay for' if rare['change'] > 0 else 'gain by'} the λ chosen"
        lines.append(
            f"{variant}: held-out words choose λ = {every['weight_decay']:g}, {every['loss_none']:.3f} → {every['loss']:.3f} nats a "
            f"word ({every['change']:+.3f} [{every['low']:+.3f}, {every['high']:+.3f}]); words with a count of {rare['bin']} "
            f"{rare['change']:+.3f} [{rare['low']:+.3f}, {rare['high']:+.3f}], where they would choose λ = "
            f"{rare['best_weight_decay']:g} and forgo {rare['forgone']:.3f} [{rare['forgone_low']:.3f}, {rare['forgone_high']:.3f}]"
        )
    if len(set(said.values())) == 1:
        return [f"under all {len(said)} tokenizers {next(iter(said.values()))}, on held-out text", *lines]
    return [f"it depends on the tokenizer: {'; '.join(f'{v}: {what}' for v, what in said.items())}", *lines]
