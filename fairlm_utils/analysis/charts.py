"""Pictures: functions of tidy, already aggregated tables that return an Altair chart.

Tables come from `metrics.over_seeds`: their columns `mean`, `low`, `high` are the mean over seeds and its Student-t interval.
λ is weight decay; losses are in nats.
"""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from fairlm_utils.analysis.scale import BEND, LAWS
from fairlm_utils.analysis.sentences import capital
from fairlm_utils.analysis.theme import HEIGHT, WEIGHT_DECAY_COLOURS, WIDTH, weight_decay_colour
from fairlm_utils.frequency import SPLITS

#: Lines that no model draws (`metrics.baselines`), by their dashes.
BASELINE_DASHES = {"floor": [2, 2], "unigram": [6, 4], "uniform guess": [10, 3, 2, 3]}
CLASS_COLOURS = {"low": "#d55e00", "high": "#0072b2"}
MEASURE_COLOURS = {"token-balanced loss": "#d55e00", "average loss": "#0072b2"}
#: What a remedy acts on (`tradeoffs.kind_of_remedy`), in colours of Okabe and Ito.
REMEDY_COLOURS = {
    "reference": "#000000",
    "which parameters decay": "#0072b2",
    "decay by row": "#009e73",
    "loss": "#d55e00",
    "loss and decay by row": "#cc79a7",
    "loss and which decay": "#e69f00",
    "optimiser": "#f0e442",
    "other regulariser": "#56b4e9",
}
#: An axis of shares, or of anything else in [0, 1].
_SHARE: dict[str, Any] = {"axis": alt.Axis(format="%"), "scale": alt.Scale(domain=[0, 1])}


def _category(channel: Callable[..., Any], field: str, values: Sequence[str] | dict[str, Any], **options: Any) -> Any:
    """A channel by a category whose `values` have this order and, in a dictionary, these colours, shapes or dashes."""
    drawn: dict[str, Any] = {"range": list(values.values())} if isinstance(values, dict) else {}
    return channel(f"{field}:N", sort=list(values), scale=alt.Scale(domain=list(values), **drawn), **options)


def _numbers(format: str, *fields: str) -> list[alt.Tooltip]:
    return [alt.Tooltip(f"{field}:Q", format=format) for field in fields]


def _by_weight_decay(
    frame: pd.DataFrame, colours: Callable[[float], str] = weight_decay_colour
) -> tuple[alt.Color, alt.Parameter, Any]:
    """Colour by λ, a selection bound to its legend, and the opacity that follows it."""
    of_labels = {f"{v:g}": colours(v) for v in sorted(frame["weight_decay"].unique())}
    colour = _category(alt.Color, "λ", of_labels, title="weight decay λ")
    chosen = alt.selection_point(fields=["λ"], bind="legend", name="chosen")
    return colour, chosen, alt.condition(chosen, alt.value(1.0), alt.value(0.12))


def _labels(frame: pd.DataFrame) -> list[str]:
    """The values of λ in a table as text, in their order."""
    return [f"{v:g}" for v in sorted(frame["weight_decay"].unique())]


def _labelled(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(λ=frame["weight_decay"].map("{:g}".format))


def _bins(frame: pd.DataFrame) -> list[str]:
    """The frequency bins of a table, rarest first."""
    return frame.sort_values("bin_low")["bin"].unique().tolist()


def _facets(frame: pd.DataFrame) -> dict[str, Any]:
    """Columns for the splits, training first, and rows for the regimes, or the models if there are several."""
    present = [s for s in SPLITS if s in set(frame.get("split", []))]
    facets: dict[str, Any] = {}
    if present:
        facets["column"] = alt.Column("split:N", sort=present, title=None)
    for name in ("regime", "variant", "model"):
        if name in frame and frame[name].nunique() > 1:
            facets["row"] = alt.Row(f"{name}:N", title=None, sort=frame[name].unique().tolist())
            break
    return facets


def _panels(layers: list[Any], frame: pd.DataFrame, title: str, description: str) -> Any:
    """Layers of a table in a panel per split and regime, losses of each on a scale of its own."""
    chart = alt.layer(*layers).properties(width=WIDTH, height=HEIGHT, data=frame)
    if facets := _facets(frame):
        chart = chart.facet(**facets).resolve_scale(x="shared", y="independent")
    return chart.properties(title=title, description=description)


def _interval_over_seeds(base: alt.Chart) -> alt.Chart:
    """Bars from `low` to `high`; what lies below 0, impossible for the quantities drawn, is cut off."""
    return base.mark_rule(strokeWidth=1.5, clip=True).encode(y="low:Q", y2="high:Q")


def _y(title: str) -> alt.Y:
    return alt.Y("mean:Q", title=title, scale=alt.Scale(domainMin=0))


def _zero(**at: Any) -> alt.Chart:
    """A rule where nothing changes."""
    return alt.Chart().mark_rule(color="#888888", strokeDash=[3, 3]).encode(**at)


def _beside(groups: Sequence[str], field: str) -> alt.XOffset:
    """Groups a few pixels apart at the same x, so that no interval hides another."""
    return alt.XOffset(f"{field}:N", sort=list(groups), scale=alt.Scale(paddingOuter=1))


def _statistics(frame: pd.DataFrame) -> list[alt.Tooltip]:
    counts = {"n_types": "types", "n_seeds": "seeds"}
    titles = {"mean": "mean over seeds", "low": "interval from", "high": "to"}
    return [
        *(alt.Tooltip(f"{k}:Q", title=v, format=".4f") for k, v in titles.items()),
        *(alt.Tooltip(f"{k}:Q", title=v, format=",") for k, v in counts.items() if k in frame),
    ]


def _against_weight_decay(
    frame: pd.DataFrame,
    group: str,
    y: alt.Y,
    title: str,
    of: str,
    chance: float | None = None,
    below: Sequence[alt.Chart] = (),
) -> alt.Chart:
    """One curve per group against λ over layers `below`; λ on evenly spaced positions, since 0 has no logarithm.

    `chance` is drawn on held-out text, the only one whose losses are near it.
    """
    frame, legend = _labelled(frame), group.replace("_", " ")
    colours = CLASS_COLOURS if group == "frequency_class" else MEASURE_COLOURS
    x = alt.X("λ:O", sort=_labels(frame), title="weight decay λ (evenly spaced)", axis=alt.Axis(labelAngle=0))
    base = alt.Chart().encode(
        x=x,
        color=_category(alt.Color, group, colours, title=legend),
        xOffset=_beside(list(colours), group),
        tooltip=["λ", alt.Tooltip(f"{group}:N"), *_statistics(frame)],
    )
    line = base.mark_line(strokeWidth=2).encode(y=y)
    shape = _category(alt.Shape, group, list(colours), title=legend)
    points = base.mark_point(filled=True, size=60, opacity=1).encode(y="mean:Q", shape=shape)
    keys = [k for k in ("model", "split", "λ") if k in frame]
    guess = frame.loc[frame["split"] == "held-out", keys].assign(mean=chance, baseline="uniform guess")
    lines = None if chance is None else guess.drop_duplicates()
    drawn, layers = _beside_baselines(frame, lines, x, [*below, line, _interval_over_seeds(base), points])
    return _panels(layers, drawn, title, f"Line chart of the {of}, with intervals over seeds")


def figure_1(classes: pd.DataFrame, chance: float | None = None) -> alt.Chart:
    """Figure 1: loss (y, nats, mean over the types of a class) against λ (x), low- and high-frequency types.

    `classes`: weight_decay, split, frequency_class and the columns of `over_seeds`; model if there are several. Dashed on
    held-out text is `chance`, log V.
    """
    title = "Loss of low- and high-frequency types against weight decay"
    of = "mean loss of low-frequency and of high-frequency token types against weight decay, training and held-out text"
    return _against_weight_decay(classes, "frequency_class", _y("loss (nats, mean over types)"), title, of, chance)


def figure_3(totals: pd.DataFrame, chance: float | None = None) -> alt.Chart:
    """Figure 3: average and token-balanced loss (y, nats) against λ (x), `chance` as in `figure_1`. Column `measure` names the two."""
    title = "Average and token-balanced loss against weight decay"
    of = "average loss over tokens and of the token-balanced loss over types against weight decay, training and held-out text"
    return _against_weight_decay(totals, "measure", _y("loss (nats)"), title, of, chance)


def change_by_weight_decay(changes: pd.DataFrame) -> alt.Chart:
    """Change of the loss from λ = 0 (y, nats) against λ (x) of low- and high-frequency types, with intervals over seeds.

    `changes`: weight_decay, split, frequency_class and the columns of `comparisons.paired`; regime if there are several. Above
    the line at 0 weight decay harms, below it helps.
    """
    y = alt.Y("mean:Q", title="change of the loss from λ = 0 (nats)")
    of, title = "change of the loss from weight decay 0 against weight decay", "What weight decay changes"
    return _against_weight_decay(changes, "frequency_class", y, title, of, below=[_zero(y=alt.datum(0))])


def _beside_baselines(
    frame: pd.DataFrame, baselines: pd.DataFrame | None, x: alt.X, curves: list[Any]
) -> tuple[pd.DataFrame, list[Any]]:
    """A table with the rows of its baselines, and its layers, each of its own rows: dashed grey lines over the curves."""
    if baselines is None or baselines.empty:
        return frame, curves
    dashes = {name: dash for name, dash in BASELINE_DASHES.items() if name in set(baselines["baseline"])}
    legend = alt.Legend(symbolType="stroke", symbolSize=600, symbolStrokeColor="#555555", symbolStrokeWidth=1.8)
    line = (
        alt.Chart()
        .transform_filter("isValid(datum.baseline)")
        .mark_line(color="#555555", strokeWidth=1.8)
        .encode(
            x=x,
            y="mean:Q",
            strokeDash=_category(alt.StrokeDash, "baseline", dashes, title="without a model", legend=legend),
            tooltip=["baseline:N", alt.Tooltip("mean:Q", title="loss", format=".4f")],
        )
    )
    own = [curve.transform_filter("!isValid(datum.baseline)") for curve in curves]
    return pd.concat([frame, baselines], ignore_index=True), [*own, line]


def by_bin(
    bins: pd.DataFrame, y_title: str = "loss (nats, mean over types)", baselines: pd.DataFrame | None = None
) -> alt.Chart:
    """Figures 4 and 5: a value (y, `y_title`) by frequency bin of the training count n_v (x), one curve per λ.

    `bins`: weight_decay, split, bin, bin_low and the columns of `over_seeds`. A click in the legend shows one λ. Dashed are
    the `baselines` of a loss, as `metrics.baselines` makes them.
    """
    frame = _labelled(bins)
    colour, chosen, opacity = _by_weight_decay(frame)
    x = alt.X(
        "bin:O", sort=_bins(frame), title="training count n_v of the type (powers of 3)", axis=alt.Axis(labelAngle=-40)
    )
    base = alt.Chart().encode(
        x=x,
        xOffset=_beside(_labels(frame), "λ"),
        color=colour,
        opacity=opacity,
        tooltip=[alt.Tooltip("bin:O", title="training count"), "λ", *_statistics(frame)],
    )
    line = base.mark_line(strokeWidth=2).encode(y=_y(y_title))
    points = base.mark_point(filled=True, size=45).encode(y="mean:Q").add_params(chosen)
    name = y_title.split(" (")[0]
    drawn, layers = _beside_baselines(frame, baselines, x, [line, _interval_over_seeds(base), points])
    said = ", beside floor, unigram and uniform guess" if len(layers) > 3 else ""
    description = f"Line chart of the {name} by frequency bin of the token type, one curve per weight decay, with intervals over seeds"
    return _panels(layers, drawn, f"{name.capitalize()} by frequency of the type", f"{description}{said}")


def regime_map(cells: pd.DataFrame, value: str, panel: str, title: str, subtitle: str) -> alt.FacetChart:
    """A tile per amount of text (y) and epochs (x), coloured by `value` (nats), one panel per value of the column `panel`.

    `cells`: targets and epochs of `forgone.size_and_epochs`, `value` with its interval, weight_decay, `useful` and `panel`.
    Orange is a cost, blue a gain; a cell whose model is no better than frequency alone is grey.
    """
    sizes, panels = [str(t) for t in cells["targets"].cat.categories], list(dict.fromkeys(cells[panel]))
    every = pd.MultiIndex.from_product(
        [panels, sizes, sorted(cells["epochs"].unique())], names=[panel, "targets", "epochs"]
    )
    drawn = cells.astype({"targets": str}).set_index(every.names).reindex(every).reset_index()
    known = drawn[value].notna()
    drawn["said"] = drawn[value].map("{:+z.2f}".format).where(known, "not run")
    drawn["chosen"] = drawn["weight_decay"].map("λ = {:g}".format).where(known, "")
    drawn["useful"] = drawn["useful"].eq(True)
    most = float(np.nan_to_num(drawn.loc[drawn["useful"], value].abs().max())) or 1.0  # none is useful, or all are 0
    base = alt.Chart(drawn).encode(
        x=alt.X("epochs:O", title="epochs", axis=alt.Axis(labelAngle=0)),
        y=alt.Y("targets:O", title="targets in the text", sort=sizes[::-1]),
        tooltip=["cell:N", *_numbers("+.3f", value, f"{value}_low", f"{value}_high"), "weight_decay:Q"],
    )
    scale = alt.Scale(domain=[-most, 0, most], range=["#0072b2", "#ffffff", "#d55e00"], interpolate="rgb")
    colour = alt.Color(f"{value}:Q", scale=scale, title="nats")
    tiles = (
        base.transform_filter(f"isValid(datum['{value}'])")
        .mark_rect(stroke="#bbbbbb")
        .encode(color=alt.condition("datum.useful", colour, alt.value("#dddddd")))
    )
    dark = f"datum.useful && abs(datum['{value}']) > {0.7 * most}"
    ink = alt.condition(dark, alt.value("#ffffff"), alt.value("#202020"))
    numbers = base.mark_text(fontSize=13, dy=-5).encode(text="said:N", color=ink)
    chosen = base.mark_text(fontSize=10, dy=10).encode(text="chosen:N", color=ink)
    return (
        alt.layer(tiles, numbers, chosen)
        .properties(width=alt.Step(64), height=alt.Step(44))
        .facet(column=alt.Column(f"{panel}:N", title=None, sort=panels, header=alt.Header(labelFontSize=13)))
        .properties(
            title=alt.Title(title, subtitle=subtitle, anchor="start"),
            description=f"Heat map of {value} by number of targets and epochs. {title}",
        )
    )


def change_by_kind(changes: pd.DataFrame) -> alt.Chart:
    """Change of the loss from λ = 0 (x, nats) by kind of token (y), with intervals over seeds.

    `changes`: kind, split and the columns of `comparisons.paired` for one λ; regime if there are several.
    """
    order = changes.groupby("kind")["mean"].mean().sort_values(ascending=False).index.tolist()
    base = alt.Chart().encode(y=alt.Y("kind:N", sort=order, title=None), tooltip=["kind:N", *_statistics(changes)])
    x = alt.X("mean:Q", title="change of the loss (nats)")
    bars = base.mark_bar(color="#0072b2", height={"band": 0.6}).encode(x=x)
    intervals = base.mark_rule(strokeWidth=2, color="#202020").encode(x="low:Q", x2="high:Q")
    chart = alt.layer(bars, intervals).properties(width=WIDTH, height=alt.Step(24), data=changes)
    return (
        chart.facet(**_facets(changes))
        .resolve_scale(x="independent")
        .properties(
            title="Which tokens pay",
            description="Bars of the change of the loss by kind of token, training and held-out text, with intervals over seeds",
        )
    )


def headline(sentence: str, width: int = 84) -> list[str]:
    """A chart's title from the first sentence of a text: a line per part between semicolons, without what is in brackets or after a colon.

    Lines longer than `width` characters are broken, so that a title is no wider than two panels.

    >>> headline("rare words pay: +0.1 nats; frequent ones do not (3 seeds). Nor do others.")
    ['Rare words pay', 'Frequent ones do not']
    """
    parts = [part.split(" (")[0].split(":")[0] for part in sentence.split(". ")[0].rstrip(".").split("; ")]
    return [line for part in parts for line in textwrap.wrap(capital(part), width)]


def change_by_tokenizer(table: pd.DataFrame, answer: str) -> alt.LayerChart:
    """Change of the held-out loss of words by their count, one curve per tokenizer; a table of `tokenizers.compare`.

    The first of its sentences, `answer`, is the title.
    """
    frame = table[(table["unit"] == "word") & (table["split"] == "held-out") & (table["bin"] != "all")]
    none = frame["weight_decay"].map({0.0: " (none chosen)"}).fillna("")
    labelled = frame.assign(
        label=frame["variant"] + frame["compared"].map(", λ = {:g}".format) + none, n_words=frame["n"]
    )
    y_title, x_title = "change of the loss (nats per word)", "occurrences of a word in the training text"
    chart = models_by_bin(labelled, "change", y_title, x_title=x_title)
    return chart.properties(title=headline(answer)).configure_legend(labelLimit=0)


def change_by_language(changes: pd.DataFrame, answer: str) -> alt.Chart:
    """Change of bits per byte from λ = 0 (x) by language (y, the largest share first), mixtures side by side, with intervals.

    `changes`: variant, split, language in their order, and the columns of `comparisons.paired` for one λ a mixture. The first
    of the sentences of `languages.verdict`, `answer`, is the title.
    """
    changes = changes.assign(variant=changes["variant"] + changes["weight_decay"].map(", λ = {:g}".format))
    order, mixtures = changes["language"].unique().tolist(), changes["variant"].unique().tolist()
    base = alt.Chart().encode(
        y=alt.Y("language:N", sort=order, title="language, the largest share first"),
        yOffset=alt.YOffset("variant:N", sort=mixtures, scale=alt.Scale(paddingOuter=0.6)),
        color=alt.Color("variant:N", title="mixture").scale(domain=mixtures, range=[*CLASS_COLOURS.values()]),
        tooltip=["language:N", "variant:N", "weight_decay:Q", *_statistics(changes)],
    )
    points = base.mark_point(filled=True, size=60, opacity=1).encode(
        x=alt.X("mean:Q", title="change of the loss from λ = 0 (bits per byte)"),
        shape=alt.Shape("variant:N", title="mixture").scale(domain=mixtures),
    )
    intervals = base.mark_rule(strokeWidth=1.5).encode(x="low:Q", x2="high:Q")
    chart = alt.layer(_zero(x=alt.datum(0)), intervals, points)
    return (
        chart.properties(width=WIDTH, height=alt.Step(12), data=changes)
        .facet(column=_facets(changes)["column"])
        .resolve_scale(x="independent")
        .properties(
            title=headline(answer),
            description="Points with intervals over seeds: change of the loss in bits per byte by language and mixture, training "
            "and held-out text, languages ordered by their share of the training text",
        )
    )


def reliability(curves: pd.DataFrame) -> alt.Chart | alt.FacetChart:
    """Accuracy (y) against confidence (x) of low- and high-frequency targets, one curve per λ; the diagonal is calibrated.

    `curves`: weight_decay, frequency_class, confidence, accuracy (means over seeds).
    """
    frame = _labelled(curves)
    colour, chosen, opacity = _by_weight_decay(frame)
    base = alt.Chart().encode(
        x=alt.X("confidence:Q", title="confidence", **_SHARE),
        y=alt.Y("accuracy:Q", title="accuracy", **_SHARE),
        color=colour,
        opacity=opacity,
        tooltip=["λ", "frequency_class:N", *_numbers(".1%", "confidence", "accuracy")],
    )
    diagonal = (
        alt.Chart()
        .transform_aggregate(n="count()")
        .mark_rule(color="#888888", strokeDash=[3, 3], strokeWidth=1)
        .encode(x=alt.datum(0), y=alt.datum(0), x2=alt.datum(1), y2=alt.datum(1))
    )
    # points as a mark of their own: JupyterLab's Vega-Lite loses the selection of a line that draws them itself
    lines = base.mark_line(strokeWidth=2).add_params(chosen)
    points = base.mark_point(filled=True, size=35)
    classes = alt.Column("frequency_class:N", title=None, sort=["low", "high"])
    layered = alt.layer(diagonal, lines, points).properties(width=WIDTH, height=HEIGHT, data=frame)
    return layered.facet(column=classes).properties(
        title="Reliability by frequency of the target",
        description="Curves of accuracy against confidence for low- and high-frequency targets, one per weight decay",
    )


def pareto(numbers: pd.DataFrame, x: str = "heldout_average") -> alt.VConcatChart:
    """Remedies: held-out loss of low-frequency types (y, nats) against that of all text (x, nats); lower left is better.

    `numbers`: regime, variant, kind_of_remedy, `x`, heldout_low_frequency, each with _low and _high (intervals over seeds),
    front (whether no other variant is better on both) and recommended, ringed. A panel per regime; points are numbered from
    left to right, where there is room, and the list beside a panel names them, those on the front in bold.
    """
    legend = alt.Legend(title="acts on", values=[k for k in REMEDY_COLOURS if k in set(numbers["kind_of_remedy"])])
    panels = [_pareto_panel(frame, str(name), x, legend) for name, frame in numbers.groupby("regime", sort=False)]
    ring = " and a ring around the one recommended" if numbers["recommended"].any() else ""
    return (
        alt.vconcat(*panels)
        .resolve_scale(color="shared", shape="shared")
        .properties(
            title="Remedies on held-out text: rare types against all",
            description="Scatter of the held-out loss of low-frequency types against the held-out average loss, a numbered point per "
            f"remedy and a panel per regime, with intervals over seeds, beside a list of the remedies{ring}",
        )
    )


def _pareto_panel(frame: pd.DataFrame, regime: str, x: str, legend: alt.Legend) -> alt.HConcatChart:
    frame = frame.sort_values(x, kind="stable").assign(number=np.arange(1, len(frame) + 1))
    frame["line"] = frame["number"].map("{:>2}  ".format) + frame["variant"]
    field = "heldout_low_frequency"
    frame["numbered"] = _apart(frame, x, field)
    x_title, y_title = "held-out average loss (nats)", "held-out loss of low-frequency types (nats)"
    y = alt.Y(f"{field}:Q", title=y_title, scale=alt.Scale(zero=False, padding=8))
    base = alt.Chart().encode(x=alt.X(f"{x}:Q", title=x_title, scale=alt.Scale(zero=False, padding=12)), y=y)
    rule: dict[str, Any] = {"color": "#909090", "opacity": 0.7, "clip": True}
    points = base.mark_point(filled=True, size=70, opacity=1).encode(
        color=_category(alt.Color, "kind_of_remedy", REMEDY_COLOURS, legend=legend),
        shape=_category(alt.Shape, "kind_of_remedy", list(REMEDY_COLOURS), legend=legend),
        tooltip=["variant:N", *_numbers(".3f", x, field)],
    )
    numbered = alt.layer(
        base.mark_rule(**rule).encode(x=f"{x}_low:Q", x2=f"{x}_high:Q"),
        base.mark_rule(**rule).encode(y=alt.Y(f"{field}_low:Q", title=y_title), y2=f"{field}_high:Q"),
        base.transform_filter("datum.recommended").mark_point(size=300, color="black", opacity=1),
        points,
        base.transform_filter("datum.numbered")
        .mark_text(align="left", dx=6, dy=-7, fontSize=11)
        .encode(text="number:N"),
    ).properties(width=1.25 * WIDTH, height=1.4 * HEIGHT, title=regime)
    listed = alt.Chart().encode(y=alt.Y("number:O", axis=None), x=alt.value(0), text="line:N")
    names = alt.layer(
        listed.transform_filter("datum.front").mark_text(align="left", fontSize=11, fontWeight="bold"),
        listed.transform_filter("!datum.front").mark_text(align="left", fontSize=11),
        view=alt.ViewConfig(stroke=None),
    ).properties(width=0.8 * WIDTH, height=1.4 * HEIGHT)
    return alt.hconcat(numbered, names, data=frame, spacing=8)


def _apart(frame: pd.DataFrame, x: str, y: str, size: tuple[float, float] = (0.06, 0.04)) -> np.ndarray:
    """Which points can bear a number without covering that of another: the front first, then the references."""
    places = ((frame[[x, y]] - frame[[x, y]].min()) / (frame[[x, y]].max() - frame[[x, y]].min())).to_numpy()
    taken: list[int] = []
    for i in np.lexsort((frame["kind_of_remedy"] != "reference", ~frame["front"])):
        if all((np.abs(places[i] - places[j]) > size).any() for j in taken):
            taken.append(i)
    return np.isin(np.arange(len(frame)), taken)


#: Axis of frequency bins of an audit: the counts are those of a reference text, whatever the model was trained on.
_REFERENCE_COUNT = "count n_v of the type in the reference text (powers of 3)"
_MODEL_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
_BASELINE_COLOURS = ("#555555", "#a0a0a0", "#202020", "#c8c8c8")


def models_by_bin(
    bins: pd.DataFrame,
    value: str,
    y_title: str,
    title: str | Sequence[str] = "",
    baselines: pd.DataFrame | None = None,
    x_title: str = _REFERENCE_COUNT,
) -> alt.LayerChart | alt.FacetChart:
    """A value (y, `y_title`) by frequency bin (x), one curve per model, with a rule at 0 where values cross it.

    `bins` has label, bin, bin_low and `value`, and low and high if its intervals are to be drawn; `baselines` have label, bin,
    bin_low and `value`, and are drawn as dashed grey curves under the models'. A `title` says what was found.
    """
    frame, lines = bins.assign(curve="model"), []
    if baselines is not None:
        lines = baselines["label"].unique().tolist()
        frame = pd.concat([baselines.assign(curve="baseline"), frame], ignore_index=True)
    columns = ("label", "bin", "bin_low", value, "low", "high", "n_types", "n_words", "curve")
    frame = frame[[c for c in columns if c in frame]]
    labels = bins["label"].unique().tolist()
    colours = dict(zip(labels, cycle(_MODEL_COLOURS), strict=False))
    colours |= dict(zip(lines, cycle(_BASELINE_COLOURS), strict=False))
    name = y_title.split(" (")[0]
    crosses = bool((frame[value] < 0).any())
    counts = [c for c in ("n_types", "n_words") if c in frame]
    base = alt.Chart(frame).encode(
        x=alt.X("bin:O", sort=_bins(frame), title=x_title, axis=alt.Axis(labelAngle=-40)),
        y=alt.Y(f"{value}:Q", title=y_title, scale=alt.Scale() if crosses else alt.Scale(domainMin=0)),
        color=_category(alt.Color, "label", colours, title=None, legend=alt.Legend(labelLimit=420)),
        tooltip=["label:N", "bin:O", *_numbers(".4f", value), *_numbers(",", *counts)],
    )
    layers = [alt.Chart().mark_rule(color="#888888").encode(y=alt.datum(0))] if crosses else []
    if lines:
        baseline = base.transform_filter("datum.curve == 'baseline'")
        layers.append(baseline.mark_line(strokeWidth=1.5, strokeDash=[5, 4]))
    models = base.transform_filter("datum.curve == 'model'")
    if "low" in frame:
        models = models.encode(xOffset=_beside(labels, "label"))
        layers.append(_interval_over_seeds(models))
    layers += [models.mark_line(strokeWidth=2), models.mark_point(filled=True, size=55, opacity=1)]
    said = f", beside {' and '.join(lines)}" if lines else ""
    return alt.layer(*layers, data=frame).properties(
        width=1.7 * WIDTH,
        height=HEIGHT,
        title=title or capital(f"{name} by frequency"),
        description=f"Line chart of the {name} by frequency bin, one curve per model{said}",
    )


def floors(frame: pd.DataFrame) -> alt.HConcatChart:
    """What an ideal memoriser of each layout has (points, a row per layout) beside the paper's λ = 0 and 1 (rules).

    `frame`: layout, measure, source, value (see `layout.beside_paper`). A panel per measure: losses (x, nats), which no
    model undercuts on average, and balanced accuracy (x).
    """
    titles = {
        "average_loss": "average loss (nats)",
        "token_balanced_loss": "token-balanced loss (nats)",
        "token_balanced_accuracy": "balanced accuracy",
    }
    memoriser = frame["source"] == "ideal memoriser"
    order = frame.loc[memoriser, "layout"].unique().tolist()
    colours = ("#202020", *(weight_decay_colour(v) for v in (0.0, 1.0)))
    sources = dict(zip(frame["source"].unique(), colours, strict=False))
    panels = []
    for i, (measure, title) in enumerate(titles.items()):
        axis = alt.Axis(format=".1%" if "accuracy" in measure else "~g", tickCount=4)
        own = frame[frame["measure"] == measure]
        base = alt.Chart().encode(
            x=alt.X("value:Q", title=title, axis=axis, scale=alt.Scale(zero="loss" in measure, padding=10)),
            color=_category(alt.Color, "source", sources, title=None),
            tooltip=["source:N", "layout:N", *_numbers(".4f", "value")],
        )
        y = alt.Y("layout:N", sort=order, title=None, axis=alt.Axis(labels=not i, ticks=not i, labelLimit=240))
        rules = base.properties(data=own[~memoriser[own.index]]).mark_rule(strokeWidth=2)
        points = base.properties(data=own[memoriser[own.index]]).mark_point(filled=True, size=80, opacity=1).encode(y=y)
        panels.append(alt.layer(rules, points).properties(width=0.66 * WIDTH, height=alt.Step(30)))
    return alt.hconcat(*panels, spacing=12).properties(
        title="What an ideal memoriser of each layout has, beside the paper's Table 1",
        description="Points of the ideal memoriser's average loss, token-balanced loss and balanced accuracy for each layout of the "
        "training sequences, with the paper's values at λ = 0 and λ = 1 as vertical lines",
    )


#: Colours of rungs, Okabe and Ito's without yellow, and their shapes where there are more.
_RUNG_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_RUNG_SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "stroke")


def _by_rung(frame: pd.DataFrame) -> dict[str, Any]:
    """Colour and shape by rung; colours come again with another shape."""
    names, n = frame["rung"].unique().tolist(), len(_RUNG_COLOURS)
    colours = {name: _RUNG_COLOURS[i % n] for i, name in enumerate(names)}
    shapes = {name: _RUNG_SHAPES[(i + i // n) % n] for i, name in enumerate(names)}
    legend = alt.Legend(labelLimit=240, title=None)
    return {
        "color": _category(alt.Color, "rung", colours, legend=legend),
        "shape": _category(alt.Shape, "rung", shapes, legend=legend),
    }


def added_by_count(points: pd.DataFrame) -> alt.LayerChart | alt.FacetChart:
    """Loss that λ adds (y, nats, log) against the training count n_v (x, log), one colour per rung, with its fitted power law.

    `points`: rung, weight_decay, n_train, mean, low, high (intervals over seeds) and fitted, as `ladder.by_count` makes them.
    """
    frame = points.assign(rung=points["rung"] + points["weight_decay"].map(", λ = {:g}".format))
    channels = _by_rung(frame)

    def y(field: str) -> alt.Y:
        ticks = [a * 10.0**k for k in range(-6, 2) for a in (1, 3)]
        return _log(alt.Y, field, "loss added by λ (nats)", "~g", ticks, padding=8)

    base = alt.Chart(frame).encode(
        x=_log(alt.X, "n_train", "training count n_v (mean of the bin)", ",", padding=8),
        color=channels["color"],
        tooltip=["rung:N", *_numbers(".1f", "n_train"), *_statistics(frame)],
    )
    return alt.layer(
        base.mark_line(strokeWidth=1.5).encode(y=y("fitted")),
        base.mark_rule(strokeWidth=1.5).encode(y=y("low"), y2="high:Q"),
        base.mark_point(filled=True, size=60, opacity=1).encode(y=y("mean"), shape=channels["shape"]),
    ).properties(
        width=1.6 * WIDTH,
        height=1.3 * HEIGHT,
        title="Added loss by count",
        description="Log-log points of the training loss that weight decay adds to a frequency bin against its mean training count, with "
        "intervals over seeds and the fitted power law of every rung as a line",
    )


def ratio_by_counts(table: pd.DataFrame) -> alt.LayerChart | alt.FacetChart:
    """Δ token-balanced / Δ average: measured (y, log) against what the counts give at the fitted slope (x, log).

    `table`: rung, weight_decay, ratio, low, high, predicted, predicted_low, predicted_high, slope, as `ladder.ratios` makes them: a
    point per rung (shape) and λ (colour). On the dashed diagonal the added loss is a power of the count. Intervals are cut off at
    the edges.
    """
    frame = _labelled(table.dropna(subset=["ratio", "predicted"]))
    colour, chosen, opacity = _by_weight_decay(frame)
    values = frame[["ratio", "predicted"]].to_numpy()
    ends = [values.min() * 0.9, values.max() * 1.1]
    ticks = alt.Axis(values=[0.5, 0.75, 1, 1.25, 1.5, 2, 2.5, 3, 4, 5, 6, 8], format="~g")
    scale = alt.Scale(type="log", domain=ends, nice=False)
    base = alt.Chart(frame).encode(color=colour, opacity=opacity)
    x = alt.X("predicted:Q", title="ratio by the counts at the fitted slope", scale=scale, axis=ticks)
    y = alt.Y("ratio:Q", title="measured ratio", scale=scale, axis=ticks)
    diagonal = (
        alt.Chart(pd.DataFrame({"end": ends}))
        .mark_line(color="#888888", strokeDash=[3, 3], strokeWidth=1.5)
        .encode(x="end:Q", y="end:Q")
    )
    cut = frame.assign(**{c: frame[c].clip(*ends) for c in ("low", "high", "predicted_low", "predicted_high")})
    bars = base.properties(data=cut).mark_rule(strokeWidth=1.5)
    tooltip = ["rung:N", "λ", *_numbers(".2f", "ratio", "predicted", "slope")]
    points = base.mark_point(filled=True, size=80).encode(x=x, y=y, shape=_by_rung(frame)["shape"], tooltip=tooltip)
    return alt.layer(
        diagonal,
        bars.encode(x=x, y="low:Q", y2="high:Q"),
        bars.encode(y=y, x="predicted_low:Q", x2="predicted_high:Q"),
        points.add_params(chosen),
    ).properties(
        width=1.4 * WIDTH,
        height=1.4 * WIDTH,
        title="Ratio of the changes: measured, and by the counts",
        description="Scatter of the measured ratio of the balanced to the average change against the ratio that the counts give at the "
        "fitted slope, a colour per weight decay and one shape per rung, with intervals and the diagonal",
    )


def effects(table: pd.DataFrame, weight_decay: float) -> alt.LayerChart | alt.FacetChart:
    """What λ changes (y, nats) against how far λ = 0 lies above the floor (x, nats, log), with intervals over seeds.

    `table`: rung, excess_average and low, average, high, each with _low and _high, as `ladder.effects` makes them. A column of points
    is a rung, named above it. Above the line at 0 weight decay harms.
    """
    names = {"low": "low-frequency types", "average": "average", "high": "high-frequency types"}
    long = pd.concat(
        table[["rung", "excess_average"]].assign(
            change=label, mean=table[name], low=table[f"{name}_low"], high=table[f"{name}_high"]
        )
        for name, label in names.items()
    )
    colours = {label: CLASS_COLOURS.get(name, "#202020") for name, label in names.items()}
    base = alt.Chart(long).encode(
        x=_log(alt.X, "excess_average", "average loss at λ = 0 above the floor (nats)", padding=30),
        color=_category(alt.Color, "change", colours, title=None),
        tooltip=["rung:N", "change:N", *_statistics(long)],
    )
    y = alt.Y("mean:Q", title=f"change of the training loss, λ 0 → {weight_decay:g} (nats)")
    rungs = (
        base.transform_aggregate(n="count()", groupby=["rung", "excess_average"])
        .mark_text(angle=300, align="left", dx=4, fontSize=11)
        .encode(y=alt.value(0), text="rung:N", color=alt.value("#404040"), tooltip=alt.value(None))
    )
    shape = _category(alt.Shape, "change", list(colours), title=None)
    points = base.mark_point(filled=True, size=70, opacity=1).encode(y=y, shape=shape)
    bars = base.mark_rule(strokeWidth=1.5).encode(y="low:Q", y2="high:Q")
    return alt.layer(_zero(y=alt.datum(0)), bars, points, rungs, data=long).properties(
        width=2 * WIDTH,
        height=1.2 * HEIGHT,
        title="What weight decay changes, by how far the text is memorised",
        description="Points of the change of the loss of low-frequency types, of high-frequency types and of the average against how far "
        "the loss at weight decay 0 lies above the floor, with intervals over seeds",
    )


def slopes_by_size(sizes: pd.DataFrame) -> alt.Chart:
    """Slopes of the added loss by count below and beyond the bend (y) against training targets (x, log); crosses: not memorised.

    `sizes`: rung, memorised, n_targets, below, beyond, as `ladder.by_size` makes them.
    """
    names = {"below": f"below a count of {BEND}", "beyond": "beyond"}
    frame = sizes.rename(columns=names).melt(["rung", "memorised", "n_targets"], [*names.values()], "where", "slope")
    frame["state"] = np.where(frame.pop("memorised"), "memorised", "not memorised")
    base = alt.Chart(frame).encode(
        x=_log(alt.X, "n_targets", "training targets", "~s", padding=12),
        y=alt.Y("slope:Q", title="slope of the added loss by count"),
        color=alt.Color("where:N", title=None, sort=[*names.values()]).scale(range=["#0072b2", "#d55e00"]),
        tooltip=["rung:N", "where:N", *_numbers(".2f", "slope"), *_numbers(",", "n_targets")],
    )
    shape = alt.Shape("state:N", title=None).scale(domain=["memorised", "not memorised"], range=["circle", "cross"])
    return (
        base.mark_point(filled=True, size=90, opacity=1)
        .encode(shape=shape)
        .properties(
            width=1.3 * WIDTH,
            height=200,
            title="The slope at the paper's rise, by the size of the text",
            description=f"Points of the slope of the added loss by count, below and beyond a count of {BEND}, against the training targets",
        )
    )


def predictions(table: pd.DataFrame, paper: tuple[float, float, float]) -> alt.LayerChart:
    """Ratio predicted for each panel (x, log) by either law, with its interval; a band is the paper's ratio, as rounding leaves it.

    `table`: panel, ratio, low, high, bent, bent_low, bent_high, as `ladder.predictions` makes them. `paper`: value, low, high
    (`claims.paper_ratio`).
    """
    laws = dict(zip(("one slope", f"two slopes, below and beyond a count of {BEND}"), LAWS.values(), strict=True))
    frame = pd.concat(
        table[["panel", *columns]].set_axis(["panel", "ratio", "low", "high"], axis=1).assign(law=name)
        for name, columns in laws.items()
    )
    y = alt.Y("panel:N", sort=table["panel"].tolist(), title=None, axis=alt.Axis(labelLimit=240))
    x = _log(alt.X, "ratio", "Δ token-balanced / Δ average, λ 0 → 1", "~g", [1, 2, 3, 5, 10, 20, 50], padding=12)
    law = alt.Color("law:N", title=None, sort=list(laws)).scale(range=["#0072b2", "#009e73"])
    law = law.legend(orient="bottom", labelLimit=400)
    base = alt.Chart(frame).encode(y=y, yOffset=alt.YOffset("law:N", sort=list(laws)), color=law)
    source = f"paper, OpenELM-270M: {paper[0]:.1f} by rounded numbers"
    band = (
        alt.Chart(pd.DataFrame([{"source": source, "low": paper[1], "high": paper[2]}]))
        .mark_rect(opacity=0.35)
        .encode(
            x="low:Q",
            x2="high:Q",
            fill=alt.Fill("source:N", title=None).scale(range=["#d55e00"]).legend(labelLimit=400, orient="bottom"),
        )
    )
    tooltip = ["panel:N", "law:N", *_numbers(".2f", "ratio", "low", "high")]
    return (
        alt.layer(
            band,
            base.mark_rule(strokeWidth=2).encode(x="low:Q", x2="high:Q"),
            base.mark_point(filled=True, size=90, opacity=1).encode(x=x, tooltip=tooltip),
        )
        .resolve_scale(fill="independent")
        .properties(
            width=1.6 * WIDTH,
            height=alt.Step(20),
            title="Predicted before any panel was run",
            description="Points of the ratio predicted for each panel by either law with intervals, beside a band at the paper's ratio",
        )
    )


def norms_by_frequency(norms: pd.DataFrame, title: str = "Norms of embedding rows by frequency") -> alt.FacetChart:
    """Norm of embedding rows (y) by frequency bin (x): median as a line, 10th to 90th percentile as a band, a colour per model.

    `norms`: label, bin, bin_low, median, p10, p90; a panel per `matrix`, the input's and the output's. A `title` says what was
    found.
    """
    labels = norms["label"].unique().tolist()
    base = alt.Chart().encode(
        x=alt.X("bin:O", sort=_bins(norms), title=_REFERENCE_COUNT, axis=alt.Axis(labelAngle=-40)),
        color=alt.Color("label:N", sort=labels, title="model").scale(range=_MODEL_COLOURS[: len(labels)]),
        tooltip=["label:N", "bin:O", *_numbers(".3f", "median", "p10", "p90")],
    )
    band = base.mark_area(opacity=0.18).encode(y=alt.Y("p10:Q", title="norm of the embedding row"), y2="p90:Q")
    median = base.encode(y=alt.Y("median:Q"))
    layers = (band, median.mark_line(strokeWidth=2), median.mark_point(filled=True, size=55, opacity=1))
    return (
        alt.layer(*layers, data=norms)
        .properties(width=1.7 * WIDTH, height=HEIGHT)
        .facet(row=alt.Row("matrix:N", title=None, sort=["input", "output"]))
        .resolve_scale(y="independent", x="independent")
        .properties(
            title=title,
            description="Median norm of embedding rows by frequency bin with a band from the 10th to the 90th percentile",
        )
    )


def learning_curves(curves: pd.DataFrame, n_bins: int = 4, chance: float | None = None) -> alt.Chart | alt.FacetChart:
    """Loss in the training stream (y, nats, mean over types) against step (x), one panel per frequency bin, one line per λ.

    Shows `n_bins` bins from the rarest to the most frequent; bands are intervals over seeds, cut off below 0. Dashed is
    `chance`, the loss log V of a uniform guess.
    """
    lows = np.sort(curves["bin_low"].unique())
    lows = lows[np.unique(np.linspace(0, len(lows) - 1, n_bins).round().astype(int))]
    frame = _labelled(curves[curves["bin_low"].isin(lows)])
    several = "model" in frame and frame["model"].nunique() > 1
    frame = frame.assign(panel=(frame["model"] + ", n_v " if several else "n_v ") + frame["bin"])
    colour, chosen, opacity = _by_weight_decay(frame)
    x = alt.X("step:Q", title="optimiser step", axis=alt.Axis(tickCount=4))
    base = alt.Chart().encode(x=x, color=colour, tooltip=["panel:N", "λ", "step:Q", *_statistics(frame)])
    band = base.mark_area(clip=True, strokeWidth=0).encode(
        y="low:Q", y2="high:Q", fillOpacity=alt.condition(chosen, alt.value(0.12), alt.value(0.0))
    )
    line = base.mark_line(strokeWidth=2).encode(y=_y("loss (nats, mean over types)"), opacity=opacity)
    ends = frame.groupby("panel", as_index=False)["step"].agg(["min", "max"]).melt("panel", value_name="step")
    lines = None if chance is None else ends.assign(baseline="uniform guess", mean=chance)
    drawn, layers = _beside_baselines(frame, lines, x, [band, line.add_params(chosen)])
    chart = alt.layer(*layers, data=drawn).properties(width=136, height=HEIGHT - 40)
    panels = frame.sort_values("bin_low")["panel"].unique().tolist()
    return chart.facet(alt.Facet("panel:N", sort=panels, title=None), columns=4).properties(
        title="Learning curves by frequency of the type",
        description="Line charts of the training loss against the step, one panel per frequency bin, one line per "
        "weight decay, with intervals over seeds as bands",
    )


def _log(
    channel: Callable[..., Any], field: str, title: str, format: str = "~g", values: Sequence[float] = (), **scale: Any
) -> Any:
    """A logarithmic axis with ticks at powers of ten, or at `values`; `scale`: what else its scale has."""
    axis = alt.Axis(format=format, values=list(values) or [10.0**k for k in range(-12, 13)], labelOverlap=True)
    return channel(f"{field}:Q", title=title, scale=alt.Scale(type="log", nice=False, **scale), axis=axis)


def rank_frequency(frame: pd.DataFrame, percentiles: pd.DataFrame) -> alt.LayerChart | alt.FacetChart:
    """Figure 2a: occurrences of a type (y, log) against its rank (x, log), with marks at percentiles of the counts.

    `frame`: rank, count. `percentiles`: percentile, count.
    """
    x = _log(alt.X, "rank", "rank of the type", ",")
    y = _log(alt.Y, "count", "occurrences of the type (tokens)", ",")
    line = alt.Chart(frame).mark_line(strokeWidth=2.5, color="#0072b2").encode(x=x, y=y, tooltip=["rank:Q", "count:Q"])
    marked = percentiles.assign(label=percentiles["percentile"].map("{:g}th percentile".format))
    base = alt.Chart(marked).encode(y="count:Q")
    rules = base.mark_rule(strokeDash=[4, 4], color="#d55e00").encode(tooltip=["label:N", "count:Q"])
    text = base.mark_text(align="left", dy=-6, dx=4, color="#b04a00").encode(x=alt.value(0), text="label:N")
    return alt.layer(line, rules, text).properties(
        width=2 * WIDTH,
        height=HEIGHT,
        title="Rank and frequency of the vocabulary",
        description="Log-log line of the occurrences of token types against their rank, with percentiles of the counts marked",
    )


def coverage(frame: pd.DataFrame) -> alt.LayerChart | alt.FacetChart:
    """Share of tokens covered (y) by the most frequent share of the types (x, log). Columns top_share, coverage, source."""
    colours = {"measured": "#0072b2", "the paper's claim": "#d55e00"}
    base = alt.Chart(frame).encode(
        x=_log(alt.X, "top_share", "most frequent share of the types", "~%"),
        y=alt.Y("coverage:Q", title="share of tokens covered", **_SHARE),
        color=alt.Color("source:N", title=None).scale(domain=list(colours), range=list(colours.values())),
        tooltip=[*_numbers(".3%", "top_share"), *_numbers(".1%", "coverage"), "source:N"],
    )
    measured = base.transform_filter("datum.source == 'measured'").mark_line(point=True, strokeWidth=2)
    claimed = base.transform_filter("datum.source != 'measured'").mark_point(
        size=140, filled=True, shape="diamond", opacity=1
    )
    return alt.layer(measured, claimed).properties(
        width=2 * WIDTH,
        height=HEIGHT,
        title="Share of tokens covered by the most frequent types",
        description="Line of the share of tokens covered against the most frequent share of types, with the point the paper claims",
    )


def low_frequency_share(frame: pd.DataFrame) -> alt.Chart:
    """Figure 2b: share of the types that are low-frequency (y) against vocabulary size (x). Columns vocab_size, share, definition."""
    return (
        alt.Chart(frame)
        .mark_line(point=alt.OverlayMarkDef(size=60), strokeWidth=2)
        .encode(
            x=_log(alt.X, "vocab_size", "vocabulary size (types)", ",", sorted(frame["vocab_size"].unique().tolist())),
            y=alt.Y("share:Q", title="share of types that are low-frequency", **_SHARE),
            color=alt.Color("definition:N", title="low-frequency").scale(range=["#0072b2", "#d55e00", "#009e73"]),
            strokeDash=alt.StrokeDash("definition:N", title="low-frequency"),
            tooltip=["vocab_size:Q", *_numbers(".1%", "share"), "definition:N"],
        )
        .configure_legend(labelLimit=400)
        .properties(
            width=1.4 * WIDTH,
            height=HEIGHT,
            title="Low-frequency types against vocabulary size",
            description="Line of the share of low-frequency token types against the size of the vocabulary",
        )
    )


#: Characters as they are drawn: plain spaces would collapse, others would not be seen.
_SHOWN = {i: 0x2400 + i for i in range(32)} | {ord("\n"): "⏎", ord("\t"): "\u00a0", ord(" "): "\u00a0", 0x7F: "␡"}


def _width(text: str) -> int:
    """Columns of a fixed-width font that `text` takes: two for a wide or full-width character, none for a mark on another."""
    return sum(
        0 if unicodedata.category(c) in ("Mn", "Me", "Cf") else 1 + (unicodedata.east_asian_width(c) in "WF")
        for c in text
    )


def _lines(token: str, columns: int) -> list[str]:
    """A token as it is drawn, in pieces that fit a line: one piece unless it is wider. A mark without a letter gets a ring."""
    pieces = ["◌" if unicodedata.category(token[:1] or " ").startswith("M") else ""]
    for c in token.translate(_SHOWN):
        if _width(pieces[-1] + c) > columns:
            pieces.append("")
        pieces[-1] += c
    return pieces


def coloured_tokens(
    tokens: Sequence[str], classes: Sequence[str], columns: int = 92
) -> alt.LayerChart | alt.FacetChart:
    """Figure 2a, right: an example document, its tokens in the order of reading, coloured by frequency class.

    `tokens` are spelled strings (see `tokenization.spell`), `classes` "low" or "high" of the same length. Lines break at
    `columns` characters, of which a full-width one takes two and a combining mark none; a longer token is cut. Tokens
    without any white space, from a tokenizer that splits it away, are set one column apart.
    """
    frame = pd.DataFrame({"token": tokens, "frequency class": classes})
    colour = _category(alt.Color, "frequency class", CLASS_COLOURS)
    return _running_text(frame, columns, colour, ["text:N", "frequency class:N"], opacity=0.28).properties(
        title="An example document",
        description="The beginning of a document with every token shaded by whether its type is low- or high-frequency",
    )


def in_context(frame: pd.DataFrame, most: int, chance: float, columns: int = 84) -> alt.LayerChart | alt.FacetChart:
    """A text, token by token, shaded by each one's loss (nats), from 0 to `chance` or above; a table of `evaluation.in_context`.

    Tokens of at most `most` training counts, the low-frequency ones, are bold. Lines are those of `coloured_tokens`.
    """
    scale = alt.Scale(range=["#fff7ee", "#f68c3f"], domain=[0, chance], clamp=True)
    count = alt.Tooltip("n_train:Q", title="training count", format=",")
    shown = frame.assign(bold=frame["n_train"] <= most)
    colour = alt.Color("loss:Q", title="loss (nats)", scale=scale)
    return _running_text(shown, columns, colour, ["text:N", count, *_numbers(".3f", "loss", "unigram")]).properties(
        title="A text, token by token",
        description="The tokens of a text in their order, shaded by their loss; those of low-frequency types are bold",
    )


def _running_text(
    frame: pd.DataFrame, columns: int, colour: alt.Color, tooltip: list[Any], **box: Any
) -> alt.LayerChart | alt.FacetChart:
    """The column token of a table as running text on boxes of a colour, bold where its column of that name is true."""
    apart = int(not any(c.isspace() for token in frame["token"] for c in token))
    rows, x, y = [], 0, 0
    for own in frame.to_dict("records"):
        for piece in _lines(own["token"], columns):
            width = max(1, _width(piece))
            spaces = _width(piece[: len(piece) - len(piece.lstrip())])  # the renderer trims them: letters start behind
            if x + width > columns and x:
                x, y = 0, y + 1
            rows.append({"x": x, "letters": x + spaces, "end": x + width, "y": y, "text": piece, **own})
            x += width + apart
        if "\n" in own["token"]:
            x, y = 0, y + 1
    base = alt.Chart(pd.DataFrame(rows).drop(columns="token")).encode(
        x=alt.X("x:Q", axis=None, scale=alt.Scale(domain=[0, columns + 2], nice=False)),
        y=alt.Y("y:O", axis=None),
        tooltip=tooltip,
    )
    boxes = base.mark_bar(stroke="white", strokeWidth=1, **box).encode(x2="end:Q", color=colour)
    style: dict[str, Any] = {"align": "left", "font": "DejaVu Sans Mono, monospace", "fontSize": 11, "color": "#202020"}
    letters = [base.mark_text(**style)]
    if "bold" in frame:  # no encoding has the weight of a font
        bold, other = (base.transform_filter(is_drawn) for is_drawn in (alt.datum["bold"], ~alt.datum["bold"]))
        letters = [bold.mark_text(fontWeight="bold", **style), other.mark_text(**style)]
    drawn = [text.encode(x="letters:Q", text="text:N") for text in letters]
    return alt.layer(boxes, *drawn).properties(width=(columns + 2) * 6.65, height=alt.Step(20))


def token_losses(frame: pd.DataFrame, chance: float) -> alt.LayerChart | alt.FacetChart:
    """Loss (x, nats) of single token types (y), in the order given, beside `chance`. Columns token, token_id, n_train, loss."""
    names = [f"{t!r} · {n:,}×" for t, n in zip(frame["token"], frame["n_train"], strict=True)]
    keys = [f"{i}\n{name}" for i, name in zip(frame["token_id"], names, strict=True)]  # types may share a name
    label = alt.Axis(labelExpr="slice(datum.label, indexof(datum.label, '\\n') + 1)", labelLimit=230, titlePadding=12)
    bars = (
        alt.Chart(frame.assign(name=names, key=keys))
        .mark_bar(color="#0072b2")
        .encode(
            x=alt.X("loss:Q", title="loss (nats), dashed: a uniform guess"),
            y=alt.Y("key:N", sort=keys, title="token type and its training count", axis=label),
            tooltip=["name:N", *_numbers(".4f", "loss"), *_numbers(".3f", "accuracy")],
        )
    )
    guess = alt.Chart(pd.DataFrame({"loss": [chance]})).mark_rule(strokeDash=BASELINE_DASHES["uniform guess"])
    return alt.layer(bars, guess.encode(x="loss:Q")).properties(
        width=1.6 * WIDTH,
        height=alt.Step(17),
        title="Loss of single token types",
        description="Bars of the highest and the lowest losses of single token types, with their training counts",
    )


def theory_loss(frame: pd.DataFrame, thresholds: pd.DataFrame) -> alt.HConcatChart:
    """Section 5: loss of a class (left, nats) and its derivative in λ (right) against its samples n_k (x), one curve per λ.

    `frame`: n_k, weight_decay, loss, derivative. `thresholds`: weight_decay, n_k below which a class collapses (dashed).
    """
    frame, thresholds = _labelled(frame), _labelled(thresholds)
    values = sorted(frame["weight_decay"].unique())  # far below those of AdamW, so they have colours of their own
    places = np.linspace(0, len(WEIGHT_DECAY_COLOURS) - 2, len(values)).astype(int)
    own = dict(zip(values, np.array([*WEIGHT_DECAY_COLOURS.values()])[places].tolist(), strict=True))
    colour, chosen, opacity = _by_weight_decay(frame, own.__getitem__)
    colour = colour.title("λ_W = λ_H")
    base = (
        alt.Chart(frame)
        .mark_line(strokeWidth=2)
        .encode(
            x=_log(alt.X, "n_k", "samples of the class n_k"),
            color=colour,
            opacity=opacity,
            tooltip=["n_k:Q", "λ", *_numbers(".4f", "loss"), *_numbers(".4g", "derivative")],
        )
    )
    rules = alt.Chart(thresholds).mark_rule(strokeDash=[4, 4]).encode(x="n_k:Q", color=colour, opacity=opacity)
    left = alt.layer(base.encode(y=_log(alt.Y, "loss", "loss of the class (nats)")).add_params(chosen), rules)
    y = _log(alt.Y, "derivative", "dℓ_k/dλ (nats per unit of λ)")
    right = base.transform_filter("datum.derivative > 0").encode(y=y)
    return alt.hconcat(*(side.properties(width=WIDTH, height=HEIGHT) for side in (left, right))).properties(
        title="The theory: loss of a class and how fast it rises with λ",
        description="Log-log lines of the loss of a class and of its derivative against its number of samples, one per weight decay",
    )


def theory_fit(frame: pd.DataFrame) -> alt.FacetChart:
    """Measured loss above the floor by frequency bin (points, nats) with the theory's fitted curve (line) against n_k, one panel per λ.

    `frame`: n_k, weight_decay, measured, fitted; model if there are several.
    """
    frame = _labelled(frame).assign(panel=lambda f: "λ = " + f["λ"])
    base = alt.Chart().encode(x=_log(alt.X, "n_k", "mean count n_k"))
    tooltip = ["n_k:Q", "λ", *_numbers(".4f", "measured", "fitted")]
    y = alt.Y("fitted:Q", title="training loss above its floor (nats)", scale=alt.Scale(zero=True))
    line = base.mark_line(color="#d55e00", strokeWidth=2).encode(y=y)
    points = base.mark_point(filled=True, size=50, color="#0072b2").encode(y=alt.Y("measured:Q"), tooltip=tooltip)
    layered = alt.layer(line, points, data=frame).properties(width=100, height=150)
    panels = frame.sort_values("weight_decay")["panel"].unique().tolist()
    return (
        layered.facet(alt.Facet("panel:N", sort=panels, title=None), columns=5)
        .resolve_scale(y="independent")
        .properties(
            title="Measured loss by frequency (points) and the theory's fitted curve (line)",
            description="Points of the measured training loss by frequency bin and the line of the fitted theory, one panel per "
            "weight decay",
        )
    )
