"""Evaluating a trained model token by token, in memory that does not grow with the number of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch.overrides import TorchFunctionMode
from torch.utils.data import DataLoader, Dataset, Subset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fairlm_utils import files
from fairlm_utils.frequency import IGNORE_INDEX, unigram_loss
from fairlm_utils.lm import languages, training
from fairlm_utils.lm.models import n_positions, n_rows, output_layer
from fairlm_utils.lm.token_loss import TokenSums, prediction_statistics, shifted_targets
from fairlm_utils.lm.tokenization import TokenizedCorpus, encode, n_ids, spell, token_kinds
from fairlm_utils.params import EvaluationParams


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
    vocab_size, n_bins = n_rows(model), N_CONFIDENCE_BINS
    by_type = TokenSums(vocab_size, model.device, n_quantities=3)
    calibration = TokenSums(vocab_size * n_bins, model.device)
    was_training = model.training
    model.eval()
    whole = dtype == model.dtype == torch.float32
    with (
        torch.inference_mode(),
        torch.autocast(model.device.type, dtype, enabled=dtype != torch.float32),
        nullcontext() if whole else Float32Head(output_layer(model).weight),
    ):
        for batch in files.progress(DataLoader(data, batch_size=batch_size), desc="evaluating", unit="batch"):
            batch = {name: tensor.to(model.device, non_blocking=True) for name, tensor in batch.items()}
            targets = shifted_targets(batch.pop("labels"))
            logits = model(**batch, use_cache=False).logits
            loss = add_predictions(logits.reshape(-1, logits.shape[-1]), targets, targets, by_type, calibration)
            if losses is not None:
                losses.append(by_label(loss, targets, logits.shape[:2]))
    model.train(was_training)
    if not np.isfinite(sums := by_type.read()).all():
        raise files.RunError(
            f"the loss of {int(sums[~np.isfinite(sums[:, 1]), 0].sum()):,} tokens is not finite: weights are no numbers, or "
            f"{dtype} overflows; choose another checkpoint or dtype"
        )
    return Predictions(sums, calibration.read().reshape(vocab_size, n_bins, 3))


def in_context(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, n_train: np.ndarray, bos: bool = False
) -> pd.DataFrame:
    """Every token of `text` in its order, each predicted from those before it: columns token, n_train, loss and unigram (nats).

    `n_train` [vocabulary] are training counts, and `unigram` is the loss that they alone explain. The text begins with the BOS
    token if `bos`, as a document does, and ends with its end; the first token has no loss (NaN). Of a text longer than the
    model takes the beginning is read.
    """
    ids, _ = encode(tokenizer, [text], bos)
    ids = ids[: n_positions(model.config)]
    block, losses = torch.from_numpy(ids.astype(np.int64)), list[np.ndarray]()
    token_sums(model, [{"input_ids": block, "labels": block}], batch_size=1, losses=losses)
    table = pd.DataFrame({"token": spell(tokenizer, ids), "n_train": n_train[ids], "loss": losses[0][0]})
    return table.assign(unigram=unigram_loss(n_train)[ids])


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
    n_bins = N_CONFIDENCE_BINS
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
    ids, by_type = np.arange(n), pd.DataFrame(sums[:n], columns=["n_eval", "loss", "accuracy", "top5_accuracy"])
    return pd.DataFrame(
        {
            "token_id": ids,
            "token": spell(tokenizer, ids),
            "kind": token_kinds(tokenizer)[:n],
            "n_train": n_train[:n].astype(np.int64),
            "n_eval": by_type["n_eval"].astype(np.int64),
            **by_type.iloc[:, 1:].div(by_type["n_eval"], axis=0),  # NaN where no token is of the type
            "learning_speed": np.nan if learning_speed is None else learning_speed[:n],
        }
    )


def check_ids(ids: np.ndarray, n: int, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Raise RunError naming the tokens in flat `ids` for which the model `name`, of `n` rows, has none.

    A tokenizer may have more tokens than its model, as long as they do not occur.
    """
    types, counts = np.unique(ids[ids >= n], return_counts=True)
    if len(types):
        most = int(types[counts.argmax()])
        raise files.RunError(
            f"{name}: the model has {n:,} rows, and {counts.sum():,} tokens of the text have ids beyond them, {counts.max():,} of "
            f"them {tokenizer.convert_ids_to_tokens(most)!r} (id {most:,}); use the tokenizer the model was trained with, "
            "or train it after resize_token_embeddings"
        )


def evaluated_blocks(p: EvaluationParams, corpus: TokenizedCorpus) -> dict[str, Dataset]:
    """The blocks that a run is evaluated on, by split."""
    train = training.train_blocks(p, corpus)
    n = min(p.max_evaluated_train_blocks or len(train), len(train))
    return {"training": Subset(train, range(n)), "held-out": training.heldout_blocks(p, corpus)}


def needs_losses(p: EvaluationParams) -> bool:
    """Whether a run's tables need the loss of every token, not its sums by type alone."""
    return p.by_word or bool(languages.language_files(p))


#: Confidence bins of equal width; 15 are usual for whole data sets (Guo et al. 2017), groups of rare types are smaller.
N_CONFIDENCE_BINS = 10
