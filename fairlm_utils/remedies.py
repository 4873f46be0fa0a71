"""Remedies for the rare tokens' loss: decay of embedding rows that knows their frequency, other objectives, dropout.

optimizer = frequency_aware_adamw(model, lr=3e-4, weight_decay=0.1)      # a row decays in steps in which its token occurs
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fairlm_utils.models import is_norm_layer, weight_decay_groups
from fairlm_utils.params import TrainingParams
from fairlm_utils.token_loss import Objective


class RowDecay:
    """Decoupled weight decay of the rows of a model's embedding and head, each at its own strength.

    Before every step of `optimizer` row v is multiplied by 1 − η λ s_v, with η the learning rate of its group; with
    s_v = 1 that is AdamW. `row_scale` [vocabulary] are the s_v; None stands for *when seen*: s_v is 1 in steps in which
    the type occurs among the inputs, counted over accumulated batches and over processes, else 0. The group of embedding
    and head must have weight decay 0. Raises ValueError if it has not, if the optimiser lacks the embedding, or if
    scales and rows do not match.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        optimizer: torch.optim.Optimizer,
        weight_decay: float,
        row_scale: Tensor | None = None,
    ):
        modules = [m for m in (model.get_input_embeddings(), model.get_output_embeddings()) if m is not None]
        self.weights = list({id(m.weight): m.weight for m in modules}.values())  # one if they are tied
        self.groups = [_group_of(optimizer, weight) for weight in self.weights]
        self.weight_decay, n_rows = weight_decay, len(self.weights[0])
        if row_scale is not None and len(row_scale) != n_rows:
            raise ValueError(f"row_scale has {len(row_scale):,} entries and the embedding {n_rows:,} rows")
        device = self.weights[0].device
        self.row_scale = None if row_scale is None else row_scale.to(device, torch.float32)
        self.seen = torch.zeros(n_rows, dtype=torch.uint8, device=device)
        if row_scale is None:
            modules[0].register_forward_hook(self._see)
        optimizer.register_step_pre_hook(self._decay)

    def _see(self, module: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        if module.training and torch.is_grad_enabled():
            self.seen[inputs[0].reshape(-1)] = 1

    @torch.no_grad()
    def _decay(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        scale = self.row_scale
        if scale is None:
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                torch.distributed.all_reduce(self.seen, torch.distributed.ReduceOp.MAX)
            scale = self.seen.to(torch.float32)
        for weight, group in zip(self.weights, self.groups, strict=True):
            weight.mul_(
                (1.0 - optimizer.param_groups[group]["lr"] * self.weight_decay * scale).to(weight.dtype)[:, None]
            )
        self.seen.zero_()


def _group_of(optimizer: torch.optim.Optimizer, weight: Tensor) -> int:
    for index, group in enumerate(optimizer.param_groups):
        if any(parameter is weight for parameter in group["params"]):
            if group["weight_decay"]:
                raise ValueError("embedding and head decay in the optimiser already; give their group weight_decay 0")
            return index
    raise ValueError("the optimiser does not hold the model's embedding; make it from this model's parameters")


def frequency_scale(counts: np.ndarray | Tensor, exponent: float = 1.0) -> Tensor:
    """Strength s_v = min(1, n_v / n_95)^γ of the decay of each row [vocabulary], from training counts n_v.

    n_95 is the 95th percentile of the counts of types that occur, where the paper splits low from high frequency: frequent
    types decay in full, rare ones less, unseen ones not at all; γ = 0 is uniform. Raises ValueError without counts.
    """
    counts = np.asarray(counts, dtype=np.float64)
    if not (counts > 0).any():
        raise ValueError("no token type occurs; frequencies need counts")
    relative = np.minimum(1.0, counts / np.percentile(counts[counts > 0], 95))
    return torch.from_numpy(relative**exponent).float()


def frequency_aware_adamw(
    model: PreTrainedModel,
    lr: float,
    weight_decay: float,
    counts: np.ndarray | Tensor | None = None,
    exponent: float = 1.0,
    decayed_parameters: str = "all",
    **adamw: Any,
) -> torch.optim.AdamW:
    """AdamW whose decay of embedding and head rows depends on how often their token occurs; a drop-in for any causal LM.

    Without `counts` a row decays in steps in which its token occurs; with training counts [vocabulary] by
    `frequency_scale(counts, exponent)`. The other parameters decay as `decayed_parameters` says (see
    `models.weight_decay_groups`); further arguments are AdamW's. Give it to Trainer as `optimizers=(optimizer, None)`.
    Embeddings must be whole on each device: data parallelism works, sharding of the embedding does not.
    """
    groups, _ = weight_decay_groups(model, weight_decay, decayed_parameters, rows_apart=True)
    optimizer = torch.optim.AdamW(groups, lr=lr, **adamw)
    RowDecay(model, optimizer, weight_decay, None if counts is None else frequency_scale(counts, exponent))
    return optimizer


def loss_weights(counts: np.ndarray | Tensor, exponent: float) -> Tensor:
    """Weights n_v^−α of the loss of each type [vocabulary] from training counts n_v, 0 for types that do not occur.

    Scaled to a mean of 1 over the training tokens, so that the learning rate keeps its meaning (Cui et al. 2019 discuss the
    choice of α: 1 is token-balanced, 0.5 square-root-balanced). `Objective(loss_weights(counts, 0.25))` is a training
    objective for `callback.TokenFrequencyCallback`. Raises ValueError without counts.
    """
    n = torch.from_numpy(np.asarray(counts, dtype=np.float64))
    if not (n > 0).any():
        raise ValueError("no token type occurs; weights need counts")
    weights = torch.where(n > 0, n.clamp(min=1) ** -exponent, 0.0)
    return (weights * n.sum() / (weights * n).sum()).float()


def objective(p: TrainingParams, n_train: np.ndarray) -> Objective | None:
    """The training objective of `p`, None for the plain mean cross-entropy, from training counts n_v [vocabulary].

    Logit adjustment adds τ log π_v with π_v = (n_v + 1) / Σ (n_v + 1); for the weights see `loss_weights`.
    """
    weights = loss_weights(n_train, p.loss_weight_exponent) if p.loss_weight_exponent else None
    offset = None
    if p.logit_adjustment:
        n = torch.from_numpy(np.asarray(n_train, dtype=np.float64))
        offset = (p.logit_adjustment * torch.log((n + 1) / (n + 1).sum())).float()
    if weights is None and offset is None and not p.label_smoothing:
        return None
    return Objective(weights, p.label_smoothing, offset)


@contextmanager
def dropout(model: PreTrainedModel, probability: float) -> Iterator[None]:
    """Within the context, dropout of the embeddings and of what each part of each layer adds to the residual stream.

    As in GPT-2, by hooks, for architectures that have none. Active only while the model trains; 0 changes nothing.
    """
    if not probability:
        yield
        return

    def drop(module: nn.Module, _: Any, output: Any) -> Any:
        first = output[0] if isinstance(output, tuple) else output
        dropped = nn.functional.dropout(first, probability, module.training)
        return (dropped, *output[1:]) if isinstance(output, tuple) else dropped

    layers = next(module for module in model.base_model.modules() if isinstance(module, nn.ModuleList))
    parts = [part for layer in layers for part in layer.children() if not is_norm_layer(part)]
    handles = [module.register_forward_hook(drop) for module in (model.get_input_embeddings(), *parts)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
