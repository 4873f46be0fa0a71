"""The token explorer: what λ changes of every type of a vocabulary, to search and to select from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from fairlm_utils.analysis.theme import HEIGHT, WIDTH

_N_LISTED = 24  # types of the list beside the map


def _as_csv(frame: pd.DataFrame) -> alt.InlineData:
    """A table as data of a chart in a third of the characters of its usual form, so that a vocabulary fits."""
    kinds: dict[str, Any] = {c: "number" if pd.api.types.is_numeric_dtype(frame[c]) else "string" for c in frame}
    return alt.InlineData(values=frame.to_csv(index=False), format=alt.CsvDataFormat(type="csv", parse=kinds))


def _columns(rows: alt.Chart, columns: dict[str, str]) -> alt.LayerChart | alt.FacetChart:
    """A list with headings: one layer of text a column, whose rows `rows` has on an ordinal y from 1; 0 is the headings'.

    `columns` maps fields to number formats; the first is left-aligned text.
    """
    names = {"n_train": "count", "loss": "loss, λ = 0"}
    layers = []
    for i, (field, form) in enumerate(columns.items()):
        style: dict[str, Any] = {"align": "right" if i else "left", "fontSize": 11, "limit": 78 if i else 95}
        x = alt.value(66 + 76 * i if i else 4)
        text = alt.Text(f"{field}:Q", format=form) if form else alt.Text(f"{field}:N")
        layers.append(rows.mark_text(font="DejaVu Sans Mono, monospace", **style).encode(x=x, text=text))
        heading = alt.Chart(alt.InlineData(values=[{"rank": 0, "heading": names.get(field, field)}]))
        layers.append(
            heading.mark_text(fontWeight="bold", **style).encode(x=x, y=alt.Y("rank:O", axis=None), text="heading:N")
        )
    return alt.layer(*layers)


def token_explorer(tokens: pd.DataFrame, title: Sequence[str] = ()) -> alt.HConcatChart:
    """A whole vocabulary: change of the training loss (y, nats) against the training count (x, log) as a map, and a list of tokens.

    Draw a rectangle on the map to list the types under it, largest change first; type in the box to keep those whose
    spelling contains the text. Cells of the map are counts of types, so that 32,000 types are a few hundred marks.
    `tokens`: token, kind, n_train, loss_training, change_training (see `results.token_changes`).
    """
    names = {"change_training": "change", "loss_training": "loss"}
    frame = tokens[["token", "kind", "n_train", *names]].rename(columns=names).dropna(subset="change")
    frame = frame.assign(token=frame["token"].map(repr).str[1:-1].str.replace(" ", "␣"))
    largest = float(np.log10(frame["n_train"].max()))
    x_step = max(0.1, largest / 30)
    y_step = float(max(frame["change"].max() - frame["change"].min(), 1e-6)) / 30
    span = [min(0.0, float(frame["change"].min())) - y_step, float(frame["change"].max()) + y_step]
    search = alt.param(
        "search", value="", bind=alt.binding(input="search", name="tokens that contain ", placeholder="text")
    )
    brush = alt.selection_interval(name="region", encodings=["x", "y"])
    found = f"test(regexp(replace({search.name}, /[.*+?^${{}}()|[\\]\\\\]/g, '\\\\$&'), 'i'), datum.token)"
    logarithm = {"log_count": "log(datum.n_train) / LN10"}
    base = alt.Chart().transform_filter(found).transform_calculate(**logarithm)
    cells = (
        base.transform_bin(["x0", "x1"], "log_count", bin=alt.Bin(step=x_step))
        .transform_bin(["y0", "y1"], "change", bin=alt.Bin(step=y_step))
        .transform_aggregate(n="count()", groupby=["x0", "x1", "y0", "y1"])
        .mark_rect()
        .encode(
            x=alt.X(
                "x0:Q",
                title="training count n_v of the type",
                axis=alt.Axis(labelExpr="format(pow(10, datum.value), ',.0f')", values=[0, 1, 2, 3, 4, 5, 6]),
                scale=alt.Scale(domain=[0, largest + x_step]),
            ),
            x2="x1:Q",
            y=alt.Y("y0:Q", title="change of the training loss (nats)", scale=alt.Scale(domain=span)),
            y2="y1:Q",
            color=alt.Color(
                "n:Q",
                title="types",
                scale=alt.Scale(type="log", scheme="blues", domainMin=1),
                legend=alt.Legend(orient="top-right", gradientLength=90, format=",.0f"),  # where few types lie
            ),
            tooltip=[alt.Tooltip("n:Q", title="types", format=",")],
        )
    )
    # the brush selects on the types' own values, which cells do not have, so an invisible layer carries it
    holder = (
        alt.Chart()
        .transform_sample(1)
        .transform_calculate(**logarithm)
        .mark_point(opacity=0)
        .encode(x="log_count:Q", y="change:Q")
        .add_params(brush)
    )
    rows = (
        base.transform_filter(brush)
        .transform_window(rank="row_number()", sort=[alt.SortField("change", order="descending")])
        .transform_filter(f"datum.rank <= {_N_LISTED}")
        .encode(
            y=alt.Y("rank:O", axis=None, scale=alt.Scale(domain=list(range(_N_LISTED + 1)))),
            tooltip=["token:N", "kind:N", "n_train:Q", "loss:Q", "change:Q"],
        )
    )
    listed = _columns(rows, {"token": "", "n_train": ",", "loss": ".3f", "change": "+.3f"}).properties(
        width=1.1 * WIDTH, height=1.5 * HEIGHT
    )
    left = alt.layer(cells, holder).properties(width=1.4 * WIDTH, height=1.5 * HEIGHT).add_params(search)
    return (
        alt.hconcat(left, listed, data=_as_csv(frame.round(4)))
        .resolve_scale(color="independent")
        .properties(
            title=alt.TitleParams(
                title or f"Token explorer: what λ = {tokens['weight_decay'].iloc[0]:g} changes, type by type",
                subtitle="Draw a rectangle on the map to list the types under it (a double click removes it), or search by spelling.",
            ),
            description="Map of the change of the loss against the training count of every token type, with a list of the types "
            "that change most",
        )
    )
