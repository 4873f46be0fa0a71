"""Pages of experiments whose settings were each tried at several learning rates: what is kept, said and shown of them."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fairlm_utils.analysis import charts
from fairlm_utils.analysis.results import Results, load_results
from fairlm_utils.experiment import summary
from tests.test_tokenizers import of_tokenizers

ROOT = Path(__file__).parents[1]


def tried() -> Results:
    """Each tokenizer of `of_tokenizers` at two rates, the first better at λ = 0 by 1 nat, in its held-out average alone."""
    whole, parts = of_tokenizers(), {"words": [], "bins": []}
    for name in parts:
        table = getattr(whole, name)
        parts[name] = pd.concat([table.assign(variant=table["variant"] + f", lr {rate}") for rate in (0.1, 0.2)])
    keys = ["model", "variant", "weight_decay", "seed", "split"]
    totals = parts["bins"][keys].drop_duplicates()
    totals = totals.assign(average_loss=3.0 + totals["variant"].str.endswith("0.2") * (totals["weight_decay"] == 0))
    steps = pd.concat([totals.assign(step=step) for step in (1, 2)])
    variants = {v: {"learning_rate": float(v.split()[-1])} for v in totals["variant"].unique()}
    own = {"totals": totals, "curves": steps, "reliability": steps, **{k: pd.concat([v]) for k, v in parts.items()}}
    return dataclasses.replace(whole, **own, params={"variants": variants})


def test_the_rate_that_is_best_without_decay_is_what_is_said_and_every_rate_is_shown():
    raw = tried()
    kept = summary._kept(raw)
    assert set(kept.words["variant"]) == {"own", "theirs"} and summary._kept(kept) is kept
    said = summary._answer(kept)
    assert (
        said[0].startswith("rare words, of a count of 1–2, pay")
        and "learning rate 0.1, the smallest of 2 tried, 3.000 ±" in said[-1]
    )
    shown = summary._by_rate(raw).set_index("variant")
    assert shown["kept"].to_dict() == {
        "own, lr 0.1": "yes",
        "own, lr 0.2": "",
        "theirs, lr 0.1": "yes",
        "theirs, lr 0.2": "",
    }
    assert shown.loc["own, lr 0.2", "held-out average at λ = 0"] == "4.000 ± 0.000"
    assert shown.loc["own, lr 0.2", "words, count 1–2"].startswith("-0.990 [") and (shown["λ"] == 0.5).all()
    thin = summary._thinned(kept)
    assert (
        (thin.curves["step"] == 2).all()
        and set(thin.reliability["seed"]) == {0}
        and len(thin.totals) == len(kept.totals)
    )


def test_other_experiments_are_shown_whole():
    raw = tried()
    wordless = dataclasses.replace(raw, words=None)
    assert summary._kept(wordless) is wordless and summary._answer(wordless) == []
    named = raw.totals.replace({"variant": {"own, lr 0.1": "no decay", "own, lr 0.2": "plain decay"}})
    remedies = dataclasses.replace(raw, totals=named)
    assert summary._kept(remedies) is remedies


@pytest.mark.parametrize("experiment", ["tokenizers", "languages"])
def test_the_committed_page_says_what_its_tables_say(experiment):
    folder = ROOT / "results" / experiment
    results, page = load_results(folder), (folder / "README.md").read_text(encoding="utf-8")
    said = summary._answer(results)
    assert len(said) > 5 and [line[2:] for line in page.splitlines() if line.startswith("- ")] == said
    assert results.scale in page and (folder / "answer.png").read_bytes()[:4] == b"\x89PNG"
    title = summary._picture(results).to_dict()["title"]
    assert (title if isinstance(title, list) else title["text"]) == charts.headline(said[0])
    assert np.isfinite(pd.DataFrame(results.provenance["rates"])["loss"]).all()


@pytest.mark.parametrize("page", sorted((ROOT / "results").glob("*/README.md")), ids=lambda page: page.parent.name)
def test_a_committed_page_is_what_the_code_writes_of_the_committed_tables(page):
    text = page.read_text(encoding="utf-8")
    if "make results PARAMS" not in text:
        pytest.skip("a page written by hand or by a command of its own")
    results = load_results(page.parent)
    for section in summary.sections(results):
        assert section in text, "python results/refresh.py writes it anew"
    assert f"![{summary._picture(results).description}](" in text and f"\nScale: {results.scale}.\n" in text


def test_variants_without_a_run_at_0_have_the_tables_that_need_none():
    regime = load_results(ROOT / "results" / "effects")
    of_tables = {name: getattr(regime, name) for name in ("totals", "bins", "classes")}
    decayed = dataclasses.replace(regime, **{name: t[t["weight_decay"] > 0] for name, t in of_tables.items()})
    assert [section.splitlines()[0] for section in summary.sections(decayed)] == ["## Table 1", "## Scale"]
