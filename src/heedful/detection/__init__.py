"""Finds the instructions of a prompt: what constrains the form or content of the answer, against task and material."""

from heedful.detection.find import DEFAULT_THRESHOLD, Detection, Evidence, Found, find

__all__ = ["DEFAULT_THRESHOLD", "Detection", "Evidence", "Found", "find"]
