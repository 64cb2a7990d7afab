"""One request at a time through a chain, first come, first served.

Graphs keep their bindings, and a GPU's memory goes round between them, so two requests at once would
read each other's values. ``threading.Lock`` would do, but it lets the fastest thread go next, and one
that asks again and again starves the others: here whoever comes stands at the end of a line.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from lvlm_runtime.errors import UsageError


@dataclass(eq=False)
class Ticket:
    """A place in the line; ``called`` is set when it is the first."""

    thread: int
    called: threading.Event = field(default_factory=threading.Event)

    def adopt(self) -> None:
        """This thread goes on with the request: a stream may pass from one to another."""
        self.thread = threading.get_ident()


class Turns:
    """The line of requests of one chain.

    Attributes:
        closed: No further turn is given.
    """

    def __init__(self) -> None:
        # Re-entrant, because a signal handler may run at any line here and look at the session.
        self._lock = threading.RLock()
        self._line: deque[Ticket] = deque()
        self.closed = False

    @property
    def busy(self) -> bool:
        """A request is being answered."""
        return bool(self._line)

    @property
    def waiting(self) -> int:
        """Requests behind it."""
        return max(0, len(self._line) - 1)

    @contextmanager
    def turn(self) -> Iterator[Ticket]:
        """Wait for the requests that came before; however the block ends, the next one follows.

        Raises:
            UsageError: This thread has a turn already; it would wait for itself. Or the session was
                closed.
        """
        ticket = Ticket(threading.get_ident())
        try:
            self._join(ticket)
            ticket.called.wait()
            if self.closed:
                raise UsageError("this session is closed; open another one (Session.open)")
            yield ticket
        finally:
            try:
                self._leave(ticket)
            except KeyboardInterrupt:  # nobody else would take the ticket out of the line
                self._leave(ticket)
                raise

    @contextmanager
    def within(self) -> Iterator[None]:
        """One step of a request: in this thread's turn, or a turn of its own where it has none."""
        with self._lock:
            mine = bool(self._line) and self._line[0].thread == threading.get_ident()
        if mine:
            yield
            return
        with self.turn():
            yield

    def _join(self, ticket: Ticket) -> None:
        with self._lock:
            if any(other.thread == ticket.thread for other in self._line):
                raise UsageError(
                    "this session is answering a request of the same thread, which would wait for"
                    " itself; ask again when the answer is whole, not in its callbacks, or open a"
                    " second session"
                )
            self._line.append(ticket)
            self._line[0].called.set()

    def _leave(self, ticket: Ticket) -> None:
        """Harmless where the ticket is not in the line (any more)."""
        with self._lock:
            if ticket in self._line:
                self._line.remove(ticket)
            if self._line:
                self._line[0].called.set()
