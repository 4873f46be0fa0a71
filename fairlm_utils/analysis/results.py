"""The small tables of an experiment: their columns, how they are read from runs or from results/, and written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fairlm_utils import files, identity
from fairlm_utils.frequency import SPLITS
from fairlm_utils.params import ParameterError, TrainingParams

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
#: `results/languages/extract.py` made the corpus.
SOME_TABLES = {
    "words": [*_RUN, "split", "bin", "bin_low", "n_words", "n_occurrences", "loss", "loss_occurrences"],
    "languages": [*_RUN, "split", "language", "share", "n_bytes", "bits_per_byte", "n_types", "low_frequency_types"],
}
_TEXT = {"model", "variant", "cell", "split", "language", "bin", "frequency_class", "kind", "token"}
_WHOLE = (_TEXT - {"token"}) | {*_RUN, "n_train", "n_train_tokens", "chance", *_MEANS}
#: Types of the largest vocabulary whose table is written for committing; that of a larger one stays with its runs.
MAX_COMMITTED_TYPES = 5_000
#: Parameters of no effect on the results.
_NO_EFFECT = {*TrainingParams.NOT_IN_RUN_ID, "eval_batch_size"}
_RESTORE = "restore it, or make it again by the command in its README.md"


@dataclass(frozen=True)
class Results:
    """The tables of an experiment, one row per run and group, and the parameters and provenance its runs share."""

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
        varied = [a for a in identity.AXES if a in training and a != "seed"]
        n_seeds = training.groupby(varied)["seed"].nunique()
        n_decays = training["weight_decay"].nunique()
        n = f"{n_decays} value{'s' * (n_decays > 1)} of λ"
        if "variant" in training:
            n = files.counted(training["variant"].nunique(), "variant")
        seeds = f"{n_seeds.min()} to " * bool(n_seeds.min() < n_seeds.max()) + files.counted(n_seeds.max(), "seed")
        p, targets = self.params, training["n_train_tokens"].astype(int)
        corpus = p.get("corpus") or " and ".join(dict.fromkeys(v["corpus"] for v in p["variants"].values()))
        n_targets = f"{targets.min():,}" + (f" to {targets.max():,}" if targets.min() < targets.max() else "")
        context = f"{p['context']} tokens" if "context" in p else "several lengths"
        steps = f"{p['steps']:,} steps" if "steps" in p else "several numbers of steps"
        return (
            f"{', '.join(training['model'].unique())} on {corpus}, {n_targets} training targets in "
            f"blocks of {context}, {steps}, {n}, {seeds} each"
        )


def load_results(folder: str | Path) -> Results:
    """Tables of an experiment from a folder of committed tables or from the finished runs in RUNS_DIR/EXPERIMENT.

    Raises RunError if the folder has neither, holds runs whose parameters differ beyond model, λ and seed or whose text
    differs, or a file that is damaged or is not such a table, or tables of an earlier version, which lack the floor.
    """
    folder = Path(folder)
    if (folder / "experiment.json").exists():
        known = read_experiment(folder / "experiment.json")
        return Results(
            **{name: read_csv(folder / f"{name}.csv", TABLES[name]) for name in TABLES},
            **known,
            **{name: _if_all_exist([folder / f"{name}.csv"], columns) for name, columns in SOME_TABLES.items()},  # type: ignore[arg-type]
            tokens=_if_all_exist([folder / TOKENS], _TOKEN_COLUMNS),
        )
    finished = identity.finished_runs(folder)
    if not finished:
        raise files.RunError(
            f"{folder}: no result tables and no finished runs; run `make reproduce`, or set `results` to a folder of results/"
        )
    params = _shared_params(finished)
    for directory in finished:
        files.check_seal(directory, "tables/")
    paths = {name: [d / "tables" / f"{name}.csv" for d in finished] for name in (*TABLES, *SOME_TABLES)}
    tables = {name: _stacked(paths[name], columns) for name, columns in TABLES.items()}
    return Results(
        **{**tables, "counts": distinct_counts(tables["counts"])},
        params=params,
        provenance=_shared_provenance(finished),
        tokens=token_changes(finished),
        **{name: _if_all_exist(paths[name], columns) for name, columns in SOME_TABLES.items()},
    )


def without_variants(results: Results) -> Results:
    """`results`, of which models, λ and seeds alone differ. Raises RunError if variants do, over which a mean says nothing."""
    if "variant" in results.totals:
        names = ", ".join(results.totals["variant"].unique()[:4])
        raise files.RunError(
            f"results: {results.params['experiment']} has variants ({names}, …), which are not compared here; 07_remedies compares "
            "remedies, and the page of a folder of results/ or of a report any variants"
        )
    return results


def load_experiments(folders: Sequence[str | Path]) -> dict[str, Results]:
    """`load_results` of several folders, by the names of their experiments. Raises RunError if two have the same name."""
    found: dict[str, Results] = {}
    for folder in folders:
        results = load_results(folder)
        name = results.params["experiment"]
        if name in found:
            raise files.RunError(f"{folder}: is the second folder of experiment {name!r}; name one folder for each")
        found[name] = results
    return found


def _stacked(paths: Sequence[Path], columns: Sequence[str]) -> pd.DataFrame:
    """The table of these files under one another, by model, variant, λ and seed."""
    return _in_order(pd.concat([read_csv(path, columns) for path in paths], ignore_index=True))


def _in_order(table: pd.DataFrame) -> pd.DataFrame:
    return table.sort_values([a for a in identity.AXES if a in table], kind="stable", ignore_index=True)


def _if_all_exist(paths: Sequence[Path], columns: Sequence[str]) -> pd.DataFrame | None:
    return _stacked(paths, columns) if all(path.exists() for path in paths) else None


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

    Means over the seeds that have both, of the first model. Columns: token_id, token, kind, n_train, then loss_training,
    change_training, loss_held-out, change_held-out in nats (empty where the type does not occur). None if no seed has both,
    or with variants.
    """
    known = [(d, identity.recorded_params(d)) for d in directories]
    known = [(d, p) for d, p in known if p["model"] == known[0][1]["model"] and p["weight_decay"] <= 1]
    largest = max((p["weight_decay"] for _, p in known), default=0.0)
    if largest == 0 or min(p["weight_decay"] for _, p in known) > 0 or any(p.get("variant") for _, p in known):
        return None
    of = {w: {p["seed"]: d for d, p in known if p["weight_decay"] == w} for w in (0.0, largest)}
    seeds = sorted(of[0.0].keys() & of[largest].keys())
    if not seeds:
        return None
    table = read_token_table(of[largest][seeds[0]], "training", ["token_id", "token", "kind", "n_train"])
    for split in SPLITS:
        zero, most = (
            np.mean([read_token_table(own[seed], split, ["loss"])["loss"] for seed in seeds], axis=0)
            for own in of.values()
        )
        table[f"loss_{split}"], table[f"change_{split}"] = zero.round(4), (most - zero).round(4)
    table["weight_decay"] = largest
    return table[table["n_train"] > 0].reset_index(drop=True)


def read_token_table(directory: str | Path, split: str, columns: list[str] | None = None) -> pd.DataFrame:
    """The per-token table of a run on a split, "training" or "held-out", or some of its columns."""
    path = Path(directory) / f"tokens_{split}.parquet"
    files.check_seal(directory, path.name)
    try:
        return pd.read_parquet(path, columns=columns)
    except (OSError, ValueError) as error:
        raise files.RunError(
            f"{path}: cannot be read ({error}); remove the run's folder and evaluate it again"
        ) from error


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
        raise files.RunError(f"{path}: cannot be read ({error}); remove its run's folder and run again") from error
    return table


def read_experiment(path: Path) -> dict[str, Any]:
    """Parameters and provenance of committed tables, whose digests are compared."""
    known = files.read_json(path)
    if (
        known.keys() != {"params", "provenance", "sha256"}
        or not all(isinstance(part, dict) for part in known.values())
        or "git_commits" not in known["provenance"]
    ):
        raise files.RunError(f"{path}: is not of an experiment's tables; {_RESTORE}")
    fields = TrainingParams.model_fields
    try:
        TrainingParams.check({k: v for k, v in known["params"].items() if k in fields}, str(path))
    except ParameterError as error:
        raise files.RunError(f"{error}; {_RESTORE}") from error
    settings = known["params"].get("variants") or {"": known["params"]}
    if any("corpus" not in known["params"] | own for own in settings.values()):
        raise files.RunError(f"{path}: says nothing of the corpus; {_RESTORE}")
    files.verify(path.parent, known.pop("sha256"), _RESTORE)
    return known


def _shared_params(directories: list[Path]) -> dict[str, Any]:
    """What all runs share, and under `variants` what each variant has of its own.

    Runs of one variant may differ in `AXES` alone, those of two in any parameter.
    """
    shared: dict[str, Any] = {}
    texts: dict[str, str] = {}
    of_variant: dict[str, tuple[Path, dict[str, Any]]] = {}
    for directory in directories:
        params = identity.recorded_params(directory)
        left_out = {*identity.AXES, *_NO_EFFECT}
        fixed = {k: v for k, v in {**identity.EVALUATION, **params}.items() if k not in left_out}
        first, known = of_variant.setdefault(params.get("variant", ""), (directory, fixed))
        differing = sorted(k for k, v in known.items() if fixed.get(k) != v)
        if differing:
            raise files.RunError(
                f"{directory.parent}: {directory.name} differs from {first.name} in {', '.join(differing)}, and tables "
                "of different settings are not mixed; remove the runs you do not want or use another experiment name"
            )
        text = identity.recorded_text(directory)
        identity.same_text(text, texts, directory)
        texts |= text
        shared = {k: v for k, v in (shared or fixed).items() if fixed.get(k) == v}
    shared["experiment"] = params["experiment"]
    if set(of_variant) != {""}:
        shared["variants"] = {
            n: {k: v for k, v in known.items() if k not in shared} for n, (_, known) in of_variant.items()
        }
    return shared


def _shared_provenance(directories: list[Path]) -> dict[str, Any]:
    number = (int, float)
    every = [
        files.read_json(d / "provenance.json", git_commit=str, wall_seconds=number, peak_memory_mb=number)
        for d in directories
    ]
    shared = {k: every[0][k] for k in every[0] if k != "run_id" and all(e.get(k) == every[0][k] for e in every)}
    seconds = [e["wall_seconds"] for e in every]
    return {
        **shared,
        "git_commits": sorted({e["git_commit"] for e in every}),
        "wall_seconds_of_runs": [min(seconds), float(np.median(seconds)), max(seconds)],
        "peak_memory_mb": max(e["peak_memory_mb"] for e in every),
        "n_runs": len(every),
    }


def renewed(table: pd.DataFrame, newer: pd.DataFrame, key: Sequence[str]) -> pd.DataFrame:
    """The rows of a table, in their order, with those of `newer` instead where `key` has the same values, then its others."""
    rows = pd.concat([table, newer], ignore_index=True)
    return rows[[*key]].drop_duplicates().merge(rows.drop_duplicates([*key], keep="last"), on=[*key])


def joined(committed: Results, runs: Results) -> Results:
    """The tables of an experiment with more of its runs, which take the place of their like: its other runs may be gone.

    Of the runs' seconds the median is that of the larger part. Raises RunError if parameters or text are not the same, and
    for tables with one by token, whose means over seeds say nothing of each.
    """
    name, old, new = runs.params["experiment"], committed.params, runs.params
    differing = sorted(k for k in {**old, **new} if k not in _NO_EFFECT and old.get(k) != new.get(k))
    if committed.provenance.get("corpus") != runs.provenance.get("corpus"):
        differing.append("text")
    if differing:
        raise files.RunError(f"{name}: tables that differ in {', '.join(differing)} are not joined")
    if committed.tokens is not None:
        raise files.RunError(f"{name}: {TOKENS} holds means over seeds, to which none is added; run all seeds again")
    of_run = [a for a in identity.AXES if a in committed.totals]
    tables = {}
    for table in (*TABLES, *SOME_TABLES):
        rows, more = getattr(committed, table), getattr(runs, table)
        if table == "counts":
            tables[table] = distinct_counts(pd.concat([rows, more]))
        elif rows is not None and more is not None:
            again = rows.set_index(of_run).index.isin(more.set_index(of_run).index)
            tables[table] = _in_order(pd.concat([rows[~again], more], ignore_index=True))
    return replace(committed, **tables, provenance=_joined_provenance(committed, runs, tables["totals"]))


def _joined_provenance(committed: Results, runs: Results, totals: pd.DataFrame) -> dict[str, Any]:
    old, new = committed.provenance, runs.provenance
    seconds = [r["wall_seconds_of_runs"] for r in (old, new)]
    larger = max((old, new), key=lambda r: r["n_runs"])["wall_seconds_of_runs"]
    return {
        **{k: v for k, v in old.items() if new.get(k, v) == v},
        "git_commits": sorted({*old["git_commits"], *new["git_commits"]}),
        "wall_seconds_of_runs": [min(s[0] for s in seconds), larger[1], max(s[2] for s in seconds)],
        "peak_memory_mb": max(old["peak_memory_mb"], new["peak_memory_mb"]),
        "n_runs": int((totals["split"] == SPLITS[0]).sum()),
    }


def record_digests(folder: Path) -> None:
    """Record the digests of all tables of a folder of `results/`, those that a script of its own adds too, in its experiment.json."""
    known = files.read_json(folder / "experiment.json")
    files.write_json(folder / "experiment.json", {**known, "sha256": files.digests(folder, ["*.csv"])})


def write_results(results: Results, folder: str | Path, command: str) -> None:
    """Write an experiment's small tables to a folder of `results/`, with the command that makes them.

    Raises RunError if the folder cannot be written.
    """
    tables = {f"{name}.csv": getattr(results, name) for name in TABLES}
    tables |= {f"{name}.csv": own for name in SOME_TABLES if (own := getattr(results, name)) is not None}
    if results.tokens is not None and len(results.tokens) <= MAX_COMMITTED_TYPES:
        tables[TOKENS] = results.tokens
    known = {"params": results.params, "provenance": {**results.provenance, "command": command}}
    for name, table in tables.items():
        files.write_table(Path(folder) / name, table)
    files.write_json(Path(folder) / "experiment.json", {**known, "sha256": files.digests(folder, list(tables))})
