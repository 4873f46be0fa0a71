"""Grids of runs: an experiment file expanded to runs, trained and evaluated in processes that take one after another.

python -m fairlm_utils sweep params/quick.yaml
python -m fairlm_utils sweep params/paper/openelm-270m-imdb.yaml --ray-address auto --gpus-per-run 0.5
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from fairlm_utils import files, identity
from fairlm_utils.params import EvaluationParams, TokenizationParams

# Libraries for models are imported where they are used: this process only waits, and its workers start by this module.
LOG = "log.txt"
#: glibc gives large buffers back to the system at every step and faults them in again; kept, the steps of a vocabulary of
#: 32,000 took half the time.
_KEEP_BUFFERS = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**34)}


@dataclass(frozen=True)
class Outcome:
    """How a run of the grid ended: finished, reused (it had finished before) or failed, with its log and error."""

    run_id: str
    status: str
    log: str = ""
    error: str = ""


class _Workers:
    """Processes that make one run after another and import torch once, as many as there are calls at a time.

    They end with this process, however it ends: each waits for the end of its standard input.
    """

    def __init__(self) -> None:
        self.idle: list[subprocess.Popen[str]] = []
        self.all: set[subprocess.Popen[str]] = set()
        self.ended = False

    def __enter__(self) -> _Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.ended = True
        for process in [*self.all]:
            process.kill()  # busy only after an interruption, and whatever they write is whole or not there
        for process in self.idle:
            self._discard(process)

    def make(self, values: dict[str, Any]) -> str:
        """Train and evaluate a run; why it failed, or nothing. The process of a failed run is not used again."""
        process = self._take()
        assert process.stdin and process.stdout
        try:
            print(json.dumps(values), file=process.stdin, flush=True)
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if answer and not (error := json.loads(answer)):
            self.idle.append(process)
            return ""
        status = self._discard(process)
        if answer:
            return error
        how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        return f"the run's process died ({how}), most often for lack of memory: lower batch_size, or --workers"

    def _take(self) -> subprocess.Popen[str]:
        try:
            while True:
                process = self.idle.pop()
                if process.poll() is None:
                    return process
                self._discard(process)  # killed while it had nothing to do
        except IndexError:
            return self._start()

    def _start(self) -> subprocess.Popen[str]:
        if self.ended:
            raise files.RunError("interrupted")
        process = subprocess.Popen(
            [sys.executable, "-c", "from fairlm_utils.experiment.sweep import work; work()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=files.PROJECT,
            env={**os.environ, "PYTHONIOENCODING": "utf-8", "PYTHONUNBUFFERED": "1"},
            start_new_session=True,  # Ctrl-C is for the sweep to answer
        )
        self.all.add(process)
        return process

    def _discard(self, process: subprocess.Popen[str]) -> int:
        """End a process, which may have ended before; its exit status."""
        process.kill()
        process.communicate()
        self.all.discard(process)
        return process.returncode


def work() -> None:
    """Make the runs whose parameters are the lines of stdin, answering each with why it failed; end at once with stdin.

    What a run prints goes to its log.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    asked: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(asked,), daemon=True).start()
    files.enter_project()
    while True:
        print(json.dumps(_make(json.loads(asked.get()))), file=answers, flush=True)
        gc.collect()  # models lie in reference cycles
        if torch := sys.modules.get("torch"):
            torch.cuda.empty_cache()


def _listen(asked: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        asked.put(line)
    os._exit(0)  # in the middle of a run, too: nobody waits for it


def _make(values: dict[str, Any]) -> str:
    """Train and evaluate a run in this process, its output appended to its log; why it failed, or nothing."""
    try:
        p = EvaluationParams.check(values)
        _print_to(identity.run_dir(p) / LOG)
        from fairlm_utils.experiment.runs import evaluate

        evaluate(p)
        return ""
    except Exception as error:  # one failed run must not stop the others
        traceback.print_exc()
        return f"{type(error).__name__}: {files.first_line(error)}"


def _print_to(path: Path) -> None:
    """Let what this process prints from now on, libraries in C included, go to the end of a file."""
    with open(path, "ab") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)


def _run(values: dict[str, Any], retries: int, workers: _Workers) -> Outcome:
    p = EvaluationParams.check(values)
    try:
        log = identity.run_dir(p) / LOG
        if log.is_symlink():
            raise files.RunError(f"{log}: is a link to {log.readlink()}; remove it: nothing is written through links")
        # not the run's own lock, which its process takes
        with files.locked(files.within(p.runs_dir, p.experiment, p.run_id(), ".sweep")):
            if identity.is_finished(p):
                return Outcome(p.run_id(), "reused")
            for _ in range(retries + 1):
                if not (error := workers.make(values)):
                    return Outcome(p.run_id(), "finished", str(log))
            return Outcome(p.run_id(), "failed", str(log), error)
    except files.RunError as error:
        return Outcome(p.run_id(), "failed", error=str(error))


def default_workers(points: Sequence[EvaluationParams]) -> int:
    """How many runs the cores hold at a time, with `n_threads` each."""
    return max(1, (os.cpu_count() or 1) // max(p.n_threads for p in points))


def sweep(
    points: Sequence[EvaluationParams],
    n_workers: int = 0,
    retries: int = 1,
    ray_address: str = "",
    gpus_per_run: float | None = None,
    texts: Mapping[str, str] | None = None,
) -> list[Outcome]:
    """Train and evaluate the run of every point, several at a time, skipping what is finished.

    Here with `n_workers` processes, by default as many as the cores hold with `n_threads` each; or, given the
    `ray_address` of a cluster ("auto", HOST:PORT or ray://HOST:PORT), as many as its nodes hold with `n_threads` CPUs and
    `gpus_per_run` GPUs each, a fraction letting several runs share one (default: one GPU if the cluster has any and
    `device` is not cpu). A failed run is tried `retries` times more and then reported; the others go on. `texts` is
    `texts_now(points)` where that is known. Raises RunError if the folder holds runs of other settings or of another
    text, or the cluster cannot be used.
    """
    check(points, texts)
    finished = [identity.is_finished(p) for p in points]
    todo = [p for p, done in zip(points, finished, strict=True) if not done]
    outcomes = [Outcome(p.run_id(), "reused") for p, done in zip(points, finished, strict=True) if done]
    if not todo:
        return outcomes
    if ray_address:
        with _ray_cluster(ray_address) as ray:
            return outcomes + _collect(_submit_to_ray(ray, todo, retries, gpus_per_run))
    # threads, for each only waits for the process of its run
    pool = ThreadPoolExecutor(min(n_workers or default_workers(points), len(todo)))
    try:
        with run_environment(max(p.n_threads for p in points)), _Workers() as workers:
            outcomes += _collect({pool.submit(_run, p.model_dump(), retries, workers): p for p in todo})
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return outcomes


def check(points: Sequence[EvaluationParams], texts: Mapping[str, str] | None = None) -> None:
    """Raise RunError, before anything runs, if the folder of an experiment holds runs of other settings or of another text."""
    identity.check_experiment(points)
    folder = Path(points[0].runs_dir) / points[0].experiment
    if any(folder.glob("*/params.json")):
        if texts is None:
            with own_process() as process:
                texts = process.submit(texts_now, points).result()
        identity.check_texts(folder, texts)


def own_process() -> ProcessPoolExecutor:
    """One process for what needs large imports, which this one does without while runs and notebooks do."""
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), files.print_plainly)


def texts_now(points: Sequence[EvaluationParams]) -> dict[str, str]:
    """`identity.text_identity` of what corpora, tokenizers and configs of `points` are now, where that can be known."""
    from fairlm_utils.lm.tokenization import text_now

    found: dict[str, str] = {}
    for p in {tuple(getattr(p, name) for name in TokenizationParams.model_fields): p for p in points}.values():
        found |= identity.text_identity(p.model_dump(), text_now(p) or {})
    for p in {p.model: p for p in points}.values():
        found |= identity.text_identity(p.model_dump(), identity.config_digest(p.model))
    return found


@contextmanager
def _ray_cluster(address: str) -> Iterator[Any]:
    """A connection to a Ray cluster, tried first with a plain socket, for Ray itself waits for minutes."""
    try:
        import ray
    except ImportError as error:
        raise files.RunError("--ray-address needs Ray: pip install 'fairlm-utils[ray]'") from error
    start = "start one by `ray start --head`, then `ray start --address=HOST:6379` on the other machines"
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        if port.isdecimal():
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        ray.init(address=address, log_to_driver=False, configure_logging=False)
    except (OSError, ConnectionError, ValueError, OverflowError) as error:
        raise files.RunError(f"no Ray cluster answers at {address!r} ({error}); {start}") from error
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
        raise files.RunError(
            f"no node of the cluster has the {n_threads} CPUs and {gpus_per_run:g} GPUs of a run; lower n_threads or --gpus-per-run"
        )
    # max_retries is for lost nodes: the run starts again elsewhere and continues from its last checkpoint
    task = ray.remote(num_cpus=n_threads, num_gpus=gpus_per_run, max_retries=retries + 2)(_run_on_node)
    return {task.remote(p.model_dump(), retries).future(): p for p in points}


def _run_on_node(values: dict[str, Any], retries: int) -> Outcome:
    files.enter_project()
    with run_environment(values["n_threads"]), _Workers() as workers:
        return _run(values, retries, workers)


@contextmanager
def run_environment(n_threads: int) -> Iterator[None]:
    """The environment of processes for runs and notebooks: `n_threads` each, no progress bars of their own."""
    own = {"OMP_NUM_THREADS": str(n_threads), "TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false"}
    wanted = {**own, **_KEEP_BUFFERS}
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
        said = str(error).strip().splitlines() or [type(error).__name__]
        return Outcome(p.run_id(), "failed", error=said[-1])
    if outcome.status == "finished" and not identity.is_finished(p):
        unseen = f"it finished on a node, but {identity.run_dir(p)} is not seen here; "
        advice = "set runs_dir to a folder that all machines share"
        return Outcome(p.run_id(), "failed", outcome.log, unseen + advice)
    return outcome


def report_outcomes(outcomes: Sequence[Outcome]) -> None:
    """Print one line per failed run and a summary."""
    counts = pd.Series([o.status for o in outcomes]).value_counts()
    print("runs: " + ", ".join(f"{n} {status}" for status, n in counts.items()))
    for o in outcomes:
        if o.status == "failed":
            print(f"  {o.run_id}: {o.error}" + (f"\n    see {o.log}" if o.log else ""), file=sys.stderr)
