"""Models: from random initialisation, by the name of an architecture or any transformers config, and from a folder."""

from __future__ import annotations

import inspect
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
)
from transformers.utils.logging import disable_progress_bar
from transformers.utils.peft_utils import find_adapter_config_file

from fairlm_utils import files
from fairlm_utils.lm.openelm import OPENELM_SIZES, OpenELMConfig
from fairlm_utils.params import DecayedParameters, ParameterError

disable_progress_bar()  # of saving and loading, shorter than the line that announces them

#: More layers than any model has: making them one after the other would take for ever.
MAX_LAYERS = 10_000
#: Sizes of Qwen2. The published ones tie input and output embeddings and use a RoPE base of 1e6, which are not the
#: defaults of Qwen2Config; the tiny ones keep both.
_FIELDS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")
_SIZES = {
    "qwen2-tiny": (128, 2, 4, 2, 256),
    "qwen2-tiny-wide": (256, 2, 8, 2, 512),
    "qwen2-tiny-deep": (128, 4, 4, 2, 256),
    "qwen2-tiny-wider": (512, 2, 16, 2, 1024),
    "qwen2-40m": (512, 8, 8, 4, 1408),
    "qwen2-0.5b": (896, 24, 14, 2, 4864),
    "qwen2-1.5b": (1536, 28, 12, 2, 8960),
}
QWEN2_SIZES = {name: dict(zip(_FIELDS, size, strict=True)) for name, size in _SIZES.items()}


def _qwen2(size: dict[str, Any], vocab_size: int, context: int) -> PreTrainedConfig:
    return Qwen2Config(
        **size,
        vocab_size=vocab_size,
        max_position_embeddings=32_768,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        attention_dropout=0.0,
    )


def _openelm(size: dict[str, Any], vocab_size: int, context: int) -> PreTrainedConfig:
    return OpenELMConfig(**size, vocab_size=vocab_size)


#: Name of an architecture and the function (vocab_size, context) → config that makes it. To add one, add a line.
REGISTRY: dict[str, Callable[[int, int], PreTrainedConfig]] = {
    **{name: partial(_qwen2, size) for name, size in QWEN2_SIZES.items()},
    **{name: partial(_openelm, size) for name, size in OPENELM_SIZES.items()},
}


#: Architectures whose positions are counted from the id of the padding token on, RoBERTa's and its kin.
_POSITIONS_AFTER_PADDING = {
    *("roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "camembert", "data2vec-text", "xmod"),
}


def model_config(name: str, vocab_size: int, context: int) -> PreTrainedConfig:
    """Config of a model by registry name, config JSON file or folder, or Hub id, with this vocabulary size.

    Raises ParameterError if the name is none of these, its config takes no vocabulary of this size or must have a padding
    token, or the context is longer than the model's.
    """
    if name in REGISTRY:
        config = REGISTRY[name](vocab_size, context)
    else:
        config = _load_config(name)
        vars(config).pop("quantization_config", None)  # of weights that are not taken
        try:
            config.vocab_size = vocab_size
            if config.model_type not in _POSITIONS_AFTER_PADDING:
                config.pad_token_id = None  # of another vocabulary, in which another token would keep a row of zeros
        except StrictDataclassError as error:
            raise cannot_be_built(name, error) from error
    check_context(config, context, f"model {name!r}")
    return config


def n_positions(config: PreTrainedConfig) -> int | None:
    """The longest block that a model takes, None if its config names no bound."""
    config = text_config(config)
    longest = getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None)  # MPT's name
    if longest and config.model_type in _POSITIONS_AFTER_PADDING:
        longest -= (config.pad_token_id or 0) + 1
    return longest if longest and longest > 0 else None  # XLNet's −1 is no bound


def check_context(config: PreTrainedConfig, context: int, name: str) -> None:
    """Raise ParameterError if blocks of `context` tokens are longer than what the model `name` takes."""
    longest = n_positions(config)
    if longest and context > longest:
        raise ParameterError(f"context: {context} is longer than the {longest} positions of {name}; lower it")


def _load_config(name: str) -> PreTrainedConfig:
    known = ", ".join(REGISTRY)
    path = Path(name)
    try:
        if path.suffix == ".json" and path.is_file():
            values = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=files.unique_keys)
            if not isinstance(values, dict):
                raise ValueError("not a mapping")
            return text_config(AutoConfig.for_model(values.pop("model_type"), **values))
        return text_config(AutoConfig.from_pretrained(name, trust_remote_code=False))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, StrictDataclassError) as error:
        raise ParameterError(
            f"model: {name!r} is neither a known name ({known}), nor a config JSON file, nor a folder or Hub id that can "
            f"be read ({files.first_line(error)}); code that comes with a model is never run"
        ) from error


def text_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The config of the language model in a model of several parts (images and text, say), else the config itself.

    Raises ValueError if it is not a config.
    """
    text = config.get_text_config()
    if not isinstance(text, PreTrainedConfig):
        raise ValueError(f"its text config is {text!r}")
    return text


def cannot_be_built(name: str, error: Exception) -> ParameterError:
    """What to raise from the error with which the library refuses the sizes of a config."""
    return ParameterError(f"model: {name!r} cannot be built ({files.first_line(error)}); choose or write another")


def build_model(name: str, vocab_size: int, context: int, seed: int) -> PreTrainedModel:
    """A causal language model with random weights that depend on `seed` alone, in float32 on the CPU.

    Raises ParameterError if the sizes of its config do not go together or need more memory than there is, and if the
    model is not causal.
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
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
            check_causal(model)
    except Exception as error:  # every architecture has its own for sizes that it cannot take
        raise cannot_be_built(name, error) from error
    model.config.use_cache = False  # a cache of keys and values costs time and serves generation only
    return model


def output_layer(model: PreTrainedModel) -> torch.nn.Module:
    """The layer whose rows make logits: the head, or the embedding of a model that has none of its own."""
    return model.get_output_embeddings() or model.get_input_embeddings()


#: Signs in the names of weights that a model does not have, and what to do about the file that has them.
_ADVICE = {
    r"(^|\.)_orig_mod\.": "torch.compile had wrapped the model: save model._orig_mod",
    r"lora_|\.base_layer\.|^base_model\.model\.": "it is a PEFT model: save what its merge_and_unload() returns",
    r"(^|\.)(_fsdp_wrapped_)?module\.": "the model was wrapped for data parallelism: save model.module",
    r"(^|\.)(score|classifier|classification_head|qa_outputs|v_head|value_head|reward_head)\.": (
        "it is a classifier, or a reward or value model, which predicts no tokens: name the language model it was made from"
    ),
    r"\.(qweight|qzeros|scales|SCB|weight_scale\w*|weight_packed|absmax|\w*quant\w*)$": (
        "its weights are quantised: name the checkpoint they were made from"
    ),
}
#: Weights that some files hold and no model needs: constants that are computed, and a second name of what is tied.
_HARMLESS = re.compile(
    r"(^|\.)(inv_freq|position_ids|masked_bias|attn(ention)?\.(bias|causal_mask)|rotary_emb\.(cos|sin)_cached)$"
)
#: Parts of a model of several kinds of input that text alone never reaches.
_NOT_TEXT = re.compile(
    r"(^|\.)(visual|vision\w*|image\w*|audio\w*|embed_vision|embed_audio|multi_modal_projector|connector|perceiver\w*)(\.|$)"
)


def load_model(directory: str | Path, vocab_size: int = 0) -> PreTrainedModel:
    """A saved causal language model in float32, every weight of it from safetensors, none left over; no remote code.

    Kernels of the Hub count as code. A model of text and images is loaded whole, and takes text alone. Raises RunError if
    it cannot be read, is an adapter, quantised or no decoder, if weights are missing, left over or of another shape
    (transformers would draw them at random), or if it has fewer than `vocab_size` rows.
    """
    config = saved_config(directory)
    with _unreadable_explained(directory):
        is_text = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
        model, found = (AutoModelForCausalLM if is_text else AutoModelForImageTextToText).from_pretrained(
            directory,
            config=config,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            output_loading_info=True,
        )
    _check_weights(model, found, directory)
    if (n := n_rows(model)) < vocab_size:
        raise files.RunError(
            f"{directory}: the model has {n:,} token types and the tokenizer {vocab_size:,}; use the tokenizer "
            "the model was trained with"
        )
    return model


def saved_config(directory: str | Path) -> PreTrainedConfig:
    """The config of a saved causal language model, without its weights; no remote code.

    Raises RunError if it cannot be read, is an adapter, quantised or no decoder.
    """
    with _unreadable_explained(directory):
        if find_adapter_config_file(str(directory)):
            raise files.RunError(
                f"{directory}: is a PEFT adapter, not a whole model; save what its merge_and_unload() returns"
            )
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
        _check_config(config, directory)
    config.return_dict = True  # outputs are read by name
    return config


@contextmanager
def _unreadable_explained(directory: str | Path) -> Iterator[None]:
    """Within the context, whatever a damaged folder makes transformers raise is a RunError."""
    try:
        yield
    except files.RunError:
        raise
    except Exception as error:
        raise files.RunError(
            f"{directory}: the model cannot be read ({files.first_line(error)}); name a Hub id or a folder written by "
            "save_pretrained with safetensors (pickles are not read, and code that comes with a model is never run), "
            "and if a run made it, remove the run's folder and train it again"
        ) from error


def _check_config(config: PreTrainedConfig, directory: str | Path) -> None:
    text = text_config(config)
    if "/" in str(getattr(config, "_attn_implementation", None)):
        raise ValueError(f"its attention {config._attn_implementation!r} is code of its own")
    if any(getattr(c, "quantization_config", None) for c in (config, text)):
        raise files.RunError(
            f"{directory}: is quantised, and only whole weights are measured; name the checkpoint it was made from, or "
            "dequantise it and save that"
        )
    known = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING or type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    if config.is_encoder_decoder or not known:
        what = "an encoder-decoder" if config.is_encoder_decoder else "no decoder"
        raise files.RunError(f"{directory}: {config.model_type} is {what}; only causal language models are measured")


def _check_weights(model: PreTrainedModel, found: dict[str, Any], directory: str | Path) -> None:
    """Raise RunError if `found`, what loading said, names weights that are not those of the file."""
    computed = {n for n, _ in model.named_buffers()} - set(model.state_dict())
    of_text = model.config is text_config(model.config)
    needless = {k for k in found["unexpected_keys"] if _HARMLESS.search(k) or (of_text and _NOT_TEXT.search(k))}
    keys = {
        "missing": {k for k in found["missing_keys"] if of_text or not _NOT_TEXT.search(k)},
        "unexpected": {*found["unexpected_keys"]} - needless - computed,
        "of another shape": {k[0] for k in found["mismatched_keys"]},
    }
    if any(keys.values()):
        told = "; ".join(f"{what}: {_first(names)}" for what, names in keys.items() if names)
        raise files.RunError(
            f"{directory}: its weights are not those of {type(model).__name__} with its config.json ({told}), and would be "
            f"random or left out; {_advice(model, keys['missing'], keys['unexpected'])}"
        )


def _first(names: set[str], n: int = 3) -> str:
    return ", ".join(sorted(names)[:n]) + (f" and {len(names) - n:,} more" if len(names) > n else "")


def _advice(model: PreTrainedModel, missing: set[str], unexpected: set[str]) -> str:
    """What to do about weights that are not in the file, or in the file alone."""
    for sign, advice in _ADVICE.items():
        if any(re.search(sign, key) for key in unexpected):
            return advice
    n_layers = getattr(text_config(model.config), "num_hidden_layers", 0)
    numbers = [int(m[1]) for key in unexpected if (m := re.search(r"\.(\d+)\.", key))]
    if numbers and max(numbers) >= n_layers:
        return (
            f"the file has {max(numbers) + 1} layers and config.json {n_layers}: use the config.json of these weights"
        )
    one = min(missing, default="")
    if prefixed := [key for key in unexpected if one and key.endswith(one)]:
        return f"every name begins with {prefixed[0].removesuffix(one)!r}: take that away, or save the model inside"
    head = model.get_output_embeddings()
    if missing and not unexpected and missing <= {n for n, p in model.named_parameters() if p is head.weight}:
        return "it was saved without its head: save the whole model, not model.model"
    return "use config.json and weights that save_pretrained wrote together"


def meta_model(config: PreTrainedConfig) -> PreTrainedModel:
    """A causal language model without weights, on the meta device: shapes and counts at no cost in memory."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def physical_memory() -> int:
    """Memory of this machine in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def n_rows(model: PreTrainedModel) -> int:
    """Number of token ids that a model takes and predicts: the rows of its embedding, or of its head where those are fewer.

    Not the size of a tokenizer, nor what a config says: rows may be padded, and a config may be nested.
    """
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    return min(layer.weight.shape[0] for layer in layers if layer is not None)


#: Parts of a decoder that attend to an encoder's output, as architectures name them; Mllama's attend to images alone.
_CROSS_ATTENTION = re.compile(r"(^|\.)(encoder_attn|crossattention|EncDecAttention|cross_attn)$")


def probe_ids(model: PreTrainedModel) -> torch.Tensor:
    """Up to twelve token ids to try a model on, all of which it takes and predicts: int64 [positions]."""
    n_tokens = min(n_positions(model.config) or 12, 12)
    return torch.arange(1, n_tokens + 1, device=model.device) * 7919 % n_rows(model)


def forward(model: PreTrainedModel, **given: Any) -> dict[str, Any]:
    """The outputs of a forward pass by name; models of other people's need not know `use_cache` or `return_dict`."""
    takes = inspect.signature(model.forward).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in takes.values())
    options = {"use_cache": False, "return_dict": True}
    return model(**given, **{name: value for name, value in options.items() if takes_all or name in takes})


@torch.no_grad()
def check_causal(model: PreTrainedModel) -> None:
    """Raise ValueError unless the logits of every position depend on the tokens up to it alone.

    Tried, not looked up: the last of a few tokens is exchanged, and no earlier logit may move. A model that reads an
    encoder's output is refused as well, since its loss without one means nothing. Leaves mode and generators as they are.
    """
    config, name = model.config, type(model).__name__
    attends = any(_CROSS_ATTENTION.search(n) for n, _ in model.named_modules()) and config.model_type[:6] != "mllama"
    if config.is_encoder_decoder or getattr(config, "add_cross_attention", False) or attends:
        raise ValueError(f"{name} reads the output of an encoder; only causal language models are measured")
    n, ids = n_rows(model), probe_ids(model).repeat(2, 1)
    ids[1, -1] = (ids[0, -1] + n // 2) % n
    was_training = model.training
    model.eval()
    try:
        first, second = (forward(model, input_ids=row[None])["logits"][0, :-1] for row in ids)
    finally:
        model.train(was_training)
    moved = (first - second).abs().max().item()
    # a mixture of experts rounds otherwise where other tokens share an expert: 1e-6 at 32 layers; an encoder moves by 5e-4
    if moved > max(1e-5, 2 * torch.finfo(first.dtype).eps) * first.abs().max().item():
        raise ValueError(
            f"{name} is not causal: logits move by {moved:.2g} when a later token changes, so that each position sees its "
            "own target; only causal language models are measured"
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
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    embedding, head = (id(getattr(layer, "weight", None)) for layer in layers)
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


#: Bytes a parameter of float32 AdamW: weight, gradient and two moments.
STATE_BYTES = 16
