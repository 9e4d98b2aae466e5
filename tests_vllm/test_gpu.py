"""What vLLM runs on GPUs, on this CPU: `make test-vllm` runs these with `--interpreted`."""

from pathlib import Path
from typing import Any

import pytest

import heedful
import interpreted
import tiny
from tiny import case, expected, generated, plainly

pytestmark = pytest.mark.skipif(not interpreted.is_on(), reason="runs with --interpreted alone")

CASES = [case(0, 26, new=5), case(1, 31, new=5, method=None), case(2, 28, new=5)]


@pytest.mark.parametrize("backend", ["TRITON_ATTN", "FLASH_ATTN"])
def test_backends_of_gpus(backend: str, tmp_path: Path) -> None:
    model = tiny.build("llama")
    model.save_pretrained(tmp_path)
    wanted = expected(model, CASES)
    assert wanted != expected(model, plainly(CASES))
    with interpreted.using(backend):
        llm = tiny.llm(tmp_path)
        assert llm.llm_engine.vllm_config.use_v2_model_runner
        assert generated(llm, CASES) == wanted
    host = tiny.host(llm)
    assert not host.refused
    assert host.layers[0].attn_backend.get_name() == backend


def test_half_precision_passes_the_self_check(tmp_path: Path) -> None:
    model = tiny.build("llama")
    model.save_pretrained(tmp_path)
    with interpreted.using("FLASH_ATTN"):
        llm = tiny.llm(tmp_path, dtype="bfloat16")
        assert [len(tokens) for tokens in generated(llm, CASES)] == [5, 5, 5]
    assert not tiny.host(llm).refused


@pytest.mark.parametrize("is_v2", [True, False])
def test_tokens_that_the_scheduler_runs_ahead_of(is_v2: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asynchronous scheduling, which GPUs have and CPUs have not, with preemptions."""
    from vllm.platforms.cpu import CpuPlatform

    settle = CpuPlatform.check_and_update_config.__func__

    def settled(cls: Any, config: Any) -> None:
        settle(cls, config)
        config.scheduler_config.async_scheduling = True

    monkeypatch.setattr(CpuPlatform, "check_and_update_config", classmethod(settled))
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", str(int(is_v2)))
    model = tiny.build("llama")
    model.save_pretrained(tmp_path)
    llm = tiny.llm(tmp_path, block_size=32, max_num_seqs=6, max_model_len=256, num_gpu_blocks_override=14)
    assert llm.llm_engine.vllm_config.scheduler_config.async_scheduling
    cases = [case(seed, 60, new=30) for seed in range(4)]
    drawn = heedful.Sampling(temperature=1.0, seed=3)
    cases += [case(seed, 50, new=30, sampling=drawn, repetition=1.2, presence=0.5) for seed in range(2)]
    cases += plainly(cases[:2])
    assert generated(llm, cases) == expected(model, cases)
    assert {metric.name: metric for metric in llm.get_metrics()}["vllm:num_preemptions"].value > 0


def test_a_slot_is_taken_by_others(tmp_path: Path) -> None:
    """V2 tells of no request that has gone: the next one in its slot is none the wiser."""
    model = tiny.build("llama")
    model.save_pretrained(tmp_path)
    llm = tiny.llm(tmp_path, max_num_seqs=1)
    cases: list[Any] = [case(seed, 26, new=6) for seed in range(3)]
    mixed = [cases[0], *plainly(cases[1:2]), cases[2], *plainly(cases[:1])]
    wanted = expected(model, mixed)
    assert wanted[0] != wanted[3]
    assert generated(llm, mixed) == wanted
    assert not tiny.host(llm).is_wanted  # the last one was plain
