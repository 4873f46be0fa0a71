"""A stack of runs is the runs themselves: the same folders, weights and tables as one trained alone, to rounding."""

from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pytest

from fairlm_utils import files, identity
from fairlm_utils.experiment import runs, stacked
from fairlm_utils.lm.models import load_model
from fairlm_utils.params import EvaluationParams, ParameterError

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
        assert load_model(there / "model").state_dict().keys() == load_model(here / "model").state_dict().keys()


def test_stacks_hold_runs_that_differ_in_what_may(shared_runs):
    one, other = points(shared_runs), points(shared_runs, steps=12)
    assert [len(group) for group in stacked.stacks(one + other, most=2)] == [2, 1, 2, 1]
    with pytest.raises(ParameterError, match="dropout: runs of a stack"):
        stacked.stacks(points(shared_runs, dropout=0.1), most=2)


def test_a_ragged_epoch_is_refused(shared_runs):
    with pytest.raises(ParameterError, match="multiple of it"), ThreadPoolExecutor(1) as pool:
        stacked.train(points(shared_runs, experiment="ragged", batch_size=12), pool)
