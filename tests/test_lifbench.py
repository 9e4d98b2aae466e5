"""LIFBench's numbers, to 1e-6 where the published scorers give any; and no answer raises, hangs or is run."""

import copy
import json
import math
import time
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from heedful.errors import OptionError
from heedful.eval.lifbench import SUBTASKS, score
from heedful.eval.lifbench.reading import distance

DATA = Path(__file__).parents[2] / "shared" / "data" / "lifbench"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the shared LIFBench data is not here")

LABEL = {
    "#Topic#": [["Essays are a search.", 0, 1, True], ["Nobody reads\nprefaces.", 1, 2, True]],
    "*Evidence*": [["Rivers meander.", 2, 3, True], ["It is late.", 3, 4, False]],
}
LIST_PROMPT = "List to be retrieved:\n1. alpha one\n2. beta two\n3. gamma three\n\nInstruction: pick."
QUERY = {"element": "beta two", "pre_element": "alpha one", "post_element": "gamma three", "id": 2}
DUP_GROUPS = [[{"id": "a1", "title": None}, {"id": "b2", "title": "Tea"}], [{"id": "c3", "title": 7}]]
DUP_PROMPT = "\n\n Documents:\nid: a1\nid: b2\ntitle: Tea\nid: c3\ntitle: 7\n\n Instructions: use 'None'."
DUP_OUTPUT = '[["a1", null], ["b2", "Tea"]]\n[["c3", "7"]]'

# Our own rows, one for each subtask: the row and an answer that earns everything.
OWN: dict[str, tuple[dict[str, Any], str]] = {
    "list-single_query_id": ({"prompt": LIST_PROMPT, "param": QUERY}, "beta two"),
    "list-offset_query_id": ({"prompt": LIST_PROMPT, "param": QUERY | {"bias": 1}}, "gamma three"),
    "list-offset_query_element": ({"prompt": LIST_PROMPT, "param": QUERY | {"bias": -1}}, "alpha one"),
    "list-blur_offset_query_id": ({"prompt": LIST_PROMPT, "param": QUERY | {"bias": 1}}, "gamma three"),
    "list-blur_offset_query_element": ({"prompt": LIST_PROMPT, "param": QUERY | {"bias": -1}}, "alpha one"),
    "list-multi_query_id": (
        {"prompt": LIST_PROMPT, "param": {"elements": ["gamma three", "alpha one"]}},
        '["gamma three", "alpha one"]',
    ),
    "onedoc-repeat": (
        {"label": LABEL, "param": {"num": 2, "sep": "|||"}},
        "Essays are a search.|||#Topic#\nRivers meander.|||*Evidence*",
    ),
    "onedoc-extract": ({"label": LABEL, "param": {"type": "<*Evidence*>"}}, '["Rivers meander."]'),
    "onedoc-qa": ({"label": LABEL, "param": {"options": ["Yes", "No"], "evidence": "It is late. "}}, "No"),
    "multidoc-batch_label": (
        {
            "label": 2,
            "param": {
                "candidates": ["bad", "all", "cut", "dry"],
                "rule_key": "abcd",
                "doc_keys": [["id", "source"], ["title", "source"]],
            },
        },
        '{"doc1": "cut", "doc2": "all"}',
    ),
    "multidoc-find_dup_text": (
        {"prompt": DUP_PROMPT, "param": {"info_keys": "id title", "dup_infos": DUP_GROUPS}},
        DUP_OUTPUT,
    ),
}
HOSTILE = {
    "open brackets": "[" * 300_000,
    "open pairs": "[[ " * 100_000,
    "closed pairs": "[[" * 50_000 + "]]" * 50_000,
    "many matches": "[[1]]" * 60_000,
    "ragged rows": "[[" + "[1],[]," * 5_000 + "[]]",
    "braces": "[[" + "{" * 90_000 + "]]",
    "braces and colons": "[[" + "{1:" * 190 + "]]",
    "calls": "[[" + "f(" * 190 + "]]",
    "subscripts": "[[1" + "[0]" * 30_000 + "]]",
    "attributes": "[[1" + " .a" * 30_000 + "]]",
    "minus signs": "[[" + "-" * 90_000 + "1]]",
    "sums": "[[" + "1+" * 45_000 + "1]]",
    "power": "[[9**9**9**9]]",
    "lambdas": "[[" + "lambda:" * 10_000 + "1]]",
    "quotes": "[[" + "'" * 90_000 + "]]",
    "objects": "{ " * 100_000,
    "nested objects": '{"a":' * 60_000,
    "nested lists": "[" * 3_000 + "]" * 3_000,
    "an open string": "[" * 1_000 + '"' + '\\"' * 99_000,
    "an open string and a backslash": "[" * 1_000 + '"' + '\\"' * 99_000 + "\\",
    "backslashes": "\\" * 200_001,
    "big number": "[[" + "9" * 90_000 + "]]",
    "lines of separators": "|||\n" * 70_000,
    "lines like sentences": "".join(f"Rivers meand{i % 997}.|||*Evidence*\n" for i in range(9_000)),
    "surrogate": "[[\ud83d]] \ud83d",
    "null character": "[[\0]]",
}


@cache
def prompts(subtask: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / "prompts_3k" / f"{subtask}.jsonl").read_bytes().splitlines()]


@cache
def vectors(name: str) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for line in (DATA / f"{name}.jsonl").read_bytes().splitlines():
        vector = json.loads(line)
        vector["row_data"] = vector.get("row_data") or prompts(vector["subtask"])[vector["row"]]
        found.setdefault(vector["subtask"], []).append(vector)
    return found


def is_as(vector: dict[str, Any]) -> bool:
    verdict = score(vector["subtask"], vector["row_data"], vector["output"])
    wanted = vector["criteria"] | {"score": vector["score"]}
    got = verdict.criteria | {"score": verdict.score}
    return wanted.keys() == got.keys() and all(math.isclose(got[k], wanted[k], abs_tol=1e-6, rel_tol=0) for k in wanted)


@needs_data
@pytest.mark.parametrize("subtask", SUBTASKS)
@pytest.mark.parametrize("name", ["vectors", "vectors_extra", "vectors_crash"])
def test_the_published_numbers(name: str, subtask: str) -> None:
    wrong = [vector for vector in vectors(name).get(subtask, []) if not is_as(vector)]
    shown = [
        (v["kind"], v["output"], v["score"], v["criteria"], score(subtask, v["row_data"], v["output"])) for v in wrong
    ]
    assert not shown[:3], f"{len(shown)} differ"


@needs_data
def test_every_vector_was_judged() -> None:
    counts = [sum(map(len, vectors(name).values())) for name in ("vectors", "vectors_extra", "vectors_crash")]
    assert counts == [1319, 555, 130]


@needs_data
@pytest.mark.parametrize("subtask", SUBTASKS)
def test_an_empty_answer_is_worth_nothing(subtask: str) -> None:
    assert not any(score(subtask, row, output).score for row in prompts(subtask) for output in ("", " \n", None))


def test_the_groups_and_their_weights() -> None:
    weights = {"list": 0, "onedoc": 0, "multidoc": 0}
    for subtask in SUBTASKS.values():
        weights[subtask.group] += subtask.points
    assert weights == {"list": 32, "onedoc": 33, "multidoc": 34}


def test_an_unknown_subtask_is_named() -> None:
    with pytest.raises(OptionError, match=r"unknown subtask 'list'; known: list-single_query_id, "):
        score("list", {}, "")


@pytest.mark.parametrize("subtask", SUBTASKS)
def test_the_perfect_answer_earns_everything(subtask: str) -> None:
    row, output = OWN[subtask]
    verdict = score(subtask, row, f" {output}\n")
    assert verdict.score == pytest.approx(1.0)
    assert verdict.criteria == pytest.approx(dict.fromkeys(SUBTASKS[subtask].maxima, 1.0))


@pytest.mark.parametrize(
    ("subtask", "output", "wanted"),
    [
        ("list-single_query_id", "nearly", 0.0),
        ("list-single_query_id", "It is: beta two", (0.3 + 2 + 1) / 4),
        ("list-single_query_id", "alpha one", (1 + 0 + 1) / 4),
        ("list-blur_offset_query_id", "beta two", (1 + 1 + 1) / 5),
        ("list-multi_query_id", "alpha one, gamma three", (0 + 3 + 3 + 0) / 10),
        ("list-multi_query_id", "sorry", (0 + 0 + 0 + 1) / 10),
        ("onedoc-extract", "[]", (4 + 0.5) / 14),
        ("onedoc-extract", '["Rivers meander.", "It is late."]', (4 + 3.5 / 2 + 4 + 2) / 14),
        ("onedoc-qa", "Yes", (2 + 2) / 5),
        ("onedoc-qa", "Yes or No", (0.5 + 1) / 5),
        ("multidoc-batch_label", "doc1: cut", (0 + 2.5 / 2 + 1) / 14),
        ("multidoc-batch_label", "none: {}", 0.0),
        ("multidoc-find_dup_text", "none", (4 / 2 + 2) / 20),
    ],
)
def test_partial_points(subtask: str, output: str, wanted: float) -> None:
    assert score(subtask, OWN[subtask][0], output).score == pytest.approx(wanted)


def test_a_sentence_of_two_lines_may_be_repeated_as_it_is() -> None:
    row = copy.deepcopy(OWN["onedoc-repeat"][0])
    output = "Nobody reads\nprefaces.|||#Topic#\nRivers meander.|||*Evidence*"
    for _ in range(2):  # the row is no other the second time
        assert score("onedoc-repeat", row, output).score == pytest.approx(1.0)
    assert row == OWN["onedoc-repeat"][0]


def test_model_text_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "made"
    score("multidoc-find_dup_text", OWN["multidoc-find_dup_text"][0], f'[[open("{path}", "w")]]')
    assert not path.exists()


@pytest.mark.parametrize("subtask", SUBTASKS)
def test_hostile_answers_are_judged_in_time(subtask: str) -> None:
    for name, output in HOSTILE.items():
        start = time.monotonic()
        score(subtask, OWN[subtask][0], output)
        assert time.monotonic() - start < 10, name


@pytest.mark.parametrize("subtask", SUBTASKS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_answer_raises(subtask: str, data: st.DataObject) -> None:
    row, perfect = OWN[subtask]
    pieces = st.sampled_from(
        ["[[", "]]", "[", "]", "{", "}", '"', "'", ",", "\\", "\\x", "\n", "null", "doc1", "1", "()"]
    )
    texts = st.lists(pieces | st.text(max_size=5) | st.sampled_from(perfect.split()), max_size=20)
    verdict = score(subtask, row, "".join(data.draw(texts)))
    assert verdict.score >= 0
    assert verdict.criteria.keys() == SUBTASKS[subtask].maxima.keys()
    assert all(0 <= share <= 1 for name, share in verdict.criteria.items() if name != "ori")


def plain_distance(first: str, second: str) -> int:
    above = list(range(len(second) + 1))
    for row, a in enumerate(first, start=1):
        here = [row]
        for column, b in enumerate(second, start=1):
            here.append(min(above[column] + 1, here[-1] + 1, above[column - 1] + (a != b)))
        above = here
    return above[-1]


@settings(max_examples=200, deadline=None)
@given(st.text("abc", max_size=80), st.text("abcd", max_size=80))
def test_distance_is_levenshtein(first: str, second: str) -> None:
    assert distance(first, second) == plain_distance(first, second)
