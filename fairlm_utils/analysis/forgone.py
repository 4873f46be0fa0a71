"""What types of each frequency forgo at the λ that the average held-out loss chooses: a map over amounts of text and epochs.

Read from one wide table, one row per run and text (`table`): variant "CELL, lr RATE", and the loss of each group of types.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from fairlm_utils.analysis import comparisons, scale, sentences
from fairlm_utils.analysis.results import Results, read_csv
from fairlm_utils.files import RunError

#: Columns that name a row of the table, a run and a text.
KEY = ["model", "variant", "weight_decay", "seed", "split"]
#: Columns of the table before those of the bins, losses in nats: `low` and `high` are means over types of each class.
COLUMNS = (*KEY, "unigram", "average", "balanced", "low", "high")
#: A model of use lies below the unigram by this on held-out text, in nats: less is noise of what frequency alone predicts.
USEFUL = 0.3
_NO_MODEL = "No model is of use on this map"
#: Columns of `bin_unigrams`.
UNIGRAMS = ["cell", "bin", "bin_low", "n_types", "unigram"]
#: What `forgone` says of the change of a group's loss: mean and interval.
_CHANGE = ["change", "change_low", "change_high"]


def table(results: Results) -> pd.DataFrame:
    """The losses of every run of an experiment on the map, COLUMNS and one column per bin of the training count."""
    names = {"average_unigram": "unigram", "average_loss": "average", "token_balanced_loss": "balanced"}
    totals = results.totals.rename(columns=names)[[*KEY, *names.values()]]
    classes = results.classes.pivot(index=KEY, columns="frequency_class", values="loss")[["low", "high"]]
    bins = results.bins.pivot(index=KEY, columns="bin", values="loss")
    bins = bins[results.bins.sort_values("bin_low")["bin"].unique()]
    return totals.join(classes, on=KEY).join(bins, on=KEY).round(4)


def read(path: str | Path) -> pd.DataFrame:
    """The table as it is committed, with columns cell and learning_rate from the variant.

    Raises RunError if it cannot be read, or has a run twice.
    """
    found = read_csv(Path(path), list(COLUMNS))
    named = comparisons.split_rate(found["variant"]).rename(columns={"name": "cell"})
    if (twice := found[found.duplicated(KEY)]).size:
        raise RunError(f"{path}: {', '.join(map(str, twice[KEY].iloc[0]))} stands twice; leave one of the rows")
    return found.drop(columns="variant").join(named)


def bins_of(frame: pd.DataFrame) -> list[str]:
    """The columns of the bins, rarest first."""
    return [c for c in frame.columns if c not in (*COLUMNS, "cell", "learning_rate")]


def choices(frame: pd.DataFrame, jointly: bool = False) -> pd.DataFrame:
    """Learning rate and λ of each model and cell, by the mean held-out average loss over seeds (`comparisons.best_setting`).

    The rate is the best at λ = 0, and λ the best at that rate; `jointly`, the pair that is best of all. Columns:
    model, cell, base_rate (the best at λ = 0), base (its loss), bracketed (λ = 0 was run at a smaller and a larger rate too),
    learning_rate, weight_decay, average, unigram (nats), and useful: whether the model chosen lies USEFUL below the unigram.
    """
    held = frame[frame["split"] == "held-out"]
    key, setting = ["model", "cell"], ["learning_rate", "weight_decay"]
    rows = []
    for name, own in held.groupby(key, sort=False):
        losses = own.pivot(index=setting, columns="seed", values="average")
        means = own.groupby(setting)[["average", "unigram"]].mean()
        plain = losses.xs(0.0, level="weight_decay", drop_level=False)
        rate, _ = base = comparisons.best_setting(plain)
        rates = plain.index.unique("learning_rate")
        best = comparisons.best_setting(losses if jointly else losses.xs(rate, level="learning_rate", drop_level=False))
        average, unigram = means.loc[best]
        bracketed = rates.min() < rate < rates.max()
        rows.append(
            (*name, rate, means.loc[base, "average"], bracketed, *best, average, unigram, average < unigram - USEFUL)
        )
    return pd.DataFrame(
        rows, columns=["model", "cell", "base_rate", "base", "bracketed", *setting, "average", "unigram", "useful"]
    )


def by_seed(frame: pd.DataFrame, jointly: bool = False) -> pd.DataFrame:
    """Per model, cell, text, group of types and seed, at what the held-out average chooses, see `choices` (columns kept).

    `loss` is the group's loss there, `change` that less the loss of λ = 0 at the rate best there (below 0 the group gains),
    `forgone` that less the loss at the λ (`jointly`, rate and λ) that is best for the group on the same text (nats). A seed's
    own loss takes no part in that choice, which the other seeds make: else the best of several would look better than it is,
    and nothing could be forgone less than 0. `own_weight_decay` is the group's choice by all seeds. Raises RunError if the best
    rate at λ = 0 lacks a seed of the choice.
    """
    rows, settings = [], choices(frame, jointly)
    for choice in settings.to_dict("records"):
        cell = frame[(frame["model"] == choice["model"]) & (frame["cell"] == choice["cell"])]
        for split, of_split in cell.groupby("split", sort=False):
            losses_of = of_split.set_index(["learning_rate", "weight_decay", "seed"]).sort_index()
            candidates = losses_of if jointly else losses_of.loc[[choice["base_rate"]]]
            for group in ("average", "balanced", "low", "high", *bins_of(frame)):
                losses = candidates[group].unstack("seed").dropna()
                chosen = losses_of.loc[(choice["learning_rate"], choice["weight_decay"]), group]
                base = losses_of.loc[(choice["base_rate"], 0.0), group]
                if losses.empty or chosen.isna().any() or base.isna().any():
                    continue
                if absent := sorted(set(chosen.index) - set(base.index)):
                    raise RunError(
                        f"{choice['model']}, {choice['cell']}: rate {choice['base_rate']:g}, the best at λ = 0, was not run there with "
                        f"seed {', '.join(map(str, absent))}; run it"
                    )
                own_weight_decay = losses.mean(axis=1).idxmin()[1]
                alone = losses.shape[1] == 1
                others = losses if alone else losses.mul(-1).add(losses.sum(axis=1), axis=0)
                for seed, loss in chosen.items():
                    best = losses.loc[others[seed].idxmin(), seed]
                    found = (split, group, seed, own_weight_decay, loss, loss - base[seed], loss - best)
                    rows.append((*choice.values(), *found))
    columns = ["split", "group", "seed", "own_weight_decay", "loss", "change", "forgone"]
    return pd.DataFrame(rows, columns=[*settings, *columns])


def forgone(seeds: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """Means of `change` and `forgone` of `by_seed` over seeds, with Student t intervals (change_low, ...) and n_seeds."""
    keys = [c for c in seeds.columns if c not in ("seed", "loss", "change", "forgone")]
    rows = []
    for key, own in seeds.groupby(keys, sort=False):
        row = dict(zip(keys, key, strict=True))
        for name in ("change", "forgone"):
            row |= scale.interval_columns(name, own[name], confidence)
        rows.append({**row, "n_seeds": len(own)})
    return pd.DataFrame(rows)


def size_and_epochs(cell: pd.Series) -> pd.DataFrame:
    """Columns targets and epochs of cells "TARGETS targets, EPOCHS epochs", as categories in their order."""
    found = cell.str.extract(r"^(?P<targets>\S+) targets, (?P<epochs>\d+) epochs?$")
    size = {t: float(t.rstrip("kM")) * {"k": 1e3, "M": 1e6}.get(t[-1], 1.0) for t in found["targets"].unique()}
    targets = pd.Categorical(found["targets"], sorted(size, key=size.__getitem__), ordered=True)
    return pd.DataFrame({"targets": targets, "epochs": found["epochs"].astype(int)}, index=cell.index)


def of_map(frame: pd.DataFrame, model: str = "qwen2-tiny") -> pd.DataFrame:
    """The rows of the map's own model, those of other widths and architectures left out."""
    return frame[frame["model"] == model]


def rare_on_map(seeds: pd.DataFrame, confidence: float = 0.95) -> tuple[pd.DataFrame, str, str, str, str]:
    """What `charts.regime_map` takes to show what low-frequency types forgo on both texts, titled by what is found."""
    cells = forgone(of_map(seeds), confidence).query("group == 'low'")
    cells = cells.join(size_and_epochs(cells["cell"])).assign(text=cells["split"] + " text").sort_values("split")
    most = cells[cells["useful"]].groupby("split")["forgone"].max()
    title = _NO_MODEL
    if len(most):
        title = f"Rare types forgo at most {most['held-out']:.2f} nats of held-out loss, and {most['training']:.2f} of training loss"
    said = (
        "Low-frequency types, at the λ of the best held-out average against the λ best for them. Grey: no model of use"
    )
    return cells, "forgone", "text", title, said


def gains_on_map(together: pd.DataFrame, confidence: float = 0.95) -> tuple[pd.DataFrame, str, str, str, str]:
    """What `charts.regime_map` takes to show what decay changes for either class when the rate is chosen with it."""
    cells = forgone(of_map(together), confidence).query("split == 'held-out' and group in ['low', 'high']")
    cells = cells.join(size_and_epochs(cells["cell"])).assign(types=cells["group"] + "-frequency types")
    mean = cells[cells["useful"]].groupby("group")["change"].mean()
    title = _NO_MODEL
    if len(mean):
        title = f"Decay changes the held-out loss of rare types by {mean['low']:+.2f} nats, of frequent ones by {mean['high']:+.2f}"
    said = (
        "Rate and λ chosen together, against the best rate without decay at as many epochs; means over the cells. "
        "Grey: no model of use"
    )
    return cells.sort_values("types", ascending=False), "change", "types", title, said


def say(seeds: pd.DataFrame, together: pd.DataFrame, confidence: float = 0.95) -> list[str]:
    """What the map says, in sentences: `seeds` of `by_seed` with λ chosen alone, `together` with the rate."""
    seeds, together = of_map(seeds), of_map(together)
    useless = forgone(seeds[~seeds["useful"]], confidence).query("split == 'held-out' and group == 'low'")
    lines = [*_say_alone(seeds, confidence), *_say_together(together, confidence)]
    if len(useless):
        lines.append(
            f"Where the model is of no use ({'; '.join(useless['cell'])}) low-frequency types forgo "
            f"{_range(useless['forgone'])} nats: they would choose λ = {useless['own_weight_decay'].max():g}, the largest "
            "tried, which leaves little of the model."
        )
    return lines


def _say_alone(seeds: pd.DataFrame, confidence: float) -> list[str]:
    """What low-frequency types forgo and pay where λ is chosen alone.

    Intervals hold for all cells at once (Bonferroni), for the largest of several is read.
    """
    useful = seeds[seeds["useful"]]
    n, n_cells = useful["cell"].nunique(), seeds["cell"].nunique()
    held, frequent, train = _by_class(forgone(useful, 1 - (1 - confidence) / n))
    cost = train["change"].idxmax()
    there, paid = held.loc[cost, "change"], train.loc[cost]
    memorisation = f", {'nearly all of ' * bool(there > 0)}which is memorisation" * bool(there < paid["change"] / 10)
    decayed = held.index[held["weight_decay"] > 0]
    change = held.loc[decayed, "change"]
    more, worst = (change < frequent.loc[decayed, "change"]).sum(), change[change > 0]
    lose = f", and lose by it in {len(worst)}, at most {worst.max():.3f} nats ({worst.idxmax()})" if len(worst) else ""
    return [
        f"Of {n_cells} pairs of text size and epochs {n} give a model of use ({USEFUL:g} nats below the unigram on held-out "
        "text). There, at the λ that the held-out average chooses, low-frequency types forgo at most "
        f"{held['forgone'].max():.3f} nats of held-out loss against the λ best for them ({held['forgone'].idxmax()}); the "
        f"{confidence:.0%} bound for all pairs at once is {held['forgone_high'].max():.2f}.",
        f"That λ is 0 in {n - len(decayed)} of the {n}; in the other {len(decayed)} the rare gain more by it than the frequent in "
        f"{more}{lose}.",
        f"On training text the same λ costs them up to {paid['change']:.2f} nats [{paid['change_low']:.2f}, "
        f"{paid['change_high']:.2f} for all pairs at once] ({cost}){memorisation}: on held-out text they {'gain' if there < 0 else 'lose'} "
        f"{abs(there):.3f} there.",
    ]


def _say_together(together: pd.DataFrame, confidence: float) -> list[str]:
    """What decay buys either class where rate and λ are chosen together, and what against fewer epochs without decay."""
    sized = together.join(size_and_epochs(together["cell"]))
    low, high, train = (
        t["change"] for t in _by_class(forgone(sized[sized["useful"] & (sized["epochs"] >= 10)], confidence))
    )
    lines = [
        f"With rate and λ chosen together, from 10 epochs on ({len(low)} such pairs), decay changes the held-out loss of "
        f"low-frequency types by {_range(low)} nats and that of high-frequency ones by {_range(high)}: the rare gain more in "
        f"{(low < high).sum()} of {len(low)}. Their training loss rises in {(train > 0).sum()}."
    ]
    chosen = sized.drop_duplicates("cell").set_index("cell")
    without = pd.Series({
        cell: chosen.query("targets == @own.targets and epochs <= @own.epochs")["base"].idxmin()
        for cell, own in chosen.loc[low.index].iterrows()
    })  # the cell whose number of epochs is best without decay, of at most as many  # fmt: skip
    idle = chosen.loc[without, "base"].to_numpy() < chosen.loc[low.index, "average"]
    if (without != without.index).any():
        held = together[together["split"] == "held-out"].set_index(["group", "cell", "seed"]).sort_index()
        base = held["loss"] - held["change"]
        rest = [
            pd.Series([(held.loc[(g, c), "loss"] - base.loc[(g, without[c])]).mean() for c in without.index[~idle]])
            for g in ("low", "high")
        ]
        best = f"; in the others, against the best number of epochs without decay, the changes are {_range(rest[0])} and {_range(rest[1])}"
        lines.append(
            f"In {idle.sum()} of the {len(low)} fewer epochs without decay do better still{'' if idle.all() else best}."
        )
    return lines


def say_other_rates(frame: pd.DataFrame, confidence: float = 0.95, tolerance: float = 0.03) -> list[str]:
    """How far what rare types gain rests on the rate without decay that a choice is compared with: a sentence per way to choose.

    Of the cells of use from 10 epochs on, `frame` of `read`: the other rates whose mean held-out average at λ = 0 is at most
    `tolerance` nats above the best, over the seeds that both have.
    """
    held, together, alone = of_map(frame).query("split == 'held-out'"), [], []
    useful = of_map(choices(frame, jointly=True)).query("useful")
    for choice in useful[size_and_epochs(useful["cell"])["epochs"] >= 10].itertuples():
        own = held[held["cell"] == choice.cell].set_index(["learning_rate", "weight_decay", "seed"]).sort_index()
        losses = own["average"].unstack("seed")
        for rate in losses.xs(0.0, level="weight_decay").index.drop(choice.base_rate):
            if (losses.loc[(rate, 0.0)] - losses.loc[(choice.base_rate, 0.0)]).mean() > tolerance:
                continue
            at_rate = losses.xs(rate, level="learning_rate", drop_level=False)
            plain = own.loc[(rate, 0.0)]
            change = own.loc[(choice.learning_rate, choice.weight_decay), ["low", "high"]] - plain[["low", "high"]]
            together.append((choice.cell, rate, *change.mean(), (change["low"] - change["high"]).dropna()))
            if len(at_rate) > 1:
                alone.append((own.loc[comparisons.best_setting(at_rate), "low"] - plain["low"]).mean())
    if not together:
        return [f"No other rate without decay lies within {tolerance:g} nats of the best."]
    more = sum(difference.mean() < 0 for *_, difference in together)
    cell, rate, low, high, least = max(together, key=lambda row: row[-1].mean())
    said = [
        f"Against {len(together)} other rates, without decay at most {tolerance:g} nats worse, the rare gain more in {more}, least at "
        f"{rate:g} in {cell}: {low:+.3f} nats against {high:+.3f}, difference "
        f"{sentences.interval(*scale.mean_and_interval(least, confidence))}."
    ]
    if alone:
        said.append(
            f"At those of them that were run with decay ({len(alone)}) λ chosen alone changes the loss of rare types by "
            f"{_range(pd.Series(alone))}."
        )
    return said


def _by_class(cells: pd.DataFrame) -> list[pd.DataFrame]:
    """Rows of `forgone` by cell: low- and high-frequency types on held-out text, and low-frequency types on training text."""
    wanted = (("held-out", "low"), ("held-out", "high"), ("training", "low"))
    return [cells[(cells["split"] == split) & (cells["group"] == group)].set_index("cell") for split, group in wanted]


def say_control(frame: pd.DataFrame, together: pd.DataFrame, confidence: float = 0.95) -> str:
    """In how many useful cells decay lowers the held-out average of the best rate without it, of those tried, beyond seeds.

    And in how many the rate chosen with λ is the largest that `frame` of `read` has with a λ above 0.
    """
    cells = forgone(of_map(together), confidence).query("useful and split == 'held-out' and group == 'average'")
    decayed = cells[cells["weight_decay"] > 0]
    beyond = decayed.loc[decayed["change_high"] < 0, "cell"]
    largest = of_map(frame).query("weight_decay > 0").groupby("cell")["learning_rate"].max()
    n_edge = (decayed["learning_rate"] == decayed["cell"].map(largest)).sum()
    return (
        f"A λ above 0 is chosen with the rate in {len(decayed)} of the {len(cells)} cells of use; against the best rate without "
        f"decay, of those tried, the held-out average falls by more than seed-to-seed variation in {len(beyond)} ({'; '.join(beyond)}). "
        f"In {n_edge} of the {len(decayed)} the rate is the largest tried with decay, which may buy more at a larger one."
    )


def say_own_rate(frame: pd.DataFrame, cell: str, learning_rate: float, weight_decay: float) -> str:
    """How much of what low-frequency types gain on held-out text at a rate is decay mending that rate, in one sentence.

    Raises RunError if the map has no such run.
    """
    own = of_map(frame).query("split == 'held-out' and cell == @cell")
    means = own.groupby(["learning_rate", "weight_decay"])[["average", "low"]].mean()
    if (learning_rate, weight_decay) not in means.index:
        raise RunError(
            f"best_cell: the map has no run of {cell!r} at rate {learning_rate:g} and λ = {weight_decay:g}, where best_results has "
            "its lowest loss; name the cell of these results"
        )
    base_rate = choices(own)["base_rate"].item()
    at = means.loc[(learning_rate, weight_decay), "low"]
    here, best = (means.loc[(rate, 0.0), "low"] - at for rate in (learning_rate, base_rate))
    return (
        f"At this rate, {learning_rate:g}, low-frequency types gain {here:.3f} nats by λ = {weight_decay:g}; against the best rate "
        f"without decay, {base_rate:g}, it is {best:.3f}: the rest is decay mending the rate."
    )


def _range(values: pd.Series) -> str:
    return f"{values.min():+.2f} to {values.max():+.2f}"


def bin_unigrams(results: Results) -> pd.DataFrame:
    """Held-out loss of the unigram by cell and bin, mean over the types of the bin (nats): columns UNIGRAMS."""
    held = results.bins.query("split == 'held-out'")
    held = held.assign(cell=comparisons.split_rate(held["variant"])["name"], unigram=held["gain"] + held["loss"])
    return (
        held.groupby(["cell", "bin", "bin_low"], sort=False)[["n_types", "unigram"]]
        .mean()
        .reset_index()[UNIGRAMS]
        .round(4)
    )


def gains(frame: pd.DataFrame, unigrams: pd.DataFrame) -> pd.DataFrame:
    """Held-out gain over the unigram by bin, of the setting chosen in each cell with the rate, mean over seeds.

    `unigrams` is that of `bin_unigrams`. Columns cell, weight_decay, average_gain (over all tokens), bin, bin_low, n_types,
    unigram (its loss) and gain (mean over the bin's types), nats.
    """
    chosen = of_map(choices(frame, jointly=True))
    chosen = chosen.assign(average_gain=chosen["unigram"] - chosen["average"]).drop(columns=["unigram", "average"])
    setting = ["cell", "learning_rate", "weight_decay"]
    losses = of_map(frame).query("split == 'held-out'").groupby(setting)[bins_of(frame)].mean()
    losses = losses.rename_axis(columns="bin").stack().rename("loss").reset_index()
    found = chosen.merge(losses, on=setting).merge(unigrams, on=["cell", "bin"], validate="one_to_one")
    found = found.assign(gain=found["unigram"] - found["loss"]).sort_values(["average_gain", "bin_low"], kind="stable")
    columns = ["cell", "weight_decay", "average_gain", *UNIGRAMS[1:], "gain"]
    return found[columns].reset_index(drop=True).round(4)


def say_place(table: pd.DataFrame, label: str, average_gain: float, share: float) -> str:
    """Where a model lies on the map by its held-out gain over the unigram (nats), in one sentence.

    `share` is its gain of low-frequency types over that of high-frequency ones, which says how far down the counts it learnt.
    """
    cells = table.drop_duplicates("cell")
    nearest = cells.loc[(cells["average_gain"] - average_gain).abs().idxmin()]
    place = (
        "no model of use" if average_gain < USEFUL else f"most like {nearest['cell']} ({nearest['average_gain']:.2f})"
    )
    return (
        f"{label} gains {average_gain:.2f} nats over the unigram on held-out text, {place}; its low-frequency types gain "
        f"{share:.2f} times what its high-frequency ones do."
    )


#: Widths of the models whose cell is on the map, and of the paper's OpenELM-270M.
WIDTHS, PAPER_WIDTH = {"qwen2-tiny": 128, "qwen2-tiny-wide": 256, "qwen2-tiny-wider": 512}, 1280


def _on_widths(seeds: pd.DataFrame) -> pd.DataFrame:
    """The rows of low-frequency types on held-out text of the models in `WIDTHS`, in the cells that the wider ones have."""
    low = seeds[seeds["model"].isin(WIDTHS) & (seeds["split"] == "held-out") & (seeds["group"] == "low")]
    return low[low["cell"].isin(low[low["model"] != "qwen2-tiny"]["cell"])]


def by_width(seeds: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """Held-out change and forgone loss of low-frequency types against width: slope per doubling and value at PAPER_WIDTH.

    One least-squares line per seed in log2 of the width, a row per quantity: slope and predicted (nats), each with its
    Student t interval over seeds. Three widths of one depth: a line, whatever the truth is.
    """
    low, rows = _on_widths(seeds), []
    for name in ("change", "forgone"):
        lines = []
        for _, own in low.groupby("seed"):
            slope, at_0 = np.polyfit(np.log2(own["model"].map(WIDTHS).astype(float)), own[name], 1)
            lines.append((slope, at_0 + slope * np.log2(PAPER_WIDTH)))
        row: dict[str, object] = {"quantity": name}
        for what, values in zip(("slope", "predicted"), zip(*lines, strict=True), strict=True):
            row |= scale.interval_columns(what, pd.Series(values), confidence)
        rows.append(row)
    return pd.DataFrame(rows)


def say_width(seeds: pd.DataFrame, confidence: float = 0.95) -> str:
    """What width does to the change of low-frequency types' held-out loss, and whether it is a matter of rates, in one sentence."""
    row = by_width(seeds, confidence).set_index("quantity").loc["change"]
    beyond = np.log2(PAPER_WIDTH / max(WIDTHS.values()))
    sign = "grows" if row["slope_high"] < 0 else "shrinks" if row["slope_low"] > 0 else "does not reliably change"
    low = _on_widths(seeds)
    models = low.drop_duplicates("model").set_index("model").loc[list(WIDTHS)]
    bases, edge = models["base"], list(models.index[~models["bracketed"]])
    changes = low.groupby("model")["change"].mean().loc[list(WIDTHS)]
    in_order = changes.is_monotonic_increasing or changes.is_monotonic_decreasing
    order = (
        ". By a line through them"
        if in_order
        else ", in no order of width, so that a line through them rests on the last. By that line"
    )
    worse = " more" if bases.is_monotonic_increasing else ""
    rates = "each at a rate better than a smaller and a larger one"
    if edge:
        rates = f"each at the best rate tried, for {' and '.join(edge)} the smallest or largest: part of this may be their rates"
    return (
        f"At widths of {', '.join(map(str, WIDTHS.values()))} the held-out loss of low-frequency types changes from λ = 0 by "
        f"{', '.join(f'{c:+.3f}' for c in changes)} nats{order} what they gain {sign} with width: {row['slope']:+.3f} "
        f"nats of loss per doubling [{row['slope_low']:+.3f}, {row['slope_high']:+.3f} over seeds]; at OpenELM-270M's width of "
        f"{PAPER_WIDTH:,}, {beyond:.1f} doublings beyond what was run, it says {row['predicted']:+.2f} [{row['predicted_low']:+.2f}, "
        f"{row['predicted_high']:+.2f}]. Without decay the wider models lose{worse} on average ({', '.join(f'{b:.3f}' for b in bases)} "
        f"nats), {rates}."
    )


def say_others(seeds: pd.DataFrame, confidence: float = 0.95) -> list[str]:
    """What decay changes for models that are on no line of widths, deeper or of another architecture, a sentence each."""
    others = seeds[~seeds["model"].isin(WIDTHS) & (seeds["split"] == "held-out")]
    said = []
    for model, own in forgone(others, confidence).groupby("model", sort=False):
        low, high = (own.set_index("group").loc[group] for group in ("low", "high"))
        said.append(
            f"{model}, λ = {low['weight_decay']:g}: the held-out loss of low-frequency types changes by "
            f"{sentences.interval(*low[_CHANGE], unit=' nats')}, that of high-frequency ones by {sentences.interval(*high[_CHANGE])}"
        )
    return said


def say_drawn(drawn: pd.DataFrame, losses: pd.DataFrame, confidence: float = 0.95) -> list[str]:
    """What λ changes on held-out blocks drawn from all documents, beside the map's own blocks, which are the first ones.

    `drawn` and `losses` are tables of `read`; of each way to choose, λ alone or with the rate, a sentence over the models and
    cells that have the same choice, a λ above 0, in both.
    """
    said, choice = [], ["base_rate", "learning_rate", "weight_decay"]
    for jointly in (False, True):
        both = [forgone(by_seed(table, jointly), confidence).query("split == 'held-out'") for table in (drawn, losses)]
        here, there = (table[table["group"] == "low"].set_index(["model", "cell"]) for table in both)
        here = here[(here["weight_decay"] > 0) & (here[choice] == there.loc[here.index, choice]).all(axis=1)]
        changes = [
            f"{'' if model == 'qwen2-tiny' else f'{model}, '}{cell} {sentences.interval(*row[_CHANGE])} "
            f"(the map's {there.loc[(model, cell), 'change']:+.3f})"
            for (model, cell), row in here.iterrows()
        ]
        how = "rate and λ chosen together" if jointly else "λ chosen alone"
        said.append(
            f"on blocks drawn from all held-out documents, {how}, the loss of low-frequency types changes by, nats: {'; '.join(changes)}"
        )
    return said
