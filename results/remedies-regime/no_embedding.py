"""Write no_embedding.csv from finished runs of params/no-embedding.yaml: what became elsewhere of a finding of this experiment.

`python results/remedies-regime/no_embedding.py [RUNS]`
"""

import sys
from pathlib import Path

from fairlm_utils import files
from fairlm_utils.analysis import forgone, tradeoffs
from fairlm_utils.analysis.results import load_results, record_digests

FOLDER = files.PROJECT / "results" / "remedies-regime"


def export(runs_dir: Path) -> None:
    """One row per run and text, `tradeoffs.ELSEWHERE`, and the table's digest in experiment.json."""
    results = load_results(runs_dir / "no-embedding")
    rates = {name: own["learning_rate"] for name, own in results.params["variants"].items()}
    table = forgone.table(results)
    named = table["variant"].str.extract(r"^(?P<cell>.*), (?P<variant>[^,]+)$")
    table = table.assign(learning_rate=table["variant"].map(rates), cell=named["cell"], variant=named["variant"])
    files.write_table(FOLDER / "no_embedding.csv", table[tradeoffs.ELSEWHERE])
    record_digests(FOLDER)


if __name__ == "__main__":
    export(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else files.PROJECT / "runs")
