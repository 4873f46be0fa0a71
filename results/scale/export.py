"""Write predictions.csv of this folder from the committed ladder: `python results/scale/export.py`."""

import datetime
from pathlib import Path

from fairlm_utils import ladder, layout, scale
from fairlm_utils.params import ScaleParams
from fairlm_utils.runs import PROJECT, enter_project, load_results, write_table


def export() -> None:
    """The predicted ratio of each panel in params/paper, with the date of its making."""
    p = ScaleParams()
    enter_project()
    slopes = scale.rung_slopes(scale.rungs({Path(f).name: load_results(f) for f in p.ladder}))
    found = ladder.predictions(slopes, layout.read_tables(p.layout)["counts"], ladder.panel_files(), p.confidence)
    made = datetime.date.today().isoformat()
    write_table(PROJECT / "results" / "scale" / "predictions.csv", found.assign(made=made))


if __name__ == "__main__":
    export()
