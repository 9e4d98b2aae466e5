"""Token ids → text, piece by piece: no half characters, and nothing of a stop string ever shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# A character is at most four byte tokens; more replacement characters in a row are real ones.
_LONGEST_CHARACTER = 4


class TextStream:
    """Collects the text of one answer. `push` gives what is safe to show, `close` what was held back."""

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self.text = ""
        self.is_stopped = False
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._ids: list[int] = []
        self._prefix, self._read = 0, 0
        self._held = ""

    @property
    def num_held(self) -> int:
        """Characters that are held back, because a stop string may begin with them."""
        return len(self._held)

    def push(self, token_id: int) -> str:
        """Text that this token makes safe to show; empty while a character or a stop string may be under way."""
        self._ids.append(token_id)
        return "" if self.is_stopped else self._release(self._advance(final=False), final=False)

    def close(self) -> str:
        """The rest: an unfinished stop string is text after all, an unfinished character the replacement character."""
        return "" if self.is_stopped else self._release(self._advance(final=True), final=True)

    def _advance(self, final: bool) -> str:
        # Decoding a window that starts one piece back keeps the space that some tokenizers put before a word.
        before = self._decode(self._ids[self._prefix : self._read])
        after = self._decode(self._ids[self._prefix :])
        pending = len(self._ids) - self._read
        if not final and after.endswith("�") and pending < _LONGEST_CHARACTER:
            return ""
        self._prefix, self._read = self._read, len(self._ids)
        return after[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def _release(self, piece: str, final: bool) -> str:
        self._held += piece
        found = [at for at in (self._held.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.is_stopped = True
            shown, self._held = self._held[: min(found)], ""
        else:
            keep = 0 if final else self._num_suspicious()
            shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        self.text += shown
        return shown

    def _num_suspicious(self) -> int:
        """How many characters at the end could be the beginning of a stop string."""
        longest = 0
        for stop in self._stop:
            for size in range(min(len(stop) - 1, len(self._held)), longest, -1):
                if self._held.endswith(stop[:size]):
                    longest = size
                    break
        return longest
