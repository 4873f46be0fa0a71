"""The map: rates and λ are chosen by the held-out average, and what a group forgoes by hand-made losses."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from fairlm_utils import files
from fairlm_utils.analysis import charts, forgone
from fairlm_utils.files import RunError

CELLS = {"30k targets, 1 epoch": 6.9, "2M targets, 10 epochs": 4.0}


def losses(rate, wd, seed, split, base):
    """Held-out average best at λ = 1 (at rate 0.1) and, of all, at rate 0.2 and λ = 1; low best at λ = 3; training at λ = 0."""
    if split == "training":
        return base - 1 + 0.2 * wd, base + 0.5 * wd
    average = base + 0.1 * abs(wd - 1) + {0.1: 0.0, 0.2: 0.3 if wd == 0 else -0.2}[rate]
    return average, base + 2 + 0.01 * seed - 0.1 * wd


@pytest.fixture
def path(tmp_path):
    rows = []
    for cell, base in CELLS.items():
        for rate in (0.1, 0.2):
            for wd in (0.0, 1.0, 3.0):
                for seed in (0, 1, 2):
                    for split in ("training", "held-out"):
                        average, low = losses(rate, wd, seed, split, base)
                        rows.append(
                            [
                                "qwen2-tiny",
                                f"{cell}, lr {rate:g}",
                                wd,
                                seed,
                                split,
                                7.0,
                                average,
                                low,
                                low,
                                average,
                                low,
                            ]
                        )
    file = tmp_path / "map.csv"
    pd.DataFrame(rows, columns=[*forgone.COLUMNS, "1–2"]).to_csv(file, index=False)
    return file


def test_rate_is_chosen_without_decay_and_weight_decay_at_that_rate(path):
    alone, together = (forgone.choices(forgone.read(path), jointly).set_index("cell") for jointly in (False, True))
    assert (
        alone["base_rate"].eq(0.1).all() and alone["learning_rate"].eq(0.1).all() and alone["weight_decay"].eq(1).all()
    )
    assert together["base_rate"].eq(0.1).all() and together["learning_rate"].eq(0.2).all()
    assert together["average"].tolist() == pytest.approx([6.7, 3.8])
    assert together["useful"].tolist() == [False, True]  # 6.7 is not 0.3 below the unigram's 7.0


def test_a_rate_of_one_seed_is_compared_with_the_same_seed_of_others(path):
    frame = forgone.read(path)
    plain = frame[(frame["weight_decay"] == 0) & (frame["learning_rate"] == 0.1)]
    lucky = (plain["seed"] == 0) & (plain["split"] == "held-out")
    frame.loc[lucky[lucky].index, "average"] -= 0.3
    one = plain[plain["seed"] == 0].assign(
        learning_rate=0.05, average=lambda t: t["average"] - 0.2
    )  # below the mean of three
    assert forgone.choices(pd.concat([frame, one]))["base_rate"].eq(0.1).all()
    assert forgone.choices(pd.concat([frame, one.assign(average=one["average"] - 0.2)]))["base_rate"].eq(0.05).all()


def test_what_a_group_forgoes_is_against_the_choice_of_the_other_seeds(path):
    seeds = forgone.by_seed(forgone.read(path))
    table = forgone.forgone(seeds).set_index(["cell", "split", "group"]).loc["2M targets, 10 epochs"]
    rare = table.loc[("held-out", "low")]
    assert (rare["change"], rare["forgone"], rare["own_weight_decay"]) == pytest.approx((-0.1, 0.2, 3.0))
    assert table.loc[("training", "low"), "forgone"] == pytest.approx(0.5)  # λ = 0 is best there
    assert table.loc[("held-out", "average"), "forgone"] == pytest.approx(0.0)
    frame = forgone.read(path)
    lucky = (frame["weight_decay"] == 0) & (frame["seed"] == 0) & (frame["split"] == "held-out")
    frame.loc[lucky, "low"] -= 0.25  # one seed's luck: it does not make λ = 0 its own best, for the others choose
    of_seed = forgone.by_seed(frame).query("cell == '2M targets, 10 epochs' and group == 'low' and split == 'held-out'")
    assert of_seed.set_index("seed").loc[0, "forgone"] == pytest.approx(0.2)


def test_a_run_that_stands_twice_is_named(path):
    table = pd.read_csv(path)
    pd.concat([table, table[3:4]]).to_csv(path, index=False)
    with pytest.raises(RunError, match="held-out stands twice"):
        forgone.read(path)


def test_a_rate_that_is_best_by_fewer_seeds_is_named(path):
    table = forgone.read(path)
    best = (table["learning_rate"] == 0.1) & (table["weight_decay"] == 0) & (table["seed"] == 2)
    with pytest.raises(RunError, match=r"epoch: rate 0\.1, the best at λ = 0, was not run there with seed 2; run it"):
        forgone.by_seed(table[~best])


def test_what_is_said_is_what_the_table_holds(path):
    table = forgone.read(path)
    alone, together = forgone.by_seed(table), forgone.by_seed(table, jointly=True)
    verdict, choice, training, decay, useless = forgone.say(alone, together)
    assert verdict.startswith("Of 2 pairs of text size and epochs 1 give") and "forgo at most 0.200 nats" in verdict
    # at the lone useful cell λ = 1 lowers both classes by 0.1 nats (`losses`), so that the rare do not gain more
    assert choice == "That λ is 0 in 0 of the 1; in the other 1 the rare gain more by it than the frequent in 0."
    assert "costs them up to 0.50 nats" in training and training.endswith(
        ", which is memorisation: on held-out text they gain 0.100 there."
    )
    assert "from 10 epochs on (1 such pairs)" in decay and "Their training loss rises in 1." in decay
    assert (
        "-0.10 to -0.10 nats and that of high-frequency ones by -0.30 to -0.30: the rare gain more in 0 of 1" in decay
    )
    assert "fewer epochs" not in decay
    assert "(30k targets, 1 epoch)" in useless and "choose λ = 3" in useless
    drawn = forgone.rare_on_map(alone)
    assert drawn[0]["targets"].cat.categories.tolist() == ["30k", "2M"] and "0.20 nats of held-out" in drawn[3]
    spec = charts.regime_map(*drawn).to_dict()
    said = [row["said"] for rows in spec["datasets"].values() for row in rows]
    drawn[0].loc[drawn[0].index[0], drawn[1]] = -0.001
    again = [row["said"] for rows in charts.regime_map(*drawn).to_dict()["datasets"].values() for row in rows]
    assert "+0.00" in again and "-0.00" not in again
    assert said.count("not run") == 4 and "+0.20" in said  # a cell of either size was run at one number of epochs


@pytest.mark.parametrize("rise, said", [(0.02, ", nearly all of which is memorisation: "), (0.1, "epochs): ")])
def test_where_rare_types_lose_on_held_out_text_that_is_said(path, rise, said):
    table = forgone.read(path)
    table.loc[table["split"] == "held-out", "low"] += (0.1 + rise) * table["weight_decay"]
    _, choice, training, *_ = forgone.say(*(forgone.by_seed(table, jointly) for jointly in (False, True)))
    assert choice.endswith(
        f"more by it than the frequent in 0, and lose by it in 1, at most {rise:.3f} nats (2M targets, 10 epochs)."
    )
    assert said + f"on held-out text they lose {rise:.3f} there." in training


def test_a_cell_where_fewer_epochs_without_decay_do_better_is_named(path):
    table = forgone.read(path)
    longer = table.query("cell == '2M targets, 10 epochs'")
    shorter = longer.assign(
        cell="2M targets, 3 epochs", average=longer["average"] - 0.5
    )  # 3.6 without decay against 3.8 with
    *_, idle, _ = forgone.say(*(forgone.by_seed(pd.concat([table, shorter]), jointly) for jointly in (False, True)))
    assert idle == "In 1 of the 1 fewer epochs without decay do better still."
    another = longer.assign(cell="3M targets, 10 epochs")
    three = pd.concat([table, shorter, another])
    *_, idle, _ = forgone.say(*(forgone.by_seed(three, jointly) for jointly in (False, True)))
    assert idle.endswith(
        "still; in the others, against the best number of epochs without decay, the changes are -0.10 to -0.10 and -0.30 to -0.30."
    )
    better = longer.assign(cell="2M targets, 3 epochs", average=longer["average"] - 0.2, low=longer["low"] - 0.05)
    *_, idle, _ = forgone.say(*(forgone.by_seed(pd.concat([table, better]), jointly) for jointly in (False, True)))
    assert idle.startswith("In 0 of the 1 ") and idle.endswith("the changes are -0.05 to -0.05 and -0.30 to -0.30.")


def test_other_rates_without_decay_that_are_nearly_as_good_are_compared_too(path):
    table = forgone.read(path)
    assert forgone.say_other_rates(table)[0] == "No other rate without decay lies within 0.03 nats of the best."
    plain = table[(table["learning_rate"] == 0.1) & (table["weight_decay"] == 0)]
    tied = plain.assign(learning_rate=0.05, average=plain["average"] + 0.01, low=plain["low"] + 0.4)
    (said,) = forgone.say_other_rates(pd.concat([table, tied]))
    assert (
        said.startswith("Against 1 other rates, without decay")
        and "the rare gain more in 1, least at 0.05 in 2M targets, 10 epochs" in said
    )
    assert "-0.500 nats against -0.300, difference -0.200 [-0.200, -0.200]" in said
    decayed = table[(table["learning_rate"] == 0.1) & (table["weight_decay"] == 1)].assign(learning_rate=0.05)
    _, said = forgone.say_other_rates(pd.concat([table, tied, decayed]))
    assert (
        said
        == "At those of them that were run with decay (1) λ chosen alone changes the loss of rare types by -0.50 to -0.50."
    )


def test_what_decay_does_to_a_rate_is_told_from_what_it_does_to_rare_types(path):
    table = forgone.read(path)
    together = forgone.by_seed(table, jointly=True)
    said = forgone.say_control(table, together)
    assert (
        said.startswith("A λ above 0 is chosen with the rate in 1 of the 1 cells of use")
        and "in 1 (2M targets, 10 epochs)" in said
    )
    assert said.endswith("In 1 of the 1 the rate is the largest tried with decay, which may buy more at a larger one.")
    faster = table[(table["learning_rate"] == 0.2) & (table["weight_decay"] == 1)].assign(
        learning_rate=0.4, average=9.0
    )
    more = pd.concat([table, faster])
    assert "In 0 of the 1 the rate is" in forgone.say_control(more, forgone.by_seed(more, jointly=True))
    slower = table.assign(low=table["low"] - 0.05 * ((table["learning_rate"] == 0.1) & (table["weight_decay"] == 0)))
    said = forgone.say_own_rate(slower, "2M targets, 10 epochs", 0.2, 1.0)
    assert "gain 0.100 nats by λ = 1; against the best rate without decay, 0.1, it is 0.050" in said


def test_the_line_through_widths_is_that_of_its_points(path):
    frame = forgone.read(path).query("cell == '2M targets, 10 epochs'")
    wide = [
        frame.assign(model=m, low=frame["low"] - k * 0.1 * frame["weight_decay"]) for k, m in enumerate(forgone.WIDTHS)
    ]
    line = forgone.by_width(forgone.by_seed(pd.concat(wide))).set_index("quantity").loc["change"]
    assert line["slope"] == pytest.approx(-0.1) and line["predicted"] == pytest.approx(-0.1 - 0.1 * np.log2(1280 / 128))
    assert "in no order" not in forgone.say_width(forgone.by_seed(pd.concat(wide)))
    swapped = pd.concat([wide[0].assign(model=wide[1]["model"]), wide[1].assign(model=wide[0]["model"]), wide[2]])
    assert "in no order of width, so that a line" in forgone.say_width(forgone.by_seed(swapped))
    deep = frame.assign(model="deep")
    seeds = forgone.by_seed(pd.concat([*wide, deep]))
    assert "grows with width" in forgone.say_width(seeds) and "(4.100, 4.100, 4.100 nats)" in forgone.say_width(seeds)
    assert "for qwen2-tiny and qwen2-tiny-wide and qwen2-tiny-wider the smallest or largest" in forgone.say_width(seeds)
    worse = [f[f["learning_rate"] == 0.1].assign(learning_rate=0.05, average=lambda t: t["average"] + 1) for f in wide]
    beyond = pd.concat([*wide, *worse[:2]])
    assert "for qwen2-tiny-wider the smallest or largest" in forgone.say_width(forgone.by_seed(beyond))
    beyond = pd.concat([*wide, *worse])
    assert forgone.say_width(forgone.by_seed(beyond)).endswith("at a rate better than a smaller and a larger one.")
    (said,) = forgone.say_others(seeds)
    assert said.startswith(
        "deep, λ = 1: the held-out loss of low-frequency types changes by -0.100 nats [-0.100, -0.100]"
    )


def test_what_is_found_on_drawn_blocks_stands_beside_the_map(path):
    losses = forgone.read(path)
    drawn = losses.assign(low=losses["low"] - 0.05 * losses["weight_decay"]).query("cell == '2M targets, 10 epochs'")
    alone, together = forgone.say_drawn(drawn, losses)
    assert (
        "λ chosen alone" in alone
        and "by, nats: 2M targets, 10 epochs -0.150 [-0.150, -0.150] (the map's -0.100)" in alone
    )
    assert "30k" not in alone and "rate and λ chosen together" in together
    other = drawn.assign(model="deep")
    (said, _) = forgone.say_drawn(other, pd.concat([losses, losses.assign(model="deep")]))
    assert "nats: deep, 2M targets, 10 epochs -0.150" in said


def test_gains_of_bins_are_those_of_the_setting_that_is_chosen_with_the_rate(path):
    table = forgone.read(path)
    bins = {"split": ["held-out", "training"], "bin": "1–2", "bin_low": 1, "n_types": 7}
    of_runs = [pd.DataFrame({**bins, "variant": f"{cell}, lr 0.1", "loss": 8.0, "gain": 1.5}) for cell in CELLS]
    unigrams = forgone.bin_unigrams(SimpleNamespace(bins=pd.concat(of_runs)))
    assert unigrams[["n_types", "unigram"]].to_numpy().tolist() == [[7, 9.5]] * 2
    found = forgone.gains(table, unigrams)
    # rate 0.2 and λ = 1: averages 0.2 below the bases, the bin's losses 2 + 0.01 seeds - 0.1 above them
    assert found["cell"].tolist() == list(CELLS) and found["average_gain"].tolist() == pytest.approx([0.3, 3.2])
    assert found["weight_decay"].eq(1).all() and found["gain"].tolist() == pytest.approx([9.5 - 8.81, 9.5 - 5.91])


def test_committed_gains_are_those_of_the_committed_map():
    folder = files.PROJECT / "results" / "map"
    committed, table = pd.read_csv(folder / "gains.csv"), forgone.read(folder / "map.csv")
    assert set(committed["cell"]) == set(forgone.of_map(table)["cell"])
    found = forgone.gains(table, committed[forgone.UNIGRAMS])
    pd.testing.assert_frame_equal(found, committed, check_dtype=False, atol=1e-9)


def test_a_table_without_rates_is_refused(tmp_path, path):
    pd.read_csv(path).assign(variant="no rate").to_csv(tmp_path / "other.csv", index=False)
    with pytest.raises(RunError, match="do not end in 'lr RATE'"):
        forgone.read(tmp_path / "other.csv")
