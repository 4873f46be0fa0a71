"""Grids of runs: an experiment file expanded to papermill executions of notebooks 02 and 03.

    python -m fairlm_utils.sweep params/quick.yaml
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import papermill
import pandas as pd
from tqdm import tqdm

from fairlm_utils import params, runs
from fairlm_utils.params import EvaluationParams, ParameterError

RUN_NOTEBOOKS = ("02_training", "03_evaluation")


@dataclass(frozen=True)
class Outcome:
    """How a run of the grid ended: finished, reused (it had finished before) or failed, with its notebook and error."""

    run_id: str
    status: str
    notebook: str = ""
    error: str = ""


def run_notebook(name: str, output: Path, values: dict[str, Any]) -> None:
    """Execute a notebook of notebooks/ with papermill, from the project's root; the executed copy goes to `output`.

    A notebook that fails leaves its partly executed copy there and raises papermill's PapermillExecutionError.
    """
    accepted = params.NOTEBOOKS[name].model_fields
    output.parent.mkdir(parents=True, exist_ok=True)
    papermill.execute_notebook(
        str(runs.PROJECT / "notebooks" / f"{name}.ipynb"),
        str(output),
        parameters={k: v for k, v in values.items() if k in accepted},
        cwd=str(runs.PROJECT),
        progress_bar=False,
        kernel_name="python3",
        extra_arguments=["--IPKernelApp.log_level=40"],  # not its note that a local kernel speaks TCP
    )


def _run(values: dict[str, Any], retries: int) -> Outcome:
    p = EvaluationParams.check(values)
    directory = runs.run_dir(p)
    for notebook in RUN_NOTEBOOKS:
        output = directory / f"{notebook}.ipynb"
        for attempt in range(retries + 1):
            try:
                run_notebook(notebook, output, values)
                break
            except Exception as error:  # one failed run must not stop the others
                if attempt == retries:
                    return Outcome(p.run_id(), "failed", str(output), _last_line(error))
    return Outcome(p.run_id(), "finished", str(output))


def _last_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip() and not set(line) <= {"-"}]
    return lines[-1] if lines else type(error).__name__


def is_finished(p: EvaluationParams) -> bool:
    """Whether the run of `p` is trained, evaluated and has its executed notebooks."""
    directory = runs.run_dir(p)
    return (directory / "tables" / "totals.csv").exists() and (directory / f"{RUN_NOTEBOOKS[-1]}.ipynb").exists()


def sweep(points: Sequence[EvaluationParams], n_workers: int = 0, retries: int = 1) -> list[Outcome]:
    """Run notebooks 02 and 03 for every point, several at a time, skipping what is finished.

    `n_workers` processes, by default as many as the cores hold with `n_threads` each. A failed run is tried `retries`
    times more and then reported; the others go on. Raises RunError if the folder holds runs of other settings.
    """
    runs.check_experiment(points)
    todo = [p for p in points if not is_finished(p)]
    outcomes = [Outcome(p.run_id(), "reused") for p in points if is_finished(p)]
    if not todo:
        return outcomes
    n_threads = max(p.n_threads for p in points)
    n_workers = n_workers or max(1, (os.cpu_count() or 1) // n_threads)
    pool = ProcessPoolExecutor(
        min(n_workers, len(todo)), multiprocessing.get_context("spawn"), initializer=_worker_environment, initargs=(n_threads,)
    )
    try:
        futures = [pool.submit(_run, p.model_dump(), retries) for p in todo]
        outcomes += _collect(futures, todo)
    except KeyboardInterrupt:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()
    return outcomes


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)  # a sweep that was killed leaves no workers behind; its notebooks' kernels end with them


def _worker_environment(n_threads: int) -> None:
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    os.environ.update(OMP_NUM_THREADS=str(n_threads), TQDM_DISABLE="1", TOKENIZERS_PARALLELISM="false")
    # glibc gives large buffers back to the system at every step and faults them in again; kept, steps with a vocabulary
    # of 32,000 take half the time
    os.environ.update(MALLOC_MMAP_MAX_="0", MALLOC_TRIM_THRESHOLD_=str(2**34), MALLOC_TOP_PAD_=str(2**26))


def _collect(futures: Sequence[Future], todo: Sequence[EvaluationParams]) -> list[Outcome]:
    names = dict(zip(futures, (p.run_id() for p in todo), strict=True))
    outcomes = []
    with tqdm(total=len(futures), desc="runs", unit="run", smoothing=0) as bar:
        for future in as_completed(futures):
            try:
                outcome = future.result()
            except Exception as error:  # the worker itself was killed, e.g. for memory
                outcome = Outcome(names[future], "failed", "", f"worker ended: {error}; run again to continue")
            outcomes.append(outcome)
            bar.set_postfix_str(f"{outcome.run_id} {outcome.status}")
            bar.update()
    return outcomes


def source_digest(name: str) -> str:
    """Digest of a notebook's source and of the package, so that a changed one is executed again."""
    digest = hashlib.sha256()
    for path in [runs.PROJECT / "notebooks" / f"{name}.ipynb", *sorted((runs.PROJECT / "fairlm_utils").glob("*.py"))]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def report_outcomes(outcomes: Sequence[Outcome]) -> None:
    """Print one line a failed run and a summary."""
    counts = pd.Series([o.status for o in outcomes]).value_counts()
    print("runs: " + ", ".join(f"{n} {status}" for status, n in counts.items()))
    for o in outcomes:
        if o.status == "failed":
            print(f"  {o.run_id}: {o.error}" + (f"\n    see {o.notebook}" if o.notebook else ""), file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fairlm_utils.sweep", description=__doc__.splitlines()[0])
    parser.add_argument("file", help="experiment file, e.g. params/quick.yaml")
    parser.add_argument("--workers", type=int, default=0, help="runs at a time (default: cores divided by n_threads)")
    parser.add_argument("--retries", type=int, default=1, help="times a failed run is tried again (default: 1)")
    params.add_override_option(parser)
    options = parser.parse_args(arguments)
    file = Path(options.file).resolve()
    runs.enter_project()
    try:
        points = params.expand(params.read(file, options.overrides), options.file)
        outcomes = sweep(points, options.workers, options.retries)
    except (ParameterError, runs.RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; run the same command again to continue", file=sys.stderr)
        return 130
    report_outcomes(outcomes)
    return 1 if any(o.status == "failed" for o in outcomes) else 0


if __name__ == "__main__":
    raise SystemExit(main())
