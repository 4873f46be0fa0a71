"""One panel of the paper at its own scale, on one GPU: packed into a folder that travels, then run in pieces of minutes.

python -m fairlm_utils pack params/paper/openelm-270m-imdb.yaml build/panel
cd build/panel && python -m fairlm_utils panel params/paper/openelm-270m-imdb.yaml --minutes 9

A panel is an experiment file at λ = 0 and λ = 1 with the first seed, unless `-p` sets others. `panel` ends with status 0
when the panel is finished, 75 when time is up and the same command goes on from a checkpoint, 2 after an error.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from tabulate import tabulate
from transformers import TrainerCallback

from fairlm_utils import files, identity, params
from fairlm_utils.analysis import metrics, scale
from fairlm_utils.analysis.results import load_results
from fairlm_utils.experiment import cost, runs
from fairlm_utils.lm import processes
from fairlm_utils.lm.corpora import source_state
from fairlm_utils.lm.tokenization import cache_dir, tokenize_corpus
from fairlm_utils.params import EvaluationParams

#: What a folder that travels may hold, in bytes.
MAX_FOLDER_BYTES = 64 * 2**20
#: Ratios Δ token-balanced / Δ average predicted for each panel before any was run: one row per panel, columns of `scale.LAWS`.
PREDICTIONS = "results/scale/predictions.csv"
_PANEL = {"weight_decay": "[0.0, 1.0]", "seed": "[0]"}


def panel_runs(file: str | Path, overrides: Sequence[tuple[str, str]] = ()) -> list[EvaluationParams]:
    """The runs of a panel: λ = 0, λ = 1 and seed 0 of an experiment file, or what `overrides` set. Raises ParameterError."""
    ours = [(name, value) for name, value in _PANEL.items() if name not in dict(overrides)]
    return params.expand(params.read(file, [*ours, *overrides]), str(file))


def pack(points: Sequence[EvaluationParams], folder: Path) -> int:
    """Clone this checkout's commit into `folder`, with the tokenized corpora of the runs in its runs/; the bytes in it.

    Documents stay behind: there a corpus is found by its name, tokenized. A tokenizer of a folder of this project travels
    along. Raises RunError for changes that are not committed, a corpus known by the files that hold it, a folder that
    cannot be made, and one of more than 64 MiB.
    """
    there = [p.model_copy(update={"corpus_path": "", "runs_dir": str(folder / "runs")}) for p in points]
    for p in there:
        if source_state(p) != p.corpus:
            raise files.RunError(
                f"corpus: {p.corpus!r} is known by files or a version of this machine, and only a corpus of the Hub travels; "
                "set corpus to its name, and corpus_path to your copy of it"
            )
    commit = identity.git_commit()
    if commit == "unknown" or commit.endswith("+changes"):
        raise files.RunError(
            f"commit {commit}: a folder is made of a commit, which its runs record; commit what changed"
        )
    found = {cache_dir(q): cache_dir(p) for p, q in zip(points, there, strict=True) if tokenize_corpus(p)}
    clone = ["git", "clone", "--quiet", "--depth", "1", files.PROJECT.as_uri(), str(folder)]
    if (done := subprocess.run(clone, capture_output=True, text=True, check=False)).returncode:
        raise files.RunError(f"{folder}: cannot be made ({done.stderr.strip()}); name a folder that does not exist")
    for to, cache in found.items():
        shutil.copytree(cache, to, ignore=shutil.ignore_patterns(".lock"))
    for name in {p.tokenizer for p in points if not Path(p.tokenizer).is_absolute() and Path(p.tokenizer).is_dir()}:
        shutil.copytree(name, folder / name)
    n_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if n_bytes > MAX_FOLDER_BYTES:
        raise files.RunError(
            f"{folder}: holds {n_bytes / 2**20:.1f} MiB, more than {MAX_FOLDER_BYTES / 2**20:.0f}; lower max_documents"
        )
    return n_bytes


class Piece(TrainerCallback):
    """Stops training at a checkpoint when `deadline` (of time.monotonic) has passed; prints the pace of every window.

    Pace is tokens, padding included, a second, and their model FLOPs (`cost.flops_per_token`) over the device's peak
    (MFU) where that is known.
    """

    def __init__(self, p: EvaluationParams, deadline: float):
        self.p, self.deadline = p, deadline

    def on_train_begin(self, args, state, control, model=None, **_):
        self.step, self.since = state.global_step, time.monotonic()
        self.flops_per_token = cost.flops_per_token(model.config, self.p.context)
        self.peak = cost.peak_flops(torch.cuda.get_device_name()) if processes.device(self.p) == "cuda" else None

    def on_step_end(self, args, state, control, **_):
        now, step = time.monotonic(), state.global_step
        if step % self.p.window_steps == 0:  # the window has just been read from the device, which is idle
            tokens = self.p.batch_size * self.p.gradient_accumulation_steps * self.p.context
            pace = tokens * (step - self.step) / (now - self.since)
            mfu = ""
            if self.peak:
                mfu = f", MFU {self.flops_per_token * pace / self.peak:.3f} of {self.peak / 1e12:,.0f} TFLOP/s"
            left = (state.max_steps - step) * tokens / pace / 60
            print(
                f"λ = {self.p.weight_decay:g}: step {step:,} of {state.max_steps:,}, {pace:,.0f} tokens/s{mfu}, {left:,.1f} minutes left",
                flush=True,
            )
            self.step, self.since = step, now
        if now >= self.deadline and step < state.max_steps:
            control.should_save = control.should_training_stop = True


def run(points: Sequence[EvaluationParams], deadline: float) -> bool:
    """Train and evaluate the runs one after the other until `deadline` (of time.monotonic); whether all are finished.

    Whatever the deadline, at least a step of training or one evaluation is done. Raises RunError if the folder holds
    runs of other settings, and what `runs.train` and `runs.evaluate` raise.
    """
    identity.check_experiment(points)
    begun = False
    for p in points:
        for is_done, work in (
            (identity.is_trained, lambda p: runs.train(p, [Piece(p, deadline)])),
            (identity.is_finished, runs.evaluate),
        ):
            if is_done(p):
                continue
            if begun and time.monotonic() >= deadline:
                return False
            begun = True
            work(p)
            if not is_done(p):
                return False
    return True


def compared(totals: pd.DataFrame, panel: str, predictions: Path) -> str:
    """One sentence: how the training losses change from the smallest λ to the largest, and their ratio beside the predicted one.

    `totals` is an experiment's table of that name, means over its seeds are taken; `predictions` a CSV file that may be missing.
    """
    columns = ["average_loss", "token_balanced_loss"]
    losses = totals[totals["split"] == "training"].groupby("weight_decay")[columns].mean()
    average, balanced = (losses.iloc[-1] - losses.iloc[0]).tolist()
    said = f"λ {losses.index[0]:g} → {losses.index[-1]:g}, training, nats: average {average:+.4f}, token-balanced {balanced:+.4f}, "
    if average <= 0:
        return said + "no ratio: the average did not rise"
    ratio = balanced / average
    said += f"ratio {ratio:.2f} ({totals['seed'].nunique()} seed(s))"
    known = pd.read_csv(predictions).set_index("panel") if predictions.exists() else pd.DataFrame()
    if panel not in known.index:
        return f"{said}; {PREDICTIONS} has no prediction for {panel} to compare with"
    parts = []
    for law, names in scale.LAWS.items():
        predicted, low, high = known.loc[panel, list(names)]
        where = "below" if ratio < low else "above" if ratio > high else "within"
        parts.append(f"{predicted:.2f} [{low:.2f}, {high:.2f}] by {law}: {where} the interval")
    return f"{said}; predicted {'; '.join(parts)}"


def beside_predictions(points: Sequence[EvaluationParams]) -> str:
    """Table 1 of a panel that has run, and what it says of the published prediction (see `compared`), as text."""
    totals = load_results(identity.run_dir(points[0]).parent).totals
    totals = totals[totals["weight_decay"].isin([p.weight_decay for p in points])]
    measures = ["average_loss", "token_balanced_loss", "average_accuracy", "token_balanced_accuracy"]
    table = tabulate(metrics.table_1(totals, measures), headers="keys", showindex=False)
    return f"{table}\n{compared(totals, points[0].experiment, files.PROJECT / PREDICTIONS)}"
