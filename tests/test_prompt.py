"""Prompts to tokens and marked positions, over small tokenizers that are trained here and templates of many habits."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

from heedful.errors import OptionError, PromptError, SpanError, TokenizerError
from heedful.prompt import EncodedPrompt, Instructions, encode
from heedful.spans import Span, TokenSpan

LINES = [
    "Plan a trip to Japan. Do not use any commas in your answer.",
    "You are a helpful assistant. Answer in French only, please.",
    "<|im_start|>user<|im_end|> assistant system the quick brown fox",
    "漢字かな交じり文 émigré naïve",
]


def turns(content: str) -> str:
    """A ChatML template whose messages show `content`."""
    return (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ "
        + content
        + " }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


CHATML = turns("message['content']")
STRIPPING = turns("message['content'] | trim")
LOWERING = turns("message['content'] | lower")
REPEATING = turns("message['content'] + '\\nAgain: ' + message['content']")
TRUNCATING = turns("message['content'][:20]")
FIRST_SENTENCE = turns("message['content'].split('.')[0]")
ESCAPING = turns("message['content'] | e")
AS_JSON = turns("message['content'] | tojson")
AS_DICT = turns("message")
BACKWARDS = turns("message['content'] | reverse")
MASKING = turns("message['content'] | replace('secret', '')")
WITHOUT_SYSTEM = CHATML.replace(" in messages %}", " in messages if message['role'] != 'system' %}")
REFUSING_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHATML
)
MERGING_SYSTEM = (
    "{% set first = messages[0]['content'] + '\\n\\n' if messages[0]['role'] == 'system' else '' %}"
    "{% for message in messages if message['role'] != 'system' %}"
    "<s>{{ message['role'] }}: {{ (first if loop.first else '') + message['content'] | trim }}"
    "{% endfor %}{% if add_generation_prompt %}<s>assistant: {% endif %}"
)
SYSTEM_AND_USER = [
    {"role": "system", "content": "Answer in French only."},
    {"role": "user", "content": "Plan a trip to Japan."},
]


def wrapped(tokenizer: Tokenizer, template: str | None = None) -> PreTrainedTokenizerFast:
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")
    made.chat_template = template
    return made


def byte_level(trim_offsets: bool = False) -> Tokenizer:
    """Byte-level BPE, as in GPT-2: a character outside the few lines becomes several tokens. Adds a <s>."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "<|im_start|>", "<|im_end|>"]
    tokenizer.train_from_iterator(
        LINES,
        trainers.BpeTrainer(vocab_size=330, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    start = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)])
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=trim_offsets), start])
    return tokenizer


def byte_fallback() -> Tokenizer:
    """BPE over words with a leading ▁ and bytes for what it does not know, as in Llama 2."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(LINES[:3], trainers.BpeTrainer(vocab_size=150, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    pieces = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256)), *model["vocab"]]
    vocab = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    merges = [tuple(pair) for pair in model["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.add_special_tokens(["<unk>", "<s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", vocab["<s>"])]
    )
    return tokenizer


def deaf_to_hashes() -> Tokenizer:
    """One token a word; `#` is removed before tokenisation."""
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace("#", "")
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


MAKERS: Mapping[str, Callable[[], Tokenizer]] = {
    "bytes": byte_level,
    "trimmed": lambda: byte_level(trim_offsets=True),
    "fallback": byte_fallback,
    "hashes": deaf_to_hashes,
}


@cache
def made(kind: str = "bytes", template: str | None = CHATML) -> PreTrainedTokenizerFast:
    return wrapped(MAKERS[kind](), template)


def passages(encoded: EncodedPrompt) -> list[str]:
    return [encoded.text[start:end] for start, end, _ in encoded.char_spans]


def covered(encoded: EncodedPrompt) -> str:
    """The characters of the marked tokens, each once, in order."""
    characters = {i for position in encoded.span.positions for i in range(*encoded.offsets[position])}
    return "".join(encoded.text[i] for i in sorted(characters))


def check(encoded: EncodedPrompt) -> None:
    """What holds for every prompt with marks: exactly the tokens that touch a marked character are marked."""
    marked = {i for start, end, _ in encoded.char_spans for i in range(start, end)}
    touching = [p for p, (start, end) in enumerate(encoded.offsets) if marked & set(range(start, end))]
    assert list(encoded.span.positions) == touching
    assert len(encoded.offsets) == len(encoded.token_ids)
    assert all(passage == passage.strip() != "" for passage in passages(encoded))
    assert list(encoded.char_spans) == sorted(set(encoded.char_spans))


# Text and tokens


def test_a_string_is_one_user_turn() -> None:
    encoded = encode(made(), "Plan a trip.")
    assert encoded.text == "<|im_start|>user\nPlan a trip.<|im_end|>\n<|im_start|>assistant\n"
    assert encoded == encode(made(), [{"role": "user", "content": "Plan a trip."}])


def test_nothing_marked_leaves_the_span_empty() -> None:
    encoded = encode(made(), "Plan a trip.")
    assert encoded.span == TokenSpan()
    assert encoded.offsets == encoded.char_spans == ()


@pytest.mark.parametrize("kind", ["bytes", "trimmed", "fallback"])
@pytest.mark.parametrize("template", [CHATML, STRIPPING, LOWERING, REPEATING, MERGING_SYSTEM])
@pytest.mark.parametrize("instructions", [None, "Japan", "user"])
def test_the_tokens_are_those_of_transformers(kind: str, template: str, instructions: Instructions) -> None:
    tokenizer = made(kind, template)
    expected = tokenizer.apply_chat_template(SYSTEM_AND_USER, add_generation_prompt=True)["input_ids"]
    assert list(encode(tokenizer, SYSTEM_AND_USER, instructions).token_ids) == expected


@pytest.mark.parametrize(("kind", "template", "raw"), [("bytes", CHATML, True), ("bytes", None, False)])
@pytest.mark.parametrize("prompt", ["Plan a trip.", " Plan <heed>a trip.</heed>\n"])
def test_plain_text_keeps_its_special_tokens(kind: str, template: str | None, raw: bool, prompt: str) -> None:
    tokenizer = made(kind, template)
    encoded = encode(tokenizer, prompt, raw=raw)
    clean = prompt.replace("<heed>", "").replace("</heed>", "")
    assert encoded.text == clean
    assert list(encoded.token_ids) == tokenizer(clean)["input_ids"]
    assert encoded.token_ids[0] == tokenizer.bos_token_id
    assert 0 not in encoded.span.positions


def test_a_last_message_of_the_assistant_is_continued() -> None:
    chat = [*SYSTEM_AND_USER, {"role": "assistant", "content": "Bien sûr, <heed>voici</heed> "}]
    encoded = encode(made(), chat)
    assert encoded.text.endswith("<|im_start|>assistant\nBien sûr, voici ")
    assert passages(encoded) == ["voici"]
    stripped = encode(made("bytes", STRIPPING), chat)
    assert stripped.text.endswith("Bien sûr, voici")
    assert passages(stripped) == ["voici"]


def test_an_assistant_message_in_the_middle_is_not_continued() -> None:
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    assert encode(made(), chat).text.endswith("c<|im_end|>\n<|im_start|>assistant\n")


def test_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "Plan <heed>a "}, {"type": "text", "text": "trip</heed>."}]
    assert encode(made(), [{"role": "user", "content": parts}]) == encode(made(), "Plan <heed>a trip</heed>.")


def test_other_fields_reach_the_template() -> None:
    template = CHATML.replace("message['role']", "message['name']")
    encoded = encode(made("bytes", template), [{"role": "user", "name": "Ada", "content": "Plan."}], "Plan.")
    assert encoded.text.startswith("<|im_start|>Ada\nPlan.")


def test_the_messages_are_left_as_they_are() -> None:
    chat = [{"role": "user", "content": "Plan <heed>a trip</heed>."}]
    encode(made(), chat)
    assert chat == [{"role": "user", "content": "Plan <heed>a trip</heed>."}]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ([], "empty"),
        ([{"role": "user", "content": " "}, {"role": "system", "content": ""}], "empty"),
        ([{"role": "user", "content": []}], "empty"),
        (None, "string or a list of messages, not NoneType"),
        (b"Plan", "not bytes"),
        ({"role": "user", "content": "Plan"}, "not dict"),
        (["Plan"], "message 0 is a str"),
        ([{"content": "Plan"}], "message 0 needs a role such as 'user', not None"),
        ([{"role": "", "content": "Plan"}], "needs a role"),
        ([{"role": 3, "content": "Plan"}], "needs a role"),
        ([{"role": "user", "content": "Plan"}, {"role": "user"}], "message 1 needs a content.*NoneType"),
        ([{"role": "user", "content": {"text": "a"}}], "needs a content"),
        ([{"role": "user", "content": [{"type": "image", "url": "x"}]}], "type 'image'"),
        ([{"role": "user", "content": [{"type": "image", "text": "x"}]}], "type 'image'"),
        ([{"role": "user", "content": [{"type": "text"}]}], "type 'text' without text"),
        ([{"role": "user", "content": ["Plan"]}], "type 'str'"),
        ("Plan \ud800", "surrogate pair at character 5"),
    ],
)
def test_a_prompt_that_cannot_be_used_is_refused(prompt: Any, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        encode(made(), prompt)


@pytest.mark.parametrize(("template", "raw"), [(None, False), (CHATML, True)])
def test_messages_need_a_template(template: str | None, raw: bool) -> None:
    with pytest.raises(PromptError, match="chat template"):
        encode(made("bytes", template), SYSTEM_AND_USER, raw=raw)


def test_a_prompt_without_tokens_is_refused() -> None:
    with pytest.raises(PromptError, match=r"no token.*'##'"):
        encode(made("hashes", None), "##")


def test_a_template_that_refuses_is_quoted_on_one_line() -> None:
    with pytest.raises(PromptError, match=r"refused the messages: System role not supported$"):
        encode(made("bytes", REFUSING_SYSTEM), SYSTEM_AND_USER, "system")
    broken = CHATML.replace("message['content']", "message['content'] + message['date']")
    with pytest.raises(PromptError, match="refused the messages") as caught:
        encode(made("bytes", broken), "Plan.")
    assert "\n" not in str(caught.value)


def test_a_continued_message_that_the_template_changes_is_refused_on_one_line() -> None:
    with pytest.raises(PromptError, match="refused the messages") as caught:
        encode(made("bytes", LOWERING), [{"role": "assistant", "content": "Of Course\n" * 50}])
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


# Instructions


@pytest.mark.parametrize("kind", ["bytes", "trimmed", "fallback"])
@pytest.mark.parametrize(
    ("prompt", "instructions", "marked"),
    [
        ("Plan it. <heed>Do not use any commas.</heed> Thanks", None, ["Do not use any commas."]),
        ("Plan it. Do not use any commas. Thanks", "Do not use any commas.", ["Do not use any commas."]),
        ("Plan it. Do not use any commas. Thanks", ["Do not", "commas"], ["Do not", "commas"]),
        ("Plan it. Do not use any commas. Thanks", [(9, 15), "commas"], ["Do not", "commas"]),
        ("Plan it. Do not use any commas. Thanks", (" Do not ", "commas"), ["Do not", "commas"]),
        ("Plan it. Do not use any commas. Thanks", [Span(8, 16)], ["Do not"]),
        ("Plan it. Do not use any commas. Thanks", "user", ["Plan it. Do not use any commas. Thanks"]),
        ("never, never, never", "never", ["never"] * 3),
        ("never, never, never", ["never", "never", (0, 5)], ["never"] * 3),
        ("<heed>Plan</heed> it. Thanks", "Thanks", ["Plan", "Thanks"]),
        ("Say user twice", ["user"], ["user"]),
        ("Écris « 漢字 👍🏽 » ici", "漢字 👍🏽", ["漢字 👍🏽"]),
        ("Écris <heed>👍🏽</heed>👍🏽", None, ["👍🏽"]),
        ("🏴\U000e0067\U000e007f漢<heed>字</heed>", None, ["字"]),
        ("\U000f0000\U000f0001 <heed>\U000f0002 a</heed>", None, ["\U000f0002 a"]),
    ],
)
def test_marked_passages(kind: str, prompt: str, instructions: Instructions, marked: list[str]) -> None:
    for encoded in (encode(made(kind), prompt, instructions), encode(made(kind), prompt, instructions, raw=True)):
        assert passages(encoded) == marked
        check(encoded)


def test_the_marked_tokens_read_as_the_instruction() -> None:
    encoded = encode(made(), "Plan it. Do not use 漢字 or 🦜, please.", "Do not use 漢字 or 🦜")
    assert covered(encoded) in ("Do not use 漢字 or 🦜", " Do not use 漢字 or 🦜")
    ids = [encoded.token_ids[position] for position in encoded.span.positions]
    assert made().decode(ids).strip() == "Do not use 漢字 or 🦜"


def test_every_byte_token_of_a_character_belongs() -> None:
    for kind in ("bytes", "fallback"):
        encoded = encode(made(kind), "a <heed>🦜</heed> b")
        place = encoded.text.index("🦜")
        assert sum(offset == (place, place + 1) for offset in encoded.offsets) == 4
        assert all(p in encoded.span.positions for p, o in enumerate(encoded.offsets) if o == (place, place + 1))


def test_substrings_are_marked_in_every_message() -> None:
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Be brief. Be brief."}]
    encoded = encode(made(), chat, "Be brief.")
    assert passages(encoded) == ["Be brief."] * 3


@pytest.mark.parametrize("role", ["system", "user", "assistant", "developer", "tool"])
def test_a_role_marks_its_messages_whole(role: str) -> None:
    chat = [
        {"role": role, "content": " One thing. "},
        {"role": "other", "content": "Not this."},
        {"role": role, "content": ""},
        {"role": role, "content": "Another."},
    ]
    assert passages(encode(made(), chat, role)) == ["One thing.", "Another."]


def test_a_role_and_tags_add_up() -> None:
    chat = [SYSTEM_AND_USER[0], {"role": "user", "content": "Plan a <heed>trip</heed>."}]
    assert passages(encode(made(), chat, "system")) == ["Answer in French only.", "trip"]


def test_tags_are_read_in_every_message() -> None:
    chat = [{"role": role, "content": f"a <heed>{role} b</heed> c"} for role in ("system", "user", "tool", "user")]
    encoded = encode(made(), chat)
    assert passages(encoded) == ["system b", "user b", "tool b", "user b"]
    assert "heed" not in encoded.text


def test_a_range_means_the_last_user_message_or_the_one_it_names() -> None:
    chat = [{"role": role, "content": f"{role}{i} text"} for i, role in enumerate(["user", "user", "tool"])]
    assert passages(encode(made(), chat, [(0, 5)])) == ["user1"]
    assert passages(encode(made(), chat, [Span(0, 5), Span(0, 5, message=0)])) == ["user0", "user1"]
    assert passages(encode(made(), chat, [Span(0, 5, message=2)])) == ["tool2"]
    assert passages(encode(made(), [{"role": "system", "content": "system text"}], [(0, 6)])) == ["system"]


def test_ranges_go_with_tags_in_another_message() -> None:
    chat = [{"role": "system", "content": "a <heed>b</heed>"}, {"role": "user", "content": "cde"}]
    assert passages(encode(made(), chat, [(0, 2)])) == ["b", "cd"]


def test_weights_reach_the_tokens() -> None:
    encoded = encode(made(), "<heed weight=0.5>Plan a trip</heed> to <heed weight=2>Japan</heed>.", ["."])
    weights = dict(zip(passages(encoded), (weight for *_, weight in encoded.char_spans), strict=True))
    assert weights == {"Plan a trip": 0.5, "Japan": 2.0, ".": 1.0}
    by_weight = {0.5: "", 1.0: "", 2.0: ""}
    for position, weight in zip(encoded.span.positions, encoded.span.weights, strict=True):
        by_weight[weight] += encoded.text[slice(*encoded.offsets[position])]
    assert by_weight == {0.5: "Plan a trip", 1.0: ".", 2.0: "Japan"}
    check(encoded)


def test_overlapping_spans_of_one_weight_are_a_union() -> None:
    prompt = "Plan a trip to Japan."
    encoded = encode(made(), prompt, [Span(0, 11, 2), Span(7, 20, 2.0), Span(7, 11, 2.0)])
    assert sorted(passages(encoded)) == ["Plan a trip", "trip", "trip to Japan"]
    assert set(encoded.span.weights) == {2.0}
    check(encoded)
    check(encode(made(), f"<heed>{prompt}</heed>", [prompt, "trip"]))


@pytest.mark.parametrize(
    ("prompt", "instructions", "message"),
    [
        ("<heed weight=0.5>Plan a trip</heed> to Japan.", ["trip"], "'trip'.*weight 0.5 and with weight 1;"),
        ("Plan a trip to Japan.", [Span(0, 11, 0.5), Span(7, 20, 2.0)], "'trip' .user message.*0.5 and with weight 2"),
        ("Plan a trip to Japan.", [Span(0, 20, 2.0), Span(2, 4), Span(7, 11, 2.0)], "weight 2 and with weight 1"),
        ("Plan a trip to Japan.", [Span(0, 4, 0.5), Span(0, 20, 0.5), Span(12, 14, 4)], "'to'.*weight 0.5 and"),
        ("Plan a trip.", [Span(0, 4, 0.5), Span(0, 4, 0.25)], "'Plan'.*weight 0.25 and with weight 0.5; give it one"),
    ],
)
def test_contradictory_weights_are_refused(prompt: str, instructions: Instructions, message: str) -> None:
    with pytest.raises(SpanError, match=message) as caught:
        encode(made(), prompt, instructions)
    assert "\n" not in str(caught.value)


def test_weights_that_touch_do_not_contradict() -> None:
    encoded = encode(made(), "<heed weight=0.5>Plan a</heed><heed weight=2> trip</heed>", None)
    assert sorted(set(encoded.span.weights)) == [0.5, 2.0]
    chat = [{"role": role, "content": "Plan a trip."} for role in ("user", "user")]
    encode(made(), chat, [Span(0, 4, 0.5, 0), Span(0, 4, 2.0, 1)])


def test_a_tag_keeps_its_weight_in_a_message_that_a_role_marks() -> None:
    chat = [{"role": "system", "content": "You are Bo. <heed weight=2>Be brief.</heed> <heed>Sing</heed> it."}]
    encoded = encode(made(), [*chat, {"role": "user", "content": "Hi"}], "system")
    marked = [(encoded.text[start:end], weight) for start, end, weight in encoded.char_spans]
    assert marked == [("You are Bo.", 1.0), ("Be brief.", 2.0), ("Sing", 1.0), ("Sing it.", 1.0)]


@pytest.mark.parametrize(
    ("prompt", "instructions", "message"),
    [
        (
            "Do not use any commas, please",
            "Do not use any comas",
            "not found: 'Do not use any comas'.*'Do not use any commas'",
        ),
        ("Plan it.", ["Plan", "it!"], "not found: 'it!'"),
        ("Plan it.", ["system"], "not found: 'system'.*instructions='system'"),
        ("Plan it.", "system", "no message has the role 'system'; the roles present are: user$"),
        (SYSTEM_AND_USER, "tool", "the roles present are: system, user$"),
        ([{"role": "system", "content": " "}, {"role": "user", "content": "a"}], "system", "'system' is blank"),
        ("Plan it.", [], "empty"),
        ("Plan <heed>it</heed>.", (), "empty"),
        ("Plan it.", "", "empty"),
        ("Plan it.", [""], "empty"),
        ("Plan it.", [" \n"], "empty"),
        ("Plan  it.", [(4, 6)], "only whitespace stands at 4:6 of message 0"),
        ("Plan it.", [(4, 9)], "range 4:9 is out of bounds: message 0 has 8 characters"),
        ("Plan it.", [(8, 9)], "range 8:9 is out of bounds"),
        ("Plan it.", [(-4, -1)], "before the text"),
        ("Plan it.", [(4, 4)], "empty span 4:4"),
        ("Plan it.", [Span(0, 1, message=1)], "message 1, but there are 1"),
        ("Plan it.", (0, 4), "a list is text, a .start, end. range or a Span, not 0"),
        ("Plan it.", [None], "not None"),
        ("Plan it.", [(0, 4, 0.5)], "a Span, not"),
        ("Plan it.", [("a", "b")], "two whole numbers"),
        ("Plan it.", Span(0, 4), "text, a role or a list, not Span"),
        ("Plan it.", {"Plan": 1}, "not dict"),
        ("Plan it.", b"Plan", "not bytes"),
        ("<heed>Plan</heed> it.", [(0, 4)], "message 0 has <heed> tags and a range 0:4; use one of them"),
        ("<heed>Plan it.", None, "never closed"),
        ("<heed>Plan</heed> it.", ["<heed>Plan</heed>"], "not found"),
        ([{"role": "system", "content": "a"}, {"role": "tool", "content": "b"}], [(0, 1)], "last user message"),
    ],
)
@pytest.mark.parametrize("template", [CHATML, STRIPPING])
def test_an_instruction_that_cannot_be_marked_is_refused(
    prompt: Any, instructions: Any, message: str, template: str
) -> None:
    with pytest.raises(SpanError, match=message) as caught:
        encode(made("bytes", template), prompt, instructions)
    assert "\n" not in str(caught.value)


def test_a_bad_weight_is_an_option_error() -> None:
    with pytest.raises(OptionError):
        encode(made(), "Plan it.", [Span(0, 1, -1.0)])


def test_a_span_without_tokens_is_refused() -> None:
    with pytest.raises(SpanError, match=r"no token.*'##'"):
        encode(made("hashes", None), "Plan ## it", "##")


# Templates


@pytest.mark.parametrize(
    ("template", "marked"),
    [
        (CHATML, ["Do NOT use Commas."]),
        (STRIPPING, ["Do NOT use Commas."]),
        (LOWERING, ["do not use commas."]),
        (REPEATING, ["Do NOT use Commas."] * 2),
        (ESCAPING, ["Do NOT use Commas."]),
        (AS_JSON, ["Do NOT use Commas."]),
        (MERGING_SYSTEM, ["Do NOT use Commas."]),
        (MASKING, ["Do NOT use Commas."]),
    ],
)
@pytest.mark.parametrize(
    "content", ["  a <secret> Do NOT use Commas. \n", "Do NOT use Commas.", "\n\tDo NOT use Commas.\n"]
)
def test_templates_that_keep_the_instruction(template: str, marked: list[str], content: str) -> None:
    chat = [{"role": "user", "content": content}]
    for instructions in ("Do NOT use Commas.", ["Do NOT use Commas."]):
        encoded = encode(made("bytes", template), chat, instructions)
        assert passages(encoded) == marked
        check(encoded)


def test_a_system_message_is_found_where_the_template_puts_it() -> None:
    encoded = encode(made("bytes", MERGING_SYSTEM), SYSTEM_AND_USER, "system")
    assert encoded.text.startswith("<s>user: Answer in French only.\n\nPlan")
    assert passages(encoded) == ["Answer in French only."]


def test_escaped_characters_belong_to_the_passage() -> None:
    encoded = encode(made("bytes", ESCAPING), "a <b> & c", "<b> &")
    assert passages(encoded) == ["&lt;b&gt; &amp;"]


def test_equal_text_elsewhere_is_not_marked() -> None:
    encoded = encode(made("bytes", CHATML), "user <heed>user</heed> user")
    start, _, _ = encoded.char_spans[0]
    assert encoded.text[:start] == "<|im_start|>user\nuser "


@pytest.mark.parametrize(
    ("template", "instructions", "message"),
    [
        (WITHOUT_SYSTEM, "system", r"dropped the marked instruction 'Answer in French only.' \(system message\)"),
        (TRUNCATING, "Answer", "shortens, escapes or rewrites"),
        (TRUNCATING, "Japan", "shortens|dropped"),
        (TRUNCATING, [Span(21, 22, message=0)], "dropped the marked instruction '.'"),
        (FIRST_SENTENCE, "only.", "dropped a part of the marked instruction 'only.'"),
        (AS_DICT, "Japan", "rewrites"),
        (BACKWARDS, "Japan", "broke the marked instruction apart: 'Japan'"),
        (turns("message['content'] | replace('French', '')"), "French", "emptied the marked instruction"),
        (turns("message['content'] | capitalize"), "Answer", "rewrites"),
    ],
)
def test_templates_that_lose_the_instruction(template: str, instructions: Instructions, message: str) -> None:
    with pytest.raises(SpanError, match=message):
        encode(made("bytes", template), SYSTEM_AND_USER, instructions)


def test_a_rewriting_template_is_shown_where_it_first_differs() -> None:
    chat = [{"role": "user", "content": "Keep this. The secret stays. Keep that."}]
    with pytest.raises(SpanError, match=r"at 'user Keep this\. The stays"):
        encode(made("bytes", MASKING), chat, [(15, 18)])


def test_a_template_may_lose_what_is_not_marked() -> None:
    encoded = encode(made("bytes", WITHOUT_SYSTEM), SYSTEM_AND_USER, "Japan")
    assert "French" not in encoded.text
    assert passages(encoded) == ["Japan"]


def test_more_passages_than_private_characters_are_refused() -> None:
    with pytest.raises(SpanError, match="70000 marked passages"):
        encode(made(), "ab" * 70_000, "a")


# Tokenizers


class Slow(PreTrainedTokenizer):  # type: ignore[misc]
    """One token a character, in Python: knows no offsets."""

    vocab_size = 128

    def get_vocab(self) -> dict[str, int]:
        return {chr(index): index for index in range(128)}

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        return list(text)

    def _convert_token_to_id(self, token: str) -> int:
        return ord(token)

    def _convert_id_to_token(self, index: int) -> str:
        return chr(index)


class Bare:
    """A tokenizer that says nothing about itself and refuses offsets."""

    def __call__(self, text: str, **options: Any) -> dict[str, Sequence[int]]:
        if options.get("return_offsets_mapping"):
            raise NotImplementedError
        return {"input_ids": [ord(char) for char in text]}


@pytest.mark.parametrize("tokenizer", [Slow(), Bare()], ids=["slow", "bare"])
def test_a_tokenizer_without_offsets_serves_plain_prompts_only(tokenizer: Any) -> None:
    assert encode(tokenizer, "Plan").token_ids == tuple(map(ord, "Plan"))
    with pytest.raises(TokenizerError, match=type(tokenizer).__name__):
        encode(tokenizer, "<heed>Plan</heed>")


# Properties

LETTERS = "ab A.,é漢👍\u200d🏽\n \U000f0000"
PROSE = st.text(LETTERS)
MARKED = st.text(LETTERS).filter(str.strip)


@settings(deadline=None)
@given(
    st.sampled_from(["bytes", "trimmed", "fallback"]),
    st.sampled_from([CHATML, STRIPPING, LOWERING, REPEATING, ESCAPING, None]),
    st.lists(st.tuples(PROSE, MARKED), min_size=1, max_size=3),
    PROSE,
)
def test_tagged_passages_and_only_they_are_marked(
    kind: str, template: str | None, pieces: list[tuple[str, str]], rest: str
) -> None:
    prompt = "".join(f"{before}<heed>{marked}</heed>" for before, marked in pieces) + rest
    encoded = encode(made(kind, template), prompt)
    wanted = [marked.strip() for _, marked in pieces] * (2 if template == REPEATING else 1)
    assert passages(encoded) == [text.lower() if template == LOWERING else text for text in wanted]
    check(encoded)


@settings(deadline=None)
@given(st.data(), st.sampled_from(["bytes", "fallback"]), st.sampled_from([CHATML, STRIPPING]), MARKED)
def test_ranges_tags_and_spans_agree(data: st.DataObject, kind: str, template: str, content: str) -> None:
    start = data.draw(st.integers(0, len(content) - 1))
    end = data.draw(st.integers(start + 1, len(content)))
    tokenizer = made(kind, template)
    if not content[start:end].strip():
        with pytest.raises(SpanError):
            encode(tokenizer, content, [(start, end)])
        return
    by_range = encode(tokenizer, content, [(start, end)])
    assert passages(by_range) == [content[start:end].strip()]
    assert by_range == encode(tokenizer, content, [Span(start, end, message=0)])
    assert by_range == encode(tokenizer, f"{content[:start]}<heed>{content[start:end]}</heed>{content[end:]}")
    check(by_range)


@settings(deadline=None)
@given(st.text("ab 漢"), st.text("ab 漢", min_size=1, max_size=3).filter(str.strip))
def test_a_substring_is_marked_wherever_it_stands(content: str, needle: str) -> None:
    if needle not in content:
        if content.strip():
            with pytest.raises(SpanError, match="not found"):
                encode(made(), content, [needle])
        return
    encoded = encode(made(), content, [needle])
    assert passages(encoded) == [needle.strip()] * content.count(needle)
    check(encoded)
