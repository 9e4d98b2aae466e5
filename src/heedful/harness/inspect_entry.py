"""What Inspect loads to learn of `heedful/…`; the provider itself is imported when a model is asked for."""

from __future__ import annotations

from typing import Any

from inspect_ai.model import modelapi


@modelapi(name="heedful")  # type: ignore[untyped-decorator]
def heedful() -> Any:
    """The provider's class."""
    from heedful.harness.inspect_provider import HeedfulAPI

    return HeedfulAPI
