"""The library's face on the real default model, and its errors."""

import json
from typing import Any

import pytest
import torch

import heedful
from heedful import Directer, Job, KeyScaling, Sampling

PROMPT = "Plan a trip to Japan. <heed>Do not use any commas.</heed>"


def test_plain_is_transformers(lm: heedful.LM) -> None:
    result = lm.generate(PROMPT, method=None, max_new_tokens=48)
    ids = torch.tensor([lm.encode(PROMPT).token_ids])
    theirs = lm.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=48, do_sample=False)
    assert list(result.token_ids) == theirs[0, ids.shape[1] :].tolist()
    assert result.text == lm.tokenizer.decode(result.token_ids, skip_special_tokens=True)


def test_a_gated_step_needs_no_pass_of_its_own(lm: heedful.LM) -> None:
    stats = [
        lm.generate(PROMPT.replace("Japan", where), max_new_tokens=60).stats for where in ("Japan", "Rome", "Oslo")
    ]
    assert sum(s.gated for s in stats) > 10
    assert sum(s.forward_passes for s in stats) <= 1.05 * sum(s.generated_tokens for s in stats)


def test_streamed_is_not_streamed(lm: heedful.LM) -> None:
    result = lm.generate(PROMPT, max_new_tokens=40)
    events = list(lm.stream(PROMPT, max_new_tokens=40))
    assert "".join(event.text for event in events) == result.text
    assert tuple(event.step.token_id for event in events) == result.token_ids
    assert events[-1].result is not None
    assert all(event.result is None for event in events[:-1])
    assert result.stats.generated_tokens == len(result.token_ids)
    assert result.stats.gated == result.stats.accepted + result.stats.rejected
    assert result.stats.changed == sum(step.changed for step in result.trace.steps)


def test_a_batch_of_different_jobs(lm: heedful.LM) -> None:
    jobs = [
        Job(PROMPT, max_new_tokens=20),
        Job("Name three fruits.", method=None, max_new_tokens=12),
        Job([{"role": "system", "content": "Answer in capitals."}, {"role": "user", "content": "Hi"}], "system"),
        Job(PROMPT, method=KeyScaling(2.0), max_new_tokens=15, sampling=Sampling(0.8, seed=4)),
    ]
    jobs[2] = Job(jobs[2].prompt, "system", max_new_tokens=14)
    together = lm.generate_batch(jobs, num_slots=3)
    assert [r.token_ids for r in together] == [lm.generate_batch([job])[0].token_ids for job in jobs]


def test_stop_strings(lm: heedful.LM) -> None:
    free = lm.generate(PROMPT, max_new_tokens=40)
    stop = free.text[20:26]
    result = lm.generate(PROMPT, max_new_tokens=40, stop=[stop])
    assert result.finish_reason == "stop"
    assert result.text == free.text[: free.text.index(stop)]
    assert result.stats.generated_tokens == len(result.token_ids)


def test_json_and_trace(lm: heedful.LM) -> None:
    result = lm.generate(PROMPT, max_new_tokens=24)
    data = json.loads(json.dumps(result.to_dict()))
    assert set(data) == {"text", "token_ids", "finish_reason", "prompt_tokens", "method", "stats", "steps"}
    wanted = {"token_id", "text", "decision", "layers", "trials", "p_raw", "p_top", "changed"}
    assert set(data["steps"][0]) == wanted
    assert heedful.Trace.from_json(result.trace.to_json()) == result.trace
    with pytest.raises(heedful.OptionError, match="not a Heedful trace"):
        heedful.Trace.from_json("{}")


def test_too_strong_static_steering_wrecks_what_directer_keeps(lm: heedful.LM) -> None:
    static = lm.generate(PROMPT, method=KeyScaling(100.0), max_new_tokens=40)
    steered = lm.generate(PROMPT, method=Directer(), max_new_tokens=40)
    assert len(set(static.token_ids)) < len(set(steered.token_ids))


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        ({"prompt": "Plan a trip."}, heedful.SpanError, "nothing in the prompt is marked"),
        ({"prompt": ""}, heedful.PromptError, "empty"),
        ({"prompt": "a <heed>b"}, heedful.SpanError, "never closed"),
        ({"prompt": "a <heed>b <heed>c</heed></heed>"}, heedful.SpanError, "within"),
        ({"prompt": "a <heed> </heed>"}, heedful.SpanError, "nothing"),
        ({"prompt": "Use no commas.", "instructions": ["no comas"]}, heedful.SpanError, "no commas"),
        ({"prompt": "Use no commas.", "instructions": [(3, 3)]}, heedful.SpanError, "empty"),
        ({"prompt": "Use no commas.", "instructions": "system"}, heedful.SpanError, "system"),
        ({"prompt": PROMPT, "max_new_tokens": 0}, heedful.OptionError, "max_new_tokens"),
        ({"prompt": PROMPT, "max_new_tokens": 8190}, heedful.ContextLengthError, "8192"),
        ({"prompt": "word " * 9000, "method": None}, heedful.ContextLengthError, "8192"),
        ({"prompt": PROMPT, "stop": [""]}, heedful.OptionError, "stop"),
        ({"prompt": PROMPT, "method": KeyScaling(layers=(99,))}, heedful.OptionError, "0 to 29"),
        ({"prompt": PROMPT, "method": Directer(ranking=(99,))}, heedful.OptionError, "0 to 29"),
    ],
)
def test_bad_input(lm: heedful.LM, call: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says) as caught:
        lm.generate(**call)
    assert isinstance(caught.value, heedful.HeedfulError)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [NAN, INF, -1.0, "x"])
def test_numbers_out_of_range(value: Any) -> None:
    for build in (
        lambda: Directer(strength=value),
        lambda: Directer(threshold=value),
        lambda: KeyScaling(value),
        lambda: Sampling(temperature=value),
    ):
        with pytest.raises(heedful.OptionError):
            build()


def test_unknown_names() -> None:
    for build in (
        lambda: Directer(ranking="best"),
        lambda: Directer(compat="new"),  # type: ignore[arg-type]
        lambda: heedful.load("/no/such/folder"),
        lambda: heedful.load(dtype="int3"),  # type: ignore[arg-type]
        lambda: heedful.load(device="warp"),
        lambda: heedful.load("nobody/no-such-model-anywhere"),
    ):
        with pytest.raises(heedful.HeedfulError) as caught:
            build()
        assert "\n" not in str(caught.value)
