"""Tokenizers, ids, blocks and the statistics of counts."""

import copy
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import GemmaConfig, GPT2Config, LlamaConfig, PreTrainedTokenizerFast, Qwen2Config

from fairlm_utils import frequency
from fairlm_utils.frequency import coverage, target_counts, token_counts
from fairlm_utils.lm import tokenization
from fairlm_utils.lm.tokenization import SPECIAL_TOKENS, blocks, encode, train_bpe
from fairlm_utils.params import ParameterError

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


@pytest.mark.parametrize("config", [GPT2Config(), Qwen2Config(), GemmaConfig()], ids=lambda c: c.model_type)
def test_a_folder_without_a_tokenizer_has_none(config, tmp_path):
    """transformers makes one of special tokens alone, in which every text has no tokens."""
    config.save_pretrained(tmp_path)
    with pytest.raises(ParameterError, match="no vocabulary; save the model's tokenizer there"):
        tokenization.load_tokenizer(str(tmp_path))


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=60))
@example("a </s><s> b<pad>")
def test_byte_level_ids_give_any_text_back(byte_level, text):
    try:
        text.encode()
    except UnicodeEncodeError:
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
    inputs, labels, lengths = blocks(np.arange(10, dtype=np.uint16), np.array([0, 4]), 3, True, pad_token_id=0)
    assert lengths is None
    assert inputs.tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert labels.tolist() == [[-100, 1, 2], [-100, 4, 5], [-100, 7, 8]]
    first, *_ = blocks(np.arange(10, dtype=np.uint16), np.array([0]), 3, True, 0, max_blocks=2)
    assert first.tolist() == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(ParameterError, match="lower it"):
        blocks(np.arange(2, dtype=np.uint16), np.array([0]), 3, True, 0)


def test_padded_blocks_by_hand():
    ids = np.array([7, 8, 9, 5, 6], dtype=np.uint16)
    inputs, labels, lengths = blocks(ids, np.array([0, 3]), 4, False, pad_token_id=0)
    assert lengths.tolist() == [3, 2]
    assert inputs.tolist() == [[7, 8, 9, 0], [5, 6, 0, 0]]
    assert labels.tolist() == [[-100, 8, 9, -100], [-100, 6, -100, -100]]
    one, *_ = blocks(ids, np.array([0, 3]), 4, False, 0, max_blocks=1)
    assert one.tolist() == [[7, 8, 9, 0]]


def test_blocks_at_even_distances_by_hand():
    ids = np.arange(20, dtype=np.uint16)
    inputs, labels, _ = blocks(ids, np.array([0, 6, 13]), 3, True, 0, max_blocks=3, bos=True, spread=True)
    assert inputs.tolist() == [[0, 1, 2], [6, 7, 8], [12, 13, 14]]
    assert labels.tolist() == [[-100, 1, 2], [-100, 7, 8], [-100, -100, 14]]
    inputs, labels, lengths = blocks(ids, np.array([0, 6, 13, 18]), 3, False, 0, max_blocks=2, spread=True)
    assert inputs.tolist() == [[0, 1, 2], [13, 14, 15]] and lengths.tolist() == [3, 3]
    assert len(blocks(ids, np.array([0]), 3, True, 0, max_blocks=9, spread=True)[0]) == 6


def test_target_counts_leave_out_first_positions_and_padding():
    labels = np.array([[-100, 2, 3], [-100, 3, -100]])
    assert target_counts(labels, 5).tolist() == [0, 0, 1, 2, 0]


def test_coverage_and_the_types_to_cover_agree():
    counts = np.random.default_rng(0).zipf(1.5, 500)
    n = frequency.types_to_cover(counts, 0.95)
    assert coverage(counts, [n / 500])[0] >= 0.95 > coverage(counts, [(n - 1) / 500])[0]


def test_rank_frequency_falls_and_ends_at_the_rarest():
    curve = frequency.rank_frequency(token_counts(np.array([1, 1, 1, 2, 3, 3]), 6))
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


def test_a_copy_of_a_tokenizer_finds_the_tokenized_corpus_and_another_tokenizer_does_not(miniature, tmp_path):
    folder, found = tmp_path / "tokenizer", []
    for n in (260, 270):
        train_bpe(TEXTS, n).save_pretrained(folder)
        (folder / "model.safetensors").write_bytes(b"weights of any size")
        found.append(tokenization.cache_dir(miniature(tokenizer=str(folder))))
        (folder / "model.safetensors").unlink()
        for file in folder.iterdir():
            os.utime(file, (1, n))
        assert tokenization.cache_dir(miniature(tokenizer=str(folder))) == found[-1]
    assert found[0] != found[1]


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
        "import json, sys; from fairlm_utils import params; from fairlm_utils.lm import tokenization as t; "
        "t.tokenize_corpus(params.EvaluationParams.check(json.loads(sys.argv[1]))); assert 'datasets' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, p.model_dump_json()], check=True)


def test_low_frequency_shares_are_of_the_types_that_occur(miniature):
    p = miniature(data_seed=3)
    shares = tokenization.low_frequency_shares(p, tokenization.tokenize_corpus(p), [280, 300], 0.95)
    corpus = tokenization.tokenize_corpus(p)
    counts = token_counts(
        encode(corpus.tokenizer, tokenization.decoded(corpus, "train", 5000))[0], len(corpus.tokenizer)
    )
    seen = counts[counts > 0]
    assert len(seen) < len(counts)  # most bytes never occur
    assert shares["low_frequency"].iloc[-1] == pytest.approx(1 - frequency.types_to_cover(seen, 0.95) / len(seen))


def test_low_frequency_shares(miniature):
    p = miniature()
    shares = tokenization.low_frequency_shares(p, tokenization.tokenize_corpus(p), [280, 300], 0.95)
    assert shares["vocab_size"].tolist() == [280, 300] and (shares["n_tokens"].diff().iloc[1:] < 0).all()
    assert shares[["low_frequency", "below_percentile"]].stack().between(0, 1).all()


ANY_TEXT = "In 2024, the café’s 12,345 guests didn't leave!  Two  spaces,\tand\n\nlines; e\u0301 — 名前を示す。x_y = foo(bar[10])\n"
NAMES = {"eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>"}


@pytest.mark.parametrize("config", [GPT2Config, Qwen2Config, LlamaConfig, GemmaConfig])
def test_a_tokenizer_is_what_its_file_says_whatever_the_model_beside_it(tmp_path, capsys, config):
    train_bpe([ANY_TEXT * 3], 330).save_pretrained(tmp_path)
    config(vocab_size=335).save_pretrained(tmp_path)
    tokenizer = tokenization.load_tokenizer(str(tmp_path))
    want = Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(ANY_TEXT).ids
    assert encode(tokenizer, [ANY_TEXT])[0].tolist() == [*want, 2]
    assert {role: getattr(tokenizer, role) for role in SPECIAL_TOKENS} == SPECIAL_TOKENS
    said = capsys.readouterr().out
    assert said.count("tokenizes otherwise than tokenizer.json") == (config is Qwen2Config) == said.count("\n")


def test_names_that_no_file_gives_are_those_of_the_class_and_a_folder_without_tokenizer_json_is_read(
    tmp_path, byte_level
):
    """As GPT-2 is published: its tokenizer_config.json names no special token."""
    state = byte_level.backend_tokenizer.to_str().replace('"</s>"', '"<|endoftext|>"')
    (tmp_path / "tokenizer.json").write_text(state)
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 1024}')
    GPT2Config(vocab_size=285).save_pretrained(tmp_path)
    tokenizer = tokenization.load_tokenizer(str(tmp_path))
    assert (tokenizer.eos_token_id, tokenization.n_ids(tokenizer)) == (2, 285)
    legacy, model = tmp_path / "legacy", json.loads(state)["model"]
    GPT2Config(vocab_size=285).save_pretrained(legacy)
    (legacy / "vocab.json").write_text(json.dumps(model["vocab"]))
    (legacy / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, model["merges"])]))
    assert encode(tokenization.load_tokenizer(str(legacy)), ["the cat"])[0].tolist() == [
        *byte_level.backend_tokenizer.encode("the cat").ids,
        2,
    ]


@pytest.mark.parametrize("call", [{"truncation": True, "max_length": 4}, {"padding": "max_length", "max_length": 40}])
def test_truncation_and_padding_of_the_file_are_switched_off_and_the_users_tokenizer_is_left_alone(tmp_path, call):
    tokenizer = train_bpe(TEXTS, 280)
    want = encode(tokenizer, TEXTS)[0].tolist()
    tokenizer(TEXTS[:2], **call)
    tokenizer.save_pretrained(tmp_path)
    file = json.loads((tmp_path / "tokenizer.json").read_text())
    assert file["truncation" if "truncation" in call else "padding"]  # transformers keeps it
    before = tokenizer.backend_tokenizer.to_str()
    assert encode(tokenizer, TEXTS)[0].tolist() == want and tokenizer.backend_tokenizer.to_str() == before
    loaded = tokenization.load_tokenizer(str(tmp_path))
    assert loaded.backend_tokenizer.truncation is None is loaded.backend_tokenizer.padding
    assert encode(loaded, TEXTS)[0].tolist() == want


def unigram():
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=40, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **NAMES)


def word_level():
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordLevelTrainer(special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **NAMES)


def word_piece(decoder=None):
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if decoder:
        tokenizer.decoder = decoder
    trainer = trainers.WordPieceTrainer(vocab_size=60, special_tokens=["[UNK]", "[CLS]", "[SEP]"], show_progress=False)
    tokenizer.train_from_iterator([*TEXTS, "## 3 tables"], trainer)
    names = {"eos_token": "[SEP]", "bos_token": "[CLS]", "unk_token": "[UNK]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def byte_fallback():
    """As Llama's: words begin with ▁, bytes stand for characters that are not learnt, every text begins with <s>."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *"▁thes", "▁t", "▁th", "▁the", "##"]
    merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e")]
    model = models.BPE({t: i for i, t in enumerate(pieces)}, merges, unk_token="<unk>", byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **NAMES)


def test_tokens_of_bytes_that_are_special_still_stand_for_bytes():
    plain, special = byte_fallback(), byte_fallback()
    special.backend_tokenizer.add_special_tokens([f"<0x{i:02X}>" for i in range(256)])
    (expected, _), (ids, _) = (encode(tokenizer, ["the café", "名"]) for tokenizer in (plain, special))
    assert ids.tolist() == expected.tolist() and special.unk_token_id not in ids


def test_a_vocabulary_without_an_unknown_token_serves_texts_that_it_can_spell():
    tokenizer = Tokenizer(models.WordLevel({"A": 0, "C": 1, "</s>": 2}))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")
    assert not tokenization.adds_bos(fast, "auto") and "no BOS token" in tokenization.say_bos(fast, False)
    assert encode(fast, ["A C", "C"])[0].tolist() == [0, 1, 2, 1, 2]


@pytest.mark.parametrize("make", [lambda: train_bpe(TEXTS, 300), unigram, word_level, byte_fallback])
def test_the_spelling_of_a_special_token_in_a_document_is_text(make):
    tokenizer = make()
    ids, starts = encode(tokenizer, ["the </s> cat<s>", "</s>", ""])
    ends = [*starts[1:], len(ids)]
    assert [ids[end - 1] for end in ends] == [tokenizer.eos_token_id] * 3
    inside = np.delete(ids, np.array(ends) - 1)
    assert not np.isin(inside, [tokenizer.bos_token_id, tokenizer.eos_token_id]).any() and len(inside) > 3
    flagged = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    flagged.encode_special_tokens = True  # tokenizers' own way, which models that know the spelling do not heed
    if isinstance(flagged.model, models.BPE):
        assert inside[: ends[0] - 1].tolist() == flagged.encode("the </s> cat<s>", add_special_tokens=False).ids


def test_a_character_that_is_a_special_token_too_is_still_text():
    """As some take "!" for padding; a special token added as white space does not split the text either."""
    tokenizer = train_bpe(["the cat sat! "] * 5, 265)
    want = tokenizer.backend_tokenizer.encode("the cat! sat").ids
    tokenizer.pad_token = "!"
    tokenizer.add_special_tokens({"mask_token": " "})
    assert encode(tokenizer, ["the cat! sat"])[0].tolist() == [*want, 2]


def test_added_tokens_that_are_not_special_are_vocabulary(byte_level):
    tokenizer = train_bpe(TEXTS, 280)
    tokenizer.add_tokens(["catsat", "  "])
    ids, _ = encode(tokenizer, ["a catsat  b"])
    assert {285, 286} <= set(ids.tolist())
    kinds = tokenization.token_kinds(tokenizer)
    assert kinds[285:] == ["word piece", "white space"] and tokenization.n_ids(tokenizer) == 287


def with_gap(shift):
    state = json.loads(train_bpe(TEXTS, 290).backend_tokenizer.to_str())["model"]
    model = models.BPE(
        {token: i if i < 270 else i + shift for token, i in state["vocab"].items()}, list(map(tuple, state["merges"]))
    )
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


@pytest.mark.parametrize("shift", [40, 70_000])
def test_ids_with_gaps(shift, tmp_path, miniature):
    with_gap(shift).save_pretrained(tmp_path)
    tokenizer = tokenization.load_tokenizer(str(tmp_path))
    assert len(tokenizer) == 295 and tokenization.n_ids(tokenizer) == 295 + shift
    ids, _ = encode(tokenizer, TEXTS)
    want = [i for text in TEXTS for i in [*tokenizer.backend_tokenizer.encode(text).ids, 2]]
    assert ids.tolist() == want and ids.max() >= 270 + shift
    kinds = tokenization.token_kinds(tokenizer)
    assert len(kinds) == 295 + shift and set(kinds[270 : 270 + shift]) == {"other"}
    assert tokenization.spell(tokenizer, [269 + shift, 270]) == ["", ""]
    corpus = tokenization.tokenize_corpus(miniature(tokenizer=str(tmp_path)))
    assert corpus.meta["vocabulary"] == 295 + shift


def test_added_tokens_have_the_ids_of_the_file_and_dropout_of_merges_is_off(tmp_path):
    """`tokenizers` gives added tokens the next free ids, whatever the file says, and drops merges if the file does."""
    tokenizer = train_bpe(TEXTS, 290)
    tokenizer.add_tokens(["catsat"])
    want = encode(tokenizer, [*TEXTS, "a catsat"])[0]
    tokenizer.save_pretrained(tmp_path)
    state = json.loads((tmp_path / "tokenizer.json").read_text())
    state["added_tokens"][-1]["id"], state["model"]["dropout"] = 340, 0.5
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(NAMES))
    loaded = tokenization.load_tokenizer(str(tmp_path))
    assert loaded.convert_tokens_to_ids("catsat") == 340 and tokenization.n_ids(loaded) == 341
    assert encode(loaded, [*TEXTS, "a catsat"])[0].tolist() == [340 if i == 295 else i for i in want]


def test_bos_follows_the_tokenizers_rule_or_the_parameter(byte_level):
    own, none = byte_fallback(), with_gap(0)
    assert tokenization.adds_bos(own, "auto") and tokenization.adds_bos(own, "yes")
    assert not tokenization.adds_bos(own, "no")
    assert tokenization.adds_bos(byte_level, "yes") and not tokenization.adds_bos(byte_level, "auto")
    assert not tokenization.adds_bos(none, "auto") and not tokenization.adds_bos(none, "no")
    with pytest.raises(ParameterError, match="auto or no"):
        tokenization.adds_bos(none, "yes")
    ids, starts = encode(own, ["the", "the the"], bos=True)
    pieces = own.backend_tokenizer.encode("the").ids[1:-1]
    assert ids.tolist() == [1, *pieces, 2, 1, *pieces, *pieces, 2] and starts.tolist() == [0, 2 + len(pieces)]


def test_a_tokenizer_without_a_token_for_unknown_words_says_so():
    fast = Tokenizer(models.WordLevel({"</s>": 0, "the": 1}, unk_token="<unk>"))
    fast.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=fast, eos_token="</s>")
    assert encode(tokenizer, ["the the"])[0].tolist() == [1, 1, 0]
    with pytest.raises(ParameterError, match="cannot tokenize these documents"):
        encode(tokenizer, ["the cat"])


def test_what_a_tokenizer_begins_a_text_with_beside_bos_is_said(byte_level):
    own = copy.deepcopy(byte_level)
    assert tokenization.say_bos(own, True) == "documents begin with <s>"
    backend = own.backend_tokenizer
    backend.post_processor = processors.TemplateProcessing(
        single="<pad> <s> $A", special_tokens=[("<pad>", 0), ("<s>", own.bos_token_id)]
    )
    assert not tokenization.adds_bos(own, "auto")
    said = tokenization.say_bos(own, False)
    assert said.startswith("documents begin with no BOS token; left out is ") and "is not its bos_token" in said


def test_a_corpus_whose_documents_begin_with_bos(miniature, capsys):
    plain, begun = (tokenization.tokenize_corpus(miniature(data_seed=7, bos=bos)) for bos in ("auto", "yes"))
    said = capsys.readouterr().out
    assert "bos auto" not in said and "bos yes: documents begin with <s>" in said  # a BPE trained here has no rule
    assert (begun.train[begun.train_starts] == 1).all() and (begun.train == 1).sum() == len(begun.train_starts)
    assert np.array_equal(begun.train[begun.train != 1], plain.train)
    assert tokenization.decoded(begun, "train", 50) == tokenization.decoded(plain, "train", 50)
    assert begun.meta["bos"] and "bos" not in plain.meta


def test_a_bpe_that_ends_early_says_so_and_has_no_larger_sizes(miniature, tmp_path, capsys):
    path = tmp_path / "few.jsonl"
    path.write_text(
        "".join(json.dumps({"text": f"Entry {i % 9}: the cat sat on the mat. " * 3}) + "\n" for i in range(40))
    )
    p = miniature(corpus=str(path), vocab_size=1024)
    corpus = tokenization.tokenize_corpus(p)
    state = json.loads(corpus.tokenizer.backend_tokenizer.to_str())["model"]
    learnt = 256 + len(state["merges"])  # bytes, and a type for each merge
    assert f"after {learnt} of the 1,024 types asked for" in capsys.readouterr().out
    tokenization.tokenize_corpus(p)
    assert f"after {learnt} of the 1,024" in capsys.readouterr().out  # from the cache too
    assert tokenization.bpe_sizes(corpus.tokenizer) == (256, learnt)
    shares = tokenization.low_frequency_shares(p, corpus, [100, 256, 270, learnt, learnt + 1, 1024], 0.95)
    assert shares["vocab_size"].tolist() == [256, 270, learnt]
    assert f"never had [100, {learnt + 1}, 1024] types" in capsys.readouterr().out
    with pytest.raises(ParameterError, match="choose sizes between them"):
        tokenization.low_frequency_shares(p, corpus, [1024], 0.95)
    for size in (255, learnt + 1):
        with pytest.raises(ParameterError, match=f"from 256 characters to {learnt} types"):
            tokenization.truncated(corpus.tokenizer, size)


def test_the_smallest_size_of_a_bpe_is_its_alphabet(split_at_punctuation):
    characters = set("".join(TEXTS)) - set(" \t\n")
    assert tokenization.bpe_sizes(split_at_punctuation)[0] == len(characters)
    with pytest.raises(ParameterError, match="no size of this BPE"):
        tokenization.truncated(split_at_punctuation, len(characters) - 1)


#: A text that is one token, and its kind.
KINDS_OF = {
    " the": "word start",
    "ing": "word piece",
    "don't": "word piece",
    "'s": "other",
    "##": "punctuation",
    " ##": "punctuation",
    "▁": "punctuation",
    "का-का": "word piece",
    " हिन्दी": "word start",
    "\u093e": "word piece",  # Hindi vowel sign
    "\u094d": "word piece",  # virama
    "\u0bbf": "word piece",  # Tamil vowel sign
    "\u064e": "word piece",  # Arabic fatha
    "\u0301": "word piece",  # combining acute
    " cafe\u0301s": "word start",
    " می\u200cخواهم": "word start",  # a joiner inside a Persian word
    "\u0e31": "unspaced letters",  # Thai vowel sign
    "名前": "unspaced letters",
    "ユーティリティ": "unspaced letters",
    "ภาษาไทย": "unspaced letters",
    "一": "unspaced letters",
    " 한국어": "word start",
    "。": "punctuation",
    "❤\ufe0f": "punctuation",
    "\ufe0f": "punctuation",
    "👩\u200d💻": "punctuation",
    "3.14": "number",
    " ١٢٣": "number",
    "½": "number",
    "x1": "other",
    "\u3000": "white space",
    "\n\n": "white space",
}


@pytest.mark.parametrize("text", KINDS_OF)
def test_kinds_of_every_script_by_unicode_category(text):
    """The same for a byte-level token as for its text alone."""
    assert tokenization._kind(text, text.startswith(" ")) == KINDS_OF[text]
    characters = {c: i for i, c in enumerate(pre_tokenizers.ByteLevel.alphabet())}
    [(spelled, _)] = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    backend = Tokenizer(models.BPE({**characters, spelled: 256} if spelled not in characters else characters, []))
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    i = tokenizer.convert_tokens_to_ids(spelled)
    assert tokenization.token_kinds(tokenizer)[i] == KINDS_OF[text] and tokenization.spell(tokenizer, [i]) == [text]


def kinds_by_token(tokenizer):
    names = tokenizer.convert_ids_to_tokens(range(tokenization.n_ids(tokenizer)))
    return dict(zip(names, tokenization.token_kinds(tokenizer), strict=True))


@pytest.mark.parametrize("decoder", [None, decoders.WordPiece()])
def test_markers_are_markers_where_the_tokenizer_uses_them(decoder):
    pieces = kinds_by_token(word_piece(decoder))
    assert (pieces["cat"], pieces["##s"], pieces["#"]) == ("word start", "word piece", "punctuation")
    assert (pieces["3"], pieces["[SEP]"]) == ("number", "special")
    assert kinds_by_token(word_level())["cat"] == "word start"
    llama = kinds_by_token(byte_fallback())
    assert (llama["▁the"], llama["t"], llama["▁"]) == ("word start", "word piece", "white space")
    assert llama["<0xE5>"] == "other" and llama["##"] == "punctuation"


def test_spelled_tokens_have_their_spaces_and_the_bytes_of_parts_of_characters(byte_level):
    llama, pieces = byte_fallback(), word_piece()
    ids = encode(llama, ["the 名 s"])[0]
    assert tokenization.spell(llama, ids) == [" the", " ", "<E5>", "<90>", "<8D>", " ", "s", "</s>"]
    assert tokenization.spell(pieces, encode(pieces, ["cats"])[0]) == [" cat", "s", "[SEP]"]
    ids = encode(byte_level, ["the naïve 名\ufffd"])[0]
    spelled, decoded = tokenization.spell(byte_level, ids), [byte_level.decode([i]) for i in ids]
    assert spelled[-7:] == ["<E5>", "<90>", "<8D>", "<EF>", "<BF>", "<BD>", "</s>"]
    assert all(a == b for a, b in zip(spelled, decoded, strict=True) if "\ufffd" not in b)


def test_a_lower_casing_bpe_learns_and_counts_lower_case_alone():
    """Ids are those of the same text in lower case, for both pre-tokenizers; the default keeps case."""
    for pre_tokenizer in ("byte-level", "whitespace-punctuation"):
        tokenizer = train_bpe(["The Cat sat. THE cat sat."] * 20, 300, pre_tokenizer, lowercase=True)
        upper, lower = (tokenizer.backend_tokenizer.encode(text).ids for text in ("THE CAT", "the cat"))
        assert upper == lower and not any(c.isupper() for token in lower for c in tokenizer.decode([token]))
    cased = train_bpe(["The Cat sat. THE cat sat."] * 20, 300).backend_tokenizer
    assert cased.encode("THE CAT").ids != cased.encode("the cat").ids
