"""Kills runs at random moments of tokenizing, training, evaluating and writing, and compares with an undisturbed one.

python -m tests.kill KILLS SEED FOLDER [CORPUS]       # prints a JSON line; used by tests/test_crashes.py and make fuzz

Without CORPUS 300 documents are taken, so few that no stage is much longer than the others.
"""

import json
import os
import random
import signal
import sys
import time
from itertools import islice
from pathlib import Path

import torch

from fairlm_utils import files, identity
from fairlm_utils.experiment import runs
from fairlm_utils.lm import corpora, tokenization
from fairlm_utils.params import EvaluationParams

KILLS_A_RUN = 5
FILES = (*files.RESULT_FILES, "params.json")


def start(p: EvaluationParams) -> int:
    """A child that makes the whole run, from tokenizing to tables; forked, for imports take longer than the run."""
    if child := os.fork():
        return child
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        runs.evaluate(p)
        os._exit(0)
    except BaseException:
        os._exit(1)


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


def main(n_kills: int, seed: int, folder: Path, corpus: str) -> dict:
    """Kill `n_kills` times, letting a run finish after every fifth, and count stages and runs that differ."""
    torch.set_num_threads(1)
    rng = random.Random(seed)
    values = dict(corpus=corpus, vocab_size=300, context=16, max_train_blocks=24, max_heldout_blocks=8, steps=40, batch_size=8,
                  window_steps=7, checkpoint_steps=5, experiment="killed")  # fmt: skip

    def params(name: str) -> EvaluationParams:
        return EvaluationParams.check({**values, "runs_dir": str(folder / name)})

    began = time.monotonic()
    finish(start(params("undisturbed")))
    seconds = time.monotonic() - began
    expected = files.digests(identity.run_dir(params("undisturbed")), FILES[:-1])
    kills, stages, different, n_runs = 0, {}, [], 0
    while kills < n_kills:
        p, n_runs = params(f"run{n_runs}"), n_runs + 1
        for _ in range(KILLS_A_RUN):
            child = start(p)
            time.sleep(rng.uniform(0, rng.choice([0.05, 0.2, 0.7]) * seconds))  # the first stages are short
            if os.waitpid(child, os.WNOHANG)[0]:  # it was faster
                break
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            kills, reached = kills + 1, state(p)
            stages[reached] = stages.get(reached, 0) + 1
        finish(start(p))
        if files.digests(identity.run_dir(p), FILES[:-1]) != expected:
            different.append(p.runs_dir)
    return {"kills": kills, "runs": n_runs, "stages": stages, "different": different}


def few_documents(folder: Path) -> str:
    """A file of 300 documents of Python's documentation."""
    path = folder / "documents.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in islice(corpora.python_docs(), 300)))
    return str(path)


if __name__ == "__main__":
    folder = Path(sys.argv[3])
    corpus = sys.argv[4] if len(sys.argv) > 4 else few_documents(folder)
    print(json.dumps(main(int(sys.argv[1]), int(sys.argv[2]), folder, corpus)))
