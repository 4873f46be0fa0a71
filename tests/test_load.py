"""Many runs and many tokens: right totals, exact sums, and how far the number of threads moves results."""

import os
import shutil

import numpy as np
import pytest
import torch

from fairlm_utils import frequency, identity, params
from fairlm_utils.analysis.results import load_results, read_token_table
from fairlm_utils.experiment import runs
from fairlm_utils.frequency import SPLITS
from fairlm_utils.lm.token_loss import TokenSums
from tests import load


def test_two_hundred_runs_are_found_and_loaded_with_the_right_totals(tmp_path):
    load.corpus(tmp_path)
    finished = runs.evaluate(load.tiny(tmp_path))
    points = load.copies(finished, 200, "many")
    identity.check_experiment(points)
    assert all(identity.is_finished(p) for p in points)
    folder = identity.run_dir(points[0]).parent
    assert {d.name for d in identity.finished_runs(folder)} == {p.run_id() for p in points}
    results, one = load_results(folder), load_results(finished.parent)
    assert len(results.totals) == 400 and results.provenance["n_runs"] == 200
    assert results.totals.groupby(["weight_decay", "split"])["seed"].nunique().eq(40).all()
    for name in ("totals", "bins", "classes", "kinds"):
        table, single = getattr(results, name), getattr(one, name)
        assert table["n_tokens"].sum() == 200 * single["n_tokens"].sum(), name
    assert np.allclose(results.tokens["change_training"].dropna(), 0)  # all copies of one run
    shutil.rmtree(identity.run_dir(points[7]) / "tables")  # one more to do, and no more than one
    assert len(load_results(folder).totals) == 398 and sum(not identity.is_finished(p) for p in points) == 1


def test_sums_over_a_thousand_million_tokens_stay_exact():
    """2^30 additions to one type, by a state that 2^30 − 2^16 of them leave and the last 2^16 one at a time.

    Losses of 2^-20 nats and their sum 2^10 are exact in float64, where float32 would stop growing at 2^24 tokens.
    """
    n, last = 2**30, 2**16
    sums = TokenSums(2)
    sums.values[0] = torch.tensor([n - last, (n - last) * 2.0**-20, 0.0], dtype=torch.float64)
    for _ in range(16):
        sums.add(torch.zeros(last // 16, dtype=torch.long), torch.full((last // 16,), 2.0**-20), torch.ones(last // 16))
    assert sums.read()[0].tolist() == [n, 2.0**10, last]
    assert np.float32(2**24) + np.float32(1) == np.float32(2**24)


def test_counts_of_chunks_add_up_to_the_counts_of_all():
    ids = np.random.default_rng(0).integers(0, 300, 10**6, dtype=np.uint16)
    parts = sum(frequency.token_counts(part, 300) for part in np.array_split(ids, 7))
    assert np.array_equal(parts, frequency.token_counts(ids, 300)) and parts.dtype == np.int64


def losses_by_threads(p) -> list[np.ndarray]:
    """Every type's loss on both splits, from the run of `p` made with one thread and with two."""
    found = []
    for n in (1, 2):
        directory = runs.evaluate(p.model_copy(update={"n_threads": n}))
        found.append(np.concatenate([read_token_table(directory, s)["loss"] for s in SPLITS]))
    return found


def difference(p) -> float:
    one, two = losses_by_threads(p)
    assert np.array_equal(np.isnan(one), np.isnan(two))
    return float(np.nanmax(np.abs(one - two)))


def test_the_number_of_threads_moves_losses_by_rounding_alone(miniature, tmp_path):
    """Bits repeat at one number of threads; at another the order of sums changes, and with it the last digits."""
    found = difference(miniature(runs_dir=str(tmp_path), experiment="threads"))
    print(f"largest difference of a type's loss between 1 and 2 threads, miniature: {found:.2e} nats")
    assert found < 1e-4


@pytest.mark.skipif(os.environ.get("HYPOTHESIS_PROFILE") != "long", reason="minutes: part of make fuzz")
def test_threads_move_the_quick_model_by_little_within_a_hundred_steps(tmp_path):
    values = {k: v[0] if params.is_grid(k, v) else v for k, v in params.read("params/quick.yaml").items()}
    values |= {"steps": 100, "runs_dir": str(tmp_path), "checkpoint_steps": 1000}
    found = difference(params.EvaluationParams.check(values))
    print(f"largest difference of a type's loss between 1 and 2 threads, quick model, 100 steps: {found:.2e} nats")
    assert found == pytest.approx(0, abs=0.05)
