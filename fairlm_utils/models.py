"""Models from random initialisation: names of published and tiny architectures, and any transformers config."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, Qwen2Config
from transformers.utils.logging import disable_progress_bar

from fairlm_utils.openelm import OPENELM_SIZES, OpenELMConfig
from fairlm_utils.params import DecayedParameters, ParameterError, first_line

disable_progress_bar()  # of saving and loading, shorter than the line that announces them

#: More layers than any model has: making them one after the other would take for ever.
MAX_LAYERS = 10_000
#: Sizes of Qwen2. The published ones tie input and output embeddings and use a RoPE base of 1e6, which are not the
#: defaults of Qwen2Config; the tiny one keeps both.
QWEN2_SIZES: dict[str, dict[str, Any]] = {
    "qwen2-tiny": dict(
        hidden_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=256
    ),
    "qwen2-0.5b": dict(
        hidden_size=896, num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2, intermediate_size=4864
    ),
    "qwen2-1.5b": dict(
        hidden_size=1536, num_hidden_layers=28, num_attention_heads=12, num_key_value_heads=2, intermediate_size=8960
    ),
}


def _qwen2(size: dict[str, Any]) -> Callable[[int, int], PreTrainedConfig]:
    def config(vocab_size: int, context: int) -> PreTrainedConfig:
        return Qwen2Config(
            **size,
            vocab_size=vocab_size,
            max_position_embeddings=32_768,
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
            attention_dropout=0.0,
        )

    return config


def _openelm(size: dict[str, Any]) -> Callable[[int, int], PreTrainedConfig]:
    return lambda vocab_size, context: OpenELMConfig(**size, vocab_size=vocab_size)


#: Name of an architecture and the function (vocab_size, context) → config that makes it. To add one, add a line.
REGISTRY: dict[str, Callable[[int, int], PreTrainedConfig]] = {
    **{name: _qwen2(size) for name, size in QWEN2_SIZES.items()},
    **{name: _openelm(size) for name, size in OPENELM_SIZES.items()},
}


def model_config(name: str, vocab_size: int, context: int) -> PreTrainedConfig:
    """Config of a model by registry name, config JSON file or folder, or Hub id, with this vocabulary size.

    Raises ParameterError if the name is none of these or the context is longer than the model's.
    """
    if name in REGISTRY:
        config = REGISTRY[name](vocab_size, context)
    else:
        config = _load_config(name)
        config.vocab_size = vocab_size
    longest = getattr(config, "max_position_embeddings", None)
    if longest and context > longest:
        raise ParameterError(f"context: {context} is longer than the {longest} positions of model {name!r}; lower it")
    return config


def _load_config(name: str) -> PreTrainedConfig:
    known = ", ".join(REGISTRY)
    path = Path(name)
    try:
        if path.suffix == ".json" and path.is_file():
            values = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(values, dict):
                raise ValueError("not a mapping")
            return AutoConfig.for_model(values.pop("model_type"), **values)
        return AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, StrictDataclassError) as error:
        raise ParameterError(
            f"model: {name!r} is neither a known name ({known}), nor a config JSON file, nor a folder or Hub id that can "
            f"be read ({first_line(error)}); code that comes with a model is never run"
        ) from error


def build_model(name: str, vocab_size: int, context: int, seed: int) -> PreTrainedModel:
    """A causal language model with random weights that depend on `seed` alone, in float32 on the CPU.

    Raises ParameterError if the sizes of its config do not go together or need more memory than there is.
    """
    config = model_config(name, vocab_size, context)
    try:
        if (n_layers := getattr(config, "num_hidden_layers", 0)) > MAX_LAYERS:
            raise ValueError(f"{n_layers:,} layers, more than {MAX_LAYERS:,}")
        with torch.random.fork_rng():
            n_bytes = 4 * meta_model(config).num_parameters()
            if n_bytes > (memory := physical_memory()):
                raise MemoryError(f"{n_bytes / 1e9:,.1f} GB of weights, and {memory / 1e9:,.1f} GB of memory")
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    except Exception as error:  # every architecture has its own for sizes that it cannot take
        raise ParameterError(
            f"model: {name!r} cannot be built ({first_line(error)}); choose or write another"
        ) from error
    model.config.use_cache = False  # a cache of keys and values costs time and serves generation only
    return model


def meta_model(config: PreTrainedConfig) -> PreTrainedModel:
    """A causal language model without weights, on the meta device: shapes and counts at no cost in memory."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def physical_memory() -> int:
    """Memory of this machine in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@torch.no_grad()
def check_causal(model: PreTrainedModel) -> None:
    """Raise ValueError unless the logits of every position depend on the tokens up to it alone.

    Tried, not looked up: the last of a few tokens is exchanged, and no earlier logit may move. A model that reads an
    encoder's output is refused as well, since its loss without one means nothing. Leaves mode and generators as they are.
    """
    config = model.config
    if getattr(config, "is_encoder_decoder", False) or getattr(config, "add_cross_attention", False):
        raise ValueError(
            f"{type(model).__name__} reads the output of an encoder; only causal language models are measured"
        )
    n_rows = model.get_input_embeddings().weight.shape[0]
    ids = (torch.arange(1, 13, device=model.device) * 7919 % n_rows).repeat(2, 1)
    ids[1, -1] = (ids[0, -1] + n_rows // 2) % n_rows
    was_training = model.training
    model.eval()
    try:
        first, second = (model(input_ids=row[None], use_cache=False).logits[0, :-1] for row in ids)
    finally:
        model.train(was_training)
    moved = (first - second).abs().max().item()
    if moved > 8 * torch.finfo(first.dtype).eps * first.abs().max().item():  # more than rounding
        raise ValueError(
            f"{type(model).__name__} is not causal: logits move by {moved:.2g} when a later token changes, so that each "
            "position sees its own target; only causal language models are measured"
        )


def is_norm_layer(module: torch.nn.Module) -> bool:
    """Whether a module is a normalisation, which architectures name LayerNorm, RMSNorm, Qwen2RMSNorm, ..."""
    return "norm" in type(module).__name__.lower()


def weight_decay_groups(
    model: PreTrainedModel, weight_decay: float, decayed_parameters: str, rows_apart: bool = False
) -> tuple[list[dict], pd.DataFrame]:
    """Optimiser groups and the table that shows them: parameter, shape, n_parameters, weight_decay.

    `decayed_parameters` says what decays: "all"; "matrices" (two and more dimensions, the embedding included, norm gains
    and biases not: the usual default of training code); "no-embedding" (all but the embedding and the head);
    "no-embedding-nor-norms"; "embedding", "head" or "norms" alone. Tied parameters appear once and are both embedding and
    head. With `rows_apart` embedding and head are a last group without decay but with `row_weight_decay`, whatever else
    decays, for `remedies.FrequencyAwareAdamW`.
    """
    if decayed_parameters not in (known := get_args(DecayedParameters)):
        raise ParameterError(f"decayed_parameters: {decayed_parameters!r} is not one of {', '.join(known)}")
    embedding, head = (
        id(getattr(m, "weight", None)) for m in (model.get_input_embeddings(), model.get_output_embeddings())
    )
    norms = {id(p) for m in model.modules() if is_norm_layer(m) for p in m.parameters(recurse=False)}
    rows: list[tuple] = []
    groups: dict[bool, list] = {True: [], False: []}
    by_row: list = []
    for name, parameter in model.named_parameters():
        is_row, is_norm = id(parameter) in (embedding, head), id(parameter) in norms
        decayed = {
            "all": True,
            "matrices": parameter.dim() >= 2,
            "no-embedding": not is_row,
            "no-embedding-nor-norms": not is_row and not is_norm,
            "embedding": id(parameter) == embedding,
            "head": id(parameter) == head,
            "norms": is_norm,
        }[decayed_parameters] and not (rows_apart and is_row)
        (by_row if rows_apart and is_row else groups[decayed]).append(parameter)
        rows.append((name, "×".join(map(str, parameter.shape)), parameter.numel(), weight_decay if decayed else 0.0))
    table = pd.DataFrame(rows, columns=["parameter", "shape", "n_parameters", "weight_decay"])
    made = [{"params": p, "weight_decay": weight_decay if d else 0.0} for d, p in groups.items() if p]
    if by_row:
        made.append({"params": by_row, "weight_decay": 0.0, "row_weight_decay": weight_decay})
    return made, table
