"""Run directories: where results lie, what they say of their origin, and how finished ones are found.

    RUNS_DIR/tokenized/DIGEST/           tokenizer and token ids of a corpus, shared by experiments
    RUNS_DIR/EXPERIMENT/RUN_ID/          one (model, λ, seed): params.json, text.json, provenance.json, model/, curves, tables,
                                         log.txt of what a sweep's run printed; executed notebooks where a report shows it
    results/EXPERIMENT/                  the small tables of an experiment, committed

Every file but a log is written beside its place and moved there, so that a file that exists is whole. The last file a stage
writes says that the stage is finished: `provenance.json` for training, `tables/totals.csv` for evaluation.

python -m fairlm_utils.runs show RUN_DIR        # what is needed to repeat a run
python -m fairlm_utils.runs repeat RUN_DIR      # train and evaluate it again elsewhere, and compare
"""

from __future__ import annotations

import argparse
import codecs
import glob
import hashlib
import importlib.metadata
import io
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock
from tqdm.auto import tqdm

from fairlm_utils.corpora import CorpusError
from fairlm_utils.metrics import SPLITS
from fairlm_utils.params import CorpusParams, EvaluationParams, ParameterError, TokenizationParams, TrainingParams

PROJECT = Path(__file__).resolve().parents[1]
PACKAGES = (
    "torch",
    "transformers",
    "accelerate",
    "datasets",
    "tokenizers",
    "numpy",
    "pandas",
    "scipy",
    "altair",
    "papermill",
)
TOKENS = "tokens.csv"
_RUN = ["model", "weight_decay", "seed"]
_SCORES = ["accuracy", "top5_accuracy", "learning_speed", "floor_accuracy", "confidence", "ece"]
_LOSSES = [f"{of}{over}" for of in ("loss", "unigram", "floor", "gain") for over in ("", "_occurrences")]
_GROUP = ["n_types", "n_tokens", *_LOSSES, *_SCORES]
_FLOORS = [f"{mean}_{of}" for of in ("floor", "floor_accuracy") for mean in ("average", "token_balanced")]
_MEANS = [
    f"{mean}_{of}" for of in ("loss", "accuracy", "perplexity", "unigram") for mean in ("average", "token_balanced")
]
#: The small tables of a run and of an experiment, and the columns of each. Floors are those of training rows, empty in
#: held-out ones. `counts`, the histogram of n_v, is the same for all λ and seeds; it has `variant` where variants differ.
TABLES: dict[str, list[str]] = {
    "totals": [*_RUN, "split", "n_types", "n_tokens", "n_train_tokens", "chance", *_MEANS, *_FLOORS],
    "bins": [*_RUN, "split", "bin", "bin_low", *_GROUP],
    "classes": [*_RUN, "split", "frequency_class", *_GROUP],
    "kinds": [*_RUN, "split", "kind", *_GROUP],
    "reliability": [*_RUN, "split", "frequency_class", "confidence_bin", "n_tokens", "confidence", "accuracy"],
    "curves": [*_RUN, "bin", "bin_low", "step", "loss"],
    "counts": ["n_train", "n_types"],
}
_TOKEN_COLUMNS = ["token_id", "token", "kind", "n_train", "weight_decay"] + [
    f"{of}_{split}" for of in ("loss", "change") for split in SPLITS
]
#: Tables that some experiments have: loss by word, where runs are evaluated with `by_word`, and by language, where
#: `fairlm_utils.languages` made the corpus.
SOME_TABLES = {
    "words": [*_RUN, "split", "bin", "bin_low", "n_words", "n_occurrences", "loss", "loss_occurrences"],
    "languages": [*_RUN, "split", "language", "share", "n_bytes", "bits_per_byte", "n_types", "low_frequency_types"],
}
_TEXT = {"model", "variant", "split", "language", "bin", "frequency_class", "kind", "token"}
_WHOLE = (_TEXT - {"token"}) | {*_RUN, "n_train", "n_train_tokens", "chance", *_MEANS}
#: Types of the largest vocabulary whose table is written for committing; that of a larger one stays with its runs.
MAX_COMMITTED_TYPES = 5_000
_RESTORE = "restore it, or make it again by the command in its README.md"
#: What a run's results are: weights, learning curves, per-token tables and small tables.
RESULT_FILES = ("model/*.safetensors", "learning_curves.safetensors", "tokens_*.parquet", "tables/*.csv")
SEAL = "sha256.json"
#: Which text a run was made from: digests of the documents, of their token ids, and of the model's config if that is a file.
TEXT = "text.json"
#: What the characters of our own messages are where a terminal lacks them.
_PLAIN = {
    **{"λ": "lambda", "Σ": "sum", "π": "pi", "ℓ": "loss", "×": "x", "±": "+-", "−": "-", "–": "-", "—": "-", "→": "->"},
    **{
        "≤": "<=",
        "≥": ">=",
        "²": "2",
        "·": "*",
        "…": "...",
        "‘": "'",
        "’": "'",
        "“": '"',
        "”": '"',
        "\N{NO-BREAK SPACE}": " ",
    },
}
#: Parameters that differ between the runs of one experiment; all others must agree, but between variants.
AXES = ("model", "variant", "weight_decay", "seed")


class RunError(RuntimeError):
    """A run directory or result folder that is missing, incomplete, foreign or in use; the message says what to do."""


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


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path`, moved onto it when the block ends without an error, removed when it does not."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """Read a JSON file; RunError if it is missing or not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read ({error}); remove its folder to compute it again") from error


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


def run_dir(p: TrainingParams) -> Path:
    """The folder of the run with these parameters.

    Raises RunError if a link leads it out of `runs_dir`, where nothing may be written.
    """
    return within(p.runs_dir, p.experiment, p.run_id())


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

    Raises RunError if it cannot be written, or holds a link, through which files elsewhere would be.
    """
    directory = Path(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if link := next(_links(directory), None):
            raise RunError(f"{link}: is a link to {link.readlink()}; remove it: nothing is written through links")
        lock = FileLock(directory / ".lock")
        acquired = _try(lock)
    except (OSError, ValueError, NotImplementedError) as error:  # a NUL is a ValueError; disks without locks exist
        raise RunError(f"{directory}: cannot be written ({error}); choose another runs_dir") from error
    if not acquired:
        print(f"waiting for another process that works on {directory}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _links(directory: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(directory):  # unlike rglob it minds no file that another process removes
        yield from (path for name in (*folders, *files) if (path := Path(folder, name)).is_symlink())


def _try(lock: FileLock) -> bool:
    try:
        lock.acquire(timeout=0)
    except TimeoutError:
        return False
    return True


def claim(p: TrainingParams) -> Path:
    """The folder of a run, created, with its resolved parameters in it.

    Raises RunError if the folder holds a run of other parameters.
    """
    directory = run_dir(p)
    recorded = directory / "params.json"
    if recorded.exists():
        known = read_json(recorded)
        differing = sorted(k for k, v in p.identity().items() if known.get(k) != v)
        if differing:
            raise RunError(
                f"{directory} holds a run with other parameters ({', '.join(differing)}); choose another experiment name"
            )
    else:
        write_json(recorded, p.model_dump())
    return directory


def claim_text(directory: Path, p: TrainingParams, meta: Mapping[str, Any]) -> None:
    """Record in a run's text.json which text it is trained on, by `meta` of the tokenized corpus.

    Raises RunError if the run was begun on another text, tokenizer or config, or if another run of its experiment was.
    """
    meta = {**meta, **config_digest(p.model)}
    check_text(directory, p, meta)
    for other in sorted(path.parent for path in directory.parent.glob("*/params.json") if path.parent != directory):
        try:
            recorded = _recorded_text(other)
        except RunError:  # damaged, or just removed: not this run's concern
            continue
        if _same_text(recorded, text_identity(p.model_dump(), meta), other):
            break  # one of the same corpus stands for the rest
    if not (directory / TEXT).exists():
        kept = ("corpus", "fingerprint", "ids", "config")
        write_json(directory / TEXT, {key: meta[key] for key in kept if key in meta})


def check_text(directory: Path, p: TrainingParams, meta: Mapping[str, Any] | None) -> None:
    """Raise RunError if a run was made from another text or tokenizer than `meta` of the tokenized corpus now there.

    Or from another config file of its model. Of the text nothing is compared if `meta` is None, or if the run was left
    unfinished by a version that did not record it.
    """
    now = text_identity(p.model_dump(), {**(meta or {}), **config_digest(p.model)})
    _same_text(_recorded_text(directory), now, directory)


def check_texts(folder: Path, now: Mapping[str, str]) -> None:
    """Raise RunError if any run in RUNS_DIR/EXPERIMENT is of another text than is there `now`, see `text_identity`."""
    for path in sorted(folder.glob("*/params.json")):
        _same_text(_recorded_text(path.parent), now, path.parent)


def config_digest(model: str) -> dict[str, str]:
    """Digest of what the config file of a model says, under the key "config"; nothing if `model` is no file or folder."""
    path = Path(model)
    path = path / "config.json" if path.is_dir() else path
    try:
        text = json.dumps(json.loads(path.read_text(encoding="utf-8")), sort_keys=True)
    except (OSError, ValueError):  # no file, or none that a model can be made from
        return {}
    return {"config": hashlib.sha256(text.encode()).hexdigest()}


def text_identity(known: Mapping[str, Any], meta: Mapping[str, Any]) -> dict[str, str]:
    """Digest of the text, of its token ids and of the model's config, each by the parameters that name it.

    Runs of one experiment in which a key is the same and its digest is not are of two texts, tokenizers or models.
    """
    found = {f"model {json.dumps({'model': known['model']})}": meta["config"]} if "config" in meta else {}
    for what, key, cls in (("text", "fingerprint", CorpusParams), ("tokenizer", "ids", TokenizationParams)):
        if key in meta:
            names = cls.model_fields.keys() - TrainingParams.NOT_IDENTITY - {"low_frequency_percentile"}
            named = {name: known.get(name, cls.model_fields[name].default) for name in names}
            found[f"{what} {json.dumps(named, sort_keys=True)}"] = meta[key]
    return found


def _recorded_text(directory: Path) -> dict[str, str]:
    """What `text_identity` was when a run was made; empty where that is not recorded."""
    source = directory / TEXT if (directory / TEXT).exists() else directory / "provenance.json"
    if not source.exists():
        return {}
    meta = read_json(source)
    return text_identity(read_json(directory / "params.json"), meta if source.name == TEXT else meta.get("corpus", {}))


def _same_text(recorded: Mapping[str, str], now: Mapping[str, str], directory: Path) -> bool:
    """Whether anything could be compared; RunError if it was not the same."""
    for key in (shared := sorted(recorded.keys() & now.keys())):  # text before tokenizer, which may be learnt from it
        if recorded[key] != now[key]:
            what, _, named = key.partition(" ")
            name = json.loads(named)["corpus" if what == "text" else what]
            raise RunError(
                f"{directory}: was made from another {what}: {name!r} has changed since, and what was learnt from two is not "
                "mixed; remove the folder to train on what is there now, put the earlier one back, or set another "
                "`experiment` name"
            )
    return bool(shared)


def provenance(p: TrainingParams, corpus: dict[str, Any], seconds: float, device: str) -> dict[str, Any]:
    """What is needed to repeat a run and to judge it: versions, commit, device, corpus fingerprint, time, memory."""
    return {
        "run_id": p.run_id(),
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "git_commit": git_commit(),
        "platform": f"{platform.system()} {platform.machine()}",
        "device": device,
        "n_threads": p.n_threads,
        "corpus": corpus,
        "wall_seconds": round(seconds, 1),
        "peak_memory_mb": round(peak_memory_mb()),
    }


def _version(package: str) -> str:
    """Version of a package, empty if it is not installed: a run needs none of those for notebooks and charts."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def peak_memory_mb() -> float:
    """Largest resident memory of this process so far, in MB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def git_commit() -> str:
    """Commit of this checkout, with `+changes` if files differ from it, or `unknown` outside one.

    A repository that lies around an unpacked archive of this project is not its checkout.
    """
    elsewhere = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY", "GIT_PREFIX")
    environment = {name: value for name, value in os.environ.items() if name not in elsewhere}

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=PROJECT, capture_output=True, check=True, env=environment)
        return os.fsdecode(done.stdout).strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != PROJECT or not git("ls-files", "--", "fairlm_utils"):
            return "unknown"
        changed = git(
            "status", "--porcelain", "--untracked-files=no", "--", "fairlm_utils", "params", "requirements.txt"
        )
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


@dataclass(frozen=True)
class Results:
    """The tables of an experiment, one row a run and group, and the parameters and provenance its runs share."""

    totals: pd.DataFrame
    bins: pd.DataFrame
    classes: pd.DataFrame
    kinds: pd.DataFrame
    reliability: pd.DataFrame
    curves: pd.DataFrame
    counts: pd.DataFrame  # the histogram of the training counts n_v
    params: dict[str, Any]
    provenance: dict[str, Any]
    languages: pd.DataFrame | None = None  # shares, tokens and bits per byte by language, see `languages.by_language`
    tokens: pd.DataFrame | None = None  # every type's loss and its change with λ, see `token_changes`
    words: pd.DataFrame | None = None  # loss by frequency bin of words, where the runs were evaluated with `by_word`

    @property
    def scale(self) -> str:
        """One line: model, data, steps and seeds of the experiment."""
        training = self.totals[self.totals["split"] == "training"]
        varied = [a for a in AXES if a in training and a != "seed"]
        n_seeds = training.groupby(varied)["seed"].nunique()
        n = (
            f"{training['variant'].nunique()} variants"
            if "variant" in training
            else f"{training['weight_decay'].nunique()} values of λ"
        )
        seeds = f"{n_seeds.min()}" + (f" to {n_seeds.max()}" if n_seeds.min() < n_seeds.max() else "")
        p, targets = self.params, training["n_train_tokens"].astype(int)
        corpus = p.get("corpus") or " and ".join(own["corpus"] for own in p["variants"].values())
        n_targets = f"{targets.min():,}" + (f" to {targets.max():,}" if targets.min() < targets.max() else "")
        context = f"{p['context']} tokens" if "context" in p else "several lengths"
        steps = f"{p['steps']:,} steps" if "steps" in p else "several numbers of steps"
        return (
            f"{', '.join(training['model'].unique())} on {corpus}, {n_targets} training targets in "
            f"blocks of {context}, {steps}, {n}, {seeds} seeds each"
        )


def load_results(folder: str | Path) -> Results:
    """Tables of an experiment from a folder of committed tables or from the finished runs in RUNS_DIR/EXPERIMENT.

    Raises RunError if the folder has neither, holds runs whose parameters differ beyond model, λ and seed or whose text
    differs, or a file that is damaged or is not such a table, or tables of an earlier version, which lack the floor.
    """
    folder = Path(folder)
    if (folder / "experiment.json").exists():
        known = read_experiment(folder / "experiment.json")
        _check_floor(folder, folder)
        return Results(
            **{name: read_csv(folder / f"{name}.csv", TABLES[name]) for name in TABLES},
            **known,
            **{name: _if_all_exist([folder / f"{name}.csv"], columns) for name, columns in SOME_TABLES.items()},  # type: ignore[arg-type]
            tokens=_if_all_exist([folder / TOKENS], _TOKEN_COLUMNS),
        )
    finished = finished_runs(folder)
    if not finished:
        raise RunError(
            f"{folder}: no result tables and no finished runs; run `make reproduce`, or set `results` to a folder of results/"
        )
    params = _shared_params(finished)
    for directory in finished:
        check_seal(directory, "tables/")
        _check_floor(directory / "tables", folder)
    tables = {
        name: pd.concat([read_csv(d / "tables" / f"{name}.csv", columns) for d in finished], ignore_index=True)
        for name, columns in TABLES.items()
    }
    counts = distinct_counts(tables.pop("counts"))
    tables = {
        name: table.sort_values([a for a in AXES if a in table], kind="stable", ignore_index=True)
        for name, table in tables.items()
    }
    return Results(
        **tables,
        counts=counts,
        params=params,
        provenance=_shared_provenance(finished),
        tokens=token_changes(finished),
        **{
            n: _if_all_exist([d / "tables" / f"{n}.csv" for d in finished], columns)
            for n, columns in SOME_TABLES.items()
        },
    )


def _if_all_exist(paths: Sequence[Path], columns: Sequence[str]) -> pd.DataFrame | None:
    """The table of these files under one another, in the order of the other tables; None if one is missing."""
    if not all(path.exists() for path in paths):
        return None
    table = pd.concat([read_csv(path, columns) for path in paths], ignore_index=True)
    return table.sort_values([a for a in AXES if a in table], kind="stable", ignore_index=True)


def _check_floor(tables: Path, experiment: Path) -> None:
    if not (tables / "counts.csv").exists():  # came with the columns of the floor, the unigram and chance
        raise RunError(
            f"{tables}: tables of an earlier version, without the floor and the counts; add them by "
            f"`python -m fairlm_utils.floor {experiment}`"
        )


def distinct_counts(counts: pd.DataFrame) -> pd.DataFrame:
    """Histograms of n_v of several runs as that of their experiment, without `variant` where all variants have the same."""
    columns = [c for c in ("variant", "n_train", "n_types") if c in counts]
    counts = counts[columns].drop_duplicates().sort_values(columns, ignore_index=True)
    if "variant" in counts:
        shared = counts[["n_train", "n_types"]].value_counts(sort=False)
        if (shared == counts["variant"].nunique()).all():
            return shared.index.to_frame(index=False)
    return counts


def token_changes(directories: Sequence[Path]) -> pd.DataFrame | None:
    """Every type of the vocabulary that occurs in training: its loss at λ = 0 and how the largest λ up to 1 changes it.

    Means over seeds, of the first model. Columns: token_id, token, kind, n_train, then loss_training, change_training,
    loss_held-out, change_held-out in nats (empty where the type does not occur). None without λ = 0 and another, or with
    variants.
    """
    known = [(d, read_json(d / "params.json")) for d in directories]
    known = [(d, p) for d, p in known if p["model"] == known[0][1]["model"] and p["weight_decay"] <= 1]
    largest = max((p["weight_decay"] for _, p in known), default=0.0)
    if largest == 0 or min(p["weight_decay"] for _, p in known) > 0 or any(p.get("variant") for _, p in known):
        return None
    losses = {}
    for split in SPLITS:
        for weight_decay in (0.0, largest):
            paths = [d / f"tokens_{split}.parquet" for d, p in known if p["weight_decay"] == weight_decay]
            losses[split, weight_decay] = _mean_loss(paths)
    columns = pd.read_parquet(paths[0], columns=["token_id", "token", "kind", "n_train"])
    for split in SPLITS:
        columns[f"loss_{split}"] = losses[split, 0.0].round(4)
        columns[f"change_{split}"] = (losses[split, largest] - losses[split, 0.0]).round(4)
    columns["weight_decay"] = largest
    return columns[columns["n_train"] > 0].reset_index(drop=True)


def _mean_loss(paths: Sequence[Path]) -> np.ndarray:
    """Mean over runs of every type's loss, one table in memory at a time."""
    total = np.zeros(())
    for path in paths:
        total = total + pd.read_parquet(path, columns=["loss"])["loss"].to_numpy()
    return total / len(paths)


def finished_runs(folder: str | Path) -> list[Path]:
    """Folders of the runs in RUNS_DIR/EXPERIMENT that are trained and evaluated, sorted by name."""
    return sorted(path.parents[1] for path in Path(folder).glob("*/tables/totals.csv"))


def read_csv(path: Path, columns: Sequence[str] = ()) -> pd.DataFrame:
    """A table with these columns, those of `_TEXT` text and the others numbers, those of `_WHOLE` without gaps."""
    try:
        table = pd.read_csv(path, keep_default_na=False, na_values=[""], dtype=dict.fromkeys(_TEXT, str))
        if missing := [c for c in columns if c not in table]:
            raise ValueError(f"no column {', '.join(missing)}")
        if table.empty:
            raise ValueError("no rows")
        for column in columns:
            if column not in _TEXT and table[column].dtype.kind not in "iuf":
                raise ValueError(f"column {column} does not hold numbers")
            if column in _WHOLE and table[column].isna().any():
                raise ValueError(f"column {column} has gaps")
        if "split" in columns and not {"training"} <= set(table["split"]) <= set(SPLITS):
            raise ValueError(f"column split does not hold {' and '.join(SPLITS)}")
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read ({error}); remove its run's folder and run again") from error
    return table


def read_experiment(path: Path) -> dict[str, Any]:
    """Parameters and provenance of committed tables, whose digests are compared."""
    known = read_json(path)
    named = isinstance(known, dict) and known.keys() == {"params", "provenance", "sha256"}
    if (
        not named
        or not all(isinstance(part, dict) for part in known.values())
        or "git_commits" not in known["provenance"]
    ):
        raise RunError(f"{path}: is not of an experiment's tables; {_RESTORE}")
    fields = TrainingParams.model_fields
    try:
        TrainingParams.check({k: v for k, v in known["params"].items() if k in fields}, str(path))
    except ParameterError as error:
        raise RunError(f"{error}; {_RESTORE}") from error
    settings = known["params"].get("variants") or {"": known["params"]}
    if any("corpus" not in known["params"] | own for own in settings.values()):
        raise RunError(f"{path}: says nothing of the corpus; {_RESTORE}")
    verify(path.parent, known.pop("sha256"), _RESTORE)
    return known


def _shared_params(directories: list[Path]) -> dict[str, Any]:
    """What all runs share, and under `variants` what each variant has of its own.

    Runs of one variant may differ in `AXES` alone, those of two in any parameter.
    """
    shared: dict[str, Any] = {}
    texts: dict[str, str] = {}
    of_variant: dict[str, tuple[Path, dict[str, Any]]] = {}
    for directory in directories:
        params = read_json(directory / "params.json")
        fixed = {k: v for k, v in params.items() if k not in AXES and k not in TrainingParams.NOT_IDENTITY}
        first, known = of_variant.setdefault(params.get("variant", ""), (directory, fixed))
        differing = sorted(k for k, v in known.items() if fixed.get(k) != v)
        if differing:
            raise RunError(
                f"{directory.parent}: {directory.name} differs from {first.name} in {', '.join(differing)}, and tables "
                "of different settings are not mixed; remove the runs you do not want or use another experiment name"
            )
        text = _recorded_text(directory)
        _same_text(text, texts, directory)
        texts |= text
        shared = {k: v for k, v in (shared or fixed).items() if fixed.get(k) == v}
    shared["experiment"] = params["experiment"]
    if set(of_variant) != {""}:
        shared["variants"] = {
            n: {k: v for k, v in known.items() if k not in shared} for n, (_, known) in of_variant.items()
        }
    return shared


def _shared_provenance(directories: list[Path]) -> dict[str, Any]:
    every = [read_json(d / "provenance.json") for d in directories]
    shared = {k: every[0][k] for k in every[0] if k != "run_id" and all(e.get(k) == every[0][k] for e in every)}
    seconds = [e["wall_seconds"] for e in every]
    return {
        **shared,
        "git_commits": sorted({e["git_commit"] for e in every}),
        "wall_seconds_of_runs": [min(seconds), float(np.median(seconds)), max(seconds)],
        "peak_memory_mb": max(e["peak_memory_mb"] for e in every),
        "n_runs": len(every),
    }


def write_results(results: Results, folder: str | Path, command: str) -> None:
    """Write an experiment's small tables to a folder of `results/`, with the command that makes them.

    Raises RunError if the folder cannot be written.
    """
    tables = {f"{name}.csv": getattr(results, name) for name in TABLES}
    tables |= {f"{name}.csv": own for name in SOME_TABLES if (own := getattr(results, name)) is not None}
    if results.tokens is not None and len(results.tokens) <= MAX_COMMITTED_TYPES:
        tables[TOKENS] = results.tokens
    known = {"params": results.params, "provenance": {**results.provenance, "command": command}}
    try:
        for name, table in tables.items():
            write_table(Path(folder) / name, table)
        write_json(Path(folder) / "experiment.json", {**known, "sha256": digests(folder, list(tables))})
    except OSError as error:
        raise RunError(f"{folder}: results cannot be written ({error}); choose another folder") from error


def check_experiment(points: Sequence[Any]) -> None:
    """Refuse, before anything runs, an experiment folder that holds finished runs of other settings.

    That they are of the same text is for `check_texts` to say, which needs the corpus.

    Raises RunError naming the parameters that differ.
    """
    folder = Path(points[0].runs_dir) / points[0].experiment
    wanted = {p.run_id() for p in points}
    for directory in finished_runs(folder):
        if directory.name in wanted:
            continue
        known = read_json(directory / "params.json")
        first = next((p.identity() for p in points if p.variant == known.get("variant", "")), {"variant": None})
        differing = sorted(k for k, v in first.items() if (k not in AXES or k == "variant") and known.get(k) != v)
        if differing:
            raise RunError(
                f"{folder} holds runs that differ from this experiment in {', '.join(differing)}; remove the folder or set "
                "another `experiment` name"
            )


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


def repeat(directory: str | Path) -> dict[str, bool]:
    """Train and evaluate a finished run again in a temporary folder: whether each file has the same bits.

    Raises RunError if the run is not finished, its text has changed, or its parameters are of another version of this
    package.
    """
    from fairlm_utils.evaluation import evaluate
    from fairlm_utils.tokenization import text_now

    directory = Path(directory)
    _check_finished(directory, "tables/totals.csv")
    before = digests(directory, RESULT_FILES)
    values = read_json(directory / "params.json")
    values = {**EvaluationParams().model_dump(), **values}
    known = EvaluationParams.check(
        {k: v for k, v in values.items() if k in EvaluationParams.model_fields}, str(directory)
    )
    with tempfile.TemporaryDirectory() as folder:
        again = known.model_copy(update={"runs_dir": folder})
        check_text(directory, again, text_now(again))
        after = digests(evaluate(again), RESULT_FILES)
    return {name: after.get(name) == digest for name, digest in before.items()}


def _check_finished(directory: Path, last: str) -> None:
    if not (directory / last).exists():
        raise RunError(f"{directory}: no finished run; name a folder RUNS_DIR/EXPERIMENT/RUN_ID")


def show(directory: str | Path) -> str:
    """Parameters, provenance and file digests of a run, as text. Raises RunError if there is no trained run."""
    directory = Path(directory)
    _check_finished(directory, "provenance.json")
    parts = {
        "parameters": read_json(directory / "params.json"),
        "provenance": read_json(directory / "provenance.json"),
        "sha256": digests(directory, RESULT_FILES),
    }
    return json.dumps(parts, indent=2, ensure_ascii=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Show what is needed to repeat a run, or repeat it and compare bit by bit."""
    parser = argparse.ArgumentParser(prog="python -m fairlm_utils.runs", description=main.__doc__)
    parser.add_argument("command", choices=["show", "repeat"])
    parser.add_argument("run", help="folder of a run, RUNS_DIR/EXPERIMENT/RUN_ID")
    options = parser.parse_args(arguments)
    directory = Path(options.run).resolve()
    enter_project()
    try:
        if options.command == "show":
            print(show(directory))
            return 0
        same = repeat(directory)
    except (RunError, CorpusError, ParameterError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name, equal in same.items():
        print(f"{'the same bits' if equal else 'DIFFERS      '}  {name}")
    return 0 if all(same.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
