"""Loss by word-frequency bin from token ids alone, by hand, and in the tables of a run."""

import numpy as np
import pandas as pd
import pytest
from tokenizers import Tokenizer
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from fairlm_utils import files
from fairlm_utils.analysis.results import SOME_TABLES, load_results, write_results
from fairlm_utils.experiment import runs
from fairlm_utils.lm import words
from fairlm_utils.lm.tokenization import TokenizedCorpus, encode, train_bpe
from fairlm_utils.params import ParameterError

TRAIN, HELDOUT = ["aa bb aa", "aa cc", "dd dd"], ["aa dd", "xx bb"]


@pytest.fixture
def corpus():
    """Every byte a token: a word of two letters and its space are three."""
    tokenizer = train_bpe(TRAIN, 256)
    (train, train_starts), (heldout, heldout_starts) = encode(tokenizer, TRAIN), encode(tokenizer, HELDOUT)
    meta = {"train": {"n_characters": len("".join(TRAIN))}, "heldout": {"n_characters": len("".join(HELDOUT))}}
    return TokenizedCorpus(tokenizer, train, heldout, train_starts, heldout_starts, meta)


def test_a_word_s_loss_is_the_sum_of_its_pieces_and_its_bin_that_of_its_count_in_the_blocks_of_training(corpus):
    losses = np.ones((2, 6), dtype=np.float32)  # "aa dd</s>" and "xx bb</s>" as 12 tokens: each document is a block
    losses[:, 0] = np.nan
    losses[1, 4] = 5.0
    # the first 9 + 6 ids of training are its first two documents: aa 3, bb 1, cc 1, and no dd
    found = words.by_frequency(corpus, "held-out", losses, 15).set_index("bin")
    assert found["loss_occurrences"].to_dict() == {
        "0": 3.0,
        "1–2": 7.0,
    }  # " dd", " bb"; aa and xx are cut by their block
    assert found["n_words"].tolist() == found["n_occurrences"].tolist() == [1, 1]
    assert words.by_frequency(corpus, "held-out", losses, 21).set_index("bin").loc["1–2", "n_words"] == 2
    training = words.by_frequency(corpus, "training", np.ones((1, 9), dtype=np.float32), 15).set_index("bin")
    assert training["loss"].to_dict() == {"1–2": 3.0, "3–8": 2.5} and training["n_occurrences"].tolist() == [1, 2]


def test_ids_that_do_not_give_the_text_back_are_a_clear_error(corpus):
    broken = TokenizedCorpus(
        corpus.tokenizer,
        corpus.train,
        corpus.heldout[::-1].copy(),
        corpus.train_starts,
        corpus.heldout_starts,
        corpus.meta,
    )
    broken.heldout[2] = 200  # half a character
    with pytest.raises(files.RunError, match="by_word: the tokenizer does not give the text back"):
        words.by_frequency(broken, "held-out", np.ones((2, 6), dtype=np.float32), 15)


def test_a_tokenizer_that_spells_other_spaces_is_refused_before_training(corpus, miniature, tmp_path, monkeypatch):
    spaced = TokenizedCorpus(**{**vars(corpus), "meta": {p: {"n_characters": 9} for p in ("train", "heldout")}})
    monkeypatch.setattr(runs, "tokenize_corpus", lambda p: spaced)
    monkeypatch.setattr(runs.identity, "record_text", lambda *of_run: None)
    with pytest.raises(files.RunError, match=r"by_word: .* spell 10 characters of 9\); set by_word: false"):
        runs.train(miniature(experiment="spaced", by_word=True))


def test_words_of_which_the_tokenizer_drops_letters_have_no_loss_and_the_dropped_no_bytes():
    tokenizer = Tokenizer(BPE({"a": 0, "b": 1}, []))  # no unknown token: what it never saw is dropped
    tokenizer.pre_tokenizer = WhitespaceSplit()
    text = "ab aé b"
    encoding = tokenizer.encode(text)
    assert encoding.ids == [0, 1, 0, 1]
    found, totals = words.word_losses(tokenizer, [text], np.array(encoding.ids), np.array([0]), np.ones(4))
    assert found["word"].tolist() == ["ab", "b"] and found["loss"].tolist() == [2.0, 1.0]
    assert totals == {"n_words": 2, "n_words_left_out": 1, "text_nats": 4.0, "text_bytes": 6}  # "ab a b"


def test_a_word_whose_only_token_begins_in_another_is_left_out_and_counted():
    tokenizer = Tokenizer(WordLevel({"the": 0, "cat sat": 1, "on": 2, "mat": 3}, unk_token="on"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.add_tokens(["cat sat"])
    text = "the cat sat on mat"
    ids = np.array(tokenizer.encode(text).ids)
    assert len(ids) == 4
    for n, left_out in ((4, 2), (1, 0)):  # of the first token alone, no word after it was reached
        found, totals = words.word_losses(tokenizer, [text], ids, np.array([0]), np.ones(n))
        assert (totals["n_words"], totals["n_words_left_out"]) == (len(found), left_out), n


def test_a_run_has_losses_by_word_where_they_were_asked_for_and_committed_tables_keep_them(miniature, tmp_path):
    p = miniature(experiment="words", steps=2, window_steps=2, by_word=True)
    assert p.run_id() == miniature(experiment="words", steps=2, window_steps=2).run_id()
    folder = runs.evaluate(p).parent
    found = load_results(folder)
    held = found.words[found.words["split"] == "held-out"]
    assert list(found.words.columns) == SOME_TABLES["words"] and (held["loss"] > 0).all()
    tokens = found.totals.set_index("split").loc["held-out", "n_tokens"]
    assert 8 < held["n_occurrences"].sum() < tokens  # of at most 16 tokens per block
    write_results(found, tmp_path / "r", "make results")
    pd.testing.assert_frame_equal(load_results(tmp_path / "r").words, found.words, rtol=1e-6)
    runs.evaluate(miniature(experiment="wordless", steps=2, window_steps=2))
    assert load_results(folder.parent / "wordless").words is None


@pytest.mark.parametrize("values", [{"packing": False}, {"pre_tokenizer": "whitespace-punctuation"}])
def test_words_that_cannot_be_found_are_refused_before_anything_runs(miniature, values):
    with pytest.raises(ParameterError, match="by_word: needs packing"):
        miniature(by_word=True, **values)
