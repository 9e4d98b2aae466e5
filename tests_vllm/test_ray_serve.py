"""Replicas of `ray.serve.llm` that steer, on two simulated nodes; skipped where Ray is not installed."""

import json
import os
from collections.abc import Iterator

import httpx
import pytest

import heedful
from heedful import models

SWITCHES = {"RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING": "1", "RAY_SERVE_ENABLE_HA_PROXY": "1"}  # read as Ray is imported
os.environ.update(SWITCHES)

ray = pytest.importorskip("ray")
serve = pytest.importorskip("ray.serve")
ray_llm = pytest.importorskip("ray.serve.llm")
pytestmark = pytest.mark.one_runner

PROMPT = "Tell me about the sea. <heed>Do not use any commas, and answer in capital letters.</heed>"
NEW = 12
ENGINE = {"dtype": "float32", "enforce_eager": True, "max_model_len": 256}
HANDED_ON = ("HF_HUB_OFFLINE", "OMP_NUM_THREADS", "VLLM_CPU_KVCACHE_SPACE", "VLLM_CPU_OMP_THREADS_BIND")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    from ray.cluster_utils import Cluster

    small = {"num_cpus": 2, "object_store_memory": 80_000_000}  # a replica and its engine take two: each node holds one
    nodes = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
    try:
        nodes.add_node(**small)
        ray.init(address=nodes.address, log_to_driver=False)
        serve.start(proxy_location="HeadOnly", http_options={"port": 8765})  # two nodes on one machine share its ports
        config = ray_llm.LLMConfig(
            model_loading_config={"model_id": "smol", "model_source": str(models.default_model_path(progress=False))},
            deployment_config={"num_replicas": 2, "ray_actor_options": {"num_cpus": 1}},
            accelerator_config={"kind": "cpu"},
            engine_kwargs={**ENGINE, "middleware": ["heedful.vllm.http.Heed"]},
            runtime_env={"env_vars": {name: os.environ[name] for name in HANDED_ON}},
        )
        serve.run(ray_llm.build_openai_app({"llm_configs": [config]}))
        yield "http://127.0.0.1:8765"
    finally:
        serve.shutdown()
        ray.shutdown()
        nodes.shutdown()


def test_replicas_on_two_nodes_steer(url: str) -> None:
    lm = heedful.load(dtype="float32")
    body = {"model": "smol", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": NEW, "temperature": 0}
    wanted = lm.generate(PROMPT, max_new_tokens=NEW).text
    assert wanted != lm.generate(PROMPT, method=None, max_new_tokens=NEW).text
    asked = f"{url}/v1/chat/completions"
    answers = [httpx.post(asked, json=body, timeout=None) for _ in range(4)]  # to the replicas in turn
    assert {answer.json()["choices"][0]["message"]["content"] for answer in answers} == {wanted}
    with httpx.stream("POST", asked, json={**body, "stream": True}, timeout=None) as streamed:
        chunks = [json.loads(line[6:]) for line in streamed.iter_lines() if line.startswith("data: {")]
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks) == wanted
    assert httpx.post(asked, json={**body, "heedful": {"method": "spotlight"}}, timeout=None).status_code == 400
    replicas = serve.status().applications["default"].deployments["LLMServer:smol"].replica_states
    assert replicas == {"RUNNING": 2}
