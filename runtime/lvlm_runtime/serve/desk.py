"""Where requests come in: what is served, how much of it, and whether it is open."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

from lvlm_runtime.serve.catalogue import Catalogue
from lvlm_runtime.serve.job import Begun, Event, Finished, Said, ServedRequest
from lvlm_runtime.serve.limits import ServingLimits
from lvlm_runtime.serve.logs import ServerLog
from lvlm_runtime.serve.metrics import ServingMetrics
from lvlm_runtime.serve.reading import ReadRequest
from lvlm_runtime.serve.refusal import RefusedError


class LeftError(Exception):
    """Who asked is gone."""


@dataclass
class Desk:
    """A server without its network.

    Attributes:
        catalogue: What is served.
        limits: Of one request.
        log: Where lines go.
        metrics: What is counted.
        api_key: Whom it answers; None for everyone who reaches it.
        draining: No request is taken any more.
        open_requests: Those that are not answered yet.
    """

    catalogue: Catalogue
    limits: ServingLimits
    log: ServerLog
    metrics: ServingMetrics
    api_key: str | None = None
    draining: bool = False
    open_requests: set[Exchange] = field(default_factory=set)

    @property
    def ready(self) -> bool:
        """A request would be answered, and not be a first one."""
        return not self.draining and all(
            bundle.warm.is_set() for bundle in self.catalogue.bundles.values()
        )

    @property
    def state(self) -> str:
        """``ready``, ``warming up``, ``draining``, or that warming up failed."""
        if self.ready:
            return "ready"
        if self.draining:
            return "draining"
        failed = any(bundle.failed for bundle in self.catalogue.bundles.values())
        return "warming up failed; the log says why" if failed else "warming up"

    def start(self) -> None:
        """Warm up; meanwhile requests wait."""
        for bundle in self.catalogue.bundles.values():
            self.metrics.watch(bundle)
            bundle.start()

    def close(self) -> None:
        """End all threads, behind what they compute."""
        for bundle in self.catalogue.bundles.values():
            bundle.close()

    def check_open(self) -> None:
        """Refuse a request while the server ends.

        Raises:
            RefusedError: It does.
        """
        if self.draining:
            raise RefusedError(
                "this server is ending and takes no further request; ask another one",
                503,
                "draining",
                None,
                5,
            )


@dataclass(eq=False)
class Exchange:
    """One request, its turn and its events, as the event loop sees it.

    Attributes:
        desk: Where it came in.
        read: What was read of it.
        job: What waits for its turn.
    """

    desk: Desk
    read: ReadRequest
    job: ServedRequest
    _events: asyncio.Queue[Event]
    _gone: asyncio.Task[None]
    _until: float

    @classmethod
    def begin(
        cls, desk: Desk, read: ReadRequest, client: str, gone: Callable[[], Awaitable[None]]
    ) -> Exchange:
        """Join the line.

        Args:
            desk: Where it came in.
            read: What was read of it.
            client: Who asks.
            gone: Returns when nobody waits any more.

        Raises:
            RefusedError: There is no place, or no ratio meets the goal.
        """
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Event] = asyncio.Queue()

        def tell(event: Event) -> None:
            # The loop is closed where the server was ended at once.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(events.put_nowait, event)

        job = ServedRequest(
            client, read.asking, read.wish, read.size, tell, read.top_logprobs, read.shown
        )
        read.bundle.put(job)

        async def leave() -> None:
            await gone()

        watch = loop.create_task(leave())
        exchange = cls(desk, read, job, events, watch, loop.time() + desk.limits.deadline_s)
        desk.open_requests.add(exchange)
        # A response that was never begun does not end its exchange.
        watch.add_done_callback(lambda _: exchange.end())
        return exchange

    async def events(self) -> AsyncIterator[Begun | Said | Finished]:
        """What happens, up to the end of the answer.

        Raises:
            RefusedError: It is not answered, or took too long.
            LeftError: Nobody waits any more.
        """
        while True:
            event = await self._next()
            if isinstance(event, RefusedError):
                raise event
            yield event
            if isinstance(event, Finished):
                return

    async def _next(self) -> Event:
        loop = asyncio.get_running_loop()
        following = loop.create_task(self._events.get())
        try:
            await asyncio.wait(
                {following, self._gone},
                timeout=max(0.0, self._until - loop.time()),
                return_when=asyncio.FIRST_COMPLETED,
            )
            if following.done():
                return following.result()
            if self._gone.done():
                raise LeftError
        finally:
            following.cancel()
        raise RefusedError(
            f"the answer took longer than the {self.desk.limits.deadline_s:g} s that this server gives a"
            " request; ask for a shorter answer, or again later",
            504,
            "deadline_exceeded",
            None,
            self.read.bundle.retry_after_s(),
        )

    async def whole(self) -> tuple[Begun, list[Said], Finished]:
        """All of it; errors as of ``events``."""
        begun, said = None, []
        async for event in self.events():
            if isinstance(event, Begun):
                begun = event
            elif isinstance(event, Said):
                said.append(event)
            else:
                assert begun is not None, "an answer has a first token"
                return begun, said, event
        raise AssertionError("events end with a Finished or an error")

    def end(self) -> None:
        """Nobody waits any more; harmless a second time."""
        self._gone.cancel()
        self.read.bundle.leave(self.job)
        self.desk.open_requests.discard(self)
