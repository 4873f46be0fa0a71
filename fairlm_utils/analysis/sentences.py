"""What a table says, in a sentence to stand under an exhibit and, by `charts.headline`, over it; losses in nats.

n_v is the training count of a token type.

Directions and differences are those that 95 % Student-t intervals over seeds leave no doubt of ("does not
move beyond seed-to-seed variation" and "not reliably more or less than" are the rest); with one seed those of the values.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

import numpy as np
import pandas as pd

from fairlm_utils import files, frequency
from fairlm_utils.analysis import claims, metrics, scale

#: What to call the loss of the two frequency classes.
CLASSES = {"low": "the loss of rare types", "high": "that of frequent ones"}
_MOVES = {-1: "falls", 0: "does not move beyond seed-to-seed variation", 1: "rises"}
_MORE = {-1: "less than", 0: "not reliably more or less than", 1: "more than"}


def show(*sentences: str) -> None:
    """Print sentences so that no line is wider than a notebook's page, which would break it within a word."""
    print(*(textwrap.fill(s, 100, subsequent_indent="  ", break_on_hyphens=False) for s in sentences), sep="\n")


def capital(text: str) -> str:
    """A sentence or title with a capital first letter, the rest as it is; λ stays λ.

    >>> capital("loss of GPT-2"), capital("λ helps")
    ('Loss of GPT-2', 'λ helps')
    """
    return text[:1].upper() + text[1:] if text[:1].isascii() else text


def interval(mean: float, low: float, high: float, *, unit: str = "", form: str = "{:+.3f}") -> str:
    """A mean with its interval in brackets, or "(1 seed)" where one seed has none; the unit stands after the mean.

    >>> interval(0.5, 0.25, 0.75, unit=" nats")
    '+0.500 nats [+0.250, +0.750]'
    """
    bounds = "(1 seed)" if np.isnan(low) else f"[{form.format(low)}, {form.format(high)}]"
    return f"{form.format(mean)}{unit} {bounds}"


def _sign(values: pd.Series) -> int:
    mean, low, high = scale.mean_and_interval(values)
    return 0 if low <= 0 <= high else int(np.sign(mean))


def contrast(
    frame: pd.DataFrame, group: str, names: Mapping[str, str], value: str = "loss", unit: str = " nats"
) -> str:
    """Which of two groups λ moves more, a part per text: changes of `value` from λ = 0 to the largest λ up to 1, by seed.

    `names` are what to call the `value` of the two groups compared.
    """
    at = frame.loc[frame["weight_decay"] <= 1, "weight_decay"].max()
    changed = metrics.changes(frame[frame["weight_decay"].isin([0.0, at])], value)
    one, other = names.values()
    parts = []
    for (model, split), own in changed.groupby(["model", "split"], sort=False):
        a, b = (own[own[group] == name].set_index("seed")["difference"] for name in names)
        does, also = _MOVES[_sign(a)], _MOVES[_sign(b)]
        if does == also == _MOVES[0]:
            said = f"neither {one} nor {other} moves beyond seed-to-seed variation"
        elif does != also:
            said = f"{one} {does} and {other} {also}"
        else:
            said = f"{one} {does} {_MORE[_sign(a.abs() - b.abs())]} {other}"
        where = "" if frame["model"].nunique() == 1 else f"{model} "
        parts.append(f"{where}on {split} text {said}: {a.mean():+.3f} against {b.mean():+.3f}{unit}")
    if not parts:
        return "No λ above 0 and up to 1 was run, to be compared with λ = 0"
    return capital(f"{'; '.join(parts)} (λ 0 → {at:g}, {files.counted(changed['seed'].nunique(), 'seed')})")


def _ends(bins: pd.DataFrame) -> list[str]:
    """The rarest and the most frequent bin of types with n_v ≥ 1 that every text has."""
    known = bins[bins["bin_low"] > 0]
    texts = (known if "split" in known else known.assign(split="")).groupby(["bin_low", "bin"])["split"].nunique()
    return texts[texts == texts.max()].index.get_level_values("bin")[[0, -1]].tolist()


def ends(bins: pd.DataFrame, value: str, what: str, unit: str = " nats") -> str:
    """`contrast` of the rarest and the most frequent bin; `what` is what to call `value`."""
    rare, frequent = _ends(bins)
    names = {rare: f"{what} at n_v {rare}", frequent: f"that at n_v {frequent}"}
    return contrast(bins, "bin", names, value, unit)


def levels(bins: pd.DataFrame, value: str, what: str, unit: str = "") -> str:
    """`value`, called `what`, of the rarest and of the most frequent bin, a part per text; means over the rows of each."""
    rare, frequent = _ends(bins)
    means = bins.groupby(["split", "bin"], sort=False)[value].mean()
    return capital(
        "; ".join(
            f"on {split} text {what} at n_v {rare} is {means[split, rare]:.2f}{unit}, that at n_v {frequent} "
            f"{means[split, frequent]:.2f}"
            for split in bins["split"].unique()
        )
    )


def calibration(reliability: pd.DataFrame) -> str:
    """Whether targets of each class are predicted with more confidence than accuracy, a part per text and class.

    The difference of the two means over tokens, in points, at each λ of the table; means over seeds.
    """
    keys = ["split", "frequency_class", "weight_decay", "seed"]
    totals = metrics.confidence_gap(reliability, keys)
    gaps = 100 * (totals["gap"] / totals["n_tokens"]).groupby(keys[:3], sort=False).mean()
    parts = []
    for (split, name), own in gaps.groupby(keys[:2], sort=False):
        by_decay = own.droplevel(keys[:2])
        side = "above" if (own > 0).all() else "below" if (own < 0).all() else "now above and now below"
        said = ", ".join(f"{gap:+.1f} points at λ = {weight_decay:g}" for weight_decay, gap in by_decay.items())
        parts.append(f"on {split} text the confidence in {name}-frequency targets is {side} their accuracy ({said})")
    return capital("; ".join(parts))


def half_learnt(curves: pd.DataFrame, chance: float) -> str:
    """By which step the mean loss of the rarest and of the most frequent bin is below half of `chance`, log V.

    Of learning curves by bin, means over seeds, at the smallest and at the largest λ up to 1; a part per model and bin.
    """
    curves = curves if "model" in curves else curves.assign(model="")
    means = curves.groupby(["model", "weight_decay", "bin", "step"], as_index=False)["loss"].mean()
    first = means[means["loss"] < chance / 2].groupby(["model", "weight_decay", "bin"])["step"].min()
    run = curves["weight_decay"]

    def by(model: str, weight_decay: float, name: str) -> str:
        step = first.get((model, weight_decay, name))
        return f"{'no step' if step is None else f'step {step:,}'} at λ = {weight_decay:g}"

    models = curves["model"].unique()
    return capital(
        "; ".join(
            f"{f'of {model} ' if len(models) > 1 else ''}types of n_v {name} are half learnt by "
            f"{' and '.join(by(model, w, name) for w in sorted({run.min(), metrics.largest_up_to(run, 1.0)}))}"
            for model in models
            for name in _ends(curves)
        )
    )


def tokens(table: pd.DataFrame) -> str:
    """How many types λ costs loss, and which the most; of `results.token_changes`."""
    change = table["change_training"].dropna()
    most = table.loc[change.idxmax()]
    return (
        f"The training loss of {(change > 0).sum():,} of {len(change):,} types rises with λ = {most['weight_decay']:g}; most that of "
        f"{most['token']!r} (seen {files.counted(most['n_train'], 'time')}, {change.max():+.2f} nats)"
    )


def in_context(table: pd.DataFrame, most: int) -> str:
    """What the targets of a text cost, the rare ones (at most `most` training counts) and the others; of `evaluation.in_context`."""
    targets = table.dropna()
    rare, others = (targets[side] for side in (targets["n_train"] <= most, targets["n_train"] > most))
    parts = [
        f"{name} ({len(own)}) cost {own['loss'].mean():.2f} nats on average, {own['unigram'].mean():.2f} by the unigram"
        for name, own in (("targets of low-frequency types", rare), ("the others", others))
        if len(own)
    ]
    dearest = targets.loc[targets["loss"].idxmax()]
    return (
        f"{capital('; '.join(parts))}; the dearest is {dearest['token'].strip()!r} ({dearest['loss']:.2f} nats, seen "
        f"{files.counted(dearest['n_train'], 'time')})"
    )


#: Two readings of the paper's low-frequency types, columns of `tokenization.low_frequency_shares`.
LOW_FREQUENCY = {
    "low_frequency": "outside the types that cover 95 % of tokens",
    "below_percentile": "below the 95th percentile of the largest vocabulary",
}
#: Where the paper's Figure 2b levels off, how near is there, and the fall between two sizes that still is none.
_LEVEL, _NEAR, _NO_FALL = 0.85, 0.05, 0.01


def coverage(counts: np.ndarray) -> str:
    """What the most frequent 0.01 % of the types (one at least) cover, of which the paper says 95 % of all tokens.

    Reproduced if it is 90 % or more. `counts` [vocabulary].
    """
    n = max(1, round(0.0001 * len(counts)))
    top, needed = frequency.coverage(counts, [n / len(counts)])[0], frequency.types_to_cover(counts, 0.95)
    return (
        f"The most frequent 0.01 % of the vocabulary, {n:,} of {len(counts):,} types, cover {top:.1%} of the tokens, 95 % takes "
        f"{needed / len(counts):.1%}: {claims.REPRODUCED if top >= 0.9 else claims.NOT} (paper: 0.01 % cover 95 %)"
    )


def shares_by_size(table: pd.DataFrame) -> list[str]:
    """Whether the share of low-frequency types rises with the vocabulary and levels off (Figure 2b), a sentence per reading."""
    lines = []
    for column, name in LOW_FREQUENCY.items() if len(table) > 2 else ():
        # the largest vocabulary sets the percentile, so its own share says nothing
        own = table.iloc[: -1 if column == "below_percentile" else None]
        share, size = own[column], own["vocab_size"]
        rise = share.diff().dropna()
        rises = (rise > -_NO_FALL).all() and rise.sum() > 0
        level = abs(share.iloc[-1] - _LEVEL) < _NEAR and abs(rise.iloc[-1]) < _NEAR
        lines.append(
            f"{capital(name)} are {share.iloc[0]:.0%} of {size.iloc[0]:,} types and {share.iloc[-1]:.0%} of {size.iloc[-1]:,}, at "
            f"least {share.min():.0%}: {claims.REPRODUCED if rises and level else claims.IN_PART if rises else claims.NOT} (paper: rises, "
            f"levels off near {_LEVEL:.0%})"
        )
    return lines
