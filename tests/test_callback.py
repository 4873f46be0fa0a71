"""Rare tokens watched inside stock Trainers, against a slow count of the same batches."""

import copy
import json
import pickle
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch.nn.functional import cross_entropy
from transformers import (
    BartConfig,
    BartForCausalLM,
    BertConfig,
    BertForMaskedLM,
    BertLMHeadModel,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2ForTokenClassification,
    GPT2LMHeadModel,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5GemmaConfig,
    T5GemmaForConditionalGeneration,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    XLMConfig,
    XLMWithLMHeadModel,
)
from transformers.modeling_outputs import CausalLMOutput

from fairlm_utils.lm.callback import STATE, TokenFrequencyCallback, loss_by_frequency
from fairlm_utils.lm.remedies import loss_weights
from fairlm_utils.lm.token_loss import Objective
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


def trainer(tmp_path, data, evaluated=None, make=Trainer, **options) -> Trainer:
    given = dict(
        output_dir=str(tmp_path / "out"), max_steps=3, per_device_train_batch_size=4, per_device_eval_batch_size=5,
        use_cpu=True, learning_rate=1e-9, save_strategy="no", logging_steps=3, report_to=[], disable_tqdm=True,
    )  # fmt: skip
    return make(gpt2(), TrainingArguments(**{**given, **options}), train_dataset=data, eval_dataset=evaluated)


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


class OtherModes(Trainer):
    """Trains without dropout, as fine-tuning may, and evaluates with it."""

    def compute_loss(self, model, *args, **kwargs):
        model.eval()
        return super().compute_loss(model, *args, **kwargs)

    def prediction_step(self, model, *args, **kwargs):
        model.train()
        return super().prediction_step(model, *args, **kwargs)


def test_an_objective_is_of_training_steps_whatever_the_mode_of_the_model(tmp_path):
    data, logs = Targets(24), []
    expected = slow(gpt2(), data)
    for make in (Trainer, OtherModes):  # `gpt2` has no dropout: the same steps in either mode
        own = trainer(
            tmp_path, data, Targets(13), make, eval_strategy="steps", eval_steps=3, max_steps=6, logging_steps=6
        )
        TokenFrequencyCallback(own, expected[:, 0], Objective(loss_weights(expected[:, 0], 1.0)))
        own.train()
        logs.append([{k: v for k, v in entry.items() if k.endswith("loss")} for entry in own.state.log_history])
    assert logs[0] == logs[1]


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
    assert {"train/token_balanced_loss", "eval/token_balanced_loss", "train/n_v_1-2_loss"} <= tags
    assert board.Scalars("eval/token_balanced_loss")[0].value == pytest.approx(t.state.best_metric, rel=1e-5)


def test_packed_sequences_do_not_predict_each_others_beginnings(tmp_path):
    from transformers import DataCollatorWithFlattening

    data = Ids(4)
    t = trainer(tmp_path, data, max_steps=1, logging_steps=1, per_device_train_batch_size=4)
    t.data_collator = DataCollatorWithFlattening()
    TokenFrequencyCallback(t, np.ones(VOCABULARY))
    seen = []
    t.callback_handler.callbacks[0].training.add = lambda targets, *_, **__: seen.append((targets != -100).sum().item())
    t.train()
    assert seen == [4 * 5]


def test_bfloat16_autocast_agrees(tmp_path):
    t = trainer(tmp_path, Ids(), bf16=True, max_steps=6, logging_steps=6)
    counts = slow(gpt2(), Ids())[:, 0].astype(int)
    TokenFrequencyCallback(t, counts)
    t.train()
    expected = loss_by_frequency(slow(gpt2(), Ids()), counts)["token_balanced_loss"]
    assert t.state.log_history[0]["token_balanced_loss"] == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize(
    "counts, said",
    [(np.ones(VOCABULARY + 1), "token types"), (np.full(VOCABULARY, 0.5), "whole"), (-np.ones(4), "whole"),
     (["a"] * VOCABULARY, "one number per token id"), (np.zeros(VOCABULARY), "no token type occurs")],
)  # fmt: skip
def test_counts_that_are_not_the_vocabularys_are_refused(tmp_path, counts, said):
    t = trainer(tmp_path, Ids())
    with pytest.raises(ValueError, match=said):
        TokenFrequencyCallback(t, counts)
    assert not t.model._forward_hooks and "train" not in vars(t)


# Sums belong to one pass of one Trainer over its own model.

COUNTS = slow(gpt2(), Ids())[:, 0].astype(int)
PROBE = torch.randint(0, VOCABULARY, (20, 6), generator=torch.Generator().manual_seed(9))


class Pass(TrainerCallback):
    """Forward passes with labels that are not the Trainer's: of its model in either mode, and of a copy of it."""

    def on_step_end(self, args, state, control, model=None, **_):
        trained = model.training
        for m in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            for mode in (True, False):
                m.train(mode)(input_ids=PROBE, labels=PROBE)
        model.train(trained)

    on_substep_end = on_prediction_step = on_step_end


class Copying(Trainer):
    """Passes of a copy, and of the model without a gradient, in the midst of a step."""

    def compute_loss(self, model, inputs, *args, **kwargs):
        copy.deepcopy(self.model)(input_ids=PROBE, labels=PROBE)
        if model.training:
            with torch.no_grad():
                model(input_ids=PROBE, labels=PROBE)
        return super().compute_loss(model, inputs, *args, **kwargs)


@pytest.mark.parametrize("make, callbacks", [(Trainer, [Pass]), (Copying, [])])
def test_passes_of_others_are_not_recorded(tmp_path, make, callbacks):
    t = trainer(
        tmp_path, Ids(), Ids(9), make, max_steps=3, gradient_accumulation_steps=2, eval_strategy="steps", eval_steps=3
    )
    TokenFrequencyCallback(t, COUNTS)
    for callback in callbacks:
        t.add_callback(callback())
    t.predict(Ids(20))
    t.train()
    expect(t.state.log_history[0], slow(gpt2(), Ids()), COUNTS)
    expect(t.state.log_history[1], slow(gpt2(), Ids(9)), COUNTS, "eval_")
    expect(t.evaluate(), slow(gpt2(), Ids(9)), COUNTS, "eval_")


def test_every_evaluation_has_its_own_names_and_numbers(tmp_path):
    """Any prefix, several data sets, before and after training, predict(), and logs of the user's own in between."""
    sets = {"a": Ids(9), "b": Padded(13)}
    t = trainer(
        tmp_path, Ids(), sets, eval_strategy="steps", eval_steps=3, eval_on_start=True, max_steps=6, logging_steps=6
    )
    TokenFrequencyCallback(t, COUNTS)
    expect(t.evaluate(Ids(7), metric_key_prefix="train"), slow(gpt2(), Ids(7)), COUNTS, "train_")
    t.log({"my_loss": 1.0})
    expect(t.predict(Ids(5)).metrics, slow(gpt2(), Ids(5)), COUNTS, "test_")
    t.train()
    t.log({"my_loss": 2.0})
    for metrics in (t.evaluate(), {k: v for x in t.state.log_history[:2] for k, v in x.items()}):
        for name, data in sets.items():
            expect(metrics, slow(gpt2(), data), COUNTS, f"eval_{name}_")
    for mine in (x for x in t.state.log_history if "my_loss" in x):
        assert mine.keys() <= {"my_loss", "epoch", "step"}
    expect(next(x for x in t.state.log_history if "loss" in x), slow(gpt2(), Ids()), COUNTS)


def test_nothing_is_left_of_an_evaluation_or_a_training_that_was_cut_short(tmp_path):
    class Interrupt(TrainerCallback):
        armed = True

        def on_prediction_step(self, *_, **__):
            if self.armed:
                raise KeyboardInterrupt

        def on_step_end(self, args, state, control, **_):
            if self.armed and state.global_step == 2:
                raise KeyboardInterrupt

    t = trainer(tmp_path, Ids(), Ids(13), max_steps=6, logging_steps=6)
    TokenFrequencyCallback(t)
    t.add_callback(interrupt := Interrupt())
    for interrupted in (t.evaluate, t.train):
        with pytest.raises(KeyboardInterrupt):
            interrupted()
    interrupt.armed = False
    t.train()
    expect(t.state.log_history[0], slow(gpt2(), Ids()), COUNTS)
    expect(t.evaluate(), slow(gpt2(), Ids(13)), COUNTS, "eval_")


def test_two_trainers_of_one_model_and_a_second_training_keep_apart(tmp_path):
    one = trainer(tmp_path, Ids(), Ids(13), max_steps=6, logging_steps=4)  # two steps are left in the window
    two = trainer(tmp_path, Ids(12), Ids(7), max_steps=3, logging_steps=3)
    two.model = two.model_wrapped = one.model
    for t in (one, two):
        TokenFrequencyCallback(t)
    one.train()
    two.train()
    few = slow(gpt2(), Ids(12))
    expect(two.state.log_history[0], few, few[:, 0])
    expect(one.evaluate(), slow(gpt2(), Ids(13)), COUNTS, "eval_")  # counts have the open window in them
    one.args.logging_steps = 6
    one.train()
    expect(one.state.log_history[0], slow(gpt2(), Ids()), COUNTS)


def test_a_second_callback_is_refused_until_the_first_has_stopped(tmp_path):
    t = trainer(tmp_path, Ids())
    first = TokenFrequencyCallback(t, COUNTS)
    with pytest.raises(ValueError, match="already"):
        TokenFrequencyCallback(t)
    first.stop()
    assert not {"train", "log"} & vars(t).keys() and not t.model._forward_hooks
    TokenFrequencyCallback(t, COUNTS)
    t.train()
    assert "token_balanced_loss" in t.state.log_history[0]


def test_what_others_put_around_the_trainer_since_stays(tmp_path):
    t, seen = trainer(tmp_path, Ids()), []
    callback = TokenFrequencyCallback(t, COUNTS)
    inner = t.log
    t.log = lambda logs, *args, **kwargs: (seen.append(logs), inner(logs, *args, **kwargs))[1]
    callback.stop()
    t.train()
    assert seen and "token_balanced_loss" not in t.state.log_history[0]


@pytest.mark.parametrize("by", ["type", "object"])
def test_it_ends_when_the_trainer_removes_it(tmp_path, by):
    t = trainer(tmp_path, Ids(), Ids(13), max_steps=6, logging_steps=6)
    first = TokenFrequencyCallback(t, COUNTS, Objective(label_smoothing=0.5))
    t.remove_callback(TokenFrequencyCallback if by == "type" else first)
    t.train()
    plain = trainer(tmp_path, Ids(), Ids(13), max_steps=6, logging_steps=6)
    plain.train()
    assert t.state.log_history[0].keys() == plain.state.log_history[0].keys()
    assert t.state.log_history[0]["loss"] == plain.state.log_history[0]["loss"]
    assert t.evaluate().keys() == plain.evaluate().keys()
    TokenFrequencyCallback(t, COUNTS)
    t.train()
    expect(t.state.log_history[0], slow(gpt2(), Ids()), COUNTS)
    expect(t.evaluate(), slow(gpt2(), Ids(13)), COUNTS, "eval_")


def test_added_a_second_time_it_records_once_and_stops_whole(tmp_path):
    t = trainer(tmp_path, Ids(), Ids(13), max_steps=6, logging_steps=6)
    t.add_callback(callback := TokenFrequencyCallback(t))
    t.train()
    expect(t.state.log_history[0], slow(gpt2(), Ids()), COUNTS)
    callback.stop()
    assert callback not in t.callback_handler.callbacks and "eval_token_balanced_loss" not in t.evaluate()


class OwnLogs(TrainerCallback):
    """Logs as Trainers' users do, with names of the Trainer's own."""

    def on_step_begin(self, args, state, control, **_):
        self.trainer.log({"loss": 1.0, "learning_rate": 1e-3, "grad_norm": 1.0})

    def on_prediction_step(self, args, state, control, **_):
        self.trainer.log({"eval_loss": 1.0})


def test_logs_of_the_users_own_take_nothing(tmp_path):
    t = trainer(tmp_path, Ids(), Ids(13), max_steps=6, logging_steps=6)
    TokenFrequencyCallback(t, COUNTS)
    t.add_callback(own := OwnLogs())
    own.trainer = t
    t.train()
    (logged,) = (x for x in t.state.log_history if "token_balanced_loss" in x)
    expect(logged, slow(gpt2(), Ids()), COUNTS)
    expect(t.evaluate(Ids(13), metric_key_prefix="train"), slow(gpt2(), Ids(13)), COUNTS, "train_")


class Halt(TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        control.should_training_stop = state.global_step == 4


@pytest.mark.parametrize("fixed", [False, True])
def test_a_resumed_run_goes_on_with_counts_and_open_window(tmp_path, fixed):
    """Saved in the middle of a window: all logs are those of a run that was not interrupted."""
    options = dict(max_steps=12, logging_steps=3, save_strategy="steps", save_steps=4)
    data, counts = Ids(48), COUNTS if fixed else None
    histories = []
    for folder, halted in (("whole", False), ("halted", True), ("halted", False)):
        t = trainer(tmp_path / folder, data, **options)
        TokenFrequencyCallback(t, counts)
        if halted:
            t.add_callback(Halt())
        t.train(resume_from_checkpoint=len(histories) == 2)
        histories.append([{k: v for k, v in x.items() if "n_v" in k or "token" in k} for x in t.state.log_history])
    assert len(histories[0]) == len(histories[2]) == 5
    for a, b in zip(histories[0], histories[2], strict=True):
        assert a == pytest.approx(b, rel=1e-4)
    t = trainer(tmp_path / "halted", data, **options)
    TokenFrequencyCallback(t, counts)
    (checkpoint := tmp_path / "halted" / "out" / "checkpoint-4" / STATE).unlink()
    with pytest.warns(UserWarning, match="does not exist") as warned:
        t.train(resume_from_checkpoint=str(checkpoint.parent))
    assert len([w for w in warned if STATE in str(w.message)]) == 1


# It works, or says why, at the first step.


def own_loss(outputs, labels, num_items_in_batch=None):
    return cross_entropy(outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


COMPILED = pytest.mark.inputs(
    *(f"fairlm_utils/lm/{name}.py" for name in ("callback", "remedies", "token_loss")),
    "requirements.txt",
    "requirements.lock",
)


class OwnLoss(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, **_):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = own_loss(outputs, labels)
        return (loss, outputs) if return_outputs else loss


@pytest.mark.parametrize(
    "make, options",
    [
        (Trainer, dict(label_smoothing_factor=0.1)),
        (partial(Trainer, compute_loss_func=own_loss), {}),
        (OwnLoss, {}),
        pytest.param(Trainer, dict(torch_compile=True, torch_compile_backend="aot_eager"), marks=COMPILED),
        pytest.param(
            Trainer,
            dict(torch_compile=True, torch_compile_backend="aot_eager", label_smoothing_factor=0.1),
            marks=COMPILED,
        ),
        (Trainer, dict(gradient_checkpointing=True)),
    ],
    ids=["smoothed", "function", "overridden", "compiled", "compiled-smoothed", "checkpointed"],
)
def test_it_is_recorded_wherever_the_loss_is_computed(tmp_path, make, options):
    """And what is minimised is what it was: weights after steps at a real rate are those without the record."""
    t = trainer(tmp_path, Padded(), Padded(13), make, max_steps=6, logging_steps=6, **options)
    TokenFrequencyCallback(t, COUNTS)
    t.train()
    expect(t.state.log_history[0], slow(gpt2(), Padded()), COUNTS)
    expect(t.evaluate(), slow(gpt2(), Padded(13)), COUNTS, "eval_")
    watched, plain = (trainer(tmp_path, Padded(), make=make, learning_rate=0.01, **options) for _ in range(2))
    TokenFrequencyCallback(watched)
    for t in (watched, plain):
        t.train()
    for a, b in zip(watched.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_model_init_makes_a_model_for_every_training(tmp_path):
    make = lambda _, args, **data: Trainer(args=args, model_init=lambda: gpt2(), **data)  # noqa: E731
    t = trainer(tmp_path, Ids(), Ids(13), make, max_steps=6, logging_steps=6)
    TokenFrequencyCallback(t)
    for _ in range(2):
        t.train()
        expect(t.state.log_history[0], slow(gpt2(), Ids()), COUNTS)
        expect(t.evaluate(), slow(gpt2(), Ids(13)), COUNTS, "eval_")


def test_lora_adapters_are_trained_and_the_base_model_recorded(tmp_path):
    peft = pytest.importorskip("peft")
    lora = peft.LoraConfig(target_modules=["c_attn"], task_type="CAUSAL_LM", fan_in_fan_out=True)
    options = dict(max_steps=6, logging_steps=4, save_strategy="steps", save_steps=6)
    for resumed in (False, True):
        t = trainer(
            tmp_path, Ids(), Ids(13), lambda m, *a, **k: Trainer(peft.get_peft_model(m, lora), *a, **k), **options
        )
        callback = TokenFrequencyCallback(t)
        expect(t.evaluate(), slow(gpt2(), Ids(13)), np.zeros(VOCABULARY), "eval_")
        t.train(resume_from_checkpoint=resumed)
        expect(t.evaluate(), slow(gpt2(), Ids(13)), COUNTS, "eval_")
        callback.stop()
        assert "eval_token_balanced_loss" not in t.evaluate()


@pytest.mark.filterwarnings("ignore:`label_smoothing_factor` is deprecated:FutureWarning")
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_trls_fused_head_is_recorded(tmp_path, smoothing):
    trl = pytest.importorskip("trl")
    words = [f"w{i}" for i in range(VOCABULARY - 2)]
    backend = Tokenizer(WordLevel({w: i for i, w in enumerate(["<eos>", "<pad>", *words])}, unk_token="<pad>"))
    backend.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", pad_token="<pad>")
    rows = [{"input_ids": x.tolist()} for x in Ids(12).ids]
    args = trl.SFTConfig(
        output_dir=str(tmp_path), max_steps=3, logging_steps=3, per_device_train_batch_size=4, use_cpu=True, bf16=False,
        learning_rate=1e-9, report_to=[], save_strategy="no", gradient_checkpointing=False, label_smoothing_factor=smoothing,
    )  # fmt: skip
    given = dict(
        train_dataset=Dataset.from_list(rows), eval_dataset=Dataset.from_list(rows[:7]), processing_class=tokenizer
    )
    t = trl.SFTTrainer(gpt2(), args, **given)
    with pytest.raises(ValueError, match="objective has no effect"):
        TokenFrequencyCallback(t, COUNTS, Objective(label_smoothing=0.1))
    TokenFrequencyCallback(t, COUNTS)
    t.train()
    expect(next(x for x in t.state.log_history if "loss" in x), slow(gpt2(), Ids(12)), COUNTS)
    expect(t.evaluate(), slow(gpt2(), [Ids(12)[i] for i in range(7)]), COUNTS, "eval_")


def test_a_window_without_labels_has_no_numbers_and_training_goes_on(tmp_path):
    class Masked(Ids):
        def __getitem__(self, i: int) -> dict:
            return {"input_ids": self.ids[i], "labels": torch.full((6,), -100) if i < 4 else self.ids[i]}

    class InOrder(Trainer):
        def _get_train_sampler(self, *_, **__):
            return torch.utils.data.SequentialSampler(self.train_dataset)

    t = trainer(tmp_path, Masked(), make=InOrder, logging_steps=1, max_steps=3)
    TokenFrequencyCallback(t, COUNTS)
    t.train()
    assert ["token_balanced_loss" in x for x in t.state.log_history[:3]] == [False, True, True]


class Twice(Trainer):
    """The model's own loss, used: an objective takes effect."""

    def compute_loss(self, model, inputs, return_outputs=False, **_):
        outputs = model(**inputs)
        return (2 * outputs.loss, outputs) if return_outputs else 2 * outputs.loss


@pytest.mark.parametrize(
    "make, options, error, said",
    [
        (partial(Trainer, compute_loss_func=own_loss), {}, ValueError, "compute_loss_func"),
        (Trainer, dict(label_smoothing_factor=0.1), ValueError, "label_smoothing_factor=0.1 .* set it to 0"),
        (OwnLoss, {}, RuntimeError, "OwnLoss minimises a loss that the model does not compute"),
        (Twice, {}, None, ""),
    ],
    ids=["function", "smoothed", "overridden", "doubled"],
)
def test_an_objective_without_effect_is_refused_before_a_step_is_taken(tmp_path, make, options, error, said):
    t = trainer(tmp_path, Ids(), make=make, logging_steps=500, learning_rate=0.1, **options)
    if error is None:
        TokenFrequencyCallback(t, COUNTS, Objective(label_smoothing=0.5))
        t.train()
        return
    with pytest.raises(error, match=said):
        TokenFrequencyCallback(t, COUNTS, Objective(label_smoothing=0.5))
        t.train()
    for a, b in zip(t.model.parameters(), gpt2().parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_fused_loss_is_refused_with_the_setting_to_change(tmp_path):
    t = trainer(tmp_path, Ids(), use_liger_kernel=True)
    with pytest.raises(ValueError, match="fused_linear_cross_entropy': False"):
        TokenFrequencyCallback(t)
    t.args.liger_kernel_config = {"fused_linear_cross_entropy": False}
    TokenFrequencyCallback(t)


def test_a_model_that_gives_no_logits_is_told_in_the_first_step(tmp_path):
    """As a fused head that someone put into the model: nothing of the message is a setting at its default."""
    t = trainer(tmp_path, Ids())
    TokenFrequencyCallback(t)
    own = t.model.forward

    def fused(input_ids=None, labels=None, **_):
        output = own(input_ids=input_ids, labels=None)
        return CausalLMOutput(loss=own_loss(output, labels))

    t.model.forward = fused
    with pytest.raises(RuntimeError, match="CausalLMOutput has no logits"):
        t.train()
    assert t.state.global_step == 0


DEPTH = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
SIZES = dict(vocab_size=VOCABULARY, **DEPTH)
bart = BartConfig(vocab_size=VOCABULARY, d_model=16, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=16)
XLM = dict(vocab_size=VOCABULARY, emb_dim=16, n_layers=1, n_heads=2, causal=True)
PART = dict(**SIZES, num_key_value_heads=2, head_dim=8, max_position_embeddings=16)


def wide() -> GPT2ForTokenClassification:
    """As many classes as the vocabulary has types, of each token itself."""
    config = gpt2().config
    config.num_labels = VOCABULARY
    return GPT2ForTokenClassification(config)


def focal() -> GPT2LMHeadModel:
    model = gpt2()
    model.loss_function = lambda logits, labels, **_: (
        cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()) ** 2
    )
    return model


@pytest.mark.parametrize(
    "model, said",
    [
        (lambda: BertForMaskedLM(BertConfig(**SIZES)), "not causal"),
        (lambda: BertLMHeadModel(BertConfig(**SIZES)), "not causal"),
        (
            lambda: T5GemmaForConditionalGeneration(T5GemmaConfig(encoder=PART, decoder=PART, vocab_size=VOCABULARY)),
            "encoder",
        ),
        (lambda: GPT2ForSequenceClassification(gpt2().config), "does not predict a token"),
        (lambda: GPT2ForTokenClassification(gpt2().config), "does not predict a token"),
        (wide, "minimises something else"),
        (focal, "minimises something else.* as compute_loss_func"),
        (lambda: BartForCausalLM(bart), "output of an encoder"),
        (
            lambda: XLMWithLMHeadModel(
                XLMConfig(vocab_size=VOCABULARY, emb_dim=16, n_layers=1, n_heads=2, causal=True)
            ),
            "minimises something else.*TokenSums",
        ),  # unshifted
        (lambda: ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, **DEPTH)), "token ids alone"),
        (lambda: torch.nn.Linear(2, 2), "TokenSums"),
    ],
    ids=[
        "masked",
        "encoder",
        "encoder-decoder",
        "sequences",
        "tokens",
        "wide",
        "focal",
        "decoder",
        "unshifted",
        "pictures",
        "foreign",
    ],
)
def test_models_of_another_loss_are_refused(tmp_path, model, said):
    t = trainer(tmp_path, Ids(), make=lambda _, *args, **kwargs: Trainer(model(), *args, **kwargs))
    with pytest.raises(ValueError, match=said):
        TokenFrequencyCallback(t)


def test_the_routers_loss_stays_a_mixtures_own(tmp_path):
    def mixture():
        torch.manual_seed(0)
        router = dict(num_local_experts=2, output_router_logits=True, router_aux_loss_coef=0.5)
        return MixtralForCausalLM(MixtralConfig(**SIZES, num_key_value_heads=2, **router))

    logged = []
    for watched in (False, True):
        t = trainer(
            tmp_path,
            Ids(),
            Ids(8),
            lambda _, *args, **kwargs: Trainer(mixture(), *args, **kwargs),
            max_steps=6,
            logging_steps=6,
        )
        if watched:
            TokenFrequencyCallback(t, COUNTS)
        t.train()
        logged.append((t.state.log_history[0], t.evaluate()))
    assert logged[0][0]["loss"] == pytest.approx(logged[1][0]["loss"], rel=1e-4)
    assert logged[0][1]["eval_loss"] == pytest.approx(logged[1][1]["eval_loss"], rel=1e-4)
    expect(logged[1][0], slow(mixture(), Ids()), COUNTS)
    expect(logged[1][1], slow(mixture(), Ids(8)), COUNTS, "eval_")


@pytest.mark.parametrize("metric", ["eval_n_v_3-8_loss", "n_v_3-8_loss"])
def test_the_best_model_by_a_bin_has_the_smallest_loss(tmp_path, metric):
    """A pass without a type of the bin does not end training, and is not the best."""
    steps = dict(eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=2)
    t = trainer(
        tmp_path, Ids(), Ids(13), max_steps=8, learning_rate=0.05, load_best_model_at_end=True,
        metric_for_best_model=metric, **steps,
    )  # fmt: skip
    TokenFrequencyCallback(t, COUNTS)
    t.train()
    values = [x["eval_n_v_3-8_loss"] for x in t.state.log_history if "eval_n_v_3-8_loss" in x]
    assert len(values) == 4 and t.state.best_metric == min(values)
    t = trainer(tmp_path, Ids(), Ids(13), max_steps=4, metric_for_best_model=metric, **steps)
    TokenFrequencyCallback(t)  # counted as training goes: in its first steps no type has 729 occurrences
    t.args.metric_for_best_model = "eval_n_v_729-2186_loss"
    t.train()
    assert np.isnan(t.evaluate()["eval_n_v_729-2186_loss"]) and t.state.best_metric == np.inf


@pytest.mark.parametrize(
    "metric, options, said",
    [
        ("eval_loss_n_v_3-8", {}, "'eval_n_v_3-8_loss'"),
        ("eval_n_v_3-9_loss", {}, "is no name that is logged"),
        ("n_v_3-8", {}, "is no name that is logged"),
        ("eval_n_v_729-2186_loss", {}, "no type in this bin"),
        ("eval_token_balanced_loss", dict(greater_is_better=True), "leave greater_is_better out"),
    ],
)
def test_a_name_that_does_not_exist_or_is_maximised_is_refused(tmp_path, metric, options, said):
    t = trainer(tmp_path, Ids(), Ids(8), metric_for_best_model=metric, **options)
    with pytest.raises(ValueError, match=said):
        TokenFrequencyCallback(t, COUNTS)


def test_an_objective_of_another_length_is_refused_or_zero_beyond(tmp_path):
    def make(*args, **kwargs):
        t = Trainer(*args, **kwargs)
        t.model.resize_token_embeddings(64, mean_resizing=False)
        return t

    weights = loss_weights(COUNTS, 0.5)  # of the tokenizer's length
    logged = []
    for given in (weights, torch.cat([weights, torch.zeros(14)]), weights.numpy()):
        t = trainer(tmp_path, Ids(), make=make)
        TokenFrequencyCallback(t, COUNTS, Objective(given))
        t.train()
        logged.append(t.state.log_history[0]["loss"])
    assert logged[0] == logged[1] == logged[2]
    for wrong in (Objective(torch.ones(65)), Objective(logit_offset=torch.zeros(VOCABULARY))):
        t = trainer(tmp_path, Ids(), make=make)
        with pytest.raises(ValueError, match="predicts 64 token types; give one per type"):
            TokenFrequencyCallback(t, COUNTS, wrong)


def test_a_model_of_few_positions_is_recorded(tmp_path):
    def few(*args, **kwargs):
        args[0].config.n_positions = args[0].transformer.wpe.num_embeddings = 6
        args[0].transformer.wpe.weight.data = args[0].transformer.wpe.weight.data[:6]
        return Trainer(*args, **kwargs)

    t = trainer(tmp_path, Ids(), make=few, max_steps=6, logging_steps=6)
    TokenFrequencyCallback(t, COUNTS)
    t.train()
    expect(t.state.log_history[0], slow(gpt2(), Ids()), COUNTS)


def test_a_damaged_record_of_a_checkpoint_is_named(tmp_path):
    t = trainer(tmp_path, Ids(), save_strategy="steps", save_steps=3)
    TokenFrequencyCallback(t)
    t.train()
    checkpoint = tmp_path / "out" / "checkpoint-3"
    (checkpoint / STATE).write_bytes(b"cut short")
    with pytest.raises(ValueError, match=f"{STATE}: cannot be read .* remove the file"):
        t.train(resume_from_checkpoint=str(checkpoint))


def test_a_resized_embedding_is_followed(tmp_path):
    t = trainer(tmp_path, Ids(), Ids(13), max_steps=6, logging_steps=6)
    TokenFrequencyCallback(t, COUNTS)
    t.model.resize_token_embeddings(VOCABULARY + 8, mean_resizing=False)
    expected = slow(t.model, Ids(13))
    t.train()
    expect(t.evaluate(), expected, COUNTS, "eval_")


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


def test_an_evaluation_within_an_evaluation_keeps_its_own_sums(tmp_path):
    def compute_metrics(_):
        if not nested:
            nested.append(None)
            nested[0] = t.predict(Ids(7))
        return {}

    nested: list = []
    t = trainer(tmp_path, Ids(), Ids(13))
    t.compute_metrics = compute_metrics
    TokenFrequencyCallback(t, COUNTS)
    expect(t.evaluate(), slow(gpt2(), Ids(13)), COUNTS, "eval_")
    expect(nested[0].metrics, slow(gpt2(), Ids(7)), COUNTS, "test_")


def test_an_evaluation_without_a_target_does_not_end_training(tmp_path):
    class Masked(Ids):
        def __getitem__(self, i: int) -> dict:
            return {"input_ids": self.ids[i], "labels": torch.full_like(self.ids[i], -100)}

    options = dict(
        eval_strategy="steps", eval_steps=3, save_strategy="steps", save_steps=3, load_best_model_at_end=True
    )
    t = trainer(tmp_path, Ids(), Masked(13), metric_for_best_model="eval_token_balanced_loss", **options)
    TokenFrequencyCallback(t)
    t.train()
    assert t.state.global_step == 3 and np.isnan(t.evaluate()["eval_token_balanced_loss"])


def test_counts_that_were_given_are_not_taken_for_counted_ones(tmp_path):
    options = dict(max_steps=6, save_strategy="steps", save_steps=4)
    t = trainer(tmp_path, Ids(), **options)
    TokenFrequencyCallback(t, COUNTS)
    t.train()
    t = trainer(tmp_path, Ids(), **options)
    TokenFrequencyCallback(t)
    with pytest.raises(ValueError, match="were given to the callback; give them again"):
        t.train(resume_from_checkpoint=True)


class Backwards(OwnLoss):
    """A pass over other tokens before the one that is minimised."""

    def compute_loss(self, model, inputs, *args, **kwargs):
        model(input_ids=inputs["input_ids"].flip(1))
        return super().compute_loss(model, inputs, *args, **kwargs)


def test_of_passes_without_labels_the_one_over_the_batch_is_recorded(tmp_path):
    t = trainer(tmp_path, Ids(), Ids(13), make=Backwards)
    TokenFrequencyCallback(t, COUNTS)
    expect(t.evaluate(), slow(gpt2(), Ids(13)), COUNTS, "eval_")


class Plain(PreTrainedModel):
    """A model of somebody's own, whose forward knows its three arguments and returns a plain dictionary."""

    config_class = GPT2Config

    def __init__(self, config):
        super().__init__(config)
        self.embedding, self.head = torch.nn.Embedding(VOCABULARY, 8), torch.nn.Linear(8, VOCABULARY)
        self.post_init()

    def get_input_embeddings(self):
        return self.embedding

    def get_output_embeddings(self):
        return self.head

    def forward(self, input_ids, labels=None, attention_mask=None):
        logits = self.head(self.embedding(input_ids))
        if labels is None:
            return {"logits": logits}
        return {"loss": cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()), "logits": logits}


def test_a_model_that_knows_no_cache_and_returns_a_dictionary_is_recorded(tmp_path):
    t = trainer(tmp_path, Ids(), Ids(13))
    t = Trainer(Plain(GPT2Config(vocab_size=VOCABULARY)), t.args, train_dataset=Ids(), eval_dataset=Ids(13))
    TokenFrequencyCallback(t, COUNTS)
    t.train()
    found = t.evaluate()
    assert found["eval_loss"] > 0 and "eval_token_balanced_loss" in found
    assert "token_balanced_loss" in t.state.log_history[0]
