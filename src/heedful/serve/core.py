"""The transformers model behind the protocol: the core's decoder with its slots, and the rankings of late."""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import replace

from heedful.answer import Answer, Request
from heedful.decode import Decoder
from heedful.errors import OptionError
from heedful.generate import LM
from heedful.ranking import Measured
from heedful.recipe import Method
from heedful.serve.protocol import Settings
from heedful.serve.storage import Storage
from heedful.serve.worker import Limits, ThreadedEngine, Ticket
from heedful.spans import TokenSpan

KEPT_RANKINGS = 1024
PREFILL_TOKENS = {True: 128, False: 1024}  # on a CPU, elsewhere


class Rankings:
    """The rankings that were measured last, at most `size` of them, each by all that it depends on.

    That is the prompt up to where its marked tokens came to be marked, those tokens, and the method: the turns of a
    conversation share one ranking until other tokens are marked, and no answer depends on who asked before.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._kept: OrderedDict[Hashable, Measured] = OrderedDict()

    def find(self, request: Request) -> Measured | None:
        """What is known of the request's instruction."""
        key = self._key(request)
        if key not in self._kept:
            return None
        self._kept.move_to_end(key)
        return self._kept[key]

    def keep(self, request: Request, answer: Answer) -> None:
        """Notes what was measured for the `answer` to `request`."""
        if self.size and answer.sensitivity and (key := self._key(request)) is not None:
            self._kept[key] = Measured(answer.ranking, answer.sensitivity)
            if len(self._kept) > self.size:
                self._kept.popitem(last=False)

    def _key(self, request: Request) -> Hashable:
        """What its ranking hangs on, in few bytes; None where none is measured, or it cannot be told from others."""
        recipe = request.recipe
        if recipe is None or not recipe.needs_probe or recipe.displace is not None:
            return None
        read = request.token_ids[: request.rank_at]
        told = (array("q", read), array("q", request.positions), array("d", request.weights))
        return hashlib.sha256(b"|".join(part.tobytes() for part in told)).digest(), len(read), recipe


class TransformersEngine(ThreadedEngine):
    """Continuous batching of `lm` in a thread of its own; see `protocol.Engine`."""

    def __init__(self, lm: LM, storage: Storage, limits: Limits) -> None:
        """`storage` says how many slots of what length there are; they are allocated here."""
        self._lm = lm
        self._core = Decoder(
            lm.engine,
            storage.num_slots,
            storage.capacity,
            limits.max_running,
            prefill_tokens=limits.prefill_tokens or PREFILL_TOKENS[lm.engine.device.type == "cpu"],
            reuses_prefixes=limits.reuses_prefixes,
            fails_alone=True,
        )
        super().__init__(self._core, storage.context, limits)
        self._rankings = Rankings(KEPT_RANKINGS if limits.reuses_prefixes else 0)

    def check(self, method: Method) -> None:
        """Raises `OptionError` where the method does not fit the model, or needs more slots than there are."""
        recipe = method.recipe()
        recipe.check(self._lm.shape)
        if recipe.contrast is not None and self._limits.max_running < 2:
            raise OptionError("the method needs two slots for each answer, and there is one: --max-batch 2 or more")

    def _request(self, tokens: tuple[int, ...], span: TokenSpan, settings: Settings) -> Request:
        request = self._lm.request_for(
            tokens,
            span,
            method=settings.method,
            max_new_tokens=settings.max_new_tokens,
            sampling=settings.sampling,
        )
        self._core.check(request)
        return replace(request, num_top=settings.num_top, num_alternatives=settings.num_alternatives)

    def _submit(self, request: Request) -> Answer:
        """Queues it at the decoder, with the ranking that is known of its instruction."""
        known, recipe = self._rankings.find(request), request.recipe
        if known is None or recipe is None:
            return self._core.submit(request)
        answer = self._core.submit(replace(request, recipe=replace(recipe, ranking=known.order)))
        answer.sensitivity = known.scores
        return answer

    def _ranked(self, ticket: Ticket, answer: Answer) -> None:
        self._rankings.keep(ticket.request, answer)
