"""Spans, tags, substrings and the tokens they cover; the template's part is in `test_prompt`."""

import time
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from heedful.errors import OptionError, SpanError
from heedful.spans import Span, TokenSpan, excerpt, find_substring, nearest, outside, parse_tags, tokens_in

LETTERS = "ab \n.é漢👍\u200d🏽>/\"'="
WEIGHTS = st.floats(0, 1e6) | st.integers(0, 9)


# Span


def test_span_defaults() -> None:
    assert Span(2, 5) == Span(2, 5, 1.0, None)


@pytest.mark.parametrize(("start", "end"), [(0, 0), (3, 3), (4, 2), (-1, 2), (-3, -1), (0.0, 1), ("0", 1), (False, 2)])
def test_span_refuses_what_is_no_range(start: object, end: object) -> None:
    with pytest.raises(SpanError):
        Span(start, end)  # type: ignore[arg-type]


def test_empty_span_is_named() -> None:
    with pytest.raises(SpanError, match="empty span 3:3"):
        Span(3, 3)


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf"), "1", None, True, 10**400, 1.1e6])
def test_span_refuses_a_weight_that_is_none(weight: object) -> None:
    with pytest.raises(OptionError):
        Span(0, 1, weight)  # type: ignore[arg-type]


@pytest.mark.parametrize("weight", [0, 0.0, 3, 1e6])
def test_span_takes_any_finite_weight(weight: float) -> None:
    assert Span(0, 1, weight).weight == weight


@pytest.mark.parametrize("message", [-1, 1.0, "0", True])
def test_span_refuses_a_message_that_is_no_index(message: object) -> None:
    with pytest.raises(SpanError, match="index"):
        Span(0, 1, 1.0, message)  # type: ignore[arg-type]


def test_spans_are_frozen() -> None:
    with pytest.raises(AttributeError):
        Span(0, 1).end = 4  # type: ignore[misc]


# TokenSpan


def test_an_empty_token_span_is_false() -> None:
    assert not TokenSpan()
    assert TokenSpan((3,), (1.0,))
    assert len(TokenSpan((3, 5), (1.0, 0.0))) == 2


def test_layers_are_ranked_behind_the_tokens_of_a_span() -> None:
    span = TokenSpan((3, 5), (1.0, 0.5), rank_at=9)
    assert span.moved((4, 8), (1.0, 1.0)) == TokenSpan((4, 8), (1.0, 1.0), 9)
    assert span.moved((4, 9), (1.0, 1.0)).rank_at is None
    assert span.moved((), ()) == TokenSpan()
    assert TokenSpan((3,), (1.0,)).moved((4,), (1.0,)).rank_at is None
    for positions in ((), (9,)):
        with pytest.raises(SpanError, match="cannot be ranked at token 9"):
            TokenSpan(positions, (1.0,) * len(positions), 9)


@pytest.mark.parametrize(
    ("positions", "weights", "error"),
    [
        ((1, 2), (1.0,), SpanError),
        ((2, 1), (1.0, 1.0), SpanError),
        ((2, 2), (1.0, 1.0), SpanError),
        ((-1, 2), (1.0, 1.0), SpanError),
        ((1, 2), (1.0, -1.0), OptionError),
    ],
)
def test_token_span_refuses(positions: tuple[int, ...], weights: tuple[float, ...], error: type[Exception]) -> None:
    with pytest.raises(error):
        TokenSpan(positions, weights)


# Tags


@pytest.mark.parametrize(
    ("text", "clean", "spans"),
    [
        ("", "", ()),
        ("no tags", "no tags", ()),
        ("<heed>a</heed>", "a", (Span(0, 1),)),
        ("x <heed>ab</heed> y", "x ab y", (Span(2, 4),)),
        ("x <heed> ab </heed>y", "x  ab y", (Span(2, 6),)),
        ("<heed>a</heed><heed>b</heed>", "ab", (Span(0, 1), Span(1, 2))),
        ("<heed weight=0.5>a</heed>", "a", (Span(0, 1, 0.5),)),
        ('<heed weight="2">a</heed>', "a", (Span(0, 1, 2.0),)),
        ("<heed weight='1e-3'>a</heed>", "a", (Span(0, 1, 0.001),)),
        ("<heed  weight = 0 >a</heed >", "a", (Span(0, 1, 0.0),)),
        ("<HEED Weight=3>a</Heed>", "a", (Span(0, 1, 3.0),)),
        ("<heed\nweight=3>a\nb</heed>", "a\nb", (Span(0, 3, 3.0),)),
        ("<b><heed><i>a</i></heed></b>", "<b><i>a</i></b>", (Span(3, 11),)),
        ("<heedful> <heed-x> </heeds> < heed", "<heedful> <heed-x> </heeds> < heed", ()),
        ("👍🏽<heed>漢字👍🏽</heed>é", "👍🏽漢字👍🏽é", (Span(2, 6),)),
    ],
)
def test_parse_tags(text: str, clean: str, spans: tuple[Span, ...]) -> None:
    assert parse_tags(text) == (clean, spans)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("say <heed>no commas", "never closed.*say <heed>no commas"),
        ("say no commas</heed> now", "without a <heed>.*no commas</heed> now"),
        ("<heed>a</heed></heed>", "without a <heed>"),
        ("<heed>a <heed>b</heed></heed>", "within"),
        ("a <heed></heed> b", "marks nothing.*a <heed></heed> b"),
        ("a <heed> \n\t</heed> b", "marks nothing"),
        ("<heed wieght=2>a</heed>", "one attribute.*<heed wieght=2>"),
        ("<heed weight=2 weight=3>a</heed>", "one attribute"),
        ("<heed weight=2 colour=red>a</heed>", "one attribute"),
        ("<heed weight>a</heed>", "one attribute"),
        ("<heed weight=>a</heed>", "one attribute"),
        ("<heed 2>a</heed>", "one attribute"),
        ("<heed weight=\"2'>a</heed>", "one attribute"),
        ("<heed/>a", "one attribute|never closed"),
        ("<heed weight=2/>a</heed>", "one attribute"),
        ('<heed weight="">a</heed>', "a weight is a number from 0 to 1e"),
        ("<heed weight=much>a</heed>", "a weight is a number from 0 to 1e"),
        ("<heed weight=-1>a</heed>", "a weight is a number from 0 to 1e"),
        ("<heed weight=nan>a</heed>", "a weight is a number from 0 to 1e"),
        ("<heed weight=1e999>a</heed>", "a weight is a number from 0 to 1e"),
        ("<heed weight=1e7>a</heed>", "a weight is a number from 0 to 1e"),
        ("<heed weight=“2”>a</heed>", "a weight is a number from 0 to 1e"),
        ("<heed>a</heed weight=2>", "takes no attributes"),
        ("<heed weight=2 a</heed>", "lacks its '>'"),
        ("a <heed", "lacks its '>'"),
        ("<heed>a</heed", "lacks its '>'"),
    ],
)
def test_parse_tags_refuses(text: str, message: str) -> None:
    with pytest.raises(SpanError, match=message) as caught:
        parse_tags(text)
    assert "\n" not in str(caught.value)


def test_a_tag_error_shows_where_and_no_more() -> None:
    text = "x " * 500 + "HERE <heed>never" + " y" * 500
    with pytest.raises(SpanError, match=r"'….*HERE <heed>never.*…'") as caught:
        parse_tags(text)
    assert len(str(caught.value)) < 160


@given(st.lists(st.tuples(st.text(LETTERS), st.text(LETTERS).filter(str.strip), WEIGHTS)), st.text(LETTERS))
@example([], "")
def test_tags_round_trip(pieces: list[tuple[str, str, float]], rest: str) -> None:
    tagged = "".join(f"{plain}<heed weight={weight!r}>{marked}</heed>" for plain, marked, weight in pieces) + rest
    clean, spans = parse_tags(tagged)
    assert clean == "".join(plain + marked for plain, marked, _ in pieces) + rest
    assert [(clean[span.start : span.end], span.weight) for span in spans] == [piece[1:] for piece in pieces]
    assert parse_tags(clean) == (clean, ())


@given(st.lists(st.sampled_from(["<heed>", "</heed>", "<heed weight=2>", "<heed", ">", "a", " ", "<"])))
@example(["a", "<heed>", " ", "</heed>"])
def test_tags_are_read_or_refused(pieces: list[str]) -> None:
    try:
        clean, spans = parse_tags("".join(pieces))
    except SpanError:
        return
    assert len(clean) <= len("".join(pieces))
    assert all(clean[span.start : span.end].strip() for span in spans)


# Substrings


@pytest.mark.parametrize(
    ("text", "needle", "found"),
    [
        ("abcabc", "bc", [(1, 3), (4, 6)]),
        ("aaaaa", "aa", [(0, 2), (2, 4)]),
        ("a.c abc", "a.c", [(0, 3)]),
        ("Abc", "abc", []),
        ("", "a", []),
        ("漢👍🏽字👍🏽", "👍🏽", [(1, 3), (4, 6)]),
        ("a\nb", "a\nb", [(0, 3)]),
    ],
)
def test_find_substring(text: str, needle: str, found: list[tuple[int, int]]) -> None:
    assert find_substring(text, needle) == found


def test_an_empty_needle_is_refused() -> None:
    with pytest.raises(SpanError, match="empty"):
        find_substring("abc", "")


@given(st.text("ab."), st.text("ab.", min_size=1, max_size=3))
def test_substrings_are_all_found_once(text: str, needle: str) -> None:
    found = find_substring(text, needle)
    assert len(found) == text.count(needle)
    assert all(text[start:end] == needle for start, end in found)
    assert all(before[1] <= after[0] for before, after in pairwise(found))


@pytest.mark.parametrize(
    ("text", "needle", "passage"),
    [
        ("Plan a trip to Japan. Do not use any commas in it.", "Do not use any comas", "Do not use any commas"),
        ("Plan a trip to Japan. Do not use any commas in it.", "do NOT use any commas", "Do not use any commas"),
        ("first line\nAnswer in French only.\nlast line", "Answer in french onyl", "Answer in French only"),
        ("NEVER shout at us, but never WORRY ME", "never SHOUT AT ME", "NEVER shout at us"),
        ("xx yyy z. Write a poem about rivers and lakes!", "write a pome about river", "Write a poem about rivers"),
        ("short", "a needle that is much longer than the text", "short"),
        ("请计划一次旅行。请不要使用逗号。谢谢", "请不要用逗号", "请不要使用逗号"),
        ("", "abc", ""),
        (" \n", "abc", ""),
    ],
)
def test_nearest(text: str, needle: str, passage: str) -> None:
    assert nearest(text, needle) == passage


def test_nearest_finds_it_in_a_long_text_soon() -> None:
    filler = "The quick brown fox jumps over the lazy dog while nobody looks. "
    text = filler * 1500 + "Never mention the weather in your answer. " + filler * 1500
    before = time.perf_counter()
    assert "Never mention the weather" in nearest(text, "Never mention teh weather in your anwser.")
    assert time.perf_counter() - before < 20


@given(st.text(LETTERS), st.text(LETTERS))
def test_nearest_is_a_passage_of_the_text(text: str, needle: str) -> None:
    found = nearest(text, needle)
    assert found in text
    assert bool(found) == bool(text.strip())


# Tokens


def test_a_token_belongs_if_it_shares_a_character() -> None:
    offsets = [(0, 0), (0, 3), (3, 5), (5, 9), (9, 9), (9, 10), (10, 10)]
    assert tokens_in([Span(3, 5)], offsets).positions == (2,)
    assert tokens_in([Span(2, 6)], offsets).positions == (1, 2, 3)
    assert tokens_in([Span(0, 1)], offsets).positions == (1,)
    assert tokens_in([Span(8, 10)], offsets).positions == (3, 5)


def test_tokens_that_share_a_character_all_belong() -> None:
    offsets = [(0, 1), (1, 2), (1, 2), (1, 2), (1, 2), (2, 3)]
    assert tokens_in([Span(1, 2)], offsets).positions == (1, 2, 3, 4)


def test_a_long_token_is_found_from_its_end() -> None:
    offsets = [(0, 100), (100, 101), (101, 102)]
    assert tokens_in([Span(99, 101)], offsets).positions == (0, 1)


def test_a_token_that_two_spans_touch_has_the_larger_weight() -> None:
    offsets = [(i, i + 1) for i in range(6)]
    low, high = Span(0, 4, 0.5), Span(2, 5, 2.0)
    expected = TokenSpan((0, 1, 2, 3, 4), (0.5, 0.5, 2.0, 2.0, 2.0))
    assert tokens_in([low, high], offsets) == tokens_in([high, low], offsets) == expected


@pytest.mark.parametrize(
    ("taken", "left"),
    [
        ([], ["Ab. Cd. Ef."]),
        ([(4, 7)], ["Ab.", "Ef."]),
        ([(0, 3), (8, 11)], ["Cd."]),
        ([(2, 9)], ["Ab", "f."]),
        ([(0, 2)], ["Cd. Ef."]),
        ([(0, 10)], []),
        ([(0, 30)], []),
    ],
)
def test_outside(taken: list[tuple[int, int]], left: list[str]) -> None:
    text = "Ab. Cd. Ef."
    found = outside(text, Span(0, 11, 0.5, message=3), [Span(*place) for place in taken])
    assert [text[span.start : span.end].removeprefix(". ") for span in found] == left
    assert all((span.weight, span.message) == (0.5, 3) for span in found)


def test_a_weight_of_zero_still_marks() -> None:
    assert tokens_in([Span(0, 1, 0.0)], [(0, 1)]) == TokenSpan((0,), (0.0,))


def test_no_spans_mark_nothing() -> None:
    assert tokens_in([], [(0, 1)]) == TokenSpan()


@pytest.mark.parametrize("offsets", [[], [(0, 0), (2, 2)], [(0, 2), (3, 9)], [(5, 9)]])
def test_a_span_without_tokens_is_refused(offsets: list[tuple[int, int]]) -> None:
    with pytest.raises(SpanError, match=r"2:3: 'c'"):
        tokens_in([Span(2, 3)], offsets, "abcdefghi")


def test_every_span_needs_a_token() -> None:
    with pytest.raises(SpanError, match=r"7:9$"):
        tokens_in([Span(0, 1), Span(7, 9)], [(0, 1)])


@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 4)), max_size=12),
    st.lists(st.tuples(st.integers(0, 12), st.integers(1, 4), st.sampled_from([0.0, 0.5, 2.0])), max_size=4),
)
def test_tokens_in_is_what_its_definition_says(
    widths: list[tuple[int, int]], ranges: list[tuple[int, int, float]]
) -> None:
    offsets = [(start, start + width) for start, width in widths]
    spans = [Span(start, start + width, weight) for start, width, weight in ranges]
    touching = [
        [p for p, (start, end) in enumerate(offsets) if set(range(start, end)) & set(range(span.start, span.end))]
        for span in spans
    ]
    if not all(touching):
        with pytest.raises(SpanError):
            tokens_in(spans, offsets)
        return
    expected: dict[int, float] = {}
    for span, positions in zip(spans, touching, strict=True):
        for position in positions:
            expected[position] = max(expected.get(position, 0.0), span.weight)
    found = tokens_in(spans, offsets)
    assert dict(zip(found.positions, found.weights, strict=True)) == expected
    assert list(found.positions) == sorted(expected)


def test_excerpts_are_short_and_on_one_line() -> None:
    assert excerpt(" a\n\n b ") == "a b"
    assert excerpt("abcdef", 6) == "abcdef"
    assert excerpt("abcdefg", 6) == "abcde…"
