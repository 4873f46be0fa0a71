"""What an experiment says: its tables, sentences and picture, for the terminal, its report and its folder of results/."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tabulate import tabulate

from fairlm_utils import files
from fairlm_utils.analysis import (
    charts,
    claims,
    comparisons,
    languages,
    metrics,
    sentences,
    theme,
    tokenizers,
    tradeoffs,
)
from fairlm_utils.analysis.results import Results, write_results
from fairlm_utils.experiment import cost
from fairlm_utils.experiment.report import write_report

TABLE_1 = (
    "average_loss",
    "token_balanced_loss",
    "average_accuracy",
    "token_balanced_accuracy",
    "token_balanced_perplexity",
)
#: Heading of the table by learning rate, which a page has if each variant was tried at several.
BY_RATE = "Learning rates tried, and the change from λ = 0 at each"


def _kept(results: Results) -> Results:
    """The runs that an experiment's page is of: all, or each setting's at the learning rate that is best at λ = 0.

    The latter where losses by word or by language answer a question about variants, each tried at several rates.
    """
    told = results.words is not None or results.languages is not None
    if not told or "rates" in results.provenance or "variant" not in results.totals or tradeoffs.has_remedies(results):
        return results
    return comparisons.at_best_rate(results)


def _answer(kept: Results) -> list[str]:
    """Sentences of an experiment whose rates `_kept` has chosen, the answer first; none of others, whose tables say it."""
    if "rates" not in kept.provenance:
        return []
    by_word = kept.languages is None
    said = tokenizers.verdict(tokenizers.compare(kept)) if by_word else languages.verdict(kept.languages)
    return [*said, *comparisons.say_rates(pd.DataFrame(kept.provenance["rates"]))]


def _by_rate(results: Results) -> pd.DataFrame:
    """The learning rates tried and what is found at each: changes with their intervals at the λ that is chosen there."""
    if results.languages is not None:
        used = languages.compared_weight_decay(results.languages)
        changes = languages.small_minus_large(results.languages, used)
        found = comparisons.mean_interval(changes, "difference")
        found = found.assign(λ=found["variant"].map(used), what="small − large, " + found["split"])
    else:
        n_decays = results.totals.groupby("variant")["weight_decay"].nunique()
        tables = {name: getattr(results, name) for name in ("bins", "words")}
        decayed = {name: table[table["variant"].map(n_decays) > 1] for name, table in tables.items()}
        found = tokenizers.compare(replace(results, **decayed))
        found = found.query("unit == 'word' and split == 'held-out'")
        found = found[found["bin"].isin(found["bin"].unique()[:3])].rename(columns={"change": "mean", "compared": "λ"})
        found["what"] = "words, count " + found["bin"]
    found["change"] = [sentences.interval(r.mean, r.low, r.high) for r in found.itertuples()]
    wide = found.pivot(index=["variant", "λ"], columns="what", values="change").reset_index("λ")
    rates = comparisons.rates(results).set_index("variant")
    at_zero = rates.apply(comparisons.at_zero, axis=1)
    kept = rates["kept"].map({True: "yes", False: ""})
    table = pd.DataFrame({"held-out average at λ = 0": at_zero, "kept": kept}).join(wide).reset_index()
    return table.astype(object).where(table.notna(), "")  # a rate tried without decay alone has no change


def _tables(results: Results) -> dict[str, pd.DataFrame]:
    """What an experiment says, by heading: verdicts on the claims, or what its variants change; Table 1 and scale."""
    if (kept := _kept(results)) is not results:
        return {BY_RATE: _by_rate(results), **_tables(kept)}
    # a column of no value at all is of no number's type
    sheet = cost.sheet(results).map(lambda v: v if isinstance(v, str) else "" if np.isnan(v) else f"{v:.3g}")
    in_common = {"Table 1": metrics.table_1(results.totals, TABLE_1), "Scale": sheet}
    if "variant" not in results.totals:
        return {"Claims": claims.claims(results).drop(columns="model"), **in_common}
    if not tradeoffs.has_remedies(results):
        run = results.totals.groupby(["model", "variant", "seed"])["weight_decay"]
        if not ((run.min() == 0) & (run.max() > 0)).any():  # of variants that differ in other parameters
            return in_common
        return {"Change from λ = 0": comparisons.at_weight_decay(results, np.inf), **in_common}
    numbers = tradeoffs.remedy_numbers(results)
    measures = [m for m in tradeoffs.MEASURES if m in numbers]
    judged = tradeoffs.judge_remedies(numbers).round(4)
    return {
        "Remedies: change from plain decay, sorted by what rare types gain": judged,
        "Measures": tradeoffs.mean_sd(numbers, "variant", measures),
        **in_common,
    }


def _picture(results: Results) -> Any:
    if answer := _answer(results):
        if results.languages is None:
            return charts.change_by_tokenizer(tokenizers.compare(results), answer[0])
        changes = languages.language_changes(results.languages)
        return charts.change_by_language(changes[changes["compared"]], answer[0])
    if tradeoffs.has_remedies(results):
        points = tradeoffs.remedy_points(tradeoffs.remedy_numbers(results), results.params["variants"])
        return charts.pareto(points.assign(regime=results.params["experiment"]))
    baselines = metrics.baselines(results.bins, results.totals)
    return charts.by_bin(metrics.over_seeds(results.bins, "loss"), baselines=baselines)


def save(results: Results, folder: Path, command: str) -> None:
    """The small tables for committing, with a page that shows them and the figure of loss by frequency, or of the answer."""
    kept, made = _kept(results), f"Made by `{command}`"
    if answer := _answer(kept):
        write_results(_thinned(kept), folder, command)
        stacked = command.replace("make results PARAMS=", "python -m fairlm_utils stack ")
        made = f"Made by `{stacked}` on one GPU, or on cores by the next alone, then `{command}`"
    else:
        write_results(results, folder, command)
    lines = [
        f"# {results.params['experiment']}",
        f"{made} at commit {', '.join(results.provenance['git_commits'])}.",
        f"Scale: {kept.scale}.",
        *(["\n".join(f"- {sentence}" for sentence in answer)] if answer else []),
        "Losses in nats; intervals are 95 % Student-t intervals over seeds, claims and changes mean ± half of one; other ± are "
        "standard deviations over seeds.",
        save_picture(kept, folder),
        *sections(results),
    ]
    with files.atomic_path(folder / "README.md") as temporary:
        temporary.write_text("\n\n".join(lines) + "\n", encoding="utf-8")


def sections(results: Results) -> list[str]:
    """The tables of an experiment's page in Markdown, each under its heading."""
    return [f"## {title}\n\n{markdown(_narrow(table))}" for title, table in _tables(results).items()]


def section_of(page: str, heading: str) -> re.Match[str] | None:
    """Where a page has the section of this heading, from the heading on."""
    return re.search(rf"^## {re.escape(heading)}\n\n.*?(?=\n\n## |\n\Z)", page, flags=re.DOTALL | re.MULTILINE)


def save_picture(results: Results, folder: Path) -> str:
    """Draw an experiment's figure into a folder; the line of its page that shows it."""
    answered = "answer.png" if "rates" in results.provenance else "loss_by_frequency.png"
    name = "remedies.png" if tradeoffs.has_remedies(results) else answered
    chart = _picture(results)
    picture, *_ = theme.png(chart)
    with files.atomic_path(folder / name) as temporary:
        temporary.write_bytes(picture)
    return f"![{chart.description}]({name})"


def _thinned(results: Results) -> Results:
    """An experiment without what its answer does not rest on: the last window of its curves, reliability of the first seed."""
    curves, reliability = results.curves, results.reliability
    curves = curves[curves["step"] == curves.groupby("variant")["step"].transform("max")]
    reliability = reliability[reliability["seed"] == reliability["seed"].min()]
    return replace(results, curves=curves, reliability=reliability)


def markdown(table: pd.DataFrame) -> str:
    """A table in Markdown."""
    return tabulate(table, headers="keys", showindex=False, tablefmt="github", disable_numparse=True)


def conclude(file: str | Path, folder: Path, results: Results, done: Mapping[str, Path]) -> Path:
    """Print what an experiment says, and write its report with the executed notebooks `done`, by title; its index page."""
    tables, kept = _tables(results), _kept(results)
    print(f"\n{kept.scale}; losses in nats; mean ± sd over seeds, or ± half a 95 % Student-t interval where compared")
    for name, table in reversed(tables.items()):
        print(f"\n{name}\n{_for_terminal(name, table)}")
    answer = _answer(kept)
    print("".join(f"\n{sentence}" for sentence in answer))
    lines = [*answer, f"{kept.scale}. Experiment file: {file}. Losses in nats, mean ± sd over seeds."]
    title = f"The Fair Language Model Paradox: {results.params['experiment']}"
    return write_report(folder / "report", title, lines, _for_page(tables), done, _picture(kept))


def _for_page(tables: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Tables as they fit a page: claims and verdicts with what explains them, an interval beside its mean."""
    narrow = {name: _narrow(table) for name, table in tables.items()}
    if "Claims" in tables:
        said = tables["Claims"]
        columns = {
            "claim": said["claim"] + "\n" + said["exhibit"] + "; rule: " + said["rule"],
            "paper": said["paper"],
            "here": said["ours"],
            "verdict": said["verdict"] + "\n" + said["reason"],
        }
        narrow["Claims"] = pd.DataFrame(columns)
    return narrow


def _without_common(table: pd.DataFrame) -> pd.DataFrame:
    """A table without the columns of which the line of its scale says what all rows share."""
    return table.drop(columns=[c for c in ("model", "n_seeds") if c in table and table[c].nunique() == 1])


def _narrow(table: pd.DataFrame) -> pd.DataFrame:
    """A table without what the line of its scale says of all rows, and with each interval beside its mean."""
    table = _without_common(table)
    for name in [c.removesuffix("_low") for c in table if str(c).endswith("_low") and c.removesuffix("_low") in table]:
        bounds = table[[name, f"{name}_low", f"{name}_high"]]
        table[name] = [sentences.interval(*row) for row in bounds.itertuples(index=False)]
        table = table.drop(columns=bounds.columns[1:])
    return table


def _for_terminal(name: str, table: pd.DataFrame) -> str:
    """A table as it fits the terminal: claims as a verdict and a paragraph each, Table 1 under narrow headings."""
    if name != "Claims":
        if name in ("Table 1", "Scale"):
            table = _without_common(table).rename(columns=lambda c: c.replace("_", "\n"))
        return tabulate(table, headers="keys", showindex=False)
    width = shutil.get_terminal_size((120, 24)).columns
    verdicts = table["verdict"].str.len().max()
    rows = []
    for row in table.itertuples(index=False):
        said = f"{row.claim}\npaper: {row.paper} ({row.exhibit})\nhere: {row.ours}"
        rows.append((row.verdict, said + f"\n{row.reason}" * bool(row.reason)))
    return tabulate(rows, tablefmt="plain", maxcolwidths=[None, max(20, width - verdicts - 2)], disable_numparse=True)
