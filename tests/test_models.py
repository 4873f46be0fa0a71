"""Architectures: what they are made of, and that a seed is a promise."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BertConfig,
    BertLMHeadModel,
    GPT2Config,
    GPT2LMHeadModel,
    GPTJConfig,
    GPTJForCausalLM,
)

from fairlm_utils.files import RunError
from fairlm_utils.lm import models
from fairlm_utils.params import ParameterError

SIZES = dict(vocab_size=60, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
ENCODER_DECODER = dict(
    vocab_size=60,
    d_model=32,
    pad_token_id=0,
    **{f"{part}_{size}": n for part in ("encoder", "decoder") for size, n in (("layers", 1), ("ffn_dim", 64))},
    **{f"{part}_attention_heads": 2 for part in ("encoder", "decoder")},
)
SMALL_EXPERTS = dict(num_experts=8, num_experts_per_tok=2, moe_intermediate_size=16)
CAUSAL = {
    "gpt2": dict(vocab_size=60, n_embd=32, n_layer=2, n_head=2),
    "llama": SIZES,
    "opt": dict(SIZES, ffn_dim=64, word_embed_proj_dim=32),
    "mamba": dict(vocab_size=60, hidden_size=32, num_hidden_layers=2),
    "rwkv": dict(vocab_size=60, hidden_size=32, num_hidden_layers=2),
    "gemma3_text": dict(SIZES, num_key_value_heads=2, head_dim=16, sliding_window=4),
    "qwen2_moe": dict(SIZES, num_key_value_heads=2, shared_expert_intermediate_size=16, **SMALL_EXPERTS),
    "gpt_neox": SIZES,
    "bloom": dict(vocab_size=60, hidden_size=32, n_layer=2, n_head=2),
    "mistral": dict(SIZES, num_key_value_heads=2, sliding_window=4),
    "phi": SIZES,
    "falcon": SIZES,
    "xglm": dict(vocab_size=60, d_model=32, ffn_dim=64, num_layers=2, attention_heads=2),
    "ctrl": dict(vocab_size=60, n_embd=32, dff=64, n_layer=2, n_head=2),
    "bert": dict(SIZES, is_decoder=True),
    "bert-generation": dict(SIZES, is_decoder=True),
}
NOT_CAUSAL = {
    "bert": SIZES,
    "roberta": SIZES,
    "xlm-roberta": SIZES,
    "electra": dict(SIZES, embedding_size=32),
    "xlnet": dict(vocab_size=60, d_model=32, n_layer=2, n_head=2, d_inner=64),
    "bert-generation": dict(SIZES, is_decoder=True, add_cross_attention=True),
    "gemma3_text": dict(SIZES, num_key_value_heads=2, head_dim=16, use_bidirectional_attention=True),
    "bart": ENCODER_DECODER,
    "marian": ENCODER_DECODER,
}


def test_same_seed_same_weights_other_seed_others_and_the_global_generator_has_no_part():
    first = models.build_model("qwen2-tiny", 300, 16, seed=3).state_dict()
    torch.manual_seed(99)
    state = torch.get_rng_state()
    again, other = (
        models.build_model("qwen2-tiny", 300, 16, seed=3).state_dict(),
        models.build_model("qwen2-tiny", 300, 16, seed=4).state_dict(),
    )
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("name, n", [("qwen2-0.5b", 494_032_768), ("qwen2-1.5b", 1_543_714_304)])
def test_published_sizes_have_the_published_number_of_parameters(name, n):
    with torch.device("meta"):
        model = models.AutoModelForCausalLM.from_config(models.model_config(name, 151_936, 128))
    assert model.num_parameters() == n
    assert model.config.rope_parameters["rope_theta"] == 1e6 and model.config.tie_word_embeddings


@pytest.mark.parametrize("name", models.REGISTRY)
def test_registry_models_are_tied_and_take_the_vocabulary(name):
    config = models.model_config(name, 1234, 64)
    assert config.vocab_size == 1234 and config.tie_word_embeddings


def test_a_config_file_is_a_model(tmp_path):
    path = tmp_path / "gpt2.json"
    path.write_text(json.dumps({"model_type": "gpt2", "n_layer": 1, "n_head": 2, "n_embd": 8, "n_positions": 32}))
    model = models.build_model(str(path), 100, 16, seed=0)
    assert model.get_input_embeddings().weight.shape == (100, 8)
    with pytest.raises(ParameterError, match="longer than the 32 positions"):
        models.model_config(str(path), 100, 64)
    path.write_text('{"model_type": "gpt2", "n_layer": 2, "n_layer": 1}')
    with pytest.raises(ParameterError, match="key 'n_layer' stands twice"):
        models.model_config(str(path), 100, 16)


@pytest.mark.parametrize(
    "config",
    [
        {
            "model_type": "olmo2",
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
        },
        {
            "model_type": "gpt_neo",
            "hidden_size": 16,
            "num_layers": 1,
            "attention_types": [[["global"], 1]],
            "num_heads": 2,
        },
    ],
)
def test_every_row_of_a_model_of_a_config_trains(config, tmp_path):
    """OLMo2's config has a padding token, which in another vocabulary is another token; GPT-Neo has no fused attention."""
    (tmp_path / "c.json").write_text(json.dumps(config))
    model = models.build_model(str(tmp_path / "c.json"), 10, 8, seed=0)
    ids = torch.arange(10)[:8][None].repeat(2, 1)
    model(input_ids=ids, labels=ids.flip(1)).loss.backward()
    assert (model.get_input_embeddings().weight.grad[:7].norm(dim=1) > 0).all()


def test_a_config_that_must_have_a_padding_token_is_refused_and_one_of_quantised_weights_is_not(tmp_path):
    (tmp_path / "c.json").write_text('{"model_type": "modernbert-decoder"}')
    with pytest.raises(ParameterError, match=r"c\.json' cannot be built .*pad_token_id"):
        models.build_model(str(tmp_path / "c.json"), 10, 8, seed=0)
    config = {
        "model_type": "gpt2",
        "n_layer": 1,
        "n_head": 2,
        "n_embd": 8,
        "quantization_config": {"quant_method": "awq"},
    }
    (tmp_path / "c.json").write_text(json.dumps(config))
    model = models.build_model(str(tmp_path / "c.json"), 10, 8, seed=0)
    assert not hasattr(model.config, "quantization_config")


def test_an_unknown_model_names_the_known_ones(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ParameterError, match="qwen2-tiny"):
        models.model_config("qwen3-tiny", 100, 16)


def test_weight_decay_groups_hold_every_parameter_once():
    model = models.build_model("qwen2-tiny", 300, 16, seed=0)
    for decayed, norm_decay in (("all", 0.5), ("matrices", 0.0)):
        groups, table = models.weight_decay_groups(model, 0.5, decayed)
        parameters = [p for g in groups for p in g["params"]]
        assert len({id(p) for p in parameters}) == len(parameters) == len(list(model.parameters()))
        assert table["n_parameters"].sum() == model.num_parameters()
        by_name = table.set_index("parameter")["weight_decay"]
        assert by_name["model.norm.weight"] == norm_decay and by_name["model.embed_tokens.weight"] == 0.5
    with pytest.raises(ParameterError):
        models.weight_decay_groups(model, 0.5, "some")


def test_only_causal_language_models_pass_the_check():
    """The last token is exchanged: a causal model's earlier logits stay, an encoder's move, with weights small or large."""
    causal = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2)).train()
    state = torch.get_rng_state()
    models.check_causal(causal)
    assert causal.training and torch.equal(state, torch.get_rng_state())
    sizes = dict(vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    for spread in (0.02, 0.5):
        encoder = BertLMHeadModel(BertConfig(**sizes, initializer_range=spread))
        with pytest.raises(ValueError, match="is not causal"):
            models.check_causal(encoder)
    with pytest.raises(ValueError, match="output of an encoder"):
        models.check_causal(BertLMHeadModel(BertConfig(**sizes, is_decoder=True, add_cross_attention=True)))


@pytest.mark.parametrize("kind", CAUSAL)
def test_causal_architectures_pass_the_check(kind):
    models.check_causal(AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **CAUSAL[kind])))


def test_the_positions_of_a_model_whose_config_calls_them_max_seq_len():
    config = AutoConfig.for_model("mpt", vocab_size=50, d_model=16, n_layers=1, n_heads=2, max_seq_len=16)
    ids = torch.zeros(1, 17, dtype=torch.long)
    with pytest.raises(RuntimeError):
        AutoModelForCausalLM.from_config(config)(ids)
    models.check_context(config, 16, "mpt")
    with pytest.raises(ParameterError, match="17 is longer than the 16 positions"):
        models.check_context(config, 17, "mpt")


def test_roberta_counts_positions_from_its_padding_on():
    sizes = dict(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    config = AutoConfig.for_model("roberta", **sizes, max_position_embeddings=18, pad_token_id=1, is_decoder=True)
    model = AutoModelForCausalLM.from_config(config)
    model(torch.full((1, 16), 5))
    with pytest.raises((IndexError, RuntimeError)):
        model(torch.full((1, 17), 5))
    models.check_context(config, 16, "roberta")
    with pytest.raises(ParameterError, match="17 is longer than the 16 positions"):
        models.check_context(config, 17, "roberta")


@pytest.mark.parametrize("kind", NOT_CAUSAL)
def test_other_architectures_do_not_and_are_not_trained(kind, tmp_path):
    config = AutoConfig.for_model(kind, **NOT_CAUSAL[kind])
    with pytest.raises(ValueError, match="only causal language models"):
        models.check_causal(AutoModelForCausalLM.from_config(config))
    config.save_pretrained(tmp_path)
    with pytest.raises(ParameterError, match=r"cannot be built .*(only causal language models|scaled_dot_product)"):
        models.build_model(str(tmp_path), 60, 16, seed=0)


def llama(**more):
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**SIZES, **more})).eval()


def rewritten(folder, change=None, **config):
    """The folder of a model with other weights, or other values in its config.json."""
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **config}))
    if change:
        file = folder / "model.safetensors"
        save_file({k: v.clone() for k, v in change(load_file(file)).items()}, file, metadata={"format": "pt"})


def prefixed(prefix):
    return lambda weights: {prefix + name: weight for name, weight in weights.items()}


@pytest.mark.parametrize(
    "make, change, config, said",
    [
        (
            llama,
            prefixed("_orig_mod."),
            {},
            r"missing: lm_head.weight, .* unexpected: _orig_mod.lm_head.*torch.compile",
        ),
        (llama, prefixed("module."), {}, "missing.*model.module"),
        (llama, prefixed("base_model.model."), {}, "missing.*merge_and_unload"),
        (llama, prefixed("net."), {}, r"missing.*every name begins with 'net\.'"),
        (lambda: llama().model, None, {}, r"\(missing: lm_head.weight\).*without its head"),
        (lambda: llama(tie_word_embeddings=True), None, {"tie_word_embeddings": False}, "missing: lm_head.weight"),
        (llama, None, {"num_hidden_layers": 1}, "unexpected: model.layers.1.* the file has 2 layers and config.json 1"),
        (llama, None, {"num_hidden_layers": 3}, "missing: model.layers.2"),
        (llama, None, {"vocab_size": 70}, "of another shape: lm_head.weight, model.embed_tokens.weight"),
        (llama, lambda w: {k: v for k, v in w.items() if "norm" not in k}, {}, "missing: .*norm.weight and 2 more"),
        (llama, lambda w: {**w, "model.norm.SCB": torch.zeros(1)}, {}, "unexpected: model.norm.SCB.*quantised"),
        (llama, None, {"quantization_config": {"quant_method": "fp8"}}, "is quantised"),
        (
            lambda: transformers.GPT2ForSequenceClassification(GPT2Config(**CAUSAL["gpt2"])),  # its embedding is a head
            None,
            {},
            r"\(unexpected: score.weight\).*reward",
        ),
        (
            lambda: transformers.BartForConditionalGeneration(transformers.BartConfig(**ENCODER_DECODER)),
            None,
            {},
            "bart is an encoder-decoder",
        ),
        (
            lambda: transformers.DistilBertForMaskedLM(transformers.DistilBertConfig(vocab_size=60, dim=24)),
            None,
            {},
            "distilbert is no decoder",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_weights_that_are_not_the_models_are_named(tmp_path, make, change, config, said):
    make().save_pretrained(tmp_path)
    rewritten(tmp_path, change, **config)
    with pytest.raises(RunError, match=said):
        models.load_model(tmp_path)


def test_an_adapter_is_no_model_alone_or_beside_one(tmp_path):
    llama().save_pretrained(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "gpt2", "peft_type": "LORA"}))
    for name in ("config.json", "model.safetensors"):
        with pytest.raises(RunError, match=r"PEFT adapter.*merge_and_unload"):
            models.load_model(tmp_path)
        (tmp_path / name).unlink()


@pytest.mark.parametrize(
    "make, change, config",
    [
        (llama, None, {}),
        (lambda: GPT2LMHeadModel(GPT2Config(**CAUSAL["gpt2"])).transformer, None, {}),  # as GPT-2 is published
        (
            lambda: llama(tie_word_embeddings=True),
            lambda w: {**w, "lm_head.weight": w["model.embed_tokens.weight"]},
            {},
        ),
        (llama, None, {"tie_word_embeddings": True}),  # the file has a head of its own, and is right
        (llama, lambda w: {**w, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8)}, {}),
        (
            lambda: GPT2LMHeadModel(GPT2Config(**CAUSAL["gpt2"])),
            lambda w: {
                **w,
                "transformer.h.0.attn.bias": torch.ones(1, 1, 4, 4),
                "h.0.attn.masked_bias": torch.ones(()),
            },
            {},
        ),
        (lambda: llama().to(torch.bfloat16), None, {}),
        (llama, None, {"return_dict": False}),
        (
            lambda: GPTJForCausalLM(
                GPTJConfig(vocab_size=50, n_positions=16, n_embd=8, n_layer=1, n_head=2, rotary_dim=2)
            ),
            lambda w: {
                **w,
                "transformer.h.0.attn.bias": torch.ones(1, 1, 16, 16, dtype=torch.bool),
                "transformer.h.0.attn.masked_bias": torch.ones(()),
            },
            {},
        ),
    ],
)
def test_every_weight_of_a_loaded_model_is_the_files(tmp_path, make, change, config):
    model = make()
    model.save_pretrained(tmp_path)
    rewritten(tmp_path, change, **config)
    loaded = models.load_model(tmp_path)
    own = {name.removeprefix("transformer."): weight for name, weight in model.state_dict().items()}
    for name, weight in loaded.state_dict().items():
        expected = own[
            "wte.weight" if name == "lm_head.weight" and name not in own else name.removeprefix("transformer.")
        ]
        assert weight.dtype == torch.float32 and torch.equal(weight, expected.float()), name
    assert loaded(input_ids=torch.zeros(1, 4, dtype=torch.long)).logits.shape[1] == 4  # by name


def test_a_model_of_text_and_images_without_its_images(tmp_path):
    """Weights that text never reaches may be left out: they are not measured."""
    text = dict(SIZES, num_key_value_heads=2, head_dim=16)
    vision = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, image_size=28)
    config = transformers.Gemma3Config(text_config=text, vision_config=dict(vision, patch_size=14))
    torch.manual_seed(0)
    model = transformers.Gemma3ForConditionalGeneration(config).eval()
    model.save_pretrained(tmp_path)
    rewritten(tmp_path, lambda w: {k: v for k, v in w.items() if "language_model" in k})
    loaded = models.load_model(tmp_path, 60)
    ids = torch.arange(20)[None]
    assert models.n_rows(loaded) == 60 and torch.equal(loaded(input_ids=ids).logits, model(input_ids=ids).logits)
    assert models.build_model(str(tmp_path), 70, 16, seed=0).get_input_embeddings().weight.shape[0] == 70
