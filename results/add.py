"""Add finished runs to the committed tables of their experiment and write its page anew, say those of one more seed.

`python results/add.py FOLDER [RUNS]`: FOLDER of results/, RUNS the folder of the runs, by default runs/EXPERIMENT. Runs take the
place of their rows, and rows whose runs are gone stay. Of an experiment whose page is of the best learning rate of each
variant, runs may be at rates that were not tried: the best is chosen anew.
"""

import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd

from fairlm_utils import files
from fairlm_utils.analysis import comparisons
from fairlm_utils.analysis.results import joined, load_results, record_digests, renewed
from fairlm_utils.experiment import summary


def add(folder: Path, runs: Path | None = None) -> None:
    """Join the tables of `folder` with those of the runs."""
    committed = load_results(folder)
    more = load_results(runs or files.PROJECT / "runs" / committed.params["experiment"])
    page, command = folder / "README.md", committed.provenance["command"]
    before = page.read_text(encoding="utf-8")
    if by_rate := "rates" in committed.provenance:
        committed = comparisons.at_every_rate(committed)
        both = {"variants": {**committed.params["variants"], **more.params["variants"]}}  # each has some of the rates
        committed, more = (replace(r, params={**r.params, **both}) for r in (committed, more))
    summary.save(joined(committed, more), folder, command)
    if by_rate:
        _keep_rates(before, page)
    record_digests(folder)


def _keep_rates(before: str, page: Path) -> None:
    """Put the rows of rates whose runs are gone back into the table of a page that was written anew."""
    text = page.read_text(encoding="utf-8")
    old, new = (summary.section_of(t, summary.BY_RATE) for t in (before, text))
    table = renewed(_table(old[0]).assign(kept=""), _table(new[0]), ["variant"]).sort_values("variant", kind="stable")
    section = f"## {summary.BY_RATE}\n\n{summary.markdown(table)}"
    with files.atomic_path(page) as temporary:
        temporary.write_text(text[: new.start()] + section + text[new.end() :], encoding="utf-8")


def _table(section: str) -> pd.DataFrame:
    """The table of a section of a page, as text."""
    head, _, *rows = section.splitlines()[2:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in (head, *rows)]
    return pd.DataFrame(cells[1:], columns=cells[0])


if __name__ == "__main__":
    add(*(Path(a).resolve() for a in sys.argv[1:]))
