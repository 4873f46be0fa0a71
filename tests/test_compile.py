"""torch.compile: minutes of a compiler's work, done again when what is compiled, or PyTorch, changes."""

import json

import pandas as pd
import pytest
from safetensors.torch import load_file

from fairlm_utils import files, identity
from fairlm_utils.experiment import runs

pytestmark = pytest.mark.inputs(
    *(f"fairlm_utils/lm/{name}.py" for name in ("training", "models", "token_loss")),
    "requirements.txt",
    "requirements.lock",
)


def test_a_compiled_model_learns_the_same_under_the_same_names(miniature, tmp_path):
    """Compiling changes the order of sums, and so the last bits alone."""
    config = tmp_path / "one.json"
    sizes = dict(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, intermediate_size=16
    )
    config.write_text(json.dumps({"model_type": "qwen2", "tie_word_embeddings": True, **sizes}))
    same = dict(model=str(config), steps=8, n_threads=1)
    plain, compiled = (miniature(experiment=mode, torch_compile=mode, **same) for mode in ("none", "default"))
    assert plain.run_id() != compiled.run_id()
    tables = [pd.read_parquet(runs.evaluate(p) / "tokens_training.parquet") for p in (plain, compiled)]
    pd.testing.assert_frame_equal(*tables, rtol=1e-4, atol=1e-4)
    names = [set(load_file(identity.run_dir(p) / "model" / "model.safetensors")) for p in (plain, compiled)]
    assert names[0] == names[1]


def test_a_model_that_cannot_be_compiled_is_explained(miniature, monkeypatch):
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    monkeypatch.setattr("torch._inductor.config.force_disable_caches", True)
    with pytest.raises(files.RunError, match=r"torch_compile: .* set torch_compile: none"):
        runs.train(miniature(experiment="no-compiler", torch_compile="default"))
