"""Replicas of vLLM's own server under Ray Serve, on two simulated nodes; skipped where Ray is not installed."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import StreamingResponse

import heedful
from heedful import models

ray = pytest.importorskip("ray")
serve = pytest.importorskip("ray.serve")

PROMPT = "Tell me about the sea. <heed>Do not use any commas, and answer in capital letters.</heed>"
NEW = 12


class Vllm:
    """One replica: vLLM's server with the middleware, and whoever asks it."""

    def __init__(self, model: str) -> None:
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            port = bound.getsockname()[1]
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--port", str(port)]
        command += ["--served-model-name", "smol", "--dtype", "float32", "--enforce-eager", "--max-model-len", "256"]
        environment = {name: value for name, value in os.environ.items() if name != "VLLM_ENABLE_V1_MULTIPROCESSING"}
        self.server = subprocess.Popen([*command, "--middleware", "heedful.vllm.http.Heed"], env=environment)
        self.url = f"http://127.0.0.1:{port}"
        while self.server.poll() is None:
            time.sleep(0.5)
            try:
                if httpx.get(f"{self.url}/health").status_code == 200:
                    return
            except httpx.TransportError:
                continue
        raise RuntimeError("vLLM did not start")

    def __del__(self) -> None:
        self.server.kill()

    async def __call__(self, request: Request) -> StreamingResponse:
        client = httpx.AsyncClient(base_url=self.url, timeout=None)
        kind = {"content-type": "application/json"}
        asked = client.build_request("POST", request.url.path, content=await request.body(), headers=kind)
        answer = await client.send(asked, stream=True)
        headers = {"content-type": answer.headers["content-type"], "x-node": ray.get_runtime_context().get_node_id()}
        return StreamingResponse(answer.aiter_raw(), answer.status_code, headers)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    from ray.cluster_utils import Cluster

    small = {"num_cpus": 2, "object_store_memory": 80_000_000}
    nodes = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
    try:
        nodes.add_node(**small)
        ray.init(address=nodes.address, log_to_driver=False)
        serve.start(http_options={"port": 8765})
        options = {"num_replicas": 2, "max_replicas_per_node": 1, "ray_actor_options": {"num_cpus": 1}}
        deployed = serve.deployment(**options)(Vllm)
        serve.run(deployed.bind(str(models.default_model_path(progress=False))))
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
    answers = [httpx.post(asked, json=body, timeout=None) for _ in range(8)]
    assert {answer.json()["choices"][0]["message"]["content"] for answer in answers} == {wanted}
    assert len({answer.headers["x-node"] for answer in answers}) == 2
    with httpx.stream("POST", asked, json={**body, "stream": True}, timeout=None) as streamed:
        chunks = [json.loads(line[6:]) for line in streamed.iter_lines() if line.startswith("data: {")]
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks) == wanted
    assert httpx.post(asked, json={**body, "heedful": {"method": "spotlight"}}, timeout=None).status_code == 400
