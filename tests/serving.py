"""A real server in a thread, on a port of its own, and the clients that talk to it."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import openai
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

import families
import heedful
from heedful.serve import run
from heedful.serve.app import WebPage, create_app
from heedful.serve.config import Config, Keys
from heedful.serve.core import TransformersEngine
from heedful.serve.service import Service
from heedful.serve.storage import plan
from heedful.serve.worker import Limits

PROMPT = "Plan a trip to Japan. <heed>Do not use any commas.</heed>"
ASK: list[Any] = [{"role": "user", "content": PROMPT}]
PLAIN: list[Any] = [{"role": "user", "content": "Name three fruits."}]
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


def body(**more: Any) -> dict[str, Any]:
    """A good chat request, but for what is given."""
    return {"model": "m", "messages": ASK, "max_tokens": 4, **more}


@dataclass
class Running:
    """A server that answers at `url`. `pause`: seconds before each of its steps, so that others can look at it."""

    url: str
    engine: TransformersEngine
    app: Any
    server: run.Server
    pause: float = 0.0
    clients: list[Any] = field(default_factory=list)

    def client(self, **more: Any) -> openai.OpenAI:
        client = openai.OpenAI(base_url=f"{self.url}/v1", **{"api_key": "none", "max_retries": 0, **more})
        self.clients.append(client)
        return client

    def http(self, **more: Any) -> httpx.Client:
        client = httpx.Client(base_url=self.url, timeout=30, **more)
        self.clients.append(client)
        return client

    def wait(self, holds: Callable[[Any], bool], seconds: float = 20.0) -> None:
        """Waits until `holds(status)`; fails where it does not."""
        eventually(lambda: holds(self.engine.status()), seconds)


def eventually(holds: Callable[[], bool], seconds: float = 20.0) -> None:
    """Waits until it holds; fails where it does not in `seconds`, which are for a machine that is busy."""
    begun = time.monotonic()
    while not holds():
        assert time.monotonic() - begun < seconds
        time.sleep(0.002)


@contextmanager
def running(
    lm: heedful.LM,
    *,
    keys: tuple[str, ...] = (),
    context: int = 512,
    limits: Limits | None = None,
    page: WebPage | None = None,
    **config: Any,
) -> Iterator[Running]:
    limits = limits or Limits(max_running=4, max_queue=16)
    engine = TransformersEngine(lm, plan(lm.engine, limits.max_running, context), limits)
    service = Service(lm, engine, Config(**{"model_name": "m", "max_tokens": 500, **config}))
    app = create_app(service, Keys(list(keys)), page=page)
    bound = run.listen("127.0.0.1", 0)
    server = run.Server(app, engine, 2.0)
    thread = threading.Thread(target=lambda: server.run(sockets=[bound]))
    here = Running(run.address(bound), engine, app, server)
    step = engine._decoder.step

    def pausing() -> Any:
        time.sleep(here.pause)
        return step()

    engine._decoder.step = pausing  # type: ignore[method-assign]
    engine.start()
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.005)
        yield here
    finally:
        for client in here.clients:
            client.close()
        server.should_exit = True
        thread.join(timeout=30)
        engine.stop()
        bound.close()
        assert not thread.is_alive()


def tiny_lm(tokenizer: Any) -> heedful.LM:
    """Random weights under the default model's tokenizer and chat template: text of no sense, in milliseconds."""
    config = LlamaConfig(
        **{
            **families.FIVE_LAYERS,
            "num_hidden_layers": 3,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 4096,
        }
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for path, parameter in model.named_parameters():
            families.redraw(path, parameter, 1.0)
    return heedful.wrap(model.eval(), tokenizer)
