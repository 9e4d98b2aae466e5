"""What a server refuses: a request that is wrong in itself gets 4xx and one clear line, never a 5xx, never a crash."""

import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import heedful
from heedful.bench import malformed
from heedful.serve.worker import Limits
from serving import CHAT, PLAIN, TEXT, body, running


@pytest.fixture(scope="module")
def http(tiny: heedful.LM) -> Iterator[httpx.Client]:
    with running(tiny) as here:
        yield here.http()


LONG = {"messages": [{"role": "user", "content": "word " * 600}]}


@pytest.mark.parametrize(
    ("more", "status", "says"),
    [
        ({"model": "gpt-4"}, 404, "this server has 'm'"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "user", "content": ""}]}, 400, "empty"),
        ({"messages": [{"role": "robot", "content": "x"}]}, 400, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, 400, "messages[0]"),
        (
            {"messages": [{"role": "user", "content": "x", "tool_calls": [1]}]},
            400,
            "messages[0].tool_calls is not supp",
        ),
        ({"messages": [{"role": "user", "content": "a <heed>b"}]}, 400, "never closed"),
        ({**LONG}, 400, "512"),
        ({"max_tokens": 501}, 400, "at most 500"),
        ({"max_tokens": 490}, 400, "this server holds 512"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, 400, "one of them"),
        ({"temperature": -1}, 400, "temperature"),
        ({"temperature": "hot"}, 400, "temperature"),
        ({"top_p": 0}, 400, "top_p"),
        ({"seed": -1}, 400, "seed"),
        ({"seed": 1.5}, 400, "seed"),
        ({"n": 17}, 400, "at most 16"),
        ({"stop": [""]}, 400, "stop[0]: String should have at least 1 character"),
        ({"stop": ["x"] * 17}, 400, "stop"),
        ({"stop": "x" * 257}, 400, "stop: String should have at most 256"),
        ({"stream_options": {"include_usage": True}}, 400, "stream: true"),
        ({"top_logprobs": 2}, 400, "logprobs: true"),
        ({"top_logprobs": 21, "logprobs": True}, 400, "top_logprobs"),
        ({"tools": [{"type": "function"}]}, 400, "tools is not supported"),
        ({"frequency_penalty": 0.5}, 400, "frequency_penalty is not supported"),
        ({"response_format": {"type": "json_object"}}, 400, "response_format is not supported"),
        ({"banana": 1}, 400, "unknown field: banana"),
        ({"heedful": {"banana": 1}}, 400, "unknown field: heedful.banana"),
        ({"heedful": {"method": "magic"}}, 400, "unknown method"),
        ({"heedful": {"method": "pasta:profile=/etc/passwd"}}, 400, "no file is read"),
        ({"heedful": {"method": 'pasta:profile=["/etc/passwd"]'}}, 400, "no file is read"),
        ({"heedful": {"method": "directer:ranking=[[1]]"}}, 400, "ranking"),
        ({"heedful": {"method": "static:layers=[99]"}}, 400, "layer 99"),
        ({"heedful": {"method": "instaboost", "strength": 3}}, 400, "takes no strength"),
        ({"heedful": {"strength": -1}}, 400, "strength"),
        ({"heedful": {"method": "anchoring", "strength": 1e300}}, 400, "at most 1e+06"),
        ({"heedful": {"method": "context-aware:strength=1e300"}}, 400, "at most 1e+06"),
        ({"heedful": {"method": "spotlight:pooled=true"}}, 400, "hold up all other answers"),
        ({"messages": [{"role": "user", "content": "a <heed weight=1e300>b</heed>"}]}, 400, "from 0 to 1e+06"),
        ({"messages": [{"role": "user", "content": "word " * 190_000}]}, 400, "950000 characters"),
        ({"heedful": {"instructions": ["absent words"]}}, 400, "closest text"),
        ({"heedful": {"instructions": []}}, 400, "heedful.instructions: List should have at least 1"),
        ({"heedful": {"instructions": "admin"}}, 400, "heedful.instructions: Input should be 'system'"),
        ({"heedful": {"instructions": [3]}}, 400, "heedful.instructions[0]: "),
        ({"messages": [{"content": "x"}]}, 400, "messages[0].role: Field required"),
        ({"messages": [{"role": "user", "content": 3}]}, 400, "messages[0].content: "),
        ({"heedful": {"instructions": "system"}}, 400, "no message has the role"),
        ({"heedful": {"strength": 2}, "messages": PLAIN}, 400, "nothing in it is marked"),
        ({"heedful": {"trace": True}, "n": 2}, 400, "n: 1"),
        ({"heedful": 7}, 400, "heedful"),
    ],
)
def test_bad_requests(http: httpx.Client, more: dict[str, Any], status: int, says: str) -> None:
    reply = http.post(CHAT, json=body(**more))
    error = reply.json()["error"]
    assert reply.status_code == status, error
    assert says in error["message"]
    assert error["type"] == "invalid_request_error"
    assert set(error) == {"message", "type", "param", "code"}
    assert "\n" not in error["message"]


def test_what_asks_for_nothing_is_let_through(http: httpx.Client) -> None:
    nothing = {
        "tools": None,
        "logit_bias": {},
        "presence_penalty": 0,
        "frequency_penalty": 0.0,
        "stop": None,
        "n": None,
    }
    reply = http.post(CHAT, json=body(**nothing, response_format={"type": "text"}, heedful=None, user="u"))
    assert reply.status_code == 200, reply.text
    assert http.post(CHAT, json=body(presence_penalty=False)).status_code == 400


GOOD = {CHAT: json.dumps(body()).encode(), TEXT: b'{"model": "m", "prompt": "To Japan", "max_tokens": 4}'}


def post(http: httpx.Client, path: str, data: bytes, kind: str = "application/json") -> httpx.Response:
    return http.post(path, content=data, headers={"Content-Type": kind})


def test_the_good_bodies_are_good(http: httpx.Client) -> None:
    for path, data in GOOD.items():
        assert post(http, path, data).status_code == 200
        assert post(http, path, data, "application/json; charset=utf-8").status_code == 200


@pytest.mark.parametrize("kind", ["text/plain", "", "application/x-www-form-urlencoded", "application/jsonp"])
def test_only_json_is_read(http: httpx.Client, kind: str) -> None:
    reply = post(http, CHAT, GOOD[CHAT], kind)
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "bad_content_type")


@pytest.mark.parametrize(
    ("old", "new", "status", "says"),
    [
        (b"4}", b"NaN}", 400, "max_tokens"),
        (b"4}", b'4, "temperature": NaN}', 400, "temperature"),
        (b"4}", b'4, "temperature": 1e999}', 400, "temperature"),
        (b"4}", b'4, "temperature": ' + b"9" * 400 + b"}", 400, "temperature"),
        (b"4}", b'4, "seed": ' + b"9" * 5000 + b"}", 400, ""),
        (b"4}", b'4, "heedful": {"strength": Infinity}}', 400, "strength"),
        (b"Japan", b"\xff\xfe", 400, ""),
        (b"Japan", b"\\ud800", 400, "surrogate"),
        (b"4}", b'4, "\\ud800": 1}', 400, "unicode"),
        (b"4}", b'4, "max\\u0000": 1}', 400, r"unknown field: max\x00"),
        (b"4}", b'4, "' + b"k" * 90_000 + b'": 1}', 400, "unknown field"),
        (b"4}", b"4" + b"".join(b',"k%d":1' % n for n in range(90_000)) + b"}", 400, "strings, commas"),
        (b"4}", b"4" + b"".join(b',"k%d":1' % n for n in range(10_000)) + b"}", 400, "at most 64"),
        (b"4}", b'4, "stop": [' + b'"",' * 20_000 + b'""]}', 400, "stop"),
    ],
)
@pytest.mark.parametrize("path", GOOD)
def test_malformed_values(http: httpx.Client, path: str, old: bytes, new: bytes, status: int, says: str) -> None:
    refused(http, path, GOOD[path].replace(old, new), status, says)


@pytest.mark.parametrize(
    ("data", "status", "says"),
    [
        (b"", 400, ""),
        (b"{", 400, "JSON"),
        (b"null", 400, ""),
        (b"[]", 400, ""),
        (b'"' + b"x" * 100, 400, "JSON"),
        (b"[" * 33, 400, "32 levels"),
        (b'{"messages":' * 1000, 400, "32 levels"),
        (b"[" * 900_000, 400, "32 levels"),
        (b'"' + b'\\"' * 400_000 + b"\\", 400, "JSON"),
        (b'""' * 500_000, 400, "strings, commas"),
        (b" " * (1 << 20) + b"x", 413, "at most 1048576"),
    ],
)
@pytest.mark.parametrize("path", GOOD)
def test_malformed_bodies(http: httpx.Client, path: str, data: bytes, status: int, says: str) -> None:
    refused(http, path, data, status, says)


@pytest.mark.parametrize(
    ("count", "says"),
    [(330_000, "strings, commas"), (20_000, "messages[0].content"), (257, "messages[0].content")],
)
def test_many_parts(http: httpx.Client, count: int, says: str) -> None:
    for part in (b"{}", b'{"type":"text","text":"x"}')[: 1 if count > 257 else 2]:
        data = b'{"model":"m","messages":[{"role":"user","content":[' + part + (b"," + part) * (count - 1) + b"]}]}"
        refused(http, CHAT, data, 400, says)


def test_many_wrong_messages(http: httpx.Client) -> None:
    refused(http, CHAT, b'{"model":"m","messages":[{}' + b",{}" * 20_000 + b"]}", 400, "messages[0]")


def refused(http: httpx.Client, path: str, data: bytes, status: int, says: str) -> None:
    begun = time.process_time()
    reply = post(http, path, data)
    assert reply.status_code == status
    error = reply.json()["error"]
    assert says in error["message"]
    assert len(error["message"]) <= 600
    assert time.process_time() - begun < 1  # of both sides, whatever else the machine does


def test_a_body_without_length_is_bounded(http: httpx.Client) -> None:
    reply = http.post(CHAT, content=iter([b" " * 65536] * 20), headers={"Content-Type": "application/json"})
    assert reply.status_code == 413


def test_a_needle_in_a_long_prompt_is_refused_soon(tiny: heedful.LM) -> None:
    with running(tiny) as here:
        size = here.app.state.service._most_characters
        text = ("x" * 11 + " ") * (size // 12)
        for needle in ("y", "x y " * 50, "x" * 11 + " " + "x" * 10 + "y"):
            begun = time.process_time()
            ask = body(messages=[{"role": "user", "content": text}], heedful={"instructions": [needle]})
            reply = here.http().post(CHAT, json=ask)
            assert (reply.status_code, reply.json()["error"]["code"]) == (400, "bad_span"), reply.text
            assert time.process_time() - begun < 5


def test_malformed_requests_of_every_kind(tiny: heedful.LM) -> None:
    """As `heedful bench serve` sends them by the thousand: each is answered, or refused in one clear line."""
    with running(tiny, limits=Limits(max_running=4, max_queue=16)) as here:
        http, choose, seen = here.http(), random.Random(1), Counter[tuple[str, str]]()
        for _ in range(250):
            asked = malformed.body(choose, "m")
            reply = post(http, asked.path, asked.data)
            assert malformed.fault(asked, reply) == "", (asked.kind, asked.path, asked.data[:500], reply.text[:500])
            seen[asked.kind, asked.path] += 1
        assert len(seen) == 16
        assert here.engine.status().num_failures == 0
        assert malformed.fault(asked, httpx.Response(500)) == "status 500"
        assert malformed.fault(asked, httpx.Response(404, text="x")) == "no error object"
        assert malformed.fault(asked, httpx.Response(400, json={"error": {"message": "x"}})) != ""
        two = {"message": "a\nb", "type": "", "param": None, "code": None}
        assert malformed.fault(asked, httpx.Response(400, json={"error": two})).startswith("no clear line")


MODES = (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE)
DECLARED = {200, 400, 404, 413, 429}


def test_whatever_the_schema_allows_or_forbids(tiny: heedful.LM) -> None:
    with running(tiny, max_tokens=4, limits=Limits(max_running=4, max_queue=16)) as here:
        http = here.http()
        schema = schemathesis.openapi.from_url(f"{here.url}/openapi.json").include(method="POST")
        seen: set[int] = set()

        @settings(
            max_examples=40,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=st.one_of(*(schema.as_strategy(mode) for mode in MODES)))
        def check(case: Any) -> None:
            if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
                case.body["model"] = "m"  # else all that comes behind it is never met
            reply = case.call()
            seen.add(reply.status_code)
            assert reply.status_code in DECLARED, reply.text
            if reply.status_code != 200:
                assert set(json.loads(reply.content)["error"]) == {"message", "type", "param", "code"}

        check()
        assert {200, 400} <= seen
        assert http.get("/health").json()["engine_failures"] == 0
        here.wait(lambda status: status.num_running == status.num_waiting == 0)
