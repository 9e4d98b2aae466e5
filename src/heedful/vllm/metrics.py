"""What was decided, counted in the registry that vLLM's `/metrics` shows."""

from __future__ import annotations

from functools import cache
from typing import Any


@cache
def counters() -> dict[str, Any]:
    """The counters by name, made once a process, because a registry takes each name once."""
    from prometheus_client import Counter

    return {
        "tokens": Counter(
            "heedful_tokens", "Tokens of steered requests, by what the gate decided.", labelnames=["decision"]
        ),
        "changed": Counter("heedful_changed_tokens", "Tokens that are not the raw model's choice."),
        "forwards": Counter("heedful_extra_forwards", "Forwards made for steering alone."),
        "refused": Counter("heedful_refused_requests", "Steered requests ended because their span does not fit."),
    }
