"""One thread, no network, and the built-in model once a session."""

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

import heedful
from heedful import models


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def default_model_path() -> Path:
    return models.default_model_path(progress=False)


@pytest.fixture(scope="session")
def lm() -> heedful.LM:
    """The built-in model in float32: what parity is judged in."""
    return heedful.load(dtype="float32")


@pytest.fixture(scope="session")
def tiny(lm: heedful.LM) -> heedful.LM:
    """Random weights under the default model's tokenizer and chat template: text of no sense, in milliseconds."""
    from serving import tiny_lm

    return tiny_lm(lm.tokenizer)
