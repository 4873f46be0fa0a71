"""Shared settings: no network, one thread, a miniature experiment in a temporary folder; which tests run, and in what order."""

import hashlib
import os
from pathlib import Path

from fairlm_utils import files
from fairlm_utils.params import EvaluationParams

os.environ.update(HF_HUB_OFFLINE="1", TQDM_DISABLE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")

import json
import random

import pytest
from hypothesis import settings

settings.register_profile("long", max_examples=5000, deadline=None)  # make fuzz
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

#: The files that take longest, in this order before all others: no worker ends with one of them alone. 03 needs the run of 02.
LONGEST = ("test_binder.py", "test_sweep.py", "08_audit.ipynb", "02_training.ipynb", "test_browser.py", "test_runs.py",
           "test_training.py", "test_callback.py", "test_processes.py", "test_readme_commands.py", "test_crashes.py",
           "test_ray.py", "test_site.py", "test_untrusted.py", "test_panel.py", "test_audit.py", "test_stacked.py", "test_cost.py",
           "test_load.py", "test_compile.py", "test_report.py", "test_papermill.py")  # fmt: skip
#: Digest of the inputs on which each test marked `inputs` last passed, under its name; committed.
PASSED = "tests/passed.json"


def pytest_addoption(parser):
    parser.addoption("--all", action="store_true", help="also run the tests that passed on the same inputs before")


def pytest_configure(config):
    if not hasattr(config, "workerinput"):  # of several processes, the one that has all reports
        config.pluginmanager.register(_Passed(config.rootpath / PASSED))


def pytest_collection_modifyitems(config, items):
    """Leave out what passed on the same inputs, unless --all is given, and put the longest files first."""
    passed = _Passed(config.rootpath / PASSED).digests
    for item in items:
        if marker := item.get_closest_marker("inputs"):
            digest = inputs_digest(config.rootpath, (str(item.path.relative_to(config.rootpath)), *marker.args))
            item.user_properties.append(("inputs", digest))
            if passed.get(item.nodeid) == digest and not config.option.all:
                item.add_marker(pytest.mark.skip(reason="passed on the same inputs; make test-all runs it"))
    rank = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


def inputs_digest(root: Path, patterns: tuple[str, ...]) -> str:
    """Digest of the files that glob patterns name below the repository's root; each must name one."""
    for pattern in patterns:
        if not any(path.is_file() for path in root.glob(pattern)):
            raise pytest.UsageError(f"the marker `inputs` names {pattern}, which does not exist")
    return hashlib.sha256(repr(sorted(files.digests(root, patterns).items())).encode()).hexdigest()


class _Passed:
    """Keeps the digests of inputs on which tests passed, and drops those on which they failed."""

    def __init__(self, path: Path):
        self.path, self.digests = path, files.read_json(path) if path.exists() else {}

    def pytest_runtest_logreport(self, report):
        digest = dict(report.user_properties).get("inputs")
        if digest and (report.failed or (report.when == "call" and report.passed)):
            known = {name: d for name, d in self.digests.items() if name != report.nodeid}
            self.digests = known if report.failed else {**known, report.nodeid: digest}
            files.write_json(self.path, self.digests)


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
