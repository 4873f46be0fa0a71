"""Costs against hand-made counts and against what PyTorch counts; the paper's experiment files against the paper."""

import re
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from fairlm_utils import params
from fairlm_utils.__main__ import main
from fairlm_utils.experiment import cost
from fairlm_utils.lm import models, training
from fairlm_utils.lm.models import build_model, model_config, weight_decay_groups
from fairlm_utils.lm.token_loss import TokenSums, record_token_loss
from fairlm_utils.params import EvaluationParams, ParameterError

ROOT = Path(__file__).parents[1]
PAPER = sorted((ROOT / "params" / "paper").glob("*.yaml"))
PANELS = [file for file in PAPER if not file.stem.endswith("-packed")]


@pytest.mark.parametrize("name", ["qwen2-tiny", "openelm-tiny"])
def test_flops_agree_with_those_pytorch_counts(name):
    context, model = 64, build_model(name, 1000, 64, seed=0)
    model.set_attn_implementation("eager")  # fused attention is not counted on every device
    ids = torch.zeros(2, context, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    counted = counter.get_total_flops() / ids.numel()
    # eager attention does the full square, of which a causal kernel does half
    estimated = cost.flops_per_token(model.config, context) + 6.0 * context * cost.attention_width(model.config)
    assert estimated == pytest.approx(counted, rel=0.05)


def test_parameters_of_a_tied_model_multiply_once_and_an_untied_look_up_never(tmp_path):
    config = model_config("qwen2-tiny", 1000, 64)
    n, multiplying = cost.parameter_counts(config)
    norms_and_biases = sum(p.numel() for p in build_model("qwen2-tiny", 1000, 64, 0).parameters() if p.dim() == 1)
    assert n - multiplying == norms_and_biases
    config.tie_word_embeddings = False
    assert cost.parameter_counts(config) == (n + 1000 * 128, multiplying)


def test_positions_are_look_ups_and_layers_without_attention_have_none():
    small = transformers.GPT2Config(n_embd=64, n_layer=2, n_head=2, n_positions=1024, vocab_size=300)
    n, multiplying = cost.parameter_counts(small)
    model = transformers.GPT2LMHeadModel(small)
    assert n - multiplying == 1024 * 64 + sum(p.numel() for p in model.parameters() if p.dim() == 1)
    width = transformers.LlamaConfig(hidden_size=64, num_attention_heads=4, num_hidden_layers=8)
    assert cost.attention_width(width) == 64 * 8
    hybrid = transformers.JambaConfig(hidden_size=64, num_attention_heads=4, num_hidden_layers=8)
    assert hybrid.layers_block_type.count("attention") == 1 and cost.attention_width(hybrid) == 64


def test_costs_scale_with_steps_and_runs():
    one = cost.cost(EvaluationParams.check({"steps": 100}), "H200")
    two = cost.cost(EvaluationParams.check({"steps": 200}), "H200", n_runs=3)
    assert two["FLOPs per run"] == pytest.approx(2 * one["FLOPs per run"]) and two["hours in all"] == pytest.approx(
        6 * one["hours in all"]
    )
    with pytest.raises(ParameterError, match="hardware"):
        cost.cost(EvaluationParams.check({}), "abacus")


def test_four_panels_with_what_the_paper_states():
    assert len(PANELS) == 4
    for file in PAPER:
        points = params.expand(params.read(file))
        p = points[0]
        assert p.steps == 10_000 and p.vocab_size == 32_000 and {q.seed for q in points} == set(range(5))
        assert min(q.weight_decay for q in points) == 0 and max(q.weight_decay for q in points) == 2
        n, _ = cost.parameter_counts(model_config(p.model, 32_005, p.context))
        assert p.context == (128 if n < 1e9 else 64) and p.corpus == ("imdb" if n < 1e9 else "imdb-xl")


@pytest.mark.parametrize("file", PAPER, ids=lambda f: f.stem)
def test_what_a_panels_settings_imply_is_what_its_file_says(file):
    p, text = params.expand(params.read(file))[-1], file.read_text(encoding="utf-8")
    said = re.search(
        r"Implied: (\S+) epochs of (\S+) blocks; λ Σ lr = (\S+) λ; τ = 1/\(lr λ\) is (\S+)/λ epochs .*; (\S+) parameters per target "
        r"\((\S+) targets",
        text,
    )
    epochs, n_blocks, decay, tau, per_target, targets = (float(number.replace(",", "")) for number in said.groups())
    n, _ = cost.parameter_counts(model_config(p.model, 32_005, p.context))
    assert epochs == round(p.steps * p.batch_size / n_blocks) and per_target == round(n / targets)
    assert decay == pytest.approx(training.decay_sum(p.model_copy(update={"weight_decay": 1.0})), rel=0.1)
    assert tau == pytest.approx(p.batch_size / p.learning_rate / n_blocks, rel=0.03)
    assert 0.9 < targets / (n_blocks * (p.context - 1)) <= 1


def test_the_packed_panel_differs_in_layout_alone():
    packed, plain = (params.read(ROOT / f"params/paper/openelm-270m-imdb{name}.yaml") for name in ("-packed", ""))
    assert {k for k in plain | packed if packed.get(k) != plain.get(k)} == {"experiment", "packing"}


@pytest.mark.parametrize("file", PANELS, ids=lambda f: f.stem)
def test_one_step_of_every_panel(file, tmp_path):
    """A real step on the CPU where weights, gradients and moments fit, else one of shapes alone."""
    p = params.expand(params.read(file))[-1]
    n, _ = cost.parameter_counts(model_config(p.model, 32_005, p.context))
    real = n * models.STATE_BYTES * 1.5 < psutil.virtual_memory().available and n < 1e9
    with torch.device("cpu" if real else "meta"):
        model = build_model(p.model, 32_005, p.context, p.seed) if real else _shapes(p)
        ids = torch.randint(0, 32_005, (1, p.context))
    sums = TokenSums(32_005, ids.device)
    optimizer, schedule = training.optimizer_and_schedule(
        p, weight_decay_groups(model, p.weight_decay, p.decayed_parameters)[0]
    )
    before = model.get_input_embeddings().weight.detach()[:8].clone()
    with record_token_loss(model, sums), torch.autocast("cpu", torch.bfloat16, enabled=real):
        loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    for group in optimizer.param_groups:
        group["fused"] = real  # the fused kernel exists on devices only
    for _ in range(2):  # the first step of a warm-up has rate 0
        optimizer.step()
        schedule.step()
    assert all(q.grad is not None for q in model.parameters()) and model.num_parameters() == n
    if real:
        assert abs(loss.item() - np.log(32_005)) < 3 and sums.read()[:, 0].sum() == p.context - 1
        assert not torch.equal(before, model.get_input_embeddings().weight[:8])
    else:
        assert cost.cost(p, "H200")["memory, at least (GB)"] > 20


def _shapes(p):
    config = model_config(p.model, 32_005, p.context)
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")


def test_the_command_prints_a_table_and_refuses_what_is_not_an_experiment(capsys, tmp_path):
    assert main(["cost", str(PAPER[0])]) == 0
    out = capsys.readouterr().out
    assert "H200" in out and "hours in all" in out and "λ Σ lr = " in out
    assert main(["cost", str(ROOT / "params" / "widths.yaml")]) == 0
    points = params.expand(params.read(ROOT / "params" / "widths.yaml"))
    hours = {p.model: cost.cost(p, "H200")["hours per run"] for p in points}
    whole = sum(hours[p.model] for p in points)
    out = capsys.readouterr().out
    assert f"{whole:.3g}" in out and f"{min(hours.values()):.3g} to {max(hours.values()):.3g}" in out
    n_settings = len({(p.model, p.learning_rate) for p in points})
    assert (
        f"{len(points)} runs of 1,000 steps" in out and f"{n_settings} settings, of which the first has λ Σ lr" in out
    )
    assert main(["cost", str(tmp_path / "nowhere.yaml")]) == 2


def test_decay_epochs_and_parameters_per_target_stand_beside_the_cost():
    size = {"vocab_size": 1024, "context": 64, "max_train_blocks": 192, "steps": 600, "batch_size": 16}
    p = params.EvaluationParams(**size, learning_rate=0.004, lr_schedule="constant", warmup_steps=0)
    said = cost.decay_line(p)
    assert said.startswith("λ Σ lr = 2.4 λ; τ = 1/(lr λ) = 250/λ steps at the peak rate = 20.8/λ epochs")
    assert said.endswith("50 epochs, 35.4 parameters per target")
    assert "epochs" not in cost.decay_line(p.model_copy(update={"max_train_blocks": 0}))
