"""Of which parameters, text and code a run is: its folder, and what may not be mixed in one experiment."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fairlm_utils import files
from fairlm_utils.params import CorpusParams, EvaluationParams, TokenizationParams, TrainingParams

#: Which text a run was made from: digests of the documents, of their token ids, and of the model's config if that is a file.
TEXT = "text.json"
#: Parameters that differ between the runs of one experiment; all others must agree, but between variants.
AXES = ("model", "variant", "weight_decay", "seed")
#: Parameters of the evaluation that its tables depend on, by their values where a run has not recorded them.
EVALUATION = {name: EvaluationParams.model_fields[name].default for name in ("max_evaluated_train_blocks", "by_word")}


def run_dir(p: TrainingParams) -> Path:
    """The folder of the run with these parameters.

    Raises RunError if a link leads it out of `runs_dir`, where nothing may be written.
    """
    return files.within(p.runs_dir, p.experiment, p.run_id())


def recorded_params(directory: Path) -> dict[str, Any]:
    """The parameters that a run's params.json records. Raises RunError if they are not those of a run."""
    return files.read_json(
        directory / "params.json", experiment=str, model=str, weight_decay=(int, float), seed=int, corpus=str
    )


def open_run(p: TrainingParams) -> Path:
    """The folder of a run, created, with its resolved parameters in it.

    Raises RunError if the folder holds a run of other parameters.
    """
    directory = run_dir(p)
    recorded = directory / "params.json"
    if recorded.exists():
        known = recorded_params(directory)
        differing = sorted(k for k, v in p.identity().items() if known.get(k) != v)
        if differing:
            raise files.RunError(
                f"{directory} holds a run with other parameters ({', '.join(differing)}); choose another experiment name"
            )
    else:
        files.write_json(recorded, p.model_dump())
    return directory


def record_text(directory: Path, p: TrainingParams, meta: Mapping[str, Any]) -> None:
    """Record in a run's text.json which text it is trained on, by `meta` of the tokenized corpus.

    Raises RunError if the run was begun on another text, tokenizer or config, or if another run of its experiment was.
    """
    meta = {**meta, **config_digest(p.model)}
    check_text(directory, p, meta)
    for other in sorted(path.parent for path in directory.parent.glob("*/params.json") if path.parent != directory):
        try:
            recorded = recorded_text(other)
        except files.RunError:  # damaged, or just removed: not this run's concern
            continue
        if same_text(recorded, text_identity(p.model_dump(), meta), other):
            break  # one of the same corpus stands for the rest
    if not (directory / TEXT).exists():
        kept = ("corpus", "fingerprint", "ids", "config")
        files.write_json(directory / TEXT, {key: meta[key] for key in kept if key in meta})


def check_text(directory: Path, p: TrainingParams, meta: Mapping[str, Any] | None) -> None:
    """Raise RunError if a run was made from another text or tokenizer than `meta` of the tokenized corpus now there.

    Or from another config file of its model. Of the text nothing is compared if `meta` is None, or if the run was left
    unfinished by a version that did not record it.
    """
    now = text_identity(p.model_dump(), {**(meta or {}), **config_digest(p.model)})
    same_text(recorded_text(directory), now, directory)


def check_texts(folder: Path, now: Mapping[str, str]) -> None:
    """Raise RunError if any run in RUNS_DIR/EXPERIMENT is of another text than is there `now`, see `text_identity`."""
    for path in sorted(folder.glob("*/params.json")):
        same_text(recorded_text(path.parent), now, path.parent)


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
            names = cls.model_fields.keys() - TrainingParams.NOT_IN_RUN_ID - {"low_frequency_percentile"}
            named = {name: known.get(name, cls.model_fields[name].default) for name in names}
            found[f"{what} {json.dumps(named, sort_keys=True)}"] = meta[key]
    return found


def recorded_text(directory: Path) -> dict[str, str]:
    """What `text_identity` was when a run was made; empty where that is not recorded."""
    source = directory / TEXT if (directory / TEXT).exists() else directory / "provenance.json"
    if not source.exists():
        return {}
    meta = files.read_json(source) if source.name == TEXT else files.read_json(source, corpus=dict)["corpus"]
    return text_identity(recorded_params(directory), meta)


def same_text(recorded: Mapping[str, str], now: Mapping[str, str], directory: Path) -> bool:
    """Whether anything could be compared; RunError if it was not the same."""
    for key in (shared := sorted(recorded.keys() & now.keys())):  # text before tokenizer, which may be learnt from it
        if recorded[key] != now[key]:
            what, _, named = key.partition(" ")
            name = json.loads(named)["corpus" if what == "text" else what]
            raise files.RunError(
                f"{directory}: was made from another {what}: {name!r} has changed since, and what was learnt from two is not "
                "mixed; remove the folder to train on what is there now, put the earlier one back, or set another "
                "`experiment` name"
            )
    return bool(shared)


def git_commit() -> str:
    """Commit of this checkout, with `+changes` if files differ from it, or `unknown` outside one.

    A repository that lies around an unpacked archive of this project is not its checkout.
    """
    elsewhere = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY", "GIT_PREFIX")
    environment = {name: value for name, value in os.environ.items() if name not in elsewhere}

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=files.PROJECT, capture_output=True, check=True, env=environment)
        return os.fsdecode(done.stdout).strip()

    try:
        around = Path(git("rev-parse", "--show-toplevel")).resolve()
        if around != files.PROJECT or not git("ls-files", "--", "fairlm_utils"):
            return "unknown"
        ours = ("fairlm_utils", "params", "requirements.txt")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", *ours)
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def is_trained(p: TrainingParams) -> bool:
    """Whether the run of `p` is trained."""
    return (run_dir(p) / "provenance.json").exists()


def is_finished(p: EvaluationParams) -> bool:
    """Whether the run of `p` is trained, and evaluated as `p` says."""
    directory = run_dir(p)
    if not (directory / "tables" / "totals.csv").exists():
        return False
    known = recorded_params(directory)
    return all(known.get(name, default) == getattr(p, name) for name, default in EVALUATION.items())


def record_evaluation(directory: Path, p: EvaluationParams) -> None:
    """Record as what a run is evaluated: it may have been trained with other parameters of the evaluation, or with none."""
    known = recorded_params(directory)
    if now := {name: getattr(p, name) for name in EVALUATION if known.get(name) != getattr(p, name)}:
        files.write_json(directory / "params.json", {**known, **now})


def finished_runs(folder: str | Path) -> list[Path]:
    """Folders of the runs in RUNS_DIR/EXPERIMENT that are trained and evaluated, sorted by name."""
    return sorted(path.parents[1] for path in Path(folder).glob("*/tables/totals.csv"))


def check_experiment(points: Sequence[Any]) -> None:
    """Refuse, before anything runs, an experiment folder that holds finished runs of other settings.

    That they are of the same text is for `check_texts` to say, which needs the corpus.

    Raises RunError naming the parameters that differ.
    """
    folder, fields = Path(points[0].runs_dir) / points[0].experiment, EvaluationParams.model_fields
    wanted = {p.run_id() for p in points}
    for directory in finished_runs(folder):
        if directory.name in wanted:
            continue
        known = recorded_params(directory)
        like = next((p for p in points if p.variant == known.get("variant", "")), None)
        of = like.model_dump(exclude={*like.NOT_IN_RUN_ID, *AXES, "eval_batch_size"}) if like else {"variant": None}
        # an earlier run may not have recorded what was at its default
        differing = sorted(k for k, v in of.items() if known.get(k, fields[k].default) != v)
        if differing:
            raise files.RunError(
                f"{folder} holds runs that differ from this experiment in {', '.join(differing)}; remove the folder or set "
                "another `experiment` name"
            )
