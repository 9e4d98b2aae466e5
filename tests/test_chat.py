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
from heedful.bench import chat as bench
from heedful.chat import Chat, Message
from heedful.cli import options
from heedful.cli.chat import Session, command
from heedful.engine import Engine
from heedful.errors import ContextLengthError, NumericError, OptionError, SpanError
from heedful.eval import drift
from heedful.spans import parse_tags

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


def counted(monkeypatch: pytest.MonkeyPatch) -> tuple[list[int], list[bool]]:
    """How many tokens each forward reads, and whether it ranks."""
    read: list[int] = []
    ranked: list[bool] = []
    forward = Engine.forward

    def counting(self: Engine, slots: Any, rows: Any, chunks: Any = (), *, capture: bool = False) -> Any:
        result = forward(self, slots, rows, chunks, capture=capture)
        read.append(sum(len(chunk.tokens) for chunk in chunks))
        ranked.append(capture)
        return result

    monkeypatch.setattr(Engine, "forward", counting)
    return read, ranked


LONG = "Tell me of the town. " * 30


@pytest.mark.parametrize("how", ["closed", "interrupted", "not finite"])
def test_what_was_read_stays_read_when_an_answer_ends_early(
    how: str, tiny: heedful.LM, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = talk(tiny, max_new_tokens=6)
    chat.send(LONG)
    if how == "closed":
        stream = chat.stream("And now?")
        next(stream)
        stream.close()
    elif how == "interrupted":
        monkeypatch.setattr(Engine, "_run", raising(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            chat.send("And now?")
    else:
        monkeypatch.setattr("heedful.decode._is_finite", lambda _: False)
        with pytest.raises(NumericError):
            chat.send("And now?")
    monkeypatch.undo()
    read, ranked = counted(monkeypatch)
    answer = chat.send("And now?")
    assert sum(read) < len(tiny.encode("And now?").token_ids) + 12
    assert not any(ranked)
    fresh = talk(tiny, max_new_tokens=6)
    fresh.send(LONG)
    assert fresh.send("And now?").token_ids == answer.token_ids


def raising(error: BaseException) -> Any:
    """A method that does nothing but raise."""

    def fail(*_: Any, **__: Any) -> None:
        raise error

    return fail


def test_a_prefill_that_is_interrupted_holds_nothing_of_it(tiny: heedful.LM, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was to be stored, and was not, is not taken for read."""
    chat = talk(tiny, max_new_tokens=6)
    monkeypatch.setattr(Engine, "_run", raising(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        chat.send(LONG)
    monkeypatch.undo()
    read, _ = counted(monkeypatch)
    assert chat.send(LONG).token_ids == talk(tiny, max_new_tokens=6).send(LONG).token_ids
    assert read[0] > 150


@pytest.mark.parametrize("method", [heedful.Directer(), heedful.KeyScaling(3.0, level=1)], ids=str)
def test_a_conversation_is_what_is_generated_from_its_messages(tiny: heedful.LM, method: Any) -> None:
    """Layers keep the order that they had as the marks came to be, however the turns are asked for."""
    chat = talk(tiny, max_new_tokens=12, method=method)
    for text in (LONG, "And of hills?", "<heed>Name no rivers.</heed> And of woods?", "And of lakes?"):
        said, job = chat.send(text), chat._turns[-1].job
        assert job is not None
        (alone,) = tiny.generate_batch([job])
        assert (said.token_ids, said.trace.ranking) == (alone.token_ids, alone.trace.ranking)
        assert (said.stats.ranking_seconds > 0) == (text == LONG or "<heed>" in text)
        assert alone.stats.ranking_seconds > 0


def test_a_ranking_is_kept_as_soon_as_it_is_known(tiny: heedful.LM, monkeypatch: pytest.MonkeyPatch) -> None:
    _, ranked = counted(monkeypatch)
    chat = talk(tiny)
    stream = chat.stream("One?")
    next(stream)
    assert len(chat._rankings) == 1
    stream.close()
    assert sum(ranked) == 1
    chat.send("Two?")
    assert sum(ranked) == 1


def test_a_fork_reads_nothing_again(tiny: heedful.LM, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = talk(tiny, max_new_tokens=6)
    chat.send(LONG)
    twin = chat.fork().fork()  # of one that has read nothing itself
    late = chat.fork()
    given = chat.send("And now?")
    stream = chat.stream("And then?")
    next(stream)
    read, ranked = counted(monkeypatch)
    for one in (twin, late):
        read.clear()
        assert one.send("And now?").token_ids == given.token_ids
        assert sum(read) < len(tiny.encode("And now?").token_ids) + 12
    assert not any(ranked)
    *_, last = stream
    assert last.result is not None
    fresh = talk(tiny, max_new_tokens=6)
    for text in (LONG, "And now?"):
        fresh.send(text)
    assert fresh.send("And then?").token_ids == last.result.token_ids
    assert twin.send("And then?").token_ids == last.result.token_ids


def test_an_instruction_some_thousand_tokens_back(tiny: heedful.LM, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `heedful eval far` measures in the default model: the system message of 6,000 tokens in a context of 8k."""
    monkeypatch.setattr(type(tiny.engine), "context_length", property(lambda self: 8192))
    system, *said = next(iter(drift.far_rows()))["prompt"]
    chat = talk(tiny, system=system["content"], max_new_tokens=6, when_full="drop")
    chat.messages += [Message(one["role"], one["content"]) for one in said[:-1]]
    first = chat.send(said[-1]["content"])
    assert 6000 < first.stats.prompt_tokens < 8192 - 256
    assert first.stats.gated > 0
    read, ranked = counted(monkeypatch)
    second = chat.send("And in winter?")
    assert sum(read) < 40
    assert not any(ranked)
    job = replace(chat._turns[-1].job, method=heedful.Directer(ranking=first.trace.ranking))
    encoded = tiny.encode(job.prompt, job.instructions, tags=False)
    assert [encoded.text[start:end] for start, end, _ in encoded.char_spans] == [system["content"]]
    assert max(encoded.span.positions) < 40
    (alone,) = tiny.generate_batch([job])
    assert alone.token_ids == second.token_ids
    chat.send("Tell me of the town. " * 450)
    assert chat.num_dropped > 0
    assert chat.held == [system["content"]]


def test_both_sides_of_the_bench_do_the_same(tiny: heedful.LM, monkeypatch: pytest.MonkeyPatch) -> None:
    read, ranked = counted(monkeypatch)
    made: list[int] = []
    grown = Chat._decoder_for

    def noted(self: Chat, answering: Any) -> Any:
        before = self._decoder
        decoder = grown(self, answering)
        made.append(decoder is not before)
        return decoder

    monkeypatch.setattr(Chat, "_decoder_for", noted)
    kept, fresh = bench._conversation(tiny, bench.Settings(num_tokens=1), 3)
    assert (len(kept), len(fresh)) == (3, 3)
    assert sum(ranked) == 2  # both at the first turn, none later
    assert not any(made[::2])  # what is read anew has its storage before the clock starts
    prompts = [count for count in read if count]
    assert prompts[0] == prompts[1]
    assert prompts[2] > prompts[3]
    assert prompts[4] > prompts[2] + 10


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
            result = chat.send(parse_tags(text)[0] if policy == "system" else text)
        held[policy] = chat.held
        assert result.trace.method["name"] == ("none" if policy == "latest" else "directer")
    assert held == {"all": [SYSTEM, "Answer in one sentence."], "latest": [], "system": [SYSTEM]}
    latest = talk(tiny, policy="latest", max_new_tokens=2)
    assert latest.send(TURNS[0]).trace.method["name"] == "directer"
    assert latest.held == []  # of the next answer
    assert latest.again()[1].trace.method["name"] == "directer"
    tagged = tiny.chat(system="You are a guide. <heed>Never use commas.</heed>")
    assert tagged.held == ["Never use commas."]


def test_a_mark_that_the_policy_does_not_hold_is_refused(tiny: heedful.LM) -> None:
    chat = talk(tiny, policy="system", max_new_tokens=2)
    before = list(chat.messages)
    with pytest.raises(SpanError, match=r"'system' heeds the system message alone.*marks 'Shout.': leave the tags out"):
        chat.send(TURNS[2])
    assert chat.messages == before
    chat.send("Two seas? Shout.")
    assert chat.heed("Shout.") is False
    assert chat.heed("Never use commas.") is True
    assert chat.held == [SYSTEM, "Never use commas."]
    plain = talk(tiny, policy="system", method=None, max_new_tokens=2)
    plain.send(TURNS[2])  # plain is what was asked for


def test_weights_that_the_chat_marks_never_contradict(tiny: heedful.LM) -> None:
    chat = talk(tiny, system=None, max_new_tokens=2)
    chat.send("<heed weight=0.5>Shout loudly.</heed> Two seas?")

    def held() -> list[tuple[str, float]]:
        return sorted((mark.text, mark.weight) for mark in chat._held(chat.messages))

    assert chat.heed("loudly") is True  # it is held already
    assert held() == [("Shout loudly.", 0.5)]
    chat.heed("loudly. Two seas?")
    assert held() == [("Shout loudly.", 0.5), ("Two seas?", 1.0)]
    chat.send("Go on.")
    chat.retire("Shout")
    assert chat.heed("loudly") is True
    chat.heed("Shout loudly.")  # back, as it was marked, around what holds by now
    assert held() == [("Shout", 0.5), ("Two seas?", 1.0), ("loudly", 1.0)]
    chat.send("Go on.")
    chat.retire("loudly")
    chat.retire("Shout")
    chat.heed("Shout loudly.")
    assert held() == [("Shout loudly.", 0.5), ("Two seas?", 1.0)]
    chat.send("Go on.")


def test_an_instruction_that_was_edited_out_is_named(tiny: heedful.LM, tmp_path: Path) -> None:
    chat, path = tiny.chat(max_new_tokens=2), tmp_path / "chat.json"
    chat.send("Be so kind: <heed>Never use commas.</heed> Two seas?")
    chat.save(path)
    given, edited = chat.messages[0], "Be so kind: tell me of rivers and lakes. Two seas?"
    chat.messages[0] = replace(given, content=edited)
    before = list(chat.messages)
    for asked in (lambda: chat.send("More?"), chat.again, chat.job):
        with pytest.raises(SpanError, match=r"'Never use commas.' no longer stands .* message 0 \(user\)") as caught:
            asked()
        assert "\n" not in str(caught.value)
    assert chat.messages == before
    assert chat.held == ["Never use commas."]
    chat.retire("Never use commas.")
    chat.send("More?")
    chat.undo()
    chat.messages[0] = replace(given, content="Now: Never use commas. Two seas?")
    assert chat.heed("Never use commas.") is True
    with pytest.raises(SpanError, match="no longer stands"):
        chat.send("More?")  # what was marked first is still elsewhere
    saved = json.loads(path.read_text())
    assert saved["messages"][0]["marks"][0]["text"] == "Never use commas."
    saved["messages"][0]["content"] = edited
    path.write_text(json.dumps(saved))
    with pytest.raises(OptionError, match=r"'Never use commas.' no longer stands where it was marked in message 0"):
        Chat.load(tiny, path)


def test_a_file_of_the_version_before_knows_no_texts(tiny: heedful.LM, tmp_path: Path) -> None:
    chat, path = talk(tiny, max_new_tokens=2), tmp_path / "chat.json"
    chat.send(TURNS[0])
    chat.retire("sentence")
    chat.save(path)
    saved = json.loads(path.read_text())
    for message in saved["messages"]:
        for mark in (*message["marks"], *message["retired"]):
            del mark["text"]
    path.write_text(json.dumps({**saved, "version": 2}))
    assert Chat.load(tiny, path).messages == chat.messages


def test_compared_is_what_was_heeded_then(tiny: heedful.LM) -> None:
    chat = talk(tiny, max_new_tokens=8)
    given = chat.send("One? Be brief.")
    chat.retire("commas")
    chat.heed("Be brief.")
    assert chat.again()[1].token_ids == given.token_ids
    plain = talk(tiny, policy="latest", max_new_tokens=2)
    plain.send("One? Be brief.")
    plain.policy = "all"
    with pytest.raises(OptionError, match="nothing was held in the latest turn"):
        plain.again()


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
    assert lines == ["marked, but not held: the policy is 'system'", "held"]
    assert "error: the policy 'system' heeds the system message alone" in text
    weighted = talk(tiny, system="<heed weight=0.5>Never use commas.</heed>")
    assert said(tiny, ["/heed use commas"], weighted).strip() == "held"


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


@pytest.mark.parametrize("name", ["save", "load"])
def test_a_user_that_is_not_there_ends_no_conversation(name: str, tiny: heedful.LM) -> None:
    chat = talk(tiny, system=None, max_new_tokens=2)
    text = said(tiny, ["Hello.", f"/{name} ~nosuchuser/f", "Go on."], chat)
    assert "error: ~nosuchuser/f names no file" in text
    assert [message.content for message in chat.messages[::2]] == ["Hello.", "Go on."]


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
