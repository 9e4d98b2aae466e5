"""What vLLM runs on GPUs, on this CPU: `make test-vllm` runs these with `--interpreted`."""

from pathlib import Path
from typing import Any

import pytest

import interpreted
import tiny
from tiny import case, expected, generated, plainly

pytestmark = pytest.mark.skipif(not interpreted.is_on(), reason="runs with --interpreted alone")

CASES = [case(0, 26, new=5), case(1, 31, new=5, method=None), case(2, 28, new=5)]


@pytest.mark.parametrize(("backend", "is_v2"), [("TRITON_ATTN", True), ("TRITON_ATTN", False), ("FLASH_ATTN", True)])
def test_backends_of_gpus(backend: str, is_v2: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", str(int(is_v2)))
    model = tiny.build("llama")
    model.save_pretrained(tmp_path)
    wanted = expected(model, CASES)
    assert wanted != expected(model, plainly(CASES))
    with interpreted.using(backend):
        llm = tiny.llm(tmp_path)
        assert llm.llm_engine.vllm_config.use_v2_model_runner == is_v2
        assert generated(llm, CASES) == wanted
    host = tiny.host(llm)
    assert not host.refused
    assert host.layers[0].attn_backend.get_name() == backend


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
