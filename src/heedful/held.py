"""What free slots still hold: tokens whose raw keys and values need not be computed again. Knows no tensors."""

from __future__ import annotations

from collections.abc import Sequence

SHORTEST = 16  # tokens; to keep fewer saves nothing


class Held:
    """For each slot the tokens that its first columns hold, and when it was last used."""

    def __init__(self, num_slots: int) -> None:
        self._tokens: list[tuple[int, ...]] = [()] * num_slots
        self._used = [0] * num_slots
        self._clock = 0

    def keep(self, slot: int, tokens: Sequence[int]) -> None:
        """Notes what `slot` holds as it becomes free."""
        self._clock += 1
        self._tokens[slot], self._used[slot] = tuple(tokens), self._clock

    def take_over(self, other: Held) -> None:
        """Notes what `other` does, slot for slot."""
        for slot, tokens in enumerate(other._tokens):
            self.keep(slot, tokens)

    def best(self, free: Sequence[int], tokens: Sequence[int]) -> tuple[int, int]:
        """The slot of `free` to read `tokens` into, and how many of them it holds.

        The one that holds the most of them, where that is at least half of what it holds: else more would be
        overwritten than is saved (chats begin with the same template). Otherwise an empty one, or the oldest.
        """
        shared = {slot: self._shared(slot, tokens) for slot in free}
        worth = [slot for slot in free if shared[slot] and 2 * shared[slot] >= len(self._tokens[slot])]
        if worth:
            slot = max(worth, key=lambda slot: (shared[slot], -self._used[slot], -slot))
        else:
            slot = min(free, key=lambda slot: (bool(self._tokens[slot]), self._used[slot], slot))
        return slot, shared[slot]

    def _shared(self, slot: int, tokens: Sequence[int]) -> int:
        found = num_shared(self._tokens[slot], tokens)
        return found if found >= SHORTEST else 0


def num_shared(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens both begin with."""
    for at, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return at
    return min(len(left), len(right))
