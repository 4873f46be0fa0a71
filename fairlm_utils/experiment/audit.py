"""Audit of any causal language model: what its rare tokens pay, on any corpus.

python -m fairlm_utils audit MODEL CORPUS --report audit.html --tables audit-tables
python -m fairlm_utils audit ./my-model ./texts --reference gpt2 --counts counts.csv -p context 128 --json
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from papermill.exceptions import PapermillExecutionError

from fairlm_utils import files, frequency
from fairlm_utils.analysis import metrics
from fairlm_utils.analysis.audit_tables import Audit, compare, extremes, load, save
from fairlm_utils.experiment import runs
from fairlm_utils.experiment.report import notebook_html
from fairlm_utils.experiment.reproduce import run_notebook
from fairlm_utils.frequency import IGNORE_INDEX, token_counts
from fairlm_utils.lm import processes, training
from fairlm_utils.lm.corpora import Corpus, load_corpus
from fairlm_utils.lm.evaluation import check_ids, token_sums, token_table
from fairlm_utils.lm.models import check_causal, check_context, load_model, n_rows, saved_config, text_config
from fairlm_utils.lm.tokenization import adds_bos, as_text, blocks, encode, load_tokenizer, n_ids, say_bos, taken_blocks
from fairlm_utils.lm.words import by_word_bin, word_counts, word_losses
from fairlm_utils.params import AuditParams, ParameterError, TrainingParams

NOTEBOOK = "08_audit"
#: Columns of norms of embedding rows, and the matrix whose they are.
MATRICES = {"embedding_norm": "input", "output_norm": "output"}


def audit(p: AuditParams, name: str, corpus: Corpus, label: str = "") -> Audit:
    """Audit the model `name` (Hub id or folder) with its own tokenizer on the held-out documents of `corpus`.

    Its `p.max_heldout_blocks` blocks lie at even distances in them, for data sets may be in the order of a label.
    Counts n_v are those of the training documents, or of `p.counts_file`; words are always counted in the training documents.
    Memory holds one batch of logits at a time, whatever the vocabulary, and one loss per held-out token.
    Raises ParameterError or RunError for a model, tokenizer, counts file or context that cannot be used.
    """
    tokenizer = load_tokenizer(name)
    model = load_model(name).to(processes.device(p))
    check_context(model.config, p.context, repr(name))
    try:
        check_causal(model)
    except ValueError as error:
        raise files.RunError(f"{name}: {error}") from error
    vocab_size, bos = n_rows(model), adds_bos(tokenizer, p.bos)
    bos_ends = tokenizer.bos_token_id == tokenizer.eos_token_id  # given where a document begins, a target where it ends
    print(f"bos {p.bos}: {say_bos(tokenizer, bos)}")
    ids, starts = encode(tokenizer, corpus.heldout, bos)
    check_ids(ids, vocab_size, tokenizer, name)
    if p.counts_file:
        counts = read_counts(p.counts_file, max(vocab_size, n_ids(tokenizer)))[:vocab_size]
    else:
        train, first = encode(tokenizer, corpus.train, bos)
        check_ids(train, vocab_size, tokenizer, name)
        counts = token_counts(train, vocab_size)
        if bos and bos_ends:
            counts[tokenizer.bos_token_id] -= len(first)
    data = training.Blocks(
        *blocks(ids, starts, p.context, packing=True, max_blocks=p.max_heldout_blocks, bos=bos, spread=True)
    )
    batches: list[np.ndarray] = []
    try:
        with processes.threads(p.n_threads):
            predictions = token_sums(model, data, p.eval_batch_size, getattr(torch, p.dtype), losses=batches)
    except (RuntimeError, MemoryError) as error:
        if not processes.is_out_of_memory(error):
            raise
        raise files.RunError(
            f"out of memory at eval_batch_size {p.eval_batch_size}: lower it, which has no effect on the results, or context"
        ) from error
    losses, labels = np.concatenate(batches), data.labels.numpy()
    norms = embedding_norms(model)
    table = token_table(predictions.by_type, counts, tokenizer)
    table = table[table["token_id"].isin(tokenizer.get_vocab().values())]  # not ids that are no token
    given = (table["token_id"] == tokenizer.bos_token_id) & bos & (not bos_ends)  # counted, but nobody's target
    table = table.assign(
        unigram=frequency.unigram_loss(table["n_train"].where(~given, 0)),
        **{k: v[table["token_id"]] for k, v in norms.items()},
    )
    n = len(ids) // p.context
    of_ids = np.full((n, p.context), np.nan, dtype=losses.dtype)
    of_ids[taken_blocks(n, p.max_heldout_blocks, spread=True)] = losses
    words, spelled = word_losses(as_text(tokenizer), corpus.heldout, ids, starts + bos, of_ids.reshape(-1))
    facts = {
        "model": _named(name),
        "corpus": corpus.description,
        "counts": Path(p.counts_file).name if p.counts_file else "the training documents",
        "bos": tokenizer.bos_token if bos else "none",
        "context": p.context,
        "n_blocks": len(labels),
        "n_vocabulary": len(table),
        "n_rows": vocab_size,
        "targets_sha256": hashlib.sha256(labels.tobytes()).hexdigest()[:12],
    }
    is_separator = table["token_id"] == tokenizer.eos_token_id
    text, percentile = table[~is_separator], p.low_frequency_percentile
    by_block = _by_block(text, percentile, labels, losses)
    of_types = (*extremes(text), metrics.undertrained(table, list(norms)))
    rarest, worst, undertrained = (types.assign(token=types["token"].map(repr)) for types in of_types)
    return Audit(
        label=label or short_names([name])[0],
        facts=facts,
        totals={**metrics.totals(table), **_more_totals(table[is_separator], by_block, spelled, vocab_size)},
        bins=metrics.by_bin(text, predictions.calibration),
        kinds=metrics.by_kind(text, predictions.calibration),
        classes=metrics.by_class(text, percentile, predictions.calibration),
        words=by_word_bin(words := _counted(words, corpus, p)),
        norms=pd.concat([metrics.norms_by_bin(table, k).assign(matrix=MATRICES[k]) for k in norms], ignore_index=True),
        table=table,
        by_block=by_block,
        occurrences=words,
        rarest=rarest,
        worst=worst,
        undertrained=undertrained,
    )


def embedding_norms(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """Norms of rows of the input embedding, `embedding_norm`, and of the output's, `output_norm`, if it is not the same."""
    rows = {"embedding_norm": model.get_input_embeddings().weight}
    output = getattr(model.get_output_embeddings(), "weight", None)
    if output is not None and output.data_ptr() != rows["embedding_norm"].data_ptr():
        rows["output_norm"] = output
    return {k: v.detach().float().norm(dim=1).cpu().numpy() for k, v in rows.items()}


def _by_block(text: pd.DataFrame, percentile: float, labels: np.ndarray, losses: np.ndarray) -> pd.DataFrame:
    """Sums over the targets of each block and class: block, frequency_class, n_tokens, loss, gain over the unigram (nats)."""
    size = max(int(text["token_id"].max()), int(labels.max())) + 1
    unigram, low = np.full(size, np.nan), np.zeros(size, dtype=bool)
    unigram[text["token_id"]] = text["unigram"]
    low[text["token_id"]] = frequency.low_frequency(text["n_train"], percentile)
    block, place = np.nonzero(labels != IGNORE_INDEX)
    ids = labels[block, place]
    frame = pd.DataFrame({"block": block, "loss": losses[block, place].astype(float), "unigram": unigram[ids]})
    frame["frequency_class"] = np.where(low[ids], "low", "high")
    frame = frame[frame["unigram"].notna()]  # not the separator
    sums = frame.groupby(["block", "frequency_class"]).agg(
        n_tokens=("loss", "size"), loss=("loss", "sum"), unigram=("unigram", "sum")
    )
    every = pd.MultiIndex.from_product([range(len(labels)), ["low", "high"]], names=sums.index.names)
    sums = sums.reindex(every, fill_value=0.0).reset_index()
    return sums.assign(gain=sums["unigram"] - sums["loss"])


def _more_totals(
    separator: pd.DataFrame, by_block: pd.DataFrame, spelled: dict[str, Any], n_rows: int
) -> dict[str, float]:
    low, high = (by_block[by_block["frequency_class"] == c] for c in ("low", "high"))
    columns = [f[c].to_numpy() for f in (low, high) for c in ("gain", "n_tokens")]
    difference, least, most = metrics.difference_over_blocks(*columns)
    n_separators = int(separator["n_eval"].sum())
    return {
        "chance": float(np.log(n_rows)),
        "n_separators": n_separators,
        "separator_loss": metrics.average_loss(separator) if n_separators else float("nan"),
        "bits_per_byte": spelled["text_nats"] / np.log(2) / max(spelled["text_bytes"], 1),
        "n_bytes": spelled["text_bytes"],
        "n_words": spelled["n_words"],
        "n_words_left_out": spelled["n_words_left_out"],
        "gain_low_minus_high": difference,
        "gain_low_minus_high_from": least,
        "gain_low_minus_high_to": most,
    }


def _counted(words: pd.DataFrame, corpus: Corpus, p: AuditParams) -> pd.DataFrame:
    """The words with their count in the training documents, frequency class among the words evaluated, and block."""
    types = words["word"].unique()
    counts = word_counts(files.progress(corpus.train, desc="counting words", unit="document"), types)
    n = pd.Series(counts, dtype="int64")
    low = frequency.low_frequency(n, p.low_frequency_percentile) if (n > 0).any() else np.ones(len(n), dtype=bool)
    classes = pd.Series(np.where(low, "low", "high"), index=n.index)
    block = words["position"] // p.context
    return words.assign(n_reference=words["word"].map(n), frequency_class=words["word"].map(classes), block=block)


def audits(p: AuditParams) -> list[Audit]:
    """The audits a notebook shows: the model asked for and its reference, or two models trained here if none is named.

    Of two, the first is compared with the second. Reads them from `p.tables_folder` if it is set.
    """
    if p.tables_folder:
        return load(p.tables_folder)
    corpus = load_corpus(p)
    if p.audited_model:
        named = list(dict.fromkeys(name for name in (p.audited_model, p.reference_model) if name))
        names = dict(zip(short_names(named), named, strict=True))
    else:  # of `02_training` at its defaults but for λ
        own = {f"λ = {w:g}": TrainingParams(weight_decay=w, runs_dir=p.runs_dir) for w in (0.3, 0.0)}
        names = {label: str(runs.train(q) / "model") for label, q in own.items()}
    _check(p, list(names.values()))
    found = []
    with files.progress(names.items(), desc="auditing", unit="model") as bar:
        for label, name in bar:
            bar.set_postfix_str(label)
            found.append(audit(p, name, corpus, label))
    if len(found) > 1:
        found[0] = replace(found[0], comparison=compare(*found).assign(against=found[1].label))
    return found


def _check(p: AuditParams, names: Sequence[str]) -> None:
    """Refuse, before the first of several models is evaluated, what can be known without weights to fail with another."""
    for name in names:
        tokenizer, config = load_tokenizer(name), saved_config(name)
        check_context(config, p.context, repr(name))
        if p.counts_file:
            read_counts(p.counts_file, max(getattr(text_config(config), "vocab_size", 0), n_ids(tokenizer)))


def short_names(names: Sequence[str]) -> list[str]:
    """Names to show: the last part of a Hub id or path, numbered where they would be the same.

    >>> short_names(["runs/a/model", "gpt2", "runs/b/model"])
    ['model', 'gpt2', 'model (2)']
    """
    short = [Path(name).name or name for name in names]
    return [s if (n := short[:i].count(s)) == 0 else f"{s} ({n + 1})" for i, s in enumerate(short)]


def _resolved(name: str) -> str:
    """A file or folder as it is called from the project's root too; a name of the Hub as it is."""
    try:
        path = Path(name).expanduser()
        return str(path.resolve()) if name and path.exists() else name
    except (OSError, RuntimeError):  # too long for a path, no home
        return name


def _named(name: str) -> str:
    """A Hub id, or a folder's name without the paths of a machine; with its parent's where all are called alike."""
    path = Path(name)
    return path.name if path.exists() and path.name != "model" else "/".join(path.parts[-2:])


def read_counts(path: str | Path, vocab_size: int) -> np.ndarray:
    """Counts n_v [vocabulary] from a CSV or Parquet file with the columns token_id and count; types left out count 0.

    Raises ParameterError if it cannot be read, lacks a column, or holds an id twice, or ids or counts that cannot be.
    """
    try:
        table = pd.read_parquet(path) if Path(path).suffix.casefold() == ".parquet" else pd.read_csv(path)
        if twice := {"token_id", "count"} & {name.removesuffix(".1") for name in table if name.endswith(".1")}:
            raise ValueError(f"column {', '.join(sorted(twice))} stands twice")  # pandas calls the second so
        ids, counts = table["token_id"].to_numpy(), table["count"].to_numpy()
    except Exception as error:  # the parsers of both formats raise their own
        raise ParameterError(
            f"counts_file: {path} cannot be read as a CSV or Parquet file with the columns token_id and count "
            f"({files.first_line(error)})"
        ) from error
    if not (np.issubdtype(ids.dtype, np.integer) and np.issubdtype(counts.dtype, np.integer)):
        raise ParameterError(f"counts_file: token_id and count of {path} must be whole numbers")
    if len(repeated := ids[pd.Series(ids).duplicated()]):
        raise ParameterError(f"counts_file: token_id {repeated[0]} stands twice in {path}; give each one count")
    possible = len(ids) and ids.min() >= 0 and ids.max() < vocab_size and counts.min() >= 0
    if not possible or not 0 < counts.sum(dtype=float) <= 2**53:
        raise ParameterError(
            f"counts_file: {path} must have ids from 0 to {vocab_size - 1} and counts of at least 0, some above it and at most "
            "2^53 in all; is it of another tokenizer?"
        )
    return np.bincount(ids, weights=counts, minlength=vocab_size).astype(np.int64)


def write_report(values: dict[str, Any], report: str | Path, found: Sequence[Audit] = ()) -> Path:
    """Audit with these parameters, or take the audits `found`, and show them by `08_audit` as one HTML page without code.

    Returns the page. Raises ParameterError for bad parameters, and RunError with the notebook's error if it fails.
    """
    p = AuditParams.check(values)
    found = found or audits(p)
    report = Path(report)
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / f"{NOTEBOOK}.ipynb"
        try:
            run_notebook(NOTEBOOK, output, {**values, "tables_folder": str(save(found, Path(folder) / "tables"))})
        except PapermillExecutionError as error:
            raise files.RunError(error.evalue) from error
        title = f"Audit of {' and '.join(a.label for a in found)}"
        with files.atomic_path(report) as temporary:
            temporary.write_text(notebook_html(output, with_code=False, title=title), encoding="utf-8")
    return report


def checked(named: Mapping[str, str], overrides: Mapping[str, Any]) -> tuple[AuditParams, dict[str, Any]]:
    """Parameters of an audit from arguments and overrides, and the values given; files as called from the project's root.

    Raises ParameterError for a parameter given twice, or that is none.
    """
    values: dict[str, Any] = {k: _resolved(v) for k, v in named.items()}
    if twice := sorted(values.keys() & overrides.keys()):
        raise ParameterError(f"-p {twice[0]}: is given already, as {values[twice[0]]!r}; keep one")
    of_files = ("audited_model", "corpus", "reference_model", "counts_file", "corpus_path")
    values |= {k: _resolved(v) if isinstance(v, str) and k in of_files else v for k, v in overrides.items()}
    return AuditParams.check(values, "audit"), values
