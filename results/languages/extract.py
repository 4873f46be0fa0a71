"""Make the multilingual corpus of params/languages.yaml from Debian's translated manual pages.

apt-get download manpages-de manpages-de-dev ...                # and -es -fr -it -ja -pl -ru -uk, -dev of each; -tr, -zh
python results/languages/extract.py PACKAGE.deb ... build/languages  # needs dpkg-deb

Licences: manpages-de, -es, -fr, -it, -pl, -ru and -uk (manpages-l10n), manpages-ja, manpages-tr and manpages-zh hold the
manual pages of many programs and their translations; each page has the licence of its program or its translators (GPL-2+,
GPL-3+, GFDL, BSD, the verbatim licence of Linux man-pages and others), listed in /usr/share/doc/PACKAGE/copyright. This
repository holds no text of theirs.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from fairlm_utils import files, params
from fairlm_utils.lm.tokenization import train_bpe

#: Bytes of UTF-8 that the largest language's training text has; pages held out; of a page, paragraphs at most and bytes of one
#: at least; types of the tokenizer.
LARGEST_BYTES, N_HELDOUT, MAX_PARAGRAPHS, MIN_BYTES, VOCAB_SIZE = 300_000, 40, 8, 40, 8192


_CHARACTERS = {
    **{
        "-": "-",
        "e": "\\",
        "\\": "\\",
        " ": " ",
        "~": " ",
        "0": " ",
        "'": "'",
        "`": "`",
        "aq": "'",
        "dq": '"',
        "oq": "‘",
    },
    **{
        "cq": "’",
        "lq": "“",
        "rq": "”",
        "Bq": "„",
        "Fo": "«",
        "Fc": "»",
        "em": "—",
        "en": "–",
        "co": "©",
        "ha": "^",
        "ti": "~",
    },
}


_ESCAPE = re.compile(
    r"\\(?:[\"#].*|[fFmMs](?:\[[^]]*\]|\(..|[-+]?\d|.)|[*ngkVY](?:\[[^]]*\]|\(..|.)|[hvwdLlDoZ]'[^']*'"
    r"|\[([^]]*)\]|\((..)|(.|$))"
)


_BREAKS = {"SH", "SS", "PP", "P", "LP", "TP", "TQ", "IP", "HP", "RS", "RE", "sp", "br"}


_DISPLAYS = {"nf": "fi", "EX": "EE", "TS": "TE", "de": ".", "ig": "."}


_UNSPACED = "[\u3000-\u9fff\uff00-\uffef]"


_ENGLISH = {"the", "of", "and", "is", "with", "for"}


def _unescaped(match: re.Match) -> str:
    name = match[1] or match[2] or match[3] or ""
    code = re.fullmatch("u([0-9A-F]{4,6})", name)
    return chr(int(code[1], 16)) if code else _CHARACTERS.get(name, "")


def paragraphs(roff: str) -> list[str]:
    """The prose of a manual page in man(7), one item per paragraph: macros and escapes stripped, lines joined.

    Headings, displays of code and tables are left out, since no translator translates them or they repeat; so are pages in
    mdoc(7), which yield nothing.

    >>> paragraphs(r'''.TH LS 1
    ... .SH NAME
    ... ls \\- list \\fIfiles\\fR
    ... .PP
    ... See
    ... .BR cat (1).''')
    ['ls - list files', 'See cat(1).']
    """
    found: list[list[str]] = [[]]
    until = ""
    for line in [] if re.search(r"^\.\s*Dt\b", roff, re.MULTILINE) else roff.split("\n"):
        macro, _, rest = line[1:].strip().partition(" ") if line[:1] in (".", "'") else ("", "", line)
        text = _ESCAPE.sub(_unescaped, rest).strip()
        if until or macro in _DISPLAYS:
            until = _DISPLAYS.get(macro, "") if not until else "" if macro == until else until
        elif macro in _BREAKS or not line:
            found.append([])
        elif macro in ("", "B", "I", "SM", "SB"):
            found[-1].append(text.replace('"', "") if macro else text)
        elif macro in ("BR", "BI", "IB", "IR", "RB", "RI"):
            found[-1].append("".join(a or b for a, b in re.findall(r'"([^"]*)"?|(\S+)', text)))
    joined = (" ".join(" ".join(lines).split()) for lines in found)
    return [re.sub(f"(?<={_UNSPACED}) (?={_UNSPACED})", "", text) for text in joined if text]


def read_pages(packages: Iterable[str | Path]) -> dict[str, dict[str, list[str]]]:
    """Paragraphs by language of `LANGUAGES` and name of the page, of Debian packages. Raises RunError if one cannot be read."""
    names = {folder: language for language, folder in params.LANGUAGES.items()}
    pages: dict[str, dict[str, list[str]]] = {language: {} for language in params.LANGUAGES}
    for package in sorted(map(str, packages)):
        try:
            tar = subprocess.run(["dpkg-deb", "--fsys-tarfile", package], capture_output=True, check=True).stdout
        except (OSError, subprocess.CalledProcessError) as error:
            raise files.RunError(f"{package}: cannot be read ({error}); name .deb files, and install dpkg") from error
        with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
            for member in archive:
                path = re.fullmatch(r"\./usr/share/man/(\w+)/man\w+/(.+)\.gz", member.name)
                if path and path[1] in names and member.isfile():
                    raw = gzip.decompress(archive.extractfile(member).read())  # type: ignore[union-attr]
                    pages[names[path[1]]][path[2]] = paragraphs(raw.decode("utf-8", "replace"))
    return pages


def _order(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def split_pages(
    pages: Mapping[str, Mapping[str, Sequence[str]]], largest: int = LARGEST_BYTES, n_heldout: int = N_HELDOUT
) -> dict[str, dict[str, list[str]]]:
    """Documents by split and language: held out are the `n_heldout` pages that most languages have, the same in all of them.

    A document is the first paragraphs of a page. No paragraph occurs twice in a language, in either split. Left out are those
    that are not translated (several languages share them, or they have words of English) and credits with an address. The
    k-th language trains on `largest` / k bytes at most, its pages in an order that their names alone determine. Raises
    RunError for less than 9/10 of that.
    """
    languages_of = Counter(name for of in pages.values() for name in of)
    heldout = set(sorted(languages_of, key=lambda name: (-languages_of[name], _order(name)))[:n_heldout])
    shared = Counter(text for of in pages.values() for text in {text for page in of.values() for text in page})
    splits: dict[str, dict[str, list[str]]] = {"train": {}, "test": {}}
    for rank, (language, of) in enumerate(pages.items(), 1):
        seen = {text for text, n in shared.items() if n > 1}
        for split, names in (("test", of.keys() & heldout), ("train", of.keys() - heldout)):
            documents, left = splits[split].setdefault(language, []), largest // rank
            for name in sorted(names, key=_order):
                new = [t for t in dict.fromkeys(of[name]) if t not in seen and len(t.encode()) >= MIN_BYTES]
                new = [t for t in new if len(_ENGLISH & set(t.split())) < 2 and "@" not in t][:MAX_PARAGRAPHS]
                text = "\n".join(new)
                if new and (split == "test" or len(text.encode()) <= left):
                    documents.append(text)
                    seen.update(new)
                    left -= len(text.encode())
        if left > largest // rank / 10:
            raise files.RunError(f"{language}: too few pages, {left:,} bytes are missing; add its packages")
    return splits


def write_mixtures(splits: Mapping[str, Mapping[str, Sequence[str]]], folder: str | Path) -> str:
    """Write each of `MIXTURES` as FOLDER/MIXTURE/SPLIT/LANGUAGE.jsonl, and FOLDER/tokenizer, trained on the natural one.

    A training document of the k-th language has k^s copies, s of `MIXTURES`; fractions by its place. Returns what was written.
    """
    said = []
    for mixture, exponent in params.MIXTURES.items():
        for split, of in splits.items():
            for rank, (language, documents) in enumerate(of.items(), 1):
                path = Path(folder, mixture, split, f"{language}.jsonl")
                copies = rank**exponent if split == "train" else 1.0
                n = np.diff(np.floor(np.arange(len(documents) + 1) * copies))
                texts = [t for t, copy in zip(documents, n.astype(int), strict=True) for _ in range(copy)]
                with files.atomic_path(path) as temporary:
                    lines = (json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in texts)
                    temporary.write_text("".join(lines), encoding="utf-8")
                size = sum(len(t.encode()) for t in texts)
                said.append(f"{path}: {len(documents):,} pages, {len(texts):,} with copies, {size:,} bytes")
    train_bpe([t for of in splits["train"].values() for t in of], VOCAB_SIZE).save_pretrained(Path(folder, "tokenizer"))
    return "\n".join(said)


def main() -> int:
    """Extract the corpus from the packages named, with its mixtures and tokenizer."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("packages", nargs="+", help="packages with translated manual pages, .deb files")
    parser.add_argument("folder", help="folder to write, build/languages for params/languages.yaml")
    options = parser.parse_args()
    files.print_plainly()
    try:
        print(write_mixtures(split_pages(read_pages(options.packages)), options.folder))
    except files.RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
