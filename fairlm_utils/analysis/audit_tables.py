"""Tables of an audit: what was found of each model, side by side, written to CSV files and read again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pandas as pd

from fairlm_utils import files
from fairlm_utils.analysis import metrics

#: Columns of `metrics` that count the reference text, and what they are called where tables of an audit are shown.
REFERENCE = {"n_train": "n_reference", "n_train_tokens": "n_reference_tokens"}
#: Types listed as the rarest and the worst, and targets that one of the worst must have.
N_EXTREME, MIN_TOKENS = 10, 3


@dataclass(frozen=True)
class Audit:
    """What an audit finds of one model; losses in nats, counts n_v those of the reference text.

    `facts` say what was audited, `totals` are its numbers, of all targets; `bins`, `kinds` and `classes` (see `metrics`) leave
    out the document separator, whose n_separators targets and separator_loss stand in `totals`. `words`: loss by word, `norms`:
    norms of embedding rows by bin and matrix, `undertrained`, `rarest`, `worst`: single types, `comparison`: against the
    reference model, empty without one. `table` is the per-token table with `unigram` and norms, `by_block` and `occurrences` the
    sums of blocks and the losses of words that comparisons are made of: empty in an audit that was read from its tables.
    """

    label: str
    facts: dict[str, Any]
    totals: dict[str, float]
    bins: pd.DataFrame
    kinds: pd.DataFrame
    classes: pd.DataFrame
    words: pd.DataFrame
    norms: pd.DataFrame
    undertrained: pd.DataFrame
    rarest: pd.DataFrame
    worst: pd.DataFrame
    comparison: pd.DataFrame = field(default_factory=pd.DataFrame)
    table: pd.DataFrame = field(default_factory=pd.DataFrame)
    by_block: pd.DataFrame = field(default_factory=pd.DataFrame)
    occurrences: pd.DataFrame = field(default_factory=pd.DataFrame)


#: What `facts` hold; the other columns of the table of totals are numbers.
FACTS = ("model", "corpus", "counts", "bos", "context", "n_blocks", "n_vocabulary", "n_rows", "targets_sha256")
_TEXT = dict.fromkeys(("label", "token", "model", "corpus", "counts", "bos", "targets_sha256", "bin"), str)
#: Tables of an audit that are shown and written.
TABLES = tuple(f.name for f in fields(Audit) if f.name not in ("label", "facts", "table", "by_block", "occurrences"))


def compare(one: Audit, other: Audit) -> pd.DataFrame:
    """Loss of `one` minus that of `other` on the same text, with intervals over the blocks of `one` (nats).

    Per token where both have the same targets, and per word on the words that both evaluated, whatever their tokenizers: unit,
    frequency_class ("all", "low", "high" by the counts of `one`), n (tokens or words), difference, from, to.
    """
    units: dict[str, pd.DataFrame] = {}
    if one.facts["targets_sha256"] == other.facts["targets_sha256"]:
        keys = ["block", "frequency_class", "n_tokens"]
        units["token"] = one.by_block[[*keys, "loss"]].assign(other=other.by_block["loss"])
    keys = ["document", "start", "word"]
    both = one.occurrences.merge(other.occurrences[[*keys, "loss"]], on=keys, suffixes=("", "_other"))
    groups = both.groupby(["block", "frequency_class"])
    units["word"] = groups.agg(
        n_tokens=("loss", "size"), loss=("loss", "sum"), other=("loss_other", "sum")
    ).reset_index()
    rows = []
    for unit, sums in units.items():
        for name in ("all", "low", "high"):
            of = sums if name == "all" else sums[sums["frequency_class"] == name]
            of = of.groupby("block")[["n_tokens", "loss", "other"]].sum()
            n, loss, theirs = (of[c].to_numpy(dtype=float) for c in of)
            values = metrics.difference_over_blocks(loss, n, theirs, n)
            keys_of_row = {"unit": unit, "frequency_class": name, "n": int(n.sum())}
            rows.append({**keys_of_row, **dict(zip(("difference", "from", "to"), values, strict=True))})
    return pd.DataFrame(rows)


def extremes(table: pd.DataFrame, n: int = N_EXTREME) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The `n` rarest types that were evaluated, and the `n` of highest loss among types evaluated at least MIN_TOKENS times."""
    seen = table[table["n_eval"] > 0].assign(gain=lambda t: t["unigram"] - t["loss"])
    columns = ["token_id", "token", "kind", "n_train", "n_eval", "loss", "unigram", "gain", "accuracy", "top5_accuracy"]
    rarest = seen.sort_values(["n_train", "loss"], ascending=[True, False]).head(n)
    worst = seen[seen["n_eval"] >= MIN_TOKENS].sort_values("loss", ascending=False).head(n)
    return rarest[columns], worst[columns]


def compared(audits: Sequence[Audit], table: str = "bins") -> pd.DataFrame:
    """A table (of `TABLES`) of every audit with its `label`, one under the other; columns of counts named as `REFERENCE` says."""
    frames = []
    for a in audits:
        of = pd.DataFrame([{**a.facts, **a.totals}]) if table == "totals" else getattr(a, table)
        of = of.drop(columns="learning_speed", errors="ignore")  # known of runs alone
        frames.append(of.assign(label=a.label)[["label", *of]])
    return pd.concat([f for f in frames if len(f)] or frames[:1], ignore_index=True).rename(columns=REFERENCE)


def baselines(audits: Sequence[Audit]) -> pd.DataFrame:
    """The unigram's loss and chance, log V, by bin: columns label, bin, bin_low, loss; one curve where models share it."""
    rows = []
    for a in audits:
        for name, loss in (("unigram", a.bins["unigram"]), ("chance, log V", a.totals["chance"])):
            rows.append(a.bins[["bin", "bin_low"]].assign(loss=loss, name=name, label=f"{name}: {a.label}"))
    curves = pd.concat(rows, ignore_index=True)
    same = curves.groupby("name").apply(
        lambda c: not c.round(12).drop_duplicates(["bin", "loss"])["bin"].duplicated().any()
    )
    curves["label"] = curves["label"].where(~curves["name"].map(same), curves["name"])
    return curves.drop(columns="name").drop_duplicates(["label", "bin"], ignore_index=True)


def save(audits: Sequence[Audit], folder: str | Path) -> Path:
    """Write each table of `TABLES` as a CSV with a row or more per model, `label` first; returns the folder."""
    for name in TABLES:
        table, path = compared(audits, name), Path(folder) / f"{name}.csv"
        if len(table.columns) > 1:
            files.write_table(path, table)
        else:
            path.unlink(missing_ok=True)  # of an earlier audit that compared two
    return Path(folder)


def load(folder: str | Path) -> list[Audit]:
    """The audits of tables that `save` wrote. Raises RunError if one is missing or cannot be read."""
    tables = {}
    for name in TABLES:
        path = Path(folder) / f"{name}.csv"
        if name == "comparison" and not path.exists():
            tables[name] = pd.DataFrame({"label": []})
            continue
        try:  # spellings of tokens such as "NA" are text
            table = pd.read_csv(path, keep_default_na=False, na_values=[""], dtype=_TEXT)
            tables[name] = table.rename(columns={v: k for k, v in REFERENCE.items()})
            labels = tables["totals"][["label", *FACTS]]["label"]
        except (OSError, ValueError, KeyError) as error:
            raise files.RunError(
                f"tables_folder: {path} cannot be read ({files.first_line(error)}); name a folder that "
                "`python -m fairlm_utils audit ... --tables FOLDER` wrote"
            ) from error
    of = {n: {k: t.drop(columns="label").reset_index(drop=True) for k, t in tables[n].groupby("label")} for n in TABLES}
    found = []
    for label in labels:
        row = of["totals"][label].iloc[0].to_dict()
        facts = {k: row.pop(k) for k in list(row) if k in FACTS}
        rest = {n: of[n].get(label, tables[n].iloc[:0].drop(columns="label")) for n in TABLES if n != "totals"}
        found.append(Audit(label=label, facts=facts, totals=row, **rest))
    return found


def as_records(audits: Sequence[Audit]) -> dict[str, list[dict[str, Any]]]:
    """The tables of `TABLES` as lists of rows, for JSON: null where there is no number."""
    return {n: json.loads(compared(audits, n).to_json(orient="records", double_precision=10)) for n in TABLES}
