"""The audit of a model that is not ours: a GPT-2 architecture in a folder made with save_pretrained."""

import dataclasses
import json
import re

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from tokenizers import Tokenizer
from transformers import GPT2Config, GPT2LMHeadModel

from fairlm_utils import files, frequency
from fairlm_utils.__main__ import main
from fairlm_utils.analysis import answers, audit_tables, metrics
from fairlm_utils.experiment import audit
from fairlm_utils.frequency import token_counts
from fairlm_utils.lm.corpora import Corpus, load_corpus
from fairlm_utils.lm.tokenization import KINDS, encode, load_tokenizer, token_kinds, train_bpe
from fairlm_utils.lm.words import bytes_of_each_token, unspelled, word_of_each_token
from fairlm_utils.params import AuditParams, ParameterError


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
    ids = encode(tokenizer, corpus.heldout)[0].astype(np.int64)
    n = len(ids) // 16  # 20 of them, as far from each other as they can be
    ids = torch.from_numpy(np.stack([ids[16 * (i * n // 20) :][:16] for i in range(20)]))
    assert n > 40
    with torch.inference_mode():
        own = model(input_ids=ids, labels=ids).loss.item()
    assert found.totals["average_loss"] == pytest.approx(own, rel=1e-5)
    assert len(found.table) == len(tokenizer) < model.config.vocab_size
    counts = token_counts(encode(tokenizer, corpus.train)[0], len(tokenizer))
    assert np.array_equal(found.table["n_train"], counts)
    norms = model.get_input_embeddings().weight.detach().norm(dim=1).numpy()
    assert np.allclose(found.table["embedding_norm"], norms[: len(tokenizer)])
    assert found.norms["n_types"].sum() == len(tokenizer)
    # the document separator is a target like another in the totals, and left out of bins, kinds and classes
    separators = int((ids[:, 1:] == tokenizer.eos_token_id).sum())
    assert found.totals["n_tokens"] == 20 * 15 and found.totals["n_separators"] == separators > 0
    for table in (found.bins, found.kinds, found.classes):
        assert table["n_tokens"].sum() == 20 * 15 - separators
        assert table["n_types"].sum() == found.totals["n_types"] - 1
        total = (table["n_tokens"] * table["loss_occurrences"]).sum() + separators * found.totals["separator_loss"]
        assert total / 300 == pytest.approx(found.totals["average_loss"])
    rarest, worst = audit_tables.extremes(found.table, n=4)
    assert rarest["n_train"].is_monotonic_increasing and worst["loss"].is_monotonic_decreasing
    assert (worst["n_eval"] >= 3).all() and len(rarest) == 4


TEXTS = [
    "  The café\tcosts 3,14 €.\n\nNo\u00a0break 🙂👍🏽  two  spaces ",
    "the the of and 12 naïve",
    "ends.\nNew line; 名前を示す and more of the same words again and again",
]


def every_position(model, tokenizer, documents, context, n_blocks):
    """Loss of each flat position in float64, None where it is no target, one block at a time: a plain loop.

    Blocks are as far from each other as they can be.
    """
    ids = []
    for text in documents:
        ids += [*tokenizer.encode(text, add_special_tokens=False).ids, tokenizer.token_to_id("</s>")]
    losses = [None] * len(ids)
    for i in range(n_blocks):
        start = i * (len(ids) // context) // n_blocks * context
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids[start : start + context]])).logits[0].double()
        for t in range(1, context):
            losses[start + t] = -torch.log_softmax(logits[t - 1], -1)[ids[start + t]].item()
    return ids, losses


def words_of(text):
    """Start and end of every word, character by character."""
    found, start = [], None
    for i, c in enumerate(text + " "):
        if not c.isspace() and start is None:
            start = i
        elif c.isspace() and start is not None:
            found.append((start, i))
            start = None
    return found


def test_words_and_bytes_agree_with_a_loop_over_pieces(tmp_path, documents):
    """The tokenizers library's own offsets, every position in float64, words found character by character."""
    docs = [f"{TEXTS[i % 3]} {d}" for i, d in enumerate(documents[:30])]
    folder = gpt2_folder(tmp_path, docs, vocab_size=400)
    p = AuditParams.check(dict(audited_model=str(folder), context=16, max_heldout_blocks=30))
    found = audit.audit(p, str(folder), Corpus("own", docs[:20], docs[20:], "f", "d"))
    own = Tokenizer.from_file(str(folder / "tokenizer.json"))
    _, losses = every_position(GPT2LMHeadModel.from_pretrained(folder).eval(), own, docs[20:], 16, 30)
    reference = " ".join(docs[:20]).split()
    rows, left_out, nats, n_bytes, position = [], 0, 0.0, 0, 0
    for number, text in enumerate(docs[20:]):
        offsets = own.encode(text, add_special_tokens=False).offsets
        here = losses[position : position + len(offsets)]
        spelled = 0  # bytes of the text up to the last token's end
        for (_, end), loss in zip(offsets, here, strict=True):
            if loss is not None:
                nats, n_bytes = nats + loss, n_bytes + len(text[:end].encode()) - spelled
            spelled = max(spelled, len(text[:end].encode()))
        before = 0
        for start, end in words_of(text):  # its pieces: what ends in it, and the white space before it
            pieces = [x for (a, b), x in zip(offsets, here, strict=True) if before < b <= end]
            before = end
            if pieces and all(x is not None for x in pieces):
                rows.append((number, start, text[start:end], sum(pieces)))
            else:
                left_out += any(x is not None for x in pieces)
        position += len(offsets) + 1
    got = found.occurrences
    assert list(got[["document", "start", "word"]].itertuples(index=False, name=None)) == [r[:3] for r in rows]
    assert np.allclose(got["loss"], [r[3] for r in rows], atol=1e-4) and len(rows) > 100
    assert got["n_reference"].tolist() == [reference.count(r[2]) for r in rows]
    assert found.totals["n_words_left_out"] == left_out > 0 and found.totals["n_bytes"] == n_bytes
    assert found.totals["bits_per_byte"] == pytest.approx(nats / np.log(2) / n_bytes, rel=1e-5)
    for row in found.words.itertuples():
        members = [(w, x) for *_, w, x in rows if frequency.bin_index(np.array([reference.count(w)]))[0] == k_of(row)]
        means = [np.mean([x for w, x in members if w == word]) for word in {w for w, _ in members}]
        assert row.n_words == len(means) and row.n_occurrences == len(members)
        assert row.loss == pytest.approx(np.mean(means), rel=1e-4)
        assert row.loss_occurrences == pytest.approx(np.mean([x for _, x in members]), rel=1e-4)


def k_of(row):
    return -1 if row.bin_low == 0 else round(np.log(row.bin_low) / np.log(3))


def test_tokens_that_reach_into_two_words_leave_both_out():

    text = "a b  cé."
    #        a         " b  c" reaches over b and c   "é"      "."      nothing, as a marker has it
    offsets = np.array([[0, 1], [1, 6], [6, 7], [7, 8], [8, 8]])
    spans, word, broken = word_of_each_token(text, offsets, unspelled(text, offsets))
    assert spans.tolist() == [[0, 1], [2, 3], [5, 8]] and broken.tolist() == [False, True, True]
    assert word[:4].tolist() == [0, 1, 2, 2]
    offsets = np.array([[0, 1], [1, 3], [3, 5], [5, 6]])
    spans, word, broken = word_of_each_token(" a\n b ", offsets, unspelled(" a\n b ", offsets))
    assert word.tolist() == [0, 0, 1, 2] and not broken.any()  # white space belongs to the next word, the last to none
    offsets = np.minimum([[0, 1], [1, 3], [2, 3], [2, 3], [3, 4]], 3)  # the second character in three pieces
    assert bytes_of_each_token("a🙂é", offsets, unspelled("a🙂é", offsets)).tolist() == [1, 6, 0, 0, 0]


def test_gain_is_what_a_model_knows_beyond_counts(folder, corpus_file):
    p = AuditParams.check(values(folder, corpus_file))
    corpus = load_corpus(p)
    found = audit.audit(p, p.audited_model, corpus)
    own = Tokenizer.from_file(str(folder / "tokenizer.json"))
    end, n = own.token_to_id("</s>"), own.get_vocab_size()
    counts = [1] * n  # add-one
    for text in corpus.train:
        for i in [*own.encode(text, add_special_tokens=False).ids, end]:
            counts[i] += 1
    flat, losses = every_position(GPT2LMHeadModel.from_pretrained(folder).eval(), own, corpus.heldout, 16, 20)
    by_bin: dict[int, dict[int, list[tuple[float, float]]]] = {}
    for i, loss in zip(flat, losses, strict=True):
        if loss is not None and i != end:
            k = next(k for k in range(-1, 30) if counts[i] - 1 < 3 ** (k + 1))
            by_bin.setdefault(k, {}).setdefault(i, []).append((loss, -np.log(counts[i] / sum(counts))))
    assert [frequency.bin_label(k) for k in sorted(by_bin)] == found.bins["bin"].tolist()
    for k, row in zip(sorted(by_bin), found.bins.itertuples(), strict=True):
        types = [np.mean(pairs, axis=0) for pairs in by_bin[k].values()]
        tokens = [pair for pairs in by_bin[k].values() for pair in pairs]
        for suffix, pairs in (("", types), ("_occurrences", tokens)):
            loss, unigram = np.mean(pairs, axis=0)
            assert getattr(row, f"loss{suffix}") == pytest.approx(loss, rel=1e-5)
            assert getattr(row, f"unigram{suffix}") == pytest.approx(unigram)
            assert getattr(row, f"gain{suffix}") == pytest.approx(unigram - loss, abs=1e-4)
    assert found.totals["chance"] == pytest.approx(np.log(n + 12))


def test_intervals_over_blocks_are_those_of_paired_differences_where_blocks_are_equal():
    rng = np.random.default_rng(0)
    one, n = rng.normal(40, 3, 25), np.full(25, 15.0)
    other = one - rng.normal(2, 1, 25)
    expected = stats.ttest_rel(one / 15, other / 15).confidence_interval(0.95)
    found = metrics.difference_over_blocks(one, n, other, n)
    assert found == pytest.approx(((one - other).mean() / 15, expected.low, expected.high))
    # blocks of unequal sizes: the delta method against a bootstrap over blocks
    sizes, others = rng.integers(1, 30, 200).astype(float), rng.integers(0, 9, 200).astype(float)
    sums, other_sums = sizes * rng.normal(3, 1, 200), others * rng.normal(5, 1, 200)
    drawn = rng.integers(0, 200, (4000, 200))
    means = sums[drawn].sum(1) / sizes[drawn].sum(1) - other_sums[drawn].sum(1) / others[drawn].sum(1)
    middle, least, most = metrics.difference_over_blocks(sums, sizes, other_sums, others)
    assert middle == pytest.approx(sums.sum() / sizes.sum() - other_sums.sum() / others.sum())
    assert (most - least) / 2 == pytest.approx(1.96 * means.std(), rel=0.05)


def test_undertrained_types_have_a_small_norm_and_little_gain_for_their_bin():
    rng = np.random.default_rng(0)
    n_train = np.repeat([0, 5, 500], 100)
    table = pd.DataFrame({"token_id": range(300), "token": "x", "kind": "word start", "n_train": n_train})
    table = table.assign(n_eval=np.where(n_train, 9, 0), loss=rng.normal(5, 0.2, 300), unigram=9.0)
    table["embedding_norm"] = rng.normal(1, 0.05, 300) * np.where(n_train == 500, 3, 1)
    table.loc[n_train == 0, "loss"] = np.nan
    table.loc[[110, 210], ["embedding_norm", "loss"]] = [
        0.4,
        8.5,
    ]  # far below: the second would not be among rare types
    table.loc[111, "embedding_norm"] = 0.4  # small, and predicted as well as others
    table.loc[112, "loss"] = 8.5  # badly predicted, with a norm like others
    table.loc[[10, 11], "embedding_norm"] = 0.1
    table.loc[120, ["n_eval", "loss", "embedding_norm"]] = [0, np.nan, 0.4]
    found = metrics.undertrained(table, ["embedding_norm"]).groupby("judged_by")["token_id"].agg(set)
    assert found["norm and gain"] == {110, 210} and found["norm alone"] == {10, 11, 120}
    table["output_norm"] = 1.0  # an output embedding of its own, in which other types are small
    table.loc[[113, 112], "output_norm"] = 0.2
    found = metrics.undertrained(table.assign(embedding_norm=1.0), ["embedding_norm", "output_norm"])
    assert set(found["token_id"]) == {112}


def test_an_output_embedding_of_its_own_is_measured_too(tmp_path, documents, corpus_file):
    tokenizer = train_bpe(documents, 300)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=32, n_embd=8, n_layer=1, n_head=2, tie_word_embeddings=False
    )
    model = GPT2LMHeadModel(config)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    p = AuditParams.check(values(tmp_path, corpus_file))
    found = audit.audit(p, p.audited_model, load_corpus(p))
    assert set(found.norms["matrix"]) == {"input", "output"}
    assert np.allclose(found.table["output_norm"], model.lm_head.weight.detach().norm(dim=1))
    assert len(answers.norms(found)) == 2


@pytest.fixture(scope="module")
def two(tmp_path_factory, folder, documents, corpus_file):
    """An audit of two models whose tokenizers differ, and of two with the same, by their parameters."""
    other = gpt2_folder(tmp_path_factory.mktemp("other") / folder.name, documents, vocab_size=290)
    p = AuditParams.check({**values(folder, corpus_file), "reference_model": str(other)})
    return audit.audits(p)


def test_models_of_two_tokenizers_are_compared_by_the_words_both_evaluated(two):
    one, other = two
    assert other.label == f"{one.label} (2)" and set(one.comparison["unit"]) == {"word"} and other.comparison.empty
    theirs = {(r.document, r.start): r.loss for r in other.occurrences.itertuples()}
    pairs = [
        (r.loss, theirs[r.document, r.start]) for r in one.occurrences.itertuples() if (r.document, r.start) in theirs
    ]
    row = one.comparison.iloc[0]
    assert row["n"] == len(pairs) > 20 and row["difference"] == pytest.approx(np.mean([a - b for a, b in pairs]))
    assert row["from"] < row["difference"] < row["to"]
    assert "nats per word" in answers.against_reference(one)[0]


def test_models_that_read_the_same_tokens_are_compared_by_token(folder, corpus_file):
    p = AuditParams.check(values(folder, corpus_file))
    corpus = load_corpus(p)
    one = audit.audit(p, str(folder), corpus)
    found = audit_tables.compare(one, one).set_index(["unit", "frequency_class"])
    assert (found[["difference", "from", "to"]] == 0).all(axis=None)
    assert found.loc[("token", "all"), "n"] == one.totals["n_tokens"] - one.totals["n_separators"]
    assert found.loc[("token", "low"), "n"] == one.classes["n_tokens"][0]


def test_tables_that_were_written_give_the_same_answer(two, tmp_path):
    again = audit_tables.load(audit_tables.save(two, tmp_path))
    assert answers.answer(again) == answers.answer(two)
    assert [a.label for a in again] == [a.label for a in two] and again[0].facts == two[0].facts
    assert "n_train" not in (tmp_path / "rarest.csv").read_text() and again[0].rarest["n_train"].is_monotonic_increasing
    (tmp_path / "bins.csv").unlink()
    with pytest.raises(files.RunError, match="--tables FOLDER"):
        audit_tables.load(tmp_path)


def test_the_answer_of_the_committed_audit_is_that_of_its_tables():
    folder = files.PROJECT / "results" / "audit-smollm2"
    readme = (folder / "README.md").read_text(encoding="utf-8")
    found = audit_tables.load(folder)
    assert [line for line in readme.splitlines() if line.startswith("- SmolLM2")] == [
        f"- {line}" for line in answers.answer(found)
    ]
    (one,) = found
    assert one.bins["n_tokens"].sum() + one.totals["n_separators"] == one.totals["n_tokens"]


def test_a_value_rises_or_falls_with_frequency_only_where_its_bins_do_in_every_model():
    def told(*models):
        tables = [
            pd.DataFrame(
                {"label": f"m{i}", "bin": ["0", "1–2", "3–8", "9–26"], "bin_low": [0, 1, 3, 9], "ece": [9.0, *values]}
            )
            for i, values in enumerate(models)
        ]
        return answers.by_frequency(pd.concat(tables, ignore_index=True), "ece", "the error", ".1f")

    assert told([1, 2, 3]) == ("The error rises with frequency", ["m0: the error from 1.0 at n_v 1–2 to 3.0 at 9–26"])
    assert told([3, 2, 1], [6, 5, 4])[0] == "The error falls with frequency"
    assert told([1, 3, 2])[0] == "The error is highest at n_v 3–8"
    assert told([1, 2, 3], [3, 2, 1])[0] == "The error by frequency"


def finding(low, high, interval, **totals):
    """An audit of nothing but what the verdict reads."""
    classes = pd.DataFrame(
        {"frequency_class": ["low", "high"], "n_types": 9, "unigram": 9.0, "unigram_occurrences": 9.0}
    )
    classes["gain"] = classes["gain_occurrences"] = [low, high]
    names = [f"gain_low_minus_high{k}" for k in ("", "_from", "_to")]
    more = dict.fromkeys(("bins", "kinds", "words", "norms", "undertrained", "rarest", "worst"), pd.DataFrame())
    return audit_tables.Audit("m", {}, dict(zip(names, (low - high, *interval), strict=True)), classes=classes, **more)


def test_the_verdict_follows_the_interval():
    assert "rare types are neglected: they gain less" in answers.verdict(finding(1.0, 2.0, (-1.5, -0.5)))
    assert "not neglected: they gain more" in answers.verdict(finding(3.0, 2.0, (0.5, 1.5)))
    assert "do not reliably gain more or less over the unigram than" in answers.verdict(finding(1.9, 2.0, (-0.5, 0.3)))
    assert "worse than by counting alone" in answers.verdict(finding(-1.0, 2.0, (-3.5, -2.5)))
    worse = finding(-1.0, -2.0, (0.5, 1.5))
    assert "worse than by counting alone; rare types lose less against the unigram than" in answers.verdict(worse)
    assert answers.gain_title([worse]) == "Rare types lose less against the unigram than frequent ones"
    better = dataclasses.replace(finding(3.0, 2.0, (0.5, 1.5)), label="b")
    assert answers.gain_title([worse, better]) == [
        f"{worse.label}: rare types lose less against the unigram than frequent ones",
        "b: rare types gain more over the unigram than frequent ones",
    ]
    assert "no verdict" in answers.verdict(finding(3.0, 2.0, (np.nan, np.nan)))
    assert "33% against 22%" in answers.verdict(finding(3.0, 2.0, (0.5, 1.5)))


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".PARQUET"])
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
        ({"token_id": [1, 2, 1], "count": [3, 4, 5]}, "token_id 1 stands twice"),
    ],
)
def test_a_bad_counts_file_is_explained(tmp_path, table, said):
    path = tmp_path / "counts.csv"
    pd.DataFrame(table).to_csv(path, index=False)
    with pytest.raises(ParameterError, match=said):
        audit.read_counts(path, 300)
    with pytest.raises(ParameterError, match="cannot be read"):
        audit.read_counts(tmp_path / "absent.csv", 300)
    path.write_text("token_id,count,count\n1,2,3\n")
    with pytest.raises(ParameterError, match="column count stands twice"):
        audit.read_counts(path, 300)


def test_a_vocabulary_of_152_000_types_is_audited_a_batch_at_a_time(tmp_path, documents, corpus_file):
    """As large as Qwen2's: sums of every type and confidence bin, and logits of one batch."""
    gpt2_folder(tmp_path, documents, padded=152_000 - 305)
    p = AuditParams.check(values(tmp_path, corpus_file, eval_batch_size=2))
    found = audit.audit(p, p.audited_model, load_corpus(p))
    assert found.totals["n_tokens"] == 300 and abs(found.totals["average_loss"] - np.log(152_000)) < 1


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory."), MemoryError()], ids=lambda e: type(e).__name__
)
def test_too_little_memory_says_what_to_lower(error, folder, corpus_file, monkeypatch):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(audit, "token_sums", fail)
    p = AuditParams(corpus=str(corpus_file), context=16, device="cpu", eval_batch_size=4)
    with pytest.raises(files.RunError, match="out of memory at eval_batch_size 4: lower it"):
        audit.audit(p, str(folder), load_corpus(p))


def test_a_context_beyond_the_model_and_a_folder_without_a_model_are_refused(folder, corpus_file, tmp_path):
    p = AuditParams.check({**values(folder, corpus_file), "context": 64})
    with pytest.raises(ParameterError, match="longer than the 32 positions"):
        audit.audit(p, p.audited_model, load_corpus(p))
    with pytest.raises(ParameterError, match="tokenizer"):
        audit.audit(p, str(tmp_path), load_corpus(p))
    load_tokenizer(str(folder)).save_pretrained(tmp_path)
    with pytest.raises(files.RunError, match="save_pretrained"):
        audit.audit(p, str(tmp_path), load_corpus(p))


def test_the_command_writes_one_page_that_needs_no_network(folder, corpus_file, tmp_path, capsys, monkeypatch):
    """Two models, named relative to where the reader stands."""
    monkeypatch.chdir(folder.parent)
    report = tmp_path / "out.html"
    arguments = [folder.name, str(corpus_file), "--reference", str(folder), "--report", str(report)]
    assert main(["audit", *arguments, "-p", "context", "16"]) == 0
    page = report.read_text(encoding="utf-8")
    assert "Norms of embedding rows" in page and page.count("data:image/png") >= 4
    assert not re.search(r'(?:src|href)="https?://', page) and "audit.audits(p)" not in page
    assert f"<title>Audit of {folder.name}</title>" in page and "02_training" not in page and "λ = 0" not in page
    out = capsys.readouterr().out
    assert str(report) in out and f"{folder.name}: " in out and "rare types" in out and "under-trained" in out


def test_json_and_tables_are_for_scripts(folder, corpus_file, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(audit, "write_report", lambda values, report, found: report)  # shown by the test above
    arguments = [str(folder), str(corpus_file), "--report", str(tmp_path / "a.html"), "--tables", str(tmp_path / "t")]
    assert main(["audit", *arguments, "--json", "-p", "context", "16", "-p", "max_heldout_blocks", "20"]) == 0
    printed = json.loads(capsys.readouterr().out)
    again = audit_tables.load(tmp_path / "t")
    assert printed["answer"] == answers.answer(again) and printed["tables"] == str(tmp_path / "t")
    assert len(printed["bins"]) == len(again[0].bins) and printed["totals"][0]["n_separators"] > 0
    written = {f.stem for f in (tmp_path / "t").iterdir()}
    assert {"bins", "words", "kinds", "classes", "totals", "norms", "undertrained"} <= written


@pytest.mark.parametrize(
    ("named", "said"), [(["", "python-docs"], "MODEL: is empty"), (["gpt2", " "], "CORPUS: is empty")]
)
def test_the_command_takes_no_empty_name_for_its_default(named, said, capsys):
    assert main(["audit", *named]) == 2
    assert said in capsys.readouterr().err


def test_the_command_explains_what_is_wrong_and_writes_nothing(corpus_file, tmp_path, capsys):
    report = tmp_path / "out.html"
    assert (
        main(["audit", str(tmp_path / "absent"), str(corpus_file), "--report", str(report), "-p", "contxt", "16"]) == 2
    )
    assert "did you mean context" in capsys.readouterr().err
    assert main(["audit", str(tmp_path), str(corpus_file), "--report", str(report)]) == 2
    assert "tokenizer" in capsys.readouterr().err and not report.exists()


@pytest.mark.parametrize(
    "more, said",
    [
        (["-p", "context", "16", "-p", "context", "8"], "-p context: is given 2 times"),
        (["-p", "corpus", "imdb"], "-p corpus: is given already"),
        (["-p", "steps", "3"], "steps: is a parameter of other notebooks"),
        (["--report", "."], "cannot be written (it is a folder)"),
        (["--report", "x" * 300], "cannot be written"),
        (["--tables", "taken"], "taken/totals.csv: cannot be written"),
    ],
)
def test_what_would_be_ignored_or_cannot_be_written_is_said_before_the_audit(
    more, said, folder, corpus_file, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("")
    monkeypatch.setattr(audit, "audits", lambda p: pytest.fail("it has begun"))
    assert main(["audit", str(folder), str(corpus_file), *more]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "more, said",
    [
        (["--reference", "absent", "-p", "context", "16"], "absent"),
        (["--counts", "counts.csv", "-p", "context", "16"], "counts_file: counts.csv cannot be read"),
        (["--counts", "other.csv", "-p", "context", "16"], "is it of another tokenizer?"),
        (["-p", "context", "100000"], "context: 100000 is longer"),
    ],
)
def test_what_is_wrong_with_a_second_model_or_the_counts_is_said_before_the_first_is_evaluated(
    more, said, folder, corpus_file, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(files, "enter_project", lambda: None)
    (tmp_path / "other.csv").write_text("token_id,count\n1000000,3\n")
    monkeypatch.setattr(audit, "audit", lambda *_: pytest.fail("it has begun"))
    assert main(["audit", str(folder), str(corpus_file), *more]) == 2
    assert said in capsys.readouterr().err


def test_names_are_those_of_where_one_stands_or_of_home_and_may_be_too_long_for_a_path(
    folder, corpus_file, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("HOME", str(folder.parent))
    asked = []
    monkeypatch.setattr(audit, "audits", lambda p: asked.append((p.audited_model, p.corpus_path)) or pytest.skip())
    monkeypatch.chdir(corpus_file.parent)
    arguments = [
        f"~/{folder.name}",
        "imdb",
        "--report",
        str(tmp_path / "a.html"),
        "-p",
        "corpus_path",
        corpus_file.name,
    ]
    with pytest.raises(pytest.skip.Exception):
        main(["audit", *arguments])
    assert asked == [(str(folder.resolve()), str(corpus_file.resolve()))]
    monkeypatch.undo()
    assert main(["audit", "m" * 300, str(corpus_file), "--report", str(tmp_path / "a.html")]) == 2
    assert "audited_model: is too long for a path" in capsys.readouterr().err


def test_kinds_of_a_byte_level_vocabulary(documents):

    tokenizer = train_bpe([*documents, "naïve don't 3.14 2,000 ... -- 50% x1"] * 2, 400)
    kinds = token_kinds(tokenizer)
    of = dict(zip(tokenizer.convert_ids_to_tokens(range(len(tokenizer))), kinds, strict=True))
    assert set(kinds) <= set(KINDS) and of["<pad>"] == "special" and of["Ġthe"] == "word start"
    assert of["e"] == "word piece" and of["."] == "punctuation" and of["7"] == "number" and of["Ġ"] == "white space"
    assert len(kinds) == len(tokenizer) and frequency.UNSEEN not in kinds


def test_bos_that_is_also_the_separator_is_a_target_once_per_document(tmp_path, documents, corpus_file):
    """As in GPT-2's and OPT's tokenizers: given at the beginning, a target at the end."""
    path = gpt2_folder(tmp_path, documents)
    tokenizer = load_tokenizer(str(path))
    tokenizer.bos_token = tokenizer.eos_token
    tokenizer.save_pretrained(path)
    p = AuditParams.check(values(path, corpus_file, bos="yes"))
    corpus = load_corpus(p)
    found = audit.audit(p, p.audited_model, corpus).table.set_index("token_id")
    counts = token_counts(encode(tokenizer, corpus.train)[0], len(tokenizer))  # without BOS
    expected = frequency.unigram_loss(counts)
    assert found["n_train"].tolist() == counts.tolist() and np.allclose(found["unigram"], expected)


def test_tables_of_types_that_are_all_unseen_are_read_again(folder, corpus_file, tmp_path):
    counts = tmp_path / "counts.csv"
    counts.write_text(f"token_id,count\n{load_tokenizer(str(folder)).pad_token_id},1\n")
    p = AuditParams.check(values(folder, corpus_file, counts_file=str(counts)))
    found = audit.audit(p, p.audited_model, load_corpus(p))
    audit_tables.save([found], tmp_path / "tables")
    (again,) = audit_tables.load(tmp_path / "tables")
    assert again.bins["bin"].tolist() == found.bins["bin"].tolist() == ["0"]
