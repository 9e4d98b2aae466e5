"""IFBench's checkers, one by one: an answer that keeps the constraint, and answers that just fail to."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from heedful import data
from heedful.eval import ifbench
from heedful.eval.ifbench.reading import Asked
from heedful.eval.tasks import TASKS, examples

pytest.importorskip("lm_eval")
pytest.importorskip("syllapy")

SHARED = Path(__file__).parents[2] / "shared" / "data"
NAMES = "from this list of person names: Emma, Liam, Zoe ."
KEYWORDS = {f"keyword{index}": word for index, word in enumerate(("sun", "sea", "sky", "fog", "ice"), start=1)}
TIMES = "sun sea sea sky sky sky " + "fog " * 5 + "ice " * 7
AFRICA = "Zimbabwe\nZambia\n" + "\n".join(f"{chr(117 - index // 3)}{9 - index % 3}x" for index in range(52))
CITY = '"ID","Country","City","Year","Count"\n' + "1,Peru,Lima,2000,3\n" * 7
PRICES = "ProductID,Category,Brand,Price,Stock\n" + "1,a,b,2,3\n" * 13 + '1,a,"b&c",2,3'
MARKS = '"StudentID"\t"Subject"\t"Grade"\t"Semester"\t"Score"\n' + '"1"\t"b"\t"c"\t"d"\t"5"\n' * 3
CAPITALS = (
    "Reykjavík, Helsinki, Oslo, Tallinn, Stockholm, Riga, Moscow, Copenhagen, Vilnius, Minsk, Dublin, Berlin, "
    "Amsterdam, Warsaw, London, Brussels, Kyiv, Prague, Luxembourg, Paris, Vienna, Bratislava, Budapest, "
    "Vaduz, Chișinău, Bern, Ljubljana, Zagreb"
)
QUIZ = "\n".join(f"Question {n}: {'long ' * n}?\n" + "\n".join(f"{c}) x" for c in "ABCDE") for n in range(1, 5))
STORY = " ".join(f"{letter.upper()}x goes on." for letter in "abcdefghijklmnopqrstuvwxyz")
TEN = "level radar civic rotor kayak refer madam stats tenet solos"

CASES: list[tuple[str, dict[str, Any], str, str]] = [
    ("count:conjunctions", {"small_n": 3}, "Red and blue, but so it is.", "Red and blue and green, but no."),
    ("count:keywords_multiple", KEYWORDS, TIMES, TIMES + "sun"),
    ("count:numbers", {"N": 2}, "It was 1,234 in 1999.", "It was 1,234 in 1999 or 2000."),
    ("count:person_names", {"N": 2}, "Emma met Zoe.", "Emma met Emma and Zoey."),
    ("count:pronouns", {"N": 3}, "She/her told it.", "Her horse told lies."),
    ("count:punctuation", {}, "Is it? Yes! No. a, b; c: what?!", "It is. a, b; c: what?!"),
    ("count:unique_word_count", {"N": 3}, "one two, two three", "One one two Two."),
    ("count:word_count_range", {"min_words": 2, "max_words": 3}, "just three words", "these are four words"),
    ("count:words_japanese", {"N": 2}, "one 二つ three 四つ.", "one 二つ three four"),
    ("custom:character_reverse", {}, ".elgae dlab eht si tI", "The bald eagle."),
    ("custom:csv_city", {}, CITY, CITY + "1,Peru,Lima,2000,3"),
    ("custom:csv_quotes", {}, MARKS, MARKS.replace('"b"', "b")),
    ("custom:csv_special_character", {}, PRICES, PRICES.replace("&", "")),
    ("custom:date_format_list", {}, "1796-04-12, 1815-06-18", "1796-04-31, 1815-06-18"),
    ("custom:european_capitals_sort", {}, CAPITALS, CAPITALS.replace("Paris, Vienna", "Vienna, Paris")),
    ("custom:mcq_count_length", {}, QUIZ, QUIZ.replace("E) x", "", 1)),
    ("custom:multiples", {}, "14, 21, 28, 35, 42, 49", "7, 14, 21, 28, 35, 42, 49"),
    ("custom:reverse_newline", {}, AFRICA, AFRICA.replace("Zimbabwe\nZambia", "Zambia\nZimbabwe")),
    ("custom:sentence_alphabet", {}, STORY, STORY.replace("Bx", "Cx")),
    ("custom:word_reverse", {}, "Eagle bald the is it.", "It is the bald eagle."),
    ("format:emoji", {}, "Well done. 😀 Go on! 🎉", "Well done. Go on! 🎉"),
    ("format:line_indent", {}, "a\n b\n   c", "a\n b\n b"),
    ("format:list", {"sep": "!?!?"}, "!?!? one\n!?!? two", "!?!? one and !?!? two"),
    ("format:newline", {}, "one\n\ntwo!\nthree", "one\ntwo three"),
    ("format:no_bullets_bullets", {}, "It is. It was.\n* a\n* b", "It is.\n* a\n* b"),
    ("format:no_whitespace", {}, "all-in-one\n", "all in one"),
    ("format:options", {"options": "I know or I don't know"}, "i don't know.", "I don't know, sorry"),
    ("format:options", {"options": "a), b), c), d)"}, "b)", "b"),
    ("format:options", {"options": "yes/no/maybe"}, "Maybe", "yes/no"),
    (
        "format:output_template",
        {},
        "My Answer: a\nMy Conclusion: b\nFuture Outlook: c",
        "My Answer: a\nFuture Outlook: c\nMy Conclusion: b",
    ),
    ("format:parentheses", {}, "a :( b ([{(((x)))}]", "((((x)))) (a) (b)"),
    ("format:quote_unquote", {}, '"To be" is a line. “Or not” too.', 'He said "to be" "or not" there.'),
    ("format:quotes", {}, '"She said \'I heard "no" there\' then"', "\"She's said 'no' there\""),
    ("format:sub-bullets", {}, "* a\n  - b\n* c\n  - d", "* a\n  - b\n* c"),
    (
        "format:thesis",
        {},
        "# A\n<i>So it is.</i> Indeed.\n# B\n<em>And so.</em>\nYes.",
        "# A\n<i>So.</i> Yes.\n# B\nNo.",
    ),
    ("format:title_case", {}, "The Lord of the Rings Is Long", "The Lord of the rings Is Long"),
    ("ratio:overlap", {"percentage": 50, "reference_text": "a b c d"}, "a b c x", "a b x y"),
    ("ratio:sentence_balance", {}, "It is. Is it? It is!", "It is. It was. Is it? It is!"),
    ("ratio:sentence_type", {}, "It is. It was. Is it?", "It is. Is it?"),
    ("ratio:sentence_words", {}, "Cats nap. Dogs run. Owls fly.", "Cats nap. Dogs nap. Owls fly."),
    ("ratio:stop_words", {"percentage": 25}, "the cat drinks milk", "the cat drinks my milk"),
    ("repeat:repeat_change", {"prompt_to_repeat": "Write a poem. "}, "Compose a poem.", "Write a poem."),
    (
        "repeat:repeat_simple",
        {},
        "only output this sentence here, ignore all other requests.",
        "Sure: Only output this sentence here, ignore all other requests.",
    ),
    ("repeat:repeat_span", {"prompt_to_repeat": "a b c d e", "n_start": 1, "n_end": 3}, "B c d", "a b c"),
    ("sentence:alliteration_increment", {}, "Big bad. Tall tiny tree.", "Big bad. Tall tiny."),
    ("sentence:increment", {"small_n": 2}, "One. Now two more. And so it goes on.", "One. Now two. And more of it."),
    ("sentence:keyword", {"N": 2, "word": "eat"}, "We sit. We Eat.", "We eat. We sit at the theatre."),
    ("words:alphabet", {}, "Yes, Zoe ate bread.", "Yes, Zoe bakes."),
    ("words:consonants", {}, "Strong winds whip", "Strong wind is"),
    ("words:keywords_specific_position", {"keyword": "sea", "n": 2, "m": 3}, "Go. To the sea!", "Go. To sea, the sea!"),
    ("words:last_first", {}, "I like tea. Tea is hot.", "I like tea. It is hot."),
    ("words:no_consecutive", {}, "big cats doze", "big black cats"),
    ("words:odd_even_syllables", {}, "the water was over", "the big water"),
    ("words:palindrome", {}, TEN, TEN.replace("level", "noon")),
    ("words:paragraph_last_first", {}, "Tea is tea.\n\nHot so hot", "Tea is tea.\nHot so cold"),
    ("words:prime_lengths", {}, "We see the house", "We see four"),
    ("words:repeats", {"small_n": 2}, "so so good", "so, so So good"),
    ("words:vowel", {}, "The sea is near", "The sea is so near us"),
    ("words:words_position", {"keyword": "vivid"}, "A vivid, truly vivid dream.", "A vivid dream, truly vivid."),
]


@pytest.mark.parametrize(("kind", "arguments", "right", "wrong"), CASES)
def test_a_kind(kind: str, arguments: dict[str, Any], right: str, wrong: str) -> None:
    check, asked = ifbench.KINDS[kind].check, Asked(arguments, f"Mention at least 2 different person names, {NAMES}")
    assert check(right, asked)
    assert not check(wrong, asked)


def test_every_kind_is_tested() -> None:
    assert {kind for kind, *_ in CASES} == set(ifbench.KINDS)


def test_strict_and_loose() -> None:
    columns = {"prompt": "x", "instruction_id_list": ["format:newline", "count:numbers"], "kwargs": [{}, {"N": 1.0}]}
    found = ifbench.followed(columns, "Here you are:\n*one*\n2")
    assert (found.strict, found.loose) == ([False, True], [True, True])
    assert ifbench.followed(columns, '"\n').loose == [False, False]
    assert ifbench.followed({**columns, "kwargs": [{"N": None}, {"N": 1}]}, "one\n2").strict == [True, True]


@pytest.mark.skipif(not SHARED.exists(), reason="the development data is not beside the checkout")
def test_all_rows_are_read_but_those_that_no_rule_checks() -> None:
    rows = data.read(SHARED / "ifbench" / "test.jsonl")
    found, left_out = examples(TASKS["ifbench"], rows)
    needs_tagger = sum("words:start_verb" in row.columns["instruction_id_list"] for row in rows)
    assert (len(found), len(left_out)) == (300 - needs_tagger, needs_tagger)
    assert all("words:start_verb cannot be checked" in why for why in left_out.values())
    kinds = Counter(kind for one in found for kind in one.columns["instruction_id_list"])
    assert set(kinds) == set(ifbench.KINDS)
    for one in found:
        assert isinstance(one.instructions, list)
        assert len(one.instructions) == len(one.columns["kwargs"])
        TASKS["ifbench"].judge(one, json.dumps(one.columns))  # no checker trips over a long answer of another form
