"""Evaluating a trained model token by token, in memory that does not grow with the number of tokens.

python -m fairlm_utils.evaluation params/quick.yaml -p weight_decay 0.3 -p seed 1      # trains the run first
torchrun --nproc-per-node 2 -m fairlm_utils.evaluation ...                              # data parallel
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader, Dataset
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from fairlm_utils import metrics, runs, training
from fairlm_utils.params import EvaluationParams, ParameterError, add_override_option, read
from fairlm_utils.token_loss import TokenSums, shifted_targets, token_cross_entropy
from fairlm_utils.tokenization import target_counts, tokenize_corpus

SPLITS = ("training", "held-out")


def token_sums(
    model: PreTrainedModel, data: Dataset, batch_size: int, dtype: torch.dtype = torch.float32
) -> np.ndarray:
    """Tokens, summed loss (nats) and correct predictions of every token type as a target: array [vocabulary, 3].

    Streams over the blocks; padding is never counted, and the batch size does not change the sums beyond rounding.
    """
    sums = TokenSums(model.config.vocab_size, model.device)
    was_training = model.training
    model.eval()
    with torch.inference_mode(), torch.autocast(model.device.type, dtype, enabled=dtype != torch.float32):
        for batch in runs.progress(DataLoader(data, batch_size=batch_size), desc="evaluating", unit="batch"):
            batch = {name: tensor.to(model.device, non_blocking=True) for name, tensor in batch.items()}
            targets = shifted_targets(batch.pop("labels"))
            logits = model(**batch, use_cache=False).logits
            _, loss, correct = token_cross_entropy(logits.reshape(-1, logits.shape[-1]), targets)
            sums.add(targets, loss, correct)
    model.train(was_training)
    return sums.read()


def token_table(
    sums: np.ndarray, n_train: np.ndarray, tokenizer: PreTrainedTokenizerBase, learning_speed: np.ndarray | None = None
) -> pd.DataFrame:
    """The per-token table (see `metrics`) from sums [vocabulary, 3] and training counts [vocabulary]."""
    n_eval, loss, correct = sums.T
    seen = n_eval > 0
    ids = np.arange(len(sums))
    return pd.DataFrame(
        {
            "token_id": ids,
            "token": [tokenizer.decode([i], clean_up_tokenization_spaces=False) for i in ids],
            "n_train": n_train.astype(np.int64),
            "n_eval": n_eval.astype(np.int64),
            "loss": np.divide(loss, n_eval, out=np.full(len(sums), np.nan), where=seen),
            "accuracy": np.divide(correct, n_eval, out=np.full(len(sums), np.nan), where=seen),
            "learning_speed": np.full(len(sums), np.nan) if learning_speed is None else learning_speed,
        }
    )


def load_model(directory: str | Path, vocab_size: int) -> PreTrainedModel:
    """A saved model, from safetensors and without remote code.

    Raises RunError if it cannot be read or its vocabulary is smaller than the tokenizer's.
    """
    try:
        model = AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=False, use_safetensors=True)
    except Exception as error:  # whatever a damaged folder makes transformers raise
        raise runs.RunError(
            f"{directory}: the model cannot be read ({error}); remove the run's folder and train it again"
        ) from error
    if model.config.vocab_size < vocab_size:
        raise runs.RunError(
            f"{directory}: the model has {model.config.vocab_size:,} token types and the tokenizer {vocab_size:,}; use the tokenizer "
            "the model was trained with"
        )
    return model


def evaluate(p: EvaluationParams) -> Path:
    """Evaluate the run of `p` on its training blocks and on held-out blocks; trains it first if it is not trained.

    Writes tokens_SPLIT.parquet, the per-token tables, and then the run's rows of the experiment's tables to tables/.
    A run that has been evaluated is not evaluated again. Returns the run directory.
    """
    directory = runs.run_dir(p)
    if not (directory / "provenance.json").exists():
        print(f"no finished run in {directory}: training it now")
        training.train(p)
    with runs.locked(directory):
        if not (directory / "tables" / "totals.csv").exists():
            with training.threads(p.n_threads):
                _evaluate(p, directory)
    return directory


def _evaluate(p: EvaluationParams, directory: Path) -> None:
    corpus = tokenize_corpus(p)
    model = load_model(directory / "model", len(corpus.tokenizer)).to(training.device(p))
    data = {"training": training.training_blocks(p, corpus), "held-out": training.heldout_blocks(p, corpus)}
    vocab_size = model.config.vocab_size
    n_train = target_counts(data["training"].labels.numpy(), vocab_size)
    steps, counts, loss_sums, _ = training.load_curves(directory)
    speed = metrics.learning_speed(steps, counts, loss_sums, vocab_size)
    tables = {}
    for split in SPLITS:
        sums = token_sums(model, data[split], p.eval_batch_size, getattr(torch, p.dtype))
        tables[split] = token_table(sums, n_train, corpus.tokenizer, speed)
        runs.write_table(directory / f"tokens_{split}.parquet", tables[split])
    _write_tables(p, directory, tables, metrics.learning_curves(steps, counts, loss_sums, n_train))


def _write_tables(p: EvaluationParams, directory: Path, tables: dict[str, pd.DataFrame], curves: pd.DataFrame) -> None:
    """The run's rows of the experiment's tables, from its per-token tables by split and its learning curves."""
    key = {"model": p.model, "weight_decay": float(p.weight_decay), "seed": p.seed}
    frames = {
        "curves": curves.assign(**key),
        "bins": pd.concat([metrics.by_bin(t).assign(**key, split=s) for s, t in tables.items()]),
        "classes": pd.concat(
            [metrics.by_class(t, p.low_frequency_percentile).assign(**key, split=s) for s, t in tables.items()]
        ),
        "totals": pd.DataFrame([{**key, "split": s, **metrics.totals(t)} for s, t in tables.items()]),
    }
    for name, frame in frames.items():  # totals last: it marks the evaluation as finished
        first = [c for c in metrics.KEYS if c in frame.columns]
        runs.write_table(
            directory / "tables" / f"{name}.csv", frame[first + [c for c in frame.columns if c not in first]]
        )


def read_token_table(directory: str | Path, split: str) -> pd.DataFrame:
    """The per-token table of a run on a split, "training" or "held-out"."""
    path = Path(directory) / f"tokens_{split}.parquet"
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
    except (ParameterError, runs.RunError, training.TrainingDiverged) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
