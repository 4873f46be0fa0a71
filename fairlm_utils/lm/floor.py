"""The lowest training loss any model can have, that of an ideal memoriser of the training blocks, and chance lines.

python -m fairlm_utils floor params/paper/openelm-270m-imdb.yaml      # print the floor of its training blocks
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from fairlm_utils import frequency
from fairlm_utils.frequency import IGNORE_INDEX, SPLITS
from fairlm_utils.lm.tokenization import n_ids, tokenize_corpus
from fairlm_utils.lm.training import Blocks, train_blocks
from fairlm_utils.params import TrainingParams


def memoriser_sums(input_ids: np.ndarray, labels: np.ndarray, vocab_size: int) -> np.ndarray:
    """Targets, loss (nats) and correctness summed by token type, of p(next | block so far) as counted over the blocks.

    No model that reads a block from its beginning can have a lower mean training loss, nor a higher training accuracy:
    blocks that begin alike must be told apart, and the first token by which they differ cannot be known. `input_ids`,
    `labels` [blocks, context] as `tokenization.blocks` makes them, labels −100 where there is no target. Returns float64
    [vocabulary, 3]. A target that is one of m equally frequent continuations counts 1/m as correct, for a model can name one.

    >>> blocks = np.array([[5, 1, 2], [5, 1, 3], [5, 1, 3], [6, 1, 2]])
    >>> labels = np.where(np.arange(3) == 0, -100, blocks)
    >>> memoriser_sums(blocks, labels, 7)[[1, 2, 3]].round(3).tolist()
    [[4.0, 0.0, 4.0], [2.0, 1.099, 1.0], [2.0, 0.811, 2.0]]
    """
    order = np.lexsort(input_ids.T[::-1])  # blocks that begin alike stand together, at every length
    sums = np.zeros((vocab_size, 3))
    starts = np.zeros(len(input_ids), dtype=bool)  # where blocks with another beginning start
    starts[:1] = True
    for t in range(input_ids.shape[1]):
        tokens = input_ids[order, t]
        is_target = labels[order, t] != IGNORE_INDEX
        prefix = np.flatnonzero(starts)
        starts = starts | np.append(True, tokens[1:] != tokens[:-1])
        if not is_target.any():
            continue
        longer = np.flatnonzero(starts)
        n_longer = np.add.reduceat(is_target, longer, dtype=np.int64)  # by continuation
        parent = np.searchsorted(prefix, longer, side="right") - 1
        n_prefix = np.bincount(parent, n_longer)
        most = np.maximum.reduceat(n_longer, np.flatnonzero(np.append(True, parent[1:] != parent[:-1])))
        is_most = (n_longer == most[parent]) & (n_longer > 0)
        n_tied = np.bincount(parent, is_most)
        seen = n_longer > 0
        n, of = n_longer[seen], parent[seen]
        rows = np.stack([n, n * np.log(n_prefix[of] / n), n * is_most[seen] / n_tied[of]], axis=1)
        np.add.at(sums, tokens[longer[seen]], rows)
    return sums


def baselines(blocks: Blocks, vocab_size: int) -> dict[str, pd.DataFrame]:
    """Per split, what models are compared with, one row per type of the vocabulary, by the counts of the training `blocks`.

    `unigram` is `frequency.unigram_loss` of n_v (nats); `floor` (nats) and `floor_accuracy`, of the training split alone,
    are those of the memoriser of all the blocks, means over the type's training occurrences, NaN where it has none.
    """
    n, *sums = memoriser_sums(blocks.input_ids.numpy(), blocks.labels.numpy(), vocab_size).T
    table = pd.DataFrame(dict(zip(("floor", "floor_accuracy"), sums, strict=True))).div(n, axis=0)  # NaN for 0/0
    table.insert(0, "unigram", frequency.unigram_loss(n))
    return dict(zip(SPLITS, (table, table[["unigram"]]), strict=True))


def say(p: TrainingParams) -> str:
    """The floor of a run's training blocks, in one sentence. Raises what reading the corpus raises."""
    corpus = tokenize_corpus(p)
    blocks = train_blocks(p, corpus)
    n, loss, correct = memoriser_sums(blocks.input_ids.numpy(), blocks.labels.numpy(), n_ids(corpus.tokenizer)).T
    seen = n > 0
    return (
        f"{p.experiment}: an ideal memoriser of {len(blocks):,} training blocks has {loss.sum() / n.sum():.4f} nats per token, "
        f"{(loss[seen] / n[seen]).mean():.4f} per type, token-balanced accuracy {(correct[seen] / n[seen]).mean():.4f} "
        f"({int(n.sum()):,} targets of {seen.sum():,} types)"
    )
