"""Languages of unequal shares: a corpus of Debian's translated manual pages, and loss by language in bits per byte.

apt-get download manpages-de manpages-de-dev ...                # and -es -fr -it -ja -pl -ru -uk, -dev of each; -tr, -zh
python -m fairlm_utils.languages PACKAGE.deb ... build/languages  # what params/languages.yaml trains on; needs dpkg-deb

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
import pandas as pd

from fairlm_utils import comparisons, metrics, runs
from fairlm_utils.corpora import load_corpus
from fairlm_utils.metrics import SPLITS
from fairlm_utils.params import CorpusParams, TokenizationParams
from fairlm_utils.tokenization import TokenizedCorpus, as_text, train_bpe
from fairlm_utils.words import word_losses

#: Folder of each language below /usr/share/man. The first has the largest share of the training bytes, the k-th 1/k of that;
#: scripts and ways of inflection alternate, so that a small share does not stand for one of them.
LANGUAGES = {
    **{"German": "de", "Russian": "ru", "French": "fr", "Japanese": "ja", "Polish": "pl"},
    **{"Spanish": "es", "Ukrainian": "uk", "Turkish": "tr", "Chinese": "zh_CN", "Italian": "it"},
}
#: Written without spaces between words: tokens are counted by character alone.
UNSPACED = ("Japanese", "Chinese")
#: Bytes of UTF-8 that the largest language's training text has; pages held out; of a page, paragraphs at most and bytes of one
#: at least; types of the tokenizer.
LARGEST_BYTES, N_HELDOUT, MAX_PARAGRAPHS, MIN_BYTES, VOCAB_SIZE = 300_000, 40, 8, 40, 8192
#: s of each mixture, in which a language's share is its bytes^(1 − s): 0 is natural, ½ samples at temperature 2.
MIXTURES = {"natural": 0.0, "temperature": 0.5}
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
    names = {folder: language for language, folder in LANGUAGES.items()}
    pages: dict[str, dict[str, list[str]]] = {language: {} for language in LANGUAGES}
    for package in sorted(map(str, packages)):
        try:
            tar = subprocess.run(["dpkg-deb", "--fsys-tarfile", package], capture_output=True, check=True).stdout
        except (OSError, subprocess.CalledProcessError) as error:
            raise runs.RunError(f"{package}: cannot be read ({error}); name .deb files, and install dpkg") from error
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
            raise runs.RunError(f"{language}: too few pages, {left:,} bytes are missing; add its packages")
    return splits


def write_mixtures(splits: Mapping[str, Mapping[str, Sequence[str]]], folder: str | Path) -> str:
    """Write each of `MIXTURES` as FOLDER/MIXTURE/SPLIT/LANGUAGE.jsonl, and FOLDER/tokenizer, trained on the natural one.

    A training document of the k-th language has k^s copies, s of `MIXTURES`; fractions by its place. Returns what was written.
    """
    said = []
    for mixture, exponent in MIXTURES.items():
        for split, of in splits.items():
            for rank, (language, documents) in enumerate(of.items(), 1):
                path = Path(folder, mixture, split, f"{language}.jsonl")
                copies = rank**exponent if split == "train" else 1.0
                n = np.diff(np.floor(np.arange(len(documents) + 1) * copies))
                texts = [t for t, copy in zip(documents, n.astype(int), strict=True) for _ in range(copy)]
                with runs.atomic_path(path) as temporary:
                    lines = (json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in texts)
                    temporary.write_text("".join(lines), encoding="utf-8")
                size = sum(len(t.encode()) for t in texts)
                said.append(f"{path}: {len(documents):,} pages, {len(texts):,} with copies, {size:,} bytes")
    train_bpe([t for of in splits["train"].values() for t in of], VOCAB_SIZE).save_pretrained(Path(folder, "tokenizer"))
    return "\n".join(said)


def language_files(p: CorpusParams) -> list[Path]:
    """The files named after `LANGUAGES` in the folders of splits of the corpus of `p`; none if it is another corpus."""
    return [f for name in LANGUAGES for f in Path(p.corpus_path or p.corpus).glob(f"*/{name}.jsonl")]


def by_language(
    p: TokenizationParams, corpus: TokenizedCorpus, losses: Mapping[str, np.ndarray], low: np.ndarray
) -> pd.DataFrame:
    """A row per split and language: its tokens, its types and its loss in bits per byte of UTF-8.

    `losses` are those of each split's flat ids (nats, NaN where an id is no target), `low` [vocabulary] says which types are
    low-frequency in the training blocks. Columns: split, language, share (of the split's bytes, copies counted), n_bytes
    (of the targets that spell text), bits_per_byte, tokens_per_word (empty without spaces), tokens_per_character (white
    space apart), n_types (that occur), low_frequency_types (share of those).
    """
    language_of = {
        json.loads(line)["text"]: f.stem for f in language_files(p) for line in f.read_text("utf-8").split("\n") if line
    }
    documents, tokenizer, rows = load_corpus(p), as_text(corpus.tokenizer), []
    of_split = zip(
        SPLITS,
        (documents.train, documents.heldout),
        (corpus.train, corpus.heldout),
        (corpus.train_starts, corpus.heldout_starts),
        strict=True,
    )
    for split, texts, ids, starts in of_split:
        own, ends = np.array([language_of[t] for t in texts]), np.append(starts[1:], len(ids))
        for language in (name for name in LANGUAGES if name in own):
            chosen = np.flatnonzero(own == language)
            mine = [texts[int(i)] for i in chosen]
            _, sums = word_losses(tokenizer, mine, ids, starts[chosen], losses[split])
            if not sums["text_bytes"]:  # beyond the blocks that were evaluated
                continue
            tokens = np.concatenate([ids[starts[i] : ends[i] - 1] for i in chosen])  # without the end-of-text token
            types, words = np.unique(tokens), sum(len(t.split()) for t in mine)
            row = {
                "share": sum(len(t.encode()) for t in mine) / sum(len(t.encode()) for t in texts),
                "n_bytes": sums["text_bytes"],
                "bits_per_byte": sums["text_nats"] / np.log(2) / sums["text_bytes"],
                "tokens_per_word": np.nan if language in UNSPACED else len(tokens) / words,
                "tokens_per_character": len(tokens) / sum(len("".join(t.split())) for t in mine),
                "n_types": len(types),
                "low_frequency_types": low[types].mean(),
            }
            rows.append({"split": split, "language": language, **row})
    return pd.DataFrame(rows)


def weighted_loss(table: pd.DataFrame) -> pd.DataFrame:
    """Held-out bits per byte of every run, its languages weighted by their natural shares 1/k: what chooses λ."""
    of = table[table["split"] == "held-out"]
    weights = of["language"].map({name: 1 / k for k, name in enumerate(LANGUAGES, 1)})
    keys = [k for k in metrics.KEYS if k in of and k not in ("split", "language")]
    sums = (
        of.assign(loss=of["bits_per_byte"] * weights, weight=weights)
        .groupby(keys, sort=False)[["loss", "weight"]]
        .sum()
    )
    return (sums["loss"] / sums["weight"]).rename("bits_per_byte").reset_index()


def chosen_weight_decay(table: pd.DataFrame) -> dict[str, float]:
    """The λ with the lowest mean over seeds of `weighted_loss`, by mixture (`variant`)."""
    means = weighted_loss(table).groupby(["variant", "weight_decay"], sort=False)["bits_per_byte"].mean()
    return {variant: float(weight_decay) for variant, weight_decay in means.groupby("variant", sort=False).idxmin()}


def compared_weight_decay(table: pd.DataFrame) -> dict[str, float]:
    """The λ of `chosen_weight_decay`, or the smallest above 0 where that is none."""
    smallest = float(table.loc[table["weight_decay"] > 0, "weight_decay"].min())
    return {variant: λ or smallest for variant, λ in chosen_weight_decay(table).items()}


def language_changes(table: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """Change of bits per byte from λ = 0, paired by seed, of every mixture, λ, split and language: see `comparisons.paired`.

    `compared` marks the rows at the mixture's λ of `compared_weight_decay`.
    """
    changes, used = comparisons.paired(table, "bits_per_byte", confidence), compared_weight_decay(table)
    return changes.assign(compared=changes["weight_decay"] == changes["variant"].map(used))


def by_side(table: pd.DataFrame, value: str) -> pd.DataFrame:
    """Means of `value` by mixture, split and seed: columns small, the half of the languages with the smallest shares, and large.

    The large one is the first.
    """
    order = [name for name in LANGUAGES if name in set(table["language"])]
    wide = table.pivot(index=["variant", "split", "seed"], columns="language", values=value)
    small = wide[order[-(len(order) // 2) :]].mean(axis=1)
    return pd.DataFrame({"small": small, "large": wide[order[0]]}).reset_index()


def small_minus_large(table: pd.DataFrame, chosen: Mapping[str, float]) -> pd.DataFrame:
    """What `chosen` λ does to small languages over the large one: `by_side` of changes from λ = 0, and difference."""
    changed = metrics.changes(table, "bits_per_byte")
    sides = by_side(changed[changed["weight_decay"] == changed["variant"].map(chosen)], "difference")
    return sides.assign(difference=sides["small"] - sides["large"])


def verdict(table: pd.DataFrame, confidence: float = 0.95) -> list[str]:
    """Sentences: does decay cost small languages more than the large one, and does temperature sampling change that.

    The answer first. Mixtures are compared each at its λ of `compared_weight_decay`, and both at that of the first. A
    difference counts if its p-value, Holm-corrected over all that are compared, is below 1 − `confidence`.
    """
    best, used = chosen_weight_decay(table), compared_weight_decay(table)
    both, alike = [name for name in MIXTURES if name in used], dict.fromkeys(used, next(iter(used.values())))
    settings = {"each at its λ": used, f"both at λ = {alike[both[0]]:g}": alike} if len(both) > 1 else {}
    changes = small_minus_large(table, used)
    compared = [changes]
    for name, at in settings.items():
        wide = small_minus_large(table, at).pivot(index=["split", "seed"], columns="variant", values="difference")
        compared.append((wide[both[1]] - wide[both[0]]).rename("difference").reset_index().assign(variant=name))
    gained = [name for name in ("small", "large") if settings]
    for name in gained:
        held = by_side(table[table["weight_decay"] == table["variant"].map(best)], "bits_per_byte")
        wide = held[held["split"] == SPLITS[1]].pivot(index="seed", columns="variant", values=name)
        compared.append(
            (wide[both[1]] - wide[both[0]]).rename("difference").reset_index().assign(variant=name, split=SPLITS[1])
        )
    means = comparisons.mean_interval(pd.concat(compared), "difference", confidence)
    sure = comparisons.holm(means["p_value"]) < 1 - confidence
    word = np.select([sure & (means["mean"] > 0), sure], ["more than", "less than"], "not reliably more or less than")
    by = [
        f"{m:+.3f} [{low:+.3f}, {high:+.3f}]"
        for m, low, high in zip(means["mean"], means["low"], means["high"], strict=True)
    ]
    said = means.assign(word=word, by=by).set_index(["variant", "split"])[["word", "by"]].to_dict("index")
    sides = changes.groupby(["variant", "split"])[["small", "large"]].mean()
    weighted = weighted_loss(table).groupby(["variant", "weight_decay"])["bits_per_byte"].mean()
    head = [
        f"on {s} text decay costs small languages {said[both[0], s]['word']} the large one: {said[both[0], s]['by']} bits a byte"
        for s in SPLITS
    ]
    lines = [f"{'; '.join(head)} ({both[0]} mixture, λ = {used[both[0]]:g})"]
    for v in both:
        chosen = f"λ = {best[v]:g} has the lowest held-out loss, {weighted[v, best[v]]:.3f} bits a byte"
        chosen += f", {weighted[v, 0.0]:.3f} without decay" if best[v] else f"; λ = {used[v]:g} is compared"
        parts = [
            f"{s} text, small languages {sides.loc[(v, s), 'small']:+.3f}, the large one {sides.loc[(v, s), 'large']:+.3f}, "
            f"difference {said[v, s]['by']}"
            for s in SPLITS
        ]
        lines.append(f"{v}: {chosen}; {'; '.join(parts)}")
    does = {"more than": "raises it reliably", "less than": "lowers it reliably"}
    for name in settings:
        parts = [f"{s} text {does.get(said[name, s]['word'], 'not reliably')}: {said[name, s]['by']}" for s in SPLITS]
        lines.append(f"what temperature sampling changes of the difference, {name}: {'; '.join(parts)}")
    if gained:
        parts = [
            f"{which} {does.get(said[name, SPLITS[1]]['word'], 'not reliably')}: {said[name, SPLITS[1]]['by']}"
            for name, which in zip(gained, ("small languages", "the large one"), strict=True)
        ]
        lines.append(
            f"what temperature sampling changes of the held-out loss, each at the λ chosen: {'; '.join(parts)}"
        )
    n = int(means["n_seeds"].min())
    lines.append(
        f"reliable is a Holm-corrected p below {1 - confidence:.2g} over the {len(means)} differences above, {n} seeds each"
    )
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Extract the multilingual corpus from Debian packages, with its mixtures and tokenizer."""
    parser = argparse.ArgumentParser(prog="python -m fairlm_utils.languages", description=main.__doc__)
    parser.add_argument("packages", nargs="+", help="packages with translated manual pages, .deb files")
    parser.add_argument("folder", help="folder to write, build/languages for params/languages.yaml")
    options = parser.parse_args(arguments)
    runs.print_plainly()
    try:
        print(write_mixtures(split_pages(read_pages(options.packages)), options.folder))
    except runs.RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
