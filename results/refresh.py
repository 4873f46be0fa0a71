"""Write the tables and figures of all pages of this folder anew from the committed tables, after a change of how they are shown.

`python results/refresh.py`; no run is needed. Of a page, what is not such a table or figure stays.
"""

import re

from fairlm_utils import files
from fairlm_utils.analysis.results import load_results
from fairlm_utils.experiment import summary


def refresh() -> None:
    """Replace, in each page that `make results` made, the figure, the scale and the sections that `summary` writes."""
    for page in sorted((files.PROJECT / "results").glob("*/README.md")):
        text = page.read_text(encoding="utf-8")
        if "make results PARAMS" not in text:  # written by hand or by a command of its own
            continue
        results = load_results(page.parent)
        for section in summary.sections(results):
            if old := summary.section_of(text, section.splitlines()[0].removeprefix("## ")):
                text = text[: old.start()] + section + text[old.end() :]
        shown = summary.save_picture(results, page.parent)
        text = re.sub(r"^Scale: .*", lambda _, said=results.scale: f"Scale: {said}.", text, flags=re.MULTILINE)
        text = re.sub(r"^!\[.*\]\(.*\.png\)$", lambda _, new=shown: new, text, flags=re.MULTILINE)
        with files.atomic_path(page) as temporary:
            temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    refresh()
