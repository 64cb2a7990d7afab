"""The errors that a user sees: one clear line each, never a traceback."""

from __future__ import annotations


class LvlmError(Exception):
    """A failure the user can act on.

    The message is one line: what failed, what was given, what is allowed, what to do.
    The command line prints it and exits with status 1.
    """


class UsageError(LvlmError):
    """A bad argument; the command line prints it and exits with status 2."""
