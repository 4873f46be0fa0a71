"""`make bench`: the promised ratios of speed, both sides of each timed in turn in one run, medians of the pairs.

Ratios of training and evaluation are of the quick experiment's model; tokenizing needs a local copy of the IMDB data set:
`make bench IMDB=folder`. `make bench PANEL=params/paper/openelm-270m-imdb.yaml` measures tokens per second of a panel instead.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from tabulate import tabulate
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, PrinterCallback, Qwen2Config, Trainer, TrainerCallback, TrainingArguments

from fairlm_utils import files, frequency, params
from fairlm_utils.experiment import cost, runs, sweep
from fairlm_utils.lm import corpora, evaluation, processes, tokenization, training
from fairlm_utils.lm.callback import TokenFrequencyCallback
from fairlm_utils.lm.models import build_model, weight_decay_groups
from fairlm_utils.lm.token_loss import TokenSums, record_token_loss, shifted_targets

ROUNDS = 7


def ratio(
    a: Callable[[], float | None], b: Callable[[], float | None], rounds: int = ROUNDS, warm_up: bool = True
) -> tuple[float, ...]:
    """Median, smallest and largest of seconds(a) / seconds(b) over pairs timed in turn, after a warm-up of each.

    A function that returns seconds is timed by them (to leave out its own set-up), another by the clock around it.
    """
    if warm_up:
        a(), b()
    pairs = []
    for _ in range(rounds):
        first, second = seconds(a), seconds(b)
        pairs.append(first / second)
    return statistics.median(pairs), min(pairs), max(pairs)


def seconds(f: Callable[[], float | None]) -> float:
    start = time.perf_counter()
    own = f()
    return own if isinstance(own, float) else time.perf_counter() - start


class Stopwatch(TrainerCallback):
    """Seconds from the end of the first step to the end of the last: training without its set-up."""

    def on_step_end(self, args, state, control, **_):
        if torch.cuda.is_available() and state.global_step in (1, state.max_steps):
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.start = now if state.global_step == 1 else self.start
        self.elapsed = now - self.start


class Setting:
    """Model, corpus and batches of the first run of an experiment file, by default the quick one."""

    def __init__(self, steps: int, file: str = "params/quick.yaml", **changes):
        values = params.read(file)
        single = {k: v[0] if params.is_grid(k, v) else v for k, v in values.items()}
        self.p = params.EvaluationParams.check(
            {**single, "steps": steps, "window_steps": 10, "checkpoint_steps": 10**6, **changes}
        )
        self.corpus = tokenization.tokenize_corpus(self.p)
        self.data = training.train_blocks(self.p, self.corpus)

    def model(self) -> torch.nn.Module:
        model = build_model(self.p.model, len(self.corpus.tokenizer), self.p.context, seed=0)
        if self.p.torch_compile != "none":
            model.base_model.compile(mode=self.p.torch_compile)
        return model


def train_with_trainer(s: Setting, record: bool) -> float:
    model, watch = s.model(), Stopwatch()
    sums = TokenSums(model.config.vocab_size, processes.device(s.p)) if record else None
    callbacks = [training.RecordTokenLoss(sums, s.p.window_steps)] if record else []
    with tempfile.TemporaryDirectory() as folder:
        trainer = training.make_trainer(s.p, model, s.data, folder, [*callbacks, watch])
        trainer.args.save_strategy = "no"
        with record_token_loss(model, sums):
            trainer.train()
    return watch.elapsed


def train_bare(s: Setting) -> float:
    """A plain loop over the same model, batches and optimiser, with the model's own loss."""
    model = s.model().train()
    groups, _ = weight_decay_groups(model, s.p.weight_decay, s.p.decayed_parameters)
    optimizer, schedule = training.optimizer_and_schedule(s.p, groups)
    batches = _endless(DataLoader(s.data, batch_size=s.p.batch_size, shuffle=True))
    start = 0.0
    for step in range(s.p.steps):
        loss = model(**next(batches), use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), s.p.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        start = time.perf_counter() if step == 0 else start
    return time.perf_counter() - start


def _endless(loader: DataLoader) -> Iterator[dict]:
    while True:
        yield from loader


def evaluate_loss_alone(model: torch.nn.Module, data: training.Blocks, batch_size: int) -> None:
    with torch.inference_mode():
        for batch in DataLoader(data, batch_size=batch_size):
            model(**batch, use_cache=False).loss.item()


def evaluate_with_pandas(model: torch.nn.Module, data: training.Blocks, batch_size: int) -> None:
    """Collect every position's target, loss and correctness, then group: what a notebook would write first."""
    rows = []
    with torch.inference_mode():
        for batch in DataLoader(data, batch_size=batch_size):
            logits = model(input_ids=batch["input_ids"], use_cache=False).logits.flatten(0, 1)
            targets = shifted_targets(batch["labels"])
            loss = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
            correct = logits.argmax(-1) == targets
            rows += [r for r in zip(targets.tolist(), loss.tolist(), correct.tolist(), strict=True) if r[0] >= 0]
    pd.DataFrame(rows, columns=["token_id", "loss", "correct"]).groupby("token_id").agg(["mean", "size"])


def bench_accumulation(vocab_size: int, n: int = 12_000, batches: int = 20) -> list[list]:
    """Keeping sums by type against collecting positions and grouping them, both from the same losses."""
    generator = torch.Generator().manual_seed(0)
    made = [
        (torch.randint(0, vocab_size, (n,), generator=generator), torch.rand(n, generator=generator))
        for _ in range(batches)
    ]

    def sums() -> None:
        kept = TokenSums(vocab_size)
        for targets, loss in made:
            kept.add(targets, loss, loss < 0.5)
        kept.read()

    def collected() -> None:
        rows = [r for t, x in made for r in zip(t.tolist(), x.tolist(), (x < 0.5).tolist(), strict=True)]
        pd.DataFrame(rows, columns=["token_id", "loss", "correct"]).groupby("token_id").agg(["mean", "size"])

    return [["statistics by type alone: collecting and grouping in pandas ÷ ours", *ratio(collected, sums), "≥ 5"]]


def bench_training(steps: int) -> list[list]:
    s = Setting(steps)
    return [
        [
            "training step with recording ÷ without",
            *ratio(lambda: train_with_trainer(s, True), lambda: train_with_trainer(s, False)),
            "≤ 1.02",
        ],
        [
            "tokens/s of our loop ÷ bare PyTorch loop",
            *ratio(lambda: train_bare(s), lambda: train_with_trainer(s, True)),
            "≥ 0.95",
        ],
        [
            "stock Trainer with TokenFrequencyCallback ÷ without",
            *ratio(lambda: train_stock(s, True), lambda: train_stock(s, False)),
            "≤ 1.02",
        ],
    ]


def train_stock(s: Setting, watched: bool) -> float:
    """A stock Trainer on the same model and batches, with TokenFrequencyCallback or without."""
    model, watch = s.model(), Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder, max_steps=s.p.steps, per_device_train_batch_size=s.p.batch_size, logging_steps=10,
            gradient_accumulation_steps=s.p.gradient_accumulation_steps, bf16=s.p.dtype == "bfloat16",
            use_cpu=processes.device(s.p) == "cpu", save_strategy="no", report_to=[], disable_tqdm=True, remove_unused_columns=False,
        )  # fmt: skip
        trainer = Trainer(model, args, train_dataset=s.data, callbacks=[watch])
        trainer.remove_callback(PrinterCallback)
        if watched:
            TokenFrequencyCallback(trainer)
        trainer.train()
    return watch.elapsed


def bench_panel(file: str, steps: int, modes: Sequence[str] = ("none", "default")) -> pd.DataFrame:
    """Tokens a second, padding included, of a panel's training: compiled or not, ours and a stock Trainer's.

    MFU is the model's FLOPs per second over the device's peak, empty where that is unknown. Blocks fill whole batches: a
    compiled model is compiled again for a ragged one.
    """
    rows = []
    first = Setting(1, file)
    whole = len(first.data) - len(first.data) % first.p.batch_size
    for mode in modes:
        s = Setting(steps, file, torch_compile=mode, max_train_blocks=whole)
        cuda = processes.device(s.p) == "cuda"
        peak = cost.peak_flops(torch.cuda.get_device_name()) if cuda else None
        flops = cost.flops_per_token(s.model().config, s.p.context)
        n_tokens = (steps - 1) * s.p.batch_size * s.p.gradient_accumulation_steps * s.p.context
        for name, train in (
            ("ours", lambda s=s: train_with_trainer(s, True)),
            ("stock", lambda s=s: train_stock(s, False)),
        ):
            pace = n_tokens / train()
            rows.append([mode, name, pace, flops * pace / peak if peak else None])
    return pd.DataFrame(rows, columns=["torch_compile", "Trainer", "tokens/s", "MFU"])


def bench_sweep(n_runs: int = 5) -> list[list]:
    """Runs of the quick experiment by a sweep, what its worker imports included, against the same in this process.

    As many as one of two workers makes. Minutes, so of a single pair.
    """
    values, n = params.read("params/quick.yaml"), itertools.count()
    with tempfile.TemporaryDirectory() as folder:

        def points() -> list[params.EvaluationParams]:
            return params.expand({**values, "runs_dir": folder, "experiment": f"bench{next(n)}"})[:n_runs]

        def swept() -> None:
            assert {o.status for o in sweep.sweep(points(), n_workers=1)} == {"finished"}

        def in_process() -> None:
            for p in points():
                runs.evaluate(p)

        tokenization.tokenize_corpus(points()[0])
        found = ratio(swept, in_process, rounds=1, warm_up=False)
    return [
        [
            f"{n_runs} runs of quick by a sweep ÷ one after the other in a process that has imported all",
            *found,
            "≤ 1.15",
        ]
    ]


def bench_cost() -> list[list]:
    """FLOP/s of training, counted by the cost function, against those of a large matrix product: the utilisation it assumes."""
    a = torch.randn(1024, 1024)
    rows = []
    for width in (256, 512):
        sizes = dict(hidden_size=width, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=4)
        config = Qwen2Config(**sizes, intermediate_size=4 * width, vocab_size=8_000, tie_word_embeddings=True)
        model, n_tokens = AutoModelForCausalLM.from_config(config), 4 * 128
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        ids = torch.randint(0, 8_000, (4, 128))
        n_products = round(cost.flops_per_token(config, 128) * n_tokens / (2 * 1024**3))

        def products(n: int = n_products) -> None:
            for _ in range(n):
                a @ a

        def step(model=model, optimizer=optimizer, ids=ids) -> None:
            with record_token_loss(model, None):
                model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        name = f"matrix products of as many FLOPs as the cost function predicts ÷ training step, width {width}"
        rows.append([name, *ratio(products, step), "the utilisation"])
    return rows


def bench_evaluation() -> list[list]:
    s = Setting(1)
    model, batch = s.model().eval(), 64
    ours = lambda: evaluation.token_sums(model, s.data, batch)  # noqa: E731
    return [
        [
            "tokens/s of evaluation ÷ forward passes with the loss alone",
            *ratio(lambda: evaluate_loss_alone(model, s.data, batch), ours),
            "≥ 0.9",
        ],
        [
            "the same, whole evaluation: collecting and grouping in pandas ÷ ours",
            *ratio(lambda: evaluate_with_pandas(model, s.data, batch), ours),
            "≥ 5",
        ],
    ]


def bench_tokenizing(imdb: str, documents: int) -> list[list]:
    """Tokenizing and counting the reviews of all IMDB splits against the library's batch encoding of the same batches."""
    values = {"corpus": "imdb", "corpus_path": imdb, "vocab_size": 32_000, "runs_dir": "runs"}
    p = params.TokenizationParams.check(values)
    tokenizer = tokenization.tokenize_corpus(p).tokenizer
    both = corpora.load_corpus(params.CorpusParams.check({"corpus": "imdb-xl", "corpus_path": imdb}))
    texts = [*both.train, *both.heldout][: documents or None]

    def ours() -> None:
        ids, _ = tokenization.encode(tokenizer, texts)
        frequency.token_counts(ids, len(tokenizer))

    def library() -> None:
        for start in range(0, len(texts), 512):
            tokenizer.backend_tokenizer.encode_batch_fast(texts[start : start + 512], add_special_tokens=False)

    return [
        [
            f"tokenizing and counting {len(texts):,} IMDB reviews ÷ the library's batch encoding",
            *ratio(ours, library, rounds=3),
            "≤ 1.3",
        ]
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench")
    parser.add_argument("--imdb", default=os.environ.get("IMDB", ""), help="local copy of the IMDB data set")
    parser.add_argument("--documents", type=int, default=0, help="reviews tokenized, 0 takes all 100,000")
    parser.add_argument("--steps", type=int, default=0, help="steps of a timed training, default 60, of a panel's 300")
    parser.add_argument("--panel", default="", metavar="FILE", help="measure the speed of this experiment file instead")
    options = parser.parse_args()
    os.environ["TQDM_DISABLE"] = "1"
    files.enter_project()
    torch.set_num_threads(1)
    if options.panel:
        print(
            tabulate(
                bench_panel(options.panel, options.steps or 300),
                headers="keys",
                showindex=False,
                floatfmt=("g", "g", ",.0f", ".3f"),
            )
        )
        print(
            f"{torch.cuda.get_device_name() if torch.cuda.is_available() else 'CPU, 1 thread'}; PyTorch {torch.__version__}"
        )
        return
    rows = (
        bench_training(options.steps or 60)
        + bench_sweep()
        + bench_cost()
        + bench_evaluation()
        + bench_accumulation(32_005)
    )
    if options.imdb:
        rows += bench_tokenizing(options.imdb, options.documents)
    else:
        print("tokenizing left out: set IMDB to a local copy of stanfordnlp/imdb")
    print(tabulate(rows, headers=["ratio", "median", "min", "max", "goal"], floatfmt=".3f"))
    print(
        f"peak memory of this process {runs.peak_memory_mb():,.0f} MB; 1 thread, medians of {ROUNDS} pairs; numpy {np.__version__}"
    )


if __name__ == "__main__":
    main()
