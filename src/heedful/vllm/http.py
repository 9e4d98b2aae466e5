"""Lets vLLM's own OpenAI server read `<heed>` tags and the `heedful` field: `--middleware heedful.vllm.http.Heed`.

A request that has neither passes through untouched. Others are rewritten into what vLLM understands: messages without
tags, and token positions in `vllm_xargs`. vLLM renders the chat template itself, so its own `/tokenize` is asked
whether it reads the very tokens that were counted; if not, the request is refused.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pydantic import ValidationError

from heedful.errors import HeedfulError, OptionError, PromptError, SpanError
from heedful.prompt import EncodedPrompt, Instructions, Messages, encode, turns
from heedful.serve.marking import Default, mark
from heedful.serve.problems import Problem, problem_of
from heedful.serve.schemas import Heedful
from heedful.vllm.arguments import NAME
from heedful.vllm.prompts import extra_args

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
OTHERS = ("/v1/responses", "/v1/messages", "/v1/chat/completions/batch")  # that generate too
DEFAULT = Default.of("directer")
# What of a chat request decides how vLLM renders it.
RENDERED_BY = (
    "model",
    "add_generation_prompt",
    "continue_final_message",
    "add_special_tokens",
    "chat_template_kwargs",
    "tools",
)
RESERVED = ("add_generation_prompt", "chat_template", "continue_final_message", "messages", "tokenize")


class Heed:
    """The middleware, which vLLM builds with the app that it stands before."""

    def __init__(self, app: App) -> None:
        self.app = app
        self._tokenizer: Any = None
        self._encoding = ThreadPoolExecutor(1)  # tokenizers are not to be used by two threads at a time

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, _after_a_first_token(scope, send))
            return
        path = scope.get("path", "").removeprefix(scope.get("root_path", ""))
        if scope["type"] != "http" or scope["method"] != "POST" or path not in (CHAT, TEXT, *OTHERS):
            await self.app(scope, receive, send)
            return
        body = await _read(receive)
        try:
            body = await self._rewritten(scope, path, body)
        except HeedfulError as error:
            await problem_of(error).response()(scope, receive, send)
            return
        except ValidationError as error:
            await _invalid(error).response()(scope, receive, send)
            return
        scope["headers"] = _sized(scope["headers"], len(body))
        await self.app(scope, _replay(body, receive), send)

    async def _rewritten(self, scope: Scope, path: str, body: bytes) -> bytes:
        """The body for vLLM: as it came where nothing in it speaks of heeding, or where vLLM would refuse it anyway."""
        if b"heed" not in body.lower() and b"\\u" not in body:
            return body
        try:
            data = json.loads(body)
        except (ValueError, RecursionError):
            return body
        if not isinstance(data, dict):
            return body
        if path in OTHERS:
            if NAME in data or "<heed" in json.dumps(data, ensure_ascii=False).lower():
                raise OptionError(f"{path} cannot be steered; send tags and the heedful field to {CHAT} or {TEXT}")
            return body
        field = data.pop(NAME, None)
        asked = None if field is None else Heedful.model_validate(field)
        if asked is not None and asked.trace:
            raise OptionError("heedful.trace is not told by vLLM; leave it out")
        rewrite = self._chat if path == CHAT else self._text
        is_rewritten = await rewrite(scope, data, asked)
        return json.dumps(data).encode() if is_rewritten or field is not None else body

    async def _chat(self, scope: Scope, data: dict[str, Any], asked: Heedful | None) -> bool:
        """Rewrites a chat request in place; False where nothing is heeded."""
        messages: Any = data.get("messages")
        if asked is None and "<heed" not in json.dumps(messages).lower():
            return False
        template = _template_options(data)
        clean = [
            {**message, "content": content}
            for message, (_, content) in zip(messages or [], turns(messages), strict=True)
        ]
        if clean[-1]["role"] == "assistant":
            data.setdefault("continue_final_message", True)
            data.setdefault("add_generation_prompt", False)
        encoded = await self._marked(scope, data, messages, asked, template)
        data["messages"] = clean
        if encoded is not None:
            await self._compare(scope, data, encoded)
        return True

    async def _text(self, scope: Scope, data: dict[str, Any], asked: Heedful | None) -> bool:
        """Rewrites a request of plain text in place; False where nothing is heeded."""
        prompt = data.get("prompt")
        if asked is None and "<heed" not in json.dumps(prompt).lower():
            return False
        if isinstance(prompt, list) and len(prompt) == 1:
            prompt = prompt[0]
        if not isinstance(prompt, str):
            raise PromptError(
                "prompt must be one text where something of it is heeded; send several as several requests"
            )
        encoded = await self._marked(scope, data, prompt, asked, {})
        data["prompt"] = list(encoded.token_ids) if encoded is not None else prompt
        return encoded is not None or asked is not None

    async def _marked(
        self, scope: Scope, data: dict[str, Any], messages: Messages, asked: Heedful | None, template: Mapping[str, Any]
    ) -> EncodedPrompt | None:
        """Says in `data` what is heeded; None where nothing is."""
        loop = asyncio.get_running_loop()
        marked = await loop.run_in_executor(self._encoding, self._mark, scope, messages, asked, template)
        if marked.method is None:
            return None
        if not isinstance(data.get("vllm_xargs") or {}, dict):
            raise OptionError("vllm_xargs must be an object")
        spelled = extra_args(marked.prompt, marked.method)[NAME]
        data["vllm_xargs"] = {**(data.get("vllm_xargs") or {}), NAME: json.dumps(spelled)}
        prompt: EncodedPrompt = marked.prompt
        return prompt

    def _mark(self, scope: Scope, messages: Messages, asked: Heedful | None, template: Mapping[str, Any]) -> Any:
        if self._tokenizer is None:
            self._tokenizer = _tokenizer(scope["app"].state)
        return mark(_Encoder(self._tokenizer, template), messages, asked, DEFAULT, "")

    async def _compare(self, scope: Scope, data: dict[str, Any], encoded: EncodedPrompt) -> None:
        """Raises `SpanError` where vLLM reads other tokens than were counted."""
        body = {key: data[key] for key in RENDERED_BY if data.get(key) is not None}
        status, found = await _ask(
            self.app, scope, scope.get("root_path", "") + "/tokenize", {**body, "messages": data["messages"]}
        )
        # Another status is vLLM's own refusal (of the key, the model's name, a field): it will say so by itself.
        if status == 200 and found.get("tokens") != list(encoded.token_ids):
            raise SpanError(
                "vLLM renders these messages into other tokens than their chat template gives alone, so what is marked "
                "cannot be located; send text parts, tools and template options only as the template takes them"
            )


class _Encoder:
    """A tokenizer with a request's own options of the template."""

    def __init__(self, tokenizer: Any, template: Mapping[str, Any]) -> None:
        self._tokenizer, self._template = tokenizer, dict(template)
        self.is_fast = getattr(tokenizer, "is_fast", True)
        self.chat_template = tokenizer.chat_template

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._tokenizer(*args, **kwargs)

    def apply_chat_template(self, messages: Any, **kwargs: Any) -> Any:
        """As the tokenizer's."""
        return self._tokenizer.apply_chat_template(messages, **{**kwargs, **self._template})

    def encode(self, prompt: Messages, instructions: Instructions = None, *, raw: bool = False) -> EncodedPrompt:
        """As `LM.encode`."""
        return encode(self, prompt, instructions, raw=raw)


def _template_options(data: Mapping[str, Any]) -> dict[str, Any]:
    """Raises `OptionError` for what would change how a prompt is built beyond what its template foresees."""
    if data.get("chat_template") is not None:
        raise OptionError("chat_template cannot be combined with heeding; start vLLM with --chat-template")
    options = data.get("chat_template_kwargs") or {}
    if not isinstance(options, dict) or any(key in options for key in RESERVED):
        raise OptionError(f"chat_template_kwargs must be an object without {', '.join(RESERVED)}")
    return options


def _tokenizer(state: Any) -> Any:
    """vLLM's tokenizer, loaded once more for this module alone, with the server's chat template."""
    from transformers import AutoTokenizer
    from vllm.renderers.chat_utils import load_chat_template

    config = state.vllm_config.model_config
    tokenizer = AutoTokenizer.from_pretrained(
        config.tokenizer, revision=config.tokenizer_revision, trust_remote_code=config.trust_remote_code
    )
    tokenizer.chat_template = load_chat_template(state.args.chat_template) or tokenizer.chat_template
    return tokenizer


def _after_a_first_token(scope: Scope, send: Send) -> Send:
    """Says that the server is up once the engine has made a token, and so has checked that steering steers."""

    async def sending(message: Message) -> None:
        if message["type"] == "lifespan.startup.complete":
            from vllm import SamplingParams

            client = scope["app"].state.engine_client
            async for _ in client.generate({"prompt_token_ids": [0]}, SamplingParams(max_tokens=1), "heedful-check"):
                pass
        await send(message)

    return sending


async def _read(receive: Receive) -> bytes:
    parts = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    """`body` at once, then whatever else comes, such as word that the client has gone."""
    is_given = False

    async def receiving() -> Message:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receiving


def _sized(headers: Any, length: int) -> list[tuple[bytes, bytes]]:
    kept = [(name, value) for name, value in headers if name.lower() not in (b"content-length", b"transfer-encoding")]
    return [*kept, (b"content-length", str(length).encode())]


async def _ask(app: App, scope: Scope, path: str, body: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    """Status and JSON of an answer of the app itself, asked with the headers of the request at hand."""
    sent = json.dumps(body).encode()
    inner = {**scope, "path": path, "raw_path": path.encode(), "query_string": b"", "state": {}}
    inner["headers"] = _sized(scope["headers"], len(sent))
    status, parts = 500, []

    async def no_more() -> Message:
        await asyncio.Event().wait()  # a word that the client has gone would end the answer
        raise AssertionError

    async def keep(message: Message) -> None:
        nonlocal status
        status = message.get("status", status)
        parts.append(message.get("body", b""))

    await app(inner, _replay(sent, no_more), keep)
    return status, json.loads(b"".join(parts)) if status == 200 else {}


def _invalid(error: ValidationError) -> Problem:
    first = error.errors()[0]
    where = ".".join((NAME, *(str(part) for part in first["loc"] if isinstance(part, (str, int)))))
    return Problem(400, f"{where}: {first['msg']}", code="bad_value", param=where)
