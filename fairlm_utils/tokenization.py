"""Tokenizers, token ids and what the counts of a vocabulary look like."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from fairlm_utils import runs
from fairlm_utils.corpora import CorpusError, files_state, load_corpus, source_state
from fairlm_utils.params import CorpusParams, ParameterError, TokenizationParams, first_line
from fairlm_utils.token_loss import IGNORE_INDEX

SPECIAL_TOKENS = {
    "pad_token": "<pad>",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
}
#: Kinds of tokens, see `token_kinds`.
KINDS = ("word start", "word piece", "number", "punctuation", "white space", "special", "other")
#: Written to with every change of how documents become ids, so that older caches are not read.
_FORMAT = 1
_BATCH = 512


@dataclass(frozen=True)
class TokenizedCorpus:
    """Token ids of both splits: documents joined in order, each ending in the end-of-text token.

    `train`, `heldout` are flat arrays of ids, `*_starts` the index of each document's first token, `meta` says what
    the documents are (description, fingerprint, digest of the ids, numbers of documents, characters, tokens).
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
    fields = [*CorpusParams.model_fields, "tokenizer", "vocab_size", "pre_tokenizer"]
    made_from = {name: getattr(p, name) for name in fields if name != "corpus_path"}
    sources = [source_state(p)]
    if p.tokenizer != "bpe" and Path(p.tokenizer).exists():  # a folder may hold another tokenizer tomorrow
        sources.append(files_state(Path(p.tokenizer)))
    digest = hashlib.sha256(json.dumps([made_from, *sources, _FORMAT], sort_keys=True).encode()).hexdigest()
    return runs.within(p.runs_dir, "tokenized", f"{Path(p.corpus).stem}-{digest[:12]}")


def tokenize_corpus(p: TokenizationParams) -> TokenizedCorpus:
    """The tokenized corpus of `p`, from its cache in `runs_dir/tokenized`, made if it is not there.

    Raises CorpusError or ParameterError if the corpus or tokenizer cannot be had. A second process that needs the same
    corpus waits for the first.
    """
    directory = cache_dir(p)
    if not (directory / "meta.json").exists():
        with runs.locked(directory):
            if not (directory / "meta.json").exists():
                print(f"no tokenized {p.corpus} in {p.runs_dir}: making it now")
                _make(p, directory)
    return _load(directory)


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
    except (CorpusError, ParameterError, runs.RunError):
        return None


def _read_meta(directory: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """`meta` of a tokenized corpus, with a digest of its ids, and the digests of its files."""
    meta = runs.read_json(directory / "meta.json")
    sha256 = meta.pop("sha256", {})
    if ids := [sha256[name] for name in ("train.npy", "heldout.npy") if name in sha256]:
        meta["ids"] = hashlib.sha256(json.dumps([*ids, meta.get("vocabulary")]).encode()).hexdigest()
    return meta, sha256


def _make(p: TokenizationParams, directory: Path) -> None:
    corpus = load_corpus(p)
    tokenizer = (
        train_bpe(corpus.train, p.vocab_size, p.pre_tokenizer) if p.tokenizer == "bpe" else load_tokenizer(p.tokenizer)
    )
    tokenizer.save_pretrained(directory / "tokenizer")
    meta = {
        "corpus": corpus.name,
        "description": corpus.description,
        "fingerprint": corpus.fingerprint,
        "vocabulary": len(tokenizer),
    }
    for split, documents in (("train", corpus.train), ("heldout", corpus.heldout)):
        ids, starts = encode(tokenizer, documents)
        for name, array in ((split, ids), (f"{split}_starts", starts)):
            with runs.atomic_path(directory / f"{name}.npy") as temporary, open(temporary, "wb") as file:
                np.save(file, array)
        meta[split] = {"n_documents": len(starts), "n_characters": sum(map(len, documents)), "n_tokens": len(ids)}
    meta["sha256"] = runs.digests(directory, ["*.npy", "tokenizer/*"])
    runs.write_json(directory / "meta.json", meta)  # last: it says that the others are whole


def _load(directory: Path) -> TokenizedCorpus:
    meta, sha256 = _read_meta(directory)
    runs.verify(directory, sha256, "remove its folder to tokenize again")
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory / "tokenizer", trust_remote_code=False)
        arrays = {
            name: np.load(directory / f"{name}.npy", allow_pickle=False)
            for name in ("train", "heldout", "train_starts", "heldout_starts")
        }
    except (OSError, ValueError) as error:
        raise runs.RunError(
            f"{directory}: the tokenized corpus cannot be read ({error}); remove the folder to make it again"
        ) from error
    return TokenizedCorpus(tokenizer=tokenizer, **arrays, meta=meta)


def train_bpe(documents: Sequence[str], vocab_size: int, pre_tokenizer: str = "byte-level") -> PreTrainedTokenizerFast:
    """A BPE of `vocab_size` types learnt from `documents`, and 5 special tokens with the ids 0 to 4.

    "byte-level" works on bytes, without a prefix space, and knows every text; "whitespace-punctuation" splits at white
    space and punctuation as the paper's example shows, and maps characters it has not learnt to <unk>. Learns fewer
    types if the documents run out of merges. Raises ParameterError if their characters alone are more than `vocab_size`.
    """
    specials = list(SPECIAL_TOKENS.values())
    byte_level = pre_tokenizer == "byte-level"
    tokenizer = Tokenizer(models.BPE(unk_token=None if byte_level else SPECIAL_TOKENS["unk_token"]))
    if byte_level:
        tokenizer.pre_tokenizer, tokenizer.decoder = (
            pre_tokenizers.ByteLevel(add_prefix_space=False),
            decoders.ByteLevel(),
        )
    else:
        tokenizer.normalizer = normalizers.Replace(Regex(r"\s+"), " ")
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
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
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **SPECIAL_TOKENS)


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """A pre-trained tokenizer from the Hub or a folder, without remote code.

    Raises ParameterError if it cannot be read, is not a fast one or has no end-of-text token.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # transformers raises many types here
        raise ParameterError(
            f"tokenizer: {name!r} cannot be read ({first_line(error)}); use bpe, a folder or a Hub id, "
            "whose own code is never run"
        ) from error
    if not tokenizer.is_fast or tokenizer.eos_token_id is None:
        raise ParameterError(f"tokenizer: {name!r} is not a fast tokenizer with an end-of-text token; choose another")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.chat_template = None  # not used here, and saved under names that its folder chooses
    return tokenizer


def _batches(documents: Sequence[str], description: str) -> Iterator[list[str]]:
    iterator = iter(documents)
    with runs.progress(total=len(documents), desc=description, unit="document") as bar:
        while batch := list(islice(iterator, _BATCH)):
            yield batch
            bar.update(len(batch))


def encode(tokenizer: PreTrainedTokenizerBase, documents: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Flat token ids of `documents`, each followed by the end-of-text token, and the index of each one's first token.

    Ids are uint16 if the vocabulary fits, else uint32. Works a batch at a time: memory holds the ids and little else.
    """
    fast, end = tokenizer.backend_tokenizer, tokenizer.eos_token_id
    dtype = np.uint16 if len(tokenizer) <= 2**16 else np.uint32
    parts, lengths = [], []
    for batch in _batches(documents, "tokenizing"):
        encoded = [e.ids for e in fast.encode_batch_fast(batch, add_special_tokens=False)]
        lengths += [len(ids) + 1 for ids in encoded]
        parts.append(np.concatenate([np.asarray([*ids, end], dtype=dtype) for ids in encoded]))
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64) if lengths else np.zeros(0, np.int64)
    return np.concatenate(parts) if parts else np.zeros(0, dtype), starts


def blocks(
    ids: np.ndarray, starts: np.ndarray, context: int, packing: bool, pad_token_id: int, max_blocks: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Training blocks: input ids and labels, both int64 [n, context]; the first `max_blocks` of them (0 takes all).

    With `packing` documents follow one another and are cut into full blocks (the ragged tail is dropped); without it
    every document is one block, cut or padded to `context`, labels −100 at padding. A block's first token is no target
    (label −100), so a block has context − 1 targets at most. Raises ParameterError if the text fills no block.
    """
    if packing:
        n = min(len(ids) // context, max_blocks or len(ids))
        if n == 0:
            raise ParameterError(
                f"context: {context} tokens are more than the {len(ids):,} tokens of the split; lower it"
            )
        inputs = ids[: n * context].reshape(n, context).astype(np.int64)
        labels = inputs.copy()
    else:
        ends = np.append(starts[1:], len(ids))[: max_blocks or None]
        starts = starts[: max_blocks or None]
        inputs = np.full((len(starts), context), pad_token_id, dtype=np.int64)
        labels = np.full((len(starts), context), IGNORE_INDEX, dtype=np.int64)
        for row, (start, end) in enumerate(zip(starts, ends, strict=True)):
            document = ids[start : min(end, start + context)]
            inputs[row, : len(document)] = labels[row, : len(document)] = document
    labels[:, 0] = IGNORE_INDEX
    return inputs, labels


def token_kinds(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The kind of every type of the vocabulary, by id, from its spelling alone: one of `KINDS`.

    A *word start* is letters (apostrophes and hyphens inside allowed) after a word boundary: a leading space or its
    mark Ġ or ▁; a *word piece* is letters without one, which continue a word or follow punctuation. *Number*: digits,
    with separators inside; *punctuation*: neither letters nor digits; *white space*: nothing else; *special*: markers
    of the tokenizer, added tokens among them; *other*: mixtures, and bytes that are no character alone. A tokenizer
    that marks no boundary (white space split away) has no word starts: all its letters are word pieces.
    """
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    ids = range(len(tokenizer))
    raw = tokenizer.convert_ids_to_tokens(list(ids))
    texts = [tokenizer.decode([i], clean_up_tokenization_spaces=False) for i in ids]
    return [
        "special" if i in special else _kind(text, text[:1].isspace() or (token or "")[:1] in ("Ġ", "▁"))
        for i, token, text in zip(ids, raw, texts, strict=True)
    ]


def _kind(text: str, starts_word: bool) -> str:
    core = text.strip().removeprefix("##").removesuffix("</w>")
    if not core:
        return "white space"
    if "\ufffd" in core:
        return "other"
    if not any(map(str.isalnum, core)):
        return "punctuation"
    joined = re.sub(r"(?<=\w)['’.,:-](?=\w)", "", core)
    if all(c.isalpha() or unicodedata.category(c).startswith("M") for c in joined):
        return "word start" if starts_word else "word piece"
    return "number" if all(map(str.isnumeric, joined)) else "other"


def token_counts(ids: np.ndarray, vocab_size: int) -> np.ndarray:
    """Occurrences of every token type in flat ids: array [vocabulary]."""
    return np.bincount(ids, minlength=vocab_size)


def target_counts(labels: np.ndarray, vocab_size: int) -> np.ndarray:
    """n_v: occurrences of every token type as a *target*: labels [n, context] but their first column, −100 left out."""
    targets = labels[:, 1:]
    return token_counts(targets[targets != IGNORE_INDEX], vocab_size)


def rank_frequency(counts: np.ndarray, n_points: int = 400) -> pd.DataFrame:
    """The rank–frequency curve (Figure 2a): columns rank, count, at about `n_points` ranks evenly spaced on a log scale."""
    ordered = np.sort(counts[counts > 0])[::-1]
    ranks = np.unique(np.geomspace(1, len(ordered), n_points).round().astype(int))
    return pd.DataFrame({"rank": ranks, "count": ordered[ranks - 1]})


def coverage(counts: np.ndarray, top_shares: np.ndarray | Sequence[float]) -> np.ndarray:
    """Share of all tokens covered by the most frequent types, for each share of the vocabulary in `top_shares`.

    >>> coverage(np.array([6, 2, 1, 1]), [0.25, 0.5, 1.0]).tolist()
    [0.6, 0.8, 1.0]
    """
    cumulative = np.concatenate([[0], np.cumsum(np.sort(counts)[::-1])])
    n = np.round(np.asarray(top_shares) * len(counts)).astype(int)
    return cumulative[n] / cumulative[-1]


def types_to_cover(counts: np.ndarray, share: float) -> int:
    """Number of most frequent types that together cover `share` of all tokens.

    >>> types_to_cover(np.array([6, 2, 1, 1]), 0.7)
    2
    """
    cumulative = np.cumsum(np.sort(counts)[::-1])
    return int(np.searchsorted(cumulative, share * cumulative[-1] - 1e-9) + 1)


def truncated(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> PreTrainedTokenizerBase:
    """The BPE of `vocab_size` learnt types from which a larger one was grown: its first merges, exactly.

    A BPE adds one type a merge, in order, so that the smaller vocabulary is a prefix of the larger.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    n = vocab_size + len(SPECIAL_TOKENS)
    vocab = {token: i for token, i in state["model"]["vocab"].items() if i < n}
    merges = [m if isinstance(m, list) else m.split(" ") for m in state["model"]["merges"]]
    state["model"]["vocab"], state["model"]["merges"] = vocab, [m for m in merges if "".join(m) in vocab]
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)), clean_up_tokenization_spaces=False, **SPECIAL_TOKENS
    )


def low_frequency_shares(
    p: TokenizationParams, corpus: TokenizedCorpus, vocab_sizes: Sequence[int], share: float
) -> pd.DataFrame:
    """Share of the vocabulary that is low-frequency, for BPE vocabularies of several sizes (Figure 2b).

    Shares are of the types that occur in the text: bytes that never do would make small vocabularies look rare.
    A type is low-frequency here if it lies outside the most frequent types that together cover `share` of the tokens
    (a percentile of the types' own counts would give the same share at every size). Columns: vocab_size, n_tokens,
    low_frequency, below_percentile (share at or below the 100·`share`-th percentile of the counts of the largest
    vocabulary, which makes it `share` there by construction). The text is the training split, decoded from its ids, at
    most 5,000 documents of it; kept in the corpus's cache, for it takes a while.
    """
    cached = cache_dir(p) / "low_frequency_shares.json"
    key = {"vocab_sizes": list(vocab_sizes), "share": share, "of": "occurring types"}
    columns = ["vocab_size", "n_tokens", "low_frequency", "below_percentile"]
    if cached.exists() and (found := runs.read_json(cached))["key"] == key:
        return pd.DataFrame(found["rows"], columns=columns)
    documents, limit = _decoded(corpus, 5000), None
    rows: list[dict[str, float]] = []
    for size in sorted(vocab_sizes, reverse=True):
        smaller = truncated(corpus.tokenizer, size)
        counts = token_counts(encode(smaller, documents)[0], len(smaller))
        seen = counts[counts > 0]
        limit = np.percentile(seen, 100 * share) if limit is None else limit
        low = {
            "low_frequency": 1 - types_to_cover(seen, share) / len(seen),
            "below_percentile": float((seen <= limit).mean()),
        }
        rows.insert(0, {"vocab_size": size, "n_tokens": int(counts.sum()), **low})
    runs.write_json(cached, {"key": key, "rows": rows})
    return pd.DataFrame(rows, columns=columns)


def _decoded(corpus: TokenizedCorpus, n: int) -> list[str]:
    ends = np.append(corpus.train_starts[1:], len(corpus.train))[:n]
    pairs = zip(corpus.train_starts[:n], ends - 1, strict=True)  # without the end-of-text token
    return corpus.tokenizer.batch_decode([corpus.train[a:b].tolist() for a, b in pairs])
