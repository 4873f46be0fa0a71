"""Every command: `fairlm COMMAND --help`, or `python -m fairlm_utils COMMAND --help` in a checkout.

With several GPUs one model is trained by `torchrun --nproc-per-node 2 -m fairlm_utils run FILE`.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from fairlm_utils import files, params

#: Exit status of a piece that has not finished the panel (EX_TEMPFAIL of sysexits.h).
GO_ON = 75
_FILE = click.argument("file", type=Path)
_RUN = click.argument("run", type=Path)
_WORKERS = click.option(
    "--workers", default=0, type=click.IntRange(min=0), help="Runs at a time; 0: cores divided by n_threads."
)
_RETRIES = click.option(
    "--retries", default=1, type=click.IntRange(min=0), show_default=True, help="Times a failed run is tried again."
)


def _in_full(_context: Any, _parameter: Any, overrides: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """`-p NAME VALUE` as given; a file or folder that lies where the command was typed, and not in the project, in full."""
    read = ("corpus", "corpus_path", "tokenizer", "model")

    def full(name: str, value: str) -> str:
        there = name in read and value and os.path.exists(value) and not (files.PROJECT / value).exists()
        return json.dumps(os.path.abspath(value), ensure_ascii=False) if there else value

    return tuple((name, full(name, value)) for name, value in overrides)


_OVERRIDES = click.option(
    "-p",
    "overrides",
    callback=_in_full,
    nargs=2,
    multiple=True,
    metavar="NAME VALUE",
    help="Set a parameter over those of the file; may be given several times, a list makes a grid.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Token-level measurement of language models: experiments, audits and what they cost."""


def _entered(file: Path) -> Path:
    """Enter the project; `file`, named relative to where the command was typed, in full."""
    place = file.resolve()
    files.enter_project()
    return place


def _read(file: Path, overrides: Sequence[tuple[str, str]]) -> list[params.EvaluationParams]:
    """The runs of an experiment file."""
    return params.expand(params.read(_entered(file), overrides), str(file))


@cli.command()
@_FILE
@_OVERRIDES
def run(file: Path, overrides: Sequence[tuple[str, str]]) -> None:
    """Train and evaluate one run of FILE, also with several processes through torchrun; grids need one value by -p."""
    fields = params.EvaluationParams.model_fields
    values = {k: v for k, v in params.read(_entered(file), overrides).items() if k in fields or k == params.VARIANTS}
    p = params.EvaluationParams.check(values, str(file))
    from fairlm_utils import identity
    from fairlm_utils.experiment import runs
    from fairlm_utils.lm import processes

    if not p.variant:  # of variants a run alone does not know the others
        identity.check_experiment([p])
    runs.train(p)
    if processes.is_main_process():
        print(runs.evaluate(p))


@cli.command()
@_FILE
@_WORKERS
@_RETRIES
@click.option("--ray-address", default="", help="Ray cluster to run on: auto, HOST:PORT or ray://HOST:PORT.")
@click.option("--gpus-per-run", type=float, help="GPUs of a run on Ray, 0.25 lets four share one; by default 1 if any.")
@_OVERRIDES
def sweep(
    file: Path,
    workers: int,
    retries: int,
    ray_address: str,
    gpus_per_run: float | None,
    overrides: Sequence[tuple[str, str]],
) -> int:
    """Run the grid of FILE, here or on a Ray cluster; what is finished is left out."""
    from fairlm_utils.experiment import sweep as sweeping

    outcomes = sweeping.sweep(_read(file, overrides), workers, retries, ray_address, gpus_per_run)
    sweeping.report_outcomes(outcomes)
    return int(any(o.status == "failed" for o in outcomes))


@cli.command()
@click.argument("file", type=Path, default=files.PROJECT / "params" / "quick.yaml")
@_WORKERS
@_RETRIES
@click.option("--save-results", default="", metavar="FOLDER", help="Also write the small tables to this folder.")
@_OVERRIDES
def reproduce(file: Path, workers: int, retries: int, save_results: str, overrides: Sequence[tuple[str, str]]) -> None:
    """Run the whole pipeline of FILE (by default params/quick.yaml): its runs, Table 1, verdicts and an HTML report."""
    from fairlm_utils.experiment import reproduce as pipeline

    place = _entered(file)
    place = place.relative_to(files.PROJECT) if place.is_relative_to(files.PROJECT) else place
    index = pipeline.reproduce(place, workers, retries, save_results, overrides)
    print(f"\nreport: {index.resolve()}")


@cli.command()
@_FILE
@click.option("--most", default=96, type=click.IntRange(min=1), show_default=True, help="Runs in a stack.")
@click.option(
    "--workers", default=1, type=click.IntRange(min=1), show_default=True, help="Processes that write what is found."
)
@click.option("--only", default="", metavar="TEXT", help="Runs of the variants whose name has this in it.")
@_OVERRIDES
def stack(file: Path, most: int, workers: int, only: str, overrides: Sequence[tuple[str, str]]) -> None:
    """Train and evaluate the small runs of FILE as stacked models, many at a time on one GPU."""
    from fairlm_utils.experiment import stacked
    from fairlm_utils.experiment import sweep as sweeping

    points = _read(file, overrides)
    if not (chosen := [p for p in points if only in p.variant]):
        names = ", ".join(dict.fromkeys(p.variant for p in points if p.variant)) or "none"
        raise params.ParameterError(f"--only {only!r}: no variant of {file} has this in its name; they are: {names}")
    sweeping.check(points)
    stacked.train_all(chosen, most, workers)


@cli.command()
@_FILE
@click.option("--minutes", default=9.0, show_default=True, help="Minutes until a piece begins its last checkpoint.")
@_OVERRIDES
def panel(file: Path, minutes: float, overrides: Sequence[tuple[str, str]]) -> int:
    """Run a panel of the paper in pieces: the same command again goes on, exit status 75 says that it should."""
    deadline = time.monotonic() + 60 * minutes
    from fairlm_utils.experiment import panel as panels

    points = panels.panel_runs(_entered(file), overrides)
    if not panels.run(points, deadline):
        print(f"time is up after {minutes:g} minutes: run the same command again to go on")
        return GO_ON
    print(panels.beside_predictions(points))
    return 0


@cli.command()
@_FILE
@click.argument("folder", type=Path, default=Path("build/panel"))
@_OVERRIDES
def pack(file: Path, folder: Path, overrides: Sequence[tuple[str, str]]) -> None:
    """Pack a panel into FOLDER, at most 64 MiB, with which it runs where there are no documents."""
    from fairlm_utils.experiment import panel as panels

    folder = folder.resolve()
    print(f"{folder}: {panels.pack(panels.panel_runs(_entered(file), overrides), folder) / 2**20:.1f} MiB")


@cli.command()
@click.argument("paths", nargs=-1, required=True, type=Path, metavar="FILE...")
@_OVERRIDES
def cost(paths: Sequence[Path], overrides: Sequence[tuple[str, str]]) -> None:
    """Print FLOPs, memory and hours of experiment files on several kinds of GPU."""
    from fairlm_utils.experiment import cost as costs

    places = [path.resolve() for path in paths]
    for place in places:
        print(costs.report(place.stem, _read(place, overrides)))


@cli.command()
@_FILE
@_OVERRIDES
def floor(file: Path, overrides: Sequence[tuple[str, str]]) -> None:
    """Print the lowest loss that any model of the training blocks of FILE's first run can have."""
    from fairlm_utils.lm import floor as floors

    print(floors.say(_read(file, overrides)[0]))


@cli.command()
@_RUN
def show(run: Path) -> None:
    """Print what is needed to repeat RUN, a folder RUNS_DIR/EXPERIMENT/RUN_ID."""
    from fairlm_utils.experiment import runs

    print(runs.show(run.resolve()))


@cli.command()
@_RUN
def repeat(run: Path) -> int:
    """Train and evaluate RUN again elsewhere, and compare bit by bit; exit status 1 if a file differs."""
    from fairlm_utils.experiment import runs

    same = runs.repeat(_entered(run))
    for name, equal in same.items():
        print(f"{'the same bits' if equal else 'DIFFERS      '}  {name}")
    return int(not all(same.values()))


@cli.command()
@click.argument("model")
@click.argument("corpus")
@click.option(
    "--report", type=Path, default=Path("audit.html"), show_default=True, metavar="FILE", help="Page to write."
)
@click.option("--reference", default="", metavar="MODEL", help="A second model to compare with.")
@click.option("--counts", default="", metavar="FILE", help="CSV or Parquet with columns token_id and count.")
@click.option("--tables", type=Path, metavar="FOLDER", help="Also write the tables there, as CSV files.")
@click.option("--json", "as_json", is_flag=True, help="Print answer and tables as one JSON object, and nothing else.")
@_OVERRIDES
def audit(
    model: str,
    corpus: str,
    report: Path,
    reference: str,
    counts: str,
    tables: Path | None,
    as_json: bool,
    overrides: Sequence[tuple[str, str]],
) -> None:
    """Do rare tokens of MODEL gain less than frequent ones? An answer for the terminal, and an HTML report.

    MODEL is a Hub id or a folder written by save_pretrained with its tokenizer; CORPUS is python-docs, imdb, a Hub data set,
    or a local folder or file of documents.
    """
    from fairlm_utils.analysis.answers import answer
    from fairlm_utils.analysis.audit_tables import as_records, save
    from fairlm_utils.experiment import audit as auditing

    report = report.expanduser().resolve()
    tables = tables and tables.expanduser().resolve()
    if not model.strip() or not corpus.strip():
        raise params.ParameterError(f"{'MODEL' if corpus.strip() else 'CORPUS'}: is empty; name one")
    named = {"audited_model": model, "corpus": corpus, "reference_model": reference, "counts_file": counts}
    p, values = auditing.checked({k: v for k, v in named.items() if v}, params.overridden(overrides))
    for file in (report, *([tables / "totals.csv"] if tables else [])):
        files.check_writable(file)
    files.enter_project()
    with contextlib.redirect_stdout(sys.stderr):  # what is printed on the way is no part of the answer
        found = auditing.audits(p)
        if tables:
            save(found, tables)
        auditing.write_report(values, report, found)
    places = {"report": str(report), **({"tables": str(tables)} if tables else {})}
    if as_json:
        print(json.dumps({"answer": answer(found), **as_records(found), **places}, allow_nan=False))
    else:
        print("\n".join([*answer(found), *(f"{name}: {place}" for name, place in places.items())]))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 2, and one line that says what to do, for what the user can mend."""
    files.print_plainly()
    try:
        return cli.main(arguments, prog_name="fairlm", standalone_mode=False) or 0
    except files.UserError as error:
        print(f"error: {error}", file=sys.stderr)
    except click.ClickException as error:
        error.show()
    except click.Abort:  # Ctrl-C
        print("\ninterrupted; run the same command again to continue", file=sys.stderr, flush=True)
        os._exit(130)  # workers and kernels end with this process; a plain exit would wait for what they do
    return 2


if __name__ == "__main__":
    raise SystemExit(main())
