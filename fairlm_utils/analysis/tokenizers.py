"""Tokenizers compared by word, the one unit that they share: do rare words pay for the λ that held-out words choose?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from fairlm_utils.analysis.comparisons import holm, mean_interval, with_intervals
from fairlm_utils.analysis.results import Results
from fairlm_utils.analysis.sentences import interval


def compare(results: Results, confidence: float = 0.95) -> pd.DataFrame:
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
    losses = _losses(results)
    overall = losses[(losses["unit"] == "word") & (losses["bin"] == "all") & (losses["split"] == "held-out")]
    chosen = overall.groupby(["variant", "weight_decay"])["loss"].mean().unstack().idxmin(axis=1)
    rows: list[dict[str, Any]] = []
    by_seed: list[pd.DataFrame] = []
    for key, group in losses.groupby(["variant", "unit", "split", "bin_low", "bin"], sort=False):
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
    table = pd.DataFrame(rows).join(pd.DataFrame(with_intervals(found))).assign(p_value=found["change"]["p_value"])
    table = table.rename(columns={"change_low": "low", "change_high": "high"})
    return table.sort_values(["unit", "split", "bin_low"], kind="stable", ignore_index=True)


def _losses(results: Results) -> pd.DataFrame:
    """Losses (nats) of every run by word and by token type, one row per frequency bin and one over all occurrences."""
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
        rows = [every.assign(**means, bin="all", bin_low=-1)[columns], frame[columns]]
        parts.append(pd.concat(rows).assign(unit=unit))
    return pd.concat(parts, ignore_index=True)


def verdict(table: pd.DataFrame, confidence: float = 0.95) -> list[str]:
    """Sentences from a table of `compare`: do rare words pay for the λ chosen, and does it depend on the tokenizer.

    The answer first; then levels, every tokenizer, and all bins of words that change. Rare words are those of the lowest bin of
    counts ≥ 1. A change counts if its p-value, Holm-corrected over tokenizers and, in the last sentence, bins, is below
    1 − `confidence`.
    """
    held = table[table["split"] == "held-out"]
    words, every = held[held["unit"] == "word"], held[held["bin"] == "all"].set_index(["unit", "variant"])
    best = every.loc["word"].sort_values("loss")
    lowest = words["bin_low"] == words.loc[words["bin_low"] > 0, "bin_low"].min()
    rare, unseen = words[lowest].set_index("variant").loc[best.index], words[words["bin_low"] == 0].set_index("variant")
    bins = words[(words["bin"] != "all") & words["variant"].map(best["weight_decay"] > 0)]
    beyond = bins[holm(bins["p_value"]) < 1 - confidence]
    found = [f"count {r.bin} {r.change:+.3f} ({r.variant})" for r in beyond.itertuples()]
    return [
        _answer(rare, confidence),
        _rare_changes(rare),
        f"held-out loss at the λ chosen, nats per word: {'; '.join(_level(row, every.loc[('token', v)]) for v, row in best.iterrows())}",
        *(_tokenizer(row, rare.loc[v], unseen.loc[v] if v in unseen.index else None) for v, row in best.iterrows()),
        f"of {len(bins)} bins of held-out words at a λ above 0 that is chosen, Holm-corrected over all, {len(found)} change: "
        f"{'; '.join(found) or 'none'}; {int(rare['n_seeds'].min())} seeds each",
    ]


def _answer(rare: pd.DataFrame, confidence: float) -> str:
    used = rare["weight_decay"] > 0
    sure = used & (holm(rare["p_value"].where(used)) < 1 - confidence)
    pay, gain = list(rare.index[sure & (rare["change"] > 0)]), list(rare.index[sure & (rare["change"] < 0)])
    if pay:
        head = f"rare words, of a count of {rare['bin'].iloc[0]}, pay for the λ that held-out words choose under {' and '.join(pay)}"
    else:
        head = f"under no tokenizer do rare words, of a count of {rare['bin'].iloc[0]}, reliably pay for the λ that held-out words choose"
    if gain:
        return f"{head}; they gain by it under {' and '.join(gain)}"
    return f"{head}; {'they reliably gain by it under none' if pay else 'nor do they reliably gain by it'}"


def _rare_changes(rare: pd.DataFrame) -> str:
    said = [
        f"{v}: {f'{_change(row)} at λ = {row.compared:g}' if row.weight_decay else 'no λ above 0 is chosen'}"
        for v, row in rare.iterrows()
    ]
    label = rare["bin"].iloc[0]
    return f"words with a count of {label}, change of the held-out loss from λ = 0, nats per word: {'; '.join(said)}"


def _change(row: pd.Series) -> str:
    return interval(*row[["change", "low", "high"]])


def _level(row: pd.Series, token: pd.Series) -> str:
    """Loss per word over all, beside what the unigram of the same tokens would have per word."""
    edge = ", the largest tried" if row["at_edge"] else ""
    loss = interval(*row[["loss", "loss_low", "loss_high"]], form="{:.3f}")
    return (
        f"{row.name} {loss} at λ = {row['weight_decay']:g}{edge} "
        f"(the unigram of its own tokens about {token['unigram'] * row['loss'] / token['loss']:.2f})"
    )


def _tokenizer(row: pd.Series, rare: pd.Series, unseen: pd.Series | None) -> str:
    does = f"λ = {row['compared']:g}"
    if not row["weight_decay"]:
        does = f"decay buys nothing at this rate; {does}, the smallest tried,"
    changes = f"all words by {_change(row)}" + ("" if unseen is None else f" and unseen ones by {_change(unseen)}")
    forgone = interval(*rare[["forgone", "forgone_low", "forgone_high"]], form="{:.3f}")
    return (
        f"{row.name}: {does} changes {changes}; at the λ chosen those of {rare['bin']} forgo {forgone} against λ = "
        f"{rare['best_weight_decay']:g}, their best"
    )
