"""The server as a process: its socket, its signals, and its end in good order."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import nullcontext

from lvlm_runtime.errors import LvlmError
from lvlm_runtime.serve.app import create_app
from lvlm_runtime.serve.desk import Desk
from lvlm_runtime.serve.gate import LOCAL_NAMES
from lvlm_runtime.serve.logs import ServerLog
from lvlm_runtime.serve.web import uvicorn

LOOPBACK = ("127.0.0.1", "localhost", "::1")
# How often a server that ends looks whether all is answered.
LOOK_S = 0.02
BACKLOG = 128


class LogHandler(logging.Handler):
    """What uvicorn says, as lines of our log; its tracebacks could hold words of a request."""

    def __init__(self, log: ServerLog) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """One line."""
        self._log.say("http", level=record.levelname.lower(), message=record.getMessage()[:200])


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        LvlmError: The port is taken or not allowed, or the host is not this machine.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.create_server(address, family=family, backlog=BACKLOG)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise LvlmError(
            f"cannot listen on {host}, port {port}: {reason}; give another --port or --host"
        ) from None
    return listening


def serve(
    desk: Desk,
    listening: socket.socket,
    drain_s: float,
    on_listen: Callable[[], None] = lambda: None,
    names: Sequence[str] = (),
) -> None:
    """Answer until SIGTERM or SIGINT comes, then finish what was asked.

    A second signal gives up what is under way, behind the token at hand.

    Args:
        desk: What answers.
        listening: From ``bind``; closed at the end.
        drain_s: Longest time that the answers under way get.
        on_listen: Called when requests are taken.
        names: Further host names that requests may be for, where it listens on this machine alone.
    """
    host = listening.getsockname()[0]
    app = create_app(desk, (*LOCAL_NAMES, *names) if host in LOOPBACK else None)
    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=max(1, int(drain_s)),
    )
    logger = logging.getLogger("uvicorn.error")
    logger.propagate, handler = False, LogHandler(desk.log)
    logger.addHandler(handler)
    desk.start()
    try:
        asyncio.run(_run(desk, uvicorn.Server(config), listening, drain_s, on_listen))
    finally:
        logger.removeHandler(handler)
        listening.close()
        desk.close()


async def _run(
    desk: Desk,
    server: uvicorn.Server,
    listening: socket.socket,
    drain_s: float,
    on_listen: Callable[[], None],
) -> None:
    loop, tasks = asyncio.get_running_loop(), set()

    def stop() -> None:
        if desk.draining:
            server.should_exit = server.force_exit = True
            return
        desk.draining = True
        tasks.add(loop.create_task(_drain(desk, server, drain_s)))

    # uvicorn's own handling would raise the signal again when all is done.
    server.capture_signals = nullcontext  # type: ignore[method-assign,assignment]
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    tasks.add(loop.create_task(_say_when_ready(desk)))
    on_listen()
    try:
        await server.serve([listening])
    finally:
        for exchange in list(desk.open_requests):
            exchange.end()
        for task in tasks:
            task.cancel()


async def _drain(desk: Desk, server: uvicorn.Server, drain_s: float) -> None:
    """Let the answers under way end, then the server."""
    loop = asyncio.get_running_loop()
    until = loop.time() + drain_s
    desk.log.say("draining", open_requests=len(desk.open_requests))
    while desk.open_requests and loop.time() < until:
        await asyncio.sleep(LOOK_S)
    for exchange in list(desk.open_requests):
        exchange.end()
    server.should_exit = True


async def _say_when_ready(desk: Desk) -> None:
    while not desk.ready:
        await asyncio.sleep(LOOK_S)
    desk.log.say("ready", models=",".join(desk.catalogue.bundles))
