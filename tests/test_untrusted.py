"""Models, corpora and experiment files of strangers: no code of theirs runs, no path leaves its folder, no bomb expands."""

import bz2
import gzip
import json
import lzma
import pickle
import random
import struct
import time
import tracemalloc
from pathlib import Path

import altair as alt
import nbformat
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import vl_convert
from transformers import GPT2Config, GPT2LMHeadModel

from fairlm_utils import files, identity, params
from fairlm_utils.__main__ import main
from fairlm_utils.analysis import explorer, theme
from fairlm_utils.experiment import audit, report, runs, sweep
from fairlm_utils.lm import corpora, models, tokenization, training
from fairlm_utils.lm.corpora import CorpusError, load_corpus
from fairlm_utils.lm.models import load_model
from fairlm_utils.params import AuditParams, CorpusParams, EvaluationParams, ParameterError, TokenizationParams
from tests.chromium import browser, needs_browser  # noqa: F401 (a fixture)

TEXTS = [f"document number {i} of many" for i in range(50)]


class Payload:
    """What, when it is unpickled, creates a file."""

    def __init__(self, witness: Path):
        self.witness = witness

    def __reduce__(self):
        return (Path.touch, (self.witness,))


@pytest.fixture
def witness(tmp_path):
    """A file that exists once a stranger's code has run; the test fails if it does."""
    path = tmp_path / "code of a stranger ran"
    yield path
    assert not path.exists()


@pytest.fixture
def folder(tmp_path, documents):
    """A whole model folder of GPT-2, with its tokenizer."""
    path, tokenizer = tmp_path / "model", tokenization.train_bpe(documents, 300)
    GPT2LMHeadModel(
        GPT2Config(vocab_size=len(tokenizer), n_positions=32, n_embd=8, n_layer=1, n_head=2)
    ).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def audited(folder, corpus_file):
    p = AuditParams.check({"audited_model": str(folder), "corpus": str(corpus_file), "context": 16})
    return audit.audit(p, p.audited_model, load_corpus(p))


def only_a_pickle(folder, witness):
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Payload(witness)}, folder / "pytorch_model.bin")


def a_pickle_by_an_index(folder, witness):
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Payload(witness)}, folder / "shard.bin")
    index = {"metadata": {}, "weight_map": {"transformer.wte.weight": "shard.bin"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def a_pickle_called_safetensors(folder, witness):
    (folder / "model.safetensors").write_bytes(pickle.dumps(Payload(witness)))


def a_kernel_of_the_hub(folder, witness):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "attn_implementation": "stranger/kernel"}))


@pytest.mark.parametrize(
    "spoil", [only_a_pickle, a_pickle_by_an_index, a_pickle_called_safetensors, a_kernel_of_the_hub]
)
def test_a_model_that_is_not_plain_safetensors_is_refused_without_running_it(folder, witness, corpus_file, spoil):
    spoil(folder, witness)
    with pytest.raises(files.RunError, match=r"cannot be read.*pickles are not read, and code .* is never run"):
        load_model(folder, 300)
    with pytest.raises(files.RunError, match="cannot be read"):
        audited(folder, corpus_file)


def test_the_payload_of_these_tests_works(tmp_path):
    pickle.loads(pickle.dumps(Payload(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


@pytest.fixture
def remote(folder, witness):
    """The folder with code of its own for everything, under a type that transformers does not know."""
    source = f"open({str(witness)!r}, 'w')\nfrom transformers import *\nclass C(GPT2Config): model_type = 'own'\n"
    (folder / "own.py").write_text(
        source + "class M(GPT2LMHeadModel): config_class = C\nclass T(GPT2Tokenizer): pass\n"
    )
    auto = {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M", "AutoTokenizer": ["own.T", "own.T"]}
    for name, values in (
        ("config.json", {"model_type": "own"}),
        ("tokenizer_config.json", {"tokenizer_class": "T"}),
    ):
        known = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**known, **values, "auto_map": auto}))
    return folder


def test_code_of_a_model_folder_never_runs(remote, witness, corpus_file):
    for name in (remote, remote / "config.json"):
        with pytest.raises(ParameterError, match="is never run"):
            models.model_config(str(name), 300, 16)
    with pytest.raises(ParameterError, match="never run"):
        tokenization.load_tokenizer(str(remote))
    with pytest.raises(files.RunError, match="never run"):
        load_model(remote, 300)
    with pytest.raises(ParameterError, match="never run"):
        audited(remote, corpus_file)


def test_code_beside_a_known_architecture_is_left_alone(remote, witness):
    """Folders of models that transformers has since adopted still carry their own code."""
    config = json.loads((remote / "config.json").read_text())
    (remote / "config.json").write_text(json.dumps({**config, "model_type": "gpt2"}))
    assert type(load_model(remote, 300)) is GPT2LMHeadModel
    assert type(models.build_model(str(remote), 300, 16, seed=0)) is GPT2LMHeadModel


@pytest.mark.parametrize(
    "text",
    ["", "[]", "3", "{", "[" * 100_000, '{"model_type": 3}', '{"model_type": "gpt2", "n_embd": "wide"}', "\0"],
    ids=lambda t: t[:30],
)
def test_any_text_as_a_config_is_read_or_refused_in_one_line(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    for name in (tmp_path, tmp_path / "config.json"):
        with pytest.raises(ParameterError, match="model: ") as error:
            models.model_config(str(name), 300, 16)
        assert len(str(error.value).splitlines()) == 1 and len(str(error.value)) < 1000


@pytest.mark.parametrize(
    "sizes",
    [{"n_embd": 10**9}, {"n_embd": 7}, {"n_embd": 0}, {"n_embd": 200_000}, {"n_layer": 10**8}],
    ids=lambda sizes: str(sizes)[1:-1],
)
def test_sizes_that_cannot_be_are_refused_before_memory_is_taken(tmp_path, sizes):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "gpt2", "n_layer": 1, "n_head": 2, **sizes}))
    before = runs.peak_memory_mb()
    with pytest.raises(ParameterError, match="cannot be built") as error:
        models.build_model(str(path), 300, 16, seed=0)
    assert len(str(error.value).splitlines()) == 1 and runs.peak_memory_mb() - before < 300


def test_a_model_whose_training_needs_more_memory_than_there_is_is_refused_before_it_starts(
    miniature, tmp_path, monkeypatch
):
    p = miniature(runs_dir=str(tmp_path / "runs"))
    n_parameters = models.build_model(p.model, 305, p.context, 0).num_parameters()
    for module in (models, training):
        monkeypatch.setattr(module, "physical_memory", lambda: 8 * n_parameters)
    with pytest.raises(files.RunError, match="choose a smaller model"):
        runs.train(p)
    assert not (identity.run_dir(p) / "checkpoints").exists()


def test_code_in_a_data_set_never_runs(tmp_path, witness):
    code = f"open({str(witness)!r}, 'w')"
    for name in ("script/script.py", "alone.py"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(code)
    (tmp_path / "script" / "a.jsonl").write_text('{"text": "x"}\n')
    (tmp_path / "pickles").mkdir()
    for name in ("train.pkl", "train.pt"):
        (tmp_path / "pickles" / name).write_bytes(pickle.dumps(Payload(witness)))
    for location in ("script", "alone.py", "pickles"):
        with pytest.raises(CorpusError, match="cannot be read"):
            load_corpus(CorpusParams.check({"corpus": str(tmp_path / location)}))


# Paths


@pytest.mark.parametrize("name", ["../../x", "/tmp/x", "a/b", "..", ".", ".x", "a..b", "", "a\0b", "a\nb", "-x", "~"])
def test_an_experiment_name_that_is_a_path_is_refused(name):
    with pytest.raises(ParameterError, match="experiment"):
        EvaluationParams.check({"experiment": name})


@pytest.mark.parametrize("name", ["../../x", "/etc", "..", ".", "/", "a\\..\\b", "x/../../../y.json", "a\0b"])
def test_names_of_models_corpora_and_variants_stay_one_folder_below_theirs(tmp_path, name):
    p = EvaluationParams.check({"model": name, "corpus": name, "variant": name, "runs_dir": str(tmp_path)})
    assert (
        len(identity.run_dir(p.model_copy(update={"model": name.replace("\0", "")})).relative_to(tmp_path).parts) == 2
    )
    assert (
        tokenization.cache_dir(p.model_copy(update={"corpus": "x" + name.replace("\0", "")})).parent
        == tmp_path / "tokenized"
    )
    (point,) = params.expand({"runs_dir": str(tmp_path), "variants": {name: {}}})
    assert identity.run_dir(point).parent == tmp_path / "quick" and "/" not in point.run_id()


@pytest.mark.parametrize("level", ["experiment", "run"])
def test_a_linked_run_folder_is_refused_and_nothing_is_written_through_it(miniature, tmp_path, level):
    p = miniature(runs_dir=str(tmp_path / "runs"), experiment="linked")
    target, link = tmp_path / "elsewhere", identity.run_dir(p) if level == "run" else identity.run_dir(p).parent
    target.mkdir()
    link.parent.mkdir(parents=True)
    link.symlink_to(target)
    for make in (runs.train, runs.evaluate):
        with pytest.raises(files.RunError, match="link out of runs_dir"):
            make(p)
    assert not list(target.iterdir())


@pytest.mark.parametrize("name", ["checkpoints", ".model.tmp", ".lock", "model", "tables"])
def test_a_link_within_a_run_folder_is_refused_and_nothing_is_written_through_it(miniature, tmp_path, name):
    """A folder of a stranger's runs, unpacked into runs_dir."""
    p = miniature(runs_dir=str(tmp_path / "runs"), experiment="linked")
    target = tmp_path / "elsewhere"
    target.write_text("mine") if name == ".lock" else target.mkdir()
    identity.run_dir(p).mkdir(parents=True)
    (identity.run_dir(p) / name).symlink_to(target)
    for make in (runs.train, runs.evaluate):
        with pytest.raises(files.RunError, match=f"{name}: is a link to .*elsewhere"):
            make(p)
    assert target.read_text() == "mine" if name == ".lock" else not list(target.iterdir())


@pytest.mark.parametrize("name", [sweep.LOG, ".sweep"])
def test_a_sweep_writes_through_no_link(miniature, tmp_path, name):
    p = miniature(runs_dir=str(tmp_path / "runs"), experiment="linked")
    target = tmp_path / "elsewhere"
    target.mkdir() if name == ".sweep" else target.write_text("mine")
    identity.run_dir(p).mkdir(parents=True)
    (identity.run_dir(p) / name).symlink_to(target)
    (outcome,) = sweep.sweep([p])
    assert outcome.status == "failed" and f"{name}: is a link" in outcome.error
    assert not list(target.iterdir()) if name == ".sweep" else target.read_text() == "mine"


@pytest.mark.parametrize("whole", [True, False], ids=["cache", "corpus"])
def test_a_linked_tokenizer_cache_is_refused(miniature, tmp_path, whole):
    p, target = miniature(runs_dir=str(tmp_path / "runs"), vocab_size=301), tmp_path / "elsewhere"
    target.mkdir()
    link = tokenization.cache_dir(p).parent if whole else tokenization.cache_dir(p)
    link.parent.mkdir(parents=True)
    link.symlink_to(target)
    with pytest.raises(files.RunError, match="link out of runs_dir"):
        tokenization.tokenize_corpus(p)
    assert not list(target.iterdir())


def test_runs_dir_itself_may_be_a_link_to_a_larger_disk(miniature, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "runs").symlink_to(tmp_path / "disk")
    assert identity.run_dir(miniature(runs_dir=str(tmp_path / "runs"))).parts[-3] == "runs"


def test_a_model_config_names_no_place_to_write(miniature, folder, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    path = folder / "other.json"
    path.write_text(json.dumps({**config, "_name_or_path": "../../escaped", "name_or_path": "/escaped"}))
    p = miniature(runs_dir=str(tmp_path / "a" / "b" / "runs"), model=str(path), steps=2, window_steps=2)
    runs.train(p)
    assert {f.relative_to(tmp_path).parts[0] for f in tmp_path.rglob("*") if f.is_file()} <= {"a", "model"}
    assert not list((tmp_path / "a").rglob("*escaped*"))


def test_a_tokenizer_names_no_place_to_write(folder, corpus_file, tmp_path):
    """Chat templates are saved under names that the folder chooses."""
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["chat_template"] = [{"name": name, "template": "x"} for name in ("default", "../../../../escaped")]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    values = {"corpus": str(corpus_file), "tokenizer": str(folder), "runs_dir": str(tmp_path / "runs")}
    assert tokenization.tokenize_corpus(TokenizationParams.check(values)).meta["vocabulary"] > 256
    assert not list(tmp_path.rglob("*escaped*"))


# Documents


def tokenized(path, **values):
    p = TokenizationParams.check(
        {"corpus": str(path), "vocab_size": 300, "runs_dir": str(path.parent / "runs"), **values}
    )
    return tokenization.tokenize_corpus(p)


def jsonl(path, texts):
    path.write_text("\n".join(json.dumps({"text": t}) for t in texts))
    return path


def test_nul_characters_are_text(tmp_path):
    corpus = tokenized(jsonl(tmp_path / "a.jsonl", [*TEXTS, "a\0b\0"]))
    decoded = corpus.tokenizer.decode([*corpus.train.tolist(), *corpus.heldout.tolist()])
    assert "a\0b\0" in decoded


def test_lone_surrogates_are_refused_in_one_line(tmp_path):
    lone = pa.array([b"\xed\xa0\x80 lone", *(t.encode() for t in TEXTS)]).view(pa.string())
    pq.write_table(pa.table({"text": lone}), tmp_path / "a.parquet")
    jsonl(tmp_path / "a.jsonl", [*TEXTS, "\ud800"])
    (tmp_path / "a.txt").write_bytes(b"\xed\xa0\x80 lone\n" * 30)
    for name, said in (("a.parquet", "not UTF-8"), ("a.jsonl", "surrogate"), ("a.txt", "utf-8")):
        with pytest.raises(CorpusError, match=said) as error:
            tokenized(tmp_path / name)
        assert "\n" not in str(error.value)


def test_one_line_of_10_mb_is_a_document(tmp_path):
    corpus = tokenized(jsonl(tmp_path / "a.jsonl", [*TEXTS, "words " * (10**7 // 6 + 1)]))
    assert sum(corpus.meta[split]["n_characters"] for split in ("train", "heldout")) > 10**7


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "txt", "parquet"])
def test_empty_files_and_data_sets_without_rows_are_refused(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    path.write_bytes(b"")
    with pytest.raises(CorpusError, match=r"a\." + kind + r".*(is empty|0 bytes)"):
        tokenized(path)


def test_a_folder_of_runs_in_the_folder_of_the_corpus_is_refused(tmp_path):
    jsonl(tmp_path / "a.jsonl", ["one text", "another"])
    with pytest.raises(ParameterError, match=r"runs_dir: .* lies in the folder of the corpus"):
        tokenization.tokenize_corpus(
            TokenizationParams.check({"corpus": str(tmp_path), "runs_dir": str(tmp_path / "runs")})
        )


def test_folders_without_files_and_tables_without_rows_are_refused(tmp_path):
    (tmp_path / "nothing").mkdir()
    with pytest.raises(CorpusError, match="is empty"):
        tokenized(tmp_path / "nothing")
    pd.DataFrame({"text": pd.Series([], dtype=str)}).to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(CorpusError, match="0 training and 0 held-out"):
        tokenized(tmp_path / "rows.parquet")
    with pytest.raises(CorpusError, match="0 training and 0 held-out"):
        tokenized(jsonl(tmp_path / "blank.jsonl", ["", " ", "\n"]))


def test_a_parquet_file_of_500_bytes_that_holds_5_gb_is_refused_before_it_expands(tmp_path):
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 5000, pa.int32()), pa.array(["x" * 10**6]))
    pq.write_table(pa.table({"text": texts}), tmp_path / "bomb.parquet", compression="zstd")
    assert (tmp_path / "bomb.parquet").stat().st_size < 1000
    before, start = runs.peak_memory_mb(), time.monotonic()
    with pytest.raises(CorpusError, match="expands to over"):
        tokenized(tmp_path / "bomb.parquet", max_documents=10)
    assert runs.peak_memory_mb() - before < 300 and time.monotonic() - start < 10


def test_a_packed_file_that_expands_a_thousand_times_is_refused_before_it_is_unpacked(tmp_path):
    (tmp_path / "data").mkdir()
    with gzip.open(tmp_path / "data" / "train.txt.gz", "wb", compresslevel=9) as file:
        for _ in range(600):
            file.write(b"x" * 2**20)
    with pytest.raises(CorpusError, match="expands to over"):
        tokenized(tmp_path / "data")


def test_honest_files_that_repeat_themselves_are_read(tmp_path, monkeypatch):
    """A dictionary of few texts, and packed text: neither is a bomb below the size where it would hurt."""
    pd.DataFrame({"text": ["the same words again"] * 20_000}).to_parquet(tmp_path / "same.parquet")
    assert len(load_corpus(CorpusParams.check({"corpus": str(tmp_path / "same.parquet")})).train) == 18_000
    monkeypatch.setattr(corpora, "MIN_BOMB_BYTES", 0)
    words = [" ".join(random.Random(i).choices("abcdefghij", k=200)) for i in range(500)]
    pd.DataFrame({"text": words, "label": 0}).to_parquet(tmp_path / "text.parquet")
    assert len(load_corpus(CorpusParams.check({"corpus": str(tmp_path / "text.parquet")})).train) == 450


def saved(folder, table, **options):
    """A folder like those of `save_to_disk`, of one file that no such function may have written."""
    folder.mkdir(exist_ok=True)
    with pa.OSFile(str(folder / "a.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema, **options) as stream:
        stream.write_table(table)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "a.arrow"}]}))
    return folder


@pytest.mark.parametrize("name", ["a.tsv.gz", "a.csv.BZ2", "a.json.xz"])
def test_every_packing_is_measured_before_it_is_read(tmp_path, monkeypatch, name):
    monkeypatch.setattr(corpora, "MIN_BOMB_BYTES", 2**20)
    pack = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
    (tmp_path / name).write_bytes(pack[Path(name.lower()).suffix](b"text\n" + b"x" * 2**24))
    for location in (tmp_path, tmp_path / name):
        with pytest.raises(CorpusError, match="expands to over"):
            load_corpus(CorpusParams.check({"corpus": str(location)}))


@pytest.mark.parametrize("codec", ["zstd", "lz4"])
def test_arrow_whose_batches_are_compressed_is_refused_before_they_expand(tmp_path, codec):
    """100 MB in 10 or 400 kB."""
    table = pa.table({"text": pa.array(["x" * 10**7] * 10)})
    path = saved(tmp_path / "a", table, options=pa.ipc.IpcWriteOptions(compression=codec))
    del table
    before = pa.total_allocated_bytes()
    with pytest.raises(CorpusError, match="batches are compressed"):
        tokenized(path)
    assert pa.total_allocated_bytes() - before < 10**7


@pytest.mark.parametrize("rows", [0, 5])
@pytest.mark.parametrize("codec", [None, "zstd", "lz4"])
def test_a_codec_is_seen_in_every_message_of_an_arrow_stream(tmp_path, rows, codec):
    texts = pa.array(["a" * 1000] * rows)
    for column in (texts, texts.cast(pa.large_string()), texts.dictionary_encode(), pa.array([1.5] * rows)):
        table = pa.table({"text": column, "n": pa.array(range(rows), pa.int64())})
        folder = saved(tmp_path / "a", table, options=pa.ipc.IpcWriteOptions(compression=codec))
        kinds = [
            (m.type, corpora._is_plain(m)) for m in pa.ipc.MessageReader.open_stream((folder / "a.arrow").read_bytes())
        ]
        assert kinds[0] == ("schema", True) and len(kinds) >= 2 if rows else 1
        assert all(plain == (codec is None and name == "record batch") for name, plain in kinds[1:])


def test_arrow_that_stands_for_gigabytes_is_refused_before_it_expands(tmp_path):
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 5000, pa.int32()), pa.array(["x" * 10**6]))
    with pytest.raises(CorpusError, match="have dictionaries"):
        tokenized(saved(tmp_path / "a", pa.table({"text": texts})))
    nothing = pa.record_batch([pa.nulls(10**9)], names=["text"])  # takes no bytes at all
    with pytest.raises(CorpusError, match="expands to over"):
        tokenized(saved(tmp_path / "b", pa.Table.from_batches([nothing])))


def test_arrow_whose_offsets_point_elsewhere_is_refused(tmp_path):
    folder = saved(tmp_path / "a", pa.table({"text": ["abcd", "efgh"]}))
    right, whole = struct.pack("<3i", 0, 4, 8), (folder / "a.arrow").read_bytes()
    assert whole.count(right) == 1
    for offsets in ((0, 4, 10**6), (0, 2**31 - 1, 8), (0, -5, 8), (-(2**31), 4, 8)):
        (folder / "a.arrow").write_bytes(whole.replace(right, struct.pack("<3i", *offsets)))
        with pytest.raises(CorpusError, match="cannot be read"):
            tokenized(folder)


def test_a_state_of_a_saved_data_set_names_no_file_elsewhere(tmp_path):
    saved(tmp_path / "secret", pa.table({"text": ["secret"] * 9}))
    saved(tmp_path / "set", pa.table({"text": TEXTS}))
    state = {"_data_files": [{"filename": "a.arrow"}, {"filename": "../secret/a.arrow"}]}
    (tmp_path / "set" / "state.json").write_text(json.dumps(state))
    corpus = load_corpus(CorpusParams.check({"corpus": str(tmp_path / "set")}))
    assert sorted([*corpus.train, *corpus.heldout]) == sorted(TEXTS)


# Experiment files


def bomb(levels: int) -> str:
    lines = ["seed: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    return "\n".join([*lines, *(f"steps{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, levels))])


@pytest.mark.parametrize(
    "text, said",
    [
        (bomb(12), "aliases"),
        ("seed: &a [*a]", "aliases"),
        ("a: " + "[" * 5000, "deep"),
        ("a: " + "{a: " * 5000, "deep"),
        ("variants: {1: {seed: 2}}", "quotes"),
        ("variants: {a: {1: 2}}", "quotes"),
        ("variants: {no: {seed: 2}}", "quotes"),
        ("seed: [{1: 2}]", "quotes"),
        ("? [1, 2]\n: 3", "not YAML"),
        ("seed: " + "9" * 5000, "not YAML"),
        ("seed: 0x" + "f" * 9000, "64 bits"),
        ("seed: 2020-99-99", "not YAML"),
        ("seed: !!timestamp x", "not YAML"),
        ("a: " + "x" * 10**6, "larger than"),
    ],
    ids=lambda t: t[:24],
)
def test_an_experiment_file_that_would_expand_or_confuse_is_refused_before_it_does(tmp_path, text, said):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    tracemalloc.start()
    try:
        with pytest.raises(ParameterError, match=said) as error:
            params.read(path)
        assert tracemalloc.get_traced_memory()[1] < 20e6 and len(str(error.value)) < 2000
    finally:
        tracemalloc.stop()


def test_an_override_is_read_as_carefully_as_a_file(corpus_file, capsys):
    for value in ("[", "&a [*a]", "{1: 2}"):
        with pytest.raises(ParameterError, match="-p seed"):
            params.read("params/quick.yaml", [("seed", value)])
        assert main(["audit", "gpt2", str(corpus_file), "-p", "context", value]) == 2
        assert "-p context" in capsys.readouterr().err


# Pages

SCRIPTS = [
    "<script>window.stranger = 1; alert('stranger')</script>",
    "<img src=x onerror=\"window.stranger = 1; alert('stranger')\">",
    '</script></pre></td><svg onload="window.stranger = 1">',
]


def opened(browser, path):
    """A page in the browser after a second, and the dialogs and outside requests it caused."""
    page, caused = browser.new_page(viewport={"width": 1200, "height": 900}), []
    page.on("dialog", lambda dialog: (caused.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda r: caused.append(r.url) if r.url.startswith("http") else None)
    page.goto(path.as_uri(), wait_until="load")
    page.wait_for_timeout(1000)
    return page, caused


@pytest.fixture(scope="module")
def hostile(tmp_path_factory, documents):
    """A corpus of mark-up, a model whose rarest tokens are whole pieces of it, its counts, and folders named like it."""
    folder = tmp_path_factory.mktemp("hostile")
    texts = [f"{SCRIPTS[i % len(SCRIPTS)]} {d}" for i, d in enumerate(documents)]
    corpus, tokenizer = jsonl(folder / "a.jsonl", texts), tokenization.train_bpe(texts, 400)
    tokenizer.add_tokens(SCRIPTS)
    model, counts = folder / SCRIPTS[1], folder / "counts.csv"
    pd.DataFrame({"token_id": range(len(tokenizer) - len(SCRIPTS)), "count": 100}).to_csv(counts, index=False)
    torch.manual_seed(0)
    GPT2LMHeadModel(
        GPT2Config(vocab_size=len(tokenizer), n_positions=32, n_embd=8, n_layer=1, n_head=2)
    ).save_pretrained(model)
    tokenizer.save_pretrained(model)
    return {"audited_model": str(model), "corpus": str(corpus), "counts_file": str(counts)}


@needs_browser
def test_mark_up_in_a_corpus_does_not_run_in_the_report_of_an_audit(hostile, tmp_path, browser):
    values = {**hostile, "context": 16, "max_heldout_blocks": 20}
    page, caused = opened(browser, audit.write_report(values, tmp_path / "audit.html"))
    assert all(script[:20] in page.inner_text("body") for script in SCRIPTS)  # shown, as text
    assert page.evaluate("window.stranger") is None and not caused
    assert page.evaluate("document.scripts.length") == 0 and page.locator("[onerror], [onload]").count() == 0


@needs_browser
def test_mark_up_in_tokens_does_not_run_in_a_chart(tmp_path, browser):
    """The chart that lists tokens, drawn by Vega as JupyterLab does, with its tooltips."""
    n = 60
    tokens = pd.DataFrame(
        {"token_id": range(n), "token": [SCRIPTS[i % len(SCRIPTS)] for i in range(n)], "kind": "other"}
    )
    for column in ("n_train", "loss_training", "loss_held-out", "change_training", "change_held-out"):
        tokens[column] = np.linspace(1, 50, n).round()
    chart = explorer.token_explorer(tokens.assign(weight_decay=1.0))
    path = tmp_path / "chart.html"
    path.write_text(
        f"<div id=chart></div><script type=module>{vl_convert.javascript_bundle()};window.embed=vegaEmbed</script>"
    )
    page, caused = opened(browser, path)
    page.wait_for_function("() => Boolean(window.embed)")
    page.evaluate("async spec => { await window.embed('#chart', spec); }", chart.to_dict())
    marks = page.locator("svg path, svg text, canvas")
    assert marks.count() > 0
    tooltips, box = set(), page.locator("#chart").first.bounding_box()
    for x in range(20, int(box["width"]), 80):  # a tooltip appears wherever there is a mark
        for y in range(40, min(int(box["height"]), 400), 18):
            page.mouse.move(box["x"] + x, box["y"] + y)
            page.wait_for_timeout(10)
            tooltips.add(page.evaluate("document.querySelector('#vg-tooltip-element')?.innerText"))
    assert any("window.stranger" in (t or "") for t in tooltips)
    assert page.evaluate("window.stranger") is None and not caused
    assert page.locator("[onerror], [onload]").count() == 0


@needs_browser
def test_mark_up_in_a_chart_does_not_run_in_a_report(tmp_path, browser):
    """A chart keeps its table, tokens included, in the notebook of which the report is made."""
    frame = pd.DataFrame({"token": SCRIPTS, "n": 1})
    data, metadata = theme._mimebundle(alt.Chart(frame).mark_bar().encode(y="token:N", x="n:Q").to_dict())
    cell = nbformat.v4.new_code_cell("chart", outputs=[nbformat.v4.new_output("display_data", data, metadata=metadata)])
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "n.ipynb")
    (tmp_path / "n.html").write_text(report.notebook_html(tmp_path / "n.ipynb"), encoding="utf-8")
    page, caused = opened(browser, tmp_path / "n.html")
    assert page.locator("img").count() == 1 and page.evaluate("window.stranger") is None and not caused
    assert page.evaluate("document.scripts.length") == 0 and page.locator("[onerror], [onload]").count() == 0
