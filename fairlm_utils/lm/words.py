"""Losses by word and by byte: what is comparable between models whose tokenizers differ.

A *word* is a maximal run of characters that are not white space; the white space before it belongs to it. Its loss is the
sum over its pieces, −log of the probability a model gives to the word's tokens after what precedes them (nats).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import pandas as pd
from tokenizers import Tokenizer

from fairlm_utils import files, frequency
from fairlm_utils.lm.tokenization import TokenizedCorpus, as_text, decoded


def unspelled(text: str, offsets: np.ndarray) -> np.ndarray:
    """Which characters of a document no token has, white space aside [characters]: those that a tokenizer drops.

    A BPE of characters without an unknown token drops what it never saw, and normalisers drop control characters.
    """
    change = np.zeros(len(text) + 1, dtype=np.int64)
    np.add.at(change, offsets[:, 0], 1)
    np.subtract.at(change, offsets[:, 1], 1)
    dropped = np.cumsum(change)[:-1] == 0
    for i in np.flatnonzero(dropped):
        dropped[i] = not text[i].isspace()
    return dropped


def word_of_each_token(
    text: str, offsets: np.ndarray, dropped: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Words of a document: start and end in characters [words, 2], word of each token [tokens], broken [words].

    `offsets` [tokens, 2] are the tokens' first character and the one after their last. A token belongs to the word of which
    it has letters, or, if it is white space alone, to the next (the number of words: to none). A word is *broken* if a token
    of it reaches into another, or if it has characters that no token has, `dropped` of `unspelled`: then it has no loss of
    its own.
    """
    spans = np.array([m.span() for m in re.finditer(r"\S+", text)], dtype=np.int64).reshape(-1, 2)
    first = np.searchsorted(spans[:, 1], offsets[:, 0], side="right")
    last = np.searchsorted(spans[:, 0], offsets[:, 1], side="left") - 1
    broken = np.zeros(len(spans), dtype=bool)
    for i in np.flatnonzero(last > first):
        broken[first[i] : last[i] + 1] = True
    n_dropped = np.concatenate([[0], np.cumsum(dropped)])
    broken |= n_dropped[spans[:, 1]] > n_dropped[spans[:, 0]]
    return spans, first, broken


def bytes_of_each_token(text: str, offsets: np.ndarray, dropped: np.ndarray) -> np.ndarray:
    """UTF-8 bytes that each token adds to those before it [tokens]: a character in several pieces counts with the first.

    White space that no token has counts with the token after it; characters that are `dropped` (`unspelled`) do not count.
    """
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    widths = 1 + (codes > 0x7F) + (codes > 0x7FF) + (codes > 0xFFFF)
    widths = np.where(dropped, 0, widths)
    ends = np.concatenate([[0], np.cumsum(widths)])[np.maximum.accumulate(offsets[:, 1])]
    return np.diff(ends, prepend=0)


def word_losses(
    tokenizer: Tokenizer, documents: Sequence[str], ids: np.ndarray, starts: np.ndarray, losses: np.ndarray
) -> tuple[pd.DataFrame, dict[str, int | float]]:
    """Loss of every word whose pieces are all targets: a row per occurrence, and totals over the tokens of the text.

    `ids` are the flat ids of `documents`, `starts` the index of each one's first token of text, `losses` those of the ids
    from the first on (nats, NaN where an id is no target or was not evaluated, as what lies beyond its end). Columns: document,
    start (character of the document), position (of its first piece in `ids`), word, loss, n_pieces. Totals: n_words and
    n_words_left_out (cut by a block's edge, with a token in common with another, or not wholly spelled by its tokens),
    text_nats and text_bytes of all targets that spell text.

    Raises ValueError if the tokenizer's offsets are of other ids.
    """
    n_documents, ends = int(np.searchsorted(starts, len(losses), side="left")), np.append(starts[1:], len(ids))
    found: dict[str, list[np.ndarray]] = {c: [] for c in ("document", "start", "position", "loss", "n_pieces")}
    spelled: list[str] = []
    left_out, nats, n_bytes = 0, 0.0, 0
    with files.progress(total=n_documents, desc="words", unit="document") as bar:
        for document in range(n_documents):
            text, start = documents[document], starts[document]
            bar.update()
            if np.isnan(losses[start : ends[document]]).all():
                continue
            encoding = tokenizer.encode(text, add_special_tokens=False)
            offsets = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
            if not np.array_equal(ids[start : start + len(offsets)], encoding.ids):
                raise ValueError(
                    f"document {document} has other ids with offsets; the tokenizer does not repeat itself"
                )
            own = np.full(len(offsets), np.nan)
            evaluated = losses[start : start + len(offsets)]
            own[: len(evaluated)] = evaluated
            targets = ~np.isnan(own)
            nats += float(own[targets].sum())
            dropped = unspelled(text, offsets)
            n_bytes += int(bytes_of_each_token(text, offsets, dropped)[targets].sum())
            spans, word, broken = word_of_each_token(text, offsets, dropped)
            n = len(spans) + 1
            n_pieces = np.bincount(word, minlength=n)[:-1]
            total = np.bincount(word, weights=own, minlength=n)[:-1]  # NaN if a piece is no target
            touched = np.bincount(word, weights=targets, minlength=n)[:-1] > 0
            kept = np.flatnonzero(touched & ~broken & ~np.isnan(total))
            reached = offsets[targets, 1].max(initial=0)
            untold = broken & (n_pieces == 0) & (spans[:, 0] < reached)
            left_out += int((touched | untold).sum()) - len(kept)
            found["document"].append(np.full(len(kept), document))
            found["start"].append(spans[kept, 0])
            found["position"].append(start + np.searchsorted(word, kept))
            found["loss"].append(total[kept])
            found["n_pieces"].append(n_pieces[kept])
            spelled += [text[a:b] for a, b in spans[kept]]
    columns = {name: np.concatenate(parts) if parts else np.zeros(0) for name, parts in found.items()}
    words = pd.DataFrame(columns).assign(word=pd.Series(spelled, dtype="str"))
    return words, {"n_words": len(words), "n_words_left_out": left_out, "text_nats": nats, "text_bytes": n_bytes}


def word_counts(documents: Iterable[str], words: Iterable[str]) -> dict[str, int]:
    """Occurrences of each of `words` in the documents; memory holds these words alone, whatever the documents hold."""
    counts = dict.fromkeys(words, 0)
    for text in documents:
        for word in text.split():
            if word in counts:
                counts[word] += 1
    return counts


def given_back(corpus: TokenizedCorpus, part: Literal["train", "heldout"]) -> list[str]:
    """The documents of a part of the corpus, from their ids. Raises RunError if those spell more or fewer characters than they have."""
    texts, wanted = decoded(corpus, part, len(getattr(corpus, f"{part}_starts"))), corpus.meta[part]["n_characters"]
    if (found := sum(map(len, texts))) != wanted:
        raise files.RunError(
            f"by_word: the tokenizer does not give the text back (its ids spell {found:,} characters of {wanted:,}); set "
            "by_word: false"
        )
    return texts


def by_frequency(corpus: TokenizedCorpus, split: str, losses: np.ndarray, n_train_ids: int) -> pd.DataFrame:
    """Loss by word-frequency bin (`by_word_bin`, nats) of a run's packed blocks of `split`, from token ids alone.

    `losses` [blocks, context] are those of `evaluation.token_sums`. A word's frequency is its count in the training documents
    that begin in the first `n_train_ids` ids. So it is one of the text, the same whatever the tokenizer. Raises RunError if
    the ids do not give the text back.
    """
    part: Literal["train", "heldout"] = "train" if split == "training" else "heldout"
    ids, starts = getattr(corpus, part), getattr(corpus, f"{part}_starts")
    texts = given_back(corpus, part)
    n_seen = int(np.searchsorted(corpus.train_starts, n_train_ids))
    seen = texts[:n_seen] if part == "train" else decoded(corpus, "train", n_seen)
    first = starts + bool(corpus.meta.get("bos", False))
    try:
        words, _ = word_losses(as_text(corpus.tokenizer), texts, ids, first, losses.reshape(-1))
    except ValueError as error:
        raise files.RunError(
            f"by_word: the tokenizer does not give the text back ({error}); set by_word: false"
        ) from error
    counts = word_counts(seen, words["word"].unique())
    return by_word_bin(words.assign(n_reference=words["word"].map(counts)))


def by_word_bin(words: pd.DataFrame) -> pd.DataFrame:
    """Loss per word, in nats, by powers-of-3 bin of the word's count in the reference text.

    `words` has a row per occurrence: word, n_reference, loss (sum over its pieces). Columns: bin, bin_low, n_words (distinct
    ones), n_occurrences, loss (mean over distinct words) and loss_occurrences (mean over occurrences).
    """
    types = words.groupby("word", sort=False).agg(
        n=("n_reference", "first"), loss=("loss", "mean"), size=("loss", "size")
    )
    total = types["loss"] * types["size"]
    groups = types.assign(total=total).groupby(frequency.bin_index(types["n"]))
    table = groups.agg(
        n_words=("size", "size"), n_occurrences=("size", "sum"), loss=("loss", "mean"), total=("total", "sum")
    )
    table = table.assign(loss_occurrences=table.pop("total") / table["n_occurrences"])
    table.insert(0, "bin", [frequency.bin_label(i) for i in table.index])
    table.insert(1, "bin_low", [frequency.bin_low(i) for i in table.index])
    return table.reset_index(drop=True)
