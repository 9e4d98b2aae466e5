"""The playground as a person meets it, in a real browser. Keeps pictures in `screenshots/`."""

import json
import re
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
    tab.selects(INSTRUCTION)
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
    tab.answers(plain.text, steered.text)
    assert plain.text != steered.text
    column = tab.page.locator(".hp-column").nth(1)
    assert steered.stats.changed > 0
    expect(column.locator(".hp-changed")).to_have_count(steered.stats.changed)
    expect(column.locator(".hp-rejected")).to_have_count(steered.stats.rejected)
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
    tab.page.mouse.move(2, 2)
    expect(tip).to_be_hidden()
    tab.page.locator("#hp-answer-2").focus()
    tokens = column.locator(".hp-t")
    for key, at in (("Home", 0), ("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("Home", 0)):
        keys.press(key)
        expect(tokens.nth(at)).to_have_class(re.compile("hp-at"))
        expect(tip).to_be_visible()
    keys.press("Escape")
    expect(tip).to_be_hidden()

    # A narrow window.
    tab.page.set_viewport_size({"width": 360, "height": 740})
    tab.until("() => innerWidth === 360 && document.documentElement.scrollWidth <= 360")
    tab.page.locator("#hp-answer-2 .hp-changed").first.click()
    expect(tip).to_be_visible()
    tab.until(
        """() => {
            const {left, right} = document.getElementById("hp-tip").getBoundingClientRect();
            return left >= 0 && right <= 360;
        }"""
    )
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
    tab.until("() => location.hash.startsWith('#heed=')")
    link = tab.page.evaluate("location.hash")
    shown = tab.page.locator(".hp-columns").first.inner_html()
    tab.close()

    again = Tab(browser, server.url)
    again.open_file(path)
    expect(again.note).to_contain_text("Opened.")
    expect(again.prompt).to_have_value(MARKED)
    again.shows(shown)
    bad = tmp_path / "bad.json"
    for content, complaint in (('{"inputs": {"strength": "x"}}', "inputs.strength"), ("", "Invalid JSON")):
        bad.write_text(content)
        again.open_file(bad)
        expect(again.note).to_contain_text(complaint)
    bad.write_text(" " * 1_000_000)
    again.open_file(bad)
    expect(again.note).to_contain_text("at most 900000 are read")
    again.shows(shown)
    again.close()

    linked = Tab(browser, server.url, fragment=link)
    linked.has_run()
    linked.answers(plain.text, steered.text)
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
        tab.until("evil => document.querySelector('.hp-preview').innerText.split(evil).length === 3", EVIL)
        tab.page.keyboard.press("Control+Enter")
        tab.has_run()
        tab.answers(EVIL, EVIL)
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


def test_the_keyboard_is_not_disturbed_by_a_pointer_that_rests(server: Running, browser: Any, tmp_path: Path) -> None:
    """A page that moves under the pointer tells of it as if the pointer had come; a token that is walked to stays."""
    tokens = tuple(Told(text=f" {n}", decision="accepted", layers=1, trials=1, changed=False) for n in range(9))
    path = tmp_path / "screen.json"
    column = Column(method="m", is_checked=True, num_layers=1, order=(0,), tokens=tokens)
    path.write_text(to_json(Screen(inputs=Inputs(prompt="x"), answers=(column,))))
    tab = Tab(browser, server.url)
    tab.open_file(path)
    shown = tab.page.locator("#hp-answer-1 .hp-t")
    shown.nth(5).hover()
    expect(shown.nth(5)).to_have_class(re.compile("hp-at"))
    tab.page.locator("#hp-answer-1").focus()
    tab.page.keyboard.press("ArrowRight")
    expect(shown.nth(1)).to_have_class(re.compile("hp-at"))
    move = """([at, moved]) => document.querySelectorAll("#hp-answer-1 .hp-t")[at].dispatchEvent(
        new MouseEvent("mouseover", {bubbles: true, screenX: window.at[0] + moved, screenY: window.at[1]}))"""
    tab.page.evaluate("""() => document.addEventListener("mousemove", e => window.at = [e.screenX, e.screenY], true)""")
    shown.nth(4).hover()
    expect(shown.nth(4)).to_have_class(re.compile("hp-at"))
    tab.page.keyboard.press("Home")
    tab.page.evaluate(move, [7, 0])
    expect(shown.nth(0)).to_have_class(re.compile("hp-at"))
    tab.page.evaluate(move, [7, 1])
    expect(shown.nth(7)).to_have_class(re.compile("hp-at"))
    tab.close()


SELECT = "([start, end]) => document.querySelector('#hp-prompt textarea').setSelectionRange(start, end)"


@pytest.mark.parametrize(
    ("text", "selected", "bare", "inner"),
    [
        ("Say <heed weight=0.5>yes or no</heed> now.", "yes or no", "Say yes or no now.", "yes or no"),
        ("Say <heed>yes or no</heed> now.", "Say <heed>yes", "Say yes or no now.", "Say yes"),
        ("Say <heed>yes</heed> or <heed>no</heed> now.", "s</heed> or <heed>n", "Say yes or no now.", "s or n"),
        ("Say <heed>yes or no</heed> now.", "eed>yes or no</h", "Say yes or no now.", "yes or no"),
        ("Say  yes or no  now.", " yes or no ", "Say  yes or no  now.", "yes or no"),
    ],
)
def test_a_mark_comes_and_goes(server: Running, browser: Any, text: str, selected: str, bare: str, inner: str) -> None:
    """However it was marked: pressed again and again, at once, the same text is marked and not."""
    tab = Tab(browser, server.url)
    keys = tab.page.keyboard
    tab.prompt.fill(text)
    expect(tab.prompt).to_have_value(text)
    start = text.index(selected)
    tab.page.evaluate(SELECT, [start, start + len(selected)])
    marked = bare.replace(inner, f"<heed>{inner}</heed>")
    if text != bare:
        keys.press("Alt+m")
        expect(tab.prompt).to_have_value(bare)
        tab.selects(inner)
    for _ in range(3):
        keys.press("Alt+m")
        tab.selects(inner)
        expect(tab.prompt).to_have_value(marked)
        keys.press("Alt+m")
        tab.selects(inner)
        expect(tab.prompt).to_have_value(bare)
    for _ in range(5):  # without a look in between
        keys.press("Alt+m")
    expect(tab.prompt).to_have_value(marked)
    expect(tab.marks.first).to_be_visible()
    tab.page.evaluate(SELECT, [0, 0])
    keys.press("Alt+m")
    expect(tab.note).to_contain_text("Select some text first")
    expect(tab.prompt).to_have_value(marked)
    tab.close()


def test_two_tabs_at_once_and_one_that_leaves(server: Running, browser: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "pause", 0.1)  # 500 tokens take longer than all that is waited for here
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
    server.wait(lambda status: status.num_running == 0)
    expect(tabs[0].note).to_contain_text("Stopped.")
    tabs[0].page.locator("#hp-run").click()
    expect(tabs[0].note).to_contain_text("tokens so far")
    tabs[0].close()
    server.wait(lambda status: status.num_running == 0)
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
