"""Audit of any causal language model: what its rare tokens pay, on any corpus.

python -m fairlm_utils.audit MODEL CORPUS --report audit.html
python -m fairlm_utils.audit ./my-model ./texts --reference gpt2 --counts counts.csv -p context 128 --report audit.html
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from papermill.exceptions import PapermillExecutionError

from fairlm_utils import metrics, runs, training
from fairlm_utils.corpora import Corpus, load_corpus
from fairlm_utils.evaluation import check_ids, token_sums, token_table
from fairlm_utils.models import check_causal, check_context, load_model, n_rows
from fairlm_utils.params import (
    ALL_FIELDS,
    AuditParams,
    ParameterError,
    TrainingParams,
    add_override_option,
    first_line,
    parse,
)
from fairlm_utils.report import notebook_html
from fairlm_utils.sweep import run_notebook
from fairlm_utils.tokenization import adds_bos, blocks, encode, load_tokenizer, n_ids, token_counts

NOTEBOOK = "08_audit"


@dataclass(frozen=True)
class Audit:
    """What an audit finds of one model: the per-token table, with `embedding_norm`, and what follows from it."""

    label: str
    table: pd.DataFrame
    bins: pd.DataFrame
    kinds: pd.DataFrame
    classes: pd.DataFrame
    totals: dict[str, float]
    norms: pd.DataFrame


def audit(p: AuditParams, name: str, corpus: Corpus, label: str = "") -> Audit:
    """Audit the model `name` (Hub id or folder) with its own tokenizer on the held-out documents of `corpus`.

    Counts n_v are those of the training documents, or of `p.counts_file`. Tables as in `metrics`; `norms` has median, p10
    and p90 of the norms of embedding rows by bin. Memory holds one batch of logits at a time, whatever the vocabulary.
    Raises ParameterError or RunError for a model, tokenizer, counts file or context that cannot be used.
    """
    tokenizer = load_tokenizer(name)
    model = load_model(name).to(training.device(p))
    check_context(model.config, p.context, repr(name))
    try:
        check_causal(model)
    except ValueError as error:
        raise runs.RunError(f"{name}: {error}") from error
    vocab_size, bos = n_rows(model), adds_bos(tokenizer, p.bos)
    print(f"bos {p.bos}: documents begin with {tokenizer.bos_token if bos else 'no BOS token'}")
    ids, starts = encode(tokenizer, corpus.heldout, bos)
    check_ids(ids, vocab_size, tokenizer, name)
    if p.counts_file:
        counts = read_counts(p.counts_file, max(vocab_size, n_ids(tokenizer)))[:vocab_size]
    else:
        train, _ = encode(tokenizer, corpus.train, bos)
        check_ids(train, vocab_size, tokenizer, name)
        counts = token_counts(train, vocab_size)
    data = training.Blocks(*blocks(ids, starts, p.context, packing=True, max_blocks=p.max_heldout_blocks, bos=bos))
    with training.threads(p.n_threads):
        predictions = token_sums(model, data, p.eval_batch_size, getattr(torch, p.dtype))
    table = token_table(predictions.by_type, counts, tokenizer)
    norms = model.get_input_embeddings().weight.detach().float().norm(dim=1).cpu().numpy()
    table["embedding_norm"] = norms[: len(table)]
    return Audit(
        label=label or name,
        table=table,
        bins=metrics.by_bin(table, predictions.calibration),
        kinds=metrics.by_kind(table, predictions.calibration),
        classes=metrics.by_class(table, p.low_frequency_percentile, predictions.calibration),
        totals=metrics.totals(table),
        norms=norms_by_bin(table),
    )


def audits(p: AuditParams) -> list[Audit]:
    """The audits a notebook shows: the model asked for and its reference, or two models trained here if none is named."""
    corpus = load_corpus(p)
    if p.audited_model:
        names = {name: name for name in (p.audited_model, p.reference_model) if name}
    else:
        names = {f"λ = {w:g}": str(_own_model(p, w)) for w in (0.5, 0.0)}
    return [audit(p, name, corpus, label) for label, name in names.items()]


def _own_model(p: AuditParams, weight_decay: float) -> Path:
    """A model of `02_training` at its defaults and another λ, trained if it is not there."""
    return training.train(TrainingParams(weight_decay=weight_decay, runs_dir=p.runs_dir)) / "model"


def read_counts(path: str | Path, vocab_size: int) -> np.ndarray:
    """Counts n_v [vocabulary] from a CSV or Parquet file with the columns token_id and count; types left out count 0.

    Raises ParameterError if it cannot be read, lacks a column, or holds ids or counts that cannot be.
    """
    try:
        table = pd.read_parquet(path) if Path(path).suffix == ".parquet" else pd.read_csv(path)
        ids, counts = table["token_id"].to_numpy(), table["count"].to_numpy()
    except Exception as error:  # the parsers of both formats raise their own
        raise ParameterError(
            f"counts_file: {path} cannot be read as a CSV or Parquet file with the columns token_id and count "
            f"({first_line(error)})"
        ) from error
    if not (np.issubdtype(ids.dtype, np.integer) and np.issubdtype(counts.dtype, np.integer)):
        raise ParameterError(f"counts_file: token_id and count of {path} must be whole numbers")
    if (
        len(ids) == 0
        or ids.min() < 0
        or ids.max() >= vocab_size
        or counts.min() < 0
        or not 0 < counts.sum(dtype=float) <= 2**53
    ):
        raise ParameterError(
            f"counts_file: {path} must have ids from 0 to {vocab_size - 1} and counts of at least 0, some above it and at most "
            "2^53 in all; is it of another tokenizer?"
        )
    return np.bincount(ids, weights=counts, minlength=vocab_size).astype(np.int64)


def norms_by_bin(table: pd.DataFrame) -> pd.DataFrame:
    """Median, 10th and 90th percentile of the norms of embedding rows by frequency bin of n_train, all types included."""
    groups = table.groupby(metrics.bin_index(table["n_train"]))["embedding_norm"]
    quantiles = groups.quantile([0.1, 0.5, 0.9]).unstack()
    quantiles.columns = ["p10", "median", "p90"]
    return pd.DataFrame(
        {
            "bin": [metrics.bin_label(i) for i in quantiles.index],
            "bin_low": [metrics.bin_low(i) for i in quantiles.index],
            "n_types": groups.size().to_numpy(),
            **{c: quantiles[c].to_numpy() for c in quantiles},
        }
    )


def extremes(table: pd.DataFrame, n: int = 10, min_tokens: int = 3) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The `n` rarest types that were evaluated, and the `n` of highest loss among types evaluated at least `min_tokens` times."""
    seen = table[table["n_eval"] > 0]
    columns = ["token_id", "token", "kind", "n_train", "n_eval", "loss", "accuracy", "top5_accuracy"]
    rarest = seen.sort_values(["n_train", "loss"], ascending=[True, False]).head(n)
    worst = seen[seen["n_eval"] >= min_tokens].sort_values("loss", ascending=False).head(n)
    return rarest[columns], worst[columns]


def compared(audits: Sequence[Audit], table: str = "bins") -> pd.DataFrame:
    """A table of every audit ("bins", "kinds", "classes", "norms") with its `label`, one under the other."""
    return pd.concat([getattr(a, table).assign(label=a.label) for a in audits], ignore_index=True)


def write_report(values: dict[str, Any], report: str | Path) -> Path:
    """Execute `08_audit` with these parameters and write it as one HTML page without code; returns the page.

    Raises ParameterError for bad parameters, and RunError with the notebook's error if it fails.
    """
    AuditParams.check(values)
    report = Path(report)
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / f"{NOTEBOOK}.ipynb"
        try:
            run_notebook(NOTEBOOK, output, values)
        except PapermillExecutionError as error:
            raise runs.RunError(error.evalue) from error
        with runs.atomic_path(report) as temporary:
            temporary.write_text(notebook_html(output, with_code=False), encoding="utf-8")
    return report


def main(arguments: Sequence[str] | None = None) -> int:
    """Audit a causal language model and write an HTML report."""
    parser = argparse.ArgumentParser(prog="python -m fairlm_utils.audit", description=main.__doc__)
    parser.add_argument("model", help="Hub id, or a folder written by save_pretrained with its tokenizer")
    parser.add_argument("corpus", help="python-docs, imdb, a Hub data set id, or a local folder or file of documents")
    parser.add_argument("--report", default="audit.html", metavar="FILE", help="page to write (default: audit.html)")
    parser.add_argument("--reference", default="", metavar="MODEL", help="a second model to compare with")
    parser.add_argument("--counts", default="", metavar="FILE", help="CSV or Parquet with columns token_id and count")
    add_override_option(parser)
    options = parser.parse_args(arguments)
    report = Path(options.report).resolve()
    named = {
        "audited_model": options.model,
        "corpus": options.corpus,
        "reference_model": options.reference,
        "counts_file": options.counts,
    }
    values: dict[str, Any] = {k: str(Path(v).resolve()) if v and Path(v).exists() else v for k, v in named.items()}
    try:
        values |= {k: parse(v, f"-p {k}") for k, v in options.overrides}
        unknown = [k for k in values if k not in ALL_FIELDS]
        runs.enter_project()
        AuditParams.check({k: v for k, v in values.items() if k in AuditParams.model_fields or k in unknown}, "audit")
        print(write_report(values, report))
    except (ParameterError, runs.RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
