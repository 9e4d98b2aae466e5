"""One model over two nodes, by vLLM's own means: both on this machine, a tensor-parallel rank each."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import tiny
from tiny import case, expected, generated, plainly

SECOND = """
import sys

from vllm.entrypoints.cli.serve import run_headless
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser

args = make_arg_parser(FlexibleArgumentParser()).parse_args(sys.argv[1:])
args.api_server_count = 0
if __name__ == "__main__":
    run_headless(args)
"""


@pytest.mark.one_runner
def test_two_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    monkeypatch.setenv("VLLM_HOST_IP", "127.0.0.1")
    folder = tmp_path / "llama"
    model = tiny.build("llama")
    model.save_pretrained(folder)
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
    script = tmp_path / "second.py"
    script.write_text(SECOND)
    over = {"tensor_parallel_size": 2, "distributed_executor_backend": "mp", "nnodes": 2}
    over |= {"master_addr": "127.0.0.1", "master_port": port}
    command = [sys.executable, str(script), "--model", str(folder), "--headless", "--node-rank", "1"]
    command += ["--skip-tokenizer-init", "--dtype", "float32", "--enforce-eager", "--max-model-len", "512"]
    command += ["--no-enable-prefix-caching"]
    command += [part for name, value in over.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    with (tmp_path / "second.log").open("w") as log:
        environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
        second = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            llm = tiny.llm(folder, node_rank=0, **over)
            cases = [case(seed, new=12) for seed in range(4)]
            wanted = expected(model, cases)
            assert wanted != expected(model, plainly(cases))
            assert generated(llm, cases) == wanted
            llm.llm_engine.engine_core.shutdown()
        finally:
            second.terminate()
            second.wait(30)
