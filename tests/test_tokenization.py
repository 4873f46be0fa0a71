"""Tokenizers, ids, blocks and the statistics of counts."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlm_utils import tokenization
from fairlm_utils.params import ParameterError
from fairlm_utils.tokenization import SPECIAL_TOKENS, blocks, coverage, encode, target_counts, token_counts, train_bpe

TEXTS = ["the cat sat on the mat", "the dog sat", "  a\tlog,  and a ﬁne naïve café\n"] * 5


@pytest.fixture(scope="module")
def byte_level():
    return train_bpe(TEXTS, 280)


@pytest.fixture(scope="module")
def split_at_punctuation():
    return train_bpe(TEXTS, 60, "whitespace-punctuation")


def test_vocabulary_is_what_was_asked_for_plus_five(documents):
    tokenizer = train_bpe(documents, 320)
    assert len(tokenizer) == 325
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS.values())) == [0, 1, 2, 3, 4]


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=60))
def test_byte_level_ids_give_any_text_back(byte_level, text):
    try:
        text.encode()
    except UnicodeEncodeError:
        return
    if any(special in text for special in SPECIAL_TOKENS.values()):
        return
    ids, starts = encode(byte_level, [text])
    assert ids[-1] == byte_level.eos_token_id and starts.tolist() == [0]
    assert byte_level.decode(ids[:-1]) == text


def test_whitespace_punctuation_splits_as_the_papers_example(split_at_punctuation):
    pieces = [
        w for w, _ in split_at_punctuation.backend_tokenizer.pre_tokenizer.pre_tokenize_str("I liked it, really!")
    ]
    assert pieces == ["I", "liked", "it", ",", "really", "!"]
    assert split_at_punctuation.unk_token_id in encode(split_at_punctuation, ["中"])[0]


def test_documents_are_joined_and_each_ends_in_the_end_of_text_token(byte_level):
    ids, starts = encode(byte_level, TEXTS[:3])
    assert ids.dtype == np.uint16 and (ids == byte_level.eos_token_id).sum() == 3
    assert all(ids[s - 1] == byte_level.eos_token_id for s in starts[1:])
    alone, _ = encode(byte_level, TEXTS[1:2])
    assert np.array_equal(ids[starts[1] : starts[2]], alone)


def test_a_smaller_bpe_is_a_prefix_of_the_larger(documents):
    large, small = train_bpe(documents, 400), train_bpe(documents, 300)
    cut = tokenization.truncated(large, 300)
    assert np.array_equal(encode(cut, documents)[0], encode(small, documents)[0])


def test_packed_blocks_by_hand():
    inputs, labels = blocks(np.arange(10, dtype=np.uint16), np.array([0, 4]), 3, True, pad_token_id=0)
    assert inputs.tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert labels.tolist() == [[-100, 1, 2], [-100, 4, 5], [-100, 7, 8]]
    assert len(blocks(np.arange(10, dtype=np.uint16), np.array([0]), 3, True, 0, max_blocks=2)[0]) == 2
    with pytest.raises(ParameterError, match="lower it"):
        blocks(np.arange(2, dtype=np.uint16), np.array([0]), 3, True, 0)


def test_padded_blocks_by_hand():
    ids = np.array([7, 8, 9, 5, 6], dtype=np.uint16)
    inputs, labels = blocks(ids, np.array([0, 3]), 4, False, pad_token_id=0)
    assert inputs.tolist() == [[7, 8, 9, 0], [5, 6, 0, 0]]
    assert labels.tolist() == [[-100, 8, 9, -100], [-100, 6, -100, -100]]
    one, _ = blocks(ids, np.array([0, 3]), 4, False, 0, max_blocks=1)
    assert one.tolist() == [[7, 8, 9, 0]]


def test_target_counts_leave_out_first_positions_and_padding():
    labels = np.array([[-100, 2, 3], [-100, 3, -100]])
    assert target_counts(labels, 5).tolist() == [0, 0, 1, 2, 0]


def test_coverage_and_the_types_to_cover_agree():
    counts = np.random.default_rng(0).zipf(1.5, 500)
    n = tokenization.types_to_cover(counts, 0.95)
    assert coverage(counts, [n / 500])[0] >= 0.95 > coverage(counts, [(n - 1) / 500])[0]


def test_rank_frequency_falls_and_ends_at_the_rarest():
    curve = tokenization.rank_frequency(token_counts(np.array([1, 1, 1, 2, 3, 3]), 6))
    assert curve["count"].tolist() == [3, 2, 1] and curve["rank"].tolist() == [1, 2, 3]


def test_the_cache_is_used_and_remade_when_its_end_is_missing(miniature, monkeypatch, capsys):
    p = miniature(data_seed=5)
    first = tokenization.tokenize_corpus(p)
    assert "making it now" in capsys.readouterr().out
    monkeypatch.setattr(tokenization, "load_corpus", lambda *_: pytest.fail("read the corpus again"))
    assert np.array_equal(tokenization.tokenize_corpus(p).train, first.train)
    monkeypatch.undo()
    (tokenization.cache_dir(p) / "meta.json").unlink()  # as after a crash
    again = tokenization.tokenize_corpus(p)
    assert np.array_equal(again.train, first.train) and again.meta == first.meta


def test_what_determines_the_ids_determines_the_cache(miniature):
    base = tokenization.cache_dir(miniature())
    assert base == tokenization.cache_dir(miniature(weight_decay=0.7, checkpoint_steps=9))
    assert base != tokenization.cache_dir(miniature(vocab_size=301)) != tokenization.cache_dir(miniature(data_seed=1))


def test_a_pre_trained_tokenizer_from_a_folder(tmp_path, byte_level):
    byte_level.save_pretrained(tmp_path)
    assert tokenization.load_tokenizer(str(tmp_path)).eos_token == "</s>"
    with pytest.raises(ParameterError, match="cannot be read"):
        tokenization.load_tokenizer(str(tmp_path / "nowhere"))


def test_another_tokenizer_in_the_same_folder_is_another_cache(miniature, tmp_path):
    p = miniature(tokenizer=str(tmp_path))
    sizes = []
    for vocab_size in (280, 290):
        train_bpe(TEXTS, vocab_size).save_pretrained(tmp_path)
        sizes.append(len(tokenization.tokenize_corpus(p).tokenizer))
    assert sizes == [285, 295]


def test_a_vocabulary_smaller_than_the_characters_is_refused_and_too_few_merges_are_not():
    with pytest.raises(ParameterError, match="characters of the corpus; raise it"):
        train_bpe(TEXTS, 5, "whitespace-punctuation")
    assert len(train_bpe(["aa bb"], 5000)) < 5005


def test_a_cache_hit_reads_no_data_set_library(miniature):
    p = miniature()
    tokenization.tokenize_corpus(p)
    code = (
        "import json, sys; from fairlm_utils import params, tokenization as t; "
        "t.tokenize_corpus(params.EvaluationParams.check(json.loads(sys.argv[1]))); assert 'datasets' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, p.model_dump_json()], check=True)


def test_low_frequency_shares_are_of_the_types_that_occur(miniature):
    p = miniature(data_seed=3)
    shares = tokenization.low_frequency_shares(p, tokenization.tokenize_corpus(p), [280, 300], 0.95)
    corpus = tokenization.tokenize_corpus(p)
    counts = token_counts(encode(corpus.tokenizer, tokenization._decoded(corpus, 5000))[0], len(corpus.tokenizer))
    seen = counts[counts > 0]
    assert len(seen) < len(counts)  # most bytes never occur
    assert shares["low_frequency"].iloc[-1] == pytest.approx(1 - tokenization.types_to_cover(seen, 0.95) / len(seen))


def test_low_frequency_shares(miniature):
    p = miniature()
    shares = tokenization.low_frequency_shares(p, tokenization.tokenize_corpus(p), [280, 300], 0.95)
    assert shares["vocab_size"].tolist() == [280, 300] and (shares["n_tokens"].diff().iloc[1:] < 0).all()
    assert shares[["low_frequency", "below_percentile"]].stack().between(0, 1).all()


def test_a_lower_casing_bpe_learns_and_counts_lower_case_alone():
    """Ids are those of the same text in lower case, for both pre-tokenizers; the default keeps case."""
    for pre_tokenizer in ("byte-level", "whitespace-punctuation"):
        tokenizer = train_bpe(["The Cat sat. THE cat sat."] * 20, 300, pre_tokenizer, lowercase=True)
        upper, lower = (tokenizer.backend_tokenizer.encode(text).ids for text in ("THE CAT", "the cat"))
        assert upper == lower and not any(c.isupper() for token in lower for c in tokenizer.decode([token]))
    cased = train_bpe(["The Cat sat. THE cat sat."] * 20, 300).backend_tokenizer
    assert cased.encode("THE CAT").ids != cased.encode("the cat").ids
