"""README says what the committed results say."""

import re
import shlex
from pathlib import Path

import papermill
import pytest
import yaml

from fairlm_utils import audit, claims, comparisons, cost, evaluation, metrics, panel, params, runs, sweep
from fairlm_utils.reproduce import markdown
from tests.test_readme_commands import commands

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


def one_pass_rows(folder: str | Path) -> list[str]:
    """Rows of README's table of IMDB seen once: the losses at λ = 0, and what each λ changes of them, on both texts."""
    results = runs.load_results(folder)
    at_zero = []
    for split in metrics.SPLITS:
        totals, classes = (
            t[(t["split"] == split) & (t["weight_decay"] == 0)] for t in (results.totals, results.classes)
        )
        at_zero += [totals["average_loss"].mean(), totals["token_balanced_loss"].mean()]
        at_zero += [classes.loc[classes["frequency_class"] == c, "loss"].mean() for c in ("low", "high")]
    rows = {0.0: [f"{loss:.2f}" for loss in at_zero]}
    for weight_decay in sorted(set(results.totals["weight_decay"]) - {0.0}):
        table = comparisons.at_weight_decay(results, weight_decay).set_index("split").loc[:, "average":]
        rows[weight_decay] = [change for split in metrics.SPLITS for change in table.loc[split]]
    return [f"| {weight_decay:g} | {' | '.join(row)} |" for weight_decay, row in rows.items()]


def test_the_table_of_imdb_seen_once_is_that_of_the_results():
    for row in one_pass_rows(ROOT / "results" / "imdb-onepass"):
        assert row in README.splitlines(), row


def test_links_and_pictures_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def shell_lines() -> list[list[str]]:
    """Every command of README's shell blocks, as words."""
    return [shlex.split(command) for command in commands(README)]


def overrides(words: list[str]) -> list[tuple[str, str]]:
    return [(words[i + 1], words[i + 2]) for i, word in enumerate(words) if word == "-p"]


def test_commands_of_the_package_parse_and_name_what_exists(monkeypatch, capsys):
    """Each `python -m fairlm_utils.X` is accepted by X's own command line; files and parameters are read."""
    mains = {"sweep": sweep, "evaluation": evaluation, "cost": cost, "audit": audit, "runs": runs, "panel": panel}
    seen = set()
    for words in shell_lines():
        module = next((w for w in words if w.startswith("fairlm_utils.")), None)
        if module is None:
            continue
        name = module.removeprefix("fairlm_utils.")
        seen.add(name)
        arguments = words[words.index(module) + 1 :]
        files = [w for w in arguments if w.endswith(".yaml") and "*" not in w]
        assert all((ROOT / f).exists() for f in files), words
        for file in files:
            params.expand(params.read(ROOT / file, overrides(arguments)))
        options = {w for w in arguments if w.startswith("--")}
        with pytest.raises(SystemExit):
            mains[name].main(["--help"])
        text = capsys.readouterr().out
        assert all(o in text for o in options), (words, options)
    assert {"sweep", "evaluation", "cost", "audit", "runs"} <= seen


def test_papermill_lines_name_notebooks_and_parameters(tmp_path):
    lines = [words for words in shell_lines() if words[0] == "papermill"]
    assert len(lines) >= 2
    for words in lines:
        notebook = next(w for w in words if w.endswith(".ipynb"))
        known = papermill.inspect_notebook(str(ROOT / notebook))
        assert {name for name, _ in overrides(words)} <= set(known)
        if "-f" in words:
            given = yaml.safe_load((ROOT / words[words.index("-f") + 1]).read_text(encoding="utf-8"))
            chosen = dict(overrides(words))
            single = {k: yaml.safe_load(chosen[k]) if k in chosen else v for k, v in given.items()}
            assert params.NOTEBOOKS[Path(notebook).stem].from_namespace(single)


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`?make ([a-z]+)", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_example_on_a_model_that_is_not_ours_runs_as_written(tmp_path, monkeypatch, capsys):
    from tests.test_remedies import Ids

    block = next(b for b in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "TokenFrequencyCallback" in b)
    assert len([line for line in block.splitlines() if line.strip() and "import" not in line]) <= 10
    monkeypatch.chdir(tmp_path)
    scope = {"data": Ids()}
    exec(block, scope)
    assert scope["trainer"].state.global_step == 20
    assert {"token_balanced_loss", "n_v_1-2_loss"} <= set(scope["trainer"].state.log_history[0])
    assert "token_balanced_loss" in capsys.readouterr().out


def test_markdown_tables_keep_their_numbers():
    import pandas as pd

    assert "0.0100 ± 0.0020" in markdown(pd.DataFrame({"a": ["0.0100 ± 0.0020"]}))
