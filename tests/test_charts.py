"""Charts through their specification: what is drawn, in which order and colour, with which titles."""

import base64
import io
import itertools
import json

import altair as alt
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fairlm_utils.analysis import charts, explorer, theme

LAMBDAS = [0.0, 0.1, 0.3, 0.5, 1.0]


def grid(**axes) -> pd.DataFrame:
    frame = pd.MultiIndex.from_product(axes.values(), names=axes.keys()).to_frame(index=False)
    value = np.linspace(1, 2, len(frame))
    return frame.assign(mean=value, low=value - 0.1, high=value + 0.1, n_seeds=2)


BINS = grid(model=["m"], weight_decay=LAMBDAS, split=["training", "held-out"], bin_low=[9, 1, 3]).assign(
    bin=lambda f: f["bin_low"].map({1: "1–2", 3: "3–8", 9: "9–26"})
)
BASELINES = pd.DataFrame(
    [("training", "floor"), ("held-out", "unigram"), ("held-out", "uniform guess")], columns=["split", "baseline"]
).merge(pd.DataFrame({"bin": ["1–2", "3–8", "9–26"], "bin_low": [1, 3, 9], "mean": 1.5}), how="cross")
ALL = {
    "figure_1": charts.figure_1(
        grid(weight_decay=LAMBDAS, split=["held-out", "training"], frequency_class=["low", "high"])
    ),
    "figure_3": charts.figure_3(
        grid(weight_decay=LAMBDAS, split=["training", "held-out"], measure=["average loss", "token-balanced loss"])
    ),
    "by_bin": charts.by_bin(BINS),
    "by_bin_beside_baselines": charts.by_bin(BINS, baselines=BASELINES),
    "change_by_weight_decay": charts.change_by_weight_decay(
        grid(
            weight_decay=LAMBDAS[1:], split=["training", "held-out"], frequency_class=["low", "high"], regime=["a", "b"]
        )
    ),
    "change_by_kind": charts.change_by_kind(grid(kind=["number", "word start"], split=["training", "held-out"])),
    "change_by_language": charts.change_by_language(
        grid(language=["German", "Italian"], variant=["natural", "temperature"], split=["training", "held-out"]).assign(
            weight_decay=0.1
        ),
        "small languages pay; large ones do not (natural)",
    ),
    "regime_map": charts.regime_map(
        pd.DataFrame(
            {"targets": pd.Categorical(["30k", "1M"], ["30k", "1M"]), "epochs": [1, 3], "cell": ["a", "b"]}
        ).assign(
            forgone=0.1, forgone_low=0.0, forgone_high=0.2, weight_decay=0.3, useful=[True, False], text="held-out text"
        ),
        "forgone",
        "text",
        "a finding",
        "in nats",
    ),
    "reliability": charts.reliability(
        grid(weight_decay=LAMBDAS, frequency_class=["low", "high"]).assign(confidence=0.5, accuracy=0.4)
    ),
    "pareto": charts.pareto(
        grid(variant=["a", "b"], regime=["x", "y"]).assign(
            kind_of_remedy="loss",
            front=True,
            heldout_average=2.0,
            heldout_average_low=1.9,
            heldout_average_high=2.1,
            recommended=True,
            heldout_low_frequency=5.0,
            heldout_low_frequency_low=4.0,
            heldout_low_frequency_high=6.0,
        )
    ),
    "models_by_bin": charts.models_by_bin(
        grid(label=["a", "b"], bin_low=[1, 3]).assign(bin="1–2", loss=1.0, n_types=3), "loss", "loss (nats)"
    ),
    "change_by_tokenizer": charts.change_by_tokenizer(
        grid(
            variant=["a", "b"], bin=["all", "0", "1–2"], unit=["word", "token"], split=["training", "held-out"]
        ).assign(
            bin_low=lambda f: f["bin"].map({"all": -1, "0": 0, "1–2": 1}),
            change=-1.0,
            n=3,
            compared=0.3,
            weight_decay=0.0,
        ),
        "rare words pay: 1 nat",
    ),
    "floors": charts.floors(
        pd.DataFrame(
            [
                ("first", "average_loss", "ideal memoriser", 0.04),
                ("first", "token_balanced_accuracy", "ideal memoriser", 0.9),
                ("", "average_loss", "paper, λ = 0", 0.05),
                ("", "average_loss", "paper, λ = 1", 0.06),
            ],
            columns=["layout", "measure", "source", "value"],
        )
    ),
    "added_by_count": charts.added_by_count(
        grid(rung=["a", "b"], n_train=[1.0, 9.0]).assign(weight_decay=0.5, fitted=lambda f: f["mean"])
    ),
    "ratio_by_counts": charts.ratio_by_counts(
        grid(rung=["a", "b"], weight_decay=[0.1, 0.5]).assign(
            ratio=2.0, low=0.1, high=30.0, predicted=1.9, predicted_low=1.8, predicted_high=2.0, slope=0.4
        )
    ),
    "effects": charts.effects(
        pd.DataFrame({"rung": ["10 epochs", "59 epochs"], "excess_average": [4.0, 0.01]}).assign(
            **{f"{name}{end}": 0.1 for name in ("low", "average", "high") for end in ("", "_low", "_high")}
        ),
        0.3,
    ),
    "slopes_by_size": charts.slopes_by_size(
        pd.DataFrame(
            {"rung": ["a", "b"], "n_targets": [8000, 90000], "below": [0.5, 0.1], "beyond": [0.5, 0.4]}
        ).assign(memorised=[True, False])
    ),
    "predictions": charts.predictions(
        pd.DataFrame({"panel": ["b", "a"], "ratio": 5.0, "low": 2.0, "high": 9.0}).assign(
            bent=6.0, bent_low=4.0, bent_high=9.0
        ),
        (5.7, 5.3, 6.1),
    ),
    "norms_by_frequency": charts.norms_by_frequency(
        grid(label=["a"], bin_low=[1, 3]).assign(bin="1–2", median=1.0, p10=0.5, p90=2.0, matrix="input")
    ),
    "gain_by_bin": charts.models_by_bin(
        grid(label=["a", "b"], bin_low=[1, 3]).assign(bin="1–2", gain=-1.0, n_types=3),
        "gain",
        "gain (nats)",
        title="a says what was found",
        baselines=grid(label=["unigram"], bin_low=[1, 3]).assign(bin="1–2", gain=1.0),
    ),
    "token_explorer": explorer.token_explorer(
        grid(token=[" a", "b"]).assign(
            kind="word start", n_train=[1, 30], loss_training=1.0, change_training=[0.1, 2.0], weight_decay=1.0
        )
    ),
    "learning_curves": charts.learning_curves(
        grid(weight_decay=LAMBDAS, bin_low=[1, 3], step=[10, 20]).assign(bin="1–2"), chance=7.0
    ),
    "rank_frequency": charts.rank_frequency(
        pd.DataFrame({"rank": [1, 2], "count": [5, 1]}), pd.DataFrame({"percentile": [95.0], "count": [4.0]})
    ),
    "coverage": charts.coverage(
        pd.DataFrame({"top_share": [0.1, 1], "coverage": [0.5, 1], "source": ["measured", "the paper's claim"]})
    ),
    "low_frequency_share": charts.low_frequency_share(
        pd.DataFrame({"vocab_size": [10, 20], "share": [0.1, 0.5], "definition": "d"})
    ),
    "coloured_tokens": charts.coloured_tokens(
        ["<script>alert(1)</script>", ' "x"', "\n", "y"], ["low", "high", "high", "low"]
    ),
    "in_context": charts.in_context(
        pd.DataFrame({"token": ["a", " rare"], "n_train": [9, 1], "loss": [np.nan, 2.0], "unigram": 3.0}), 1, chance=4.0
    ),
    "token_losses": charts.token_losses(
        pd.DataFrame({"token": ["a\n", "a\n"], "token_id": [1, 2], "n_train": 3, "loss": [2.0, 0.1], "accuracy": 0.5}),
        chance=1.5,
    ),
    "theory_loss": charts.theory_loss(
        pd.DataFrame(
            {
                "n_k": [1, 9] * 2,
                "weight_decay": [1e-4, 1e-4, 1e-3, 1e-3],
                "loss": [2, 1, 4, 2],
                "derivative": [9, 3, 8, 2],
            }
        ),
        pd.DataFrame({"weight_decay": [1e-3], "n_k": [2.0]}),
    ),
    "theory_fit": charts.theory_fit(
        pd.DataFrame({"n_k": [1, 9], "weight_decay": 0.1, "measured": [2, 1], "fitted": [2.1, 0.9]})
    ),
}


@pytest.mark.parametrize("name", ALL)
def test_every_chart_is_valid_described_and_titled(name):
    spec = ALL[name].to_dict()  # altair validates against the schema
    assert spec["description"] and spec["title"]
    assert sum(map(len, spec.get("datasets", {}).values())) < 5000


def find(spec, key):
    """Every value under `key`, at any depth."""
    if isinstance(spec, dict):
        for k, v in spec.items():
            if k == key:
                yield v
            yield from find(v, key)
    elif isinstance(spec, list):
        for v in spec:
            yield from find(v, key)


@pytest.mark.parametrize("name", ["figure_1", "figure_3", "by_bin"])
def test_intervals_over_seeds_are_drawn_and_splits_stand_side_by_side(name):
    spec = ALL[name].to_dict()
    assert spec["facet"]["column"]["sort"] == ["training", "held-out"]
    rules = [layer for layer in spec["spec"]["layer"] if layer["mark"]["type"] == "rule"]
    assert [(r["encoding"]["y"]["field"], r["encoding"]["y2"]["field"]) for r in rules] == [("low", "high")]
    assert all("xOffset" in layer["encoding"] for layer in spec["spec"]["layer"]), "an interval hides another"
    assert next(e["scale"] for e in find(spec, "y") if "scale" in e)["domainMin"] == 0 and rules[0]["mark"]["clip"]


@pytest.mark.parametrize("figure", [charts.figure_1, charts.figure_3])
def test_a_uniform_guess_is_drawn_on_held_out_text_alone(figure):
    splits = grid(weight_decay=[0.0, 0.5], split=["training", "held-out"])
    frame = pd.concat(
        [
            splits.assign(frequency_class=c, measure=m)
            for c, m in (("low", "average loss"), ("high", "token-balanced loss"))
        ]
    )
    spec = figure(frame, chance=7.0).to_dict()
    guess = [row for row in next(iter(spec["datasets"].values())) if row.get("baseline")]
    assert [(row["split"], row["λ"], row["mean"]) for row in guess] == [("held-out", w, 7.0) for w in ("0", "0.5")]
    assert not list(find(figure(frame).to_dict(), "strokeDash"))


def test_a_title_is_no_wider_than_two_panels():
    lines = charts.headline("rare words " + "pay and " * 20 + "pay: 3 nats; so (2) do others")
    assert len(lines) == 4 and max(map(len, lines)) <= 84 and lines[0].startswith("Rare") and lines[-1] == "So"


def test_learning_curves_have_bands_over_seeds():
    bands = [m for m in ALL["learning_curves"].to_dict()["spec"]["layer"] if m["mark"]["type"] == "area"]
    assert [(b["encoding"]["y"]["field"], b["encoding"]["y2"]["field"]) for b in bands] == [("low", "high")]


@pytest.mark.parametrize("name", ["by_bin_beside_baselines", "learning_curves"])
def test_baselines_are_dashed_and_drawn_apart_from_the_curves(name):
    """The curves leave the baselines' rows out, which have no λ, and the dashes are named in a legend."""
    layers = ALL[name].to_dict()["spec"]["layer"]
    filters = [layer["transform"][0]["filter"] for layer in layers]
    assert filters == ["!isValid(datum.baseline)"] * (len(layers) - 1) + ["isValid(datum.baseline)"]
    scale = layers[-1]["encoding"]["strokeDash"]["scale"]
    named = {row["baseline"] for row in rows_of(ALL[name]) if row.get("baseline")}
    assert set(scale["domain"]) == named and len(set(map(tuple, scale["range"]))) == len(named)


def test_the_line_of_chance_spans_each_panel_of_the_learning_curves():
    line = [r for r in rows_of(ALL["learning_curves"]) if r.get("baseline")]
    assert {(r["step"], r["mean"]) for r in line} == {(10, 7.0), (20, 7.0)}


@pytest.mark.parametrize(
    "name",
    [
        "figure_1",
        "figure_3",
        "by_bin",
        "learning_curves",
        "theory_loss",
        "theory_fit",
        "token_losses",
        "floors",
        "effects",
    ],
)
def test_losses_have_their_unit(name):
    assert any("nats" in str(title) for title in find(ALL[name].to_dict(), "title"))


def test_bins_stand_in_the_order_of_their_counts():
    assert next(e["sort"] for e in find(ALL["by_bin"].to_dict(), "x")) == ["1–2", "3–8", "9–26"]


def test_a_weight_decay_has_one_colour_whatever_the_others():
    few = charts.by_bin(BINS[BINS["weight_decay"].isin([0.0, 0.5])]).to_dict()
    colours = [
        next(c["scale"] for c in find(s, "color") if isinstance(c, dict) and "scale" in c)
        for s in (ALL["by_bin"].to_dict(), few)
    ]
    maps = [dict(zip(c["domain"], c["range"], strict=True)) for c in colours]
    assert maps[1]["0.5"] == maps[0]["0.5"] == theme.weight_decay_colour(0.5) and len(set(maps[0].values())) == 5


def test_colours_get_lighter_with_weight_decay():
    def luminance(colour):
        return sum(w * int(colour[i : i + 2], 16) for w, i in ((0.3, 1), (0.59, 3), (0.11, 5)))

    values = [luminance(theme.weight_decay_colour(w)) for w in (0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 1, 1.5, 2, 9)]
    assert values == sorted(values)


def test_colours_of_the_usual_weight_decays_are_told_apart():
    rgb = [
        np.array([int(theme.weight_decay_colour(w)[i : i + 2], 16) for i in (1, 3, 5)])
        for w in (0, 0.1, 0.3, 0.5, 1, 2)
    ]
    assert min(np.linalg.norm(a - b) for a, b in itertools.pairwise(rgb)) > 50


def test_the_legend_isolates_a_weight_decay():
    assert any(p.get("bind") == "legend" for params in find(ALL["by_bin"].to_dict(), "params") for p in params)


def test_a_shown_chart_is_interactive_and_a_picture_with_alternative_text():
    assert alt.renderers.active == "fairlm"
    data, metadata = ALL["by_bin"]._repr_mimebundle_()
    assert json.loads(json.dumps(data["application/vnd.vegalite.v5+json"]))["facet"]
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).convert("RGB"))
    assert (
        metadata["image/png"]["width"] <= 800
        and image.shape[1] == pytest.approx(2 * metadata["image/png"]["width"], abs=2)
        and len(np.unique(image.reshape(-1, 3), axis=0)) > 20
    )
    assert "weight decay" in metadata["image/png"]["alt"]


def rows_of(chart):
    return [row for rows in chart.to_dict()["datasets"].values() for row in rows]


def test_a_chart_that_cannot_be_drawn_says_so():
    with pytest.raises(RuntimeError, match="cannot be drawn as a PNG"):
        theme.png({"$schema": "https://vega.github.io/schema/vega-lite/v5.json", "mark": "no such mark"})


def test_tokens_are_data_not_markup():
    texts = [row["text"] for row in rows_of(ALL["coloured_tokens"])]
    assert texts[0] == "<script>alert(1)</script>" and texts[1] == '\u00a0"x"'


def test_the_letters_of_a_token_stand_after_its_spaces_and_lines_wrap():
    """Vega trims leading spaces, so that letters placed where the token begins would leave their box."""
    rows = rows_of(charts.coloured_tokens(["ab", "  cd", "\n", "x" * 9, "y"], ["low"] * 5, columns=9))
    assert [(r["x"], r["letters"], r["end"], r["y"]) for r in rows] == [
        (0, 0, 2, 0),
        (2, 4, 6, 0),
        (6, 6, 7, 0),
        (0, 0, 9, 1),
        (0, 0, 1, 2),
    ]


def test_wide_characters_take_two_columns_marks_none_and_a_long_token_is_cut():
    rows = rows_of(
        charts.coloured_tokens(["名前 ", "e\u0301", "\u0301", "\u3000は", "名" * 6, "\t\r"], ["low"] * 6, columns=9)
    )
    assert [(r["x"], r["letters"], r["end"], r["y"], r["text"]) for r in rows] == [
        (0, 0, 5, 0, "名前\u00a0"),
        (5, 5, 6, 0, "e\u0301"),
        (6, 6, 7, 0, "◌\u0301"),
        (0, 2, 4, 1, "\u3000は"),
        (0, 0, 8, 2, "名" * 4),
        (0, 0, 4, 3, "名" * 2),
        (4, 5, 6, 3, "\u00a0␍"),
    ]


def test_tokens_without_white_space_are_set_apart():
    rows = rows_of(charts.coloured_tokens(["the", "名", "cat"], ["low"] * 3, columns=9))
    assert [(r["x"], r["end"], r["y"]) for r in rows] == [(0, 3, 0), (4, 6, 0), (0, 3, 1)]


def test_types_that_read_the_same_keep_a_bar_each():
    spec = ALL["token_losses"].to_dict()
    bars, guess = spec["layer"]
    (drawn,), keys = spec["datasets"][guess["data"]["name"]], bars["encoding"]["y"]["sort"]
    assert len(set(keys)) == 2 and drawn == {"loss": 1.5}
    assert keys == [row["key"] for row in spec["datasets"][bars["data"]["name"]]]


def test_a_text_in_context_is_bold_where_its_types_are_rare():
    bold, other = (layer for layer in ALL["in_context"].to_dict()["layer"] if layer["mark"]["type"] == "text")
    assert bold["mark"]["fontWeight"] == "bold" and "fontWeight" not in other["mark"]
    assert [row["bold"] for row in rows_of(ALL["in_context"])] == [False, True]
    assert "bold" in str(bold["transform"]) and "!" in str(other["transform"])
