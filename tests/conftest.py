"""Shared settings: no network, one thread, a miniature experiment in a temporary folder."""

import os

from fairlm_utils.params import EvaluationParams

os.environ.update(HF_HUB_OFFLINE="1", TQDM_DISABLE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")

import json
import random

import pytest
from hypothesis import settings

settings.register_profile("long", max_examples=5000, deadline=None)  # make fuzz
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

WORDS = [
    "the",
    "a",
    "of",
    "and",
    "to",
    "in",
    "is",
    "it",
    "for",
    "on",
    "with",
    "as",
    "at",
    "by",
    "from",
    "or",
    "an",
    "be",
    "this",
    "that",
    "have",
    "not",
    "are",
    "was",
    "were",
    "they",
    "you",
    "we",
    "he",
    "she",
]


@pytest.fixture(scope="session")
def documents() -> list[str]:
    """300 made-up documents with a long tail of numbers."""
    rng = random.Random(0)
    return [
        " ".join(rng.choice(WORDS) if rng.random() < 0.8 else str(int(rng.paretovariate(0.6))) for _ in range(40))
        + f" document {i}."
        for i in range(300)
    ]


@pytest.fixture(scope="session")
def corpus_file(tmp_path_factory, documents):
    path = tmp_path_factory.mktemp("corpus") / "documents.jsonl"
    path.write_text("\n".join(json.dumps({"text": d}) for d in documents), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def shared_runs(tmp_path_factory):
    """Folder of runs of one test file, so that files may run in any order and in any process."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def miniature(corpus_file, shared_runs):
    """Parameters of a run of seconds; keyword arguments override them."""

    def make(**values) -> EvaluationParams:
        base = dict(
            corpus=str(corpus_file),
            vocab_size=300,
            context=16,
            max_train_blocks=24,
            max_heldout_blocks=8,
            steps=12,
            batch_size=8,
            window_steps=4,
            checkpoint_steps=5,
            learning_rate=3e-3,
            lr_schedule="constant",
            warmup_steps=0,
            runs_dir=str(shared_runs),
            experiment="mini",
        )
        return EvaluationParams.check({**base, **values})

    return make
