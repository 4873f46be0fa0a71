"""`make licences`: the licence of every locked dependency, as its own metadata state it, in LICENCES.md."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
_ALLOWED = (
    r"MIT|BSD|APACHE|ISC|PSF|PYTHON SOFTWARE FOUNDATION|MPL|MOZILLA|LGPL|ZLIB|UNLICENSE|0BSD|CC0|HPND|PUBLIC DOMAIN"
)
_FORBIDDEN = r"(?<!L)\bA?GPL|AFFERO|SSPL|PROPRIETARY|COMMERCIAL"
_SHORT = 60


def locked() -> dict[str, str]:
    """Version of each locked package, PyTorch included, by its name as it stands in the list without hashes."""
    lines = (ROOT / "binder" / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines)


def licence(name: str) -> str:
    """The licence of an installed package: SPDX expression, else its short licence field, else its classifiers."""
    try:
        metadata = importlib.metadata.metadata(name)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
    field = (metadata.get("License-Expression") or metadata.get("License") or "").strip()
    field = "" if field.upper() == "UNKNOWN" else field
    classifiers = [c.split(" :: ")[-1] for c in metadata.get_all("Classifier") or [] if c.startswith("License ::")]
    classifiers = [c for c in classifiers if c != "OSI Approved"]
    if field and len(field) <= _SHORT and "\n" not in field:
        return field
    return " AND ".join(classifiers) or (field.splitlines()[0][:_SHORT] if field else _of_file(name))


def _of_file(name: str) -> str:
    """What the licence file that a package brings begins with, for packages whose metadata name none."""
    for path in importlib.metadata.files(name) or []:
        if re.match(r"(LICEN[CS]E|COPYING)", path.name, re.IGNORECASE) and path.locate().is_file():
            text = path.locate().read_text(encoding="utf-8", errors="replace")
            for known in (
                "MIT License",
                "Apache License",
                "BSD 3-Clause License",
                "ISC License",
                "Mozilla Public License",
            ):
                if known.lower() in text.lower():
                    return f"{known} (its file {path.name})"
    return "unknown"


def allowed(licence: str) -> bool:
    """Whether a licence is known and asks nothing of a user of this project's code and results."""
    text = licence.upper()
    return bool(re.search(_ALLOWED, text)) and not re.search(_FORBIDDEN, text.replace("LGPL", "").replace("LESSER", ""))


def read(path: Path) -> dict[str, str]:
    """Licence by name from the table of LICENCES.md."""
    rows = [
        line.strip("|").split("|") for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("| ")
    ]
    return {row[0].strip(): row[2].strip() for row in rows[2:]}


def main() -> None:
    """Write LICENCES.md."""
    direct = {
        re.split(r"[<>=!~\[;\s]", line)[0].lower() for line in (ROOT / "requirements.txt").read_text().splitlines()
    }
    rows = [f"| {n} | {'direct' if n.lower() in direct else ''} | {licence(n)} |" for n in locked()]
    head = "# Licences of the locked dependencies\n\nAs their own metadata state them; made by `make licences`.\n"
    table = ["| package | | licence |", "| --- | --- | --- |", *rows]
    (ROOT / "LICENCES.md").write_text(head + "\n" + "\n".join(table) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
