"""Languages: prose of manual pages, mixtures, bits per byte by hand, and what the tables of runs say."""

import gzip
import io
import json
import shutil
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from fairlm_utils import files, params
from fairlm_utils.analysis import languages
from fairlm_utils.analysis.results import load_results, write_results
from fairlm_utils.experiment.runs import evaluate
from fairlm_utils.lm.languages import by_language, language_files
from fairlm_utils.lm.tokenization import tokenize_corpus
from fairlm_utils.params import EvaluationParams
from results.languages import extract

PAGE = r""".\" a comment
.TH LS 1 "2022" "GNU"
.SH BEZEICHNUNG
ls \- \(bqVerzeichnis\(cq \fIauf\/listen\fP\" trailing
.PP
.B fett gesetzt
mit
.BR ls (1),
und \[u00E9]\~x.
.nf
int main(void);
.fi
.TP
\fB\-a\fR, \fB\-\-all\fR
alles
"""


def test_macros_and_escapes_are_stripped_and_code_is_left_out():
    assert extract.paragraphs(PAGE) == [
        "ls - Verzeichnis’ auflisten",
        "fett gesetzt mit ls(1), und é x.",
        "-a, --all alles",
    ]
    assert extract.paragraphs(".PP\n名前を\n示す") == ["名前を示す"]
    assert extract.paragraphs(".Dd 2022\n.Dt LS 1\n.Sh NAME\ntext") == []


def test_pages_of_packages_are_found_by_language_and_a_broken_package_is_an_error(tmp_path, monkeypatch):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for folder, text in (("de/man1", "Text"), ("man1", "English"), ("de/man1", ".so man1/a.1")):
            raw = gzip.compress(text.encode())
            member = tarfile.TarInfo(f"./usr/share/man/{folder}/{'b' if '.so' in text else 'a'}.1.gz")
            member.size = len(raw)
            archive.addfile(member, io.BytesIO(raw))
    with pytest.raises(files.RunError, match="cannot be read"):
        extract.read_pages([tmp_path / "none.deb"])
    monkeypatch.setattr(extract.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=packed.getvalue()))
    pages = extract.read_pages(["x.deb"])
    assert pages["German"] == {"a.1": ["Text"], "b.1": []} and not pages["French"]


def pages(n: int = 40) -> dict[str, dict[str, list[str]]]:
    """Two languages of `n` pages of 100 bytes, of which both have the first 10."""
    made = {"German": {}, "Russian": {}}
    for name, of in made.items():
        for i in range(n):
            page = f"{i}" if i < 10 else f"{name}{i}"
            of[page] = [f"{name} {page} ".ljust(100, "x"), "in beiden Sprachen gleich".ljust(60, "y")]
    return made


def test_shares_fall_as_one_over_the_rank_and_the_same_pages_are_held_out():
    made = pages()
    made["German"]["German20"] += ["the words of English are not translated at all", "Danke an <a@b.c>".ljust(90, "z")]
    splits = extract.split_pages(made, largest=2000, n_heldout=5)
    assert {k: len(v) for k, v in splits["train"].items()} == {"German": 20, "Russian": 10}
    heldout = [{text.split()[1] for text in splits["test"][name]} for name in made]
    assert heldout[0] == heldout[1] and len(heldout[0]) == 5 and heldout[0] <= set(map(str, range(10)))
    written = " ".join(text for of in splits.values() for texts in of.values() for text in texts)
    assert not {"beiden", "English", "Danke"} & set(written.split())
    assert splits == extract.split_pages(made, largest=2000, n_heldout=5)
    with pytest.raises(files.RunError, match="Russian: too few pages"):
        extract.split_pages(made | {"Russian": dict(list(made["Russian"].items())[:12])}, largest=2000, n_heldout=5)


def test_a_paragraph_of_held_out_text_is_in_no_training_text():
    made = pages()
    shared = "Diese Zeile steht auf jeder Seite".ljust(80, "z")
    for page in made["German"].values():
        page.append(shared)
    splits = extract.split_pages(made, largest=2000, n_heldout=5)
    assert sum(shared in text for of in splits.values() for text in of["German"]) == 1
    assert any(shared in text for text in splits["test"]["German"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("languages")
    made = pages(60)
    extract.write_mixtures(extract.split_pages(made, largest=4000, n_heldout=5), path)
    return path


def texts(file: Path) -> list[str]:
    return [json.loads(line)["text"] for line in file.read_text("utf-8").splitlines()]


def test_temperature_repeats_documents_by_the_root_of_the_rank_and_adds_none(folder):
    natural, repeated = (texts(folder / m / "train" / "Russian.jsonl") for m in params.MIXTURES)
    assert len(natural) == len(set(natural)) == 20 and set(repeated) == set(natural)
    assert len(repeated) == int(20 * 2**0.5)
    first = [(folder / m / "train" / "German.jsonl").read_bytes() for m in params.MIXTURES]
    tests = [(folder / m / "test" / "Russian.jsonl").read_bytes() for m in params.MIXTURES]
    assert first[0] == first[1] and tests[0] == tests[1] and (folder / "tokenizer" / "tokenizer.json").exists()


@pytest.fixture
def corpus(folder, tmp_path):
    p = EvaluationParams.check(
        {
            "corpus": str(folder / "natural"),
            "tokenizer": str(folder / "tokenizer"),
            "runs_dir": str(tmp_path),
            "context": 4,
        }
    )
    return p, tokenize_corpus(p)


def test_bits_per_byte_by_hand(corpus):
    p, tokenized = corpus
    losses = {}
    for split, ids in (("training", tokenized.train), ("held-out", tokenized.heldout)):
        losses[split] = np.full(len(ids), np.log(2) * (3 if split == "training" else 5))  # nats of 3 and of 5 bits
    low = np.zeros(len(tokenized.tokenizer), dtype=bool)
    table = by_language(p, tokenized, losses, low).set_index(["split", "language"])
    russian = table.loc[("training", "Russian")]
    documents = texts(Path(p.corpus) / "train" / "Russian.jsonl")
    n = sum(len(ids) for ids in tokenized.tokenizer(documents, add_special_tokens=False)["input_ids"])
    assert russian["n_bytes"] == sum(len(t.encode()) for t in documents) == 2000
    assert russian["bits_per_byte"] == pytest.approx(3 * n / 2000)
    assert russian["share"] == pytest.approx(1 / 3) and table.loc[("held-out", "German"), "share"] > 0.4
    assert russian["tokens_per_word"] == pytest.approx(n / sum(len(t.split()) for t in documents))
    assert russian["low_frequency_types"] == 0
    assert by_language(p, tokenized, losses, ~low)["low_frequency_types"].eq(1).all()
    losses["training"][:] = np.nan  # no target: no bytes, no row
    assert set(by_language(p, tokenized, losses, low)["split"]) == {"held-out"}


def test_languages_are_told_whatever_begins_a_document_and_lies_beside_them(folder, tmp_path):
    natural = tmp_path / "more"
    shutil.copytree(folder / "natural", natural)
    german = natural / "train" / "German.jsonl"
    page = texts(natural / "train" / "Russian.jsonl")[0]
    german.write_text("\ufeff" + german.read_text("utf-8") + json.dumps({"text": page}) + "\n", "utf-8")
    (natural / "train" / "English.jsonl").write_text(json.dumps({"text": "a page in English"}) + "\n")
    values = {"corpus": str(natural), "tokenizer": str(folder / "tokenizer"), "runs_dir": str(tmp_path), "context": 4}
    p = EvaluationParams.check({**values, "bos": "yes"})
    tokenized = tokenize_corpus(p)
    losses = {s: np.ones(len(i)) for s, i in (("training", tokenized.train), ("held-out", tokenized.heldout))}
    table = by_language(p, tokenized, losses, np.zeros(len(tokenized.tokenizer), dtype=bool)).set_index(
        ["split", "language"]
    )
    assert table.loc[("training", "Russian"), "n_bytes"] == sum(
        len(t.encode()) for t in texts(natural / "train" / "Russian.jsonl")[1:]
    )
    assert "English" not in table.reset_index()["language"].unique()
    assert language_files(EvaluationParams.check({**values, "packing": False})) == []


def test_other_corpora_have_no_languages(miniature):
    assert language_files(miniature()) == []


def table(small: float, temperature: float) -> pd.DataFrame:
    """Held-out losses with the lowest average at λ = 0.1; on training text decay adds `small` to the smaller of two languages."""
    rows = []
    for variant in params.MIXTURES:
        for seed in range(3):
            for weight_decay in (0.0, 0.1, 1.0):
                cost = small + (temperature if variant == "temperature" else 0)
                own = 0.001 * seed
                common = {"model": "m", "variant": variant, "weight_decay": weight_decay, "seed": seed}
                heldout = {0.0: 2.0, 0.1: 1.5, 1.0: 1.9}[weight_decay]
                for language, added in (("German", 0.1), ("Italian", cost)):
                    change = (added + own * (language == "Italian")) * (weight_decay > 0)
                    rows.append(
                        {**common, "split": "training", "language": language, "bits_per_byte": 1 + seed + change}
                    )
                    rows.append({**common, "split": "held-out", "language": language, "bits_per_byte": heldout + seed})
    return pd.DataFrame(rows)


def test_the_verdict_says_who_pays_and_what_temperature_sampling_changes():
    frame = table(0.3, -0.2)
    assert languages.chosen_weight_decay(frame) == {"natural": 0.1, "temperature": 0.1}
    changes = languages.language_changes(frame)
    row = changes[(changes["language"] == "German") & (changes["split"] == "training") & changes["compared"]].iloc[0]
    assert row["mean"] == pytest.approx(0.1) and row["weight_decay"] == 0.1 and row["n_seeds"] == 3
    answer, natural, _, each, alike, gained, rule = languages.verdict(frame)
    assert answer.startswith("on training text decay costs small languages more than the large one: +0.201 [")
    assert "on held-out text decay costs small languages not reliably more or less than" in answer
    assert "training text, small languages +0.301, the large one +0.100, difference +0.201 [" in natural
    assert "λ = 0.1 has the lowest held-out loss" in natural and "without decay" in natural
    assert "each at its λ, on training text by -0.200" in each and "(reliable)" in each and "both at λ = 0.1" in alike
    assert (
        "small languages +0.000" in gained
        and "(not reliable)" in gained
        and "over the 10 differences above, 3 seeds" in rule
    )
    same = languages.verdict(table(0.1, 0.0))
    assert (
        "not reliably more or less than the large one: +0.001" in same[0]
        and "by +0.000" in same[3]
        and "(not reliable)" in same[3]
    )


def test_where_no_decay_is_chosen_the_smallest_is_compared_and_one_mixture_has_no_temperature():
    frame = table(0.3, 0.0).query("variant == 'natural'")
    worse = (frame["split"] == "held-out") & (frame["weight_decay"] > 0)
    frame = frame.assign(bits_per_byte=frame["bits_per_byte"] + 2.0 * worse)
    assert languages.chosen_weight_decay(frame) == {"natural": 0.0}
    assert languages.compared_weight_decay(frame) == {"natural": 0.1}
    answer, natural, rule = languages.verdict(frame)
    assert "λ = 0 has the lowest held-out loss" in natural and "λ = 0.1 is compared" in natural
    assert "(natural mixture, λ = 0.1)" in answer and "2 differences" in rule


def test_the_average_that_chooses_weighs_languages_by_their_natural_share():
    frame = table(0.3, 0.0)
    italian = (frame["split"] == "held-out") & (frame["language"] == "Italian") & (frame["weight_decay"] == 1.0)
    frame.loc[italian, "bits_per_byte"] -= 1.0  # good for a tenth of the weight of German alone: not enough
    assert languages.chosen_weight_decay(frame)["natural"] == 0.1
    weighted = languages.weighted_loss(frame)
    first = weighted[(weighted["weight_decay"] == 1.0) & (weighted["seed"] == 0)].iloc[0]
    assert first["bits_per_byte"] == pytest.approx((1.9 + 0.9 / 10) / 1.1)


def test_results_carry_the_table_by_language(folder, tmp_path, miniature):
    p = miniature(corpus=str(folder / "natural"), corpus_path="", tokenizer=str(folder / "tokenizer"), experiment="two")
    evaluate(p)
    results = load_results(Path(p.runs_dir) / "two")
    assert list(results.languages["language"]) == ["German", "Russian"] * 2
    assert (results.languages["bits_per_byte"] > 0).all()
    write_results(results, tmp_path / "two", "command")
    again = load_results(tmp_path / "two")
    pd.testing.assert_frame_equal(again.languages, results.languages)
    (tmp_path / "two" / "languages.csv").write_text("damaged")
    with pytest.raises(files.RunError, match="damaged"):
        load_results(tmp_path / "two")
