"""The server as a client meets it: the real `openai` package and plain HTTP against a server that runs."""

import asyncio
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import heedful
from heedful import cli, ranking
from heedful.bench import serve as bench
from heedful.bench.overhead import Figure, Report
from heedful.contrast import ContextAware
from heedful.methods import GATED, METHODS, NAMES
from heedful.recipe import ModelShape
from heedful.serve import guard, routes, run
from heedful.serve.config import is_loopback
from heedful.serve.core import TransformersEngine
from heedful.serve.fair import FairQueue, FairThread
from heedful.serve.generation import unless_gone
from heedful.serve.marking import Default
from heedful.serve.protocol import BusyError, Settings
from heedful.serve.replies import Envelope
from heedful.serve.schemas import ChatRequest, Heedful
from heedful.serve.storage import plan
from heedful.serve.worker import Limits
from heedful.steerers import scores_path
from serving import ASK, CHAT, PLAIN, PROMPT, TEXT, Running, body, eventually, running


@pytest.fixture(scope="module")
def server(tiny: heedful.LM) -> Iterator[Running]:
    with running(tiny) as here:
        yield here


@pytest.fixture(scope="module")
def client(server: Running) -> openai.OpenAI:
    return server.client()


@pytest.fixture(scope="module")
def http(server: Running) -> httpx.Client:
    return server.http()


# -- answers


def test_answers_are_those_of_the_library(lm: heedful.LM) -> None:
    with running(lm, model_name="smol") as here:
        client = here.client()
        marked = client.chat.completions.create(model="smol", messages=ASK, max_tokens=8)
        plain = client.chat.completions.create(model="smol", messages=PLAIN, max_completion_tokens=5)
        text = client.completions.create(model="smol", prompt="The sea is", max_tokens=5)
        expected = lm.generate(PROMPT, max_new_tokens=8)
        assert marked.choices[0].message.content == expected.text
        assert plain.choices[0].message.content == lm.generate("Name three fruits.", method=None, max_new_tokens=5).text
        job = heedful.Job("The sea is", method=None, max_new_tokens=5, raw=True)
        assert text.choices[0].text == lm.generate_batch([job])[0].text
        assert marked.usage is not None
        assert marked.usage.completion_tokens == len(expected.token_ids)
        assert marked.choices[0].finish_reason == "length"
        assert [one.id for one in client.models.list()] == ["smol"]
        assert client.models.retrieve("smol").id == "smol"


def test_streamed_is_not_streamed(client: openai.OpenAI, tiny: heedful.LM) -> None:
    free = tiny.generate(PROMPT, max_new_tokens=40)
    stop = tiny.tokenizer.decode(free.token_ids[6:8])
    more: dict[str, Any] = {
        "model": "m", "messages": ASK, "max_tokens": 40, "logprobs": True, "top_logprobs": 3, "stop": stop,
        "extra_body": {"heedful": {"trace": True}},
    }  # fmt: skip
    whole = client.chat.completions.create(**more)
    chunks = list(client.chat.completions.create(**more, stream=True, stream_options={"include_usage": True}))
    deltas = [choice for chunk in chunks for choice in chunk.choices]
    text = "".join(choice.delta.content or "" for choice in deltas)
    assert text == whole.choices[0].message.content == free.text[: free.text.index(stop)]
    assert deltas[-1].finish_reason == whole.choices[0].finish_reason == "stop"
    logprobs = [entry for choice in deltas if choice.logprobs for entry in choice.logprobs.content or []]
    assert whole.choices[0].logprobs is not None
    assert whole.choices[0].logprobs.content is not None
    for here, there in zip(logprobs, whole.choices[0].logprobs.content, strict=True):
        assert (here.token, here.bytes) == (there.token, there.bytes)
        ours, theirs = ({top.token: top.logprob for top in one.top_logprobs} for one in (here, there))
        assert ours == pytest.approx(theirs, abs=1e-5)  # the second one had its ranking, and so fewer rows
        assert here.logprob == pytest.approx(there.logprob, abs=1e-5)
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens == 8
    assert "".join(entry.token for entry in logprobs) == text  # nothing of the stop string's two tokens
    steps = [step for chunk in chunks for step in (getattr(chunk, "heedful", None) or {}).get("steps", [])]
    close = [{key: pytest.approx(value, abs=1e-6) if key[:2] == "p_" else value for key, value in step.items()}
             for step in whole.heedful["steps"]]  # type: ignore[attr-defined]  # fmt: skip
    assert steps == close
    assert len({chunk.id for chunk in chunks}) == 1


def test_log_probabilities_are_the_raw_model_s(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(model="m", messages=ASK, max_tokens=30, logprobs=True, top_logprobs=5)
    assert reply.choices[0].logprobs is not None
    entries = reply.choices[0].logprobs.content
    assert entries is not None
    assert len(entries) == 30
    for entry in entries:
        values = [one.logprob for one in entry.top_logprobs]
        assert values == sorted(values, reverse=True)
        assert sum(map(math.exp, values)) <= 1 + 1e-5
        assert entry.logprob <= values[0] + 1e-5
        assert entry.logprob >= values[0] + math.log(0.5) - 1e-5  # what Directer's gate lets through
    assert any(entry.logprob < entry.top_logprobs[0].logprob for entry in entries)
    old = client.completions.create(model="m", prompt="The sea", max_tokens=6, logprobs=2)
    assert old.choices[0].logprobs is not None
    assert "".join(old.choices[0].logprobs.tokens or []) == old.choices[0].text
    assert all(len(top) == 2 for top in old.choices[0].logprobs.top_logprobs or [])
    drawn = client.completions.create(model="m", prompt="The sea", max_tokens=9, logprobs=1, temperature=2, seed=1)
    alike = drawn.choices[0].logprobs
    assert alike is not None
    chosen = list(zip(alike.tokens or [], alike.token_logprobs or [], alike.top_logprobs or [], strict=True))
    assert all(token in top for token, _, top in chosen)
    assert any(len(top) == 2 and list(top)[1] == token and top[token] == value for token, value, top in chosen)


def test_choices_have_seeds_of_their_own(client: openai.OpenAI) -> None:
    def texts(**more: Any) -> list[str | None]:
        reply = client.chat.completions.create(model="m", messages=ASK, max_tokens=12, temperature=1.0, **more)
        return [choice.message.content for choice in reply.choices]

    three = texts(n=3, seed=5)
    assert len(set(three)) == 3
    assert three == texts(n=3, seed=5)
    assert texts(seed=6) == [three[1]]
    streamed: dict[int, str] = {0: "", 1: "", 2: ""}
    for chunk in client.chat.completions.create(
        model="m", messages=ASK, max_tokens=12, temperature=1.0, n=3, seed=5, stream=True
    ):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert list(streamed.values()) == three


def test_several_prompts(client: openai.OpenAI) -> None:
    prompts = ["The sea is", "A <heed>short</heed> list:"]
    reply = client.completions.create(model="m", prompt=prompts, n=2, max_tokens=5)
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]
    alone = [client.completions.create(model="m", prompt=prompt, max_tokens=5).choices[0].text for prompt in prompts]
    assert [choice.text for choice in reply.choices] == [alone[0], alone[0], alone[1], alone[1]]


# -- what is heeded


def heeded(client: openai.OpenAI, messages: list[Any], **field: Any) -> Any:
    reply = client.chat.completions.create(
        model="m", messages=messages, max_tokens=12, extra_body={"heedful": {"trace": True, **field}}
    )
    return reply.choices[0].message.content, reply.heedful  # type: ignore[attr-defined]


SYSTEM = [{"role": "developer", "content": "Answer in capitals."}, *PLAIN]


def test_marking_by_request(client: openai.OpenAI, tiny: heedful.LM) -> None:
    as_system = [{**SYSTEM[0], "role": "system"}, SYSTEM[1]]
    text, told = heeded(client, SYSTEM)
    assert told["method"] == {"name": "none"}
    assert told["stats"]["method"] == "none"
    assert text == tiny.generate(as_system, method=None, max_new_tokens=12).text
    text, told = heeded(client, SYSTEM, instructions="system", strength=7.0, threshold=0.2)
    expected = tiny.generate(as_system, instructions="system", method=heedful.Directer(7.0, 0.2), max_new_tokens=12)
    assert text == expected.text
    assert told["method"]["strength"] == 7.0
    assert told["ranking"] == list(expected.trace.ranking)
    assert [step["decision"] for step in told["steps"]] == [step.decision for step in expected.trace.steps]
    assert told["stats"]["gated"] == expected.stats.gated > 0
    text, told = heeded(client, PLAIN, instructions=["three fruits"], method="spotlight:target=0.4")
    method = heedful.SpotLight(0.4)
    assert text == tiny.generate(PLAIN, instructions=["three fruits"], method=method, max_new_tokens=12).text
    assert told["method"]["name"] == "spotlight"
    assert heeded(client, ASK, method="none")[1]["method"]["name"] == "none"


def test_a_server_that_heeds_system_messages(tiny: heedful.LM) -> None:
    with running(tiny, heed="system", method="static:strength=3") as here:
        client = here.client()
        assert heeded(client, SYSTEM)[1]["method"]["name"] == "static"
        assert heeded(client, PLAIN)[1]["method"]["name"] == "none"
        assert heeded(client, PLAIN, instructions=["fruits"], strength=2.0)[1]["method"]["strength"] == 2.0


def test_instructions_are_found_when_asked_for(tiny: heedful.LM) -> None:
    told = [{"role": "user", "content": "Plan a trip to Japan. Do not use any commas in your answer."}]
    idle = [{"role": "user", "content": "What is the capital of France?"}]
    expected = tiny.generate(told, instructions="auto", max_new_tokens=12)
    assert expected.stats.gated > 0
    with running(tiny) as here:
        client = here.client()
        text, more = heeded(client, told, instructions="auto", method="directer")
        assert (text, more["stats"]["gated"]) == (expected.text, expected.stats.gated)
        [found] = more["detections"][0]["found"]
        assert found["text"] == "Do not use any commas in your answer."
        text, more = heeded(client, idle, instructions="auto:0.9", strength=50.0)
        assert more["method"] == {"name": "none"}
        assert more["detections"][0]["found"] == []
        assert "no instruction" in more["detections"][0]["note"]
        stream = client.chat.completions.create(
            model="m", messages=told, max_tokens=3, stream=True, stream_options={"include_usage": True},
            extra_body={"heedful": {"instructions": "auto"}},
        )  # type: ignore[call-overload]  # fmt: skip
        chunks = list(stream)
        assert chunks[-2].heedful["detections"][0]["found"][0]["text"] == found["text"]
        assert [chunk.model_dump(exclude_unset=True).get("usage", 0) for chunk in chunks[:-1]] == [None] * 4
        by_user = heeded(client, [*SYSTEM, *idle], instructions="auto:user")[1]
        assert by_user["method"] == {"name": "none"}
        assert heeded(client, [*SYSTEM, *idle], instructions="auto")[1]["method"]["name"] == "directer"
        assert heeded(client, told, instructions="auto:user:0.5")[1]["detections"][0]["found"][0] == found
        for wrong in ("auto:model", "auto:2", "auto:", "auto:user:model", "auto:user:2"):
            with pytest.raises(openai.BadRequestError, match="instructions"):
                heeded(client, told, instructions=wrong)
    with running(tiny, heed="auto") as here:
        client = here.client()
        assert heeded(client, told)[0] == expected.text
        assert heeded(client, idle)[1]["method"] == {"name": "none"}
        assert heeded(client, idle, instructions="auto", strength=50.0)[1]["method"] == {"name": "none"}
        for steering in ({"method": "directer"}, {"strength": 50.0}, {"threshold": 0.1}):
            with pytest.raises(openai.BadRequestError, match="nothing in it is marked"):
                heeded(client, idle, **steering)
            assert heeded(client, told, **steering)[1]["method"]["name"] == "directer"
        both = client.completions.create(model="m", prompt=["Say hi.", told[0]["content"]], max_tokens=2)
        found = [len(one["found"]) for one in both.heedful["detections"]]  # type: ignore[attr-defined]
        assert found == [0, 1]


def test_what_ends_while_its_client_leaves_is_not_lost() -> None:
    """`asyncio.wait_for` may take a cancellation for its end: the request is submitted, and somebody must free it."""

    async def submitted() -> str:
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            return "holds a slot"
        return ""

    async def left() -> dict[str, str]:
        return {"type": "http.disconnect"}

    assert asyncio.run(unless_gone(left, submitted())) == "holds a slot"
    assert asyncio.run(unless_gone(left, asyncio.sleep(10))) is None


# -- in company


def test_company_changes_nothing(server: Running, client: openai.OpenAI) -> None:
    """More requests than slots, steered and not, greedy and drawn, short and long, at the same time."""
    kinds: list[dict[str, Any]] = [
        {"messages": ASK},
        {"messages": PLAIN, "temperature": 0.9, "seed": 3},
        {"messages": ASK, "temperature": 0.7, "top_p": 0.9, "seed": 11},
        {"messages": [{"role": "user", "content": "word " * 90 + PROMPT}]},
        {"messages": ASK, "extra_body": {"heedful": {"method": "context-aware"}}},
        {"messages": ASK, "extra_body": {"heedful": {"method": "spotlight"}}, "temperature": 1.0, "seed": 2},
    ]

    def ask(kind: dict[str, Any]) -> str | None:
        return client.chat.completions.create(model="m", max_tokens=16, **kind).choices[0].message.content

    alone = [ask(kind) for kind in kinds]
    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(ask, kinds * 2))
    assert together == alone * 2
    assert len(set(alone)) == len(kinds)
    assert server.engine.status().num_failures == 0


def test_a_conversation_s_next_turn_is_not_read_again(client: openai.OpenAI, tiny: heedful.LM) -> None:
    messages = [{"role": "user", "content": PROMPT + " Tell of the sea, of hills and of rivers, one by one."}]
    first = client.chat.completions.create(model="m", messages=messages, max_tokens=20)  # type: ignore[arg-type]
    messages.append(first.choices[0].message)  # type: ignore[arg-type]
    messages.append({"role": "user", "content": "And of forests?"})
    reply = client.chat.completions.create(model="m", messages=messages, max_tokens=20)  # type: ignore[arg-type]
    assert reply.usage is not None
    assert reply.usage.prompt_tokens_details is not None
    assert first.usage is not None
    assert reply.usage.prompt_tokens_details.cached_tokens >= first.usage.prompt_tokens - 8  # type: ignore[operator]
    spoken = [{"role": "user", "content": messages[0]["content"]}, {"role": "assistant", "content": first.choices[0].message.content}, messages[2]]  # fmt: skip  # noqa: E501
    assert reply.choices[0].message.content == tiny.generate(spoken, max_new_tokens=20).text


def test_two_conversations_keep_what_they_hold(client: openai.OpenAI) -> None:
    """Turn by turn beside each other: each finds again all that it said, whatever their templates share."""
    chats: list[list[Any]] = [[], []]
    read = [0, 0]
    for turn in range(3):
        for number, topic in enumerate(("the sea and its tides", "a mountain hut in winter")):
            chats[number].append({"role": "user", "content": f"Turn {turn}: tell me at length about {topic}. " * 3})
            reply = client.chat.completions.create(model="m", messages=chats[number], max_tokens=8)
            chats[number].append({"role": "assistant", "content": reply.choices[0].message.content})
            assert reply.usage is not None
            assert reply.usage.prompt_tokens_details is not None
            cached = reply.usage.prompt_tokens_details.cached_tokens
            assert cached is not None
            assert cached >= read[number]
            read[number] = reply.usage.prompt_tokens - 2


def rankings_measured(here: Running, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with each ranking that is measured."""
    found: list[int] = []
    measured = ranking.measured

    def noted(*args: Any) -> Any:
        found.append(1)
        return measured(*args)

    monkeypatch.setattr(ranking, "measured", noted)
    return found


@pytest.mark.parametrize("more", [{}, {"stop": ["e"]}, {"stream": True}], ids=["whole", "stop", "left"])
def test_layers_are_ranked_when_the_marks_change_and_only_then(
    tiny: heedful.LM, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]
) -> None:
    """Turn by turn, however an answer ends: and each is the one that the messages get by themselves."""
    with running(tiny, limits=Limits(4, 16)) as here:
        found, client = rankings_measured(here, monkeypatch), here.client()
        messages: list[Any] = [{"role": "user", "content": f"{PROMPT} Tell of the sea, of hills and rivers. " * 3}]

        def ask(**field: Any) -> tuple[str, int]:
            """The answer, or its first token where it is left; and how much of the prompt was not read again."""
            reply: Any = client.chat.completions.create(
                model="m", messages=messages, max_tokens=20, extra_body={"heedful": field}, **more
            )
            if "stream" in more:
                text = next(piece for chunk in reply if (piece := chunk.choices[0].delta.content))
                reply.close()
                return text, 0
            return reply.choices[0].message.content, reply.usage.prompt_tokens_details.cached_tokens

        for said, count in (("And of woods?", 1), ("And <heed>in one line</heed> of lakes?", 1), ("Of towns?", 2)):
            messages += [{"role": "assistant", "content": ask()[0]}, {"role": "user", "content": said}]
            assert len(found) == count
        text, cached = ask()
        assert len(found) == 2
        assert "stream" in more or cached > 120
        cached = ask(strength=50.0)[1]
        assert "stream" in more or cached > 120
        ask(method="directer:ranking=reversed")
        assert len(found) == 4
        alone = tiny.generate(messages, max_new_tokens=20, stop=more.get("stop", ())).text
        assert alone.startswith(text) if "stream" in more else alone == text


def test_a_ranking_that_is_known_is_that_of_the_same_prompt(tiny: heedful.LM, monkeypatch: pytest.MonkeyPatch) -> None:
    """And so no answer depends on who asked before; those met the least lately are forgotten."""
    with running(tiny, limits=Limits(4, 16)) as here:
        found, client = rankings_measured(here, monkeypatch), here.client()
        first = heeded(client, ASK)
        again = heeded(client, ASK)
        assert (again[0], again[1]["ranking"]) == (first[0], first[1]["ranking"])
        assert len(found) == 1
        [known] = here.engine._rankings._kept.values()
        assert len(known.scores) == 3
        plain = PROMPT.replace("<heed>", "").replace("</heed>", "")
        others = ["<heed weight=0.5>Do not use any commas.</heed>", "Do not use <heed>any commas.</heed>"]
        for count, other in enumerate((*others, "Do not use any <heed>vowels.</heed>"), start=2):
            told = heeded(client, [{"role": "user", "content": f"Plan a trip to Japan. {other}"}])[1]
            assert len(found) == count
            alone = tiny.generate(f"Plan a trip to Japan. {other}", max_new_tokens=1)
            assert told["ranking"] == list(alone.trace.ranking)
            found.pop()
        heeded(client, [{"role": "user", "content": plain}], method="static", instructions=["Japan"])
        heeded(client, ASK, method="directer:span=random:1")  # drawn anew: never known
        kept = here.engine._rankings
        assert (len(kept._kept), kept.size) == (4, 1024)
        kept.size = 4
        count = len(found)
        heeded(client, [{"role": "user", "content": PROMPT.replace("commas", "dashes")}])
        assert (len(found), len(kept._kept)) == (count + 1, 4)
        heeded(client, ASK)
        assert len(found) == count + 2


def test_a_ranking_that_is_known_tells_its_scores_too(tiny: heedful.LM) -> None:
    """The playground draws them."""
    encoded = tiny.encode(PROMPT)

    async def scores(here: Running) -> tuple[float, ...]:
        stream = here.engine.submit(encoded.token_ids, encoded.span, Settings(2, heedful.Directer()))
        return [token async for token in stream][-1].sensitivity

    with running(tiny, limits=Limits(4, 16)) as here:
        first = asyncio.run(scores(here))
        assert len(first) == 3
        assert asyncio.run(scores(here)) == first


def test_a_ranking_is_told_to_nobody_else_where_prefixes_are_not(
    tiny: heedful.LM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a request costs would tell one client what another has asked."""
    with running(tiny, limits=Limits(4, 16, reuses_prefixes=False)) as here:
        found, client = rankings_measured(here, monkeypatch), here.client()
        assert heeded(client, ASK)[0] == heeded(client, ASK)[0]
        assert len(found) == 2
        assert not here.engine._rankings._kept


# -- limits


def occupy(here: Running, count: int, tokens: int = 450) -> list[Any]:
    """Streams that run for a while, 0.02 s a token; close them."""
    here.pause = 0.02
    streams = [
        here.http().send(
            here.http().build_request("POST", CHAT, json=body(max_tokens=tokens, stream=True, messages=PLAIN)),
            stream=True,
        )
        for _ in range(count)
    ]
    return streams


def test_a_full_queue_is_429(tiny: heedful.LM) -> None:
    with running(tiny, limits=Limits(max_running=1, max_queue=1)) as here:
        streams = occupy(here, 2)
        here.wait(lambda status: status.num_running == 1 and status.num_waiting == 1)
        with pytest.raises(openai.RateLimitError) as caught:
            here.client().chat.completions.create(model="m", messages=PLAIN, max_tokens=1)
        assert 1 <= int(caught.value.response.headers["retry-after"]) <= 60
        assert caught.value.code == "queue_full"
        retrying = here.client(max_retries=2)
        for stream in streams:
            stream.close()
        assert retrying.chat.completions.create(model="m", messages=PLAIN, max_tokens=1).choices


def test_leaving_frees_slots(tiny: heedful.LM) -> None:
    with running(tiny, limits=Limits(max_running=2, max_queue=8)) as here:
        streams = occupy(here, 4)
        with socket.create_connection(here.url.removeprefix("http://").split(":")) as raw:  # type: ignore[arg-type]
            data = json.dumps(body(max_tokens=450, messages=PLAIN)).encode()
            raw.sendall(b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n" % CHAT.encode())
            raw.sendall(b"Content-Length: %d\r\n\r\n" % len(data) + data)
            here.wait(lambda status: status.num_running == 2 and status.num_waiting == 3)
        here.wait(lambda status: status.num_waiting == 2)
        for stream in streams:
            stream.close()
        here.wait(lambda status: status.num_running == status.num_waiting == 0, seconds=12)  # by themselves: over 20 s
        assert len(here.engine._decoder._free) == 2
        assert here.client().chat.completions.create(model="m", messages=PLAIN, max_tokens=1).choices


def test_the_time_limit(tiny: heedful.LM) -> None:
    with running(tiny, seconds=0.2) as here:
        reply = here.http().post(CHAT, json=body(max_tokens=450))
        assert reply.status_code == 504
        assert reply.json()["error"]["code"] == "time_limit"
        with pytest.raises(openai.APIError, match=r"longer than 0\.2 s"):
            list(here.client().chat.completions.create(model="m", messages=ASK, max_tokens=450, stream=True))
        here.wait(lambda status: status.num_running == 0)


def test_owners_take_turns(tiny: heedful.LM) -> None:
    with running(tiny, limits=Limits(max_running=1, max_queue=16)) as here:
        client, order = here.client(), []
        occupied = occupy(here, 1)
        here.wait(lambda status: status.num_running == 1)

        def ask(user: str) -> None:
            client.chat.completions.create(model="m", messages=PLAIN, max_tokens=2, user=user)
            order.append(user)

        threads = []
        for waiting, user in enumerate(["busy"] * 4 + ["other"], start=1):
            threads.append(threading.Thread(target=ask, args=(user,)))
            threads[-1].start()
            here.wait(lambda status, waiting=waiting: status.num_waiting == waiting)  # type: ignore[misc]
        occupied[0].close()
        for thread in threads:
            thread.join()
        assert order.index("other") <= 2


def test_a_full_queue_is_shared(tiny: heedful.LM) -> None:
    """Who has fewer requests there than others comes in; the last of the longest line gives way."""
    with running(tiny, limits=Limits(max_running=1, max_queue=3)) as here, ThreadPoolExecutor(4) as pool:
        occupied = occupy(here, 1)
        here.wait(lambda status: status.num_running == 1)

        def ask(user: str) -> int:
            return here.http().post(CHAT, json=body(user=user, max_tokens=1)).status_code

        busy = []
        for waiting in (1, 2, 3):
            busy.append(pool.submit(ask, "busy"))
            here.wait(lambda status, waiting=waiting: status.num_waiting == waiting)  # type: ignore[misc]
        assert ask("busy") == 429
        other = pool.submit(ask, "other")
        assert busy[2].result(timeout=10) == 429
        occupied[0].close()
        assert [one.result(timeout=10) for one in (*busy[:2], other)] == [200] * 3


class SlowReading:
    """Lets a server's prompts wait while they are encoded, until `may_go`; `order`: whose were, as they were."""

    def __init__(self, here: Running, patch: pytest.MonkeyPatch) -> None:
        self.service, self.may_go, self.order = here.app.state.service, threading.Event(), list[str]()
        mark, encode = self.service._mark, self.service.lm.encode

        def slow_mark(prompts: Any, request: Any) -> Any:
            self.may_go.wait(60)
            self.order.append(request.user)
            return mark(prompts, request)

        def slow_encode(*args: Any, **more: Any) -> Any:
            self.may_go.wait(60)
            return encode(*args, **more)

        patch.setattr(self.service, "_mark", slow_mark)
        self.slow_encode = slow_encode

    def wait(self, number: int) -> None:
        """Until so many answers' prompts are being encoded."""
        eventually(lambda: self.service._encoding.total() == number)


def test_encoding_is_a_part_of_the_queue(tiny: heedful.LM, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(tiny, limits=Limits(max_running=1, max_queue=1)) as here, ThreadPoolExecutor(2) as pool:
        reading = SlowReading(here, monkeypatch)
        two = []
        for number in (1, 2):
            two.append(pool.submit(here.http().post, CHAT, json=body()))
            reading.wait(number)
        reply = here.http().post(CHAT, json=body())
        assert (reply.status_code, "0 requests run and 2 wait" in reply.text) == (429, True)
        reading.may_go.set()
        assert [one.result().status_code for one in two] == [200, 200]
        assert not reading.service._encoding


def test_the_time_limit_holds_while_a_prompt_is_encoded(tiny: heedful.LM, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(tiny, seconds=0.2) as here:
        reading = SlowReading(here, monkeypatch)
        monkeypatch.setattr(tiny, "encode", reading.slow_encode)
        assert here.http().post(CHAT, json=body()).json()["error"]["code"] == "time_limit"
        service = here.app.state.service
        with pytest.raises(heedful.HeedfulError, match=r"longer than 0\.2 s"):
            asyncio.run(service.encode(PLAIN, 1, "page"))
        assert not service._encoding
        reading.may_go.set()
        monkeypatch.setattr(service, "config", replace(service.config, seconds=30.0))
        assert here.http().post(CHAT, json=body()).status_code == 200


def test_encoding_is_shared(tiny: heedful.LM, monkeypatch: pytest.MonkeyPatch) -> None:
    """One who fills the queue with prompts to encode keeps nobody else out of it, nor waiting."""
    with running(tiny, limits=Limits(max_running=1, max_queue=3)) as here, ThreadPoolExecutor(8) as pool:
        reading = SlowReading(here, monkeypatch)

        def ask(user: str) -> int:
            return here.http().post(CHAT, json=body(user=user, max_tokens=1)).status_code

        asked = []
        for number in range(1, 5):
            asked.append(pool.submit(ask, "busy"))
            reading.wait(number)
        assert ask("busy") == 429
        asked.append(pool.submit(ask, "other"))
        reading.wait(5)
        service = here.app.state.service
        with pytest.raises(BusyError):
            asyncio.run(service.encode(PLAIN, 4, "page"))
        reading.may_go.set()
        assert {one.result() for one in asked} <= {200, 429}
        assert asked[-1].result() == 200
        assert reading.order.index("other") <= 2  # behind what is being encoded, and one more at most
        assert not service._encoding


@pytest.mark.parametrize(
    ("streams", "bound"), [(False, "SEND_SECONDS"), (True, "SEND_SECONDS"), (True, "LAST_WORD_SECONDS")]
)
def test_a_client_that_does_not_read_is_given_up(
    tiny: heedful.LM, monkeypatch: pytest.MonkeyPatch, streams: bool, bound: str
) -> None:
    """What it was sent is not taken: neither its slot nor its connection is held for longer than the limits say."""
    monkeypatch.setattr(guard, "SEND_SECONDS", 0.3 if bound == "SEND_SECONDS" else 60.0)
    monkeypatch.setattr(routes, "LAST_WORD_SECONDS", 0.1 if bound == "LAST_WORD_SECONDS" else 60.0)
    with running(tiny, seconds=1.0 if bound == "LAST_WORD_SECONDS" else 60.0) as here:
        sent: list[str] = []

        async def send(message: Any) -> None:
            sent.append(message["type"])
            if message["type"] == "http.response.body":
                await asyncio.sleep(600)

        asked = [
            {
                "type": "http.request",
                "body": json.dumps(body(stream=streams, max_tokens=400 if streams else 4)).encode(),
            }
        ]

        async def receive() -> Any:
            if not asked:
                await asyncio.sleep(600)
            return asked.pop()

        scope = {
            "type": "http", "method": "POST", "path": CHAT, "raw_path": CHAT.encode(), "query_string": b"",
            "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")], "app": here.app,
        }  # fmt: skip
        asyncio.run(asyncio.wait_for(here.app(scope, receive, send), 30))
        assert sent == ["http.response.start", "http.response.body"]
        here.wait(lambda status: status.num_running == 0, seconds=5)


def test_a_slow_client_cannot_stretch_the_time_limit(tiny: heedful.LM) -> None:
    """What is decided and not yet read when the time is up is not handed out any more."""

    async def ask() -> None:
        service = here.app.state.service
        asked = await service.chat(ChatRequest(model="m", messages=PLAIN, max_tokens=20), None)
        pieces = asked.generation.pieces()
        await anext(pieces)
        await asyncio.sleep(1.0)
        with pytest.raises(heedful.HeedfulError, match="took longer"):
            await anext(pieces)

    with running(tiny, seconds=0.9) as here:
        asyncio.run(ask())


# -- failures


def test_a_failing_step(tiny: heedful.LM, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    with running(tiny) as here:
        http, forward = here.http(), tiny.engine.forward

        def fail(*_: Any, **__: Any) -> None:
            raise RuntimeError("out of memory")

        stream = occupy(here, 1)[0]
        here.wait(lambda status: status.num_running == 1)
        monkeypatch.setattr(tiny.engine, "forward", fail)
        assert json.loads(stream.read().decode().strip().splitlines()[-1][6:])["error"]["code"] == "engine_failed"
        assert http.get("/health").json()["status"] == "degraded"
        monkeypatch.setattr(tiny.engine, "forward", forward)
        assert http.post(CHAT, json=body()).status_code == 200
        health = http.get("/health").json()
        assert (health["status"], health["engine_failures"], health["last_failure"]) == ("ok", 1, "RuntimeError")
        monkeypatch.setattr(tiny.engine, "forward", fail)
        assert [http.post(CHAT, json=body()).status_code for _ in range(4)] == [500] * 4
        assert http.get("/health").status_code == http.get("/ready").status_code == 503
        assert "out of memory" in caplog.text


@pytest.mark.parametrize("streams", [False, True])
def test_numbers_that_are_not_finite_end_one_answer(
    tiny: heedful.LM, monkeypatch: pytest.MonkeyPatch, streams: bool
) -> None:
    monkeypatch.setattr(ContextAware, "combine", lambda self, logits, hidden: logits * torch.nan)
    with running(tiny) as here:
        http, beside = here.http(), occupy(here, 1, tokens=200)[0]
        here.wait(lambda status: status.num_running == 1)
        ask = body(heedful={"method": "context-aware"}, temperature=1, stream=streams)
        replies = [http.post(CHAT, json=ask) for _ in range(4)]
        assert all("not_finite" in reply.text for reply in replies)
        assert {reply.status_code for reply in replies} == {200 if streams else 500}
        assert beside.read().decode().endswith("data: [DONE]\n\n")
        health = http.get("/health").json()
        assert (health["status"], health["engine_failures"]) == ("ok", 0)
        here.wait(lambda status: status.num_running == 0)


NUMBERS = st.one_of(
    st.integers(-1, 3),
    st.integers(10**19, 10**30),  # beyond 2^63, within float32
    st.just(10**308),
    st.just(10**400),
    st.floats(),
    st.sampled_from([-0.0, 5e-324, 1e-30, 1e30, 3.4e38, 1e300, 1.8e308]),
)
VALUES = st.one_of(
    NUMBERS,
    st.booleans(),
    st.none(),
    st.text(max_size=6),
    st.lists(st.one_of(st.integers(0, 2), NUMBERS), max_size=4),
    st.dictionaries(st.sampled_from(["0", "1", "2", "9", "x"]), st.lists(st.integers(0, 5), max_size=3), max_size=3),
    st.sampled_from(["paper", "released", "random", "random:7", "shift:1", "shift:-99", "[" * 400]),
)
LIKELY = {
    "pooled": st.just(False),
    "heads": st.just({"1": [0, 2]}),
    "ranking": st.sampled_from(["released", "random:7", [2, 0, 1]]),
    "span": st.sampled_from(["random", "shift:1"]),
    "layers": st.lists(st.integers(0, 2), min_size=1),
    "level": st.integers(0, 1),
}


def specs(name: str) -> st.SearchStrategy[str]:
    """Method texts of `name`: options that it takes, with values that it may, and some that it may not."""
    kind = METHODS[name.removesuffix(GATED)]
    takes = set() if kind is None else {field.name for field in fields(kind)} - {"compat", "gate", "profiled"}
    takes |= {"threshold"} if name.endswith(GATED) else set()
    each = {key: st.one_of(*[LIKELY.get(key, NUMBERS)] * 5, VALUES) for key in sorted({*takes, "span"})}
    needed = {"heads": each.pop("heads")} if "heads" in each else {}
    options = st.fixed_dictionaries(needed, optional=each)
    pairs = options.map(lambda d: [f"{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in d.items()])
    return pairs.map(lambda found: ":".join([name, *found])[:1000])


@settings(max_examples=200, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    method=st.sampled_from(NAMES).flatmap(specs),
    strength=st.one_of(st.none(), NUMBERS),
    tag=st.sampled_from(["<heed>", "<heed weight=0>", "<heed weight=1e6>", "<heed weight=0.5>"]),
)
def test_whatever_method_is_asked_for(
    server: Running, http: httpx.Client, method: str, strength: Any, tag: str
) -> None:
    """It answers, or is refused; nothing that a method says may be the engine's failure."""
    messages = [{"role": "user", "content": f"Plan a trip. {tag}No commas.</heed>"}]
    asked = {"method": method, "strength": strength}
    data = json.dumps(body(messages=messages, max_tokens=3, heedful=asked, temperature=0.5, seed=1))
    reply = http.post(CHAT, content=data, headers={"content-type": "application/json"})
    assert reply.status_code in (200, 400) or reply.json()["error"]["code"] == "not_finite", (asked, reply.text)
    assert "cannot be computed" not in reply.text, asked
    assert server.engine.status().num_failures == 0, asked


@pytest.mark.parametrize("method", ["directer", "static", "static-gated", "instaboost", "context-aware", "anchoring"])
def test_huge_whole_numbers(server: Running, method: str) -> None:
    name = "multiplier" if method == "instaboost" else "strength"
    for value in ("1" + "0" * 25, "1" + "0" * 300, "1" + "0" * 400):
        reply = server.http().post(CHAT, json=body(heedful={"method": f"{method}:{name}={value}"}))
        expected = 400 if method in ("context-aware", "anchoring") or len(value) > 400 else 200
        assert reply.status_code == expected, reply.text
        assert reply.status_code == 200 or name in reply.json()["error"]["message"]
    assert server.engine.status().num_failures == 0


def test_one_request_s_own_error_ends_no_other(tiny: heedful.LM, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OverflowError("its own fault")

    monkeypatch.setattr(heedful.SpotLight, "edit", fail)
    with running(tiny) as here:
        http, beside = here.http(), occupy(here, 1, tokens=60)[0]
        here.wait(lambda status: status.num_running == 1)
        for _ in range(4):
            reply = http.post(CHAT, json=body(heedful={"method": "spotlight-gated:threshold=0"}))
            assert (reply.status_code, "OverflowError" in reply.text) == (500, True)
        assert beside.read().decode().endswith("data: [DONE]\n\n")
        health = http.get("/health").json()
        assert (health["status"], health["engine_failures"]) == ("ok", 0)


def test_a_dead_thread_is_told(tiny: heedful.LM, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    with running(tiny, limits=Limits(max_running=1, max_queue=4)) as here:
        streams = occupy(here, 2)
        here.wait(lambda status: status.num_running == status.num_waiting == 1)
        monkeypatch.setattr(here.engine, "_succeed", lambda emitted: 1 / 0)
        for stream in streams:
            assert "engine_failed" in stream.read().decode()
        assert here.http().get("/health").json()["status"] == "failed"
        assert here.http().get("/health").status_code == 503
        assert here.http().post(CHAT, json=body()).json()["error"]["code"] == "engine_failed"
        assert "ZeroDivisionError" in caplog.text


def test_a_thread_that_ends_unheard_is_told(tiny: heedful.LM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TransformersEngine, "_run", lambda self: None)
    with running(tiny) as here:
        assert here.http().get("/health").status_code == 503
        assert here.http().post(CHAT, json=body()).status_code == 500


def test_a_request_that_cannot_be_begun_ends_alone(tiny: heedful.LM, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(tiny) as here:
        begin = here.engine._submit

        def picky(asked: Any) -> Any:
            return 1 // 0 if asked.max_new_tokens == 3 else begin(asked)

        monkeypatch.setattr(here.engine, "_submit", picky)
        http = here.http()
        for _ in range(4):  # more often than an engine may fail
            reply = http.post(CHAT, json=body(max_tokens=3))
            assert (reply.status_code, "could not be begun" in reply.text) == (500, True)
        assert http.post(CHAT, json=body()).status_code == 200
        assert http.get("/health").json()["status"] == "ok"


def test_who_waits_hears_of_a_failure_that_has_another_behind_it(
    tiny: heedful.LM, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(tiny) as here:
        monkeypatch.setattr(here.engine._decoder, "step", lambda: 1 // 0)
        monkeypatch.setattr(here.engine._decoder, "reset", lambda: 1 // 0)
        assert here.http().post(CHAT, json=body()).status_code == 500
        here.wait(lambda status: status.state == "failed")


def test_a_turn_that_was_given_up_is_passed_over() -> None:
    async def turns() -> int:
        thread, may_go = FairThread("test"), threading.Event()
        first = asyncio.ensure_future(thread.run("a", may_go.wait))
        await asyncio.sleep(0)
        others = [asyncio.ensure_future(thread.run(owner, lambda: 7)) for owner in "bcd"]
        await asyncio.sleep(0)
        for one in others[:2]:
            one.cancel()
        thread._pass_on()  # before those who left have taken their turns out
        may_go.set()
        assert await first
        return await asyncio.wait_for(others[2], 10)

    assert asyncio.run(turns()) == 7


def test_what_nobody_foresaw(tiny: heedful.LM, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    with running(tiny) as here:
        http = here.http()
        with monkeypatch.context() as patch:
            patch.setattr(Envelope, "whole", lambda *_: {"value": math.nan})
            reply = http.post(CHAT, json=body())
        assert (reply.status_code, reply.json()["error"]["code"]) == (500, "internal_error")
        assert metric(http, f'heedful_requests_total{{path="{CHAT}",status="500"}}') == 1
        monkeypatch.setattr(Envelope, "chunk", lambda *_: {"value": math.nan})
        events = http.post(CHAT, json=body(stream=True)).text.strip().split("\n\n")
        assert json.loads(events[-1][6:])["error"]["code"] == "internal_error"
        assert metric(http, f'heedful_requests_total{{path="{CHAT}",status="200"}}') == 1
        assert "a stream failed" in caplog.text
        here.wait(lambda status: status.num_running == 0)


def test_draining(tiny: heedful.LM) -> None:
    with running(tiny, limits=Limits(max_running=1, max_queue=4)) as here:
        runs, waits = occupy(here, 2, tokens=150)
        here.wait(lambda status: status.num_running == 1 and status.num_waiting == 1)
        here.engine.drain()
        assert "shutting_down" in waits.read().decode()
        assert here.http().post(CHAT, json=body()).status_code == 503
        assert here.http().get("/ready").status_code == 503
        assert runs.read().decode().endswith("data: [DONE]\n\n")


def test_the_grace_period_runs_out(tiny: heedful.LM) -> None:
    """What is not finished then is ended, with a word why; the server goes."""
    with running(tiny, limits=Limits(max_running=1, max_queue=4)) as here:
        stream = occupy(here, 1)[0]  # for 9 s
        here.wait(lambda status: status.num_running == 1)
        here.server.grace_seconds = 0.3
        begun = time.monotonic()
        here.server.should_exit = True
        last = json.loads(stream.read().decode().strip().splitlines()[-1][6:])
        assert (last["error"]["code"], time.monotonic() - begun < 7) == ("shutting_down", True)
        assert "before the answer was finished" in last["error"]["message"]
        here.wait(lambda status: status.state == "stopped")


# -- the bench


def test_the_bench_writes_its_page(tmp_path: Path) -> None:
    asked = [bench.request(number, 64) for number in range(24)]
    drawn = {one["heedful"]["method"] for one in asked if "temperature" in one}
    assert drawn == set(bench.METHODS) == {one["heedful"]["method"] for one in asked if "temperature" not in one}
    figures = [Figure("mixed load: errors", 0, 0, 0), Figure("throughput, 16 clients ÷ 1", 4.61, 3.5, 4.8)]
    report = Report({"clients": 64, "model": None}, "a machine", {"heedful": "1"}, [], figures)
    bench.write(report, tmp_path / "serving.md")
    text = (tmp_path / "serving.md").read_text()
    assert "| throughput, 16 clients ÷ 1 | ≥ 3 | 4.61 | 3.5 | 4.8 |" in text
    assert "| mixed load: errors | 0 | 0 | 0 | 0 |" in text
    assert re.search(r"a machine; \d{4}-.*; commit \w+", text)
    assert "clients=64\n" in text
    assert "torch" in text


# -- operation


def test_operation(server: Running, client: openai.OpenAI) -> None:
    http = server.http()
    before = metric(http, 'heedful_tokens_total{decision="skipped"}')
    client.chat.completions.create(model="m", messages=PLAIN, max_tokens=7)
    assert metric(http, 'heedful_tokens_total{decision="skipped"}') == before + 7
    assert metric(http, "heedful_running_requests") == 0
    assert http.get("/health").json()["status"] == "ok"
    assert http.get("/ready").json() == {"ready": True}
    assert set(http.get("/openapi.json").json()["paths"]) >= {CHAT, TEXT, "/v1/models", "/health", "/ready", "/metrics"}
    assert http.get("/docs").status_code == 200
    assert "422" not in http.get("/openapi.json").text


def metric(http: httpx.Client, name: str) -> float:
    found = [line for line in http.get("/metrics").text.splitlines() if line.startswith(name + " ")]
    return float(found[0].split()[-1]) if found else 0.0


def test_keys(tiny: heedful.LM, capfd: Any) -> None:
    with running(tiny, keys=("first-key", "second-key")) as here:
        assert here.client(api_key="second-key").models.list()
        with pytest.raises(openai.AuthenticationError):
            here.client(api_key="first-ke").models.list()
        http = here.http()
        behind_a_proxy = {"Host": "llm.example", "Authorization": "Bearer first-key"}
        assert http.get("/v1/models", headers=behind_a_proxy).status_code == 200
        assert http.get("/health").status_code == http.get("/ready").status_code == 200
        for path in ("/metrics", "/v1/models", "/docs", "/openapi.json", "/nowhere"):
            assert http.get(path).status_code == 401, path
        assert http.post(CHAT, json=body(), headers={"Authorization": "Basic first-key"}).status_code == 401
        assert http.post(CHAT, json=body(), headers={"Authorization": b"Bearer \xff\xfe"}).status_code == 401
        assert "first-ke" not in capfd.readouterr().err


def test_other_sites_are_kept_out(http: httpx.Client) -> None:
    assert http.get("/v1/models", headers={"Host": "evil.example"}).status_code == 421
    reply = http.options(CHAT, headers={"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"})
    assert reply.status_code == 405
    assert not [name for name in reply.headers if name.startswith("access-control")]
    assert http.post(CHAT, content=json.dumps(body()), headers={"Content-Type": "text/plain"}).status_code == 400


# -- the command


def test_the_command_serves_until_sigterm(tmp_path: Path) -> None:
    """A stream that runs when SIGTERM comes is finished; then the port is free and the exit code 0."""
    keys = tmp_path / "keys"
    keys.write_text("# ours\n\nopen-sesame\n")
    command = [sys.executable, "-u", "-c", "from heedful.cli import main; main()", "serve", "--port", "0"]
    command += ["--api-key-file", str(keys), "--max-context", "256", "--max-batch", "2", "--dtype", "float32"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True
    ) as server:
        assert server.stdout is not None
        line, heeds = server.stdout.readline(), server.stdout.readline()
        assert "SmolLM2" in line
        assert "2 answers at a time, 256 tokens each" in heeds
        url = re.findall(r"http://127\.0\.0\.1:\d+", line)[0]
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="open-sesame", max_retries=5)
        model = client.models.list().data[0].id
        stream = client.chat.completions.create(model=model, messages=ASK, max_tokens=40, stream=True)
        chunks = [next(stream), next(stream)]
        server.send_signal(signal.SIGTERM)
        chunks += stream
        assert chunks[-1].choices[0].finish_reason in ("length", "stop")
        client.close()
        _, err = server.communicate(timeout=60)
    assert server.returncode == 0
    assert "Traceback" not in err
    assert "open-sesame" not in err
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--host", "0.0.0.0"], "--insecure"),
        (["--api-key-file", "/no/file"], "cannot read the API keys"),
        (["--api-key-file", os.devnull], "no API key"),
        (["--heed", "all"], "unknown heed"),
        (["--method", "magic"], "unknown method"),
        (["--time-limit", "0"], "seconds"),
        (["--max-batch", "0"], "max-batch"),
        (["--max-context", "9000"], "8192"),
        (["--max-batch", "100000", "--max-context", "8192"], "GiB"),
        (["--host", "no.such.host.invalid", "--insecure"], "cannot listen"),
    ],
)
def test_the_command_refuses(words: list[str], says: str, lm: heedful.LM, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr("heedful.generate.load", lambda *_, **__: lm)
    monkeypatch.setattr(sys, "argv", ["heedful", "serve", "--port", "0", *words])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    out = capsys.readouterr()
    assert (caught.value.code, out.out) == (2, "")
    assert says in out.err
    assert out.err.count("\n") == 1


def test_a_taken_port_is_said() -> None:
    taken = run.listen("127.0.0.1", 0)
    taken.listen()
    with closing(taken), pytest.raises(heedful.OptionError, match="cannot listen"):
        run.listen("127.0.0.1", taken.getsockname()[1])


@pytest.mark.parametrize(
    ("host", "is_local"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("localhost", True), ("::1", True), ("[::1]", True), ("0.0.0.0", False),
     ("192.168.0.1", False), ("localhost.evil.example", False), ("", False), ("::", False)],
)  # fmt: skip
def test_loopback(host: str, is_local: bool) -> None:
    assert is_loopback(host) is is_local


def test_a_default_that_needs_more_slots_is_refused(tiny: heedful.LM) -> None:
    with pytest.raises(heedful.OptionError, match="two slots"), running(tiny, method="context-aware", limits=Limits(1)):
        pass


@pytest.mark.parametrize("more", ["", ":span=shift:1"])
def test_a_default_s_profile_is_read_once(more: str, tmp_path: Path) -> None:
    profile = tmp_path / "heads.json"
    profile.write_text('{"1": [0, 2]}')
    scores_path(profile).write_text(json.dumps({"model": asdict(ModelShape("made-for", 3, 4))}) + "\n")
    default = Default.of(f"pasta:profile={profile}{more}")
    profile.unlink()
    for asked in (None, Heedful(strength=0.5)):
        method = default.method(asked)
        assert method is not None
        recipe = method.recipe()
        assert (recipe.layers, recipe.displace is not None) == ((1,), bool(more))
        recipe.check(ModelShape("made-for", 3, 4))
        with pytest.raises(heedful.OptionError, match="made for made-for"):
            recipe.check(ModelShape("another", 5, 8))
    own = default.method(Heedful(method='pasta:heads={"0": [1]}'))
    assert own is not None
    own.recipe().check(ModelShape("another", 5, 8))


def test_pooled_spotlight_is_no_default() -> None:
    with pytest.raises(heedful.OptionError, match="hold up"):
        Default.of("spotlight:pooled=true:span=shift:1")
    assert Default.of("spotlight-gated:pooled=true").method(None) is not None


def test_storage_fits_the_memory(tiny: heedful.LM) -> None:
    whole = plan(tiny.engine, 4, None, free=1 << 34)
    assert whole.context == 4096
    small = plan(tiny.engine, 4, None, free=whole.num_bytes)
    assert 4096 // 3 < small.context < 4096 // 2
    assert small.num_bytes <= whole.num_bytes // 2
    assert tiny.engine.slots(4, small.capacity).num_bytes == small.num_bytes
    with pytest.raises(heedful.OptionError, match="max-context"):
        plan(tiny.engine, 4, 4096, free=whole.num_bytes)


def test_a_fair_queue() -> None:
    queue: FairQueue[int] = FairQueue()
    for owner, item in [("a", 1), ("a", 2), ("a", 3), ("b", 4), ("c", 5), ("b", 6)]:
        queue.push(owner, item)
    assert queue.remove(5)
    assert not queue.remove(5)
    assert len(queue) == 5
    assert [queue.pop() for _ in range(5)] == [1, 4, 2, 6, 3]
    with pytest.raises(IndexError):
        queue.pop()
