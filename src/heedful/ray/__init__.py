"""Batches over many machines, by Ray. Inside this package `ray` is Ray itself: all imports are absolute."""

from heedful.ray.rows import map

__all__ = ["map"]
