"""Kills runs, lets them start again, and compares all result bits with those of an undisturbed one.

python -m tests.kill each FOLDER [CORPUS]             # at every crash point; used by tests/test_crashes.py
python -m tests.kill KILLS SEED FOLDER [CORPUS]       # at random moments; used by make fuzz

Either prints a line of JSON. What a killed run leaves differs by the files that were in their place, so that the crash
points are: before and after every os.replace, by which each file and the model get there, every removal of a folder, and
every on_save, between Trainer's own files of a checkpoint and ours. Random kills also find what is written otherwise.
Without CORPUS 300 documents are taken, so few that no stage is much longer than the others.
"""

import gc
import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from itertools import count, islice
from pathlib import Path

import torch

from fairlm_utils import files, identity
from fairlm_utils.experiment import runs
from fairlm_utils.lm import corpora, tokenization, training
from fairlm_utils.params import EvaluationParams

KILLS_A_RUN = 5


def start(p: EvaluationParams, die_at: int | None = None) -> int:
    """A child that makes the whole run, from tokenizing to tables; forked, for imports take longer than the run.

    It kills itself at its crash point number `die_at`, whose name it leaves in the file `point` of runs_dir.
    """
    if child := os.fork():
        return child
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if die_at is not None:
            _die_at(die_at, Path(p.runs_dir))
        runs.evaluate(p)
        os._exit(0)
    except BaseException:
        os._exit(1)


def _die_at(number: int, runs_dir: Path) -> None:
    numbers = count()

    def point(name: str) -> None:
        if next(numbers) == number:
            (runs_dir / "point").write_text(name)
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(owner, function: str, place: Callable[..., str]) -> None:
        original = getattr(owner, function)

        def watched(*arguments, **options):
            name = f"{function} {place(*arguments)}".replace(f".{os.getpid()}.tmp", "").replace(f"{runs_dir}/", "")
            point(f"before {name}")
            returned = original(*arguments, **options)
            point(f"after {name}")
            return returned

        setattr(owner, function, watched)

    watch(os, "replace", lambda source, target: str(target))
    watch(os, "rmdir", lambda path, **_: str(path))
    watch(training.RecordTokenLoss, "on_save", lambda recorder, args, state, *_: f"of step {state.global_step}")


def finish(child: int) -> None:
    if os.waitpid(child, 0)[1] != 0:
        raise SystemExit("a run that was not killed failed")


def state(p: EvaluationParams) -> str:
    """The stage that a killed run had reached, by what it left."""
    directory = identity.run_dir(p)
    for stage, there in (
        ("finished", directory / files.SEAL),
        ("evaluating", directory / "provenance.json"),
        ("training", directory / "checkpoints"),
        ("starting to train", tokenization.cache_dir(p) / "meta.json"),
    ):
        if there.exists():
            return stage
    return "tokenizing"


def params(folder: Path, name: str, corpus: str, **sizes) -> EvaluationParams:
    values = dict(corpus=corpus, vocab_size=300, context=16, experiment="killed", device="cpu")
    return EvaluationParams.check({**values, **sizes, "runs_dir": str(folder / name)})


def at_each_point(folder: Path, corpus: str) -> dict:
    """Kill at every crash point, one run per point: what was killed when, and which runs differ in the end.

    `elsewhere` are the files of a finished run that no os.replace has put in their place.
    """
    sizes = dict(
        checkpoint_steps=1,
        max_documents=60,
        max_train_blocks=8,
        max_heldout_blocks=4,
        steps=4,
        batch_size=4,
        window_steps=2,
    )
    undisturbed = params(folder, "undisturbed", corpus, **sizes)
    expected = files.digests(runs.evaluate(undisturbed), files.RESULT_FILES)
    gc.collect()
    gc.freeze()  # what this process has loaded is not looked through in every child
    points, stages, different = [], Counter(), []
    for number in count():
        p = params(folder, f"run{number}", corpus, **sizes)
        Path(p.runs_dir).mkdir()
        status = os.waitpid(start(p, number), 0)[1]
        if status == 0:  # it has fewer points
            break
        if os.WTERMSIG(status) != signal.SIGKILL:
            raise SystemExit(f"a run failed before its crash point {number}")
        points.append((Path(p.runs_dir) / "point").read_text())
        stages[state(p)] += 1
        finish(start(p))
        if files.digests(identity.run_dir(p), files.RESULT_FILES) != expected:
            different.append(points[-1])
        shutil.rmtree(p.runs_dir)
    replaced = {name.removeprefix("after replace ") for name in points}
    there = (path.relative_to(undisturbed.runs_dir) for path in Path(undisturbed.runs_dir).rglob("*") if path.is_file())
    elsewhere = [str(path) for path in there if not {str(path), str(path.parent)} & replaced]
    return {"points": points, "stages": stages, "different": different, "elsewhere": elsewhere}


def at_random(n_kills: int, seed: int, folder: Path, corpus: str) -> dict:
    """Kill `n_kills` times, letting a run finish after every fifth, and count stages and runs that differ."""
    rng = random.Random(seed)
    sizes = dict(max_train_blocks=24, max_heldout_blocks=8, steps=40, batch_size=8, window_steps=7, checkpoint_steps=5)
    began = time.monotonic()
    undisturbed = params(folder, "undisturbed", corpus, **sizes)
    finish(start(undisturbed))
    seconds = time.monotonic() - began
    expected = files.digests(identity.run_dir(undisturbed), files.RESULT_FILES)
    kills, stages, different, n_runs = 0, Counter(), [], 0
    while kills < n_kills:
        p, n_runs = params(folder, f"run{n_runs}", corpus, **sizes), n_runs + 1
        for _ in range(KILLS_A_RUN):
            child = start(p)
            time.sleep(rng.uniform(0, rng.choice([0.05, 0.2, 0.7]) * seconds))  # the first stages are short
            if os.waitpid(child, os.WNOHANG)[0]:  # it was faster
                break
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            kills += 1
            stages[state(p)] += 1
        finish(start(p))
        if files.digests(identity.run_dir(p), files.RESULT_FILES) != expected:
            different.append(p.runs_dir)
    return {"kills": kills, "runs": n_runs, "stages": stages, "different": different}


def few_documents(folder: Path) -> str:
    """A file of 300 documents of Python's documentation."""
    path = folder / "documents.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in islice(corpora.python_docs(), 300)))
    return str(path)


if __name__ == "__main__":
    torch.set_num_threads(1)
    how, *seed, where = sys.argv[1 : 3 if sys.argv[1] == "each" else 4]
    folder = Path(where)
    corpus = sys.argv[len(seed) + 3] if len(sys.argv) > len(seed) + 3 else few_documents(folder)
    found = at_each_point(folder, corpus) if how == "each" else at_random(int(how), int(seed[0]), folder, corpus)
    print(json.dumps(found))
