"""Corpora: documents of a training and a held-out split."""

from __future__ import annotations

import ast
import bz2
import csv
import glob
import gzip
import hashlib
import json
import lzma
import os
import platform
import re
import struct
import sysconfig
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from fairlm_utils.files import UserError, first_line, unique_keys
from fairlm_utils.params import PYTHON_DOCS, CorpusParams, ParameterError

#: Corpora of the Hub by name: data set id, training splits, held-out split. To add one, add a line.
HUB_CORPORA: dict[str, tuple[str, tuple[str, ...], str]] = {
    "imdb": ("stanfordnlp/imdb", ("train",), "test"),
    # the paper's 75,000 reviews: most likely these two splits, which is an assumption
    "imdb-xl": ("stanfordnlp/imdb", ("train", "unsupervised"), "test"),
}
MIN_CHARACTERS = 80
_NOT_LIBRARY = {
    "test", "tests", "site-packages", "dist-packages", "idlelib", "turtledemo", "lib2to3", "ensurepip", "__pycache__",
}  # fmt: skip
#: Names of files that are read, in small or capital letters, and their description in messages.
_FILE = re.compile(
    r"(?P<stem>.*?)(?P<shard>[-_.]\d{5}-of-\d{5}(?:-[0-9a-f]+)?|[-_.]?\d*)"
    r"\.(?P<kind>parquet|csv|tsv|jsonl|json|txt)(?:(?<!parquet)\.(?:gz|bz2|xz))?",
    re.IGNORECASE | re.DOTALL,
)
_KNOWN = ".parquet, or .csv, .tsv, .jsonl, .json, .txt, also packed as .gz, .bz2, .xz"
_OPEN: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
#: What says something about documents and is none.
_ABOUT = re.compile(r"(readme|licen[cs]e)(\.(md|txt|rst))?|dataset_(info|infos|dict)\.json", re.IGNORECASE)
#: Names of splits as the Hub's libraries know them.
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
_NUMBER = re.compile(r"\s*[-+]?\d+(?:\.\d+)?\s*|")
_SURROGATE = re.compile("[\ud800-\udfff]")
#: Byte-order marks; UTF-32's little-endian one begins like UTF-16's and comes before it.
_MARKS = {
    **{b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe\0\0": "utf-32", b"\0\0\xfe\xff": "utf-32"},
    **{b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"},
}
#: Bytes that no text of UTF-8 has many of, and UTF-16 or UTF-32 of most scripts has.
_CONTROLS = bytes({*range(9), *range(14, 32)})
#: No text expands more than this many times when it is unpacked; smaller than this many bytes, a file may.
MAX_EXPANSION, MIN_BOMB_BYTES = 100, 2**29


class CorpusError(UserError, RuntimeError):
    """A corpus that cannot be found or read; the message says which parameter to set."""

    @classmethod
    def of(cls, path: Path, fault: str) -> CorpusError:
        return cls(f"corpus: {str(path)!r} {fault}")


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
    documents; its documents are in the data set's order, which may be by label, in a seeded one if `max_documents` limits
    a test split. Of local files nothing is copied or cached on the disk.

    **Which files.** One file, or every file below a folder in sorted order: .parquet, what `save_to_disk` wrote, and
    .csv, .tsv, .jsonl, .json and .txt, also packed (.gz, .bz2, .xz). `description` names what is left out: other files,
    empty ones, linked folders; hidden files, READMEs and licences aside. Splits are what the README.md of a folder in the
    Hub's layout names (`configs`); else folders named train, test or validation (or as the Hub's libraries abbreviate
    them, the outermost counts), and files with such a name alone or numbered (train.csv, test_1.txt,
    validation-00000-of-00002.parquet). Either all files belong to a split or none does.

    **What a document is.** A row's `text_column`, as text: "NA" and "null" are words, rows of CSV and TSV have as many
    fields as the first. In .txt a document is what `txt_documents` says. Its "auto" takes a file of several for one
    document; a file that is the split's only one, or named after the split, for one per paragraph if blank lines
    separate any, else one per line. Text is UTF-8, with or without a byte-order mark, or UTF-16 with one.

    Raises CorpusError or ParameterError if the corpus cannot be read, with the file, the row, or the parameter to set.
    """
    *read, origin, notes = _read(p)
    train, heldout = ([t for t in split or () if t and not t.isspace()] for split in read)
    n_dropped = sum(map(len, filter(None, read))) - len(train) - len(heldout)
    order = np.random.default_rng(p.data_seed).permutation(len(train))
    if read[1] is None:
        n = max(1, round(p.heldout_fraction * len(train)))
        # of them those that are kept, and then in order: the first ones of a sorted data set are alike
        heldout, order = [train[i] for i in np.sort(order[:n][: p.max_documents or None])], order[n:]
    elif p.max_documents:  # data sets may be sorted by label
        heldout = [heldout[i] for i in np.random.default_rng(p.data_seed).permutation(len(heldout))]
    train = [train[i] for i in order]
    train, heldout = train[: p.max_documents or None], heldout[: p.max_documents or None]
    if not train or not heldout:
        found = f"{len(train)} training and {len(heldout)} held-out documents"
        raise CorpusError(", ".join([f"corpus: {p.corpus!r} has {found}; both are needed", *notes]))
    said = [f"{p.corpus} ({origin}): {len(train):,} training documents of {sum(map(len, train)):,} characters"]
    said += [f"{len(heldout):,} held-out documents of {sum(map(len, heldout)):,} characters", *notes]
    if n_dropped:
        said.append(f"{n_dropped:,} empty or missing documents dropped")
    known = set(train)
    if n_both := sum(text in known for text in heldout):
        said.append(f"held-out documents that are also training documents: {n_both:,}")
    return Corpus(p.corpus, train, heldout, _fingerprint(train, heldout), ", ".join(said))


def source_state(p: CorpusParams) -> str:
    """What a corpus is read from, without reading it: changes when it does, so that a cache of it can be trusted."""
    if p.corpus == PYTHON_DOCS:
        return platform.python_version()
    location = location_of(p)
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
        raise CorpusError("corpus: this Python came without pydoc_data; install it or choose another") from error
    texts = [*_docstrings(Path(sysconfig.get_path("stdlib"))), *(topics[key] for key in sorted(topics))]
    if len(texts) < 1000:
        raise CorpusError("corpus: this Python came without the sources of its library; install them or choose another")
    yield from (text for text in dict.fromkeys(texts) if len(text) >= MIN_CHARACTERS)


#: Where statements hold statements, in the order of their fields.
_STATEMENTS = ("body", "handlers", "orelse", "finalbody", "cases")


def _docstrings(root: Path) -> Iterator[str]:
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if name not in _NOT_LIBRARY)
        for path in (Path(folder) / name for name in sorted(files) if name.endswith(".py")):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", SyntaxWarning)  # about the library's code, which is only read here
                    tree = ast.parse(path.read_bytes())
            except (SyntaxError, ValueError):  # templates and files in other encodings
                continue
            level: list[ast.AST] = [tree]
            while level:  # in the order of `ast.walk`, without expressions, most of a tree, which hold no docstring
                for node in level:
                    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                        yield from filter(None, [ast.get_docstring(node)])
                level = [below for node in level for field in _STATEMENTS for below in getattr(node, field, ())]


def location_of(p: CorpusParams) -> Path | None:
    """The file or folder that the corpus of `p` is read from, None if there is none. Raises CorpusError without permission."""
    name = p.corpus_path or ("" if p.corpus in HUB_CORPORA else p.corpus)
    try:
        return Path(name) if name.strip() and Path(name).exists() else None
    except OSError as error:  # no permission
        raise CorpusError(f"corpus: {name!r} cannot be read ({first_line(error)}); name another") from error


def _read(p: CorpusParams) -> tuple[list[str | None], list[str | None] | None, str, list[str]]:
    """Training documents, held-out documents if the data set has its own, where they are from, and what is to be said."""
    if p.corpus == PYTHON_DOCS:
        python = f"{platform.python_implementation()} {platform.python_version()}"
        return list(python_docs()), None, f"documentation of {python}", []
    hub_id, train_splits, heldout_split = HUB_CORPORA.get(p.corpus, (p.corpus, ("train",), ""))
    location = location_of(p)
    splits, notes = _files(location) if location else (_hub(p, hub_id), [])
    heldout_split = heldout_split or next((s for s in ("test", "validation") if s in splits), "")
    used = [*train_splits, *filter(None, [heldout_split])]
    if missing := [s for s in used if s not in splits]:
        fault = f"has no split {', '.join(missing)}; it has {', '.join(splits)}. Add its files, or name one file"
        raise CorpusError(f"corpus: {str(location or hub_id)!r} {fault}")
    if unused := [s for s in splits if s not in used and p.corpus not in HUB_CORPORA]:
        notes = [f"split {', '.join(unused)} left out", *notes]
    units: dict[str, None] = {}
    read = {s: _documents(splits[s], p, units) if location else _texts(splits[s], p.text_column) for s in used}
    if units:
        notes = [f"one document per {' or '.join(units)} of .txt", *notes]
    origin = hub_id if p.corpus in HUB_CORPORA else "local" if location else "Hub"
    return [text for s in train_splits for text in read[s]], read.get(heldout_split), origin, notes


def _hub(p: CorpusParams, hub_id: str) -> Any:
    """The splits of a data set of the Hub, kept where its client keeps all downloads (HF_HOME)."""
    name = p.corpus_path or p.corpus
    if not name.strip():
        raise CorpusError(f"corpus: is empty; name {PYTHON_DOCS}, a data set of the Hub, or a local file or folder")
    if Path(name).is_symlink():
        raise CorpusError(f"corpus: {name!r} is a link to {os.readlink(name)!r}, which does not exist; put it back")
    if p.corpus_path:
        raise ParameterError(f"corpus_path: {p.corpus_path!r} does not exist; point it at a local copy of {hub_id}")
    if Path(name).is_absolute() or name[0] in ".~" or name.count("/") > 1 or _kind(Path(name)):
        raise CorpusError(f"corpus: {name!r} does not exist; put it back, or name another file or folder")
    import datasets  # a second of imports that local corpora do without

    datasets.disable_progress_bars()
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # it reports every load over the network
    try:
        return datasets.load_dataset(hub_id)
    except Exception as error:  # the Hub client, parsers and the file system each raise their own
        raise CorpusError(
            f"corpus: {hub_id!r} cannot be read ({first_line(error.__cause__ or error)}). Without a network set corpus_path "
            f"to a local copy, or corpus to a local folder or file ({_KNOWN}) or to {PYTHON_DOCS}"
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


def _check_column(column: str, names: Sequence[str], source: str) -> None:
    if names.count(column) != 1:
        found, known = "several columns" if column in names else "no column", ", ".join(names)[:300]
        raise ParameterError(f"text_column: {source} has {found} {column!r}; it has {known}")


def _kind(file: Path) -> str:
    """What a file holds by its name, "" if such files are not read."""
    match = _FILE.fullmatch(file.name)
    return match["kind"].casefold() if match else ""


def _files(location: Path) -> tuple[dict[str, list[Path]], list[str]]:
    """Files of each split of a local corpus in the order they are read, and what to say of those left out."""
    if not location.is_dir():
        if not location.is_file():
            raise CorpusError.of(location, "is neither a file nor a folder; name one")
        fault = "" if _kind(location) else f"cannot be read (unknown type of file {location.suffix!r})"
        if fault or not location.stat().st_size:
            raise CorpusError.of(location, f"{fault or 'is empty'}; name a file or folder of {_KNOWN}")
        return {"train": [location]}, []
    try:
        files, others = _walk(location)
        splits = _named_by_card(location, files) or _named_by_files(location, files)
    except OSError as error:
        raise CorpusError.of(location, f"cannot be read ({error}); check its permissions") from error
    chosen = {f for split in splits.values() for f in split}
    left_out = sorted(f.relative_to(location).as_posix() for f in {*files, *others} - chosen)
    names = os.fsencode(", ".join(left_out[:3])).decode("utf-8", "replace") + ", …" * (len(left_out) > 3)
    if not chosen:
        fault = f"cannot be read or is empty: it holds {f'only {names}' if names else 'no file'}"
        raise CorpusError.of(location, f"{fault}; name a file or folder of {_KNOWN}")
    return splits, [f"{len(left_out):,} file{'s' * (len(left_out) > 1)} left out ({names})"] if left_out else []


def _walk(folder: Path) -> tuple[list[Path], list[Path]]:
    """Files of documents below a folder in sorted order, and what else lies there but for hidden files and `_ABOUT`."""

    def stop(error: OSError) -> None:
        raise error

    files, others = list[Path](), list[Path]()
    for name, folders, names in os.walk(folder, onerror=stop):
        here, saved = Path(name), None
        folders[:] = [n for n in folders if not n.startswith(".")]
        others += [here / n for n in folders if (here / n).is_symlink()]
        if "state.json" in names and any(n.endswith(".arrow") for n in names):
            saved = _saved_files(here)
            names.remove("state.json")
        for file in (here / n for n in names if not n.startswith(".") and not _ABOUT.fullmatch(n)):
            if not (_kind(file) if saved is None else file.name in saved):
                others.append(file)
            elif not file.is_file():
                raise CorpusError.of(file, "is no file but a broken link or a device; remove it")
            else:
                (files if file.stat().st_size else others).append(file)
    return sorted(files, key=lambda f: f.relative_to(folder).as_posix()), others


def _saved_files(folder: Path) -> set[str]:
    """The files of a data set that `save_to_disk` wrote: others beside them are caches of what was done with it."""
    try:
        names = {item["filename"] for item in json.loads((folder / "state.json").read_text("utf-8"))["_data_files"]}
        missing = sorted(n for n in names if not (folder / n).is_file())
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorpusError.of(folder / "state.json", f"cannot be read ({first_line(error)})") from error
    if missing:
        raise CorpusError.of(folder, f"lacks {missing[0]!r} of its state.json; save the data set again")
    return names


def _named_by_card(folder: Path, files: Sequence[Path]) -> dict[str, list[Path]]:
    """Those of `files` in each split that the data set's README.md names (`configs`, the Hub's layout), {} if none."""
    card = folder / "README.md"
    if not card.is_file() or not card.read_bytes().startswith(b"---"):
        return {}
    from datasets.data_files import sanitize_patterns
    from datasets.utils.metadata import MetadataConfigs
    from huggingface_hub import DatasetCard

    known = {f.relative_to(folder).as_posix(): f for f in files}
    splits: dict[str, list[Path]] = {}
    try:
        configs = MetadataConfigs.from_dataset_card_data(DatasetCard.load(card).data)
        if not configs:
            return {}
        if (name := configs.get_default_config_name()) is None:
            raise ValueError(f"it has the configurations {', '.join(configs)} and no default")
        if not (patterns := sanitize_patterns(configs[name].get("data_files", {}))):
            raise ValueError(f"its configuration {name} names no data_files")
        for split, pattern in ((s, pattern) for s, of_split in patterns.items() for pattern in of_split):
            path = os.path.join(configs[name].get("data_dir", ""), pattern)
            found = {os.path.normpath(n) for n in glob.iglob(path, root_dir=folder, recursive=True)} & known.keys()
            if not found:
                raise ValueError(f"{path!r} of split {split} are not there, outside its folder, or of unknown type")
            splits[split] = sorted({*splits.get(split, ()), *(known[n] for n in found)})
    except Exception as error:  # of YAML and of those who check it
        fault = f"cannot be read ({first_line(error)}); mend it, or name a folder or file below it"
        raise CorpusError.of(card, fault) from error
    return splits


def _named_by_files(folder: Path, files: Sequence[Path]) -> dict[str, list[Path]]:
    """Files of each split as folders and files are named; all of them "train" if none is named after a split."""
    if (folder / f"{folder.name}.py").exists():
        fault = "cannot be read (its script makes its documents, and code of a data set never runs)"
        raise CorpusError.of(folder, f"{fault}; save them as .jsonl or .parquet")
    splits: dict[str, list[Path]] = {}
    for file in files:
        below = file.relative_to(folder).parent
        own = _named_split(file) if _kind(file) else below.name  # `save_to_disk` names a folder after its split
        known = [_SPLITS[name] for name in map(str.casefold, below.parts) if name in _SPLITS]
        splits.setdefault([*known, own][0], []).append(file)
    if not splits.keys() & set(_SPLITS.values()):
        return {"train": list(files)} if files else {}
    if unnamed := splits.get(""):
        names = ", ".join(f.name for f in unnamed[:3])
        found = f"{', '.join(filter(None, splits))} and {len(unnamed):,} of none ({names})"
        advice = "put every file in a folder train, test or validation, or rename those that are named after a split"
        raise CorpusError.of(folder, f"has files of the splits {found}; {advice}")
    return splits


def _named_split(file: Path) -> str:
    """The split that a file's own name says it is, or a shard of: train.csv, test-00000-of-00002.parquet."""
    match = _FILE.fullmatch(file.name.casefold())
    stem = match["stem"] if match else ""
    return _SPLITS.get(stem, stem if match and "-of-" in match["shard"] else "")


def documents_of(file: Path, p: CorpusParams) -> list[str | None]:
    """The documents of one file of a corpus, missing ones as None, as `load_corpus` reads them. Raises as it does."""
    return _documents([file], p, {})


def _documents(files: Sequence[Path], p: CorpusParams, units: dict[str, None]) -> list[str | None]:
    """Documents of a split's files in order, missing ones as None; `units` collects what a document of .txt was."""
    alone = sum(_kind(f) == "txt" for f in files) == 1
    texts: list[str | None] = []
    for file in files:
        kind = _kind(file)
        try:
            if kind in ("", "parquet"):
                texts += _column_texts(file, p.text_column)
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
            advice = "write it again as UTF-8, for example with iconv -f ENCODING -t UTF-8, ENCODING being LATIN1 or UTF-16LE"
            raise CorpusError.of(file, f"is not UTF-8 ({first_line(error)}); {advice}") from error
        except Exception as error:  # parsers, decompressors and the file system each raise their own
            fault = f"cannot be read ({first_line(error)}); mend it, or name another file or folder ({_KNOWN})"
            raise CorpusError.of(file, fault) from error
    return texts


def _txt_texts(text: str, unit: str, many: bool) -> tuple[str, list[str]]:
    """What a document is, and the documents of a .txt file; `many` says whether "auto" looks for several in it."""
    paragraphs = re.split(r"\n(?:[^\S\n]*\n)+", text.strip("\n")) if unit in ("auto", "paragraph") else []
    if unit == "auto":
        unit = "file" if not many else "paragraph" if len(paragraphs) > 1 else "line"
    return unit, {"file": [text], "paragraph": paragraphs}.get(unit) or text.removesuffix("\n").split("\n")


def _csv_texts(stream: TextIO, file: Path, delimiter: str, column: str) -> Iterator[str]:
    csv.field_size_limit(2**31 - 1)  # a document may be longer than the 131,072 characters of its default
    rows = csv.reader(stream, delimiter=delimiter, strict=True)
    is_filled = is_text = False
    try:
        header = next(rows, [])
        _check_column(column, header, f"the first line of {str(file)!r}")
        index = header.index(column)
        for number, row in enumerate(filter(None, rows), 1):
            if len(row) != len(header):
                raise csv.Error(f"row {number} has {len(row)} fields where the first line names {len(header)}")
            is_filled = is_filled or bool(row[index].strip())
            is_text = is_text or not _NUMBER.fullmatch(row[index])
            yield row[index]
    except csv.Error as error:
        advice = (
            'quote fields with separators, quotes ("") or line breaks in double quotes, and end no row in a separator'
        )
        raise ValueError(f"line {rows.line_num}: {error}; {advice}") from error
    if is_filled and not is_text:
        raise ParameterError(f"text_column: column {column!r} of {str(file)!r} holds numbers, not text")


def _json_texts(stream: TextIO, file: Path, whole: bool, column: str) -> Iterator[str | None]:
    names: dict[str, None] = {}
    for number, row in enumerate(_json_rows(stream, whole), 1):
        row = row if isinstance(row, dict) else {"text": row}  # as `datasets` does
        names.update(dict.fromkeys(row))
        text = row.get(column)
        if not isinstance(text, str | None):
            kind = type(text).__name__
            raise ParameterError(f"text_column: {str(file)!r}, row {number}: column {column!r} holds {kind}, not text")
        if text and _SURROGATE.search(text):
            raise CorpusError.of(file, f"holds half of a surrogate pair in row {number}, which is no character")
        yield text
    if names:
        _check_column(column, list(names), repr(str(file)))


def _json_rows(stream: TextIO, whole: bool) -> Iterator[Any]:
    """Values of JSON lines or, if `whole`, of a list or of values one after the other."""
    decode, space = json.JSONDecoder(object_pairs_hook=unique_keys).raw_decode, re.compile(r"\s*")
    for number, text in enumerate(map(str.rstrip, [stream.read()] if whole else stream)):
        position = 0
        while position < len(text):
            try:
                value, position = decode(text, space.match(text, position).end())  # type: ignore[union-attr]
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number + error.lineno}: {error.msg} at character {error.colno}") from error
            except ValueError as error:
                raise ValueError(f"{'' if whole else f'line {number + 1}: '}{error}") from error
            yield from value if whole and isinstance(value, list) else [value]


def _column_texts(file: Path, column: str) -> Iterator[str | None]:
    """Texts of a Parquet file, or of an Arrow stream as `save_to_disk` writes it."""
    import pyarrow as pa

    with pa.memory_map(str(file)) as source:
        for batch in (_parquet if _kind(file) else _arrow)(file, source, column):
            texts = batch.column(column)
            texts = texts.dictionary_decode() if pa.types.is_dictionary(texts.type) else texts
            if str(texts.type) not in ("string", "large_string", "string_view", "null"):
                raise ParameterError(f"text_column: column {column!r} of {str(file)!r} holds {texts.type}, not text")
            yield from texts.to_pylist()


def _parquet(file: Path, source: Any, column: str) -> Iterator[Any]:
    """Batches of `column`, once it was measured with its dictionary kept apart."""
    import pyarrow.parquet as pq

    plain = pq.ParquetFile(source)
    _check_column(column, plain.schema_arrow.names, repr(str(file)))
    groups = (plain.metadata.row_group(i) for i in range(plain.num_row_groups))
    for _ in _bounded(file, groups, lambda g: max(g.total_byte_size, 8 * g.num_rows * g.num_columns)):
        pass
    # the columns' own metadata would say which have dictionaries, but PyArrow ends the process where they are damaged
    apart = pq.ParquetFile(source, read_dictionary=[c.path for c in plain.schema if c.physical_type == "BYTE_ARRAY"])
    chunks = (c for i in range(apart.num_row_groups) for c in apart.read_row_group(i, [column]).column(0).chunks)
    for _ in _bounded(file, (c for c in chunks if hasattr(c, "dictionary")), _dictionary_bytes):
        pass
    yield from plain.iter_batches(columns=[column])


def _arrow(file: Path, source: Any, column: str) -> Iterator[Any]:
    """Batches of an Arrow stream. Raises ValueError for those that cannot be measured before they expand."""
    import pyarrow as pa

    if not all(map(_is_plain, pa.ipc.MessageReader.open_stream(source))):
        raise ValueError("its batches are compressed or have dictionaries; write it again without them, or as .parquet")
    source.seek(0)
    stream = pa.ipc.open_stream(source)
    _check_column(column, stream.schema.names, repr(str(file)))
    for batch in _bounded(file, stream, lambda b: 8 * b.num_rows * b.num_columns):
        batch.validate(full=True)  # offsets of a stranger may point anywhere
        yield batch


def _is_plain(message: Any) -> bool:
    """Whether a message is a schema, or a batch that names no codec: PyArrow tells of one only once it has expanded it.

    Flatbuffers list where a table's fields are: the header is field 2 of Message, a codec field 3 of RecordBatch, after
    which only fields of types come that `save_to_disk` does not write (Message.fbs of the Arrow format).
    """

    def number(kind: str, position: int) -> int:
        return struct.unpack_from(kind, message.metadata, position)[0]

    if message.type != "record batch":
        return message.type == "schema"
    root = number("<I", 0)
    header = root + number("<H", root - number("<i", root) + 8)
    batch = header + number("<I", header)
    return number("<H", batch - number("<i", batch)) <= 10


def _dictionary_bytes(texts: Any) -> int:
    """Bytes of what the dictionary of a column stands for."""
    import pyarrow.compute as pc

    return pc.sum(pc.binary_length(texts.dictionary).take(texts.indices)).as_py() or 0


def _bounded(file: Path, pieces: Iterable[Any], n_bytes: Callable[[Any], int]) -> Iterator[Any]:
    """The pieces of a file of a stranger. Raises CorpusError once they would fill the memory: see `MAX_EXPANSION`."""
    size, expanded = file.stat().st_size, 0
    limit = max(MAX_EXPANSION * size, MIN_BOMB_BYTES)
    for piece in pieces:
        if (expanded := expanded + n_bytes(piece)) > limit:
            fault = f"has {size:,} bytes and expands to over {limit:,}, as no text does; it is not read"
            raise CorpusError.of(file, f"{fault}. If you trust it, write it again as plain .jsonl")
        yield piece


def _text_stream(file: Path, newline: str | None) -> TextIO:
    """The characters of a file of UTF-8, or of UTF-16 or UTF-32 that says so by a byte-order mark, which is left out."""
    opened = _OPEN.get(file.suffix.casefold(), open)
    with opened(file, "rb") as stream:
        start = stream.read(1000)
        for _ in _bounded(file, iter(lambda: stream.read(2**20), b""), len) if opened is not open else ():
            pass
    encoding = next((e for mark, e in _MARKS.items() if start.startswith(mark)), "utf-8")
    if encoding == "utf-8" and len(start.translate(None, _CONTROLS)) < 3 * len(start) / 4:
        raise UnicodeError("it looks like UTF-16 or UTF-32 without a byte-order mark")
    return opened(file, "rt", encoding=encoding, newline=newline)
