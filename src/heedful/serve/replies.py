"""Answers in OpenAI's words: whole, and in chunks. Plain dictionaries; `replies` builds, `routes` sends."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from heedful.detection import Detection
from heedful.recipe import Method
from heedful.serve.choice import Choice, Logprob, Piece, finish

Json = dict[str, Any]


@dataclass(frozen=True)
class Envelope:
    """What all parts of one answer have in common. `is_chat`: of `/v1/chat/completions`, else of `/v1/completions`.

    `num_choices`: of each prompt; those of one prompt stand together.
    """

    model: str
    is_chat: bool
    num_prompt_tokens: int
    num_choices: int
    method: Method | None
    wants_trace: bool
    detections: Sequence[Detection] = ()
    """What was found, of each prompt, where the instructions were to be found."""
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, choices: Sequence[Choice]) -> Json:
        """The answer at once."""
        reply = self._head("chat.completion" if self.is_chat else "text_completion")
        reply["choices"] = [self._choice(choice) for choice in choices]
        reply["usage"] = self.usage(choices)
        told = self._detected()
        if self.wants_trace:
            told |= {**self._trace_end(choices[0]), "steps": [asdict(step) for step in choices[0].steps]}
        return {**reply, "heedful": told} if told else reply

    def opening(self, index: int) -> Json:
        """A chat stream's first chunk of a choice."""
        return self._chunk([{"index": index, "delta": {"role": "assistant", "content": ""}, **_unfinished()}])

    def chunk(self, piece: Piece, choice: Choice) -> Json:
        """What one token adds."""
        entry: Json = {"index": piece.index, "logprobs": None, "finish_reason": finish(piece.finish_reason)}
        if piece.logprobs:
            entry["logprobs"] = self._logprobs(piece.logprobs)
        if self.is_chat:
            entry["delta"] = {"content": piece.text} if piece.text or piece.finish_reason is None else {}
        else:
            entry["text"] = piece.text
        reply = self._chunk([entry])
        told = {} if piece.finish_reason is None else self._detected()
        if self.wants_trace:
            told |= {"steps": [asdict(piece.step)]}
            if piece.finish_reason is not None:
                told |= self._trace_end(choice)
        return {**reply, "heedful": told} if told else reply

    def last(self, choices: Sequence[Choice]) -> Json:
        """A stream's chunk of token counts."""
        return {**self._chunk([]), "usage": self.usage(choices)}

    def usage(self, choices: Sequence[Choice]) -> Json:
        """Token counts; an EOS counts as generated. `cached_tokens`: prompt tokens that nobody had to read again."""
        generated = sum(len(choice.steps) for choice in choices)
        return {
            "prompt_tokens": self.num_prompt_tokens,
            "completion_tokens": generated,
            "total_tokens": self.num_prompt_tokens + generated,
            "prompt_tokens_details": {"cached_tokens": sum(c.num_reused for c in choices[:: self.num_choices])},
        }

    def _head(self, kind: str) -> Json:
        prefix = "chatcmpl" if self.is_chat else "cmpl"
        return {"id": f"{prefix}-{self.id}", "object": kind, "created": self.created, "model": self.model}

    def _chunk(self, choices: list[Json]) -> Json:
        return {**self._head("chat.completion.chunk" if self.is_chat else "text_completion"), "choices": choices}

    def _choice(self, choice: Choice) -> Json:
        entry: Json = {"index": choice.index, "logprobs": None, "finish_reason": finish(choice.finish_reason)}
        if choice.wants_logprobs:
            entry["logprobs"] = self._logprobs(choice.logprobs)
        if self.is_chat:
            entry["message"] = {"role": "assistant", "content": choice.text, "refusal": None}
        else:
            entry["text"] = choice.text
        return entry

    def _detected(self) -> Json:
        return {"detections": [found.to_dict() for found in self.detections]} if self.detections else {}

    def _trace_end(self, choice: Choice) -> Json:
        stats = asdict(choice.stats)
        method = {"name": "none"} if self.method is None else self.method.describe()
        return {"method": method, "stats": {"method": method["name"], **stats}, "ranking": list(choice.ranking)}

    def _logprobs(self, logprobs: Sequence[Logprob]) -> Json:
        if self.is_chat:
            entries = [
                {**_entry(one.text, one.value), "top_logprobs": [_entry(*other) for other in one.top]}
                for one in logprobs
            ]
            return {"content": entries, "refusal": None}
        return {
            "tokens": [one.text for one in logprobs],
            "token_logprobs": [one.value for one in logprobs],
            "top_logprobs": [_alternatives(one) for one in logprobs],
            "text_offset": [one.offset for one in logprobs],
        }


def _entry(text: str, value: float) -> Json:
    # A token that is a part of a character has no text of its own, and so no bytes that could be told.
    return {"token": text, "logprob": value, "bytes": None if "�" in text else list(text.encode())}


def _alternatives(one: Logprob) -> dict[str, float]:
    """The likeliest tokens and the chosen one; of two that are spelled alike, the likelier one is told."""
    found: dict[str, float] = {}
    for text, value in (*one.top, (one.text, one.value)):
        found.setdefault(text, value)
    return found


def _unfinished() -> Json:
    return {"logprobs": None, "finish_reason": None}
