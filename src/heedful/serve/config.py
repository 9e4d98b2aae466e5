"""What the operator of a server settles: limits, who may ask, where it listens, and what is heeded by default."""

from __future__ import annotations

import hmac
import ipaddress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal

from heedful.checks import choice, finite, whole
from heedful.errors import OptionError

HEEDS = ("tags", "system", "auto")


@dataclass(frozen=True)
class Config:
    """Settings of a server; every one has a bound. Raises `OptionError` where a value lies outside its range.

    `heed`: "tags" heeds what `<heed>` tags mark, "system" the system and developer messages too, "auto" whatever is
    found to be an instruction. `method`: the steering
    method of requests that name none. `max_tokens`: the longest answer, and what a chat request gets that names no
    limit. `seconds`: for one request, its time in the queue included. `grace_seconds`: for what runs at shutdown.
    """

    model_name: str
    heed: Literal["tags", "system", "auto"] = "tags"
    method: str = "directer"
    max_tokens: int = 2048
    max_choices: int = 16
    max_body_bytes: int = 1 << 20
    seconds: float = 600.0
    grace_seconds: float = 30.0

    def __post_init__(self) -> None:
        choice("heed", self.heed, HEEDS)
        whole("max_tokens", self.max_tokens, low=1)
        whole("max_choices", self.max_choices, low=1)
        whole("max_body_bytes", self.max_body_bytes, low=1024)
        finite("seconds", self.seconds, low_open=True)
        finite("grace_seconds", self.grace_seconds)


class Keys:
    """The API keys that are let in; kept as digests, compared in constant time. False where everybody is let in."""

    def __init__(self, keys: list[str]) -> None:
        self._digests = [_digest(key) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def owner(self, key: str) -> str | None:
        """A name for the key's holder, None where the key is not known."""
        given = _digest(key)
        found = [hmac.compare_digest(given, digest) for digest in self._digests]
        return f"key {found.index(True)}" if any(found) else None


def _digest(key: str) -> bytes:
    return sha256(key.encode("utf-8", "surrogateescape")).digest()


def read_keys(path: Path | None) -> Keys:
    """The keys of a file, one a line; blank lines and lines that begin with # do not count.

    Raises `OptionError` where the file cannot be read, names no key, or a key holds what a header cannot carry.
    """
    if path is None:
        return Keys([])
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"cannot read the API keys: {error}") from error
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise OptionError(f"no API key is in {path}; write one a line")
    for number, key in enumerate(keys, start=1):
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise OptionError(f"key {number} in {path} holds a blank or a character outside ASCII")
    return Keys(keys)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def refuse_open_door(host: str, has_keys: bool, is_insecure: bool) -> None:
    """Raises `OptionError` where other machines could ask without a key and nobody said that they may."""
    if not (is_loopback(host) or has_keys or is_insecure):
        raise OptionError(
            f"{host} can be reached from other machines: name the keys that are let in by --api-key-file, "
            "or say --insecure to let everybody in"
        )
