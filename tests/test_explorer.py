"""The token explorer at the size of a whole vocabulary: light to keep, few marks to draw, and usable in a browser."""

import json
import re

import numpy as np
import pandas as pd
import pytest
import vl_convert

from fairlm_utils.analysis import explorer, theme
from tests.chromium import SCREENSHOTS, browser, needs_browser  # noqa: F401 (a fixture)

N_TYPES = 32_005


@pytest.fixture(scope="module")
def vocabulary() -> pd.DataFrame:
    """A made-up vocabulary whose counts fall as Zipf's law and whose rare types change most."""
    rng = np.random.default_rng(0)
    letters = rng.choice(list("abcdefghijklmnopqrstuvwxyz"), (N_TYPES, 8))
    words = ["".join(row[: 2 + i % 7]) for i, row in enumerate(letters)]
    n_train = np.maximum(1, 1e5 / np.arange(1, N_TYPES + 1) ** 1.05).astype(int)
    change = rng.normal(2, 1, N_TYPES) * (1.5 / np.sqrt(1 + n_train) + 0.05)
    frame = pd.DataFrame({"token": [" " * (i % 2) + word for i, word in enumerate(words)], "kind": "word start"})
    frame = frame.assign(n_train=n_train, loss_training=rng.gamma(2, 1, N_TYPES), change_training=change)
    frame.loc[0, "token"] = 'odd, "quoted"\nand\\broken'
    return frame.assign(weight_decay=1.0)


@pytest.fixture(scope="module")
def chart(vocabulary):
    return explorer.token_explorer(vocabulary)


def test_a_whole_vocabulary_is_a_few_hundred_marks_and_a_small_file(chart):
    spec = json.dumps(chart.to_dict())
    assert len(spec) < 2_000_000
    svg = vl_convert.vegalite_to_svg(spec)
    assert 100 < len(re.findall(r"<(?:path|text|rect|line)\b", svg)) < 800
    _, width, _ = theme.png(chart, scale=1)
    assert width <= 860, "wider than a notebook's column"


def test_the_list_begins_with_the_types_that_change_most(chart, vocabulary):
    svg = vl_convert.vegalite_to_svg(json.dumps(chart.to_dict()))
    first = vocabulary.sort_values("change_training", ascending=False)["token"].head(20).str.replace(" ", "␣")
    assert all(f">{token}</text>" in svg for token in first)


@pytest.mark.parametrize("token", ['a, "b"', "\n", "\\", " x", "nan", "007", "é\u200b", "<b>", "'"])
def test_any_spelling_survives_in_the_data_of_the_chart(token):
    frame = pd.DataFrame({"token": [token, "y"], "kind": "k", "n_train": [1, 30], "weight_decay": 1.0})
    chart = explorer.token_explorer(frame.assign(loss_training=1.0, change_training=[2.0, 0.1]))
    drawn = vl_convert.vegalite_to_svg(json.dumps(chart.to_dict()))
    expected = repr(token)[1:-1].replace(" ", "␣").replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert f">{expected}</text>" in drawn.replace("&quot;", '"')


def listed(page) -> list[tuple[str, int]]:
    """Tokens and training counts of the list as it is now."""
    texts = page.locator('#vis svg text[font-family*="Mono"]').all_text_contents()
    n = len(texts) // 4  # columns: token, count, loss, change
    return [(token, int(count.replace(",", ""))) for token, count in zip(texts[:n], texts[n : 2 * n], strict=True)]


def changed(page, before: list) -> list[tuple[str, int]]:
    """The list as soon as it is another one."""
    for _ in range(50):
        if (now := listed(page)) != before:
            return now
        page.wait_for_timeout(100)
    pytest.fail("the list stays as it was")


@needs_browser
def test_search_and_rectangle_change_the_list_in_a_browser_without_a_network(chart, tmp_path, browser):
    file = tmp_path / "explorer.html"
    file.write_text(chart.to_html(inline=True, embed_options={"renderer": "svg"}), encoding="utf-8")
    page = browser.new_page(viewport={"width": 900, "height": 620})
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None)
    page.on("request", lambda r: problems.append(r.url) if r.url.startswith("http") else None)
    page.goto(file.as_uri())
    page.wait_for_selector("#vis svg text")
    whole = listed(page)
    page.screenshot(path=SCREENSHOTS / "explorer.png")
    assert len(whole) == 24

    page.locator(".vega-bind input").fill("ZQ")
    searched = changed(page, whole)
    page.screenshot(path=SCREENSHOTS / "explorer-search.png")
    assert searched and all("zq" in token for token, _ in searched)
    page.locator(".vega-bind input").fill("")
    assert changed(page, searched) == whole

    view = page.locator("#vis svg .mark-group.concat_0_group, #vis svg g.concat_0_group").first.bounding_box()
    page.mouse.move(view["x"] + 0.45 * view["width"], view["y"] + 0.50 * view["height"])
    page.mouse.down()
    page.mouse.move(view["x"] + 0.75 * view["width"], view["y"] + 0.95 * view["height"], steps=8)
    page.mouse.up()
    inside = changed(page, whole)
    page.wait_for_timeout(500)
    inside = listed(page)
    page.screenshot(path=SCREENSHOTS / "explorer-rectangle.png")
    assert inside and all(n > 50 for _, n in inside), "types outside the rectangle"
    assert problems == []
    page.close()
