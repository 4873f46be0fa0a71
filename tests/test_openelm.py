"""OpenELM against reference tensors, published sizes, and itself."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from fairlm_utils.lm.openelm import OPENELM_SIZES, OpenELMConfig, OpenELMForCausalLM, make_divisible

FIXTURES = Path(__file__).parent / "fixtures"
TINY = FIXTURES / "openelm-tiny-a"
PUBLISHED = json.loads((FIXTURES / "published_sizes.json").read_text())["openelm"]
NAMES = {
    "openelm-270m": "OpenELM-270M",
    "openelm-450m": "OpenELM-450M",
    "openelm-1.1b": "OpenELM-1_1B",
    "openelm-3b": "OpenELM-3B",
}


@pytest.fixture(scope="module")
def reference():
    return load_file(TINY / "inputs.safetensors"), load_file(TINY / "expected.safetensors")


@pytest.fixture
def model():
    return AutoModelForCausalLM.from_pretrained(TINY, trust_remote_code=False).train()


@pytest.mark.parametrize("masked", [False, True])
def test_logits_loss_and_gradients_are_those_of_the_reference(model, reference, masked):
    inputs, expected = reference
    ids, mask, suffix = inputs["input_ids"], inputs["attention_mask"] if masked else None, "_masked" if masked else ""
    labels = ids if mask is None else ids.masked_fill(mask == 0, -100)
    out = model(input_ids=ids, attention_mask=mask, labels=labels)
    out.loss.backward()
    kept = slice(None) if mask is None else mask.bool()
    torch.testing.assert_close(out.logits[kept], expected[f"logits{suffix}"][kept], atol=1e-5, rtol=0)
    torch.testing.assert_close(
        out.loss.detach(), expected[f"loss{suffix}"].reshape(()), atol=1e-5, rtol=1e-5, check_dtype=False
    )
    squares = 0.0
    for name, parameter in model.named_parameters():
        norm = parameter.grad.norm()
        squares += float(norm) ** 2
        wanted = expected[f"grad_norm{suffix}_per_param.{name}"].reshape(())
        torch.testing.assert_close(norm, wanted, atol=1e-6, rtol=1e-4, check_dtype=False, msg=name)
    assert squares**0.5 == pytest.approx(float(expected[f"grad_norm{suffix}"]), rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("vocab_size", [32000, 32005, 32128])
def test_published_sizes_have_the_published_layers_and_parameters(name, vocab_size):
    known = PUBLISHED[NAMES[name]]
    config = OpenELMConfig(**OPENELM_SIZES[name], vocab_size=vocab_size)
    with torch.device("meta"):
        model = OpenELMForCausalLM(config)
    assert config.num_query_heads == known["num_query_heads"] and config.num_kv_heads == known["num_kv_heads"]
    assert (
        config.ffn_multipliers == known["ffn_multipliers_expanded"]
        and config.ffn_intermediate_dims == known["ffn_intermediate_dims"]
    )
    assert sum(p.numel() for p in model.parameters()) == known["num_parameters"][str(vocab_size)]
    assert sum(p.numel() for p in model.parameters() if p.dim() == 1) == known["num_norm_parameters_1d"]
    assert len(model.state_dict()) == known["num_state_dict_tensors"]


def test_initialisation_has_the_effective_standard_deviations():
    config = OpenELMConfig(**OPENELM_SIZES["openelm-tiny"], vocab_size=4000)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            assert bool((parameter == 1).all())
            continue
        depth_scaled = "out_proj" in name or "proj_2" in name
        std = (128 * 2 * 2) ** -0.5 if depth_scaled else 128**-0.5  # in_features is model_dim for all others
        assert float(parameter.detach().std()) == pytest.approx(std, rel=0.05), name


def test_cache_and_generation_agree_with_the_full_forward(model, reference):
    ids = reference[0]["input_ids"]
    model.eval()
    with torch.inference_mode():
        full = model(input_ids=ids, use_cache=False).logits
        first = model(input_ids=ids[:, :20], use_cache=True)
        logits, cache = [first.logits], first.past_key_values
        for i in range(20, 24):
            step = model(input_ids=ids[:, i : i + 1], past_key_values=cache, use_cache=True)
            logits.append(step.logits)
        rest = model(input_ids=ids[:, 24:], past_key_values=cache, use_cache=True)
    torch.testing.assert_close(torch.cat([*logits, rest.logits], dim=1), full, atol=1e-5, rtol=0)
    prompt = {"input_ids": ids[:1, :8], "attention_mask": torch.ones_like(ids[:1, :8])}
    new = model.generate(**prompt, max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0)
    greedy = ids[:1, :8]
    for _ in range(6):
        greedy = torch.cat([greedy, model(input_ids=greedy, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(new, greedy)


def test_causal_attention_needs_no_mask_in_memory(model, reference, monkeypatch):
    seen = []
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", _recording(seen))
    model(input_ids=reference[0]["input_ids"], use_cache=False)
    assert len(seen) == 4 and all(mask is None and causal for mask, causal in seen)


def _recording(seen, original=torch.nn.functional.scaled_dot_product_attention):
    def attention(*args, attn_mask=None, is_causal=False, **kwargs):
        seen.append((attn_mask, is_causal))
        return original(*args, attn_mask=attn_mask, is_causal=is_causal, **kwargs)

    return attention


def test_eager_attention_agrees(reference):
    eager = AutoModelForCausalLM.from_pretrained(TINY, attn_implementation="eager")
    torch.testing.assert_close(
        eager(input_ids=reference[0]["input_ids"]).logits, reference[1]["logits"], atol=1e-5, rtol=0
    )


def test_a_saved_model_keeps_names_tensors_and_configuration(model, reference, tmp_path):
    model.save_pretrained(tmp_path)
    saved, original = load_file(tmp_path / "model.safetensors"), load_file(TINY / "model.safetensors")
    assert saved.keys() == original.keys() and all(torch.equal(saved[k], original[k]) for k in saved)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = reference[0]["input_ids"]
    assert torch.equal(again(input_ids=ids).logits, model.eval()(input_ids=ids).logits)
    assert again.config.num_query_heads == model.config.num_query_heads == [2, 4, 4, 4]


def test_untied_output_layer_is_its_own():
    config = OpenELMConfig(**{**OPENELM_SIZES["openelm-tiny"], "share_input_output_layers": False}, vocab_size=50)
    model = OpenELMForCausalLM(config)
    assert (
        "lm_head.weight" in model.state_dict() and model.lm_head.weight is not model.transformer.token_embeddings.weight
    )


def test_gradient_checkpointing_leaves_gradients_as_they_are(model, reference):
    ids = reference[0]["input_ids"]
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    plain = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    model.activation_checkpointing_enable()
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, plain[name])


@pytest.mark.parametrize(
    "values, said",
    [
        ({"head_dim": 15}, "head_dim"),
        ({"ffn_multipliers": [1, 2, 3]}, "ffn_multipliers"),
        ({"num_kv_heads": [3, 3]}, "do not divide"),
    ],
)
def test_impossible_configurations_are_refused(values, said):
    with pytest.raises(ValueError, match=said):
        OpenELMConfig(**{**OPENELM_SIZES["openelm-tiny"], **values})


def test_rounding_keeps_nine_tenths():
    assert make_divisible(1280 * 0.63, 256) == 768 and make_divisible(100, 64) == 128
