"""Architectures: what they are made of, and that a seed is a promise."""

import json

import pytest
import torch
from transformers import BertConfig, BertLMHeadModel, GPT2Config, GPT2LMHeadModel

from fairlm_utils import models
from fairlm_utils.params import ParameterError


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
