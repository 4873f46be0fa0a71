"""Corpora: documents of a training and a held-out split."""

from __future__ import annotations

import ast
import hashlib
import os
import platform
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fairlm_utils.params import CorpusParams, ParameterError, first_line

#: Corpora of the Hub by name: data set id, training splits, held-out split. To add one, add a line.
HUB_CORPORA: dict[str, tuple[str, tuple[str, ...], str]] = {
    "imdb": ("stanfordnlp/imdb", ("train",), "test"),
    # the paper's 75,000 reviews: most likely these two splits, which is an assumption
    "imdb-xl": ("stanfordnlp/imdb", ("train", "unsupervised"), "test"),
}
PYTHON_DOCS = "python-docs"
MIN_CHARACTERS = 80
_NOT_LIBRARY = {
    "test", "tests", "site-packages", "dist-packages", "idlelib", "turtledemo", "lib2to3", "ensurepip", "__pycache__",
}  # fmt: skip
_LOADERS = {".parquet": "parquet", ".csv": "csv", ".jsonl": "json", ".json": "json", ".txt": "text"}


#: No text expands more than this many times when it is unpacked; smaller than this many bytes, a file may.
MAX_EXPANSION, MIN_BOMB_BYTES = 100, 2**29
_PACKED = {".gz", ".bz2", ".xz", ".zst", ".zip"}


class CorpusError(RuntimeError):
    """A corpus that cannot be found or read; the message says which parameter to set."""


@dataclass(frozen=True)
class Corpus:
    """Documents of two splits, with a digest of all of them in order and one line that says what they are."""

    name: str
    train: Sequence[str]
    heldout: Sequence[str]
    fingerprint: str
    description: str


def load_corpus(p: CorpusParams) -> Corpus:
    """The corpus of `p`: its training documents in a seeded order, its held-out documents, empty ones dropped.

    The held-out split is the data set's own test split (else its validation split), else a seeded share of the
    documents. Raises CorpusError if the corpus cannot be read, with the parameter to set.
    """
    if p.corpus == PYTHON_DOCS:
        train, heldout, origin = (
            list(python_docs()),
            None,
            f"documentation of {platform.python_implementation()} {platform.python_version()}",
        )
    else:
        train, heldout, origin = _load_dataset(p)
    n_read = len(train) + len(heldout or ())
    train = [text for text in train if text and not text.isspace()]
    n_kept = len(train)
    order = np.random.default_rng(p.data_seed).permutation(len(train))
    if heldout is None:
        n = max(1, round(p.heldout_fraction * len(train)))
        heldout, order = [train[i] for i in np.sort(order[:n])], order[n:]
    else:
        heldout = [text for text in heldout if text and not text.isspace()]
        n_kept += len(heldout)
        if p.max_documents:  # data sets may be sorted by label
            heldout = [heldout[i] for i in np.random.default_rng(p.data_seed).permutation(len(heldout))]
    train = [train[i] for i in order]
    if p.max_documents:
        train, heldout = train[: p.max_documents], heldout[: p.max_documents]
    if not train or not heldout:
        raise CorpusError(
            f"corpus: {p.corpus!r} has {len(train)} training and {len(heldout)} held-out documents; both are needed"
        )
    characters = [sum(map(len, split)) for split in (train, heldout)]
    description = (
        f"{p.corpus} ({origin}): {len(train):,} training documents of {characters[0]:,} characters, "
        f"{len(heldout):,} held-out documents of {characters[1]:,} characters"
    )
    if n_read > n_kept:
        description += f", {n_read - n_kept:,} empty or missing documents dropped"
    return Corpus(p.corpus, train, heldout, _fingerprint(train, heldout), description)


def source_state(p: CorpusParams) -> str:
    """What a corpus is read from, without reading it: changes when it does, so that a cache of it can be trusted."""
    if p.corpus == PYTHON_DOCS:
        return platform.python_version()
    location = Path(p.corpus_path or p.corpus)
    return files_state(location) if location.exists() else p.corpus


def files_state(location: Path) -> str:
    """Names, sizes and times of a file or of all files below a folder: changes when they do, without reading them."""
    files = [location] if location.is_file() else sorted(f for f in location.rglob("*") if f.is_file())
    return str([(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files])


def _fingerprint(*splits: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for split in splits:
        for text in split:
            digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
        digest.update(b"\1")
    return digest.hexdigest()


def python_docs() -> Iterator[str]:
    """The documentation that comes with the Python interpreter: docstrings of the standard library's modules, classes
    and functions, and the language reference (`pydoc_data.topics`); no duplicates, none below 80 characters.

    The sources are parsed, never imported. Raises CorpusError if the interpreter came without them.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise CorpusError(
            "corpus: this Python came without pydoc_data; install its full standard library or choose another corpus"
        ) from error
    texts = [*_docstrings(Path(sysconfig.get_path("stdlib"))), *(topics[key] for key in sorted(topics))]
    if len(texts) < 1000:
        raise CorpusError(
            "corpus: this Python came without the sources of its standard library; install them or choose another corpus"
        )
    yield from (text for text in dict.fromkeys(texts) if len(text) >= MIN_CHARACTERS)


def _docstrings(root: Path) -> Iterator[str]:
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if name not in _NOT_LIBRARY)
        for name in sorted(files):
            if name.endswith(".py"):
                yield from _docstrings_of(Path(folder) / name)


def _docstrings_of(path: Path) -> Iterator[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # about the library's code, which is only read here
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # templates and files in other encodings
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and (
            text := ast.get_docstring(node)
        ):
            yield text


def _load_dataset(p: CorpusParams) -> tuple[list[str], list[str] | None, str]:
    import datasets  # a second of imports that the default corpus does without

    hub_id, train_splits, heldout_split = HUB_CORPORA.get(p.corpus, (p.corpus, ("train",), ""))
    location = p.corpus_path or (hub_id if p.corpus in HUB_CORPORA or not Path(p.corpus).exists() else p.corpus)
    if p.corpus_path and not Path(p.corpus_path).exists():
        raise ParameterError(f"corpus_path: {p.corpus_path!r} does not exist; point it at a local copy of {hub_id}")
    if location == p.corpus and not Path(location).exists() and _is_path(location):
        raise CorpusError(f"corpus: {location!r} does not exist; put it back, or name another file or folder")
    datasets.disable_progress_bars()
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # it reports every load, also of local files, over the network
    try:
        splits = _read(datasets, Path(location)) if Path(location).exists() else datasets.load_dataset(location)
    except CorpusError:
        raise
    except Exception as error:  # the Hub client, parsers and the file system each raise their own
        raise CorpusError(
            f"corpus: {location!r} cannot be read ({first_line(error.__cause__ or error)}). "
            "Without a network set corpus_path to a local copy, or corpus to a "
            f"local folder or file ({', '.join(_LOADERS)}), or corpus to {PYTHON_DOCS}"
        ) from error
    heldout_split = heldout_split or next((s for s in ("test", "validation") if s in splits), "")
    missing = [s for s in (*train_splits, heldout_split) if s and s not in splits]
    if missing:
        raise CorpusError(f"corpus: {location!r} has no split {', '.join(missing)}; it has {', '.join(splits)}")
    train = [text for s in train_splits for text in _texts(splits[s], p.text_column)]
    heldout = _texts(splits[heldout_split], p.text_column) if heldout_split else None
    return train, heldout, hub_id if p.corpus in HUB_CORPORA else "local" if Path(location).exists() else "Hub"


def _is_path(name: str) -> bool:
    """Whether the name of a corpus can only be a path: no data set of the Hub is named like that."""
    return Path(name).is_absolute() or name.startswith(".") or Path(name).suffix in _LOADERS


def _read(datasets: Any, location: Path) -> Any:
    files = [location] if location.is_file() else [f for f in location.rglob("*") if f.is_file()]
    for file in files:
        _check_expansion(file)
    if not any(file.stat().st_size for file in files):
        raise CorpusError(f"corpus: {str(location)!r} is empty; name a file or folder of documents")
    if location.is_dir():
        return datasets.load_dataset(str(location))
    if location.suffix not in _LOADERS:
        raise ValueError(f"unknown type of file {location.suffix!r}")
    return datasets.load_dataset(_LOADERS[location.suffix], data_files=str(location))


def _check_expansion(file: Path) -> None:
    """Raise CorpusError if a compressed file of a stranger would fill the memory: see `MAX_EXPANSION`.

    Parquet is measured with its dictionaries kept apart, and other files are unpacked a piece at a time.
    """
    limit = max(MAX_EXPANSION * file.stat().st_size, MIN_BOMB_BYTES)
    expanded = 0
    if file.suffix == ".parquet":
        pieces = _parquet_bytes(file)
    elif file.suffix in _PACKED:
        pieces = _unpacked_bytes(file)
    else:
        return
    for n_bytes in pieces:
        expanded += n_bytes
        if expanded > limit:
            raise CorpusError(
                f"corpus: {str(file)!r} has {file.stat().st_size:,} bytes and expands to over {limit:,}, as no text does; it is "
                "not read. If you trust it, write it again as plain .jsonl"
            )


def _parquet_bytes(file: Path) -> Iterator[int]:
    """Bytes that every group of rows takes in memory; what dictionaries stand for has to be read to know.

    The columns' own metadata would say which have dictionaries, but PyArrow ends the process where they are damaged.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    texts = [c.path for c in pq.ParquetFile(file).schema if c.physical_type == "BYTE_ARRAY"]
    with pq.ParquetFile(file, read_dictionary=texts) as parquet:
        if parquet.metadata.num_rows == 0:
            raise ValueError("it has no rows")
        for group in range(parquet.num_row_groups):
            rows = parquet.metadata.row_group(group)
            yield max(rows.total_byte_size, 8 * rows.num_rows * rows.num_columns)
            for column in texts:
                for part in parquet.read_row_group(group, [column]).column(0).chunks:
                    if pa.types.is_dictionary(part.type):
                        yield pc.sum(pc.take(pc.binary_length(part.dictionary), part.indices)).as_py() or 0


def _unpacked_bytes(file: Path) -> Iterator[int]:
    import fsspec

    with fsspec.open(str(file), "rb", compression="infer") as stream:
        while piece := stream.read(2**20):
            yield len(piece)


def _texts(split: Any, column: str) -> list[str]:
    if column not in split.column_names:
        raise ParameterError(
            f"text_column: the corpus has no column {column!r}; it has {', '.join(split.column_names)}"
        )
    try:
        texts = split[column][:] if hasattr(split[column], "__getitem__") else list(split[column])
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"corpus: column {column!r} is not UTF-8 ({error}); write the corpus again as UTF-8"
        ) from error
    kind = next((type(t).__name__ for t in texts if t is not None and not isinstance(t, str)), None)
    if kind:
        raise ParameterError(
            f"text_column: column {column!r} holds {kind}, not text; it has {', '.join(split.column_names)}"
        )
    return texts
