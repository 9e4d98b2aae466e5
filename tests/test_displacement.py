"""Controls: the same method on other tokens than those that were marked."""

import pytest

import heedful
from heedful.displacement import Displaced
from heedful.errors import OptionError
from heedful.generate import Job
from heedful.methods import parse_method

PROMPT = "Name three rivers. <heed>Do not use any commas.</heed>"


def test_positions_are_as_many_and_all_different() -> None:
    given = [4, 5, 6, 9]
    drawn: set[int] = set()
    for seed in range(20):
        moved = Displaced(heedful.Directer(), f"random:{seed}").positions(given, 12)
        assert len(set(moved)) == len(given)
        drawn |= set(moved)
    assert drawn == {0, 1, 2, 3, 7, 8, 10}  # neither what is marked nor the last token
    draws = {Displaced(heedful.Directer(), f"random:{seed}").positions(given, 40) for seed in range(20)}
    assert len(draws) == 20
    assert Displaced(heedful.Directer(), "shift:2").positions(given, 12) == (6, 7, 8, 11)


def test_shifted_is_what_marking_the_neighbours_gives(lm: heedful.LM) -> None:
    spelled = parse_method("directer:span=shift:-1")
    assert spelled == Displaced(heedful.Directer(), "shift:-1")
    request, plain = lm.request(Job(PROMPT, method=spelled)), lm.request(Job(PROMPT))
    assert request.positions == tuple(position - 1 for position in plain.positions)
    assert request.weights == plain.weights
    assert spelled.describe()["span"] == "shift:-1"


def test_random_tokens_are_the_same_for_the_same_seed(lm: heedful.LM) -> None:
    requests = [lm.request(Job(PROMPT, method=parse_method(f"directer:span=random:{seed}"))) for seed in (0, 1, 0)]
    assert requests[0].positions == requests[2].positions != requests[1].positions
    assert all(len(request.positions) == len(lm.request(Job(PROMPT)).positions) for request in requests)
    contrast = parse_method("context-aware:span=random:1")
    assert lm.request(Job(PROMPT, method=contrast)).positions != lm.request(Job(PROMPT)).positions


def test_the_moved_tokens_are_the_ones_that_are_steered(lm: heedful.LM) -> None:
    moved = lm.generate(PROMPT, method=parse_method("static:strength=30:span=shift:-3"), max_new_tokens=12)
    marked = lm.generate(PROMPT, method=heedful.KeyScaling(30.0), max_new_tokens=12)
    assert moved.trace.method["span"] == "shift:-3"
    assert moved.text != marked.text


def test_random_tokens_of_a_prompt_that_is_nearly_all_marked() -> None:
    moved = Displaced(heedful.Directer(), "random:3")
    assert moved.positions(range(1, 11), 12) == (0,)
    assert moved.recipe().span(range(1, 11), [0.5] * 10, 12) == ((0,), (0.5,))
    with pytest.raises(OptionError, match="nothing to draw from: all of the prompt is marked"):
        moved.positions(range(11), 12)


@pytest.mark.parametrize("place", ["nowhere", "shift:x", "shift:", "random:-1", "random:x", 3])
def test_bad_places(place: str) -> None:
    with pytest.raises(OptionError, match="span must be random"):
        Displaced(heedful.Directer(), place)


def test_a_shift_out_of_the_prompt(lm: heedful.LM) -> None:
    with pytest.raises(OptionError, match="moves the instruction out of the prompt"):
        lm.request(Job(PROMPT, method=parse_method("directer:span=shift:500")))
    with pytest.raises(OptionError, match="takes no span"):
        parse_method("none:span=random")
