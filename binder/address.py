"""`make address URL=https://github.com/ACCOUNT/fairlm`: set where this repository lies, in the three files that say it.

Until then no file has a link to it, which would be dead.
"""

import re
import sys
from pathlib import Path

BADGE = "[![Binder](https://mybinder.org/badge_logo.svg)]({binder}?urlpath=lab/tree/notebooks/04_figures.ipynb)"


def main(url: str, folder: Path = Path(__file__).parents[1]) -> None:
    """Write the address into README.md (Binder's badge), pyproject.toml and CITATION.cff; a second call replaces it."""
    found = re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+?)(\.git)?/?", url)
    if not found:
        raise SystemExit(f"error: URL={url!r} is no https://github.com/ACCOUNT/REPOSITORY, which Binder's links need")
    address, binder = f"https://github.com/{found[1]}", f"https://mybinder.org/v2/gh/{found[1]}/HEAD"
    for name, old, new in (
        ("README.md", r"(^# .*\n)(?:\n\[!\[Binder\].*\n)?", rf"\1\n{BADGE.format(binder=binder)}\n"),
        ("pyproject.toml", r"(?:\[project\.urls\]\n(?:\w.*\n)*\n)?(?=\[project\.scripts\])",
         f'[project.urls]\nRepository = "{address}"\nIssues = "{address}/issues"\nChangelog = "{address}/blob/HEAD/CHANGELOG.md"\n\n'),
        ("CITATION.cff", r"(^type: software\n)(?:repository-code: .*\n)?", rf"\1repository-code: {address}\n"),
    ):  # fmt: skip
        path = folder / name
        text, n = re.subn(old, new, path.read_text(encoding="utf-8"), count=1, flags=re.MULTILINE)
        if not n:
            raise SystemExit(f"error: {path} has no place for the address; see {Path(__file__).name}")
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "")
