"""The page: Gradio's fields and buttons, and what happens when they are used. All thinking is done elsewhere."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any

import gradio as gr

from heedful.errors import HeedfulError
from heedful.methods import NAMES
from heedful.playground import charts, render
from heedful.playground.asking import ask, check_length, owner_of
from heedful.playground.checks import Check, Verdict, parse_checks
from heedful.playground.examples import EXAMPLES
from heedful.playground.exchange import FRAGMENT, from_json, from_link, to_json, to_link
from heedful.playground.fields import Fields, put
from heedful.playground.marks import mark_found
from heedful.playground.state import Column, Inputs, Screen, inputs_of
from heedful.serve.service import Service

TITLE = "Heedful playground"
ABOUT = "What steering does to an answer, token by token. An example to begin with:"
READY = "Mark what matters, choose methods, press Run (Ctrl+Enter)."
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
MOST_SESSIONS = 64  # whose last answers are kept, for Save file
MOST_EVENTS = 256  # that wait; beyond, Gradio says that the queue is full
RUN = "run"  # what the page is told when it should run by itself


class Page:
    """Everything the page can do, over one running server."""

    def __init__(self, service: Service) -> None:
        self.service = service

    def screen(self, inputs: Inputs, columns: Sequence[Column], model: str | None = None) -> Screen:
        """What is on the screen now; `model` made it, None for the one that is here."""
        name = self.service.config.model_name if model is None else model
        return Screen(model=name, inputs=inputs, answers=tuple(columns))

    def saved(self, inputs: Inputs, shown: Screen | None) -> tuple[Screen, str]:
        """What *Save file* writes of the fields and of what is shown, and the words for it.

        Answers go with the inputs that made them. `shown` None: nothing is, or it was held no longer.
        """
        if shown is None or not shown.answers:
            return self.screen(inputs, ()), "Saved what is asked; the file holds no answers, run again to have some."
        kept = shown.model_copy(update={"inputs": shown.inputs.model_copy(update={"checks": inputs.checks})})
        if kept.inputs == inputs:
            return kept, "Saved."
        return kept, "Saved the answers with what they answer; what was changed since is not in the file."

    async def preview(self, system: str, prompt: str, owner: str) -> str:
        """The steered tokens, or what is wrong with the marks."""
        if not (system.strip() or prompt.strip()):
            return render.note("Type a prompt.")
        try:
            messages = inputs_of(system=system, prompt=prompt).messages
            return render.preview(await self.service.encode(messages, 1, owner))
        except HeedfulError as error:
            return render.note(str(error), is_error=True)

    async def find(self, system: str, prompt: str) -> tuple[Any, Any, str]:
        """Marks the instructions that are found."""
        try:
            marked = await asyncio.to_thread(mark_found, system, prompt)
        except HeedfulError as error:
            return gr.skip(), gr.skip(), render.note(str(error), is_error=True)
        found = {0: "No further instruction was found.", 1: "1 instruction was found and marked."}
        told = found.get(marked.num_found, f"{marked.num_found} instructions were found and marked.")
        return marked.system, marked.prompt, render.note(told)

    async def run(self, inputs: Inputs, owner: str) -> AsyncGenerator[tuple[Any, ...], None]:
        """Answers, figures, screen and note, again and again as they grow."""
        columns: tuple[Column, ...] = ()
        try:
            checks = await asyncio.to_thread(parse_checks, inputs.checks)
            async with aclosing(ask(self.service, inputs, owner)) as looks:
                async for columns in looks:
                    count = sum(len(column.tokens) for column in columns)
                    yield self._shown(inputs, columns, [], f"Answering: {count} tokens so far …")
            verdicts = await asyncio.to_thread(judged, checks, columns)
            yield self._shown(inputs, columns, verdicts, "Done. Point at a token, or walk with the arrow keys.")
        except HeedfulError as error:
            yield gr.skip(), gr.skip(), gr.skip(), render.note(str(error), is_error=True)

    async def open(self, text: str) -> tuple[Inputs, tuple[Any, ...], str] | str:
        """What a file or a link says: inputs, what `run` would show, and `RUN` where it should; or what is wrong."""
        try:
            screen = await asyncio.to_thread(from_link if text.startswith(FRAGMENT) else from_json, text)
            checks = await asyncio.to_thread(parse_checks, screen.inputs.checks)
            check_length(self.service, screen.inputs)
        except HeedfulError as error:
            return str(error)
        here = self.service.config.model_name
        other = "" if screen.model in ("", here) else f" They were made with {screen.model}; this is {here}."
        verdicts = await asyncio.to_thread(judged, checks, screen.answers)
        told = ("Opened." if screen.answers else "Opened: answering …") + other
        made_with = screen.model or here
        shown = await asyncio.to_thread(self._shown, screen.inputs, screen.answers, verdicts, told, made_with)
        return screen.inputs, shown, "" if screen.answers else RUN

    def _shown(
        self,
        inputs: Inputs,
        columns: Sequence[Column],
        verdicts: Sequence[Sequence[Verdict]],
        told: str,
        model: str | None = None,
    ) -> tuple[str, str, Screen, str]:
        screen = self.screen(inputs, columns, model)
        return render.answers(columns, verdicts), charts.figures(columns), screen, render.note(told)


def judged(checks: Sequence[Check], columns: Sequence[Column]) -> list[list[Verdict]]:
    """Each column's verdicts; may take a while, each pattern at most its time limit."""
    return [[check.verdict(column.text) for check in checks] for column in columns]


def build(service: Service) -> gr.Blocks:
    """The page over a running server; `mount` puts it there."""
    page = Page(service)
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True) as blocks:
        gr.HTML(f"<h1>{TITLE}</h1><p>{ABOUT}</p>", elem_id="hp-title")
        chosen = _example_buttons()
        fields, marking = _inputs(service)
        buttons = _actions()
        out = Outputs()
        _wire_marks(page, fields, marking, out)
        _wire_run(page, fields, buttons, out)
        _wire_exchange(page, fields, buttons, out, blocks)
        for button, example in zip(chosen, EXAMPLES, strict=True):
            button.click(lambda inputs=example.inputs: put(inputs), None, fields.all, **QUIET)
    blocks.queue(max_size=MOST_EVENTS, default_concurrency_limit=4)
    blocks.state_session_capacity = MOST_SESSIONS
    # Of its last 10,000 events Gradio makes a table after each event, which nobody can see here.
    blocks._queue.ANALYTICS_MAX_EVENTS, blocks._queue.ANAYLTICS_CACHE_FREQUENCY = 1, sys.maxsize
    return blocks


class Outputs:
    """Where answers come out. `carrier` takes text between Python and the browser, and is never seen."""

    def __init__(self) -> None:
        self.note = gr.HTML(render.note(READY), elem_id="hp-note")
        gr.HTML(render.legend())
        self.answers = gr.HTML(render.answers((), ()), elem_id="hp-answers")
        self.figures = gr.HTML("", elem_id="hp-figures")
        self.screen = gr.State(None)
        self.carrier = gr.Textbox(visible=False)

    @property
    def shown(self) -> list[Any]:
        """What `Page.run` gives, in its order."""
        return [self.answers, self.figures, self.screen, self.note]


def _example_buttons() -> list[gr.Button]:
    with gr.Row(elem_id="hp-examples"):
        return [gr.Button(example.name, size="sm", scale=0, min_width=90) for example in EXAMPLES]


def _inputs(service: Service) -> tuple[Fields, dict[str, Any]]:
    with gr.Row():
        with gr.Column(scale=3, min_width=300):
            texts = Fields.texts()
            with gr.Row():
                heed = gr.Button("Heed selection (Alt+M)", elem_id="hp-heed", size="sm", min_width=150)
                find = gr.Button("Find them", elem_id="hp-find", size="sm", min_width=90)
            preview = gr.HTML("", elem_id="hp-preview")
            checks = Fields.user_checks()
        with gr.Column(scale=2, min_width=300):
            names = tuple(dict.fromkeys((service.config.method, *NAMES)))
            fields = Fields.of(texts, checks, names, service.config.max_tokens)
    return fields, {"heed": heed, "find": find, "preview": preview}


def _actions() -> dict[str, gr.Button]:
    with gr.Row():
        return {
            "run": gr.Button("Run (Ctrl+Enter)", variant="primary", elem_id="hp-run", min_width=130),
            "stop": gr.Button("Stop", elem_id="hp-stop", min_width=80),
            "save": gr.Button("Save file", elem_id="hp-save", min_width=80),
            "open": gr.Button("Open file", elem_id="hp-open", min_width=80),
            "link": gr.Button("Copy link", elem_id="hp-link", min_width=80),
            "opened": gr.Button("Open link", visible="hidden", elem_id="hp-opened"),
        }


def _wire_marks(page: Page, fields: Fields, marking: dict[str, Any], out: Outputs) -> None:
    async def preview(system: str, prompt: str, request: gr.Request) -> str:
        return await page.preview(system, prompt, owner_of(request.request.scope, request.session_hash))

    texts = [fields.system, fields.prompt]
    marking["heed"].click(None, None, out.note, js="() => heedful.mark()", **QUIET)
    marking["find"].click(page.find, texts, [*texts, out.note], **QUIET)
    gr.on(
        [fields.system.change, fields.prompt.change],
        preview,
        texts,
        marking["preview"],
        trigger_mode="always_last",
        **QUIET,
    )


def _wire_run(page: Page, fields: Fields, buttons: dict[str, gr.Button], out: Outputs) -> None:
    async def run(values: dict[Any, Any], request: gr.Request) -> AsyncGenerator[tuple[Any, ...], None]:
        try:
            inputs = fields.read(values)
        except HeedfulError as error:
            yield gr.skip(), gr.skip(), gr.skip(), render.note(str(error), is_error=True)
            return
        owner = owner_of(request.request.scope, request.session_hash)
        async with aclosing(page.run(inputs, owner)) as looks:
            async for look in looks:
                yield look

    # The engine says itself how many answers it has room for.
    running = buttons["run"].click(run, set(fields.all), out.shown, concurrency_limit=None, **QUIET)
    # Said at once, and again when no more answers can come: what was under way would have the last word.
    buttons["stop"].click(None, None, out.note, cancels=[running], js="() => heedful.stop()", **QUIET)
    running.then(None, None, out.note, js="() => heedful.ended()", **QUIET)


def _wire_exchange(page: Page, fields: Fields, buttons: dict[str, gr.Button], out: Outputs, blocks: gr.Blocks) -> None:
    name = page.service.config.model_name

    def save(values: dict[Any, Any]) -> tuple[Any, str]:
        def written() -> tuple[str, str]:
            screen, words = page.saved(fields.read(values), values[out.screen])
            return to_json(screen), words

        return told(written)

    def link(values: dict[Any, Any]) -> tuple[Any, str]:
        return told(lambda: (to_link(fields.read(values), name), "The address of this page is the link now."))

    async def open_text(text: str) -> list[Any]:
        opened = await page.open(text) if text else ""
        if isinstance(opened, str):
            told = render.note(opened, is_error=True) if opened else gr.skip()
            return [gr.skip()] * (len(fields.all) + len(out.shown) - 1) + [told, ""]
        inputs, shown, flag = opened
        return [*put(inputs), *shown, flag]

    every = [*fields.all, *out.shown, out.carrier]
    saved = buttons["save"].click(save, {*fields.all, out.screen}, [out.carrier, out.note], **QUIET)
    saved.then(None, out.carrier, None, js="(text) => heedful.save(text)", **QUIET)
    linked = buttons["link"].click(link, set(fields.all), [out.carrier, out.note], **QUIET)
    linked.then(None, out.carrier, out.note, js="(text) => heedful.setLink(text)", **QUIET)
    by_file = buttons["open"].click(open_text, out.carrier, every, js="() => heedful.readFile()", **QUIET)
    by_link = buttons["opened"].click(open_text, out.carrier, every, js="() => heedful.readLink()", **QUIET)
    by_load = blocks.load(open_text, out.carrier, every, js="() => heedful.readLink()", **QUIET)
    for opened in (by_file, by_link, by_load):
        opened.then(None, out.carrier, None, js="(flag) => heedful.runIf(flag)", **QUIET)


def told(make: Callable[[], tuple[str, str]]) -> tuple[str, str]:
    """A text for the browser, empty where it cannot be made, and what is said about it: `make` gives both."""
    try:
        text, words = make()
        return text, render.note(words)
    except HeedfulError as error:
        return "", render.note(str(error), is_error=True)
