"""A stack of runs is the runs themselves: the same folders, weights and tables as one trained alone, to rounding."""

import json
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from fairlm_utils import files, identity
from fairlm_utils.__main__ import main
from fairlm_utils.experiment import runs, stacked
from fairlm_utils.lm.models import load_model
from fairlm_utils.params import EvaluationParams, ParameterError, TrainingParams

OWN = [
    {"seed": 0, "weight_decay": 0.0},
    {"seed": 1, "weight_decay": 1.0, "learning_rate": 4e-3},
    {"seed": 0, "weight_decay": 10.0, "decayed_parameters": "matrices"},
]


def points(shared_runs, **values):
    base = {
        "runs_dir": str(shared_runs), "vocab_size": 512, "context": 32, "max_train_blocks": 32, "max_heldout_blocks": 8,
        "steps": 10, "warmup_steps": 2, "window_steps": 4, "max_documents": 50, "by_word": True,
    }  # fmt: skip
    return [EvaluationParams.check({**base, **own, **values}) for own in OWN]


@pytest.mark.parametrize(
    ("dtype", "model", "within"),
    [("float32", "qwen2-tiny", 1e-4), ("float32", "openelm-tiny", 1e-4), ("bfloat16", "qwen2-tiny", 0.02)],
)
def test_a_stack_writes_what_each_run_alone_would(shared_runs, dtype, model, within):
    together = points(shared_runs, experiment="stacked", dtype=dtype, model=model)
    with ThreadPoolExecutor(1) as pool:
        for written in stacked.train(together, pool):
            written.result()
        assert stacked.train(together, pool) == []  # finished runs are left alone
    for p in together:
        alone = p.model_copy(update={"experiment": "alone"})
        there, here = identity.run_dir(p), runs.evaluate(alone)
        files.check_seal(there)
        for name in ("totals", "bins", "curves", "words"):
            a, b = (pd.read_csv(folder / "tables" / f"{name}.csv") for folder in (there, here))
            losses = [c for c in a if "loss" in c]
            exact = [c for c in a if c.startswith(("n_", "bin", "unigram", "floor", "split", "step", "chance"))]
            pd.testing.assert_frame_equal(a[exact], b[exact])
            assert len(losses) >= 1 and (a[losses] - b[losses]).abs().max(axis=None) < within
        a, b = (load_model(folder / "model").state_dict() for folder in (there, here))
        assert a.keys() == b.keys()
        apart = torch.cat([(weight - b[name]).abs().flatten() for name, weight in a.items()]).mean()
        assert apart < within / 10  # of another seed it is about 0.02, and Adam's first steps go by signs alone


def test_stacks_hold_runs_that_differ_in_what_may(shared_runs):
    one, other = points(shared_runs), points(shared_runs, steps=12)
    assert [len(group) for group in stacked.stacks(one + other, most=2)] == [2, 1, 2, 1]
    fewer = one[0].model_copy(update={"max_evaluated_train_blocks": 4})
    assert [len(group) for group in stacked.stacks([*one, fewer], most=9)] == [3, 1]  # evaluated on other blocks
    with pytest.raises(ParameterError, match="dropout: runs of a stack"):
        stacked.stacks(points(shared_runs, dropout=0.1), most=2)


SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 64,
    "max_position_embeddings": 64, "initializer_range": 0.2,
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"model_type": "mistral", "sliding_window": 8, **SIZES}, "its logits are others in a stack"),
        ({"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}, "random"),  # dropout 0.1
        ({"model_type": "opt", "ffn_dim": 64, "word_embed_proj_dim": 32, "dropout": 0.0, **SIZES}, "index"),
    ],
)
def test_a_model_that_would_be_another_in_a_stack_is_refused_before_training(shared_runs, tmp_path, config, reason):
    file = tmp_path / "own.json"
    file.write_text(json.dumps(config))
    together = points(shared_runs, experiment="not-stacked", model=str(file))[:2]
    with (
        ThreadPoolExecutor(1) as pool,
        pytest.raises(ParameterError, match=f"own.json' cannot be stacked .*{reason}.*by themselves"),
    ):
        stacked.train(together, pool)
    assert not any(identity.run_dir(p).exists() for p in together)


def test_a_window_that_holds_the_block_is_stacked(shared_runs, tmp_path):
    file = tmp_path / "own.json"
    file.write_text(json.dumps({"model_type": "mistral", "sliding_window": 32, **SIZES}))
    (p,) = points(shared_runs, experiment="windowed", model=str(file))[:1]
    with ThreadPoolExecutor(1) as pool:
        assert len(stacked.train([p], pool)) == 1


def test_every_setting_of_training_is_one_that_a_stack_honours_or_refuses():
    """A new one belongs on this list, or on `PLAIN`, without which a stack would leave it out in silence."""
    honoured = {
        "adam_beta1", "adam_beta2", "adam_epsilon", "batch_size", "bos", "context", "corpus", "data_seed", "dtype",
        "heldout_fraction", "lowercase", "lr_schedule", "max_documents", "max_grad_norm", "max_heldout_blocks", "max_train_blocks",
        "model", "packing", "pre_tokenizer", "steps", "text_column", "tokenizer", "txt_documents", "vocab_size", "warmup_steps",
        "window_steps",
    }  # fmt: skip
    of_plain = {"frequency_exponent"}  # acts with embedding_decay alone
    elsewhere = {"n_threads", "low_frequency_percentile", *TrainingParams.NOT_IN_RUN_ID}
    assert {*TrainingParams.model_fields} == {*stacked.OWN, *stacked.PLAIN} | honoured | of_plain | elsewhere


def test_a_tied_prediction_is_not_correct():
    stack = SimpleNamespace(_logits=lambda *weights: torch.tensor([[1.0, 1.0, 0.0], [2.0, 1.0, 0.0], [1.0, 3.0, 0.0]]))
    *_, correct = stacked.Stack._losses(stack, {}, {}, None, torch.tensor([0, 0, -100]))
    assert correct.tolist() == [False, True, False]


def test_a_run_that_another_process_finished_meanwhile_is_left_alone(shared_runs, monkeypatch):
    p = points(shared_runs, experiment="stacked-meanwhile")[0]
    with ThreadPoolExecutor(1) as pool:
        (written,) = stacked.train([p], pool)
        written.result()
    monkeypatch.setattr(stacked.training, "save_model", lambda *run: pytest.fail("written again"))
    stacked._write(p, {}, ([], np.zeros(0)), {}, {}, 0.0, "cpu")


def test_the_command_refuses_a_folder_of_runs_of_other_settings(shared_runs, tmp_path, capsys):
    file, (p, *_) = tmp_path / "stacked-other.yaml", points(shared_runs, experiment="stacked-other")
    file.write_text(yaml.safe_dump({k: v for k, v in p.model_dump().items() if v != ""}, allow_unicode=True))
    runs.evaluate(p)
    for command in ("stack", "run"):
        assert main([command, str(file), "-p", "steps", "9"]) == 2
        assert "holds runs that differ from this experiment in steps" in capsys.readouterr().err


def test_a_ragged_epoch_is_refused(shared_runs):
    with pytest.raises(ParameterError, match="multiple of it"), ThreadPoolExecutor(1) as pool:
        stacked.train(points(shared_runs, experiment="ragged", batch_size=12), pool)
