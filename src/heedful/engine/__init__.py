"""The row engine: everything that touches transformers' internals. `Engine.forward(rows)` is its one primitive."""

from heedful.engine.engine import Engine, Result
from heedful.engine.rows import Chunk, Edit, Row
from heedful.engine.slots import Slots

__all__ = ["Chunk", "Edit", "Engine", "Result", "Row", "Slots"]
