"""Training one model with transformers' Trainer, recording every token type's loss and accuracy on the way."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.numpy import load_file, save_file
from torch.utils.data import Dataset
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerCallback, TrainingArguments, get_scheduler

from fairlm_utils import files
from fairlm_utils.frequency import target_counts
from fairlm_utils.lm import remedies
from fairlm_utils.lm.models import STATE_BYTES, build_model, n_rows, physical_memory, weight_decay_groups
from fairlm_utils.lm.processes import device, is_main_process, is_out_of_memory, n_processes
from fairlm_utils.lm.token_loss import TokenSums, record_token_loss
from fairlm_utils.lm.tokenization import TokenizedCorpus, blocks, n_ids
from fairlm_utils.params import ParameterError, TrainingParams, epochs, time_scale

CURVES = "learning_curves.safetensors"
_COMPLETE = "complete.json"


class TrainingDiverged(files.UserError, RuntimeError):
    """The loss became NaN or infinite; the message says by which step and what to lower."""


class Blocks(Dataset):
    """Blocks of token ids as Trainer wants them: input_ids and labels [blocks, context], attention_mask where padded.

    `lengths` [blocks] are the tokens of each block before its padding, None if no block is padded: ids do not tell, for
    the pad token of many models is their end-of-text token.
    """

    def __init__(self, input_ids: np.ndarray, labels: np.ndarray, lengths: np.ndarray | None = None):
        self.input_ids, self.labels = torch.from_numpy(input_ids), torch.from_numpy(labels)
        self.attention_mask = None
        if lengths is not None and (lengths < input_ids.shape[1]).any():
            self.attention_mask = torch.from_numpy(lengths)[:, None] > torch.arange(input_ids.shape[1])

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        item = {"input_ids": self.input_ids[index], "labels": self.labels[index]}
        if self.attention_mask is not None:
            item["attention_mask"] = self.attention_mask[index].long()
        return item


def train_blocks(p: TrainingParams, corpus: TokenizedCorpus) -> Blocks:
    """The blocks a run trains on."""
    return _blocks(p, corpus, corpus.train, corpus.train_starts, p.max_train_blocks)


def heldout_blocks(p: TrainingParams, corpus: TokenizedCorpus) -> Blocks:
    """The blocks of held-out documents a run is evaluated on."""
    return _blocks(p, corpus, corpus.heldout, corpus.heldout_starts, p.max_heldout_blocks)


def _blocks(p: TrainingParams, corpus: TokenizedCorpus, ids: np.ndarray, starts: np.ndarray, n: int) -> Blocks:
    bos = corpus.meta.get("bos", False)
    return Blocks(*blocks(ids, starts, p.context, p.packing, corpus.tokenizer.pad_token_id, n, bos))


def optimizer_and_schedule(
    p: TrainingParams, groups: list[dict], adam: Callable[..., torch.optim.Optimizer] | None = None
) -> tuple[torch.optim.Optimizer, Any]:
    """AdamW over explicit parameter groups, by the form of its decay, and its learning-rate schedule.

    `adam` makes another of the family, from the same arguments.
    """
    forms = {"decoupled": torch.optim.AdamW, "cautious": remedies.CautiousAdamW, "l2": torch.optim.Adam}
    betas = (p.adam_beta1, p.adam_beta2)
    optimizer = (adam or forms[p.weight_decay_form])(
        groups, lr=p.learning_rate, betas=betas, eps=p.adam_epsilon, weight_decay=p.weight_decay, fused=True
    )
    return optimizer, get_scheduler(p.lr_schedule, optimizer, p.warmup_steps, p.steps)


class RecordTokenLoss(TrainerCallback):
    """Keeps sums of loss and accuracy by token type over windows of steps, and saves them with every checkpoint."""

    def __init__(self, sums: TokenSums, window_steps: int):
        self.sums, self.window_steps = sums, window_steps
        self.steps: list[int] = []
        self.windows: list[np.ndarray] = []

    def on_step_end(self, args, state, control, **_):
        if state.global_step % self.window_steps == 0 or state.global_step == state.max_steps:
            self._close_window(state.global_step)
        if state.global_step == state.max_steps:  # Trainer would go on from a checkpoint of the last step with one more
            control.should_save = False

    def _close_window(self, step: int) -> None:
        window = self.sums.read(over_processes=True)
        if not np.isfinite(window).all():
            raise TrainingDiverged(
                f"the training loss is not finite between steps {self.steps[-1] if self.steps else 0} and {step}; lower learning_rate "
                "or weight_decay, or add warmup_steps. The last good checkpoint and the curves up to it are kept"
            )
        self.sums.reset()
        self.steps.append(step)
        self.windows.append(window)

    def on_save(self, args, state, control, **_):
        open_window = self.sums.read(over_processes=True)  # every process takes part
        if args.should_save:
            directory = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            self.save(directory / CURVES, open_window)
            # a sharded checkpoint is written by all processes, not all of which are done by now
            sha256 = files.digests(directory, [] if args.fsdp else ["*"])
            files.write_json(directory / _COMPLETE, {"step": state.global_step, "sha256": sha256})
            # the newest may be cut short by a crash, the one before it is whole; Trainer's own limit goes by the clock
            for old in checkpoints(directory.parent)[2:]:
                shutil.rmtree(old, ignore_errors=True)

    def save(self, path: Path, open_window: np.ndarray | None = None) -> None:
        """Write the closed windows, and the open one if given, as safetensors."""
        arrays = {"steps": np.array(self.steps, dtype=np.int64), "windows": np.array(self.windows, dtype=np.float64)}
        if open_window is not None:
            arrays["open_window"] = open_window
        with files.atomic_path(path) as temporary:
            save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, temporary)

    def resume(self, path: Path) -> None:
        """Go on from what `save` wrote; the open window, which is summed over processes, belongs to the first one."""
        arrays = load_file(path)
        self.steps, self.windows = arrays["steps"].tolist(), list(arrays["windows"])
        if is_main_process():
            self.sums.values[:-1] = torch.from_numpy(arrays["open_window"])


class _Progress(TrainerCallback):
    """One progress bar over the steps, with time left; it vanishes when training ends."""

    def on_train_begin(self, args, state, control, **_):
        self.bar = files.progress(total=state.max_steps, initial=state.global_step, unit="step", desc="training")

    def on_step_end(self, args, state, control, **_):
        self.bar.update(state.global_step - self.bar.n)

    def on_train_end(self, args, state, control, **_):
        self.bar.close()


class _Trainer(Trainer):
    """Trainer with our optimiser and schedule, made when it asks for them: FSDP takes none that are made before."""

    def __init__(self, p: TrainingParams, n_train: np.ndarray, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.p, self.n_train = p, n_train

    def create_optimizer(self, model: PreTrainedModel | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:  # type: ignore[has-type]
            p, model = self.p, model or self.model
            by_row = p.embedding_decay != "uniform"
            groups, _ = weight_decay_groups(model, p.weight_decay, p.decayed_parameters, rows_apart=by_row)
            by_counts, lazy = (p.embedding_decay == name for name in ("frequency", "lazy"))
            scale = remedies.frequency_scale(self.n_train, p.frequency_exponent) if by_counts else None
            adam: Callable[..., torch.optim.Optimizer] | None = None
            if by_row:
                adam = partial(remedies.FrequencyAwareAdamW, model=model, row_scale=scale, lazy=lazy)
            elif p.optimizer == "muon":
                adam = partial(remedies.MuonWithAdamW, model=model)
            try:
                self.optimizer, self.lr_scheduler = optimizer_and_schedule(p, groups, adam)
            except ValueError as error:  # of an architecture
                raise ParameterError(
                    f"optimizer: {p.optimizer} and {p.model!r} do not go together ({error})"
                ) from error
        return self.optimizer


def make_trainer(
    p: TrainingParams, model: PreTrainedModel, data: Blocks, output_dir: str | Path, callbacks: list[TrainerCallback]
) -> Trainer:
    """The Trainer of a run: explicit optimiser groups, no defaults of its own that would change results."""
    args = TrainingArguments(
        output_dir=str(output_dir),
        max_steps=p.steps,
        per_device_train_batch_size=p.batch_size // n_processes(),
        gradient_accumulation_steps=p.gradient_accumulation_steps,
        max_grad_norm=p.max_grad_norm,
        bf16=p.dtype == "bfloat16",
        fsdp=p.sharded and n_processes() > 1,
        seed=p.seed,
        data_seed=p.seed,
        use_cpu=device(p) == "cpu",
        save_strategy="steps",
        save_steps=p.checkpoint_steps,
        logging_strategy="no",
        logging_nan_inf_filter=False,  # it would wait for the device at every step; windows are checked instead
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=device(p) != "cpu",
    )
    n_train = target_counts(data.labels.numpy(), n_rows(model))
    trainer = _Trainer(p, n_train, model, args, train_dataset=data, callbacks=callbacks)
    trainer.remove_callback(PrinterCallback)
    return trainer


def fit(
    p: TrainingParams, corpus: TokenizedCorpus, directory: Path, callbacks: Sequence[TrainerCallback] = ()
) -> str | None:
    """Train the model of `p` in a folder, from its last whole checkpoint there on, and write model/ and learning curves.

    Returns the device it was trained on; None if one of `callbacks` stopped it early, or if another process writes.
    Raises RunError for too little memory or too full a disk, TrainingDiverged if the loss is not finite.
    """
    model = build_model(p.model, n_ids(corpus.tokenizer), p.context, p.seed)
    state = STATE_BYTES * model.num_parameters() / (n_processes() if p.sharded else 1)
    if device(p) == "cpu" and state > physical_memory():
        raise files.RunError(
            f"model: training {p.model!r} takes {state / 1e9:,.1f} GB for weights, gradients and AdamW's moments, and this "
            f"machine has {physical_memory() / 1e9:,.1f} GB; choose a smaller model, or a device that holds it"
        )
    if is_main_process():
        files.check_space(
            directory, _disk_bytes(p, model, len(checkpoints(directory / "checkpoints"))), "a run of this model"
        )
    if p.torch_compile != "none":  # in place, so that names of weights stay; head and loss remain as they are
        torch.compiler.reset()  # code compiled for earlier models of this process counts towards a limit
        model.base_model.compile(mode=p.torch_compile)
    sums = TokenSums(n_rows(model), device(p))
    recorder = RecordTokenLoss(sums, p.window_steps)
    shown = [_Progress()] if is_main_process() else []
    folder = directory / "checkpoints"
    trainer = make_trainer(p, model, train_blocks(p, corpus), folder, [recorder, *shown, *callbacks])
    checkpoint = last_whole_checkpoint(folder)
    if checkpoint:
        print(f"continuing from step {checkpoint.name.removeprefix('checkpoint-')}")
        recorder.resume(checkpoint / CURVES)
    minimised = remedies.objective(p, trainer.n_train)
    with record_token_loss(model, sums, minimised), remedies.dropout(model, p.dropout), _explained(p):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if trainer.state.global_step < p.steps:
        return None
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)  # whole, gathered from all processes if sharded
    if not is_main_process():
        return None
    recorder.save(directory / CURVES)
    save_model(model, weights, corpus, directory / "model")
    return str(trainer.args.device)


def _disk_bytes(p: TrainingParams, model: PreTrainedModel, n_there: int) -> float:
    """Bytes that the weights of a run, its learning curves and the checkpoints beside those already there take at most.

    A checkpoint holds the weights, the two moments of AdamW and the curves; of two a third is written before one goes.
    """
    weights = 4 * model.num_parameters()
    curves = 3 * 8 * n_rows(model) * math.ceil(p.steps / p.window_steps)
    n_checkpoints = min(3, (p.steps - 1) // p.checkpoint_steps)
    return weights + curves + max(0, n_checkpoints - n_there) * (3 * weights + curves)


def save_model(model: PreTrainedModel, weights: dict[str, torch.Tensor], corpus: TokenizedCorpus, path: Path) -> None:
    """Write a model with these weights, and the tokenizer, to a folder that is there whole or not at all."""
    temporary = path.with_name(".model.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(path, ignore_errors=True)  # left by a start that was cut short before provenance.json
    tied = model.all_tied_weights_keys  # a gathered copy of a tied weight is no longer the same tensor
    model.save_pretrained(temporary, state_dict={k: v for k, v in weights.items() if k not in tied})
    corpus.tokenizer.save_pretrained(temporary)
    os.replace(temporary, path)


def checkpoints(directory: Path) -> list[Path]:
    """The checkpoints in a folder, the one of the latest step first."""
    found = [p for p in directory.glob("checkpoint-*") if p.name.removeprefix("checkpoint-").isdecimal()]
    return sorted(found, key=lambda p: int(p.name.removeprefix("checkpoint-")), reverse=True)


def last_whole_checkpoint(directory: Path) -> Path | None:
    """The newest checkpoint that was written completely and is undamaged; others that are newer are removed."""
    for path in checkpoints(directory):
        try:
            if (path / _COMPLETE).exists():
                files.verify(path, files.read_json(path / _COMPLETE).get("sha256", {}), "the one before it is used")
                return path
        except files.RunError as error:
            print(error)
        shutil.rmtree(path, ignore_errors=True)
    return None


@contextmanager
def _explained(p: TrainingParams) -> Iterator[None]:
    """Within the context, running out of memory and a model that cannot be compiled say which parameters to change."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise files.RunError(
                f"torch_compile: {p.model!r} cannot be compiled here ({files.first_line(error)}); set torch_compile: none"
            ) from error
        if not is_out_of_memory(error):
            raise
        raise files.RunError(
            f"out of memory on {device(p)} at batch_size {p.batch_size}: halve batch_size and double "
            "gradient_accumulation_steps, which changes results by rounding alone; if one block does not fit, lower "
            "context or share the model over several devices (sharded, with torchrun)"
        ) from error


def load_curves(directory: str | Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Learning curves of a run: last step of each window, and counts, loss sums, correct [windows, vocabulary]."""
    path = Path(directory) / CURVES
    try:
        arrays = load_file(path)
        steps, windows = arrays["steps"], arrays["windows"]
        if windows.ndim != 3 or windows.shape[2] != 3 or steps.shape != windows.shape[:1]:
            raise ValueError(f"steps {steps.shape} and windows {windows.shape} are not curves")
    except Exception as error:  # safetensors raises several types of its own for a damaged file
        raise files.RunError(f"{path}: cannot be read ({error}); remove the run's folder and train it again") from error
    return steps, windows[..., 0], windows[..., 1], windows[..., 2]


def derived_quantities(p: TrainingParams, model: PreTrainedModel, data: Blocks) -> pd.DataFrame:
    """What follows from the parameters, for a look before training: targets, epochs, parameter counts, decay over the run."""
    n_epochs = epochs(p, len(data))
    n_train = target_counts(data.labels.numpy(), n_rows(model))
    rows = {
        "training blocks": len(data),
        "targets per step": n_train.sum() / len(data) * p.batch_size * p.gradient_accumulation_steps,
        "epochs": n_epochs,
        "targets per token type that occurs": n_train.sum() / np.count_nonzero(n_train),
        "parameters": model.num_parameters(),
        "parameters of the embedding": model.get_input_embeddings().weight.numel(),
        "parameters per target": model.num_parameters() / n_train.sum(),
        "vocabulary": n_rows(model),
        "loss of a uniform prediction (nats)": float(np.log(n_rows(model))),
        "λ Σ lr, weights left to decay shrink to exp of minus this": decay_sum(p),
        "τ = 1/(lr λ) at the peak rate (epochs)": time_scale(p, n_epochs),
    }
    shown = [(name, f"{v:,.4g}" if isinstance(v, float) else f"{v:,}") for name, v in rows.items()]
    return pd.DataFrame(shown, columns=["quantity", "value"])


def decay_sum(p: TrainingParams) -> float:
    """λ Σ lr over all steps: decay alone multiplies a weight by about exp of minus this over the run.

    NaN if the decay is a term of the loss, which Adam scales, or cautious, which acts in some of the steps.
    """
    if p.weight_decay_form != "decoupled":
        return float("nan")
    _, schedule = optimizer_and_schedule(p, [{"params": [torch.zeros(1, requires_grad=True)]}])
    return p.weight_decay * p.learning_rate * sum(schedule.lr_lambdas[0](step) for step in range(p.steps))
