"""What small runs say of the paper's models: tables and sentences of `09_scale` on sizes that were tried, called rungs.

A rung is one model and variant of an experiment (`scale.rungs`). Losses and their changes are of training text, in nats;
intervals are Student's t over seeds, unknown with one seed.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from fairlm_utils import params
from fairlm_utils.analysis import metrics, scale, sentences
from fairlm_utils.analysis.claims import PAPER_FLOOR, PAPER_TABLE_1, paper_ratio
from fairlm_utils.analysis.results import Results, load_results
from fairlm_utils.files import PROJECT, RunError

#: Effects of λ told apart by what it changes, `effects`; the control's is named by its comparison with the tuned rate.
REALLOCATION, ADDED_BY_COUNT, ADDED_ALIKE = "re-allocation", "added loss by count", "added loss in all types alike"
HELP, UNDECIDED = "lower loss", "undecided"
#: Rank correlation of slope and size below which the slope is said to tend to fall: a word, not a test, for rungs are few.
_TENDS = -0.5
#: The panel whose losses the paper printed, and the factor that an interval spans at most if it says something.
_PUBLISHED, _WIDE = "openelm-270m-imdb", 2.0
_bracket = partial(sentences.interval, form="{:.2f}")


def ratios(rungs: Mapping[str, Results], confidence: float = 0.95) -> pd.DataFrame:
    """`scale.ratios` of every rung, with its name, the excess of λ = 0 and whether it is the λ `nearest` the paper's rise.

    Nearest in the logarithm of the balanced rise, among λ with a slope.
    """
    table = pd.concat(
        [scale.ratios(r, confidence).assign(rung=name, **_excess(r)) for name, r in rungs.items()], ignore_index=True
    )
    far = np.log(table["added_balanced"].where(table["added_balanced"] > 0) / scale.PAPER_RISE).abs()
    far = far.where(table["slope"].notna())
    return table.assign(nearest=far == far.groupby(table["rung"]).transform("min"))


def by_count(rungs: Mapping[str, Results], table: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """Loss added by bin at each rung's `nearest` λ of `ratios`, with the fitted power law: one row per rung and bin.

    Columns rung, weight_decay, bin_low, n_train (mean training count), mean (geometric, over seeds), low, high and `fitted`.
    Bins that gained no loss in some seed are left out, as fits leave them out.
    """
    frames = []
    for row in table[table["nearest"]].itertuples():
        added = scale.added_loss(rungs[row.rung])
        added = added[added["weight_decay"] == row.weight_decay]
        added = added[added.groupby("bin_low")["added"].transform("min") > 0]
        logs = metrics.over_seeds(added.assign(log=np.log(added["added"])), "log", confidence)
        known = added.drop_duplicates("bin_low").set_index("bin_low").loc[logs["bin_low"]]
        x, w = np.log(known["n_train"].to_numpy()), known["n_types"] / known["n_types"].sum()
        fitted = w.to_numpy() @ logs["mean"] - row.slope * (x - w.to_numpy() @ x)
        frames.append(
            logs[["weight_decay", "bin_low", "n_seeds"]].assign(
                rung=row.rung, n_train=np.exp(x), fitted=np.exp(fitted), **np.exp(logs[["mean", "low", "high"]])
            )
        )
    return pd.concat(frames, ignore_index=True)


def effects(rungs: Mapping[str, Results], weight_decay: float, confidence: float = 0.95) -> pd.DataFrame:
    """What λ changes in each rung, by how far its λ = 0 lies above the floor; one row per rung, rungs without this λ left out.

    Columns: rung, excess_average, n_seeds; changes of the `average`, of `low`- and `high`-frequency types and their difference
    `shift` (low − high), each with _low and _high; ratio and predicted of `scale.ratios`; and `effect`, by the intervals
    (by the means with one seed):

    - "re-allocation": low rises while high falls, or while the average's interval holds 0;
    - "lower loss": the average falls;
    - "added loss by count": low and high rise, low more; "added loss in all types alike": both rise, low not more;
    - "undecided": anything else.
    """
    rows = []
    for name, results in rungs.items():
        training = results.totals[results.totals["split"] == "training"]
        totals = metrics.change(training, "average_loss", weight_decay)
        if totals.empty:
            continue
        low, high = (metrics.class_change(results.classes, "training", c, weight_decay) for c in ("low", "high"))
        row: dict[str, Any] = {"rung": name, **_excess(results), "n_seeds": len(totals)}
        for column, values in (("average", totals), ("low", low), ("high", high), ("shift", low - high)):
            row |= scale.interval_columns(column, values, confidence)
        ratio = scale.ratios(results, confidence).set_index("weight_decay").loc[weight_decay, ["ratio", "predicted"]]
        rows.append({**row, **ratio, "effect": _effect(row)})
    return pd.DataFrame(rows).sort_values("excess_average", ignore_index=True) if rows else pd.DataFrame()


def eras(new: Results, old: Results, confidence: float = 0.95) -> pd.DataFrame:
    """Balanced loss that λ adds where all parameters decay (`old`) and where matrices alone do (`new`), one row per common λ.

    Columns weight_decay, n_seeds, all and matrices (means over common seeds), `left` = the second over the first, mean over
    seeds with left_low and left_high.
    """
    both = pd.merge(*(scale.balanced_rise(r) for r in (old, new)), on=["weight_decay", "seed"])
    rows = []
    for w, seeds in both.groupby("weight_decay"):
        left = scale.mean_and_interval(seeds["rise_y"] / seeds["rise_x"], confidence)
        rows.append((w, len(seeds), seeds["rise_x"].mean(), seeds["rise_y"].mean(), *left))
    return pd.DataFrame(rows, columns=["weight_decay", "n_seeds", "all", "matrices", "left", "left_low", "left_high"])


def effects_of(folder: str, memorised: str, weight_decay: float, confidence: float = 0.95) -> tuple[pd.DataFrame, str]:
    """`effects` of the variants in `folder` and, on the same counts, of the results `memorised`, with what they say."""
    if not Path(folder).exists():
        return pd.DataFrame(), _not_run(folder)
    results, end = load_results(folder), load_results(memorised)
    rungs = {**scale.rungs({"": results}), **scale.rungs({Path(memorised).name: end})}
    table = effects(rungs, weight_decay, confidence)
    missing = [name for name in rungs if table.empty or name not in set(table["rung"])]
    said = f" Not run at this λ yet: {', '.join(missing)}." if missing else ""
    return table, say_effects(table, results, weight_decay) + said


def eras_of(folder: str, memorised: str, confidence: float = 0.95) -> tuple[pd.DataFrame, str]:
    """`eras` of variant "matrices" in `folder` beside the results `memorised`, with what they say; empty if it was not run."""
    new = scale.rungs({"": load_results(folder)}) if Path(folder).exists() else {}
    if "matrices" not in new:
        return pd.DataFrame(), _not_run(folder)
    (old,) = scale.rungs({"": load_results(memorised)}).values()
    table = eras(new["matrices"], old, confidence)
    return table, say_eras(table)


def moved(variants: Mapping[str, Results], base: Results, confidence: float = 0.95) -> pd.DataFrame:
    """Slopes of `variants` beside that of `base` on the same counts: does the slope move with what they changed?

    Taken by `scale.rung_slopes`, memorised variants alone. Columns rung, n_seeds, slope (mean over seeds), `moved` (from the slope
    of the same seed of `base`) with moved_low and moved_high; one row per variant with a slope.
    """
    found = scale.rung_slopes(variants)
    of_base = scale.rung_slopes({"": base}).set_index("seed")["slope"]
    pairs = found.assign(change=found["slope"] - found["seed"].map(of_base))
    pairs = pairs[pairs["memorised"] & pairs["change"].notna()]
    rows = [
        (rung, len(own), own["slope"].mean(), *scale.mean_and_interval(own["change"], confidence))
        for rung, own in pairs.groupby("rung", sort=False)
    ]
    return pd.DataFrame(rows, columns=["rung", "n_seeds", "slope", "moved", "moved_low", "moved_high"])


def moved_of(folder: str, memorised: str, confidence: float = 0.95) -> tuple[pd.DataFrame, str]:
    """`moved` of the variants in `folder` from the results `memorised`, with what they say."""
    if not Path(folder).exists():
        return pd.DataFrame(), _not_run(folder)
    (base,) = scale.rungs({"": load_results(memorised)}).values()
    variants = scale.rungs({"": load_results(folder)})
    table, slope = moved(variants, base, confidence), scale.rung_slopes({"": base})["slope"].mean()
    said = f"On the counts of {Path(memorised).name}, whose slope is {slope:.2f}, it is {say_moved(table, variants)}"
    return table, said


def predictions(
    slopes: pd.DataFrame, counts: pd.DataFrame, files: Sequence[Path], confidence: float = 0.95
) -> pd.DataFrame:
    """Δ token-balanced / Δ average of each panel, predicted from the memorised rungs of `scale.rung_slopes`; one row per panel.

    `counts` are those of `results/paper-layout`, `files` the panels' experiment files, whose corpus, layout and context choose
    the counts. Where a panel's tokenizer may have been learnt from either text, `ratio` and `bent` are geometric means of both
    and their intervals hold both. Columns: panel, ratio, low, high, bent, bent_low, bent_high, slope, slope_low, slope_high, n_rungs.
    """
    rows = []
    for file in files:
        p = params.expand(params.read(file))[0]
        chosen = {"corpus": p.corpus, "layout": "packed" if p.packing else "first", "context": p.context}
        own = counts[np.logical_and.reduce([counts[k] == v for k, v in chosen.items()])]
        if own.empty:
            raise RunError(
                f"{file}: results/paper-layout has no counts of {chosen}; results/paper-layout/export.py makes them"
            )
        found = pd.DataFrame(
            scale.predict_ratio(slopes[slopes["memorised"]], c["n_train"], c["n_types"], confidence)
            for _, c in own.groupby("tokenizer_reviews")
        )
        row = {"panel": p.experiment, **found.iloc[0]}
        for ratio, low, high in scale.LAWS.values():
            row |= {ratio: np.exp(np.log(found[ratio]).mean()), low: found[low].min(), high: found[high].max()}
        rows.append(row)
    return pd.DataFrame(rows).astype({"n_rungs": int})


def panel_files() -> list[Path]:
    """Experiment files of the paper's panels, OpenELM-270M on IMDB first."""
    return sorted((PROJECT / "params" / "paper").glob("*.yaml"), key=lambda f: (f.stem != _PUBLISHED, f.stem))


def by_size(rungs: Mapping[str, Results], slopes: pd.DataFrame) -> pd.DataFrame:
    """Slopes below and beyond a count of `scale.BEND` by the size of a rung: is the law the same at every size?

    `slopes` of `scale.rung_slopes`, not memorised rungs too. Columns rung, memorised, n_targets (training targets), below and beyond
    (means over seeds); one row per rung with slopes, in the order of sizes.
    """
    by_rung = slopes[slopes["slope"].notna()].groupby("rung", sort=False, as_index=False)
    table = by_rung.agg({"memorised": "first", "below": "mean", "beyond": "mean"})
    sizes = table["rung"].map(lambda name: int(rungs[name].totals["n_train_tokens"].iloc[0]))
    return table.assign(n_targets=sizes).sort_values("n_targets", ignore_index=True)


def say_by_size(sizes: pd.DataFrame, counts: pd.DataFrame) -> str:
    """Whether the slope below the bend falls with size, and the ratio on the panel's `counts` (n_train, n_types) if it goes on to 0."""
    flat = scale.bent_ratio(counts["n_train"], 0.0, sizes["beyond"].mean(), counts["n_types"])
    small, large = sizes.iloc[0], sizes.iloc[-1]
    rank, p = _trend(sizes)
    unfinished = "" if large["memorised"] else ", not memorised"
    paper = paper_ratio()[0]
    same = "tends to weaken with size" if _falls(sizes) else "is not seen to weaken with size"
    return (
        f"The law {same}. Below a count of {scale.BEND} its slope goes from {small['below']:.2f} at "
        f"{small['n_targets']:,} targets to {large['below']:.2f} at {large['n_targets']:,}{unfinished} (rank correlation with the number "
        f"of targets {rank:+.2f} over {len(sizes)} rungs, {'' if p < 0.05 else 'not '}significant, p = {p:.2f}); beyond, it "
        f"lies between {sizes['beyond'].min():.2f} and {sizes['beyond'].max():.2f}. If it were 0 below at the paper's size, its "
        f"counts would give a ratio of {flat:.1f}, and the paper's {paper:.1f} would need {'more' if flat < paper else 'no more'} "
        "than counts."
    )


def _trend(sizes: pd.DataFrame) -> tuple[float, float]:
    """Rank correlation of the slope below the bend with the number of targets (`by_size`), and its p-value."""
    found = stats.spearmanr(sizes["n_targets"], sizes["below"])
    return float(found.statistic), float(found.pvalue)


def _falls(sizes: pd.DataFrame) -> bool:
    return _trend(sizes)[0] < _TENDS


def left_out(slopes: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """Each memorised rung's slope beside what the other rungs predict of it: rung, slope, slope_low, slope_high, within.

    Raises what `scale.predict_ratio` raises where fewer than two others are left.
    """
    known = slopes[slopes["memorised"] & slopes["slope"].notna()]
    rows = []
    for rung, own in known.groupby("rung", sort=False):
        found = scale.predict_ratio(known[known["rung"] != rung], [1], [1], confidence)
        slope, low, high = own["slope"].mean(), found["slope_low"], found["slope_high"]
        rows.append((rung, slope, low, high, low <= slope <= high))
    return pd.DataFrame(rows, columns=["rung", "slope", "slope_low", "slope_high", "within"])


def say_by_count(rungs: Mapping[str, Results], table: pd.DataFrame, confidence: float = 0.95) -> str:
    """Where added loss is a power of the count, and where it flattens, at each rung's `nearest` λ of `ratios`."""
    fits, flat, unknown, steeper = [], [], [], 0
    for row in table[table["nearest"]].itertuples():
        local = scale.local_slopes(rungs[row.rung], confidence)
        local = local[local["weight_decay"] == row.weight_decay]
        below = local["bin_low"] < scale.BEND
        rare, frequent = local.loc[below, "mean"].mean(), local.loc[~below, "mean"].mean()
        steeper += frequent > rare
        fit = _bracket(row.slope, row.slope_low, row.slope_high)
        beyond = f", {frequent:.2f} beyond" if frequent == frequent else ""
        fits.append(f"{row.rung} {fit}, R² {row.r_squared:.2f} ({rare:.2f} below a count of {scale.BEND}{beyond})")
        unknown += [row.rung] * (row.n_seeds == 1)
        flat += [f"{row.rung} from n_v {r.bin} ({r.mean:.2f})" for r in local[local["flat"]].itertuples()]
    no_interval = f"; without an interval, of one seed: {', '.join(unknown)}" if unknown else ""
    bends = ": on counts wider than here one slope for all gives too small a ratio" if 2 * steeper > len(fits) else ""
    fitting = (table.loc[table["nearest"], "r_squared"] >= 0.9).sum()
    return (
        f"At the λ whose balanced rise is nearest the paper's {scale.PAPER_RISE:g} nats the added loss falls nearly as a power of the "
        f"count (R² ≥ 0.9) in {fitting} of {len(fits)} rungs, "
        f"with slopes of {'; '.join(fits)}. "
        "It is flatter than the fit, by the interval of the slope between neighbouring bins, "
        f"in {', '.join(flat) or 'none'}{no_interval}. Beyond a count of {scale.BEND} it falls faster than below in {steeper} of "
        f"{len(fits)}{bends}."
    )


def say_ratios(table: pd.DataFrame) -> str:
    """How far measured ratios lie from those that the counts give at the fitted slope, and how the slope moves with λ."""
    known = table.dropna(subset=["ratio", "predicted"]).assign(off=lambda f: f["ratio"] / f["predicted"] - 1)
    worst = known.loc[known["off"].abs().idxmax()]
    moved = []
    for rung, own in known[known["added_balanced"] <= 1].groupby("rung", sort=False):
        a, b = (own.sort_values("weight_decay").iloc[i] for i in (0, -1))
        moved.append(
            f"{rung} {a['slope']:.2f} at λ = {a['weight_decay']:g} and {b['slope']:.2f} at {b['weight_decay']:g}"
        )
    return (
        f"In {len(known)} pairs of rung and λ the measured ratio differs from what a power law gives on the rung's own counts by "
        f"{known['off'].abs().median():.1%} in the median and {worst['off']:+.0%} at most ({worst['rung']}, λ = "
        f"{worst['weight_decay']:g}: {worst['ratio']:.2f} measured, {worst['predicted']:.2f} by counts); it is the larger in "
        f"{(known['off'] > 0).sum()}. The ratio is arithmetic once the law holds: this tests the law. Its slope is no constant, up to a "
        f"balanced rise of 1 nat: {'; '.join(moved)}."
    )


def say_effects(table: pd.DataFrame, results: Results, weight_decay: float) -> str:
    """Which effect is seen where, what the control says, and on which side the paper's Table 1 lies."""
    if table.empty:
        return f"No run at λ = {weight_decay:g} yet."
    single = " (one seed: signs of means, no intervals)"
    seen = [
        f"{r.rung}, {r.excess_average:.3g} nats above the floor: {r.effect}, average {r.average:+.3f}, low {r.low:+.3f}, high {r.high:+.3f}"
        f"{single if r.n_seeds == 1 else f' ({r.n_seeds} seeds)'}"
        for r in table.itertuples()
    ]
    return (
        f"λ 0 → {weight_decay:g}, nats: {'; '.join(seen)}. {_say_reallocation(table)} {_say_control(table, results)}"
        f"{_say_paper_side(table)}"
    )


def say_eras(table: pd.DataFrame) -> str:
    """How much of what λ adds is left where gains of norms do not decay."""
    parts = [
        f"{_bracket(r.left, r.left_low, r.left_high, form='{:.0%}')} at λ = {r.weight_decay:g} ({r.all:.3f} → {r.matrices:.3f} nats)"
        for r in table.itertuples()
    ]
    return f"Of the balanced loss that λ adds where all parameters decay, today's Trainer leaves {' and '.join(parts)}."


def say_moved(table: pd.DataFrame, variants: Mapping[str, Results]) -> str:
    """Each variant's slope and its change (`moved`), and the variants that have none."""
    parts = [
        f"{r.rung} {r.slope:.2f}, {_bracket(r.moved, r.moved_low, r.moved_high, form='{:+.2f}')}"
        for r in table.itertuples()
    ]
    said = f"{'; '.join(parts) or 'not known in any variant'} (and its change, paired by seed)."
    without = [f"{n} ({_excess(r)['excess_average']:.3f})" for n, r in variants.items() if n not in set(table["rung"])]
    if not without:
        return said
    why = "Without a slope, for λ = 0 is not memorised (its excess in nats) or no λ raises the loss enough"
    return f"{said} {why}: {', '.join(without)}."


def say_predictions(found: pd.DataFrame, slopes: pd.DataFrame, confidence: float = 0.95) -> str:
    """The predicted slope and ratio of OpenELM-270M on IMDB, how wide their intervals are, and whether rungs predict each other."""
    row = found.set_index("panel").loc[_PUBLISHED]
    known = slopes[slopes["slope"].notna()]
    used = known[known["memorised"]].groupby("rung")["slope"].mean()
    others = sorted(set(known["rung"]) - set(used.index))
    widths = [row[high] / row[low] for _, low, high in scale.LAWS.values()]
    pinned = f"With two slopes for each rung, below and beyond a count of {scale.BEND}, it should be "
    pinned += f"{_bracket(row['bent'], row['bent_low'], row['bent_high'])}. "
    pinned += f"The intervals span factors of {widths[0]:.1f} and {widths[1]:.1f}"
    pinned += ": small runs at hand do not pin the ratio down yet." if min(widths) > _WIDE else "."
    tested = left_out(slopes, confidence)["within"] if len(used) > 2 else pd.Series(dtype=bool)
    return (
        f"{len(used)} memorised rungs have slopes of {used.min():.2f} to {used.max():.2f} at the paper's balanced rise"
        f"{' (left out, not memorised: ' + ', '.join(others) + ')' if others else ''}. One run at another size should have a slope of "
        f"{_bracket(row['slope'], row['slope_low'], row['slope_high'])} and, on the counts of OpenELM-270M's panel, a ratio of "
        f"{_bracket(row['ratio'], row['low'], row['high'])}. {pinned}"
        + (
            f" Of {len(tested)} rungs, {tested.sum()} have a slope in the interval of the others."
            if len(tested)
            else ""
        )
    )


def say_published(found: pd.DataFrame, file: Path = PROJECT / "results" / "scale" / "predictions.csv") -> str:
    """When the predictions were published, and whether these are those."""
    command = "python results/scale/export.py"
    if not file.exists():
        return f"Not published yet: {command}."
    known = pd.read_csv(file)
    columns = [column for law in scale.LAWS.values() for column in law]
    now, then = (f.set_index("panel")[columns] for f in (found, known))
    same = now.index.equals(then.index) and np.allclose(now, then, rtol=1e-3)
    return f"Published on {known['made'].max()}, results/scale/predictions.csv: " + (
        "these numbers." if same else f"other numbers, of other rungs ({command} writes these)."
    )


def say_refuted(found: pd.DataFrame) -> str:
    """Which measured values would lie outside the predictions."""
    parts = [
        f"{r.panel} below {r.low:.2f} or above {r.high:.2f} (two slopes: {r.bent_low:.2f}, {r.bent_high:.2f})"
        for r in found.itertuples()
    ]
    row, (near, far) = found.iloc[0], scale.COMPARABLE_RISE
    return (
        f"Refuted by a ratio Δ token-balanced / Δ average, λ 0 → 1, of {'; '.join(parts)}; by a slope by count below "
        f"{row['slope_low']:.2f} or above {row['slope_high']:.2f} in any of them. A run tests this if its λ = 0 ends within "
        f"{scale.MEMORISED:g} nats of the floor and λ = 1 raises its balanced loss by {near:g} to {far:g} nats. `make panel "
        "PARAMS=params/paper/PANEL.yaml` measures the ratio and prints it beside the prediction."
    )


def verdict(found: pd.DataFrame, sizes: pd.DataFrame) -> str:
    """The answer in a few sentences: what the small runs' law makes of the paper's pair of numbers, and what weakens it (`by_size`)."""
    doubt = (
        " What weakens it: the slope is not constant; it tends to fall as texts grow, or with what grows beside them."
        if _falls(sizes)
        else ""
    )
    row = found.set_index("panel").loc[_PUBLISHED]
    paper, least, most = paper_ratio()
    reached = all(row[low] <= most and row[high] >= least for _, low, high in scale.LAWS.values())
    weak = "the interval is so wide that this says little, and " if row["high"] > _WIDE * row["low"] else ""
    return (
        f"The law that small runs follow gives, on the paper's counts, a balanced loss that rises {row['ratio']:.1f} "
        f"[{row['low']:.1f}, {row['high']:.1f}] times as much as the average, or {row['bent']:.1f} [{row['bent_low']:.1f}, "
        f"{row['bent_high']:.1f}] with another slope beyond a count of {scale.BEND}; the paper's Table 1 has {paper:.1f} "
        f"[{least:.1f}, {most:.1f}], rounding considered. "
        + (
            f"So its “flat” average may need no other explanation than wide counts; but {weak}its number was known beforehand; the test "
            "is a run of a panel whose numbers are unknown."
            if reached
            else "So the law does not account for it."
        )
        + doubt
    )


def _not_run(folder: str) -> str:
    return f"Not run yet: make results PARAMS=params/{Path(folder).name}.yaml."


def _excess(results: Results) -> dict[str, float]:
    return scale.excess(results)[["excess_average", "excess_balanced"]].iloc[0].to_dict()


def _effect(row: Mapping[str, Any]) -> str:
    sign = {}
    for column in ("average", "low", "high", "shift"):
        mean, low, high = (row[column + end] for end in ("", "_low", "_high"))
        sign[column] = np.sign(mean) if low != low else float(low > 0) - float(high < 0)
    if sign["low"] > 0 and (sign["high"] < 0 or sign["average"] == 0):
        return REALLOCATION
    if sign["average"] < 0:
        return HELP
    if sign["low"] > 0 and sign["high"] > 0:
        return ADDED_BY_COUNT if sign["shift"] > 0 else ADDED_ALIKE
    return UNDECIDED


def _say_reallocation(table: pd.DataFrame) -> str:
    seen = table[table["effect"] == REALLOCATION]
    if seen.empty:
        return "Re-allocation, rare types paying while frequent ones gain or the average stays, is established in none of these."
    return f"Re-allocation is seen from {seen['excess_average'].min():.3g} nats above the floor ({', '.join(seen['rung'])})."


def _say_control(table: pd.DataFrame, results: Results) -> str:
    """Pairs of variants that differ in the learning rate alone: the higher one is the control."""
    own = {n: {"lr": v["learning_rate"], **v} for n, v in results.params.get("variants", {}).items() if "steps" in v}
    known = table.set_index("rung")
    said = []
    for tuned, control in itertools.permutations([name for name in own if name in known.index], 2):
        if own[tuned]["steps"] == own[control]["steps"] and own[tuned]["lr"] < own[control]["lr"]:
            a, b = known.loc[tuned], known.loc[control]
            helps = "helps" if b["effect"] == HELP and a["effect"] != HELP else "is not seen to help"
            said.append(
                f"The control: λ changes the average by {b['average']:+.3f} in {control} and by {a['average']:+.3f} in {tuned}; "
                f"it {helps} the optimiser at the higher rate alone. "
            )
    return "".join(said)


def _say_paper_side(table: pd.DataFrame) -> str:
    above = PAPER_TABLE_1["average_loss"].iloc[0] - PAPER_FLOOR["average_loss"]
    near = table.iloc[np.log(table["excess_average"] / above).abs().argmin()]
    ours = f"{near['rung']} ({near['excess_average']:.3f}): {near['effect']}, balanced {near['ratio']:.2f} times as much as average"
    average = PAPER_TABLE_1["average_loss"].diff().iloc[-1]
    side = "memorised" if above <= scale.MEMORISED else "not memorised"
    follows = (
        "So its Table 1 most likely lies where λ adds loss by count: frequent types do not gain, and an average “stays” (it rose by "
        f"{average:.3f} nats) where counts are wide, not because capacity moves from rare types to frequent ones."
        if near["effect"] == ADDED_BY_COUNT and above <= scale.MEMORISED
        else "So added loss by count does not explain its Table 1."
    )
    if (table["excess_average"] <= scale.MEMORISED).all():
        follows = "What λ does where a text is not memorised is not measured yet."
    return f"The paper's λ = 0 lies {above:.3f} nats above its floor, {side}; nearest to it here is {ours}. {follows}"
