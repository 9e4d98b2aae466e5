"""The screen as a JSON file, and what was asked as a link. Reads with suspicion: both may come from anybody."""

from __future__ import annotations

import base64
import binascii
import re
import zlib

from pydantic import ValidationError

from heedful.errors import OptionError
from heedful.playground.checks import parse_checks
from heedful.playground.state import Inputs, Screen, in_a_line

LARGEST_FILE = 900_000  # bytes: a request's body holds it
LONGEST_LINK = 100_000  # characters
FRAGMENT = "#heed="
TOO_LARGE = "size:"  # with its bytes, what the browser sends in the place of a file that is too large to send
TOO_LARGE = "size:"  # what the browser sends in the place of a file that is, with its bytes


def to_json(screen: Screen) -> str:
    """The whole screen, answers and all; `from_json` gives it back unchanged. Raises `OptionError` if it is too big."""
    text = screen.model_dump_json()
    if len(text.encode()) > LARGEST_FILE:
        raise OptionError(f"this screen would be a file of more than {LARGEST_FILE} bytes; ask for shorter answers")
    return text


def from_json(text: str) -> Screen:
    """What `to_json` wrote. Raises `OptionError`, one line, where the text is anything else."""
    size = _size(text)
    if size > LARGEST_FILE:
        raise OptionError(f"the file has {size} bytes; at most {LARGEST_FILE} are read")
    try:
        screen = Screen.model_validate_json(text)
    except ValidationError as error:
        raise OptionError(f"not a file of this playground: {in_a_line(error)}") from error
    parse_checks(screen.inputs.checks)
    return screen


def _size(text: str) -> int:
    """Bytes of the file."""
    told = re.fullmatch(f"{TOO_LARGE}([0-9]{{1,18}})", text)
    try:
        return int(told[1]) if told else len(text.encode())
    except UnicodeEncodeError:
        raise OptionError("not a file of this playground: it holds half a surrogate pair") from None


def to_link(inputs: Inputs, model: str) -> str:
    """The fragment of a link that asks for the same; answers are not in it. Fragments are never sent to a server.

    Raises `OptionError` where the texts are too long for a link.
    """
    text = Screen(model=model, inputs=inputs).model_dump_json(exclude_defaults=True)
    link = FRAGMENT + base64.urlsafe_b64encode(zlib.compress(text.encode(), 9)).decode().rstrip("=")
    if len(link) > LONGEST_LINK:
        raise OptionError("the texts are too long for a link; save a file instead")
    return link


def from_link(fragment: str) -> Screen:
    """What `to_link` wrote. Raises `OptionError`, one line, where the fragment is anything else."""
    code = fragment.removeprefix(FRAGMENT)
    if len(code) > LONGEST_LINK:
        raise OptionError(f"the link has {len(code)} characters; at most {LONGEST_LINK} are read")
    try:
        packed = base64.b64decode(code + "=" * (-len(code) % 4), altchars=b"-_", validate=True)
        unpacking = zlib.decompressobj()
        data = unpacking.decompress(packed, LARGEST_FILE)
        text = data.decode()
    except (binascii.Error, ValueError, zlib.error) as error:
        raise OptionError("the link is damaged: ask for it anew") from error
    if not unpacking.eof:
        raise OptionError("the link is damaged, or far too long: ask for it anew")
    screen = from_json(text)
    if screen.answers:
        raise OptionError("the link is damaged: it holds answers, which only files do")
    return screen
