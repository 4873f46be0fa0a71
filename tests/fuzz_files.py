"""Arbitrary bytes where a file of a stranger is read: each loader returns, or raises one of the project's own errors.

python -m tests.fuzz_files                                 # lists the targets
python -m tests.fuzz_files TARGET [options of libFuzzer]   # coverage-guided by atheris, until -max_total_time or a failure

`make fuzz` runs every target so; `tests/test_fuzz.py` tries a few hundred mutations of valid files, without atheris.
"""

from __future__ import annotations

import gzip
import inspect
import json
import random
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from safetensors.numpy import save_file

from fairlm_utils import files, params
from fairlm_utils.analysis.results import load_results
from fairlm_utils.experiment import audit, runs
from fairlm_utils.files import RunError
from fairlm_utils.lm import corpora, models, training
from fairlm_utils.lm.corpora import CorpusError
from fairlm_utils.params import CorpusParams, ParameterError

ROOT = Path(__file__).parents[1]
#: What a loader may end with besides a result.
REFUSALS = (ParameterError, RunError, CorpusError)


def experiment_file(folder: Path, data: bytes) -> None:
    (folder / "x.yaml").write_bytes(data)
    params.read(folder / "x.yaml")


def _counts(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    counts = audit.read_counts(path, 50)
    assert counts.shape == (50,) and counts.min() >= 0 and counts.sum() > 0


def counts_csv(folder: Path, data: bytes) -> None:
    _counts(folder / "counts.csv", data)


def counts_parquet(folder: Path, data: bytes) -> None:
    _counts(folder / "counts.parquet", data)


def model_config(folder: Path, data: bytes) -> None:
    (folder / "config.json").write_bytes(data)
    for name in (folder, folder / "config.json"):
        models.model_config(str(name), 300, 16)


def learning_curves(folder: Path, data: bytes) -> None:
    (folder / training.CURVES).write_bytes(data)
    steps, counts, losses, correct = training.load_curves(folder)
    assert counts.shape == losses.shape == correct.shape and len(steps) == len(counts)


def _corpus(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    corpus = corpora.load_corpus(CorpusParams(corpus=str(path)))
    assert corpus.train and corpus.heldout


def corpus_parquet(folder: Path, data: bytes) -> None:
    _corpus(folder / "x.parquet", data)


def corpus_jsonl(folder: Path, data: bytes) -> None:
    _corpus(folder / "x.jsonl", data)


def corpus_csv(folder: Path, data: bytes) -> None:
    _corpus(folder / "x.csv", data)


def corpus_tsv_packed(folder: Path, data: bytes) -> None:
    _corpus(folder / "x.tsv.gz", data)


def corpus_json(folder: Path, data: bytes) -> None:
    _corpus(folder / "x.json", data)


def corpus_txt(folder: Path, data: bytes) -> None:
    _corpus(folder / "x.txt", data)


def corpus_arrow(folder: Path, data: bytes) -> None:
    (folder / "x.arrow").write_bytes(data)
    (folder / "state.json").write_text('{"_data_files": [{"filename": "x.arrow"}]}')
    assert corpora.load_corpus(CorpusParams(corpus=str(folder))).train


def corpus_card(folder: Path, data: bytes) -> None:
    (folder / "x.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    (folder / "README.md").write_bytes(data)
    assert corpora.load_corpus(CorpusParams(corpus=str(folder))).train


def corpus_saved(folder: Path, data: bytes) -> None:
    (folder / "x.arrow").write_bytes(_arrow())
    (folder / "state.json").write_bytes(data)
    assert corpora.load_corpus(CorpusParams(corpus=str(folder))).train


def _results(folder: Path, name: str, data: bytes) -> None:
    for file in (ROOT / "results" / "quick").iterdir():
        if file.name != name and not (folder / file.name).exists():
            shutil.copy(file, folder)
    (folder / name).write_bytes(data)
    if name != "experiment.json":  # whose writer has signed what he wrote
        known = json.loads((folder / "experiment.json").read_text())
        known["sha256"][name] = files.digests(folder, [name])[name]
        (folder / "experiment.json").write_text(json.dumps(known))
    assert load_results(folder).scale


def result_params(folder: Path, data: bytes) -> None:
    _results(folder, "experiment.json", data)


def result_table(folder: Path, data: bytes) -> None:
    _results(folder, "totals.csv", data)


def _curves() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        arrays = {"steps": np.arange(2), "windows": np.ones((2, 5, 3))}
        save_file(arrays, Path(folder) / training.CURVES)
        return (Path(folder) / training.CURVES).read_bytes()


def _parquet(**columns: list) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        pd.DataFrame(columns).to_parquet(Path(folder) / "x")
        return (Path(folder) / "x").read_bytes()


def _arrow() -> bytes:
    texts = pa.table({"text": ["a", "b", None, "c"], "kind": [0, 0, 1, 0]})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, texts.schema) as stream:
        stream.write_table(texts)
    return sink.getvalue().to_pybytes()


def _file(name: str) -> Callable[[], bytes]:
    return (ROOT / name).read_bytes


#: Each target with a valid file, from which mutations start.
TARGETS: dict[Callable[[Path, bytes], None], Callable[[], bytes]] = {
    experiment_file: _file("params/quick.yaml"),
    counts_csv: lambda: b"token_id,count\n0,5\n3,7\n49,1\n",
    counts_parquet: lambda: _parquet(token_id=[0, 3, 49], count=[5, 7, 1]),
    model_config: lambda: b'{"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 32}',
    learning_curves: _curves,
    corpus_parquet: lambda: _parquet(text=["a", "b", None, "c"]),
    corpus_jsonl: lambda: b'{"text": "a"}\n{"text": "b"}\n{"text": null}\n',
    corpus_csv: lambda: b'text,label\na,0\n"b\nc",1\n',
    corpus_tsv_packed: lambda: gzip.compress(b'text\tlabel\na\t0\n"b\nc"\t1\n', mtime=0),
    corpus_json: lambda: b'[{"text": "a"}, {"text": "b"}, {"text": null}]',
    corpus_txt: lambda: "a\nb é\n\nc\n".encode("utf-16"),
    corpus_arrow: _arrow,
    corpus_card: lambda: (
        b"---\nconfigs:\n- config_name: x\n  data_files:\n  - split: train\n    path: '*.jsonl'\n---\n"
    ),
    corpus_saved: lambda: b'{"_data_files": [{"filename": "x.arrow"}], "_split": null}',
    result_params: _file("results/quick/experiment.json"),
    result_table: _file("results/quick/totals.csv"),
}


@contextmanager
def attempts(target: Callable[[Path, bytes], None]) -> Iterator[Callable[[bytes], bool]]:
    """A function that tries one input in a folder of its own, and tells whether it was read (True) or refused."""
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")

        def attempt(data: bytes) -> bool:
            try:
                target(Path(name), data)
            except REFUSALS as error:
                assert str(error)
                return False
            return True

        yield attempt


def mutations(valid: bytes, n: int, seed: int) -> Iterator[bytes]:
    """`n` files near a valid one: bytes changed, cut out, doubled or exchanged for telling ones, seeded."""
    rng = random.Random(seed)
    telling = [b"", b"\0", b"-1", b"NaN", b"1e999", b"9" * 25, b"null", b"{}", b"[]", b'"', b"\n", b"\xff\xfe", b",,"]
    for _ in range(n):
        data = bytearray(valid)
        for _ in range(rng.choice([1, 1, 2, 4])):
            start = rng.randrange(len(data) + 1)
            end = min(len(data), start + rng.choice([0, 1, 1, 4, 30]))
            if rng.random() < 0.3:
                data[start:end] = bytes(rng.randrange(256) for _ in range(end - start))
            elif rng.random() < 0.3:
                data[start:end] = data[start:end] * 2
            else:
                data[start:end] = rng.choice(telling)
        yield bytes(data)


def _functions() -> Iterator[Callable]:
    """Functions and methods of the modules whose branches guide the fuzzer: the loaders and YAML's parser."""
    parser = [module for name, module in sys.modules.items() if name.startswith("ruamel.yaml.")]
    for module in (audit, corpora, models, params, runs, training, *parser):
        for owner in (module, *filter(inspect.isclass, vars(module).values())):
            for function in filter(inspect.isfunction, vars(owner).values()):
                if function.__module__ == module.__name__:
                    yield function


def main() -> None:
    """Fuzz one target with atheris, from its valid file on; without an argument list the targets."""
    by_name = {target.__name__: target for target in TARGETS}
    if len(sys.argv) == 1:
        print("\n".join(by_name))
        return
    import atheris

    target = by_name[sys.argv[1]]
    with tempfile.TemporaryDirectory() as corpus, attempts(target) as attempt:
        (Path(corpus) / "valid").write_bytes(TARGETS[target]())
        for function in _functions():
            atheris.instrument_func(function)  # in place
        atheris.Setup(
            [sys.argv[0], f"-artifact_prefix={tempfile.gettempdir()}/", *sys.argv[2:], corpus],
            lambda data: attempt(data) and None,
        )
        atheris.Fuzz()


if __name__ == "__main__":
    main()
