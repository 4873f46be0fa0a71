"""Rare tokens watched in anyone's training: one line adds it to a transformers Trainer.

trainer = Trainer(model, args, train_dataset=data)
TokenFrequencyCallback(trainer)
trainer.train()                  # every log also holds token_balanced_loss and loss_n_v_1-2, loss_n_v_3-8, ...
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from accelerate.state import GradientState
from torch import Tensor
from transformers import Trainer, TrainerCallback

from fairlm_utils.metrics import bin_index, bin_label
from fairlm_utils.token_loss import IGNORE_INDEX, Objective, TokenSums, record_token_loss
from fairlm_utils.training import n_processes


class TokenFrequencyCallback(TrainerCallback):
    """Adds token-balanced loss and loss by frequency bin to what a Trainer logs, in training and at evaluation.

    Puts itself first among the callbacks of `trainer`, so that whatever the Trainer reports to (TensorBoard, ...) and its
    `log_history` receive, beside `loss` and `eval_loss` and since the log before, in nats:

    - `token_balanced_loss`: mean over the token types that occurred of each type's mean loss;
    - `loss_n_v_LOW-HIGH`: the same over the types whose count n_v lies in a powers-of-3 bin, `loss_n_v_0` unseen types.

    At evaluation the names have the prefix of the Trainer (`eval_token_balanced_loss`), and so can choose the best model
    by `metric_for_best_model`. `counts` [vocabulary] are training counts n_v; without them they are counted in the
    training stream as it goes, so that bins fill with time.

    An `objective` replaces the loss that is minimised (and logged as `loss` in training), such as `Objective(loss_weights(
    counts, 0.25))` of `remedies`; everything else is recorded of the plain cross-entropy.

    The model's own loss function gives way to one of the same value that keeps each token's loss, without a second
    forward pass; accumulation, padding, packing, autocast and data parallelism are correct. Raises RuntimeError at the
    first log if no token was seen: the model or Trainer computes its loss elsewhere, as with label_smoothing_factor.
    """

    def __init__(self, trainer: Trainer, counts: np.ndarray | None = None, objective: Objective | None = None):
        vocab_size = trainer.model.get_input_embeddings().weight.shape[0]
        if counts is not None and len(counts) > vocab_size:
            raise ValueError(f"counts has {len(counts):,} entries and the model {vocab_size:,} token types")
        device = trainer.model.device
        self.model, self.fixed = trainer.model, counts is not None
        self.counts = np.zeros(vocab_size, dtype=np.int64)
        if counts is not None:
            self.counts[: len(counts)] = counts
        self.training, self.evaluation = TokenSums(vocab_size, device), _EvaluationSums(vocab_size, device)
        self.objective = objective
        self._recording: Any = None
        trainer.callback_handler.callbacks.insert(0, self)
        self._start()

    def _start(self) -> None:
        if self._recording is None:
            self._recording = record_token_loss(self.model, self.training, self.objective, self.evaluation)
            self._recording.__enter__()

    def stop(self) -> None:
        """Give the model its own loss function back."""
        if self._recording is not None:
            self._recording.__exit__(None, None, None)
            self._recording = None

    def on_train_begin(self, args, state, control, **_):
        self.training.to(self.model.device)
        self.evaluation.to(self.model.device)

    def on_log(self, args, state, control, logs=None, **_):
        if "loss" in logs:
            self._add(logs, state, "", self._take(self.training, training=True))
        elif (name := next((k for k in logs if k.endswith("_loss")), "")) and name != "train_loss":
            self._add(logs, state, name.removesuffix("loss"), self._take(self.evaluation))

    def _take(self, sums: TokenSums, training: bool = False) -> np.ndarray:
        values = sums.read(over_processes=True)
        sums.reset()
        if training and not values[:, 0].any():
            raise RuntimeError(
                "no token's loss was seen: the loss is computed elsewhere (label_smoothing_factor or a loss of the Trainer's "
                "own); set label_smoothing_factor=0 and leave the loss to the model"
            )
        if training and not self.fixed:
            self.counts += values[:, 0].astype(np.int64)
        return values

    def _add(self, logs: dict[str, float], state: Any, prefix: str, values: np.ndarray) -> None:
        added = {f"{prefix}{name}": value for name, value in loss_by_frequency(values, self.counts).items()}
        logs.update(added)
        if state.log_history:  # the Trainer has kept a copy of its logs by now
            state.log_history[-1].update(added)


class _EvaluationSums(TokenSums):
    """Sums that leave out what the last batch of several processes repeats to be full, as the Trainer's metrics do."""

    def add(self, targets: Tensor, *quantities: Tensor, blocks: int = 1) -> None:
        state = GradientState()
        if n_processes() > 1 and state.end_of_dataloader and state.remainder > 0:
            rows = torch.arange(blocks, device=targets.device) + torch.distributed.get_rank() * blocks
            kept = (rows < state.remainder).repeat_interleave(len(targets) // blocks)
            targets = torch.where(kept, targets, IGNORE_INDEX)
        super().add(targets, *quantities)


def loss_by_frequency(values: np.ndarray, counts: np.ndarray) -> dict[str, float]:
    """Token-balanced loss and mean loss over the types of each bin of `counts`, in nats, of sums [vocabulary, ≥ 2].

    >>> loss_by_frequency(np.array([[2, 6.0], [1, 1.0], [0, 0.0]]), np.array([1, 5, 9]))
    {'token_balanced_loss': 2.0, 'loss_n_v_1-2': 3.0, 'loss_n_v_3-8': 1.0}
    """
    seen = values[:, 0] > 0
    if not seen.any():
        return {}
    loss, bins = values[seen, 1] / values[seen, 0], bin_index(counts[seen])
    by_bin = {f"loss_n_v_{bin_label(k).replace('–', '-').replace(',', '')}": loss[bins == k] for k in np.unique(bins)}
    return {"token_balanced_loss": float(loss.mean()), **{name: float(x.mean()) for name, x in by_bin.items()}}
