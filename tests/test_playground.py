"""The playground without a browser: what it reads and writes, what it escapes, what it lets through."""

import asyncio
import base64
import json
import time
import zlib
from collections.abc import Iterator
from contextlib import aclosing, suppress
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import heedful
from heedful.cli import serve as cli_serve
from heedful.constraints import constraint
from heedful.errors import HeedfulError, OptionError, SpanError
from heedful.methods import parse_method
from heedful.playground import asking, charts, render
from heedful.playground.app import Page, judged
from heedful.playground.checks import SECONDS, Verdict, parse_checks, written_out
from heedful.playground.examples import EXAMPLES
from heedful.playground.exchange import FRAGMENT, LARGEST_FILE, from_json, from_link, to_json, to_link
from heedful.playground.marks import mark_found, with_tags
from heedful.playground.mount import PATH, is_needed, mount
from heedful.playground.state import Column, Inputs, Screen, Told, inputs_of
from heedful.serve.app import WebPage
from heedful.spans import Span, parse_tags
from serving import PROMPT, Running, running

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{7*7}}${7*7}`"


@pytest.fixture(scope="module")
def server(tiny: heedful.LM) -> Iterator[Running]:
    with running(tiny, page=WebPage(PATH, mount)) as here:
        yield here


def told(text: str = "a", **more: Any) -> Told:
    known = {"decision": "accepted", "layers": 2, "trials": 2, "changed": True}
    return Told(text=text, **{**known, "others": ((text, 0.25, 0.5), ("b", 0.5, None)), "taken": 0, **more})


def column(*tokens: Told, **more: Any) -> Column:
    known = {"is_checked": True, "num_layers": 4, "order": (3, 1, 0, 2), "sensitivity": (0.1, 0.3, -0.1, 0.4)}
    return Column(**{"method": "directer", **known, "tokens": tokens, "seconds": 0.5, **more})


# -- files and links


def test_files_and_links_come_back() -> None:
    inputs = Inputs(system="Be kind.", prompt=EVIL + " 🎈\n", methods=("none", "a:b=1"), checks=("json",), seed=7)
    screen = Screen(model="m", inputs=inputs, answers=(column(told(EVIL), told("", decision="skipped")),))
    assert from_json(to_json(screen)) == screen
    link = to_link(inputs, "m")
    assert link.startswith(FRAGMENT)
    assert link.removeprefix(FRAGMENT).replace("-", "").replace("_", "").isalnum()
    assert from_link(link) == Screen(model="m", inputs=inputs)
    for example in EXAMPLES:
        assert from_link(to_link(example.inputs, "")).inputs == example.inputs
        parse_checks(example.inputs.checks)
        assert [parse_method(spec) for spec in example.inputs.methods]


def packed(data: bytes) -> str:
    return FRAGMENT + base64.urlsafe_b64encode(zlib.compress(data)).decode().rstrip("=")


ANSWER = json.loads(column(told()).model_dump_json())
BAD_FILES = {
    "": "Invalid JSON",
    "[]": "be an object",
    "null": "be an object",
    '{"heedful": "other"}': "heedful",
    '{"version": 2}': "version",
    '{"more": 1}': "more",
    '{"inputs": {"prompt": 3}}': "inputs.prompt",
    '{"inputs": {"prompt": "x", "temprature": 1}}': "inputs.temprature",
    '{"inputs": {"strength": "100"}}': "inputs.strength",
    '{"inputs": {"strength": NaN}}': "finite",
    '{"inputs": {"strength": 1e999}}': "finite",
    '{"inputs": {"max_tokens": 100000000}}': "inputs.max_tokens",
    '{"inputs": {"max_tokens": true}}': "inputs.max_tokens",
    '{"inputs": {"seed": -1}}': "inputs.seed",
    '{"inputs": {"methods": []}}': "inputs.methods",
    '{"inputs": {"methods": ["a", "b", "c", "d", "e"]}}': "inputs.methods",
    '{"inputs": {"checks": ["nonsense"]}}': "nonsense",
    '{"inputs": {"checks": ["regex:("]}}': "regular expression",
    '{"answers": [{"method": "m", "tokens": [{"text": "x"}]}]}': "answers.0.tokens.0",
    json.dumps({"answers": [{**ANSWER, "order": [9]}]}): "order",
    json.dumps({"answers": [{**ANSWER, "sensitivity": [1.0]}]}): "sensitivity",
    json.dumps({"answers": [{**ANSWER, "num_layers": 10**9}]}): "num_layers",
    json.dumps({"answers": [{**ANSWER, "tokens": [{**ANSWER["tokens"][0], "taken": 5}]}]}): "taken",
    json.dumps({"answers": [{**ANSWER, "tokens": ANSWER["tokens"] * 600}]}): "tokens",
    "[" * 100_000: "",
    '{"inputs":' * 5_000: "",
    '"\\ud800"': "",
    "x" * (LARGEST_FILE + 1): str(LARGEST_FILE),
}


@pytest.mark.parametrize("text", BAD_FILES, ids=lambda text: text[:40])
def test_a_bad_file_is_one_line(text: str) -> None:
    with pytest.raises(OptionError) as caught:
        from_json(text)
    assert BAD_FILES[text] in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_bad_link_is_one_line() -> None:
    full = packed(to_json(Screen(answers=(column(told()),))).encode())
    bomb = packed(b" " * (50 * LARGEST_FILE))
    bad = [
        "",
        "!!!",
        "AAAA",
        "🎈",
        packed(b"\xff"),
        packed(b"{}")[:-3],
        packed(b'{"more": 1}'),
        full,
        bomb,
        "A" * 200_000,
    ]
    for code in bad:
        begun = time.process_time()
        with pytest.raises(OptionError) as caught:
            from_link(code if code.startswith(FRAGMENT) else FRAGMENT + code)
        assert "\n" not in str(caught.value)
        assert time.process_time() - begun < 1
    with pytest.raises(OptionError, match="too long for a link"):
        to_link(Inputs(prompt="".join(chr(0x4E00 + at * 7919 % 20000) for at in range(90_000))), "")


def test_inputs_are_checked() -> None:
    with pytest.raises(OptionError, match=r"^temperature: "):
        inputs_of(prompt="x", temperature=3.0)


# -- checks


def test_checks() -> None:
    checks = parse_checks(["no_comma", "json", r"regex:(?m)^\* ", "max_words:3", "contains:LIST"])
    verdicts = [check.verdict("* A list").holds for check in checks]
    assert verdicts == [True, False, True, True, True]
    assert judged(checks[:1], [column(told("a,"), told("b")), column(told("ab"))]) == [
        [Verdict("no_comma", False)],
        [Verdict("no_comma", True)],
    ]
    with pytest.raises(OptionError, match="regular expression"):
        parse_checks(["regex:(a"])
    for pattern in ("a{99999999999}", "(" * 5000):  # what Python's own `re` says of them is not `re.error`
        with pytest.raises(OptionError, match="regular expression"):
            constraint(f"regex:{pattern}")
    with pytest.raises(OptionError, match="at most 200"):
        parse_checks(["regex:" + "a" * 201])


@pytest.mark.parametrize("pattern", [r"(a|a)+$", r"(a|aa)+$", r"^(\w+\s?)*$", r"(x+x+)+y"])
def test_a_catastrophic_pattern_is_stopped(pattern: str) -> None:
    (check,) = parse_checks([f"regex:{pattern}"])
    text = "a" * 3000 + "!" + "x" * 3000
    begun = time.process_time()
    verdict = check.verdict(text)
    assert time.process_time() - begun < SECONDS + 2
    if verdict.holds is None:
        assert "took too long" in render.answers([column(told())], [[verdict]])


def test_at_least_one_pattern_needs_stopping() -> None:
    (check,) = parse_checks([r"regex:(a|aa)+$"])
    assert check.verdict("a" * 3000 + "!").holds is None


LARGE = [
    *("(?:a{1000}){1000}", "(?:a|b){1000000000,}", "(?:ab){10000000}", "((a{50}){50}){50}", "a{10001}"),
    *("(?:a{1000}[)]){1000}", "(?:a{1000}(?#()){1000}", "(?x)(?:a{1000}) {1000}", r"(?:\(a{1000}){1000}"),
    *("(a{1,101}){,100}", "(?:a{200}+){200}", "a{99999999999999999999999999999999}"),
]


@pytest.mark.parametrize("pattern", LARGE)
def test_a_pattern_that_would_be_large_is_not_compiled(pattern: str) -> None:
    begun = time.process_time()
    screen = Screen(inputs=Inputs(prompt="x", checks=(f"regex:{pattern}",)))
    with pytest.raises(OptionError, match="at most 10000 are read") as caught:
        parse_checks(screen.inputs.checks)
    assert "\n" not in str(caught.value)
    with pytest.raises(OptionError, match="at most 10000 are read"):
        from_json(to_json(screen))
    assert time.process_time() - begun < 1


def test_usual_patterns_are_compiled() -> None:
    usual = [r"^(.{1,100}\n){3}.{1,100}$", r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}", r"(?:\w+\W+){50,100}", r"\){9}[(]{9}"]
    for pattern in usual:
        assert 0 < written_out(pattern) <= 10_000
        parse_checks([f"regex:{pattern}"])


@settings(max_examples=300, deadline=None, database=None, derandomize=True)
@given(st.lists(st.sampled_from([*"ab()[]|*+?\\.", "(?:", "(?x)", "(?#", "{2}", "{50}", "{,99}", "{9,}"]), max_size=40))
def test_whatever_pattern_is_compiled_soon_or_refused(pieces: list[str]) -> None:
    begun = time.process_time()
    with suppress(OptionError):
        parse_checks(["regex:" + "".join(pieces)])
    assert time.process_time() - begun < 1


# -- marks


def test_found_instructions_are_marked_beside_tags() -> None:
    system, prompt = (
        "Answer in French.",
        "Tell me about the Moon. Do not use any commas. <heed weight=0.5>Be brief.</heed>",
    )
    marked = mark_found(system, prompt)
    assert marked.system == "<heed>Answer in French.</heed>"
    assert marked.prompt == (
        "Tell me about the Moon. <heed>Do not use any commas.</heed> <heed weight=0.5>Be brief.</heed>"
    )
    assert marked.num_found == 2
    again = mark_found(marked.system, marked.prompt)
    assert replace(again, num_found=2) == marked
    assert again.num_found == 0
    assert mark_found("", "Tell me about the Moon.").prompt == "Tell me about the Moon."
    with pytest.raises(SpanError):
        mark_found("", "<heed>open")


def test_tags_come_back() -> None:
    spans = (Span(0, 2), Span(3, 5, 0.25))
    assert parse_tags(with_tags("ab cd", spans)) == ("ab cd", spans)


# -- what is shown


class Elements(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_nothing_that_anybody_wrote_becomes_markup(tiny: heedful.LM) -> None:
    hostile = column(told(EVIL, others=((EVIL, 0.5, 0.25),)), told("x", decision="rejected"), method=EVIL)
    pages = [
        render.answers([hostile], [[Verdict(EVIL, True), Verdict(EVIL, None)]]),
        charts.figures([hostile]),
        render.note(EVIL, is_error=True),
        render.preview(tiny.encode(f"{EVIL} <heed>{EVIL}</heed>")),
    ]
    for page in pages:
        found = Elements(page)
        assert not {tag for tag, _ in found.tags} & {"script", "img", "iframe", "a", "style", "link"}
        assert not [name for _, attributes in found.tags for name in attributes if name.startswith("on")]
    assert EVIL in Elements(pages[0]).text
    assert EVIL in Elements(pages[2]).text
    assert Elements(pages[3]).text.count("<script>") == 2
    (data,) = [a["data-token"] for tag, a in Elements(pages[0]).tags if "hp-changed" in (a.get("class") or "")]
    assert json.loads(data or "")["others"] == [[render.visible(EVIL), 0.5, 0.25]]


def test_the_preview_marks_what_is_steered(tiny: heedful.LM) -> None:
    encoded = tiny.encode("Tell me, naïve 🎈. <heed weight=2>No commas, bitte 🎈!</heed>")
    found = Elements(render.preview(encoded))
    marks = [attributes["title"] for tag, attributes in found.tags if tag == "mark"]
    shown = [f"position {position}, weight 2" for position in encoded.span.positions]
    assert set(marks) <= set(shown)
    assert marks[0] == shown[0]
    assert f"{len(shown)} of {len(encoded.token_ids)} tokens" in found.text
    assert found.text.endswith(encoded.text)
    pieces = render.preview(encoded).split("<mark")[1:]
    assert "".join(piece.partition(">")[2].partition("<")[0] for piece in pieces).strip() == "No commas, bitte 🎈!"
    assert render.preview(tiny.encode("Nothing here.")).startswith('<p class="hp-facts">0 tokens')


def test_each_decision_has_a_look_and_words_of_its_own() -> None:
    tokens = {
        "skipped": (told(decision="skipped", layers=0, changed=False), True),
        "accepted": (told(changed=False), True),
        "changed": (told(), True),
        "rejected": (told(decision="rejected", layers=0, trials=3, changed=False), True),
        "unchecked": (told(changed=False), False),
    }
    told_words = set()
    for kind, (token, is_checked) in tokens.items():
        shown = column(token, is_checked=is_checked)
        assert f"hp-t hp-{kind}" in render.answers([shown], [])
        told_words.add(render.in_words(token, shown))
        assert f"hp-{kind}" in render.legend()
    assert len(told_words) == 5
    kinds = {"steered where": column(told()), "at every token": column(told(layers=0), is_checked=False)}
    for words, shown in {**kinds, "by itself": column(told(decision="skipped"), is_checked=False)}.items():
        assert words in render.answers([shown], [])
    assert "<sup>2</sup>" in render.answers([column(told())], [])
    assert "<sup>" not in render.answers([column(told(layers=4))], [])
    assert "the raw model would say b" in render.in_words(told(), column(told()))


def test_charts_show_which_layers_when() -> None:
    skipped = told(decision="skipped", layers=0)
    chart = charts.figures([column(told(), told(layers=1), skipped, told(decision="rejected", layers=0))])
    cells = [a["d"] for tag, a in Elements(chart).tags if tag == "path" and a["class"] == "hp-cell"]
    width, height = charts.MAP_WIDTH / 4, charts.MAP_HEIGHT / 4
    top, second = charts.TOP, charts.TOP + 2 * height  # layer 3 is the highest, layer 1 the third from above
    assert cells == [
        f"M{charts.LEFT:.1f} {second:.1f}h{width:.2f}v{height:.2f}h{-width:.2f}z",
        f"M{charts.LEFT:.1f} {top:.1f}h{2 * width:.2f}v{height:.2f}h{-2 * width:.2f}z",
    ]
    assert sum(a.get("class") == "hp-bar" for _, a in Elements(chart).tags) == 4
    assert "hp-cross" in chart
    assert "8.0" in chart  # 4 tokens in half a second
    assert charts.figures([column()]) == ""
    assert "No layer was steered" in charts.figures([column(skipped)])


# -- on the server's engine


def answered(here: Running, inputs: Inputs, owner: str = "me") -> list[tuple[Column, ...]]:
    async def collect() -> list[tuple[Column, ...]]:
        async with aclosing(asking.ask(here.app.state.service, inputs, owner)) as looks:
            return [look async for look in looks]

    return asyncio.run(collect())


def test_columns_are_the_library_s_answers(server: Running, tiny: heedful.LM) -> None:
    specs = ("none", "directer", "static:strength=3", "context-aware-gated")
    inputs = Inputs(prompt=PROMPT, methods=specs, strength=50.0, threshold=0.2, max_tokens=24)
    looks = answered(server, inputs)
    methods = [
        None,
        heedful.Directer(50.0, 0.2),
        heedful.KeyScaling(3.0),
        parse_method("context-aware-gated:threshold=0.2"),
    ]
    for shown, method in zip(looks[-1], methods, strict=True):
        expected = tiny.generate(PROMPT, method=method, max_new_tokens=24)
        assert shown.text == expected.text
        assert [token.decision for token in shown.tokens] == [step.decision for step in expected.trace.steps]
        assert shown.finish_reason == expected.finish_reason
        for token, step in zip(shown.tokens, expected.trace.steps, strict=True):
            text, raw, _ = token.others[token.taken]
            assert text == step.text or "�" in text
            assert raw is None or abs(raw - step.p_raw) < 1e-3
    directer = looks[-1][1]
    assert directer.order == tiny.generate(PROMPT, method=methods[1], max_new_tokens=2).trace.ranking
    assert len(directer.sensitivity) == directer.num_layers == tiny.engine.num_layers
    assert from_json(to_json(Screen(inputs=inputs, answers=looks[-1]))).answers == looks[-1]


def test_a_seed_draws_the_same_again(server: Running) -> None:
    inputs = Inputs(prompt=PROMPT, temperature=1.0, seed=5, max_tokens=12)
    first, again = answered(server, inputs)[-1], answered(server, inputs)[-1]
    other = answered(server, inputs.model_copy(update={"seed": 6}))[-1]
    assert [one.text for one in first] == [one.text for one in again] != [one.text for one in other]


REFUSED = {
    "nothing is marked": Inputs(prompt="Tell me about the Moon."),
    "never closed": Inputs(prompt="<heed>Tell me."),
    "prompt is empty": Inputs(prompt="  "),
    "unknown method|method must be": Inputs(prompt=PROMPT, methods=("none", "nonsense")),
    "takes no": Inputs(prompt=PROMPT, methods=("directer:weird=1",)),
    "profile": Inputs(prompt=PROMPT, methods=("pasta:profile=/etc/passwd",)),
    "@": Inputs(prompt=PROMPT, methods=("@/etc/passwd",)),
    "pooled": Inputs(prompt=PROMPT, methods=("spotlight:pooled=true",)),
    "layer 99": Inputs(prompt=PROMPT, methods=("none", "static:layers=[99]")),
    "server generates at most 500": Inputs(prompt=PROMPT, max_tokens=512),
    "holds 512": Inputs(prompt=PROMPT, max_tokens=500),
    "characters": Inputs(prompt="word " * 39_000),
    "nonsense": Inputs(prompt=PROMPT, checks=("nonsense",)),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_is_one_line(server: Running, message: str) -> None:
    async def run() -> list[Any]:
        page = Page(server.app.state.service)
        return [look async for look in page.run(REFUSED[message], "me")]

    looks = asyncio.run(run())
    assert len(looks) == 1
    note = Elements(looks[0][3])
    assert note.tags[0][1]["role"] == "alert"
    assert any(part.lower() in note.text.lower() for part in message.split("|")), note.text
    assert server.engine.status().num_running == 0


def test_leaving_frees_the_slots(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "pause", 0.05)

    async def leave() -> int:
        inputs = Inputs(prompt=PROMPT, methods=("none", "directer"), max_tokens=450)
        async with aclosing(asking.ask(server.app.state.service, inputs, "me")) as looks:
            async for _ in looks:
                return server.engine.status().num_running
        return 0

    assert asyncio.run(leave()) == 2
    server.wait(lambda status: status.num_running == 0, seconds=5)  # by itself: 22 s


def test_a_file_is_shown_without_the_model(server: Running) -> None:
    page = Page(server.app.state.service)
    screen = Screen(model="other", inputs=Inputs(checks=("no_comma",)), answers=(column(told("a,b")),))
    opened = asyncio.run(page.open(to_json(screen)))
    assert not isinstance(opened, str)
    inputs, (answers, figures, kept, note), flag = opened
    assert inputs == screen.inputs
    assert kept.answers == screen.answers
    assert "✗ broken" in answers
    assert "hp-cell" in figures
    assert "made with other; this is m" in note
    assert flag == ""
    asked = asyncio.run(page.open(to_link(Inputs(prompt="x"), "m")))
    assert asked[2] == "run"
    assert asyncio.run(page.open("{")).startswith("not a file of this playground")  # type: ignore[union-attr]


def test_answers_are_saved_with_what_made_them(server: Running) -> None:
    page = Page(server.app.state.service)
    inputs, answers = Inputs(prompt=PROMPT), (column(told("a,b")),)
    shown = Screen(model="m", inputs=inputs, answers=answers)
    assert page.saved(inputs, shown) == (shown, "Saved.")
    checked = inputs.model_copy(update={"checks": ("no_comma",)})
    assert page.saved(checked, shown) == (shown.model_copy(update={"inputs": checked}), "Saved.")
    kept, words = page.saved(Inputs(prompt="Something else."), shown)
    assert (kept, "changed since is not in the file" in words) == (shown, True)
    for nothing in (None, Screen(model="m", inputs=inputs)):
        kept, words = page.saved(checked, nothing)
        assert (kept, "no answers" in words) == (Screen(model="m", inputs=checked), True)
    opened = asyncio.run(page.open(to_json(shown.model_copy(update={"model": "other"}))))
    assert not isinstance(opened, str)
    assert page.saved(inputs, opened[1][2])[0].model == "other"


# -- at its place in the server


def test_the_door() -> None:
    needed = ["", "/", "/config", "/assets/a.js", "/gradio_api/queue/join", "/gradio_api/heartbeat/abc"]
    refused = [
        *("/gradio_api/upload", "/gradio_api/file=/etc/passwd", "/gradio_api/proxy=http://a.b", "/gradio_api/call/run"),
        *("/gradio_api/run/predict", "/file=/etc/passwd", "/login", "/monitoring", "/gradio_api/info", "/svelte/x"),
        *(
            "/gradio_api/vibe-edit",
            "/gradio_api/stream/a/b/c/d.ts",
            "/gradio_api/component_server",
            "/gradio_api/dev/reload",
        ),
    ]
    assert all(map(is_needed, needed))
    assert not any(map(is_needed, refused))


def test_the_page_is_for_its_own_site_only(server: Running) -> None:
    http = server.http(headers={"origin": "http://evil.example"})
    page = http.get(f"{PATH}/")
    assert page.status_code == 200
    assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
    assert not [name for name in page.headers if name.startswith("access-control-")]
    join = f"{PATH}/gradio_api/queue/join"
    asked = http.options(join, headers={"access-control-request-method": "POST"})
    assert asked.status_code == 404
    assert not [name for name in asked.headers if name.startswith("access-control-")]
    simple = http.post(join, content=b"{}", headers={"content-type": "text/plain"})
    assert simple.status_code == 400
    assert http.post(f"{PATH}/gradio_api/upload", json={}).status_code == 404
    assert http.get(f"{PATH}/", headers={"host": "evil.example"}).status_code == 421
    assert http.get("/").headers["location"] == f"{PATH}/"
    assert PATH not in http.get("/openapi.json").text
    bad: list[Any] = [[], {}, {"fn_index": 10**6}, {"fn_index": 1, "data": [1] * 99, "session_hash": "x"}]
    for body in [*bad, {"fn_index": True, "data": None}, {"fn_index": "1"}, {"fn_index": 1.5}]:
        assert http.post(join, json=body).status_code == 400
    assert "session_not_found" in http.get(f"{PATH}/gradio_api/queue/data", params={"session_hash": "none"}).text
    assert server.engine.status().state == "ok"


def test_keys_let_in_by_password(tiny: heedful.LM) -> None:
    with running(tiny, keys=("sesame", "other"), page=WebPage(PATH, mount)) as here:
        http = here.http()
        for path in ("/", f"{PATH}/", f"{PATH}/config", f"{PATH}/gradio_api/queue/data?session_hash=x"):
            refused = http.get(path)
            assert refused.status_code == 401
            assert refused.headers["www-authenticate"].startswith("Basic ")
            for auth in (("x", "wrong"), ("sesame", ""), ("x", "sesame ")):
                assert http.get(path, auth=auth).status_code == 401
            assert http.get(path, headers={"authorization": "Basic !!"}).status_code == 401
        assert http.post(f"{PATH}/gradio_api/queue/join", json={}).status_code == 401
        assert http.get(f"{PATH}/", auth=("anyone", "sesame")).status_code == 200
        assert http.get(f"{PATH}/", headers={"authorization": "Bearer other"}).status_code == 200
        assert http.get(f"{PATH}x", auth=("anyone", "sesame")).status_code == 401
        api = http.get("/v1/models", auth=("anyone", "sesame"))
        assert (api.status_code, api.headers["www-authenticate"]) == (401, "Bearer")


def test_an_open_page_does_not_hold_up_the_end(tiny: heedful.LM) -> None:
    with running(tiny, page=WebPage(PATH, mount)) as here:
        beat = here.http()
        stream = beat.send(beat.build_request("GET", f"{PATH}/gradio_api/heartbeat/abc"), stream=True)
        lines = stream.iter_lines()
        assert next(lines) == "data: ALIVE"
        begun = time.monotonic()
        here.engine.drain()
        try:
            for _ in lines:
                assert time.monotonic() - begun < 10
        except httpx.RemoteProtocolError:
            pass  # cut short
        assert time.monotonic() - begun < 10  # Gradio's next beat comes after 15


def test_a_lack_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "heedful.playground.mount", None)
    with pytest.raises(HeedfulError, match=r"pip install 'heedful\[playground\]'"):
        cli_serve._playground()


def test_the_command_is_the_server_with_the_page(tiny: heedful.LM, monkeypatch: pytest.MonkeyPatch) -> None:
    from heedful.cli import options, playground
    from heedful.serve import launch

    served: dict[str, Any] = {}
    monkeypatch.setattr(options, "load_quietly", lambda *_: tiny)
    monkeypatch.setattr(launch, "launch", lambda loaded, config, **more: served.update(more, config=config))
    playground.command(port=0, method="static:strength=3", max_batch=4)
    assert served["page"] == WebPage(PATH, mount)
    assert served["config"].method == "static:strength=3"
    served.clear()
    cli_serve.serve(port=0)
    assert served["page"] is None
    with pytest.raises(OptionError, match="api-key-file"):
        playground.command(host="0.0.0.0", port=0)
