"""The token-level loss: cross-entropy that keeps every token's loss, and sums of it by token type.

A model records its own per-token statistics while it trains when `record_token_loss` sets its loss function; nothing
is computed twice, and nothing leaves the device until the sums are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.loss.loss_utils import ForCausalLMLoss

from fairlm_utils import frequency

#: Bytes of float32 logits worked on at a time: a block that stays in a CPU's cache, and bounds memory on a GPU.
_BLOCK_BYTES = {"cpu": 2**19, "cuda": 2**28}


class _TokenCrossEntropy(torch.autograd.Function):
    """Cross-entropy of each row, and the gradient of the weighted sum of the rows, in one pass over the logits."""

    @staticmethod
    def forward(
        ctx, logits: Tensor, targets: Tensor, scale: Tensor, with_accuracy: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        n, vocab_size = logits.shape
        loss = torch.empty(n, dtype=torch.float32, device=logits.device)
        correct = torch.empty(n if with_accuracy else 0, dtype=torch.bool, device=logits.device)
        needs_grad = ctx.needs_input_grad[0]
        # float16 would round p − 1 and p to 0 before the loss scale multiplies them: the gradient stays in float32 until
        # then, at twice the memory of such logits. bfloat16 has the range of float32 and needs none of it.
        kept_dtype = torch.float32 if logits.dtype == torch.float16 else logits.dtype
        grad = torch.empty_like(logits, dtype=kept_dtype) if needs_grad else None
        block = max(1, _BLOCK_BYTES.get(logits.device.type, 2**24) // (4 * vocab_size))
        for start in range(0, n, block):
            rows = slice(start, start + block)
            target = targets[rows].clamp(min=0)[:, None]
            log_probs = torch.log_softmax(logits[rows], dim=-1, dtype=torch.float32)
            target_log_probs = log_probs.gather(1, target)
            loss[rows] = -target_log_probs[:, 0]
            if with_accuracy:  # amax is several times faster than argmax; a tie for the largest is not correct
                others = log_probs.scatter_(1, target, -torch.inf).amax(dim=1)
                correct[rows] = target_log_probs[:, 0] > others
            if grad is not None:
                own = scale[rows] if scale.dim() else scale
                row_scale = torch.where(targets[rows] == frequency.IGNORE_INDEX, 0.0, own)[:, None]
                probs = log_probs.exp_().scatter_(1, target, target_log_probs.exp_().sub_(1.0))
                torch.mul(probs, row_scale, out=grad[rows])
        loss.masked_fill_(targets == frequency.IGNORE_INDEX, 0.0)  # not a product: the loss of type 0 may be infinite
        ctx.dtype = logits.dtype
        ctx.save_for_backward(grad)
        ctx.mark_non_differentiable(loss, correct)
        return (loss * scale).sum() if scale.dim() else loss.sum() * scale, loss, correct

    @staticmethod
    def backward(ctx, grad_output: Tensor, *_: Tensor) -> tuple[Tensor | None, None, None, None]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "the gradient of this loss is to be differentiated again (create_graph=True), which takes logits that it does not "
                "keep; compute the loss from the logits, in a Trainer by compute_loss_func"
            )
        (grad,) = ctx.saved_tensors  # as it was saved: a graph that is retained comes by here again
        if grad.device.type == "cpu" and grad_output.item() == 1.0:  # the usual case: no second pass over the gradient
            return grad.to(ctx.dtype), None, None, None
        return (grad * grad_output).to(ctx.dtype), None, None, None


def token_cross_entropy(
    logits: Tensor, targets: Tensor, scale: Tensor | float = 1.0, with_accuracy: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy in nats of each position, and its sum times `scale` (one, or one per position), which alone carries the gradient.

    `logits` [positions, vocabulary] of any floating dtype (worked on in float32, a block at a time), `targets`
    [positions] with −100 where there is none. Returns `(sum * scale, loss [positions], correct [positions])`; loss is
    0 at positions without a target, which callers must leave out of every mean. `correct` is top-1 correctness (empty
    if not `with_accuracy`): the target's logit is strictly the largest. Raises ValueError on shapes that do not match, and
    RuntimeError where its gradient is differentiated again.
    """
    if logits.dim() != 2 or targets.shape != logits.shape[:1]:
        raise ValueError(
            f"logits {tuple(logits.shape)} and targets {tuple(targets.shape)}: expected [n, vocabulary] and [n]"
        )
    scale = torch.as_tensor(scale, dtype=torch.float32, device=logits.device)
    return _TokenCrossEntropy.apply(logits, targets, scale, with_accuracy)


@torch.no_grad()
def prediction_statistics(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Loss (nats), rank of the target and confidence of each position, each [positions], without a gradient.

    `logits` [positions, vocabulary], `targets` [positions] with −100 where there is none, whose values mean nothing and
    must be left out. The rank counts the *other* types whose logit is at least the target's: 0 is a correct top-1
    prediction, less than k a correct top-k one. The confidence is the largest probability.
    """
    n, vocab_size = logits.shape
    loss, confidence = (torch.empty(n, dtype=torch.float32, device=logits.device) for _ in range(2))
    rank = torch.empty(n, dtype=torch.int64, device=logits.device)
    block = max(1, _BLOCK_BYTES.get(logits.device.type, 2**24) // (4 * vocab_size))
    for start in range(0, n, block):
        rows = slice(start, start + block)
        log_probs = torch.log_softmax(logits[rows], dim=-1, dtype=torch.float32)
        target = log_probs.gather(1, targets[rows].clamp(min=0)[:, None])
        loss[rows] = -target[:, 0]
        rank[rows] = (log_probs >= target).sum(dim=1) - 1
        confidence[rows] = log_probs.amax(dim=1).exp()
    return loss, rank, confidence


class TokenSums:
    """Tokens and sums of quantities of every token type, by default loss (nats) and top-1 correctness, on the device.

    `values` [vocabulary + 1, 1 + quantities] in float64, exact for counts up to 2^53; the last row swallows positions
    without a target, so that adding needs no synchronisation with the host. Sums move to the device of what they are
    given. In a training loop over any model, whatever computes its loss:

    >>> model, ids = torch.nn.Embedding(4, 4), torch.tensor([[1, 2, 2, 3]])
    >>> sums = TokenSums(vocab_size=4)  # before the loop
    >>> for _ in range(2):
    ...     logits, targets = model(ids[:, :-1]), ids[:, 1:]
    ...     sums.record(logits, targets)  # in the loop
    >>> sums.read()[:, 0].tolist()
    [0.0, 0.0, 4.0, 2.0]

    `callback.loss_by_frequency(sums.read(), counts)` makes of it the record that `TokenFrequencyCallback` logs, and
    `sums.reset()` begins the next one.
    """

    def __init__(self, vocab_size: int, device: torch.device | str = "cpu", n_quantities: int = 2):
        self.values = torch.zeros(vocab_size + 1, 1 + n_quantities, dtype=torch.float64, device=device)

    def add(self, targets: Tensor, *quantities: Tensor, blocks: int = 1) -> None:
        """Add the flat positions of some `blocks`: `targets` [n], −100 where there is none, and each quantity [n]."""
        if self.values.device != targets.device:  # the model has moved
            self.values = self.values.to(targets.device)
        index = torch.where(targets == frequency.IGNORE_INDEX, self.values.shape[0] - 1, targets)
        rows = torch.stack([torch.ones_like(quantities[0]), *(q.to(quantities[0].dtype) for q in quantities)], dim=1)
        self.values.index_add_(0, index, rows.to(torch.float64))

    @torch.no_grad()
    def record(self, logits: Tensor, targets: Tensor) -> None:
        """Add loss and top-1 correctness of `logits` [..., vocabulary] at `targets` [...], the tokens that they predict.

        Targets are those of the same positions, as nanoGPT's are, with a negative id (−100, −1) where there is none; of
        transformers' labels, which are the inputs themselves, take `shifted_targets(labels)`. Nothing changes in the
        model's own loss or its gradient. Raises ValueError on shapes that do not match, and for logits of more types than
        there are sums.
        """
        if logits.shape[-1] >= len(self.values):
            raise ValueError(
                f"logits of {logits.shape[-1]:,} types and sums of {len(self.values) - 1:,}; give TokenSums as many as the model predicts"
            )
        targets = targets.reshape(-1)
        targets = torch.where(targets < 0, frequency.IGNORE_INDEX, targets)
        _, loss, correct = token_cross_entropy(logits.detach().reshape(-1, logits.shape[-1]), targets)
        self.add(targets, loss, correct)

    def read(self, over_processes: bool = False) -> np.ndarray:
        """Array [vocabulary, 1 + quantities]: tokens and sums, of this process or of all that train together."""
        values = self.values[:-1].clone()
        if over_processes and torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(values)
        return values.cpu().numpy()

    def reset(self) -> None:
        self.values.zero_()


def shifted_targets(labels: Tensor) -> Tensor:
    """The target of every position, the label that follows it: labels [blocks, context] to flat [blocks * context]."""
    return torch.nn.functional.pad(labels, (0, 1), value=frequency.IGNORE_INDEX)[:, 1:].reshape(-1)


@dataclass(frozen=True)
class Objective:
    """What training minimises instead of the mean cross-entropy ℓ = −log p_y; evaluation and records stay with ℓ.

    `token_weights` [vocabulary] multiply the loss of each target (class-balanced losses). `label_smoothing` ε replaces ℓ
    by (1 − ε) ℓ + ε mean_v(−log p_v) (Szegedy et al. 2016). `logit_offset` [vocabulary] is added to the logits (logit
    adjustment, Menon et al. 2021: τ log π_v). Weights of fewer types than the model predicts (rows padded to a multiple of 64)
    are 0 for the rest; ValueError for any other difference in length, and for values that are no weights or no share.
    """

    token_weights: Tensor | None = None
    label_smoothing: float = 0.0
    logit_offset: Tensor | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"objective: label_smoothing is {self.label_smoothing}; give a share from 0 to below 1")
        for name in ("token_weights", "logit_offset"):
            if (given := getattr(self, name)) is None:
                continue
            values = torch.as_tensor(given)
            if values.dim() != 1 or not torch.isfinite(values).all():
                raise ValueError(f"objective: {name} must be one finite number per token type")
            if name == "token_weights" and not (values.min() >= 0 and values.max() > 0):
                raise ValueError("objective: token_weights must not be negative, nor 0 for all types")

    def loss(self, logits: Tensor, targets: Tensor, scale: Tensor | float) -> Tensor:
        """Sum over positions of the objective times `scale`: logits [n, vocabulary], targets [n] with −100 where none."""
        kept = targets.clamp(min=0)
        scale = torch.as_tensor(scale, device=logits.device)
        if self.logit_offset is not None:
            logits = logits + self._by_type("logit_offset", logits)
        if self.token_weights is not None:
            scale = scale * self._by_type("token_weights", logits)[kept]
        total, *_ = token_cross_entropy(logits, targets, scale, with_accuracy=False)
        if self.label_smoothing:  # log p differs from the logits by the same number at target and mean
            logits = logits.float()
            excess = logits.gather(1, kept[:, None])[:, 0] - logits.mean(dim=1)
            excess = torch.where(targets == frequency.IGNORE_INDEX, 0.0, excess)
            total = total + self.label_smoothing * (scale * excess).sum()
        return total

    def _by_type(self, name: str, logits: Tensor) -> Tensor:
        values = torch.as_tensor(getattr(self, name), dtype=torch.float32, device=logits.device)
        n_missing = logits.shape[-1] - len(values)
        if n_missing < 0 or (n_missing and name == "logit_offset"):
            raise ValueError(
                f"objective: {name} has {len(values):,} entries and the model predicts {logits.shape[-1]:,} token types; give "
                "one per type"
            )
        return torch.nn.functional.pad(values, (0, n_missing)) if n_missing else values


class TokenLossFunction:
    """A model's loss function (logits, labels) → mean token loss, as transformers' own, that keeps each token's loss.

    `sums()` are the sums that the losses of this call are added to, None for none. While the model trains, an `objective`
    replaces the loss that is returned, not the one recorded. A copy of the model, or a pickle of it, takes transformers'
    own function instead: what the copy computes belongs to no sums.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        sums: Callable[[], Any],  # TokenSums, or what adds as they do
        objective: Objective | None = None,
        with_accuracy: bool = True,
    ):
        self.model, self.sums, self.objective, self.with_accuracy = model, sums, objective, with_accuracy

    @torch.compiler.disable  # a compiled model breaks its graph here: sums changed within one are lost
    def __call__(
        self,
        logits: Tensor,
        labels: Tensor | None,
        vocab_size: int | None = None,
        num_items_in_batch: Tensor | int | None = None,
        shift_labels: Tensor | None = None,
        ignore_index: int = frequency.IGNORE_INDEX,
        **_: Any,
    ) -> Tensor:
        targets = shifted_targets(labels) if shift_labels is None else shift_labels.reshape(-1)
        targets = targets.masked_fill(targets == ignore_index, frequency.IGNORE_INDEX)
        targets = targets.to(logits.device)
        n = (targets != frequency.IGNORE_INDEX).sum() if num_items_in_batch is None else num_items_in_batch
        kept, n_blocks = self.sums(), logits.shape[0]
        logits = logits.reshape(-1, logits.shape[-1])
        if self.objective is None or not self._trains():
            total, loss, correct = token_cross_entropy(
                logits, targets, 1.0 / n, kept is not None and self.with_accuracy
            )
        else:
            total = self.objective.loss(logits, targets, 1.0 / n)
            if kept is not None:
                _, loss, correct = token_cross_entropy(logits.detach(), targets, with_accuracy=self.with_accuracy)
        if kept is not None:
            kept.add(targets, loss, *([correct] if self.with_accuracy else []), blocks=n_blocks)
        return total

    def _trains(self) -> bool:
        return self.model.training

    def __reduce__(self) -> tuple:
        return _library_loss_function, ()


def _library_loss_function() -> Callable:
    return ForCausalLMLoss


@contextmanager
def loss_function(model: PreTrainedModel, function: Callable | None) -> Iterator[None]:
    """Within the context `function` is the model's loss function (None: its own), at the place transformers provides."""
    before = vars(model).get("_loss_function")
    if function is not None:
        model.loss_function = function
    try:
        yield
    finally:
        if function is not None:
            del model._loss_function  # back to the model's own, which transformers looks up when none is set
            if before is not None:
                model.loss_function = before


@contextmanager
def record_token_loss(
    model: PreTrainedModel, sums: TokenSums | None, objective: Objective | None = None
) -> Iterator[None]:
    """Within the context `model(..., labels=labels).loss` is the mean token loss, and adds to `sums` while training.

    It works unchanged under Trainer, gradient accumulation (normalised by `num_items_in_batch`), autocast and data
    parallelism. With `sums=None` the same loss is computed and nothing recorded. For `objective` see
    `TokenLossFunction`.
    """
    with loss_function(model, TokenLossFunction(model, lambda: sums if model.training else None, objective)):
        yield
