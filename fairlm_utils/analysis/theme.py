"""How all charts look: one theme, one colour per λ, and a renderer that shows them with and without a network.

Importing this module enables both: a chart is shown as an interactive Vega-Lite view in JupyterLab, without a network,
and as a picture wherever notebooks are only displayed.
"""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import altair as alt
import numpy as np
import vl_convert
from PIL import Image

WIDTH, HEIGHT = 270, 240  # two panels and a legend fill the 800 pixels of a notebook
#: Colours by λ, dark to light on the viridis scale, safe for colour-blind readers; wider steps where λ is common.
WEIGHT_DECAY_COLOURS = {
    0.0: "#440154",
    0.01: "#482475",
    0.03: "#414487",
    0.1: "#355f8d",
    0.2: "#2a788e",
    0.3: "#1f9e89",
    0.5: "#44bf70",
    1.0: "#89d548",
    2.0: "#e8d51c",
}


@alt.theme.register("fairlm", enable=True)
def _theme() -> alt.theme.ThemeConfig:
    return {
        "config": {
            "font": "system-ui, 'DejaVu Sans', sans-serif",
            "background": "white",
            "view": {"continuousWidth": WIDTH, "continuousHeight": HEIGHT, "stroke": "#d0d0d0"},
            "axis": {"labelFontSize": 12, "titleFontSize": 13, "titleFontWeight": "normal", "gridColor": "#ececec"},
            "legend": {"labelFontSize": 12, "titleFontSize": 13, "titleFontWeight": "normal", "symbolSize": 90},
            "header": {"labelFontSize": 13, "titleFontSize": 13, "labelFontWeight": "bold"},
            "title": {"fontSize": 15, "anchor": "start", "subtitleFontSize": 12, "subtitleColor": "#555555"},
        }
    }


def png(chart: Any, scale: float = 2.0) -> tuple[bytes, int, int]:
    """A chart, or its specification, as the bytes of a PNG, with the width and height at which to show it in pixels.

    Raises RuntimeError if the converter cannot draw it.
    """
    spec = chart if isinstance(chart, dict) else chart.to_dict()
    try:
        drawn = vl_convert.vegalite_to_png(json.dumps(spec), scale=scale)
    except ValueError as error:
        raise RuntimeError(
            f"the chart cannot be drawn as a PNG ({error}); check its table, then the package vl-convert-python"
        ) from error
    image = Image.open(io.BytesIO(drawn))
    file = io.BytesIO()
    image.convert("RGB").quantize(128).save(file, "PNG", optimize=True)  # a tenth of the bytes: notebooks stay light
    return file.getvalue(), round(image.width / scale), round(image.height / scale)


def _mimebundle(spec: dict[str, Any], **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The chart as a Vega-Lite specification and as a picture with alternative text."""
    picture, width, height = png(spec)
    alt_text = spec.get("description") or "chart"
    bundle = {
        "application/vnd.vegalite.v5+json": spec,  # JupyterLab registers version 5; nothing used here differs in 6
        "image/png": base64.b64encode(picture).decode(),
        "text/plain": f"<chart: {alt_text}>",
    }
    return bundle, {"image/png": {"width": width, "height": height, "alt": alt_text}}


alt.renderers.register("fairlm", _mimebundle)
alt.renderers.enable("fairlm")


def weight_decay_colour(weight_decay: float) -> str:
    """The colour of a weight decay λ, the same in every chart."""
    channels = ([int(colour[i : i + 2], 16) for colour in WEIGHT_DECAY_COLOURS.values()] for i in (1, 3, 5))
    return "#" + "".join(f"{round(np.interp(weight_decay, list(WEIGHT_DECAY_COLOURS), c)):02x}" for c in channels)
