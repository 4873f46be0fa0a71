"""What an experiment costs before it is run: floating-point operations, memory and time of training.

python -m fairlm_utils cost params/paper/openelm-270m-imdb.yaml
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd
from tabulate import tabulate
from torch import nn
from transformers import PreTrainedConfig

from fairlm_utils.analysis import scale
from fairlm_utils.analysis.results import Results
from fairlm_utils.lm import models
from fairlm_utils.lm.models import meta_model, model_config
from fairlm_utils.lm.tokenization import SPECIAL_TOKENS, load_tokenizer, n_ids
from fairlm_utils.lm.training import decay_sum
from fairlm_utils.params import EvaluationParams, ParameterError, epochs, time_scale


@dataclass(frozen=True)
class Hardware:
    """A device: dense bf16 rate in FLOP/s, memory in bytes, and the share of the rate that training is assumed to reach."""

    flops: float
    memory: float
    utilisation: float


#: Rates are the vendors' dense bf16 figures but H200's, which was measured on a large matrix product. The utilisation is
#: an assumption for models of these sizes, to be replaced by a measurement. To add a device, add a line.
HARDWARE = {
    "V100-32GB": Hardware(125e12, 32e9, 0.30),  # the memory of the paper's cards; its rate is of half precision
    "A100-80GB": Hardware(312e12, 80e9, 0.40),
    "H100-80GB": Hardware(989e12, 80e9, 0.35),
    "H200": Hardware(790e12, 141e9, 0.40),
}


def parameter_counts(config: PreTrainedConfig) -> tuple[int, int]:
    """Parameters of a model, and those of them that multiply activations (all but norms, biases and look-ups), tied ones once."""
    model = meta_model(config)
    matrices = sum(p.numel() for p in model.parameters() if p.dim() >= 2)
    tables = {id(m.weight): m.weight.numel() for m in model.modules() if isinstance(m, nn.Embedding)}
    tables.pop(id(models.output_layer(model).weight), None)  # a tied one multiplies, too
    return model.num_parameters(), matrices - sum(tables.values())


def attention_width(config: PreTrainedConfig) -> int:
    """Sum over layers of query heads × head dimension: the width of attention's score and value products, 0 without any.

    Layers of a hybrid that have no attention or a linear one do not count; one with a window counts as if it saw all.
    """
    if not getattr(config, "num_query_heads", None) and not getattr(config, "num_attention_heads", None):
        return 0  # a state-space model
    every = ["attention"] * config.num_hidden_layers
    kinds = getattr(config, "layers_block_type", None) or getattr(config, "layer_types", None) or every
    n_layers = sum(kind == "hybrid" or ("attention" in kind and "linear" not in kind) for kind in kinds)
    heads = getattr(config, "num_query_heads", None) or [config.num_attention_heads] * n_layers
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return sum(heads) * width


def flops_per_token(config: PreTrainedConfig, context: int) -> float:
    """Floating-point operations of training on one token, forward and backward.

    6 for each matrix parameter (2 forward, 4 backward; Kaplan et al., arXiv 2001.08361) and 6 × context × width for
    the causal attention products, half of the full square. Of a mixture of experts all count, though a token takes few.
    """
    return 6.0 * parameter_counts(config)[1] + 6.0 * context * attention_width(config)


def peak_flops(device: str) -> float | None:
    """Dense bf16 rate in FLOP/s of a device by the name that its driver gives it, None if it is not in `HARDWARE`.

    >>> peak_flops("NVIDIA H100 80GB HBM3"), peak_flops("AMD EPYC")
    (989000000000000.0, None)
    """
    return next((known.flops for name, known in HARDWARE.items() if name.partition("-")[0] in device), None)


def cost(p: EvaluationParams, hardware: str, n_runs: int = 1) -> dict[str, float]:
    """FLOPs, memory in bytes and hours of `n_runs` runs of `p` on one device of `hardware`.

    Memory is the optimiser's state plus the logits and their gradient of one batch, activations left out, so a lower
    bound. Raises ParameterError for unknown hardware.
    """
    if hardware not in HARDWARE:
        raise ParameterError(f"hardware: {hardware!r} is not one of {', '.join(HARDWARE)}")
    device, vocab_size = HARDWARE[hardware], _vocabulary(p)
    n_parameters, of_token = _of_model(p.model, vocab_size, p.context)
    tokens_per_step = p.batch_size * p.gradient_accumulation_steps * p.context
    flops = of_token * tokens_per_step * p.steps
    logits = 2 * (2 if p.dtype == "bfloat16" else 4) * p.batch_size * p.context * vocab_size
    memory = models.STATE_BYTES * n_parameters + logits
    return {
        "parameters": n_parameters,
        "tokens": tokens_per_step * p.steps,
        "FLOPs per run": flops,
        "memory, at least (GB)": memory / 1e9,
        "fits": memory < device.memory,
        "hours per run": flops / (device.flops * device.utilisation) / 3600,
        "runs": n_runs,
        "hours in all": n_runs * flops / (device.flops * device.utilisation) / 3600,
    }


@cache
def _of_model(model: str, vocab_size: int, context: int) -> tuple[int, float]:
    """Parameters of a model of `params`, and FLOPs of training it on one token. Raises ParameterError if it cannot be built."""
    config = model_config(model, vocab_size, context)
    try:
        return parameter_counts(config)[0], flops_per_token(config, context)
    except Exception as error:  # every architecture has its own for sizes that it cannot take
        raise models.cannot_be_built(model, error) from error


@cache
def _size_of_tokenizer(name: str) -> int:
    return n_ids(load_tokenizer(name))


def _vocabulary(p: EvaluationParams) -> int:
    """Types of the tokenizer of `p`. Raises ParameterError if it is not to be trained and cannot be read."""
    return p.vocab_size + len(SPECIAL_TOKENS) if p.tokenizer == "bpe" else _size_of_tokenizer(p.tokenizer)


def decay_line(p: EvaluationParams) -> str:
    """A line of what λ amounts to over the run, and of epochs and parameters per target where the file limits the blocks."""
    unit = p.model_copy(update={"weight_decay": 1.0})
    line = f"λ Σ lr = {decay_sum(unit):.3g} λ; τ = 1/(lr λ) = {time_scale(unit, p.steps):,.0f}/λ steps at the peak rate"
    if p.max_train_blocks:
        n_epochs = epochs(p, p.max_train_blocks)
        n_parameters, _ = _of_model(p.model, _vocabulary(p), p.context)
        line += (
            f" = {time_scale(unit, n_epochs):,.3g}/λ epochs; if the text fills {p.max_train_blocks:,} blocks: {n_epochs:,.3g} epochs, "
            f"{n_parameters / (p.max_train_blocks * (p.context - 1)):,.3g} parameters per target"
        )
    return line


def sheet(results: Results) -> pd.DataFrame:
    """What sets an experiment beside others of any size, without dimension or in nats; one row per model, variant and λ.

    - those of `regimes`;
    - tokens_per_type: training targets / types with n_v ≥ 1; parameters_per_target;
    - decay_sum: λ Σ lr over the steps, empty where decay is a term of the loss;
    - slope, count_ratio: the fitted slope a of the loss that λ adds by count and R(a) on these counts, empty where no slope
      can be fitted (`ratios`);
    - heldout_minus_chance, heldout_minus_unigram: held-out average loss at this λ above log V and above the unigram; a
      model above 0 is useless there.
    """
    keys = [k for k in scale.GROUP if k in results.totals]
    rows = []
    for key, group in results.totals.groupby(keys, sort=False):
        named = dict(zip(keys, key, strict=True))
        p = scale.params_of(results, named)
        n_targets, vocabulary = int(group["n_train_tokens"].iloc[0]), round(np.exp(group["chance"].iloc[0]))
        parameters, _ = _of_model(p.model, vocabulary, p.context)
        heldout = group[group["split"] == "held-out"]
        rows.append(
            {
                **named,
                "tokens_per_type": n_targets / scale.counts_of(results, named.get("variant"))["n_types"].sum(),
                "parameters_per_target": parameters / n_targets,
                "decay_sum": decay_sum(p),
                "heldout_minus_chance": (heldout["average_loss"] - heldout["chance"]).mean(),
                "heldout_minus_unigram": (heldout["average_loss"] - heldout["average_unigram"]).mean(),
            }
        )
    fits = scale.ratios(results)[[*keys, "slope", "predicted"]].rename(columns={"predicted": "count_ratio"})
    return scale.regimes(results).merge(pd.DataFrame(rows), on=keys).merge(fits, on=keys, how="left")


#: Parameters that set what a run costs or how much it decays; runs that share them are one line of a report.
_SETTING = (
    "model", "tokenizer", "vocab_size", "context", "max_train_blocks", "steps", "batch_size", "gradient_accumulation_steps",
    "dtype", "learning_rate", "lr_schedule", "warmup_steps",
)  # fmt: skip


def report(name: str, points: Sequence[EvaluationParams]) -> str:
    """What the runs of an experiment cost and how much they decay, as text: see `cost` and `decay_line`.

    Where runs differ in what sets that, "A to B" are the smallest and the largest of them, and hours those of all.
    """
    settings: dict[tuple, list[EvaluationParams]] = {}
    for p in points:
        settings.setdefault(tuple(getattr(p, key) for key in _SETTING), []).append(p)
    groups = list(settings.values())
    rows = []
    for hardware in HARDWARE:
        costs = pd.DataFrame([cost(own[0], hardware, len(own)) for own in groups])
        row = {column: _range(costs[column].tolist()) for column in costs}
        row |= {"fits": str(costs["fits"].all())} | {c: _number(costs[c].sum()) for c in ("runs", "hours in all")}
        rows.append({"hardware": hardware, **row})
    decays = list(dict.fromkeys(decay_line(own[0]) for own in groups))
    said = decays if len(decays) == 1 else [f"{len(decays)} settings, of which the first has {decays[0]}"]
    models = ", ".join(dict.fromkeys(p.model for p in points))
    return "\n".join(
        [
            f"\n{name}: {models}, {len(points):,} runs of {_range([p.steps for p in points])} steps",
            *said,
            tabulate(pd.DataFrame(rows), headers="keys", showindex=False, disable_numparse=True),
        ]
    )


def _number(value: float) -> str:
    return f"{value:.3g}" if isinstance(value, float) else f"{value:,}"


def _range(values: Sequence[float]) -> str:
    least, most = _number(min(values)), _number(max(values))
    return least if least == most else f"{least} to {most}"
