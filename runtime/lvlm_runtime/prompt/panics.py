"""Errors of the library ``tokenizers``, which is Rust: some of its faults are no ``Exception``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lvlm_runtime.errors import LvlmError
from lvlm_runtime.prompt.chat_template import one_line


@contextmanager
def named(what: str, remedy: str) -> Iterator[None]:
    """One line for whatever the library raises in the block, a panic included.

    Args:
        what: What failed, for the message, with its verb.
        remedy: What to do about it.

    Raises:
        LvlmError: The library raised something.

    Example:
        >>> with named("the tokenizer in model cannot be read", "save it again"):
        ...     raise ValueError("no vocabulary")
        Traceback (most recent call last):
        ...
        lvlm_profiles.errors.LvlmError: the tokenizer in model cannot be read: no vocabulary; save it again
    """
    try:
        yield
    except LvlmError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        raise LvlmError(f"{what}: {one_line(error)}; {remedy}") from error


def is_panic(error: BaseException) -> bool:
    """A panic of Rust, whose class no module exports and which is a BaseException of its own."""
    return type(error).__name__ == "PanicException"
