"""Many small models trained as one: runs that differ in λ, learning rate and seed, stacked along a first dimension.

python -m fairlm_utils stack params/map.yaml

A small model leaves a GPU idle most of a step; a hundred of them, each with its own weights, batches and optimiser,
fill it. What is written is what `runs.train` writes, from the same initial weights and batches, to rounding.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import torch
from accelerate.data_loader import SeedableRandomSampler
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap
from torch.utils.data import DataLoader, Dataset

from fairlm_utils import files, identity
from fairlm_utils.experiment import runs
from fairlm_utils.frequency import IGNORE_INDEX
from fairlm_utils.lm import evaluation, processes, training
from fairlm_utils.lm.evaluation import Predictions
from fairlm_utils.lm.models import build_model, n_rows, output_layer, weight_decay_groups
from fairlm_utils.lm.token_loss import TokenSums, shifted_targets
from fairlm_utils.lm.tokenization import TokenizedCorpus, n_ids, tokenize_corpus
from fairlm_utils.params import EvaluationParams, ParameterError

#: What may differ between the runs of a stack; of all else that determines results they have the same.
OWN = ("seed", "weight_decay", "learning_rate", "decayed_parameters")
#: What a stack leaves at its default.
PLAIN = (
    "optimizer", "embedding_decay", "weight_decay_form", "dropout", "label_smoothing", "loss_weight_exponent", "logit_adjustment",
    "gradient_accumulation_steps", "torch_compile",
)  # fmt: skip
#: Eager steps before a CUDA graph of one is captured, in which libraries make their handles and buffers.
_WARM_UP = 3
#: Logits of an evaluated batch, over all runs: 2 GB in float32.
_MOST_LOGITS = 2**29


def stacks(points: Sequence[EvaluationParams], most: int) -> list[list[EvaluationParams]]:
    """The runs in groups that can be trained as one, of at most `most`, in the order of the file.

    Raises ParameterError for a run with an objective, optimiser or layout that a stack does not know.
    """
    found: dict[tuple, list[EvaluationParams]] = defaultdict(list)
    for p in points:
        odd = [name for name in PLAIN if getattr(p, name) != EvaluationParams.model_fields[name].default]
        if odd:
            raise ParameterError(f"{', '.join(odd)}: runs of a stack have the default here; train this one by itself")
        same = {**p.identity(), **{name: getattr(p, name) for name in identity.EVALUATION}}
        found[tuple((k, v) for k, v in sorted(same.items()) if k not in OWN)].append(p)
    return [group[i : i + most] for group in found.values() for i in range(0, len(group), most)]


class Stack:
    """Models, AdamW moments and token sums of some runs, and the step that advances all of them.

    Weights are [runs, ...] by name, initialised as `build_model` does for each run's seed. `data` are the blocks that
    all of them train on, each in the order that its seed gives it in Trainer; padding needs no mask, for it comes last.
    Raises ParameterError for an architecture whose logits in a stack are not those of the model alone, as where attention
    is local or dropout is on by default.
    """

    def __init__(self, points: Sequence[EvaluationParams], vocab_size: int, data: training.Blocks):
        self.points, self.p = points, points[0]
        self.device = processes.device(self.p)
        members = [build_model(p.model, vocab_size, p.context, p.seed) for p in points]
        weights, buffers = stack_module_state(members)
        self.model = members[0].to(self.device).train()
        self.blocks, self.labels = (x.to(self.device) for x in (data.input_ids, data.labels))
        with torch.no_grad():
            alone = self.model(input_ids=self.blocks[:1], use_cache=False).logits.flatten(0, 1).float()
        # its products have rules for a stacked dimension everywhere; fused attention has none on a CPU, or with a mask
        self.model.set_attn_implementation("eager")
        shape = (1, 1, self.p.context, self.p.context)
        self.causal = torch.full(shape, torch.finfo(torch.float32).min, device=self.device).triu(1)
        self.weights = {k: w.detach().to(self.device).requires_grad_() for k, w in weights.items()}
        self.buffers = {k: b.to(self.device) for k, b in buffers.items()}
        self.first = {k: torch.zeros_like(w) for k, w in self.weights.items()}
        self.second = {k: torch.zeros_like(w) for k, w in self.weights.items()}
        self.rates = self._vector([p.learning_rate for p in points])
        self.decay = {k: torch.zeros_like(self.rates) for k in self.weights}
        for i, (p, member) in enumerate(zip(points, members, strict=True)):
            names = {id(w): k for k, w in member.named_parameters()}
            for group in weight_decay_groups(member, p.weight_decay, p.decayed_parameters)[0]:
                for w in group["params"]:
                    self.decay[names[id(w)]][i] = group["weight_decay"]
        self._check(alone)
        self.batch = torch.zeros(len(points), self.p.batch_size, dtype=torch.long, device=self.device)
        head = output_layer(self.model).weight
        self.head = next(name for name, weight in self.model.named_parameters() if weight is head)
        #: Of the step: the schedule's factor on the learning rate and Adam's two corrections of bias.
        self.scalars = torch.zeros(3, device=self.device)
        self.vocab_size = n_rows(self.model)
        self.sums = TokenSums(len(points) * self.vocab_size, self.device)

    def _check(self, alone: Tensor) -> None:
        """Raise ParameterError if the first run's logits of the first block are not `alone`, those of its model by itself."""
        try:
            with torch.no_grad():
                ids = self.blocks[:1].expand(len(self.points), 1, -1)
                stacked = vmap(self._logits)(self.weights, self.buffers, ids)[0]
            reason = "" if torch.allclose(stacked, alone, atol=1e-3) else "its logits are others in a stack"
        except Exception as error:  # every architecture has its own
            if processes.is_out_of_memory(error):
                raise
            reason = files.first_line(error)
        if reason:
            raise ParameterError(f"model: {self.p.model!r} cannot be stacked ({reason}); train its runs by themselves")

    def _vector(self, values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self.device)

    def _logits(self, weights: dict[str, Tensor], buffers: dict[str, Tensor], ids: Tensor) -> Tensor:
        """Logits [blocks · context, vocabulary] of one run, of which `vmap` makes those of all."""
        options = {"attention_mask": self.causal, "use_cache": False}
        logits = functional_call(self.model, (weights, buffers), (ids,), options, tie_weights=True).logits
        return logits.flatten(0, 1).float()

    def _losses(self, weights: dict[str, Tensor], buffers: dict[str, Tensor], ids: Tensor, targets: Tensor) -> tuple:
        logits = self._logits(weights, buffers, ids)
        own = logits.gather(1, targets.clamp(min=0)[:, None])[:, 0]
        is_target = targets != IGNORE_INDEX
        loss = (logits.logsumexp(dim=1) - own) * is_target
        others = logits.detach().scatter(1, targets.clamp(min=0)[:, None], -torch.inf)
        correct = (own.detach() > others.amax(dim=1)) & is_target  # a tie is none, as in `token_loss`
        return loss.sum() / is_target.sum(), loss.detach(), correct

    def step(self) -> None:
        """Loss, gradient and update of every run, on the blocks that `batch` names and at the rates of `scalars`."""
        ids, labels = self.blocks[self.batch], self.labels[self.batch]
        targets = shifted_targets(labels.flatten(0, 1)).reshape(len(self.points), -1)
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.p.dtype == "bfloat16"):
            mean, losses, correct = vmap(self._losses)(self.weights, self.buffers, ids, targets)
        names = list(self.weights)
        gradients = torch.autograd.grad(mean.sum(), [self.weights[k] for k in names])
        with torch.no_grad():
            offset = self.vocab_size * torch.arange(len(self.points), device=self.device)[:, None]
            self.sums.add(
                torch.where(targets == IGNORE_INDEX, IGNORE_INDEX, targets + offset).flatten(),
                losses.flatten(),
                correct.flatten(),
            )
            clip = torch.ones_like(self.rates)
            if self.p.max_grad_norm:  # as torch.nn.utils.clip_grad_norm_, per run
                squares = torch.stack([g.flatten(1).square().sum(dim=1) for g in gradients])
                clip = (self.p.max_grad_norm / (squares.sum(dim=0).sqrt() + 1e-6)).clamp(max=1.0)
            for name, gradient in zip(names, gradients, strict=True):
                self._update(name, gradient, clip)

    def _update(self, name: str, gradient: Tensor, clip: Tensor) -> None:
        """AdamW's update (Loshchilov & Hutter 2019, Algorithm 2) of one weight [runs, ...] with the rates of each run."""
        p, weight, first, second = self.p, self.weights[name], self.first[name], self.second[name]
        shape = (-1, *(1 for _ in weight.shape[1:]))
        factor, correction_1, correction_2 = self.scalars
        rates = (self.rates * factor).view(shape)
        gradient = gradient * clip.view(shape)
        weight.mul_(1 - rates * self.decay[name].view(shape))
        first.lerp_(gradient, 1 - p.adam_beta1)
        second.mul_(p.adam_beta2).addcmul_(gradient, gradient, value=1 - p.adam_beta2)
        weight.sub_(rates / correction_1 * first / (second.div(correction_2).sqrt_().add_(p.adam_epsilon)))

    def run(self, tick: Callable[[int], None] = lambda step: None) -> tuple[list[int], np.ndarray]:
        """All steps: the last step of each window, and sums [windows, runs, vocabulary, 3] of tokens, losses and correct.

        `tick` is called after every step with its number.
        """
        p = self.p
        _, schedule = training.optimizer_and_schedule(p, [{"params": [torch.zeros(1, requires_grad=True)]}])
        order = self._order()
        step, ends, windows = self.step, [], []
        for n in range(1, p.steps + 1):
            self.batch.copy_(next(order))
            scalars = (schedule.lr_lambdas[0](n - 1), 1 - p.adam_beta1**n, 1 - p.adam_beta2**n)
            self.scalars.copy_(self._vector(scalars), non_blocking=True)
            if n == _WARM_UP + 1 and self.device == "cuda":
                step = self._graph()
            step()
            if n % p.window_steps == 0 or n == p.steps:
                window = self.sums.read().reshape(len(self.points), self.vocab_size, 3)
                if bad := [q.run_id() for q, w in zip(self.points, window, strict=True) if not np.isfinite(w).all()]:
                    raise training.TrainingDiverged(
                        f"the training loss is not finite by step {n} in {', '.join(bad)}; lower learning_rate"
                    )
                self.sums.reset()
                ends.append(n)
                windows.append(window)
            tick(n)
        return ends, np.stack(windows)

    def _graph(self) -> Callable[[], None]:
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.step()
        return graph.replay

    def _order(self):
        """Batches [runs, batch_size] of block numbers, one per step, each run's in the order of its seed."""
        size, n = self.p.batch_size, len(self.blocks)
        if n % size:
            raise ParameterError(
                f"batch_size: {size} does not divide the {n} training blocks, and the last batch of an epoch would be a "
                "smaller one; set max_train_blocks to a multiple of it"
            )
        seeds = sorted({p.seed for p in self.points})
        which = torch.tensor([seeds.index(p.seed) for p in self.points])
        samplers = [SeedableRandomSampler(range(n), data_seed=seed) for seed in seeds]
        while True:
            epoch = torch.tensor([list(sampler) for sampler in samplers])[which].to(self.device)
            yield from epoch.split(size, dim=1)

    @torch.inference_mode()
    def predictions(self, data: Dataset) -> tuple[list[Predictions], np.ndarray]:
        """What the model of each run predicts of the same blocks, see `evaluation.token_sums`, and the losses.

        Losses are [runs, blocks, context] as of there, of no blocks if no table needs them.
        """
        n, size = len(self.points), self.vocab_size
        n_bins = evaluation.N_CONFIDENCE_BINS
        by_type = TokenSums(n * size, self.device, n_quantities=3)
        calibration = TokenSums(n * size * n_bins, self.device)
        offset = size * torch.arange(n, device=self.device)[:, None]
        kept, losses = evaluation.needs_losses(self.p), [np.zeros((n, 0, self.p.context), np.float32)]
        self.model.eval()
        for batch in DataLoader(data, batch_size=max(1, _MOST_LOGITS // (n * self.p.context * size))):
            ids = batch["input_ids"].to(self.device)
            targets = shifted_targets(batch["labels"].to(self.device))
            with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.p.dtype == "bfloat16"):
                logits = vmap(self._whole_logits, in_dims=(0, 0, None))(self.weights, self.buffers, ids)
            rows = torch.where(targets == IGNORE_INDEX, IGNORE_INDEX, targets + offset)
            every = targets.expand(n, -1).flatten()
            loss = evaluation.add_predictions(logits.reshape(-1, size), every, rows.flatten(), by_type, calibration)
            if kept:
                losses.append(evaluation.by_label(loss, every, (n, *ids.shape)))
        self.model.train()
        sums = by_type.read().reshape(n, size, 4), calibration.read().reshape(n, size, n_bins, 3)
        return [Predictions(*own) for own in zip(*sums, strict=True)], np.concatenate(losses, axis=1)

    def _whole_logits(self, weights: dict[str, Tensor], buffers: dict[str, Tensor], ids: Tensor) -> Tensor:
        with evaluation.Float32Head(weights[self.head]):
            return self._logits(weights, buffers, ids)

    def write(
        self, pool: Executor, corpus: TokenizedCorpus, ends: list[int], windows: np.ndarray, seconds: float
    ) -> list:
        """Have the folder of every run written in `pool`, as `runs.train` and `runs.evaluate` write it."""
        data = evaluation.evaluated_blocks(self.p, corpus)
        by_split = {split: self.predictions(blocks) for split, blocks in data.items()}
        return [
            pool.submit(
                _write,
                p,
                {name: weight[i].detach().cpu().numpy() for name, weight in self.weights.items()},
                (ends, windows[:, i]),
                {split: predictions[i] for split, (predictions, _) in by_split.items()},
                {split: losses[i] for split, (_, losses) in by_split.items()},
                seconds / len(self.points),
                self.device,
            )
            for i, p in enumerate(self.points)
        ]


def _write(
    p: EvaluationParams,
    weights: dict[str, np.ndarray],
    curves: tuple[list[int], np.ndarray],
    predictions: dict[str, Predictions],
    losses: dict[str, np.ndarray],
    seconds: float,
    device: str,
) -> None:
    torch.set_num_threads(1)
    corpus = tokenize_corpus(p)
    directory = identity.open_run(p)
    with files.locked(directory):
        if identity.is_finished(p):  # by another process, meanwhile
            return
        identity.record_text(directory, p, corpus.meta)
        recorder = training.RecordTokenLoss(TokenSums(1), p.window_steps)
        recorder.steps, recorder.windows = curves[0], list(curves[1])
        recorder.save(directory / training.CURVES)
        model = build_model(p.model, n_ids(corpus.tokenizer), p.context, p.seed)
        training.save_model(model, {k: torch.from_numpy(w) for k, w in weights.items()}, corpus, directory / "model")
        files.write_json(directory / "provenance.json", runs.provenance(p, corpus.meta, seconds, device))
        runs.write_predictions(p, directory, corpus, predictions, losses)


def train(points: Sequence[EvaluationParams], pool: Executor) -> list[Future]:
    """Train the runs as one stack and evaluate them; those that are finished are left out. What `pool` writes of them.

    A stack has no checkpoints: what is interrupted begins anew. Raises what `runs.train` raises.
    """
    points = [p for p in points if not identity.is_finished(p)]
    if not points:
        return []
    started = time.monotonic()
    corpus = tokenize_corpus(points[0])
    stack = Stack(points, n_ids(corpus.tokenizer), training.train_blocks(points[0], corpus))
    bar = files.progress(total=points[0].steps, unit="step", desc=f"{len(points)} runs")
    with processes.threads(points[0].n_threads), bar:
        ends, windows = stack.run(lambda _: bar.update())
        return stack.write(pool, corpus, ends, windows, time.monotonic() - started)


def train_all(points: Sequence[EvaluationParams], most: int, workers: int) -> None:
    """Train runs in stacks of at most `most` and evaluate them, written by `workers` processes; see `train`."""
    groups = stacks(points, most)
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        waiting: list[Future] = []
        for i, group in enumerate(groups):
            started = time.monotonic()
            waiting += train(group, pool)
            print(
                f"stack {i + 1} of {len(groups)}: {len(group)} runs of {group[0].variant or group[0].experiment}, "
                f"{time.monotonic() - started:.0f} s",
                flush=True,
            )
        for future in waiting:
            future.result()
