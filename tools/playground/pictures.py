"""Makes the pictures in `docs/pictures` from the playground itself, as the browser tests use it: `make pictures`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

import torch  # noqa: E402

import browsing  # noqa: E402
import heedful  # noqa: E402
from heedful.playground.mount import PATH, mount  # noqa: E402
from heedful.serve.app import WebPage  # noqa: E402
from serving import running  # noqa: E402

FOLDER = ROOT / "docs" / "pictures"
LARGEST = 250_000  # bytes
MARGIN = 10


def main() -> None:
    """Answers the first example, and takes the whole page and one token's details."""
    if browsing.installed() is None:
        sys.exit("no browser is installed: apt-get install chromium")
    torch.set_num_threads(1)
    FOLDER.mkdir(exist_ok=True)
    where = running(heedful.load(dtype="float32"), context=1024, page=WebPage(PATH, mount))
    with where as here, browsing.launched() as browser:
        whole = answered(browser, here.url, 1)
        take(whole.page, "playground", ["#hp-title", "#hp-run", ".hp-column >> nth=1"])
        whole.close()
        close = answered(browser, here.url, 2)
        close.page.locator("#hp-answer-2 .hp-changed").filter(has_text="acon").hover()
        take(close.page, "playground-token", [".hp-column >> nth=1", ".hp-figure >> nth=1"])
        close.close()


def answered(browser: Any, url: str, scale: int) -> browsing.Tab:
    """A tab with the first example's answers, tall enough to show them all."""
    tab = browsing.Tab(browser, url, width=1100, device_scale_factor=scale)
    tab.page.set_viewport_size({"width": 1100, "height": 1800})
    tab.fill(example="Bullet list", tokens=60)
    tab.page.locator("#hp-run").click()
    tab.has_run()
    tab.page.mouse.move(0, 0)
    return tab


def take(page: Any, name: str, selectors: list[str]) -> None:
    """A picture of what lies around the elements that `selectors` name."""
    boxes = [page.locator(selector).bounding_box() for selector in selectors]
    left, top = (min(box[side] for box in boxes) - MARGIN for side in ("x", "y"))
    right = max(box["x"] + box["width"] for box in boxes) + MARGIN
    bottom = max(box["y"] + box["height"] for box in boxes) + MARGIN
    clip = {"x": left, "y": top, "width": right - left, "height": bottom - top}
    path = FOLDER / f"{name}.png"
    page.screenshot(path=path, clip=clip)
    size = path.stat().st_size
    print(f"{path.relative_to(ROOT)}: {size} bytes")
    if size > LARGEST:
        sys.exit(f"{path} has {size} bytes; at most {LARGEST} are kept")


if __name__ == "__main__":
    main()
