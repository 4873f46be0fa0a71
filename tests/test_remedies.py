"""Remedies against slow reference implementations, in stock Trainers and on models that are not ours."""

import copy
import gc
import pickle
import re

import numpy as np
import pytest
import torch
import transformers
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from fairlm_utils.lm import models, remedies
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
    by = {"counts": counts, "exponent": 0.5} if by_counts else {}
    optimizer = remedies.frequency_aware_adamw(ours, 0.1, 0.5, **by)
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
        remedies.FrequencyAwareAdamW(list(model.parameters()), model=model, weight_decay=0.1)
    with pytest.raises(ValueError, match="does not hold"):
        groups, _ = models.weight_decay_groups(gpt2(), 0.1, "all", rows_apart=True)
        remedies.FrequencyAwareAdamW(groups, model=model)
    with pytest.raises(ValueError, match="entries"):
        remedies.frequency_aware_adamw(model, 0.1, 0.1, np.ones(VOCABULARY + 1))
    with pytest.raises(ValueError, match="counts"):
        remedies.frequency_scale(np.zeros(3))


def adamw_groups(model, weight_decay):
    """AdamW over the same parameters in the same order of groups, all decaying alike."""
    groups, _ = models.weight_decay_groups(model, weight_decay, "all", rows_apart=True)
    return [{"params": group["params"], "weight_decay": weight_decay} for group in groups]


def train_steps(model, optimizer, batches, accumulated=1):
    for step in range(0, len(batches), accumulated):
        for ids in batches[step : step + accumulated]:
            (model(input_ids=ids, labels=ids).loss / accumulated).backward()
        optimizer.step()
        optimizer.zero_grad()


def decayed_rows(weight, before):
    """Rows that moved in a step whose gradient was 0, so that decay alone moves them."""
    return torch.nonzero((weight.detach() != before).any(1)).flatten().tolist()


def zero_step(model, optimizer, *tokens):
    """One step with gradient 0 on these tokens alone: which rows of the embedding did it move?"""
    before = model.get_input_embeddings().weight.detach().clone()
    ids = torch.tensor([tokens])
    (model(input_ids=ids, labels=ids).loss * 0.0).backward()
    optimizer.step()
    optimizer.zero_grad()
    return decayed_rows(model.get_input_embeddings().weight, before)


@pytest.mark.parametrize("options", [{}, {"fused": True}, {"foreach": True}, {"amsgrad": True}, {"maximize": True}])
@pytest.mark.parametrize("tied", [True, False])
def test_with_all_strengths_one_it_is_adamw_to_the_last_bit(options, tied):
    ours, theirs = gpt2(tied), gpt2(tied)
    a = remedies.frequency_aware_adamw(ours, 0.01, 0.5, np.ones(VOCABULARY), **options)
    b = torch.optim.AdamW(adamw_groups(theirs, 0.5), lr=0.01, **options)
    batches = Ids().ids.reshape(-1, 4, 6)
    train_steps(ours, a, batches)
    train_steps(theirs, b, batches)
    assert all(torch.equal(x, y) for x, y in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_a_learning_rate_may_be_a_tensor_and_differ_by_group():
    ours, theirs = gpt2(tied=False), gpt2(tied=False)
    counts = np.arange(VOCABULARY)
    a = remedies.frequency_aware_adamw(ours, torch.tensor(0.125), 0.5, counts)
    b = remedies.frequency_aware_adamw(theirs, 0.125, 0.5, counts)
    for optimizer in (a, b):
        optimizer.param_groups[-1]["lr"] = optimizer.param_groups[-1]["lr"] / 4
    batch = Ids().ids[:8]
    before = ours.get_output_embeddings().weight.detach().clone()
    for model, optimizer in ((ours, a), (theirs, b)):
        (model(input_ids=batch, labels=batch).loss * 0.0).backward()
        optimizer.step()
    assert all(torch.equal(x, y) for x, y in zip(ours.parameters(), theirs.parameters(), strict=True))
    s = np.minimum(1, counts / np.percentile(counts[1:], 95))
    expected = before.double() * torch.from_numpy(1 - 0.125 / 4 * 0.5 * s)[:, None]
    torch.testing.assert_close(ours.get_output_embeddings().weight.detach().double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("by_counts", [False, True])
def test_the_decay_of_other_precisions_is_rounded_once(dtype, by_counts):
    """Each step is the product in float64, rounded to the weight's precision; 20 steps keep what AdamW keeps."""
    model, plain = gpt2().to(dtype), gpt2().to(dtype)
    counts = np.full(VOCABULARY, 9)
    counts[:10] = 3
    # an epsilon that float16 holds: 0 / 0 else
    optimizer = remedies.frequency_aware_adamw(model, 1e-2, 0.3, counts if by_counts else None, eps=1e-4)
    adamw = torch.optim.AdamW(adamw_groups(plain, 0.3), lr=1e-2, eps=1e-4)
    weight = model.get_input_embeddings().weight
    s = torch.ones(VOCABULARY, dtype=torch.float64)
    if by_counts:
        s[:10] = 1 / 3
    for _ in range(20):
        factor = 1 - 1e-2 * 0.3 * s[:, None]
        expected = weight.detach().double() * factor
        if not by_counts:
            optimizer.seen.fill_(1)
        for parameter in (*model.parameters(), *plain.parameters()):
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        adamw.step()
        half_ulp = torch.finfo(dtype).eps * expected.abs() / 2 + torch.finfo(dtype).tiny
        limit = 1.01 * half_ulp if dtype != torch.float64 else 1e-8 * expected.abs()  # strengths are float32
        assert ((weight.detach().double() - expected).abs() <= limit).all()
    kept, theirs = weight[10:].double().norm(), plain.get_input_embeddings().weight[10:].double().norm()
    assert kept.item() == pytest.approx(theirs.item(), rel=2e-3)


def test_float32_is_rounded_as_in_the_committed_results():
    """1 − (η λ) s in float32, to the last bit: another rounding would be another run."""
    model = gpt2()
    counts = np.arange(VOCABULARY) + 1
    optimizer = remedies.frequency_aware_adamw(model, 0.003, 0.7, counts)
    weight = model.get_input_embeddings().weight
    strength = np.minimum(1, counts / np.percentile(counts, 95)).astype(np.float32)
    factor = np.float32(1) - np.float32(0.003 * 0.7) * strength
    expected = weight.detach().numpy() * factor[:, None]
    (model(input_ids=Ids().ids[:8], labels=Ids().ids[:8]).loss * 0.0).backward()
    optimizer.step()
    assert np.array_equal(weight.detach().numpy(), expected)


@pytest.mark.parametrize("by_counts", [False, True])
def test_frozen_parameters_do_not_decay_and_unfrozen_ones_do(by_counts):
    counts = np.ones(VOCABULARY) + np.arange(VOCABULARY) if by_counts else None
    for frozen_head in (False, True):
        model = gpt2(tied=False)
        embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        embedding.requires_grad_(False)
        head.requires_grad_(not frozen_head)
        start, start_head = embedding.detach().clone(), head.detach().clone()
        optimizer = remedies.frequency_aware_adamw(model, 0.01, 0.5, counts)
        ids = torch.tensor([[3, 4]])
        (model(input_ids=ids, labels=ids).loss * 0.0).backward()
        optimizer.step()
        optimizer.zero_grad()
        assert torch.equal(embedding, start)
        moved = [] if frozen_head else list(range(VOCABULARY)) if by_counts else [3, 4]
        assert decayed_rows(head, start_head) == moved
        embedding.requires_grad_(True)
        assert zero_step(model, optimizer, 5, 6) == (list(range(VOCABULARY)) if by_counts else [5, 6])
        embedding.requires_grad_(False)
        assert zero_step(model, optimizer, 7, 8) == []


def test_rows_that_peft_trains_alone_are_refused_with_what_to_do():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM", trainable_token_indices={"wte": [3, 7]}
    )
    with pytest.raises(ValueError, match=r"trainable_token_indices.* modules_to_save"):
        remedies.frequency_aware_adamw(peft.get_peft_model(gpt2(), config), 1e-2, 0.5)


@pytest.mark.parametrize("by_counts", [False, True])
def test_under_lora_the_base_stays_as_it_is(by_counts):
    peft = pytest.importorskip("peft")
    adapted = dict(target_modules=["c_attn"], fan_in_fan_out=True)
    counts = np.arange(VOCABULARY) if by_counts else None
    batches = Ids().ids.reshape(-1, 4, 6)
    model = peft.get_peft_model(gpt2(), peft.LoraConfig(task_type="CAUSAL_LM", **adapted))
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    train_steps(model, remedies.frequency_aware_adamw(model, 0.01, 0.5, counts), batches)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, start[name])}
    assert moved == {name for name in start if "lora_" in name}
    # an embedding that is trained beside the adapters decays by row
    whole = peft.LoraConfig(task_type="CAUSAL_LM", modules_to_save=["wte"], **adapted)
    model = peft.get_peft_model(gpt2(tied=False), whole)
    optimizer = remedies.frequency_aware_adamw(model, 0.01, 0.5, counts)
    before = model.get_input_embeddings().weight.detach().clone()
    ids = torch.tensor([[3, 4]])
    (model(input_ids=ids, labels=ids).loss * 0.0).backward()
    optimizer.step()
    assert decayed_rows(model.get_input_embeddings().weight, before) == (
        list(range(1, VOCABULARY)) if by_counts else [3, 4]
    )


def test_marks_follow_the_model_to_another_device():
    """The meta device stands for a GPU to which Trainer moves a model whose optimiser exists already."""
    model = gpt2()
    optimizer = remedies.frequency_aware_adamw(model, 1e-3, 0.5)
    model.to("meta").train()
    model(input_ids=torch.zeros(1, 4, dtype=torch.long, device="meta"))
    assert optimizer.seen.device == model.get_input_embeddings().weight.device
    with pytest.raises(ValueError, match="another kind of device"):  # meta makes other parameters, a GPU does not
        optimizer.step()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("by_counts", [False, True])
def test_an_optimizer_made_before_the_model_moves_to_the_gpu(by_counts):
    counts = np.arange(VOCABULARY) if by_counts else None
    models_ = [gpt2(), gpt2()]
    for model, device in zip(models_, ("cpu", "cuda"), strict=True):
        optimizer = remedies.frequency_aware_adamw(model, 0.01, 0.5, counts)
        model.to(device)
        train_steps(model, optimizer, Ids().ids.reshape(-1, 4, 6).to(device))
    for a, b in zip(*(m.parameters() for m in models_), strict=True):
        torch.testing.assert_close(a, b.cpu(), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("zero_grad", ["optimizer", "model", "optimizer to zero", "model to zero", "by hand"])
def test_a_step_that_grad_scaler_skips_leaves_no_marks(fused, zero_grad):
    model = gpt2().train()
    weight = model.get_input_embeddings().weight
    optimizer = remedies.frequency_aware_adamw(model, 0.01, 0.5, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0)

    def clear():
        if zero_grad == "by hand":
            for parameter in model.parameters():
                parameter.grad = torch.zeros_like(parameter)
        else:
            (optimizer if "optimizer" in zero_grad else model).zero_grad(set_to_none="to zero" not in zero_grad)

    def step(token, factor):
        before = weight.detach().clone()
        for ids in (torch.full((1, 4), token), torch.full((1, 4), token + 1)):  # two batches accumulated
            scaler.scale(model(input_ids=ids, labels=ids).loss * factor).backward()
        scaler.step(optimizer)
        scaler.update()
        clear()
        return decayed_rows(weight, before)

    assert step(5, float("inf")) == []
    assert step(7, 0.0) == [7, 8]
    assert step(9, float("inf")) == []
    optimizer.state_dict()  # saving does not bring them back
    assert step(11, 0.0) == [11, 12]


def test_what_counts_as_seen():
    model = gpt2().train()
    optimizer = remedies.frequency_aware_adamw(model, 0.01, 0.5)

    def loss(*tokens):
        ids = torch.tensor([tokens])
        return model(input_ids=ids, labels=ids).loss * 0.0

    def step():
        before = model.get_input_embeddings().weight.detach().clone()
        optimizer.step()
        optimizer.zero_grad()
        return decayed_rows(model.get_input_embeddings().weight, before)

    both = loss(1, 2) + loss(3, 4)  # two forward passes, one backward pass, as in preference learning
    both.backward()
    assert step() == [1, 2, 3, 4]
    one = loss(5, 6)
    optimizer.zero_grad()  # between the passes, as many loops have it
    one.backward()
    assert step() == [5, 6]
    loss(7, 8)  # a loss that nobody minimises
    with torch.no_grad():
        loss(9, 10)
    model.eval()
    loss(11, 12).backward()
    model.train()
    for tokens in ([13, 14], [15, 16]):  # clipped between accumulated batches
        model(input_ids=torch.tensor([tokens]), labels=torch.tensor([tokens])).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    assert torch.nonzero(optimizer.seen).flatten().tolist() == [13, 14, 15, 16]
    optimizer.step()
    model.zero_grad()
    optimizer.state.clear()  # without momentum, decay alone moves a row
    model.gradient_checkpointing_enable()
    loss(17, 18).backward()
    assert step() == [17, 18]
    model.transformer.wte(input=torch.tensor([[19, 20]], dtype=torch.int32)).sum().mul(0.0).backward()
    assert step() == [19, 20]

    def closure():
        optimizer.zero_grad()
        value = loss(21, 22)
        value.backward()
        return value + 3

    before = model.get_input_embeddings().weight.detach().clone()
    assert optimizer.step(closure).item() == 3
    assert decayed_rows(model.get_input_embeddings().weight, before) == [21, 22]


def test_a_model_that_is_resized_needs_another_optimizer():
    for tied in (True, False):
        for counts in (None, np.ones(VOCABULARY) + np.arange(VOCABULARY)):
            for size in (VOCABULARY + 14, VOCABULARY - 10):
                model = gpt2(tied)
                optimizer = remedies.frequency_aware_adamw(model, 0.01, 0.5, counts)
                model.resize_token_embeddings(size)
                ids = torch.tensor([[size - 1, 3]])
                model(input_ids=ids, labels=ids).loss.backward()
                with pytest.raises(ValueError, match="resiz"):
                    optimizer.step()
                anew = remedies.frequency_aware_adamw(model, 0.01, 0.5)
                model.zero_grad()
                assert zero_step(model, anew, size - 1, 3) == [3, size - 1]


def test_counts_of_another_length_or_kind():
    model = gpt2()
    model.resize_token_embeddings(64)
    counts = np.arange(VOCABULARY) + 5
    optimizer = remedies.frequency_aware_adamw(model, 0.01, 0.5, counts)
    s = optimizer.param_groups[-1]["row_scale"].tolist()
    n_95 = np.percentile(counts, 95)  # of the types that occur
    assert s[:VOCABULARY] == pytest.approx(np.minimum(1, counts / n_95)) and s[VOCABULARY:] == [0.0] * 14
    for same in (counts.tolist(), torch.from_numpy(counts), counts.astype(np.float32), torch.tensor(counts).bfloat16()):
        again = remedies.frequency_aware_adamw(model, 0.01, 0.5, same)
        assert again.param_groups[-1]["row_scale"].tolist() == s
    bad = {
        "65 entries .* 64 rows": np.ones(65),
        "relative frequencies": counts / counts.sum(),
        "-1 is not": counts - 6,
        "nan is not": np.where(counts > 9, np.nan, counts),
        "inf is not": np.where(counts > 9, np.inf, counts),
        "no token type occurs": counts * 0,
        "vector": counts[None],
        "one number per token id": {"a": 1},
    }
    for message, wrong in bad.items():
        with pytest.raises(ValueError, match=f"counts.*{message}"):
            remedies.frequency_aware_adamw(model, 0.01, 0.5, wrong)
    with pytest.raises(ValueError, match="relative frequencies"):
        remedies.loss_weights(counts / counts.sum(), 0.5)
    for message, options in {
        "exponent": {"exponent": -1.0},
        "weight_decay": {"weight_decay": -0.1},
        "rate": {"lr": -1},
    }.items():
        with pytest.raises(ValueError, match=message):
            remedies.frequency_aware_adamw(model, **{"lr": 0.1, "weight_decay": 0.1, "counts": counts, **options})
    with pytest.raises(ValueError, match=r"exponent=0\.5 acts on counts"):
        remedies.frequency_aware_adamw(model, 0.1, 0.1, exponent=0.5)


def test_models_whose_rows_cannot_decay_are_refused():
    with pytest.raises(ValueError, match="get_input_embeddings"):
        remedies.frequency_aware_adamw(torch.nn.Linear(2, 2), 0.1, 0.1)
    sparse = gpt2()
    sparse.set_input_embeddings(torch.nn.Embedding(VOCABULARY, 8, sparse=True))
    with pytest.raises(ValueError, match="sparse"):
        remedies.frequency_aware_adamw(sparse, 0.1, 0.1)
    none = gpt2()
    none.set_input_embeddings(torch.nn.Identity())
    with pytest.raises(ValueError, match="no embedding"):
        remedies.frequency_aware_adamw(none, 0.1, 0.1)
    flat = gpt2()
    flat.transformer.wte.weight = flat.lm_head.weight = torch.nn.Parameter(torch.zeros(VOCABULARY * 8))
    with pytest.raises(ValueError, match="sharded"):
        remedies.frequency_aware_adamw(flat, 0.1, 0.1)
    longer = gpt2(tied=False)
    longer.set_output_embeddings(torch.nn.Linear(8, 64, bias=False))
    with pytest.raises(ValueError, match="50 and 64 rows"):
        remedies.frequency_aware_adamw(longer, 0.1, 0.1)
    with pytest.raises(ValueError, match="differentiable"):
        remedies.frequency_aware_adamw(gpt2(), 0.1, 0.1, differentiable=True)


def test_a_heads_bias_decays_as_the_other_parameters():
    model = gpt2(tied=False)
    head = torch.nn.Linear(8, VOCABULARY)
    model.set_output_embeddings(head)
    optimizer = remedies.frequency_aware_adamw(model, 0.01, 0.5)
    bias, weight = head.bias.detach().clone(), head.weight.detach().clone()
    assert zero_step(model, optimizer, 3, 4) == [3, 4] == decayed_rows(head.weight, weight)
    torch.testing.assert_close(head.bias.detach(), bias * (1 - 0.01 * 0.5))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
@pytest.mark.parametrize("by_counts", [False, True])
def test_copies_and_pickles_keep_the_behaviour(copied, by_counts):
    batches = Ids().ids.reshape(-1, 4, 6)
    counts = np.arange(VOCABULARY) if by_counts else None
    model = gpt2()
    optimizer = remedies.frequency_aware_adamw(model, 0.01, 0.5, counts)
    train_steps(model, optimizer, batches[:2])
    half, rest = batches[2], batches[3:]
    model(input_ids=half, labels=half).loss.backward()
    other, other_optimizer = copied((model, optimizer))
    assert not by_counts or other_optimizer.param_groups[-1]["row_scale"] is not optimizer.param_groups[-1]["row_scale"]
    for p, q in zip(other.parameters(), model.parameters(), strict=True):
        p.grad = q.grad.clone()  # copies have none
    for m, o in ((model, optimizer), (other, other_optimizer)):
        o.step()
        o.zero_grad()
        train_steps(m, o, rest)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert isinstance(other_optimizer, remedies.FrequencyAwareAdamW)
    if not by_counts:
        # a copy of the model alone, as a reference model or an average, does not mark the original's rows
        alone = copied(model)
        ids = torch.tensor([[7, 8]])
        alone(input_ids=ids, labels=ids).loss.backward()
        assert not optimizer.seen.any()
    apart = copied(optimizer)  # without its model, as of AdamW: state and strengths are there
    apart.step()
    assert torch.equal(apart.seen, optimizer.seen) and apart.param_groups[-1]["row_weight_decay"] == 0.5


@pytest.mark.parametrize("by_counts", [False, True])
def test_state_dict_resumes_within_an_accumulation(by_counts, tmp_path):
    batches = Ids().ids.reshape(-1, 4, 6)
    counts = np.arange(VOCABULARY) if by_counts else None
    model = gpt2()
    optimizer = remedies.frequency_aware_adamw(model, 0.01, 0.5, counts)
    train_steps(model, optimizer, batches[:2])
    model(input_ids=batches[2], labels=batches[2]).loss.backward()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state.pt")
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    other = gpt2()
    other.load_state_dict(saved["model"])
    resumed = remedies.frequency_aware_adamw(
        other, 0.5, 0.1, np.ones(VOCABULARY)
    )  # replaced by what was saved, as lr is
    resumed.load_state_dict(saved["optimizer"])
    for p, q in zip(other.parameters(), model.parameters(), strict=True):
        p.grad = q.grad.clone()
    for m, o in ((model, optimizer), (other, resumed)):
        m(input_ids=batches[3], labels=batches[3]).loss.backward()
        o.step()
        o.zero_grad()
        train_steps(m, o, batches[4:])
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_checkpoints_of_adamw_are_taken_and_given():
    batches = Ids().ids.reshape(-1, 4, 6)
    model = gpt2()
    plain = torch.optim.AdamW(adamw_groups(model, 0.5), lr=0.01)
    train_steps(model, plain, batches[:2])
    ours = remedies.frequency_aware_adamw(model, 0.01, 0.5)
    ours.load_state_dict(copy.deepcopy(plain.state_dict()))
    weight = model.get_input_embeddings().weight
    assert torch.equal(ours.state[weight]["exp_avg"], plain.state[weight]["exp_avg"])
    rows = ours.param_groups[-1]
    assert (rows["weight_decay"], rows["row_weight_decay"]) == (0.0, 0.5)
    ours.state.clear()
    assert zero_step(model, ours, 3, 4) == [3, 4]
    plain.load_state_dict(copy.deepcopy(ours.state_dict()))
    train_steps(model, plain, batches[2:])
    with pytest.raises(ValueError, match="different number of parameter groups"):
        ours.load_state_dict(torch.optim.AdamW(gpt2().parameters()).state_dict())


def test_with_a_scheduler_an_added_group_and_accelerate():
    accelerate = pytest.importorskip("accelerate")
    model = gpt2()
    optimizer = remedies.frequency_aware_adamw(model, 0.01, 0.5)
    more = torch.nn.Parameter(torch.ones(3))
    optimizer.add_param_group({"params": [more]})
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    ran = []
    optimizer.register_step_post_hook(lambda *_: ran.append(1))
    model, wrapped, schedule = accelerate.Accelerator(cpu=True).prepare(model, optimizer, schedule)
    for k, tokens in enumerate([(3, 4), (5, 6)]):
        more.grad = torch.zeros(3)
        weight = model.get_input_embeddings().weight.detach().clone()
        assert zero_step(model, wrapped, *tokens) == list(tokens)
        kept = model.get_input_embeddings().weight[tokens[0]] / weight[tokens[0]]
        torch.testing.assert_close(kept.detach(), torch.full((8,), 1 - 0.01 / (1 + k) * 0.5))
        if k == 0:
            schedule.step()
    assert len(ran) == 2  # hooks of others run once a step
    assert more.tolist() == pytest.approx([(1 - 0.01 * 0.5) * (1 - 0.005 * 0.5)] * 3)


def test_an_optimizer_that_is_gone_leaves_no_hook():
    model = gpt2()
    for _ in range(3):
        optimizer = remedies.frequency_aware_adamw(model, 0.01, 0.5)
    assert zero_step(model, optimizer, 3, 4) == [3, 4]
    del optimizer
    gc.collect()
    embedding = model.get_input_embeddings()
    assert not embedding._forward_hooks and not embedding.weight._post_accumulate_grad_hooks


def test_in_a_trainer_resumed_from_its_checkpoint(tmp_path):
    def trained(steps, resume, name):
        model = gpt2()
        args = TrainingArguments(
            str(tmp_path / name),
            max_steps=steps,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            use_cpu=True,
            lr_scheduler_type="constant",
            save_steps=2,
            report_to=[],
            disable_tqdm=True,
            logging_strategy="no",
        )
        optimizer = remedies.frequency_aware_adamw(model, 0.05, 1.0)
        Trainer(model, args, train_dataset=Ids(), optimizers=(optimizer, None)).train(resume_from_checkpoint=resume)
        return model

    whole = trained(6, None, "whole")
    trained(4, None, "cut")
    resumed = trained(6, True, "cut")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_rows_that_another_process_saw_decay_here_too(monkeypatch):
    def all_reduce(marks, operation):
        assert operation == torch.distributed.ReduceOp.MAX
        marks[9] = 1  # what the other process saw

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    model = gpt2()
    optimizer = remedies.frequency_aware_adamw(model, 0.01, 0.5)
    assert zero_step(model, optimizer, 3, 4) == [3, 4, 9] and zero_step(model, optimizer, 5) == [5, 9]


def test_rows_are_a_group_of_their_own_whatever_else_decays():
    model = gpt2(tied=False)
    rows = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    for decayed in DecayedParameters.__args__:
        groups, table = models.weight_decay_groups(model, 0.5, decayed, rows_apart=True)
        assert [id(p) for p in groups[-1]["params"]] == [id(p) for p in rows]
        assert groups[-1]["weight_decay"] == 0.0 and groups[-1]["row_weight_decay"] == 0.5
        listed = [id(p) for group in groups for p in group["params"]]
        assert sorted(listed) == sorted(id(p) for p in model.parameters()) and len(table) == len(listed)


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


@pytest.mark.parametrize("kind", ["gpt_neox", "opt", "openai-gpt", "stablelm", "qwen2"])
def test_what_a_part_adds_to_the_residual_stream_is_dropped_once(kind):
    """GPT-NeoX has modules of dropout beside its parts, OPT the matrices of its feed-forward part, GPT a list as output."""
    sizes = {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 128,
        "ffn_dim": 128,
        "num_key_value_heads": 2,
    }
    config = transformers.AutoConfig.for_model(kind, vocab_size=300, **sizes, word_embed_proj_dim=64)
    for name in vars(config):
        if "drop" in name:
            setattr(config, name, 0.0)
    model = transformers.AutoModelForCausalLM.from_config(config).train()
    ids, zeros = torch.randint(5, 300, (4, 16), generator=torch.Generator().manual_seed(0)), {}

    def count(name):
        def hook(module, _, output):
            first = output[0] if isinstance(output, (tuple, list)) else output
            zeros[name] = (first == 0).float().mean().item()

        return hook

    parts = {n: m for n, m in model.named_modules() if re.search(r"\.\d+\.[a-z_0-9]+$", n)}
    torch.manual_seed(0)
    with remedies.dropout(model, 0.2):
        for name, part in parts.items():
            part.register_forward_hook(count(name))  # after those of dropout
        model(ids)
    shares = {n: share for n, share in zeros.items() if share > 0.1 and not re.search("act|norm", n)}
    assert all(share == pytest.approx(0.2, abs=0.03) for share in shares.values()), shares
    assert len([n for n in shares if "drop" not in n]) == 4, shares


def test_lazy_decay_pays_when_a_row_is_seen_what_adamw_would_have_decayed_since():
    """Gradients of 0, so that decay alone moves the rows; the learning rate falls, as a schedule lets it."""
    model = gpt2()
    groups, _ = models.weight_decay_groups(model, 0.5, "all", rows_apart=True)
    optimizer = remedies.FrequencyAwareAdamW(groups, model=model, lazy=True, lr=0.1)
    weight = model.get_input_embeddings().weight
    start, factors = weight.detach().clone(), []
    for step, tokens in enumerate(([3, 4], [4], [3, 5])):
        for group in optimizer.param_groups:
            group["lr"] = 0.1 / (1 + step)
        factors.append(1 - 0.5 * 0.1 / (1 + step))
        assert zero_step(model, optimizer, *tokens) == tokens
        if step == 1:  # also over a checkpoint
            saved = copy.deepcopy(optimizer.state_dict())
            optimizer = remedies.FrequencyAwareAdamW(
                models.weight_decay_groups(model, 0.5, "all", rows_apart=True)[0], model=model, lazy=True, lr=0.1
            )
            optimizer.load_state_dict(saved)
    one, two, three = factors
    for token, factor in ((3, one * two * three), (4, one * two), (5, one * two * three), (6, 1.0)):
        torch.testing.assert_close(weight[token], start[token] * factor, rtol=1e-6, atol=0)
    with pytest.raises(ValueError, match="leave row_scale out"):
        remedies.FrequencyAwareAdamW(
            models.weight_decay_groups(model, 0.5, "all", rows_apart=True)[0],
            model=model, lazy=True, row_scale=torch.ones(VOCABULARY),
        )  # fmt: skip


def test_a_row_seen_in_every_step_decays_lazily_as_under_adamw():
    ours, theirs = gpt2(), gpt2()
    groups, _ = models.weight_decay_groups(ours, 0.5, "all", rows_apart=True)
    a = remedies.FrequencyAwareAdamW(groups, model=ours, lazy=True, lr=0.01)
    b = torch.optim.AdamW(adamw_groups(theirs, 0.5), lr=0.01)
    batches = [torch.arange(VOCABULARY).reshape(5, 10)] * 3
    train_steps(ours, a, batches)
    train_steps(theirs, b, batches)
    for x, y in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(x, y, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("fused", [False, True])
def test_cautious_decay_acts_where_update_and_weight_agree(fused):
    """By hand: x = (1, −1, 2), g = (1, 1, 0), so that Adam's first update is u = (1, 1, 0): the first and last decay."""
    weight = torch.nn.Parameter(torch.tensor([1.0, -1.0, 2.0]))
    optimizer = remedies.CautiousAdamW([weight], lr=0.1, weight_decay=0.5, fused=fused)
    weight.grad = torch.tensor([1.0, 1.0, 0.0])
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.tensor([1 - 0.05 - 0.1, -1 - 0.1, 2 - 0.1]), atol=1e-6, rtol=0)
    # the second gradient is against the first, but the moment is not: m = 0.9 · 0.1 − 0.1 · 0.5 > 0, so the first decays
    update = (0.9 * 0.1 - 0.1 * 0.5) / 0.19 / np.sqrt((0.999 * 0.001 + 0.001 * 0.25) / 0.001999)
    for own in (copy.deepcopy(optimizer), optimizer):  # a copy keeps its decay
        parameter = own.param_groups[0]["params"][0]
        parameter.grad = torch.tensor([-0.5, 0.0, 0.0])
        own.step()
        assert parameter[0].item() == pytest.approx(0.85 * 0.95 - 0.1 * update, abs=1e-6)
        assert parameter[2].item() == pytest.approx(1.9 * 0.95)


def test_cautious_decay_is_adamw_where_all_agrees_and_adam_where_nothing_does():
    start = torch.linspace(-3.0, 3.0, 20)  # of both signs, none near 0, so that no step changes a sign
    for sign, weight_decay in ((1.0, 0.5), (-1.0, 0.0)):
        ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
        a = remedies.CautiousAdamW([ours], lr=0.01, weight_decay=0.5)
        b = torch.optim.AdamW([theirs], lr=0.01, weight_decay=weight_decay)
        for _ in range(5):
            ours.grad = sign * start
            theirs.grad = sign * start
            a.step()
            b.step(lambda: None)
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)


def muon_model():
    model = models.build_model("qwen2-tiny", 300, 16, seed=0)
    groups, _ = models.weight_decay_groups(model, 0.5, "matrices")
    return model, remedies.MuonWithAdamW(groups, model=model, lr=0.01, weight_decay=0.5, betas=(0.9, 0.999))


def test_muon_takes_the_matrices_of_the_layers_and_adamw_the_rest():
    model, optimizer = muon_model()
    names = {id(p): name for name, p in model.named_parameters()}
    muon = [(names[id(p)], g["weight_decay"]) for g in optimizer._muon.param_groups for p in g["params"]]
    rest = {names[id(p)]: g["weight_decay"] for g in optimizer._adamw.param_groups for p in g["params"]}
    layers = model.config.num_hidden_layers
    assert len(muon) == 7 * layers and all(".layers." in n and n.endswith("proj.weight") and w for n, w in muon)
    assert rest.pop("model.embed_tokens.weight") == 0.5 and set(rest.values()) == {0.0}  # norm gains and biases
    assert len(muon) + len(rest) + 1 == len(names)
    assert all(g["adjust_lr_fn"] == "match_rms_adamw" for g in optimizer._muon.param_groups)


def test_muon_reads_a_generator_once_and_refuses_what_it_would_leave_to_adamw():
    model, optimizer = muon_model()
    groups = [{"params": (p for p in model.parameters()), "weight_decay": 0.5}]
    of_generator = remedies.MuonWithAdamW(groups, model=model, lr=0.01, weight_decay=0.5)
    held = {id(p) for group in of_generator.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters()}
    with pytest.raises(ValueError, match="weight_decay_groups"):
        remedies.MuonWithAdamW(model.parameters(), model=model, lr=0.01, weight_decay=0.5)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    mixture = transformers.MixtralConfig(vocab_size=300, intermediate_size=64, num_local_experts=4, **sizes)
    mixture = transformers.MixtralForCausalLM(mixture)
    groups, _ = models.weight_decay_groups(mixture, 0.5, "all")
    with pytest.raises(ValueError, match="matrices of experts"):
        remedies.MuonWithAdamW(groups, model=mixture, lr=0.01, weight_decay=0.5)
    mamba = transformers.MambaForCausalLM(transformers.MambaConfig(vocab_size=300, hidden_size=32, num_hidden_layers=2))
    optimizer = remedies.MuonWithAdamW(
        models.weight_decay_groups(mamba, 0.5, "all")[0], model=mamba, lr=0.01, weight_decay=0.5
    )
    rates = {id(p) for n, p in mamba.named_parameters() if n.endswith("A_log")}
    assert rates and not rates & {id(p) for g in optimizer._muon.param_groups for p in g["params"]}


def test_muon_and_adamw_share_one_schedule_and_one_checkpoint():
    ids = torch.randint(0, 300, (4, 8, 16), generator=torch.Generator().manual_seed(0))

    def trained(cut):
        model, optimizer = muon_model()
        for step, batch in enumerate(ids):
            if cut and step == 2:
                saved = copy.deepcopy(optimizer.state_dict())
                other, optimizer = muon_model()
                other.load_state_dict(model.state_dict())
                model = other
                optimizer.load_state_dict(saved)
            for group in optimizer.param_groups:  # as a scheduler does
                group["lr"] = 0.01 * (3 - step)
            model(input_ids=batch, labels=batch).loss.backward()
            before = [p.detach().clone() for p in model.parameters()]
            optimizer.step()
            optimizer.zero_grad()
        return model, before

    (whole, before), (resumed, _) = trained(False), trained(True)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), before, strict=True)), "the last rate was 0"


def test_muon_copies_and_pickles_and_trains_a_group_that_is_added():
    model, optimizer = muon_model()
    for of, by in (
        (model, optimizer),
        copy.deepcopy((model, optimizer)),
        pickle.loads(pickle.dumps((model, optimizer))),
    ):
        extra = torch.nn.Parameter(torch.ones(3))
        by.add_param_group({"params": [extra], "weight_decay": 0.5})
        before = of.model.layers[0].mlp.up_proj.weight.detach().clone()
        ids = torch.full((1, 4), 7)
        (of(input_ids=ids, labels=ids).loss + extra.sum()).backward()
        by.step()
        assert (extra != 1).all() and not torch.equal(before, of.model.layers[0].mlp.up_proj.weight)


def test_cautious_decay_takes_an_added_group_and_a_checkpoint_of_adamw():
    first, second = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    adamw = torch.optim.AdamW([first], lr=0.1, weight_decay=0.2)
    optimizer = remedies.CautiousAdamW([first], lr=0.1, weight_decay=0.5, betas=(0.0, 0.9))
    first.grad = torch.zeros(3)
    adamw.step()
    optimizer.load_state_dict(adamw.state_dict())
    optimizer.add_param_group({"params": [second], "weight_decay": 0.5})
    assert [(g["weight_decay"], g["cautious_weight_decay"]) for g in optimizer.param_groups] == [(0.0, 0.5)] * 2
    first.data.fill_(1.0)
    second.grad = torch.zeros(3)
    optimizer.step()  # no gradient: decay alone
    assert torch.allclose(first, torch.tensor(0.95)) and torch.allclose(second, torch.tensor(0.95))


def test_decay_that_acts_on_no_row_is_told_once():
    """Of a model that trains in evaluation mode, as of code that was compiled before the optimiser was made."""
    model = gpt2().eval()
    optimizer = remedies.frequency_aware_adamw(model, lr=0.1, weight_decay=0.5)
    with pytest.warns(UserWarning, match=r"no row of the embedding decays: .* torch.compiler.reset\(\)") as told:
        assert zero_step(model, optimizer, 5, 6) == zero_step(model, optimizer, 5, 6) == []
    assert len(told) == 1


def test_impossible_combinations_are_refused():
    with pytest.raises(ParameterError, match="whole rows"):
        TrainingParams.check({"embedding_decay": "when-seen", "sharded": True})
    for form in ("l2", "cautious"):
        with pytest.raises(ParameterError, match="decoupled"):
            TrainingParams.check({"embedding_decay": "frequency", "weight_decay_form": form})
    for other in ({"sharded": True}, {"weight_decay_form": "l2"}, {"embedding_decay": "lazy"}):
        with pytest.raises(ParameterError, match="muon"):
            TrainingParams.check({"optimizer": "muon", **other})


def test_a_remedy_makes_another_run_and_defaults_keep_their_names():
    p = TrainingParams()
    assert "dropout" not in p.identity() and p.run_id() != TrainingParams.check({"dropout": 0.1}).run_id()
    assert copy.copy(p).run_id() == TrainingParams.check({"variant": "a label"}).run_id()
