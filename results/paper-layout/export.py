"""Write the tables of this folder from the IMDB reviews: candidate tokenizers, floors, counts and what counts predict.

python results/paper-layout/export.py --corpus-path FOLDER

FOLDER is a local copy of stanfordnlp/imdb; without it the data set is read from the Hub. Of the reviews' text only the
words of `PRINTED` are written.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from fairlm_utils.analysis.scale import count_ratio
from fairlm_utils.files import write_table
from fairlm_utils.frequency import IGNORE_INDEX, count_histogram
from fairlm_utils.lm.corpora import load_corpus
from fairlm_utils.lm.floor import memoriser_sums
from fairlm_utils.lm.tokenization import SPECIAL_TOKENS, as_text, blocks, encode, n_ids, train_bpe, truncated
from fairlm_utils.params import CorpusParams

FOLDER = Path(__file__).parent
N_TYPES = 32000
#: Words of the example review as the paper's web version prints their tokens (arxiv.org/html/2410.11985v1), by where they stand.
PRINTED = {
    "That's": "that|'s",
    "don't": "don|'t",
    "fixin": "fix|in",
    "mullets": "mull|ets",
    "vulnerable": "v|ulner|able",
    "'issues'.": "'|iss|ues|'.",
}
#: Pre-tokenizer and whether texts are lower-cased first.
CANDIDATES = [
    ("byte-level", True),
    ("byte-level", False),
    ("whitespace-punctuation", True),
    ("whitespace-punctuation", False),
    ("metaspace", True),
]
EXPONENTS = (0.3, 0.42, 0.5)
SIZES, CONTEXTS, N_REVIEWS = (1024, 2048, 4096, 8192, 16384, N_TYPES), (16, 32, 64, 128), (500, 1000, 2000, 4000, 8000)


def train_metaspace(documents: Sequence[str]) -> PreTrainedTokenizerFast:
    """A lower-casing BPE of `N_TYPES` and 5 special tokens that splits at white space only, as SentencePiece does."""
    tokenizer = Tokenizer(models.BPE(unk_token=SPECIAL_TOKENS["unk_token"]))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Metaspace()
    specials = list(SPECIAL_TOKENS.values())
    trainer = trainers.BpeTrainer(vocab_size=N_TYPES + len(specials), special_tokens=specials, show_progress=False)
    tokenizer.train_from_iterator(documents, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **SPECIAL_TOKENS)


def cuts(tokenizer: PreTrainedTokenizerBase, review: str) -> Iterator[tuple[str, str, str]]:
    """The paper's cut of each word of `PRINTED`, the tokenizer's, and where the tokens of the whole review begin and end.

    Pieces are joined by |, without the white space that a token may hold.
    """
    encoded = as_text(tokenizer).encode(review, add_special_tokens=False)
    normalizer = tokenizer.backend_tokenizer.normalizer
    for word, printed in PRINTED.items():
        start = review.index(word)
        spans = [review[a:b].strip() for a, b in encoded.offsets if a < start + len(word) and b > start]
        yield word, printed, "|".join(normalizer.normalize_str(s) if normalizer else s for s in spans)
    (first, *_, last), _ = encode(tokenizer, [review])
    begins, ends = tokenizer.convert_ids_to_tokens([int(first), int(last)])
    yield "first token", "not <s>", begins if begins == SPECIAL_TOKENS["bos_token"] else "not <s>"
    yield "last token", "</s>", ends


def tokenizer_table(
    tokenizers: dict[tuple[str, bool], PreTrainedTokenizerBase], documents: Sequence[str]
) -> pd.DataFrame:
    """Each candidate's cut of the example review beside the paper's: the only review that holds all of its words."""
    (review,) = [text for text in documents if all(word in text for word in PRINTED)]
    rows = [
        (pre_tokenizer, lowercase, n_ids(tokenizer), word, printed, cut, printed == cut)
        for (pre_tokenizer, lowercase), tokenizer in tokenizers.items()
        for word, printed, cut in cuts(tokenizer, review)
    ]
    return pd.DataFrame(rows, columns=["pre_tokenizer", "lowercase", "types", "word", "paper", "cut", "agrees"])


def layouts(
    tokenizer: PreTrainedTokenizerBase, reviews: Sequence[str], context: int
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Name, input ids and labels of the training sequences that reviews may be cut into."""
    ids, starts = encode(tokenizer, reviews)
    inputs, labels, lengths = blocks(ids, starts, context, packing=False)
    yield "first", inputs, labels
    ended = np.where(
        (lengths == context)[:, None] & (np.arange(context) == context - 1), tokenizer.eos_token_id, inputs
    )
    yield "first and </s>", ended, np.where(labels == IGNORE_INDEX, labels, ended)
    yield "packed", *blocks(ids, starts, context, packing=True)[:2]
    stops = np.append(starts[1:], len(ids))
    chunks = np.concatenate([np.arange(a, b, context) for a, b in zip(starts, stops, strict=True)])
    yield "chunks", *blocks(ids, chunks, context, packing=False)[:2]
    with_bos = np.insert(ids, starts, tokenizer.bos_token_id)
    yield "BOS and first", *blocks(with_bos, starts + np.arange(len(starts)), context, packing=False, bos=True)[:2]


def accuracy_bound(inputs: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> float:
    """The largest balanced accuracy of any predictor that reads a sequence from its beginning, whatever it was trained for.

    It names, after each beginning, the type whose targets there are the largest share of all its targets n_v (`counts`).
    """
    beginning, total = np.zeros(len(inputs), dtype=np.int64), 0.0
    for t in range(inputs.shape[1]):
        pair = beginning * len(counts) + inputs[:, t]
        is_target = labels[:, t] != IGNORE_INDEX
        pairs, n = np.unique(pair[is_target], return_counts=True)
        if len(pairs):
            _, first = np.unique(pairs // len(counts), return_index=True)
            total += np.maximum.reduceat(n / counts[pairs % len(counts)], first).sum()
        beginning = np.unique(pair, return_inverse=True)[1]
    return total / (counts > 0).sum()


def floor_row(sums: np.ndarray) -> dict[str, float]:
    """The ideal memoriser's means from `memoriser_sums` (losses in nats), and numbers and R(a) of the counts n_v."""
    n, loss, correct = sums[sums[:, 0] > 0].T
    return {
        "average_loss": loss.sum() / n.sum(),
        "token_balanced_loss": (loss / n).mean(),
        "token_balanced_accuracy": (correct / n).mean(),
        "n_targets": int(n.sum()),
        "n_types": len(n),
        "tokens_per_type": n.mean(),
        **{f"ratio_{a:g}": float(count_ratio(n, a)) for a in EXPONENTS},
    }


def panels(
    recovered: PreTrainedTokenizerBase, of_xl: PreTrainedTokenizerBase, imdb: Sequence[str], imdb_xl: Sequence[str]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Floors of every layout, and histograms of the counts n_v of "first" and "packed"."""
    floors, histograms = [], []
    for corpus, reviews, context, tokenizer, learnt_from in (
        ("imdb", imdb, 128, recovered, imdb),
        ("imdb-xl", imdb_xl, 64, recovered, imdb),
        ("imdb-xl", imdb_xl, 64, of_xl, imdb_xl),
    ):
        for layout, inputs, labels in layouts(tokenizer, reviews, context):
            sums = memoriser_sums(inputs, labels, n_ids(tokenizer))
            named = {"corpus": corpus, "tokenizer_reviews": len(learnt_from), "layout": layout, "context": context}
            bound = {"balanced_accuracy_bound": accuracy_bound(inputs, labels, sums[:, 0])}
            floors.append({**named, "n_sequences": len(inputs), **floor_row(sums), **bound})
            if layout in ("first", "packed"):
                counts = count_histogram(sums[:, 0].astype(int))
                histograms.append(pd.DataFrame(named, index=counts.index).join(counts))
    return pd.DataFrame(floors), pd.concat(histograms)


def ratio_table(tokenizer: PreTrainedTokenizerBase, reviews: Sequence[str]) -> pd.DataFrame:
    """R(a) and the floor for the first tokens of the first reviews, at several vocabularies: the first merges of the BPE."""
    rows = []
    for size in SIZES:
        smaller = truncated(tokenizer, size)
        sizes = (*N_REVIEWS, len(reviews)) if size == N_TYPES else N_REVIEWS
        ids, starts = encode(smaller, reviews[: max(sizes)])
        for context in CONTEXTS:
            inputs, labels, _ = blocks(ids, starts, context, packing=False)
            for n in sizes:
                sums = memoriser_sums(inputs[:n], labels[:n], n_ids(smaller))
                rows.append({"vocabulary": n_ids(smaller), "context": context, "n_reviews": n, **floor_row(sums)})
    return pd.DataFrame(rows)


def export(corpus_path: str) -> None:
    """Write the four tables."""
    imdb, imdb_xl = (load_corpus(CorpusParams(corpus=c, corpus_path=corpus_path)).train for c in ("imdb", "imdb-xl"))
    tokenizers = {
        (pre_tokenizer, lowercase): train_metaspace(imdb)
        if pre_tokenizer == "metaspace"
        else train_bpe(imdb, N_TYPES, pre_tokenizer, lowercase)
        for pre_tokenizer, lowercase in CANDIDATES
    }
    write_table(FOLDER / "tokenizers.csv", tokenizer_table(tokenizers, imdb))
    recovered = tokenizers["byte-level", True]
    floors, counts = panels(recovered, train_bpe(imdb_xl, N_TYPES, lowercase=True), imdb, imdb_xl)
    write_table(FOLDER / "floors.csv", floors.round(6))
    write_table(FOLDER / "counts.csv", counts)
    write_table(FOLDER / "ratios.csv", ratio_table(recovered, imdb).round(6))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus-path", default="", help="local copy of stanfordnlp/imdb; without it, the Hub")
    export(parser.parse_args().corpus_path)
