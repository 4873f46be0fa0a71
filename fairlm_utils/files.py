"""Files: written whole or not at all, locked, with digests; errors that a user can mend, and what a terminal can print."""

from __future__ import annotations

import codecs
import errno
import glob
import hashlib
import io
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock
from tqdm.auto import tqdm

PROJECT = Path(__file__).resolve().parents[1]
#: What a run's results are: weights, learning curves, per-token tables and small tables.
RESULT_FILES = ("model/*.safetensors", "learning_curves.safetensors", "tokens_*.parquet", "tables/*.csv")
SEAL = "sha256.json"
#: What the characters of our own messages are where a terminal lacks them.
_PLAIN = {
    **{"λ": "lambda", "Σ": "sum", "π": "pi", "ℓ": "loss", "±": "+-", "→": "->", "≤": "<=", "≥": ">=", "…": "..."},
    **dict(zip("×−–—²·‘’“”\N{NO-BREAK SPACE}", "x---2*''\"\" ", strict=True)),
}


class UserError(Exception):
    """What a user can mend: the message says what is wrong and what to do."""


class RunError(UserError, RuntimeError):
    """A run directory or result folder that is missing, incomplete, foreign or in use; the message says what to do."""


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object of its keys and values (`object_pairs_hook`). Raises ValueError if a key stands twice: either could be meant."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(k for k in found if keys.count(k) > 1)!r} stands twice in one object")
    return found


def counted(n: int, noun: str) -> str:
    """A number of things, in words that follow it.

    >>> counted(1, "seed"), counted(2000, "seed")
    ('1 seed', '2,000 seeds')
    """
    return f"{n:,} {noun}" + ("" if n == 1 else "s")


def first_line(error: BaseException) -> str:
    """The first line of an error's message, at most 300 characters of it, or its type if it has none."""
    lines = str(error).splitlines()
    return lines[0][:300] if lines else type(error).__name__


def enter_project() -> None:
    """Make the project's root the working directory, so that relative paths mean the same wherever a notebook starts.

    And let what is printed from now on reach any terminal, see `print_plainly`.
    """
    os.chdir(PROJECT)
    print_plainly()


def print_plainly() -> None:
    """Let stdout and stderr take every text: what the terminal's encoding lacks is written in ASCII, λ as `lambda`."""
    codecs.register_error("fairlm.plain", _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a notebook's streams are UTF-8, and none
            stream.reconfigure(errors="fairlm.plain")


def _plain(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(_PLAIN.get(c, c.encode("ascii", "backslashreplace").decode()) for c in text), error.end


def progress(*arguments: Any, **options: Any) -> tqdm:
    """A progress bar with time left that vanishes when it is done; TQDM_DISABLE=1 in the environment shows none."""
    return tqdm(*arguments, leave=False, disable=os.environ.get("TQDM_DISABLE") == "1", **options)


#: What libraries say of a full disk where the system's own error is lost: safetensors and tokenizers, NumPy, PyTorch.
_FULL = re.compile(
    r"No space left|[Dd]isk quota|\d+ requested and \d+ written|PytorchStreamWriter|unexpected pos \d+ vs"
)
_UNWRITABLE = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EEXIST,
    errno.ENOTDIR,
    errno.ENAMETOOLONG,
)


@contextmanager
def _disk_errors_explained(place: Path) -> Iterator[None]:
    """Within the context, a disk that takes nothing more raises RunError, whatever the library that writes makes of it."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not (isinstance(error, OSError) and error.errno in _UNWRITABLE) and not _FULL.search(str(error)):
            raise
        raise RunError(
            f"{place}: cannot be written ({first_line(error)}); make room, or choose a place that can be, and repeat the command: "
            "what was finished is kept"
        ) from error


def check_space(directory: Path, n_bytes: float, what: str) -> None:
    """Raise RunError if the disk of a folder that exists has no room for the `n_bytes` that `what` takes, before its work."""
    if (free := shutil.disk_usage(directory).free) < n_bytes:
        raise RunError(
            f"{directory}: {what} takes {n_bytes / 1e6:,.1f} MB, and the disk has {free / 1e6:,.1f} MB free; make room, or set "
            "runs_dir to a place on another disk"
        )


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path`, moved onto it when the block ends without an error, removed when it does not.

    Raises RunError if the disk takes no more.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with _disk_errors_explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: str | Path, **kinds: type | tuple[type, ...]) -> dict[str, Any]:
    """Read an object from a JSON file; RunError if it is missing, is none, or lacks a key of `kinds` with a value of that type."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise TypeError("it is not an object")
        if wrong := [name for name, kind in kinds.items() if not isinstance(found.get(name), kind)]:
            raise TypeError(f"{', '.join(wrong)}: missing, or of another type")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise RunError(f"{path}: cannot be read ({error}); remove its folder to compute it again") from error
    return found


def write_table(path: str | Path, table: pd.DataFrame) -> None:
    """Write a table as CSV (7 significant digits) or Parquet by its suffix, atomically."""
    with atomic_path(path) as temporary:
        if Path(path).suffix == ".csv":
            table.to_csv(temporary, index=False, float_format="%.7g")
        else:
            table.to_parquet(temporary, index=False)


def check_writable(file: Path) -> None:
    """Raise RunError if `file` cannot be written, before the work whose result it is to hold. Makes its folder."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=file.parent):
            pass
        if file.is_dir():
            raise IsADirectoryError("it is a folder")
    except OSError as error:
        raise RunError(f"{file}: cannot be written ({error.strerror or error}); choose another place") from error


def within(runs_dir: str | Path, *names: str) -> Path:
    """A folder below `runs_dir`. Raises RunError if a link leads it elsewhere, where nothing may be written."""
    directory = Path(runs_dir, *names)
    if not directory.resolve().is_relative_to(Path(runs_dir).resolve()):
        raise RunError(
            f"{directory}: is a link out of runs_dir to {directory.resolve()}; remove it, or set runs_dir to where it leads"
        )
    return directory


@contextmanager
def locked(directory: str | Path) -> Iterator[None]:
    """Hold `directory` for this process; a second process waits until the first is done, and says so.

    Raises RunError if it cannot be written, or holds a link, through which files elsewhere would be, or its disk takes no more.
    """
    directory = Path(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if link := next(_links(directory), None):
            raise RunError(f"{link}: is a link to {link.readlink()}; remove it: nothing is written through links")
        lock = FileLock(directory / ".lock")
        with suppress(TimeoutError):
            lock.acquire(timeout=0)
    except (OSError, ValueError, NotImplementedError) as error:  # a NUL is a ValueError; disks without locks exist
        raise RunError(f"{directory}: cannot be written ({error}); choose another runs_dir") from error
    if not lock.is_locked:
        print(f"waiting for another process that works on {directory}")
        lock.acquire()
    try:
        with _disk_errors_explained(directory):
            yield
    finally:
        lock.release()


def _links(directory: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(directory):  # unlike rglob it minds no file that another process removes
        yield from (path for name in (*folders, *files) if (path := Path(folder, name)).is_symlink())


def digests(directory: str | Path, patterns: Sequence[str]) -> dict[str, str]:
    """SHA-256 of the files of a folder that match any of the glob `patterns`, by their path in it."""
    directory = Path(directory)
    found = {}
    for path in sorted(path for pattern in patterns for path in directory.glob(pattern) if path.is_file()):
        with open(path, "rb") as file:
            found[str(path.relative_to(directory))] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def verify(directory: str | Path, recorded: Mapping[str, str], remedy: str) -> None:
    """Raise RunError naming the first recorded file that is missing or no longer has its digest, and what to do."""
    directory = Path(directory)
    for name, digest in recorded.items():
        if digests(directory, [glob.escape(name)]).get(name) != digest:
            raise RunError(f"{directory / name}: is missing or damaged (its SHA-256 is not the recorded one); {remedy}")


def seal(directory: str | Path) -> None:
    """Record the digests of a finished run's results in its sha256.json."""
    write_json(Path(directory) / SEAL, digests(directory, RESULT_FILES))


def check_seal(directory: str | Path, part: str = "") -> None:
    """Raise RunError if a file of a sealed run whose name begins with `part` is damaged; an unsealed run passes."""
    if (Path(directory) / SEAL).exists():
        recorded = {k: v for k, v in read_json(Path(directory) / SEAL).items() if k.startswith(part)}
        verify(directory, recorded, "remove the run's folder and run again")
