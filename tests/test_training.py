"""Training and evaluation: what is recorded is what was trained; seeds; interruption; invariances."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import TrainerCallback

from fairlm_utils import files, frequency, identity
from fairlm_utils.analysis import metrics
from fairlm_utils.analysis.results import read_token_table
from fairlm_utils.experiment import runs
from fairlm_utils.lm import evaluation, tokenization, training
from fairlm_utils.lm.models import build_model, load_model
from fairlm_utils.lm.token_loss import TokenSums, shifted_targets
from fairlm_utils.params import ParameterError, epochs


def weights(run):
    return load_file(run / "model" / "model.safetensors")


def same_run(a, b) -> bool:
    wa, wb = weights(a), weights(b)
    curves = all(np.array_equal(x, y) for x, y in zip(training.load_curves(a), training.load_curves(b), strict=True))
    return curves and wa.keys() == wb.keys() and all(torch.equal(wa[k], wb[k]) for k in wa)


@pytest.fixture(scope="module")
def run(miniature):
    return runs.evaluate(miniature())


def test_a_run_keeps_its_parameters_and_origin(run, miniature):
    assert files.read_json(run / "params.json")["weight_decay"] == miniature().weight_decay == 0.3
    provenance = files.read_json(run / "provenance.json")
    assert provenance["packages"]["torch"] and provenance["corpus"]["fingerprint"] and provenance["n_threads"] == 1
    assert not (run / "checkpoints").exists()
    names = {p.name for p in (run / "model").iterdir()}
    assert {"model.safetensors", "tokenizer.json"} <= names and not [
        n for n in names if n.endswith((".bin", ".pt", ".pkl"))
    ]


def test_recorded_counts_are_the_targets_trained_on(run, miniature):
    p = miniature()
    data = training.train_blocks(p, tokenization.tokenize_corpus(p))
    steps, counts, loss_sums, correct = training.load_curves(run)
    assert steps.tolist() == [4, 8, 12]
    n = frequency.target_counts(data.labels.numpy(), counts.shape[1])
    # 12 steps of 8 blocks are 4 epochs of 24 blocks: every target is seen exactly 4 times
    assert np.array_equal(counts.sum(0), 4 * n) and (correct <= counts).all() and (loss_sums[counts == 0] == 0).all()
    assert loss_sums[0].sum() / counts[0].sum() == pytest.approx(np.log(counts.shape[1]), rel=0.1)


def test_an_epoch_ends_with_a_smaller_step_where_the_batch_does_not_divide_the_blocks(miniature):
    """24 blocks by batches of 5, two to a step: the third step of an epoch has 4."""
    p = miniature(batch_size=5, gradient_accumulation_steps=2, steps=6, experiment="uneven")
    assert epochs(p, 24) == 2.0
    data = training.train_blocks(p, tokenization.tokenize_corpus(p))
    _, counts, *_ = training.load_curves(runs.train(p))
    assert np.array_equal(counts.sum(0), 2 * frequency.target_counts(data.labels.numpy(), counts.shape[1]))


def test_the_average_of_the_table_is_the_models_own_loss(run, miniature):
    p = miniature()
    model = load_model(run / "model", 0)
    data = training.train_blocks(p, tokenization.tokenize_corpus(p))
    with torch.inference_mode():
        own = model(input_ids=data.input_ids, labels=data.labels).loss
    table = read_token_table(run, "training")
    assert metrics.average_loss(table) == pytest.approx(float(own), rel=1e-5)
    assert table["n_eval"].equals(table["n_train"])
    saved = pd.read_csv(run / "tables" / "totals.csv").set_index("split")
    assert saved.loc["training", "average_loss"] == pytest.approx(float(own), rel=1e-5)


def test_batch_size_order_and_padding_leave_per_token_means_unchanged(run, miniature):
    p = miniature()
    model = load_model(run / "model", 0)
    corpus = tokenization.tokenize_corpus(p)
    data = training.train_blocks(p, corpus)
    reference = evaluation.token_sums(model, data, 64)
    order = np.random.default_rng(0).permutation(len(data))
    pad = corpus.tokenizer.pad_token_id
    ids, labels = data.input_ids.numpy()[order], data.labels.numpy()[order]
    wider = np.full((len(ids), 5), pad)
    lengths = np.full(len(ids), ids.shape[1])
    padded = training.Blocks(np.hstack([ids, wider]), np.hstack([labels, np.full_like(wider, -100)]), lengths)
    assert padded.attention_mask is not None
    for changed in (evaluation.token_sums(model, data, 5), evaluation.token_sums(model, padded, 7)):
        assert np.array_equal(changed.by_type[:, 0], reference.by_type[:, 0])
        np.testing.assert_allclose(changed.by_type[:, 1], reference.by_type[:, 1], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(changed.calibration.sum(1)[:, :2], reference.calibration.sum(1)[:, :2], atol=1e-4)


def test_same_seed_same_bits_whatever_the_global_generator(miniature, run, tmp_path):
    torch.manual_seed(123)
    np.random.seed(5)
    assert same_run(run, runs.train(miniature(experiment="again")))


def test_another_seed_or_weight_decay_gives_other_weights(miniature, run):
    for change in ({"seed": 1}, {"weight_decay": 0.5}):
        other = runs.train(miniature(**change))
        assert not torch.equal(weights(run)["model.embed_tokens.weight"], weights(other)["model.embed_tokens.weight"])


def test_weight_decay_is_decoupled_from_the_gradient(miniature):
    """One step of AdamW with λ differs from one without by the factor 1 − ηλ on the initial weights."""
    p0, p1 = (miniature(steps=1, weight_decay=w, experiment="one-step") for w in (0.0, 2.0))
    a, b = weights(runs.train(p0)), weights(runs.train(p1))
    start = build_model(p0.model, a["model.embed_tokens.weight"].shape[0], p0.context, p0.seed).state_dict()
    for name, w0 in a.items():
        torch.testing.assert_close(b[name], w0 - p0.learning_rate * 2.0 * start[name], atol=1e-6, rtol=1e-4)


def test_accumulated_batches_equal_one_large_batch(miniature):
    large = runs.train(miniature(experiment="accumulate", steps=3))
    small = runs.train(miniature(experiment="accumulate", steps=3, batch_size=4, gradient_accumulation_steps=2))
    for x, y in zip(training.load_curves(large), training.load_curves(small), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-3)
    wa, wb = weights(large), weights(small)
    assert max(float((wa[k] - wb[k]).abs().max()) for k in wa) < 1e-3


def test_documents_that_are_padded_train_and_count_real_tokens_only(miniature):
    p = miniature(packing=False, context=200, max_train_blocks=16, steps=2, experiment="padded")
    run = runs.evaluate(p)
    corpus = tokenization.tokenize_corpus(p)
    data = training.train_blocks(p, corpus)
    table = read_token_table(run, "training")
    assert table["n_eval"].sum() == int((shifted_targets(data.labels) != -100).sum()) < 16 * 199
    assert table["n_eval"][corpus.tokenizer.pad_token_id] == 0


def test_a_killed_run_continues_from_its_checkpoint_to_the_same_bits(miniature, tmp_path):
    p = miniature(steps=40, checkpoint_steps=5, window_steps=7, experiment="killed")
    whole = runs.train(miniature(steps=40, window_steps=7, experiment="undisturbed"))
    program = "from fairlm_utils import params; from fairlm_utils.experiment import runs; "
    program += f"runs.train(params.EvaluationParams.check({p.model_dump()!r}))"
    process = subprocess.Popen([sys.executable, "-c", program], env={**os.environ})
    folder = identity.run_dir(p) / "checkpoints"
    while process.poll() is None and not (folder / "checkpoint-10" / "complete.json").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (identity.run_dir(p) / "provenance.json").exists(), "the run ended before it was killed"
    assert training.last_whole_checkpoint(folder) is not None
    assert same_run(whole, runs.train(p))


@pytest.mark.parametrize(
    "remedy", [{"weight_decay_form": "cautious"}, {"optimizer": "muon"}, {"embedding_decay": "lazy"}]
)
def test_a_remedys_optimiser_resumes_to_the_same_bits(miniature, remedy):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            control.should_training_stop = state.global_step == 7

    whole = runs.train(miniature(experiment="remedy-whole", **remedy))
    p = miniature(experiment="remedy-cut", **remedy)
    runs.train(p, [Stop()])
    assert training.last_whole_checkpoint(identity.run_dir(p) / "checkpoints").name == "checkpoint-5"
    assert same_run(whole, runs.train(p))
    assert not same_run(whole, runs.train(miniature()))


def test_a_half_written_checkpoint_is_not_used(tmp_path):
    (tmp_path / "checkpoint-5").mkdir()
    (tmp_path / "checkpoint-5" / "complete.json").write_text("{}")
    (tmp_path / "checkpoint-10").mkdir()
    assert training.last_whole_checkpoint(tmp_path).name == "checkpoint-5"
    assert not (tmp_path / "checkpoint-10").exists()


def test_a_finished_run_is_not_trained_again(miniature, run, monkeypatch):
    monkeypatch.setattr(runs, "_train", lambda *_: pytest.fail("trained again"))
    assert runs.train(miniature()) == run


def test_a_loss_that_is_not_finite_stops_the_run_and_says_where(tmp_path):
    sums = TokenSums(4)
    recorder = training.RecordTokenLoss(sums, window_steps=2)
    recorder._close_window(2)
    sums.add(torch.tensor([1]), torch.tensor([float("nan")]), torch.tensor([False]))
    with pytest.raises(training.TrainingDiverged, match="between steps 2 and 4"):
        recorder._close_window(4)


def test_a_directory_with_other_parameters_is_refused(miniature):
    p = miniature(experiment="foreign")
    directory = identity.open_run(p)
    known = files.read_json(directory / "params.json")
    files.write_json(directory / "params.json", {**known, "learning_rate": 1.0})
    with pytest.raises(files.RunError, match="learning_rate"):
        runs.train(p)


def test_a_model_smaller_than_the_tokenizer_or_unreadable_is_refused(run, tmp_path):
    with pytest.raises(files.RunError, match="token types"):
        load_model(run / "model", 10**6)
    with pytest.raises(files.RunError, match="cannot be read"):
        load_model(tmp_path, 10)


def test_derived_quantities_follow_from_the_parameters(miniature):
    p = miniature(weight_decay=2.0, lr_schedule="linear", steps=10)
    corpus = tokenization.tokenize_corpus(p)
    model = build_model(p.model, len(corpus.tokenizer), p.context, 0)
    table = training.derived_quantities(p, model, training.train_blocks(p, corpus)).set_index("quantity")["value"]
    assert table["targets per step"] == str(8 * 15) and float(table["epochs"]) == pytest.approx(10 * 8 / 24, rel=1e-3)
    # a linear schedule from η to 0 over T steps sums to η (T + 1) / 2
    assert training.decay_sum(p) == pytest.approx(2.0 * 3e-3 * 5.5)
    assert np.isnan(training.decay_sum(p.model_copy(update={"weight_decay_form": "l2"})))
    assert float(table["τ = 1/(lr λ) at the peak rate (epochs)"]) == pytest.approx(10 * 8 / 24 / 0.06, rel=1e-3)
    n_train = frequency.target_counts(training.train_blocks(p, corpus).labels.numpy(), len(corpus.tokenizer))
    assert float(table["parameters per target"].replace(",", "")) == pytest.approx(
        model.num_parameters() / n_train.sum(), rel=1e-3
    )
    assert float(table["targets per token type that occurs"]) == pytest.approx(n_train[n_train > 0].mean(), rel=1e-3)


#: Accelerate shards over accelerators only; told that these CPU processes are some, it does all the same on them. Prints
#: how the embedding is held, and ends the process without a word at the step in DIE_AT.
_SHARDING_ON_CPU = """
import os, sys
from accelerate import state
from fairlm_utils.__main__ import main
from fairlm_utils.lm import training

init = state.PartialState.__init__
def shard_on_cpu(self, *arguments, **options):
    init(self, *arguments, **options)
    if self._shared_state.get("distributed_type") == state.DistributedType.MULTI_CPU:
        self._shared_state["distributed_type"] = state.DistributedType.MULTI_GPU
state.PartialState.__init__ = shard_on_cpu

on_step_end = training.RecordTokenLoss.on_step_end
def watched(self, args, trainer_state, control, model=None, **_):
    on_step_end(self, args, trainer_state, control)
    if trainer_state.global_step == int(os.environ["DIE_AT"]):
        os._exit(9)
    if trainer_state.global_step == args.max_steps:
        sys.stdout.write(f"embedding: {type(model.get_input_embeddings().weight).__name__}\\n")  # whole, for two write
training.RecordTokenLoss.on_step_end = watched
sys.exit(main(["run", *sys.argv[1:]]))
"""


def test_two_processes_train_what_one_does_with_the_same_global_batch(miniature, tmp_path):
    one = runs.evaluate(miniature(experiment="one-process"))
    p = miniature(experiment="two-processes", runs_dir=str(tmp_path))
    done = _torchrun(p, tmp_path, "-m", "fairlm_utils", "run")
    assert done.returncode == 0, done.stderr[-3000:]
    _assert_same_tables(one, identity.run_dir(p))


def test_a_model_sharded_over_two_processes_is_the_same_also_after_an_interruption(miniature, tmp_path):
    one = runs.evaluate(miniature(experiment="one-process"))
    p = miniature(experiment="sharded", runs_dir=str(tmp_path), sharded=True)
    script = tmp_path / "sharding_on_cpu.py"
    script.write_text(_SHARDING_ON_CPU)
    assert _torchrun(p, tmp_path, str(script), die_at=8).returncode != 0
    assert training.last_whole_checkpoint(identity.run_dir(p) / "checkpoints").name == "checkpoint-5"
    done = _torchrun(p, tmp_path, str(script))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "embedding: DTensor" in done.stdout and "continuing from step 5" in done.stdout
    _assert_same_tables(one, identity.run_dir(p))
    assert weights(identity.run_dir(p)).keys() == weights(one).keys()


def _torchrun(p, tmp_path, *script, die_at=0):
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(p.model_dump()))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"DIE_AT": str(die_at)}
    return subprocess.run([*command, *script, str(file)], capture_output=True, text=True, check=False, env=environment)


def _assert_same_tables(one, two):
    for a, b in zip(training.load_curves(one), training.load_curves(two), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)
    assert np.array_equal(training.load_curves(one)[1], training.load_curves(two)[1])  # counts exactly
    ta, tb = (read_token_table(d, "training") for d in (one, two))
    assert ta["n_eval"].equals(tb["n_eval"])
    np.testing.assert_allclose(ta["loss"], tb["loss"], rtol=1e-3, atol=1e-3)


def test_out_of_memory_says_what_to_lower(miniature, monkeypatch):
    def forward(*_, **__):
        torch.empty(2**60)  # what PyTorch itself says of memory that no machine has

    monkeypatch.setattr("fairlm_utils.lm.token_loss.token_cross_entropy", forward)
    with pytest.raises(files.RunError, match="halve batch_size and double"):
        runs.train(miniature(experiment="too-large"))


def test_a_batch_that_processes_cannot_share_is_refused(miniature, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ParameterError, match="shared equally"):
        runs.train(miniature(experiment="three"))
