"""Add finished runs to the committed tables of their experiment and write its page anew, say those of one more seed.

`python results/add.py FOLDER [RUNS]`: FOLDER of results/, RUNS the folder of the runs, by default runs/EXPERIMENT. Runs take the
place of their rows, and rows whose runs are gone stay.
"""

import sys
from pathlib import Path

from fairlm_utils import files
from fairlm_utils.analysis.results import joined, load_results, record_digests
from fairlm_utils.experiment import summary


def add(folder: Path, runs: Path | None = None) -> None:
    """Join the tables of `folder` with those of the runs."""
    committed = load_results(folder)
    more = load_results(runs or files.PROJECT / "runs" / committed.params["experiment"])
    summary.save(joined(committed, more), folder, committed.provenance["command"])
    record_digests(folder)


if __name__ == "__main__":
    add(*(Path(a).resolve() for a in sys.argv[1:]))
