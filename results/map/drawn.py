"""Does what the map says of held-out text hold for blocks drawn from all of it? Its own are the first ones of the test reviews.

`python results/map/drawn.py RUNS ...` evaluates the finished runs of params/map.yaml and params/widths.yaml below each folder
once more, on as many blocks of test reviews in a random order, and writes their rows of drawn.csv, a table as map.csv. IMDB's
test reviews lie in the order of their label: the first 1,600 blocks are of negative reviews alone.
"""

import sys
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from export import EXPERIMENTS, FOLDER, table

from fairlm_utils import files, frequency, identity
from fairlm_utils.analysis import forgone, metrics
from fairlm_utils.analysis.results import load_results, record_digests, renewed
from fairlm_utils.lm import evaluation, floor, processes, training
from fairlm_utils.lm.models import load_model
from fairlm_utils.lm.tokenization import TokenizedCorpus, n_ids, tokenize_corpus
from fairlm_utils.params import EvaluationParams, TokenizationParams

#: All documents of either split; a limit is what puts held-out documents in a random order.
ALL = 25_000


@cache
def texts(p: TokenizationParams) -> tuple[TokenizedCorpus, TokenizedCorpus]:
    """The text that runs of `p` have, and the same with held-out documents in a random order."""
    own, drawn = tokenize_corpus(p), tokenize_corpus(p.model_copy(update={"max_documents": ALL}))
    if not np.array_equal(own.train, drawn.train):
        raise files.RunError(f"{p.corpus}: more than {ALL:,} training documents, so that the text would be another")
    return own, drawn


def row(directory: Path, runs_dir: Path) -> dict[str, object]:
    """Losses of a finished run on held-out blocks of documents in a random order, as a row of map.csv.

    The text is tokenized in `runs_dir`.
    """
    known = {k: v for k, v in identity.recorded_params(directory).items() if k in EvaluationParams.model_fields}
    p = EvaluationParams.check({**known, "runs_dir": str(runs_dir)}, str(directory))
    own, drawn = texts(TokenizationParams.check(p.model_dump(include=set(TokenizationParams.model_fields))))
    vocabulary, train = n_ids(own.tokenizer), training.train_blocks(p, own)
    model = load_model(directory / "model", vocabulary).to(processes.device(p))
    with processes.threads(p.n_threads):
        blocks = training.heldout_blocks(p, drawn)
        predictions = evaluation.token_sums(model, blocks, p.eval_batch_size, getattr(torch, p.dtype))
    n_train = frequency.target_counts(train.labels.numpy(), vocabulary)
    types = evaluation.token_table(predictions.by_type, n_train, own.tokenizer)
    types = types.join(floor.baselines(train, vocabulary)["held-out"])
    totals, classes = metrics.totals(types), metrics.by_class(types, p.low_frequency_percentile)
    return {
        "model": p.model,
        "variant": EXPERIMENTS[p.experiment] + p.variant,
        "weight_decay": float(p.weight_decay),
        "seed": p.seed,
        "split": "held-out",
        "unigram": totals["average_unigram"],
        "average": totals["average_loss"],
        "balanced": totals["token_balanced_loss"],
        **classes.set_index("frequency_class").loc[["low", "high"], "loss"],
    }


def main(*runs: Path) -> None:
    """Add the rows of the runs below each folder to drawn.csv, those of training text as the runs have them."""
    files.enter_project()
    rows, parts = [], []
    for folder in runs:
        for name in EXPERIMENTS:
            if finished := identity.finished_runs(folder / name):
                rows += [row(directory, runs[0]) for directory in finished]
                on_training = table(name, load_results(folder / name)).query("split == 'training'")
                parts.append(on_training[[*forgone.COLUMNS]])
    found, path = pd.concat([*parts, pd.DataFrame(rows).round(4)], ignore_index=True), FOLDER / "drawn.csv"
    if path.exists():
        found = renewed(pd.read_csv(path), found, forgone.KEY)
    files.write_table(path, found)
    record_digests(FOLDER)


if __name__ == "__main__":
    main(*(Path(a).resolve() for a in sys.argv[1:]))
