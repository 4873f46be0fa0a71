"""How the paper cut its text into training sequences, as far as its printed example and its Table 1 determine it.

Tables are those of `results/paper-layout`: cuts of the example review, floors of candidate sequences, and their counts.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from fairlm_utils.analysis.claims import PAPER_TABLE_1
from fairlm_utils.files import RunError

TABLES = ("tokenizers", "floors", "counts", "ratios")
_MEASURES = ("average_loss", "token_balanced_loss", "token_balanced_accuracy")
#: Half a unit of the last digit of the losses that the paper prints, and a unit of its balanced accuracy.
_ROUNDING, _UNIT = 0.0005, 0.0001
_LOSS, _ACCURACY = "impossible: no model's loss is so low", "impossible: no predictor is so accurate"
_FITS, _LESS, _OPEN = "fits", "a memoriser is less accurate", "possible if λ = 0 was under-trained"


def read_tables(folder: str | Path) -> dict[str, pd.DataFrame]:
    """The tables of `results/paper-layout` by name. Raises RunError if one is missing."""
    files = {name: Path(folder) / f"{name}.csv" for name in TABLES}
    if missing := [str(file) for file in files.values() if not file.exists()]:
        raise RunError(
            f"layout: {', '.join(missing)} missing; run `python results/paper-layout/export.py --corpus-path FOLDER`, "
            "or set layout to a folder that it wrote"
        )
    return {name: pd.read_csv(file) for name, file in files.items()}


def judged(floors: pd.DataFrame) -> pd.DataFrame:
    """Whether each layout of the IMDB reviews can be the paper's, by its λ = 0 model (OpenELM-270M, Table 1).

    Adds excess_average and excess_balanced, the paper's losses above the layout's floor (nats), `accuracy_left`, the
    memoriser's balanced accuracy above the paper's, and `verdict`, the first that holds: no model's average loss is as low
    as the paper's; no predictor's balanced accuracy as high; the memoriser's is the paper's to the digits that it prints;
    it is lower, so that a model would have to prefer rare types; it is higher, so that λ = 0 had not learnt all it could.
    """
    paper = PAPER_TABLE_1.iloc[0]
    table = floors[floors["corpus"] == "imdb"].assign(
        excess_average=lambda f: paper["average_loss"] - f["average_loss"],
        excess_balanced=lambda f: paper["token_balanced_loss"] - f["token_balanced_loss"],
        accuracy_left=lambda f: f["token_balanced_accuracy"] - paper["token_balanced_accuracy"],
    )
    rules = {
        _LOSS: table["excess_average"] < -_ROUNDING,
        _ACCURACY: table["balanced_accuracy_bound"] < paper["token_balanced_accuracy"] - _UNIT,
        _FITS: table["accuracy_left"].abs() <= _UNIT,
        _LESS: table["accuracy_left"] < 0,
    }
    return table.assign(verdict=np.select(list(rules.values()), list(rules), default=_OPEN))


def beside_paper(floors: pd.DataFrame) -> pd.DataFrame:
    """Floors of the layouts in long form beside Table 1, for a chart: layout, measure, source, value.

    `source` is "ideal memoriser", or the paper at a λ, whose `layout` is empty.
    """
    long = (
        floors[floors["corpus"] == "imdb"].melt("layout", list(_MEASURES), "measure").assign(source="ideal memoriser")
    )
    paper = PAPER_TABLE_1.assign(source=PAPER_TABLE_1["weight_decay"].map("paper, λ = {:g}".format), layout="")
    return pd.concat([long, paper.melt(["layout", "source"], list(_MEASURES), "measure")], ignore_index=True)


def findings(tables: dict[str, pd.DataFrame]) -> dict[str, str]:
    """What the tables say, in a sentence or two each: "tokenizer", "layout", "excess", "accuracy" and "imdb-xl"."""
    floors = tables["floors"]
    own = _layouts(judged(floors).set_index("layout"))
    return {"tokenizer": _tokenizer(tables["tokenizers"]), **own, "imdb-xl": _large(floors)}


def candidate(pre_tokenizer: str, lowercase: bool) -> str:
    """Name of a candidate tokenizer in a table or sentence."""
    return f"{pre_tokenizer}, {'lower case' if lowercase else 'cased'}"


def _tokenizer(cuts: pd.DataFrame) -> str:
    words = cuts[~cuts["word"].str.endswith(" token")]
    named = [candidate(*row) for row in zip(words["pre_tokenizer"], words["lowercase"], strict=True)]
    agree = words.groupby(named)["agrees"].sum().sort_values(ascending=False)
    n = words["word"].nunique()
    whole = [name for name, k in agree.items() if k == n]
    others = ", ".join(f"{name} {k}" for name, k in agree.items() if k < n)
    said = f"{' and '.join(whole) or 'none'} {'gives' if len(whole) == 1 else 'give'} all {n} printed cuts"
    return f"Of {len(agree)} byte-pair encodings of {cuts['types'].iloc[0]:,} types {said} of the example review ({others})."


def _layouts(table: pd.DataFrame) -> dict[str, str]:
    zero, one = PAPER_TABLE_1.iloc[0], PAPER_TABLE_1.iloc[1]
    named = {
        verdict: " and ".join(
            f"“{name}” ({row.average_loss:.3f} nats, {row.token_balanced_accuracy:.2%})"
            for name, row in part.iterrows()
        )
        for verdict, part in table.groupby("verdict", sort=False)
    }
    best = table[table["verdict"] == _FITS].iloc[0]
    losses = _MEASURES[:2]
    above = [f"{p[c] - best[c]:.3f}" for c in losses for p in (zero, one)]
    change = [f"{one[c] - zero[c]:.3f}" for c in losses]
    share = [f"{best[c] / zero[c]:.0%}" for c in losses]
    accuracy = [f"{p['token_balanced_accuracy']:.2%}" for p in (zero, one)]
    return {
        "layout": (
            f"The paper's λ = 0 has {zero['average_loss']} nats and {accuracy[0]} balanced accuracy. "
            f"{'; '.join(f'{verdict}: {names}' for verdict, names in named.items())}."
        ),
        "excess": (
            f"On “{best.name}” the floor is {share[0]} of the average and {share[1]} of the balanced loss at λ = 0, so a ratio of "
            f"losses is mostly one of floors. Above it λ 0 → 1 takes the average from {above[0]} to {above[1]} nats and the "
            f"balanced loss from {above[2]} to {above[3]}: changes of {change[0]} and {change[1]}."
        ),
        "accuracy": (
            f"Balanced accuracy is at its ceiling: a memoriser has {best['token_balanced_accuracy']:.2%} (a predictor that names "
            f"rare types wherever it can, {best['balanced_accuracy_bound']:.2%}), the paper's models {accuracy[0]} at λ = 0 and "
            f"{accuracy[1]} at λ = 1. That it hardly moves says that λ = 1 still memorises nearly all that the beginning of a "
            "review determines, and nothing of what decay costs."
        ),
    }


def _large(floors: pd.DataFrame) -> str:
    own = floors[(floors["corpus"] == "imdb-xl") & (floors["layout"] == "first")].sort_values("tokenizer_reviews")

    def both(column: str, form: str) -> str:
        return " and ".join(dict.fromkeys(form.format(v) for v in own[column]))

    return (
        f"The first {own['context'].iloc[0]} tokens of {own['n_sequences'].iloc[0]:,} reviews have a floor of "
        f"{both('average_loss', '{:.3f}')} nats on average and {both('token_balanced_loss', '{:.3f}')} balanced, and a memoriser "
        f"{both('token_balanced_accuracy', '{:.2%}')}, with a tokenizer learnt from {both('tokenizer_reviews', '{:,}')} reviews "
        f"alike; the spread of their counts, R(0.42), is {both('ratio_0.42', '{:.2f}')}."
    )
