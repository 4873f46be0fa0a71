"""A run: trained and evaluated in a folder of its own, which says what it came from.

    RUNS_DIR/tokenized/DIGEST/           tokenizer and token ids of a corpus, shared by experiments
    RUNS_DIR/EXPERIMENT/RUN_ID/          one (model, λ, seed): params.json, text.json, provenance.json, model/, curves, tables,
                                         log.txt of what a sweep's run printed; executed notebooks where a report shows it
    results/EXPERIMENT/                  the small tables of an experiment, committed

Every file but a log is written beside its place and moved there, so that a file that exists is whole. The last file a stage
writes says that the stage is finished: `provenance.json` for training, `tables/totals.csv` for evaluation.

python -m fairlm_utils show RUN_DIR        # what is needed to repeat a run
python -m fairlm_utils repeat RUN_DIR      # train and evaluate it again elsewhere, and compare
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import TrainerCallback

from fairlm_utils import files, frequency, identity
from fairlm_utils.analysis import metrics
from fairlm_utils.frequency import SPLITS, target_counts
from fairlm_utils.lm import evaluation, floor, languages, processes, training, words
from fairlm_utils.lm.models import load_model
from fairlm_utils.lm.tokenization import TokenizedCorpus, n_ids, text_now, tokenize_corpus
from fairlm_utils.params import EvaluationParams, ParameterError, TrainingParams

PACKAGES = tuple(
    ["torch", "transformers", "accelerate", "datasets", "tokenizers", "numpy", "pandas", "scipy", "altair", "papermill"]
)


def provenance(p: TrainingParams, corpus: dict[str, Any], seconds: float, device: str) -> dict[str, Any]:
    """What is needed to repeat a run and to judge it: versions, commit, device, corpus fingerprint, time, memory."""
    return {
        "run_id": p.run_id(),
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "git_commit": identity.git_commit(),
        "platform": f"{platform.system()} {platform.machine()}",
        "device": device,
        "n_threads": p.n_threads,
        "corpus": corpus,
        "wall_seconds": round(seconds, 1),
        "peak_memory_mb": round(peak_memory_mb()),
    }


def _version(package: str) -> str:
    """Version of a package, empty if it is not installed: a run needs none of those for notebooks and charts."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def peak_memory_mb() -> float:
    """Largest resident memory of this process so far, in MB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def repeat(directory: str | Path) -> dict[str, bool]:
    """Train and evaluate a finished run again in a temporary folder: whether each file has the same bits.

    Raises RunError if the run is not finished, its text has changed, or its parameters are of another version of this
    package.
    """
    directory = Path(directory)
    _check_finished(directory, "tables/totals.csv")
    before = files.digests(directory, files.RESULT_FILES)
    values = identity.recorded_params(directory)
    fields = EvaluationParams.model_fields
    known = EvaluationParams.check({k: v for k, v in values.items() if k in fields}, str(directory))
    with tempfile.TemporaryDirectory() as folder:
        again = known.model_copy(update={"runs_dir": folder})
        identity.check_text(directory, again, text_now(again))
        after = files.digests(evaluate(again), files.RESULT_FILES)
    return {name: after.get(name) == digest for name, digest in before.items()}


def _check_finished(directory: Path, last: str) -> None:
    if not (directory / last).exists():
        raise files.RunError(f"{directory}: no finished run; name a folder RUNS_DIR/EXPERIMENT/RUN_ID")


def show(directory: str | Path) -> str:
    """Parameters, provenance and file digests of a run, as text. Raises RunError if there is no trained run."""
    directory = Path(directory)
    _check_finished(directory, "provenance.json")
    parts = {
        "parameters": identity.recorded_params(directory),
        "provenance": files.read_json(directory / "provenance.json"),
        "sha256": files.digests(directory, files.RESULT_FILES),
    }
    return json.dumps(parts, indent=2, ensure_ascii=False)


def train(p: TrainingParams, callbacks: Sequence[TrainerCallback] = ()) -> Path:
    """Train the model of `p`, or continue it from its last whole checkpoint, and return its run directory.

    Writes model/ (safetensors, with the tokenizer), the learning curves of every token type, params.json and, last,
    provenance.json, which is not there if one of `callbacks` stopped the run early. A run that has finished is not
    trained again. Raises RunError for a directory that holds another run or one of another text, and for too little
    memory, TrainingDiverged if the loss is not finite, ParameterError if the processes of torchrun cannot share the batch.
    """
    if p.batch_size % processes.n_processes():
        raise ParameterError(
            f"batch_size: {p.batch_size} blocks cannot be shared equally by {processes.n_processes()} processes; change either"
        )
    directory = identity.run_dir(p)
    if identity.is_trained(p):  # no lock: the folder may be someone else's
        if processes.is_main_process():
            identity.open_run(p)
            identity.check_text(directory, p, text_now(p))
        return directory
    with files.locked(directory) if processes.is_main_process() else nullcontext(), processes.threads(p.n_threads):
        if processes.is_main_process():
            identity.open_run(p)
        if not identity.is_trained(p):  # nor has another process made it meanwhile
            _train(p, directory, callbacks)
    return directory


def _train(p: TrainingParams, directory: Path, callbacks: Sequence[TrainerCallback]) -> None:
    started = time.monotonic()
    corpus = tokenize_corpus(p)
    if processes.is_main_process():
        identity.record_text(directory, p, corpus.meta)
        if getattr(p, "by_word", False):
            words.given_back(corpus, "heldout")  # else an error, before training
    device = training.fit(p, corpus, directory, callbacks)
    if device is None:
        return
    files.write_json(directory / "provenance.json", provenance(p, corpus.meta, time.monotonic() - started, device))
    shutil.rmtree(directory / "checkpoints", ignore_errors=True)


def evaluate(p: EvaluationParams) -> Path:
    """Evaluate the run of `p` on its training blocks and on held-out blocks; trains it first if it is not trained.

    Writes tokens_SPLIT.parquet, the per-token tables, and then the run's rows of the experiment's tables to tables/.
    A run that has been evaluated so is not evaluated again. Returns the run directory. Raises RunError if the run is of
    another text, or another tokenizer, than is there now.
    """
    directory = identity.run_dir(p)
    if not identity.is_trained(p):
        print(f"no finished run in {directory}: training it now")
        train(p)
    else:
        identity.check_text(directory, p, text_now(p))
    if not identity.is_finished(p):  # a finished run may lie on a disk that cannot be written
        with files.locked(directory):
            if not identity.is_finished(p):
                if (directory / "tables" / "totals.csv").exists():
                    print(f"{directory} was evaluated with other parameters: evaluating it again")
                with processes.threads(p.n_threads):
                    _evaluate(p, directory)
    return directory


def _evaluate(p: EvaluationParams, directory: Path) -> None:
    corpus = tokenize_corpus(p)
    model = load_model(directory / "model", n_ids(corpus.tokenizer)).to(processes.device(p))
    data = evaluation.evaluated_blocks(p, corpus)
    predictions, losses = {}, {}
    for split in SPLITS:
        own: list[np.ndarray] | None = [] if evaluation.needs_losses(p) else None
        predictions[split] = evaluation.token_sums(model, data[split], p.eval_batch_size, getattr(torch, p.dtype), own)
        if own:
            losses[split] = np.concatenate(own)
    write_predictions(p, directory, corpus, predictions, losses)


def write_predictions(
    p: EvaluationParams,
    directory: Path,
    corpus: TokenizedCorpus,
    predictions: Mapping[str, evaluation.Predictions],
    losses: Mapping[str, np.ndarray],
) -> None:
    """Write the per-token tables of a run and its rows of the experiment's tables, from its predictions by split.

    `losses` [blocks, context] by split, as `token_sums` gives them, are there if the run `needs_losses`.
    """
    shutil.rmtree(directory / "tables", ignore_errors=True)  # of another evaluation, or of one that was interrupted
    identity.record_evaluation(directory, p)
    vocab_size, percentile = len(predictions["training"].by_type), p.low_frequency_percentile
    train = training.train_blocks(p, corpus)
    n_train, baselines = target_counts(train.labels.numpy(), vocab_size), floor.baselines(train, vocab_size)
    steps, counts, loss_sums, _ = training.load_curves(directory)
    speed = metrics.learning_speed(steps, counts, loss_sums, vocab_size)
    frames = {"curves": metrics.learning_curves(steps, counts, loss_sums, n_train)}
    if p.by_word:
        n_read = train.labels.numel()
        frames["words"] = pd.concat(words.by_frequency(corpus, s, losses[s], n_read).assign(split=s) for s in SPLITS)
    if languages.language_files(p):
        low = frequency.low_frequency(n_train, percentile)
        frames["languages"] = languages.by_language(p, corpus, {s: losses[s].reshape(-1) for s in SPLITS}, low)
    of_split = {}
    for split in SPLITS:
        table = evaluation.token_table(predictions[split].by_type, n_train, corpus.tokenizer, speed)
        table, calibration = table.join(baselines[split]), predictions[split].calibration
        files.write_table(directory / f"tokens_{split}.parquet", table)
        of_split[split] = {
            "reliability": metrics.reliability(table, calibration, percentile),
            **metrics.grouped(table, percentile, calibration),
        }
    variant = {"variant": p.variant} if p.variant else {}
    key = {"model": p.model, "weight_decay": float(p.weight_decay), "seed": p.seed, **variant}
    frames = {name: frame.assign(**key) for name, frame in frames.items()}
    frames["counts"] = frequency.count_histogram(table["n_train"]).assign(**variant)
    for name in of_split["training"]:
        frames[name] = pd.concat([tables[name].assign(**key, split=split) for split, tables in of_split.items()])
    for name, frame in frames.items():  # totals last: it marks the evaluation as finished
        columns = [c for c in metrics.KEYS if c in frame] + [c for c in frame if c not in metrics.KEYS]
        files.write_table(directory / "tables" / f"{name}.csv", frame[columns])
    files.seal(directory)
