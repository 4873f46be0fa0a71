"""Rare tokens watched in anyone's training: one line adds it to a transformers Trainer.

trainer = Trainer(model, args, train_dataset=data)
TokenFrequencyCallback(trainer)
trainer.train()                  # every log also holds token_balanced_loss and n_v_1-2_loss, n_v_3-8_loss, ...

In a loop of your own, over any model that gives logits, `token_loss.TokenSums` keeps the same record.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.state import GradientState
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, Trainer, TrainerCallback
from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss
from transformers.trainer_utils import get_last_checkpoint, unwrap_peft_model

from fairlm_utils import files
from fairlm_utils.frequency import IGNORE_INDEX, bin_index, bin_label
from fairlm_utils.lm.models import check_causal, forward, probe_ids
from fairlm_utils.lm.processes import n_processes
from fairlm_utils.lm.remedies import whole_counts
from fairlm_utils.lm.token_loss import (
    Objective,
    TokenLossFunction,
    TokenSums,
    loss_function,
    shifted_targets,
    token_cross_entropy,
)

#: What a checkpoint's folder keeps of the record: counts n_v [vocabulary], open_window [vocabulary, tokens and loss].
STATE = "token_frequency.safetensors"
_BALANCED = "token_balanced_loss"
#: Methods of the Trainer that are wrapped: the passes that are its own begin and end in them.
_WRAPPED = ("train", "training_step", "evaluation_loop", "prediction_step", "log")


class TokenFrequencyCallback(TrainerCallback):
    """Adds token-balanced loss and loss by frequency bin to what a Trainer logs, in training and at evaluation.

    Whatever the Trainer reports to (TensorBoard, ...), its `log_history` and the metrics of `evaluate()` and `predict()`
    hold, beside `loss` and `eval_loss` and of the same batches, in nats:

    - `token_balanced_loss`: mean over the token types that occurred of each type's mean loss;
    - `n_v_LOW-HIGH_loss`: the same over the types whose count n_v lies in a powers-of-3 bin, `n_v_0_loss` unseen types.
      A bin of which no type occurred is left out.

    At evaluation the names have the prefix of the Trainer (`eval_token_balanced_loss`), and so can choose the best model
    by `metric_for_best_model`, which minimises them; where its bin has no type in a pass, that pass's value is NaN, and
    never the best. `counts` [vocabulary] are training counts n_v; without them they are counted in the training stream as
    it goes, so that bins fill with time. Each checkpoint keeps counts and the open window in `token_frequency.safetensors`,
    and a resumed run goes on from them.

    Recorded are the forward passes of the Trainer's own training and prediction steps, and no others: those that are given
    labels, else the first of the step with the labels of its batch. A model that computes its own loss, transformers' for
    causal language models, gets one of the same value within the step that keeps each token's loss, without a second pass
    over the logits; where another computes it (label_smoothing_factor, compute_loss_func, a compute_loss of the Trainer's
    own) the record is taken from the logits, or from the log-probabilities of TRL's fused head. Accumulation, padding,
    packing, autocast, compiled and PEFT models, model_init and data parallelism are correct. `stop()` ends it.

    An `objective` replaces the loss that is minimised (and logged as `loss` in training), such as `Objective(loss_weights(
    counts, 0.25))` of `remedies`; everything else is recorded of the plain cross-entropy.

    Raises ValueError for a model that is not a causal language model with next-token cross-entropy as its own loss, for
    settings under which nothing can be recorded or the objective has no effect, for counts that are not the vocabulary's,
    and for a `metric_for_best_model` of the names above that does not exist or would be maximised. Raises RuntimeError in
    the first step, before the optimiser's, if the Trainer turns out to compute its loss without logits or without the
    objective. Each message names what to change.
    """

    def __init__(self, trainer: Trainer, counts: np.ndarray | None = None, objective: Objective | None = None):
        if any(isinstance(c, TokenFrequencyCallback) for c in trainer.callback_handler.callbacks):
            raise ValueError("this Trainer has a TokenFrequencyCallback already; call its stop() before making another")
        self.trainer, self.objective, self.fixed = trainer, objective, counts is not None
        self.model: PreTrainedModel | None = None
        self.counts = np.zeros(0, dtype=np.int64) if counts is None else whole_counts(counts).astype(np.int64)
        self._n_given = len(self.counts)
        self._step: _Step | None = None
        self._hook: Any = None
        self._checkpoint: str | None = None
        self._confirmed = False
        self.evaluation: _EvaluationSums | None = None  # of the evaluation under way
        self._check_settings()
        self._attach()
        trainer.callback_handler.callbacks.insert(0, self)
        self._before = {name: vars(trainer).get(name) for name in _WRAPPED}
        for name in _WRAPPED:
            setattr(trainer, name, partial(self._if_in_force, getattr(self, f"_{name}"), getattr(trainer, name)))

    def stop(self) -> None:
        """End the record: give the Trainer its methods and the model its own loss function back."""
        for name, before in self._before.items():
            if getattr(vars(self.trainer).get(name), "func", None) != self._if_in_force:
                continue  # someone has wrapped ours, which does nothing any more
            delattr(self.trainer, name)
            if before is not None:
                setattr(self.trainer, name, before)
        self._before = {}
        self._hook.remove()
        handler = self.trainer.callback_handler  # `add_callback` of what has added itself makes it twice
        handler.callbacks = [c for c in handler.callbacks if c is not self]

    def _if_in_force(self, wrapped: Callable, method: Callable, *args: Any, **kwargs: Any) -> Any:
        """The wrapped method, or the Trainer's own after its `remove_callback`."""
        if any(c is self for c in self.trainer.callback_handler.callbacks):
            return wrapped(method, *args, **kwargs)
        return method(*args, **kwargs)

    # What the Trainer is and may be

    def _attach(self) -> None:
        """Watch the model that the Trainer has now: `model_init` makes a new one for every train()."""
        trainer = self.trainer
        sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
        if self.model is not None and sharded and trainer.model_init is None:
            return  # wrapped and cut into pieces by now, around the same module
        model = unwrap_peft_model(trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False))
        if model is not self.model:
            _check_model(model, self.objective)
        n_rows = model.get_input_embeddings().weight.shape[0]
        if self._n_given > n_rows:
            raise ValueError(f"counts has {self._n_given:,} entries and the model {n_rows:,} token types")
        if model is not self.model:
            if self._hook is not None:
                self._hook.remove()
            self.model = model
            self._hook = model.register_forward_hook(_Hook(self), with_kwargs=True)
            self._function = _Watched(self)
        if len(self.counts) != n_rows or not hasattr(self, "training"):  # made, or the embedding was resized
            self.counts = np.pad(self.counts[:n_rows], (0, max(0, n_rows - len(self.counts))))
            self.training = TokenSums(n_rows, model.device, n_quantities=1)

    def _check_settings(self) -> None:
        args, trainer = self.trainer.args, self.trainer
        if args.n_gpu > 1:
            raise ValueError(
                f"one process drives {args.n_gpu} devices (nn.DataParallel), whose copies of the model cannot be recorded; "
                "start the script with torchrun, or make one device visible with CUDA_VISIBLE_DEVICES"
            )
        if args.use_liger_kernel and (args.liger_kernel_config or {}).get("fused_linear_cross_entropy", True):
            raise ValueError(
                "use_liger_kernel computes the loss without logits, so that no token's loss can be recorded; set "
                "liger_kernel_config={'fused_linear_cross_entropy': False}, which keeps the other kernels"
            )
        if self.objective is not None:
            if trainer.compute_loss_func is not None:
                raise ValueError(
                    "compute_loss_func computes the loss, so that objective has no effect; give one of them"
                )
            if trainer.label_smoother is not None:
                raise ValueError(
                    f"label_smoothing_factor={args.label_smoothing_factor:g} computes the loss, so that objective has no "
                    "effect; set it to 0 and give Objective(label_smoothing=...)"
                )
            if any(c.__module__.split(".")[0] == "trl" for c in type(trainer).__mro__):
                raise ValueError(
                    f"{type(trainer).__name__} computes the loss from log-probabilities of its own, so that objective has "
                    "no effect; leave it out, or train with transformers' Trainer"
                )
        if (metric := args.metric_for_best_model) is not None:
            self._check_metric(metric, args.greater_is_better)

    def _check_metric(self, metric: str, greater_is_better: bool | None) -> None:
        if old := re.search(r"loss_n_v_([0-9-]+)$", metric):
            raise ValueError(
                f"metric_for_best_model={metric!r} would be maximised; the name that is minimised is "
                f"'eval_n_v_{old[1]}_loss'"
            )
        found = re.search(rf"(?:^|_)({_BALANCED}|token_balanced|n_v_[0-9,–-]+(?:_loss)?)$", metric)
        if not found:
            return  # not one of ours
        bins = {_name(k): k for k in range(-1, 40)}
        if found[1] != _BALANCED and found[1] not in bins:
            raise ValueError(
                f"metric_for_best_model={metric!r} is no name that is logged; those are eval_{_BALANCED}, eval_{_name(0)}, "
                f"eval_{_name(1)}, eval_{_name(2)} and so on by powers of 3, and eval_{_name(-1)} for types not seen in training"
            )
        if self.fixed and found[1] in bins and bins[found[1]] not in (-1, *bin_index(self.counts)):
            raise ValueError(f"metric_for_best_model={metric!r}: counts has no type in this bin; choose another")
        if greater_is_better:
            raise ValueError(
                f"greater_is_better=True would choose the largest {metric}, a loss; leave greater_is_better out"
            )

    # The Trainer's methods, wrapped

    def _train(self, train: Callable, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        self._check_settings()
        if resume_from_checkpoint is True:
            self._checkpoint = get_last_checkpoint(self.trainer.args.output_dir)
        else:
            self._checkpoint = resume_from_checkpoint or None
        try:
            return train(resume_from_checkpoint, *args, **kwargs)
        finally:
            self._checkpoint = None

    def _training_step(self, training_step: Callable, model: Any, inputs: dict, *args: Any, **kwargs: Any) -> Tensor:
        with self._own_step(self.training, inputs, training=True) as step:
            loss = training_step(model, inputs, *args, **kwargs)
        if not self._confirmed:
            self._confirm(step)
        return loss

    def _confirm(self, step: _Step) -> None:
        if not step.n_passes:
            raise RuntimeError(f"no token's loss was seen in the first training step: {step.why or _NO_PASS}")
        if self.objective is not None and not self._function.minimised:
            raise RuntimeError(
                f"objective has no effect: {type(self.trainer).__name__} minimises a loss that the model does not compute; "
                "let its compute_loss return model(**inputs).loss, or leave objective out"
            )
        self._confirmed = True

    def _evaluation_loop(
        self, evaluation_loop: Callable, dataloader: Any, description: str, prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval",
    ) -> Any:  # fmt: skip
        self._attach()
        own = _EvaluationSums(len(self.counts), self.training.values.device, n_quantities=1)
        outer, self.evaluation = self.evaluation, own  # one may run within another, in compute_metrics say
        try:
            output = evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        finally:
            self.evaluation = outer
        values, counts = own.read(over_processes=True), self.counts
        if not self.fixed:  # n_v up to now, the open window included
            counts = counts + self.training.read(over_processes=True)[:, 0].astype(np.int64)
        added = loss_by_frequency(values, counts)
        best = self.trainer.args.metric_for_best_model
        if best is not None and f"{metric_key_prefix}_loss" in output.metrics:
            name = f"eval_{best.removeprefix('eval_')}".removeprefix(f"{metric_key_prefix}_")
            if name == _BALANCED or name in map(_name, range(-1, 40)):
                added.setdefault(name, float("nan"))  # no type of the bin in this pass: not the best, and no KeyError
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in added.items()})
        return output

    def _prediction_step(self, prediction_step: Callable, model: Any, inputs: dict, *args: Any, **kwargs: Any) -> tuple:
        if self.evaluation is None:  # not of the Trainer's evaluation
            return prediction_step(model, inputs, *args, **kwargs)
        with self._own_step(self.evaluation, inputs, training=False) as step:
            result = prediction_step(model, inputs, *args, **kwargs)
        if result[0] is not None and not step.n_passes:
            raise RuntimeError(f"no token's loss was seen at evaluation: {step.why or _NO_PASS}")
        return result

    def _log(self, log: Callable, logs: dict[str, float], start_time: float | None = None, **kwargs: Any) -> None:
        own = start_time is not None  # given by the Trainer for a training window; logs of the user's have none
        if own and {"loss", "learning_rate"} <= logs.keys():
            values = self.training.read(over_processes=True)
            self.training.reset()
            if not self.fixed:
                self.counts += values[:, 0].astype(np.int64)
            logs.update(loss_by_frequency(values, self.counts))
        log(logs, *([start_time] if own else []), **kwargs)

    @contextmanager
    def _own_step(self, sums: TokenSums, inputs: dict, training: bool) -> Iterator[_Step]:
        """Within the context the model's forward passes are those of a step of the Trainer, and recorded."""
        before, self._step = self._step, (step := _Step(sums, inputs, training))
        try:
            with loss_function(self.model, self._function if _has_library_loss(self.model) else None):
                yield step
        finally:
            self._step = before
        step.close()

    # Events

    def on_train_begin(self, args, state, control, **_):
        self._attach()
        self.training.reset()
        self._confirmed, self._function.minimised = False, False
        if not self.fixed:
            self.counts[:] = 0
        if self._checkpoint:
            self._resume(Path(self._checkpoint) / STATE, state.is_world_process_zero)

    def on_save(self, args, state, control, **_):
        window = self.training.read(over_processes=True)  # every process takes part
        folder = self.trainer._get_output_dir(getattr(self.trainer, "_trial", None))
        path = Path(folder) / f"checkpoint-{state.global_step}" / STATE
        if args.should_save and path.parent.is_dir():
            with files.atomic_path(path) as temporary:
                window, given = np.ascontiguousarray(window), np.array([self.fixed])
                save_file({"counts": self.counts, "open_window": window, "given": given}, temporary)

    def _resume(self, path: Path, is_main_process: bool) -> None:
        if not path.exists():
            if is_main_process:
                since = "the first log has" if self.fixed else "n_v and the first log have"
                warnings.warn(f"{path} does not exist: {since} what comes after this checkpoint alone", stacklevel=2)
            return
        try:
            state = load_file(path)
            counts, window = state["counts"], state["open_window"]
        except (SafetensorError, KeyError) as error:
            raise ValueError(f"{path}: cannot be read ({error}); remove the file to count anew") from error
        if counts.shape != self.counts.shape or window.shape != (len(counts), 2):
            raise ValueError(
                f"{path}: counts of {len(counts):,} types, and the model has {len(self.counts):,}; resume with the model "
                "and tokenizer of the checkpoint, or remove the file to count anew"
            )
        if not self.fixed and state.get("given", np.array([False]))[0]:
            raise ValueError(
                f"{path}: its counts were given to the callback; give them again, or remove the file to count the stream anew"
            )
        if not self.fixed:
            self.counts = counts.copy()
        if is_main_process:  # the window is summed over processes: it belongs to one of them
            self.training.values[:-1] = torch.from_numpy(window).to(self.training.values)


_NO_PASS = "the Trainer did not call its model; give the callback the Trainer that trains it"


class _Step:
    """One step of the Trainer: what its forward passes of the model add to the sums.

    A pass with labels adds at once. Of those without, because the Trainer has taken the labels to compute the loss itself,
    the first over the batch's own tokens, else the first of all, is kept for the end, and added if none had any.
    """

    def __init__(self, sums: TokenSums, inputs: dict, training: bool):
        self.sums, self.labels, self.ids, self.training = sums, inputs.get("labels"), inputs.get("input_ids"), training
        self.n_passes, self.why, self.by_the_model = 0, "", False
        self.kept: tuple[Tensor, Tensor, int] | None = None
        self.kept_own = False

    def add(self, targets: Tensor, loss: Tensor, blocks: int = 1) -> None:
        """Add what the model's own loss function has computed; the hook of the same pass has nothing to do."""
        self.by_the_model = True
        if not self.training or torch.is_grad_enabled():
            self._add(targets, loss, blocks)

    def _add(self, targets: Tensor, loss: Tensor, blocks: int) -> None:
        self.n_passes += 1
        self.sums.add(targets, loss, blocks=blocks)

    def see(self, given: dict[str, Any], output: Any) -> None:
        """Record a finished forward pass from its outputs."""
        done, self.by_the_model = self.by_the_model, False
        if done or (self.training and not torch.is_grad_enabled()):
            return
        labels, shifted = given.get("labels"), given.get("shift_labels")
        labelled = labels is not None or shifted is not None
        own = not labelled and not self.kept_own and _same(given.get("input_ids"), self.ids)
        if not labelled and self.kept is not None and not own:
            return
        found = _token_losses(output, labels if labelled else self.labels, shifted, labelled)
        if isinstance(found, str):
            self.why = found
        elif labelled:
            self._add(*found)
        else:
            self.kept, self.kept_own = found, own

    def close(self) -> None:
        if self.kept is not None and not self.n_passes:
            self._add(*self.kept)


def _same(ids: Any, others: Any) -> bool:
    if not (isinstance(ids, Tensor) and isinstance(others, Tensor)):
        return False
    return ids is others or (ids.shape == others.shape and bool(torch.equal(ids, others.to(ids.device))))


@torch.no_grad()
def _token_losses(output: Any, labels: Any, shifted: Any, labelled: bool) -> tuple[Tensor, Tensor, int] | str:
    """Targets and losses in nats, each [positions], and number of blocks of a model's output, or why there are none."""
    if labels is None and shifted is None:
        return "the batches have no labels; use a collator that makes them (DataCollatorForLanguageModeling, mlm=False)"
    fields: dict[str, Any] = output if isinstance(output, dict) else {"logits": output[int(labelled)]}
    logits: Any = fields.get("logits")
    log_probs: Any = fields.get("log_probs")
    if log_probs is not None:  # of the targets alone, by TRL's fused head
        predicted, targets = log_probs, labels[:, 1:] if shifted is None else shifted
    elif logits is not None:
        predicted, targets = logits[..., 0], shifted_targets(labels).view(labels.shape) if shifted is None else shifted
    else:
        return (
            f"{type(output).__name__} has no logits: a fused linear cross-entropy computes the loss; switch it off where "
            "it is put into the model"
        )
    if targets.shape != predicted.shape:
        return (
            f"targets {tuple(targets.shape)} are not those of predictions {tuple(predicted.shape)}; leave the loss to the "
            "model, which knows how they go together"
        )
    targets = targets.reshape(-1).to(predicted.device)
    if log_probs is not None:
        loss = torch.where(targets == IGNORE_INDEX, 0.0, -log_probs.reshape(-1).float())
    else:
        loss = token_cross_entropy(logits.detach().reshape(-1, logits.shape[-1]), targets, with_accuracy=False)[1]
    return targets, loss, len(predicted)


class _Watched(TokenLossFunction):
    """The model's loss function within a step, which notices whether what it returns is minimised."""

    def __init__(self, callback: TokenFrequencyCallback):
        super().__init__(callback.model, lambda: callback._step, callback.objective, with_accuracy=False)
        self.minimised = False

    @torch.compiler.disable
    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        total = super().__call__(*args, **kwargs)
        if self.objective is not None and self._trains() and not self.minimised and total.requires_grad:
            total.register_hook(self._note)
        return total

    def _trains(self) -> bool:
        """Whether the step is one of training, which some do in evaluation mode, without dropout."""
        step = self.sums()
        return step is not None and step.training

    def _note(self, _: Tensor) -> None:
        self.minimised = True


class _Hook:
    """Forward hook of the model that shows a step its passes. Copies and pickles of the model carry one that does nothing."""

    def __init__(self, callback: TokenFrequencyCallback | None = None):
        self.callback = callback

    @torch.compiler.disable
    def __call__(self, module: torch.nn.Module, _: tuple, given: dict[str, Any], output: Any) -> None:
        if self.callback and self.callback._step is not None and module is self.callback.model:
            self.callback._step.see(given, output)

    def __reduce__(self) -> tuple:
        return _Hook, ()


class _EvaluationSums(TokenSums):
    """Sums that leave out what the last batch of several processes repeats to be full, as the Trainer's metrics do."""

    def add(self, targets: Tensor, *quantities: Tensor, blocks: int = 1) -> None:
        state = GradientState()
        if n_processes() > 1 and state.end_of_dataloader and state.remainder > 0:
            rows = torch.arange(blocks, device=targets.device) + torch.distributed.get_rank() * blocks
            kept = (rows < state.remainder).repeat_interleave(len(targets) // blocks)
            targets = torch.where(kept, targets, IGNORE_INDEX)
        super().add(targets, *quantities)


def _has_library_loss(model: PreTrainedModel) -> bool:
    own = vars(model).get("_loss_function") or LOSS_MAPPING.get(getattr(model, "loss_type", None), ForCausalLMLoss)
    return own is ForCausalLMLoss or isinstance(own, TokenLossFunction)


@torch.no_grad()
def _check_model(model: Any, objective: Objective | None = None) -> None:
    """Raise ValueError unless a model is a causal language model whose own loss is next-token cross-entropy, as tried.

    Also if an `objective` is of another number of token types.
    """
    name = type(model).__name__
    if not isinstance(model, PreTrainedModel):
        raise ValueError(
            f"{name} is not a transformers model; record it with token_loss.TokenSums in a loop of your own"
        )
    if getattr(model.config, "is_encoder_decoder", False):
        check_causal(model)
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        n_rows, ids = model.get_input_embeddings().weight.shape[0], probe_ids(model)[None]
        output = forward(model, input_ids=ids)
        logits = output.get("logits")
        if logits is None or logits.shape[:-1] != ids.shape or logits.shape[-1] <= n_rows // 2:
            raise ValueError(
                f"{name} does not predict a token at each position; only causal language models are recorded"
            )
        labels = ids % logits.shape[-1]  # some embed more than they predict
        labels[0, 2:4] = IGNORE_INDEX
        check_causal(model)
        own = forward(model, input_ids=ids, labels=labels)
        with loss_function(model, TokenLossFunction(model, lambda: None)):
            ours = forward(model, input_ids=ids, labels=labels)
    except (AttributeError, TypeError, KeyError, IndexError, NotImplementedError) as error:
        raise ValueError(
            f"{name} does not run on token ids alone, as a causal language model does ({error})"
        ) from error
    finally:
        for module, mode in modes.items():
            module.training = mode
    if objective is not None:
        objective.loss(logits[0], shifted_targets(labels), 1.0)
    if own.get("loss") is None:
        return  # the Trainer's to compute
    expected = token_cross_entropy(logits[0], shifted_targets(labels), 1 / (labels[0, 1:] >= 0).sum())[0]
    loss, aux_loss = own["loss"], own.get("aux_loss")
    aux = 0.0 if aux_loss is None else loss - expected  # the router's part is the model's to add
    # by rounding; weights just made tell losses apart by little more
    eps = max(1e-4, 4 * torch.finfo(loss.dtype).eps)
    if not all(abs(x.float() - aux - expected) <= eps * (1 + abs(expected)) for x in (loss, ours["loss"])):
        advice = "Record it in a loop of your own, with token_loss.TokenSums"
        if "_loss_function" in vars(model):
            advice = "Take the loss_function that was set off the model and give it to the Trainer as compute_loss_func"
        raise ValueError(
            f"the loss of {name} itself is {loss:.4f} where the cross-entropy of the next token is {expected:.4f}: it "
            f"minimises something else, which is not replaced. {advice}"
        )


def _name(index: int) -> str:
    """Name of the loss of a bin; it ends in _loss, so that transformers minimises it."""
    return f"n_v_{bin_label(index).replace('–', '-').replace(',', '')}_loss"


def loss_by_frequency(values: np.ndarray, counts: np.ndarray) -> dict[str, float]:
    """Token-balanced loss and mean loss over the types of each bin of `counts`, in nats, of sums [vocabulary, ≥ 2].

    `values` are a `TokenSums`' (tokens and summed loss of each type), `counts` [vocabulary] training counts n_v: those of
    the sums themselves, added up over the training so far, where there are no others. Raises ValueError if they differ in
    length.

    >>> loss_by_frequency(np.array([[2, 6.0], [1, 1.0], [0, 0.0]]), np.array([1, 5, 9]))
    {'token_balanced_loss': 2.0, 'n_v_1-2_loss': 3.0, 'n_v_3-8_loss': 1.0}
    """
    counts = np.asarray(counts)
    if len(values) != len(counts):
        raise ValueError(f"sums of {len(values):,} token types and counts of {len(counts):,}; give one count per type")
    seen = values[:, 0] > 0
    if not seen.any():
        return {}
    loss, bins = values[seen, 1] / values[seen, 0], bin_index(counts[seen])
    by_bin = {_name(k): float(loss[bins == k].mean()) for k in np.unique(bins)}
    return {_BALANCED: float(loss.mean()), **by_bin}
