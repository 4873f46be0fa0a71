"""The whole pipeline of an experiment file: its runs, notebooks, tables, verdicts and a report.

python -m fairlm_utils reproduce params/quick.yaml
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import papermill
from jupyter_client import AsyncKernelManager
from papermill.exceptions import PapermillExecutionError

from fairlm_utils import files, identity, params
from fairlm_utils.analysis.results import Results, load_results
from fairlm_utils.analysis.tradeoffs import NO_DECAY, PLAIN_DECAY, SEVERAL_RUNS, has_remedies
from fairlm_utils.experiment.sweep import (
    default_workers,
    own_process,
    report_outcomes,
    run_environment,
    sweep,
    texts_now,
)
from fairlm_utils.params import EvaluationParams

# Libraries for models and pictures are imported where they are used: while runs and notebooks do, this process only waits,
# and should leave the memory to them.
RUN_NOTEBOOKS = ("02_training", "03_evaluation")


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


def _check_comparable(values: Mapping[str, Any], points: Sequence[params.EvaluationParams], file: str | Path) -> None:
    """Raise ParameterError for a grid whose runs cannot be compared in one report."""
    if others := [k for k, v in values.items() if params.is_grid(k, v) and k not in identity.AXES]:
        raise params.ParameterError(
            f"{file}: {', '.join(others)}: a report compares models, λ and seeds; name settings of others under `variants`"
        )
    n_runs = Counter((p.variant, p.seed) for p in points)
    if {NO_DECAY, PLAIN_DECAY} <= {p.variant for p in points} and max(n_runs.values()) > 1:
        raise params.ParameterError(f"{file}: {SEVERAL_RUNS}")
    if not any(p.variant for p in points) and all(p.weight_decay for p in points):
        raise params.ParameterError(f"{file}: weight_decay has no 0.0, from which every change is measured; add it")


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
    _check_comparable(values, points, file)
    files.check_writable(folder / "01_tokenization.ipynb")
    outcomes = sweep(points, n_workers, retries, texts=texts)
    report_outcomes(outcomes)
    if failed := [o for o in outcomes if o.status == "failed"]:
        raise files.RunError(
            f"{len(failed)} of {len(points)} runs failed (see above); run the same command again to try them again"
        )
    results = load_results(folder)
    single = {k: v for k, v in values.items() if not params.is_grid(k, v)}
    wanted = _tokenizations(points, single, folder, json.dumps(texts, sort_keys=True))
    for p in _shown(points):
        for name in RUN_NOTEBOOKS:
            own = identity.run_dir(p)
            title = f"{name.replace('_', ' ')} {p.model} weight decay {p.weight_decay:g} seed {p.seed}"
            wanted[title] = _Wanted(name, own, p.model_dump(), _totals([own]))
    single = {**single, "results": str(folder), "remedy_results": [str(folder)]}
    for name in _notebooks_of(results):
        wanted[name.replace("_", " ")] = _Wanted(name, folder, single, _totals(identity.finished_runs(folder)))
    done = _execute(wanted, n_workers or default_workers(points), max(p.n_threads for p in points))
    from fairlm_utils.experiment import summary

    if save_results:
        summary.save(results, Path(save_results), f"make results PARAMS={file}")
    return summary.conclude(file, folder, results, done)


def _tokenizations(
    points: Sequence[EvaluationParams], values: dict[str, Any], folder: Path, texts: str
) -> dict[str, _Wanted]:
    """Notebook 01 on the text and tokenizer of an experiment, or on those of each of its variants that differ in them."""
    names = set(params.TokenizationParams.model_fields)
    firsts: dict[str, EvaluationParams] = {}
    for p in points:
        firsts.setdefault(repr(p.model_dump(include=names)), p)
    if len(firsts) == 1:
        return {"01 tokenization": _Wanted("01_tokenization", folder, values, texts)}
    return {
        f"01 tokenization {p.variant}": _Wanted(
            "01_tokenization", identity.run_dir(p), values | p.model_dump(include=names), texts
        )
        for p in firsts.values()
    }


def _notebooks_of(results: Results) -> tuple[str, ...]:
    """The notebooks that show an experiment: the paper's figures, or remedies; none for other variants."""
    if "variant" not in results.totals:
        return ("04_figures", "05_theory")
    return ("07_remedies",) if has_remedies(results) else ()


def _check_models(asked: Sequence[tuple[str, int, int]]) -> None:
    """Raise ParameterError for a model (name, vocabulary, context) that does not exist or is too short."""
    from fairlm_utils.lm.models import model_config

    for name, vocab_size, context in asked:
        model_config(name, vocab_size, context)


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
    digest, package = hashlib.sha256(), files.PROJECT / "fairlm_utils"
    for path in [files.PROJECT / "notebooks" / f"{name}.ipynb", *sorted(package.rglob("*.py"))]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _shown(points: Sequence[EvaluationParams]) -> list[EvaluationParams]:
    """The runs whose notebooks the report shows: of each model the least and the most decayed, first seed."""
    shown = []
    for model in dict.fromkeys(p.model for p in points):
        own = [p for p in points if p.model == model]
        first = [p for p in own if p.seed == own[0].seed]
        shown += [min(first, key=lambda p: p.weight_decay), max(first, key=lambda p: p.weight_decay)]
    return list({p.run_id(): p for p in shown}.values())
