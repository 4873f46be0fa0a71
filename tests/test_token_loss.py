"""The token-level cross-entropy against PyTorch's, and the sums by type against hand-made ones."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from fairlm_utils.frequency import IGNORE_INDEX
from fairlm_utils.lm import token_loss
from fairlm_utils.lm.callback import loss_by_frequency
from fairlm_utils.lm.models import build_model
from fairlm_utils.lm.token_loss import (
    Objective,
    TokenSums,
    prediction_statistics,
    record_token_loss,
    token_cross_entropy,
)


@pytest.mark.parametrize("block_bytes", [1, 200, 2**20])
def test_loss_gradient_and_correctness_agree_with_pytorch(monkeypatch, block_bytes):
    monkeypatch.setitem(token_loss._BLOCK_BYTES, "cpu", block_bytes)
    logits = torch.randn(13, 7, dtype=torch.float64).float().requires_grad_()
    targets = torch.randint(0, 7, (13,))
    targets[[2, 5]] = IGNORE_INDEX
    reference = logits.detach().clone().requires_grad_()
    total, loss, correct = token_cross_entropy(logits, targets, 1 / 11)
    expected = cross_entropy(reference, targets, ignore_index=IGNORE_INDEX, reduction="none")
    (3 * total).backward()
    (3 * expected.sum() / 11).backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(total, expected.sum() / 11)
    torch.testing.assert_close(logits.grad, reference.grad)
    kept = targets != IGNORE_INDEX
    assert torch.equal(correct[kept], (logits.argmax(1) == targets)[kept])


def test_extreme_logits_give_the_exact_loss():
    logits = torch.tensor([[1e4, 0.0], [0.0, 1e4], [-1e4, -1e4]])
    _, loss, correct = token_cross_entropy(logits, torch.tensor([1, 1, 0]))
    torch.testing.assert_close(loss, torch.tensor([1e4, 0.0, 0.6931472]))
    assert correct.tolist() == [False, True, False]  # a tie singles out no type


def test_half_precision_logits_are_worked_on_in_float32():
    logits = torch.randn(50, 300)
    targets = torch.randint(0, 300, (50,))
    _, loss, _ = token_cross_entropy(logits.bfloat16(), targets)
    torch.testing.assert_close(loss, cross_entropy(logits.bfloat16().float(), targets, reduction="none"))


def test_shapes_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match="expected"):
        token_cross_entropy(torch.zeros(3, 4), torch.zeros(2, dtype=torch.long))


def test_sums_by_hand():
    sums = TokenSums(4)
    targets = torch.tensor([1, 1, 3, IGNORE_INDEX])
    sums.add(targets, torch.tensor([0.5, 1.5, 2.0, 99.0]), torch.tensor([True, False, True, True]))
    sums.add(targets[:1], torch.tensor([1.0]), torch.tensor([True]))
    assert sums.read().tolist() == [[0, 0, 0], [3, 3.0, 2], [0, 0, 0], [1, 2.0, 1]]


def test_sums_stay_exact_at_large_counts():
    sums = TokenSums(1)
    sums.values[0] = torch.tensor([1e9, 1e9 + 0.1, 0.0], dtype=torch.float64)
    sums.add(torch.tensor([0]), torch.tensor([0.25]), torch.tensor([True]))
    assert sums.read()[0].tolist() == [1e9 + 1, pytest.approx(1e9 + 0.35, abs=1e-6), 1]


def test_recording_leaves_the_models_loss_as_it_was():
    model = build_model("qwen2-tiny", 300, 16, seed=0)
    ids = torch.randint(0, 300, (2, 16))
    plain = model(input_ids=ids, labels=ids).loss
    sums = TokenSums(300)
    model.train()
    with record_token_loss(model, sums):
        recorded = model(input_ids=ids, labels=ids).loss
    torch.testing.assert_close(recorded, plain)
    torch.testing.assert_close(model(input_ids=ids, labels=ids).loss, plain)  # the model's own loss is back
    assert sums.read()[:, 0].sum() == 2 * 15
    assert sums.read()[:, 1].sum() / 30 == pytest.approx(float(plain.detach()), rel=1e-5)


def test_targets_to_ignore_are_those_the_model_is_given():
    model = build_model("qwen2-tiny", 300, 16, seed=0).train()
    ids, sums = torch.randint(0, 300, (2, 16)), TokenSums(300)
    ids[:, 3] = 7
    plain = model(input_ids=ids, labels=ids, ignore_index=7).loss
    with record_token_loss(model, sums):
        torch.testing.assert_close(model(input_ids=ids, labels=ids, ignore_index=7).loss, plain)
    assert sums.read()[7, 0] == 0 < sums.read()[:, 0].sum()


def test_a_type_that_is_never_predicted_leaves_the_loss_of_others_as_it_is():
    """Positions without a target are looked up at type 0, whose loss may be infinite."""
    logits, targets = torch.randn(3, 5), torch.tensor([2, -100, 4])
    logits[:, 0] = -torch.inf
    total, loss, _ = token_cross_entropy(logits.requires_grad_(), targets)
    total.backward()
    expected = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    torch.testing.assert_close(loss, expected.detach())
    assert logits.grad.isfinite().all() and (logits.grad[1] == 0).all()


def test_nothing_is_recorded_in_evaluation():
    model, sums = build_model("qwen2-tiny", 300, 16, seed=0).eval(), TokenSums(300)
    with record_token_loss(model, sums):
        model(input_ids=torch.zeros(1, 4, dtype=torch.long), labels=torch.zeros(1, 4, dtype=torch.long))
    assert not sums.read().any()


def test_prediction_statistics_against_torch():
    torch.manual_seed(0)
    logits, targets = torch.randn(50, 7) * 3, torch.randint(0, 7, (50,))
    targets[3] = -100
    loss, rank, confidence = prediction_statistics(logits, targets)
    kept = targets != -100
    torch.testing.assert_close(
        loss[kept], torch.nn.functional.cross_entropy(logits[kept], targets[kept], reduction="none")
    )
    order = logits.argsort(dim=1, descending=True)
    expected = (order[kept] == targets[kept][:, None]).float().argmax(dim=1)
    assert torch.equal(rank[kept], expected)
    torch.testing.assert_close(confidence, logits.softmax(1).amax(1))
    assert prediction_statistics(torch.zeros(1, 3), torch.tensor([1]))[1].item() == 2  # a tie is not correct


@pytest.mark.parametrize(
    "weighted, smoothing, adjusted", [(True, 0, False), (False, 0.2, False), (False, 0, True), (True, 0.1, True)]
)
def test_objectives_and_their_gradients_against_torch(weighted, smoothing, adjusted):
    """Against torch's own weighted and smoothed cross-entropy, summed: it divides by weights only when it averages."""
    torch.manual_seed(1)
    logits, targets = torch.randn(40, 6, dtype=torch.float32), torch.randint(0, 6, (40,))
    targets[::7] = -100
    weights, offset = torch.rand(6) + 0.5, torch.randn(6)
    objective = Objective(weights if weighted else None, smoothing, offset if adjusted else None)
    ours = logits.clone().requires_grad_()
    total = objective.loss(ours, targets, 0.25)
    total.backward()
    theirs = logits.clone().requires_grad_()
    z = theirs + offset if adjusted else theirs
    kept = targets != -100
    log_p = z.log_softmax(1)[kept]
    position = -(1 - smoothing) * log_p.gather(1, targets[kept][:, None])[:, 0] - smoothing * log_p.mean(1)
    expected = 0.25 * (position * (weights[targets[kept]] if weighted else 1)).sum()
    expected.backward()
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_an_objective_changes_what_is_minimised_not_what_is_recorded():
    model = build_model("qwen2-tiny", 300, 16, seed=0)
    ids = torch.randint(0, 300, (2, 16))
    plain, smoothed = TokenSums(300), TokenSums(300)
    with record_token_loss(model.train(), plain):
        a = model(input_ids=ids, labels=ids).loss
    with record_token_loss(model.train(), smoothed, Objective(label_smoothing=0.5)):
        b = model(input_ids=ids, labels=ids).loss
        c = model.eval()(input_ids=ids, labels=ids).loss
    assert np.allclose(plain.read(), smoothed.read()) and abs(a - b) > 1e-4 and torch.allclose(a, c)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_gradient_in_every_precision_against_float64(dtype):
    """Under a loss scale float16 loses what float16 itself cannot hold, alone; the others round before it, as ever."""
    torch.manual_seed(0)
    n, scale, loss_scale = 64, 1 / 8192, 65_536.0
    logits = torch.randn(n, 2000).to(dtype).requires_grad_()
    targets = torch.randint(0, 2000, (n,))
    (token_cross_entropy(logits, targets, scale)[0] * loss_scale).backward()
    exact = logits.detach().double().softmax(1)
    exact[torch.arange(n), targets] -= 1
    assert logits.grad.dtype == dtype
    expected = (exact * scale * loss_scale).to(dtype)
    torch.testing.assert_close(logits.grad, expected, rtol=2e-2 if dtype == torch.bfloat16 else 2e-3, atol=0)
    log_p = logits.detach().float().log_softmax(1)
    rounded = log_p.exp()
    rounded[torch.arange(n), targets] = log_p[torch.arange(n), targets].exp() - 1
    if dtype != torch.float16:
        assert torch.equal(logits.grad, (rounded * torch.tensor(scale)).to(dtype).mul(loss_scale))


def test_copies_and_pickles_of_a_recorded_model_add_to_no_sums():
    model, sums = build_model("qwen2-tiny", 300, 16, seed=0).train(), TokenSums(300)
    ids = torch.randint(0, 300, (2, 16))
    plain = model(input_ids=ids, labels=ids).loss
    with record_token_loss(model, sums):
        copies = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
        for other in copies:
            torch.testing.assert_close(other(input_ids=ids, labels=ids).loss, plain)
        assert not sums.read().any()
        model(input_ids=ids, labels=ids)
    assert sums.read()[:, 0].sum() == 2 * 15


def test_a_compiled_model_is_recorded_at_every_step():
    model, sums = build_model("qwen2-tiny", 300, 16, seed=0).train(), TokenSums(300)
    ids = torch.randint(0, 300, (2, 16))
    compiled = torch.compile(model, backend="eager")
    for step in (1, 2, 3):
        with record_token_loss(model, sums):
            compiled(input_ids=ids, labels=ids).loss.backward()
        assert sums.read()[:, 0].sum() == step * 2 * 15


class Foreign(torch.nn.Module):
    """Not transformers': returns logits and the loss of targets that the caller has shifted, −1 where there is none."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = torch.nn.Embedding(20, 8), torch.nn.Linear(8, 20, bias=False)

    def forward(self, idx, targets):
        logits = self.head(self.embed(idx))
        return logits, cross_entropy(logits.view(-1, 20), targets.reshape(-1), ignore_index=-1)


def test_a_bare_loop_over_any_model_keeps_the_same_record():
    torch.manual_seed(0)
    model, ids = Foreign(), torch.randint(0, 20, (12, 9))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    sums, expected = TokenSums(20), np.zeros((20, 3))
    for batch in ids.split(4):
        x, y = batch[:, :-1], batch[:, 1:].clone()
        y[0, 5:] = -1
        logits, loss = model(x, y)
        sums.record(logits, y)
        for row, targets in zip(logits.detach().double(), y.tolist(), strict=True):
            for z, target in zip(row, targets, strict=True):
                if target >= 0:
                    expected[target] += 1, float(z.logsumexp(0) - z[target]), bool(z.argmax() == target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    np.testing.assert_allclose(sums.read(), expected, rtol=1e-5)
    seen = expected[:, 0] > 0
    per_type = {v: expected[v, 1] / expected[v, 0] for v in np.flatnonzero(seen)}
    record = loss_by_frequency(sums.read(), sums.read()[:, 0])
    assert record["token_balanced_loss"] == pytest.approx(np.mean(list(per_type.values())), rel=1e-5)
    rare = [x for v, x in per_type.items() if 3 <= expected[v, 0] <= 8]
    assert record["n_v_3-8_loss"] == pytest.approx(np.mean(rare), rel=1e-5)
    with pytest.raises(ValueError, match="one count per type"):
        loss_by_frequency(sums.read(), np.ones(19))
    with pytest.raises(ValueError, match="relative frequencies"):
        loss_by_frequency(sums.read(), np.full(len(sums.read()), 0.05))
    assert loss_by_frequency(sums.read(), sums.read()[:, 0].tolist()) == record
    with pytest.raises(ValueError, match="expected"):
        sums.record(logits, y[:, 1:])


def test_a_graph_that_is_kept_gives_the_same_gradient_twice():
    logits, targets = torch.randn(5, 7, requires_grad=True), torch.tensor([0, 1, 2, IGNORE_INDEX, 6])
    loss = token_cross_entropy(logits, targets)[0]
    doubled, once = (torch.autograd.grad(k * loss, logits, retain_graph=True)[0] for k in (2.0, 1.0))
    assert torch.allclose(doubled, 2 * once) and torch.allclose(torch.autograd.grad(loss, logits)[0], once)


def test_a_gradient_that_is_to_be_differentiated_again_is_refused():
    logits = torch.randn(3, 4, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"create_graph=True.* compute_loss_func"):
        torch.autograd.grad(token_cross_entropy(logits, torch.tensor([0, 1, 2]))[0], logits, create_graph=True)


def test_logits_of_more_types_than_there_are_sums_are_refused():
    TokenSums(10).record(torch.randn(4, 9), torch.arange(4))
    with pytest.raises(ValueError, match="11 types and sums of 10"):
        TokenSums(10).record(torch.randn(4, 11), torch.tensor([1, 2, 10, 10]))


@pytest.mark.parametrize(
    "values, said",
    [
        (dict(label_smoothing=1.0), "share from 0 to below 1"),
        (dict(label_smoothing=-0.5), "share"),
        (dict(token_weights=torch.tensor([1.0, -1.0])), "negative"),
        (dict(token_weights=torch.zeros(3)), "0 for all types"),
        (dict(token_weights=torch.ones(3, 1)), "one finite number per token type"),
        (dict(token_weights=torch.tensor(1.0)), "one finite number per token type"),
        (dict(logit_offset=torch.tensor([0.0, torch.nan])), "logit_offset must be one finite number"),
    ],
)
def test_an_objective_of_values_that_are_none_is_refused(values, said):
    with pytest.raises(ValueError, match=said):
        Objective(**values)
