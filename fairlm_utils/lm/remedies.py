"""Remedies for the rare tokens' loss: other decays of rows and weights, Muon, other objectives, dropout.

optimizer = frequency_aware_adamw(model, lr=3e-4, weight_decay=0.1)      # a row decays in steps in which its token occurs
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fairlm_utils.lm.models import is_norm_layer, weight_decay_groups
from fairlm_utils.lm.token_loss import Objective
from fairlm_utils.params import TrainingParams


class FrequencyAwareAdamW(torch.optim.AdamW):
    """AdamW whose decoupled weight decay multiplies row v of the embedding and of the head by 1 − η λ s_v.

    `params` are the groups of `models.weight_decay_groups(model, λ, ..., rows_apart=True)`: one of them holds embedding and
    head, with λ as its `row_weight_decay` (its `weight_decay` is 0) and, as every group, its own learning rate η.
    `row_scale` [vocabulary] are the s_v; s_v = 1 for all is AdamW, bit for bit. None stands for *when seen*: s_v is 1 if the
    gradient of the step has passed through row v of the embedding, counted over accumulated batches and over processes,
    else 0. That is the rule of FBGEMM's and TorchRec's embedding optimisers, whose decay reaches the rows of the batch alone
    unless it is asked to be global. Forward passes without gradient or in evaluation mode do not count, nor do batches
    whose gradient was dropped, as in a step that GradScaler skips. A weight without gradient (frozen, as under LoRA) does not
    decay, and a head's bias decays as any other parameter.

    With `lazy` a row that is seen is multiplied by 1 − η λ of every step since it was last seen: as much decay as AdamW's, in
    the steps of *when seen*. FBGEMM has it by a counter of steps (AdagradW, RMSpropAR; lazy regularisation in Carpenter 2008),
    and its decoupled counter mode, 1 − η λ h / c, with c the occurrences counted with half-life h, comes near it for types that
    occur more often than once in h. What is owed after the last occurrence stays unpaid.

    Scale and marks are in the group, and so in `state_dict`; a checkpoint of AdamW over the same groups can be loaded.
    Copies and pickles keep the behaviour for a model copied with them: `copy.deepcopy((model, optimizer))`.

    Raises ValueError, here and at a step, if the model has no whole embedding [vocabulary, width] in these groups, as after
    `resize_token_embeddings` or under sharding: make the optimiser after the model has got its final size, of the model
    itself and not of a wrapper.
    """

    def __init__(
        self,
        params: list[dict],
        *,
        model: PreTrainedModel,
        row_scale: Tensor | None = None,
        lazy: bool = False,
        **adamw: Any,
    ):
        modules = embedding_and_head(model)
        super().__init__(params, **adamw)
        if self.defaults["differentiable"]:
            raise ValueError("differentiable: rows decay in place; leave it out")
        if not all(isinstance(module.weight, nn.Parameter) for module in modules):
            raise ValueError(
                "some rows of the embedding or head alone are trained (PEFT's trainable_token_indices), and decay by row needs a "
                'whole one; give PEFT modules_to_save=["embed_tokens"], or train with torch.optim.AdamW'
            )
        groups = [group for group in self.param_groups if "row_weight_decay" in group]
        if len(groups) != 1 or groups[0]["weight_decay"]:
            raise ValueError(
                "embedding and head need a parameter group of their own, with weight_decay 0 and row_weight_decay; use "
                "frequency_aware_adamw, or weight_decay_groups(model, ..., rows_apart=True) for params"
            )
        rows, weight = groups[0], modules[0].weight
        if not rows["row_weight_decay"] >= 0:
            raise ValueError(f"row_weight_decay is {rows['row_weight_decay']}; give a number of 0 or more")
        rows["seen"], rows["row_scale"] = torch.zeros(len(weight), dtype=torch.uint8, device=weight.device), None
        rows["owed"] = torch.ones(len(weight), device=weight.device) if lazy else None
        if lazy and row_scale is not None:
            raise ValueError("lazy: a row pays the decay of AdamW when it is seen; leave row_scale out")
        if row_scale is not None:
            if row_scale.shape != (len(weight),) or not ((row_scale >= 0) & row_scale.isfinite()).all():
                raise ValueError(
                    f"row_scale has {row_scale.numel():,} entries and the embedding {len(weight):,} rows; give one finite "
                    "number of 0 or more per row"
                )
            rows["row_scale"] = row_scale.to(weight.device, torch.float32)
            if (row_scale == 1).all():  # left to AdamW, whose rounding of 1 − η λ is its own
                rows["weight_decay"], rows["row_weight_decay"] = rows["row_weight_decay"], 0.0
        self._row_modules = modules
        self._model: Callable[[], PreTrainedModel | None] = weakref.ref(model)
        self._attach()
        self._check_rows()

    @property
    def _rows(self) -> dict[str, Any]:
        return next(group for group in self.param_groups if "row_weight_decay" in group)

    @property
    def seen(self) -> Tensor:
        """1 for each row [vocabulary] through which gradient has passed since the last step, else 0 (uint8)."""
        return self._rows["seen"]

    def _attach(self) -> None:
        self._watched: Tensor | None = None
        self._looks, self._warned = False, False
        self._accumulated: tuple[weakref.ref, int] | None = None
        # not a step() of our own: around AdamW's it would run the hooks of others twice
        self.register_step_pre_hook(self._decay_rows)
        handle = self._row_modules[0].register_forward_hook(_LookUp(weakref.ref(self)), with_kwargs=True)
        weakref.finalize(self, handle.remove).atexit = False

    def _check_rows(self) -> None:
        model, rows = self._model(), self._rows
        modules = self._row_modules if model is None else embedding_and_head(model)
        trained = [module.weight for module in modules if module.weight.requires_grad]
        if not set(map(id, trained)) <= set(map(id, rows["params"])):
            raise ValueError(
                "the optimiser does not hold the model's embedding and head: they were resized, replaced or moved to another "
                "kind of device after it was made, or it was made from another model's parameters; make it anew"
            )
        if any(weight.dim() != 2 or hasattr(weight, "placements") for weight in trained):
            raise ValueError(
                "the embedding or head is sharded, and decay by row needs whole rows on each device; train with data "
                "parallelism (DDP), or with torch.optim.AdamW"
            )
        n_known = {len(rows["seen"]), len(rows["seen"] if rows["row_scale"] is None else rows["row_scale"])}
        if len(n_known | (n_rows := {len(weight) for weight in trained})) > 1:
            theirs, ours = (" and ".join(f"{n:,}" for n in sorted(ns)) for ns in (n_rows, n_known))
            raise ValueError(
                f"embedding and head have {theirs} rows and the optimiser knows {ours}; make the optimiser after resizing, "
                "with a head as long as the embedding"
            )

    def _looked_up(self, ids: Tensor, output: Any) -> None:
        self._looks = True
        rows, embedding = self._rows, self._row_modules[0].weight
        weight = next((m.weight for m in self._row_modules if m.weight.requires_grad), None)
        if weight is None or not rows["row_weight_decay"] or rows["row_scale"] is not None:
            return
        if len(rows["seen"]) != len(embedding):  # the next step says so
            return
        rows["seen"] = rows["seen"].to(embedding.device)  # Trainer moves the model after the optimiser is made
        if weight is not self._watched:
            self._watch(weight)
        if isinstance(output, Tensor) and output.requires_grad:
            output.register_hook(lambda _: self._mark(ids))
        else:  # a frozen embedding before a head that is trained: no gradient will come by here
            self._mark(ids)

    def _watch(self, weight: Tensor) -> None:
        optimizer = weakref.ref(self)

        def accumulated(weight: Tensor) -> None:
            if (self := optimizer()) is not None and (gradient := weight.grad) is not None:
                self._accumulated = weakref.ref(gradient), gradient._version

        handle = weight.register_post_accumulate_grad_hook(accumulated)
        weakref.finalize(self, handle.remove).atexit = False
        self._watched = weight

    def _mark(self, ids: Tensor) -> None:
        self._forget_dropped_batches()
        seen = self.seen
        seen[ids.to(seen.device, torch.long).reshape(-1)] = 1

    def _forget_dropped_batches(self) -> None:
        """Start afresh if the gradient that the marks came with is gone, by whichever zero_grad and without a step."""
        if self._accumulated is None or self._watched is None:
            return
        (reference, version), gradient = self._accumulated, self._watched.grad
        if gradient is not None:
            if gradient._version == version and reference() is gradient:
                return  # the ordinary accumulation, decided without waiting for the device
            if gradient.any():  # clipped or reduced, not zeroed
                return
        self.seen.zero_()
        self._accumulated = None

    @torch.no_grad()
    def _decay_rows(self, _: torch.optim.Optimizer, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        arguments = _closure_first(args, kwargs)
        self._check_rows()
        rows = self._rows
        if rows["row_weight_decay"]:
            scale, decay = self._scale(rows["params"][0].device), rows["lr"] * rows["row_weight_decay"]
            found_inf = getattr(self, "found_inf", None)  # GradScaler leaves it to fused kernels to skip a step
            ran = 1.0 if found_inf is None else (found_inf == 0).to(scale.device)
            scale = scale * ran
            trained = [weight for weight in rows["params"] if weight.grad is not None and weight.requires_grad]
            unmarked = rows["row_scale"] is None and not self._looks
            if trained and unmarked and not self._warned and not rows["seen"].any():
                self._warned = True
                warnings.warn(
                    "no row of the embedding decays: it has a gradient, and no look-up in training mode was seen. Where code "
                    "compiled before this optimiser is used again, call torch.compiler.reset(); a model that trains in evaluation "
                    "mode needs counts, frequency_aware_adamw(..., counts=...)",
                    stacklevel=2,
                )
            if rows["owed"] is not None and trained:
                rows["owed"] = rows["owed"].to(scale.device) * (1.0 - decay * ran)
            for weight in trained:
                # at least float32: a factor in bfloat16 would be off by more than the decay
                strength = scale.to(weight.device, torch.promote_types(weight.dtype, torch.float32))
                if rows["owed"] is None:
                    weight.mul_((1.0 - decay * strength)[:, None])
                else:
                    weight.mul_(torch.where(strength > 0, rows["owed"].to(strength), 1.0)[:, None])
            if rows["owed"] is not None and trained:
                rows["owed"][scale > 0] = 1.0
        rows["seen"].zero_()
        self._accumulated, self._looks = None, False
        return arguments

    def _scale(self, device: torch.device) -> Tensor:
        rows = self._rows
        if rows["row_scale"] is not None:
            rows["row_scale"] = rows["row_scale"].to(device)
            return rows["row_scale"]
        rows["seen"] = rows["seen"].to(device)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(rows["seen"], torch.distributed.ReduceOp.MAX)
        return rows["seen"].to(torch.float32)

    def state_dict(self) -> dict[str, Any]:
        """As of AdamW; the group of the rows also holds `row_weight_decay`, `row_scale`, `seen` and `owed`."""
        self._forget_dropped_batches()
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As of AdamW, whose checkpoints, which know no rows, leave scale and decay of the rows as they are."""
        own = ("weight_decay", "row_weight_decay", "row_scale", "seen", "owed")
        groups = [
            {**saved, **{key: group[key] for key in own}}
            if "row_weight_decay" in group and "row_weight_decay" not in saved
            else saved
            for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=False)
        ]
        if len(groups) == len(state_dict["param_groups"]):
            state_dict = {**state_dict, "param_groups": groups}
        super().load_state_dict(state_dict)
        self._accumulated = None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_row_modules": self._row_modules}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_row_modules" in state:  # a copy or an unpickled one; load_state_dict comes by here too, without them
            self._model = lambda: None
            self._attach()


class _LookUp:
    """Forward hook of an embedding that tells `optimizer` its ids; of a copy of the model, a hook that does nothing."""

    def __init__(self, optimizer: Callable[[], FrequencyAwareAdamW | None] = lambda: None):
        self.optimizer = optimizer

    def __reduce__(self) -> tuple:
        return _LookUp, ()

    @torch.compiler.disable
    def __call__(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        if (optimizer := self.optimizer()) is not None and module.training and torch.is_grad_enabled():
            optimizer._looked_up(args[0] if args else next(iter(kwargs.values())), output)


class CautiousAdamW(torch.optim.AdamW):
    """AdamW whose decoupled weight decay acts only on coordinates that the update takes towards 0.

    Cautious weight decay (Chen et al. 2025, arXiv 2510.12402): x ← x − η (u + λ 𝟙[u·x ≥ 0] x), elementwise, with u the update
    of Adam, whose sign is that of its first moment. All else is AdamW, which it is wherever u and x agree.
    """

    def __init__(self, params: Any, **adamw: Any):
        super().__init__(params, **adamw)
        if self.defaults["maximize"] or self.defaults["differentiable"]:
            raise ValueError("maximize, differentiable: cautious decay knows neither; leave them out")
        # GradScaler then leaves out the whole step itself, decay included, where a gradient is not finite
        self._step_supports_amp_scaling = False
        self.register_step_pre_hook(CautiousAdamW._decay)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As of AdamW, whose own decay of the group is switched off."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        if "cautious_weight_decay" not in group:
            group["cautious_weight_decay"], group["weight_decay"] = group["weight_decay"], 0.0

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As of AdamW, whose own checkpoints leave the decay of the groups as it is."""
        own = ("weight_decay", "cautious_weight_decay")
        groups = [
            saved if "cautious_weight_decay" in saved else {**saved, **{key: group[key] for key in own}}
            for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=False)
        ]
        if len(groups) == len(state_dict["param_groups"]):
            state_dict = {**state_dict, "param_groups": groups}
        super().load_state_dict(state_dict)

    @torch.no_grad()
    def _decay(self, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        arguments = _closure_first(args, kwargs)
        for group in self.param_groups:
            decay, beta1 = group["lr"] * group["cautious_weight_decay"], group["betas"][0]
            for weight in group["params"] if group["cautious_weight_decay"] else ():
                if weight.grad is not None:
                    before = self.state[weight].get("exp_avg", torch.zeros_like(weight))
                    agrees = before.lerp(weight.grad, 1 - beta1).sign() * weight >= 0
                    weight.mul_(1.0 - decay * agrees)
        return arguments

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if not self._optimizer_step_pre_hooks:  # a copy or an unpickled one, which keep no hooks
            self.register_step_pre_hook(CautiousAdamW._decay)


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon for the matrices of the layers and AdamW for all else: embeddings, head, norm gains and biases.

    `params` are groups with a `weight_decay` each, as of `models.weight_decay_groups`; further arguments are AdamW's. Muon is
    PyTorch's (Jordan et al. 2024), its step scaled to the size of AdamW's (`match_rms_adamw`, Liu et al. 2025, arXiv
    2502.16982), so that learning rate and λ mean the same for both. Momentum and iterations are Muon's defaults. Matrices must
    be whole on each device. Both optimisers act on the groups and the state of this one, which a scheduler and a checkpoint
    see as those of any other. Raises ValueError for `params` that are no groups, and for a mixture of experts, whose matrices
    are one parameter of three dimensions, which Muon does not take.
    """

    def __init__(self, params: list[dict], *, model: PreTrainedModel, lr: float, weight_decay: float, **adamw: Any):
        embeddings = [module for module in model.modules() if isinstance(module, nn.Embedding)]
        rows = {id(module.weight) for module in (*embeddings, *embedding_and_head(model))}
        split: dict[bool, list[dict]] = {True: [], False: []}
        rows |= {id(p) for name, p in model.named_parameters() if name.endswith("A_log")}  # Mamba's rates, no matrix
        for group in params:
            if not isinstance(group, dict):
                raise ValueError("params are groups with a weight_decay each, see weight_decay_groups")
            given = list(group["params"])  # a generator is read once
            for of_muon, chosen in split.items():
                of_kind = [p for p in given if (p.dim() == 2 and id(p) not in rows) == of_muon]
                chosen += [{**group, "params": of_kind}] if of_kind else []
        experts = sum(p.numel() for group in split[False] for p in group["params"] if p.dim() == 3)
        if experts > sum(p.numel() for group in split[True] for p in group["params"]):
            raise ValueError(
                "most weights are matrices of experts, kept as one parameter, which Muon does not take; choose adamw"
            )
        settings = {"lr": lr, "weight_decay": weight_decay}
        self._muon = torch.optim.Muon(split[True], adjust_lr_fn="match_rms_adamw", **settings)
        self._adamw = torch.optim.AdamW(split[False], **settings, **adamw)
        super().__init__([*self._muon.param_groups, *self._adamw.param_groups], settings)
        self._share()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, which is AdamW's; Muon's own come by here when this optimiser is made."""
        super().add_param_group(param_group if "momentum" in param_group else {**self._adamw.defaults, **param_group})

    def _share(self) -> None:
        n = len(self._muon.param_groups)
        self._muon.param_groups, self._adamw.param_groups = self.param_groups[:n], self.param_groups[n:]
        self._muon.state = self._adamw.state = self.state

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_muon": self._muon, "_adamw": self._adamw}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # by which load_state_dict puts other groups and another state in place
        self._share()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._share()  # a group that was added since is AdamW's
        self._muon.step()
        self._adamw.step()
        return loss


def _closure_first(args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
    """Run the closure of a step before its decay, as AdamW does; the arguments that the step goes on with."""
    closure = args[1] if len(args) > 1 else kwargs.get("closure")
    if closure is None:
        return None
    with torch.enable_grad():
        loss = closure()
    return args[:1], {"closure": lambda: loss}


def embedding_and_head(model: PreTrainedModel) -> list[nn.Module]:
    """The embedding of a model and, if it has one, its head: what has a row [width] per token type.

    Raises ValueError if there is no embedding, or one with sparse gradients, which AdamW does not take.
    """
    try:
        embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    except (AttributeError, NotImplementedError) as error:
        raise ValueError(
            f"{type(model).__name__} does not tell its embedding; give the model itself, not a wrapper such as "
            "DistributedDataParallel, with the methods get_input_embeddings and get_output_embeddings"
        ) from error
    if not isinstance(getattr(embedding, "weight", None), Tensor):
        raise ValueError(f"{type(model).__name__} has no embedding whose rows could decay; use torch.optim.AdamW")
    if getattr(embedding, "sparse", False):
        raise ValueError("the embedding has sparse gradients, which AdamW does not take; build it with sparse=False")
    return [module for module in (embedding, head) if isinstance(getattr(module, "weight", None), Tensor)]


def whole_counts(counts: np.ndarray | Tensor) -> np.ndarray:
    """Training counts n_v [vocabulary] as float64. Raises ValueError for what are no counts, or none above 0."""
    try:
        n = np.asarray(counts.detach().cpu().double() if isinstance(counts, Tensor) else counts, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"counts: give a vector of one number per token id ({error})") from error
    if n.ndim != 1:
        raise ValueError(f"counts: give one number per token id, a vector and not an array of shape {n.shape}")
    odd = n[~(np.isfinite(n) & (n >= 0) & (n == np.round(n)))]
    if len(odd):
        raise ValueError(
            f"counts: {odd[0]:g} is not a whole number of occurrences; give how often each token id occurs in the training text, "
            "as np.bincount(ids) does, not relative frequencies or logarithms"
        )
    if not n.any():
        raise ValueError("counts: no token type occurs; frequencies and weights need counts above 0")
    return n


def frequency_scale(counts: np.ndarray | Tensor, exponent: float = 1.0) -> Tensor:
    """Strength s_v = min(1, n_v / n_95)^γ of the decay of each row [vocabulary], from training counts n_v.

    n_95 is the 95th percentile of the counts of types that occur, where the paper splits low from high frequency: frequent
    types decay in full, rare ones less, unseen ones not at all; γ = 0 is uniform. Raises ValueError without counts, for
    counts that are negative, NaN or no whole numbers (relative frequencies), and for γ < 0.
    """
    counts = whole_counts(counts)
    if not 0 <= exponent < np.inf:
        raise ValueError(f"exponent: {exponent} would let rare tokens decay most; give a number of 0 or more")
    relative = np.minimum(1.0, counts / np.percentile(counts[counts > 0], 95))
    return torch.from_numpy(relative**exponent).float()


def frequency_aware_adamw(
    model: PreTrainedModel,
    lr: float | Tensor,
    weight_decay: float,
    counts: np.ndarray | Tensor | None = None,
    exponent: float | None = None,
    decayed_parameters: str = "all",
    **adamw: Any,
) -> FrequencyAwareAdamW:
    """AdamW whose decay of embedding and head rows depends on how often their token occurs; a drop-in for any causal LM.

    Without `counts` a row decays in steps in which its token occurs; with training counts [vocabulary] by
    `frequency_scale(counts, exponent)`, 1 by default, rows beyond the counts (an embedding padded to a multiple of 64) as types that do
    not occur. The other parameters decay as `decayed_parameters` says (see `models.weight_decay_groups`); further arguments
    are AdamW's. Give it to Trainer as `optimizers=(optimizer, None)`. Embeddings must be whole on each device: data
    parallelism works, sharding of the embedding does not. See `FrequencyAwareAdamW` for what counts as seen. Raises
    ValueError for counts that are none (see `frequency_scale`) or more than the rows, for an exponent without counts, and
    for a model without embedding.
    """
    if exponent is not None and counts is None:
        raise ValueError(f"exponent={exponent} acts on counts; give counts of the training text too, or leave it out")
    n_rows, scale = len(embedding_and_head(model)[0].weight), None
    if counts is not None:
        n = whole_counts(counts)
        if len(n) > n_rows:
            raise ValueError(
                f"counts has {len(n):,} entries and the model's embedding {n_rows:,} rows; count the training text with the "
                "model's own tokenizer, or resize the embedding first"
            )
        scale = frequency_scale(np.pad(n, (0, n_rows - len(n))), 1.0 if exponent is None else exponent)
    groups, _ = weight_decay_groups(model, weight_decay, decayed_parameters, rows_apart=True)
    return FrequencyAwareAdamW(groups, model=model, row_scale=scale, lr=lr, weight_decay=weight_decay, **adamw)


def loss_weights(counts: np.ndarray | Tensor, exponent: float) -> Tensor:
    """Weights n_v^−α of the loss of each type [vocabulary] from training counts n_v, 0 for types that do not occur.

    Scaled to a mean of 1 over the training tokens, so that the learning rate keeps its meaning (Cui et al. 2019 discuss the
    choice of α: 1 is token-balanced, 0.5 square-root-balanced). `Objective(loss_weights(counts, 0.25))` is a training
    objective for `callback.TokenFrequencyCallback`. Raises ValueError without counts, for counts that are negative, NaN or
    no whole numbers (relative frequencies), and for an exponent that is negative or not finite.
    """
    if not 0 <= exponent < float("inf"):
        raise ValueError(f"exponent is {exponent}; give a number of 0 or more, 1 at most as a rule")
    n = torch.from_numpy(whole_counts(counts))
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


def _adding_to_the_stream(layer: nn.Module) -> list[nn.Module]:
    """The parts of a layer that add to its residual stream: with weights, no norm, not the first of two matrices in turn (OPT)."""
    parts = [part for part in layer.children() if not is_norm_layer(part) and any(True for _ in part.parameters())]
    following = [*parts[1:], None]
    return [a for a, b in zip(parts, following, strict=True) if not (type(a) is type(b) is nn.Linear)]


@contextmanager
def dropout(model: PreTrainedModel, probability: float) -> Iterator[None]:
    """Within the context, dropout of the embeddings and of what each part of each layer adds to the residual stream.

    As in GPT-2, by hooks, for architectures that have none. Active only while the model trains; 0 changes nothing.
    """
    if not probability:
        yield
        return

    def drop(module: nn.Module, _: Any, output: Any) -> Any:
        several = isinstance(output, (tuple, list))
        dropped = nn.functional.dropout(output[0] if several else output, probability, module.training)
        return type(output)((dropped, *output[1:])) if several else dropped

    layers = next(module for module in model.base_model.modules() if isinstance(module, nn.ModuleList))
    parts = [part for layer in layers for part in _adding_to_the_stream(layer)]
    handles = [module.register_forward_hook(drop) for module in (model.get_input_embeddings(), *parts)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
