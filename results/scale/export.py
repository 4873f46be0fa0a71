"""Write predictions.csv and ratios.png of this folder from the committed ladder: `python results/scale/export.py`."""

import datetime
from pathlib import Path

from fairlm_utils.analysis import charts, ladder, layout, scale, theme
from fairlm_utils.analysis.results import load_results
from fairlm_utils.files import PROJECT, atomic_path, enter_project, write_table
from fairlm_utils.params import ScaleParams

FOLDER = PROJECT / "results" / "scale"


def export() -> None:
    """The predicted ratio of each panel in params/paper, with the date of its making, and the picture of what it rests on."""
    p = ScaleParams()
    enter_project()
    rungs = scale.rungs({Path(f).name: load_results(f) for f in p.ladder})
    found = ladder.predictions(
        scale.rung_slopes(rungs), layout.read_tables(p.layout)["counts"], ladder.panel_files(), p.confidence
    )
    made = datetime.date.today().isoformat()
    write_table(FOLDER / "predictions.csv", found.assign(made=made))
    picture, *_ = theme.png(charts.ratio_by_counts(ladder.ratios(rungs, p.confidence)))
    with atomic_path(FOLDER / "ratios.png") as temporary:
        temporary.write_bytes(picture)


if __name__ == "__main__":
    export()
