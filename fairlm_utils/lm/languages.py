"""Loss by language in bits per byte, of a corpus whose files are named after languages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from fairlm_utils import params
from fairlm_utils.frequency import SPLITS
from fairlm_utils.lm.corpora import documents_of, load_corpus
from fairlm_utils.lm.tokenization import TokenizedCorpus, as_text
from fairlm_utils.lm.words import word_losses
from fairlm_utils.params import CorpusParams, TokenizationParams

#: Written without spaces between words: tokens are counted by character alone.
UNSPACED = ("Japanese", "Chinese")


def language_files(p: CorpusParams) -> list[Path]:
    """The files named after `LANGUAGES` in the folders of splits of the corpus of `p`; none if it is another corpus.

    None either of blocks that are not packed, which do not say where a document's tokens lie.
    """
    if not getattr(p, "packing", True):
        return []
    return [f for name in params.LANGUAGES for f in Path(p.corpus_path or p.corpus).glob(f"*/{name}.jsonl")]


def by_language(
    p: TokenizationParams, corpus: TokenizedCorpus, losses: Mapping[str, np.ndarray], low: np.ndarray
) -> pd.DataFrame:
    """A row per split and language: its tokens, its types and its loss in bits per byte of UTF-8.

    `losses` are those of each split's flat ids (nats, NaN where an id is no target), `low` [vocabulary] says which types are
    low-frequency in the training blocks. Columns: split, language, share (of the split's bytes, copies counted), n_bytes
    (of the targets that spell text), bits_per_byte, tokens_per_word (empty without spaces), tokens_per_character (white
    space apart), n_types (that occur), low_frequency_types (share of those). A document that several languages have, not
    translated, is of none.
    """
    language_of: dict[str, str] = {}
    for file in language_files(p):
        for text in filter(None, documents_of(file, p)):
            language_of[text] = file.stem if language_of.get(text, file.stem) == file.stem else ""
    bos = bool(corpus.meta.get("bos", False))
    documents, tokenizer, rows = load_corpus(p), as_text(corpus.tokenizer), []
    for split, part in zip(SPLITS, ("train", "heldout"), strict=True):
        texts, ids, starts = getattr(documents, part), getattr(corpus, part), getattr(corpus, f"{part}_starts")
        own, ends = np.array([language_of.get(t, "") for t in texts]), np.append(starts[1:], len(ids))
        for language in (name for name in params.LANGUAGES if name in own):
            chosen = np.flatnonzero(own == language)
            mine = [texts[int(i)] for i in chosen]
            _, sums = word_losses(tokenizer, mine, ids, starts[chosen] + bos, losses[split])
            if not sums["text_bytes"]:  # beyond the blocks that were evaluated
                continue
            tokens = np.concatenate([ids[starts[i] + bos : ends[i] - 1] for i in chosen])  # without BOS and end of text
            types, words = np.unique(tokens), sum(len(t.split()) for t in mine)
            row = {
                "share": sum(len(t.encode()) for t in mine) / sum(len(t.encode()) for t in texts),
                "n_bytes": sums["text_bytes"],
                "bits_per_byte": sums["text_nats"] / np.log(2) / sums["text_bytes"],
                "tokens_per_word": np.nan if language in UNSPACED else len(tokens) / words,
                "tokens_per_character": len(tokens) / sum(len("".join(t.split())) for t in mine),
                "n_types": len(types),
                "low_frequency_types": low[types].mean(),
            }
            rows.append({"split": split, "language": language, **row})
    return pd.DataFrame(rows)
