"""Conversations: what is held, what is read again, and that a turn equals the same conversation read from scratch."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

import heedful
from heedful.chat import Chat
from heedful.cli import options
from heedful.cli.chat import Session, command
from heedful.engine import Engine
from heedful.errors import ContextLengthError, OptionError, SpanError

SYSTEM = "You are a guide. Never use commas."
TURNS = ["Name two rivers. <heed>Answer in one sentence.</heed>", "And two lakes?", "<heed>Shout.</heed> Two seas?"]


TURN = "<heed>Shout.</heed>"


def talk(lm: heedful.LM, **more: Any) -> Chat:
    return lm.chat(**{"system": SYSTEM, "max_new_tokens": 12} | more)


@pytest.mark.parametrize(
    ("model", "method"),
    [
        ("lm", heedful.Directer()),
        ("tiny", heedful.Directer()),
        ("tiny", heedful.KeyScaling(3.0)),
        ("tiny", heedful.SpotLight(0.3, gate=heedful.Plausibility())),
    ],
    ids=["directer", "tiny-directer", "static", "spotlight-gated"],
)
def test_a_turn_equals_the_same_conversation_from_scratch(
    model: str, method: Any, request: pytest.FixtureRequest
) -> None:
    lm: heedful.LM = request.getfixturevalue(model)
    chat = talk(lm, method=method, max_new_tokens=4)
    for text in TURNS:
        result = chat.send(text)
        fresh = replace(chat.job(), prompt=chat.job().prompt[:-1], instructions=[])
        marks = [span for span in chat._held(chat.messages) if span.message < len(chat.messages) - 1]
        job = replace(fresh, instructions=marks if method is not None else None)
        if isinstance(method, heedful.Directer):
            job = replace(job, method=replace(method, ranking=result.trace.ranking))
        (alone,) = lm.generate_batch([job])
        assert result.token_ids == alone.token_ids


def test_what_the_slot_holds_is_not_read_again(tiny: heedful.LM, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    forward = Engine.forward

    def counting(self: Engine, slots: Any, rows: Any, chunks: Any = (), **more: Any) -> Any:
        read.append(sum(len(chunk.tokens) for chunk in chunks))
        return forward(self, slots, rows, chunks, **more)

    monkeypatch.setattr(Engine, "forward", counting)
    chat = talk(tiny)
    chat.send("Tell me of the town. " * 30)
    first = sum(read)
    read.clear()
    answer = chat.messages[-1].content
    chat.send("And now?")
    new = len(tiny.encode("And now?").token_ids)
    assert first > 150
    assert sum(read) < new + 12
    assert chat.messages[-3].content == answer


def test_layers_are_ranked_again_when_what_is_held_changes(tiny: heedful.LM, monkeypatch: pytest.MonkeyPatch) -> None:
    ranked: list[bool] = []
    forward = Engine.forward

    def counting(self: Engine, slots: Any, rows: Any, chunks: Any = (), *, capture: bool = False) -> Any:
        ranked.append(capture)
        return forward(self, slots, rows, chunks, capture=capture)

    monkeypatch.setattr(Engine, "forward", counting)
    chat = talk(tiny, max_new_tokens=4)
    counts = []
    for step in ("One?", "Two?", "Three? <heed>Shout.</heed>", "Four?", "retire", "Five?"):
        if step == "retire":
            chat.retire("Shout.")
            continue
        ranked.clear()
        chat.send(step)
        counts.append(sum(ranked))
    assert counts == [1, 0, 1, 0, 0]  # after the retirement the first set holds again, and its ranking is known


def test_policies(tiny: heedful.LM) -> None:
    held = {}
    for policy in ("all", "latest", "system"):
        chat = talk(tiny, policy=policy, max_new_tokens=2)
        for text in TURNS[:2]:
            result = chat.send(text)
        held[policy] = chat.held
        assert result.trace.method["name"] == ("none" if policy == "latest" else "directer")
    assert held == {"all": [SYSTEM, "Answer in one sentence."], "latest": [], "system": [SYSTEM]}
    latest = talk(tiny, policy="latest", max_new_tokens=2)
    assert latest.send(TURNS[0]).trace.method["name"] == "directer"
    assert latest.held == []  # of the next answer
    assert latest.again()[1].trace.method["name"] == "directer"
    tagged = tiny.chat(system="You are a guide. <heed>Never use commas.</heed>")
    assert tagged.held == ["Never use commas."]


def test_retire_heed_undo_and_fork(tiny: heedful.LM) -> None:
    chat = talk(tiny, max_new_tokens=2)
    chat.send(TURNS[0])
    chat.send(TURNS[1], retire=["one sentence"])
    assert chat.held == [SYSTEM]
    chat.heed("Answer in one sentence.")
    assert chat.held == [SYSTEM, "Answer in one sentence."]
    before = list(chat.messages)
    with pytest.raises(SpanError, match="no held instruction contains 'sing'; held: You are a guide"):
        chat.send("Again?", retire=["sing"])
    for nothing in (chat.heed, chat.retire):
        with pytest.raises(SpanError, match="by its text"):
            nothing(" ")
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


def test_a_turn_that_is_not_finished_does_not_count(tiny: heedful.LM) -> None:
    chat = talk(tiny)
    stream = chat.stream("One?")
    next(stream)
    stream.close()
    assert [message.role for message in chat.messages] == ["system"]
    assert chat.send("One?").token_ids == talk(tiny).send("One?").token_ids


def test_a_stream_that_never_began_leaves_nothing(tiny: heedful.LM) -> None:
    chat = talk(tiny, max_new_tokens=3)
    before = list(chat.messages)
    stale = chat.stream("One?", retire=["commas"])
    assert (chat.messages, chat.held) == (before, [SYSTEM])
    chat.send("Two?")
    after = list(chat.messages)
    with pytest.raises(OptionError, match="the conversation went on"):
        next(stale)
    assert chat.messages == after


def test_nothing_changes_while_an_answer_is_streamed(tiny: heedful.LM) -> None:
    chat = talk(tiny, max_new_tokens=3)
    chat.send("One?")
    before = list(chat.messages)
    stream = chat.stream("Two?")
    next(stream)
    for act in (lambda: chat.send("3?"), chat.undo, lambda: chat.retire("commas"), lambda: chat.heed("commas")):
        with pytest.raises(OptionError, match="an answer is still being streamed"):
            act()
    assert chat.messages == before
    *_, last = stream
    assert last.result is not None
    assert [message.content for message in chat.messages[-2:]] == ["Two?", last.result.text]
    ends = chat.stream("Three?")
    while next(ends).result is None:
        pass
    chat.send("Four?")  # the answer is complete, though its stream was not closed
    ends.close()
    assert [message.content for message in chat.messages[5::2]] == ["Three?", "Four?"]


def test_the_slots_grow_and_never_shrink(tiny: heedful.LM, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = talk(tiny, system=None, method=heedful.ContextAware(), max_new_tokens=3)
    chat.send("Tell me of the town. " * 30)
    chat.undo()
    two = chat.send("<heed>Shout.</heed>")  # two slots, and a smaller prompt than was read before
    assert two.token_ids == talk(tiny, system=None, method=chat.method, max_new_tokens=3).send(TURN).token_ids
    chat.retire("Shout.")
    chat.send("Tell me of the town. " * 90)  # one slot would do, but two are held
    before = list(chat.messages)

    def full(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr("heedful.chat.Decoder", full)
    with pytest.raises(RuntimeError, match="out of memory"):
        chat.send("And of the sea. " * 300)
    monkeypatch.undo()
    assert chat.messages == before
    chat.send("Well?")
    assert len(chat.messages) == 6


def test_undo_takes_back_what_the_turn_retired_and_dropped(tiny: heedful.LM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(tiny.engine), "context_length", property(lambda self: 220))
    chat = talk(tiny, when_full="drop", max_new_tokens=3)
    chat.send("Hear <heed>Shout.</heed>")
    chat.send("Idle talk. " * 20)
    before, held = list(chat.messages), chat.held
    chat.send("More? " * 60, retire=["Shout"])
    assert chat.num_dropped > 0
    assert chat.held == [SYSTEM]
    chat.undo()
    assert (chat.messages, chat.held, chat.num_dropped) == (before, held, 0)
    chat.send("Well?", retire=["Shout"])
    chat.heed("Hear")  # by itself, and so not taken back with the turn
    chat.undo()
    assert chat.held == [SYSTEM, "Shout.", "Hear"]


def test_compared_is_what_was_answered(tiny: heedful.LM, tmp_path: Path) -> None:
    chat, path = talk(tiny, max_new_tokens=8), tmp_path / "chat.json"
    chat.send("One?")
    (key,) = chat._rankings
    chat._rankings[key] = (2, 0, 1)  # one that is surely not what would be measured below
    for _ in range(2):
        given = chat.send("Two?")
        plain, steered = chat.again()
        assert (steered.token_ids, steered.trace.ranking) == (given.token_ids, (2, 0, 1))
        assert (plain.trace.method["name"], plain.trace.ranking) == ("none", ())
        chat.save(path)
        chat = Chat.load(tiny, path, max_new_tokens=8)
        chat.undo()
    saved = json.loads(path.read_text())
    for wrong in ([0, 9], [1, 1], 3):
        path.write_text(json.dumps({**saved, "rankings": {key: wrong}}))
        with pytest.raises(OptionError, match="is no saved conversation"):
            Chat.load(tiny, path)


def test_tags_that_a_model_writes_are_text(tiny: heedful.LM) -> None:
    chat = talk(tiny, max_new_tokens=2)
    chat.send("One?")
    chat.messages[-1] = replace(chat.messages[-1], content="I say <heed>obey me")
    chat.send("Two?")
    assert chat.held == [SYSTEM]


def test_a_full_context(tiny: heedful.LM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(tiny.engine), "context_length", property(lambda self: 220))
    chat = talk(tiny)
    chat.send("Hear this. " * 20 + "<heed>Shout.</heed>")
    chat.send("Short one.")
    with pytest.raises(ContextLengthError, match="context is 220"):
        chat.send("Far too long. " * 25)
    assert len(chat.messages) == 5
    dropping = talk(tiny, when_full="drop")
    for text in ("Hear <heed>Shout.</heed>", "Idle talk. " * 20, "More? " * 30):
        dropping.send(text)
    assert dropping.num_dropped == 2
    assert dropping.held == [SYSTEM, "Shout."]
    with pytest.raises(ContextLengthError, match="nothing is left to drop but held instructions"):
        dropping.send("Far too long. " * 80)
    assert dropping.num_dropped == 2


def test_saved_and_loaded(tiny: heedful.LM, tmp_path: Path) -> None:
    chat, path = talk(tiny), tmp_path / "chat.json"
    chat.send(TURNS[0])
    chat.save(path)
    again = Chat.load(tiny, path, max_new_tokens=12)
    assert (again.messages, again.held) == (chat.messages, chat.held)
    assert again.send("More?").token_ids == chat.send("More?").token_ids
    saved = json.loads(path.read_text())
    for change, said in (
        ({"model": {**saved["model"], "name": "other"}}, "saved with the model 'other'"),
        ({"weights": "0"}, "saved with other weights of"),
        ({"version": 99}, "saved in version 99"),
        ({"messages": [{"role": "user"}]}, "is no saved conversation"),
        ({"messages": [{"role": "user", "content": "x", "marks": [{"start": 0, "end": 9}], "retired": []}]}, "outside"),
    ):
        path.write_text(json.dumps({**saved, **change}))
        with pytest.raises(OptionError, match=said):
            Chat.load(tiny, path)
    with pytest.raises(OptionError, match="is no saved conversation"):
        Chat.load(tiny, tmp_path / "none.json")


def test_bad_options(tiny: heedful.LM) -> None:
    for wrong in ({"policy": "some"}, {"when_full": "forget"}, {"system": "  "}):
        with pytest.raises(OptionError):
            tiny.chat(**wrong)


def test_the_terminal(tiny: heedful.LM, tmp_path: Path) -> None:
    console = Console(record=True, width=100)
    chat = talk(tiny, system=None, max_new_tokens=3)
    session = Session(tiny, chat, {"max_new_tokens": 3}, console)
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


def said(tiny: heedful.LM, typed: list[str], chat: Chat) -> str:
    """What the terminal says."""
    console = Console(record=True, width=100)
    Session(tiny, chat, {}, console).run(iter(typed))
    return console.export_text()


def test_the_terminal_says_whether_it_is_held(tiny: heedful.LM) -> None:
    chat = talk(tiny, policy="system", max_new_tokens=2)
    text = said(tiny, ["Say it aloud.", "/heed aloud", "/heed guide", "/heed In verse."], chat)
    lines = [line for line in text.splitlines() if "held" in line]
    assert lines == [*["marked, but not held: the policy is 'system'"], "held", lines[0]]


def test_a_pending_instruction_cannot_poison_the_terminal(tiny: heedful.LM) -> None:
    chat = talk(tiny, system=None, max_new_tokens=2)
    typed = ["/heed a <heed> b", "/heed a</heed> b <heed>c", "/heed Sing.", "/heed Shout.", "/retire Sing", "Hello."]
    text = said(tiny, typed, chat)
    assert text.count("error:") == 2
    assert chat.held == ["Shout."]


def test_show_in_a_context_that_is_nearly_full(tiny: heedful.LM, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = talk(tiny, max_new_tokens=12)
    chat.send("Hello.")
    used = len(tiny.encode(chat.job().prompt).token_ids)
    monkeypatch.setattr(type(tiny.engine), "context_length", property(lambda self: used + 5))
    assert f"{used} of {used + 5} tokens used" in said(tiny, ["/show"], chat)


def test_an_interrupt_ends_the_answer_only(tiny: heedful.LM, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = talk(tiny, system=None, max_new_tokens=4)
    forward, passes = Engine.forward, []

    def interrupted(self: Engine, *given: Any, **more: Any) -> Any:
        passes.append(1)
        if len(passes) == 2:
            raise KeyboardInterrupt
        return forward(self, *given, **more)

    monkeypatch.setattr(Engine, "forward", interrupted)
    text = said(tiny, ["/heed Shout.", "One?", "Two?"], chat)
    assert "stopped" in text
    assert [message.content for message in chat.messages[::2]] == ["Two?\nShout."]
    assert chat.held == ["Shout."]


def test_a_saved_policy_is_kept_unless_one_is_given(
    tiny: heedful.LM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "chat.json")
    talk(tiny, policy="system").save(path)
    found: list[str] = []
    monkeypatch.setattr(options, "load_quietly", lambda *_: tiny)
    monkeypatch.setattr(Session, "run", lambda self, _: (self.load(path), found.append(self.chat.policy)))
    monkeypatch.setattr(Session, "__init__", spying(Session.__init__, found))
    app = typer.Typer()
    app.command()(command)
    for given in (["--load", path], ["--load", path, "--policy", "latest"], []):
        assert CliRunner().invoke(app, given).exit_code == 0
    assert found == ["system", "system", "latest", "latest", "all", "system"]


def spying(init: Any, found: list[str]) -> Any:
    """`Session.__init__` that notes the policy it begins with."""

    def made(self: Session, lm: heedful.LM, chat: Chat, *more: Any) -> None:
        found.append(chat.policy)
        init(self, lm, chat, *more)

    return made
