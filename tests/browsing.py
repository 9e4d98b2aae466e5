"""A real browser: Debian's Chromium, or what else of its kind there is, through Playwright."""

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, expect, sync_playwright

from heedful.playground.mount import PATH

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
SCREENSHOTS = Path(__file__).parent.parent / "screenshots"
SECONDS = 60.0  # for an answer; one core may be shared with many

expect.set_options(timeout=20_000)


def installed() -> str | None:
    """The browser's path."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def launched() -> Iterator[Browser]:
    """The browser, which must be installed."""
    path = installed()
    assert path is not None
    # Chromium's own sandbox refuses to work for root, which is who tests are in a container.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()


class Tab:
    """The playground in a tab of its own, as somebody uses it. `complaints`: what the browser's console said."""

    def __init__(self, browser: Browser, url: str, width: int = 1280, fragment: str = "", **context: Any) -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 900}, **context)
        self.page: Page = self.context.new_page()
        self.complaints: list[str] = []
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.complaints.append(dialog.message), dialog.dismiss()))
        self.page.on("console", lambda told: told.type == "error" and self.complaints.append(told.text))
        self.page.goto(f"{url}{PATH}/{fragment}")
        expect(self.page.locator("#hp-run")).to_be_visible()

    @property
    def prompt(self) -> Any:
        return self.page.locator("#hp-prompt textarea")

    @property
    def note(self) -> Any:
        return self.page.locator("#hp-note")

    @property
    def marks(self) -> Any:
        return self.page.locator("#hp-preview mark")

    def fill(self, prompt: str = "", checks: Sequence[str] = (), tokens: int = 0, example: str = "") -> None:
        """Fills in what is given."""
        if example:
            self.page.get_by_role("button", name=example).click()
            expect(self.marks.first).to_be_visible()
        if prompt:
            self.prompt.fill(prompt)
        if checks:
            self.page.locator("#hp-checks textarea").fill("\n".join(checks))
        if tokens:
            number = self.page.locator("#hp-tokens input[type=number]")
            number.fill(str(tokens))
            number.press("Enter")
            expect(number).to_have_value(str(tokens))

    def has_run(self) -> None:
        """Waits for the end of the answers."""
        expect(self.note).to_contain_text("Done.", timeout=SECONDS * 1000)

    def until(self, script: str, value: Any = None) -> None:
        """Waits until the JavaScript function gives true for `value`."""
        self.page.wait_for_function(script, arg=value, timeout=SECONDS * 1000)

    def answers(self, *texts: str) -> None:
        """Waits until the columns show these texts, the small numbers left out."""
        script = """texts => texts.every((text, at) => {
            const tokens = document.querySelectorAll(`#hp-answer-${at + 1} .hp-t`);
            return text === [...tokens].map(token => {
                const copy = token.cloneNode(true);
                copy.querySelectorAll('sup, .hp-none').forEach(one => one.remove());
                return copy.textContent;
            }).join('');
        })"""
        self.until(script, list(texts))

    def selects(self, text: str) -> None:
        """Waits until `text` is what is selected in the prompt, which has the focus."""
        script = """text => {
            const area = document.querySelector("#hp-prompt textarea");
            const {selectionStart: start, selectionEnd: end} = area;
            return document.activeElement === area && area.value.slice(start, end) === text;
        }"""
        self.until(script, text)

    def shows(self, html: str) -> None:
        """Waits until the columns are exactly these."""
        self.until("html => document.querySelector('.hp-columns')?.innerHTML === html", html)

    def open_file(self, path: Path) -> None:
        """Opens a file with the page's own button."""
        with self.page.expect_file_chooser() as chosen:
            self.page.get_by_role("button", name="Open file").click()
        chosen.value.set_files(path)

    def shoot(self, name: str, folder: Path = SCREENSHOTS) -> Path:
        """Keeps a picture of the whole page."""
        folder.mkdir(exist_ok=True)
        path = folder / f"{re.sub(r'[^a-z0-9]+', '-', name.lower())}.png"
        self.page.screenshot(path=path, full_page=True)
        return path

    def close(self) -> None:
        """Closes the tab, and holds its silence."""
        self.context.close()
        assert self.complaints == []
