"""The whole pipeline of an experiment file: its runs, notebooks, tables, verdicts and a report.

python -m fairlm_utils reproduce params/quick.yaml
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import papermill
from jupyter_client import AsyncKernelManager
from papermill.exceptions import PapermillExecutionError
from tabulate import tabulate

from fairlm_utils import files, identity, params
from fairlm_utils.analysis import charts, claims, comparisons, languages, metrics
from fairlm_utils.analysis.comparisons import has_remedies
from fairlm_utils.analysis.results import Results, load_results, write_results
from fairlm_utils.experiment import cost
from fairlm_utils.experiment.report import write_report
from fairlm_utils.experiment.sweep import (
    default_workers,
    own_process,
    report_outcomes,
    run_environment,
    sweep,
    texts_now,
)
from fairlm_utils.lm.models import model_config
from fairlm_utils.params import EvaluationParams

# Libraries for models, statistics and pictures are imported where they are used: while runs and notebooks do, this
# process only waits, and should leave the memory to them.
RUN_NOTEBOOKS = ("02_training", "03_evaluation")
TABLE_1 = (
    "average_loss",
    "token_balanced_loss",
    "average_accuracy",
    "token_balanced_accuracy",
    "token_balanced_perplexity",
)


class _Kernel(AsyncKernelManager):
    """A kernel that is asked to end, and not interrupted first: one that has just answered would call that an error."""

    async def _async_interrupt_kernel(self) -> None:
        if not self.shutting_down:
            await super()._async_interrupt_kernel()


class _Wanted(NamedTuple):
    """A notebook to be executed: where its copy goes, its parameters, and what it reads beside them."""

    name: str
    folder: Path
    values: dict[str, Any]
    inputs: str


def run_notebook(name: str, output: Path, values: dict[str, Any]) -> None:
    """Execute a notebook of notebooks/ with papermill, from the project's root; the executed copy goes to `output`.

    A notebook that fails leaves its partly executed copy there and raises papermill's PapermillExecutionError.
    """
    accepted = params.NOTEBOOKS[name].model_fields
    output.parent.mkdir(parents=True, exist_ok=True)
    papermill.execute_notebook(
        str(files.PROJECT / "notebooks" / f"{name}.ipynb"),
        str(output),
        parameters={k: v for k, v in values.items() if k in accepted},
        cwd=str(files.PROJECT),
        progress_bar=False,
        kernel_name="python3",
        extra_arguments=["--IPKernelApp.log_level=40"],  # not its note that a local kernel speaks TCP
        kernel_manager_class=_Kernel,
    )


def reproduce(
    file: str | Path,
    n_workers: int = 0,
    retries: int = 1,
    save_results: str = "",
    overrides: Sequence[tuple[str, str]] = (),
) -> Path:
    """Make every run of an experiment file, execute its notebooks and write the report; returns its index page.

    What has been done before is not done again. Notebooks 02 and 03 are executed on the runs that the report shows.
    Prints Table 1 and the claims table. With `save_results` the small tables also go to that folder. Raises
    ParameterError or RunError for a bad experiment, or one whose runs are of another text than is there now, before
    anything runs, and RunError if a run or a notebook has failed.
    """
    values = params.read(file, overrides)
    points = params.expand(values, str(file))
    folder = Path(points[0].runs_dir) / points[0].experiment
    if save_results:
        files.check_writable(Path(save_results) / "experiment.json")
    with own_process() as pool:
        asked = dict.fromkeys((p.model, p.vocab_size, p.context) for p in points)
        pool.submit(_check_models, list(asked)).result()
        identity.check_experiment(points)
        texts = pool.submit(texts_now, points).result()
    identity.check_texts(folder, texts)
    files.check_writable(folder / "01_tokenization.ipynb")
    outcomes = sweep(points, n_workers, retries, texts=texts)
    report_outcomes(outcomes)
    if failed := [o for o in outcomes if o.status == "failed"]:
        raise files.RunError(
            f"{len(failed)} of {len(points)} runs failed (see above); run the same command again to try them again"
        )
    results = load_results(folder)
    single = {k: v for k, v in values.items() if not params.is_grid(k, v)}
    wanted = {"01 tokenization": _Wanted("01_tokenization", folder, single, json.dumps(texts, sort_keys=True))}
    for p in _shown(points):
        for name in RUN_NOTEBOOKS:
            wanted[_run_title(p, name)] = _Wanted(
                name, identity.run_dir(p), p.model_dump(), _totals([identity.run_dir(p)])
            )
    single = {**single, "results": str(folder), "remedy_results": [str(folder)]}
    for name in _notebooks_of(results):
        wanted[name.replace("_", " ")] = _Wanted(name, folder, single, _totals(identity.finished_runs(folder)))
    done = _execute(wanted, n_workers or default_workers(points), max(p.n_threads for p in points))

    if save_results:
        _save(results, Path(save_results), f"make results PARAMS={file}")
    return _conclude(file, folder, results, done)


def _notebooks_of(results: Results) -> tuple[str, ...]:
    """The notebooks that show an experiment: the paper's figures, or remedies; none for other variants."""

    if "variant" not in results.totals:
        return ("04_figures", "05_theory")
    return ("07_remedies",) if has_remedies(results) else ()


def _kept(results: Results) -> Results:
    """The runs that an experiment's page is of: all, or each setting's at the learning rate that is best at λ = 0.

    The latter where losses by word or by language answer a question about variants, each tried at several rates.
    """

    told = results.words is not None or results.languages is not None
    if (
        not told
        or "rates" in results.provenance
        or "variant" not in results.totals
        or comparisons.has_remedies(results)
    ):
        return results
    return comparisons.at_best_rate(results)


def _answer(kept: Results) -> list[str]:
    """Sentences of an experiment whose rates `_kept` has chosen, the answer first; none of others, whose tables say it."""

    if "rates" not in kept.provenance:
        return []
    by_language, by_word = kept.languages, comparisons.tokenizers
    said = comparisons.say_tokenizers(by_word(kept)) if by_language is None else languages.verdict(by_language)
    return [*said, *comparisons.say_rates(pd.DataFrame(kept.provenance["rates"]))]


def _by_rate(results: Results) -> pd.DataFrame:
    """The learning rates tried and what is found at each: changes with their intervals at the λ that is chosen there."""

    if results.languages is not None:
        used = languages.compared_weight_decay(results.languages)
        changes = languages.small_minus_large(results.languages, used)
        found = comparisons.mean_interval(changes, "difference")
        found = found.assign(λ=found["variant"].map(used), what="small − large, " + found["split"])
    else:
        found = comparisons.tokenizers(results).query("unit == 'word' and split == 'held-out'")
        found = found[found["bin"].isin(found["bin"].unique()[:3])].rename(columns={"change": "mean", "compared": "λ"})
        found["what"] = "words, count " + found["bin"]
    found["change"] = [f"{r.mean:+.3f} [{r.low:+.3f}, {r.high:+.3f}]" for r in found.itertuples()]
    wide = found.pivot(index=["variant", "λ"], columns="what", values="change").reset_index("λ")
    rates = comparisons.rates(results).set_index("variant")
    at_zero = pd.Series([f"{r.loss:.3f} ± {r.sd:.3f}" for r in rates.itertuples()], rates.index)
    kept = rates["kept"].map({True: "yes", False: ""})
    return pd.DataFrame({"held-out average at λ = 0": at_zero, "kept": kept}).join(wide).reset_index()


def _tables(results: Results) -> dict[str, pd.DataFrame]:
    """What an experiment says, by heading: verdicts on the claims, or what its variants change; Table 1 and scale."""

    if (kept := _kept(results)) is not results:
        return {"Learning rates tried, and the change from λ = 0 at each": _by_rate(results), **_tables(kept)}
    sheet = cost.sheet(results)
    columns = sheet.select_dtypes("number").columns
    sheet[columns] = sheet[columns].map(lambda v: "" if np.isnan(v) else f"{v:.3g}")
    in_common = {"Table 1": metrics.table_1(results.totals, TABLE_1), "Scale": sheet}
    if "variant" not in results.totals:
        return {"Claims": claims.claims(results).drop(columns="model"), **in_common}
    if not (results.totals["weight_decay"] > 0).any():  # a tuning of other parameters
        return in_common
    if not comparisons.has_remedies(results):
        return {"Change from λ = 0": comparisons.at_weight_decay(results, np.inf), **in_common}
    numbers = comparisons.remedy_numbers(results)
    measures = [m for m in comparisons.MEASURES if m in numbers]
    return {
        "Remedies: change from plain decay, sorted by what rare types gain": comparisons.judge_remedies(numbers).round(
            4
        ),
        "Measures": comparisons.mean_sd(numbers, "variant", measures),
        **in_common,
    }


def _picture(results: Results) -> Any:

    if answer := _answer(results):
        if results.languages is None:
            return charts.change_by_tokenizer(comparisons.tokenizers(results), answer[0])
        changes = languages.language_changes(results.languages)
        return charts.change_by_language(changes[changes["compared"]], answer[0])
    if comparisons.has_remedies(results):
        points = comparisons.remedy_points(comparisons.remedy_numbers(results), results.params["variants"])
        return charts.pareto(points.assign(regime=results.params["experiment"]))
    baselines = metrics.baselines(results.bins, results.totals)
    return charts.by_bin(metrics.over_seeds(results.bins, "loss"), baselines=baselines)


def _check_models(asked: Sequence[tuple[str, int, int]]) -> None:
    """Raise ParameterError for a model (name, vocabulary, context) that does not exist or is too short."""

    for name, vocab_size, context in asked:
        model_config(name, vocab_size, context)


def _save(results: Results, folder: Path, command: str) -> None:
    """The small tables for committing, with a page that shows them and the figure of loss by frequency, or of the answer."""

    kept, made = _kept(results), f"Made by `{command}`"
    file = "remedies.png" if comparisons.has_remedies(results) else "loss_by_frequency.png"
    if answer := _answer(kept):
        write_results(_thinned(kept), folder, command)
        file = "answer.png"
        stacked = command.replace("make results PARAMS=", "fairlm stack ")
        made = f"Made by `{stacked}` on one GPU, or on cores by the next alone, then `{command}`"
    else:
        write_results(results, folder, command)
    chart = _picture(kept)
    picture, *_ = charts.png(chart)
    lines = [
        f"# {results.params['experiment']}",
        f"{made} at commit {', '.join(results.provenance['git_commits'])}.",
        f"Scale: {kept.scale}.",
        *(["\n".join(f"- {sentence}" for sentence in answer)] if answer else []),
        "Losses in nats; intervals are 95 % Student-t intervals over seeds, claims and changes mean ± half of one; other ± are "
        "standard deviations over seeds.",
        f"![{chart.description}]({file})",
    ]
    lines += [f"## {title}\n\n{markdown(table)}" for title, table in _tables(results).items()]
    for name, content in {file: picture, "README.md": ("\n\n".join(lines) + "\n").encode()}.items():
        with files.atomic_path(folder / name) as temporary:
            temporary.write_bytes(content)


def _thinned(results: Results) -> Results:
    """An experiment without what its answer does not rest on: the last window of its curves, reliability of the first seed."""
    curves, reliability = results.curves, results.reliability
    last = curves.groupby("variant")["step"].transform("max")
    return replace(
        results,
        curves=curves[curves["step"] == last],
        reliability=reliability[reliability["seed"] == reliability["seed"].min()],
    )


def markdown(table: pd.DataFrame) -> str:
    """A table in Markdown."""
    return tabulate(table, headers="keys", showindex=False, tablefmt="github", disable_numparse=True)


def _totals(directories: Sequence[Path]) -> str:
    """What runs have come to, by which a notebook that shows them is known to be of them."""
    return json.dumps([(d.name, (d / "tables" / "totals.csv").read_text(encoding="utf-8")) for d in directories])


def _execute(wanted: Mapping[str, _Wanted], n_workers: int, n_threads: int) -> dict[str, Path]:
    """Execute notebooks, `n_workers` at a time; the executed copy of each by title. RunError if one has failed."""
    print(f"{len(wanted)} notebooks:", flush=True)
    pool = ThreadPoolExecutor(n_workers)
    try:
        with run_environment(n_threads):
            made = {title: pool.submit(_notebook, title, notebook) for title, notebook in wanted.items()}
            return {title: copy.result() for title, copy in made.items()}
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _notebook(title: str, wanted: _Wanted) -> Path:
    """Execute a notebook unless its executed copy was made from the same source, parameters and inputs."""
    output, record = wanted.folder / f"{wanted.name}.ipynb", wanted.folder / f".{wanted.name}.json"
    made_from = {"source": source_digest(wanted.name), "parameters": wanted.values, "inputs": wanted.inputs}
    if output.exists() and record.exists() and files.read_json(record) == made_from:
        print(f"  {title}: done before")
        return output
    record.unlink(missing_ok=True)
    started = time.monotonic()
    try:
        run_notebook(wanted.name, output, wanted.values)
    except PapermillExecutionError as error:
        raise files.RunError(f"notebook {title} failed: {error.ename}: {error.evalue}\nsee {output}") from error
    files.write_json(record, made_from)
    print(f"  {title}: {time.monotonic() - started:.0f} s", flush=True)
    return output


def source_digest(name: str) -> str:
    """Digest of a notebook's source and of the package, so that a changed one is executed again."""
    digest = hashlib.sha256()
    for path in [
        files.PROJECT / "notebooks" / f"{name}.ipynb",
        *sorted((files.PROJECT / "fairlm_utils").rglob("*.py")),
    ]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _shown(points: Sequence[EvaluationParams]) -> list[EvaluationParams]:
    """The runs whose notebooks the report shows: of each model the least and the most decayed, first seed."""
    shown = []
    for model in dict.fromkeys(p.model for p in points):
        first = [p for p in points if p.model == model and p.seed == points[0].seed]
        shown += [min(first, key=lambda p: p.weight_decay), max(first, key=lambda p: p.weight_decay)]
    return list({p.run_id(): p for p in shown}.values())


def _run_title(p: EvaluationParams, notebook: str) -> str:
    return f"{notebook.replace('_', ' ')} {p.model} weight decay {p.weight_decay:g} seed {p.seed}"


def _conclude(file: str | Path, folder: Path, results: Results, done: dict[str, Path]) -> Path:

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
    narrow = {name: _with_intervals(_without_common(table)) for name, table in tables.items()}
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


def _with_intervals(table: pd.DataFrame) -> pd.DataFrame:
    table = table.copy()
    for name in [c.removesuffix("_low") for c in table if str(c).endswith("_low") and c.removesuffix("_low") in table]:
        bounds = table[[name, f"{name}_low", f"{name}_high"]]
        table[name] = [f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]" for mean, low, high in bounds.itertuples(index=False)]
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
    rows = [
        (
            row.verdict,
            f"{row.claim}\npaper: {row.paper} ({row.exhibit})\nhere: {row.ours}" + f"\n{row.reason}" * bool(row.reason),
        )
        for row in table.itertuples(index=False)
    ]
    return tabulate(rows, tablefmt="plain", maxcolwidths=[None, max(20, width - verdicts - 2)], disable_numparse=True)
