"""From directories to a desk that answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lvlm_runtime.bundle.manifest import CAUSAL
from lvlm_runtime.remembered import PictureMemory
from lvlm_runtime.serve.catalogue import Catalogue
from lvlm_runtime.serve.desk import Desk
from lvlm_runtime.serve.job import ServedRequest
from lvlm_runtime.serve.limits import ServingLimits
from lvlm_runtime.serve.line import FairLine
from lvlm_runtime.serve.logs import ServerLog
from lvlm_runtime.serve.metrics import ServingMetrics
from lvlm_runtime.serve.served import ServedBundle
from lvlm_runtime.session import Session


@dataclass(frozen=True)
class Places:
    """Where and with what bundles are answered.

    Attributes:
        sessions: Per bundle.
        memory_bytes: For pictures, per session; 0 for none.
        degrade_to: As of ``ServedBundle``.
        backend: As of ``Session.open``, as are the others.
        device: Likewise.
        threads: Likewise.
    """

    sessions: int = 1
    memory_bytes: int = 0
    degrade_to: float | None = None
    backend: str = "auto"
    device: str = "auto"
    threads: int | None = None

    def open(self, directory: Path) -> Session:
        """A session that remembers pictures, where its bundle can."""
        session = Session.open(directory, self.backend, self.device, self.threads)
        # Where rows see others behind them, nothing can be gone on from.
        if self.memory_bytes and session.bundle.manifest.text.attention == CAUSAL:
            session.memory = PictureMemory(self.memory_bytes)
        return session


def open_desk(
    directories: Sequence[Path],
    places: Places,
    limits: ServingLimits,
    log_form: str = "text",
    api_key: str | None = None,
) -> Desk:
    """Load bundles; nothing is warm yet.

    Args:
        directories: Of the bundles; their names are the models'.
        places: Where they are answered.
        limits: Of one request.
        log_form: Of ``ServerLog``.
        api_key: Of ``Desk``.

    Raises:
        UsageError: Two have one name, or one has not the ratio to degrade to.
        LvlmError: One cannot be loaded.
    """
    log = ServerLog(log_form)
    metrics = ServingMetrics(log.failed)
    served = []
    for directory in directories:
        sessions = [places.open(directory) for _ in range(places.sessions)]
        if places.degrade_to is not None:
            sessions[0].bundle.budget(places.degrade_to)
        line: FairLine[ServedRequest] = FairLine(limits.waiting)
        name = directory.resolve().name
        served.append(ServedBundle(name, sessions, line, metrics, places.degrade_to))
    return Desk(Catalogue(served), limits, log, metrics, api_key)
