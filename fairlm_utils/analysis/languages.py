"""Languages of unequal shares: does decay cost the small ones more than the large one, in bits per byte?"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from fairlm_utils import params
from fairlm_utils.analysis import comparisons, metrics, sentences
from fairlm_utils.frequency import SPLITS

#: The columns of `by_side`, as sentences call them.
SIDES = {"small": "small languages", "large": "the large one"}
#: Mixtures compared at the λ of each.
EACH = "each at its λ"


def weighted_loss(table: pd.DataFrame) -> pd.DataFrame:
    """Held-out bits per byte of every run, its languages weighted by their natural shares 1/k: what chooses λ."""
    of = table[table["split"] == "held-out"]
    weights = of["language"].map({name: 1 / k for k, name in enumerate(params.LANGUAGES, 1)})
    keys = [k for k in metrics.KEYS if k in of and k not in ("split", "language")]
    weighted = of.assign(loss=of["bits_per_byte"] * weights, weight=weights)
    sums = weighted.groupby(keys, sort=False)[["loss", "weight"]].sum()
    return (sums["loss"] / sums["weight"]).rename("bits_per_byte").reset_index()


def chosen_weight_decay(table: pd.DataFrame) -> dict[str, float]:
    """The λ with the lowest mean over seeds of `weighted_loss`, by mixture (`variant`)."""
    means = weighted_loss(table).groupby(["variant", "weight_decay"], sort=False)["bits_per_byte"].mean()
    return {variant: float(weight_decay) for variant, weight_decay in means.groupby("variant", sort=False).idxmin()}


def compared_weight_decay(table: pd.DataFrame) -> dict[str, float]:
    """The λ of `chosen_weight_decay`, or the smallest above 0 where that is none."""
    smallest = float(table.loc[table["weight_decay"] > 0, "weight_decay"].min())
    return {variant: λ or smallest for variant, λ in chosen_weight_decay(table).items()}


def language_changes(table: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """Change of bits per byte from λ = 0, paired by seed, of every mixture, λ, split and language: see `comparisons.paired`.

    `compared` marks the rows at the mixture's λ of `compared_weight_decay`.
    """
    changes, used = comparisons.paired(table, "bits_per_byte", confidence), compared_weight_decay(table)
    return changes.assign(compared=changes["weight_decay"] == changes["variant"].map(used))


def by_side(table: pd.DataFrame, value: str) -> pd.DataFrame:
    """Means of `value` by mixture, split and seed: columns small, the half of the languages with the smallest shares, and large.

    The large one is the first.
    """
    order = [name for name in params.LANGUAGES if name in set(table["language"])]
    wide = table.pivot(index=["variant", "split", "seed"], columns="language", values=value)
    small = wide[order[-(len(order) // 2) :]].mean(axis=1)
    return pd.DataFrame({"small": small, "large": wide[order[0]]}).reset_index()


def small_minus_large(table: pd.DataFrame, chosen: Mapping[str, float]) -> pd.DataFrame:
    """What `chosen` λ does to small languages over the large one: `by_side` of changes from λ = 0, and difference."""
    changed = metrics.changes(table, "bits_per_byte")
    sides = by_side(changed[changed["weight_decay"] == changed["variant"].map(chosen)], "difference")
    return sides.assign(difference=sides["small"] - sides["large"])


def verdict(table: pd.DataFrame, confidence: float = 0.95) -> list[str]:
    """Sentences: does decay cost small languages more than the large one, and does temperature sampling change that.

    The answer first. Mixtures are compared each at its λ of `compared_weight_decay`, and both at that of the first. A
    difference counts if its p-value, Holm-corrected over all that are compared, is below 1 − `confidence`.
    """
    used = compared_weight_decay(table)
    first, *others = [name for name in params.MIXTURES if name in used]
    differences = [small_minus_large(table, used)]
    if others:
        differences += _of_sampling(table, used, first, *others)
    means = comparisons.mean_interval(pd.concat(differences), "difference", confidence)
    sure = comparisons.holm(means["p_value"]) < 1 - confidence
    word = np.select([sure & (means["mean"] > 0), sure], ["more than", "less than"], "not reliably more or less than")
    by = [sentences.interval(*row) for row in means[["mean", "low", "high"]].to_numpy()]
    reliable = np.where(sure, "(reliable)", "(not reliable)")
    columns = {"word": word, "by": by, "reliable": reliable}
    said = means.assign(**columns).set_index(["variant", "split"])[list(columns)].to_dict("index")
    head = [
        f"on {s} text decay costs small languages {said[first, s]['word']} the large one: {said[first, s]['by']} bits per byte"
        for s in SPLITS
    ]
    lines = [f"{'; '.join(head)} ({first} mixture, λ = {used[first]:g})", *_by_mixture(table, said, [first, *others])]

    def sampling(name: str, split: str) -> str:
        return "{by} {reliable}".format_map(said[name, split])

    if others:
        for name in (EACH, _alike(used[first])):
            parts = [f"on {s} text by {sampling(name, s)}" for s in SPLITS]
            lines.append(
                f"temperature sampling changes this difference of small and large, {name}, {' and '.join(parts)}"
            )
        parts = [f"{which} {sampling(side, SPLITS[1])}" for side, which in SIDES.items()]
        lines.append(f"temperature sampling changes the held-out loss, each at the λ chosen: {'; '.join(parts)}")
    rule = f"reliable is a Holm-corrected p below {1 - confidence:.2g} over the {len(means)} differences above"
    return [*lines, f"{rule}, {int(means['n_seeds'].min())} seeds each"]


def _alike(weight_decay: float) -> str:
    return f"both at λ = {weight_decay:g}"


def _of_sampling(table: pd.DataFrame, used: Mapping[str, float], first: str, other: str) -> list[pd.DataFrame]:
    """What the other mixture changes of `small_minus_large` and of the held-out loss of each side, by seed; see `verdict`."""
    tables = []
    for name, at in ((EACH, used), (_alike(used[first]), dict.fromkeys(used, used[first]))):
        wide = small_minus_large(table, at).pivot(index=["split", "seed"], columns="variant", values="difference")
        tables.append((wide[other] - wide[first]).rename("difference").reset_index().assign(variant=name))
    at_best = table["weight_decay"] == table["variant"].map(chosen_weight_decay(table))
    held = by_side(table[at_best], "bits_per_byte").query("split == @SPLITS[1]")
    for side in SIDES:
        wide = held.pivot(index="seed", columns="variant", values=side)
        change = (wide[other] - wide[first]).rename("difference").reset_index()
        tables.append(change.assign(variant=side, split=SPLITS[1]))
    return tables


def _by_mixture(table: pd.DataFrame, said: Mapping[tuple[str, str], Mapping[str, str]], names: list[str]) -> list[str]:
    """A sentence per mixture: the λ chosen, and what the one compared changes on each side and of their difference."""
    best, used = chosen_weight_decay(table), compared_weight_decay(table)
    sides = small_minus_large(table, used).groupby(["variant", "split"])[["small", "large"]].mean()
    weighted = weighted_loss(table).groupby(["variant", "weight_decay"])["bits_per_byte"].mean()
    lines = []
    for v in names:
        chosen = f"λ = {best[v]:g} has the lowest held-out loss, {weighted[v, best[v]]:.3f} bits per byte"
        chosen += f", {weighted[v, 0.0]:.3f} without decay" if best[v] else f"; λ = {used[v]:g} is compared"
        parts = [
            f"{s} text, small languages {sides.loc[(v, s), 'small']:+.3f}, the large one {sides.loc[(v, s), 'large']:+.3f}, "
            f"difference {said[v, s]['by']}"
            for s in SPLITS
        ]
        lines.append(f"{v}: {chosen}; {'; '.join(parts)}")
    return lines
