"""Modules import only what stands left of them in the design; importing the package changes nothing."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent / "src" / "heedful"
ORDER = [
    {"errors"},
    {"checks", "models", "constraints", "journal"},
    {"spans", "trace", "text"},
    {"detection"},
    {"prompt"},
    {"data"},
    {"gate", "schedule", "sampling"},
    {"recipe"},
    {"steerers", "contrast"},
    {"directer", "displacement"},
    {"methods"},
    {"engine"},
    {"ranking", "answer", "held", "alternatives"},
    {"decode", "scoring"},
    {"extraction"},
    {"generate"},
    {"provenance"},
    {"hf", "comparison", "harness", "chat"},
    {"batch", "eval"},
    {"metrics"},
    {"scorebook"},
    {"profiling", "tuning", "serve", "ray"},
    {"playground", "vllm"},
    {"bench"},
    {"cli"},
]
LATER = {("generate", "chat")}  # `lm.chat()` is how a conversation begins; imported when it is called
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "heedful":
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
    return found - {"__version__"}


def test_imports_go_one_way() -> None:
    for path in ROOT.rglob("*.py"):
        module = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if module == "__init__":
            continue
        wrong = [name for name in imported(path) if name != module and RANK[name] >= RANK[module]]
        wrong = [name for name in wrong if (module, name) not in LATER]
        assert not wrong, f"{path} imports {wrong}, which stand to its right"


def test_no_isinstance_in_engine_gate_or_decode() -> None:
    for path in [
        *(ROOT / "engine").glob("*.py"),
        ROOT / "gate.py",
        ROOT / "decode.py",
        ROOT / "answer.py",
        ROOT / "schedule.py",
    ]:
        names = [n.id for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Name)]
        kinds = [line for line in path.read_text().splitlines() if "isinstance" in line]
        assert not any(word in line for line in kinds for word in ("Scaling", "Directer", "method")), names


def test_importing_changes_nothing() -> None:
    code = (
        "import os, sys, warnings, logging\n"
        "import transformers, torch\n"
        "from transformers import AttentionInterface as A\n"
        "def state():\n"
        "    return dict(os.environ), list(warnings.filters), sorted(A._global_mapping), torch.get_num_threads()\n"
        "a = state()\n"
        "import heedful\n"
        "b = state()\n"
        "assert a == b\n"
        "assert not {'fastapi', 'gradio', 'vllm', 'ray', 'pyarrow', 'lm_eval', 'inspect_ai'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


EXTRAS = [
    *("scipy", "lm_eval", "matplotlib", "openai", "datasets", "nltk", "langdetect", "syllapy"),
    *("fastapi", "uvicorn", "starlette", "prometheus_client", "pydantic", "inspect_ai", "torchao"),
    *("gradio", "pyarrow", "ray"),
]


def test_the_command_needs_no_extra() -> None:
    """Whoever has installed heedful alone can run it: the modules of extras are imported when they are used."""
    parts = [
        ROOT / "serve",
        ROOT / "vllm" / "http.py",
        ROOT / "playground",
        ROOT / "harness",
        ROOT / "bench" / "serve.py",
        ROOT / "eval" / "figures.py",
    ]
    for path in ROOT.rglob("*.py"):
        if any(path == part or part in path.parents for part in parts):
            continue
        for node in ast.parse(path.read_text()).body:
            named = node.names if isinstance(node, ast.Import) else []
            modules = [alias.name for alias in named]
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {module.split(".")[0] for module in modules} & set(EXTRAS), path


def test_the_command_starts_without_the_models_code() -> None:
    """Half of what help or an error would take; and torchao's complaints would come before they can be silenced."""
    code = (
        "import sys\n"
        "import heedful.cli\n"
        "heavy = {'transformers.modeling_utils', 'transformers.core_model_loading', 'torchao', 'torch._dynamo'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
