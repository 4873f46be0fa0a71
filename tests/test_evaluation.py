"""A stranger's model measured: against loops over positions in float64 that know nothing of blocks, masks or tables."""

import json

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from fairlm_utils import files
from fairlm_utils.experiment import audit
from fairlm_utils.lm import evaluation, training
from fairlm_utils.lm.corpora import Corpus
from fairlm_utils.lm.models import build_model
from fairlm_utils.lm.tokenization import blocks, encode
from fairlm_utils.params import AuditParams
from tests.conftest import WORDS

CONTEXT = 32
SIZES = dict(hidden_size=32, num_hidden_layers=2, initializer_range=0.3)
LLAMA = dict(intermediate_size=64, num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    """Documents of a few words, so that every block holds several ends."""
    rng = np.random.default_rng(0)
    documents = [" ".join(rng.choice(WORDS, rng.integers(2, 7))) for _ in range(300)]
    return Corpus("own", documents[:200], documents[200:], "f", "d")


def tokenizer_of(corpus, ids=lambda i: i, bos=False, **names):
    """A byte-level BPE whose end-of-text token is its pad token, as GPT-2's; `ids` maps its ids to others."""
    t = Tokenizer(models.BPE())
    t.pre_tokenizer, t.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<eos>", "<s>"],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    t.train_from_iterator(corpus.train, trainer)
    if bos:
        t.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    state = json.loads(t.to_str())
    state["model"]["vocab"] = {token: ids(i) for token, i in state["model"]["vocab"].items()}
    names = {"eos_token": "<eos>", "bos_token": "<s>", "pad_token": "<eos>", **names}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)), **names)


def model_of(kind, n, **more):
    torch.manual_seed(0)
    sizes = SIZES if kind == "mamba" else SIZES | LLAMA
    return transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(kind, vocab_size=n, **{**sizes, **more})
    ).eval()


def saved(path, model, tokenizer):
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


def measured(folder, corpus, **more):
    p = AuditParams(corpus="python-docs", context=CONTEXT, max_heldout_blocks=0, device="cpu", **more)
    return audit.audit(p, folder, corpus)


def by_hand(model, tokenizer, corpus, bos=False):
    """Losses in nats by token id: full blocks of the joined documents, every position attended to, one at a time."""
    ids = []
    for text in corpus.heldout:
        ids += [1] * bos + tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids + [0]
    losses = {}
    for b in range(len(ids) // CONTEXT):
        block = ids[b * CONTEXT : (b + 1) * CONTEXT]
        with torch.no_grad():
            log_p = model(input_ids=torch.tensor([block])).logits[0].double().log_softmax(-1)
        for t, y in enumerate(block[1:]):
            if not (bos and y == 1):
                losses.setdefault(y, []).append(-log_p[t, y].item())
    return losses


def assert_measured(found, losses):
    every = np.concatenate(list(losses.values()))
    assert found.totals["n_tokens"] == len(every)
    assert found.totals["average_loss"] == pytest.approx(every.mean(), abs=1e-5)
    assert found.totals["token_balanced_loss"] == pytest.approx(
        np.mean([np.mean(x) for x in losses.values()]), abs=1e-5
    )
    table = found.table.set_index("token_id")
    for y, own in losses.items():
        assert table.loc[y, "n_eval"] == len(own) and table.loc[y, "loss"] == pytest.approx(np.mean(own), abs=1e-4)


@pytest.mark.parametrize("kind", ["llama", "mamba"])
@pytest.mark.parametrize("pad", ["<eos>", None])
def test_an_end_of_text_that_is_also_the_pad_token_is_attended_to(tmp_path, corpus, kind, pad):
    tokenizer = tokenizer_of(corpus, pad_token=pad)
    model = model_of(kind, 320)
    assert_measured(measured(saved(tmp_path, model, tokenizer), corpus), by_hand(model, tokenizer, corpus))


@pytest.mark.parametrize("kind", ["llama", "mamba"])
def test_padded_documents_are_measured_as_they_are_alone(corpus, kind):
    """Also by a state-space model, whose state has no attention mask, and with a pad token that is in the text."""
    tokenizer, model = tokenizer_of(corpus), model_of(kind, 320)
    texts = [corpus.heldout[0] + "<eos>", *corpus.heldout[:20]]
    ids, starts = encode(tokenizer, texts)
    inputs, labels, lengths = blocks(ids, starts, CONTEXT, packing=False, pad_token_id=0)
    data = training.Blocks(inputs, labels, lengths)
    assert data[1]["attention_mask"].tolist() == [1] * lengths[1] + [0] * (CONTEXT - lengths[1])
    sums = evaluation.token_sums(model, data, batch_size=8).by_type
    counts, total = np.zeros(320), 0.0
    for row, n in zip(inputs, lengths, strict=True):
        with torch.no_grad():
            log_p = model(input_ids=torch.tensor(row[None, :n])).logits[0].double().log_softmax(-1)
        total -= sum(log_p[t, y].item() for t, y in enumerate(row[1:n]))
        counts += np.bincount(row[1:n], minlength=320)
    assert np.array_equal(sums[:, 0], counts) and counts[0] == len(texts)  # each end of text is a target
    assert sums[:, 1].sum() == pytest.approx(total, rel=1e-5)


def test_a_text_in_context_costs_what_it_costs_by_hand(corpus):
    tokenizer, model = tokenizer_of(corpus), model_of("llama", 320)
    text, counts = " ".join(corpus.heldout[0].split()[:3]), np.arange(320)
    table = evaluation.in_context(model, tokenizer, text, counts)
    ids, _ = encode(tokenizer, [text])
    with torch.no_grad():
        log_p = model(input_ids=torch.tensor(ids[None].astype(np.int64))).logits[0].double().log_softmax(-1)
    expected = [-log_p[t, y].item() for t, y in enumerate(ids[1:].tolist())]
    assert table["loss"].tolist() == pytest.approx([np.nan, *expected], abs=1e-4, nan_ok=True)
    assert table["n_train"].tolist() == ids.tolist() and "".join(table["token"][:-1]) == text
    with_bos = evaluation.in_context(model, tokenizer_of(corpus, bos=True), text, counts, bos=True)
    assert with_bos["loss"].isna().tolist() == [True] + [False] * len(ids)
    cut = evaluation.in_context(model, tokenizer, text * 1000, counts)
    assert len(cut) == model.config.max_position_embeddings and cut["token"][: len(ids) - 1].equals(table["token"][:-1])


def test_blocks_without_padding_have_no_mask():
    ids = np.zeros((2, 4), dtype=np.int64)
    for lengths in (None, np.array([4, 4])):
        data = training.Blocks(ids, ids, lengths)
        assert data.attention_mask is None and data[0].keys() == {"input_ids", "labels"}


def test_a_beginning_of_text_is_given_and_never_a_target(tmp_path, corpus):
    tokenizer, model = tokenizer_of(corpus, bos=True), model_of("llama", 320)
    folder = saved(tmp_path, model, tokenizer)
    found = measured(folder, corpus)
    assert_measured(found, by_hand(model, tokenizer, corpus, bos=True))
    assert found.table["n_eval"][1] == 0 and found.table["n_train"][1] == len(corpus.train)
    assert_measured(measured(folder, corpus, bos="no"), by_hand(model, tokenizer, corpus))


@pytest.mark.parametrize("gap", [40, 70_000])
def test_ids_with_gaps_lose_no_target(tmp_path, corpus, gap):
    tokenizer = tokenizer_of(corpus, lambda i: i if i < 270 else i + gap)
    model = model_of("llama", 320 + gap, hidden_size=8, intermediate_size=8)
    found = measured(saved(tmp_path, model, tokenizer), corpus)
    assert_measured(found, by_hand(model, tokenizer, corpus))
    assert max(by_hand(model, tokenizer, corpus)) >= max(270 + gap, len(tokenizer))
    assert found.totals["n_train_tokens"] == sum(
        len(tokenizer.backend_tokenizer.encode(t, add_special_tokens=False)) + 1 for t in corpus.train
    )


def test_a_tokenizer_longer_than_its_model_is_fine_until_such_a_token_occurs(tmp_path, corpus):
    tokenizer, model = tokenizer_of(corpus), model_of("llama", 320)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.add_tokens(["zebra"])
    assert len(tokenizer) == 322
    folder = saved(tmp_path, model, tokenizer)
    assert_measured(measured(folder, corpus), by_hand(model, tokenizer, corpus))
    for split in ("train", "heldout"):
        more = {"train": corpus.train, "heldout": corpus.heldout, split: [*getattr(corpus, split), "a zebra, a zebra"]}
        spoilt = Corpus("own", more["train"], more["heldout"], "f", "d")
        with pytest.raises(files.RunError, match=r"320 rows, and 2 tokens .* 2 of them 'zebra' \(id 321\); use"):
            measured(folder, spoilt)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_checkpoint_is_worked_out_in_the_dtype_asked_for(tmp_path, corpus, dtype):
    tokenizer, model = tokenizer_of(corpus), model_of("llama", 320).to(dtype)
    folder, same = saved(tmp_path, model, tokenizer), model_of("llama", 320)
    same.load_state_dict(model.state_dict())  # in float32, also what is computed from the config
    assert_measured(measured(folder, corpus), by_hand(same, tokenizer, corpus))


@pytest.mark.parametrize("name", ["llama", "openelm-tiny"])  # the second has its embedding for a head
def test_logits_of_bfloat16_layers_are_not_rounded_to_ties(name):
    """The head in float64 by hand, after the layers under autocast; in bfloat16 some targets tie for the largest logit."""
    model = model_of(name, 320) if name == "llama" else build_model(name, 320, CONTEXT, seed=0).eval()
    ids = torch.randint(0, 320, (40, CONTEXT), generator=torch.Generator().manual_seed(0))
    n_correct, loss = 0, 0.0
    weight = model.get_output_embeddings().weight
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        rounded = model(input_ids=ids).logits[:, :-1]
        hidden = model.base_model(input_ids=ids).last_hidden_state[:, :-1]
    labels = rounded.argmax(-1)  # targets that a model of the same layers finds likely
    n_tied = int(((rounded == rounded.amax(-1, keepdim=True)).sum(-1) > 1).sum())
    data = training.Blocks(ids.numpy(), np.hstack([np.full((40, 1), -100), labels.numpy()]))
    for row, own in zip(hidden, labels, strict=True):
        for h, y in zip(row.double() @ weight.detach().double().T, own, strict=True):
            n_correct += int(h.argmax() == y)
            loss -= h.log_softmax(0)[y].item()
    sums = evaluation.token_sums(model, data, 40, torch.bfloat16).by_type.sum(0)
    assert n_tied > 10 and sums[0] == 40 * (CONTEXT - 1)
    assert abs(sums[2] - n_correct) <= 1 and sums[1] == pytest.approx(loss, rel=1e-5)
    assert model.dtype == torch.float32


def test_nested_configs_of_models_of_text_and_images(tmp_path, corpus):
    tokenizer = tokenizer_of(corpus)
    vision = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, patch_size=14)
    qwen = dict(depth=1, embed_dim=32, hidden_size=32, num_heads=2, mlp_ratio=2, patch_size=14)
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
    text = {"vocab_size": 320, **SIZES, **LLAMA}
    torch.manual_seed(0)
    for k, model in enumerate(
        [
            transformers.Gemma3ForConditionalGeneration(
                transformers.Gemma3Config(
                    text_config=dict(text, head_dim=16, sliding_window=16),
                    vision_config=dict(vision, image_size=28),
                    mm_tokens_per_image=4,
                )
            ),
            transformers.Qwen2VLForConditionalGeneration(
                transformers.Qwen2VLConfig(text_config=dict(text, rope_parameters=rope), vision_config=qwen)
            ),
        ]
    ):
        folder = saved(tmp_path / str(k), model.eval(), tokenizer)
        assert_measured(measured(folder, corpus), by_hand(model, tokenizer, corpus))


def test_an_encoder_and_weights_that_are_no_numbers_are_refused_by_name(tmp_path, corpus):
    tokenizer = tokenizer_of(corpus)
    config = transformers.BertConfig(vocab_size=320, intermediate_size=64, num_attention_heads=2, **SIZES)
    folder = saved(tmp_path / "bert", transformers.BertForMaskedLM(config), tokenizer)
    with pytest.raises(files.RunError, match="bert: BertLMHeadModel is not causal"):
        measured(folder, corpus)
    model = model_of("llama", 320)
    torch.nn.init.constant_(model.model.norm.weight, torch.nan)
    with pytest.raises(files.RunError, match="is not finite"):
        measured(saved(tmp_path / "nan", model, tokenizer), corpus)
