"""Write the tables and the picture of this folder from finished runs of params/map.yaml and params/widths.yaml.

`python results/map/export.py [RUNS]`; what makes the runs stands in README.md.
"""

import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd

from fairlm_utils import files
from fairlm_utils.analysis import charts, forgone, theme
from fairlm_utils.analysis.results import TABLES, load_results, write_results

FOLDER = files.PROJECT / "results" / "map"
#: Experiments on the map, and the cell that all runs of an experiment without cells of its own are in.
EXPERIMENTS = {"map": "", "widths": "100k targets, 10 epochs, "}
#: The setting of the lowest held-out loss of those run at every λ, of which all tables are kept.
BEST = "400k targets, 10 epochs, lr 0.004"
#: A cell whose learning rate is not decided yet, for a rate that may be its best was run without decay alone: not on the map.
BEGUN = "1.5M targets, 10 epochs, "


def export(runs_dir: Path) -> None:
    """map.csv and begun.csv, one row per run and text; gains.csv, one per cell and bin; tables of the best setting; the picture."""
    files.enter_project()
    results = {name: load_results(runs_dir / name) for name in EXPERIMENTS}
    tables = [
        forgone.table(r).assign(variant=lambda t, cell=EXPERIMENTS[n]: cell + t["variant"]) for n, r in results.items()
    ]
    own = results["map"].params["variants"][BEST]
    kept = {t: getattr(results["map"], t).query("variant == @BEST").drop(columns="variant") for t in TABLES}
    known = {**results["map"].params, **own}
    known.pop("variants")
    best = replace(results["map"], **kept, tokens=None, params=known)
    write_results(best, FOLDER, "python results/map/export.py")
    losses = pd.concat(tables, ignore_index=True)
    is_begun = losses["variant"].str.startswith(BEGUN)
    files.write_table(FOLDER / "begun.csv", losses[is_begun])
    files.write_table(FOLDER / "map.csv", losses[~is_begun])
    files.write_table(FOLDER / "gains.csv", forgone.gains(results["map"], forgone.read(FOLDER / "map.csv")))
    experiment = files.read_json(FOLDER / "experiment.json")
    files.write_json(FOLDER / "experiment.json", {**experiment, "sha256": files.digests(FOLDER, ["*.csv"])})
    seeds = forgone.by_seed(forgone.read(FOLDER / "map.csv"))
    picture, *_ = theme.png(charts.regime_map(*forgone.rare_on_map(seeds)))
    with files.atomic_path(FOLDER / "map.png") as temporary:
        temporary.write_bytes(picture)


if __name__ == "__main__":
    export(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else files.PROJECT / "runs")
