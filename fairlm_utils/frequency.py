"""Counts of token types, n_v: frequency bins and classes, coverage, and the unigram that follows from them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

#: Label of a position without a target, and the frequency bin of types that never occur.
IGNORE_INDEX, UNSEEN = -100, "0"
#: The texts that a model is evaluated on, never mixed, as tables and sentences spell them; `train` and `heldout` in other names.
SPLITS = ("training", "held-out")


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


def count_histogram(n_train: np.ndarray | pd.Series) -> pd.DataFrame:
    """How many types have each training count n_v ≥ 1: columns n_train, n_types. Every mean of n_v follows from it.

    >>> count_histogram(np.array([0, 1, 4, 1])).to_numpy().tolist()
    [[1, 2], [4, 1]]
    """
    counts = np.asarray(n_train)
    values, n_types = np.unique(counts[counts > 0], return_counts=True)
    return pd.DataFrame({"n_train": values, "n_types": n_types})


def bin_index(counts: np.ndarray | pd.Series) -> np.ndarray:
    """Index k of the frequency bin [3^k, 3^(k+1)) that holds each count; −1 for a count of 0 (paper, Figures 4 and 5).

    >>> bin_index(np.array([0, 1, 2, 3, 8, 9, 729])).tolist()
    [-1, 0, 0, 1, 1, 2, 6]
    """
    given, counts = counts, np.asarray(counts, dtype=np.int64)
    if (counts < 0).any() or (counts != np.asarray(given)).any():
        raise ValueError(
            "counts are negative or not whole; n_v counts occurrences, of which relative frequencies are none"
        )
    edges = 3 ** np.arange(40, dtype=np.int64)  # integer powers: floating-point logarithms misplace exact powers of 3
    return np.searchsorted(edges, counts, side="right") - 1


def bin_low(index: int) -> int:
    """Lowest count of frequency bin `index`: 3^index, and 0 for the bin of unseen types."""
    return 3**index if index >= 0 else 0


def bin_label(index: int) -> str:
    """Label of frequency bin `index`, derived from its edges.

    >>> [bin_label(k) for k in (-1, 0, 1, 2, 7)]
    ['0', '1–2', '3–8', '9–26', '2,187–6,560']
    """
    return UNSEEN if index < 0 else f"{3**index:,}–{3 ** (index + 1) - 1:,}"


def frequency_bins(counts: np.ndarray | pd.Series) -> pd.DataFrame:
    """Number of types and of tokens in each powers-of-3 frequency bin: columns bin, bin_low, n_types, n_tokens."""
    counts = np.asarray(counts)
    table = pd.Series(counts).groupby(bin_index(counts)).agg(n_types="size", n_tokens="sum")
    table.insert(0, "bin", [bin_label(k) for k in table.index])
    table.insert(1, "bin_low", [bin_low(k) for k in table.index])
    return table.reset_index(drop=True)


def low_frequency(n_train: np.ndarray | pd.Series, percentile: float) -> np.ndarray:
    """Which token types are low-frequency: n_v at or below the given percentile of the counts of types with n_v ≥ 1.

    Source: the paper splits low from high at the 95th percentile. Types never seen (n_v = 0) are low-frequency too.
    """
    counts = np.asarray(n_train)
    if not (counts > 0).any():
        raise ValueError("no token type occurs; frequency classes need counts")
    return counts <= np.percentile(counts[counts > 0], percentile)


def unigram_loss(counts: np.ndarray | pd.Series) -> np.ndarray:
    """What frequency alone explains of each type's loss: −log π_v in nats, π_v = (n_v + 1) / Σ_u (n_u + 1), [types].

    Counts are those of the vocabulary in a reference text; adding one leaves no type without probability.

    >>> np.exp(-unigram_loss(np.array([2, 0, 0]))).round(6).tolist()
    [0.6, 0.2, 0.2]
    """
    smoothed = np.asarray(counts, dtype=np.float64) + 1
    return np.log(smoothed.sum()) - np.log(smoothed)
