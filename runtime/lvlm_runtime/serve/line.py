"""A bounded line in which the clients take turns, whoever asks most."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from typing import Generic, TypeVar

T = TypeVar("T")


class LineFullError(Exception):
    """There is no place, and who asks has as many as the others."""


class FairLine(Generic[T]):
    """Requests that wait: one of each client in turn, of one client in the order in which they came.

    Where it is full, a client with fewer requests in it than another takes the place of that one's
    last: a client that asks again and again cannot shut out those that ask once.

    Args:
        places: Most requests that wait.

    Example:
        >>> line = FairLine(4)
        >>> for client, request in (("a", 1), ("a", 2), ("b", 3)):
        ...     _ = line.put(client, request)
        >>> line.take(), line.take(), line.take(), len(line)
        (1, 3, 2, 0)
    """

    def __init__(self, places: int) -> None:
        self.places = places
        self._waiting: OrderedDict[str, deque[T]] = OrderedDict()
        self._change = threading.Condition()
        self._closed = False

    def __len__(self) -> int:
        """Requests that wait."""
        with self._change:
            return self._length

    @property
    def _length(self) -> int:
        return sum(map(len, self._waiting.values()))

    def put(self, client: str, request: T) -> T | None:
        """A request joins.

        Args:
            client: Who asks.
            request: What is asked.

        Returns:
            The request that lost its place to it, or None.

        Raises:
            LineFullError: No place is free or can be taken.
        """
        with self._change:
            lost = None
            if self._length >= self.places:
                longest = max(self._waiting, key=lambda each: len(self._waiting[each]), default="")
                own = len(self._waiting.get(client, ()))
                if len(self._waiting.get(longest, ())) <= own + 1:
                    raise LineFullError
                lost = self._waiting[longest].pop()
            self._waiting.setdefault(client, deque()).append(request)
            self._change.notify()
            return lost

    def take(self) -> T | None:
        """Wait for a request whose turn it is; None where the line is closed."""
        with self._change:
            while not self._waiting and not self._closed:
                self._change.wait()
            if not self._waiting:
                return None
            client, requests = self._waiting.popitem(last=False)
            request = requests.popleft()
            if requests:
                self._waiting[client] = requests
            return request

    def leave(self, client: str, request: T) -> bool:
        """A request that nobody waits for leaves; False where its turn has come already."""
        with self._change:
            requests = self._waiting.get(client)
            if requests is None or request not in requests:
                return False
            requests.remove(request)
            if not requests:
                del self._waiting[client]
            return True

    def close(self) -> None:
        """What waits is still taken; behind it ``take`` gives None."""
        with self._change:
            self._closed = True
            self._change.notify_all()
