"""Remedies against slow reference implementations, in stock Trainers and on models that are not ours."""

import copy

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from fairlm_utils import models, remedies
from fairlm_utils.params import DecayedParameters, ParameterError, TrainingParams

VOCABULARY = 50


def gpt2(tied: bool = True) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    sizes = dict(vocab_size=VOCABULARY, n_positions=16, n_embd=8, n_layer=2, n_head=2)
    off = dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0)
    return GPT2LMHeadModel(GPT2Config(**sizes, **off, tie_word_embeddings=tied))


class Ids(Dataset):
    def __init__(self, n: int = 24):
        self.ids = torch.randint(0, VOCABULARY, (n, 6), generator=torch.Generator().manual_seed(1))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> dict:
        return {"input_ids": self.ids[i], "labels": self.ids[i]}


def step_by_hand(model, batches, lr, weight_decay, scale):
    """One step the slow way: the plain AdamW without decay of the rows, each row decayed in a loop before it."""
    groups, _ = models.weight_decay_groups(model, weight_decay, "all", rows_apart=True)
    optimizer = torch.optim.AdamW(groups, lr=lr)
    for ids in batches:
        (model(input_ids=ids, labels=ids).loss / len(batches)).backward()
    seen = {int(i) for ids in batches for i in ids.flatten()}
    weights = {id(w): w for w in (model.get_input_embeddings().weight, model.get_output_embeddings().weight)}
    with torch.no_grad():
        for weight in weights.values():
            for v in range(VOCABULARY):
                weight[v] *= 1 - lr * weight_decay * ((v in seen) if scale is None else float(scale[v]))
    optimizer.step()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("by_counts", [False, True])
@pytest.mark.parametrize("accumulated", [1, 3])
def test_frequency_aware_adamw_against_a_slow_reference(tied, by_counts, accumulated):
    counts = np.arange(VOCABULARY)
    ours, reference = gpt2(tied), gpt2(tied)
    optimizer = remedies.frequency_aware_adamw(ours, 0.1, 0.5, counts if by_counts else None, exponent=0.5)
    batches = Ids().ids.reshape(-1, 8, 6)[:accumulated]
    for ids in batches:
        (ours(input_ids=ids, labels=ids).loss / accumulated).backward()
    optimizer.step()
    scale = np.minimum(1, counts / np.percentile(counts[1:], 95)) ** 0.5 if by_counts else None
    step_by_hand(reference, batches, 0.1, 0.5, scale)
    for (name, a), b in zip(ours.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5, msg=name)


def test_a_uniform_scale_is_adamw():
    ours, theirs = gpt2(), gpt2()
    a = remedies.frequency_aware_adamw(ours, 0.01, 0.5, np.ones(VOCABULARY))
    b = torch.optim.AdamW(theirs.parameters(), lr=0.01, weight_decay=0.5)
    for ids in Ids().ids.reshape(-1, 8, 6):
        for model, optimizer in ((ours, a), (theirs, b)):
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    for x, y in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(x, y, atol=1e-6, rtol=1e-5)


def test_evaluation_between_steps_does_not_count_as_seen():
    model = gpt2()
    optimizer = remedies.frequency_aware_adamw(model, 0.1, 0.5)
    with torch.no_grad():
        model.eval()(input_ids=torch.tensor([[7]]))
    model.train()(input_ids=torch.tensor([[3, 4]]), labels=torch.tensor([[3, 4]])).loss.backward()
    row = model.get_input_embeddings().weight[7].clone()
    model.get_input_embeddings().weight.grad.zero_()
    optimizer.step()
    assert torch.equal(model.get_input_embeddings().weight[7], row)


def test_in_a_stock_trainer_with_accumulation(tmp_path):
    """Rows that never occur keep their norm against the decay; those that do shrink as under AdamW."""
    data = Ids()
    data.ids %= 25

    def trained(make):
        model = gpt2(tied=False)
        args = TrainingArguments(
            str(tmp_path),
            max_steps=20,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            use_cpu=True,
            learning_rate=0.05,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            logging_strategy="no",
        )
        Trainer(model, args, train_dataset=data, optimizers=(make(model), None)).train()
        return model.get_input_embeddings().weight.detach()

    start = gpt2(tied=False).get_input_embeddings().weight.detach()
    plain = trained(lambda m: torch.optim.AdamW(m.parameters(), lr=0.05, weight_decay=1.0))
    ours = trained(lambda m: remedies.frequency_aware_adamw(m, 0.05, 1.0))
    assert torch.equal(ours[25:], start[25:])
    assert (plain[25:].norm(dim=1) < 0.8 * start[25:].norm(dim=1)).all()
    torch.testing.assert_close(ours[:25], plain[:25], atol=0.05, rtol=0.1)


def test_row_decay_refuses_what_would_decay_twice_or_not_at_all():
    model = gpt2()
    with pytest.raises(ValueError, match="weight_decay 0"):
        remedies.RowDecay(model, torch.optim.AdamW(model.parameters(), weight_decay=0.1), 0.1)
    with pytest.raises(ValueError, match="does not hold"):
        remedies.RowDecay(model, torch.optim.AdamW(gpt2().parameters(), weight_decay=0.0), 0.1)
    with pytest.raises(ValueError, match="entries"):
        remedies.frequency_aware_adamw(model, 0.1, 0.1, np.ones(VOCABULARY + 1))
    with pytest.raises(ValueError, match="counts"):
        remedies.frequency_scale(np.zeros(3))


def test_frequency_scale_by_hand():
    counts = np.array([0, 1, 4, 16, 16])
    assert remedies.frequency_scale(counts).tolist() == [0, 1 / 16, 1 / 4, 1, 1]
    assert remedies.frequency_scale(counts, 0.5).tolist() == [0, 1 / 4, 1 / 2, 1, 1]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("decayed", DecayedParameters.__args__)
def test_what_decays(tied, decayed):
    """On GPT-2, whose norms are called ln_1: by name what each choice decays."""
    model = gpt2(tied)
    _, table = models.weight_decay_groups(model, 0.5, decayed)
    names = set(table.loc[table["weight_decay"] > 0, "parameter"])
    every = set(table["parameter"])
    rows = {n for n in every if n in ("transformer.wte.weight", "lm_head.weight")}
    norms = {n for n in every if ".ln_" in n}
    vectors = {n for n in every if n.endswith(".bias")} | norms
    expected = {
        "all": every,
        "matrices": every - vectors,
        "no-embedding": every - rows,
        "no-embedding-nor-norms": every - rows - norms,
        "embedding": {"transformer.wte.weight"},
        "head": {"transformer.wte.weight"} if tied else {"lm_head.weight"},
        "norms": norms,
    }
    assert names == expected[decayed] and len(rows) == (1 if tied else 2) and norms


def test_loss_weights_have_mean_one_over_tokens_and_follow_the_exponent():
    n = np.array([0, 1, 4, 100])
    made = remedies.objective(TrainingParams.check({"loss_weight_exponent": 0.5}), n)
    w = made.token_weights.numpy()
    assert w[0] == 0 and (w * n).sum() / n.sum() == pytest.approx(1) and w[1] / w[3] == pytest.approx(10)
    balanced = remedies.objective(TrainingParams.check({"loss_weight_exponent": 1.0}), n).token_weights.numpy()
    assert np.allclose((balanced * n)[1:], n.sum() / 3)
    offset = remedies.objective(TrainingParams.check({"logit_adjustment": 2.0}), n).logit_offset.numpy()
    assert offset[3] - offset[0] == pytest.approx(2 * np.log(101)) and remedies.objective(TrainingParams(), n) is None


def test_dropout_acts_while_training_only_and_leaves_nothing_behind():
    for name in ("qwen2-tiny", "openelm-tiny"):
        model = models.build_model(name, 300, 16, seed=0)
        ids = torch.randint(0, 300, (2, 16))
        plain = model.eval()(ids).logits
        with remedies.dropout(model, 0.5):
            assert torch.equal(model.eval()(ids).logits, plain)
            assert not torch.allclose(model.train()(ids).logits, plain, atol=1e-3)
        assert torch.equal(model.train()(ids).logits, plain)


def test_impossible_combinations_are_refused():
    with pytest.raises(ParameterError, match="whole rows"):
        TrainingParams.check({"embedding_decay": "when-seen", "sharded": True})
    with pytest.raises(ParameterError, match="decoupled"):
        TrainingParams.check({"embedding_decay": "frequency", "weight_decay_form": "l2"})


def test_a_remedy_makes_another_run_and_defaults_keep_their_names():
    p = TrainingParams()
    assert "dropout" not in p.identity() and p.run_id() != TrainingParams.check({"dropout": 0.1}).run_id()
    assert copy.copy(p).run_id() == TrainingParams.check({"variant": "a label"}).run_id()
