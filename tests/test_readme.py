"""README says what the committed results say."""

import re
from pathlib import Path

import pytest

from fairlm_utils import claims, metrics, runs
from fairlm_utils.reproduce import markdown

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


@pytest.mark.parametrize("experiment", ["quick", "imdb-small"])
def test_every_claim_stands_in_readme_with_its_number_and_verdict(experiment):
    rows = [cells(line) for line in README.splitlines() if line.startswith("|")]
    for row in claims.claims(runs.load_results(ROOT / "results" / experiment)).itertuples():
        assert any(row.claim in r and row.ours in r and row.verdict in r for r in rows), (
            experiment,
            row.claim,
            row.ours,
            row.verdict,
        )


def test_table_1_of_imdb_is_that_of_the_results():
    totals = runs.load_results(ROOT / "results" / "imdb-small").totals
    training = metrics.table_1(totals[totals["split"] == "training"], ["average_loss", "token_balanced_loss"])
    for row in training.itertuples():
        assert f"| {row.weight_decay:g}" in README and row.average_loss in README and row.token_balanced_loss in README


@pytest.mark.parametrize("experiment", ["quick", "imdb-small"])
def test_the_scale_is_stated(experiment):
    assert runs.load_results(ROOT / "results" / experiment).scale in README.replace("\n", " ")


def test_links_and_pictures_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_markdown_tables_keep_their_numbers():
    import pandas as pd

    assert "0.0100 ± 0.0020" in markdown(pd.DataFrame({"a": ["0.0100 ± 0.0020"]}))
