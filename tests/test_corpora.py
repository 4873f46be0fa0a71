"""Corpora: real files in, documents of two splits out, and errors that say which parameter to set."""

import json

import pandas as pd
import pytest

from fairlm_utils import corpora
from fairlm_utils.corpora import CorpusError, load_corpus
from fairlm_utils.params import CorpusParams, ParameterError

TEXTS = [f"document number {i} of many" for i in range(50)]


def load(path, **values):
    return load_corpus(CorpusParams.check({"corpus": str(path), **values}))


def write(folder, kind, texts=TEXTS, column="text"):
    frame, path = pd.DataFrame({column: texts}), folder / f"documents.{kind}"
    if kind == "parquet":
        frame.to_parquet(path)
    elif kind == "csv":
        frame.to_csv(path, index=False)
    elif kind == "jsonl":
        path.write_text("\n".join(json.dumps({column: t}) for t in texts))
    else:
        path.write_text("\n".join(texts))
    return path


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl", "txt"])
def test_a_local_file_is_split_by_document(tmp_path, kind):
    corpus = load(write(tmp_path, kind), heldout_fraction=0.2)
    assert len(corpus.heldout) == 10 and sorted([*corpus.train, *corpus.heldout]) == sorted(TEXTS)


def test_the_split_follows_its_seed_alone(tmp_path):
    path = write(tmp_path, "jsonl")
    first, again, other = load(path), load(path), load(path, data_seed=1)
    assert first == again and first.fingerprint != other.fingerprint and set(first.heldout) != set(other.heldout)


def test_a_folder_with_a_test_split_keeps_it_and_training_documents_are_shuffled(tmp_path):
    pd.DataFrame({"text": TEXTS}).to_parquet(tmp_path / "train.parquet")
    pd.DataFrame({"text": ["held out", "", None]}).to_parquet(tmp_path / "test.parquet")
    corpus = load(tmp_path, max_documents=20)
    assert list(corpus.heldout) == ["held out"] and len(corpus.train) == 20 and list(corpus.train) != TEXTS[:20]


def test_a_named_corpus_reads_a_local_copy(tmp_path):
    for split, n in (("train", 6), ("test", 3), ("unsupervised", 4)):
        pd.DataFrame({"text": TEXTS[:n], "label": 0}).to_parquet(tmp_path / f"{split}-0.parquet")
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n"
        + "".join(f"  - split: {s}\n    path: {s}-*\n" for s in ("train", "test", "unsupervised"))
        + "---\n"
    )
    assert len(load("imdb", corpus_path=str(tmp_path)).train) == 6
    assert len(load("imdb-xl", corpus_path=str(tmp_path)).train) == 10


def test_dropped_documents_are_counted(tmp_path):
    assert (
        "3 empty or missing documents dropped"
        in load(write(tmp_path, "parquet", texts=[*TEXTS, None, "", "  "])).description
    )
    assert "documents dropped" not in load(write(tmp_path, "jsonl")).description


def test_a_hub_that_cannot_be_reached_names_the_parameter():
    with pytest.raises(CorpusError, match="set corpus_path"):
        load("imdb")


def test_missing_things_are_named(tmp_path):
    path = write(tmp_path, "jsonl", column="body")
    with pytest.raises(ParameterError, match="no column 'text'; it has body"):
        load(path)
    with pytest.raises(ParameterError, match="does not exist"):
        load("imdb", corpus_path=str(tmp_path / "nowhere"))
    with pytest.raises(ParameterError, match="holds int"):
        load(write(tmp_path, "parquet", texts=list(range(9))))
    (tmp_path / "x.bin").write_bytes(b"\0")
    with pytest.raises(CorpusError, match="unknown type of file"):
        load(tmp_path / "x.bin")
    with pytest.raises(CorpusError, match="both are needed"):
        load(write(tmp_path, "csv", texts=["one"]))


def test_python_docs_are_many_distinct_documents():
    documents = list(corpora.python_docs())
    assert 2000 < len(documents) < 10_000 and len(set(documents)) == len(documents)
    assert min(map(len, documents)) >= corpora.MIN_CHARACTERS
    assert 1e6 < sum(map(len, documents)) < 4e6


def test_source_state_changes_with_the_files(tmp_path):
    path = write(tmp_path, "jsonl")
    before = corpora.source_state(CorpusParams.check({"corpus": str(path)}))
    path.write_text(path.read_text() + '\n{"text": "more"}')
    assert corpora.source_state(CorpusParams.check({"corpus": str(path)})) != before
