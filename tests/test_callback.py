"""Rare tokens watched inside stock Trainers, against a slow count of the same batches."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn.functional import cross_entropy
from transformers import Trainer, TrainingArguments

from fairlm_utils.callback import TokenFrequencyCallback, loss_by_frequency
from fairlm_utils.remedies import loss_weights
from fairlm_utils.token_loss import Objective
from tests.test_remedies import VOCABULARY, Ids, gpt2


class Padded(Ids):
    """Blocks of different lengths, padded with labels −100."""

    def __getitem__(self, i: int) -> dict:
        labels = self.ids[i].clone()
        labels[6 - i % 4 :] = -100
        return {"input_ids": self.ids[i], "labels": labels, "attention_mask": (labels != -100).long()}


class Targets(Ids):
    """Blocks whose first token, which is no target, has no label: the Trainer divides by the number of labels."""

    def __getitem__(self, i: int) -> dict:
        labels = self.ids[i].clone()
        labels[0] = -100
        return {"input_ids": self.ids[i], "labels": labels}


def trainer(tmp_path, data, evaluated=None, **options) -> Trainer:
    given = dict(
        output_dir=str(tmp_path / "out"), max_steps=3, per_device_train_batch_size=4, per_device_eval_batch_size=5,
        use_cpu=True, learning_rate=1e-9, save_strategy="no", logging_steps=3, report_to=[], disable_tqdm=True,
    )  # fmt: skip
    return Trainer(gpt2(), TrainingArguments(**{**given, **options}), train_dataset=data, eval_dataset=evaluated)


def slow(model, items) -> np.ndarray:
    """Tokens and summed loss by type, one position at a time."""
    values = np.zeros((VOCABULARY, 2))
    for item in items:
        with torch.no_grad():
            logits = model.eval()(item["input_ids"][None]).logits[0]
        for position, target in enumerate(item["labels"][1:].tolist()):
            if target != -100:
                values[target] += 1, cross_entropy(logits[position], torch.tensor(target)).item()
    return values


def expect(logged: dict, values: np.ndarray, counts: np.ndarray, prefix: str = "") -> None:
    expected = loss_by_frequency(values, counts)
    assert len(expected) > 1
    for name, value in expected.items():
        assert logged[prefix + name] == pytest.approx(value, rel=1e-4), name


@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("make", [Ids, Padded])
def test_training_and_evaluation_logs_against_a_slow_count(tmp_path, make, accumulated):
    """At a rate of next to nothing the model stays as it is, and 24 blocks are one epoch."""
    data, held_out = make(24), make(13)
    counts = slow(gpt2(), data)[:, 0].astype(int)
    t = trainer(
        tmp_path, data, held_out, max_steps=6 // accumulated, logging_steps=6 // accumulated, eval_strategy="epoch",
        gradient_accumulation_steps=accumulated,
    )  # fmt: skip
    TokenFrequencyCallback(t, counts)
    t.train()
    logged = next(x for x in t.state.log_history if "loss" in x)
    expect(logged, slow(gpt2(), data), counts)
    evaluated = next(x for x in t.state.log_history if "eval_loss" in x)
    expect(evaluated, slow(gpt2(), held_out), counts, "eval_")
    expect(t.evaluate(metric_key_prefix="other"), slow(gpt2(), held_out), counts, "other_")


def test_the_loss_and_the_weights_stay_as_they_were(tmp_path):
    with_it, without = (trainer(tmp_path, Padded(), learning_rate=0.01) for _ in range(2))
    callback = TokenFrequencyCallback(with_it)
    for t in (with_it, without):
        t.train()
    assert with_it.state.log_history[0]["loss"] == pytest.approx(without.state.log_history[0]["loss"], rel=1e-4)
    for a, b in zip(with_it.model.parameters(), without.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    callback.stop()
    assert "_loss_function" not in vars(with_it.model)


def test_an_objective_is_minimised_and_the_plain_loss_is_recorded(tmp_path):
    """The loss weighted by n_v^−1, in a stock Trainer."""
    data, held_out = Targets(24), Targets(13)
    expected = slow(gpt2(), data)
    weights = loss_weights(expected[:, 0], 1.0)
    own = trainer(tmp_path, data, held_out, eval_strategy="steps", eval_steps=3, max_steps=6, logging_steps=6)
    TokenFrequencyCallback(own, expected[:, 0], Objective(weights))
    own.train()
    logged = next(entry for entry in own.state.log_history if "loss" in entry)
    weighted = (weights.numpy() * expected[:, 1]).sum() / expected[:, 0].sum()
    assert abs(weighted - expected[:, 1].sum() / expected[:, 0].sum()) > 1e-3
    assert logged["loss"] == pytest.approx(weighted, rel=1e-4)
    expect(logged, expected, expected[:, 0])
    plain = slow(gpt2(), held_out)
    evaluated = next(entry for entry in own.state.log_history if "eval_loss" in entry)
    assert evaluated["eval_loss"] == pytest.approx(plain[:, 1].sum() / plain[:, 0].sum(), rel=1e-4)
    expect(evaluated, plain, expected[:, 0], "eval_")


def test_tensorboard_receives_it_and_the_best_model_can_be_chosen_by_it(tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    t = trainer(
        tmp_path, Ids(), Ids(8), report_to=["tensorboard"], eval_strategy="steps", eval_steps=3, save_strategy="steps",
        save_steps=3, load_best_model_at_end=True, metric_for_best_model="eval_token_balanced_loss",
    )  # fmt: skip
    TokenFrequencyCallback(t)
    t.train()
    board = EventAccumulator(str(tmp_path / "board")).Reload()
    tags = set(board.Tags()["scalars"])
    assert {"train/token_balanced_loss", "eval/token_balanced_loss", "train/loss_n_v_1-2"} <= tags
    assert board.Scalars("eval/token_balanced_loss")[0].value == pytest.approx(t.state.best_metric, rel=1e-5)


def test_packed_sequences_do_not_predict_each_others_beginnings(tmp_path):
    from transformers import DataCollatorWithFlattening

    data = Ids(4)
    t = trainer(tmp_path, data, max_steps=1, logging_steps=1, per_device_train_batch_size=4)
    t.data_collator = DataCollatorWithFlattening()
    TokenFrequencyCallback(t, np.ones(VOCABULARY))
    seen = []
    t.callback_handler.callbacks[0].training.add = lambda targets, *_, **__: seen.append((targets != -100).sum().item())
    with pytest.raises(RuntimeError, match="no token's loss"):
        t.train()
    assert seen == [4 * 5]


def test_bfloat16_autocast_agrees(tmp_path):
    t = trainer(tmp_path, Ids(), bf16=True, max_steps=6, logging_steps=6)
    counts = slow(gpt2(), Ids())[:, 0].astype(int)
    TokenFrequencyCallback(t, counts)
    t.train()
    expected = loss_by_frequency(slow(gpt2(), Ids()), counts)["token_balanced_loss"]
    assert t.state.log_history[0]["token_balanced_loss"] == pytest.approx(expected, rel=1e-2)


def test_a_loss_that_is_computed_elsewhere_is_told(tmp_path):
    t = trainer(tmp_path, Ids(), label_smoothing_factor=0.1)
    TokenFrequencyCallback(t)
    with pytest.raises(RuntimeError, match="label_smoothing_factor"):
        t.train()


def test_counts_of_another_vocabulary_are_refused(tmp_path):
    with pytest.raises(ValueError, match="token types"):
        TokenFrequencyCallback(trainer(tmp_path, Ids()), np.ones(VOCABULARY + 1))


def test_two_processes_agree_with_one(tmp_path):
    """Sums over both processes; the evaluation's last batch, filled up with repeats, is counted once."""
    script = tmp_path / "two.py"
    script.write_text(
        "import json, sys, pathlib\n"
        f"sys.path.insert(0, {str(Path(__file__).parents[1])!r})\n"
        "from tests.test_callback import *\n"
        "t = trainer(pathlib.Path(sys.argv[1]), Ids(24), Padded(13), per_device_train_batch_size=2, max_steps=6,\n"
        "            logging_steps=6, eval_strategy='epoch', per_device_eval_batch_size=2)\n"
        "TokenFrequencyCallback(t, slow(gpt2(), Ids(24))[:, 0])\n"
        "t.train()\n"
        "if t.is_world_process_zero(): print('LOGS', json.dumps(t.state.log_history))\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*command, str(script), str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    history = json.loads(
        next(line for line in done.stdout.splitlines() if line.startswith("LOGS")).removeprefix("LOGS")
    )
    counts = slow(gpt2(), Ids(24))[:, 0].astype(int)
    expect(next(x for x in history if "loss" in x), slow(gpt2(), Ids(24)), counts)
    expect(next(x for x in history if "eval_loss" in x), slow(gpt2(), Padded(13)), counts, "eval_")
