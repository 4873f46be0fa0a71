"""The audit of a model that is not ours: a GPT-2 architecture in a folder made with save_pretrained."""

import re

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from fairlm_utils import audit, metrics, runs
from fairlm_utils.corpora import load_corpus
from fairlm_utils.params import AuditParams, ParameterError
from fairlm_utils.tokenization import encode, load_tokenizer, token_counts, train_bpe


def gpt2_folder(path, documents, vocab_size=300, padded=12):
    """A random GPT-2 with a tokenizer of its own; its embedding has rows beyond the tokenizer, as real ones do."""
    tokenizer = train_bpe(documents, vocab_size)
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer) + padded, n_positions=32, n_embd=8, n_layer=1, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory, documents):
    return gpt2_folder(tmp_path_factory.mktemp("gpt2"), documents)


def values(folder, corpus_file, **more):
    return dict(audited_model=str(folder), corpus=str(corpus_file), context=16, max_heldout_blocks=20, **more)


def test_tables_agree_with_the_models_own_loss(folder, corpus_file):
    p = AuditParams.check(values(folder, corpus_file))
    corpus = load_corpus(p)
    found = audit.audit(p, p.audited_model, corpus)
    tokenizer, model = load_tokenizer(str(folder)), GPT2LMHeadModel.from_pretrained(folder).eval()
    ids = torch.from_numpy(encode(tokenizer, corpus.heldout)[0][: 20 * 16].astype(np.int64)).reshape(20, 16)
    with torch.inference_mode():
        own = model(input_ids=ids, labels=ids).loss.item()
    assert found.totals["average_loss"] == pytest.approx(own, rel=1e-5)
    assert len(found.table) == len(tokenizer) < model.config.vocab_size
    counts = token_counts(encode(tokenizer, corpus.train)[0], len(tokenizer))
    assert np.array_equal(found.table["n_train"], counts)
    norms = model.get_input_embeddings().weight.detach().norm(dim=1).numpy()
    assert np.allclose(found.table["embedding_norm"], norms[: len(tokenizer)])
    assert found.norms["n_types"].sum() == len(tokenizer)
    assert found.bins["n_tokens"].sum() == found.kinds["n_tokens"].sum() == 20 * 15
    rarest, worst = audit.extremes(found.table, n=4)
    assert rarest["n_train"].is_monotonic_increasing and worst["loss"].is_monotonic_decreasing
    assert (worst["n_eval"] >= 3).all() and len(rarest) == 4


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_counts_from_a_file_make_the_bins(folder, corpus_file, tmp_path, suffix):
    table = pd.DataFrame({"token_id": [5, 6, 7], "count": [1, 30, 300]})
    path = tmp_path / f"counts{suffix}"
    table.to_csv(path, index=False) if suffix == ".csv" else table.to_parquet(path)
    p = AuditParams.check(values(folder, corpus_file, counts_file=str(path)))
    found = audit.audit(p, p.audited_model, load_corpus(p))
    assert found.table["n_train"][[5, 6, 7]].tolist() == [1, 30, 300] and found.table["n_train"].sum() == 331
    assert "0" in set(found.bins["bin"])


@pytest.mark.parametrize(
    "table, said",
    [
        ({"token_id": [1]}, "columns token_id and count"),
        ({"token_id": [10**6], "count": [1]}, "another tokenizer"),
        ({"token_id": [1], "count": [-1]}, "counts of at least 0"),
        ({"token_id": [1], "count": [0.5]}, "whole numbers"),
        ({"token_id": ["a"], "count": [1]}, "whole numbers"),
        ({"token_id": [1, 2], "count": [2**62, 2**62]}, "at most 2.53"),
    ],
)
def test_a_bad_counts_file_is_explained(tmp_path, table, said):
    path = tmp_path / "counts.csv"
    pd.DataFrame(table).to_csv(path, index=False)
    with pytest.raises(ParameterError, match=said):
        audit.read_counts(path, 300)
    with pytest.raises(ParameterError, match="cannot be read"):
        audit.read_counts(tmp_path / "absent.csv", 300)


def test_a_vocabulary_of_152_000_types_is_audited_a_batch_at_a_time(tmp_path, documents, corpus_file):
    """As large as Qwen2's: sums of every type and confidence bin, and logits of one batch."""
    gpt2_folder(tmp_path, documents, padded=152_000 - 305)
    p = AuditParams.check(values(tmp_path, corpus_file, eval_batch_size=2))
    found = audit.audit(p, p.audited_model, load_corpus(p))
    assert found.totals["n_tokens"] == 300 and abs(found.totals["average_loss"] - np.log(152_000)) < 1


def test_a_context_beyond_the_model_and_a_folder_without_a_model_are_refused(folder, corpus_file, tmp_path):
    p = AuditParams.check({**values(folder, corpus_file), "context": 64})
    with pytest.raises(ParameterError, match="longer than the 32 positions"):
        audit.audit(p, p.audited_model, load_corpus(p))
    with pytest.raises(ParameterError, match="tokenizer"):
        audit.audit(p, str(tmp_path), load_corpus(p))
    load_tokenizer(str(folder)).save_pretrained(tmp_path)
    with pytest.raises(runs.RunError, match="save_pretrained"):
        audit.audit(p, str(tmp_path), load_corpus(p))


def test_the_command_writes_one_page_that_needs_no_network(folder, corpus_file, tmp_path, capsys, monkeypatch):
    """Two models, named relative to where the reader stands."""
    monkeypatch.chdir(folder.parent)
    report = tmp_path / "out.html"
    arguments = [folder.name, str(corpus_file), "--reference", str(folder), "--report", str(report)]
    assert audit.main([*arguments, "-p", "context", "16"]) == 0
    page = report.read_text(encoding="utf-8")
    assert "Norms of embedding rows" in page and page.count("data:image/png") >= 4
    assert not re.search(r'(?:src|href)="https?://', page) and "audit.audits(p)" not in page
    assert str(report) in capsys.readouterr().out


def test_the_command_explains_what_is_wrong_and_writes_nothing(corpus_file, tmp_path, capsys):
    report = tmp_path / "out.html"
    assert audit.main([str(tmp_path / "absent"), str(corpus_file), "--report", str(report), "-p", "contxt", "16"]) == 2
    assert "did you mean context" in capsys.readouterr().err
    assert audit.main([str(tmp_path), str(corpus_file), "--report", str(report)]) == 2
    assert "tokenizer" in capsys.readouterr().err and not report.exists()


def test_kinds_of_a_byte_level_vocabulary(documents):
    from fairlm_utils.tokenization import KINDS, token_kinds

    tokenizer = train_bpe([*documents, "naïve don't 3.14 2,000 ... -- 50% x1"] * 2, 400)
    kinds = token_kinds(tokenizer)
    of = dict(zip(tokenizer.convert_ids_to_tokens(range(len(tokenizer))), kinds, strict=True))
    assert set(kinds) <= set(KINDS) and of["<pad>"] == "special" and of["Ġthe"] == "word start"
    assert of["e"] == "word piece" and of["."] == "punctuation" and of["7"] == "number" and of["Ġ"] == "white space"
    assert len(kinds) == len(tokenizer) and metrics.UNSEEN not in kinds
