"""What an audit says, in sentences computed from its tables; losses in nats."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from fairlm_utils.analysis.audit_tables import Audit
from fairlm_utils.analysis.sentences import capital

#: Types that a bin or kind must have to be named as the worst: a mean over fewer says more of them than of the bin.
MIN_TYPES = 10


def answer(audits: Sequence[Audit]) -> list[str]:
    """What was audited says: whether rare types are neglected, what is worst, and how the first model stands to the second.

    Sentences computed from the tables alone, the verdict first. Means are over types and over occurrences (tokens); intervals
    are 95 % Student-t intervals over blocks.
    """
    lines = [verdict(a) for a in audits]
    if len(audits) > 1 and len(audits[0].comparison):
        lines += against_reference(audits[0])
    for a in audits:
        lines += [level(a), frequency_curve(a), worst(a), *norms(a), undertrained(a)]
    return lines


def verdict(a: Audit) -> str:
    """Whether rare types gain less than frequent ones over the unigram, by class and with its interval."""
    classes = a.classes.set_index("frequency_class")
    low, high, t = classes.loc["low"], classes.loc["high"], a.totals
    if not low["n_types"] or not high["n_types"] or pd.isna(t["gain_low_minus_high_from"]):
        return (
            f"{a.label}: no verdict on rare types, for it takes two blocks and types of both classes; take more blocks"
        )
    gains = [c[f"gain{o}"] for o in ("", "_occurrences") for c in (low, high)]
    neglect = {"less": "rare types are neglected: they", "more": "rare types are not neglected: they"}
    head = f"{neglect.get(gain_word(a), 'rare types')} {_gain_phrase(a)} frequent ones"
    if max(gains) <= 0:
        head = f"predictions are worse than by counting alone; rare types {_gain_phrase(a)} frequent ones"
    said = (
        f"{a.label}: {head}: {gains[2]:+.2f} against {gains[3]:+.2f} nats over occurrences (difference "
        f"{_interval(t, 'gain_low_minus_high')}), {gains[0]:+.2f} against {gains[1]:+.2f} over types"
    )
    if min(gains) > 0:
        share = [c[f"gain{o}"] / c[f"unigram{o}"] for o in ("", "_occurrences") for c in (low, high)]
        less = {a < b for a, b in (share[:2], share[2:])}
        word = "" if len(less) > 1 else f", a {'smaller' if less == {True} else 'larger'} share"
        return (
            f"{said}; of the unigram's own loss that is {share[0]:.0%} against {share[1]:.0%} over types, {share[2]:.0%} against "
            f"{share[3]:.0%} over occurrences{word}"
        )
    return said if max(gains) <= 0 else f"{said}; a gain below 0 is a prediction worse than by counting alone"


def gain_word(a: Audit) -> str:
    """ "less", "more" or "alike": the gain of low- against high-frequency types over occurrences, beyond its interval."""
    if a.totals["gain_low_minus_high_to"] < 0:
        return "less"
    return "more" if a.totals["gain_low_minus_high_from"] > 0 else "alike"


def _gain_phrase(a: Audit) -> str:
    """ "gain more over the unigram than" and the like, "lose less against" where both classes lose."""
    if a.classes[["gain", "gain_occurrences"]].max(axis=None) > 0:
        said = {"less": "gain less over", "more": "gain more over"}
        return f"{said.get(gain_word(a), 'do not reliably gain more or less over')} the unigram than"
    said = {"less": "lose more against", "more": "lose less against"}
    return f"{said.get(gain_word(a), 'do not reliably lose more or less against')} the unigram than"


def _interval(values: dict[str, float], name: str) -> str:
    middle, least, most = (values[f"{name}{k}"] for k in ("", "_from", "_to"))
    return f"{middle:+.3f} nats, {least:+.3f} to {most:+.3f} by blocks"


def level(a: Audit) -> str:
    """Losses of all targets beside what frequency alone and chance give, and bits per byte."""
    t = a.totals
    separator = f"; the document separator, left out below, {t['separator_loss']:.2f}" if t["n_separators"] else ""
    return (
        f"{a.label}: loss {t['average_loss']:.3f} nats per token and {t['token_balanced_loss']:.3f} per type, where the unigram has "
        f"{t['average_unigram']:.3f} and {t['token_balanced_unigram']:.3f} and chance {t['chance']:.3f}; {t['bits_per_byte']:.3f} bits "
        f"per byte of text{separator}"
    )


def _usual(table: pd.DataFrame) -> pd.DataFrame:
    large = table[table["n_types"] >= MIN_TYPES]
    return large if len(large) > 1 else table  # one alone cannot be compared


def gain_title(audits: Sequence[Audit]) -> str | list[str]:
    """A title for the chart of gains: what rare types do, a line per model where they differ."""
    phrases = {a.label: f"rare types {_gain_phrase(a)} frequent ones" for a in audits}
    if len(set(phrases.values())) == 1:
        return capital(next(iter(phrases.values())))
    return [f"{label}: {phrase}" for label, phrase in phrases.items()]


def norms_title(audits: Sequence[Audit]) -> str:
    """A title for the chart of norms: whether rows of the rarest types are shorter or longer than the most frequent ones'."""
    words = [_norm_word(*_rarest_and_most_frequent(t)) for a in audits for _, t in a.norms.groupby("matrix")]
    if len(set(words)) == 1:
        return f"Embedding rows of the rarest types are {words[0]} the most frequent ones'"
    return "Norms of embedding rows by frequency"


def _rarest_and_most_frequent(norms: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    table = _usual(norms[norms["bin_low"] > 0]).sort_values("bin_low")
    return table.iloc[0], table.iloc[-1]


def _norm_word(rare: pd.Series, frequent: pd.Series) -> str:
    ratio = rare["median"] / frequent["median"]
    return "about as long as" if abs(ratio - 1) < 0.02 else "shorter than" if ratio < 1 else "longer than"


def frequency_curve(a: Audit) -> str:
    """How the loss rises from the most frequent bin to the rarest, beside what frequency alone explains of it."""
    bins = _usual(a.bins).sort_values("bin_low")
    rare, frequent = bins.iloc[0], bins.iloc[-1]
    rise, own = rare["loss"] - frequent["loss"], rare["unigram"] - frequent["unigram"]
    over = rare["loss_occurrences"] - frequent["loss_occurrences"]
    least = bins.loc[bins["gain"].idxmin()]
    large = f" (bins of at least {MIN_TYPES} types)" if bins["n_types"].min() >= MIN_TYPES else ""
    return (
        f"{a.label}: from n_v {frequent['bin']} to {rare['bin']}{large} the loss changes by "
        f"{rise:+.2f} nats over types ({over:+.2f} over occurrences), the unigram's by {own:+.2f}; the smallest gain over it is at "
        f"n_v {least['bin']}: {least['gain']:+.2f} over types, "
        f"{least['gain_occurrences']:+.2f} over occurrences"
    )


def by_frequency(table: pd.DataFrame, value: str, what: str, form: str = ".2f") -> tuple[str, list[str]]:
    """A title, and a sentence per model: the lowest and the highest `value`, called `what`, of bins with n_v ≥ 1.

    `table`: label, bin, bin_low. "Rises" and "falls" need a rank correlation of 0.9 in every model.
    """
    lines, moves = [], []
    for label, own in table[table["bin_low"] > 0].groupby("label", sort=False):
        low, high = (own.loc[own[value].idxmin()], own.loc[own[value].idxmax()])
        rank = own["bin_low"].rank().corr(own[value].rank())
        highest = f"is highest at n_v {high['bin']}"
        moves.append("rises with frequency" if rank > 0.9 else "falls with frequency" if rank < -0.9 else highest)
        lines.append(
            f"{label}: {what} from {low[value]:{form}} at n_v {low['bin']} to {high[value]:{form}} at {high['bin']}"
        )
    found = moves[0] if len(set(moves)) == 1 else "by frequency"
    return capital(f"{what} {found}"), lines


def worst(a: Audit) -> str:
    """The bin, kind and type of highest loss."""
    bins, kinds = _usual(a.bins), _usual(a.kinds)
    b, k = bins.loc[bins["loss"].idxmax()], kinds.loc[kinds["loss"].idxmax()]
    said = (
        f"{a.label}: worst by frequency are types with n_v {b['bin']} ({b['loss']:.2f} nats over types, {b['loss_occurrences']:.2f} over "
        f"occurrences), by kind {k['kind']} ({k['loss']:.2f}, {k['loss_occurrences']:.2f})"
    )
    if not len(a.worst):
        return said
    one = a.worst.iloc[0]
    return f"{said}, and of single types {one['token']} ({one['loss']:.2f} over its {one['n_eval']:,} targets)"


def norms(a: Audit) -> list[str]:
    """Whether embedding rows of rare types are shorter or longer than those of frequent ones, a sentence per matrix."""
    lines = []
    for matrix, table in a.norms.groupby("matrix", sort=False):
        rare, frequent = _rarest_and_most_frequent(table)
        lines.append(
            f"{a.label}: rows of the rarest types are {_norm_word(rare, frequent)} the most frequent ones' in the {matrix} "
            f"embedding: median norm {rare['median']:.3g} at n_v {rare['bin']}, {frequent['median']:.3g} at {frequent['bin']}"
        )
    return lines


def undertrained(a: Audit) -> str:
    """How many types look hardly trained, and which share of the vocabulary they are."""
    n, found = a.facts["n_vocabulary"], a.undertrained["judged_by"] if len(a.undertrained) else []
    both, alone = (sum(f == how for f in found) for how in ("norm and gain", "norm alone"))
    return (
        f"{a.label}: under-trained by norm and gain {both:,} of {n:,} types ({both / n:.2%} of the vocabulary); by norm alone, of "
        f"types not met in the held-out text, {alone:,} ({alone / n:.2%})"
    )


def against_reference(a: Audit) -> list[str]:
    """The first model against the second, a sentence per unit: tokens where both read the same ones, and words."""
    lines = []
    for unit, table in a.comparison.groupby("unit", sort=False):
        rows, against = table.set_index("frequency_class"), table["against"].iloc[0]
        parts = []
        for name, said in (("all", "all"), ("low", "low-frequency"), ("high", "high-frequency")):
            if (row := rows.loc[name])["n"]:
                sure = "" if not row["from"] <= 0 <= row["to"] else ", within block-to-block variation"
                parts.append(f"{said} {unit}s {row['difference']:+.3f} ({row['from']:+.3f} to {row['to']:+.3f}{sure})")
        lines.append(f"{a.label} against {against}, nats per {unit} over occurrences, by blocks: {'; '.join(parts)}")
    return lines
