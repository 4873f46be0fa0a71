"""Evaluating a trained model token by token, in memory that does not grow with the number of tokens.

python -m fairlm_utils.evaluation params/quick.yaml -p weight_decay 0.3 -p seed 1      # trains the run first
torchrun --nproc-per-node 2 -m fairlm_utils.evaluation ...                              # data parallel
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch.overrides import TorchFunctionMode
from torch.utils.data import DataLoader, Dataset, Subset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fairlm_utils import floor, languages, metrics, runs, training, words
from fairlm_utils.corpora import CorpusError
from fairlm_utils.metrics import SPLITS
from fairlm_utils.models import load_model, n_rows
from fairlm_utils.params import EvaluationParams, ParameterError, add_override_option, read
from fairlm_utils.token_loss import IGNORE_INDEX, TokenSums, prediction_statistics, shifted_targets
from fairlm_utils.tokenization import (
    TokenizedCorpus,
    n_ids,
    spell,
    target_counts,
    text_now,
    token_kinds,
    tokenize_corpus,
)


class Predictions(NamedTuple):
    """Sums over the evaluated tokens: `by_type` [vocabulary, 4] holds tokens, loss (nats), top-1 and top-5 correct;
    `calibration` [vocabulary, confidence bins, 3] tokens, confidence and correct.
    """

    by_type: np.ndarray
    calibration: np.ndarray


class Float32Head(TorchFunctionMode):
    """Within the context the product of the head with this `weight` is worked out in float32.

    Whatever autocast or the model's own dtype are: logits rounded to 16 bits often tie for the largest, which would
    count as an error; layers keep their dtype.
    """

    def __init__(self, weight: torch.Tensor):
        super().__init__()
        self.weight = weight

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.linear and len(args) > 1 and args[1] is self.weight:
            with torch.autocast(self.weight.device.type, enabled=False):
                return func(*(a if a is None else a.float() for a in args), **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def token_sums(
    model: PreTrainedModel,
    data: Dataset,
    batch_size: int,
    dtype: torch.dtype = torch.float32,
    losses: list[np.ndarray] | None = None,
) -> Predictions:
    """Loss, correctness and calibration of every token type as a target.

    Streams over the blocks; padding is never counted, and the batch size does not change the sums beyond rounding. The
    vocabulary is the model's (`models.n_rows`). With `dtype` bfloat16 the layers are worked out in it, the logits in
    float32. To a list of `losses` the loss of every label of a batch is appended, float32 [blocks, context], NaN where
    there is none. Raises RunError if a loss is not finite.
    """
    vocab_size, n_bins = n_rows(model), metrics.N_CONFIDENCE_BINS
    by_type = TokenSums(vocab_size, model.device, n_quantities=3)
    calibration = TokenSums(vocab_size * n_bins, model.device)
    was_training = model.training
    model.eval()
    whole = dtype == model.dtype == torch.float32
    with (
        torch.inference_mode(),
        torch.autocast(model.device.type, dtype, enabled=dtype != torch.float32),
        nullcontext() if whole else Float32Head((model.get_output_embeddings() or model.get_input_embeddings()).weight),
    ):
        for batch in runs.progress(DataLoader(data, batch_size=batch_size), desc="evaluating", unit="batch"):
            batch = {name: tensor.to(model.device, non_blocking=True) for name, tensor in batch.items()}
            targets = shifted_targets(batch.pop("labels"))
            logits = model(**batch, use_cache=False).logits
            loss = add_predictions(logits.reshape(-1, logits.shape[-1]), targets, targets, by_type, calibration)
            if losses is not None:
                losses.append(by_label(loss, targets, logits.shape[:2]))
    model.train(was_training)
    if not np.isfinite(sums := by_type.read()).all():
        raise runs.RunError(
            f"the loss of {int(sums[~np.isfinite(sums[:, 1]), 0].sum()):,} tokens is not finite: weights are no numbers, or "
            f"{dtype} overflows; choose another checkpoint or dtype"
        )
    return Predictions(sums, calibration.read().reshape(vocab_size, n_bins, 3))


def by_label(loss: torch.Tensor, targets: torch.Tensor, shape: Sequence[int]) -> np.ndarray:
    """Losses of flat positions at their labels [*, context], float32, NaN where there is none."""
    own = torch.where(targets == IGNORE_INDEX, torch.nan, loss).reshape(shape)
    return own.roll(1, dims=-1).cpu().numpy()  # the last position of a block has no target


def add_predictions(
    logits: torch.Tensor, targets: torch.Tensor, rows: torch.Tensor, by_type: TokenSums, calibration: TokenSums
) -> torch.Tensor:
    """Add what `logits` [n, vocabulary] predict of `targets` [n] to the `rows` [n] of two sums; the losses [n] (nats)."""
    loss, rank, confidence = prediction_statistics(logits, targets)
    by_type.add(rows, loss, rank == 0, rank < 5)
    n_bins = metrics.N_CONFIDENCE_BINS
    bins = (confidence * n_bins).long().clamp(0, n_bins - 1)  # not a number is the least there is
    calibration.add(torch.where(rows == IGNORE_INDEX, IGNORE_INDEX, rows * n_bins + bins), confidence, rank == 0)
    return loss


def token_table(
    sums: np.ndarray, n_train: np.ndarray, tokenizer: PreTrainedTokenizerBase, learning_speed: np.ndarray | None = None
) -> pd.DataFrame:
    """The per-token table (see `metrics`) from sums [vocabulary, 4] and training counts [vocabulary].

    Row i is token id i, up to the tokenizer's largest; ids that it leaves out have no token and no count. A model may
    have more types than its tokenizer (padded embeddings), or a tokenizer tokens that the model has not; both are left
    out.
    """
    n = min(len(sums), n_ids(tokenizer))
    ids, sums, n_train = np.arange(n), sums[:n], n_train[:n]
    n_eval, loss, correct, top5 = sums.T

    def mean(total: np.ndarray) -> np.ndarray:
        return np.divide(total, n_eval, out=np.full(n, np.nan), where=n_eval > 0)

    return pd.DataFrame(
        {
            "token_id": ids,
            "token": spell(tokenizer, ids),
            "kind": token_kinds(tokenizer)[:n],
            "n_train": n_train.astype(np.int64),
            "n_eval": n_eval.astype(np.int64),
            "loss": mean(loss),
            "accuracy": mean(correct),
            "top5_accuracy": mean(top5),
            "learning_speed": np.full(n, np.nan) if learning_speed is None else learning_speed[:n],
        }
    )


def check_ids(ids: np.ndarray, n: int, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Raise RunError naming the tokens in flat `ids` for which the model `name`, of `n` rows, has none.

    A tokenizer may have more tokens than its model, as long as they do not occur.
    """
    types, counts = np.unique(ids[ids >= n], return_counts=True)
    if len(types):
        most = int(types[counts.argmax()])
        raise runs.RunError(
            f"{name}: the model has {n:,} rows, and {counts.sum():,} tokens of the text have ids beyond them, {counts.max():,} of "
            f"them {tokenizer.convert_ids_to_tokens(most)!r} (id {most:,}); use the tokenizer the model was trained with, "
            "or train it after resize_token_embeddings"
        )


def evaluate(p: EvaluationParams) -> Path:
    """Evaluate the run of `p` on its training blocks and on held-out blocks; trains it first if it is not trained.

    Writes tokens_SPLIT.parquet, the per-token tables, and then the run's rows of the experiment's tables to tables/.
    A run that has been evaluated is not evaluated again. Returns the run directory. Raises RunError if the run is of
    another text, or another tokenizer, than is there now.
    """
    directory = runs.run_dir(p)
    if not (directory / "provenance.json").exists():
        print(f"no finished run in {directory}: training it now")
        training.train(p)
    else:
        runs.check_text(directory, p, text_now(p))
    finished = directory / "tables" / "totals.csv"
    if not finished.exists():  # a finished run may lie on a disk that cannot be written
        with runs.locked(directory):
            if not finished.exists():
                with training.threads(p.n_threads):
                    _evaluate(p, directory)
    return directory


def _evaluate(p: EvaluationParams, directory: Path) -> None:
    corpus = tokenize_corpus(p)
    model = load_model(directory / "model", n_ids(corpus.tokenizer)).to(training.device(p))
    data = evaluated_blocks(p, corpus)
    predictions, losses = {}, {}
    for split in SPLITS:
        own: list[np.ndarray] | None = [] if needs_losses(p) else None
        predictions[split] = token_sums(model, data[split], p.eval_batch_size, getattr(torch, p.dtype), own)
        if own:
            losses[split] = np.concatenate(own)
    write_predictions(p, directory, corpus, predictions, losses)


def evaluated_blocks(p: EvaluationParams, corpus: TokenizedCorpus) -> dict[str, Dataset]:
    """The blocks that a run is evaluated on, by split."""
    train = training.training_blocks(p, corpus)
    n = min(p.max_evaluated_train_blocks or len(train), len(train))
    return {"training": Subset(train, range(n)), "held-out": training.heldout_blocks(p, corpus)}


def needs_losses(p: EvaluationParams) -> bool:
    """Whether a run's tables need the loss of every token, not its sums by type alone."""
    return p.by_word or bool(languages.language_files(p))


def write_predictions(
    p: EvaluationParams,
    directory: Path,
    corpus: TokenizedCorpus,
    predictions: Mapping[str, Predictions],
    losses: Mapping[str, np.ndarray],
) -> None:
    """Write the per-token tables of a run and its rows of the experiment's tables, from its predictions by split.

    `losses` [blocks, context] by split, as `token_sums` gives them, are there if the run `needs_losses`.
    """
    vocab_size = len(predictions["training"].by_type)
    train = training.training_blocks(p, corpus)
    n_train, baselines = target_counts(train.labels.numpy(), vocab_size), floor.baselines(train, vocab_size)
    steps, counts, loss_sums, _ = training.load_curves(directory)
    speed = metrics.learning_speed(steps, counts, loss_sums, vocab_size)
    evaluated = {}
    for split in SPLITS:
        table = token_table(predictions[split].by_type, n_train, corpus.tokenizer, speed).join(baselines[split])
        runs.write_table(directory / f"tokens_{split}.parquet", table)
        evaluated[split] = table, predictions[split].calibration
    others = {"curves": metrics.learning_curves(steps, counts, loss_sums, n_train)}
    if p.by_word:
        n_ids_read = train.labels.numel()
        by_word = [words.by_frequency(corpus, s, losses[s], n_ids_read).assign(split=s) for s in SPLITS]
        others["words"] = pd.concat(by_word)
    if languages.language_files(p):
        low = metrics.low_frequency(n_train, p.low_frequency_percentile)
        others["languages"] = languages.by_language(p, corpus, {s: losses[s].reshape(-1) for s in SPLITS}, low)
    _write_tables(p, directory, evaluated, others)


def _write_tables(
    p: EvaluationParams,
    directory: Path,
    evaluated: dict[str, tuple[pd.DataFrame, np.ndarray]],
    others: dict[str, pd.DataFrame],
) -> None:
    """The run's rows of the experiment's tables: those of per-token table and calibration by split, and `others`."""
    key = {"model": p.model, "weight_decay": float(p.weight_decay), "seed": p.seed}
    if p.variant:
        key["variant"] = p.variant
    percentile = p.low_frequency_percentile
    of_split = {
        split: {
            "reliability": metrics.reliability(table, calibration, percentile),
            **metrics.grouped(table, percentile, calibration),
        }
        for split, (table, calibration) in evaluated.items()
    }
    frames = {name: table.assign(**key) for name, table in others.items()}
    frames["counts"] = metrics.count_histogram(evaluated["training"][0]["n_train"])
    if p.variant:
        frames["counts"]["variant"] = p.variant
    for name in of_split["training"]:
        frames[name] = pd.concat([tables[name].assign(**key, split=split) for split, tables in of_split.items()])
    for name, frame in frames.items():  # totals last: it marks the evaluation as finished
        first = [c for c in metrics.KEYS if c in frame.columns]
        runs.write_table(
            directory / "tables" / f"{name}.csv", frame[first + [c for c in frame.columns if c not in first]]
        )
    runs.seal(directory)


def read_token_table(directory: str | Path, split: str) -> pd.DataFrame:
    """The per-token table of a run on a split, "training" or "held-out"."""
    path = Path(directory) / f"tokens_{split}.parquet"
    runs.check_seal(directory, path.name)
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise runs.RunError(
            f"{path}: cannot be read ({error}); remove the run's folder and evaluate it again"
        ) from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Train and evaluate one run of an experiment file, also with several processes through torchrun."""
    parser = argparse.ArgumentParser(prog="python -m fairlm_utils.evaluation", description=main.__doc__)
    parser.add_argument("file", help="experiment file, e.g. params/quick.yaml; grids need one value each by -p")
    add_override_option(parser)
    options = parser.parse_args(arguments)
    file = Path(options.file).resolve()
    runs.enter_project()
    try:
        values = read(file, options.overrides)
        p = EvaluationParams.check(
            {k: v for k, v in values.items() if k in EvaluationParams.model_fields}, options.file
        )
        training.train(p)
        if training.is_main_process():
            print(evaluate(p))
    except (ParameterError, CorpusError, runs.RunError, training.TrainingDiverged) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
