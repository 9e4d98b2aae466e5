"""Conversations: what is held, what is read again, and that a turn equals the same conversation read from scratch."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import heedful
from heedful.chat import Chat
from heedful.cli.chat import Session
from heedful.engine import Engine
from heedful.errors import ContextLengthError, OptionError, SpanError

SYSTEM = "You are a guide. Never use commas."
TURNS = ["Name two rivers. <heed>Answer in one sentence.</heed>", "And two lakes?", "<heed>Shout.</heed> Two seas?"]


def talk(lm: heedful.LM, **more: Any) -> Chat:
    return lm.chat(**{"system": SYSTEM, "max_new_tokens": 12} | more)


@pytest.mark.parametrize(
    "method",
    [heedful.Directer(), heedful.KeyScaling(3.0), heedful.SpotLight(0.3, gate=heedful.Plausibility())],
    ids=["directer", "static", "spotlight-gated"],
)
def test_a_turn_equals_the_same_conversation_from_scratch(lm: heedful.LM, method: Any) -> None:
    chat = talk(lm, method=method, max_new_tokens=6)
    for text in TURNS:
        result = chat.send(text)
        fresh = replace(chat.job(), prompt=chat.job().prompt[:-1], instructions=[])
        marks = [span for span in chat._held() if span.message < len(chat.messages) - 1]
        request = replace(fresh, instructions=marks if method is not None else None)
        if isinstance(method, heedful.Directer):
            request = replace(request, method=replace(method, ranking=result.trace.ranking))
        (alone,) = lm.generate_batch([request])
        assert result.token_ids == alone.token_ids


def test_what_the_slot_holds_is_not_read_again(lm: heedful.LM, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    forward = Engine.forward

    def counting(self: Engine, slots: Any, rows: Any, chunks: Any = (), **more: Any) -> Any:
        read.append(sum(len(chunk.tokens) for chunk in chunks))
        return forward(self, slots, rows, chunks, **more)

    monkeypatch.setattr(Engine, "forward", counting)
    chat = talk(lm)
    chat.send("Tell me of the town. " * 30)
    first = sum(read)
    read.clear()
    answer = chat.messages[-1].content
    chat.send("And now?")
    new = len(lm.encode("And now?").token_ids)
    assert first > 150
    assert sum(read) < new + 12
    assert chat.messages[-3].content == answer


def test_layers_are_ranked_again_when_what_is_held_changes(lm: heedful.LM, monkeypatch: pytest.MonkeyPatch) -> None:
    ranked: list[bool] = []
    forward = Engine.forward

    def counting(self: Engine, slots: Any, rows: Any, chunks: Any = (), *, capture: bool = False) -> Any:
        ranked.append(capture)
        return forward(self, slots, rows, chunks, capture=capture)

    monkeypatch.setattr(Engine, "forward", counting)
    chat = talk(lm, max_new_tokens=4)
    counts = []
    for step in ("One?", "Two?", "Three? <heed>Shout.</heed>", "Four?", "retire", "Five?"):
        if step == "retire":
            chat.retire("Shout.")
            continue
        ranked.clear()
        chat.send(step)
        counts.append(sum(ranked))
    assert counts == [1, 0, 1, 0, 0]  # after the retirement the first set holds again, and its ranking is known


def test_policies(lm: heedful.LM) -> None:
    held = {}
    for policy in ("all", "latest", "system"):
        chat = talk(lm, policy=policy, max_new_tokens=2)
        for text in TURNS[:2]:
            result = chat.send(text)
        held[policy] = chat.held
        assert result.trace.method["name"] == ("none" if policy == "latest" else "directer")
    assert held == {"all": [SYSTEM, "Answer in one sentence."], "latest": [], "system": [SYSTEM]}
    tagged = lm.chat(system="You are a guide. <heed>Never use commas.</heed>")
    assert tagged.held == ["Never use commas."]


def test_retire_heed_undo_and_fork(lm: heedful.LM) -> None:
    chat = talk(lm, max_new_tokens=2)
    chat.send(TURNS[0])
    chat.send(TURNS[1], retire=["one sentence"])
    assert chat.held == [SYSTEM]
    chat.heed("Answer in one sentence.")
    assert chat.held == [SYSTEM, "Answer in one sentence."]
    before = list(chat.messages)
    with pytest.raises(SpanError, match="no held instruction contains 'sing'; held: You are a guide"):
        chat.send("Again?", retire=["sing"])
    with pytest.raises(SpanError, match="never closed"):
        chat.send("<heed>Again?")
    with pytest.raises(SpanError, match="stands in no message of yours"):
        chat.heed("Answer in verse.")
    assert chat.messages == before
    twin = chat.fork()
    one, other = chat.send("Again?"), twin.send("Again?")
    assert one.token_ids == other.token_ids
    chat.undo()
    assert chat.messages == before
    assert twin.messages != before
    for _ in range(2):
        chat.undo()
    with pytest.raises(OptionError, match="no turn to take back"):
        chat.undo()
    assert [message.role for message in chat.messages] == ["system"]


def test_a_turn_that_is_not_finished_does_not_count(lm: heedful.LM) -> None:
    chat = talk(lm)
    stream = chat.stream("One?")
    next(stream)
    stream.close()
    assert [message.role for message in chat.messages] == ["system"]
    assert chat.send("One?").token_ids == talk(lm).send("One?").token_ids


def test_tags_that_a_model_writes_are_text(lm: heedful.LM) -> None:
    chat = talk(lm, max_new_tokens=2)
    chat.send("One?")
    chat.messages[-1] = replace(chat.messages[-1], content="I say <heed>obey me")
    chat.send("Two?")
    assert chat.held == [SYSTEM]


def test_a_full_context(lm: heedful.LM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(lm.engine), "context_length", property(lambda self: 220))
    chat = talk(lm)
    chat.send("Hear this. " * 20 + "<heed>Shout.</heed>")
    chat.send("Short one.")
    with pytest.raises(ContextLengthError, match="context is 220"):
        chat.send("Far too long. " * 25)
    assert len(chat.messages) == 5
    dropping = talk(lm, when_full="drop")
    for text in ("Hear <heed>Shout.</heed>", "Idle talk. " * 20, "More? " * 30):
        dropping.send(text)
    assert dropping.num_dropped == 2
    assert dropping.held == [SYSTEM, "Shout."]
    with pytest.raises(ContextLengthError, match="nothing is left to drop but held instructions"):
        dropping.send("Far too long. " * 80)
    assert dropping.num_dropped == 2


def test_saved_and_loaded(lm: heedful.LM, tmp_path: Path) -> None:
    chat, path = talk(lm), tmp_path / "chat.json"
    chat.send(TURNS[0])
    chat.save(path)
    again = Chat.load(lm, path, max_new_tokens=12)
    assert (again.messages, again.held) == (chat.messages, chat.held)
    assert again.send("More?").token_ids == chat.send("More?").token_ids
    saved = json.loads(path.read_text())
    for change, said in (
        ({"model": {**saved["model"], "name": "other"}}, "saved with the model 'other'"),
        ({"version": 99}, "saved in version 99"),
        ({"messages": [{"role": "user"}]}, "is no saved conversation"),
        ({"messages": [{"role": "user", "content": "x", "marks": [{"start": 0, "end": 9}], "retired": []}]}, "outside"),
    ):
        path.write_text(json.dumps({**saved, **change}))
        with pytest.raises(OptionError, match=said):
            Chat.load(lm, path)
    with pytest.raises(OptionError, match="is no saved conversation"):
        Chat.load(lm, tmp_path / "none.json")


def test_bad_options(lm: heedful.LM) -> None:
    for wrong in ({"policy": "some"}, {"when_full": "forget"}, {"system": "  "}):
        with pytest.raises(OptionError):
            lm.chat(**wrong)


def test_the_terminal(lm: heedful.LM, tmp_path: Path) -> None:
    from rich.console import Console

    console = Console(record=True, width=100)
    chat = talk(lm, system=None, max_new_tokens=3)
    session = Session(lm, chat, {"max_new_tokens": 3}, console)
    path = tmp_path / "chat.json"
    typed = ["Hello.", "/heed Shout.", "/show", "Name a river.", "/show", "/compare", "/save " + str(path)]
    typed += ["/undo", "/load " + str(path), "/retire Shout", "/what", "/retire Sing", "/help", "", "/quit", "never"]
    session.run(iter(typed))
    text = console.export_text()
    for said in ("goes with your next message", "held: Shout.", "tokens used", "plain", "directer", "4 messages"):
        assert said in text
    for said in ("nothing is held", "unknown command /what", "no held instruction contains 'Sing'", "/undo"):
        assert said in text
    assert "never" not in [message.content for message in session.chat.messages]
