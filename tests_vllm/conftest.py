"""One thread, one process, tiny random models on disk; set before vLLM is imported, which reads all of it once."""

import os
import sys
import tempfile
from pathlib import Path

import pytest

os.environ.update(
    HF_HUB_OFFLINE="1",
    OMP_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
    VLLM_CPU_KVCACHE_SPACE="1",
    VLLM_CPU_OMP_THREADS_BIND="nobind",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_LOGGING_LEVEL="WARNING",
    VLLM_NO_USAGE_STATS="1",
)
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--interpreted", action="store_true", help="vLLM as on GPUs, through Triton's interpreter")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "one_runner: does not hang on which runner vLLM has, or is slow; run with V1 alone"
    )
    if config.getoption("--interpreted"):
        import interpreted

        folder = tempfile.TemporaryDirectory(prefix="interpreted-")
        config.add_cleanup(folder.cleanup)
        interpreted.start(Path(folder.name))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--interpreted"):
        left = [item for item in items if not item.get_closest_marker("one_runner")]
        config.hook.pytest_deselected(items=[item for item in items if item not in left])
        items[:] = left


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """What was asked for may be all of the other run's."""
    if session.config.getoption("--interpreted") and exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:
        session.exitstatus = pytest.ExitCode.OK
