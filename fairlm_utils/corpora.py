"""Corpora: documents of a training and a held-out split."""

from __future__ import annotations

import ast
import bz2
import codecs
import csv
import glob
import gzip
import hashlib
import io
import json
import lzma
import os
import platform
import re
import struct
import sysconfig
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TextIO

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
_KINDS = ("parquet", "arrow", "csv", "tsv", "jsonl", "ndjson", "json", "txt")
_OPEN: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_PACKED = {*_OPEN, ".zst"}
#: What is read by name, in small or capital letters, and its description in messages.
_FILE = re.compile(rf"(?P<stem>.*)\.(?P<kind>{'|'.join(_KINDS)})(?:\.(?:gz|bz2|xz|zst))?", re.IGNORECASE | re.DOTALL)
_KNOWN = f".{', .'.join(_KINDS)}, also packed as {', '.join(sorted(_PACKED))}"
#: What says something about documents and is none.
_ABOUT = re.compile(r"(readme|licen[cs]e)(\.(md|txt|rst))?|dataset_(info|infos|dict)\.json", re.IGNORECASE)
#: Names of splits as the Hub's libraries know them.
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
_SHARD = re.compile(r"(.+?)[-_.]\d{5}-of-\d{5}(?:-[0-9a-f]+)?")
_NUMBER = re.compile(r"\s*[-+]?\d+(?:\.\d+)?\s*|")
_SURROGATE = re.compile("[\ud800-\udfff]")
_MARKS = {  # the longer first: that of UTF-32 begins as that of UTF-16 does
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


#: No text expands more than this many times when it is unpacked; smaller than this many bytes, a file may.
MAX_EXPANSION, MIN_BOMB_BYTES = 100, 2**29


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
    documents. Of local files nothing is copied or cached on the disk.

    **Which files.** One file, or every file below a folder in sorted order: .parquet, .arrow (of `save_to_disk`), .csv,
    .tsv, .jsonl, .ndjson, .json and .txt, each also packed (.gz, .bz2, .xz, .zst). `description` names what is left out:
    other files, empty ones, linked folders; hidden files, READMEs and licences aside. Splits are what the README.md of a
    folder in the Hub's layout names (`configs`); else folders named train, test or validation (or as the Hub's libraries
    abbreviate them, the outermost counts), and files with such a name alone or numbered (train.csv, test_1.txt,
    validation-00000-of-00002.parquet). Either all files belong to a split or none does.

    **What a document is.** A row's `text_column`, as text: "NA" and "null" are words, rows of CSV and TSV have as many
    fields as the first. In .txt a document is what `txt_documents` says. Its "auto" takes a file of several for one
    document; a file that is the split's only one, or named after the split, for one per paragraph if blank lines
    separate any, else one per line. Text is UTF-8, with or without a byte-order mark, or UTF-16 with one.

    Raises CorpusError or ParameterError if the corpus cannot be read, with the file, the row, or the parameter to set.
    """
    notes: list[str] = []
    train: list[Any]
    heldout: list[Any] | None
    if p.corpus == PYTHON_DOCS:
        train, heldout = list(python_docs()), None
        origin = f"documentation of {platform.python_implementation()} {platform.python_version()}"
    else:
        train, heldout, origin, notes = _load_dataset(p)
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
            + (f" ({', '.join(notes)})" if notes else "")
        )
    characters = [sum(map(len, split)) for split in (train, heldout)]
    description = (
        f"{p.corpus} ({origin}): {len(train):,} training documents of {characters[0]:,} characters, "
        f"{len(heldout):,} held-out documents of {characters[1]:,} characters"
    )
    if n_read > n_kept:
        notes.append(f"{n_read - n_kept:,} empty or missing documents dropped")
    known = set(train)
    if n_both := sum(text in known for text in heldout):
        notes.append(f"held-out documents that are also training documents: {n_both:,}")
    description = ", ".join([description, *notes])
    return Corpus(p.corpus, train, heldout, _fingerprint(train, heldout), description)


def source_state(p: CorpusParams) -> str:
    """What a corpus is read from, without reading it: changes when it does, so that a cache of it can be trusted."""
    if p.corpus == PYTHON_DOCS:
        return platform.python_version()
    location = _location(p)
    return files_state(location) if location else p.corpus


def files_state(location: Path) -> str:
    """Names, sizes and times of a file or of all files below a folder: changes when they do, without reading them."""
    files = [location] if location.is_file() else sorted(f for f in location.rglob("*") if f.is_file())
    root = location.parent if location.is_file() else location
    return str([(f.relative_to(root).as_posix(), f.stat().st_size, f.stat().st_mtime_ns) for f in files])


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


def _location(p: CorpusParams) -> Path | None:
    """The file or folder that the corpus of `p` is read from, None if there is none; `~` is the home folder."""
    name = p.corpus_path or ("" if p.corpus in HUB_CORPORA else p.corpus)
    try:
        location = Path(name).expanduser()
        return location if name.strip() and location.exists() else None
    except (OSError, RuntimeError) as error:  # no permission, no home
        raise CorpusError(
            f"corpus: {name!r} cannot be read ({first_line(error)}); name another file or folder"
        ) from error


def _check_is_not_missing(p: CorpusParams) -> None:
    """Raise CorpusError or ParameterError if the name of a corpus, which is no file or folder, can only be a path."""
    name = p.corpus_path or p.corpus
    if not name.strip():
        raise CorpusError(f"corpus: is empty; name {PYTHON_DOCS}, a data set of the Hub, or a local file or folder")
    if Path(name).expanduser().is_symlink():
        target = os.readlink(Path(name).expanduser())
        raise CorpusError(f"corpus: {name!r} is a link to {target!r}, which does not exist; put it back")
    if p.corpus_path:
        hub_id = HUB_CORPORA.get(p.corpus, (p.corpus,))[0]
        raise ParameterError(f"corpus_path: {p.corpus_path!r} does not exist; point it at a local copy of {hub_id}")
    if _is_path(name):
        raise CorpusError(f"corpus: {name!r} does not exist; put it back, or name another file or folder")


def _is_path(name: str) -> bool:
    """Whether the name of a corpus can only be a path: no data set of the Hub is named like that."""
    return Path(name).is_absolute() or name[0] in ".~" or name.count("/") > 1 or bool(_FILE.fullmatch(name))


def _load_dataset(p: CorpusParams) -> tuple[list[str | None], list[str | None] | None, str, list[str]]:
    """Training documents, held-out documents if the data set has its own, where they are from, and what is to be said."""
    hub_id, train_splits, heldout_split = HUB_CORPORA.get(p.corpus, (p.corpus, ("train",), ""))
    location = _location(p)
    if not location:
        _check_is_not_missing(p)
    notes: list[str] = []
    splits: Mapping[str, Any]
    if location:
        splits, notes = _files(location)
    else:
        splits = _hub(hub_id)
    heldout_split = heldout_split or next((s for s in ("test", "validation") if s in splits), "")
    used = [*train_splits, *([heldout_split] if heldout_split else [])]
    if missing := [s for s in used if s not in splits]:
        raise CorpusError(
            f"corpus: {str(location or hub_id)!r} has no split {', '.join(missing)}; it has {', '.join(splits)}. "
            "Add its files, or name one file"
        )
    if unused := [s for s in splits if s not in used and p.corpus not in HUB_CORPORA]:
        notes = [f"split {', '.join(unused)} left out", *notes]
    units: dict[str, None] = {}
    read = {s: _documents(splits[s], p, units) if location else _texts(splits[s], p.text_column) for s in used}
    if units:
        notes = [f"one document per {' or '.join(units)} of .txt", *notes]
    train = [text for s in train_splits for text in read[s]]
    origin = hub_id if p.corpus in HUB_CORPORA else "local" if location else "Hub"
    return train, read.get(heldout_split), origin, notes


def _hub(hub_id: str) -> Mapping[str, Any]:
    """The splits of a data set of the Hub, kept where its client keeps all downloads (HF_HOME)."""
    import datasets  # a second of imports that local corpora do without

    datasets.disable_progress_bars()
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # it reports every load over the network
    try:
        return datasets.load_dataset(hub_id)
    except Exception as error:  # the Hub client, parsers and the file system each raise their own
        raise CorpusError(
            f"corpus: {hub_id!r} cannot be read ({first_line(error.__cause__ or error)}). "
            f"Without a network set corpus_path to a local copy, or corpus to a local folder or file ({_KNOWN}), "
            f"or corpus to {PYTHON_DOCS}"
        ) from error


def _texts(split: Any, column: str) -> list[str | None]:
    _check_column(column, split.column_names, "the corpus")
    try:
        texts = split[column][:]
    except UnicodeDecodeError as error:
        raise CorpusError(f"corpus: column {column!r} is not UTF-8 ({error}); choose another data set") from error
    if kind := next((type(t).__name__ for t in texts if t is not None and not isinstance(t, str)), None):
        raise ParameterError(f"text_column: column {column!r} holds {kind}, not text")
    return texts


def _check_column(column: str, names: Sequence[str], source: str, hint: str = "") -> None:
    if names.count(column) != 1:
        found = "several columns" if column in names else "no column"
        known = ", ".join(names)
        raise ParameterError(
            f"text_column: {source} has {found} {column!r}; it has {known[:300]}{'…' * (len(known) > 300)}{hint}"
        )


# Local files


def _files(location: Path) -> tuple[dict[str, list[Path]], list[str]]:
    """Files of each split of a local corpus in the order they are read, and what to say of those left out."""
    if location.is_file():
        if not _FILE.fullmatch(location.name):
            raise CorpusError(
                f"corpus: {_shown(location)} cannot be read (unknown type of file {location.suffix!r}); name a file or "
                f"folder of documents ({_KNOWN})"
            )
        if not location.stat().st_size:
            raise CorpusError(f"corpus: {_shown(location)} is empty; name a file or folder of documents")
        return {"train": [location]}, []
    if not location.is_dir():
        raise CorpusError(f"corpus: {_shown(location)} is neither a file nor a folder; name one")
    try:
        files, others = _walk(location)
        splits = _named_by_card(location) or _named_by_files(location, files)
    except OSError as error:
        raise CorpusError(f"corpus: {_shown(location)} cannot be read ({error}); check its permissions") from error
    chosen = {f for split in splits.values() for f in split}
    left_out = sorted(f.relative_to(location).as_posix() for f in {*files, *others} - chosen)
    if not chosen:
        said = f"only {', '.join(left_out[:3])}" if left_out else "no file"
        raise CorpusError(
            f"corpus: {_shown(location)} cannot be read or is empty: it holds {said}; name a file or folder of documents "
            f"({_KNOWN})"
        )
    if left_out:
        names = _printable(", ".join(left_out[:3])) + (", …" if len(left_out) > 3 else "")
        return splits, [f"{len(left_out):,} file{'s' * (len(left_out) > 1)} left out ({names})"]
    return splits, []


def _walk(folder: Path) -> tuple[list[Path], list[Path]]:
    """Files of documents below a folder in sorted order, and what else lies there, linked folders among it.

    Hidden files, READMEs, licences and what `datasets` writes beside its files are in neither.
    """

    def stop(error: OSError) -> None:
        raise error

    files, others = [], []
    for name, folders, names in os.walk(folder, onerror=stop):
        here = Path(name)
        folders[:] = [n for n in folders if not n.startswith(".")]
        others += [here / n for n in folders if (here / n).is_symlink()]
        of_datasets = "state.json" in names and any(n.endswith(".arrow") for n in names)
        saved = _saved_files(here) if of_datasets else set(names)
        for n in names:
            file = here / n
            if n.startswith(".") or _ABOUT.fullmatch(n) or (of_datasets and n == "state.json"):
                continue
            if not _FILE.fullmatch(n) or n not in saved or (file.is_file() and not file.stat().st_size):
                others.append(file)
            elif file.is_file():
                files.append(file)
            else:
                raise CorpusError(f"corpus: {_shown(file)} is no file but a broken link or a device; remove it")
    return sorted(files, key=lambda f: f.relative_to(folder).as_posix()), others


def _saved_files(folder: Path) -> set[str]:
    """The files of a data set that `save_to_disk` wrote: others beside them are caches of what was done with it."""
    try:
        names = {item["filename"] for item in json.loads((folder / "state.json").read_text("utf-8"))["_data_files"]}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorpusError(f"corpus: {_shown(folder / 'state.json')} cannot be read ({first_line(error)})") from error
    if missing := sorted(n for n in names if not (folder / n).is_file()):
        raise CorpusError(f"corpus: {_shown(folder)} lacks {missing[0]!r} of its state.json; save the data set again")
    return names


def _named_by_card(folder: Path) -> dict[str, list[Path]]:
    """Files of each split as the data set's README.md names them (`configs`, the Hub's layout), {} if it does not."""
    card = folder / "README.md"
    if not card.is_file() or not card.read_bytes().startswith(b"---"):
        return {}
    from datasets.data_files import sanitize_patterns
    from datasets.utils.metadata import MetadataConfigs
    from huggingface_hub import DatasetCard

    try:
        configs = MetadataConfigs.from_dataset_card_data(DatasetCard.load(card).data)
        if not configs:
            return {}
        if (name := configs.get_default_config_name()) is None:
            raise ValueError(f"it has the configurations {', '.join(configs)} and no default")
        if not (globs := sanitize_patterns(configs[name].get("data_files", {}))):
            raise ValueError(f"its configuration {name} names no data_files")
        root = folder / configs[name].get("data_dir", "")
        splits = {
            s: sorted({root / f for g in globs[s] for f in glob.glob(g, root_dir=root, recursive=True)}) for s in globs
        }
        splits = {split: [f for f in files if f.is_file()] for split, files in splits.items()}
        if empty := [split for split, files in splits.items() if not files]:
            raise ValueError(f"its files of split {', '.join(empty)} are not there")
        for file in (f for files in splits.values() for f in files):
            if not Path(os.path.abspath(file)).is_relative_to(os.path.abspath(folder)) or not _FILE.fullmatch(
                file.name
            ):
                raise ValueError(f"it names {_shown(file)}, which is outside its folder or of an unknown type")
    except Exception as error:  # of YAML and of those who check it
        raise CorpusError(
            f"corpus: {_shown(card)} cannot be read ({first_line(error)}); mend it, or name the folder or file of one configuration"
        ) from error
    return splits


def _named_by_files(folder: Path, files: Sequence[Path]) -> dict[str, list[Path]]:
    """Files of each split as folders and files are named; all of them "train" if none is named after a split."""
    if (folder / f"{folder.name}.py").exists():
        raise CorpusError(
            f"corpus: {_shown(folder)} cannot be read (its documents are made by a script, {_printable(folder.name)}.py, and code "
            "of a data set is never run); save them as .jsonl or .parquet"
        )
    splits: dict[str, list[Path]] = {}
    for file in files:
        splits.setdefault(_split_of(file.relative_to(folder)), []).append(file)
    if not splits.keys() & set(_SPLITS.values()):
        return {"train": list(files)} if files else {}
    if unnamed := splits.get("", []):
        raise CorpusError(
            f"corpus: {_shown(folder)} has files of the splits {', '.join(s for s in splits if s)} and {len(unnamed):,} of "
            f"none ({', '.join(f.name for f in unnamed[:3])}); put every file in a folder train, test or validation, or rename "
            "those that are named after a split"
        )
    return splits


def _split_of(file: Path) -> str:
    for folder in file.parts[:-1]:
        if split := _SPLITS.get(folder.casefold()):
            return split
    return _named_split(file)


def _named_split(file: Path) -> str:
    """The split that a file's own name says it is, or a shard of: train.csv, test-00000-of-00002.parquet."""
    stem = _stem(file).casefold()
    if shard := _SHARD.fullmatch(stem):
        return _SPLITS.get(shard[1], shard[1])
    numbered = re.fullmatch(r"(\D+?)[-_.]?\d*", stem)
    return _SPLITS.get(numbered[1], "") if numbered else ""


def _documents(files: Sequence[Path], p: CorpusParams, units: dict[str, None]) -> list[str | None]:
    """Documents of a split's files in order, missing ones as None; `units` collects what a document of .txt was.

    Raises CorpusError or ParameterError naming the file, and where it can the row.
    """
    alone = sum(_kind(f) == "txt" for f in files) == 1
    texts: list[str | None] = []
    for file in files:
        try:
            _check_expansion(file)
            kind = _kind(file)
            if kind in ("parquet", "arrow"):
                texts += _column_texts(file, kind, p.text_column)
                continue
            with _text_stream(file, newline="" if kind in ("csv", "tsv") else None) as stream:
                if kind == "txt":
                    unit, found = _txt_texts(stream.read(), p.txt_documents, alone or bool(_named_split(file)))
                    units[unit] = None
                    texts += found
                elif kind in ("csv", "tsv"):
                    texts += _csv_texts(stream, file, "\t" if kind == "tsv" else ",", p.text_column)
                else:
                    texts += _json_texts(stream, file, kind == "json", p.text_column)
        except (CorpusError, ParameterError):
            raise
        except UnicodeError as error:
            raise CorpusError(
                f"corpus: {_shown(file)} is not UTF-8 ({first_line(error)}); write it again as UTF-8, "
                "for example with iconv -f ENCODING -t UTF-8, where ENCODING is LATIN1 or UTF-16LE"
            ) from error
        except Exception as error:  # parsers, decompressors and the file system each raise their own
            raise CorpusError(
                f"corpus: {_shown(file)} cannot be read ({first_line(error)}); mend it, or name another file or folder ({_KNOWN})"
            ) from error
    return texts


def _txt_texts(text: str, unit: str, many: bool) -> tuple[str, list[str]]:
    """What a document is, and the documents of a .txt file; `many` says whether "auto" looks for several in it."""
    paragraphs = re.split(r"\n(?:[^\S\n]*\n)+", text.strip("\n")) if unit in ("auto", "paragraph") else []
    if unit == "auto":
        unit = "file" if not many else "paragraph" if len(paragraphs) > 1 else "line"
    return unit, [text] if unit == "file" else paragraphs if unit == "paragraph" else text.removesuffix("\n").split(
        "\n"
    )


def _csv_texts(stream: TextIO, file: Path, delimiter: str, column: str) -> Iterator[str]:
    csv.field_size_limit(2**31 - 1)  # a document may be longer than the 131,072 characters of its default
    rows = csv.reader(stream, delimiter=delimiter, strict=True)
    number, is_text = 0, False
    try:
        header = next(rows, [])
        _check_column(column, header, _shown(file), " (the first line names the columns)")
        index = header.index(column)
        for row in filter(None, rows):
            number += 1
            if len(row) != len(header):
                raise csv.Error(f"row {number} has {len(row)} fields where the first line names {len(header)}")
            is_text = is_text or not _NUMBER.fullmatch(row[index])
            yield row[index]
    except csv.Error as error:
        raise CorpusError(
            f"corpus: {_shown(file)}, line {rows.line_num}: {error}; put a field with {'tabs' if delimiter != ',' else 'commas'}, "
            'quotes or line breaks in double quotes, write a quote within it as "", and end no row in a separator'
        ) from error
    if number and not is_text:
        raise ParameterError(f"text_column: column {column!r} of {_shown(file)} holds numbers, not text")


def _json_texts(stream: TextIO, file: Path, whole: bool, column: str) -> Iterator[str | None]:
    """Texts of JSON lines or, if `whole`, of lists of objects or objects one after the other."""
    names: dict[str, None] = {}
    for number, row in enumerate(_json_values(stream.read()) if whole else _json_lines(stream), 1):
        if isinstance(row, str):  # as `datasets` does
            row = {"text": row}
        if not isinstance(row, dict):
            raise ParameterError(f"text_column: {_shown(file)}, row {number} is {type(row).__name__}, not an object")
        names.update(dict.fromkeys(row))
        text = row.get(column)
        if not isinstance(text, str | None):
            raise ParameterError(
                f"text_column: {_shown(file)}, row {number}: column {column!r} holds {type(text).__name__}, not text"
            )
        if text is not None and _SURROGATE.search(text):
            raise CorpusError(
                f"corpus: {_shown(file)}, row {number} holds half of a surrogate pair, which is no character"
            )
        yield text
    if names:
        _check_column(column, list(names), _shown(file))


def _json_lines(stream: TextIO) -> Iterator[Any]:
    for number, line in enumerate(stream, 1):
        if line.strip():
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number}: {error.msg} at character {error.pos}") from error


def _json_values(text: str) -> Iterator[Any]:
    position, space = 0, re.compile(r"\s*")
    while (position := space.match(text, position).end()) < len(text):  # type: ignore[union-attr]
        value, position = json.JSONDecoder().raw_decode(text, position)
        if isinstance(value, list):
            yield from value
        else:
            yield value


def _column_texts(file: Path, kind: str, column: str) -> Iterator[str | None]:
    import pyarrow as pa

    for batch in _batches(file, kind, column):
        if not _is_text(batch.schema.field(column).type) and not pa.types.is_null(batch.schema.field(column).type):
            raise ParameterError(
                f"text_column: column {column!r} of {_shown(file)} holds {batch.schema.field(column).type}, not text; "
                f"the file has {', '.join(batch.schema.names)}"
            )
        yield from batch.column(column).to_pylist()


def _batches(file: Path, kind: str, column: str) -> Iterator[Any]:
    """Batches of rows of a Parquet or Arrow file, of Parquet only `column`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _source(file) as source:
        if kind == "parquet":
            with pq.ParquetFile(source) as parquet:
                _check_column(column, parquet.schema_arrow.names, _shown(file))
                yield from parquet.iter_batches(columns=[column])
        else:
            with pa.ipc.open_stream(source) as batches:
                _check_column(column, batches.schema.names, _shown(file))
                yield from batches


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


# Files packed or not, and what they may expand to


def _open(file: Path) -> BinaryIO:
    """The bytes of a file, unpacked."""
    packing = file.suffix.casefold()
    if packing == ".zst":
        import pyarrow as pa

        return pa.CompressedInputStream(pa.OSFile(str(file)), "zstd")
    return _OPEN.get(packing, open)(file, "rb")


def _source(file: Path) -> Any:
    """A file as PyArrow reads it: mapped, not loaded, unless it is packed."""
    import pyarrow as pa

    if file.suffix.casefold() not in _PACKED:
        return pa.memory_map(str(file))
    with _open(file) as stream:
        return pa.BufferReader(stream.read())


@contextmanager
def _text_stream(file: Path, newline: str | None) -> Iterator[TextIO]:
    """The characters of a file of UTF-8, or of UTF-16 or UTF-32 that says so by a byte-order mark, which is left out."""
    with _open(file) as stream:
        start = stream.read(1000)
    encoding = next((e for mark, e in _MARKS.items() if start.startswith(mark)), "utf-8")
    if encoding == "utf-8" and start.count(0) > len(start) // 4:
        raise UnicodeError("it looks like UTF-16 without a byte-order mark")
    with _open(file) as stream:
        yield io.TextIOWrapper(stream, encoding, newline=newline)


def _check_expansion(file: Path) -> None:
    """Raise CorpusError if a compressed file of a stranger would fill the memory: see `MAX_EXPANSION`.

    Columns are measured with their dictionaries kept apart, and packed files are unpacked a piece at a time.
    """
    limit = max(MAX_EXPANSION * file.stat().st_size, MIN_BOMB_BYTES)
    measures = [_unpacked_bytes] if file.suffix.casefold() in _PACKED else []
    measures += {"parquet": [_parquet_bytes], "arrow": [_arrow_bytes]}.get(_kind(file), [])
    for measure in measures:
        expanded = 0
        for n_bytes in measure(file):
            expanded += n_bytes
            if expanded > limit:
                raise CorpusError(
                    f"corpus: {_shown(file)} has {file.stat().st_size:,} bytes and expands to over {limit:,}, as no text does; "
                    "it is not read. If you trust it, write it again as plain .jsonl"
                )


def _parquet_bytes(file: Path) -> Iterator[int]:
    """Bytes that every group of rows takes in memory; what dictionaries stand for has to be read to know.

    The columns' own metadata would say which have dictionaries, but PyArrow ends the process where they are damaged.
    """
    import pyarrow.parquet as pq

    with _source(file) as source, pq.ParquetFile(source) as plain:
        texts = [c.path for c in plain.schema if c.physical_type == "BYTE_ARRAY"]
    with _source(file) as source, pq.ParquetFile(source, read_dictionary=texts) as parquet:
        if parquet.metadata.num_rows == 0:
            raise ValueError("it has no rows")
        for group in range(parquet.num_row_groups):
            rows = parquet.metadata.row_group(group)
            yield max(rows.total_byte_size, 8 * rows.num_rows * rows.num_columns)
            for column in texts:
                for part in parquet.read_row_group(group, [column]).column(0).chunks:
                    yield _dictionary_bytes(part)


def _dictionary_bytes(column: Any) -> int:
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pa.types.is_dictionary(column.type):
        return 0
    return pc.sum(pc.take(pc.binary_length(column.dictionary), column.indices)).as_py() or 0


def _arrow_bytes(file: Path) -> Iterator[int]:
    """Bytes that every batch of rows takes in memory.

    Raises ValueError for a compressed batch, which cannot be measured before it expands: `save_to_disk` writes none.
    """
    import pyarrow as pa

    with _source(file) as source:
        for message in pa.ipc.MessageReader.open_stream(source):
            if _names_a_codec(message.metadata.to_pybytes()):
                raise ValueError("its batches are compressed; write it again without compression, or as .parquet")
    with _source(file) as source, pa.ipc.open_stream(source) as batches:
        for batch in batches:
            batch.validate(full=True)  # offsets of a stranger may point anywhere
            yield 8 * batch.num_rows * batch.num_columns
            for column in batch.columns:
                if _is_text(column.type):
                    yield _dictionary_bytes(column)


def _names_a_codec(metadata: bytes) -> bool:
    """Whether the message of an Arrow stream is a batch that names a codec: PyArrow tells only once it has expanded it.

    Tables of flatbuffers: header is field 2 of Message, data field 1 of DictionaryBatch, compression field 3 of
    RecordBatch (Message.fbs of the Arrow format).
    """

    def follow(position: int) -> int:
        return position + struct.unpack_from("<I", metadata, position)[0]

    def field(table: int, index: int) -> int:
        fields = table - struct.unpack_from("<i", metadata, table)[0]
        size = struct.unpack_from("<H", metadata, fields)[0]
        offset = struct.unpack_from("<H", metadata, fields + 4 + 2 * index)[0] if 4 + 2 * index < size else 0
        return table + offset if offset else 0

    message = follow(0)
    kind = metadata[field(message, 1)] if field(message, 1) else 0
    if kind not in (2, 3):  # a schema
        return False
    batch = follow(field(message, 2))
    return bool(field(follow(field(batch, 1)) if kind == 2 else batch, 3))


def _unpacked_bytes(file: Path) -> Iterator[int]:
    with _open(file) as stream:
        while piece := stream.read(2**20):
            yield len(piece)


def _kind(file: Path) -> str:
    match = _FILE.fullmatch(file.name)
    return match["kind"].casefold() if match else ""


def _stem(file: Path) -> str:
    match = _FILE.fullmatch(file.name)
    return match["stem"] if match else file.stem


def _shown(path: Path) -> str:
    return repr(_printable(str(path)))


def _printable(name: str) -> str:
    """A name that is not UTF-8 on the disk, as it can be written."""
    return os.fsencode(name).decode("utf-8", "replace")
