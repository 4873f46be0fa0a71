"""OpenELM (Mehta et al., arXiv 2404.14619) as a transformers model, with the published checkpoints' fields and tensor names.

A pre-norm decoder whose width varies with depth: attention heads and feed-forward width of each layer follow a linear
schedule of multipliers. Queries and keys are normalised per head before RoPE, key-value heads are shared by groups of
query heads, and the output layer is the embedding. Importing this module registers it with the Auto classes, so that
published checkpoints load without remote code.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb, eager_attention_forward

EPSILON = 1e-6  # of every normalisation; not a field of the published configurations

_PUBLISHED = dict(
    qkv_multipliers=(0.5, 1.0), ffn_multipliers=(0.5, 4.0), num_gqa_groups=4, ffn_dim_divisor=256, rope_max_length=4096,
    max_context_length=2048, normalize_qk_projections=True, share_input_output_layers=True,
)  # fmt: skip
_TINY = dict(num_transformer_layers=2, model_dim=128, head_dim=16, num_gqa_groups=2, ffn_dim_divisor=32)
#: Constructor arguments of the published sizes, and of a tiny one of the same make for CPUs.
OPENELM_SIZES: dict[str, dict[str, Any]] = {
    "openelm-tiny": {**_PUBLISHED, **_TINY},
    "openelm-270m": {**_PUBLISHED, "num_transformer_layers": 16, "model_dim": 1280, "head_dim": 64},
    "openelm-450m": {**_PUBLISHED, "num_transformer_layers": 20, "model_dim": 1536, "head_dim": 64},
    "openelm-1.1b": {**_PUBLISHED, "num_transformer_layers": 28, "model_dim": 2048, "head_dim": 64},
    "openelm-3b": {**_PUBLISHED, "num_transformer_layers": 36, "model_dim": 3072, "head_dim": 128},
}


def make_divisible(value: float, divisor: int) -> int:
    """The multiple of `divisor` nearest to `value`, at least `divisor`, and one more if it is below 0.9 of `value`.

    >>> [make_divisible(v, 8) for v in (3, 12, 11.9, 19.5)]
    [8, 16, 16, 24]
    """
    nearest = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return nearest + divisor if nearest < 0.9 * value else nearest


def layer_multipliers(value: Any, n_layers: int, name: str) -> list[float]:
    """A multiplier for each layer: one number for all, a pair interpolated linearly (rounded to 2 decimals), or a list."""
    if isinstance(value, int | float):
        return [float(value)] * n_layers
    if len(value) == n_layers and n_layers != 2:
        return [float(v) for v in value]
    if len(value) != 2:
        raise ValueError(
            f"{name}: {value!r} must be a number, a pair (first, last) or a list of {n_layers} numbers, one per layer"
        )
    return [round(float(v), 2) for v in np.linspace(value[0], value[1], n_layers)]


class OpenELMConfig(PreTrainedConfig):
    """Configuration of OpenELM; fields and defaults are those of the published `configuration_openelm`.

    Derived, one value per layer: `num_query_heads`, `num_kv_heads`, `ffn_multipliers`, `ffn_intermediate_dims`. Raises
    ValueError for a model that cannot be built.
    """

    model_type = "openelm"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012 - transformers' own form
    attribute_map = {  # noqa: RUF012
        "hidden_size": "model_dim",
        "num_hidden_layers": "num_transformer_layers",
        "max_position_embeddings": "max_context_length",
    }

    vocab_size: int = 32000
    max_context_length: int = 2048
    num_transformer_layers: int = 12
    model_dim: int = 2048
    head_dim: int = 128
    qkv_multipliers: Any = 1.0
    num_query_heads: Any = None
    num_kv_heads: Any = None
    num_gqa_groups: int | None = 1
    ffn_multipliers: Any = 4.0
    ffn_with_glu: bool = True
    ffn_dim_divisor: int = 256
    activation_fn_name: str = "swish"
    normalization_layer_name: str = "rms_norm"
    normalize_qk_projections: bool = False
    share_input_output_layers: bool = False
    rope_freq_constant: int = 10000
    rope_max_length: int = 4096
    initializer_range: float = 0.02
    use_cache: bool = True
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        """Derive the per-layer lists."""
        n, groups = self.num_transformer_layers, self.num_gqa_groups or 1
        if self.head_dim % 2:
            raise ValueError(f"head_dim: {self.head_dim} is odd; rotary positions pair its halves")
        qkv = layer_multipliers(self.qkv_multipliers, n, "qkv_multipliers")
        divisor = self.head_dim * (self.num_gqa_groups or 2)
        self.num_query_heads = [make_divisible(self.model_dim * m, divisor) // self.head_dim for m in qkv]
        if self.num_kv_heads is None:  # a saved configuration states them
            self.num_kv_heads = [heads // groups for heads in self.num_query_heads]
        if any(q % kv for q, kv in zip(self.num_query_heads, self.num_kv_heads, strict=True)):
            raise ValueError(f"num_kv_heads: {self.num_kv_heads} do not divide the query heads {self.num_query_heads}")
        self.ffn_multipliers = layer_multipliers(self.ffn_multipliers, n, "ffn_multipliers")
        self.tie_word_embeddings = self.share_input_output_layers
        super().__post_init__(**kwargs)

    @property
    def ffn_intermediate_dims(self) -> list[int]:
        """Feed-forward width of each layer; of one half where the unit is gated."""
        return [make_divisible(self.model_dim * m, self.ffn_dim_divisor) for m in self.ffn_multipliers]


class OpenELMAttention(nn.Module):
    """Grouped-query attention with normalised queries and keys and rotary positions."""

    def __init__(self, config: OpenELMConfig, layer_idx: int):
        super().__init__()
        self.config, self.layer_idx, self.head_dim = config, layer_idx, config.head_dim
        self.n_query, self.n_kv = config.num_query_heads[layer_idx], config.num_kv_heads[layer_idx]
        self.num_key_value_groups = self.n_query // self.n_kv
        self.is_causal = True
        self.qkv_proj = nn.Linear(config.model_dim, (self.n_query + 2 * self.n_kv) * self.head_dim, bias=False)
        self.q_norm = LlamaRMSNorm(self.head_dim, EPSILON) if config.normalize_qk_projections else nn.Identity()
        self.k_norm = LlamaRMSNorm(self.head_dim, EPSILON) if config.normalize_qk_projections else nn.Identity()
        self.out_proj = nn.Linear(self.n_query * self.head_dim, config.model_dim, bias=False)
        self.out_proj.depth_scaled = True

    def forward(
        self, x: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor | None, cache: Cache | None = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        heads = self.qkv_proj(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        query, key, value = heads.split((self.n_query, self.n_kv, self.n_kv), dim=1)
        normed = self.q_norm(query), self.k_norm(key)
        query, key = (h.to(normed[0].dtype) for h in apply_rotary_pos_emb(*normed, *rotary))  # worked out in float32
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        out, weights = attend(self, query, key, value, mask, dropout=0.0, scaling=self.head_dim**-0.5, **kwargs)
        return self.out_proj(out.flatten(2)), weights


def rotary_tables(position_ids: Tensor, head_dim: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines [batch, positions, head_dim] in float32; feature j turns with feature j + head_dim / 2."""
    exponents = torch.arange(0, head_dim, 2, device=position_ids.device, dtype=torch.float32) / head_dim
    angles = position_ids[..., None].float() * base**-exponents
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


class OpenELMFeedForward(nn.Module):
    """Feed-forward unit; gated, the first half of `proj_1` passes the activation and multiplies the second."""

    def __init__(self, config: OpenELMConfig, layer_idx: int):
        super().__init__()
        width = config.ffn_intermediate_dims[layer_idx]
        self.gated, self.activation = config.ffn_with_glu, ACT2FN[config.activation_fn_name]
        self.proj_1 = nn.Linear(config.model_dim, (2 if self.gated else 1) * width, bias=False)
        self.proj_2 = nn.Linear(width, config.model_dim, bias=False)
        self.proj_2.depth_scaled = True

    def forward(self, x: Tensor) -> Tensor:
        if not self.gated:
            return self.proj_2(self.activation(self.proj_1(x)))
        gate, linear = self.proj_1(x).chunk(2, dim=-1)
        return self.proj_2(self.activation(gate) * linear)


class OpenELMDecoderLayer(GradientCheckpointingLayer):
    """Attention and feed-forward unit, each behind a norm and beside a residual."""

    def __init__(self, config: OpenELMConfig, layer_idx: int):
        super().__init__()
        self.attn = OpenELMAttention(config, layer_idx)
        self.ffn = OpenELMFeedForward(config, layer_idx)
        self.ffn_norm = LlamaRMSNorm(config.model_dim, EPSILON)
        self.attn_norm = LlamaRMSNorm(config.model_dim, EPSILON)

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        x = x + self.attn(self.attn_norm(x), **kwargs)[0]
        return x + self.ffn(self.ffn_norm(x))


class OpenELMPreTrainedModel(PreTrainedModel):
    """What both models share: how weights start, and what the implementation supports."""

    config: OpenELMConfig
    config_class = OpenELMConfig
    base_model_prefix = "transformer"
    _input_embed_layer = "token_embeddings"
    supports_gradient_checkpointing = True
    _no_split_modules = ["OpenELMDecoderLayer"]  # noqa: RUF012 - transformers' own form
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """The effective initialisation of the reference code, which does not use `initializer_range`.

        Embedding: normal with standard deviation model_dim^-1/2; linear layers: in_features^-1/2, but the two that
        write to the residual: model_dim^-1/2 (2 layers)^-1/2; norms: ones.
        """
        dim, n_layers = self.config.model_dim, self.config.num_transformer_layers
        if isinstance(module, nn.Linear):
            depth_scaled = getattr(module, "depth_scaled", False)
            init.normal_(module.weight, std=(dim * 2 * n_layers) ** -0.5 if depth_scaled else module.in_features**-0.5)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=dim**-0.5)
        elif isinstance(module, LlamaRMSNorm):
            init.ones_(module.weight)


class OpenELMModel(OpenELMPreTrainedModel):
    """OpenELM without its output layer."""

    def __init__(self, config: OpenELMConfig):
        super().__init__(config)
        self.token_embeddings = nn.Embedding(config.vocab_size, config.model_dim)
        self.layers = nn.ModuleList(OpenELMDecoderLayer(config, i) for i in range(config.num_transformer_layers))
        self.norm = LlamaRMSNorm(config.model_dim, EPSILON)
        self.gradient_checkpointing = False
        self.post_init()

    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None,
        past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:  # fmt: skip
        """Hidden states [batch, positions, model_dim] after the last norm, and the cache if `use_cache`."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        x = self.token_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            seen = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = torch.arange(seen, seen + x.shape[1], device=x.device)[None]
        # None where there is no padding: the causal kernels of scaled_dot_product_attention then need no mask in memory
        mask = create_causal_mask(self.config, x, attention_mask, past_key_values, position_ids)
        rotary = rotary_tables(position_ids, self.config.head_dim, self.config.rope_freq_constant)
        for layer in self.layers:
            x = layer(x, rotary=rotary, mask=mask, cache=past_key_values)
        return BaseModelOutputWithPast(self.norm(x), past_key_values if use_cache else None)


class OpenELMForCausalLM(OpenELMPreTrainedModel, GenerationMixin):
    """OpenELM with its output layer, the embedding itself where `share_input_output_layers`."""

    def __init__(self, config: OpenELMConfig):
        super().__init__(config)
        self.transformer = OpenELMModel(config)
        if not config.share_input_output_layers:
            self.lm_head = nn.Linear(config.model_dim, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.transformer.token_embeddings if self.config.share_input_output_layers else self.lm_head

    def set_output_embeddings(self, value: nn.Module) -> None:
        if self.config.share_input_output_layers:
            self.set_input_embeddings(value)
        else:
            self.lm_head = value

    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None,
        past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None,
        use_cache: bool | None = None, logits_to_keep: int = 0, **kwargs: Any,
    ) -> CausalLMOutputWithPast:  # fmt: skip
        """Logits [batch, positions, vocabulary] and, with `labels`, the mean loss in nats of the tokens that follow."""
        outputs = self.transformer(input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache)
        hidden = outputs.last_hidden_state[:, -logits_to_keep:] if logits_to_keep else outputs.last_hidden_state
        logits = nn.functional.linear(hidden, self.get_output_embeddings().weight)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=outputs.past_key_values)


AutoConfig.register("openelm", OpenELMConfig, exist_ok=True)
AutoModel.register(OpenELMConfig, OpenELMModel, exist_ok=True)
AutoModelForCausalLM.register(OpenELMConfig, OpenELMForCausalLM, exist_ok=True)
