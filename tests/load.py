"""`make load`: time and memory as the number of runs and tokens grows, and the exponent of that growth, as Markdown tables.

An exponent of 1 is linear, of 2 quadratic: log(t2 / t1) / log(n2 / n1) between the largest two sizes.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import random
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import torch
from tabulate import tabulate

from fairlm_utils import files, frequency, identity, params
from fairlm_utils.analysis import charts, metrics, theme
from fairlm_utils.analysis.results import Results, load_results
from fairlm_utils.experiment import runs
from fairlm_utils.frequency import SPLITS
from fairlm_utils.lm import tokenization
from fairlm_utils.lm.token_loss import TokenSums
from fairlm_utils.params import EvaluationParams

#: A run of a second.
TINY = dict(vocab_size=300, context=16, max_train_blocks=24, max_heldout_blocks=8, steps=12, batch_size=8, window_steps=4,
            checkpoint_steps=5, learning_rate=3e-3, lr_schedule="constant", warmup_steps=0)  # fmt: skip
HEADERS = ["what", "n", "seconds", "growth of memory (MB)", "exponent of time"]


def measure(work: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of `work`, and by how many MB the memory of this process grew at most meanwhile."""
    process, done = psutil.Process(), threading.Event()
    before = peak = process.memory_info().rss

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            work()
    finally:
        seconds = time.perf_counter() - start
        done.set()
        watcher.join()
    return seconds, (max(peak, process.memory_info().rss) - before) / 1e6


def growth(
    name: str, work: Callable[[int], Any], sizes: Sequence[int], prepare: Callable[[int], Any] | None = None
) -> list[list]:
    """Rows of the table: `work(n)` measured at each size, after `prepare(n)`, which is not, and a warm-up at the first."""
    rows: list[list] = []
    for n in sizes:
        if prepare:
            prepare(n)
        if not rows:
            work(n)
        seconds, memory = measure(lambda n=n: work(n))
        exponent = math.log(seconds / rows[-1][2]) / math.log(n / rows[-1][1]) if rows else float("nan")
        rows.append([name, n, seconds, memory, exponent])
        print(f"{name}: {n:,} in {seconds:.2f} s", flush=True)
    return rows


def corpus(folder: Path) -> Path:
    """A corpus of 300 made-up documents."""
    rng = random.Random(0)
    words = ["the", "a", "of", "and", "to", "in", "is", "it", "for", "on", "with", "as", "at", "by", "from", "or"]
    documents = [" ".join(rng.choice(words) for _ in range(40)) + f" document {i}." for i in range(300)]
    path = folder / "documents.jsonl"
    path.write_text("\n".join(json.dumps({"text": d}) for d in documents), encoding="utf-8")
    return path


def tiny(folder: Path, **values: Any) -> EvaluationParams:
    """Parameters of a run of a second below `folder`, whose corpus is in it."""
    base = {**TINY, "corpus": str(folder / "documents.jsonl"), "runs_dir": str(folder / "runs"), "experiment": "load"}
    return EvaluationParams.check({**base, **values})


def copies(finished: Path, n: int, experiment: str) -> list[EvaluationParams]:
    """Parameters of `n` runs in a folder of their own, all made from one finished run: five λ, and seeds.

    Each has its own params.json, provenance.json, tables and seal, as if it had been trained.
    """
    values = {k: v for k, v in files.read_json(finished / "params.json").items() if k in EvaluationParams.model_fields}
    points = []
    for i in range(n):
        p = EvaluationParams.check({**values, "experiment": experiment, "weight_decay": (i % 5) / 4, "seed": i // 5})
        directory = identity.run_dir(p)
        if not (directory / files.SEAL).exists():
            _copy(finished, directory, p)
        points.append(p)
    return points


def _copy(finished: Path, directory: Path, p: EvaluationParams) -> None:
    (directory / "tables").mkdir(parents=True)
    files.write_json(directory / "params.json", p.model_dump())
    provenance = {**files.read_json(finished / "provenance.json"), "run_id": p.run_id()}
    files.write_json(directory / "provenance.json", provenance)
    for split in SPLITS:
        os.link(finished / f"tokens_{split}.parquet", directory / f"tokens_{split}.parquet")
    for path in sorted((finished / "tables").glob("*.csv")):
        table = pd.read_csv(path, keep_default_na=False, na_values=[""])
        files.write_table(directory / "tables" / path.name, table.assign(weight_decay=p.weight_decay, seed=p.seed))
    files.seal(directory)


def bookkeeping(values: dict[str, Any], n: int) -> None:
    """What a sweep does around its runs when all are finished: expand, check, find them."""
    points = params.expand({**values, "weight_decay": [0.0, 0.25, 0.5, 0.75, 1.0], "seed": list(range(n // 5))})
    identity.check_experiment(points)
    assert len(points) == n and all(identity.is_finished(p) for p in points)
    assert len(identity.finished_runs(identity.run_dir(points[0]).parent)) == n


def tables_and_charts(results: Results) -> None:
    """Intervals over seeds of three tables, and their charts as pictures."""
    bins, classes, curves = (metrics.over_seeds(t, "loss") for t in (results.bins, results.classes, results.curves))
    for chart in (charts.by_bin(bins), charts.figure_1(classes), charts.learning_curves(curves)):
        theme.png(chart)


def sum_tokens(n: int, vocab_size: int = 32_005, chunk: int = 2**20) -> None:
    """Sums by type over n targets with their losses, a chunk of random ones at a time."""
    generator, sums = torch.Generator().manual_seed(0), TokenSums(vocab_size)
    targets = torch.randint(0, vocab_size, (chunk,), generator=generator)
    loss = torch.rand(chunk, generator=generator)
    for start in range(0, n, chunk):
        m = min(chunk, n - start)
        sums.add(targets[:m], loss[:m], loss[:m] < 0.5)
    assert sums.read()[:, 0].sum() == n


def count_tokens(n: int, vocab_size: int = 32_005, chunk: int = 2**22) -> None:
    """Counts by type over n ids, a chunk at a time."""
    ids = np.random.default_rng(0).integers(0, vocab_size, chunk, dtype=np.uint16)
    counts = np.zeros(vocab_size, dtype=np.int64)
    for start in range(0, n, chunk):
        counts += frequency.token_counts(ids[: min(chunk, n - start)], vocab_size)
    assert counts.sum() == n


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="make load")
    parser.add_argument("--trained", type=int, default=500, help="runs trained and evaluated (default 500)")
    parser.add_argument("--tokens", type=int, default=10**9, help="tokens counted (default 10^9)")
    parser.add_argument("--runs", type=int, default=5000, help="runs whose results are loaded (default 5,000)")
    options = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", TQDM_DISABLE="1")
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp())
    try:
        rows = _rows(folder, options.trained, options.runs, options.tokens)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(
        tabulate(
            rows, headers=HEADERS, tablefmt="github", intfmt=",", floatfmt=("", "", ".2f", ".0f", ".2f"), missingval=""
        )
    )
    print(f"\npeak memory of this process {runs.peak_memory_mb():,.0f} MB; one thread")


def _rows(folder: Path, n_trained: int, n_runs: int, n_tokens: int) -> list[list]:
    corpus(folder)
    tokenization.tokenize_corpus(tiny(folder))
    rows = growth(
        "training and evaluating runs of a second",
        lambda n: [runs.evaluate(tiny(folder, experiment=f"sweep{n}", seed=i)) for i in range(n)],
        (1, n_trained // 100, n_trained // 10, n_trained),
    )[1:]
    rows[0][-1] = float("nan")  # the warm-up has made the one run before it
    finished = runs.evaluate(tiny(folder))
    sizes = (n_runs // 100, n_runs // 10, n_runs)
    for n in sizes:
        copies(finished, n, f"copies{n}")
    values = {k: v for k, v in tiny(folder).model_dump().items() if k not in ("weight_decay", "seed", "variant")}
    rows += growth(
        "expanding, checking and finding the runs of a sweep",
        lambda n: bookkeeping({**values, "experiment": f"copies{n}"}, n),
        sizes,
    )
    loaded: dict[int, Results] = {}

    def load(n: int) -> None:
        loaded[n] = load_results(folder / "runs" / f"copies{n}")

    rows += growth("loading results of runs", load, sizes)
    rows += growth("tables and three charts of runs", lambda n: tables_and_charts(loaded[n]), sizes)
    rows += growth("sums of loss and accuracy by type, tokens", sum_tokens, (n_tokens // 100, n_tokens // 10, n_tokens))
    rows += growth("counts by type, tokens", count_tokens, (n_tokens // 100, n_tokens // 10, n_tokens))
    return rows


if __name__ == "__main__":
    main()
