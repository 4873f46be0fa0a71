"""Grids of runs: an experiment file expanded to papermill executions of notebooks 02 and 03.

python -m fairlm_utils.sweep params/quick.yaml
python -m fairlm_utils.sweep params/paper/openelm-270m-imdb.yaml --ray-address auto --gpus-per-run 0.5
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pandas as pd
import papermill
from jupyter_client import AsyncKernelManager
from nbclient.exceptions import DeadKernelError
from tqdm import tqdm

from fairlm_utils import params, runs
from fairlm_utils.params import EvaluationParams, ParameterError, TokenizationParams

RUN_NOTEBOOKS = ("02_training", "03_evaluation")
#: glibc gives large buffers back to the system at every step and faults them in again; kept, the steps of a vocabulary of
#: 32,000 took half the time.
_KEEP_BUFFERS = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**34)}


@dataclass(frozen=True)
class Outcome:
    """How a run of the grid ended: finished, reused (it had finished before) or failed, with its notebook and error."""

    run_id: str
    status: str
    notebook: str = ""
    error: str = ""


class _Kernel(AsyncKernelManager):
    """A kernel that is asked to end, and not interrupted first: one that has just answered would call that an error."""

    async def _async_interrupt_kernel(self) -> None:
        if not self.shutting_down:
            await super()._async_interrupt_kernel()


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
        kernel_manager_class=_Kernel,
    )


def _run(values: dict[str, Any], retries: int) -> Outcome:
    p = EvaluationParams.check(values)
    try:
        directory = runs.run_dir(p)
        with runs.locked(directory / ".notebooks"):  # not the run's own lock, which its notebooks take
            return Outcome(p.run_id(), "reused") if is_finished(p) else _run_alone(p, values, retries)
    except runs.RunError as error:
        return Outcome(p.run_id(), "failed", error=str(error))


def _run_alone(p: EvaluationParams, values: dict[str, Any], retries: int) -> Outcome:
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
    if isinstance(error, DeadKernelError):
        return "the notebook's process died, most often for lack of memory: lower batch_size, or --workers"
    lines = [line for line in str(error).splitlines() if line.strip() and not set(line) <= {"-"}]
    return lines[-1] if lines else type(error).__name__


def is_finished(p: EvaluationParams) -> bool:
    """Whether the run of `p` is trained, evaluated and has its executed notebooks."""
    directory = runs.run_dir(p)
    return (directory / "tables" / "totals.csv").exists() and (directory / f"{RUN_NOTEBOOKS[-1]}.ipynb").exists()


def sweep(
    points: Sequence[EvaluationParams],
    n_workers: int = 0,
    retries: int = 1,
    ray_address: str = "",
    gpus_per_run: float | None = None,
    texts: Mapping[str, str] | None = None,
) -> list[Outcome]:
    """Run notebooks 02 and 03 for every point, several at a time, skipping what is finished.

    Here with `n_workers` processes, by default as many as the cores hold with `n_threads` each; or, given the
    `ray_address` of a cluster ("auto", HOST:PORT or ray://HOST:PORT), as many as its nodes hold with `n_threads` CPUs and
    `gpus_per_run` GPUs each, a fraction letting several runs share one (default: one GPU if the cluster has any and
    `device` is not cpu). A failed run is tried `retries` times more and then reported; the others go on. `texts` is
    `texts_now(points)` where that is known. Raises RunError if the folder holds runs of other settings or of another
    text, or the cluster cannot be used.
    """
    runs.check_experiment(points)
    folder = Path(points[0].runs_dir) / points[0].experiment
    if any(folder.glob("*/params.json")):
        if texts is None:
            with own_process() as process:
                texts = process.submit(texts_now, points).result()
        runs.check_texts(folder, texts)
    todo = [p for p in points if not is_finished(p)]
    outcomes = [Outcome(p.run_id(), "reused") for p in points if is_finished(p)]
    if not todo:
        return outcomes
    if ray_address:
        with _ray_cluster(ray_address) as ray:
            return outcomes + _collect(_submit_to_ray(ray, todo, retries, gpus_per_run))
    n_threads = max(p.n_threads for p in points)
    n_workers = n_workers or max(1, (os.cpu_count() or 1) // n_threads)
    # threads, for each only waits for the kernel of its notebook, which is a process of its own
    pool = ThreadPoolExecutor(min(n_workers, len(todo)))
    try:
        with kernel_environment(n_threads):
            outcomes += _collect({pool.submit(_run, p.model_dump(), retries): p for p in todo})
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return outcomes


def own_process() -> ProcessPoolExecutor:
    """One process for what needs large imports, which this one does without while notebooks run."""
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), runs.print_plainly)


def texts_now(points: Sequence[EvaluationParams]) -> dict[str, str]:
    """`runs.text_identity` of what corpora, tokenizers and configs of `points` are now, where that can be known."""
    from fairlm_utils.tokenization import text_now

    found: dict[str, str] = {}
    for p in {tuple(getattr(p, name) for name in TokenizationParams.model_fields): p for p in points}.values():
        found |= runs.text_identity(p.model_dump(), text_now(p) or {})
    for p in {p.model: p for p in points}.values():
        found |= runs.text_identity(p.model_dump(), runs.config_digest(p.model))
    return found


@contextmanager
def _ray_cluster(address: str) -> Iterator[Any]:
    """A connection to a Ray cluster, tried first with a plain socket, for Ray itself waits for minutes."""
    try:
        import ray
    except ImportError as error:
        raise runs.RunError("--ray-address needs Ray: pip install 'fairlm-utils[ray]'") from error
    start = "start one by `ray start --head`, then `ray start --address=HOST:6379` on the other machines"
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        if port.isdecimal():
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        ray.init(address=address, log_to_driver=False, configure_logging=False)
    except (OSError, ConnectionError, ValueError, OverflowError) as error:
        raise runs.RunError(f"no Ray cluster answers at {address!r} ({error}); {start}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _submit_to_ray(
    ray: Any, points: Sequence[EvaluationParams], retries: int, gpus_per_run: float | None
) -> dict[Future, EvaluationParams]:
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if gpus_per_run is None:
        gpus_per_run = float(any(n.get("GPU", 0) for n in nodes) and points[0].device != "cpu")
    n_threads = max(p.n_threads for p in points)
    if not any(n.get("CPU", 0) >= n_threads and n.get("GPU", 0) >= gpus_per_run for n in nodes):
        raise runs.RunError(
            f"no node of the cluster has the {n_threads} CPUs and {gpus_per_run:g} GPUs of a run; lower n_threads or --gpus-per-run"
        )
    # max_retries is for lost nodes: the run starts again elsewhere and continues from its last checkpoint
    task = ray.remote(num_cpus=n_threads, num_gpus=gpus_per_run, max_retries=retries + 2)(_run_on_node)
    return {task.remote(p.model_dump(), retries).future(): p for p in points}


def _run_on_node(values: dict[str, Any], retries: int) -> Outcome:
    runs.enter_project()
    with kernel_environment(values["n_threads"]):
        return _run(values, retries)


@contextmanager
def kernel_environment(n_threads: int) -> Iterator[None]:
    """The environment in which the notebooks of a grid run: `n_threads` each, no progress bars of their own."""
    wanted = {
        "OMP_NUM_THREADS": str(n_threads),
        "TQDM_DISABLE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        **_KEEP_BUFFERS,
    }
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _collect(futures: Mapping[Future, EvaluationParams]) -> list[Outcome]:
    outcomes = []
    with tqdm(total=len(futures), desc="runs", unit="run", smoothing=0) as bar:
        for future in as_completed(futures):
            outcomes.append(_outcome(future, futures[future]))
            bar.set_postfix_str(f"{outcomes[-1].run_id} {outcomes[-1].status}")
            bar.update()
    return outcomes


def _outcome(future: Future, p: EvaluationParams) -> Outcome:
    try:
        outcome = future.result()
    except Exception as error:  # of Ray: nodes lost once too often, or no project on a node
        return Outcome(p.run_id(), "failed", error=_last_line(error))
    if outcome.status == "finished" and not is_finished(p):
        return Outcome(
            p.run_id(),
            "failed",
            outcome.notebook,
            f"it finished on a node, but {runs.run_dir(p)} is not seen here; "
            "set runs_dir to a folder that all machines share",
        )
    return outcome


def source_digest(name: str) -> str:
    """Digest of a notebook's source and of the package, so that a changed one is executed again."""
    digest = hashlib.sha256()
    for path in [runs.PROJECT / "notebooks" / f"{name}.ipynb", *sorted((runs.PROJECT / "fairlm_utils").glob("*.py"))]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def interrupted() -> NoReturn:
    """End at once after Ctrl-C: kernels end with this process, and finished work is kept."""
    print("\ninterrupted; run the same command again to continue", file=sys.stderr, flush=True)
    os._exit(130)  # a plain exit would wait for the notebooks that run


def report_outcomes(outcomes: Sequence[Outcome]) -> None:
    """Print one line a failed run and a summary."""
    counts = pd.Series([o.status for o in outcomes]).value_counts()
    print("runs: " + ", ".join(f"{n} {status}" for status, n in counts.items()))
    for o in outcomes:
        if o.status == "failed":
            print(f"  {o.run_id}: {o.error}" + (f"\n    see {o.notebook}" if o.notebook else ""), file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the grid of an experiment file."""
    parser = argparse.ArgumentParser(prog="python -m fairlm_utils.sweep", description=__doc__.splitlines()[0])
    parser.add_argument("file", help="experiment file, e.g. params/quick.yaml")
    parser.add_argument("--workers", type=int, default=0, help="runs at a time (default: cores divided by n_threads)")
    parser.add_argument("--retries", type=int, default=1, help="times a failed run is tried again (default: 1)")
    parser.add_argument("--ray-address", default="", help="Ray cluster to run on: auto, HOST:PORT or ray://HOST:PORT")
    parser.add_argument(
        "--gpus-per-run",
        type=float,
        help="GPUs of a run on a Ray cluster, 0.25 lets four runs share one (default: 1 if any)",
    )
    params.add_override_option(parser)
    options = parser.parse_args(arguments)
    file = Path(options.file).resolve()
    runs.enter_project()
    try:
        points = params.expand(params.read(file, options.overrides), options.file)
        outcomes = sweep(points, options.workers, options.retries, options.ray_address, options.gpus_per_run)
    except (ParameterError, runs.RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        interrupted()
    report_outcomes(outcomes)
    return 1 if any(o.status == "failed" for o in outcomes) else 0


if __name__ == "__main__":
    raise SystemExit(main())
