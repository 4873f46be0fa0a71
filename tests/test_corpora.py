"""Corpora: real files in, documents of two splits out, and errors that say which parameter to set."""

import bz2
import gzip
import io
import itertools
import json
import lzma
import os
import subprocess
import sys
from pathlib import Path

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fairlm_utils.lm import corpora
from fairlm_utils.lm.corpora import CorpusError, load_corpus
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


def test_held_out_documents_that_are_kept_are_from_all_of_the_corpus(tmp_path):
    texts = [f"{kind} {i}" for kind in ("first", "second") for i in range(500)]
    pd.DataFrame({"text": texts}).to_parquet(tmp_path / "sorted.parquet")
    corpus = load(tmp_path / "sorted.parquet", max_documents=40)
    assert len(corpus.heldout) == 40 and 10 < sum(t.startswith("first") for t in corpus.heldout) < 30
    assert [texts.index(t) for t in corpus.heldout] == sorted(texts.index(t) for t in corpus.heldout)


def test_shards_without_rows_or_without_texts_are_no_fault(tmp_path):
    pd.DataFrame({"text": TEXTS}).to_parquet(tmp_path / "part-0.parquet")
    pd.DataFrame({"text": pd.Series([], dtype=str)}).to_parquet(tmp_path / "part-1.parquet")
    assert len(load(tmp_path).train) + len(load(tmp_path).heldout) == len(TEXTS)
    folder = tmp_path / "csv"
    folder.mkdir()
    pd.DataFrame({"text": TEXTS, "n": 1}).to_csv(folder / "a.csv", index=False)
    (folder / "b.csv").write_text('text,n\n"",1\n"",2\n')
    assert len(load(folder).train) + len(load(folder).heldout) == len(TEXTS)


def test_texts_of_arrow_views_are_text(tmp_path):
    pq.write_table(pa.table({"text": pa.array(TEXTS, pa.string_view())}), tmp_path / "views.parquet")
    assert len(load(tmp_path / "views.parquet").train) > 0


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


def test_source_state_tells_files_of_one_name_in_two_folders_apart(tmp_path):
    for folder, n in (("a", 5), ("b", 9)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.txt").write_text("x" * n)
        os.utime(tmp_path / folder / "x.txt", ns=(1, 1))
    before = corpora.files_state(tmp_path)
    for source, target in (("a", "c"), ("b", "a"), ("c", "b")):
        (tmp_path / source).rename(tmp_path / target)
    assert corpora.files_state(tmp_path) != before


# Which files are read


def jsonl(word, n=10):
    return "".join(json.dumps({"text": f"{word} {i}"}) + "\n" for i in range(n))


def fill(folder, **files):
    """Files below a folder: `a__b_txt="..."` is a/b.txt."""
    for name, content in files.items():
        path = folder / ".".join(name.replace("__", "/").rsplit("_", 1))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder


def words(corpus):
    """The first word of each document, which in these tests says from which file it is."""
    return {text.split()[0] for text in [*corpus.train, *corpus.heldout]}


def test_words_within_names_make_no_splits_and_choose_no_files(tmp_path):
    names = ["apple", "steam-train", "crash-test", "my_train_data", "latest", "validation report"]
    for name in names:
        (tmp_path / f"{name}.jsonl").write_text(jsonl(name.split()[0]))
    corpus = load(tmp_path, heldout_fraction=0.5)
    assert words(corpus) == {name.split()[0] for name in names}
    assert len(corpus.train) == len(corpus.heldout) == 30 and "left out" not in corpus.description


def test_every_known_format_in_a_folder_is_read_and_the_rest_is_named(tmp_path):
    fill(tmp_path, a_csv='text\n"csv, 1"\ncsv2 x\n', b_tsv="n\ttext\n1\ttsv it is\n", c_JSONL=jsonl("jsonl"))
    fill(tmp_path, deep__er__d_json='[{"text": "json 1"}]', e_txt="txt one\ntxt two\n", f_xml="<x/>", g_pkl="x")
    fill(tmp_path, README_md="about", LICENSE_txt="terms", _hidden="x", h_csv="")
    pd.DataFrame({"text": ["parquet 1"]}).to_parquet(tmp_path / "i.PARQUET")
    (tmp_path / "j.txt.bin").write_text("x")
    (tmp_path / "linked").symlink_to(tmp_path / "deep")
    corpus = load(tmp_path)
    assert words(corpus) == {"csv,", "csv2", "tsv", "jsonl", "json", "txt", "parquet"}
    assert "5 files left out (f.xml, g.pkl, h.csv, …)" in corpus.description
    assert len(corpus.train) + len(corpus.heldout) == 2 + 1 + 10 + 1 + 2 + 1


@pytest.mark.parametrize(
    "name",
    [
        "[1].jsonl",
        "rev[!a]*.jsonl",
        "what?.jsonl",
        "100%25.jsonl",
        "a b.jsonl",
        "größe 日本.jsonl",
        "-x.jsonl",
        "{a}.jsonl",
        "a::b.jsonl",
        "$HOME.jsonl",
        ".jsonl",
    ],
)
def test_exactly_the_named_file_is_read(tmp_path, name, monkeypatch):
    for other in ("1", "reva", "rev1", "whatx", "100%", "a", "x"):
        (tmp_path / f"{other}.jsonl").write_text(jsonl("wrong"))
    (tmp_path / name).write_text(jsonl("right"))
    assert words(load(tmp_path / name)) == {"right"}
    monkeypatch.chdir(tmp_path)
    assert words(load(name)) == {"right"}  # relative to where the reader stands
    folder = tmp_path / name.removesuffix(".jsonl") / "x"
    if name != ".jsonl":
        fill(folder, a_jsonl=jsonl("right"))
        assert words(load(folder)) == words(load(folder / "a.jsonl")) == words(load(folder.parent)) == {"right"}


def test_the_home_folder_may_be_abbreviated(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(fill(tmp_path, a_jsonl=jsonl("right"))))
    assert words(load("~/a.jsonl")) == {"right"}
    with pytest.raises(CorpusError, match="does not exist"):
        load("~/b.jsonl")


def test_folders_and_whole_names_are_splits(tmp_path):
    expected = {"train": {"a", "b"}, "heldout": {"c"}}
    for i, files in enumerate((
        dict(train_jsonl=jsonl("a"), test_csv="text\nc 1\n", train_2_jsonl=jsonl("b")),
        {f"data__{n}_jsonl": jsonl(w) for w, n in
         (("a", "train-00000-of-00002"), ("b", "train-00001-of-00002"), ("c", "test-00000-of-00001"))},
        dict(Train__x_jsonl=jsonl("a"), Train__deep__y_jsonl=jsonl("b"), test__train_jsonl=jsonl("c")),
        dict(en__train__x_jsonl=jsonl("a"), de__train__x_jsonl=jsonl("b"), en__dev__x_jsonl=jsonl("c")),
    )):  # fmt: skip
        corpus = load(fill(tmp_path / str(i), **files))
        assert {t.split()[0] for t in corpus.train} == expected["train"], files
        assert {t.split()[0] for t in corpus.heldout} == expected["heldout"], files


def test_splits_that_are_not_read_are_named(tmp_path):
    fill(tmp_path, train_jsonl=jsonl("a"), test_jsonl=jsonl("b"), valid_jsonl=jsonl("c"))
    fill(tmp_path, **{"unsupervised-00000-of-00001_jsonl": jsonl("d")})
    corpus = load(tmp_path)
    assert words(corpus) == {"a", "b"} and "split unsupervised, validation left out" in corpus.description


def test_a_folder_of_which_some_files_are_a_split_is_refused(tmp_path):
    fill(tmp_path, train_txt="a", test_txt="b", more_txt="c")
    with pytest.raises(CorpusError, match=r"splits test, train and 1 of none \(more.txt\); put every file"):
        load(tmp_path)
    (tmp_path / "more.txt").unlink()
    (tmp_path / "train.txt").unlink()
    with pytest.raises(CorpusError, match="no split train; it has test"):
        load(tmp_path)


def card(folder, text):
    (folder / "README.md").write_text(f"---\n{text}\n---\n# A data set\n")


def test_the_card_of_a_folder_in_the_layout_of_the_hub_names_its_files(tmp_path):
    folder = fill(tmp_path / "[x] *", **{f"d__{w}-1_jsonl": jsonl(w) for w in "abc"}, e_txt="e")
    card(
        folder,
        "configs:\n- config_name: x\n  data_files:\n  - split: train\n    path: [d/a*, 'd/c*']\n  - split: test\n    path: d/b-1.jsonl",
    )
    corpus = load(folder)
    assert words(corpus) == {"a", "b", "c"} and len(corpus.heldout) == 10
    assert "1 file left out (e.txt)" in corpus.description
    card(folder, "configs:\n- config_name: x\n  data_files: d/*")
    assert words(load(folder)) == {"a", "b", "c"}
    for pattern in ("'**'", "./d/../*/*"):  # the card itself and folders are no documents
        card(folder, f"configs:\n- config_name: x\n  data_files: {pattern}")
        assert words(load(folder)) == ({"a", "b", "c", "e"} if pattern == "'**'" else {"a", "b", "c"})
    card(folder, "license: mit")
    assert "e" in words(load(folder))


@pytest.mark.parametrize(
    "configs, said",
    [
        ("[{config_name: x, data_files: ../secret.jsonl}]", "outside its folder"),
        ("[{config_name: x, data_files: d/../../secret.jsonl}]", "outside its folder"),
        ("[{config_name: x, data_files: ['d/a*', ../secret.jsonl]}]", "outside its folder"),
        ("[{config_name: x, data_files: 'https://example.org/x.jsonl'}]", "split train are not there"),
        ("[{config_name: x, data_files: gone*}]", "split train are not there"),
        ("[{config_name: x, data_dir: '..', data_files: secret.jsonl}]", "outside its folder"),
        ("[{config_name: x, data_files: 'd/*'}, {config_name: y, data_files: 'd/*'}]", "configurations x, y and no default"),
        ("[{config_name: x, data_dir: d}]", "no data_files"),
        ("[{config_name: x, data_files: e.bin}]", "unknown type"),
        ("[{config_name: x, data_files: [{split: train, path: [3]}]}]", "cannot be read"),
        ("3", "Expected configs to be a list"),
        ("[", "cannot be read"),
    ],
)  # fmt: skip
def test_a_card_that_names_no_files_of_its_folder_is_refused(tmp_path, configs, said):
    fill(tmp_path, secret_jsonl=jsonl("secret"))
    folder = fill(tmp_path / "set", d__a_jsonl=jsonl("a"), e_bin="e")
    card(folder, f"configs: {configs}")
    with pytest.raises(CorpusError, match=said) as error:
        load(folder)
    assert "\n" not in str(error.value)


def test_data_sets_that_were_saved_to_disk_are_read(tmp_path):
    whole = datasets.Dataset.from_dict({"text": TEXTS, "label": [0] * 50})
    whole.save_to_disk(tmp_path / "[a] *", num_shards=2)
    whole.map(lambda row: {"text": "cached"}, cache_file_name=str(tmp_path / "[a] *" / "cache-1.arrow"))
    corpus = load(tmp_path / "[a] *")
    assert sorted([*corpus.train, *corpus.heldout]) == sorted(TEXTS)
    assert "1 file left out (cache-1.arrow)" in corpus.description
    whole.train_test_split(0.2, seed=0).save_to_disk(tmp_path / "both")
    known = datasets.load_from_disk(tmp_path / "both")
    corpus = load(tmp_path / "both")
    assert list(corpus.heldout) == known["test"]["text"][:] and sorted(corpus.train) == sorted(
        known["train"]["text"][:]
    )
    more = datasets.DatasetDict(train=whole, unsupervised=whole.select(range(5)))
    more.save_to_disk(tmp_path / "more")
    corpus = load(tmp_path / "more")
    assert "split unsupervised left out" in corpus.description and len(corpus.train) + len(corpus.heldout) == 50
    (tmp_path / "more").rename(tmp_path / "test")  # what a folder is called says nothing of what it holds
    assert len(load(tmp_path / "test" / "unsupervised").train) == 4
    assert len(load(tmp_path / "test").train) == 45
    next((tmp_path / "[a] *").glob("data-00001*")).unlink()
    with pytest.raises(CorpusError, match=r"lacks 'data-00001-of-00002.arrow'"):
        load(tmp_path / "[a] *")


def test_what_is_no_file_is_refused(tmp_path):
    (tmp_path / "a.jsonl").symlink_to(tmp_path / "gone.jsonl")
    with pytest.raises(CorpusError, match=r"is a link to '.*gone.jsonl', which does not exist"):
        load(tmp_path / "a.jsonl")
    with pytest.raises(CorpusError, match="broken link"):
        load(tmp_path)
    os.mkfifo(tmp_path / "b.jsonl")
    with pytest.raises(CorpusError, match="neither a file nor a folder"):
        load(tmp_path / "b.jsonl")
    for name in ("", " "):
        with pytest.raises(CorpusError, match="corpus: is empty"):
            load(name)
    with pytest.raises(CorpusError, match=r"holds only x.md; name a file"):
        load(fill(tmp_path / "only", x_md="text"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_what_may_not_be_read_is_refused(tmp_path):
    fill(tmp_path, a_jsonl=jsonl("a"), b__c_jsonl=jsonl("c"))
    for path in (tmp_path / "a.jsonl", tmp_path / "b"):
        path.chmod(0)
        with pytest.raises(CorpusError, match="Permission denied"):
            load(tmp_path)
        path.chmod(0o700)


def test_nothing_is_written_to_read_local_files(tmp_path):
    """In a process of its own, whose home is empty and stays so."""
    home, folder = tmp_path / "home", tmp_path / "data"
    home.mkdir()
    fill(folder, a_csv="text\na\n", b_jsonl=jsonl("b"), c_txt="c")
    pd.DataFrame({"text": TEXTS}).to_parquet(folder / "d.parquet")
    fill(tmp_path / "hub", a_jsonl=jsonl("a"))
    card(tmp_path / "hub", "configs:\n- config_name: x\n  data_files: '*.jsonl'")
    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(tmp_path / "saved")
    before = corpora.files_state(tmp_path)
    code = "import sys; from fairlm_utils import params; from fairlm_utils.lm import corpora\n"
    code += "for a in sys.argv[1:]: corpora.load_corpus(params.CorpusParams(corpus=a))"
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "XDG_"))}
    environment |= {"HOME": str(home), "TMPDIR": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    paths = [str(tmp_path / name) for name in ("data", "hub", "saved", "data/d.parquet")]
    subprocess.run([sys.executable, "-c", code, *paths], check=True, env=environment, cwd=Path(__file__).parents[1])
    assert not list(home.rglob("*")) and corpora.files_state(tmp_path) == before


def test_a_data_set_of_the_hub_is_read_by_datasets(monkeypatch):
    of = datasets.Dataset.from_dict
    sets = datasets.DatasetDict(
        train=of({"text": TEXTS}), test=of({"text": [*TEXTS[:3], None]}), more=of({"text": TEXTS})
    )
    monkeypatch.setattr(datasets, "load_dataset", lambda name: {"a/b": sets}[name])
    corpus = load("a/b")
    assert list(corpus.heldout) == TEXTS[:3] and sorted(corpus.train) == sorted(TEXTS)
    assert corpus.description.startswith("a/b (Hub): 50 training documents") and corpus.description.endswith(
        "split more left out, 1 empty or missing documents dropped, held-out documents that are also training documents: 3"
    )


# What a document is


PACK = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


@pytest.mark.parametrize(
    "kind, how",
    [("Parquet", ""), *itertools.product(["csv", "TSV", "jsonl", "json", "txt"], ["", ".gz", ".BZ2", ".xz"])],
)
def test_every_format_is_read_packed_or_not_under_small_or_capital_letters(tmp_path, kind, how):
    texts = [f'document {i}, of "many" é' for i in range(20)]
    frame, buffer = pd.DataFrame({"label": 0, "text": texts}), io.BytesIO()
    if kind == "Parquet":
        frame.to_parquet(buffer)
    data = {
        "csv": lambda: frame.to_csv(index=False).encode(),
        "TSV": lambda: frame.to_csv(index=False, sep="\t").encode(),
        "jsonl": lambda: frame.to_json(orient="records", lines=True).encode(),
        "json": lambda: frame.to_json(orient="records", indent=1).encode(),
        "txt": lambda: "\r\n".join(texts).encode(),
        "Parquet": buffer.getvalue,
    }[kind]()
    path = tmp_path / f"a.{kind}{how}"
    path.write_bytes(PACK[how.lower()](data))
    for location in (path, tmp_path):
        corpus = load(location)
        assert sorted([*corpus.train, *corpus.heldout]) == sorted(texts)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "json", "txt"])
def test_texts_are_utf_8_or_say_by_a_mark_what_they_are(tmp_path, kind):
    texts = [f"größe {i}" for i in range(10)]
    text = {
        "csv": "text\n" + "\n".join(texts),
        "jsonl": "\n".join(json.dumps({"text": t}, ensure_ascii=False) for t in texts),
        "json": json.dumps([{"text": t} for t in texts], ensure_ascii=False),
        "txt": "\n".join(texts),
    }[kind]
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):
        path = tmp_path / f"{encoding}.{kind}"
        path.write_bytes(text.encode(encoding))
        corpus = load(path)
        assert sorted([*corpus.train, *corpus.heldout]) == texts
    for encoding in ("latin-1", "utf-16-le", "utf-16-be", "utf-32-le"):
        path.write_bytes(text.encode(encoding))
        with pytest.raises(CorpusError, match=r"is not UTF-8 .*write it again as UTF-8"):
            load(path)


def test_text_of_another_script_without_a_mark_is_not_read_as_rubbish(tmp_path):
    path = tmp_path / "c.txt"
    path.write_bytes("Жизнь прожить — не поле перейти. ".encode("utf-16-le") * 30)
    with pytest.raises(CorpusError, match="without a byte-order mark"):
        load(path)


@pytest.mark.parametrize(
    "rows, said",
    [
        ('text,label\n"a, b",1\n"c",1,\n', r"line 3: row 2 has 3 fields where the first line names 2"),
        ("text\na\nb, and c\n", "line 3: row 2 has 2 fields"),
        ("text,label\na,1\nb\n", "line 3: row 2 has 1 fields"),
        ('text,label\n"a\nb",1\nb\n', "line 4: row 2 has 1 fields"),
        ('text\na\n"b\n', "unexpected end of data"),
        ('text\n"a" he said\n', "expected after"),
    ],
)
def test_rows_whose_columns_would_shift_are_refused(tmp_path, rows, said):
    for kind, delimiter in (("csv", ","), ("tsv", "\t")):
        (tmp_path / f"a.{kind}").write_text(
            rows.replace(", ", "~").replace(",", delimiter).replace("~", f"{delimiter} ")
        )
        with pytest.raises(CorpusError, match=said.replace("'", ".")) as error:
            load(tmp_path / f"a.{kind}")
        assert "double quotes" in str(error.value)


def test_a_csv_file_without_names_or_with_one_twice_is_refused(tmp_path):
    for rows, said in (
        ("first text,1\nb,2\n", "no column 'text'; it has first text, 1"),
        ("text,text\na,b", "several"),
    ):
        with pytest.raises(ParameterError, match=said):
            load(fill(tmp_path, a_csv=rows) / "a.csv")
    with pytest.raises(ParameterError, match="holds numbers"):
        load(fill(tmp_path, a_csv="text,label\na,1\nb,-2.5\n") / "a.csv", text_column="label")


def test_fields_are_text_as_they_stand(tmp_path):
    texts = [
        "NA",
        "null",
        "None",
        "nan",
        "007",
        "1e5",
        "2020-01-01",
        "true",
        "two\nlines",
        'a "word", quoted',
        " spaces ",
        "x" * 200_000,
    ]
    pd.DataFrame({"text": texts, "n": 1}).to_csv(tmp_path / "a.csv", index=False)
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    for name in ("a.csv", "b.jsonl"):
        corpus = load(tmp_path / name)
        assert sorted([*corpus.train, *corpus.heldout]) == sorted(texts)
    fill(tmp_path, a_csv="n,text\n1,a\n\n2,\n3,b\n")
    assert "1 empty or missing documents dropped" in load(tmp_path / "a.csv").description


def test_json_that_holds_no_texts_is_refused_with_its_row(tmp_path):
    for text, said in (
        ('{"text": "a"}\n{"text": 3}\n', "row 2: column 'text' holds int"),
        ('{"text": "a"}\n[1]\n', "row 2: column .text. holds list"),
        ('{"text": "a"}\n{"text": \n', "line 2: Expecting value"),
        ('{"body": "a"}\n{"title": "b"}\n', "no column 'text'; it has body, title"),
        ('{"text": "a"}\n{"text": "b", "text": "c"}\n', "line 2: key 'text' stands twice in one object"),
        ('{"text":' * 5000, "recursion"),
    ):
        with pytest.raises((CorpusError, ParameterError), match=said):
            load(fill(tmp_path, a_jsonl=text) / "a.jsonl")
    assert (
        "1 empty or missing" in load(fill(tmp_path, a_jsonl='{"text": "a"}\n{}\n{"text": "b"}') / "a.jsonl").description
    )
    for text in ('["a", "b"]', '{"text": "a"}\n{"text": "b"}', '{"text": "a"} {"text":\n"b"}'):
        corpus = load(fill(tmp_path, a_json=text) / "a.json")
        assert {*corpus.train, *corpus.heldout} == {"a", "b"}
    with pytest.raises(CorpusError, match=r"\(key 'text' stands twice"):
        load(fill(tmp_path, a_json='[{"text": "a", "text": "b"}]') / "a.json")


def test_documents_of_txt_are_files_paragraphs_or_lines(tmp_path):
    text = "one,\nstill one\n\n \ntwo\n\nthree\n"
    paragraphs, lines = ["one,\nstill one", "two", "three"], ["one,", "still one", "two", "three"]

    def documents(**values):
        corpus = load(tmp_path, **values)
        return sorted([*corpus.train, *corpus.heldout]), corpus.description

    fill(tmp_path, a_txt=text)
    assert documents()[0] == sorted(paragraphs) and "one document per paragraph of .txt" in documents()[1]
    assert documents(txt_documents="line")[0] == sorted(lines)
    fill(tmp_path, b_txt="another file\nof two lines\n")
    assert documents()[0] == sorted([text, "another file\nof two lines\n"])
    assert "one document per file of .txt" in documents()[1]
    assert documents(txt_documents="line")[0] == sorted([*lines, "another file", "of two lines"])
    assert documents(txt_documents="paragraph")[0] == sorted([*paragraphs, "another file\nof two lines"])
    (tmp_path / "b.txt").unlink()
    fill(tmp_path, a_txt="one\ntwo\n")
    assert documents()[0] == ["one", "two"] and "one document per line of .txt" in documents()[1]
    with pytest.raises(CorpusError, match=r"one document per file of \.txt"):
        documents(txt_documents="file")


def test_a_txt_file_named_after_its_split_holds_many_documents(tmp_path):
    corpus = load(fill(tmp_path, train_txt="a\nb\n", test_txt="c\n\nd\ne"))
    assert sorted(corpus.train) == ["a", "b"] and list(corpus.heldout) == ["c", "d\ne"]
    assert "one document per line or paragraph of .txt" in corpus.description
    (tmp_path / "train.txt").rename(tmp_path / "train-00000-of-00002.txt")
    fill(tmp_path, **{"train-00001-of-00002_txt": "f\n"})
    assert sorted(load(tmp_path).train) == ["a", "b", "f"]


def test_lines_of_one_file_do_not_lie_in_both_splits(tmp_path):
    for i in range(20):
        (tmp_path / f"{i}.txt").write_text(f"review {i}, first line.\n\nreview {i}, last line.\n")
    corpus = load(tmp_path, heldout_fraction=0.3)
    of = [
        {line.split(",")[0] for t in split for line in t.split("\n") if line}
        for split in (corpus.train, corpus.heldout)
    ]
    assert len(of[0]) == 14 and len(of[1]) == 6 and not of[0] & of[1]


def test_documents_in_both_splits_are_counted(tmp_path):
    pd.DataFrame({"text": TEXTS}).to_parquet(tmp_path / "train.parquet")
    pd.DataFrame({"text": [*TEXTS[:4], TEXTS[0], "other", TEXTS[9] + " "]}).to_parquet(tmp_path / "test.parquet")
    assert "held-out documents that are also training documents: 5" in load(tmp_path).description
    assert "also" not in load(write(tmp_path, "jsonl")).description
