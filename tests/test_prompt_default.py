"""Marks through the real tokenizer and several chat templates."""

from typing import Any

import pytest

import heedful
from heedful.prompt import encode

TEXT = "Tell me a story. Do not use any commas."
MARK = "Do not use any commas."
CHATML = (
    "{% for m in messages %}<{{ m['role'] }}>{{ CONTENT }}</s>{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)


def steered(lm: heedful.LM, prompt: Any, instructions: Any = None) -> str:
    encoded = encode(lm.tokenizer, prompt, instructions)
    first, last = encoded.span.positions[0], encoded.span.positions[-1]
    assert len(encoded.span.positions) == last - first + 1
    return encoded.text[encoded.offsets[first][0] : encoded.offsets[last][1]]


def test_all_ways_to_mark_agree(lm: heedful.LM) -> None:
    start = TEXT.index(MARK)
    ways = [
        (TEXT.replace(MARK, f"<heed>{MARK}</heed>"), None),
        (TEXT, [MARK]),
        (TEXT, MARK),
        (TEXT, [(start, len(TEXT))]),
        (TEXT, [heedful.Span(start, len(TEXT))]),
    ]
    spans = {encode(lm.tokenizer, prompt, marks).span for prompt, marks in ways}
    assert len(spans) == 1
    assert all(steered(lm, prompt, marks).strip() == MARK for prompt, marks in ways)
    plain = encode(lm.tokenizer, TEXT)
    assert all(encode(lm.tokenizer, prompt, marks).token_ids == plain.token_ids for prompt, marks in ways)


def test_a_role(lm: heedful.LM) -> None:
    messages = [{"role": "system", "content": "Answer in French. 🥖"}, {"role": "user", "content": "Hello"}]
    assert steered(lm, messages, "system").strip() == "Answer in French. 🥖"


@pytest.mark.parametrize(
    ("content", "marked"),
    [("m['content'] | trim", MARK), ("m['content'] | lower", MARK.lower()), ("m['content'] | upper", MARK.upper())],
)
def test_templates_that_rewrite(lm: heedful.LM, content: str, marked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lm.tokenizer, "chat_template", CHATML.replace("CONTENT", content))
    assert steered(lm, f"  {TEXT.replace(MARK, f'<heed>{MARK}  </heed>')}").strip() == marked


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("'hidden'", heedful.SpanError),
        ("m['content'][:20]", heedful.SpanError),
        ("raise_exception('no such role')", heedful.PromptError),
    ],
)
def test_templates_that_lose_it(
    lm: heedful.LM, content: str, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lm.tokenizer, "chat_template", CHATML.replace("CONTENT", content))
    with pytest.raises(error) as caught:
        encode(lm.tokenizer, TEXT, [MARK])
    assert "\n" not in str(caught.value)


def test_layers_are_ranked_where_the_marks_came_to_be(lm: heedful.LM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first answer to the last of them, whatever was said since."""
    chat = [
        {"role": "system", "content": "Be kind. <heed>Use no commas.</heed>"},
        {"role": "user", "content": "Tell of the sea."},
        {"role": "assistant", "content": "It is wide."},
        {"role": "user", "content": "And hills?"},
        {"role": "assistant", "content": "They are high."},
        {"role": "user", "content": "And rivers?"},
    ]
    turns = [lm.encode(chat[:count]) for count in (2, 4, 6)]
    assert [turn.span.rank_at for turn in turns] == [None, *[len(turns[0].token_ids)] * 2]
    assert [lm.encode(chat, "And hills?").span.rank_at, lm.encode(chat, "rivers").span.rank_at] == [
        len(turns[1].token_ids),
        None,
    ]
    assert lm.encode(chat[:3]).span.rank_at == len(turns[0].token_ids)  # an answer that is to be gone on with
    assert lm.encode([chat[0], *chat[2:4]]).span.rank_at is None  # a greeting: no answer to anybody yet
    greeted = [chat[0], *chat[2:5]]
    assert lm.encode([*greeted, chat[5]]).span.rank_at == len(lm.encode(greeted[:3]).token_ids)
    assert lm.encode(chat, [chat[2]["content"]]).span.rank_at == len(turns[1].token_ids)
    twice = [*chat[:3], {"role": "assistant", "content": "Very wide."}, *chat[3:]]
    assert lm.encode(twice, [chat[2]["content"]]).span.rank_at is None  # two answers one after the other


@pytest.mark.parametrize("opening", ["\n\nIt is wide.", "It is wide."])
@pytest.mark.parametrize("thinking", ["", "<think>\n"])
def test_what_is_written_otherwise_once_it_is_answered_does_not_count(
    lm: heedful.LM, opening: str, thinking: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tokenizer merges an answer's first characters with what stood before; a template may drop what it thought."""
    prompt, template = "<|im_start|>assistant\n", lm.tokenizer.chat_template
    assert template.count(prompt) == 1
    monkeypatch.setattr(lm.tokenizer, "chat_template", template.replace(prompt, prompt + thinking))
    chat = [{"role": "user", "content": "Tell of the sea. <heed>Use no commas.</heed>"}]
    first = lm.encode(chat)
    found = set()
    for _ in range(3):
        chat += [{"role": "assistant", "content": opening}, {"role": "user", "content": "And hills?"}]
        found.add(lm.encode(chat).span.rank_at)
        shared = found.copy().pop()
        assert shared is not None
        assert lm.encode(chat).token_ids[:shared] == first.token_ids[:shared]
    assert len(found) == 1
    assert (shared == len(first.token_ids)) == (opening[0] != "\n" and not thinking)
    assert shared > first.span.positions[-1] + 1


def test_a_template_that_writes_the_marks_otherwise_later(lm: heedful.LM, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = [{"role": "user", "content": "Use no commas."}, {"role": "assistant", "content": "So be it."}]
    chat += [{"role": "user", "content": "Tell of the sea."}]
    count = "<turns {{ messages | length }}>"
    monkeypatch.setattr(lm.tokenizer, "chat_template", count + lm.tokenizer.chat_template)
    assert lm.encode(chat, "Use no commas.").span.rank_at is None


def test_weights_and_several_ranges(lm: heedful.LM) -> None:
    encoded = encode(lm.tokenizer, "<heed weight=0.5>Be brief.</heed> Tell a story. <heed weight='2'>No commas.</heed>")
    assert set(encoded.span.weights) == {0.5, 2.0}
    assert [w for _, _, w in encoded.char_spans] == [0.5, 2.0]


def test_a_tokenizer_without_offsets(lm: heedful.LM, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow:
        is_fast = False
        chat_template = None

        def __call__(self, text: str, **more: Any) -> dict[str, Any]:
            if more.get("return_offsets_mapping"):
                raise NotImplementedError
            return {"input_ids": [1, 2, 3]}

    with pytest.raises(heedful.TokenizerError):
        encode(Slow(), TEXT, [MARK])
    assert encode(Slow(), TEXT).token_ids == (1, 2, 3)
