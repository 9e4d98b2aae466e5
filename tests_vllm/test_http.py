"""vLLM's own OpenAI server with the middleware and the default model: the official client needs a base URL only."""

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest

import heedful
from heedful import models
from heedful.methods import parse_method
from heedful.vllm import sampling_params, tokens_prompt
from heedful.vllm.http import Heed

PROMPT = "Tell me about the sea. <heed>Do not use any commas, and answer in capital letters.</heed>"
OTHERS = [
    "Write a short letter to a friend. <heed>End it with the word 'Yours'.</heed>",
    "<heed>Answer in one sentence.</heed> Why is the sky blue?",
]
NEW = 24
KEY = {"Authorization": "Bearer secret"}


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    counted, port = tmp_path_factory.mktemp("counted"), free_port()
    log = (counted / "server.log").open("w")
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(counted), "VLLM_API_KEY": "secret"}
    environment.pop("VLLM_ENABLE_V1_MULTIPROCESSING")
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", str(models.default_model_path(progress=False)), "--served-model-name", "smol"]
    command += ["--port", str(port), "--host", "127.0.0.1", "--dtype", "float32", "--enforce-eager"]
    command += ["--max-model-len", "512", "--middleware", "heedful.vllm.http.Heed", "--max-num-seqs", "8"]
    server = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    base = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            time.sleep(0.5)
            assert server.poll() is None, Path(log.name).read_text()[-3000:]
            try:
                if httpx.get(f"{base}/health").status_code == 200:
                    break
            except httpx.TransportError:
                continue
        yield base
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture(scope="module")
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="secret", max_retries=0)


@pytest.fixture(scope="module")
def lm() -> heedful.LM:
    return heedful.load(dtype="float32")


def ask(client: openai.OpenAI, content: str, **more: Any) -> str:
    more = {"temperature": 0.0, "max_tokens": NEW, **more}
    messages = [{"role": "user", "content": content}]
    return client.chat.completions.create(model="smol", messages=messages, **more).choices[0].message.content  # type: ignore[arg-type, call-overload, no-any-return]


def test_tags_just_work(client: openai.OpenAI, lm: heedful.LM) -> None:
    prompts = [PROMPT, *OTHERS]
    wanted = [lm.generate(prompt, max_new_tokens=NEW).text for prompt in prompts]
    plain = [lm.generate(prompt, method=None, max_new_tokens=NEW).text for prompt in prompts]
    assert wanted != plain
    untagged = [prompt.replace("<heed>", "").replace("</heed>", "") for prompt in prompts]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda prompt: ask(client, prompt), [*prompts, *untagged]))
    assert found == [*wanted, *plain]


TURNS = [{"role": "assistant", "content": "I AM A MODEL."}, {"role": "user", "content": "And who am I?"}]


@pytest.mark.parametrize("more", [[], TURNS], ids=["one turn", "a conversation"])
def test_the_heedful_field(client: openai.OpenAI, lm: heedful.LM, more: list[dict[str, str]]) -> None:
    messages = [
        {"role": "system", "content": "Answer in capital letters."},
        {"role": "user", "content": "Who are you?"},
        *more,
    ]
    field = {"instructions": "system", "strength": 30.0, "threshold": 0.2}
    answer = client.chat.completions.create(
        model="smol",
        messages=messages,  # type: ignore[arg-type]
        temperature=0.0,
        max_tokens=NEW,
        extra_body={"heedful": field},
    )
    method = heedful.Directer(strength=30.0, threshold=0.2)
    wanted = lm.generate(messages, instructions="system", method=method, max_new_tokens=NEW).text
    assert answer.choices[0].message.content == wanted


def test_plain_text_is_steered_and_streamed(client: openai.OpenAI, lm: heedful.LM) -> None:
    stream = client.completions.create(model="smol", prompt=PROMPT, temperature=0.0, max_tokens=NEW, stream=True)
    job = heedful.Job(PROMPT, max_new_tokens=NEW, raw=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == lm.generate_batch([job])[0].text


@pytest.mark.parametrize(
    ("content", "field", "says"),
    [
        ("<heed>Never closed.", None, "never closed"),
        ("Hello.", {"strength": -1.0}, "strength must be finite"),
        ("Hello.", {"method": "directer"}, "nothing in it is marked"),
        ("Hello.", {"instructions": ["absent"]}, "instruction not found"),
        (PROMPT, {"method": "spotlight"}, "kernels take no bias"),
        (PROMPT, {"method": "nosuch"}, "unknown method"),
        (PROMPT, {"sense": 1}, "heedful.sense"),
        (PROMPT, {"trace": True}, "heedful.trace"),
        (PROMPT, {"method": "directer:ranking=[1,99]"}, "heedful.method: layer 99 is not in the model"),
    ],
)
def test_bad_requests_are_400_and_the_server_lives_on(
    client: openai.OpenAI, content: str, field: Any, says: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=says):
        ask(client, content, extra_body={} if field is None else {"heedful": field})
    assert ask(client, "Hello.", max_tokens=2)


@pytest.mark.parametrize("path", ["/v1/responses", "/invocations", "/v1/messages", "/inference/v1/generate"])
def test_other_paths_do_not_pass_tags_on(url: str, path: str) -> None:
    body = {"model": "smol", "input": PROMPT, "messages": [{"role": "user", "content": PROMPT}]}
    answer = httpx.post(f"{url}{path}", json=body, headers=KEY)
    assert (answer.status_code, "cannot be steered" in answer.text) == (400, True)


def test_tags_can_be_tokenised(url: str) -> None:
    assert httpx.post(f"{url}/tokenize", json={"model": "smol", "prompt": PROMPT}, headers=KEY).json()["count"] > 20


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"use_beam_search": True}, "use_beam_search cannot be combined"),
        ({"truncate_prompt_tokens": 12}, "heedful.prompt_tokens is"),
        ({"messages": "<heed>x</heed>"}, "messages must be a list"),
        ({"messages": []}, "messages must be a list"),
        ({"messages": ["<heed>x</heed>"]}, "messages must be a list"),
        ({"vllm_xargs": 3}, "vllm_xargs must be an object"),
    ],
)
def test_what_would_be_lost_on_the_way_is_400(url: str, more: Any, says: str) -> None:
    body = {"model": "smol", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 2, "heedful": {}, **more}
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, headers=KEY)
    assert (answer.status_code, says in answer.text) == (400, True), answer.text


def test_a_prompt_that_vllm_renders_otherwise_is_400(client: openai.OpenAI) -> None:
    asked = '{"spans": [[2, 5]], "prompt_tokens": 32, "digest": 1}'
    with pytest.raises(openai.BadRequestError, match="renders the prompt into other tokens"):
        ask(client, "Hello.", extra_body={"vllm_xargs": {"heedful": asked}})


def test_bad_positions_are_400(client: openai.OpenAI) -> None:
    for asked, says in (
        ('{"spans": [[2, 900]], "prompt_tokens": 30}', "lies outside the prompt"),
        ('{"spans": [[90000, 90010]], "prompt_tokens": 100000}', "heedful.prompt_tokens is 100000, but the prompt has"),
    ):
        with pytest.raises(openai.BadRequestError, match=says):
            ask(client, "Hello.", extra_body={"vllm_xargs": {"heedful": asked}})
    assert ask(client, "Hello.", max_tokens=2)


def test_nobody_without_the_key_is_read(url: str) -> None:
    body = {"model": "smol", "messages": "<heed>", "heedful": 3}
    assert httpx.post(f"{url}/v1/chat/completions", json=body).status_code == 401


def test_a_body_without_end_is_413() -> None:
    """It is read no further than a prompt can be long."""
    sent: list[Any] = []

    async def endless() -> Any:
        return {"type": "http.request", "body": b"x" * (1 << 20), "more_body": True}

    async def keep(message: Any) -> None:
        sent.append(message)

    async def app(*_: Any) -> None:
        raise AssertionError

    state = SimpleNamespace(state=SimpleNamespace(args=SimpleNamespace(api_key=None)))
    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": [], "app": state}
    asyncio.run(Heed(app)(scope, endless, keep))
    assert sent[0]["status"] == 413


def test_static_steering_beside_vllms_prefix_caching(client: openai.OpenAI, lm: heedful.LM) -> None:
    method = parse_method("static:strength=2")
    wanted = lm.generate(PROMPT, method=method, max_new_tokens=NEW).text
    plain = PROMPT.replace("<heed>", "").replace("</heed>", "")
    assert wanted != ask(client, plain)
    for _ in range(2):
        assert ask(client, PROMPT, extra_body={"heedful": {"method": "static:strength=2"}}) == wanted
        assert ask(client, plain) == lm.generate(PROMPT, method=None, max_new_tokens=NEW).text


def test_stop_strings_and_logprobs(client: openai.OpenAI, lm: heedful.LM) -> None:
    whole = lm.generate(PROMPT, max_new_tokens=NEW).text
    stop = whole[len(whole) // 2 :][:4]
    assert ask(client, PROMPT, stop=[stop]) == whole[: whole.index(stop)]
    answer = client.chat.completions.create(
        model="smol",
        messages=[{"role": "user", "content": PROMPT}],
        temperature=0.0,
        max_tokens=NEW,
        logprobs=True,
        top_logprobs=2,
    )
    tokens = answer.choices[0].logprobs.content  # type: ignore[union-attr]
    assert "".join(one.token for one in tokens or ()) == answer.choices[0].message.content == whole
    first = [max(top.logprob for top in one.top_logprobs) for one in tokens or ()]
    ours = [one.logprob for one in tokens or ()]
    assert all(a <= b for a, b in zip(ours, first, strict=True))  # raw probabilities, steered choices
    assert ours != first


@pytest.mark.one_runner  # vLLM's kernel for V2 is beyond Triton's interpreter
@pytest.mark.parametrize("backend", ["json", "regex"])
def test_structured_outputs_bind_steered_tokens(client: openai.OpenAI, backend: str) -> None:
    schema = {"type": "object", "properties": {"sea": {"type": "string", "maxLength": 5}}, "required": ["sea"]}
    asked = {"json": {"json": schema}, "regex": {"regex": "[A-Z]{4,8}\\."}}[backend]
    field = {"threshold": 0.0}  # every token is a steered one
    text = ask(client, PROMPT, max_tokens=60, extra_body={"structured_outputs": asked, "heedful": field})
    if backend == "regex":
        assert re.fullmatch(r"[A-Z]{4,8}\.", text)
    else:
        assert isinstance(json.loads(text)["sea"], str)


def test_metrics_show_what_was_decided(client: openai.OpenAI, url: str) -> None:
    ask(client, PROMPT)
    text = httpx.get(f"{url}/metrics").text
    assert 'heedful_tokens_total{decision="skipped"}' in text
    assert "heedful_extra_forwards_total" in text


def test_offline_helper_counts_as_vllm_does(lm: heedful.LM) -> None:
    asked = sampling_params(lm.tokenizer, PROMPT, max_tokens=3).extra_args["heedful"]
    prompt = tokens_prompt(lm.tokenizer, PROMPT)["prompt_token_ids"]
    assert asked["prompt_tokens"] == len(prompt)
    assert "rank_at" not in asked
    later = sampling_params(lm.tokenizer, [{"role": "user", "content": PROMPT}, *TURNS], max_tokens=3)
    assert later.extra_args["heedful"]["rank_at"] == len(prompt)
    marked = lm.tokenizer.decode([prompt[at] for start, end, _ in asked["spans"] for at in range(start, end)])
    assert "Do not use any commas" in marked
    with pytest.raises(heedful.SpanError, match="nothing in the prompt is marked"):
        sampling_params(lm.tokenizer, "Hello.")
    with pytest.raises(heedful.OptionError, match="kernels take no bias"):
        sampling_params(lm.tokenizer, PROMPT, method=heedful.InstABoost())
