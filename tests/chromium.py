"""What tests in a browser share. They are left out where there is no Chromium or Playwright, unless FAIRLM_BROWSER=1
(set by CI) asks for them. Screenshots go to runs/screenshots/."""

import importlib.util
import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SCREENSHOTS = Path(__file__).parents[1] / "runs" / "screenshots"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
#: Without a display, as root in a container, and with no traffic of its own.
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip

needs_browser = pytest.mark.skipif(
    os.environ.get("FAIRLM_BROWSER") != "1" and not (CHROMIUM and importlib.util.find_spec("playwright")),
    reason="needs Chromium, and Playwright: pip install -e '.[browser]'",
)


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


def is_blank(picture: bytes) -> bool:
    """Whether a picture has hardly any ink."""
    pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("L"))
    return (pixels < 200).mean() < 0.002
