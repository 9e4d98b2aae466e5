"""What answers must say of themselves: model, versions, commit, machine; and whether a run may be gone on with."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers

from heedful.errors import OptionError
from heedful.recipe import Method, ModelShape, recipe_of

if TYPE_CHECKING:
    from heedful.generate import LM


@dataclass(frozen=True)
class Facts:
    """What a run notes of the model that answers, wherever it is: `weights` is a fingerprint, `dtype` torch's name."""

    shape: ModelShape
    weights: str
    dtype: str
    hardware: str

    def settings(self) -> dict[str, Any]:
        """What may not change within a run; the hardware may."""
        return {"model": asdict(self.shape), "weights": self.weights, "dtype": self.dtype}

    def check(self, method: Method | None) -> None:
        """Raises `OptionError` where the method does not fit the model."""
        recipe = recipe_of(method)
        if recipe is not None:
            recipe.check(self.shape)


def facts_of(lm: LM) -> Facts:
    """The facts of a model that is loaded here."""
    threads = torch.get_num_threads()
    hardware = f"{_processor(lm.engine.device)}, {threads} thread{'s' * (threads > 1)}, {lm.engine.device.type}"
    return Facts(lm.engine.shape, fingerprint(lm.model), str(lm.model.dtype), hardware)


def _processor(device: torch.device) -> str:
    """The GPU's name, or the CPU's with its architecture as far as the system tells it."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    found: list[str] = []
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        found = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = found[0] if found else platform.processor()
    return f"{name} ({platform.machine()})" if name and name != platform.machine() else platform.machine()


def fingerprint(model: Any) -> str:
    """Tells two models of one name and shape apart, by a few numbers of each weight."""
    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        digest.update(name.encode())
        digest.update(weight.detach().flatten()[:8].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:12]


def described(method: Method | None) -> dict[str, Any]:
    """The method as JSON values, where there is none too."""
    return method.describe() if method is not None else {"name": "none"}


def header(settings: dict[str, Any], hardware: str) -> dict[str, Any]:
    """The head of a run with these `settings`, which begins now."""
    return {
        "settings": settings,
        "versions": _versions(),
        "commit": _commit(),
        "hardware": hardware,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _versions() -> dict[str, str]:
    """Of all that an answer or a verdict depends on."""
    from heedful import __version__  # not before the package is whole

    found = {"python": platform.python_version(), "torch": torch.__version__}
    found |= {"transformers": transformers.__version__, "heedful": __version__}
    for name in ("lm_eval", "nltk", "langdetect", "vllm"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _commit() -> str | None:
    """The commit of Heedful's own checkout, "-dirty" where files differ from it; None where it is not run from one."""
    home = Path(__file__).parent
    if not _git(home, "ls-files", "--", Path(__file__).name):  # installed somewhere inside another repository
        return None
    is_dirty = _git(home, "status", "--porcelain", "--untracked-files=no", "--", ".")
    commit = _git(home, "rev-parse", "HEAD")
    return f"{commit}-dirty" if commit and is_dirty else commit


def _git(folder: Path, *command: str) -> str | None:
    """What git prints, None where it cannot tell."""
    try:
        found = subprocess.run(["git", "-C", str(folder), *command], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()


def merged(path: Path, found: dict[str, Any], wanted: dict[str, Any], place: str = "--out") -> dict[str, Any]:
    """The header `found` at `path`, with the methods that are new in `wanted`.

    Raises `OptionError` where any other setting differs; `place` names what to choose another of.
    """
    before, now = found["settings"], wanted["settings"]
    changed = [name for name in now if name != "methods" and before.get(name) != now[name]]
    changed += [name for name, value in now["methods"].items() if before["methods"].get(name, value) != value]
    if changed:
        raise OptionError(f"{path} was begun with another {changed[0]}: use the same, or choose another {place}")
    versions = {name: both(found["versions"].get(name), value) for name, value in wanted["versions"].items()}
    joined = {name: both(found[name], wanted[name]) for name in ("commit", "hardware")}
    settings = {**before, "methods": {**before["methods"], **now["methods"]}}
    return {**found, **joined, "versions": versions, "settings": settings}


def both(first: Any, second: Any) -> Any:
    """What two parts of a run were made with, where it differs both, each named once."""
    if first is None or first == second:
        return second
    return "; ".join(dict.fromkeys([*str(first).split("; "), *str(second).split("; ")]))
