"""Every error a caller can meet: one class a cause, one line that says what was found and what to do.

All are `HeedfulError`; the command line prints the line and exits with 2. Nothing here formats tracebacks.
"""


class HeedfulError(Exception):
    """Base of all errors that Heedful raises on purpose."""


class PromptError(HeedfulError):
    """The prompt or its messages cannot be used: empty, of the wrong shape, or refused by the chat template."""


class SpanError(HeedfulError):
    """An instruction span is absent, empty, malformed, or maps to no token."""


class TokenizerError(HeedfulError):
    """The tokenizer cannot tell where its tokens stand in the text."""


class OptionError(HeedfulError, ValueError):
    """An option is unknown or its value lies outside its range."""


class DataError(HeedfulError):
    """A data file cannot be read: a broken line, a missing column, or settings that are not those it was made with."""


class ContextLengthError(HeedfulError):
    """The prompt, or the prompt and the new tokens, are longer than the model's context."""


class NumericError(HeedfulError):
    """The model's numbers are not finite for one answer, so that no next token can be told.

    `index`: which of the jobs of a batch it is.
    """

    index: int | None = None


class ModelError(HeedfulError):
    """A model cannot be found, fetched, verified or read."""


class JudgeError(HeedfulError):
    """The model that judges answers cannot be reached, or refuses the key or the model's name."""


class UnsupportedModelError(ModelError):
    """The model was read, but its attention cannot be steered; the line says why."""
