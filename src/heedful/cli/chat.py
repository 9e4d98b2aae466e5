"""`heedful chat`: a conversation in the terminal, in which marked instructions hold."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from heedful.chat import Chat
from heedful.cli import options
from heedful.errors import HeedfulError, OptionError, SpanError
from heedful.generate import LM
from heedful.methods import parse_method
from heedful.sampling import Sampling
from heedful.spans import find_substring, parse_tags

HELP = """\
/heed TEXT     hold TEXT: where you said it, else it goes with your next message
/retire TEXT   let the held instruction that contains TEXT hold no longer
/show          what is held, and how much of the context is used
/compare       the latest answer once more, plainly and steered
/undo          take the latest turn back
/save FILE     write the conversation; /load FILE goes on with one
/quit          leave (so does the end of input)"""


def command(
    system: options.System = None,
    method: Annotated[str, typer.Option(help=options.METHOD)] = "directer",
    settings: options.SettingsFile = None,
    policy: Annotated[
        str | None,
        typer.Option(
            help="What is heeded: all marked so far, the latest, or the system's.  [default: as saved, or all]"
        ),
    ] = None,
    when_full: Annotated[str, typer.Option(help="error, or drop: the oldest turns that mark nothing held.")] = "error",
    load: Annotated[Path | None, typer.Option(help="Go on with a saved conversation.")] = None,
    max_new_tokens: options.NewTokens = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="0 keeps all.")] = 0,
    top_p: Annotated[float, typer.Option(help="1 keeps all.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="For sampling.")] = None,
    model: options.Model = None,
    device: options.Device = "cpu",
    dtype: options.Dtype = "auto",
) -> None:
    """Talk to the model. What <heed>…</heed> marks, and the system message, holds from turn to turn; /help for more."""
    given: dict[str, Any] = {
        "method": parse_method(options.spelled(method, settings)),
        "when_full": when_full,
        "max_new_tokens": max_new_tokens,
        "sampling": Sampling(temperature, top_k, top_p, seed),
    }
    if policy is not None:  # a saved conversation has its own
        given["policy"] = policy
    if load is not None and system is not None:
        raise OptionError("a saved conversation has its own system message: give --load or --system")
    lm = options.load_quietly(model, device, dtype)
    chat = Chat.load(lm, load, **given) if load is not None else Chat(lm, system=system, **given)
    Session(lm, chat, given, Console(highlight=False)).run(lines())


def lines() -> Iterator[str]:
    """What is typed, line by line, with a history where there is a terminal."""
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 (gives input() its history)
    while True:
        try:
            yield input("> " if is_terminal else "")
        except EOFError:
            return


class Session:
    """The loop: a line is a message or a command; an error is said, and the conversation goes on as it was."""

    def __init__(self, lm: LM, chat: Chat, given: dict[str, Any], console: Console) -> None:
        self.lm, self.chat, self.given, self.console = lm, chat, given, console
        self.pending: list[str] = []
        """Instructions that go with the next message."""
        self.commands: dict[str, Callable[[str], None]] = {
            "heed": self.heed,
            "retire": self.retire,
            "show": self.show,
            "compare": self.compare,
            "undo": self.undo,
            "save": self.save,
            "load": self.load,
            "help": lambda _: self.say(HELP),
        }

    def run(self, typed: Iterator[str]) -> None:
        """Until `/quit` or the end of input."""
        for line in typed:
            if line.strip() in ("/quit", "/exit"):
                return
            try:
                self.turn(line.strip())
            except HeedfulError as error:
                self.say(f"error: {error}", "red")
            except KeyboardInterrupt:  # while an answer comes; at the prompt it leaves
                self.console.print()
                self.say("stopped: the conversation is as it was")

    def turn(self, line: str) -> None:
        """One line."""
        if not line:
            return
        if not line.startswith("/"):
            self.send(line)
            return
        name, _, rest = line[1:].partition(" ")
        if name not in self.commands:
            raise OptionError(f"unknown command /{name}; /help lists them")
        self.commands[name](rest.strip())

    def say(self, text: str, style: str = "dim") -> None:
        """A line that is not the model's."""
        self.console.print(Text(text, style))

    def send(self, text: str) -> None:
        """A message, with the instructions that wait for it."""
        marked = "\n".join([text, *(f"<heed>{one}</heed>" for one in self.pending)])
        with contextlib.closing(self.chat.stream(marked)) as events:
            for event in events:
                self.console.print(Text(event.text), end="", soft_wrap=True)
        self.pending = []
        self.console.print()

    def heed(self, text: str) -> None:
        """Holds `text`."""
        if not text:
            raise OptionError("/heed needs the instruction's text")
        policy = self.chat.policy
        if any(m.role != "assistant" and find_substring(m.content, text) for m in self.chat.messages):
            self.say("held" if self.chat.heed(text) else f"marked, but not held: the policy is {policy!r}")
            return
        if parse_tags(f"<heed>{text}</heed>")[0] != text:
            raise SpanError("/heed takes the instruction's text without tags")
        if policy == "system":
            raise OptionError("the policy 'system' heeds the system message alone: start with --policy all or latest")
        self.pending.append(text)
        self.say("goes with your next message")

    def retire(self, text: str) -> None:
        """Lets an instruction go, or one that waits for the next message."""
        waiting = [one for one in self.pending if text and text in one]
        if not waiting or any(text in one for one in self.chat.held):
            self.chat.retire(text)
        self.pending = [one for one in self.pending if one not in waiting]
        self.show("")

    def show(self, _: str) -> None:
        """What is held, and how full the context is."""
        for one in self.chat.held:
            self.say(f"held: {one}")
        for one in self.pending:
            self.say(f"with the next message: {one}")
        if not (self.chat.held or self.pending):
            self.say("nothing is held: answers are plain")
        if self.chat.messages:
            used = len(self.lm.encode(self.chat.job().prompt, tags=False).token_ids)
            dropped = f", {self.chat.num_dropped} messages dropped" if self.chat.num_dropped else ""
            self.say(f"{used} of {self.lm.engine.context_length or 'any number of'} tokens used{dropped}")

    def compare(self, _: str) -> None:
        """The latest answer, plainly and steered."""
        plain, steered = self.chat.again()
        self.say("plain")
        self.console.print(Text(plain.text))
        self.say(str(steered.trace.method["name"]))
        self.console.print(Text(steered.text))

    def undo(self, _: str) -> None:
        """Takes the latest turn back."""
        self.chat.undo()
        self.say("taken back")

    def save(self, path: str) -> None:
        """Writes the conversation."""
        self.chat.save(_path(path))
        self.say(f"saved {path}")

    def load(self, path: str) -> None:
        """Goes on with a saved one."""
        self.chat = Chat.load(self.lm, _path(path), **self.given)
        self.say(f"{len(self.chat.messages)} messages")


def _path(text: str) -> Path:
    if not text:
        raise OptionError("name a file")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise OptionError(f"{text} names no file: {error}") from error
