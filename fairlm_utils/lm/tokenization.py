"""Tokenizers, token ids and what the counts of a vocabulary look like."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.utils import cached_file

from fairlm_utils import files, frequency
from fairlm_utils.frequency import IGNORE_INDEX
from fairlm_utils.lm.corpora import CorpusError, load_corpus, location_of, source_state
from fairlm_utils.params import TOKENIZED, CorpusParams, ParameterError, TokenizationParams

SPECIAL_TOKENS = {
    "pad_token": "<pad>",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
}
#: Kinds of tokens, see `token_kinds`.
KINDS = ("word start", "word piece", "unspaced letters", "number", "punctuation", "white space", "special", "other")
#: Written to with every change of how documents become ids, so that older caches are not read.
_FORMAT = 2
_BATCH = 512
#: Files of a folder that may say how its tokenizer cuts a text; a model's weights, which may lie beside them, do not.
_TOKENIZER_FILES = ("*.json", "*.txt", "*.model")
#: Text on which two tokenizers are compared: contractions, digits, runs of white space, other scripts, decomposed marks.
_PROBE = (
    "In 2024, the café's 12,345 guests didn't leave!  Two  spaces, tabs\tand\n\nlines \n; e\u0301 ﬁne ½ — x_y = foo(bar[10]);"
    " WE'LL see I'M “quoted”… naïve Straße Привет мир हिन्दी ภาษาไทย 名前を示す。한국어 العربية 🙂👍🏽 <b>&amp;</b> ## ▁ Ġ"
)
#: Beginnings of the Unicode names of letters and marks of scripts that are written without spaces between words.
_UNSPACED = re.compile(
    "(CJK|IDEOGRAPHIC|HIRAGANA|KATAKANA|HALFWIDTH KATAKANA|BOPOMOFO|YI|THAI|LAO|KHMER|MYANMAR|TIBETAN|JAVANESE|BALINESE"
    "|NEW TAI LUE|TAI LE|TAI THAM|TAI VIET)[ -]"
)

#: The byte of each character of a byte-level alphabet.
_BYTE_OF = {character: byte for byte, character in bytes_to_unicode().items()}


@dataclass(frozen=True)
class TokenizedCorpus:
    """Token ids of both splits: documents joined in order, each ending in the end-of-text token.

    Each begins with the beginning-of-text token (BOS) where `meta` has a true "bos". `train`, `heldout` are flat arrays
    of ids, `*_starts` the index of each document's first token, `meta` says what the documents are (description,
    fingerprint, digest of the ids, numbers of documents, characters, tokens).
    """

    tokenizer: PreTrainedTokenizerBase
    train: np.ndarray
    heldout: np.ndarray
    train_starts: np.ndarray
    heldout_starts: np.ndarray
    meta: dict[str, Any]


def cache_dir(p: TokenizationParams) -> Path:
    """Folder of the tokenized corpus: a digest of all that determines the ids, read without loading the corpus.

    Raises RunError if a link leads it out of `runs_dir`.
    """
    fields = [*CorpusParams.model_fields, "tokenizer", "vocab_size", "pre_tokenizer", "lowercase", "bos"]
    made_from = {name: getattr(p, name) for name in fields if name != "corpus_path"}
    sources: list[Any] = [source_state(p)]
    if p.tokenizer != "bpe" and Path(p.tokenizer).exists():  # a folder may hold another tokenizer tomorrow
        sources.append(files.digests(p.tokenizer, _TOKENIZER_FILES))  # the same of a copy elsewhere
    digest = hashlib.sha256(json.dumps([made_from, *sources, _FORMAT], sort_keys=True).encode()).hexdigest()
    return files.within(p.runs_dir, TOKENIZED, f"{Path(p.corpus).stem[:60]}-{digest[:12]}")


def tokenize_corpus(p: TokenizationParams) -> TokenizedCorpus:
    """The tokenized corpus of `p`, from its cache in `runs_dir/tokenized`, made if it is not there.

    Says so if the BPE of `p` learnt fewer types than asked for. Raises CorpusError or ParameterError if the corpus or
    tokenizer cannot be had. A second process that needs the same corpus waits for the first.
    """
    directory, source = cache_dir(p), location_of(p)
    if source and directory.resolve().is_relative_to(source.resolve()):
        raise ParameterError(
            f"runs_dir: {p.runs_dir!r} lies in the folder of the corpus, whose files are documents; move one"
        )
    if not (made := (directory / "meta.json").exists()):
        with files.locked(directory):
            if not (directory / "meta.json").exists():
                print(f"no tokenized {p.corpus} in {p.runs_dir}: making it now")
                _make(p, directory)
    corpus = _load(directory)
    if made and p.tokenizer == "bpe":  # training says it by itself
        _say_if_ended_early(n_ids(corpus.tokenizer) - len(SPECIAL_TOKENS), p.vocab_size)
    return corpus


def text_now(p: TokenizationParams) -> dict[str, Any] | None:
    """What the text of `p` is now: `meta` of its tokenized corpus, which is made if it is not there.

    None if that is a corpus of the Hub that has not been tokenized here, or can no longer be had: there is nothing to
    compare a finished run with, and its results stay readable.
    """
    directory = cache_dir(p)
    try:
        if not (directory / "meta.json").exists():
            if source_state(p) == p.corpus:
                return None
            tokenize_corpus(p)
        return _read_meta(directory)[0]
    except (CorpusError, ParameterError, files.RunError):
        return None


def _read_meta(directory: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """`meta` of a tokenized corpus, with a digest of its ids, and the digests of its files."""
    meta = files.read_json(directory / "meta.json")
    sha256 = meta.pop("sha256", {})
    if ids := [sha256[name] for name in ("train.npy", "heldout.npy") if name in sha256]:
        meta["ids"] = hashlib.sha256(json.dumps([*ids, meta.get("vocabulary")]).encode()).hexdigest()
    return meta, sha256


def _make(p: TokenizationParams, directory: Path) -> None:
    corpus = load_corpus(p)
    tokenizer = (
        train_bpe(corpus.train, p.vocab_size, p.pre_tokenizer, p.lowercase)
        if p.tokenizer == "bpe"
        else load_tokenizer(p.tokenizer)
    )
    bos = adds_bos(tokenizer, p.bos)
    if p.tokenizer != "bpe" or bos:  # one trained here has no rule of its own
        print(f"bos {p.bos}: {say_bos(tokenizer, bos)}")
    tokenizer.save_pretrained(directory / "tokenizer")
    meta = {
        "corpus": corpus.name,
        "description": corpus.description,
        "fingerprint": corpus.fingerprint,
        "vocabulary": n_ids(tokenizer),
        **({"bos": True} if bos else {}),
    }
    for split, documents in (("train", corpus.train), ("heldout", corpus.heldout)):
        ids, starts = encode(tokenizer, documents, bos)
        for name, array in ((split, ids), (f"{split}_starts", starts)):
            with files.atomic_path(directory / f"{name}.npy") as temporary, open(temporary, "wb") as file:
                np.save(file, array)
        meta[split] = {"n_documents": len(starts), "n_characters": sum(map(len, documents)), "n_tokens": len(ids)}
    meta["sha256"] = files.digests(directory, ["*.npy", "tokenizer/*"])
    files.write_json(directory / "meta.json", meta)  # last: it says that the others are whole


def _load(directory: Path) -> TokenizedCorpus:
    meta, sha256 = _read_meta(directory)
    files.verify(directory, sha256, "remove its folder to tokenize again")
    try:
        tokenizer = load_tokenizer(str(directory / "tokenizer"))
        arrays = {
            name: np.load(directory / f"{name}.npy", allow_pickle=False)
            for name in ("train", "heldout", "train_starts", "heldout_starts")
        }
    except (OSError, ValueError) as error:
        raise files.RunError(
            f"{directory}: the tokenized corpus cannot be read ({error}); remove the folder to make it again"
        ) from error
    return TokenizedCorpus(tokenizer=tokenizer, **arrays, meta=meta)


def train_bpe(
    documents: Sequence[str], vocab_size: int, pre_tokenizer: str = "byte-level", lowercase: bool = False
) -> PreTrainedTokenizerFast:
    """A BPE of `vocab_size` types learnt from `documents`, and 5 special tokens with the ids 0 to 4.

    "byte-level" works on bytes, without a prefix space, and knows every text; "whitespace-punctuation" splits at white
    space and punctuation, and maps characters it has not learnt to <unk>. With `lowercase` texts are lower-cased first:
    byte-level and lower-cased gives every cut that the paper's example shows. Learns fewer types if the documents run out
    of merges, see `bpe_sizes`. Raises ParameterError if their characters alone are more than `vocab_size`.
    """
    specials = list(SPECIAL_TOKENS.values())
    byte_level = pre_tokenizer == "byte-level"
    tokenizer = Tokenizer(models.BPE(unk_token=None if byte_level else SPECIAL_TOKENS["unk_token"]))
    if byte_level:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
    else:
        tokenizer.normalizer = normalizers.Replace(Regex(r"\s+"), " ")
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if lowercase:
        first = [] if byte_level else [tokenizer.normalizer]
        tokenizer.normalizer = normalizers.Sequence([*first, normalizers.Lowercase()])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size + len(specials),
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if byte_level else [],
        show_progress=False,
    )
    tokenizer.train_from_iterator(_batches(documents, "training the tokenizer"), trainer, length=len(documents))
    n_types = tokenizer.get_vocab_size() - len(specials)
    if n_types > vocab_size:  # the trainer keeps every character, whatever was asked for
        raise ParameterError(
            f"vocab_size: {vocab_size} is smaller than the {n_types} characters of the corpus; raise it"
        )
    _say_if_ended_early(n_types, vocab_size)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **SPECIAL_TOKENS)


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """A pre-trained tokenizer from the Hub or a folder, without remote code: the one its `tokenizer.json` describes.

    The class that transformers chooses by the model's type may build other rules from the same vocabulary; where it
    tokenizes otherwise, a line says so and the file is followed. Names of special tokens are those of the other files,
    then that class's own if the file has such tokens. Without a `tokenizer.json` transformers' class is used.
    Truncation and padding kept in the file are switched off. Raises ParameterError if the tokenizer cannot be read, is
    not a fast one or has no end-of-text token.
    """
    try:
        tokenizer = by_class = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        file = cached_file(name, "tokenizer.json", _raise_exceptions_for_missing_entries=False)
        if file and type(by_class) is not PreTrainedTokenizerFast:
            tokenizer = PreTrainedTokenizerFast.from_pretrained(name)
        if file and (mended := _with_ids_of_file(tokenizer.backend_tokenizer, Path(file))):
            tokenizer = PreTrainedTokenizerFast.from_pretrained(name, tokenizer_object=mended)
    except Exception as error:  # transformers raises many types here
        raise ParameterError(
            f"tokenizer: {name!r} cannot be read ({files.first_line(error)}); use bpe, a folder or a Hub id, "
            "whose own code is never run"
        ) from error
    if tokenizer.is_fast:
        for role, token in by_class.special_tokens_map.items():
            known = isinstance(token, str) and tokenizer.backend_tokenizer.token_to_id(token) is not None
            if known and getattr(tokenizer, role, "") is None:
                tokenizer.add_special_tokens({role: token})
    if not tokenizer.is_fast or tokenizer.eos_token_id is None:
        raise ParameterError(f"tokenizer: {name!r} is not a fast tokenizer with an end-of-text token; choose another")
    if tokenizer.get_vocab().keys() <= tokenizer.get_added_vocab().keys():  # transformers makes one of nothing
        raise ParameterError(
            f"tokenizer: {name!r} has special tokens and no vocabulary; save the model's tokenizer there (save_pretrained)"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    other_class = type(by_class) is not type(tokenizer) and by_class.is_fast
    if other_class and _ids_of_probe(by_class) != _ids_of_probe(tokenizer):
        print(
            f"{name}: transformers' {type(by_class).__name__} tokenizes otherwise than tokenizer.json; the file is followed"
        )
    tokenizer.chat_template = None  # not used here, and saved under names that its folder chooses
    return tokenizer


def _ids_of_probe(tokenizer: PreTrainedTokenizerBase) -> list[int] | None:
    try:
        return as_text(tokenizer).encode(_PROBE).ids
    except Exception:  # tokenizers has no other: the vocabulary lacks the class's unknown token
        return None


def _with_ids_of_file(tokenizer: Tokenizer, path: Path) -> Tokenizer | None:
    """The tokenizer of a `tokenizer.json` whose added tokens have other ids than `tokenizers` gave them, else None.

    It gives each the next free id, and so closes the gaps between them.
    """
    state = json.loads(path.read_text(encoding="utf-8"))
    added = {token["content"]: token["id"] for token in state.get("added_tokens", ())}
    if all(tokenizer.token_to_id(token) == i for token, i in added.items()):
        return None
    if not isinstance(state["model"]["vocab"], dict):
        raise ValueError("its added tokens have ids that this kind of model cannot give them")
    state["model"]["vocab"] = {**added, **state["model"]["vocab"]}
    return Tokenizer.from_str(json.dumps(state))


def n_ids(tokenizer: PreTrainedTokenizerBase) -> int:
    """The largest token id plus 1: what bounds ids, where `len(tokenizer)` counts types and misses gaps between ids."""
    return max(tokenizer.get_vocab().values()) + 1


def adds_bos(tokenizer: PreTrainedTokenizerBase, bos: str) -> bool:
    """Whether documents begin with the BOS token: "yes", "no", or "auto", the rule by which the tokenizer itself adds it.

    Raises ParameterError if `bos` is "yes" and the tokenizer has no BOS token.
    """
    if bos == "yes" and tokenizer.bos_token_id is None:
        raise ParameterError("bos: yes needs a tokenizer with a BOS token (bos_token); set bos to auto or no")
    if bos == "auto":
        return tokenizer.bos_token_id is not None and _ids_of_a_word(tokenizer)[:1] == [tokenizer.bos_token_id]
    return bos == "yes"


def _ids_of_a_word(tokenizer: PreTrainedTokenizerBase, **options: bool) -> list[int]:
    """Ids of a word, or of no text where a tokenizer without an unknown token cannot spell that word."""
    try:
        return tokenizer("text", **options)["input_ids"]
    except Exception:  # the library raises no other
        return tokenizer("", **options)["input_ids"]


def say_bos(tokenizer: PreTrainedTokenizerBase, bos: bool) -> str:
    """What documents begin with, and what else the tokenizer itself would begin them with, which is left out."""
    front, plain = (_ids_of_a_word(tokenizer, add_special_tokens=own) for own in (True, False))
    begins = next((i for i in range(len(front)) if front[i : i + len(plain)] == plain), 0)
    left = tokenizer.convert_ids_to_tokens([i for i in front[:begins] if i != tokenizer.bos_token_id])
    said = f"documents begin with {tokenizer.bos_token if bos else 'no BOS token'}"
    if not left:
        return said
    return (
        f"{said}; left out is {' '.join(left)}, with which the tokenizer begins a text and which is not its bos_token"
    )


def as_text(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """A copy of the tokenizer that takes every text as text: no truncation, padding, dropout or special tokens.

    Its special tokens keep their ids under spellings that no text has. Not to look for them is not enough: their
    spellings are in the vocabulary of a Unigram or WordLevel model too, which may choose them. A single character (some
    take "!" for padding) stays what it is in a text.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["truncation"] = state["padding"] = state["post_processor"] = None
    state["model"].pop("dropout", None)  # of a BPE: its ids would differ from call to call
    special = {token["content"] for token in state["added_tokens"] if token["special"]}
    special |= set(tokenizer.all_special_tokens)
    if state["model"].get("byte_fallback"):  # the model itself looks up the tokens of bytes
        special -= {f"<0x{i:02X}>" for i in range(256)}
    hidden = {name: f"\uffff{k}\uffff" for k, name in enumerate(sorted(special)) if len(name) > 1}
    for token in state["added_tokens"]:
        token["content"] = hidden.get(token["content"], token["content"])
    model = state["model"]
    if isinstance(model["vocab"], list):  # Unigram: pairs of a piece and its score
        model["vocab"] = [[hidden.get(piece, piece), score] for piece, score in model["vocab"]]
    else:
        model["vocab"] = {hidden.get(piece, piece): i for piece, i in model["vocab"].items()}
    if model.get("unk_token") is not None:
        model["unk_token"] = hidden.get(model["unk_token"], model["unk_token"])
    if "merges" in model:
        model["merges"] = [pair for pair in _merges(state) if hidden.keys().isdisjoint((*pair, "".join(pair)))]
    fast = Tokenizer.from_str(json.dumps(state))
    fast.encode_special_tokens = True
    return fast


def _merges(state: dict[str, Any]) -> list[list[str]]:
    """The merges of a BPE as `tokenizers` writes it: pairs, or in older files pairs joined by a space."""
    return [pair if isinstance(pair, list) else pair.split(" ") for pair in state["model"]["merges"]]


def _batches(documents: Sequence[str], description: str) -> Iterator[list[str]]:
    iterator = iter(documents)
    with files.progress(total=len(documents), desc=description, unit="document") as bar:
        while batch := list(islice(iterator, _BATCH)):
            yield batch
            bar.update(len(batch))


def encode(
    tokenizer: PreTrainedTokenizerBase, documents: Sequence[str], bos: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Flat token ids of `documents`, each followed by the end-of-text token, and the index of each one's first token.

    With `bos` each document begins with the BOS token (blocks that are packed may then begin in mid-document, without
    one). Documents are text: the spelling of a special token in one is tokenized like any other, and what the tokenizer
    would truncate, pad, drop out or add by itself is left out. Ids are uint16 if the vocabulary fits, else uint32. Works
    a batch at a time: memory holds the ids and little else. Raises ParameterError for a text that it has no tokens for, not
    even an unknown one.
    """
    fast, dtype = as_text(tokenizer), np.uint16 if n_ids(tokenizer) <= 2**16 else np.uint32
    front, end = [tokenizer.bos_token_id] if bos else [], tokenizer.eos_token_id
    parts: list[np.ndarray] = []
    lengths: list[int] = []
    for batch in _batches(documents, "tokenizing"):
        try:
            encoded = [[*front, *e.ids, end] for e in fast.encode_batch_fast(batch, add_special_tokens=False)]
        except Exception as error:  # tokenizers has no other
            raise ParameterError(
                f"tokenizer: cannot tokenize these documents ({files.first_line(error)}); choose another, or mend its tokenizer.json"
            ) from error
        lengths += map(len, encoded)
        parts.append(np.concatenate([np.asarray(ids, dtype=dtype) for ids in encoded]))
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64) if lengths else np.zeros(0, np.int64)
    return np.concatenate(parts) if parts else np.zeros(0, dtype), starts


def taken_blocks(n: int, max_blocks: int, spread: bool = False) -> np.ndarray:
    """Numbers of the blocks taken of `n`: the first `max_blocks`, or with `spread` as many at even distances (0 takes all).

    >>> taken_blocks(10, 4), taken_blocks(10, 4, spread=True)
    (array([0, 1, 2, 3]), array([0, 2, 5, 7]))
    """
    k = min(n, max_blocks or n)
    return np.arange(k) * n // k if spread and k else np.arange(k)


def blocks(
    ids: np.ndarray,
    starts: np.ndarray,
    context: int,
    packing: bool,
    pad_token_id: int | None = None,
    max_blocks: int = 0,
    bos: bool = False,
    spread: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Training blocks: input ids and labels, both int64 [n, context], and the tokens of each block [n], None if packed.

    Takes the blocks that `taken_blocks` names. With `packing` documents follow one another and are cut into full
    blocks (the ragged tail is dropped); without it every document is one block, cut or filled to `context` at its end
    with `pad_token_id` (any id, for it is neither attended to nor a target), labels −100 there. A block's first token is
    no target (label −100), so a block has context − 1 targets at most; nor is, with `bos`, the beginning-of-text token
    that each document starts with: it is given, never predicted. Raises ParameterError if the text fills no block.
    """
    n = len(ids) // context if packing else len(starts)
    if n == 0:
        raise ParameterError(f"context: {context} tokens are more than the {len(ids):,} tokens of the split; lower it")
    taken = taken_blocks(n, max_blocks, spread)
    if packing:
        inputs = ids[: n * context].reshape(n, context)[taken].astype(np.int64)
        labels, lengths = inputs.copy(), None
        if bos:
            given = np.zeros(n * context, dtype=bool)
            given[starts[starts < given.size]] = True
            labels[given.reshape(n, context)[taken]] = IGNORE_INDEX
    else:
        starts, ends = starts[taken], np.append(starts[1:], len(ids))[taken]
        lengths = np.minimum(ends - starts, context)
        inputs = np.full((len(taken), context), pad_token_id or 0, dtype=np.int64)
        labels = np.full((len(taken), context), IGNORE_INDEX, dtype=np.int64)
        for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
            inputs[row, :length] = labels[row, :length] = ids[start : start + length]
    labels[:, 0] = IGNORE_INDEX
    return inputs, labels, lengths


def spell(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int] | np.ndarray) -> list[str]:
    """What each of `ids` adds to a text, readable: as `decode` gives it, with its leading space and without its markers.

    The space before a word shows where SentencePiece's ▁ or WordPiece's missing ## stand for it, a byte that is no
    character alone shows as its value, <E5>. "" where no token has the id.
    """
    tokens = map(tokenizer.backend_tokenizer.id_to_token, map(int, ids))
    return [
        _with_bytes(token, text) if token and "\ufffd" in text else text
        for token, text in zip(tokens, _texts(tokenizer, ids), strict=True)
    ]


def _with_bytes(token: str, text: str) -> str:
    if re.fullmatch("<0x[0-9A-F]{2}>", token):  # byte fallback
        return f"<{token[3:5]}>"
    if not set(token) <= _BYTE_OF.keys():
        return text
    escaped = bytes(_BYTE_OF[c] for c in token).decode("utf-8", "surrogateescape")
    return "".join(f"<{ord(c) - 0xDC00:02X}>" if "\udc80" <= c <= "\udcff" else c for c in escaped)


def _texts(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int] | np.ndarray) -> list[str]:
    """What each token adds to a text after a letter: so that the tokenizer's own decoder tells a marker from a character."""
    fast, added = tokenizer.backend_tokenizer, tokenizer.added_tokens_decoder
    decoder, rules = fast.decoder, f"{fast.pre_tokenizer} {fast.normalizer}"
    if decoder is None and isinstance(fast.model, models.WordPiece):
        decoder = decoders.WordPiece(prefix=fast.model.continuing_subword_prefix, cleanup=False)
    elif decoder is None and ("ByteLevel" in rules or "Metaspace" in rules):
        decoder = decoders.ByteLevel() if "ByteLevel" in rules else decoders.Metaspace()

    def text(i: int) -> str:
        token = fast.id_to_token(i)
        if token is None or decoder is None or i in added:
            return token or ""
        return decoder.decode(["a", token])[1:]

    return [text(int(i)) for i in ids]


def token_kinds(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The kind of every id from 0 to `n_ids` − 1, from what its token adds to a text alone: one of `KINDS`.

    A *word start* is letters (apostrophes and hyphens inside allowed) after a word boundary: a leading space, or what
    the tokenizer writes for it; a *word piece* is letters without one, which continue a word or follow punctuation.
    *Unspaced letters* are of scripts written without spaces between words (Chinese, Japanese, Thai, …): whether one
    starts a word cannot be told. Marks (vowel signs, viramas, accents) belong to the letter before, and are letters
    alone. *Number*: digits, with separators inside; *punctuation*: neither letters nor digits; *white space*: nothing
    else; *special*: special tokens, of which added tokens that are not special are none; *other*: mixtures, bytes that
    are no character alone, and ids without a token. A tokenizer that marks no boundary (white space split away) has no
    word starts: all its letters are word pieces; unless its types are whole words (WordLevel).
    """
    special = set(tokenizer.all_special_ids) | {i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    words = isinstance(tokenizer.backend_tokenizer.model, models.WordLevel)
    texts = _texts(tokenizer, range(n_ids(tokenizer)))
    return [
        "special" if i in special else _kind(text, words or text[:1].isspace()) if text else "other"
        for i, text in enumerate(texts)
    ]


def _kind(text: str, starts_word: bool) -> str:
    """The kind of a text by its Unicode categories."""
    core = text.strip()
    if not core:
        return "white space"
    if "\ufffd" in core:
        return "other"
    classes = ""  # one class per character: Letter, Unspaced letter, Number, Separator, Punctuation
    for c in core:
        category, name = unicodedata.category(c), unicodedata.name(c, "")
        mark = category in ("Mn", "Mc") and not name.startswith("VARIATION SELECTOR")
        if classes and (category[0] == "M" or category == "Cf"):  # joiners (Cf) stand inside words and emoji
            classes += classes[-1]
        elif c.isalpha() or mark:
            classes += "U" if _UNSPACED.match(name) else "L"
        else:
            classes += "N" if c.isnumeric() else "S" if c in "'’.,:-" else "P"
    if not set(classes) & set("LUN"):
        return "punctuation"
    if re.fullmatch("[LU]+(S[LU]+)*", classes):
        return "unspaced letters" if "U" in classes else "word start" if starts_word else "word piece"
    return "number" if re.fullmatch("N+(SN+)*", classes) else "other"


def bpe_sizes(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """The smallest and the largest number of types (special tokens apart) that a BPE trained here has been through.

    The smallest is its alphabet, before the first merge; the largest is what it learnt, which is less than it was asked
    for if the documents ran out of merges.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    types = state["model"]["vocab"].keys() - set(SPECIAL_TOKENS.values())
    return len(types - {"".join(pair) for pair in _merges(state)}), len(types)


def _say_if_ended_early(n_types: int, vocab_size: int) -> None:
    if n_types < vocab_size:
        print(f"the BPE ended early: no pair is left to merge after {n_types:,} of the {vocab_size:,} types asked for")


def truncated(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> PreTrainedTokenizerBase:
    """The BPE of `vocab_size` learnt types from which a larger one was grown: its first merges, exactly.

    A BPE adds one type per merge, in order, so that the smaller vocabulary is a prefix of the larger. Raises
    ParameterError if `vocab_size` is none of its `bpe_sizes`.
    """
    smallest, largest = bpe_sizes(tokenizer)
    if not smallest <= vocab_size <= largest:
        raise ParameterError(
            f"vocab_size: {vocab_size:,} is no size of this BPE, which grew from {smallest:,} characters to {largest:,} "
            "types; choose one between them"
        )
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    n = vocab_size + len(SPECIAL_TOKENS)
    vocab = {token: i for token, i in state["model"]["vocab"].items() if i < n}
    merges = [pair for pair in _merges(state) if "".join(pair) in vocab]
    state["model"]["vocab"], state["model"]["merges"] = vocab, merges
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)), clean_up_tokenization_spaces=False, **SPECIAL_TOKENS
    )


def low_frequency_shares(
    p: TokenizationParams, corpus: TokenizedCorpus, vocab_sizes: Sequence[int], share: float
) -> pd.DataFrame:
    """Share of the vocabulary that is low-frequency, for BPE vocabularies of several sizes (Figure 2b).

    Sizes that the corpus's BPE never had (see `bpe_sizes`) are left out, and named; ParameterError if none is left.
    Shares are of the types that occur in the text: bytes that never do would make small vocabularies look rare.
    A type is low-frequency here if it lies outside the most frequent types that together cover `share` of the tokens
    (a percentile of the types' own counts would give the same share at every size). Columns: vocab_size, n_tokens,
    low_frequency, below_percentile (share at or below the 100·`share`-th percentile of the counts of the largest
    vocabulary, which makes it `share` there by construction). The text is the training split, decoded from its ids, at
    most 5,000 documents of it; kept in the corpus's cache, for it takes a while.
    """
    smallest, largest = bpe_sizes(corpus.tokenizer)
    if absent := [size for size in vocab_sizes if not smallest <= size <= largest]:
        vocab_sizes = [size for size in vocab_sizes if size not in absent]
        statement = f"this BPE grew from {smallest:,} characters to {largest:,} types and never had {absent} types"
        if not vocab_sizes:
            raise ParameterError(f"vocab_sizes: {statement}; choose sizes between them")
        print(f"{statement}: left out")
    cached = cache_dir(p) / "low_frequency_shares.json"
    key = {"vocab_sizes": list(vocab_sizes), "share": share, "of": "occurring types"}
    columns = ["vocab_size", "n_tokens", "low_frequency", "below_percentile"]
    if cached.exists() and (found := files.read_json(cached, rows=list)).get("key") == key:
        return pd.DataFrame(found["rows"], columns=columns)
    documents, limit = decoded(corpus, "train", 5000), None
    rows: list[dict[str, float]] = []
    for size in sorted(vocab_sizes, reverse=True):
        smaller = truncated(corpus.tokenizer, size)
        counts = frequency.token_counts(encode(smaller, documents)[0], n_ids(smaller))
        seen = counts[counts > 0]
        limit = np.percentile(seen, 100 * share) if limit is None else limit
        low = 1 - frequency.types_to_cover(seen, share) / len(seen)
        row = (size, int(counts.sum()), low, float((seen <= limit).mean()))
        rows.insert(0, dict(zip(columns, row, strict=True)))
    with suppress(files.RunError):  # the folder may be someone else's, or the disk full
        files.write_json(cached, {"key": key, "rows": rows})
    return pd.DataFrame(rows, columns=columns)


def decoded(corpus: TokenizedCorpus, part: Literal["train", "heldout"], n: int) -> list[str]:
    """The first `n` documents of a part of the corpus, from their ids: the texts themselves if the tokenizer loses nothing."""
    ids, starts = getattr(corpus, part), getattr(corpus, f"{part}_starts")
    ends = np.append(starts[1:], len(ids))[:n]
    first = int(corpus.meta.get("bos", False))
    pairs = zip(starts[:n] + first, ends - 1, strict=True)  # without BOS and end-of-text token
    return corpus.tokenizer.batch_decode([ids[a:b].tolist() for a, b in pairs])
