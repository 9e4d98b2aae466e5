"""Lets vLLM's own OpenAI server read `<heed>` tags and the `heedful` field: `--middleware heedful.vllm.http.Heed`.

A request that has neither passes through untouched. Others are rewritten into what vLLM understands: messages without
tags, and token positions in `vllm_xargs`, with a digest of the tokens that they count in. vLLM renders the chat
template itself; where it comes to other tokens the request is refused as it is admitted.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pydantic import ValidationError

from heedful.errors import HeedfulError, OptionError, PromptError, UnsupportedModelError
from heedful.prompt import EncodedPrompt, Instructions, Messages, encode, turns
from heedful.serve.marking import Default, mark
from heedful.serve.problems import Problem, RequestError, problem_of
from heedful.serve.schemas import Heedful
from heedful.vllm.arguments import NAME
from heedful.vllm.prompts import extra_args, is_stored

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
UNREAD = ("/tokenize", "/detokenize")  # where tags are text like any other; all other paths may generate
DEFAULT = Default.of("directer")
LARGEST = 32 << 20  # bytes of a body
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
        # vLLM lets its middlewares run before it asks for the key: who has none gets its answer, and is not read.
        if scope["type"] != "http" or scope["method"] != "POST" or path in UNREAD or not _has_key(scope):
            await self.app(scope, receive, send)
            return
        try:
            body = await self._rewritten(scope, path, await _read(receive))
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
        if path not in (CHAT, TEXT):
            if NAME in data or _is_tagged(data):
                raise OptionError(f"{path} cannot be steered; send tags and the heedful field to {CHAT} or {TEXT}")
            return body
        field = data.pop(NAME, None)
        asked = None if field is None else Heedful.model_validate(field)
        if asked is not None and asked.trace:
            raise OptionError("heedful.trace is not told by vLLM; leave it out")
        rewrite = self._chat if path == CHAT else self._text
        is_rewritten = await rewrite(scope, data, asked)
        by_hand = data.get("vllm_xargs")
        if data.get("use_beam_search") and isinstance(by_hand, dict) and NAME in by_hand:
            raise OptionError("use_beam_search cannot be combined with heeding: vLLM's beams are not steered")
        return json.dumps(data).encode() if is_rewritten or field is not None else body

    async def _chat(self, scope: Scope, data: dict[str, Any], asked: Heedful | None) -> bool:
        """Rewrites a chat request in place; False where nothing is heeded."""
        messages: Any = data.get("messages")
        if asked is None and not _is_tagged(messages):
            return False
        if not isinstance(messages, list) or not messages or not all(isinstance(one, dict) for one in messages):
            raise PromptError("messages must be a list of objects with role and content, at least one")
        template = _template_options(data)
        clean = [
            {**message, "content": content} for message, (_, content) in zip(messages, turns(messages), strict=True)
        ]
        if clean[-1]["role"] == "assistant":
            data.setdefault("continue_final_message", True)
            data.setdefault("add_generation_prompt", False)
        await self._marked(scope, data, messages, asked, template)
        data["messages"] = clean
        return True

    async def _text(self, scope: Scope, data: dict[str, Any], asked: Heedful | None) -> bool:
        """Rewrites a request of plain text in place; False where nothing is heeded."""
        prompt = data.get("prompt")
        if asked is None and not _is_tagged(prompt):
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
        if is_stored(marked.method):  # its keys are no one else's
            data["cache_salt"] = f"{data.get('cache_salt') or ''}{secrets.token_hex(16)}"
        prompt: EncodedPrompt = marked.prompt
        return prompt

    def _mark(self, scope: Scope, messages: Messages, asked: Heedful | None, template: Mapping[str, Any]) -> Any:
        if self._tokenizer is None:
            self._tokenizer = _tokenizer(scope["app"].state)
        return mark(_Encoder(self._tokenizer, template), messages, asked, DEFAULT, "")


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
            try:
                await _prove(scope["app"].state.engine_client)
            except Exception as error:
                message = {"type": "lifespan.startup.failed", "message": f"Heedful: {error}"}
        await send(message)

    return sending


async def _prove(client: Any) -> None:
    """Raises where a steered request is refused, or nobody reads what requests ask for: tags would be dropped."""
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError

    async def reason(given: Any) -> str | None:
        # Only a request that is ended for not being steered can come to token 0.
        ended: Any = {"stop_token_ids": [0], "logit_bias": {0: -100.0}}
        params = SamplingParams(max_tokens=1, temperature=0.0, extra_args={NAME: given}, **ended)
        async for output in client.generate({"prompt_token_ids": [1, 1, 1]}, params, f"heedful-{len(given)}"):
            found: str | None = output.outputs[0].finish_reason
        return found

    if await reason({"spans": [[1, 2]], "prompt_tokens": 3}) == "stop":
        raise UnsupportedModelError("this model cannot be steered; the engine's log says why")
    try:
        await reason("")
    except VLLMValidationError:
        return
    raise UnsupportedModelError("vLLM has not loaded Heedful's logits processor, so nothing would be steered")


def _has_key(scope: Scope) -> bool:
    """Whether vLLM itself would let the request in, by its own rule."""
    from starlette.datastructures import Headers
    from vllm import envs
    from vllm.entrypoints.serve.middleware.authenticate import GUARDED_PREFIX, AuthenticationMiddleware

    path = scope["path"].removeprefix(scope.get("root_path", ""))
    args = getattr(scope["app"].state, "args", None)
    keys = [key for key in (getattr(args, "api_key", None) or [envs.VLLM_API_KEY]) if key]
    if not keys or not path.startswith(GUARDED_PREFIX):
        return True
    return AuthenticationMiddleware(None, keys).verify_token(Headers(scope=scope))


def _is_tagged(value: Any) -> bool:
    return "<heed" in json.dumps(value, ensure_ascii=False).lower()


async def _read(receive: Receive) -> bytes:
    """The body. Raises `RequestError` (413) where it is larger than a prompt can be."""
    parts, size = [], 0
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > LARGEST:
            raise RequestError(413, f"the body is larger than {LARGEST >> 20} MiB", code="too_large")
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


def _invalid(error: ValidationError) -> Problem:
    first = error.errors()[0]
    where = ".".join((NAME, *(str(part) for part in first["loc"] if isinstance(part, (str, int)))))
    return Problem(400, f"{where}: {first['msg']}", code="bad_value", param=where)
