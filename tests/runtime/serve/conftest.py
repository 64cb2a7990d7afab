"""One server for all files that ask an idle one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lvlm_runtime import Session
from lvlm_runtime.serve.served import ServedBundle
from serving import Running, running


@pytest.fixture(scope="session")
def server(demo_bundle: Path) -> Iterator[Running]:
    with running(demo_bundle) as server:
        yield server


@pytest.fixture(scope="session")
def session(demo_bundle: Path) -> Session:
    """The same bundle, asked without a server."""
    return Session.open(demo_bundle, backend="onnxruntime", device="cpu", threads=1)


@pytest.fixture
def bundle(server: Running) -> ServedBundle:
    """What the server of this file answers with."""
    return server.desk.catalogue.bundles[server.model]
