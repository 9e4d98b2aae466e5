"""Requests that are wrong in one way each, drawn by a seed, and what must be answered to them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx

from heedful.methods import NAMES
from heedful.serve.problems import LONGEST
from heedful.serve.schemas import ChatRequest, CompletionRequest, Heedful, Message, StreamOptions, TextPart

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
ODD: tuple[Any, ...] = (
    *(True, 0, -1, 3.5, 1e300, 10**30, float("nan"), float("inf"), "", "x", "\ud800", "\x00", "x" * 5000),
    *([], {}, [1], [[]], ["x"], {"x": 1}, [None], {"type": "text"}, [{"type": "image_url"}]),
)
OPTIONS = ("strength", "threshold", "layers", "level", "heads", "target", "ranking", "span", "gate", "profile", "x")
VALUES = ("1" + "0" * 25, "-1", "NaN", "1e999", "[9]", '{"0":[99]}', "null", "random:x", "[[", '"', "", "/etc/passwd")


@dataclass(frozen=True)
class Body:
    """A request to `path`. `is_wrong`: it must be refused; else what was put in may happen to be right."""

    kind: str
    path: str
    data: bytes
    is_wrong: bool = False


def body(choose: random.Random, model: str) -> Body:
    """One that is wrong, or all but."""
    path = choose.choice((CHAT, TEXT))
    good: dict[str, Any] = {"model": model, "max_tokens": 1}
    text = "Tell me of the sea. <heed>Be brief.</heed>"
    good |= {"messages": [{"role": "user", "content": text}]} if path == CHAT else {"prompt": text}
    return choose.choice(KINDS)(choose, path, good)


def _broken(choose: random.Random, path: str, good: dict[str, Any]) -> Body:
    """Bytes broken at random."""
    data = bytearray(_dumped(good))
    for _ in range(choose.randint(1, 8)):
        start = choose.randrange(len(data))
        piece = choose.choice((b"", b"\xff", b"NaN", b"-1", b"1e999", b"[" * 50, b'"', b"}", b"null", b"\\u0000"))
        data[start : start + choose.randint(0, 12)] = piece
    return Body("broken bytes", path, bytes(data))


def _odd_value(choose: random.Random, path: str, good: dict[str, Any]) -> Body:
    """Any field of the schema with a value that is seldom one."""
    where = choose.choice(("top", "heedful", "message", "part", "options"))
    model, inner = {
        "top": (ChatRequest if path == CHAT else CompletionRequest, good),
        "heedful": (Heedful, good.setdefault("heedful", {})),
        "message": (Message, good.get("messages", [{}])[0]),
        "part": (TextPart, {"type": "text", "text": "x"}),
        "options": (StreamOptions, {}),
    }[where]
    inner[choose.choice(list(model.model_fields))] = choose.choice(ODD)
    if where == "part" and path == CHAT:
        good["messages"][0]["content"] = [inner]
    if where == "options":
        good |= {"stream": True, "stream_options": inner}
    return Body("odd values", path, _dumped(good))


def _unknown_field(choose: random.Random, path: str, good: dict[str, Any]) -> Body:
    place = choose.choice([good, good.setdefault("heedful", {}), *good.get("messages", [])])
    place[choose.choice(("banana", "Model", "max_token", "\ud800", "k" * 5000))] = choose.choice(ODD)
    return Body("unknown fields", path, _dumped(good), is_wrong=True)


def _method(choose: random.Random, path: str, good: dict[str, Any]) -> Body:
    pairs = [f"{choose.choice(OPTIONS)}={choose.choice(VALUES)}" for _ in range(choose.randint(0, 2))]
    name = choose.choice((*NAMES, "magic", "", "@/etc/passwd"))
    good["heedful"] = {"method": ":".join([name, *pairs]), **choose.choice(({}, {"strength": choose.choice(ODD)}))}
    return Body("methods", path, _dumped(good))


def _mark(choose: random.Random, path: str, good: dict[str, Any]) -> Body:
    text = choose.choice(("<heed>a", "a</heed>", "<heed weight=-1>a</heed>", "<heed>a <heed>b</heed></heed>", "<heed>"))
    field = {"messages": [{"role": "user", "content": text}]} if path == CHAT else {"prompt": text}
    return Body("marks", path, _dumped(good | field), is_wrong=True)


def _deep(choose: random.Random, path: str, good: dict[str, Any]) -> Body:
    opening = choose.choice((b"[", b'{"messages":', b'{"heedful":{"instructions":['))
    return Body("deep", path, opening * choose.choice((33, 1000, 20_000)), is_wrong=True)


def _huge(choose: random.Random, path: str, good: dict[str, Any]) -> Body:
    size = choose.choice((300_000, 1 << 20))
    data = choose.choice(
        (b" " * size, b'"' + b"x" * size, b'""' * (size // 2), b"[" + b"1," * (size // 2), b"9" * size)
    )
    return Body("huge", path, data, is_wrong=True)


def _bad_text(choose: random.Random, path: str, good: dict[str, Any]) -> Body:
    piece = choose.choice((b"\xff", b"\xc3\x28", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80", b"\\ud800", b"\n", b"\x00"))
    return Body("bad text", path, _dumped(good).replace(b"sea", piece), is_wrong=True)


KINDS: tuple[Callable[[random.Random, str, dict[str, Any]], Body], ...] = (
    *(_broken, _odd_value, _odd_value, _unknown_field, _method, _method, _mark, _deep, _huge, _bad_text),
)


def _dumped(value: Any) -> bytes:
    return json.dumps(value).encode()


def fault(asked: Body, reply: httpx.Response) -> str:
    """What is wrong with the answer; empty where it is one, or one clear line in the shape of OpenAI's errors."""
    if reply.status_code == 200 and not asked.is_wrong:
        return ""
    if not 400 <= reply.status_code < 500:
        return f"status {reply.status_code}"
    try:
        error = reply.json()["error"]
        message = error["message"]
    except (ValueError, KeyError, TypeError):
        return "no error object"
    if set(error) != {"message", "type", "param", "code"} or not isinstance(message, str):
        return "not OpenAI's error object"
    is_clear = message.strip() and message.isprintable() and len(message) <= LONGEST
    return "" if is_clear else f"no clear line: {message[:80]!r}"
