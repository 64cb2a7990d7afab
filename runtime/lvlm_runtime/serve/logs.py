"""The server's log: one line per request, for people or programs, without pictures or words of it."""

from __future__ import annotations

import json
import sys
import threading
import time
import traceback
from dataclasses import dataclass, field
from typing import Any, TextIO

from lvlm_runtime.errors import LvlmError

TEXT, JSON = "text", "json"


@dataclass
class ServerLog:
    """Lines on a stream.

    Attributes:
        form: ``text`` or ``json``.
        stream: Where they go; None for stderr as it is then.
    """

    form: str = TEXT
    stream: TextIO | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def say(self, event: str, **fields: Any) -> None:
        """One line.

        Args:
            event: What happened, in a word or two.
            **fields: Numbers and short words about it; None is left out.
        """
        known = {name: value for name, value in fields.items() if value is not None}
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        if self.form == JSON:
            line = json.dumps({"time": now, "event": event, **known})
        else:
            line = " ".join([now, event, *(f"{name}={value}" for name, value in known.items())])
        line = "".join(each if each.isprintable() else repr(each)[1:-1] for each in line)
        with self._lock:
            print(line, file=sys.stderr if self.stream is None else self.stream, flush=True)

    def failed(self, bundle: str, error: BaseException) -> None:
        """An error that who asked is not told of; only our own messages are known to have no words of it."""
        frames = traceback.extract_tb(error.__traceback__)[-3:]
        where = " < ".join(f"{frame.name}:{frame.lineno}" for frame in reversed(frames))
        reason = str(error)[:500] if isinstance(error, LvlmError) else None
        self.say("failed", model=bundle, error=type(error).__name__, reason=reason, where=where)
