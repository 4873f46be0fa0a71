"""Remedies side by side: what each gains for rare types, what it costs on average, and which one the rule recommends."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from fairlm_utils.analysis import metrics
from fairlm_utils.analysis.comparisons import holm, mean_interval, with_intervals
from fairlm_utils.analysis.results import Results
from fairlm_utils.analysis.sentences import interval
from fairlm_utils.files import RunError, counted

#: Variants of an experiment on remedies that the others are measured from.
NO_DECAY, PLAIN_DECAY = "no decay", "plain decay"
#: What is said of remedies that no number can be given of.
SEVERAL_RUNS = "has remedies with several runs of a seed; give the experiment one model, and each variant its own λ"
#: Columns of runs that compare one remedy with plain decay in other cells and at other rates, losses in nats.
ELSEWHERE = ["cell", "learning_rate", "weight_decay", "variant", "seed", "split", "average", "low", "high"]
#: What remedies are judged on, the first first.
MEASURES = {
    "heldout_average": "held-out average loss",
    "heldout_balanced": "held-out token-balanced loss",
    "heldout_rarest": "held-out loss of the rarest types",
    "heldout_low_frequency": "held-out loss of low-frequency types",
    "heldout_high_frequency": "held-out loss of high-frequency types",
    "heldout_ece": "held-out calibration error",
    "train_average": "training average loss",
    "train_balanced": "training token-balanced loss",
    "train_rarest": "training loss of the rarest types",
}


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
    return "variant" in results.totals and {NO_DECAY, PLAIN_DECAY} <= set(results.totals["variant"])


def remedy_numbers(results: Results) -> pd.DataFrame:
    """What every remedy is judged on, one row per variant and seed: the columns of `MEASURES`, in nats, and the error in [0, 1].

    The rarest types are those of `rarest_bins`; the expected calibration error is that over all targets of the held-out
    text. The loss per word has no column: under one tokenizer it is the average loss times the tokens per word.
    Raises RunError if a variant has several runs of a seed.
    """
    index = ["variant", "seed"]
    if results.totals.duplicated([*index, "split"]).any():
        raise RunError(f"{results.params['experiment']}: {SEVERAL_RUNS}")
    wide = results.totals.pivot(index=index, columns="split", values=["average_loss", "token_balanced_loss"])
    rare = rare_loss(results.bins).pivot(index=index, columns="split", values="loss")
    held = results.reliability.query("split == 'held-out'")
    gaps = metrics.confidence_gap(held, [*index, "confidence_bin"]).abs().groupby(index).sum()
    of_class = results.classes.query("split == 'held-out'").pivot(index=index, columns="frequency_class", values="loss")
    numbers = {
        "heldout_average": wide["average_loss"]["held-out"],
        "heldout_balanced": wide["token_balanced_loss"]["held-out"],
        "heldout_rarest": rare["held-out"],
        "heldout_low_frequency": of_class["low"],
        "heldout_high_frequency": of_class["high"],
        "heldout_ece": gaps["gap"] / gaps["n_tokens"],
        "train_average": wide["average_loss"]["training"],
        "train_balanced": wide["token_balanced_loss"]["training"],
        "train_rarest": rare["training"],
    }
    return pd.DataFrame(numbers).reset_index()


def judge_remedies(numbers: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """The change of every number from plain decay, paired by seed, and which remedy the rule recommends: a row per variant.

    Sorted by what low-frequency types gain on held-out text. Columns: variant, recommended, not_worse, p_holm,
    p_holm_average, n_seeds and, for each measure of `numbers` (see `remedy_numbers`), its mean change with Student-t
    interval (_low, _high). The rule:

    1. there is something to remedy: plain decay lowers the held-out average of no decay, by an interval above 0;
    2. `not_worse`: no interval above 0 of the change of the held-out average, uncorrected, so that few variants pass;
    3. of these, the largest fall of the held-out loss of low-frequency types with `p_holm` below 1 − confidence: the
       two-sided paired t test, Holm-corrected over all variants but plain decay. `p_holm_average` is that of the held-out
       average, which takes no part in the rule.

    Raises ValueError if the variants "no decay" and "plain decay" are not among them.
    """
    if not {NO_DECAY, PLAIN_DECAY} <= set(numbers["variant"]):
        raise ValueError(f"remedies are measured from the variants {NO_DECAY!r} and {PLAIN_DECAY!r}; add them")
    of = _changes_from(PLAIN_DECAY, numbers, confidence)
    low, average = of["heldout_low_frequency"], of["heldout_average"]
    p_holm, p_average = (holm(t["p_value"].drop(PLAIN_DECAY)).reindex(low.index) for t in (low, average))
    not_worse = ~(average["low"] > 0)
    able = low["mean"][not_worse & (p_holm < 1 - confidence) & (low["mean"] < 0)]
    best = able.idxmin() if len(able) and average.loc[NO_DECAY, "low"] > 0 else None
    judged = {"recommended": low.index == best, "not_worse": not_worse, "p_holm": p_holm, "p_holm_average": p_average}
    judged |= {"n_seeds": low["n_seeds"], **with_intervals(of)}
    return pd.DataFrame(judged, index=low.index).sort_values("heldout_low_frequency", kind="stable").reset_index()


def _changes_from(
    reference: str, numbers: pd.DataFrame, confidence: float, measures: Iterable[str] = MEASURES
) -> dict[str, pd.DataFrame]:
    """`mean_interval` by variant of the change of every measure of `numbers` from a variant, paired by seed."""
    table = numbers.set_index(["variant", "seed"])
    changes = table.sub(table.loc[reference], level="seed").reset_index()
    return {m: mean_interval(changes, m, confidence).set_index("variant") for m in measures if m in table}


def say_remedies(judged: pd.DataFrame) -> str:
    """The sentence that a table of `judge_remedies` supports: the remedy recommended, or why none is."""
    if judged["n_seeds"].max() < 2:
        return "no verdict on remedies: one seed gives no interval; run more seeds"
    rows = {row["variant"]: row for row in judged.to_dict("records")}
    none, others = rows[NO_DECAY], [row for name, row in rows.items() if name != PLAIN_DECAY]
    without = f"against no decay ({_by(none, 'heldout_low_frequency', -1)})"
    if not none["heldout_average_low"] > 0:
        return (
            "no remedy is recommended: plain decay does not lower the held-out average loss beyond seed-to-seed variation "
            f"({_by(none, 'heldout_average', -1)} against no decay)"
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
        f"and of the {len(able)} of {len(others)} variants whose held-out average is not reliably worse, none lowers it further by more "
        f"than seed-to-seed variation, Holm-corrected{nearest}"
    )
    if none["heldout_low_frequency_high"] < 0:
        return f"no remedy helps here: plain decay raises the held-out loss of low-frequency types {without}, {rest}"
    verb = "lowers" if none["heldout_low_frequency_low"] > 0 else "does not reliably raise"
    head = "no remedy is needed here" if verb == "lowers" else "no need of a remedy is shown"
    return f"{head}: plain decay {verb} the held-out loss of low-frequency types {without}, {rest}"


def say_other_rates(results: Results, numbers: pd.DataFrame, confidence: float = 0.95) -> list[str]:
    """What plain decay changes from no decay at the other learning rates tried, on which the rule's first condition rests.

    `numbers` are those of `remedy_numbers`. One sentence, or none where no variant differs from plain decay in its learning
    rate alone.
    """
    decays = results.totals.groupby("variant")["weight_decay"].first()
    named = {v: {**own, "weight_decay": decays[v]} for v, own in results.params["variants"].items()}
    plain = named[PLAIN_DECAY]
    rates = {own["learning_rate"]: v for v, own in named.items() if _changed(own, plain) == {"learning_rate"}}
    if not rates:
        return []
    of = _changes_from(NO_DECAY, numbers, confidence)
    rows = pd.DataFrame(with_intervals(of)).to_dict("index")
    said = [
        f"at {rate:g} {_by(rows[v], 'heldout_average')}, low-frequency types {_by(rows[v], 'heldout_low_frequency')}"
        for rate, v in sorted(rates.items())
    ]
    return [
        f"At other rates than {plain['learning_rate']:g} plain decay changes the held-out average by: {'; '.join(said)}"
    ]


def say_best(judged: pd.DataFrame, confidence: float = 0.95) -> list[str]:
    """Which variant of `judge_remedies` lowers the held-out average most, which the loss of rare types at no worse average.

    And which lower both beyond chance, each Holm-corrected. None by one seed, which has no intervals.
    """
    if judged["n_seeds"].max() < 2:
        return []
    average, low, high = "heldout_average", "heldout_low_frequency", "heldout_high_frequency"
    others = judged[judged["variant"] != PLAIN_DECAY]
    able = others[others["not_worse"]]
    first = others.loc[others[average].idxmin()].to_dict()
    if len(able):
        second = able.loc[able[low].idxmin()].to_dict()
        at_no_cost = (
            f"Of the {len(able)} of {len(others)} variants whose held-out average is not reliably worse than plain decay's, "
            f"{second['variant']} "
            f"has the lowest {MEASURES[low]} ({_by(second, low)}, Holm-corrected p = {second['p_holm']:.2g}), and changes that "
            f"of high-frequency types by {_by(second, high)}"
        )
    else:
        at_no_cost = "The held-out average of every other variant is worse than plain decay's"
    fall = (others[[average, low]] < 0) & (others[["p_holm_average", "p_holm"]].to_numpy() < 1 - confidence)
    both = [
        f"{r['variant']} ({_by(r, average)} and {_by(r, low)})" for r in others[fall.all(axis=1)].to_dict("records")
    ]
    return [
        f"Of {counted(len(others), 'variant')} beside plain decay {first['variant']} has the lowest {MEASURES[average]} "
        f"({_by(first, average)}, Holm-corrected p = {first['p_holm_average']:.2g})",
        at_no_cost,
        f"Holm-corrected, {len(both)} of {len(others)} lower both the held-out average and the loss of rare types"
        + f"{', most' * (len(both) > 3)}: {'; '.join(both[:3])}" * bool(both),
    ]


def say_elsewhere(table: pd.DataFrame, confidence: float = 0.95) -> list[str]:
    """What a remedy changes from plain decay on held-out text in each cell of a table of ELSEWHERE, and in how many it stays.

    It stays where average and loss of low-frequency types are both lower, each by an interval of differences paired by seed.
    """
    (remedy,) = set(table["variant"]) - {PLAIN_DECAY}
    held, lines, n_stay = table[table["split"] == "held-out"], [], 0
    keys = ["cell", "learning_rate", "weight_decay"]
    for (cell, rate, weight_decay), own in held.groupby(keys, sort=False):
        of = _changes_from(PLAIN_DECAY, own.drop(columns=[*keys, "split"]), confidence, ("average", "low", "high"))
        row = pd.DataFrame(with_intervals(of)).loc[remedy].to_dict()
        lines.append(
            f"{cell}, rate {rate:g}, λ = {weight_decay:g}: {remedy} changes the held-out average by {_by(row, 'average')}, the loss "
            f"of low-frequency types by {_by(row, 'low')} and that of high-frequency ones by {_by(row, 'high')}"
        )
        n_stay += row["average_high"] < 0 and row["low_high"] < 0
    return [f"Both fall beyond seed-to-seed variation in {n_stay} of {len(lines)} cells", *lines]


def say_counts(judged: pd.DataFrame, confidence: float = 0.95) -> str:
    """How many variants of `judge_remedies` change the held-out loss of low-frequency types after Holm's correction."""
    others = judged[judged["variant"] != PLAIN_DECAY]
    found, lower = others["p_holm"] < 1 - confidence, others["heldout_low_frequency"] < 0
    return (
        f"after Holm's correction {(found & lower).sum()} of {len(others)} variants lower the held-out loss of low-frequency types, "
        f"{(found & lower & others['not_worse']).sum()} of them at no worse average, and {(found & ~lower).sum()} raise it"
    )


def _by(row: Mapping[str, Any], measure: str, sign: int = 1) -> str:
    """A change with its interval; with sign −1 that from this variant to plain decay."""
    low, high = sorted((sign * row[f"{measure}_low"], sign * row[f"{measure}_high"]))
    return interval(sign * row[measure], low, high, unit="" if measure == "heldout_ece" else " nats")


def kind_of_remedy(own: Mapping[str, Any], plain: Mapping[str, Any]) -> str:
    """What a variant acts on, from its parameters `own` and those of plain decay: for colours and for order."""
    changed = _changed(own, plain)
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


def _changed(own: Mapping[str, Any], plain: Mapping[str, Any]) -> set[str]:
    return {name for name, value in own.items() if value != plain.get(name)}


def kinds_of_remedies(variants: Mapping[str, Mapping[str, Any]]) -> pd.Series:
    """`kind_of_remedy` of each of an experiment's variants, by name; no decay is a reference at its own rate too."""
    kinds = {name: kind_of_remedy(own, variants[PLAIN_DECAY]) for name, own in variants.items()}
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
    frame = pd.DataFrame(with_intervals(tables)).reset_index()
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
    cells = {v: [f"{a:.3f}" + f" ± {b:.3f}" * (b == b) for a, b in zip(mean[v], sd[v], strict=True)] for v in values}
    return pd.DataFrame(cells, index=mean.index).reset_index()
