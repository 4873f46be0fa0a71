"""The lowest training loss any model can have, that of an ideal memoriser of the training blocks, and chance lines.

python -m fairlm_utils.floor params/paper/openelm-270m-imdb.yaml      # print the floor of its training blocks
python -m fairlm_utils.floor results/quick                            # add its columns to tables of an earlier version
python -m fairlm_utils.floor runs/EXPERIMENT                          # the same, to those of finished runs
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fairlm_utils import metrics, runs
from fairlm_utils.corpora import CorpusError
from fairlm_utils.metrics import SPLITS
from fairlm_utils.params import (
    VARIANTS,
    ParameterError,
    TokenizationParams,
    TrainingParams,
    add_override_option,
    expand,
    overridden,
    read,
)
from fairlm_utils.token_loss import IGNORE_INDEX
from fairlm_utils.tokenization import n_ids, target_counts, text_now, token_kinds, tokenize_corpus
from fairlm_utils.training import Blocks, heldout_blocks, training_blocks

#: Tables and per-token columns that are completed, what of a per-token table must agree, and what blocks depend on.
_GROUPED = ("totals", "bins", "classes", "kinds")
_ADDED = ("unigram", "floor", "floor_accuracy")
_OF_TYPE = ["token_id", "kind", "n_train", "n_eval"]
_OF_BLOCKS = {*TokenizationParams.model_fields, "context", "packing", "max_train_blocks", "max_heldout_blocks"}
_OTHER_BLOCKS = (
    "its types and tokens are not those of the blocks made again, so the text or a parameter is another; put the earlier "
    "text back (`-p corpus_path FOLDER`), or make the experiment again"
)


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
    """Per split, what models are compared with, a row a type of the vocabulary, by the counts of the training `blocks`.

    `unigram` is `metrics.unigram_loss` of n_v (nats); `floor` (nats) and `floor_accuracy`, of the training split alone,
    are those of the memoriser of all the blocks, means over the type's training occurrences, NaN where it has none.
    """
    n, loss, correct = memoriser_sums(blocks.input_ids.numpy(), blocks.labels.numpy(), vocab_size).T
    table = pd.DataFrame({"unigram": metrics.unigram_loss(n)})
    for name, total in (("floor", loss), ("floor_accuracy", correct)):
        table[name] = np.divide(total, n, out=np.full(vocab_size, np.nan), where=n > 0)
    return dict(zip(SPLITS, (table, table[["unigram"]]), strict=True))


def add_to_results(folder: Path, overrides: Mapping[str, Any]) -> None:
    """Add floor, unigram, chance and counts to the tables of a folder of results/, from its blocks made again.

    `overrides` are parameters over the recorded ones, as where the corpus lies. Raises RunError if the blocks are not those
    of the tables, ParameterError or CorpusError if they cannot be made.
    """
    known = runs.read_experiment(folder / "experiment.json")
    tables = {name: runs.read_csv(folder / f"{name}.csv") for name in _GROUPED}
    parts, counts, made = [], [], {}
    for variant, own in known["params"].get(VARIANTS, {"": {}}).items():
        values = {k: v for k, v in {**known["params"], **own}.items() if k in TrainingParams.model_fields}
        p = TrainingParams.check({**values, **overrides}, str(folder))
        rows = {name: t[t["variant"] == variant] if variant else t for name, t in tables.items()}
        key = p.model_dump_json(include=_OF_BLOCKS)  # variants may differ in training alone
        if key not in made:
            made[key] = _tables_of_blocks(p, _n_evaluated(rows["totals"]))
        parts.append(_completed(rows, made[key], p.low_frequency_percentile, folder))
        histogram = metrics.count_histogram(made[key]["training"]["n_train"])
        counts.append(histogram.assign(variant=variant) if variant else histogram)
    frames = {name: pd.concat([part[name] for part in parts]).sort_index() for name in _GROUPED}
    frames["counts"] = runs.distinct_counts(pd.concat(counts))
    names = {f"{name}.csv" for name in frames} | runs.read_json(folder / "experiment.json")["sha256"].keys()
    for name, frame in frames.items():
        runs.write_table(folder / f"{name}.csv", frame)
    known["provenance"]["floor"] = _origin(folder)
    runs.write_json(folder / "experiment.json", {**known, "sha256": runs.digests(folder, sorted(names))})


def add_to_runs(folder: Path, overrides: Mapping[str, Any]) -> None:
    """As `add_to_results`, to the per-token and small tables of all finished runs in RUNS_DIR/EXPERIMENT."""
    for directory in runs.finished_runs(folder):
        with runs.locked(directory):
            runs.check_seal(directory)
            known = runs.read_json(directory / "params.json")
            known = {k: v for k, v in known.items() if k in TrainingParams.model_fields}
            p = TrainingParams.check({**known, **overrides}, str(directory))
            runs.check_text(directory, p, text_now(p))
            small = {name: runs.read_csv(directory / "tables" / f"{name}.csv") for name in _GROUPED}
            made = _tables_of_blocks(p, _n_evaluated(small["totals"]))
            frames = {
                f"tables/{name}.csv": t
                for name, t in _completed(small, made, p.low_frequency_percentile, directory).items()
            }
            for split, table in made.items():
                name = f"tokens_{split}.parquet"
                old = pd.read_parquet(directory / name).drop(columns=[c for c in _ADDED if c in table], errors="ignore")
                if not old[_OF_TYPE].equals(table.loc[: len(old) - 1, _OF_TYPE]):
                    raise runs.RunError(f"{directory / name}: {_OTHER_BLOCKS}")
                frames[name] = old.join(table[[c for c in _ADDED if c in table]])
            counts = metrics.count_histogram(made["training"]["n_train"])
            frames["tables/counts.csv"] = counts.assign(variant=p.variant) if p.variant else counts
            (directory / runs.SEAL).unlink(missing_ok=True)  # a run that is left half-way stays readable
            for name, table in frames.items():  # counts last: they say that all is there
                runs.write_table(directory / name, table)
            provenance = runs.read_json(directory / "provenance.json")
            runs.write_json(directory / "provenance.json", {**provenance, "floor": _origin(folder)})
            runs.seal(directory)


def _origin(folder: Path) -> dict[str, str]:
    name = folder.relative_to(runs.PROJECT) if folder.is_relative_to(runs.PROJECT) else folder.name
    return {"command": f"python -m fairlm_utils.floor {name}", "git_commit": runs.git_commit()}


def _n_evaluated(totals: pd.DataFrame) -> int:
    """Training targets that were evaluated, the same in all rows: those of the first blocks."""
    return int(totals.loc[totals["split"] == "training", "n_tokens"].iloc[0])


def _tables_of_blocks(p: TrainingParams, n_evaluated: int) -> dict[str, pd.DataFrame]:
    """Per-token tables by split without a model: what of them the blocks alone determine."""
    corpus = tokenize_corpus(p)
    blocks = training_blocks(p, corpus)
    size = n_ids(corpus.tokenizer)
    so_far = (blocks.labels != IGNORE_INDEX).sum(dim=1).cumsum(dim=0).numpy()
    evaluated = (blocks.labels[: np.searchsorted(so_far, n_evaluated) + 1], heldout_blocks(p, corpus).labels)
    known = baselines(blocks, size)
    shared = {
        "token_id": np.arange(size),
        "kind": token_kinds(corpus.tokenizer),
        "n_train": target_counts(blocks.labels.numpy(), size),
    }
    return {
        split: pd.DataFrame({**shared, "n_eval": target_counts(labels.numpy(), size)}).join(known[split])
        for split, labels in zip(SPLITS, evaluated, strict=True)
    }


def _completed(
    tables: Mapping[str, pd.DataFrame], made: Mapping[str, pd.DataFrame], percentile: float, where: Path
) -> dict[str, pd.DataFrame]:
    """The small tables with the means of the columns that they lacked. Raises RunError if their groups are others."""
    groups = {split: metrics.grouped(table, percentile) for split, table in made.items()}
    completed = {}
    for name, table in tables.items():
        new = pd.concat([of[name].assign(split=split) for split, of in groups.items()])
        checked = [c for c in ("n_types", "n_tokens", "n_train_tokens") if c in new]
        keys = [c for c in metrics.KEYS if c in new]
        added = [c for c in (*new, "gain", "gain_occurrences") if c not in (*keys, *checked)]
        old = table.drop(columns=added, errors="ignore")
        both = old.merge(new, on=keys, how="left", suffixes=("", " now")).set_index(old.index)
        for column in checked:
            if not (both[column] == both.pop(f"{column} now")).all():
                raise runs.RunError(f"{where}: {name}: {_OTHER_BLOCKS}")
        completed[name] = both if name == "totals" else both.assign(**metrics.gain(both))
    return completed


def _floor_of(path: Path, name: str, overrides: Sequence[tuple[str, str]]) -> str:
    p = expand(read(path, overrides), name)[0]
    corpus = tokenize_corpus(p)
    blocks = training_blocks(p, corpus)
    n, loss, correct = memoriser_sums(blocks.input_ids.numpy(), blocks.labels.numpy(), n_ids(corpus.tokenizer)).T
    seen = n > 0
    return (
        f"{p.experiment}: an ideal memoriser of {len(blocks):,} training blocks has {loss.sum() / n.sum():.4f} nats per token, "
        f"{(loss[seen] / n[seen]).mean():.4f} per type, token-balanced accuracy {(correct[seen] / n[seen]).mean():.4f} "
        f"({int(n.sum()):,} targets of {seen.sum():,} types)"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the floor of an experiment file's training blocks, or add it, the unigram and chance to tables without them."""
    parser = argparse.ArgumentParser(prog="python -m fairlm_utils.floor", description=main.__doc__)
    parser.add_argument(
        "path",
        help="experiment file, of which the first run counts, or a folder of results/, or RUNS_DIR/EXPERIMENT",
    )
    add_override_option(parser)
    options = parser.parse_args(arguments)
    path = Path(options.path).resolve()
    runs.enter_project()
    try:
        if (path / "experiment.json").exists():
            add_to_results(path, overridden(options.overrides))
        elif runs.finished_runs(path):
            add_to_runs(path, overridden(options.overrides))
        else:
            print(_floor_of(path, options.path, options.overrides))
    except (ParameterError, CorpusError, runs.RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
