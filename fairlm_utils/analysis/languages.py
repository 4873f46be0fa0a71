"""Languages of unequal shares: does decay cost the small ones more than the large one, in bits per byte?"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from fairlm_utils import params
from fairlm_utils.analysis import comparisons, metrics
from fairlm_utils.frequency import SPLITS


def weighted_loss(table: pd.DataFrame) -> pd.DataFrame:
    """Held-out bits per byte of every run, its languages weighted by their natural shares 1/k: what chooses λ."""
    of = table[table["split"] == "held-out"]
    weights = of["language"].map({name: 1 / k for k, name in enumerate(params.LANGUAGES, 1)})
    keys = [k for k in metrics.KEYS if k in of and k not in ("split", "language")]
    sums = (
        of.assign(loss=of["bits_per_byte"] * weights, weight=weights)
        .groupby(keys, sort=False)[["loss", "weight"]]
        .sum()
    )
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
    best, used = chosen_weight_decay(table), compared_weight_decay(table)
    both, alike = [name for name in params.MIXTURES if name in used], dict.fromkeys(used, next(iter(used.values())))
    settings = {"each at its λ": used, f"both at λ = {alike[both[0]]:g}": alike} if len(both) > 1 else {}
    changes = small_minus_large(table, used)
    compared = [changes]
    for name, at in settings.items():
        wide = small_minus_large(table, at).pivot(index=["split", "seed"], columns="variant", values="difference")
        compared.append((wide[both[1]] - wide[both[0]]).rename("difference").reset_index().assign(variant=name))
    gained = [name for name in ("small", "large") if settings]
    for name in gained:
        held = by_side(table[table["weight_decay"] == table["variant"].map(best)], "bits_per_byte")
        wide = held[held["split"] == SPLITS[1]].pivot(index="seed", columns="variant", values=name)
        compared.append(
            (wide[both[1]] - wide[both[0]]).rename("difference").reset_index().assign(variant=name, split=SPLITS[1])
        )
    means = comparisons.mean_interval(pd.concat(compared), "difference", confidence)
    sure = comparisons.holm(means["p_value"]) < 1 - confidence
    word = np.select([sure & (means["mean"] > 0), sure], ["more than", "less than"], "not reliably more or less than")
    by = [
        f"{m:+.3f} [{low:+.3f}, {high:+.3f}]"
        for m, low, high in zip(means["mean"], means["low"], means["high"], strict=True)
    ]
    said = means.assign(word=word, by=by).set_index(["variant", "split"])[["word", "by"]].to_dict("index")
    sides = changes.groupby(["variant", "split"])[["small", "large"]].mean()
    weighted = weighted_loss(table).groupby(["variant", "weight_decay"])["bits_per_byte"].mean()
    head = [
        f"on {s} text decay costs small languages {said[both[0], s]['word']} the large one: {said[both[0], s]['by']} bits per byte"
        for s in SPLITS
    ]
    lines = [f"{'; '.join(head)} ({both[0]} mixture, λ = {used[both[0]]:g})"]
    for v in both:
        chosen = f"λ = {best[v]:g} has the lowest held-out loss, {weighted[v, best[v]]:.3f} bits per byte"
        chosen += f", {weighted[v, 0.0]:.3f} without decay" if best[v] else f"; λ = {used[v]:g} is compared"
        parts = [
            f"{s} text, small languages {sides.loc[(v, s), 'small']:+.3f}, the large one {sides.loc[(v, s), 'large']:+.3f}, "
            f"difference {said[v, s]['by']}"
            for s in SPLITS
        ]
        lines.append(f"{v}: {chosen}; {'; '.join(parts)}")
    does = {"more than": "raises it reliably", "less than": "lowers it reliably"}
    for name in settings:
        parts = [f"{s} text {does.get(said[name, s]['word'], 'not reliably')}: {said[name, s]['by']}" for s in SPLITS]
        lines.append(f"what temperature sampling changes of the difference, {name}: {'; '.join(parts)}")
    if gained:
        parts = [
            f"{which} {does.get(said[name, SPLITS[1]]['word'], 'not reliably')}: {said[name, SPLITS[1]]['by']}"
            for name, which in zip(gained, ("small languages", "the large one"), strict=True)
        ]
        lines.append(
            f"what temperature sampling changes of the held-out loss, each at the λ chosen: {'; '.join(parts)}"
        )
    n = int(means["n_seeds"].min())
    lines.append(
        f"reliable is a Holm-corrected p below {1 - confidence:.2g} over the {len(means)} differences above, {n} seeds each"
    )
    return lines
