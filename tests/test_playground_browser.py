"""The playground as a person meets it, in a real browser. Keeps pictures in `screenshots/`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import heedful
from heedful.serve.app import WebPage
from heedful.serve.protocol import Token
from heedful.serve.worker import Limits
from heedful.trace import Alternative, Stats, Step
from serving import Running, running

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")

import browsing  # noqa: E402
from browsing import Tab, expect  # noqa: E402
from heedful.playground.exchange import from_json, to_json  # noqa: E402
from heedful.playground.mount import PATH, mount  # noqa: E402
from heedful.playground.state import Column, Inputs, Screen, Told  # noqa: E402

pytestmark = [
    pytest.mark.skipif(browsing.installed() is None, reason="no browser is installed: apt-get install chromium"),
    # Playwright leaves its own pipes to the collector.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
QUESTION, INSTRUCTION = "Tell me about the Moon.", "Do not use any commas."
MARKED = f"{QUESTION} <heed>{INSTRUCTION}</heed>"
EVIL = "<script>window.evil=1</script><img src=x onerror='window.evil=2'>{{7*7}}${window.evil=3}"


@pytest.fixture(scope="module")
def server(lm: heedful.LM) -> Iterator[Running]:
    with running(lm, context=1024, limits=Limits(max_running=8), page=WebPage(PATH, mount)) as here:
        yield here


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with browsing.launched() as found:
        yield found


def is_clean(tab: Tab) -> bool:
    """Whether nothing that anybody wrote was run, or became an element."""
    evil = "document.querySelectorAll('.hp-columns :is(script, img), #hp-preview :is(script, img), #hp-tip img').length"
    return not tab.page.evaluate(f"window.evil || {evil}")


def test_type_mark_run_look_save_and_open_again(server: Running, browser: Any, lm: heedful.LM, tmp_path: Path) -> None:
    tab = Tab(browser, server.url, accept_downloads=True)
    keys = tab.page.keyboard

    # Typed and marked by the keyboard alone.
    expect(tab.prompt).to_be_focused()
    keys.type(f"{QUESTION} {INSTRUCTION}")
    expect(tab.page.locator("#hp-preview")).to_contain_text("0 tokens are steered")
    for _ in INSTRUCTION:
        keys.press("Shift+ArrowLeft")
    keys.press("Alt+m")
    expect(tab.prompt).to_have_value(MARKED)
    expect(tab.marks).to_have_count(len(lm.encode(MARKED).span))
    keys.press("Alt+m")  # what was marked is still selected: the mark is taken off
    expect(tab.prompt).to_have_value(f"{QUESTION} {INSTRUCTION}")
    tab.page.get_by_role("button", name="Find them").press("Enter")
    expect(tab.prompt).to_have_value(MARKED)
    expect(tab.note).to_contain_text("1 instruction was found")

    # Answered side by side, as the library answers.
    tab.fill(checks=["no_comma", "regex:(a|aa)+!$", "min_words:3"], tokens=16)
    keys.press("Control+Enter")
    tab.has_run()
    plain = lm.generate(MARKED, method=None, max_new_tokens=16)
    steered = lm.generate(MARKED, max_new_tokens=16)
    assert (tab.answer(1), tab.answer(2)) == (plain.text, steered.text)
    assert plain.text != steered.text
    column = tab.page.locator(".hp-column").nth(1)
    assert column.locator(".hp-changed").count() == steered.stats.changed > 0
    assert column.locator(".hp-rejected").count() == steered.stats.rejected
    expect(column.locator(".hp-checks")).to_contain_text("✓ holds no_comma")
    expect(tab.page.locator(".hp-column").nth(0).locator(".hp-checks")).to_contain_text("✗ broken no_comma")
    expect(tab.page.locator("#hp-figures svg")).to_have_count(1)
    expect(tab.page.locator(".hp-speeds tr")).to_have_count(2)

    # Details by pointer and by keyboard.
    tip = tab.page.locator("#hp-tip")
    column.locator(".hp-changed").first.hover()
    expect(tip).to_be_visible()
    expect(tip).to_contain_text("changed: steered in")
    expect(tip).to_contain_text("%")
    tab.shoot("desktop")
    tab.page.locator("#hp-answer-2").focus()
    first = tip.inner_text()
    keys.press("ArrowRight")
    assert tip.inner_text() != first
    keys.press("Home")
    assert tip.inner_text() == first
    keys.press("Escape")
    expect(tip).to_be_hidden()

    # A narrow window.
    tab.page.set_viewport_size({"width": 360, "height": 740})
    assert tab.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    tab.page.locator("#hp-answer-2 .hp-changed").first.click()
    expect(tip).to_be_visible()
    box = tip.bounding_box()
    assert box is not None
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 360
    tab.shoot("narrow")
    keys.press("Escape")
    tab.page.set_viewport_size({"width": 1280, "height": 900})

    # A file, and a link.
    with tab.page.expect_download() as download:
        tab.page.get_by_role("button", name="Save file").click()
    path = tmp_path / "screen.json"
    download.value.save_as(path)
    screen = from_json(path.read_text(encoding="utf-8"))
    assert screen.inputs.prompt == MARKED
    assert [answer.text for answer in screen.answers] == [plain.text, steered.text]
    tab.page.get_by_role("button", name="Copy link").click()
    expect(tab.note).to_contain_text("link")
    tab.page.wait_for_function("location.hash.startsWith('#heed=')")
    link = tab.page.evaluate("location.hash")
    shown = tab.page.locator(".hp-columns").first.inner_html()
    tab.close()

    again = Tab(browser, server.url)
    again.open_file(path)
    expect(again.note).to_contain_text("Opened.")
    expect(again.prompt).to_have_value(MARKED)
    assert again.page.locator(".hp-columns").first.inner_html() == shown
    bad = tmp_path / "bad.json"
    for content, complaint in (('{"inputs": {"strength": "x"}}', "inputs.strength"), ("", "Invalid JSON")):
        bad.write_text(content)
        again.open_file(bad)
        expect(again.note).to_contain_text(complaint)
    bad.write_text(" " * 1_000_000)
    again.open_file(bad)
    expect(again.note).to_contain_text("at most 900000 are read")
    assert again.page.locator(".hp-columns").first.inner_html() == shown
    again.close()

    linked = Tab(browser, server.url, fragment=link)
    linked.has_run()
    assert (linked.answer(1), linked.answer(2)) == (plain.text, steered.text)
    linked.close()


class Hostile:
    """An engine whose model writes what is given, with every decision in turn; the rest is the real one's."""

    def __init__(self, engine: Any, token_ids: list[int]) -> None:
        self._engine, self._token_ids = engine, token_ids

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def submit(self, tokens: Any, span: Any, settings: Any) -> Any:
        return self._stream()

    def _stream(self) -> Any:
        class Stream:
            tokens = iter(self._token_ids)
            left = len(self._token_ids)

            def __aiter__(self) -> Any:
                return self

            async def __anext__(self) -> Token:
                token, self.left = next(self.tokens), self.left - 1
                decision = ("skipped", "accepted", "rejected")[self.left % 3]
                step = Step(token, "", decision, int(decision == "accepted"), 1, 0.5, 0.5, False)  # type: ignore[arg-type]
                others = (Alternative(token, 0.5, 0.25),)
                return Token(step, (), Stats(), (0,), 0, None if self.left else "length", others)

            def cancel(self) -> None:
                pass

        return Stream()


def test_what_a_user_or_a_model_writes_is_text(tiny: heedful.LM, browser: Any, tmp_path: Path) -> None:
    with running(tiny, page=WebPage(PATH, mount)) as here:
        service = here.app.state.service
        service.engine = Hostile(service.engine, tiny.tokenizer(EVIL)["input_ids"])
        tab = Tab(browser, here.url)
        tab.fill(prompt=f"{EVIL} <heed>{EVIL}</heed>", checks=["contains:" + EVIL])
        expect(tab.marks.first).to_be_visible()
        assert tab.page.locator(".hp-preview").inner_text().count(EVIL) == 2
        tab.page.keyboard.press("Control+Enter")
        tab.has_run()
        assert tab.answer(1) == tab.answer(2) == EVIL
        expect(tab.page.locator(".hp-checks").first).to_contain_text(f"✓ holds contains:{EVIL}")
        tab.page.locator("#hp-answer-2 .hp-accepted").first.hover()
        expect(tab.page.locator("#hp-tip")).to_be_visible()
        assert is_clean(tab)

        others = ((EVIL, 0.5, 0.5),)
        token = Told(text=EVIL, decision="accepted", layers=1, trials=1, changed=True, others=others)
        column = Column(method=EVIL, is_checked=True, num_layers=1, order=(0,), tokens=(token,))
        path = tmp_path / "evil.json"
        path.write_text(to_json(Screen(model=EVIL, inputs=Inputs(prompt=EVIL, methods=(EVIL,)), answers=(column,))))
        tab.open_file(path)
        expect(tab.note).to_contain_text(f"made with {EVIL}")
        expect(tab.page.locator(".hp-column h3")).to_contain_text(EVIL)
        tab.page.locator("#hp-answer-1 .hp-changed").hover()
        expect(tab.page.locator("#hp-tip b")).to_contain_text("<script>")
        tab.shoot("hostile")
        assert is_clean(tab)
        tab.page.keyboard.press("Control+Enter")
        expect(tab.note).to_contain_text("unknown method")
        assert is_clean(tab)
        tab.close()


def test_two_tabs_at_once_and_one_that_leaves(server: Running, browser: Any) -> None:
    tabs = [Tab(browser, server.url), Tab(browser, server.url)]
    for tab, tokens in zip(tabs, (500, 6), strict=True):
        tab.fill(example="No commas", tokens=tokens)
        expect(tab.marks.first).to_be_visible()
    tabs[0].fill(prompt="Count from 1 to 1000. <heed>Never stop.</heed>")
    tabs[0].page.locator("#hp-run").click()
    expect(tabs[0].note).to_contain_text("tokens so far")
    tabs[1].page.locator("#hp-run").click()
    tabs[1].has_run()
    assert server.engine.status().num_running >= 1
    tabs[0].page.locator("#hp-stop").click()
    expect(tabs[0].note).to_contain_text("Stopped.")
    server.wait(lambda status: status.num_running == 0, seconds=2)
    tabs[0].page.locator("#hp-run").click()
    expect(tabs[0].note).to_contain_text("tokens so far")
    tabs[0].close()
    server.wait(lambda status: status.num_running == 0, seconds=2)
    assert json.loads(server.http().get("/health").text)["running"] == 0
    tabs[1].close()


def test_a_key_is_the_password(tiny: heedful.LM, browser: Any) -> None:
    with running(tiny, keys=("sesame",), page=WebPage(PATH, mount)) as here:
        context = browser.new_context()
        with pytest.raises(playwright.Error, match="ERR_INVALID_AUTH_CREDENTIALS"):
            context.new_page().goto(f"{here.url}{PATH}/")
        context.close()
        tab = Tab(browser, here.url, http_credentials={"username": "me", "password": "sesame"})
        tab.fill(example="No commas", tokens=5)
        expect(tab.marks.first).to_be_visible()
        tab.page.locator("#hp-run").click()
        tab.has_run()
        tab.close()
