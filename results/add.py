"""Add finished runs to the committed tables of their experiment and write its page anew, say those of one more seed.

`python results/add.py FOLDER [RUNS]`: FOLDER of results/, RUNS the folder of the runs, by default runs/EXPERIMENT. Runs take the
place of their rows, and rows whose runs are gone stay. Of an experiment whose page is of the best learning rate of each
variant, runs may be at rates that were not tried: the best is chosen anew.
"""

import re
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
    if "rates" in committed.provenance:
        before, every = _by_rate(page), comparisons.at_every_rate(committed)
        both = {"variants": {**every.params["variants"], **more.params["variants"]}}  # each has some of the rates
        every, more = (replace(r, params={**r.params, **both}) for r in (every, more))
        summary.save(joined(every, more), folder, command)
        _keep(before, page)
    else:
        summary.save(joined(committed, more), folder, command)
    record_digests(folder)


def _section(page: str) -> re.Match[str]:
    found = re.search(rf"(?<=## {summary.BY_RATE}\n\n).*?(?=\n\n## )", page, flags=re.DOTALL)
    assert found, f"no section {summary.BY_RATE!r}"
    return found


def _by_rate(page: Path) -> pd.DataFrame:
    """The table of a page that says what was found at each rate, as text."""
    head, _, *rows = _section(page.read_text(encoding="utf-8"))[0].splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in (head, *rows)]
    return pd.DataFrame(cells[1:], columns=cells[0])


def _keep(before: pd.DataFrame, page: Path) -> None:
    """Put the rows of rates whose runs are gone back into the table of a page that was written anew."""
    table = renewed(before.assign(kept=""), _by_rate(page), ["variant"]).sort_values("variant", kind="stable")
    text = page.read_text(encoding="utf-8")
    found = _section(text)
    with files.atomic_path(page) as temporary:
        temporary.write_text(text[: found.start()] + summary.markdown(table) + text[found.end() :], encoding="utf-8")


if __name__ == "__main__":
    add(*(Path(a).resolve() for a in sys.argv[1:]))
