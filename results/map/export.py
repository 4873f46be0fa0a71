"""Write the tables and the picture of this folder from finished runs of params/map.yaml and params/widths.yaml.

`python results/map/export.py [RUNS]`; what makes the runs stands in README.md.
"""

import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd

from fairlm_utils import files, identity
from fairlm_utils.analysis import charts, forgone, theme
from fairlm_utils.analysis.results import TABLES, Results, load_results, record_digests, renewed, write_results

FOLDER = files.PROJECT / "results" / "map"
#: Experiments on the map, and the cell that all runs of an experiment without cells of its own are in.
EXPERIMENTS = {"map": "", "widths": "100k targets, 10 epochs, "}
#: The setting of the lowest held-out loss of those run at every λ, of which all tables are kept.
BEST = "400k targets, 10 epochs, lr 0.004"


def table(name: str, results: Results) -> pd.DataFrame:
    """The losses of every run of an experiment, as rows of map.csv: of a variant by its cell and rate."""
    return forgone.table(results).assign(variant=lambda t: EXPERIMENTS[name] + t["variant"])


def export(runs_dir: Path) -> None:
    """map.csv, one row per run and text; gains.csv, one per cell and bin; tables of the best setting; the picture.

    Runs take the place of their rows, and rows whose runs are gone stay: the map grows by a few runs at a time.
    """
    files.enter_project()
    finished = [name for name in EXPERIMENTS if identity.finished_runs(runs_dir / name)]
    results = {name: load_results(runs_dir / name) for name in finished}
    if "map" in results and BEST in results["map"].totals["variant"].unique():
        _write_best(results["map"])
    tables = [table(name, r) for name, r in results.items()]
    committed = pd.read_csv(FOLDER / "map.csv")
    files.write_table(
        FOLDER / "map.csv", renewed(committed, pd.concat(tables) if tables else committed[:0], forgone.KEY)
    )
    losses = forgone.read(FOLDER / "map.csv")
    unigrams = pd.read_csv(FOLDER / "gains.csv")[forgone.UNIGRAMS]
    if "map" in results:
        unigrams = renewed(unigrams, forgone.bin_unigrams(results["map"]), ["cell", "bin"])
    files.write_table(FOLDER / "gains.csv", forgone.gains(losses, unigrams))
    record_digests(FOLDER)
    picture, *_ = theme.png(charts.regime_map(*forgone.rare_on_map(forgone.by_seed(losses))))
    with files.atomic_path(FOLDER / "map.png") as temporary:
        temporary.write_bytes(picture)


def _write_best(results: Results) -> None:
    """The tables of the runs of BEST alone."""
    kept = {t: getattr(results, t).query("variant == @BEST").drop(columns="variant") for t in TABLES}
    known = {**results.params, **results.params["variants"][BEST]}
    known.pop("variants")
    write_results(replace(results, **kept, tokens=None, params=known), FOLDER, "python results/map/export.py")


if __name__ == "__main__":
    export(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else files.PROJECT / "runs")
